/* Pyramid sparse attention (sheet 040): ranks of key blocks become levels; at level l a block's keys are read in
 * aligned groups of l, as their mean and with log l, the last group perhaps smaller. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

enum { AUTO, TOPK, BOUND, ENERGY };
enum { NONE, GILBERT, TILE, KMEANS };

struct plan {
    int64_t block_q, block_k, nq, nk, offset, first, text;
    int mode;
    int64_t *order; /* [B,N or M]: the token at a place */
    int64_t *level; /* [B,H,nq,nk] */
};

static int64_t floor_divide(int64_t a, int64_t b)
{
    return (int64_t)floor((double)a / (double)b);
}

static const double *query(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i)
{
    return sheet_q(call, b, h, plan->order ? plan->order[b * call->N + i] : i);
}

static const double *key(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t j)
{
    return sheet_k(call, b, h, plan->order ? plan->order[b * call->N + j] : j);
}

static const double *value(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t j)
{
    return sheet_v(call, b, h, plan->order ? plan->order[b * call->N + j] : j);
}

/* ---- orders ------------------------------------------------------------------------------------------------------ */

static int64_t half_of(int64_t a, int64_t unit)
{
    int64_t h = floor_divide(a, 2);

    return labs(h) % 2 && labs(a) > 2 ? h + unit : h;
}

/* The generalised Hilbert curve, vectors as arrays. */
static void curve(const int64_t *p, const int64_t *a, const int64_t *b, const int64_t *c, const int64_t *size,
                  int64_t *order, int64_t *count)
{
    const int64_t *v[3] = {a, b, c};
    int64_t length[3], unit[3][3], low[3][3], rest[3][3], back[3][3], at[3];

    for (int n = 0; n < 3; n++) {
        length[n] = labs(v[n][0] + v[n][1] + v[n][2]);
        for (int d = 0; d < 3; d++) {
            unit[n][d] = (v[n][d] > 0) - (v[n][d] < 0);
            low[n][d] = half_of(v[n][d], unit[n][d]);
            rest[n][d] = v[n][d] - low[n][d];
            back[n][d] = -low[n][d];
        }
    }
    for (int n = 0; n < 3; n++) { /* one line */
        if (length[(n + 1) % 3] != 1 || length[(n + 2) % 3] != 1) continue;
        memcpy(at, p, sizeof at);
        for (int64_t i = 0; i < length[n]; i++) {
            order[(*count)++] = at[0] + size[0] * (at[1] + size[1] * at[2]);
            for (int d = 0; d < 3; d++)
                at[d] += unit[n][d];
        }
        return;
    }
#define AT(expression)                                                                                                 \
    for (int d = 0; d < 3; d++)                                                                                        \
        at[d] = p[d] + (expression);
#define NEGATIVE(name, from)                                                                                           \
    int64_t name[3];                                                                                                   \
    for (int d = 0; d < 3; d++)                                                                                        \
        name[d] = -(from)[d];
    NEGATIVE(minus_a, rest[0])
    NEGATIVE(minus_c, c)
    NEGATIVE(minus_rest_c, rest[2])
    if (2 * length[0] > 3 * length[1] && 2 * length[0] > 3 * length[2]) {
        curve(p, low[0], b, c, size, order, count);
        AT(low[0][d])
        curve(at, rest[0], b, c, size, order, count);
    } else if (3 * length[1] > 4 * length[2]) {
        curve(p, low[1], c, low[0], size, order, count);
        AT(low[1][d])
        curve(at, a, rest[1], c, size, order, count);
        AT(a[d] - unit[0][d] + low[1][d] - unit[1][d])
        curve(at, back[1], c, minus_a, size, order, count);
    } else if (3 * length[2] > 4 * length[1]) {
        curve(p, low[2], low[0], b, size, order, count);
        AT(low[2][d])
        curve(at, a, b, rest[2], size, order, count);
        AT(a[d] - unit[0][d] + low[2][d] - unit[2][d])
        curve(at, back[2], minus_a, b, size, order, count);
    } else {
        curve(p, low[1], low[2], low[0], size, order, count);
        AT(low[1][d])
        curve(at, c, low[0], rest[1], size, order, count);
        AT(low[1][d] - unit[1][d] + c[d] - unit[2][d])
        curve(at, a, back[1], minus_rest_c, size, order, count);
        AT(a[d] - unit[0][d] + low[1][d] + c[d] - unit[2][d])
        curve(at, minus_c, minus_a, rest[1], size, order, count);
        AT(a[d] - unit[0][d] + low[1][d] - unit[1][d])
        curve(at, back[1], low[2], minus_a, size, order, count);
    }
}

