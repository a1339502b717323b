/* A pool of tensors: what is mapped is what is needed and a little ahead; what is given back serves the next one; rows
 * in it are the rows of memory of their own, bit for bit. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/context.h"
#include "cache/rows.h"
#include "ops/ops.h"
#include "support/support.h"

enum { PAGE = 4096, ROW = 512, PER_PAGE = PAGE / ROW };

static fv_pages *pool_of(bool async, bool deferred, int64_t lookahead, int64_t limit)
{
    fv_pages *pool;

    assert_ok(fv_pages_new(
        &(fv_pages_options){.page = PAGE, .async = async, .deferred = deferred, .lookahead = lookahead, .limit = limit},
        &pool));
    return pool;
}

/* Bytes of a tensor that the system has. */
static size_t resident(const fv_slab *slab)
{
    unsigned char pages[64];
    size_t bytes = 0, all = fv_slab_reserved(slab);

    assert_true(all / PAGE <= sizeof pages);
    assert_int_equal(mincore(fv_slab_memory(slab), all, pages), 0);
    for (size_t p = 0; p < all / PAGE; p++)
        bytes += pages[p] & 1 ? PAGE : 0;
    return bytes;
}

static sigjmp_buf back;

static void faulted(int number)
{
    (void)number;
    siglongjmp(back, 1);
}

/* Whether reading a byte faults. */
static bool faults(const char *at)
{
    struct sigaction action = {.sa_handler = faulted}, before;
    bool fault;

    sigaction(SIGSEGV, &action, &before);
    fault = sigsetjmp(back, 1) != 0;
    if (!fault) (void)*(const volatile char *)at;
    sigaction(SIGSEGV, &before, NULL);
    return fault;
}

static void pages_are_mapped_as_rows_need_them(void **state)
{
    fv_pages *pool = pool_of(false, false, 0, 0);
    fv_pages_stats stats;
    fv_slab *slab;
    (void)state;

    assert_ok(fv_slab_take(pool, ROW, 100, 0, &slab));
    assert_int_equal(fv_slab_reserved(slab), 13 * PAGE);
    for (int64_t rows = 1; rows <= 100; rows++) {
        size_t need = (size_t)(rows + PER_PAGE - 1) / PER_PAGE * PAGE;
        assert_ok(fv_slab_map(slab, rows));
        assert_int_equal(fv_slab_mapped(slab), need);
        assert_int_equal(resident(slab), need);
        assert_false(faults(fv_slab_memory(slab) + need - 1));
        if (need < fv_slab_reserved(slab)) assert_true(faults(fv_slab_memory(slab) + need));
    }
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.calls, 13);
    assert_int_equal(stats.mapped, 13 * PAGE);
    assert_fails(fv_slab_map(slab, 105), FV_E_MEMORY, "105 rows do not fit");
    fv_slab_shrink(slab, 9);
    assert_int_equal(fv_slab_mapped(slab), 2 * PAGE);
    assert_int_equal(resident(slab), 2 * PAGE);
    assert_true(faults(fv_slab_memory(slab) + 2 * PAGE));
    fv_slab_drop(slab);
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.mapped, 0);
    fv_pages_drop(pool);
}

static void nobody_waits_where_the_thread_maps_ahead(void **state)
{
    fv_pages *pool = pool_of(true, true, 9, 0);
    fv_pages_stats stats;
    fv_slab *slab;
    (void)state;

    assert_ok(fv_slab_take(pool, ROW, 400, 0, &slab));
    assert_ok(fv_slab_map(slab, 50)); /* a prompt */
    for (int64_t rows = 51; rows <= 400; rows++) {
        fv_pages_measure(pool, &stats); /* once the thread rests, as it does while a step computes */
        assert_true(stats.mapped >= (size_t)(fv_min(rows + 8, 400) * ROW));
        assert_true(stats.mapped <= (size_t)(fv_min(rows + 8 + 2 * PER_PAGE, 400) * ROW));
        assert_ok(fv_slab_map(slab, rows));
    }
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.calls, 1);
    assert_true(stats.ahead >= 42); /* 50 pages less the 7 of the prompt */
    fv_slab_drop(slab);
    fv_pages_drop(pool);
}

