/* fovea attend: one mechanism on tensors from files. */
#include "app/app.h"

#include <math.h>
#include <string.h>

#include "app/verbs.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "base/npy.h"

struct values {
    cli_common common;
    const char *attention, *q, *k, *v, *output, *lse, *plan, *grad, *dq, *dk, *dv;
    cli_texts params, params_out, dparams;
    bool causal, decode;
    double scale;
    int precision;
};

static const char *const precisions[] = {"f32", "bf16", NULL};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    {.name = "attention",
     .letter = 'a',
     .kind = CLI_SPEC,
     .offset = AT(attention),
     .argument = "SPEC",
     .required = true,
     .group = "Input",
     .help = "mechanism, as name or name:option=value,option=value"},
    {.name = "q",
     .kind = CLI_FILE,
     .offset = AT(q),
     .argument = "FILE",
     .required = true,
     .help = "queries [B,H,N,D], .npy in f32, f16 or f64"},
    {.name = "k",
     .kind = CLI_FILE,
     .offset = AT(k),
     .argument = "FILE",
     .required = true,
     .help = "keys [B,Hkv,M,D]; Hkv divides H"},
    {.name = "v",
     .kind = CLI_FILE,
     .offset = AT(v),
     .argument = "FILE",
     .required = true,
     .help = "values [B,Hkv,M,Dv]"},
    {.name = "param",
     .kind = CLI_TEXTS,
     .offset = AT(params),
     .argument = "NAME=FILE",
     .help = "a tensor of the mechanism's own; 'fovea show' lists them"},
    {.name = "causal",
     .kind = CLI_SWITCH,
     .offset = AT(causal),
     .group = "How",
     .help = "query i sees key j only if j <= i + (M - N)"},
    {.name = "scale",
     .kind = CLI_NUMBER,
     .offset = AT(scale),
     .argument = "S",
     .help = "factor on q.k instead of D^-1/2"},
    {.name = "precision",
     .kind = CLI_CHOICE,
     .offset = AT(precision),
     .argument = "TYPE",
     .choices = precisions,
     .initial = "f32",
     .help = "bf16 rounds q, k and v to bf16; sums stay f32"},
    {.name = "decode",
     .kind = CLI_SWITCH,
     .offset = AT(decode),
     .help = "feed the tokens one at a time, from an empty state"},
    {.name = "output",
     .letter = 'o',
     .kind = CLI_FILE,
     .offset = AT(output),
     .argument = "FILE",
     .required = true,
     .group = "Output",
     .help = "the result [B,H,N,Dv], .npy in f32"},
    {.name = "lse",
     .kind = CLI_FILE,
     .offset = AT(lse),
     .argument = "FILE",
     .help = "natural log of each softmax denominator [B,H,N]"},
    {.name = "plan",
     .kind = CLI_FILE,
     .offset = AT(plan),
     .argument = "FILE",
     .help = "u8 [B or 1, H or 1, N, M]: 1 where the pair takes part"},
    {.name = "param-out",
     .kind = CLI_TEXTS,
     .offset = AT(params_out),
     .argument = "NAME=FILE",
     .help = "a tensor the mechanism writes (lightning2: state)"},
    {.name = "grad",
     .kind = CLI_FILE,
     .offset = AT(grad),
     .argument = "FILE",
     .group = "Gradients",
     .help = "gradient of the result [B,H,N,Dv], read"},
    {.name = "dq", .kind = CLI_FILE, .offset = AT(dq), .argument = "FILE", .help = "gradient of q, written"},
    {.name = "dk", .kind = CLI_FILE, .offset = AT(dk), .argument = "FILE", .help = "gradient of k, written"},
    {.name = "dv", .kind = CLI_FILE, .offset = AT(dv), .argument = "FILE", .help = "gradient of v, written"},
    {.name = "dparam",
     .kind = CLI_TEXTS,
     .offset = AT(dparams),
     .argument = "NAME=FILE",
     .help = "gradient of a tensor given with --param, written"},
    CLI_END,
};

/* Everything one call reads and writes. */
struct work {
    fv_attention *attention;
    const fv_mechanism *mechanism;
    app_tensor q, k, v, o, lse, d_o, d_q, d_k, d_v;
    int params, params_out, d_params;
    app_pair *param_pair, *param_out_pair, *d_param_pair;
    app_tensor *param, *param_out, *d_param;
    fv_named_tensor *named, *named_out, *named_grad;
    fv_tensor map;
    void *map_owned;
    double seconds, scoring, selecting;
    fv_work cost;
};

static void free_group(app_pair *pairs, app_tensor *tensors, fv_named_tensor *named, int count)
{
    for (int i = 0; tensors && i < count; i++)
        app_tensor_free(&tensors[i]);
    fv_free(tensors);
    fv_free(named);
    app_pairs_free(pairs, count);
}

