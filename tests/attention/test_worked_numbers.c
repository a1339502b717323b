/* Examples worked out by hand or elsewhere, one head each: what a reader can check against the papers. */
#include "support/support.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "fovea/attention.h"

enum { MOST = 8 };

/* One call of one head: arrays of floats in, doubles expected. */
struct example {
    const char *spec;
    int64_t N, M, D, Dv;
    const float *q, *k, *v;
    bool causal;
    float scale; /* 0: the default */
    int params;
    fv_named_tensor param[MOST];
    float *o;
    fv_ctx *ctx;
    fv_attention *attention;
    fv_attention_args args;
};

static fv_tensor wrap(const void *data, int rank, const int64_t *dims)
{
    fv_tensor t;

    assert_ok(fv_tensor_wrap(&t, (void *)data, FV_F32, rank, dims));
    return t;
}

static void open_example(struct example *e, const char *device)
{
    e->ctx = test_ctx(device, 1);
    assert_ok(fv_attention_new(e->spec, &e->attention));
    e->o = calloc((size_t)(e->N * e->Dv), sizeof *e->o);
    e->args = (fv_attention_args){.q = wrap(e->q, FV_DIMS(1, 1, e->N, e->D)),
                                  .k = wrap(e->k, FV_DIMS(1, 1, e->M, e->D)),
                                  .v = wrap(e->v, FV_DIMS(1, 1, e->M, e->Dv)),
                                  .o = wrap(e->o, FV_DIMS(1, 1, e->N, e->Dv)),
                                  .causal = e->causal,
                                  .scale = e->scale == 0 ? NULL : &e->scale,
                                  .params = e->params,
                                  .param = e->param};
}

static void close_example(struct example *e)
{
    fv_attention_free(e->attention);
    fv_ctx_free(e->ctx);
    free(e->o);
}

/* Holds the output against rows of `expected`. */
static void expect(struct example e, const double *expected, double tolerance)
{
    for (int d = 0; test_devices[d]; d++) {
        open_example(&e, test_devices[d]);
        assert_ok(fv_attention_forward(e.ctx, e.attention, &e.args));
        test_close(e.spec, &e.args.o, expected, tolerance);
        close_example(&e);
    }
}

/* The keys that query i sees, as text: "0 1 3". */
static void expect_seen(struct example e, int64_t i, const char *expected)
{
    char seen[1024] = "";
    size_t length = 0;
    fv_tensor map;
    void *owned;

    open_example(&e, "cpu");
    assert_ok(fv_attention_map(e.ctx, e.attention, &e.args, &map, &owned));
    for (int64_t j = 0; j < e.M && length < sizeof seen - 8; j++)
        if (((uint8_t *)map.data)[i * e.M + j])
            length += (size_t)snprintf(seen + length, sizeof seen - length, "%s%d", length ? " " : "", (int)j);
    fv_release(owned);
    close_example(&e);
    if (strcmp(seen, expected) != 0) fail_msg("%s, query %d: expected keys %s, got %s", e.spec, (int)i, expected, seen);
}

/* F(5, 2, s)[i][c] = sin(0.7 (2 i + c) + s), the inputs of several examples. */
static void waves(float *out, double s)
{
    for (int i = 0; i < 10; i++)
        out[i] = (float)sin(0.7 * i + s);
}

static struct example wave_example(const char *spec, float data[3][10])
{
    for (int i = 0; i < 3; i++)
        waves(data[i], i);
    return (struct example){.spec = spec, .N = 5, .M = 5, .D = 2, .Dv = 2, .q = data[0], .k = data[1], .v = data[2]};
}

#define PRINTED 1e-6 /* six decimals, and f32 */

