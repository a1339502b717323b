/* Primitives that move or reduce rows, and selection, against naive loops; what they refuse, and in which words. */
#include "support/tensors.h"

#include <math.h>
#include <stdlib.h>

#include "ops/ops.h"

/* f32 storage of double sums, or f32 sums of up to 40 terms of size 1 */
#define TOLERANCE 4e-6

/* ---- pooling --------------------------------------------------------------------------------------------------- */

static bool in_cell(const fv_pool_args *p, int64_t m, int64_t row)
{
    int64_t stride = p->stride ? p->stride : p->block;

    if (p->start) return row >= p->start[m] && row < p->start[m + 1];
    if (!p->grid_height) return row >= m * stride && row < m * stride + p->block;
    double y = (double)(row / p->grid_width), x = (double)(row % p->grid_width);
    double i = (double)(m / p->out_width), j = (double)(m % p->out_width);
    double tall = (double)p->grid_height / (double)p->out_height, wide = (double)p->grid_width / (double)p->out_width;
    return y >= floor(i * tall + 1e-9) && y < ceil((i + 1) * tall - 1e-9) && x >= floor(j * wide + 1e-9) &&
           x < ceil((j + 1) * wide - 1e-9);
}

static void compare_pool(fv_ctx *ctx, fv_pool_args p, int64_t rows, int64_t cells)
{
    for (int kind = FV_POOL_MEAN; kind <= FV_POOL_SUM; kind++) {
        double *expected = test_doubles(6 * cells * 5);
        p.kind = (fv_pool_kind)kind;
        p.x = test_strided(ctx, 1, FV_DIMS(2, 3, rows, 5));
        p.out = test_strided(ctx, 1, FV_DIMS(2, 3, cells, 5));
        for (int64_t e = 0; e < 6 * cells * 5; e++) {
            int64_t c = e % 5, m = e / 5 % cells, b = e / 5 / cells, members = 0;
            double sum = 0, most = -INFINITY;
            for (int64_t r = 0; r < rows; r++) {
                if (!in_cell(&p, m, r)) continue;
                double value = test_element(&p.x, (b * rows + r) * 5 + c);
                members++;
                sum += value;
                most = fmax(most, value);
            }
            if (members) expected[e] = kind == FV_POOL_MEAN ? sum / (double)members : kind == FV_POOL_MAX ? most : sum;
        }
        assert_ok(fv_pool_rows(ctx, &p));
        test_close("pool", &p.out, expected, TOLERANCE);
        free(expected);
    }
}

static void check_pool(fv_ctx *ctx)
{
    static const int64_t starts[] = {0, 0, 3, 4, 11, 11, 17};

    compare_pool(ctx, (fv_pool_args){.block = 4}, 17, 5);
    compare_pool(ctx, (fv_pool_args){.block = 4}, 17, 3);
    compare_pool(ctx, (fv_pool_args){.block = 6, .stride = 2}, 17, 9);
    compare_pool(ctx, (fv_pool_args){.block = 2, .stride = 5}, 17, 4);
    compare_pool(ctx, (fv_pool_args){.block = 100}, 17, 1);
    compare_pool(ctx, (fv_pool_args){.start = starts}, 17, 6);
    compare_pool(ctx, (fv_pool_args){.grid_height = 7, .grid_width = 5, .out_height = 3, .out_width = 2}, 35, 6);
    compare_pool(ctx, (fv_pool_args){.grid_height = 2, .grid_width = 3, .out_height = 4, .out_width = 3}, 6, 12);
}

static void pooling_agrees_with_membership(void **state)
{
    (void)state;
    test_each_device(check_pool);
}

/* ---- selection ------------------------------------------------------------------------------------------------- */

/* Whether a comes before b when scores fall: the definition of the order. */
static bool before(const fv_tensor *scores, int64_t row, int64_t a, int64_t b)
{
    int64_t n = scores->dims[1];
    double x = test_element(scores, row * n + a), y = test_element(scores, row * n + b);

    return x > y || (x == y && a < b);
}

