#include "attention/sparse/psa.h"

#include <float.h>
#include <math.h>

/* Held at once: scores; and rows of queries that are compared, for keys to be packed seldom. */
#define SCORES ((int64_t)1 << 18)
#define ROWS 512

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

void psa_blocks_of(const fv_call *call, struct psa_blocks *blocks)
{
    const struct psa *o = call->options;
    int64_t offset = call->causal ? call->offset : 0;

    blocks->offset = offset;
    blocks->first = fv_floor_div(offset, o->block_q);
    blocks->queries = fv_floor_div(offset + call->queries - 1, o->block_q) - blocks->first + 1;
    blocks->keys = fv_ceil_div(call->keys, o->block_k);
}

/* A stretch of query blocks, for the query heads that share keys. */
struct stretch {
    const fv_call *call;
    const struct psa *o;
    const struct psa_blocks *blocks;
    const uint8_t *cap;  /* [B,Hkv,key blocks]: highest level; NULL: none */
    uint8_t *level;      /* [B,H,query blocks,key blocks] */
    int64_t group, b, h; /* query heads of a key-value head; batch and key-value head */
    int64_t from, count;
    int64_t rows, columns;      /* of a query block, and of a key block, that are compared */
    int64_t key;                /* the first one in scores */
    fv_tensor scores;           /* [.., count * rows * group] */
    fv_tensor importance, rank; /* [group,count,key blocks]: f32; i32 by falling importance */
};

/* First position behind a query block of the stretch, and how many key blocks it may see. */
static int64_t end_of(const struct stretch *s, int64_t i)
{
    return fv_min((s->blocks->first + s->from + i + 1) * s->o->block_q, s->blocks->offset + s->call->queries);
}

static int64_t visible(const struct stretch *s, int64_t i)
{
    if (!s->call->causal) return s->blocks->keys;
    return fv_ceil_div(fv_clamp(end_of(s, i), 0, s->call->keys), s->o->block_k);
}

/* ---- from ranks to levels ---------------------------------------------------------------------------------------- */

/* Ranks whose importances, summed up, are a share of at most `bound`. */
static int64_t ranks_within(const float *importance, const int32_t *rank, int64_t n, double bound)
{
    double total = 0, sum = 0;
    int64_t count = 0;

    for (int64_t r = 0; r < n; r++)
        total += fmax(importance[rank[r]], 0);
    for (; count < n; count++) {
        sum += fmax(importance[rank[count]], 0);
        if (!(sum / total <= bound)) break;
    }
    return count;
}

/* Shares of ranks up to those of a level. */
static double width_up_to(const struct stretch *s, int level)
{
    static const double own[PSA_LEVELS] = {0.1, 0.05, 0, 0.2}, causal[PSA_LEVELS] = {0.05, 0.1, 0.1, 0.25};
    const fv_floats *given = &s->o->widths;
    bool none = given->count == 1 && given->items[0] == 0;
    double width = 0;

    for (int n = 0; n <= level; n++)
        width += none ? (s->call->causal ? causal : own)[n] : n < given->count ? given->items[n] : 0;
    return width;
}

/* Behind the last of n ranks that a level has; those of the level before end at `from`. */
static int64_t last_rank(const struct stretch *s, int level, int64_t from, const float *importance, const int32_t *rank,
                         int64_t n)
{
    const struct psa *o = s->o;
    bool free = !s->call->causal, least = free && level == 0;
    int mode = o->mode != PSA_AUTO ? o->mode : free ? PSA_BOUND : PSA_TOPK;
    double bound = level < o->bounds.count ? o->bounds.items[level] : 0;
    int64_t end, step = fv_ceil_div(o->tile << level, o->block_k);

    if (mode == PSA_TOPK)
        end = (int64_t)floor((double)n * width_up_to(s, level) + 1e-9);
    else if (mode == PSA_ENERGY)
        end = ranks_within(importance, rank, n, bound);
    else
        end = ranks_within(importance, rank, n, bound + 1e-6) + 1;
    if (mode == PSA_BOUND && least) end = fv_max(end, (int64_t)floor((double)n * o->min_full) + 1);
    end = fv_clamp(fv_max(end, least), from, n);
    if (o->round && free) { /* whole tiles: more, or less at the end of the row */
        end = from + fv_round_up(end - from, step);
        if (end >= n) end = from + (n - from) / step * step;
    }
    return least ? fv_clamp(end, fv_min(1, n), n) : end;
}

