/* Reading GGUF: one cursor over the bytes, which never passes their end; then two sorted tables. */
#include "models/gguf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/text.h"

enum { ARRAY_DEPTH = 3, TENSOR_RANK = 4 };

#define MAX_ALIGNMENT 65536
#define DEFAULT_ALIGNMENT 32

struct entry {
    fv_gguf_text key;
    fv_gguf_type type;
    const unsigned char *data; /* of a string: its bytes; of an array: its first element */
    int64_t count;             /* of a string: its length; of an array: its elements */
    fv_gguf_type element;
};

struct fv_gguf {
    char *name;
    const unsigned char *bytes;
    size_t size;
    bool mapped;
    struct entry *entries; /* sorted by key */
    int64_t entry_count, entry_capacity;
    fv_gguf_tensor *tensors; /* sorted by name */
    int64_t tensor_count, tensor_capacity;
};

struct cursor {
    const fv_gguf *file;
    size_t at;
};

/* A key or name as it can be shown. */
static const char *shown(fv_gguf_text text)
{
    return fv_shown(text.data, text.length);
}

static int compare_text(fv_gguf_text a, fv_gguf_text b)
{
    int order = memcmp(a.data, b.data, (size_t)fv_min(a.length, b.length));

    return order ? order : (a.length > b.length) - (a.length < b.length);
}

bool fv_gguf_text_is(fv_gguf_text text, const char *word)
{
    return (size_t)text.length == strlen(word) && memcmp(text.data, word, (size_t)text.length) == 0;
}

/* ---- the cursor ------------------------------------------------------------------------------------------------- */

static fv_status take(struct cursor *c, uint64_t bytes, const char *what, const unsigned char **data)
{
    if (bytes > c->file->size - c->at)
        return fv_fail(FV_E_FORMAT,
                       "%s: %s at byte %zu would take %llu bytes, but the file ends at byte %zu: the download may be "
                       "incomplete",
                       c->file->name, what, c->at, (unsigned long long)bytes, c->file->size);
    *data = c->file->bytes + c->at;
    c->at += (size_t)bytes;
    return FV_OK;
}

static fv_status take_u32(struct cursor *c, const char *what, uint32_t *value)
{
    const unsigned char *data = NULL;

    FV_TRY(take(c, sizeof *value, what, &data));
    memcpy(value, data, sizeof *value);
    return FV_OK;
}

static fv_status take_u64(struct cursor *c, const char *what, uint64_t *value)
{
    const unsigned char *data = NULL;

    FV_TRY(take(c, sizeof *value, what, &data));
    memcpy(value, data, sizeof *value);
    return FV_OK;
}

static fv_status take_text(struct cursor *c, const char *what, fv_gguf_text *text)
{
    const unsigned char *data = NULL;
    uint64_t length = 0;

    FV_TRY(take_u64(c, what, &length));
    FV_TRY(take(c, length, what, &data));
    *text = (fv_gguf_text){(const char *)data, (int64_t)length};
    return FV_OK;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    int bytes; /* 0: strings and arrays */
} types[FV_GGUF_TYPES] = {
    [FV_GGUF_U8] = {"u8", 1},       [FV_GGUF_I8] = {"i8", 1},     [FV_GGUF_U16] = {"u16", 2},
    [FV_GGUF_I16] = {"i16", 2},     [FV_GGUF_U32] = {"u32", 4},   [FV_GGUF_I32] = {"i32", 4},
    [FV_GGUF_F32] = {"f32", 4},     [FV_GGUF_BOOL] = {"bool", 1}, [FV_GGUF_STRING] = {"string", 0},
    [FV_GGUF_ARRAY] = {"array", 0}, [FV_GGUF_U64] = {"u64", 8},   [FV_GGUF_I64] = {"i64", 8},
    [FV_GGUF_F64] = {"f64", 8},
};

