/* What one-shot policies decide by: worked numbers of the sheets, properties of budgets, scores over rows with gaps, a
 * second prompt, and plan files that are wrong. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/context.h"
#include "cache/frame_scores.h"
#include "cache/layer_budgets.h"
#include "cache/window_scores.h"
#include "models/session.h"
#include "support/tiny_model.h"

static void near(const char *what, int64_t at, double got, double expected, double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s: %d: expected %.9g, got %.9g (tolerance %g)", what, (int)at, expected, got, tolerance);
}

/* ---- worked numbers ---------------------------------------------------------------------------------------------- */

static void smoothing_divides_by_the_kernel_everywhere(void **state)
{
    static const float sheet_21[] = {1, 0, 0, 0, 0, 4, 0}, means[] = {.2F, .2F, .2F, .8F, .8F, .8F, .8F};
    static const float largest[] = {1, 1, 1, 4, 4, 4, 4};
    static const float sheet_151[] = {.1F, 0, .4F, 0, 0, .2F, 0, 0};
    static const float sums[] = {.5F, .5F, .5F, .6F, .6F, .2F, .2F, .2F};
    fv_ctx *ctx = test_ctx("cpu", 1);
    int32_t place[2];
    float out[8];
    (void)state;

    fv_smooth(FV_SMOOTH_AVERAGE, 5, sheet_21, 7, out);
    for (int j = 0; j < 7; j++)
        near("avg", j, (double)out[j], (double)means[j], 1e-7);
    fv_smooth(FV_SMOOTH_MAX, 5, sheet_21, 7, out);
    for (int j = 0; j < 7; j++)
        near("max", j, (double)out[j], (double)largest[j], 0);
    fv_smooth(FV_SMOOTH_AVERAGE, 5, sheet_151, 8, out);
    for (int j = 0; j < 8; j++)
        near("avg * 5", j, 5 * (double)out[j], (double)sums[j], 1e-7);
    assert_ok(fv_window_top(ctx, out, 8, 2, place)); /* the peak itself is lost */
    assert_int_equal(place[0], 3);
    assert_int_equal(place[1], 4);
    fv_smooth(FV_SMOOTH_MAX, 9, sheet_151, 3, out); /* a kernel wider than the row */
    near("max", 0, (double)out[0], (double).4F, 0);
    fv_ctx_free(ctx);
}

static void equal_scores_go_to_the_lower_place(void **state)
{
    static const float scores[] = {1, 3, 2, 3, NAN, 2, 2, INFINITY};
    static const int32_t expected[] = {1, 2, 3, 5};
    fv_ctx *ctx = test_ctx("cpu", 1);
    int32_t place[4];
    (void)state;

    assert_ok(fv_window_top(ctx, scores, 8, 4, place)); /* what is no number counts as 0 */
    for (int i = 0; i < 4; i++)
        assert_int_equal(place[i], expected[i]);
    fv_ctx_free(ctx);
}

static void loud_tokens_gain_alpha_in_all(void **state)
{
    static const float norm[] = {1, 2, 3, 4}, moved[] = {101, 102, 103, 104}, grown[] = {10, 20, 30, 40};
    static const double expected[] = {0.348012, 0.434219, 0.541781, 0.675988};
    float bonus[4];
    (void)state;

    for (int turn = 0; turn < 3; turn++) {
        double sum = 0;
        fv_frame_bonus(turn == 0 ? norm : turn == 1 ? moved : grown, 4, 2, 3.5, bonus);
        for (int j = 0; j < 4; j++) {
            near("bonus", j, (double)bonus[j], expected[j], 1e-6); /* the sheet's digits */
            sum += (double)bonus[j];
        }
        near("sum", turn, sum, 2, 1e-6);
    }
    fv_frame_bonus(norm, 1, 2, 3.5, bonus); /* one token alone has no deviation */
    near("bonus of one", 0, (double)bonus[0], 2, 0);
}

