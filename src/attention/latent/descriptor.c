/* Descriptors: tokens of many frames read every frame through a copy of its patches at a lower resolution, and a few
 * frames in full; in chunks of frames, those that came so far.  FlashVGGT, arXiv 2512.01540. */
#include "attention/mechanism.h"

struct descriptor {
    fv_tuple grid;
    int64_t special, ratio, chunk, memory_drop;
    int compress;
    fv_list keyframes;
    bool dedup;
    double rope_base;
};

enum { BILINEAR, MEAN, NEAREST };
enum { Q_NORM_WEIGHT, Q_NORM_BIAS, K_NORM_WEIGHT, K_NORM_BIAS };

#define NORM_EPSILON 1e-5f

static const char *const compressions[] = {"bilinear", "mean", "nearest", NULL};

static const fv_option options[] = {
    FV_SIDES(struct descriptor, grid, "frames x rows x columns", NULL, 1, INT32_MAX,
             "frames x rows x columns of patches"),
    FV_INT(struct descriptor, special, 5, 0, INT32_MAX, "tokens of a frame before its patches"),
    FV_INT(struct descriptor, ratio, 4, 1, INT32_MAX, "how many times fewer descriptors than patches, on each side"),
    FV_ENUM(struct descriptor, compress, "bilinear", compressions, "how descriptors are made of patches"),
    FV_LIST(struct descriptor, keyframes, "0", -1, INT32_MAX,
            "frames that are read in full as well, unless ratio is 1; -1: none"),
    FV_BOOL(struct descriptor, dedup, 0, "a frame that is listed twice counts once"),
    FV_INT(struct descriptor, chunk, 0, 0, INT32_MAX, "frames that come together and read no later ones; 0: all"),
    FV_INT(struct descriptor, memory_drop, 1, 1, INT32_MAX, "every so many frames of a chunk have descriptors"),
    FV_FLOAT(struct descriptor, rope_base, 0, 0, 1e9, "rotation by row (first half) and column (second); 0: none"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("q_norm_weight", "[D]", "layer norm of queries (none)"),
    FV_PARAM("q_norm_bias", "[D]", "its bias (0)"),
    FV_PARAM("k_norm_weight", "[D]", "layer norm of keys (none)"),
    FV_PARAM("k_norm_bias", "[D]", "its bias (0)"),
    {0},
};

/* ---- sizes ------------------------------------------------------------------------------------------------------- */

/* What the options amount to. */
struct shape {
    int64_t frames, height, width, patches, tokens; /* tokens of a frame */
    int64_t out_height, out_width, kept;            /* descriptors; kept: keys of a frame */
    int64_t keyframes;                              /* keys of frames in full */
    int64_t sources;                                /* frames that have descriptors */
};

static bool has_descriptors(const struct descriptor *o, int64_t frame)
{
    return o->chunk == 0 || frame % o->chunk % o->memory_drop == 0;
}

/* Whether keyframe n of the list is read in full. */
static bool is_read(const struct descriptor *o, int n)
{
    bool counts = o->ratio > 1 && o->keyframes.items[n] >= 0;

    for (int m = 0; m < n && o->dedup; m++)
        counts &= o->keyframes.items[m] != o->keyframes.items[n];
    return counts;
}

static struct shape shape_of(const struct descriptor *o)
{
    const int64_t *grid = o->grid.items;
    struct shape s = {.frames = grid[0], .height = grid[1], .width = grid[2], .patches = grid[1] * grid[2]};

    s.tokens = o->special + s.patches;
    s.out_height = s.height / o->ratio;
    s.out_width = s.width / o->ratio;
    s.kept = o->special + s.out_height * s.out_width;
    for (int n = 0; n < o->keyframes.count; n++)
        s.keyframes += is_read(o, n) ? s.patches : 0;
    for (int64_t f = 0; f < s.frames; f++)
        s.sources += has_descriptors(o, f);
    return s;
}

static fv_status check(const void *values)
{
    const struct descriptor *o = values;
    const int64_t *grid = o->grid.items;
    const fv_list *keyframes = &o->keyframes;
    int64_t patches;

    if (o->ratio > fv_min(grid[1], grid[2]))
        return fv_fail(FV_E_USAGE, "descriptor: option 'ratio': expected at most the %lld patches of a side, got %lld",
                       (long long)fv_min(grid[1], grid[2]), (long long)o->ratio);
    if (o->memory_drop > 1 && o->chunk == 0)
        return fv_fail(FV_E_USAGE, "descriptor: option 'memory_drop' needs 'chunk'");
    for (int n = 0; n < keyframes->count; n++) {
        if (keyframes->items[n] < 0 && keyframes->count > 1)
            return fv_fail(FV_E_USAGE, "descriptor: option 'keyframes': -1, for none, stands with others");
        if (keyframes->items[n] > 0 && o->chunk > 0)
            return fv_fail(FV_E_USAGE, "descriptor: option 'keyframes': with 'chunk' expected 0, got %lld",
                           (long long)keyframes->items[n]);
    }
    if (fv_mul_i64(grid[1], grid[2], &patches) && fv_mul_i64(patches + o->special, grid[0], &patches)) return FV_OK;
    return fv_fail(FV_E_USAGE, "descriptor: option 'grid': more cells than can be counted");
}

static fv_status accept(fv_call *call)
{
    const struct descriptor *o = call->options;
    struct shape s = {.frames = o->grid.items[0], .tokens = o->special + o->grid.items[1] * o->grid.items[2]};

    if (s.frames * s.tokens != call->keys)
        return fv_fail(FV_E_SHAPE, "descriptor: expected %lld frames of %lld tokens, which are %lld, got %lld",
                       (long long)s.frames, (long long)s.tokens, (long long)(s.frames * s.tokens),
                       (long long)call->keys);
    for (int n = 0; n < o->keyframes.count; n++)
        if (o->keyframes.items[n] >= s.frames)
            return fv_fail(FV_E_SHAPE, "descriptor: option 'keyframes': expected at most %lld, got %lld",
                           (long long)s.frames - 1, (long long)o->keyframes.items[n]);
    if (o->rope_base > 0 && call->head_dim % 4 != 0)
        return fv_fail(FV_E_SHAPE, "descriptor: 'rope_base': expected a head dim that 4 divides, got %lld",
                       (long long)call->head_dim);
    return FV_OK;
}

/* ---- keys and values --------------------------------------------------------------------------------------------- */

/* Cells of ratio x ratio patches: columns first, then rows. */
static fv_status average(fv_ctx *ctx, const struct shape *s, int64_t ratio, const fv_tensor *x, const fv_tensor *out)
{
    static const int by_column[] = {0, 1, 2, 4, 3, 5};
    const int64_t *d = x->dims;
    int64_t rows = s->out_height * ratio;
    fv_tensor image = fv_parted(x, 3, s->width), cells = fv_parted(out, 3, s->out_width), columns;

    image = fv_slice(&image, 3, 0, rows);
    image = fv_slice(&image, 4, 0, s->out_width * ratio);
    FV_TRY(fv_tensor_new(ctx, &columns, FV_F32, FV_DIMS(d[0], d[1], d[2], rows, s->out_width, d[4])));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.x = image, .out = columns, .block = ratio}));
    return fv_pool_rows(
        ctx,
        &(fv_pool_args){.x = fv_permuted(&columns, by_column), .out = fv_permuted(&cells, by_column), .block = ratio});
}

