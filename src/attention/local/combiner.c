/* Combiner: a query reads near tokens one by one and the others through summaries of spans, each the attention of a
 * pooled query over the span, so that every earlier token has a weight.  arXiv 2107.05768.  Segments, and spans that
 * double; rows and columns are in combiner_axial.c. */
#include "attention/local/combiner.h"

#include <math.h>

#include "ops/plan.h"

static const char *const forms[] = {"fixed", "logn", "axial_mixture", "axial_rowmajor", NULL};
static const char *const pools[] = {"max", "mean", "sum", "relu_max", "relu_mean", "relu_sum", NULL};
static const char *const summaries[] = {"wsum", "none", "proj", NULL};

static const fv_option options[] = {
    FV_ENUM(struct combiner, form, "fixed", forms,
            "spans: fixed segments; halves, quarters ..; rows and columns of a grid, mixed or row by row"),
    FV_INT(struct combiner, segment, 0, 0, INT32_MAX, "tokens of a segment, or of a row; 0: the square root of all"),
    FV_ENUM(struct combiner, pool, "max", pools, "what makes the query and the key of a span"),
    FV_BOOL(struct combiner, span_bias, 0, "logits of spans get ln of the tokens they stand for"),
    FV_BOOL(struct combiner, own_span, 1, "without causality, the own segment is a span as well"),
    FV_ENUM(struct combiner, row_summary, "wsum", summaries,
            "axial_rowmajor: the key is the weighted sum of keys, the own key, or a projection of the result"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM("x", "[B, M, C]", "row_summary=proj: the layer's input"),
    FV_PARAM("w1", "[C, H*Dv]", "row_summary=proj: from results to what is added to x"),
    FV_PARAM("w2", "[Hkv*D, C]", "row_summary=proj: from the normed sum to keys"),
    FV_PARAM("norm_weight", "[C]", "row_summary=proj: of the layer norm (1)"),
    FV_PARAM("norm_bias", "[C]", "row_summary=proj: of the layer norm (0)"),
    {0},
};

static fv_status check(const void *values)
{
    const struct combiner *o = values;

    if (o->form == COMBINER_MIXTURE && o->pool != 0)
        return fv_fail(FV_E_USAGE, "combiner: option 'pool': form=axial_mixture takes running maxima: expected max");
    if (o->form != COMBINER_ROWMAJOR && o->row_summary != COMBINER_WSUM)
        return fv_fail(FV_E_USAGE, "combiner: option 'row_summary' needs form=axial_rowmajor");
    return FV_OK;
}

static fv_status accept(fv_call *call)
{
    const struct combiner *o = call->options;
    bool projects = o->row_summary == COMBINER_PROJ;

    if (o->form != COMBINER_FIXED) call->causal = true;
    for (int i = 0; params[i].name; i++) {
        bool given = fv_present(&call->param[i]);
        if (given && !projects)
            return fv_fail(FV_E_USAGE, "combiner: param '%s' needs row_summary=proj", params[i].name);
        if (!given && projects && i <= COMBINER_W2)
            return fv_fail(FV_E_USAGE, "combiner: row_summary=proj: expected param '%s'", params[i].name);
    }
    if (projects && call->query_heads != call->key_heads)
        return fv_fail(FV_E_SHAPE,
                       "combiner: row_summary=proj: expected as many key-value heads as query heads, got "
                       "%lld and %lld",
                       (long long)call->key_heads, (long long)call->query_heads);
    if (call->decoding && o->segment == 0 && o->form != COMBINER_LOGN)
        return fv_fail(FV_E_USAGE, "combiner: decoding, and a prompt in chunks, need option 'segment': the tokens are "
                                   "not counted yet");
    return FV_OK;
}

/* ---- calls, and parts of them -------------------------------------------------------------------------------------
 */

static int64_t root(int64_t n)
{
    int64_t side = (int64_t)sqrt((double)n);

    while (side * side < n)
        side++;
    return side;
}

static fv_status begin(fv_ctx *ctx, const fv_call *call, fv_combiner *c)
{
    const struct combiner *o = call->options;

    *c = (fv_combiner){.call = *call, .options = o, .group = call->query_heads / call->key_heads};
    c->length = o->form == COMBINER_LOGN ? 1 : o->segment > 0 ? o->segment : root(call->keys);
    FV_TRY(fv_as_f32(ctx, &call->k, &c->call.k));
    return fv_as_f32(ctx, &call->v, &c->call.v);
}

/* Batch and key head n of rows [B,Hkv,R,..]. */
static fv_tensor plane_of(const fv_tensor *rows, int64_t n)
{
    fv_tensor batch = fv_slice(rows, 0, n / rows->dims[1], 1);

    return fv_slice(&batch, 1, n % rows->dims[1], 1);
}

static fv_combiner part_of(const fv_combiner *c, int64_t n)
{
    int64_t Hkv = c->call.key_heads;
    fv_combiner part = *c;

    part.call = fv_call_heads(&c->call, n / Hkv, 1, n % Hkv * c->group, c->group);
    if (fv_present(&c->queries)) part.queries = plane_of(&c->queries, n);
    if (fv_present(&c->summaries)) part.summaries = plane_of(&c->summaries, n);
    return part;
}

static fv_tensor lay_out(const fv_strided *r, int64_t count, int64_t rows)
{
    const int64_t *d = r->x->dims, *s = r->x->strides;

    return fv_view(r->x, FV_DIMS(count, d[1], rows, d[3]),
                   (const int64_t[]){r->across * s[2], s[1], r->step * s[2], s[3]}, r->first * s[2]);
}

fv_status fv_combiner_attend(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *b)
{
    fv_logits own = fv_call_logits(&c->call);
    fv_attend_args a = {.q = lay_out(&b->q, b->count, b->queries),
                        .k = lay_out(&b->k, b->count, b->keys),
                        .v = lay_out(&b->v, b->count, b->keys),
                        .o = lay_out(&b->o, b->count, b->queries),
                        .plan = b->plan,
                        .logits = b->logits};

    a.logits.softcap = own.softcap;
    a.logits.gain = own.gain;
    if (b->logits.scale == 0) a.logits.scale = own.scale, a.logits.zero_scale = own.zero_scale;
    if (b->lse.x) a.lse = lay_out(&b->lse, b->count, b->queries), a.lse.rank = 3;
    return fv_attend_counted(ctx, &c->call, &a);
}

fv_tensor fv_combiner_channels(const fv_combiner *c, const fv_tensor *rows, int64_t from, int64_t width)
{
    const int64_t *d = rows->dims, *s = rows->strides;

    return fv_view(rows, FV_DIMS(1, c->group, d[2], width), (const int64_t[]){s[0], d[3] / c->group, s[2], 1}, from);
}

fv_tensor fv_combiner_queries(const fv_combiner *c)
{
    return fv_combiner_channels(c, &c->queries, 0, c->call.head_dim);
}

fv_status fv_combiner_bias(fv_ctx *ctx, const fv_combiner *c, const double *counts, int64_t count, int64_t keys,
                           fv_tensor *bias)
{
    fv_tensor logs;

    *bias = (fv_tensor){0};
    if (!c->options->span_bias) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &logs, FV_F32, FV_DIMS(count)));
    for (int64_t n = 0; n < count; n++)
        ((float *)logs.data)[n] = (float)log(counts[n]);
    *bias = fv_view(&logs, FV_DIMS(count, 1, 1, keys), (const int64_t[]){1, 0, 0, 0}, 0);
    return FV_OK;
}

