#include "policies/policies.h"

extern const policy_case policy_vattn, policy_vattn_small, policy_vattn_one;
extern const policy_case policy_sinkring, policy_sinkring_budget, policy_sinkring_dense, policy_sinkring_cache;

static void full(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){0};
}

static const policy_case policy_full = {"full", "full", full, NULL, NULL};

const policy_case *const policy_cases[] = {
    &policy_full,           &policy_vattn,          &policy_vattn_small,
    &policy_vattn_one,      &policy_sinkring,       &policy_sinkring_budget,
    &policy_sinkring_dense, &policy_sinkring_cache, NULL,
};
