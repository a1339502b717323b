/* Attention tiles of video: a frame reads itself and a few reference frames, which read and are read by all.
 * Efficient-vDiT, arXiv 2502.06155. */
#include "attention/mechanism.h"

struct frame_tile {
    int64_t frames, refs, text, block;
};

static const fv_option options[] = {
    FV_INT_REQUIRED(struct frame_tile, frames, 1, INT32_MAX,
                    "F, frames of the video, which the tokens run through one by one"),
    FV_INT_REQUIRED(struct frame_tile, refs, 1, INT32_MAX,
                    "k, which places reference frames at multiples of ceil(F / k); F: dense"),
    FV_INT(struct frame_tile, text, 0, 0, INT32_MAX, "last tokens, which read and are read by all"),
    FV_INT(struct frame_tile, block, 0, 0, INT32_MAX,
           "b: of each b x b tile with a visible pair every pair is computed; 0: exactly the visible ones"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct frame_tile *o = values;

    if (o->refs <= o->frames) return FV_OK;
    return fv_fail(FV_E_USAGE, "frame_tile: option 'refs': expected at most the frames, %lld, got %lld",
                   (long long)o->frames, (long long)o->refs);
}

static fv_status accept(fv_call *call)
{
    const struct frame_tile *o = call->options;

    if (call->keys > o->text && (call->keys - o->text) % o->frames == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE,
                   "frame_tile: expected %lld frames of equal length and %lld tokens of text, got %lld tokens",
                   (long long)o->frames, (long long)o->text, (long long)call->keys);
}

/* Where things are: frame f holds tokens f * length .., every spacing-th is a reference. */
struct video {
    int64_t frames, length, spacing, keys;
};

static struct video video_of(const fv_call *call)
{
    const struct frame_tile *o = call->options;

    return (struct video){.frames = o->frames,
                          .length = (call->keys - o->text) / o->frames,
                          .spacing = fv_ceil_div(o->frames, o->refs),
                          .keys = call->keys};
}

/* The keys that some query of from .. to-1 sees: all of them, or those of its frames, of reference frames and of text;
 * `add` receives ranges. */
typedef void add_fn(void *to, int64_t from, int64_t end);
static void visible(const struct video *v, int64_t from, int64_t to, add_fn *add, void *user)
{
    int64_t first = from / v->length, last = (to - 1) / v->length;

    if (last >= v->frames || fv_ceil_div(first, v->spacing) * v->spacing <= last) {
        add(user, 0, v->keys);
        return;
    }
    add(user, first * v->length, (last + 1) * v->length);
    for (int64_t f = 0; f < v->frames; f += v->spacing)
        add(user, f * v->length, (f + 1) * v->length);
    add(user, v->frames * v->length, v->keys);
}

static void add_keys(void *row, int64_t from, int64_t to)
{
    fv_key_row_add(row, from, to);
}

static void fill(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    (void)head;
    visible(user, i, i + 1, add_keys, row);
}

static void add_blocks(void *lists, int64_t from, int64_t to)
{
    int64_t block = ((fv_list_builder *)lists)->key_block;

    if (from < to) fv_lists_add_range(lists, from / block, fv_ceil_div(to, block));
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    const struct frame_tile *o = call->options;
    struct video v = video_of(call);
    fv_list_builder lists;

    (void)attend;
    if (o->block == 0) return fv_key_rows_plan(ctx, 1, call->queries, call->keys, fill, &v, plan_);
    FV_TRY(fv_lists_begin(
        ctx, &lists,
        &(fv_list_shape){
            .query_block = o->block, .key_block = o->block, .queries = call->queries, .keys = call->keys}));
    for (int64_t g = 0; g < lists.groups; g++) {
        fv_lists_row(&lists);
        visible(&v, g * o->block, fv_min((g + 1) * o->block, call->queries), add_blocks, &lists);
    }
    return fv_lists_end(&lists, plan_);
}

const fv_mechanism fv_mechanism_frame_tile = {
    .name = "frame_tile",
    .title = "Attention tiles of video frames (Efficient-vDiT)",
    .paper = "arXiv 2502.06155",
    .sheet = 39,
    .family = FV_STATIC_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula =
        "a token of frame f sees one of frame g iff f = g, or g or f is one of R = {i ceil(F / k) < F}; text sees "
        "and is seen by all",
    .cost = "N^2 (1 - (F - k) (F - k - 1) / F^2) pairs",
    .options = options,
    .options_size = sizeof(struct frame_tile),
    .check = check,
    .accept = accept,
    .plan = plan,
};
