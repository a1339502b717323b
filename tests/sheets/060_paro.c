/* PAROAttention (sheet 060): tokens behind the text in one of six orders of their axes for each head, a mask of blocks
 * of the reordered array, and, if asked for, q, k and v in few bits and weights truncated to 127 steps of the largest.
 */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

/* What is chosen of a head: the order, and a row of bits for each row of blocks. */
struct plan {
    int64_t block, blocks;
    const int64_t *chosen; /* [B,H,1 + blocks] */
};

/* token[n]: the token at place n of an order. */
static void read_tokens(const sheet_call *call, int64_t order, int64_t *token)
{
    static const char *const names[] = {"FHW", "FWH", "HWF", "HFW", "WHF", "WFH"};
    int64_t text = sheet_integer(call, "text", 0, 0), size[3], at[3];
    int64_t n = 0;

    for (int a = 0; a < 3; a++)
        size[a] = sheet_integer(call, "grid", a, 1);
    for (; n < text; n++)
        token[n] = n;
    for (; n < call->N; n++) {
        int64_t rest = n - text;
        for (int a = 2; a >= 0; a--) { /* the last axis of the name runs fastest */
            int axis = names[order][a] == 'F' ? 0 : names[order][a] == 'H' ? 1 : 2;
            at[axis] = rest % size[axis];
            rest /= size[axis];
        }
        token[n] = text + (at[0] * size[1] + at[1]) * size[2] + at[2];
    }
}

/* Sum and largest of the weights in block (r, c) of the dense attention of a head, `rows` by `columns` of them. */
static void weigh(const sheet_call *call, const struct plan *plan, const int64_t *token, int64_t b, int64_t h,
                  double *sum, double *most)
{
    double *row = sheet_zeros(call->N);

    for (int64_t i = 0; i < call->N; i++) {
        for (int64_t j = 0; j < call->N; j++)
            row[j] =
                sheet_scale(call) * sheet_dot(sheet_q(call, b, h, token[i]), sheet_k(call, b, h, token[j]), call->D);
        sheet_softmax(row, call->N, -INFINITY);
        for (int64_t j = 0; j < call->N; j++) {
            int64_t at = i / plan->block * plan->blocks + j / plan->block;

            sum[at] += row[j];
            most[at] = fmax(most[at], row[j]);
        }
    }
    free(row);
}

static int64_t length(const sheet_call *call, const struct plan *plan, int64_t block)
{
    int64_t rest = call->N - block * plan->block;

    return rest < plan->block ? rest : plan->block;
}

/* The order whose ranks by empty blocks (the more the better) and by unevenness (the less) sum to the least. */
static int64_t calibrate(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h)
{
    int64_t count = plan->blocks * plan->blocks, best = 0, least = INT64_MAX, *token;
    double empty[6] = {0}, uneven[6] = {0};

    token = (int64_t *)sheet_zeros(call->N);
    for (int64_t order = 0; order < 6; order++) {
        double *sum = sheet_zeros(count), *most = sheet_zeros(count);

        read_tokens(call, order, token);
        weigh(call, plan, token, b, h, sum, most);
        for (int64_t n = 0; n < count; n++) {
            double rows = (double)length(call, plan, n / plan->blocks);
            double mean = sum[n] / rows / (double)length(call, plan, n % plan->blocks);

            empty[order] += sum[n] < 0.1 / (double)plan->blocks * rows;
            uneven[order] += most[n] / mean / (double)count;
        }
        free(sum);
        free(most);
    }
    for (int64_t order = 0; order < 6; order++) {
        int64_t rank = 0;

        for (int64_t other = 0; other < 6; other++)
            rank += (empty[other] > empty[order]) + (uneven[other] < uneven[order] * (1 - 1e-6));
        if (rank < least) {
            least = rank;
            best = order;
        }
    }
    free(token);
    return best;
}

/* Whether block n is among the `top` heaviest, ties to the lower. */
static bool heavy(const double *sum, int64_t count, int64_t n, int64_t top)
{
    int64_t better = 0;

    for (int64_t m = 0; m < count; m++)
        better += sum[m] > sum[n] || (sum[m] == sum[n] && m < n);
    return better < top;
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, int64_t *chosen)
{
    const sheet_param *mask = sheet_tensor(call, "mask");
    int64_t n = plan->blocks, given = sheet_count(call, "order"), text = sheet_integer(call, "text", 0, 0);
    int64_t order = given ? sheet_integer(call, "order", (int)(h % given), 0) : 0;
    double density = sheet_number(call, "density", 0, 1), *sum = sheet_zeros(n * n), *most = sheet_zeros(n * n);
    int64_t *token = (int64_t *)sheet_zeros(call->N);

    chosen[0] = order < 0 ? calibrate(call, plan, b, h) : order;
    read_tokens(call, chosen[0], token);
    if (!mask && density < 1) weigh(call, plan, token, b, h, sum, most);
    for (int64_t r = 0; r < n; r++) {
        chosen[1 + r] = 0;
        for (int64_t c = 0; c < n; c++) {
            bool on = r * plan->block < text || c * plan->block < text || r == n - 1 || c == n - 1;

            if (mask) {
                int64_t plane = (mask->dims[0] > 1 ? b : 0) * mask->dims[1] + (mask->dims[1] > 1 ? h : 0);
                on = on || mask->data[(plane * n + r) * n + c] != 0;
            } else {
                on = on || density >= 1 || heavy(sum, n * n, r * n + c, (int64_t)ceil(density * (double)(n * n)));
            }
            chosen[1 + r] |= (int64_t)on << c;
        }
    }
    free(sum);
    free(most);
    free(token);
}

