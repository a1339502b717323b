/* Tokens of a prompt chosen at an early layer: scores, a naive twin of both readings, later prompts, positions, what
 * cannot be given, interrupts. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "models/session.h"
#include "support/tiny_model.h"

enum { PROMPT = 61, ALL = 80, VOCABULARY = 50, BUDGET = 17 };

/* Of the largest number: f32 sums against doubles, through a few layers. */
static const double tolerance = 7e-5;

struct fixture {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    int32_t ids[ALL];
};

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 7600;
    fv_random random = fv_random_new(test_seed(), ++stream);
    const char *path;

    f->tiny = tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    f->ctx = test_ctx("cpu", 2);
    for (int i = 0; i < ALL; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}

static fv_session *session_on(const struct fixture *f, fv_ctx *ctx, const char *spec)
{
    fv_session_options options = {.cache = spec, .precision = FV_PRECISION_F32, .chunk = 16, .context = ALL};
    fv_session *session;

    assert_ok(fv_session_new(ctx, f->model, &options, &session));
    return session;
}

static fv_session *session_of(const struct fixture *f, const char *spec)
{
    return session_on(f, f->ctx, spec);
}

/* ---- scores ------------------------------------------------------------------------------------------------------ */

static void plan_of(const char *spec, int64_t layers, const int64_t *window, fv_cache_plan *plan)
{
    const fv_cache_model model = {.layers = layers,
                                  .query_heads = 6,
                                  .key_heads = 3,
                                  .key_dim = 16,
                                  .value_dim = 16,
                                  .context = 8192,
                                  .window = window};

    assert_ok(fv_cache_plan_new(spec, &model, plan));
}

static void choose(fv_ctx *ctx, const char *spec, const fv_tensor *q, const fv_tensor *k, int32_t *keep, int64_t *count)
{
    static const int64_t none[1];
    const fv_logits logits = {0};
    fv_cache_plan plan;

    plan_of(spec, 1, none, &plan);
    assert_ok(plan.use[0].policy->filter(ctx, &plan.use[0], &logits, q, k, keep, count));
    fv_cache_plan_free(&plan);
}

/* One head whose products with the keys are the scores. */
static void chooses(fv_ctx *ctx, const char *spec, const float *scores, int n, const int *expected, int count)
{
    float q[16] = {1}, k[16 * 16] = {0};
    fv_tensor query, keys;
    int32_t keep[16];
    int64_t got;

    for (int j = 0; j < n; j++)
        k[16 * j] = scores[j];
    assert_ok(fv_tensor_wrap(&query, q, FV_F32, FV_DIMS(1, 1, 1, 16)));
    assert_ok(fv_tensor_wrap(&keys, k, FV_F32, FV_DIMS(1, 1, n, 16)));
    choose(ctx, spec, &query, &keys, keep, &got);
    assert_int_equal(got, count);
    for (int i = 0; i < count; i++)
        if (keep[i] != expected[i]) fail_msg("%s: token %d: expected %d, got %d", spec, i, expected[i], keep[i]);
}

