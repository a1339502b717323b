/* Reading a vocabulary: pieces as the texts they stand for, what finds them, what joins them. */
#include "models/tokenizer_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

struct source {
    const fv_gguf *gguf;
    fv_gguf_text *pieces;
};

/* End of text or of turn, by the names that models give them; such a piece is control whatever its type says. */
static const char *const end_texts[] = {
    "<|eot_id|>",  "<|eom_id|>",      "<|im_end|>",   "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "</s>",        "<|end_of_turn|>", "<EOT>",        "_<EOT>",  "[EOT]",         "<eos>",         "<end_of_utterance>",
    "<|fim_pad|>", "<|repo_name|>",   "<|file_sep|>",
};

/* ---- from text to piece ----------------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t x)
{
    x ^= x >> 32;
    x *= 0x9E3779B97F4A7C15u;
    return x ^ x >> 29;
}

static uint64_t hash(const char *bytes, int64_t length)
{
    uint64_t h = (uint64_t)length * 0xD6E8FEB86659FD93u, word;

    for (; length >= 8; length -= 8, bytes += 8) {
        memcpy(&word, bytes, 8);
        h = mix(h ^ word);
    }
    word = 0;
    memcpy(&word, bytes, (size_t)length);
    return mix(h ^ word);
}

static bool same(const fv_tokenizer *t, int32_t id, const char *bytes, int64_t length)
{
    int64_t own;
    const char *text = fv_piece_text(t, id, &own);

    return own == length && memcmp(text, bytes, (size_t)length) == 0;
}

int32_t fv_tokenizer_find(const fv_tokenizer *t, const char *bytes, int64_t length)
{
    if (length > t->longest) return -1;
    for (uint64_t slot = hash(bytes, length);; slot++) {
        int32_t id = t->slots[slot & t->slot_mask];
        if (id < 0 || same(t, id, bytes, length)) return id;
    }
}

/* The first of equal texts stays. */
static void enter(fv_tokenizer *t, int32_t id)
{
    int64_t length;
    const char *text = fv_piece_text(t, id, &length);
    uint64_t slot = hash(text, length);

    for (; t->slots[slot & t->slot_mask] >= 0; slot++)
        if (same(t, t->slots[slot & t->slot_mask], text, length)) return;
    t->slots[slot & t->slot_mask] = id;
    t->longest = fv_max(t->longest, length);
}

static uint64_t table_size(int64_t count)
{
    uint64_t size = 16;

    while (size < (uint64_t)count * 2)
        size *= 2;
    return size;
}

/* ---- bytes as letters ------------------------------------------------------------------------------------------- *
 * Byte-pair vocabularies write each byte as one printable character: itself where it is printable Latin-1, else the
 * next free one from U+0100. */

static void byte_letters(int16_t byte_of[512])
{
    int next = 256;

    memset(byte_of, -1, 512 * sizeof *byte_of);
    for (int b = 0; b < 256; b++) {
        bool own = (b > 32 && b < 127) || (b > 160 && b != 173);
        byte_of[own ? b : next++] = (int16_t)b;
    }
}

/* Bytes a text of such letters stands for, written to out (never more than came in).  Characters that are no such
 * letter stay as they are, and the result is then not *pure. */
static int64_t decode_letters(const int16_t *byte_of, fv_gguf_text text, char *out, bool *pure)
{
    int64_t written = 0;

    *pure = true;
    for (int64_t at = 0, length; at < text.length; at += length) {
        const unsigned char *b = (const unsigned char *)text.data + at;
        length = fv_utf8_length(text.data + at, (size_t)(text.length - at));
        int letter = length == 1 ? b[0] : length == 2 ? (b[0] & 0x1F) << 6 | (b[1] & 0x3F) : 511;
        if (letter < 511 && byte_of[letter] >= 0) {
            out[written++] = (char)byte_of[letter];
            continue;
        }
        *pure = false;
        length = fv_max(length, 1);
        memcpy(out + written, b, (size_t)length);
        written += length;
    }
    return written;
}

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static int byte_of_piece(fv_gguf_text text)
{
    char digits[3] = {0};
    char *rest;

    if (text.length != 6 || memcmp(text.data, "<0x", 3) != 0 || text.data[5] != '>') return -1;
    memcpy(digits, text.data + 3, 2);
    long value = strtol(digits, &rest, 16);
    return *rest || digits[0] == '-' || digits[0] == '+' || digits[0] == ' ' ? -1 : (int)value;
}

