/* Every layer is its definition, on every device: tests/support/layer_cases.c has the calls, tests/sheets the
 * definitions.  No layer is named here. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "support/layer_trial.h"

static const char *only = "";

/* Calls `check` for every case on every device. */
static void for_all(void (*check)(struct layer_trial *t), int threads)
{
    for (int d = 0; test_devices[d]; d++)
        for (const layer_case *c = layer_cases; c->spec; c++) {
            if (strncmp(c->spec, only, strlen(only)) != 0) continue;
            struct layer_trial *t = layer_trial_open(c->spec, test_devices[d], threads);
            snprintf(t->what + strlen(t->what), sizeof t->what - strlen(t->what), ", %s", c->tensors);
            layer_trial_draw(t, c->tensors);
            check(t);
            layer_trial_close(t);
        }
}

static bool is_differentiable(const struct layer_trial *t)
{
    return t->type->traits & FV_LAYER_DIFFERENTIABLE;
}

static const fv_param *named(const fv_param *table, const char *name)
{
    while (strcmp(table->name, name) != 0)
        table++;
    return table;
}

/* ---- values ----------------------------------------------------------------------------------------------------- */

static void equals_its_definition(void **state)
{
    (void)state;
    for_all(layer_trial_forward, 2);
}

/* A copy whose dims lie in memory the other way round. */
static fv_tensor turned(struct layer_trial *t, const fv_tensor *x)
{
    int order[FV_MAX_RANK];
    int64_t dims[FV_MAX_RANK];
    fv_tensor copy;

    for (int d = 0; d < x->rank; d++) {
        order[d] = x->rank - 1 - d;
        dims[d] = x->dims[order[d]];
    }
    assert_ok(fv_tensor_new(t->ctx, &copy, x->dtype, x->rank, dims));
    copy = fv_permuted(&copy, order);
    assert_ok(fv_map_apply(t->ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = copy}));
    return copy;
}

static void check_strides(struct layer_trial *t)
{
    for (int i = 0; i < t->args.inputs; i++)
        t->input[i].tensor = turned(t, &t->input[i].tensor);
    for (int i = 0; i < t->args.params; i++)
        t->param[i].tensor = turned(t, &t->param[i].tensor);
    for (int i = 0; i < t->args.outputs; i++)
        t->output[i].tensor = turned(t, &t->output[i].tensor);
    CHECK_OK(t, fv_layer_forward(t->ctx, t->layer, &t->args));
    for (int i = 0; i < t->args.outputs; i++)
        test_close(t->what, &t->output[i].tensor, t->result[i].data, t->tolerance);
}

static void takes_any_strides(void **state)
{
    (void)state;
    for_all(check_strides, 1);
}

/* ---- gradients -------------------------------------------------------------------------------------------------- */

/* Sum d_o o; what is -inf stays so. */
static double seen_by(const double *d_o, const double *o, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++)
        if (!isinf(o[i])) sum += d_o[i] * o[i];
    return sum;
}

/* d/de of sum d_o o(x + e u), by differences of the definition behind x (0) and ahead of it (1), the choice held. */
static void slopes(struct layer_trial *t, double *x, const double *u, int64_t count, double *const *d_o,
                   double slope[2])
{
    const double step = 1e-5;
    double *kept = trial_zeros(count, sizeof *kept), at[3] = {0};

    memcpy(kept, x, (size_t)count * sizeof *kept);
    t->sheet.frozen = true;
    for (int side = 0; side < 3; side++) {
        for (int64_t i = 0; i < count; i++)
            x[i] = kept[i] + (side - 1) * step * u[i];
        layer_sheet_find(t->type->name)->forward(&t->sheet);
        for (int o = 0; o < t->args.outputs; o++)
            if (d_o[o]) at[side] += seen_by(d_o[o], t->result[o].data, fv_tensor_count(&t->output[o].tensor));
    }
    t->sheet.frozen = false;
    memcpy(x, kept, (size_t)count * sizeof *kept);
    free(kept);
    for (int side = 0; side < 2; side++)
        slope[side] = (at[side + 1] - at[side]) / step;
}

