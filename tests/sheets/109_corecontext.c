/* Core context aware attention (sheet 109): c_u = sum over group u of alpha_j (k_j, v_j) with alpha = softmax(q_last k
 * scale) of the group's last token; a query at position i = p + 1 reads c_1 .. c_j and tokens j g + 1 .. i, j =
 * floor((i - window) / g), in one softmax. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

enum { PER_HEAD, KV_HEAD, ALL_HEADS, MEAN };

/* alpha[n] of token u g + n as head h's query of the group's last token weighs it. */
static void add_weights(const sheet_call *call, int64_t b, int64_t h, int64_t u, int64_t g, double share, double *alpha)
{
    double *s = sheet_zeros(g);

    for (int64_t n = 0; n < g; n++)
        s[n] =
            sheet_scale(call) * sheet_dot(sheet_q(call, b, h, u * g + g - 1), sheet_k(call, b, h, u * g + n), call->D);
    sheet_softmax(s, g, -INFINITY);
    for (int64_t n = 0; n < g; n++)
        alpha[n] += share * s[n];
    free(s);
}

/* Pooled key [D] and value [Dv] of group u for head h. */
static void pool(const sheet_call *call, int64_t b, int64_t h, int64_t u, int64_t g, double *key, double *value)
{
    int64_t group = call->H / call->Hkv, kind = sheet_integer(call, "pool", 0, PER_HEAD);
    int64_t first = kind == KV_HEAD ? h / group * group : kind == ALL_HEADS ? 0 : h;
    int64_t heads = kind == KV_HEAD ? group : kind == ALL_HEADS ? call->H : 1;
    double *alpha = sheet_zeros(g);

    for (int64_t n = 0; kind == MEAN && n < g; n++)
        alpha[n] = 1 / (double)g;
    for (int64_t other = first; kind != MEAN && other < first + heads; other++)
        add_weights(call, b, other, u, g, 1 / (double)heads, alpha);
    for (int64_t d = 0; d < call->D; d++)
        for (int64_t n = 0; n < g; n++)
            key[d] += alpha[n] * sheet_k(call, b, h, u * g + n)[d];
    for (int64_t d = 0; d < call->Dv; d++)
        for (int64_t n = 0; n < g; n++)
            value[d] += alpha[n] * sheet_v(call, b, h, u * g + n)[d];
    free(alpha);
}

/* Row i of head h, given the pooled rows of all groups. */
static void attend(const sheet_call *call, int64_t b, int64_t h, int64_t i, const double *keys, const double *values)
{
    int64_t g = sheet_integer(call, "group", 0, 16), window = sheet_integer(call, "window", 0, 1024);
    int64_t row = (b * call->H + h) * call->N + i, pooled = i + 1 >= window ? (i + 1 - window) / g : 0;
    int64_t count = pooled + i + 1 - pooled * g;
    double bias = sheet_integer(call, "log_bias", 0, 0) ? log((double)g) : 0, *s = sheet_zeros(count), lse;

    for (int64_t n = 0; n < count; n++) {
        const double *k = n < pooled ? keys + n * call->D : sheet_k(call, b, h, pooled * g + n - pooled);
        s[n] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), k, call->D) + (n < pooled ? bias : 0);
    }
    lse = sheet_softmax(s, count, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t d = 0; d < call->Dv; d++) {
        double sum = 0;

        for (int64_t n = 0; n < count; n++)
            sum += s[n] * (n < pooled ? values + n * call->Dv : sheet_v(call, b, h, pooled * g + n - pooled))[d];
        sheet_o(call, b, h, i)[d] = sum;
    }
    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[row * call->M + j] = j <= i && j >= pooled * g;
    free(s);
}

static bool forward(sheet_call *call)
{
    int64_t g = sheet_integer(call, "group", 0, 16), groups = call->N / g;

    if (call->N != call->M) return false;
    for (int64_t head = 0; head < call->B * call->H; head++) {
        int64_t b = head / call->H, h = head % call->H;
        double *keys = sheet_zeros(groups * call->D + 1), *values = sheet_zeros(groups * call->Dv + 1);

        for (int64_t u = 0; u < groups; u++)
            pool(call, b, h, u, g, keys + u * call->D, values + u * call->Dv);
        for (int64_t i = 0; i < call->N; i++)
            attend(call, b, h, i, keys, values);
        free(keys);
        free(values);
    }
    return true;
}

const sheet sheet_corecontext = {"corecontext", forward};
