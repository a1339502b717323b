/* blocktopk_gated: what is chosen in small cases by hand, and what must hold, of the twin and of the library. */
#include <math.h>
#include <stdio.h>

#include "support/beside.h"

/* Keys of blocks of two around their means; q of head h is queries[h]. */
static struct twin *blocks_of_two(int64_t blocks, const double *means, int64_t H, const double *queries)
{
    struct twin *f = twin_make(1, H, 1, 2 * blocks, 2 * blocks, 1, 1);
    static const double one = 1;

    f->call.scale = &one;
    twin_set(f, "block", 1, 2);
    for (int64_t j = 0; j < 2 * blocks; j++)
        f->k[j] = means[j / 2] + (j % 2 ? 0.5 : -0.5);
    for (int64_t n = 0; n < H * 2 * blocks; n++)
        f->q[n] = queries[n / (2 * blocks)];
    return f;
}

static void the_heaviest_complete_blocks_are_read(void **unused)
{
    static const double means[] = {1, 3, 2, 0, 9}, q[] = {1}, ties[] = {2, 2, 2, 2, 9};
    struct twin *f = blocks_of_two(5, means, 1, q);

    (void)unused;
    twin_set(f, "top", 1, 3);
    beside_forward(f, "blocktopk_gated:block=2,top=3");
    twin_sees(f, 0, 9, TWIN_KEYS(2, 3, 4, 5, 8, 9));
    twin_sees(f, 0, 8, TWIN_KEYS(2, 3, 4, 5, 8));    /* its own block is not complete */
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2, 3, 4, 5)); /* fewer than top */
    for (int64_t j = 0; j < 10; j++)
        f->k[j] = ties[j / 2];
    beside_forward(f, "blocktopk_gated:block=2,top=3"); /* ties go to the lower block */
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 2, 3, 8, 9));
    twin_set(f, "init", 1, 1);
    twin_set(f, "local", 1, 2);
    beside_forward(f, "blocktopk_gated:block=2,top=3,init=1,local=2");
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 6, 7, 8, 9));
    twin_drop(f);
}

/* Weights, not products, add up: head 0 gives block 1 nearly all it has, head 1 the same by far larger products to
 * block 2 and then 0.  Products would choose 2 and 0, weights
 * choose 2 and 1. */
static void a_group_adds_weights(void **unused)
{
    static const double means[] = {-2, 4, -4, 0, 0}, q[] = {0.5, -8};
    struct twin *f = blocks_of_two(5, means, 2, q);

    (void)unused;
    twin_set(f, "top", 1, 3);
    beside_forward(f, "blocktopk_gated:block=2,top=3");
    for (int64_t h = 0; h < 2; h++)
        twin_sees(f, h, 9, TWIN_KEYS(2, 3, 4, 5, 8, 9));
    twin_drop(f);
}

/* The own block takes part in each head's softmax once it is complete, but cannot lose: of two heads, one likes its own
 * block 2 so much that the other's choice decides between blocks 0 and 1. */
static void the_own_block_weighs_but_never_loses(void **unused)
{
    static const double means[] = {1, 0, 40}, q[] = {1, -0.01};
    struct twin *f = blocks_of_two(3, means, 2, q);

    (void)unused;
    twin_set(f, "top", 1, 2);
    beside_forward(f, "blocktopk_gated:block=2,top=2");
    twin_sees(f, 0, 5, TWIN_KEYS(2, 3, 4, 5)); /* complete: head 0 leaves the others nothing */
    twin_sees(f, 0, 4, TWIN_KEYS(0, 1, 4));    /* not yet: head 0 prefers block 0 by far */
    twin_drop(f);
}

static void all_blocks_equal_dense(void **unused)
{
    struct twin *f = twin_make(2, 4, 2, 21, 27, 4, 3);

    (void)unused;
    f->call.lse = f->lse;
    twin_set(f, "block", 1, 4);
    twin_set(f, "top", 1, 7);
    twin_equals_dense(f, "blocktopk_gated", true, true);
    beside_forward(f, "blocktopk_gated:block=4,top=7");
    twin_drop(f);
}

