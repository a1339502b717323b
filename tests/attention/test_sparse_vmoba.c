/* VMoBA: worked tables of its choice, what it is at its limits, cuts through more scores than are held, and what it
 * refuses. */
#include "support/support.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "attention/sparse/core.h"

/* Keys are unit vectors, so that queries are their gates with blocks of one token. */
static const float gates[2][4][4] = {{{4, 2, 0, 1}, {1, 2, 6, 3}, {0, 2, 5, 1}, {3, 1, 0, 2}},
                                     {{0, 1, 2, 3}, {5, 0, 1, 2}, {1, 1, 2, 9}, {2, 4, 0, 3}}};

static fv_attention_args table(fv_ctx *ctx, bool ties)
{
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 2, 4, 4)),
                              .k = test_random(ctx, 1, FV_DIMS(1, 1, 4, 4)),
                              .v = test_random(ctx, 1, FV_DIMS(1, 1, 4, 4)),
                              .o = test_random(ctx, 1, FV_DIMS(1, 2, 4, 4))};

    memcpy(args.q.data, gates, sizeof gates);
    for (int n = 0; n < 16; n++)
        ((float *)args.k.data)[n] = !ties && n / 4 == n % 4;
    return args;
}

/* Keys that each query sees as text, "01 12 2 3 | 0 1 23 3": heads apart. */
static void expect_seen(fv_ctx *ctx, const char *spec, const fv_attention_args *args, const char *expected)
{
    char seen[256] = "";
    size_t length = 0;
    int64_t N = args->q.dims[2], M = args->k.dims[2];
    fv_attention *attention;
    fv_tensor map;
    void *owned;

    assert_ok(fv_attention_new(spec, &attention));
    if (fv_attention_map(ctx, attention, args, &map, &owned) != FV_OK) fail_msg("%s: %s", spec, fv_error());
    for (int64_t row = 0; row < map.dims[1] * N; row++) {
        length += (size_t)snprintf(seen + length, sizeof seen - length, row == 0 ? "" : row % N ? " " : " | ");
        for (int64_t j = 0; j < M; j++)
            if (((const uint8_t *)map.data)[row * M + j])
                length += (size_t)snprintf(seen + length, sizeof seen - length, "%d", (int)j);
    }
    fv_release(owned);
    fv_attention_free(attention);
    if (strcmp(seen, expected) != 0) fail_msg("%s: expected %s, got %s", spec, expected, seen);
}

static void tables_by_hand(void **state)
{
    static const char *const expected[][2] = {
        {"vmoba:block=1", "0 12 2 3 | 0 1 23 3"},
        {"vmoba:block=1,tau=0.5", "0 12 2 3 | 0 01 23 3"},
        {"vmoba:block=1,tau=0.75", "0 123 2 03 | 03 01 23 013"},
        {"vmoba:block=1,tau=0.9", "01 0123 12 03 | 023 013 023 013"},
        {"vmoba:block=1,tau=0.5,scope=query_head", "01 12 12 03 | 023 01 23 13"},
        {"vmoba:block=1,tau=0.9,scope=query_head", "013 123 123 013 | 0123 0123 23 013"},
        {"vmoba:block=1,tau=0.5,scope=block", "01 12 2 3 | 0 01 23 13"},
        {"vmoba:block=1,tau=0.75,scope=block", "01 123 12 03 | 0 01 23 013"},
        {"vmoba:block=1,tau=0.25,scope=overall", "0 1 2 3 | 0 1 23 3"},
        {"vmoba:block=1,tau=0.5,scope=overall", "0 12 2 3 | 0 01 23 3"},
        {"vmoba:block=1,select=topk,top=1", "0 1 2 3 | 0 1 2 3"},
        {"vmoba:block=1,select=topk,top=2", "01 123 2 03 | 03 01 23 13"}, /* of 2 2 2 2 the lower block and query */
        {"vmoba:block=1,select=topk,top=2,scope=query_head", "01 12 12 03 | 03 01 23 13"},
        {"vmoba:block=1,select=topk,top=2,scope=overall", "0 123 2 03 | 03 01 23 013"},
    };
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        fv_attention_args args = table(ctx, false);
        for (size_t n = 0; n < sizeof expected / sizeof *expected; n++)
            expect_seen(ctx, expected[n][0], &args, expected[n][1]);
        fv_ctx_free(ctx);
    }
}

