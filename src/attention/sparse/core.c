#include "attention/sparse/core.h"

#include <float.h>

#include "attention/attention.h"

/* Bytes of partial results held at once when the loops are turned round, and scores held at once. */
#define PART_BYTES ((int64_t)64 << 20)
#define SCORES ((int64_t)1 << 17)

/* ---- parts of a call -------------------------------------------------------------------------------------------- */

fv_status fv_run_parts(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t queries, fv_part_fn *run)
{
    int64_t step = fv_max(queries / block, 1);
    fv_status status = FV_OK;

    for (int64_t from = 0, next; from < call->queries && status == FV_OK; from = next) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t p = call->offset + from, first = p / block - (p % block < 0);
        fv_call part;
        next = fv_clamp((first + step) * block - call->offset, from + 1, call->queries);
        fv_call_cut(call->mechanism, call, from, next - from, &part);
        part.decoding = call->decoding;
        status = run(ctx, &part);
        fv_scratch_release(ctx, mark);
    }
    return status;
}

/* ---- pool ------------------------------------------------------------------------------------------------------- */

fv_status fv_block_means(fv_ctx *ctx, const fv_tensor *x, int64_t block, int64_t from, const fv_tensor *out)
{
    int64_t first = from * block, count = fv_min(out->dims[2] * block, x->dims[2] - first);
    fv_tensor rows = fv_slice(x, 2, first, count), plain;
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_as_f32(ctx, &rows, &plain);

    if (status == FV_OK)
        status = fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MEAN, .x = plain, .out = *out, .block = block});
    fv_phase_enter(ctx, before);
    return status;
}

fv_status fv_group_means(fv_ctx *ctx, const fv_tensor *q, int64_t key_heads, fv_tensor *mean)
{
    int64_t B = q->dims[0], N = q->dims[2], D = q->dims[3], group = q->dims[1] / key_heads;
    fv_tensor heads = fv_grouped(q, key_heads), rows = fv_permuted(&heads, (const int[]){0, 1, 3, 2, 4});
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_tensor_new(ctx, mean, FV_F32, FV_DIMS(B, key_heads, N, D));

    if (status == FV_OK)
        status = fv_pool_rows(
            ctx, &(fv_pool_args){.x = rows, .out = fv_reshaped(mean, FV_DIMS(B, key_heads, N, 1, D)), .block = group});
    fv_phase_enter(ctx, before);
    return status;
}

/* ---- score ------------------------------------------------------------------------------------------------------ */

static fv_status score_part(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                            void *user, int64_t from, int64_t count)
{
    int64_t Hx = k->dims[1];
    fv_tensor part = fv_slice(q, 2, from, count), keys = fv_grouped(k, Hx), scores;
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_SCORE);
    fv_status status = fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(q->dims[0], q->dims[1], count, k->dims[2]));

    if (status == FV_OK)
        status = fv_gemm(ctx, &(fv_gemm_args){.a = fv_grouped(&part, Hx),
                                              .b = fv_transposed(&keys),
                                              .c = fv_grouped(&scores, Hx),
                                              .alpha = scale});
    fv_phase_enter(ctx, before);
    return status == FV_OK ? use(ctx, user, from, &scores) : status;
}

/* With `call`, keys stand for blocks, of which those that are complete at the last row of a stretch are scored. */
static fv_status score_stretches(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k,
                                 int64_t first, int64_t block, float scale, fv_use_scores_fn *use, void *user)
{
    int64_t N = q->dims[2], row = q->dims[0] * q->dims[1] * k->dims[2];
    int64_t step = fv_clamp(SCORES / fv_max(row, 1), 16, fv_max(N, 16));
    fv_status status = FV_OK;

    for (int64_t from = 0; from < N && status == FV_OK; from += step) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t count = fv_min(step, N - from), end = call ? call->offset + from + count - first : 0;
        fv_tensor seen = call ? fv_slice(k, 2, 0, fv_clamp(end / block, fv_min(1, k->dims[2]), k->dims[2])) : *k;
        status = score_part(ctx, q, &seen, scale, use, user, from, count);
        fv_scratch_release(ctx, mark);
        if (status == FV_OK) status = fv_ctx_check(ctx);
    }
    return status;
}

fv_status fv_score_rows(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, fv_use_scores_fn *use,
                        void *user)
{
    return score_stretches(ctx, NULL, q, k, 0, 0, scale, use, user);
}

