/* What a --cache SPEC means for the layers of a model. */
#include <stdlib.h>

#include "cache/policy.h"

static const char *const types[] = {"f16", "bf16", "f32", "q8_0", "q4_0", NULL};

const fv_option fv_policy_common_options[] = {
    FV_ENUM(fv_policy_common, k, "f16", types, "storage type of keys"),
    FV_ENUM(fv_policy_common, v, "f16", types, "storage type of values"),
    FV_INT(fv_policy_common, page, 0, 0, 1 << 30, "bytes taken and given back together; 0: the system's choice"),
    FV_OPTIONS_END,
};

fv_dtype fv_policy_type(int choice)
{
    static const fv_dtype dtypes[] = {FV_F16, FV_BF16, FV_F32, FV_Q8_0, FV_Q4_0};

    return dtypes[choice];
}

/* ---- one SPEC --------------------------------------------------------------------------------------------------- */

static const fv_option *common_option(const char *name)
{
    for (const fv_option *o = fv_policy_common_options; o->name; o++)
        if (strcmp(o->name, name) == 0) return o;
    return NULL;
}

static bool owns(const fv_policy *policy, const char *name)
{
    for (const fv_option *o = policy->options; o && o->name; o++)
        if (strcmp(o->name, name) == 0) return true;
    return false;
}

/* Takes the common options out of a SPEC; the rest is the policy's. */
static fv_status read_options(const fv_spec *spec, fv_policy_use *use)
{
    const fv_policy *policy = use->policy;
    fv_spec own = *spec;
    void *options;

    own.count = 0;
    for (const fv_option *o = fv_policy_common_options; o->name; o++)
        FV_TRY(fv_option_set(o, policy->name, o->initial, &use->common));
    for (int i = 0; i < spec->count; i++) {
        fv_assignment assignment = fv_spec_option(spec, i);
        const fv_option *o = owns(policy, assignment.name) ? NULL : common_option(assignment.name);
        if (o)
            FV_TRY(fv_option_set(o, policy->name, assignment.value, &use->common));
        else
            own.at[own.count++] = spec->at[i];
    }
    if (use->common.page & (use->common.page - 1) || (use->common.page > 0 && use->common.page < 4096))
        return fv_fail(FV_E_USAGE, "%s: option 'page': expected 0 or a power of two of 4096 or more, got %lld",
                       policy->name, (long long)use->common.page);
    FV_TRY(fv_zalloc(&options, (int64_t)policy->options_size, 1));
    use->options = options;
    FV_TRY(fv_options_parse(policy->options, &own, options));
    return policy->check ? policy->check(options) : FV_OK;
}

/* ---- a model's layers ------------------------------------------------------------------------------------------- */

static fv_status check_types(const fv_cache_plan *plan, const fv_policy_use *use)
{
    const fv_cache_model *m = &plan->model;
    const struct {
        const char *name;
        int choice;
        int64_t dim;
    } side[] = {{"k", use->common.k, m->key_dim}, {"v", use->common.v, m->value_dim}};

    for (int i = 0; i < 2; i++) {
        int64_t block = fv_dtype_block(fv_policy_type(side[i].choice));
        if (side[i].dim % block != 0)
            return fv_fail(FV_E_USAGE,
                           "%s: option '%s': %s stores blocks of %lld, which do not divide this model's head "
                           "dim of %lld",
                           use->policy->name, side[i].name, types[side[i].choice], (long long)block,
                           (long long)side[i].dim);
    }
    return FV_OK;
}