/* SentencePiece writes a space as U+2581. */
static int64_t decode_spaces(fv_gguf_text text, char *out)
{
    int64_t written = 0;

    for (int64_t at = 0; at < text.length; written++) {
        bool space = text.length - at >= 3 && memcmp(text.data + at, "\xE2\x96\x81", 3) == 0;
        out[written] = space ? ' ' : text.data[at];
        at += space ? 3 : 1;
    }
    return written;
}

/* An array that must have an element for each piece; absent is fine. */
static fv_status piece_array(const fv_tokenizer *t, const fv_gguf *gguf, const char *key, unsigned types,
                             fv_gguf_array *array)
{
    *array = (fv_gguf_array){0};
    if (!fv_gguf_has(gguf, key)) return FV_OK;
    FV_TRY(fv_gguf_get_array(gguf, key, types, array));
    if (array->count != t->count)
        return fv_fail(FV_E_FORMAT, "%s: %s: expected one element for each of %lld pieces, got %lld",
                       fv_gguf_name(gguf), key, (long long)t->count, (long long)array->count);
    return FV_OK;
}

static fv_status read_types(fv_tokenizer *t, const struct source *source)
{
    fv_gguf_array types;

    FV_TRY(FV_ALLOC(t->type, t->count));
    FV_TRY(piece_array(t, source->gguf, "tokenizer.ggml.token_type", FV_GGUF_INTEGERS, &types));
    for (int64_t i = 0; i < t->count; i++) {
        int64_t type = types.count ? fv_gguf_int_at(&types, i) : FV_PIECE_NORMAL;
        if (type < 0 || type >= FV_PIECE_TYPES)
            return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.token_type: piece %lld: expected 0 to %d, got %lld",
                           fv_gguf_name(source->gguf), (long long)i, FV_PIECE_TYPES - 1, (long long)type);
        t->type[i] = (uint8_t)type;
    }
    return FV_OK;
}

static fv_status read_scores(fv_tokenizer *t, const struct source *source)
{
    fv_gguf_array scores;

    FV_TRY(FV_ZALLOC(t->score, t->count));
    FV_TRY(piece_array(t, source->gguf, "tokenizer.ggml.scores", FV_GGUF_FLOATS, &scores));
    for (int64_t i = 0; i < scores.count; i++) {
        t->score[i] = (float)fv_gguf_float_at(&scores, i);
        if (isnan(t->score[i]))
            return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.scores: piece %lld: expected a number, got NaN",
                           fv_gguf_name(source->gguf), (long long)i);
    }
    return FV_OK;
}

/* Ends by name; any piece with such a name is control. */
static void mark_ends(fv_tokenizer *t, const struct source *source)
{
    for (int64_t i = 0; i < t->count; i++) {
        char first = source->pieces[i].length > 0 ? *source->pieces[i].data : ' ';
        if (first != '<' && first != '[' && first != '_') continue;
        for (size_t e = 0; e < sizeof end_texts / sizeof *end_texts; e++)
            if (fv_gguf_text_is(source->pieces[i], end_texts[e])) {
                t->is_end[i] = true;
                t->type[i] = FV_PIECE_CONTROL;
            }
    }
}