static void compare_select(fv_ctx *ctx, fv_select_args s)
{
    int64_t rows = s.scores.dims[0], n = s.scores.dims[1], k = s.index.dims[1];

    assert_ok(fv_select(ctx, &s));
    for (int64_t r = 0; r < rows; r++) {
        int64_t chosen = 0, place = 0, valid = s.valid ? s.valid[r] : n;
        for (int64_t i = 0; i < n; i++) {
            double score = test_element(&s.scores, r * n + i);
            int64_t better = 0, earlier = 0; /* able ones before i by score; chosen ones before i by index */
            if (i >= valid || !(score > -INFINITY) || (s.use_threshold && !(score >= s.threshold))) continue;
            for (int64_t j = 0; j < fv_min(n, valid); j++) {
                double other = test_element(&s.scores, r * n + j);
                if (other > -INFINITY && before(&s.scores, r, j, i)) better++;
            }
            if (better >= k) continue;
            for (int64_t p = 0; p < k && !s.by_score; p++) {
                double at = test_element(&s.index, r * k + p);
                earlier += at >= 0 && at < (double)i;
            }
            place = s.by_score ? better : earlier;
            assert_int_equal((int64_t)test_element(&s.index, r * k + place), i);
            chosen++;
        }
        for (int64_t p = chosen; p < k; p++)
            assert_int_equal((int64_t)test_element(&s.index, r * k + p), -1);
        assert_int_equal((int64_t)test_element(&s.count, r), chosen);
    }
}

static void check_select(fv_ctx *ctx)
{
    static const int64_t valid[9] = {0, 1, 2, 3, 5, 40, 70, 1000, 71};
    static const int64_t ks[] = {0, 1, 5, 16, 71, 90};

    for (int kind = 0; kind < 5 * 6 * 8; kind++) {
        int64_t k = ks[kind % 6], rows = 9, n = 71;
        fv_tensor scores = kind & 1 ? test_strided(ctx, 2, FV_DIMS(rows, n)) : test_random(ctx, 2, FV_DIMS(rows, n));
        fv_tensor index, count;
        for (int64_t e = 0; e < rows * n; e++) { /* ties, zeros of both signs, infinities, NaN */
            float *at = (float *)scores.data + e / n * scores.strides[0] + e % n * scores.strides[1];
            if (kind / 6 % 5 >= 1) *at = roundf(*at);
            if (kind / 6 % 5 >= 2 && e % 7 == 0) *at = -INFINITY;
            if (kind / 6 % 5 >= 3 && e % 11 == 0) *at = NAN;
            if (kind / 6 % 5 >= 4 && e % 13 == 0) *at = INFINITY;
        }
        assert_ok(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(rows, k)));
        assert_ok(fv_tensor_new(ctx, &count, FV_I32, FV_DIMS(rows)));
        compare_select(ctx, (fv_select_args){.scores = scores,
                                             .index = index,
                                             .count = count,
                                             .by_score = kind / 30 & 1,
                                             .use_threshold = kind / 30 & 2,
                                             .threshold = 0.5f,
                                             .valid = kind / 30 & 4 ? valid : NULL});
    }
}

static void selection_is_the_definition(void **state)
{
    (void)state;
    test_each_device(check_select);
}

static void check_sort(fv_ctx *ctx)
{
    static uint64_t stream = 1u << 24;
    fv_random random = fv_random_new(test_seed(), ++stream);
    int32_t keys[3 * 50], order[3 * 50];
    int64_t start[3 * 8];

    for (int i = 0; i < 150; i++)
        keys[i] = (int32_t)fv_random_below(&random, 8) - 1;
    assert_ok(fv_sort_by_key(ctx, keys, 3, 50, 7, order, start));
    for (int r = 0; r < 3; r++) {
        int64_t at = 0;
        for (int key = 0; key < 7; key++) {
            assert_int_equal(start[r * 8 + key], at);
            for (int i = 0; i < 50; i++)
                if (keys[r * 50 + i] == key) assert_int_equal(order[r * 50 + at++], i);
        }
        assert_int_equal(start[r * 8 + 7], at);
    }
    keys[70] = 7;
    assert_fails(fv_sort_by_key(ctx, keys, 3, 50, 7, order, start), FV_E_ARGUMENT,
                 "sort: key 20 of row 1: expected -1 to 6, got 7");
    assert_ok(fv_sort_by_key(ctx, keys, 0, 50, 7, order, start));
    assert_ok(fv_sort_by_key(ctx, keys, 2, 0, 0, order, start));
    assert_int_equal(start[1], 0);
}

/* Rows that are cut into slices: a permutation of those that are not left out, in which keys ascend, and places of
 * equal ones. */
