/* Native sparse attention: the gated sum of compressed, selected and window attention; `schedule` changes nothing.
 * The sum of three softmaxes has no log-sum-exp; the map is that of the selected branch.
 *
 * The sheet's block map, written for compress_block = 2 * compress_stride, counts the strides that compressed key j and
 * block b share: (m, n) with j = (block/stride) b + m + n - 1.  In general the 1 is compress_block/stride - 1, so that
 * every pair still stands for a stride in common.  compress=mean never reads the weights.  N may be less than M: the
 * last queries of a longer sequence, which see the compressed keys of all of it that lie behind them. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

struct nsa {
    int64_t length, stride, block, top, init, local, window, count; /* count: compressed keys */
    double *q, *k, *kc, *vc;                                        /* as compared: rotated if asked for */
};

static bool read_options(const sheet_call *call, struct nsa *s)
{
    s->length = sheet_integer(call, "compress_block", 0, 32);
    s->stride = sheet_integer(call, "compress_stride", 0, 16);
    s->block = sheet_integer(call, "block", 0, 64);
    s->top = sheet_integer(call, "top", 0, 16);
    s->init = sheet_integer(call, "init", 0, 1);
    s->local = sheet_integer(call, "local", 0, 2);
    s->window = sheet_integer(call, "window", 0, 512);
    s->count = call->M < s->length ? 0 : (call->M - s->length) / s->stride + 1;
    return s->block % s->stride == 0 && s->length % s->stride == 0 && s->top >= s->init + s->local;
}

/* Turns x by the angles of a position; pairs are (x_d, x_{d+D/2}). */
static void rotate(double *x, int64_t D, double position, double base)
{
    for (int64_t d = 0; d < D / 2; d++) {
        double angle = position * pow(base, -2 * (double)d / (double)D);
        double re = x[d], im = x[d + D / 2];

        x[d] = re * cos(angle) - im * sin(angle);
        x[d + D / 2] = re * sin(angle) + im * cos(angle);
    }
}

/* out = sum_t W[t]^T (x_t + position_t), or the mean over t; x [length,width] rows of one compressed key. */
static void compress(const struct nsa *s, int64_t width, const double *x, const double *position, const double *weight,
                     double *out)
{
    for (int64_t e = 0; e < width; e++) {
        out[e] = 0;
        for (int64_t t = 0; t < s->length; t++)
            for (int64_t d = 0; d < width; d++) {
                double value = x[t * width + d] + (position ? position[t * width + d] : 0);

                if (weight)
                    out[e] += weight[(t * width + d) * width + e] * value;
                else if (d == e)
                    out[e] += value / (double)s->length;
            }
    }
}

static void prepare(const sheet_call *call, struct nsa *s)
{
    bool linear = sheet_integer(call, "compress", 0, 0) == 0;
    const sheet_param *wk = linear ? sheet_tensor(call, "compress_k") : NULL;
    const sheet_param *wv = linear ? sheet_tensor(call, "compress_v") : NULL;
    const sheet_param *position = sheet_tensor(call, "compress_position");
    int64_t D = call->D, Dv = call->Dv, M = call->M, N = call->N;
    double base = sheet_number(call, "rope_base", 0, 0);

    s->q = sheet_zeros(call->B * call->H * N * D);
    s->k = sheet_zeros(call->B * call->Hkv * M * D);
    s->kc = sheet_zeros(call->B * call->Hkv * s->count * D);
    s->vc = sheet_zeros(call->B * call->Hkv * s->count * Dv);
    memcpy(s->q, call->q, (size_t)(call->B * call->H * N * D) * sizeof(double));
    memcpy(s->k, call->k, (size_t)(call->B * call->Hkv * M * D) * sizeof(double));
    for (int64_t row = 0; row < call->B * call->Hkv; row++)
        for (int64_t j = 0; j < s->count; j++) {
            int64_t g = row % call->Hkv, at = row * s->count + j, from = row * M + j * s->stride;

            compress(s, D, call->k + from * D, position ? position->data + g * s->length * D : NULL,
                     wk ? wk->data + g * s->length * D * D : NULL, s->kc + at * D);
            compress(s, Dv, call->v + from * Dv, NULL, wv ? wv->data + g * s->length * Dv * Dv : NULL, s->vc + at * Dv);
            if (base > 0) rotate(s->kc + at * D, D, (double)(j * s->stride), base);
        }
    for (int64_t row = 0; base > 0 && row < call->B * call->H * N; row++)
        rotate(s->q + row * D, D, (double)(row % N + M - N), base);
    for (int64_t row = 0; base > 0 && row < call->B * call->Hkv * M; row++)
        rotate(s->k + row * D, D, (double)(row % M), base);
}

/* The weights of query (b, h, i) over the compressed keys that end at or before it. */
static void compressed_weights(const sheet_call *call, const struct nsa *s, int64_t b, int64_t h, int64_t i,
                               double *weights)
{
    int64_t row = b * call->Hkv + h / (call->H / call->Hkv), p = i + call->M - call->N;

    for (int64_t j = 0; j < s->count; j++)
        weights[j] = j * s->stride + s->length - 1 > p
                         ? -INFINITY
                         : sheet_scale(call) * sheet_dot(s->q + ((b * call->H + h) * call->N + i) * call->D,
                                                         s->kc + (row * s->count + j) * call->D, call->D);
    sheet_softmax(weights, s->count, -INFINITY);
}

