#include "attention/sparse/order.h"

#include "attention/sparse/core.h"

/* ---- by keys ----------------------------------------------------------------------------------------------------- */

static fv_status new_order(fv_ctx *ctx, int64_t batches, int64_t heads, int64_t tokens, fv_order *order)
{
    FV_TRY(fv_tensor_new(ctx, &order->order, FV_I32, FV_DIMS(batches, heads, tokens)));
    return fv_tensor_new(ctx, &order->place, FV_I32, FV_DIMS(batches, heads, tokens));
}

/* The places of an order that is there. */
static void invert(fv_order *order)
{
    const int32_t *from = order->order.data;
    int32_t *to = order->place.data;
    int64_t tokens = order->order.dims[2], count = fv_tensor_count(&order->order);

    for (int64_t n = 0; n < count; n++)
        to[n / tokens * tokens + from[n]] = (int32_t)(n % tokens);
}

fv_status fv_order_by_key(fv_ctx *ctx, const int32_t *keys, int64_t batches, int64_t heads, int64_t tokens,
                          int64_t bound, fv_order *order, int64_t *start)
{
    int64_t lists = batches * heads;

    FV_TRY(new_order(ctx, batches, heads, tokens, order));
    if (!start) FV_TRY(FV_SCRATCH(ctx, start, lists * (bound + 1)));
    FV_TRY(fv_sort_by_key(ctx, keys, lists, tokens, bound, order->order.data, start));
    invert(order);
    return FV_OK;
}

/* ---- on a grid --------------------------------------------------------------------------------------------------- */

/* Depth, height and width, the first ones 1 where the grid has fewer axes. */
static void spread(const fv_tuple *grid, int64_t size[3])
{
    for (int a = 0; a < 3; a++)
        size[a] = a < 3 - grid->count ? 1 : grid->items[a - 3 + grid->count];
}

fv_status fv_order_tiles(fv_ctx *ctx, const fv_tuple *grid, const int64_t tile[3], int64_t tokens, fv_order *order)
{
    int64_t size[3], across[3];
    int32_t *key;

    spread(grid, size);
    for (int a = 0; a < 3; a++)
        across[a] = fv_ceil_div(size[a], tile[a]);
    FV_TRY(FV_SCRATCH(ctx, key, tokens));
    for (int64_t t = 0; t < tokens; t++) {
        int64_t x = t % size[2], y = t / size[2] % size[1], z = t / size[2] / size[1];
        key[t] = (int32_t)fv_min((z / tile[0] * across[1] + y / tile[1]) * across[2] + x / tile[2],
                                 across[0] * across[1] * across[2]); /* behind the grid: last */
    }
    return fv_order_by_key(ctx, key, 1, 1, tokens, across[0] * across[1] * across[2] + 1, order, NULL);
}

typedef struct vector {
    int64_t x, y, z;
} vector;

static vector plus(vector a, vector b)
{
    return (vector){a.x + b.x, a.y + b.y, a.z + b.z};
}

static vector minus(vector a)
{
    return (vector){-a.x, -a.y, -a.z};
}

static int64_t floor_half(int64_t a)
{
    return (a - (a < 0)) / 2;
}

/* Vectors here lie on an axis. */
static int64_t length(vector a)
{
    int64_t sum = a.x + a.y + a.z;

    return sum < 0 ? -sum : sum;
}

static vector unit(vector a)
{
    return (vector){(a.x > 0) - (a.x < 0), (a.y > 0) - (a.y < 0), (a.z > 0) - (a.z < 0)};
}

/* About half of it, an even number of steps if it can be. */
static vector half(vector a)
{
    vector h = {floor_half(a.x), floor_half(a.y), floor_half(a.z)};

    return length(h) % 2 != 0 && length(a) > 2 ? plus(h, unit(a)) : h;
}

struct curve {
    const int64_t *size;
    int32_t *order;
    int64_t count;
};

static void visit(struct curve *c, vector at, vector step, int64_t count)
{
    for (; count > 0; count--, at = plus(at, step))
        c->order[c->count++] = (int32_t)((at.z * c->size[1] + at.y) * c->size[2] + at.x);
}

