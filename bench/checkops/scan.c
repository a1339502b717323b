/* Linear recurrences: every kind of decay, delta rule, normaliser, one step and many, and backward. */
#include "checkops.h"

#include <math.h>
#include <string.h>

enum rule { PLAIN, NORMALISED, DELTA };

struct shape {
    int64_t heads, key_heads, tokens, dim, value_dim;
    fv_decay decay;
    enum rule rule;
    bool backward;
};

struct call {
    fv_scan_args args;
    fv_scan_grads grads;
};

static fv_status call_scan(fv_ctx *ctx, void *args)
{
    return fv_scan(ctx, &((struct call *)args)->args);
}

static fv_status call_backward(fv_ctx *ctx, void *args)
{
    struct call *call = args;

    return fv_scan_backward(ctx, &call->args, &call->grads);
}

static fv_status make_call(struct checkops *c, const struct shape *s, struct call *call)
{
    const int64_t per_head[] = {s->heads}, per_token[] = {1, s->heads, s->tokens};
    const int64_t per_channel[] = {1, s->heads, s->tokens, s->decay == FV_DECAY_PER_KEY ? s->dim : s->value_dim};
    fv_scan_args *a = &call->args;
    double positive = s->rule == NORMALISED ? 1.1 : 0; /* features, as a normaliser needs */

    *call = (struct call){.args = {.decay = s->decay, .delta = s->rule == DELTA, .normalise = s->rule == NORMALISED}};
    a->q = checkops_noise(c, FV_F32, 1, positive, FV_DIMS(1, s->heads, s->tokens, s->dim));
    double size = 1 / sqrt((double)s->dim);
    a->k = checkops_noise(c, FV_F32, size, positive * size, FV_DIMS(1, s->key_heads, s->tokens, s->dim));
    a->v = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, s->key_heads, s->tokens, s->value_dim));
    switch (s->decay) { /* about a tenth of the state is forgotten with each token */
    case FV_DECAY_NONE: break;
    case FV_DECAY_PER_HEAD: a->log_decay = checkops_noise(c, FV_F32, 0.1, -0.1, 1, per_head); break;
    case FV_DECAY_PER_TOKEN: a->log_decay = checkops_noise(c, FV_F32, 0.1, -0.1, 3, per_token); break;
    default: a->log_decay = checkops_noise(c, FV_F32, 0.1, -0.1, 4, per_channel);
    }
    if (s->rule != NORMALISED) a->beta = checkops_noise(c, FV_F32, 0.4, 0.5, 3, per_token);
    a->state_in = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, s->heads, s->dim, s->value_dim));
    if (s->rule == NORMALISED) a->z_in = checkops_noise(c, FV_F32, 1, 1, FV_DIMS(1, s->heads, s->dim));
    a->o = checkops_empty(c, FV_F32, FV_DIMS(1, s->heads, s->tokens, s->value_dim));
    a->state_out = checkops_empty(c, FV_F32, FV_DIMS(1, s->heads, s->dim, s->value_dim));
    if (s->rule == NORMALISED) a->z_out = checkops_empty(c, FV_F32, FV_DIMS(1, s->heads, s->dim));
    return c->status;
}

/* f32 sums of up to N tokens (no more than about 64 count, with decay) of products over D, of terms that cancel; a
 * chunk's decays are exponentials of differences of sums of logarithms, which err by 2^-24 of up to 40.  The delta rule
 * solves a triangular system within a chunk on top. */
static double tolerance_of(const struct shape *s)
{
    double terms = (double)(s->tokens + s->dim + 80);

    return 0x1p-24 * terms * (s->rule == DELTA ? 4 : 1);
}