fv_status fv_score_blocks(fv_ctx *ctx, const fv_call *call, const fv_tensor *q, const fv_tensor *k, int64_t first,
                          int64_t block, float scale, fv_use_scores_fn *use, void *user)
{
    return score_stretches(ctx, call->causal ? call : NULL, q, k, first, block, scale, use, user);
}

/* Weights [count,M] of a stretch of rows, reduced to out [blocks of columns]. */
static fv_status reduce_weights(fv_ctx *ctx, fv_pool_kind kind, const fv_tensor *weights, int64_t block,
                                const fv_tensor *out)
{
    int64_t M = weights->dims[1];
    fv_tensor row;

    FV_TRY(fv_tensor_new(ctx, &row, FV_F32, FV_DIMS(1, M)));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = kind, .x = *weights, .out = row, .block = weights->dims[0]}));
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = kind,
                                             .x = fv_reshaped(&row, FV_DIMS(M, 1)),
                                             .out = fv_reshaped(out, FV_DIMS(out->dims[1], 1)),
                                             .block = block});
}

static fv_status weigh_row(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, int64_t block,
                           const fv_tensor *sum, const fv_tensor *largest)
{
    fv_tensor weights;

    FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, FV_DIMS(q->dims[0], k->dims[0])));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = *q,
                                        .b = fv_transposed(k),
                                        .c = weights,
                                        .alpha = scale != 0 ? scale : FLT_MIN})); /* 0 would mean 1 */
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = weights, .out = weights}));
    FV_TRY(reduce_weights(ctx, FV_POOL_SUM, &weights, block, sum));
    return reduce_weights(ctx, FV_POOL_MAX, &weights, block, largest);
}

fv_status fv_block_weights(fv_ctx *ctx, const fv_tensor *q, const fv_tensor *k, float scale, int64_t block,
                           const fv_tensor *sum, const fv_tensor *largest)
{
    fv_status status = FV_OK;

    for (int64_t r = 0; r < sum->dims[0] && status == FV_OK; r++) {
        fv_tensor rows = fv_slice(q, 0, r * block, fv_min(block, q->dims[0] - r * block));
        fv_tensor sums = fv_slice(sum, 0, r, 1), most = fv_slice(largest, 0, r, 1);
        fv_mark mark = fv_scratch_mark(ctx);
        status = weigh_row(ctx, &rows, k, scale, block, &sums, &most);
        fv_scratch_release(ctx, mark);
        if (status == FV_OK) status = fv_ctx_check(ctx);
    }
    return status;
}

/* ---- select ----------------------------------------------------------------------------------------------------- */

fv_status fv_choice_new(fv_ctx *ctx, const fv_call *call, int64_t chosen, fv_choice *choice)
{
    return fv_tensor_new(ctx, &choice->index, FV_I32, FV_DIMS(call->batch, choice->heads, call->queries, chosen));
}

/* The first block of the tail at position p, which may lie among the first ones or before them. */
static int64_t tail_block(const fv_choice *choice, int64_t p)
{
    int64_t behind = p + 1 - choice->tail - choice->first;

    return choice->init + (behind >= 0 ? behind / choice->block : -1);
}

fv_status fv_choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice, int64_t from, const fv_tensor *scores)
{
    int64_t count = scores->dims[2], blocks = scores->dims[3], lists = call->batch * choice->heads;
    int64_t *valid;
    fv_tensor index = fv_slice(&choice->index, 2, from, count);

    FV_TRY(FV_SCRATCH(ctx, valid, lists * count));
    for (int64_t row = 0; row < lists * count; row++) {
        int64_t tail = tail_block(choice, call->offset + from + row % count);
        valid[row] = call->causal ? fv_clamp(tail - choice->init, 0, blocks) : blocks;
    }
    return fv_select(ctx, &(fv_select_args){.scores = *scores, .index = index, .valid = valid});
}

struct choosing {
    const fv_call *call;
    fv_choice *choice;
};

static fv_status choose_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    const struct choosing *c = user;

    return fv_choose(ctx, c->call, c->choice, from, scores);
}

fv_status fv_choose_by_product(fv_ctx *ctx, const fv_call *call, fv_choice *choice, const fv_tensor *q,
                               const fv_tensor *keys)
{
    return fv_score_blocks(ctx, call, q, keys, choice->first, choice->block, 1, choose_rows,
                           &(struct choosing){call, choice});
}

/* ---- lists ------------------------------------------------------------------------------------------------------ */

/* Whether each block has a softmax of its own, and what is known of it is given. */
static bool is_given(const fv_choice *choice)
{
    return fv_present(&choice->weight) || fv_present(&choice->gate);
}