static void check_gradient(struct layer_trial *t, const char *name, const fv_tensor *gradient, double *const *d_o)
{
    int64_t count = fv_tensor_count(gradient);
    fv_tensor direction = test_random(t->ctx, 1, gradient->rank, gradient->dims);
    double *u = trial_doubled(&direction), *g = trial_doubled(gradient), side[2], got, low, high, size = 0, tolerance;

    got = sheet_dot(g, u, count);
    slopes(t, layer_trial_data(t, name), u, count, d_o, side);
    low = fmin(side[0], side[1]);
    high = fmax(side[0], side[1]);
    for (int64_t i = 0; i < count; i++)
        size += g[i] * g[i] * u[i] * u[i]; /* of a sum with random signs */
    tolerance = 50 * t->tolerance * fmax(1, fmax(fabs(low + high) / 2, sqrt(size)));
    if (!(got >= low - tolerance && got <= high + tolerance))
        fail_msg("gradient of %s of %s: expected %.9g to %.9g along a random direction, got %.9g", name, t->what, low,
                 high, got);
    free(u);
    free(g);
}

/* Room for the gradients of those that have one. */
static int gradients_of(struct layer_trial *t, const fv_param *table, int count, const fv_named_tensor *given,
                        fv_named_tensor *gradient)
{
    int made = 0;

    for (int i = 0; i < count; i++)
        if (!named(table, given[i].name)->fixed)
            gradient[made++] =
                (fv_named_tensor){given[i].name, test_random(t->ctx, 1, given[i].tensor.rank, given[i].tensor.dims)};
    return made;
}

static void refuses_fixed(struct layer_trial *t, fv_layer_grads grads, const fv_param *table, int count,
                          const fv_named_tensor *given, bool input)
{
    for (int i = 0; i < count; i++) {
        if (!named(table, given[i].name)->fixed) continue;
        grads.inputs = input;
        grads.params = !input;
        grads.d_input = grads.d_param = &given[i];
        assert_fails(fv_layer_backward(t->ctx, t->layer, &t->args, &grads), FV_E_USAGE, "has no gradient");
    }
}

static void check_gradients(struct layer_trial *t)
{
    fv_named_tensor d_out[FV_LAYER_TENSORS], d_in[FV_LAYER_TENSORS], d_param[FV_LAYER_TENSORS], alone;
    fv_layer_grads grads = {.d_output = d_out, .d_input = d_in, .d_param = d_param};
    double *d_o[FV_LAYER_TENSORS] = {NULL};

    grads.outputs = gradients_of(t, t->type->outputs, t->args.outputs, t->output, d_out);
    grads.inputs = gradients_of(t, t->type->inputs, t->args.inputs, t->input, d_in);
    grads.params = gradients_of(t, t->type->params, t->args.params, t->param, d_param);
    if (!is_differentiable(t)) {
        assert_fails(fv_layer_backward(t->ctx, t->layer, &t->args, &grads), FV_E_USAGE, "has no gradients");
        return;
    }
    CHECK_OK(t, fv_layer_backward(t->ctx, t->layer, &t->args, &grads));
    for (int i = 0, n = 0; i < t->args.outputs; i++) {
        test_close(t->what, &t->output[i].tensor, t->result[i].data, t->tolerance); /* outputs are written too */
        if (n < grads.outputs && strcmp(d_out[n].name, t->output[i].name) == 0)
            d_o[i] = trial_doubled(&d_out[n++].tensor);
    }
    for (int i = 0; i < grads.inputs; i++)
        check_gradient(t, d_in[i].name, &d_in[i].tensor, d_o);
    for (int i = 0; i < grads.params; i++)
        check_gradient(t, d_param[i].name, &d_param[i].tensor, d_o);
    refuses_fixed(t, grads, t->type->inputs, t->args.inputs, t->input, true);
    refuses_fixed(t, grads, t->type->params, t->args.params, t->param, false);
    t->args.outputs = 0; /* one gradient alone, and no outputs, are the same */
    for (int i = 0; i < grads.params; i++) {
        fv_layer_grads one = {.outputs = grads.outputs, .d_output = d_out, .params = 1, .d_param = &alone};
        double *expected = trial_doubled(&d_param[i].tensor);
        alone =
            (fv_named_tensor){d_param[i].name, test_random(t->ctx, 1, d_param[i].tensor.rank, d_param[i].tensor.dims)};
        CHECK_OK(t, fv_layer_backward(t->ctx, t->layer, &t->args, &one));
        test_close(t->what, &alone.tensor, expected, t->tolerance);
        free(expected);
    }
    t->args.outputs = t->sheet.outputs;
    for (int i = 0; i < t->args.outputs; i++)
        free(d_o[i]);
}