/* Blocks that hold keys from..end-1 are read in full. */
static void read_fully(const struct stretch *s, uint8_t *level, int64_t from, int64_t end, int64_t n)
{
    int64_t block = s->o->block_k;

    for (int64_t j = fv_max(from, 0) / block; j < fv_min(fv_ceil_div(fv_max(end, 0), block), n); j++)
        level[j] = 1;
}

static void assign(void *user, int64_t row, int thread)
{
    const struct stretch *s = user;
    int64_t m = row / s->count, i = row % s->count, keys = s->blocks->keys, M = s->call->keys, text = s->o->text;
    int64_t n = visible(s, i), end = end_of(s, i), first = (s->blocks->first + s->from + i) * s->o->block_q, r = 0;
    const float *importance = fv_at(&s->importance, m, i, 0, 0);
    const int32_t *rank = fv_at(&s->rank, m, i, 0, 0);
    int64_t head = s->b * s->call->query_heads + s->h * s->group + m;
    uint8_t *level = s->level + (head * s->blocks->queries + s->from + i) * keys;

    (void)thread;
    memset(level, 0, (size_t)keys);
    for (int l = 0; l < PSA_LEVELS; l++)
        for (int64_t last = last_rank(s, l, r, importance, rank, n); r < last; r++)
            level[rank[r]] = (uint8_t)(1 << l);
    if (text > 0) read_fully(s, level, M - text, M, n);
    if (s->call->causal) {
        read_fully(s, level, 0, 1, n);
        read_fully(s, level, first, end, n);
        if (text > 0 && end > M - text) read_fully(s, level, 0, M, n);
    }
    for (int64_t j = 0; s->cap && j < keys; j++)
        level[j] = (uint8_t)fv_min(level[j], s->cap[(s->b * s->call->key_heads + s->h) * keys + j]);
}

static fv_status assign_levels(fv_ctx *ctx, struct stretch *s)
{
    int64_t rows = s->group * s->count, *valid;
    float *importance = s->importance.data;

    for (int64_t n = 0; n < fv_tensor_count(&s->importance); n++) /* every block has a rank */
        if (!(importance[n] >= -FLT_MAX)) importance[n] = -FLT_MAX;
    FV_TRY(FV_SCRATCH(ctx, valid, rows));
    for (int64_t row = 0; row < rows; row++)
        valid[row] = visible(s, row % s->count);
    FV_TRY(fv_tensor_new(ctx, &s->rank, FV_I32, 3, s->importance.dims));
    FV_TRY(
        fv_select(ctx, &(fv_select_args){.scores = s->importance, .index = s->rank, .valid = valid, .by_score = true}));
    fv_run(ctx, rows, assign, s);
    return FV_OK;
}

/* ---- what is compared -------------------------------------------------------------------------------------------- */

static bool by_samples(const struct stretch *s)
{
    return s->o->estimate == PSA_SAMPLE;
}

/* Rows index[count,each] of x [B,Hx,N,D], -1: of zeros; `each` of them joined, and those of a group of heads
 * neighbours: out [B,Hx/group,count * group,each * D]. */
static fv_status take_rows(fv_ctx *ctx, const fv_tensor *x, int64_t group, const fv_tensor *index, fv_dtype type,
                           fv_tensor *out)
{
    int64_t B = x->dims[0], Hx = x->dims[1] / group, count = index->dims[0], each = index->dims[1], D = x->dims[3];
    fv_tensor heads = fv_grouped(x, Hx), rows;

    heads = fv_expanded(&heads, 3);
    FV_TRY(fv_tensor_new(ctx, &rows, type, FV_DIMS(B, Hx, count, group, each, D)));
    *out = fv_reshaped(&rows, FV_DIMS(B, Hx, count * group, each * D));
    rows = fv_permuted(&rows, (const int[]){0, 1, 3, 2, 4, 5});
    return fv_gather(ctx, &(fv_gather_args){.x = heads, .index = *index, .out = rows});
}

/* The same places, `each` of them, of `blocks` blocks of `block` rows, the first of which begins at row `first`; those
 * that a block has not are the nearest one that it has. */
static fv_status places(fv_ctx *ctx, int64_t first, int64_t blocks, int64_t block, int64_t each, int64_t rows,
                        fv_tensor *index)
{
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(blocks * each, 1)));
    for (int64_t n = 0; n < blocks * each; n++) {
        int64_t start = first + n / each * block, end = fv_min(start + block, rows);
        int64_t low = fv_ceil_div(fv_max(-start, 0) * each, block), high = fv_ceil_div((end - start) * each, block);
        int64_t place = low < high ? fv_clamp(n % each, low, high - 1) * block / each : end - 1 - start;
        ((int32_t *)index->data)[n] = (int32_t)(start + place);
    }
    return FV_OK;
}

