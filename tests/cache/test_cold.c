/* Rows that memory does not hold as they were written: 8 bits by channel against their definition, and sessions of
 * alisa whose rows lie in a file, are computed again or are held in 8 bits. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "cache/channels.h"
#include "cache/cold.h"
#include "models/session.h"
#include "support/tiny_model.h"

enum { VOCABULARY = 50, PROMPT = 150, ALL = 230, LAYERS = 8, HEADS = 8 };

/* ---- a disk that is full ----------------------------------------------------------------------------------------- */

/* The n-th write from now on, and all later ones, fail (0: none). */
static _Atomic long writes, refused_from;

ssize_t __real_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset)
{
    if (++writes < refused_from || refused_from == 0) return __real_pwrite(file, bytes, count, offset);
    errno = ENOSPC;
    return -1;
}

static void refuse_from(long n)
{
    writes = 0;
    refused_from = n;
}

/* ---- 8 bits by channel ------------------------------------------------------------------------------------------- */

enum { ROWS = 64, CHANNELS = 24 };

/* Every channel another range: wide, narrow, far from 0, constant, of the least and the largest numbers there are. */
static float draw(fv_random *random, int channel)
{
    double u = fv_random_uniform(random);

    switch (channel % 12) {
    case 0: return (float)(2 * u - 1);
    case 1: return (float)(100 + u);
    case 2: return (float)(-3000 - 1e-2 * u);
    case 3: return 0;
    case 4: return -1.7F;
    case 5: return (float)(1e-30 * u);
    case 6: return (float)(1e38 * (4 * u - 2));
    case 7: return u < 0.5 ? 5 : -5;
    case 8: return nextafterf(1, u < 0.5 ? 0 : 2);
    case 9: return (float)(1e-42 * u);
    case 10: return (float)(u * u * u * 65000);
    default: return (float)fv_random_normal(random);
    }
}

/* No shared code: the definition, in doubles, from the scale that was stored. */
static void check_channel(const float *x, int c, float scale, int32_t zero, const uint8_t *q, const float *back)
{
    double low = INFINITY, high = -INFINITY, most = 0;

    for (int i = 0; i < ROWS; i++) {
        low = fmin(low, (double)x[i * CHANNELS + c]);
        high = fmax(high, (double)x[i * CHANNELS + c]);
        most = fmax(most, fabs((double)x[i * CHANNELS + c]));
    }
    for (int i = 0; i < ROWS; i++) {
        double value = (double)x[i * CHANNELS + c], got = (double)back[i * CHANNELS + c];
        if (low == high) {
            if (got != value) fail_msg("channel %d, a constant: expected %.9g, got %.9g", c, value, got);
            continue;
        }
        double code = round(value / (double)scale) + round(-low / (double)scale);
        assert_int_equal(q[i * CHANNELS + c], (int)fmax(0, fmin(255, code)));
        assert_int_equal(zero, (int)round(-low / (double)scale));
        /* half a scale, and the rounding of the result to f32 */
        double bound = (double)scale / 2 + fmax(fabs(value) * 0x1p-23, 0x1p-149);
        if (!(fabs(got - value) <= bound))
            fail_msg("channel %d, row %d: expected %.9g, got %.9g (scale %g)", c, i, value, got, (double)scale);
    }
    if (low == high) return;
    /* the definition's scale, unless f32 can hardly tell the values apart */
    double exact = (high - low) / 255, widest = fmax(exact, most * 0x1p-23);
    if (!((double)scale >= exact && (double)scale <= widest * (1 + 0x1p-23) + 0x1p-149))
        fail_msg("channel %d: expected a scale of %.9g, got %.9g", c, exact, (double)scale);
}

static void codes_are_within_half_a_scale(void **state)
{
    fv_random random = fv_random_new(test_seed(), 9400);
    static float x[ROWS * CHANNELS], back[ROWS * CHANNELS], scale[CHANNELS];
    static uint8_t q[ROWS * CHANNELS];
    static int32_t zero[CHANNELS];
    (void)state;

    for (int round = 0; round < 200; round++) {
        for (int i = 0; i < ROWS * CHANNELS; i++)
            x[i] = draw(&random, i % CHANNELS);
        fv_channels_pack(x, ROWS, CHANNELS, scale, zero, q);
        for (int i = 0; i < ROWS; i++)
            fv_channels_unpack(q + i * CHANNELS, scale, zero, CHANNELS, back + i * CHANNELS);
        for (int c = 0; c < CHANNELS; c++)
            check_channel(x, c, scale[c], zero[c], q, back);
    }
}

