#include "cache/reuse_plan.h"

#include "base/memory.h"

/* The best way to a layer with a given source and number of sources. */
struct way {
    double least, sum; /* of gains; sum < 0: there is no way */
    int64_t before;    /* source of the layer below where this one is its own */
};

struct table {
    int64_t layers, most;
    struct way *way; /* [layers, layers, most + 1]: layer, source, sources */
};

static struct way *at(const struct table *t, int64_t layer, int64_t source, int64_t sources)
{
    return &t->way[(layer * t->layers + source) * (t->most + 1) + sources];
}

static bool better(const struct way *a, const struct way *b)
{
    if (b->sum < 0 || a->sum < 0) return a->sum >= 0 && b->sum < 0;
    return a->least > b->least || (a->least == b->least && a->sum > b->sum);
}

static struct way after(const struct way *way, double gain)
{
    struct way next = {way->least < gain ? way->least : gain, way->sum + gain, 0};

    return next;
}

/* Layer `layer` becomes a source: the best of all ways to the one below, the nearer source of equals. */
static void turn(const struct table *t, int64_t layer, int64_t sources)
{
    struct way *to = at(t, layer, layer, sources);

    for (int64_t source = layer - 1; source >= 0; source--) {
        const struct way *from = at(t, layer - 1, source, sources - 1);
        struct way way;
        if (from->sum < 0) continue;
        way = after(from, 1);
        way.before = source;
        if (better(&way, to)) *to = way;
    }
}

static void fill(const struct table *t, const double *overlap)
{
    for (int64_t n = 0; n < t->layers * t->layers * (t->most + 1); n++)
        t->way[n] = (struct way){0, -1, 0};
    *at(t, 0, 0, 1) = (struct way){1, 1, 0};
    for (int64_t layer = 1; layer < t->layers; layer++)
        for (int64_t sources = 1; sources <= t->most; sources++) {
            for (int64_t source = 0; source < layer; source++) {
                const struct way *from = at(t, layer - 1, source, sources);
                if (from->sum >= 0) *at(t, layer, source, sources) = after(from, overlap[source * t->layers + layer]);
            }
            if (sources > 1) turn(t, layer, sources);
        }
}

static fv_reuse_gains read_back(const struct table *t, int64_t *plan)
{
    int64_t last = t->layers - 1, source = -1, sources = 0;

    for (int64_t q = 1; q <= t->most; q++)
        for (int64_t s = last; s >= 0; s--)
            if (source < 0 || better(at(t, last, s, q), at(t, last, source, sources))) {
                source = s;
                sources = q;
            }
    fv_reuse_gains gains = {at(t, last, source, sources)->least, at(t, last, source, sources)->sum};
    for (int64_t layer = last; layer >= 0; layer--) {
        plan[layer] = source == layer ? -1 : source;
        if (source == layer) source = at(t, layer, source, sources--)->before;
    }
    return gains;
}

fv_status fv_reuse_plan(const double *overlap, int64_t layers, int64_t most, int64_t *plan, fv_reuse_gains *gains)
{
    struct table t = {.layers = layers, .most = most < layers ? most : layers};
    int64_t count;

    if (layers < 1 || most < 1)
        return fv_fail(FV_E_ARGUMENT, "reuse plan: expected layers and sources of 1 or more, got %lld and %lld",
                       (long long)layers, (long long)most);
    if (!fv_mul_i64(layers, layers, &count) || !fv_mul_i64(count, t.most + 1, &count))
        return fv_fail(FV_E_MEMORY, "a plan of %lld layers is more than memory can hold", (long long)layers);
    FV_TRY(FV_ALLOC(t.way, count));
    fill(&t, overlap);
    *gains = read_back(&t, plan);
    fv_free(t.way);
    return FV_OK;
}