static void has_the_gradients_of_its_definition(void **state)
{
    (void)state;
    for_all(check_gradients, 2);
}

/* ---- threads, failures ------------------------------------------------------------------------------------------ */

static void check_bits(struct layer_trial *t)
{
    fv_named_tensor d_out[FV_LAYER_TENSORS], d_param[FV_LAYER_TENSORS];
    fv_layer_grads grads = {.d_output = d_out, .d_param = d_param};
    fv_tensor *last, first_o = t->output[0].tensor, first_g = {0};

    grads.outputs = gradients_of(t, t->type->outputs, t->args.outputs, t->output, d_out);
    grads.params = gradients_of(t, t->type->params, t->args.params, t->param, d_param);
    for (int threads = 1; threads <= 2; threads++) {
        fv_ctx *ctx = test_ctx(strcmp(fv_ctx_backend(t->ctx), "ref") == 0 ? "ref" : "cpu", threads);
        if (is_differentiable(t))
            CHECK_OK(t, fv_layer_backward(ctx, t->layer, &t->args, &grads));
        else
            CHECK_OK(t, fv_layer_forward(ctx, t->layer, &t->args));
        fv_ctx_free(ctx);
        last = grads.params ? &d_param[grads.params - 1].tensor : NULL;
        if (threads == 1) {
            assert_ok(fv_plain(t->ctx, &t->output[0].tensor, &first_o));
            first_o = turned(t, &first_o);
            if (last) first_g = turned(t, last);
            continue;
        }
        double *o = trial_doubled(&t->output[0].tensor);
        test_close(t->what, &first_o, o, 0);
        free(o);
        if (!last) continue;
        double *g = trial_doubled(last);
        test_close(t->what, &first_g, g, 0);
        free(g);
    }
}

static void gives_the_same_bits_with_any_threads(void **state)
{
    (void)state;
    for_all(check_bits, 1);
}

static fv_status forward_once(fv_ctx *ctx, void *user)
{
    struct layer_trial *t = user;

    return fv_layer_forward(ctx, t->layer, &t->args);
}

static void check_memory(struct layer_trial *t)
{
    test_without_memory(t->what, strcmp(fv_ctx_backend(t->ctx), "ref") == 0 ? "ref" : "cpu", forward_once, t);
}

static void survives_want_of_memory(void **state)
{
    (void)state;
    for_all(check_memory, 1);
}

/* ---- refusals --------------------------------------------------------------------------------------------------- */

/* How often a dim's text stands in the shapes of a layer: once means that any size will do. */
static int uses_of(const fv_layer_type *type, const char *text)
{
    const fv_param *tables[] = {type->inputs, type->params, type->outputs};
    char word[FV_DIM_TEXT];
    int uses = 0;

    for (int n = 0; n < 3; n++)
        for (const fv_param *param = tables[n]; param->name; param++)
            for (int d = 0, last = 0; !last; d++) {
                const char *comma = param->shape;
                for (int skip = d; skip > 0 && comma; skip--)
                    comma = strchr(comma + 1, ',');
                last = !comma || !strchr(comma + 1, ',');
                fv_param_dim(param, d, word);
                uses += strcmp(word, text) == 0;
            }
    return uses;
}

static void check_one_shape(struct layer_trial *t, const fv_param *param, fv_tensor *place)
{
    fv_tensor right = *place, wrong;
    int64_t dims[FV_MAX_RANK];
    char word[FV_DIM_TEXT];

    for (int d = -1; d < right.rank; d++) {
        memcpy(dims, right.dims, sizeof dims);
        if (d < 0)
            dims[right.rank] = 1;
        else
            dims[d]++;
        assert_ok(fv_tensor_zeros(t->ctx, &wrong, right.dtype, right.rank + (d < 0), dims));
        fv_param_dim(param, d < 0 ? 0 : d, word);
        *place = wrong;
        if (d < 0 || uses_of(t->type, word) > 1)
            assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_SHAPE, "expected ");
    }
    *place = right;
    if (right.dtype != FV_F32) return;
    place->dtype = FV_I32;
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_DTYPE, param->name);
    *place = right;
}

