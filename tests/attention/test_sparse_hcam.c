/* hcam: worked numbers and what must hold, of the twin and of the library. */
#include <math.h>
#include <stdlib.h>

#include "support/beside.h"

/* Summaries 2 0 1 -1 of four chunks of one key, two of them read: chunks 0 and 2, by .731059 and .268941. */
static void weights_are_a_softmax_over_the_chosen(void **unused)
{
    static const double one = 1, summaries[] = {2, 0, 1, -1}, expected = .731059 * 1 + .268941 * 100;
    struct twin *f = twin_make(1, 1, 1, 1, 4, 1, 1);

    (void)unused;
    for (int n = 0; n < 4; n++)
        f->v[n] = pow(10, n);
    twin_set(f, "chunk", 1, 1);
    twin_set(f, "top", 1, 2);
    twin_give(f, "summary_q", &one, TWIN_DIMS(1, 1, 1));
    twin_give(f, "summary_k", summaries, TWIN_DIMS(1, 4, 1));
    beside_forward(f, "hcam:chunk=1,top=2");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 2));
    twin_close("o", f->o, &expected, 1, 1e-4); /* six digits of a weight, times 100 */
    twin_drop(f);
}

/* Dense attention of the same queries over keys from .., `count` of them. */
static void dense_over(const struct twin *f, int64_t from, int64_t count, double *o, double *lse)
{
    sheet_call part = f->call;
    double *k = sheet_zeros(count * part.Hkv * part.D), *v = sheet_zeros(count * part.Hkv * part.Dv);

    for (int64_t h = 0; h < part.Hkv; h++) {
        memcpy(k + h * count * part.D, f->k + (h * part.M + from) * part.D, (size_t)(count * part.D) * sizeof *k);
        memcpy(v + h * count * part.Dv, f->v + (h * part.M + from) * part.Dv, (size_t)(count * part.Dv) * sizeof *v);
    }
    part.k = k;
    part.v = v;
    part.M = count;
    part.map = NULL;
    part.options = part.params = 0;
    part.causal = false;
    part.o = o;
    part.lse = lse;
    assert_true(sheet_dense.forward(&part));
    free(k);
    free(v);
}

/* One chunk: plain attention within the best.  All chunks, equal logits: the mean over them, which is not one softmax
 * over all keys. */
static void one_chunk_and_all_alike(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 5, 14, 3, 2);
    double summary_q[5 * 6], summary_k[3 * 6] = {0}, mean[20] = {0}, joint[20], o[20], lse[10], apart = 0;

    (void)unused;
    for (int n = 0; n < 30; n++)
        summary_q[n] = n % 6 == 0;
    summary_k[6] = 1; /* chunk 1 */
    twin_set(f, "chunk", 1, 4);
    twin_set(f, "top", 1, 1);
    twin_give(f, "summary_q", summary_q, TWIN_DIMS(1, 5, 6));
    twin_give(f, "summary_k", summary_k, TWIN_DIMS(1, 3, 6));
    beside_forward(f, "hcam:chunk=4,top=1");
    dense_over(f, 4, 4, o, lse);
    twin_close("the best chunk", f->o, o, 20, TWIN_EXACT);
    summary_k[6] = 0;
    twin_set(f, "top", 1, 9);
    beside_forward(f, "hcam:chunk=4,top=9");
    for (int c = 0; c < 3; c++) {
        dense_over(f, 4 * c, 4, o, lse);
        for (int n = 0; n < 20; n++)
            mean[n] += o[n] / 3;
    }
    twin_close("mean of chunks", f->o, mean, 20, TWIN_EXACT);
    dense_over(f, 0, 12, joint, lse);
    for (int n = 0; n < 20; n++)
        apart = fmax(apart, fabs(joint[n] - mean[n]));
    assert_true(apart > 1e-3);
    twin_drop(f);
}

/* Where the logit of each chunk is the log-sum-exp of its keys', the sum is one softmax over all keys. */
static void logits_that_are_log_sum_exps_join_the_chunks(void **unused)
{
    static const double one = 1;
    struct twin *f = twin_make(1, 1, 1, 1, 12, 1, 2);
    double summary_k[3], o[2], lse;

    (void)unused;
    for (int c = 0; c < 3; c++)
        dense_over(f, 4 * c, 4, o, &summary_k[c]);
    twin_set(f, "chunk", 1, 4);
    twin_give(f, "summary_q", &one, TWIN_DIMS(1, 1, 1));
    twin_give(f, "summary_k", summary_k, TWIN_DIMS(1, 3, 1));
    beside_forward(f, "hcam:chunk=4");
    dense_over(f, 0, 12, o, &lse);
    twin_close("joint softmax", f->o, o, 2, TWIN_EXACT);
    twin_drop(f);
}

