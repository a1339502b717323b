/* What every layer gets from its descriptor: checked calls, forward, backward. */
#include "layers/layer.h"

#include "ops/tape.h"

struct fv_layer {
    const fv_layer_type *type;
    void *options;
};

/* ---- by name ---------------------------------------------------------------------------------------------------- */

static const char *name_at(const void *user, int index)
{
    (void)user;
    return fv_layer_types[index]->name;
}

static fv_status find_type(const char *name, const fv_layer_type **type)
{
    int count = 0;
    const char *near;

    *type = fv_layer_type_find(name);
    if (*type) return FV_OK;
    while (fv_layer_types[count])
        count++;
    near = fv_nearest(name, count, name_at, NULL);
    return fv_fail(FV_E_USAGE, "layer '%s' is not known%s%s%s ('fovea list layers' has all)", name,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

fv_status fv_layer_new(const char *text, fv_layer **layer)
{
    const fv_layer_type *type;
    fv_layer *made = NULL;
    fv_status status;
    fv_spec spec;

    *layer = NULL;
    FV_TRY(fv_spec_parse(&spec, text));
    FV_TRY(find_type(fv_spec_name(&spec), &type));
    FV_TRY(FV_ZALLOC(made, 1));
    made->type = type;
    FV_TRY_DONE(fv_zalloc(&made->options, 1, type->options_size));
    FV_TRY_DONE(fv_options_parse(type->options, &spec, made->options));
    if (type->check) FV_TRY_DONE(type->check(made->options));
    *layer = made;
    return FV_OK;
done:
    fv_layer_free(made);
    return status;
}

void fv_layer_free(fv_layer *layer)
{
    if (!layer) return;
    fv_free(layer->options);
    fv_free(layer);
}

const char *fv_layer_name(const fv_layer *layer)
{
    return layer->type->name;
}

const fv_layer_type *fv_layer_type_of(const fv_layer *layer)
{
    return layer->type;
}

/* ---- checking a call -------------------------------------------------------------------------------------------- */

/* The three tables, and what was given for each. */
struct side {
    const char *what;
    const fv_param *table;
    int count;
    const fv_named_tensor *given;
};
enum { INPUTS, PARAMS, OUTPUTS, SIDES };

static void sides_of(const fv_layer_type *type, const fv_layer_args *args, struct side side[SIDES])
{
    side[INPUTS] = (struct side){"input", type->inputs, args->inputs, args->input};
    side[PARAMS] = (struct side){"param", type->params, args->params, args->param};
    side[OUTPUTS] = (struct side){"output", type->outputs, args->outputs, args->output};
}

static bool is_given(const struct side *side, const char *name)
{
    for (int i = 0; i < side->count; i++)
        if (strcmp(side->given[i].name, name) == 0) return true;
    return false;
}

fv_status fv_layer_names(const fv_layer *layer, const fv_layer_args *args, bool more_params)
{
    const fv_layer_type *type = layer->type;
    struct side sides[SIDES];
    int index;

    sides_of(type, args, sides);
    for (const struct side *side = sides; side < sides + SIDES; side++)
        for (int i = 0; i < side->count; i++)
            FV_TRY(fv_params_find(type->name, side->what, side->table, side->given[i].name, &index));
    for (const struct side *side = sides; side < sides + (more_params ? PARAMS : OUTPUTS); side++)
        for (const fv_param *param = side->table; param && param->name; param++)
            if (param->needed && !is_given(side, param->name))
                return fv_fail(FV_E_USAGE, "%s: %s '%s' %s is missing", type->name, side->what, param->name,
                               param->shape);
    return FV_OK;
}

static fv_status check_tensor(const fv_layer_type *type, const char *what, const fv_param *param, const fv_tensor *t,
                              fv_named_sizes *sizes)
{
    for (int d = 0; d < t->rank; d++)
        if (t->dims[d] < 1 || t->dims[d] > INT32_MAX)
            return fv_fail(FV_E_SHAPE, "%s: %s '%s': expected dims of 1 to 2^31-1, got shape %s", type->name, what,
                           param->name, fv_shape_text(t));
    return fv_param_check(type->name, what, param, t, sizes);
}

static int64_t known_size(const void *user, const char *name)
{
    const fv_layer_call *call = user;

    return call->type->size ? call->type->size(call, name) : -1;
}

/* Inputs and params; outputs stay absent. */
static fv_status make(const fv_layer *layer, const fv_layer_args *args, fv_layer_call *call)
{
    const fv_layer_type *type = layer->type;
    fv_layer_args read = *args;
    struct side sides[SIDES];
    fv_tensor *place[] = {call->in, call->param};

    read.outputs = 0;
    *call = (fv_layer_call){.type = type, .options = layer->options, .sizes = {.known = known_size, .user = call}};
    FV_TRY(fv_layer_names(layer, &read, false));
    sides_of(type, &read, sides);
    for (int s = INPUTS; s <= PARAMS; s++) {
        const struct side *side = &sides[s];
        FV_TRY(fv_params_place(type->name, side->what, side->table, side->count, side->given, place[s]));
        for (int i = 0; i < fv_params_count(side->table); i++)
            if (fv_present(&place[s][i]))
                FV_TRY(check_tensor(type, side->what, &side->table[i], &place[s][i], &call->sizes));
    }
    return type->accept ? type->accept(call) : FV_OK;
}

/* A tensor of an output's shape, or its gradient. */
static fv_status check_output(const fv_layer_call *call, const char *what, int index, const fv_tensor *t)
{
    const fv_param *param = &call->type->outputs[index];
    fv_named_sizes sizes = call->sizes;

    return check_tensor(call->type, what, param, t, &sizes);
}

fv_status fv_layer_output(const fv_layer *layer, const fv_layer_args *args, const char *name, fv_tensor *shape)
{
    const fv_layer_type *type = layer->type;
    fv_layer_call call;
    int index;

    FV_TRY(make(layer, args, &call));
    FV_TRY(fv_params_find(type->name, "output", type->outputs, name, &index));
    return fv_param_shape(type->name, "output", &type->outputs[index], &call.sizes, shape);
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* The outputs asked for. */
static fv_status take_outputs(const fv_layer_args *args, fv_layer_call *call)
{
    const fv_layer_type *type = call->type;

    FV_TRY(fv_params_place(type->name, "output", type->outputs, args->outputs, args->output, call->out));
    for (int i = 0; i < fv_params_count(type->outputs); i++)
        if (fv_present(&call->out[i])) FV_TRY(check_output(call, "output", i, &call->out[i]));
    return FV_OK;
}

static fv_status make_plain(fv_ctx *ctx, const fv_param *table, fv_tensor *t)
{
    for (int i = 0; i < fv_params_count(table); i++) {
        const fv_tensor given = t[i];
        if (fv_present(&given) && given.dtype == FV_F32) FV_TRY(fv_plain(ctx, &given, &t[i]));
    }
    return FV_OK;
}

/* Outputs are computed apart where the caller's are not contiguous, and, with seeds (gradients of outputs), for the
 * tape: those that have one as well. */
static fv_status run(fv_ctx *ctx, fv_layer_call *call, const fv_tensor *seeds)
{
    const fv_layer_type *type = call->type;
    int outputs = fv_params_count(type->outputs);
    fv_tensor asked[FV_LAYER_TENSORS];

    memcpy(asked, call->out, sizeof asked);
    FV_TRY(make_plain(ctx, type->inputs, call->in));
    FV_TRY(make_plain(ctx, type->params, call->param));
    for (int i = 0; i < outputs; i++) {
        bool seeded = seeds && fv_present(&seeds[i]);
        const fv_tensor *shape = seeded ? &seeds[i] : &asked[i];
        if (!fv_present(shape) || (!seeds && fv_tensor_contiguous(&asked[i]))) continue;
        FV_TRY(fv_tensor_new(ctx, &call->out[i], shape->dtype, shape->rank, shape->dims));
        if (seeded) FV_TRY(fv_tape_watch(ctx, &call->out[i])); /* it may depend on no leaf */
    }
    FV_TRY(type->forward(ctx, call));
    for (int i = 0; i < outputs; i++)
        if (fv_present(&asked[i]) && call->out[i].data != asked[i].data)
            FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = call->out[i], .out = asked[i]}));
    return FV_OK;
}

