/* Tokenizers: the ids of llama.cpp on nasty texts, tiny vocabularies of each kind, round trips. */
#include "support/vocabulary.h"

#include <stdio.h>
#include <string.h>

#include "base/memory.h"
#include "base/text.h"
#include "fovea/model.h"

static fv_tokenizer *open_model(const char *path)
{
    fv_gguf *gguf;
    fv_tokenizer *tokenizer;

    assert_ok(fv_gguf_open(path, &gguf));
    assert_ok(fv_tokenizer_new(gguf, &tokenizer));
    fv_gguf_close(gguf);
    return tokenizer;
}

/* Ends never step back, and never pass the text. */
static void check_ends(const char *what, const int64_t *ends, int64_t count, size_t length)
{
    int64_t before = 0;

    for (int64_t i = 0; i < count; before = ends[i++])
        if (ends[i] < before || ends[i] > (int64_t)length)
            fail_msg("%s: end of id %lld: expected %lld to %zu, got %lld", what, (long long)i, (long long)before,
                     length, (long long)ends[i]);
}

/* text -> ids -> text is the same, and the span of each id is its piece where nothing was put before it. */
static void check_round_trip(const fv_tokenizer *t, const char *text, size_t length, unsigned flags)
{
    int32_t *ids;
    int64_t *ends, count;
    char *back;
    size_t back_length;

    assert_ok(fv_tokenizer_encode(t, text, length, flags, &ids, &ends, &count));
    check_ends("round trip", ends, count, length);
    assert_ok(fv_tokenizer_decode(t, ids, count, &back, &back_length));
    if (back_length != length || memcmp(back, text, length) != 0)
        fail_msg("text to ids to text: expected %zu bytes '%s', got %zu bytes '%s'", length, text, back_length, back);
    if (count > 0) assert_int_equal(ends[count - 1], length);
    fv_free(back);
    fv_free(ends);
    fv_free(ids);
}

/* ---- the real models -------------------------------------------------------------------------------------------- */

static void golden_row(const fv_tokenizer *t, const char *name, size_t index, json_t *row)
{
    json_t *text = json_object_get(row, "text"), *expected = json_object_get(row, "ids");
    unsigned flags = json_is_true(json_object_get(row, "special")) ? FV_TOKENIZE_SPECIAL : 0;
    const char *back_hex = json_string_value(json_object_get(row, "back"));
    size_t length = json_string_length(text), back_length;
    int32_t *ids;
    int64_t *ends, count;
    char *back, hex[8];

    assert_ok(fv_tokenizer_encode(t, json_string_value(text), length, flags, &ids, &ends, &count));
    if ((size_t)count != json_array_size(expected))
        fail_msg("%s, row %zu: expected %zu ids, got %lld", name, index, json_array_size(expected), (long long)count);
    for (int64_t i = 0; i < count; i++)
        if (ids[i] != json_integer_value(json_array_get(expected, (size_t)i)))
            fail_msg("%s, row %zu, id %lld: expected %lld, got %d", name, index, (long long)i,
                     (long long)json_integer_value(json_array_get(expected, (size_t)i)), ids[i]);
    check_ends(name, ends, count, length);
    assert_ok(fv_tokenizer_decode(t, ids, count, &back, &back_length));
    assert_int_equal(back_length, back_hex ? strlen(back_hex) / 2 : length);
    for (size_t i = 0; i < back_length; i++) {
        snprintf(hex, sizeof hex, "%02x", (unsigned char)back[i]);
        if (back_hex ? memcmp(hex, back_hex + 2 * i, 2) != 0 : back[i] != json_string_value(text)[i])
            fail_msg("%s, row %zu: back to text: byte %zu differs, got 0x%s", name, index, i, hex);
    }
    fv_free(back);
    fv_free(ends);
    fv_free(ids);
}

