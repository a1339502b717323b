#include "cache/block_means.h"

#include "ops/ops.h"

enum { ROWS_AT_ONCE = 512 };

void fv_block_means_free(fv_block_means *means)
{
    fv_free(means->mean);
    fv_free(means->sum);
    *means = (fv_block_means){0};
}

size_t fv_block_means_bytes(const fv_block_means *means)
{
    size_t sums = means->sum ? (size_t)(means->heads * means->dim) * sizeof *means->sum : 0;

    return (size_t)means->room * sizeof *means->mean + sums;
}

fv_status fv_rows_keys(fv_ctx *ctx, const fv_rows *rows, int64_t from, int64_t count, fv_tensor *keys)
{
    int64_t heads = rows->options.heads, dim = rows->options.key_dim;

    FV_TRY(fv_tensor_new(ctx, keys, FV_F32, FV_DIMS(heads, count, dim)));
    for (int64_t g = 0; g < heads; g++) {
        fv_dequantize_args args = {0};
        fv_tensor k, v, out = fv_slice(keys, 0, g, 1);
        fv_rows_view(rows, g, 1, &k, &v);
        k = fv_slice(&k, 2, from, count);
        args.x = fv_view(&k, 2, (const int64_t[]){count, dim}, (const int64_t[]){k.strides[2], 1}, 0);
        args.out = fv_reshaped(&out, FV_DIMS(count, dim));
        FV_TRY(fv_dequantize_rows(ctx, &args));
    }
    return FV_OK;
}

/* The mean of a block's first `count` rows. */
static void write_mean(fv_block_means *means, int64_t b, int64_t count)
{
    int64_t cells = means->heads * means->dim;

    for (int64_t d = 0; d < cells; d++)
        means->mean[b * cells + d] = (float)(means->sum[d] / (double)count);
}

/* One row of every head. */
static void take_row(fv_block_means *means, const fv_tensor *keys, int64_t i, int64_t first, int64_t block)
{
    int64_t cells = means->heads * means->dim, at = means->rows++ - first, count = at % block + 1;

    if (at < 0) return;
    if (count == 1) memset(means->sum, 0, (size_t)cells * sizeof *means->sum);
    for (int64_t g = 0; g < means->heads; g++) {
        const float *key = (const float *)keys->data + g * keys->strides[0] + i * keys->strides[1];
        for (int64_t d = 0; d < means->dim; d++)
            means->sum[g * means->dim + d] += (double)key[d];
    }
    if (count == block) write_mean(means, at / block, count);
}

fv_status fv_block_means_take(fv_ctx *ctx, fv_block_means *means, const fv_rows *rows, int64_t first, int64_t block)
{
    int64_t held = fv_rows_count(rows, 0), cells = rows->options.heads * rows->options.key_dim;
    fv_tensor keys;

    means->heads = rows->options.heads;
    means->dim = rows->options.key_dim;
    means->blocks = held > first ? fv_ceil_div(held - first, block) : 0;
    FV_TRY(FV_GROW(means->mean, means->room, fv_max(means->blocks, 1) * cells));
    if (!means->sum) FV_TRY(FV_ZALLOC(means->sum, cells));
    while (means->rows < held) {
        int64_t count = fv_min(held - means->rows, ROWS_AT_ONCE);
        fv_mark mark = fv_scratch_mark(ctx);
        FV_TRY(fv_rows_keys(ctx, rows, means->rows, count, &keys));
        for (int64_t i = 0; i < count; i++)
            take_row(means, &keys, i, first, block);
        fv_scratch_release(ctx, mark);
    }
    if (held > first && (held - first) % block > 0) write_mean(means, means->blocks - 1, (held - first) % block);
    return FV_OK;
}

fv_status fv_block_means_scores(fv_ctx *ctx, const fv_block_means *means, const fv_tensor *q, int64_t blocks,
                                fv_tensor *scores)
{
    const fv_tensor all = {.data = means->mean, .dtype = FV_F32};
    fv_gemm_args product = {.a = *q};

    FV_TRY(fv_tensor_new(ctx, scores, FV_F32, FV_DIMS(means->heads, q->dims[1], blocks)));
    product.b = fv_view(&all, 3, (const int64_t[]){means->heads, means->dim, blocks},
                        (const int64_t[]){means->dim, 1, means->heads * means->dim}, 0);
    product.c = *scores;
    return fv_gemm(ctx, &product);
}

fv_status fv_best_blocks(fv_ctx *ctx, const fv_tensor *scores, int64_t count, fv_tensor *index)
{
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(scores->dims[0], count)));
    return fv_select(ctx, &(fv_select_args){.scores = *scores, .index = *index});
}
