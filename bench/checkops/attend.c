/* Softmax attention: forward over every type of keys and every kind of plan, backward, statistics, merges. */
#include "checkops.h"

#include <math.h>
#include <string.h>

/* ---- plans ----------------------------------------------------------------------------------------------------- */

enum kind { FULL, CAUSAL, WINDOW, SINKS, GRID, LISTS, TILES, KEYS, SEGMENTS, KINDS };

static const char *const kind_names[KINDS] = {"full",  "causal",        "window",        "window with sinks", "grid",
                                              "lists", "lists of bits", "lists of keys", "segments"};

/* Lists that show a quarter of the key blocks, by chance. */
static fv_status make_lists(struct checkops *c, enum kind kind, int64_t queries, int64_t keys, fv_lists *lists)
{
    fv_random random = fv_random_new(c->seed, ++c->stream);

    return app_random_lists(c->reference, &random,
                            &(app_lists){.queries = queries,
                                         .keys = keys,
                                         .key_block = kind == KEYS ? 1 : 64,
                                         .density = 0.25,
                                         .tiles = kind == TILES ? 2 : 0},
                            lists);
}

/* Three texts in one batch. */
static fv_status make_segments(struct checkops *c, int64_t n, int32_t **segment)
{
    FV_TRY(FV_SCRATCH(c->reference, *segment, n));
    for (int64_t i = 0; i < n; i++)
        (*segment)[i] = (int32_t)(i * 3 / n);
    return FV_OK;
}

static fv_status make_plan(struct checkops *c, enum kind kind, int64_t queries, int64_t keys, fv_plan *plan)
{
    int64_t window = c->small ? 9 : 256, side = (int64_t)lround(sqrt((double)queries));
    int32_t *segment;

    while (queries % side != 0)
        side--;
    *plan = (fv_plan){.causal = kind != FULL && kind != GRID && kind != LISTS && kind != KEYS};
    plan->offset = kind == GRID ? 0 : keys - queries;
    if (kind == WINDOW || kind == SINKS) plan->window = (fv_window){.window = window, .sink = kind == SINKS ? 4 : 0};
    if (kind == GRID)
        plan->grid = (fv_grid){.rank = 2,
                               .dims = {side, queries / side},
                               .window = {side / 3, queries / side / 3},
                               .stride = {1, 1},
                               .dilation = {1, 1}};
    if (kind == SEGMENTS) {
        FV_TRY(make_segments(c, keys, &segment));
        plan->key_segment = segment;
        plan->query_segment = segment + (keys - queries);
    }
    if (kind == LISTS || kind == TILES || kind == KEYS) return make_lists(c, kind, queries, keys, &plan->lists);
    return FV_OK;
}

/* ---- calls ----------------------------------------------------------------------------------------------------- */

struct shape {
    const char *op;
    int64_t heads, key_heads, queries, keys, dim;
    fv_dtype dtype; /* of keys and values */
    enum kind kind;
    const char *terms; /* "soft-cap", "bias", ... */
    fv_precision precision;
};

struct call {
    fv_attend_args args;
    fv_attend_grads grads;
    fv_stats_args stats;
    fv_plan plan;
};

static fv_status call_attend(fv_ctx *ctx, void *args)
{
    return fv_attend(ctx, &((struct call *)args)->args);
}

static fv_status call_backward(fv_ctx *ctx, void *args)
{
    struct call *call = args;

    return fv_attend_backward(ctx, &call->args, &call->grads);
}

static fv_status call_stats(fv_ctx *ctx, void *args)
{
    return fv_attend_stats(ctx, &((struct call *)args)->stats);
}

/* Logits are sums of D products scaled by D^-1/2 of numbers within -1..1, in size up to about 3: f32 sums err by
 * 2^-24 (D + 8) of that.  With bf16 operands the factors and the weights are rounded by 2^-9, a logit's terms
 * independently: seven standard deviations of 2^-9 / sqrt(3) * sqrt(sum of squares / D) (at most 1/3), and 2^-9 twice
 * for a weight and its sum.  A weight errs by that share. */
static double weight_error(const struct shape *s)
{
    double error = 3 * 0x1p-24 * (double)(s->dim + 8) + 0x1p-22;

    /* keys and values of 16 bits or fewer are multiplied in bf16 unless f32 is asked for */
    bool rounded = s->precision == FV_PRECISION_BF16 || (s->precision == FV_PRECISION_AUTO && s->dtype != FV_F32);
    if (rounded) error += 7 * 0x1p-9 / sqrt(3) / 3 * sqrt(2) + 2 * 0x1p-9;
    return error;
}

