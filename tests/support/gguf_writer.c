#include "support/gguf_writer.h"

#include <stdio.h>

#include "support/support.h"

static void add_u32(fv_text *text, uint32_t value)
{
    fv_text_add(text, (const char *)&value, sizeof value);
}

static void add_u64(fv_text *text, uint64_t value)
{
    fv_text_add(text, (const char *)&value, sizeof value);
}

static void add_string(fv_text *text, const char *string)
{
    add_u64(text, strlen(string));
    fv_text_add(text, string, (int64_t)strlen(string));
}

static void start_key(gguf_writer *w, const char *key, fv_gguf_type type)
{
    add_string(&w->keys, key);
    add_u32(&w->keys, type);
    w->key_count++;
}

void gguf_put_raw(gguf_writer *w, const char *key, fv_gguf_type type, const void *value, int64_t bytes)
{
    start_key(w, key, type);
    fv_text_add(&w->keys, value, bytes);
}

void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value)
{
    gguf_put_raw(w, key, FV_GGUF_U32, &value, sizeof value);
}

void gguf_put_f32(gguf_writer *w, const char *key, float value)
{
    gguf_put_raw(w, key, FV_GGUF_F32, &value, sizeof value);
}

void gguf_put_bool(gguf_writer *w, const char *key, bool value)
{
    uint8_t byte = value;

    gguf_put_raw(w, key, FV_GGUF_BOOL, &byte, 1);
}

void gguf_put_string(gguf_writer *w, const char *key, const char *value)
{
    start_key(w, key, FV_GGUF_STRING);
    add_string(&w->keys, value);
}

void gguf_put_strings(gguf_writer *w, const char *key, const char *const *values, int64_t count)
{
    start_key(w, key, FV_GGUF_ARRAY);
    add_u32(&w->keys, FV_GGUF_STRING);
    add_u64(&w->keys, (uint64_t)count);
    for (int64_t i = 0; i < count; i++)
        add_string(&w->keys, values[i]);
}

void gguf_put_array(gguf_writer *w, const char *key, fv_gguf_type type, const void *values, int64_t count)
{
    static const int bytes[FV_GGUF_TYPES] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

    start_key(w, key, FV_GGUF_ARRAY);
    add_u32(&w->keys, type);
    add_u64(&w->keys, (uint64_t)count);
    fv_text_add(&w->keys, values, count * bytes[type]);
}

static uint32_t type_number(fv_dtype dtype)
{
    switch (dtype) {
    case FV_F32: return 0;
    case FV_F16: return 1;
    case FV_Q4_0: return 2;
    case FV_Q4_1: return 3;
    case FV_Q5_0: return 6;
    case FV_Q5_1: return 7;
    case FV_Q8_0: return 8;
    case FV_Q2_K: return 10;
    case FV_Q3_K: return 11;
    case FV_Q4_K: return 12;
    case FV_Q5_K: return 13;
    case FV_Q6_K: return 14;
    case FV_Q8_K: return 15;
    case FV_IQ4_NL: return 20;
    case FV_I32: return 26;
    case FV_BF16: return 30;
    default: fail_msg("the writer has no number for %s", fv_dtype_name(dtype)); return 0;
    }
}

static int64_t alignment(const gguf_writer *w)
{
    return w->alignment ? w->alignment : 32;
}

static void pad(fv_text *text, int64_t to)
{
    while (text->length % to)
        fv_text_add(text, "", 1);
}

void gguf_put_tensor(gguf_writer *w, const char *name, fv_dtype dtype, int rank, const int64_t *dims, const void *data)
{
    int64_t count = 1;
    size_t bytes;

    add_string(&w->infos, name);
    add_u32(&w->infos, (uint32_t)rank);
    for (int d = rank - 1; d >= 0; d--) {
        add_u64(&w->infos, (uint64_t)dims[d]);
        count *= dims[d];
    }
    add_u32(&w->infos, type_number(dtype));
    pad(&w->data, alignment(w));
    add_u64(&w->infos, (uint64_t)w->data.length);
    assert_ok(fv_dtype_bytes(dtype, count, &bytes));
    fv_text_add(&w->data, data, (int64_t)bytes);
    w->tensor_count++;
}

void gguf_bytes(const gguf_writer *w, unsigned char **bytes, size_t *size)
{
    fv_text all = {0};

    fv_text_add(&all, "GGUF", 4);
    add_u32(&all, (uint32_t)(w->version ? w->version : 3));
    add_u64(&all, (uint64_t)w->tensor_count);
    add_u64(&all, (uint64_t)w->key_count);
    fv_text_add(&all, fv_text_get(&w->keys), w->keys.length);
    fv_text_add(&all, fv_text_get(&w->infos), w->infos.length);
    pad(&all, alignment(w));
    fv_text_add(&all, fv_text_get(&w->data), w->data.length);
    assert_ok(fv_text_status(&all));
    assert_ok(fv_alloc((void **)bytes, all.length, 1));
    memcpy(*bytes, all.data, (size_t)all.length);
    *size = (size_t)all.length;
    fv_text_free(&all);
}

void gguf_save(const gguf_writer *w, const char *path)
{
    unsigned char *bytes;
    size_t size;

    gguf_bytes(w, &bytes, &size);
    FILE *file = fopen(path, "wb");
    if (!file || fwrite(bytes, 1, size, file) != size || fclose(file) != 0) fail_msg("%s: cannot be written", path);
    fv_free(bytes);
}

void gguf_writer_free(gguf_writer *w)
{
    fv_text_free(&w->keys);
    fv_text_free(&w->infos);
    fv_text_free(&w->data);
    *w = (gguf_writer){0};
}
