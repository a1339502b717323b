/* Choosing blocks by a cut through the scores of many queries: the best ones up to a number, or up to a share of what
 * all of them sum to.  The cut is found by the bits of scores, eight at a time from the highest.  Scores are looked at
 * several times, and made anew each time if they are too many to be held; that is little beside attention (2 N C D
 * flops for C blocks). */
#include <math.h>

#include "attention/sparse/core.h"
#include "ops/ranks.h"

#define HELD ((int64_t)1 << 22) /* scores */
enum { BITS = 8, BINS = 1 << BITS, LEVELS = 32 / BITS };

/* Scores whose next bits are the same. */
struct bin {
    double sum; /* of their weights */
    int64_t count;
};

/* What is sorted and cut together. */
struct scope {
    float low, high;   /* of all scores */
    double total, own; /* of all weights, and of those of own blocks */
    double need;       /* the weight that others are taken to reach, ... */
    double above;      /* ... that of those with a higher key than `key`, as far as its bits are known */
    uint32_t key;      /* of the last one taken */
    bool all, none;    /* of the others are taken */
    int64_t ties;      /* with that key, taken in their order: block, head, query */
    bool split;        /* not all of them are */
    struct bin bin[BINS];
};

struct cutting {
    const fv_call *call;
    const fv_choice *choice;
    const fv_cut *cut;
    int64_t blocks, scopes, level;
    struct scope *scope;
    int64_t *ties; /* [B,H,blocks] scores with the key of the cut; then how many of them are taken */
    int64_t from;  /* first query of the stretch */
    const fv_tensor *scores;
};

static int64_t own_block(const struct cutting *c, int64_t i)
{
    return c->cut->own ? (c->from + i) / c->choice->block : -1;
}

static void take(const fv_choice *choice, int64_t b, int64_t h, int64_t i, int64_t block)
{
    uint8_t *byte = fv_at(&choice->mask, b, h, i, block / 8);

    *byte |= (uint8_t)(1 << block % 8);
}

/* ---- scopes of one query ---------------------------------------------------------------------------------------- */

struct rows {
    const struct cutting *c;
    fv_tensor index; /* [B,H,n,top] best blocks, own ones among them; or */
    uint64_t *ranks; /* [threads, blocks] a heap of a row's others */
};

/* The smallest rank is that of the largest score. */
static uint64_t rank_of(float score, int64_t block)
{
    return ~fv_rank(fv_rank_key(score), block);
}

static void take_share(const struct cutting *c, int64_t b, int64_t h, int64_t i, uint64_t *heap)
{
    const float *row = fv_at(c->scores, b, h, i, 0);
    int64_t own = own_block(c, i), count = 0;
    double low = INFINITY, high = -INFINITY, total = 0, sum = 0, need, factor;

    for (int64_t block = 0; block < c->blocks; block++) {
        if (row[block] < low) low = row[block];
        if (row[block] > high) high = row[block];
    }
    factor = high - low <= 1e-6 ? 1 : 1 / (high - low);
    for (int64_t block = 0; block < c->blocks; block++) {
        if (isnan(row[block])) continue;
        total += (row[block] - low) * factor;
        if (block != own) heap[count++] = rank_of(row[block], block);
    }
    need = c->cut->share * (total + 1e-6) - (own < 0 ? 0 : (row[own] - low) * factor);
    for (int64_t at = count / 2 - 1; at >= 0; at--)
        fv_ranks_sift(heap, at, count);
    for (bool first = true; count > 0 && (first || sum < need || c->cut->share >= 1); first = false) {
        int64_t block = fv_rank_index(~heap[0]);
        sum += (row[block] - low) * factor;
        take(c->choice, b, h, c->from + i, block);
        heap[0] = heap[--count];
        fv_ranks_sift(heap, 0, count);
    }
}

