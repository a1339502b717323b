/* Token aggregation (sheet 117, steps 1 to 5 of TAB): tokens sorted by cluster, each group reads itself and the groups
 * behind it in the sorted array, which goes on as its own mirror; every token reads every centre beside. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

/* The cluster of token i: as given, or that of the centre of largest cosine (the lowest of equals). */
static int64_t cluster(const sheet_call *call, int64_t b, int64_t i)
{
    const sheet_param *given = sheet_tensor(call, "assign"), *features = sheet_tensor(call, "features");
    const sheet_param *centres = sheet_tensor(call, "centres");
    int64_t best = 0, C = centres ? centres->dims[1] : 0;
    double most = -INFINITY;

    if (given) return (int64_t)given->data[b * call->N + i];
    for (int64_t m = 0; centres && m < centres->dims[0]; m++) {
        const double *x = features->data + (b * call->N + i) * C, *centre = centres->data + m * C;
        double cosine = sheet_dot(x, centre, C) / sqrt(sheet_dot(x, x, C)) / sqrt(sheet_dot(centre, centre, C));

        if (cosine > most) {
            most = cosine;
            best = m;
        }
    }
    return best;
}

/* The token at each place of the sorted array. */
static void sort(const sheet_call *call, int64_t b, int64_t *order)
{
    int64_t count = 0, last = 0;

    for (int64_t i = 0; i < call->N; i++)
        if (cluster(call, b, i) > last) last = cluster(call, b, i);
    for (int64_t m = 0; m <= last; m++)
        for (int64_t i = 0; i < call->N; i++)
            if (cluster(call, b, i) == m) order[count++] = i;
}

/* The token at any place: forwards, backwards, forwards ... */
static int64_t at(const int64_t *order, int64_t N, int64_t place)
{
    int64_t turn = place / N;

    return turn % 2 ? order[N - 1 - place % N] : order[place % N];
}

/* o += softmax(q k) v over `count` rows of D and Dv numbers. */
static void attend(const sheet_call *call, const double *q, int64_t count, const double *const *k,
                   const double *const *v, double *o)
{
    double *weights = sheet_zeros(count);

    for (int64_t n = 0; n < count; n++)
        weights[n] = sheet_scale(call) * sheet_dot(q, k[n], call->D);
    sheet_softmax(weights, count, -INFINITY);
    for (int64_t n = 0; n < count; n++)
        for (int64_t e = 0; e < call->Dv; e++)
            o[e] += weights[n] * v[n][e];
    free(weights);
}

static void attend_group(const sheet_call *call, const int64_t *order, int64_t b, int64_t h, int64_t place)
{
    int64_t N = call->N, group = sheet_integer(call, "group", 0, 128), first, end, count = 0;
    const double **k, **v;

    if (group > N) group = N;
    first = place / group * group;
    end = first + group * sheet_integer(call, "windows", 0, 2);
    if (sheet_integer(call, "mask_pad", 0, 0) && end > N) end = N;
    k = calloc((size_t)(end - first), sizeof *k);
    v = calloc((size_t)(end - first), sizeof *v);
    if (!k || !v) abort();
    for (int64_t t = first; t < end; t++) {
        k[count] = sheet_k(call, b, h, at(order, N, t));
        v[count++] = sheet_v(call, b, h, at(order, N, t));
        if (call->map) call->map[((b * call->H + h) * N + order[place]) * N + at(order, N, t)] = 1;
    }
    attend(call, sheet_q(call, b, h, order[place]), count, k, v, sheet_o(call, b, h, order[place]));
    free(k);
    free(v);
}

static void attend_centres(const sheet_call *call, int64_t b, int64_t h, int64_t i)
{
    const sheet_param *keys = sheet_tensor(call, "centre_k"), *values = sheet_tensor(call, "centre_v");
    int64_t K = keys ? keys->dims[1] : 0;
    const double **k = calloc((size_t)K + 1, sizeof *k), **v = calloc((size_t)K + 1, sizeof *v);

    if (!k || !v) abort();
    for (int64_t m = 0; m < K; m++) {
        k[m] = keys->data + (h * K + m) * call->D;
        v[m] = values->data + (h * K + m) * call->Dv;
    }
    attend(call, sheet_q(call, b, h, i), K, k, v, sheet_o(call, b, h, i));
    free(k);
    free(v);
}

static bool forward(sheet_call *call)
{
    int64_t *order;

    if (call->causal || call->lse || call->N != call->M || call->H != call->Hkv) return false;
    order = (int64_t *)sheet_zeros(call->N);
    memset(call->o, 0, (size_t)(call->B * call->H * call->N * call->Dv) * sizeof *call->o);
    if (call->map) memset(call->map, 0, (size_t)(call->B * call->H * call->N * call->N));
    for (int64_t b = 0; b < call->B; b++) {
        sort(call, b, order);
        for (int64_t h = 0; h < call->H; h++)
            for (int64_t place = 0; place < call->N; place++) {
                attend_group(call, order, b, h, place);
                if (sheet_integer(call, "inter", 0, 1)) attend_centres(call, b, h, order[place]);
            }
    }
    free(order);
    return true;
}

const sheet sheet_tab = {"tab", forward};
