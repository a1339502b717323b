/* fovea bench: how fast this machine does each kind of work, beside what it could do at best. */
#include <math.h>
#include <string.h>

#include "app/peaks.h"
#include "app/prompt.h"
#include "app/verbs.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "base/random.h"
#include "ops/ops.h"

struct values {
    cli_common common;
    const char *model;
    cli_ints sizes;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    {.name = "sizes",
     .kind = CLI_INTS,
     .offset = AT(sizes),
     .argument = "512,2048",
     .initial = "512,2048",
     .min = 1,
     .max = 1 << 20,
     .help = "sequence lengths, or sides of square matrices"},
    {.name = "model",
     .letter = 'm',
     .kind = CLI_FILE,
     .offset = AT(model),
     .argument = "MODEL",
     .help = "GGUF file, for 'model'"},
    CLI_END,
};

struct job {
    struct app *app;
    const struct values *values;
    app_peaks peaks;
    json_t *rows;
    app_table table;
};

/* One thing to measure. */
struct task {
    const char *what;
    char shape[96];
    double flops, bytes;
    bool by_bytes; /* bound by memory: of_peak compares bytes */
    fv_status (*work)(fv_ctx *ctx, void *user);
    void *user;
};

static void add_row(struct job *job, const struct task *task, double seconds, double of_peak)
{
    double gflops = task->flops / seconds * 1e-9, gbytes = task->bytes / seconds * 1e-9;
    json_t *row = json_object();

    app_put(row, "what", json_string(task->what));
    app_put(row, "shape", json_string(task->shape));
    app_put(row, "backend", json_string(fv_ctx_backend(job->app->ctx)));
    app_put(row, "seconds", app_number(seconds));
    app_put(row, "gflops", app_number(gflops));
    app_put(row, "gbytes", app_number(gbytes));
    app_put(row, "of_peak", app_number(of_peak));
    app_append(job->rows, row);
    app_table_cell(&job->table, "%s", task->what);
    app_table_cell(&job->table, "%s", task->shape);
    app_table_cell(&job->table, "%.3g ms", 1e3 * seconds);
    app_table_cell(&job->table, "%.1f", gflops);
    app_table_cell(&job->table, "%.1f", gbytes);
    app_table_cell(&job->table, "%.0f %%", 100 * of_peak);
}

/* The best of at least three runs within about a quarter of a second, after one to warm up. */
static fv_status measure(struct job *job, const struct task *task)
{
    double best = INFINITY, begin, of_peak;

    app_progress(job->app, task->what, 0);
    FV_TRY(task->work(job->app->ctx, task->user));
    begin = app_seconds();
    for (int run = 0; run < 3 || app_seconds() < begin + 0.25; run++) {
        double start = app_seconds();
        FV_TRY(task->work(job->app->ctx, task->user));
        best = fmin(best, app_seconds() - start);
        FV_TRY(app_check());
        if (run >= 1 && app_seconds() > begin + 10) break;
    }
    best = fmax(best, 1e-9);
    of_peak = task->by_bytes ? task->bytes / best / job->peaks.copy : task->flops / best / job->peaks.rate[APP_FMA];
    add_row(job, task, best, of_peak);
    app_progress_end();
    return FV_OK;
}

static fv_status random_tensor(app_tensor *tensor, uint64_t seed, int rank, const int64_t *dims)
{
    static uint64_t stream;
    fv_random random = fv_random_new(seed, ++stream);

    FV_TRY(app_tensor_new(tensor, FV_F32, rank, dims));
    for (int64_t i = 0; i < fv_tensor_count(&tensor->t); i++)
        ((float *)tensor->t.data)[i] = (float)(2 * fv_random_uniform(&random) - 1);
    return FV_OK;
}

/* ---- attention ------------------------------------------------------------------------------------------------- */

struct attention_task {
    fv_attention *attention;
    app_tensor q, k, v, o;
    fv_attention_args args;
};

static fv_status run_attention(fv_ctx *ctx, void *user)
{
    struct attention_task *task = user;

    return fv_attention_forward(ctx, task->attention, &task->args);
}