static void check_shapes(struct layer_trial *t)
{
    for (int i = 0; i < t->args.inputs; i++)
        check_one_shape(t, named(t->type->inputs, t->input[i].name), &t->input[i].tensor);
    for (int i = 0; i < t->args.params; i++)
        check_one_shape(t, named(t->type->params, t->param[i].name), &t->param[i].tensor);
    for (int i = 0; i < t->args.outputs; i++)
        check_one_shape(t, named(t->type->outputs, t->output[i].name), &t->output[i].tensor);
}

static void refuses_wrong_shapes(void **state)
{
    (void)state;
    for_all(check_shapes, 1);
}

/* Each tensor in turn is left out, renamed, given twice. */
static void check_names(struct layer_trial *t, const fv_param *table, int *count, fv_named_tensor *given)
{
    for (int i = 0; i < *count; i++) {
        fv_named_tensor kept = given[i];
        char words[96];

        given[i] = given[--*count];
        snprintf(words, sizeof words, "'%s' %s is missing", kept.name, named(table, kept.name)->shape);
        if (named(table, kept.name)->needed)
            assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_USAGE, words);
        else
            CHECK_OK(t, fv_layer_forward(t->ctx, t->layer, &t->args));
        given[(*count)++] = given[i];
        given[i] = kept;
        snprintf(words, sizeof words, "%sz", kept.name);
        given[i].name = words;
        assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_USAGE, "' is not known; ");
        given[i] = kept;
        if (i == 0) continue;
        given[i] = given[0];
        if (!named(table, kept.name)->needed)
            assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_USAGE, "is given twice");
        given[i] = kept;
    }
}

static void check_all_names(struct layer_trial *t)
{
    check_names(t, t->type->inputs, &t->args.inputs, t->input);
    check_names(t, t->type->params, &t->args.params, t->param);
    t->args.outputs = 0;
    assert_fails(fv_layer_forward(t->ctx, t->layer, &t->args), FV_E_USAGE, "no output is asked for");
}

static void refuses_wrong_names(void **state)
{
    (void)state;
    for_all(check_all_names, 1);
}

static void every_layer_has_cases_and_a_definition(void **state)
{
    (void)state;
    for (int i = 0; fv_layer_types[i]; i++) {
        const fv_layer_type *type = fv_layer_types[i];
        bool found = false;
        for (const layer_case *c = layer_cases; c->spec; c++) {
            size_t length = strcspn(c->spec, ":");
            found |= strlen(type->name) == length && strncmp(c->spec, type->name, length) == 0;
        }
        if (!found || !layer_sheet_find(type->name)) fail_msg("%s: no cases or no definition", type->name);
        assert_true(type->title && type->paper && type->formula && type->cost && type->forward);
        assert_true(fv_params_count(type->inputs) > 0 && fv_params_count(type->inputs) < FV_LAYER_TENSORS);
        assert_true(fv_params_count(type->outputs) > 0 && fv_params_count(type->outputs) < FV_LAYER_TENSORS);
        assert_true(type->params && fv_params_count(type->params) < FV_LAYER_TENSORS);
    }
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_layer_has_cases_and_a_definition),
        cmocka_unit_test(equals_its_definition),
        cmocka_unit_test(takes_any_strides),
        cmocka_unit_test(has_the_gradients_of_its_definition),
        cmocka_unit_test(gives_the_same_bits_with_any_threads),
        cmocka_unit_test(survives_want_of_memory),
        cmocka_unit_test(refuses_wrong_shapes),
        cmocka_unit_test(refuses_wrong_names),
    };

    if (argc > 1) cmocka_set_test_filter(argv[1]);
    if (argc > 2) only = argv[2]; /* over the cases whose SPEC begins so */
    return cmocka_run_group_tests(tests, NULL, NULL);
}
