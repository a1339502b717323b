/* Text to ids and back.  Special pieces are cut out first; what lies between them is merged, best pair first, by one
 * engine: inside words by the rank of merges (byte-pair), or over the whole stretch by the score of what two neighbours
 * make (SentencePiece). */
#include "models/tokenizer_parts.h"

#include <string.h>

#include "base/text.h"
#include "fovea/model.h"
#include "ops/ranks.h"

enum { TEXT_MAX = INT32_MAX / 2 };

/* A run of bytes that is one piece, or one character that is none (id -1).  Merged-away symbols have length 0. */
struct symbol {
    int32_t id, previous, next;
    int32_t start, length; /* in the stretch */
    int32_t end;           /* in the caller's text */
};

/* Two neighbours that could join; stale once either has changed, which their common length tells. */
struct candidate {
    uint64_t key; /* less is better: priority, then place */
    int32_t right, length, id;
};

struct encoder {
    const fv_tokenizer *t;
    const char *text;
    int64_t text_length;
    bool want_ends;
    int32_t *ids;
    int64_t *ends;
    int64_t count, id_capacity, end_capacity;

    const char *stretch; /* what the symbols cut up */
    struct symbol *symbols;
    int64_t symbol_count, symbol_capacity;
    struct candidate *heap;
    int64_t heap_count, heap_capacity;
    char *normal; /* SentencePiece: the stretch after its rules for spaces */
    int64_t normal_capacity;
};

static fv_status emit(struct encoder *e, int32_t id, int64_t end)
{
    FV_TRY(FV_GROW(e->ids, e->id_capacity, e->count + 1));
    if (e->want_ends) {
        FV_TRY(FV_GROW(e->ends, e->end_capacity, e->count + 1));
        e->ends[e->count] = end;
    }
    e->ids[e->count++] = id;
    return FV_OK;
}

/* ---- the engine ------------------------------------------------------------------------------------------------- */

static fv_status heap_push(struct encoder *e, struct candidate c)
{
    FV_TRY(FV_GROW(e->heap, e->heap_capacity, e->heap_count + 1));
    int64_t at = e->heap_count++;
    for (int64_t up; at > 0 && c.key < e->heap[up = (at - 1) / 2].key; at = up)
        e->heap[at] = e->heap[up];
    e->heap[at] = c;
    return FV_OK;
}

static struct candidate heap_pop(struct encoder *e)
{
    struct candidate best = e->heap[0], last = e->heap[--e->heap_count];
    int64_t at = 0;

    for (int64_t down; (down = 2 * at + 1) < e->heap_count; at = down) {
        down += down + 1 < e->heap_count && e->heap[down + 1].key < e->heap[down].key;
        if (last.key <= e->heap[down].key) break;
        e->heap[at] = e->heap[down];
    }
    e->heap[at] = last;
    return best;
}

/* Offers the pair (left, right) if it can join. */
static fv_status offer(struct encoder *e, int32_t left, int32_t right)
{
    const fv_tokenizer *t = e->t;
    struct candidate c = {.right = right};
    uint32_t priority;

    if (left < 0 || right < 0) return FV_OK;
    const struct symbol *l = &e->symbols[left], *r = &e->symbols[right];
    c.length = l->length + r->length;
    if (t->byte_pair) {
        const struct fv_merge *merge = l->id < 0 || r->id < 0 ? NULL : fv_tokenizer_merge(t, l->id, r->id);
        if (!merge) return FV_OK;
        c.id = merge->id;
        priority = (uint32_t)merge->rank;
    } else {
        c.id = fv_tokenizer_find(t, e->stretch + l->start, c.length);
        if (c.id < 0) return FV_OK;
        priority = ~fv_rank_key(t->score[c.id]); /* higher scores come first */
    }
    c.key = (uint64_t)priority << 32 | (uint32_t)left;
    return heap_push(e, c);
}

static fv_status add_symbol(struct encoder *e, int32_t id, int64_t start, int64_t length, int64_t end)
{
    int32_t index = (int32_t)e->symbol_count;

    FV_TRY(FV_GROW(e->symbols, e->symbol_capacity, e->symbol_count + 1));
    e->symbols[e->symbol_count++] =
        (struct symbol){id, index - 1, index + 1, (int32_t)start, (int32_t)length, (int32_t)end};
    return FV_OK;
}

