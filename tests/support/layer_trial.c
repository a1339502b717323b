#include "support/layer_trial.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

struct layer_trial *layer_trial_open(const char *spec, const char *device, int threads)
{
    struct layer_trial *t = trial_zeros(1, sizeof *t);

    t->ctx = test_ctx(device, threads);
    assert_ok(fv_layer_new(spec, &t->layer));
    t->type = fv_layer_type_of(t->layer);
    t->args = (fv_layer_args){.input = t->input, .param = t->param, .output = t->output};
    t->sheet = (layer_sheet_call){.option = t->options, .tensor = t->tensor, .output = t->result};
    t->sheet.options = trial_options(spec, t->type->options, t->options, t->values);
    t->sheet.selection = trial_zeros(LAYER_CHOICES, sizeof *t->sheet.selection);
    snprintf(t->what, sizeof t->what, "%s on %s", spec, fv_ctx_backend(t->ctx));
    return t;
}

static void free_data(int *count, sheet_param *tensors)
{
    for (int i = 0; i < *count; i++)
        free((double *)tensors[i].data);
    *count = 0;
}

void layer_trial_close(struct layer_trial *t)
{
    free_data(&t->sheet.tensors, t->tensor);
    free_data(&t->sheet.outputs, t->result);
    free(t->sheet.selection);
    fv_layer_free(t->layer);
    fv_ctx_free(t->ctx);
    free(t);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* The table that a name stands in, and where what is given of it goes. */
static const fv_param *find(struct layer_trial *t, const char *name, fv_named_tensor **given, int **count)
{
    int index;

    *given = t->input;
    *count = &t->args.inputs;
    if (fv_params_find(t->type->name, "input", t->type->inputs, name, &index) == FV_OK) return &t->type->inputs[index];
    *given = t->param;
    *count = &t->args.params;
    assert_ok(fv_params_find(t->type->name, "param", t->type->params, name, &index));
    return &t->type->params[index];
}

static void fill(fv_tensor *tensor, const double *data)
{
    for (int64_t i = 0; i < fv_tensor_count(tensor); i++)
        fv_store(tensor->dtype, tensor->data, i, data[i]);
}

static int slot_of(struct layer_trial *t, const char *name)
{
    int slot = 0;

    while (slot < t->sheet.tensors && strcmp(t->names[slot], name) != 0)
        slot++;
    return slot;
}

/* The sheet reads what f32 holds of it. */
static void show_sheet(struct layer_trial *t, const char *name, const fv_tensor *tensor)
{
    int slot = slot_of(t, name);

    if (slot == t->sheet.tensors)
        snprintf(t->names[t->sheet.tensors++], sizeof t->names[0], "%s", name);
    else
        free((double *)t->tensor[slot].data);
    t->tensor[slot] = (sheet_param){.name = t->names[slot], .data = trial_doubled(tensor), .rank = tensor->rank};
    memcpy(t->tensor[slot].dims, tensor->dims, sizeof t->tensor[slot].dims);
}

void layer_trial_give(struct layer_trial *t, const char *name, const double *data, int64_t below, int rank,
                      const int64_t *dims)
{
    static uint64_t stream;
    fv_named_tensor *given;
    int *count, at = 0;
    const fv_param *param = find(t, name, &given, &count);
    fv_random random = fv_random_new(test_seed(), 1000 + ++stream);
    int64_t largest = 1;
    fv_tensor tensor;

    for (int d = 0; d < rank; d++)
        largest = fv_max(largest, dims[d]);
    if (data || below) {
        assert_ok(fv_tensor_new(t->ctx, &tensor, param->dtype, rank, dims));
        if (data) fill(&tensor, data);
        for (int64_t i = 0; !data && i < fv_tensor_count(&tensor); i++)
            fv_store(tensor.dtype, tensor.data, i, (double)fv_random_below(&random, below));
    } else {
        tensor = test_random(t->ctx, given == t->input ? 1 : 1 / sqrt((double)largest), rank, dims);
    }
    while (at < *count && strcmp(given[at].name, name) != 0)
        at++;
    *count += at == *count;
    given[at] = (fv_named_tensor){param->name, tensor};
    show_sheet(t, param->name, &tensor);
}

double *layer_trial_data(struct layer_trial *t, const char *name)
{
    return (double *)t->tensor[slot_of(t, name)].data;
}

void layer_trial_take_over(struct layer_trial *t)
{
    for (int i = 0; i < t->args.inputs; i++)
        fill(&t->input[i].tensor, layer_trial_data(t, t->input[i].name));
    for (int i = 0; i < t->args.params; i++)
        fill(&t->param[i].tensor, layer_trial_data(t, t->param[i].name));
}

void layer_trial_zero(struct layer_trial *t, const char *name)
{
    const sheet_param *tensor = &t->tensor[slot_of(t, name)];
    size_t count = 1;

    for (int d = 0; d < tensor->rank; d++)
        count *= (size_t)tensor->dims[d];
    memset((double *)tensor->data, 0, count * sizeof(double));
}

/* ---- drawing ---------------------------------------------------------------------------------------------------- */

/* Gives "name=2x3<7", and returns what stands behind it. */
static const char *draw_one(struct layer_trial *t, const char *text)
{
    int64_t dims[FV_MAX_RANK], below = 0;
    int rank = 0, length;
    char name[32];

    assert_int_equal(sscanf(text, "%31[^=]=%n", name, &length), 1);
    for (text += length; *text && !strchr(" <", *text); text += *text == 'x')
        dims[rank++] = strtoll(text, (char **)&text, 10);
    if (*text == '<') below = strtoll(text + 1, (char **)&text, 10);
    layer_trial_give(t, name, NULL, below, rank, dims);
    return text + strspn(text, " ");
}

/* Whether the same is chosen from tensors that differ by far more than f32 rounds. */
static bool is_stable(struct layer_trial *t)
{
    int64_t *chosen = t->sheet.selection;
    fv_random random = fv_random_new(test_seed(), 79);
    bool same = true;

    t->sheet.selection = trial_zeros(LAYER_CHOICES, sizeof *chosen);
    for (int round = 0; round < 4 && same; round++) {
        double *kept[LAYER_SLOTS];
        for (int i = 0; i < t->sheet.tensors; i++) {
            const sheet_param *tensor = &t->tensor[i];
            int64_t count = 1;
            for (int d = 0; d < tensor->rank; d++)
                count *= tensor->dims[d];
            kept[i] = (double *)tensor->data;
            t->tensor[i].data = trial_zeros(count, sizeof(double));
            for (int64_t n = 0; n < count; n++)
                ((double *)t->tensor[i].data)[n] = kept[i][n] * (1 + 1e-5 * fv_random_normal(&random));
        }
        layer_trial_define(t);
        same = memcmp(chosen, t->sheet.selection, LAYER_CHOICES * sizeof *chosen) == 0;
        for (int i = 0; i < t->sheet.tensors; i++) {
            free((double *)t->tensor[i].data);
            t->tensor[i].data = kept[i];
        }
    }
    free(t->sheet.selection);
    t->sheet.selection = chosen;
    layer_trial_define(t);
    return same;
}

void layer_trial_draw(struct layer_trial *t, const char *tensors)
{
    do {
        free_data(&t->sheet.tensors, t->tensor);
        t->args.inputs = t->args.params = 0;
        for (const char *text = tensors; *text;)
            text = draw_one(t, text);
        layer_trial_define(t);
    } while (!is_stable(t));
}

/* ---- computing -------------------------------------------------------------------------------------------------- */

void layer_trial_define(struct layer_trial *t)
{
    int64_t reduced = 0;

    free_data(&t->sheet.outputs, t->result);
    t->args.outputs = 0;
    for (const fv_param *param = t->type->outputs; param->name; param++) {
        int i = t->sheet.outputs++;
        fv_tensor shape, *to = &t->output[i].tensor;
        CHECK_OK(t, fv_layer_output(t->layer, &t->args, param->name, &shape));
        assert_ok(fv_tensor_new(t->ctx, to, shape.dtype, shape.rank, shape.dims));
        for (int64_t n = 0; n < fv_tensor_count(to); n++)
            fv_store(to->dtype, to->data, n, 77);
        t->output[i].name = param->name;
        t->result[i] = (sheet_param){.name = param->name, .data = trial_zeros(fv_tensor_count(to), sizeof(double))};
    }
    t->args.outputs = t->sheet.outputs;
    for (int i = 0; i < t->sheet.tensors; i++)
        reduced += t->tensor[i].dims[t->tensor[i].rank - 1];
    /* Each tensor is summed over once along its last dim at most, every step rounded once. */
    t->tolerance = 4 * FLT_EPSILON * (double)reduced;
    layer_sheet_find(t->type->name)->forward(&t->sheet);
}

void layer_trial_forward(struct layer_trial *t)
{
    layer_trial_define(t);
    CHECK_OK(t, fv_layer_forward(t->ctx, t->layer, &t->args));
    for (int i = 0; i < t->args.outputs; i++)
        test_close(t->what, &t->output[i].tensor, t->result[i].data, t->tolerance);
}

struct layer_trial *layer_trial_drawn(const char *spec, const char *tensors)
{
    struct layer_trial *t = layer_trial_open(spec, "cpu", 2);

    layer_trial_draw(t, tensors);
    layer_trial_forward(t);
    return t;
}

double layer_trial_at(const struct layer_trial *t, int output, int64_t n)
{
    return ((float *)t->output[output].tensor.data)[n];
}