/* The text of each piece, and the table that finds those that plain text may become. */
static fv_status read_pieces(fv_tokenizer *t, const struct source *source)
{
    int16_t byte_of[512];
    int64_t total = 0, used = 0;

    byte_letters(byte_of);
    for (int64_t i = 0; i < t->count; i++)
        total += source->pieces[i].length; /* they lie apart in one file: no overflow */
    FV_TRY(FV_ALLOC(t->bytes, total));
    FV_TRY(FV_ALLOC(t->at, t->count + 1));
    t->slot_mask = table_size(t->count) - 1;
    FV_TRY(FV_ALLOC(t->slots, (int64_t)t->slot_mask + 1));
    memset(t->slots, -1, ((size_t)t->slot_mask + 1) * sizeof *t->slots);
    memset(t->byte_id, -1, sizeof t->byte_id);
    for (int64_t i = 0; i < t->count; i++) {
        fv_gguf_text text = source->pieces[i];
        char *out = t->bytes + used;
        int byte = byte_of_piece(text), type = t->type[i];
        bool plain = type == FV_PIECE_NORMAL || type == FV_PIECE_UNUSED || type == FV_PIECE_UNDEFINED, pure = true;

        t->at[i] = used;
        if (type == FV_PIECE_BYTE) {
            if (byte < 0)
                return fv_fail(FV_E_FORMAT, "%s: piece %lld: a byte piece is '<0x00>' to '<0xFF>', got '%s'",
                               fv_gguf_name(source->gguf), (long long)i, fv_shown(text.data, text.length));
            out[0] = (char)byte;
            used++;
            if (t->byte_id[byte] < 0) t->byte_id[byte] = (int32_t)i;
        } else if (!plain) {
            if (text.length) memcpy(out, text.data, (size_t)text.length);
            used += text.length;
        } else {
            used += t->byte_pair ? decode_letters(byte_of, text, out, &pure) : decode_spaces(text, out);
        }
        t->at[i + 1] = used;
        if (plain && pure && used > t->at[i]) enter(t, (int32_t)i);
    }
    if (t->byte_pair)
        for (int b = 0; b < 256; b++) {
            char letter = (char)b;
            t->byte_id[b] = fv_tokenizer_find(t, &letter, 1);
        }
    return FV_OK;
}

/* ---- special pieces --------------------------------------------------------------------------------------------- */

struct special {
    fv_gguf_text text;
    int32_t id;
};