/* x, y and z extents of a grid that is given outermost axis first. */
static void extents(const sheet_call *call, int64_t *size)
{
    int axes = sheet_count(call, "grid");

    for (int d = 0; d < 3; d++)
        size[d] = d < axes ? sheet_integer(call, "grid", axes - 1 - d, 1) : 1;
}

static void order_curve(const sheet_call *call, int64_t *order)
{
    int64_t size[3], origin[3] = {0}, axis[3][3] = {{0}}, count = 0, longest = 0;

    extents(call, size);
    for (int d = 0; d < 3; d++)
        axis[d][d] = size[d];
    for (int d = 1; d < 3; d++)
        if (size[d] > size[longest]) longest = d;
    if (longest == 0) curve(origin, axis[0], axis[1], axis[2], size, order, &count);
    if (longest == 1) curve(origin, axis[1], axis[0], axis[2], size, order, &count);
    if (longest == 2) curve(origin, axis[2], axis[0], axis[1], size, order, &count);
}

static void order_tiles(const sheet_call *call, int64_t *order)
{
    int64_t size[3], count = 0;

    extents(call, size);
    for (int64_t z = 0; z < size[2]; z += 2)
        for (int64_t y = 0; y < size[1]; y += 8)
            for (int64_t x = 0; x < size[0]; x += 8)
                for (int64_t n = 0; n < 2 * 8 * 8; n++) {
                    int64_t zz = z + n / 64, yy = y + n / 8 % 8, xx = x + n % 8;
                    if (zz < size[2] && yy < size[1] && xx < size[0])
                        order[count++] = (zz * size[1] + yy) * size[0] + xx;
                }
}

/* Four rounds of k-means over the keys of all heads. */
static void order_clusters(const sheet_call *call, int64_t b, int64_t n, int64_t clusters, int64_t *order)
{
    int64_t C = call->Hkv * call->D, count = 0, *label = (int64_t *)sheet_zeros(n), group = call->H / call->Hkv;
    double *centre = sheet_zeros(clusters * C);

    for (int64_t k = 0; k < clusters; k++)
        for (int64_t c = 0; c < C; c++)
            centre[k * C + c] = sheet_k(call, b, c / call->D * group, k * n / clusters)[c % call->D];
    for (int round = 0; round <= 4; round++) {
        for (int64_t k = 0; k < clusters && round > 0; k++) {
            double *mean = sheet_zeros(C);
            int64_t members = 0;
            for (int64_t t = 0; t < n; t++) {
                members += label[t] == k;
                for (int64_t c = 0; c < C; c++)
                    mean[c] += label[t] == k ? sheet_k(call, b, c / call->D * group, t)[c % call->D] : 0;
            }
            for (int64_t c = 0; c < C && members > 0; c++)
                centre[k * C + c] = mean[c] / (double)members;
            free(mean);
        }
        for (int64_t t = 0; t < n; t++) {
            double nearest = INFINITY;
            for (int64_t k = 0; k < clusters; k++) {
                double distance = 0;
                for (int64_t c = 0; c < C; c++)
                    distance += pow(sheet_k(call, b, c / call->D * group, t)[c % call->D] - centre[k * C + c], 2);
                if (distance < nearest) nearest = distance, label[t] = k;
            }
        }
    }
    for (int64_t k = 0; k < clusters; k++)
        for (int64_t t = 0; t < n; t++)
            if (label[t] == k) order[count++] = t;
    free(label);
    free(centre);
}

static void make_order(const sheet_call *call, const struct plan *plan, int kind)
{
    int64_t before = call->N > plan->text ? call->N - plan->text : 0;

    for (int64_t b = 0; b < call->B; b++) {
        int64_t *order = plan->order + b * call->N;
        for (int64_t t = 0; t < call->N; t++)
            order[t] = t;
        if (kind == GILBERT) order_curve(call, order);
        if (kind == TILE) order_tiles(call, order);
        if (kind == KMEANS && before > 0)
            order_clusters(call, b, before, (before + plan->block_k - 1) / plan->block_k, order);
    }
}

