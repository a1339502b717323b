#include "hooks/probe.h"

#include <math.h>
#include <string.h>

const char *const fv_probe_all[] = {"all", NULL};

int fv_probe_fields(const fv_probe *probe)
{
    int count = 0;

    while (probe->fields && probe->fields[count].name)
        count++;
    return count;
}

/* ---- numbers ---------------------------------------------------------------------------------------------------- */

static double *value_at(const fv_probing *p, int field, int64_t layer, int64_t head)
{
    return p->value + ((field * p->layers + layer) * p->heads + head) * p->bins;
}

/* The first row of a bin. */
static int64_t bin_from(const fv_probing *p, int64_t bin)
{
    return fv_ceil_div(bin * p->tokens, p->bins);
}

void fv_probing_add_row(fv_probing *p, int field, int64_t layer, int64_t head, int64_t position, double value)
{
    double *at = value_at(p, field, layer, head) + position * p->bins / p->tokens;

    if (isnan(*at))
        *at = value;
    else
        *at = p->probe->fields[field].most ? fmax(*at, value) : *at + value;
}

void fv_probing_add(fv_probing *p, int field, int64_t layer, const fv_picked *picked, const fv_tensor *rows)
{
    for (int64_t h = 0; h < picked->heads; h++)
        for (int64_t i = 0; i < picked->rows; i++)
            fv_probing_add_row(p, field, layer, picked->head[h], picked->position + i,
                               (double)*(float *)fv_at(rows, 0, h, i, 0));
}

void fv_probing_set(fv_probing *p, int field, int64_t layer, int64_t head, double value)
{
    *value_at(p, field, layer, head) = value * (p->probe->fields[field].most ? 1 : (double)p->tokens);
}

double fv_probing_bin(const fv_probing *p, int field, int64_t layer, int64_t head, int64_t bin)
{
    double rows = (double)(bin_from(p, bin + 1) - bin_from(p, bin));

    return value_at(p, field, layer, head)[bin] / (p->probe->fields[field].most ? 1 : rows);
}

static double of_head(const fv_probing *p, int field, int64_t layer, int64_t head)
{
    const double *at = value_at(p, field, layer, head);
    double sum = 0, most = at[0];

    for (int64_t bin = 0; bin < p->bins; bin++) {
        sum += at[bin];
        most = fmax(most, at[bin]);
    }
    return p->probe->fields[field].most ? most : sum / (double)p->tokens;
}

double fv_probing_value(const fv_probing *p, int field, int64_t layer, int64_t head)
{
    double sum = 0, most = NAN;
    int64_t count = 0;

    if (p->probe->wants & FV_PROBE_BY_LAYER) return head < 1 ? of_head(p, field, layer, 0) : NAN;
    if (head >= 0) return of_head(p, field, layer, head);
    for (int64_t h = 0; h < p->heads; h++) {
        double value = of_head(p, field, layer, h);
        if (isnan(value)) continue;
        sum += value;
        most = fmax(most, value);
        count++;
    }
    return p->probe->fields[field].most ? most : count > 0 ? sum / (double)count : NAN;
}

/* ---- listening -------------------------------------------------------------------------------------------------- */

/* The model's own log-sum-exp may be of products in bf16, those of statistics are in f32: rows are brought to sum to
 * one (keys of each head all together). */
static void settle(const fv_stats_args *stats)
{
    int64_t H = stats->q.dims[1], N = stats->q.dims[2], M = stats->k.dims[2];

    for (int64_t h = 0; h < H; h++) {
        float all = 0, *columns = fv_present(&stats->column_sum) ? fv_at(&stats->column_sum, 0, h, 0, 0) : NULL;
        for (int64_t i = 0; i < N; i++) {
            float sum = *(float *)fv_at(&stats->mass, 0, h, i, 0);
            if (fv_present(&stats->distance)) *(float *)fv_at(&stats->distance, 0, h, i, 0) /= sum;
            if (fv_present(&stats->entropy)) {
                float *entropy = fv_at(&stats->entropy, 0, h, i, 0);
                *entropy = *entropy / sum + logf(sum);
            }
            all += sum;
        }
        for (int64_t j = 0; columns && j < M; j++)
            columns[j] *= (float)N / all;
    }
}

/* Statistics of the rows picked, for all who are together; scratch memory. */
static fv_status measure(fv_ctx *ctx, const fv_probing *first, const fv_picked *picked, fv_stats_args *stats)
{
    const int64_t rows[] = {1, picked->heads, picked->rows}, keys[] = {1, picked->heads, picked->k.dims[2]};
    uint8_t *all;

    *stats = (fv_stats_args){.q = picked->q,
                             .k = picked->k,
                             .lse = picked->lse,
                             .plan = &picked->plan,
                             .logits = picked->logits,
                             .key_head = picked->key_head};
    if (!first->statistics) return FV_OK;
    if (!fv_present(&picked->lse))
        return fv_fail(FV_E_UNSUPPORTED, "%s: a cache policy reads there in its own way, and leaves no log-sum-exp",
                       first->probe->name);
    if (first->statistics & FV_PROBE_ENTROPY) FV_TRY(fv_tensor_new(ctx, &stats->entropy, FV_F32, 3, rows));
    if (first->statistics & FV_PROBE_DISTANCE) FV_TRY(fv_tensor_new(ctx, &stats->distance, FV_F32, 3, rows));
    if (first->statistics & FV_PROBE_COLUMNS) FV_TRY(fv_tensor_new(ctx, &stats->column_sum, FV_F32, 3, keys));
    for (const fv_probing *p = first; p; p = p->with)
        if (p->probe->ask) p->probe->ask(p, stats);
    FV_TRY(FV_SCRATCH(ctx, all, keys[2]));
    memset(all, 1, (size_t)keys[2]);
    stats->key_set = all;
    FV_TRY(fv_tensor_new(ctx, &stats->mass, FV_F32, 3, rows));
    FV_TRY(fv_attend_stats(ctx, stats));
    settle(stats);
    return FV_OK;
}

