/* Rows go back, melt into one another, and change their types. */
#include "cache/rows.h"

#include "cache/cold.h"
#include "cache/rows_inside.h"
#include "ops/blocks.h"
#include "ops/ops.h"

/* ---- going back ------------------------------------------------------------------------------------------------- */

/* The first position below `length` that a fresh layer would hold and this one does not; -1: none. */
static int64_t missing(const fv_rows *rows, int64_t g, int64_t length, int64_t window, fv_rows_held_fn *held,
                       void *user)
{
    const int32_t *position = fv_rows_positions(rows, g);
    int64_t n = 0, count = fv_rows_below(rows, g, length), cold = fv_cold_count(rows);

    if (!held && !window && count + cold == length) return -1;
    for (int64_t j = fv_max(window > 0 ? length - window : 0, cold); j < length; j++) {
        while (n < count && position[n] < j)
            n++;
        if ((n == count || position[n] != j) && (!held || held(user, g, j)) && !fv_away_holds(rows, g, j)) return j;
    }
    return -1;
}

fv_status fv_rows_truncate(fv_rows *rows, int64_t length, int64_t window, fv_rows_held_fn *held, void *user)
{
    for (int64_t g = 0; g < rows->options.heads; g++) {
        int64_t gone = missing(rows, g, length, window, held, user);
        if (gone >= 0)
            return fv_fail(FV_E_ARGUMENT,
                           "going back to %lld tokens: the row of position %lld, which they need, is "
                           "gone",
                           (long long)length, (long long)gone);
    }
    FV_TRY(fv_cold_truncate(rows, length));
    for (int64_t g = 0; g < rows->options.heads; g++) {
        int64_t count = fv_rows_below(rows, g, length);
        FV_TRY(fv_rows_erase(rows, g, count, rows->head[g].count - count)); /* the end: nothing moves, nothing fails */
        fv_away_truncate(rows, g, length);
    }
    return FV_OK;
}

/* ---- merging and converting ------------------------------------------------------------------------------------- */

void fv_rows_load(const fv_rows *rows, int side, const void *row, float *out)
{
    const fv_rows_side *s = &rows->side[side];

    fv_blocks_load(s->type, row, 0, s->dim / fv_dtype_block(s->type), out);
}

fv_status fv_rows_merge(fv_ctx *ctx, fv_rows *rows, int64_t g, const int32_t *place, const float *weight, int64_t count)
{
    int64_t first = rows->head[g].first, widest = fv_max(rows->options.key_dim, rows->options.value_dim);
    fv_mark mark = fv_arena_mark(ctx->arena);
    float *row, *sum;

    if (count < 1) return fv_fail(FV_E_ARGUMENT, "merge: expected one or more rows, got %lld", (long long)count);
    for (int64_t i = 0; i < count; i++)
        if (place[i] < 0 || place[i] >= rows->head[g].count || (i > 0 && place[i] <= place[i - 1]))
            return fv_fail(FV_E_ARGUMENT, "merge: row %lld: expected ascending places of 0 to %lld, got %d",
                           (long long)i, (long long)rows->head[g].count - 1, place[i]);
    FV_TRY(FV_SCRATCH(ctx, row, widest));
    FV_TRY(FV_SCRATCH(ctx, sum, widest));
    FV_TRY(fv_rows_own(rows, g, first, first + rows->head[g].count)); /* so that no row fails to go below */
    for (int side = 0; side < 2; side++) {
        int64_t dim = rows->side[side].dim;
        memset(sum, 0, (size_t)dim * sizeof *sum);
        for (int64_t i = 0; i < count; i++) {
            float w = weight ? weight[i] : 1 / (float)count;
            fv_rows_load(rows, side, fv_row_at(rows, side, g, first + place[i]), row);
            for (int64_t d = 0; d < dim; d++)
                sum[d] += w * row[d];
        }
        fv_blocks_store(rows->side[side].type, sum, dim, fv_row_at(rows, side, g, first + place[count - 1]));
    }
    fv_arena_release(ctx->arena, mark);
    for (int64_t i = count - 2; i >= 0; i--)
        FV_TRY(fv_rows_erase(rows, g, place[i], 1));
    return FV_OK;
}

/* Rows of `from` at the beginning of `to`, which is empty. */
static fv_status convert_rows(fv_rows *to, const fv_rows *from, float *row)
{
    for (int64_t g = 0; g < from->options.heads; g++) {
        int64_t count = from->head[g].count;
        to->head[g] = (fv_rows_head){.count = count, .top = count};
        memcpy(to->position + g * to->options.capacity, fv_rows_positions(from, g), (size_t)count * sizeof(int32_t));
        for (int side = 0; side < 2; side++) {
            if (to->side[side].slab) FV_TRY(fv_slab_map(to->side[side].slab, count));
            for (int64_t i = 0; i < count; i++) {
                fv_rows_load(from, side, fv_row_at(from, side, g, from->head[g].first + i), row);
                fv_blocks_store(to->side[side].type, row, to->side[side].dim, fv_row_at(to, side, g, i));
            }
        }
    }
    return FV_OK;
}

fv_status fv_rows_convert(fv_ctx *ctx, fv_rows *rows, fv_dtype key_type, fv_dtype value_type)
{
    fv_rows_options options = rows->options;
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_rows other;
    fv_status status;
    float *row;

    if (rows->cold) return fv_fail(FV_E_ARGUMENT, "converting rows: expected all in memory, got cold ones");
    options.key_type = key_type;
    options.value_type = value_type;
    if (options.layers > 1) { /* it leaves the tensor of all layers, whose rows are of one size */
        options.pages = NULL;
        options.layers = options.layer = 0;
    }
    FV_TRY(FV_SCRATCH(ctx, row, fv_max(options.key_dim, options.value_dim)));
    FV_TRY(fv_rows_new(&other, &options));
    status = convert_rows(&other, rows, row);
    if (status == FV_OK) status = fv_away_convert(ctx, &other, rows);
    fv_arena_release(ctx->arena, mark);
    if (status != FV_OK) {
        fv_rows_free(&other);
        return status;
    }
    fv_rows_free(rows);
    *rows = other;
    return FV_OK;
}
