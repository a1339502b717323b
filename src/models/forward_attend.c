/* Attention of a layer: over the rows of streams, by mechanisms, or among the tokens themselves. */
#include <stdio.h>
#include <string.h>

#include "models/forward_inside.h"

double fv_dense_pairs(const fv_sizes *sizes, int64_t position, int64_t tokens, int64_t own_window)
{
    double count = (double)tokens, window = (double)own_window;
    double first = (double)position + 1, last = first + count - 1, sum = count * (first + last) / 2;

    if (window > 0 && last > window) {
        double from = first > window ? first : window + 1; /* queries whose window is full */
        sum -= (last - from + 1) * ((from - window) + (last - window)) / 2;
    }
    return sum * (double)sizes->query_heads;
}

/* ---- attention over the rows of a stream ------------------------------------------------------------------------- */

/* One layer of one stream, for the tokens of a part. */
struct reading {
    const struct fv_pass *pass;
    const fv_forward_part *part;
    fv_session_layer *own;
    int64_t layer;
    fv_tensor k, v; /* [1,Hkv,count,..] of the part */
    fv_policy_call call;
    int64_t heads; /* key-value heads taken together: 1, or all */
    double *pairs; /* [calls] */
};

/* Where tokens stand in the text, if that is not where they stand in the cache. */
static const int32_t *text_positions(const fv_session *session)
{
    if (session->insert.every) return session->text;
    return session->left_out > 0 ? session->history.position : NULL;
}

/* Tells those who listen what `args` were, and what came of them. */
static fv_status tell_rows(fv_ctx *ctx, const struct reading *r, int64_t head, const fv_attend_args *args)
{
    const fv_session *session = r->part->session;
    const fv_policy_layer *policy = r->own->policy;
    const fv_call call = {.q = args->q,
                          .k = args->k,
                          .v = args->v,
                          .o = args->o,
                          .lse = policy && policy->use->policy->read ? (fv_tensor){0} : args->lse,
                          .batch = 1,
                          .query_heads = args->q.dims[1],
                          .key_heads = args->k.dims[1],
                          .queries = args->q.dims[2],
                          .keys = args->k.dims[2],
                          .head_dim = args->q.dims[3],
                          .value_dim = args->v.dims[3],
                          .offset = args->plan->offset,
                          .causal = true,
                          .scale = args->logits.scale,
                          .softcap = args->logits.softcap};

    return fv_tell(ctx, session->listeners,
                   &(fv_look){.point = FV_POINT_ATTEND,
                              .layer = r->layer,
                              .position = call.offset,
                              .prompt = r->part->prompt,
                              .head = head,
                              .attention = r->own->attention,
                              .call = &call,
                              .plan = args->plan,
                              .extra = &args->logits,
                              .text = text_positions(session)});
}

/* Whether anybody listens to attention. */
static bool heard(const struct reading *r)
{
    return fv_heard(r->part->session->listeners, FV_POINT_ATTEND);
}

/* Keys that are stored as they were before they were rotated, for those who listen. */
static fv_status turn_forth(fv_ctx *ctx, const struct reading *r, fv_tensor *k)
{
    fv_rope_args turn = *r->call.rope;

    FV_TRY(fv_plain(ctx, k, &turn.x));
    FV_TRY(fv_tensor_new(ctx, &turn.out, FV_F32, 4, k->dims));
    turn.position = fv_rows_positions(&r->own->rows, 0);
    *k = turn.out;
    return fv_rope(ctx, &turn);
}

