/* Reading and writing safetensors: 8 bytes that say how long the header is, the header, which is a JSON object, data.
 * The header is cut into its members here, so that its text is all that is held at once; what they say is JSON's. */
#include "models/safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/file.h"
#include "base/text.h"

enum {
    LENGTH = 8,         /* bytes that say how long the header is */
    LARGEST = 8,        /* bytes of an element */
    DEEPEST = 2,        /* brackets within brackets that a member of the header needs */
    DESCRIPTION = 4096, /* most bytes of what describes a tensor */
};

static const char metadata[] = "__metadata__";

static const struct {
    const char *code;
    fv_dtype dtype;
} codes[] = {
    {"F32", FV_F32}, {"F16", FV_F16}, {"BF16", FV_BF16}, {"F64", FV_F64}, {"I8", FV_I8},   {"U8", FV_U8},
    {"I16", FV_I16}, {"U16", FV_U16}, {"I32", FV_I32},   {"I64", FV_I64}, {"BOOL", FV_U8},
};
enum { CODES = sizeof codes / sizeof *codes };

struct fv_safetensors {
    char *path;
    const char *bytes, *data;
    size_t size, data_size;
    bool mapped, has_notes;
    char *text; /* names and notes, decoded: they are no longer than the header that they come from */
    size_t text_used;
    fv_safetensor *tensors; /* sorted by name */
    int64_t tensor_count, tensor_room;
    fv_note *notes; /* sorted by key */
    int64_t note_count, note_room;
};

/* A stretch of the header. */
struct span {
    const char *text;
    size_t length;
};

/* A name as a sentence can show it. */
static const char *shown(const char *text)
{
    return fv_shown(text, (int64_t)strlen(text));
}

/* ---- the header's members --------------------------------------------------------------------------------------- */

struct cursor {
    const fv_safetensors *file;
    const char *at, *end;
};

static size_t place(const fv_safetensors *f, const char *at)
{
    return (size_t)(at - f->bytes);
}

static fv_status malformed(const struct cursor *c, const char *expected)
{
    size_t at = place(c->file, c->at);

    if (c->at == c->end)
        return fv_fail(FV_E_FORMAT, "%s: header, byte %zu: expected %s, got its end", c->file->path, at, expected);
    return fv_fail(FV_E_FORMAT, "%s: header, byte %zu: expected %s, got '%s'", c->file->path, at, expected,
                   fv_shown(c->at, 1));
}

static void skip_spaces(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t' || *c->at == '\r'))
        c->at++;
}

