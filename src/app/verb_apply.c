/* fovea apply: one layer on tensors from files. */
#include "app/app.h"

#include "app/verbs.h"
#include "layers/layer.h"

struct values {
    cli_common common;
    cli_texts inputs, params, outputs, grads, d_inputs, d_params;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    {.name = "in",
     .kind = CLI_TEXTS,
     .offset = AT(inputs),
     .argument = "NAME=FILE",
     .required = true,
     .group = "Input",
     .help = "an input, .npy in f32, f16 or f64 (or integers where they are meant); 'fovea show' lists them"},
    {.name = "param",
     .kind = CLI_TEXTS,
     .offset = AT(params),
     .argument = "NAME=FILE",
     .help = "a tensor of the layer's own; matrices must be given, a missing bias is 0, a missing norm weight 1; "
             "weights=FILE.safetensors gives all that the file has, by their names"},
    {.name = "out",
     .kind = CLI_TEXTS,
     .offset = AT(outputs),
     .argument = "NAME=FILE",
     .required = true,
     .group = "Output",
     .help = "an output, written; others are not computed"},
    {.name = "grad",
     .kind = CLI_TEXTS,
     .offset = AT(grads),
     .argument = "NAME=FILE",
     .group = "Gradients",
     .help = "gradient of an output, read"},
    {.name = "din",
     .kind = CLI_TEXTS,
     .offset = AT(d_inputs),
     .argument = "NAME=FILE",
     .help = "gradient of an input given with --in, written"},
    {.name = "dparam",
     .kind = CLI_TEXTS,
     .offset = AT(d_params),
     .argument = "NAME=FILE",
     .help = "gradient of a tensor given with --param, written; weights=FILE.safetensors takes those of all"},
    CLI_END,
};

/* Everything one call reads and writes. */
struct work {
    fv_layer *layer;
    app_named inputs, params, outputs, grads, d_inputs, d_params;
    fv_text plan; /* that a policy decides on */
    double seconds;
};

static void work_free(struct work *w)
{
    app_named *named[] = {&w->inputs, &w->params, &w->outputs, &w->grads, &w->d_inputs, &w->d_params};

    for (size_t i = 0; i < sizeof named / sizeof *named; i++)
        app_named_free(named[i]);
    fv_text_free(&w->plan);
    fv_layer_free(w->layer);
}

static fv_layer_args args_of(const struct work *w)
{
    return (fv_layer_args){
        .inputs = w->inputs.count,
        .input = w->inputs.named,
        .params = w->params.count,
        .param = w->params.named,
        .outputs = w->outputs.count,
        .output = w->outputs.named,
    };
}

/* Names, before any tensor is read. */
static fv_status read_names(const struct values *values, struct work *w)
{
    const fv_layer_type *type = fv_layer_type_of(w->layer);
    bool wants_grads = values->d_inputs.count > 0 || values->d_params.count > 0;
    fv_layer_args args;

    if (values->grads.count > 0 && !(type->traits & FV_LAYER_DIFFERENTIABLE))
        return fv_fail(FV_E_USAGE, "%s: --grad cannot be used: it has no gradients", type->name);
    if (values->grads.count > 0 && !wants_grads)
        return fv_fail(FV_E_USAGE, "--grad: expected at least one of --din and --dparam beside it");
    if (values->grads.count == 0 && wants_grads) return cli_missing("--grad", "--din and --dparam need it");
    FV_TRY(app_named_begin("in", &values->inputs, NULL, &w->inputs));
    FV_TRY(app_named_begin("param", &values->params, type->params, &w->params));
    FV_TRY(app_named_begin("out", &values->outputs, NULL, &w->outputs));
    FV_TRY(app_named_begin("grad", &values->grads, NULL, &w->grads));
    FV_TRY(app_named_begin("din", &values->d_inputs, NULL, &w->d_inputs));
    FV_TRY(app_named_begin("dparam", &values->d_params, type->params, &w->d_params));
    args = args_of(w);
    FV_TRY(fv_layer_names(w->layer, &args, w->params.bundle != NULL));
    FV_TRY(app_named_check(type->name, "output", type->outputs, &w->grads, true));
    FV_TRY(app_named_open(type->name, type->params, &w->params));
    args = args_of(w);
    FV_TRY(fv_layer_names(w->layer, &args, false));
    FV_TRY(app_named_match(type->name, type->inputs, &w->inputs, &w->d_inputs));
    return app_named_match(type->name, type->params, &w->params, &w->d_params);
}

