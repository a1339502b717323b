/* How much of attention lies on the first keys, and on the newest. */
#include "hooks/probe.h"

struct sinks {
    fv_probe_common common;
    int64_t sink, recent;
};

static const fv_option options[] = {
    FV_PROBE_WHOLE_TEXT,
    FV_PROBE_LAYERS,
    FV_PROBE_HEADS,
    FV_INT(struct sinks, sink, 4, 1, 1 << 24, "so many first keys of the text"),
    FV_INT(struct sinks, recent, 64, 1, 1 << 24, "so many newest keys, the query's own included"),
    FV_PROBE_BINS,
    FV_PROBE_OUT("[2,layers,heads,bins] f32 in a .npy file, first keys and newest, NaN where nothing was looked at"),
    FV_OPTIONS_END,
};

enum { SINK, RECENT };
static const fv_probe_field fields[] = {
    FV_PROBE_FIELD("sink", "On the first keys", "",
                   "share of a row of attention that lies on the text's first keys (sink=)"),
    FV_PROBE_FIELD("recent", "On the newest keys", "",
                   "share that lies on the newest keys, the query's own among them (recent=)"),
    {0},
};

/* Weights on the first `keys` of k under a plan that may show less than all, by the log-sum-exp of all: attention to
 * values of one, in halves so that its products are those which that was made of. */
static fv_status add(fv_probing *p, int field, int64_t layer, const fv_picked *picked, const fv_plan *plan,
                     int64_t keys)
{
    fv_attend_args args = {.q = picked->q,
                           .k = fv_slice(&picked->k, 2, 0, keys),
                           .plan = plan,
                           .logits = picked->logits,
                           .key_head = picked->key_head,
                           .lse_in = picked->lse};
    fv_tensor mass;
    uint16_t *one;

    FV_TRY(FV_SCRATCH(p->ctx, one, keys));
    for (int64_t j = 0; j < keys; j++)
        one[j] = fv_f32_to_f16(1);
    FV_TRY(fv_tensor_wrap(&args.v, one, FV_F16, FV_DIMS(1, 1, keys, 1)));
    args.v = fv_broadcast(&args.v, FV_DIMS(1, picked->k.dims[1], keys, 1));
    FV_TRY(fv_tensor_zeros(p->ctx, &args.o, FV_F32, FV_DIMS(1, picked->heads, picked->rows, 1)));
    if (keys > 0) FV_TRY(fv_attend(p->ctx, &args));
    mass = fv_reshaped(&args.o, FV_DIMS(1, picked->heads, picked->rows));
    fv_probing_add(p, field, layer, picked, &mass);
    return FV_OK;
}

/* Both see few of the pairs, and cost as little. */
static fv_status hear(fv_probing *p, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    const struct sinks *o = p->options;
    fv_plan recent = picked->plan;
    int64_t held = picked->k.dims[2], first = 0;

    (void)stats;
    if (!fv_present(&picked->lse))
        return fv_fail(FV_E_UNSUPPORTED,
                       "sink_mass: a cache policy reads there in its own way, and leaves no log-sum-exp");
    while (first < held && fv_picked_key(picked, first) < o->sink)
        first++;
    FV_TRY_SCRATCH(p->ctx, add(p, SINK, layer, picked, &picked->plan, first));
    recent.window = (fv_window){.window = picked->plan.window.window > 0 ? fv_min(o->recent, picked->plan.window.window)
                                                                         : o->recent};
    FV_TRY_SCRATCH(p->ctx, add(p, RECENT, layer, picked, &recent, held));
    return FV_OK;
}

const fv_probe fv_probe_sink_mass = {
    .name = "sink_mass",
    .title = "Attention on the first and on the newest keys",
    .finds = "mean over rows of the sum of p over the text's first keys (sink=), and over the newest (recent=)",
    .cost = "(sink + recent) / N of a pass over the pairs",
    .options = options,
    .options_size = sizeof(struct sinks),
    .fields = fields,
    .hear = hear,
};
