/* Orders of tokens: every token once, neighbours on a curve are neighbours on the grid, rows come back to where they
 * were. */
#include "support/support.h"

#include <stdlib.h>

#include "attention/sparse/order.h"
#include "support/tensors.h"

static void check_permutation(const fv_order *order)
{
    int64_t tokens = order->order.dims[2], lists = order->order.dims[0] * order->order.dims[1];

    for (int64_t n = 0; n < lists * tokens; n++) {
        int32_t token = ((int32_t *)order->order.data)[n];
        assert_true(token >= 0 && token < tokens);
        assert_int_equal(((int32_t *)order->place.data)[n / tokens * tokens + token], n % tokens);
    }
}

static int64_t distance(const fv_tuple *grid, int64_t a, int64_t b)
{
    int64_t sum = 0;

    for (int d = grid->count - 1; d >= 0; d--, a /= grid->items[d + 1], b /= grid->items[d + 1])
        sum += labs(a % grid->items[d] - b % grid->items[d]);
    return sum;
}

static void curves_fill_grids(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    (void)state;

    for (int64_t cells = 0; cells < 9 * 9 * 9; cells++) {
        fv_mark mark = fv_scratch_mark(ctx);
        fv_tuple grid = {3, {1 + cells / 81, 1 + cells / 9 % 9, 1 + cells % 9}};
        int64_t n = grid.items[0] * grid.items[1] * grid.items[2];
        bool even = true;
        fv_order order;
        for (int a = 0; a < 3; a++)
            even = even && (grid.items[a] % 2 == 0 || grid.items[a] == 1);
        if (grid.items[0] == 1 && cells % 2) { /* the same with fewer axes */
            grid = (fv_tuple){2, {grid.items[1], grid.items[2]}};
            if (grid.items[0] == 1) grid = (fv_tuple){1, {grid.items[1]}};
        }
        assert_ok(fv_order_curve(ctx, &grid, n + 3, &order));
        check_permutation(&order);
        const int32_t *token = order.order.data;
        assert_int_equal(token[0], 0);
        for (int t = 0; t < 3; t++)
            assert_int_equal(token[n + t], n + t); /* what stands behind the grid */
        for (int64_t t = 1; t < n && even; t++)
            if (distance(&grid, token[t - 1], token[t]) != 1)
                fail_msg("grid %d x %d x %d: token %d follows %d", (int)grid.items[0], (int)grid.items[1],
                         (int)grid.items[2], token[t], token[t - 1]);
        fv_scratch_release(ctx, mark);
    }
    fv_ctx_free(ctx);
}

static void curves_as_they_were_published(void **state)
{
    static const int32_t square[] = {0, 1, 5, 4, 8, 12, 13, 9, 10, 14, 15, 11, 7, 6, 2, 3};
    static const int32_t box[] = {0,  20, 21, 1,  6,  26, 25, 5,  10, 30, 11, 31, 36, 16, 15, 35, 55, 56, 51, 50,
                                  45, 40, 41, 46, 47, 48, 42, 43, 44, 49, 54, 59, 39, 34, 33, 38, 58, 53, 52, 32,
                                  57, 37, 17, 12, 13, 18, 19, 14, 9,  29, 28, 8,  7,  27, 22, 2,  3,  23, 24, 4};
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_order order;
    (void)state;

    assert_ok(fv_order_curve(ctx, &(fv_tuple){2, {4, 4}}, 16, &order));
    assert_memory_equal(order.order.data, square, sizeof square);
    assert_ok(fv_order_curve(ctx, &(fv_tuple){3, {3, 4, 5}}, 60, &order));
    assert_memory_equal(order.order.data, box, sizeof box);
    fv_ctx_free(ctx);
}

static void tiles_come_one_after_the_other(void **state)
{
    static const int32_t expected[] = {0, 1, 5, 6, 2, 3, 7, 8, 4, 9, 10, 11, 12, 13, 14, 15};
    static const int64_t tile[] = {1, 2, 2};
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tuple grid = {2, {3, 5}};
    fv_order order;
    (void)state;

    assert_ok(fv_order_tiles(ctx, &grid, tile, 16, &order));
    check_permutation(&order);
    assert_memory_equal(order.order.data, expected, sizeof expected);
    fv_ctx_free(ctx);
}