static void lightning2_with_gradients(void **state)
{
    static const double o[] = {0.580903,  0.273031,  0.750170, -0.137197, -0.192287,
                               -0.212755, -1.284260, 0.045356, -0.378872, -0.019089};
    static const double last[] = {0.635334, 0.055264, 1.319894, 0.939556};
    static const double dq[] = {-0.082566, -0.097303, 0.032399, -0.716827, -0.316108,
                                -0.426080, 0.064885,  0.933802, 0.473465,  1.086258};
    static const double dk[] = {-1.079387, -0.930904, 1.342441,  1.243693,  1.085016,
                                0.776923,  -0.450344, -0.502788, -0.519606, 0.013840};
    static const double dv[] = {-1.224801, -1.679323, -0.980803, -0.865046, 0.754849,
                                0.951594,  1.148266,  1.177733,  -0.133929, -0.022696};
    float data[3][10], rate = 0.5f, final[4], d_o[10], d_q[10], d_k[10], d_v[10];
    struct example e = wave_example("lightning2:block=2", data);
    fv_named_tensor out = {"state", wrap(final, FV_DIMS(1, 1, 2, 2))};
    fv_attention_grads grads = {.d_o = wrap(d_o, FV_DIMS(1, 1, 5, 2)),
                                .d_q = wrap(d_q, FV_DIMS(1, 1, 5, 2)),
                                .d_k = wrap(d_k, FV_DIMS(1, 1, 5, 2)),
                                .d_v = wrap(d_v, FV_DIMS(1, 1, 5, 2))};
    (void)state;

    waves(d_o, 3);
    e.params = 1;
    e.param[0] = (fv_named_tensor){"decay", wrap(&rate, FV_DIMS(1))};
    for (int d = 0; test_devices[d]; d++) {
        open_example(&e, test_devices[d]);
        e.args.params_out = 1;
        e.args.param_out = &out;
        assert_ok(fv_attention_forward(e.ctx, e.attention, &e.args));
        test_close("o", &e.args.o, o, PRINTED);
        test_close("state", &out.tensor, last, PRINTED);
        e.args.params_out = 0;
        assert_ok(fv_attention_backward(e.ctx, e.attention, &e.args, &grads));
        test_close("dq", &grads.d_q, dq, 2 * PRINTED);
        test_close("dk", &grads.d_k, dk, 2 * PRINTED);
        test_close("dv", &grads.d_v, dv, 2 * PRINTED);
        close_example(&e);
    }
}

static void hedgehog_maps(void **state)
{
    static const double soft[] = {.142514, .125398, .101764, .067244, .071952,
                                  .024701, .102388, .068135, .142704, .125668};
    static const double exponential[] = {.265245, .176990,  .368266,  .176807, .079864,
                                         .037849, -.172948, -.028259, .039983, .092894};
    static const double causal[] = {.320141, -.202654, -.110361, -.136873};
    float data[3][10];
    struct example e = wave_example("hedgehog", data);
    (void)state;

    expect(e, soft, PRINTED);
    e.spec = "hedgehog:map=exp";
    expect(e, exponential, PRINTED);
    e.spec = "hedgehog";
    e.causal = true;
    for (int d = 0; test_devices[d]; d++) {
        open_example(&e, test_devices[d]);
        assert_ok(fv_attention_forward(e.ctx, e.attention, &e.args));
        for (int n = 0; n < 4; n++)
            assert_true(fabs(e.o[(n / 2 ? 3 : 1) * 2 + n % 2] - causal[n]) <= PRINTED);
        close_example(&e);
    }
}

static void agents_of_two_and_three_rows(void **state)
{
    static const double o[] = {.236225, .142418,  .331218, .182850, .144827,
                               .103516, -.018695, .033917, .102137, .085346};
    static const float agents[] = {.492725f, .753714f, -.389285f, -.438807f};
    float data[3][10];
    struct example e = wave_example("agent", data);
    (void)state;

    e.params = 1;
    e.param[0] = (fv_named_tensor){"agents", wrap(agents, FV_DIMS(1, 1, 2, 2))};
    expect(e, o, PRINTED);
}

