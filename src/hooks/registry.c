/* Every probe that listens to a reading.  A new one adds its line here, in the order `fovea list` shows. */
#include "hooks/probe.h"

/* clang-format off */
#define PROBES(add) \
    add(entropy) \
    add(distance) \
    add(sink_mass) \
    add(top_keys) \
    add(attn_indicators) \
    add(logit_growth) \

#define DECLARE(name) extern const fv_probe fv_probe_##name;
#define LIST(name) &fv_probe_##name,
/* clang-format on */

PROBES(DECLARE)

const fv_probe *const fv_probes[] = {PROBES(LIST) NULL};
