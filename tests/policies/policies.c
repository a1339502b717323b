#include "policies/policies.h"

extern const policy_case policy_sinkring, policy_sinkring_budget, policy_sinkring_dense, policy_sinkring_cache;
extern const policy_case policy_shard, policy_shard_wide, policy_shard_homo, policy_shard_dense, policy_shard_tokens;
extern const policy_case policy_layer_plan, policy_layer_plan_top, policy_layer_plan_bottom,
    policy_layer_plan_interleaved;

static void full(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){0};
}

static const policy_case policy_full = {"full", "full", full, NULL, NULL};

const policy_case *const policy_cases[] = {
    &policy_full,
    &policy_sinkring,
    &policy_sinkring_budget,
    &policy_sinkring_dense,
    &policy_sinkring_cache,
    /* blocks */
    &policy_shard,
    &policy_shard_wide,
    &policy_shard_homo,
    &policy_shard_dense,
    &policy_shard_tokens,
    &policy_layer_plan,
    &policy_layer_plan_top,
    &policy_layer_plan_bottom,
    &policy_layer_plan_interleaved,
    NULL,
};