static void label(struct checkops *c, const struct shape *s, trial *t, bool *wanted)
{
    *wanted = checkops_wanted(c, t, s->op, "%lld/%lld heads, %lld x %lld, D=%lld, %s, %s%s%s", (long long)s->heads,
                              (long long)s->key_heads, (long long)s->queries, (long long)s->keys, (long long)s->dim,
                              s->precision == FV_PRECISION_BF16 ? "bf16 products" : fv_dtype_name(s->dtype),
                              kind_names[s->kind], s->terms ? ", " : "", s->terms ? s->terms : "");
}

static bool has(const struct shape *s, const char *term)
{
    return s->terms && strstr(s->terms, term);
}

/* q, k, v, the plan and the terms of the logits. */
static fv_status make_call(struct checkops *c, const struct shape *s, struct call *call)
{
    fv_attend_args *a = &call->args;
    int64_t H = s->heads, N = s->queries, M = s->keys;

    *call = (struct call){0};
    FV_TRY(make_plan(c, s->kind, N, M, &call->plan));
    a->plan = &call->plan;
    a->q = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, H, N, s->dim));
    a->k = checkops_noise(c, s->dtype, 1, 0, FV_DIMS(1, s->key_heads, M, s->dim));
    a->v = checkops_noise(c, s->dtype, 1, 0, FV_DIMS(1, s->key_heads, M, s->dim));
    if (has(s, "soft-cap")) a->logits.softcap = 2;
    if (has(s, "bias")) a->logits.bias = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, H, N, M));
    if (has(s, "temperature")) a->logits.temperature = checkops_noise(c, FV_F32, 0.5, 1, FV_DIMS(1, H, N));
    if (has(s, "sinks")) a->sinks = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(H));
    a->o = checkops_empty(c, FV_F32, FV_DIMS(1, H, N, s->dim));
    a->lse = checkops_empty(c, FV_F32, FV_DIMS(1, H, N));
    return c->status;
}

/* Flops of `products` products over the visible pairs. */
static fv_status count_work(struct checkops *c, const struct shape *s, const struct call *call, int products,
                            app_work *work)
{
    const fv_attend_args *a = &call->args;
    int64_t pairs;

    FV_TRY(fv_plan_pairs(c->reference, a->plan, 1, s->heads, s->queries, s->keys, &pairs));
    work->flops = 2.0 * (double)products * (double)pairs * (double)s->dim;
    work->read =
        checkops_bytes(&a->q) + checkops_bytes(&a->k) + checkops_bytes(&a->v) + checkops_bytes(&a->logits.bias);
    work->written = checkops_bytes(&a->o);
    work->unit = s->dtype == FV_BF16 ? APP_DOT_BF16 : s->dtype == FV_Q8_0 ? APP_DOT_INT8 : APP_FMA;
    return FV_OK;
}

static fv_status forward(struct checkops *c, const struct shape *s)
{
    struct call call;
    bool wanted;
    trial t;

    label(c, s, &t, &wanted);
    if (!wanted) return c->status;
    FV_TRY(make_call(c, s, &call));
    FV_TRY(count_work(c, s, &call, 2, &t.work));
    /* both the weights and their sum err; values are at most about 2 (of stored blocks) and rows of few keys show them;
     * f32 sums of M weights, which are at most 1 together, err by 2^-24 sqrt(M) */
    checkops_output(&t, "o", call.args.o, 2 * weight_error(s) + 0x1p-24 * sqrt((double)s->keys));
    checkops_output(&t, "lse", call.args.lse, weight_error(s) + 0x1p-22);
    t.call = call_attend;
    t.args = &call;
    t.precision = s->precision;
    return checkops_try(c, &t);
}

static fv_status backward(struct checkops *c, const struct shape *s)
{
    struct call call;
    fv_attend_args *a = &call.args;
    fv_attend_grads *g = &call.grads;
    bool wanted;
    trial t;

    label(c, s, &t, &wanted);
    if (!wanted) return c->status;
    FV_TRY(make_call(c, s, &call));
    FV_TRY(fv_attend(c->reference, a));
    FV_TRY(count_work(c, s, &call, 5, &t.work));
    g->d_o = checkops_noise(c, FV_F32, 1, 0, 4, a->o.dims);
    /* sums over up to M keys or N queries of weights times differences of sums over D, each with the error of a weight
     * and of f32 sums; terms cancel, so against the largest */
    double tolerance = 4 * weight_error(s) + 0x1p-24 * (double)(s->keys + s->queries);
    g->d_q = checkops_output(&t, "d_q", checkops_empty(c, FV_F32, 4, a->q.dims), tolerance);
    g->d_k = checkops_output(&t, "d_k", checkops_empty(c, FV_F32, 4, a->k.dims), tolerance);
    g->d_v = checkops_output(&t, "d_v", checkops_empty(c, FV_F32, 4, a->v.dims), tolerance);
    for (int n = 0; n < t.outputs; n++)
        t.output[n].added = true;
    t.call = call_backward;
    t.args = &call;
    return checkops_try(c, &t);
}

