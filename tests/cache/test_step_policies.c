/* Policies that act on every step: what they share, plans they refuse, prompts in several parts, sessions used again.
 */
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "cache/selection.h"
#include "models/session.h"
#include "policies/policies.h"

enum { LAYERS = 4, HEADS = 4, KEY_HEADS = 2, FIRST = 23 };

struct fixture {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    char plan[64];
    int32_t ids[TOKENS_ALL];
};

static void write_plan(const struct fixture *f, const char *text)
{
    FILE *file = fopen(f->plan, "w");

    assert_non_null(file);
    assert_int_equal(fputs(text, file) < 0, 0);
    assert_int_equal(fclose(file), 0);
}

static int set_up(void **state)
{
    static struct fixture f;
    fv_random random = fv_random_new(test_seed(), 9100);
    const char *path;

    f = (struct fixture){
        .tiny = {.architecture = "llama", .layers = LAYERS, .heads = HEADS, .key_heads = KEY_HEADS, .context = 128}};
    tiny_make(&f.tiny);
    path = tiny_save(&f.tiny);
    assert_ok(fv_model_open(path, &f.model));
    unlink(path);
    f.ctx = test_ctx("cpu", 2);
    snprintf(f.plan, sizeof f.plan, "/tmp/fovea-steps-%ld.json", (long)getpid());
    write_plan(&f, "{\"plan\":[-1,0,-1,1],\"full\":[2]}");
    for (int i = 0; i < TOKENS_ALL; i++)
        f.ids[i] = (int32_t)fv_random_below(&random, f.tiny.vocabulary);
    *state = &f;
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;

    unlink(f->plan);
    fv_ctx_free(f->ctx);
    fv_model_close(f->model);
    tiny_free(&f->tiny);
    return 0;
}

/* ---- what they share --------------------------------------------------------------------------------------------- */

