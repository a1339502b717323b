/* fovea-activations: how far each way of rounding activations moves a model's next tokens from f32.
 *
 * A session at f32 gives the reference; the same tokens go through sessions as they are shipped, and through sessions
 * whose products with packed weights are computed from activations rounded in other ways: a backend whose `linear` is
 * replaced does that, so that everything else (attention, norms, products with weights that are not packed) is as
 * shipped.  Each is fed whole (a prompt) and token by token (generation). */
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/app.h"
#include "app/scores.h"
#include "base/context.h"
#include "base/memory.h"
#include "base/npy.h"
#include "ops/backend.h"

static const char help[] =
    "fovea-activations: KL of next tokens from f32, for each choice of activations\n"
    "\n"
    "usage: fovea-activations -m MODEL -f TEXT [--threads N] [--logits FILE.npy]\n"
    "\n"
    "  -m MODEL        a GGUF file\n"
    "  -f TEXT         the text, whole; some hundred tokens (the scores of all of them are held in memory)\n"
    "  --threads N     threads; 0: as many as the process may use (default 0)\n"
    "  --logits FILE   also writes the scores of f32 [tokens, vocabulary]\n"
    "  --help          this text\n"
    "\n"
    "Prints JSON. \"mean_kl\" is the mean over tokens of KL(f32 || choice) in nats, \"top1\" the share of tokens "
    "whose\n"
    "likeliest next token is the same. \"shipped\" is what sessions do. \"bf16\" and \"int8\" (a scale for every 32)\n"
    "round activations so, and multiply them in f32 by the weights as stored: what that rounding alone costs. They "
    "are\n"
    "there only if sessions pack some of the model's weights.\n";

enum { INT8_COLUMNS = 32 };

struct options {
    const char *model, *text, *logits;
    long threads;
};

/* ---- choices of activations -------------------------------------------------------------------------------------- */

/* Rounds the `columns` floats of a row; a multiple of 32, as of every packed weight. */
typedef void round_fn(const float *x, int64_t columns, float *out);

/* A scale that is not finite leaves its columns as they are. */
static void round_to_int8(const float *x, int64_t columns, float *out)
{
    for (int64_t from = 0; from < columns; from += INT8_COLUMNS) {
        float most = 0, scale;
        for (int64_t j = from; j < from + INT8_COLUMNS; j++)
            most = fmaxf(most, fabsf(x[j]));
        scale = most / 127;
        for (int64_t j = from; j < from + INT8_COLUMNS; j++)
            out[j] = scale > 0 && isfinite(scale) ? scale * nearbyintf(x[j] / scale) : x[j];
    }
}

static void round_to_bf16(const float *x, int64_t columns, float *out)
{
    for (int64_t j = 0; j < columns; j++)
        out[j] = fv_bf16_to_f32(fv_f32_to_bf16(x[j]));
}

static const struct choice {
    const char *name;
    round_fn *round;
} choices[] = {{"bf16", round_to_bf16}, {"int8", round_to_int8}};
enum { CHOICES = sizeof choices / sizeof *choices };

/* A backend whose products with packed weights are replaced. */
struct simulated {
    fv_backend backend; /* first: a context points to it */
    round_fn *round;
    int64_t calls;
};

static fv_status simulate(fv_ctx *ctx, const fv_linear_args *shipped)
{
    struct simulated *own = (struct simulated *)(uintptr_t)ctx->backend;
    const fv_precision precision = ctx->precision;
    const fv_tensor *x = &shipped->x;
    fv_linear_args args = *shipped;
    fv_mark mark = fv_scratch_mark(ctx);
    float *rounded;
    fv_status status;

    own->calls++;
    for (int n = 0; n < args.parts; n++)
        args.part[n].packed = NULL; /* from the weights as stored, by gemm */
    FV_TRY_DONE(FV_SCRATCH(ctx, rounded, fv_tensor_count(x)));
    for (int64_t i = 0; i < x->dims[0]; i++)
        own->round((const float *)x->data + i * x->strides[0], x->dims[1], rounded + i * x->dims[1]);
    FV_TRY_DONE(fv_tensor_wrap(&args.x, rounded, FV_F32, 2, x->dims));
    ctx->precision = FV_PRECISION_F32;
    status = fv_linear(ctx, &args);
done:
    ctx->precision = precision;
    fv_scratch_release(ctx, mark);
    return status;
}

