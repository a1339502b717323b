/* Gradients through whole models: against differences of the twin's loss when a logit of attention moves. */
#include "models/gradient.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "fovea/model.h"
#include "support/tiny_model.h"

enum { TOKENS = 24, ANSWER = 5, PLACES = 12 };

/* A logit that is moved, and what the loss does. */
struct place {
    int64_t layer, head, i, j;
    double slope; /* from the walk back */
    bool seen;
};

struct bend {
    const struct place *place;
    double by;
};

static double moved_logit(void *user, const tiny_cache *c, int64_t h, int64_t j)
{
    const struct bend *bend = user;
    const struct place *at = bend->place;
    int64_t D = c->m->key_dim, g = h / (c->m->heads / c->m->key_heads);
    double s = 0;

    for (int64_t d = 0; d < D; d++)
        s += c->q[(c->p * c->m->heads + h) * D + d] * c->k[(j * c->m->key_heads + g) * D + d];
    s /= sqrt((double)D);
    return c->l == at->layer && h == at->head && c->p == at->i && j == at->j ? s + bend->by : s;
}

static double twin_loss(const tiny_model *m, const int32_t *ids, const struct place *place, double by)
{
    struct bend bend = {place, by};
    const tiny_policy policy = {.logit = moved_logit, .user = &bend};
    double *logits = calloc((size_t)(TOKENS * m->vocabulary), sizeof *logits), loss = 0;

    assert_non_null(logits);
    tiny_twin_cached(m, ids, TOKENS, TOKENS, &policy, logits, NULL);
    for (int64_t i = TOKENS - ANSWER; i < TOKENS; i++) {
        const double *row = logits + (i - 1) * m->vocabulary;
        double sum = 0;
        for (int64_t t = 0; t < m->vocabulary; t++)
            sum += exp(row[t] - row[ids[i]]);
        loss += log(sum) / ANSWER;
    }
    free(logits);
    return loss;
}

/* d loss / d logit = A (d_o . (v - o)). */
static double slope_of(const fv_look *look, const struct place *at)
{
    const fv_call *call = look->call;
    int64_t g = at->head / (call->query_heads / call->key_heads);
    double own = 0, sum = 0, slope = 0;

    for (int64_t j = 0; j <= at->i; j++) {
        double s = 0, weight;
        for (int64_t d = 0; d < call->head_dim; d++)
            s += (double)*(float *)fv_at(&call->q, 0, at->head, at->i, d) * *(float *)fv_at(&call->k, 0, g, j, d);
        weight = exp(s * (double)call->scale);
        sum += weight;
        if (j == at->j) own = weight;
    }
    for (int64_t d = 0; d < call->value_dim; d++)
        slope += (double)*(float *)fv_at(&look->d_o, 0, at->head, at->i, d) *
                 (*(float *)fv_at(&call->v, 0, g, at->j, d) - *(float *)fv_at(&call->o, 0, at->head, at->i, d));
    return slope * own / sum;
}

static fv_status look_at(void *user, const fv_look *look)
{
    struct place *places = user;

    for (int n = 0; n < PLACES; n++) {
        if (places[n].layer != look->layer) continue;
        places[n].slope = slope_of(look, &places[n]);
        places[n].seen = true;
    }
    return FV_OK;
}

static void check(tiny_model tiny)
{
    static uint64_t stream;
    fv_random random = fv_random_new(test_seed(), ++stream);
    struct place places[PLACES] = {{0}};
    int32_t ids[TOKENS];
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_model *model;
    fv_session *session;
    double loss, largest = 0, slope[PLACES];
    fv_listener listener = {.points = FV_POINT_BACKWARD, .hear = look_at, .user = places};

    tiny_make(&tiny);
    const char *path = tiny_save(&tiny);
    assert_ok(fv_model_open(path, &model));
    unlink(path);
    assert_ok(fv_session_new(ctx, model, &(fv_session_options){.precision = FV_PRECISION_F32}, &session));
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (int32_t)fv_random_below(&random, tiny.vocabulary);
    for (int n = 0; n < PLACES; n++) {
        struct place *p = &places[n];
        do
            p->layer = fv_random_below(&random, tiny.layers);
        while (!tiny_sees_all(&tiny, p->layer));
        p->head = fv_random_below(&random, tiny.heads);
        p->i = fv_random_below(&random, TOKENS - 1);
        p->j = fv_random_below(&random, p->i + 1);
    }
    fv_listen(&session->listeners, &listener);
    assert_ok(fv_gradient(session, ids, TOKENS, ANSWER, &loss));
    double expected = twin_loss(&tiny, ids, &places[0], 0);
    if (!(fabs(loss - expected) < 1e-4))
        fail_msg("%s: loss: expected %.9g, got %.9g", tiny.architecture, expected, loss);
    for (int n = 0; n < PLACES; n++) {
        const double step = 1e-4;
        slope[n] = (twin_loss(&tiny, ids, &places[n], step) - twin_loss(&tiny, ids, &places[n], -step)) / (2 * step);
        largest = fmax(largest, fabs(slope[n]));
    }
    /* sums in f32 through all layers, of terms as large as the largest */
    for (int n = 0; n < PLACES; n++)
        if (!places[n].seen || !(fabs(slope[n] - places[n].slope) < 1e-3 * (largest + fabs(slope[n]))))
            fail_msg("%s: layer %lld, head %lld, row %lld, key %lld: expected %.9g, got %.9g (largest %.3g)",
                     tiny.architecture, (long long)places[n].layer, (long long)places[n].head, (long long)places[n].i,
                     (long long)places[n].j, slope[n], places[n].slope, largest);
    if (!(largest > 1e-5)) fail_msg("%s: the largest slope is %.3g: nothing was tested", tiny.architecture, largest);
    fv_session_free(session);
    fv_model_close(model);
    fv_ctx_free(ctx);
    tiny_free(&tiny);
}

static void gradients_are_slopes_of_the_twins_loss(void **state)
{
    (void)state;
    check((tiny_model){.architecture = "llama"});
    check((tiny_model){.architecture = "llama", .untied = true, .biases = true, .dtype = FV_Q8_0});
    check((tiny_model){.architecture = "qwen2", .biases = true});
    check((tiny_model){.architecture = "qwen3", .heads = 5, .key_heads = 1, .value_dim = 64});
    check((tiny_model){.architecture = "gemma3", .layers = 7});
}

static void answers_of_no_length_are_refused(void **state)
{
    tiny_model tiny = {.architecture = "llama"};
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_model *model;
    fv_session *session;
    int32_t ids[TOKENS] = {0};

    (void)state;
    tiny_make(&tiny);
    const char *path = tiny_save(&tiny);
    assert_ok(fv_model_open(path, &model));
    unlink(path);
    assert_ok(fv_session_new(ctx, model, &(fv_session_options){0}, &session));
    assert_int_equal(fv_gradient(session, ids, TOKENS, 0, NULL), FV_E_SHAPE);
    assert_int_equal(fv_gradient(session, ids, TOKENS, TOKENS, NULL), FV_E_SHAPE);
    ids[3] = -1;
    assert_int_equal(fv_gradient(session, ids, TOKENS, 1, NULL), FV_E_ARGUMENT);
    fv_session_free(session);
    fv_model_close(model);
    fv_ctx_free(ctx);
    tiny_free(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradients_are_slopes_of_the_twins_loss),
        cmocka_unit_test(answers_of_no_length_are_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