static fv_status take_type(struct cursor *c, fv_gguf_text key, fv_gguf_type *type)
{
    uint32_t number = 0;

    FV_TRY(take_u32(c, "a value's type", &number));
    if (number >= FV_GGUF_TYPES)
        return fv_fail(FV_E_FORMAT, "%s: key '%s': value type: expected 0 to %d, got %u", c->file->name, shown(key),
                       FV_GGUF_TYPES - 1, number);
    *type = (fv_gguf_type)number;
    return FV_OK;
}

/* Walks over an array's elements (its header was read). */
static fv_status skip_array(struct cursor *c, fv_gguf_text key, fv_gguf_type element, uint64_t count, int depth)
{
    const unsigned char *data = NULL;
    fv_gguf_text text;

    if (types[element].bytes) {
        uint64_t bytes;
        if (__builtin_mul_overflow(count, (uint64_t)types[element].bytes, &bytes)) bytes = UINT64_MAX;
        return take(c, bytes, "an array", &data);
    }
    if (depth >= ARRAY_DEPTH)
        return fv_fail(FV_E_FORMAT, "%s: key '%s': arrays lie more than %d deep", c->file->name, shown(key),
                       ARRAY_DEPTH);
    for (uint64_t i = 0; i < count; i++) { /* each element takes bytes of the file, so this ends */
        if (element == FV_GGUF_STRING) {
            FV_TRY(take_text(c, "a string of an array", &text));
        } else {
            fv_gguf_type inner = FV_GGUF_U8;
            uint64_t inner_count = 0;
            FV_TRY(take_type(c, key, &inner));
            FV_TRY(take_u64(c, "an array's length", &inner_count));
            FV_TRY(skip_array(c, key, inner, inner_count, depth + 1));
        }
    }
    return FV_OK;
}

static fv_status take_value(struct cursor *c, struct entry *e)
{
    fv_gguf_text text = {0};
    uint64_t count = 0;

    switch (e->type) {
    case FV_GGUF_STRING:
        FV_TRY(take_text(c, "a string", &text));
        e->data = (const unsigned char *)text.data;
        e->count = text.length;
        return FV_OK;
    case FV_GGUF_ARRAY:
        FV_TRY(take_type(c, e->key, &e->element));
        FV_TRY(take_u64(c, "an array's length", &count));
        e->data = c->file->bytes + c->at;
        FV_TRY(skip_array(c, e->key, e->element, count, 1));
        e->count = (int64_t)count;
        return FV_OK;
    default: return take(c, (uint64_t)types[e->type].bytes, "a value", &e->data);
    }
}

static int compare_entries(const void *a, const void *b)
{
    return compare_text(((const struct entry *)a)->key, ((const struct entry *)b)->key);
}

static fv_status read_entries(struct cursor *c, fv_gguf *g, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++) {
        struct entry e = {0};
        FV_TRY(take_text(c, "a key", &e.key));
        if (e.key.length == 0) return fv_fail(FV_E_FORMAT, "%s: key %llu is empty", g->name, (unsigned long long)i);
        FV_TRY(take_type(c, e.key, &e.type));
        FV_TRY(take_value(c, &e));
        FV_TRY(FV_GROW(g->entries, g->entry_capacity, g->entry_count + 1));
        g->entries[g->entry_count++] = e;
    }
    if (g->entry_count) qsort(g->entries, (size_t)g->entry_count, sizeof *g->entries, compare_entries);
    for (int64_t i = 1; i < g->entry_count; i++)
        if (compare_text(g->entries[i - 1].key, g->entries[i].key) == 0)
            return fv_fail(FV_E_FORMAT, "%s: key '%s' stands twice", g->name, shown(g->entries[i].key));
    return FV_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* The file's numbers for tensor types. */