/* PSA_STRIDE rows at a time from row `first` on, those of queries in reverse: the product of two is the sum over an
 * antidiagonal.  Rows that are not there are 0. */
static fv_status strides(fv_ctx *ctx, int64_t first, int64_t count, bool reverse, int64_t rows, fv_tensor *index)
{
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(count, PSA_STRIDE)));
    for (int64_t n = 0; n < count * PSA_STRIDE; n++) {
        int64_t at = first + (reverse ? n / PSA_STRIDE * PSA_STRIDE + PSA_STRIDE - 1 - n % PSA_STRIDE : n);
        ((int32_t *)index->data)[n] = (int32_t)(at >= 0 && at < rows ? at : -1);
    }
    return FV_OK;
}

/* q [B,Hkv,rows * group,C] and k [B,Hkv,columns,C]: as bf16 pairs where keys are stored in no more than 16 bits. */
static fv_status take_operands(fv_ctx *ctx, struct stretch *s, fv_tensor *q, fv_tensor *k)
{
    const fv_call *call = s->call;
    const struct psa_blocks *blocks = s->blocks;
    int64_t bq = s->o->block_q, bk = s->o->block_k, each = s->o->sample ? s->o->sample : bk / 4;
    int64_t first = blocks->first * bq - blocks->offset, N = call->queries, M = call->keys;
    bool half = call->k.dtype != FV_F32 && ctx->precision != FV_PRECISION_F32;
    fv_tensor index;

    s->rows = by_samples(s) ? fv_min(each, bq) : bq / PSA_STRIDE;
    s->columns = by_samples(s) ? fv_min(each, bk) : bk / PSA_STRIDE;
    if (by_samples(s))
        FV_TRY(places(ctx, first, blocks->queries, bq, s->rows, N, &index));
    else
        FV_TRY(strides(ctx, first, blocks->queries * s->rows, true, N, &index));
    FV_TRY(take_rows(ctx, &call->q, s->group, &index, half ? FV_BF16 : FV_F32, q));
    if (by_samples(s) && bk % s->columns == 0) { /* where they lie */
        int64_t step = bk / s->columns;
        *k = fv_every(&call->k, 2, 0, step, fv_ceil_div(M, step));
        return FV_OK;
    }
    if (by_samples(s))
        FV_TRY(places(ctx, 0, blocks->keys, bk, s->columns, M, &index));
    else
        FV_TRY(strides(ctx, 0, fv_ceil_div(M, PSA_STRIDE), false, M, &index));
    return take_rows(ctx, &call->k, 1, &index, FV_F32, k);
}

/* ---- importance -------------------------------------------------------------------------------------------------- */

/* From a row of queries, the same for all heads: keys behind its block, or behind its own stride; all, if there is no
 * query in that. */
static void hide(void *user, int64_t row, int thread)
{
    const struct stretch *s = user;
    int64_t at = ((s->blocks->first + s->from) * s->rows + row) * PSA_STRIDE, block = s->o->block_k;
    int64_t end = by_samples(s) ? end_of(s, row / s->rows) : at + PSA_STRIDE, first;

    (void)thread;
    if (!s->call->causal) end = s->call->keys;
    if (!by_samples(s) && (at + PSA_STRIDE <= s->blocks->offset || at >= s->blocks->offset + s->call->queries)) end = 0;
    if (end >= s->call->keys) return;
    end = fv_max(end, 0);
    first = end / block * s->columns + fv_ceil_div(end % block * s->columns, block);
    for (int64_t t = fv_max(first - s->key, 0); t < s->scores.dims[0]; t++) {
        float *to = fv_at(&s->scores, t, row * s->group, 0, 0);
        for (int64_t m = 0; m < s->group; m++)
            to[m] = -INFINITY;
    }
}

