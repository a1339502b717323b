/* merge and its gradients: rows in items of ROWS, channels by vectors.  Bound by bytes: every part is read once
 * (twice by the gradients of a merge by lse) and the result written once.  Three parts of 32 heads,
 * 2048 x 128, are merged at the rate of a copy (43 GB/s by lse, 45 by weights), their gradients at 15 and 18 GB/s. */
#include <float.h>
#include <math.h>

#include "ops/accumulate.h"
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"
#include "ops/merge.h"

enum { ROWS = 64, FEW = 3 }; /* rows that are weighed together, and how few go one by one */

struct merge {
    const fv_merge_args *args;
    const fv_merge_grads *grads; /* NULL: forward */
    const struct fv_kernels *kernels;
    int64_t rows, cuts; /* of a head: rows in a cut */
};

/* A row of o. */
struct place {
    int64_t b, h, i, r;
};

static float *row_of(const fv_tensor *t, const struct place *at, int64_t row)
{
    return fv_at(t, at->b, at->h, row, 0);
}

static float lse_of(const fv_merge_args *a, const struct place *at, fv_merge_term t)
{
    return *row_of(&a->lse_part[t.part], at, t.row);
}

/* ln of the sum of the terms' exp(lse) */
static float total(const fv_merge_args *a, const struct place *at)
{
    int64_t terms = fv_merge_terms(a, at->r);
    float top = -INFINITY, sum = 0;

    for (int64_t n = 0; n < terms; n++)
        top = fmaxf(top, lse_of(a, at, fv_merge_term_at(a, at->r, n)));
    if (top == -INFINITY) return top;
    for (int64_t n = 0; n < terms; n++)
        sum += expf(lse_of(a, at, fv_merge_term_at(a, at->r, n)) - top);
    return top + logf(sum);
}

static float weight_of(const fv_merge_args *a, const struct place *at, fv_merge_term t, float lse)
{
    if (fv_present(&a->weight[0])) return *row_of(&a->weight[t.part], at, t.row);
    return lse == -INFINITY ? 0 : expf(lse_of(a, at, t) - lse);
}

enum { TERMS = 32 }; /* combined in one go */

/* Terms of weight 0 are left out, whatever they hold. */
static void add_terms(const struct merge *m, int64_t count, const float **rows, float *weights, bool add, float *o)
{
    int64_t kept = 0;

    for (int64_t n = 0; n < count; n++) {
        rows[kept] = rows[n];
        weights[kept] = weights[n];
        kept += weights[n] != 0;
    }
    m->kernels->combine(kept, rows, weights, m->args->o.dims[3], add, o);
}

/* ---- parts: a row has a term in each of them ------------------------------------------------------------------- */

/* weights [parts, ROWS] of rows first..: as they are given, or exp(lse - their total), whose rows lie side by side so
 * that exponentials and logarithms are taken by vectors; and lse [ROWS]. */
static void weigh(const struct merge *m, int64_t b, int64_t h, int64_t first, int64_t count, float *weights, float *lse)
{
    const fv_merge_args *a = m->args;
    const struct fv_kernels *kernels = m->kernels;
    bool given = fv_present(&a->weight[0]);
    float top[ROWS], sum[ROWS];

    for (int p = 0; p < a->parts; p++) {
        const fv_tensor *t = given ? &a->weight[p] : &a->lse_part[p];
        const float *from = fv_at(t, b, h, first, 0);
        for (int64_t r = 0; r < count; r++)
            weights[p * ROWS + r] = from[r * t->strides[2]];
    }
    if (given) return;
    kernels->reduce(FV_POOL_MAX, a->parts, count, weights, ROWS, false, 1, top);
    kernels->map(FV_MAP_MAX, count, top, NULL, 0, -FLT_MAX, 0, top); /* no difference of infinities */
    for (int p = 0; p < a->parts; p++) {
        float *own = weights + p * ROWS;
        kernels->map(FV_MAP_SUB, count, own, top, 1, 0, 0, own);
        kernels->map(FV_MAP_EXP, count, own, NULL, 0, 0, 0, own);
    }
    kernels->reduce(FV_POOL_SUM, a->parts, count, weights, ROWS, false, 1, sum);
    for (int64_t r = 0; r < count; r++) {
        float factor = sum[r] == 0 ? 0 : 1 / sum[r];
        for (int p = 0; p < a->parts; p++)
            weights[p * ROWS + r] *= factor;
    }
    kernels->map(FV_MAP_LOG, count, sum, NULL, 0, 0, 0, lse);
    kernels->map(FV_MAP_ADD, count, lse, top, 1, 1, 0, lse);
}