/* Fills the box of a, b and c at p, from its corner on, so that it ends beside p + a. */
static void fill(struct curve *curve, vector p, vector a, vector b, vector c)
{
    int64_t w = length(a), h = length(b), d = length(c);
    vector a2 = half(a), b2 = half(b), c2 = half(c), a1 = plus(a, minus(a2)), b1 = plus(b, minus(b2));
    vector c1 = plus(c, minus(c2)), a_end = plus(a, minus(unit(a))), c_end = plus(c, minus(unit(c)));
    vector b_turn = plus(b2, minus(unit(b))), c_turn = plus(c2, minus(unit(c)));

    if (h == 1 && d == 1) {
        visit(curve, p, unit(a), w);
    } else if (w == 1 && d == 1) {
        visit(curve, p, unit(b), h);
    } else if (w == 1 && h == 1) {
        visit(curve, p, unit(c), d);
    } else if (2 * w > 3 * h && 2 * w > 3 * d) { /* long: one half behind the other */
        fill(curve, p, a2, b, c);
        fill(curve, plus(p, a2), a1, b, c);
    } else if (3 * h > 4 * d) { /* flat: up, across, down */
        fill(curve, p, b2, c, a2);
        fill(curve, plus(p, b2), a, b1, c);
        fill(curve, plus(p, plus(a_end, b_turn)), minus(b2), c, minus(a1));
    } else if (3 * d > 4 * h) {
        fill(curve, p, c2, a2, b);
        fill(curve, plus(p, c2), a, b, c1);
        fill(curve, plus(p, plus(a_end, c_turn)), minus(c2), minus(a1), b);
    } else {
        fill(curve, p, b2, c2, a2);
        fill(curve, plus(p, b2), c, a2, b1);
        fill(curve, plus(p, plus(b_turn, c_end)), a, minus(b2), minus(c1));
        fill(curve, plus(p, plus(a_end, plus(b2, c_end))), minus(c), minus(a1), b1);
        fill(curve, plus(p, plus(a_end, b_turn)), minus(b2), c2, minus(a1));
    }
}

fv_status fv_order_curve(fv_ctx *ctx, const fv_tuple *grid, int64_t tokens, fv_order *order)
{
    int64_t size[3];
    struct curve curve = {.size = size};
    vector x, y, z, origin = {0, 0, 0};

    spread(grid, size);
    FV_TRY(new_order(ctx, 1, 1, tokens, order));
    curve.order = order->order.data;
    x = (vector){size[2], 0, 0};
    y = (vector){0, size[1], 0};
    z = (vector){0, 0, size[0]};
    if (size[2] >= size[1] && size[2] >= size[0]) /* along the longest axis */
        fill(&curve, origin, x, y, z);
    else if (size[1] >= size[2] && size[1] >= size[0])
        fill(&curve, origin, y, x, z);
    else
        fill(&curve, origin, z, x, y);
    for (; curve.count < tokens; curve.count++)
        curve.order[curve.count] = (int32_t)curve.count;
    invert(order);
    return FV_OK;
}

fv_status fv_order_frame(fv_ctx *ctx, const int64_t size[2], const int64_t first[2], const int64_t frame[2],
                         fv_tensor *index)
{
    int64_t cells = frame[0] * frame[1];

    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(1, 1, cells)));
    for (int64_t n = 0; n < cells; n++) {
        int64_t y = n / frame[1] - first[0], x = n % frame[1] - first[1];
        bool inside = y >= 0 && y < size[0] && x >= 0 && x < size[1];
        ((int32_t *)index->data)[n] = inside ? (int32_t)(y * size[1] + x) : -1;
    }
    return FV_OK;
}

/* ---- by clusters ------------------------------------------------------------------------------------------------- */

enum { ROUNDS = 4 };

struct clustering {
    const fv_tensor *features;
    fv_tensor centres; /* [B,1,K,C] */
    fv_tensor halves;  /* [B,1,1,K]: half of the square of each centre */
    int32_t *label;    /* [B,tokens] */
    int64_t tokens;
};

/* The nearest centre has the largest x.c - c.c / 2. */
static fv_status label_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct clustering *c = user;
    int64_t count = scores->dims[2];
    fv_tensor best;

    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = *scores, .y = c->halves, .out = *scores}));
    FV_TRY(fv_tensor_new(ctx, &best, FV_I32, FV_DIMS(scores->dims[0], 1, count, 1)));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = *scores, .index = best}));
    for (int64_t n = 0; n < scores->dims[0] * count; n++) /* what is near nothing is in the first one */
        c->label[n / count * c->tokens + from + n % count] = (int32_t)fv_max(((int32_t *)best.data)[n], 0);
    return FV_OK;
}

static fv_status measure(fv_ctx *ctx, struct clustering *c)
{
    static const float one = 1;
    int64_t B = c->centres.dims[0], K = c->centres.dims[2], C = c->centres.dims[3];
    const fv_tensor ones = {.data = (void *)&one, .dtype = FV_F32, .rank = 2, .dims = {C, 1}};
    fv_tensor squares;

    FV_TRY(fv_tensor_new(ctx, &squares, FV_F32, 4, c->centres.dims));
    FV_TRY(fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = c->centres, .y = c->centres, .out = squares, .alpha = 0.5f}));
    return fv_gemm(ctx, &(fv_gemm_args){.a = squares, .b = ones, .c = fv_reshaped(&c->halves, FV_DIMS(B, 1, K, 1))});
}