static void check_long_sort(fv_ctx *ctx)
{
    enum { ROWS = 2, LENGTH = 100003, BOUND = 911 };
    static int32_t keys[ROWS * LENGTH], order[ROWS * LENGTH];
    static int64_t start[ROWS * (BOUND + 1)];
    static uint64_t stream = 1u << 25;
    fv_random random = fv_random_new(test_seed(), ++stream);

    for (int i = 0; i < ROWS * LENGTH; i++)
        keys[i] = (int32_t)fv_random_below(&random, i % 3 ? BOUND + 1 : 9) - 1;
    assert_ok(fv_sort_by_key(ctx, keys, ROWS, LENGTH, BOUND, order, start));
    for (int r = 0; r < ROWS; r++) {
        const int32_t *own = keys + r * LENGTH, *sorted = order + r * LENGTH;
        const int64_t *first = start + r * (BOUND + 1);
        int64_t kept = 0;
        for (int i = 0; i < LENGTH; i++)
            kept += own[i] >= 0;
        assert_int_equal(first[0], 0);
        assert_int_equal(first[BOUND], kept);
        for (int key = 0; key < BOUND; key++)
            for (int64_t at = first[key]; at < first[key + 1]; at++) {
                assert_in_range(sorted[at], 0, LENGTH - 1);
                assert_int_equal(own[sorted[at]], key);
                if (at > first[key]) assert_true(sorted[at] > sorted[at - 1]);
            }
    }
    keys[LENGTH + 70000] = BOUND;
    keys[LENGTH + 99999] = -2;
    assert_fails(fv_sort_by_key(ctx, keys, ROWS, LENGTH, BOUND, order, start), FV_E_ARGUMENT,
                 "sort: key 70000 of row 1: expected -1 to 910, got 911");
}

static void sorting_is_stable(void **state)
{
    (void)state;
    test_each_device(check_sort);
    test_each_device(check_long_sort);
}

/* ---- rows that move -------------------------------------------------------------------------------------------- */

static void check_gather(fv_ctx *ctx)
{
    static int32_t list[2 * 3 * 70];
    fv_random random = fv_random_new(test_seed(), 77);
    fv_tensor index, out = test_strided(ctx, 1, FV_DIMS(2, 3, 70, 5));
    double *expected = test_doubles(2 * 3 * 70 * 5);

    for (int i = 0; i < 2 * 3 * 70; i++)
        list[i] = (int32_t)fv_random_below(&random, 12) - 1;
    for (int shape = 0; shape < 4; shape++) { /* index and x of full shape or repeated */
        fv_tensor x = shape & 1 ? test_strided(ctx, 1, FV_DIMS(2, 3, 11, 5)) : test_random(ctx, 1, FV_DIMS(3, 11, 5));
        int64_t at[4], from[4];
        assert_ok(fv_tensor_wrap(&index, list, FV_I32, FV_DIMS(2, shape & 2 ? 3 : 1, 70)));
        for (int64_t e = 0; e < 2 * 3 * 70 * 5; e++) {
            test_index(4, out.dims, e, at);
            memcpy(from, at, sizeof at);
            from[2] = (int64_t)test_spread_at(&index, 3, at);
            expected[e] = from[2] < 0 ? 0 : test_spread_at(&x, 4, from);
        }
        assert_ok(fv_gather(ctx, &(fv_gather_args){.x = x, .index = index, .out = out}));
        test_close("gather", &out, expected, 0);
        fv_tensor half = test_cast(ctx, &x, FV_F16), same;
        assert_ok(fv_tensor_new(ctx, &same, FV_F16, FV_DIMS(2, 3, 70, 5)));
        assert_ok(fv_gather(ctx, &(fv_gather_args){.x = half, .index = index, .out = same}));
        test_close("gather of f16", &same, expected, 0x1p-10);
        assert_ok(fv_gather(ctx, &(fv_gather_args){.x = half, .index = index, .out = out}));
        test_close("gather of f16 as f32", &out, expected, 0x1p-10);

        fv_tensor rows = test_strided(ctx, 1, FV_DIMS(2, 3, 70, 5)); /* and back: x receives */
        double *sums = test_doubles(fv_tensor_count(&x));
        for (int64_t e = 0; e < fv_tensor_count(&x); e++)
            sums[e] = test_element(&x, e);
        for (int64_t e = 0; e < 2 * 3 * 70 * 5; e++) {
            test_index(4, rows.dims, e, at);
            int64_t row = (int64_t)test_spread_at(&index, 3, at), b = shape & 1 ? at[0] * 3 + at[1] : at[1];
            if (row >= 0) sums[(b * 11 + row) * 5 + at[3]] += test_element(&rows, e);
        }
        assert_ok(fv_gather(ctx, &(fv_gather_args){.x = rows, .index = index, .out = x, .scatter = true}));
        test_close("scatter", &x, sums, 2e-5); /* up to 140 f32 sums */
        free(sums);
    }
    free(expected);
}