static void work_free(struct work *w)
{
    app_tensor *tensors[] = {&w->q, &w->k, &w->v, &w->o, &w->lse, &w->d_o, &w->d_q, &w->d_k, &w->d_v};

    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        app_tensor_free(tensors[i]);
    free_group(w->param_pair, w->param, w->named, w->params);
    free_group(w->param_out_pair, w->param_out, w->named_out, w->params_out);
    free_group(w->d_param_pair, w->d_param, w->named_grad, w->d_params);
    fv_release(w->map_owned);
    fv_attention_free(w->attention);
}

static fv_status refuse(const struct work *w, const char *flag, const char *why)
{
    return fv_fail(FV_E_USAGE, "%s: %s cannot be used: it %s", w->mechanism->name, flag, why);
}

/* What can be refused before any file is opened. */
static fv_status check_flags(const struct values *values, const struct work *w)
{
    unsigned traits = w->mechanism->traits;
    bool wants_grads = values->dq || values->dk || values->dv || values->dparams.count > 0;

    if (!isnan(values->scale) && (traits & FV_NO_SCALE)) return refuse(w, "--scale", "has no scale");
    if (values->causal && (traits & FV_NEVER_CAUSAL)) return refuse(w, "--causal", "cannot be causal");
    if (values->lse && (traits & FV_NO_LSE)) return refuse(w, "--lse", "has no log-sum-exp");
    if (values->plan && (traits & FV_NO_MAP)) return refuse(w, "--plan", "has no set of query-key pairs");
    if (values->grad && !(traits & FV_DIFFERENTIABLE)) return refuse(w, "--grad", "has no gradients");
    if (values->grad && values->decode) return fv_fail(FV_E_USAGE, "--decode and --grad exclude each other");
    if (values->grad && !wants_grads)
        return fv_fail(FV_E_USAGE, "--grad: expected at least one of --dq, --dk, --dv and --dparam beside it");
    if (!values->grad && wants_grads) return cli_missing("--grad", "--dq, --dk, --dv and --dparam need it");
    return FV_OK;
}

/* The size of one dim of a param's shape text ("2*D"), moving *text behind it; alternatives: the last. */
static fv_status shape_dim(const struct work *w, const char *name, const char **text, int64_t *size)
{
    const struct {
        const char *word;
        int64_t size;
    } known[] = {{"B", w->q.t.dims[0]}, {"H", w->q.t.dims[1]}, {"Hkv", w->k.t.dims[1]}, {"N", w->q.t.dims[2]},
                 {"M", w->k.t.dims[2]}, {"D", w->q.t.dims[3]}, {"Dv", w->v.t.dims[3]}};

    *size = 1;
    for (;;) {
        *text += strspn(*text, " [,*");
        size_t length = strcspn(*text, " ,*|]"), i = 0;
        while (i < sizeof known / sizeof known[0] &&
               (strlen(known[i].word) != length || memcmp(known[i].word, *text, length) != 0))
            i++;
        if (i == sizeof known / sizeof known[0] || !fv_mul_i64(*size, known[i].size, size))
            return fv_fail(FV_E_UNSUPPORTED, "%s: param '%s' cannot be written", w->mechanism->name, name);
        *text += length;
        if (**text == '|') *size = 1;
        if (**text != '*' && **text != '|') return FV_OK;
        (*text)++;
    }
}

static fv_status new_param_out(const struct work *w, const char *name, app_tensor *tensor)
{
    int64_t dims[FV_MAX_RANK] = {0};
    int rank = 0;

    for (const fv_param *param = w->mechanism->params; param && param->name; param++) {
        if (strcmp(param->name, name) != 0 || !param->output) continue;
        for (const char *text = param->shape; *text && *text != ']' && rank < FV_MAX_RANK; rank++)
            FV_TRY(shape_dim(w, name, &text, &dims[rank]));
        return app_tensor_new(tensor, FV_F32, rank, dims);
    }
    return fv_fail(FV_E_USAGE, "%s: --param-out: it writes no tensor '%s' ('fovea show %s' lists what it has)",
                   w->mechanism->name, name, w->mechanism->name);
}

static fv_status read_operand(const char *path, int rank, app_tensor *tensor)
{
    FV_TRY(app_tensor_read(path, tensor));
    if (tensor->t.rank == rank) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: expected %d dimensions, got shape %s", path, rank, fv_shape_text(&tensor->t));
}

/* What a param is made of; of an unknown one it does not matter. */
static fv_dtype param_dtype(const struct work *w, const char *name)
{
    for (const fv_param *param = w->mechanism->params; param && param->name; param++)
        if (strcmp(param->name, name) == 0) return param->dtype;
    return FV_F32;
}

