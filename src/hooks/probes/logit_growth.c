/* Whether attention's logits explode: their largest magnitude, and how sharp its rows are.  arXiv 2505.15548. */
#include "hooks/probe.h"

static const fv_option options[] = {
    FV_PROBE_PREFIX(1 << 24),
    FV_PROBE_LAYERS,
    FV_PROBE_HEADS,
    FV_PROBE_BINS,
    FV_PROBE_OUT("[2,layers,heads,bins] f32 in a .npy file, logits and entropy, NaN where nothing was looked at"),
    FV_OPTIONS_END,
};

enum { MAX_LOGIT, ENTROPY };
static const fv_probe_field fields[] = {
    FV_PROBE_FIELD_MOST("max_logit", "Largest logit", "magnitude",
                        "the largest of |scale q.k| that a row sees, before any soft-cap"),
    FV_PROBE_FIELD("entropy", "Entropy", "nats", "how spread out a row of attention is: where logits grow it falls"),
    {0},
};

static fv_status hear(fv_probing *p, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    fv_tensor most;

    FV_TRY(fv_picked_largest(p->ctx, picked, &most));
    fv_probing_add(p, MAX_LOGIT, layer, picked, &most);
    fv_probing_add(p, ENTROPY, layer, picked, &stats->entropy);
    return FV_OK;
}

const fv_probe fv_probe_logit_growth = {
    .name = "logit_growth",
    .title = "Growth of attention's logits (stability)",
    .paper = "arXiv 2505.15548",
    .sheet = 149,
    .finds = "max |scale q.k| over the pairs that are seen, and mean over rows of -sum p ln p",
    .cost = "three more passes over the pairs, without values",
    .options = options,
    .options_size = sizeof(fv_probe_common),
    .fields = fields,
    .wants = FV_PROBE_ENTROPY,
    .hear = hear,
};