static void scores_are_pooled_as_in_the_sheet(void **state)
{
    static const float example[] = {0, 0, 10, 0, 0, 0, 0, 0, 0, 4}, same[] = {-1, -1, -1, -1, -1, -1, -1, -1};
    static const float rising[] = {1, 2, 3, 4, 5, 6}, odd[] = {1, NAN, 3, INFINITY, -INFINITY, 2};
    fv_ctx *ctx = test_ctx("cpu", 1);
    (void)state;

    chooses(ctx, "gemfilter:budget=7", example, 10, (const int[]){0, 1, 2, 3, 4, 7, 8}, 7);
    chooses(ctx, "gemfilter:budget=4", same, 8, (const int[]){0, 1, 6, 7}, 4); /* the ends are -3/5 and -4/5 */
    chooses(ctx, "gemfilter:budget=5", same, 8, (const int[]){0, 1, 2, 6, 7}, 5);
    chooses(ctx, "gemfilter:budget=2,kernel=1", rising, 6, (const int[]){4, 5}, 2);
    chooses(ctx, "gemfilter:budget=2,kernel=3", rising, 6, (const int[]){3, 4}, 2); /* 3 3 .. 5 11/3 */
    chooses(ctx, "gemfilter:budget=3,kernel=1,keep_first=2", rising, 6, (const int[]){0, 1, 5}, 3);
    chooses(ctx, "gemfilter:budget=5,keep_last=1", example, 10, (const int[]){0, 1, 2, 3, 9}, 5);
    chooses(ctx, "gemfilter:budget=1,kernel=4095", example, 10, (const int[]){0}, 1); /* all alike */
    chooses(ctx, "gemfilter:budget=3,kernel=1", odd, 6, (const int[]){2, 3, 5}, 3);
    chooses(ctx, "gemfilter:budget=6,kernel=1", odd, 6, (const int[]){0, 1, 2, 3, 4, 5}, 6);
    fv_ctx_free(ctx);
}

/* What is kept has the largest pooled scores; those that differ by no more than rounding may change places. */
static void check_kept(const char *what, const double *score, int64_t n, int64_t kernel, const int32_t *keep,
                       int64_t count, double rounding)
{
    double worst = INFINITY, best = -INFINITY, size = 0;
    double *pooled = calloc((size_t)n, sizeof *pooled);
    int64_t at = 0;

    for (int64_t j = 0; j < n; j++) {
        for (int64_t i = 0; i < n; i++)
            if (llabs(i - j) <= kernel / 2) pooled[j] += score[i] / (double)kernel;
        size = fmax(size, fabs(pooled[j]));
    }
    for (int64_t j = 0; j < n; j++) {
        bool kept = at < count && keep[at] == j;
        at += kept;
        if (kept) worst = fmin(worst, pooled[j]);
        if (!kept) best = fmax(best, pooled[j]);
    }
    assert_int_equal(at, count); /* ascending, within the prompt, none twice */
    free(pooled);
    if (worst < best - rounding * size)
        fail_msg("%s: a token of score %.9g is kept, one of %.9g is not (tolerance %g)", what, worst, best,
                 rounding * size);
}

/* sum_h q_h . k_g(h) in doubles, head by head: what the policy folds into one product per key-value head; and the mean
 * of the heads' softmax. */
static void heads_are_summed_and_averaged(void **state)
{
    enum { N = 90, H = 6, G = 3, D = 16 };
    static float q[H * D], k[G * N * D];
    static double raw[N], weight[N];
    fv_random random = fv_random_new(test_seed(), 7601);
    fv_ctx *ctx = test_ctx("cpu", 3);
    fv_tensor query, keys;
    int32_t keep[N];
    int64_t count;
    (void)state;

    for (int i = 0; i < H * D; i++)
        q[i] = (float)fv_random_normal(&random);
    for (int i = 0; i < G * N * D; i++)
        k[i] = (float)fv_random_normal(&random);
    for (int h = 0; h < H; h++) {
        double s[N], sum = 0;
        for (int j = 0; j < N; j++) {
            s[j] = 0;
            for (int d = 0; d < D; d++)
                s[j] += (double)q[h * D + d] * (double)k[(h / (H / G) * N + j) * D + d];
            raw[j] += s[j];
            sum += exp(s[j] / sqrt(D));
        }
        for (int j = 0; j < N; j++)
            weight[j] += exp(s[j] / sqrt(D)) / sum / H;
    }
    assert_ok(fv_tensor_wrap(&query, q, FV_F32, FV_DIMS(1, H, 1, D)));
    assert_ok(fv_tensor_wrap(&keys, k, FV_F32, FV_DIMS(1, G, N, D)));
    choose(ctx, "gemfilter:budget=31", &query, &keys, keep, &count);
    assert_int_equal(count, 31);
    check_kept("raw", raw, N, 5, keep, count, 2e-6); /* 32 products of f32 */
    choose(ctx, "gemfilter:budget=12,score=softmax,kernel=3", &query, &keys, keep, &count);
    assert_int_equal(count, 12);
    check_kept("softmax", weight, N, 3, keep, count, 2e-6);
    fv_ctx_free(ctx);
}