static void what_is_not_finite_spoils_its_channel_alone(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    fv_random random = fv_random_new(test_seed(), 9401);
    float x[ROWS * CHANNELS], before[CHANNELS], after[CHANNELS], scale[CHANNELS];
    uint8_t q[ROWS * CHANNELS];
    int32_t zero[CHANNELS];
    (void)state;

    for (int n = 0; n < 9; n++) {
        int row = (int)fv_random_below(&random, ROWS), spoilt = (int)fv_random_below(&random, CHANNELS);
        for (int i = 0; i < ROWS * CHANNELS; i++)
            x[i] = (float)fv_random_normal(&random);
        fv_channels_pack(x, ROWS, CHANNELS, scale, zero, q);
        fv_channels_unpack(q, scale, zero, CHANNELS, before);
        x[(n < 3 ? 0 : row) * CHANNELS + spoilt] = bad[n % 3];
        fv_channels_pack(x, ROWS, CHANNELS, scale, zero, q);
        fv_channels_unpack(q, scale, zero, CHANNELS, after);
        for (int c = 0; c < CHANNELS; c++)
            if (c == spoilt)
                assert_true(isnan(after[c]));
            else
                assert_memory_equal(&after[c], &before[c], sizeof before[c]);
    }
    x[0] = 3;
    fv_channels_pack(x, 1, 1, scale, zero, q); /* a row alone is constant */
    fv_channels_unpack(q, scale, zero, 1, after);
    assert_true(after[0] == 3);
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

struct fixture {
    tiny_model tiny;
    fv_model *model;
    int32_t ids[ALL];
};

struct outcome {
    float logits[(ALL - PROMPT + 1) * VOCABULARY]; /* of the prompt's last token and those behind it */
    int64_t count[LAYERS][HEADS], read_count[LAYERS][HEADS];
    int32_t position[LAYERS][HEADS][ALL], read[LAYERS][HEADS][ALL];
    fv_session_stats stats;
};

static const tiny_model models[] = {
    {.architecture = "llama", .layers = 3, .heads = 6, .key_heads = 3, .context = 256},
    {.architecture = "gemma3", .layers = 8, .context = 256, .window = 20}, /* one layer acts */
    {.architecture = "gemma2", .layers = 4, .context = 256, .window = 20}, /* two layers act, not neighbours */
    {.architecture = "qwen2", .layers = 3, .heads = 4, .key_heads = 1, .context = 256},
    {.architecture = "qwen3", .layers = 2, .heads = 4, .key_heads = 4, .context = 256},
    {.architecture = "llama", .layers = 2, .context = 256, .dtype = FV_Q8_0}, /* packed weights */
    {.architecture = "llama", .layers = 3, .context = 256, .dtype = FV_DTYPE_COUNT, .biases = true},
};
enum { MODELS = sizeof models / sizeof *models };

static void begin(struct fixture *f, const tiny_model *tiny)
{
    static uint64_t stream = 9410;
    fv_random random = fv_random_new(test_seed(), ++stream);
    const char *path;

    f->tiny = *tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    for (int i = 0; i < ALL; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    tiny_free(&f->tiny);
}

struct way {
    int threads;
    fv_precision precision;
    int64_t chunk, first; /* first: tokens of a prompt before the prompt */
};

static fv_status open_session(const struct fixture *f, fv_ctx *ctx, const struct way *way, const char *spec,
                              fv_session **session)
{
    return fv_session_new(
        ctx, f->model,
        &(fv_session_options){.cache = spec, .chunk = way->chunk, .precision = way->precision, .context = ALL},
        session);
}

static fv_status feed(const struct fixture *f, fv_session *session, const struct way *way, int64_t to, float *logits)
{
    FV_TRY(fv_session_prompt(session, f->ids, way->first, NULL, 0));
    FV_TRY(fv_session_prompt(session, f->ids + way->first, PROMPT - way->first, logits, logits != NULL));
    for (int64_t p = PROMPT; p < to; p++) {
        if (logits) logits += VOCABULARY;
        FV_TRY(fv_session_feed(session, f->ids + p, 1, logits, logits != NULL));
    }
    return FV_OK;
}

static void note(const struct fixture *f, const fv_session *session, struct outcome *out)
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            const int32_t *at = fv_session_positions(session, l, g, &out->count[l][g]);
            memcpy(out->position[l][g], at, (size_t)out->count[l][g] * sizeof *at);
            at = fv_session_selected(session, l, g, &out->read_count[l][g]);
            if (at) memcpy(out->read[l][g], at, (size_t)out->read_count[l][g] * sizeof *at);
        }
    fv_session_measure(session, &out->stats);
}

