#include "attention/sparse/psa.h"

#include <float.h>
#include <math.h>

#include "attention/sparse/core.h"

#define SCORES ((int64_t)1 << 20) /* held at once */

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static int64_t floor_div(int64_t a, int64_t b)
{
    return a / b - (a % b < 0);
}

void psa_blocks_of(const fv_call *call, struct psa_blocks *blocks)
{
    const struct psa *o = call->options;

    blocks->offset = call->causal ? call->offset : 0;
    blocks->first = floor_div(blocks->offset, o->block_q);
    blocks->queries = floor_div(blocks->offset + call->queries - 1, o->block_q) - blocks->first + 1;
    blocks->keys = fv_ceil_div(call->keys, o->block_k);
}

int64_t psa_end(const fv_call *call, const struct psa_blocks *blocks, int64_t g)
{
    const struct psa *o = call->options;

    return fv_min((blocks->first + g + 1) * o->block_q, blocks->offset + call->queries);
}

int64_t psa_visible(const fv_call *call, const struct psa_blocks *blocks, int64_t g)
{
    const struct psa *o = call->options;

    if (!call->causal) return blocks->keys;
    return fv_ceil_div(fv_clamp(psa_end(call, blocks, g), 0, call->keys), o->block_k);
}

/* ---- from ranks to levels ---------------------------------------------------------------------------------------- */

struct levels {
    const fv_call *call;
    const struct psa *o;
    const struct psa_blocks *blocks;
    int64_t from, count;        /* query blocks of a stretch */
    int64_t plane;              /* first (batch, head) of it */
    fv_tensor importance, rank; /* [heads * count, key blocks]: f32; i32 by falling importance */
    const uint8_t *cap;         /* [B,Hkv,key blocks]: highest level; NULL: none */
    uint8_t *level;
};

static double width_of(const struct levels *l, int level)
{
    static const double own[PSA_LEVELS] = {0.1, 0.05, 0, 0.2}, causal[PSA_LEVELS] = {0.05, 0.1, 0.1, 0.25};
    const fv_floats *given = &l->o->widths;

    if (given->count == 1 && given->items[0] == 0) return l->call->causal ? causal[level] : own[level];
    return level < given->count ? given->items[level] : 0;
}

static int mode_of(const struct levels *l)
{
    return l->o->mode != PSA_AUTO ? l->o->mode : l->call->causal ? PSA_TOPK : PSA_BOUND;
}

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

/* An interval of ranks is made one of whole tiles: longer, or shorter at the end of the row. */
static int64_t rounded(const struct psa *o, int level, int64_t from, int64_t end, int64_t n)
{
    int64_t step = fv_ceil_div(((int64_t)1 << level) * o->tile, o->block_k), to = from + fv_round_up(end - from, step);

    return to < n ? to : from + (n - from) / step * step;
}

/* Behind the last of n ranks that a level has; those of the level before end at `from`. */
static int64_t last_rank(const struct levels *l, int level, int64_t from, const float *importance, const int32_t *rank,
                         int64_t n)
{
    const struct psa *o = l->o;
    bool least = level == 0 && !l->call->causal;
    double bound = level < o->bounds.count ? o->bounds.items[level] : 0, width = 0;
    int64_t end;

    for (int w = 0; w <= level; w++)
        width += width_of(l, w);
    if (mode_of(l) == PSA_TOPK)
        end = (int64_t)floor((double)n * width + 1e-9);
    else if (mode_of(l) == PSA_ENERGY)
        end = ranks_within(importance, rank, n, bound);
    else
        end = ranks_within(importance, rank, n, bound + 1e-6) + 1;
    if (mode_of(l) == PSA_BOUND && least) end = fv_max(end, (int64_t)floor((double)n * o->min_full) + 1);
    end = fv_clamp(fv_max(end, least), from, n);
    if (o->round && !l->call->causal) end = rounded(o, level, from, end, n);
    return least ? fv_clamp(end, fv_min(1, n), n) : end;
}

/* Blocks that hold keys from..end-1 are read in full. */
static void read_fully(const struct levels *l, uint8_t *level, int64_t from, int64_t end, int64_t visible)
{
    int64_t block = l->o->block_k;

    for (int64_t j = fv_max(from, 0) / block; j < fv_min(fv_ceil_div(fv_max(end, 0), block), visible); j++)
        level[j] = 1;
}

