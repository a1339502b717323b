/* Radial attention: the paper's mask of tokens (P) and the released mask of blocks (C). */
#include <math.h>
#include <stdlib.h>

#include "sheets.h"

struct video {
    int64_t f, s, B, blocks, border;
    double decay;
    bool sink, half;
    unsigned char *kept; /* [blocks, blocks], form C */
};

static int64_t bits(int64_t x)
{
    int64_t n = 0;

    while (x >> n)
        n++;
    return n;
}

static bool token_pair(const struct video *v, int64_t i, int64_t k, int64_t j, int64_t l)
{
    int64_t d = llabs((long long)(i - j)), p = 1;

    while (2 * p <= d)
        p *= 2;
    if (j == 0 && v->sink) return true;
    if (p <= v->s && (double)llabs((long long)(k - l)) + 1 <= (double)v->s / (double)p) return true;
    return d % ((p + v->s - 1) / v->s) == 0 && k == l;
}

/* Whether token k of frame i sees l of frame j before blocks are made of it. */
static bool banded(const struct video *v, int64_t i, int64_t k, int64_t j, int64_t l)
{
    int64_t d = llabs((long long)(i - j));
    double length, width, apart = (double)llabs((long long)(k - l));

    if (d == 0 || (j == 0 && v->sink)) return true;
    if (d == 1) return !v->half || apart <= (double)(v->s / 2);
    length = pow(2, (double)bits(v->s)) / pow(2, (double)bits(d));
    if (length < 128 && d % (int64_t)(128 / length) != 0) return false;
    width = v->decay * length;
    if (width < (double)v->B) width = (double)v->B;
    return apart <= width;
}

/* One block of the grid that a pair of frames is laid on. */
static bool fills(const struct video *v, int64_t i, int64_t j, int64_t a, int64_t c)
{
    int64_t row_skip = i * v->s % v->B, column_skip = j * v->s % v->B, some = 0, many = 0;

    for (int64_t y = 0; y < v->B; y++) {
        int64_t l = c * v->B + y - column_skip, seen = 0;
        for (int64_t x = 0; x < v->B; x++) {
            int64_t k = a * v->B + x - row_skip;
            if (k >= 0 && k < v->s && l >= 0 && l < v->s && banded(v, i, k, j, l)) seen++;
        }
        some += seen > 0;
        many += (double)seen / (double)v->B > 1.0 / 3;
    }
    return (double)many / ((double)some + 1e-9) > 0.6;
}

static void keep(struct video *v)
{
    int64_t each = (v->s + v->B - 1) / v->B;

    for (int64_t i = 0; i < v->f; i++)
        for (int64_t j = 0; j < v->f; j++)
            for (int64_t a = 0; a < each; a++)
                for (int64_t c = 0; c < each; c++) {
                    int64_t row = i * v->s / v->B + a, column = j * v->s / v->B + c;
                    if (row < v->blocks && column < v->blocks && fills(v, i, j, a, c))
                        v->kept[row * v->blocks + column] = 1;
                }
    for (int64_t x = 0; x < v->blocks; x++)
        for (int64_t y = 0; y < v->blocks; y++)
            if (x == y || x >= v->border || y >= v->border) v->kept[x * v->blocks + y] = 1;
}

static bool sees(const sheet_call *call, const void *plan, int64_t b, int64_t h, int64_t p, int64_t j)
{
    const struct video *v = plan;

    (void)call, (void)b, (void)h;
    if (v->kept) return v->kept[p / v->B * v->blocks + j / v->B];
    if (p >= v->f * v->s || j >= v->f * v->s) return true;
    return token_pair(v, p / v->s, p % v->s, j / v->s, j % v->s);
}

static bool forward(sheet_call *call)
{
    int64_t video = call->N - sheet_integer(call, "text", 0, 0);
    struct video v = {.f = sheet_integer(call, "frames", 0, 1),
                      .B = sheet_integer(call, "block", 0, 128),
                      .decay = sheet_number(call, "decay", 0, 1),
                      .sink = sheet_integer(call, "sink", 0, 1) == 1,
                      .half = sheet_integer(call, "near", 0, 0) == 1};
    bool done;

    if (call->causal || call->N != call->M || video < v.f || video % v.f != 0 || v.decay <= 0) return false;
    v.s = video / v.f;
    v.blocks = (call->N + v.B - 1) / v.B;
    v.border = video / v.B;
    if (sheet_integer(call, "form", 0, 0) == 0) {
        v.kept = calloc((size_t)(v.blocks * v.blocks), 1);
        if (!v.kept) abort();
        keep(&v);
    }
    done = sheet_attend(call, sees, &v);
    free(v.kept);
    return done;
}

const sheet sheet_radial = {"radial", forward};
