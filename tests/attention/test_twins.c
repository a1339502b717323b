/* The naive twins themselves: the worked numbers of their definitions, small cases by hand, and what must hold. */
#include "support/support.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets/sheets.h"

/* Worked numbers are given to six digits. */
#define DIGITS 6e-7
/* Two ways to the same double: a few hundred roundings of numbers near 1. */
#define EXACT 1e-12

enum { SLOTS = 6 };

/* A call with room for what it points at. */
struct fixture {
    sheet_call call;
    sheet_option option[SLOTS];
    double values[SLOTS][4];
    sheet_param param[SLOTS];
    double *q, *k, *v, *o, *lse;
    unsigned char *map;
};

static double *sines(int64_t count, double shift)
{
    double *x = sheet_zeros(count);

    for (int64_t n = 0; n < count; n++)
        x[n] = sin(0.7 * (double)n + shift);
    return x;
}

/* q, k and v are sin(0.7 n + 0), + 1, + 2 over their flat index: F(n, d, s) of the definitions for one head. */
static struct fixture *make(int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t M, int64_t D, int64_t Dv)
{
    struct fixture *f = calloc(1, sizeof *f);

    assert_non_null(f);
    f->q = sines(B * H * N * D, 0);
    f->k = sines(B * Hkv * M * D, 1);
    f->v = sines(B * Hkv * M * Dv, 2);
    f->o = sheet_zeros(B * H * N * Dv);
    f->lse = sheet_zeros(B * H * N);
    f->map = calloc((size_t)(B * H * N * M), 1);
    assert_non_null(f->map);
    f->call = (sheet_call){.B = B,
                           .H = H,
                           .Hkv = Hkv,
                           .N = N,
                           .M = M,
                           .D = D,
                           .Dv = Dv,
                           .q = f->q,
                           .k = f->k,
                           .v = f->v,
                           .o = f->o,
                           .map = f->map,
                           .option = f->option,
                           .param = f->param};
    return f;
}

static void drop(struct fixture *f)
{
    free(f->q);
    free(f->k);
    free(f->v);
    free(f->o);
    free(f->lse);
    free(f->map);
    free(f);
}

/* Sets an option to `count` whole numbers; the same name again replaces it. */
static void set(struct fixture *f, const char *name, int count, ...)
{
    int slot = 0;
    va_list list;

    while (slot < f->call.options && strcmp(f->option[slot].name, name) != 0)
        slot++;
    assert_true(slot < SLOTS && count <= 4);
    va_start(list, count);
    for (int n = 0; n < count; n++)
        f->values[slot][n] = va_arg(list, int);
    va_end(list);
    f->option[slot] = (sheet_option){name, count, f->values[slot]};
    if (slot == f->call.options) f->call.options++;
}

static void give(struct fixture *f, const char *name, const double *data, int rank, const int64_t *dims)
{
    sheet_param *param = &f->param[f->call.params++];

    assert_true(f->call.params <= SLOTS);
    *param = (sheet_param){.name = name, .data = data, .rank = rank};
    memcpy(param->dims, dims, (size_t)rank * sizeof *dims);
}
#define DIMS(...)                                                                                                      \
    (int)(sizeof((int64_t[]){__VA_ARGS__}) / sizeof(int64_t)), (const int64_t[])                                       \
    {                                                                                                                  \
        __VA_ARGS__                                                                                                    \
    }

/* Mechanisms without a set of pairs refuse a map. */
static void forward(struct fixture *f, const char *name)
{
    const sheet *twin = sheet_find(name);

    assert_non_null(twin);
    if (twin == &sheet_agent || twin == &sheet_hedgehog || twin == &sheet_lightning2) f->call.map = NULL;
    if (!twin->forward(&f->call)) fail_msg("%s: the twin refuses a call it should take", name);
}

static void refuses(struct fixture *f, const char *name)
{
    if (sheet_find(name)->forward(&f->call)) fail_msg("%s: the twin takes a call it should refuse", name);
}

static void close_to(const char *what, const double *got, const double *expected, int64_t count, double tolerance)
{
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(got[n] - expected[n]) <= tolerance))
            fail_msg("%s[%lld]: expected %.9g, got %.9g, tolerance %g", what, (long long)n, expected[n], got[n],
                     tolerance);
}

/* The keys of query i of head h are exactly `expected` (ends with -1). */
static void sees_keys(const struct fixture *f, int64_t h, int64_t i, const int64_t *expected)
{
    const unsigned char *row = f->map + (h * f->call.N + i) * f->call.M;

    for (int64_t j = 0; j < f->call.M; j++) {
        bool seen = *expected == j;

        if (seen) expected++;
        if (row[j] != seen)
            fail_msg("head %lld, query %lld, key %lld: expected %d, got %d", (long long)h, (long long)i, (long long)j,
                     seen, row[j]);
    }
    assert_int_equal(*expected, -1);
}
#define KEYS(...)                                                                                                      \
    (const int64_t[])                                                                                                  \
    {                                                                                                                  \
        __VA_ARGS__, -1                                                                                                \
    }

static int64_t pairs(const struct fixture *f)
{
    int64_t sum = 0;

    for (int64_t n = 0; n < f->call.B * f->call.H * f->call.N * f->call.M; n++)
        sum += f->map[n];
    return sum;
}

/* The same call on dense gives the same o (and lse, if this one has one). */
static void equals_dense(struct fixture *f, const char *name, bool causal, bool has_lse)
{
    int64_t rows = f->call.B * f->call.H * f->call.N;
    double *o = sheet_zeros(rows * f->call.Dv), *lse = sheet_zeros(rows);
    sheet_call dense = f->call;

    f->call.lse = has_lse ? f->lse : NULL;
    forward(f, name);
    dense.options = dense.params = 0;
    dense.causal = causal;
    dense.o = o;
    dense.lse = lse;
    dense.map = NULL;
    assert_true(sheet_dense.forward(&dense));
    close_to(name, f->o, o, rows * f->call.Dv, EXACT);
    if (has_lse) close_to("lse", f->lse, lse, rows, EXACT);
    free(o);
    free(lse);
}

/* ---- lightning2 -------------------------------------------------------------------------------------------------- */

static const double half_rate[] = {0.5};

