/* Variants of Deconstructing Attention: pooling by the keys' own logits, the series of exp, maps of a fixed stream. */
#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "support/beside.h"
#include "support/specs.h"
#include "support/tensors.h"

#define TOLERANCE 1e-5

/* ---- selfgate ---------------------------------------------------------------------------------------------------- */

/* Queries of 0: rows are means of the values so far. */
static void gates_of_zero_give_running_means(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 9, 9, 4, 1);

    (void)unused;
    for (int n = 0; n < 9 * 4; n++)
        f->q[n] = 0;
    for (int n = 0; n < 9; n++)
        f->v[n] = n;
    f->call.causal = true;
    f->call.lse = f->lse;
    beside_forward(f, "selfgate");
    for (int i = 0; i < 9; i++) {
        const double mean = i / 2.0, count = log(i + 1);
        twin_close("o", &f->o[i], &mean, 1, TWIN_EXACT);
        twin_close("lse", &f->lse[i], &count, 1, TWIN_EXACT);
    }
    beside_forward(f, "taylor2:denominator=joint");
    for (int i = 0; i < 9; i++) {
        const double mean = i / 2.0;
        twin_close("o", &f->o[i], &mean, 1, TWIN_EXACT);
    }
    twin_drop(f);
}

/* Logits that grow by hundreds, whole numbers in f32: what came before must fade, not vanish in a division by 0. */
static void gates_may_grow_without_end(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 40, 40, 1, 2);
    const double scale = 64;

    (void)unused;
    for (int j = 0; j < 40; j++) {
        f->q[j] = j < 20 ? j : 40 - j; /* up to 1280, and down again */
        f->k[j] = j % 5 == 4 ? -1 : 1;
    }
    f->call.causal = true;
    f->call.lse = f->lse;
    f->call.scale = &scale;
    twin_set(f, "silu", 1, 0);
    beside_forward(f, "selfgate:silu=0");
    twin_drop(f);
}

/* Attention whose logits depend on the key only. */
static void gates_are_dense_with_a_bias_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 33, 33, 16), dense = args;
    fv_tensor bias;
    fv_named_tensor param;
    float none = 0;

    assert_ok(fv_tensor_new(ctx, &bias, FV_F32, FV_DIMS(2, 4, 33, 33)));
    for (int64_t n = 0; n < 2 * 4 * 33 * 33; n++) {
        int64_t j = n % 33, h = n / 33 / 33 % 4, b = n / 33 / 33 / 4;
        double dot = 0;
        for (int64_t d = 0; d < 16; d++) {
            double q = *(float *)fv_at(&args.q, b, h, j, d);
            dot += q / (1 + exp(-q)) * *(float *)fv_at(&args.k, b, h / 2, j, d);
        }
        ((float *)bias.data)[n] = (float)(dot / 4);
    }
    param = (fv_named_tensor){"bias", bias};
    dense.params = 1;
    dense.param = &param;
    dense.scale = &none;
    for (int causal = 0; causal < 2; causal++) {
        fv_tensor got, expected;
        args.causal = dense.causal = causal;
        got = test_specs_forward(ctx, "selfgate", &args);
        expected = test_specs_forward(ctx, "dense", &dense);
        test_specs_close("selfgate", &got, &expected, TOLERANCE);
    }
}

static void gates_are_dense_with_a_bias(void **unused)
{
    (void)unused;
    test_each_device(gates_are_dense_with_a_bias_on);
}

/* ---- taylor2 ----------------------------------------------------------------------------------------------------- */

/* Five tokens of two channels, worked by hand. */
static void series_have_their_worked_numbers(void **unused)
{
    static const double causal[] = {.909297,  .427380,  .492114,  -.018748, -.163740,
                                    -.410159, -.418047, -.156458, -.022192, .082212};
    static const double all[] = {.333693,  .212618,  .480956,  .221390,  .048884,
                                 -.003583, -.305373, -.070396, -.022192, .082212};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 2, 2);

    (void)unused;
    f->call.lse = f->lse;
    beside_forward(f, "taylor2");
    twin_close("o", f->o, all, 10, TWIN_DIGITS);
    f->call.causal = true;
    beside_forward(f, "taylor2");
    twin_close("o", f->o, causal, 10, TWIN_DIGITS);
    twin_drop(f);
}

