/* HiP, version 1.1 (sheet 080): a query block keeps the K_b best halves of K_b groups of key blocks until all groups
 * are single blocks; it reads them, the sinks, and the window before its last row.  As a sequence of decoding steps
 * every row is a block of its own, and a search is used for `refresh` steps, the window's begin staying where it was.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sheets.h"

struct plan {
    int64_t k, block_q, block_k, window, sink, stride, rep, share, refresh;
    int64_t wanted;        /* K_b */
    const int64_t *chosen; /* [B,H,N,K_b]: a row for each query block, numbered by its first query here */
};

/* The query block of query i: its rows here, and how many keys its search sees. */
struct group {
    int64_t first, end, seen;
};

static struct group group_of(const sheet_call *call, const struct plan *plan, int64_t i)
{
    int64_t offset = call->M - call->N, made = 0;
    struct group g = {i, i + 1, 0};

    if (call->decode) {
        for (int64_t step = 0; step <= i; step++) {
            int64_t keys = step + offset + 1;
            if (made > 0 && keys - made < plan->refresh) continue;
            made = keys > 0 ? keys : 0;
            g.first = step;
        }
        g.seen = made;
        return g;
    }
    while (g.first > 0 && floor((double)(g.first - 1 + offset) / (double)plan->block_q) ==
                              floor((double)(i + offset) / (double)plan->block_q))
        g.first--;
    while (g.end < call->N && floor((double)(g.end + offset) / (double)plan->block_q) ==
                                  floor((double)(i + offset) / (double)plan->block_q))
        g.end++;
    g.seen = g.end + offset;
    return g;
}

/* Whether row i of a group searches. */
static bool searches(const sheet_call *call, const struct plan *plan, const struct group *g, int64_t i)
{
    int64_t offset = call->M - call->N, any = 0, block = call->decode ? 1 : plan->block_q;

    if (call->decode) return i == g->first;
    for (int64_t r = g->first; r < g->end; r++)
        any += (r + offset) % block % plan->stride == plan->stride - 1;
    return any ? (i + offset) % block % plan->stride == plan->stride - 1 : i == g->end - 1;
}

/* The largest product of a searching row, of all heads of the group if they share, with a key of block c. */
static double score(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, const struct group *g,
                    int64_t c)
{
    int64_t per = call->H / call->Hkv, from = plan->share ? h / per * per : h, to = plan->share ? from + per : h + 1;
    double best = -INFINITY;

    for (int64_t head = from; head < to; head++)
        for (int64_t i = g->first; i < g->end; i++)
            for (int64_t m = 0; m < plan->block_k; m++) {
                int64_t j = plan->sink + c * plan->block_k + m;
                if (j < g->seen - plan->window && searches(call, plan, g, i))
                    best = fmax(best, sheet_dot(sheet_q(call, b, head, i), sheet_k(call, b, h, j), call->D));
            }
    return best;
}

static bool all_read(const struct plan *plan, const struct group *g)
{
    return g->seen - plan->window - plan->sink <= plan->k;
}

static void choose(const sheet_call *call, const struct plan *plan, int64_t b, int64_t h, const struct group *g,
                   int64_t *chosen)
{
    int64_t K = plan->wanted, keys = g->seen - plan->window - plan->sink, blocks, largest = 2;
    int64_t *start = (int64_t *)sheet_zeros(4 * K), *size = (int64_t *)sheet_zeros(4 * K);
    double *scores = sheet_zeros(2 * K);

    blocks = (keys + plan->block_k - 1) / plan->block_k;
    for (int64_t n = 0; n < K; n++) {
        start[n] = n * blocks / K;
        size[n] = (n + 1) * blocks / K - start[n];
    }
    while (largest > 1) {
        int64_t kept = 0;
        for (int64_t c = 0; c < 2 * K; c++) {
            int64_t left = size[c / 2] / 2;
            start[2 * K + c] = c % 2 ? start[c / 2] + left : start[c / 2];
            size[2 * K + c] = c % 2 ? size[c / 2] - left : left;
        }
        for (int64_t c = 0; c < 2 * K; c++) {
            int64_t first = start[2 * K + c], length = size[2 * K + c];
            int64_t known = plan->rep == 0 ? first : plan->rep == 1 ? first + length / 2 : first + length - 1;
            scores[c] = length > 0 ? score(call, plan, b, h, g, known) : -INFINITY;
        }
        largest = 0;
        for (int64_t c = 0; c < 2 * K; c++) {
            int64_t better = 0;
            for (int64_t other = 0; other < 2 * K; other++)
                better += scores[other] > scores[c] || (scores[other] == scores[c] && other < c);
            if (better >= K) continue;
            start[kept] = start[2 * K + c]; /* not yet read behind c / 2 < c */
            size[kept] = size[2 * K + c];
            largest = size[kept] > largest ? size[kept] : largest;
            kept++;
        }
    }
    memcpy(chosen, start, (size_t)K * sizeof *chosen);
    free(start);
    free(size);
    free(scores);
}

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    struct group g = group_of(call, plan, p - (call->M - call->N));
    const int64_t *chosen = plan->chosen + ((b * call->H + h) * call->N + g.first) * plan->wanted;

    if (j > p) return false;
    if (j < plan->sink || j >= g.seen - plan->window || all_read(plan, &g)) return true;
    for (int64_t n = 0; n < plan->wanted; n++)
        if (chosen[n] == (j - plan->sink) / plan->block_k) return true;
    return false;
}

static bool forward(sheet_call *call)
{
    struct plan plan = {.k = sheet_integer(call, "k", 0, 512),
                        .block_q = sheet_integer(call, "block_q", 0, 32),
                        .block_k = sheet_integer(call, "block_k", 0, 2),
                        .window = sheet_integer(call, "window", 0, 128),
                        .sink = sheet_integer(call, "sink", 0, 0),
                        .stride = sheet_integer(call, "stride", 0, 2),
                        .rep = sheet_integer(call, "rep", 0, 0),
                        .share = sheet_integer(call, "share_heads", 0, 0),
                        .refresh = sheet_integer(call, "refresh", 0, 8)};
    int64_t rows = call->B * call->H * call->N, *own, *chosen;

    if (plan.k % plan.block_k != 0) return false;
    plan.wanted = plan.k / plan.block_k;
    if (call->M - plan.window - plan.sink <= plan.k) plan.wanted = 0; /* nobody searches */
    own = (int64_t *)sheet_zeros(rows * plan.wanted);
    chosen = call->selection ? call->selection : own;
    plan.chosen = chosen;
    for (int64_t row = 0; !(call->selection && call->frozen) && plan.wanted > 0 && row < rows; row++) {
        struct group g = group_of(call, &plan, row % call->N);
        memset(chosen + row * plan.wanted, 0, (size_t)plan.wanted * sizeof *chosen);
        if (row % call->N == g.first && !all_read(&plan, &g))
            choose(call, &plan, row / call->N / call->H, row / call->N % call->H, &g, chosen + row * plan.wanted);
    }
    sheet_attend(call, sees, &plan);
    free(own);
    return true;
}

const sheet sheet_hip = {"hip", forward};
