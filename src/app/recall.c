#include "app/recall.h"

#include <math.h>
#include <string.h>

#include "attention/attention.h"
#include "attention/sparse/core.h"
#include "base/random.h"
#include "models/session.h"

/* A layer's heads, and what is needed of them. */
struct heads {
    struct app *app;
    recall *r;
    int64_t at; /* place of the layer among those measured */
    const fv_open_layer *open;
    fv_logits logits;
    fv_tensor ones;   /* [1,Hkv,N,1]: values, so that attention adds up its weights */
    fv_tensor lse;    /* [1,H,N] of dense */
    int32_t **counts; /* [setups]: keys that each query reads [H,N]; NULL: not of a plan */
    double *sum;      /* [setups]: of recall over heads and queries, weighted */
    double *best;
};

static fv_ctx *ctx_of(const struct heads *h)
{
    return h->app->ctx;
}

/* ---- plans ------------------------------------------------------------------------------------------------------ */

/* out [1,H,N,1] = sum of value exp(logits - lse) over the pairs of a plan with the keys. */
static fv_status add_up(const struct heads *h, const fv_plan *plan, const fv_logits *logits, const fv_tensor *lse,
                        const fv_tensor *k, const fv_tensor *value, const fv_tensor *out)
{
    return fv_attend(
        ctx_of(h),
        &(fv_attend_args){
            .q = h->open->q, .k = *k, .v = *value, .o = *out, .plan = plan, .logits = *logits, .lse_in = *lse});
}

/* One number for each column, for all key-value heads. */
static fv_tensor column_values(const struct heads *h, const float *value, int64_t columns)
{
    const fv_tensor row = {.data = (void *)(uintptr_t)value, .rank = 2, .dims = {columns, 1}, .strides = {1, 1}};

    return fv_broadcast(&row, FV_DIMS(1, h->open->k.dims[1], columns, 1));
}

/* The same where columns of the plan stand for several keys each: their first keys, their second ones, ... */
static fv_status add_up_columns(const struct heads *h, const fv_pairs *pairs, const fv_tensor *mass,
                                const fv_tensor *count, const fv_tensor *zero)
{
    const fv_logits flat = {.zero_scale = true};
    int64_t columns = pairs->columns, rows = fv_tensor_count(mass);
    fv_ctx *ctx = ctx_of(h);
    fv_tensor index, k, part, values;
    int32_t most = 1;
    float *value;

    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(1, 1, columns)));
    FV_TRY(fv_tensor_new(ctx, &k, FV_F32, FV_DIMS(1, h->open->k.dims[1], columns, h->open->k.dims[3])));
    FV_TRY(fv_tensor_new(ctx, &part, FV_F32, 4, mass->dims));
    FV_TRY(FV_SCRATCH(ctx, value, columns));
    values = column_values(h, value, columns);
    memset(mass->data, 0, (size_t)rows * sizeof(float));
    for (int32_t n = 0; n < most; n++) {
        for (int64_t j = 0; j < columns; j++) {
            bool has = n < pairs->column_keys[j];
            most = pairs->column_keys[j] > most ? pairs->column_keys[j] : most;
            ((int32_t *)index.data)[j] = pairs->column_key[j] + (has ? n : 0);
            value[j] = has;
        }
        FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = h->open->k, .index = index, .out = k}));
        FV_TRY(add_up(h, &pairs->plan, &h->logits, &h->lse, &k, &values, &part));
        for (int64_t i = 0; i < rows; i++)
            ((float *)mass->data)[i] += ((const float *)part.data)[i];
    }
    for (int64_t j = 0; j < columns; j++)
        value[j] = (float)pairs->column_keys[j];
    return add_up(h, &pairs->plan, &flat, zero, &k, &values, count);
}

static fv_status call_of(const struct heads *h, const fv_attention *attention, fv_call *call)
{
    const fv_mechanism *mechanism = attention->mechanism;
    fv_tensor o = {0};

    FV_TRY(fv_tensor_new(ctx_of(h), &o, FV_F32, 4, h->open->o.dims));
    FV_TRY(fv_call_make(attention,
                        &(fv_attention_args){.q = h->open->q,
                                             .k = h->open->k,
                                             .v = h->open->v,
                                             .o = o,
                                             .causal = true,
                                             .scale = mechanism->traits & FV_NO_SCALE ? NULL : &h->logits.scale},
                        call));
    call->softcap = h->logits.softcap;
    return FV_OK;
}

