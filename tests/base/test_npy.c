/* .npy files: what comes back, every header NumPy may write, and hostile ones. */
#include "support/support.h"

#include <stdlib.h>
#include <unistd.h>

#include "base/memory.h"
#include "base/npy.h"
#include "base/text.h"

enum { ROOM = 4096 };

/* A file in memory: header text as given, then `count` bytes 1, 2, 3, ... */
static size_t make(char *file, int version, const char *header, size_t count)
{
    size_t length = strlen(header), start = version == 1 ? 10 : 12;

    memcpy(file, "\x93NUMPY", 6);
    file[6] = (char)version;
    file[7] = 0;
    for (size_t i = 8; i < start; i++)
        file[i] = (char)(length >> 8 * (i - 8));
    memcpy(file + start, header, length);
    for (size_t i = 0; i < count; i++)
        file[start + length + i] = (char)(i + 1);
    return start + length + count;
}

static fv_status parse(int version, const char *header, size_t count, fv_tensor *tensor, void **owned)
{
    char file[ROOM];
    size_t size = make(file, version, header, count);
    void *exact = malloc(size); /* so that a sanitizer sees every byte read behind the end */

    memcpy(exact, file, size);
    fv_status status = fv_npy_parse("x.npy", exact, size, tensor, owned);
    free(exact);
    return status;
}

static void check_accepted(int version, const char *header, size_t count, fv_dtype dtype, const char *shape)
{
    fv_tensor tensor;
    void *owned;

    assert_ok(parse(version, header, count, &tensor, &owned));
    assert_int_equal(tensor.dtype, dtype);
    assert_string_equal(fv_shape_text(&tensor), shape);
    fv_free(owned);
}

static void headers_of_any_form_are_read(void **state)
{
    (void)state;
    check_accepted(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24, FV_F32, "[2,3]");
    check_accepted(2, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }      \n", 24, FV_F32, "[2,3]");
    check_accepted(1, "{\"shape\":(2,3),\"fortran_order\":False,\"descr\":\"<f2\"}", 12, FV_F16, "[2,3]");
    check_accepted(1, "{ 'shape' : ( 6 , ) , 'descr' : '|u1' , 'fortran_order' : False }", 6, FV_U8, "[6]");
    check_accepted(1, "{'descr': '|b1', 'fortran_order': False, 'shape': (6,)}", 6, FV_U8, "[6]");
    check_accepted(1, "{'descr': '<i8', 'fortran_order': False, 'shape': ()}", 8, FV_I64, "[]");
    check_accepted(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (2,)}", 16, FV_F32, "[2]");
    check_accepted(1, "{'descr': '<i4', 'fortran_order': True, 'shape': (2,)}", 8, FV_I32, "[2]");
    check_accepted(1, "{'descr': '<i2', 'fortran_order': False, 'shape': (0, 5)}", 0, FV_I16, "[0,5]");
}