static void test_ids_equal_llama_cpp(void **state)
{
    (void)state;
    for (int m = 0; m < 2; m++) {
        const char *path = test_model_path(test_models[m][1]);
        if (!path) continue;
        json_t *golden = test_golden(test_models[m][0]), *rows = json_object_get(golden, "tokenize"), *row;
        fv_tokenizer *t = open_model(path);
        size_t index;
        assert_true(json_array_size(rows) >= 60);
        json_array_foreach(rows, index, row) golden_row(t, test_models[m][0], index, row);
        assert_int_equal(fv_tokenizer_begin(t), json_integer_value(json_object_get(golden, "bos")));
        assert_int_equal(fv_tokenizer_adds_begin(t), json_is_true(json_object_get(golden, "add_bos")));
        fv_tokenizer_free(t);
        json_decref(golden);
    }
}

static void test_models_know_their_ends(void **state)
{
    const char *smollm = test_model_path(test_models[0][1]), *gemma = test_model_path(test_models[1][1]);

    (void)state;
    if (!smollm || !gemma) return;
    fv_tokenizer *s = open_model(smollm), *g = open_model(gemma);
    assert_int_equal(fv_tokenizer_count(s), 49152);
    assert_int_equal(fv_tokenizer_count(g), 262144);
    for (int32_t id = -1; id < 300; id++) {
        assert_int_equal(fv_tokenizer_is_end(s, id), id == 0 || id == 2);                /* endoftext, im_end */
        assert_int_equal(fv_tokenizer_is_end(g, id), id == 1 || id == 106 || id == 212); /* eos, end_of_turn, </s> */
        assert_int_equal(fv_tokenizer_is_special(s, id), id >= 0 && id < 17);
    }
    assert_true(fv_tokenizer_is_special(g, 105) && fv_tokenizer_is_special(g, 2) && !fv_tokenizer_is_special(g, 107));
    assert_false(fv_tokenizer_is_end(s, 49152) || fv_tokenizer_is_special(s, INT32_MAX));
    test_check_ids(g, "hi", FV_TOKENIZE_MODEL, IDS(2, 2202));
    test_check_ids(s, "", FV_TOKENIZE_MODEL, IDS());
    test_check_ids(s, "", FV_TOKENIZE_BEGIN, IDS(1));
    fv_tokenizer_free(s);
    fv_tokenizer_free(g);
}

/* SmolLM2 has no piece for some bytes: those control characters and byte values vanish, as in llama.cpp. */
static bool all_bytes_known(const fv_tokenizer *t, const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        int32_t *ids;
        int64_t count;
        char pair[3] = {text[i]};
        if ((unsigned char)text[i] >= 0xF1) return false;
        if ((unsigned char)text[i] >= 0x80) continue;
        assert_ok(fv_tokenizer_encode(t, pair, 1, 0, &ids, NULL, &count));
        fv_free(ids);
        if (count == 0) return false;
    }
    return true;
}

static void test_models_round_trip_random_text(void **state)
{
    fv_random random = fv_random_new(test_seed(), 1);

    (void)state;
    for (int m = 0; m < 2; m++) {
        const char *path = test_model_path(test_models[m][1]);
        if (!path) continue;
        fv_tokenizer *t = open_model(path);
        int tried = 0;
        for (int i = 0; i < 400; i++) {
            size_t length;
            char *text = test_random_text(&random, fv_random_below(&random, 60), &length);
            bool has_mark = strstr(text, "\xE2\x96\x81") || strlen(text) < length; /* U+2581 comes back as a space */
            if (m == 0 ? all_bytes_known(t, text, length) : !has_mark) {
                check_round_trip(t, text, length, i % 2 ? FV_TOKENIZE_SPECIAL : 0);
                tried++;
            }
            fv_free(text);
        }
        assert_true(tried > 20);
        fv_tokenizer_free(t);
    }
}