static void assign(void *user, int64_t row, int thread)
{
    const struct levels *l = user;
    int64_t g = l->from + row % l->count, plane = l->plane + row / l->count, keys = l->blocks->keys, M = l->call->keys;
    int64_t n = psa_visible(l->call, l->blocks, g), group = l->call->query_heads / l->call->key_heads, from = 0;
    const float *importance = fv_at(&l->importance, row, 0, 0, 0);
    const int32_t *rank = fv_at(&l->rank, row, 0, 0, 0);
    uint8_t *level = l->level + (plane * l->blocks->queries + g) * keys;
    int64_t first = (l->blocks->first + g) * l->o->block_q, end = psa_end(l->call, l->blocks, g), text = l->o->text;

    (void)thread;
    memset(level, 0, (size_t)keys);
    for (int n_level = 0; n_level < PSA_LEVELS; n_level++) {
        int64_t last = last_rank(l, n_level, from, importance, rank, n);
        for (; from < last; from++)
            level[rank[from]] = (uint8_t)(1 << n_level);
    }
    if (text > 0) read_fully(l, level, M - text, M, n);
    if (l->call->causal) {
        read_fully(l, level, 0, 1, n);
        read_fully(l, level, first, end, n);
        if (text > 0 && end > M - text) read_fully(l, level, 0, M, n);
    }
    for (int64_t j = 0; l->cap && j < keys; j++)
        level[j] = (uint8_t)fv_min(level[j], l->cap[plane / group * keys + j]);
}

/* Every visible block has a rank. */
static void make_comparable(void *user, int64_t row, int thread)
{
    const struct levels *l = user;
    float *importance = fv_at(&l->importance, row, 0, 0, 0);

    (void)thread;
    for (int64_t j = 0; j < l->blocks->keys; j++)
        if (!(importance[j] >= -FLT_MAX)) importance[j] = -FLT_MAX;
}

static fv_status assign_levels(fv_ctx *ctx, struct levels *l)
{
    int64_t rows = l->importance.dims[0], *valid;

    fv_run(ctx, rows, make_comparable, l);
    FV_TRY(FV_SCRATCH(ctx, valid, rows));
    for (int64_t row = 0; row < rows; row++)
        valid[row] = psa_visible(l->call, l->blocks, l->from + row % l->count);
    FV_TRY(fv_tensor_new(ctx, &l->rank, FV_I32, 2, l->importance.dims));
    FV_TRY(
        fv_select(ctx, &(fv_select_args){.scores = l->importance, .index = l->rank, .valid = valid, .by_score = true}));
    fv_run(ctx, rows, assign, l);
    return FV_OK;
}

/* ---- importance: by samples -------------------------------------------------------------------------------------- */

/* The same places of every block: rows of x [B,Hx,N,D] for `blocks` blocks from position `first` on, out
 * [B,Hx,blocks * each,D]; places that a block has not are those of one that it has. */
static fv_status take_samples(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t first, int64_t blocks,
                              int64_t each, fv_tensor *out)
{
    fv_tensor index;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(blocks * each)));
    for (int64_t g = 0; g < blocks; g++) {
        int64_t start = first + g * block, end = fv_min(start + block, x->dims[2]), found = 0;
        int32_t *row = (int32_t *)index.data + g * each;
        for (int64_t i = 0; i < each; i++) {
            int64_t at = start + i * block / each;
            if (at >= 0 && at < end) row[found++] = (int32_t)at;
        }
        if (found == 0) row[found++] = (int32_t)(end - 1);
        for (; found < each; found++)
            row[found] = row[found - 1];
    }
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(x->dims[0], x->dims[1], blocks * each, x->dims[3])));
    return fv_gather(ctx, &(fv_gather_args){.x = *x, .index = index, .out = *out});
}

/* A stretch of query blocks of the heads that share keys. */
struct stretch {
    const struct levels *l;
    int64_t rows, columns;  /* of a query block, and of a key block, that are multiplied */
    int64_t visible;        /* key blocks of the last query block */
    fv_tensor scores, best; /* scores [heads,visible * columns,count * rows], best [heads,visible,count * rows] */
};

