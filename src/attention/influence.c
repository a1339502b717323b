#include "attention/influence.h"

#include <float.h>
#include <math.h>

#include "base/threads.h"
#include "ops/check.h"

enum { STRIP = 64 /* rows taken together */ };

struct strip {
    const fv_influence_args *args;
    int64_t heads, rows, keys, from, blocks; /* rows `from` .. from+rows-1 see `keys` keys at most */
    float scale;                             /* of the logits */
    double share;                            /* 1 / B */
    float *weight, *slope;                   /* [heads,rows,keys]: logits, then exp(logit - max); G */
};

/* Logits as they go into the softmax, less their row's largest; those that a row does not see become exp(..) = 0. */
static void lower_row(void *user, int64_t item, int thread)
{
    const struct strip *s = user;
    const float scale = s->scale, cap = s->args->logits.softcap;
    float *row = s->weight + item * s->keys, top = -INFINITY;
    int64_t seen = s->from + item % s->rows + 1;

    (void)thread;
    for (int64_t j = 0; j < seen; j++) {
        row[j] *= scale;
        if (cap > 0) row[j] = cap * tanhf(row[j] / cap);
        top = fmaxf(top, row[j]);
    }
    for (int64_t j = 0; j < s->keys; j++)
        row[j] = j < seen ? row[j] - top : -INFINITY;
}

/* E of a row, added by block.  What weighs 1 - A is summed from the other weights' rounding too, hence the doubles. */
static void add_row(const struct strip *s, int64_t row, const float *e, const float *g, double *out)
{
    int64_t seen = s->from + row + 1;
    double sum = 0, mean = 0;

    for (int64_t j = 0; j < seen; j++) {
        sum += e[j];
        mean += (double)e[j] * g[j];
    }
    mean = seen > 1 ? mean / sum : 0;
    for (int64_t j = 0; j < seen; j++) {
        double a = e[j] / sum, influence = -a * (g[j] - mean) / (seen > 1 ? 1 - a + FLT_EPSILON : 1);
        out[j / s->args->block] += s->share * (s->args->absolute ? fabs(influence) : influence);
    }
}

static void add_head(void *user, int64_t h, int thread)
{
    const struct strip *s = user;

    (void)thread;
    for (int64_t i = 0; i < s->rows; i++) {
        int64_t at = (h * s->rows + i) * s->keys;
        double *out = s->args->out + (h * s->blocks + (s->from + i) / s->args->block) * s->blocks;
        add_row(s, i, s->weight + at, s->slope + at, out);
    }
}

/* [Hkv,G,rows,D] of rows `from` .. of batch b of [B,H,N,D]. */
static fv_tensor rows_by_group(const fv_tensor *t, int64_t b, int64_t groups, int64_t from, int64_t rows)
{
    int64_t per = t->dims[1] / groups;
    int64_t dims[] = {groups, per, rows, t->dims[3]};
    int64_t strides[] = {t->strides[1] * per, t->strides[1], t->strides[2], t->strides[3]};

    return fv_view(t, 4, dims, strides, b * t->strides[0] + from * t->strides[2]);
}

/* out [H,rows,keys] = x k^T for each head with its group's keys. */
static fv_status products(fv_ctx *ctx, const struct strip *s, const fv_tensor *x, const fv_tensor *k, int64_t b,
                          float *out)
{
    int64_t groups = k->dims[1];
    fv_tensor c, keys = rows_by_group(k, b, groups, 0, s->keys);

    FV_TRY(fv_tensor_wrap(&c, out, FV_F32, FV_DIMS(groups, s->heads / groups, s->rows, s->keys)));
    return fv_gemm(
        ctx, &(fv_gemm_args){.a = rows_by_group(x, b, groups, s->from, s->rows), .b = fv_transposed(&keys), .c = c});
}

static fv_status add_strip(fv_ctx *ctx, struct strip *s, int64_t b)
{
    const fv_influence_args *a = s->args;
    fv_tensor weight;

    FV_TRY(FV_SCRATCH(ctx, s->weight, s->heads * s->rows * s->keys));
    FV_TRY(FV_SCRATCH(ctx, s->slope, s->heads * s->rows * s->keys));
    FV_TRY(products(ctx, s, &a->q, &a->k, b, s->weight));
    FV_TRY(products(ctx, s, &a->d_o, &a->v, b, s->slope));
    fv_run(ctx, s->heads * s->rows, lower_row, s);
    FV_TRY(fv_tensor_wrap(&weight, s->weight, FV_F32, FV_DIMS(s->heads * s->rows, s->keys)));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_EXP, .x = weight, .out = weight}));
    fv_run(ctx, s->heads, add_head, s);
    return FV_OK;
}

static fv_status check(const fv_influence_args *a)
{
    FV_TRY(fv_check("influence", "q", &a->q, FV_TYPE(FV_F32), FV_DIMS(FV_ANY, FV_ANY, FV_ANY, FV_ANY)));
    const int64_t *d = a->q.dims;
    FV_TRY(fv_check("influence", "k", &a->k, FV_TYPE(FV_F32), FV_DIMS(d[0], FV_ANY, d[2], d[3])));
    const int64_t groups = a->k.dims[1];
    FV_TRY(fv_check("influence", "v", &a->v, FV_TYPE(FV_F32), FV_DIMS(d[0], groups, d[2], FV_ANY)));
    FV_TRY(fv_check("influence", "d_o", &a->d_o, FV_TYPE(FV_F32), FV_DIMS(d[0], d[1], d[2], a->v.dims[3])));
    if (groups < 1 || d[1] % groups != 0)
        return fv_fail(FV_E_SHAPE, "influence: expected heads of k that divide those of q, got %lld and %lld",
                       (long long)groups, (long long)d[1]);
    if (a->block < 1)
        return fv_fail(FV_E_ARGUMENT, "influence: block: expected 1 or more, got %lld", (long long)a->block);
    return FV_OK;
}

fv_status fv_influence(fv_ctx *ctx, const fv_influence_args *args)
{
    FV_TRY(check(args));
    int64_t B = args->q.dims[0], N = args->q.dims[2];
    float scale = args->logits.scale;
    if (scale == 0 && !args->logits.zero_scale) scale = (float)(1 / sqrt((double)args->q.dims[3]));
    for (int64_t b = 0; b < B; b++)
        for (int64_t from = 0; from < N; from += STRIP) {
            int64_t rows = fv_min(STRIP, N - from);
            struct strip s = {.args = args,
                              .heads = args->q.dims[1],
                              .rows = rows,
                              .keys = from + rows,
                              .from = from,
                              .blocks = fv_ceil_div(N, args->block),
                              .scale = scale,
                              .share = 1 / (double)B};
            fv_mark mark = fv_scratch_mark(ctx);
            FV_TRY(fv_ctx_check(ctx));
            FV_TRY(add_strip(ctx, &s, b));
            fv_scratch_release(ctx, mark);
        }
    return FV_OK;
}
