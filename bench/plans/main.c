/* fovea-plans: what a plan's visible pairs and a logit's terms cost, beside attention to everything, each time taken
 * right after one of its own dense call.  Not installed. */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/app.h"
#include "app/noise.h"
#include "base/context.h"
#include "base/random.h"

enum { LEAST_TURNS = 5, MOST_TURNS = 200, BLOCK = 64 };

static const char help[] =
    "fovea-plans: time of attention under plans and with terms, as a share of dense's\n\n"
    "usage: fovea-plans [--tokens N] [--dim D] [--heads H] [--bf16] [--filter TEXT] [--seconds S]\n"
    "                   [--threads N] [--json]\n\n"
    "  --tokens N      queries and keys, a multiple of 64 (default 4096)\n"
    "  --dim D         of a head (default 64)\n"
    "  --heads H       default 8\n"
    "  --bf16          keys and values in bf16, products too (otherwise f32)\n"
    "  --filter TEXT   only plans and terms whose name contains TEXT\n"
    "  --seconds S     least time for each row (default 0.5)\n"
    "  --threads N     0: as many as the process may use (default 0)\n"
    "  --json          rows as JSON on standard output\n\n"
    "OF DENSE is the median of the ratios; SHARE is the visible pairs of all. Both should differ by\n"
    "little: by 5 points for windows, grids and blocks, by a tenth for the terms of a logit.\n";

struct bench {
    int64_t tokens, dim, heads, threads;
    bool bf16, json;
    const char *filter;
    double seconds;
    fv_ctx *ctx;
    fv_attend_args dense;
    fv_random random;
    app_table table;
    json_t *rows;
};

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* A row of the table: the call beside dense, turn and turn about. */
static fv_status measure(struct bench *b, const char *name, const fv_attend_args *args)
{
    double ratio[MOST_TURNS], seconds[MOST_TURNS], began = app_seconds(), share = 1;
    int turns = -1; /* the first one warms up */
    int64_t pairs;
    json_t *row;

    if (b->filter && !strstr(name, b->filter)) return FV_OK;
    if (args->plan) {
        FV_TRY(fv_plan_pairs(b->ctx, args->plan, 1, b->heads, b->tokens, b->tokens, &pairs));
        share = (double)pairs / ((double)b->heads * (double)b->tokens * (double)b->tokens);
    }
    for (; turns < LEAST_TURNS || (turns < MOST_TURNS && app_seconds() - began < b->seconds); turns++) {
        double start = app_seconds(), middle, end;
        FV_TRY(fv_attend(b->ctx, &b->dense));
        middle = app_seconds();
        FV_TRY(fv_attend(b->ctx, args));
        end = app_seconds();
        if (turns < 0) continue;
        ratio[turns] = (end - middle) / (middle - start);
        seconds[turns] = end - middle;
    }
    qsort(ratio, (size_t)turns, sizeof *ratio, by_size);
    qsort(seconds, (size_t)turns, sizeof *seconds, by_size);
    app_table_cell(&b->table, "%s", name);
    app_table_cell(&b->table, "%.1f %%", 100 * share);
    app_table_cell(&b->table, "%.3f", 1e3 * seconds[turns / 2]);
    app_table_cell(&b->table, "%.1f %%", 100 * ratio[turns / 2]);
    row = json_object();
    app_put(row, "name", json_string(name));
    app_put(row, "share", app_number(share));
    app_put(row, "seconds", app_number(seconds[turns / 2]));
    app_put(row, "of_dense", app_number(ratio[turns / 2]));
    app_put(row, "turns", json_integer(turns));
    app_append(b->rows, row);
    return FV_OK;
}