static void layers_are_chosen_as_written(void **state)
{
    static const int64_t none[32], gemma[18] = {1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0};
    static const int64_t between[11] = {1, 1, 1, 0, 1, 0, 1, 1, 1, 1, 1}, all[5] = {1, 1, 1, 1, 1};
    static const struct {
        const char *spec;
        int64_t layers;
        const int64_t *window;
        int64_t tokens, expected;
    } cases[] = {
        {"gemfilter", 32, none, 1025, 13},       {"gemfilter", 30, none, 1025, 12},
        {"gemfilter", 1, none, 1025, 0},         {"gemfilter", 18, gemma, 1025, 5},
        {"gemfilter", 11, between, 1025, 3}, /* 4 has a window; 3 before 5 */
        {"gemfilter", 5, all, 1025, 2},          {"gemfilter:layer=0", 5, all, 1025, 0},
        {"gemfilter:layer=4", 5, none, 1025, 4}, {"gemfilter", 32, none, 1024, -1},
        {"gemfilter:budget=7", 32, none, 7, -1}, {"gemfilter:budget=7", 32, none, 8, 13},
    };
    (void)state;

    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        fv_cache_plan plan;
        plan_of(cases[c].spec, cases[c].layers, cases[c].window, &plan);
        assert_int_equal(plan.use[0].policy->filter_layer(&plan.use[0], cases[c].tokens), cases[c].expected);
        fv_cache_plan_free(&plan);
    }
}

/* ---- the twin ---------------------------------------------------------------------------------------------------- */

struct capture {
    int64_t layer;
    bool softmax;
    double score[ALL];
};

/* At the filter's layer, once the prompt has passed the layers below: the last token's products. */
static void capture(void *user, tiny_cache *c)
{
    const tiny_model *m = c->m;
    struct capture *to = user;
    int64_t D = m->key_dim, n = c->prompt;

    if (c->l != to->layer) return;
    for (int64_t h = 0; h < m->heads; h++) {
        double s[ALL], sum = 0;
        for (int64_t j = 0; j < n; j++) {
            s[j] = 0;
            for (int64_t d = 0; d < D; d++)
                s[j] += c->q[((n - 1) * m->heads + h) * D + d] *
                        c->k[(j * m->key_heads + h / (m->heads / m->key_heads)) * D + d];
            double logit = s[j] / sqrt((double)D);
            if (strcmp(m->architecture, "gemma2") == 0) logit = 50 * tanh(logit / 50);
            sum += exp(logit);
            if (!to->softmax) to->score[j] += s[j];
            s[j] = logit;
        }
        for (int64_t j = 0; j < n && to->softmax; j++)
            to->score[j] += exp(s[j]) / sum / (double)m->heads;
    }
}

