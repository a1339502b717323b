/* Pyramid sparse attention: each pair of a query block and a key block has a level, at which keys are read by
 * themselves, as means of 2, 4 or 8 with the logarithm of their number added, or not at all.  arXiv 2512.04025. */
#include "attention/sparse/psa.h"

#include <math.h>

#include "attention/sparse/core.h"
#include "attention/sparse/order.h"

enum { ORDER_NONE, ORDER_GILBERT, ORDER_TILE, ORDER_KMEANS };
static const char *const modes[] = {"auto", "topk", "bound", "energy", NULL};
static const char *const estimates[] = {"sample", "antidiagonal", NULL};
static const char *const orders[] = {"none", "gilbert", "tile", "kmeans", NULL};

static const fv_option options[] = {
    FV_INT(struct psa, block_q, 128, 1, INT32_MAX, "queries of a block"),
    FV_INT(struct psa, block_k, 128, 8, 1 << 24, "keys of a block, a multiple of 8"),
    FV_INT(struct psa, tile, 32, 1, 1 << 20, "keys of a kernel's tile, which intervals of ranks fill"),
    FV_ENUM(struct psa, mode, "auto", modes,
            "ranks get levels by their number, by their share of the importance and one more, or within shares; auto: "
            "bound, or causal topk"),
    FV_FLOATS(struct psa, bounds, "0.4+0.5+0.6+0.8", 0, 1, "shares of levels 1, 2, 4, 8 and those before"),
    FV_FLOATS(struct psa, widths, "0", 0, 1, "shares of ranks (0: 0.1+0.05+0+0.2, causal 0.05+0.1+0.1+0.25)"),
    FV_FLOAT(struct psa, min_full, 0.06, 0, 1, "least share of level 1 by bound, unless causal"),
    FV_BOOL(struct psa, round, 1, "intervals of ranks fill tiles, unless causal"),
    FV_INT(struct psa, sample, 0, 0, 1 << 24, "rows of a block that are compared (0: block_k / 4)"),
    FV_ENUM(struct psa, estimate, "sample", estimates, "of importance"),
    FV_FLOATS(struct psa, sim_cap, "0", -1, 1, "least mean cosines of keys for levels 2, 4, 8 (0: none)"),
    FV_BOOL(struct psa, log_bias, 1, "a mean weighs as much as its keys"),
    FV_INT(struct psa, text, 0, 0, INT32_MAX, "last tokens, at level 1"),
    FV_TUPLE(struct psa, grid, "0", 0, INT32_MAX, "tokens before the text along 1 to 3 axes, row-major"),
    FV_ENUM(struct psa, order, "none", orders, "tokens are laid out along a curve, in tiles of 2 x 8 x 8, by cluster"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_FIXED("importance", "[1|B, 1|H, nq, nk]", "of key blocks for query blocks (estimated)"),
    FV_PARAM_OF(FV_I32, "levels", "[1|B, 1|H, nq, nk]", "0, 1, 2, 4 or 8, in place of all choice"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    struct psa_blocks blocks;

    (void)values;
    psa_blocks_of(call, &blocks);
    return strcmp(name, "nq") == 0 ? blocks.queries : strcmp(name, "nk") == 0 ? blocks.keys : -1;
}

static int64_t ahead(const void *values)
{
    return ((const struct psa *)values)->block_q;
}

static fv_status check(const void *values)
{
    const struct psa *o = values;
    double sum = 0;

    if (o->block_k % 8 != 0)
        return fv_fail(FV_E_USAGE, "psa: option 'block_k': expected a multiple of 8, got %lld", (long long)o->block_k);
    if (o->estimate == PSA_ANTIDIAGONAL && (o->block_q % PSA_STRIDE != 0 || o->block_k % PSA_STRIDE != 0))
        return fv_fail(FV_E_USAGE,
                       "psa: options 'block_q' and 'block_k': estimate=antidiagonal expects multiples of %d, "
                       "got %lld and %lld",
                       PSA_STRIDE, (long long)o->block_q, (long long)o->block_k);
    if (o->bounds.count > PSA_LEVELS || o->widths.count > PSA_LEVELS)
        return fv_fail(FV_E_USAGE, "psa: options 'bounds' and 'widths': expected at most %d numbers, got %d and %d",
                       PSA_LEVELS, o->bounds.count, o->widths.count);
    for (int n = 1; n < o->bounds.count; n++)
        if (o->bounds.items[n] < o->bounds.items[n - 1])
            return fv_fail(FV_E_USAGE, "psa: option 'bounds': expected rising numbers, got %g after %g",
                           o->bounds.items[n], o->bounds.items[n - 1]);
    for (int n = 0; n < o->widths.count; n++)
        sum += o->widths.items[n];
    if (sum > 1 + 1e-9) return fv_fail(FV_E_USAGE, "psa: option 'widths': expected a sum of at most 1, got %g", sum);
    if (o->sim_cap.count != 3 && (o->sim_cap.count != 1 || o->sim_cap.items[0] != 0))
        return fv_fail(FV_E_USAGE, "psa: option 'sim_cap': expected 0 or three cosines, got %d numbers",
                       o->sim_cap.count);
    if (o->grid.count > 3)
        return fv_fail(FV_E_USAGE, "psa: option 'grid': expected 1 to 3 axes, got %d", o->grid.count);
    if ((o->order == ORDER_GILBERT || o->order == ORDER_TILE) && o->grid.items[0] == 0)
        return fv_fail(FV_E_USAGE, "psa: option 'grid' must be given for order=%s", orders[o->order]);
    return FV_OK;
}

static fv_status accept_levels(const fv_tensor *t)
{
    for (int64_t n = 0; fv_present(t) && n < fv_tensor_count(t); n++) {
        int64_t last = t->dims[3], row = n / last;
        int32_t level = *(int32_t *)fv_at(t, row / t->dims[2] / t->dims[1], row / t->dims[2] % t->dims[1],
                                          row % t->dims[2], n % last);
        if (level != 0 && level != 1 && level != 2 && level != 4 && level != 8)
            return fv_fail(FV_E_SHAPE, "psa: param 'levels': expected 0, 1, 2, 4 or 8, got %d", level);
    }
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct psa *o = call->options;
    int64_t cells = 1, tokens = fv_max(call->queries - o->text, 0);

    FV_TRY(accept_levels(&call->param[PSA_GIVEN]));
    if (o->order == ORDER_NONE) return FV_OK;
    if (call->causal) return fv_fail(FV_E_USAGE, "psa: order=%s cannot be causal", orders[o->order]);
    if (call->queries != call->keys)
        return fv_fail(FV_E_SHAPE, "psa: order=%s: expected as many queries as keys, got %lld and %lld",
                       orders[o->order], (long long)call->queries, (long long)call->keys);
    for (int a = 0; a < o->grid.count; a++)
        if (!fv_mul_i64(cells, o->grid.items[a], &cells)) cells = INT64_MAX;
    if (o->order == ORDER_KMEANS || cells == tokens) return FV_OK;
    return fv_fail(FV_E_SHAPE, "psa: option 'grid': it has %lld cells, but there are %lld tokens before the text",
                   (long long)cells, (long long)tokens);
}

/* ---- the pyramid ------------------------------------------------------------------------------------------------- */

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct psa *o = call->options;

    *width = kind == 0 ? call->head_dim : call->value_dim;
    return keys / o->block_k * fv_pyramid_rows(o->block_k);
}

static fv_status pool_keys(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    return fv_pyramid_pool(ctx, &call->k, ((const struct psa *)call->options)->block_k, from, out);
}

static fv_status pool_values(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    return fv_pyramid_pool(ctx, &call->v, ((const struct psa *)call->options)->block_k, from, out);
}

/* ---- who reads what ---------------------------------------------------------------------------------------------- */

/* What is attended to. */
struct pyramid {
    fv_call call; /* with q, k and v in their order */
    struct psa_blocks blocks;
    fv_order order; /* absent: their own */
    uint8_t *level; /* [B,H,query blocks,key blocks] */
    int64_t pooled; /* key blocks up to the last one that is read by means */
};

/* What lists are made of: for each key block and level from `lowest` to `highest` (0 to 3) a cell of columns. */
struct cells {
    int64_t count, *start;      /* [count + 1]; NULL: of a block each */
    int64_t of_block, of_level; /* from one block's, or level's, to the next one's */
    int lowest, highest;
    int32_t *position; /* [columns]; NULL: the columns' own */
};

static fv_status choose_order(fv_ctx *ctx, const fv_call *call, fv_order *order)
{
    static const int64_t tile[3] = {2, 8, 8};
    const struct psa *o = call->options;
    int64_t N = call->queries, before = fv_max(N - o->text, 0);
    fv_tensor k, joined;

    if (o->order == ORDER_GILBERT) return fv_order_curve(ctx, &o->grid, N, order);
    if (o->order == ORDER_TILE) return fv_order_tiles(ctx, &o->grid, tile, N, order);
    FV_TRY(fv_plain(ctx, &call->k, &k));
    FV_TRY(fv_tensor_new(ctx, &joined, FV_F32, FV_DIMS(call->batch, N, call->key_heads, call->head_dim)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = fv_permuted(&k, (const int[]){0, 2, 1, 3}), .out = joined}));
    joined = fv_reshaped(&joined, FV_DIMS(call->batch, 1, N, call->key_heads * call->head_dim));
    joined = fv_slice(&joined, 2, 0, before);
    return fv_order_clusters(ctx, &joined, fv_ceil_div(before, o->block_k), N, order);
}