static fv_status read_params(const struct values *values, struct work *w)
{
    w->params = values->params.count;
    FV_TRY(app_pairs("param", &values->params, &w->param_pair));
    FV_TRY(FV_ZALLOC(w->param, w->params));
    FV_TRY(FV_ZALLOC(w->named, w->params));
    for (int i = 0; i < w->params; i++) {
        FV_TRY(app_tensor_read_as(w->param_pair[i].file, param_dtype(w, w->param_pair[i].name), &w->param[i]));
        w->named[i] = (fv_named_tensor){w->param_pair[i].name, w->param[i].t};
    }
    return FV_OK;
}

static fv_status make_outputs(const struct values *values, struct work *w)
{
    bool shared = w->mechanism->traits & FV_SHARED_QK;
    int64_t B = shared ? w->v.t.dims[0] : w->q.t.dims[0], H = w->q.t.dims[1];
    int64_t N = fv_attention_rows(w->mechanism, &(fv_attention_args){.q = w->q.t, .v = w->v.t}, false);

    FV_TRY(app_tensor_new(&w->o, FV_F32, FV_DIMS(B, H, N, w->v.t.dims[3])));
    if (values->lse) FV_TRY(app_tensor_new(&w->lse, FV_F32, FV_DIMS(B, H, N)));
    w->params_out = values->params_out.count;
    FV_TRY(app_pairs("param-out", &values->params_out, &w->param_out_pair));
    FV_TRY(FV_ZALLOC(w->param_out, w->params_out));
    FV_TRY(FV_ZALLOC(w->named_out, w->params_out));
    for (int i = 0; i < w->params_out; i++) {
        FV_TRY(new_param_out(w, w->param_out_pair[i].name, &w->param_out[i]));
        w->named_out[i] = (fv_named_tensor){w->param_out_pair[i].name, w->param_out[i].t};
    }
    return FV_OK;
}

static const char *param_name(const void *user, int index)
{
    return ((const struct work *)user)->param_pair[index].name;
}

