/* DHSA (sheet 022): a network judges the gaps between keys, greedy suppression leaves chunks, chunks are scored by
 * their means against a query block's mean, and the block reads the best tokens within a budget.  Or, by its newer
 * form, chunks are scored by the columns and diagonals that the last query block attends to. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

enum { AVG_NORM, AVG, MAX };

struct plan {
    int64_t block, budget, local, global, instruction, chunk, blocks;
    int64_t *chosen; /* [B,blocks,M] keys, -1 behind the last */
};

/* Coordinate d of query i, or key j, averaged over heads. */
static double mean_q(const sheet_call *call, int64_t b, int64_t i, int64_t d)
{
    double sum = 0;

    for (int64_t h = 0; h < call->H; h++)
        sum += sheet_q(call, b, h, i)[d] / (double)call->H;
    return sum;
}

static double mean_k(const sheet_call *call, int64_t b, int64_t j, int64_t d)
{
    double sum = 0;

    for (int64_t g = 0; g < call->Hkv; g++)
        sum += sheet_k(call, b, g * (call->H / call->Hkv), j)[d] / (double)call->Hkv;
    return sum;
}

/* ---- the network ------------------------------------------------------------------------------------------------- */

static double element(const sheet_call *call, const char *name, int64_t n, double otherwise)
{
    const sheet_param *param = sheet_tensor(call, name);

    return param ? param->data[n] : otherwise;
}

/* out [n] = weight [n,m] in + bias */
static void layer(const sheet_call *call, const char *weight, const char *bias, const double *in, int64_t m,
                  double *out, int64_t n)
{
    for (int64_t r = 0; r < n; r++)
        out[r] = element(call, bias, r, 0) + sheet_dot(sheet_tensor(call, weight)->data + r * m, in, m);
}

/* Attention of 4 heads among `rows` tokens, qkv [rows,3C]; out [rows,C]. */
static void attend_window(const double *qkv, int64_t rows, int64_t C, double *out)
{
    int64_t width = C / 4;

    for (int64_t a = 0; a < 4; a++)
        for (int64_t r = 0; r < rows; r++) {
            double *weights = sheet_zeros(rows);

            for (int64_t s = 0; s < rows; s++)
                weights[s] = sheet_dot(qkv + r * 3 * C + a * width, qkv + s * 3 * C + C + a * width, width) /
                             sqrt((double)width);
            sheet_softmax(weights, rows, -INFINITY);
            for (int64_t d = a * width; d < (a + 1) * width; d++) {
                out[r * C + d] = 0;
                for (int64_t s = 0; s < rows; s++)
                    out[r * C + d] += weights[s] * qkv[s * 3 * C + 2 * C + d];
            }
            free(weights);
        }
}

static void normalise(const sheet_call *call, double *x, int64_t C)
{
    double mean = 0, variance = 0;

    for (int64_t d = 0; d < C; d++)
        mean += x[d] / (double)C;
    for (int64_t d = 0; d < C; d++)
        variance += (x[d] - mean) * (x[d] - mean) / (double)C;
    for (int64_t d = 0; d < C; d++)
        x[d] = (x[d] - mean) / sqrt(variance + 1e-5) * element(call, "p.norm_weight", d, 1) +
               element(call, "p.norm_bias", d, 0);
}