static fv_status hear_all(fv_probing *first, const fv_look *look)
{
    fv_picked picked;
    fv_stats_args stats;

    FV_TRY(fv_pick(first->ctx, look, &first->listener.select, &picked));
    FV_TRY(measure(first->ctx, first, &picked, &stats));
    for (fv_probing *p = first; p; p = p->with)
        FV_TRY(p->probe->hear(p, look->layer, &picked, &stats));
    return FV_OK;
}

static fv_status hear(void *user, const fv_look *look)
{
    fv_probing *first = user;

    FV_TRY_SCRATCH(first->ctx, hear_all(first, look));
    return FV_OK;
}

static bool same_list(const fv_list *a, const fv_list *b)
{
    return a->count == b->count && memcmp(a->items, b->items, (size_t)a->count * sizeof *a->items) == 0;
}

/* Whether two look at the same rows of the same heads, and neither wants a statistic that the other has its own way
 * with. */
static bool together(const fv_probing *a, const fv_probing *b)
{
    const fv_probe_common *x = fv_probing_common(a), *y = fv_probing_common(b);
    unsigned own = b->probe->wants & (FV_PROBE_ENTROPY | FV_PROBE_DISTANCE | FV_PROBE_COLUMNS);

    return a->tokens == b->tokens && same_list(&x->layers, &y->layers) && same_list(&x->heads, &y->heads) &&
           !(own & FV_PROBE_DISTANCE & a->statistics);
}

static fv_status check_list(const fv_probe *probe, const char *name, const fv_list *list, int64_t count)
{
    for (int i = 0; i < list->count; i++)
        if (list->items[i] >= count)
            return fv_fail(FV_E_USAGE, "%s: option '%s': the model has %lld of them, 0 to %lld, got %lld", probe->name,
                           name, (long long)count, (long long)count - 1, (long long)list->items[i]);
    return FV_OK;
}

static fv_status make(fv_probing *p)
{
    const fv_probe_common *common = fv_probing_common(p);
    int64_t count;

    FV_TRY(check_list(p->probe, "layers", &common->layers, p->layers));
    FV_TRY(check_list(p->probe, "heads", &common->heads, p->heads));
    p->bins = fv_clamp(common->bins, 1, p->tokens);
    count = fv_probe_fields(p->probe) * p->layers * p->heads * p->bins;
    FV_TRY(FV_ALLOC(p->value, count));
    for (int64_t i = 0; i < count; i++)
        p->value[i] = NAN;
    p->statistics = p->probe->wants & (FV_PROBE_ENTROPY | FV_PROBE_DISTANCE | FV_PROBE_COLUMNS);
    p->listener = (fv_listener){.points = FV_POINT_ATTEND,
                                .select = {.phases = FV_IN_PROMPT,
                                           .layers = &common->layers,
                                           .heads = &common->heads,
                                           .row_to = p->tokens,
                                           .key_to = p->tokens},
                                .hear = hear,
                                .user = p};
    return p->probe->begin ? p->probe->begin(p) : FV_OK;
}

fv_status fv_probing_begin(fv_probing *probing, int count, fv_listener **listeners)
{
    for (int n = 0; n < count; n++) {
        fv_probing *p = &probing[n];
        int first = 0;
        FV_TRY(make(p));
        while (first < n && !(probing[first].listener.hear && together(&probing[first], p)))
            first++;
        if (first == n) {
            fv_listen(listeners, &p->listener);
            continue;
        }
        p->listener.hear = NULL; /* another one speaks for it */
        p->with = probing[first].with;
        probing[first].with = p;
        probing[first].statistics |= p->statistics;
    }
    return FV_OK;
}

int64_t fv_probing_chunk(const fv_probing *probing, int count)
{
    int64_t chunk = 0;

    for (int n = 0; n < count; n++)
        if (probing[n].probe->wants & FV_PROBE_WHOLE) chunk = fv_max(chunk, probing[n].tokens);
    return chunk;
}

fv_status fv_probing_end(fv_probing *probing, int count)
{
    for (int n = 0; n < count; n++)
        if (probing[n].probe->end) FV_TRY(probing[n].probe->end(&probing[n]));
    return FV_OK;
}

void fv_probing_free(fv_probing *probing, int count)
{
    for (int n = 0; n < count; n++) {
        if (probing[n].own) probing[n].probe->drop(&probing[n]);
        fv_free(probing[n].value);
        fv_free(probing[n].columns);
        fv_free(probing[n].key);
    }
}