static fv_status make_gradients(const struct values *values, struct work *w)
{
    if (!values->grad) return FV_OK;
    FV_TRY(read_operand(values->grad, 4, &w->d_o));
    if (!fv_tensor_same_shape(&w->d_o.t, &w->o.t))
        return fv_fail(FV_E_SHAPE, "%s: expected the shape of the result %s, got %s", values->grad,
                       fv_shape_text(&w->o.t), fv_shape_text(&w->d_o.t));
    if (values->dq) FV_TRY(app_tensor_new(&w->d_q, FV_F32, 4, w->q.t.dims));
    if (values->dk) FV_TRY(app_tensor_new(&w->d_k, FV_F32, 4, w->k.t.dims));
    if (values->dv) FV_TRY(app_tensor_new(&w->d_v, FV_F32, 4, w->v.t.dims));
    w->d_params = values->dparams.count;
    FV_TRY(app_pairs("dparam", &values->dparams, &w->d_param_pair));
    FV_TRY(FV_ZALLOC(w->d_param, w->d_params));
    FV_TRY(FV_ZALLOC(w->named_grad, w->d_params));
    for (int i = 0; i < w->d_params; i++) {
        int p = 0;
        while (p < w->params && strcmp(w->param_pair[p].name, w->d_param_pair[i].name) != 0)
            p++;
        if (p == w->params) {
            const char *near = fv_nearest(w->d_param_pair[i].name, w->params, param_name, w);
            return fv_fail(FV_E_USAGE, "--dparam %s: expected a tensor given with --param%s%s%s",
                           w->d_param_pair[i].name, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
        }
        FV_TRY(app_tensor_new(&w->d_param[i], FV_F32, w->param[p].t.rank, w->param[p].t.dims));
        w->named_grad[i] = (fv_named_tensor){w->d_param_pair[i].name, w->d_param[i].t};
    }
    return FV_OK;
}

static fv_status compute(fv_ctx *ctx, const struct values *values, struct work *w)
{
    float scale = (float)values->scale;
    fv_attention_args args = {
        .q = w->q.t,
        .k = w->k.t,
        .v = w->v.t,
        .o = w->o.t,
        .lse = w->lse.t,
        .causal = values->causal,
        .scale = isnan(values->scale) ? NULL : &scale,
        .params = w->params,
        .param = w->named,
        .params_out = w->params_out,
        .param_out = w->named_out,
    };
    fv_attention_grads grads = {
        .d_o = w->d_o.t,
        .d_q = w->d_q.t,
        .d_k = w->d_k.t,
        .d_v = w->d_v.t,
        .params = w->d_params,
        .d_param = w->named_grad,
    };
    double start = app_seconds(), scored = ctx->spent[FV_PHASE_SCORE], selected = ctx->spent[FV_PHASE_SELECT];

    if (values->decode)
        FV_TRY(fv_attention_decode(ctx, w->attention, &args));
    else if (values->grad)
        FV_TRY(fv_attention_backward(ctx, w->attention, &args, &grads));
    else
        FV_TRY(fv_attention_forward(ctx, w->attention, &args));
    w->seconds = app_seconds() - start;
    w->scoring = ctx->spent[FV_PHASE_SCORE] - scored;
    w->selecting = ctx->spent[FV_PHASE_SELECT] - selected;
    if (values->plan) FV_TRY(fv_attention_map(ctx, w->attention, &args, &w->map, &w->map_owned));
    FV_TRY(fv_attention_work(ctx, w->attention, &args, &w->cost));
    return app_check();
}

static fv_status write_all(const struct values *values, const struct work *w)
{
    FV_TRY(fv_npy_write(values->output, &w->o.t));
    if (values->lse) FV_TRY(fv_npy_write(values->lse, &w->lse.t));
    if (values->plan) FV_TRY(fv_npy_write(values->plan, &w->map));
    if (values->dq) FV_TRY(fv_npy_write(values->dq, &w->d_q.t));
    if (values->dk) FV_TRY(fv_npy_write(values->dk, &w->d_k.t));
    if (values->dv) FV_TRY(fv_npy_write(values->dv, &w->d_v.t));
    for (int i = 0; i < w->params_out; i++)
        FV_TRY(fv_npy_write(w->param_out_pair[i].file, &w->param_out[i].t));
    for (int i = 0; i < w->d_params; i++)
        FV_TRY(fv_npy_write(w->d_param_pair[i].file, &w->d_param[i].t));
    return FV_OK;
}

static fv_status tell(struct app *app, const struct work *w)
{
    json_t *root;
    char shares[64] = "";

    if (!app->common->json) {
        if (w->scoring > 0)
            snprintf(shares, sizeof shares, " (%.0f %% of it choosing keys)",
                     100 * (w->scoring + w->selecting) / w->seconds);
        app_say(app, "%s on %s: %.3g s%s, %sFLOP, %s read and written, density %.3g", w->mechanism->name,
                fv_ctx_backend(app->ctx), w->seconds, shares, app_count_text(w->cost.flops),
                app_bytes_text(w->cost.bytes), w->cost.density);
        return FV_OK;
    }
    root = json_object();
    app_put(root, "mechanism", json_string(w->mechanism->name));
    app_put(root, "backend", json_string(fv_ctx_backend(app->ctx)));
    app_put(root, "seconds", app_number(w->seconds));
    app_put(root, "score_seconds", app_number(w->scoring));
    app_put(root, "select_seconds", app_number(w->selecting));
    app_put(root, "attend_seconds", app_number(fmax(w->seconds - w->scoring - w->selecting, 0)));
    app_put(root, "flops", app_number(w->cost.flops));
    app_put(root, "bytes", app_number(w->cost.bytes));
    app_put(root, "pairs", json_integer(w->cost.pairs));
    app_put(root, "density", app_number(w->cost.density));
    return app_json_print(root);
}

static fv_status attend(struct app *app, const struct values *values, struct work *w)
{
    FV_TRY(fv_attention_new(values->attention, &w->attention));
    w->mechanism = fv_attention_mechanism(w->attention);
    FV_TRY(check_flags(values, w));
    FV_TRY(app_begin(app, values->precision == 1 ? FV_PRECISION_BF16 : FV_PRECISION_F32));
    FV_TRY(read_operand(values->q, 4, &w->q));
    FV_TRY(read_operand(values->k, 4, &w->k));
    FV_TRY(read_operand(values->v, 4, &w->v));
    FV_TRY(read_params(values, w));
    if (values->precision == 1) {
        app_round_bf16(&w->q);
        app_round_bf16(&w->k);
        app_round_bf16(&w->v);
    }
    FV_TRY(make_outputs(values, w));
    FV_TRY(make_gradients(values, w));
    FV_TRY(compute(app->ctx, values, w));
    FV_TRY(write_all(values, w));
    return tell(app, w);
}

static fv_status run(struct app *app, const void *values)
{
    struct work w = {0};
    fv_status status = attend(app, values, &w);

    work_free(&w);
    return status;
}

const cli_verb verb_attend = {
    .name = "attend",
    .summary = "compute one mechanism on tensors from .npy files",
    .about = "Reads q, k and v, computes the mechanism, and writes the result; on request also the log-sum-exp, the "
             "visible pairs, and the gradients. Query head h reads key-value head h / (H / Hkv).",
    .example = "  fovea attend -a sinkwin:sink=4,window=512 --q q.npy --k k.npy --v v.npy -o o.npy\n"
               "  fovea attend -a dense --causal --q q.npy --k k.npy --v v.npy -o o.npy \\\n"
               "      --grad do.npy --dq dq.npy --dk dk.npy --dv dv.npy\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