/* ---- importance -------------------------------------------------------------------------------------------------- */

static int64_t end_of(const sheet_call *call, const struct plan *plan, int64_t g)
{
    int64_t end = (plan->first + g + 1) * plan->block_q;

    return end < plan->offset + call->N ? end : plan->offset + call->N;
}

static int64_t visible(const sheet_call *call, const struct plan *plan, int64_t g)
{
    int64_t end = end_of(call, plan, g);

    if (!call->causal) return plan->nk;
    return end > 0 ? (end + plan->block_k - 1) / plan->block_k : 0;
}

/* max over sampled queries of exp(max over samples of block j - max over all samples). */
static void importance_of_samples(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t g,
                                  double *s)
{
    int64_t m = sheet_integer(call, "sample", 0, 0), start = (plan->first + g) * plan->block_q, n;
    int64_t end = end_of(call, plan, g), rows = 0;
    double *best = sheet_zeros(plan->nk);

    if (m == 0) m = plan->block_k / 4;
    n = m < plan->block_q ? m : plan->block_q;
    for (int64_t j = 0; j < plan->nk; j++)
        s[j] = 0;
    for (int64_t r = 0; r <= n; r++) {
        int64_t p = r < n ? start + r * plan->block_q / n : end - 1, i = p - plan->offset;
        double top = -INFINITY;

        if (i < 0 || p >= end || (r == n && rows > 0)) continue; /* the last row where no other is there */
        rows++;
        for (int64_t j = 0; j < visible(call, plan, g); j++) {
            best[j] = -INFINITY;
            for (int64_t o = 0; o < m; o++) {
                int64_t k = j * plan->block_k + o * plan->block_k / m;
                if (k >= call->M || k >= (j + 1) * plan->block_k || (call->causal && k >= end)) continue;
                best[j] = fmax(best[j], sheet_scale(call) *
                                            sheet_dot(query(call, plan, b, h, i), key(call, plan, b, h, k), call->D));
            }
            top = fmax(top, best[j]);
        }
        for (int64_t j = 0; j < visible(call, plan, g); j++)
            s[j] = fmax(s[j], exp(best[j] - top));
    }
    free(best);
}

/* Softmax over sums of antidiagonals of 16 x 16, summed over blocks. */
static void importance_of_antidiagonals(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h,
                                        int64_t g, double *s)
{
    int64_t rows = plan->block_q / 16, columns = (call->M + 15) / 16;
    double *weight = sheet_zeros(columns);

    for (int64_t j = 0; j < plan->nk; j++)
        s[j] = 0;
    for (int64_t t = (plan->first + g) * rows; t < (plan->first + g + 1) * rows; t++) {
        bool there = false;

        for (int64_t u = 0; u < columns; u++) {
            weight[u] = 0;
            for (int64_t n = 0; n < 16; n++) {
                int64_t i = t * 16 + 15 - n - plan->offset, k = u * 16 + n;
                if (i < 0 || i >= call->N) continue;
                there = true;
                if (k < call->M)
                    weight[u] += sheet_scale(call) / 16 *
                                 sheet_dot(query(call, plan, b, h, i), key(call, plan, b, h, k), call->D);
            }
            if (call->causal && u > t) weight[u] = -INFINITY;
        }
        if (!there) continue;
        sheet_softmax(weight, columns, -INFINITY);
        for (int64_t u = 0; u < columns; u++)
            s[u * 16 / plan->block_k] += weight[u];
    }
    free(weight);
}

/* ---- levels ------------------------------------------------------------------------------------------------------ */

static double width_of(const sheet_call *call, int l)
{
    static const double own[] = {0.1, 0.05, 0, 0.2}, causal[] = {0.05, 0.1, 0.1, 0.25};
    int count = sheet_count(call, "widths");

    if (count == 0 || (count == 1 && sheet_number(call, "widths", 0, 0) == 0)) return call->causal ? causal[l] : own[l];
    return l < count ? sheet_number(call, "widths", l, 0) : 0;
}

static double bound_of(const sheet_call *call, int l)
{
    static const double own[] = {0.4, 0.5, 0.6, 0.8};
    int count = sheet_count(call, "bounds");

    return count == 0 ? own[l] : l < count ? sheet_number(call, "bounds", l, 0) : 0;
}

