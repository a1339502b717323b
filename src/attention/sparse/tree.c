#include "attention/sparse/tree.h"

#include <float.h>
#include <math.h>

/* Trees of all lists: `top` groups of blocks in a row, and their halves.  A group without blocks has no halves. */
struct trees {
    const fv_tree *tree;
    int64_t rows, lists, top;
    bool scored;       /* groups have scores */
    bool *open;        /* [rows] some group has several blocks */
    int32_t *start[2]; /* [rows,top] of groups, [rows,2 top] of halves: first blocks */
    int32_t *size[2];  /* the same: blocks */
    float *score;      /* [rows,top] */
    fv_tensor halves;  /* [rows,2 top] f32: their scores */
    fv_tensor member;  /* [rows,2 top,block] i32: keys to be scored, -1: none */
    fv_tensor best;    /* [rows,top] i32: halves that stay */
};

static int64_t representative(const struct trees *t, int64_t start, int64_t size)
{
    if (t->tree->rep == FV_TREE_FIRST) return start;
    return t->tree->rep == FV_TREE_CENTRE ? start + size / 2 : start + size - 1;
}

/* Whether a half is known by the block that its group was known by. */
static bool inherits(const struct trees *t, int64_t half)
{
    int64_t group = half / 2;

    return t->scored && representative(t, t->start[0][group], t->size[0][group]) ==
                            representative(t, t->start[1][half], t->size[1][half]);
}

static void begin(void *user, int64_t row, int thread)
{
    struct trees *t = user;
    int64_t keys = fv_max(t->tree->end[row % t->lists] - t->tree->first, 0);
    int64_t blocks = fv_ceil_div(keys, t->tree->block);

    (void)thread;
    for (int64_t n = 0; n < t->top; n++) {
        int64_t start = n * blocks / t->top;
        t->start[0][row * t->top + n] = (int32_t)start;
        t->size[0][row * t->top + n] = (int32_t)((n + 1) * blocks / t->top - start);
    }
    t->open[row] = blocks > t->top;
}

static void split(void *user, int64_t row, int thread)
{
    struct trees *t = user;
    int64_t block = t->tree->block, end = t->tree->end[row % t->lists];

    (void)thread;
    for (int64_t half = 2 * row * t->top; half < 2 * (row + 1) * t->top; half++) {
        int64_t start = t->start[0][half / 2], size = t->size[0][half / 2], left = size / 2;
        int32_t *member = (int32_t *)t->member.data + half * block;
        t->start[1][half] = (int32_t)(half % 2 ? start + left : start);
        t->size[1][half] = (int32_t)(half % 2 ? size - left : left);
        bool fresh = t->size[1][half] > 0 && t->open[row] && !inherits(t, half);
        int64_t key = t->tree->first + representative(t, t->start[1][half], t->size[1][half]) * block;
        for (int64_t m = 0; m < block; m++)
            member[m] = fresh && key + m < end ? (int32_t)(key + m) : -1;
    }
}

/* Halves that are there can be chosen, whatever their scores are; others cannot. */
static void settle(void *user, int64_t row, int thread)
{
    struct trees *t = user;
    float *score = t->halves.data;

    (void)thread;
    for (int64_t half = 2 * row * t->top; half < 2 * (row + 1) * t->top; half++) {
        if (t->size[1][half] == 0)
            score[half] = -INFINITY;
        else if (inherits(t, half))
            score[half] = t->score[half / 2];
        else
            score[half] = fmaxf(score[half], -FLT_MAX);
    }
}

static void keep(void *user, int64_t row, int thread)
{
    struct trees *t = user;

    (void)thread;
    t->open[row] = false;
    for (int64_t group = row * t->top; group < (row + 1) * t->top; group++) {
        int64_t best = ((int32_t *)t->best.data)[group], half = 2 * row * t->top + best;
        t->start[0][group] = best < 0 ? 0 : t->start[1][half];
        t->size[0][group] = best < 0 ? 0 : t->size[1][half];
        t->score[group] = best < 0 ? 0 : ((float *)t->halves.data)[half];
        t->open[row] = t->open[row] || t->size[0][group] > 1;
    }
}

static void hand_out(void *user, int64_t row, int thread)
{
    struct trees *t = user;
    int64_t plane = row / t->lists, heads = t->tree->chosen.dims[1], count = 0;
    int32_t *to = fv_at(&t->tree->chosen, plane / heads, plane % heads, row % t->lists, 0);

    (void)thread;
    for (int64_t group = row * t->top; group < (row + 1) * t->top; group++)
        if (t->size[0][group] > 0) to[count++] = t->start[0][group];
    for (; count < t->top; count++)
        to[count] = -1;
}

static fv_status new_trees(fv_ctx *ctx, const fv_tree *tree, struct trees *t)
{
    int64_t lists = tree->chosen.dims[2], rows = tree->chosen.dims[0] * tree->chosen.dims[1] * lists;
    int64_t top = tree->chosen.dims[3];

    *t = (struct trees){.tree = tree, .rows = rows, .lists = lists, .top = top};
    FV_TRY(FV_SCRATCH(ctx, t->open, rows));
    for (int n = 0; n < 2; n++) {
        FV_TRY(FV_SCRATCH(ctx, t->start[n], rows * (n + 1) * top));
        FV_TRY(FV_SCRATCH(ctx, t->size[n], rows * (n + 1) * top));
    }
    FV_TRY(FV_SCRATCH(ctx, t->score, rows * top));
    FV_TRY(fv_tensor_new(ctx, &t->halves, FV_F32, FV_DIMS(rows, 2 * top)));
    FV_TRY(fv_tensor_new(ctx, &t->best, FV_I32, FV_DIMS(rows, top)));
    return fv_tensor_new(ctx, &t->member, FV_I32, FV_DIMS(rows, 2 * top, tree->block));
}

static fv_status score(fv_ctx *ctx, const struct trees *t)
{
    const int64_t *d = t->tree->x.dims;
    fv_tensor keys = fv_expanded(&t->tree->k, 2);
    fv_match_args match = {.x = t->tree->x,
                           .y = fv_expanded(&keys, 2),
                           .index =
                               fv_reshaped(&t->member, FV_DIMS(d[0], d[1], d[2], d[3], 2 * t->top, t->tree->block)),
                           .out = fv_reshaped(&t->halves, FV_DIMS(d[0], d[1], d[2], d[3], 2 * t->top))};

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_match(ctx, &match));
    return FV_OK;
}

static bool any(const bool *open, int64_t rows)
{
    while (rows > 0 && !open[rows - 1])
        rows--;
    return rows > 0;
}

fv_status fv_tree_search(fv_ctx *ctx, const fv_tree *tree)
{
    struct trees t;

    FV_TRY(new_trees(ctx, tree, &t));
    fv_run(ctx, t.rows, begin, &t);
    for (; any(t.open, t.rows); t.scored = true) {
        FV_TRY(fv_ctx_check(ctx));
        fv_run(ctx, t.rows, split, &t);
        FV_TRY(score(ctx, &t));
        fv_run(ctx, t.rows, settle, &t);
        FV_TRY(fv_select(ctx, &(fv_select_args){.scores = t.halves, .index = t.best}));
        fv_run(ctx, t.rows, keep, &t);
    }
    fv_run(ctx, t.rows, hand_out, &t);
    return FV_OK;
}