static int compare_special(const void *a, const void *b)
{
    const struct special *x = a, *y = b;
    int order = memcmp(x->text.data, y->text.data, (size_t)fv_min(x->text.length, y->text.length));

    if (order) return order;
    if (x->text.length != y->text.length) return x->text.length > y->text.length ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

/* Whole characters only, so that cutting one out leaves UTF-8 on both sides. */
static bool can_be_cut_out(const fv_tokenizer *t, int32_t id)
{
    int64_t length;
    const char *text = fv_piece_text(t, id, &length);

    return (fv_piece_is_control(t, id) || t->type[id] == FV_PIECE_USER) && length > 0 &&
           fv_utf8_valid(text, (size_t)length) == (size_t)length;
}

static fv_status gather_specials(fv_tokenizer *t)
{
    struct special *found = NULL;
    int64_t count = 0;

    for (int32_t i = 0; i < t->count; i++)
        t->special_count += can_be_cut_out(t, i);
    FV_TRY(FV_ALLOC(t->special, t->special_count));
    FV_TRY(FV_ALLOC(found, t->special_count));
    for (int32_t i = 0; i < t->count; i++)
        if (can_be_cut_out(t, i)) {
            found[count].text.data = fv_piece_text(t, i, &found[count].text.length);
            found[count++].id = i;
        }
    qsort(found, (size_t)count, sizeof *found, compare_special);
    for (int64_t i = 0; i < count; i++) {
        t->special[i] = found[i].id;
        t->special_first[(unsigned char)*found[i].text.data + 1]++;
    }
    for (int b = 0; b < 256; b++)
        t->special_first[b + 1] += t->special_first[b];
    fv_free(found);
    return FV_OK;
}

/* First of special[low, high), which share `depth` bytes, whose next byte is >= byte; ended ones come first. */
static int64_t narrow(const fv_tokenizer *t, int64_t low, int64_t high, int64_t depth, int byte)
{
    while (low < high) {
        int64_t middle = low + (high - low) / 2, length;
        const char *text = fv_piece_text(t, t->special[middle], &length);
        if (length > depth && (unsigned char)text[depth] >= byte)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

int32_t fv_tokenizer_special(const fv_tokenizer *t, const char *text, size_t length, bool control)
{
    const unsigned char *b = (const unsigned char *)text;
    int32_t best = -1;

    if (length == 0) return -1;
    int64_t low = t->special_first[b[0]], high = t->special_first[b[0] + 1];
    for (int64_t depth = 1; low < high; depth++) {
        bool taken = false; /* of equal texts the lowest id */
        for (; low < high && t->at[t->special[low] + 1] - t->at[t->special[low]] == depth; low++)
            if (!taken && (control || !fv_piece_is_control(t, t->special[low]))) {
                best = t->special[low];
                taken = true;
            }
        if (low >= high || (size_t)depth >= length) break;
        low = narrow(t, low, high, depth, b[depth]);
        high = narrow(t, low, high, depth, b[depth] + 1);
    }
    return best;
}

/* ---- merges ----------------------------------------------------------------------------------------------------- */

static uint64_t pair_hash(int32_t left, int32_t right)
{
    return mix((uint64_t)(uint32_t)left << 32 | (uint32_t)right);
}

const struct fv_merge *fv_tokenizer_merge(const fv_tokenizer *t, int32_t left, int32_t right)
{
    for (uint64_t slot = pair_hash(left, right);; slot++) {
        const struct fv_merge *m = &t->merges[slot & t->merge_mask];
        if (m->left < 0) return NULL;
        if (m->left == left && m->right == right) return m;
    }
}

/* Special pieces are found before words are cut, and plain text never becomes one: merges with them play no part. */
static bool is_special_text(const fv_tokenizer *t, const char *bytes, int64_t length)
{
    int32_t id = fv_tokenizer_special(t, bytes, (size_t)length, true);

    return id >= 0 && t->at[id + 1] - t->at[id] == length;
}

/* A merge's part, by its bytes; they are written at `bytes`, which has room.  *id is -1 for a special piece. */
static fv_status merge_part(const fv_tokenizer *t, const fv_gguf *gguf, const int16_t *byte_of, int64_t index,
                            fv_gguf_text part, char *bytes, int64_t *length, int32_t *id)
{
    bool pure;

    *length = decode_letters(byte_of, part, bytes, &pure);
    *id = pure && *length ? fv_tokenizer_find(t, bytes, *length) : -1;
    if (*id < 0 && !is_special_text(t, bytes, *length))
        return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.merges: merge %lld: '%s' is not a piece of the vocabulary",
                       fv_gguf_name(gguf), (long long)index, fv_shown(part.data, part.length));
    return FV_OK;
}

static fv_status add_merge(fv_tokenizer *t, const fv_gguf *gguf, const int16_t *byte_of, int64_t index,
                           fv_gguf_text text, char *bytes)
{
    const char *gap = text.length > 1 ? memchr(text.data + 1, ' ', (size_t)text.length - 1) : NULL;
    int64_t left_length, right_length;
    int32_t left, right;

    if (!gap)
        return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.merges: merge %lld: expected two pieces and a space, got '%s'",
                       fv_gguf_name(gguf), (long long)index, fv_shown(text.data, text.length));
    fv_gguf_text first = {text.data, gap - text.data}, second = {gap + 1, text.data + text.length - gap - 1};
    FV_TRY(merge_part(t, gguf, byte_of, index, first, bytes, &left_length, &left));
    FV_TRY(merge_part(t, gguf, byte_of, index, second, bytes + left_length, &right_length, &right));
    int32_t id = fv_tokenizer_find(t, bytes, left_length + right_length);
    if (id < 0 && !is_special_text(t, bytes, left_length + right_length))
        return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.merges: merge %lld: '%s' makes no piece of the vocabulary",
                       fv_gguf_name(gguf), (long long)index, fv_shown(text.data, text.length));
    if (left < 0 || right < 0 || id < 0) return FV_OK;
    uint64_t slot = pair_hash(left, right);
    for (; t->merges[slot & t->merge_mask].left >= 0; slot++) {
        const struct fv_merge *m = &t->merges[slot & t->merge_mask];
        if (m->left == left && m->right == right) return FV_OK; /* the earlier has the better rank */
    }
    t->merges[slot & t->merge_mask] = (struct fv_merge){left, right, (int32_t)index, id};
    return FV_OK;
}