/* Chunks may stand in any order; keys behind the last whole chunk, and chunks that the mask hides, do not matter. */
static void order_and_hidden_keys_do_not_matter(void **unused)
{
    static const double mask[] = {1, 0, 1, 1, 0, 1, 1, 0, 1};
    struct twin *f = twin_make(1, 2, 2, 3, 14, 2, 2);
    double before[12];

    (void)unused;
    twin_set(f, "chunk", 1, 4);
    twin_set(f, "top", 1, 2);
    beside_forward(f, "hcam:chunk=4,top=2");
    memcpy(before, f->o, sizeof before);
    for (int h = 0; h < 2; h++)
        for (int n = 0; n < 8; n++) { /* chunks 0 and 2 change places, keys 12 and 13 their values */
            double *k = f->k + h * 28, *v = f->v + h * 28, kept = k[n], kept_v = v[n];
            k[n] = k[16 + n];
            k[16 + n] = kept;
            v[n] = v[16 + n];
            v[16 + n] = kept_v;
            k[24 + n % 4] = v[24 + n % 4] = 100;
        }
    beside_forward(f, "hcam:chunk=4,top=2");
    twin_close("other order", f->o, before, 12, TWIN_EXACT);
    twin_give(f, "chunk_mask", mask, TWIN_DIMS(1, 3, 3));
    beside_forward(f, "hcam:chunk=4,top=2");
    memcpy(before, f->o, sizeof before);
    for (int h = 0; h < 2; h++)
        for (int n = 8; n < 16; n++)
            f->k[h * 28 + n] = f->v[h * 28 + n] = 50; /* chunk 1 */
    beside_forward(f, "hcam:chunk=4,top=2");
    twin_close("hidden chunk", f->o, before, 12, TWIN_EXACT);
    twin_drop(f);
}

/* A chunk becomes readable when it ends before the query; who can read none has 0. */
static void chunks_become_readable(void **unused)
{
    static const double none[6 * 3] = {0};
    struct twin *f = twin_make(1, 1, 1, 10, 10, 2, 1);

    (void)unused;
    f->call.causal = true;
    twin_set(f, "chunk", 1, 3);
    beside_forward(f, "hcam:chunk=3");
    for (int i = 0; i < 3; i++)
        assert_true(f->o[i] == 0);
    twin_sees(f, 0, 2, TWIN_KEYS(-1));
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1, 2));
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 2));
    twin_sees(f, 0, 6, TWIN_KEYS(0, 1, 2, 3, 4, 5));
    twin_sees(f, 0, 9, TWIN_KEYS(0, 1, 2, 3, 4, 5, 6, 7, 8));
    twin_drop(f);
    f = twin_make(1, 1, 1, 6, 10, 2, 1);
    twin_set(f, "chunk", 1, 3);
    twin_give(f, "chunk_mask", none, TWIN_DIMS(1, 6, 3));
    beside_forward(f, "hcam:chunk=3");
    for (int i = 0; i < 6; i++)
        assert_true(f->o[i] == 0);
    twin_drop(f);
}

static void wrong_calls_are_refused(void **unused)
{
    static const double zeros[64] = {0};
    static const struct {
        const char *name;
        int rank;
        int64_t dims[3];
        const char *words;
    } wrong[] = {{"summary_q", 3, {1, 4, 4}, "[B, N, H*D] = [1,4,6], got [1,4,4]"},
                 {"summary_k", 3, {1, 4, 6}, "[B, C, H*D] = [1,3,6], got [1,4,6]"},
                 {"chunk_mask", 3, {1, 3, 4}, "[B, N, C] = [1,4,3], got [1,3,4]"}};
    (void)unused;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        struct twin *f = twin_make(1, 2, 1, 4, 11, 3, 2);
        struct beside l;
        twin_give(f, wrong[n].name, zeros, wrong[n].rank, wrong[n].dims);
        l = beside_open(f, "hcam:chunk=3", "cpu");
        l.args.param = l.param;
        assert_fails(fv_attention_forward(l.ctx, l.attention, &l.args), FV_E_SHAPE, wrong[n].words);
        beside_close(&l);
        twin_drop(f);
    }
    struct twin *f = twin_make(1, 2, 1, 4, 11, 3, 2);
    f->call.lse = f->lse;
    beside_refuses(f, "hcam", FV_E_USAGE, "has no log-sum-exp");
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_a_softmax_over_the_chosen),
        cmocka_unit_test(one_chunk_and_all_alike),
        cmocka_unit_test(logits_that_are_log_sum_exps_join_the_chunks),
        cmocka_unit_test(order_and_hidden_keys_do_not_matter),
        cmocka_unit_test(chunks_become_readable),
        cmocka_unit_test(wrong_calls_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