static void take_rows(void *user, int64_t plane, int thread)
{
    const struct rows *rows = user;
    const struct cutting *c = rows->c;
    int64_t H = c->call->query_heads, b = plane / H, h = plane % H;

    for (int64_t i = 0; i < c->scores->dims[2]; i++) {
        int64_t own = own_block(c, i);
        if (c->cut->top == 0) take_share(c, b, h, i, rows->ranks + thread * c->blocks);
        for (int64_t n = 0; c->cut->top && n < rows->index.dims[3]; n++) {
            int32_t block = *(const int32_t *)fv_at(&rows->index, b, h, i, n);
            if (block >= 0) take(c->choice, b, h, c->from + i, block);
        }
        if (own >= 0) take(c->choice, b, h, c->from + i, own);
    }
}

/* Each query for itself. */
static fv_status cut_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct cutting *c = user;
    int64_t B = scores->dims[0], H = scores->dims[1], n = scores->dims[2], top = fv_min(c->cut->top, c->blocks);
    struct rows rows = {.c = c};

    c->from = from;
    c->scores = scores;
    if (top > 0) {
        for (int64_t row = 0; row < B * H * n && c->cut->own; row++)
            *(float *)fv_at(scores, row / n / H, row / n % H, row % n, own_block(c, row % n)) = INFINITY;
        FV_TRY(fv_tensor_new(ctx, &rows.index, FV_I32, FV_DIMS(B, H, n, top)));
        FV_TRY(fv_select(ctx, &(fv_select_args){.scores = *scores, .index = rows.index}));
    } else {
        FV_TRY(FV_SCRATCH(ctx, rows.ranks, fv_ctx_threads(ctx) * c->blocks));
    }
    fv_run(ctx, B * H, take_rows, &rows);
    return FV_OK;
}

/* ---- scopes of many queries -------------------------------------------------------------------------------------- */

/* Heads and blocks of a scope. */
struct part {
    int64_t b, head, heads, block, blocks;
};

static struct part part_of(const struct cutting *c, int64_t scope)
{
    int64_t H = c->call->query_heads, C = c->blocks;

    if (c->cut->scope == FV_SCOPE_HEAD) return (struct part){scope / H, scope % H, 1, 0, C};
    if (c->cut->scope == FV_SCOPE_BLOCK) return (struct part){scope / C, 0, H, scope % C, 1};
    return (struct part){scope, 0, H, 0, C};
}

static struct scope *scope_of(const struct cutting *c, int64_t b, int64_t h, int64_t block)
{
    if (c->cut->scope == FV_SCOPE_HEAD) return &c->scope[b * c->call->query_heads + h];
    return &c->scope[c->cut->scope == FV_SCOPE_BLOCK ? b * c->blocks + block : b];
}

static float factor_of(const struct scope *s)
{
    return s->high - s->low <= 1e-6f ? 1 : 1 / (s->high - s->low);
}

static void look_for_range(void *user, int64_t index, int thread)
{
    const struct cutting *c = user;
    const struct part p = part_of(c, index);
    struct scope *s = &c->scope[index];

    (void)thread;
    for (int64_t h = p.head; h < p.head + p.heads; h++)
        for (int64_t i = 0; i < c->scores->dims[2]; i++) {
            const float *row = fv_at(c->scores, p.b, h, i, 0);
            for (int64_t block = p.block; block < p.block + p.blocks; block++) {
                if (row[block] < s->low) s->low = row[block];
                if (row[block] > s->high) s->high = row[block];
            }
        }
}