/* Blocks of one query. */
static void list_query(const fv_call *call, const fv_choice *choice, int64_t b, int64_t h, int64_t i,
                       fv_list_builder *lists)
{
    int64_t p = call->offset + i, behind = p - choice->first;
    int64_t end = choice->init + (behind >= 0 ? behind / choice->block + 1 : 0); /* of what it may see */

    if (call->causal && p < 0) return; /* sees nothing */
    if (call->causal && !is_given(choice)) {
        int64_t init =
            choice->first == choice->init * choice->block ? fv_min(choice->init, p / choice->block + 1) : choice->init;
        fv_lists_add_range(lists, 0, init);
        fv_lists_add_range(lists, tail_block(choice, p), end);
    }
    if (fv_present(&choice->mask)) {
        const uint8_t *mask = fv_at(&choice->mask, b, h, i, 0);
        for (int64_t n = 0; n < choice->mask.dims[3]; n++)
            for (unsigned bits = mask[n]; bits; bits &= bits - 1)
                fv_lists_add(lists, choice->init + 8 * n + __builtin_ctz(bits));
        return;
    }
    const int32_t *index = fv_at(&choice->index, b, h, i, 0);
    for (int64_t n = 0; n < choice->index.dims[3] && index[n] >= 0; n++)
        fv_lists_add(lists, choice->init + index[n]);
}

/* Starts of the blocks where the first one has a length of its own. */
static fv_status shifted(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, const int64_t **start,
                         int64_t *blocks)
{
    int64_t *made, behind = fv_max(call->keys - choice->first, 0);

    *blocks = choice->init + fv_ceil_div(behind, choice->block);
    FV_TRY(FV_SCRATCH(ctx, made, *blocks + 1));
    made[0] = 0;
    for (int64_t c = 0; c <= *blocks - choice->init; c++)
        made[choice->init + c] = fv_min(choice->first + c * choice->block, call->keys);
    *start = made;
    return FV_OK;
}

fv_status fv_choice_plan(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_plan *plan)
{
    const int64_t *start = choice->key_start;
    int64_t blocks = choice->key_blocks;
    fv_list_builder lists;

    if (!start && choice->first != choice->init * choice->block) FV_TRY(shifted(ctx, call, choice, &start, &blocks));
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = 1,
                                           .key_block = choice->block,
                                           .key_start = start,
                                           .key_blocks = blocks,
                                           .batches = call->batch,
                                           .heads = choice->heads,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = call->offset}));
    for (int64_t b = 0; b < call->batch; b++)
        for (int64_t h = 0; h < choice->heads; h++)
            for (int64_t i = 0; i < call->queries; i++) {
                fv_lists_row(&lists);
                list_query(call, choice, b, h, i, &lists);
            }
    return fv_lists_end(&lists, plan);
}

/* ---- lifetimes -------------------------------------------------------------------------------------------------- */

enum { ROWS = 64 /* queries of a list */ };

/* Lists of ROWS queries of each plane (batch and head), which name in ascending order the blocks that some of them
 * reads; the words of a tile say which of them do where not all do. */
struct living {
    const fv_call *call;
    const fv_lifetimes *of;
    int64_t groups, blocks;
    int32_t *alive;      /* [planes,blocks] */
    int64_t *row_start;  /* [planes * groups + 1], at first the length of each list behind its place */
    int64_t *tile_start; /* [planes + 1], at first the tiles of each plane behind its place */
    int32_t *entry;      /* NULL: only counted */
    int32_t *tile;
    uint64_t *tiles;
};

/* Which queries of a group, of which there are `rows` from position p on, read block c. */
static uint64_t readers(const struct living *l, int64_t plane, int64_t c, int64_t p, int64_t rows)
{
    int64_t block = l->of->block, gone = l->of->gone[plane * l->blocks + c], next = (c + 1) * block, r = 0;
    uint64_t bits = 0;

    for (r = fv_max(c * block - p, 0); r < rows && p + r < next; r++)
        bits |= (uint64_t)(l->of->own[plane * l->call->keys + p + r] != 0) << r;
    rows = fv_min(rows, gone - p);
    return r < rows ? bits | (UINT64_MAX >> (64 - (rows - r)) << r) : bits;
}

