/* Choosing a backend when a context is made. */
#include "ops/backend.h"
#include "ops/tape.h"

#include <stdlib.h>
#include <string.h>

static bool has_isa(const fv_cpu *cpu, fv_isa isa)
{
    return isa == FV_ISA_C || (isa == FV_ISA_AVX2 && cpu->avx2) || (isa == FV_ISA_AVX512F && cpu->avx512f) ||
           (isa == FV_ISA_AVX512 && cpu->avx512);
}

/* FOVEA_ISA forces one instruction set, otherwise the widest there is; avx512 takes what there is of that family. */
static fv_status choose_isa(const fv_cpu *cpu, fv_isa *isa)
{
    const char *forced = getenv("FOVEA_ISA");

    if (!forced || !*forced) {
        for (int i = FV_ISA_COUNT - 1; i >= 0; i--) {
            *isa = (fv_isa)i;
            if (has_isa(cpu, *isa)) return FV_OK;
        }
    }
    for (int i = 0; i < FV_ISA_COUNT; i++) {
        if (strcmp(forced, fv_isa_name((fv_isa)i)) != 0) continue;
        *isa = (fv_isa)i;
        if (*isa == FV_ISA_AVX512 && !cpu->avx512) *isa = FV_ISA_AVX512F;
        if (has_isa(cpu, *isa)) return FV_OK;
        return fv_fail(FV_E_UNSUPPORTED, "FOVEA_ISA: this processor (%s) has no %s", cpu->model, forced);
    }
    return fv_fail(FV_E_USAGE, "FOVEA_ISA: expected avx512, avx512f, avx2 or c, got '%s'", forced);
}

static fv_status choose_backend(fv_ctx *ctx, const char *device)
{
    FV_TRY(choose_isa(&ctx->cpu, &ctx->isa));
    if (!device || strcmp(device, "cpu") == 0) {
        ctx->backend = fv_backend_cpu(ctx->isa);
        return FV_OK;
    }
    if (strcmp(device, "ref") == 0) {
        ctx->backend = &fv_backend_ref;
        return FV_OK;
    }
    if (strncmp(device, "cuda", 4) == 0 && (!device[4] || device[4] == ':'))
        return fv_fail(FV_E_USAGE, "device '%s': this build has no CUDA backend; expected cpu or ref", device);
    return fv_fail(FV_E_USAGE, "device: expected cpu or ref, got '%s'", device);
}

fv_status fv_ctx_new(const fv_ctx_options *options, fv_ctx **ctx)
{
    fv_status status;

    FV_TRY(fv_ctx_begin(options, ctx));
    status = choose_backend(*ctx, options ? options->device : NULL);
    if (status == FV_OK) return FV_OK;
    fv_ctx_end(*ctx);
    *ctx = NULL;
    return status;
}

void fv_ctx_free(fv_ctx *ctx)
{
    if (ctx) fv_tape_end(ctx);
    fv_ctx_end(ctx);
}

const char *fv_ctx_backend(const fv_ctx *ctx)
{
    return ctx->backend->name;
}