/* Of a key block that ends behind the query block: samples behind that. */
static void hide_future(void *user, int64_t item, int thread)
{
    const struct stretch *s = user;
    const struct levels *l = s->l;
    int64_t i = item % l->count, end = psa_end(l->call, l->blocks, l->from + i), block = l->o->block_k;
    int64_t j = psa_visible(l->call, l->blocks, l->from + i) - 1;

    (void)thread;
    for (int64_t c = 0; j >= 0 && c < s->columns; c++) {
        float *row = fv_at(&s->scores, item / l->count, j * s->columns + c, i * s->rows, 0);
        for (int64_t r = 0; j * block + c * block / s->columns >= end && r < s->rows; r++)
            row[r] = -INFINITY;
    }
}

/* exp of how near the best of a block comes to the best of all, for the row that it suits most. */
static void compare_best(void *user, int64_t item, int thread)
{
    const struct stretch *s = user;
    const struct levels *l = s->l;
    int64_t h = item / l->count, i = item % l->count, n = psa_visible(l->call, l->blocks, l->from + i);
    float *importance = fv_at(&l->importance, item, 0, 0, 0);

    (void)thread;
    for (int64_t j = 0; j < l->blocks->keys; j++)
        importance[j] = -INFINITY;
    for (int64_t r = i * s->rows; r < (i + 1) * s->rows; r++) {
        float top = -INFINITY;
        for (int64_t j = 0; j < n; j++)
            top = fmaxf(top, *(float *)fv_at(&s->best, h, j, r, 0));
        for (int64_t j = 0; j < n; j++)
            importance[j] = fmaxf(importance[j], *(float *)fv_at(&s->best, h, j, r, 0) - top);
    }
    for (int64_t j = 0; j < n; j++)
        importance[j] = expf(importance[j]);
}

/* q [heads,rows of the stretch,D], k [visible * columns,D]. */
static fv_status score_samples(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k, float scale)
{
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *k, .b = fv_transposed(q), .c = s->scores, .alpha = scale}));
    if (s->l->call->causal) fv_run(ctx, q->dims[0] * s->l->count, hide_future, s);
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MAX, .x = s->scores, .out = s->best, .block = s->columns});
}

static fv_status compare_samples(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k)
{
    int64_t heads = q->dims[0], rows = q->dims[1];

    FV_TRY(fv_tensor_new(ctx, &s->scores, FV_F32, FV_DIMS(heads, s->visible * s->columns, rows)));
    FV_TRY(fv_tensor_new(ctx, &s->best, FV_F32, FV_DIMS(heads, s->visible, rows)));
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = s->visible > 0 ? score_samples(ctx, s, q, k, s->l->call->scale) : FV_OK;
    fv_phase_enter(ctx, before);
    FV_TRY(status);
    fv_run(ctx, heads * s->l->count, compare_best, s);
    return FV_OK;
}

/* ---- importance: by antidiagonals -------------------------------------------------------------------------------- */

/* Each PSA_STRIDE rows of x from position `first` on joined to one, those of queries in reverse, out [B,Hx,count,
 * PSA_STRIDE * D]: the product of two is the sum over an antidiagonal.  Rows that are not there are 0. */
static fv_status join_rows(fv_ctx *ctx, const fv_tensor *x, int64_t first, int64_t count, bool reverse, fv_tensor *out)
{
    int64_t B = x->dims[0], heads = x->dims[1], D = x->dims[3];
    fv_tensor index, rows;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(count * PSA_STRIDE)));
    for (int64_t n = 0; n < count * PSA_STRIDE; n++) {
        int64_t at = first + (reverse ? n / PSA_STRIDE * PSA_STRIDE + PSA_STRIDE - 1 - n % PSA_STRIDE : n);
        ((int32_t *)index.data)[n] = (int32_t)(at >= 0 && at < x->dims[2] ? at : -1);
    }
    FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, FV_DIMS(B, heads, count * PSA_STRIDE, D)));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = *x, .index = index, .out = rows}));
    *out = fv_reshaped(&rows, FV_DIMS(B, heads, count, PSA_STRIDE * D));
    return FV_OK;
}