static void lightning2_output_and_state(void **unused)
{
    static const double o[] = {0.580903,  0.273031,  0.750170, -0.137197, -0.192287,
                               -0.212755, -1.284260, 0.045356, -0.378872, -0.019089};
    static const double last[] = {0.635334, 0.055264, 1.319894, 0.939556};
    struct fixture *f = make(1, 1, 1, 5, 5, 2, 2);
    double state[4];

    (void)unused;
    give(f, "decay", half_rate, DIMS(1));
    f->call.state = state;
    forward(f, "lightning2");
    close_to("o", f->o, o, 10, DIGITS);
    close_to("state", state, last, 4, DIGITS);
    drop(f);
}

/* d (o . do) / dx of every number of x, by central differences of the twin. */
static void check_gradient(struct fixture *f, const char *name, double *x, const double *d_o, const double *expected,
                           int64_t count)
{
    int64_t outputs = f->call.B * f->call.H * f->call.N * f->call.Dv;
    const double step = 1e-5;

    for (int64_t n = 0; n < count; n++) {
        double kept = x[n], up, slope;

        x[n] = kept + step;
        forward(f, name);
        up = sheet_dot(f->o, d_o, outputs);
        x[n] = kept - step;
        forward(f, name);
        slope = (up - sheet_dot(f->o, d_o, outputs)) / (2 * step);
        x[n] = kept;
        close_to("gradient", &slope, &expected[n], 1, DIGITS);
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
    struct fixture *f = make(1, 1, 1, 5, 5, 2, 2);
    double *d_o = sines(10, 3);

    (void)unused;
    give(f, "decay", half_rate, DIMS(1));
    check_gradient(f, "lightning2", f->q, d_o, dq, 10);
    check_gradient(f, "lightning2", f->k, d_o, dk, 10);
    check_gradient(f, "lightning2", f->v, d_o, dv, 10);
    free(d_o);
    drop(f);
}

/* One token whose key is 0: o = e^{-s} q S shows the slope of each head. */
static void lightning2_slopes(void **unused)
{
    static const double eight[] = {0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0.0078125, 0.00390625};
    static const double six[] = {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125};
    static const double ones[] = {1, 1, 1, 1, 1, 1, 1, 1};

    (void)unused;
    for (int64_t H = 6; H <= 8; H += 2) {
        struct fixture *f = make(1, H, 1, 1, 1, 1, 1);

        memcpy(f->q, ones, (size_t)H * sizeof(double));
        f->k[0] = 0;
        give(f, "state", ones, DIMS(1, H, 1, 1));
        forward(f, "lightning2");
        for (int64_t h = 0; h < H; h++) {
            double slope = -log(f->o[h]);
            close_to("slope", &slope, &(H == 8 ? eight : six)[h], 1, EXACT);
        }
        set(f, "decay", 1, 1); /* none */
        forward(f, "lightning2");
        close_to("no decay", f->o, ones, H, EXACT);
        drop(f);
    }
}

static void lightning2_splits_at_any_token(void **unused)
{
    struct fixture *whole = make(1, 3, 1, 6, 6, 2, 2), *left = make(1, 3, 1, 2, 2, 2, 2);
    struct fixture *right = make(1, 3, 1, 4, 4, 2, 2);
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
    give(right, "state", state, DIMS(1, 3, 2, 2));
    forward(whole, "lightning2");
    forward(left, "lightning2");
    forward(right, "lightning2");
    for (int64_t h = 0; h < 3; h++) {
        close_to("left", left->o + h * 4, whole->o + h * 12, 4, EXACT);
        close_to("right", right->o + h * 8, whole->o + h * 12 + 4, 8, EXACT);
    }
    close_to("state", last, expected, 12, EXACT);
    drop(whole);
    drop(left);
    drop(right);
}

/* ---- hedgehog ---------------------------------------------------------------------------------------------------- */

static void hedgehog_outputs(void **unused)
{
    static const double softmax[] = {0.142514, 0.125398, 0.101764, 0.067244, 0.071952,
                                     0.024701, 0.102388, 0.068135, 0.142704, 0.125668};
    static const double causal[] = {0.320141, -0.202654, -0.110361, -0.136873};
    static const double exponential[] = {0.265245, 0.176990,  0.368266,  0.176807, 0.079864,
                                         0.037849, -0.172948, -0.028259, 0.039983, 0.092894};
    struct fixture *f = make(1, 1, 1, 5, 5, 2, 2);

    (void)unused;
    forward(f, "hedgehog");
    close_to("softmax", f->o, softmax, 10, DIGITS);
    f->call.causal = true;
    forward(f, "hedgehog");
    close_to("causal row 1", f->o + 2, causal, 2, DIGITS);
    close_to("causal row 3", f->o + 6, causal + 2, 2, DIGITS);
    f->call.causal = false;
    set(f, "map", 1, 1);
    forward(f, "hedgehog");
    close_to("exp", f->o, exponential, 10, DIGITS);
    drop(f);
}

/* Keys whose features are (1, 0) and (0, 1), with values 1 and 0, read off the query's features. */
static void hedgehog_features(void **unused)
{
    static const double softmax[] = {.344294}, relu[] = {1.0 / 4}, elu[] = {2.0 / 6};
    struct fixture *f = make(1, 1, 1, 1, 2, 2, 1);

    (void)unused;
    f->q[0] = 0;
    f->q[1] = sin(0.7);
    f->k[0] = f->k[3] = 40;
    f->k[1] = f->k[2] = -40;
    f->v[0] = 1;
    f->v[1] = 0;
    set(f, "half", 1, 1);
    forward(f, "hedgehog");
    close_to("positive half", f->o, softmax, 1, DIGITS);
    set(f, "half", 1, 0); /* the negative half mirrors the positive one here */
    forward(f, "hedgehog");
    close_to("both halves", f->o, softmax, 1, DIGITS);
    f->q[0] = 1;
    f->q[1] = 3;
    set(f, "map", 1, 2); /* key features 40 and the floor */
    forward(f, "hedgehog");
    close_to("relu", f->o, relu, 1, EXACT);
    f->k[0] = f->k[3] = 0; /* elu + 1: 1 and the floor */
    f->k[1] = f->k[2] = -1000;
    set(f, "map", 1, 3);
    forward(f, "hedgehog");
    close_to("elu", f->o, elu, 1, EXACT);
    drop(f);
}

static void hedgehog_weights_and_bias(void **unused)
{
    static const double identity[] = {1, 0, 0, 1, 1, 0, 0, 1}, swap[] = {0, 1, 1, 0, 0, 1, 1, 0};
    static const double shift[] = {0.5, -0.25, 0.5, -0.25};
    struct fixture *f = make(1, 2, 1, 4, 5, 2, 3), *g = make(1, 2, 1, 4, 5, 2, 3);

    (void)unused;
    give(g, "q_weight", identity, DIMS(2, 2, 2));
    forward(f, "hedgehog");
    forward(g, "hedgehog");
    close_to("identity", g->o, f->o, 24, EXACT);
    g->param[0].data = swap; /* features in another order, the same in q and k */
    give(g, "k_weight", swap, DIMS(2, 2, 2));
    forward(g, "hedgehog");
    close_to("both swapped", g->o, f->o, 24, EXACT);
    give(g, "q_bias", shift, DIMS(2, 2));
    forward(g, "hedgehog");
    for (int64_t row = 0; row < 8; row++) {
        f->q[row * 2 + 1] += shift[0];
        f->q[row * 2] += shift[1];
    }
    forward(f, "hedgehog");
    close_to("bias", g->o, f->o, 24, EXACT);
    drop(f);
    drop(g);
}

/* ---- agent ------------------------------------------------------------------------------------------------------- */

static void agent_output(void **unused)
{
    static const double o[] = {0.236225, 0.142418,  0.331218, 0.182850, 0.144827,
                               0.103516, -0.018695, 0.033917, 0.102137, 0.085346};
    static const double given[] = {0.492725, 0.753714, -0.389285, -0.438807};
    struct fixture *f = make(1, 1, 1, 5, 5, 2, 2);
    double agents[4] = {0};

    (void)unused;
    for (int64_t i = 0; i < 5; i++)
        for (int64_t d = 0; d < 2; d++)
            agents[(i < 2 ? 0 : 2) + d] += f->q[i * 2 + d] / (i < 2 ? 2 : 3);
    close_to("agents", agents, given, 4, DIGITS);
    give(f, "agents", agents, DIMS(1, 1, 2, 2));
    forward(f, "agent");
    close_to("o", f->o, o, 10, DIGITS);
    drop(f);
}

static void agent_pooling_and_convolution(void **unused)
{
    struct fixture *pooled = make(1, 2, 1, 6, 6, 2, 2), *given = make(1, 2, 1, 6, 6, 2, 2);
    double agents[16], kernel[36] = {0};

    (void)unused;
    /* A 3 x 2 grid to 2 x 2 cells: rows 0-1 and 1-2, columns 0 and 1. */
    for (int64_t n = 0; n < 16; n++) {
        int64_t h = n / 8, cell = n / 2 % 4;
        const double *first = pooled->q + (h * 6 + cell) * 2 + n % 2;

        agents[n] = (first[0] + first[4]) / 2; /* and the row below */
    }
    set(pooled, "grid", 2, 3, 2);
    set(pooled, "agents", 1, 4);
    give(given, "agents", agents, DIMS(1, 2, 4, 2));
    forward(pooled, "agent");
    forward(given, "agent");
    close_to("pooling", pooled->o, given->o, 24, EXACT);
    /* Head 1, element 0 adds the value one row above, nothing in the first row. */
    kernel[2 * 9 + 1] = 1;
    give(pooled, "dwc_weight", kernel, DIMS(4, 3, 3));
    forward(pooled, "agent");
    for (int64_t i = 2; i < 6; i++)
        given->o[(6 + i) * 2] += pooled->v[(i - 2) * 2];
    close_to("convolution", pooled->o, given->o, 24, EXACT);
    set(pooled, "agents", 1, 5);
    refuses(pooled, "agent"); /* not a square */
    drop(pooled);
    drop(given);
}

/* With q = 0 the biases alone decide: of agents over keys, then of queries over agents. */
static void agent_biases(void **unused)
{
    struct fixture *f = make(1, 1, 1, 2, 3, 2, 1);
    static const double agents[] = {.3, -.2, .9, .4};
    const double bias1[] = {log(2), log(1), log(5), 0, 0, 0}, bias2[] = {log(3), 0, 0, log(7)};
    double first, second, expected[2];

    (void)unused;
    memset(f->k, 0, 6 * sizeof(double));
    memset(f->q, 0, 4 * sizeof(double));
    give(f, "agents", agents, DIMS(1, 1, 2, 2));
    give(f, "bias1", bias1, DIMS(1, 2, 3));
    give(f, "bias2", bias2, DIMS(1, 2, 2));
    forward(f, "agent");
    first = (2 * f->v[0] + f->v[1] + 5 * f->v[2]) / 8;
    second = (f->v[0] + f->v[1] + f->v[2]) / 3;
    expected[0] = (3 * first + second) / 4;
    expected[1] = (first + 7 * second) / 8;
    close_to("o", f->o, expected, 2, EXACT);
    drop(f);
}

/* ---- gna --------------------------------------------------------------------------------------------------------- */

static struct fixture *line(int tokens, int window, int stride)
{
    struct fixture *f = make(1, 1, 1, tokens, tokens, 1, 1);

    set(f, "grid", 1, tokens);
    set(f, "window", 1, window);
    set(f, "stride", 1, stride);
    for (int64_t j = 0; j < tokens; j++) {
        f->q[j] = 0;
        f->v[j] = (double)j;
    }
    return f;
}

/* Query i sees keys from[i] .. min(from[i] + window, causal ? i + 1 : all) - 1. */
static void sees_from(const struct fixture *f, int64_t window, const int64_t *from)
{
    for (int64_t i = 0; i < f->call.N; i++)
        for (int64_t j = 0; j < f->call.M; j++)
            if (f->map[i * f->call.M + j] != (from[i] <= j && j < from[i] + window && (!f->call.causal || j <= i)))
                fail_msg("query %d, key %d: got %d", (int)i, (int)j, f->map[i * f->call.M + j]);
}

static void gna_starts_and_outputs(void **unused)
{
    static const double three[] = {1, 1, 2, 3, 4, 5, 6, 6}, four[] = {1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5};
    static const int64_t starts[] = {0, 0, 0, 2, 2, 2, 4, 4, 4}, ragged[] = {0, 0, 0, 0, 4, 4, 4, 4, 6, 6};
    static const int64_t causal[] = {0, 0, 0, 0, 2, 2, 4, 4}, dilated[] = {0, 1, 0, 1, 2, 3, 2, 3};
    struct fixture *f = line(8, 3, 1);

    (void)unused;
    forward(f, "gna");
    close_to("w=3 s=1", f->o, three, 8, EXACT);
    drop(f);

    f = line(8, 3, 1);
    set(f, "dilation", 1, 2);
    forward(f, "gna");
    for (int64_t i = 0; i < 8; i++)
        sees_keys(f, 0, i, KEYS(dilated[i], dilated[i] + 2, dilated[i] + 4));
    drop(f);

    f = line(8, 4, 2);
    forward(f, "gna");
    close_to("w=4 s=2", f->o, four, 8, EXACT);
    f->call.causal = true;
    forward(f, "gna");
    sees_from(f, 4, causal);
    drop(f);

    f = line(9, 5, 3);
    forward(f, "gna");
    sees_from(f, 5, starts);
    drop(f);

    f = line(10, 4, 4);
    forward(f, "gna");
    sees_from(f, 4, ragged);
    f->call.causal = true; /* the last group {8, 9} has its leader at 9 when clipped, at 11 when not */
    forward(f, "gna");
    sees_keys(f, 0, 8, KEYS(6, 7, 8));
    set(f, "tail_leader", 1, 1);
    forward(f, "gna");
    sees_keys(f, 0, 8, KEYS(8));
    sees_keys(f, 0, 9, KEYS(8, 9));
    drop(f);
}

static void gna_axes(void **unused)
{
    struct fixture *f = make(1, 2, 1, 24, 24, 2, 3);

    (void)unused;
    set(f, "grid", 3, 2, 3, 4);
    set(f, "window", 3, 0, 2, 3);
    forward(f, "gna");
    assert_int_equal(pairs(f), 2 * 24 * 2 * 2 * 3);
    /* Token (1, 2, 3): both planes, rows 1-2, columns 1-3. */
    sees_keys(f, 1, 23, KEYS(5, 6, 7, 9, 10, 11, 17, 18, 19, 21, 22, 23));
    set(f, "causal", 3, 1, 0, 0);
    forward(f, "gna");
    sees_keys(f, 1, 11, KEYS(5, 6, 7, 9, 10, 11));
    f->call.causal = true;
    forward(f, "gna");
    sees_keys(f, 0, 23, KEYS(5, 6, 7, 9, 10, 11, 17, 18, 19, 21, 22, 23));
    sees_keys(f, 0, 14, KEYS(0, 1, 2, 12, 13, 14));
    f->call.causal = false;
    set(f, "causal", 1, 0);
    set(f, "window", 1, 0);
    equals_dense(f, "gna", false, true);
    set(f, "window", 3, 2, 3, 5);
    refuses(f, "gna"); /* wider than the axis */
    set(f, "window", 1, 2);
    set(f, "stride", 1, 3);
    refuses(f, "gna"); /* stride past the window */
    set(f, "stride", 1, 1);
    set(f, "grid", 2, 5, 5);
    refuses(f, "gna"); /* not N tokens */
    drop(f);
}

/* Extra keys: one softmax over the concatenation. */
static void gna_extra_keys(void **unused)
{
    struct fixture *f = make(1, 4, 2, 4, 4, 2, 2), *dense = make(1, 4, 2, 4, 7, 2, 2);
    double *extra_k = sines(12, 6), *extra_v = sines(12, 7);

    (void)unused;
    for (int64_t h = 0; h < 2; h++) {
        memcpy(dense->k + h * 14, f->k + h * 8, 8 * sizeof(double));
        memcpy(dense->k + h * 14 + 8, extra_k + h * 6, 6 * sizeof(double));
        memcpy(dense->v + h * 14, f->v + h * 8, 8 * sizeof(double));
        memcpy(dense->v + h * 14 + 8, extra_v + h * 6, 6 * sizeof(double));
    }
    f->call.lse = f->lse;
    dense->call.lse = dense->lse;
    set(f, "grid", 2, 2, 2);
    set(f, "window", 1, 0);
    give(f, "extra_k", extra_k, DIMS(1, 2, 3, 2));
    refuses(f, "gna"); /* keys without values */
    give(f, "extra_v", extra_v, DIMS(1, 2, 3, 2));
    forward(f, "gna");
    forward(dense, "dense");
    close_to("o", f->o, dense->o, 32, EXACT);
    close_to("lse", f->lse, dense->lse, 16, EXACT);
    free(extra_k);
    free(extra_v);
    drop(f);
    drop(dense);
}

/* ---- power, sinkwin ---------------------------------------------------------------------------------------------- */

static void power_lists(void **unused)
{
    struct fixture *f = make(1, 1, 1, 14, 14, 1, 1);

    (void)unused;
    set(f, "block", 1, 1);
    set(f, "window_blocks", 1, 2);
    set(f, "sink_blocks", 1, 1);
    forward(f, "power");
    sees_keys(f, 0, 5, KEYS(0, 1, 3, 4, 5));
    sees_keys(f, 0, 13, KEYS(0, 5, 9, 11, 12, 13));
    set(f, "base", 1, 3); /* distances 1, 3, 9 */
    forward(f, "power");
    sees_keys(f, 0, 13, KEYS(0, 4, 10, 12, 13));
    drop(f);

    f = make(1, 1, 1, 1, 32768, 1, 1); /* defaults; the last row of 128 blocks */
    forward(f, "power");
    for (int64_t j = 0; j < 32768; j++) {
        int64_t J = j / 256;
        assert_int_equal(f->map[j], J == 0 || J == 63 || J == 95 || J == 111 || J == 119 || J >= 123);
    }
    drop(f);
}

static void sinkwin_lists(void **unused)
{
    struct fixture *f = make(1, 4, 2, 8, 10, 1, 1);

    (void)unused;
    set(f, "sink", 1, 1);
    set(f, "window", 1, 2);
    forward(f, "sinkwin");
    sees_keys(f, 0, 3, KEYS(0, 4, 5)); /* position 5 */
    set(f, "sink", 2, 1, 2);
    set(f, "window", 2, 3, 2);
    forward(f, "sinkwin");
    sees_keys(f, 1, 7, KEYS(0, 7, 8, 9));
    sees_keys(f, 2, 7, KEYS(0, 1, 8, 9));
    set(f, "block", 1, 3); /* position 7: blocks 0 to 2, sink 1, window 1 */
    set(f, "sink", 1, 1);
    set(f, "window", 1, 1);
    forward(f, "sinkwin");
    sees_keys(f, 3, 5, KEYS(0, 1, 2, 6, 7));
    set(f, "sink", 3, 1, 1, 1);
    refuses(f, "sinkwin"); /* three entries for two key heads */
    drop(f);
}

/* A span of S keys in n tokens: 64 sinks and S - 64 recent ones, so the last query sees exactly S; counted in blocks of
 * 64 as well.  S = alpha + beta n for (-1024, 1/2) and (0, 1/4), at least 128. */
static void sinkwin_spans(void **unused)
{
    static const int spans[][2] = {{1024, 4096}, {3072, 8192}, {128, 2048}, {512, 2048}, {1024, 4096}, {2048, 8192}};

    (void)unused;
    for (size_t n = 0; n < sizeof spans / sizeof *spans; n++) {
        struct fixture *f = make(1, 1, 1, 1, spans[n][1], 1, 1);

        set(f, "sink", 1, 64);
        set(f, "window", 1, spans[n][0] - 64);
        forward(f, "sinkwin");
        assert_int_equal(pairs(f), spans[n][0]);
        set(f, "sink", 1, 1);
        set(f, "window", 1, spans[n][0] / 64 - 1);
        set(f, "block", 1, 64);
        forward(f, "sinkwin");
        assert_int_equal(pairs(f), spans[n][0]);
        drop(f);
    }
}

/* ---- bra --------------------------------------------------------------------------------------------------------- */

static void bra_routing(void **unused)
{
    struct fixture *f = make(1, 1, 1, 4, 4, 1, 1);
    int64_t chosen[8];

    (void)unused;
    f->call.selection = chosen;
    set(f, "grid", 2, 2, 2);
    set(f, "regions", 1, 2);
    set(f, "top", 1, 2);
    for (int64_t j = 0; j < 4; j++) {
        f->k[j] = (double)(j + 1);
        f->q[j] = j < 3 ? 1 : -1;
    }
    forward(f, "bra");
    for (int64_t i = 0; i < 3; i++)
        sees_keys(f, 0, i, KEYS(2, 3));
    sees_keys(f, 0, 3, KEYS(0, 1));
    assert_true(chosen[0] == 2 && chosen[1] == 3 && chosen[6] == 0 && chosen[7] == 1);
    set(f, "route_scale", 1, -1); /* the routing alone turns round */
    forward(f, "bra");
    sees_keys(f, 0, 0, KEYS(0, 1));
    chosen[0] = 1;
    chosen[1] = 3;
    f->call.frozen = true; /* the given choice holds */
    forward(f, "bra");
    sees_keys(f, 0, 0, KEYS(1, 3));
    f->call.frozen = false;
    for (int64_t j = 0; j < 4; j++)
        f->k[j] = 1; /* ties go to the lower region */
    forward(f, "bra");
    sees_keys(f, 0, 3, KEYS(0, 1));
    f->call.causal = true;
    refuses(f, "bra");
    drop(f);
}

/* 5 x 4 cells in regions of 2 x 2, three a side: the last row of regions is one cell high, the last column empty. */
static void bra_ragged_regions(void **unused)
{
    struct fixture *f = make(1, 2, 1, 20, 20, 1, 1);
    double weight[50] = {0}, bias[] = {0.25, 0}, *expected = sheet_zeros(40);

    (void)unused;
    set(f, "grid", 2, 5, 4);
    set(f, "regions", 1, 3);
    set(f, "top", 1, 1);
    for (int64_t n = 0; n < 40; n++)
        f->q[n] = 1;
    for (int64_t j = 0; j < 20; j++)
        f->k[j] = j >= 18 ? 3 : j < 16 ? 2 : 0; /* the best mean is that of two cells; an empty region's would be 0 */
    forward(f, "bra");
    sees_keys(f, 0, 0, KEYS(18, 19));
    sees_keys(f, 1, 19, KEYS(18, 19));
    for (int64_t j = 0; j < 20; j++)
        f->k[j] -= 4;
    forward(f, "bra");
    sees_keys(f, 0, 0, KEYS(18, 19));
    set(f, "top", 1, 9);
    equals_dense(f, "bra", false, true);
    weight[25 + 0 * 5 + 3] = 1; /* head 1: the value two rows up, one column right */
    give(f, "lepe_weight", weight, DIMS(2, 5, 5));
    give(f, "lepe_bias", bias, DIMS(2));
    for (int64_t i = 0; i < 20; i++) {
        expected[i] = f->o[i] + 0.25;
        expected[20 + i] = f->o[20 + i] + (i / 4 >= 2 && i % 4 < 3 ? f->v[i - 8 + 1] : 0);
    }
    forward(f, "bra");
    close_to("local term", f->o, expected, 40, EXACT);
    free(expected);
    drop(f);
}

/* ---- nsa --------------------------------------------------------------------------------------------------------- */

static void nsa_importance_map(void **unused)
{
    static const double p[] = {.05, .1, .2, .05, 0, .1, .05, .15, .1, .05, .15}, expected[] = {.75, .50, .75};

    (void)unused;
    for (int64_t b = 0; b < 3; b++) {
        double got = sheet_nsa_importance(64, 16, 32, p, 11, b);
        close_to("importance", &got, &expected[b], 1, EXACT);
    }
}

static void nsa_visible_compressed_keys(void **unused)
{
    static const int64_t at[] = {0, 30, 31, 46, 47, 63, 64}, count[] = {0, 0, 1, 1, 2, 3, 3};
    struct fixture *f = make(1, 1, 1, 65, 65, 1, 1);
    double gate[65 * 3];

    (void)unused;
    for (int64_t i = 0; i < 65; i++) {
        f->q[i] = 0;
        f->v[i] = i < 16; /* half of the first compressed value, none of the others */
        gate[i * 3] = 60;
        gate[i * 3 + 1] = gate[i * 3 + 2] = -60;
    }
    give(f, "gate", gate, DIMS(1, 1, 65, 3));
    forward(f, "nsa");
    for (int n = 0; n < 7; n++) {
        double expected = count[n] ? 0.5 / (double)count[n] : 0;
        close_to("o", &f->o[at[n]], &expected, 1, EXACT);
    }
    drop(f);
}

/* Five blocks of two keys whose means are 0 3 1 2 0, two heads: alone the first prefers block 1, their sum block 2
 * (0.19 + 0.14 against 0.24 + 0.02). */
static void nsa_selects_by_group(void **unused)
{
    static const double means[] = {0, 3, 1, 2, 0}, one = 1;
    struct fixture *f = make(1, 2, 1, 10, 10, 1, 1);
    int64_t chosen[30];

    (void)unused;
    f->call.scale = &one;
    f->call.selection = chosen;
    set(f, "compress_block", 1, 2);
    set(f, "compress_stride", 1, 2);
    set(f, "block", 1, 2);
    set(f, "top", 1, 3);
    set(f, "local", 1, 1);
    for (int64_t n = 0; n < 10; n++) {
        f->k[n] = means[n / 2] + (n % 2 ? 0.5 : -0.5);
        f->q[n] = 0.1;
        f->q[10 + n] = -1;
    }
    forward(f, "nsa");
    sees_keys(f, 0, 9, KEYS(0, 1, 4, 5, 8, 9));
    sees_keys(f, 1, 9, KEYS(0, 1, 4, 5, 8, 9));
    sees_keys(f, 0, 2, KEYS(0, 1, 2));
    assert_true(chosen[27] == 0 && chosen[28] == 2 && chosen[29] == 4 && chosen[2] == -1);
    for (int64_t n = 0; n < 10; n++)
        f->q[10 + n] = 0.1;
    forward(f, "nsa");
    sees_keys(f, 0, 9, KEYS(0, 1, 2, 3, 8, 9));
    for (int64_t n = 0; n < 10; n++)
        f->k[n] = 0; /* ties go to the lower block */
    forward(f, "nsa");
    sees_keys(f, 0, 9, KEYS(0, 1, 2, 3, 8, 9));
    set(f, "top", 1, 1);
    refuses(f, "nsa"); /* fewer than are forced */
    drop(f);
}

/* Gate logits that leave one branch (or, -1, none). */
static void only(double *gate, int64_t rows, int branch)
{
    for (int64_t n = 0; n < rows * 3; n++)
        gate[n] = n % 3 == branch ? 60 : -60;
}

static struct fixture *small_nsa(int64_t N, int64_t M)
{
    struct fixture *f = make(1, 4, 2, N, M, 4, 3);

    set(f, "compress_block", 1, 4);
    set(f, "compress_stride", 1, 2);
    set(f, "block", 1, 4);
    set(f, "top", 1, 4);
    set(f, "window", 1, 5);
    return f;
}

static void nsa_branches(void **unused)
{
    struct fixture *f = small_nsa(21, 21);
    double gate[4 * 21 * 3], *sum = sheet_zeros(4 * 21 * 3);

    (void)unused;
    give(f, "gate", gate, DIMS(1, 4, 21, 3));
    for (int branch = 0; branch < 3; branch++) {
        only(gate, 84, branch);
        forward(f, "nsa");
        for (int64_t n = 0; n < 252; n++)
            sum[n] += f->o[n] / 2;
    }
    f->call.params = 0; /* no gate: each branch by half */
    forward(f, "nsa");
    close_to("half of each branch", f->o, sum, 252, EXACT);
    free(sum);
    f->call.params = 1;
    set(f, "top", 1, 6);
    only(gate, 84, 1);
    equals_dense(f, "nsa", true, false);
    set(f, "top", 1, 4);
    set(f, "window", 1, 21);
    only(gate, 84, 2);
    equals_dense(f, "nsa", true, false);
    f->call.lse = f->lse;
    refuses(f, "nsa"); /* a sum of three softmaxes has none */
    drop(f);
}

static void nsa_lists(void **unused)
{
    struct fixture *f = small_nsa(31, 31), *tail = small_nsa(7, 31);
    int64_t chosen[2 * 31 * 4], seen = 0;

    (void)unused;
    f->call.selection = chosen;
    forward(f, "nsa");
    for (int64_t g = 0; g < 2; g++)
        for (int64_t i = 0; i < 31; i++) {
            const int64_t *list = chosen + (g * 31 + i) * 4;
            int64_t filled = 0, own = i / 4;

            while (filled < 4 && list[filled] >= 0)
                filled++;
            assert_int_equal(filled, own + 1 < 4 ? own + 1 : 4);
            assert_true(list[0] == 0 && list[filled - 1] == own);
            if (own > 0) assert_int_equal(list[filled - 2], own - 1);
            for (int64_t t = 1; t < filled; t++)
                assert_true(list[t - 1] < list[t]);
            seen += 2 * ((filled - 1) * 4 + i % 4 + 1); /* two heads read each list */
        }
    assert_int_equal(pairs(f), seen);
    /* The last seven queries of the same sequence. */
    for (int64_t h = 0; h < 4; h++)
        memcpy(tail->q + h * 28, f->q + (h * 31 + 24) * 4, 28 * sizeof(double));
    forward(tail, "nsa");
    for (int64_t h = 0; h < 4; h++)
        close_to("tail", tail->o + h * 21, f->o + (h * 31 + 24) * 3, 21, EXACT);
    drop(f);
    drop(tail);
}

/* Weights of 1/length times the identity are the mean; what positions add to every compressed key of a head alike
 * changes nothing, but weights that read one token only tell it from the others. */
static void nsa_compression(void **unused)
{
    struct fixture *f = small_nsa(13, 13), *g = small_nsa(13, 13);
    double *wk = sheet_zeros(2 * 16 * 4), *wv = sheet_zeros(2 * 12 * 3), *position = sines(32, 8), gate[4 * 13 * 3];
    const double zero = 0;

    (void)unused;
    for (int64_t n = 0; n < 2 * 16; n++)
        wk[n * 4 + n % 4] = 0.25;
    for (int64_t n = 0; n < 2 * 12; n++)
        wv[n * 3 + n % 3] = 0.25;
    give(g, "compress_k", wk, DIMS(2, 16, 4));
    give(g, "compress_v", wv, DIMS(2, 12, 3));
    forward(f, "nsa");
    forward(g, "nsa");
    close_to("mean", g->o, f->o, 4 * 13 * 3, EXACT);
    give(g, "compress_position", position, DIMS(2, 4, 4));
    forward(g, "nsa");
    close_to("common shift", g->o, f->o, 4 * 13 * 3, EXACT);
    memset(wv, 0, 2 * 12 * 3 * sizeof(double)); /* token 1 of the block, elements in reverse */
    for (int64_t n = 0; n < 2; n++)
        for (int64_t e = 0; e < 3; e++)
            wv[((n * 4 + 1) * 3 + e) * 3 + 2 - e] = 1;
    give(g, "gate", gate, DIMS(1, 4, 13, 3));
    only(gate, 52, 0);
    g->call.scale = &zero;
    forward(g, "nsa");
    for (int64_t e = 0; e < 3; e++) { /* token 5 sees blocks at 0 and 2: values 1 and 3 */
        double expected = (g->v[1 * 3 + 2 - e] + g->v[3 * 3 + 2 - e]) / 2;
        close_to("weighted", &g->o[5 * 3 + e], &expected, 1, EXACT);
    }
    set(g, "compress", 1, 1); /* the mean reads no weights */
    forward(g, "nsa");
    for (int64_t e = 0; e < 3; e++) {
        double expected = 0;

        for (int64_t t = 0; t < 6; t++)
            expected += g->v[t * 3 + e] * (t == 2 || t == 3 ? 2 : 1) / 8;
        close_to("unweighted", &g->o[5 * 3 + e], &expected, 1, EXACT);
    }
    free(wk);
    free(wv);
    free(position);
    drop(f);
    drop(g);
}

/* Rotation inside equals rotation outside for the selected branch (three blocks in all, so the choice is everything);
 * compressed keys are turned to the position of their first token, after the mean. */
static void nsa_rotation(void **unused)
{
    struct fixture *f = small_nsa(9, 9), *turned = small_nsa(9, 9);
    double gate[4 * 9 * 3], mean[4] = {0}, score[2] = {0}, expected;

    (void)unused;
    give(f, "gate", gate, DIMS(1, 4, 9, 3));
    give(turned, "gate", gate, DIMS(1, 4, 9, 3));
    set(f, "rope_base", 1, 100);
    for (int64_t row = 0; row < 36 + 18; row++) {
        double *x = row < 36 ? turned->q + row * 4 : turned->k + (row - 36) * 4, y[4];
        double p = (double)(row % 9), slow = p / 10; /* 100^(-2/4) */

        y[0] = x[0] * cos(p) - x[2] * sin(p);
        y[2] = x[0] * sin(p) + x[2] * cos(p);
        y[1] = x[1] * cos(slow) - x[3] * sin(slow);
        y[3] = x[1] * sin(slow) + x[3] * cos(slow);
        memcpy(x, y, sizeof y);
    }
    only(gate, 36, 1);
    forward(f, "nsa");
    forward(turned, "nsa");
    close_to("selected", f->o, turned->o, 4 * 9 * 3, EXACT);

    only(gate, 36, 0);
    forward(f, "nsa"); /* query 5 sees compressed keys at 0 and 2: relative angles 5 and 3 */
    for (int c = 0; c < 2; c++) {
        const double *q = f->q + 5 * 4;
        double fast = 5 - 2 * c, slow = fast / 10;

        for (int d = 0; d < 4; d++) {
            mean[d] = 0;
            for (int t = 0; t < 4; t++)
                mean[d] += f->k[(2 * c + t) * 4 + d] / 4;
        }
        score[c] =
            0.5 * ((q[0] * mean[0] + q[2] * mean[2]) * cos(fast) + (q[0] * mean[2] - q[2] * mean[0]) * sin(fast) +
                   (q[1] * mean[1] + q[3] * mean[3]) * cos(slow) + (q[1] * mean[3] - q[3] * mean[1]) * sin(slow));
    }
    expected = 0;
    for (int t = 0; t < 4; t++)
        expected +=
            (exp(score[0]) * f->v[t * 3] + exp(score[1]) * f->v[(t + 2) * 3]) / 4 / (exp(score[0]) + exp(score[1]));
    close_to("compressed", &f->o[5 * 3], &expected, 1, EXACT);
    drop(f);
    drop(turned);
}

/* ---- moba -------------------------------------------------------------------------------------------------------- */

/* Mean keys with gates 4 2 0 1 for head 0 and 1 2 6 3 for head 1. */
static void moba_gates(void **unused)
{
    static const double table[2][4] = {{4, 2, 0, 1}, {1, 2, 6, 3}};
    struct fixture *f = make(1, 2, 1, 8, 8, 2, 1);
    int64_t chosen[2 * 8 * 3];

    (void)unused;
    set(f, "block", 1, 2);
    for (int64_t n = 0; n < 8; n++)
        for (int64_t g = 0; g < 2; g++) {
            f->k[n * 2 + g] = table[g][n / 2] + (n % 2 ? 0.25 : -0.25);
            f->q[(g * 8 + n) * 2 + g] = 1;
            f->q[(g * 8 + n) * 2 + 1 - g] = 0;
        }
    set(f, "top", 1, 2);
    forward(f, "moba");
    sees_keys(f, 0, 0, KEYS(0));
    sees_keys(f, 0, 3, KEYS(0, 1, 2, 3));
    sees_keys(f, 0, 7, KEYS(0, 1, 6, 7));
    sees_keys(f, 1, 4, KEYS(2, 3, 4));
    sees_keys(f, 1, 6, KEYS(4, 5, 6));
    set(f, "top", 1, 3);
    f->call.selection = chosen;
    forward(f, "moba");
    sees_keys(f, 0, 7, KEYS(0, 1, 2, 3, 6, 7));
    sees_keys(f, 1, 7, KEYS(2, 3, 4, 5, 6, 7));
    assert_true(chosen[(8 + 7) * 3] == 1 && chosen[(8 + 7) * 3 + 2] == 3 && chosen[1] == -1);
    f->call.selection = NULL;
    for (int64_t n = 0; n < 16; n++)
        f->k[n] = 1; /* ties go to the lower block */
    set(f, "top", 1, 2);
    forward(f, "moba");
    sees_keys(f, 1, 7, KEYS(0, 1, 6, 7));
    drop(f);
}

/* ---- dense ------------------------------------------------------------------------------------------------------- */

static void dense_terms(void **unused)
{
    const double sinks[] = {log(2)}, bias[] = {log(3), 0}, cap = 2;
    struct fixture *f = make(1, 1, 1, 1, 2, 1, 1);
    double expected;

    (void)unused;
    f->call.lse = f->lse;
    f->q[0] = 0;
    f->v[0] = 1;
    f->v[1] = 0;
    give(f, "sinks", sinks, DIMS(1));
    forward(f, "dense"); /* 1 / (1 + 1 + 2), and the denominator counts the sink */
    close_to("sink", f->o, (double[]){0.25}, 1, EXACT);
    close_to("lse", f->lse, (double[]){log(4)}, 1, EXACT);
    give(f, "bias", bias, DIMS(1, 1, 1, 2));
    forward(f, "dense");
    close_to("bias", f->o, (double[]){3.0 / 6}, 1, EXACT);
    f->call.params = 0;
    f->q[0] = 3;
    f->k[0] = 1;
    f->k[1] = 0;
    set(f, "softcap", 1, 2);
    forward(f, "dense");
    expected = 1 / (1 + exp(-cap * tanh(3 / cap)));
    close_to("softcap", f->o, &expected, 1, EXACT);
    f->param[0] = f->param[1]; /* the bias is not capped */
    f->call.params = 1;
    forward(f, "dense");
    expected = 1 / (1 + exp(-cap * tanh(3 / cap)) / 3);
    close_to("softcap and bias", f->o, &expected, 1, EXACT);
    drop(f);
}

static void dense_windows_and_empty_rows(void **unused)
{
    struct fixture *f = make(1, 1, 1, 5, 3, 2, 2);

    (void)unused;
    f->call.lse = f->lse;
    f->call.causal = true;
    forward(f, "dense"); /* positions -2 .. 2 */
    sees_keys(f, 0, 1, (const int64_t[]){-1});
    sees_keys(f, 0, 4, KEYS(0, 1, 2));
    assert_true(f->lse[0] == -INFINITY && f->o[0] == 0 && f->o[3] == 0);
    set(f, "window", 1, 2);
    forward(f, "dense");
    sees_keys(f, 0, 4, KEYS(1, 2));
    f->call.causal = false;
    forward(f, "dense");
    sees_keys(f, 0, 1, KEYS(0));
    sees_keys(f, 0, 3, KEYS(0, 1, 2));
    drop(f);
}

/* ---- what must hold ---------------------------------------------------------------------------------------------- */

/* Options small enough to leave some pairs out. */
static struct fixture *modest(const char *name)
{
    struct fixture *f = make(2, 4, 2, 12, 12, 3, 2);

    if (!strcmp(name, "gna") || !strcmp(name, "bra") || !strcmp(name, "agent")) set(f, "grid", 2, 3, 4);
    if (!strcmp(name, "sinkwin") || !strcmp(name, "dense")) set(f, "window", 1, 3);
    if (!strcmp(name, "gna")) set(f, "window", 1, 2);
    if (!strcmp(name, "power") || !strcmp(name, "moba")) set(f, "block", 1, 2);
    if (!strcmp(name, "power")) set(f, "window_blocks", 1, 1);
    if (!strcmp(name, "bra")) set(f, "regions", 1, 2);
    if (!strcmp(name, "bra")) set(f, "top", 1, 2);
    if (!strcmp(name, "agent")) set(f, "agents", 1, 4);
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
        struct fixture *f = modest(names[m]);

        memcpy(f->v, ones, 96 * sizeof(double));
        forward(f, names[m]);
        close_to(names[m], f->o, ones, 192, EXACT);
        drop(f);
    }
}

