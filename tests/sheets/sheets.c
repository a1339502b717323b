/* Look-up, and the few loops that several sheets have in common. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

const sheet *const sheets[] = {&sheet_dense,     &sheet_sinkwin,     &sheet_gna, &sheet_power,    &sheet_lightning2,
                               &sheet_hedgehog,  &sheet_bra,         &sheet_nsa, &sheet_agent,    &sheet_moba,
                               &sheet_blocktopk, &sheet_corecontext, &sheet_dma, &sheet_landmark, NULL};

const sheet *sheet_find(const char *name)
{
    for (int s = 0; sheets[s]; s++)
        if (!strcmp(sheets[s]->name, name)) return sheets[s];
    return NULL;
}

static const sheet_option *find_option(const sheet_call *call, const char *name)
{
    for (int n = 0; n < call->options; n++)
        if (!strcmp(call->option[n].name, name) && call->option[n].count > 0) return &call->option[n];
    return NULL;
}

double sheet_number(const sheet_call *call, const char *name, int index, double otherwise)
{
    const sheet_option *option = find_option(call, name);

    if (!option) return otherwise;
    return option->values[index < option->count ? index : option->count - 1];
}

int64_t sheet_integer(const sheet_call *call, const char *name, int index, int64_t otherwise)
{
    return (int64_t)sheet_number(call, name, index, (double)otherwise);
}

int sheet_count(const sheet_call *call, const char *name)
{
    const sheet_option *option = find_option(call, name);

    return option ? option->count : 0;
}

const sheet_param *sheet_tensor(const sheet_call *call, const char *name)
{
    for (int n = 0; n < call->params; n++)
        if (!strcmp(call->param[n].name, name) && call->param[n].data) return &call->param[n];
    return NULL;
}

double sheet_scale(const sheet_call *call)
{
    return call->scale ? *call->scale : 1 / sqrt((double)call->D);
}

const double *sheet_q(const sheet_call *call, int64_t b, int64_t h, int64_t i)
{
    return call->q + ((b * call->H + h) * call->N + i) * call->D;
}

static int64_t key_row(const sheet_call *call, int64_t b, int64_t h, int64_t j)
{
    return (b * call->Hkv + h / (call->H / call->Hkv)) * call->M + j;
}

const double *sheet_k(const sheet_call *call, int64_t b, int64_t h, int64_t j)
{
    return call->k + key_row(call, b, h, j) * call->D;
}

const double *sheet_v(const sheet_call *call, int64_t b, int64_t h, int64_t j)
{
    return call->v + key_row(call, b, h, j) * call->Dv;
}

double *sheet_o(const sheet_call *call, int64_t b, int64_t h, int64_t i)
{
    return call->o + ((b * call->H + h) * call->N + i) * call->Dv;
}

double sheet_dot(const double *x, const double *y, int64_t n)
{
    double sum = 0;

    for (int64_t d = 0; d < n; d++)
        sum += x[d] * y[d];
    return sum;
}

double *sheet_zeros(int64_t count)
{
    double *zeros = calloc((size_t)count + 1, sizeof(double));

    if (!zeros) abort(); /* a test without memory has nothing to say */
    return zeros;
}

double sheet_softmax(double *logits, int64_t count, double sink)
{
    double top = sink, sum;

    for (int64_t j = 0; j < count; j++)
        if (logits[j] > top) top = logits[j];
    if (top == -INFINITY) {
        memset(logits, 0, (size_t)count * sizeof(double));
        return -INFINITY;
    }
    sum = exp(sink - top);
    for (int64_t j = 0; j < count; j++)
        sum += exp(logits[j] - top);
    for (int64_t j = 0; j < count; j++)
        logits[j] = exp(logits[j] - top) / sum;
    return top + log(sum);
}

/* Scaled scores, capped if asked for, biased, of the keys of this row and of the extra ones behind them. */
static void row_logits(const sheet_call *call, sheet_sees *sees, const void *plan, int64_t b, int64_t h, int64_t i,
                       double *logits)
{
    const sheet_param *bias = sheet_tensor(call, "bias"), *extra = sheet_tensor(call, "extra_k");
    const double *q = sheet_q(call, b, h, i);
    double cap = sheet_number(call, "softcap", 0, 0), scale = sheet_scale(call);
    int64_t extras = extra ? extra->dims[2] : 0;

    for (int64_t j = 0; j < call->M; j++) {
        bool seen = sees(call, plan, b, h, i + call->M - call->N, j);

        if (call->map) call->map[((b * call->H + h) * call->N + i) * call->M + j] = seen;
        logits[j] = scale * sheet_dot(q, sheet_k(call, b, h, j), call->D);
        if (cap > 0) logits[j] = cap * tanh(logits[j] / cap);
        if (bias) {
            int64_t bb = bias->dims[0] > 1 ? b : 0, hh = bias->dims[1] > 1 ? h : 0;
            logits[j] += bias->data[((bb * bias->dims[1] + hh) * call->N + i) * call->M + j];
        }
        if (!seen) logits[j] = -INFINITY;
    }
    for (int64_t x = 0; x < extras; x++) {
        int64_t row = (b * call->Hkv + h / (call->H / call->Hkv)) * extras + x;
        logits[call->M + x] = scale * sheet_dot(q, extra->data + row * call->D, call->D);
    }
}

bool sheet_attend(const sheet_call *call, sheet_sees *sees, const void *plan)
{
    const sheet_param *sinks = sheet_tensor(call, "sinks"), *extra = sheet_tensor(call, "extra_v");
    int64_t extras = extra ? extra->dims[2] : 0;
    double *weights = sheet_zeros(call->M + extras);

    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++) {
                double *o = sheet_o(call, b, h, i), lse;

                row_logits(call, sees, plan, b, h, i, weights);
                lse = sheet_softmax(weights, call->M + extras, sinks ? sinks->data[h] : -INFINITY);
                if (call->lse) call->lse[(b * call->H + h) * call->N + i] = lse;
                for (int64_t e = 0; e < call->Dv; e++) {
                    o[e] = 0;
                    for (int64_t j = 0; j < call->M; j++)
                        o[e] += weights[j] * sheet_v(call, b, h, j)[e];
                    for (int64_t x = 0; x < extras; x++) {
                        int64_t row = (b * call->Hkv + h / (call->H / call->Hkv)) * extras + x;
                        o[e] += weights[call->M + x] * extra->data[row * call->Dv + e];
                    }
                }
            }
    free(weights);
    return true;
}

void sheet_depthwise(const sheet_call *call, int64_t height, int64_t width, int size, const sheet_param *weight,
                     const sheet_param *bias)
{
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t y = 0; y < height; y++)
                for (int64_t x = 0; x < width; x++)
                    for (int64_t e = 0; e < call->Dv; e++) {
                        int64_t channel = h * call->Dv + e;
                        double *o = &sheet_o(call, b, h, y * width + x)[e];

                        if (bias) *o += bias->data[channel];
                        for (int r = 0; weight && r < size; r++)
                            for (int c = 0; c < size; c++) {
                                int64_t yy = y + r - size / 2, xx = x + c - size / 2;

                                if (yy < 0 || yy >= height || xx < 0 || xx >= width) continue;
                                *o += weight->data[(channel * size + r) * size + c] *
                                      sheet_v(call, b, h, yy * width + xx)[e];
                            }
                    }
}
