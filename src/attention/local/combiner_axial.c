/* Combiner over rows and columns: the summary of a token stands for those above it in its column, or for those on one
 * side of it in its row (axial_mixture), or for its whole row (axial_rowmajor). */
#include "attention/local/combiner.h"

#include <math.h>

enum { DOWN, RIGHT, LEFT, DIRECTIONS }; /* of what a mixture's summaries run along */

#define NORM_EPSILON 1e-6f

int64_t fv_combiner_axial_width(const fv_call *call, const struct combiner *o)
{
    return (o->form == COMBINER_MIXTURE ? DIRECTIONS : 1) * (call->head_dim + call->value_dim);
}

/* Keys, or values, of summaries that run in a direction. */
static fv_tensor keys_of(const fv_combiner *c, const fv_tensor *rows, int direction)
{
    int64_t D = c->call->head_dim, Dv = c->call->value_dim;

    return fv_combiner_channels(c, rows, direction * (D + Dv), D);
}

static fv_tensor values_of(const fv_combiner *c, const fv_tensor *rows, int direction)
{
    int64_t D = c->call->head_dim, Dv = c->call->value_dim;

    return fv_combiner_channels(c, rows, direction * (D + Dv) + D, Dv);
}

/* ---- summaries of a mixture -------------------------------------------------------------------------------------- */

/* x [B,Hkv,heads,R,C] of whole rows as [B,Hkv,heads,U,R/U,C] by column, or [B,Hkv,heads,R/U,U,C]. */
static fv_tensor as_grid(const fv_combiner *c, const fv_tensor *x, bool by_column)
{
    int64_t U = c->length, S = x->dims[3] / U, row = U * x->strides[3], column = x->strides[3];

    return fv_view(x, FV_DIMS(x->dims[0], x->dims[1], x->dims[2], by_column ? U : S, by_column ? S : U, x->dims[4]),
                   (const int64_t[]){x->strides[0], x->strides[1], x->strides[2], by_column ? column : row,
                                     by_column ? row : column, x->strides[4]},
                   0);
}

/* Running maxima of tokens x, heads repeated; `out` are those of the last rows. */
static fv_status run_along(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *x, int direction, const fv_tensor *out)
{
    int64_t rows = out->dims[3], before = direction == DOWN ? x->dims[3] - rows : 0;
    fv_tensor from = fv_slice(x, 3, x->dims[3] - rows - before, rows + before), all = *out, last;
    fv_cumsum_args max = {.max = true, .reverse = direction == LEFT};

    from = fv_broadcast(&from, FV_DIMS(x->dims[0], x->dims[1], c->group, rows + before, x->dims[4]));
    if (before > 0) FV_TRY(fv_tensor_new(ctx, &all, FV_F32, 5, from.dims));
    max.x = as_grid(c, &from, direction == DOWN);
    max.out = as_grid(c, &all, direction == DOWN);
    FV_TRY(fv_cumsum(ctx, &max));
    if (before == 0) return FV_OK;
    last = fv_slice(&all, 3, before, rows);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = last, .out = *out});
}

/* Keys and values of one direction: values are attentions of running queries along columns, or within rows. */
static fv_status make_direction(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *q, int direction, int64_t from,
                                const fv_tensor *out)
{
    int64_t U = c->length, rows = out->dims[2] / U, end = from + out->dims[2];
    fv_tensor key = keys_of(c, out, direction), value = values_of(c, out, direction), query;
    fv_tensor k = fv_slice(&c->k, 3, 0, end), own = fv_slice(q, 3, 0, end);
    fv_plan plan = {.causal = direction != LEFT, .offset = direction == DOWN ? from / U : 0};
    int32_t *first, *last;
    fv_combiner_block block = {.count = rows, .queries = U, .keys = U, .plan = &plan, .logits = {.scale = 1}};

    FV_TRY(fv_tensor_new(ctx, &query, FV_F32, 5, key.dims));
    FV_TRY(run_along(ctx, c, &k, direction, &key));
    FV_TRY(run_along(ctx, c, &own, direction, &query));
    if (direction == LEFT) {
        FV_TRY(FV_SCRATCH(ctx, first, U));
        FV_TRY(FV_SCRATCH(ctx, last, U));
        for (int64_t i = 0; i < U; i++)
            first[i] = (int32_t)i, last[i] = (int32_t)U;
        plan.key_from = first;
        plan.key_to = last;
    }
    block.q = (fv_strided){&query, 0, U, 1};
    block.k = (fv_strided){&c->k, from, U, 1};
    block.v = (fv_strided){&c->v, from, U, 1};
    block.o = (fv_strided){&value, 0, U, 1};
    if (direction == DOWN) {
        block.count = U;
        block.queries = rows;
        block.keys = end / U;
        block.q = (fv_strided){&query, 0, 1, U};
        block.k = (fv_strided){&c->k, 0, 1, U};
        block.v = (fv_strided){&c->v, 0, 1, U};
        block.o = (fv_strided){&value, 0, 1, U};
    }
    return fv_combiner_attend_all(ctx, c, &block);
}