static fv_status stats(struct checkops *c, const struct shape *s)
{
    int64_t H = s->heads, N = s->queries, M = s->keys;
    struct call call;
    bool wanted;
    trial t;

    label(c, s, &t, &wanted);
    if (!wanted) return c->status;
    FV_TRY(make_call(c, s, &call));
    FV_TRY(fv_attend(c->reference, &call.args));
    FV_TRY(count_work(c, s, &call, 1, &t.work));
    call.stats = (fv_stats_args){.q = call.args.q, .k = call.args.k, .lse = call.args.lse, .plan = &call.plan};
    double tolerance = 2 * weight_error(s) + 0x1p-24 * (double)(M + N);
    call.stats.column_sum = checkops_output(&t, "column_sum", checkops_empty(c, FV_F32, FV_DIMS(1, H, M)), tolerance);
    /* -ln p is up to about 10 where p counts */
    call.stats.entropy = checkops_output(&t, "entropy", checkops_empty(c, FV_F32, FV_DIMS(1, H, N)), 10 * tolerance);
    call.stats.distance = checkops_output(&t, "distance", checkops_empty(c, FV_F32, FV_DIMS(1, H, N)), tolerance);
    t.call = call_stats;
    t.args = &call;
    t.work.written = 0;
    return checkops_try(c, &t);
}

/* ---- merges ---------------------------------------------------------------------------------------------------- */

struct merge_call {
    fv_merge_args args;
    fv_merge_grads grads;
};

static fv_status call_merge(fv_ctx *ctx, void *args)
{
    return fv_merge(ctx, &((struct merge_call *)args)->args);
}

static fv_status call_merge_backward(fv_ctx *ctx, void *args)
{
    struct merge_call *call = args;

    return fv_merge_backward(ctx, &call->args, &call->grads);
}

static fv_status merge(struct checkops *c, bool weights, bool back, int64_t N)
{
    int64_t H = c->small ? 3 : 32, D = c->small ? 20 : 128;
    struct merge_call call = {.args = {.parts = 3}};
    fv_merge_args *a = &call.args;
    trial t;

    if (!checkops_wanted(c, &t, back ? "merge_backward" : "merge", "%s, 3 parts of %lld heads, %lld x %lld",
                         weights ? "by weights" : "by lse", (long long)H, (long long)N, (long long)D))
        return c->status;
    for (int p = 0; p < 3; p++) {
        a->o_part[p] = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, H, N, D));
        if (weights)
            a->weight[p] = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, H, N));
        else
            a->lse_part[p] = checkops_noise(c, FV_F32, 3, 0, FV_DIMS(1, H, N));
        t.work.read += checkops_bytes(&a->o_part[p]);
    }
    a->o = checkops_empty(c, FV_F32, FV_DIMS(1, H, N, D));
    if (!weights) a->lse = checkops_empty(c, FV_F32, FV_DIMS(1, H, N));
    FV_TRY(c->status);
    FV_TRY(fv_merge(c->reference, a));
    t.work.flops = 6.0 * (double)(H * N * D) * (back ? 2 : 1);
    t.work.written = checkops_bytes(&a->o) * (back ? 3 : 1);
    if (back) {
        call.grads.d_o = checkops_noise(c, FV_F32, 1, 0, 4, a->o.dims);
        for (int p = 0; p < 3; p++) /* products of a few rounded factors; weights' gradients are sums over D */
            call.grads.d_o_part[p] = checkops_output(&t, "d_o_part", checkops_empty(c, FV_F32, 4, a->o.dims), 0x1p-20);
        for (int p = 0; p < 3; p++) {
            fv_tensor *to = weights ? &call.grads.d_weight[p] : &call.grads.d_lse_part[p];
            *to = checkops_output(&t, weights ? "d_weight" : "d_lse_part", checkops_empty(c, FV_F32, FV_DIMS(1, H, N)),
                                  0x1p-23 * (double)(D + 16));
        }
        for (int n = 0; n < t.outputs; n++)
            t.output[n].added = true;
    } else {
        /* three products; weights are exponentials of differences up to 6, which err by 2^-24 * 6 and two ulp */
        checkops_output(&t, "o", a->o, 0x1p-24 * 20);
        if (!weights) checkops_output(&t, "lse", a->lse, 0x1p-24 * 20);
    }
    t.call = back ? call_merge_backward : call_merge;
    t.args = &call;
    return checkops_try(c, &t);
}

