/* Landmark attention's cache: a naive twin of what is inserted, retrieved, where it stands and how it is read; the
 * mechanism where everything is retrieved; pieces of prompts, rows kept, bad input. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "models/session.h"
#include "support/tiny_model.h"

enum { PROMPT = 45, ALL = 54, ROWS = 2 * ALL, VOCABULARY = 50, TOKEN = 7, BLOCKS = 64 };

/* Of the largest number: f32 sums against doubles, through a few layers. */
static const double tolerance = 7e-5;
/* Closer weights may fall either way in f32: they are off by as much, relative to themselves, as a logit is. */
static const double clear_choice = 3e-5;

struct fixture {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    int32_t ids[ALL];
};

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 7900;
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

/* ---- the twin --------------------------------------------------------------------------------------------------- */

enum select { EACH, HEADS, TOKENS };

struct twin {
    int64_t period, top, memory, chunk;
    enum select select;
    bool stingy;
    int64_t layer, row, prompt; /* what `logit` is of; prompt: tokens of the text */
    double logit[8][ROWS];
    double margin;
};

static int64_t rows_of(int64_t period, int64_t tokens)
{
    return tokens + tokens / (period - 1);
}

/* The text's token that a row is, or stands behind. */
static int64_t token_of(int64_t period, int64_t row)
{
    return row - (row + 1) / period;
}

/* The first row that is read together with row p. */
static int64_t piece_of(const struct twin *t, int64_t p)
{
    int64_t token = token_of(t->period, p);

    return token < t->prompt ? rows_of(t->period, token / t->chunk * t->chunk) : p;
}

/* q.k of row p and row j, as if j stood at `at`. */
static double product(const tiny_cache *c, int64_t h, int64_t p, int64_t j, int64_t at)
{
    int64_t D = c->m->key_dim, g = h / (c->m->heads / c->m->key_heads);
    double key[256], sum = 0;

    for (int64_t d = 0; d < D; d++)
        key[d] = c->k[(j * c->m->key_heads + g) * D + d];
    if (at != j) tiny_rope(c->m, c->l, at - j, key);
    for (int64_t d = 0; d < D; d++)
        sum += c->q[(p * c->m->heads + h) * D + d] * key[d];
    return sum / sqrt((double)D);
}

/* What row p of head h gives the landmarks of blocks first .. end-1, as weights. */
static void score(const struct twin *t, const tiny_cache *c, int64_t h, int64_t p, int64_t first, int64_t end,
                  double *weight)
{
    int64_t most = t->top < end - first ? t->top : end - first;
    double sum = 0;

    for (int64_t b = first; b < end; b++) {
        int64_t at = t->stingy && b < end - most ? end - most - 1 : b;
        weight[b] = exp(product(c, h, p, (b + 1) * t->period - 1, (at + 1) * t->period - 1));
        sum += weight[b];
    }
    for (int64_t b = first; b < end; b++)
        weight[b] /= sum;
}

/* Marks the blocks that row p of head h retrieves. */
static void choose(struct twin *t, const tiny_cache *c, int64_t h, int64_t first, int64_t end, bool *chosen)
{
    double weight[BLOCKS], all[BLOCKS] = {0}, least = INFINITY, best = -INFINITY;
    int64_t from = t->select == TOKENS ? piece_of(t, c->p) : c->p, to = c->p + 1;

    while (t->select == TOKENS && to < c->count && token_of(t->period, to) < t->prompt && piece_of(t, to) == from)
        to++;
    for (int64_t p = from; p < to; p++)
        for (int64_t head = 0; head < c->m->heads; head++) {
            if (head != h && t->select != HEADS) continue;
            score(t, c, head, p, first, end, weight);
            for (int64_t b = first; b < end; b++)
                all[b] = fmax(all[b], weight[b]);
        }
    for (int64_t b = first; b < end; b++) {
        int64_t better = 0;
        for (int64_t other = first; other < end; other++)
            better += all[other] > all[b] || (all[other] == all[b] && other < b);
        chosen[b] = better < t->top;
        if (chosen[b]) least = fmin(least, all[b]);
        if (!chosen[b]) best = fmax(best, all[b]);
    }
    if (best > -INFINITY && least < INFINITY) t->margin = fmin(t->margin, (least - best) / least);
}