static void run(const struct fixture *f, const struct way *way, const char *spec, struct outcome *out)
{
    fv_ctx *ctx = test_ctx("cpu", way->threads);
    fv_session *session;

    memset(out, 0, sizeof *out);
    assert_ok(open_session(f, ctx, way, spec, &session));
    assert_ok(feed(f, session, way, ALL, out->logits));
    note(f, session, out);
    fv_session_free(session);
    fv_ctx_free(ctx);
}

static void same(const char *what, const struct fixture *f, const struct outcome *a, const struct outcome *b)
{
    assert_memory_equal(a->count, b->count, sizeof a->count);
    assert_memory_equal(a->position, b->position, sizeof a->position);
    assert_memory_equal(a->read_count, b->read_count, sizeof a->read_count);
    assert_memory_equal(a->read, b->read, sizeof a->read);
    for (int i = 0; i < (ALL - PROMPT + 1) * VOCABULARY; i++)
        if (memcmp(&a->logits[i], &b->logits[i], sizeof a->logits[i]) != 0)
            fail_msg("%s of %s: token %d, logit %d: expected the same bits, got %.9g and %.9g", what,
                     f->tiny.architecture, PROMPT - 1 + i / VOCABULARY, i % VOCABULARY, (double)a->logits[i],
                     (double)b->logits[i]);
    assert_true(a->stats.pairs == b->stats.pairs);
}

static const char *const choices[] = {"r=0.2",
                                      "r=0.5,sets=kv,refresh=4",
                                      "r=0.3,score=global",
                                      "r=1",
                                      "r=0.1,score=last,sets=kv,k=bf16,v=f32",
                                      "r=0.4,k=q8_0,v=q4_0"};
enum { CHOICES = sizeof choices / sizeof *choices };
static const char *const tiers[] = {"resident=1",   "resident=40",   "recompute=1000",
                                    "recompute=57", "recompute=200", "resident=30,recompute=41"};
enum { TIERS = sizeof tiers / sizeof *tiers };

/* A file and computing again change no bit, whatever the kernels: chunks of 3 take those for few rows. */
static void tiers_change_no_bit(void **state)
{
    static const struct way ways[] = {{2, FV_PRECISION_AUTO, 0, 0},
                                      {1, FV_PRECISION_F32, 64, 70},
                                      {3, FV_PRECISION_AUTO, 7, 0},
                                      {1, FV_PRECISION_AUTO, 3, 31},
                                      {2, FV_PRECISION_F32, 2, 0}};
    static struct outcome plain, got;
    struct fixture f;
    char spec[200];
    (void)state;

    for (int m = 0; m < MODELS; m++) {
        begin(&f, &models[m]);
        for (int c = 0; c < CHOICES; c++) {
            const struct way *way = &ways[(m + c) % (int)(sizeof ways / sizeof *ways)];
            if (strstr(choices[c], "q8_0") && f.tiny.key_dim % 32 != 0) continue;
            snprintf(spec, sizeof spec, "alisa:%s", choices[c]);
            run(&f, way, spec, &plain);
            for (int t = 0; t < TIERS; t++) {
                snprintf(spec, sizeof spec, "alisa:%s,%s", choices[c], tiers[t]);
                run(&f, way, spec, &got);
                same(spec, &f, &plain, &got);
            }
        }
        end(&f);
    }
}

