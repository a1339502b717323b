#include "app/picture.h"

#include <string.h>

#include "base/memory.h"

enum { ROWS = 64 }; /* queries looked at together */

/* ---- cells ------------------------------------------------------------------------------------------------------ */

fv_status app_picture_new(app_picture *p, bool keep_map)
{
    int64_t plane;

    p->cells = fv_min(p->size, APP_PICTURE_CELLS);
    plane = p->cells * p->cells;
    FV_TRY(FV_ZALLOC(p->even, plane));
    FV_TRY(FV_ZALLOC(p->seen, p->heads * plane));
    if (p->weighed) FV_TRY(FV_ZALLOC(p->weight, p->heads * plane));
    FV_TRY(FV_ZALLOC(p->read, p->heads));
    FV_TRY(FV_ZALLOC(p->reached, p->heads));
    return keep_map ? FV_ZALLOC(p->map, p->size * p->size) : FV_OK;
}

void app_picture_free(app_picture *p)
{
    fv_free(p->even);
    fv_free(p->seen);
    fv_free(p->weight);
    fv_free(p->read);
    fv_free(p->reached);
    fv_free(p->map);
    *p = (app_picture){0};
}

static int64_t line_of(const app_picture *p, int64_t position)
{
    return position * p->cells / p->size;
}

/* Whether a query is looked at: of a thin picture the last one of each line. */
static bool looked_at(const app_picture *p, int64_t query)
{
    return query < p->size && (!p->thin || query + 1 == p->size || line_of(p, query + 1) != line_of(p, query));
}

/* Keys that dense attention lets a query see. */
static int64_t keys_of(const app_picture *p, int64_t query)
{
    return p->causal ? query + 1 : p->size;
}

static void count_query(app_picture *p, int64_t query)
{
    int64_t keys = keys_of(p, query);
    float *even = p->even + line_of(p, query) * p->cells;

    for (int64_t j = 0; j < keys; j++)
        even[line_of(p, j)] += 1 / (float)keys;
    p->possible += (double)keys;
    p->queries++;
}

/* What a query of a head reads (sees [keys]), and what attention gives (NULL: unknown). */
static void add_query(app_picture *p, int64_t head, int64_t query, const uint8_t *sees, const float *weight)
{
    int64_t keys = keys_of(p, query), at = (head * p->cells + line_of(p, query)) * p->cells;

    for (int64_t j = 0; j < keys; j++) {
        int64_t cell = at + line_of(p, j);
        bool read = sees[j] != 0;
        p->seen[cell] += read ? 1 / (float)keys : 0;
        p->read[head] += read;
        if (!weight) continue;
        p->weight[cell] += weight[j];
        p->reached[head] += read ? weight[j] : 0;
    }
    for (int64_t j = 0; p->map && j < keys; j++)
        p->map[query * p->size + j] = sees[j] != 0;
}

double app_picture_density(const app_picture *p, int64_t head)
{
    return p->possible > 0 ? p->read[head] / p->possible : 0;
}

double app_picture_reached(const app_picture *p, int64_t head)
{
    return p->queries > 0 ? p->reached[head] / (double)p->queries : 0;
}

/* ---- looking ---------------------------------------------------------------------------------------------------- */

void app_picture_map(app_picture *p, const fv_tensor *map)
{
    for (int64_t i = 0; i < p->size; i++) {
        count_query(p, i);
        add_query(p, 0, i, (const uint8_t *)map->data + i * p->size, NULL);
    }
}

struct looking {
    app_picture *picture;
    const fv_call *call;
    const fv_pairs *pairs;
    const int32_t *place; /* [queries] row of the plan that stands for a query; NULL: the same */
    int64_t rows, query[ROWS];
    fv_tensor weights; /* [1,heads,rows,keys] */
    uint8_t *sees;     /* [heads,keys] */
};

