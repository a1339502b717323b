#include "cache/selection.h"

#include <math.h>

#include "cache/cold.h"

enum {
    LONG = 8,   /* rows of a mean block that is read where it lies */
    AHEAD = 12, /* rows that lie apart are asked for so many early */
    COLUMNS = 256,
};

/* ---- sums of weights by row ------------------------------------------------------------------------------------- */

static const double unit = 0x1p38;

fv_status fv_row_sums_grow(fv_row_sums *sums, int64_t count)
{
    if (count <= sums->count) return FV_OK;
    FV_TRY(FV_GROW(sums->sum, sums->room, count));
    memset(sums->sum + sums->count, 0, (size_t)(count - sums->count) * sizeof *sums->sum);
    sums->count = count;
    return FV_OK;
}

void fv_row_sums_free(fv_row_sums *sums)
{
    fv_free(sums->sum);
    *sums = (fv_row_sums){0};
}

static int64_t units(float weight)
{
    if (!(weight > 0)) return 0; /* also what is not a number */
    if (weight > 0x1p24f) weight = 0x1p24f;
    return (int64_t)((double)weight * unit + 0.5);
}

void fv_row_sums_add(fv_row_sums *sums, int64_t row, const float *weight, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sums->sum[row + i] += units(weight[i]);
}

void fv_row_sums_subtract(fv_row_sums *sums, int64_t row, const float *weight, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        sums->sum[row + i] -= units(weight[i]);
}

void fv_sum_heads(const float *weight, int64_t heads, int64_t apart, int64_t count, float *out)
{
    double sum[COLUMNS];

    for (int64_t from = 0; from < count; from += COLUMNS) {
        int64_t columns = fv_min(COLUMNS, count - from);
        memset(sum, 0, sizeof sum);
        for (int64_t h = 0; h < heads; h++)
            for (int64_t j = 0; j < columns; j++)
                sum[j] += (double)weight[h * apart + from + j];
        for (int64_t j = 0; j < columns; j++)
            out[from + j] = (float)sum[j];
    }
}

/* ---- the rows a step reads -------------------------------------------------------------------------------------- */

void fv_chosen_free(fv_chosen *chosen)
{
    fv_free(chosen->place);
    fv_free(chosen->start);
    fv_free(chosen->edge);
    fv_free(chosen->entry);
    fv_free(chosen->first);
    *chosen = (fv_chosen){0};
}

size_t fv_chosen_bytes(const fv_chosen *chosen)
{
    return (size_t)(chosen->place_room + chosen->entry_room) * sizeof(int32_t) +
           (size_t)(chosen->start_room + chosen->edge_room + chosen->first_room) * sizeof(int64_t);
}

fv_status fv_chosen_begin(fv_chosen *chosen, int64_t lists, int64_t most)
{
    chosen->lists = chosen->blocks = 0;
    FV_TRY(FV_GROW(chosen->place, chosen->place_room, fv_max(lists * most, 1)));
    FV_TRY(FV_GROW(chosen->start, chosen->start_room, lists + 1));
    chosen->start[0] = 0;
    return FV_OK;
}

fv_status fv_chosen_begin_blocks(fv_chosen *chosen, int64_t lists, int64_t blocks, int64_t most)
{
    FV_TRY(fv_chosen_begin(chosen, lists, 0));
    FV_TRY(FV_GROW(chosen->edge, chosen->edge_room, blocks + 1));
    FV_TRY(FV_GROW(chosen->entry, chosen->entry_room, fv_max(lists * most, 1)));
    FV_TRY(FV_GROW(chosen->first, chosen->first_room, lists + 1));
    chosen->blocks = blocks;
    chosen->first[0] = 0;
    return FV_OK;
}

void fv_chosen_next(fv_chosen *chosen)
{
    int64_t list = ++chosen->lists;

    chosen->start[list] = chosen->start[list - 1];
    if (chosen->blocks > 0) chosen->first[list] = chosen->first[list - 1];
}

void fv_chosen_add(fv_chosen *chosen, int64_t place, int64_t count)
{
    int64_t *end = &chosen->start[chosen->lists];

    for (int64_t i = 0; i < count; i++)
        chosen->place[(*end)++] = (int32_t)(place + i);
}

fv_status fv_chosen_add_block(fv_chosen *chosen, int64_t block)
{
    int64_t from = chosen->edge[block], count = chosen->edge[block + 1] - from;

    FV_TRY(FV_GROW(chosen->place, chosen->place_room, chosen->start[chosen->lists] + count));
    chosen->entry[chosen->first[chosen->lists]++] = (int32_t)block;
    fv_chosen_add(chosen, from, count);
    return FV_OK;
}

const int32_t *fv_chosen_list(const fv_chosen *chosen, int64_t head, int64_t *count)
{
    int64_t list = chosen->lists == 1 ? 0 : head;

    *count = 0;
    if (chosen->lists == 0) return NULL;
    *count = chosen->start[list + 1] - chosen->start[list];
    return chosen->place + chosen->start[list];
}