static void tensors_given_back_serve_the_next(void **state)
{
    fv_pages *pool = pool_of(false, true, 0, 0);
    fv_slab *small, *large, *slab;
    fv_pages_stats stats;
    (void)state;

    assert_ok(fv_slab_take(pool, ROW, 100, 0, &small));
    assert_ok(fv_slab_take(pool, ROW, 100, 0, &large));
    assert_ok(fv_slab_map(small, 20));
    assert_ok(fv_slab_map(large, 80));
    memset(fv_slab_memory(large), 7, 80 * ROW);
    fv_slab_drop(small);
    fv_slab_drop(large);
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.idle, 13 * PAGE);
    assert_int_equal(stats.mapped, 13 * PAGE);
    assert_ok(fv_slab_take(pool, ROW, 100, 60, &slab)); /* the one with enough pages */
    assert_int_equal(fv_slab_mapped(slab), 10 * PAGE);
    assert_ok(fv_slab_map(slab, 80));
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.calls, 2); /* none for the successor */
    assert_int_equal(stats.reused, 1);
    fv_slab_drop(slab);
    assert_ok(fv_slab_take(pool, ROW, 100, 5, &slab)); /* not more than it needs */
    assert_int_equal(fv_slab_mapped(slab), 3 * PAGE);
    assert_ok(fv_slab_take(pool, ROW * 2, 100, 5, &large)); /* of another size: a new one */
    assert_int_equal(fv_slab_mapped(large), 0);
    fv_slab_drop(large);
    fv_slab_drop(slab);
    fv_pages_drop(pool);
}

static void a_full_pool_takes_pages_of_idle_tensors(void **state)
{
    fv_pages *pool = pool_of(false, true, 0, 10 * PAGE);
    fv_pages_stats stats;
    fv_slab *a, *b;
    (void)state;

    assert_ok(fv_slab_take(pool, ROW, 100, 0, &a));
    assert_ok(fv_slab_map(a, 6 * PER_PAGE));
    assert_ok(fv_slab_take(pool, ROW, 50, 0, &b));
    assert_fails(fv_slab_map(b, 5 * PER_PAGE), FV_E_MEMORY, "do not fit beside 24576 of at most 40960");
    assert_int_equal(fv_slab_mapped(b), 0);
    assert_ok(fv_slab_map(b, 4 * PER_PAGE));
    fv_slab_drop(a);
    assert_ok(fv_slab_map(b, 5 * PER_PAGE));
    fv_pages_measure(pool, &stats);
    assert_int_equal(stats.idle, 0);
    assert_int_equal(stats.mapped, 5 * PAGE);
    fv_slab_drop(b);
    fv_pages_drop(pool);
}

/* ---- rows ------------------------------------------------------------------------------------------------------- */

enum { HEADS = 3, D = 64, E = 32, CAPACITY = 400, LAYERS = 4 };

static fv_rows_options options(fv_dtype type, fv_pages *pool)
{
    return (fv_rows_options){.heads = HEADS,
                             .key_dim = D,
                             .value_dim = E,
                             .capacity = CAPACITY,
                             .key_type = type,
                             .value_type = type,
                             .pages = pool};
}

static void same_rows(const fv_rows *a, const fv_rows *b)
{
    for (int64_t g = 0; g < HEADS; g++) {
        fv_tensor x[2], y[2];
        int64_t count = fv_rows_count(a, g);
        assert_int_equal(fv_rows_count(b, g), count);
        assert_memory_equal(fv_rows_positions(a, g), fv_rows_positions(b, g), (size_t)count * sizeof(int32_t));
        fv_rows_view(a, g, 1, &x[0], &x[1]);
        fv_rows_view(b, g, 1, &y[0], &y[1]);
        for (int side = 0; side < 2; side++)
            for (int64_t i = 0; i < count; i++)
                assert_memory_equal(fv_slice(&x[side], 2, i, 1).data, fv_slice(&y[side], 2, i, 1).data,
                                    a->side[side].row_bytes);
    }
}

/* The same life, in memory of their own and in a pool's tensors. */
static void live(fv_ctx *ctx, fv_rows *rows, int layers, fv_random *random, int64_t *position)
{
    for (int l = 0; l < layers; l++) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t n = 1 + fv_random_below(random, 20), g = fv_random_below(random, HEADS), most = 0;
        fv_tensor k = test_random(ctx, 1, FV_DIMS(1, HEADS, n, D)), v = test_random(ctx, 1, FV_DIMS(1, HEADS, n, E));
        static int32_t keep[CAPACITY];
        int64_t count = fv_rows_count(&rows[l], g), kept = 0, from = fv_random_below(random, count + 1);
        int64_t gone = fv_random_below(random, count - from + 1);
        int what = (int)fv_random_below(random, 6);
        for (int64_t h = 0; h < HEADS; h++)
            most = fv_max(most, fv_rows_count(&rows[l], h));
        for (int64_t i = 0; i < count; i++)
            if (fv_random_below(random, 4)) keep[kept++] = (int32_t)i;
        for (int twin = l; twin < 2 * layers; twin += layers) {
            if (what == 0) assert_ok(fv_rows_erase(&rows[twin], g, from, gone));
            if (what == 1) assert_ok(fv_rows_keep(&rows[twin], g, keep, kept));
            if (what > 1 && most + n <= CAPACITY) assert_ok(fv_rows_append(ctx, &rows[twin], &k, &v, position[l]));
        }
        if (what > 1 && most + n <= CAPACITY) position[l] += n;
        same_rows(&rows[l], &rows[l + layers]);
        fv_scratch_release(ctx, mark);
    }
}

