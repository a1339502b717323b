/* MoBA, which others are in a special case. */
#ifndef FV_SPARSE_MOBA_H
#define FV_SPARSE_MOBA_H

#include "attention/mechanism.h"

struct moba {
    int64_t block, top;
};

extern const fv_mechanism fv_mechanism_moba;

#endif