static fv_status read_plan(struct heads *h, int64_t s)
{
    const recall_setup *setup = &h->r->setup[s];
    const fv_mechanism *mechanism = setup->attention->mechanism;
    const fv_logits flat = {.zero_scale = true};
    int64_t H = h->open->q.dims[1], N = h->open->q.dims[2];
    fv_tensor mass, count, zero;
    fv_pairs pairs;
    fv_call call;

    FV_TRY(call_of(h, setup->attention, &call));
    FV_TRY(fv_call_pairs(ctx_of(h), mechanism, &call, &pairs));
    if (pairs.query_order || pairs.key_order || !pairs.plan.causal)
        return fv_fail(FV_E_UNSUPPORTED, "%s: has no causal set of pairs in the order of the text", mechanism->name);
    pairs.plan.lists.entry_bias = NULL; /* a term of the mechanism's own weights */
    FV_TRY(fv_tensor_new(ctx_of(h), &mass, FV_F32, FV_DIMS(1, H, N, 1)));
    FV_TRY(fv_tensor_new(ctx_of(h), &count, FV_F32, FV_DIMS(1, H, N, 1)));
    FV_TRY(fv_tensor_zeros(ctx_of(h), &zero, FV_F32, FV_DIMS(1, H, N)));
    if (pairs.columns) {
        FV_TRY(add_up_columns(h, &pairs, &mass, &count, &zero));
    } else {
        FV_TRY(add_up(h, &pairs.plan, &h->logits, &h->lse, &h->open->k, &h->ones, &mass));
        FV_TRY(add_up(h, &pairs.plan, &flat, &zero, &h->open->k, &h->ones, &count));
    }
    for (int64_t n = 0; n < H * N; n++) {
        h->counts[s][n] = (int32_t)lrintf(((const float *)count.data)[n]);
        h->sum[s] += (double)(n % N + 1) * (double)((const float *)mass.data)[n];
    }
    return FV_OK;
}

/* Leaves out what cannot be done where nobody asked for it. */
static fv_status leave_out(struct app *app, recall_setup *setup, fv_status status)
{
    if (status == FV_OK || !setup->optional || status == FV_E_MEMORY || status == FV_E_INTERRUPTED) return status;
    app_say(app, "%s is left out: %s", setup->name, fv_error());
    setup->left_out = true;
    return FV_OK;
}

static fv_status try_plan(struct heads *h, int64_t s)
{
    fv_mark mark = fv_scratch_mark(ctx_of(h));
    fv_status status = read_plan(h, s);

    fv_scratch_release(ctx_of(h), mark);
    return leave_out(h->app, &h->r->setup[s], status);
}

/* ---- bounds ----------------------------------------------------------------------------------------------------- */

/* Keys that a query with `seen` of them reads at a share. */
static int64_t keys_at(double share, int64_t seen)
{
    return fv_max((int64_t)(share * (double)seen + 0.5), 1);
}

/* Scratch memory of a thread. */
struct row {
    float *weight, *other; /* [N] */
    double *prefix;        /* [N + 1] */
};

struct rows {
    const struct heads *h;
    const fv_tensor *scores; /* [1,H,n,N] of queries from .. */
    int64_t from, n;
    struct row *row; /* [threads] */
    double *out;     /* [H, n, setups] */
};

enum { DIGIT = 11, DIGITS = 3, BUCKETS = 1 << DIGIT };

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof bits);
    return bits & 0x7fffffff;
}

/* Sorts what is not negative, largest first, digit by digit of its bits; the result is in `other` (3 digits). */
static void sort(float *x, float *other, int64_t count)
{
    int32_t start[DIGITS][BUCKETS] = {0};

    for (int64_t n = 0; n < count; n++)
        for (int d = 0; d < DIGITS; d++)
            start[d][bits_of(x[n]) >> d * DIGIT & (BUCKETS - 1)]++;
    for (int d = 0; d < DIGITS; d++) {
        float *from = d % 2 ? other : x, *to = d % 2 ? x : other;
        int32_t at = 0;
        for (int b = BUCKETS - 1; b >= 0; b--) {
            int32_t here = start[d][b];
            start[d][b] = at;
            at += here;
        }
        for (int64_t n = 0; n < count; n++)
            to[start[d][bits_of(from[n]) >> d * DIGIT & (BUCKETS - 1)]++] = from[n];
    }
}

static void add_prefix(const float *x, int64_t count, double *prefix)
{
    prefix[0] = 0;
    for (int64_t n = 0; n < count; n++)
        prefix[n + 1] = prefix[n] + (double)x[n];
}

/* The first `count` of `seen` weights become ones chosen by chance. */
static void shuffle(fv_random random, float *x, int64_t count, int64_t seen)
{
    for (int64_t n = 0; n < count; n++) {
        int64_t other = n + fv_random_below(&random, seen - n);
        float here = x[n];
        x[n] = x[other];
        x[other] = here;
    }
}