/* Sampled dots of `heads` heads of x with two of y, each row with `count` others. */
static void compare_dots(fv_ctx *ctx, fv_dtype dtype, int64_t heads, int64_t D, int64_t count, bool shared)
{
    fv_random random = fv_random_new(test_seed(), 78);
    fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, heads, 70, D)), y = test_random(ctx, 1, FV_DIMS(2, 2, 11, D)), index;
    fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, heads, 70, count));
    double *expected = test_doubles(fv_tensor_count(&out));
    int64_t at[4];

    if (dtype != FV_F32) y = test_cast(ctx, &y, dtype);
    assert_ok(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(shared ? 1 : 2, shared ? 1 : heads, 70, count)));
    for (int64_t n = 0; n < fv_tensor_count(&index); n++)
        ((int32_t *)index.data)[n] = (int32_t)fv_random_below(&random, 12) - 1;
    for (int64_t e = 0; e < fv_tensor_count(&out); e++) {
        test_index(4, out.dims, e, at);
        int64_t row = (int64_t)test_spread_at(&index, 4, at), from = (at[0] * heads + at[1]) * 70 + at[2];
        int64_t to = (at[0] * 2 + at[1] / (heads / 2)) * 11 + row;
        for (int64_t d = 0; row >= 0 && d < D; d++)
            expected[e] += 0.5 * test_element(&x, from * D + d) * test_element(&y, to * D + d);
        if (row < 0) expected[e] = -INFINITY;
    }
    assert_ok(fv_sampled_dots(ctx, &(fv_sampled_dots_args){.x = x, .y = y, .index = index, .out = out, .scale = 0.5f}));
    test_close("sampled dots", &out, expected, TOLERANCE);
    free(expected);
}

/* Sums of `count` of the rows of two heads each; some weights are -inf, some entries name no row. */
static void compare_sums(fv_ctx *ctx, fv_dtype dtype, int64_t heads, int64_t D, int64_t count, bool shared)
{
    fv_random random = fv_random_new(test_seed(), 79);
    fv_tensor weight = test_strided(ctx, 1, FV_DIMS(2, heads, 70, count)),
              y = test_random(ctx, 1, FV_DIMS(2, 2, 11, D));
    fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, heads, 70, D)), index;
    double *expected = test_doubles(fv_tensor_count(&out));
    int64_t at[4];

    if (dtype != FV_F32) y = test_cast(ctx, &y, dtype);
    assert_ok(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(shared ? 1 : 2, shared ? 1 : heads, 70, count)));
    for (int64_t n = 0; n < fv_tensor_count(&index); n++)
        ((int32_t *)index.data)[n] = (int32_t)fv_random_below(&random, 12) - 1;
    for (int64_t n = 0; n < fv_tensor_count(&weight); n++) {
        test_index(4, weight.dims, n, at);
        int64_t row = (int64_t)test_spread_at(&index, 4, at), to = (at[0] * heads + at[1]) * 70 + at[2];
        int64_t from = (at[0] * 2 + at[1] / (heads / 2)) * 11 + row;
        if (fv_random_below(&random, 9) == 0) {
            *(float *)fv_at(&weight, at[0], at[1], at[2], at[3]) = -INFINITY;
            continue;
        }
        for (int64_t d = 0; row >= 0 && d < D; d++)
            expected[to * D + d] += test_element(&weight, n) * test_element(&y, from * D + d);
    }
    assert_ok(fv_sampled_sums(ctx, &(fv_sampled_sums_args){.weight = weight, .y = y, .index = index, .out = out}));
    test_close("sampled sums", &out, expected, TOLERANCE);
    free(expected);
}

