/* psa: the worked numbers of its definition in the library, chunks and steps of a causal sequence, what is refused. */
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "attention/mechanism.h"

struct fixture {
    fv_ctx *ctx;
    fv_attention *attention;
    fv_attention_args args;
    fv_named_tensor param[2];
};

static void begin(struct fixture *f, const char *device, const char *spec, int64_t H, int64_t Hkv, int64_t N, int64_t M,
                  int64_t D)
{
    f->ctx = test_ctx(device, 2);
    assert_ok(fv_attention_new(spec, &f->attention));
    f->args = (fv_attention_args){.q = test_random(f->ctx, 1, FV_DIMS(1, H, N, D)),
                                  .k = test_random(f->ctx, 1, FV_DIMS(1, Hkv, M, D)),
                                  .v = test_random(f->ctx, 1, FV_DIMS(1, Hkv, M, D)),
                                  .o = test_random(f->ctx, 1, FV_DIMS(1, H, N, D)),
                                  .param = f->param};
}

static void end(struct fixture *f)
{
    fv_attention_free(f->attention);
    fv_ctx_free(f->ctx);
}

static void give(struct fixture *f, const char *name, fv_dtype dtype, const void *data, int rank, const int64_t *dims)
{
    fv_named_tensor *param = &f->param[f->args.params++];

    param->name = name;
    assert_ok(fv_tensor_wrap(&param->tensor, (void *)data, dtype, rank, dims));
}

/* ---- worked numbers ---------------------------------------------------------------------------------------------- */

/* One query (q0, q1) and two channels of keys. */
static void expect_output(const char *spec, const float q[2], const float *k, const float *v, int64_t keys,
                          const int32_t *levels, int64_t blocks, double expected)
{
    const float scale = 1;

    for (int d = 0; test_devices[d]; d++) {
        struct fixture f;
        begin(&f, test_devices[d], spec, 1, 1, 1, keys, 2);
        memcpy(f.args.q.data, q, 2 * sizeof *q);
        memcpy(f.args.k.data, k, (size_t)keys * 2 * sizeof *k);
        for (int64_t j = 0; j < 2 * keys; j++)
            ((float *)f.args.v.data)[j] = v[j / 2];
        f.args.scale = &scale;
        give(&f, "levels", FV_I32, levels, FV_DIMS(1, 1, 1, blocks));
        assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
        test_close(spec, &f.args.o, (const double[]){expected, expected}, 1e-6);
        end(&f);
    }
}

static void worked_outputs(void **state)
{
    static const float three[] = {.3f, .2f, .3f, .2f, 1, 0}, values[] = {1, 3, 10}, q[] = {1, .5f}, first[] = {1, 0};
    float k[20] = {0}, v[10] = {1, 2, 0, 0, 0, 0, 0, 0, 3, 4};
    (void)state;

    expect_output("psa:block_k=8", q, three, values, 3, (const int32_t[]){1}, 1, 5.813840);
    expect_output("psa:block_k=8", q, three, values, 3, (const int32_t[]){2}, 1, 5.813840);
    expect_output("psa:block_k=8,log_bias=0", q, three, values, 3, (const int32_t[]){2}, 1, 7.165250);
    for (int j = 0; j < 10; j++)
        k[2 * j] = -1e4f;
    k[0] = 0, k[2] = .4f, k[16] = 1.2f, k[18] = 1.1f;
    expect_output("psa:block_k=8", first, k, v, 10, (const int32_t[]){1, 1}, 2, 2.944685);
    expect_output("psa:block_k=8", first, k, v, 10, (const int32_t[]){2, 1}, 2, 2.924714);
    expect_output("psa:block_k=8", first, k, v, 10, (const int32_t[]){0, 1}, 2, 3.475021);
}

static void expect_levels(const char *spec, const int *expected)
{
    static const float importance[] = {.40f, .02f, .25f, .03f, .10f, .08f, .07f, .05f};

    for (int d = 0; test_devices[d]; d++) {
        struct fixture f;
        fv_tensor map;
        void *owned;
        begin(&f, test_devices[d], spec, 1, 1, 64, 64, 16);
        give(&f, "importance", FV_F32, importance, FV_DIMS(1, 1, 1, 8));
        assert_ok(fv_attention_map(f.ctx, f.attention, &f.args, &map, &owned));
        for (int n = 0; n < 64 * 64; n++)
            if (((uint8_t *)map.data)[n] != expected[n % 64 / 8])
                fail_msg("%s, key %d: expected level %d, got %d", spec, n % 64, expected[n % 64 / 8],
                         ((uint8_t *)map.data)[n]);
        fv_release(owned);
        end(&f);
    }
}

