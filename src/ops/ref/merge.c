/* merge and its gradients, in doubles. */
#include <math.h>

#include "ops/merge.h"
#include "ops/ref/pieces.h"
#include "ops/ref/ref.h"

struct merge {
    const fv_merge_args *args;
    const fv_merge_grads *grads; /* NULL: forward */
};

static double lse_of(const fv_merge_args *a, int64_t b, int64_t h, fv_merge_term t)
{
    return *fv_ref_f32(&a->lse_part[t.part], b, h, t.row);
}

/* ln of the sum of the terms' exp(lse) */
static double total(const fv_merge_args *a, int64_t b, int64_t h, int64_t r)
{
    double max = -INFINITY, sum = 0;

    for (int64_t n = 0; n < fv_merge_terms(a, r); n++)
        max = fmax(max, lse_of(a, b, h, fv_merge_term_at(a, r, n)));
    if (max == -INFINITY) return max;
    for (int64_t n = 0; n < fv_merge_terms(a, r); n++)
        sum += exp(lse_of(a, b, h, fv_merge_term_at(a, r, n)) - max);
    return max + log(sum);
}

static double weight_of(const fv_merge_args *a, int64_t b, int64_t h, fv_merge_term t, double lse)
{
    if (fv_present(&a->weight[0])) return *fv_ref_f32(&a->weight[t.part], b, h, t.row);
    return lse == -INFINITY ? 0 : exp(lse_of(a, b, h, t) - lse);
}

static float part_at(const fv_merge_args *a, int64_t b, int64_t h, fv_merge_term t, int64_t d)
{
    return fv_ref_f32(&a->o_part[t.part], b, h, t.row)[d * a->o_part[t.part].strides[3]];
}

enum { CHANNELS = 128 }; /* summed together, so that a weight is computed once for them */

static void merge_row(const fv_merge_args *a, int64_t b, int64_t h, int64_t i)
{
    int64_t r = (b * a->o.dims[1] + h) * a->o.dims[2] + i;
    double lse = fv_present(&a->weight[0]) ? 0 : total(a, b, h, r);
    float *o = fv_ref_f32(&a->o, b, h, i);

    for (int64_t from = 0; from < a->o.dims[3]; from += CHANNELS) {
        int64_t to = fv_min(from + CHANNELS, a->o.dims[3]);
        double sum[CHANNELS] = {0};
        for (int64_t n = 0; n < fv_merge_terms(a, r); n++) {
            fv_merge_term t = fv_merge_term_at(a, r, n);
            double weight = weight_of(a, b, h, t, lse);
            for (int64_t d = from; d < to && weight != 0; d++)
                sum[d - from] += weight * part_at(a, b, h, t, d);
        }
        for (int64_t d = from; d < to; d++)
            o[d * a->o.strides[3]] = (float)sum[d - from];
    }
    if (fv_present(&a->lse)) *fv_ref_f32(&a->lse, b, h, i) = (float)lse;
}

/* With w the weight of a term: d_o_p = w d_o; and d_w = d_o.o_p, which by lse gives
 * d_lse_p = w (d_o.o_p - d_o.o + d_lse). */
static void row_back(const fv_merge_args *a, const fv_merge_grads *g, int64_t b, int64_t h, int64_t i)
{
    int64_t r = (b * a->o.dims[1] + h) * a->o.dims[2] + i, Dv = a->o.dims[3];
    bool weighted = fv_present(&a->weight[0]);
    double lse = weighted ? 0 : total(a, b, h, r), mean = 0;
    const float *d_o = fv_ref_f32(&g->d_o, b, h, i);

    for (int pass = weighted ? 1 : 0; pass < 2; pass++) { /* d_o.o first */
        for (int64_t n = 0; n < fv_merge_terms(a, r); n++) {
            fv_merge_term t = fv_merge_term_at(a, r, n);
            double weight = weight_of(a, b, h, t, lse), dot = 0;
            for (int64_t d = 0; d < Dv; d++) {
                float up = d_o[d * g->d_o.strides[3]];
                dot += (double)up * part_at(a, b, h, t, d);
                if (pass == 1 && fv_present(&g->d_o_part[t.part]))
                    fv_ref_f32(&g->d_o_part[t.part], b, h, t.row)[d * g->d_o_part[t.part].strides[3]] +=
                        (float)(weight * up);
            }
            if (pass == 0) mean += weight * dot;
            if (pass == 0) continue;
            if (fv_present(&g->d_weight[t.part])) *fv_ref_f32(&g->d_weight[t.part], b, h, t.row) += (float)dot;
            if (!weighted && fv_present(&g->d_lse_part[t.part])) {
                double d_lse = fv_present(&g->d_lse) ? *fv_ref_f32(&g->d_lse, b, h, i) : 0;
                *fv_ref_f32(&g->d_lse_part[t.part], b, h, t.row) += (float)(weight * (dot - mean + d_lse));
            }
        }
    }
}

static void merge_head(void *user, int64_t item, int thread)
{
    const struct merge *m = user;
    const fv_merge_args *a = m->args;
    int64_t b = item / a->o.dims[1], h = item % a->o.dims[1];

    (void)thread;
    for (int64_t i = 0; i < a->o.dims[2]; i++) {
        if (m->grads)
            row_back(a, m->grads, b, h, i);
        else
            merge_row(a, b, h, i);
    }
}

fv_status fv_ref_merge(fv_ctx *ctx, const fv_merge_args *args)
{
    struct merge m = {.args = args};

    fv_run(ctx, args->o.dims[0] * args->o.dims[1], merge_head, &m);
    return fv_ctx_check(ctx);
}

fv_status fv_ref_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads)
{
    struct merge m = {.args = args, .grads = grads};
    int64_t items = args->o.dims[0] * args->o.dims[1];
    bool shared = false;

    for (int p = 0; p < args->parts; p++) {
        const fv_tensor *each[] = {&grads->d_o_part[p], &grads->d_lse_part[p], &grads->d_weight[p]};
        for (int n = 0; n < 3; n++)
            shared = shared || (fv_present(each[n]) && !fv_ref_apart(each[n]));
    }
    if (shared) {
        for (int64_t item = 0; item < items; item++)
            merge_head(&m, item, 0);
    } else {
        fv_run(ctx, items, merge_head, &m);
    }
    return fv_ctx_check(ctx);
}
