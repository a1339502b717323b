/* fovea bench: how fast this machine does each kind of work, beside what it could do at best. */
#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "app/bench.h"
#include "app/examples.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *report;
    cli_ints sizes;
    int precision;
    double seconds, dense_seconds;
    bool simulate;
    fv_tuple q_tile, kv_tile;
};

enum { BOTH, ONLY_F32, ONLY_BF16 };
static const char *const precisions[] = {"both", "f32", "bf16", NULL};

#define AT(field) offsetof(struct values, field)
static const fv_option tiles[] = {
    {.name = "q-tile", .type = FV_OPTION_TUPLE, .offset = AT(q_tile), .min = 1, .max = INT32_MAX},
    {.name = "kv-tile", .type = FV_OPTION_TUPLE, .offset = AT(kv_tile), .min = 1, .max = INT32_MAX},
};
static const cli_flag flags[] = {
    {.name = "sizes",
     .kind = CLI_INTS,
     .offset = AT(sizes),
     .argument = "512,2048",
     .min = 1,
     .max = 1 << 24,
     .help = "sequence lengths, or sides of matrices (otherwise each kind has its own: see docs/measuring.md)"},
    {.name = "precision",
     .kind = CLI_CHOICE,
     .offset = AT(precision),
     .argument = "TYPE",
     .initial = "both",
     .choices = precisions,
     .help = "rows of attend and gemm in f32, with bf16 operands, or both"},
    {.name = "seconds",
     .kind = CLI_NUMBER,
     .offset = AT(seconds),
     .argument = "S",
     .initial = "0.4",
     .min = 0,
     .max = 60,
     .help = "least time for each row"},
    {.name = "dense-seconds",
     .kind = CLI_NUMBER,
     .offset = AT(dense_seconds),
     .argument = "S",
     .initial = "15",
     .min = 0,
     .max = 1e6,
     .help = "longest call of dense attention beside a mechanism, at this machine's peak; of longer ones the time is "
             "extrapolated"},
    {.name = "model",
     .letter = 'm',
     .kind = CLI_FILE,
     .offset = AT(model),
     .argument = "MODEL",
     .help = "GGUF file, for 'model'"},
    {.name = "report",
     .kind = CLI_FILE,
     .offset = AT(report),
     .argument = "FILE.html",
     .help = "also write a page with plots that needs nothing else"},
    {.name = "simulate",
     .kind = CLI_SWITCH,
     .offset = AT(simulate),
     .help = "measure nothing: how many times as fast windows on a grid can be by the tiles they touch",
     .group = "Of gna"},
    {.name = "q-tile",
     .kind = CLI_OPTION,
     .argument = "NxN",
     .option = &tiles[0],
     .help = "tiles of queries for --simulate, per axis or one number (otherwise 128 tokens: 128, 16x8 or 2x8x8)"},
    {.name = "kv-tile", .kind = CLI_OPTION, .argument = "NxN", .option = &tiles[1], .help = "tiles of keys"},
    CLI_END,
};

/* ---- rows ------------------------------------------------------------------------------------------------------ */

bench_row bench_named(const char *what, const char *format, ...)
{
    bench_row row = {.what = what};
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(row.shape, sizeof row.shape, format, arguments);
    va_end(arguments);
    return row;
}

fv_status bench_add(struct bench *b, const bench_row *row)
{
    FV_TRY(FV_GROW(b->rows, b->capacity, b->count + 1));
    b->rows[b->count++] = *row;
    return FV_OK;
}

fv_status bench_measure(struct bench *b, bench_row *row, fv_precision precision,
                        fv_status (*work)(fv_ctx *ctx, void *user), void *user)
{
    fv_ctx *ctx = b->app->ctx;
    fv_precision before = ctx->precision;
    app_timing timing;

    app_progress(b->app, row->what, (double)b->measured++ / (double)b->planned);
    ctx->precision = precision;
    fv_status status = app_time(ctx, b->least, work, user, &timing);
    ctx->precision = before;
    FV_TRY(status);
    FV_TRY(app_check());
    row->seconds = timing.seconds;
    row->runs = timing.runs;
    row->of_peak = app_floor(&b->peaks, &row->work, &row->bound) / timing.seconds;
    return bench_add(b, row);
}

fv_status bench_noise(struct bench *b, fv_tensor *tensor, fv_dtype dtype, int rank, const int64_t *dims)
{
    static uint64_t stream;

    FV_TRY(fv_tensor_new(b->app->ctx, tensor, dtype, rank, dims));
    app_noise(tensor, (uint64_t)b->app->common->seed + 0x10001 * ++stream);
    return FV_OK;
}

