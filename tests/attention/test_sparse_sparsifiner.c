/* Sparsifiner: the worked numbers of its definition, and what must hold beside what every mechanism promises. */
#include <math.h>

#include "attention/mechanism.h"
#include "support/seen.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 1e-5

static fv_attention_args args_of(fv_ctx *ctx, int64_t B, int64_t H, int64_t Hkv, int64_t N)
{
    fv_attention_args args = test_specs_args(ctx, B, H, Hkv, N, N, 16);

    args.causal = false;
    return args;
}

/* A code of .5 .3 .15 .05 and a basis of six columns. */
static void chooses_on(fv_ctx *ctx)
{
    static const float c[] = {.5f, .3f, .15f, .05f};
    static const float basis[4][6] = {{.5f, .01f, .3f, 0, 0, .2f}, {0, .4f, .1f, 0, .3f, 0}, {0, 0, 0, 9, 9, 9}, {0}};
    fv_attention_args args = args_of(ctx, 1, 1, 1, 6);
    fv_named_tensor param[2];
    fv_tensor down, up;

    assert_ok(fv_tensor_zeros(ctx, &down, FV_F32, FV_DIMS(6, 4)));
    assert_ok(fv_tensor_zeros(ctx, &up, FV_F32, FV_DIMS(6, 4)));
    for (int j = 0; j < 6; j++)
        for (int d = 0; d < 16; d++) {
            ((float *)args.q.data)[j * 16 + d] = d == 0;
            ((float *)args.k.data)[j * 16 + d] = d == 0 && j == 0;
        }
    for (int r = 0; r < 4; r++) {
        ((float *)down.data)[r] = logf(c[r]);
        for (int j = 0; j < 6; j++)
            ((float *)up.data)[j * 4 + r] = basis[r][j];
    }
    param[0] = (fv_named_tensor){"down", down};
    param[1] = (fv_named_tensor){"up", up};
    args.params = 2;
    args.param = param;
    test_seen(ctx, "sparsifiner:keep=0.5,coef_top=2", &args, 0, 0, 5, "0 1 2"); /* .25 .12 .18 0 .09 .1 */
    test_seen(ctx, "sparsifiner:keep=0.5,coef_top=2", &args, 0, 0, 0, "0 1 2 3 4 5");
    test_seen(ctx, "sparsifiner:keep=0.5,coef_top=2,cls=0", &args, 0, 0, 0, "0 1 2");
    test_seen(ctx, "sparsifiner:keep=0.5,coef_threshold=0.4", &args, 0, 0, 5, "0 2 5"); /* .25 0 .15 0 0 .1 */
    test_seen(ctx, "sparsifiner:keep=0.75,coef_top=1", &args, 0, 0, 5, "0 1 2 3 5");    /* zeros fill up */
    test_seen(ctx, "sparsifiner:threshold=0.11,coef_top=2", &args, 0, 0, 5, "0 1 2");
    test_seen(ctx, "sparsifiner:threshold=3,coef_top=2", &args, 0, 0, 5, "");
    ((float *)up.data)[1 * 4] = -.9f; /* .25 -.45 .15 0 0 .1 */
    test_seen(ctx, "sparsifiner:keep=0.3,coef_top=1", &args, 0, 0, 5, "0 1");
    test_seen(ctx, "sparsifiner:keep=0.3,coef_top=1,basis=positive", &args, 0, 0, 5, "0 2");
    test_seen(ctx, "sparsifiner:keep=0.8,coef_top=1,basis=signed", &args, 0, 0, 5, "0 2 3 4 5");
}

static void chooses_by_a_sparse_code_times_a_sparse_basis(void **state)
{
    (void)state;
    test_each_device(chooses_on);
}

/* So long that keys and queries lie in several blocks, the last of both in part. */
static void dense_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 2, 4, 2, 150);

    test_specs_equal(ctx, "sparsifiner:keep=1", "dense", &args, 0, TOLERANCE);
    test_specs_equal(ctx, "sparsifiner:keep=1,token_keep=1", "dense", &args, 0, TOLERANCE);
}

static void is_dense_where_everything_is_kept(void **state)
{
    (void)state;
    test_each_device(dense_on);
}

