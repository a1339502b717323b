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

/* ---- calls split by key head ------------------------------------------------------------------------------------- */

static int64_t root(int64_t n)
{
    int64_t side = (int64_t)sqrt((double)n);

    while (side * side < n)
        side++;
    return side;
}

static fv_status split(fv_ctx *ctx, const fv_call *call, fv_combiner *c)
{
    const struct combiner *o = call->options;

    *c = (fv_combiner){.call = call, .options = o, .group = call->query_heads / call->key_heads};
    c->length = o->form == COMBINER_LOGN ? 1 : o->segment > 0 ? o->segment : root(call->keys);
    c->q = fv_grouped(&call->q, call->key_heads);
    FV_TRY(fv_as_f32(ctx, &call->k, &c->k));
    FV_TRY(fv_as_f32(ctx, &call->v, &c->v));
    c->k = fv_grouped(&c->k, call->key_heads);
    c->v = fv_grouped(&c->v, call->key_heads);
    return FV_OK;
}

/* Rows of a plane: [count,heads,rows,C]. */
static fv_tensor lay_out(const fv_strided *r, int64_t p, int64_t count, int64_t rows)
{
    const fv_tensor *x = r->x;
    const int64_t *d = x->dims, *s = x->strides;

    return fv_view(x, FV_DIMS(count, d[2], rows, d[4]), (const int64_t[]){r->across * s[3], s[2], r->step * s[3], s[4]},
                   p / d[1] * s[0] + p % d[1] * s[1] + r->first * s[3]);
}

fv_status fv_combiner_attend(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *b)
{
    static const fv_plan all;
    const fv_plan *plan = b->plan ? b->plan : &all;
    fv_logits own = fv_call_logits(c->call);
    fv_attend_args a = {.plan = plan, .logits = b->logits};

    a.logits.softcap = own.softcap;
    a.logits.gain = own.gain;
    if (b->logits.scale == 0) a.logits.scale = own.scale, a.logits.zero_scale = own.zero_scale;
    a.q = lay_out(&b->q, c->plane, b->count, b->queries);
    a.k = lay_out(&b->k, c->plane, b->count, b->keys);
    a.v = lay_out(&b->v, c->plane, b->count, b->keys);
    a.o = lay_out(&b->o, c->plane, b->count, b->queries);
    if (b->lse.x) a.lse = lay_out(&b->lse, c->plane, b->count, b->queries), a.lse.rank = 3;
    FV_TRY(fv_count_pairs(
        ctx, &(fv_call){.batch = b->count, .query_heads = c->group, .queries = b->queries, .pairs = c->call->pairs},
        plan, b->keys));
    return fv_attend(ctx, &a);
}

fv_status fv_combiner_attend_all(fv_ctx *ctx, const fv_combiner *c, const fv_combiner_block *block)
{
    fv_combiner own = *c;

    for (own.plane = 0; own.plane < c->call->batch * c->call->key_heads; own.plane++)
        FV_TRY(fv_combiner_attend(ctx, &own, block));
    return FV_OK;
}

fv_tensor fv_combiner_channels(const fv_combiner *c, const fv_tensor *rows, int64_t from, int64_t width)
{
    const int64_t *d = rows->dims, *s = rows->strides;

    return fv_view(rows, FV_DIMS(d[0], d[1], c->group, d[2], width),
                   (const int64_t[]){s[0], s[1], d[3] / c->group, s[2], 1}, from);
}

fv_status fv_combiner_part(fv_ctx *ctx, fv_combiner *c, fv_tensor *o, fv_tensor *lse)
{
    const fv_call *call = c->call;
    int64_t G = c->group, N = call->queries, Dv = call->value_dim;
    int p = c->merge.parts++;
    fv_tensor *own_o = &c->merge.o_part[p], *own_lse = &c->merge.lse_part[p];

    FV_TRY(fv_tensor_zeros(ctx, own_o, FV_F32, FV_DIMS(1, G, N, Dv)));
    FV_TRY(fv_tensor_new(ctx, own_lse, FV_F32, FV_DIMS(1, G, N)));
    for (int64_t row = 0; row < G * N; row++)
        ((float *)own_lse->data)[row] = -INFINITY;
    *o = fv_view(own_o, FV_DIMS(1, 1, G, N, Dv), (const int64_t[]){0, 0, N * Dv, Dv, 1}, 0); /* in any plane */
    *lse = fv_view(own_lse, FV_DIMS(1, 1, G, N, 1), (const int64_t[]){0, 0, N, 1, 1}, 0);
    return FV_OK;
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

static int64_t summary_width(const fv_call *call)
{
    const struct combiner *o = call->options;
    bool axial = o->form == COMBINER_MIXTURE || o->form == COMBINER_ROWMAJOR;

    return axial ? fv_combiner_axial_width(call, o) : call->head_dim + call->value_dim;
}

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct combiner *o = call->options;
    int64_t group = call->key_heads > 0 ? call->query_heads / call->key_heads : 1;

    *width = group * (kind == QUERIES ? call->head_dim : summary_width(call));
    if (kind == QUERIES || o->form == COMBINER_LOGN) return keys;
    if (o->segment == 0) return 0;
    return o->form == COMBINER_FIXED ? keys / o->segment : keys / o->segment * o->segment;
}

