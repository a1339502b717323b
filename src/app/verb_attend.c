/* fovea attend: one mechanism on tensors from files. */
#include "app/app.h"

#include <math.h>
#include <string.h>

#include "app/verbs.h"
#include "attention/mechanism.h"
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
     .help = "a tensor of the mechanism's own; 'fovea show' lists them; weights=FILE.safetensors gives all that the "
             "file has, by their names"},
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
     .help = "gradient of a tensor given with --param, written; weights=FILE.safetensors takes those of all"},
    CLI_END,
};

/* Everything one call reads and writes. */
struct work {
    fv_attention *attention;
    const fv_mechanism *mechanism;
    app_tensor q, k, v, o, lse, d_o, d_q, d_k, d_v;
    app_named params, params_out, d_params;
    fv_tensor map;
    void *map_owned;
    double seconds, scoring, selecting;
    fv_work cost;
};

static void work_free(struct work *w)
{
    app_tensor *tensors[] = {&w->q, &w->k, &w->v, &w->o, &w->lse, &w->d_o, &w->d_q, &w->d_k, &w->d_v};

    for (size_t i = 0; i < sizeof tensors / sizeof tensors[0]; i++)
        app_tensor_free(tensors[i]);
    app_named_free(&w->params);
    app_named_free(&w->params_out);
    app_named_free(&w->d_params);
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

/* Names, before any tensor is read. */
static fv_status read_names(const struct values *values, struct work *w)
{
    const fv_mechanism *mechanism = w->mechanism;

    FV_TRY(app_named_begin("param", &values->params, mechanism->params, &w->params));
    FV_TRY(app_named_begin("param-out", &values->params_out, NULL, &w->params_out));
    FV_TRY(app_named_begin("dparam", &values->dparams, mechanism->params, &w->d_params));
    FV_TRY(app_named_check(mechanism->name, "param", mechanism->params, &w->params, false));
    FV_TRY(app_named_open(mechanism->name, mechanism->params, &w->params));
    return app_named_match(mechanism->name, mechanism->params, &w->params, &w->d_params);
}

static fv_status read_operand(const char *path, int rank, app_tensor *tensor)
{
    FV_TRY(app_tensor_read(path, tensor));
    if (tensor->t.rank == rank) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: expected %d dimensions, got shape %s", path, rank, fv_shape_text(&tensor->t));
}

/* The call as the library takes it. */
static fv_attention_args args_of(const struct values *values, const struct work *w, const float *scale)
{
    return (fv_attention_args){
        .q = w->q.t,
        .k = w->k.t,
        .v = w->v.t,
        .o = w->o.t,
        .lse = w->lse.t,
        .causal = values->causal,
        .scale = isnan(values->scale) ? NULL : scale,
        .params = w->params.count,
        .param = w->params.named,
        .params_out = w->params_out.count,
        .param_out = w->params_out.named,
    };
}

static fv_status make_outputs(const struct values *values, struct work *w)
{
    bool shared = w->mechanism->traits & FV_SHARED_QK;
    int64_t B = shared ? w->v.t.dims[0] : w->q.t.dims[0], H = w->q.t.dims[1];
    int64_t N = fv_attention_rows(w->mechanism, &(fv_attention_args){.q = w->q.t, .v = w->v.t}, false);
    fv_attention_args args;
    fv_tensor shape;

    FV_TRY(app_tensor_new(&w->o, FV_F32, FV_DIMS(B, H, N, w->v.t.dims[3])));
    if (values->lse) FV_TRY(app_tensor_new(&w->lse, FV_F32, FV_DIMS(B, H, N)));
    args = args_of(values, w, &(float){(float)values->scale});
    args.params_out = 0; /* there are none yet */
    for (int i = 0; i < w->params_out.count; i++) {
        FV_TRY(fv_attention_param_out(w->attention, &args, w->params_out.named[i].name, &shape));
        FV_TRY(app_named_make(&w->params_out, i, &shape));
    }
    return FV_OK;
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
    return app_named_like(&w->params, &w->d_params);
}

static fv_status compute(fv_ctx *ctx, const struct values *values, struct work *w)
{
    float scale = (float)values->scale;
    fv_attention_args args = args_of(values, w, &scale);
    fv_attention_grads grads = {
        .d_o = w->d_o.t,
        .d_q = w->d_q.t,
        .d_k = w->d_k.t,
        .d_v = w->d_v.t,
        .params = w->d_params.count,
        .d_param = w->d_params.named,
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

static fv_status try_all(const struct values *values, const struct work *w)
{
    const char *files[] = {values->output, values->lse, values->plan, values->dq, values->dk, values->dv};

    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        FV_TRY(app_file_try(files[i]));
    FV_TRY(app_named_try(&w->params_out));
    return app_named_try(&w->d_params);
}

static fv_status write_all(const struct values *values, const struct work *w)
{
    FV_TRY(fv_npy_write(values->output, &w->o.t));
    if (values->lse) FV_TRY(fv_npy_write(values->lse, &w->lse.t));
    if (values->plan) FV_TRY(fv_npy_write(values->plan, &w->map));
    if (values->dq) FV_TRY(fv_npy_write(values->dq, &w->d_q.t));
    if (values->dk) FV_TRY(fv_npy_write(values->dk, &w->d_k.t));
    if (values->dv) FV_TRY(fv_npy_write(values->dv, &w->d_v.t));
    FV_TRY(app_named_write(&w->params_out));
    return app_named_write(&w->d_params);
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
    FV_TRY(read_names(values, w));
    FV_TRY(try_all(values, w));
    FV_TRY(app_begin(app, values->precision == 1 ? FV_PRECISION_BF16 : FV_PRECISION_F32));
    FV_TRY(read_operand(values->q, 4, &w->q));
    FV_TRY(read_operand(values->k, 4, &w->k));
    FV_TRY(read_operand(values->v, 4, &w->v));
    FV_TRY(app_named_read(w->mechanism->params, &w->params));
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
    .summary = "compute one mechanism on tensors from files",
    .about = "Reads q, k and v, computes the mechanism, and writes the result; on request also the log-sum-exp, the "
             "visible pairs, and the gradients. Query head h reads key-value head h / (H / Hkv).",
    .example = "  fovea attend -a sinkwin:sink=4,window=512 --q q.npy --k k.npy --v v.npy -o o.npy\n"
               "  fovea attend -a dense --causal --q q.npy --k k.npy --v v.npy -o o.npy \\\n"
               "      --grad do.npy --dq dq.npy --dk dk.npy --dv dv.npy\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