/* Where rows in 8 bits lie is nobody's business, nor is how a prompt is cut or who computes. */
static void eight_bits_are_the_same_everywhere(void **state)
{
    static const struct way ways[] = {{1, FV_PRECISION_F32, 0, 0}, {3, FV_PRECISION_F32, 0, 0}};
    static struct outcome plain, got;
    struct fixture f;
    char spec[200];
    (void)state;

    for (int m = 0; m < MODELS; m++) {
        begin(&f, &models[m]);
        for (int c = 0; c < CHOICES - 1; c++) {
            snprintf(spec, sizeof spec, "alisa:%s,bits=8", choices[c]);
            run(&f, &ways[0], spec, &plain);
            run(&f, &ways[1], spec, &got);
            same(spec, &f, &plain, &got);
            snprintf(spec, sizeof spec, "alisa:%s,bits=8,resident=70", choices[c]);
            run(&f, &ways[1], spec, &got);
            same(spec, &f, &plain, &got);
            snprintf(spec, sizeof spec, "alisa:%s,bits=8,recompute=1000,resident=1", choices[c]);
            run(&f, &ways[0], spec, &plain); /* nothing is left for 8 bits but what was computed exactly */
            snprintf(spec, sizeof spec, "alisa:%s", choices[c]);
            run(&f, &ways[0], spec, &got);
            same(spec, &f, &plain, &got);
        }
        end(&f);
    }
}

/* ---- figures ----------------------------------------------------------------------------------------------------- */

static int64_t acting(const struct fixture *f)
{
    int64_t layers = 0;

    for (int64_t l = 0; l < f->tiny.layers; l++)
        layers += tiny_sees_all(&f->tiny, l);
    return layers;
}

static void expect(const char *spec, const char *what, size_t expected, size_t got)
{
    if (expected != got) fail_msg("%s: %s: expected %zu, got %zu", spec, what, expected, got);
}

/* r = 0.2 behind 230 rows: the 23 newest are resident in any case. */
static void figures_are_exact(void **state)
{
    static const struct {
        const char *tier;
        int64_t memory, file, inputs; /* rows */
        int64_t codes, file_codes, blocks;
    } cases[] = {
        {"resident=1", 23, ALL - 23, 0, 0, 0, 0},
        {"resident=40", 40, ALL - 40, 0, 0, 0, 0},
        {"resident=400", ALL, 0, 0, 0, 0, 0},
        {"recompute=57", ALL - 57, 0, 57, 0, 0, 0},
        {"recompute=1000", 23, 0, ALL, 0, 0, 0},
        {"resident=30,recompute=41", 30, ALL - 30 - 41, 41, 0, 0, 0},
        /* blocks: 0-63, 64-127, 128-149 at the prompt's end, 150-213 of which 23 newest begin at 207 */
        {"bits=8", ALL - 150, 0, 0, 150, 0, 3},
        {"bits=8,resident=90", ALL - 150, 0, 0, 22, 128, 3},
        {"bits=8,recompute=10", ALL - 150, 0, 10, 140, 0, 3},
    };
    static const struct way way = {2, FV_PRECISION_AUTO, 64, 0};
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    for (int m = 0; m < MODELS; m++) {
        begin(&f, &models[m]);
        size_t layers = (size_t)acting(&f), channels = (size_t)(f.tiny.key_heads * (f.tiny.key_dim + f.tiny.value_dim));
        size_t row = 2 * channels;
        run(&f, &way, "alisa", &full);
        for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
            char spec[100];
            snprintf(spec, sizeof spec, "alisa:%s", cases[c].tier);
            run(&f, &way, spec, &got);
            size_t less = layers * ((size_t)(ALL - cases[c].memory) * row - (size_t)cases[c].codes * channels -
                                    (size_t)cases[c].blocks * channels * 8);
            expect(spec, "bytes in memory", full.stats.cache_bytes - less, got.stats.cache_bytes);
            expect(spec, "bytes in the file",
                   layers * ((size_t)cases[c].file * row + (size_t)cases[c].file_codes * channels),
                   got.stats.host_bytes);
            assert_true(got.stats.policy_bytes >=
                        full.stats.policy_bytes + layers * (size_t)(cases[c].inputs * f.tiny.width) * 4);
            assert_true(got.stats.policy_bytes <=
                        full.stats.policy_bytes + layers * (size_t)((cases[c].inputs + 63) * f.tiny.width * 4 + 8192));
            assert_true(got.stats.committed_bytes >= got.stats.cache_bytes);
            assert_true(got.stats.committed_bytes <=
                        got.stats.cache_bytes + (size_t)(f.tiny.layers * f.tiny.key_heads * 2) * 8192);
            assert_memory_equal(got.position, full.position, sizeof got.position);
        }
        end(&f);
    }
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