static void residuals_leave_what_newest_keys_do_not_say(void **state)
{
    static const float newest[] = {1, 0, 0, 1, 1, 0, 2, 1, 0, 0, 0, 7};
    static const float older[] = {3, 4, 0, 1, 2, 2, 0, 0, 2};
    static const double beside[] = {0, 2, 2};
    fv_ctx *ctx = test_ctx("cpu", 2);
    float basis[9], residual[3];
    int64_t directions;
    (void)state;

    for (int svd = 0; svd < 2; svd++) {
        assert_ok(fv_frame_basis(ctx, newest, 2, 3, 2, svd, basis, &directions));
        assert_int_equal(directions, 2);
        assert_ok(fv_frame_residuals(ctx, older, 3, 3, basis, directions, residual));
        for (int t = 0; t < 3; t++)
            near("residual", t, (double)residual[t], beside[t], 1e-6); /* f32 of length 5 */
    }
    assert_ok(fv_frame_basis(ctx, newest, 4, 3, 3, false, basis, &directions)); /* the third lies in the span */
    assert_int_equal(directions, 2);
    assert_ok(fv_frame_basis(ctx, newest, 4, 3, 1, true, basis, &directions)); /* the longest is the main one */
    assert_int_equal(directions, 1);
    near("direction", 2, fabs((double)basis[2]), 1, 1e-7);
    fv_ctx_free(ctx);
}

/* Whatever the rank, a copy of one of the first keys has nothing of its own; with all directions, no copy has. */
static void copies_have_no_residual(void **state)
{
    enum { KEYS = 40, DIM = 24, RANK = 9 };
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_tensor keys = test_random(ctx, 3, FV_DIMS(KEYS, DIM));
    float basis[DIM * DIM], residual[KEYS];
    (void)state;

    for (int turn = 0; turn < 3; turn++) {
        int64_t rank = turn ? DIM : RANK, directions;
        assert_ok(fv_frame_basis(ctx, keys.data, KEYS, DIM, rank, turn == 2, basis, &directions));
        assert_int_equal(directions, rank);
        for (int64_t a = 0; a < directions; a++)
            for (int64_t b = 0; b <= a; b++) {
                double dot = 0;
                for (int64_t d = 0; d < DIM; d++)
                    dot += (double)basis[a * DIM + d] * (double)basis[b * DIM + d];
                near("product of directions", a * DIM + b, dot, a == b, 1e-6);
            }
        assert_ok(fv_frame_residuals(ctx, keys.data, KEYS, DIM, basis, directions, residual));
        for (int64_t t = 0; t < rank; t++)
            near("residual of a copy", t, (double)residual[t], 0, 3 * 5 * DIM * 6e-8); /* length * D * epsilon */
        for (int64_t t = rank; t < KEYS && turn; t++)
            near("residual of a copy", t, (double)residual[t], 0, 3 * 5 * DIM * 6e-8);
        for (int64_t t = rank; t < KEYS && !turn; t++)
            assert_true(residual[t] > 0.1F);
    }
    fv_ctx_free(ctx);
}

/* ---- budgets of layers ------------------------------------------------------------------------------------------- */

static void budgets_by_error_are_the_sheets(void **state)
{
    static const double rising[] = {.1, .2, .3, .4}, steep[] = {.05, .05, .1, .8}, alone[] = {0, 0, 0, 1};
    static const int64_t of_rising[] = {122, 211, 301, 390}, of_steep[] = {76, 77, 122, 749};
    static const int64_t of_alone[] = {86, 85, 85, 768}; /* the cap of 768 leaves 160 rows for three at 32 */
    static const double equal[] = {.25, .25, .25, .25};
    int64_t rows[4];
    (void)state;

    fv_error_budgets(256, rising, 4, rows);
    assert_memory_equal(rows, of_rising, sizeof rows);
    fv_error_budgets(256, steep, 4, rows);
    assert_memory_equal(rows, of_steep, sizeof rows);
    fv_error_budgets(256, alone, 4, rows);
    assert_memory_equal(rows, of_alone, sizeof rows);
    fv_error_budgets(64, equal, 4, rows);
    for (int l = 0; l < 4; l++)
        assert_int_equal(rows[l], 64);
    fv_error_budgets(INT32_MAX, alone, 4, rows); /* far too many to hand out one by one */
    assert_int_equal(rows[0] + rows[1] + rows[2] + rows[3], 4 * (int64_t)INT32_MAX);
    assert_int_equal(rows[3], 3 * (int64_t)INT32_MAX);
}