/* Rows of x [B,Hkv,frames,tokens,C] to those of frames, out [..,kept,C]. */
static fv_status compress(fv_ctx *ctx, const struct descriptor *o, const struct shape *s, const fv_tensor *x,
                          const fv_tensor *out)
{
    fv_tensor patches = fv_slice(x, 3, o->special, s->patches);
    fv_tensor cells = fv_slice(out, 3, o->special, s->kept - o->special);
    fv_resize_args resize = {.x = patches,
                             .out = cells,
                             .grid_height = s->height,
                             .grid_width = s->width,
                             .out_height = s->out_height,
                             .out_width = s->out_width,
                             .nearest = o->compress == NEAREST};

    if (o->special > 0)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.x = fv_slice(x, 3, 0, o->special), .out = fv_slice(out, 3, 0, o->special)}));
    if (o->ratio == 1) return fv_map_apply(ctx, &(fv_map_args){.x = patches, .out = cells});
    return o->compress == MEAN ? average(ctx, s, o->ratio, &patches, &cells) : fv_resize_rows(ctx, &resize);
}

/* The tokens of the frames that have descriptors: all, or gathered. */
static fv_status find_sources(fv_ctx *ctx, const struct descriptor *o, const struct shape *s, const fv_tensor *x,
                              fv_tensor *sources)
{
    fv_tensor index;
    int32_t *at;

    *sources = *x;
    if (s->sources == s->frames) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(s->sources * s->tokens)));
    at = index.data;
    for (int64_t token = 0; token < s->frames * s->tokens; token++)
        if (has_descriptors(o, token / s->tokens)) *at++ = (int32_t)token;
    FV_TRY(fv_tensor_new(ctx, sources, FV_F32, FV_DIMS(x->dims[0], x->dims[1], index.dims[0], x->dims[3])));
    return fv_gather(ctx, &(fv_gather_args){.x = *x, .index = index, .out = *sources});
}

