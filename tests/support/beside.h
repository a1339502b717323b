/* The library beside a twin's call: worked numbers are held against the twin, and the library against it. */
#ifndef FV_BESIDE_H
#define FV_BESIDE_H

#include "attention/mechanism.h"
#include "support/twin.h"

/* A twin's call as one of the library, in f32. */
struct beside {
    fv_ctx *ctx;
    fv_attention *attention;
    fv_attention_args args;
    fv_named_tensor param[TWIN_SLOTS];
    float scale;
};

struct beside beside_open(const struct twin *f, const char *spec, const char *device);
void beside_close(struct beside *l);

/* twin_forward, and on every device the library gives the same o, lse and map, as far as the twin is asked for them. */
void beside_forward(struct twin *f, const char *spec);
/* The library refuses the call, in such words; so does the twin. */
void beside_refuses(struct twin *f, const char *spec, fv_status status, const char *words);

#endif
