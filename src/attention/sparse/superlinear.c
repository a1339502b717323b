/* Superlinear attention: each query scores keys at growing distances, its stripes, and reads a window and a span around
 * each of the best few, in one softmax per span; these are mixed by the scores.  arXiv 2601.18401. */
#include <math.h>

#include "attention/sparse/core.h"

struct superlinear {
    double search_power, span_power, back, forward, search_scale;
    int64_t window_index, anchors, span_align;
};

enum { SEARCH_Q };

/* Scores and bytes of partial results held at once. */
#define SCORES ((int64_t)1 << 17)
#define PART_BYTES ((int64_t)64 << 20)
#define FAR (INT64_C(1) << 40)

static const fv_option options[] = {
    FV_FLOAT(struct superlinear, search_power, 0.5, 0, 1, "stripe i lies floor(i^(1/search_power)) - 1 tokens back"),
    FV_FLOAT(struct superlinear, span_power, 0.5, 0, 1, "spans grow as (p + 1)^span_power"),
    FV_INT(struct superlinear, window_index, 65, 0, INT32_MAX, "the window ends where the next stripe is"),
    FV_FLOAT(struct superlinear, back, 2, 0, 1e9, "factor of a span's length before its anchor"),
    FV_FLOAT(struct superlinear, forward, 0, 0, 1e9, "factor of its length behind it"),
    FV_INT(struct superlinear, anchors, 2, 1, FV_MERGE_PARTS, "stripes that a query reads around"),
    FV_FLOAT(struct superlinear, search_scale, 1, 1e-30, 1e30, "factor of the scores that mix"),
    FV_INT(struct superlinear, span_align, 1, 1, INT32_MAX, "spans grow to multiples of this, up to the window"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("search_q", "[B, H, N, D]", "queries that score stripes (q)"),
    {0},
};

static fv_status check(const void *values)
{
    const struct superlinear *o = values;
    bool search = o->search_power > 0 && o->search_power < 1;

    if (search && o->span_power > 0 && o->span_power < 1) return FV_OK;
    return fv_fail(FV_E_USAGE, "superlinear: option '%s_power': expected more than 0 and less than 1, got %g",
                   search ? "span" : "search", search ? o->span_power : o->search_power);
}

/* How far back stripe i lies. */
static int64_t distance_of(const struct superlinear *o, int64_t i)
{
    double distance = floor(pow((double)i, 1 / o->search_power) + 1e-9) - 1;

    return distance < (double)FAR ? (int64_t)distance : FAR;
}

static int64_t window_of(const struct superlinear *o)
{
    return distance_of(o, o->window_index + 1);
}

/* ---- search ----------------------------------------------------------------------------------------------------- */

/* What queries found, [B,H,N,anchors] i32: keys, -1 where there is none, and the spans around them. */
struct found {
    fv_tensor key;
    fv_spans spans;
};

static fv_tensor search_queries(const fv_call *call)
{
    return fv_present(&call->param[SEARCH_Q]) ? call->param[SEARCH_Q] : call->q;
}

/* Stripes of n queries from position p on, the farthest first, so that of equal ones it is taken: [1,1,n,stripes]. */
static fv_status lay_stripes(fv_ctx *ctx, const struct superlinear *o, int64_t p, int64_t n, fv_tensor *index)
{
    int64_t stripes = 0, *distance;

    while (distance_of(o, o->window_index + 1 + stripes) < p + n)
        stripes++;
    FV_TRY(FV_SCRATCH(ctx, distance, stripes));
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(1, 1, n, stripes)));
    for (int64_t c = 0; c < stripes; c++)
        distance[c] = distance_of(o, o->window_index + stripes - c);
    for (int64_t e = 0; e < n * stripes; e++)
        ((int32_t *)index->data)[e] = (int32_t)fv_max(p + e / stripes - distance[e % stripes], -1);
    return FV_OK;
}

/* Queries from..from+n-1 of the call. */
static fv_status search_rows(fv_ctx *ctx, const fv_call *call, int64_t from, int64_t n, const fv_tensor *key)
{
    int64_t B = call->batch, H = call->query_heads, R = key->dims[3], stripes;
    fv_tensor q = search_queries(call), best;
    fv_sampled_dots_args dots = {.x = fv_slice(&q, 2, from, n), .y = call->k};

    FV_TRY(lay_stripes(ctx, call->options, call->offset + from, n, &dots.index));
    stripes = dots.index.dims[3];
    FV_TRY(fv_tensor_new(ctx, &dots.out, FV_F32, FV_DIMS(B, H, n, stripes)));
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, fv_sampled_dots(ctx, &dots));
    FV_TRY(fv_tensor_new(ctx, &best, FV_I32, FV_DIMS(B, H, n, R)));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = dots.out, .index = best}));
    for (int64_t e = 0; e < B * H * n * R; e++) {
        int64_t plane = e / R / n, i = e / R % n, c = ((const int32_t *)best.data)[e];
        ((int32_t *)key->data)[(plane * call->queries + from + i) * R + e % R] =
            c < 0 ? -1 : ((const int32_t *)dots.index.data)[i * stripes + c];
    }
    return fv_ctx_check(ctx);
}