static void free_attention(struct attention_task *task)
{
    fv_attention_free(task->attention);
    app_tensor_free(&task->q);
    app_tensor_free(&task->k);
    app_tensor_free(&task->v);
    app_tensor_free(&task->o);
}

static fv_status bench_call(struct job *job, const char *what, const char *spec, bool causal, int64_t heads,
                            int64_t key_heads, int64_t queries, int64_t keys, int64_t dim)
{
    struct attention_task own = {0};
    struct task task = {.what = what, .by_bytes = queries == 1, .work = run_attention, .user = &own};
    uint64_t seed = (uint64_t)job->app->common->seed;
    fv_work work;
    fv_status status;

    FV_TRY(fv_attention_new(spec, &own.attention));
    FV_TRY_DONE(random_tensor(&own.q, seed, FV_DIMS(1, heads, queries, dim)));
    FV_TRY_DONE(random_tensor(&own.k, seed, FV_DIMS(1, key_heads, keys, dim)));
    FV_TRY_DONE(random_tensor(&own.v, seed, FV_DIMS(1, key_heads, keys, dim)));
    FV_TRY_DONE(app_tensor_new(&own.o, FV_F32, FV_DIMS(1, heads, queries, dim)));
    own.args = (fv_attention_args){.q = own.q.t, .k = own.k.t, .v = own.v.t, .o = own.o.t, .causal = causal};
    FV_TRY_DONE(fv_attention_work(job->app->ctx, own.attention, &own.args, &work));
    task.flops = work.flops;
    task.bytes = work.bytes;
    snprintf(task.shape, sizeof task.shape, "%lld/%lld heads, %lld x %lld, D=%lld%s", (long long)heads,
             (long long)key_heads, (long long)queries, (long long)keys, (long long)dim, causal ? ", causal" : "");
    status = measure(job, &task);
done:
    free_attention(&own);
    return status;
}

static fv_status bench_attend(struct job *job, const char *name)
{
    (void)name;
    for (int i = 0; i < job->values->sizes.count; i++) {
        int64_t n = job->values->sizes.items[i];
        FV_TRY(bench_call(job, "attend", "dense", false, 8, 8, n, n, 128));
        FV_TRY(bench_call(job, "attend", "dense", true, 8, 8, n, n, 128));
        FV_TRY(bench_call(job, "attend", "dense", true, 8, 8, n, n, 64));
    }
    return FV_OK;
}

static fv_status bench_scan(struct job *job, const char *name)
{
    (void)name;
    for (int i = 0; i < job->values->sizes.count; i++) {
        int64_t n = job->values->sizes.items[i];
        FV_TRY(bench_call(job, "scan", "lightning2", true, 8, 8, n, n, 64));
        FV_TRY(bench_call(job, "scan", "lightning2", true, 8, 8, n, n, 128));
    }
    return FV_OK;
}

static fv_status bench_decode(struct job *job, const char *name)
{
    (void)name;
    for (int i = 0; i < job->values->sizes.count; i++) {
        FV_TRY(bench_call(job, "decode", "dense", true, 32, 8, 1, job->values->sizes.items[i], 128));
        FV_TRY(bench_call(job, "decode", "dense", true, 9, 3, 1, job->values->sizes.items[i], 64));
    }
    return FV_OK;
}

static fv_status bench_name(struct job *job, const char *spec)
{
    for (int i = 0; i < job->values->sizes.count; i++) {
        int64_t n = job->values->sizes.items[i];
        fv_attention *attention;
        FV_TRY(fv_attention_new(spec, &attention));
        bool causal = !(fv_attention_mechanism(attention)->traits & FV_NEVER_CAUSAL);
        fv_attention_free(attention);
        FV_TRY(bench_call(job, spec, spec, causal, 8, 8, n, n, 64));
    }
    return FV_OK;
}

/* ---- gemm ------------------------------------------------------------------------------------------------------ */

static fv_status run_gemm(fv_ctx *ctx, void *user)
{
    return fv_gemm(ctx, user);
}