static void check_sums(fv_ctx *ctx)
{
    compare_sums(ctx, FV_F32, 2, 16, 5, false);
    compare_sums(ctx, FV_F32, 6, 33, 70, true); /* more terms than are combined at once */
    compare_sums(ctx, FV_F16, 4, 40, 9, false);
    compare_sums(ctx, FV_BF16, 4, 5, 64, true);
    compare_sums(ctx, FV_F32, 2, 16, 0, true);
}

static void check_dots(fv_ctx *ctx)
{
    compare_dots(ctx, FV_F32, 2, 16, 5, false);
    compare_dots(ctx, FV_F32, 6, 33, 70, true);
    compare_dots(ctx, FV_F32, 20, 8, 3, true); /* more heads than are taken together */
    compare_dots(ctx, FV_F16, 4, 40, 9, false);
    compare_dots(ctx, FV_BF16, 4, 5, 130, true);
    compare_dots(ctx, FV_F32, 2, 16, 0, true);
}

static void sampled_dots_agree_with_loops(void **state)
{
    (void)state;
    test_each_device(check_dots);
}

static void sampled_sums_agree_with_loops(void **state)
{
    (void)state;
    test_each_device(check_sums);
}

static void gather_and_scatter_agree_with_loops(void **state)
{
    (void)state;
    test_each_device(check_gather);
}

/* The products of features are those of the series. */
static void check_taylor(fv_ctx *ctx)
{
    for (int64_t C = 1; C < 40; C += 13) {
        int64_t F = 1 + C + C * (C + 1) / 2;
        fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, 21, C)), out = test_strided(ctx, 1, FV_DIMS(2, 21, F));
        assert_ok(fv_taylor_rows(ctx, &(fv_taylor_args){.x = x, .out = out}));
        for (int64_t i = 0; i + 1 < 2 * 21; i++) {
            double z = 0, got = 0;
            for (int64_t c = 0; c < C; c++)
                z += test_element(&x, i * C + c) * test_element(&x, (i + 1) * C + c);
            for (int64_t f = 0; f < F; f++)
                got += test_element(&out, i * F + f) * test_element(&out, (i + 1) * F + f);
            if (!(fabs(got - (1 + z + z * z / 2)) <= 1e-6 * (1 + (double)C) * (1 + z * z)))
                fail_msg("row %d of %d channels: expected %g, got %g", (int)i, (int)C, 1 + z + z * z / 2, got);
            assert_float_equal(test_element(&out, i * F + 1 + C), pow(test_element(&x, i * C), 2) * M_SQRT1_2, 1e-5);
        }
    }
}

static void features_of_second_order_multiply_to_the_series(void **state)
{
    (void)state;
    test_each_device(check_taylor);
}

/* The weight of a row at distance `x` from a place, which is clamped to the grid. */
static double hat(double place, int64_t length, int64_t i)
{
    return fmax(1 - fabs(fmin(fmax(place, 0), (double)length - 1) - (double)i), 0);
}

static void check_resize(fv_ctx *ctx)
{
    static const int64_t sizes[][4] = {{4, 4, 1, 1}, {7, 9, 2, 4}, {5, 3, 5, 3}, {3, 2, 7, 5}, {1, 6, 1, 4}};

    for (int n = 0; n < 10; n++) {
        const int64_t *s = sizes[n / 2];
        bool nearest = n & 1;
        fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, s[0] * s[1], 5)), out;
        double *expected = test_doubles(2 * s[2] * s[3] * 5);
        assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(2, s[2] * s[3], 5)));
        for (int64_t e = 0; e < 2 * s[2] * s[3] * 5; e++) {
            int64_t u = e / 5 % (s[2] * s[3]) / s[3], t = e / 5 % s[3], b = e / 5 / s[2] / s[3];
            double y = ((double)u + 0.5) * (double)s[0] / (double)s[2] - 0.5;
            double z = ((double)t + 0.5) * (double)s[1] / (double)s[3] - 0.5;
            for (int64_t i = 0; i < s[0] * s[1]; i++) {
                double weight = hat(y, s[0], i / s[1]) * hat(z, s[1], i % s[1]);
                if (nearest) weight = i / s[1] == u * s[0] / s[2] && i % s[1] == t * s[1] / s[3];
                expected[e] += weight * test_element(&x, (b * s[0] * s[1] + i) * 5 + e % 5);
            }
        }
        assert_ok(fv_resize_rows(ctx, &(fv_resize_args){.x = x,
                                                        .out = out,
                                                        .grid_height = s[0],
                                                        .grid_width = s[1],
                                                        .out_height = s[2],
                                                        .out_width = s[3],
                                                        .nearest = nearest}));
        test_close("resize", &out, expected, TOLERANCE);
        free(expected);
    }
}