/* Adds up weights by the next bits of those scores whose higher ones are those of the cut. */
static void fill_bins(void *user, int64_t index, int thread)
{
    const struct cutting *c = user;
    const struct part p = part_of(c, index);
    const int shift = (int)(32 - BITS * (c->level + 1));
    struct scope *s = &c->scope[index];
    float factor = factor_of(s);

    (void)thread;
    if (s->all || s->none) return;
    for (int64_t h = p.head; h < p.head + p.heads; h++)
        for (int64_t i = 0; i < c->scores->dims[2]; i++) {
            const float *row = fv_at(c->scores, p.b, h, i, 0);
            int64_t own = own_block(c, i);
            for (int64_t block = p.block; block < p.block + p.blocks; block++) {
                uint32_t key = fv_rank_key(row[block]);
                double weight = c->cut->top ? 1 : (double)((row[block] - s->low) * factor);
                if ((c->level > 0 && ((key ^ s->key) >> shift >> BITS)) || isnan(row[block])) continue;
                if (c->level == 0) s->total += weight;
                if (c->level == 0 && block == own) s->own += weight;
                if (block == own) continue;
                s->bin[key >> shift & (BINS - 1)].sum += weight;
                s->bin[key >> shift & (BINS - 1)].count++;
            }
        }
}

/* What the others have to reach. */
static void set_need(const struct cutting *c, int64_t index)
{
    const struct part p = part_of(c, index);
    struct scope *s = &c->scope[index];

    if (c->cut->top)
        s->need = (double)((c->cut->top - c->cut->own) * p.heads * c->call->queries);
    else
        s->need = c->cut->share * (s->total + 1e-6) - s->own;
    s->none = c->cut->top && s->need <= 0;
    s->all = !c->cut->top && c->cut->share >= 1; /* whatever sums are rounded to */
}

/* Finds the bin in which the sum is reached: one more field of the key. */
static void settle(const struct cutting *c, int64_t index)
{
    const int shift = (int)(32 - BITS * (c->level + 1));
    struct scope *s = &c->scope[index];
    int at = -1, lowest = -1;

    if (c->level == 0) set_need(c, index);
    for (int n = BINS - 1; n >= 0 && at < 0; n--) {
        if (s->bin[n].count == 0) continue;
        lowest = n;
        if (s->above + s->bin[n].sum >= s->need)
            at = n;
        else
            s->above += s->bin[n].sum;
    }
    if (at < 0) { /* of all it is not; of the part of a bin it was, but for rounding */
        s->all |= c->level == 0;
        at = fv_max(lowest, 0);
        s->above -= s->bin[at].sum;
    }
    s->key |= (uint32_t)at << shift;
    if (c->level == LEVELS - 1) {
        double weight = s->bin[at].sum / (double)fv_max(s->bin[at].count, 1);
        for (s->ties = 1; s->ties < s->bin[at].count && s->above + weight * (double)s->ties < s->need;)
            s->ties++;
        s->split = s->ties < s->bin[at].count;
    }
    memset(s->bin, 0, sizeof s->bin);
}

/* Counts scores at the cut, or takes those above it and as many of those at it as may be. */
static void take_plane(void *user, int64_t plane, int thread)
{
    const struct cutting *c = user;
    int64_t H = c->call->query_heads, b = plane / H, h = plane % H;
    int64_t *ties = c->ties + plane * c->blocks;

    (void)thread;
    for (int64_t i = 0; i < c->scores->dims[2]; i++) {
        const float *row = fv_at(c->scores, b, h, i, 0);
        int64_t own = own_block(c, i);
        for (int64_t block = 0; block < c->blocks; block++) {
            const struct scope *s = scope_of(c, b, h, block);
            uint32_t key = fv_rank_key(row[block]);
            bool cut = !s->all && !s->none && key == s->key && block != own && !isnan(row[block]);
            if (c->level == LEVELS) {
                ties[block] += cut;
                continue;
            }
            if (block != own && (s->none || isnan(row[block]))) continue;
            if (block == own || s->all || key > s->key || (cut && ties[block]-- > 0))
                take(c->choice, b, h, c->from + i, block);
        }
    }
}