bool bench_counts(struct bench *b, int64_t rows)
{
    if (b->counting) b->planned += rows;
    return b->counting;
}

cli_ints bench_sizes(const struct bench *b, int count, const int64_t *items)
{
    return b->sizes.count ? b->sizes : (cli_ints){.count = count, .items = (int64_t *)(uintptr_t)items};
}

static fv_status add_peak(struct bench *b, const char *what, const char *shape, const char *bound, double flops,
                          double bytes, double pass)
{
    bench_row row = bench_named(what, "%s", shape);

    if (!(flops + bytes > 0)) return FV_OK;
    row.work = (app_work){.flops = flops * pass, .read = bytes * pass};
    row.seconds = pass;
    row.of_peak = 1;
    row.bound = bound;
    row.runs = 1;
    return bench_add(b, &row);
}

static fv_status measure_peaks(struct bench *b)
{
    const app_peaks *p = &b->peaks;

    app_progress(b->app, "peaks", 0);
    FV_TRY(app_peaks_measure(b->app->ctx, &b->peaks));
    app_progress_end();
    FV_TRY(add_peak(b, "peak fma", "f32", "fma f32", p->rate[APP_FMA], 0, p->pass[APP_FMA]));
    FV_TRY(add_peak(b, "peak dot", "bf16", "dot bf16", p->rate[APP_DOT_BF16], 0, p->pass[APP_DOT_BF16]));
    FV_TRY(add_peak(b, "peak dot", "int8", "dot int8", p->rate[APP_DOT_INT8], 0, p->pass[APP_DOT_INT8]));
    FV_TRY(add_peak(b, "peak copy", "bytes read and written", "memory", 0, p->copy, p->copy_pass));
    return add_peak(b, "peak read", "bytes read", "memory", 0, p->read, p->read_pass);
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    fv_status (*run)(struct bench *b);
} kinds[] = {{"attend", bench_attend},
             {"decode", bench_decode},
             {"scan", bench_scan},
             {"gemm", bench_gemm},
             {"model", bench_model}};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

/* Every mechanism but the one the others are held against. */
static fv_status all_mechanisms(struct bench *b)
{
    for (int i = 0; fv_mechanisms[i]; i++)
        if (strcmp(fv_mechanisms[i]->name, "dense") != 0) FV_TRY(bench_sweep(b, fv_mechanisms[i]->name));
    return FV_OK;
}

static fv_status bench_word(struct bench *b, const char *word)
{
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, word) == 0) return kinds[i].run(b);
    if (strcmp(word, "gna") == 0 && b->sizes.count == 0) return bench_gna(b);
    return strcmp(word, "all") == 0 ? all_mechanisms(b) : bench_sweep(b, word);
}

static fv_status check_spec(const char *word, int64_t tokens)
{
    fv_text spec = {0};
    bool causal;
    fv_status status = example_spec(word, BENCH_HEADS, tokens, BENCH_DIM, &spec, &causal);

    fv_text_free(&spec);
    return status;
}

/* Everything that can be wrong on the command line, before anything is measured. */
static fv_status check_words(const cli_common *common, const struct values *values)
{
    for (int w = 0; w < common->operands; w++) {
        const char *word = common->operand[w];
        int i = 0;
        while (i < KINDS && strcmp(kinds[i].name, word) != 0)
            i++;
        if (i < KINDS && kinds[i].run == bench_model && !values->model)
            return cli_missing("-m MODEL", "'bench model' needs it");
        if (i < KINDS || strcmp(word, "all") == 0 || bench_is_kinetics(word)) continue;
        int64_t own = example_cells(word);
        fv_status status = check_spec(word, values->sizes.count ? values->sizes.items[0] : own ? own : 512);
        if (status == FV_E_USAGE)
            return fv_fail_in(status,
                              "'%s' is neither attend, decode, scan, gemm, model, all or kinetics_cost nor a mechanism",
                              word);
        FV_TRY(status);
    }
    return FV_OK;
}

static fv_status bench_words(struct bench *b)
{
    const cli_common *common = b->app->common;

    for (int w = 0; w < common->operands; w++)
        if (!bench_is_kinetics(common->operand[w])) FV_TRY(bench_word(b, common->operand[w]));
    for (int i = 0; common->operands == 0 && i < KINDS; i++)
        if (kinds[i].run != bench_model || b->model) FV_TRY(kinds[i].run(b));
    return FV_OK;
}

