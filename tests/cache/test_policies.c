/* One suite for every cache policy: it keeps and reads what its naive twin does, keeps its promises (traits), and is
 * the full cache, bit for bit, where it may keep everything. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cache/policy.h"
#include "models/session.h"
#include "policies/policies.h"

enum { VOCABULARY = 50, MOST_LAYERS = 8 };

/* Of the largest logit: f32 sums against doubles, through a few layers. */
static const double tolerance = 7e-5;

/* Of two scores: closer ones may fall either way in f32.  A score is a sum of weights exp(s - lse), so it is off by as
 * much, relative to itself, as a logit s is off in all: no more than the logits at the end are. */
static const double clear_choice = 1e-4;

static const char f32_rows[] = "k=f32,v=f32";

struct fixture {
    tiny_model tiny;
    fv_model *model;
    int32_t ids[TOKENS_ALL];
};

/* The plan file of a policy, for this process. */
static const char *plan_path(const char *policy)
{
    static char path[64];

    snprintf(path, sizeof path, "/tmp/fovea-plan-%ld-%.20s.json", (long)getpid(), policy);
    return path;
}

static void write_plans(const tiny_model *tiny)
{
    for (const policy_plan *plan = policy_plans; plan->policy; plan++) {
        FILE *file = fopen(plan_path(plan->policy), "w");
        assert_non_null(file);
        plan->write(tiny, file);
        assert_int_equal(fclose(file), 0);
    }
}

static void remove_plans(void)
{
    for (const policy_plan *plan = policy_plans; plan->policy; plan++)
        unlink(plan_path(plan->policy));
}

/* A SPEC with the name of its plan file in the place of `@`. */
static const char *with_plan(const char *spec)
{
    static char text[256];
    char policy[64];
    const char *at = strchr(spec, '@');

    if (!at) return spec;
    snprintf(policy, sizeof policy, "%.*s", (int)strcspn(spec, ":"), spec);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - spec), spec, plan_path(policy), at + 1);
    return text;
}

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 7300;
    fv_random random = fv_random_new(test_seed(), ++stream);
    const char *path;

    f->tiny = tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    for (int i = 0; i < TOKENS_ALL; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
    write_plans(&f->tiny);
}

static void end(struct fixture *f)
{
    remove_plans();
    fv_model_close(f->model);
    tiny_free(&f->tiny);
}

/* A SPEC with rows of f32, so that only the order of sums differs from a twin in doubles. */
static const char *with_f32(const char *spec)
{
    static char text[300];

    snprintf(text, sizeof text, "%s%c%s", spec, strchr(spec, ':') ? ',' : ':', f32_rows);
    return text;
}

/* Everything that a session says after a prompt and steps behind it. */
struct outcome {
    float logits[TOKENS_ALL * VOCABULARY]; /* of every token; of the prompt the last row only */
    int64_t count[MOST_LAYERS][8];
    int32_t position[MOST_LAYERS][8][TOKENS_ALL];
    int64_t read_count[MOST_LAYERS][8];
    int32_t read[MOST_LAYERS][8][TOKENS_ALL];
    fv_session_stats stats;
};

static void note(const struct fixture *f, const fv_session *session, struct outcome *out)
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            const int32_t *at = fv_session_positions(session, l, g, &out->count[l][g]);
            memcpy(out->position[l][g], at, (size_t)out->count[l][g] * sizeof *at);
            at = fv_session_selected(session, l, g, &out->read_count[l][g]);
            if (!at) at = fv_session_positions(session, l, g, &out->read_count[l][g]);
            memcpy(out->read[l][g], at, (size_t)out->read_count[l][g] * sizeof *at);
        }
    fv_session_measure(session, &out->stats);
}

static void run(const struct fixture *f, const char *device, int threads, const char *spec, int64_t chunk,
                struct outcome *out)
{
    fv_ctx *ctx = test_ctx(device, threads);
    fv_session_options options = {.cache = spec, .chunk = chunk, .precision = FV_PRECISION_F32, .context = TOKENS_ALL};
    fv_session *session;