/* ---- what is kept: queries, and summaries ------------------------------------------------------------------------ */

enum { QUERIES, SUMMARIES };

/* Of keys that fill them. */
static int64_t summary_count(const struct combiner *o, int64_t length, int64_t keys)
{
    if (o->form == COMBINER_LOGN) return keys;
    return o->form == COMBINER_FIXED ? keys / length : keys / length * length;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct combiner *o = call->options;
    int64_t group = call->key_heads > 0 ? call->query_heads / call->key_heads : 1;

    *width = group * (kind == QUERIES ? call->head_dim : fv_combiner_width(call, o));
    if (kind == QUERIES) return keys;
    return o->segment == 0 && o->form != COMBINER_LOGN ? 0 : summary_count(o, o->segment, keys);
}

static fv_status make_queries(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    fv_tensor q, scale;

    FV_TRY(fv_kept_queries(call, from, out->dims[2], &q));
    FV_TRY(fv_number(ctx, call->scale, &scale));
    q = fv_grouped(&q, call->key_heads);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL,
                                            .x = fv_permuted(&q, (const int[]){0, 1, 3, 2, 4}),
                                            .y = scale,
                                            .out = fv_parted(out, 3, call->head_dim)});
}

static fv_status keep_queries(fv_ctx *ctx, fv_combiner *c)
{
    return fv_keep(ctx, &c->call, kept, QUERIES, c->call.keys, make_queries, &c->queries);
}