static const struct {
    const char *name;
    int dtype; /* -1: known, but not supported */
} tensor_types[] = {
    {"F32", FV_F32},       {"F16", FV_F16},   {"Q4_0", FV_Q4_0}, {"Q4_1", FV_Q4_1}, {"Q4_2", -1},
    {"Q4_3", -1},          {"Q5_0", FV_Q5_0}, {"Q5_1", FV_Q5_1}, {"Q8_0", FV_Q8_0}, {"Q8_1", -1},
    {"Q2_K", FV_Q2_K},     {"Q3_K", FV_Q3_K}, {"Q4_K", FV_Q4_K}, {"Q5_K", FV_Q5_K}, {"Q6_K", FV_Q6_K},
    {"Q8_K", FV_Q8_K},     {"IQ2_XXS", -1},   {"IQ2_XS", -1},    {"IQ3_XXS", -1},   {"IQ1_S", -1},
    {"IQ4_NL", FV_IQ4_NL}, {"IQ3_S", -1},     {"IQ2_S", -1},     {"IQ4_XS", -1},    {"I8", FV_I8},
    {"I16", FV_I16},       {"I32", FV_I32},   {"I64", FV_I64},   {"F64", FV_F64},   {"IQ1_M", -1},
    {"BF16", FV_BF16},
};
enum { TENSOR_TYPES = sizeof tensor_types / sizeof *tensor_types };

static fv_status tensor_type(const fv_gguf *g, fv_gguf_text name, uint32_t number, fv_dtype *dtype)
{
    if (number < TENSOR_TYPES && tensor_types[number].dtype >= 0) {
        *dtype = (fv_dtype)tensor_types[number].dtype;
        return FV_OK;
    }
    return fv_fail(FV_E_UNSUPPORTED,
                   "%s: tensor '%s' has type %u (%s); expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, "
                   "Q3_K, Q4_K, Q5_K, Q6_K, Q8_K, IQ4_NL or a plain integer type",
                   g->name, shown(name), number, number < TENSOR_TYPES ? tensor_types[number].name : "unknown");
}

/* Reads a tensor's description; `bytes` and the offset are set, the data not yet. */
static fv_status take_tensor(struct cursor *c, fv_gguf_tensor *t, uint64_t *offset)
{
    const fv_gguf *g = c->file;
    int64_t dims[TENSOR_RANK] = {0};
    uint32_t rank = 0, number = 0;
    fv_dtype dtype = FV_F32;

    FV_TRY(take_text(c, "a tensor's name", &t->name));
    FV_TRY(take_u32(c, "a tensor's rank", &rank));
    if (t->name.length == 0 || rank < 1 || rank > TENSOR_RANK)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected a name and a rank of 1 to %d, got rank %u", g->name,
                       shown(t->name), TENSOR_RANK, rank);
    for (uint32_t d = 0; d < rank; d++) {
        uint64_t dim = 0;
        FV_TRY(take_u64(c, "a tensor's dimension", &dim));
        if (dim == 0 || dim > INT64_MAX)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s': dimension %u is %llu", g->name, shown(t->name), d,
                           (unsigned long long)dim);
        dims[rank - 1 - d] = (int64_t)dim;
    }
    FV_TRY(take_u32(c, "a tensor's type", &number));
    FV_TRY(take_u64(c, "a tensor's offset", offset));
    FV_TRY(tensor_type(g, t->name, number, &dtype));
    if (fv_tensor_wrap(&t->tensor, NULL, dtype, (int)rank, dims) != FV_OK ||
        fv_dtype_bytes(dtype, fv_tensor_count(&t->tensor), &t->bytes) != FV_OK)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': its dimensions overflow", g->name, shown(t->name));
    if (dims[rank - 1] % fv_dtype_block(dtype) != 0)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': rows of %lld elements are no whole number of %s blocks of %lld",
                       g->name, shown(t->name), (long long)dims[rank - 1], fv_dtype_name(dtype),
                       (long long)fv_dtype_block(dtype));
    return FV_OK;
}

static int compare_tensors(const void *a, const void *b)
{
    return compare_text(((const fv_gguf_tensor *)a)->name, ((const fv_gguf_tensor *)b)->name);
}

