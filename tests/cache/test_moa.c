/* Spans of a plan file: the sheet's numbers, a naive twin, chunks, requests one after the other, hostile files. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/policy.h"
#include "models/session.h"
#include "support/tiny_model.h"

enum { PROMPT = 300, ALL = 360, VOCABULARY = 50, MOST_LAYERS = 8, LONG = 8192 };

/* Of the largest logit: f32 sums against doubles, through a few layers. */
static const double tolerance = 7e-5;

struct fixture {
    tiny_model tiny;
    fv_model *model;
    char plan[64], spec[160];
    int32_t *ids; /* [LONG] */
};

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 7500;
    fv_random random = fv_random_new(test_seed(), ++stream);
    const char *path;

    f->tiny = tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    strcpy(f->plan, "/tmp/fovea-moa-XXXXXX");
    int file = mkstemp(f->plan);
    assert_true(file >= 0);
    close(file);
    f->ids = malloc(LONG * sizeof *f->ids);
    for (int i = 0; i < LONG; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    unlink(f->plan);
    free(f->ids);
    fv_model_close(f->model);
    tiny_free(&f->tiny);
}

static void write_text(const struct fixture *f, const char *text)
{
    FILE *file = fopen(f->plan, "w");

    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

/* A span for layer l and head h of `columns`: some grow with the request, some do not, one is less than the floor. */
static double alpha_of(int64_t l, int64_t h)
{
    static const double alphas[] = {150, -1000, 20.5, 128, -64};

    return alphas[(l * 3 + h) % 5];
}

static double beta_of(int64_t l, int64_t h)
{
    static const double betas[] = {0, .9, .5, .125, 1};

    return betas[(l * 3 + h) % 5];
}

static void write_array(FILE *file, const char *key, const tiny_model *m, int64_t columns,
                        double (*of)(int64_t l, int64_t h))
{
    fprintf(file, "\"%s\": [", key);
    for (int64_t l = 0; l < m->layers; l++)
        for (int64_t h = 0; h < columns; h++)
            fprintf(file, "%s%.17g%s", h ? "," : l ? ",[" : "[", of(l, h), h == columns - 1 ? "]" : "");
    fprintf(file, "]");
}

static void write_plan(const struct fixture *f, int64_t columns)
{
    FILE *file = fopen(f->plan, "w");

    assert_non_null(file);
    fprintf(file, "{\"version\": 3, ");
    write_array(file, "alphas", &f->tiny, columns, alpha_of);
    fprintf(file, ", ");
    write_array(file, "betas", &f->tiny, columns, beta_of);
    fprintf(file, "}\n");
    assert_int_equal(fclose(file), 0);
}

static const char *spec_of(struct fixture *f, const char *more)
{
    snprintf(f->spec, sizeof f->spec, "moa:plan=%s,k=f32,v=f32%s", f->plan, more);
    return f->spec;
}

/* ---- the twin ---------------------------------------------------------------------------------------------------- */

struct twin {
    int64_t columns, sink, max_new;
};

/* Of a key-value head: the widest of its group. */
static int64_t span(const struct twin *t, const tiny_cache *c, int64_t g)
{
    int64_t most = 0, group = t->columns == c->m->key_heads ? 1 : c->m->heads / c->m->key_heads;
    int64_t N = c->prompt + t->max_new;

    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        double wanted = trunc(alpha_of(c->l, h) + beta_of(c->l, h) * (double)N);
        int64_t S = wanted < (double)N ? (int64_t)wanted : N;
        S = S < 128 ? 128 : S;
        S = 64 * (int64_t)ceil((double)S / 64);
        most = S > most ? S : most;
    }
    return most;
}

static bool stays(const struct twin *t, const tiny_cache *c, int64_t g, int64_t j)
{
    int64_t S = span(t, c, g), s = t->sink < S ? t->sink : S;

    return j < s || c->p - j < S - s;
}

static bool sees(void *user, const tiny_cache *c, int64_t g, int64_t j)
{
    const struct twin *t = user;
    int64_t S = span(t, c, g), s = t->sink < S ? t->sink : S;

    if (c->p >= c->prompt) return stays(t, c, g, j);
    if (S >= c->prompt + t->max_new) return true;
    return j / 64 < s / 64 || c->p / 64 - j / 64 < (S - s) / 64;
}

static void after(void *user, tiny_cache *c)
{
    for (int64_t g = 0; g < c->m->key_heads; g++)
        for (int64_t j = 0; j <= c->p; j++)
            if (!stays(user, c, g, j)) tiny_held(c, c->l, g)[j] = false;
}

struct outcome {
    float logits[(ALL - PROMPT + 1) * VOCABULARY]; /* of the prompt's last token, and of steps */
    bool held[MOST_LAYERS * 4 * ALL];
    fv_session_stats stats;
};

