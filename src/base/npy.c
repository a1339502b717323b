#include "base/npy.h"

#include <ctype.h>
#include <errno.h>
#include <string.h>

#include "base/memory.h"

static const char magic[6] = "\x93NUMPY";

/* What a header says. */
struct header {
    char descr[8];
    bool fortran, has_descr, has_order, has_shape;
    int rank;
    int64_t dims[FV_MAX_RANK];
    size_t data; /* offset of the first element */
};

static const struct {
    const char *code;
    fv_dtype dtype;
} codes[] = {
    {"f4", FV_F32}, {"f2", FV_F16}, {"f8", FV_F64}, {"i1", FV_I8},  {"u1", FV_U8},
    {"b1", FV_U8},  {"i2", FV_I16}, {"u2", FV_U16}, {"i4", FV_I32}, {"i8", FV_I64},
};
enum { CODES = sizeof codes / sizeof codes[0] };

/* ---- reading --------------------------------------------------------------------------------------------------- */

struct cursor {
    const char *name, *at, *end;
};

static void skip_spaces(struct cursor *c)
{
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t'))
        c->at++;
}

static bool take(struct cursor *c, char wanted)
{
    skip_spaces(c);
    if (c->at == c->end || *c->at != wanted) return false;
    c->at++;
    return true;
}

static bool take_word(struct cursor *c, const char *word)
{
    size_t length = strlen(word);

    skip_spaces(c);
    if ((size_t)(c->end - c->at) < length || memcmp(c->at, word, length) != 0) return false;
    c->at += length;
    return true;
}

/* A quoted string without escapes. */
static fv_status take_string(struct cursor *c, const char *what, char *out, size_t room)
{
    size_t length = 0;
    char quote;

    skip_spaces(c);
    if (c->at == c->end || (*c->at != '\'' && *c->at != '"'))
        return fv_fail(FV_E_FORMAT, "%s: .npy header: expected a quoted %s", c->name, what);
    quote = *c->at++;
    while (c->at < c->end && *c->at != quote) {
        if (!isprint((unsigned char)*c->at) || length + 1 >= room)
            return fv_fail(FV_E_FORMAT, "%s: .npy header: %s is too long or not printable", c->name, what);
        out[length++] = *c->at++;
    }
    if (c->at == c->end) return fv_fail(FV_E_FORMAT, "%s: .npy header: %s has no closing quote", c->name, what);
    c->at++;
    out[length] = 0;
    return FV_OK;
}

static fv_status take_number(struct cursor *c, int64_t *number)
{
    const char *from;

    skip_spaces(c);
    from = c->at;
    *number = 0;
    for (; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++)
        if (!fv_mul_i64(*number, 10, number) || !fv_add_i64(*number, *c->at - '0', number))
            return fv_fail(FV_E_FORMAT, "%s: .npy header: a dimension of 'shape' overflows", c->name);
    if (c->at == from)
        return fv_fail(FV_E_FORMAT, "%s: .npy header: expected whole numbers in 'shape', like (2, 3)", c->name);
    return FV_OK;
}

static fv_status take_shape(struct cursor *c, struct header *header)
{
    if (!take(c, '(')) return fv_fail(FV_E_FORMAT, "%s: .npy header: expected 'shape' as (2, 3)", c->name);
    while (!take(c, ')')) {
        int64_t size;
        FV_TRY(take_number(c, &size));
        if (header->rank == FV_MAX_RANK)
            return fv_fail(FV_E_SHAPE, "%s: expected at most %d dimensions, got more", c->name, FV_MAX_RANK);
        header->dims[header->rank++] = size;
        if (take(c, ',')) continue;
        if (header->rank == 1 || !take(c, ')'))
            return fv_fail(FV_E_FORMAT, "%s: .npy header: expected ',' or ')' in 'shape'", c->name);
        break;
    }
    return FV_OK;
}