static void check_twin(const struct fixture *f, const char *device, const char *spec, int64_t layer, bool softmax)
{
    static double logits[ALL * VOCABULARY];
    static float got[(ALL - PROMPT + 1) * VOCABULARY];
    struct capture scores = {.layer = layer, .softmax = softmax};
    const tiny_policy policy = {.act = capture, .user = &scores};
    fv_ctx *ctx = test_ctx(device, 2);
    fv_session *session = session_on(f, ctx, spec);
    int32_t ids[ALL], keep[ALL];
    const int32_t *at;
    int64_t count;
    double size = 1;

    tiny_twin_cached(&f->tiny, f->ids, PROMPT, PROMPT, &policy, logits, NULL);
    assert_ok(fv_session_prompt(session, f->ids, PROMPT, got, 1));
    assert_int_equal(session->prompt_tokens, BUDGET); /* a prompt of its own */
    at = fv_session_positions(session, layer, 0, &count);
    assert_int_equal(count, BUDGET);
    memcpy(keep, at, (size_t)count * sizeof *keep);
    check_kept(spec, scores.score, PROMPT, 5, keep, count, tolerance);
    for (int64_t p = PROMPT; p < ALL; p++) {
        assert_ok(fv_session_feed(session, f->ids + p, 1, got + (p - PROMPT + 1) * VOCABULARY, 1));
        keep[count++] = (int32_t)p;
    }
    for (int64_t i = 0; i < count; i++)
        ids[i] = f->ids[keep[i]];
    tiny_twin(&f->tiny, ids, count, logits); /* what was kept, and what followed, as a text of its own */
    for (int64_t i = 0; i < count * VOCABULARY; i++)
        size = fmax(size, fabs(logits[i]));
    for (int64_t i = (BUDGET - 1) * VOCABULARY; i < count * VOCABULARY; i++) {
        double logit = (double)got[i - (BUDGET - 1) * VOCABULARY];
        if (!(fabs(logit - logits[i]) <= tolerance * size))
            fail_msg("%s of %s on %s: row %d, logit %d: expected %.9g, got %.9g (tolerance %g)", spec,
                     f->tiny.architecture, device, (int)(i / VOCABULARY), (int)(i % VOCABULARY), logits[i], logit,
                     tolerance * size);
    }
    /* every layer and head holds them all, or what its own window reaches */
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            int64_t held, from = tiny_sees_all(&f->tiny, l) ? 0 : count - fv_min(count, f->tiny.window);
            at = fv_session_positions(session, l, g, &held);
            assert_int_equal(held, count - from);
            for (int64_t i = 0; i < held; i++)
                assert_int_equal(at[i], keep[from + i]);
        }
    assert_int_equal(fv_session_tokens(session), ALL);
    assert_int_equal(fv_session_length(session), count);
    assert_true(fv_session_renumbers(session) && fv_session_in_steps(session));
    fv_session_free(session);
    fv_ctx_free(ctx);
}

static void both_readings_equal_their_twin(void **state)
{
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128}); /* 1.6, so layer 2 */
    check_twin(&f, "ref", "gemfilter:budget=17,k=f32,v=f32", 2, false);
    check_twin(&f, "cpu", "gemfilter:budget=17,k=f32,v=f32", 2, false);
    check_twin(&f, "cpu", "gemfilter:budget=17,layer=0,k=f32,v=f32", 0, false);
    check_twin(&f, "cpu", "gemfilter:budget=17,layer=3,score=softmax,k=f32,v=f32", 3, true);
    end(&f);
    begin(&f, (tiny_model){.architecture = "gemma3", .layers = 7, .context = 128}); /* 2.8; only layer 5 sees all */
    check_twin(&f, "cpu", "gemfilter:budget=17,k=f32,v=f32", 5, false);
    end(&f);
    begin(&f, (tiny_model){.architecture = "gemma2", .layers = 4, .context = 128, .window = 20}); /* 2; 1 before 3 */
    check_twin(&f, "cpu", "gemfilter:budget=17,score=softmax,k=f32,v=f32", 1, true);
    end(&f);
    begin(&f, (tiny_model){.architecture = "qwen2", .layers = 3, .heads = 6, .key_heads = 3, .context = 128});
    check_twin(&f, "cpu", "gemfilter:budget=17,k=f32,v=f32", 1, false);
    end(&f);
}

/* ---- promises ---------------------------------------------------------------------------------------------------- */

static fv_status note_rows(void *user, int64_t first_row, int64_t rows, const float *logits)
{
    memcpy((float *)user + first_row * VOCABULARY, logits, (size_t)(rows * VOCABULARY) * sizeof *logits);
    return FV_OK;
}

