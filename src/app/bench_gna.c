/* fovea bench gna: what windows on a grid could save by pairs and by tiles (arXiv 2504.16922, its analytical model),
 * and beside that what they do save here. */
#include <string.h>

#include "app/bench.h"
#include "app/examples.h"
#include "attention/attention.h"
#include "base/memory.h"
#include "ops/plan.h"

/* ---- tiles that windows touch ------------------------------------------------------------------------------------ */

struct reckoned {
    double pairs, tiles;
};

/* On an axis: pairs of cells, and pairs of a tile of queries and a tile of keys that its windows' bounding box meets.
 */
static struct reckoned reckon_axis(const fv_grid *grid, int a, int64_t q_tile, int64_t kv_tile)
{
    struct reckoned sum = {0};
    int64_t residues = fv_max(grid->dilation[a], 1);

    for (int64_t residue = 0; residue < residues; residue++) {
        int64_t cells = (grid->dims[a] - residue - 1) / residues + 1;
        int64_t queries = grid->query_count[a] > 0 ? grid->query_count[a] : cells, low = INT64_MAX, high = 0;
        for (int64_t n = 0, from, to; n < queries; n++) {
            fv_plan_axis(grid, a, residue, fv_grid_cell(grid, a, n), &from, &to);
            sum.pairs += (double)(to - from);
            low = fv_min(low, from);
            high = fv_max(high, to);
            if ((n + 1) % q_tile != 0 && n + 1 < queries) continue;
            if (low < high) sum.tiles += (double)(fv_ceil_div(high, kv_tile) - low / kv_tile);
            low = INT64_MAX;
            high = 0;
        }
    }
    return sum;
}

static struct reckoned reckon(const fv_grid *grid, const fv_tuple *q_tile, const fv_tuple *kv_tile)
{
    struct reckoned product = {1, 1};

    for (int a = 0; a < grid->rank; a++) {
        struct reckoned axis = reckon_axis(grid, a, q_tile->items[a], kv_tile->items[a]);
        product.pairs *= axis.pairs;
        product.tiles *= axis.tiles;
    }
    return product;
}

/* The same grid of which everything is seen, but for what is behind a causal axis. */
static fv_grid dense_grid(const fv_grid *grid)
{
    fv_grid dense = *grid;

    for (int a = 0; a < grid->rank; a++) {
        dense.window[a] = grid->dims[a];
        dense.stride[a] = dense.dilation[a] = 1;
        dense.truncated[a] = false;
    }
    return dense;
}

/* ---- what is simulated ------------------------------------------------------------------------------------------- */

/* The table of the paper's published shapes. */
static const struct published {
    const char *name, *spec;
    fv_tuple tile;
} published[] = {
    {"1-D", "gna:grid=32768,window=2048,stride=1", {1, {128}}},
    {"1-D", "gna:grid=32768,window=2048,stride=256", {1, {128}}},
    {"1-D", "gna:grid=32768,window=2048,stride=2048", {1, {128}}},
    {"FLUX 4K", "gna:grid=256x256,window=80x80,stride=1x1", {2, {16, 8}}},
    {"FLUX 4K", "gna:grid=256x256,window=80x80,stride=16x16", {2, {16, 8}}},
    {"FLUX 4K", "gna:grid=256x256,window=80x80,stride=1x1", {2, {1, 128}}},
    {"HunyuanVideo", "gna:grid=30x48x80,window=18x24x24,stride=1x1x1", {3, {2, 8, 8}}},
    {"HunyuanVideo", "gna:grid=30x48x80,window=18x24x24,stride=16x8x8", {3, {2, 8, 8}}},
    {"Cosmos", "gna:grid=16x44x80,window=16x32x48,stride=1x1x1", {3, {4, 4, 8}}},
    {"Cosmos", "gna:grid=16x44x80,window=16x32x48,stride=1x16x16", {3, {4, 4, 8}}},
};
enum { PUBLISHED = sizeof published / sizeof published[0] };

/* The grid of a SPEC, as its mechanism makes it; nothing is computed. */
static fv_status grid_of(fv_ctx *ctx, const char *spec, fv_grid *grid)
{
    static float nothing;
    fv_tensor any = {.data = &nothing, .dtype = FV_F32, .rank = 4, .dims = {1, 2, example_cells(spec), 1}};
    fv_attention *attention;
    fv_pairs pairs;
    fv_call call;

    FV_TRY(fv_attention_new(spec, &attention));
    fv_status status = fv_call_make(attention, &(fv_attention_args){.q = any, .k = any, .v = any, .o = any}, &call);
    if (status == FV_OK) status = fv_call_pairs(ctx, fv_attention_mechanism(attention), &call, &pairs);
    if (status == FV_OK) *grid = pairs.plan.grid;
    fv_attention_free(attention);
    return status;
}

