/* Patches and strips of a grid.  A tile of queries is a patch of the grid's cells (or of those that are queries), whose
 * windows overlap much more than those of a line of cells.  The cells of a patch have the same residue by the dilation
 * on each axis, and what is said of cells here counts in steps of the dilation: then windows are boxes, whatever the
 * dilation.
 *
 * Patches that differ on the first axis only reach the same keys on the other axes: their strip.  A strip's keys, in
 * ascending order, are FV_TILE by FV_TILE the key blocks of a kernel that keeps keys in a layout of its own: laid out
 * once, they serve all the strip's patches, and what a patch sees is a stretch of the strip. */
#include <math.h>

#include "ops/plan.h"

enum {
    TOGETHER = 14, /* rows that a kernel takes at a time and that leave out keys on their own, whole lines of a patch */
    VISIT_ROWS = 3,  /* what is done for a key of a tile, and for a key of a strip, is as much work */
    STRIP_ROWS = 20, /* as so many rows of queries that meet it */
    MOST_COPIES = 12 /* of a key in strips */
};

static int64_t dilation_of(const fv_grid *grid, int a)
{
    return a < grid->rank ? fv_max(grid->dilation[a], 1) : 1;
}

static int64_t length_of(const fv_grid *grid, int a, int64_t residue)
{
    return a < grid->rank ? (grid->dims[a] - residue - 1) / dilation_of(grid, a) + 1 : 1;
}

void fv_plan_axis(const fv_grid *grid, int a, int64_t residue, int64_t i, int64_t *from, int64_t *to)
{
    int64_t stride, window, first, length = length_of(grid, a, residue);

    *from = 0;
    *to = 1;
    if (a >= grid->rank) return;
    stride = fv_max(grid->stride[a], 1);
    window = grid->window[a];
    first = (i - fv_grid_origin(grid, a)) / stride * stride + fv_grid_origin(grid, a);
    if (grid->causal[a]) {
        int64_t leader = first + stride - 1;
        if (!grid->unclipped) leader = fv_min(leader, length - 1);
        *from = fv_max(leader - window + 1, 0);
        *to = i + 1;
    } else if (grid->truncated[a]) {
        int64_t start = first + stride / 2 - window / 2;
        *from = fv_max(start, 0);
        *to = fv_min(start + window, length);
    } else {
        int64_t leader = fv_min(first + stride / 2, length - 1);
        *from = fv_max(leader - window / 2, 0);
        if (leader + window / 2 + window % 2 - 1 >= length) *from = length - window;
        *to = *from + window;
    }
}

/* The same of query n of the residue. */
static void query_axis(const fv_grid *grid, int a, int64_t residue, int64_t n, int64_t *from, int64_t *to)
{
    fv_plan_axis(grid, a, residue, a < grid->rank ? fv_grid_cell(grid, a, n) : 0, from, to);
}

static int64_t queries_of(const fv_grid *grid, int a, int64_t residue)
{
    return a < grid->rank && grid->query_count[a] > 0 ? grid->query_count[a] : length_of(grid, a, residue);
}

/* How many queries share a window, and how many of the first group are not there. */
static void groups_of(const fv_grid *grid, int a, int64_t *group, int64_t *missing)
{
    *group = a < grid->rank ? fv_max(grid->stride[a], 1) : 1;
    *missing = 0;
    if (a >= grid->rank || grid->query_count[a] == 0) return;
    int64_t step = fv_max(grid->query_step[a], 1);
    *missing = (grid->query_first[a] - grid->stride_first[a]) % *group / step;
    *group = fv_max(*group / step, 1);
    *missing %= *group; /* where the step does not divide the stride, groups are not all alike */
}

/* ---- cutting --------------------------------------------------------------------------------------------------- */

/* The patches of an axis while they are made, and what they cost: keys they reach, and rows that meet them. */
struct cuts {
    const fv_grid *grid;
    int axis;
    fv_plan_patch *patch; /* NULL: only counted */
    int64_t count;
    double keys, meetings;
};

