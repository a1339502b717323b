/* routing: worked numbers and what must hold, of the twin and of the library. */
#include <math.h>
#include <stdlib.h>

#include "support/beside.h"

static const double one = 1;

/* Four tokens (1,0) (0,1) (.6,.8) (.8,-.6) of values 1 2 3 4, taken as normed, and the axes as centroids: of two
 * members each, cluster 0 holds tokens 0 and 3, cluster 1 tokens 1 and 2. */
static struct twin *four_tokens(void)
{
    static const double x[] = {1, 0, 0, 1, .6, .8, .8, -.6}, axes[] = {1, 0, 0, 1};
    struct twin *f = twin_make(1, 1, 1, 4, 4, 2, 1);

    memcpy(f->q, x, sizeof x);
    for (int n = 0; n < 4; n++)
        f->v[n] = n + 1;
    f->call.scale = &one;
    twin_set(f, "norm", 1, 0);
    twin_set(f, "share", 1, 2); /* 1 */
    twin_give(f, "centroids", axes, TWIN_DIMS(1, 2, 2));
    return f;
}

static void clusters_of_four_tokens(void **unused)
{
    static const double causal[] = {1, 2, 2.549834, 2.649502}, both[] = {2.350498, 2.450166, 2.549834, 2.649502};
    static const double less[] = {.990099, 1.980198, 2.524588, 2.623269};
    struct twin *f = four_tokens();

    (void)unused;
    beside_forward(f, "routing:norm=0,share=1");
    twin_close("both ways", f->o, both, 4, TWIN_DIGITS);
    f->call.causal = true;
    beside_forward(f, "routing:norm=0,share=1");
    twin_close("causal", f->o, causal, 4, TWIN_DIGITS);
    twin_sees(f, 0, 3, TWIN_KEYS(0, 3));
    twin_sees(f, 0, 2, TWIN_KEYS(1, 2));
    twin_set(f, "eps", 1, 0);
    f->values[2][0] = 0.01;
    beside_forward(f, "routing:norm=0,share=1,eps=0.01");
    twin_close("eps", f->o, less, 4, TWIN_DIGITS);
    twin_drop(f);
}

/* (1,2,3,4) becomes (-1.34164, -.447213, .447213, 1.34164), whose square is 4; (4,3,2,1) the opposite. */
static void tokens_are_normed(void **unused)
{
    static const double x[] = {1, 2, 3, 4, 4, 3, 2, 1}, centroid[] = {0, 0, 0, 1};
    double far = 1 / (1 + exp(-8)), expected[] = {far, 1 - far};
    struct twin *f = twin_make(1, 1, 1, 2, 2, 4, 1);

    (void)unused;
    memcpy(f->q, x, sizeof x);
    f->v[0] = 1;
    f->v[1] = 0;
    f->call.scale = &one;
    twin_set(f, "share", 1, 2);
    twin_give(f, "centroids", centroid, TWIN_DIMS(1, 1, 4));
    beside_forward(f, "routing:share=1");
    twin_close("o", f->o, expected, 2, 1e-5); /* 1e-6 is added to the variance */
    twin_drop(f);
}

/* One cluster of all tokens is dense attention; and the order of centroids does not matter. */
static void one_cluster_is_dense(void **unused)
{
    struct twin *f = twin_make(2, 4, 2, 19, 19, 4, 3);
    double *mu = twin_sines(4 * 3 * 4, 0.3), *turned = sheet_zeros(4 * 3 * 4), before[2 * 4 * 19 * 3];

    (void)unused;
    twin_set(f, "norm", 1, 0);
    twin_set(f, "share", 1, 1); /* 0 */
    twin_set(f, "per_cluster", 1, 100);
    twin_give(f, "centroids", mu, TWIN_DIMS(4, 1, 4));
    f->call.causal = true;
    twin_equals_dense(f, "routing", true, false);
    beside_forward(f, "routing:norm=0,share=0,per_cluster=100");
    f->call.causal = false;
    twin_equals_dense(f, "routing", false, false);
    beside_forward(f, "routing:norm=0,share=0,per_cluster=100");

    twin_set(f, "per_cluster", 1, 7);
    f->param[0].dims[1] = 3;
    beside_forward(f, "routing:norm=0,share=0,per_cluster=7");
    memcpy(before, f->o, sizeof before);
    for (int n = 0; n < 48; n++)
        turned[n] = mu[n / 12 * 12 + (n % 12 + 4) % 12];
    f->param[0].data = turned;
    beside_forward(f, "routing:norm=0,share=0,per_cluster=7");
    twin_close("turned", f->o, before, 2 * 4 * 19 * 3, TWIN_EXACT);
    free(mu);
    free(turned);
    twin_drop(f);
}