/* Gates that are all the same have no share to reach, so that all are taken, or by tau = 0 the first one; by number,
 * the lower blocks and then the lower queries. */
static void ties_go_to_the_lower(void **state)
{
    static const char *const expected[][2] = {
        {"vmoba:block=1", "0123 0123 0123 0123 | 0123 0123 0123 0123"},
        {"vmoba:block=1,tau=0", "0 01 2 3 | 0 01 2 3"},
        {"vmoba:block=1,tau=0,scope=query_head", "01 01 02 03 | 01 01 02 03"},
        {"vmoba:block=1,tau=0,scope=block", "0123 01 2 3 | 0 1 2 3"},
        {"vmoba:block=1,tau=0,scope=overall", "0 01 2 3 | 0 1 2 3"},
        {"vmoba:block=1,select=topk,top=2", "01 01 02 03 | 01 01 02 03"},
        {"vmoba:block=1,select=topk,top=2,scope=overall", "01 01 012 03 | 0 01 02 03"},
        {"vmoba:block=1,select=topk,top=3,scope=query_head", "012 012 012 013 | 012 012 012 013"},
        {"vmoba:block=1,select=topk,top=1,dense_if_empty=1", "0123 0123 0123 0123 | 0123 0123 0123 0123"},
    };
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = table(ctx, true);
    (void)state;

    for (size_t n = 0; n < sizeof expected / sizeof *expected; n++)
        expect_seen(ctx, expected[n][0], &args, expected[n][1]);
    fv_ctx_free(ctx);
}

/* Frames of 2 x 4 tokens in blocks of one row and two columns, in all frames or in one of them. */
static void blocks_of_two_and_three_dimensions(void **state)
{
    static const int8_t columns[16] = {0, 0, 1, 1, 2, 2, 3, 3, 0, 0, 1, 1, 2, 2, 3, 3};
    static const int8_t boxes[16] = {0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3};
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 1, 16, 8)),
                              .k = test_random(ctx, 1, FV_DIMS(1, 1, 16, 8)),
                              .v = test_random(ctx, 1, FV_DIMS(1, 1, 16, 8)),
                              .o = test_random(ctx, 1, FV_DIMS(1, 1, 16, 8))};
    (void)state;

    for (int n = 0; n < 4; n++) {
        static const char *const specs[] = {
            "vmoba:partition=2d,grid=2x2x4,tile2=1x2,select=topk,top=1",
            "vmoba:partition=3d,grid=2x2x4,tile3=1x2x2,select=topk,top=1",
            "vmoba:partition=cycle,layer=7,grid=2x2x4,tile2=1x2,select=topk,top=1,tile3=0x0x0",
            "vmoba:partition=cycle,layer=2,grid=2x2x4,tile3=1x2x2,select=topk,top=1,tile2=0x0",
        };
        const int8_t *block = n % 2 ? boxes : columns;
        fv_attention *attention;
        fv_tensor map;
        void *owned;
        assert_ok(fv_attention_new(specs[n], &attention));
        assert_ok(fv_attention_map(ctx, attention, &args, &map, &owned));
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 16; j++)
                if (((const uint8_t *)map.data)[i * 16 + j] != (block[i] == block[j]))
                    fail_msg("%s: query %d, key %d", specs[n], i, j);
        fv_release(owned);
        fv_attention_free(attention);
    }
    fv_ctx_free(ctx);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

enum { N = 48 };

