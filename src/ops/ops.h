/* THE list of primitives.  The public four stand in fovea/ops.h; these complete them.  Each takes one struct of named
 * fields, zero = default; checks shapes and dtypes; runs on the context's backend; and, when a tape records, can be
 * walked backward.  Unless said: f32, any strides, outputs do not overlap inputs (elementwise ones may write in place
 * when no tape records), FV_E_SHAPE / FV_E_DTYPE / FV_E_MEMORY. */
#ifndef FV_OPS_H
#define FV_OPS_H

#include "base/tensor.h"
#include "fovea/ops.h"
#include "ops/packed.h"

/* What a weight of attend in steps may lack to the next one: rounding does not cost a step. */
#define FV_STEP_SLACK 1e-4f

/* c = alpha * a b + beta * c + bias.  a [..,m,k], b [..,k,n], c [..,m,n] f32, bias [n]; up to four leading dims, which
 * broadcast in a and b by size 1 or stride 0.  a: f32, f16, bf16.  b: the same, or quantised blocks along k (a weight
 * [n,k] seen transposed).  Bound: 2 m n k flops, or the bytes of b when m is small. */
typedef struct fv_gemm_args {
    fv_tensor a, b, c, bias;
    float alpha, beta; /* alpha 0 means 1 */
} fv_gemm_args;
fv_status fv_gemm(fv_ctx *ctx, const fv_gemm_args *args);

/* Elementwise: out = f(x) or f(x, y); x and y broadcast to out's shape.  Plain dtypes may differ (cast); integer types
 * only for copy. */
typedef enum fv_map {
    FV_MAP_COPY, /* alpha x + beta (alpha 0 means 1); strided copy, permute, cast, repeat */
    FV_MAP_ADD,  /* x + alpha y (alpha 0 means 1) */
    FV_MAP_SUB,
    FV_MAP_MUL, /* alpha x y (alpha 0 means 1) */
    FV_MAP_DIV,
    FV_MAP_SILU_MUL,      /* silu(x) y */
    FV_MAP_GELU_TANH_MUL, /* gelu_tanh(x) y */
    FV_MAP_MAX,           /* max(x, y); without y max(x, alpha) */
    FV_MAP_EXP,           /* exp(x), at most exp(88) */
    FV_MAP_LOG,
    FV_MAP_SQRT,
    FV_MAP_TANH,
    FV_MAP_SIGMOID,
    FV_MAP_SILU,
    FV_MAP_GELU, /* erf form */
    FV_MAP_GELU_TANH,
    FV_MAP_RELU,
    FV_MAP_ELU1,     /* elu(x) + 1 */
    FV_MAP_SOFTPLUS, /* ln(1 + exp(x)) */
    FV_MAP_SOFTCAP,  /* alpha tanh(x / alpha) */
} fv_map;
typedef struct fv_map_args {
    fv_map op;
    fv_tensor x, y, out;
    float alpha, beta;
} fv_map_args;
fv_status fv_map_apply(fv_ctx *ctx, const fv_map_args *args);
/* out = value; f32, any strides.  The tape does not see it. */
fv_status fv_fill(fv_ctx *ctx, const fv_tensor *out, float value);

/* The products of rows x with several weights: out = x weight^T + bias, or added to out.  x [m,k] f32, weight [n,k]
 * f32, f16, bf16 or blocks, bias [n] f32 or absent, out [m,n] f32.  With `gate` (FV_MAP_SILU_MUL,
 * FV_MAP_GELU_TANH_MUL) there are two parts and one result, in the first's out: gate(x weight_0^T + bias_0, x
 * weight_1^T + bias_1).  A weight's packed form (ops/packed.h) is used by the CPU backend unless f32 is asked for: x is
 * rounded then to 15 bits (few rows) or, like the weight, to bf16 (many rows, where the processor multiplies those). */