/* Tokens about three far points, mixed; two that are not to be moved. */
static void clusters_are_found(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        fv_random random = fv_random_new(test_seed(), 4);
        fv_tensor x = test_random(ctx, 1, FV_DIMS(2, 1, 60, 8));
        int kind[2][60], at[2] = {0, 0};
        fv_order order;
        for (int n = 0; n < 120; n++) {
            kind[n / 60][n % 60] = n % 60 % 20 == 0 ? n % 60 / 20 : (int)fv_random_below(&random, 3);
            ((float *)x.data)[n * 8 + kind[n / 60][n % 60]] += 40;
        }
        assert_ok(fv_order_clusters(ctx, &x, 3, 62, &order));
        check_permutation(&order);
        for (int b = 0; b < 2; b++) {
            const int32_t *token = (int32_t *)order.order.data + b * 62;
            for (int n = 1; n < 60; n++) {
                at[b] += kind[b][token[n]] != kind[b][token[n - 1]];
                if (kind[b][token[n]] == kind[b][token[n - 1]]) assert_true(token[n] > token[n - 1]);
            }
            assert_int_equal(at[b], 2); /* three runs */
            assert_true(token[60] == 60 && token[61] == 61);
        }
        fv_ctx_free(ctx);
    }
}

static void rows_come_back(void **state)
{
    static const int64_t shapes[][2] = {{1, 1}, {2, 1}, {1, 3}, {2, 3}};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int s = 0; s < 4; s++) {
            fv_ctx *ctx = test_ctx(test_devices[d], 2);
            fv_random random = fv_random_new(test_seed(), 5);
            fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, 3, 17, 5)), sorted, back, numbers, again;
            int32_t keys[6 * 17];
            double expected[2 * 3 * 17 * 5];
            fv_order order;
            for (int n = 0; n < 6 * 17; n++)
                keys[n] = (int32_t)fv_random_below(&random, 4);
            assert_ok(fv_order_by_key(ctx, keys, shapes[s][0], shapes[s][1], 17, 4, &order, NULL));
            check_permutation(&order);
            assert_ok(fv_order_rows(ctx, &order.order, &x, &sorted));
            for (int64_t n = 0; n < 510; n++) {
                int64_t row = n / 5, h = row / 17 % 3, b = row / 51,
                        list = (s & 1 ? b : 0) * shapes[s][1] + (s & 2 ? h : 0);
                int32_t token = ((int32_t *)order.order.data)[list * 17 + row % 17];
                expected[n] = test_element(&x, ((b * 3 + h) * 17 + token) * 5 + n % 5);
            }
            test_close("by place", &sorted, expected, 0);
            for (int64_t n = 0; n < 510; n++)
                expected[n] = test_element(&x, n);
            back = test_strided(ctx, 1, FV_DIMS(2, 3, 17, 5));
            assert_ok(fv_order_back(ctx, &order, &sorted, &back));
            test_close("back", &back, expected, 0);
            sorted = fv_slice(&sorted, 3, 0, 1); /* numbers: one of each row */
            assert_ok(fv_tensor_new(ctx, &numbers, FV_F32, FV_DIMS(2, 3, 17)));
            for (int n = 0; n < 102; n++)
                ((float *)numbers.data)[n] = (float)test_element(&sorted, n), expected[n] = test_element(&x, n * 5);
            again = test_strided(ctx, 1, FV_DIMS(2, 3, 17));
            assert_ok(fv_order_back(ctx, &order, &numbers, &again));
            test_close("numbers", &again, expected, 0);
            fv_ctx_free(ctx);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(curves_fill_grids),
        cmocka_unit_test(curves_as_they_were_published),
        cmocka_unit_test(tiles_come_one_after_the_other),
        cmocka_unit_test(clusters_are_found),
        cmocka_unit_test(rows_come_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
