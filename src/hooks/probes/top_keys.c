/* The keys that a head reads most, over all rows. */
#include <math.h>

#include "base/memory.h"
#include "hooks/probe.h"

struct top {
    fv_probe_common common;
    int64_t top;
};

static const fv_option options[] = {
    FV_PROBE_WHOLE_TEXT,
    FV_PROBE_LAYERS,
    FV_PROBE_HEADS,
    FV_INT(struct top, top, 8, 1, 1024, "so many keys of each head"),
    FV_PROBE_OUT("[layers,heads,tokens] f32 in a .npy file, each key's share of a head's attention, NaN where nothing "
                 "was looked at"),
    FV_OPTIONS_END,
};

static const fv_probe_field fields[] = {
    FV_PROBE_FIELD("share", "On its top keys", "",
                   "share of all attention of a head that its most read keys hold (top=)"),
    {0},
};

static fv_status begin(fv_probing *p)
{
    const struct top *o = p->options;
    int64_t heads = p->layers * p->heads;

    p->top = fv_min(o->top, p->tokens);
    FV_TRY(FV_ALLOC(p->key, heads * p->top));
    FV_TRY(FV_ALLOC(p->columns, heads * p->tokens));
    for (int64_t n = 0; n < heads * p->tokens; n++)
        p->columns[n] = NAN;
    return FV_OK;
}

static fv_status hear(fv_probing *p, int64_t layer, const fv_picked *picked, const fv_stats_args *stats)
{
    int64_t end = picked->key_from + picked->keys;

    for (int64_t h = 0; h < picked->heads; h++) {
        float *sum = p->columns + (layer * p->heads + picked->head[h]) * p->tokens;
        const float *more = fv_at(&stats->column_sum, 0, h, 0, 0);
        for (int64_t j = picked->key_from; j < end; j++) {
            int64_t at = fv_picked_key(picked, j);
            sum[at] = isnan(sum[at]) ? more[j] : sum[at] + more[j];
        }
    }
    return FV_OK;
}

/* Puts a key where it belongs; ties go to the lower position, which came first. */
static void insert(fv_probe_key *key, int64_t count, int64_t position, double share)
{
    int64_t at = count;

    while (at > 0 && (key[at - 1].position < 0 || share > key[at - 1].share)) {
        at--;
        if (at + 1 < count) key[at + 1] = key[at];
    }
    if (at < count) key[at] = (fv_probe_key){position, share};
}

static fv_status end(fv_probing *p)
{
    for (int64_t n = 0; n < p->layers * p->heads; n++) {
        fv_probe_key *key = p->key + n * p->top;
        float *sum = p->columns + n * p->tokens;
        double all = 0;
        for (int64_t t = 0; t < p->top; t++)
            key[t] = (fv_probe_key){-1, NAN};
        for (int64_t j = 0; j < p->tokens && !isnan(sum[j]); j++) {
            sum[j] /= (float)p->tokens;
            insert(key, p->top, j, (double)sum[j]);
        }
        for (int64_t t = 0; t < p->top; t++)
            all += key[t].share;
        fv_probing_set(p, 0, n / p->heads, n % p->heads, all);
    }
    return FV_OK;
}

const fv_probe fv_probe_top_keys = {
    .name = "top_keys",
    .title = "The keys that are read most",
    .finds =
        "of the sums over rows of the weights on each key, the largest of each head, as shares of all its attention",
    .cost = "one more pass over the pairs, without values; a number for each layer, head and key",
    .options = options,
    .options_size = sizeof(struct top),
    .fields = fields,
    .wants = FV_PROBE_COLUMNS,
    .begin = begin,
    .hear = hear,
    .end = end,
};