static fv_status take_entry(struct cursor *c, struct header *header)
{
    char key[16];
    bool *seen;

    FV_TRY(take_string(c, "key", key, sizeof key));
    seen = strcmp(key, "descr") == 0           ? &header->has_descr
           : strcmp(key, "fortran_order") == 0 ? &header->has_order
           : strcmp(key, "shape") == 0         ? &header->has_shape
                                               : NULL;
    if (!seen)
        return fv_fail(FV_E_FORMAT, "%s: .npy header: expected descr, fortran_order and shape, got '%s'", c->name, key);
    if (*seen) return fv_fail(FV_E_FORMAT, "%s: .npy header: '%s' is there twice", c->name, key);
    *seen = true;
    if (!take(c, ':')) return fv_fail(FV_E_FORMAT, "%s: .npy header: expected ':' after '%s'", c->name, key);
    if (seen == &header->has_shape) return take_shape(c, header);
    if (seen == &header->has_order) {
        header->fortran = take_word(c, "True");
        if (!header->fortran && !take_word(c, "False"))
            return fv_fail(FV_E_FORMAT, "%s: .npy header: 'fortran_order': expected True or False", c->name);
        return FV_OK;
    }
    skip_spaces(c);
    if (c->at < c->end && *c->at == '[')
        return fv_fail(FV_E_DTYPE, "%s: holds records of several fields, expected plain numbers", c->name);
    return take_string(c, "descr", header->descr, sizeof header->descr);
}

static fv_status parse_header(const char *name, const uint8_t *bytes, size_t count, struct header *header)
{
    size_t length, start;
    struct cursor c = {.name = name};

    *header = (struct header){0};
    if (count < 10 || memcmp(bytes, magic, sizeof magic) != 0)
        return fv_fail(FV_E_FORMAT, "%s: is not a .npy file (its first bytes are not \\x93NUMPY)", name);
    if ((bytes[6] != 1 && bytes[6] != 2) || bytes[7] != 0)
        return fv_fail(FV_E_FORMAT, "%s: .npy version: expected 1.0 or 2.0, got %d.%d", name, bytes[6], bytes[7]);
    start = bytes[6] == 1 ? 10 : 12;
    if (count < start) return fv_fail(FV_E_FORMAT, "%s: the .npy header is cut off", name);
    length = bytes[8] | (size_t)bytes[9] << 8;
    if (bytes[6] == 2) length |= (size_t)bytes[10] << 16 | (size_t)bytes[11] << 24;
    if (length > count - start)
        return fv_fail(FV_E_FORMAT, "%s: the .npy header says it is %zu bytes long, but the file ends after %zu", name,
                       length, count - start);
    header->data = start + length;
    c.at = (const char *)bytes + start;
    c.end = c.at + length;
    if (!take(&c, '{')) return fv_fail(FV_E_FORMAT, "%s: .npy header: expected '{'", name);
    while (!take(&c, '}')) {
        FV_TRY(take_entry(&c, header));
        if (take(&c, ',')) continue;
        if (!take(&c, '}')) return fv_fail(FV_E_FORMAT, "%s: .npy header: expected ',' or '}'", name);
        break;
    }
    skip_spaces(&c);
    if (c.at != c.end) return fv_fail(FV_E_FORMAT, "%s: .npy header: unexpected text after '}'", name);
    if (!header->has_descr || !header->has_order || !header->has_shape)
        return fv_fail(FV_E_FORMAT, "%s: .npy header: '%s' is missing", name,
                       !header->has_descr   ? "descr"
                       : !header->has_order ? "fortran_order"
                                            : "shape");
    return FV_OK;
}

static fv_status header_dtype(const char *name, const struct header *header, fv_dtype *dtype)
{
    const char *code = header->descr;

    if (*code == '>')
        return fv_fail(FV_E_DTYPE, "%s: numbers are big-endian ('%s'), expected little-endian", name, header->descr);
    if (*code == '<' || *code == '|' || *code == '=') code++;
    for (int i = 0; i < CODES; i++) {
        if (strcmp(code, codes[i].code) != 0) continue;
        *dtype = codes[i].dtype;
        return FV_OK;
    }
    return fv_fail(FV_E_DTYPE, "%s: type '%s': expected f2, f4, f8, i1, u1, b1, i2, u2, i4 or i8", name, header->descr);
}