static fv_status read_merges(fv_tokenizer *t, const fv_gguf *gguf)
{
    fv_status status = FV_OK;
    fv_gguf_text *texts = NULL;
    char *bytes = NULL;
    int64_t count = 0, longest = 0;
    int16_t byte_of[512];

    byte_letters(byte_of);
    FV_TRY(fv_gguf_require(gguf, "tokenizer.ggml.merges"));
    FV_TRY(fv_gguf_strings(gguf, "tokenizer.ggml.merges", &texts, &count));
    for (int64_t i = 0; i < count; i++)
        longest = fv_max(longest, texts[i].length);
    if (count > INT32_MAX / 4)
        FV_TRY_DONE(fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.merges: expected at most %d, got %lld", fv_gguf_name(gguf),
                            INT32_MAX / 4, (long long)count));
    FV_TRY_DONE(FV_ALLOC(bytes, longest));
    t->merge_mask = table_size(count) - 1;
    FV_TRY_DONE(FV_ALLOC(t->merges, (int64_t)t->merge_mask + 1));
    memset(t->merges, -1, ((size_t)t->merge_mask + 1) * sizeof *t->merges);
    for (int64_t i = 0; i < count; i++)
        FV_TRY_DONE(add_merge(t, gguf, byte_of, i, texts[i], bytes));
done:
    fv_free(bytes);
    fv_free(texts);
    return status;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* A special token's id; -1 when the file names none.  A default outside the vocabulary is none. */
static fv_status read_id(const fv_tokenizer *t, const fv_gguf *gguf, const char *key, int64_t initial, int32_t *id)
{
    int64_t value = initial < t->count ? initial : -1;

    FV_TRY(fv_gguf_int(gguf, key, 0, t->count - 1, &value));
    *id = (int32_t)value;
    return FV_OK;
}

