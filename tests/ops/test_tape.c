/* The tape: gradients of every primitive against central differences, views, repeats, and what it refuses. */
#include "ops/tape.h"

#include <math.h>

#include "support/gradient.h"
#include "support/tensors.h"

/* Beside the rounding of results: fifth derivatives of up to 40 times h^4 = 2^-20, and gradients that are sums of some
 * hundred terms of size about 4 in f32. */
#define TOLERANCE 1e-4

/* Leaves of a case, and what it computes of them. */
struct inputs {
    fv_tensor x, y, z;
    int variant;
};

/* A scratch result. */
static fv_status result(fv_ctx *ctx, fv_tensor *out, int rank, const int64_t *dims)
{
    return fv_tensor_new(ctx, out, FV_F32, rank, dims);
}

static fv_status run_gemm(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;

    FV_TRY(fv_tensor_zeros(ctx, out, FV_F32, FV_DIMS(2, 3, 5, 4)));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = in->x, .b = in->y, .c = *out, .bias = in->z, .alpha = 0.5f}));
    if (in->variant) /* once more, on top of what is there */
        FV_TRY(
            fv_gemm(ctx, &(fv_gemm_args){.a = in->x, .b = in->y, .c = *out, .beta = in->variant == 1 ? 1.0f : -0.25f}));
    return FV_OK;
}

static void check_gemm(fv_ctx *ctx)
{
    for (int variant = 0; variant < 3; variant++) {
        struct inputs in = {.z = test_random(ctx, 1, FV_DIMS(4)), .variant = variant};
        const fv_tensor *leaves[] = {&in.x, &in.y, &in.z};
        in.x = test_random(ctx, 1, FV_DIMS(2, 3, 5, 7));
        in.y = test_random(ctx, 1, FV_DIMS(7, 4));
        test_gradient(ctx, "gemm", run_gemm, &in, 3, leaves, TOLERANCE);
        in.x = test_strided(ctx, 1, FV_DIMS(3, 5, 7));
        in.y = test_strided(ctx, 1, FV_DIMS(2, 1, 7, 4));
        test_gradient(ctx, "gemm that repeats", run_gemm, &in, 3, leaves, TOLERANCE);
        in.x = test_random(ctx, 1, FV_DIMS(1, 7));
        fv_tensor spread = fv_broadcast(&in.x, FV_DIMS(5, 7)), leaf = in.x;
        in.x = spread; /* rows are one another */
        const fv_tensor *rows[] = {&leaf, &in.y, &in.z};
        test_gradient(ctx, "gemm of one row seen five times", run_gemm, &in, 3, rows, TOLERANCE);
    }
}

static fv_status run_map(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    bool two = in->variant >= FV_MAP_ADD && in->variant <= FV_MAP_MAX;
    fv_tensor none = {0};

    FV_TRY(result(ctx, out, FV_DIMS(2, 3, 6)));
    return fv_map_apply(
        ctx,
        &(fv_map_args){.op = (fv_map)in->variant, .x = in->x, .y = two ? in->y : none, .out = *out, .alpha = 1.5f});
}

/* Numbers of either sign with a distance of at least 1/4 from 0, where some functions have a kink. */
static void avoid_kinks(fv_tensor *t, bool positive)
{
    for (int64_t n = 0; n < fv_tensor_count(t); n++) {
        float *at = (float *)t->data + n;
        *at = positive || *at > 0 ? 0.75f + fabsf(*at) : *at - 0.25f;
    }
}