/* Six tokens on a line, of which the 2nd and the last belong to the other centroid: everybody reads the two latest of
 * its own kind. */
static void prefixes_read_the_latest_of_their_cluster(void **unused)
{
    static const double x[] = {1, -1, 2, 3, 4, -2}, sides[] = {1, -1}, bias[] = {0, 3};
    struct twin *f = twin_make(1, 1, 1, 6, 6, 1, 1);
    double expected = (2 * 1 + 3 * exp(3)) / (1 + exp(3)); /* of two equal logits the farther one has a bias */

    (void)unused;
    memcpy(f->q, x, sizeof x);
    for (int n = 0; n < 6; n++)
        f->v[n] = n == 3 ? 3 : n == 4 ? 2 : 100;
    f->call.causal = true;
    twin_set(f, "norm", 1, 0);
    twin_set(f, "membership", 1, 1);
    twin_set(f, "per_cluster", 1, 2);
    twin_give(f, "centroids", sides, TWIN_DIMS(1, 2, 1));
    beside_forward(f, "routing:norm=0,membership=prefix,per_cluster=2");
    twin_sees(f, 0, 0, TWIN_KEYS(0));
    twin_sees(f, 0, 1, TWIN_KEYS(1));
    twin_sees(f, 0, 2, TWIN_KEYS(0, 2));
    twin_sees(f, 0, 4, TWIN_KEYS(3, 4));
    twin_sees(f, 0, 5, TWIN_KEYS(1, 5));
    f->q[3] = f->q[4] = 3;
    twin_give(f, "rank_bias", bias, TWIN_DIMS(1, 2));
    beside_forward(f, "routing:norm=0,membership=prefix,per_cluster=2");
    twin_close("bias", &f->o[4], &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

/* With mask_self a token reads the others of its cluster, and itself where there are none; in no cluster it has 0. */
static void own_keys_may_be_masked(void **unused)
{
    static const double expected[] = {1, 2, 2, 1};
    struct twin *f = four_tokens();

    (void)unused;
    f->call.causal = true;
    twin_set(f, "mask_self", 1, 1);
    beside_forward(f, "routing:norm=0,mask_self=1");
    twin_close("o", f->o, expected, 4, TWIN_EXACT);
    twin_set(f, "per_cluster", 1, 1);
    beside_forward(f, "routing:norm=0,mask_self=1,per_cluster=1");
    assert_true(f->o[0] == 1 && f->o[1] == 2 && f->o[2] == 0 && f->o[3] == 0);
    twin_drop(f);
}

/* Where the queries are the keys, k is ignored and has no gradient; seeded centroids are the same in every call, and
 * others with another seed. */
static void seeds_and_shared_keys(void **unused)
{
    double *first = NULL;
    (void)unused;

    for (int run = 0; run < 3; run++) {
        struct twin *f = twin_make(1, 2, 1, 23, 23, 4, 3);
        struct beside l;
        fv_attention_grads grads;
        bool same = true;
        f->call.causal = true;
        for (int n = 0; n < 23 * 4; n++)
            f->k[n] += run; /* ignored */
        l = beside_open(f, "routing:clusters=5", "cpu");
        l.ctx->seed = run == 2 ? 4 : 3;
        grads = (fv_attention_grads){.d_o = test_random(l.ctx, 1, 4, l.args.o.dims),
                                     .d_k = test_random(l.ctx, 1, 4, l.args.k.dims)};
        assert_ok(fv_attention_backward(l.ctx, l.attention, &l.args, &grads));
        for (int n = 0; n < 23 * 4; n++)
            assert_true(((float *)grads.d_k.data)[n] == 0);
        if (!first) first = sheet_zeros(2 * 23 * 3);
        for (int n = 0; n < 2 * 23 * 3; n++) {
            float o = ((float *)l.args.o.data)[n];
            same = same && (run == 0 || o == first[n]);
            if (run == 0) first[n] = o;
        }
        assert_true(same == (run < 2));
        beside_close(&l);
        twin_drop(f);
    }
    free(first);
}

/* Tokens that are not numbers are in no cluster and harm nobody else. */
static void not_a_number_is_in_no_cluster(void **unused)
{
    static const char *const specs[] = {"routing:norm=0", "routing:norm=0,membership=prefix,per_cluster=3",
                                        "routing:norm=0,share=0", "routing:norm=0,share=0,membership=prefix"};
    static const double axes[] = {1, 0, 0, 1};
    (void)unused;

    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++)
        for (int d = 0; test_devices[d]; d++) {
            struct twin *f = twin_make(1, 1, 1, 9, 9, 2, 1);
            struct beside l;
            f->call.causal = true;
            f->q[6] = f->k[6] = NAN; /* token 3 */
            f->q[12] = f->k[12] = NAN;
            twin_give(f, "centroids", axes, TWIN_DIMS(1, 2, 2));
            l = beside_open(f, specs[s], test_devices[d]);
            l.args.param = l.param;
            assert_ok(fv_attention_forward(l.ctx, l.attention, &l.args));
            for (int i = 0; i < 9; i++)
                assert_true(isfinite(((float *)l.args.o.data)[i]));
            assert_true(((float *)l.args.o.data)[3] == 0 && ((float *)l.args.o.data)[6] == 0);
            beside_close(&l);
            twin_drop(f);
        }
}

static void wrong_calls_are_refused(void **unused)
{
    static const double zeros[64] = {0};
    static const struct {
        const char *spec;
        int64_t N;
        bool causal;
        int centroids, ranks; /* rows given, 0: none */
        fv_status status;
        const char *words;
    } wrong[] = {
        {"routing", 6, true, 0, 0, FV_E_USAGE, "expected param 'centroids' or option 'clusters'"},
        {"routing:membership=prefix", 6, false, 3, 0, FV_E_USAGE, "prefix needs --causal"},
        {"routing:membership=prefix,share=0", 6, true, 3, 2, FV_E_USAGE, "it needs share=1"},
        {"routing", 4, true, 3, 0, FV_E_SHAPE, "share=1: expected as many queries as keys, got 4 and 6"},
        {"routing:share=0", 4, true, 3, 0, FV_E_SHAPE, "--causal: expected as many queries as keys, got 4 and 6"},
        {"routing:share=1", 4, false, 3, 0, FV_E_SHAPE, "share=1: expected as many queries as keys"},
        {"routing:clusters=4", 6, true, 3, 0, FV_E_SHAPE, "[H, k, D] = [2,4,2], got [2,3,2]"},
    };
    (void)unused;

    for (size_t n = 0; n < sizeof wrong / sizeof *wrong; n++) {
        struct twin *f = twin_make(1, 2, 1, wrong[n].N, 6, 2, 1);
        struct beside l;
        f->call.causal = wrong[n].causal;
        if (wrong[n].centroids) twin_give(f, "centroids", zeros, TWIN_DIMS(2, wrong[n].centroids, 2));
        if (wrong[n].ranks) twin_give(f, "rank_bias", zeros, TWIN_DIMS(2, wrong[n].ranks));
        l = beside_open(f, wrong[n].spec, "cpu");
        l.args.param = l.param;
        assert_fails(fv_attention_forward(l.ctx, l.attention, &l.args), wrong[n].status, wrong[n].words);
        beside_close(&l);
        twin_drop(f);
    }
    struct twin *f = four_tokens();
    f->call.lse = f->lse;
    beside_refuses(f, "routing:norm=0", FV_E_USAGE, "has no log-sum-exp");
    twin_drop(f);
}

/* A later part of a sequence does not have the queries before it, which would be its keys. */
static void parts_without_their_queries_are_refused(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 3, 8, 2, 1);
    struct beside l = beside_open(f, "routing:clusters=2", "cpu");
    fv_call call;
    (void)unused;

    l.args.causal = true;
    assert_ok(fv_call_chunk(l.attention, &l.args, &call));
    assert_fails(fv_attention_chunk(l.ctx, l.attention, &call, NULL, NULL), FV_E_UNSUPPORTED, "are not known");
    beside_close(&l);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clusters_of_four_tokens),
        cmocka_unit_test(tokens_are_normed),
        cmocka_unit_test(one_cluster_is_dense),
        cmocka_unit_test(prefixes_read_the_latest_of_their_cluster),
        cmocka_unit_test(own_keys_may_be_masked),
        cmocka_unit_test(seeds_and_shared_keys),
        cmocka_unit_test(not_a_number_is_in_no_cluster),
        cmocka_unit_test(wrong_calls_are_refused),
        cmocka_unit_test(parts_without_their_queries_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
