/* PAROAttention: each head of a video reads its tokens in the order of axes that gathers its pattern into blocks; a
 * static mask of blocks, and products of few bits.  arXiv 2506.16054. */
#include "attention/sparse/core.h"
#include "attention/sparse/order.h"

#include <math.h>

struct paro {
    fv_tuple grid;
    int64_t text, block, q_group, k_group;
    fv_list order;
    double density;
    int qk_bits, pv_bits;
    bool smooth_k;
};

enum { ORDERS = 6, AUTO = -1 };
static const char *const automatic[] = {"auto", NULL};
static const char *const qk_bits[] = {"16", "8", "4", NULL};
static const char *const pv_bits[] = {"16", "8", NULL};

static const fv_option options[] = {
    FV_SIDES(struct paro, grid, "frames x rows x columns", NULL, 1, INT32_MAX, "frames x rows x columns of the tokens"),
    FV_INT(struct paro, text, 0, 0, INT32_MAX, "tokens before them, which stay first and are read by all"),
    FV_LIST_OR(
        struct paro, order, "0", automatic, 0, ORDERS - 1,
        "of reading, outermost axis first: 0 FHW, 1 FWH, 2 HWF, 3 HFW, 4 WHF, 5 WFH; one for each head, repeated; "
        "auto: the best for this input"),
    FV_INT(struct paro, block, 64, 1, INT32_MAX, "tokens of a block, in the order of reading"),
    FV_FLOAT(struct paro, density, 1, 1e-9, 1, "part of the blocks, without a mask: those of largest weight"),
    FV_ENUM(struct paro, qk_bits, "16", qk_bits, "of queries and keys"),
    FV_ENUM(struct paro, pv_bits, "16", pv_bits, "of weights and values"),
    FV_INT(struct paro, q_group, 32, 1, INT32_MAX, "queries that share a scale"),
    FV_INT(struct paro, k_group, 64, 1, INT32_MAX, "keys that share a scale, and values of each channel"),
    FV_BOOL(struct paro, smooth_k, 0, "the mean key is taken from all keys first"),
    FV_OPTIONS_END,
};

enum { MASK };

static const fv_param params[] = {
    FV_PARAM_OF(FV_U8, "mask", "[1|B, 1|H, blocks, blocks]", "blocks that are read, in the order of reading (all)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    (void)name;
    return fv_ceil_div(call->queries, ((const struct paro *)values)->block);
}

static fv_status accept(fv_call *call)
{
    const struct paro *o = call->options;

    if (call->query_heads != call->key_heads)
        return fv_fail(FV_E_SHAPE, "paro: expected as many key-value heads as query heads, got %lld and %lld",
                       (long long)call->key_heads, (long long)call->query_heads);
    return fv_check_cells(call, &o->grid, fv_max(call->queries - o->text, 0));
}

/* ---- orders ----------------------------------------------------------------------------------------------------- */

struct layout {
    const fv_call *call;
    int64_t blocks;
    fv_tensor token[ORDERS]; /* [N] i32 at each place of an order */
    int *chosen;             /* [B,H] orders */
    uint8_t *selected;       /* [B,H,blocks,blocks] by weight; NULL: not asked for */
    fv_order order;          /* of each head */
    fv_tensor mask;          /* u8 [1|B,1|H,blocks,blocks]; absent: all are read */
};

static void read_tokens(const struct paro *o, int order, int32_t *token)
{
    static const int axes[ORDERS][3] = {{0, 1, 2}, {0, 2, 1}, {1, 2, 0}, {1, 0, 2}, {2, 1, 0}, {2, 0, 1}};
    const int64_t *dims = o->grid.items, step[] = {dims[1] * dims[2], dims[2], 1};
    const int *a = axes[order];
    int64_t n = 0;

    for (; n < o->text; n++)
        token[n] = (int32_t)n;
    for (int64_t x = 0; x < dims[a[0]]; x++)
        for (int64_t y = 0; y < dims[a[1]]; y++)
            for (int64_t z = 0; z < dims[a[2]]; z++)
                token[n++] = (int32_t)(o->text + x * step[a[0]] + y * step[a[1]] + z * step[a[2]]);
}

/* ---- choosing by this input ------------------------------------------------------------------------------------- */

/* How many blocks hold next to nothing of their rows, and how uneven weights are within blocks, on average. */
static void judge(const struct layout *l, const fv_tensor *sum, const fv_tensor *largest, double *empty, double *uneven)
{
    const struct paro *o = l->call->options;
    int64_t N = l->call->queries, n = l->blocks;

    *empty = *uneven = 0;
    for (int64_t r = 0; r < n; r++)
        for (int64_t s = 0; s < n; s++) {
            double rows = (double)fv_min(o->block, N - r * o->block),
                   columns = (double)fv_min(o->block, N - s * o->block);
            double mass = *(float *)fv_at(sum, r, s, 0, 0), most = *(float *)fv_at(largest, r, s, 0, 0);
            *empty += mass < 0.1 / (double)n * rows;
            *uneven += (mass > 0 ? most / (mass / (rows * columns)) : 1) / (double)(n * n);
        }
}

/* The order of lowest rank by both; differences that rounding may make are none. */
static int best_of(const double *empty, const double *uneven)
{
    int best = 0, least = INT32_MAX;

    for (int a = 0; a < ORDERS; a++) {
        int rank = 0;
        for (int b = 0; b < ORDERS; b++)
            rank += (empty[b] > empty[a]) + (uneven[b] < uneven[a] * (1 - 1e-6));
        if (rank < least) least = rank, best = a;
    }
    return best;
}

static fv_status select_blocks(fv_ctx *ctx, const struct layout *l, int64_t head, const fv_tensor *sum)
{
    const struct paro *o = l->call->options;
    int64_t count = l->blocks * l->blocks;
    fv_tensor index;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS((int64_t)ceil(o->density * (double)count))));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = fv_reshaped(sum, FV_DIMS(count)), .index = index}));
    for (int64_t n = 0; n < index.dims[0] && ((int32_t *)index.data)[n] >= 0; n++)
        l->selected[head * count + ((int32_t *)index.data)[n]] = 1;
    return FV_OK;
}