static fv_status lay_out(fv_ctx *ctx, const fv_call *call, struct pyramid *p)
{
    p->call = *call;
    if (((const struct psa *)call->options)->order == ORDER_NONE) return FV_OK;
    FV_TRY_CHOOSING(ctx, choose_order(ctx, call, &p->order));
    FV_TRY(fv_order_call(ctx, &p->order, call, &p->call));
    p->call.kept = NULL;
    return FV_OK;
}

static fv_status make_lists(fv_ctx *ctx, const struct pyramid *p, const struct cells *cells, fv_plan *plan)
{
    const fv_call *call = &p->call;
    const struct psa *o = call->options;
    fv_list_builder lists;

    if (call->causal) plan->key_position = cells->position;
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = o->block_q,
                                           .key_block = o->block_k,
                                           .key_start = cells->start,
                                           .key_blocks = cells->count,
                                           .batches = call->batch,
                                           .heads = call->query_heads,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = p->blocks.offset}));
    for (int64_t row = 0; row < lists.rows; row++) {
        const uint8_t *level = p->level + row * p->blocks.keys;
        fv_lists_row(&lists);
        for (int64_t j = 0; j < p->blocks.keys; j++) {
            int n = level[j] ? __builtin_ctz(level[j]) : -1;
            if (n >= cells->lowest && n <= cells->highest)
                fv_lists_add(&lists, j * cells->of_block + (n - cells->lowest) * cells->of_level);
        }
    }
    return fv_lists_end(&lists, plan);
}