/* Of x [B,Hkv,M,C] first the patches of frames in full, then every frame's. */
static fv_status make_rows(fv_ctx *ctx, const fv_call *call, const struct shape *s, const fv_tensor *given,
                           fv_tensor *out)
{
    const struct descriptor *o = call->options;
    int64_t rows = s->keyframes + s->sources * s->kept, at = 0;
    fv_tensor x, sources, place;

    FV_TRY(fv_as_f32(ctx, given, &x));
    FV_TRY(fv_tensor_new(ctx, out, FV_F32, FV_DIMS(call->batch, call->key_heads, rows, given->dims[3])));
    for (int n = 0; n < o->keyframes.count; n++) {
        if (!is_read(o, n)) continue;
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.x = fv_slice(&x, 2, o->keyframes.items[n] * s->tokens + o->special, s->patches),
                                .out = fv_slice(out, 2, at, s->patches)}));
        at += s->patches;
    }
    FV_TRY(find_sources(ctx, o, s, &x, &sources));
    sources = fv_parted(&sources, 2, s->tokens);
    place = fv_slice(out, 2, at, rows - at);
    place = fv_parted(&place, 2, s->kept);
    return compress(ctx, o, s, &sources, &place);
}

/* ---- norm and rotation ------------------------------------------------------------------------------------------- */

/* Row and column of each token, from 1; of special ones 0. */
struct places {
    int32_t *row, *column;
};

static void place(const struct places *p, int64_t *at, int64_t row, int64_t column)
{
    p->row[*at] = (int32_t)row;
    p->column[(*at)++] = (int32_t)column;
}

/* Special tokens and height x width cells of the grid, a frame's. */
static void place_frame(const struct shape *s, int64_t special, int64_t height, int64_t width, const struct places *p,
                        int64_t *at)
{
    for (int64_t n = 0; n < special; n++)
        place(p, at, 0, 0);
    for (int64_t n = 0; n < height * width; n++)
        place(p, at, n / width * s->height / height + 1, n % width * s->width / width + 1);
}

static fv_status prepare(fv_ctx *ctx, const fv_call *call, int weight, const struct places *p, fv_tensor *x)
{
    const struct descriptor *o = call->options;
    fv_tensor given = *x;
    fv_rope_args rope = {.base = (float)o->rope_base};

    if (fv_present(&call->param[weight])) {
        FV_TRY(fv_tensor_new(ctx, x, FV_F32, 4, given.dims));
        FV_TRY(fv_norm(ctx, &(fv_norm_args){.layer = true,
                                            .x = given,
                                            .weight = call->param[weight],
                                            .bias = call->param[weight + 1],
                                            .out = *x,
                                            .epsilon = NORM_EPSILON}));
    }
    if (o->rope_base == 0) return FV_OK;
    given = *x;
    FV_TRY(fv_tensor_new(ctx, x, FV_F32, 4, given.dims));
    for (int half = 0; half < 2; half++) {
        rope.x = fv_slice(&given, 3, half * call->head_dim / 2, call->head_dim / 2);
        rope.out = fv_slice(x, 3, half * call->head_dim / 2, call->head_dim / 2);
        rope.position = half == 0 ? p->row : p->column;
        FV_TRY(fv_rope(ctx, &rope));
    }
    return FV_OK;
}

