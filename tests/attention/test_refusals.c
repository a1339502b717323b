/* What is wrong is refused with the right status and a sentence that names it. */
#include "support/support.h"

#include <math.h>

#include "attention/mechanism.h"

static void specs_are_refused_as_usage(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"denes", "did you mean 'dense'"},
        {"dense:windw=3", "did you mean 'window'"},
        {"dense:window=-1", "got '-1'"},
        {"sinkwin:sink=1+2,window=1+2+3", "has 2 items and 'window' has 3"},
        {"sinkwin:window=0", "expected 1 to"},
        {"gna:window=3", "'grid' must be given"},
        {"gna:grid=8", "'window' must be given"},
        {"gna:grid=2x2x2x2,window=2", "1 to 3 axes"},
        {"gna:grid=8x8,window=3x3x3", "expected 1 or 2 items"},
        {"gna:grid=8,window=9", "at most the axis"},
        {"gna:grid=8,window=3,dilation=3", "at most the axis"},
        {"gna:grid=8,window=3,stride=4", "at most the window"},
        {"power:base=1", "expected 2 to"},
        {"lightning2:decay=fast", "alibi or none"},
        {"hedgehog:map=tanh", "softmax or exp"},
        {"bra:grid=8", "rows x columns"},
        {"bra", "'grid' must be given"},
        {"nsa:top=2", "at least init + local = 3"},
        {"nsa:block=24", "multiples of compress_stride 16"},
        {"nsa:compress_block=20", "multiples of compress_stride 16"},
        {"agent:grid=7x7,agents=48", "perfect square"},
        {"agent:grid=7", "rows x columns"},
        {"moba:top=0", "expected 1 to"},
        {"hip:k=9,block_k=2", "a multiple of block_k 2, got 9"},
        {"hip:rep=middle", "first or centre or last"},
    };
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
        assert_null(attention);
    }
}

/* A call of 1 x 4 x 12 x 16 queries and 2 key heads, to be spoilt. */
struct sound {
    fv_ctx *ctx;
    fv_attention *attention;
    fv_attention_args args;
    fv_named_tensor param[2];
};

static struct sound sound(const char *spec)
{
    struct sound s = {.ctx = test_ctx("cpu", 1)};

    assert_ok(fv_attention_new(spec, &s.attention));
    s.args.q = test_random(s.ctx, 1, FV_DIMS(1, 4, 12, 16));
    s.args.k = test_random(s.ctx, 1, FV_DIMS(1, 2, 12, 16));
    s.args.v = test_random(s.ctx, 1, FV_DIMS(1, 2, 12, 24));
    s.args.o = test_random(s.ctx, 1, FV_DIMS(1, 4, 12, 24));
    return s;
}

static void refuse(struct sound *s, fv_status status, const char *words)
{
    assert_fails(fv_attention_forward(s->ctx, s->attention, &s->args), status, words);
    fv_attention_free(s->attention);
    fv_ctx_free(s->ctx);
}

static void shapes_are_refused(void **state)
{
    static const struct {
        int which; /* q, k, v, o, lse */
        int rank;
        int64_t dims[4];
        const char *words;
    } spoilt[] = {
        {0, 3, {4, 12, 16}, "q: expected 4 dims"},       {1, 4, {1, 3, 12, 16}, "3 key-value heads do not divide 4"},
        {1, 4, {2, 2, 12, 16}, "k: expected the batch"}, {1, 4, {1, 2, 12, 8}, "k: expected the batch and head dim"},
        {2, 4, {1, 2, 11, 24}, "v: expected"},           {3, 4, {1, 4, 12, 16}, "o: expected [1,4,12,24]"},
        {4, 3, {1, 4, 11}, "lse: expected [1,4,12]"},    {0, 4, {1, 4, 12, 0}, "q: expected dims"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        struct sound s = sound("dense");
        fv_tensor *const which[] = {&s.args.q, &s.args.k, &s.args.v, &s.args.o, &s.args.lse};
        *which[spoilt[i].which] = test_random(s.ctx, 1, spoilt[i].rank, spoilt[i].dims);
        if (spoilt[i].which == 1 && spoilt[i].dims[1] == 3) s.args.v = test_random(s.ctx, 1, FV_DIMS(1, 3, 12, 24));
        refuse(&s, FV_E_SHAPE, spoilt[i].words);
    }
}

static void grids_and_heads_that_do_not_fit_are_shapes(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"gna:grid=13,window=3", "13 cells"},
        {"bra:grid=3x5,regions=2,top=1", "it has 15 cells"},
        {"agent:grid=3x5,agents=4", "15 cells"},
        {"sinkwin:sink=1,window=2+3+4", "one item per key-value head (2), got 3"},
        {"bra:grid=2147483647x2147483647", "cells"},
        {"gna:grid=2147483647x2147483647x2147483647,window=2", "cells"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        struct sound s = sound(refused[i].spec);
        refuse(&s, FV_E_SHAPE, refused[i].words);
    }
}

