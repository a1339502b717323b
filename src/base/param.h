/* Tensors by name: tables of them, and their shapes as text, read and checked. */
#ifndef FV_PARAM_H
#define FV_PARAM_H

#include "base/tensor.h"

/* A tensor that has a name.  `shape` is text for people and is checked: names of sizes, products with '*', alternatives
 * with '|' ("[1|B, N, 4*C]"), or several shapes of different ranks ("[H, N] or [H, N, M]").  A name that nobody knows
 * stands for one size throughout the call: what makes the first tensor fit, in the order of the tables, in which all
 * else of its product is known. */
typedef struct fv_param {
    const char *name, *shape, *help;
    bool output;    /* of a mechanism: written on request (params_out), besides being read */
    bool fixed;     /* has no gradient: what is chosen by it is constant; so are integers */
    bool needed;    /* must be given */
    fv_dtype dtype; /* FV_F32, FV_I32 or FV_U8 */
} fv_param;

#define FV_PARAM(name_, shape_, help_)                                                                                 \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_                                                                  \
    }
#define FV_PARAM_OUT(name_, shape_, help_)                                                                             \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_, .output = true                                                  \
    }
#define FV_PARAM_FIXED(name_, shape_, help_)                                                                           \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_, .fixed = true                                                   \
    }
#define FV_PARAM_OF(dtype_, name_, shape_, help_)                                                                      \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_, .fixed = true, .dtype = dtype_                                  \
    }
#define FV_PARAM_NEEDED(name_, shape_, help_)                                                                          \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_, .needed = true                                                  \
    }
#define FV_PARAM_NEEDED_FIXED(name_, shape_, help_)                                                                    \
    {                                                                                                                  \
        .name = name_, .shape = shape_, .help = help_, .needed = true, .fixed = true                                   \
    }

/* Tables end with a NULL name; a NULL table is empty. */
int fv_params_count(const fv_param *table);
/* The place of a name in a table; FV_E_USAGE with the nearest one.  Sentences say "owner: what 'name'". */
fv_status fv_params_find(const char *owner, const char *what, const fv_param *table, const char *name, int *index);
/* Puts what was given in the order of the table; place: zeros.  FV_E_USAGE for an unknown name or one given twice,
 * FV_E_ARGUMENT for a tensor without data. */
fv_status fv_params_place(const char *owner, const char *what, const fv_param *table, int count,
                          const fv_named_tensor *given, fv_tensor *place);

/* What names of sizes stand for in a call. */
enum { FV_SIZE_NAMES = 16 };
typedef struct fv_named_sizes {
    int64_t (*known)(const void *user, const char *name); /* -1: not known; NULL: none is */
    const void *user;
    int count; /* of the others, as tensors gave them */
    struct {
        const char *text;
        size_t length;
        int64_t size;
    } at[FV_SIZE_NAMES];
} fv_named_sizes;

/* The size of a name; -1: no tensor gave it yet. */
int64_t fv_size_of(const fv_named_sizes *sizes, const char *name);

/* Checks type and shape, and learns sizes from it.  FV_E_DTYPE, FV_E_SHAPE. */
fv_status fv_param_check(const char *owner, const char *what, const fv_param *param, const fv_tensor *t,
                         fv_named_sizes *sizes);
/* A contiguous tensor without data of the shape a param must have; of alternatives the last one.  FV_E_UNSUPPORTED if
 * a size is not known. */
fv_status fv_param_shape(const char *owner, const char *what, const fv_param *param, fv_named_sizes *sizes,
                         fv_tensor *shape);
/* The text of dim `d` of a shape. */
enum { FV_DIM_TEXT = 64 };
void fv_param_dim(const fv_param *param, int d, char word[FV_DIM_TEXT]);

#endif
