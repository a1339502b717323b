/* What a plan means, pair by pair; and whether a caller's plan is sound. */
#include "ops/plan.h"

#define LL(x) ((long long)(x))
#define WIDEST (INT64_C(1) << 40) /* sizes and positions beyond this are mistakes */

void fv_plan_window(const fv_plan *plan, int64_t heads, int64_t h, int64_t *sink, int64_t *window)
{
    const fv_window *w = &plan->window;

    *sink = w->sink;
    *window = w->window;
    if (w->heads > 0) {
        int64_t index = h * w->heads / heads;
        if (w->head_sink) *sink = w->head_sink[index];
        if (w->head_window) *window = w->head_window[index];
    }
}

static bool window_sees(const fv_plan *plan, int64_t heads, int64_t h, int64_t p, int64_t position)
{
    int64_t sink, window, block = plan->window.block > 1 ? plan->window.block : 1, distance;

    fv_plan_window(plan, heads, h, &sink, &window);
    if (window <= 0 || position < sink) return true;
    distance = fv_floor_div(p, block) - fv_floor_div(position, block);
    return distance < window && (plan->causal || -distance < window);
}

/* Window of a query in cell x of an axis, in coordinates of its dilation group (sheet of arXiv 2504.16922, section 3).
 */
static bool axis_sees(const fv_grid *grid, int a, int64_t x, int64_t y)
{
    int64_t stride = fv_max(grid->stride[a], 1), dilation = fv_max(grid->dilation[a], 1), window = grid->window[a];
    int64_t group = x % dilation, i = x / dilation, j = y / dilation, origin = fv_grid_origin(grid, a), leader, start;
    int64_t length = grid->dims[a] / dilation + (group < grid->dims[a] % dilation);
    int64_t first = (i - origin) / stride * stride + origin;

    if (y % dilation != group) return false;
    if (grid->causal[a]) {
        leader = first + stride - 1;
        if (!grid->unclipped) leader = fv_min(leader, length - 1);
        return j >= leader - window + 1 && j <= i;
    }
    leader = first + stride / 2;
    if (grid->truncated[a]) return j >= leader - window / 2 && j < leader - window / 2 + window;
    leader = fv_min(leader, length - 1);
    start = fv_max(leader - window / 2, 0);
    if (leader + window / 2 + window % 2 - 1 >= length) start = length - window;
    return j >= start && j < start + window;
}

