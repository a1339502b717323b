/* Fovea: attention that runs, steers and explains.  This header includes the rest. */
#ifndef FOVEA_FOVEA_H
#define FOVEA_FOVEA_H

#include "fovea/base.h"
#include "fovea/ops.h"
#include "fovea/attention.h"
#include "fovea/layer.h"
#include "fovea/model.h"

#endif
