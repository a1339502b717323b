#include "app/show_plan.h"

#include <string.h>

#include "app/examples.h"
#include "app/picture.h"
#include "app/prompt.h"
#include "base/memory.h"
#include "cache/policy.h"
#include "models/session.h"

enum { NOISE_SIZE = 64, TEXT_SIZE = 512, NOISE_DIM = 64 };

struct job {
    struct app *app;
    const struct show_values *values;
    const fv_mechanism *mechanism;
    int64_t size, layer, head; /* of the text that is there; the layer and head that are looked at */
    fv_text spec;
    fv_attention *attention;
    app_picture picture;
    fv_model *model;
    fv_session *session;
    int32_t *ids;
    bool looked;
    fv_listener listener;
};

/* ---- what can be drawn ------------------------------------------------------------------------------------------ */

static fv_status check(struct job *job)
{
    const char *given = job->app->common->operand[0];
    char name[64];

    snprintf(name, sizeof name, "%.*s", (int)fv_min((int64_t)strcspn(given, ":"), 63), given);
    if (!fv_mechanism_find(name) && fv_policy_find(name))
        return fv_fail(FV_E_USAGE, "--plan: '%s' is a cache policy; mechanisms have plans ('fovea list mechanisms')",
                       name);
    FV_TRY(example_mechanism(given, &job->mechanism));
    if (job->mechanism->traits & FV_NO_MAP)
        return fv_fail(FV_E_USAGE, "%s: has no set of query-key pairs, so there is no plan to draw", name);
    if (job->values->model && job->mechanism->traits & FV_NEVER_CAUSAL)
        return fv_fail(FV_E_USAGE, "%s: cannot be causal, which a language model needs", name);
    if (job->values->model && !job->values->file)
        return cli_missing("-f FILE", "--from needs a text for the model to read");
    return FV_OK;
}

/* ---- on noise --------------------------------------------------------------------------------------------------- */

static fv_status draw_noise(struct job *job)
{
    fv_ctx *ctx = job->app->ctx;
    uint64_t seed = (uint64_t)job->app->common->seed;
    fv_attention_args args;
    fv_tensor map;
    void *owned = NULL;
    int64_t heads = 1;
    bool causal;

    fv_status status = example_fit(ctx, job->app->common->operand[0], heads, job->size, seed, &job->spec, &causal);
    if (status == FV_E_SHAPE || status == FV_E_USAGE) /* perhaps one head alone is too few */
        status = example_fit(ctx, job->app->common->operand[0], ++heads, job->size, seed, &job->spec, &causal);
    FV_TRY(status);
    FV_TRY(fv_attention_new(fv_text_get(&job->spec), &job->attention));
    job->picture = (app_picture){.size = job->size, .heads = 1, .causal = causal};
    FV_TRY(app_picture_new(&job->picture, true));
    FV_TRY(example_call(ctx, heads, job->size, NOISE_DIM, seed, &args));
    args.causal = causal;
    FV_TRY(fv_attention_map(ctx, job->attention, &args, &map, &owned));
    app_picture_map(&job->picture, &map);
    fv_release(owned);
    return FV_OK;
}

/* ---- on a model's queries and keys ------------------------------------------------------------------------------- */

/* The layer's own call gives q and k; what the mechanism would read of them is one picture, what attention gives them
 * the other. */
static fv_status look_at(void *user, const fv_look *look)
{
    struct job *job = user;
    fv_ctx *ctx = job->app->ctx;
    const fv_call *own = look->call;
    fv_attention_args args = {.q = own->q, .k = own->k, .v = own->v, .o = own->o, .causal = true, .scale = &own->scale};
    fv_pairs pairs;
    fv_call call;

    if (look->layer != job->layer) return FV_OK;
    if (job->mechanism->traits & FV_NO_SCALE) args.scale = NULL;
    FV_TRY(fv_call_make(job->attention, &args, &call));
    call.softcap = look->extra->softcap;
    FV_TRY(fv_call_pairs(ctx, job->mechanism, &call, &pairs));
    job->looked = true;
    return app_picture_look(&job->picture, ctx, own, look->extra, look->plan ? look->plan->window.window : 0, &pairs);
}

static fv_status in_range(const char *flag, int64_t value, int64_t count)
{
    if (value < count) return FV_OK;
    return fv_fail(FV_E_USAGE, "%s: expected 0 to %lld, got %lld", flag, (long long)count - 1, (long long)value);
}

/* The first tokens of the text, as they are. */
static fv_status read_text(struct job *job, const fv_model_info *info)
{
    const char *file = job->values->file;
    char *text = NULL;
    size_t length;
    int64_t count;

    if (job->size > info->context)
        return fv_fail(FV_E_USAGE, "--size: expected at most the %lld tokens that the model was trained for, got %lld",
                       (long long)info->context, (long long)job->size);
    FV_TRY(app_text_read(file, &text, &length));
    fv_status status = fv_model_tokenize(job->model, text, length, FV_TOKENIZE_MODEL, &job->ids, &count);
    fv_free(text);
    FV_TRY(status);
    if (count < 2) return fv_fail(FV_E_FORMAT, "%s: expected at least 2 tokens, got %lld", file, (long long)count);
    if (count < job->size) app_say(job->app, "%s has %lld tokens: all are drawn", file, (long long)count);
    job->size = fv_min(job->size, count);
    return FV_OK;
}