static fv_attention_args some(fv_ctx *ctx, bool causal)
{
    return (fv_attention_args){.q = test_random(ctx, 1, FV_DIMS(2, 4, N, 16)),
                               .k = test_random(ctx, 1, FV_DIMS(2, 2, N, 16)),
                               .v = test_random(ctx, 1, FV_DIMS(2, 2, N, 16)),
                               .o = test_random(ctx, 1, FV_DIMS(2, 4, N, 16)),
                               .lse = test_random(ctx, 1, FV_DIMS(2, 4, N)),
                               .causal = causal};
}

/* o and lse of two SPECs are the same, to the bit or to `tolerance`. */
static void expect_same(fv_ctx *ctx, const char *spec, const char *other, fv_attention_args args, bool decode,
                        double tolerance)
{
    fv_attention_args second = args;
    fv_attention *attention[2];
    double expected[2 * 4 * N * 16], lse[2 * 4 * N];

    second.o = test_random(ctx, 1, FV_DIMS(2, 4, N, 16));
    second.lse = test_random(ctx, 1, FV_DIMS(2, 4, N));
    assert_ok(fv_attention_new(spec, &attention[0]));
    assert_ok(fv_attention_new(other, &attention[1]));
    assert_ok((decode ? fv_attention_decode : fv_attention_forward)(ctx, attention[0], &args));
    assert_ok((decode ? fv_attention_decode : fv_attention_forward)(ctx, attention[1], &second));
    for (int n = 0; n < 2 * 4 * N * 16; n++)
        expected[n] = (double)((const float *)second.o.data)[n];
    for (int n = 0; n < 2 * 4 * N; n++)
        lse[n] = (double)((const float *)second.lse.data)[n];
    test_close(spec, &args.o, expected, tolerance);
    test_close(spec, &args.lse, lse, tolerance);
    fv_attention_free(attention[0]);
    fv_attention_free(attention[1]);
}

static void limits_are_other_mechanisms(void **state)
{
    static const char *const dense[] = {"vmoba:block=7,tau=1",
                                        "vmoba:block=7,tau=1,scope=query_head",
                                        "vmoba:block=7,tau=1,scope=block",
                                        "vmoba:block=7,tau=1,scope=overall",
                                        "vmoba:block=7,select=topk,top=7",
                                        "vmoba:block=7,select=topk,top=99",
                                        "vmoba:block=7,select=topk,top=7,scope=query_head",
                                        "vmoba:block=7,select=topk,top=7,scope=overall",
                                        "vmoba:block=48",
                                        "vmoba:partition=2d,grid=3x4x4,tile2=4x4",
                                        "vmoba:partition=3d,grid=3x4x4,tile3=1x2x2,tau=1"};
    const double tolerance = 8 * FLT_EPSILON * (N + 16 + 16); /* sums of N weights of 16 products, merged */
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        for (size_t n = 0; n < sizeof dense / sizeof *dense; n++)
            expect_same(ctx, dense[n], "dense", some(ctx, false), false, tolerance);
        expect_same(ctx, "vmoba:partition=3d,grid=6x2x4,tile3=2x2x4", "vmoba:block=16", some(ctx, false), false, 0);
        for (int decode = 0; decode < 2; decode++)
            expect_same(ctx, "vmoba:block=5,select=topk,scope=query_head,top=3", "moba:block=5,top=3", some(ctx, true),
                        decode, 0);
        fv_ctx_free(ctx);
    }
}