static void outputs(struct checkops *c, const struct shape *s, struct call *call, trial *t)
{
    const fv_scan_args *a = &call->args;
    fv_scan_grads *g = &call->grads;
    const struct {
        const char *name;
        const fv_tensor *of;
        fv_tensor *gradient;
        double factor; /* a decay's gradient adds up products over all channels, a head's those of all tokens */
    } pairs[] = {{"d_q", &a->q, &g->d_q, 2},          {"d_k", &a->k, &g->d_k, 2},
                 {"d_v", &a->v, &g->d_v, 2},          {"d_log_decay", &a->log_decay, &g->d_log_decay, 8},
                 {"d_beta", &a->beta, &g->d_beta, 4}, {"d_state_in", &a->state_in, &g->d_state_in, 2},
                 {"d_z_in", &a->z_in, &g->d_z_in, 4}};

    if (!s->backward) {
        checkops_output(t, "o", a->o, tolerance_of(s));
        checkops_output(t, "state", a->state_out, tolerance_of(s));
        if (s->rule == NORMALISED) checkops_output(t, "z", a->z_out, tolerance_of(s));
        return;
    }
    g->d_o = checkops_noise(c, FV_F32, 1, 0, 4, a->o.dims);
    g->d_state_out = checkops_noise(c, FV_F32, 1, 0, 4, a->state_out.dims);
    for (size_t n = 0; n < sizeof pairs / sizeof *pairs; n++) {
        if (!fv_present(pairs[n].of)) continue;
        fv_tensor gradient = checkops_empty(c, FV_F32, pairs[n].of->rank, pairs[n].of->dims);
        *pairs[n].gradient = checkops_output(t, pairs[n].name, gradient, pairs[n].factor * tolerance_of(s));
        t->output[t->outputs - 1].added = true;
    }
}

static fv_status scan(struct checkops *c, const struct shape *s)
{
    static const char *const decays[] = {"no decay", "decay per head", "per token", "per key", "per value"};
    static const char *const rules[] = {"", ", normalised", ", delta"};
    double size = (double)(s->heads * s->tokens * s->dim * s->value_dim);
    struct call call;
    trial t;

    if (!checkops_wanted(c, &t, s->backward ? "scan_backward" : "scan", "%lld/%lld heads, %lld tokens, D=%lld, %s%s",
                         (long long)s->heads, (long long)s->key_heads, (long long)s->tokens, (long long)s->dim,
                         decays[s->decay], rules[s->rule]))
        return c->status;
    FV_TRY(make_call(c, s, &call));
    if (s->backward) FV_TRY(fv_scan(c->reference, &call.args));
    outputs(c, s, &call, &t);
    const fv_scan_args *a = &call.args;
    /* read-out and update: 4 D Dv a token; the delta rule reads the state once more; backward does each twice over */
    t.work.flops = size * (s->rule == DELTA ? 6 : 4) * (s->backward ? 2.5 : 1);
    t.work.read = checkops_bytes(&a->q) + checkops_bytes(&a->k) + checkops_bytes(&a->v) +
                  checkops_bytes(&a->log_decay) + checkops_bytes(&a->state_in);
    t.work.written = checkops_bytes(&a->o) + checkops_bytes(&a->state_out);
    t.call = s->backward ? call_backward : call_scan;
    t.args = &call;
    return checkops_try(c, &t);
}

static fv_status each_kind(struct checkops *c, struct shape s)
{
    for (int decay = FV_DECAY_NONE; decay <= FV_DECAY_PER_VALUE; decay++)
        for (int rule = PLAIN; rule <= DELTA; rule++) {
            if (rule == NORMALISED && decay == FV_DECAY_PER_VALUE) continue; /* has no one normaliser */
            s.decay = (fv_decay)decay;
            s.rule = (enum rule)rule;
            FV_TRY(scan(c, &s));
        }
    return FV_OK;
}

fv_status checkops_scan(struct checkops *c)
{
    int64_t n = c->small ? 150 : 512;
    struct shape s = {.heads = c->small ? 2 : 8, .key_heads = c->small ? 1 : 8, .tokens = n};

    s.dim = s.value_dim = 64;
    FV_TRY(each_kind(c, s));
    s.dim = s.value_dim = c->small ? 24 : 128;
    FV_TRY(each_kind(c, s));
    s.tokens = 1;
    if (!c->small) s.heads = s.key_heads = 4096; /* states of 256 MiB */
    FV_TRY(each_kind(c, s));
    s.backward = true, s.tokens = c->small ? 70 : 512, s.heads = c->small ? 2 : 8, s.key_heads = c->small ? 1 : 8;
    s.dim = s.value_dim = c->small ? 24 : 64;
    return each_kind(c, s);
}