static void check_map(fv_ctx *ctx)
{
    for (int op = FV_MAP_COPY; op <= FV_MAP_SOFTCAP; op++) {
        bool two = op >= FV_MAP_ADD && op <= FV_MAP_MAX;
        struct inputs in = {test_random(ctx, 0.7, FV_DIMS(3, 6)), test_random(ctx, 0.7, FV_DIMS(2, 1, 6)), {0}, op};
        const fv_tensor *leaves[] = {&in.x, &in.y};
        avoid_kinks(&in.x, op == FV_MAP_LOG || op == FV_MAP_SQRT);
        avoid_kinks(&in.y, true);
        if (op == FV_MAP_MAX) /* either may be the larger, never by less than 1/4 */
            for (int n = 0; n < 18; n++)
                ((float *)in.x.data)[n] = ((float *)in.y.data)[n % 6] + (n % 2 ? 8 : -8);
        test_gradient(ctx, "map", run_map, &in, two ? 2 : 1, leaves, TOLERANCE);
    }
}

static fv_status run_norm(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    fv_tensor none = {0};

    FV_TRY(result(ctx, out, FV_DIMS(3, 4, 9)));
    return fv_norm(ctx, &(fv_norm_args){.layer = in->variant,
                                        .x = in->x,
                                        .weight = in->y,
                                        .bias = in->variant ? in->z : none,
                                        .out = *out,
                                        .epsilon = 0.01f});
}

static fv_status run_norm_of_sum(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    fv_norm_args n = {.x = in->x, .add = in->y, .weight = in->z, .epsilon = 0.01f};
    fv_tensor normed;

    FV_TRY(result(ctx, out, FV_DIMS(3, 4, 9)));
    FV_TRY(result(ctx, &normed, FV_DIMS(3, 4, 9)));
    if (in->variant) n.add_weight = in->z;
    FV_TRY(result(ctx, &n.sum, FV_DIMS(3, 4, 9)));
    n.out = normed;
    FV_TRY(fv_norm(ctx, &n));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = normed, .y = n.sum, .out = *out});
}

static void check_norm(fv_ctx *ctx)
{
    for (int layer = 0; layer < 2; layer++) {
        struct inputs in = {test_strided(ctx, 2, FV_DIMS(3, 4, 9)), test_random(ctx, 1, FV_DIMS(9)),
                            test_random(ctx, 1, FV_DIMS(9)), layer};
        const fv_tensor *leaves[] = {&in.x, &in.y, &in.z};
        test_gradient(ctx, "norm", run_norm, &in, 2 + layer, leaves, TOLERANCE);
        in.y = test_strided(ctx, 1, FV_DIMS(3, 4, 9));
        test_gradient(ctx, "norm of a sum", run_norm_of_sum, &in, 3, leaves, TOLERANCE);
    }
}

static fv_status run_rope(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;

    FV_TRY(result(ctx, out, FV_DIMS(2, 1, 5, 8)));
    return fv_rope(ctx, &(fv_rope_args){.x = in->x,
                                        .out = *out,
                                        .offset = 3,
                                        .rotary = in->variant & 1 ? 6 : 0,
                                        .base = 100,
                                        .magnitude = 1.5f,
                                        .interleaved = in->variant & 2,
                                        .inverse = in->variant & 4});
}

static fv_status run_softmax(fv_ctx *ctx, void *user, fv_tensor *out)
{
    static const int64_t valid[] = {8, 3, 1, 0, 7, 8, 2, 5, 8, 8};
    struct inputs *in = user;

    FV_TRY(result(ctx, out, FV_DIMS(2, 1, 5, 8)));
    return fv_softmax(
        ctx, &(fv_softmax_args){.x = in->x, .out = *out, .scale = 0.5f, .valid = in->variant / 2 ? valid : NULL});
}

static fv_status run_pool(fv_ctx *ctx, void *user, fv_tensor *out)
{
    static const int64_t starts[] = {0, 2, 2, 7, 12};
    struct inputs *in = user;
    fv_pool_args p = {.kind = (fv_pool_kind)(in->variant % 3), .x = in->x};

    switch (in->variant / 3) {
    case 0: p.block = 5, p.stride = 3; break;
    case 1: p.start = starts; break;
    default: p.grid_height = 3, p.grid_width = 4, p.out_height = p.out_width = 2; break;
    }
    FV_TRY(result(ctx, out, FV_DIMS(2, 4, 3)));
    p.out = *out;
    return fv_pool_rows(ctx, &p);
}

