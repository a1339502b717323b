/* vAttention keeps and reads everything, whatever its pages are. */
#include "policies/policies.h"

static void begin(const tiny_model *m, tiny_policy *twin)
{
    (void)m;
    *twin = (tiny_policy){0};
}

const policy_case policy_vattn = {"vattn", "vattn", begin, NULL, NULL};
const policy_case policy_vattn_small = {"vattn:page=4096,async=0,deferred=0", "vattn:page=4096,lookahead=100", begin,
                                        NULL, NULL};
const policy_case policy_vattn_one = {"vattn:megacache=1,page=8192", "vattn:megacache=1", begin, NULL, NULL};