static fv_status make_queries(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    int64_t rows = out->dims[2], group = call->query_heads / call->key_heads;
    fv_combiner c = {.group = group};
    fv_tensor q, scale, place = fv_combiner_channels(&c, out, 0, call->head_dim);

    if (from < call->offset)
        return fv_fail(FV_E_UNSUPPORTED, "combiner: the queries before this part of the sequence are not known");
    q = fv_slice(&call->q, 2, from - call->offset, rows);
    FV_TRY(fv_tensor_new(ctx, &scale, FV_F32, FV_DIMS(1)));
    *(float *)scale.data = call->scale;
    return fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = fv_grouped(&q, call->key_heads), .y = scale, .out = place});
}

fv_status fv_combiner_queries(fv_ctx *ctx, const fv_combiner *c, fv_tensor *q)
{
    fv_tensor rows;

    FV_TRY(fv_keep(ctx, c->call, kept, QUERIES, c->call->keys, make_queries, &rows));
    *q = fv_combiner_channels(c, &rows, 0, c->call->head_dim);
    return FV_OK;
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
    int64_t last = fv_min((s->count - 1) * s->step + s->length, x->dims[3] - s->first);
    fv_tensor rows = fv_slice(x, 3, s->first, last), plain = rows;

    if (c->options->pool >= 3) {
        FV_TRY(fv_tensor_new(ctx, &rows, FV_F32, 5, plain.dims));
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_RELU, .x = plain, .out = rows}));
    }
    return fv_pool_rows(
        ctx, &(fv_pool_args){
                 .kind = kinds[c->options->pool % 3], .x = rows, .out = *out, .block = s->length, .stride = s->step});
}

/* Every step-th row of x [B,Hkv,heads,rows,C] from `first` on. */
static fv_tensor every(const fv_tensor *x, int64_t first, int64_t step, int64_t count)
{
    fv_tensor rows = fv_slice(x, 3, first, 0);

    rows.dims[3] = count;
    rows.strides[3] *= step;
    return rows;
}

static fv_status summarise(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *q, const struct spans *s,
                           const fv_tensor *out)
{
    int64_t D = c->call->head_dim, Dv = c->call->value_dim, end = s->first + (s->count - 1) * s->step + s->length;
    int64_t whole = s->count - (end > c->call->keys);
    fv_tensor key = fv_combiner_channels(c, out, 0, D), value = fv_combiner_channels(c, out, D, Dv), pooled;
    fv_tensor k = fv_broadcast(&c->k, FV_DIMS(c->k.dims[0], c->k.dims[1], c->group, c->k.dims[3], D)), keys;

    if (s->count < 1) return FV_OK;
    keys = every(&key, s->row, s->row_step, s->count);
    FV_TRY(pool_spans(ctx, c, s, &k, &keys));
    if (s->length == 1) /* one token: its value */
        return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY,
                                                .x = every(&c->v, s->first, s->step, s->count),
                                                .out = every(&value, s->row, s->row_step, s->count)});
    FV_TRY(fv_tensor_new(ctx, &pooled, FV_F32, 5, keys.dims));
    FV_TRY(pool_spans(ctx, c, s, q, &pooled));
    for (int64_t from = 0; from < s->count; from = fv_max(whole, from + 1)) { /* a last one may be shorter */
        fv_combiner_block block = {.count = from < whole ? whole : 1,
                                   .queries = 1,
                                   .keys = from < whole ? s->length : c->call->keys - s->first - from * s->step,
                                   .q = {&pooled, from, 1, 1},
                                   .k = {&c->k, s->first + from * s->step, s->step, 1},
                                   .v = {&c->v, s->first + from * s->step, s->step, 1},
                                   .o = {&value, s->row + from * s->row_step, s->row_step, 1},
                                   .logits = {.scale = 1}};
        FV_TRY(fv_combiner_attend_all(ctx, c, &block));
    }
    return FV_OK;
}