static fv_status run_gather(fv_ctx *ctx, void *user, fv_tensor *out)
{
    static int32_t list[2 * 7] = {0, 3, 3, -1, 11, 5, 3, 1, 1, 1, -1, 2, 10, 0};
    struct inputs *in = user;
    fv_tensor index;

    FV_TRY(fv_tensor_wrap(&index, list, FV_I32, FV_DIMS(2, 7)));
    FV_TRY(result(ctx, out, FV_DIMS(2, 7, 3)));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = in->x, .index = index, .out = *out}));
    if (!in->variant) return FV_OK;
    fv_tensor rows = *out; /* and scattered again, on top of the copied input */
    FV_TRY(result(ctx, out, FV_DIMS(2, 12, 3)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = in->x, .out = *out}));
    return fv_gather(ctx, &(fv_gather_args){.x = rows, .index = index, .out = *out, .scatter = true});
}

/* Two heads of x read one of y; the second row of some is not there. */
static fv_status run_dots(fv_ctx *ctx, void *user, fv_tensor *out)
{
    static int32_t list[3 * 2] = {0, 3, 3, -1, 2, 2};
    struct inputs *in = user;
    fv_tensor index, dots;

    FV_TRY(fv_tensor_wrap(&index, list, FV_I32, FV_DIMS(1, 1, 3, 2)));
    FV_TRY(result(ctx, &dots, FV_DIMS(1, 2, 3, 2)));
    FV_TRY(result(ctx, out, FV_DIMS(1, 2, 3, 2)));
    FV_TRY(fv_sampled_dots(
        ctx, &(fv_sampled_dots_args){.x = in->x, .y = in->y, .index = index, .out = dots, .scale = 0.5f}));
    return fv_softmax(ctx, &(fv_softmax_args){.x = dots, .out = *out});
}

static void check_dots(fv_ctx *ctx)
{
    struct inputs in = {test_strided(ctx, 1, FV_DIMS(1, 2, 3, 6)), test_random(ctx, 1, FV_DIMS(1, 1, 4, 6)), {0}, 0};
    const fv_tensor *leaves[] = {&in.x, &in.y};

    test_gradient(ctx, "sampled dots", run_dots, &in, 2, leaves, TOLERANCE);
}

/* The same with sums, of weights of which one is -inf. */
static fv_status run_sums(fv_ctx *ctx, void *user, fv_tensor *out)
{
    static int32_t list[3 * 2] = {0, 3, 3, -1, 2, 2};
    struct inputs *in = user;
    fv_tensor index;

    FV_TRY(fv_tensor_wrap(&index, list, FV_I32, FV_DIMS(1, 1, 3, 2)));
    FV_TRY(result(ctx, out, FV_DIMS(1, 2, 3, 6)));
    return fv_sampled_sums(ctx, &(fv_sampled_sums_args){.weight = in->x, .y = in->y, .index = index, .out = *out});
}

static void check_sums(fv_ctx *ctx)
{
    struct inputs in = {test_strided(ctx, 1, FV_DIMS(1, 2, 3, 2)), test_random(ctx, 1, FV_DIMS(1, 1, 4, 6)), {0}, 0};
    const fv_tensor *leaves[] = {&in.x, &in.y};

    test_gradient(ctx, "sampled sums", run_sums, &in, 2, leaves, TOLERANCE);
    *(float *)fv_at(&in.x, 0, 1, 2, 0) = -INFINITY;
    test_gradient(ctx, "sampled sums without one", run_sums, &in, 1, leaves + 1, TOLERANCE);
}

static fv_status run_cumsum(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    fv_cumsum_args c = {.x = in->x, .max = in->variant & 4, .exclusive = in->variant & 1, .reverse = in->variant & 2};

    FV_TRY(result(ctx, out, FV_DIMS(2, 12, 3)));
    c.out = *out;
    if (c.max && c.exclusive) *out = fv_slice(out, 1, c.reverse ? 0 : 1, 11); /* without the row that is -inf */
    return fv_cumsum(ctx, &c);
}