/* Adds block c, which `bits` of the queries read, to the list at `at`; causality hides it from the first `early`. */
static void add_living(const struct living *l, int64_t c, uint64_t bits, int64_t early, int64_t rows, int64_t at,
                       int64_t *tiles)
{
    int64_t block = l->of->block;
    uint64_t hidden = early > 0 ? UINT64_MAX >> (64 - fv_min(early, rows)) : 0;
    bool all = (bits | hidden) == UINT64_MAX >> (64 - rows);

    if (l->entry) {
        l->entry[at] = (int32_t)c;
        l->tile[at] = all ? 0 : (int32_t)*tiles + 1;
        for (int64_t bit = 0; !all && bit < ROWS * block; bit++)
            l->tiles[*tiles * block + bit / 64] |= (bits >> bit / block & 1) << bit % 64;
    }
    *tiles += !all;
}

static void list_living(void *user, int64_t plane, int thread)
{
    const struct living *l = user;
    const fv_call *call = l->call;
    int64_t block = l->of->block, next = 0, count = 0, tiles = l->entry ? l->tile_start[plane] : 0;
    int32_t *alive = l->alive + plane * l->blocks;

    (void)thread;
    for (int64_t g = 0; g < l->groups; g++) {
        int64_t first = g * ROWS, skip = fv_max(-call->offset - first, 0), end = fv_min(first + ROWS, call->queries);
        int64_t p = call->offset + first, last = call->offset + end - 1, left = 0;
        int64_t from = l->entry ? l->row_start[plane * l->groups + g] : 0, at = from;
        for (; next * block <= last; next++)
            alive[count++] = (int32_t)next;
        for (int64_t n = 0; n < count; n++) {
            int64_t c = alive[n];
            uint64_t bits = skip < end - first ? readers(l, plane, c, p + skip, end - first - skip) << skip : 0;
            if (bits || l->of->dead) add_living(l, c, bits, c * block - p, end - first, at++, &tiles);
            if (l->of->gone[plane * l->blocks + c] > last || (c + 1) * block > last + 1 || l->of->dead)
                alive[left++] = alive[n];
        }
        count = left;
        if (!l->entry) l->row_start[plane * l->groups + g + 1] = at - from;
    }
    if (!l->entry) l->tile_start[plane + 1] = tiles;
}

fv_status fv_lifetimes_plan(fv_ctx *ctx, const fv_call *call, const fv_lifetimes *lifetimes, fv_plan *plan)
{
    int64_t planes = call->batch * lifetimes->heads;
    struct living l = {.call = call,
                       .of = lifetimes,
                       .groups = fv_ceil_div(call->queries, ROWS),
                       .blocks = fv_ceil_div(call->keys, lifetimes->block)};
    int64_t rows = planes * l.groups;

    FV_TRY(FV_SCRATCH(ctx, l.alive, planes * l.blocks));
    FV_TRY(FV_SCRATCH(ctx, l.row_start, rows + 1));
    FV_TRY(FV_SCRATCH(ctx, l.tile_start, planes + 1));
    fv_run(ctx, planes, list_living, &l);
    l.row_start[0] = l.tile_start[0] = 0;
    for (int64_t r = 0; r < rows; r++)
        l.row_start[r + 1] += l.row_start[r];
    for (int64_t p = 0; p < planes; p++)
        l.tile_start[p + 1] += l.tile_start[p];
    FV_TRY(FV_SCRATCH(ctx, l.entry, l.row_start[rows] + 1)); /* never none: it would only be counted */
    FV_TRY(FV_SCRATCH(ctx, l.tile, l.row_start[rows] + 1));
    FV_TRY(FV_SCRATCH(ctx, l.tiles, l.tile_start[planes] * lifetimes->block));
    memset(l.tiles, 0, (size_t)(l.tile_start[planes] * lifetimes->block) * sizeof *l.tiles);
    fv_run(ctx, planes, list_living, &l);
    plan->lists = (fv_lists){.query_block = ROWS,
                             .key_block = lifetimes->block,
                             .groups = l.groups,
                             .key_blocks = l.blocks,
                             .batch_stride = call->batch > 1 ? lifetimes->heads * l.groups : 0,
                             .head_stride = lifetimes->heads > 1 ? l.groups : 0,
                             .heads = lifetimes->heads,
                             .row_start = l.row_start,
                             .entry = l.entry,
                             .tile = l.tile_start[planes] > 0 ? l.tile : NULL,
                             .tiles = l.tiles,
                             .tile_words = lifetimes->block};
    return FV_OK;
}

/* ---- the loops turned round ------------------------------------------------------------------------------------- */