/* The public functions are those of the model's tokenizer, and say so where there is none. */
static void test_models_offer_their_text(void **state)
{
    const char *smollm = test_model_path(test_models[0][1]), *gemma = test_model_path(test_models[1][1]);
    fv_model *model;
    int32_t *ids;
    int64_t *ends, count;
    char *text;
    size_t length, user_at;

    (void)state;
    if (!smollm || !gemma) return;
    assert_ok(fv_model_open(smollm, &model));
    assert_ok(fv_model_chat(model, NULL, "Hi there", &text, &length, &user_at));
    assert_ok(
        fv_model_tokenize_spans(model, text, length, FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL, &ids, &ends, &count));
    assert_int_equal(ids[0], fv_model_begin_token(model));
    assert_false(fv_model_adds_begin(model));
    for (int64_t i = 0; i < count; i++) { /* each span is the piece */
        const char *bytes;
        size_t size, from = i ? (size_t)ends[i - 1] : 0;
        assert_ok(fv_model_piece(model, ids[i], &bytes, &size));
        assert_int_equal(from + size, ends[i]);
        assert_memory_equal(bytes, text + from, size);
        assert_int_equal(fv_model_is_special(model, ids[i]), *bytes == '<');
        assert_int_equal(fv_model_is_end(model, ids[i]), size > 7 && memcmp(bytes, "<|im_end|>", 8) == 0);
    }
    fv_free(text);
    assert_ok(fv_model_detokenize(model, ids, count, &text, &length));
    assert_int_equal(length, ends[count - 1]);
    fv_free(text);
    fv_free(ids);
    fv_free(ends);
    assert_ok(fv_model_tokenize(model, "", 0, 0, &ids, &count));
    assert_int_equal(count, 0);
    fv_free(ids);
    fv_model_close(model);
    assert_ok(fv_model_open(gemma, &model));
    assert_fails(fv_model_chat(model, NULL, "Hi", &text, &length, &user_at), FV_E_UNSUPPORTED, "--raw");
    fv_model_close(model);
}

/* ---- tiny vocabularies ------------------------------------------------------------------------------------------ */

enum { BYTES = 256 };

/* Bytes, merges l+o, lo+w, Ġ+low, e+r, and special pieces; pre as given. */
static gguf_writer byte_pair_file(const char *pre)
{
    static const char *const merges[] = {"l o", "lo w", "\xC4\xA0 low", "e r", "o w", "1 2"};
    test_vocabulary v = {0};
    gguf_writer w = {0};

    test_byte_letters(&v);
    test_piece(&v, "lo", 0, 1);          /* 256 */
    test_piece(&v, "low", 0, 1);         /* 257 */
    test_piece(&v, "\xC4\xA0low", 0, 1); /* 258 */
    test_piece(&v, "er", 0, 1);          /* 259 */
    test_piece(&v, "ow", 0, 1);          /* 260 */
    test_piece(&v, "12", 0, 1);          /* 261 */
    test_piece(&v, "<a>", 0, 3);         /* 262 */
    test_piece(&v, "<a><b>", 0, 3);      /* 263 */
    test_piece(&v, "[user]", 0, 4);      /* 264 */
    test_piece(&v, "<|im_end|>", 0, 1);  /* 265: an end whatever its type */
    test_piece(&v, "lowest", 0, 1);      /* 266: only whole words become it */
    gguf_put_string(&w, "tokenizer.ggml.model", "gpt2");
    gguf_put_string(&w, "tokenizer.ggml.pre", pre);
    test_put_vocabulary(&w, &v);
    gguf_put_strings(&w, "tokenizer.ggml.merges", merges, 6);
    gguf_put_u32(&w, "tokenizer.ggml.bos_token_id", 262);
    gguf_put_u32(&w, "tokenizer.ggml.eos_token_id", 263);
    return w;
}

static fv_tokenizer *byte_pair(const char *pre)
{
    gguf_writer w = byte_pair_file(pre);
    fv_tokenizer *t;

    assert_ok(test_read_tokenizer(&w, &t));
    return t;
}