static fv_status run_windows(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    fv_window_args w = {.x = in->x, .grid_height = 3, .grid_width = 4, .window_height = 2, .window_width = 3};

    FV_TRY(result(ctx, out, FV_DIMS(2, 4, 6, 3)));
    w.out = *out;
    FV_TRY(fv_window_rows(ctx, &w));
    if (!in->variant) return FV_OK;
    w.x = *out;
    w.inverse = true;
    FV_TRY(result(ctx, out, FV_DIMS(2, 12, 3)));
    w.out = *out;
    return fv_window_rows(ctx, &w);
}

static fv_status run_taylor(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;

    FV_TRY(result(ctx, out, FV_DIMS(2, 4, 10)));
    return fv_taylor_rows(ctx, &(fv_taylor_args){.x = in->x, .out = *out});
}

static fv_status run_resize(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;

    FV_TRY(result(ctx, out, FV_DIMS(2, 10, 3)));
    return fv_resize_rows(ctx, &(fv_resize_args){.x = in->x,
                                                 .out = *out,
                                                 .grid_height = 3,
                                                 .grid_width = 4,
                                                 .out_height = 2,
                                                 .out_width = 5,
                                                 .nearest = in->variant});
}

static void check_one(fv_ctx *ctx, const char *what, test_forward_fn *run, int variants, int rank, const int64_t *dims)
{
    for (int variant = 0; variant < variants; variant++) {
        struct inputs in = {.x = variant % 2 ? test_random(ctx, 1, rank, dims) : test_strided(ctx, 1, rank, dims),
                            .variant = variant};
        const fv_tensor *leaf = &in.x;
        if (run == run_pool || run == run_cumsum) { /* a permutation: maxima are apart by 1/4 */
            in.x = test_random(ctx, 1, rank, dims);
            for (int64_t n = 0; n < fv_tensor_count(&in.x); n++)
                ((float *)in.x.data)[n] = (float)(n * 29 % 72) / 4 - 9;
        }
        test_gradient(ctx, what, run, &in, 1, &leaf, TOLERANCE);
    }
}

static void check_rows(fv_ctx *ctx)
{
    check_one(ctx, "rope", run_rope, 8, FV_DIMS(2, 1, 5, 8));
    check_one(ctx, "softmax", run_softmax, 4, FV_DIMS(2, 1, 5, 8));
    check_one(ctx, "pool", run_pool, 9, FV_DIMS(2, 12, 3));
    check_one(ctx, "gather", run_gather, 2, FV_DIMS(2, 12, 3));
    check_one(ctx, "cumsum", run_cumsum, 8, FV_DIMS(2, 12, 3));
    check_one(ctx, "windows", run_windows, 2, FV_DIMS(2, 12, 3));
    check_one(ctx, "taylor", run_taylor, 2, FV_DIMS(2, 4, 3));
    check_one(ctx, "resize", run_resize, 2, FV_DIMS(2, 12, 3));
}

static fv_status run_conv(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;

    FV_TRY(result(ctx, out, FV_DIMS(2, 4, 3, 3)));
    return fv_conv2d(
        ctx, &(fv_conv2d_args){
                 .x = in->x, .weight = in->y, .bias = in->z, .out = *out, .stride = 2, .padding = 1, .groups = 2});
}

static void check_conv(fv_ctx *ctx)
{
    struct inputs in = {test_strided(ctx, 1, FV_DIMS(2, 4, 5, 6)), test_random(ctx, 1, FV_DIMS(4, 2, 3, 3)),
                        test_random(ctx, 1, FV_DIMS(4)), 0};
    const fv_tensor *leaves[] = {&in.x, &in.y, &in.z};

    test_gradient(ctx, "conv2d", run_conv, &in, 3, leaves, TOLERANCE);
}

