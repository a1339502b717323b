/* Combiner over rows and columns: the summary of a token stands for those above it in its column, or for those on one
 * side of it in its row (axial_mixture), or for its whole row (axial_rowmajor). */
#include "attention/local/combiner.h"

#include <math.h>

enum { DOWN, RIGHT, LEFT, DIRECTIONS }; /* of what a mixture's summaries run along */

#define NORM_EPSILON 1e-6f

int64_t fv_combiner_width(const fv_call *call, const struct combiner *o)
{
    return (o->form == COMBINER_MIXTURE ? DIRECTIONS : 1) * (call->head_dim + call->value_dim);
}

/* Keys, or values, of summaries that run in a direction. */
static fv_tensor keys_of(const fv_combiner *c, const fv_tensor *rows, int direction)
{
    int64_t D = c->call.head_dim, Dv = c->call.value_dim;

    return fv_combiner_channels(c, rows, direction * (D + Dv), D);
}

static fv_tensor values_of(const fv_combiner *c, const fv_tensor *rows, int direction)
{
    int64_t D = c->call.head_dim, Dv = c->call.value_dim;

    return fv_combiner_channels(c, rows, direction * (D + Dv) + D, Dv);
}

/* ---- summaries of a mixture -------------------------------------------------------------------------------------- */

/* x [1,heads,R,C] of whole rows as [1,heads,R/U,U,C], or by column, [1,heads,U,R/U,C]. */
static fv_tensor as_grid(const fv_combiner *c, const fv_tensor *x, bool by_column)
{
    fv_tensor rows = fv_parted(x, 2, c->length);

    return by_column ? fv_permuted(&rows, (const int[]){0, 1, 3, 2, 4}) : rows;
}

/* Running maxima of tokens x, heads repeated; `out` are those of the last rows. */
static fv_status run_along(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *x, int direction, const fv_tensor *out)
{
    int64_t rows = out->dims[2], before = direction == DOWN ? x->dims[2] - rows : 0;
    fv_tensor from = fv_slice(x, 2, x->dims[2] - rows - before, rows + before), all = *out;
    fv_cumsum_args max = {.max = true, .reverse = direction == LEFT};

    from = fv_broadcast(&from, FV_DIMS(1, c->group, rows + before, x->dims[3]));
    if (before > 0) FV_TRY(fv_tensor_new(ctx, &all, FV_F32, 4, from.dims));
    max.x = as_grid(c, &from, direction == DOWN);
    max.out = as_grid(c, &all, direction == DOWN);
    FV_TRY(fv_cumsum(ctx, &max));
    if (before == 0) return FV_OK;
    return fv_map_apply(ctx, &(fv_map_args){.x = fv_slice(&all, 2, before, rows), .out = *out});
}

/* Keys and values of one direction: values are attentions of running queries along columns, or within rows. */
static fv_status make_direction(fv_ctx *ctx, const fv_combiner *c, int direction, int64_t from, const fv_tensor *out)
{
    const fv_tensor *k = &c->call.k, *v = &c->call.v;
    int64_t U = c->length, rows = out->dims[2] / U, end = from + out->dims[2];
    fv_tensor key = keys_of(c, out, direction), value = values_of(c, out, direction), query;
    fv_tensor q = fv_combiner_queries(c), keys = fv_slice(k, 2, 0, end), queries = fv_slice(&q, 2, 0, end);
    fv_plan plan = {.causal = direction != LEFT, .offset = direction == DOWN ? from / U : 0};
    int32_t *first, *last;
    fv_combiner_block block = {.count = rows, .queries = U, .keys = U, .plan = &plan, .logits = {.scale = 1}};

    FV_TRY(fv_tensor_new(ctx, &query, FV_F32, 4, key.dims));
    FV_TRY(run_along(ctx, c, &keys, direction, &key));
    FV_TRY(run_along(ctx, c, &queries, direction, &query));
    if (direction == LEFT) {
        FV_TRY(FV_SCRATCH(ctx, first, U));
        FV_TRY(FV_SCRATCH(ctx, last, U));
        for (int64_t i = 0; i < U; i++)
            first[i] = (int32_t)i, last[i] = (int32_t)U;
        plan.key_from = first;
        plan.key_to = last;
    }
    block.q = (fv_strided){&query, 0, U, 1};
    block.k = (fv_strided){k, from, U, 1};
    block.v = (fv_strided){v, from, U, 1};
    block.o = (fv_strided){&value, 0, U, 1};
    if (direction == DOWN) {
        block.count = U;
        block.queries = rows;
        block.keys = end / U;
        block.q = (fv_strided){&query, 0, 1, U};
        block.k = (fv_strided){k, 0, 1, U};
        block.v = (fv_strided){v, 0, 1, U};
        block.o = (fv_strided){&value, 0, 1, U};
    }
    return fv_combiner_attend(ctx, c, &block);
}

