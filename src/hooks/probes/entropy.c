/* How many keys a head spreads its attention over. */
#include "hooks/probe.h"

static const fv_option options[] = {
    FV_PROBE_WHOLE_TEXT, FV_PROBE_LAYERS, FV_PROBE_HEADS, FV_PROBE_BINS, FV_PROBE_OUT_BINS, FV_OPTIONS_END,
};

static const fv_probe_field fields[] = {
    FV_PROBE_FIELD("entropy", "Entropy", "nats",
                   "how spread out a row of attention is: ln n if it reads n keys alike, 0 if only one"),
    {0},
};

static fv_status hear(fv_probing *probing, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    fv_probing_add(probing, 0, layer, picked, &stats->entropy);
    return FV_OK;
}

const fv_probe fv_probe_entropy = {
    .name = "entropy",
    .title = "How spread out attention is",
    .finds = "mean over rows of -sum p ln p, in nats",
    .cost = "one more pass over the pairs, without values",
    .options = options,
    .options_size = sizeof(fv_probe_common),
    .fields = fields,
    .wants = FV_PROBE_ENTROPY,
    .hear = hear,
};