/* Joined keys behind a joined query, and rows of those without any. */
static void hide_joined(void *user, int64_t item, int thread)
{
    const struct stretch *s = user;
    const struct levels *l = s->l;
    int64_t h = item / (l->count * s->rows), r = item % (l->count * s->rows);
    int64_t at = (l->blocks->first + l->from) * s->rows + r, first = at * PSA_STRIDE - l->blocks->offset;
    bool there = first + PSA_STRIDE > 0 && first < l->call->queries;
    float *row = fv_at(&s->scores, h, r, 0, 0);

    (void)thread;
    for (int64_t t = !there ? 0 : l->call->causal ? at + 1 : s->scores.dims[2]; t < s->scores.dims[2]; t++)
        row[t] = -INFINITY;
}

static void sum_blocks(void *user, int64_t item, int thread)
{
    const struct stretch *s = user;
    const struct levels *l = s->l;
    const float *sum = fv_at(&s->best, item / l->count, item % l->count, 0, 0);
    float *importance = fv_at(&l->importance, item, 0, 0, 0);

    (void)thread;
    for (int64_t j = 0; j < l->blocks->keys; j++)
        importance[j] = 0;
    for (int64_t t = 0; t < s->best.dims[2]; t++)
        importance[t / s->columns] += sum[t];
}

static fv_status score_joined(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k, float scale)
{
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *q, .b = fv_transposed(k), .c = s->scores, .alpha = scale}));
    fv_run(ctx, q->dims[0] * q->dims[1], hide_joined, s);
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = s->scores, .out = s->scores}));
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_SUM, .x = s->scores, .out = s->best, .block = s->rows});
}

static fv_status compare_joined(fv_ctx *ctx, struct stretch *s, const fv_tensor *q, const fv_tensor *k)
{
    int64_t heads = q->dims[0];

    FV_TRY(fv_tensor_new(ctx, &s->scores, FV_F32, FV_DIMS(heads, q->dims[1], k->dims[0])));
    FV_TRY(fv_tensor_new(ctx, &s->best, FV_F32, FV_DIMS(heads, s->l->count, k->dims[0])));
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = score_joined(ctx, s, q, k, s->l->call->scale / PSA_STRIDE);
    fv_phase_enter(ctx, before);
    FV_TRY(status);
    fv_run(ctx, heads * s->l->count, sum_blocks, s);
    return FV_OK;
}

/* ---- all of it --------------------------------------------------------------------------------------------------- */

/* What is multiplied instead of queries and keys: q [B,H,rows,..], k [B,Hkv,columns,..]. */
static fv_status take_operands(fv_ctx *ctx, const struct levels *l, fv_tensor *q, fv_tensor *k, struct stretch *s)
{
    const struct psa *o = l->o;
    const fv_call *call = l->call;
    const struct psa_blocks *blocks = l->blocks;
    int64_t first = blocks->first * o->block_q - blocks->offset, each = o->sample ? o->sample : o->block_k / 4;

    if (o->estimate == PSA_ANTIDIAGONAL) {
        s->rows = o->block_q / PSA_STRIDE;
        s->columns = o->block_k / PSA_STRIDE;
        FV_TRY(join_rows(ctx, &call->q, first, blocks->queries * s->rows, true, q));
        return join_rows(ctx, &call->k, 0, fv_ceil_div(call->keys, PSA_STRIDE), false, k);
    }
    s->rows = fv_min(each, o->block_q);
    s->columns = fv_min(each, o->block_k);
    FV_TRY(take_samples(ctx, &call->q, o->block_q, first, blocks->queries, s->rows, q));
    return take_samples(ctx, &call->k, o->block_k, 0, blocks->keys, s->columns, k);
}

/* A plane of a [B,H,..] tensor of rows: [rows,C]. */
static fv_tensor plane_of(const fv_tensor *t, int64_t b, int64_t h)
{
    return fv_view(t, FV_DIMS(t->dims[2], t->dims[3]), t->strides + 2, b * t->strides[0] + h * t->strides[1]);
}