/* Logits of every row, rows, bytes: bit for bit. */
static void room_for_everything_is_the_full_cache(void **state)
{
    static float full[ALL * VOCABULARY], got[ALL * VOCABULARY];
    struct fixture f;
    fv_session *session;
    fv_session_stats a, b;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3", .layers = 7, .context = 128});
    for (int which = 0; which < 2; which++) {
        float *logits = which ? got : full;
        session = session_of(&f, which ? "gemfilter:budget=80" : "full");
        assert_ok(fv_session_stream(session, f.ids, PROMPT, note_rows, logits));
        for (int64_t p = PROMPT; p < ALL - 5; p++)
            assert_ok(fv_session_feed(session, f.ids + p, 1, logits + p * VOCABULARY, 1));
        assert_ok(fv_session_prompt(session, f.ids + ALL - 5, 5, logits + (ALL - 5) * VOCABULARY, 5));
        fv_session_measure(session, which ? &b : &a);
        fv_session_free(session);
    }
    assert_memory_equal(full, got, sizeof full);
    assert_int_equal(a.cache_bytes, b.cache_bytes);
    assert_int_equal(a.peak_cache_bytes, b.peak_cache_bytes);
    assert_true(a.pairs == b.pairs && a.dense_pairs == b.dense_pairs);
    end(&f);
}

static void same_session(const struct fixture *f, const fv_session *a, const fv_session *b)
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            int64_t count, other;
            const int32_t *at = fv_session_positions(a, l, g, &count), *with = fv_session_positions(b, l, g, &other);
            assert_int_equal(count, other);
            assert_memory_equal(at, with, (size_t)count * sizeof *at);
        }
    assert_int_equal(fv_session_tokens(a), fv_session_tokens(b));
    assert_int_equal(fv_session_length(a), fv_session_length(b));
}

static void threads_change_nothing(void **state)
{
    static float one[VOCABULARY], more[VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128});
    fv_ctx *few = test_ctx("cpu", 1), *many = test_ctx("cpu", 3);
    fv_session *a = session_on(&f, few, "gemfilter:budget=17"), *b = session_on(&f, many, "gemfilter:budget=17");
    assert_ok(fv_session_prompt(a, f.ids, PROMPT, one, 1));
    assert_ok(fv_session_prompt(b, f.ids, PROMPT, more, 1));
    same_session(&f, a, b);
    assert_memory_equal(one, more, sizeof one);
    fv_session_free(a);
    fv_session_free(b);
    fv_ctx_free(few);
    fv_ctx_free(many);
    end(&f);
}

/* A second question is judged with everything before it: as if all had been one prompt. */
static void later_prompts_are_judged_with_what_came_before(void **state)
{
    static float whole[VOCABULARY], got[VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128});
    for (int64_t first = 10; first <= 40; first += 30) { /* less than the budget, and more */
        fv_session *a = session_of(&f, "gemfilter:budget=17"), *b = session_of(&f, "gemfilter:budget=17");
        assert_ok(fv_session_prompt(a, f.ids, PROMPT, whole, 1));
        assert_ok(fv_session_prompt(b, f.ids, first, NULL, 0));
        assert_ok(fv_session_feed(b, f.ids + first, 6, got, 1));
        assert_int_equal(fv_session_tokens(b), first + 6);
        assert_ok(fv_session_prompt(b, f.ids + first + 6, PROMPT - first - 6, got, 1));
        same_session(&f, a, b);
        assert_memory_equal(whole, got, sizeof whole);
        assert_ok(fv_session_feed(a, f.ids + PROMPT, 7, whole, 1));
        assert_ok(fv_session_feed(b, f.ids + PROMPT, 7, got, 1));
        same_session(&f, a, b);
        assert_memory_equal(whole, got, sizeof whole);
        fv_session_free(a);
        fv_session_free(b);
    }
    end(&f);
}