/* Cuts [from, to) into as few patches as hold at most `most` times `unit` cells, of nearly the same size. */
static void cut_evenly(struct cuts *cuts, int64_t residue, int64_t from, int64_t to, int64_t unit, int64_t most)
{
    int64_t units = fv_ceil_div(to - from, unit), parts = fv_ceil_div(units, most), ignored;

    for (int64_t n = 0; n < parts; n++) {
        fv_plan_patch patch = {.residue = residue, .from = fv_max(from + units * n / parts * unit, 0)};
        patch.to = fv_min(from + units * (n + 1) / parts * unit, to);
        query_axis(cuts->grid, cuts->axis, residue, patch.from, &patch.low, &ignored);
        query_axis(cuts->grid, cuts->axis, residue, patch.to - 1, &ignored, &patch.high);
        cuts->keys += (double)(patch.high - patch.low);
        cuts->meetings += (double)(patch.high - patch.low) * (double)(patch.to - patch.from);
        if (cuts->patch) cuts->patch[cuts->count] = patch;
        cuts->count++;
    }
}

/* Patches of up to `side` cells: of whole groups that share a window, or parts of one. */
static void cut_axis(struct cuts *cuts, int64_t side)
{
    const fv_grid *grid = cuts->grid;
    int a = cuts->axis;
    int64_t group, missing;

    groups_of(grid, a, &group, &missing);
    cuts->count = 0;
    cuts->keys = cuts->meetings = 0;
    for (int64_t residue = 0; residue < dilation_of(grid, a); residue++) {
        int64_t length = queries_of(grid, a, residue);
        if (side >= group) cut_evenly(cuts, residue, -missing, length, group, side / group);
        for (int64_t from = -missing; side < group && from < length; from += group)
            cut_evenly(cuts, residue, fv_max(from, 0), fv_min(from + group, length), 1, side);
    }
}

/* The sides with the least work: rows that meet keys, and what is done once for a key of each tile and each strip.
 * Rows that are taken together see a stretch of their strip, which holds all that the patch reaches on the axes behind
 * the first: what windows leave out of a line is too short to be passed over. */
static void choose_sides(const fv_plan_view *view, int64_t side[3])
{
    const fv_grid *grid = &view->plan->grid;
    double keys[3][FV_TILE + 1], meetings[3][FV_TILE + 1], least = INFINITY;
    int64_t most[3];

    for (int a = 0; a < 3; a++) {
        struct cuts cuts = {.grid = grid, .axis = a};
        most[a] = fv_min(queries_of(grid, a, 0), view->tile_rows);
        for (int64_t s = 1; s <= most[a]; s++) {
            cut_axis(&cuts, s);
            keys[a][s] = cuts.keys;
            meetings[a][s] = cuts.meetings;
        }
    }
    for (int64_t x = 1; x <= most[0]; x++)
        for (int64_t y = 1; y <= most[1] && x * y <= view->tile_rows; y++)
            for (int64_t z = 1; z <= most[2] && x * y * z <= view->tile_rows; z++) {
                int64_t sides[3] = {x, y, z}, lines = fv_clamp(TOGETHER / (y * z), 1, x);
                double cost = meetings[0][lines] * meetings[1][y] * meetings[2][z];
                cost += VISIT_ROWS * keys[0][x] * keys[1][y] * keys[2][z];
                cost += STRIP_ROWS * (double)grid->dims[0] * keys[1][y] * keys[2][z];
                if (cost >= least) continue;
                least = cost;
                memcpy(side, sides, sizeof sides);
            }
}

/* Index of a query at i steps of the dilation from each residue; and of such a cell on the grid. */
static int64_t query_at(const fv_grid *grid, const fv_plan_patch *const patch[3], const int64_t i[3])
{
    int64_t index = 0;

    for (int a = 0; a < grid->rank; a++)
        index = index * fv_grid_queries(grid, a) + patch[a]->residue + i[a] * dilation_of(grid, a);
    return index;
}

static int64_t cell(const fv_grid *grid, const fv_plan_patch *const patch[3], const int64_t i[3])
{
    int64_t index = 0;

    for (int a = 0; a < grid->rank; a++)
        index = index * grid->dims[a] + patch[a]->residue + i[a] * dilation_of(grid, a);
    return index;
}

