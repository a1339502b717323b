/* Rows of mechanisms by name: time over lengths, beside dense attention of the same shape in the same run. */
#include <math.h>
#include <string.h>

#include "app/bench.h"
#include "attention/mechanism.h"

enum { HEADS = 8, DIM = 64 };

/* ---- what a mechanism needs ------------------------------------------------------------------------------------ */

static const fv_option *option_of(const fv_mechanism *mechanism, const char *name)
{
    for (const fv_option *o = mechanism->options; o && o->name; o++)
        if (strcmp(o->name, name) == 0) return o;
    return NULL;
}

static fv_status mechanism_of(const char *spec, const fv_mechanism **mechanism)
{
    size_t length = strcspn(spec, ":");
    char name[64];

    snprintf(name, sizeof name, "%.*s", (int)fv_min((int64_t)length, 63), spec);
    return fv_mechanism_named(name, mechanism);
}

/* Adds an option unless it was given. */
static void complete(fv_text *spec, const char *name, const char *format, int64_t height, int64_t width)
{
    char given[32];

    snprintf(given, sizeof given, "%s=", name);
    if (strstr(fv_text_get(spec), given)) return;
    fv_text_printf(spec, "%s%s", strchr(fv_text_get(spec), ':') ? "," : ":", given);
    fv_text_printf(spec, format, (long long)height, (long long)width);
}

fv_status bench_spec(const char *given, int64_t tokens, fv_text *spec)
{
    const fv_mechanism *mechanism;
    int64_t height = (int64_t)sqrt((double)tokens);

    FV_TRY(mechanism_of(given, &mechanism));
    fv_text_printf(spec, "%s", given);
    if (!option_of(mechanism, "grid")) return fv_text_status(spec);
    while (height > 1 && tokens % height != 0)
        height--;
    height = fv_max(height, 1);
    complete(spec, "grid", "%lldx%lld", height, tokens / height);
    const fv_option *window = option_of(mechanism, "window");
    if (window && !window->initial)
        complete(spec, "window", "%lldx%lld", fv_min(height, 13), fv_min(tokens / height, 13));
    return fv_text_status(spec);
}

/* ---- one length ------------------------------------------------------------------------------------------------ */

struct call {
    fv_attention *attention;
    fv_tensor q, k, v, o;
    fv_attention_args args;
};

static fv_status run_call(fv_ctx *ctx, void *user)
{
    struct call *call = user;

    return fv_attention_forward(ctx, call->attention, &call->args);
}

static fv_status measure(struct bench *b, const char *what, const char *spec, int64_t n, bool causal)
{
    const int64_t dims[] = {1, HEADS, n, DIM};
    const char *grid = strstr(spec, "grid=");
    bench_row row =
        bench_named(what, "%d heads, %lld x %lld, D=%d%s%s%.*s", HEADS, (long long)n, (long long)n, DIM,
                    causal ? ", causal" : "", grid ? ", " : "", grid ? (int)strcspn(grid, ",") : 0, grid ? grid : "");
    fv_mark mark = fv_scratch_mark(b->app->ctx);
    struct call call = {0};
    fv_work work;
    fv_status status;

    FV_TRY(fv_attention_new(spec, &call.attention));
    FV_TRY_DONE(bench_noise(b, &call.q, FV_F32, 4, dims));
    FV_TRY_DONE(bench_noise(b, &call.k, FV_F32, 4, dims));
    FV_TRY_DONE(bench_noise(b, &call.v, FV_F32, 4, dims));
    FV_TRY_DONE(fv_tensor_new(b->app->ctx, &call.o, FV_F32, 4, dims));
    call.args = (fv_attention_args){.q = call.q, .k = call.k, .v = call.v, .o = call.o, .causal = causal};
    FV_TRY_DONE(fv_attention_work(b->app->ctx, call.attention, &call.args, &work));
    row.work = (app_work){.flops = work.flops, .read = work.bytes, .unit = b->f32 ? APP_FMA : APP_DOT_BF16};
    row.tokens = n;
    row.beats_from = NAN;
    status = bench_measure(b, &row, b->f32 ? FV_PRECISION_F32 : FV_PRECISION_BF16, run_call, &call);
done:
    fv_attention_free(call.attention);
    fv_scratch_release(b->app->ctx, mark);
    return status;
}