static bool take(struct cursor *c, char wanted)
{
    skip_spaces(c);
    if (c->at == c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

static bool is_one_of(char byte, const char *set)
{
    return byte && strchr(set, byte);
}

static fv_status skip_text(struct cursor *c)
{
    const char *from = c->at;

    if (!take(c, '"')) return malformed(c, "a text in quotes");
    while (c->at < c->end && *c->at != '"')
        c->at += *c->at == '\\' && c->at + 1 < c->end ? 2 : 1;
    if (take(c, '"')) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: header, byte %zu: a text has no closing quote", c->file->path,
                   place(c->file, from));
}

/* Moves behind one value, whatever stands in it. */
static fv_status skip_value(struct cursor *c)
{
    int depth = 0;

    do {
        skip_spaces(c);
        if (c->at == c->end) return malformed(c, depth ? "a closing bracket" : "a value");
        if (*c->at == '"') {
            FV_TRY(skip_text(c));
        } else if (*c->at == '{' || *c->at == '[') {
            if (depth++ == DEEPEST)
                return fv_fail(FV_E_FORMAT, "%s: header, byte %zu: is nested too deep", c->file->path,
                               place(c->file, c->at));
            c->at++;
        } else if (depth > 0 && is_one_of(*c->at, "]},:")) {
            depth -= *c->at == ']' || *c->at == '}';
            c->at++;
        } else {
            const char *from = c->at;
            while (c->at < c->end && !is_one_of(*c->at, "]}[{,:\" \n\t\r"))
                c->at++;
            if (c->at == from) return malformed(c, "a value");
        }
    } while (depth > 0);
    return FV_OK;
}

typedef fv_status member_fn(fv_safetensors *f, struct span key, struct span value);

/* Calls `member` for each member of an object. */
static fv_status each_member(fv_safetensors *f, struct span object, member_fn *member)
{
    struct cursor c = {f, object.text, object.text + object.length};

    if (!take(&c, '{')) return malformed(&c, "'{'");
    if (!take(&c, '}')) {
        do {
            struct span key, value;
            skip_spaces(&c);
            key.text = c.at;
            FV_TRY(skip_text(&c));
            key.length = (size_t)(c.at - key.text);
            if (!take(&c, ':')) return malformed(&c, "':'");
            skip_spaces(&c);
            value.text = c.at;
            FV_TRY(skip_value(&c));
            value.length = (size_t)(c.at - value.text);
            FV_TRY(member(f, key, value));
        } while (take(&c, ','));
        if (!take(&c, '}')) return malformed(&c, "',' or '}'");
    }
    skip_spaces(&c);
    return c.at == c.end ? FV_OK : malformed(&c, "nothing but spaces behind '}'");
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static fv_status read_json(const fv_safetensors *f, struct span value, size_t flags, json_t **json)
{
    json_error_t error = {0};

    *json = json_loadb(value.text, value.length, flags, &error);
    if (*json) return FV_OK;
    if (json_error_code(&error) == json_error_out_of_memory || !*error.text) /* it does not always say so */
        return fv_fail(FV_E_MEMORY, "%s: out of memory while reading the header", f->path);
    return fv_fail(FV_E_FORMAT, "%s: header, byte %zu: is not JSON: %s", f->path,
                   place(f, value.text) + (size_t)error.position, shown(error.text));
}

/* A text of the header as one of the file's own. */
static fv_status read_text(fv_safetensors *f, struct span value, const char **text)
{
    json_t *json;
    size_t length;

    FV_TRY(read_json(f, value, JSON_DECODE_ANY, &json));
    length = json_string_length(json);
    *text = f->text + f->text_used;
    memcpy(f->text + f->text_used, json_string_value(json), length + 1); /* two quotes have gone */
    f->text_used += length + 1;
    json_decref(json);
    return FV_OK;
}

static fv_status take_note(fv_safetensors *f, struct span key, struct span value)
{
    fv_note note;

    FV_TRY(read_text(f, key, &note.key));
    if (*value.text != '"')
        return fv_fail(FV_E_FORMAT, "%s: %s '%s': expected a text, got %s", f->path, metadata, shown(note.key),
                       fv_shown(value.text, (int64_t)value.length));
    FV_TRY(read_text(f, value, &note.value));
    FV_TRY(FV_GROW(f->notes, f->note_room, f->note_count + 1));
    f->notes[f->note_count++] = note;
    return FV_OK;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* A value as it can be shown. */
struct excerpt {
    char text[64];
};

static struct excerpt excerpt_of(const json_t *value)
{
    struct excerpt e = {""};

    if (!value)
        strcpy(e.text, "nothing");
    else if (json_dumpb(value, e.text, sizeof e.text - 4, JSON_ENCODE_ANY | JSON_COMPACT) > sizeof e.text - 4)
        strcat(e.text, "..."); /* room was left for it */
    return e;
}

/* An array of whole numbers, most of them at most. */
static fv_status read_integers(const fv_safetensors *f, const fv_safetensor *t, const json_t *root, const char *field,
                               size_t most, int64_t *numbers, size_t *count)
{
    const json_t *array = json_object_get(root, field);

    *count = json_array_size(array);
    if (!json_is_array(array))
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': '%s': expected whole numbers in brackets, got %s", f->path,
                       shown(t->name), field, excerpt_of(array).text);
    for (size_t i = 0; i < *count; i++) {
        const json_t *item = json_array_get(array, i);
        if (!json_is_integer(item) || json_integer_value(item) < 0)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s': '%s': expected whole numbers of 0 or more, got %s", f->path,
                           shown(t->name), field, excerpt_of(item).text);
        if (i < most) numbers[i] = json_integer_value(item);
    }
    return FV_OK;
}

static fv_status read_type(const fv_safetensors *f, const fv_safetensor *t, const json_t *root, fv_dtype *dtype)
{
    const json_t *type = json_object_get(root, "dtype");

    if (!json_is_string(type))
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': 'dtype': expected a text such as \"F32\", got %s", f->path,
                       shown(t->name), excerpt_of(type).text);
    for (int i = 0; i < CODES; i++) {
        if (strcmp(json_string_value(type), codes[i].code) != 0) continue;
        *dtype = codes[i].dtype;
        return FV_OK;
    }
    return fv_fail(FV_E_UNSUPPORTED,
                   "%s: tensor '%s' is of type %s; expected F32, F16, BF16, F64, I8, U8, I16, U16, I32, I64 or BOOL",
                   f->path, shown(t->name), excerpt_of(type).text);
}