    memset(out, 0, sizeof *out);
    assert_ok(fv_session_new(ctx, f->model, &options, &session));
    assert_ok(fv_session_prompt(session, f->ids, TOKENS_PROMPT, out->logits + (TOKENS_PROMPT - 1) * VOCABULARY, 1));
    for (int64_t p = TOKENS_PROMPT; p < TOKENS_ALL; p++)
        assert_ok(fv_session_feed(session, f->ids + p, 1, out->logits + p * VOCABULARY, 1));
    note(f, session, out);
    fv_session_free(session);
    fv_ctx_free(ctx);
}

static void same_rows(const char *what, const struct fixture *f, const struct outcome *a, const struct outcome *b)
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            if (a->count[l][g] != b->count[l][g])
                fail_msg("%s: layer %d, head %d: expected %d rows, got %d", what, (int)l, (int)g, (int)a->count[l][g],
                         (int)b->count[l][g]);
            for (int64_t i = 0; i < a->count[l][g]; i++)
                if (a->position[l][g][i] != b->position[l][g][i])
                    fail_msg("%s: layer %d, head %d, row %d: expected position %d, got %d", what, (int)l, (int)g,
                             (int)i, a->position[l][g][i], b->position[l][g][i]);
        }
}

static void same(const char *what, const struct fixture *f, const struct outcome *a, const struct outcome *b)
{
    same_rows(what, f, a, b);
    for (int64_t i = 0; i < TOKENS_ALL * VOCABULARY; i++)
        if (memcmp(&a->logits[i], &b->logits[i], sizeof a->logits[i]) != 0)
            fail_msg("%s of %s: token %d, logit %d: expected the same bits, got %.9g and %.9g", what,
                     f->tiny.architecture, (int)(i / VOCABULARY), (int)(i % VOCABULARY), (double)a->logits[i],
                     (double)b->logits[i]);
    assert_int_equal(a->stats.cache_bytes, b->stats.cache_bytes);
}

static const tiny_model models[] = {
    {.architecture = "llama", .layers = 4, .context = 128},
    {.architecture = "gemma3", .layers = 7, .context = 128},
    {.architecture = "gemma2", .layers = 4, .context = 128, .window = 20},
    {.architecture = "qwen2", .layers = 3, .heads = 6, .key_heads = 3, .context = 128},
};
enum { MODELS = sizeof models / sizeof *models };

static bool sanitized(void)
{
    const char *said = getenv("FOVEA_SANITIZED");

    return said && strcmp(said, "1") == 0;
}

/* Under sanitizers one is enough: they look at the code, not at numbers. */
static int models_here(void)
{
    return sanitized() ? 1 : MODELS;
}

/* ---- twins ------------------------------------------------------------------------------------------------------ */

static void check_rows(const char *what, const struct fixture *f, const bool *expected, int64_t count[][8],
                       int32_t position[][8][TOKENS_ALL])
{
    for (int64_t l = 0; l < f->tiny.layers; l++)
        for (int64_t g = 0; g < f->tiny.key_heads; g++) {
            const bool *held = expected + (l * f->tiny.key_heads + g) * TOKENS_ALL;
            int64_t n = 0;
            for (int64_t j = 0; j < TOKENS_ALL; j++) {
                bool got = n < count[l][g] && position[l][g][n] == j;
                if (got != held[j])
                    fail_msg("%s: layer %d, head %d, position %d: expected %s, got %s", what, (int)l, (int)g, (int)j,
                             held[j] ? "kept" : "gone", got ? "kept" : "gone");
                n += got;
            }
        }
}

static void twin_of(const struct fixture *f, const policy_case *c, tiny_policy *twin, double *logits, bool *held)
{
    policy_margin = INFINITY;
    c->begin(&f->tiny, twin);
    tiny_twin_cached(&f->tiny, f->ids, TOKENS_PROMPT, TOKENS_ALL, twin, logits, held);
}

