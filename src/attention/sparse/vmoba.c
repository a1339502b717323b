/* VMoBA: mixture of block attention for video.  Layers take turns with blocks of one, two and three dimensions, and a
 * cut through the scores of a whole head (or another scope) chooses.  arXiv 2506.23858. */
#include "attention/sparse/core.h"
#include "attention/sparse/moba.h"
#include "attention/sparse/order.h"

struct vmoba {
    int partition, select, scope;
    int64_t layer, block, top;
    fv_tuple grid, tile2, tile3;
    double tau;
    bool dense_if_empty;
};

enum { PARTITION_1D, PARTITION_2D, PARTITION_3D, PARTITION_CYCLE };
enum { SELECT_THRESHOLD, SELECT_TOPK };
enum { HEAD_GLOBAL, QUERY_HEAD, BLOCK, OVERALL };

static const char *const partitions[] = {"1d", "2d", "3d", "cycle", NULL};
static const char *const selects[] = {"threshold", "topk", NULL};
static const char *const scopes[] = {"head_global", "query_head", "block", "overall", NULL};

static const fv_option options[] = {
    FV_ENUM(struct vmoba, partition, "1d", partitions, "what blocks are; cycle: 1d, 2d, 3d by layer"),
    FV_INT(struct vmoba, layer, 0, 0, INT32_MAX, "layer, for cycle"),
    FV_TUPLE(struct vmoba, grid, "0x0x0", 0, INT32_MAX, "frames x rows x columns of the tokens (2d, 3d)"),
    FV_INT(struct vmoba, block, 512, 1, INT32_MAX, "tokens in a block (1d)"),
    FV_TUPLE(struct vmoba, tile2, "0x0", 0, INT32_MAX, "rows x columns of a block, in all frames (2d)"),
    FV_TUPLE(struct vmoba, tile3, "0x0x0", 0, INT32_MAX, "frames x rows x columns of a block (3d)"),
    FV_ENUM(struct vmoba, select, "threshold", selects, "blocks up to a share of scores, or a number"),
    FV_ENUM(struct vmoba, scope, "head_global", scopes, "scores that are sorted together; overall: of a batch row"),
    FV_FLOAT(struct vmoba, tau, 0.25, 0, 1, "share (threshold)"),
    FV_INT(struct vmoba, top, 3, 1, INT32_MAX, "blocks a query reads on average, its own included (topk)"),
    FV_BOOL(struct vmoba, dense_if_empty, 0, "read everything where only own blocks are chosen"),
    FV_OPTIONS_END,
};

/* ---- blocks ----------------------------------------------------------------------------------------------------- */

static int partition_of(const struct vmoba *o)
{
    return o->partition == PARTITION_CYCLE ? (int)(o->layer % 3) : o->partition;
}

/* Frames, rows and columns of a block. */
static void tile_of(const struct vmoba *o, int64_t tile[3])
{
    bool flat = partition_of(o) == PARTITION_2D;

    tile[0] = flat ? o->grid.items[0] : o->tile3.items[0];
    tile[1] = flat ? o->tile2.items[0] : o->tile3.items[1];
    tile[2] = flat ? o->tile2.items[1] : o->tile3.items[2];
}

/* Causal attention is that of MoBA. */
static bool can_be_causal(const struct vmoba *o)
{
    return partition_of(o) == PARTITION_1D && o->select == SELECT_TOPK && o->scope == QUERY_HEAD;
}

static fv_status check(const void *values)
{
    const struct vmoba *o = values;
    bool flat = partition_of(o) == PARTITION_2D;
    const fv_tuple *tile = flat ? &o->tile2 : &o->tile3;
    int64_t sides[3];

    if (o->select == SELECT_TOPK && o->scope == BLOCK)
        return fv_fail(FV_E_USAGE, "vmoba: options 'select' and 'scope': topk has no scope 'block'");
    if (partition_of(o) == PARTITION_1D) return FV_OK;
    if (o->grid.count != 3 || o->grid.items[0] == 0)
        return fv_fail(FV_E_USAGE, "vmoba: option 'grid': expected frames x rows x columns for partition %s",
                       partitions[partition_of(o)]);
    if (tile->count != (flat ? 2 : 3))
        return fv_fail(FV_E_USAGE, "vmoba: option '%s': expected %d items, got %d", flat ? "tile2" : "tile3",
                       flat ? 2 : 3, tile->count);
    tile_of(o, sides);
    for (int d = 0; d < 3; d++)
        if (sides[d] == 0 || o->grid.items[d] % sides[d] != 0)
            return fv_fail(FV_E_USAGE, "vmoba: option '%s': expected a divisor of the grid's side %lld, got %lld",
                           flat ? "tile2" : "tile3", (long long)o->grid.items[d], (long long)sides[d]);
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct vmoba *o = call->options;

    if (call->causal && !can_be_causal(o))
        return fv_fail(FV_E_USAGE, "vmoba: is causal only with partition=1d,select=topk,scope=query_head");
    if (partition_of(o) == PARTITION_1D) return FV_OK;
    FV_TRY(fv_check_cells(call, &o->grid, call->queries));
    return fv_check_cells(call, &o->grid, call->keys);
}

