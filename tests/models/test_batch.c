/* A token's numbers do not depend on what is computed beside it: prompts in any pieces, steps in any company. */
#include <stdio.h>
#include <unistd.h>

#include "models/session.h"
#include "support/tiny_model.h"

enum { TOKENS = 333, VOCABULARY = 50, STREAMS = 7 };

struct fixture {
    tiny_model tiny;
    fv_model *model;
    int32_t ids[STREAMS][TOKENS];
};

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 9500;
    fv_random random = fv_random_new(test_seed(), ++stream);
    const char *path;

    f->tiny = tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    for (int s = 0; s < STREAMS; s++)
        for (int i = 0; i < TOKENS; i++)
            f->ids[s][i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    tiny_free(&f->tiny);
}

static fv_session *session_of(const struct fixture *f, fv_ctx *ctx, fv_precision precision)
{
    fv_session *session;

    assert_ok(fv_session_new(
        ctx, f->model, &(fv_session_options){.precision = precision, .context = 512, .keep_windows = true}, &session));
    return session;
}

/* Runs parts as a scheduler does; logits of each part's last token. */
static void forward(fv_ctx *ctx, const fv_forward_part *parts, int count, float *logits)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t row = -1;
    fv_tensor x;

    ctx->precision = parts[0].session->precision;
    ctx->batching = parts[0].prompt ? FV_BATCH_PROMPT : FV_BATCH_STEPS;
    assert_ok(fv_forward(ctx, parts, count, &x));
    ctx->batching = FV_BATCH_STEPS;
    for (int i = 0; i < count; i++) {
        row += parts[i].count;
        fv_tensor last = fv_slice(&x, 0, row, 1);
        assert_ok(fv_forward_logits(parts[i].session, &last, logits + i * VOCABULARY));
        parts[i].session->length += parts[i].count;
    }
    ctx->batching = FV_BATCH_FREE;
    fv_scratch_release(ctx, mark);
}

static void same(const char *what, const float *a, const float *b)
{
    for (int i = 0; i < VOCABULARY; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0)
            fail_msg("%s: logit %d: expected the same bits, got %.9g and %.9g", what, i, (double)a[i], (double)b[i]);
}

static const tiny_model models[] = {
    {.architecture = "llama", .layers = 3, .heads = 9, .key_heads = 3, .key_dim = 64, .value_dim = 64, .context = 512},
    {.architecture = "gemma3",
     .layers = 7,
     .heads = 4,
     .key_heads = 1,
     .key_dim = 64,
     .value_dim = 64,
     .context = 512,
     .window = 70},
    {.architecture = "gemma2", .layers = 2, .window = 33, .context = 512},
    {.architecture = "qwen2", .layers = 2, .heads = 2, .key_heads = 2, .context = 512},
};
static const fv_precision precisions[] = {FV_PRECISION_AUTO, FV_PRECISION_F32};

/* Pieces of a prompt, and then some steps: the same bits as the prompt at once. */
static void pieces(const struct fixture *f, fv_ctx *ctx, fv_precision precision, fv_random *random)
{
    static float whole[6 * VOCABULARY], got[6 * VOCABULARY];
    int64_t prompt = TOKENS - 5;

    for (int way = 0; way < 5; way++) {
        fv_session *session = session_of(f, ctx, precision);
        float *out = way == 0 ? whole : got;
        char what[100];
        while (session->length < prompt) {
            int64_t most = way == 0   ? prompt
                           : way == 1 ? 1 + fv_random_below(random, 3)
                                      : 1 + fv_random_below(random, 150);
            fv_forward_part part = {session, f->ids[0] + session->length, fv_min(most, prompt - session->length), true};
            forward(ctx, &part, 1, out);
        }
        for (int s = 0; s < 5; s++) {
            fv_forward_part part = {session, f->ids[0] + session->length, 1, false};
            forward(ctx, &part, 1, out + (s + 1) * VOCABULARY);
        }
        for (int s = 0; s < 6; s++) {
            snprintf(what, sizeof what, "%s, way %d, %d tokens behind the prompt", f->tiny.architecture, way, s);
            same(what, whole + s * VOCABULARY, out + s * VOCABULARY);
        }
        fv_session_free(session);
    }
}

static void prompts_in_any_pieces_have_the_same_bits(void **state)
{
    fv_random random = fv_random_new(test_seed(), 9400);
    struct fixture f;
    (void)state;

    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        begin(&f, models[m]);
        for (int threads = 1; threads <= 3; threads += 2)
            for (int p = 0; p < 2; p++) {
                fv_ctx *ctx = test_ctx("cpu", threads);
                pieces(&f, ctx, precisions[p], &random);
                fv_ctx_free(ctx);
            }
        end(&f);
    }
}

/* Streams of several lengths, each alone and all together: prompts in one forward, steps in one forward. */
static void company(const struct fixture *f, fv_ctx *ctx, fv_precision precision)
{
    static float alone[STREAMS][4 * VOCABULARY], together[STREAMS * VOCABULARY];
    fv_forward_part parts[STREAMS];
    fv_session *sessions[STREAMS];
    char what[100];

    for (int s = 0; s < STREAMS; s++) {
        int64_t length = 1 + s * s * 7;
        sessions[s] = session_of(f, ctx, precision);
        for (int n = 0; n < 4; n++) {
            parts[s] = (fv_forward_part){sessions[s], f->ids[s] + sessions[s]->length, n ? 1 : length, n == 0};
            forward(ctx, &parts[s], 1, alone[s] + n * VOCABULARY);
        }
        fv_session_free(sessions[s]);
        sessions[s] = session_of(f, ctx, precision);
    }
    for (int n = 0; n < 4; n++) {
        for (int s = 0; s < STREAMS; s++)
            parts[s] = (fv_forward_part){sessions[s], f->ids[s] + sessions[s]->length, n ? 1 : 1 + s * s * 7, n == 0};
        forward(ctx, parts, STREAMS, together);
        for (int s = 0; s < STREAMS; s++) {
            snprintf(what, sizeof what, "%s, stream %d, step %d", f->tiny.architecture, s, n);
            same(what, alone[s] + n * VOCABULARY, together + s * VOCABULARY);
        }
    }
    for (int s = 0; s < STREAMS; s++)
        fv_session_free(sessions[s]);
}

static void streams_together_have_the_bits_of_each_alone(void **state)
{
    struct fixture f;
    (void)state;

    for (size_t m = 0; m < sizeof models / sizeof *models; m++) {
        begin(&f, models[m]);
        for (int threads = 1; threads <= 3; threads += 2)
            for (int p = 0; p < 2; p++) {
                fv_ctx *ctx = test_ctx("cpu", threads);
                company(&f, ctx, precisions[p]);
                fv_ctx_free(ctx);
            }
        end(&f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_in_any_pieces_have_the_same_bits),
        cmocka_unit_test(streams_together_have_the_bits_of_each_alone),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