enum { FV_LINEAR_PARTS = 3 };
typedef struct fv_linear_part {
    fv_tensor weight, bias, out;
    const fv_packed *packed; /* NULL or without data: none */
    bool add;
} fv_linear_part;
typedef struct fv_linear_args {
    fv_tensor x;
    int parts;
    fv_linear_part part[FV_LINEAR_PARTS];
    fv_map gate; /* 0: none */
} fv_linear_args;
fv_status fv_linear(fv_ctx *ctx, const fv_linear_args *args);
/* Whether a row of the call gets the bits that it gets alone with FV_BATCH_STEPS; otherwise it gets those of
 * FV_BATCH_PROMPT. */
bool fv_linear_few(const fv_ctx *ctx, const fv_linear_args *args);

/* Over the last dim C: rms: x / sqrt(mean x^2 + epsilon) * weight; layer: (x - mean) / sqrt(var + epsilon) * weight +
 * bias.  x, out [..,C]; weight, bias [C] or absent.
 * A residual step and the norm behind it are one pass over memory: with `add` [..,C], x + add takes the place of x;
 * with add_weight [C] as well, x + rms norm of add * add_weight.  `sum` [..,C] (or absent; may be x) receives it. */
typedef struct fv_norm_args {
    bool layer; /* false: rms */
    fv_tensor x, weight, bias, out;
    fv_tensor add, add_weight, sum;
    float epsilon;
} fv_norm_args;
fv_status fv_norm(fv_ctx *ctx, const fv_norm_args *args);

/* Rotary position: pairs (c, c + R/2), or (2c, 2c+1) if interleaved, of the first R = rotary (0: D) channels turn by
 * position * frequency[c], times `magnitude` (0 means 1); the rest is copied.  x, out [B,H,N,D]; position [N] i32
 * (NULL: offset + i); frequency [R/2] f32, or absent: base^(-2c/R). */
typedef struct fv_rope_args {
    fv_tensor x, out;
    const int32_t *position;
    int64_t offset, rotary;
    float base, magnitude;
    fv_tensor frequency;
    bool interleaved, inverse; /* inverse turns back (and multiplies too): the backward pass */
} fv_rope_args;
fv_status fv_rope(fv_ctx *ctx, const fv_rope_args *args);

/* Softmax of scale * x over the last dim (transpose the view for columns), or over the first valid[row] of it: the
 * others are not read and give 0.  Scale 0 means 1.  Rows of -inf give 0. */
typedef struct fv_softmax_args {
    fv_tensor x, out;
    float scale;
    const int64_t *valid; /* [rows]; NULL: all */
} fv_softmax_args;
fv_status fv_softmax(fv_ctx *ctx, const fv_softmax_args *args);

/* Pools dim -2: x [..,N,C] -> out [..,M,C], cell m covering rows [start_m, end_m).
 *   blocks: start = m * stride, end = min(start + block, N); M <= ceil(N / stride); a ragged last cell counts its true
 *   length.   starts given: rows start[m] .. start[m+1].
 *   grid: rows are a row-major gh x gw grid pooled to oh x ow cells, adaptive: cell i covers floor(i gh/oh) ..
 *   ceil((i+1) gh/oh) - 1; M = oh ow.
 * A cell without rows gives 0. */
typedef enum fv_pool_kind { FV_POOL_MEAN = 0, FV_POOL_MAX, FV_POOL_SUM } fv_pool_kind;
typedef struct fv_pool_args {
    fv_pool_kind kind;
    fv_tensor x, out;
    int64_t block, stride; /* stride 0: block */
    const int64_t *start;  /* [M + 1] */
    int64_t grid_height, grid_width, out_height, out_width;
} fv_pool_args;
fv_status fv_pool_rows(fv_ctx *ctx, const fv_pool_args *args);

/* 2-d convolution: x [B,C,H,W], weight [O,C/groups,kh,kw], bias [O] or absent, out [B,O,Ho,Wo]; zero padding;
 * groups = C = O is depthwise. */