/* Against the sheet's passes, one row at a time. */
static void budgets_by_error_are_those_of_its_passes(void **state)
{
    enum { LAYERS = 9 };
    fv_random random = fv_random_new(test_seed(), 41);
    (void)state;

    for (int turn = 0; turn < 300; turn++) {
        int64_t layers = 1 + (int64_t)fv_random_below(&random, LAYERS),
                budget = 33 + (int64_t)fv_random_below(&random, 300);
        int64_t rows[LAYERS], expected[LAYERS], d = budget * layers;
        double importance[LAYERS], sum = 0;
        bool used[LAYERS];
        for (int64_t l = 0; l < layers; l++)
            sum += importance[l] = pow((double)(1 + fv_random_below(&random, 6)), (double)(turn % 5));
        for (int64_t l = 0; l < layers; l++) {
            importance[l] /= sum;
            expected[l] = 32 + (int64_t)rint(importance[l] * (double)(layers * (budget - 32)));
            expected[l] = expected[l] > 3 * budget ? 3 * budget : expected[l];
            d -= expected[l];
        }
        for (bool moved = true; moved && d != 0;) {
            moved = false;
            memset(used, 0, sizeof used);
            for (int64_t n = 0; n < layers; n++) {
                int64_t best = -1;
                for (int64_t l = 0; l < layers; l++)
                    if (!used[l] &&
                        (best < 0 || (d > 0 ? importance[l] > importance[best] : importance[l] < importance[best])))
                        best = l;
                used[best] = true;
                if (d > 0 && expected[best] < 3 * budget)
                    expected[best]++, d--, moved = true;
                else if (d < 0 && expected[best] > 32)
                    expected[best]--, d++, moved = true;
                if (d == 0) break;
            }
        }
        fv_error_budgets(budget, importance, layers, rows);
        for (int64_t l = 0; l < layers; l++)
            if (rows[l] != expected[l])
                fail_msg("turn %d, budget %d, layer %d of %d: expected %d rows, got %d", turn, (int)budget, (int)l,
                         (int)layers, (int)expected[l], (int)rows[l]);
    }
}

static void pyramids_have_their_budget_in_the_mean(void **state)
{
    fv_random random = fv_random_new(test_seed(), 42);
    (void)state;

    for (int turn = 0; turn < 2000; turn++) {
        int64_t layers = 1 + (int64_t)fv_random_below(&random, 40), window = 1 + (int64_t)fv_random_below(&random, 40);
        int64_t budget = window + 1 + (int64_t)fv_random_below(&random, 300), sum = 0, before = INT64_MAX;
        int64_t beta = 1 + (int64_t)fv_random_below(&random, 30);
        int64_t tokens = budget + 1 + (int64_t)fv_random_below(&random, 600);
        for (int64_t l = 0; l < layers; l++) {
            int64_t rows = fv_pyramid_budget(budget, window, beta, tokens, l, layers);
            assert_true(rows >= window && rows <= tokens && rows <= before);
            before = rows;
            sum += rows;
        }
        if (sum != budget * layers)
            fail_msg("budget %d, window %d, beta %d, %d tokens, %d layers: expected %d rows, got %d", (int)budget,
                     (int)window, (int)beta, (int)tokens, (int)layers, (int)(budget * layers), (int)sum);
    }
    /* 64 rows to choose in the mean of 30 layers: 64 / 20 in the last, 2 * 64 - 3 in the first */
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 1000, 0, 30), 32 + 125);
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 1000, 29, 30), 32 + 3);
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 1000, 1, 30), 32 + 121); /* 125 - 122/29 = 120.8 */
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 127, 1, 30), 96);        /* too short for a pyramid */
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 130, 0, 30), 32 + 98);   /* no more than there are */
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 130, 29, 30), 32 + 30);
    assert_int_equal(fv_pyramid_budget(96, 32, 20, 1000, 1, 3), 96);
}

/* ---- rows with gaps ---------------------------------------------------------------------------------------------- */