static void worked_levels(void **state)
{
    (void)state;

    expect_levels("psa:block_q=64,block_k=8,mode=bound,min_full=0,round=0", (const int[]){1, 0, 1, 0, 8, 8, 0, 0});
    expect_levels("psa:block_q=64,block_k=8,mode=topk,widths=0.25+0.25+0.125+0.125,round=0",
                  (const int[]){1, 0, 1, 0, 2, 2, 4, 8});
    expect_levels("psa:block_q=64,block_k=8,mode=energy,round=0", (const int[]){1, 0, 8, 0, 8, 0, 0, 0});
    expect_levels("psa:block_q=64,block_k=8,mode=topk,tile=2,widths=0.25+0.25+0.125+0.375",
                  (const int[]){1, 0, 1, 8, 2, 2, 4, 8});
    expect_levels("psa:block_q=64,block_k=8,mode=bound,bounds=0.1,min_full=0.5,round=0",
                  (const int[]){1, 0, 1, 0, 1, 1, 1, 0}); /* half of eight, and one */
    expect_levels("psa:block_q=64,block_k=8,mode=topk,widths=0+0+0+0.1,round=0,text=9",
                  (const int[]){1, 0, 0, 0, 0, 0, 1, 1});
}

/* Blocks whose keys are alike in eights, in fours, in pairs and not at all; the last one has fewer than eight. */
static void levels_are_capped(void **state)
{
    static const int expected[] = {8, 4, 2, 1, 1};
    static const float importance[] = {.1f, .1f, .1f, .1f, .9f}; /* the best one has level 1 anyway */
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        struct fixture f;
        fv_tensor map;
        void *owned;
        begin(&f, test_devices[d], "psa:block_k=8,mode=topk,widths=0+0+0+1,round=0,sim_cap=0.9+0.9+0.9", 1, 1, 38, 38,
              16);
        for (int64_t j = 0; j < 32; j++) /* a row is that of the first of its group */
            memcpy((float *)f.args.k.data + j * 16, (float *)f.args.k.data + (j & ~(7 >> j / 8)) * 16,
                   16 * sizeof(float));
        give(&f, "importance", FV_F32, importance, FV_DIMS(1, 1, 1, 5));
        assert_ok(fv_attention_map(f.ctx, f.attention, &f.args, &map, &owned));
        for (int j = 0; j < 38; j++)
            assert_int_equal(((uint8_t *)map.data)[j], expected[j / 8]);
        fv_release(owned);
        end(&f);
    }
}

/* ---- sequences --------------------------------------------------------------------------------------------------- */

static void run_chunk(struct fixture *f, fv_attention_state *state, int64_t from, int64_t count, double *pairs)
{
    fv_attention_args part = f->args;
    fv_call call;

    part.q = fv_slice(&f->args.q, 2, from, count);
    part.o = fv_slice(&f->args.o, 2, from, count);
    part.k = fv_slice(&f->args.k, 2, 0, from + count);
    part.v = fv_slice(&f->args.v, 2, 0, from + count);
    assert_ok(fv_call_chunk(f->attention, &part, &call));
    call.pairs = pairs;
    assert_ok(fv_attention_chunk(f->ctx, f->attention, &call, state, NULL));
}

