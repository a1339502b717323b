/* Static masks: worked numbers of their definitions, what they are equal to, and what they refuse. */
#include <math.h>
#include <stdio.h>

#include "support/beside.h"
#include "support/specs.h"

/* A call in which every logit is 0 and the value of a key is its number. */
static struct twin *counting(int64_t H, int64_t Hkv, int64_t tokens)
{
    struct twin *f = twin_make(1, H, Hkv, tokens, tokens, 1, 1);

    for (int64_t n = 0; n < H * tokens; n++)
        f->q[n] = 0;
    for (int64_t n = 0; n < Hkv * tokens; n++)
        f->v[n] = (double)(n % tokens);
    return f;
}

/* Both SPECs give the same, of 4 query heads in 2 groups. */
static void alike(const char *spec, const char *other, int64_t tokens, bool causal)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_attention_args args = test_specs_args(ctx, 2, 4, 2, tokens, tokens, 16);

    args.causal = causal;
    test_specs_equal(ctx, spec, other, &args, 0, 1e-4);
    fv_ctx_free(ctx);
}

/* Share of pairs that a head of so many tokens reads. */
static double density(const char *spec, int64_t tokens)
{
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_tensor row = test_random(ctx, 1, FV_DIMS(1, 1, tokens, 1));
    fv_attention_args args = {.q = row, .k = row, .v = row, .o = row};
    fv_attention *attention;
    fv_work work;

    assert_ok(fv_attention_new(spec, &attention));
    assert_ok(fv_attention_work(ctx, attention, &args, &work));
    fv_attention_free(attention);
    fv_ctx_free(ctx);
    return work.density;
}

/* ---- s2 -----------------------------------------------------------------------------------------------------------
 */

static void shards_of_four_heads(void **state)
{
    struct twin *f = counting(4, 4, 10);
    (void)state;

    twin_set(f, "block", 1, 1);
    twin_set(f, "local", 1, 2);
    twin_set(f, "stride", 1, 4);
    beside_forward(f, "s2:block=1,local=2,stride=4");
    twin_sees(f, 0, 7, TWIN_KEYS(0, 4, 6, 7));
    twin_sees(f, 0, 9, TWIN_KEYS(0, 4, 8, 9));
    twin_sees(f, 1, 7, TWIN_KEYS(3, 6, 7));
    twin_sees(f, 2, 3, TWIN_KEYS(2, 3));
    twin_sees(f, 3, 3, TWIN_KEYS(1, 2, 3));
    twin_sees(f, 3, 9, TWIN_KEYS(1, 5, 8, 9));
    twin_sees(f, 1, 0, TWIN_KEYS(0));
    for (int64_t j = 0; j < 10; j++) { /* the heads together read everything */
        bool read = false;
        for (int64_t h = 0; h < 4; h++)
            read |= f->map[(h * 10 + 9) * 10 + j] != 0;
        assert_true(read);
    }
    twin_drop(f);
}

static void shards_have_limits(void **state)
{
    (void)state;
    alike("s2:block=4,local=1,stride=1", "dense", 37, true);
    alike("s2:block=4,local=10", "dense", 37, true);
    alike("s2:block=4,local=3,stride=1000,homo=1,offset=1", "sinkwin:sink=0,window=3,block=4", 37, true);
    alike("s2:block=4,local=3,stride=1000,homo=1", "sinkwin:sink=1,window=3,block=4", 37, true);
    alike("s2:block=4,dense_heads=2,local=1", "dense", 37, true);
    alike("s2:causal=0,block=3,local=2,stride=1", "dense", 37, false);
}

/* ---- lsattn -------------------------------------------------------------------------------------------------------
 */

static void long_and_short_heads(void **state)
{
    static const double means[] = {0, .5, 1.5, 2.5, 3.5, 4.5, 0, .5, 1, 1.5, 2, 2.5};
    struct twin *f = counting(2, 1, 6);
    (void)state;

    twin_set(f, "window", 1, 2);
    beside_forward(f, "lsattn:window=2");
    twin_close("window 2, and everything", f->o, means, 12, TWIN_EXACT);
    twin_drop(f);
    alike("lsattn:window=37", "dense", 37, true);
    alike("lsattn:window=3,global=4", "dense", 37, true);
    alike("lsattn:window=5,global=0", "sinkwin:sink=0,window=5", 37, true);
    alike("lsattn:window=5,global=0,causal=0", "dense:window=3", 37, false);
}