static void note_held(const struct fixture *f, const fv_session *session, bool *held)
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            int64_t count;
            const int32_t *at = fv_session_positions(session, l, g, &count);
            for (int64_t i = 0; i < count; i++)
                held[(l * f->tiny.key_heads + g) * ALL + at[i]] = true;
        }
}

static void run(const struct fixture *f, const char *device, int threads, const char *spec, int64_t chunk,
                struct outcome *out)
{
    fv_ctx *ctx = test_ctx(device, threads);
    fv_session_options options = {.cache = spec, .chunk = chunk, .precision = FV_PRECISION_F32, .context = ALL};
    fv_session *session;

    memset(out, 0, sizeof *out);
    assert_ok(fv_session_new(ctx, f->model, &options, &session));
    assert_ok(fv_session_prompt(session, f->ids, PROMPT, out->logits, 1));
    for (int64_t p = PROMPT; p < ALL; p++)
        assert_ok(fv_session_feed(session, f->ids + p, 1, out->logits + (p - PROMPT + 1) * VOCABULARY, 1));
    note_held(f, session, out->held);
    fv_session_measure(session, &out->stats);
    fv_session_free(session);
    fv_ctx_free(ctx);
}

static void check_twin(struct fixture *f, struct twin twin, const char *device, int64_t chunk)
{
    static double expected[ALL * VOCABULARY];
    static bool held[MOST_LAYERS * 4 * ALL];
    static struct outcome got;
    const tiny_policy policy = {.sees = sees, .after = after, .user = &twin};
    int64_t rows = 0;
    double size = 1;
    char more[64];

    snprintf(more, sizeof more, ",sink=%d,max_new=%d", (int)twin.sink, (int)twin.max_new);
    write_plan(f, twin.columns);
    tiny_twin_cached(&f->tiny, f->ids, PROMPT, ALL, &policy, expected, held);
    run(f, device, 2, spec_of(f, more), chunk, &got);
    for (int64_t i = 0; i < f->tiny.layers * f->tiny.key_heads * ALL; i++) {
        rows += held[i];
        if (held[i] != got.held[i])
            fail_msg("%s: layer %d, head %d, position %d: expected %s, got %s", f->spec,
                     (int)(i / ALL / f->tiny.key_heads), (int)(i / ALL % f->tiny.key_heads), (int)(i % ALL),
                     held[i] ? "kept" : "gone", got.held[i] ? "kept" : "gone");
    }
    assert_true(rows < f->tiny.layers * f->tiny.key_heads * ALL); /* the plan bites */
    for (int64_t i = 0; i < ALL * VOCABULARY; i++)
        size = fmax(size, fabs(expected[i]));
    for (int64_t i = (PROMPT - 1) * VOCABULARY; i < ALL * VOCABULARY; i++) {
        double logit = (double)got.logits[i - (PROMPT - 1) * VOCABULARY];
        if (!(fabs(logit - expected[i]) <= tolerance * size))
            fail_msg("%s of %s on %s in chunks of %d: token %d, logit %d: expected %.9g, got %.9g (tolerance %g)",
                     f->spec, f->tiny.architecture, device, (int)chunk, (int)(i / VOCABULARY), (int)(i % VOCABULARY),
                     expected[i], logit, tolerance * size);
    }
}

static void spans_equal_their_twin(void **state)
{
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 3, .context = 512});
    check_twin(&f, (struct twin){f.tiny.key_heads, 64, 20}, "ref", 0);
    check_twin(&f, (struct twin){f.tiny.key_heads, 64, 20}, "cpu", 0);
    check_twin(&f, (struct twin){f.tiny.heads, 64, 20}, "cpu", 0);
    check_twin(&f, (struct twin){f.tiny.heads, 0, 0}, "cpu", 47);
    check_twin(&f, (struct twin){f.tiny.key_heads, 100, 1}, "cpu", 64); /* windows of 28 and more: no whole block */
    check_twin(&f, (struct twin){f.tiny.key_heads, 200, 1}, "cpu", 33); /* spans that are all sinks */
    check_twin(&f, (struct twin){f.tiny.key_heads, 7, 100}, "cpu", 1);
    end(&f);
    /* a row for every layer, also those that have a window of their own and are left alone */
    begin(&f, (tiny_model){.architecture = "gemma3", .layers = 7, .context = 512});
    check_twin(&f, (struct twin){f.tiny.key_heads, 64, 20}, "cpu", 0);
    end(&f);
}

/* ---- promises ---------------------------------------------------------------------------------------------------- */