static fv_status measure_plan(struct bench *b, const char *name, const fv_plan *plan)
{
    fv_attend_args args = b->dense;

    args.plan = plan;
    return measure(b, name, &args);
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

static fv_status make_lists(struct bench *b, int64_t key_block, double density, bool bits, fv_plan *plan)
{
    *plan = (fv_plan){0};
    return app_random_lists(b->ctx, &b->random,
                            &(app_lists){.queries = b->tokens,
                                         .keys = b->tokens,
                                         .key_block = key_block,
                                         .density = density,
                                         .first = bits,
                                         .tiles = bits},
                            &plan->lists);
}

/* Window w of n positions that a causal query sees on average `density` of. */
static int64_t window_of(int64_t n, double density)
{
    double share = 1 - sqrt(fmax(0, 1 - 2 * density));

    return (int64_t)fmax(1, round(share * (double)n));
}

static fv_status measure_density(struct bench *b, double density)
{
    int64_t rows = (int64_t)sqrt((double)b->tokens);
    char name[64];
    fv_plan plan = {.causal = true};

    while (b->tokens % rows != 0)
        rows--;
    int64_t dims[2] = {rows, b->tokens / rows}, window[2];
    plan.window.window = window_of(b->tokens, density);
    snprintf(name, sizeof name, "window of %lld, causal", (long long)plan.window.window);
    FV_TRY(measure_plan(b, name, &plan));
    for (int a = 0; a < 2; a++)
        window[a] = fv_clamp((int64_t)round(sqrt(density) * (double)dims[a]), 1, dims[a]);
    for (int strided = 0; strided < 2; strided++) {
        plan = (fv_plan){.grid = {.rank = 2, .dilation = {1, 1}}};
        for (int a = 0; a < 2; a++) {
            plan.grid.dims[a] = dims[a];
            plan.grid.window[a] = window[a];
            plan.grid.stride[a] = strided ? fv_max(window[a] / 2, 1) : 1;
        }
        snprintf(name, sizeof name, "grid %lldx%lld, window %lldx%lld, stride %lld", (long long)dims[0],
                 (long long)dims[1], (long long)window[0], (long long)window[1], (long long)plan.grid.stride[0]);
        FV_TRY(measure_plan(b, name, &plan));
    }
    for (int64_t block = BLOCK; block > 0; block = block == BLOCK ? 1 : 0) {
        FV_TRY(make_lists(b, block, density, false, &plan));
        snprintf(name, sizeof name, "random %s", block > 1 ? "blocks of 64 x 64" : "keys for 64 queries");
        FV_TRY(measure_plan(b, name, &plan));
    }
    return FV_OK;
}

/* ---- terms ------------------------------------------------------------------------------------------------------- */

static fv_status noise(struct bench *b, fv_dtype dtype, int rank, const int64_t *dims, fv_tensor *t)
{
    FV_TRY(fv_tensor_new(b->ctx, t, dtype, rank, dims));
    app_noise(t, 1);
    return FV_OK;
}

static fv_status measure_terms(struct bench *b)
{
    int64_t N = b->tokens;
    fv_attend_args args = b->dense;
    fv_plan plan;

    args.logits.softcap = 50;
    FV_TRY(measure(b, "soft-cap", &args));
    args = b->dense;
    FV_TRY(noise(b, FV_F32, FV_DIMS(b->heads, 2 * N), &args.logits.offset_bias));
    FV_TRY(measure(b, "bias by offset", &args));
    args = b->dense;
    FV_TRY(noise(b, FV_F32, FV_DIMS(1, 1, N, N), &args.logits.bias));
    FV_TRY(measure(b, "bias of all heads", &args));
    FV_TRY(noise(b, FV_F32, FV_DIMS(1, b->heads, N, N), &args.logits.bias));
    FV_TRY(measure(b, "bias of each head", &args));
    args = b->dense;
    FV_TRY(noise(b, FV_F32, FV_DIMS(b->heads), &args.sinks));
    FV_TRY(measure(b, "sinks", &args));
    FV_TRY(make_lists(b, BLOCK, 1, true, &plan));
    FV_TRY(measure_plan(b, "bit tiles everywhere", &plan));
    if (json_array_size(b->rows) == 0)
        return fv_fail(FV_E_USAGE, "no plan or term has a name that contains '%s'", b->filter);
    return FV_OK;
}

/* ------------------------------------------------------------------------------------------------------------------ */

static fv_status run(struct bench *b)
{
    static const double densities[] = {0.5, 0.2, 0.1, 0.05, 0.02};
    static const bool left[] = {true, false, false, false};
    static const char *const heads[] = {"PLAN OR TERM", "SHARE", "MS", "OF DENSE"};
    fv_dtype dtype = b->bf16 ? FV_BF16 : FV_F32;
    fv_attend_args *d = &b->dense;
    fv_mark mark;

    FV_TRY(fv_ctx_new(&(fv_ctx_options){.threads = (int)b->threads}, &b->ctx));
    b->table = (app_table){.columns = 4, .left = left};
    for (int n = 0; n < 4; n++)
        app_table_cell(&b->table, "%s", heads[n]);
    FV_TRY(noise(b, FV_F32, FV_DIMS(1, b->heads, b->tokens, b->dim), &d->q));
    FV_TRY(noise(b, dtype, FV_DIMS(1, b->heads, b->tokens, b->dim), &d->k));
    FV_TRY(noise(b, dtype, FV_DIMS(1, b->heads, b->tokens, b->dim), &d->v));
    FV_TRY(fv_tensor_new(b->ctx, &d->o, FV_F32, FV_DIMS(1, b->heads, b->tokens, b->dim)));
    mark = fv_scratch_mark(b->ctx);
    for (size_t n = 0; n < sizeof densities / sizeof *densities; n++) {
        FV_TRY(measure_density(b, densities[n]));
        fv_scratch_release(b->ctx, mark);
    }
    FV_TRY(measure_terms(b));
    return b->json ? app_json_print(json_incref(b->rows)) : app_table_print(&b->table, stdout);
}

static int wrong(const char *sentence, const char *word)
{
    fprintf(stderr, "fovea-plans: %s '%s' (--help)\n", sentence, word);
    return 2;
}

/* -1: go on; otherwise the exit status. */
static int parse(int count, char **words, struct bench *b)
{
    static const struct option names[] = {
        {"tokens", required_argument, NULL, 'n'},  {"dim", required_argument, NULL, 'd'},
        {"heads", required_argument, NULL, 'e'},   {"threads", required_argument, NULL, 't'},
        {"seconds", required_argument, NULL, 's'}, {"filter", required_argument, NULL, 'f'},
        {"bf16", no_argument, NULL, 'b'},          {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    int letter;

    opterr = 0;
    while ((letter = getopt_long(count, words, "h", names, NULL)) != -1) {
        int64_t *number = letter == 'n'   ? &b->tokens
                          : letter == 'd' ? &b->dim
                          : letter == 'e' ? &b->heads
                          : letter == 't' ? &b->threads
                                          : NULL;
        char *end = "";
        if (letter == 'h') {
            fputs(help, stdout);
            return 0;
        }
        if (letter == '?') return wrong("unknown option, or one without its value:", words[optind - 1]);
        if (letter == 'b') b->bf16 = true;
        if (letter == 'j') b->json = true;
        if (letter == 'f') b->filter = optarg;
        if (letter == 's') b->seconds = strtod(optarg, &end);
        if (number) *number = strtoll(optarg, &end, 10);
        if (*end || (number && (*number < (letter == 't' ? 0 : 1) || *number > 65536)) || !(b->seconds >= 0))
            return wrong("expected a number within reason, got", optarg);
    }
    if (optind < count) return wrong("unexpected word", words[optind]);
    if (b->tokens % BLOCK != 0) return wrong("--tokens: expected", "a multiple of 64");
    return -1;
}

int main(int count, char **words)
{
    struct bench b = {.tokens = 4096, .dim = 64, .heads = 8, .seconds = 0.5};
    int stop = parse(count, words, &b);
    fv_status status;

    if (stop >= 0) return stop;
    b.random = fv_random_new(1, 1);
    b.rows = json_array();
    status = run(&b);
    if (status != FV_OK) fprintf(stderr, "fovea-plans: %s\n", fv_error());
    app_table_free(&b.table);
    json_decref(b.rows);
    fv_ctx_free(b.ctx);
    return status == FV_OK ? 0 : 1;
}