/* ---- spans ------------------------------------------------------------------------------------------------------- */

/* `count` spans of one length, the first from token `first` on and each `step` tokens behind the last, in rows of the
 * summaries that are row_step apart. */
struct spans {
    int64_t first, step, length, count, row, row_step;
};

static fv_status pool_spans(fv_ctx *ctx, const fv_combiner *c, const struct spans *s, const fv_tensor *x,
                            const fv_tensor *out)
{
    static const fv_pool_kind kinds[] = {FV_POOL_MAX, FV_POOL_MEAN, FV_POOL_SUM};
    int64_t last = fv_min((s->count - 1) * s->step + s->length, x->dims[2] - s->first);
    fv_tensor rows = fv_slice(x, 2, s->first, last);

    if (c->options->pool >= 3) FV_TRY(fv_mapped(ctx, &(fv_map_args){.op = FV_MAP_RELU, .x = rows}, &rows));
    return fv_pool_rows(
        ctx, &(fv_pool_args){
                 .kind = kinds[c->options->pool % 3], .x = rows, .out = *out, .block = s->length, .stride = s->step});
}

static fv_status summarise(fv_ctx *ctx, const fv_combiner *c, const struct spans *s, const fv_tensor *out)
{
    const fv_call *call = &c->call;
    int64_t D = call->head_dim, whole = s->count - (s->first + (s->count - 1) * s->step + s->length > call->keys);
    fv_tensor key = fv_combiner_channels(c, out, 0, D), value = fv_combiner_channels(c, out, D, call->value_dim);
    fv_tensor k = fv_broadcast(&call->k, FV_DIMS(1, c->group, call->keys, D)), q = fv_combiner_queries(c), keys, pooled;

    if (s->count < 1) return FV_OK;
    keys = fv_every(&key, 2, s->row, s->row_step, s->count);
    FV_TRY(pool_spans(ctx, c, s, &k, &keys));
    if (s->length == 1) /* one token: its value */
        return fv_map_apply(ctx, &(fv_map_args){.x = fv_every(&call->v, 2, s->first, s->step, s->count),
                                                .out = fv_every(&value, 2, s->row, s->row_step, s->count)});
    FV_TRY(fv_tensor_new(ctx, &pooled, FV_F32, 4, keys.dims));
    FV_TRY(pool_spans(ctx, c, s, &q, &pooled));
    for (int64_t from = 0; from < s->count; from = fv_max(whole, from + 1)) { /* a last one may be shorter */
        fv_combiner_block block = {.count = from < whole ? whole : 1,
                                   .queries = 1,
                                   .keys = from < whole ? s->length : call->keys - s->first - from * s->step,
                                   .q = {&pooled, from, 1, 1},
                                   .k = {&call->k, s->first + from * s->step, s->step, 1},
                                   .v = {&call->v, s->first + from * s->step, s->step, 1},
                                   .o = {&value, s->row + from * s->row_step, s->row_step, 1},
                                   .logits = {.scale = 1}};
        FV_TRY(fv_combiner_attend(ctx, c, &block));
    }
    return FV_OK;
}

/* Span n of form=logn ends with token n; its length is the largest power of two that divides n + 1. */
static fv_status summarise_powers(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out)
{
    int64_t end = from + out->dims[2];

    for (int64_t length = 1; length <= end; length *= 2) {
        int64_t first = length - 1; /* of this length; others follow every 2 * length rows */
        if (from > first) first += fv_ceil_div(from - first, 2 * length) * 2 * length;
        FV_TRY(summarise(ctx, c,
                         &(struct spans){.first = first + 1 - length,
                                         .step = 2 * length,
                                         .length = length,
                                         .count = first < end ? (end - 1 - first) / (2 * length) + 1 : 0,
                                         .row = first - from,
                                         .row_step = 2 * length},
                         out));
    }
    return FV_OK;
}