static void test_byte_pair_merges_by_rank(void **state)
{
    fv_tokenizer *t = byte_pair("gpt-2");

    (void)state;
    test_check_ids(t, "low", 0, IDS(257));
    test_check_ids(t, " low", 0, IDS(258));
    test_check_ids(t, "low low", 0, IDS(257, 258));
    test_check_ids(t, "lower", 0, IDS(257, 259));
    test_check_ids(t, "ow", 0, IDS(260));
    test_check_ids(t, "lowest", 0, IDS(257, 'e', 's', 't'));
    test_check_ids(t, "12", 0, IDS(261));
    test_check_ids(t, "\xC3\xA9", 0, IDS(0xC3, 0xA9));
    test_check_ids(t, "<a><b><a>x", 0, IDS('<', 'a', '>', '<', 'b', '>', '<', 'a', '>', 'x'));
    test_check_ids(t, "<a><b><a>x", FV_TOKENIZE_SPECIAL, IDS(263, 262, 'x'));
    test_check_ids(t, "<a><c", FV_TOKENIZE_SPECIAL, IDS(262, '<', 'c'));
    test_check_ids(t, "[user]low", 0, IDS(264, 257));
    test_check_ids(t, "low", FV_TOKENIZE_MODEL, IDS(257));
    test_check_ids(t, "low", FV_TOKENIZE_BEGIN, IDS(262, 257));
    assert_true(fv_tokenizer_is_end(t, 265) && fv_tokenizer_is_special(t, 265) && fv_tokenizer_is_end(t, 263));
    test_check_ids(t, "<|im_end|>", 0, IDS('<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>'));
    test_check_ids(t, "<|im_end|>", FV_TOKENIZE_SPECIAL, IDS(265));
    fv_tokenizer_free(t);
}

static void test_pre_tokenizers_cut_words(void **state)
{
    static const struct {
        const char *pre, *text;
        int32_t ids[16];
    } rows[] = {
        {"smollm", "12", {'1', '2', -1}},
        {"qwen2", "12", {'1', '2', -1}},
        {"llama-bpe", "12", {262, 261, -1}},             /* adds its begin token */
        {"llama-bpe", "1212", {262, 261, '1', '2', -1}}, /* 121, 2 */
        {"default", "1212", {261, '1', '2', -1}},
        {"gpt-2", "1212", {261, 261, -1}},
        {"llama-bpe", "lowest", {262, 266, -1}}, /* a whole word that is a piece */
        {"qwen2", "lowest", {257, 'e', 's', 't', -1}},
        {"gpt-2", "l\nlow", {'l', '\n', 257, -1}},
        {"gpt-2", "  low", {' ', 258, -1}},
        {"qwen2", "\tlow", {'\t', 257, -1}},
        {"qwen2", ".low", {'.', 257, -1}},
        {"default", "low.low", {257, '.', 257, -1}},
    };

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        fv_tokenizer *t = byte_pair(rows[r].pre);
        test_check_ids(t, rows[r].text, FV_TOKENIZE_MODEL, rows[r].ids);
        fv_tokenizer_free(t);
    }
}

/* U+2581 stands for the space: "_" below is written with it. */
#define S "\xE2\x96\x81"