/* ---- summaries of whole rows ------------------------------------------------------------------------------------- */

/* Keys of summaries whose values are there: LN(x + a w1^T) w2^T. */
static fv_status project(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *value, const fv_tensor *key)
{
    const fv_tensor *param = c->call->param;
    int64_t B = c->call->batch, H = c->call->query_heads, D = c->call->head_dim, Dv = c->call->value_dim;
    int64_t rows = value->dims[3], C = param[COMBINER_X].dims[2];
    fv_tensor x = fv_slice(&param[COMBINER_X], 1, from, rows), a, added, sum, normed, keys;

    FV_TRY(fv_tensor_new(ctx, &a, FV_F32, FV_DIMS(B, rows, H, Dv)));
    FV_TRY(fv_tensor_new(ctx, &added, FV_F32, FV_DIMS(B, rows, C)));
    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, FV_DIMS(B, rows, C)));
    FV_TRY(fv_tensor_new(ctx, &normed, FV_F32, FV_DIMS(B, rows, C)));
    FV_TRY(fv_tensor_new(ctx, &keys, FV_F32, FV_DIMS(B, rows, H, D)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY,
                                            .x = *value,
                                            .out = fv_view(&a, FV_DIMS(B, H, 1, rows, Dv),
                                                           (const int64_t[]){rows * H * Dv, Dv, 0, H * Dv, 1}, 0)}));
    a = fv_reshaped(&a, FV_DIMS(B, rows, H * Dv));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = fv_transposed(&param[COMBINER_W1]), .c = added}));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .y = added, .out = sum}));
    FV_TRY(fv_norm(ctx, &(fv_norm_args){.layer = true,
                                        .x = sum,
                                        .weight = param[COMBINER_NORM_WEIGHT],
                                        .bias = param[COMBINER_NORM_BIAS],
                                        .out = normed,
                                        .epsilon = NORM_EPSILON}));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = normed,
                                        .b = fv_transposed(&param[COMBINER_W2]),
                                        .c = fv_reshaped(&keys, FV_DIMS(B, rows, H * D))}));
    keys = fv_view(&keys, FV_DIMS(B, H, 1, rows, D), (const int64_t[]){rows * H * D, D, 0, H * D, 1}, 0);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = keys, .out = *key});
}

/* Attention within rows without a mask; with row_summary=wsum keys are read as values are, by the same weights. */
static fv_status make_rows(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *q, int64_t from, const fv_tensor *out)
{
    int64_t U = c->length, R = out->dims[2], D = c->call->head_dim, Dv = c->call->value_dim;
    fv_tensor key = keys_of(c, out, 0), value = values_of(c, out, 0), both = fv_combiner_channels(c, out, 0, D + Dv);
    fv_tensor k = fv_slice(&c->k, 3, from, R), v = fv_slice(&c->v, 3, from, R), wide = v;
    bool sums = c->options->row_summary == COMBINER_WSUM;
    fv_combiner_block block = {.count = R / U,
                               .queries = U,
                               .keys = U,
                               .q = {q, from, U, 1},
                               .k = {&k, 0, U, 1},
                               .v = {&wide, 0, U, 1},
                               .o = {sums ? &both : &value, 0, U, 1},
                               .logits = {.scale = 1}};

    if (sums) {
        FV_TRY(fv_tensor_new(ctx, &wide, FV_F32, FV_DIMS(v.dims[0], v.dims[1], 1, R, D + Dv)));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = k, .out = fv_slice(&wide, 4, 0, D)}));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = v, .out = fv_slice(&wide, 4, D, Dv)}));
    }
    FV_TRY(fv_combiner_attend_all(ctx, c, &block));
    if (sums) return FV_OK;
    if (c->options->row_summary == COMBINER_PROJ) return project(ctx, c, from, &value, &key);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = k, .out = key});
}

fv_status fv_combiner_axial_make(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out)
{
    fv_tensor q;

    FV_TRY(fv_combiner_queries(ctx, c, &q));
    if (c->options->form == COMBINER_ROWMAJOR) return make_rows(ctx, c, &q, from, out);
    for (int direction = 0; direction < DIRECTIONS; direction++)
        FV_TRY(make_direction(ctx, c, &q, direction, from, out));
    return FV_OK;
}

/* ---- reading them ------------------------------------------------------------------------------------------------ */

/* Queries of a call that fill rows row..row+rows-1 between two columns. */
struct piece {
    int64_t row, rows, column, columns;
};

/* A call as up to three of them: the rest of a row, whole rows, the begin of a row. */
static int cut(const fv_combiner *c, struct piece piece[3])
{
    int64_t U = c->length, p = c->call->offset, end = p + c->call->queries;
    int count = 0;

    while (p < end) {
        bool whole = p % U == 0 && end - p >= U;
        struct piece next = {p / U, whole ? (end - p) / U : 1, p % U, whole ? U : fv_min(U - p % U, end - p)};
        piece[count++] = next;
        p += next.rows * next.columns;
    }
    return count;
}

