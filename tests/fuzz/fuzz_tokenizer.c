/* Any text in tiny vocabularies of every kind: the first byte chooses one, the second the flags. */
#define _GNU_SOURCE /* memmem */
#include "support/vocabulary.h"

#include "fuzz/fuzz.h"

#include "base/memory.h"
#include "base/text.h"
#include "fovea/model.h"

#define S "\xE2\x96\x81" /* SentencePiece's space */
#define G "\xC4\xA0"     /* byte-pair's space */

enum { DEFAULT, GPT2, SMOLLM, LLAMA3, QWEN2, PLAIN, PREFIX, SQUEEZE, KINDS };

static void put_byte_pair(gguf_writer *w, const char *pre)
{
    static const char *const merges[] = {"a b", "ab a", G " a", "1 2", G " " G, "ab ab", "\xC3\x83 \xC2\xA9"};
    static const char *const made[] = {"ab", "aba", G "a", "12", G G, "abab", "\xC3\x83\xC2\xA9"};
    test_vocabulary v = {0};

    test_byte_letters(&v);
    for (int i = 0; i < 7; i++)
        test_piece(&v, made[i], 0, 1);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)test_piece(&v, "<s>", 0, 3));
    test_piece(&v, "<s><s>", 0, 3);
    test_piece(&v, "\n\n", 0, 4);
    gguf_put_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(w, "tokenizer.ggml.pre", pre);
    test_put_vocabulary(w, &v);
    gguf_put_strings(w, "tokenizer.ggml.merges", merges, 7);
}

static void put_sentence_piece(gguf_writer *w, bool prefix, bool squeeze)
{
    static const char *const pieces[] = {S, "a", "b", "ab", S "a", "aa", "aaaa", "\xC3\xA9"};
    test_vocabulary v = {0};

    test_byte_pieces(&v);
    for (int i = 0; i < 8; i++)
        test_piece(&v, pieces[i], (float)(i * 5 % 8), 1);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)test_piece(&v, "<s>", 0, 3));
    test_piece(&v, "\n\n", 0, 4);
    test_piece(&v, "  ", 0, 4);
    gguf_put_string(w, "tokenizer.ggml.model", "llama");
    test_put_vocabulary(w, &v);
    gguf_put_bool(w, "tokenizer.ggml.add_space_prefix", prefix);
    gguf_put_bool(w, "tokenizer.ggml.remove_extra_whitespaces", squeeze);
}

static const fv_tokenizer *choose(int kind)
{
    static const char *const pres[] = {"default", "gpt-2", "smollm", "llama-bpe", "qwen2"};
    static fv_tokenizer *made[KINDS];
    gguf_writer w = {0};

    if (made[kind]) return made[kind];
    if (kind < PLAIN)
        put_byte_pair(&w, pres[kind]);
    else
        put_sentence_piece(&w, kind != PLAIN, kind == SQUEEZE);
    PROMISE(test_read_tokenizer(&w, &made[kind]) == FV_OK);
    return made[kind];
}

int fuzz_tokenizer(const uint8_t *data, size_t size)
{
    int32_t *ids;
    int64_t *ends, count, before = 0;
    char *back;
    size_t length;

    if (size < 2) return 0;
    int kind = data[0] % KINDS;
    unsigned flags = data[1] & (FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL);
    const fv_tokenizer *t = choose(kind);
    const char *text = (const char *)data + 2;
    size -= 2;
    bool whole = fv_utf8_valid(text, size) == size;
    PROMISE((fv_tokenizer_encode(t, text, size, flags, &ids, &ends, &count) == FV_OK) == whole);
    if (!whole) return 0;
    for (int64_t i = 0; i < count; before = ends[i++])
        PROMISE(ids[i] >= 0 && ids[i] < fv_tokenizer_count(t) && ends[i] >= before && ends[i] <= (int64_t)size);
    int64_t first = count > 0 && flags & FV_TOKENIZE_MODEL && fv_tokenizer_adds_begin(t);
    PROMISE(fv_tokenizer_decode(t, ids + first, count - first, &back, &length) == FV_OK);
    if (kind < PLAIN || (kind != SQUEEZE && !memmem(text, size, S, 3)))
        PROMISE(length == size && memcmp(back, text, size) == 0);
    fv_free(back);
    fv_free(ids);
    fv_free(ends);
    return 0;
}

FUZZ_TARGET(fuzz_tokenizer)