/* q = 0 and v_j = j: each output is the mean of the keys seen. */
static void gna_windows(void **state)
{
    static const double three[] = {1, 1, 2, 3, 4, 5, 6, 6}, four[] = {1.5, 1.5, 2.5, 2.5, 4.5, 4.5, 5.5, 5.5};
    static const float zero[16], index[] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
    struct example e = {.N = 8, .M = 8, .D = 1, .Dv = 1, .q = zero, .k = zero, .v = index};
    (void)state;

    e.spec = "gna:grid=8,window=3";
    expect(e, three, PRINTED);
    e.spec = "gna:grid=8,window=4,stride=2";
    expect(e, four, PRINTED);
    e.N = e.M = 9;
    e.spec = "gna:grid=9,window=5,stride=3"; /* starts 0 0 0 2 2 2 4 4 4 */
    expect_seen(e, 2, "0 1 2 3 4");
    expect_seen(e, 3, "2 3 4 5 6");
    expect_seen(e, 8, "4 5 6 7 8");
    e.N = e.M = 8;
    e.spec = "gna:grid=8,window=4,stride=2,causal=1";
    expect_seen(e, 3, "0 1 2 3");
    expect_seen(e, 4, "2 3 4");
    expect_seen(e, 6, "4 5 6");
    e.spec = "gna:grid=10,window=4,stride=4"; /* the short last group keeps a leader of its own */
    e.N = e.M = 10;
    expect_seen(e, 4, "4 5 6 7");
    expect_seen(e, 8, "6 7 8 9");
}

static void lists_of_power_and_sinkwin(void **state)
{
    static const float zero[1 << 16];
    struct example e = {.spec = "power:block=1,window_blocks=2,sink_blocks=1",
                        .N = 14,
                        .M = 14,
                        .D = 1,
                        .Dv = 1,
                        .q = zero,
                        .k = zero,
                        .v = zero};
    fv_tensor map;
    void *owned;
    (void)state;

    expect_seen(e, 5, "0 1 3 4 5");
    expect_seen(e, 13, "0 5 9 11 12 13");
    e.spec = "sinkwin:sink=1,window=2";
    expect_seen(e, 5, "0 4 5");
    e.spec = "sinkwin:sink=1,window=2,block=3"; /* query block 3 sees blocks 0, 2 and its own */
    expect_seen(e, 10, "0 1 2 6 7 8 9 10");
    e.spec = "power"; /* block 127 sees blocks 0 63 95 111 119 123..127 */
    e.N = 1;
    e.M = 128 * 256;
    open_example(&e, "cpu");
    assert_ok(fv_attention_map(e.ctx, e.attention, &e.args, &map, &owned));
    for (int j = 0; j < 128 * 256; j++) {
        int block = j / 256;
        bool seen = block == 0 || block == 63 || block == 95 || block == 111 || block == 119 || block >= 123;
        assert_int_equal(((uint8_t *)map.data)[j], seen);
    }
    fv_release(owned);
    close_example(&e);
}

/* Four regions of one cell with keys 1 2 3 4. */
static void bra_routes(void **state)
{
    static const float up[] = {1, 1, 1, 1}, down[] = {-1, -1, -1, -1}, keys[] = {1, 2, 3, 4};
    struct example e = {
        .spec = "bra:grid=2x2,regions=2,top=2", .N = 4, .M = 4, .D = 1, .Dv = 1, .q = up, .k = keys, .v = keys};
    (void)state;

    expect_seen(e, 0, "2 3");
    e.q = down;
    expect_seen(e, 3, "0 1");
}

/* Gates 4 2 0 1 of past blocks: the best ones, ties to the lower. */
static void moba_chooses(void **state)
{
    static const float one[] = {1, 1, 1, 1, 1}, keys[] = {4, 2, 0, 1, -9}, ties[] = {2, 2, 2, 2, -9};
    struct example e = {.spec = "moba:block=1,top=3", .N = 5, .M = 5, .D = 1, .Dv = 1, .q = one, .k = keys, .v = keys};
    (void)state;

    expect_seen(e, 4, "0 1 4");
    expect_seen(e, 1, "0 1");
    e.k = ties;
    e.spec = "moba:block=1,top=2";
    expect_seen(e, 4, "0 4");
}