fv_status fv_layer_decide(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args, fv_text *plan)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_layer_call call;
    fv_status status;

    FV_TRY(make(layer, args, &call));
    FV_TRY(take_outputs(args, &call));
    if (args->outputs == 0)
        return fv_fail(FV_E_USAGE, "%s: no output is asked for; expected one, such as '%s'", layer->type->name,
                       layer->type->outputs[0].name);
    call.plan = plan;
    status = run(ctx, &call, NULL);
    fv_scratch_release(ctx, mark);
    return status == FV_OK && plan ? fv_text_status(plan) : status;
}

fv_status fv_layer_forward(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args)
{
    return fv_layer_decide(ctx, layer, args, NULL);
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* Gradients in the order of the tables. */
struct gradients {
    fv_tensor of[SIDES][FV_LAYER_TENSORS];
};

static fv_status take_gradients(const fv_layer_call *call, const fv_layer_grads *grads, struct gradients *g)
{
    const fv_layer_type *type = call->type;
    const struct {
        const char *what;
        const fv_param *table;
        int count;
        const fv_named_tensor *given;
        const fv_tensor *of; /* NULL: of outputs */
    } sides[SIDES] = {
        [INPUTS] = {"gradient of input", type->inputs, grads->inputs, grads->d_input, call->in},
        [PARAMS] = {"gradient of param", type->params, grads->params, grads->d_param, call->param},
        [OUTPUTS] = {"gradient of output", type->outputs, grads->outputs, grads->d_output, NULL},
    };

    for (int s = 0; s < SIDES; s++) {
        FV_TRY(fv_params_place(type->name, sides[s].what, sides[s].table, sides[s].count, sides[s].given, g->of[s]));
        for (int i = 0; i < fv_params_count(sides[s].table); i++) {
            const fv_param *param = &sides[s].table[i];
            const fv_tensor *t = &g->of[s][i];
            if (!fv_present(t)) continue;
            if (param->fixed) return fv_fail(FV_E_USAGE, "%s: '%s' has no gradient", type->name, param->name);
            if (sides[s].of && !fv_present(&sides[s].of[i]))
                return fv_fail(FV_E_USAGE, "%s: %s '%s', which is not given", type->name, sides[s].what, param->name);
            if (t->dtype != FV_F32)
                return fv_fail(FV_E_DTYPE, "%s: %s '%s': expected f32, got %s", type->name, sides[s].what, param->name,
                               fv_dtype_name(t->dtype));
            if (sides[s].of && !fv_tensor_same_shape(t, &sides[s].of[i]))
                return fv_fail(FV_E_SHAPE, "%s: %s '%s': expected %s, got %s", type->name, sides[s].what, param->name,
                               fv_shape_text(&sides[s].of[i]), fv_shape_text(t));
            if (!sides[s].of) FV_TRY(check_output(call, sides[s].what, i, t));
        }
    }
    return FV_OK;
}

static fv_status backward(fv_ctx *ctx, fv_layer_call *call, const struct gradients *g)
{
    const fv_layer_type *type = call->type;
    const fv_param *table[] = {type->inputs, type->params};
    fv_tensor *read[] = {call->in, call->param};

    for (int s = INPUTS; s <= PARAMS; s++)
        for (int i = 0; i < fv_params_count(table[s]); i++)
            if (fv_present(&g->of[s][i])) FV_TRY(fv_tape_leaf(ctx, &read[s][i]));
    FV_TRY(run(ctx, call, g->of[OUTPUTS]));
    for (int i = 0; i < fv_params_count(type->outputs); i++)
        if (fv_present(&g->of[OUTPUTS][i])) FV_TRY(fv_tape_seed(ctx, &call->out[i], &g->of[OUTPUTS][i]));
    FV_TRY(fv_tape_backward(ctx));
    for (int s = INPUTS; s <= PARAMS; s++)
        for (int i = 0; i < fv_params_count(table[s]); i++)
            FV_TRY(fv_tape_hand_out(ctx, type->name, table[s][i].name, &read[s][i], &g->of[s][i]));
    return FV_OK;
}

fv_status fv_layer_backward(fv_ctx *ctx, const fv_layer *layer, const fv_layer_args *args, const fv_layer_grads *grads)
{
    struct gradients g = {0};
    fv_layer_call call;
    fv_status status;

    if (!(layer->type->traits & FV_LAYER_DIFFERENTIABLE))
        return fv_fail(FV_E_USAGE, "%s: has no gradients", layer->type->name);
    FV_TRY(make(layer, args, &call));
    FV_TRY(take_outputs(args, &call));
    FV_TRY(take_gradients(&call, grads, &g));
    FV_TRY(fv_tape_begin(ctx));
    status = backward(ctx, &call, &g);
    fv_tape_end(ctx);
    return status;
}