static void levels_of_ranks(const sheet_call *call, const struct plan *plan, int64_t n, const double *s, int64_t *level)
{
    int64_t *rank = (int64_t *)sheet_zeros(n), last = 0;
    double total = 0;

    for (int64_t j = 0; j < n; j++) {
        int64_t better = 0;
        for (int64_t other = 0; other < n; other++)
            better += s[other] > s[j] || (s[other] == s[j] && other < j);
        rank[better] = j;
        total += fmax(s[j], 0);
    }
    for (int l = 0; l < 4; l++) {
        double sum = 0, width = 0;
        int64_t end = 0, within = 0, from = last, step;

        for (int w = 0; w <= l; w++)
            width += width_of(call, w);
        for (int64_t r = 0; r < n; r++) {
            sum += fmax(s[rank[r]], 0);
            within += sum / total <= bound_of(call, l) + (plan->mode == BOUND ? 1e-6 : 0);
        }
        if (plan->mode == TOPK) end = (int64_t)floor((double)n * width + 1e-9);
        if (plan->mode == BOUND) end = within + 1;
        if (plan->mode == ENERGY) end = within;
        if (plan->mode == BOUND && l == 0 && !call->causal) {
            int64_t least = (int64_t)floor((double)n * sheet_number(call, "min_full", 0, 0.06)) + 1;
            if (end < least) end = least;
        }
        if (l == 0 && !call->causal && end < 1) end = 1;
        if (end < from) end = from;
        if (end > n) end = n;
        if (!call->causal && sheet_integer(call, "round", 0, 1)) {
            step = ((1 << l) * sheet_integer(call, "tile", 0, 32) + plan->block_k - 1) / plan->block_k;
            end = from + (end - from + step - 1) / step * step;
            if (end >= n) end = from + (n - from) / step * step;
            if (l == 0 && end < 1) end = 1;
        }
        for (; last < end; last++)
            level[rank[last]] = 1 << l;
    }
    free(rank);
}

static int64_t cap_of(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t j)
{
    static const int64_t other[] = {1, 3, 7};
    int64_t cap = 1;

    for (int l = 0; l < 3; l++) {
        double sum = 0, count = 0;
        for (int64_t k = j * plan->block_k; k + 8 <= call->M && k < (j + 1) * plan->block_k; k += 8, count++) {
            const double *x = key(call, plan, b, h, k), *y = key(call, plan, b, h, k + other[l]);
            double size = sqrt(sheet_dot(x, x, call->D) * sheet_dot(y, y, call->D));
            sum += size > 0 ? sheet_dot(x, y, call->D) / size : 0;
        }
        if (count == 0 || !(sum / count > sheet_number(call, "sim_cap", l, 0))) return cap;
        cap *= 2;
    }
    return cap;
}

