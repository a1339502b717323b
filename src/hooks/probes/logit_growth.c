/* Whether attention's logits explode: their largest magnitude, and how sharp its rows are.  arXiv 2505.15548. */
#include <math.h>

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

/* The largest magnitude in row i of a head, of those that are there. */
struct search {
    const fv_tensor *logits, *most; /* [1,heads,rows,keys], [1,heads,rows] */
};

static void search_item(void *user, int64_t index, int thread)
{
    const struct search *s = user;
    int64_t rows = s->logits->dims[2];
    const float *row = fv_at(s->logits, 0, index / rows, index % rows, 0);
    float most = 0;

    (void)thread;
    for (int64_t j = 0; j < s->logits->dims[3]; j++)
        if (row[j] > -INFINITY) most = fmaxf(most, fabsf(row[j]));
    *(float *)fv_at(s->most, 0, index / rows, index % rows, 0) = most;
}

/* Logits of some rows at a time. */
static fv_status search(fv_probing *p, int64_t layer, const fv_picked *part)
{
    fv_tensor logits, most;

    FV_TRY(fv_picked_logits(p->ctx, part, &logits));
    FV_TRY(fv_tensor_new(p->ctx, &most, FV_F32, FV_DIMS(1, part->heads, part->rows)));
    fv_run(p->ctx, part->heads * part->rows, search_item, &(struct search){&logits, &most});
    fv_probing_add(p, MAX_LOGIT, layer, part, &most);
    return FV_OK;
}

static fv_status hear(fv_probing *p, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    enum { AT_ONCE = 1 << 22 };
    int64_t step = fv_clamp(AT_ONCE / (picked->heads * picked->keys), 1, picked->rows);
    fv_picked raw = *picked;

    raw.logits.softcap = 0;
    for (int64_t from = 0; from < picked->rows; from += step) {
        fv_picked part = fv_picked_rows(&raw, from, fv_min(step, picked->rows - from));
        FV_TRY_SCRATCH(p->ctx, search(p, layer, &part));
    }
    fv_probing_add(p, ENTROPY, layer, picked, &stats->entropy);
    return FV_OK;
}

const fv_probe fv_probe_logit_growth = {
    .name = "logit_growth",
    .title = "Growth of attention's logits (stability)",
    .paper = "arXiv 2505.15548",
    .sheet = 149,
    .finds = "max |scale q.k| over the pairs that are seen, and mean over rows of -sum p ln p",
    .cost = "two more passes over the pairs, without values",
    .options = options,
    .options_size = sizeof(fv_probe_common),
    .fields = fields,
    .wants = FV_PROBE_ENTROPY,
    .hear = hear,
};
