/* What kind of attention maps a layer has: eight numbers.  arXiv 2510.11602. */
#include <float.h>

#include "layers/layer.h"

enum { ENTROPY, NORM, DIVERSITY, SINK, LOCAL, DISTANCES = 4, INDICATORS = LOCAL + DISTANCES };

static const fv_param inputs[] = {
    FV_PARAM_NEEDED("a", "[H, L, L]", "causal attention maps: row i has the weights of query i"),
    {0},
};
static const fv_param params[] = {{0}};
static const fv_param outputs[] = {
    FV_PARAM("y", "[8]",
             "means over heads of entropy, Frobenius norm, [2]: spread between heads, weight of key 0, and of the key "
             "0, 1, 2, 3 before the query (0 where there is none)"),
    {0},
};

static fv_status pool(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *x, const fv_tensor *out)
{
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = kind, .x = *x, .out = *out, .block = x->dims[x->rank - 2]});
}

/* Sums of maps x [n,L,L], column by column first: out [n,1,1]. */
static fv_status sum_maps(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *out)
{
    const int64_t *d = x->dims;
    fv_tensor columns, rows;

    FV_TRY(fv_tensor_new(ctx, &columns, FV_F32, FV_DIMS(d[0], 1, d[2])));
    FV_TRY(pool(ctx, FV_POOL_SUM, x, &columns));
    rows = fv_reshaped(&columns, FV_DIMS(d[0], d[2], 1));
    return pool(ctx, FV_POOL_SUM, &rows, out);
}

static fv_status map(fv_ctx *ctx, fv_map op, const fv_tensor *x, const fv_tensor *y, float alpha, const fv_tensor *out)
{
    fv_map_args args = {.op = op, .x = *x, .out = *out, .alpha = alpha};

    if (y) args.y = *y;
    return fv_map_apply(ctx, &args);
}

/* out [H,1,1] = -sum of a ln a over positive entries; a and room [H,L,L], room is written. */
static fv_status entropy(fv_ctx *ctx, const fv_tensor *a, const fv_tensor *room, const fv_tensor *out)
{
    fv_tensor weights;

    FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, 3, a->dims));
    FV_TRY(map(ctx, FV_MAP_RELU, a, NULL, 0, &weights));
    FV_TRY(map(ctx, FV_MAP_MAX, &weights, NULL, FLT_MIN, room));
    FV_TRY(map(ctx, FV_MAP_LOG, room, NULL, 0, room));
    FV_TRY(map(ctx, FV_MAP_MUL, &weights, room, -1, room));
    return sum_maps(ctx, room, out);
}

static fv_status norm(fv_ctx *ctx, const fv_tensor *a, const fv_tensor *room, const fv_tensor *out)
{
    FV_TRY(map(ctx, FV_MAP_MUL, a, a, 1, room));
    FV_TRY(sum_maps(ctx, room, out));
    return map(ctx, FV_MAP_SQRT, out, NULL, 0, out);
}

/* out [1,1,1]: the mean over pairs i >= k of the standard deviation of a_ik over heads. */
static fv_status diversity(fv_ctx *ctx, const fv_tensor *a, const fv_tensor *room, const fv_tensor *out)
{
    int64_t H = a->dims[0], L = a->dims[1];
    fv_tensor by_head = fv_reshaped(a, FV_DIMS(1, H, L * L)), apart = fv_reshaped(room, FV_DIMS(1, H, L * L)), spread,
              triangle;

    FV_TRY(fv_tensor_new(ctx, &spread, FV_F32, FV_DIMS(1, 1, L * L)));
    FV_TRY(fv_tensor_zeros(ctx, &triangle, FV_F32, FV_DIMS(1, 1, L * L)));
    for (int64_t n = 0; n < L * L; n++)
        ((float *)triangle.data)[n] = n % L <= n / L;
    FV_TRY(pool(ctx, FV_POOL_MEAN, &by_head, &spread));
    FV_TRY(map(ctx, FV_MAP_SUB, &by_head, &spread, 1, &apart));
    FV_TRY(map(ctx, FV_MAP_MUL, &apart, &apart, 1, &apart));
    FV_TRY(pool(ctx, FV_POOL_MEAN, &apart, &spread));
    FV_TRY(map(ctx, FV_MAP_SQRT, &spread, NULL, 0, &spread));
    FV_TRY(map(ctx, FV_MAP_MUL, &spread, &triangle, 1, &spread));
    spread = fv_reshaped(&spread, FV_DIMS(1, L, L));
    FV_TRY(sum_maps(ctx, &spread, out));
    return map(ctx, FV_MAP_COPY, out, NULL, 2 / ((float)L * (float)(L + 1)), out);
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const fv_tensor *a = &call->in[0];
    int64_t H = a->dims[0], L = a->dims[1];
    fv_tensor of_heads, of_head[INDICATORS], room, line, y = fv_reshaped(&call->out[0], FV_DIMS(1, INDICATORS));

    FV_TRY(fv_tensor_new(ctx, &room, FV_F32, 3, a->dims));
    FV_TRY(fv_tensor_zeros(ctx, &of_heads, FV_F32, FV_DIMS(H, INDICATORS)));
    for (int n = 0; n < INDICATORS; n++)
        of_head[n] = fv_view(&of_heads, FV_DIMS(H, 1, 1), (const int64_t[]){INDICATORS, 1, 1}, n);
    FV_TRY(entropy(ctx, a, &room, &of_head[ENTROPY]));
    FV_TRY(norm(ctx, a, &room, &of_head[NORM]));
    line = fv_view(a, FV_DIMS(H, L, 1), (const int64_t[]){L * L, L, 1}, 0);
    FV_TRY(pool(ctx, FV_POOL_MEAN, &line, &of_head[SINK]));
    for (int64_t n = 0; n < fv_min(DISTANCES, L); n++) {
        line = fv_view(a, FV_DIMS(H, L - n, 1), (const int64_t[]){L * L, L + 1, 1}, n * L);
        FV_TRY(pool(ctx, FV_POOL_MEAN, &line, &of_head[LOCAL + n]));
    }
    FV_TRY(pool(ctx, FV_POOL_MEAN, &of_heads, &y));
    y = fv_view(&call->out[0], FV_DIMS(1, 1, 1), (const int64_t[]){1, 1, 1}, DIVERSITY);
    return diversity(ctx, a, &room, &y);
}

const fv_layer_type fv_layer_attn_indicators = {
    .name = "attn_indicators",
    .title = "Indicators of attention maps (probe)",
    .paper = "arXiv 2510.11602",
    .sheet = 10,
    .kind = FV_KIND_PROBE,
    .formula = "mean over heads of -sum a ln a; |A|; 2 / (L (L + 1)) sum over i >= k of std over heads of a_ik; mean_i "
               "a_i0; mean over i >= n of a_i,i-n for n = 0..3",
    .cost = "the maps are read about ten times, and twice their memory is taken",
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .forward = forward,
};