/* Attends to the rows of `heads` key-value heads, the index-th of those there are. */
static fv_status read_heads(fv_ctx *ctx, void *user, int64_t index)
{
    struct reading *r = user;
    const fv_sizes *s = r->pass->sizes;
    fv_rows *rows = &r->own->rows;
    fv_policy_layer *policy = r->own->policy;
    const fv_policy *acts = policy ? policy->use->policy : NULL;
    int64_t g = index * r->heads, group = s->query_heads / s->key_heads, h = g * group, count = r->heads * group;
    fv_plan plan = {.causal = true, .offset = r->call.offset};
    fv_attend_args args = {.q = fv_slice(&r->call.q, 1, h, count),
                           .o = fv_slice(&r->call.o, 1, h, count),
                           .plan = &plan,
                           .logits = r->call.logits};
    int64_t held = fv_rows_all(rows, g), pairs = 0;

    if (fv_present(&r->call.lse)) args.lse = fv_slice(&r->call.lse, 1, h, count);
    bool cold = held > fv_rows_count(rows, g);
    if (!cold && !fv_rows_complete(rows, g)) plan.key_position = fv_rows_positions(rows, g);
    if (r->own->window > 0) plan.window.window = r->own->window;
    if (acts && acts->plan)
        FV_TRY(acts->plan(ctx, policy, &r->call, r->heads == 1 && s->key_heads > 1 ? g : -1, &plan));
    FV_TRY(fv_plan_pairs(ctx, &plan, 1, count, r->call.queries, held, &pairs));
    r->pairs[index] = (double)pairs;
    if (!cold || !plan.lists.row_start || heard(r)) FV_TRY(fv_rows_view_all(ctx, rows, g, r->heads, &args.k, &args.v));
    FV_TRY(acts && acts->read ? acts->read(ctx, policy, &r->call, &args) : fv_attend(ctx, &args));
    if (!heard(r)) return FV_OK;
    if (acts && acts->traits & FV_POLICY_PLAIN_KEYS) FV_TRY(turn_forth(ctx, r, &args.k));
    return tell_rows(ctx, r, h, &args);
}

/* Heads that hold different rows are read one by one: side by side where each is little work. */
static fv_status read_rows(fv_ctx *ctx, struct reading *r)
{
    const fv_policy_layer *policy = r->own->policy;
    const fv_policy *acts = policy ? policy->use->policy : NULL;
    bool apart = acts && acts->plan && acts->traits & FV_POLICY_PER_HEAD && !(acts->alike && acts->alike(policy));
    int64_t heads = r->pass->sizes->key_heads, calls;
    fv_status status = FV_OK;

    r->heads = !apart && fv_rows_alike(&r->own->rows) ? heads : 1;
    calls = heads / r->heads;
    FV_TRY(FV_SCRATCH(ctx, r->pairs, calls));
    if (calls > 1 && fv_ctx_threads(ctx) > 1 && r->part->count < FV_MANY_TOKENS && !heard(r)) {
        FV_TRY(fv_run_apart(ctx, calls, read_heads, r));
    } else {
        for (int64_t c = 0; c < calls && status == FV_OK; c++) {
            fv_mark mark = fv_scratch_mark(ctx);
            status = read_heads(ctx, r, c);
            fv_scratch_release(ctx, mark);
        }
        FV_TRY(status);
    }
    for (int64_t c = 0; c < calls; c++)
        r->part->session->pairs += r->pairs[c];
    return FV_OK;
}

/* Rows that nobody's window reaches any more. */
static fv_status leave_window(fv_session_layer *own, int64_t last)
{
    for (int64_t g = 0; own->window > 0 && g < own->rows.options.heads; g++)
        FV_TRY(fv_rows_erase(&own->rows, g, 0, fv_rows_below(&own->rows, g, last - own->window + 1)));
    return FV_OK;
}

static fv_status attend_rows(fv_ctx *ctx, struct reading *r)
{
    fv_session *session = r->part->session;
    fv_session_layer *own = r->own;
    const fv_policy *policy = own->policy ? own->policy->use->policy : NULL;
    size_t before = fv_rows_used(&own->rows);

    FV_TRY(fv_rows_append(ctx, &own->rows, &r->k, &r->v, session->length));
    session->row_bytes += fv_rows_used(&own->rows) - before;
    if (session->row_bytes + session->state_bytes > session->peak_bytes)
        session->peak_bytes = session->row_bytes + session->state_bytes;
    if ((policy && policy->traits & FV_POLICY_LSE) || (heard(r) && !(policy && policy->read)))
        FV_TRY(fv_tensor_new(ctx, &r->call.lse, FV_F32, 3, r->call.q.dims));
    FV_TRY(read_rows(ctx, r));
    before = fv_rows_used(&own->rows);
    if (policy && policy->after) FV_TRY(policy->after(ctx, own->policy, &r->call));
    if (!session->keep_windows) FV_TRY(leave_window(own, session->length + r->part->count - 1));
    session->row_bytes -= before - fv_rows_used(&own->rows);
    return FV_OK;
}