static fv_status bench_gemm(struct job *job, const char *name)
{
    uint64_t seed = (uint64_t)job->app->common->seed;
    fv_status status = FV_OK;

    (void)name;
    for (int i = 0; status == FV_OK && i < job->values->sizes.count; i++) {
        int64_t n = job->values->sizes.items[i];
        app_tensor a = {0}, b = {0}, c = {0};
        fv_gemm_args args;
        struct task task = {.what = "gemm", .work = run_gemm, .user = &args};
        FV_TRY_DONE(random_tensor(&a, seed, FV_DIMS(n, n)));
        FV_TRY_DONE(random_tensor(&b, seed, FV_DIMS(n, n)));
        FV_TRY_DONE(app_tensor_new(&c, FV_F32, FV_DIMS(n, n)));
        args = (fv_gemm_args){.a = a.t, .b = b.t, .c = c.t};
        task.flops = 2.0 * (double)n * (double)n * (double)n;
        task.bytes = 12.0 * (double)n * (double)n;
        snprintf(task.shape, sizeof task.shape, "%lld x %lld x %lld, f32", (long long)n, (long long)n, (long long)n);
        status = measure(job, &task);
    done:
        app_tensor_free(&a);
        app_tensor_free(&b);
        app_tensor_free(&c);
    }
    return status;
}

/* ---- a model --------------------------------------------------------------------------------------------------- */

struct model_task {
    fv_session *session;
    int32_t *ids;
    int64_t count;
    bool fresh; /* from an empty session; otherwise behind what is there */
    float *logits;
};

static fv_status run_model(fv_ctx *ctx, void *user)
{
    struct model_task *task = user;

    (void)ctx;
    if (task->fresh) fv_session_clear(task->session);
    return fv_session_feed(task->session, task->ids, task->count, task->logits, 1);
}

static fv_status bench_lengths(struct job *job, struct model_task *own, const fv_model_info *info)
{
    for (int i = 0; i < job->values->sizes.count; i++) {
        int64_t n = job->values->sizes.items[i];
        struct task read = {.what = "model prompt", .work = run_model, .user = own};
        struct task write = {.what = "model token", .by_bytes = true, .work = run_model, .user = own};
        fv_session_stats stats;
        own->count = n;
        own->fresh = true;
        read.flops = 2.0 * (double)info->parameters * (double)n;
        read.bytes = (double)info->weight_bytes;
        snprintf(read.shape, sizeof read.shape, "%lld tokens", (long long)n);
        FV_TRY(measure(job, &read));
        fv_session_measure(own->session, &stats);
        own->count = 1;
        own->fresh = false;
        write.flops = 2.0 * (double)info->parameters;
        write.bytes = (double)info->weight_bytes + (double)stats.cache_bytes;
        snprintf(write.shape, sizeof write.shape, "1 token behind %lld", (long long)n);
        FV_TRY(measure(job, &write));
    }
    return FV_OK;
}

static fv_status bench_model(struct job *job, const char *name)
{
    int64_t longest = 0, room = 1 << 14; /* single tokens fed while a row is measured */
    struct model_task own = {0};
    fv_model_info info;
    fv_model *model;
    fv_status status;

    (void)name;
    if (!job->values->model) return cli_missing("-m MODEL", "'bench model' needs it");
    for (int i = 0; i < job->values->sizes.count; i++)
        longest = fv_max(longest, job->values->sizes.items[i]);
    FV_TRY(app_model_open(job->values->model, &model, &info));
    FV_TRY_DONE(FV_ALLOC(own.ids, longest));
    FV_TRY_DONE(FV_ALLOC(own.logits, info.vocabulary));
    for (int64_t i = 0; i < longest; i++)
        own.ids[i] = (int32_t)(i * 7919 % info.vocabulary);
    FV_TRY_DONE(fv_session_new(job->app->ctx, model, &(fv_session_options){.context = longest + room}, &own.session));
    status = bench_lengths(job, &own, &info);
done:
    fv_session_free(own.session);
    fv_free(own.ids);
    fv_free(own.logits);
    fv_model_close(model);
    return status;
}

