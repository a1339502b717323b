/* What the system refuses is an error of one stream: maps, memory, and the file that rows were moved to. */
#define _GNU_SOURCE
#include "streams.h"

/* ---- refusals -------------------------------------------------------------------------------------------------------
 */

/* Whatever call of the system is refused: rows are copied, or nothing has changed and the sentence says so. */
static void refused_maps_lose_nothing(void **state)
{
    static stream a, b;
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    bool refused = true;
    (void)state;

    for (long n = 1; refused; n++) {
        begin(&a, &o);
        begin(&b, &o);
        append(ctx, &a, 700);
        refuse_from(n);
        fv_status shared = fv_rows_fork(&b.rows, &a.rows);
        fv_status erased = shared == FV_OK ? fv_rows_erase(&b.rows, 1, 300, 10) : FV_OK;
        refused = calls >= n;
        refuse_from(0);
        assert_ok(shared);
        memcpy(b.row, a.row, sizeof b.row);
        memcpy(b.count, a.count, sizeof b.count);
        b.length = 700;
        if (erased == FV_OK) {
            b.count[1] -= 10;
            memmove(&b.row[1][300], &b.row[1][310], 390 * sizeof b.row[1][0]);
        } else {
            assert_int_equal(erased, FV_E_MEMORY);
            assert_non_null(strstr(fv_error(), "could not be copied"));
            check(&b);
            assert_fails(append_rows(ctx, &b.rows, 700, 1, 1), FV_E_MEMORY, "could not be copied");
            fv_rows_clear(&b.rows);
            memset(b.count, 0, sizeof b.count);
            b.length = 0;
        }
        append(ctx, &b, 5);
        append(ctx, &a, 5);
        check(&a);
        check(&b);
        end(&b);
        append(ctx, &a, 500);
        check(&a);
        end(&a);
        assert_int_equal(in_files(), 0);
    }
    assert_int_equal(fv_lender_count(0), 0);
    refuse_from(1); /* no files in memory: copies */
    fv_lender *lender;
    assert_fails(fv_lender_new(&lender), FV_E_UNSUPPORTED, "a file in memory");
    refuse_from(0);
    o.shared = false;
    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 30);
    assert_false(fv_rows_shares(&a.rows));
    assert_ok(fv_rows_share(&b.rows, &a.rows, 20));
    memcpy(b.row, a.row, sizeof b.row);
    b.count[0] = b.count[1] = 20;
    check(&b);
    end(&a);
    end(&b);
    fv_ctx_free(ctx);
}

static void refused_memory_loses_nothing(void **state)
{
    static stream a, b;
    static const int32_t wanted[] = {20, 25, 41};
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    bool failed = true;
    fv_offload *file;
    (void)state;

    assert_ok(fv_offload_new(NULL, &file));
    for (int64_t n = 1; failed; n++) {
        begin(&a, &o);
        begin(&b, &o);
        append(ctx, &a, 300);
        test_alloc_fail(n);
        fv_status shared = fv_rows_share(&b.rows, &a.rows, 200);
        fv_status offloaded = fv_rows_offload(&a.rows, file, 0, 10, 50);
        if (offloaded == FV_OK) fv_rows_prefetch(&a.rows, 0, wanted, 3);
        fv_status fetched = offloaded == FV_OK ? fv_rows_fetch(&a.rows, 0, wanted, 3) : FV_OK;
        failed = test_alloc_count() >= n;
        test_alloc_fail(0);
        assert_true(shared == FV_OK || shared == FV_E_MEMORY);
        assert_true(offloaded == FV_OK || offloaded == FV_E_MEMORY);
        assert_true(fetched == FV_OK || fetched == FV_E_MEMORY);
        for (int i = 10; i < 60; i++)
            a.row[0][i].away =
                offloaded == FV_OK && (fetched != FV_OK || (i != wanted[0] && i != wanted[1] && i != wanted[2]));
        check(&a);
        if (shared == FV_OK) {
            memcpy(b.row, a.row, sizeof b.row);
            for (int i = 0; i < 300; i++)
                b.row[0][i].away = false;
            b.count[0] = b.count[1] = 200;
        }
        check(&b);
        end(&a);
        end(&b);
    }
    fv_offload_drop(file);
    fv_ctx_free(ctx);
}

/* ---- the file -------------------------------------------------------------------------------------------------------
 */

