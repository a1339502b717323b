/* Text to ids and back: byte-pair ("gpt2") and SentencePiece ("llama") vocabularies as GGUF files carry them. */
#ifndef FV_TOKENIZER_H
#define FV_TOKENIZER_H

#include "models/gguf.h"

typedef struct fv_tokenizer fv_tokenizer;

/* Reads the tokenizer.ggml.* metadata; nothing of the file is needed afterwards.  FV_E_FORMAT (what, where, expected,
 * got), FV_E_UNSUPPORTED (a tokenizer model or pre-tokenizer we do not have: lists those we do), FV_E_MEMORY. */
fv_status fv_tokenizer_new(const fv_gguf *gguf, fv_tokenizer **tokenizer);
void fv_tokenizer_free(fv_tokenizer *tokenizer);

int64_t fv_tokenizer_count(const fv_tokenizer *tokenizer); /* pieces in the vocabulary */

/* UTF-8 (0 bytes are text) to ids; flags are FV_TOKENIZE_*.  ends (may be NULL) gets for each id the offset in text
 * where its text ends.  Both are released with fv_free.  Time is linear in the text but for a logarithm, whatever the
 * text.  A character SentencePiece has no piece for becomes byte pieces, else the unknown token; a byte that a
 * byte-pair vocabulary lacks gives no id, as elsewhere.  FV_E_FORMAT names the offset of what is not UTF-8. */
fv_status fv_tokenizer_encode(const fv_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                              int32_t **ids, int64_t **ends, int64_t *count);

/* See fv_model_piece and fv_model_detokenize.  Where the tokenizer puts a space before text (add_space_prefix), it is
 * taken away again at the start and after special tokens, so that text to ids to text is the same text. */
fv_status fv_tokenizer_piece(const fv_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *length);
fv_status fv_tokenizer_decode(const fv_tokenizer *tokenizer, const int32_t *ids, int64_t count, char **text,
                              size_t *length);

bool fv_tokenizer_is_special(const fv_tokenizer *tokenizer, int32_t id);
bool fv_tokenizer_is_end(const fv_tokenizer *tokenizer, int32_t id);
int32_t fv_tokenizer_begin(const fv_tokenizer *tokenizer); /* -1: none */
int32_t fv_tokenizer_end(const fv_tokenizer *tokenizer);   /* eos; -1: none */
bool fv_tokenizer_adds_begin(const fv_tokenizer *tokenizer);

#endif
