#include "support/vocabulary.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/memory.h"

const char *const test_models[2][2] = {{"smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"},
                                       {"gemma3", "gemma-3-270m-q4_k_m.gguf"}};

int32_t test_piece(test_vocabulary *v, const char *text, float score, int32_t type)
{
    assert_true(v->count < 400);
    v->pieces[v->count] = text;
    v->scores[v->count] = score;
    v->types[v->count] = type;
    return (int32_t)v->count++;
}

void test_byte_letters(test_vocabulary *v)
{
    int next = 256;

    for (int b = 0; b < 256; b++) {
        bool own = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || (b >= 0xAE && b <= 0xFF);
        int c = own ? b : next++;
        if (c < 128)
            snprintf(v->letters[b], 8, "%c", c);
        else
            snprintf(v->letters[b], 8, "%c%c", 0xC0 | c >> 6, 0x80 | (c & 63));
        test_piece(v, v->letters[b], 0, 1);
    }
}

void test_byte_pieces(test_vocabulary *v)
{
    for (int b = 0; b < 256; b++) {
        snprintf(v->letters[b], 8, "<0x%02X>", b);
        test_piece(v, v->letters[b], 0, 6);
    }
}

void test_put_vocabulary(gguf_writer *w, const test_vocabulary *v)
{
    gguf_put_strings(w, "tokenizer.ggml.tokens", v->pieces, v->count);
    gguf_put_array(w, "tokenizer.ggml.scores", FV_GGUF_F32, v->scores, v->count);
    gguf_put_array(w, "tokenizer.ggml.token_type", FV_GGUF_I32, v->types, v->count);
}

fv_status test_read_tokenizer(gguf_writer *w, fv_tokenizer **tokenizer)
{
    unsigned char *bytes;
    size_t size;
    fv_gguf *gguf;

    *tokenizer = NULL;
    gguf_bytes(w, &bytes, &size);
    gguf_writer_free(w);
    fv_status status = fv_gguf_parse("test.gguf", bytes, size, &gguf);
    if (status == FV_OK) {
        status = fv_tokenizer_new(gguf, tokenizer);
        fv_gguf_close(gguf);
    }
    fv_free(bytes);
    return status;
}

static int put_character(char *out, uint32_t c)
{
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000)
        return out[0] = (char)(0xE0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63)), out[2] = (char)(0x80 | (c & 63)),
               3;
    out[0] = (char)(0xF0 | c >> 18);
    out[1] = (char)(0x80 | (c >> 12 & 63));
    out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

char *test_random_text(fv_random *random, int64_t characters, size_t *length)
{
    /* ranges that matter to patterns, and everything */
    static const uint32_t ranges[][2] = {{' ', '~'},         {'a', 'e'},          {' ', ' '},       {'\t', '\r'},
                                         {0, 0x7F},          {0x80, 0x7FF},       {0x800, 0xD7FF},  {0xE000, 0xFFFF},
                                         {0x1F300, 0x1FAFF}, {0x10000, 0x10FFFF}, {0x2580, 0x2582}, {'0', '9'}};
    char *text = NULL;

    *length = 0;
    assert_ok(FV_ALLOC(text, characters * 4 + 1));
    for (int64_t i = 0; i < characters; i++) {
        const uint32_t *range = ranges[fv_random_below(random, sizeof ranges / sizeof *ranges)];
        uint32_t c = range[0] + (uint32_t)fv_random_below(random, (int64_t)(range[1] - range[0]) + 1);
        *length += (size_t)put_character(text + *length, c);
    }
    text[*length] = 0;
    return text;
}

const char *test_model_path(const char *name)
{
    static char path[2][4096];
    static int next;
    char *out = path[next++ % 2];

    snprintf(out, sizeof path[0], "%s/models/%s", FOVEA_SOURCE_DIR, name);
    if (access(out, R_OK) == 0) return out;
    const char *without = getenv("FOVEA_TEST_WITHOUT_MODELS");
    if (!without || strcmp(without, "1") != 0)
        fail_msg("%s is missing: 'make models' fetches it, FOVEA_TEST_WITHOUT_MODELS=1 goes without", out);
    printf("skipped: no %s\n", out);
    return NULL;
}

json_t *test_golden(const char *name)
{
    char path[4096];
    json_error_t error;

    snprintf(path, sizeof path, "%s/tests/golden/%s.json", FOVEA_SOURCE_DIR, name);
    json_t *golden = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!golden) fail_msg("%s: %s", path, error.text);
    return golden;
}

void test_check_ids(const fv_tokenizer *t, const char *text, unsigned flags, const int32_t *expected)
{
    int32_t *ids;
    int64_t count, at = 0;

    assert_ok(fv_tokenizer_encode(t, text, strlen(text), flags, &ids, NULL, &count));
    for (; expected[at] >= 0; at++)
        if (at >= count || ids[at] != expected[at])
            fail_msg("'%s', id %lld of %lld: expected %d, got %d", text, (long long)at, (long long)count, expected[at],
                     at < count ? ids[at] : -1);
    if (at != count) fail_msg("'%s': expected %lld ids, got %lld", text, (long long)at, (long long)count);
    fv_free(ids);
}