static void resized_grids_agree_with_loops(void **state)
{
    (void)state;
    test_each_device(check_resize);
}

static void check_cumsum(fv_ctx *ctx)
{
    for (int n = 0; n < 8; n++) {
        bool exclusive = n & 1, reverse = n & 2, max = n & 4;
        fv_tensor x = test_strided(ctx, 1, FV_DIMS(3, 21, 40)), out = test_strided(ctx, 1, FV_DIMS(3, 21, 40));
        double *expected = test_doubles(3 * 21 * 40);
        for (int64_t e = 0; e < 3 * 21 * 40; e++) {
            int64_t i = e / 40 % 21, from = reverse ? i + exclusive : 0, to = reverse ? 21 : i + 1 - exclusive;
            if (max) expected[e] = -INFINITY;
            for (int64_t j = from; j < to; j++) {
                double value = test_element(&x, e + (j - i) * 40);
                expected[e] = max ? fmax(expected[e], value) : expected[e] + value;
            }
        }
        assert_ok(fv_cumsum(
            ctx, &(fv_cumsum_args){.x = x, .out = out, .max = max, .exclusive = exclusive, .reverse = reverse}));
        test_close(max ? "running maximum" : "cumsum", &out, expected, TOLERANCE);
        free(expected);
    }
}

static void running_sums_and_maxima_agree_with_loops(void **state)
{
    (void)state;
    test_each_device(check_cumsum);
}

static void check_windows(fv_ctx *ctx)
{
    fv_tensor x = test_strided(ctx, 1, FV_DIMS(2, 3, 35, 4)), back = test_random(ctx, 1, FV_DIMS(2, 3, 35, 4));
    fv_tensor out = test_strided(ctx, 1, FV_DIMS(2, 3, 9, 6, 4));
    double *expected = test_doubles(2 * 3 * 54 * 4), *original = test_doubles(2 * 3 * 35 * 4);
    int64_t order[54];

    /* 5 x 7 in windows of 2 x 3: 3 x 3 windows */
    for (int64_t e = 0; e < 2 * 3 * 54 * 4; e++) {
        int64_t window = e / 24 % 9, place = e / 4 % 6;
        int64_t y = window / 3 * 2 + place / 3, column = window % 3 * 3 + place % 3;
        if (y < 5 && column < 7) expected[e] = test_element(&x, (e / 216 * 35 + y * 7 + column) * 4 + e % 4);
    }
    for (int64_t e = 0; e < 2 * 3 * 35 * 4; e++)
        original[e] = test_element(&x, e);
    fv_window_args args = {
        .x = x, .out = out, .grid_height = 5, .grid_width = 7, .window_height = 2, .window_width = 3, .order = order};
    assert_ok(fv_window_rows(ctx, &args));
    test_close("windows", &out, expected, 0);
    assert_int_equal(order[0], 0);
    assert_int_equal(order[6 + 3], 7 + 3);
    assert_int_equal(order[53], -1);
    args = (fv_window_args){.x = out,
                            .out = back,
                            .grid_height = 5,
                            .grid_width = 7,
                            .window_height = 2,
                            .window_width = 3,
                            .inverse = true};
    assert_ok(fv_window_rows(ctx, &args));
    test_close("windows and back", &back, original, 0);
    free(expected);
    free(original);
}

static void windows_tile_the_grid_and_go_back(void **state)
{
    (void)state;
    test_each_device(check_windows);
}

