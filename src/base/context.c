#include "base/context.h"

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