static void weigh(const struct rows *rows, const float *scores, double lse, int64_t seen, float *weight)
{
    float softcap = rows->h->logits.softcap;

    for (int64_t j = 0; j < seen; j++) {
        float s = softcap > 0 ? softcap * tanhf(scores[j] / softcap) : scores[j];
        weight[j] = expf(s - (float)lse);
    }
}

/* One query of one head: its weights by chance, and by size. */
static void row_item(void *user, int64_t index, int thread)
{
    const struct rows *rows = user;
    const struct heads *h = rows->h;
    const recall *r = h->r;
    int64_t head = index / rows->n, i = rows->from + index % rows->n, N = r->tokens, seen = i + 1;
    struct row *own = &rows->row[thread];
    double *out = rows->out + index * r->setups;
    float lse = *(const float *)fv_at(&h->lse, 0, head, i, 0);

    weigh(rows, fv_at(rows->scores, 0, head, i - rows->from, 0), lse, seen, own->weight);
    shuffle(fv_random_new((uint64_t)h->app->common->seed, (uint64_t)((h->at * h->open->q.dims[1] + head) * N + i)),
            own->weight, keys_at(recall_shares[RECALL_SHARES - 1], seen), seen);
    add_prefix(own->weight, seen, own->prefix);
    for (int64_t s = 0; s < r->setups; s++)
        if (r->setup[s].kind == RECALL_RANDOM) out[s] = own->prefix[keys_at(r->setup[s].share, seen)];
    sort(own->weight, own->other, seen);
    add_prefix(own->other, seen, own->prefix);
    for (int64_t s = 0; s < r->setups; s++) {
        if (r->setup[s].kind == RECALL_ORACLE) out[s] = own->prefix[keys_at(r->setup[s].share, seen)];
        if (r->setup[s].kind == RECALL_PLAN) out[s] = own->prefix[fv_clamp(h->counts[s][head * N + i], 0, seen)];
    }
}

static fv_status use_scores(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct heads *h = user;
    int64_t H = scores->dims[1], n = scores->dims[2], N = scores->dims[3];
    struct rows rows = {.h = h, .scores = scores, .from = from, .n = n};

    FV_TRY(FV_SCRATCH(ctx, rows.row, fv_ctx_threads(ctx)));
    FV_TRY(FV_SCRATCH(ctx, rows.out, H * n * h->r->setups));
    for (int t = 0; t < fv_ctx_threads(ctx); t++) {
        FV_TRY(FV_SCRATCH(ctx, rows.row[t].weight, N));
        FV_TRY(FV_SCRATCH(ctx, rows.row[t].other, N));
        FV_TRY(FV_SCRATCH(ctx, rows.row[t].prefix, N + 1));
    }
    fv_run(ctx, H * n, row_item, &rows);
    for (int64_t index = 0; index < H * n; index++)
        for (int64_t s = 0; s < h->r->setups; s++)
            h->best[s] += (double)(from + index % n + 1) * rows.out[index * h->r->setups + s];
    app_progress(h->app, "recall", ((double)h->at + 0.5 + 0.5 * (double)(from + n) / (double)N) / (double)h->r->layers);
    return app_check();
}

/* ---- a layer ---------------------------------------------------------------------------------------------------- */

/* Pairs of all heads. */
static double pairs_of(const struct heads *h, int64_t s)
{
    const recall_setup *setup = &h->r->setup[s];
    int64_t H = h->open->q.dims[1], N = h->open->q.dims[2];
    double pairs = 0;

    if (setup->kind == RECALL_PLAN)
        for (int64_t n = 0; n < H * N; n++)
            pairs += h->counts[s][n];
    else
        for (int64_t i = 0; i < N; i++)
            pairs += (double)(H * keys_at(setup->share, i + 1));
    return pairs;
}

static fv_status begin(struct heads *h)
{
    static const float one = 1;
    const fv_tensor value = {.data = (void *)(uintptr_t)&one, .rank = 1, .dims = {1}, .strides = {1}};
    const fv_plan dense = {.causal = true};
    int64_t H = h->open->q.dims[1], N = h->open->q.dims[2];
    fv_ctx *ctx = ctx_of(h);
    fv_tensor o;

    h->ones = fv_broadcast(&value, FV_DIMS(1, h->open->k.dims[1], N, 1));
    FV_TRY(fv_tensor_new(ctx, &h->lse, FV_F32, FV_DIMS(1, H, N)));
    FV_TRY(FV_SCRATCH(ctx, h->counts, h->r->setups));
    FV_TRY(FV_SCRATCH(ctx, h->sum, h->r->setups));
    FV_TRY(FV_SCRATCH(ctx, h->best, h->r->setups));
    for (int64_t s = 0; s < h->r->setups; s++) {
        h->sum[s] = h->best[s] = 0;
        h->counts[s] = NULL;
        if (h->r->setup[s].kind == RECALL_PLAN) FV_TRY(FV_SCRATCH(ctx, h->counts[s], H * N));
        if (h->counts[s]) memset(h->counts[s], 0, (size_t)(H * N) * sizeof *h->counts[s]);
    }
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, FV_DIMS(1, H, N, 1)));
    return fv_attend(ctx, &(fv_attend_args){.q = h->open->q,
                                            .k = h->open->k,
                                            .v = h->ones,
                                            .o = o,
                                            .lse = h->lse,
                                            .plan = &dense,
                                            .logits = h->logits});
}