/* Lists of queries by key block, and the slots of each query's partial results. */
struct turned {
    fv_lists lists;
    int64_t slots; /* of the (batch, head) that has most */
    int64_t *slot_start;
    int32_t *slot;
    int32_t *place; /* [entries] of each slot: query * choices + the number of its choice */
};

/* Turns the lists of one (batch, head), those of queries 0..n-1 from `row` on, into its part of *turned. */
static fv_status turn(fv_ctx *ctx, const fv_lists *lists, int64_t row, int64_t n, int64_t choices, int32_t *query_index,
                      int64_t *query_start, int32_t *slot, int32_t *place)
{
    int64_t first = lists->row_start[row], count = lists->row_start[row + n] - first;
    int32_t *order, *query;

    FV_TRY(FV_SCRATCH(ctx, order, count));
    FV_TRY(FV_SCRATCH(ctx, query, count));
    for (int64_t i = 0; i < n; i++)
        for (int64_t e = lists->row_start[row + i]; e < lists->row_start[row + i + 1]; e++)
            query[e - first] = (int32_t)i;
    FV_TRY(fv_sort_by_key(ctx, lists->entry + first, 1, count, lists->key_blocks, order, query_start));
    for (int64_t s = 0; s < count; s++) {
        int32_t i = query[order[s]];
        query_index[s] = i;
        slot[order[s]] = (int32_t)s;
        place[s] = (int32_t)(i * choices + order[s] - (lists->row_start[row + i] - first));
    }
    return FV_OK;
}

/* The slots of query heads that share a list are numbered alike. */
static fv_status number_slots(fv_ctx *ctx, const fv_call *call, const fv_lists *lists, int64_t heads,
                              const int32_t *slot, struct turned *turned)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries, group = H / heads, total = 0;

    FV_TRY(FV_SCRATCH(ctx, turned->slot_start, B * H * N + 1));
    FV_TRY(FV_SCRATCH(ctx, turned->slot, lists->row_start[B * heads * N] * group));
    turned->slot_start[0] = 0;
    for (int64_t plane = 0; plane < B * H; plane++) {
        int64_t row = plane / group * N;
        for (int64_t i = 0; i < N; i++) {
            int64_t from = lists->row_start[row + i], count = lists->row_start[row + i + 1] - from;
            if (count) memcpy(turned->slot + total, slot + from, (size_t)count * sizeof *slot);
            total += count;
            turned->slot_start[plane * N + i + 1] = total;
        }
    }
    return FV_OK;
}

static fv_status turn_all(fv_ctx *ctx, const fv_call *call, const fv_lists *lists, const fv_choice *choice,
                          struct turned *turned)
{
    int64_t heads = choice->heads, planes = call->batch * heads, N = call->queries, blocks = lists->key_blocks, entries;
    int32_t *query_index, *slot, *entry;
    int64_t *query_start, *row_start;

    entries = lists->row_start[planes * N];
    FV_TRY(FV_SCRATCH(ctx, query_index, entries));
    FV_TRY(FV_SCRATCH(ctx, slot, entries));
    FV_TRY(FV_SCRATCH(ctx, turned->place, entries));
    FV_TRY(FV_SCRATCH(ctx, entry, planes * blocks));
    FV_TRY(FV_SCRATCH(ctx, query_start, planes * blocks + 1));
    FV_TRY(FV_SCRATCH(ctx, row_start, planes * blocks + 1));
    turned->slots = 0;
    for (int64_t plane = 0; plane < planes; plane++) {
        int64_t base = lists->row_start[plane * N], *start = query_start + plane * blocks;
        FV_TRY(turn(ctx, lists, plane * N, N, choice->index.dims[3], query_index + base, start, slot + base,
                    turned->place + base));
        turned->slots = fv_max(turned->slots, start[blocks]);
        for (int64_t g = 0; g <= blocks; g++)
            start[g] += base;
        for (int64_t g = 0; g < blocks; g++) {
            row_start[plane * blocks + g] = plane * blocks + g;
            entry[plane * blocks + g] = (int32_t)g;
        }
    }
    row_start[planes * blocks] = planes * blocks;
    turned->lists = (fv_lists){.query_block = N,
                               .key_block = lists->key_block,
                               .key_start = lists->key_start,
                               .groups = blocks,
                               .key_blocks = blocks,
                               .query_start = query_start,
                               .query_index = query_index,
                               .batch_stride = heads * blocks,
                               .head_stride = blocks,
                               .heads = heads,
                               .row_start = row_start,
                               .entry = entry};
    return number_slots(ctx, call, lists, heads, slot, turned);
}