/* Rows of the kept tokens remain; at most one layer held the whole prompt; pairs are counted against the whole text. */
static void bytes_and_pairs_are_counted(void **state)
{
    struct fixture f;
    fv_session_stats full, got;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128});
    fv_session *a = session_of(&f, "full"), *b = session_of(&f, "gemfilter:budget=17");
    for (int which = 0; which < 2; which++) {
        fv_session *session = which ? b : a;
        assert_ok(fv_session_prompt(session, f.ids, 50, NULL, 0));
        assert_ok(fv_session_feed(session, f.ids + 50, 3, NULL, 0));
        assert_ok(fv_session_prompt(session, f.ids + 53, 8, NULL, 0));
        assert_ok(fv_session_feed(session, f.ids + PROMPT, 4, NULL, 0));
        fv_session_measure(session, which ? &got : &full);
    }
    size_t row = full.cache_bytes / (4 * 65);
    assert_int_equal(got.cache_bytes, row * 4 * 21);
    assert_int_equal(got.peak_cache_bytes, row * (4 * 21 > 61 ? 4 * 21 : 61));
    assert_true(got.dense_pairs == full.dense_pairs);
    /* 2 of 4 layers read each text whole, 4 what was kept, and the steps behind it: 18 .. 20, 18 .. 21 */
    double H = (double)f.tiny.heads, first = 2 * 50 * 51 / 2 + 4 * 17 * 18 / 2 + 4 * (18 + 19 + 20);
    assert_true(got.pairs == H * (first + 2 * 61 * 62 / 2 + 4 * 17 * 18 / 2 + 4 * (18 + 19 + 20 + 21)));
    fv_session_clear(b);
    assert_int_equal(fv_session_tokens(b), 0);
    assert_ok(fv_session_feed(b, f.ids, 5, NULL, 0));
    assert_int_equal(fv_session_tokens(b), 5);
    fv_session_free(a);
    fv_session_free(b);
    end(&f);
}

/* ---- what cannot be given ---------------------------------------------------------------------------------------- */

static void what_is_left_out_has_no_logits(void **state)
{
    static float logits[ALL * VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128});
    fv_session *session = session_of(&f, "gemfilter:budget=17");
    assert_fails(fv_session_stream(session, f.ids, PROMPT, note_rows, logits), FV_E_USAGE,
                 "gemfilter: leaves some of the 61 tokens out");
    assert_fails(fv_session_prompt(session, f.ids, PROMPT, logits, 2), FV_E_USAGE, "leaves some of the 61 tokens out");
    assert_int_equal(fv_session_tokens(session), 0);
    assert_ok(fv_session_stream(session, f.ids, 17, note_rows, logits));
    assert_fails(fv_session_prompt(session, f.ids, ALL - 16, logits, 1), FV_E_SHAPE, "17 tokens came before");
    assert_fails(fv_session_prompt(session, f.ids, ALL + 1, NULL, 0), FV_E_SHAPE, "do not fit");
    assert_fails(fv_session_prompt(session, (const int32_t[]){1, -1}, 2, NULL, 0), FV_E_ARGUMENT, "token 1");
    assert_fails(fv_session_prompt(session, f.ids, -1, NULL, 0), FV_E_ARGUMENT, "got -1");
    assert_int_equal(fv_session_tokens(session), 17);
    assert_ok(fv_session_prompt(session, f.ids, ALL - 17, logits, 1)); /* to the end of the context */
    assert_int_equal(fv_session_tokens(session), ALL);
    fv_session_free(session);
    end(&f);
}

struct stopper {
    fv_ctx *ctx;
    int calls, at;
};

static void stop_at(void *user, const char *what, double fraction)
{
    struct stopper *s = user;

    (void)what;
    (void)fraction;
    if (++s->calls == s->at) fv_ctx_interrupt(s->ctx);
}