static fv_status read_files(struct work *w)
{
    const fv_layer_type *type = fv_layer_type_of(w->layer);
    fv_layer_args args;
    fv_tensor shape;

    FV_TRY(app_named_read(type->inputs, &w->inputs));
    FV_TRY(app_named_read(type->params, &w->params));
    FV_TRY(app_named_read(type->outputs, &w->grads));
    args = args_of(w);
    for (int i = 0; i < w->outputs.count; i++) {
        FV_TRY(fv_layer_output(w->layer, &args, w->outputs.named[i].name, &shape));
        FV_TRY(app_named_make(&w->outputs, i, &shape));
    }
    FV_TRY(app_named_like(&w->inputs, &w->d_inputs));
    return app_named_like(&w->params, &w->d_params);
}

static fv_status compute(fv_ctx *ctx, struct work *w)
{
    fv_layer_args args = args_of(w);
    fv_layer_grads grads = {
        .outputs = w->grads.count,
        .d_output = w->grads.named,
        .inputs = w->d_inputs.count,
        .d_input = w->d_inputs.named,
        .params = w->d_params.count,
        .d_param = w->d_params.named,
    };
    double start = app_seconds();

    if (w->grads.count > 0)
        FV_TRY(fv_layer_backward(ctx, w->layer, &args, &grads));
    else
        FV_TRY(fv_layer_decide(ctx, w->layer, &args, &w->plan));
    w->seconds = app_seconds() - start;
    return app_check();
}

static fv_status try_all(const struct work *w)
{
    FV_TRY(app_named_try(&w->outputs));
    FV_TRY(app_named_try(&w->d_inputs));
    return app_named_try(&w->d_params);
}

static fv_status write_all(const struct work *w)
{
    FV_TRY(app_named_write(&w->outputs));
    FV_TRY(app_named_write(&w->d_inputs));
    return app_named_write(&w->d_params);
}

static fv_status tell(struct app *app, const struct work *w)
{
    json_t *root, *outputs;
    fv_text shapes = {0};

    if (!app->common->json) {
        for (int i = 0; i < w->outputs.count; i++)
            fv_text_printf(&shapes, ", %s %s", w->outputs.named[i].name, fv_shape_text(&w->outputs.named[i].tensor));
        if (w->plan.length > 0) fv_text_printf(&shapes, "; plan %s", fv_text_get(&w->plan));
        app_say(app, "%s on %s: %.3g s%s", fv_layer_name(w->layer), fv_ctx_backend(app->ctx), w->seconds,
                fv_text_get(&shapes));
        fv_text_free(&shapes);
        return FV_OK;
    }
    root = json_object();
    outputs = json_object();
    app_put(root, "layer", json_string(fv_layer_name(w->layer)));
    app_put(root, "backend", json_string(fv_ctx_backend(app->ctx)));
    app_put(root, "seconds", app_number(w->seconds));
    for (int i = 0; i < w->outputs.count; i++) {
        const fv_tensor *output = &w->outputs.named[i].tensor;
        json_t *shape = json_array();
        for (int d = 0; d < output->rank; d++)
            app_append(shape, json_integer(output->dims[d]));
        app_put(outputs, w->outputs.named[i].name, shape);
    }
    app_put(root, "outputs", outputs);
    if (w->plan.length > 0) app_put(root, "plan", json_string(fv_text_get(&w->plan)));
    return app_json_print(root);
}

static fv_status apply(struct app *app, const struct values *values, struct work *w)
{
    FV_TRY(fv_layer_new(values->common.operand[0], &w->layer));
    FV_TRY(read_names(values, w));
    FV_TRY(try_all(w));
    FV_TRY(app_begin(app, FV_PRECISION_F32));
    FV_TRY(read_files(w));
    FV_TRY(compute(app->ctx, w));
    FV_TRY(write_all(w));
    return tell(app, w);
}

static fv_status run(struct app *app, const void *values)
{
    struct work w = {0};
    fv_status status = apply(app, values, &w);

    work_free(&w);
    return status;
}

const cli_verb verb_apply = {
    .name = "apply",
    .summary = "compute one layer on tensors from files",
    .operands = "NAME[:options]",
    .operands_min = 1,
    .operands_max = 1,
    .about =
        "Reads a layer's inputs and weights, computes the outputs asked for, and on request gradients. 'fovea list "
        "layers' names the layers, 'fovea show NAME' a layer's tensors. Weights are [out,in]; a missing bias is 0, "
        "a missing norm has weight 1 and bias 0, and a missing matrix is an error.",
    .example =
        "  fovea apply hcam:chunk=16,top=4,heads=4 --in x=x.npy --in keys=keys.npy --in contents=contents.npy \\\n"
        "      --param summary_q_weight=sq.npy --param summary_k_weight=sk.npy --param q_weight=wq.npy \\\n"
        "      --param k_weight=wk.npy --param v_weight=wv.npy --param out_weight=wo.npy --out y=y.npy\n"
        "  fovea apply mlpmix --in x=x.npy --param weights=mlp.safetensors --out y=y.npy\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
