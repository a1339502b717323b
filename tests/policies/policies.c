#include "policies/policies.h"

extern const policy_case policy_sinkring, policy_sinkring_budget, policy_sinkring_dense, policy_sinkring_cache;
extern const policy_case policy_h2o, policy_h2o_recent, policy_h2o_none, policy_h2o_late;
extern const policy_case policy_alisa, policy_alisa_wide, policy_alisa_global, policy_alisa_global_heads,
    policy_alisa_last, policy_alisa_least;
extern const policy_case policy_blocktopk, policy_blocktopk_rows, policy_blocktopk_late;
extern const policy_case policy_hylra, policy_hylra_exact, policy_hylra_hash, policy_hylra_free, policy_hylra_forced;

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
    &policy_h2o,
    &policy_h2o_recent,
    &policy_h2o_none,
    &policy_h2o_late,
    &policy_alisa,
    &policy_alisa_wide,
    &policy_alisa_global,
    &policy_alisa_global_heads,
    &policy_alisa_last,
    &policy_alisa_least,
    &policy_blocktopk,
    &policy_blocktopk_rows,
    &policy_blocktopk_late,
    &policy_hylra,
    &policy_hylra_exact,
    &policy_hylra_hash,
    &policy_hylra_free,
    &policy_hylra_forced,
    NULL,
};