/* Span n of form=logn ends with token n; its length is the largest power of two that divides n + 1. */
static fv_status summarise_powers(fv_ctx *ctx, const fv_combiner *c, const fv_tensor *q, int64_t from,
                                  const fv_tensor *out)
{
    int64_t end = from + out->dims[2];

    for (int64_t length = 1; length <= end; length *= 2) {
        int64_t first = length - 1; /* of this length; others follow every 2 * length rows */
        if (from > first) first += fv_ceil_div(from - first, 2 * length) * 2 * length;
        FV_TRY(summarise(ctx, c, q,
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

static fv_status make_summaries(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    fv_combiner c;
    fv_tensor q;

    FV_TRY(split(ctx, call, &c));
    if (c.options->form >= COMBINER_MIXTURE) return fv_combiner_axial_make(ctx, &c, from, out);
    FV_TRY(fv_combiner_queries(ctx, &c, &q));
    if (c.options->form == COMBINER_LOGN) return summarise_powers(ctx, &c, &q, from, out);
    return summarise(
        ctx, &c, &q,
        &(struct spans){
            .first = from * c.length, .step = c.length, .length = c.length, .count = out->dims[2], .row_step = 1},
        out);
}

/* ---- who reads what ---------------------------------------------------------------------------------------------- */

/* Tokens of the own segment. */
static void add_segment(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_combiner *c = user;
    int64_t p = c->call->offset + i, first = p / c->length * c->length;

    (void)head;
    fv_key_row_add(row, first, c->call->causal ? p + 1 : first + c->length);
}

static fv_status plan_segments(fv_ctx *ctx, const fv_combiner *c, fv_plan *plan)
{
    const fv_call *call = c->call;
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
    int64_t own = (c->call->offset + i) / c->length;

    (void)head;
    fv_key_row_add(row, 0, own);
    if (!c->call->causal) fv_key_row_add(row, own + !c->options->own_span, INT32_MAX);
}

/* form=logn: a span is read by as many tokens behind it as it has. */
static fv_status plan_powers(fv_ctx *ctx, const fv_combiner *c, int64_t rows, fv_plan *plan)
{
    const fv_call *call = c->call;
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
    const fv_call *call = c->call;
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

static fv_status attend_part(fv_ctx *ctx, fv_combiner *c, const fv_tensor *k, const fv_tensor *v, const fv_plan *plan,
                             const fv_tensor *bias)
{
    fv_combiner_block block = {
        .count = 1, .queries = c->call->queries, .keys = k->dims[3], .plan = plan, .logits = {.bias = *bias}};
    fv_tensor o, lse;

    FV_TRY(fv_combiner_part(ctx, c, &o, &lse));
    block.q = (fv_strided){&c->q, 0, 0, 1};
    block.k = (fv_strided){k, 0, 0, 1};
    block.v = (fv_strided){v, 0, 0, 1};
    block.o = (fv_strided){&o, 0, 0, 1};
    block.lse = (fv_strided){&lse, 0, 0, 1};
    return fv_combiner_attend(ctx, c, &block);
}

static fv_status compute_plane(fv_ctx *ctx, fv_combiner *c, const struct plans *plans)
{
    static const fv_tensor none;
    int64_t D = c->call->head_dim, b = c->plane / c->call->key_heads, h = c->plane % c->call->key_heads * c->group;
    fv_tensor o = fv_slice(&c->call->o, 0, b, 1), key, value;

    c->merge = (fv_merge_args){.o = fv_slice(&o, 1, h, c->group)};
    if (fv_present(&c->call->lse)) {
        fv_tensor lse = fv_slice(&c->call->lse, 0, b, 1);
        c->merge.lse = fv_slice(&lse, 1, h, c->group);
    }
    FV_TRY(attend_part(ctx, c, &c->k, &c->v, &plans->segments, &none));
    if (c->options->form >= COMBINER_MIXTURE) {
        FV_TRY(fv_combiner_axial_parts(ctx, c));
    } else if (c->summaries.dims[2] > 0) {
        key = fv_combiner_channels(c, &c->summaries, 0, D);
        value = fv_combiner_channels(c, &c->summaries, D, c->call->value_dim);
        FV_TRY(attend_part(ctx, c, &key, &value, &plans->spans, &plans->bias));
    }
    return fv_merge(ctx, &c->merge);
}

static int64_t summary_count(const fv_combiner *c)
{
    int64_t keys = c->call->keys, L = c->length;

    if (c->options->form == COMBINER_LOGN) return keys;
    if (c->options->form == COMBINER_FIXED) return c->call->causal ? keys / L : fv_ceil_div(keys, L);
    return keys / L * L;
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct plans plans;
    fv_combiner c;
    fv_tensor q;

    FV_TRY(split(ctx, call, &c));
    if (call->kept) FV_TRY(fv_combiner_queries(ctx, &c, &q)); /* for later ones, should no span be complete now */
    FV_TRY(fv_keep(ctx, call, kept, SUMMARIES, summary_count(&c), make_summaries, &c.summaries));
    FV_TRY(make_plans(ctx, &c, &plans));
    for (c.plane = 0; c.plane < call->batch * call->key_heads; c.plane++) {
        fv_mark mark = fv_scratch_mark(ctx);
        fv_status status = compute_plane(ctx, &c, &plans);
        fv_scratch_release(ctx, mark);
        FV_TRY(status);
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
}

/* Own segment or row, and of a mixture the column above. */
static void add_direct(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_combiner *c = user;
    int64_t p = c->call->offset + i;

    add_segment(user, head, i, row);
    for (int64_t j = p % c->length; c->options->form == COMBINER_MIXTURE && j < p; j += c->length)
        fv_key_row_add(row, j, j + 1);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_combiner c;

    FV_TRY(split(ctx, call, &c));
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