static fv_status draw_text(struct job *job)
{
    const struct show_values *values = job->values;
    fv_ctx *ctx = job->app->ctx;
    fv_model_info info;
    bool causal;

    FV_TRY(app_model_open(values->model, &job->model, &info));
    job->layer = values->layer == CLI_UNSET ? info.layers / 2 : values->layer;
    job->head = values->head == CLI_UNSET ? 0 : values->head;
    FV_TRY(in_range("--layer", job->layer, info.layers));
    FV_TRY(in_range("--head", job->head, info.query_heads));
    FV_TRY(read_text(job, &info));
    FV_TRY(example_fit(ctx, job->app->common->operand[0], 1, job->size, (uint64_t)job->app->common->seed, &job->spec,
                       &causal));
    if (!causal)
        return fv_fail(FV_E_USAGE, "%s: cannot be causal, which a language model needs", fv_text_get(&job->spec));
    FV_TRY(fv_attention_new(fv_text_get(&job->spec), &job->attention));
    job->picture = (app_picture){.size = job->size, .first = job->head, .heads = 1, .causal = true, .weighed = true};
    FV_TRY(app_picture_new(&job->picture, true));
    FV_TRY(fv_session_new(ctx, job->model, &(fv_session_options){.context = job->size, .chunk = job->size},
                          &job->session));
    job->listener = (fv_listener){.points = FV_POINT_ATTEND, .hear = look_at, .user = job};
    fv_listen(&job->session->listeners, &job->listener);
    FV_TRY(fv_session_prompt(job->session, job->ids, job->size, NULL, 0));
    app_progress_end();
    if (job->looked) return FV_OK;
    return fv_fail(FV_E_UNSUPPORTED, "layer %lld of this model cannot be looked at", (long long)job->layer);
}

/* ---- output ----------------------------------------------------------------------------------------------------- */

/* [[from, count], ...] for each query: runs of keys it reads. */
static json_t *runs_json(const app_picture *p)
{
    json_t *rows = json_array();

    for (int64_t i = 0; i < p->size; i++) {
        const uint8_t *row = p->map + i * p->size;
        json_t *runs = json_array();
        for (int64_t j = 0, end; j < p->size; j = end) {
            for (end = j + 1; end < p->size && row[end] == row[j];)
                end++;
            if (!row[j]) continue;
            json_t *run = json_array();
            app_append(run, json_integer(j));
            app_append(run, json_integer(end - j));
            app_append(runs, run);
        }
        app_append(rows, runs);
    }
    return rows;
}

static fv_status print_json(const struct job *job)
{
    json_t *root = json_object();

    app_put(root, "name", json_string(job->mechanism->name));
    app_put(root, "spec", json_string(fv_text_get(&job->spec)));
    app_put(root, "size", json_integer(job->size));
    app_put(root, "causal", json_boolean(job->picture.causal));
    app_put(root, "density", app_number(app_picture_density(&job->picture, 0)));
    if (job->model) {
        app_put(root, "model", json_string(job->values->model));
        app_put(root, "layer", json_integer(job->layer));
        app_put(root, "head", json_integer(job->head));
        app_put(root, "recall", app_number(app_picture_reached(&job->picture, 0)));
    }
    app_put(root, "plan", runs_json(&job->picture));
    return app_json_print(root);
}

static fv_status write_all(const struct job *job)
{
    const struct show_values *values = job->values;
    const app_picture *p = &job->picture;
    char words[160];

    if (job->model)
        snprintf(words, sizeof words,
                 "layer %lld, head %lld, %lld tokens: density %.3f, reads %.1f %% of the attention",
                 (long long)job->layer, (long long)job->head, (long long)job->size, app_picture_density(p, 0),
                 100 * app_picture_reached(p, 0));
    else
        snprintf(words, sizeof words, "%lld tokens of noise%s: density %.3f", (long long)job->size,
                 p->causal ? ", causal" : "", app_picture_density(p, 0));
    if (values->svg) FV_TRY(app_picture_svg(p, 0, fv_text_get(&job->spec), words, values->svg));
    if (values->png) FV_TRY(app_picture_png(p, 0, values->png));
    if (job->app->common->json) return print_json(job);
    printf("%s\n%s\n\n", fv_text_get(&job->spec), words);
    return app_picture_print(p, 0, stdout);
}

static fv_status draw(struct job *job)
{
    const struct show_values *values = job->values;

    FV_TRY(check(job));
    FV_TRY(app_file_try(values->svg));
    FV_TRY(app_file_try(values->png));
    FV_TRY(app_begin(job->app, FV_PRECISION_AUTO));
    job->size = values->size != CLI_UNSET ? values->size : values->model ? TEXT_SIZE : NOISE_SIZE;
    FV_TRY(values->model ? draw_text(job) : draw_noise(job));
    FV_TRY(app_check());
    return write_all(job);
}

fv_status show_plan(struct app *app, const struct show_values *values)
{
    struct job job = {.app = app, .values = values};
    fv_status status = draw(&job);

    app_picture_free(&job.picture);
    fv_session_free(job.session);
    fv_release(job.ids);
    fv_model_close(job.model);
    fv_attention_free(job.attention);
    fv_text_free(&job.spec);
    return status;
}