/* ---- choice ----------------------------------------------------------------------------------------------------- */

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    static const fv_scope of[] = {FV_SCOPE_HEAD, FV_SCOPE_QUERY, FV_SCOPE_BLOCK, FV_SCOPE_ALL};
    const struct vmoba *o = call->options;
    fv_cut cut = {.scope = of[o->scope], .own = call->queries == call->keys, .share = o->tau};
    int64_t tile[3], blocks;
    fv_tensor means;

    tile_of(o, tile);
    *choice = (fv_choice){.block = partition_of(o) == PARTITION_1D ? o->block : tile[0] * tile[1] * tile[2],
                          .heads = call->query_heads};
    blocks = fv_ceil_div(call->keys, choice->block);
    if (o->select == SELECT_TOPK)
        cut.top = cut.own && o->top == 1 && o->dense_if_empty ? blocks : fv_min(o->top, blocks);
    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(call->batch, call->key_heads, blocks, call->head_dim)));
    FV_TRY(fv_block_means(ctx, &call->k, choice->block, 0, &means));
    return fv_choose_by_cut(ctx, call, choice, &cut, &call->q, &means);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* The call with its tokens block by block, and what is chosen in it; itself where they are. */
static fv_status arrange(fv_ctx *ctx, const fv_call *call, fv_call *laid, fv_order *order, fv_choice *choice)
{
    const struct vmoba *o = call->options;
    int64_t tile[3];

    *order = (fv_order){0};
    tile_of(o, tile);
    if (partition_of(o) != PARTITION_1D) FV_TRY(fv_order_tiles(ctx, &o->grid, tile, call->queries, order));
    FV_TRY(fv_order_call(ctx, order, call, laid));
    FV_TRY_CHOOSING(ctx, choose(ctx, laid, choice));
    return FV_OK;
}

static fv_call as_moba(const fv_call *call, struct moba *moba)
{
    const struct vmoba *o = call->options;
    fv_call same = *call;

    *moba = (struct moba){.block = o->block, .top = o->top};
    same.options = moba;
    return same;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    struct moba moba;
    fv_call same = as_moba(call, &moba);

    *width = 0;
    return can_be_causal(call->options) ? fv_mechanism_moba.kept(&same, kind, keys, width) : 0;
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct moba moba;
    fv_call laid, same = as_moba(call, &moba);
    fv_choice choice;
    fv_order order;

    if (call->causal) return fv_mechanism_moba.forward(ctx, &same);
    FV_TRY(arrange(ctx, call, &laid, &order, &choice));
    FV_TRY(fv_choice_attend(ctx, &laid, &choice, true));
    return fv_order_call_back(ctx, &order, &laid, call);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct moba moba;
    fv_call laid, same = as_moba(call, &moba);
    fv_choice choice;
    fv_order order;

    if (call->causal) return fv_mechanism_moba.map(ctx, &same, pairs);
    FV_TRY(arrange(ctx, call, &laid, &order, &choice));
    pairs->query_order = pairs->key_order = order.order.data;
    return fv_choice_plan(ctx, &laid, &choice, &pairs->plan);
}

const fv_mechanism fv_mechanism_vmoba = {
    .name = "vmoba",
    .title = "Video mixture of block attention",
    .paper = "arXiv 2506.23858",
    .sheet = 20,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula =
        "score of block c for query q: g = q.mean(k in c), as (g - min) / (max - min) over its scope; softmax over "
        "the keys of the query's own block and of blocks chosen by falling score until own and chosen ones have tau "
        "of the scope's sum",
    .cost =
        "each query reads its own block and those that scores decide; scores cost 2 N C D flops a head for C blocks",
    .options = options,
    .options_size = sizeof(struct vmoba),
    .check = check,
    .accept = accept,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .map = map,
};