/* A larger share keeps what a smaller one has. */
static void shares_are_nested(void **state)
{
    static const char *const scopes[] = {"head_global", "query_head", "block", "overall"};
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = some(ctx, false);
    (void)state;

    for (int s = 0; s < 4; s++) {
        uint8_t last[2 * 4 * N * N] = {0};
        int64_t pairs = 0;
        for (int tau = 0; tau <= 10; tau++) {
            char spec[64];
            int64_t more = 0;
            fv_attention *attention;
            fv_tensor map;
            void *owned;
            snprintf(spec, sizeof spec, "vmoba:block=4,scope=%s,tau=%g", scopes[s], tau / 10.0);
            assert_ok(fv_attention_new(spec, &attention));
            assert_ok(fv_attention_map(ctx, attention, &args, &map, &owned));
            for (int n = 0; n < 2 * 4 * N * N; n++) {
                uint8_t seen = ((const uint8_t *)map.data)[n];
                if (last[n] && !seen) fail_msg("%s: pair %d was seen with a smaller share", spec, n);
                last[n] = seen;
                more += seen;
            }
            assert_true(more > 0 && more >= pairs);
            pairs = more;
            fv_release(owned);
            fv_attention_free(attention);
        }
        assert_int_equal(pairs, 2 * 4 * N * N);
    }
    fv_ctx_free(ctx);
}

/* ---- cuts ------------------------------------------------------------------------------------------------------- */

static int descending(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;

    return (x < y) - (x > y);
}

/* Scores of one channel are exact: of each head those are chosen that its sorted scores say. */
static void check_cut(fv_ctx *ctx, int64_t heads, int64_t blocks, int64_t top, double share)
{
    fv_tensor q = test_random(ctx, 1, FV_DIMS(1, heads, blocks, 1)), k = test_random(ctx, 1, FV_DIMS(1, 1, blocks, 1));
    fv_call call = {.batch = 1, .query_heads = heads, .key_heads = 1, .queries = blocks, .keys = blocks, .head_dim = 1};
    fv_choice choice = {.block = 1, .heads = heads};
    fv_cut cut = {.scope = FV_SCOPE_HEAD, .own = true, .top = top, .share = share};
    const float *x = q.data, *y = k.data;
    float *others = calloc((size_t)(blocks * blocks), sizeof *others);

    assert_non_null(others);
    assert_ok(fv_choose_by_cut(ctx, &call, &choice, &cut, &q, &k));
    for (int64_t h = 0; h < heads; h++) {
        int64_t count = 0, chosen = 0, expected = 0;
        double total = 0, own = 0, sum = 0;
        float low = INFINITY, high = -INFINITY, worst = INFINITY, best = -INFINITY;
        for (int64_t n = 0; n < blocks * blocks; n++) {
            float score = x[h * blocks + n / blocks] * y[n % blocks];
            int64_t c = n % blocks;
            bool taken = *(const uint8_t *)fv_at(&choice.mask, 0, h, n / blocks, c / 8) >> c % 8 & 1;
            low = fminf(low, score);
            high = fmaxf(high, score);
            total += score;
            if (n / blocks == c) {
                assert_true(taken);
                own += score;
                continue;
            }
            others[count++] = score;
            chosen += taken;
            if (taken) worst = fminf(worst, score);
            if (!taken) best = fmaxf(best, score);
        }
        if (top == 0) qsort(others, (size_t)count, sizeof *others, descending);
        total = (total - low * (double)(blocks * blocks)) / (high - low);
        own = (own - low * (double)blocks) / (high - low);
        for (double need = share * total - own; top == 0 && (expected == 0 || sum < need); expected++)
            sum += (others[expected] - low) / (high - low);
        if (top > 0) expected = (top - 1) * blocks;
        if (!(worst >= best)) fail_msg("head %d: %g was taken, %g was not", (int)h, (double)worst, (double)best);
        /* of sums in f32 weights the last ones may fall either way */
        if (llabs(chosen - expected) > (top ? 0 : 2 + expected / 100000))
            fail_msg("head %d: expected %d others, got %d", (int)h, (int)expected, (int)chosen);
    }
    free(others);
}

static void cuts_through_any_number_of_scores(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);

    (void)state;
    check_cut(ctx, 2, 100, 20, 0);
    check_cut(ctx, 2, 100, 0, 0.6);
    check_cut(ctx, 3, 1200, 50, 0); /* more scores than are held */
    check_cut(ctx, 3, 1200, 0, 0.3);
    fv_ctx_free(ctx);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

