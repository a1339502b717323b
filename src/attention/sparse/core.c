#include "attention/sparse/core.h"

#include <float.h>

/* Scores held at once. */
#define SCORES ((int64_t)1 << 17)

/* ---- parts of a call -------------------------------------------------------------------------------------------- */

fv_status fv_run_parts(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t queries, fv_part_fn *run)
{
    int64_t step = fv_max(queries / block, 1);
    fv_status status = FV_OK;

    for (int64_t from = 0, next; from < call->queries && status == FV_OK; from = next) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t p = call->offset + from, first = fv_floor_div(p, block);
        fv_call part;
        next = fv_clamp((first + step) * block - call->offset, from + 1, call->queries);
        fv_call_cut(call, from, next - from, &part);
        part.decoding = call->decoding;
        status = run(ctx, &part);
        fv_scratch_release(ctx, mark);
    }
    return status;
}

/* ---- pool ------------------------------------------------------------------------------------------------------- */

fv_status fv_block_means(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out)
{
    int64_t first = from * block, count = fv_min(out->dims[2] * block, x->dims[2] - first);
    fv_tensor rows = fv_slice(x, 2, first, count), plain;
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_as_f32(ctx, &rows, &plain);

    if (status == FV_OK)
        status = fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MEAN, .x = plain, .out = *out, .block = block});
    fv_phase_enter(ctx, before);
    return status;
}

enum { HIGHEST = 3 }; /* level of a pyramid: means of 8 */

int64_t fv_pyramid_rows(int64_t block)
{
    int64_t rows = 0;

    for (int n = 1; n <= HIGHEST; n++)
        rows += fv_ceil_div(block, (int64_t)1 << n);
    return rows;
}

/* x is blocks of `block` rows each. */
static fv_status pool_blocks(fv_ctx *ctx, const fv_tensor *x, int64_t block, const fv_tensor *out)
{
    int64_t B = x->dims[0], H = x->dims[1], blocks = x->dims[2] / block, D = x->dims[3], from = 0;
    const int64_t *s = x->strides, *t = out->strides;
    fv_pool_args pool = {
        .x = fv_view(x, FV_DIMS(B, H, blocks, block, D), (const int64_t[]){s[0], s[1], s[2] * block, s[2], s[3]}, 0)};

    for (int n = 1; n <= HIGHEST; n++) {
        int64_t rows = fv_ceil_div(block, (int64_t)1 << n);
        pool.block = (int64_t)1 << n;
        pool.out = fv_view(out, FV_DIMS(B, H, blocks, rows, D),
                           (const int64_t[]){t[0], t[1], t[2] * fv_pyramid_rows(block), t[2], t[3]}, from * t[2]);
        FV_TRY(fv_pool_rows(ctx, &pool));
        from += rows;
    }
    return FV_OK;
}

fv_status fv_pyramid_pool(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out)
{
    int64_t each = fv_pyramid_rows(block), first = from / each * block;
    int64_t whole = fv_min(out->dims[2] / each, (x->dims[2] - first) / block), pooled = whole * each;
    int64_t rest = pooled < out->dims[2] ? x->dims[2] - first - whole * block : 0;
    fv_tensor stored = fv_slice(x, 2, first, whole * block + rest), rows, part, into;

    FV_TRY(fv_as_f32(ctx, &stored, &rows));
    part = fv_slice(&rows, 2, 0, whole * block);
    into = fv_slice(out, 2, 0, pooled);
    if (whole > 0) FV_TRY(pool_blocks(ctx, &part, block, &into));
    part = fv_slice(&rows, 2, whole * block, rest);
    into = fv_slice(out, 2, pooled, out->dims[2] - pooled);
    return rest > 0 ? pool_blocks(ctx, &part, rest, &into) : FV_OK;
}

fv_status fv_group_means(fv_ctx *ctx, const fv_tensor *q, int64_t key_heads, fv_tensor *mean)
{
    int64_t B = q->dims[0], N = q->dims[2], D = q->dims[3], group = q->dims[1] / key_heads;
    fv_tensor heads = fv_grouped(q, key_heads), rows = fv_permuted(&heads, (const int[]){0, 1, 3, 2, 4});
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_tensor_new(ctx, mean, FV_F32, FV_DIMS(B, key_heads, N, D));

    if (status == FV_OK)
        status = fv_pool_rows(
            ctx, &(fv_pool_args){.x = rows, .out = fv_reshaped(mean, FV_DIMS(B, key_heads, N, 1, D)), .block = group});
    fv_phase_enter(ctx, before);
    return status;
}

/* ---- score ------------------------------------------------------------------------------------------------------ */