static fv_status make_part(fv_ctx *ctx, const fv_combiner *c, int64_t from, const fv_tensor *out)
{
    int64_t L = c->length;

    if (c->options->form >= COMBINER_MIXTURE) return fv_combiner_axial_make(ctx, c, from, out);
    if (c->options->form == COMBINER_LOGN) return summarise_powers(ctx, c, from, out);
    return summarise(
        ctx, c, &(struct spans){.first = from * L, .step = L, .length = L, .count = out->dims[2], .row_step = 1}, out);
}

static fv_status make_summaries(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    fv_combiner c;

    FV_TRY(begin(ctx, call, &c));
    FV_TRY(keep_queries(ctx, &c));
    for (int64_t n = 0; n < call->batch * call->key_heads; n++) {
        fv_combiner part = part_of(&c, n);
        fv_tensor rows = plane_of(out, n);
        FV_TRY_SCRATCH(ctx, make_part(ctx, &part, from, &rows));
        FV_TRY(fv_ctx_check(ctx));
    }
    return c.options->row_summary == COMBINER_PROJ ? fv_combiner_project(ctx, call, from, out) : FV_OK;
}

/* ---- who reads what ---------------------------------------------------------------------------------------------- */

/* Tokens of the own segment. */
static void add_segment(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_combiner *c = user;
    int64_t p = c->call.offset + i, first = p / c->length * c->length;

    (void)head;
    fv_key_row_add(row, first, c->call.causal ? p + 1 : first + c->length);
}

static fv_status plan_segments(fv_ctx *ctx, const fv_combiner *c, fv_plan *plan)
{
    const fv_call *call = &c->call;
    fv_list_builder lists;

    if (c->length < FV_TILE) {
        plan->causal = false; /* the keys of each query say it */
        return fv_key_rows_plan(ctx, 1, call->queries, call->keys, add_segment, c, plan);
    }
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = c->length,
                                           .key_block = c->length,
                                           .queries = call->queries,
                                           .keys = call->keys,
                                           .offset = call->offset}));
    for (int64_t g = 0; g < lists.groups; g++) {
        fv_lists_row(&lists);
        fv_lists_add(&lists, fv_lists_first_block(&lists) + g);
    }
    return fv_lists_end(&lists, plan);
}

/* form=fixed: spans before the own segment, or all, or all others. */
static void add_spans(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_combiner *c = user;
    int64_t own = (c->call.offset + i) / c->length;

    (void)head;
    fv_key_row_add(row, 0, own);
    if (!c->call.causal) fv_key_row_add(row, own + !c->options->own_span, INT32_MAX);
}

/* form=logn: a span is read by as many tokens behind it as it has. */
static fv_status plan_powers(fv_ctx *ctx, const fv_combiner *c, int64_t rows, fv_plan *plan)
{
    const fv_call *call = &c->call;
    int64_t last = call->offset + call->queries - 1;
    fv_list_builder lists;
    int32_t *born, *gone;

    FV_TRY(FV_SCRATCH(ctx, born, rows));
    FV_TRY(FV_SCRATCH(ctx, gone, rows));
    for (int64_t n = 0; n < rows; n++) {
        int64_t end = n + 1;
        born[n] = (int32_t)end;
        gone[n] = (int32_t)fv_min(end + (end & -end), INT32_MAX);
    }
    FV_TRY(fv_lists_begin(
        ctx, &lists,
        &(fv_list_shape){
            .query_block = FV_TILE, .key_block = 1, .queries = call->queries, .keys = rows, .offset = call->offset}));
    for (int64_t g = 0; g < lists.groups; g++) {
        int64_t from = fv_max((fv_lists_first_block(&lists) + g) * FV_TILE, call->offset);
        int64_t to = fv_min((fv_lists_first_block(&lists) + g + 1) * FV_TILE - 1, last);
        fv_lists_row(&lists);
        for (int64_t length = 1; length <= to; length *= 2)
            for (int64_t b = from / length; b <= to / length; b++)
                if (b % 2 == 1) fv_lists_add(&lists, b * length - 1);
    }
    FV_TRY(fv_lists_end(&lists, plan));
    plan->born = born;
    plan->gone = gone;
    return FV_OK;
}

/* ---- the whole --------------------------------------------------------------------------------------------------- */