static void levels_of_block(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t g,
                            int64_t *level)
{
    const sheet_param *given = sheet_tensor(call, "levels"), *importance = sheet_tensor(call, "importance");
    const sheet_param *param = given ? given : importance;
    int64_t row =
        param ? ((param->dims[0] > 1 ? b : 0) * param->dims[1] + (param->dims[1] > 1 ? h : 0)) * plan->nq + g : 0;
    int64_t start = (plan->first + g) * plan->block_q, end = end_of(call, plan, g), n = visible(call, plan, g);
    double *s = sheet_zeros(plan->nk);

    for (int64_t j = 0; j < plan->nk; j++)
        level[j] = given ? (int64_t)given->data[row * plan->nk + j] : 0;
    if (importance)
        memcpy(s, importance->data + row * plan->nk, (size_t)plan->nk * sizeof *s);
    else if (sheet_integer(call, "estimate", 0, 0))
        importance_of_antidiagonals(call, plan, b, h, g, s);
    else
        importance_of_samples(call, plan, b, h, g, s);
    if (!given) levels_of_ranks(call, plan, n, s, level);
    for (int64_t j = 0; j < n && !given; j++) {
        int64_t from = j * plan->block_k, to = from + plan->block_k < call->M ? from + plan->block_k : call->M;
        bool text = plan->text > 0 && to > call->M - plan->text;
        bool own = call->causal && (j == 0 || (to > start && from < end));
        bool asks = call->causal && plan->text > 0 && end > call->M - plan->text;
        if (text || own || asks) level[j] = 1;
        if (sheet_count(call, "sim_cap") == 3 && level[j] > cap_of(call, plan, b, h, j))
            level[j] = cap_of(call, plan, b, h, j);
    }
    free(s);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

static void attend_row(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t i)
{
    int64_t p = i + call->M - call->N, g = floor_divide(i + plan->offset, plan->block_q) - plan->first, count = 0;
    const int64_t *level = plan->level + ((b * call->H + h) * plan->nq + g) * plan->nk;
    int64_t token = plan->order ? plan->order[b * call->N + i] : i, row = (b * call->H + h) * call->N + token;
    int64_t *from = (int64_t *)sheet_zeros(call->M), *keys = (int64_t *)sheet_zeros(call->M);
    double *logit = sheet_zeros(call->M), lse;

    for (int64_t j = 0; j < plan->nk; j++)
        for (int64_t k = j * plan->block_k; level[j] > 0 && k < (j + 1) * plan->block_k && k < call->M; k += level[j]) {
            int64_t n = k + level[j] < call->M ? level[j] : call->M - k;
            double dot = 0;
            if (call->causal && k + n - 1 > p) continue;
            for (int64_t m = 0; m < n; m++)
                dot += sheet_dot(query(call, plan, b, h, i), key(call, plan, b, h, k + m), call->D) / (double)n;
            logit[count] = sheet_scale(call) * dot + (sheet_integer(call, "log_bias", 0, 1) ? log((double)n) : 0);
            from[count] = k;
            keys[count++] = n;
            for (int64_t m = 0; call->map && m < n; m++)
                call->map[row * call->M + (plan->order ? plan->order[b * call->N + k + m] : k + m)] =
                    (unsigned char)level[j];
        }
    lse = sheet_softmax(logit, count, -INFINITY);
    if (call->lse) call->lse[row] = lse;
    for (int64_t e = 0; e < call->Dv; e++) {
        call->o[row * call->Dv + e] = 0;
        for (int64_t n = 0; n < count; n++)
            for (int64_t m = 0; m < keys[n]; m++)
                call->o[row * call->Dv + e] += logit[n] * value(call, plan, b, h, from[n] + m)[e] / (double)keys[n];
    }
    free(from);
    free(keys);
    free(logit);
}

static bool fits(const sheet_call *call, const struct plan *plan, int kind)
{
    int64_t cells = 1;

    if (plan->block_k % 8) return false;
    if (kind == NONE) return true;
    for (int d = 0; d < sheet_count(call, "grid"); d++)
        cells *= sheet_integer(call, "grid", d, 1);
    if (call->causal || call->N != call->M) return false;
    return kind == KMEANS || (sheet_count(call, "grid") > 0 && cells == call->N - plan->text);
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.block_q = sheet_integer(call, "block_q", 0, 128),
                        .block_k = sheet_integer(call, "block_k", 0, 128),
                        .text = sheet_integer(call, "text", 0, 0),
                        .mode = (int)sheet_integer(call, "mode", 0, AUTO),
                        .offset = call->causal ? call->M - call->N : 0};
    int kind = (int)sheet_integer(call, "order", 0, NONE);
    int64_t rows = call->B * call->H * call->N, *own;

    if (!fits(call, &plan, kind)) return false;
    if (plan.mode == AUTO) plan.mode = call->causal ? TOPK : BOUND;
    plan.first = floor_divide(plan.offset, plan.block_q);
    plan.nq = floor_divide(plan.offset + call->N - 1, plan.block_q) - plan.first + 1;
    plan.nk = (call->M + plan.block_k - 1) / plan.block_k;
    own = (int64_t *)sheet_zeros(call->B * call->H * plan.nq * plan.nk + call->B * call->N);
    plan.level = call->selection ? call->selection : own;
    if (kind != NONE) plan.order = plan.level + call->B * call->H * plan.nq * plan.nk;
    if (!call->selection || !call->frozen) {
        if (kind != NONE) make_order(call, &plan, kind);
        for (int64_t n = 0; n < call->B * call->H * plan.nq; n++)
            levels_of_block(call, &plan, n / plan.nq / call->H, n / plan.nq % call->H, n % plan.nq,
                            plan.level + n * plan.nk);
    }
    if (call->map) memset(call->map, 0, (size_t)(rows * call->M));
    for (int64_t row = 0; row < rows; row++)
        attend_row(call, &plan, row / call->N / call->H, row / call->N % call->H, row % call->N);
    free(own);
    return true;
}

const sheet sheet_psa = {"psa", forward};