/* ---- all of them ----------------------------------------------------------------------------------------------- */

static fv_status each_forward(struct checkops *c, const struct shape *base)
{
    static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0};
    struct shape s = *base;

    for (int n = 0; n < 4; n++) { /* every type of keys, full and causal */
        s.dtype = types[n];
        for (s.kind = FULL; s.kind <= CAUSAL; s.kind++)
            FV_TRY(forward(c, &s));
    }
    s.dtype = FV_BF16;
    s.precision = FV_PRECISION_BF16;
    for (s.kind = FULL; s.kind <= CAUSAL; s.kind++)
        FV_TRY(forward(c, &s));
    return FV_OK;
}

static fv_status prefill(struct checkops *c)
{
    static const char *const terms[] = {"soft-cap", "bias", "temperature", "sinks", "soft-cap, bias, sinks"};
    static const int64_t dims[] = {64, 128, 256};
    int64_t n = c->small ? 77 : 1024;
    struct shape base = {"attend", c->small ? 2 : 8, c->small ? 1 : 8, n, n, 64, FV_F32, FULL, NULL, FV_PRECISION_AUTO};

    for (int d = 0; d < 3; d++) {
        base.dim = dims[d];
        base.heads = base.key_heads = c->small ? 2 : 512 / dims[d];
        FV_TRY(each_forward(c, &base));
    }
    base.heads = c->small ? 2 : 8, base.dim = 64;
    base.key_heads = c->small ? 1 : 2; /* grouped */
    if (c->small) base.queries = 33, base.keys = 130;
    FV_TRY(each_forward(c, &base));
    base.queries = base.keys = c->small ? 81 : 1024;
    for (base.kind = WINDOW; base.kind < KINDS; base.kind++)
        FV_TRY(forward(c, &base));
    base.kind = CAUSAL;
    for (size_t i = 0; i < sizeof terms / sizeof *terms; i++) {
        base.terms = terms[i];
        FV_TRY(forward(c, &base));
    }
    return FV_OK;
}

static fv_status decode(struct checkops *c)
{
    static const int64_t layouts[][3] = {{32, 8, 128}, {64, 8, 64}, {9, 3, 64}, {4, 1, 256}};
    static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0};
    struct shape s = {.op = "attend", .queries = 1, .kind = CAUSAL};

    for (int layout = 0; layout < 4; layout++)
        for (int n = 0; n < 4; n++) { /* keys and values far beyond the caches */
            s.heads = layouts[layout][0], s.key_heads = layouts[layout][1], s.dim = layouts[layout][2];
            s.dtype = types[n];
            double row = 2.0 * (double)(s.key_heads * s.dim) * (double)fv_dtype_block_bytes(s.dtype) /
                         (double)fv_dtype_block(s.dtype);
            s.keys = c->small ? 700 : (int64_t)(APP_FAR * c->peaks.cache / row);
            FV_TRY(forward(c, &s));
        }
    s.kind = WINDOW;
    return forward(c, &s);
}

static fv_status reductions(struct checkops *c)
{
    int64_t n = c->small ? 81 : 512;
    struct shape s = {"attend_backward", c->small ? 2 : 8, c->small ? 1 : 8, n, n, 64, FV_F32, FULL, NULL,
                      FV_PRECISION_AUTO};

    for (s.kind = FULL; s.kind <= TILES; s.kind++)
        FV_TRY(backward(c, &s));
    s.dim = 128, s.kind = CAUSAL;
    FV_TRY(backward(c, &s));
    s.dtype = FV_BF16;
    for (s.dim = 64; s.dim <= 128; s.dim += 64)
        for (s.kind = FULL; s.kind <= CAUSAL; s.kind++)
            FV_TRY(backward(c, &s));
    s.op = "attend_stats", s.dim = 64, s.dtype = FV_F32;
    for (s.kind = FULL; s.kind <= TILES; s.kind++)
        FV_TRY(stats(c, &s));
    for (int weights = 0; weights < 2; weights++)
        for (int back = 0; back < 2; back++) {
            FV_TRY(merge(c, weights, back, 1));
            FV_TRY(merge(c, weights, back, c->small ? 37 : 2048));
        }
    return FV_OK;
}

fv_status checkops_attend(struct checkops *c)
{
    FV_TRY(prefill(c));
    FV_TRY(decode(c));
    return reductions(c);
}
