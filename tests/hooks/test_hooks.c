/* Hooks: what is told is what the naive twin of the model computes; whom it concerns, and in which order. */
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "hooks/picked.h"
#include "models/session.h"
#include "support/tiny_model.h"

enum { TOKENS = 40, PROMPT = 33, WIDTH = 64 };

/* What the twin had at each layer: hidden [layers, TOKENS, WIDTH], weights [layers, H, TOKENS, TOKENS]. */
struct twin {
    const tiny_model *m;
    double *hidden, *weight, *q, *k;
};

static void keep(void *user, tiny_cache *c)
{
    struct twin *t = user;
    const tiny_model *m = c->m;
    int64_t D = m->key_dim;

    for (int64_t i = 0; i < WIDTH; i++)
        t->hidden[(c->l * TOKENS + c->p) * WIDTH + i] = c->residual[c->p * WIDTH + i];
    for (int64_t h = 0; h < m->heads; h++) {
        for (int64_t j = 0; j < TOKENS; j++)
            t->weight[((c->l * m->heads + h) * TOKENS + c->p) * TOKENS + j] = c->weight[h * TOKENS + j];
        for (int64_t d = 0; d < D; d++)
            t->q[((c->l * m->heads + h) * TOKENS + c->p) * D + d] = c->q[(c->p * m->heads + h) * D + d];
    }
    for (int64_t g = 0; g < m->key_heads; g++)
        for (int64_t d = 0; d < D; d++)
            t->k[((c->l * m->key_heads + g) * TOKENS + c->p) * D + d] = c->k[(c->p * m->key_heads + g) * D + d];
}

struct fixture {
    tiny_model tiny;
    fv_ctx *ctx;
    fv_model *model;
    fv_session *session;
    int32_t ids[TOKENS];
    struct twin twin;
    int told; /* calls of a kind */
};

static double *numbers(int64_t count)
{
    double *all = calloc((size_t)count, sizeof *all);

    assert_non_null(all);
    return all;
}