static void hostile_headers_are_refused(void **state)
{
    static const struct {
        const char *header;
        size_t count;
        fv_status status;
        const char *words;
    } cases[] = {
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", 20, FV_E_FORMAT, "need 24 bytes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}", 28, FV_E_FORMAT, "need 24 bytes"},
        {"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3)}", 24, FV_E_FORMAT, "Fortran"},
        {"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3)}", 24, FV_E_DTYPE, "big-endian"},
        {"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3)}", 48, FV_E_DTYPE, "'|O'"},
        {"{'descr': '<c8', 'fortran_order': False, 'shape': (2, 3)}", 48, FV_E_DTYPE, "'<c8'"},
        {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (2,)}", 8, FV_E_DTYPE, "several fields"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8, FV_E_FORMAT, "overflows"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", 8, FV_E_FORMAT, "overflows"},
        {"{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904,)}", 8, FV_E_FORMAT, "bytes"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", 8, FV_E_FORMAT, "whole numbers"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (2)}", 8, FV_E_FORMAT, "expected ','"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1)}", 4, FV_E_SHAPE, "at most 6"},
        {"{'descr': '<f4', 'fortran_order': False}", 4, FV_E_FORMAT, "'shape' is missing"},
        {"{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}", 4, FV_E_FORMAT, "twice"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': (), 'x': 1}", 4, FV_E_FORMAT, "got 'x'"},
        {"{'descr': '<f4', 'fortran_order': 0, 'shape': ()}", 4, FV_E_FORMAT, "True or False"},
        {"{'descr': '<f4", 4, FV_E_FORMAT, "closing quote"},
        {"{'descr': '<f4444444444444444'", 4, FV_E_FORMAT, "too long"},
        {"{'descr' '<f4'}", 4, FV_E_FORMAT, "expected ':'"},
        {"{'descr': '<f4', 'fortran_order': False, 'shape': ()} more", 4, FV_E_FORMAT, "behind"},
        {"", 4, FV_E_FORMAT, "expected '{'"},
        {"{", 4, FV_E_FORMAT, "quoted"},
    };
    fv_tensor tensor;
    void *owned;
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *words = strcmp(cases[i].words, "behind") == 0 ? "unexpected text" : cases[i].words;
        assert_fails(parse(1, cases[i].header, cases[i].count, &tensor, &owned), cases[i].status, words);
        assert_null(owned);
    }
    assert_fails(parse(3, "{}", 0, &tensor, &owned), FV_E_FORMAT, "version");
    assert_fails(fv_npy_parse("x", "\x93NUMPY\1\0\xff\xff{", 11, &tensor, &owned), FV_E_FORMAT, "65535 bytes long");
    assert_fails(fv_npy_parse("x", "\x93NUMPY\2\0\1\0", 10, &tensor, &owned), FV_E_FORMAT, "cut off");
    assert_fails(fv_npy_parse("x", "PK", 2, &tensor, &owned), FV_E_FORMAT, "not a .npy");
}

/* Every prefix and every flipped byte of a good file gives a tensor or a sentence. */
static void damaged_files_never_crash(void **state)
{
    char good[ROOM];
    size_t size = make(good, 1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n", 24);
    fv_random random = fv_random_new(test_seed(), 7);
    (void)state;

    for (size_t cut = 0; cut < size; cut++) {
        fv_tensor tensor;
        void *owned, *exact = malloc(cut + 1);
        memcpy(exact, good, cut);
        assert_true(fv_npy_parse("x", exact, cut, &tensor, &owned) != FV_OK);
        free(exact);
    }
    for (int round = 0; round < 20000; round++) {
        fv_tensor tensor;
        void *owned, *copy = malloc(size);
        memcpy(copy, good, size);
        for (int64_t flips = 1 + fv_random_below(&random, 3); flips > 0; flips--)
            ((char *)copy)[fv_random_below(&random, (int64_t)size)] = (char)fv_random_u32(&random);
        if (fv_npy_parse("x", copy, size, &tensor, &owned) == FV_OK) fv_free(owned);
        free(copy);
    }
}

static void what_is_written_is_read_again(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(3, 4, 5)), back, turned = fv_permuted(&x, (const int[]){2, 0, 1});
    char path[] = "/tmp/fovea-npy-XXXXXX";
    void *owned;
    (void)state;

    close(mkstemp(path));
    assert_ok(fv_npy_write(path, &turned));
    assert_ok(fv_npy_read(path, &back, &owned));
    assert_string_equal(fv_shape_text(&back), "[5,3,4]");
    for (int64_t n = 0; n < 60; n++)
        assert_true(((float *)back.data)[n] == ((float *)x.data)[n % 12 * 5 + n / 12]);
    fv_free(owned);
    for (int64_t n = 1; n <= 6; n++) { /* running out of memory leaves nothing behind */
        test_alloc_fail(n);
        fv_status status = fv_npy_read(path, &back, &owned);
        test_alloc_fail(0);
        if (status == FV_OK)
            fv_free(owned);
        else
            assert_int_equal(status, FV_E_MEMORY);
    }
    unlink(path);
    assert_fails(fv_npy_read(path, &back, &owned), FV_E_IO, "cannot be opened");
    x.dtype = FV_BF16;
    assert_fails(fv_npy_write(path, &x), FV_E_DTYPE, "bf16");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(headers_of_any_form_are_read),
        cmocka_unit_test(hostile_headers_are_refused),
        cmocka_unit_test(damaged_files_never_crash),
        cmocka_unit_test(what_is_written_is_read_again),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
