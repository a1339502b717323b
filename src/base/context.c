#include "base/context.h"

#include <stdio.h>
#include <time.h>

fv_status fv_ctx_begin(const fv_ctx_options *options, fv_ctx **ctx)
{
    static const fv_ctx_options defaults;
    fv_status status;
    fv_ctx *c;

    *ctx = NULL;
    if (!options) options = &defaults;
    if (options->threads < 0 || options->threads > 1024)
        return fv_fail(FV_E_USAGE, "threads: expected 1 to 1024 (0 = all), got %d", options->threads);
    FV_TRY(FV_ZALLOC(c, 1));
    fv_cpu_detect(&c->cpu);
    c->seed = options->seed;
    c->precision = options->precision;
    c->progress = options->progress;
    c->progress_user = options->progress_user;
    FV_TRY_DONE(fv_arena_new(&c->arena));
    FV_TRY_DONE(fv_pool_new(options->threads ? options->threads : fv_usable_threads(), &c->pool));
    *ctx = c;
    return FV_OK;
done:
    fv_ctx_end(c);
    return status;
}

void fv_ctx_end(fv_ctx *ctx)
{
    if (!ctx) return;
    for (int t = 0; ctx->child && t < fv_ctx_threads(ctx); t++)
        fv_ctx_end(ctx->child[t]);
    fv_free(ctx->child);
    if (ctx->kept) ctx->free_kept(ctx->kept);
    fv_pool_free(ctx->pool);
    fv_arena_free(ctx->arena);
    fv_free(ctx);
}

void fv_ctx_interrupt(fv_ctx *ctx)
{
    atomic_store_explicit(&ctx->interrupted, true, memory_order_relaxed);
}

void fv_ctx_clear_interrupt(fv_ctx *ctx)
{
    atomic_store_explicit(&ctx->interrupted, false, memory_order_relaxed);
}

fv_phase fv_phase_enter(fv_ctx *ctx, fv_phase phase)
{
    fv_phase before = ctx->phase;
    struct timespec now;
    double seconds;

    if (phase == before) return before;
    clock_gettime(CLOCK_MONOTONIC, &now);
    seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    ctx->spent[before] += before == FV_PHASE_NONE ? 0 : seconds - ctx->since;
    ctx->phase = phase;
    ctx->since = seconds;
    return before;
}

fv_status fv_ctx_check(fv_ctx *ctx)
{
    if (!atomic_load_explicit(&ctx->interrupted, memory_order_relaxed)) return FV_OK;
    return fv_fail(FV_E_INTERRUPTED, "interrupted");
}

void fv_ctx_report(fv_ctx *ctx, const char *what, double fraction)
{
    if (ctx->progress) ctx->progress(ctx->progress_user, what, fraction);
}

int fv_ctx_threads(const fv_ctx *ctx)
{
    return fv_pool_threads(ctx->pool);
}

fv_mark fv_scratch_mark(fv_ctx *ctx)
{
    return fv_arena_mark(ctx->arena);
}

void fv_scratch_release(fv_ctx *ctx, fv_mark mark)
{
    if (!ctx->recording) fv_arena_release(ctx->arena, mark);
}

/* ---- calls side by side ----------------------------------------------------------------------------------------- */

struct apart {
    fv_ctx *ctx;
    fv_apart_fn *item;
    void *user;
    struct failure {
        int64_t index;
        fv_status status;
        char text[512];
    } * failure; /* [threads] the first of a thread's */
};

static void apart_item(void *user, int64_t index, int thread)
{
    const struct apart *a = user;
    fv_ctx *child = a->ctx->child[thread];
    struct failure *failure = &a->failure[thread];
    fv_mark mark = fv_arena_mark(child->arena);
    fv_status status = a->item(child, a->user, index);

    fv_arena_release(child->arena, mark);
    if (status == FV_OK || (failure->status != FV_OK && failure->index < index)) return;
    failure->index = index;
    failure->status = status;
    snprintf(failure->text, sizeof failure->text, "%s", fv_error());
}

static fv_status make_children(fv_ctx *ctx)
{
    int threads = fv_ctx_threads(ctx);

    if (!ctx->child) FV_TRY(FV_ZALLOC(ctx->child, threads));
    for (int t = 0; t < threads; t++) {
        if (!ctx->child[t]) FV_TRY(fv_ctx_begin(&(fv_ctx_options){.threads = 1}, &ctx->child[t]));
        ctx->child[t]->backend = ctx->backend;
        ctx->child[t]->cpu = ctx->cpu;
        ctx->child[t]->isa = ctx->isa;
        ctx->child[t]->precision = ctx->precision;
        ctx->child[t]->batching = ctx->batching;
        ctx->child[t]->seed = ctx->seed;
    }
    return FV_OK;
}

fv_status fv_run_apart(fv_ctx *ctx, int64_t count, fv_apart_fn *item, void *user)
{
    struct apart apart = {ctx, item, user, NULL};
    const struct failure *first = NULL;
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_status status = FV_OK;

    FV_TRY(make_children(ctx));
    FV_TRY(FV_SCRATCH(ctx, apart.failure, fv_ctx_threads(ctx)));
    for (int t = 0; t < fv_ctx_threads(ctx); t++)
        apart.failure[t].status = FV_OK;
    fv_run(ctx, count, apart_item, &apart);
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        const struct failure *f = &apart.failure[t];
        if (f->status != FV_OK && (!first || f->index < first->index)) first = f;
    }
    if (first) status = fv_fail(first->status, "%s", first->text);
    fv_arena_release(ctx->arena, mark);
    return status;
}