static fv_status read_fields(const fv_safetensors *f, fv_safetensor *t, json_t *root)
{
    int64_t dims[FV_MAX_RANK] = {0}, offsets[2] = {0};
    size_t rank, count;
    fv_dtype dtype = FV_F32;
    const char *key;
    json_t *value;

    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "dtype") != 0 && strcmp(key, "shape") != 0 && strcmp(key, "data_offsets") != 0)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected 'dtype', 'shape' and 'data_offsets', got '%s'",
                           f->path, shown(t->name), shown(key));
    }
    FV_TRY(read_type(f, t, root, &dtype));
    FV_TRY(read_integers(f, t, root, "shape", FV_MAX_RANK, dims, &rank));
    FV_TRY(read_integers(f, t, root, "data_offsets", 2, offsets, &count));
    if (rank > FV_MAX_RANK)
        return fv_fail(FV_E_SHAPE, "%s: tensor '%s': expected at most %d dimensions, got %zu", f->path, shown(t->name),
                       FV_MAX_RANK, rank);
    if (count != 2 || offsets[0] > offsets[1])
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': 'data_offsets': expected where it begins and ends, got %s",
                       f->path, shown(t->name), excerpt_of(json_object_get(root, "data_offsets")).text);
    if ((uint64_t)offsets[1] > f->data_size)
        return fv_fail(FV_E_FORMAT,
                       "%s: tensor '%s' would end at byte %lld of the data, but there are %zu: the download may be "
                       "incomplete",
                       f->path, shown(t->name), (long long)offsets[1], f->data_size);
    if (fv_tensor_wrap(&t->tensor, NULL, dtype, (int)rank, dims) != FV_OK ||
        fv_dtype_bytes(dtype, fv_tensor_count(&t->tensor), &t->bytes) != FV_OK)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': its dimensions overflow", f->path, shown(t->name));
    t->tensor.data = (void *)(uintptr_t)(f->data + offsets[0]);
    if ((uint64_t)(offsets[1] - offsets[0]) == t->bytes) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: tensor '%s': %s of shape %s takes %zu bytes, 'data_offsets' give it %lld", f->path,
                   shown(t->name), fv_dtype_name(dtype), fv_shape_text(&t->tensor), t->bytes,
                   (long long)(offsets[1] - offsets[0]));
}

static fv_status take_tensor(fv_safetensors *f, struct span key, struct span value)
{
    fv_safetensor t = {0};
    json_t *root;

    FV_TRY(read_text(f, key, &t.name));
    if (strcmp(t.name, metadata) == 0) {
        if (f->has_notes) return fv_fail(FV_E_FORMAT, "%s: '%s' stands twice", f->path, metadata);
        f->has_notes = true;
        if (*value.text == '{') return each_member(f, value, take_note);
        return fv_fail(FV_E_FORMAT, "%s: '%s': expected texts by name in braces, got %s", f->path, metadata,
                       fv_shown(value.text, (int64_t)value.length));
    }
    if (strlen(t.name) > FV_SAFETENSORS_NAME)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected a name of at most %d bytes, got %zu", f->path,
                       shown(t.name), FV_SAFETENSORS_NAME, strlen(t.name));
    if (*value.text != '{')
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected 'dtype', 'shape' and 'data_offsets' in braces, got %s",
                       f->path, shown(t.name), fv_shown(value.text, (int64_t)value.length));
    if (value.length > DESCRIPTION)
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s': expected a description of at most %d bytes, got %zu", f->path,
                       shown(t.name), DESCRIPTION, value.length);
    FV_TRY(read_json(f, value, JSON_REJECT_DUPLICATES, &root));
    fv_status status = read_fields(f, &t, root);
    json_decref(root);
    FV_TRY(status);
    FV_TRY(FV_GROW(f->tensors, f->tensor_room, f->tensor_count + 1));
    f->tensors[f->tensor_count++] = t;
    return FV_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static int compare_notes(const void *a, const void *b)
{
    return strcmp(((const fv_note *)a)->key, ((const fv_note *)b)->key);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const fv_safetensor *)a)->name, ((const fv_safetensor *)b)->name);
}