static void same(const char *what, const struct outcome *a, const struct outcome *b)
{
    if (memcmp(a->held, b->held, sizeof a->held) != 0) fail_msg("%s: expected the same rows", what);
    for (size_t i = 0; i < sizeof a->logits / sizeof *a->logits; i++)
        if (memcmp(&a->logits[i], &b->logits[i], sizeof a->logits[i]) != 0)
            fail_msg("%s: logit %d: expected the same bits, got %.9g and %.9g", what, (int)i, (double)a->logits[i],
                     (double)b->logits[i]);
    assert_int_equal(a->stats.cache_bytes, b->stats.cache_bytes);
}

/* alpha = 0, beta = 1 is the full cache for every length. */
static void spans_of_everything_are_the_full_cache(void **state)
{
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 2, .key_heads = 2, .context = 512});
    write_text(&f, "{\"alphas\": [[0, 0], [0.0, 0]], \"betas\": [[1, 1], [1.0, 1]]}");
    run(&f, "cpu", 2, "full:k=f32,v=f32", 0, &full);
    run(&f, "cpu", 2, spec_of(&f, ""), 0, &got);
    same("every span whole", &full, &got);
    write_text(&f, "{\"alphas\": [[0, 400], [0.0, 0]], \"betas\": [[1, 0.5], [1.0, 1]]}");
    run(&f, "cpu", 2, spec_of(&f, ",sink=9,max_new=60"), 0, &got);
    same("heads apart", &full, &got);
    end(&f);
}

static void threads_and_chunks_change_nothing(void **state)
{
    static struct outcome one, more;
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 3, .context = 512});
    write_plan(&f, f.tiny.key_heads);
    run(&f, "cpu", 1, spec_of(&f, ",max_new=20"), 0, &one);
    run(&f, "cpu", 3, spec_of(&f, ",max_new=20"), 0, &more);
    same("threads", &one, &more);
    for (int64_t chunk = 1; chunk < 200; chunk += 66) { /* spans come from the prompt's length, not from a chunk's */
        run(&f, "cpu", 2, spec_of(&f, ",max_new=20"), chunk, &more);
        assert_memory_equal(one.held, more.held, sizeof one.held);
    }
    end(&f);
}

/* Rows after a prompt of N tokens: (-1024, .5) gives 1024, 3072 and the floor of 128; (0, .25) a quarter. */
static void spans_are_those_of_the_sheet(void **state)
{
    static const int64_t expected[][3] = {{2048, 128, 512}, {4096, 1024, 1024}, {8192, 3072, 2048}};
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 1, .heads = 2, .key_heads = 2, .context = LONG});
    write_text(&f, "{\"alphas\": [[-1024, 0]], \"betas\": [[0.5, 0.25]]}");
    for (int i = 0; i < 3; i++) {
        fv_session *session;
        assert_ok(fv_session_new(ctx, f.model, &(fv_session_options){.cache = spec_of(&f, ",max_new=0")}, &session));
        assert_ok(fv_session_prompt(session, f.ids, expected[i][0], NULL, 0));
        for (int64_t g = 0; g < 2; g++) {
            int64_t count;
            const int32_t *at = fv_session_positions(session, 0, g, &count);
            assert_int_equal(count, expected[i][1 + g]);
            assert_int_equal(at[0], 0);
            assert_int_equal(at[63], 63);
            assert_int_equal(at[64], expected[i][0] - count + 64);
        }
        fv_session_free(session);
    }
    end(&f);
    fv_ctx_free(ctx);
}

/* A request's spans stay as its prompt made them; the next prompt, which is longer, makes them anew. */
static void spans_are_fixed_for_a_request(void **state)
{
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_session *session;
    int64_t count;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 1, .heads = 2, .key_heads = 2, .context = 2048});
    write_text(&f, "{\"alphas\": [[0, 0]], \"betas\": [[0.5, 1]]}");
    assert_ok(fv_session_new(ctx, f.model, &(fv_session_options){.cache = spec_of(&f, ",max_new=112")}, &session));
    assert_ok(fv_session_prompt(session, f.ids, 400, NULL, 0)); /* 0.5 * 512 */
    fv_session_positions(session, 0, 0, &count);
    assert_int_equal(count, 256);
    assert_ok(fv_session_feed(session, f.ids + 400, 400, NULL, 0));
    fv_session_positions(session, 0, 0, &count);
    assert_int_equal(count, 256);
    fv_session_positions(session, 0, 1, &count); /* all of 512, though more was written than there was room for */
    assert_int_equal(count, 512);
    assert_ok(fv_session_prompt(session, f.ids + 800, 1000, NULL, 0)); /* 0.5 * 1912, in blocks */
    fv_session_positions(session, 0, 0, &count);
    assert_int_equal(count, 960);
    fv_session_clear(session);
    assert_ok(fv_session_feed(session, f.ids, 300, NULL, 0)); /* no prompt: the floor */
    fv_session_positions(session, 0, 0, &count);
    assert_int_equal(count, 128);
    fv_session_free(session);
    end(&f);
    fv_ctx_free(ctx);
}

