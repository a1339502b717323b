#include "policies/policies.h"

#include <math.h>

extern const policy_case policy_vattn, policy_vattn_small, policy_vattn_one;
extern const policy_case policy_sinkring, policy_sinkring_budget, policy_sinkring_dense, policy_sinkring_cache;
extern const policy_case policy_snapkv, policy_snapkv_max, policy_snapkv_layer, policy_snapkv_layer_max;
extern const policy_case policy_pyramidkv, policy_pyramidkv_clipped, policy_pyramidkv_short;
extern const policy_case policy_compresskv, policy_compresskv_plan, policy_compresskv_all, policy_compresskv_uniform;
extern const policy_case policy_guikv, policy_guikv_small, policy_guikv_frames, policy_guikv_svd, policy_guikv_query,
    policy_guikv_one;

void compresskv_write_plan(const tiny_model *m, FILE *file);

extern const policy_case policy_h2o, policy_h2o_recent, policy_h2o_none, policy_h2o_late;
extern const policy_case policy_alisa, policy_alisa_wide, policy_alisa_global, policy_alisa_global_heads,
    policy_alisa_last, policy_alisa_least;
extern const policy_case policy_blocktopk, policy_blocktopk_rows, policy_blocktopk_late;
extern const policy_case policy_hylra, policy_hylra_exact, policy_hylra_hash, policy_hylra_free, policy_hylra_forced;

void hylra_write_plan(const tiny_model *m, FILE *file);

const policy_plan policy_plans[] = {{"compresskv", compresskv_write_plan}, {"hylra", hylra_write_plan}, {NULL, NULL}};

double policy_margin = INFINITY;

void policy_choice(double gap)
{
    policy_margin = fmin(policy_margin, gap);
}
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
    &policy_vattn,
    &policy_vattn_small,
    &policy_vattn_one,
    &policy_sinkring,
    &policy_sinkring_budget,
    &policy_sinkring_dense,
    &policy_sinkring_cache,
    &policy_snapkv,
    &policy_snapkv_max,
    &policy_snapkv_layer,
    &policy_snapkv_layer_max,
    &policy_pyramidkv,
    &policy_pyramidkv_clipped,
    &policy_pyramidkv_short,
    &policy_compresskv,
    &policy_compresskv_plan,
    &policy_compresskv_all,
    &policy_compresskv_uniform,
    &policy_guikv,
    &policy_guikv_small,
    &policy_guikv_frames,
    &policy_guikv_svd,
    &policy_guikv_query,
    &policy_guikv_one,
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
