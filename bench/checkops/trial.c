#include "checkops.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

bool checkops_wanted(struct checkops *c, trial *t, const char *op, const char *format, ...)
{
    char whole[sizeof t->shape + 32];
    va_list arguments;

    *t = (trial){.op = op, .mark = fv_scratch_mark(c->reference)};
    va_start(arguments, format);
    vsnprintf(t->shape, sizeof t->shape, format, arguments);
    va_end(arguments);
    snprintf(whole, sizeof whole, "%s %s", op, t->shape);
    return c->status == FV_OK && (!c->filter || strstr(whole, c->filter));
}

fv_tensor checkops_empty(struct checkops *c, fv_dtype dtype, int rank, const int64_t *dims)
{
    fv_tensor t = {0};

    if (c->status == FV_OK) c->status = fv_tensor_new(c->reference, &t, dtype, rank, dims);
    return t;
}

fv_tensor checkops_noise(struct checkops *c, fv_dtype dtype, double scale, double shift, int rank, const int64_t *dims)
{
    fv_tensor t = checkops_empty(c, dtype, rank, dims);

    if (c->status != FV_OK) return t;
    app_noise(&t, c->seed + 0x10001 * ++c->stream);
    if (scale == 1 && shift == 0) return t;
    for (int64_t i = 0; i < fv_tensor_count(&t); i++)
        ((float *)t.data)[i] = (float)(scale * ((float *)t.data)[i] + shift);
    return t;
}

fv_tensor checkops_output(trial *t, const char *name, fv_tensor tensor, double tolerance)
{
    t->output[t->outputs++] = (output){.name = name, .tensor = tensor, .tolerance = tolerance};
    return tensor;
}

double checkops_bytes(const fv_tensor *t)
{
    size_t bytes = 0;

    if (fv_present(t) && fv_dtype_bytes(t->dtype, fv_tensor_count(t), &bytes) != FV_OK) bytes = 0;
    return (double)bytes;
}

/* ---- one call -------------------------------------------------------------------------------------------------- */

/* What a call must overwrite: not a number, or an index that is none.  What it adds to: zeros. */
static void clear_outputs(const trial *t)
{
    for (int n = 0; n < t->outputs; n++)
        memset(t->output[n].tensor.data, t->output[n].added ? 0 : 0xff, (size_t)checkops_bytes(&t->output[n].tensor));
}

static fv_status call(fv_ctx *ctx, const trial *t)
{
    fv_precision before = ctx->precision;
    fv_status status;

    ctx->precision = t->precision;
    status = t->call(ctx, t->args);
    ctx->precision = before;
    return status;
}

static fv_status call_again(fv_ctx *ctx, void *user)
{
    return call(ctx, user);
}

struct verdict {
    bool failed;
    double error, tolerance; /* the largest error as a share of its tolerance decides which pair this is */
    char words[256];
};

