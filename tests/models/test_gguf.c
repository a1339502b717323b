/* GGUF: what is in a file comes out; whatever is broken gives a sentence, never a crash. */
#include "support/support.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "support/gguf_writer.h"

static const char *const words[] = {"one", "", "three"};
static const int32_t numbers[] = {-1, 0, 7};
static const float reals[] = {0.5f, -2};

static void small_file(gguf_writer *w)
{
    static const float data[12] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};
    static const unsigned char block[36] = {0, 60, 1};
    uint64_t large = UINT64_MAX;
    int8_t small = -5;

    gguf_put_string(w, "general.architecture", "llama");
    gguf_put_u32(w, "count", 42);
    gguf_put_f32(w, "rate", 0.25f);
    gguf_put_bool(w, "switch", true);
    gguf_put_raw(w, "large", FV_GGUF_U64, &large, 8);
    gguf_put_raw(w, "small", FV_GGUF_I8, &small, 1);
    gguf_put_strings(w, "words", words, 3);
    gguf_put_array(w, "numbers", FV_GGUF_I32, numbers, 3);
    gguf_put_array(w, "reals", FV_GGUF_F32, reals, 2);
    gguf_put_tensor(w, "b", FV_F32, FV_DIMS(3, 4), data);
    gguf_put_tensor(w, "a", FV_Q4_0, FV_DIMS(2, 32), block);
}

static void check_small_file(const fv_gguf *g)
{
    int64_t number = 0, count;
    double real = 0;
    bool flag = false;
    fv_gguf_text text = {0}, *texts;
    fv_gguf_array array = {0};

    assert_ok(fv_gguf_int(g, "count", 0, 100, &number));
    assert_int_equal(number, 42);
    assert_ok(fv_gguf_int(g, "small", -10, 0, &number));
    assert_int_equal(number, -5);
    assert_ok(fv_gguf_int(g, "absent", 0, 1, &number));
    assert_int_equal(number, -5);
    assert_ok(fv_gguf_float(g, "rate", &real));
    assert_true(real == 0.25);
    assert_ok(fv_gguf_bool(g, "switch", &flag));
    assert_true(flag);
    assert_ok(fv_gguf_string(g, "general.architecture", &text));
    assert_true(fv_gguf_text_is(text, "llama"));
    assert_ok(fv_gguf_strings(g, "words", &texts, &count));
    assert_int_equal(count, 3);
    for (int i = 0; i < 3; i++)
        assert_true(fv_gguf_text_is(texts[i], words[i]));
    fv_free(texts);
    assert_ok(fv_gguf_get_array(g, "numbers", FV_GGUF_INTEGERS, &array));
    for (int i = 0; i < 3; i++)
        assert_int_equal(fv_gguf_int_at(&array, i), numbers[i]);
    assert_ok(fv_gguf_get_array(g, "reals", FV_GGUF_FLOATS, &array));
    assert_true(array.count == 2 && fv_gguf_float_at(&array, 1) == -2);

    const fv_gguf_tensor *t = fv_gguf_find(g, "b");
    assert_non_null(t);
    assert_true(t->tensor.rank == 2 && t->tensor.dims[0] == 3 && t->tensor.dims[1] == 4 && t->bytes == 48);
    assert_true(((const float *)t->tensor.data)[11] == 12);
    assert_true(((const unsigned char *)fv_gguf_find(g, "a")->tensor.data)[2] == 1);
    assert_null(fv_gguf_find(g, "c"));
    assert_int_equal(fv_gguf_tensors(g), 2);

    assert_fails(fv_gguf_int(g, "count", 0, 41, &number), FV_E_FORMAT, "expected 0 to 41, got 42");
    assert_fails(fv_gguf_int(g, "large", 0, INT64_MAX, &number), FV_E_FORMAT, "got 18446744073709551615");
    assert_fails(fv_gguf_int(g, "rate", 0, 41, &number), FV_E_FORMAT, "expected an integer, got f32");
    assert_fails(fv_gguf_float(g, "count", &real), FV_E_FORMAT, "got u32");
    assert_fails(fv_gguf_bool(g, "count", &flag), FV_E_FORMAT, "expected a bool");
    assert_fails(fv_gguf_string(g, "words", &text), FV_E_FORMAT, "got array of string");
    assert_fails(fv_gguf_get_array(g, "words", FV_GGUF_FLOATS, &array), FV_E_FORMAT, "an array of f32 f64");
    assert_fails(fv_gguf_require(g, "absent"), FV_E_FORMAT, "'absent' is missing");
}