/* The weight or gate of each slot [B,H,slots] from those of each choice [B,1|H,N,K]. */
static fv_status spread_slots(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, const struct turned *turned,
                              const fv_tensor *given, fv_tensor *slots)
{
    int64_t B = call->batch, H = call->query_heads, S = turned->slots, group = H / choice->heads, blocks;
    fv_tensor from, index, out;

    blocks = turned->lists.groups;
    FV_TRY(fv_plain(ctx, given, &from));
    from = fv_reshaped(&from, FV_DIMS(B, from.dims[1], call->queries * choice->index.dims[3], 1));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, H, S)));
    FV_TRY(fv_tensor_new(ctx, &out, FV_F32, FV_DIMS(B, H, S, 1)));
    for (int64_t plane = 0; plane < B * H; plane++) {
        const int64_t *start = turned->lists.query_start + plane / group * blocks;
        int64_t count = start[blocks] - start[0];
        int32_t *to = (int32_t *)index.data + plane * S;
        if (count) memcpy(to, turned->place + start[0], (size_t)count * sizeof *to);
        memset(to + count, -1, (size_t)(S - count) * sizeof *to);
    }
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = from, .index = index, .out = out}));
    *slots = fv_reshaped(&out, FV_DIMS(B, H, S));
    return FV_OK;
}