static void begin(struct fixture *f, const fv_session_options *options)
{
    static uint64_t stream = 700;
    fv_random random = fv_random_new(test_seed(), ++stream);
    double *logits;

    *f = (struct fixture){.tiny = {.architecture = "llama", .f16_cache = true}, .ctx = test_ctx("cpu", 2)};
    tiny_make(&f->tiny);
    const char *path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    for (int i = 0; i < TOKENS; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
    assert_ok(fv_session_new(f->ctx, f->model, options, &f->session));
    const tiny_model *m = &f->tiny;
    f->twin = (struct twin){m, numbers(m->layers * TOKENS * WIDTH), numbers(m->layers * m->heads * TOKENS * TOKENS),
                            numbers(m->layers * m->heads * TOKENS * m->key_dim),
                            numbers(m->layers * m->key_heads * TOKENS * m->key_dim)};
    logits = numbers(TOKENS * m->vocabulary);
    tiny_twin_cached(m, f->ids, PROMPT, TOKENS, &(tiny_policy){.after = keep, .user = &f->twin}, logits, NULL);
    free(logits);
}

static void end(struct fixture *f)
{
    fv_session_free(f->session);
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
    free(f->twin.hidden);
    free(f->twin.weight);
    free(f->twin.q);
    free(f->twin.k);
}

static void feed(struct fixture *f)
{
    assert_ok(fv_session_prompt(f->session, f->ids, PROMPT, NULL, 0));
    for (int i = PROMPT; i < TOKENS; i++)
        assert_ok(fv_session_feed(f->session, f->ids + i, 1, NULL, 0));
}

/* Sums in f32 through all layers, and rows that may round to the half-precision number beside the twin's. */
static void close_to(const char *what, int64_t l, int64_t h, int64_t i, int64_t j, double expected, double got)
{
    if (!(fabs(got - expected) <= 2e-3 * fmax(1, fabs(expected))))
        fail_msg("%s of layer %lld, head %lld, row %lld, place %lld: expected %.9g, got %.9g", what, (long long)l,
                 (long long)h, (long long)i, (long long)j, expected, got);
}

/* ---- points -------------------------------------------------------------------------------------------------------
 */

static fv_status check_hidden(void *user, const fv_look *look)
{
    struct fixture *f = user;

    assert_int_equal(look->point, FV_POINT_HIDDEN);
    assert_int_equal(look->prompt, look->position < PROMPT);
    assert_in_range(look->layer, 0, f->tiny.layers);
    f->told++;
    for (int64_t i = 0; i < look->hidden.dims[0] && look->layer < f->tiny.layers; i++)
        for (int64_t c = 0; c < WIDTH; c++)
            close_to("hidden", look->layer, 0, look->position + i, c,
                     f->twin.hidden[(look->layer * TOKENS + look->position + i) * WIDTH + c],
                     (double)*(float *)fv_at(&look->hidden, i, c, 0, 0));
    return FV_OK;
}

static void check_row(struct fixture *f, const fv_look *look, const fv_picked *p, const fv_tensor *weights,
                      const fv_tensor *logits, int64_t h, int64_t i)
{
    const tiny_model *m = &f->tiny;
    int64_t head = p->head[h], row = p->position + i, D = m->key_dim, l = look->layer;
    const double *expected = f->twin.weight + ((l * m->heads + head) * TOKENS + row) * TOKENS;
    double lse = (double)*(float *)fv_at(&p->lse, 0, h, i, 0);

    for (int64_t d = 0; d < D; d++)
        close_to("q", l, head, row, d, f->twin.q[((l * m->heads + head) * TOKENS + row) * D + d],
                 (double)*(float *)fv_at(&p->q, 0, h, i, d));
    for (int64_t j = 0; j < p->keys; j++) {
        double weight = (double)*(float *)fv_at(weights, 0, h, i, j),
               logit = (double)*(float *)fv_at(logits, 0, h, i, j);
        int64_t at = fv_picked_key(p, p->key_from + j);
        close_to("weight", l, head, row, at, expected[at], weight);
        close_to("logit's weight", l, head, row, at, weight, exp(logit - lse));
        if (at > row) assert_true(weight == 0 && logit == -INFINITY);
    }
}

static const fv_list some_heads = {2, {1, 4}}, some_layers = {1, {2}};

static fv_status check_attention(void *user, const fv_look *look)
{
    struct fixture *f = user;
    const fv_selector parts[] = {{0}, {.heads = &some_heads, .row_from = 5, .row_to = 36, .key_from = 3, .key_to = 20}};
    const fv_call *call = look->call;
    int64_t group = call->query_heads / call->key_heads;

    f->told++;
    for (int n = 0; n < 2; n++) {
        fv_picked p;
        fv_tensor weights, logits;
        int64_t first;
        if (fv_selected_rows(&parts[n], look->position, call->queries, &first) == 0) continue;
        fv_mark mark = fv_scratch_mark(f->ctx);
        assert_ok(fv_pick(f->ctx, look, &parts[n], &p));
        assert_int_equal(p.position, look->position + first);
        assert_int_equal(p.heads, n ? 2 : call->query_heads);
        assert_int_equal(p.keys, n ? fv_min(call->keys, 20) - 3 : call->keys);
        assert_ok(fv_picked_weights(f->ctx, &p, &weights));
        assert_ok(fv_picked_logits(f->ctx, &p, &logits));
        for (int64_t r = 0; r < p.heads * p.rows; r++)
            check_row(f, look, &p, &weights, &logits, r / p.rows, r % p.rows);
        for (int64_t h = 0; n == 0 && h < p.heads; h++) /* what the heads give */
            for (int64_t i = 0; i < p.rows; i++)
                for (int64_t d = 0; d < call->value_dim; d++) {
                    double o = 0;
                    for (int64_t j = 0; j < p.keys; j++)
                        o += (double)*(float *)fv_at(&weights, 0, h, i, j) *
                             fv_load(call->v.dtype, call->v.data,
                                     h / group * call->v.strides[1] + j * call->v.strides[2] + d * call->v.strides[3]);
                    close_to("o", look->layer, h, p.position + i, d, o, (double)*(float *)fv_at(&call->o, 0, h, i, d));
                }
        fv_scratch_release(f->ctx, mark);
    }
    return FV_OK;
}

static void what_is_told_is_what_the_twin_computes(void **state)
{
    static const int64_t chunks[] = {0, 10};

    (void)state;
    for (int n = 0; n < 2; n++) {
        struct fixture f;
        fv_listener hidden = {.points = FV_POINT_HIDDEN, .hear = check_hidden, .user = &f};
        fv_listener attention = {.points = FV_POINT_ATTEND, .hear = check_attention, .user = &f};
        int calls = (chunks[n] ? 4 : 1) + TOKENS - PROMPT;
        begin(&f, &(fv_session_options){.precision = FV_PRECISION_F32, .chunk = chunks[n]});
        fv_listen(&f.session->listeners, &hidden);
        fv_listen(&f.session->listeners, &attention);
        feed(&f);
        assert_int_equal(f.told, calls * 3 + calls * 4);
        end(&f);
    }
}

/* As snapkv has it. */
static void a_prompt_that_is_read_layer_by_layer_is_told_of(void **state)
{
    struct fixture f;
    fv_listener hidden = {.points = FV_POINT_HIDDEN, .select.phases = FV_IN_PROMPT, .hear = check_hidden, .user = &f};

    (void)state;
    begin(&f, &(fv_session_options){.precision = FV_PRECISION_F32, .cache = "snapkv:budget=16,window=8", .chunk = 12});
    fv_listen(&f.session->listeners, &hidden);
    feed(&f);
    assert_int_equal(f.told, 3 * 4); /* chunks; layers and what is behind them */
    end(&f);
}

/* ---- whom it concerns ---------------------------------------------------------------------------------------------
 */

static fv_status count(void *user, const fv_look *look)
{
    (void)look;
    ++*(int *)user;
    return FV_OK;
}

static void calls_that_do_not_concern_a_listener_are_not_told(void **state)
{
    static const fv_list beyond = {1, {6}};
    const struct {
        fv_selector select;
        int calls; /* of 1 prompt and 7 steps in 3 layers */
    } cases[] = {
        {{0}, 24},
        {{.phases = FV_IN_PROMPT}, 3},
        {{.phases = FV_IN_STEP}, 21},
        {{.layers = &some_layers}, 8},
        {{.heads = &some_heads}, 24},
        {{.heads = &beyond}, 0},
        {{.row_to = PROMPT}, 3},
        {{.row_from = PROMPT + 2, .row_to = PROMPT + 3}, 3},
        {{.row_from = TOKENS}, 0},
    };
    enum { CASES = sizeof cases / sizeof *cases };
    fv_listener listener[CASES];
    int told[CASES] = {0};
    struct fixture f;

    (void)state;
    begin(&f, &(fv_session_options){0});
    for (int n = 0; n < CASES; n++) {
        listener[n] =
            (fv_listener){.points = FV_POINT_ATTEND, .select = cases[n].select, .hear = count, .user = &told[n]};
        fv_listen(&f.session->listeners, &listener[n]);
    }
    assert_true(fv_heard(f.session->listeners, FV_POINT_ATTEND));
    assert_false(fv_heard(f.session->listeners, FV_POINT_HIDDEN));
    assert_false(fv_heard(NULL, FV_POINT_ATTEND));
    feed(&f);
    for (int n = 0; n < CASES; n++)
        if (told[n] != cases[n].calls) fail_msg("case %d: expected %d calls, got %d", n, cases[n].calls, told[n]);
    end(&f);
}

static fv_status refuse(void *user, const fv_look *look)
{
    (void)user;
    return look->layer == 1 ? fv_fail(FV_E_ARGUMENT, "enough was heard") : FV_OK;
}

static void what_a_listener_returns_the_run_returns(void **state)
{
    static const fv_point points[] = {FV_POINT_HIDDEN, FV_POINT_ATTEND};

    (void)state;
    for (int n = 0; n < 2; n++) {
        struct fixture f;
        fv_listener listener = {.points = points[n], .hear = refuse};
        begin(&f, &(fv_session_options){0});
        fv_listen(&f.session->listeners, &listener);
        assert_fails(fv_session_prompt(f.session, f.ids, PROMPT, NULL, 0), FV_E_ARGUMENT, "enough was heard");
        assert_int_equal(fv_session_length(f.session), 0);
        f.session->listeners = NULL;
        assert_ok(fv_session_prompt(f.session, f.ids, PROMPT, NULL, 0));
        end(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_told_is_what_the_twin_computes),
        cmocka_unit_test(a_prompt_that_is_read_layer_by_layer_is_told_of),
        cmocka_unit_test(calls_that_do_not_concern_a_listener_are_not_told),
        cmocka_unit_test(what_a_listener_returns_the_run_returns),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