/* Draws other weights and tokens until no choice of the twin is closer than f32 can tell. */
static void draw_until_clear(struct fixture *f, const tiny_model *tiny, const policy_case *c)
{
    static double logits[TOKENS_ALL * VOCABULARY];
    tiny_policy twin = {0};

    for (int drawn = 0; drawn < 100; drawn++) {
        twin_of(f, c, &twin, logits, NULL);
        if (c->end) c->end(&twin);
        if (policy_margin > clear_choice) return;
        end(f);
        begin(f, *tiny);
    }
    fail_msg("%s: 100 texts without a clear choice", c->spec);
}

static void check_twin(const struct fixture *f, const policy_case *c, const char *device, int64_t chunk)
{
    static double expected[TOKENS_ALL * VOCABULARY];
    static bool held[MOST_LAYERS * 8 * TOKENS_ALL];
    static struct outcome got;
    tiny_policy twin = {0};
    double size = 1;
    char what[300];

    snprintf(what, sizeof what, "%s of %s on %s in chunks of %d", c->spec, f->tiny.architecture, device, (int)chunk);
    twin_of(f, c, &twin, expected, held);
    run(f, device, 2, with_f32(with_plan(c->spec)), chunk, &got);
    check_rows(what, f, held, got.count, got.position);
    if (c->selected) check_rows(what, f, c->selected(&twin), got.read_count, got.read);
    if (c->end) c->end(&twin);
    for (int64_t i = 0; i < TOKENS_ALL * VOCABULARY; i++)
        size = fmax(size, fabs(expected[i]));
    for (int64_t i = (TOKENS_PROMPT - 1) * VOCABULARY; i < TOKENS_ALL * VOCABULARY; i++)
        if (!(fabs((double)got.logits[i] - expected[i]) <= tolerance * size))
            fail_msg("%s: token %d, logit %d: expected %.9g, got %.9g (tolerance %g)", what, (int)(i / VOCABULARY),
                     (int)(i % VOCABULARY), expected[i], (double)got.logits[i], tolerance * size);
}

static void policies_equal_their_twins(void **state)
{
    struct fixture f;
    (void)state;

    for (int m = 0; m < models_here(); m++) {
        begin(&f, models[m]);
        for (int c = 0; policy_cases[c]; c++) {
            draw_until_clear(&f, &models[m], policy_cases[c]);
            check_twin(&f, policy_cases[c], "ref", 0);
            check_twin(&f, policy_cases[c], "cpu", 0);
            check_twin(&f, policy_cases[c], "cpu", 17);
        }
        end(&f);
    }
}

/* Blocks of 8 bits: of one key-value head with few channels, so that there are texts whose codes are clear. */
static void codes_equal_their_twins(void **state)
{
    static const tiny_model small[] = {
        {.architecture = "llama", .layers = 2, .heads = 2, .key_heads = 1, .key_dim = 8, .context = 128},
        {.architecture = "gemma2", .layers = 2, .heads = 4, .key_heads = 2, .key_dim = 4, .context = 128, .window = 20},
    };
    struct fixture f;
    (void)state;

    for (size_t m = 0; m < sizeof small / sizeof *small; m++) {
        begin(&f, small[m]);
        for (int c = 0; policy_code_cases[c]; c++) {
            draw_until_clear(&f, &small[m], policy_code_cases[c]);
            check_twin(&f, policy_code_cases[c], "ref", 0);
            check_twin(&f, policy_code_cases[c], "cpu", 0);
            check_twin(&f, policy_code_cases[c], "cpu", 17);
        }
        end(&f);
    }
}

/* ---- promises --------------------------------------------------------------------------------------------------- */

static const fv_policy *policy_of(const char *spec)
{
    char name[64];

    snprintf(name, sizeof name, "%.*s", (int)strcspn(spec, ":"), spec);
    return fv_policy_find(name);
}

static void room_for_everything_is_the_full_cache(void **state)
{
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    for (int m = 0; m < models_here(); m++) {
        begin(&f, models[m]);
        run(&f, "cpu", 2, "full", 0, &full);
        for (int c = 0; policy_cases[c]; c++) {
            if (!policy_cases[c]->whole) continue;
            run(&f, "cpu", 2, with_plan(policy_cases[c]->whole), 0, &got);
            same(policy_cases[c]->whole, &f, &full, &got);
        }
        end(&f);
    }
}

