/* How far back a head reads. */
#include "hooks/probe.h"

struct distance {
    fv_probe_common common;
    int64_t clip;
};

static const fv_option options[] = {
    FV_PROBE_WHOLE_TEXT,
    FV_PROBE_LAYERS,
    FV_PROBE_HEADS,
    FV_INT(struct distance, clip, 0, 0, 1 << 24, "a key further away counts as being so far; 0: as far as it is"),
    FV_PROBE_BINS,
    FV_PROBE_OUT_BINS,
    FV_OPTIONS_END,
};

static const fv_probe_field fields[] = {
    FV_PROBE_FIELD("distance", "Distance", "tokens", "how far back what is read stands, on average by weight"),
    {0},
};

static void ask(const fv_probing *probing, fv_stats_args *stats)
{
    stats->distance_clip = ((const struct distance *)probing->options)->clip;
}

static fv_status hear(fv_probing *probing, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    fv_probing_add(probing, 0, layer, picked, &stats->distance);
    return FV_OK;
}

const fv_probe fv_probe_distance = {
    .name = "distance",
    .title = "How far back attention reaches",
    .finds = "mean over rows of the sum of p min(distance, clip), in tokens",
    .cost = "one more pass over the pairs, without values",
    .options = options,
    .options_size = sizeof(struct distance),
    .fields = fields,
    .wants = FV_PROBE_DISTANCE,
    .ask = ask,
    .hear = hear,
};