/* A first prompt that is stopped, wherever, leaves an empty session; a later one, a session that must be cleared. */
static void interrupts_leave_nothing_or_say_so(void **state)
{
    static float whole[VOCABULARY], got[VOCABULARY];
    struct fixture f;
    int stopped = 0;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 4, .context = 128});
    fv_session *fresh = session_of(&f, "gemfilter:budget=17");
    assert_ok(fv_session_prompt(fresh, f.ids, PROMPT, whole, 1));
    for (int later = 0; later < 2; later++)
        for (int at = 1; at < 12; at++) {
            struct stopper stopper = {.at = later ? 0 : at};
            fv_ctx *ctx;
            assert_ok(fv_ctx_new(&(fv_ctx_options){.progress = stop_at, .progress_user = &stopper}, &ctx));
            stopper.ctx = ctx;
            fv_session *session = session_on(&f, ctx, "gemfilter:budget=17");
            if (later) assert_ok(fv_session_prompt(session, f.ids, 30, NULL, 0));
            stopper.calls = 0;
            stopper.at = at;
            fv_status status = fv_session_prompt(session, f.ids + (later ? 30 : 0), PROMPT - (later ? 30 : 0), got, 1);
            fv_ctx_clear_interrupt(ctx);
            stopped += status == FV_E_INTERRUPTED;
            if (status == FV_E_INTERRUPTED) {
                assert_int_equal(fv_session_tokens(session), 0);
                assert_int_equal(session->row_bytes, 0);
                if (later) assert_fails(fv_session_feed(session, f.ids, 1, NULL, 0), FV_E_ARGUMENT, "half way");
                if (later) assert_fails(fv_session_prompt(session, f.ids, PROMPT, NULL, 0), FV_E_ARGUMENT, "half way");
                if (later) fv_session_clear(session);
                stopper.at = 0;
                status = fv_session_prompt(session, f.ids, PROMPT, got, 1);
            }
            assert_ok(status);
            same_session(&f, fresh, session);
            assert_memory_equal(whole, got, sizeof whole);
            fv_session_free(session);
            fv_ctx_free(ctx);
        }
    assert_true(stopped > 4); /* in both readings, and the checks between layers and chunks */
    fv_session_free(fresh);
    end(&f);
}

static void failing_memory_is_an_error(void **state)
{
    struct fixture f;
    bool failed = true;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3", .layers = 7, .context = 128});
    for (int64_t nth = 1; failed && nth < 400; nth++) {
        fv_ctx *ctx = test_ctx("cpu", 2);
        fv_session *session = NULL;
        fv_session_options options = {.cache = "gemfilter:budget=17,score=softmax", .context = ALL};
        test_alloc_fail(nth);
        fv_status status = fv_session_new(ctx, f.model, &options, &session);
        if (status == FV_OK) status = fv_session_prompt(session, f.ids, 40, NULL, 0);
        if (status == FV_OK) status = fv_session_feed(session, f.ids + 40, 1, NULL, 0);
        if (status == FV_OK) status = fv_session_prompt(session, f.ids + 41, 20, NULL, 0);
        test_alloc_fail(0);
        failed = status != FV_OK;
        if (failed) assert_int_equal(status, FV_E_MEMORY);
        fv_session_free(session);
        fv_ctx_free(ctx);
    }
    assert_false(failed);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(scores_are_pooled_as_in_the_sheet),
        cmocka_unit_test(heads_are_summed_and_averaged),
        cmocka_unit_test(layers_are_chosen_as_written),
        cmocka_unit_test(both_readings_equal_their_twin),
        cmocka_unit_test(room_for_everything_is_the_full_cache),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(later_prompts_are_judged_with_what_came_before),
        cmocka_unit_test(bytes_and_pairs_are_counted),
        cmocka_unit_test(what_is_left_out_has_no_logits),
        cmocka_unit_test(interrupts_leave_nothing_or_say_so),
        cmocka_unit_test(failing_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