/* The logit of a boundary behind key j. */
static double judge(const sheet_call *call, int64_t b, int64_t j, int64_t w)
{
    int64_t C = call->Hkv * call->D, rows = 2 * w;
    double *qkv = sheet_zeros(rows * 3 * C), *seen = sheet_zeros(rows * C), *z = sheet_zeros(C),
           *token = sheet_zeros(C);
    double *feature = sheet_zeros(4 * C + 1), hidden[256], *l = feature, *r = feature + C, logit;

    for (int64_t n = 0; n < rows; n++) {
        int64_t key = j - w + 1 + n;

        for (int64_t c = 0; c < C; c++)
            token[c] =
                key < 0 || key >= call->M ? 0 : sheet_k(call, b, c / call->D * (call->H / call->Hkv), key)[c % call->D];
        layer(call, "p.qkv_weight", "p.qkv_bias", token, C, qkv + n * 3 * C, 3 * C);
    }
    attend_window(qkv, rows, C, seen);
    for (int64_t n = 0; n < rows; n++) {
        layer(call, "p.out_weight", "p.out_bias", seen + n * C, C, z, C);
        normalise(call, z, C);
        for (int64_t c = 0; c < C; c++)
            (n < w ? l : r)[c] += z[c] / (double)w;
    }
    for (int64_t c = 0; c < C; c++) {
        feature[2 * C + c] = fabs(l[c] - r[c]);
        feature[3 * C + c] = l[c] * r[c];
    }
    feature[4 * C] = sheet_dot(l, r, C) / fmax(sqrt(sheet_dot(l, l, C)), 1e-6) / fmax(sqrt(sheet_dot(r, r, C)), 1e-6);
    layer(call, "p.fc1_weight", "p.fc1_bias", feature, 4 * C + 1, hidden, 256);
    for (int n = 0; n < 256; n++)
        hidden[n] = fmax(hidden[n], 0);
    layer(call, "p.fc2_weight", "p.fc2_bias", hidden, 256, &logit, 1);
    free(qkv);
    free(seen);
    free(z);
    free(token);
    free(feature);
    return logit;
}

/* ---- boundaries -------------------------------------------------------------------------------------------------- */

/* first[j] is set where a chunk begins at key j. */
static void suppress(const sheet_call *call, const struct plan *plan, const double *logits, bool *first)
{
    int64_t M = call->M, w = sheet_integer(call, "reach", 0, 4), half = sheet_integer(call, "half_width", 0, 8);
    int64_t most = 8 * (M / plan->block), count = 0;
    bool *accepted = (bool *)sheet_zeros(M);

    if (plan->instruction > 0 && plan->instruction < M) accepted[M - plan->instruction - 1] = true, count++;
    while (count < most) {
        int64_t best = -1;

        for (int64_t j = w - 1; j < M - w; j++) {
            bool near = false;

            for (int64_t other = 0; other < M; other++)
                near = near || (accepted[other] && llabs(j - other) <= half);
            if (near || !(logits[j] >= (float)sheet_number(call, "threshold", 0, 1.1))) continue;
            if (best < 0 || logits[j] > logits[best]) best = j;
        }
        if (best < 0) break;
        accepted[best] = true;
        count++;
    }
    for (int64_t j = 0; j < M; j++)
        first[j] = j == 0 || accepted[j - 1];
    free(accepted);
}

static void cut(const sheet_call *call, const struct plan *plan, int64_t b, bool *first)
{
    const sheet_param *given = sheet_tensor(call, "boundaries"), *logits = sheet_tensor(call, "boundary_logits");
    double *own = sheet_zeros(call->M);

    for (int64_t j = 0; j < call->M; j++)
        first[j] = j % plan->chunk == 0;
    if (given) {
        for (int64_t j = 0; j < call->M; j++)
            first[j] = false;
        for (int64_t n = 0; n + 1 < given->dims[0]; n++)
            first[(int64_t)given->data[n]] = true;
    } else if (logits) {
        suppress(call, plan, logits->data + b * call->M, first);
    } else if (sheet_tensor(call, "p.qkv_weight")) {
        for (int64_t j = 0; j < call->M; j++)
            own[j] = judge(call, b, j, sheet_integer(call, "reach", 0, 4));
        suppress(call, plan, own, first);
    }
    free(own);
}

/* ---- the choice by chunks ---------------------------------------------------------------------------------------- */

