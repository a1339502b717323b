/* What the tokenizer's files share: the tables made from the metadata. */
#ifndef FV_TOKENIZER_PARTS_H
#define FV_TOKENIZER_PARTS_H

#include "base/memory.h"
#include "models/tokenizer.h"

/* tokenizer.ggml.token_type, by the file's own numbers */
enum {
    FV_PIECE_UNDEFINED = 0,
    FV_PIECE_NORMAL,
    FV_PIECE_UNKNOWN,
    FV_PIECE_CONTROL,
    FV_PIECE_USER,
    FV_PIECE_UNUSED,
    FV_PIECE_BYTE,
    FV_PIECE_TYPES,
};

/* Cuts text into the words that byte-pair merging stays within: stages of patterns, each applied to the matches of the
 * one before and to what lies between them. */
typedef struct fv_words fv_words;

typedef struct fv_words_traits {
    bool whole_words; /* a word that is a piece becomes it without merging */
    bool adds_begin;  /* where the metadata does not say */
} fv_words_traits;

/* `pre` is tokenizer.ggml.pre.  FV_E_UNSUPPORTED lists the known ones. */
fv_status fv_words_new(const char *where, fv_gguf_text pre, fv_words **words, fv_words_traits *traits);
void fv_words_free(fv_words *words);

typedef fv_status fv_word_fn(void *user, const char *word, size_t length);
/* Calls `each` with every word in order; they cover the text, which is well-formed UTF-8. */
fv_status fv_words_each(const fv_words *words, const char *text, size_t length, fv_word_fn *each, void *user);

/* Two pieces that join: open addressing; left = -1 marks an empty slot. */
struct fv_merge {
    int32_t left, right, rank, id;
};

struct fv_tokenizer {
    bool byte_pair; /* else SentencePiece */
    bool whole_words, add_begin, add_end, space_prefix, squeeze_spaces;
    int32_t begin, end, unknown; /* -1: none */
    int32_t byte_id[256];        /* -1: none */

    int64_t count;
    char *bytes;     /* every piece as the text it stands for, one after another */
    int64_t *at;     /* [count + 1] into bytes */
    uint8_t *type;   /* [count] */
    bool *is_end;    /* [count] */
    float *score;    /* [count]; SentencePiece only */
    int64_t longest; /* bytes of the longest piece that text can become */

    int32_t *slots; /* hash of a text -> id; -1 is empty */
    uint64_t slot_mask;
    struct fv_merge *merges; /* byte-pair only */
    uint64_t merge_mask;

    /* Pieces found before all else, ascending by text; [first[b], first[b + 1]) start with byte b. */
    int32_t *special;
    int64_t special_count, special_first[257];
    fv_words *words;
};

static inline const char *fv_piece_text(const fv_tokenizer *t, int32_t id, int64_t *length)
{
    *length = t->at[id + 1] - t->at[id];
    return t->bytes + t->at[id];
}

/* The piece that plain text may become with exactly these bytes, or -1. */
int32_t fv_tokenizer_find(const fv_tokenizer *t, const char *bytes, int64_t length);
/* The merge of two pieces, or NULL. */
const struct fv_merge *fv_tokenizer_merge(const fv_tokenizer *t, int32_t left, int32_t right);
/* The longest special piece at the start of text, or -1; control and unknown pieces only if `control`. */
int32_t fv_tokenizer_special(const fv_tokenizer *t, const char *text, size_t length, bool control);

static inline bool fv_piece_is_control(const fv_tokenizer *t, int32_t id)
{
    return t->type[id] == FV_PIECE_CONTROL || t->type[id] == FV_PIECE_UNKNOWN;
}

#endif
