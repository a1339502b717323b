/* Which SPECs the mechanisms are swept over where nobody says it. */
#include <math.h>
#include <string.h>

#include "app/recall.h"
#include "attention/mechanism.h"
#include "base/memory.h"

const double recall_shares[RECALL_SHARES] = {.02, .05, .1, .2, .5};

/* Options of a SPEC with a place for a number: the keys that a query may read to reach a density in a text of this
 * length, less those it reads anyway, in units, and at least so many of these.  Or options, one SPEC each.  Neither: it
 * must learn what it reads, or is another one under a second name. */
static const struct sweep {
    const char *name, *budget;
    int unit, anyway, least;
    bool in_keys; /* the number counts keys all the same */
    const char *options[RECALL_SHARES];
} sweeps[] = {
    {"moba", "block=32,top=%lld", .unit = 32, .anyway = -16, .least = 1},
    {"blocktopk", "block=16,sink=4,local=16,top=%lld", .unit = 16, .anyway = 28, .least = 1},
    {"blocktopk_gated", "block=16,init=1,local=2,top=%lld", .unit = 16, .anyway = -8, .least = 4},
    {"nsa", "compress=mean,compress_block=16,compress_stride=8,block=16,init=1,local=2,top=%lld", .unit = 16,
     .anyway = -8, .least = 3},
    {"hip", "block_q=16,block_k=2,window=16,sink=4,rep=centre,k=%lld", .unit = 2, .anyway = 20, .least = 1,
     .in_keys = true},
    {"dhsa", "block=32,chunk=16,local=16,global=4,instruction=1,budget=%lld", .unit = 1, .least = 20},
    {"corecontext", "group=8,pool=kv_head,log_bias=1,window=%lld", .unit = 1, .least = 8},
    {"anchor", .options = {"block=16,step=4,init=16,theta=1", "block=16,step=4,init=16,theta=3",
                           "block=16,step=4,init=16,theta=5", "block=16,step=4,init=16,theta=7",
                           "block=16,step=4,init=16,theta=10"}},
    {"psa", .options = {"block_q=32,block_k=32,widths=0.02+0+0+0", "block_q=32,block_k=32,widths=0.03+0.03+0+0.1",
                        "block_q=32,block_k=32", "block_q=32,block_k=32,widths=0.1+0.1+0.1+0.2",
                        "block_q=32,block_k=32,widths=0.3+0.2+0.2+0.3"}},
    {"superlinear",
     .options = {"window_index=4,back=1", "window_index=7,back=1,forward=1", "window_index=10,back=2,forward=1",
                 "window_index=14,back=2,forward=1", "window_index=22,back=3,forward=1"}},
    {"routing", .options = {"share=0,clusters=50", "share=0,clusters=20", "share=0,clusters=10", "share=0,clusters=5",
                            "share=0,clusters=2"}},
    {.name = "vmoba"},
    {.name = "dma"},
    {.name = "landmark"},
    {.name = "hcam"},
};

/* ---- setups ----------------------------------------------------------------------------------------------------- */

fv_status recall_add(recall *r, const char *name, recall_kind kind)
{
    recall_setup *setup;

    FV_TRY(FV_GROW(r->setup, r->room, r->setups + 1));
    setup = &r->setup[r->setups];
    *setup = (recall_setup){.kind = kind};
    FV_TRY(FV_ALLOC(setup->name, (int64_t)strlen(name) + 1));
    strcpy(setup->name, name);
    r->setups++;
    return FV_OK;
}

static fv_status add_bound(recall *r, const char *name, recall_kind kind)
{
    for (int n = 0; n < RECALL_SHARES; n++) {
        FV_TRY(recall_add(r, name, kind));
        r->setup[r->setups - 1].share = recall_shares[n];
    }
    return FV_OK;
}

fv_status recall_add_bounds(recall *r)
{
    FV_TRY(add_bound(r, "random", RECALL_RANDOM));
    return add_bound(r, "oracle", RECALL_ORACLE);
}

/* ---- sweeps ----------------------------------------------------------------------------------------------------- */

/* With b keys each, queries of a causal text of N have b N - b^2 / 2 pairs of its N^2 / 2. */
static long long units_of(const struct sweep *sweep, double share, int64_t tokens)
{
    double keys = (double)tokens * (1 - sqrt(1 - share)) - sweep->anyway;
    int64_t units = fv_max((int64_t)(keys / sweep->unit + 0.5), sweep->least);

    return (long long)(sweep->in_keys ? units * sweep->unit : units);
}

static fv_status add_optional(recall *r, const char *spec)
{
    FV_TRY(recall_add(r, spec, RECALL_PLAN));
    r->setup[r->setups - 1].optional = true;
    return FV_OK;
}

static fv_status add_sweep(recall *r, const struct sweep *sweep)
{
    long long before = -1;

    for (int n = 0; n < RECALL_SHARES; n++) {
        char spec[256];
        int used = snprintf(spec, sizeof spec, "%s:", sweep->name);
        if (sweep->budget) {
            long long units = units_of(sweep, recall_shares[n], r->tokens);
            if (units == before) continue;
            before = units;
            snprintf(spec + used, sizeof spec - (size_t)used, sweep->budget, units);
        } else if (sweep->options[n]) {
            snprintf(spec + used, sizeof spec - (size_t)used, "%s", sweep->options[n]);
        } else {
            continue;
        }
        FV_TRY(add_optional(r, spec));
    }
    return FV_OK;
}

static const struct sweep *sweep_of(const char *name)
{
    for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++)
        if (strcmp(sweeps[i].name, name) == 0) return &sweeps[i];
    return NULL;
}

fv_status recall_add_sweeps(recall *r)
{
    for (int i = 0; fv_mechanisms[i]; i++) {
        const fv_mechanism *mechanism = fv_mechanisms[i];
        const struct sweep *sweep = sweep_of(mechanism->name);
        if (mechanism->family != FV_CONTENT_SPARSE || mechanism->traits & (FV_NEVER_CAUSAL | FV_NO_MAP)) continue;
        FV_TRY(sweep ? add_sweep(r, sweep) : add_optional(r, mechanism->name));
    }
    return FV_OK;
}
