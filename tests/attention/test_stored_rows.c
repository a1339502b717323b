/* Every mechanism that models run over rows as a cache stores them: keys and values of each type give what the numbers
 * they stand for give in f32, for all queries and for the last one alone. */
#include <float.h>
#include <math.h>
#include <stdio.h>

#include "attention/mechanism.h"
#include "ops/blocks.h"
#include "support/cases.h"
#include "support/support.h"

static const fv_dtype types[][2] = {
    {FV_Q8_0, FV_Q8_0}, {FV_Q4_0, FV_Q4_0}, {FV_Q8_0, FV_Q4_0}, {FV_F16, FV_Q4_0}, {FV_Q4_0, FV_BF16}};

struct trial {
    const conformance_case *c;
    fv_ctx *ctx;
    fv_attention *attention;
    char what[160];
};

/* Random rows as `stored` of a type, and as the f32 numbers that these are. */
static void draw(fv_ctx *ctx, fv_dtype type, int64_t heads, int64_t rows, int64_t width, fv_tensor *stored,
                 fv_tensor *plain)
{
    int64_t count = heads * rows * width;

    *plain = test_random(ctx, 1, FV_DIMS(1, heads, rows, width));
    assert_ok(fv_tensor_new(ctx, stored, type, FV_DIMS(1, heads, rows, width)));
    fv_blocks_store(type, plain->data, count, stored->data);
    fv_blocks_load(type, stored->data, 0, count / fv_dtype_block(type), plain->data);
}

/* The last `queries` of the case over given rows. */
static fv_tensor run(const struct trial *t, const fv_tensor *q, const fv_tensor *k, const fv_tensor *v, int64_t queries)
{
    const fv_mechanism *mechanism = fv_attention_mechanism(t->attention);
    int64_t width = fv_attention_state_width(t->attention, q->dims[3]), from = q->dims[2] - queries;
    bool recurrent = (mechanism->traits & FV_RECURRENT) != 0;
    fv_attention_args args = {.q = fv_slice(q, 2, from, queries), .k = *k, .v = *v, .causal = true};
    fv_attention_state state = {0};
    fv_call call;

    if (recurrent) { /* its chunk brings the rows of its own queries */
        args.k = fv_slice(k, 2, k->dims[2] - queries, queries);
        args.v = fv_slice(v, 2, v->dims[2] - queries, queries);
        assert_ok(fv_tensor_zeros(t->ctx, &state.s, FV_F32, FV_DIMS(1, q->dims[1], width, v->dims[3])));
        assert_ok(fv_tensor_zeros(t->ctx, &state.z, FV_F32, FV_DIMS(1, q->dims[1], width)));
    }
    assert_ok(fv_tensor_new(t->ctx, &args.o, FV_F32, FV_DIMS(1, q->dims[1], queries, v->dims[3])));
    if (fv_call_chunk(t->attention, &args, &call) != FV_OK ||
        fv_attention_chunk(t->ctx, t->attention, &call, recurrent ? &state : NULL, NULL) != FV_OK)
        fail_msg("%s: %s", t->what, fv_error());
    return args.o;
}

static void compare(const struct trial *t, fv_dtype key_type, fv_dtype value_type)
{
    const conformance_case *c = t->c;
    int64_t D = fv_round_up(c->D, 32), Dv = fv_round_up(c->Dv, 32);
    fv_tensor q = test_random(t->ctx, 1, FV_DIMS(1, c->H, c->N, D)), k[2], v[2];
    /* the same numbers, but for the order of sums of up to M weights of up to D products */
    double tolerance = 4 * FLT_EPSILON * (double)(c->M + D + Dv);

    draw(t->ctx, key_type, c->Hkv, c->M, D, &k[0], &k[1]);
    draw(t->ctx, value_type, c->Hkv, c->M, Dv, &v[0], &v[1]);
    for (int alone = 0; alone < 2; alone++) {
        if (alone && fv_attention_mechanism(t->attention)->traits & FV_NEEDS_KEPT) break;
        int64_t queries = alone ? 1 : c->N;
        fv_tensor got = run(t, &q, &k[0], &v[0], queries), expected = run(t, &q, &k[1], &v[1], queries);
        for (int64_t i = 0; i < fv_tensor_count(&got); i++) {
            float a = ((const float *)got.data)[i], b = ((const float *)expected.data)[i];
            if (!(fabs((double)a - (double)b) <= tolerance * (1 + fabs((double)b))))
                fail_msg("%s, %lld queries, k %s, v %s: o[%lld]: expected %.9g, got %.9g", t->what, (long long)queries,
                         fv_dtype_name(key_type), fv_dtype_name(value_type), (long long)i, (double)b, (double)a);
        }
    }
}

static void rows_of_every_type_stand_for_their_numbers(void **state)
{
    int checked = 0;
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (const conformance_case *c = conformance_cases; c->spec; c++) {
            struct trial t = {.c = c, .ctx = test_ctx(test_devices[d], 2)};
            fv_mark mark = fv_scratch_mark(t.ctx);
            assert_ok(fv_attention_new(c->spec, &t.attention));
            unsigned traits = fv_attention_mechanism(t.attention)->traits;
            snprintf(t.what, sizeof t.what, "%s on %s", c->spec, fv_ctx_backend(t.ctx));
            t.ctx->precision = FV_PRECISION_F32; /* what is 16 bits wide may else be multiplied so */
            bool taken =
                !(traits & FV_NEVER_CAUSAL) && !c->params && !c->no_decode && c->N <= c->M &&
                (c->causal || (traits & FV_CAUSAL)); /* grids have options that only causality makes sense of */
            for (size_t n = 0; taken && n < sizeof types / sizeof *types; n++) {
                compare(&t, types[n][0], types[n][1]);
                fv_scratch_release(t.ctx, mark);
                checked++;
            }
            fv_attention_free(t.attention);
            fv_ctx_free(t.ctx);
        }
    assert_true(checked >= 100);
}

/* Rows of half a block cannot be. */
static void rows_are_whole_blocks(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention *attention;
    fv_attention_args args = {.q = test_random(ctx, 1, FV_DIMS(1, 1, 1, 16)), .causal = true};
    fv_call call;
    (void)state;

    assert_ok(fv_attention_new("moba", &attention));
    assert_ok(fv_tensor_new(ctx, &args.o, FV_F32, FV_DIMS(1, 1, 1, 16)));
    assert_ok(fv_tensor_new(ctx, &args.k, FV_Q4_0, FV_DIMS(1, 1, 2, 16)));
    assert_ok(fv_tensor_new(ctx, &args.v, FV_Q4_0, FV_DIMS(1, 1, 2, 16)));
    assert_fails(fv_call_chunk(attention, &args, &call), FV_E_SHAPE,
                 "moba: k: expected rows of whole q4_0 blocks of 32");
    assert_fails(fv_call_make(attention, &args, &call), FV_E_DTYPE, "moba: k: expected f32, f16 or bf16, got q4_0");
    fv_attention_free(attention);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(rows_of_every_type_stand_for_their_numbers),
                                       cmocka_unit_test(rows_are_whole_blocks)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
