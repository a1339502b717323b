#include "attention/sparse/core.h"

#include <float.h>

/* Scores held at once. */
#define SCORES ((int64_t)1 << 17)

/* ---- parts of a call -------------------------------------------------------------------------------------------- */

fv_status fv_run_parts(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t queries, fv_part_fn *run)
{
    int64_t step = fv_max(queries / block, 1);

    for (int64_t from = 0, next; from < call->queries; from = next) {
        int64_t p = call->offset + from, first = fv_floor_div(p, block);
        fv_call part;
        next = fv_clamp((first + step) * block - call->offset, from + 1, call->queries);
        fv_call_cut(call, from, next - from, &part);
        part.decoding = call->decoding;
        FV_TRY_SCRATCH(ctx, run(ctx, &part));
    }
    return FV_OK;
}

/* ---- pool ------------------------------------------------------------------------------------------------------- */

fv_status fv_block_means(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out)
{
    int64_t first = from * block, count = fv_min(out->dims[2] * block, x->dims[2] - first);
    fv_tensor rows = fv_slice(x, 2, first, count), plain;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_as_f32(ctx, &rows, &plain));
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_pool_rows(ctx, &(fv_pool_args){.x = plain, .out = *out, .block = block}));
    return FV_OK;
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
    fv_tensor pooled = fv_parted(out, 2, fv_pyramid_rows(block));
    fv_pool_args pool = {.x = fv_parted(x, 2, block)};
    int64_t from = 0;

    for (int n = 1; n <= HIGHEST; n++) {
        int64_t rows = fv_ceil_div(block, (int64_t)1 << n);
        pool.block = (int64_t)1 << n;
        pool.out = fv_slice(&pooled, 3, from, rows);
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

int64_t fv_kept_means(const fv_call *call, int kind, int64_t first, int64_t block, int64_t keys, int64_t *width)
{
    *width = kind == 0 ? call->head_dim : 0;
    return kind == 0 ? fv_max(keys - first, 0) / block : 0;
}

struct means {
    int64_t first, block;
};

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct means *m = call->options;

    return fv_kept_means(call, kind, m->first, m->block, keys, width);
}

static fv_status make_means(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const struct means *m = call->options;
    fv_tensor behind = fv_slice(&call->k, 2, m->first, call->keys - m->first);

    return fv_block_means(ctx, &behind, m->block, from, out);
}

fv_status fv_keep_means(fv_ctx *ctx, const fv_call *call, int64_t first, int64_t block, int64_t count, fv_tensor *means)
{
    fv_call keeping = *call;

    keeping.options = &(struct means){first, block};
    return fv_keep(ctx, &keeping, kept, 0, count, make_means, means);
}

fv_status fv_pool_heads(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *x, int64_t heads, fv_tensor *out)
{
    int64_t B = x->dims[0], N = x->dims[2], C = x->dims[3], group = x->dims[1] / heads;
    fv_tensor grouped = fv_grouped(x, heads);
    fv_pool_args pool = {.kind = kind, .x = fv_permuted(&grouped, (const int[]){0, 1, 3, 2, 4}), .block = group};

    *out = *x;
    if (group == 1) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(B, heads, N, C)));
    pool.out = fv_reshaped(out, FV_DIMS(B, heads, N, 1, C));
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_pool_rows(ctx, &pool));
    return FV_OK;
}

/* ---- score ------------------------------------------------------------------------------------------------------ */

/* products [B,H,N,C] of q [B,H,N,D] with k [B,Hx,C,D]. */
static fv_status multiply(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_tensor *products)
{
    int64_t Hx = k->dims[1];
    fv_tensor keys = fv_grouped(k, Hx);

    FV_TRY(fv_tensor_new(ctx, products, FV_F32, FV_DIMS(q->dims[0], q->dims[1], q->dims[2], k->dims[2])));
    return fv_gemm(
        ctx, &(fv_gemm_args){
                 .a = fv_grouped(q, Hx), .b = fv_transposed(&keys), .c = fv_grouped(products, Hx), .alpha = scale});
}

static fv_status score_part(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                            void *user, int64_t from, int64_t count)
{
    fv_tensor part = fv_slice(q, 2, from, count), scores;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, multiply(ctx, &part, k, scale, &scores));
    return use(ctx, user, from, &scores);
}

/* With `call`, keys stand for blocks, of which those that are complete at the last row of a stretch are scored. */
static fv_status score_stretches(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k,
                                 int64_t first, int64_t block, float scale, fv_use_scores_fn *use, void *user)
{
    int64_t N = q->dims[2], row = q->dims[0] * q->dims[1] * k->dims[2];
    int64_t step = fv_clamp(SCORES / fv_max(row, 1), 16, fv_max(N, 16));

    for (int64_t from = 0; from < N; from += step) {
        int64_t count = fv_min(step, N - from), end = call ? call->offset + from + count - first : 0;
        fv_tensor seen = call ? fv_slice(k, 2, 0, fv_clamp(end / block, fv_min(1, k->dims[2]), k->dims[2])) : *k;
        FV_TRY_SCRATCH(ctx, score_part(ctx, q, &seen, scale, use, user, from, count));
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
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

static fv_status select_best(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    fv_tensor index = fv_slice(user, 2, from, scores->dims[2]);

    return fv_select(ctx, &(fv_select_args){.scores = *scores, .index = index});
}

fv_status fv_best_rows(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, const fv_tensor *index)
{
    return fv_score_rows(ctx, q, k, 1, select_best, (void *)index);
}

fv_status fv_call_products(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k, fv_tensor *logits)
{
    fv_map_args cap = {.op = FV_MAP_SOFTCAP, .alpha = call->softcap};

    if (call->scale == 0)
        return fv_tensor_zeros(ctx, logits, FV_F32, FV_DIMS(q->dims[0], q->dims[1], q->dims[2], k->dims[2]));
    FV_TRY(multiply(ctx, q, k, call->scale, logits));
    if (call->softcap <= 0) return FV_OK;
    cap.x = *logits;
    return fv_mapped(ctx, &cap, logits); /* not in its place: a tape may record */
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
    for (int64_t r = 0; r < sum->dims[0]; r++) {
        fv_tensor rows = fv_slice(q, 0, r * block, fv_min(block, q->dims[0] - r * block));
        fv_tensor sums = fv_slice(sum, 0, r, 1), most = fv_slice(largest, 0, r, 1);
        FV_TRY_SCRATCH(ctx, weigh_row(ctx, &rows, k, scale, block, &sums, &most));
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
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