/* Every row but the first has as many keys as asked for, and queries in stretches choose as all at once do. */
static void reads_its_part_of_the_keys(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    int64_t N = 1100;
    fv_attention_args all = args_of(ctx, 1, 70, 70, N), one = all;
    fv_attention *attention;
    fv_tensor map;
    fv_work work;
    void *owned;
    (void)state;

    test_specs_run(ctx, "sparsifiner:gamma=dim", &all);
    one.q = fv_slice(&all.q, 1, 69, 1);
    one.k = fv_slice(&all.k, 1, 69, 1);
    one.v = fv_slice(&all.v, 1, 69, 1);
    one.o = test_random(ctx, 1, FV_DIMS(1, 1, N, 16));
    one.lse = test_random(ctx, 1, FV_DIMS(1, 1, N));
    test_specs_run(ctx, "sparsifiner:gamma=dim", &one);
    for (int64_t i = 0; i < N; i++)
        assert_float_equal(*(float *)fv_at(&all.lse, 0, 69, i, 0), *(float *)fv_at(&one.lse, 0, 0, i, 0), TOLERANCE);
    assert_ok(fv_attention_new("sparsifiner:gamma=dim", &attention));
    assert_ok(fv_attention_map(ctx, attention, &one, &map, &owned));
    for (int64_t i = 0; i < N; i++) {
        int64_t seen = 0;
        for (int64_t j = 0; j < N; j++)
            seen += ((uint8_t *)map.data)[i * N + j];
        assert_int_equal(seen, i == 0 ? N : 275);
    }
    assert_ok(fv_attention_work(ctx, attention, &one, &work));
    assert_int_equal(work.pairs, N + (N - 1) * 275);
    fv_release(owned);
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

/* Nothing is above the threshold, or the token was dropped. */
static void empty_on(fv_ctx *ctx)
{
    fv_attention_args args = args_of(ctx, 1, 2, 2, 9);
    int64_t kept = 0;

    test_specs_run(ctx, "sparsifiner:threshold=2", &args);
    for (int64_t i = 1; i < 9; i++) {
        assert_true(*(float *)fv_at(&args.lse, 0, 1, i, 0) == -INFINITY);
        assert_true(*(float *)fv_at(&args.o, 0, 1, i, 3) == 0);
    }
    test_specs_run(ctx, "sparsifiner:token_keep=0.3", &args);
    for (int64_t i = 1; i < 9; i++)
        kept += *(float *)fv_at(&args.lse, 0, 0, i, 0) > -INFINITY;
    assert_int_equal(kept, 3);
}

static void rows_without_keys_are_zero(void **state)
{
    (void)state;
    test_each_device(empty_on);
}

static void what_is_no_number_is_not_chosen(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = args_of(ctx, 1, 2, 1, 30);
    (void)state;

    ((float *)args.q.data)[16 * 3] = NAN;
    ((float *)args.k.data)[0] = INFINITY;
    test_specs_run(ctx, "sparsifiner:token_keep=0.5", &args);
    fv_ctx_free(ctx);
}

static void refuses(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = args_of(ctx, 1, 2, 1, 9), causal = args, cross = args, odd = args;
    fv_named_tensor param = {"q_weight", test_random(ctx, 1, FV_DIMS(8, 16))};
    (void)state;

    test_specs_refused(ctx, "sparsifiner:keep=0", &args, FV_E_USAGE, "keep");
    test_specs_refused(ctx, "sparsifiner:keep=1.01", &args, FV_E_USAGE, "keep");
    test_specs_refused(ctx, "sparsifiner:coef_top=0", &args, FV_E_USAGE, "coef_top");
    test_specs_refused(ctx, "sparsifiner:basis=odd", &args, FV_E_USAGE, "basis");
    test_specs_refused(ctx, "sparsifiner:token_keep=0.5,cls=0", &args, FV_E_USAGE, "cls=0");
    causal.causal = true;
    test_specs_refused(ctx, "sparsifiner", &causal, FV_E_USAGE, "cannot be causal");
    cross.q = fv_slice(&args.q, 2, 0, 4);
    cross.o = fv_slice(&args.o, 2, 0, 4);
    cross.lse = fv_slice(&args.lse, 2, 0, 4);
    test_specs_refused(ctx, "sparsifiner", &cross, FV_E_SHAPE, "as many queries as keys");
    odd.params = 1;
    odd.param = &param; /* without a map of keys to as many */
    test_specs_refused(ctx, "sparsifiner", &odd, FV_E_SHAPE, "q_weight");
    param = (fv_named_tensor){"up", test_random(ctx, 1, FV_DIMS(8, 3))};
    test_specs_refused(ctx, "sparsifiner", &odd, FV_E_SHAPE, "up");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chooses_by_a_sparse_code_times_a_sparse_basis),
        cmocka_unit_test(is_dense_where_everything_is_kept),
        cmocka_unit_test(reads_its_part_of_the_keys),
        cmocka_unit_test(rows_without_keys_are_zero),
        cmocka_unit_test(what_is_no_number_is_not_chosen),
        cmocka_unit_test(refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
