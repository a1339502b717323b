/* Every mechanism written a second time, straight from its definition: plain loops, double precision, one loop per
 * symbol, nothing shared with src/.  The conformance tests hold the library against these; their gradients are central
 * differences of them. */
#ifndef FV_SHEETS_H
#define FV_SHEETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* An option as given: numbers, booleans as 0 or 1, a choice as its place in the registry table's order
 * (map=softmax|exp|relu|elu -> 0..3), tuples and lists as several values (a word in place of a list as -1, -2 ...).
 * Options left out take their default. */
typedef struct sheet_option {
    const char *name;
    int count;
    const double *values;
} sheet_option;

/* A tensor of the mechanism's own, in C order.  Left out, or without data: absent. */
typedef struct sheet_param {
    const char *name;
    const double *data;
    int rank;
    int64_t dims[5];
} sheet_param;

/* One call.  Query i stands at position p = i + M - N. */
typedef struct sheet_call {
    int64_t B, H, Hkv, N, M, D, Dv;
    bool causal;
    bool decode;             /* as steps of one token, where those have a rule of their own */
    const double *scale;     /* NULL: the mechanism's default (D^-1/2) */
    const double *q, *k, *v; /* [B,H,N,D], [B,Hkv,M,D], [B,Hkv,M,Dv], C order */
    int options;
    const sheet_option *option;
    int params;
    const sheet_param *param;

    double *o;          /* [B,H,N,Dv] */
    double *lse;        /* [B,H,N], NULL: not wanted; -inf where a row sees nothing */
    unsigned char *map; /* [B,H,N,M], NULL: not wanted */
    double *state;      /* lightning2: S after the last token, [B,H,D,Dv], NULL: not wanted */

    /* What a mechanism that selects by content chose, as ids in an order of its own; NULL: not wanted.  With frozen set
     * it is read instead, so that differences hold the choice fixed; what else of the keys has no gradient is made of
     * still_k, k as it was. */
    int64_t *selection;
    bool frozen;
    const double *still_k;
} sheet_call;

typedef struct sheet {
    const char *name;
    /* False, with nothing promised of the outputs: the definition has no such call (N != M, a grid that is not N,
     * --causal, --scale, lse or map where there is none, options that contradict one another). */
    bool (*forward)(sheet_call *call);
} sheet;

/* clang-format off */
#define SHEETS(add) \
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

#define DECLARE_SHEET(name) extern const sheet sheet_##name;
/* clang-format on */

SHEETS(DECLARE_SHEET)

extern const sheet *const sheets[];        /* all of them, NULL-ended */
const sheet *sheet_find(const char *name); /* NULL: none */

/* ---- what the sheets share --------------------------------------------------------------------------------------- */

/* Value `index` of an option; the last one given counts for all that follow. */
double sheet_number(const sheet_call *call, const char *name, int index, double otherwise);
int64_t sheet_integer(const sheet_call *call, const char *name, int index, int64_t otherwise);
int sheet_count(const sheet_call *call, const char *name); /* values given; 0: left out */

const sheet_param *sheet_tensor(const sheet_call *call, const char *name); /* NULL: absent */
double sheet_scale(const sheet_call *call);

/* The row of query head h and query i, or of the key head that query head h reads and key j. */
const double *sheet_q(const sheet_call *call, int64_t b, int64_t h, int64_t i);
const double *sheet_k(const sheet_call *call, int64_t b, int64_t h, int64_t j);
const double *sheet_v(const sheet_call *call, int64_t b, int64_t h, int64_t j);
double *sheet_o(const sheet_call *call, int64_t b, int64_t h, int64_t i);
double sheet_dot(const double *x, const double *y, int64_t n);

double *sheet_zeros(int64_t count); /* free() it */

/* Turns count logits (-inf: unseen) into softmax weights, a further logit `sink` (-inf: none) joining the denominator
 * only; returns the log of the denominator.  A row that sees nothing: weights 0, -inf. */
double sheet_softmax(double *logits, int64_t count, double sink);

/* Softmax attention over the pairs that `sees` shows (p is the position of query i); fills o, lse and map. */
typedef bool sheet_sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j);
bool sheet_attend(const sheet_call *call, sheet_sees *sees, const void *plan);

/* o += bias + depthwise size x size correlation, zero padded, of v on a height x width grid; channel h * Dv + e has
 * weight [size, size].  Either may be absent. */
void sheet_depthwise(const sheet_call *call, int64_t height, int64_t width, int size, const sheet_param *weight,
                     const sheet_param *bias);

/* nsa: what `count` weights over compressed keys amount to for selection block b. */
double sheet_nsa_importance(int64_t block, int64_t stride, int64_t length, const double *weights, int64_t count,
                            int64_t b);

#endif