static void look_head(void *user, int64_t head, int thread)
{
    const struct looking *l = user;
    const fv_call *call = l->call;
    uint8_t *sees = l->sees + head * call->keys;

    (void)thread;
    for (int64_t r = 0; r < l->rows; r++) {
        int64_t i = l->query[r];
        fv_pairs_row(l->pairs, call->query_heads, 0, l->picture->first + head, l->place ? l->place[i] : i, call->keys,
                     sees);
        add_query(l->picture, head, call->offset + i, sees, fv_at(&l->weights, 0, head, r, 0));
    }
}

/* The weights of the rows, by attention of them alone, in f32 so that they sum to one. */
static fv_status weigh(fv_ctx *ctx, struct looking *l, const fv_logits *extra, int64_t window)
{
    const fv_call *call = l->call;
    int64_t heads = l->picture->heads, first = l->picture->first, group = call->query_heads / call->key_heads;
    int64_t key_first = first / group, key_heads = (first + heads - 1) / group - key_first + 1;
    fv_precision before = ctx->precision;
    int32_t *from, *to;
    fv_plan plan = {0};
    fv_attend_args args = {.k = fv_slice(&call->k, 1, key_first, key_heads),
                           .v = fv_slice(&call->v, 1, key_first, key_heads),
                           .plan = &plan,
                           .logits = {.scale = call->scale, .softcap = extra->softcap}};

    FV_TRY(FV_SCRATCH(ctx, from, l->rows));
    FV_TRY(FV_SCRATCH(ctx, to, l->rows));
    FV_TRY(fv_tensor_new(ctx, &args.q, FV_F32, FV_DIMS(1, heads, l->rows, call->head_dim)));
    FV_TRY(fv_tensor_new(ctx, &args.o, FV_F32, FV_DIMS(1, heads, l->rows, call->value_dim)));
    FV_TRY(fv_tensor_new(ctx, &l->weights, FV_F32, FV_DIMS(1, heads, l->rows, call->keys)));
    for (int64_t r = 0; r < l->rows; r++) {
        int64_t position = call->offset + l->query[r];
        to[r] = (int32_t)position + 1;
        from[r] = window > 0 ? (int32_t)fv_max(position + 1 - window, 0) : 0;
        for (int64_t h = 0; h < heads; h++)
            for (int64_t d = 0; d < call->head_dim; d++)
                *(float *)fv_at(&args.q, 0, h, r, d) = *(float *)fv_at(&call->q, 0, first + h, l->query[r], d);
    }
    plan.key_from = from;
    plan.key_to = to;
    args.weights = l->weights;
    ctx->precision = FV_PRECISION_F32;
    fv_status status = fv_attend(ctx, &args);
    ctx->precision = before;
    return status;
}

static fv_status look_rows(fv_ctx *ctx, struct looking *l, const fv_logits *extra, int64_t window)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status = weigh(ctx, l, extra, window);

    if (status == FV_OK) status = FV_SCRATCH(ctx, l->sees, l->picture->heads * l->call->keys);
    for (int64_t r = 0; r < l->rows && status == FV_OK; r++)
        count_query(l->picture, l->call->offset + l->query[r]);
    if (status == FV_OK) fv_run(ctx, l->picture->heads, look_head, l);
    fv_scratch_release(ctx, mark);
    l->rows = 0;
    return status;
}

fv_status app_picture_look(app_picture *p, fv_ctx *ctx, const fv_call *call, const fv_logits *extra, int64_t window,
                           const fv_pairs *pairs)
{
    struct looking l = {.picture = p, .call = call, .pairs = pairs};
    int32_t *place = NULL;

    if (pairs->query_order) {
        FV_TRY(FV_SCRATCH(ctx, place, call->queries));
        for (int64_t i = 0; i < call->queries; i++)
            place[pairs->query_order[i]] = (int32_t)i;
    }
    l.place = place;
    for (int64_t i = 0; i < call->queries; i++) {
        if (looked_at(p, call->offset + i)) l.query[l.rows++] = i;
        if (l.rows == ROWS || (l.rows > 0 && i + 1 == call->queries)) FV_TRY(look_rows(ctx, &l, extra, window));
    }
    return FV_OK;
}
