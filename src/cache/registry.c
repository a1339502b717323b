/* The list of policies. */
#include "cache/policy.h"

extern const fv_policy fv_policy_full, fv_policy_sinkring, fv_policy_snapkv, fv_policy_pyramidkv, fv_policy_compresskv,
    fv_policy_guikv;
extern const fv_policy fv_policy_shard, fv_policy_layer_plan, fv_policy_moa, fv_policy_gemfilter;
extern const fv_policy fv_policy_h2o, fv_policy_alisa, fv_policy_blocktopk, fv_policy_hylra;
extern const fv_policy fv_policy_vattn;
extern const fv_policy fv_policy_landmark_cache;

const fv_policy *const fv_policies[] = {
    &fv_policy_full,
    &fv_policy_sinkring,
    &fv_policy_snapkv,
    &fv_policy_pyramidkv,
    &fv_policy_compresskv,
    &fv_policy_guikv,
    &fv_policy_shard,
    &fv_policy_layer_plan,
    &fv_policy_moa,
    &fv_policy_gemfilter,
    &fv_policy_h2o,
    &fv_policy_alisa,
    &fv_policy_blocktopk,
    &fv_policy_hylra,
    &fv_policy_vattn,
    &fv_policy_landmark_cache,
    NULL,
};

const fv_policy *fv_policy_find(const char *name)
{
    for (int i = 0; fv_policies[i]; i++)
        if (strcmp(fv_policies[i]->name, name) == 0) return fv_policies[i];
    return NULL;
}

static const char *name_at(const void *user, int index)
{
    (void)user;
    return fv_policies[index]->name;
}

fv_status fv_policy_named(const char *name, const fv_policy **policy)
{
    int count = 0;

    while (fv_policies[count])
        count++;
    *policy = fv_policy_find(name);
    if (*policy) return FV_OK;
    const char *near = fv_nearest(name, count, name_at, NULL);
    if (near)
        return fv_fail(
            FV_E_USAGE,
            "no cache policy is called '%s'; did you mean '%s'? ('fovea list policy' has those of the family cache)",
            name, near);
    return fv_fail(FV_E_USAGE, "no cache policy is called '%s' ('fovea list policy' has those of the family cache)",
                   name);
}
