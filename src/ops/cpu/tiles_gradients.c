/* Gradients of the biases of tiles: what is added to products, seen from behind. */
#include "ops/cpu/tiles.h"
#include "ops/logits.h"

/* d to where the keys' places are for query i in a row of R numbers, `step` apart; with `total` the sum of each stretch
 * of keys goes to the place of the first instead. */
static void add_placed(const fv_tiles *t, const fv_places *across, const fv_places *total, int64_t i, float *row,
                       int64_t R, int64_t step, const float *d)
{
    const struct fv_kernels *kernels = t->source->kernels;

    for (int n = 0, length; n < t->count; n += length) {
        int64_t first = (int64_t)across->key[t->key[n]] - across->query[i];
        length = fv_tiles_placed(across->key, total ? total->key : NULL, t->key + n, t->count - n);
        if (total)
            row[fv_place(total, i, t->key[n], R) * step] += kernels->sum(length, d + n);
        else if (step == 1 && first >= 0 && first + length <= R)
            kernels->map(FV_MAP_ADD, length, row + first, d + n, 1, 1, 0, row + first);
        else
            for (int m = n; m < n + length; m++)
                row[fv_place(across, i, t->key[m], R) * step] += d[m];
    }
}

static void add_rows_and_columns(const fv_tiles *t, const fv_attend_grads *g, int64_t h, int64_t i, const float *d)
{
    const fv_logits *l = t->source->logits;
    const fv_tensor *row = &g->d_row_bias, *column = &g->d_column_bias;
    bool placed = l->row_place.key;

    if (placed && fv_present(row))
        add_placed(t, &l->column_place, &l->row_place, i, fv_at(row, t->b, h, i, 0), row->dims[3], row->strides[3], d);
    if (placed && fv_present(column))
        add_placed(t, &l->column_place, NULL, i, fv_at(column, t->b, h, i, 0), column->dims[3], column->strides[3], d);
    for (int n = 0; !placed && fv_present(row) && n < t->count; n++)
        *(float *)fv_at(row, t->b, h, i, fv_row_at(l, i, t->key[n])) += d[n];
    for (int n = 0; !placed && fv_present(column) && n < t->count; n++)
        *(float *)fv_at(column, t->b, h, i, fv_column_at(l, i, t->key[n])) += d[n];
}

void fv_tiles_add_bias_gradients(const fv_tiles *t, const fv_attend_grads *g, int r, const float *d)
{
    const fv_logits *l = t->source->logits;
    const fv_tensor *offset = &g->d_offset_bias;
    int64_t h = t->tile.h + r / t->tile.rows, i = t->tile.query[r % t->tile.rows];

    if (fv_present(&g->d_bias) && g->d_bias.strides[3] == 1 && t->key[t->count - 1] - t->key[0] == t->count - 1) {
        float *to = fv_at(&g->d_bias, t->b, h, i, t->key[0]);
        t->source->kernels->map(FV_MAP_ADD, t->count, to, d, 1, 1, 0, to);
    } else if (fv_present(&g->d_bias)) {
        for (int n = 0; n < t->count; n++)
            *(float *)fv_at(&g->d_bias, t->b, h, i, t->key[n]) += d[n];
    }
    if (fv_present(offset) && l->offset_place.key)
        add_placed(t, &l->offset_place, NULL, i, fv_at(offset, h, 0, 0, 0), offset->dims[1], offset->strides[1], d);
    for (int n = 0; fv_present(offset) && !l->offset_place.key && n < t->count; n++)
        *(float *)fv_at(offset, h, fv_offset_at(l, t->source->view->plan, i, t->key[n]), 0, 0) += d[n];
    add_rows_and_columns(t, g, h, i, d);
}
