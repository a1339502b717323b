/* Policies that keep rows by blocks of positions: the sheets' worked numbers, where full layers lie, what heads hold
 * together, and what is said when that is not everything. */
#include <unistd.h>

#include "cache/block_rule.h"
#include "models/session.h"
#include "support/tiny_model.h"

enum { BLOCK = 4, TOKENS = 40 };

struct fixture {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    int32_t ids[TOKENS];
};

static void begin(struct fixture *f)
{
    fv_random random = fv_random_new(test_seed(), 7400);
    const char *path;

    f->tiny = (tiny_model){.architecture = "llama", .layers = 1, .heads = 4, .key_heads = 4, .context = 128};
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    f->ctx = test_ctx("cpu", 2);
    for (int i = 0; i < TOKENS; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}

/* ---- worked numbers ---------------------------------------------------------------------------------------------- */

/* Whether a head holds exactly some blocks of `block` tokens after block P, as a prompt and by steps. */
static void holds(const struct fixture *f, const char *spec, int64_t context, int64_t block, int64_t head, int64_t P,
                  const int64_t *blocks, int64_t count)
{
    for (int steps = 0; steps < 2; steps++) {
        fv_session_options options = {.cache = spec, .context = context};
        int64_t tokens = (P + 1) * block, got;
        const int32_t *position;
        fv_session *session;
        assert_ok(fv_session_new(f->ctx, f->model, &options, &session));
        if (!steps) assert_ok(fv_session_prompt(session, f->ids, tokens, NULL, 0));
        for (int64_t p = 0; steps && p < tokens; p++)
            assert_ok(fv_session_feed(session, f->ids + p, 1, NULL, 0));
        position = fv_session_positions(session, 0, head, &got);
        if (got != count * block)
            fail_msg("%s: head %d at block %d: expected %d rows, got %d", spec, (int)head, (int)P, (int)(count * block),
                     (int)got);
        for (int64_t i = 0; i < got; i++)
            if (position[i] != blocks[i / block] * block + i % block)
                fail_msg("%s: head %d at block %d, row %d: expected position %d, got %d", spec, (int)head, (int)P,
                         (int)i, (int)(blocks[i / block] * block + i % block), position[i]);
        fv_session_free(session);
    }
}

#define HOLDS(f, spec, context, block, head, P, ...)                                                                   \
    holds(f, spec, context, block, head, P, (const int64_t[]){__VA_ARGS__},                                            \
          sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t))

/* H = 4 heads, one block in 4, a window of 2. */
static void shards_hold_the_blocks_of_the_sheet(void **state)
{
    static const char spec[] = "shard:block=4,local=2,stride=4";
    struct fixture f;
    (void)state;

    begin(&f);
    HOLDS(&f, spec, TOKENS, BLOCK, 0, 7, 0, 4, 6, 7);
    HOLDS(&f, spec, TOKENS, BLOCK, 0, 9, 0, 4, 8, 9);
    HOLDS(&f, spec, TOKENS, BLOCK, 1, 0, 0);
    HOLDS(&f, spec, TOKENS, BLOCK, 1, 7, 3, 6, 7);
    HOLDS(&f, spec, TOKENS, BLOCK, 2, 3, 2, 3);
    HOLDS(&f, spec, TOKENS, BLOCK, 3, 3, 1, 2, 3);
    HOLDS(&f, spec, TOKENS, BLOCK, 3, 9, 1, 5, 8, 9);
    end(&f);
}

/* A window of 2 and one sink, of single tokens; and shards of half the budget where the context has 8 blocks. */
static void layer_plans_hold_the_rows_of_the_sheet(void **state)
{
    struct fixture f;
    (void)state;

    begin(&f);
    HOLDS(&f, "layer_plan:n_full=0,block=1,budget=3", TOKENS, 1, 2, 5, 0, 4, 5);
    HOLDS(&f, "layer_plan:n_full=0,block=4,budget=16,pattern=stride", 32, BLOCK, 1, 7, 3, 6, 7);
    HOLDS(&f, "layer_plan:n_full=0,block=4,budget=16,pattern=stride", 29, BLOCK, 1, 6, 3, 5, 6);
    HOLDS(&f, "layer_plan:n_full=1,block=1,budget=3", TOKENS, 1, 2, 5, 0, 1, 2, 3, 4, 5);
    end(&f);
}