/* ---- s2attn, sfattn -----------------------------------------------------------------------------------------------
 */

static void groups_are_shifted(void **state)
{
    struct twin *f = counting(2, 1, 8);
    (void)state;

    twin_set(f, "group", 1, 4);
    twin_set(f, "sinks", 1, 1);
    beside_forward(f, "s2attn:group=4,sinks=1");
    twin_sees(f, 1, 3, TWIN_KEYS(0, 2, 3));
    twin_sees(f, 1, 7, TWIN_KEYS(0, 6, 7));
    twin_sees(f, 0, 5, TWIN_KEYS(0, 4, 5));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2));
    twin_drop(f);
}

/* The last group of a rolled head is the last tokens and then the first ones. */
static void rolled_groups_leak(void **state)
{
    struct twin *f = counting(2, 1, 16);
    (void)state;

    twin_set(f, "shift", 1, 1);
    beside_forward(f, "s2attn:shift=roll");
    twin_sees(f, 1, 0, TWIN_KEYS(0, 14, 15));
    twin_sees(f, 1, 1, TWIN_KEYS(0, 1, 14, 15));
    twin_sees(f, 1, 15, TWIN_KEYS(14, 15));
    twin_sees(f, 1, 5, TWIN_KEYS(2, 3, 4, 5));
    twin_sees(f, 0, 0, TWIN_KEYS(0));
    twin_drop(f);
}

static void groups_have_limits(void **state)
{
    (void)state;
    alike("s2attn:groups=1,return_share=1", "dense", 37, true);
    alike("s2attn:sinks=37", "dense", 37, true);
    alike("sfattn:return_share=0,sinks=0", "s2attn", 40, true);
    alike("s2attn:return_share=0.5,sinks=4,groups=5", "sfattn:groups=5", 40, true);
    alike("s2attn:causal=0,groups=1,return_share=1", "dense", 37, false);
}

/* ---- frame_tile ---------------------------------------------------------------------------------------------------
 */

static void frames_read_reference_frames(void **state)
{
    /* F, k and percent of blocks left out, of 3600 tokens a frame and blocks of 128 */
    static const struct {
        int frames, refs;
        double sparsity;
    } published[] = {{8, 4, 17.60},  {8, 3, 29.88},  {8, 2, 45.47},  {8, 1, 64.38}, {24, 12, 21.51},
                     {24, 8, 40.30}, {24, 6, 51.88}, {24, 4, 64.98}, {24, 3, 72.05}};
    struct twin *f = counting(1, 1, 4);
    char spec[64];
    (void)state;

    twin_set(f, "frames", 1, 4);
    twin_set(f, "refs", 1, 2);
    beside_forward(f, "frame_tile:frames=4,refs=2");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 2, 3));
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1, 2));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2, 3));
    twin_sees(f, 0, 3, TWIN_KEYS(0, 2, 3));
    twin_drop(f);
    for (size_t n = 0; n < sizeof published / sizeof *published; n++) {
        snprintf(spec, sizeof spec, "frame_tile:frames=%d,refs=%d,block=128", published[n].frames, published[n].refs);
        double sparsity = 100 * (1 - density(spec, published[n].frames * 3600));
        if (fabs(sparsity - published[n].sparsity) > 0.0051)
            fail_msg("%s: expected %g %% left out, got %g", spec, published[n].sparsity, sparsity);
    }
    assert_true(fabs(density("frame_tile:frames=8,refs=3", 160) - (1 - 0.3125)) < 1e-12);
    alike("frame_tile:frames=6,refs=6", "dense", 42, false);
}

/* ---- radial -------------------------------------------------------------------------------------------------------
 */