/* Chunks that end with query blocks give what the whole call gives; a token alone reads everything. */
static void chunks_and_steps(void **state)
{
    static const char *const specs[] = {"psa:block_q=16,block_k=8,widths=0.2+0.2+0.2+0.2",
                                        "psa:block_q=16,block_k=32,sample=5,widths=0.1+0.3+0.2+0.2",
                                        "psa:block_q=16,block_k=16,estimate=antidiagonal,widths=0.2+0.2+0.2+0.2",
                                        "psa:block_q=16,block_k=16,mode=energy,bounds=0.1+0.3+0.5+0.9"};
    (void)state;

    for (int s = 0; s < 4; s++)
        for (int d = 0; test_devices[d]; d++) {
            struct fixture f;
            double pairs = 0, *expected;
            fv_work work;
            begin(&f, test_devices[d], specs[s], 4, 2, 90, 90, 16);
            f.args.causal = true;
            int64_t count = fv_tensor_count(&f.args.o);
            expected = calloc((size_t)count, sizeof *expected);
            assert_non_null(expected);
            assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
            assert_ok(fv_attention_work(f.ctx, f.attention, &f.args, &work));
            assert_true(work.density < 0.9);
            for (int64_t n = 0; n < count; n++)
                expected[n] = ((float *)f.args.o.data)[n];
            memset(f.args.o.data, 0, (size_t)count * sizeof(float));
            run_chunk(&f, NULL, 0, 48, &pairs);
            run_chunk(&f, NULL, 48, 16, &pairs);
            run_chunk(&f, NULL, 64, 26, &pairs);
            test_close(specs[s], &f.args.o, expected, 1e-5);
            assert_true(pairs == (double)work.pairs);
            pairs = 0;
            run_chunk(&f, NULL, 89, 1, &pairs);
            assert_true(pairs == 4 * 90);
            free(expected);
            end(&f);
        }
}

static fv_tensor halves(fv_ctx *ctx, const fv_tensor *x)
{
    fv_tensor half;

    assert_ok(fv_tensor_new(ctx, &half, FV_F16, x->rank, x->dims));
    for (int64_t n = 0; n < fv_tensor_count(x); n++)
        ((uint16_t *)half.data)[n] = fv_f32_to_f16(((float *)x->data)[n]);
    return half;
}

/* Means are made once: a sequence that has them does not read the keys of whole blocks for them again, and a chunk is
 * what it is without them.  Of halves they are halves. */
static void means_are_kept(void **state)
{
    const fv_call sizes = {.query_heads = 4, .key_heads = 2, .head_dim = 16, .value_dim = 16};
    (void)state;

    for (int n = 0; test_devices[n / 2]; n++) {
        struct fixture f;
        fv_attention_state kept = {0};
        int64_t width, rows, count = 4 * 90 * 16;
        double *expected = calloc((size_t)count, sizeof *expected);
        bool half = n % 2;

        assert_non_null(expected);
        begin(&f, test_devices[n / 2], "psa:block_q=16,block_k=16,widths=0.1+0.3+0.3+0.3", 4, 2, 90, 90, 16);
        f.args.causal = true;
        if (half) f.args.k = halves(f.ctx, &f.args.k);
        if (half) f.args.v = halves(f.ctx, &f.args.v);
        for (int64_t from = 0; from < 90; from += 48)
            run_chunk(&f, NULL, from, fv_min(48, 90 - from), NULL);
        for (int64_t e = 0; e < count; e++)
            expected[e] = ((float *)f.args.o.data)[e];
        for (int kind = 0; kind < 2; kind++) {
            rows = fv_attention_kept(f.attention, &sizes, kind, 90, &width);
            assert_int_equal(rows, 5 * (8 + 4 + 2));
            assert_ok(fv_tensor_new(f.ctx, &kept.kept[kind].rows, half ? FV_BF16 : FV_F32, FV_DIMS(1, 2, rows, width)));
        }
        memset(f.args.o.data, 0, (size_t)count * sizeof(float));
        for (int64_t from = 0; from < 90; from += 48)
            run_chunk(&f, &kept, from, fv_min(48, 90 - from), NULL);
        test_close(half ? "halves" : "floats", &f.args.o, expected, 1e-6);
        for (int kind = 0; kind < 2; kind++) {
            int64_t made = kept.kept[kind].count;
            assert_true(made > 3 * 14); /* those of the first chunk, and more */
            memset(fv_at(&kept.kept[kind].rows, 0, 0, 14, 0),
                   0, /* of the second block: the first one is read by keys */
                   (size_t)(14 * 16) * fv_dtype_size(kept.kept[kind].rows.dtype));
            run_chunk(&f, &kept, 48, 42, NULL);
            assert_int_equal(kept.kept[kind].count, made);
        }
        double moved = 0;
        for (int64_t h = 0; h < 4; h++)
            for (int64_t e = 48 * 16; e < 90 * 16; e++)
                moved = fmax(moved, fabs(((float *)f.args.o.data)[h * 90 * 16 + e] - expected[h * 90 * 16 + e]));
        assert_true(moved > 1e-4); /* a mean that is there is not made again */
        free(expected);
        end(&f);
    }
}