/* Sets a tensor's data; its offset waits in `data` until the place where tensor data starts is known. */
static fv_status place_tensor(const fv_gguf *g, fv_gguf_tensor *t, size_t start, size_t alignment)
{
    uint64_t offset = (uint64_t)(uintptr_t)t->tensor.data;
    size_t from = 0, to = 0;

    if (offset % alignment != 0)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected an offset that is a multiple of %zu, got %llu", g->name,
                       shown(t->name), alignment, (unsigned long long)offset);
    if (!fv_add_size(start, offset, &from) || !fv_add_size(from, t->bytes, &to))
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': offset %llu is past the end of any file", g->name, shown(t->name),
                       (unsigned long long)offset);
    if (to > g->size)
        return fv_fail(FV_E_FORMAT,
                       "%s: tensor '%s' would end at byte %zu, but the file ends at %zu: the download may be "
                       "incomplete",
                       g->name, shown(t->name), to, g->size);
    t->tensor.data = (void *)(uintptr_t)(g->bytes + from);
    return FV_OK;
}

static fv_status read_tensors(struct cursor *c, fv_gguf *g, uint64_t count)
{
    int64_t alignment = DEFAULT_ALIGNMENT;
    size_t start;

    FV_TRY(fv_gguf_int(g, "general.alignment", 8, MAX_ALIGNMENT, &alignment));
    if (alignment & (alignment - 1))
        return fv_fail(FV_E_FORMAT, "%s: key 'general.alignment': expected a power of two, got %lld", g->name,
                       (long long)alignment);
    for (uint64_t i = 0; i < count; i++) {
        fv_gguf_tensor t;
        uint64_t offset = 0;
        FV_TRY(take_tensor(c, &t, &offset));
        t.tensor.data = (void *)(uintptr_t)offset;
        FV_TRY(FV_GROW(g->tensors, g->tensor_capacity, g->tensor_count + 1));
        g->tensors[g->tensor_count++] = t;
    }
    start = (c->at + (size_t)alignment - 1) & ~((size_t)alignment - 1);
    for (int64_t i = 0; i < g->tensor_count; i++)
        FV_TRY(place_tensor(g, &g->tensors[i], start, (size_t)alignment));
    if (g->tensor_count) qsort(g->tensors, (size_t)g->tensor_count, sizeof *g->tensors, compare_tensors);
    for (int64_t i = 1; i < g->tensor_count; i++)
        if (compare_text(g->tensors[i - 1].name, g->tensors[i].name) == 0)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s' stands twice", g->name, shown(g->tensors[i].name));
    return FV_OK;
}

/* ---- opening ---------------------------------------------------------------------------------------------------- */

static fv_status read_all(fv_gguf *g)
{
    struct cursor c = {.file = g};
    const unsigned char *magic = NULL;
    uint64_t tensors = 0, entries = 0;
    uint32_t version = 0;

    if (g->size < 4 || memcmp(g->bytes, "GGUF", 4) != 0)
        return fv_fail(FV_E_FORMAT, "%s: expected a GGUF file, which starts with the letters GGUF; this one %s",
                       g->name, g->size ? "does not" : "is empty");
    FV_TRY(take(&c, 4, "the file's mark", &magic));
    FV_TRY(take_u32(&c, "the version", &version));
    if (version != 2 && version != 3)
        return fv_fail(FV_E_UNSUPPORTED, "%s: GGUF version: expected 2 or 3 (little endian), got %u", g->name, version);
    FV_TRY(take_u64(&c, "the number of tensors", &tensors));
    FV_TRY(take_u64(&c, "the number of keys", &entries));
    FV_TRY(read_entries(&c, g, entries));
    return read_tensors(&c, g, tensors);
}

static fv_status gguf_new(const char *name, fv_gguf **gguf)
{
    size_t length = strlen(name) + 1;

    FV_TRY(FV_ZALLOC(*gguf, 1));
    fv_status status = FV_ALLOC((*gguf)->name, (int64_t)length);
    if (status != FV_OK) {
        fv_gguf_close(*gguf);
        *gguf = NULL;
        return status;
    }
    memcpy((*gguf)->name, name, length);
    return FV_OK;
}

static fv_status finish(fv_gguf *g, fv_gguf **gguf)
{
    fv_status status = read_all(g);

    if (status == FV_OK)
        *gguf = g;
    else
        fv_gguf_close(g);
    return status;
}

