/* A forward on its way: what forward.c, which goes through a layer, and forward_attend.c, which attends, share. */
#ifndef FV_FORWARD_INSIDE_H
#define FV_FORWARD_INSIDE_H

#include "models/session.h"

enum { FV_MANY_TOKENS = 64 };

/* Buffers are taken once per chunk; q, k and v of all heads lie side by side in a token's row. */
struct fv_pass {
    const fv_session *session; /* the first of all */
    fv_ctx *ctx;
    const fv_sizes *sizes;
    const fv_forward_part *parts; /* [count] */
    int64_t count, tokens;
    const int64_t *first;    /* [count] row of a part's first token */
    const int32_t *position; /* [tokens]; NULL: those of the only part */
    fv_tensor x, h;          /* [tokens, width]: the residual stream, and what goes into a part */
    fv_tensor q, k, v, o;    /* [tokens, heads * dim] */
    fv_tensor plain;         /* k before it was rotated, where some policy stores it so */
    fv_tensor hidden;        /* [tokens, hidden] */
    bool open; /* attention is to the tokens themselves, as they were before they became rows of a cache */
};

/* [count, heads * dim] as [1, heads, count, dim]. */
static inline fv_tensor fv_pass_heads(const fv_tensor *t, int64_t heads, int64_t dim)
{
    return fv_view(t, 4, (const int64_t[]){1, heads, t->dims[0], dim}, (const int64_t[]){0, dim, t->strides[0], 1}, 0);
}

static inline fv_linear_part fv_pass_part(const fv_weight *weight, const fv_tensor *bias, const fv_tensor *out)
{
    return (fv_linear_part){.weight = weight->tensor, .packed = &weight->packed, .bias = *bias, .out = *out};
}

/* The products that q, k and v are. */
static inline fv_linear_args fv_pass_products(const struct fv_pass *p, const fv_layer *layer)
{
    return (fv_linear_args){.x = p->h,
                            .parts = 3,
                            .part = {fv_pass_part(&layer->q, &layer->q_bias, &p->q),
                                     fv_pass_part(&layer->k, &layer->k_bias, &p->k),
                                     fv_pass_part(&layer->v, &layer->v_bias, &p->v)}};
}

/* How a layer rotates, but for what and where. */
static inline fv_rope_args fv_pass_rope(const struct fv_pass *p, const fv_layer *layer)
{
    return (fv_rope_args){.rotary = p->sizes->rotary,
                          .frequency = layer->rope->frequency,
                          .magnitude = layer->rope->magnitude,
                          .interleaved = (p->session->model->architecture->parts & FV_INTERLEAVED) != 0};
}

/* Attention of layer l: q, k and v of all parts to o. */
fv_status fv_pass_attend(const struct fv_pass *p, int64_t l);

#endif