typedef struct fv_conv2d_args {
    fv_tensor x, weight, bias, out;
    int64_t stride, padding, dilation, groups; /* stride, dilation, groups 0 mean 1 */
} fv_conv2d_args;
fv_status fv_conv2d(fv_ctx *ctx, const fv_conv2d_args *args);

/* Selection per row of scores [..,n] f32: the k largest, or the k largest of those >= threshold, among the first
 * valid[row] (NULL: n); ties to the lower index; -inf and NaN scores are never selected; +inf ones always come first.
 * index [..,k] i32, ascending by index (or by falling score with by_score), -1 behind the last; count [..] i32
 * optional.  No gradient. */
typedef struct fv_select_args {
    fv_tensor scores, index, count;
    bool use_threshold, by_score;
    float threshold;
    const int64_t *valid; /* [rows] */
} fv_select_args;
fv_status fv_select(fv_ctx *ctx, const fv_select_args *args);

/* How well rows match others at their best: out[..,e] = the largest x[..,r,:] . y[..,index[..,e,m],:] over all rows r
 * and members m of entry e (index -1: none; NaN is no match; without a match: -inf).  x [..,R,C] f32, y [..,M,C] as
 * keys are stored, index [..,E,G] i32, out [..,E] f32; leading dims of x, y and index repeat to out's.  No gradient.
 * FV_E_ARGUMENT for an index out of range.  Bound: 2 R C flops a member. */
typedef struct fv_match_args {
    fv_tensor x, y, index, out;
} fv_match_args;
fv_status fv_match(fv_ctx *ctx, const fv_match_args *args);

/* Stable counting sort: order[0..n) is the permutation that sorts keys[0..n) (each 0..bound-1, or -1: left out, so that
 * order holds fewer); start[b] .. start[b+1] are the places of key b.  The inverse lists of `index` (rows x k, -1
 * skipped) are the sort of its entries: divide order[] by k to get the rows that chose b, ascending.  `count` rows of
 * n keys each are sorted apart: order [count,n], start [count,bound+1] (relative to the row).  FV_E_ARGUMENT for a key
 * out of range. */
fv_status fv_sort_by_key(fv_ctx *ctx, const int32_t *keys, int64_t count, int64_t n, int64_t bound, int32_t *order,
                         int64_t *start);

/* out[..,r,:] = x[..,index[r],:] (index -1: zeros); leading dims of x and index repeat to out's (of a scatter: to
 * x's).  x [..,N,C], index [..|1,R] i32, out [..,R,C]; any plain type that stays the same, or a cast between floating
 * ones.  scatter adds instead (index -1: left out): out[..,index[r],:] += x[..,r,:], x [..,R,C], out [..,N,C], f32.
 * FV_E_ARGUMENT for an index out of range. */
typedef struct fv_gather_args {
    fv_tensor x, index, out;
    bool scatter;
} fv_gather_args;
fv_status fv_gather(fv_ctx *ctx, const fv_gather_args *args);

/* Products of rows with a few others each: out[b,h,i,r] = scale * x[b,h,i,:] . y[b,h / (H/Hx),index[b,h,i,r],:]; index
 * -1: -inf.  x [B,H,N,D] f32, y [B,Hx,M,D] rows of any type, index [B|1,H|1,N,R] i32, out [B,H,N,R] f32; scale 0 means
 * 1.  Bound by the bytes of the rows of y, which heads that share an index read together.  FV_E_ARGUMENT for an index
 * out of range. */
typedef struct fv_sampled_dots_args {
    fv_tensor x, y, index, out;
    float scale;
} fv_sampled_dots_args;
fv_status fv_sampled_dots(fv_ctx *ctx, const fv_sampled_dots_args *args);

/* Sums of a few rows each: out[b,h,i,:] = sum over r of weight[b,h,i,r] * y[b,h / (H/Hx),index[b,h,i,r],:]; index -1
 * and weights of -inf (what fv_sampled_dots gives there) count 0.  weight [B,H,N,R] f32, y [B,Hx,M,D] rows of any type,
 * index [B|1,H|1,N,R] i32, out [B,H,N,D] f32.  Bound by the bytes of the rows of y.  FV_E_ARGUMENT for an index out of
 * range.
 */
