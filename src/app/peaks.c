#include "app/peaks.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "app/measure.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* Work is handed out in PIECES a thread, so that one which wakes late costs little. */
enum { ROUNDS = 1 << 17, CHAINS = 12, PIECES = 8 };

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

__attribute__((target("avx512f,avx512bf16"))) static void dot_bf16_avx512(char *out)
{
    const volatile float given = 0.5f;
    __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(given), _mm512_set1_ps(given));

    CHAIN_LOOP(__m512, _mm512_set1_ps(1), _mm512_dpbf16_ps(sums[i], factor, factor), out);
}

__attribute__((target("avx512f,avx512vnni"))) static void dot_int8_avx512(char *out)
{
    const volatile int given = 0x01020301;
    __m512i factor = _mm512_set1_epi32(given);

    CHAIN_LOOP(__m512i, _mm512_set1_epi32(1), _mm512_dpbusd_epi32(sums[i], factor, factor), out);
}
#endif

/* ---- memory ---------------------------------------------------------------------------------------------------- */

typedef unsigned read_vector __attribute__((vector_size(64)));

/* Eight streams of loads; the sums are kept so that none is left out. */
#define READ_LOOP(memory, bytes)                                                                                       \
    do {                                                                                                               \
        const read_vector *at = (const read_vector *)(const void *)(memory);                                           \
        read_vector sums[8] = {{0}};                                                                                   \
        for (size_t n = 0; n + 8 <= (bytes) / sizeof *at; n += 8) {                                                    \
            _Pragma("GCC unroll 8") for (int i = 0; i < 8; i++) sums[i] |= at[n + (size_t)i];                          \
        }                                                                                                              \
        for (int i = 1; i < 8; i++)                                                                                    \
            sums[0] |= sums[i];                                                                                        \
        memcpy(memory, &sums[0], sizeof sums[0]);                                                                      \
    } while (0)

static void read_plain(char *memory, size_t bytes)
{
    READ_LOOP(memory, bytes);
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static void read_avx2(char *memory, size_t bytes)
{
    READ_LOOP(memory, bytes);
}

__attribute__((target("avx512f"))) static void read_avx512(char *memory, size_t bytes)
{
    READ_LOOP(memory, bytes);
}
#endif

/* The largest cache the first processor sees.  Virtual machines tell sysconf that of their whole host. */
static double last_cache(void)
{
    double largest = 0;

    for (int index = 0; index < 8; index++) {
        char path[96];
        long size = 0;
        char unit = 0;
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
        FILE *file = fopen(path, "r");
        if (!file) break;
        if (fscanf(file, "%ld%c", &size, &unit) == 2)
            largest = fmax(largest, (double)size * (unit == 'M' ? 1 << 20 : 1 << 10));
        fclose(file);
    }
    return largest > 0 ? largest : 32 << 20; /* unknown: that of a large processor */
}

/* ---- measuring ------------------------------------------------------------------------------------------------- */

struct peak_work {
    void (*compute)(char *out);
    void (*load)(char *memory, size_t bytes);
    char *memory;
    size_t share; /* bytes of each piece */
};

static void compute_piece(void *user, int64_t index, int thread)
{
    const struct peak_work *work = user;

    (void)thread;
    work->compute(work->memory + (size_t)index * work->share);
}

static void read_piece(void *user, int64_t index, int thread)
{
    const struct peak_work *work = user;

    (void)thread;
    work->load(work->memory + (size_t)index * work->share, work->share);
}

static void copy_piece(void *user, int64_t index, int thread)
{
    const struct peak_work *work = user;
    char *own = work->memory + (size_t)index * work->share;

    (void)thread;
    memcpy(own, own + work->share / 2, work->share / 2);
}

static void touch_piece(void *user, int64_t index, int thread)
{
    const struct peak_work *work = user;

    (void)thread;
    memset(work->memory + (size_t)index * work->share, 1, work->share); /* or all pages would be one page of zeros */
}

/* Units a second, of `units` a piece: the best of the passes of 0.1 seconds and of what was there, and its seconds. */
static fv_status best(fv_ctx *ctx, struct peak_work *work, fv_item_fn *piece, double units, double *rate, double *pass)
{
    int64_t pieces = (int64_t)PIECES * fv_ctx_threads(ctx);

    for (double begin = app_seconds(), start = begin; start < begin + 0.1; start = app_seconds()) {
        FV_TRY(fv_ctx_check(ctx));
        fv_run(ctx, pieces, piece, work);
        double seconds = app_seconds() - start, now = units * (double)pieces / seconds;
        if (now > *rate) *rate = now, *pass = seconds;
    }
    return FV_OK;
}

static fv_status measure(fv_ctx *ctx, struct peak_work *work, app_peaks *peaks)
{
    double width = 1, flops = 2.0 * ROUNDS * CHAINS;

    work->compute = fma_plain;
    work->load = read_plain;
#if defined(__x86_64__)
    if (ctx->cpu.avx2) work->compute = fma_avx2, work->load = read_avx2, width = 8;
    if (ctx->cpu.avx512f) work->compute = fma_avx512, work->load = read_avx512, width = 16;
#endif
    FV_TRY(best(ctx, work, compute_piece, flops * width, &peaks->rate[APP_FMA], &peaks->pass[APP_FMA]));
    FV_TRY(best(ctx, work, read_piece, (double)work->share, &peaks->read, &peaks->read_pass));
    FV_TRY(best(ctx, work, copy_piece, (double)work->share, &peaks->copy, &peaks->copy_pass));
#if defined(__x86_64__)
    if (!ctx->cpu.avx512) return FV_OK;
    work->compute = dot_bf16_avx512;
    FV_TRY(best(ctx, work, compute_piece, flops * 32, &peaks->rate[APP_DOT_BF16], &peaks->pass[APP_DOT_BF16]));
    work->compute = dot_int8_avx512;
    return best(ctx, work, compute_piece, flops * 64, &peaks->rate[APP_DOT_INT8], &peaks->pass[APP_DOT_INT8]);
#else
    return FV_OK;
#endif
}

/* Round after round, so that a short disturbance does not meet all of one peak. */
static fv_status measure_rounds(fv_ctx *ctx, struct peak_work *work, app_peaks *peaks)
{
    fv_run(ctx, (int64_t)PIECES * fv_ctx_threads(ctx), touch_piece, work);
    for (int round = 0; round < 4; round++)
        FV_TRY(measure(ctx, work, peaks));
    return FV_OK;
}

fv_status app_peaks_measure(fv_ctx *ctx, app_peaks *peaks)
{
    size_t pieces = (size_t)PIECES * (size_t)fv_ctx_threads(ctx), huge = (size_t)1 << 21, bytes;
    struct peak_work work = {0};
    fv_status status;

    *peaks = (app_peaks){.cache = last_cache()};
    bytes = (size_t)(APP_FAR * peaks->cache);
    work.share = (bytes / pieces / huge + 1) * huge;
    bytes = work.share * pieces;
    work.memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (work.memory == MAP_FAILED)
        return fv_fail(FV_E_MEMORY, "out of memory: %zu bytes to measure the speed of memory", bytes);
#if defined(MADV_HUGEPAGE)
    (void)madvise(work.memory, bytes, MADV_HUGEPAGE); /* an aid, not a need */
#endif
    status = measure_rounds(ctx, &work, peaks);
    munmap(work.memory, bytes);
    return status;
}