enum { HEADS = 6, KEY_HEADS = 2, DIM = 32, TOKENS = 60, PROMPT = 4, WINDOW = 7, KERNEL = 3, BUDGET = 20 };

/* As they are when a stream has been acted on, and a second prompt of PROMPT tokens came: heads hold different rows. */
static void make_rows(fv_ctx *ctx, fv_dtype type, fv_rows *rows, fv_tensor *keys)
{
    fv_tensor v = test_random(ctx, 1, FV_DIMS(1, KEY_HEADS, TOKENS, DIM));

    *keys = test_random(ctx, 1.5, FV_DIMS(1, KEY_HEADS, TOKENS, DIM));
    assert_ok(fv_rows_new(rows, &(fv_rows_options){.heads = KEY_HEADS,
                                                   .key_dim = DIM,
                                                   .value_dim = DIM,
                                                   .capacity = TOKENS,
                                                   .key_type = type,
                                                   .value_type = FV_F32}));
    assert_ok(fv_rows_append(ctx, rows, keys, &v, 0));
    for (int64_t g = 0; g < KEY_HEADS; g++) {
        int32_t keep[TOKENS];
        int64_t count = 0;
        for (int32_t j = 0; j < TOKENS; j++)
            if (j >= TOKENS - PROMPT - WINDOW || j % (g + 3) != 1) keep[count++] = j;
        fv_rows_keep(rows, g, keep, count);
    }
}

/* The stored keys of a head's rows. */
static void stored_keys(fv_ctx *ctx, const fv_rows *rows, int64_t g, float *out)
{
    int64_t count = fv_rows_count(rows, g);
    fv_tensor k, v, to;

    fv_rows_view(rows, g, 1, &k, &v);
    assert_ok(fv_tensor_wrap(&to, out, FV_F32, FV_DIMS(count, DIM)));
    assert_ok(fv_dequantize_rows(ctx, &(fv_dequantize_args){.x = fv_reshaped(&k, FV_DIMS(count, DIM)), .out = to}));
}

/* Sums of the last queries' weights over a head's rows, smoothed, in the mean over its query heads. */
static void expected_scores(const float *keys, const int32_t *position, int64_t count, const fv_tensor *q, int64_t g,
                            double *score)
{
    int64_t group = HEADS / KEY_HEADS, columns = count - WINDOW;
    double sum[TOKENS];

    for (int64_t j = 0; j < columns; j++)
        score[j] = 0;
    for (int64_t h = g * group; h < (g + 1) * group; h++) {
        memset(sum, 0, sizeof sum);
        for (int64_t i = 0; i < PROMPT; i++) {
            double weight[TOKENS], total = 0;
            for (int64_t j = 0; j < count; j++) {
                double dot = 0;
                for (int64_t d = 0; d < DIM; d++)
                    dot += (double)*(float *)fv_at(q, 0, h, i, d) * (double)keys[j * DIM + d];
                weight[j] = position[j] <= TOKENS - PROMPT + i ? exp(20 * tanh(dot * 0.2 / 20)) : 0;
                total += weight[j];
            }
            for (int64_t j = 0; j < columns; j++)
                sum[j] += weight[j] / total;
        }
        for (int64_t j = 0; j < columns; j++)
            for (int64_t i = j - KERNEL / 2; i <= j + KERNEL / 2; i++)
                score[j] += i >= 0 && i < columns ? sum[i] / KERNEL / (double)group : 0;
    }
}