static fv_status choose_head(fv_ctx *ctx, void *user, int64_t head)
{
    struct layout *l = user;
    const fv_call call = fv_call_head(l->call, head / l->call->query_heads, head % l->call->query_heads);
    int64_t block = ((const struct paro *)call.options)->block;
    double empty[ORDERS], uneven[ORDERS];
    fv_tensor q, k, sum[ORDERS], largest;

    for (int n = 0; n < ORDERS; n++) {
        if (l->chosen[head] != AUTO && l->chosen[head] != n) continue;
        FV_TRY(fv_tensor_new(ctx, &sum[n], FV_F32, FV_DIMS(l->blocks, l->blocks)));
        FV_TRY(fv_tensor_new(ctx, &largest, FV_F32, FV_DIMS(l->blocks, l->blocks)));
        FV_TRY(fv_order_rows(ctx, &l->token[n], &call.q, &q));
        FV_TRY(fv_order_rows(ctx, &l->token[n], &call.k, &k));
        q = fv_reshaped(&q, 2, q.dims + 2);
        k = fv_reshaped(&k, 2, k.dims + 2);
        FV_TRY(fv_block_weights(ctx, &q, &k, call.scale, block, &sum[n], &largest));
        judge(l, &sum[n], &largest, &empty[n], &uneven[n]);
    }
    if (l->chosen[head] == AUTO) l->chosen[head] = best_of(empty, uneven);
    return l->selected ? select_blocks(ctx, l, head, &sum[l->chosen[head]]) : FV_OK;
}

/* Lists of what the mask shows, and of text and the last blocks, which are always read. */
static fv_status list_blocks(fv_ctx *ctx, const fv_call *call, const struct layout *l, fv_plan *plan)
{
    const struct paro *o = call->options;
    const fv_tensor *mask = &l->mask;
    int64_t text = fv_ceil_div(o->text, o->block), last = l->blocks - 1;
    fv_list_shape shape = fv_call_lists(call, mask->dims[1], o->block, o->block);
    fv_list_builder lists;

    if (!fv_present(mask)) return FV_OK;
    shape.batches = mask->dims[0];
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t row = 0; row < mask->dims[0] * mask->dims[1] * l->blocks; row++) {
        int64_t plane = row / l->blocks, r = row % l->blocks;
        fv_lists_row(&lists);
        for (int64_t c = 0; c < l->blocks; c++)
            if (r < text || c < text || r == last || c == last ||
                *(uint8_t *)fv_at(mask, plane / mask->dims[1], plane % mask->dims[1], r, c))
                fv_lists_add(&lists, c);
    }
    return fv_lists_end(&lists, plan);
}

