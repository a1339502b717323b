/* Every row stays, in the storage type that was asked for. */
#include "cache/policy.h"

const fv_policy fv_policy_full = {
    .name = "full",
    .title = "Full cache",
    .traits = FV_POLICY_POSITION | FV_POLICY_CHUNKS,
    .keeps = "all rows",
    .cost = "(D b(k) + Dv b(v)) bytes a token, layer and key-value head; each step reads all of them",
};