/* ---- bad input --------------------------------------------------------------------------------------------------- */

static void bad_plans_are_refused_in_words(void **state)
{
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "is not JSON"},
        {"[]", "expected a JSON object at the top"},
        {"{\"alphas\": [[1, 2], [3, 4]]}", "'betas' is missing"},
        {"{\"betas\": [[1, 2], [3, 4]]}", "'alphas' is missing"},
        {"{\"alphas\": 3, \"betas\": 4}", "'alphas': expected an array"},
        {"{\"alphas\": [[1, 2]], \"betas\": [[1, 2]]}", "'alphas': expected 2 items, got 1"},
        {"{\"alphas\": [[1, 2], [1, 2]], \"betas\": [[1, 2], [1, 2], [1, 2]]}", "'betas': expected 2 items, got 3"},
        {"{\"alphas\": [[1, 2], 3], \"betas\": [[1, 2], [3, 4]]}", "alphas[1]: expected an array"},
        {"{\"alphas\": [[1, 2], []], \"betas\": [[1, 2], [3, 4]]}", "alphas[1]: expected 1 to"},
        {"{\"alphas\": [[1, 2, 3], [1, 2]], \"betas\": [[1, 2, 3], [3, 4]]}",
         "alphas[0]: expected an item for each of 2 key-value or 4 query heads, got 3"},
        {"{\"alphas\": [[1, 2], [1, 2]], \"betas\": [[1, 2, 3, 4], [3, 4]]}",
         "betas[0]: expected as many items as alphas[0] has, 2, got 4"},
        {"{\"alphas\": [[1, 2], [1, \"2\"]], \"betas\": [[1, 2], [3, 4]]}", "alphas[1][1]: expected a number"},
        {"{\"alphas\": [[1, 2], [1, 2]], \"betas\": [[1, null], [3, 4]]}", "betas[0][1]: expected a number"},
        {"{\"alphas\": [[1e10, 2], [1, 2]], \"betas\": [[1, 2], [3, 4]]}", "alphas[0][0]: expected a number"},
        {"{\"alphas\": [[1, 2], [1, 2]], \"betas\": [[1, 2], [3, 1e300]]}", "betas[1][1]: expected a number"},
        {"{\"alphas\": [[1e999, 2], [1, 2]], \"betas\": [[1, 2], [3, 1]]}", "is not JSON"},
        {"{\"alphas\": [[1, 2], [1, 2]], \"betas\": [[1, 2], [3, 1]], \"betas\": 1}", "is not JSON"},
    };
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_session *session;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 2, .heads = 4, .key_heads = 2});
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        fv_session_options options = {.cache = spec_of(&f, "")};
        write_text(&f, bad[b].text);
        assert_fails(fv_session_new(ctx, f.model, &options, &session), FV_E_FORMAT, bad[b].words);
        assert_null(session);
    }
    unlink(f.plan);
    assert_fails(fv_session_new(ctx, f.model, &(fv_session_options){.cache = spec_of(&f, "")}, &session), FV_E_IO,
                 f.plan);
    /* the widest numbers that are taken */
    write_text(&f, "{\"alphas\": [[1e9, -1e9], [0, 0]], \"betas\": [[1e3, -1e3], [0, 0]]}");
    assert_ok(fv_session_new(ctx, f.model, &(fv_session_options){.cache = spec_of(&f, "")}, &session));
    assert_ok(fv_session_prompt(session, f.ids, 60, NULL, 0));
    fv_session_free(session);
    end(&f);
    fv_ctx_free(ctx);
}

static void failing_memory_is_an_error(void **state)
{
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    bool failed = true;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .layers = 2, .context = 512});
    write_plan(&f, f.tiny.heads);
    spec_of(&f, "");
    for (int64_t nth = 1; failed && nth < 400; nth++) {
        fv_session *session = NULL;
        test_alloc_fail(nth);
        fv_status status = fv_session_new(ctx, f.model, &(fv_session_options){.cache = f.spec}, &session);
        if (status == FV_OK) status = fv_session_prompt(session, f.ids, PROMPT, NULL, 0);
        if (status == FV_OK) status = fv_session_feed(session, f.ids + PROMPT, 1, NULL, 0);
        test_alloc_fail(0);
        failed = status != FV_OK;
        if (failed) assert_int_equal(status, FV_E_MEMORY);
        fv_session_free(session);
    }
    assert_false(failed);
    end(&f);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(spans_equal_their_twin),
        cmocka_unit_test(spans_of_everything_are_the_full_cache),
        cmocka_unit_test(threads_and_chunks_change_nothing),
        cmocka_unit_test(spans_are_those_of_the_sheet),
        cmocka_unit_test(spans_are_fixed_for_a_request),
        cmocka_unit_test(bad_plans_are_refused_in_words),
        cmocka_unit_test(failing_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