/* Logits of one softmax over all tokens that weighs them as the softmaxes of their blocks and the gates do. */
static void weigh(struct twin *t, const tiny_cache *c, int64_t h)
{
    int64_t P = t->period, end = piece_of(t, c->p) / P, first = t->memory && end > t->memory ? end - t->memory : 0;
    int64_t most = t->top < end - first ? t->top : end - first, nth = 0;
    bool chosen[BLOCKS] = {false};
    double *logit = t->logit[h];

    for (int64_t j = 0; j < c->count; j++)
        logit[j] = -INFINITY;
    choose(t, c, h, first, end, chosen);
    for (int64_t b = first; (b + 1) * P - 1 < c->p; b++) {
        int64_t place = b;
        double sum = 0;
        if (b < end && !chosen[b]) continue;
        if (b < end && t->stingy) place = end - most - 1 + nth + (b >= end - most);
        if (b < end) nth++;
        for (int64_t r = 0; r < P - 1; r++) {
            logit[b * P + r] = product(c, h, c->p, b * P + r, place * P + r);
            sum += exp(logit[b * P + r]);
        }
        for (int64_t r = 0; r < P - 1; r++)
            logit[b * P + r] += product(c, h, c->p, (b + 1) * P - 1, (place + 1) * P - 1) - log(sum);
    }
    for (int64_t j = c->p / P * P; j <= c->p; j++)
        if ((j + 1) % P != 0) logit[j] = product(c, h, c->p, j, j);
}

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    (void)user, (void)c, (void)g, (void)j;
    return true;
}

static double logit(void *user, const tiny_cache *c, int64_t h, int64_t j)
{
    struct twin *t = user;

    if (t->layer != c->l || t->row != c->p)
        for (int64_t head = 0; head < c->m->heads; head++)
            weigh(t, c, head);
    t->layer = c->l;
    t->row = c->p;
    return t->logit[h][j];
}

/* The text with its landmarks; how many rows that is. */
static int64_t with_landmarks(const struct fixture *f, int64_t period, int32_t *ids)
{
    int64_t rows = 0;

    for (int64_t i = 0; i < ALL; i++) {
        ids[rows++] = f->ids[i];
        if ((i + 1) % (period - 1) == 0) ids[rows++] = TOKEN;
    }
    return rows;
}

static void run_twin(const struct fixture *f, struct twin *t, double *logits)
{
    static double all[ROWS * VOCABULARY];
    const tiny_policy policy = {.sees = sees, .logit = logit, .user = t};
    int32_t ids[ROWS];
    int64_t rows = with_landmarks(f, t->period, ids), token = 0;

    t->margin = INFINITY;
    t->layer = -1;
    t->prompt = PROMPT;
    tiny_twin_cached(&f->tiny, ids, rows_of(t->period, PROMPT), rows, &policy, all, NULL);
    for (int64_t r = 0; r < rows; r++)
        if ((r + 1) % t->period != 0)
            memcpy(logits + token++ * VOCABULARY, all + r * VOCABULARY, VOCABULARY * sizeof *logits);
}

/* ---- the library ------------------------------------------------------------------------------------------------ */

static fv_session *session_of(const struct fixture *f, fv_ctx *ctx, const char *cache, const char *attention,
                              int64_t context)
{
    fv_session_options options = {
        .cache = cache, .attention = attention, .precision = FV_PRECISION_F32, .chunk = 16, .context = context};
    fv_session *session;

    if (fv_session_new(ctx, f->model, &options, &session) != FV_OK) fail_msg("%s: %s", cache, fv_error());
    return session;
}

