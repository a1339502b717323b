#include "cache/selection.h"

#include <math.h>

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
    return (int64_t)(fmin((double)weight, 0x1p24) * unit + 0.5);
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
    for (int64_t j = 0; j < count; j++) {
        double sum = 0;
        for (int64_t h = 0; h < heads; h++)
            sum += (double)weight[h * apart + j];
        out[j] = (float)sum;
    }
}

/* ---- the rows a step reads -------------------------------------------------------------------------------------- */

void fv_chosen_free(fv_chosen *chosen)
{
    fv_free(chosen->place);
    fv_free(chosen->start);
    *chosen = (fv_chosen){0};
}

size_t fv_chosen_bytes(const fv_chosen *chosen)
{
    return (size_t)chosen->places_room * sizeof *chosen->place + (size_t)chosen->lists_room * sizeof *chosen->start;
}

fv_status fv_chosen_begin(fv_chosen *chosen, int64_t lists, int64_t most)
{
    chosen->lists = 0;
    FV_TRY(FV_GROW(chosen->place, chosen->places_room, fv_max(lists * most, 1)));
    FV_TRY(FV_GROW(chosen->start, chosen->lists_room, lists + 1));
    chosen->start[0] = 0;
    return FV_OK;
}

void fv_chosen_next(fv_chosen *chosen)
{
    chosen->lists++;
    chosen->start[chosen->lists] = chosen->start[chosen->lists - 1];
}

void fv_chosen_add(fv_chosen *chosen, int64_t place, int64_t count)
{
    int64_t *end = &chosen->start[chosen->lists];

    for (int64_t i = 0; i < count; i++)
        chosen->place[(*end)++] = (int32_t)(place + i);
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
    if (chosen->lists == 0) return;
    plan->lists = (fv_lists){.query_block = 1,
                             .key_block = 1,
                             .groups = 1,
                             .key_blocks = keys,
                             .heads = chosen->lists,
                             .head_stride = chosen->lists > 1,
                             .row_start = chosen->start,
                             .entry = chosen->place};
}

struct gather {
    const fv_chosen *chosen;
    const fv_tensor *from;
    int64_t head;
    fv_tensor out;
    size_t row_bytes, apart; /* of rows chosen, and between those held */
};

/* Runs of rows that follow each other are copied at once. */
static void gather_head(void *user, int64_t item, int thread)
{
    const struct gather *g = user;
    int64_t count, head = g->head + item, run;
    const int32_t *place = fv_chosen_list(g->chosen, head, &count);
    fv_tensor rows = fv_slice(g->from, 1, head, 1);
    char *out = (char *)g->out.data + (size_t)(item * count) * g->row_bytes;

    (void)thread;
    for (int64_t i = 0; i < count; i += run) {
        for (run = 1; g->apart == g->row_bytes && i + run < count && place[i + run] == place[i] + run;)
            run++;
        memcpy(out + (size_t)i * g->row_bytes, (const char *)rows.data + (size_t)place[i] * g->apart,
               (size_t)run * g->row_bytes);
    }
}

/* The rows of `heads` heads from `head` on, which are equally many. */
static fv_status gather(fv_ctx *ctx, const fv_chosen *chosen, const fv_tensor *rows, int64_t head, int64_t heads,
                        fv_tensor *out)
{
    struct gather g = {.chosen = chosen, .from = rows, .head = head};
    int64_t count;

    (void)fv_chosen_list(chosen, head, &count);
    FV_TRY(fv_dtype_bytes(rows->dtype, rows->dims[3], &g.row_bytes));
    FV_TRY(fv_dtype_bytes(rows->dtype, rows->strides[2], &g.apart));
    FV_TRY(fv_tensor_new(ctx, &g.out, rows->dtype, FV_DIMS(1, heads, count, rows->dims[3])));
    fv_run(ctx, heads, gather_head, &g);
    *out = g.out;
    return FV_OK;
}

fv_status fv_chosen_read(fv_ctx *ctx, const fv_chosen *chosen, const fv_attend_args *args, fv_tensor *keys)
{
    int64_t heads = args->k.dims[1], group = args->q.dims[1] / heads, together = heads, count, other;

    if (keys) *keys = (fv_tensor){0};
    if (chosen->lists == 0) return fv_attend(ctx, args);
    (void)fv_chosen_list(chosen, 0, &count);
    for (int64_t g = 1; g < heads; g++) {
        (void)fv_chosen_list(chosen, g, &other);
        if (other != count) together = 1;
    }
    for (int64_t g = 0; g < heads; g += together) {
        fv_attend_args part = *args;
        part.plan = NULL; /* no row chosen comes after the query */
        part.q = fv_slice(&args->q, 1, g * group, together * group);
        part.o = fv_slice(&args->o, 1, g * group, together * group);
        if (fv_present(&args->lse)) part.lse = fv_slice(&args->lse, 1, g * group, together * group);
        FV_TRY(gather(ctx, chosen, &args->k, g, together, &part.k));
        FV_TRY(gather(ctx, chosen, &args->v, g, together, &part.v));
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

fv_status fv_call_weights(fv_ctx *ctx, const fv_rows *rows, const fv_policy_call *call, int64_t head, int64_t heads,
                          fv_tensor *sums)
{
    int64_t group = call->q.dims[1] / rows->options.heads, held = fv_rows_count(rows, head);
    fv_tensor q = fv_slice(&call->q, 1, head * group, heads * group), k, v;
    fv_plan plan = {.causal = true, .offset = call->offset};

    fv_rows_view(rows, head, heads, &k, &v);
    if (call->queries == 1) return fv_query_weights(ctx, &q, &k, &call->logits, held, sums);
    if (!fv_rows_complete(rows, head)) plan.key_position = fv_rows_positions(rows, head);
    FV_TRY(fv_tensor_new(ctx, sums, FV_F32, FV_DIMS(1, heads * group, held)));
    return fv_attend_stats(ctx, &(fv_stats_args){.q = q,
                                                 .k = k,
                                                 .lse = fv_slice(&call->lse, 1, head * group, heads * group),
                                                 .plan = &plan,
                                                 .logits = call->logits,
                                                 .column_sum = *sums});
}
