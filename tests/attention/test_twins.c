/* The naive twins themselves: the worked numbers of their definitions, small cases by hand, and what must hold. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

/* ---- lightning2 -------------------------------------------------------------------------------------------------- */

static const double half_rate[] = {0.5};

static void lightning2_output_and_state(void **unused)
{
    static const double o[] = {0.580903,  0.273031,  0.750170, -0.137197, -0.192287,
                               -0.212755, -1.284260, 0.045356, -0.378872, -0.019089};
    static const double last[] = {0.635334, 0.055264, 1.319894, 0.939556};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 2, 2);
    double state[4];

    (void)unused;
    twin_give(f, "decay", half_rate, TWIN_DIMS(1));
    f->call.state = state;
    twin_forward(f, "lightning2");
    twin_close("o", f->o, o, 10, TWIN_DIGITS);
    twin_close("state", state, last, 4, TWIN_DIGITS);
    twin_drop(f);
}

/* d (o . do) / dx of every number of x, by central differences of the twin. */
static void check_gradient(struct twin *f, const char *name, double *x, const double *d_o, const double *expected,
                           int64_t count)
{
    int64_t outputs = f->call.B * f->call.H * f->call.N * f->call.Dv;
    const double step = 1e-5;

    for (int64_t n = 0; n < count; n++) {
        double kept = x[n], up, slope;

        x[n] = kept + step;
        twin_forward(f, name);
        up = sheet_dot(f->o, d_o, outputs);
        x[n] = kept - step;
        twin_forward(f, name);
        slope = (up - sheet_dot(f->o, d_o, outputs)) / (2 * step);
        x[n] = kept;
        twin_close("gradient", &slope, &expected[n], 1, TWIN_DIGITS);
    }
}

static void lightning2_gradients(void **unused)
{
    static const double dq[] = {-0.082566, -0.097303, 0.032399, -0.716827, -0.316108,
                                -0.426080, 0.064885,  0.933802, 0.473465,  1.086258};
    static const double dk[] = {-1.079387, -0.930904, 1.342441,  1.243693,  1.085016,
                                0.776923,  -0.450344, -0.502788, -0.519606, 0.013840};
    static const double dv[] = {-1.224801, -1.679323, -0.980803, -0.865046, 0.754849,
                                0.951594,  1.148266,  1.177733,  -0.133929, -0.022696};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 2, 2);
    double *d_o = twin_sines(10, 3);

    (void)unused;
    twin_give(f, "decay", half_rate, TWIN_DIMS(1));
    check_gradient(f, "lightning2", f->q, d_o, dq, 10);
    check_gradient(f, "lightning2", f->k, d_o, dk, 10);
    check_gradient(f, "lightning2", f->v, d_o, dv, 10);
    free(d_o);
    twin_drop(f);
}

/* One token whose key is 0: o = e^{-s} q S shows the slope of each head. */
static void lightning2_slopes(void **unused)
{
    static const double eight[] = {0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625};
    static const double six[] = {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125};
    static const double ones[] = {1, 1, 1, 1, 1, 1, 1, 1};

    (void)unused;
    for (int64_t H = 6; H <= 8; H += 2) {
        struct twin *f = twin_make(1, H, 1, 1, 1, 1, 1);

        memcpy(f->q, ones, (size_t)H * sizeof(double));
        f->k[0] = 0;
        twin_give(f, "state", ones, TWIN_DIMS(1, H, 1, 1));
        twin_forward(f, "lightning2");
        for (int64_t h = 0; h < H; h++) {
            double slope = -log(f->o[h]);
            twin_close("slope", &slope, &(H == 8 ? eight : six)[h], 1, TWIN_EXACT);
        }
        twin_set(f, "decay", 1, 1); /* none */
        twin_forward(f, "lightning2");
        twin_close("no decay", f->o, ones, H, TWIN_EXACT);
        twin_drop(f);
    }
}