static void decisions_do_not_depend_on_threads(void **state)
{
    static struct outcome one, more;
    struct fixture f;
    (void)state;

    for (int m = 0; m < models_here(); m++) {
        begin(&f, models[m]);
        for (int c = 0; policy_cases[c]; c++) {
            run(&f, "cpu", 1, with_plan(policy_cases[c]->spec), 0, &one);
            run(&f, "cpu", 3, with_plan(policy_cases[c]->spec), 0, &more);
            same(policy_cases[c]->spec, &f, &one, &more);
        }
        end(&f);
    }
}

static void chunks_of_a_prompt_change_no_rows(void **state)
{
    static struct outcome whole, parts;
    struct fixture f;
    (void)state;

    begin(&f, models[0]);
    for (int c = 0; policy_cases[c]; c++) {
        draw_until_clear(&f, &models[0], policy_cases[c]);
        run(&f, "cpu", 2, with_f32(with_plan(policy_cases[c]->spec)), 64, &whole);
        run(&f, "cpu", 2, with_f32(with_plan(policy_cases[c]->spec)), 7, &parts);
        same_rows(policy_cases[c]->spec, &f, &whole, &parts);
    }
    end(&f);
}

/* Token by token from the start: no prompt at all. */
static void steps_alone_do_as_a_prompt_does(void **state)
{
    static struct outcome prompt, steps;
    struct fixture f;
    (void)state;

    begin(&f, models[1]);
    for (int c = 0; policy_cases[c]; c++) {
        fv_session *session;
        if (!(policy_of(policy_cases[c]->spec)->traits & FV_POLICY_CHUNKS)) continue;
        if (strstr(policy_cases[c]->spec, "prefill=dense")) continue; /* that one tells a prompt apart */
        fv_ctx *ctx = test_ctx("cpu", 2);
        run(&f, "cpu", 2, with_plan(policy_cases[c]->spec), 0, &prompt);
        assert_ok(fv_session_new(
            ctx, f.model, &(fv_session_options){.cache = with_plan(policy_cases[c]->spec), .context = TOKENS_ALL},
            &session));
        for (int64_t p = 0; p < TOKENS_ALL; p++)
            assert_ok(fv_session_feed(session, f.ids + p, 1, NULL, 0));
        memset(&steps, 0, sizeof steps);
        note(&f, session, &steps);
        same_rows(policy_cases[c]->spec, &f, &prompt, &steps);
        fv_session_free(session);
        fv_ctx_free(ctx);
    }
    end(&f);
}

static void selections_keep_every_row_and_others_free_theirs(void **state)
{
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    begin(&f, models[1]);
    run(&f, "cpu", 2, "full", 0, &full);
    for (int c = 0; policy_cases[c]; c++) {
        const fv_policy *policy = policy_of(policy_cases[c]->spec);
        run(&f, "cpu", 2, with_plan(policy_cases[c]->spec), 0, &got);
        if (policy->traits & FV_POLICY_SELECTS)
            same_rows(policy_cases[c]->spec, &f, &full, &got);
        else if (policy->after || policy->act)
            assert_true(got.stats.cache_bytes < full.stats.cache_bytes);
        /* 2 tensors for each of 7 layers and 2 heads; a pool's of all heads, with a page of 2 MiB and one ahead */
        size_t slack = policy->pool ? 2 << 20 : 64 << 10;
        assert_true(got.stats.committed_bytes <= got.stats.cache_bytes + (size_t)f.tiny.layers * 2 * 2 * slack);
    }
    end(&f);
}

/* Windows of the model's own stay as they are. */
static void layers_with_a_window_are_left_alone(void **state)
{
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    begin(&f, models[1]);
    run(&f, "cpu", 2, "full", 0, &full);
    for (int c = 0; policy_cases[c]; c++) {
        run(&f, "cpu", 2, with_plan(policy_cases[c]->spec), 0, &got);
        for (int64_t l = 0; l < f.tiny.layers; l++)
            for (int64_t g = 0; g < f.tiny.key_heads && !tiny_sees_all(&f.tiny, l); g++) {
                assert_int_equal(got.count[l][g], full.count[l][g]);
                assert_int_equal(got.count[l][g], f.tiny.window);
            }
    }
    end(&f);
}

