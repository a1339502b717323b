/* What a test-time run costs when memory traffic counts beside arithmetic ("Kinetics", arXiv 2506.05333): a model reads
 * a prompt of `in` tokens and writes `out` ones, in `trials` trials of the same prompt.
 *
 *   eFLOPs = computing + intensity * bytes
 *
 * Parameters count as arithmetic only: many streams share what is read of them.  Where the keys a step reads are held
 * to a budget, S is the number of keys read over all steps of a trial, early steps see fewer than the budget. */
#ifndef FV_KINETICS_H
#define FV_KINETICS_H

#include "base/options.h"

typedef struct fv_kinetics {
    double params;
    int64_t layers, heads, kv_heads, dim;
    int64_t in, out, trials;
    int64_t budget, local; /* keys a step reads: both together; budget 0: all */
    int64_t block;         /* > 0: they are found by the mean keys of blocks of so many */
    double intensity;      /* flops in the time of reading a byte */
    double bytes;          /* of a number in the cache */
    int share_prompt;      /* into auto, 0, 1 */
} fv_kinetics;

extern const fv_option fv_kinetics_options[]; /* of fv_kinetics */

/* "kinetics_cost:params=8.19e9,...".  FV_E_USAGE. */
fv_status fv_kinetics_read(const char *spec, fv_kinetics *kinetics);

typedef struct fv_kinetics_cost {
    double comp, memory; /* flops, and bytes times intensity */
    double parameters;   /* the part of comp that parameters are */
} fv_kinetics_cost;
fv_kinetics_cost fv_kinetics_cost_of(const fv_kinetics *kinetics);

/* Shapes to choose among. */
typedef struct fv_kinetics_model {
    const char *name;
    double params;
    int64_t layers, heads, kv_heads, dim;
} fv_kinetics_model;
enum { FV_KINETICS_MODELS = 6 };
extern const fv_kinetics_model fv_kinetics_models[FV_KINETICS_MODELS];
/* The same run on another model. */
fv_kinetics fv_kinetics_with(const fv_kinetics *kinetics, const fv_kinetics_model *model);

/* The most tokens that a cost allows (up to 2^30), by eFLOPs or by computing alone; 0: not one. */
int64_t fv_kinetics_longest(const fv_kinetics *kinetics, double cost, bool memory);

/* The model that a cost is best spent on, if accuracy is 1 - params^-0.2 out^-0.4 (an assumption: it falls short of 1
 * by less for larger models and for more tokens), and the tokens it then writes; -1 if none can write one. */
int fv_kinetics_choose(const fv_kinetics *kinetics, double cost, bool memory, int64_t *out);

#endif