static fv_status take(void *user, int64_t first, int64_t rows, const float *logits)
{
    memcpy((float *)user + first * VOCABULARY, logits, (size_t)(rows * VOCABULARY) * sizeof *logits);
    return FV_OK;
}

/* Logits of every token of a prompt and the steps behind it. */
static void run(const struct fixture *f, const char *device, int threads, const char *spec, float *logits)
{
    fv_ctx *ctx = test_ctx(device, threads);
    fv_session *session = session_of(f, ctx, spec, NULL, ALL);

    assert_ok(fv_session_stream(session, f->ids, PROMPT, take, logits));
    for (int64_t i = PROMPT; i < ALL; i++)
        assert_ok(fv_session_feed(session, f->ids + i, 1, logits + i * VOCABULARY, 1));
    assert_int_equal(fv_session_tokens(session), ALL);
    fv_session_free(session);
    fv_ctx_free(ctx);
}

static void close_to(const char *what, const struct fixture *f, const float *got, const double *expected)
{
    double size = 1;

    for (int64_t i = 0; i < ALL * VOCABULARY; i++)
        size = fmax(size, fabs(expected[i]));
    for (int64_t i = 0; i < ALL * VOCABULARY; i++)
        if (!(fabs((double)got[i] - expected[i]) <= tolerance * size))
            fail_msg("%s of %s: token %d, logit %d: expected %.9g, got %.9g (tolerance %g)", what, f->tiny.architecture,
                     (int)(i / VOCABULARY), (int)(i % VOCABULARY), expected[i], (double)got[i], tolerance * size);
}

static const tiny_model models[] = {
    {.architecture = "llama", .layers = 2, .context = 128},
    {.architecture = "gemma3", .layers = 7, .context = 128},
    {.architecture = "qwen2", .layers = 1, .heads = 6, .key_heads = 3, .context = 128},
};

/* Landmarks are one token, so that their keys are equal in a first layer that is acted on: where they are scored at one
 * place, they are equally liked there, but for the rounding of products.  Gemma's first layers have windows. */
static void reads_what_its_twin_reads(void **state)
{
    static const struct {
        const char *spec;
        struct twin twin;
    } cases[] = {
        {"period=5,top=2,chunk=13", {.period = 5, .top = 2, .chunk = 13, .stingy = true}},
        {"period=5,top=2,chunk=13,positions=true", {.period = 5, .top = 2, .chunk = 13}},
        {"period=4,top=3,chunk=20,memory=5", {.period = 4, .top = 3, .memory = 5, .chunk = 20, .stingy = true}},
        {"period=6,top=3,chunk=10,select=max_over_heads,positions=true",
         {.period = 6, .top = 3, .chunk = 10, .select = HEADS}},
        {"period=6,top=3,chunk=10,select=max_over_heads",
         {.period = 6, .top = 3, .chunk = 10, .select = HEADS, .stingy = true}},
        {"period=6,top=2,chunk=11,select=max_over_tokens,memory=3,positions=true",
         {.period = 6, .top = 2, .memory = 3, .chunk = 11, .select = TOKENS}},
        {"period=6,top=2,chunk=11,select=max_over_tokens",
         {.period = 6, .top = 2, .chunk = 11, .select = TOKENS, .stingy = true}},
        {"period=3,top=4,chunk=45,positions=true", {.period = 3, .top = 4, .chunk = 45}},
        {"period=7,top=0,chunk=9", {.period = 7, .top = 0, .chunk = 9, .stingy = true}},
        {"period=7,top=99,chunk=250", {.period = 7, .top = 99, .chunk = 250, .stingy = true}},
    };
    static double expected[ALL * VOCABULARY];
    static float got[ALL * VOCABULARY];
    (void)state;

    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (size_t n = 0; n < sizeof cases / sizeof *cases; n++) {
            struct fixture f;
            struct twin twin = cases[n].twin;
            char spec[200];
            if (twin.stingy && twin.top > 0 && twin.top < 9 && strcmp(models[m].architecture, "gemma3") != 0) continue;
            begin(&f, models[m]);
            run_twin(&f, &twin, expected);
            for (int drawn = 1; twin.margin < clear_choice; drawn++) {
                if (drawn == 100)
                    fail_msg("%s of %s: 100 texts without a clear choice", cases[n].spec, models[m].architecture);
                end(&f);
                begin(&f, models[m]);
                run_twin(&f, &twin, expected);
            }
            snprintf(spec, sizeof spec, "landmark_cache:%s,token=%d,k=f32,v=f32", cases[n].spec, TOKEN);
            run(&f, "cpu", 2, spec, got);
            close_to(spec, &f, got, expected);
            run(&f, "ref", 1, spec, got);
            close_to(spec, &f, got, expected);
            end(&f);
        }
}