/* Values of 1: one denominator gives 1, three give 3. */
static void orders_count_once_each_on(fv_ctx *ctx)
{
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 21, 21, 8);

    for (int64_t n = 0; n < fv_tensor_count(&args.v); n++)
        ((float *)args.v.data)[n] = 1;
    for (int64_t n = 0; n < fv_tensor_count(&args.q); n++)
        ((float *)args.q.data)[n] = fabsf(((float *)args.q.data)[n]);
    for (int64_t n = 0; n < fv_tensor_count(&args.k); n++)
        ((float *)args.k.data)[n] = fabsf(((float *)args.k.data)[n]);
    for (int causal = 0; causal < 2; causal++) {
        fv_tensor joint, split;
        args.causal = causal;
        joint = test_specs_forward(ctx, "taylor2", &args);
        split = test_specs_forward(ctx, "taylor2:denominator=split", &args);
        for (int64_t n = 0; n < fv_tensor_count(&joint); n++) {
            assert_float_equal(((float *)joint.data)[n], 1, TOLERANCE);
            assert_float_equal(((float *)split.data)[n], 3, TOLERANCE);
        }
    }
}

static void orders_count_once_each(void **unused)
{
    (void)unused;
    test_each_device(orders_count_once_each_on);
}

/* Features of 128 channels, 8385 numbers, that are not made all at once. */
static void series_of_many_tokens_go_in_parts(void **unused)
{
    static const int64_t lengths[][2] = {{900, 900}, {500, 900}, {900, 500}};

    (void)unused;
    for (int n = 0; n < 6; n++) {
        int64_t N = lengths[n / 2][0], M = lengths[n / 2][1];
        struct twin *f = twin_make(1, 4, 2, N, M, 128, 3);
        struct beside l;
        f->call.causal = n % 2;
        f->call.lse = f->lse;
        twin_forward(f, "taylor2");
        l = beside_open(f, "taylor2", "cpu");
        assert_ok(fv_attention_forward(l.ctx, l.attention, &l.args));
        test_close("o", &l.args.o, f->o, 4 * FLT_EPSILON * (double)(M + 128));
        test_close("lse", &l.args.lse, f->lse, 4 * FLT_EPSILON * (double)(M + 128));
        beside_close(&l);
        twin_drop(f);
    }
}

/* ---- fixedmap ---------------------------------------------------------------------------------------------------- */

/* A stream of 30 tokens for three batches of 17: dense attention with its first 17 rows, batch by batch, and its
 * gradients summed over them; what lies behind has none. */