/* Counts the rows, for the bar, and then measures them. */
static fv_status bench_rows(struct bench *b)
{
    if (b->costs > 0 && b->costs == b->app->common->operands) return FV_OK; /* nothing to measure */
    FV_TRY(measure_peaks(b));
    b->counting = true;
    FV_TRY(bench_words(b));
    b->counting = false;
    return bench_words(b);
}

/* ---- output ---------------------------------------------------------------------------------------------------- */

static double of_tile_bound(const bench_row *row)
{
    return row->dense_seconds / row->seconds / row->tile_bound;
}

static fv_status print_json(const struct bench *b)
{
    json_t *rows = json_array();

    for (int64_t r = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        json_t *object = json_object();
        app_put(object, "what", json_string(row->what));
        app_put(object, "shape", json_string(row->shape));
        app_put(object, "backend", json_string(fv_ctx_backend(b->app->ctx)));
        app_put(object, "seconds", app_number(row->seconds));
        app_put(object, "gflops", app_number(1e-9 * row->work.flops / row->seconds));
        app_put(object, "gbytes", app_number(1e-9 * (row->work.read + row->work.written) / row->seconds));
        app_put(object, "of_peak", app_number(row->of_peak));
        app_put(object, "bound", json_string(row->bound));
        app_put(object, "runs", json_integer(row->runs));
        if (row->tokens) {
            app_put(object, "tokens", json_integer(row->tokens));
            app_put(object, "score_seconds", app_number(row->score_seconds));
            app_put(object, "select_seconds", app_number(row->select_seconds));
            app_put(object, "attend_seconds", app_number(row->attend_seconds));
            app_put(object, "density", app_number(row->density));
            if (!isnan(row->slope)) app_put(object, "slope", app_number(row->slope));
        }
        if (row->dense_seconds > 0) {
            app_put(object, "dense_seconds", app_number(row->dense_seconds));
            app_put(object, "dense_extrapolated", json_boolean(row->dense_reckoned));
            app_put(object, "beats_dense_from", app_number(row->beats_from)); /* null: never in this range */
        }
        if (row->tile_bound > 0 && row->dense_seconds > 0) {
            app_put(object, "flop_bound", app_number(1 / row->density));
            app_put(object, "tile_bound", app_number(row->tile_bound));
            app_put(object, "of_tile_bound", app_number(of_tile_bound(row)));
        }
        app_append(rows, object);
    }
    bench_kinetics_json(b, rows);
    return app_json_print(rows);
}

enum { COLUMNS = 7, ALL_COLUMNS = 12 }; /* the last ones are of mechanisms by name */

static void mechanism_cells(app_table *table, const bench_row *row)
{
    if (row->tokens == 0) {
        for (int i = COLUMNS; i < ALL_COLUMNS; i++)
            app_table_cell(table, "-");
        return;
    }
    app_table_cell(table, "%.4g", 1e3 * row->score_seconds);
    app_table_cell(table, "%.4g", 1e3 * row->select_seconds);
    app_table_cell(table, "%.4g", 1e3 * row->attend_seconds);
    app_table_cell(table, "%.3f", row->density);
    if (row->dense_seconds > 0)
        app_table_cell(table, "%s%.2f", row->dense_reckoned ? "~" : "", row->seconds / row->dense_seconds);
    else
        app_table_cell(table, "-");
}

/* The sentence behind the table about a mechanism whose last row this is. */
static void mechanism_words(const struct bench *b, const bench_row *row, fv_text *words)
{
    fv_text_printf(words, "%s ", row->what);
    bench_crossing(b, row, words);
    if (!isnan(row->slope)) fv_text_printf(words, "; its time grows as length^%.2f", row->slope);
    if (row->tile_bound > 0)
        fv_text_printf(words,
                       "; %.2f times as fast at the last, at most %.2f by its pairs and %.2f by its tiles: %.0f %%",
                       row->dense_seconds / row->seconds, 1 / row->density, row->tile_bound, 100 * of_tile_bound(row));
    fv_text_printf(words, "\n");
}