static void layers_may_have_policies_of_their_own(void **state)
{
    static struct outcome full, got;
    struct fixture f;
    (void)state;

    begin(&f, models[0]);
    run(&f, "cpu", 2, "full", 0, &full);
    run(&f, "cpu", 2, "1/sinkring:sink=2,window=5;3/full:k=q8_0", 0, &got);
    for (int64_t g = 0; g < f.tiny.key_heads; g++) {
        assert_int_equal(got.count[0][g], TOKENS_ALL);
        assert_int_equal(got.count[1][g], 7);
        assert_int_equal(got.count[2][g], TOKENS_ALL);
        assert_int_equal(got.count[3][g], TOKENS_ALL);
    }
    end(&f);
}

/* ---- bad input -------------------------------------------------------------------------------------------------- */

static void bad_specs_are_refused_in_words(void **state)
{
    static const struct {
        const char *cache, *attention, *words;
    } bad[] = {
        {"sinkrin", NULL, "did you mean 'sinkring'"},
        {"sinkring:windows=3", NULL, "did you mean 'window'"},
        {"sinkring:window=0", NULL, "expected 1 to"},
        {"sinkring:sink=5,budget=5", NULL, "more rows than the 5 sinks"},
        {"sinkring:rope=cache,prefill=dense", NULL, "rope=cache"},
        {"full:k=q5_0", NULL, "f16 or bf16 or f32 or q8_0 or q4_0"},
        {"full:page=5000", NULL, "a power of two"},
        {"0-9/full", NULL, "layer 4 is outside 0 to 3"},
        {"0/full;0/sinkring", NULL, "named twice"},
        {"", NULL, ""},
        {"0/;rest/full", NULL, ""},
        {"snapkv:window=1024", NULL, "more rows than the window of 1024, got 1024"},
        {"snapkv:kernel=4", NULL, "'kernel': expected an odd number, got 4"},
        {"snapkv:budget=1", NULL, "expected 2 to"},
        {"snapkv:window=0", NULL, "expected 1 to"},
        {"snapkv:pool=sum", NULL, "avg or max"},
        {"snapkv:per=head", NULL, "kv or layer"},
        {"snapkv:beta=3", NULL, "beta"},
        {"pyramidkv:budget=32", NULL, "more rows than the window of 32, got 32"},
        {"pyramidkv:beta=0", NULL, "expected 1 to"},
        {"pyramidkv:kernel=2", NULL, "an odd number"},
        {"compresskv:budget=8", NULL, "more rows than the window of 8, got 8"},
        {"compresskv:kernel=6", NULL, "an odd number"},
        {"compresskv:heads=trh", NULL, "srh or all"},
        {"compresskv:budget=32,plan=/nowhere", NULL, "a budget of more than 32 rows, got 32"},
        {"compresskv:window=32,plan=/nowhere", NULL, "a window of less than 32 rows, got 32"},
        {"guikv:budget_pct=0", NULL, "expected more than 0, got 0"},
        {"guikv:budget_pct=100.5", NULL, "budget_pct"},
        {"guikv:window=65", NULL, "1 to 64"},
        {"guikv:tau=0", NULL, "tau"},
        {"guikv:alpha=-1", NULL, "alpha"},
        {"guikv:rank=0", NULL, "rank"},
        {"guikv:norm=output", NULL, "input or residual"},
        {"guikv:subspace=pivoted", NULL, "first or svd"},
        {"guikv:frames=7", NULL, "expected start-end+start-end, got '7'"},
        {"guikv:frames=7-", NULL, "expected start-end+start-end"},
        {"guikv:frames=7-9+", NULL, "expected start-end+start-end"},
        {"guikv:frames=7-9x", NULL, "expected start-end+start-end"},
        {"guikv:frames=-3-9", NULL, "expected start-end+start-end"},
        {"guikv:frames=7-99999999999", NULL, "expected start-end+start-end"},
        {"guikv:frames=9-9", NULL, "got 9-9 behind 0"},
        {"guikv:frames=3-9+8-12", NULL, "got 8-12 behind 9"},
        {"shard:local=0", NULL, "expected 1 to"},
        {"shard:stride=0", NULL, "expected 1 to"},
        {"shard:block=0", NULL, "expected 1 to"},
        {"shard:offset=-1", NULL, "expected 0 to"},
        {"shard:homo=2", NULL, "homo"},
        {"shard:dense_heads=3", NULL, "expected 0 to 2 (this model's key-value heads)"},
        {"layer_plan:n_full=5", NULL, "at most the 4 layers it acts on, got 5"},
        {"0-1/layer_plan:n_full=3", NULL, "at most the 2 layers it acts on, got 3"},
        {"layer_plan:full=centre", NULL, "middle or top or bottom or interleaved"},
        {"layer_plan:pattern=sinks", NULL, "sink or stride"},
        {"layer_plan:budget=127", NULL, "two blocks of 64 or more, got 127"},
        {"moa", NULL, "plan"},
        {"moa:plan=x,sink=-1", NULL, "expected 0 to"},
        {"moa:plan=x,max_new=-1", NULL, "expected 0 to"},
        {"gemfilter:budget=0", NULL, "expected 1 to"},
        {"gemfilter:layer=4", NULL, "expected -1 to 3 (this model's layers), got 4"},
        {"gemfilter:kernel=4", NULL, "expected an odd number, got 4"},
        {"gemfilter:score=mean", NULL, "raw or softmax"},
        {"gemfilter:budget=5,keep_first=3,keep_last=3", NULL, "6 tokens, more than the budget of 5"},
        {"0-1/gemfilter", NULL, "cannot be for some layers"},
        {"sinkring", "moba:block=8", "acts on the model's own attention, not on 'moba'"},
    };
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_session *session;
    (void)state;

    begin(&f, models[0]);
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        fv_session_options options = {.cache = bad[b].cache, .attention = bad[b].attention};
        assert_fails(fv_session_new(ctx, f.model, &options, &session), FV_E_USAGE, bad[b].words);
        assert_null(session);
    }
    end(&f);
    begin(&f, (tiny_model){.architecture = "llama", .key_dim = 48});
    assert_fails(fv_session_new(ctx, f.model, &(fv_session_options){.cache = "full:k=q8_0"}, &session), FV_E_USAGE,
                 "do not divide this model's head dim of 48");
    end(&f);
    fv_ctx_free(ctx);
}

