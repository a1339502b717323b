/* Radial attention: the band of a frame that another frame reads halves whenever their distance in time doubles, and
 * beyond that whole pairs of frames are thinned out.  arXiv 2506.19852; form=block is the released block mask. */
#include <math.h>

#include "attention/mechanism.h"

struct radial {
    int64_t frames, text, block;
    int form, near;
    bool sink;
    double decay;
};

enum { BLOCK, TOKEN };
enum { FULL, HALF };

#define THINNING 128 /* a band shorter than this makes pairs of frames rarer */

static const char *const forms[] = {"block", "token", NULL};
static const char *const nears[] = {"full", "half", NULL};

static const fv_option options[] = {
    FV_INT_REQUIRED(struct radial, frames, 1, INT32_MAX,
                    "frames of the video, which the tokens run through one by one"),
    FV_INT(struct radial, text, 0, 0, INT32_MAX, "last tokens, which read and are read by all"),
    FV_ENUM(struct radial, form, "block", forms,
            "block: whole blocks, those that the bands mostly fill; token: exactly the bands"),
    FV_INT(struct radial, block, 128, 1, INT32_MAX, "tokens of a block (form=block)"),
    FV_FLOAT(struct radial, decay, 1, 0, 1e6, "scales the bands (form=block); more than 0"),
    FV_BOOL(struct radial, sink, 1, "everyone reads the first frame"),
    FV_ENUM(struct radial, near, "full", nears, "what neighbouring frames read of one another (form=block)"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct radial *o = values;

    if (o->decay == 0) return fv_fail(FV_E_USAGE, "radial: option 'decay': expected more than 0, got 0");
    if (o->form == TOKEN && (o->near == HALF || o->decay != 1))
        return fv_fail(FV_E_USAGE, "radial: options 'near' and 'decay' need form=block");
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct radial *o = call->options;

    if (call->keys > o->text && (call->keys - o->text) % o->frames == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "radial: expected %lld frames of equal length and %lld tokens of text, got %lld tokens",
                   (long long)o->frames, (long long)o->text, (long long)call->keys);
}

/* ---- token by token ---------------------------------------------------------------------------------------------- */

struct video {
    const struct radial *options;
    int64_t length, tokens, keys; /* of a frame, of all of them, with text */
};

/* With p the power of two at or below the distance of the frames: |k - l| + 1 <= length / p, or, where no token is that
 * near, k = l in every ceil(p / length)-th frame. */
static void fill(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const struct video *v = user;
    int64_t frame = i / v->length, k = i % v->length;

    (void)head;
    fv_key_row_add(row, i < v->tokens ? v->tokens : 0, v->keys);
    for (int64_t j = 0; i < v->tokens && j < v->options->frames; j++) {
        int64_t distance = frame > j ? frame - j : j - frame, p = 1, reach, start = j * v->length;
        while (2 * p <= distance)
            p *= 2;
        reach = v->length / p - 1;
        if (j == 0 && v->options->sink) reach = v->length;
        if (reach >= 0)
            fv_key_row_add(row, start + fv_max(k - reach, 0), start + fv_min(k + reach + 1, v->length));
        else if (distance % fv_ceil_div(p, v->length) == 0)
            fv_key_row_add(row, start + k, start + k + 1);
    }
}

/* ---- block by block ---------------------------------------------------------------------------------------------- */

static int bit_length(int64_t x)
{
    int n = 0;

    for (; x > 0; x /= 2)
        n++;
    return n;
}

/* How far apart in their frames tokens may be that see one another; -1: none do. */
static int64_t reach_of(const struct video *v, int64_t i, int64_t j)
{
    const struct radial *o = v->options;
    int64_t distance = i > j ? i - j : j - i;
    double length = ldexp(1, bit_length(v->length) - bit_length(distance));

    if (distance == 0 || (j == 0 && o->sink)) return v->length;
    if (distance == 1) return o->near == HALF ? v->length / 2 : v->length;
    if (length < THINNING && distance % (int64_t)(THINNING / length) != 0) return -1;
    return (int64_t)fmin(fmax(o->decay * length, (double)o->block), (double)v->length);
}

/* Whether the band fills a block: rows from..to-1 of one frame and columns of another.  Of the columns that hold
 * anything more than three fifths must be visible to more than a third of the block's rows. */
static bool fills(const struct video *v, int64_t reach, const int64_t rows[2], const int64_t columns[2])
{
    int64_t some = 0, many = 0;

    for (int64_t l = fv_max(columns[0], rows[0] - reach); l < fv_min(columns[1], rows[1] + reach); l++) {
        int64_t seen = fv_min(rows[1], l + reach + 1) - fv_max(rows[0], l - reach);
        some += seen > 0;
        many += 3 * seen > v->options->block;
    }
    return 5 * many > 3 * some;
}

/* The part of a frame, 0..length, in block n of those it touches; its first token is `skip` into block 0. */
static void part(const struct video *v, int64_t skip, int64_t n, int64_t range[2])
{
    range[0] = fv_max(n * v->options->block - skip, 0);
    range[1] = fv_min((n + 1) * v->options->block - skip, v->length);
}

/* Of a pair of frames ceil(length / block) blocks each way count, although they may touch one more. */
static void add_pair(const struct video *v, int64_t own, int64_t i, int64_t j, fv_list_builder *lists)
{
    int64_t block = v->options->block, blocks = fv_ceil_div(v->length, block), reach = reach_of(v, i, j);
    int64_t n = own - i * v->length / block, first = j * v->length / block, rows[2], columns[2];

    if (reach < 0 || n >= blocks) return;
    part(v, i * v->length % block, n, rows);
    for (int64_t m = 0; m < blocks; m++) {
        part(v, j * v->length % block, m, columns);
        if (fills(v, reach, rows, columns)) fv_lists_add(lists, first + m);
    }
}

static void add_row(const struct video *v, int64_t own, fv_list_builder *lists)
{
    int64_t block = v->options->block, frames = v->options->frames, border = v->tokens / block;

    fv_lists_add(lists, own);
    fv_lists_add_range(lists, own < border ? border : 0, lists->key_blocks);
    if (own >= border) return;
    for (int64_t i = own * block / v->length; i < frames && i * v->length < (own + 1) * block; i++)
        for (int64_t j = 0; j < frames; j++)
            add_pair(v, own, i, j, lists);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct radial *o = call->options;
    int64_t tokens = call->keys - o->text;
    struct video v = {.options = o, .length = tokens / o->frames, .tokens = tokens, .keys = call->keys};
    fv_list_builder lists;

    (void)attend;
    if (o->form == TOKEN) return fv_key_rows_plan(ctx, 1, call->queries, call->keys, fill, &v, plan_);
    FV_TRY(fv_lists_begin(
        ctx, &lists,
        &(fv_list_shape){
            .query_block = o->block, .key_block = o->block, .queries = call->queries, .keys = call->keys}));
    for (int64_t own = 0; own < lists.groups; own++) {
        fv_lists_row(&lists);
        add_row(&v, own, &lists);
    }
    return fv_lists_end(&lists, plan_);
}

const fv_mechanism fv_mechanism_radial = {
    .name = "radial",
    .title = "Radial attention",
    .paper = "arXiv 2506.19852",
    .sheet = 79,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "token k of frame i sees l of frame j, d = |i - j|, s tokens a frame, p the power of two at or below d: iff "
        "|k - l| < s / p, or k = l and d mod ceil(p / s) = 0, or j = 0 (sink); form=block keeps whole blocks of "
        "bands of half width max(decay 2^(bits(s) - bits(d)), block)",
    .cost = "at most 4 N s log2(frames) pairs (form=token)",
    .options = options,
    .options_size = sizeof(struct radial),
    .check = check,
    .accept = accept,
    .plan = plan,
};