/* The number that the next file gets. */
static int next_file(void)
{
    int file = open("/dev/null", O_RDONLY);

    close(file);
    return file;
}

static void a_spoilt_file_is_an_error_of_its_stream(void **state)
{
    static stream a, b;
    static const int32_t wanted[] = {100, 101, 150}, none[] = {5};
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    int number = next_file();
    fv_offload *file, *other;
    struct stat about;
    (void)state;

    assert_ok(fv_offload_new(NULL, &file));
    assert_ok(fv_offload_new("/tmp", &other));
    assert_int_equal(fstat(number, &about), 0);
    assert_int_equal(about.st_nlink, 0); /* nobody can delete it, and it stays with nobody */
    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 300);
    append(ctx, &b, 300);
    assert_fails(fv_rows_offload(&a.rows, NULL, 0, 0, 10), FV_E_ARGUMENT, "expected a file");
    for (int i = 100; i < 200; i++)
        a.row[0][i].away = b.row[0][i].away = true;
    assert_ok(fv_rows_offload(&a.rows, file, 0, 100, 100));
    assert_ok(fv_rows_offload(&b.rows, other, 0, 100, 100));
    assert_fails(fv_rows_fetch(&a.rows, 0, none, 1), FV_E_ARGUMENT, "position 5 is not among those in the file");

    /* a byte changes */
    char byte = 0x55;
    assert_int_equal(pwrite(number, &byte, 1, 150 * 96 * 2 - 100 * 96 * 2 + 7), 1);
    fv_rows_prefetch(&a.rows, 0, wanted, 3);
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted, 3), FV_E_IO, "was changed");
    check(&a);
    assert_ok(fv_rows_fetch(&a.rows, 0, wanted, 2));
    a.row[0][100].away = a.row[0][101].away = false;
    check(&a);
    /* it is cut, and written on behind the hole */
    assert_int_equal(ftruncate(number, 100), 0);
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted + 2, 1), FV_E_IO, "was cut");
    for (int i = 0; i < 50; i++)
        a.row[1][i].away = true;
    assert_ok(fv_rows_offload(&a.rows, NULL, 1, 0, 50));
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted + 2, 1), FV_E_IO, "was changed");
    check(&a);
    append(ctx, &a, 10); /* what is in memory goes on */
    check(&a);
    /* the other stream saw nothing */
    assert_ok(fv_rows_fetch(&b.rows, 0, wanted, 3));
    b.row[0][100].away = b.row[0][101].away = b.row[0][150].away = false;
    check(&b);
    end(&a);
    end(&b);
    fv_offload_drop(file);
    fv_offload_drop(other);
    assert_fails(fv_offload_new("/nowhere/at/all", &file), FV_E_IO, "/nowhere/at/all");
    fv_ctx_free(ctx);
}

static void a_full_disk_leaves_rows_in_memory(void **state)
{
    static stream a;
    fv_rows_options o = options(FV_F32);
    fv_ctx *ctx = test_ctx("cpu", 1);
    struct rlimit before, small;
    fv_offload *file;
    (void)state;

    o.shared = false;
    assert_ok(fv_offload_new(NULL, &file));
    begin(&a, &o);
    append(ctx, &a, 300);
    refuse_from(1);
    assert_fails(fv_rows_offload(&a.rows, file, 0, 0, 300), FV_E_IO, "No space left on device");
    refuse_from(0);
    check(&a);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 10000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    fv_status status = fv_rows_offload(&a.rows, file, 0, 0, 300);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(status, FV_E_IO);
    assert_non_null(strstr(fv_error(), "limit of 10000"));
    check(&a);
    assert_ok(fv_rows_offload(&a.rows, file, 0, 0, 300));
    for (int i = 0; i < 300; i++)
        a.row[0][i].away = true;
    check(&a);
    assert_ok(fv_rows_convert(ctx, &a.rows, FV_F16, FV_BF16));
    check(&a);
    fv_rows_clear(&a.rows);
    a.count[0] = a.count[1] = 0;
    check(&a);
    assert_int_equal(fv_offload_size(file), 0);
    end(&a);
    fv_offload_drop(file);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refused_maps_lose_nothing),
        cmocka_unit_test(refused_memory_loses_nothing),
        cmocka_unit_test(a_spoilt_file_is_an_error_of_its_stream),
        cmocka_unit_test(a_full_disk_leaves_rows_in_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