static int compare_places(const void *a, const void *b)
{
    const fv_safetensor *s = a, *t = b;
    const char *from = s->tensor.data, *other = t->tensor.data;

    if (from != other) return from < other ? -1 : 1;
    return (s->bytes > t->bytes) - (s->bytes < t->bytes); /* an empty one may stand where another begins */
}

static void sort_tensors(fv_safetensors *f, int (*compare)(const void *, const void *))
{
    if (f->tensor_count) qsort(f->tensors, (size_t)f->tensor_count, sizeof *f->tensors, compare);
}

static fv_status check_names(fv_safetensors *f)
{
    sort_tensors(f, compare_names);
    for (int64_t i = 1; i < f->tensor_count; i++)
        if (strcmp(f->tensors[i - 1].name, f->tensors[i].name) == 0)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s' stands twice", f->path, shown(f->tensors[i].name));
    if (f->note_count) qsort(f->notes, (size_t)f->note_count, sizeof *f->notes, compare_notes);
    for (int64_t i = 1; i < f->note_count; i++)
        if (strcmp(f->notes[i - 1].key, f->notes[i].key) == 0)
            return fv_fail(FV_E_FORMAT, "%s: %s '%s' stands twice", f->path, metadata, shown(f->notes[i].key));
    return FV_OK;
}

/* Every byte of the data is some tensor's, and no other's. */
static fv_status check_places(fv_safetensors *f)
{
    size_t end = 0;

    sort_tensors(f, compare_places);
    for (int64_t i = 0; i < f->tensor_count; i++) {
        const fv_safetensor *t = &f->tensors[i];
        size_t from = (size_t)((const char *)t->tensor.data - f->data);
        if (from < end)
            return fv_fail(FV_E_FORMAT, "%s: tensor '%s' begins at byte %zu of the data, before '%s' ends at %zu",
                           f->path, shown(t->name), from, shown((t - 1)->name), end);
        if (from > end)
            return fv_fail(FV_E_FORMAT, "%s: bytes %zu to %zu of the data, before tensor '%s', are no tensor's",
                           f->path, end, from, shown(t->name));
        end += t->bytes;
    }
    if (end != f->data_size)
        return fv_fail(FV_E_FORMAT, "%s: expected the file to end with its last tensor, got %zu bytes behind it",
                       f->path, f->data_size - end);
    sort_tensors(f, compare_names);
    return FV_OK;
}

static fv_status read_all(fv_safetensors *f)
{
    uint64_t length = 0;

    if (f->size < LENGTH)
        return fv_fail(FV_E_FORMAT, "%s: is not a safetensors file: it has %zu bytes, expected at least %d", f->path,
                       f->size, LENGTH);
    for (int i = 0; i < LENGTH; i++)
        length |= (uint64_t)(unsigned char)f->bytes[i] << 8 * i;
    if (length > FV_SAFETENSORS_HEADER)
        return fv_fail(FV_E_FORMAT,
                       "%s: is not a safetensors file: its first bytes call for a header of %llu bytes, expected at "
                       "most %d",
                       f->path, (unsigned long long)length, FV_SAFETENSORS_HEADER);
    if (length > f->size - LENGTH)
        return fv_fail(FV_E_FORMAT,
                       "%s: the header would take %llu bytes, but the file ends after %zu: the download may be "
                       "incomplete",
                       f->path, (unsigned long long)length, f->size - LENGTH);
    f->data = f->bytes + LENGTH + length;
    f->data_size = f->size - LENGTH - (size_t)length;
    FV_TRY(FV_ALLOC(f->text, (int64_t)length));
    FV_TRY(each_member(f, (struct span){f->bytes + LENGTH, (size_t)length}, take_tensor));
    FV_TRY(check_names(f));
    return check_places(f);
}