/* What rows from .. end - 1 of a kind amount to in coordinate d. */
static double pool(const sheet_call *call, int64_t b, bool keys, int64_t from, int64_t end, int64_t d)
{
    int64_t kind = sheet_integer(call, "pool", 0, AVG_NORM);
    double most = -INFINITY, sum = 0, length = (double)(end - from);

    for (int64_t n = from; n < end; n++) {
        double x = keys ? mean_k(call, b, n, d) : mean_q(call, b, n, d);

        most = fmax(most, x);
        sum += x;
    }
    return kind == MAX ? most : kind == AVG ? sum / length : sum / length * sqrt(length);
}

static void choose_by_chunks(const sheet_call *call, const struct plan *plan, int64_t b, int64_t block,
                             const bool *first, bool *taken)
{
    int64_t end = (block + 1) * plan->block < call->M ? (block + 1) * plan->block : call->M;
    int64_t strict = sheet_integer(call, "strict", 0, 0), from = (block - strict) * plan->block, count = 0;
    int64_t to = from + plan->block < call->N ? from + plan->block : call->N;
    double *score = sheet_zeros(end);

    for (int64_t j = 0; j < end; j++)
        taken[j] = end <= plan->budget || (strict && block == 0) || j < plan->global || j >= end - plan->local;
    for (int64_t j = 0; j < end; j++)
        count += taken[j];
    for (int64_t j = 0; j < end && count < plan->budget && count < end;
         j++) { /* what the block may not read stands for nothing */
        int64_t head = j, tail = j + 1;

        while (!first[head])
            head--;
        while (tail < end && !first[tail])
            tail++;
        for (int64_t d = 0; d < call->D; d++)
            score[j] += pool(call, b, false, from, to, d) * pool(call, b, true, head, tail, d);
        if (head < j) score[j] = score[head];
    }
    while (count < plan->budget && count < end) {
        int64_t best = -1;

        for (int64_t j = 0; j < end; j++)
            if (!taken[j] && (best < 0 || score[j] > score[best])) best = j;
        taken[best] = true;
        count++;
    }
    free(score);
}

/* ---- the choice by columns and diagonals ------------------------------------------------------------------------- */

/* Sets all but the `kept` largest of n to 0; ties to the lower. */
static void keep_largest(double *x, int64_t n, int64_t kept)
{
    bool *stays = (bool *)sheet_zeros(n);

    for (int64_t round = 0; round < kept; round++) {
        int64_t best = -1;

        for (int64_t j = 0; j < n; j++)
            if (!stays[j] && (best < 0 || x[j] > x[best])) best = j;
        if (best >= 0) stays[best] = true;
    }
    for (int64_t j = 0; j < n; j++)
        x[j] = stays[j] ? x[j] : 0;
    free(stays);
}

static int64_t target(const sheet_call *call, const struct plan *plan)
{
    int64_t chunks = (call->M + plan->chunk - 1) / plan->chunk;
    int64_t wanted = (int64_t)(sheet_number(call, "density", 0, 0.125) * (double)chunks);

    return wanted > 1 ? wanted : 1;
}

static void lines(const sheet_call *call, const struct plan *plan, int64_t b, double *column, double *diagonal)
{
    int64_t budget = target(call, plan) * plan->chunk, columns;
    double *weights = sheet_zeros(call->M);

    if (budget > call->M) budget = call->M;
    columns = (int64_t)(sheet_number(call, "vertical", 0, 0.5) * (double)budget);
    for (int64_t h = 0; h < call->H; h++)
        for (int64_t i = (plan->blocks - 1) * plan->block; i < call->N; i++) {
            for (int64_t j = 0; j <= i; j++)
                weights[j] = sheet_scale(call) * sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
            sheet_softmax(weights, i + 1, -INFINITY);
            for (int64_t j = 0; j <= i; j++) {
                column[j] += weights[j];
                diagonal[i - j] += weights[j];
            }
        }
    keep_largest(column, call->M, columns);
    keep_largest(diagonal, call->M, budget - columns);
    free(weights);
}