/* One number counts for every axis; without any, tiles of 128 tokens. */
static fv_status complete_tile(const char *flag, const char *spec, int rank, fv_tuple *tile)
{
    static const fv_tuple usual[] = {{1, {128}}, {2, {16, 8}}, {3, {2, 8, 8}}};

    if (tile->count == 0) *tile = usual[rank - 1];
    for (int a = 1; tile->count == 1 && a < rank; a++)
        tile->items[a] = tile->items[0];
    if (tile->count != 1 && tile->count != rank)
        return fv_fail(FV_E_USAGE, "%s: expected one number, or one for each axis of '%s', %d; got %d", flag, spec,
                       rank, tile->count);
    tile->count = rank;
    return FV_OK;
}

struct row {
    const char *what, *name; /* as it was asked for; of a published shape */
    fv_grid grid;
    fv_tuple q_tile, kv_tile;
    double flop_ratio, bound;
};

struct rows {
    fv_ctx *ctx;
    const fv_tuple *q_tile, *kv_tile; /* asked for; without items: not */
    int64_t count, capacity;
    struct row *row;
};

static fv_status add(struct rows *rows, const char *what, const struct published *p)
{
    struct row row = {.what = what, .name = p->name};
    struct reckoned all, seen;
    fv_grid dense;

    FV_TRY(grid_of(rows->ctx, p->spec, &row.grid));
    if (row.grid.rank == 0) return fv_fail(FV_E_USAGE, "--simulate: what '%s' sees are not windows on a grid", what);
    row.q_tile = rows->q_tile->count > 0 ? *rows->q_tile : p->tile;
    row.kv_tile = rows->kv_tile->count > 0 ? *rows->kv_tile : p->tile;
    FV_TRY(complete_tile("--q-tile", p->spec, row.grid.rank, &row.q_tile));
    FV_TRY(complete_tile("--kv-tile", p->spec, row.grid.rank, &row.kv_tile));
    dense = dense_grid(&row.grid);
    all = reckon(&dense, &row.q_tile, &row.kv_tile);
    seen = reckon(&row.grid, &row.q_tile, &row.kv_tile);
    row.flop_ratio = all.pairs / seen.pairs;
    row.bound = all.tiles / seen.tiles;
    FV_TRY(FV_GROW(rows->row, rows->capacity, rows->count + 1));
    rows->row[rows->count++] = row;
    return FV_OK;
}

static fv_status add_words(struct rows *rows, const cli_common *common)
{
    for (int w = 0; w < fv_max(common->operands, 1); w++) {
        const char *word = common->operands > 0 ? common->operand[w] : "gna";
        if (strcmp(word, "gna") == 0) {
            for (int n = 0; n < PUBLISHED; n++)
                FV_TRY(add(rows, word, &published[n]));
        } else if (example_cells(word) > 0) {
            FV_TRY(add(rows, word, &(struct published){.spec = word}));
        } else {
            return fv_fail(FV_E_USAGE, "--simulate: expected gna, or a SPEC with a grid and a window, got '%s'", word);
        }
    }
    return FV_OK;
}

/* ---- output ------------------------------------------------------------------------------------------------------ */

/* "16x8", in a ring of buffers. */
static const char *axes_text(const int64_t *items, int rank)
{
    static _Thread_local char ring[8][72];
    static _Thread_local unsigned next;
    char *text = ring[next++ % 8];
    size_t length = 0;

    for (int a = 0; a < rank; a++)
        length +=
            (size_t)snprintf(text + length, sizeof ring[0] - length, a > 0 ? "x%lld" : "%lld", (long long)items[a]);
    return text;
}

static const char *causal_text(const fv_grid *grid)
{
    int64_t causal[3];

    for (int a = 0; a < 3; a++)
        causal[a] = grid->causal[a];
    return axes_text(causal, grid->rank);
}