/* Of each key block for each row: its largest score, or the sum of its weights; best [blocks,rows]. */
static fv_status compare(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k, const fv_tensor *best)
{
    int64_t blocks = best->dims[0], n = best->dims[1], step = blocks;
    fv_tensor room;

    if (by_samples(s)) step = fv_clamp(SCORES / (n * s->columns), 1, blocks);
    FV_TRY(fv_tensor_new(ctx, &room, FV_F32, FV_DIMS(step * s->columns, n)));
    for (int64_t j = 0; j < blocks; j += step) {
        int64_t count = fv_min(step, blocks - j);
        s->key = j * s->columns;
        fv_tensor keys = fv_slice(k, 0, s->key, fv_min(count * s->columns, k->dims[0] - s->key)), columns;
        s->scores = fv_slice(&room, 0, 0, keys.dims[0]);
        columns = fv_transposed(&s->scores);
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = keys,
                                            .b = fv_transposed(q),
                                            .c = s->scores,
                                            .alpha = s->call->scale / (by_samples(s) ? 1 : PSA_STRIDE)}));
        fv_run(ctx, s->count * s->rows, hide, s);
        if (!by_samples(s)) FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = columns, .out = columns}));
        FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = by_samples(s) ? FV_POOL_MAX : FV_POOL_SUM,
                                                 .x = s->scores,
                                                 .out = fv_slice(best, 0, j, count),
                                                 .block = s->columns}));
    }
    return FV_OK;
}

/* Samples: exp of how near the best of a key block comes to the best of all, for the row that it suits most; else the
 * sum of its weights over rows. */
static fv_status rate(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k)
{
    int64_t blocks = visible(s, s->count - 1), n = q->dims[0];
    fv_pool_args top = {.kind = FV_POOL_MAX, .block = blocks}, rows = {.block = s->rows};
    fv_tensor best, to = fv_slice(&s->importance, 2, 0, blocks);

    if (blocks == 0) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &best, FV_F32, FV_DIMS(blocks, n)));
    FV_TRY(compare(ctx, s, q, k, &best));
    if (by_samples(s)) {
        top.x = best;
        FV_TRY(fv_tensor_new(ctx, &top.out, FV_F32, FV_DIMS(1, n)));
        FV_TRY(fv_pool_rows(ctx, &top));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_SUB, .x = best, .y = top.out, .out = best}));
    }
    rows.kind = by_samples(s) ? FV_POOL_MAX : FV_POOL_SUM;
    rows.x = fv_reshaped(&best, FV_DIMS(blocks, s->count, s->rows, s->group));
    FV_TRY(fv_tensor_new(ctx, &rows.out, FV_F32, FV_DIMS(blocks, s->count, 1, s->group)));
    FV_TRY(fv_pool_rows(ctx, &rows));
    return fv_map_apply(ctx, &(fv_map_args){.op = by_samples(s) ? FV_MAP_EXP : FV_MAP_COPY,
                                            .x = fv_reshaped(&rows.out, FV_DIMS(blocks, s->count, s->group)),
                                            .out = fv_permuted(&to, (const int[]){2, 1, 0})});
}

/* Importance that was given. */
static fv_status copy_given(fv_ctx *ctx, struct stretch *s)
{
    const fv_call *call = s->call;
    int64_t dims[] = {call->batch, call->query_heads, s->blocks->queries, s->blocks->keys};
    fv_tensor given = fv_broadcast(&call->param[PSA_IMPORTANCE], 4, dims);

    given = fv_slice(&given, 0, s->b, 1);
    given = fv_slice(&given, 1, s->h * s->group, s->group);
    given = fv_slice(&given, 2, s->from, s->count);
    return fv_map_apply(
        ctx, &(fv_map_args){.x = given,
                            .out = fv_reshaped(&s->importance, FV_DIMS(1, s->group, s->count, s->blocks->keys))});
}

/* A plane of [B,Hkv,..]. */
static fv_tensor plane(const struct stretch *s, const fv_tensor *t)
{
    fv_tensor batch = fv_plane(t, 0, s->b);

    return fv_plane(&batch, 0, s->h);
}

/* q and k of the whole call, absent where importance was given. */
static fv_status rate_stretch(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k)
{
    int64_t each = s->rows * s->group;
    fv_tensor rows, keys;

    FV_TRY(fv_tensor_new(ctx, &s->importance, FV_F32, FV_DIMS(s->group, s->count, s->blocks->keys)));
    if (fv_present(q)) {
        rows = plane(s, q);
        rows = fv_slice(&rows, 0, s->from * each, s->count * each);
        keys = plane(s, k);
        FV_TRY_PHASE(ctx, FV_PHASE_SCORE, rate(ctx, s, &rows, &keys));
    } else {
        FV_TRY(copy_given(ctx, s));
    }
    return assign_levels(ctx, s);
}