static void sums_are_what_is_left_whatever_the_order(void **state)
{
    enum { ROWS = 40, TIMES = 200 };
    fv_random random = fv_random_new(test_seed(), 9101);
    static float weight[TIMES][ROWS];
    fv_row_sums a = {0}, b = {0};
    (void)state;

    assert_ok(fv_row_sums_grow(&a, ROWS));
    assert_ok(fv_row_sums_grow(&b, ROWS));
    for (int t = 0; t < TIMES; t++)
        for (int j = 0; j < ROWS; j++)
            weight[t][j] = (float)exp(-20 * fv_random_uniform(&random));
    for (int t = 0; t < TIMES; t++)
        fv_row_sums_add(&a, 0, weight[t], ROWS);
    for (int t = 0; t < TIMES - 1; t += 2) /* every other one is left, the last first */
        fv_row_sums_subtract(&a, 0, weight[t], ROWS);
    for (int t = TIMES - 1; t >= 0; t -= 2)
        fv_row_sums_add(&b, 0, weight[t], ROWS);
    for (int j = 0; j < ROWS; j++) {
        double expected = 0, got = ldexp((double)a.sum[j], -38);
        for (int t = 1; t < TIMES; t += 2)
            expected += (double)weight[t][j];
        assert_int_equal(a.sum[j], b.sum[j]);
        if (!(fabs(got - expected) <= ldexp(TIMES / 2, -39))) /* half a unit each */
            fail_msg("row %d: expected %.17g, got %.17g", j, expected, got);
    }
    weight[0][0] = NAN;
    weight[0][1] = -1;
    weight[0][2] = INFINITY;
    for (int64_t before = a.sum[0], j = 0; j < 2; before = a.sum[++j]) {
        fv_row_sums_add(&a, j, &weight[0][j], 1);
        assert_int_equal(a.sum[j], before);
    }
    fv_row_sums_add(&a, 2, &weight[0][2], 1);
    fv_row_sums_subtract(&a, 2, &weight[0][2], 1);
    assert_int_equal(a.sum[2], b.sum[2]);
    fv_row_sums_free(&a);
    fv_row_sums_free(&b);
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

static const char *const specs[] = {
    "alisa:r=0.3,k=f32,v=f32",
    "alisa:r=0.5,sets=kv,refresh=4,k=f32,v=f32",
    "alisa:r=0.3,score=global,k=f32,v=f32",
    "alisa:r=0.3,score=last,sets=kv,k=f32,v=f32",
    "alisa:r=0.3,resident=9,recompute=20,k=f32,v=f32",
    "blocktopk:block=4,top=3,local=5,dense_layers=0,k=f32,v=f32",
    "hylra:plan=@,chunk=4,keep=24,sink=3,recent=7,activate_at=0,k=f32,v=f32",
    "hylra:plan=@,chunk=4,keep=24,sink=3,recent=7,activate_at=0,estimator=exact,k=f32,v=f32",
    "hylra:plan=@,chunk=4,keep=24,sink=3,recent=7,activate_at=0,estimator=hash,k=f32,v=f32",
};
enum { SPECS = sizeof specs / sizeof *specs };

static fv_status open_session(const struct fixture *f, const char *spec, fv_session **session)
{
    const char *at = strchr(spec, '@');
    char text[300];

    snprintf(text, sizeof text, "%s", spec);
    if (at) snprintf(text, sizeof text, "%.*s%s%s", (int)(at - spec), spec, f->plan, at + 1);
    return fv_session_new(f->ctx, f->model,
                          &(fv_session_options){.cache = text, .precision = FV_PRECISION_F32, .context = TOKENS_ALL},
                          session);
}

/* Feeds a prompt, in one part or two, and steps; logits of the last one. */
static void feed(const struct fixture *f, fv_session *session, int64_t part, float *logits)
{
    assert_ok(fv_session_prompt(session, f->ids, part, NULL, 0));
    assert_ok(fv_session_prompt(session, f->ids + part, TOKENS_PROMPT - part, NULL, 0));
    for (int64_t p = TOKENS_PROMPT; p < TOKENS_ALL; p++)
        assert_ok(fv_session_feed(session, f->ids + p, 1, logits, 1));
}

/* Prompts are dense, so what is chosen later does not depend on their number. */
static void a_prompt_in_two_parts_is_one_prompt(void **state)
{
    const struct fixture *f = *state;
    float logits[TOKENS_ALL];
    fv_session *one, *two;

    for (int s = 0; s < SPECS; s++) {
        assert_ok(open_session(f, specs[s], &one));
        assert_ok(open_session(f, specs[s], &two));
        feed(f, one, 0, logits);
        feed(f, two, FIRST, logits);
        for (int64_t l = 0; l < LAYERS; l++)
            for (int64_t g = 0; g < KEY_HEADS; g++) {
                int64_t a_count, b_count;
                const int32_t *a = fv_session_selected(one, l, g, &a_count);
                const int32_t *b = fv_session_selected(two, l, g, &b_count);
                assert_int_equal(a_count, b_count);
                assert_int_equal(a == NULL, b == NULL);
                for (int64_t i = 0; a && i < a_count; i++)
                    if (a[i] != b[i])
                        fail_msg("%s: layer %d, head %d, row %d: expected position %d, got %d", specs[s], (int)l,
                                 (int)g, (int)i, a[i], b[i]);
            }
        fv_session_free(one);
        fv_session_free(two);
    }
}

static void a_cleared_session_is_a_new_one(void **state)
{
    const struct fixture *f = *state;
    static const char h2o[] = "h2o:budget=12";

    for (int s = 0; s <= SPECS; s++) {
        float fresh[TOKENS_ALL], again[TOKENS_ALL];
        fv_session_stats empty, full;
        fv_session *session;
        assert_ok(open_session(f, s < SPECS ? specs[s] : h2o, &session));
        fv_session_measure(session, &empty);
        feed(f, session, 0, fresh);
        fv_session_measure(session, &full);
        assert_true(full.policy_bytes > empty.policy_bytes);
        fv_session_clear(session);
        fv_session_measure(session, &full);
        assert_int_equal(full.policy_bytes, empty.policy_bytes);
        feed(f, session, 0, again);
        for (int64_t i = 0; i < f->tiny.vocabulary; i++)
            if (memcmp(&fresh[i], &again[i], sizeof fresh[i]) != 0)
                fail_msg("%s: logit %d: expected the same bits, got %.9g and %.9g", s < SPECS ? specs[s] : h2o, (int)i,
                         (double)fresh[i], (double)again[i]);
        fv_session_free(session);
    }
}

/* ---- bad input --------------------------------------------------------------------------------------------------- */

static void options_out_of_range_are_refused(void **state)
{
    static const struct {
        const char *spec, *words;
        fv_status status;
    } bad[] = {
        {"h2o:budget=0", "expected 1 to", FV_E_USAGE},
        {"h2o:budget=8,recent=8", "fewer rows than the budget of 8, got 8", FV_E_USAGE},
        {"h2o:recent=-2", "recent", FV_E_USAGE},
        {"h2o:window=3", "window", FV_E_USAGE},
        {"alisa:r=0", "r", FV_E_USAGE},
        {"alisa:r=1.5", "r", FV_E_USAGE},
        {"alisa:r=nan", "r", FV_E_USAGE},
        {"alisa:score=mean", "local or global or last", FV_E_USAGE},
        {"alisa:sets=head", "layer or kv", FV_E_USAGE},
        {"alisa:bits=4", "16 or 8", FV_E_USAGE},
        {"alisa:refresh=-1", "refresh", FV_E_USAGE},
        {"alisa:resident=-1", "resident", FV_E_USAGE},
        {"alisa:resident=9999999999", "resident", FV_E_USAGE},
        {"alisa:resident=1.5", "resident", FV_E_USAGE},
        {"alisa:recompute=-1", "recompute", FV_E_USAGE},
        {"alisa:recompute=all", "recompute", FV_E_USAGE},
        {"alisa:bits=8,k=q8_0", "rows of f16, bf16 or f32, got k=q8_0", FV_E_USAGE},
        {"alisa:bits=8,v=q4_0", "rows of f16, bf16 or f32, got v=q4_0", FV_E_USAGE},
        {"blocktopk:block=0", "expected 1 to", FV_E_USAGE},
        {"blocktopk:top=0", "expected 1 to", FV_E_USAGE},
        {"blocktopk:sink=-1", "sink", FV_E_USAGE},
        {"blocktopk:local=-1", "local", FV_E_USAGE},
        {"blocktopk:dense_layers=-1", "dense_layers", FV_E_USAGE},
        {"hylra", "plan", FV_E_USAGE},
        {"hylra:plan=@,chunk=0", "chunk", FV_E_USAGE},
        {"hylra:plan=@,keep=63", "a chunk of 64 rows or more, got 63", FV_E_USAGE},
        {"hylra:plan=@,sink=-1", "sink", FV_E_USAGE},
        {"hylra:plan=@,recent=-1", "recent", FV_E_USAGE},
        {"hylra:plan=@,activate_at=-1", "activate_at", FV_E_USAGE},
        {"hylra:plan=@,estimator=max", "mean or exact or hash", FV_E_USAGE},
        {"hylra:plan=/tmp/fovea/is/not/there", "/tmp/fovea/is/not/there", FV_E_IO},
    };
    const struct fixture *f = *state;
    fv_session *session;

    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        assert_fails(open_session(f, bad[b].spec, &session), bad[b].status, bad[b].words);
        assert_null(session);
    }
}