static void params_are_checked(void **state)
{
    static const struct {
        const char *spec, *name;
        int rank;
        int64_t dims[4];
        fv_status status;
        const char *words;
    } spoilt[] = {
        {"dense", "bia", 4, {1, 4, 12, 12}, FV_E_USAGE, "did you mean 'bias'"},
        {"dense", "bias", 4, {1, 4, 12, 11}, FV_E_SHAPE, "[1|B, 1|H, N, M] = [1,4,12,12], got [1,4,12,11]"},
        {"dense", "bias", 3, {4, 12, 12}, FV_E_SHAPE, "got [4,12,12]"},
        {"dense", "sinks", 1, {3}, FV_E_SHAPE, "[H] = [4], got [3]"},
        {"power", "bias", 1, {3}, FV_E_USAGE, "has none"},
        {"gna:grid=12,window=3", "extra_k", 4, {1, 2, 3, 16}, FV_E_USAGE, "need one another"},
        {"hedgehog", "q_weight", 3, {4, 16, 8}, FV_E_SHAPE, "got [4,16,8]"},
        {"nsa:compress=mean", "compress_k", 3, {2, 512, 16}, FV_E_USAGE, "need compress=linear"},
        {"nsa", "compress_k", 3, {2, 500, 16}, FV_E_SHAPE, "compress_block*D, D] = [2,512,16]"},
        {"agent", "bias1", 3, {4, 49, 12}, FV_E_USAGE, "'grid' must be given to pool"},
        {"agent", "agents", 4, {1, 4, 3, 15}, FV_E_SHAPE, "got [1,4,3,15]"},
        {"agent:grid=3x4,agents=4", "dwc_bias", 1, {95}, FV_E_SHAPE, "got [95]"},
        {"bra:grid=3x4", "lepe_bias", 1, {95}, FV_E_SHAPE, "got [95]"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof spoilt / sizeof *spoilt; i++) {
        struct sound s = sound(spoilt[i].spec);
        s.param[0] = (fv_named_tensor){spoilt[i].name, test_random(s.ctx, 1, spoilt[i].rank, spoilt[i].dims)};
        s.args.params = 1;
        s.args.param = s.param;
        refuse(&s, spoilt[i].status, spoilt[i].words);
    }
}

static void params_that_name_one_size_agree(void **state)
{
    struct sound s = sound("hedgehog");
    (void)state;

    s.param[0] = (fv_named_tensor){"q_weight", test_random(s.ctx, 1, FV_DIMS(4, 16, 8))};
    s.param[1] = (fv_named_tensor){"k_weight", test_random(s.ctx, 1, FV_DIMS(4, 16, 9))};
    s.args.params = 2;
    s.args.param = s.param;
    refuse(&s, FV_E_SHAPE, "[4,16,8], got [4,16,9]");
    s = sound("hedgehog");
    s.param[0] = s.param[1] = (fv_named_tensor){"q_bias", test_random(s.ctx, 1, FV_DIMS(4, 16))};
    s.args.params = 2;
    s.args.param = s.param;
    refuse(&s, FV_E_USAGE, "twice");
}

/* Every mechanism refuses what its traits say it has not. */
static void traits_refuse(void **state)
{
    static const char *const specs[] = {
        "dense",      "sinkwin",  "gna:grid=12,window=3",   "power", "moba", "bra:grid=3x4,regions=2,top=1", "nsa",
        "lightning2", "hedgehog", "agent:grid=3x4,agents=4"};
    (void)state;

    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) {
        static const struct {
            unsigned trait;
            const char *words;
        } refused[] = {{FV_NEVER_CAUSAL, "cannot be causal"},
                       {FV_NO_SCALE, "has no scale"},
                       {FV_NO_LSE, "no log-sum-exp"},
                       {FV_SELF_ONLY, "as many queries as keys"}};
        for (int r = 0; r < 4; r++) {
            struct sound s = sound(specs[i]);
            float scale = 2;
            unsigned trait = refused[r].trait;
            if (trait == FV_NEVER_CAUSAL) s.args.causal = true;
            if (trait == FV_NO_SCALE) s.args.scale = &scale;
            if (trait == FV_NO_LSE) s.args.lse = test_random(s.ctx, 1, FV_DIMS(1, 4, 12));
            if (trait == FV_SELF_ONLY) s.args.k = s.args.v = s.args.o = test_random(s.ctx, 1, FV_DIMS(1, 2, 13, 16));
            if (trait == FV_SELF_ONLY) s.args.o = test_random(s.ctx, 1, FV_DIMS(1, 4, 12, 16));
            if (fv_attention_mechanism(s.attention)->traits & trait) {
                refuse(&s, trait == FV_SELF_ONLY ? FV_E_SHAPE : FV_E_USAGE, refused[r].words);
                continue;
            }
            assert_ok(fv_attention_forward(s.ctx, s.attention, &s.args));
            fv_attention_free(s.attention);
            fv_ctx_free(s.ctx);
        }
    }
}