/* ---- attention by a mechanism ------------------------------------------------------------------------------------ */

/* Of the queries of a call, the first that stands among a prompt's last ones, which read everything. */
static int64_t dense_from(const struct reading *r)
{
    const fv_session *session = r->part->session;

    if (!r->part->prompt || session->dense_last == 0) return r->part->count;
    return fv_clamp(session->prompt_tokens - session->dense_last - session->length, 0, r->part->count);
}

static fv_status run_call(fv_ctx *ctx, struct reading *r, const fv_call *call, const fv_attend_args *extra)
{
    fv_session *session = r->part->session;

    FV_TRY(fv_attention_chunk(ctx, r->own->attention, call, &r->own->state, extra->logits.softcap > 0 ? extra : NULL));
    if (!heard(r)) return FV_OK;
    return fv_tell(ctx, session->listeners,
                   &(fv_look){.point = FV_POINT_ATTEND,
                              .layer = r->layer,
                              .position = call->offset,
                              .prompt = r->part->prompt,
                              .attention = r->own->attention,
                              .call = call,
                              .extra = &extra->logits,
                              .text = text_positions(session)});
}

static fv_status attend_by_mechanism(fv_ctx *ctx, struct reading *r)
{
    const fv_sizes *s = r->pass->sizes;
    fv_session *session = r->part->session;
    fv_session_layer *own = r->own;
    const float scale = (float)s->scale;
    fv_attend_args extra = {.logits = {.softcap = (float)s->attention_cap}};
    fv_attention_args args = {
        .q = r->call.q, .k = r->k, .v = r->v, .o = r->call.o, .causal = true, .scale = own->no_scale ? NULL : &scale};
    fv_call call, part;
    int64_t last;

    if (own->rows.head) {
        size_t before = fv_rows_used(&own->rows);
        FV_TRY(fv_rows_append(ctx, &own->rows, &r->k, &r->v, session->length));
        session->row_bytes += fv_rows_used(&own->rows) - before;
        fv_rows_view(&own->rows, 0, s->key_heads, &args.k, &args.v);
    }
    FV_TRY(fv_call_chunk(own->attention, &args, &call));
    call.pairs = &session->pairs;
    last = dense_from(r);
    if (last > 0) {
        fv_call_cut(&call, 0, last, &part);
        FV_TRY(run_call(ctx, r, last < call.queries ? &part : &call, &extra));
    }
    if (last == call.queries) return FV_OK;
    fv_call_cut(&call, last, call.queries - last, &part);
    part.whole = true;
    return run_call(ctx, r, &part, &extra);
}

/* ---- of all parts ----------------------------------------------------------------------------------------------- */

/* Counts seconds, unless the call is one of several side by side, each on a context of its own. */
static fv_status attend_layer(fv_ctx *ctx, struct reading *r)
{
    fv_session_layer *own = r->own;
    double before[FV_PHASES];
    fv_phase phase;
    fv_status status;

    memcpy(before, ctx->spent, sizeof before);
    phase = fv_phase_enter(ctx, FV_PHASE_ATTEND);
    status = own->dense ? attend_rows(ctx, r) : attend_by_mechanism(ctx, r);
    fv_phase_enter(ctx, phase);
    for (int i = 0; i < FV_PHASES && ctx == r->part->session->ctx; i++)
        own->spent[i] += ctx->spent[i] - before[i];
    return status;
}

struct layer_work {
    const struct fv_pass *pass;
    int64_t layer;
};