static fv_tokenizer *sentence_piece(bool prefix, bool squeeze)
{
    test_vocabulary v = {0};
    gguf_writer w = {0};
    fv_tokenizer *t;

    test_byte_pieces(&v);
    test_piece(&v, "<unk>", 0, 2);      /* 256 */
    test_piece(&v, "<s>", 0, 3);        /* 257 */
    test_piece(&v, "</s>", 0, 3);       /* 258 */
    test_piece(&v, S, -10, 1);          /* 259 */
    test_piece(&v, "a", -11, 1);        /* 260 */
    test_piece(&v, "b", -12, 1);        /* 261 */
    test_piece(&v, "ab", -2, 1);        /* 262 */
    test_piece(&v, S "a", -1, 1);       /* 263 */
    test_piece(&v, "ba", -3, 1);        /* 264 */
    test_piece(&v, "\xC3\xA9", -13, 1); /* 265 */
    test_piece(&v, "\n\n", -14, 4);     /* 266 */
    test_piece(&v, "  ", -15, 4);       /* 267 */
    test_piece(&v, S S, -1, 1);         /* 268: text reaches it only where no user-defined piece stands before */
    gguf_put_string(&w, "tokenizer.ggml.model", "llama");
    test_put_vocabulary(&w, &v);
    gguf_put_u32(&w, "tokenizer.ggml.bos_token_id", 257);
    gguf_put_u32(&w, "tokenizer.ggml.eos_token_id", 258);
    gguf_put_u32(&w, "tokenizer.ggml.unknown_token_id", 256);
    gguf_put_bool(&w, "tokenizer.ggml.add_eos_token", true);
    gguf_put_bool(&w, "tokenizer.ggml.add_space_prefix", prefix);
    if (squeeze) gguf_put_bool(&w, "tokenizer.ggml.remove_extra_whitespaces", true);
    assert_ok(test_read_tokenizer(&w, &t));
    return t;
}

static void test_sentence_piece_merges_by_score(void **state)
{
    fv_tokenizer *t = sentence_piece(false, false), *p = sentence_piece(true, false), *q = sentence_piece(true, true);

    (void)state;
    test_check_ids(t, "ab", 0, IDS(262));
    test_check_ids(t, " ab", 0, IDS(263, 261)); /* " a" has the better score */
    test_check_ids(t, "aba", 0, IDS(262, 260));
    test_check_ids(t, "bab", 0, IDS(261, 262));
    test_check_ids(t, "baba", 0, IDS(261, 262, 260));
    test_check_ids(t, "a\n\nb", 0, IDS(260, 266, 261));
    test_check_ids(t, "a   b", 0, IDS(260, 267, 259, 261));
    test_check_ids(t, S S "b", 0, IDS(268, 261));
    test_check_ids(t, "x\xC3\xA9", 0, IDS('x', 265));
    test_check_ids(t, "\xE4\xBD\xA0", 0, IDS(0xE4, 0xBD, 0xA0));
    test_check_ids(t, "<s>", 0, IDS('<', 's', '>'));
    test_check_ids(t, "a<s>b", FV_TOKENIZE_SPECIAL, IDS(260, 257, 261));
    test_check_ids(t, "a", FV_TOKENIZE_MODEL, IDS(257, 260, 258));
    test_check_ids(p, "ab", 0, IDS(263, 261));
    test_check_ids(p, "", FV_TOKENIZE_MODEL, IDS(257, 258));
    test_check_ids(p, "b<s>b", FV_TOKENIZE_SPECIAL, IDS(259, 261, 257, 259, 261));
    test_check_ids(q, " b b ", 0, IDS(259, 261, 259, 261));
    test_check_ids(q, " ", 0, IDS());
    fv_tokenizer_free(t);
    fv_tokenizer_free(p);
    fv_tokenizer_free(q);
}

static void test_spans_end_where_text_ends(void **state)
{
    static const int64_t expected[] = {0, 1, 2, 3, 4, 6, 6}; /* begin, _a, three bytes of a character, b-less, end */
    fv_tokenizer *t = sentence_piece(true, false);
    int32_t *ids;
    int64_t *ends, count;

    (void)state;
    assert_ok(fv_tokenizer_encode(t, "a\xE4\xBD\xA0\n\n", 6, FV_TOKENIZE_MODEL, &ids, &ends, &count));
    assert_int_equal(count, 7);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(ends[i], expected[i]);
    fv_free(ids);
    fv_free(ends);
    fv_tokenizer_free(t);
}