static fv_status lay_out(fv_ctx *ctx, const fv_call *call, struct layout *l, fv_plan *plan)
{
    const struct paro *o = call->options;
    int64_t B = call->batch, H = call->query_heads, N = call->queries, blocks = fv_ceil_div(N, o->block);
    int32_t *key;
    bool by_weight = o->density < 1 && !fv_present(&call->param[MASK]);

    *l = (struct layout){.call = call, .blocks = blocks, .mask = call->param[MASK]};
    FV_TRY(FV_SCRATCH(ctx, l->chosen, B * H));
    for (int n = 0; n < ORDERS; n++) {
        FV_TRY(fv_tensor_new(ctx, &l->token[n], FV_I32, FV_DIMS(N)));
        read_tokens(o, n, l->token[n].data);
    }
    if (by_weight) {
        FV_TRY(fv_tensor_zeros(ctx, &l->mask, FV_U8, FV_DIMS(B, H, blocks, blocks)));
        l->selected = l->mask.data;
    }
    for (int64_t head = 0; head < B * H; head++)
        l->chosen[head] = (int)o->order.items[head % H % o->order.count];
    if (by_weight || o->order.items[0] == AUTO)
        FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_run_apart(ctx, B * H, choose_head, l));
    FV_TRY(FV_SCRATCH(ctx, key, B * H * N));
    for (int64_t head = 0; head < B * H; head++)
        for (int64_t t = 0; t < N; t++)
            key[head * N + ((int32_t *)l->token[l->chosen[head]].data)[t]] = (int32_t)t;
    FV_TRY(fv_order_by_key(ctx, key, B, H, N, N, &l->order, NULL));
    return list_blocks(ctx, call, l, plan);
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

/* Rows of x [B,H,N,C] in steps of so many bits (16: as they are). */
static fv_status in_steps(fv_ctx *ctx, fv_tensor *x, int steps, int64_t rows, bool by_channel)
{
    fv_round_args round = {.x = *x, .rows = rows, .steps = steps, .by_channel = by_channel};

    if (steps == 0) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &round.out, FV_F32, 4, x->dims));
    *x = round.out;
    return fv_round_rows(ctx, &round);
}

/* k -= its mean over tokens; what that takes from every logit of a query, [B,H,N,1], is to be added to its lse. */
static fv_status smooth(fv_ctx *ctx, fv_call *call, fv_tensor *taken)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries;
    fv_tensor mean;

    FV_TRY(fv_tensor_new(ctx, &mean, FV_F32, FV_DIMS(B, H, 1, call->head_dim)));
    FV_TRY(fv_tensor_new(ctx, taken, FV_F32, FV_DIMS(B, H, N, 1)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = call->k, .out = mean, .block = N}));
    FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = call->k, .y = mean}, &call->k));
    return fv_gemm(ctx, &(fv_gemm_args){.a = call->q, .b = fv_transposed(&mean), .c = *taken});
}

static fv_status add_taken(fv_ctx *ctx, fv_call *call, const fv_tensor *taken)
{
    fv_map_args add = {.op = FV_MAP_ADD, .x = call->lse, .alpha = call->scale};

    if (!fv_present(&call->lse) || call->scale == 0) return FV_OK; /* a factor of 0 would mean 1 */
    add.y = fv_reshaped(taken, 3, call->lse.dims);
    return fv_mapped(ctx, &add, &call->lse);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    static const int steps_of[] = {0, 127, 7};
    const struct paro *o = call->options;
    int steps = steps_of[o->qk_bits], value_steps = steps_of[o->pv_bits];
    struct layout l;
    fv_plan plan = {0};
    fv_attend_args attend;
    fv_call laid;
    fv_tensor taken;

    FV_TRY_CHOOSING(ctx, lay_out(ctx, call, &l, &plan));
    FV_TRY(fv_order_call(ctx, &l.order, call, &laid));
    if (o->smooth_k) FV_TRY(smooth(ctx, &laid, &taken));
    FV_TRY(in_steps(ctx, &laid.q, steps, o->q_group, false));
    FV_TRY(in_steps(ctx, &laid.k, steps, o->k_group, false));
    FV_TRY(in_steps(ctx, &laid.v, value_steps, o->k_group, true));
    attend = fv_call_attend(&laid, &plan);
    attend.steps = value_steps;
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    if (o->smooth_k) FV_TRY(add_taken(ctx, &laid, &taken));
    return fv_order_call_back(ctx, &l.order, &laid, call);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct layout l;

    FV_TRY_CHOOSING(ctx, lay_out(ctx, call, &l, &pairs->plan));
    pairs->query_order = pairs->key_order = l.order.order.data;
    pairs->batch_stride = call->query_heads * call->queries;
    pairs->head_stride = call->queries;
    return FV_OK;
}

const fv_mechanism fv_mechanism_paro = {
    .name = "paro",
    .title = "PAROAttention",
    .paper = "arXiv 2506.16054",
    .sheet = 60,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_DIFFERENTIABLE,
    .formula =
        "tokens in an order of axes for each head; softmax over the blocks of the mask, text and the last ones; q, "
        "k and v in steps of max|x| / (2^(bits-1) - 1), weights trunc(127 exp(s - max)) / 127",
    .cost = "each query reads its blocks; choosing by the input costs dense weights, six times with order=auto",
    .options = options,
    .options_size = sizeof(struct paro),
    .params = params,
    .size = size,
    .accept = accept,
    .forward = forward,
    .counts = true,
    .map = map,
};