static void what_was_written_is_read(void **state)
{
    (void)state;
    for (int version = 2; version <= 3; version++) {
        gguf_writer w = {.version = version};
        unsigned char *bytes;
        size_t size;
        fv_gguf *g;
        char path[] = "/tmp/fovea-gguf-XXXXXX";

        small_file(&w);
        gguf_bytes(&w, &bytes, &size);
        assert_ok(fv_gguf_parse("memory", bytes, size, &g));
        check_small_file(g);
        fv_gguf_close(g);
        close(mkstemp(path));
        gguf_save(&w, path);
        assert_ok(fv_gguf_open(path, &g));
        check_small_file(g);
        fv_gguf_close(g);
        unlink(path);
        fv_free(bytes);
        gguf_writer_free(&w);
    }
}

static volatile unsigned everything_was_read; /* so that no read is optimised away */

/* Asks a parsed file for everything it might hold, whatever that is now. */
static void use(const fv_gguf *g)
{
    static const char *const keys[] = {
        "general.architecture", "count", "rate", "switch", "large", "small", "words", "numbers", "reals"};
    unsigned sum = 0;

    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        int64_t number, count;
        double real;
        bool flag;
        fv_gguf_text text = {0}, *texts;
        fv_gguf_array array = {0};
        (void)fv_gguf_int(g, keys[k], INT64_MIN, INT64_MAX, &number);
        (void)fv_gguf_float(g, keys[k], &real);
        (void)fv_gguf_bool(g, keys[k], &flag);
        if (fv_gguf_string(g, keys[k], &text) == FV_OK)
            for (int64_t i = 0; i < text.length; i++)
                sum += (unsigned char)text.data[i];
        if (fv_gguf_strings(g, keys[k], &texts, &count) == FV_OK) {
            for (int64_t i = 0; i < count; i++)
                for (int64_t j = 0; j < texts[i].length; j++)
                    sum += (unsigned char)texts[i].data[j];
            fv_free(texts);
        }
        if (fv_gguf_get_array(g, keys[k], FV_GGUF_INTEGERS | 1u << FV_GGUF_BOOL, &array) == FV_OK)
            for (int64_t i = 0; i < array.count; i++)
                sum += (unsigned)fv_gguf_int_at(&array, i);
    }
    for (int64_t t = 0; t < fv_gguf_tensors(g); t++) {
        const fv_gguf_tensor *tensor = fv_gguf_tensor_at(g, t);
        for (size_t i = 0; i < tensor->bytes; i++)
            sum += ((const unsigned char *)tensor->tensor.data)[i];
    }
    everything_was_read = sum;
}

/* Parses a copy that ends exactly where its memory ends, so that a sanitizer sees a step too far. */
static fv_status parse_copy(const unsigned char *bytes, size_t size)
{
    unsigned char *copy = malloc(size ? size : 1);
    fv_gguf *g;
    fv_status status;

    memcpy(copy, bytes, size);
    status = fv_gguf_parse("broken", copy, size, &g);
    if (status == FV_OK) {
        use(g);
        fv_gguf_close(g);
    } else {
        assert_null(g);
        assert_true(strlen(fv_error()) > 0);
    }
    free(copy);
    return status;
}

static void every_truncation_is_an_error(void **state)
{
    gguf_writer w = {0};
    unsigned char *bytes;
    size_t size;
    (void)state;

    small_file(&w);
    gguf_bytes(&w, &bytes, &size);
    for (size_t length = 0; length < size; length++)
        if (parse_copy(bytes, length) == FV_OK) fail_msg("a file cut to %zu of %zu bytes was accepted", length, size);
    assert_int_equal(parse_copy(bytes, size), FV_OK);
    fv_free(bytes);
    gguf_writer_free(&w);
}

