/* Rows of mechanisms by name: time over lengths, beside dense attention of the same shape in the same run. */
#include <math.h>
#include <string.h>

#include "app/bench.h"
#include "app/examples.h"

/* ---- one length ------------------------------------------------------------------------------------------------ */

struct call {
    fv_attention *attention;
    fv_tensor q, k, v, o;
    fv_attention_args args;
    bench_row *row;           /* receives what is computed, which the first call finds; it is not timed */
    bool measured;            /* that was done */
    double before[FV_PHASES]; /* what the context had spent then */
};

static fv_status run_call(fv_ctx *ctx, void *user)
{
    struct call *call = user;
    fv_work work;

    if (call->measured) return fv_attention_forward(ctx, call->attention, &call->args);
    FV_TRY(fv_attention_measured(ctx, call->attention, &call->args, &work));
    call->row->work.flops = work.flops;
    call->row->work.read = work.bytes;
    call->row->density = work.density;
    memcpy(call->before, ctx->spent, sizeof call->before);
    call->measured = true;
    return FV_OK;
}

/* Phases of all timed calls, as shares of the row's time. */
static void share_out(const fv_ctx *ctx, const struct call *call, bench_row *row)
{
    double spent[FV_PHASES], all = 0;

    for (int phase = 0; phase < FV_PHASES; phase++)
        all += spent[phase] = ctx->spent[phase] - call->before[phase];
    row->score_seconds = row->seconds * spent[FV_PHASE_SCORE] / fmax(all, 1e-12);
    row->select_seconds = row->seconds * spent[FV_PHASE_SELECT] / fmax(all, 1e-12);
    row->attend_seconds = row->seconds - row->score_seconds - row->select_seconds;
}

