#include "ops/ref/ref.h"

const fv_backend fv_backend_ref = {
    .name = "ref",
};
