/* Making a call: what was given, checked against the descriptor, with its sizes spelled out. */
#include <math.h>

#include "attention/attention.h"
#include "ops/check.h"

/* ---- params ----------------------------------------------------------------------------------------------------- */

/* A size that a call has, or that the mechanism knows. */
static int64_t known_size(const void *user, const char *name)
{
    const fv_call *call = user;
    const struct {
        const char *name;
        int64_t size;
    } known[] = {{"B", call->batch}, {"H", call->query_heads}, {"Hkv", call->key_heads}, {"N", call->queries},
                 {"M", call->keys},  {"D", call->head_dim},    {"Dv", call->value_dim}};

    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, name) == 0) return known[i].size;
    return call->mechanism->size ? call->mechanism->size(call->options, call, name) : -1;
}

/* Puts the params of a call in the order of the table, and checks them. */
static fv_status take_params(const fv_attention_args *args, fv_call *call)
{
    const fv_mechanism *m = call->mechanism;
    fv_named_sizes sizes = {.known = known_size, .user = call};

    FV_TRY(fv_params_place(m->name, "param", m->params, args->params, args->param, call->param));
    FV_TRY(fv_params_place(m->name, "param", m->params, args->params_out, args->param_out, call->param_out));
    for (int i = 0; i < fv_params_count(m->params); i++) {
        const fv_param *param = &m->params[i];
        if (call->param_out[i].data && !param->output)
            return fv_fail(FV_E_USAGE, "%s: param '%s' is not one it writes", m->name, param->name);
        if (call->param[i].data) FV_TRY(fv_param_check(m->name, "param", param, &call->param[i], &sizes));
        if (call->param_out[i].data) FV_TRY(fv_param_check(m->name, "param", param, &call->param_out[i], &sizes));
    }
    return FV_OK;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

/* What q, and k and v of a call and of a chunk may be: f32, plain, as a cache stores them. */
static const struct operand_types {
    unsigned types;
    const char *words;
} query_types = {FV_TYPE(FV_F32), "f32"}, key_types = {FV_TYPES_HALF, "f32, f16 or bf16"},
  row_types = {FV_TYPES_ROWS, "f32, f16, bf16, q8_0 or q4_0"};

static fv_status check_operand(const char *owner, const char *name, const fv_tensor *t, int rank,
                               const struct operand_types *types)
{
    int64_t block = fv_dtype_block(t->dtype);

    if (!t->data) return fv_fail(FV_E_ARGUMENT, "%s: %s is missing", owner, name);
    if (!fv_type_in(t->dtype, types->types))
        return fv_fail(FV_E_DTYPE, "%s: %s: expected %s, got %s", owner, name, types->words, fv_dtype_name(t->dtype));
    if (t->rank != rank)
        return fv_fail(FV_E_SHAPE, "%s: %s: expected %d dims, got shape %s", owner, name, rank, fv_shape_text(t));
    for (int d = 0; d < rank; d++)
        if (t->dims[d] < (d != 2) || t->dims[d] > INT32_MAX)
            return fv_fail(FV_E_SHAPE, "%s: %s: expected dims of 1 to 2^31-1, got shape %s", owner, name,
                           fv_shape_text(t));
    if (block > 1 && (t->dims[rank - 1] % block != 0 || t->strides[rank - 1] != 1))
        return fv_fail(FV_E_SHAPE, "%s: %s: expected rows of whole %s blocks of %lld, got shape %s", owner, name,
                       fv_dtype_name(t->dtype), (long long)block, fv_shape_text(t));
    return FV_OK;
}

static fv_status check_heads(const char *owner, const char *name, const fv_tensor *q, const fv_tensor *t)
{
    if (q->dims[1] % t->dims[1] == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: %s: %lld key-value heads do not divide %lld query heads (shapes %s and %s)", owner,
                   name, (long long)t->dims[1], (long long)q->dims[1], fv_shape_text(q), fv_shape_text(t));
}

/* One stream of queries and keys for all batches of values. */
static fv_status check_shared(const char *owner, const fv_attention_args *args, bool chunk)
{
    const fv_tensor *q = &args->q, *k = &args->k, *v = &args->v;

    if (q->dims[0] != 1 || k->dims[0] != 1)
        return fv_fail(FV_E_SHAPE, "%s: q and k: expected one batch, which all of v share, got shapes %s and %s", owner,
                       fv_shape_text(q), fv_shape_text(k));
    if (k->dims[3] != q->dims[3] || (!chunk && k->dims[2] != q->dims[2]))
        return fv_fail(FV_E_SHAPE, "%s: k: expected the length and head dim of q %s, got %s", owner, fv_shape_text(q),
                       fv_shape_text(k));
    if (v->dims[2] > k->dims[2] || (chunk && v->dims[2] != k->dims[2]))
        return fv_fail(FV_E_SHAPE, "%s: v: expected at most the %lld tokens of k, got %s", owner, (long long)k->dims[2],
                       fv_shape_text(v));
    FV_TRY(check_heads(owner, "v", q, v));
    return check_heads(owner, "k", q, k);
}

static fv_status check_operands(const fv_mechanism *mechanism, const fv_attention_args *args, bool chunk)
{
    const char *owner = mechanism->name;
    const fv_tensor *q = &args->q, *k = &args->k, *v = &args->v;

    FV_TRY(check_operand(owner, "q", q, 4, &query_types));
    FV_TRY(check_operand(owner, "k", k, 4, chunk ? &row_types : &key_types));
    FV_TRY(check_operand(owner, "v", v, 4, chunk ? &row_types : &key_types));
    if (mechanism->traits & FV_SHARED_QK) return check_shared(owner, args, chunk);
    if (k->dims[0] != q->dims[0] || k->dims[3] != q->dims[3])
        return fv_fail(FV_E_SHAPE, "%s: k: expected the batch and head dim of q %s, got %s", owner, fv_shape_text(q),
                       fv_shape_text(k));
    if (v->dims[0] != k->dims[0] || v->dims[1] != k->dims[1] || v->dims[2] != k->dims[2])
        return fv_fail(FV_E_SHAPE, "%s: v: expected the batch, heads and keys of k %s, got %s", owner, fv_shape_text(k),
                       fv_shape_text(v));
    return check_heads(owner, "k", q, k);
}

/* rows: queries of the call. */
static fv_status check_outputs(const char *owner, const fv_attention_args *args, int64_t rows)
{
    const int64_t B = args->v.dims[0], H = args->q.dims[1];
    const fv_tensor o = {.data = args->o.data, .rank = 4, .dims = {B, H, rows, args->v.dims[3]}};
    const fv_tensor lse = {.data = args->lse.data, .rank = 3, .dims = {B, H, rows}};

    FV_TRY(check_operand(owner, "o", &args->o, 4, &query_types));
    if (!fv_tensor_same_shape(&args->o, &o))
        return fv_fail(FV_E_SHAPE, "%s: o: expected %s, got %s", owner, fv_shape_text(&o), fv_shape_text(&args->o));
    if (!args->lse.data) return FV_OK;
    FV_TRY(check_operand(owner, "lse", &args->lse, 3, &query_types));
    if (!fv_tensor_same_shape(&args->lse, &lse))
        return fv_fail(FV_E_SHAPE, "%s: lse: expected %s, got %s", owner, fv_shape_text(&lse),
                       fv_shape_text(&args->lse));
    return FV_OK;
}

int64_t fv_attention_rows(const fv_mechanism *mechanism, const fv_attention_args *args, bool chunk)
{
    return mechanism->traits & FV_SHARED_QK && !chunk ? args->v.dims[2] : args->q.dims[2];
}

/* What the traits refuse. */
static fv_status check_promises(const fv_mechanism *mechanism, const fv_attention_args *args)
{
    if (args->causal && (mechanism->traits & FV_NEVER_CAUSAL))
        return fv_fail(FV_E_USAGE, "%s: cannot be causal", mechanism->name);
    if (args->scale && (mechanism->traits & FV_NO_SCALE))
        return fv_fail(FV_E_USAGE, "%s: has no scale", mechanism->name);
    if (args->scale && !isfinite(*args->scale))
        return fv_fail(FV_E_USAGE, "%s: scale: expected a finite number, got %g", mechanism->name, *args->scale);
    if (args->lse.data && (mechanism->traits & FV_NO_LSE))
        return fv_fail(FV_E_USAGE, "%s: has no log-sum-exp", mechanism->name);
    return FV_OK;
}

static fv_status make(const fv_attention *attention, const fv_attention_args *args, bool chunk, fv_call *call)
{
    const fv_mechanism *mechanism = attention->mechanism;
    int64_t queries = fv_attention_rows(mechanism, args, chunk), keys = args->v.dims[2];

    FV_TRY(check_promises(mechanism, args));
    FV_TRY(check_operands(mechanism, args, chunk));
    FV_TRY(check_outputs(mechanism->name, args, queries));
    *call = (fv_call){
        .mechanism = mechanism,
        .options = attention->options,
        .q = fv_slice(&args->q, 2, 0, queries),
        .k = fv_slice(&args->k, 2, 0, keys),
        .v = args->v,
        .o = args->o,
        .lse = args->lse,
        .batch = args->v.dims[0],
        .query_heads = args->q.dims[1],
        .key_heads = args->v.dims[1],
        .queries = queries,
        .keys = keys,
        .head_dim = args->q.dims[3],
        .value_dim = args->v.dims[3],
        .offset = keys - queries,
        .causal = args->causal || (mechanism->traits & FV_CAUSAL),
        .decoding = chunk,
        .scale = args->scale ? *args->scale : (float)(1 / sqrt((double)args->q.dims[3])),
    };
    if ((mechanism->traits & FV_SELF_ONLY) && !chunk && call->queries != call->keys)
        return fv_fail(FV_E_SHAPE, "%s: expected as many queries as keys, got %lld and %lld", mechanism->name,
                       (long long)call->queries, (long long)call->keys);
    FV_TRY(take_params(args, call));
    return mechanism->accept ? mechanism->accept(call) : FV_OK;
}

fv_status fv_attention_param_out(const fv_attention *attention, const fv_attention_args *args, const char *name,
                                 fv_tensor *shape)
{
    const fv_mechanism *mechanism = attention->mechanism;
    fv_named_sizes sizes = {.known = known_size};
    fv_call call;

    FV_TRY(fv_call_make(attention, args, &call));
    sizes.user = &call;
    for (const fv_param *param = mechanism->params; param && param->name; param++)
        if (strcmp(param->name, name) == 0 && param->output)
            return fv_param_shape(mechanism->name, "param", param, &sizes, shape);
    return fv_fail(FV_E_USAGE, "%s: it writes no tensor '%s' ('fovea show %s' lists what it has)", mechanism->name,
                   name, mechanism->name);
}

fv_status fv_call_make(const fv_attention *attention, const fv_attention_args *args, fv_call *call)
{
    return make(attention, args, false, call);
}

fv_status fv_call_chunk(const fv_attention *attention, const fv_attention_args *args, fv_call *call)
{
    return make(attention, args, true, call);
}

void fv_call_cut(const fv_call *call, int64_t from, int64_t count, fv_call *part)
{
    const fv_mechanism *mechanism = call->mechanism;
    bool recurrent = (mechanism->traits & FV_RECURRENT) && call->causal;
    int64_t keys = fv_clamp(call->offset + from + count, 0, call->keys);
    int64_t key_from = recurrent && from > 0 ? fv_clamp(call->offset + from, 0, call->keys) : 0;

    *part = fv_call_rows(call, from, count);
    part->decoding = true;
    part->keys = keys - key_from;
    part->offset -= key_from;
    part->k = fv_slice(&call->k, 2, key_from, part->keys);
    part->v = fv_slice(&call->v, 2, key_from, part->keys);
    for (int i = 0; i < fv_params_count(mechanism->params); i++) {
        fv_tensor *t = &part->param[i];
        for (int d = 0; fv_present(t) && d < t->rank; d++) {
            char name[FV_DIM_TEXT];
            fv_param_dim(&mechanism->params[i], d, name);
            if (strcmp(name, "N") == 0) *t = fv_slice(t, d, from, count);
            if (strcmp(name, "M") == 0) *t = fv_slice(t, d, key_from, part->keys);
        }
    }
}

fv_call fv_call_rows(const fv_call *call, int64_t from, int64_t count)
{
    fv_call part = *call;

    part.queries = count;
    part.offset = call->offset + from;
    part.q = fv_slice(&call->q, 2, from, count);
    part.o = fv_slice(&call->o, 2, from, count);
    if (fv_present(&call->lse)) part.lse = fv_slice(&call->lse, 2, from, count);
    return part;
}

fv_call fv_call_heads(const fv_call *call, int64_t b, int64_t batches, int64_t head, int64_t heads)
{
    fv_call part = *call;
    fv_tensor *tensors[] = {&part.q, &part.k, &part.v, &part.o, &part.lse};

    for (size_t n = 0; n < sizeof tensors / sizeof *tensors; n++) {
        fv_tensor *x = tensors[n];
        if (!fv_present(x)) continue;
        int64_t group = call->query_heads / x->dims[1], first = head / group;
        *x = fv_slice(x, 0, b, batches);
        *x = fv_slice(x, 1, first, (head + heads - 1) / group - first + 1);
    }
    part.batch = batches;
    part.query_heads = heads;
    part.key_heads = part.v.dims[1];
    return part;
}

fv_call fv_call_head(const fv_call *call, int64_t b, int64_t h)
{
    fv_call head = fv_call_heads(call, b, 1, h, 1);

    head.lse = (fv_tensor){0};
    return head;
}

fv_status fv_run_stretches(fv_ctx *ctx, const fv_call *call, int64_t step, fv_stretch_fn *run, void *user)
{
    for (int64_t end = call->queries, count; end > 0; end -= count) {
        count = end % step ? end % step : step;
        fv_call part = fv_call_rows(call, end - count, count);
        FV_TRY_SCRATCH(ctx, run(ctx, &part, user));
    }
    return FV_OK;
}

fv_logits fv_call_logits(const fv_call *call)
{
    return (fv_logits){
        .scale = call->scale, .zero_scale = call->scale == 0, .softcap = call->softcap, .gain = call->gain};
}

int64_t fv_cells_of(const fv_tuple *grid)
{
    int64_t cells = 1;

    for (int a = 0; a < grid->count; a++)
        if (!fv_mul_i64(cells, grid->items[a], &cells)) return INT64_MAX;
    return cells;
}

fv_status fv_check_cells(const fv_call *call, const fv_tuple *grid, int64_t tokens)
{
    int64_t cells = fv_cells_of(grid);

    if (cells == tokens) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: option 'grid': it has %lld cells, but there are %lld tokens for it",
                   call->mechanism->name, (long long)cells, (long long)tokens);
}

fv_attend_args fv_call_attend(const fv_call *call, const fv_plan *plan)
{
    return (fv_attend_args){.q = call->q,
                            .k = call->k,
                            .v = call->v,
                            .o = call->o,
                            .lse = call->lse,
                            .plan = plan,
                            .logits = fv_call_logits(call)};
}

fv_list_shape fv_call_lists(const fv_call *call, int64_t heads, int64_t query_block, int64_t key_block)
{
    return (fv_list_shape){.query_block = query_block,
                           .key_block = key_block,
                           .batches = call->batch,
                           .heads = heads,
                           .queries = call->queries,
                           .keys = call->keys,
                           .offset = call->offset};
}