static void heads_read_their_group(void **unused)
{
    static const char *const names[] = {"dense", "sinkwin", "gna",      "power",      "moba",
                                        "bra",   "agent",   "hedgehog", "lightning2", NULL};

    (void)unused;
    for (int m = 0; names[m]; m++) {
        struct fixture *grouped = modest(names[m]), *repeated = modest(names[m]);
        double *k = sheet_zeros(2 * 4 * 12 * 3), *v = sheet_zeros(2 * 4 * 12 * 2);

        for (int64_t head = 0; head < 8; head++) {
            memcpy(k + head * 36, grouped->k + head / 2 * 36, 36 * sizeof(double));
            memcpy(v + head * 24, grouped->v + head / 2 * 24, 24 * sizeof(double));
        }
        repeated->call.Hkv = 4;
        repeated->call.k = k;
        repeated->call.v = v;
        forward(grouped, names[m]);
        forward(repeated, names[m]);
        close_to(names[m], grouped->o, repeated->o, 192, EXACT);
        free(k);
        free(v);
        drop(grouped);
        drop(repeated);
    }
}

static void limits_are_dense(void **unused)
{
    struct fixture *f = make(2, 4, 2, 9, 11, 3, 2);

    (void)unused;
    set(f, "window", 1, 11);
    equals_dense(f, "sinkwin", true, true);
    set(f, "block", 1, 2);
    set(f, "window_blocks", 1, 6);
    equals_dense(f, "power", true, true);
    set(f, "top", 1, 6);
    equals_dense(f, "moba", true, true);
    drop(f);
}