static void bad_arguments_are_refused_in_words(void **state)
{
    static const int64_t starts[] = {0, 5, 4};
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(2, 6, 4)), out = test_random(ctx, 1, FV_DIMS(2, 2, 4)), index;
    int32_t list[2] = {0, 6};
    (void)state;

    assert_fails(fv_pool_rows(ctx, &(fv_pool_args){.x = x, .out = out}), FV_E_ARGUMENT, "block");
    assert_fails(fv_pool_rows(ctx, &(fv_pool_args){.x = x, .out = out, .block = 6}), FV_E_SHAPE, "at most 1 cells");
    assert_fails(fv_pool_rows(ctx, &(fv_pool_args){.x = x, .out = out, .start = starts}), FV_E_ARGUMENT,
                 "cell 1: expected rows within 0 to 6, got 5 to 4");
    assert_fails(
        fv_pool_rows(
            ctx,
            &(fv_pool_args){
                .x = x, .out = out, .grid_height = INT64_MAX, .grid_width = 3, .out_height = 1, .out_width = 2}),
        FV_E_SHAPE, "grid");
    assert_ok(fv_tensor_wrap(&index, list, FV_I32, FV_DIMS(2)));
    assert_fails(fv_gather(ctx, &(fv_gather_args){.x = x, .index = index, .out = out}), FV_E_ARGUMENT,
                 "gather: index 1: expected -1 to 5, got 6");
    assert_fails(fv_gather(ctx, &(fv_gather_args){.x = x, .index = index, .out = x}), FV_E_SHAPE, "index");
    assert_fails(fv_gather(ctx, &(fv_gather_args){.x = x, .index = out, .out = out}), FV_E_DTYPE, "i32, got f32");
    fv_sampled_dots_args dots = {.x = fv_reshaped(&x, FV_DIMS(1, 2, 6, 4)), .y = fv_reshaped(&x, FV_DIMS(1, 2, 6, 4))};
    dots.out = test_random(ctx, 1, FV_DIMS(1, 2, 6, 2));
    dots.index = fv_reshaped(&index, FV_DIMS(1, 1, 1, 2));
    assert_fails(fv_sampled_dots(ctx, &dots), FV_E_ARGUMENT, "sampled dots: index 1: expected -1 to 5, got 6");
    dots.y = fv_reshaped(&x, FV_DIMS(1, 4, 3, 4));
    assert_fails(fv_sampled_dots(ctx, &dots), FV_E_SHAPE, "4 heads of y do not divide 2 of x");
    dots.y = fv_reshaped(&x, FV_DIMS(1, 2, 4, 6));
    assert_fails(fv_sampled_dots(ctx, &dots), FV_E_SHAPE, "sampled dots: y: expected");
    fv_sampled_sums_args sums = {.weight = dots.out, .y = dots.x, .index = dots.index, .out = dots.x};
    assert_fails(fv_sampled_sums(ctx, &sums), FV_E_ARGUMENT, "sampled sums: index 1: expected -1 to 5, got 6");
    sums.y = fv_reshaped(&x, FV_DIMS(1, 4, 3, 4));
    assert_fails(fv_sampled_sums(ctx, &sums), FV_E_SHAPE, "4 heads of y do not divide 2 of out");
    sums.y = dots.x;
    sums.weight = dots.y;
    assert_fails(fv_sampled_sums(ctx, &sums), FV_E_SHAPE, "sampled sums: weight: expected");
    assert_fails(fv_cumsum(ctx, &(fv_cumsum_args){.x = x, .out = out}), FV_E_SHAPE, "cumsum: out");
    assert_fails(fv_select(ctx, &(fv_select_args){.scores = x, .index = out}), FV_E_DTYPE, "select: index");
    assert_fails(fv_window_rows(ctx, &(fv_window_args){.x = x, .out = out}), FV_E_ARGUMENT, "window");
    assert_fails(fv_window_rows(
                     ctx,
                     &(fv_window_args){
                         .x = x, .out = out, .grid_height = 2, .grid_width = 3, .window_height = 2, .window_width = 2}),
                 FV_E_SHAPE, "window: out: expected shape [2,2,4,4], got [2,2,4]");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pooling_agrees_with_membership),
        cmocka_unit_test(selection_is_the_definition),
        cmocka_unit_test(sorting_is_stable),
        cmocka_unit_test(gather_and_scatter_agree_with_loops),
        cmocka_unit_test(sampled_dots_agree_with_loops),
        cmocka_unit_test(sampled_sums_agree_with_loops),
        cmocka_unit_test(running_sums_and_maxima_agree_with_loops),
        cmocka_unit_test(features_of_second_order_multiply_to_the_series),
        cmocka_unit_test(resized_grids_agree_with_loops),
        cmocka_unit_test(windows_tile_the_grid_and_go_back),
        cmocka_unit_test(bad_arguments_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