/* Keys above in the column that lies `shift` beside a query's own; `stands_for`: tokens of each, of a query in column
 * n (NULL: one). */
static fv_status read_columns(fv_ctx *ctx, fv_combiner *c, const fv_tensor *k, const fv_tensor *v, int64_t shift,
                              const double *stands_for)
{
    struct piece pieces[3];
    int64_t U = c->length;
    fv_tensor o, lse;
    int count = cut(c, pieces);

    FV_TRY(fv_combiner_part(ctx, c, &o, &lse));
    for (int n = 0; n < count; n++) {
        const struct piece *p = &pieces[n];
        int64_t from = fv_max(p->column, -shift), to = fv_min(p->column + p->columns, U - shift);
        int64_t query = p->row * U + from - c->call->offset;
        fv_plan plan = {.causal = true, .offset = p->row - 1};
        fv_combiner_block block = {.count = to - from,
                                   .queries = p->rows,
                                   .keys = p->row + p->rows - 1,
                                   .q = {&c->q, query, 1, U},
                                   .k = {k, from + shift, 1, U},
                                   .v = {v, from + shift, 1, U},
                                   .o = {&o, query, 1, U},
                                   .lse = {&lse, query, 1, U},
                                   .plan = &plan};
        if (from >= to || block.keys == 0) continue;
        if (stands_for)
            FV_TRY(fv_combiner_bias(ctx, c, stands_for + from, block.count, block.keys, &block.logits.bias));
        FV_TRY(fv_combiner_attend(ctx, c, &block));
    }
    return FV_OK;
}

/* Columns `first`.. of a row, but for the own. */
static void add_others(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const struct piece *p = user;

    (void)head;
    fv_key_row_add(row, 0, p->column + i);
    fv_key_row_add(row, p->column + i + 1, INT32_MAX);
}

/* What stands above each other column of a query's row. */
static fv_status read_above(fv_ctx *ctx, fv_combiner *c)
{
    fv_tensor key = keys_of(c, &c->summaries, DOWN), value = values_of(c, &c->summaries, DOWN), o, lse;
    struct piece pieces[3];
    int64_t U = c->length;
    int count = cut(c, pieces);

    FV_TRY(fv_combiner_part(ctx, c, &o, &lse));
    for (int n = 0; n < count; n++) {
        const struct piece *p = &pieces[n];
        int64_t first = fv_max(p->row, 1), rows = p->row + p->rows - first;
        int64_t query = first * U + p->column - c->call->offset, above = (first - 1) * U;
        fv_plan plan = {0};
        fv_combiner_block block = {.count = rows,
                                   .queries = p->columns,
                                   .keys = U,
                                   .q = {&c->q, query, U, 1},
                                   .k = {&key, above, U, 1},
                                   .v = {&value, above, U, 1},
                                   .o = {&o, query, U, 1},
                                   .lse = {&lse, query, U, 1},
                                   .plan = &plan};
        double *counts;
        if (rows < 1) continue;
        FV_TRY(FV_SCRATCH(ctx, counts, rows));
        for (int64_t r = 0; r < rows; r++)
            counts[r] = (double)(first + r);
        FV_TRY(fv_combiner_bias(ctx, c, counts, rows, U, &block.logits.bias));
        FV_TRY(fv_key_rows_plan(ctx, 1, p->columns, U, add_others, p, &plan));
        FV_TRY(fv_combiner_attend(ctx, c, &block));
    }
    return FV_OK;
}

fv_status fv_combiner_axial_parts(fv_ctx *ctx, fv_combiner *c)
{
    bool mixture = c->options->form == COMBINER_MIXTURE;
    int64_t U = c->length;
    double *left, *right;

    FV_TRY(FV_SCRATCH(ctx, left, U));
    FV_TRY(FV_SCRATCH(ctx, right, U));
    for (int64_t n = 0; n < U; n++) {
        left[n] = (double)(mixture ? n : U);
        right[n] = (double)(U - 1 - n);
    }
    if (mixture) {
        FV_TRY(read_above(ctx, c));
        FV_TRY(read_columns(ctx, c, &c->k, &c->v, 0, NULL));
    }
    fv_tensor key = keys_of(c, &c->summaries, mixture ? RIGHT : 0);
    fv_tensor value = values_of(c, &c->summaries, mixture ? RIGHT : 0);
    FV_TRY(read_columns(ctx, c, &key, &value, mixture ? -1 : 0, left));
    if (!mixture) return FV_OK;
    key = keys_of(c, &c->summaries, LEFT);
    value = values_of(c, &c->summaries, LEFT);
    return read_columns(ctx, c, &key, &value, 1, right);
}