/* Writes the keys of strip n in ascending order. */
static void lay_strip(const fv_plan_view *view, int64_t n, int32_t *key)
{
    const fv_grid *grid = &view->plan->grid;
    int64_t residues = dilation_of(grid, 0), i[3], step = dilation_of(grid, grid->rank - 1);
    fv_plan_patch first = {.residue = n % residues, .high = length_of(grid, 0, n % residues)};
    const fv_plan_patch *patch[3] = {&first, &view->patch[1][n / residues / view->patches[2]],
                                     &view->patch[2][n / residues % view->patches[2]]};
    const fv_plan_patch *last = patch[grid->rank - 1];
    int axis = grid->rank - 1;

    memcpy(i, (int64_t[3]){first.low, patch[1]->low, patch[2]->low}, sizeof i);
    while (i[0] < first.high) {
        int64_t index = cell(grid, patch, i);
        for (int64_t m = last->low; m < last->high; m++, index += step)
            *key++ = (int32_t)index;
        i[axis] = last->high;
        for (int a = axis; a > 0 && i[a] == patch[a]->high; a--) {
            i[a] = patch[a]->low;
            i[a - 1]++;
        }
    }
}

/* Strips are laid out if nothing but the grid says who sees whom. */
static fv_status lay_strips(fv_ctx *ctx, fv_plan_view *view)
{
    const fv_plan *plan = view->plan;
    const fv_grid *grid = &plan->grid;
    int64_t residues = dilation_of(grid, 0), blocks = 0, keys = 0, strips;
    bool causal = true;

    for (int a = 0; a < grid->rank; a++)
        causal = causal && grid->causal[a] && grid->query_count[a] == 0;
    if (view->keys != view->grid_keys || plan->key_position || plan->window.window > 0 || plan->window.heads > 0 ||
        plan->query_segment || plan->key_from || plan->key_to || plan->born || plan->gone || (plan->causal && !causal))
        return FV_OK;
    strips = view->patches[1] * view->patches[2] * residues;
    FV_TRY(FV_SCRATCH(ctx, view->strip_first, strips + 1));
    for (int64_t n = 0; n < strips; n++) {
        const fv_plan_patch *y = &view->patch[1][n / residues / view->patches[2]];
        const fv_plan_patch *z = &view->patch[2][n / residues % view->patches[2]];
        int64_t count = length_of(grid, 0, n % residues) * (y->high - y->low) * (z->high - z->low);
        view->strip_first[n] = blocks;
        blocks += fv_ceil_div(count, FV_TILE);
        keys += fv_round_up(count, FV_TILE);
    }
    view->strip_first[strips] = blocks;
    if (keys > MOST_COPIES * fv_round_up(view->keys, FV_TILE) || view->keys > INT32_MAX) return FV_OK;
    view->strips = strips;
    FV_TRY(FV_SCRATCH(ctx, view->strip_key, keys));
    FV_TRY(FV_SCRATCH(ctx, view->strip_keys, blocks));
    for (int64_t n = 0; n < strips; n++) {
        const fv_plan_patch *y = &view->patch[1][n / residues / view->patches[2]];
        const fv_plan_patch *z = &view->patch[2][n / residues % view->patches[2]];
        int64_t left = length_of(grid, 0, n % residues) * (y->high - y->low) * (z->high - z->low);
        lay_strip(view, n, view->strip_key + view->strip_first[n] * FV_TILE);
        for (int64_t block = view->strip_first[n]; block < view->strip_first[n + 1]; block++, left -= FV_TILE)
            view->strip_keys[block] = (int32_t)fv_min(left, FV_TILE);
    }
    return FV_OK;
}

fv_status fv_plan_cut_patches(fv_ctx *ctx, fv_plan_view *view)
{
    const fv_plan *plan = view->plan;
    const fv_grid *grid = &plan->grid;
    int64_t side[3] = {1, 1, 1};
    bool line = grid->rank == 1 && dilation_of(grid, 0) == 1;
    int64_t queries = 1;

    for (int a = 0; a < grid->rank; a++)
        queries *= fv_grid_queries(grid, a);
    if (grid->rank == 0 || line || plan->lists.row_start || view->queries != queries || plan->offset != 0) return FV_OK;
    choose_sides(view, side);
    view->class_tile[1] = 1;
    for (int a = 0; a < 3; a++) {
        struct cuts cuts = {.grid = grid, .axis = a};
        cut_axis(&cuts, side[a]);
        FV_TRY(FV_SCRATCH(ctx, cuts.patch, cuts.count));
        cut_axis(&cuts, side[a]);
        view->patch[a] = cuts.patch;
        view->patches[a] = cuts.count;
        view->class_tile[1] *= cuts.count;
    }
    return lay_strips(ctx, view);
}

