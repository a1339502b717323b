/* Which SPECs the mechanisms are swept over where nobody says it. */
#include <math.h>
#include <string.h>

#include "app/budgets.h"
#include "app/recall.h"
#include "attention/mechanism.h"
#include "base/memory.h"

const double recall_shares[RECALL_SHARES] = {.02, .05, .1, .2, .5};

/* A budget, of the keys that reach a density in a text of this length; or options, one SPEC each.  Neither: it must
 * learn what it reads, or is another one under a second name. */
static const struct sweep {
    const char *name;
    budget budget;
    const char *options[RECALL_SHARES];
} sweeps[] = {
    {.name = "moba", .budget = {"block=32,top=%lld", .unit = 32, .anyway = -16, .least = 1}},
    {.name = "blocktopk", .budget = {"block=16,sink=4,local=16,top=%lld", .unit = 16, .anyway = 28, .least = 1}},
    {.name = "blocktopk_gated", .budget = {"block=16,init=1,local=2,top=%lld", .unit = 16, .anyway = -8, .least = 4}},
    {.name = "nsa",
     .budget = {"compress=mean,compress_block=16,compress_stride=8,block=16,init=1,local=2,top=%lld", .unit = 16,
                .anyway = -8, .least = 3}},
    {.name = "hip",
     .budget = {"block_q=16,block_k=2,window=16,sink=4,rep=centre,k=%lld", .unit = 2, .anyway = 12, .least = 4,
                .in_keys = true}},
    {.name = "dhsa",
     .budget = {"block=32,chunk=16,local=16,global=4,instruction=1,budget=%lld", .unit = 1, .anyway = -16,
                .least = 20}},
    {.name = "corecontext", .budget = {"group=8,pool=kv_head,log_bias=1,window=%lld", .unit = 1, .least = 8}},
    {.name = "anchor",
     .options = {"block=16,step=1,init=16,theta=2", "block=16,step=1,init=16,theta=4",
                 "block=16,step=1,init=16,theta=5.5", "block=16,step=1,init=16,theta=7",
                 "block=16,step=1,init=16,theta=10"}},
    {.name = "psa",
     .options = {"block_q=16,block_k=16,widths=0.01+0+0+0", "block_q=16,block_k=16,widths=0.02+0.03+0+0",
                 "block_q=16,block_k=16,widths=0.05+0.05+0+0", "block_q=16,block_k=16,widths=0.1+0.1+0+0",
                 "block_q=16,block_k=16,widths=0.3+0.1+0.1+0"}},
    {.name = "superlinear",
     .options = {"window_index=4,back=0,forward=0,anchors=1", "window_index=4,back=1,forward=0,anchors=1",
                 "window_index=6,back=1,forward=0", "window_index=10,back=1,forward=1",
                 "window_index=18,back=3,forward=1"}},
    {.name = "routing",
     .options = {"share=0,clusters=50", "share=0,clusters=20", "share=0,clusters=10", "share=0,clusters=5",
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

static fv_status add_optional(recall *r, const char *spec)
{
    FV_TRY(recall_add(r, spec, RECALL_PLAN));
    r->setup[r->setups - 1].optional = true;
    return FV_OK;
}

/* With b keys each, queries of a causal text of N have b N - b^2 / 2 pairs of its N^2 / 2. */
static fv_status add_sweep(recall *r, const struct sweep *sweep)
{
    long long before = -1;

    for (int n = 0; n < RECALL_SHARES; n++) {
        char spec[BUDGET_SPEC];
        if (sweep->budget.options) {
            double keys = (double)r->tokens * (1 - sqrt(1 - recall_shares[n]));
            long long number = budget_spec(sweep->name, &sweep->budget, keys, spec);
            if (number == before) continue;
            before = number;
        } else if (sweep->options[n]) {
            snprintf(spec, sizeof spec, "%s:%s", sweep->name, sweep->options[n]);
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