static void merge_parts(const struct merge *m, int64_t b, int64_t h, int64_t first, int64_t count)
{
    const fv_merge_args *a = m->args;
    float weights[FV_MERGE_PARTS * ROWS], lse[ROWS], own[FV_MERGE_PARTS];
    const float *from[FV_MERGE_PARTS], *rows[FV_MERGE_PARTS];

    weigh(m, b, h, first, count, weights, lse);
    for (int p = 0; p < a->parts; p++)
        from[p] = fv_at(&a->o_part[p], b, h, first, 0);
    for (int64_t r = 0; r < count; r++) {
        for (int p = 0; p < a->parts; p++) {
            rows[p] = from[p] + r * a->o_part[p].strides[2];
            own[p] = weights[p * ROWS + r];
        }
        add_terms(m, a->parts, rows, own, false, fv_at(&a->o, b, h, first + r, 0));
        if (fv_present(&a->lse)) *(float *)fv_at(&a->lse, b, h, first + r, 0) = lse[r];
    }
}

/* ---- slots, and few rows: any number of terms ------------------------------------------------------------------ */

/* The sum of slots by weights. */
static void sum_slots(const struct merge *m, const struct place *at)
{
    const fv_merge_args *a = m->args;
    int64_t terms = fv_merge_terms(a, at->r);
    float weights[TERMS], *o = row_of(&a->o, at, at->i);
    const float *rows[TERMS];

    for (int64_t from = 0; from == 0 || from < terms; from += TERMS) { /* without terms: zeros */
        int64_t count = fv_min(TERMS, terms - from);
        for (int64_t n = 0; n < count; n++) {
            fv_merge_term t = fv_merge_term_at(a, at->r, from + n);
            rows[n] = row_of(&a->o_part[0], at, t.row);
            weights[n] = *row_of(&a->weight[0], at, t.row);
        }
        add_terms(m, count, rows, weights, from > 0, o);
    }
}

/* o and (if it is wanted) lse, as attention does it: relative to the largest lse so far. */
static void merge_slots(const struct merge *m, const struct place *at)
{
    const fv_merge_args *a = m->args;
    int64_t terms = fv_merge_terms(a, at->r), Dv = a->o.dims[3];
    float top = -INFINITY, sum = 0, weights[TERMS], *o = row_of(&a->o, at, at->i);
    const float *rows[TERMS];

    for (int64_t from = 0; from < terms; from += TERMS) {
        int64_t count = fv_min(TERMS, terms - from);
        for (int64_t n = 0; n < count; n++) {
            fv_merge_term t = fv_merge_term_at(a, at->r, from + n);
            rows[n] = row_of(&a->o_part[t.part], at, t.row);
            weights[n] = lse_of(a, at, t);
        }
        float next = m->kernels->largest(count, weights);
        if (!(next > top)) next = top;
        if (next == -INFINITY) continue;
        bool add = sum > 0;
        if (add && next > top) {
            float before = expf(top - next);
            m->kernels->map(FV_MAP_COPY, Dv, o, NULL, 0, before, 0, o);
            sum *= before;
        }
        sum += m->kernels->exp(count, weights, 1, next, weights);
        top = next;
        if (terms <= TERMS) m->kernels->map(FV_MAP_COPY, count, weights, NULL, 0, 1 / sum, 0, weights);
        add_terms(m, count, rows, weights, add, o);
    }
    if (sum == 0) memset(o, 0, (size_t)Dv * sizeof *o);
    if (sum > 0 && terms > TERMS) m->kernels->map(FV_MAP_COPY, Dv, o, NULL, 0, 1 / sum, 0, o);
    if (fv_present(&a->lse)) *row_of(&a->lse, at, at->i) = sum > 0 ? top + logf(sum) : -INFINITY;
}

/* ---- gradients ------------------------------------------------------------------------------------------------- */

static float dot(const struct merge *m, const float *x, const float *y)
{
    float out;

    m->kernels->dot[FV_F32](1, m->args->o.dims[3], x, 0, NULL, y, 0, 1, &out, 1);
    return out;
}

/* With w the weight of a term: d_o_p = w d_o; and d_w = d_o.o_p, which by lse gives
 * d_lse_p = w (d_o.o_p - d_o.o + d_lse), where o is the sum of w o_p. */