static bool grid_sees(const fv_grid *grid, int64_t p, int64_t position)
{
    int64_t count = 1;

    for (int a = 0; a < grid->rank; a++)
        count *= grid->dims[a];
    if (position >= count) return true;
    for (int a = grid->rank - 1; a >= 0; a--) {
        int64_t queries = fv_grid_queries(grid, a);
        if (!axis_sees(grid, a, fv_grid_cell(grid, a, p % queries), position % grid->dims[a])) return false;
        p /= queries;
        position /= grid->dims[a];
    }
    return true;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

static int64_t list_row(const fv_lists *lists, int64_t heads, int64_t b, int64_t h)
{
    return b * lists->batch_stride + h * fv_max(lists->heads, 1) / heads * lists->head_stride;
}

bool fv_plan_gathers(const fv_plan *plan)
{
    return plan && plan->lists.row_start && plan->lists.query_index;
}

int64_t fv_plan_slots(const fv_plan *plan, int64_t heads, int64_t b, int64_t h)
{
    int64_t row = list_row(&plan->lists, heads, b, h);

    return plan->lists.query_start[row + plan->lists.groups] - plan->lists.query_start[row];
}

int64_t fv_plan_query(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t row)
{
    const fv_lists *lists = &plan->lists;

    return fv_plan_gathers(plan) ? lists->query_index[lists->query_start[list_row(lists, heads, b, h)] + row] : row;
}

/* The last n in 0..count-1 with start[n] <= x. */
static int64_t find(const int64_t *start, int64_t count, int64_t x)
{
    int64_t low = 0, high = count;

    while (high - low > 1) {
        int64_t middle = (low + high) / 2;
        if (start[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return low;
}

/* List row of row i of o, and i's place within its group. */
static int64_t group_of(const fv_lists *lists, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t *place)
{
    int64_t row = list_row(lists, heads, b, h), group;

    if (lists->query_index) {
        const int64_t *start = lists->query_start + row;
        group = find(start, lists->groups, start[0] + i);
        *place = start[0] + i - start[group];
    } else if (lists->query_start) {
        group = find(lists->query_start, lists->groups, i);
        *place = i - lists->query_start[group];
    } else {
        group = i / lists->query_block;
        *place = i % lists->query_block;
    }
    return row + group;
}

int64_t fv_plan_entry(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const fv_lists *lists = &plan->lists;
    int64_t place, row = group_of(lists, heads, b, h, i, &place), block, within;
    int64_t low = lists->row_start[row], high = lists->row_start[row + 1];

    if (lists->key_start) {
        if (lists->key_blocks == 0 || j < lists->key_start[0] || j >= lists->key_start[lists->key_blocks]) return -1;
        block = find(lists->key_start, lists->key_blocks, j);
        within = j - lists->key_start[block];
    } else {
        block = j / lists->key_block;
        within = j % lists->key_block;
    }
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (lists->entry[middle] < block)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == lists->row_start[row + 1] || lists->entry[low] != block) return -1;
    if (lists->tile && lists->tile[low] > 0) {
        int64_t bit = place * lists->key_block + within;
        const uint64_t *tile = lists->tiles + (lists->tile[low] - 1) * lists->tile_words;
        if (!(tile[bit / 64] >> bit % 64 & 1)) return -1;
    }
    return low;
}

bool fv_plan_sees(const fv_plan *plan, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t j)
{
    int64_t query = fv_plan_query(plan, heads, b, h, i), p = query + plan->offset;
    int64_t position = fv_plan_key_position(plan, j);

    if (plan->causal && position > p) return false;
    if (!window_sees(plan, heads, h, p, position)) return false;
    if (plan->grid.rank > 0 && !grid_sees(&plan->grid, p, position)) return false;
    if (plan->query_segment && plan->query_segment[query] != plan->key_segment[j]) return false;
    if (plan->key_from && j < plan->key_from[query]) return false;
    if (plan->key_to && j >= plan->key_to[query]) return false;
    if (plan->born && p < plan->born[j]) return false;
    if (plan->gone && p >= plan->gone[j]) return false;
    if (plan->lists.slot_from && fv_plan_gathers(plan)) {
        int64_t slot = plan->lists.query_start[list_row(&plan->lists, heads, b, h)] + i;
        if (j < plan->lists.slot_from[slot] || j >= plan->lists.slot_to[slot]) return false;
    }
    return !plan->lists.row_start || fv_plan_entry(plan, heads, b, h, i, j) >= 0;
}

bool fv_plan_heads_share(const fv_plan *plan, int64_t heads, int64_t group)
{
    if (!plan || group == 1) return true;
    if (plan->window.heads > 0 && heads / group % plan->window.heads != 0) return false;
    return !plan->lists.row_start || plan->lists.head_stride == 0 || heads / group % fv_max(plan->lists.heads, 1) == 0;
}

/* ---- soundness ------------------------------------------------------------------------------------------------- */

static fv_status check_window(const fv_plan *plan, int64_t heads)
{
    const fv_window *w = &plan->window;

    if (w->sink < 0 || w->window < 0 || w->block < 0)
        return fv_fail(FV_E_ARGUMENT, "plan window: negative sink (%lld), window (%lld) or block (%lld)", LL(w->sink),
                       LL(w->window), LL(w->block));
    if (w->heads < 0 || (w->heads > 0 && heads % w->heads != 0))
        return fv_fail(FV_E_SHAPE, "plan window: made for %d heads, which do not divide %lld query heads", w->heads,
                       LL(heads));
    for (int h = 0; h < w->heads; h++)
        if ((w->head_sink && w->head_sink[h] < 0) || (w->head_window && w->head_window[h] < 0))
            return fv_fail(FV_E_ARGUMENT, "plan window: head %d has a negative sink or window", h);
    return FV_OK;
}

/* Whether the queries of an axis, where they are not all cells, lie on it. */
static fv_status check_grid_queries(const fv_grid *grid, int a)
{
    int64_t count = grid->query_count[a], first = grid->query_first[a], step = fv_max(grid->query_step[a], 1), reach;

    if (count == 0) return FV_OK;
    if (count > 0 && first >= 0 && fv_mul_i64(count - 1, step, &reach) && fv_add_i64(reach, first, &reach) &&
        reach < grid->dims[a] && grid->dilation[a] <= 1 && grid->stride_first[a] >= -WIDEST &&
        grid->stride_first[a] <= first)
        return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "plan grid: axis %d: %lld queries from %lld on by %lld, strides from %lld: do not fit %lld tokens",
                   a, LL(count), LL(first), LL(step), LL(grid->stride_first[a]), LL(grid->dims[a]));
}

static fv_status check_grid(const fv_plan *plan, int64_t queries, int64_t keys)
{
    const fv_grid *grid = &plan->grid;
    int64_t count = 1, cells = 1;

    if (grid->rank < 0 || grid->rank > 3)
        return fv_fail(FV_E_ARGUMENT, "plan grid: expected 1 to 3 axes, got %d", grid->rank);
    if (grid->rank == 0) return FV_OK;
    for (int a = 0; a < grid->rank; a++) {
        int64_t stride = grid->stride[a] ? grid->stride[a] : 1, dilation = grid->dilation[a] ? grid->dilation[a] : 1;
        int64_t window = grid->window[a], reach;
        if (grid->dims[a] < 1 || !fv_mul_i64(cells, grid->dims[a], &cells))
            return fv_fail(FV_E_SHAPE, "plan grid: axis %d has %lld tokens", a, LL(grid->dims[a]));
        FV_TRY(check_grid_queries(grid, a));
        count *= fv_grid_queries(grid, a);
        if (window < 1 || dilation < 1 || window > WIDEST || !fv_mul_i64(window, dilation, &reach) ||
            (reach > grid->dims[a] && (!grid->truncated[a] || grid->causal[a])))
            return fv_fail(FV_E_SHAPE,
                           "plan grid: axis %d: a window of %lld with dilation %lld does not fit %lld tokens", a,
                           LL(window), LL(dilation), LL(grid->dims[a]));
        if (stride < 1 || stride > window)
            return fv_fail(FV_E_SHAPE, "plan grid: axis %d: expected a stride of 1 to the window (%lld), got %lld", a,
                           LL(window), LL(stride));
    }
    if (plan->offset < 0 || plan->offset > count || queries > count - plan->offset)
        return fv_fail(FV_E_SHAPE, "plan grid: %lld queries from position %lld do not lie on a grid of %lld",
                       LL(queries), LL(plan->offset), LL(count));
    for (int64_t j = 0; plan->key_position && j < keys; j++)
        if (plan->key_position[j] < 0)
            return fv_fail(FV_E_ARGUMENT, "plan grid: key %lld has the negative position %d", LL(j),
                           plan->key_position[j]);
    return FV_OK;
}

static fv_status check_starts(const char *what, const int64_t *start, int64_t count, int64_t widest)
{
    if (start[0] < 0) return fv_fail(FV_E_ARGUMENT, "plan lists: %s[0] is %lld", what, LL(start[0]));
    for (int64_t n = 0; n < count; n++)
        if (start[n + 1] < start[n] || start[n + 1] - start[n] > widest)
            return fv_fail(FV_E_ARGUMENT, "plan lists: %s goes from %lld to %lld at %lld: expected a step of 0 to %lld",
                           what, LL(start[n]), LL(start[n + 1]), LL(n), LL(widest));
    return FV_OK;
}

static fv_status check_groups(const fv_plan *plan, int64_t batch, int64_t heads, int64_t rows, int64_t queries,
                              int64_t slots)
{
    const fv_lists *lists = &plan->lists;
    int64_t widest = lists->tile ? lists->query_block : INT64_MAX, covered;

    if (lists->query_index) {
        if (!lists->query_start)
            return fv_fail(FV_E_ARGUMENT, "plan lists: query_index needs query_start, which is absent");
        FV_TRY(check_starts("query_start", lists->query_start, rows, widest));
        for (int64_t n = lists->query_start[0]; n < lists->query_start[rows]; n++)
            if (lists->query_index[n] < 0 || lists->query_index[n] >= queries)
                return fv_fail(FV_E_ARGUMENT, "plan lists: query_index[%lld] is %d: expected 0 to %lld", LL(n),
                               lists->query_index[n], LL(queries - 1));
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++)
                if (fv_plan_slots(plan, heads, b, h) > slots)
                    return fv_fail(FV_E_SHAPE, "plan lists: batch %lld, head %lld have %lld slots, but o has %lld rows",
                                   LL(b), LL(h), LL(fv_plan_slots(plan, heads, b, h)), LL(slots));
        return FV_OK;
    }
    if (lists->query_start) {
        FV_TRY(check_starts("query_start", lists->query_start, lists->groups, widest));
        covered = lists->query_start[0] == 0 ? lists->query_start[lists->groups] : 0;
    } else {
        if (lists->query_block < 1 || lists->query_block > WIDEST ||
            !fv_mul_i64(lists->groups, lists->query_block, &covered))
            return fv_fail(FV_E_ARGUMENT, "plan lists: %lld groups of query_block %lld", LL(lists->groups),
                           LL(lists->query_block));
    }
    if (covered < queries)
        return fv_fail(FV_E_SHAPE, "plan lists: %lld groups hold %lld queries, but there are %lld", LL(lists->groups),
                       LL(covered), LL(queries));
    return FV_OK;
}

static fv_status check_entries(const fv_lists *lists, int64_t rows)
{
    int64_t most = 0, bits;

    FV_TRY(check_starts("row_start", lists->row_start, rows, INT64_MAX));
    if (lists->row_start[rows] > lists->row_start[0] && !lists->entry)
        return fv_fail(FV_E_ARGUMENT, "plan lists: row_start counts entries, but entry is absent");
    for (int64_t row = 0; row < rows; row++) {
        int64_t last = -1;
        for (int64_t n = lists->row_start[row]; n < lists->row_start[row + 1]; n++) {
            if (lists->entry[n] <= last || lists->entry[n] >= lists->key_blocks)
                return fv_fail(FV_E_ARGUMENT,
                               "plan lists: row %lld has key block %d after %lld: expected ascending blocks below %lld",
                               LL(row), lists->entry[n], LL(last), LL(lists->key_blocks));
            last = lists->entry[n];
        }
    }
    if (!lists->tile) return FV_OK;
    for (int64_t n = lists->row_start[0]; n < lists->row_start[rows]; n++) {
        if (lists->tile[n] < 0)
            return fv_fail(FV_E_ARGUMENT, "plan lists: entry %lld has tile %d", LL(n), lists->tile[n]);
        most = fv_max(most, lists->tile[n]);
    }
    if (most == 0) return FV_OK;
    if (!lists->tiles) return fv_fail(FV_E_ARGUMENT, "plan lists: entries name bit tiles, but the table is absent");
    if (lists->query_block < 1 || lists->key_block < 1 || !fv_mul_i64(lists->query_block, lists->key_block, &bits) ||
        lists->tile_words < fv_ceil_div(bits, 64))
        return fv_fail(FV_E_ARGUMENT, "plan lists: bit tiles of %lld words do not hold %lld x %lld pairs",
                       LL(lists->tile_words), LL(lists->query_block), LL(lists->key_block));
    return FV_OK;
}

static fv_status check_lists(const fv_plan *plan, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                             int64_t slots)
{
    const fv_lists *lists = &plan->lists;
    int64_t made_for = fv_max(lists->heads, 1), batch_rows, head_rows, rows, reach;

    if (lists->heads < 0 || heads % made_for != 0)
        return fv_fail(FV_E_SHAPE, "plan lists: made for %lld heads, which do not divide %lld query heads",
                       LL(lists->heads), LL(heads));
    if (lists->groups < 0 || lists->key_blocks < 0 || lists->key_blocks > INT32_MAX || lists->batch_stride < 0 ||
        lists->head_stride < 0)
        return fv_fail(FV_E_ARGUMENT, "plan lists: negative or too large groups (%lld), key blocks (%lld) or strides",
                       LL(lists->groups), LL(lists->key_blocks));
    if (batch == 0 || heads == 0) return FV_OK;
    if (!fv_mul_i64(batch - 1, lists->batch_stride, &batch_rows) ||
        !fv_mul_i64(made_for - 1, lists->head_stride, &head_rows) || !fv_add_i64(batch_rows, head_rows, &rows) ||
        !fv_add_i64(rows, lists->groups, &rows))
        return fv_fail(FV_E_ARGUMENT, "plan lists: the number of rows overflows");
    if (!lists->slot_from != !lists->slot_to || (lists->slot_from && !lists->query_index))
        return fv_fail(FV_E_ARGUMENT, "plan lists: slot_from, slot_to and query_index must be given together");
    FV_TRY(check_groups(plan, batch, heads, rows, queries, slots));
    if (lists->key_start) {
        FV_TRY(
            check_starts("key_start", lists->key_start, lists->key_blocks, lists->tile ? lists->key_block : INT64_MAX));
        if (lists->key_start[lists->key_blocks] > keys)
            return fv_fail(FV_E_SHAPE, "plan lists: key blocks reach key %lld of %lld",
                           LL(lists->key_start[lists->key_blocks]), LL(keys));
    } else if (lists->key_block < 1 || lists->key_block > WIDEST ||
               !fv_mul_i64(lists->key_blocks, lists->key_block, &reach)) {
        return fv_fail(FV_E_ARGUMENT, "plan lists: %lld key blocks of key_block %lld", LL(lists->key_blocks),
                       LL(lists->key_block));
    }
    return check_entries(lists, rows);
}

fv_status fv_plan_check(const fv_plan *plan, int64_t batch, int64_t heads, int64_t queries, int64_t keys, int64_t slots)
{
    if (!plan) return FV_OK;
    if (plan->offset < -WIDEST || plan->offset > WIDEST)
        return fv_fail(FV_E_ARGUMENT, "plan: offset %lld is out of range", LL(plan->offset));
    if (!plan->query_segment != !plan->key_segment)
        return fv_fail(FV_E_ARGUMENT, "plan: query_segment and key_segment must be given together");
    FV_TRY(check_window(plan, heads));
    FV_TRY(check_grid(plan, queries, keys));
    return plan->lists.row_start ? check_lists(plan, batch, heads, queries, keys, slots) : FV_OK;
}

/* ---- counting -------------------------------------------------------------------------------------------------- */

struct counting {
    const fv_plan_view *view;
    int64_t *pairs; /* [items] */
};

static void count_item(void *user, int64_t item, int thread)
{
    struct counting *c = user;
    fv_plan_tile tile;
    fv_plan_runs runs;
    fv_plan_run run;
    int64_t pairs = 0, key[FV_TILE];

    (void)thread;
    fv_plan_tile_at(c->view, item, &tile);
    fv_plan_runs_begin(&runs, c->view, &tile);
    while (fv_plan_runs_keys(&runs, FV_TILE, 0, key) > 0)
        pairs += FV_TILE * tile.rows;
    while (fv_plan_runs_next(&runs, &run)) {
        if (run.whole) {
            pairs += run.count * __builtin_popcountll(run.rows);
            continue;
        }
        for (int64_t from = 0; from < run.count; from += 64) {
            uint64_t bits[FV_TILE];
            fv_plan_bits(&runs, &run, run.key + from, (int)fv_min(64, run.count - from), bits);
            for (int r = 0; r < tile.rows; r++)
                pairs += __builtin_popcountll(bits[r]);
        }
    }
    c->pairs[item] = pairs;
}

fv_status fv_plan_pairs(fv_ctx *ctx, const fv_plan *plan, int64_t batch, int64_t heads, int64_t queries, int64_t keys,
                        int64_t *pairs)
{
    bool one_batch = !plan || !plan->lists.row_start || plan->lists.batch_stride == 0;
    int64_t batches = one_batch ? fv_min(batch, 1) : batch, share = 1;
    fv_mark mark = fv_scratch_mark(ctx);
    fv_plan_view view;
    struct counting c = {.view = &view};
    fv_status status = FV_OK;

    *pairs = 0;
    if (batch < 0 || heads < 0 || queries < 0 || keys < 0)
        return fv_fail(FV_E_SHAPE, "plan pairs: negative sizes (%lld, %lld, %lld, %lld)", LL(batch), LL(heads),
                       LL(queries), LL(keys));
    FV_TRY(fv_plan_check(plan, batch, heads, queries, keys, INT64_MAX));
    if (batch == 0 || heads == 0) return FV_OK;
    if (fv_plan_heads_share(plan, heads, heads))
        share = heads;
    else if (plan->lists.row_start && heads > plan->lists.heads &&
             fv_plan_heads_share(plan, heads, heads / fv_max(plan->lists.heads, 1)))
        share = heads / fv_max(plan->lists.heads, 1);
    FV_TRY_DONE(fv_plan_open(ctx, plan, batches, heads, share, FV_TILE, queries, keys, &view));
    FV_TRY_DONE(FV_SCRATCH(ctx, c.pairs, view.items));
    fv_run(ctx, view.items, count_item, &c);
    for (int64_t item = 0; item < view.items; item++)
        *pairs += c.pairs[item];
    *pairs *= share * (one_batch ? batch : 1);
done:
    fv_scratch_release(ctx, mark);
    return status;
}

/* Keys of a tile that some row sees. */
static int64_t seen_keys(const fv_plan_view *view, const fv_plan_tile *tile)
{
    fv_plan_runs runs;
    fv_plan_run run;
    int64_t keys = 0;

    fv_plan_runs_begin(&runs, view, tile);
    while (fv_plan_runs_next(&runs, &run)) {
        if (run.whole) keys += run.count;
        for (int64_t from = 0; !run.whole && from < run.count; from += 64) {
            uint64_t bits[FV_TILE], seen = 0;
            fv_plan_bits(&runs, &run, run.key + from, (int)fv_min(64, run.count - from), bits);
            for (int r = 0; r < tile->rows; r++)
                seen |= bits[r];
            keys += __builtin_popcountll(seen);
        }
    }
    return keys;
}

fv_status fv_plan_tiles(fv_ctx *ctx, const fv_plan *plan, int64_t queries, int64_t keys, int64_t *tiles)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_plan_view view;
    fv_status status = fv_plan_check(plan, 1, 1, queries, keys, INT64_MAX);

    *tiles = 0;
    if (status == FV_OK) status = fv_plan_open(ctx, plan, 1, 1, 1, FV_TILE, queries, keys, &view);
    for (int64_t item = 0; status == FV_OK && item < view.items; item++) {
        fv_plan_strip strip;
        fv_plan_tile tile;
        fv_plan_tile_at(&view, item, &tile);
        if (view.strips > 0) {
            fv_plan_strip_of(&view, &tile, &strip);
            *tiles += strip.end - strip.block;
        } else {
            *tiles += fv_ceil_div(seen_keys(&view, &tile), FV_TILE);
        }
    }
    fv_scratch_release(ctx, mark);
    return status;
}