static fv_status rate_stretch(fv_ctx *ctx, struct levels *l, struct stretch *s, const fv_tensor *q, const fv_tensor *k)
{
    const fv_call *call = l->call;
    int64_t b = l->plane / call->query_heads, h = l->plane % call->query_heads,
            group = call->query_heads / call->key_heads;
    fv_tensor keys = plane_of(k, b, h / group), rows = fv_slice(q, 0, b, 1);
    int64_t used = fv_min(s->visible * s->columns, keys.dims[0]);

    rows = fv_slice(&rows, 1, h, group);
    rows = fv_slice(&rows, 2, l->from * s->rows, l->count * s->rows);
    rows = fv_view(&rows, FV_DIMS(group, l->count * s->rows, rows.dims[3]), rows.strides + 1, 0);
    keys = fv_slice(&keys, 0, 0, used);
    FV_TRY(fv_tensor_new(ctx, &l->importance, FV_F32, FV_DIMS(group * l->count, l->blocks->keys)));
    if (l->o->estimate == PSA_ANTIDIAGONAL) return compare_joined(ctx, s, &rows, &keys);
    return compare_samples(ctx, s, &rows, &keys);
}

/* Importance that was given. */
static fv_status copy_stretch(fv_ctx *ctx, struct levels *l)
{
    const fv_call *call = l->call;
    int64_t dims[] = {call->batch, call->query_heads, l->blocks->queries, l->blocks->keys};
    int64_t group = call->query_heads / call->key_heads;
    fv_tensor given = fv_broadcast(&call->param[PSA_IMPORTANCE], 4, dims);

    given = fv_slice(&given, 0, l->plane / call->query_heads, 1);
    given = fv_slice(&given, 1, l->plane % call->query_heads, group);
    given = fv_slice(&given, 2, l->from, l->count);
    FV_TRY(fv_tensor_new(ctx, &l->importance, FV_F32, FV_DIMS(group * l->count, l->blocks->keys)));
    return fv_map_apply(
        ctx,
        &(fv_map_args){.x = given, .out = fv_reshaped(&l->importance, FV_DIMS(1, group, l->count, l->blocks->keys))});
}

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

static fv_status rate_all(fv_ctx *ctx, struct levels *l)
{
    const fv_call *call = l->call;
    int64_t group = call->query_heads / call->key_heads, room;
    bool given = fv_present(&call->param[PSA_IMPORTANCE]);
    struct stretch s = {.l = l, .rows = 1, .columns = 1};
    fv_tensor q, k;
    fv_status status = FV_OK;

    if (!given) FV_TRY(take_operands(ctx, l, &q, &k, &s));
    room = fv_clamp(SCORES / fv_max(group * s.rows * s.columns * l->blocks->keys, 1), 1, l->blocks->queries);
    for (l->plane = 0; l->plane < call->batch * call->query_heads; l->plane += group)
        for (l->from = 0; l->from < l->blocks->queries && status == FV_OK; l->from += room) {
            fv_mark mark = fv_scratch_mark(ctx);
            l->count = fv_min(room, l->blocks->queries - l->from);
            s.visible = psa_visible(call, l->blocks, l->from + l->count - 1);
            status = fv_ctx_check(ctx);
            if (status == FV_OK) status = given ? copy_stretch(ctx, l) : rate_stretch(ctx, l, &s, &q, &k);
            if (status == FV_OK) status = assign_levels(ctx, l);
            fv_scratch_release(ctx, mark);
        }
    return status;
}

fv_status psa_levels(fv_ctx *ctx, const fv_call *call, const struct psa_blocks *blocks, uint8_t *level)
{
    const struct psa *o = call->options;
    struct levels l = {.call = call, .o = o, .blocks = blocks, .level = level};
    uint8_t *cap;

    if (fv_present(&call->param[PSA_GIVEN])) {
        int64_t dims[] = {call->batch, call->query_heads, blocks->queries, blocks->keys};
        fv_tensor given = fv_broadcast(&call->param[PSA_GIVEN], 4, dims), to;
        FV_TRY(fv_tensor_new(ctx, &to, FV_I32, 4, dims));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = given, .out = to}));
        for (int64_t n = 0; n < fv_tensor_count(&to); n++)
            level[n] = (uint8_t)((int32_t *)to.data)[n];
        return FV_OK;
    }
    if (o->sim_cap.count > 1) {
        FV_TRY(FV_SCRATCH(ctx, cap, call->batch * call->key_heads * blocks->keys));
        FV_TRY(cap_levels(ctx, call, blocks->keys, cap));
        l.cap = cap;
    }
    return rate_all(ctx, &l);
}