static void lightning2_splits_at_any_token(void **unused)
{
    struct twin *whole = twin_make(1, 3, 1, 6, 6, 2, 2), *left = twin_make(1, 3, 1, 2, 2, 2, 2);
    struct twin *right = twin_make(1, 3, 1, 4, 4, 2, 2);
    double state[12], last[12], expected[12];

    (void)unused;
    for (int64_t h = 0; h < 3; h++) {
        memcpy(left->q + h * 4, whole->q + h * 12, 4 * sizeof(double));
        memcpy(right->q + h * 8, whole->q + h * 12 + 4, 8 * sizeof(double));
    }
    memcpy(right->k, whole->k + 4, 8 * sizeof(double));
    memcpy(right->v, whole->v + 4, 8 * sizeof(double));
    whole->call.state = expected;
    left->call.state = state;
    right->call.state = last;
    twin_give(right, "state", state, TWIN_DIMS(1, 3, 2, 2));
    twin_forward(whole, "lightning2");
    twin_forward(left, "lightning2");
    twin_forward(right, "lightning2");
    for (int64_t h = 0; h < 3; h++) {
        twin_close("left", left->o + h * 4, whole->o + h * 12, 4, TWIN_EXACT);
        twin_close("right", right->o + h * 8, whole->o + h * 12 + 4, 8, TWIN_EXACT);
    }
    twin_close("state", last, expected, 12, TWIN_EXACT);
    twin_drop(whole);
    twin_drop(left);
    twin_drop(right);
}

/* ---- hedgehog ---------------------------------------------------------------------------------------------------- */

static void hedgehog_outputs(void **unused)
{
    static const double softmax[] = {0.142514, 0.125398, 0.101764, 0.067244, 0.071952,
                                     0.024701, 0.102388, 0.068135, 0.142704, 0.125668};
    static const double causal[] = {0.320141, -0.202654, -0.110361, -0.136873};
    static const double exponential[] = {0.265245, 0.176990,  0.368266,  0.176807, 0.079864,
                                         0.037849, -0.172948, -0.028259, 0.039983, 0.092894};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 2, 2);

    (void)unused;
    twin_forward(f, "hedgehog");
    twin_close("softmax", f->o, softmax, 10, TWIN_DIGITS);
    f->call.causal = true;
    twin_forward(f, "hedgehog");
    twin_close("causal row 1", f->o + 2, causal, 2, TWIN_DIGITS);
    twin_close("causal row 3", f->o + 6, causal + 2, 2, TWIN_DIGITS);
    f->call.causal = false;
    twin_set(f, "map", 1, 1);
    twin_forward(f, "hedgehog");
    twin_close("exp", f->o, exponential, 10, TWIN_DIGITS);
    twin_drop(f);
}

/* Keys whose features are (1, 0) and (0, 1), with values 1 and 0, read off the query's features. */
static void hedgehog_features(void **unused)
{
    static const double softmax[] = {.344294}, relu[] = {1.0 / 4}, elu[] = {2.0 / 6};
    struct twin *f = twin_make(1, 1, 1, 1, 2, 2, 1);

    (void)unused;
    f->q[0] = 0;
    f->q[1] = sin(0.7);
    f->k[0] = f->k[3] = 40;
    f->k[1] = f->k[2] = -40;
    f->v[0] = 1;
    f->v[1] = 0;
    twin_set(f, "half", 1, 1);
    twin_forward(f, "hedgehog");
    twin_close("positive half", f->o, softmax, 1, TWIN_DIGITS);
    twin_set(f, "half", 1, 0); /* the negative half mirrors the positive one here */
    twin_forward(f, "hedgehog");
    twin_close("both halves", f->o, softmax, 1, TWIN_DIGITS);
    f->q[0] = 1;
    f->q[1] = 3;
    twin_set(f, "map", 1, 2); /* key features 40 and the floor */
    twin_forward(f, "hedgehog");
    twin_close("relu", f->o, relu, 1, TWIN_EXACT);
    f->k[0] = f->k[3] = 0; /* elu + 1: 1 and the floor */
    f->k[1] = f->k[2] = -1000;
    twin_set(f, "map", 1, 3);
    twin_forward(f, "hedgehog");
    twin_close("elu", f->o, elu, 1, TWIN_EXACT);
    twin_drop(f);
}