fv_status fv_npy_parse(const char *name, const void *bytes, size_t count, fv_tensor *tensor, void **owned)
{
    struct header header;
    fv_dtype dtype = FV_F32, kept;
    int64_t elements = 1;
    const uint8_t *data;
    size_t size;

    *owned = NULL;
    FV_TRY(parse_header(name, bytes, count, &header));
    FV_TRY(header_dtype(name, &header, &dtype));
    if (header.fortran && header.rank > 1)
        return fv_fail(FV_E_FORMAT, "%s: is in Fortran order, expected C order (numpy.ascontiguousarray)", name);
    for (int d = 0; d < header.rank; d++)
        if (!fv_mul_i64(elements, header.dims[d], &elements))
            return fv_fail(FV_E_FORMAT, "%s: .npy header: 'shape' overflows at dimension %d", name, d);
    if (!fv_mul_size((size_t)elements, fv_dtype_size(dtype), &size) || size != count - header.data)
        return fv_fail(FV_E_FORMAT, "%s: %lld elements of '%s' need %zu bytes after the header, the file has %zu", name,
                       (long long)elements, header.descr, size, count - header.data);
    data = (const uint8_t *)bytes + header.data;
    kept = dtype == FV_F64 ? FV_F32 : dtype;
    FV_TRY(fv_alloc(owned, elements, fv_dtype_size(kept)));
    if (dtype != FV_F64) {
        if (size > 0) memcpy(*owned, data, size);
    } else {
        for (int64_t i = 0; i < elements; i++) {
            double value;
            memcpy(&value, data + i * 8, sizeof value); /* the header may leave the data unaligned */
            ((float *)*owned)[i] = (float)value;
        }
    }
    return fv_tensor_wrap(tensor, *owned, kept, header.rank, header.dims);
}

fv_status fv_npy_read(const char *path, fv_tensor *tensor, void **owned)
{
    const void *data;
    size_t size;
    fv_status status;

    *owned = NULL;
    FV_TRY(fv_file_map(path, &data, &size));
    status = size ? fv_npy_parse(path, data, size, tensor, owned) : fv_fail(FV_E_FORMAT, "%s: is empty", path);
    fv_file_unmap(data, size);
    return status;
}

/* ---- writing --------------------------------------------------------------------------------------------------- */

fv_status fv_npy_begin(const char *path, fv_dtype dtype, int rank, const int64_t *dims, fv_file_out *out)
{
    char text[512];
    int i = 0, length;

    while (i < CODES && codes[i].dtype != dtype)
        i++;
    if (i == CODES) return fv_fail(FV_E_DTYPE, "%s: .npy has no name for %s", path, fv_dtype_name(dtype));
    length = snprintf(text, sizeof text, "{'descr': '%c%s', 'fortran_order': False, 'shape': (",
                      fv_dtype_size(dtype) == 1 ? '|' : '<', codes[i].code);
    for (int d = 0; d < rank; d++)
        length += snprintf(text + length, sizeof text - (size_t)length, d + 1 < rank || rank > 1 ? "%lld, " : "%lld,",
                           (long long)dims[d]);
    if (rank > 1) length -= 2; /* the last ", " */
    length += snprintf(text + length, sizeof text - (size_t)length, "), }");
    while ((10 + length + 1) % 64 != 0)
        text[length++] = ' ';
    text[length++] = '\n';
    FV_TRY(fv_file_create(path, out));
    fwrite(magic, 1, sizeof magic, out->stream);
    fwrite((uint8_t[]){1, 0, (uint8_t)(length & 255), (uint8_t)(length >> 8)}, 1, 4, out->stream);
    fwrite(text, 1, (size_t)length, out->stream); /* the stream remembers failures until the commit */
    return FV_OK;
}

fv_status fv_npy_write(const char *path, const fv_tensor *tensor)
{
    fv_file_out out;

    FV_TRY(fv_npy_begin(path, tensor->dtype, tensor->rank, tensor->dims, &out));
    fv_tensor_write(tensor, out.stream);
    return fv_file_commit(&out);
}