static void bands_halve_with_distance(void **state)
{
    static const struct {
        int frames, pairs;
    } counted[] = {{4, 220}, {8, 652}, {16, 1772}, {32, 4524}, {64, 11052}};
    struct twin *f = counting(1, 1, 16);
    char spec[64];
    (void)state;

    for (size_t n = 0; n < sizeof counted / sizeof *counted; n++) {
        double tokens = 4 * counted[n].frames;
        snprintf(spec, sizeof spec, "radial:frames=%d,form=token,sink=0", counted[n].frames);
        assert_int_equal(lround(density(spec, 4 * counted[n].frames) * tokens * tokens), counted[n].pairs);
    }
    twin_set(f, "frames", 1, 8);
    twin_set(f, "form", 1, 1);
    twin_set(f, "sink", 1, 0);
    beside_forward(f, "radial:frames=8,form=token,sink=0");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 2, 3, 4, 6, 8, 12)); /* 11111.1.1...1... */
    twin_sees(f, 0, 1, TWIN_KEYS(0, 1, 2, 3, 5, 7, 9, 13)); /* 1111.1.1.1...1.. */
    twin_drop(f);
    alike("radial:frames=2,form=token,sink=0", "dense", 20, false);
    alike("radial:frames=2,block=4,sink=0", "dense", 20, false);
    alike("radial:frames=3,block=4,decay=1000000,sink=0", "dense", 3 * 300, false); /* nothing is thinned */
}

static void released_blocks_are_as_sparse_as_said(void **state)
{
    /* 71.3 % counts neighbouring frames as full; the code of Wan reads half of them */
    static const struct {
        const char *spec;
        int64_t tokens;
        double sparsity;
    } computed[] = {{"radial:frames=30,decay=0.95,sink=0", 30 * 3840, 72.5},
                    {"radial:frames=18,decay=0.2", 18 * 3840, 71.3},
                    {"radial:frames=18,decay=0.2,near=half", 18 * 3840, 73.7},
                    {"radial:frames=32,sink=0", 32 * 3584, 70.5}};
    (void)state;

    for (size_t n = 0; n < sizeof computed / sizeof *computed; n++) {
        double sparsity = 100 * (1 - density(computed[n].spec, computed[n].tokens));
        if (fabs(sparsity - computed[n].sparsity) > 0.06)
            fail_msg("%s: expected %g %% left out, got %g", computed[n].spec, computed[n].sparsity, sparsity);
    }
}

/* ---- postmask, staticqk -------------------------------------------------------------------------------------------
 */

static void weights_are_masked_behind_the_softmax(void **state)
{
    static const double half[] = {.5, 2 / 3.0, 1}, none[] = {0, 1 / 3.0, 1}, all[] = {1, 1, 1};
    struct twin *f = counting(1, 1, 3);
    (void)state;

    beside_forward(f, "postmask");
    twin_close("alpha 0", f->o, none, 3, TWIN_EXACT);
    twin_set_number(f, "alpha", 0.5);
    beside_forward(f, "postmask:alpha=0.5");
    twin_close("alpha 0.5", f->o, half, 3, TWIN_EXACT);
    twin_set(f, "alpha", 1, 1);
    beside_forward(f, "postmask:alpha=1");
    twin_close("alpha 1", f->o, all, 3, TWIN_EXACT);
    twin_drop(f);
    alike("postmask:alpha=1", "dense", 37, false);
    alike("staticqk", "dense", 37, true);
}

/* A mask in which a row has nothing left, and one of single zeros. */
static void masks_may_hide_whole_rows(void **state)
{
    static const double mask[] = {0, 0, 0, 1, 0.25, 0, 0.5, 1, 0}, expected[] = {0, 0.25 / 3, 1 / 3.0};
    struct twin *f = counting(1, 1, 3);
    (void)state;

    twin_give(f, "mask", mask, TWIN_DIMS(1, 1, 3, 3));
    beside_forward(f, "postmask");
    twin_close("a mask", f->o, expected, 3, TWIN_EXACT);
    twin_drop(f);
}

/* ---- refusals ------------------------------------------------------------------------------------------------------
 */