static void compare(const output *got, const void *expected, struct verdict *verdict)
{
    const fv_tensor *tensor = &got->tensor;
    double largest = 0;

    for (int64_t i = 0; i < fv_tensor_count(tensor); i++) {
        double value = fabs(fv_load(tensor->dtype, expected, i));
        if (isfinite(value)) largest = fmax(largest, value);
    }
    for (int64_t i = 0; i < fv_tensor_count(tensor); i++) {
        double want = fv_load(tensor->dtype, expected, i), value = fv_load(tensor->dtype, tensor->data, i);
        double size = got->of == OF_ONE ? 1 : got->of == OF_EACH ? fabs(want) : largest;
        double bound = got->tolerance * size, error = fabs(value - want);
        bool same = isfinite(want) ? error <= bound : value == want;
        if (same && bound > 0 && error / bound > verdict->error / verdict->tolerance)
            verdict->error = error, verdict->tolerance = bound;
        if (same || verdict->failed) continue;
        *verdict = (struct verdict){.failed = true, .error = error, .tolerance = bound};
        snprintf(verdict->words, sizeof verdict->words,
                 "%s of shape %s, element %lld: expected %.9g, got %.9g (tolerance %.3g)", got->name,
                 fv_shape_text(tensor), (long long)i, want, value, bound);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

static void add_row(struct checkops *c, const trial *t, const char *isa, const struct verdict *verdict,
                    const app_timing *timing)
{
    const char *bound = "";
    double seconds = timing->seconds, least = app_floor(&c->peaks, &t->work, &bound);
    double gflops = 1e-9 * t->work.flops / seconds, gbytes = 1e-9 * (t->work.read + t->work.written) / seconds;
    json_t *row = json_object();

    app_put(row, "op", json_string(t->op));
    app_put(row, "shape", json_string(t->shape));
    app_put(row, "isa", json_string(isa));
    app_put(row, "ok", json_boolean(!verdict->failed));
    app_put(row, "error", app_number(verdict->error));
    app_put(row, "tolerance", app_number(verdict->tolerance));
    if (timing->runs > 0) {
        app_put(row, "seconds", app_number(seconds));
        app_put(row, "cycles", app_number(timing->cycles));
        app_put(row, "runs", json_integer(timing->runs));
        app_put(row, "gflops", app_number(gflops));
        app_put(row, "gbytes", app_number(gbytes));
        app_put(row, "of_peak", app_number(least / seconds));
        app_put(row, "bound", json_string(bound));
    }
    app_append(c->rows, row);
    if (timing->runs == 0) return;
    app_table_cell(&c->table, "%s", t->op);
    app_table_cell(&c->table, "%s", t->shape);
    app_table_cell(&c->table, "%s", isa);
    app_table_cell(&c->table, "%.4g", timing->cycles);
    app_table_cell(&c->table, "%.4g", 1e3 * seconds);
    app_table_cell(&c->table, "%.1f", gflops);
    app_table_cell(&c->table, "%.1f", gbytes);
    app_table_cell(&c->table, "%.0f %%", 100 * least / seconds);
    app_table_cell(&c->table, "%s", bound);
}

static fv_status try_on(struct checkops *c, const trial *t, int isa, void *const *expected)
{
    fv_ctx *ctx = c->contexts[isa];
    struct verdict verdict = {.tolerance = 1};
    app_timing timing = {0};

    clear_outputs(t);
    fv_status status = call(ctx, t);
    if (status == FV_E_INTERRUPTED || status == FV_E_MEMORY) return status;
    if (status != FV_OK) {
        verdict.failed = true;
        snprintf(verdict.words, sizeof verdict.words, "%s: %.200s", fv_status_name(status), fv_error());
    }
    for (int n = 0; status == FV_OK && n < t->outputs; n++)
        compare(&t->output[n], expected[n], &verdict);
    c->trials++;
    if (verdict.failed) {
        c->failures++;
        fprintf(stderr, "not ok: %s, %s, %s: %s\n", t->op, t->shape, fv_isa_name((fv_isa)isa), verdict.words);
    } else if (!c->small) {
        FV_TRY(app_time(ctx, 0.1, call_again, (void *)(uintptr_t)t, &timing));
    }
    add_row(c, t, fv_isa_name((fv_isa)isa), &verdict, &timing);
    return FV_OK;
}

fv_status checkops_try(struct checkops *c, trial *t)
{
    void *expected[TRIAL_OUTPUTS];

    FV_TRY(c->status);
    if (!c->small && isatty(STDERR_FILENO)) fprintf(stderr, "\r%lld: %.70s\033[K", (long long)c->trials, t->shape);
    clear_outputs(t);
    FV_TRY(call(c->reference, t));
    for (int n = 0; n < t->outputs; n++) {
        size_t bytes = (size_t)checkops_bytes(&t->output[n].tensor);
        char *copy;
        FV_TRY(FV_SCRATCH(c->reference, copy, (int64_t)bytes));
        memcpy(copy, t->output[n].tensor.data, bytes);
        expected[n] = copy;
    }
    for (int isa = 0; isa < FV_ISA_COUNT; isa++)
        if (c->contexts[isa]) FV_TRY(try_on(c, t, isa, expected));
    fv_scratch_release(c->reference, t->mark);
    return FV_OK;
}