static fv_status read_flags(fv_tokenizer *t, const fv_gguf *gguf)
{
    static const char *const other_ends[] = {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"};

    FV_TRY(read_id(t, gguf, "tokenizer.ggml.bos_token_id", t->byte_pair ? -1 : 1, &t->begin));
    FV_TRY(read_id(t, gguf, "tokenizer.ggml.eos_token_id", t->byte_pair ? -1 : 2, &t->end));
    FV_TRY(read_id(t, gguf, "tokenizer.ggml.unknown_token_id", t->byte_pair ? -1 : 0, &t->unknown));
    if (t->end >= 0) t->is_end[t->end] = true;
    for (int i = 0; i < 2; i++) {
        int32_t id;
        FV_TRY(read_id(t, gguf, other_ends[i], -1, &id));
        if (id >= 0) t->is_end[id] = true;
    }
    FV_TRY(fv_gguf_bool(gguf, "tokenizer.ggml.add_bos_token", &t->add_begin));
    FV_TRY(fv_gguf_bool(gguf, "tokenizer.ggml.add_eos_token", &t->add_end));
    if (t->byte_pair) return FV_OK;
    FV_TRY(fv_gguf_bool(gguf, "tokenizer.ggml.add_space_prefix", &t->space_prefix));
    return fv_gguf_bool(gguf, "tokenizer.ggml.remove_extra_whitespaces", &t->squeeze_spaces);
}

static fv_status read_kind(fv_tokenizer *t, const fv_gguf *gguf)
{
    fv_gguf_text model = {0}, pre = {"default", 7};
    fv_words_traits traits = {0};

    FV_TRY(fv_gguf_require(gguf, "tokenizer.ggml.model"));
    FV_TRY(fv_gguf_string(gguf, "tokenizer.ggml.model", &model));
    t->byte_pair = fv_gguf_text_is(model, "gpt2");
    if (!t->byte_pair && !fv_gguf_text_is(model, "llama"))
        return fv_fail(FV_E_UNSUPPORTED, "%s: tokenizer.ggml.model: expected 'gpt2' or 'llama', got '%s'",
                       fv_gguf_name(gguf), fv_shown(model.data, model.length));
    t->add_begin = t->space_prefix = !t->byte_pair;
    if (!t->byte_pair) return FV_OK;
    FV_TRY(fv_gguf_string(gguf, "tokenizer.ggml.pre", &pre));
    FV_TRY(fv_words_new(fv_gguf_name(gguf), pre, &t->words, &traits));
    t->whole_words = traits.whole_words;
    t->add_begin = traits.adds_begin;
    return FV_OK;
}

static fv_status load(fv_tokenizer *t, struct source *source)
{
    const fv_gguf *gguf = source->gguf;

    FV_TRY(read_kind(t, gguf));
    FV_TRY(fv_gguf_require(gguf, "tokenizer.ggml.tokens"));
    FV_TRY(fv_gguf_strings(gguf, "tokenizer.ggml.tokens", &source->pieces, &t->count));
    if (t->count < 1 || t->count > INT32_MAX / 4)
        return fv_fail(FV_E_FORMAT, "%s: tokenizer.ggml.tokens: expected 1 to %d pieces, got %lld", fv_gguf_name(gguf),
                       INT32_MAX / 4, (long long)t->count);
    FV_TRY(FV_ZALLOC(t->is_end, t->count));
    FV_TRY(read_types(t, source));
    mark_ends(t, source);
    if (!t->byte_pair) FV_TRY(read_scores(t, source));
    FV_TRY(read_pieces(t, source));
    FV_TRY(gather_specials(t));
    if (t->byte_pair) FV_TRY(read_merges(t, gguf));
    return read_flags(t, gguf);
}

fv_status fv_tokenizer_new(const fv_gguf *gguf, fv_tokenizer **tokenizer)
{
    struct source source = {.gguf = gguf};

    FV_TRY(FV_ZALLOC(*tokenizer, 1));
    fv_status status = load(*tokenizer, &source);
    fv_free(source.pieces);
    if (status != FV_OK) {
        fv_tokenizer_free(*tokenizer);
        *tokenizer = NULL;
    }
    return status;
}

void fv_tokenizer_free(fv_tokenizer *t)
{
    if (!t) return;
    fv_words_free(t->words);
    fv_free(t->bytes);
    fv_free(t->at);
    fv_free(t->type);
    fv_free(t->is_end);
    fv_free(t->score);
    fv_free(t->slots);
    fv_free(t->merges);
    fv_free(t->special);
    fv_free(t);
}

int64_t fv_tokenizer_count(const fv_tokenizer *t)
{
    return t->count;
}

bool fv_tokenizer_is_special(const fv_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->count && fv_piece_is_control(t, id);
}

bool fv_tokenizer_is_end(const fv_tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->count && t->is_end[id];
}

int32_t fv_tokenizer_begin(const fv_tokenizer *t)
{
    return t->begin;
}

int32_t fv_tokenizer_end(const fv_tokenizer *t)
{
    return t->end;
}

bool fv_tokenizer_adds_begin(const fv_tokenizer *t)
{
    return t->add_begin && t->begin >= 0;
}