/* With everything retrieved at its own place it is the mechanism over the text with its landmarks; with soft-caps too.
 */
static void retrieving_all_is_the_mechanism(void **state)
{
    static const tiny_model all[] = {
        {.architecture = "llama", .layers = 3, .context = 256},
        {.architecture = "gemma2", .layers = 4, .context = 256, .window = 20},
    };
    static double expected[ALL * VOCABULARY];
    static float logits[ROWS * VOCABULARY], got[ALL * VOCABULARY];
    (void)state;

    for (size_t m = 0; m < sizeof all / sizeof *all; m++) {
        struct fixture f;
        int32_t ids[ROWS];
        int64_t rows, token = 0;
        begin(&f, all[m]);
        rows = with_landmarks(&f, 6, ids);
        fv_session *session = session_of(&f, f.ctx, "full:k=f32,v=f32", "landmark:period=6", ROWS);
        assert_ok(fv_session_stream(session, ids, rows, take, logits));
        fv_session_free(session);
        for (int64_t r = 0; r < rows; r++)
            for (int v = 0; (r + 1) % 6 != 0 && v < VOCABULARY; v++)
                expected[token++] = logits[r * VOCABULARY + v];
        run(&f, "cpu", 2, "landmark_cache:period=6,top=20,positions=true,chunk=17,token=7,k=f32,v=f32", got);
        close_to("everything retrieved", &f, got, expected);
        end(&f);
    }
}

static void pieces_and_threads_change_nothing(void **state)
{
    static const char *const specs[] = {
        "landmark_cache:period=5,top=2,chunk=10,token=7",
        "landmark_cache:period=5,top=2,chunk=10,token=7,select=max_over_tokens,k=q8_0,v=q8_0",
    };
    static float one[ALL * VOCABULARY], more[ALL * VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 3, .key_dim = 32, .value_dim = 32, .context = 128});
    for (int n = 0; n < 2; n++) {
        run(&f, "cpu", 1, specs[n], one);
        run(&f, "cpu", 3, specs[n], more);
        assert_memory_equal(one, more, sizeof one);
        fv_session *session = session_of(&f, f.ctx, specs[n], NULL, ALL);
        for (int64_t at = 0; at < PROMPT; at += 20) /* ends of pieces are ends of chunks */
            assert_ok(fv_session_prompt(session, f.ids + at, fv_min(20, PROMPT - at), more, 1));
        for (int v = 0; v < VOCABULARY; v++)
            assert_true(fabsf(more[v] - one[(PROMPT - 1) * VOCABULARY + v]) <= 1e-5f * fmaxf(1, fabsf(more[v])));
        fv_session_free(session);
    }
    end(&f);
}

