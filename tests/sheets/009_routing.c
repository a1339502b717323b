/* Routing attention (sheet 009, one routing head each): centroids choose their `per_cluster` best normed queries and
 * keys (top), or each token is in its best cluster and reads the latest keys there (prefix); a softmax in each cluster,
 * and the mean over the clusters that hold a query. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct plan {
    bool shared, prefix;
    int64_t k, w;              /* clusters, members */
    double *q, *keys;          /* as compared, [B,H,N,D] and [B,H,M,D] */
    const int64_t *queries_of; /* [B,H,k,w] members of each cluster, or [B,H,N] the cluster of each */
    const int64_t *keys_of;    /* the same of the keys */
};

static void compared(const sheet_call *call, const double *x, double *out)
{
    double mean = 0, square = 0;

    for (int64_t d = 0; d < call->D; d++)
        mean += x[d] / (double)call->D;
    for (int64_t d = 0; d < call->D; d++)
        square += (x[d] - mean) * (x[d] - mean) / (double)call->D;
    for (int64_t d = 0; d < call->D; d++)
        out[d] = sheet_integer(call, "norm", 0, 1) ? (x[d] - mean) / sqrt(square + 1e-6) : x[d];
}

static double score(const sheet_call *call, int64_t h, int64_t c, const double *x)
{
    const sheet_param *centroids = sheet_tensor(call, "centroids");

    return sheet_dot(centroids->data + (h * centroids->dims[1] + c) * call->D, x, call->D);
}

/* The w of n rows that centroid c likes best, ascending. */
static void best_rows(const sheet_call *call, const struct plan *plan, int64_t h, int64_t c, const double *x, int64_t n,
                      int64_t *out)
{
    int64_t count = 0;

    for (int64_t t = 0; t < plan->w; t++)
        out[t] = -1;
    for (int64_t i = 0; i < n; i++) {
        double own = score(call, h, c, x + i * call->D);
        int64_t better = 0;

        for (int64_t other = 0; other < n; other++) {
            double its = score(call, h, c, x + other * call->D);
            better += its > own || (its == own && other < i);
        }
        if (better < plan->w) out[count++] = i;
    }
}

static int64_t best_cluster(const sheet_call *call, const struct plan *plan, int64_t h, const double *x)
{
    int64_t best = 0;

    for (int64_t c = 1; c < plan->k; c++)
        if (score(call, h, c, x) > score(call, h, best, x)) best = c;
    return best;
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t head, const double *x, int64_t n,
                   int64_t *out)
{
    int64_t h = head % call->H;

    for (int64_t c = 0; c < plan->k && !plan->prefix; c++)
        best_rows(call, plan, h, c, x + head * n * call->D, n, out + (head * plan->k + c) * plan->w);
    for (int64_t i = 0; i < n && plan->prefix; i++)
        out[head * n + i] = best_cluster(call, plan, h, x + (head * n + i) * call->D);
}

/* The members of cluster c among n rows, ascending; returns how many. */
static int64_t members_of(const struct plan *plan, const int64_t *chosen, int64_t head, int64_t n, int64_t c,
                          int64_t *members)
{
    int64_t count = 0;

    for (int64_t t = 0; t < plan->w && !plan->prefix; t++)
        if (chosen[(head * plan->k + c) * plan->w + t] >= 0)
            members[count++] = chosen[(head * plan->k + c) * plan->w + t];
    for (int64_t i = 0; i < n && plan->prefix; i++)
        if (chosen[head * n + i] == c) members[count++] = i;
    return count;
}

static double bias(const sheet_call *call, int64_t h, int64_t difference)
{
    const sheet_param *table = sheet_tensor(call, "rank_bias");
    int64_t R = table ? table->dims[1] : 0;

    if (!table) return 0;
    if (difference < 0) difference = 0;
    return table->data[h * R + (difference < R ? difference : R - 1)];
}

