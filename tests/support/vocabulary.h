/* Vocabularies for tests: tiny ones written as GGUF and read back, and the real models' where they lie. */
#ifndef FV_VOCABULARY_H
#define FV_VOCABULARY_H

#include <jansson.h>

#include "models/tokenizer.h"
#include "support/gguf_writer.h"
#include "support/support.h"

/* A byte-pair vocabulary being written: the 256 bytes come first, ids 0 to 255 in byte order. */
typedef struct test_vocabulary {
    const char *pieces[400];
    char letters[256][8];
    float scores[400];
    int32_t types[400];
    int64_t count;
} test_vocabulary;

int32_t test_piece(test_vocabulary *v, const char *text, float score, int32_t type); /* returns its id */
void test_byte_letters(test_vocabulary *v); /* byte-pair: how bytes are written */
void test_byte_pieces(test_vocabulary *v);  /* SentencePiece: <0x00>... */
/* Writes tokens, scores and types (the rest of the metadata is the caller's). */
void test_put_vocabulary(gguf_writer *w, const test_vocabulary *v);
/* Reads back what was written; the writer is freed. */
fv_status test_read_tokenizer(gguf_writer *w, fv_tokenizer **tokenizer);

/* The ids of text must be those listed; -1 ends the list. */
void test_check_ids(const fv_tokenizer *t, const char *text, unsigned flags, const int32_t *expected);
#define IDS(...) ((const int32_t[]){__VA_ARGS__ __VA_OPT__(, ) - 1})

/* A random well-formed UTF-8 text of `characters` characters, 0-ended, to be released with fv_free. */
char *test_random_text(fv_random *random, int64_t characters, size_t *length);

/* models/NAME; NULL (and a line that says so) when it is absent and FOVEA_TEST_WITHOUT_MODELS=1; else a failure. */
const char *test_model_path(const char *name);
/* tests/golden/NAME.json */
json_t *test_golden(const char *name);

extern const char *const test_models[2][2]; /* golden name, file name */

#endif
