#include "sheets/layers.h"

#include <math.h>
#include <string.h>

#define LIST_LAYER_SHEET(name) &layer_sheet_##name,

const layer_sheet *layer_sheet_find(const char *name)
{
    static const layer_sheet *const all[] = {LAYER_SHEETS(LIST_LAYER_SHEET) NULL};

    for (int i = 0; all[i]; i++)
        if (strcmp(all[i]->name, name) == 0) return all[i];
    return NULL;
}

double layer_number(const layer_sheet_call *call, const char *name, int index, double otherwise)
{
    return sheet_number(&(sheet_call){.options = call->options, .option = call->option}, name, index, otherwise);
}

int64_t layer_integer(const layer_sheet_call *call, const char *name, int index, int64_t otherwise)
{
    return sheet_integer(&(sheet_call){.options = call->options, .option = call->option}, name, index, otherwise);
}

static const sheet_param *find(int count, const sheet_param *in, const char *name)
{
    for (int i = 0; i < count; i++)
        if (strcmp(in[i].name, name) == 0) return &in[i];
    return NULL;
}

const sheet_param *layer_tensor(const layer_sheet_call *call, const char *name)
{
    return find(call->tensors, call->tensor, name);
}

double *layer_output(const layer_sheet_call *call, const char *name)
{
    const sheet_param *output = find(call->outputs, call->output, name);

    return output ? (double *)output->data : NULL;
}

void layer_linear(const layer_sheet_call *call, const char *weight, const char *bias, const double *x, double *y)
{
    const sheet_param *w = layer_tensor(call, weight), *b = bias ? layer_tensor(call, bias) : NULL;

    for (int64_t n = 0; n < w->dims[0]; n++)
        y[n] = sheet_dot(w->data + n * w->dims[1], x, w->dims[1]) + (b ? b->data[n] : 0);
}

void layer_norm(const layer_sheet_call *call, const char *weight, const char *bias, double epsilon, int64_t n,
                const double *x, double *y)
{
    const sheet_param *w = layer_tensor(call, weight), *b = layer_tensor(call, bias);
    double mean = 0, variance = 0;

    for (int64_t i = 0; i < n; i++)
        mean += x[i] / (double)n;
    for (int64_t i = 0; i < n; i++)
        variance += (x[i] - mean) * (x[i] - mean) / (double)n;
    for (int64_t i = 0; i < n; i++)
        y[i] = (x[i] - mean) / sqrt(variance + epsilon) * (w ? w->data[i] : 1) + (b ? b->data[i] : 0);
}

double layer_gelu(double x)
{
    return x * (1 + erf(x / sqrt(2))) / 2;
}