static void row_back(const struct merge *m, const struct place *at)
{
    const fv_merge_args *a = m->args;
    const fv_merge_grads *g = m->grads;
    int64_t terms = fv_merge_terms(a, at->r);
    bool weighted = fv_present(&a->weight[0]);
    float lse = weighted ? 0 : total(a, at), mean = 0, *d_o = row_of(&g->d_o, at, at->i);
    float d_lse = fv_present(&g->d_lse) ? *row_of(&g->d_lse, at, at->i) : 0;

    for (int64_t n = 0; !weighted && n < terms; n++) {
        fv_merge_term t = fv_merge_term_at(a, at->r, n);
        mean += weight_of(a, at, t, lse) * dot(m, d_o, row_of(&a->o_part[t.part], at, t.row));
    }
    for (int64_t n = 0; n < terms; n++) {
        fv_merge_term t = fv_merge_term_at(a, at->r, n);
        const fv_tensor *to = &g->d_o_part[t.part];
        float weight = weight_of(a, at, t, lse), along = dot(m, d_o, row_of(&a->o_part[t.part], at, t.row));
        if (fv_present(to))
            m->kernels->map(FV_MAP_ADD, a->o.dims[3], row_of(to, at, t.row), d_o, 1, weight, 0, row_of(to, at, t.row));
        if (fv_present(&g->d_weight[t.part])) *row_of(&g->d_weight[t.part], at, t.row) += along;
        if (!weighted && fv_present(&g->d_lse_part[t.part]))
            *row_of(&g->d_lse_part[t.part], at, t.row) += weight * (along - mean + d_lse);
    }
}

static void merge_item(void *user, int64_t index, int thread)
{
    const struct merge *m = user;
    int64_t H = m->args->o.dims[1], N = m->args->o.dims[2], head = index / m->cuts, first = index % m->cuts * m->rows;

    (void)thread;
    bool weighted = fv_present(&m->args->weight[0]);
    if (!m->grads && !m->args->slot && (weighted || N > FEW)) {
        merge_parts(m, head / H, head % H, first, fv_min(m->rows, N - first));
        return;
    }
    for (int64_t i = first; i < fv_min(first + m->rows, N); i++) {
        struct place at = {head / H, head % H, i, head * N + i};
        if (m->grads)
            row_back(m, &at);
        else if (weighted)
            sum_slots(m, &at);
        else
            merge_slots(m, &at);
    }
}

static fv_status run(fv_ctx *ctx, struct merge *m)
{
    const fv_tensor *o = &m->args->o;

    m->kernels = fv_kernels_of(ctx);
    /* rows of a head may share slots, whose gradients then add up */
    m->rows = m->grads && m->args->slot ? fv_max(o->dims[2], 1) : ROWS;
    m->cuts = fv_ceil_div(o->dims[2], m->rows);
    fv_cpu_run(ctx, o->dims[0] * o->dims[1] * m->cuts, 4.0 * (double)fv_tensor_count(o) * m->args->parts, merge_item,
               m);
    return fv_ctx_check(ctx);
}

static bool parts_together(const fv_merge_args *a)
{
    bool together = fv_cpu_rows_together(&a->o);

    for (int p = 0; p < a->parts; p++)
        together = together && fv_cpu_rows_together(&a->o_part[p]);
    return together;
}

fv_status fv_cpu_merge(fv_ctx *ctx, const fv_merge_args *args)
{
    struct merge m = {.args = args};

    return parts_together(args) ? run(ctx, &m) : fv_backend_ref.merge(ctx, args);
}

fv_status fv_cpu_merge_backward(fv_ctx *ctx, const fv_merge_args *args, const fv_merge_grads *grads)
{
    struct merge m = {.args = args, .grads = grads};
    bool fast = parts_together(args) && fv_cpu_rows_together(&grads->d_o);

    for (int p = 0; p < args->parts; p++) {
        const fv_tensor *each[] = {&grads->d_o_part[p], &grads->d_lse_part[p], &grads->d_weight[p]};
        for (int n = 0; n < 3; n++)
            fast = fast && fv_cpu_rows_together(each[n]) && (!fv_present(each[n]) || fv_tensor_apart(each[n]));
    }
    return fast ? run(ctx, &m) : fv_backend_ref.merge_backward(ctx, args, grads);
}