static fv_status rate_all(fv_ctx *ctx, struct stretch *s)
{
    const fv_call *call = s->call;
    int64_t Hkv = call->key_heads, step;
    fv_tensor q = {0}, k = {0};

    if (!fv_present(&call->param[PSA_IMPORTANCE])) FV_TRY(take_operands(ctx, s, &q, &k));
    step = fv_max(ROWS / (s->rows * s->group), 1);
    for (int64_t n = 0; n < call->batch * Hkv; n++)
        for (s->from = 0; s->from < s->blocks->queries; s->from += step) {
            s->b = n / Hkv;
            s->h = n % Hkv;
            s->count = fv_min(step, s->blocks->queries - s->from);
            FV_TRY(fv_ctx_check(ctx));
            FV_TRY_SCRATCH(ctx, rate_stretch(ctx, s, &q, &k));
        }
    return FV_OK;
}

/* ---- what stands above importance -------------------------------------------------------------------------------- */

/* The highest level at which the keys of a block are alike: the mean cosines of the first of each eight keys with the
 * second, fourth and eighth.  cap [B,Hkv,key blocks]. */
static fv_status cap_levels(fv_ctx *ctx, const fv_call *call, int64_t blocks, uint8_t *cap)
{
    static const float one = 1;
    const struct psa *o = call->options;
    int64_t B = call->batch, Hkv = call->key_heads, D = call->head_dim, eights = call->keys / 8;
    int64_t whole = fv_ceil_div(eights, o->block_k / 8);
    const fv_tensor ones = {.data = (void *)&one, .dtype = FV_F32, .rank = 2, .dims = {D, 1}};
    fv_tensor unit, products, means, cosine;

    memset(cap, 1, (size_t)(B * Hkv * blocks));
    if (whole == 0) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &unit, FV_F32, FV_DIMS(B, Hkv, call->keys, D)));
    FV_TRY(fv_tensor_new(ctx, &products, FV_F32, FV_DIMS(B, Hkv, eights, D)));
    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(B, Hkv, whole, D)));
    FV_TRY(fv_tensor_new(ctx, &cosine, FV_F32, FV_DIMS(B, Hkv, whole, 1)));
    FV_TRY(fv_norm(ctx, &(fv_norm_args){.x = call->k, .out = unit, .epsilon = FLT_MIN}));
    for (int n = 1; n < PSA_LEVELS; n++) {
        const int64_t dims[] = {B, Hkv, eights, D}, *s = unit.strides, strides[] = {s[0], s[1], 8 * s[2], s[3]};
        fv_map_args multiply = {.op = FV_MAP_MUL,
                                .x = fv_view(&unit, 4, dims, strides, 0),
                                .y = fv_view(&unit, 4, dims, strides, ((1 << n) - 1) * s[2]),
                                .out = products};
        FV_TRY(fv_map_apply(ctx, &multiply));
        FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = products, .out = means, .block = o->block_k / 8}));
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = means, .b = ones, .c = cosine, .alpha = 1 / (float)D}));
        for (int64_t row = 0; row < B * Hkv * whole; row++) {
            uint8_t *to = cap + row / whole * blocks + row % whole;
            bool alike = ((float *)cosine.data)[row] > (float)o->sim_cap.items[n - 1];
            if (alike && *to == 1 << (n - 1)) *to = (uint8_t)(1 << n);
        }
    }
    return FV_OK;
}

fv_status psa_levels(fv_ctx *ctx, const fv_call *call, const struct psa_blocks *blocks, uint8_t *level)
{
    const struct psa *o = call->options;
    const fv_tensor *given = &call->param[PSA_GIVEN];
    fv_call plain = *call;
    struct stretch s = {.call = &plain, .o = o, .blocks = blocks, .level = level, .rows = 1, .columns = 1};
    int64_t dims[] = {call->batch, call->query_heads, blocks->queries, blocks->keys};
    uint8_t *cap;
    fv_tensor to;

    if (fv_present(given)) {
        FV_TRY(fv_tensor_new(ctx, &to, FV_I32, 4, dims));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = fv_broadcast(given, 4, dims), .out = to}));
        for (int64_t n = 0; n < fv_tensor_count(&to); n++)
            level[n] = (uint8_t)((int32_t *)to.data)[n];
        return FV_OK;
    }
    s.group = call->query_heads / call->key_heads;
    if (o->sim_cap.count > 1 || fv_dtype_block(call->k.dtype) > 1) FV_TRY(fv_as_f32(ctx, &call->k, &plain.k));
    if (o->sim_cap.count > 1) {
        FV_TRY(FV_SCRATCH(ctx, cap, call->batch * call->key_heads * blocks->keys));
        FV_TRY(cap_levels(ctx, &plain, blocks->keys, cap));
        s.cap = cap;
    }
    return rate_all(ctx, &s);
}