/* The last queries of a longer sequence alone give the same rows. */
static void tails_equal_the_whole(void **unused)
{
    static const char *const names[] = {"dense", "sinkwin", "power", "moba", "hedgehog", NULL};

    (void)unused;
    for (int m = 0; names[m]; m++) {
        struct fixture *whole = modest(names[m]), *tail = modest(names[m]);

        whole->call.causal = tail->call.causal = true;
        tail->call.N = 5;
        for (int64_t head = 0; head < 8; head++)
            memcpy(tail->q + head * 15, whole->q + (head * 12 + 7) * 3, 15 * sizeof(double));
        forward(whole, names[m]);
        forward(tail, names[m]);
        for (int64_t head = 0; head < 8; head++)
            close_to(names[m], tail->o + head * 10, whole->o + (head * 12 + 7) * 2, 10, EXACT);
        drop(whole);
        drop(tail);
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
        cmocka_unit_test(gna_starts_and_outputs),
        cmocka_unit_test(gna_axes),
        cmocka_unit_test(gna_extra_keys),
        cmocka_unit_test(power_lists),
        cmocka_unit_test(sinkwin_lists),
        cmocka_unit_test(sinkwin_spans),
        cmocka_unit_test(bra_routing),
        cmocka_unit_test(bra_ragged_regions),
        cmocka_unit_test(nsa_importance_map),
        cmocka_unit_test(nsa_visible_compressed_keys),
        cmocka_unit_test(nsa_selects_by_group),
        cmocka_unit_test(nsa_branches),
        cmocka_unit_test(nsa_lists),
        cmocka_unit_test(nsa_compression),
        cmocka_unit_test(nsa_rotation),
        cmocka_unit_test(moba_gates),
        cmocka_unit_test(dense_terms),
        cmocka_unit_test(dense_windows_and_empty_rows),
        cmocka_unit_test(rows_sum_to_one),
        cmocka_unit_test(heads_read_their_group),
        cmocka_unit_test(limits_are_dense),
        cmocka_unit_test(tails_equal_the_whole),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
