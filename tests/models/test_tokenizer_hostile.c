/* Tokenizers: metadata that disagrees with itself fails in words, odd but sound vocabularies do no harm. */
#include "support/vocabulary.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "fovea/model.h"

enum hostile {
    NO_MODEL,
    MODEL,
    PRE,
    EMPTY,
    SCORES,
    TYPES,
    TYPE,
    NAN_SCORE,
    BYTE,
    MERGE,
    MERGED,
    GAP,
    ID,
    NO_MERGES,
    KIND
};

static gguf_writer hostile_file(enum hostile which)
{
    static const char *const bad_merges[] = {"a b", "a c"}, *const made[] = {"b a"}, *const gap[] = {"ab"};
    static const float scores[] = {0, 0, 0, NAN};
    static const int32_t types[] = {1, 1, 1, 7};
    static const char *const pieces[] = {"a", "b", "ab", "<0x4>"};
    int32_t plain[] = {1, 1, 1, which == BYTE ? 6 : 1};
    bool sentence = which == SCORES || which == NAN_SCORE || which == BYTE;
    gguf_writer w = {0};

    if (which != NO_MODEL)
        gguf_put_string(&w, "tokenizer.ggml.model", which == MODEL ? "bert" : sentence ? "llama" : "gpt2");
    if (which == KIND)
        gguf_put_u32(&w, "tokenizer.ggml.tokens", 4);
    else
        gguf_put_strings(&w, "tokenizer.ggml.tokens", pieces, which == EMPTY ? 0 : 4);
    if (which == PRE) gguf_put_string(&w, "tokenizer.ggml.pre", "smolm");
    if (sentence) gguf_put_array(&w, "tokenizer.ggml.scores", FV_GGUF_F32, scores, which == SCORES ? 2 : 4);
    gguf_put_array(&w, "tokenizer.ggml.token_type", FV_GGUF_I32, which == TYPE ? types : plain, which == TYPES ? 3 : 4);
    if (which == GAP)
        gguf_put_strings(&w, "tokenizer.ggml.merges", gap, 1);
    else if (which == MERGED)
        gguf_put_strings(&w, "tokenizer.ggml.merges", made, 1);
    else if (which != NO_MERGES)
        gguf_put_strings(&w, "tokenizer.ggml.merges", bad_merges, which == MERGE ? 2 : 1);
    if (which == ID) gguf_put_u32(&w, "tokenizer.ggml.eos_token_id", 4);
    return w;
}

static void test_hostile_metadata_fails_with_a_sentence(void **state)
{
    static const struct {
        enum hostile which;
        fv_status status;
        const char *words;
    } rows[] = {
        {NO_MODEL, FV_E_FORMAT, "tokenizer.ggml.model"},
        {MODEL, FV_E_UNSUPPORTED, "expected 'gpt2' or 'llama', got 'bert'"},
        {PRE, FV_E_UNSUPPORTED, "'smolm' is not a pre-tokenizer we know; known are default"},
        {EMPTY, FV_E_FORMAT, "pieces, got 0"},
        {SCORES, FV_E_FORMAT, "scores: expected one element for each of 4 pieces, got 2"},
        {TYPES, FV_E_FORMAT, "token_type: expected one element for each of 4 pieces, got 3"},
        {TYPE, FV_E_FORMAT, "piece 3: expected 0 to 6, got 7"},
        {NAN_SCORE, FV_E_FORMAT, "piece 3: expected a number, got NaN"},
        {MERGE, FV_E_FORMAT, "merge 1: 'c' is not a piece of the vocabulary"},
        {MERGED, FV_E_FORMAT, "merge 0: 'b a' makes no piece of the vocabulary"},
        {GAP, FV_E_FORMAT, "merge 0: expected two pieces and a space, got 'ab'"},
        {ID, FV_E_FORMAT, "tokenizer.ggml.eos_token_id"},
        {NO_MERGES, FV_E_FORMAT, "tokenizer.ggml.merges"},
        {KIND, FV_E_FORMAT, "tokenizer.ggml.tokens"},
    };
    fv_tokenizer *t;

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        gguf_writer w = hostile_file(rows[r].which);
        assert_fails(test_read_tokenizer(&w, &t), rows[r].status, rows[r].words);
        assert_null(t);
    }
}

static void test_byte_pieces_are_checked(void **state)
{
    static const char *const bad[] = {"<0x4>", "<0xGG>", "<0x-1>", "0x41", "<0x412>", "<0x 1>"};
    fv_tokenizer *t;

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        test_vocabulary v = {0};
        gguf_writer w = {0};
        test_piece(&v, bad[i], 0, 6);
        gguf_put_string(&w, "tokenizer.ggml.model", "llama");
        test_put_vocabulary(&w, &v);
        assert_fails(test_read_tokenizer(&w, &t), FV_E_FORMAT, "piece 0: a byte piece is '<0x00>' to '<0xFF>'");
    }
}

/* Equal, empty and malformed pieces: the first of equals counts, nothing else breaks. */
static void test_odd_pieces_are_harmless(void **state)
{
    test_vocabulary v = {0};
    gguf_writer w = {0};
    fv_tokenizer *t;

    (void)state;
    test_byte_letters(&v);
    test_piece(&v, "", 0, 1);
    test_piece(&v, "", 0, 3);
    test_piece(&v, "a", 0, 1);            /* again */
    test_piece(&v, "\xC3", 0, 3);         /* half a character: never found in text */
    test_piece(&v, "\xE4\xBD\xA0", 0, 1); /* not byte letters: never found in text */
    test_piece(&v, "<x>", 0, 3);
    test_piece(&v, "<x>", 0, 3);
    gguf_put_string(&w, "tokenizer.ggml.model", "gpt2");
    test_put_vocabulary(&w, &v);
    gguf_put_strings(&w, "tokenizer.ggml.merges", NULL, 0);
    assert_ok(test_read_tokenizer(&w, &t));
    test_check_ids(t, "a\xC3\xA9<x>\xE4\xBD\xA0", FV_TOKENIZE_SPECIAL, IDS('a', 0xC3, 0xA9, 261, 0xE4, 0xBD, 0xA0));
    fv_tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hostile_metadata_fails_with_a_sentence),
        cmocka_unit_test(test_byte_pieces_are_checked),
        cmocka_unit_test(test_odd_pieces_are_harmless),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