/* Rows of x [N,width] in whole steps of the largest magnitude among `group` rows (of each channel if apart). */
static void quantise(double *x, int64_t rows, int64_t width, int64_t group, bool apart, double steps)
{
    for (int64_t first = 0; first < rows; first += group)
        for (int64_t c = 0; c < width; c += apart ? 1 : width) {
            int64_t end = first + group < rows ? first + group : rows, channels = apart ? 1 : width;
            double most = 0;

            for (int64_t i = first; i < end; i++)
                for (int64_t e = c; e < c + channels; e++)
                    most = fmax(most, fabs(x[i * width + e]));
            for (int64_t i = first; i < end && most > 0; i++)
                for (int64_t e = c; e < c + channels; e++)
                    x[i * width + e] = nearbyint(x[i * width + e] / (most / steps)) * (most / steps);
        }
}

/* The rows of a head in the order of reading. */
static double *read_rows(int64_t N, int64_t width, const double *from, const int64_t *token)
{
    double *rows = sheet_zeros(N * width);

    for (int64_t n = 0; n < N * width; n++)
        rows[n] = from[token[n / width] * width + n % width];
    return rows;
}

static void smooth(double *k, int64_t N, int64_t D)
{
    for (int64_t d = 0; d < D; d++) {
        double mean = 0;

        for (int64_t j = 0; j < N; j++)
            mean += k[j * D + d] / (double)N;
        for (int64_t j = 0; j < N; j++)
            k[j * D + d] -= mean;
    }
}

/* Row i of a head, both in the order of reading. */
static void attend_row(const sheet_call *call, const double *q, const double *k, const double *v, int64_t b, int64_t h,
                       int64_t i, const int64_t *token, const struct plan *plan, const int64_t *chosen)
{
    bool eight = sheet_integer(call, "pv_bits", 0, 0) > 0;
    double *s = sheet_zeros(call->N), *o = sheet_o(call, b, h, token[i]), top = -INFINITY, total = 0, shift = 0;

    for (int64_t j = 0; j < call->N; j++) {
        bool seen = chosen[1 + i / plan->block] >> (j / plan->block) & 1;

        s[j] = seen ? sheet_scale(call) * sheet_dot(q + i * call->D, k + j * call->D, call->D) : -INFINITY;
        top = fmax(top, s[j]);
        if (call->map) call->map[((b * call->H + h) * call->N + token[i]) * call->N + token[j]] = seen;
    }
    for (int64_t e = 0; e < call->Dv; e++)
        o[e] = 0;
    for (int64_t j = 0; j < call->N; j++) {
        double weight = exp(s[j] - top);

        total += weight;
        if (eight) weight = trunc(127 * weight) / 127;
        for (int64_t e = 0; e < call->Dv; e++)
            o[e] += weight * v[j * call->Dv + e];
    }
    for (int64_t e = 0; e < call->Dv; e++)
        o[e] /= total;
    for (int64_t j = 0; sheet_integer(call, "smooth_k", 0, 0) && j < call->N; j++) /* what smoothing took */
        shift += sheet_scale(call) * sheet_dot(sheet_q(call, b, h, token[i]), sheet_k(call, b, h, j), call->D) /
                 (double)call->N;
    if (call->lse) call->lse[(b * call->H + h) * call->N + token[i]] = top + log(total) + shift;
    free(s);
}

static void attend_head(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h)
{
    static const double steps[] = {0, 127, 7};
    const int64_t *chosen = plan->chosen + (b * call->H + h) * (1 + plan->blocks);
    int64_t N = call->N, *token = (int64_t *)sheet_zeros(N), keys = sheet_integer(call, "k_group", 0, 64);
    double qk = steps[sheet_integer(call, "qk_bits", 0, 0)], *q, *k, *v;

    read_tokens(call, chosen[0], token);
    q = read_rows(N, call->D, sheet_q(call, b, h, 0), token);
    k = read_rows(N, call->D, sheet_k(call, b, h, 0), token);
    v = read_rows(N, call->Dv, sheet_v(call, b, h, 0), token);
    if (sheet_integer(call, "smooth_k", 0, 0)) smooth(k, N, call->D);
    if (qk > 0) quantise(q, N, call->D, sheet_integer(call, "q_group", 0, 32), false, qk);
    if (qk > 0) quantise(k, N, call->D, keys, false, qk);
    if (sheet_integer(call, "pv_bits", 0, 0)) quantise(v, N, call->Dv, keys, true, 127);
    for (int64_t i = 0; i < N; i++)
        attend_row(call, q, k, v, b, h, i, token, plan, chosen);
    free(q);
    free(k);
    free(v);
    free(token);
}

static bool forward(sheet_call *call)
{
    int64_t cells = sheet_integer(call, "text", 0, 0), block = sheet_integer(call, "block", 0, 64);
    struct plan plan = {block, (call->N + block - 1) / block, NULL};
    int64_t *own, *chosen;

    cells += sheet_integer(call, "grid", 0, 0) * sheet_integer(call, "grid", 1, 0) * sheet_integer(call, "grid", 2, 0);
    if (call->causal || sheet_count(call, "grid") != 3 || call->N != call->M || call->H != call->Hkv) return false;
    if (cells != call->N || plan.blocks > 62) return false;
    own = (int64_t *)sheet_zeros(call->B * call->H * (1 + plan.blocks));
    chosen = call->selection ? call->selection : own;
    plan.chosen = chosen;
    for (int64_t head = 0; head < call->B * call->H; head++) {
        if (!(call->selection && call->frozen))
            choose(call, &plan, head / call->H, head % call->H, chosen + head * (1 + plan.blocks));
        attend_head(call, &plan, head / call->H, head % call->H);
    }
    free(own);
    return true;
}

const sheet sheet_paro = {"paro", forward};