fv_status fv_gguf_open(const char *path, fv_gguf **gguf)
{
    const void *bytes;
    fv_gguf *g;

    *gguf = NULL;
    FV_TRY(gguf_new(path, &g));
    fv_status status = fv_file_map(path, &bytes, &g->size);
    if (status != FV_OK) {
        fv_gguf_close(g);
        return status;
    }
    g->bytes = bytes;
    g->mapped = true;
    return finish(g, gguf);
}

fv_status fv_gguf_parse(const char *name, const void *bytes, size_t size, fv_gguf **gguf)
{
    fv_gguf *g;

    *gguf = NULL;
    FV_TRY(gguf_new(name, &g));
    g->bytes = bytes;
    g->size = size;
    return finish(g, gguf);
}

void fv_gguf_close(fv_gguf *gguf)
{
    if (!gguf) return;
    if (gguf->mapped) fv_file_unmap(gguf->bytes, gguf->size);
    fv_free(gguf->entries);
    fv_free(gguf->tensors);
    fv_free(gguf->name);
    fv_free(gguf);
}

const char *fv_gguf_name(const fv_gguf *gguf)
{
    return gguf->name;
}

/* ---- metadata --------------------------------------------------------------------------------------------------- */

static const struct entry *find(const fv_gguf *g, const char *key)
{
    struct entry wanted = {.key = {key, (int64_t)strlen(key)}};

    if (!g->entry_count) return NULL;
    return bsearch(&wanted, g->entries, (size_t)g->entry_count, sizeof wanted, compare_entries);
}

static fv_status mistyped(const fv_gguf *g, const struct entry *e, const char *expected)
{
    return fv_fail(FV_E_FORMAT, "%s: key '%s': expected %s, got %s%s%s", g->name, shown(e->key), expected,
                   types[e->type].name, e->type == FV_GGUF_ARRAY ? " of " : "",
                   e->type == FV_GGUF_ARRAY ? types[e->element].name : "");
}

bool fv_gguf_has(const fv_gguf *g, const char *key)
{
    return find(g, key) != NULL;
}

fv_status fv_gguf_require(const fv_gguf *g, const char *key)
{
    if (find(g, key)) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: key '%s' is missing", g->name, key);
}

/* Reads one number of an integer type (or bool); false: above INT64_MAX. */
static bool read_int(fv_gguf_type type, const unsigned char *data, int64_t *value)
{
    int64_t wide = 0;
    int bits = 64 - 8 * types[type].bytes;

    switch (types[type].bytes) { /* vocabularies have many: copies of a known size are no calls */
    case 1: memcpy(&wide, data, 1); break;
    case 2: memcpy(&wide, data, 2); break;
    case 4: memcpy(&wide, data, 4); break;
    default: memcpy(&wide, data, 8); break;
    }
    if (type == FV_GGUF_I8 || type == FV_GGUF_I16 || type == FV_GGUF_I32)
        wide = (int64_t)((uint64_t)wide << bits) >> bits; /* the sign */
    *value = wide;
    return type != FV_GGUF_U64 || wide >= 0;
}

static double read_float(fv_gguf_type type, const unsigned char *data)
{
    float single;
    double wide;

    if (type == FV_GGUF_F32) {
        memcpy(&single, data, sizeof single);
        return single;
    }
    memcpy(&wide, data, sizeof wide);
    return wide;
}

fv_status fv_gguf_int(const fv_gguf *g, const char *key, int64_t min, int64_t max, int64_t *value)
{
    const struct entry *e = find(g, key);
    int64_t number;

    if (!e) return FV_OK;
    if (!(FV_GGUF_INTEGERS >> e->type & 1)) return mistyped(g, e, "an integer");
    bool fits = read_int(e->type, e->data, &number);
    if (!fits || number < min || number > max)
        return fv_fail(FV_E_FORMAT,
                       fits ? "%s: key '%s': expected %lld to %lld, got %lld"
                            : "%s: key '%s': expected %lld to %lld, got %llu",
                       g->name, key, (long long)min, (long long)max, (long long)number);
    *value = number;
    return FV_OK;
}

