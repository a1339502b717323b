/* VMoBA (sheet 020): tokens in blocks of one, two or three dimensions, gates by mean keys, and a cut through the sorted
 * gates of a scope; the own block is always read.  Causal calls are MoBA. */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct vmoba {
    int64_t blocks, length; /* tokens of a block; the last one may be shorter */
    int64_t *block_of;      /* [M] */
    int64_t grid[3], tile[3];
    bool own;
};

enum { HEAD_GLOBAL, QUERY_HEAD, BLOCK, OVERALL };

/* The gate of a row's block: where it stands among all, and in the order of its scope. */
struct gate {
    double value;
    int64_t at, h, c, place;
};

static bool read_options(const sheet_call *call, struct vmoba *s)
{
    int64_t partition = sheet_integer(call, "partition", 0, 0), tokens;

    if (partition == 3) partition = sheet_integer(call, "layer", 0, 0) % 3;
    s->own = call->N == call->M;
    s->length = sheet_integer(call, "block", 0, 512);
    s->block_of = (int64_t *)sheet_zeros(call->M);
    s->blocks = (call->M + s->length - 1) / s->length;
    for (int64_t j = 0; j < call->M; j++)
        s->block_of[j] = j / s->length;
    if (partition == 0) return true;
    for (int d = 0; d < 3; d++)
        s->grid[d] = sheet_integer(call, "grid", d, 0);
    for (int d = 0; d < 3; d++)
        s->tile[d] = partition == 2 ? sheet_integer(call, "tile3", d, 0)
                     : d == 0       ? s->grid[0]
                                    : sheet_integer(call, "tile2", d - 1, 0);
    tokens = s->grid[0] * s->grid[1] * s->grid[2];
    s->length = s->tile[0] * s->tile[1] * s->tile[2];
    if (!s->own || tokens != call->N || s->length == 0) return false;
    s->blocks = tokens / s->length;
    for (int64_t j = 0; j < call->M; j++) {
        int64_t t = j / s->grid[2] / s->grid[1], y = j / s->grid[2] % s->grid[1], x = j % s->grid[2];
        int64_t rows = s->grid[1] / s->tile[1], columns = s->grid[2] / s->tile[2];

        s->block_of[j] = (t / s->tile[0] * rows + y / s->tile[1]) * columns + x / s->tile[2];
    }
    return true;
}

/* Queries come in the order of their blocks: flat places in a scope count them so. */
static int64_t place_of(const struct vmoba *s, int64_t i)
{
    int64_t place = 0;

    if (!s->own) return i;
    for (int64_t j = 0; s->block_of[j] < s->block_of[i] || j < i; j++)
        place += s->block_of[j] < s->block_of[i] || (s->block_of[j] == s->block_of[i] && j < i);
    return place;
}

static double gate_of(const sheet_call *call, const struct vmoba *s, int64_t b, int64_t h, int64_t i, int64_t c)
{
    double sum = 0;
    int64_t members = 0;

    for (int64_t j = 0; j < call->M; j++) {
        if (s->block_of[j] != c) continue;
        sum += sheet_dot(sheet_q(call, b, h, i), sheet_k(call, b, h, j), call->D);
        members++;
    }
    return sum / (double)members;
}

/* Falling gates; of equal ones by block, head, place. */
static int by_gate(const void *x, const void *y)
{
    const struct gate *a = x, *b = y;

    if (a->value != b->value) return a->value > b->value ? -1 : 1;
    if (a->c != b->c) return a->c < b->c ? -1 : 1;
    if (a->h != b->h) return a->h < b->h ? -1 : 1;
    return a->place < b->place ? -1 : a->place > b->place;
}

/* How many of the gates of other blocks, sorted, are taken. */
static int64_t cut(const sheet_call *call, const struct gate *gates, int64_t count, const double *own, int64_t owns,
                   int64_t queries, int64_t blocks)
{
    double low = INFINITY, high = -INFINITY, den, total = 0, of_own = 0, sum = 0, rest;
    double tau = sheet_number(call, "tau", 0, 0.25);
    int64_t top = sheet_integer(call, "top", 0, 3);

    if (sheet_integer(call, "select", 0, 0) == 1) {
        int64_t wanted = (top < blocks ? top : blocks) * queries - owns;

        if (top == 1 && owns > 0 && sheet_integer(call, "dense_if_empty", 0, 0)) return count;
        return wanted < count ? wanted : count;
    }
    for (int64_t n = 0; n < count + owns; n++) {
        double g = n < count ? gates[n].value : own[n - count];

        low = fmin(low, g);
        high = fmax(high, g);
    }
    den = high - low <= 1e-6 ? 1 : high - low;
    for (int64_t n = 0; n < count + owns; n++)
        total += ((n < count ? gates[n].value : own[n - count]) - low) / den;
    for (int64_t n = 0; n < owns; n++)
        of_own += (own[n] - low) / den;
    rest = fmax(0, tau - of_own / (total + 1e-6));
    for (int64_t n = 0; n < count && tau < 1; n++) {
        sum += (gates[n].value - low) / den;
        if (sum / (total + 1e-6) >= rest) return n + 1;
    }
    return count;
}