static void hedgehog_weights_and_bias(void **unused)
{
    static const double identity[] = {1, 0, 0, 1, 1, 0, 0, 1}, swap[] = {0, 1, 1, 0, 0, 1, 1, 0};
    static const double shift[] = {0.5, -0.25, 0.5, -0.25};
    struct twin *f = twin_make(1, 2, 1, 4, 5, 2, 3), *g = twin_make(1, 2, 1, 4, 5, 2, 3);

    (void)unused;
    twin_give(g, "q_weight", identity, TWIN_DIMS(2, 2, 2));
    twin_forward(f, "hedgehog");
    twin_forward(g, "hedgehog");
    twin_close("identity", g->o, f->o, 24, TWIN_EXACT);
    g->param[0].data = swap; /* features in another order, the same in q and k */
    twin_give(g, "k_weight", swap, TWIN_DIMS(2, 2, 2));
    twin_forward(g, "hedgehog");
    twin_close("both swapped", g->o, f->o, 24, TWIN_EXACT);
    twin_give(g, "q_bias", shift, TWIN_DIMS(2, 2));
    twin_forward(g, "hedgehog");
    for (int64_t row = 0; row < 8; row++) {
        f->q[row * 2 + 1] += shift[0];
        f->q[row * 2] += shift[1];
    }
    twin_forward(f, "hedgehog");
    twin_close("bias", g->o, f->o, 24, TWIN_EXACT);
    twin_drop(f);
    twin_drop(g);
}

/* ---- agent ------------------------------------------------------------------------------------------------------- */

static void agent_output(void **unused)
{
    static const double o[] = {0.236225, 0.142418,  0.331218, 0.182850, 0.144827,
                               0.103516, -0.018695, 0.033917, 0.102137, 0.085346};
    static const double given[] = {0.492725, 0.753714, -0.389285, -0.438807};
    struct twin *f = twin_make(1, 1, 1, 5, 5, 2, 2);
    double agents[4] = {0};

    (void)unused;
    for (int64_t i = 0; i < 5; i++)
        for (int64_t d = 0; d < 2; d++)
            agents[(i < 2 ? 0 : 2) + d] += f->q[i * 2 + d] / (i < 2 ? 2 : 3);
    twin_close("agents", agents, given, 4, TWIN_DIGITS);
    twin_give(f, "agents", agents, TWIN_DIMS(1, 1, 2, 2));
    twin_forward(f, "agent");
    twin_close("o", f->o, o, 10, TWIN_DIGITS);
    twin_drop(f);
}

static void agent_pooling_and_convolution(void **unused)
{
    struct twin *pooled = twin_make(1, 2, 1, 6, 6, 2, 2), *given = twin_make(1, 2, 1, 6, 6, 2, 2);
    double agents[16], kernel[36] = {0};

    (void)unused;
    /* A 3 x 2 grid to 2 x 2 cells: rows 0-1 and 1-2, columns 0 and 1. */
    for (int64_t n = 0; n < 16; n++) {
        int64_t h = n / 8, cell = n / 2 % 4;
        const double *first = pooled->q + (h * 6 + cell) * 2 + n % 2;

        agents[n] = (first[0] + first[4]) / 2; /* and the row below */
    }
    twin_set(pooled, "grid", 2, 3, 2);
    twin_set(pooled, "agents", 1, 4);
    twin_give(given, "agents", agents, TWIN_DIMS(1, 2, 4, 2));
    twin_forward(pooled, "agent");
    twin_forward(given, "agent");
    twin_close("pooling", pooled->o, given->o, 24, TWIN_EXACT);
    /* Head 1, element 0 adds the value one row above, nothing in the first row. */
    kernel[2 * 9 + 1] = 1;
    twin_give(pooled, "dwc_weight", kernel, TWIN_DIMS(4, 3, 3));
    twin_forward(pooled, "agent");
    for (int64_t i = 2; i < 6; i++)
        given->o[(6 + i) * 2] += pooled->v[(i - 2) * 2];
    twin_close("convolution", pooled->o, given->o, 24, TWIN_EXACT);
    twin_set(pooled, "agents", 1, 5);
    twin_refuses(pooled, "agent"); /* not a square */
    twin_drop(pooled);
    twin_drop(given);
}