static void add_spans(const fv_call *call, const struct found *found)
{
    const struct superlinear *o = call->options;
    int64_t N = call->queries, align = o->span_align, window = window_of(o);

    for (int64_t i = 0; i < N; i++) {
        double length = pow((double)fv_max(call->offset + i + 1, 0), o->span_power);
        int64_t back = (int64_t)ceil(o->back * length), forward = (int64_t)ceil(o->forward * length);
        int64_t end = call->offset + i - window + 1; /* where the window begins */
        for (int64_t n = 0; n < call->batch * call->query_heads * o->anchors; n++) {
            int64_t e = (n / o->anchors * N + i) * o->anchors + n % o->anchors;
            int64_t key = ((const int32_t *)found->key.data)[e], to = fv_min(key + forward + 1, end);
            ((int32_t *)found->spans.from.data)[e] = (int32_t)(fv_max(key - back, 0) / align * align);
            ((int32_t *)found->spans.to.data)[e] = (int32_t)(key < 0 ? 0 : fv_min(fv_round_up(to, align), end));
        }
    }
}

static fv_status search(fv_ctx *ctx, const fv_call *call, struct found *found)
{
    const struct superlinear *o = call->options;
    const int64_t dims[] = {call->batch, call->query_heads, call->queries, o->anchors};
    double row = pow((double)call->keys + 1, o->search_power) * (double)(call->batch * call->query_heads);
    int64_t step = fv_clamp((int64_t)(SCORES / row), 16, fv_max(call->queries, 16));

    FV_TRY(fv_tensor_new(ctx, &found->key, FV_I32, 4, dims));
    FV_TRY(fv_tensor_new(ctx, &found->spans.from, FV_I32, 4, dims));
    FV_TRY(fv_tensor_new(ctx, &found->spans.to, FV_I32, 4, dims));
    for (int64_t from = 0; from < call->queries; from += step)
        FV_TRY_SCRATCH(ctx, search_rows(ctx, call, from, fv_min(step, call->queries - from), &found->key));
    add_spans(call, found);
    return FV_OK;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

static fv_plan window_plan(const fv_call *call)
{
    return (fv_plan){.causal = true, .offset = call->offset, .window = {.window = window_of(call->options)}};
}

/* Scores of what was found, [B,H,N,anchors]; of a query that found nothing that of its own key, so that one part, its
 * window, counts. */
static fv_status score(fv_ctx *ctx, const fv_call *call, const struct found *found, fv_tensor *scores)
{
    const struct superlinear *o = call->options;
    int64_t N = call->queries, R = o->anchors;

    FV_TRY(fv_tensor_new(ctx, scores, FV_F32, 4, found->key.dims));
    for (int64_t row = 0; row < call->batch * call->query_heads * N; row++) {
        int32_t *key = (int32_t *)found->key.data + row * R;
        if (key[0] < 0) key[0] = (int32_t)fv_max(call->offset + row % N, -1);
    }
    return fv_sampled_dots(ctx, &(fv_sampled_dots_args){.x = search_queries(call),
                                                        .y = call->k,
                                                        .index = found->key,
                                                        .out = *scores,
                                                        .scale = (float)o->search_scale});
}

static fv_status attend_part(fv_ctx *ctx, const fv_call *call)
{
    const struct superlinear *o = call->options;
    fv_plan window = window_plan(call), *besides = window.window.window > 0 ? &window : NULL;
    fv_merge_args mix = {.parts = (int)o->anchors, .o = call->o};
    fv_tensor scores;
    struct found found;
    fv_span_slots slots;

    FV_TRY_CHOOSING(ctx, search(ctx, call, &found));
    FV_TRY_CHOOSING(ctx, fv_spans_lay_out(ctx, call, &found.spans, &slots));
    for (int64_t r = 0; r < o->anchors; r++)
        FV_TRY(fv_tensor_new(ctx, &mix.o_part[r], FV_F32, 4, call->o.dims));
    FV_TRY(fv_spans_attend(ctx, call, &slots, besides, o->anchors, mix.o_part));
    FV_TRY(score(ctx, call, &found, &scores));
    for (int64_t r = 0; r < o->anchors; r++) /* a softmax of scores weighs as one of log-sum-exps does */
        mix.lse_part[r] = fv_plane(&scores, 3, r);
    return fv_merge(ctx, &mix);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct superlinear *o = call->options;
    int64_t row = call->batch * call->query_heads * (call->value_dim + 1) * 4 * (1 + 2 * o->anchors);

    return fv_run_parts(ctx, call, 1, fv_max(PART_BYTES / row, 64), attend_part);
}

/* ---- pairs ------------------------------------------------------------------------------------------------------ */

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    int64_t window = window_of(call->options);
    fv_list_shape shape = fv_call_lists(call, call->query_heads, 1, 1);
    fv_list_builder lists;
    struct found found;

    FV_TRY(search(ctx, call, &found));
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t row = 0; row < lists.rows; row++) {
        int64_t p = call->offset + row % call->queries, R = found.key.dims[3];
        fv_lists_row(&lists);
        fv_lists_add_range(&lists, p - window + 1, p + 1);
        for (int64_t e = row * R; e < (row + 1) * R; e++)
            fv_lists_add_range(&lists, ((const int32_t *)found.spans.from.data)[e],
                               ((const int32_t *)found.spans.to.data)[e]);
    }
    return fv_lists_end(&lists, &pairs->plan);
}

const fv_mechanism fv_mechanism_superlinear = {
    .name = "superlinear",
    .title = "Superlinear attention (span search)",
    .paper = "arXiv 2601.18401",
    .sheet = 48,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "stripe i lies d(i) = floor(i^(1/search_power)) - 1 before p; W = d(window_index + 1) keys of the window; "
        "of stripes i > window_index the anchors best by s = search_q.k; o = sum over anchors a of softmax(s)_a "
        "softmax over the window and the span [a - ceil(back (p+1)^span_power), "
        "min(a + ceil(forward (p+1)^span_power), p - W)]",
    .cost = "each query scores N^search_power stripes and reads W + anchors (back + forward) N^span_power keys",
    .options = options,
    .options_size = sizeof(struct superlinear),
    .params = params,
    .check = check,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