static int64_t scopes_of(const sheet_call *call, const struct vmoba *s, int64_t scope)
{
    switch (scope) {
    case HEAD_GLOBAL: return call->B * call->H;
    case QUERY_HEAD: return call->B * call->H * call->N;
    case BLOCK: return call->B * s->blocks;
    default: return call->B;
    }
}

static int64_t scope_of(const sheet_call *call, const struct vmoba *s, int64_t scope, int64_t b, int64_t h, int64_t c,
                        int64_t i)
{
    switch (scope) {
    case HEAD_GLOBAL: return b * call->H + h;
    case QUERY_HEAD: return (b * call->H + h) * call->N + i;
    case BLOCK: return b * s->blocks + c;
    default: return b;
    }
}

/* chosen [B,H,N,blocks] becomes 1 where a block is read. */
static void choose(const sheet_call *call, const struct vmoba *s, double *chosen)
{
    int64_t scope = sheet_integer(call, "scope", 0, 0), scopes = scopes_of(call, s, scope);
    int64_t all = call->B * call->H * call->N * s->blocks;
    double *value = sheet_zeros(all), *own = sheet_zeros(all);
    struct gate *gates = calloc((size_t)all + 1, sizeof *gates);

    for (int64_t n = 0; n < all; n++)
        value[n] = gate_of(call, s, n / s->blocks / call->N / call->H, n / s->blocks / call->N % call->H,
                           n / s->blocks % call->N, n % s->blocks);
    for (int64_t g = 0; g < scopes; g++) {
        int64_t count = 0, owns = 0, taken;

        for (int64_t n = 0; n < all; n++) {
            int64_t c = n % s->blocks, i = n / s->blocks % call->N, h = n / s->blocks / call->N % call->H;
            int64_t b = n / s->blocks / call->N / call->H;

            if (scope_of(call, s, scope, b, h, c, i) != g) continue;
            if (s->own && s->block_of[i] == c) {
                own[owns++] = value[n];
                chosen[n] = 1;
            } else {
                gates[count++] = (struct gate){value[n], n, h, c, place_of(s, i)};
            }
        }
        qsort(gates, (size_t)count, sizeof *gates, by_gate);
        taken = cut(call, gates, count, own, owns, (count + owns) / s->blocks, s->blocks);
        for (int64_t n = 0; n < taken; n++)
            chosen[gates[n].at] = 1;
    }
    free(value);
    free(own);
    free(gates);
}

struct plan {
    const struct vmoba *s;
    const double *chosen;
};

static bool sees(const sheet_call *call, const void *plan_, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct plan *plan = plan_;
    int64_t i = p - (call->M - call->N);

    return plan->chosen[((b * call->H + h) * call->N + i) * plan->s->blocks + plan->s->block_of[j]] > 0;
}

/* Ids of a row, ascending, -1 behind them, from what is chosen, or back. */
static void convert(const sheet_call *call, const struct vmoba *s, double *chosen)
{
    for (int64_t row = 0; row < call->B * call->H * call->N; row++) {
        int64_t *ids = call->selection + row * s->blocks, count = 0;

        for (int64_t n = 0; call->frozen && n < s->blocks && ids[n] >= 0; n++)
            chosen[row * s->blocks + ids[n]] = 1;
        for (int64_t c = 0; !call->frozen && c < s->blocks; c++)
            if (chosen[row * s->blocks + c] > 0) ids[count++] = c;
        while (!call->frozen && count < s->blocks)
            ids[count++] = -1;
    }
}

static bool forward(sheet_call *call)
{
    struct vmoba s;
    bool done = read_options(call, &s), moba = sheet_integer(call, "partition", 0, 0) % 3 == 0;
    double *chosen = sheet_zeros(call->B * call->H * call->N * s.blocks);

    moba = moba && sheet_integer(call, "select", 0, 0) == 1 && sheet_integer(call, "scope", 0, 0) == QUERY_HEAD;
    if (done && call->causal) {
        done = moba && sheet_moba.forward(call);
    } else if (done) {
        if (!(call->selection && call->frozen)) choose(call, &s, chosen);
        if (call->selection) convert(call, &s, chosen);
        done = sheet_attend(call, sees, &(struct plan){&s, chosen});
    }
    free(chosen);
    free(s.block_of);
    return done;
}

const sheet sheet_vmoba = {"vmoba", forward};