static void check_gaps(fv_ctx *ctx, fv_dtype type)
{
    int64_t window[1] = {0};
    const fv_cache_model model = {.layers = 1,
                                  .query_heads = HEADS,
                                  .key_heads = KEY_HEADS,
                                  .key_dim = DIM,
                                  .value_dim = DIM,
                                  .context = TOKENS,
                                  .window = window};
    const fv_policy_use use = {.model = &model, .layers = 1};
    const fv_window_vote vote = {.window = WINDOW, .kernel = KERNEL};
    fv_window_queries queries = {0};
    fv_rows rows;
    fv_policy_layer layer = {.use = &use, .rows = &rows, .state = &queries, .all = &layer};
    fv_policy_call call = {.q = test_random(ctx, 1.5, FV_DIMS(1, HEADS, PROMPT, DIM)),
                           .offset = TOKENS - PROMPT,
                           .queries = PROMPT,
                           .prompt = true,
                           .logits = {.scale = 0.2F, .softcap = 20}};
    static float stored[KEY_HEADS][TOKENS * DIM];
    int32_t position[KEY_HEADS][TOKENS];
    int64_t count[KEY_HEADS];
    fv_tensor keys;

    make_rows(ctx, type, &rows, &keys);
    for (int64_t g = 0; g < KEY_HEADS; g++) {
        count[g] = fv_rows_count(&rows, g);
        memcpy(position[g], fv_rows_positions(&rows, g), (size_t)count[g] * sizeof(int32_t));
        stored_keys(ctx, &rows, g, stored[g]);
    }
    fv_policy_call step = call; /* steps are not asked */
    step.prompt = false;
    assert_ok(fv_window_note(&queries, &layer, &step, WINDOW));
    assert_null(queries.q);
    assert_ok(fv_window_note(&queries, &layer, &call, WINDOW));
    assert_ok(fv_window_act(ctx, &layer, &queries, &vote, BUDGET));
    for (int64_t g = 0; g < KEY_HEADS; g++) {
        double score[TOKENS], taken = INFINITY, left = -INFINITY;
        int64_t n = 0, columns = count[g] - WINDOW;
        const int32_t *held = fv_rows_positions(&rows, g);
        assert_int_equal(fv_rows_count(&rows, g), BUDGET);
        expected_scores(stored[g], position[g], count[g], &call.q, g, score);
        for (int64_t j = 0; j < count[g]; j++) {
            bool kept = n < BUDGET && held[n] == position[g][j];
            n += kept;
            if (j >= columns) assert_true(kept);
            if (j < columns && kept) taken = fmin(taken, score[j]);
            if (j < columns && !kept) left = fmax(left, score[j]);
        }
        assert_int_equal(n, BUDGET);
        if (!(taken >= left * (1 - 1e-5))) /* f32: D products and an exponential of up to 20 * 6e-8 */
            fail_msg("type %d, head %d: a row of score %.9g was dropped for one of %.9g", (int)type, (int)g, left,
                     taken);
    }
    fv_window_drop(&layer);
    fv_rows_free(&rows);
}

static void scores_are_of_the_rows_held_in_later_prompts(void **state)
{
    static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0};
    (void)state;

    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            check_gaps(ctx, types[t]);
        fv_ctx_free(ctx);
    }
}

/* ---- sessions ---------------------------------------------------------------------------------------------------- */

enum { FIRST = 70, STEPS = 5, SECOND = 25 };

struct chat {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    int32_t ids[FIRST + STEPS + SECOND];
};

static void begin(struct chat *c)
{
    fv_random random = fv_random_new(test_seed(), 43);
    const char *path;

    c->tiny = (tiny_model){.architecture = "llama", .layers = 3, .context = 128};
    tiny_make(&c->tiny);
    path = tiny_save(&c->tiny);
    assert_ok(fv_model_open(path, &c->model));
    unlink(path);
    c->ctx = test_ctx("cpu", 2);
    for (int i = 0; i < FIRST + STEPS + SECOND; i++)
        c->ids[i] = (int32_t)fv_random_below(&random, c->tiny.vocabulary);
}

static void end(struct chat *c)
{
    fv_ctx_free(c->ctx);
    fv_model_close(c->model);
    tiny_free(&c->tiny);
}

static void check_counts(const struct chat *c, const fv_session *session, const char *spec, int64_t expected,
                         int64_t window)
{
    for (int64_t l = 0; l < c->tiny.layers; l++)
        for (int64_t g = 0; g < c->tiny.key_heads; g++) {
            int64_t count, last = fv_session_length(session) - 1;
            const int32_t *at = fv_session_positions(session, l, g, &count);
            if (count != expected)
                fail_msg("%s: layer %d, head %d: expected %d rows, got %d", spec, (int)l, (int)g, (int)expected,
                         (int)count);
            for (int64_t i = 0; i < window; i++)
                assert_int_equal(at[count - 1 - i], last - i);
            for (int64_t i = 1; i < count; i++)
                assert_true(at[i - 1] < at[i]);
        }
}