static void wrong_plans_are_refused(void **state)
{
    static const struct {
        const char *text, *words;
    } bad[] = {
        {"", "is not JSON"},
        {"[]", "expected a JSON object"},
        {"{\"full\":[]}", "'plan' is missing"},
        {"{\"plan\":[-1,-1,-1,-1]}", "'full' is missing"},
        {"{\"plan\":[-1,-1,-1],\"full\":[]}", "'plan': expected 4 items, got 3"},
        {"{\"plan\":[-1,-1,-1,-1,-1],\"full\":[]}", "'plan': expected 4 items, got 5"},
        {"{\"plan\":{},\"full\":[]}", "'plan': expected an array"},
        {"{\"plan\":[-1,1,-1,-1],\"full\":[]}", "plan[1]: expected a whole number of -1 to 0"},
        {"{\"plan\":[0,-1,-1,-1],\"full\":[]}", "plan[0]: expected a whole number of -1 to -1"},
        {"{\"plan\":[-1,-2,-1,-1],\"full\":[]}", "plan[1]"},
        {"{\"plan\":[-1,0.0,-1,-1],\"full\":[]}", "plan[1]"},
        {"{\"plan\":[-1,\"0\",-1,-1],\"full\":[]}", "plan[1]"},
        {"{\"plan\":[-1,99999999999999999999,-1,-1],\"full\":[]}", "is not JSON"},
        {"{\"plan\":[-1,-1,-1,-1],\"full\":[4]}", "full[0]: expected a whole number of 0 to 3"},
        {"{\"plan\":[-1,-1,-1,-1],\"full\":[-1]}", "full[0]"},
        {"{\"plan\":[-1,-1,-1,-1],\"full\":2}", "'full': expected an array"},
        {"{\"plan\":[-1,-1,-1,2],\"full\":[2]}",
         "plan[3]: expected a layer that chooses chunks, got layer 2, which reads"},
    };
    struct fixture *f = *state;
    fv_session *session;

    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        write_plan(f, bad[b].text);
        assert_fails(open_session(f, "hylra:plan=@", &session), FV_E_FORMAT, bad[b].words);
        assert_null(session);
    }
    write_plan(f, "{\"plan\":[-1,0,0,0],\"full\":[]}");
    assert_fails(open_session(f, "1-3/hylra:plan=@", &session), FV_E_FORMAT,
                 "layer 0, which this policy does not act on");
    write_plan(f, "{\"plan\":[-1,0,-1,1],\"full\":[2]}");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sums_are_what_is_left_whatever_the_order),
        cmocka_unit_test(a_prompt_in_two_parts_is_one_prompt),
        cmocka_unit_test(a_cleared_session_is_a_new_one),
        cmocka_unit_test(options_out_of_range_are_refused),
        cmocka_unit_test(wrong_plans_are_refused),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