/* ---- layers ------------------------------------------------------------------------------------------------------ */

static void plan_of(const char *spec, int64_t layers, const int64_t *window, fv_cache_plan *plan)
{
    const fv_cache_model model = {.layers = layers,
                                  .query_heads = 32,
                                  .key_heads = 8,
                                  .key_dim = 64,
                                  .value_dim = 64,
                                  .context = 8192,
                                  .window = window};

    assert_ok(fv_cache_plan_new(spec, &model, plan));
}

static void full_layers_lie_where_they_should(void **state)
{
    static const struct {
        const char *spec;
        int64_t layers, full[12];
        int count;
    } cases[] = {
        {"layer_plan", 32, {10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21}, 12},
        {"layer_plan", 30, {9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19}, 11},
        {"layer_plan:n_full=3", 12, {4, 5, 6}, 3},
        {"layer_plan:n_full=4,full=top", 12, {8, 9, 10, 11}, 4},
        {"layer_plan:n_full=4,full=bottom", 12, {0, 1, 2, 3}, 4},
        {"layer_plan:n_full=4,full=interleaved", 12, {1, 4, 7, 10}, 4},
        {"layer_plan:n_full=3,full=interleaved", 5, {0, 2, 4}, 3},
        {"layer_plan:n_full=5,full=interleaved,pattern=stride", 5, {0, 1, 2, 3, 4}, 5},
        {"layer_plan:n_full=0", 7, {0}, 0},
    };
    static const int64_t none[32], gemma[18] = {1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0};
    fv_cache_plan plan;
    (void)state;

    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int n = 0;
        plan_of(cases[c].spec, cases[c].layers, none, &plan);
        for (int64_t l = 0; l < cases[c].layers; l++) {
            bool expected = n < cases[c].count && cases[c].full[n] == l;
            bool got = plan.use[0].policy->bound(&plan.use[0], l) == INT64_MAX;
            if (got != expected)
                fail_msg("%s of %d layers: layer %d: expected %s, got %s", cases[c].spec, (int)cases[c].layers, (int)l,
                         expected ? "full" : "sparse", got ? "full" : "sparse");
            n += expected;
        }
        fv_cache_plan_free(&plan);
    }
    /* only the layers without a window count: one of three, the middle one */
    plan_of("layer_plan", 18, gemma, &plan);
    assert_int_equal(plan.use[0].layers, 3);
    for (int place = 0; place < 3; place++)
        assert_int_equal(plan.use[0].policy->bound(&plan.use[0], place) == INT64_MAX, place == 1);
    fv_cache_plan_free(&plan);
}

/* 128K tokens in blocks of 64: 16 blocks of a window and one in 128. */
static void budgets_are_split_as_in_the_sheet(void **state)
{
    const int64_t none[1] = {0};
    const fv_cache_model model = {.layers = 1,
                                  .query_heads = 32,
                                  .key_heads = 8,
                                  .key_dim = 64,
                                  .value_dim = 64,
                                  .context = 128 << 10,
                                  .window = none};
    fv_cache_plan plan;
    (void)state;

    assert_ok(fv_cache_plan_new("layer_plan:pattern=stride,n_full=0", &model, &plan));
    assert_int_equal(plan.use[0].policy->bound(&plan.use[0], 0), 2048);
    fv_cache_plan_free(&plan);
    assert_ok(fv_cache_plan_new("layer_plan:n_full=0", &model, &plan));
    assert_int_equal(plan.use[0].policy->bound(&plan.use[0], 0), 2048);
    fv_cache_plan_free(&plan);
}

/* ---- heads together ---------------------------------------------------------------------------------------------- */