static fv_status begin(const char *path, fv_safetensors **file)
{
    size_t length = strlen(path) + 1;

    FV_TRY(FV_ZALLOC(*file, 1));
    fv_status status = FV_ALLOC((*file)->path, (int64_t)length);
    if (status == FV_OK) {
        memcpy((*file)->path, path, length);
        return FV_OK;
    }
    fv_safetensors_close(*file);
    *file = NULL;
    return status;
}

static fv_status finish(fv_safetensors *f, fv_status status, fv_safetensors **file)
{
    if (status == FV_OK) status = read_all(f);
    if (status == FV_OK)
        *file = f;
    else
        fv_safetensors_close(f);
    return status;
}

fv_status fv_safetensors_open(const char *path, fv_safetensors **file)
{
    const void *bytes;
    fv_safetensors *f;

    *file = NULL;
    FV_TRY(begin(path, &f));
    fv_status status = fv_file_map(path, &bytes, &f->size);
    f->bytes = bytes;
    f->mapped = true;
    return finish(f, status, file);
}

fv_status fv_safetensors_parse(const char *path, const void *bytes, size_t size, fv_safetensors **file)
{
    fv_safetensors *f;

    *file = NULL;
    FV_TRY(begin(path, &f));
    f->bytes = bytes;
    f->size = size;
    return finish(f, FV_OK, file);
}

void fv_safetensors_close(fv_safetensors *f)
{
    if (!f) return;
    if (f->mapped) fv_file_unmap(f->bytes, f->size);
    fv_free(f->tensors);
    fv_free(f->notes);
    fv_free(f->text);
    fv_free(f->path);
    fv_free(f);
}

int64_t fv_safetensors_count(const fv_safetensors *f)
{
    return f->tensor_count;
}

const fv_safetensor *fv_safetensors_at(const fv_safetensors *f, int64_t index)
{
    return &f->tensors[index];
}

const fv_safetensor *fv_safetensors_find(const fv_safetensors *f, const char *name)
{
    fv_safetensor wanted = {.name = name};

    if (!f->tensor_count) return NULL;
    return bsearch(&wanted, f->tensors, (size_t)f->tensor_count, sizeof wanted, compare_names);
}

const char *fv_safetensors_note(const fv_safetensors *f, const char *key)
{
    fv_note wanted = {.key = key}, *found = NULL;

    if (f->note_count) found = bsearch(&wanted, f->notes, (size_t)f->note_count, sizeof wanted, compare_notes);
    return found ? found->value : NULL;
}