static const struct way plain_way = {2, FV_PRECISION_AUTO, 64, 0};
static const char *const refusable[] = {"alisa:resident=1,recompute=20", "alisa:bits=8,resident=1",
                                        "alisa:bits=8,sets=kv", "alisa:resident=1,sets=kv"};
enum { REFUSABLE = sizeof refusable / sizeof *refusable };

static void failing_memory_is_an_error(void **state)
{
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    begin(&f, &models[0]);
    for (int s = 0; s < REFUSABLE; s++) {
        bool failed = true;
        for (int64_t nth = 1; failed; nth += 1 + nth / 20) {
            fv_session *session = NULL;
            test_alloc_fail(nth);
            fv_status status = open_session(&f, ctx, &plain_way, refusable[s], &session);
            if (status == FV_OK) status = feed(&f, session, &plain_way, PROMPT + 20, NULL);
            failed = test_alloc_count() >= nth;
            test_alloc_fail(0);
            if (status != FV_OK) assert_int_equal(status, FV_E_MEMORY);
            fv_session_free(session);
        }
    }
    end(&f);
    fv_ctx_free(ctx);
}

/* What fails leaves a session that says so, and one that is as new once it is cleared. */
static void a_full_disk_is_an_error_until_it_is_not(void **state)
{
    static struct outcome fresh, again;
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    begin(&f, &models[0]);
    for (int s = 0; s < REFUSABLE; s++) {
        bool failed = strstr(refusable[s], "resident") != NULL;
        run(&f, &plain_way, refusable[s], &fresh);
        for (long nth = 1; failed; nth += 1 + nth / 8) {
            fv_session *session;
            assert_ok(open_session(&f, ctx, &plain_way, refusable[s], &session));
            refuse_from(nth);
            fv_status status = feed(&f, session, &plain_way, ALL, NULL);
            failed = writes >= nth;
            refuse_from(0);
            assert_int_equal(status, failed ? FV_E_IO : FV_OK);
            if (failed) assert_non_null(strstr(fv_error(), "No space left on device"));
            fv_session_clear(session);
            memset(&again, 0, sizeof again);
            assert_ok(feed(&f, session, &plain_way, ALL, again.logits));
            note(&f, session, &again);
            same(refusable[s], &f, &fresh, &again);
            fv_session_free(session);
        }
    }
    end(&f);
    fv_ctx_free(ctx);
}

/* The number that the next file gets. */
static int next_file(void)
{
    int file = open("/dev/null", O_RDONLY);

    close(file);
    return file;
}

static void a_file_that_was_cut_or_changed_is_an_error(void **state)
{
    static const char *const specs[] = {"alisa:r=0.9,resident=1", "alisa:r=0.9,bits=8,resident=1"};
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_session *session;
    (void)state;

    begin(&f, &models[0]);
    for (int s = 0; s < 4; s++) {
        char bytes[8192] = {0}; /* more rows than a step leaves out */
        int number;
        assert_ok(open_session(&f, ctx, &plain_way, specs[s % 2], &session));
        number = next_file();
        assert_ok(feed(&f, session, &plain_way, PROMPT + 3, NULL));
        if (s < 2)
            assert_int_equal(ftruncate(number, 100), 0);
        else
            assert_int_equal(__real_pwrite(number, bytes, sizeof bytes, 0), (int)sizeof bytes);
        assert_fails(fv_session_feed(session, f.ids, 1, NULL, 0), FV_E_IO, s < 2 ? "was cut" : "was changed");
        assert_fails(fv_session_feed(session, f.ids, 1, NULL, 0), FV_E_ARGUMENT, "clear the session");
        fv_session_free(session);
        assert_int_equal(next_file(), number); /* it is closed */
    }
    end(&f);
    fv_ctx_free(ctx);
}