static fv_status print_json(const struct rows *rows)
{
    json_t *array = json_array();

    for (int64_t n = 0; n < rows->count; n++) {
        const struct row *row = &rows->row[n];
        int rank = row->grid.rank;
        json_t *object = json_object();
        app_put(object, "what", json_string(row->what));
        app_put(object, "shape", json_string(row->name ? row->name : axes_text(row->grid.dims, rank)));
        app_put(object, "grid", json_string(axes_text(row->grid.dims, rank)));
        app_put(object, "window", json_string(axes_text(row->grid.window, rank)));
        app_put(object, "stride", json_string(axes_text(row->grid.stride, rank)));
        app_put(object, "dilation", json_string(axes_text(row->grid.dilation, rank)));
        app_put(object, "causal", json_string(causal_text(&row->grid)));
        app_put(object, "q_tile", json_string(axes_text(row->q_tile.items, rank)));
        app_put(object, "kv_tile", json_string(axes_text(row->kv_tile.items, rank)));
        app_put(object, "flop_ratio", app_number(row->flop_ratio));
        app_put(object, "bound", app_number(row->bound));
        app_append(array, object);
    }
    return app_json_print(array);
}

static fv_status print_table(const struct rows *rows)
{
    static const bool left[] = {true, true, true, true, true, true, false, false};
    static const char *const heading[] = {"SHAPE",  "GRID",    "WINDOW",     "STRIDE",
                                          "Q TILE", "KV TILE", "FLOP RATIO", "TILE BOUND"};
    app_table table = {.columns = 8, .left = left};

    for (int i = 0; i < table.columns; i++)
        app_table_cell(&table, "%s", heading[i]);
    for (int64_t n = 0; n < rows->count; n++) {
        const struct row *row = &rows->row[n];
        int rank = row->grid.rank;
        app_table_cell(&table, "%s", row->name ? row->name : row->what);
        app_table_cell(&table, "%s", axes_text(row->grid.dims, rank));
        app_table_cell(&table, "%s", axes_text(row->grid.window, rank));
        app_table_cell(&table, "%s", axes_text(row->grid.stride, rank));
        app_table_cell(&table, "%s", axes_text(row->q_tile.items, rank));
        app_table_cell(&table, "%s", axes_text(row->kv_tile.items, rank));
        app_table_cell(&table, "%.2f", row->flop_ratio);
        app_table_cell(&table, "%.2f", row->bound);
    }
    FV_TRY(app_table_print(&table, stdout));
    printf(
        "Times as fast as dense attention: at most FLOP RATIO by pairs, and TILE BOUND where every tile that a window "
        "touches is computed whole.\n");
    return FV_OK;
}

fv_status bench_simulate(struct app *app, const fv_tuple *q_tile, const fv_tuple *kv_tile)
{
    struct rows rows = {.q_tile = q_tile, .kv_tile = kv_tile};
    fv_status status = app_begin(app, FV_PRECISION_AUTO);

    rows.ctx = app->ctx;
    if (status == FV_OK) status = add_words(&rows, app->common);
    if (status == FV_OK) status = app->common->json ? print_json(&rows) : print_table(&rows);
    fv_free(rows.row);
    return status;
}

/* ---- what is measured -------------------------------------------------------------------------------------------- */

fv_status bench_gna(struct bench *b)
{
    static const char *const specs[] = {
        "gna:grid=4096,window=256,stride=1",        "gna:grid=4096,window=256,stride=8",
        "gna:grid=4096,window=256,stride=16",       "gna:grid=4096,window=256,stride=256",
        "gna:grid=64x64,window=16x16,stride=1x1",   "gna:grid=64x64,window=16x16,stride=8x8",
        "gna:grid=64x64,window=16x16,stride=16x16",
    };

    for (size_t n = 0; n < sizeof specs / sizeof specs[0]; n++)
        FV_TRY(bench_sweep(b, specs[n]));
    return FV_OK;
}

fv_status bench_tile_bound(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, double *bound)
{
    fv_mark mark = fv_scratch_mark(ctx);
    const fv_mechanism *mechanism = fv_attention_mechanism(attention);
    int64_t tiles = 0, all = 0;
    fv_plan dense;
    fv_pairs pairs;
    fv_status status;
    fv_call call;

    *bound = 0;
    if (mechanism->traits & FV_NO_MAP || !example_option(mechanism, "grid")) return FV_OK;
    FV_TRY_DONE(fv_call_make(attention, args, &call));
    FV_TRY_DONE(fv_call_pairs(ctx, mechanism, &call, &pairs));
    if (pairs.plan.grid.rank == 0) goto done;
    dense = (fv_plan){.causal = call.causal, .offset = call.offset};
    FV_TRY_DONE(fv_plan_tiles(ctx, &dense, call.queries, call.keys, &all));
    FV_TRY_DONE(fv_plan_tiles(ctx, &pairs.plan, call.queries, call.keys, &tiles));
    *bound = (double)all / (double)fv_max(tiles, 1);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