static void test_without_byte_pieces_text_is_unknown(void **state)
{
    fv_tokenizer *t;

    (void)state;
    for (int unknown = 0; unknown < 2; unknown++) {
        test_vocabulary v = {0};
        gguf_writer w = {0};
        test_piece(&v, "a", 0, 1);
        gguf_put_string(&w, "tokenizer.ggml.model", "llama");
        gguf_put_bool(&w, "tokenizer.ggml.add_space_prefix", false);
        if (unknown) {
            test_piece(&v, "<unk>", 0, 2);
            gguf_put_u32(&w, "tokenizer.ggml.unknown_token_id", 1);
        }
        test_put_vocabulary(&w, &v);
        assert_ok(test_read_tokenizer(&w, &t));
        if (unknown)
            test_check_ids(t, "a\xC3\xA9z", 0, IDS(0, 1, 1));
        else
            test_check_ids(t, "a\xC3\xA9", 0, IDS(0, 0)); /* id 0 is the unknown token unless the file says otherwise */
        fv_tokenizer_free(t);
    }
}

static void test_random_text_round_trips(void **state)
{
    fv_random random = fv_random_new(test_seed(), 2);
    fv_tokenizer *all[] = {byte_pair("gpt-2"),           byte_pair("smollm"),        byte_pair("llama-bpe"),
                           byte_pair("qwen2"),           byte_pair("default"),       byte_pair("dbrx"),
                           sentence_piece(false, false), sentence_piece(true, false)};

    (void)state;
    for (size_t k = 0; k < sizeof all / sizeof *all; k++) {
        for (int i = 0; i < 300; i++) {
            size_t length;
            char *text = test_random_text(&random, fv_random_below(&random, 100), &length);
            for (size_t at = 0; at + 2 < length; at++) /* U+2581 comes back as a space */
                if (memcmp(text + at, S, 3) == 0) memcpy(text + at, "low", 3);
            check_round_trip(all[k], text, length, i % 2 ? FV_TOKENIZE_SPECIAL : 0);
            fv_free(text);
        }
        fv_tokenizer_free(all[k]);
    }
}

static void test_pieces_stream_the_same_text(void **state)
{
    fv_random random = fv_random_new(test_seed(), 3);
    fv_tokenizer *t = byte_pair("smollm");

    (void)state;
    for (int i = 0; i < 50; i++) {
        int32_t *ids;
        int64_t count;
        size_t length, at = 0;
        char *text = test_random_text(&random, 80, &length);
        assert_ok(fv_tokenizer_encode(t, text, length, 0, &ids, NULL, &count));
        for (int64_t k = 0; k < count; k++) {
            const char *bytes;
            size_t size;
            assert_ok(fv_tokenizer_piece(t, ids[k], &bytes, &size));
            assert_true(at + size <= length);
            assert_memory_equal(bytes, text + at, size);
            at += size;
        }
        assert_int_equal(at, length);
        fv_free(ids);
        fv_free(text);
    }
    const char *bytes;
    size_t size;
    assert_fails(fv_tokenizer_piece(t, -1, &bytes, &size), FV_E_ARGUMENT, "expected 0 to 266, got -1");
    assert_fails(fv_tokenizer_piece(t, 267, &bytes, &size), FV_E_ARGUMENT, "got 267");
    fv_tokenizer_free(t);
}

static void test_text_must_be_utf8(void **state)
{
    static const struct {
        const char *text;
        size_t length, at;
    } rows[] = {{"ab\xFF", 3, 2},           {"\xC3", 1, 0},         {"a\xC0\x80", 3, 1}, {"\xED\xA0\x80", 3, 0},
                {"\xF4\x90\x80\x80", 4, 0}, {"\xE0\x80\x80", 3, 0}, {"a\0\x80", 3, 2},   {"\xF0\x8F\xBF\xBF", 4, 0},
                {"\xE2\x82", 2, 0},         {"\xC3\xA9\x80", 3, 2}};
    fv_tokenizer *t = byte_pair("gpt-2");
    int32_t *ids;
    int64_t count;
    char words[64];

    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        snprintf(words, sizeof words, "not UTF-8 at byte %zu:", rows[r].at);
        assert_fails(fv_tokenizer_encode(t, rows[r].text, rows[r].length, 0, &ids, NULL, &count), FV_E_FORMAT, words);
        assert_null(ids);
    }
    check_round_trip(t, "a\0b\0", 4, 0); /* 0 bytes are text */
    fv_tokenizer_free(t);
}