static void what_is_not_finite_does_no_harm(void **state)
{
    static const char *const specs[] = {"psa:block_q=8,block_k=8,sim_cap=0.1+0.1+0.1",
                                        "psa:block_q=16,block_k=16,estimate=antidiagonal",
                                        "psa:block_q=8,block_k=8,order=kmeans", "psa:block_q=8,block_k=8,mode=energy"};
    (void)state;

    for (int s = 0; s < 4; s++)
        for (int d = 0; test_devices[d]; d++) {
            struct fixture f;
            begin(&f, test_devices[d], specs[s], 2, 1, 45, 45, 16);
            for (int i = 0; i < 45 * 16; i += 7)
                ((float *)f.args.k.data)[i] = i % 3 ? NAN : i % 2 ? INFINITY : -INFINITY;
            assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
            end(&f);
        }
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static void specs_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"psa:block_k=12", "a multiple of 8, got 12"},
        {"psa:block_q=24,estimate=antidiagonal", "multiples of 16, got 24 and 128"},
        {"psa:bounds=0.5+0.4", "rising numbers, got 0.4 after 0.5"},
        {"psa:bounds=0.1+0.2+0.3+0.4+0.5", "at most 4 numbers, got 5"},
        {"psa:widths=0.5+0.6", "a sum of at most 1, got 1.1"},
        {"psa:sim_cap=0.5", "0 or three cosines"},
        {"psa:sim_cap=0.5+0.6", "0 or three cosines, got 2"},
        {"psa:order=tile", "'grid' must be given for order=tile"},
        {"psa:order=gilbert,grid=2x2x2x2", "1 to 3 axes, got 4"},
        {"psa:mode=most", "auto or topk or bound or energy"},
    };
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
}

static void calls_are_refused(void **state)
{
    static const int32_t levels[] = {1, 2, 4, 8, 0, 3};
    struct fixture f;
    (void)state;

    begin(&f, "cpu", "psa:block_q=16,block_k=8,order=gilbert,grid=4x5,text=4", 2, 1, 24, 24, 16);
    assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
    f.args.causal = true;
    assert_fails(fv_attention_forward(f.ctx, f.attention, &f.args), FV_E_USAGE, "order=gilbert cannot be causal");
    end(&f);
    begin(&f, "cpu", "psa:order=tile,grid=4x5", 2, 1, 24, 24, 16);
    assert_fails(fv_attention_forward(f.ctx, f.attention, &f.args), FV_E_SHAPE, "20 cells, but there are 24 tokens");
    end(&f);
    begin(&f, "cpu", "psa:order=kmeans", 2, 1, 20, 24, 16);
    assert_fails(fv_attention_forward(f.ctx, f.attention, &f.args), FV_E_SHAPE, "as many queries as keys");
    end(&f);
    begin(&f, "cpu", "psa:block_q=16,block_k=8", 2, 1, 24, 24, 16);
    assert_fails(fv_attention_decode(f.ctx, f.attention, &f.args), FV_E_USAGE, "decoding needs causal");
    f.args.causal = true;
    assert_fails(fv_attention_decode(f.ctx, f.attention, &f.args), FV_E_USAGE, "has no decoding of its own");
    give(&f, "levels", FV_I32, levels, FV_DIMS(1, 1, 2, 3));
    assert_fails(fv_attention_forward(f.ctx, f.attention, &f.args), FV_E_SHAPE, "0, 1, 2, 4 or 8, got 3");
    f.args.params = 0;
    give(&f, "levels", FV_I32, levels, FV_DIMS(1, 1, 3, 2));
    assert_fails(fv_attention_forward(f.ctx, f.attention, &f.args), FV_E_SHAPE, "[1|B, 1|H, nq, nk] = [1,2,2,3]");
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_outputs),    cmocka_unit_test(worked_levels),
        cmocka_unit_test(levels_are_capped), cmocka_unit_test(chunks_and_steps),
        cmocka_unit_test(means_are_kept),    cmocka_unit_test(what_is_not_finite_does_no_harm),
        cmocka_unit_test(specs_are_refused), cmocka_unit_test(calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