/* ---- distance from f32 ------------------------------------------------------------------------------------------- */

struct comparison {
    fv_ctx *ctx;
    fv_model *model;
    int32_t *ids; /* [tokens] */
    int64_t tokens, vocabulary;
    float *reference; /* [tokens, vocabulary] */
    double *total;    /* [tokens]: log of the sum of exp of the reference */
    json_t *rows;
};

struct distance {
    const struct comparison *c;
    double kl;
    int64_t same; /* tokens whose likeliest next token agrees */
};

static fv_status add_rows(void *user, int64_t first_row, int64_t rows, const float *logits)
{
    struct distance *d = user;
    const int64_t vocabulary = d->c->vocabulary;

    for (int64_t r = first_row; r < first_row + rows; r++, logits += vocabulary) {
        const float *reference = d->c->reference + r * vocabulary;
        const double total = app_log_sum_exp(logits, vocabulary);
        for (int64_t i = 0; i < vocabulary; i++) {
            double log_p = reference[i] - d->c->total[r];
            d->kl += exp(log_p) * (log_p - (logits[i] - total));
        }
        d->same += app_likeliest(reference, vocabulary) == app_likeliest(logits, vocabulary);
    }
    return FV_OK;
}

static fv_status feed_singly(fv_session *session, const struct comparison *c, struct distance *d)
{
    float *logits;
    fv_status status = FV_OK;

    FV_TRY(FV_ALLOC(logits, c->vocabulary));
    for (int64_t i = 0; i < c->tokens && status == FV_OK; i++) {
        status = fv_session_feed(session, c->ids + i, 1, logits, 1);
        if (status == FV_OK) status = add_rows(d, i, 1, logits);
    }
    fv_free(logits);
    return status;
}

static void add_result(struct comparison *c, const char *choice, const char *path, const struct distance *d)
{
    json_t *row = json_object();

    app_put(row, "activations", json_string(choice));
    app_put(row, "path", json_string(path));
    app_put(row, "mean_kl", app_number(d->kl / (double)c->tokens));
    app_put(row, "top1", app_number((double)d->same / (double)c->tokens));
    app_append(c->rows, row);
}

/* Both ways of feeding.  `calls`: NULL, or counts what was computed by that choice; without any there is no result. */
static fv_status measure(struct comparison *c, const char *choice, const int64_t *calls)
{
    struct distance prompt = {.c = c}, singly = {.c = c};
    fv_session *session;
    fv_status status;

    FV_TRY(fv_session_new(c->ctx, c->model, &(fv_session_options){.context = c->tokens}, &session));
    status = fv_session_stream(session, c->ids, c->tokens, add_rows, &prompt);
    if (status == FV_OK && (!calls || *calls > 0)) {
        fv_session_clear(session);
        status = feed_singly(session, c, &singly);
        add_result(c, choice, "prompt", &prompt);
        add_result(c, choice, "steps", &singly);
    }
    fv_session_free(session);
    return status;
}

static fv_status make_reference(struct comparison *c, const char *path)
{
    const fv_session_options options = {.context = c->tokens, .precision = FV_PRECISION_F32};
    int64_t floats = 0;
    fv_tensor logits;
    fv_session *session;
    fv_status status;

    if (!fv_mul_i64(c->tokens, c->vocabulary, &floats)) return fv_fail(FV_E_MEMORY, "the text is too long");
    FV_TRY(FV_ALLOC(c->reference, floats));
    FV_TRY(FV_ALLOC(c->total, c->tokens));
    FV_TRY(fv_session_new(c->ctx, c->model, &options, &session));
    status = fv_session_feed(session, c->ids, c->tokens, c->reference, c->tokens);
    fv_session_free(session);
    FV_TRY(status);
    for (int64_t r = 0; r < c->tokens; r++)
        c->total[r] = app_log_sum_exp(c->reference + r * c->vocabulary, c->vocabulary);
    if (!path) return FV_OK;
    FV_TRY(fv_tensor_wrap(&logits, c->reference, FV_F32, FV_DIMS(c->tokens, c->vocabulary)));
    return fv_npy_write(path, &logits);
}