static fv_status measure_layer(struct heads *h)
{
    recall *r = h->r;
    double dense = (double)h->open->q.dims[1] * (double)r->tokens * ((double)r->tokens + 1) / 2;

    FV_TRY(begin(h));
    for (int64_t s = 0; s < r->setups; s++) {
        if (r->setup[s].kind == RECALL_PLAN && !r->setup[s].left_out) FV_TRY(try_plan(h, s));
        app_progress(h->app, "recall", ((double)h->at + 0.5 * (double)(s + 1) / (double)r->setups) / (double)r->layers);
        FV_TRY(app_check());
    }
    FV_TRY(fv_score_rows(ctx_of(h), &h->open->q, &h->open->k, h->logits.scale, use_scores, h));
    for (int64_t s = 0; s < r->setups; s++)
        r->row[s * r->layers + h->at] = (recall_row){
            .density = pairs_of(h, s) / dense,
            .recall = (r->setup[s].kind == RECALL_PLAN ? h->sum[s] : h->best[s]) / dense,
            .best = (r->setup[s].kind == RECALL_RANDOM ? NAN : h->best[s]) / dense,
        };
    return FV_OK;
}

/* In f32, whatever the model computes in: weights of one attention are held against those of another. */
static fv_status look_at(struct app *app, recall *r, int64_t at, const fv_open_layer *open)
{
    const fv_sizes *s = &r->model->sizes;
    struct heads h = {.app = app,
                      .r = r,
                      .at = at,
                      .open = open,
                      .logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap}};
    fv_precision before = app->ctx->precision;
    fv_status status;

    app->ctx->precision = FV_PRECISION_F32;
    status = measure_layer(&h);
    app->ctx->precision = before;
    return status;
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

/* Layer by layer, each over the whole text: what is held is one layer's queries, keys and values. */
static fv_status walk(struct app *app, recall *r, fv_session *session)
{
    int64_t at = 0;
    fv_tensor x;

    FV_TRY(fv_tensor_new(app->ctx, &x, FV_F32, FV_DIMS(r->tokens, r->model->sizes.width)));
    FV_TRY(fv_forward_embed(session, r->ids, &x));
    for (int64_t l = 0; at < r->layers; l++) {
        fv_mark mark = fv_scratch_mark(app->ctx);
        fv_open_layer open;
        FV_TRY(fv_forward_open(session, l, &x, &open));
        if (l == r->layer[at]) FV_TRY(look_at(app, r, at++, &open));
        fv_scratch_release(app->ctx, mark);
        FV_TRY(app_check());
    }
    app_progress_end();
    return FV_OK;
}

fv_status recall_measure(struct app *app, recall *r)
{
    fv_precision before = app->ctx->precision;
    fv_mark mark = fv_scratch_mark(app->ctx);
    fv_session *session;
    fv_status status;

    for (int64_t s = 0; s < r->setups; s++)
        if (r->setup[s].kind == RECALL_PLAN)
            FV_TRY(leave_out(app, &r->setup[s], fv_attention_new(r->setup[s].name, &r->setup[s].attention)));
    FV_TRY(FV_ALLOC(r->row, r->setups * r->layers));
    FV_TRY(fv_session_new(app->ctx, r->model, &(fv_session_options){.context = r->tokens, .precision = r->precision},
                          &session));
    app->ctx->precision = session->precision;
    status = fv_session_check_ids(session, r->ids, r->tokens);
    if (status == FV_OK) status = walk(app, r, session);
    app->ctx->precision = before;
    fv_session_free(session);
    fv_scratch_release(app->ctx, mark);
    return status;
}

recall_row recall_mean(const recall *r, int64_t setup)
{
    recall_row mean = {0};

    for (int64_t l = 0; l < r->layers; l++) {
        const recall_row *row = &r->row[setup * r->layers + l];
        mean.density += row->density / (double)r->layers;
        mean.recall += row->recall / (double)r->layers;
        mean.best += row->best / (double)r->layers;
    }
    return mean;
}

void recall_free(recall *r)
{
    for (int64_t s = 0; s < r->setups; s++) {
        fv_attention_free(r->setup[s].attention);
        fv_free(r->setup[s].name);
    }
    fv_free(r->setup);
    fv_free(r->layer);
    fv_free(r->row);
}