static fv_status make_use(fv_cache_plan *plan, int part)
{
    fv_policy_use *use = &plan->use[part];
    int64_t *layer;

    *use = (fv_policy_use){.model = &plan->model};
    FV_TRY(fv_policy_named(fv_spec_name(&plan->layers.specs[part]), &use->policy));
    FV_TRY(read_options(&plan->layers.specs[part], use));
    FV_TRY(check_types(plan, use));
    FV_TRY(FV_ALLOC(layer, plan->model.layers));
    use->layer = layer;
    for (int64_t l = 0; l < plan->model.layers; l++) {
        if (plan->layers.layer_part[l] != part) continue;
        plan->part[l] = part;
        if (plan->window[l] > 0 || use->policy->traits & FV_POLICY_FILTERS) continue;
        if (!fv_policy_acts(use->policy) && !use->policy->pool) continue; /* rows are what they are without it */
        layer[use->layers++] = l;
    }
    if (use->policy->traits & (FV_POLICY_FILTERS | FV_POLICY_INSERTS) && !plan->layers.bare)
        return fv_fail(FV_E_USAGE, "%s: chooses the tokens of the whole model, so it cannot be for some layers",
                       use->policy->name);
    if (use->policy->open) FV_TRY(use->policy->open(use));
    return fv_text_status(&use->warning);
}

static fv_status make(const char *spec, fv_cache_plan *plan)
{
    const fv_cache_model *m = &plan->model;

    FV_TRY(FV_ALLOC(plan->window, m->layers));
    memcpy(plan->window, m->window, (size_t)m->layers * sizeof *plan->window);
    plan->model.window = plan->window;
    FV_TRY(FV_ALLOC(plan->part, m->layers));
    for (int64_t l = 0; l < m->layers; l++)
        plan->part[l] = -1;
    if (!spec) return FV_OK;
    FV_TRY(fv_layer_plan_parse(&plan->layers, spec, (int)m->layers));
    FV_TRY(FV_ZALLOC(plan->use, plan->layers.parts));
    for (; plan->uses < plan->layers.parts; plan->uses++) {
        fv_status status = make_use(plan, plan->uses);
        if (status == FV_OK) continue;
        plan->uses++;
        return status;
    }
    return FV_OK;
}

fv_status fv_cache_plan_new(const char *spec, const fv_cache_model *model, fv_cache_plan *plan)
{
    *plan = (fv_cache_plan){.model = *model};
    fv_status status = make(spec, plan);
    if (status != FV_OK) fv_cache_plan_free(plan);
    return status;
}

void fv_cache_plan_free(fv_cache_plan *plan)
{
    for (int i = 0; i < plan->uses; i++) {
        fv_policy_use *use = &plan->use[i];
        if (use->policy && use->policy->close) use->policy->close(use);
        fv_free((void *)(uintptr_t)use->options);
        fv_free((void *)(uintptr_t)use->layer);
        fv_text_free(&use->warning);
    }
    fv_free(plan->use);
    if (plan->layers.specs) fv_layer_plan_free(&plan->layers);
    fv_free(plan->window);
    fv_free(plan->part);
    *plan = (fv_cache_plan){0};
}

const fv_policy_common *fv_cache_plan_types(const fv_cache_plan *plan, int64_t layer)
{
    static const fv_policy_common defaults;

    return plan->part[layer] < 0 ? &defaults : &plan->use[plan->part[layer]].common;
}

unsigned fv_cache_plan_traits(const fv_cache_plan *plan)
{
    unsigned traits = 0;

    for (int i = 0; i < plan->uses; i++)
        if (plan->use[i].layers > 0 || plan->use[i].policy->traits & FV_POLICY_FILTERS)
            traits |= plan->use[i].policy->traits;
    return traits;
}

const fv_policy_use *fv_cache_plan_filter(const fv_cache_plan *plan)
{
    return plan->uses > 0 && plan->use[0].policy->traits & FV_POLICY_FILTERS ? &plan->use[0] : NULL;
}

fv_policy_insert fv_cache_plan_insert(const fv_cache_plan *plan)
{
    fv_policy_insert insert = {0};

    if (plan->uses > 0 && plan->use[0].policy->inserts) plan->use[0].policy->inserts(&plan->use[0], &insert);
    return insert;
}