/* Adds the output of query i of cluster c, whose rank there is `rank`, to o. */
static void attend(const sheet_call *call, const struct plan *plan, int64_t head, int64_t i, int64_t rank,
                   const int64_t *keys, int64_t count)
{
    int64_t b = head / call->H, h = head % call->H, p = i + call->M - call->N, first = 0;
    double *logits = sheet_zeros(count), *o = sheet_o(call, b, h, i);
    const double *q = plan->q + (head * call->N + i) * call->D;

    while (call->causal && count > 0 && keys[count - 1] > p)
        count--;
    if (plan->prefix && count > plan->w) first = count - plan->w;
    for (int64_t n = first; n < count; n++) {
        logits[n] = sheet_scale(call) * sheet_dot(q, plan->keys + (head * call->M + keys[n]) * call->D, call->D);
        logits[n] += bias(call, h, rank - n);
        if (sheet_integer(call, "mask_self", 0, 0) && plan->shared && keys[n] == i) logits[n] -= 5e4;
        if (call->map) call->map[(head * call->N + i) * call->M + keys[n]] = 1;
    }
    sheet_softmax(logits + first, count - first, -INFINITY);
    for (int64_t n = first; n < count; n++)
        for (int64_t e = 0; e < call->Dv; e++)
            o[e] += logits[n] * sheet_v(call, b, h, keys[n])[e];
    free(logits);
}

static void attend_head(const sheet_call *call, const struct plan *plan, int64_t head)
{
    int64_t *queries = (int64_t *)sheet_zeros(call->N + plan->w), *keys = (int64_t *)sheet_zeros(call->M + plan->w);
    double eps = sheet_number(call, "eps", 0, 0), *held = sheet_zeros(call->N);

    for (int64_t c = 0; c < plan->k; c++) {
        int64_t n = members_of(plan, plan->queries_of, head, call->N, c, queries);
        int64_t m = members_of(plan, plan->keys_of, head, call->M, c, keys);

        for (int64_t rank = 0; rank < n; rank++) {
            attend(call, plan, head, queries[rank], rank, keys, m);
            held[queries[rank]]++;
        }
    }
    for (int64_t i = 0; i < call->N; i++)
        for (int64_t e = 0; e < call->Dv; e++)
            call->o[(head * call->N + i) * call->Dv + e] /= eps > 0 ? held[i] + eps : fmax(held[i], 1);
    free(queries);
    free(keys);
    free(held);
}

static void prepare(const sheet_call *call, struct plan *plan)
{
    for (int64_t row = 0; row < call->B * call->H * call->N; row++)
        compared(call, call->q + row * call->D, plan->q + row * call->D);
    for (int64_t row = 0; row < call->B * call->H * call->M; row++) {
        int64_t head = row / call->M, j = row % call->M;

        compared(call, plan->shared ? call->q + row * call->D : sheet_k(call, head / call->H, head % call->H, j),
                 plan->keys + row * call->D);
    }
}

static bool forward(sheet_call *call)
{
    const sheet_param *centroids = sheet_tensor(call, "centroids");
    int64_t share = sheet_integer(call, "share", 0, 0), heads = call->B * call->H, count;
    struct plan plan = {.shared = share == 2 || (share == 0 && call->causal),
                        .prefix = sheet_integer(call, "membership", 0, 0) == 1};
    int64_t *own, *chosen;

    if (!centroids || call->lse || (plan.prefix && !call->causal)) return false;
    if ((plan.shared || call->causal) && call->N != call->M) return false;
    plan.k = centroids->dims[1];
    plan.w = sheet_integer(call, "per_cluster", 0, 0);
    if (plan.w == 0) plan.w = (call->M + plan.k - 1) / plan.k;
    if (plan.w > call->M) plan.w = call->M;
    plan.q = sheet_zeros(heads * call->N * call->D);
    plan.keys = sheet_zeros(heads * call->M * call->D);
    prepare(call, &plan);
    count = heads * (plan.prefix ? call->N : plan.k * plan.w);
    own = (int64_t *)sheet_zeros(count + heads * (plan.prefix ? call->M : plan.k * plan.w));
    chosen = call->selection ? call->selection : own;
    plan.queries_of = chosen;
    plan.keys_of = chosen + count;
    for (int64_t n = 0; n < heads * call->N * call->Dv; n++)
        call->o[n] = 0;
    for (int64_t n = 0; call->map && n < heads * call->N * call->M; n++)
        call->map[n] = 0;
    for (int64_t head = 0; head < heads; head++) {
        if (!(call->selection && call->frozen)) {
            choose(call, &plan, head, plan.q, call->N, chosen);
            choose(call, &plan, head, plan.keys, call->M, chosen + count);
        }
        attend_head(call, &plan, head);
    }
    free(plan.q);
    free(plan.keys);
    free(own);
    return true;
}

const sheet sheet_routing = {"routing", forward};