/* ---- cost ------------------------------------------------------------------------------------------------------- */

/* Quadratic work would take hours, and the test's time would be up. */
static void encode_all(const fv_tokenizer *t, const char *text, size_t length)
{
    int32_t *ids;
    int64_t *ends, count;

    assert_ok(fv_tokenizer_encode(t, text, length, 0, &ids, &ends, &count));
    assert_int_equal(ends[count - 1], length);
    fv_free(ids);
    fv_free(ends);
}

static void test_long_texts_take_linear_time(void **state)
{
    enum { LENGTH = 5000000 };
    fv_random random = fv_random_new(test_seed(), 4);
    char *text = NULL;

    (void)state;
    assert_ok(FV_ALLOC(text, LENGTH));
    for (int kind = 0; kind < 2; kind++) {
        fv_tokenizer *t = kind ? sentence_piece(true, false) : byte_pair("qwen2");
        for (int i = 0; i < LENGTH; i++)
            text[i] = "ablow er\n"[fv_random_below(&random, 9)];
        encode_all(t, text, LENGTH);
        memset(text, 'a', LENGTH);
        encode_all(t, text, LENGTH);
        memset(text, ' ', LENGTH);
        encode_all(t, text, LENGTH);
        for (int i = 0; i < LENGTH; i++)
            text[i] = "lo"[i % 2];
        encode_all(t, text, LENGTH);
        fv_tokenizer_free(t);
    }
    fv_free(text);
}

static void test_failing_allocations_are_reported(void **state)
{
    (void)state;
    for (int64_t nth = 1;; nth++) {
        gguf_writer w = byte_pair_file("smollm");
        unsigned char *bytes;
        size_t size;
        fv_gguf *gguf;
        fv_tokenizer *t = NULL;
        int32_t *ids = NULL;
        int64_t *ends = NULL, count;
        char *back = NULL;

        gguf_bytes(&w, &bytes, &size);
        gguf_writer_free(&w);
        assert_ok(fv_gguf_parse("test.gguf", bytes, size, &gguf));
        test_alloc_fail(nth);
        fv_status status = fv_tokenizer_new(gguf, &t);
        if (status == FV_OK) status = fv_tokenizer_encode(t, "low <a> lower", 13, 1, &ids, &ends, &count);
        if (status == FV_OK) status = fv_tokenizer_decode(t, ids, count, &back, &size);
        int64_t made = test_alloc_count();
        test_alloc_fail(0);
        assert_int_equal(status, made >= nth ? FV_E_MEMORY : FV_OK);
        fv_free(back);
        fv_free(ids);
        fv_free(ends);
        fv_tokenizer_free(t);
        fv_gguf_close(gguf);
        fv_free(bytes);
        if (made < nth) break;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ids_equal_llama_cpp),
        cmocka_unit_test(test_models_know_their_ends),
        cmocka_unit_test(test_models_round_trip_random_text),
        cmocka_unit_test(test_models_offer_their_text),
        cmocka_unit_test(test_byte_pair_merges_by_rank),
        cmocka_unit_test(test_pre_tokenizers_cut_words),
        cmocka_unit_test(test_sentence_piece_merges_by_score),
        cmocka_unit_test(test_spans_end_where_text_ends),
        cmocka_unit_test(test_without_byte_pieces_text_is_unknown),
        cmocka_unit_test(test_random_text_round_trips),
        cmocka_unit_test(test_pieces_stream_the_same_text),
        cmocka_unit_test(test_text_must_be_utf8),
        cmocka_unit_test(test_long_texts_take_linear_time),
        cmocka_unit_test(test_failing_allocations_are_reported),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