/* ---- going back, and sharing ------------------------------------------------------------------------------------- */

static void a_text_is_cut_back_where_rows_are_as_they_would_be(void **state)
{
    static const struct way way = {2, FV_PRECISION_AUTO, 0, 0};
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_session *session;
    fv_rows *rows, other = {0};
    fv_tensor k, v, k_after, v_after;
    (void)state;

    begin(&f, &models[0]);
    assert_ok(open_session(&f, ctx, &way, "alisa:resident=30,recompute=40", &session));
    assert_ok(feed(&f, session, &way, ALL, NULL));
    rows = &session->layers[1].rows;
    assert_int_equal(fv_cold_count(rows), ALL - 30);
    assert_ok(fv_rows_new(&other, &rows->options));
    assert_fails(fv_rows_fork(&other, rows), FV_E_ARGUMENT, "not in memory as they were");
    assert_fails(fv_rows_share(&other, rows, 100), FV_E_ARGUMENT, "holds");
    assert_fails(fv_rows_convert(ctx, rows, FV_F32, FV_F32), FV_E_ARGUMENT, "cold ones");
    assert_ok(fv_rows_view_all(ctx, rows, 0, 3, &k, &v));
    for (int64_t length = ALL - 10; length > 0; length = length == 210 ? 130 : length - 90) { /* 220, 130, 40 */
        fv_rows_bytes bytes;
        assert_ok(fv_rows_truncate(rows, length, 0, NULL, NULL));
        assert_int_equal(fv_rows_all(rows, 0), length);
        fv_rows_measure(rows, &bytes);
        size_t row = rows->side[0].row_bytes + rows->side[1].row_bytes;
        assert_int_equal(bytes.host, (size_t)(3 * fv_max(fv_min(length, ALL - 30) - 40, 0)) * row);
        assert_ok(fv_rows_view_all(ctx, rows, 0, 3, &k_after, &v_after));
        for (int64_t g = 0; g < 3; g++) {
            fv_tensor a = fv_slice(&k, 1, g, 1), b = fv_slice(&k_after, 1, g, 1);
            assert_memory_equal(a.data, b.data, (size_t)length * rows->side[0].row_bytes);
            a = fv_slice(&v, 1, g, 1);
            b = fv_slice(&v_after, 1, g, 1);
            assert_memory_equal(a.data, b.data, (size_t)length * rows->side[1].row_bytes);
        }
    }
    fv_session_free(session);
    assert_ok(open_session(&f, ctx, &way, "alisa:bits=8", &session));
    assert_ok(feed(&f, session, &way, ALL, NULL));
    rows = &session->layers[1].rows;
    assert_int_equal(fv_cold_count(rows), PROMPT);
    assert_ok(fv_rows_truncate(rows, ALL, 0, NULL, NULL));
    assert_fails(fv_rows_truncate(rows, ALL - 1, 0, NULL, NULL), FV_E_ARGUMENT, "rows in 8 bits");
    assert_int_equal(fv_rows_all(rows, 0), ALL);
    fv_session_free(session);
    fv_rows_free(&other);
    end(&f);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codes_are_within_half_a_scale),
        cmocka_unit_test(what_is_not_finite_spoils_its_channel_alone),
        cmocka_unit_test(tiers_change_no_bit),
        cmocka_unit_test(eight_bits_are_the_same_everywhere),
        cmocka_unit_test(figures_are_exact),
        cmocka_unit_test(failing_memory_is_an_error),
        cmocka_unit_test(a_full_disk_is_an_error_until_it_is_not),
        cmocka_unit_test(a_file_that_was_cut_or_changed_is_an_error),
        cmocka_unit_test(a_text_is_cut_back_where_rows_are_as_they_would_be),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