/* ---- summaries of whole rows ------------------------------------------------------------------------------------- */

/* Keys of summaries out [B,H,rows,D+Dv] whose values are there: LN(x + a w1^T) w2^T. */
fv_status fv_combiner_project(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const fv_tensor *param = call->param;
    int64_t D = call->head_dim, rows = out->dims[2];
    fv_tensor x = fv_slice(&param[COMBINER_X], 1, from, rows), value = fv_slice(out, 3, D, call->value_dim);
    fv_tensor a, added, sum, normed, keys;

    FV_TRY(fv_join_heads(ctx, &value, &a));
    FV_TRY(fv_tensor_new(ctx, &added, FV_F32, 3, x.dims));
    FV_TRY(fv_tensor_new(ctx, &normed, FV_F32, 3, x.dims));
    FV_TRY(fv_tensor_new(ctx, &keys, FV_F32, FV_DIMS(call->batch, rows, call->key_heads * D)));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = a, .b = fv_transposed(&param[COMBINER_W1]), .c = added}));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .y = added}, &sum));
    FV_TRY(fv_norm(ctx, &(fv_norm_args){.layer = true,
                                        .x = sum,
                                        .weight = param[COMBINER_NORM_WEIGHT],
                                        .bias = param[COMBINER_NORM_BIAS],
                                        .out = normed,
                                        .epsilon = NORM_EPSILON}));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = normed, .b = fv_transposed(&param[COMBINER_W2]), .c = keys}));
    keys = fv_parted(&keys, 2, D);
    return fv_map_apply(
        ctx, &(fv_map_args){.x = fv_permuted(&keys, (const int[]){0, 2, 1, 3}), .out = fv_slice(out, 3, 0, D)});
}

/* Attention within rows without a mask; with row_summary=wsum keys are read as values are, by the same weights. */
static fv_status make_rows(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out)
{
    int64_t U = c->length, R = out->dims[2], D = c->call.head_dim, Dv = c->call.value_dim;
    fv_tensor key = keys_of(c, out, 0), value = values_of(c, out, 0), both = fv_combiner_channels(c, out, 0, D + Dv);
    fv_tensor q = fv_combiner_queries(c), k = fv_slice(&c->call.k, 2, from, R), v = fv_slice(&c->call.v, 2, from, R);
    fv_tensor wide = v;
    bool sums = c->options->row_summary == COMBINER_WSUM;
    fv_combiner_block block = {.count = R / U,
                               .queries = U,
                               .keys = U,
                               .q = {&q, from, U, 1},
                               .k = {&k, 0, U, 1},
                               .v = {&wide, 0, U, 1},
                               .o = {sums ? &both : &value, 0, U, 1},
                               .logits = {.scale = 1}};

    if (sums) {
        FV_TRY(fv_tensor_new(ctx, &wide, FV_F32, FV_DIMS(1, 1, R, D + Dv)));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = k, .out = fv_slice(&wide, 3, 0, D)}));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = v, .out = fv_slice(&wide, 3, D, Dv)}));
    }
    FV_TRY(fv_combiner_attend(ctx, c, &block));
    return c->options->row_summary == COMBINER_NONE ? fv_map_apply(ctx, &(fv_map_args){.x = k, .out = key}) : FV_OK;
}

fv_status fv_combiner_axial_make(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out)
{
    if (c->options->form == COMBINER_ROWMAJOR) return make_rows(ctx, c, from, out);
    for (int direction = 0; direction < DIRECTIONS; direction++)
        FV_TRY(make_direction(ctx, c, direction, from, out));
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
    int64_t U = c->length, p = c->call.offset, end = p + c->call.queries;
    int count = 0;

    while (p < end) {
        bool whole = p % U == 0 && end - p >= U;
        struct piece next = {p / U, whole ? (end - p) / U : 1, p % U, whole ? U : fv_min(U - p % U, end - p)};
        piece[count++] = next;
        p += next.rows * next.columns;
    }
    return count;
}

