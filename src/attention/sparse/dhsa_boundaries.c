#include "attention/sparse/dhsa.h"

#include <math.h>

enum { GAPS = 512 }; /* judged at once */

/* ---- the network ------------------------------------------------------------------------------------------------ */

static fv_status map(fv_ctx *ctx, fv_map op, const fv_tensor *x, const fv_tensor *y, float alpha, const fv_tensor *out)
{
    fv_map_args args = {.op = op, .x = *x, .out = *out, .alpha = alpha};

    if (y) args.y = *y;
    return fv_map_apply(ctx, &args);
}

/* out [n,1] = sums of the rows of x [n,C]. */
static fv_status sum_rows(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *out)
{
    return fv_pool_rows(
        ctx,
        &(fv_pool_args){.kind = FV_POOL_SUM, .x = fv_expanded(x, 2), .out = fv_expanded(out, 2), .block = x->dims[1]});
}

/* out [n,1] /= the length of the rows of x [n,C]. */
static fv_status divide_by_length(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *out)
{
    fv_tensor squares, length;

    FV_TRY(fv_tensor_new(ctx, &squares, FV_F32, 2, x->dims));
    FV_TRY(fv_tensor_new(ctx, &length, FV_F32, FV_DIMS(x->dims[0], 1)));
    FV_TRY(map(ctx, FV_MAP_MUL, x, x, 1, &squares));
    FV_TRY(sum_rows(ctx, &squares, &length));
    FV_TRY(map(ctx, FV_MAP_SQRT, &length, NULL, 0, &length));
    FV_TRY(map(ctx, FV_MAP_MAX, &length, NULL, 1e-6f, &length));
    return map(ctx, FV_MAP_DIV, out, &length, 0, out);
}

/* [l, r, |l - r|, l r, cos(l, r)] of sides [n,2,C]. */
static fv_status compare_sides(fv_ctx *ctx, const fv_tensor *sides, fv_tensor *out)
{
    int64_t n = sides->dims[0], C = sides->dims[2];
    fv_tensor l = fv_plane(sides, 1, 0), r = fv_plane(sides, 1, 1), part[4], cosine, minus;

    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(n, 4 * C + 1)));
    FV_TRY(fv_tensor_new(ctx, &minus, FV_F32, FV_DIMS(n, C)));
    for (int p = 0; p < 4; p++)
        part[p] = fv_slice(out, 1, p * C, C);
    cosine = fv_slice(out, 1, 4 * C, 1);
    FV_TRY(map(ctx, FV_MAP_COPY, &l, NULL, 1, &part[0]));
    FV_TRY(map(ctx, FV_MAP_COPY, &r, NULL, 1, &part[1]));
    FV_TRY(map(ctx, FV_MAP_SUB, &r, &l, 0, &minus));
    FV_TRY(map(ctx, FV_MAP_SUB, &l, &r, 0, &part[2]));
    FV_TRY(map(ctx, FV_MAP_MAX, &part[2], &minus, 0, &part[2]));
    FV_TRY(map(ctx, FV_MAP_MUL, &l, &r, 1, &part[3]));
    FV_TRY(sum_rows(ctx, &part[3], &cosine));
    FV_TRY(divide_by_length(ctx, &l, &cosine));
    return divide_by_length(ctx, &r, &cosine);
}

static fv_status product(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                         const fv_tensor *out)
{
    return fv_gemm(ctx, &(fv_gemm_args){.a = *x, .b = fv_transposed(weight), .c = *out, .bias = *bias});
}

/* Attention among the keys of each window: qkv [rows,3C] of those from the first window's first to the last one's last;
 * windows [n * 2 reach, C]. */
static fv_status look_around(fv_ctx *ctx, const fv_tensor *qkv, int64_t n, int64_t reach, const fv_tensor *windows)
{
    int64_t C = qkv->dims[1] / 3, width = C / FV_DHSA_HEADS, keys = 2 * reach;
    const int64_t from[] = {3 * C, width, 3 * C, 1}, to[] = {keys * C, width, C, 1}; /* windows overlap */
    const int64_t dims[] = {n, FV_DHSA_HEADS, keys, width};

    return fv_attend(ctx, &(fv_attend_args){.q = fv_view(qkv, 4, dims, from, 0),
                                            .k = fv_view(qkv, 4, dims, from, C),
                                            .v = fv_view(qkv, 4, dims, from, 2 * C),
                                            .o = fv_view(windows, 4, dims, to, 0)});
}