static void the_gate_scales_and_leaves_lse(void **unused)
{
    static const double logits[] = {0, 0, 0, 0, 0, 0, 40, -40, 1, -1, 2, 0.5};
    struct twin *f = twin_make(1, 2, 1, 6, 6, 4, 3);
    double o[36], lse[12];

    (void)unused;
    f->call.lse = f->lse;
    twin_set(f, "block", 1, 2);
    twin_set(f, "top", 1, 2);
    beside_forward(f, "blocktopk_gated:block=2,top=2");
    for (int64_t n = 0; n < 36; n++)
        o[n] = f->o[n] / (1 + exp(-logits[n / 3]));
    memcpy(lse, f->lse, sizeof lse);
    twin_give(f, "gate", logits, TWIN_DIMS(1, 2, 6));
    beside_forward(f, "blocktopk_gated:block=2,top=2");
    twin_close("gated", f->o, o, 36, TWIN_EXACT);
    twin_close("lse", f->lse, lse, 12, TWIN_EXACT);
    twin_drop(f);
}

/* More blocks read what fewer did and more; and what is left out moves o by no more than twice its mass times the
 * largest value. */
static void more_blocks_miss_less(void **unused)
{
    struct twin *f = twin_make(1, 4, 2, 40, 40, 4, 3), *dense = twin_make(1, 4, 2, 40, 40, 4, 3);
    double before[160] = {0}, most = 0;
    char spec[64];

    (void)unused;
    dense->call.causal = true;
    dense->call.lse = dense->lse;
    twin_forward(dense, "dense");
    for (int64_t n = 0; n < 80; n++)
        most = fmax(most, sqrt(sheet_dot(f->v + 3 * n, f->v + 3 * n, 3)));
    f->call.lse = f->lse;
    twin_set(f, "block", 1, 4);
    for (int top = 1; top <= 10; top++) {
        twin_set(f, "top", 1, top);
        snprintf(spec, sizeof spec, "blocktopk_gated:block=4,top=%d", top);
        beside_forward(f, spec);
        for (int64_t row = 0; row < 160; row++) {
            double mass = exp(f->lse[row] - dense->lse[row]), square = 0;
            for (int64_t e = 3 * row; e < 3 * row + 3; e++)
                square += (f->o[e] - dense->o[e]) * (f->o[e] - dense->o[e]);
            assert_true(mass <= 1 + TWIN_EXACT && mass >= before[row] - TWIN_EXACT);
            assert_true(sqrt(square) <= 2 * (1 - mass) * most + TWIN_EXACT);
            before[row] = mass;
        }
    }
    for (int64_t row = 0; row < 160; row++)
        assert_true(fabs(before[row] - 1) <= TWIN_EXACT);
    twin_drop(f);
    twin_drop(dense);
}

static void wrong_calls_are_refused(void **unused)
{
    static const double gate[12] = {0};
    struct twin *f = twin_make(1, 2, 1, 6, 6, 4, 3);
    struct beside l;
    fv_attention *attention;

    (void)unused;
    assert_fails(fv_attention_new("blocktopk_gated:top=4,init=2,local=3", &attention), FV_E_USAGE,
                 "expected at least init + local = 5, got 4");
    assert_fails(fv_attention_new("blocktopk_gated:local=0", &attention), FV_E_USAGE, "expected 1 to");
    twin_set(f, "top", 1, 4);
    twin_set(f, "init", 1, 2);
    twin_set(f, "local", 1, 3);
    twin_refuses(f, "blocktopk_gated");
    twin_give(f, "gate", gate, TWIN_DIMS(1, 6, 2));
    l = beside_open(f, "blocktopk_gated", "cpu");
    l.args.param = l.param;
    assert_fails(fv_attention_forward(l.ctx, l.attention, &l.args), FV_E_SHAPE, "[B, H, N] = [1,2,6], got [1,6,2]");
    beside_close(&l);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_heaviest_complete_blocks_are_read),
        cmocka_unit_test(a_group_adds_weights),
        cmocka_unit_test(the_own_block_weighs_but_never_loses),
        cmocka_unit_test(all_blocks_equal_dense),
        cmocka_unit_test(the_gate_scales_and_leaves_lse),
        cmocka_unit_test(more_blocks_miss_less),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