/* ---- patches --------------------------------------------------------------------------------------------------- */

static void patches_of(const fv_plan_view *view, const int64_t at[3], const fv_plan_patch *patch[3])
{
    for (int a = 0; a < 3; a++)
        patch[a] = &view->patch[a][at[a]];
}

void fv_plan_patch_at(const fv_plan_view *view, int64_t cut, fv_plan_tile *tile)
{
    const fv_plan_patch *patch[3];
    int64_t i[3];

    /* the patches of a strip one after the other */
    tile->patch[0] = cut % view->patches[0];
    cut /= view->patches[0];
    tile->patch[2] = cut % view->patches[2];
    tile->patch[1] = cut / view->patches[2];
    patches_of(view, tile->patch, patch);
    tile->rows = 0;
    tile->line = (int)(patch[view->plan->grid.rank - 1]->to - patch[view->plan->grid.rank - 1]->from);
    for (i[0] = patch[0]->from; i[0] < patch[0]->to; i[0]++)
        for (i[1] = patch[1]->from; i[1] < patch[1]->to; i[1]++)
            for (i[2] = patch[2]->from; i[2] < patch[2]->to; i[2]++) {
                tile->row[tile->rows] = tile->query[tile->rows] = query_at(&view->plan->grid, patch, i);
                tile->rows++;
            }
}

/* ---- strips ---------------------------------------------------------------------------------------------------- */

int fv_plan_strip_keys(const fv_plan_view *view, int64_t block, int64_t key[FV_TILE])
{
    const int32_t *from = view->strip_key + block * FV_TILE;

    for (int n = 0; n < FV_TILE; n++)
        key[n] = from[n];
    return view->strip_keys[block];
}

/* Bits n of a word for which from <= (first + n) mod period < to, first < period. */
static uint64_t recurring(int64_t from, int64_t to, int64_t period, int64_t first)
{
    uint64_t word = 0;

    if (from <= 0 && to >= period) return UINT64_MAX;
    for (int64_t shift = -first; shift < FV_TILE; shift += period)
        word |= fv_plan_interval(shift + from, shift + to, 0, FV_TILE);
    return word;
}

void fv_plan_strip_of(const fv_plan_view *view, const fv_plan_tile *tile, fv_plan_strip *strip)
{
    const fv_grid *grid = &view->plan->grid;
    int64_t residues = dilation_of(grid, 0), unit = 1;

    patches_of(view, tile->patch, strip->patch);
    for (int a = 2; a >= 0; a--) {
        const fv_plan_patch *patch = strip->patch[a];
        int64_t low = a == 0 ? 0 : patch->low;
        strip->sides[a] = (int)(patch->to - patch->from);
        for (int n = 0; n < strip->sides[a]; n++) {
            int64_t *from = &strip->from[a][n], *to = &strip->to[a][n];
            query_axis(grid, a, patch->residue, patch->from + n, from, to);
            *from = (*from - low) * unit;
            *to = (*to - low) * unit;
        }
        if (a > 0) unit *= patch->high - patch->low;
        strip->period[a] = a == 0 ? INT64_MAX / 2 : unit;
    }
    strip->first =
        view->strip_first[(tile->patch[1] * view->patches[2] + tile->patch[2]) * residues + strip->patch[0]->residue];
    strip->block = strip->first + strip->patch[0]->low * unit / FV_TILE;
    strip->end = strip->first + fv_ceil_div(strip->patch[0]->high * unit, FV_TILE);
}

void fv_plan_strip_bits(const fv_plan_strip *strip, int64_t block, uint64_t bits[FV_TILE])
{
    int64_t at = (block - strip->first) * FV_TILE;
    uint64_t word[3][FV_TILE];
    int r = 0;

    for (int a = 0; a < 3; a++) {
        int64_t first = at % strip->period[a];
        for (int n = 0; n < strip->sides[a]; n++)
            word[a][n] = recurring(strip->from[a][n], strip->to[a][n], strip->period[a], first);
    }
    for (int x = 0; x < strip->sides[0]; x++)
        for (int y = 0; y < strip->sides[1]; y++)
            for (int z = 0; z < strip->sides[2]; z++)
                bits[r++] = word[0][x] & word[1][y] & word[2][z];
}