/* How q, k and v were made, for policies that make rows again. */
static bool few_rows(const struct fv_pass *p, const fv_session_layer *own, const fv_layer *layer)
{
    if (!own->policy) return false;
    const fv_linear_args products = fv_pass_products(p, layer);
    return fv_linear_few(p->ctx, &products);
}

static fv_status attend_part(fv_ctx *ctx, void *user, int64_t index)
{
    const struct layer_work *work = user;
    const struct fv_pass *p = work->pass;
    const fv_sizes *s = p->sizes;
    const fv_forward_part *part = &p->parts[index];
    fv_session *session = part->session;
    fv_session_layer *own = &session->layers[work->layer];
    fv_tensor q = fv_slice(&p->q, 0, p->first[index], part->count),
              o = fv_slice(&p->o, 0, p->first[index], part->count);
    bool plain = own->policy && own->policy->use->policy->traits & FV_POLICY_PLAIN_KEYS;
    fv_tensor k = fv_slice(plain ? &p->plain : &p->k, 0, p->first[index], part->count),
              v = fv_slice(&p->v, 0, p->first[index], part->count);
    const fv_layer *layer = &p->session->model->layers[work->layer];
    fv_rope_args rope = fv_pass_rope(p, layer);
    struct reading r = {.pass = p,
                        .part = part,
                        .own = own,
                        .layer = work->layer,
                        .k = fv_pass_heads(&k, s->key_heads, s->key_dim),
                        .v = fv_pass_heads(&v, s->key_heads, s->value_dim),
                        .call = {.q = fv_pass_heads(&q, s->query_heads, s->key_dim),
                                 .o = fv_pass_heads(&o, s->query_heads, s->value_dim),
                                 .input = fv_slice(&p->h, 0, p->first[index], part->count),
                                 .residual = fv_slice(&p->x, 0, p->first[index], part->count),
                                 .few = few_rows(p, own, layer),
                                 .offset = session->length,
                                 .queries = part->count,
                                 .prompt = part->prompt,
                                 .prompt_tokens = session->prompt_tokens,
                                 .logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap},
                                 .rope = &rope}};

    session->dense_pairs += fv_dense_pairs(s, session->length + session->left_out, part->count, layer->window);
    session->failure = attend_layer(ctx, &r);
    if (session->failure != FV_OK) snprintf(session->failure_text, sizeof session->failure_text, "%s", fv_error());
    return session->failure;
}

/* Among the tokens themselves. */
static fv_status attend_open(const struct fv_pass *p, int64_t l)
{
    const fv_sizes *s = p->sizes;
    fv_plan *plan;

    FV_TRY(FV_SCRATCH(p->ctx, plan, 1));
    *plan = (fv_plan){.causal = true, .window.window = p->session->model->layers[l].window};
    return fv_attend(p->ctx,
                     &(fv_attend_args){.q = fv_pass_heads(&p->q, s->query_heads, s->key_dim),
                                       .k = fv_pass_heads(&p->k, s->key_heads, s->key_dim),
                                       .v = fv_pass_heads(&p->v, s->key_heads, s->value_dim),
                                       .o = fv_pass_heads(&p->o, s->query_heads, s->value_dim),
                                       .plan = plan,
                                       .logits = {.scale = (float)s->scale, .softcap = (float)s->attention_cap}});
}

/* Streams side by side where each brings little. */
fv_status fv_pass_attend(const struct fv_pass *p, int64_t l)
{
    struct layer_work work = {p, l};
    fv_status status = FV_OK;

    if (p->open) return attend_open(p, l);
    if (p->count > 1 && p->tokens < FV_MANY_TOKENS * p->count)
        return fv_run_apart(p->ctx, p->count, attend_part, &work);
    for (int64_t i = 0; i < p->count && status == FV_OK; i++) {
        fv_mark mark = fv_scratch_mark(p->ctx);
        status = attend_part(p->ctx, &work, i);
        fv_scratch_release(p->ctx, mark);
    }
    return status;
}