static void options_that_contradict_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
    } refused[] = {
        {"s2:block=0", "expected 1 to"},
        {"s2:local_right=2", "needs causal=0"},
        {"s2:mode=both", "auto or absolute or relative"},
        {"frame_tile:refs=2", "'frames' must be given"},
        {"frame_tile:frames=4", "'refs' must be given"},
        {"frame_tile:frames=4,refs=5", "at most the frames, 4"},
        {"radial", "'frames' must be given"},
        {"radial:frames=4,decay=0", "more than 0"},
        {"radial:frames=4,form=token,near=half", "need form=block"},
        {"s2attn:return_share=1.5", "expected 0 to 1"},
        {"postmask:alpha=2", "expected 0 to 1"},
        {"lsattn:window=0", "expected 1 to"},
    };
    fv_attention *attention;
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        assert_fails(fv_attention_new(refused[i].spec, &attention), FV_E_USAGE, refused[i].words);
}

static void calls_that_do_not_fit_are_refused(void **state)
{
    static const struct {
        const char *spec;
        bool causal;
        fv_status status;
        const char *words;
    } refused[] = {
        {"s2:dense_heads=3", false, FV_E_SHAPE, "at most the key-value heads, 2, got 3"},
        {"s2:causal=0", true, FV_E_USAGE, "'causal': expected 1"},
        {"lsattn:global=5", false, FV_E_SHAPE, "at most the query heads, 4, got 5"},
        {"lsattn:causal=0", true, FV_E_USAGE, "'causal': expected 1"},
        {"s2attn:shift=roll,group=5", false, FV_E_SHAPE, "a multiple of the group's 5 tokens, got 21"},
        {"sfattn:shift=roll,group=7", true, FV_E_USAGE, "roll is not causal"},
        {"frame_tile:frames=4,refs=1", false, FV_E_SHAPE, "4 frames of equal length"},
        {"frame_tile:frames=1,refs=1,text=21", false, FV_E_SHAPE, "got 21 tokens"},
        {"frame_tile:frames=3,refs=1", true, FV_E_USAGE, "cannot be causal"},
        {"radial:frames=2", false, FV_E_SHAPE, "2 frames of equal length"},
        {"postmask", true, FV_E_USAGE, "cannot be causal"},
    };
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_attention_args args = test_specs_args(ctx, 1, 4, 2, 21, 21, 16);
    (void)state;

    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        args.causal = refused[i].causal;
        test_specs_refused(ctx, refused[i].spec, &args, refused[i].status, refused[i].words);
    }
    fv_ctx_free(ctx);
}

static void tensors_that_cannot_be_are_refused(void **state)
{
    static const double pattern[4] = {1, 0, 1, 1}, mask[9] = {0, 0, 0, 1.5, 0, 0, 0, 0, 0};
    struct twin *f = counting(1, 1, 3);
    (void)state;

    twin_give(f, "pattern", pattern, TWIN_DIMS(1, 2, 2));
    struct beside l = beside_open(f, "s2:block=1", "cpu");
    l.args.param = l.param;
    assert_fails(fv_attention_forward(l.ctx, l.attention, &l.args), FV_E_SHAPE, "expected 3 blocks of 1 keys");
    beside_close(&l);
    twin_drop(f);
    f = counting(1, 1, 3);
    twin_give(f, "mask", mask, TWIN_DIMS(1, 1, 3, 3));
    l = beside_open(f, "postmask", "cpu");
    l.args.param = l.param;
    assert_fails(fv_attention_forward(l.ctx, l.attention, &l.args), FV_E_FORMAT, "factors of 0 to 1, got 1.5");
    beside_close(&l);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_of_four_heads),
        cmocka_unit_test(shards_have_limits),
        cmocka_unit_test(long_and_short_heads),
        cmocka_unit_test(groups_are_shifted),
        cmocka_unit_test(rolled_groups_leak),
        cmocka_unit_test(groups_have_limits),
        cmocka_unit_test(frames_read_reference_frames),
        cmocka_unit_test(bands_halve_with_distance),
        cmocka_unit_test(released_blocks_are_as_sparse_as_said),
        cmocka_unit_test(weights_are_masked_behind_the_softmax),
        cmocka_unit_test(masks_may_hide_whole_rows),
        cmocka_unit_test(options_that_contradict_are_refused),
        cmocka_unit_test(calls_that_do_not_fit_are_refused),
        cmocka_unit_test(tensors_that_cannot_be_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