/* ---- the verb -------------------------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    fv_status (*run)(struct job *job, const char *name);
} kinds[] = {{"attend", bench_attend},
             {"scan", bench_scan},
             {"decode", bench_decode},
             {"gemm", bench_gemm},
             {"model", bench_model}};
enum { KINDS = sizeof kinds / sizeof kinds[0] };

static fv_status bench_word(struct job *job, const char *word)
{
    for (int i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].name, word) == 0) return kinds[i].run(job, word);
    return bench_name(job, word);
}

/* Everything that can be wrong on the command line, before anything is measured. */
static fv_status check_words(const cli_common *common, const struct values *values)
{
    for (int w = 0; w < common->operands; w++) {
        fv_attention *attention;
        int i = 0;
        while (i < KINDS && strcmp(kinds[i].name, common->operand[w]) != 0)
            i++;
        if (i < KINDS && kinds[i].run == bench_model && !values->model)
            return cli_missing("-m MODEL", "'bench model' needs it");
        if (i < KINDS) continue;
        fv_status status = fv_attention_new(common->operand[w], &attention);
        if (status != FV_OK)
            return fv_fail_in(status, "'%s' is neither attend, scan, decode, gemm or model nor a mechanism",
                              common->operand[w]);
        fv_attention_free(attention);
    }
    return FV_OK;
}

static fv_status bench_peaks(struct job *job)
{
    const app_peaks *peaks = &job->peaks;

    app_progress(job->app, "peaks", 0);
    FV_TRY(app_peaks_measure(job->app->ctx, &job->peaks));
    add_row(job, &(struct task){.what = "peak fma", .shape = "f32", .flops = peaks->rate[APP_FMA]}, 1, 1);
    if (peaks->rate[APP_DOT_BF16] > 0) add_row(job, &(struct task){.what = "peak dot", .shape = "bf16", .flops = peaks->rate[APP_DOT_BF16]}, 1, 1);
    add_row(job, &(struct task){.what = "peak copy", .shape = "bytes read and written", .bytes = peaks->copy}, 1, 1);
    return FV_OK;
}

static fv_status bench_all(struct job *job)
{
    const cli_common *common = job->app->common;

    FV_TRY(bench_peaks(job));
    for (int w = 0; w < common->operands; w++)
        FV_TRY(bench_word(job, common->operand[w]));
    for (int i = 0; common->operands == 0 && i < KINDS; i++)
        if (kinds[i].run != bench_model || job->values->model) FV_TRY(kinds[i].run(job, kinds[i].name));
    return FV_OK;
}

static fv_status run(struct app *app, const void *data)
{
    static const bool left[6] = {true, true};
    static const char *const heading[6] = {"WHAT", "SHAPE", "TIME", "GFLOP/S", "GB/S", "OF PEAK"};
    struct job job = {.app = app, .values = data, .table = {.columns = 6, .left = left}};
    fv_status status;

    FV_TRY(check_words(app->common, data));
    FV_TRY(app_begin(app, FV_PRECISION_AUTO));
    job.rows = json_array();
    for (int i = 0; i < 6; i++)
        app_table_cell(&job.table, "%s", heading[i]);
    status = bench_all(&job);
    app_progress_end();
    if (status == FV_OK && app->common->json) {
        status = app_json_print(json_incref(job.rows));
    } else if (status == FV_OK) {
        printf("%s, %d threads\n", fv_ctx_backend(app->ctx), fv_ctx_threads(app->ctx));
        status = app_table_print(&job.table, stdout);
    }
    json_decref(job.rows);
    app_table_free(&job.table);
    return status;
}

const cli_verb verb_bench = {
    .name = "bench",
    .summary = "speed of this machine, beside its own peaks",
    .operands = "[attend|scan|decode|gemm|model|SPEC]...",
    .operands_max = 64,
    .about = "Measures kinds of work, or mechanisms by name, at the given sizes; in the same run also what the machine "
             "can do at best: multiply-adds, dot products, and copying memory. Without names: all but 'model', which "
             "needs -m.",
    .example = "  fovea bench attend decode --sizes 1024,4096\n  fovea bench moba:block=128 --sizes 4096 --json\n"
               "  fovea bench model -m model.gguf --sizes 512\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