/* Centres of batch b to the mean of their tokens; those without any stay. */
static fv_status move_centres(fv_ctx *ctx, struct clustering *c, int64_t b)
{
    int64_t K = c->centres.dims[2], C = c->centres.dims[3], n = c->features->dims[2], *start;
    fv_tensor rows = fv_slice(c->features, 0, b, 1), sorted, means;
    fv_order order;

    FV_TRY(FV_SCRATCH(ctx, start, K + 1));
    FV_TRY(fv_order_by_key(ctx, c->label + b * c->tokens, 1, 1, n, K, &order, start));
    FV_TRY(fv_order_rows(ctx, &order.order, &rows, &sorted));
    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(1, 1, K, C)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = sorted, .out = means, .start = start}));
    for (int64_t k = 0; k < K; k++)
        if (start[k] < start[k + 1])
            memcpy(fv_at(&c->centres, b, 0, k, 0), fv_at(&means, 0, 0, k, 0), (size_t)C * sizeof(float));
    return FV_OK;
}

static fv_status cluster(fv_ctx *ctx, struct clustering *c)
{
    int64_t B = c->centres.dims[0], K = c->centres.dims[2], n = c->features->dims[2];
    fv_tensor first;

    FV_TRY(fv_tensor_new(ctx, &first, FV_I32, FV_DIMS(1, 1, K)));
    for (int64_t k = 0; k < K; k++)
        ((int32_t *)first.data)[k] = (int32_t)(k * n / K);
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = *c->features, .index = first, .out = c->centres}));
    for (int round = 0; round <= ROUNDS; round++) {
        for (int64_t b = 0; b < B && round > 0; b++)
            FV_TRY(move_centres(ctx, c, b));
        FV_TRY(measure(ctx, c));
        FV_TRY(fv_score_rows(ctx, c->features, &c->centres, 1, label_rows, c));
    }
    return FV_OK;
}

fv_status fv_order_clusters(fv_ctx *ctx, const fv_tensor *features, int64_t clusters, int64_t tokens, fv_order *order)
{
    int64_t B = features->dims[0], n = features->dims[2], K = fv_clamp(clusters, 1, n);
    struct clustering c = {.features = features, .tokens = tokens};

    FV_TRY(FV_SCRATCH(ctx, c.label, B * tokens));
    for (int64_t t = 0; t < B * tokens; t++)
        c.label[t] = (int32_t)K; /* behind all */
    FV_TRY(fv_tensor_new(ctx, &c.centres, FV_F32, FV_DIMS(B, 1, K, features->dims[3])));
    FV_TRY(fv_tensor_new(ctx, &c.halves, FV_F32, FV_DIMS(B, 1, 1, K)));
    if (n > 0) FV_TRY(cluster(ctx, &c));
    return fv_order_by_key(ctx, c.label, B, 1, tokens, K + 1, order, NULL);
}

/* ---- rows -------------------------------------------------------------------------------------------------------- */

fv_status fv_order_rows(fv_ctx *ctx, const fv_tensor *index, const fv_tensor *x, fv_tensor *out)
{
    int64_t rows = index->dims[index->rank - 1];
    fv_tensor plain = *x;

    if (fv_dtype_block(x->dtype) > 1 || x->strides[3] != 1) FV_TRY(fv_plain(ctx, x, &plain)); /* others in one pass */
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(x->dims[0], x->dims[1], rows, x->dims[3])));
    return fv_gather(ctx, &(fv_gather_args){.x = plain, .index = *index, .out = *out});
}

fv_status fv_order_back(fv_ctx *ctx, const fv_order *order, const fv_tensor *x, const fv_tensor *out)
{
    bool numbers = out->rank == 3;

    return fv_gather(ctx, &(fv_gather_args){.x = numbers ? fv_expanded(x, 3) : *x,
                                            .index = order->place,
                                            .out = numbers ? fv_expanded(out, 3) : *out});
}

fv_status fv_order_call(fv_ctx *ctx, const fv_order *order, const fv_call *call, fv_call *laid)
{
    *laid = *call;
    if (!fv_present(&order->order)) return FV_OK;
    laid->kept = NULL;
    FV_TRY(fv_order_rows(ctx, &order->order, &call->q, &laid->q));
    FV_TRY(fv_order_rows(ctx, &order->order, &call->k, &laid->k));
    FV_TRY(fv_order_rows(ctx, &order->order, &call->v, &laid->v));
    FV_TRY(fv_tensor_new(ctx, &laid->o, FV_F32, 4, call->o.dims));
    return fv_present(&call->lse) ? fv_tensor_new(ctx, &laid->lse, FV_F32, 3, call->o.dims) : FV_OK;
}

fv_status fv_order_call_back(fv_ctx *ctx, const fv_order *order, const fv_call *laid, const fv_call *call)
{
    if (!fv_present(&order->order)) return FV_OK;
    if (fv_present(&call->lse)) FV_TRY(fv_order_back(ctx, order, &laid->lse, &call->lse));
    return fv_order_back(ctx, order, &laid->o, &call->o);
}