/* Every block outside the window is some head's, unless the warning says that it is not. */
static void warnings_tell_when_blocks_belong_to_nobody(void **state)
{
    (void)state;
    for (int64_t key_heads = 1; key_heads <= 8; key_heads *= 2)
        for (int64_t stride = 1; stride <= 80; stride++) {
            const fv_shards shards = {.block = 1, .local = 1, .stride = stride, .offset = 3};
            const fv_cache_model model = {.query_heads = 8, .key_heads = key_heads};
            fv_text warning = {0};
            int64_t owned = 0;
            for (int64_t block = 0; block < stride; block++) {
                bool any = false;
                for (int64_t g = 0; g < key_heads; g++) {
                    fv_block_rule rule = fv_shards_rule(&shards, &model, g);
                    any = any || (block + rule.residue) % rule.stride == 0;
                }
                owned += any;
            }
            fv_shards_warn(&shards, &model, "shard", key_heads, &warning);
            if ((owned < stride) != (warning.length > 0))
                fail_msg("%d key heads of 8, stride %d: expected %s, %d blocks of %d are owned", (int)key_heads,
                         (int)stride, owned < stride ? "a warning" : "none", (int)owned, (int)stride);
            fv_text_free(&warning);
        }
}

static void sessions_give_each_warning_once(void **state)
{
    static const char *const quiet[] = {"full", "shard:stride=4", "layer_plan", "layer_plan:pattern=stride,n_full=1"};
    struct fixture f;
    fv_session *session;
    (void)state;

    begin(&f);
    assert_ok(fv_session_new(f.ctx, f.model, &(fv_session_options){.cache = "shard:stride=7"}, &session));
    assert_non_null(fv_session_warning(session, 0));
    assert_non_null(strstr(fv_session_warning(session, 0), "4 of every 7 blocks"));
    assert_null(fv_session_warning(session, 1));
    fv_session_free(session);
    assert_ok(fv_session_new(f.ctx, f.model, &(fv_session_options){.cache = "shard:stride=7,homo=1"}, &session));
    assert_non_null(strstr(fv_session_warning(session, 0), "1 of every 7 blocks"));
    fv_session_free(session);
    assert_ok(fv_session_new(
        f.ctx, f.model,
        &(fv_session_options){.cache = "layer_plan:pattern=stride,n_full=0,block=4,budget=8", .context = 40},
        &session)); /* windows of one block and one in 10, 2 apart */
    assert_non_null(
        strstr(fv_session_warning(session, 0), "4 of every 10 blocks belong to one of the 4 key-value heads (step 2)"));
    fv_session_free(session);
    for (size_t q = 0; q < sizeof quiet / sizeof *quiet; q++) {
        assert_ok(fv_session_new(f.ctx, f.model, &(fv_session_options){.cache = quiet[q]}, &session));
        assert_null(fv_session_warning(session, 0));
        fv_session_free(session);
    }
    end(&f);
}

/* Rows never exceed what a policy says, whatever the chunks: that is all the memory there is. */
static void bounds_hold(void **state)
{
    static const char *const specs[] = {"shard:block=4,local=2,stride=4", "shard:block=1,local=3,stride=5,offset=2",
                                        "layer_plan:n_full=0,block=4,budget=8",
                                        "layer_plan:n_full=0,block=4,budget=8,pattern=stride"};
    struct fixture f;
    (void)state;

    begin(&f);
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++)
        for (int64_t chunk = 1; chunk <= 7; chunk += 3) {
            fv_session_options options = {.cache = specs[s], .context = TOKENS, .chunk = chunk};
            fv_session *session;
            assert_ok(fv_session_new(f.ctx, f.model, &options, &session));
            const fv_policy_use *use = &session->cache.use[0];
            for (int64_t at = 0; at < TOKENS; at += chunk) {
                assert_ok(fv_session_prompt(session, f.ids + at, fv_min(chunk, TOKENS - at), NULL, 0));
                for (int64_t g = 0; g < f.tiny.key_heads; g++) {
                    int64_t count;
                    fv_session_positions(session, 0, g, &count);
                    assert_in_range(count, 1, use->policy->bound(use, 0));
                }
            }
            fv_session_free(session);
        }
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shards_hold_the_blocks_of_the_sheet),
        cmocka_unit_test(layer_plans_hold_the_rows_of_the_sheet),
        cmocka_unit_test(full_layers_lie_where_they_should),
        cmocka_unit_test(budgets_are_split_as_in_the_sheet),
        cmocka_unit_test(warnings_tell_when_blocks_belong_to_nobody),
        cmocka_unit_test(sessions_give_each_warning_once),
        cmocka_unit_test(bounds_hold),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
