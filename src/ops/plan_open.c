/* How the rows of a call are cut into tiles. */
#include "ops/plan.h"

static bool ascends(const int32_t *values, int64_t count)
{
    for (int64_t n = 1; values && n < count; n++)
        if (values[n] < values[n - 1]) return false;
    return true;
}

enum { LEAST_APART = 32 /* rows of a group, for it to have tiles of its own: groups read different keys */ };

/* Cuts rows 0..rows-1 whose groups begin at start[] (NULL: every `block` rows; 0: no groups).  A tile holds whole
 * groups, several if they are small (never with `apart`), or a part of one.  Returns the number of tiles; cut_row NULL
 * only counts. */
static int64_t cut_rows(const int64_t *start, int64_t groups, int64_t block, int64_t rows, int64_t most, bool apart,
                        int64_t *cut_row, int32_t *cut_count)
{
    int64_t cuts = 0, first = 0, held = 0;

    if (!start && block <= 0) groups = 1;
    for (int64_t g = 0; g <= groups; g++) {
        int64_t from = start ? start[g] - start[0] : block > 0 ? fv_min(g * block, rows) : g * rows;
        int64_t next = g == groups ? from
                       : start     ? fv_min(start[g + 1] - start[0], rows)
                       : block > 0 ? fv_min(from + block, rows)
                                   : rows;
        bool joins = !apart && held < LEAST_APART && next - from < LEAST_APART && held + next - from <= most;
        if (held > 0 && (g == groups || !joins)) {
            if (cut_row) cut_row[cuts] = first, cut_count[cuts] = (int32_t)held;
            cuts++;
            held = 0;
        }
        if (g == groups || from >= rows) continue;
        while (next - from > most) {
            if (cut_row) cut_row[cuts] = from, cut_count[cuts] = (int32_t)most;
            cuts++;
            from += most;
        }
        if (held == 0) first = from;
        held += next - from;
    }
    return cuts;
}

static int64_t cut_class(const fv_plan_view *view, int64_t class, int64_t *cut_row, int32_t *cut_count)
{
    const fv_lists *lists = &view->plan->lists;

    if (view->classes > 1 || fv_plan_gathers(view->plan)) {
        int64_t made_for = fv_max(lists->heads, 1), b = class / made_for, head = class % made_for;
        int64_t row = b * lists->batch_stride + head * lists->head_stride;
        const int64_t *start = lists->query_start + row;
        return cut_rows(start, lists->groups, 0, start[lists->groups] - start[0], view->tile_rows, true, cut_row,
                        cut_count);
    }
    if (lists->row_start)
        return cut_rows(lists->query_start, lists->groups, lists->query_block, view->queries, view->tile_rows, false,
                        cut_row, cut_count);
    return cut_rows(NULL, 1, 0, view->queries, view->tile_rows, false, cut_row, cut_count);
}

fv_status fv_plan_open(fv_ctx *ctx, const fv_plan *plan, int64_t batch, int64_t heads, int64_t share, int64_t tile_rows,
                       int64_t queries, int64_t keys, fv_plan_view *view)
{
    static const fv_plan everything;
    int64_t pairs, made_for, cuts = 0;

    if (!plan) plan = &everything;
    *view = (fv_plan_view){.plan = plan,
                           .batch = batch,
                           .heads = heads,
                           .share = share,
                           .queries = queries,
                           .keys = keys,
                           .tile_rows = tile_rows};
    view->positions_ascend = ascends(plan->key_position, keys);
    view->segments_ascend = ascends(plan->key_segment, keys);
    view->by_pair = plan->born || plan->gone || !view->segments_ascend || !view->positions_ascend ||
                    (plan->key_position && plan->grid.rank > 0);
    view->by_position = !view->positions_ascend && plan->causal && !plan->born && !plan->gone &&
                        view->segments_ascend && plan->grid.rank == 0 && plan->window.window <= 0 &&
                        plan->window.heads <= 0;
    view->grid_keys = plan->grid.rank > 0 ? 1 : 0;
    for (int a = 0; a < plan->grid.rank; a++)
        view->grid_keys *= plan->grid.dims[a];

    made_for = fv_max(plan->lists.heads, 1);
    view->classes = fv_plan_gathers(plan) ? batch * made_for : 1;
    FV_TRY(FV_SCRATCH(ctx, view->class_tile, view->classes + 1));
    for (int64_t c = 0; c < view->classes; c++) {
        view->class_tile[c] = cuts;
        cuts += cut_class(view, c, NULL, NULL);
    }
    view->class_tile[view->classes] = cuts;
    FV_TRY(FV_SCRATCH(ctx, view->cut_row, cuts));
    FV_TRY(FV_SCRATCH(ctx, view->cut_rows, cuts));
    for (int64_t c = 0; c < view->classes; c++)
        cut_class(view, c, view->cut_row + view->class_tile[c], view->cut_rows + view->class_tile[c]);

    if (view->classes == 1) FV_TRY(fv_plan_cut_patches(ctx, view));
    pairs = batch * (heads / share);
    if (view->classes == 1) {
        view->items = pairs * view->class_tile[1];
        return FV_OK;
    }
    FV_TRY(FV_SCRATCH(ctx, view->item_first, pairs + 1));
    view->item_first[0] = 0;
    for (int64_t n = 0; n < pairs; n++) {
        int64_t b = n / (heads / share), h = n % (heads / share) * share, class = b * made_for + h * made_for / heads;
        view->item_first[n + 1] = view->item_first[n] + view->class_tile[class + 1] - view->class_tile[class];
    }
    view->items = view->item_first[pairs];
    return FV_OK;
}

void fv_plan_tile_at(const fv_plan_view *view, int64_t item, fv_plan_tile *tile)
{
    int64_t groups = view->heads / view->share, pair, cut, made_for = fv_max(view->plan->lists.heads, 1);

    if (view->classes == 1) {
        pair = item / view->class_tile[1];
        cut = item % view->class_tile[1];
    } else {
        int64_t low = 0, high = view->batch * groups;
        while (high - low > 1) {
            int64_t middle = (low + high) / 2;
            if (view->item_first[middle] <= item)
                low = middle;
            else
                high = middle;
        }
        pair = low;
        cut = view->class_tile[pair / groups * made_for + pair % groups * view->share * made_for / view->heads] + item -
              view->item_first[pair];
    }
    tile->b = pair / groups;
    tile->h = pair % groups * view->share;
    if (view->patch[0]) {
        fv_plan_patch_at(view, cut, tile);
        return;
    }
    tile->rows = view->cut_rows[cut];
    tile->line = 0;
    for (int r = 0; r < tile->rows; r++) {
        tile->row[r] = view->cut_row[cut] + r;
        tile->query[r] = fv_plan_query(view->plan, view->heads, tile->b, tile->h, tile->row[r]);
    }
}