static fv_status attend_by_block(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, fv_attend_args *attend,
                                 fv_plan *plan)
{
    struct turned turned;
    fv_tensor o = attend->o, lse = attend->lse;

    fv_choosing before = fv_choosing_begin(ctx);
    fv_status status = turn_all(ctx, call, &plan->lists, choice, &turned);

    fv_choosing_end(ctx, before);
    FV_TRY(status);
    plan->lists = turned.lists;
    FV_TRY(
        fv_tensor_new(ctx, &attend->o, FV_F32, FV_DIMS(call->batch, call->query_heads, turned.slots, call->value_dim)));
    FV_TRY(fv_tensor_new(ctx, &attend->lse, FV_F32, FV_DIMS(call->batch, call->query_heads, turned.slots)));
    FV_TRY(fv_attend(ctx, attend));
    fv_merge_args merge = {
        .parts = 1, .o_part = {attend->o}, .slot_start = turned.slot_start, .slot = turned.slot, .o = o, .lse = lse};
    if (fv_present(&choice->weight))
        FV_TRY(spread_slots(ctx, call, choice, &turned, &choice->weight, &merge.weight[0]));
    else if (fv_present(&choice->gate))
        FV_TRY(spread_slots(ctx, call, choice, &turned, &choice->gate, &merge.lse_part[0]));
    else
        merge.lse_part[0] = attend->lse;
    return fv_merge(ctx, &merge);
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static fv_status attend_part(fv_ctx *ctx, const fv_call *part, const fv_choice *choice, bool by_block,
                             fv_attend_args *attend)
{
    fv_plan plan = {.causal = part->causal, .offset = part->offset};
    fv_choosing before = fv_choosing_begin(ctx);
    fv_status status = fv_choice_plan(ctx, part, choice, &plan);

    attend->plan = &plan;
    fv_choosing_end(ctx, before);
    FV_TRY(status);
    FV_TRY(fv_count_pairs(ctx, part, &plan, part->keys));
    return by_block ? attend_by_block(ctx, part, choice, attend, &plan) : fv_attend(ctx, attend);
}

/* Blocks that a query chose, rounded up from their mean where their number varies. */
static int64_t chosen_by_query(const fv_choice *choice)
{
    int64_t bytes = fv_tensor_count(&choice->mask), chosen = 0;

    if (!fv_present(&choice->mask)) return choice->index.dims[3];
    for (int64_t n = 0; n < bytes; n++)
        chosen += __builtin_popcount(((const uint8_t *)choice->mask.data)[n]);
    return chosen * choice->mask.dims[3] / fv_max(bytes, 1) + 1;
}

fv_status fv_choice_attend(fv_ctx *ctx, const fv_call *call, const fv_choice *choice, bool by_block, const fv_tensor *q,
                           const fv_tensor *k, const fv_tensor *o, const fv_tensor *lse)
{
    int64_t lists = choice->init + choice->tail / choice->block + 2 + chosen_by_query(choice);
    int64_t row = call->batch * call->query_heads * (call->value_dim + 1) * 4 * lists; /* bytes of one query */
    bool turned = by_block || is_given(choice);
    int64_t step = turned ? fv_clamp(PART_BYTES / row, 64, call->queries) : call->queries;
    fv_status status = FV_OK;

    /* the last ones first: they take most memory, and the others do with that */
    for (int64_t end = call->queries, count; end > 0 && status == FV_OK; end -= count) {
        count = end % step ? end % step : step;
        int64_t from = end - count;
        fv_mark mark = fv_scratch_mark(ctx);
        fv_call part = *call;
        fv_choice chosen = *choice;
        fv_attend_args attend = {.q = fv_slice(q, 2, from, count),
                                 .k = *k,
                                 .v = call->v,
                                 .o = fv_slice(o, 2, from, count),
                                 .logits = fv_call_logits(call)};
        if (fv_present(lse)) attend.lse = fv_slice(lse, 2, from, count);
        part.queries = count;
        part.offset = call->offset + from;
        if (fv_present(&choice->mask))
            chosen.mask = fv_slice(&choice->mask, 2, from, count);
        else
            chosen.index = fv_slice(&choice->index, 2, from, count);
        if (fv_present(&choice->weight)) chosen.weight = fv_slice(&choice->weight, 2, from, count);
        if (fv_present(&choice->gate)) chosen.gate = fv_slice(&choice->gate, 2, from, count);
        status = attend_part(ctx, &part, &chosen, turned, &attend);
        fv_scratch_release(ctx, mark);
    }
    return status;
}

static fv_status choose_aside(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose, fv_choice *choice)
{
    fv_choosing before = fv_choosing_begin(ctx);
    fv_status status = choose(ctx, call, choice);

    fv_choosing_end(ctx, before);
    return status;
}

fv_status fv_choice_forward(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose, const fv_tensor *o)
{
    fv_choice choice;
    int64_t read;

    FV_TRY(choose_aside(ctx, call, choose, &choice));
    read = choice.first + choice.tail + choice.index.dims[3] * choice.block;
    /* where much is read, neighbours read much alike */
    return fv_choice_attend(ctx, call, &choice, call->queries > 1 && 2 * read < call->keys, &call->q, &call->k, o,
                            &call->lse);
}

fv_status fv_choice_map(fv_ctx *ctx, const fv_call *call, fv_choose_fn *choose, fv_pairs *pairs)
{
    fv_choice choice;

    FV_TRY(choose_aside(ctx, call, choose, &choice));
    return fv_choice_plan(ctx, call, &choice, &pairs->plan);
}

/* ---- blocks of queries ------------------------------------------------------------------------------------------ */

fv_status fv_cut_queries(fv_ctx *ctx, const fv_call *call, int64_t block, int64_t *count, int64_t **start)
{
    int64_t first = call->offset / block;

    *count = (call->offset + call->queries - 1) / block - first + 1;
    FV_TRY(FV_SCRATCH(ctx, *start, *count + 1));
    for (int64_t b = 0; b <= *count; b++)
        (*start)[b] = fv_clamp((first + b) * block - call->offset, 0, call->queries);
    return FV_OK;
}

/* ---- lists of single keys --------------------------------------------------------------------------------------- */

fv_status fv_key_lists_new(fv_ctx *ctx, const fv_call *call, int64_t heads, int64_t block, int64_t room,
                           fv_key_lists *lists)
{
    *lists = (fv_key_lists){.block = block, .heads = heads, .room = room, .first = call->offset / block};
    FV_TRY(fv_cut_queries(ctx, call, block, &lists->groups, &lists->query_start));
    lists->lists = call->batch * heads * lists->groups;
    FV_TRY(FV_SCRATCH(ctx, lists->count, lists->lists));
    FV_TRY(FV_SCRATCH(ctx, lists->entry, lists->lists * room));
    memset(lists->count, 0, (size_t)lists->lists * sizeof *lists->count);
    return FV_OK;
}

fv_status fv_key_lists_plan(fv_ctx *ctx, const fv_call *call, const fv_key_lists *lists, fv_plan *plan)
{
    int64_t *row_start;

    FV_TRY(FV_SCRATCH(ctx, row_start, lists->lists + 1));
    row_start[0] = 0;
    for (int64_t r = 0; r < lists->lists; r++) {
        memmove(lists->entry + row_start[r], lists->entry + r * lists->room,
                (size_t)lists->count[r] * sizeof *lists->entry);
        row_start[r + 1] = row_start[r] + lists->count[r];
    }
    plan->lists = (fv_lists){.query_block = lists->block,
                             .key_block = 1,
                             .groups = lists->groups,
                             .key_blocks = call->keys,
                             .query_start = lists->query_start,
                             .batch_stride = lists->heads * lists->groups,
                             .head_stride = lists->heads > 1 ? lists->groups : 0,
                             .heads = lists->heads,
                             .row_start = row_start,
                             .entry = lists->entry};
    return FV_OK;
}

/* ---- single keys ------------------------------------------------------------------------------------------------ */

fv_status fv_key_bits_new(fv_ctx *ctx, const fv_call *call, fv_key_bits *bits)
{
    int64_t count;

    *bits = (fv_key_bits){.batch = call->batch,
                          .heads = call->query_heads,
                          .queries = call->queries,
                          .keys = call->keys,
                          .groups = fv_ceil_div(call->queries, FV_TILE),
                          .blocks = fv_ceil_div(call->keys, FV_TILE)};
    count = bits->batch * bits->heads * bits->groups * bits->blocks * FV_TILE;
    FV_TRY(FV_SCRATCH(ctx, bits->word, count));
    memset(bits->word, 0, (size_t)count * sizeof *bits->word);
    return FV_OK;
}

/* The words of row i of a (batch, head); the next block's stands FV_TILE words on. */
static uint64_t *row_words(const fv_key_bits *bits, int64_t plane, int64_t i)
{
    return bits->word + (plane * bits->groups + i / FV_TILE) * bits->blocks * FV_TILE + i % FV_TILE;
}

struct adding {
    const fv_key_bits *bits;
    int64_t from;
    const fv_tensor *index;
};

static void add_row(void *user, int64_t row, int thread)
{
    const struct adding *a = user;
    int64_t n = a->index->dims[2], most = a->index->dims[3];
    const int32_t *index = (int32_t *)a->index->data + row * most;
    uint64_t *word = row_words(a->bits, row / n, a->from + row % n);

    (void)thread;
    for (int64_t k = 0; k < most && index[k] >= 0;) { /* they ascend, and words lie apart */
        int64_t block = index[k] / FV_TILE;
        uint64_t keys = 0;
        for (; k < most && index[k] >= block * FV_TILE && index[k] < (block + 1) * FV_TILE; k++)
            keys |= (uint64_t)1 << index[k] % FV_TILE;
        word[block * FV_TILE] |= keys;
    }
}

void fv_key_bits_add(fv_ctx *ctx, const fv_key_bits *bits, int64_t from, const fv_tensor *index)
{
    struct adding adding = {bits, from, index};

    fv_run(ctx, bits->batch * bits->heads * index->dims[2], add_row, &adding);
}

void fv_key_bits_set(const fv_key_bits *bits, int64_t b, int64_t h, int64_t i, bool all)
{
    uint64_t *word = row_words(bits, b * bits->heads + h, i);

    for (int64_t block = 0; block < bits->blocks; block++)
        word[block * FV_TILE] = all ? fv_plan_interval(0, bits->keys, block * FV_TILE, FV_TILE) : 0;
}

fv_status fv_key_bits_plan(fv_ctx *ctx, const fv_key_bits *bits, fv_plan *plan)
{
    int64_t rows = bits->batch * bits->heads * bits->groups, entries = 0, *row_start;
    int32_t *entry, *tile;

    FV_TRY(FV_SCRATCH(ctx, row_start, rows + 1));
    FV_TRY(FV_SCRATCH(ctx, entry, rows * bits->blocks));
    FV_TRY(FV_SCRATCH(ctx, tile, rows * bits->blocks));
    for (int64_t n = 0; n < rows * bits->blocks; n++) {
        const uint64_t *word = bits->word + n * FV_TILE;
        uint64_t seen = 0;
        if (n % bits->blocks == 0) row_start[n / bits->blocks] = entries;
        for (int r = 0; r < FV_TILE; r++)
            seen |= word[r];
        if (!seen) continue;
        entry[entries] = (int32_t)(n % bits->blocks);
        tile[entries++] = (int32_t)(1 + n);
    }
    row_start[rows] = entries;
    plan->lists = (fv_lists){.query_block = FV_TILE,
                             .key_block = FV_TILE,
                             .groups = bits->groups,
                             .key_blocks = bits->blocks,
                             .batch_stride = bits->heads * bits->groups,
                             .head_stride = bits->groups,
                             .heads = bits->heads,
                             .row_start = row_start,
                             .entry = entry,
                             .tile = tile,
                             .tiles = bits->word,
                             .tile_words = FV_TILE};
    return FV_OK;
}