/* A part of one softmax, in which nothing is seen yet. */
static fv_status clear(fv_ctx *ctx, const fv_call *part)
{
    memset(part->o.data, 0, (size_t)fv_tensor_count(&part->o) * sizeof(float));
    return fv_fill(ctx, &part->lse, -INFINITY);
}

/* Keys above in the column that lies `shift` beside a query's own; `stands_for`: tokens of each, of a query in column
 * n (NULL: one). */
static fv_status read_columns(fv_ctx *ctx, const fv_combiner *c, const fv_call *part, const fv_tensor *k,
                              const fv_tensor *v, int64_t shift, const double *stands_for)
{
    struct piece pieces[3];
    int64_t U = c->length;
    fv_tensor lse = fv_expanded(&part->lse, 3);
    int count = cut(c, pieces);

    FV_TRY(clear(ctx, part));
    for (int n = 0; n < count; n++) {
        const struct piece *p = &pieces[n];
        int64_t from = fv_max(p->column, -shift), to = fv_min(p->column + p->columns, U - shift);
        int64_t query = p->row * U + from - c->call.offset;
        fv_plan plan = {.causal = true, .offset = p->row - 1};
        fv_combiner_block block = {.count = to - from,
                                   .queries = p->rows,
                                   .keys = p->row + p->rows - 1,
                                   .q = {&part->q, query, 1, U},
                                   .k = {k, from + shift, 1, U},
                                   .v = {v, from + shift, 1, U},
                                   .o = {&part->o, query, 1, U},
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
static fv_status read_above(fv_ctx *ctx, const fv_combiner *c, const fv_call *part)
{
    fv_tensor key = keys_of(c, &c->summaries, DOWN), value = values_of(c, &c->summaries, DOWN);
    fv_tensor lse = fv_expanded(&part->lse, 3);
    struct piece pieces[3];
    int64_t U = c->length;
    int count = cut(c, pieces);

    FV_TRY(clear(ctx, part));
    for (int n = 0; n < count; n++) {
        const struct piece *p = &pieces[n];
        int64_t first = fv_max(p->row, 1), rows = p->row + p->rows - first;
        int64_t query = first * U + p->column - c->call.offset, above = (first - 1) * U;
        fv_plan plan = {0};
        fv_combiner_block block = {.count = rows,
                                   .queries = p->columns,
                                   .keys = U,
                                   .q = {&part->q, query, U, 1},
                                   .k = {&key, above, U, 1},
                                   .v = {&value, above, U, 1},
                                   .o = {&part->o, query, U, 1},
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

fv_status fv_combiner_axial_attend(fv_ctx *ctx, const fv_combiner *c, const fv_plan *row)
{
    const fv_call *call = &c->call;
    bool mixture = c->options->form == COMBINER_MIXTURE;
    int64_t U = c->length;
    double *left, *right;
    fv_tensor key, value;
    fv_merge_args merge;
    fv_attend_args own;
    fv_call part[5];

    FV_TRY(FV_SCRATCH(ctx, left, U));
    FV_TRY(FV_SCRATCH(ctx, right, U));
    for (int64_t n = 0; n < U; n++) {
        left[n] = (double)(mixture ? n : U);
        right[n] = (double)(U - 1 - n);
    }
    FV_TRY(fv_call_merge(ctx, call, mixture ? 5 : 2, &merge));
    for (int p = 0; p < merge.parts; p++)
        part[p] = fv_merge_part(call, &merge, p);
    own = fv_call_attend(&part[0], row);
    FV_TRY(fv_attend_counted(ctx, call, &own));
    if (mixture) {
        FV_TRY(read_above(ctx, c, &part[1]));
        FV_TRY(read_columns(ctx, c, &part[2], &call->k, &call->v, 0, NULL));
    }
    key = keys_of(c, &c->summaries, mixture ? RIGHT : 0);
    value = values_of(c, &c->summaries, mixture ? RIGHT : 0);
    FV_TRY(read_columns(ctx, c, &part[mixture ? 3 : 1], &key, &value, mixture ? -1 : 0, left));
    if (mixture) {
        key = keys_of(c, &c->summaries, LEFT);
        value = values_of(c, &c->summaries, LEFT);
        FV_TRY(read_columns(ctx, c, &part[4], &key, &value, 1, right));
    }
    return fv_merge(ctx, &merge);
}
