/* Every mechanism.  A new one adds its line here, in the order `fovea list` shows. */
#include "attention/mechanism.h"

#include <string.h>

/* clang-format off */
#define MECHANISMS(add) \
    add(dense) \
    add(sinkwin) \
    add(gna) \
    add(power) \
    add(moba) \
    add(blocktopk) \
    add(superlinear) \
    add(vmoba) \
    add(bra) \
    add(nsa) \
    add(lightning2) \
    add(hedgehog) \
    add(agent) \
    add(blocktopk_gated) \
    add(hcam) \
    add(anchor) \
    add(corecontext) \
    add(dma) \
    add(hip) \
    add(sparsifiner) \
    add(tab) \
    add(dhsa) \
    add(routing) \
    add(paro) \
    add(psa) \
    add(landmark) \
    add(s2) \
    add(lsattn) \
    add(s2attn) \
    add(sfattn) \
    add(frame_tile) \
    add(radial) \
    add(postmask) \
    add(staticqk) \
    add(selfgate) \
    add(fixedmap) \
    add(taylor2) \
    add(combiner) \
    add(descriptor) \
    add(csw) \
    add(lga) \
    add(halo) \
    add(na) \

#define DECLARE(name) extern const fv_mechanism fv_mechanism_##name;
#define LIST(name) &fv_mechanism_##name,
/* clang-format on */

MECHANISMS(DECLARE)

const fv_mechanism *const fv_mechanisms[] = {MECHANISMS(LIST) NULL};

const fv_mechanism *fv_mechanism_find(const char *name)
{
    for (int i = 0; fv_mechanisms[i]; i++)
        if (strcmp(fv_mechanisms[i]->name, name) == 0) return fv_mechanisms[i];
    return NULL;
}

static const char *name_at(const void *user, int index)
{
    (void)user;
    return fv_mechanisms[index]->name;
}

fv_status fv_mechanism_named(const char *name, const fv_mechanism **mechanism)
{
    int count = 0;
    const char *near;

    *mechanism = fv_mechanism_find(name);
    if (*mechanism) return FV_OK;
    while (fv_mechanisms[count])
        count++;
    near = fv_nearest(name, count, name_at, NULL);
    if (near)
        return fv_fail(FV_E_USAGE, "attention '%s' is not known; did you mean '%s'? ('fovea list mechanisms' has all)",
                       name, near);
    return fv_fail(FV_E_USAGE, "attention '%s' is not known ('fovea list mechanisms' has all)", name);
}

const char *fv_family_name(fv_family family)
{
    static const char *const names[] = {"dense", "static sparse", "content sparse", "linear", "latent", "mixed"};

    return names[family];
}