static fv_status read_text(struct comparison *c, const char *path)
{
    const unsigned as_run_reads = FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL;
    fv_model_info info;
    char *text;
    size_t length;
    fv_status status;

    fv_model_describe(c->model, &info);
    c->vocabulary = info.vocabulary;
    FV_TRY(fv_file_read(path, &text, &length));
    status = fv_model_tokenize(c->model, text, length, as_run_reads, &c->ids, &c->tokens);
    fv_free(text);
    if (status == FV_OK && c->tokens == 0) return fv_fail(FV_E_FORMAT, "%s: is empty, expected text", path);
    return status;
}

static fv_status compare(struct comparison *c, const struct options *o)
{
    const fv_backend *shipped;
    fv_status status = FV_OK;

    FV_TRY(fv_ctx_new(&(fv_ctx_options){.threads = (int)o->threads}, &c->ctx));
    FV_TRY(fv_model_open(o->model, &c->model));
    FV_TRY(read_text(c, o->text));
    FV_TRY(make_reference(c, o->logits));
    FV_TRY(measure(c, "shipped", NULL));
    shipped = c->ctx->backend;
    for (int n = 0; n < CHOICES && status == FV_OK; n++) {
        struct simulated own = {.backend = *shipped, .round = choices[n].round};
        own.backend.linear = simulate;
        c->ctx->backend = &own.backend;
        status = measure(c, choices[n].name, &own.calls);
        c->ctx->backend = shipped;
    }
    return status;
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

static int wrong(const char *sentence, const char *word)
{
    fprintf(stderr, "fovea-activations: %s '%s' (--help)\n", sentence, word);
    return 2;
}

/* 0: go on; otherwise the exit status + 1. */
static int parse(int count, char **words, struct options *o)
{
    static const struct option names[] = {
        {"threads", required_argument, NULL, 't'},
        {"logits", required_argument, NULL, 'l'},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int letter;
    char *end;

    opterr = 0;
    while ((letter = getopt_long(count, words, "m:f:h", names, NULL)) != -1) {
        if (letter == 'h') {
            fputs(help, stdout);
            return 1;
        }
        if (letter == '?') return 1 + wrong("unknown option, or one without its value:", words[optind - 1]);
        if (letter == 'm') o->model = optarg;
        if (letter == 'f') o->text = optarg;
        if (letter == 'l') o->logits = optarg;
        if (letter != 't') continue;
        o->threads = strtol(optarg, &end, 10);
        if (*end || o->threads < 0 || o->threads > 1024) return 1 + wrong("expected a number, got", optarg);
    }
    if (optind < count) return 1 + wrong("unexpected word", words[optind]);
    if (!o->model || !o->text) return 1 + wrong("missing", o->model ? "-f TEXT" : "-m MODEL");
    return 0;
}

int main(int count, char **words)
{
    struct options o = {0};
    struct comparison c = {0};
    int stop = parse(count, words, &o);
    fv_status status;

    if (stop) return stop - 1;
    c.rows = json_array();
    status = compare(&c, &o);
    if (status == FV_OK) {
        json_t *root = json_object();
        app_put(root, "tokens", json_integer(c.tokens));
        app_put(root, "rows", json_incref(c.rows));
        status = app_json_print(root);
    }
    if (status != FV_OK) fprintf(stderr, "fovea-activations: %s\n", fv_error());
    json_decref(c.rows);
    fv_free(c.reference);
    fv_free(c.total);
    fv_release(c.ids);
    fv_model_close(c.model);
    fv_ctx_free(c.ctx);
    return status == FV_OK ? 0 : 1;
}
