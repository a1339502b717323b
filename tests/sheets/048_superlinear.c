/* Superlinear attention (sheet 048): a query at t scores stripes t - (floor(i^(1/p)) - 1), i > w0, takes the best, ties
 * to the farther one, and mixes, by softmax of their scores, attention over the window and a span around each of them.
 */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct superlinear {
    double power, span_power, back, forward, scale;
    int64_t index, anchors, align, window;
};

static int64_t offset_of(const struct superlinear *s, int64_t i)
{
    return (int64_t)floor(pow((double)i, 1 / s->power) + 1e-9) - 1;
}

static struct superlinear read_options(const sheet_call *call)
{
    struct superlinear s = {.power = sheet_number(call, "search_power", 0, 0.5),
                            .span_power = sheet_number(call, "span_power", 0, 0.5),
                            .back = sheet_number(call, "back", 0, 2),
                            .forward = sheet_number(call, "forward", 0, 0),
                            .scale = sheet_number(call, "search_scale", 0, 1),
                            .index = sheet_integer(call, "window_index", 0, 65),
                            .anchors = sheet_integer(call, "anchors", 0, 2),
                            .align = sheet_integer(call, "span_align", 0, 1)};

    s.window = offset_of(&s, s.index + 1);
    return s;
}

static double search_score(const sheet_call *call, int64_t b, int64_t h, int64_t i, int64_t j)
{
    const sheet_param *own = sheet_tensor(call, "search_q");
    const double *q = own ? own->data + ((b * call->H + h) * call->N + i) * call->D : sheet_q(call, b, h, i);

    return sheet_dot(q, sheet_k(call, b, h, j), call->D);
}

/* The anchors of a query, ascending, -1 behind them. */
static void search(const sheet_call *call, const struct superlinear *s, int64_t b, int64_t h, int64_t i,
                   int64_t *anchors)
{
    int64_t t = i + call->M - call->N, count = 0;
    bool *taken = (bool *)sheet_zeros(call->M);

    for (int64_t n = 0; n < s->anchors; n++) {
        int64_t best = -1;
        double most = -INFINITY;

        for (int64_t stripe = s->index + 1; t >= 0 && offset_of(s, stripe) <= t; stripe++) {
            int64_t j = t - offset_of(s, stripe);
            double score = search_score(call, b, h, i, j);

            if (taken[j] || score < most) continue; /* the farther of equal ones comes later */
            best = j;
            most = score;
        }
        if (best >= 0) taken[best] = true;
    }
    for (int64_t j = 0; j < call->M; j++)
        if (taken[j]) anchors[count++] = j;
    while (count < s->anchors)
        anchors[count++] = -1;
    free(taken);
}

static bool in_window(const struct superlinear *s, int64_t t, int64_t j)
{
    return j <= t && j > t - s->window;
}

static bool in_span(const struct superlinear *s, int64_t t, int64_t anchor, int64_t j)
{
    double length = pow((double)t + 1, s->span_power);
    int64_t from = anchor - (int64_t)ceil(s->back * length), to = anchor + (int64_t)ceil(s->forward * length);

    if (anchor < 0) return false;
    if (from < 0) from = 0;
    if (to > t - s->window) to = t - s->window;
    while (from % s->align != 0)
        from--;
    while ((to + 1) % s->align != 0 && to < t - s->window)
        to++;
    return j >= from && j <= to;
}

/* Adds `weight` times attention over the window and the span of an anchor. */
static void add_part(const sheet_call *call, const struct superlinear *s, int64_t b, int64_t h, int64_t i,
                     int64_t anchor, double weight)
{
    int64_t t = i + call->M - call->N, row = (b * call->H + h) * call->N + i;
    double *logits = sheet_zeros(call->M), *o = sheet_o(call, b, h, i);

    for (int64_t j = 0; j < call->M; j++) {
        bool sees = t >= 0 && (in_window(s, t, j) || in_span(s, t, anchor, j));

        logits[j] =
            sees ? sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D) : -INFINITY;
        if (call->map && sees) call->map[row * call->M + j] = 1;
    }
    sheet_softmax(logits, call->M, -INFINITY);
    for (int64_t j = 0; j < call->M; j++)
        for (int64_t e = 0; e < call->Dv; e++)
            o[e] += weight * logits[j] * sheet_v(call, b, h, j)[e];
    free(logits);
}

static void attend_row(const sheet_call *call, const struct superlinear *s, int64_t b, int64_t h, int64_t i,
                       const int64_t *anchors)
{
    int64_t row = (b * call->H + h) * call->N + i;
    double *gates = sheet_zeros(s->anchors);

    for (int64_t e = 0; e < call->Dv; e++)
        sheet_o(call, b, h, i)[e] = 0;
    for (int64_t j = 0; call->map && j < call->M; j++)
        call->map[row * call->M + j] = 0;
    for (int64_t n = 0; n < s->anchors; n++)
        gates[n] = anchors[n] < 0 ? -INFINITY : s->scale * search_score(call, b, h, i, anchors[n]);
    if (anchors[0] < 0) gates[0] = 0; /* the window alone */
    sheet_softmax(gates, s->anchors, -INFINITY);
    for (int64_t n = 0; n < s->anchors; n++)
        if (gates[n] > 0) add_part(call, s, b, h, i, anchors[n], gates[n]);
    for (int64_t n = 0; n < s->anchors; n++) /* a gate of 0 hides nothing from the map */
        if (gates[n] == 0 && anchors[n] >= 0) add_part(call, s, b, h, i, anchors[n], 0);
    free(gates);
}

static bool forward(sheet_call *call)
{
    struct superlinear s = read_options(call);
    int64_t rows = call->B * call->H * call->N;
    int64_t *own = (int64_t *)sheet_zeros(rows * s.anchors), *found = call->selection ? call->selection : own;

    for (int64_t row = 0; row < rows; row++) {
        int64_t b = row / call->N / call->H, h = row / call->N % call->H, i = row % call->N;

        if (!(call->selection && call->frozen)) search(call, &s, b, h, i, found + row * s.anchors);
        attend_row(call, &s, b, h, i, found + row * s.anchors);
    }
    free(own);
    return !call->lse;
}

const sheet sheet_superlinear = {"superlinear", forward};
