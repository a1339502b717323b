/* Shifted groups of LongLoRA, and the form of SinkLoRA with sinks and a share of heads that is put back. */
#include <math.h>

#include "sheets.h"

struct defaults {
    double share;
    int64_t sinks;
};

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct defaults *d = plan;
    int64_t groups = sheet_integer(call, "groups", 0, 4), G = sheet_integer(call, "group", 0, 0), N = call->M;
    int64_t n = call->H - call->H / 2, sinks = sheet_integer(call, "sinks", 0, d->sinks), shift, pi, pj;
    int64_t shifted = (int64_t)floor((1 - sheet_number(call, "return_share", 0, d->share)) * (double)n + 0.5);
    bool causal = sheet_integer(call, "causal", 0, 1) == 1, roll = sheet_integer(call, "shift", 0, 0) == 1;

    (void)b;
    if (G == 0) G = (N + groups - 1) / groups;
    if (j < sinks && (!causal || j <= p)) return true;
    if (!causal && p < sinks) return true;
    shift = h >= call->H - shifted ? G / 2 : 0;
    if (!roll) return (p + shift) / G == (j + shift) / G && (!causal || j <= p);
    pi = ((p - shift) % N + N) % N;
    pj = ((j - shift) % N + N) % N;
    return pi / G == pj / G && (!causal || pj <= pi);
}

static bool forward(sheet_call *call, const struct defaults *defaults)
{
    int64_t G = sheet_integer(call, "group", 0, 0), groups = sheet_integer(call, "groups", 0, 4);
    bool roll = sheet_integer(call, "shift", 0, 0) == 1;

    if (call->N != call->M) return false;
    if (call->causal && (roll || sheet_integer(call, "causal", 0, 1) == 0)) return false;
    if (G == 0) G = (call->M + groups - 1) / groups;
    if (roll && call->M % G != 0) return false;
    return sheet_attend(call, sees, defaults);
}

static bool plain(sheet_call *call)
{
    return forward(call, &(struct defaults){0, 0});
}

static bool fixed(sheet_call *call)
{
    return forward(call, &(struct defaults){0.5, 4});
}

const sheet sheet_s2attn = {"s2attn", plain}, sheet_sfattn = {"sfattn", fixed};