/* Who reads which tokens of the own segment, and which spans; the same in every plane. */
struct plans {
    fv_plan segments, spans;
    fv_tensor bias; /* of spans */
};

static fv_status make_plans(fv_ctx *ctx, const fv_combiner *c, struct plans *plans)
{
    const fv_call *call = &c->call;
    int64_t rows = c->summaries.dims[2];
    bool powers = c->options->form == COMBINER_LOGN;
    double *counts;

    plans->segments = (fv_plan){.causal = call->causal, .offset = call->offset};
    plans->spans = (fv_plan){.offset = call->offset};
    plans->bias = (fv_tensor){0};
    FV_TRY(plan_segments(ctx, c, &plans->segments));
    if (rows == 0 || c->options->form >= COMBINER_MIXTURE) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, counts, rows));
    for (int64_t n = 0; n < rows; n++)
        counts[n] = (double)(powers ? (n + 1) & -(n + 1) : fv_min(c->length, call->keys - n * c->length));
    FV_TRY(fv_combiner_bias(ctx, c, counts, rows, 1, &plans->bias));
    if (fv_present(&plans->bias)) plans->bias = fv_reshaped(&plans->bias, FV_DIMS(1, 1, 1, rows));
    if (powers) return plan_powers(ctx, c, rows, &plans->spans);
    return fv_key_rows_plan(ctx, 1, call->queries, rows, add_spans, c, &plans->spans);
}

static fv_status attend_part(fv_ctx *ctx, const fv_combiner *c, const struct plans *plans)
{
    const fv_call *call = &c->call;
    fv_attend_args part[] = {fv_call_attend(call, &plans->segments), fv_call_attend(call, &plans->spans)};

    if (c->options->form >= COMBINER_MIXTURE) return fv_combiner_axial_attend(ctx, c, &plans->segments);
    part[1].k = fv_combiner_channels(c, &c->summaries, 0, call->head_dim);
    part[1].v = fv_combiner_channels(c, &c->summaries, call->head_dim, call->value_dim);
    part[1].logits.bias = plans->bias;
    return fv_attend_joined(ctx, call, c->summaries.dims[2] > 0 ? 2 : 1, part);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    const struct combiner *o = call->options;
    struct plans plans;
    fv_combiner c;
    int64_t count;

    FV_TRY(begin(ctx, call, &c));
    count = summary_count(o, c.length, call->keys);
    if (o->form == COMBINER_FIXED && !call->causal) count = fv_ceil_div(call->keys, c.length);
    if (call->kept) FV_TRY(keep_queries(ctx, &c)); /* for later ones, should no span be complete now */
    FV_TRY(fv_keep(ctx, &c.call, kept, SUMMARIES, count, make_summaries, &c.summaries));
    FV_TRY(make_plans(ctx, &c, &plans));
    for (int64_t n = 0; n < call->batch * call->key_heads; n++) {
        fv_combiner part = part_of(&c, n);
        FV_TRY_SCRATCH(ctx, attend_part(ctx, &part, &plans));
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
}

/* Own segment or row, and of a mixture the column above. */
static void add_direct(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_combiner *c = user;
    int64_t p = c->call.offset + i;

    add_segment(user, head, i, row);
    for (int64_t j = p % c->length; c->options->form == COMBINER_MIXTURE && j < p; j += c->length)
        fv_key_row_add(row, j, j + 1);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_combiner c;

    FV_TRY(begin(ctx, call, &c));
    pairs->plan.causal = false;
    return fv_key_rows_plan(ctx, 1, call->queries, call->keys, add_direct, &c, &pairs->plan);
}

const fv_mechanism fv_mechanism_combiner = {
    .name = "combiner",
    .title = "Combiner",
    .paper = "arXiv 2107.05768",
    .sheet = 87,
    .family = FV_MIXED,
    .traits = FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NEEDS_KEPT,
    .formula =
        "one softmax over near tokens (the own segment or row; of a mixture the column above too; of logn the "
        "token alone) and summaries of spans r: key pool of k, value sum_j softmax_j(pool of scaled q . k_j) v_j",
    .cost =
        "2 N (L / 2 + N / (2 L) + 1) (D + Dv) flops a head (fixed, causal); N log2 N of logn, 5 N sqrt N of a mixture",
    .options = options,
    .options_size = sizeof(struct combiner),
    .params = params,
    .check = check,
    .accept = accept,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