/* A second prompt is decided on as the first was; what the first one dropped stays away. */
static void a_second_prompt_is_acted_on(void **state)
{
    static const struct {
        const char *spec;
        int64_t first, second, window;
    } chats[] = {
        {"snapkv:budget=30,window=6", 30, 30, 6},
        {"snapkv:budget=50,window=40", 50, 50, 40}, /* more than the second prompt has */
        {"snapkv:budget=90,window=32,per=layer", FIRST, 90, 32},
        {"compresskv:budget=30", 30, 30, 8},
        {"guikv:budget_pct=50,frames=3-20+20-40+80-95", 35, 50, 8}, /* the newest frame comes later */
        {"guikv:budget_pct=40,frames=3-20+20-40,norm=residual,subspace=svd", 28, 40, 8},
        {"pyramidkv:budget=60,window=8", 60, 60, 8}, /* too short for a pyramid, both times */
    };
    struct chat c;
    (void)state;

    begin(&c);
    for (size_t n = 0; n < sizeof chats / sizeof *chats; n++) {
        fv_session *session;
        assert_ok(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = chats[n].spec}, &session));
        assert_ok(fv_session_prompt(session, c.ids, FIRST, NULL, 0));
        check_counts(&c, session, chats[n].spec, chats[n].first, chats[n].window);
        for (int i = 0; i < STEPS; i++)
            assert_ok(fv_session_feed(session, c.ids + FIRST + i, 1, NULL, 0));
        check_counts(&c, session, chats[n].spec, chats[n].first + STEPS, 1);
        assert_ok(fv_session_prompt(session, c.ids + FIRST + STEPS, SECOND, NULL, 0));
        check_counts(&c, session, chats[n].spec, chats[n].second, chats[n].window);
        fv_session_free(session);
    }
    end(&c);
}

/* After a prompt nothing is remembered of its queries. */
static void queries_are_forgotten_with_the_prompt(void **state)
{
    fv_session_stats stats;
    fv_session *session;
    struct chat c;
    (void)state;

    begin(&c);
    assert_ok(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = "snapkv:budget=30,window=6"}, &session));
    assert_ok(fv_session_prompt(session, c.ids, FIRST, NULL, 0));
    fv_session_measure(session, &stats);
    assert_int_equal(stats.policy_bytes, (size_t)c.tiny.layers * sizeof(fv_window_queries));
    /* one layer was full at a time, the last one to be read with the others' budgets beside it */
    size_t row = 2 * 2 * (size_t)(c.tiny.key_dim * c.tiny.key_heads);
    assert_int_equal(stats.cache_bytes, (size_t)c.tiny.layers * 30 * row);
    assert_int_equal(stats.peak_cache_bytes, (2 * 30 + FIRST) * row);
    fv_session_free(session);
    end(&c);
}

static void without_frames_it_is_snapkv(void **state)
{
    struct chat c;
    fv_session *a, *b;
    (void)state;

    begin(&c);
    assert_ok(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = "guikv:budget_pct=50,alpha=0"}, &a));
    assert_ok(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = "snapkv:budget=35,window=8"}, &b));
    assert_ok(fv_session_prompt(a, c.ids, FIRST, NULL, 0));
    assert_ok(fv_session_prompt(b, c.ids, FIRST, NULL, 0));
    for (int64_t l = 0; l < c.tiny.layers; l++)
        for (int64_t g = 0; g < c.tiny.key_heads; g++) {
            int64_t count, other;
            const int32_t *x = fv_session_positions(a, l, g, &count), *y = fv_session_positions(b, l, g, &other);
            assert_int_equal(count, other);
            assert_memory_equal(x, y, (size_t)count * sizeof *x);
        }
    fv_session_free(a);
    fv_session_free(b);
    end(&c);
}

/* ---- plan files -------------------------------------------------------------------------------------------------- */