static void gradient_of_gemm(void **state)
{
    (void)state;
    test_each_device(check_gemm);
}

static void gradient_of_map(void **state)
{
    (void)state;
    test_each_device(check_map);
}

static void gradient_of_norm(void **state)
{
    (void)state;
    test_each_device(check_norm);
}

static void gradients_of_row_primitives(void **state)
{
    (void)state;
    test_each_device(check_rows);
}

static void gradient_of_sampled_dots(void **state)
{
    (void)state;
    test_each_device(check_dots);
}

static void gradient_of_sampled_sums(void **state)
{
    (void)state;
    test_each_device(check_sums);
}

static void gradient_of_conv2d(void **state)
{
    (void)state;
    test_each_device(check_conv);
}

/* ---- composition ----------------------------------------------------------------------------------------------- */

/* Columns of one buffer are written by two calls and read as a whole; x is used three times, once as a slice. */
static fv_status run_network(fv_ctx *ctx, void *user, fv_tensor *out)
{
    struct inputs *in = user;
    fv_tensor both, left, right, part = fv_slice(&in->x, 1, 2, 3);

    FV_TRY(result(ctx, &both, FV_DIMS(5, 8)));
    FV_TRY(result(ctx, out, FV_DIMS(5, 5)));
    left = fv_slice(&both, 1, 0, 5);
    right = fv_slice(&both, 1, 5, 3);
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = in->x, .b = in->y, .c = left}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_TANH, .x = part, .out = right}));
    return fv_gemm(ctx, &(fv_gemm_args){.a = both, .b = fv_transposed(&both), .c = *out, .bias = in->z});
}

static void check_network(fv_ctx *ctx)
{
    struct inputs in = {test_random(ctx, 0.5, FV_DIMS(5, 6)), test_random(ctx, 0.5, FV_DIMS(6, 5)),
                        test_random(ctx, 1, FV_DIMS(5)), 0};
    const fv_tensor *leaves[] = {&in.x, &in.y, &in.z};

    test_gradient(ctx, "network", run_network, &in, 3, leaves, TOLERANCE);
}

static void views_share_their_shadow(void **state)
{
    (void)state;
    test_each_device(check_network);
}

/* Extents that overlap become one, whichever comes first; what was there stays. */
static void extents_that_overlap_are_joined(void **state)
{
    static const int64_t from[][2] = {{0, 5}, {4, 8}, {10, 12}, {3, 9}, {8, 10}, {1, 11}};
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(12)), ones = test_random(ctx, 1, FV_DIMS(12)), gradient;
    (void)state;

    for (int first = 0; first < 6; first++) {
        double expected[12] = {0};
        assert_ok(fv_tape_begin(ctx));
        for (int i = 0; i < 6; i++) {
            const int64_t *range = from[(i * 5 + first) % 6];
            fv_tensor part = fv_slice(&x, 0, range[0], range[1] - range[0]);
            fv_tensor seed = fv_slice(&ones, 0, range[0], range[1] - range[0]);
            assert_ok(fv_tape_watch(ctx, &part));
            assert_true(i > 0 || !fv_tape_gradient(ctx, &part, &gradient)); /* none before the first seed */
            assert_ok(fv_tape_seed(ctx, &part, &seed));
            for (int64_t n = range[0]; n < range[1]; n++)
                expected[n] += ((float *)ones.data)[n];
        }
        assert_true(fv_tape_gradient(ctx, &x, &gradient));
        test_close("joined gradient", &gradient, expected, 0x1p-21);
        fv_tape_end(ctx);
    }
    fv_ctx_free(ctx);
}