/* With q = 0 the biases alone decide: of agents over keys, then of queries over agents. */
static void agent_biases(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 2, 3, 2, 1);
    static const double agents[] = {.3, -.2, .9, .4};
    const double bias1[] = {log(2), log(1), log(5), 0, 0, 0}, bias2[] = {log(3), log(2), 0, log(7)};
    double first, second, expected[2];

    (void)unused;
    memset(f->k, 0, 6 * sizeof(double));
    memset(f->q, 0, 4 * sizeof(double));
    twin_give(f, "agents", agents, TWIN_DIMS(1, 1, 2, 2));
    twin_give(f, "bias1", bias1, TWIN_DIMS(1, 2, 3));
    twin_give(f, "bias2", bias2, TWIN_DIMS(1, 2, 2));
    twin_forward(f, "agent");
    first = (2 * f->v[0] + f->v[1] + 5 * f->v[2]) / 8;
    second = (f->v[0] + f->v[1] + f->v[2]) / 3;
    expected[0] = (3 * first + 2 * second) / 5;
    expected[1] = (first + 7 * second) / 8;
    twin_close("o", f->o, expected, 2, TWIN_EXACT);
    twin_drop(f);
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

static void dense_terms(void **unused)
{
    const double sinks[] = {log(2)}, bias[] = {log(3), 0}, cap = 2;
    struct twin *f = twin_make(1, 1, 1, 1, 2, 1, 1);
    double expected;

    (void)unused;
    f->call.lse = f->lse;
    f->q[0] = 0;
    f->v[0] = 1;
    f->v[1] = 0;
    twin_give(f, "sinks", sinks, TWIN_DIMS(1));
    twin_forward(f, "dense"); /* 1 / (1 + 1 + 2), and the denominator counts the sink */
    twin_close("sink", f->o, (double[]){0.25}, 1, TWIN_EXACT);
    twin_close("lse", f->lse, (double[]){log(4)}, 1, TWIN_EXACT);
    twin_give(f, "bias", bias, TWIN_DIMS(1, 1, 1, 2));
    twin_forward(f, "dense");
    twin_close("bias", f->o, (double[]){3.0 / 6}, 1, TWIN_EXACT);
    f->call.params = 0;
    f->q[0] = 3;
    f->k[0] = 1;
    f->k[1] = 0;
    twin_set(f, "softcap", 1, 2);
    twin_forward(f, "dense");
    expected = 1 / (1 + exp(-cap * tanh(3 / cap)));
    twin_close("softcap", f->o, &expected, 1, TWIN_EXACT);
    f->param[0] = f->param[1]; /* the bias is not capped */
    f->call.params = 1;
    twin_forward(f, "dense");
    expected = 1 / (1 + exp(-cap * tanh(3 / cap)) / 3);
    twin_close("softcap and bias", f->o, &expected, 1, TWIN_EXACT);
    twin_drop(f);
}

static void dense_windows_and_empty_rows(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 5, 3, 2, 2);

    (void)unused;
    f->call.lse = f->lse;
    f->call.causal = true;
    twin_forward(f, "dense"); /* positions -2 .. 2 */
    twin_sees(f, 0, 1, (const int64_t[]){-1});
    twin_sees(f, 0, 4, TWIN_KEYS(0, 1, 2));
    assert_true(f->lse[0] == -INFINITY && f->o[0] == 0 && f->o[3] == 0);
    twin_set(f, "window", 1, 2);
    twin_forward(f, "dense");
    twin_sees(f, 0, 4, TWIN_KEYS(1, 2));
    f->call.causal = false;
    twin_forward(f, "dense");
    twin_sees(f, 0, 1, TWIN_KEYS(0));
    twin_sees(f, 0, 3, TWIN_KEYS(0, 1, 2));
    twin_drop(f);
}

/* ---- what must hold ---------------------------------------------------------------------------------------------- */

/* Options small enough to leave some pairs out. */
static struct twin *modest(const char *name)
{
    struct twin *f = twin_make(2, 4, 2, 12, 12, 3, 2);

    if (!strcmp(name, "gna") || !strcmp(name, "bra") || !strcmp(name, "agent")) twin_set(f, "grid", 2, 3, 4);
    if (!strcmp(name, "sinkwin") || !strcmp(name, "dense")) twin_set(f, "window", 1, 3);
    if (!strcmp(name, "gna")) twin_set(f, "window", 1, 2);
    if (!strcmp(name, "power") || !strcmp(name, "moba")) twin_set(f, "block", 1, 2);
    if (!strcmp(name, "power")) twin_set(f, "window_blocks", 1, 1);
    if (!strcmp(name, "bra")) twin_set(f, "regions", 1, 2);
    if (!strcmp(name, "bra")) twin_set(f, "top", 1, 2);
    if (!strcmp(name, "agent")) twin_set(f, "agents", 1, 4);
    return f;
}