/* Deals the ties of a scope out in their order. */
static void deal_ties(const struct cutting *c, int64_t index)
{
    const struct part p = part_of(c, index);
    int64_t left = c->scope[index].ties;

    for (int64_t block = p.block; block < p.block + p.blocks; block++)
        for (int64_t h = p.head; h < p.head + p.heads; h++) {
            int64_t *ties = &c->ties[(p.b * c->call->query_heads + h) * c->blocks + block];
            *ties = fv_min(*ties, left);
            left -= *ties;
        }
}

/* Levels -1: the range of scores; 0..LEVELS-1: bits of the cut; LEVELS: ties; LEVELS + 1: what is taken. */
static fv_status look(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct cutting *c = user;

    c->from = from;
    c->scores = scores;
    if (c->level < LEVELS)
        fv_run(ctx, c->scopes, c->level < 0 ? look_for_range : fill_bins, c);
    else
        fv_run(ctx, c->call->batch * c->call->query_heads, take_plane, c);
    return FV_OK;
}

static fv_status hold(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    fv_tensor part = fv_slice(user, 2, from, scores->dims[2]);

    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *scores, .out = part});
}

/* The end of a level. */
static void conclude(struct cutting *c)
{
    bool split = false;

    for (int64_t s = 0; s < c->scopes; s++) {
        if (c->level >= 0 && c->level < LEVELS) settle(c, s);
        if (c->level == LEVELS) deal_ties(c, s);
        split = split || c->scope[s].split;
    }
    if (c->level != LEVELS - 1 || split) return;
    c->level++; /* all ties are taken, however many there are */
    for (int64_t n = 0; n < c->call->batch * c->call->query_heads * c->blocks; n++)
        c->ties[n] = INT64_MAX;
}

static fv_status cut_scopes(fv_ctx *ctx, struct cutting *c, const fv_tensor *q, const fv_tensor *keys)
{
    int64_t B = c->call->batch, H = c->call->query_heads, N = c->call->queries;
    fv_tensor held = {0};

    c->scopes = c->cut->scope == FV_SCOPE_HEAD ? B * H : c->cut->scope == FV_SCOPE_BLOCK ? B * c->blocks : B;
    FV_TRY(FV_SCRATCH(ctx, c->scope, c->scopes));
    FV_TRY(FV_SCRATCH(ctx, c->ties, B * H * c->blocks));
    memset(c->scope, 0, (size_t)c->scopes * sizeof *c->scope);
    memset(c->ties, 0, (size_t)(B * H * c->blocks) * sizeof *c->ties);
    for (int64_t s = 0; s < c->scopes; s++)
        c->scope[s].low = INFINITY, c->scope[s].high = -INFINITY;
    if (B * H * N <= HELD / fv_max(c->blocks, 1)) {
        FV_TRY(fv_tensor_new(ctx, &held, FV_F32, FV_DIMS(B, H, N, c->blocks)));
        FV_TRY(fv_score_rows(ctx, q, keys, 1, hold, &held));
    }
    for (c->level = c->cut->top ? 0 : -1; c->level <= LEVELS + 1; c->level++) {
        FV_TRY(fv_present(&held) ? look(ctx, c, 0, &held) : fv_score_rows(ctx, q, keys, 1, look, c));
        conclude(c);
    }
    return FV_OK;
}

fv_status fv_choose_by_cut(fv_ctx *ctx, const fv_call *call, fv_choice *choice, const fv_cut *cut, const fv_tensor *q,
                           const fv_tensor *keys)
{
    struct cutting c = {.call = call, .choice = choice, .cut = cut, .blocks = keys->dims[2]};

    FV_TRY(fv_tensor_zeros(ctx, &choice->mask, FV_U8,
                           FV_DIMS(call->batch, call->query_heads, call->queries, fv_ceil_div(c.blocks, 8))));
    if (cut->scope == FV_SCOPE_QUERY) return fv_score_rows(ctx, q, keys, 1, cut_rows, &c);
    return cut_scopes(ctx, &c, q, keys);
}