static void wrong_plans_are_refused_in_words(void **state)
{
    static const struct {
        const char *options, *text, *words;
    } bad[] = {
        {"", "", "is not JSON"},
        {"", "[]", "expected a JSON object at the top"},
        {"", "{\"importance\":[0.2,0.3,0.5]}", "'heads' is missing"},
        {"", "{\"heads\":[[0],[1],[2]]}", "'importance' is missing"},
        {"", "{\"heads\":[[0],[1]],\"importance\":[0.2,0.3,0.5]}", "'heads': expected 3 items, got 2"},
        {"", "{\"heads\":3,\"importance\":[0.2,0.3,0.5]}", "'heads': expected an array"},
        {"", "{\"heads\":[[0],1,[2]],\"importance\":[0.2,0.3,0.5]}", "heads[1]: expected an array"},
        {"", "{\"heads\":[[0],[],[2]],\"importance\":[0.2,0.3,0.5]}", "heads[1]: expected 1 to 6 items, got 0"},
        {"", "{\"heads\":[[0],[1,6],[2]],\"importance\":[0.2,0.3,0.5]}",
         "heads[1][1]: expected a whole number of 0 to 5"},
        {"", "{\"heads\":[[0],[1.5],[2]],\"importance\":[0.2,0.3,0.5]}", "heads[1][0]: expected a whole number"},
        {"", "{\"heads\":[[0],[4,1,4],[2]],\"importance\":[0.2,0.3,0.5]}", "heads[1]: head 4 is named twice"},
        {"", "{\"heads\":[[0],[1],[2]],\"importance\":[0.2,0.8]}", "'importance': expected 3 items, got 2"},
        {"", "{\"heads\":[[0],[1],[2]],\"importance\":[0.2,0.3,\"x\"]}", "importance[2]: expected a number of 0 to 1"},
        {"", "{\"heads\":[[0],[1],[2]],\"importance\":[0.2,-0.3,1.1]}", "importance[1]: expected a number of 0 to 1"},
        {"", "{\"heads\":[[0],[1],[2]],\"importance\":[0.2,0.3,0.4]}", "expected a sum of 1, got 0.9"},
        {",heads=all", "{\"heads\":[[9],[1],[2]],\"importance\":[0.2,0.3,0.5]}",
         "heads[0][0]"}, /* wrong all the same */
        {",layer_budget=uniform", "{\"heads\":[[0],[1],[2]],\"importance\":[1]}", "expected 3 items, got 1"},
    };
    char path[] = "/tmp/fovea-bad-plan-XXXXXX", spec[128];
    fv_session *session;
    struct chat c;
    int descriptor = mkstemp(path);
    (void)state;

    assert_true(descriptor >= 0);
    begin(&c);
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        FILE *file = fopen(path, "w");
        assert_non_null(file);
        fputs(bad[b].text, file);
        assert_int_equal(fclose(file), 0);
        snprintf(spec, sizeof spec, "compresskv:plan=%s%s", path, bad[b].options);
        assert_fails(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = spec}, &session), FV_E_FORMAT,
                     bad[b].words);
        assert_null(session);
    }
    close(descriptor);
    unlink(path);
    assert_fails(fv_session_new(c.ctx, c.model, &(fv_session_options){.cache = spec}, &session), FV_E_IO, path);
    end(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(smoothing_divides_by_the_kernel_everywhere),
        cmocka_unit_test(equal_scores_go_to_the_lower_place),
        cmocka_unit_test(loud_tokens_gain_alpha_in_all),
        cmocka_unit_test(residuals_leave_what_newest_keys_do_not_say),
        cmocka_unit_test(copies_have_no_residual),
        cmocka_unit_test(budgets_by_error_are_the_sheets),
        cmocka_unit_test(budgets_by_error_are_those_of_its_passes),
        cmocka_unit_test(pyramids_have_their_budget_in_the_mean),
        cmocka_unit_test(scores_are_of_the_rows_held_in_later_prompts),
        cmocka_unit_test(a_second_prompt_is_acted_on),
        cmocka_unit_test(queries_are_forgotten_with_the_prompt),
        cmocka_unit_test(without_frames_it_is_snapkv),
        cmocka_unit_test(wrong_plans_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