static fv_status print_table(const struct bench *b)
{
    static const bool left[ALL_COLUMNS] = {true, true, false, false, false, false, true};
    static const char *const heading[ALL_COLUMNS] = {"WHAT",  "SHAPE", "MS",     "GFLOP/S", "GB/S",    "OF PEAK",
                                                     "BOUND", "SCORE", "SELECT", "ATTEND",  "DENSITY", "OF DENSE"};
    app_table table = {.columns = COLUMNS, .left = left};
    fv_text words = {0};
    bool reckoned = false;

    if (b->count == 0) return bench_kinetics_table(b);
    for (int64_t r = 0; r < b->count; r++)
        if (b->rows[r].tokens) table.columns = ALL_COLUMNS;
    for (int i = 0; i < table.columns; i++)
        app_table_cell(&table, "%s", heading[i]);
    for (int64_t r = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        app_table_cell(&table, "%s", row->what);
        app_table_cell(&table, "%s", row->shape);
        app_table_cell(&table, "%.4g", 1e3 * row->seconds);
        app_table_cell(&table, "%.1f", 1e-9 * row->work.flops / row->seconds);
        app_table_cell(&table, "%.1f", 1e-9 * (row->work.read + row->work.written) / row->seconds);
        app_table_cell(&table, "%.0f %%", 100 * row->of_peak);
        app_table_cell(&table, "%s", row->bound);
        if (table.columns == ALL_COLUMNS) mechanism_cells(&table, row);
        if (bench_is_last(b, r)) mechanism_words(b, row, &words);
        reckoned |= row->dense_reckoned;
    }
    if (reckoned) fv_text_printf(&words, "~ beside dense attention's time from a shorter length, by the square\n");
    printf("%s, %s, %d threads\n", b->app->ctx->cpu.model, fv_ctx_backend(b->app->ctx), fv_ctx_threads(b->app->ctx));
    fv_status status = app_table_print(&table, stdout);
    if (status == FV_OK) status = fv_text_status(&words);
    if (status == FV_OK) fputs(fv_text_get(&words), stdout);
    fv_text_free(&words);
    return status == FV_OK && b->costs > 0 ? bench_kinetics_table(b) : status;
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    struct bench b = {.app = app,
                      .model = values->model,
                      .sizes = values->sizes,
                      .f32 = values->precision != ONLY_BF16,
                      .bf16 = values->precision != ONLY_F32,
                      .least = values->seconds,
                      .dense_most = values->dense_seconds};
    fv_status status;

    if (values->simulate && values->report)
        return fv_fail(FV_E_USAGE, "--report: --simulate measures nothing that a page could show");
    if (values->simulate) return bench_simulate(app, &values->q_tile, &values->kv_tile);
    if (values->q_tile.count + values->kv_tile.count > 0)
        return fv_fail(FV_E_USAGE, "--q-tile and --kv-tile need --simulate: what is measured has tiles of its own");
    FV_TRY(check_words(app->common, values));
    status = bench_kinetics(&b);
    if (status == FV_OK) status = app_begin(app, FV_PRECISION_AUTO);
    if (status == FV_OK) status = bench_rows(&b);
    app_progress_end();
    if (status == FV_OK) status = app->common->json ? print_json(&b) : print_table(&b);
    if (status == FV_OK && values->report) status = bench_report(&b, values->report);
    fv_free(b.rows);
    fv_free(b.cost);
    return status;
}

const cli_verb verb_bench = {
    .name = "bench",
    .summary = "speed of this machine, beside its own peaks",
    .operands = "[attend|decode|scan|gemm|model|all|kinetics_cost|SPEC]...",
    .operands_max = 64,
    .about =
        "Measures kinds of work, or mechanisms by name ('all' is every one) over several lengths beside dense "
        "attention "
        "of the same shape; in the same run also what the machine can do at best: multiply-adds, dot products, reading "
        "and copying memory far beyond the caches. Without names: attend, decode, scan, gemm, and model with -m.\n"
        "A time is the median of at least five runs (three if they take longer than two seconds) over at least "
        "--seconds, after one to warm up. OF PEAK is the least time the peaks allow over the time; BOUND is the peak "
        "that sets it, memory only where the data exceed the caches.\n"
        "gna without --sizes: windows on two grids with several strides, beside the bound that the tiles of this "
        "machine's kernels set. --simulate measures nothing: that bound for tiles of any shape, of the published "
        "grids (gna) or of any other (gna:grid=..,window=..,stride=..), as in arXiv 2504.16922.\n"
        "kinetics_cost:params=P,layers=L,heads=H,kv_heads=G,dim=D,in=N,out=N,... measures nothing: it reckons what a "
        "test-time run costs in 1e12 flops when bytes of keys and values count, each as 'intensity' flops (arXiv "
        "2506.05333); in the report, over lengths and budgets for six models, and what the same cost buys.",
    .example = "  fovea bench attend decode --sizes 1024,4096\n  fovea bench moba:block=128 --sizes 4096 --json\n"
               "  fovea bench gna:grid=30x48x80,window=18x24x24,stride=16x8x8 --simulate --q-tile 2x8x8\n"
               "  fovea bench model -m model.gguf --sizes 512\n  fovea bench all --report bench.html\n"
               "  fovea bench kinetics_cost:out=16384,budget=1024 --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