void fv_chosen_plan(const fv_chosen *chosen, int64_t keys, fv_plan *plan)
{
    bool blocks = chosen->blocks > 0;

    if (chosen->lists == 0) return;
    plan->lists = (fv_lists){.query_block = 1,
                             .key_block = 1,
                             .groups = 1,
                             .key_blocks = blocks ? chosen->blocks : keys,
                             .key_start = blocks ? chosen->edge : NULL,
                             .heads = chosen->lists,
                             .head_stride = chosen->lists > 1,
                             .row_start = blocks ? chosen->first : chosen->start,
                             .entry = blocks ? chosen->entry : chosen->place};
}

struct gather {
    const fv_chosen *chosen;
    int64_t head, heads;
    const fv_tensor *from[2]; /* keys, values */
    fv_tensor out[2];
    size_t row_bytes[2], apart[2]; /* of rows chosen, and between those held */
};

/* The cache lines of a row that is copied soon. */
static void ask(const char *row, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += 64)
        __builtin_prefetch(row + at);
}

/* Keys or values of a head.  Runs of rows that follow each other are copied at once. */
static void gather_item(void *user, int64_t item, int thread)
{
    const struct gather *g = user;
    int64_t side = item / g->heads, head = item % g->heads, count, run;
    size_t bytes = g->row_bytes[side], apart = g->apart[side];
    const int32_t *place = fv_chosen_list(g->chosen, g->head + head, &count);
    fv_tensor own = fv_slice(g->from[side], 1, g->head + head, 1);
    const char *rows = own.data;
    char *out = (char *)g->out[side].data + (size_t)(head * count) * bytes;

    (void)thread;
    for (int64_t i = 0; i < count; i += run) {
        for (run = 1; apart == bytes && i + run < count && place[i + run] == place[i] + run;)
            run++;
        if (run == 1 && i + AHEAD < count) ask(rows + (size_t)place[i + AHEAD] * apart, bytes);
        memcpy(out + (size_t)i * bytes, rows + (size_t)place[i] * apart, (size_t)run * bytes);
    }
}

/* The rows of `heads` heads from `head` on, which are equally many, in the place of all. */
static fv_status gather(fv_ctx *ctx, const fv_chosen *chosen, int64_t head, int64_t heads, fv_attend_args *args)
{
    struct gather g = {.chosen = chosen, .head = head, .heads = heads, .from = {&args->k, &args->v}};
    int64_t count;

    (void)fv_chosen_list(chosen, head, &count);
    for (int side = 0; side < 2; side++) {
        const fv_tensor *from = g.from[side];
        FV_TRY(fv_dtype_bytes(from->dtype, from->dims[3], &g.row_bytes[side]));
        FV_TRY(fv_dtype_bytes(from->dtype, from->strides[2], &g.apart[side]));
        FV_TRY(fv_tensor_new(ctx, &g.out[side], from->dtype, FV_DIMS(1, heads, count, from->dims[3])));
    }
    fv_run(ctx, 2 * heads, gather_item, &g);
    args->k = g.out[0];
    args->v = g.out[1];
    args->plan = NULL; /* no row chosen comes after the query */
    return FV_OK;
}

/* The list of each of `heads` heads from `head` on; scratch memory. */
static fv_status lists_of(fv_ctx *ctx, const fv_chosen *chosen, int64_t head, int64_t heads, const int32_t ***place,
                          int64_t *count)
{
    FV_TRY(FV_SCRATCH(ctx, *place, heads));
    for (int64_t h = 0; h < heads; h++)
        (*place)[h] = fv_chosen_list(chosen, head + h, count);
    return FV_OK;
}

/* The same where some are cold. */
static fv_status gather_cold(fv_ctx *ctx, const fv_chosen *chosen, fv_rows *rows, int64_t head, int64_t heads,
                             fv_attend_args *args)
{
    const int32_t **place;
    int64_t count = 0;

    FV_TRY(lists_of(ctx, chosen, head, heads, &place, &count));
    args->plan = NULL;
    return fv_cold_read(ctx, rows, head, heads, place, count, &args->k, &args->v);
}

void fv_chosen_ahead(fv_ctx *ctx, const fv_chosen *chosen, fv_rows *rows)
{
    fv_mark mark = fv_scratch_mark(ctx);
    const int32_t **place = NULL;
    int64_t count = fv_rows_all(rows, 0);

    if (chosen->lists == 0 || lists_of(ctx, chosen, 0, rows->options.heads, &place, &count) == FV_OK)
        fv_cold_ahead(ctx, rows, place, count);
    fv_scratch_release(ctx, mark);
}

