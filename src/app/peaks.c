#include "app/peaks.h"

#include <string.h>

#include "app/app.h"
#include "base/memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { ROUNDS = 1 << 20, CHAINS = 12, COPY_BYTES = 1 << 25 };

/* CHAINS independent multiply-adds a round hide their latency; the results are kept so that none is left out. */
#define CHAIN_LOOP(type, zero, step, out)                                                                              \
    do {                                                                                                               \
        type sums[CHAINS];                                                                                             \
        for (int i = 0; i < CHAINS; i++)                                                                               \
            sums[i] = zero;                                                                                            \
        for (int64_t round = 0; round < ROUNDS; round++) {                                                             \
            _Pragma("GCC unroll 12") for (int i = 0; i < CHAINS; i++) sums[i] = step;                                  \
        }                                                                                                              \
        for (int i = 0; i < CHAINS; i++)                                                                               \
            memcpy((out) + i * sizeof(type), &sums[i], sizeof(type));                                                  \
    } while (0)

static void fma_plain(char *out)
{
    const volatile float given = 0.999f;
    float factor = given;

    CHAIN_LOOP(float, 1.0f, sums[i] * factor + factor, out);
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void fma_avx2(char *out)
{
    const volatile float given = 0.999f;
    __m256 factor = _mm256_set1_ps(given);

    CHAIN_LOOP(__m256, _mm256_set1_ps(1), _mm256_fmadd_ps(sums[i], factor, factor), out);
}

__attribute__((target("avx512f"))) static void fma_avx512(char *out)
{
    const volatile float given = 0.999f;
    __m512 factor = _mm512_set1_ps(given);

    CHAIN_LOOP(__m512, _mm512_set1_ps(1), _mm512_fmadd_ps(sums[i], factor, factor), out);
}

__attribute__((target("avx512f,avx512bf16"))) static void dot_avx512(char *out)
{
    const volatile float given = 0.5f;
    __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(given), _mm512_set1_ps(given));

    CHAIN_LOOP(__m512, _mm512_set1_ps(1), _mm512_dpbf16_ps(sums[i], factor, factor), out);
}
#endif

struct peak_work {
    void (*loop)(char *out); /* NULL: copy */
    char *memory;            /* of each thread: 2 COPY_BYTES */
};

static void peak_item(void *user, int64_t index, int thread)
{
    struct peak_work *work = user;
    char *own = work->memory + index * 2 * COPY_BYTES;

    (void)thread;
    if (work->loop)
        work->loop(own);
    else
        memcpy(own, own + COPY_BYTES, COPY_BYTES);
}

/* Units a second, of `units` a thread and pass: the best of a few passes. */
static fv_status best(fv_ctx *ctx, struct peak_work *work, double units, double *rate)
{
    int threads = fv_ctx_threads(ctx);

    *rate = 0;
    for (double begin = app_seconds(), start = begin; start < begin + 0.3; start = app_seconds()) {
        FV_TRY(fv_ctx_check(ctx));
        fv_run(ctx, threads, peak_item, work);
        double now = units * threads / (app_seconds() - start);
        *rate = now > *rate ? now : *rate;
    }
    return FV_OK;
}

static fv_status measure(fv_ctx *ctx, struct peak_work *work, app_peaks *peaks)
{
    double width = 1, flops = 2.0 * ROUNDS * CHAINS;

    work->loop = fma_plain;
#if defined(__x86_64__)
    if (ctx->cpu.avx2) work->loop = fma_avx2, width = 8;
    if (ctx->cpu.avx512f) work->loop = fma_avx512, width = 16;
#endif
    FV_TRY(best(ctx, work, flops * width, &peaks->fma));
#if defined(__x86_64__)
    work->loop = dot_avx512;
    if (ctx->cpu.avx512) FV_TRY(best(ctx, work, flops * 32, &peaks->dot));
#endif
    work->loop = NULL;
    return best(ctx, work, 2.0 * COPY_BYTES, &peaks->copy);
}

fv_status app_peaks_measure(fv_ctx *ctx, app_peaks *peaks)
{
    struct peak_work work = {0};
    fv_status status;

    *peaks = (app_peaks){0};
    FV_TRY(fv_zalloc((void **)&work.memory, 2 * (int64_t)COPY_BYTES * fv_ctx_threads(ctx), 1));
    status = measure(ctx, &work, peaks);
    fv_free(work.memory);
    return status;
}