typedef struct fv_sampled_sums_args {
    fv_tensor weight, y, index, out;
} fv_sampled_sums_args;
fv_status fv_sampled_sums(fv_ctx *ctx, const fv_sampled_sums_args *args);

/* out[..,i,:] = sum of x[..,0..i,:] (or i-1 if exclusive) along dim -2, or with `max` the largest of them (of none:
 * -inf), whose gradient goes to the first that reaches it; and sums of rows start[m]..start[m+1] are fv_pool_rows with
 * FV_POOL_SUM. */
typedef struct fv_cumsum_args {
    fv_tensor x, out;
    bool max, exclusive, reverse;
} fv_cumsum_args;
fv_status fv_cumsum(fv_ctx *ctx, const fv_cumsum_args *args);

/* Features of second order: out[..,:] = 1, x, and row by row for i <= j the products x_i x_j, the squares divided by
 * sqrt 2, so that those of x and y have the product 1 + x.y + (x.y)^2 / 2.  x [..,C], out [..,1 + C + C (C + 1) / 2].
 */
typedef struct fv_taylor_args {
    fv_tensor x, out;
} fv_taylor_args;
fv_status fv_taylor_rows(fv_ctx *ctx, const fv_taylor_args *args);

/* Dim -2 of x [..,gh*gw,C], a row-major grid, resized: out [..,oh*ow,C].  The middle of cell (u, t) lies at row
 * (u + 1/2) gh/oh - 1/2 and column (t + 1/2) gw/ow - 1/2, at least 0: what it gets is interpolated between the four
 * rows of x around it.  Or, nearest, row floor(u gh/oh), column floor(t gw/ow). */
typedef struct fv_resize_args {
    fv_tensor x, out;
    int64_t grid_height, grid_width, out_height, out_width;
    bool nearest;
} fv_resize_args;
fv_status fv_resize_rows(fv_ctx *ctx, const fv_resize_args *args);

/* Windows on a grid: x [..,gh*gw,C] row-major <-> out [..,windows,wh*ww,C] where windows of wh x ww tile the grid,
 * padded at the bottom and right with zeros; inverse gathers back.  order (optional, [windows*wh*ww] i64) receives the
 * row each place comes from, -1 for padding. */
typedef struct fv_window_args {
    fv_tensor x, out;
    int64_t grid_height, grid_width, window_height, window_width;
    bool inverse;
    int64_t *order;
} fv_window_args;
fv_status fv_window_rows(fv_ctx *ctx, const fv_window_args *args);

/* Rows of any dtype (quantised blocks too) to f32: out[r] = x[index[r]] for x [N,C], index i32 [R], out [R,C]. */
typedef struct fv_dequantize_args {
    fv_tensor x, out;
    const int32_t *index; /* NULL: rows 0..R-1 */
} fv_dequantize_args;
fv_status fv_dequantize_rows(fv_ctx *ctx, const fv_dequantize_args *args);

/* Rows of f32 to blocks: x [N,C] to out [N,C] of q8_0 or q4_0, nearest steps.  A value that is not finite spoils its
 * block of 32, no more.  The tape does not see it. */
typedef struct fv_quantize_args {
    fv_tensor x, out;
} fv_quantize_args;
fv_status fv_quantize_rows(fv_ctx *ctx, const fv_quantize_args *args);

/* out = x [..,N,C] to the nearest (ties to the even) of -steps .. steps times a scale, the largest magnitude of a group
 * divided by steps: groups are `rows` rows (the last may have fewer) of all channels, or of each channel apart.  Steps
 * 1 to 127.  The gradient passes straight through. */
typedef struct fv_round_args {
    fv_tensor x, out;
    int64_t rows;
    int steps;
    bool by_channel;
} fv_round_args;
fv_status fv_round_rows(fv_ctx *ctx, const fv_round_args *args);

#endif