/* ---- beside dense ---------------------------------------------------------------------------------------------- */

static const bench_row *dense_row(const struct bench *b, int64_t n, bool causal)
{
    for (int64_t r = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        if (row->tokens == n && strcmp(row->what, "dense") == 0 && !strstr(row->shape, "causal") == !causal) return row;
    }
    return NULL;
}

/* Where the mechanism becomes faster than dense and stays so in what was measured: between two lengths on the straight
 * line of the logarithms. */
static double crossing(const bench_row *rows, int count)
{
    int first = count;

    while (first > 0 && rows[first - 1].seconds < rows[first - 1].dense_seconds)
        first--;
    if (first == count) return NAN;
    if (first == 0) return (double)rows[0].tokens;
    const bench_row *slow = &rows[first - 1], *fast = &rows[first];
    double behind = log(slow->seconds / slow->dense_seconds), ahead = log(fast->dense_seconds / fast->seconds);
    double share = behind + ahead > 0 ? behind / (behind + ahead) : 1;
    return exp(log((double)slow->tokens) + share * log((double)fast->tokens / (double)slow->tokens));
}

/* Rows of one mechanism are neighbours; the first of those that end with `last`. */
static int64_t first_of(const struct bench *b, int64_t last)
{
    int64_t first = last;

    while (first > 0 && b->rows[first - 1].tokens > 0 && b->rows[first - 1].what == b->rows[last].what)
        first--;
    return first;
}

bool bench_is_last(const struct bench *b, int64_t r)
{
    if (b->rows[r].tokens == 0 || strcmp(b->rows[r].what, "dense") == 0) return false;
    return r + 1 == b->count || b->rows[r + 1].what != b->rows[r].what;
}

void bench_crossing(const struct bench *b, const bench_row *last, fv_text *words)
{
    const bench_row *first = &b->rows[first_of(b, last - b->rows)];

    if (isnan(last->beats_from))
        fv_text_printf(words, "never beats dense in this range (%lld to %lld tokens)", (long long)first->tokens,
                       (long long)last->tokens);
    else if (last->beats_from <= (double)first->tokens)
        fv_text_printf(words, "beats dense from %lld tokens, the fewest measured", (long long)first->tokens);
    else
        fv_text_printf(words, "beats dense from about %.0f tokens", last->beats_from);
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

    return (x > y) - (x < y);
}

fv_status bench_sweep(struct bench *b, const char *given)
{
    static const int64_t lengths[] = {512, 1024, 2048, 4096, 8192};
    cli_ints sizes = bench_sizes(b, 5, lengths);
    bool dense = strcmp(given, "dense") == 0, causal;
    const fv_mechanism *mechanism;
    int64_t sorted[64];
    int count = (int)fv_min(sizes.count, 64);

    if (bench_counts(b, dense || b->planned == 0 ? 2 * count : count)) return FV_OK; /* dense, about once */
    FV_TRY(mechanism_of(given, &mechanism));
    causal = !(mechanism->traits & FV_NEVER_CAUSAL) && !option_of(mechanism, "grid");
    memcpy(sorted, sizes.items, (size_t)count * sizeof *sorted);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    for (int i = 0; i < count; i++)
        if (!dense_row(b, sorted[i], causal)) FV_TRY(measure(b, "dense", "dense", sorted[i], causal));
    for (int i = 0; i < count && !dense; i++) {
        fv_text spec = {0};
        fv_status status = bench_spec(given, sorted[i], &spec);
        if (status == FV_OK) status = measure(b, given, fv_text_get(&spec), sorted[i], causal);
        fv_text_free(&spec);
        FV_TRY(status);
        b->rows[b->count - 1].dense_seconds = dense_row(b, sorted[i], causal)->seconds;
    }
    if (dense) return FV_OK;
    bench_row *rows = b->rows + b->count - count;
    double from = crossing(rows, count);
    for (int i = 0; i < count; i++)
        rows[i].beats_from = from;
    return FV_OK;
}