static void failing_memory_is_an_error(void **state)
{
    struct fixture f;
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    begin(&f, models[1]);
    for (int c = 0; policy_cases[c]; c++) {
        bool failed = true;
        for (int64_t nth = 1; failed && nth < 400; nth += sanitized() ? 3 : 1) {
            fv_session *session = NULL;
            test_alloc_fail(nth);
            fv_status status = fv_session_new(
                ctx, f.model, &(fv_session_options){.cache = with_plan(policy_cases[c]->spec)}, &session);
            if (status == FV_OK) status = fv_session_prompt(session, f.ids, TOKENS_PROMPT, NULL, 0);
            if (status == FV_OK) status = fv_session_feed(session, f.ids + TOKENS_PROMPT, 1, NULL, 0);
            test_alloc_fail(0);
            failed = status != FV_OK;
            if (failed) assert_int_equal(status, FV_E_MEMORY);
            fv_session_free(session);
        }
        assert_false(failed);
    }
    end(&f);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(policies_equal_their_twins),
        cmocka_unit_test(codes_equal_their_twins),
        cmocka_unit_test(room_for_everything_is_the_full_cache),
        cmocka_unit_test(decisions_do_not_depend_on_threads),
        cmocka_unit_test(chunks_of_a_prompt_change_no_rows),
        cmocka_unit_test(steps_alone_do_as_a_prompt_does),
        cmocka_unit_test(selections_keep_every_row_and_others_free_theirs),
        cmocka_unit_test(layers_with_a_window_are_left_alone),
        cmocka_unit_test(layers_may_have_policies_of_their_own),
        cmocka_unit_test(bad_specs_are_refused_in_words),
        cmocka_unit_test(failing_memory_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
