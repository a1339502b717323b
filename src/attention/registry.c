/* Every mechanism: a new one adds its line to each of the two lists. */
#include "attention/mechanism.h"

#include <string.h>

extern const fv_mechanism fv_mechanism_dense;
extern const fv_mechanism fv_mechanism_sinkwin;
extern const fv_mechanism fv_mechanism_gna;
extern const fv_mechanism fv_mechanism_power;
extern const fv_mechanism fv_mechanism_lightning2;
extern const fv_mechanism fv_mechanism_hedgehog;
extern const fv_mechanism fv_mechanism_bra;
extern const fv_mechanism fv_mechanism_nsa;
extern const fv_mechanism fv_mechanism_agent;
extern const fv_mechanism fv_mechanism_moba;

const fv_mechanism *const fv_mechanisms[] = {
    &fv_mechanism_dense,      &fv_mechanism_sinkwin,  &fv_mechanism_power,
    &fv_mechanism_lightning2, &fv_mechanism_hedgehog, NULL,
};

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