static void streams_serve_every_batch_on(fv_ctx *ctx, int64_t key_heads)
{
    enum { B = 3, H = 4, N = 17, L = 30, D = 8 };
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, H, L, D)),
                              .k = test_random(ctx, 1, FV_DIMS(1, key_heads, L, D)),
                              .v = test_random(ctx, 1, FV_DIMS(B, 2, N, D)),
                              .o = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                              .lse = test_random(ctx, 1, FV_DIMS(B, H, N)),
                              .causal = true};
    fv_attention_grads grads = {.d_o = test_random(ctx, 1, FV_DIMS(B, H, N, D)),
                                .d_q = test_random(ctx, 1, 4, args.q.dims),
                                .d_k = test_random(ctx, 1, 4, args.k.dims),
                                .d_v = test_random(ctx, 1, 4, args.v.dims)};
    double *d_q = test_doubles(H * L * D), *d_k = test_doubles(key_heads * L * D);
    fv_attention *shared, *dense;

    assert_ok(fv_attention_new("fixedmap", &shared));
    assert_ok(fv_attention_new("dense", &dense));
    assert_ok(fv_attention_backward(ctx, shared, &args, &grads));
    for (int64_t b = 0; b < B; b++) { /* every query head with keys and values of its own */
        fv_attention_args one = {.q = test_random(ctx, 1, FV_DIMS(1, H, N, D)),
                                 .k = test_random(ctx, 1, FV_DIMS(1, H, N, D)),
                                 .v = test_random(ctx, 1, FV_DIMS(1, H, N, D)),
                                 .o = test_random(ctx, 1, FV_DIMS(1, H, N, D)),
                                 .lse = test_random(ctx, 1, FV_DIMS(1, H, N)),
                                 .causal = true};
        fv_attention_grads own = {.d_o = fv_slice(&grads.d_o, 0, b, 1),
                                  .d_q = test_random(ctx, 1, 4, one.q.dims),
                                  .d_k = test_random(ctx, 1, 4, one.k.dims),
                                  .d_v = test_random(ctx, 1, 4, one.v.dims)};
        double *d_v = test_doubles(2 * N * D);
        for (int64_t n = 0; n < H * N * D; n++) {
            int64_t h = n / N / D, i = n / D % N, d = n % D;
            *(float *)fv_at(&one.q, 0, h, i, d) = *(float *)fv_at(&args.q, 0, h, i, d);
            *(float *)fv_at(&one.k, 0, h, i, d) = *(float *)fv_at(&args.k, 0, h / (H / key_heads), i, d);
            *(float *)fv_at(&one.v, 0, h, i, d) = *(float *)fv_at(&args.v, b, h / 2, i, d);
        }
        assert_ok(fv_attention_forward(ctx, dense, &one));
        fv_tensor o = fv_slice(&args.o, 0, b, 1);
        test_specs_close("o", &o, &one.o, TOLERANCE);
        one.lse.data = NULL;
        assert_ok(fv_attention_backward(ctx, dense, &one, &own));
        for (int64_t n = 0; n < H * N * D; n++) {
            int64_t h = n / N / D, i = n / D % N, d = n % D;
            d_q[(h * L + i) * D + d] += ((float *)own.d_q.data)[n];
            d_k[(h / (H / key_heads) * L + i) * D + d] += ((float *)own.d_k.data)[n];
            d_v[(h / 2 * N + i) * D + d] += ((float *)own.d_v.data)[n];
        }
        o = fv_slice(&grads.d_v, 0, b, 1);
        test_close("d_v", &o, d_v, TOLERANCE);
        free(d_v);
    }
    test_close("d_q", &grads.d_q, d_q, TOLERANCE);
    test_close("d_k", &grads.d_k, d_k, TOLERANCE);
    free(d_q);
    free(d_k);
    fv_attention_free(shared);
    fv_attention_free(dense);
}

static void streams_of_both_kinds_on(fv_ctx *ctx)
{
    streams_serve_every_batch_on(ctx, 4);
    streams_serve_every_batch_on(ctx, 2);
}

static void streams_serve_every_batch(void **unused)
{
    (void)unused;
    test_each_device(streams_of_both_kinds_on);
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void shapes_that_do_not_fit_are_refused(void **unused)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, 9, 9, 8), own = args;

    (void)unused;
    own.q = fv_slice(&args.q, 2, 0, 5);
    own.o = fv_slice(&args.o, 2, 0, 5);
    own.lse.data = NULL;
    test_specs_refused(ctx, "selfgate", &own, FV_E_SHAPE, "as many queries as keys, got 5 and 9");
    test_specs_refused(ctx, "fixedmap", &args, FV_E_SHAPE, "expected one batch, which all of v share, got shapes [2,4");
    own = args;
    own.q = fv_slice(&args.q, 0, 0, 1);
    own.k = fv_slice(&args.k, 0, 0, 1);
    own.k = fv_slice(&own.k, 2, 0, 8);
    test_specs_refused(ctx, "fixedmap", &own, FV_E_SHAPE, "k: expected the length and head dim of q");
    own.q = fv_slice(&own.q, 2, 0, 8);
    test_specs_refused(ctx, "fixedmap", &own, FV_E_SHAPE, "v: expected at most the 8 tokens of k, got [2,2,9,8]");
    test_specs_refused(ctx, "taylor2:denominator=both", &args, FV_E_USAGE, "denominator");
    test_specs_refused(ctx, "fixedmap:rows=1", &args, FV_E_USAGE, "rows");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gates_of_zero_give_running_means), cmocka_unit_test(gates_may_grow_without_end),
        cmocka_unit_test(gates_are_dense_with_a_bias),      cmocka_unit_test(series_have_their_worked_numbers),
        cmocka_unit_test(orders_count_once_each),           cmocka_unit_test(series_of_many_tokens_go_in_parts),
        cmocka_unit_test(streams_serve_every_batch),        cmocka_unit_test(shapes_that_do_not_fit_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