static fv_status score_part(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                            void *user, int64_t from, int64_t count)
{
    int64_t Hx = k->dims[1];
    fv_tensor part = fv_slice(q, 2, from, count), keys = fv_grouped(k, Hx), scores;
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(q->dims[0], q->dims[1], count, k->dims[2]));

    if (status == FV_OK)
        status = fv_gemm(ctx, &(fv_gemm_args){.a = fv_grouped(&part, Hx),
                                              .b = fv_transposed(&keys),
                                              .c = fv_grouped(&scores, Hx),
                                              .alpha = scale});
    fv_phase_enter(ctx, before);
    return status == FV_OK ? use(ctx, user, from, &scores) : status;
}

/* With `call`, keys stand for blocks, of which those that are complete at the last row of a stretch are scored. */
static fv_status score_stretches(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k,
                                 int64_t first, int64_t block, float scale, fv_use_scores_fn *use, void *user)
{
    int64_t N = q->dims[2], row = q->dims[0] * q->dims[1] * k->dims[2];
    int64_t step = fv_clamp(SCORES / fv_max(row, 1), 16, fv_max(N, 16));
    fv_status status = FV_OK;

    for (int64_t from = 0; from < N && status == FV_OK; from += step) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t count = fv_min(step, N - from), end = call ? call->offset + from + count - first : 0;
        fv_tensor seen = call ? fv_slice(k, 2, 0, fv_clamp(end / block, fv_min(1, k->dims[2]), k->dims[2])) : *k;
        status = score_part(ctx, q, &seen, scale, use, user, from, count);
        fv_scratch_release(ctx, mark);
        if (status == FV_OK) status = fv_ctx_check(ctx);
    }
    return status;
}

fv_status fv_score_rows(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                        void *user)
{
    return score_stretches(ctx, NULL, q, k, 0, 0, scale, use, user);
}

fv_status fv_score_blocks(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k, int64_t first,
                          int64_t block, float scale, fv_use_scores_fn *use, void *user)
{
    return score_stretches(ctx, call->causal ? call : NULL, q, k, first, block, scale, use, user);
}

/* Weights [count,M] of a stretch of rows, reduced to out [blocks of columns]. */
static fv_status reduce_weights(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *weights, int64_t block,
                                const fv_tensor *out)
{
    int64_t M = weights->dims[1];
    fv_tensor row;

    FV_TRY(fv_tensor_new(ctx, &row, FV_F32, FV_DIMS(1, M)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = kind, .x = *weights, .out = row, .block = weights->dims[0]}));
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = kind,
                                             .x = fv_reshaped(&row, FV_DIMS(M, 1)),
                                             .out = fv_reshaped(out, FV_DIMS(out->dims[1], 1)),
                                             .block = block});
}

static fv_status weigh_row(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, int64_t block,
                           const fv_tensor *sum, const fv_tensor *largest)
{
    fv_tensor weights;

    FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, FV_DIMS(q->dims[0], k->dims[0])));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *q,
                                        .b = fv_transposed(k),
                                        .c = weights,
                                        .alpha = scale != 0 ? scale : FLT_MIN})); /* 0 would mean 1 */
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = weights, .out = weights}));
    FV_TRY(reduce_weights(ctx, FV_POOL_SUM, &weights, block, sum));
    return reduce_weights(ctx, FV_POOL_MAX, &weights, block, largest);
}

fv_status fv_block_weights(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, int64_t block,
                           const fv_tensor *sum, const fv_tensor *largest)
{
    fv_status status = FV_OK;

    for (int64_t r = 0; r < sum->dims[0] && status == FV_OK; r++) {
        fv_tensor rows = fv_slice(q, 0, r * block, fv_min(block, q->dims[0] - r * block));
        fv_tensor sums = fv_slice(sum, 0, r, 1), most = fv_slice(largest, 0, r, 1);
        fv_mark mark = fv_scratch_mark(ctx);
        status = weigh_row(ctx, &rows, k, scale, block, &sums, &most);
        fv_scratch_release(ctx, mark);
        if (status == FV_OK) status = fv_ctx_check(ctx);
    }
    return status;
}

/* ---- blocks of queries ------------------------------------------------------------------------------------------ */

fv_status fv_cut_queries(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t *count, int64_t **start)
{
    int64_t first = call->offset / block;

    *count = (call->offset + call->queries - 1) / block - first + 1;
    FV_TRY(FV_SCRATCH(ctx, *start, *count + 1));
    for (int64_t b = 0; b <= *count; b++)
        (*start)[b] = fv_clamp((first + b) * block - call->offset, 0, call->queries);
    return FV_OK;
}