static void odd_numbers_are_refused_or_survived(void **state)
{
    struct sound s = sound("dense");
    float scale = NAN;
    (void)state;

    s.args.scale = &scale;
    refuse(&s, FV_E_USAGE, "finite");
    s = sound("lightning2");
    s.param[0] = (fv_named_tensor){"decay", test_random(s.ctx, 1, FV_DIMS(4))};
    ((float *)s.param[0].tensor.data)[2] = -0.5f;
    s.args.params = 1;
    s.args.param = s.param;
    refuse(&s, FV_E_SHAPE, "rates >= 0");
    s = sound(
        "nsa:compress_block=4,compress_stride=2,block=2,top=4,rope_base=100"); /* NaN and huge values may come in */
    ((float *)s.args.q.data)[3] = NAN;
    ((float *)s.args.k.data)[5] = 3e38f;
    ((float *)s.args.v.data)[7] = INFINITY;
    assert_ok(fv_attention_forward(s.ctx, s.attention, &s.args));
    fv_attention_free(s.attention);
    fv_ctx_free(s.ctx);
}

static void chunks_refuse_terms_they_cannot_take(void **state)
{
    struct sound s = sound("hedgehog");
    fv_attend_args extra = {.logits = {.softcap = 50}};
    fv_call call;
    (void)state;

    assert_ok(fv_call_chunk(s.attention, &s.args, &call));
    assert_fails(fv_attention_chunk(s.ctx, s.attention, &call, NULL, &extra), FV_E_UNSUPPORTED, "soft-cap");
    fv_attention_free(s.attention);
    fv_ctx_free(s.ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(specs_are_refused_as_usage),
        cmocka_unit_test(shapes_are_refused),
        cmocka_unit_test(grids_and_heads_that_do_not_fit_are_shapes),
        cmocka_unit_test(params_are_checked),
        cmocka_unit_test(params_that_name_one_size_agree),
        cmocka_unit_test(traits_refuse),
        cmocka_unit_test(odd_numbers_are_refused_or_survived),
        cmocka_unit_test(chunks_refuse_terms_they_cannot_take),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
