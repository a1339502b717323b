/* Runs and words of visibility. */
#include <string.h>

#include "ops/plan.h"

enum {
    NO_BLOCK = INT32_MAX,
    GAP = 8,         /* grid parts this close become one run: a kernel likes long runs */
    LEAST_INNER = 32 /* keys that all rows see, for them to be a run of their own */
};

static uint64_t low_bits(int64_t count)
{
    return count >= 64 ? UINT64_MAX : ((uint64_t)1 << count) - 1;
}

/* ---- intervals of keys per row --------------------------------------------------------------------------------- */

static int64_t floor_div(int64_t a, int64_t b)
{
    return b == 1 ? a : a / b - (a % b < 0);
}

/* First key with value >= x, for ascending values (NULL: the keys themselves). */
static int64_t lower_bound(const int32_t *values, int64_t count, int64_t x)
{
    int64_t low = 0, high = count;

    if (!values) return fv_clamp(x, 0, count);
    while (low < high) {
        int64_t middle = low + (high - low) / 2;
        if (values[middle] < x)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Positions a row sees by causality and window: below *sink, or in [*low, *high). */
static void position_limits(const fv_plan_runs *runs, int64_t p, int64_t *sink, int64_t *low, int64_t *high)
{
    const fv_plan *plan = runs->view->plan;
    int64_t block = plan->window.block > 1 ? plan->window.block : 1, far = INT64_C(1) << 60;

    *low = -far;
    *high = far;
    *sink = -far;
    if (runs->window > 0 && runs->window < far) {
        int64_t own = floor_div(p, block), reach = fv_min(runs->window, far / 4 / block);
        *low = (own - reach + 1) * block;
        if (!plan->causal) *high = (own + reach) * block;
        *sink = runs->sink;
    }
    if (plan->causal) {
        *high = fv_min(*high, p + 1);
        *sink = fv_min(*sink, p + 1);
    }
}

static void row_intervals(fv_plan_runs *runs, int r, int64_t query)
{
    const fv_plan_view *view = runs->view;
    const fv_plan *plan = view->plan;
    int64_t p = query + plan->offset, sink, low, high, first = 0, last = view->keys;

    runs->position[r] = p;
    runs->sink_from[r] = runs->sink_to[r] = runs->from[r] = 0;
    runs->to[r] = view->keys;
    if (view->positions_ascend) {
        position_limits(runs, p, &sink, &low, &high);
        runs->sink_to[r] = lower_bound(plan->key_position, view->keys, sink);
        runs->from[r] = lower_bound(plan->key_position, view->keys, low);
        runs->to[r] = lower_bound(plan->key_position, view->keys, high);
    }
    if (plan->key_from) first = fv_max(first, plan->key_from[query]);
    if (plan->key_to) last = fv_min(last, plan->key_to[query]);
    if (runs->slot_from) {
        first = fv_max(first, runs->slot_from[runs->tile->row[r]]);
        last = fv_min(last, runs->slot_to[runs->tile->row[r]]);
    }
    if (plan->key_segment && view->segments_ascend) {
        int64_t segment = plan->query_segment[query];
        first = fv_max(first, lower_bound(plan->key_segment, view->keys, segment));
        last = fv_min(last, lower_bound(plan->key_segment, view->keys, segment + 1));
    }
    runs->sink_from[r] = fv_max(runs->sink_from[r], first);
    runs->sink_to[r] = fv_min(runs->sink_to[r], last);
    runs->from[r] = fv_max(fv_max(runs->from[r], first), runs->sink_to[r]);
    runs->to[r] = fv_min(runs->to[r], last);
    if (runs->sink_from[r] >= runs->sink_to[r]) runs->sink_from[r] = runs->sink_to[r] = 0;
    if (runs->from[r] >= runs->to[r]) runs->from[r] = runs->to[r] = 0;
    if (runs->sink_to[r] > 0 && runs->sink_to[r] == runs->from[r]) { /* one interval */
        runs->from[r] = runs->sink_from[r];
        runs->sink_from[r] = runs->sink_to[r] = 0;
    }
    if (runs->sink_to[r] > 0 || runs->to[r] > 0) runs->live |= (uint64_t)1 << r;
}

static void add_span(fv_plan_runs *runs, int64_t from, int64_t to, bool whole)
{
    if (from < to) runs->span[runs->spans++] = (fv_plan_span){from, to, whole};
}

/* The union of the rows' intervals, and in it the keys that every live row sees. */
static void make_spans(fv_plan_runs *runs)
{
    fv_plan_span all[2 * FV_TILE], inner[2] = {{0, INT64_MAX, true}, {0, INT64_MAX, true}};
    int count = 0, joined = 0;

    for (int half = 0; half < 2; half++) {
        const int64_t *from = half ? runs->from : runs->sink_from, *to = half ? runs->to : runs->sink_to;
        for (int r = 0; r < runs->tile->rows; r++) {
            if (!(runs->live >> r & 1)) continue;
            inner[half].from = fv_max(inner[half].from, from[r]);
            inner[half].to = fv_min(inner[half].to, to[r]);
            if (from[r] >= to[r]) continue;
            int n = count++;
            for (; n > 0 && all[n - 1].from > from[r]; n--) /* rows come nearly in order */
                all[n] = all[n - 1];
            all[n] = (fv_plan_span){from[r], to[r], false};
        }
    }
    for (int n = 0; n < count; n++) {
        if (joined > 0 && all[n].from <= all[joined - 1].to)
            all[joined - 1].to = fv_max(all[joined - 1].to, all[n].to);
        else
            all[joined++] = all[n];
    }
    if (!runs->live) inner[0].to = inner[1].to = 0;
    inner[1].from = fv_max(inner[1].from, inner[0].to > inner[0].from ? inner[0].to : 0);
    for (int n = 0; n < joined; n++) {
        int64_t from = all[n].from;
        for (int half = 0; half < 2; half++) {
            int64_t a = fv_max(from, inner[half].from), b = fv_min(all[n].to, inner[half].to);
            if (a >= b) continue;
            add_span(runs, from, a, false);
            add_span(runs, a, b, true);
            from = b;
        }
        add_span(runs, from, all[n].to, false);
    }
}

/* ---- grid ------------------------------------------------------------------------------------------------------ */

static void grid_axis(const fv_grid *grid, int a, int64_t x, int64_t *low, int64_t *high)
{
    int64_t dilation = fv_max(grid->dilation[a], 1), residue = x % dilation, from, to;

    fv_plan_axis(grid, a, residue, x / dilation, &from, &to);
    *low = from * dilation + residue;
    *high = (to - 1) * dilation + residue + 1;
}

static void grid_begin(fv_plan_runs *runs)
{
    const fv_grid *grid = &runs->view->plan->grid;

    for (int a = 0; a < 3; a++) {
        runs->box_low[a] = INT64_MAX;
        runs->inner_high[a] = INT64_MAX;
        runs->box_high[a] = runs->inner_low[a] = 0;
    }
    for (int r = 0; r < runs->tile->rows; r++) {
        int64_t p = runs->position[r];
        for (int a = grid->rank - 1; a >= 0; a--) {
            int64_t queries = fv_grid_queries(grid, a);
            grid_axis(grid, a, fv_grid_cell(grid, a, p % queries), &runs->low[a][r], &runs->high[a][r]);
            p /= queries;
            if (!(runs->live >> r & 1)) continue;
            runs->box_low[a] = fv_min(runs->box_low[a], runs->low[a][r]);
            runs->box_high[a] = fv_max(runs->box_high[a], runs->high[a][r]);
            runs->inner_low[a] = fv_max(runs->inner_low[a], runs->low[a][r]);
            runs->inner_high[a] = fv_min(runs->inner_high[a], runs->high[a][r]);
        }
    }
    for (int a = 0; a < grid->rank; a++) {
        if (grid->dilation[a] > 1) runs->inner_high[a] = 0;
        runs->line[a] = runs->box_low[a];
    }
    runs->part = runs->live ? 0 : 4;
    runs->ahead = (fv_plan_span){0, 0, false};
}

/* The next piece of the bounding box: lines of the last axis, each in a partial, a whole and a partial part; then what
 * lies beyond the grid. */
static bool grid_part(fv_plan_runs *runs, fv_plan_span *part)
{
    const fv_plan_view *view = runs->view;
    const fv_grid *grid = &view->plan->grid;
    int last = grid->rank - 1;

    while (runs->part < 3) {
        int64_t line = 0, low = runs->box_low[last], high = runs->box_high[last];
        int64_t inner_low = runs->inner_low[last], inner_high = runs->inner_high[last];
        bool inside = inner_high - inner_low >= LEAST_INNER;
        for (int a = 0; a < last; a++) {
            line = line * grid->dims[a] + runs->line[a];
            inside = inside && runs->line[a] >= runs->inner_low[a] && runs->line[a] < runs->inner_high[a];
        }
        line *= grid->dims[last];
        if (!inside) inner_low = inner_high = high;
        if (runs->part == 0) *part = (fv_plan_span){line + low, line + inner_low, false};
        if (runs->part == 1) *part = (fv_plan_span){line + inner_low, line + inner_high, true};
        if (runs->part == 2) *part = (fv_plan_span){line + inner_high, line + high, false};
        if (++runs->part == 3) {
            int a = last - 1;
            while (a >= 0 && ++runs->line[a] == runs->box_high[a]) {
                runs->line[a] = runs->box_low[a];
                a--;
            }
            if (a >= 0) runs->part = 0;
        }
        if (part->from < part->to) {
            part->to = fv_min(part->to, view->keys);
            if (part->from < part->to) return true;
        }
    }
    if (runs->part++ > 3 || view->grid_keys >= view->keys) return false;
    *part = (fv_plan_span){view->grid_keys, view->keys, true};
    return true;
}

static void grid_next(fv_plan_runs *runs)
{
    fv_plan_span next;

    if (runs->ahead.from >= runs->ahead.to && !grid_part(runs, &runs->ahead)) {
        runs->more = false;
        return;
    }
    while (true) {
        next.from = next.to = 0;
        if (!grid_part(runs, &next)) break;
        if (next.from == runs->ahead.to && next.whole == runs->ahead.whole) {
            runs->ahead.to = next.to;
        } else if (next.from <= runs->ahead.to + GAP && !next.whole && !runs->ahead.whole) {
            runs->ahead.to = next.to;
        } else {
            break;
        }
        next.from = next.to = 0;
    }
    runs->key = runs->ahead.from;
    runs->key_end = runs->ahead.to;
    runs->whole = runs->ahead.whole;
    runs->rows = UINT64_MAX;
    runs->ahead = next;
}

/* ---- lists ----------------------------------------------------------------------------------------------------- */

/* The first row of the tile's batch and head. */
static int64_t list_row(const fv_plan_runs *runs)
{
    const fv_lists *lists = &runs->view->plan->lists;

    return runs->tile->b * lists->batch_stride +
           runs->tile->h * fv_max(lists->heads, 1) / runs->view->heads * lists->head_stride;
}

static void find_slots(fv_plan_runs *runs)
{
    const fv_lists *lists = &runs->view->plan->lists;

    runs->slot_from = runs->slot_to = NULL;
    if (!lists->row_start || !lists->slot_from) return;
    runs->slot_from = lists->slot_from + lists->query_start[list_row(runs)];
    runs->slot_to = lists->slot_to + lists->query_start[list_row(runs)];
}

static void lists_begin(fv_plan_runs *runs)
{
    const fv_plan_view *view = runs->view;
    const fv_plan_tile *tile = runs->tile;
    const fv_lists *lists = &view->plan->lists;
    int64_t first = list_row(runs), last = -1;

    runs->groups = 0;
    for (int r = 0; r < tile->rows; r++) {
        int64_t group, from;
        if (lists->query_start) {
            const int64_t *start = lists->query_start + (lists->query_index ? first : 0);
            int64_t low = 0, high = lists->groups, i = tile->row[r] + start[0];
            if (last >= 0 && i >= start[last] && i < start[last + 1]) low = last, high = last + 1;
            while (high - low > 1) {
                int64_t middle = (low + high) / 2;
                if (start[middle] <= i)
                    low = middle;
                else
                    high = middle;
            }
            group = low;
            from = start[group] - start[0];
        } else {
            group = tile->row[r] / lists->query_block;
            from = group * lists->query_block;
        }
        runs->row_in_group[r] = (int32_t)(tile->row[r] - from);
        if (group != last) {
            int g = runs->groups++;
            runs->cursor[g] = lists->row_start[first + group];
            runs->end[g] = lists->row_start[first + group + 1];
            runs->next[g] = runs->cursor[g] < runs->end[g] ? lists->entry[runs->cursor[g]] : NO_BLOCK;
            runs->group_rows[g] = 0;
            last = group;
        }
        runs->group_rows[runs->groups - 1] |= (uint64_t)1 << r;
    }
}

/* The lowest key block any group reads next and the groups that do. */
static int32_t lists_front(const fv_plan_runs *runs, uint64_t *groups)
{
    int32_t block = NO_BLOCK;

    *groups = 0;
    for (int g = 0; g < runs->groups; g++)
        block = runs->next[g] < block ? runs->next[g] : block;
    for (int g = 0; g < runs->groups; g++)
        *groups |= (uint64_t)(runs->next[g] == block) << g;
    return block;
}

static void lists_advance(fv_plan_runs *runs, uint64_t groups)
{
    const fv_lists *lists = &runs->view->plan->lists;

    for (; groups; groups &= groups - 1) {
        int g = __builtin_ctzll(groups);
        runs->cursor[g]++;
        runs->next[g] = runs->cursor[g] < runs->end[g] ? lists->entry[runs->cursor[g]] : NO_BLOCK;
    }
}

/* Bit tile and bias of the entries at the front, spread over the rows of their groups. */
static void lists_take(fv_plan_runs *runs, uint64_t groups)
{
    const fv_lists *lists = &runs->view->plan->lists;

    runs->rows = 0;
    runs->has_tiles = false;
    for (; groups; groups &= groups - 1) {
        int g = __builtin_ctzll(groups);
        int64_t entry = runs->cursor[g];
        int32_t bit_tile = lists->tile ? lists->tile[entry] : 0;
        int from = __builtin_ctzll(runs->group_rows[g]), end = from + __builtin_popcountll(runs->group_rows[g]);
        runs->rows |= runs->group_rows[g];
        runs->has_tiles = runs->has_tiles || bit_tile > 0;
        for (int r = from; lists->tile && r < end; r++)
            runs->bit_tile[r] = bit_tile;
        for (int r = from; lists->entry_bias && r < end; r++)
            runs->bias[r] = lists->entry_bias[entry];
    }
}

/* Whether the entries at the front can join the run: the same rows and biases, no bit tiles. */
static bool lists_join(const fv_plan_runs *runs, uint64_t groups, uint64_t taken)
{
    const fv_lists *lists = &runs->view->plan->lists;

    if (groups != taken || runs->has_tiles) return false;
    if (!lists->tile && !lists->entry_bias) return true;
    for (; groups; groups &= groups - 1) {
        int g = __builtin_ctzll(groups);
        int64_t entry = runs->cursor[g];
        if (lists->tile && lists->tile[entry] > 0) return false;
        if (lists->entry_bias && lists->entry_bias[entry] != runs->bias[__builtin_ctzll(runs->group_rows[g])])
            return false;
    }
    return true;
}

static void block_keys(const fv_plan_view *view, int32_t block, int64_t *from, int64_t *to)
{
    const fv_lists *lists = &view->plan->lists;

    *from = lists->key_start ? lists->key_start[block] : block * lists->key_block;
    *to = lists->key_start ? lists->key_start[block + 1] : *from + lists->key_block;
    *from = fv_min(*from, view->keys);
    *to = fv_min(*to, view->keys);
}

/* The blocks of one group that follow each other. */
static void lists_next_alone(fv_plan_runs *runs)
{
    const int32_t *entry = runs->view->plan->lists.entry;
    int64_t first = runs->cursor[0], at = first + 1, end = runs->end[0], unused;

    while (at < end && entry[at] == entry[at - 1] + 1)
        at++;
    block_keys(runs->view, entry[first], &runs->key, &unused);
    block_keys(runs->view, entry[at - 1], &unused, &runs->key_end);
    runs->rows = runs->group_rows[0];
    runs->has_tiles = false;
    runs->block_start = runs->key;
    runs->whole = runs->view->plan->grid.rank == 0;
    runs->cursor[0] = at;
    runs->next[0] = at < end ? entry[at] : NO_BLOCK;
}

static void lists_next(fv_plan_runs *runs)
{
    const fv_lists *lists = &runs->view->plan->lists;
    uint64_t groups, front;
    int32_t block = lists_front(runs, &groups);

    if (runs->groups == 1 && block != NO_BLOCK && !lists->tile && !lists->entry_bias) {
        lists_next_alone(runs);
        return;
    }
    if (block == NO_BLOCK) {
        runs->more = false;
        return;
    }
    lists_take(runs, groups);
    block_keys(runs->view, block, &runs->key, &runs->key_end);
    runs->block_start = runs->key;
    runs->whole = !runs->has_tiles && runs->view->plan->grid.rank == 0;
    lists_advance(runs, groups);
    while ((block = lists_front(runs, &front)) != NO_BLOCK) {
        int64_t from, to;
        block_keys(runs->view, block, &from, &to);
        if (from != runs->key_end || !lists_join(runs, front, groups)) break;
        runs->key_end = to;
        lists_advance(runs, front);
    }
}

/* What one group of rows that all may see something is told by its lists, unless there is more to ask. */
static void find_short_ways(fv_plan_runs *runs)
{
    const fv_plan_view *view = runs->view;
    const fv_lists *lists = &view->plan->lists;
    bool alone = runs->groups == 1 && !lists->key_start && view->plan->grid.rank == 0 && !view->by_pair &&
                 runs->live == low_bits(runs->tile->rows);

    runs->single = alone && lists->key_block == 1 && !lists->tile && !lists->entry_bias;
    runs->stored = alone && lists->key_block == FV_TILE && lists->tile;
    for (int r = 1; runs->stored && r < runs->tile->rows; r++)
        runs->stored = runs->row_in_group[r] == runs->row_in_group[r - 1] + 1;
}

/* Whether every row sees what the list's next entries are. */
static bool takes_entries(const fv_plan_runs *runs)
{
    const fv_plan_span *span = &runs->span[runs->at_span];

    return runs->more && runs->single && span->whole && runs->key >= span->from && runs->key_end <= span->to;
}

/* The first `count` entries are taken. */
static void skip_entries(fv_plan_runs *runs, int64_t count)
{
    runs->cursor[0] += count;
    runs->next[0] = runs->cursor[0] < runs->end[0] ? runs->view->plan->lists.entry[runs->cursor[0]] : NO_BLOCK;
}

int fv_plan_runs_keys(fv_plan_runs *runs, int count, int64_t spread, int64_t *key)
{
    const fv_plan_span *span = &runs->span[runs->at_span];
    int pending = (int)fv_min(runs->key_end - runs->key, FV_TILE), n = 0;
    const int32_t *entry;
    int64_t last;

    if (!takes_entries(runs)) return 0;
    if (pending >= count || runs->end[0] - runs->cursor[0] < count) return 0;
    entry = runs->view->plan->lists.entry + runs->cursor[0];
    last = entry[count - pending - 1];
    if (last >= span->to || last + 1 - (pending > 0 ? runs->key : entry[0]) < spread) return 0;
    while (n < pending)
        key[n++] = runs->key++;
    for (; n < count; n++)
        key[n] = entry[n - pending];
    skip_entries(runs, count - pending);
    return count;
}

uint64_t fv_plan_runs_block(fv_plan_runs *runs, int64_t *block)
{
    int64_t end = runs->span[runs->at_span].to, from, pending = runs->key_end - runs->key, taken = 0;
    uint64_t bits = 0;

    if (!takes_entries(runs) || (pending == 0 && runs->next[0] >= end)) return 0; /* NO_BLOCK is behind all */
    *block = (pending > 0 ? runs->key : runs->next[0]) / FV_TILE;
    from = *block * FV_TILE;
    end = fv_min(end, from + FV_TILE);
    if (pending > 0) {
        bits = fv_plan_interval(runs->key, runs->key_end, from, FV_TILE);
        runs->key = fv_min(runs->key_end, end);
    }
    if (runs->key < runs->key_end) return bits;
    for (const int32_t *entry = runs->view->plan->lists.entry + runs->cursor[0];
         taken < runs->end[0] - runs->cursor[0] && entry[taken] < end; taken++)
        bits |= (uint64_t)1 << (entry[taken] - from);
    skip_entries(runs, taken);
    return bits;
}

int fv_plan_runs_ahead(const fv_plan_runs *runs, int count, int64_t *key)
{
    if (!runs->single) return 0;
    count = (int)fv_min(count, runs->end[0] - runs->cursor[0]);
    for (int n = 0; n < count; n++)
        key[n] = runs->view->plan->lists.entry[runs->cursor[0] + n];
    return count;
}

/* ---- runs ------------------------------------------------------------------------------------------------------ */

static void propose(fv_plan_runs *runs)
{
    const fv_plan *plan = runs->view->plan;

    if (plan->lists.row_start) {
        lists_next(runs);
    } else if (plan->grid.rank > 0 && !plan->key_position) {
        grid_next(runs);
    } else if (runs->part == 0) {
        runs->key = 0;
        runs->key_end = runs->view->keys;
        runs->rows = UINT64_MAX;
        runs->whole = true;
        runs->part = 1;
    } else {
        runs->more = false;
    }
}

void fv_plan_runs_begin(fv_plan_runs *runs, const fv_plan_view *view, const fv_plan_tile *tile)
{
    runs->view = view;
    runs->tile = tile;
    runs->live = 0;
    runs->spans = runs->at_span = runs->part = 0;
    runs->has_tiles = false;
    runs->more = true;
    fv_plan_window(view->plan, view->heads, tile->h, &runs->sink, &runs->window);
    find_slots(runs);
    for (int r = 0; r < tile->rows; r++)
        row_intervals(runs, r, tile->query[r]);
    make_spans(runs);
    runs->earliest = INT64_MAX;
    for (int r = 0; r < tile->rows; r++)
        if (runs->live >> r & 1) runs->earliest = fv_min(runs->earliest, runs->position[r]);
    if (view->plan->grid.rank > 0 && !view->plan->key_position) grid_begin(runs);
    runs->single = runs->stored = false;
    if (view->plan->lists.row_start) {
        lists_begin(runs);
        find_short_ways(runs);
    }
    if (runs->spans == 0)
        runs->more = false;
    else
        propose(runs);
}

/* Whether the positions of keys from..to-1, in any order, have come for every row. */
static bool have_come(const fv_plan_runs *runs, int64_t from, int64_t to)
{
    const int32_t *position = runs->view->plan->key_position;
    int32_t last = 0;

    if (!runs->view->by_position) return false;
    for (int64_t j = from; j < to; j++)
        last = position[j] > last ? position[j] : last;
    return last <= runs->earliest;
}

bool fv_plan_runs_next(fv_plan_runs *runs, fv_plan_run *run)
{
    while (runs->more) {
        const fv_plan_span *span = &runs->span[runs->at_span];
        int64_t from = fv_max(runs->key, span->from), to = fv_min(runs->key_end, span->to);
        run->rows = runs->rows & runs->live;
        if (from < to && run->rows) {
            run->key = from;
            run->count = to - from;
            run->whole = runs->whole && span->whole && (!runs->view->by_pair || have_come(runs, from, to));
            run->bias = runs->view->plan->lists.entry_bias && runs->view->plan->lists.row_start ? runs->bias : NULL;
            runs->key = to; /* the rest of the proposal, if any, comes next time */
            return true;
        }
        if (run->rows && span->to <= runs->key) {
            if (++runs->at_span == runs->spans) runs->more = false;
        } else {
            propose(runs);
        }
    }
    return false;
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

static void bits_of_grid(const fv_plan_runs *runs, int64_t key, int64_t count, uint64_t bits[FV_TILE])
{
    const fv_grid *grid = &runs->view->plan->grid;
    int last = grid->rank - 1, rows = runs->tile->rows;
    int64_t width = grid->dims[last], end = fv_min(key + count, runs->view->grid_keys), dilation = grid->dilation[last];
    uint64_t seen[FV_TILE] = {0}, beyond = fv_plan_interval(end, key + count, key, count);

    for (int64_t j = key; j < end;) {
        int64_t x = j % width, line = j / width, take = fv_min(width - x, end - j), outer[3] = {0};
        for (int a = last - 1; a >= 0; a--) {
            outer[a] = line % grid->dims[a];
            line /= grid->dims[a];
        }
        for (int r = 0; r < rows; r++) {
            bool sees = true;
            for (int a = 0; a < last; a++) {
                int64_t from = outer[a] - runs->low[a][r];
                sees = sees && from >= 0 && outer[a] < runs->high[a][r] &&
                       (grid->dilation[a] <= 1 || from % grid->dilation[a] == 0);
            }
            if (!sees) continue;
            int64_t low = runs->low[last][r], high = fv_min(runs->high[last][r], x + take);
            if (dilation <= 1) {
                seen[r] |= fv_plan_interval(j + low - x, j + high - x, j, take) << (j - key);
                continue;
            }
            if (low < x) low += fv_ceil_div(x - low, dilation) * dilation;
            for (; low < high; low += dilation)
                seen[r] |= (uint64_t)1 << (j - key + low - x);
        }
        j += take;
    }
    for (int r = 0; r < rows; r++)
        bits[r] &= seen[r] | beyond;
}

static void bits_of_tiles(const fv_plan_runs *runs, uint64_t rows, int64_t key, int64_t count, uint64_t bits[FV_TILE])
{
    const fv_lists *lists = &runs->view->plan->lists;

    for (; rows; rows &= rows - 1) {
        int r = __builtin_ctzll(rows);
        if (runs->bit_tile[r] == 0) continue;
        const uint64_t *tile = lists->tiles + (runs->bit_tile[r] - 1) * lists->tile_words;
        int64_t bit = runs->row_in_group[r] * lists->key_block + key - runs->block_start;
        uint64_t word = tile[bit / 64] >> bit % 64;
        if (bit % 64 + count > 64) word |= tile[bit / 64 + 1] << (64 - bit % 64);
        bits[r] &= word;
    }
}

/* What only a look at each key tells: positions that do not ascend, segments in disorder, lifetimes. */
static void bits_by_pair(const fv_plan_runs *runs, int64_t key, int64_t count, uint64_t bits[FV_TILE])
{
    const fv_plan_view *view = runs->view;
    const fv_plan *plan = view->plan;
    bool by_position = !view->positions_ascend, by_segment = plan->key_segment && !view->segments_ascend;
    bool by_grid = plan->grid.rank > 0 && plan->key_position;
    fv_plan grid_only = {.grid = plan->grid, .offset = plan->offset, .key_position = plan->key_position};

    for (int r = 0; r < runs->tile->rows; r++) {
        int64_t p = runs->position[r], query = runs->tile->query[r], sink, low, high;
        uint64_t seen = 0;
        if (!bits[r]) continue;
        position_limits(runs, p, &sink, &low, &high);
        for (int64_t n = 0; n < count; n++) {
            int64_t j = key + n, position = fv_plan_key_position(plan, j);
            bool sees = !by_position || position < sink || (position >= low && position < high);
            sees = sees && (!by_segment || plan->query_segment[query] == plan->key_segment[j]);
            sees = sees && (!plan->born || plan->born[j] <= p) && (!plan->gone || p < plan->gone[j]);
            sees = sees && (!by_grid || fv_plan_sees(&grid_only, view->heads, 0, 0, query, j));
            seen |= (uint64_t)sees << n;
        }
        bits[r] &= seen;
    }
}

void fv_plan_bits(const fv_plan_runs *runs, const fv_plan_run *run, int64_t key, int count, uint64_t bits[FV_TILE])
{
    const fv_plan_view *view = runs->view;

    if (runs->stored && runs->has_tiles && count == FV_TILE && key == runs->block_start &&
        runs->span[runs->at_span].whole) {
        const fv_lists *lists = &view->plan->lists;
        const uint64_t *tile = lists->tiles + (runs->bit_tile[0] - 1) * lists->tile_words + runs->row_in_group[0];
        memcpy(bits, tile, (size_t)runs->tile->rows * sizeof bits[0]);
        memset(bits + runs->tile->rows, 0, (size_t)(FV_TILE - runs->tile->rows) * sizeof bits[0]);
        return;
    }
    memset(bits, 0, FV_TILE * sizeof bits[0]);
    for (uint64_t rows = run->rows; rows; rows &= rows - 1) {
        int r = __builtin_ctzll(rows);
        bits[r] = run->whole ? low_bits(count)
                             : fv_plan_interval(runs->sink_from[r], runs->sink_to[r], key, count) |
                                   fv_plan_interval(runs->from[r], runs->to[r], key, count);
    }
    if (run->whole) return;
    if (view->plan->grid.rank > 0 && !view->plan->key_position) bits_of_grid(runs, key, count, bits);
    if (runs->has_tiles) bits_of_tiles(runs, run->rows, key, count, bits);
    if (view->by_pair) bits_by_pair(runs, key, count, bits);
}