static void what_cannot_be_is_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } options[] = {
        {"vmoba:select=topk,scope=block", "topk has no scope 'block'"},
        {"vmoba:partition=2d", "'grid': expected frames x rows x columns for partition 2d"},
        {"vmoba:partition=cycle,layer=5,grid=4x4", "'grid': expected frames x rows x columns for partition 3d"},
        {"vmoba:partition=2d,grid=2x4x4", "'tile2': expected a divisor of the grid's side 4, got 0"},
        {"vmoba:partition=2d,grid=2x4x4,tile2=2x3", "'tile2': expected a divisor of the grid's side 4, got 3"},
        {"vmoba:partition=2d,grid=2x4x4,tile2=2x2x2", "'tile2': expected 2 items, got 3"},
        {"vmoba:partition=3d,grid=2x4x4,tile3=2x2", "'tile3': expected 3 items, got 2"},
        {"vmoba:partition=4d", "1d or 2d"},
        {"vmoba:tau=1.5", "tau"},
        {"vmoba:top=0", "top"},
    };
    static const struct {
        const char *spec, *words;
        bool causal;
        int64_t keys;
        fv_status status;
    } calls[] = {
        {"vmoba", "is causal only with partition=1d,select=topk,scope=query_head", true, N, FV_E_USAGE},
        {"vmoba:select=topk", "is causal only with", true, N, FV_E_USAGE},
        {"vmoba:partition=2d,grid=2x5x5,tile2=5x5", "50 cells, but there are 48 tokens", false, N, FV_E_SHAPE},
        {"vmoba:partition=2d,grid=3x4x4,tile2=4x4", "48 cells, but there are 50 tokens", false, 50, FV_E_SHAPE},
        {"vmoba:partition=3d,grid=2147483647x2147483647x2147483647,tile3=1x1x1", "but there are 48 tokens", false, N,
         FV_E_SHAPE},
    };
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention *attention;
    (void)state;

    for (size_t n = 0; n < sizeof options / sizeof *options; n++)
        assert_fails(fv_attention_new(options[n].spec, &attention), FV_E_USAGE, options[n].words);
    for (size_t n = 0; n < sizeof calls / sizeof *calls; n++) {
        fv_attention_args args = some(ctx, calls[n].causal);
        args.k = args.v = test_random(ctx, 1, FV_DIMS(2, 2, calls[n].keys, 16));
        assert_ok(fv_attention_new(calls[n].spec, &attention));
        assert_fails(fv_attention_forward(ctx, attention, &args), calls[n].status, calls[n].words);
        fv_attention_free(attention);
    }
    fv_ctx_free(ctx);
}

static void numbers_that_are_none_are_survived(void **state)
{
    static const char *const specs[] = {"vmoba:block=5",
                                        "vmoba:block=5,scope=query_head",
                                        "vmoba:block=5,scope=block",
                                        "vmoba:block=5,scope=overall",
                                        "vmoba:block=5,select=topk",
                                        "vmoba:block=5,select=topk,scope=query_head"};
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = some(ctx, false);
    fv_attention *attention;
    (void)state;

    ((float *)args.q.data)[3] = NAN;
    ((float *)args.q.data)[900] = INFINITY;
    ((float *)args.k.data)[5] = 3e38f;
    ((float *)args.k.data)[600] = -INFINITY;
    for (size_t n = 0; n < sizeof specs / sizeof *specs; n++) {
        assert_ok(fv_attention_new(specs[n], &attention));
        assert_ok(fv_attention_forward(ctx, attention, &args));
        fv_attention_free(attention);
    }
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(tables_by_hand),
        cmocka_unit_test(ties_go_to_the_lower),
        cmocka_unit_test(blocks_of_two_and_three_dimensions),
        cmocka_unit_test(limits_are_other_mechanisms),
        cmocka_unit_test(shares_are_nested),
        cmocka_unit_test(cuts_through_any_number_of_scores),
        cmocka_unit_test(what_cannot_be_is_refused),
        cmocka_unit_test(numbers_that_are_none_are_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