static void choose_by_lines(const sheet_call *call, const struct plan *plan, const double *column,
                            const double *diagonal, int64_t block, bool *taken)
{
    int64_t end = (block + 1) * plan->block < call->M ? (block + 1) * plan->block : call->M;
    int64_t chunks = (end + plan->chunk - 1) / plan->chunk, wanted = target(call, plan), count = 2;
    double *score = sheet_zeros(chunks);
    bool *chosen = (bool *)sheet_zeros(chunks);

    for (int64_t c = 0; c < chunks; c++) {
        int64_t from = c * plan->chunk, to = from + plan->chunk;

        for (int64_t j = from; j < to && j < call->M; j++)
            score[c] += column[j];
        for (int64_t distance = 0; distance < call->M; distance++) {
            bool crosses = false;

            for (int64_t i = block * plan->block; i < (block + 1) * plan->block; i++)
                crosses = crosses || (i - distance >= from && i - distance < to);
            if (crosses) score[c] += diagonal[distance];
        }
        chosen[c] = chunks <= wanted || c == 0 || c == chunks - 1;
    }
    for (; count < wanted && chunks > wanted; count++) {
        int64_t best = -1;

        for (int64_t c = 0; c < chunks; c++)
            if (!chosen[c] && (best < 0 || score[c] > score[best])) best = c;
        chosen[best] = true;
    }
    for (int64_t j = 0; j < end; j++)
        taken[j] = chosen[j / plan->chunk];
    free(score);
    free(chosen);
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

static void choose(const sheet_call *call, const struct plan *plan, int64_t b)
{
    bool *first = (bool *)sheet_zeros(call->M), *taken = (bool *)sheet_zeros(call->M);
    double *column = sheet_zeros(call->M), *diagonal = sheet_zeros(call->M);
    int64_t vs = sheet_integer(call, "score", 0, 0);

    if (vs)
        lines(call, plan, b, column, diagonal);
    else
        cut(call, plan, b, first);
    for (int64_t block = 0; block < plan->blocks; block++) {
        int64_t *list = plan->chosen + (b * plan->blocks + block) * call->M, count = 0;

        memset(taken, 0, (size_t)call->M * sizeof *taken);
        if (vs)
            choose_by_lines(call, plan, column, diagonal, block, taken);
        else
            choose_by_chunks(call, plan, b, block, first, taken);
        for (int64_t j = 0; j < call->M; j++)
            if (taken[j]) list[count++] = j;
        while (count < call->M)
            list[count++] = -1;
    }
    free(first);
    free(taken);
    free(column);
    free(diagonal);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    const int64_t *list = plan->chosen + (b * plan->blocks + p / plan->block) * call->M;

    (void)h;
    if (j > p) return false;
    if (p >= call->M - plan->instruction) return true;
    if (sheet_integer(call, "score", 0, 0) && p / plan->block == plan->blocks - 1) return true;
    for (int64_t n = 0; n < call->M && list[n] >= 0; n++)
        if (list[n] == j) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.block = sheet_integer(call, "block", 0, 256),
                        .budget = sheet_integer(call, "budget", 0, 2048),
                        .local = sheet_integer(call, "local", 0, 128),
                        .global = sheet_integer(call, "global", 0, 128),
                        .instruction = sheet_integer(call, "instruction", 0, 64),
                        .chunk = sheet_integer(call, "chunk", 0, 64)};
    int64_t *own;
    bool done;

    if (call->N != call->M || plan.budget < plan.local + plan.global) return false;
    plan.blocks = (call->N + plan.block - 1) / plan.block;
    own = (int64_t *)sheet_zeros(call->B * plan.blocks * call->M);
    plan.chosen = call->selection ? call->selection : own;
    for (int64_t b = 0; !(call->selection && call->frozen) && b < call->B; b++)
        choose(call, &plan, b);
    done = sheet_attend(call, sees, &plan);
    free(own);
    return done;
}

const sheet sheet_dhsa = {"dhsa", forward};
