/* Every layer.  A new one adds its line here, in the order `fovea list` shows. */
#include <string.h>

#include "layers/layer.h"

/* clang-format off */
#define LAYERS(add) \
    add(hcam) \
    add(tab) \
    add(mlpmix) \
    add(fixedmap) \
    add(staticqk) \
    add(lepe) \
    add(na_qk) \
    add(na_av) \
    add(fit_read) \
    add(fit_write) \
    add(logit_growth) \
    add(attn_indicators) \
    add(attn_influence) \
    add(stm_dpc) \
    add(tile_search) \
    add(cross_override) \

#define DECLARE(name) extern const fv_layer_type fv_layer_##name;
#define LIST(name) &fv_layer_##name,
/* clang-format on */

LAYERS(DECLARE)

const fv_layer_type *const fv_layer_types[] = {LAYERS(LIST) NULL};

const fv_layer_type *fv_layer_type_find(const char *name)
{
    for (int i = 0; fv_layer_types[i]; i++)
        if (strcmp(fv_layer_types[i]->name, name) == 0) return fv_layer_types[i];
    return NULL;
}