double sheet_nsa_importance(int64_t block, int64_t stride, int64_t length, const double *weights, int64_t count,
                            int64_t b)
{
    double sum = 0;

    for (int64_t m = 0; m < block / stride; m++)
        for (int64_t n = 0; n < length / stride; n++) {
            int64_t j = block / stride * b + m + n - (length / stride - 1);

            if (j >= 0 && j < count) sum += weights[j];
        }
    return sum;
}

/* The blocks of one query of one group, ascending, -1 behind them. */
static void select_blocks(const sheet_call *call, const struct nsa *s, int64_t b, int64_t g, int64_t i, int64_t *chosen)
{
    int64_t G = call->H / call->Hkv, own = (i + call->M - call->N) / s->block, filled = 0;
    double *weights = sheet_zeros(s->count), *sums = sheet_zeros(s->count), *score = sheet_zeros(own + 1);
    bool *taken = (bool *)sheet_zeros(own + 1);

    for (int64_t h = g * G; h < (g + 1) * G; h++) {
        compressed_weights(call, s, b, h, i, weights);
        for (int64_t j = 0; j < s->count; j++)
            sums[j] += weights[j];
    }
    for (int64_t c = 0; c <= own; c++)
        score[c] = c < s->init || own - c < s->local
                       ? INFINITY
                       : sheet_nsa_importance(s->block, s->stride, s->length, sums, s->count, c);
    for (int64_t t = 0; t < s->top && t <= own; t++) {
        int64_t best = -1;

        for (int64_t c = 0; c <= own; c++)
            if (!taken[c] && (best < 0 || score[c] > score[best])) best = c;
        taken[best] = true;
    }
    for (int64_t t = 0; t < s->top; t++)
        chosen[t] = -1;
    for (int64_t c = 0; c <= own; c++)
        if (taken[c]) chosen[filled++] = c;
    free(weights);
    free(sums);
    free(score);
    free(taken);
}

/* o += gate * softmax attention of query (b, h, i) over the tokens it sees in one branch: the chosen blocks, or
 * (chosen NULL) the window. */
static void token_branch(const sheet_call *call, const struct nsa *s, int64_t b, int64_t h, int64_t i,
                         const int64_t *chosen, double gate)
{
    int64_t row = b * call->Hkv + h / (call->H / call->Hkv), p = i + call->M - call->N;
    int64_t query = (b * call->H + h) * call->N + i;
    double *weights = sheet_zeros(call->M);

    for (int64_t j = 0; j < call->M; j++) {
        bool seen = !chosen && p - j < s->window;

        for (int64_t t = 0; chosen && t < s->top; t++)
            if (chosen[t] == j / s->block) seen = true;
        seen = seen && j <= p;
        if (chosen && call->map) call->map[query * call->M + j] = seen;
        weights[j] =
            seen ? sheet_scale(call) * sheet_dot(s->q + query * call->D, s->k + (row * call->M + j) * call->D, call->D)
                 : -INFINITY;
    }
    sheet_softmax(weights, call->M, -INFINITY);
    for (int64_t j = 0; j < call->M; j++)
        for (int64_t e = 0; e < call->Dv; e++)
            sheet_o(call, b, h, i)[e] += gate * weights[j] * sheet_v(call, b, h, j)[e];
    free(weights);
}

static void query(const sheet_call *call, const struct nsa *s, int64_t b, int64_t h, int64_t i, const int64_t *chosen)
{
    const sheet_param *gates = sheet_tensor(call, "gate");
    int64_t row = b * call->Hkv + h / (call->H / call->Hkv);
    double *o = sheet_o(call, b, h, i), *weights = sheet_zeros(s->count), gate[3];

    for (int branch = 0; branch < 3; branch++)
        gate[branch] = 1 / (1 + exp(gates ? -gates->data[((b * call->H + h) * call->N + i) * 3 + branch] : 0));
    compressed_weights(call, s, b, h, i, weights);
    for (int64_t e = 0; e < call->Dv; e++) {
        o[e] = 0;
        for (int64_t j = 0; j < s->count; j++)
            o[e] += gate[0] * weights[j] * s->vc[(row * s->count + j) * call->Dv + e];
    }
    token_branch(call, s, b, h, i, chosen, gate[1]);
    token_branch(call, s, b, h, i, NULL, gate[2]);
    free(weights);
}

static bool forward(sheet_call *call)
{
    struct nsa s;
    int64_t *own, *chosen, G = call->H / call->Hkv;

    if (!read_options(call, &s) || call->lse || call->N > call->M) return false;
    if (sheet_number(call, "rope_base", 0, 0) > 0 && call->D % 2) return false;
    own = (int64_t *)sheet_zeros(call->B * call->Hkv * call->N * s.top);
    chosen = call->selection ? call->selection : own;
    prepare(call, &s);
    for (int64_t b = 0; b < call->B; b++)
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t i = 0; i < call->N; i++) {
                int64_t *list = chosen + ((b * call->Hkv + h / G) * call->N + i) * s.top;

                if (h % G == 0 && !(call->selection && call->frozen)) select_blocks(call, &s, b, h / G, i, list);
                query(call, &s, b, h, i, list);
            }
    free(own);
    free(s.q);
    free(s.k);
    free(s.kc);
    free(s.vc);
    return true;
}

const sheet sheet_nsa = {"nsa", forward};