/* Joins neighbours, best first, until none can join. */
static fv_status join(struct encoder *e)
{
    if (e->symbol_count == 0) return FV_OK;
    e->symbols[e->symbol_count - 1].next = -1;
    e->heap_count = 0;
    for (int32_t i = 1; i < e->symbol_count; i++)
        FV_TRY(offer(e, i - 1, i));
    while (e->heap_count > 0) {
        struct candidate c = heap_pop(e);
        int32_t left = (int32_t)(uint32_t)c.key;
        struct symbol *l = &e->symbols[left], *r = &e->symbols[c.right];
        if (!l->length || !r->length || l->length + r->length != c.length) continue;
        l->id = c.id;
        l->length = c.length;
        l->end = r->end;
        l->next = r->next;
        r->length = 0;
        if (l->next >= 0) e->symbols[l->next].previous = left;
        FV_TRY(offer(e, l->previous, left));
        FV_TRY(offer(e, left, l->next));
    }
    return FV_OK;
}

/* A character that is no piece: its bytes, or the unknown piece. */
static fv_status emit_bytes(struct encoder *e, const struct symbol *s, int64_t before)
{
    const fv_tokenizer *t = e->t;
    const unsigned char *bytes = (const unsigned char *)e->stretch + s->start;
    bool all = true;

    if (t->byte_pair) return FV_OK; /* a byte that the vocabulary lacks */
    for (int i = 0; i < s->length; i++)
        all &= t->byte_id[bytes[i]] >= 0;
    if (!all && t->unknown < 0)
        return fv_fail(FV_E_FORMAT,
                       "the vocabulary has no piece for the character that ends at byte %d of the text, "
                       "no pieces for its bytes, and no unknown token",
                       s->end);
    if (!all) return emit(e, t->unknown, s->end);
    for (int i = 0; i < s->length; i++)
        FV_TRY(emit(e, t->byte_id[bytes[i]], fv_max(before, s->end - (s->length - 1 - i))));
    return FV_OK;
}

static fv_status emit_symbols(struct encoder *e)
{
    int64_t before = 0;

    for (int32_t i = e->symbol_count ? 0 : -1; i >= 0; i = e->symbols[i].next) {
        const struct symbol *s = &e->symbols[i];
        if (s->id >= 0)
            FV_TRY(emit(e, s->id, s->end));
        else
            FV_TRY(emit_bytes(e, s, before));
        before = s->end;
    }
    return FV_OK;
}

/* ---- stretches of plain text ------------------------------------------------------------------------------------ */

static fv_status encode_word(void *user, const char *word, size_t length)
{
    struct encoder *e = user;
    int64_t from = word - e->text;

    if (e->t->whole_words) {
        int32_t id = fv_tokenizer_find(e->t, word, (int64_t)length);
        if (id >= 0) return emit(e, id, from + (int64_t)length);
    }
    e->stretch = word;
    e->symbol_count = 0;
    for (int64_t i = 0; i < (int64_t)length; i++)
        FV_TRY(add_symbol(e, e->t->byte_id[(unsigned char)word[i]], i, 1, from + i + 1));
    FV_TRY(join(e));
    return emit_symbols(e);
}

static fv_status add_character(struct encoder *e, const char *bytes, int length, int64_t end, int64_t *used)
{
    memcpy(e->normal + *used, bytes, (size_t)length);
    FV_TRY(add_symbol(e, fv_tokenizer_find(e->t, bytes, length), *used, length, end));
    *used += length;
    return FV_OK;
}

/* SentencePiece: U+2581 is a space (pieces hold spaces too), one space may come first, extra ones may be dropped. */
static fv_status encode_stretch(struct encoder *e, int64_t from, int64_t to)
{
    bool squeeze = e->t->squeeze_spaces, after_space = squeeze && from == 0;
    int64_t used = 0;

    FV_TRY(FV_GROW(e->normal, e->normal_capacity, to - from + 1));
    e->stretch = e->normal;
    e->symbol_count = 0;
    for (int64_t at = from, length; at < to; at += length) {
        const char *bytes = e->text + at;
        length = fv_utf8_length(bytes, (size_t)(to - at));
        bool space = *bytes == ' ' || (length == 3 && memcmp(bytes, "\xE2\x96\x81", 3) == 0);
        if (space && after_space) continue;
        if (used == 0 && e->t->space_prefix) FV_TRY(add_character(e, " ", 1, from, &used));
        FV_TRY(add_character(e, space ? " " : bytes, space ? 1 : (int)length, at + length, &used));
        after_space = squeeze && space;
    }
    if (squeeze && to == e->text_length && e->symbol_count && e->normal[used - 1] == ' ') e->symbol_count--;
    FV_TRY(join(e));
    return emit_symbols(e);
}