static bool has_long_blocks(const fv_chosen *chosen)
{
    return chosen->blocks > 0 && chosen->start[chosen->lists] >= LONG * chosen->first[chosen->lists];
}

fv_status fv_chosen_read(fv_ctx *ctx, const fv_chosen *chosen, fv_rows *rows, const fv_attend_args *args,
                         fv_tensor *keys)
{
    int64_t heads = rows->options.heads, group = args->q.dims[1] / heads, together = heads, count, other;

    if (keys) *keys = (fv_tensor){0};
    if (chosen->lists == 0 || has_long_blocks(chosen)) return fv_attend(ctx, args);
    (void)fv_chosen_list(chosen, 0, &count);
    for (int64_t g = 1; g < heads; g++) {
        (void)fv_chosen_list(chosen, g, &other);
        if (other != count) together = 1;
    }
    for (int64_t g = 0; g < heads; g += together) {
        fv_attend_args part = *args;
        part.q = fv_slice(&args->q, 1, g * group, together * group);
        part.o = fv_slice(&args->o, 1, g * group, together * group);
        if (fv_present(&args->lse)) part.lse = fv_slice(&args->lse, 1, g * group, together * group);
        FV_TRY(fv_present(&args->k) ? gather(ctx, chosen, g, together, &part)
                                    : gather_cold(ctx, chosen, rows, g, together, &part));
        FV_TRY(fv_attend(ctx, &part));
        if (keys && together == heads) *keys = part.k;
    }
    return FV_OK;
}

/* ---- weights ----------------------------------------------------------------------------------------------------- */

static fv_status softmax_scores(fv_ctx *ctx, const fv_tensor *scores, const fv_logits *logits, int64_t first,
                                const fv_tensor *weight)
{
    int64_t queries = scores->dims[2], keys = scores->dims[3];

    if (logits->softcap > 0)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.op = FV_MAP_SOFTCAP, .x = *scores, .out = *scores, .alpha = logits->softcap}));
    for (int64_t h = 0; h < scores->dims[1]; h++)
        for (int64_t i = 0; i < queries; i++)
            for (int64_t j = first + i; j < keys; j++)
                ((float *)scores->data)[(h * queries + i) * keys + j] = -INFINITY;
    return fv_softmax(ctx, &(fv_softmax_args){.x = *scores, .out = *weight});
}

fv_status fv_query_weights(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, const fv_logits *logits, int64_t first,
                           fv_tensor *weight)
{
    int64_t heads = q->dims[1], queries = q->dims[2], dim = q->dims[3], keys = k->dims[2], key_heads = k->dims[1];
    int64_t group = heads / key_heads;
    fv_gemm_args product = {.alpha = logits->scale != 0 ? logits->scale : 1 / sqrtf((float)dim)};
    fv_precision before = ctx->precision;
    fv_tensor scores;
    fv_status status;

    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(1, heads, queries, keys)));
    FV_TRY(fv_tensor_new(ctx, weight, FV_F32, 4, scores.dims));
    product.a = fv_view(q, 4, (const int64_t[]){key_heads, group, queries, dim},
                        (const int64_t[]){group * q->strides[1], q->strides[1], q->strides[2], q->strides[3]}, 0);
    product.b = fv_view(k, 4, (const int64_t[]){key_heads, 1, dim, keys},
                        (const int64_t[]){k->strides[1], 0, k->strides[3], k->strides[2]}, 0);
    product.c = fv_reshaped(&scores, FV_DIMS(key_heads, group, queries, keys));
    ctx->precision = FV_PRECISION_F32;
    status = fv_gemm(ctx, &product);
    if (status == FV_OK) status = softmax_scores(ctx, &scores, logits, first, weight);
    ctx->precision = before;
    return status;
}

fv_status fv_call_weights(fv_ctx *ctx, fv_rows *rows, const fv_policy_call *call, int64_t head, int64_t heads,
                          fv_tensor *sums)
{
    int64_t group = call->q.dims[1] / rows->options.heads, held = fv_rows_all(rows, head);
    fv_tensor q = fv_slice(&call->q, 1, head * group, heads * group), k, v;
    fv_plan plan = {.causal = true, .offset = call->offset};

    FV_TRY(fv_rows_view_all(ctx, rows, head, heads, &k, &v));
    if (call->queries == 1) return fv_query_weights(ctx, &q, &k, &call->logits, held, sums);
    if (held == fv_rows_count(rows, head) && !fv_rows_complete(rows, head))
        plan.key_position = fv_rows_positions(rows, head);
    FV_TRY(fv_tensor_new(ctx, sums, FV_F32, FV_DIMS(1, heads * group, held)));
    return fv_attend_stats(ctx, &(fv_stats_args){.q = q,
                                                 .k = k,
                                                 .lse = fv_slice(&call->lse, 1, head * group, heads * group),
                                                 .plan = &plan,
                                                 .logits = call->logits,
                                                 .column_sum = *sums});
}