/* Logits [n,1] of gaps whose windows begin with the rows of qkv. */
static fv_status judge(fv_ctx *ctx, const fv_call *call, const fv_tensor *qkv, const fv_tensor *logits)
{
    const fv_tensor *w = call->param;
    int64_t reach = ((const struct fv_dhsa *)call->options)->reach, n = logits->dims[0], C = qkv->dims[1] / 3,
            rows = 2 * reach * n;
    fv_tensor seen, windows, sides, features, hidden;

    FV_TRY(fv_tensor_new(ctx, &seen, FV_F32, FV_DIMS(rows, C)));
    FV_TRY(fv_tensor_new(ctx, &windows, FV_F32, FV_DIMS(rows, C)));
    FV_TRY(fv_tensor_new(ctx, &sides, FV_F32, FV_DIMS(n, 2, C)));
    FV_TRY(fv_tensor_new(ctx, &hidden, FV_F32, FV_DIMS(n, FV_DHSA_HIDDEN)));
    FV_TRY(look_around(ctx, qkv, n, reach, &seen));
    FV_TRY(product(ctx, &seen, &w[FV_DHSA_OUT_WEIGHT], &w[FV_DHSA_OUT_BIAS], &windows));
    FV_TRY(fv_norm(ctx, &(fv_norm_args){.layer = true,
                                        .x = windows,
                                        .weight = w[FV_DHSA_NORM_WEIGHT],
                                        .bias = w[FV_DHSA_NORM_BIAS],
                                        .out = windows,
                                        .epsilon = 1e-5f}));
    FV_TRY(fv_pool_rows(
        ctx, &(fv_pool_args){.x = fv_reshaped(&windows, FV_DIMS(n, 2 * reach, C)), .out = sides, .block = reach}));
    FV_TRY(compare_sides(ctx, &sides, &features));
    FV_TRY(product(ctx, &features, &w[FV_DHSA_FC1_WEIGHT], &w[FV_DHSA_FC1_BIAS], &hidden));
    FV_TRY(map(ctx, FV_MAP_RELU, &hidden, NULL, 0, &hidden));
    return product(ctx, &hidden, &w[FV_DHSA_FC2_WEIGHT], &w[FV_DHSA_FC2_BIAS], logits);
}

fv_status fv_dhsa_predict(fv_ctx *ctx, const fv_call *call, fv_tensor *logits)
{
    const fv_tensor *weight = &call->param[FV_DHSA_QKV_WEIGHT], *bias = &call->param[FV_DHSA_QKV_BIAS];
    int64_t reach = ((const struct fv_dhsa *)call->options)->reach, B = call->batch, Hkv = call->key_heads;
    int64_t M = call->keys, D = call->head_dim, C = Hkv * D, rows = M + 2 * reach - 1;
    fv_tensor plain, padded, qkv, heads;

    FV_TRY(fv_as_f32(ctx, &call->k, &plain));
    FV_TRY(fv_tensor_new(ctx, logits, FV_F32, FV_DIMS(B, M)));
    FV_TRY(fv_tensor_zeros(ctx, &padded, FV_F32, FV_DIMS(B, rows, C)));
    FV_TRY(fv_tensor_new(ctx, &qkv, FV_F32, FV_DIMS(B, rows, 3 * C)));
    heads = fv_view(&padded, FV_DIMS(B, Hkv, M, D), (const int64_t[]){rows * C, D, C, 1}, (reach - 1) * C);
    FV_TRY(map(ctx, FV_MAP_COPY, &plain, NULL, 1, &heads));
    FV_TRY(product(ctx, &padded, weight, bias, &qkv));
    for (int64_t n = 0; n < B * fv_ceil_div(M, GAPS); n++) {
        int64_t b = n % B, from = n / B * GAPS, count = fv_min(GAPS, M - from);
        fv_tensor windows = fv_view(&qkv, FV_DIMS(count + 2 * reach - 1, 3 * C), (const int64_t[]){3 * C, 1},
                                    (b * rows + from) * 3 * C);
        fv_tensor out = fv_view(logits, FV_DIMS(count, 1), (const int64_t[]){1, 1}, b * M + from);
        FV_TRY_SCRATCH(ctx, judge(ctx, call, &windows, &out));
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
}

/* ---- suppression ------------------------------------------------------------------------------------------------ */

/* Whether an accepted gap lies within `width` of `gap`. */
static bool is_near(const uint8_t *accepted, int64_t gaps, int64_t gap, int64_t width)
{
    int64_t from = fv_max(gap - width, 0), end = fv_min(gap + width + 1, gaps);

    return memchr(accepted + from, 1, (size_t)(end - from)) != NULL;
}

fv_status fv_dhsa_suppress(fv_ctx *ctx, const fv_dhsa_suppression *rule, const fv_tensor *logits, int64_t *chunks,
                           const int64_t **start)
{
    int64_t M = logits->dims[0], first = rule->reach - 1, candidates = fv_max(M - rule->reach - first, 0), count = 0;
    int64_t *made, n = 0;
    uint8_t *accepted;
    fv_tensor index;

    FV_TRY(FV_SCRATCH(ctx, made, M + 1));
    FV_TRY(FV_SCRATCH(ctx, accepted, M));
    memset(accepted, 0, (size_t)M);
    if (rule->forced > 0) accepted[rule->forced - 1] = 1, count++;
    if (candidates > 0) {
        FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(candidates)));
        FV_TRY(fv_select(ctx, &(fv_select_args){.scores = fv_slice(logits, 0, first, candidates),
                                                .index = index,
                                                .use_threshold = true,
                                                .by_score = true,
                                                .threshold = (float)rule->threshold}));
        for (const int32_t *at = index.data; n < candidates && at[n] >= 0 && count < rule->most; n++)
            if (!is_near(accepted, M, first + at[n], rule->half_width)) accepted[first + at[n]] = 1, count++;
    }
    made[0] = 0;
    *chunks = 0;
    for (int64_t gap = 0; gap < M; gap++)
        if (accepted[gap] || gap == M - 1) made[++*chunks] = gap + 1;
    *start = made;
    return FV_OK;
}