static fv_status choose(fv_ctx *ctx, struct pyramid *p)
{
    const fv_call *call = &p->call;

    psa_blocks_of(call, &p->blocks);
    FV_TRY(FV_SCRATCH(ctx, p->level, call->batch * call->query_heads * p->blocks.queries * p->blocks.keys));
    FV_TRY(psa_levels(ctx, call, &p->blocks, p->level));
    for (int64_t row = 0; row < call->batch * call->query_heads * p->blocks.queries; row++)
        for (int64_t j = p->pooled; j < p->blocks.keys; j++)
            if (p->level[row * p->blocks.keys + j] > 1) p->pooled = j + 1;
    return FV_OK;
}

static fv_status prepare(fv_ctx *ctx, const fv_call *call, struct pyramid *p)
{
    *p = (struct pyramid){0};
    FV_TRY(lay_out(ctx, call, p));
    FV_TRY_CHOOSING(ctx, choose(ctx, p));
    return FV_OK;
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

static fv_status attend_cells(fv_ctx *ctx, const struct pyramid *p, const struct cells *cells, fv_attend_args *attend)
{
    const fv_call *call = &p->call;
    fv_plan plan = {.causal = call->causal, .offset = call->offset};

    FV_TRY_CHOOSING(ctx, make_lists(ctx, p, cells, &plan));
    attend->plan = &plan;
    return fv_attend_counted(ctx, call, attend);
}

static fv_status attend_keys(fv_ctx *ctx, const struct pyramid *p, fv_attend_args *attend)
{
    return attend_cells(ctx, p, &(struct cells){.of_block = 1}, attend);
}

static fv_status attend_means(fv_ctx *ctx, const struct pyramid *p, fv_attend_args *attend)
{
    const struct psa *o = p->call.options;
    struct cells cells = {.count = 3 * p->pooled, .of_block = 3, .of_level = 1, .lowest = 1, .highest = 3};
    int64_t block = o->block_k, whole = fv_min(p->pooled, p->call.keys / block), row = 0;
    int64_t rows = whole * fv_pyramid_rows(block);
    fv_call call = p->call;
    float *bias;

    if (whole < p->pooled) {
        rows += fv_pyramid_rows(call.keys % block);
        call.kept = NULL; /* the last block may yet have more keys */
    }
    FV_TRY(fv_keep(ctx, &call, kept, 0, rows, pool_keys, &attend->k));
    FV_TRY(fv_keep(ctx, &call, kept, 1, rows, pool_values, &attend->v));
    FV_TRY(fv_tensor_new(ctx, &attend->logits.bias, FV_F32, FV_DIMS(1, 1, 1, rows)));
    FV_TRY(FV_SCRATCH(ctx, cells.start, cells.count + 1));
    FV_TRY(FV_SCRATCH(ctx, cells.position, rows));
    bias = attend->logits.bias.data;
    for (int64_t n = 0; n < cells.count; n++) {
        int64_t end = fv_min((n / 3 + 1) * block, call.keys), keys = (int64_t)2 << n % 3;
        cells.start[n] = row;
        for (int64_t from = n / 3 * block; from < end; from += keys, row++) {
            cells.position[row] = (int32_t)fv_min(from + keys, end) - 1;
            bias[row] = logf((float)fv_min(keys, end - from));
        }
    }
    cells.start[cells.count] = row;
    if (!o->log_bias) attend->logits.bias = (fv_tensor){0};
    return attend_cells(ctx, p, &cells, attend);
}

/* Keys and means apart, and merged: keys are read where they lie. */
static fv_status attend_both(fv_ctx *ctx, const struct pyramid *p)
{
    fv_attend_args attend = fv_call_attend(&p->call, NULL);
    fv_merge_args merge;

    if (p->pooled == 0) return attend_keys(ctx, p, &attend);
    FV_TRY(fv_call_merge(ctx, &p->call, 2, &merge));
    for (int part = 0; part < 2; part++) {
        attend.o = merge.o_part[part];
        attend.lse = merge.lse_part[part];
        FV_TRY((part == 0 ? attend_keys : attend_means)(ctx, p, &attend));
    }
    return fv_merge(ctx, &merge);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct pyramid p;

    FV_TRY(prepare(ctx, call, &p));
    FV_TRY(attend_both(ctx, &p));
    return fv_present(&p.order.order) ? fv_order_call_back(ctx, &p.order, &p.call, call) : FV_OK;
}

/* A column for each level and key. */
static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    int64_t M = call->keys, block = ((const struct psa *)call->options)->block_k;
    int32_t *key, *one;
    uint8_t *mark;
    struct cells cells = {.of_block = 1, .highest = PSA_LEVELS - 1};
    struct pyramid p;

    FV_TRY(prepare(ctx, call, &p));
    cells.of_level = p.blocks.keys;
    cells.count = PSA_LEVELS * p.blocks.keys;
    FV_TRY(FV_SCRATCH(ctx, cells.start, cells.count + 1));
    FV_TRY(FV_SCRATCH(ctx, cells.position, PSA_LEVELS * M));
    FV_TRY(FV_SCRATCH(ctx, key, PSA_LEVELS * M));
    FV_TRY(FV_SCRATCH(ctx, one, PSA_LEVELS * M));
    FV_TRY(FV_SCRATCH(ctx, mark, PSA_LEVELS * M));
    for (int64_t n = 0; n <= cells.count; n++)
        cells.start[n] = n / p.blocks.keys * M + n % p.blocks.keys * block;
    for (int64_t c = 0; c < PSA_LEVELS * M; c++) {
        mark[c] = (uint8_t)(1 << c / M);
        one[c] = 1;
        key[c] = (int32_t)(c % M);
        cells.position[c] = (int32_t)fv_min(key[c] | (mark[c] - 1), M - 1);
    }
    FV_TRY(make_lists(ctx, &p, &cells, &pairs->plan));
    pairs->columns = PSA_LEVELS * M;
    pairs->column_key = key;
    pairs->column_keys = one;
    pairs->column_mark = mark;
    if (!fv_present(&p.order.order)) return FV_OK;
    pairs->query_order = pairs->key_order = p.order.order.data;
    pairs->batch_stride = p.order.order.dims[0] > 1 ? call->queries : 0;
    return FV_OK;
}

const fv_mechanism fv_mechanism_psa = {
    .name = "psa",
    .title = "Pyramid sparse attention",
    .paper = "arXiv 2512.04025",
    .sheet = 40,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_BLOCK_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "softmax over the keys of blocks at level 1 and, at levels l of 2, 4 and 8, over means of l keys and values "
        "with log l added; key blocks are ranked for each query block by max over queries of exp(max over keys of "
        "q.k - max over all keys), of samples, and ranks get levels in turn; a mean is seen when its last key is",
    .cost = "each query reads sum over blocks of block_k / level keys; samples cost N M D / 8 flops a head",
    .options = options,
    .options_size = sizeof(struct psa),
    .params = params,
    .check = check,
    .size = size,
    .accept = accept,
    .ahead = ahead,
    .kept = kept,
    .kept_half = true,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