/* Positions are those of the text; blocks that leave the memory go, those of the prompt's last chunk only after it. */
static void keeps_the_newest_blocks(void **state)
{
    struct fixture f;
    fv_session *session;
    const int32_t *at;
    int64_t count;
    (void)state;

    begin(&f, models[0]);
    session = session_of(&f, f.ctx, "landmark_cache:period=5,top=2,chunk=10,token=7,memory=3", NULL, ALL);
    assert_ok(fv_session_prompt(session, f.ids, PROMPT, NULL, 0)); /* 45 tokens: 11 blocks of 4, and one */
    assert_int_equal(fv_session_tokens(session), PROMPT);
    assert_int_equal(fv_session_length(session), 56);
    at = fv_session_positions(session, 0, 0, &count);
    assert_int_equal(count, 13);
    for (int64_t i = 0; i < count; i++)
        assert_int_equal(at[i], 32 + i);
    for (int64_t i = PROMPT; i < ALL; i++) { /* a block is complete behind every fourth token */
        assert_ok(fv_session_feed(session, f.ids + i, 1, NULL, 0));
        at = fv_session_positions(session, 1, 1, &count);
        assert_int_equal(at[0], ((i + 1) / 4 - 3) * 4);
        assert_int_equal(count, i + 1 - at[0]);
        at = fv_session_selected(session, 1, 1, &count);
        assert_true(count > 0 && at[count - 1] == i);
    }
    assert_fails(fv_session_feed(session, f.ids, 1, NULL, 0), FV_E_SHAPE, "holds 0 more");
    fv_session_clear(session);
    assert_int_equal(fv_session_tokens(session), 0);
    assert_ok(fv_session_prompt(session, f.ids, ALL, NULL, 0));
    fv_session_free(session);
    end(&f);
}

static void bad_specs_are_refused_in_words(void **state)
{
    static const struct {
        const char *spec, *words;
    } bad[] = {
        {"landmark_cache", "no token '<landmark>'"},
        {"landmark_cache:token=50", "an id of 0 to 49, got 50"},
        {"landmark_cache:token=7,period=1", "expected 2 to"},
        {"landmark_cache:token=7,top=-1", "expected 0 to"},
        {"landmark_cache:token=7,chunk=0", "expected 1 to"},
        {"landmark_cache:token=7,memory=-1", "expected 0 to"},
        {"landmark_cache:token=7,select=max", "per_token_and_head"},
        {"landmark_cache:token=7,positions=old", "stingy or true"},
        {"0/landmark_cache:token=7", "cannot be for some layers"},
    };
    struct fixture f;
    fv_session *session;
    (void)state;

    begin(&f, models[0]);
    for (size_t n = 0; n < sizeof bad / sizeof *bad; n++)
        assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.cache = bad[n].spec}, &session), FV_E_USAGE,
                     bad[n].words);
    assert_fails(fv_session_new(f.ctx, f.model,
                                &(fv_session_options){.cache = "landmark_cache:token=7", .attention = "moba:block=8"},
                                &session),
                 FV_E_USAGE, "acts on the model's own attention");
    end(&f);
}

static void failing_memory_is_an_error(void **state)
{
    struct fixture f;
    bool failed = true;
    (void)state;

    begin(&f, models[1]);
    for (int64_t nth = 1; failed && nth < 600; nth++) {
        fv_session *session = NULL;
        test_alloc_fail(nth);
        fv_status status = fv_session_new(
            f.ctx, f.model, &(fv_session_options){.cache = "landmark_cache:period=5,top=2,chunk=10,token=7,memory=3"},
            &session);
        if (status == FV_OK) status = fv_session_prompt(session, f.ids, PROMPT, NULL, 0);
        if (status == FV_OK) status = fv_session_feed(session, f.ids + PROMPT, 1, NULL, 0);
        test_alloc_fail(0);
        failed = status != FV_OK;
        if (failed) assert_int_equal(status, FV_E_MEMORY);
        fv_session_free(session);
    }
    assert_false(failed);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_what_its_twin_reads),         cmocka_unit_test(retrieving_all_is_the_mechanism),
        cmocka_unit_test(pieces_and_threads_change_nothing), cmocka_unit_test(keeps_the_newest_blocks),
        cmocka_unit_test(bad_specs_are_refused_in_words),    cmocka_unit_test(failing_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