static void flipped_bits_never_crash(void **state)
{
    gguf_writer w = {0};
    fv_random random = fv_random_new(test_seed(), 1);
    unsigned char *bytes;
    size_t size, head;
    int refused = 0;
    (void)state;

    small_file(&w);
    gguf_bytes(&w, &bytes, &size);
    head = size - (size_t)w.data.length;
    for (size_t bit = 0; bit < head * 8; bit++) { /* every bit of the head alone, */
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        refused += parse_copy(bytes, size) != FV_OK;
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    assert_true(refused > (int)head);
    for (int round = 0; round < 5000; round++) { /* and some bytes at random */
        size_t at[4];
        unsigned char old[4];
        for (int i = 0; i < 4; i++) {
            at[i] = (size_t)fv_random_below(&random, (int64_t)head);
            old[i] = bytes[at[i]];
            bytes[at[i]] = (unsigned char)(fv_random_below(&random, 2) ? 255 : fv_random_u32(&random));
        }
        (void)parse_copy(bytes, size);
        for (int i = 3; i >= 0; i--)
            bytes[at[i]] = old[i];
    }
    fv_free(bytes);
    gguf_writer_free(&w);
}

/* A file of one key or tensor that is broken in one way. */
static void expect(gguf_writer *w, fv_status expected, const char *sentence)
{
    unsigned char *bytes;
    size_t size;

    gguf_bytes(w, &bytes, &size);
    assert_fails(parse_copy(bytes, size), expected, sentence);
    fv_free(bytes);
    gguf_writer_free(w);
}

static void add(fv_text *text, const void *bytes, int64_t count)
{
    fv_text_add(text, bytes, count);
}

static void lies_are_named(void **state)
{
    static const float data[4];
    const uint64_t huge = (uint64_t)1 << 62, two = 2;
    const uint32_t array = FV_GGUF_ARRAY;
    gguf_writer w = {0};
    (void)state;

    w = (gguf_writer){.key_count = INT64_MAX, .alignment = 8};
    expect(&w, FV_E_FORMAT, "a key at byte 24 would take 8 bytes, but the file ends at byte 24");
    w = (gguf_writer){.tensor_count = INT64_MAX, .alignment = 8};
    expect(&w, FV_E_FORMAT, "a tensor's name at byte 24");
    w.version = 1;
    expect(&w, FV_E_UNSUPPORTED, "expected 2 or 3");
    w.version = 0x03000000;
    expect(&w, FV_E_UNSUPPORTED, "little endian");
    gguf_put_raw(&w, "x", (fv_gguf_type)13, "", 1);
    expect(&w, FV_E_FORMAT, "key 'x': value type: expected 0 to 12, got 13");
    gguf_put_raw(&w, "x", FV_GGUF_STRING, &huge, 8);
    expect(&w, FV_E_FORMAT, "would take 4611686018427387904 bytes");
    gguf_put_raw(&w, "x", FV_GGUF_ARRAY, &(uint32_t){FV_GGUF_F64}, 4);
    add(&w.keys, &huge, 8);
    expect(&w, FV_E_FORMAT, "an array at byte");
    gguf_put_raw(&w, "x", FV_GGUF_ARRAY, &array, 4);
    for (int i = 0; i < 6; i++) {
        add(&w.keys, &two, 8);
        add(&w.keys, &array, 4);
    }
    expect(&w, FV_E_FORMAT, "more than 3 deep");
    gguf_put_u32(&w, "x", 1);
    gguf_put_u32(&w, "x", 2);
    expect(&w, FV_E_FORMAT, "key 'x' stands twice");
    gguf_put_u32(&w, "", 1);
    expect(&w, FV_E_FORMAT, "is empty");
    gguf_put_u32(&w, "general.alignment", 24);
    expect(&w, FV_E_FORMAT, "a power of two, got 24");
    gguf_put_u32(&w, "general.alignment", 4);
    expect(&w, FV_E_FORMAT, "expected 8 to 65536, got 4");
    gguf_put_tensor(&w, "t", FV_F32, FV_DIMS(4), data);
    gguf_put_tensor(&w, "t", FV_F32, FV_DIMS(4), data);
    expect(&w, FV_E_FORMAT, "tensor 't' stands twice");
}

/* A tensor description written by hand. */
static void put_info(gguf_writer *w, uint32_t rank, const uint64_t *dims, uint32_t type, uint64_t offset)
{
    const uint64_t length = 1;

    add(&w->infos, &length, 8);
    add(&w->infos, "t", 1);
    add(&w->infos, &rank, 4);
    add(&w->infos, dims, (int64_t)rank * 8);
    add(&w->infos, &type, 4);
    add(&w->infos, &offset, 8);
    add(&w->data, "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 16);
    w->tensor_count++;
}

static void lying_tensors_are_named(void **state)
{
    const uint64_t four[] = {4}, zero[] = {0}, wide[] = {(uint64_t)1 << 40, (uint64_t)1 << 40}, big[] = {1 << 20},
                   odd[] = {33, 1}, deep[] = {1, 1, 1, 1, 1}, negative[] = {UINT64_MAX};
    gguf_writer w = {0};
    (void)state;

    put_info(&w, 1, four, 0, 8);
    expect(&w, FV_E_FORMAT, "a multiple of 32, got 8");
    put_info(&w, 1, four, 0, 32);
    expect(&w, FV_E_FORMAT, "the download may be incomplete");
    put_info(&w, 1, four, 0, UINT64_MAX - 31);
    expect(&w, FV_E_FORMAT, "past the end of any file");
    put_info(&w, 1, big, 0, 0);
    expect(&w, FV_E_FORMAT, "tensor 't' would end at byte");
    put_info(&w, 1, zero, 0, 0);
    expect(&w, FV_E_FORMAT, "dimension 0 is 0");
    put_info(&w, 1, negative, 0, 0);
    expect(&w, FV_E_FORMAT, "dimension 0 is 18446744073709551615");
    put_info(&w, 2, wide, 0, 0);
    expect(&w, FV_E_FORMAT, "its dimensions overflow");
    put_info(&w, 2, odd, 2, 0);
    expect(&w, FV_E_FORMAT, "overflow");
    put_info(&w, 5, deep, 0, 0);
    expect(&w, FV_E_FORMAT, "rank of 1 to 4, got rank 5");
    put_info(&w, 0, deep, 0, 0);
    expect(&w, FV_E_FORMAT, "rank of 1 to 4, got rank 0");
    put_info(&w, 1, four, 16, 0);
    expect(&w, FV_E_UNSUPPORTED, "type 16 (IQ2_XXS)");
    put_info(&w, 1, four, 99, 0);
    expect(&w, FV_E_UNSUPPORTED, "type 99 (unknown)");
}

static void what_is_no_file_says_so(void **state)
{
    fv_gguf *g;
    char path[] = "/tmp/fovea-gguf-XXXXXX";
    (void)state;

    assert_fails(fv_gguf_open("/nonexistent/model.gguf", &g), FV_E_IO, "cannot be opened");
    assert_fails(fv_gguf_open("/tmp", &g), FV_E_IO, "is a directory");
    close(mkstemp(path));
    assert_fails(fv_gguf_open(path, &g), FV_E_FORMAT, "is empty");
    unlink(path);
}

static void failing_allocations_leave_nothing_behind(void **state)
{
    gguf_writer w = {0};
    unsigned char *bytes;
    size_t size;
    fv_gguf *g = NULL;
    fv_status status = FV_E_MEMORY;
    (void)state;

    small_file(&w);
    gguf_bytes(&w, &bytes, &size);
    for (int64_t nth = 1; nth < 100 && status != FV_OK; nth++) {
        test_alloc_fail(nth);
        status = fv_gguf_parse("memory", bytes, size, &g);
        test_alloc_fail(0);
        assert_true(status == FV_OK || status == FV_E_MEMORY);
    }
    assert_int_equal(status, FV_OK);
    fv_gguf_close(g);
    fv_free(bytes);
    gguf_writer_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_written_is_read),
        cmocka_unit_test(every_truncation_is_an_error),
        cmocka_unit_test(flipped_bits_never_crash),
        cmocka_unit_test(lies_are_named),
        cmocka_unit_test(lying_tensors_are_named),
        cmocka_unit_test(what_is_no_file_says_so),
        cmocka_unit_test(failing_allocations_leave_nothing_behind),
    };
    return cmocka_run_group_tests_name("gguf", tests, NULL, NULL);
}