static fv_status measure(struct bench *b, const char *what, const char *spec, int64_t n, bool causal)
{
    const int64_t dims[] = {1, BENCH_HEADS, n, BENCH_DIM};
    const char *grid = strstr(spec, "grid=");
    bench_row row =
        bench_named(what, "%d heads, %lld x %lld, D=%d%s%s%.*s", BENCH_HEADS, (long long)n, (long long)n, BENCH_DIM,
                    causal ? ", causal" : "", grid ? ", " : "", grid ? (int)strcspn(grid, ",") : 0, grid ? grid : "");
    fv_ctx *ctx = b->app->ctx;
    fv_mark mark = fv_scratch_mark(ctx);
    struct call call = {0};
    fv_status status;

    FV_TRY(fv_attention_new(spec, &call.attention));
    FV_TRY_DONE(bench_noise(b, &call.q, FV_F32, 4, dims));
    FV_TRY_DONE(bench_noise(b, &call.k, FV_F32, 4, dims));
    FV_TRY_DONE(bench_noise(b, &call.v, FV_F32, 4, dims));
    FV_TRY_DONE(fv_tensor_new(ctx, &call.o, FV_F32, 4, dims));
    example_topics(&call.q, &call.k, (uint64_t)b->app->common->seed);
    call.args = (fv_attention_args){.q = call.q, .k = call.k, .v = call.v, .o = call.o, .causal = causal};
    row.work.unit = b->f32 ? APP_FMA : APP_DOT_BF16;
    row.tokens = n;
    row.beats_from = row.slope = NAN;
    call.row = &row;
    status = bench_measure(b, &row, b->f32 ? FV_PRECISION_F32 : FV_PRECISION_BF16, run_call, &call);
    if (status == FV_OK) share_out(ctx, &call, &b->rows[b->count - 1]);
    if (status == FV_OK) status = bench_tile_bound(ctx, call.attention, &call.args, &b->rows[b->count - 1].tile_bound);
done:
    fv_attention_free(call.attention);
    fv_scratch_release(ctx, mark);
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

/* The least seconds that the machine's peak allows for dense attention. */
static double least_seconds(const struct bench *b, int64_t n, bool causal)
{
    double flops = 4.0 * BENCH_HEADS * BENCH_DIM * (double)n * (double)n / (causal ? 2 : 1);
    double rate = b->peaks.rate[b->f32 ? APP_FMA : APP_DOT_BF16];

    return flops / (rate > 0 ? rate : b->peaks.rate[APP_FMA]);
}

/* Dense attention's time: of a row that is there or is added now, or four times that of half the length. */
static fv_status dense_time(struct bench *b, int64_t n, bool causal, double *seconds, bool *reckoned)
{
    const bench_row *row = dense_row(b, n, causal);

    *reckoned = !row && n > 1 && least_seconds(b, n, causal) > b->dense_most;
    if (*reckoned) {
        bool also;
        double ratio = (double)n / (double)(n / 2);
        FV_TRY(dense_time(b, n / 2, causal, seconds, &also));
        *seconds *= ratio * ratio;
        return FV_OK;
    }
    if (!row) {
        FV_TRY(measure(b, "dense", "dense", n, causal));
        row = &b->rows[b->count - 1];
    }
    *seconds = row->seconds;
    return FV_OK;
}

/* The exponent e of seconds ~ tokens^e that fits best on the logarithms; NAN of one length. */
static double slope(const bench_row *rows, int count)
{
    double x = 0, y = 0, xx = 0, xy = 0, n = count;

    for (int i = 0; i < count; i++) {
        double length = log((double)rows[i].tokens), time = log(rows[i].seconds);
        x += length, y += time;
        xx += length * length, xy += length * time;
    }
    double spread = n * xx - x * x;
    return spread > 1e-9 ? (n * xy - x * y) / spread : NAN;
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

struct length {
    int64_t tokens;
    fv_text spec;
    bool causal, reckoned;
    double dense; /* seconds */
};

/* Dense rows first, so that those of the mechanism are neighbours. */
static fv_status sweep(struct bench *b, const char *given, struct length *lengths, int count)
{
    for (int i = 0; i < count; i++) {
        struct length *l = &lengths[i];
        FV_TRY(example_spec(given, BENCH_HEADS, l->tokens, BENCH_DIM, &l->spec, &l->causal));
        FV_TRY(dense_time(b, l->tokens, l->causal, &l->dense, &l->reckoned));
    }
    for (int i = 0; i < count; i++) {
        const struct length *l = &lengths[i];
        FV_TRY(measure(b, given, fv_text_get(&l->spec), l->tokens, l->causal));
        b->rows[b->count - 1].dense_seconds = l->dense;
        b->rows[b->count - 1].dense_reckoned = l->reckoned;
    }
    bench_row *rows = b->rows + b->count - count;
    double from = crossing(rows, count);
    for (int i = 0; i < count; i++)
        rows[i].beats_from = from;
    rows[count - 1].slope = slope(rows, count);
    return FV_OK;
}

static fv_status dense_alone(struct bench *b, const struct length *lengths, int count)
{
    for (int i = 0; i < count; i++)
        if (!dense_row(b, lengths[i].tokens, true)) FV_TRY(measure(b, "dense", "dense", lengths[i].tokens, true));
    return FV_OK;
}

static int ascending(const void *a, const void *b)
{
    const struct length *x = a, *y = b;

    return (x->tokens > y->tokens) - (x->tokens < y->tokens);
}

fv_status bench_sweep(struct bench *b, const char *given)
{
    static const int64_t initial[] = {512, 1024, 2048, 4096, 8192};
    int64_t own = example_cells(given); /* a grid that is given has its own length */
    cli_ints sizes = own > 0 ? bench_sizes(b, 1, &own) : bench_sizes(b, 5, initial);
    bool dense = strcmp(given, "dense") == 0;
    struct length lengths[64] = {0};
    int count = (int)fv_min(sizes.count, 64);
    fv_status status;

    if (bench_counts(b, dense || b->planned == 0 ? 2 * count : count)) return FV_OK; /* dense, about once */
    for (int i = 0; i < count; i++)
        lengths[i].tokens = sizes.items[i];
    qsort(lengths, (size_t)count, sizeof *lengths, ascending);
    status = dense ? dense_alone(b, lengths, count) : sweep(b, given, lengths, count);
    for (int i = 0; i < count; i++)
        fv_text_free(&lengths[i].spec);
    return status;
}