/* ---- whole texts ------------------------------------------------------------------------------------------------ */

/* What lies between special pieces, the text's start and its end. */
static fv_status encode_plain(struct encoder *e, int64_t from, int64_t to)
{
    if (from == to) return FV_OK;
    if (e->t->byte_pair) return fv_words_each(e->t->words, e->text + from, (size_t)(to - from), encode_word, e);
    return encode_stretch(e, from, to);
}

static fv_status encode(struct encoder *e, unsigned flags)
{
    const fv_tokenizer *t = e->t;
    bool begin = flags & FV_TOKENIZE_BEGIN || (flags & FV_TOKENIZE_MODEL && t->add_begin);
    int64_t plain = 0, length;

    if (begin && t->begin >= 0) FV_TRY(emit(e, t->begin, 0));
    for (int64_t at = 0; at < e->text_length;) {
        int32_t id = fv_tokenizer_special(t, e->text + at, (size_t)(e->text_length - at), flags & FV_TOKENIZE_SPECIAL);
        if (id < 0) {
            at++;
            continue;
        }
        FV_TRY(encode_plain(e, plain, at));
        fv_piece_text(t, id, &length);
        plain = at += length;
        FV_TRY(emit(e, id, at));
    }
    FV_TRY(encode_plain(e, plain, e->text_length));
    if (flags & FV_TOKENIZE_MODEL && t->add_end && t->end >= 0) FV_TRY(emit(e, t->end, e->text_length));
    return FV_OK;
}

fv_status fv_tokenizer_encode(const fv_tokenizer *tokenizer, const char *text, size_t length, unsigned flags,
                              int32_t **ids, int64_t **ends, int64_t *count)
{
    size_t valid = fv_utf8_valid(text, length);
    struct encoder e = {.t = tokenizer, .text = text, .text_length = (int64_t)length, .want_ends = ends};
    fv_status status = FV_OK;

    *ids = NULL;
    if (ends) *ends = NULL;
    *count = 0;
    if (length > TEXT_MAX)
        return fv_fail(FV_E_ARGUMENT, "a text of %zu bytes is too long to tokenize at once; at most %d", length,
                       TEXT_MAX);
    if (valid < length)
        return fv_fail(FV_E_FORMAT, "the text is not UTF-8 at byte %zu: 0x%02X", valid, (unsigned char)text[valid]);
    status = encode(&e, flags);
    fv_free(e.symbols);
    fv_free(e.heap);
    fv_free(e.normal);
    if (status == FV_OK && !e.ids) status = FV_ALLOC(e.ids, 1); /* no ids are still an array */
    if (status == FV_OK && ends && !e.ends) status = FV_ALLOC(e.ends, 1);
    if (status != FV_OK) {
        fv_free(e.ids);
        fv_free(e.ends);
        return status;
    }
    *ids = e.ids;
    if (ends) *ends = e.ends;
    *count = e.count;
    return FV_OK;
}

/* ---- back to text ----------------------------------------------------------------------------------------------- */

fv_status fv_tokenizer_piece(const fv_tokenizer *t, int32_t id, const char **bytes, size_t *length)
{
    int64_t own;

    if (id < 0 || id >= t->count)
        return fv_fail(FV_E_ARGUMENT, "token id: expected 0 to %lld, got %d", (long long)t->count - 1, id);
    *bytes = fv_piece_text(t, id, &own);
    *length = (size_t)own;
    return FV_OK;
}

fv_status fv_tokenizer_decode(const fv_tokenizer *t, const int32_t *ids, int64_t count, char **text, size_t *length)
{
    fv_text out = {0};
    fv_status status;
    bool prefixed = t->space_prefix; /* the next piece starts with a space that was put there */

    *text = NULL;
    *length = 0;
    fv_text_add(&out, "", 0);
    for (int64_t i = 0; i < count; i++) {
        const char *bytes = NULL;
        size_t size = 0;
        FV_TRY_DONE(fv_tokenizer_piece(t, ids[i], &bytes, &size));
        bool special = fv_piece_is_control(t, ids[i]) || t->type[ids[i]] == FV_PIECE_USER;
        bool skip = prefixed && !special && size > 0 && *bytes == ' ';
        fv_text_add(&out, bytes + skip, (int64_t)size - skip);
        prefixed = special && t->space_prefix;
    }
    FV_TRY_DONE(fv_text_status(&out));
    *text = out.data;
    *length = (size_t)out.length;
    return FV_OK;
done:
    fv_text_free(&out);
    return status;
}