static void rows_in_a_pool_are_the_same_rows(void **state)
{
    static const fv_dtype types[] = {FV_F16, FV_Q8_0, FV_F32, FV_Q4_0, FV_BF16};
    fv_random random = fv_random_new(test_seed(), 7700);
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    for (int life = 0; life < 20; life++) {
        int layers = life % 2 ? LAYERS : 1; /* in one tensor */
        fv_pages *pool = pool_of(life % 4 < 2, life % 3 > 0, 9, 0);
        fv_rows_options own = options(types[life % 5], NULL), in_pool = options(types[life % 5], pool);
        fv_rows rows[2 * LAYERS], copy;
        int64_t position[LAYERS] = {0};
        fv_rows_bytes bytes;
        for (int l = 0; l < layers; l++) {
            assert_ok(fv_rows_new(&rows[l], &own));
            in_pool.layers = layers;
            in_pool.layer = l;
            in_pool.beside = l > 0 ? &rows[layers] : NULL;
            assert_ok(fv_rows_new(&rows[layers + l], &in_pool));
        }
        fv_pages_drop(pool); /* its tensors hold it */
        for (int n = 0; n < 40; n++)
            live(ctx, rows, layers, &random, position);
        fv_rows_measure(&rows[layers], &bytes);
        assert_true(bytes.committed % PAGE == 0 && bytes.committed >= bytes.used && bytes.committed <= bytes.reserved);
        in_pool.layers = 1;
        in_pool.layer = 0;
        in_pool.beside = NULL;
        assert_ok(fv_rows_new(&copy, &in_pool));
        assert_ok(fv_rows_fork(&copy, &rows[layers]));
        same_rows(&rows[layers], &copy);
        assert_ok(fv_rows_convert(ctx, &copy, FV_F32, FV_F32));
        assert_ok(fv_rows_convert(ctx, &rows[0], FV_F32, FV_F32));
        same_rows(&rows[0], &copy);
        fv_rows_free(&copy);
        for (int l = 0; l < 2 * layers; l++)
            fv_rows_free(&rows[l]);
    }
    fv_ctx_free(ctx);
}

static void refusals_leak_nothing(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_status status = FV_E_MEMORY;
    (void)state;

    for (int64_t n = 1; status != FV_OK; n++) {
        fv_rows rows;
        fv_pages *pool;
        test_alloc_fail(n);
        status = fv_pages_new(&(fv_pages_options){.page = PAGE, .deferred = true}, &pool);
        if (status == FV_OK) {
            fv_rows_options o = options(FV_F16, pool);
            status = fv_rows_new(&rows, &o);
            if (status == FV_OK) fv_rows_free(&rows);
            fv_pages_drop(pool);
        }
        test_alloc_fail(0);
        assert_true(status == FV_OK || status == FV_E_MEMORY);
    }
    fv_pages *pool;
    assert_fails(fv_pages_new(&(fv_pages_options){.page = 5000}, &pool), FV_E_USAGE, "a power of two");
    pool = pool_of(false, false, 0, 3 * PAGE);
    fv_rows_options o = options(FV_F16, pool);
    fv_tensor k = test_random(ctx, 1, FV_DIMS(1, HEADS, 40, D)), v = test_random(ctx, 1, FV_DIMS(1, HEADS, 40, E));
    fv_rows rows;
    assert_ok(fv_rows_new(&rows, &o));
    fv_tensor few = fv_slice(&k, 2, 0, 8), few_v = fv_slice(&v, 2, 0, 8);
    assert_ok(fv_rows_append(ctx, &rows, &few, &few_v, 0));
    assert_fails(fv_rows_append(ctx, &rows, &k, &v, 8), FV_E_MEMORY, "the page pool");
    assert_int_equal(fv_rows_count(&rows, 0), 8);
    fv_rows_free(&rows);
    fv_pages_drop(pool);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_mapped_as_rows_need_them),
        cmocka_unit_test(nobody_waits_where_the_thread_maps_ahead),
        cmocka_unit_test(tensors_given_back_serve_the_next),
        cmocka_unit_test(a_full_pool_takes_pages_of_idle_tensors),
        cmocka_unit_test(rows_in_a_pool_are_the_same_rows),
        cmocka_unit_test(refusals_leak_nothing),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