fv_status fv_safetensors_copy(const fv_safetensor *stored, fv_tensor *tensor, void **owned)
{
    const fv_tensor *t = &stored->tensor;

    FV_TRY(fv_alloc(owned, (int64_t)stored->bytes, 1));
    if (stored->bytes) memcpy(*owned, t->data, stored->bytes);
    return fv_tensor_wrap(tensor, *owned, t->dtype, t->rank, t->dims);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static const char *code_of(fv_dtype dtype)
{
    for (int i = 0; i < CODES; i++)
        if (codes[i].dtype == dtype) return codes[i].code;
    return NULL;
}

/* A text as JSON has it, and what stands behind it. */
static void put_text(fv_text *header, const char *text, const char *behind)
{
    json_t *json = json_string(text);
    char *quoted = json ? json_dumps(json, JSON_ENCODE_ANY) : NULL;

    if (quoted)
        fv_text_printf(header, "%s%s", quoted, behind);
    else if (fv_text_status(header) == FV_OK)
        header->status = fv_fail(FV_E_MEMORY, "out of memory while writing the header of a safetensors file");
    free(quoted);
    json_decref(json);
}

static void put_tensor(fv_text *header, const fv_named_tensor *t, size_t from, size_t to)
{
    fv_text_add(header, ",", header->length > 1);
    put_text(header, t->name, ":{\"dtype\":");
    fv_text_printf(header, "\"%s\",\"shape\":[", code_of(t->tensor.dtype));
    for (int d = 0; d < t->tensor.rank; d++)
        fv_text_printf(header, d ? ",%lld" : "%lld", (long long)t->tensor.dims[d]);
    fv_text_printf(header, "],\"data_offsets\":[%zu,%zu]}", from, to);
}

static void put_notes(fv_text *header, int64_t notes, const fv_note *note)
{
    fv_text_printf(header, "\"%s\":{", metadata);
    for (int64_t i = 0; i < notes; i++) {
        put_text(header, note[i].key, ":");
        put_text(header, note[i].value, i + 1 < notes ? "," : "");
    }
    fv_text_add(header, "}", 1);
}

/* Tensors stand by the size of their elements, the largest first, so that all are aligned as the first one is. */
static fv_status put_header(fv_text *header, int64_t count, const fv_named_tensor *tensors, int64_t notes,
                            const fv_note *note)
{
    size_t from = 0, bytes;

    fv_text_add(header, "{", 1);
    if (notes > 0) put_notes(header, notes, note);
    for (size_t size = LARGEST; size > 0; size /= 2)
        for (int64_t i = 0; i < count; i++) {
            const fv_tensor *t = &tensors[i].tensor;
            if (fv_dtype_size(t->dtype) != size) continue;
            FV_TRY(fv_dtype_bytes(t->dtype, fv_tensor_count(t), &bytes));
            put_tensor(header, &tensors[i], from, from + bytes);
            from += bytes;
        }
    fv_text_add(header, "}", 1);
    while (header->length % LENGTH != 0 && fv_text_status(header) == FV_OK)
        fv_text_add(header, " ", 1);
    return fv_text_status(header);
}

static fv_status check_text(const char *path, const char *what, const char *text, size_t most)
{
    size_t length = strlen(text);

    if (length <= most && fv_utf8_valid(text, length) == length && strcmp(text, metadata) != 0) return FV_OK;
    return fv_fail(FV_E_ARGUMENT, "%s: %s '%s': expected at most %zu bytes of UTF-8, other than %s", path, what,
                   shown(text), most, metadata);
}

static fv_status check_written(const char *path, int64_t count, const fv_named_tensor *tensors, int64_t notes,
                               const fv_note *note)
{
    for (int64_t i = 0; i < count; i++) {
        FV_TRY(check_text(path, "tensor", tensors[i].name, FV_SAFETENSORS_NAME));
        if (!code_of(tensors[i].tensor.dtype))
            return fv_fail(FV_E_DTYPE, "%s: tensor '%s': safetensors have no name for %s", path, tensors[i].name,
                           fv_dtype_name(tensors[i].tensor.dtype));
        for (int64_t j = 0; j < i; j++)
            if (strcmp(tensors[i].name, tensors[j].name) == 0)
                return fv_fail(FV_E_ARGUMENT, "%s: tensor '%s' is given twice", path, tensors[i].name);
    }
    for (int64_t i = 0; i < notes; i++) {
        FV_TRY(check_text(path, "note", note[i].key, FV_SAFETENSORS_HEADER));
        FV_TRY(check_text(path, "note", note[i].value, FV_SAFETENSORS_HEADER));
        for (int64_t j = 0; j < i; j++)
            if (strcmp(note[i].key, note[j].key) == 0)
                return fv_fail(FV_E_ARGUMENT, "%s: note '%s' is given twice", path, note[i].key);
    }
    return FV_OK;
}

fv_status fv_safetensors_write(const char *path, int64_t count, const fv_named_tensor *tensors, int64_t notes,
                               const fv_note *note)
{
    fv_text header = {0};
    fv_file_out out;
    fv_status status;

    FV_TRY(check_written(path, count, tensors, notes, note));
    FV_TRY_DONE(put_header(&header, count, tensors, notes, note));
    if (header.length > FV_SAFETENSORS_HEADER) {
        status = fv_fail(FV_E_UNSUPPORTED, "%s: the header would take %lld bytes, expected at most %d", path,
                         (long long)header.length, FV_SAFETENSORS_HEADER);
        goto done;
    }
    FV_TRY_DONE(fv_file_create(path, &out));
    for (int i = 0; i < LENGTH; i++)
        fputc((int)(header.length >> 8 * i & 255), out.stream); /* the stream remembers failures until the commit */
    fwrite(fv_text_get(&header), 1, (size_t)header.length, out.stream);
    for (size_t size = LARGEST; size > 0; size /= 2)
        for (int64_t i = 0; i < count; i++)
            if (fv_dtype_size(tensors[i].tensor.dtype) == size) fv_tensor_write(&tensors[i].tensor, out.stream);
    status = fv_file_commit(&out);
done:
    fv_text_free(&header);
    return status;
}