static void rows_sum_to_one(void **unused)
{
    static const char *const names[] = {"dense", "sinkwin", "gna", "power", "moba", "bra", "agent", "hedgehog", NULL};
    double ones[192];

    (void)unused;
    for (int n = 0; n < 192; n++)
        ones[n] = 1;
    for (int m = 0; names[m]; m++) {
        struct twin *f = modest(names[m]);

        memcpy(f->v, ones, 96 * sizeof(double));
        twin_forward(f, names[m]);
        twin_close(names[m], f->o, ones, 192, TWIN_EXACT);
        twin_drop(f);
    }
}

static void heads_read_their_group(void **unused)
{
    static const char *const names[] = {"dense", "sinkwin", "gna",      "power",      "moba",
                                        "bra",   "agent",   "hedgehog", "lightning2", NULL};

    (void)unused;
    for (int m = 0; names[m]; m++) {
        struct twin *grouped = modest(names[m]), *repeated = modest(names[m]);
        double *k = sheet_zeros(2 * 4 * 12 * 3), *v = sheet_zeros(2 * 4 * 12 * 2);

        for (int64_t head = 0; head < 8; head++) {
            memcpy(k + head * 36, grouped->k + head / 2 * 36, 36 * sizeof(double));
            memcpy(v + head * 24, grouped->v + head / 2 * 24, 24 * sizeof(double));
        }
        repeated->call.Hkv = 4;
        repeated->call.k = k;
        repeated->call.v = v;
        twin_forward(grouped, names[m]);
        twin_forward(repeated, names[m]);
        twin_close(names[m], grouped->o, repeated->o, 192, TWIN_EXACT);
        free(k);
        free(v);
        twin_drop(grouped);
        twin_drop(repeated);
    }
}

static void limits_are_dense(void **unused)
{
    struct twin *f = twin_make(2, 4, 2, 9, 11, 3, 2);

    (void)unused;
    twin_set(f, "window", 1, 11);
    twin_equals_dense(f, "sinkwin", true, true);
    twin_set(f, "block", 1, 2);
    twin_set(f, "window_blocks", 1, 6);
    twin_equals_dense(f, "power", true, true);
    twin_set(f, "top", 1, 6);
    twin_equals_dense(f, "moba", true, true);
    twin_drop(f);
}

/* The last queries of a longer sequence alone give the same rows. */
static void tails_equal_the_whole(void **unused)
{
    static const char *const names[] = {"dense", "sinkwin", "power", "moba", "hedgehog", NULL};

    (void)unused;
    for (int m = 0; names[m]; m++) {
        struct twin *whole = modest(names[m]), *tail = modest(names[m]);

        whole->call.causal = tail->call.causal = true;
        tail->call.N = 5;
        for (int64_t head = 0; head < 8; head++)
            memcpy(tail->q + head * 15, whole->q + (head * 12 + 7) * 3, 15 * sizeof(double));
        twin_forward(whole, names[m]);
        twin_forward(tail, names[m]);
        for (int64_t head = 0; head < 8; head++)
            twin_close(names[m], tail->o + head * 10, whole->o + (head * 12 + 7) * 2, 10, TWIN_EXACT);
        twin_drop(whole);
        twin_drop(tail);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lightning2_output_and_state),
        cmocka_unit_test(lightning2_gradients),
        cmocka_unit_test(lightning2_slopes),
        cmocka_unit_test(lightning2_splits_at_any_token),
        cmocka_unit_test(hedgehog_outputs),
        cmocka_unit_test(hedgehog_features),
        cmocka_unit_test(hedgehog_weights_and_bias),
        cmocka_unit_test(agent_output),
        cmocka_unit_test(agent_pooling_and_convolution),
        cmocka_unit_test(agent_biases),
        cmocka_unit_test(dense_terms),
        cmocka_unit_test(dense_windows_and_empty_rows),
        cmocka_unit_test(rows_sum_to_one),
        cmocka_unit_test(heads_read_their_group),
        cmocka_unit_test(limits_are_dense),
        cmocka_unit_test(tails_equal_the_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