static fv_status prepare_both(fv_ctx *ctx, const fv_call *call, const struct shape *s, fv_tensor *q, fv_tensor *k)
{
    const struct descriptor *o = call->options;
    struct places queries, keys;
    int64_t at = 0;

    FV_TRY(FV_SCRATCH(ctx, queries.row, call->queries));
    FV_TRY(FV_SCRATCH(ctx, queries.column, call->queries));
    FV_TRY(FV_SCRATCH(ctx, keys.row, k->dims[2]));
    FV_TRY(FV_SCRATCH(ctx, keys.column, k->dims[2]));
    for (int64_t f = 0; f < s->frames; f++)
        place_frame(s, o->special, s->height, s->width, &queries, &at);
    at = 0;
    while (at < s->keyframes)
        place_frame(s, 0, s->height, s->width, &keys, &at);
    while (at < k->dims[2])
        place_frame(s, o->special, s->out_height, s->out_width, &keys, &at);
    FV_TRY(prepare(ctx, call, Q_NORM_WEIGHT, &queries, q));
    return prepare(ctx, call, K_NORM_WEIGHT, &keys, k);
}

/* ---- attention --------------------------------------------------------------------------------------------------- */

/* In chunks: keys are in the order of their frames, and a query reads those before the end of its chunk. */
static fv_status plan_chunks(fv_ctx *ctx, const fv_call *call, const struct shape *s, fv_plan *plan)
{
    const struct descriptor *o = call->options;
    int32_t *from, *to;
    int64_t seen = s->keyframes, frame = 0;

    if (o->chunk == 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, from, call->queries));
    FV_TRY(FV_SCRATCH(ctx, to, call->queries));
    for (int64_t i = 0; i < call->queries; i++) {
        int64_t end = fv_min((i / s->tokens / o->chunk + 1) * o->chunk, s->frames);
        for (; frame < end; frame++)
            seen += has_descriptors(o, frame) ? s->kept : 0;
        from[i] = 0;
        to[i] = (int32_t)seen;
    }
    plan->key_from = from;
    plan->key_to = to;
    return FV_OK;
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct shape s = shape_of(call->options);
    fv_plan plan = {0};
    fv_attend_args attend = fv_call_attend(call, &plan);

    FV_TRY(make_rows(ctx, call, &s, &call->k, &attend.k));
    FV_TRY(make_rows(ctx, call, &s, &call->v, &attend.v));
    FV_TRY(prepare_both(ctx, call, &s, &attend.q, &attend.k));
    FV_TRY(plan_chunks(ctx, call, &s, &plan));
    return fv_attend_counted(ctx, call, &attend);
}

const fv_mechanism fv_mechanism_descriptor = {
    .name = "descriptor",
    .title = "Descriptor attention (FlashVGGT)",
    .paper = "arXiv 2512.01540",
    .sheet = 112,
    .family = FV_LATENT,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE | FV_NO_MAP,
    .formula = "o = softmax(scale q d^T) w; d, w: k and v of keyframes' patches and, for each frame, of its special "
               "tokens and its grid resized to floor(H / ratio) x floor(W / ratio), frames of later chunks left out",
    .cost = "2 N K (D + Dv) flops a head, K = S (special + floor(H / ratio) floor(W / ratio)) + keyframes H W",
    .options = options,
    .options_size = sizeof(struct descriptor),
    .params = params,
    .check = check,
    .accept = accept,
    .forward = forward,
    .counts = true,
};