/* q = 0 and v_t = t with the compressed branch alone: the mean of 16 j + 15.5 over the compressed keys seen. */
static void nsa_compressed_keys_become_visible(void **state)
{
    static const struct {
        int64_t t;
        double o;
    } expected[] = {{0, 0}, {30, 0}, {31, 15.5}, {46, 15.5}, {47, 23.5}, {62, 23.5}, {63, 31.5}, {64, 31.5}};
    float zero[65] = {0}, time[65] = {0}, gate[65 * 3] = {0};
    struct example e = {.spec = "nsa",
                        .N = 65,
                        .M = 65,
                        .D = 1,
                        .Dv = 1,
                        .q = zero,
                        .k = zero,
                        .v = time,
                        .params = 1,
                        .param = {{"gate", wrap(gate, FV_DIMS(1, 1, 65, 3))}}};
    (void)state;

    for (int t = 0; t < 65; t++) {
        time[t] = (float)t;
        gate[3 * t] = 40;
        gate[3 * t + 1] = gate[3 * t + 2] = -40;
    }
    for (int d = 0; test_devices[d]; d++) {
        open_example(&e, test_devices[d]);
        assert_ok(fv_attention_forward(e.ctx, e.attention, &e.args));
        for (size_t n = 0; n < sizeof expected / sizeof *expected; n++)
            if (!(fabs(e.o[expected[n].t] - expected[n].o) <= 1e-4))
                fail_msg("nsa, t = %d: expected %g, got %g", (int)expected[n].t, expected[n].o, e.o[expected[n].t]);
        close_example(&e);
    }
}

/* Weights .05 .1 .2 .05 0 .1 .05 .15 .1 .05 .15 of eleven compressed keys give blocks of 64 the importances .75, .50
 * and .75, so that of the first two the first is chosen; other weights turn that round. */
static void nsa_importance_chooses(void **state)
{
    static const double first[] = {.05, .1, .2, .05, 0, .1, .05, .15, .1, .05, .15};     /* .75 > .50 */
    static const double second[] = {.05, .1, .05, .05, .15, .1, .05, .15, .1, .05, .15}; /* .45 < .80 */
    const double *const weights[] = {first, second};
    float q[192], k[192], v[192] = {0};
    (void)state;

    for (int n = 0; n < 2; n++) {
        struct example e = {.spec = "nsa:init=0,local=1,top=2",
                            .N = 192,
                            .M = 192,
                            .D = 1,
                            .Dv = 1,
                            .q = q,
                            .k = k,
                            .v = v,
                            .scale = 1};
        char seen[1024];
        size_t length = 0;
        double strip = 0; /* mean key of 16 tokens; a compressed key is the mean of two strips */
        for (int s = 0; s < 12; s++) {
            for (int t = 0; t < 16; t++) {
                q[16 * s + t] = 1;
                k[16 * s + t] = (float)strip;
            }
            if (s < 11) strip = 2 * log(fmax(weights[n][s], 1e-9)) - strip;
        }
        for (int j = 0; j < 192; j++)
            if (j / 64 != (n ? 0 : 1))
                length += (size_t)snprintf(seen + length, sizeof seen - length, "%s%d", length ? " " : "", j);
        expect_seen(e, 191, seen);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lightning2_with_gradients),
        cmocka_unit_test(hedgehog_maps),
        cmocka_unit_test(agents_of_two_and_three_rows),
        cmocka_unit_test(gna_windows),
        cmocka_unit_test(lists_of_power_and_sinkwin),
        cmocka_unit_test(bra_routes),
        cmocka_unit_test(moba_chooses),
        cmocka_unit_test(nsa_compressed_keys_become_visible),
        cmocka_unit_test(nsa_importance_chooses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