static void what_cannot_be_recorded_is_refused(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(4, 4)), y = test_random(ctx, 1, FV_DIMS(4, 4)), gradient;
    fv_tensor half = test_cast(ctx, &x, FV_F16);
    (void)state;

    assert_fails(fv_tape_watch(ctx, &x), FV_E_ARGUMENT, "fv_tape_begin comes first");
    assert_false(fv_tape_gradient(ctx, &x, &gradient));
    assert_ok(fv_tape_begin(ctx));
    assert_fails(fv_tape_begin(ctx), FV_E_ARGUMENT, "records already");
    assert_fails(fv_tape_watch(ctx, &half), FV_E_DTYPE, "tape: leaf: expected f32, got f16");
    assert_ok(fv_tape_watch(ctx, &x));
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = x, .out = x}), FV_E_ARGUMENT,
                 "map: out: expected memory of its own while a tape records");
    assert_fails(fv_softmax(ctx, &(fv_softmax_args){.x = x, .out = x}), FV_E_ARGUMENT, "softmax: out");
    assert_fails(fv_map_apply(ctx, &(fv_map_args){.x = x, .out = half}), FV_E_DTYPE, "expected f32, got f16");
    assert_fails(fv_tape_seed(ctx, &y, &y), FV_E_ARGUMENT, "does not depend on a watched tensor");
    assert_fails(fv_tape_seed(ctx, &x, &half), FV_E_DTYPE, "gradient");
    assert_ok(fv_tape_seed(ctx, &x, &y)); /* a leaf may be the output */
    assert_ok(fv_tape_seed(ctx, &x, &y));
    assert_ok(fv_tape_backward(ctx));
    assert_true(fv_tape_gradient(ctx, &x, &gradient));
    for (int n = 0; n < 16; n++)
        assert_true(((float *)gradient.data)[n] == 2 * ((float *)y.data)[n]);
    fv_ctx_free(ctx); /* frees the tape too */
}

/* Every allocation of a recorded run fails once: an error, no crash, nothing leaked (the sanitizers look). */
static void running_out_of_memory_is_an_error(void **state)
{
    int64_t total = 0;
    (void)state;

    for (int64_t nth = 0; nth <= total; nth++) {
        fv_ctx *ctx = test_ctx("ref", 2);
        struct inputs in = {test_random(ctx, 1, FV_DIMS(200, 300)), test_random(ctx, 1, FV_DIMS(300, 5)),
                            test_random(ctx, 1, FV_DIMS(5)), 0};
        fv_tensor hidden, out, ones;
        fv_status status;
        assert_ok(fv_tensor_new(ctx, &hidden, FV_F32, FV_DIMS(200, 300)));
        assert_ok(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(200, 5)));
        ones = test_random(ctx, 1, FV_DIMS(200, 5));
        test_alloc_fail(nth);
        status = fv_tape_begin(ctx);
        if (status == FV_OK) status = fv_tape_watch(ctx, &in.x);
        if (status == FV_OK) status = fv_tape_watch(ctx, &in.y);
        if (status == FV_OK) status = fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SILU, .x = in.x, .out = hidden});
        if (status == FV_OK) status = fv_gemm(ctx, &(fv_gemm_args){.a = hidden, .b = in.y, .c = out, .bias = in.z});
        if (status == FV_OK) status = fv_tape_seed(ctx, &out, &ones);
        if (status == FV_OK) status = fv_tape_backward(ctx);
        if (nth == 0) total = test_alloc_count();
        test_alloc_fail(0);
        if (nth == 0)
            assert_ok(status);
        else
            assert_fails(status, FV_E_MEMORY, "out of memory");
        fv_tape_end(ctx);
        fv_ctx_free(ctx);
    }
    assert_true(total > 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_gemm),
        cmocka_unit_test(gradient_of_map),
        cmocka_unit_test(gradient_of_norm),
        cmocka_unit_test(gradients_of_row_primitives),
        cmocka_unit_test(gradient_of_sampled_dots),
        cmocka_unit_test(gradient_of_sampled_sums),
        cmocka_unit_test(gradient_of_conv2d),
        cmocka_unit_test(views_share_their_shadow),
        cmocka_unit_test(extents_that_overlap_are_joined),
        cmocka_unit_test(what_cannot_be_recorded_is_refused),
        cmocka_unit_test(running_out_of_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