fv_status fv_gguf_float(const fv_gguf *g, const char *key, double *value)
{
    const struct entry *e = find(g, key);

    if (!e) return FV_OK;
    if (!(FV_GGUF_FLOATS >> e->type & 1)) return mistyped(g, e, "a floating-point number");
    double number = read_float(e->type, e->data);
    if (!isfinite(number)) return fv_fail(FV_E_FORMAT, "%s: key '%s': expected a finite number", g->name, key);
    *value = number;
    return FV_OK;
}

fv_status fv_gguf_bool(const fv_gguf *g, const char *key, bool *value)
{
    const struct entry *e = find(g, key);

    if (!e) return FV_OK;
    if (e->type != FV_GGUF_BOOL) return mistyped(g, e, "a bool");
    if (*e->data > 1) return fv_fail(FV_E_FORMAT, "%s: key '%s': expected 0 or 1, got %d", g->name, key, *e->data);
    *value = *e->data;
    return FV_OK;
}

fv_status fv_gguf_string(const fv_gguf *g, const char *key, fv_gguf_text *value)
{
    const struct entry *e = find(g, key);

    if (!e) return FV_OK;
    if (e->type != FV_GGUF_STRING) return mistyped(g, e, "a string");
    *value = (fv_gguf_text){(const char *)e->data, e->count};
    return FV_OK;
}

fv_status fv_gguf_get_array(const fv_gguf *g, const char *key, unsigned wanted, fv_gguf_array *value)
{
    const struct entry *e = find(g, key);

    if (!e) return FV_OK;
    if (e->type != FV_GGUF_ARRAY || !(wanted >> e->element & 1)) {
        char expected[128] = "an array of";
        for (int t = 0; t < FV_GGUF_TYPES; t++) {
            size_t used = strlen(expected);
            if (wanted >> t & 1) snprintf(expected + used, sizeof expected - used, " %s", types[t].name);
        }
        return mistyped(g, e, expected);
    }
    *value = (fv_gguf_array){e->element, e->count, e->data};
    return FV_OK;
}

int64_t fv_gguf_int_at(const fv_gguf_array *array, int64_t index)
{
    int64_t value;

    return read_int(array->type, array->data + index * types[array->type].bytes, &value) ? value : -1;
}

double fv_gguf_float_at(const fv_gguf_array *array, int64_t index)
{
    return read_float(array->type, array->data + index * types[array->type].bytes);
}

fv_status fv_gguf_strings(const fv_gguf *g, const char *key, fv_gguf_text **texts, int64_t *count)
{
    fv_gguf_array array = {0};

    *texts = NULL;
    *count = 0;
    if (!find(g, key)) return FV_OK;
    FV_TRY(fv_gguf_get_array(g, key, 1u << FV_GGUF_STRING, &array));
    FV_TRY(FV_ALLOC(*texts, array.count));
    struct cursor c = {.file = g, .at = (size_t)(array.data - g->bytes)};
    for (int64_t i = 0; i < array.count; i++)
        (void)take_text(&c, "a string", &(*texts)[i]); /* was walked over when the file was opened */
    *count = array.count;
    return FV_OK;
}

/* ---- tensors by name -------------------------------------------------------------------------------------------- */

int64_t fv_gguf_tensors(const fv_gguf *gguf)
{
    return gguf->tensor_count;
}

const fv_gguf_tensor *fv_gguf_tensor_at(const fv_gguf *gguf, int64_t index)
{
    return &gguf->tensors[index];
}

const fv_gguf_tensor *fv_gguf_find(const fv_gguf *g, const char *name)
{
    fv_gguf_tensor wanted = {.name = {name, (int64_t)strlen(name)}};

    if (!g->tensor_count) return NULL;
    return bsearch(&wanted, g->tensors, (size_t)g->tensor_count, sizeof wanted, compare_tensors);
}
