/* What every mechanism gets from its descriptor: forward, chunks, decode, backward, pairs and work. */
#include "attention/attention.h"

#include <stdlib.h>

#include "ops/tape.h"

fv_status fv_attention_from(const fv_spec *spec, fv_attention **attention)
{
    const fv_mechanism *mechanism;
    fv_attention *made = NULL;
    fv_status status;

    *attention = NULL;
    FV_TRY(fv_mechanism_named(fv_spec_name(spec), &mechanism));
    FV_TRY(FV_ZALLOC(made, 1));
    made->mechanism = mechanism;
    FV_TRY_DONE(fv_zalloc(&made->options, 1, mechanism->options_size));
    FV_TRY_DONE(fv_options_parse(mechanism->options, spec, made->options));
    if (mechanism->check) FV_TRY_DONE(mechanism->check(made->options));
    *attention = made;
    return FV_OK;
done:
    fv_attention_free(made);
    return status;
}

fv_status fv_attention_new(const char *text, fv_attention **attention)
{
    fv_spec spec;

    *attention = NULL;
    FV_TRY(fv_spec_parse(&spec, text));
    return fv_attention_from(&spec, attention);
}

void fv_attention_free(fv_attention *attention)
{
    if (!attention) return;
    fv_free(attention->options);
    fv_free(attention);
}

const char *fv_attention_name(const fv_attention *attention)
{
    return attention->mechanism->name;
}

const fv_mechanism *fv_attention_mechanism(const fv_attention *attention)
{
    return attention->mechanism;
}

int64_t fv_attention_state_width(const fv_attention *attention, int64_t head_dim)
{
    const fv_call call = {.options = attention->options, .head_dim = head_dim};

    return attention->mechanism->traits & FV_RECURRENT ? fv_call_state_width(attention->mechanism, &call) : 0;
}

int64_t fv_call_state_width(const fv_mechanism *mechanism, const fv_call *call)
{
    return mechanism->state_width ? mechanism->state_width(call) : call->head_dim;
}

int64_t fv_attention_kept(const fv_attention *attention, const fv_call *sizes, int kind, int64_t keys, int64_t *width)
{
    fv_call call = *sizes;

    call.options = attention->options;
    *width = 0;
    return attention->mechanism->kept ? attention->mechanism->kept(&call, kind, keys, width) : 0;
}

int64_t fv_attention_choice(const fv_attention *attention, int64_t keys)
{
    const fv_call call = {.options = attention->options};

    return attention->mechanism->choice_width ? attention->mechanism->choice_width(&call, keys) : 0;
}

fv_dtype fv_kept_type(const fv_mechanism *mechanism, fv_precision precision, fv_dtype keys, fv_dtype values)
{
    bool half = precision != FV_PRECISION_F32 && keys != FV_F32 && values != FV_F32;

    return mechanism->kept_half && half ? FV_BF16 : FV_F32;
}

fv_status fv_keep(fv_ctx *ctx, const fv_call *call, fv_kept_fn *kept, int kind, int64_t count, fv_make_rows_fn *make,
                  fv_tensor *out)
{
    fv_kept_rows *own = call->kept && fv_present(&call->kept[kind].rows) ? &call->kept[kind] : NULL;
    int64_t width, before = kept(call, kind, fv_clamp(call->offset, 0, call->keys), &width), from = 0;

    if (own) {
        *out = fv_slice(&own->rows, 2, 0, count);
        from = fv_min(own->count, before);
        own->count = from;
    } else {
        fv_dtype type = fv_kept_type(call->mechanism, ctx->precision, call->k.dtype, call->v.dtype);
        FV_TRY(fv_tensor_new(ctx, out, type, FV_DIMS(call->batch, call->key_heads, count, width)));
    }
    if (from < count) {
        fv_tensor fresh = fv_slice(out, 2, from, count - from), made = fresh;
        if (fresh.dtype != FV_F32) FV_TRY(fv_tensor_new(ctx, &made, FV_F32, 4, fresh.dims));
        FV_TRY(make(ctx, call, from, &made));
        if (fresh.dtype != FV_F32) FV_TRY(fv_map_apply(ctx, &(fv_map_args){.x = made, .out = fresh}));
        if (own) own->count = count;
    }
    return FV_OK;
}

/* ---- recurrences ------------------------------------------------------------------------------------------------ */

/* s [B,Hk,F,Dv] = k^T v and z [B,Hk,F] = sum of k (unless absent). */
static fv_status sum_keys(fv_ctx *ctx, const fv_tensor *k, const fv_tensor *v, const fv_tensor *s, const fv_tensor *z)
{
    int64_t keys = k->dims[2];
    fv_tensor row;

    if (keys == 0) {
        FV_TRY(fv_fill(ctx, s, 0));
        return fv_present(z) ? fv_fill(ctx, z, 0) : FV_OK;
    }
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = fv_transposed(k), .b = *v, .c = *s}));
    if (!fv_present(z)) return FV_OK;
    row = fv_reshaped(z, FV_DIMS(z->dims[0], z->dims[1], 1, z->dims[2]));
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_SUM, .x = *k, .out = row, .block = keys});
}

/* The sums over all keys of a scan, for each query head: grouped values or features count as repeated. */
static fv_status sum_all(fv_ctx *ctx, const fv_call *call, const fv_scan_args *scan, const fv_tensor *k,
                         const fv_tensor *v, fv_tensor *s, fv_tensor *z)
{
    int64_t B = call->batch, H = call->query_heads, F = scan->k.dims[3], Dv = call->value_dim;
    fv_tensor wide_k, wide_v;

    FV_TRY(fv_repeat_heads(ctx, k, H, &wide_k));
    FV_TRY(fv_repeat_heads(ctx, v, H, &wide_v));
    FV_TRY(fv_tensor_new(ctx, s, FV_F32, FV_DIMS(B, H, F, Dv)));
    *z = (fv_tensor){0};
    if (scan->normalise) FV_TRY(fv_tensor_new(ctx, z, FV_F32, FV_DIMS(B, H, F)));
    return sum_keys(ctx, &wide_k, &wide_v, s, z);
}

/* Without causality every query reads the same sums: two gemms and a division. */
static fv_status read_sums(fv_ctx *ctx, const fv_call *call, const fv_scan_args *scan)
{
    int64_t B = call->batch, H = call->query_heads, N = call->queries;
    fv_tensor s, z, column, sum, divisor, floored;

    FV_TRY(sum_all(ctx, call, scan, &scan->k, &scan->v, &s, &z));
    if (!scan->normalise) return fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = s, .c = call->o});
    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, 4, call->o.dims));
    FV_TRY(fv_tensor_new(ctx, &divisor, FV_F32, FV_DIMS(B, H, N, 1)));
    FV_TRY(fv_tensor_new(ctx, &floored, FV_F32, FV_DIMS(B, H, N, 1)));
    column = fv_reshaped(&z, FV_DIMS(B, H, z.dims[2], 1));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = s, .c = sum}));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = column, .c = divisor}));
    if (scan->epsilon > 0) /* not both: epsilon is added, floor replaces */
        FV_TRY(
            fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = divisor, .out = floored, .beta = scan->epsilon}));
    else
        FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MAX, .x = divisor, .out = floored, .alpha = scan->floor}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_DIV, .x = sum, .y = floored, .out = call->o});
}

/* More keys than queries: the first ones are in the state before the first query.  Fewer: the first queries see none.
 */
static fv_status align(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan)
{
    int64_t ahead = call->keys - call->queries;

    if (ahead > 0) {
        fv_tensor k = fv_slice(&scan->k, 2, 0, ahead), v = fv_slice(&scan->v, 2, 0, ahead);
        FV_TRY(sum_all(ctx, call, scan, &k, &v, &scan->state_in, &scan->z_in));
        scan->k = fv_slice(&scan->k, 2, ahead, call->queries);
        scan->v = fv_slice(&scan->v, 2, ahead, call->queries);
    } else if (ahead < 0) {
        fv_tensor blind = fv_slice(&scan->o, 2, 0, -ahead);
        FV_TRY(fv_fill(ctx, &blind, 0));
        scan->q = fv_slice(&scan->q, 2, -ahead, call->keys);
        scan->o = fv_slice(&scan->o, 2, -ahead, call->keys);
    }
    return FV_OK;
}

/* state: NULL, or read (unless it is fresh and the call brings its own) and written. */
static fv_status run_scan(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *given, fv_attention_state *state,
                          bool fresh)
{
    fv_call plain = *given;
    const fv_call *call = &plain;
    fv_scan_args scan;

    if (plain.k.dtype != FV_F32) FV_TRY(fv_plain(ctx, &given->k, &plain.k));
    if (plain.v.dtype != FV_F32) FV_TRY(fv_plain(ctx, &given->v, &plain.v));
    scan = (fv_scan_args){.q = call->q, .k = call->k, .v = call->v, .o = call->o};
    FV_TRY(mechanism->scan(ctx, call, &scan));
    if (!call->causal) return read_sums(ctx, call, &scan);
    FV_TRY(align(ctx, call, &scan));
    if (state) {
        if (!fresh || !fv_present(&scan.state_in)) scan.state_in = state->s;
        scan.state_out = state->s;
        if (scan.normalise) {
            if (!fresh || !fv_present(&scan.z_in)) scan.z_in = state->z;
            scan.z_out = state->z;
        }
    }
    return scan.q.dims[2] == 0 ? FV_OK : fv_scan(ctx, &scan);
}

/* ---- running a call --------------------------------------------------------------------------------------------- */

fv_status fv_call_plan(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_plan *plan,
                       fv_attend_args *attend)
{
    *plan = (fv_plan){.causal = call->causal, .offset = call->offset};
    *attend = fv_call_attend(call, plan);
    return mechanism->plan(ctx, call, plan, attend);
}

static fv_status run_plan(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, const fv_tensor *sinks)
{
    fv_plan plan;
    fv_attend_args attend;

    FV_TRY_PHASE(ctx, FV_PHASE_SELECT, fv_call_plan(ctx, mechanism, call, &plan, &attend));
    if (sinks && fv_present(sinks)) attend.sinks = *sinks;
    return fv_attend_counted(ctx, call, &attend);
}

bool fv_call_reads_all(const fv_mechanism *mechanism, const fv_call *call)
{
    if (call->whole) return true;
    return mechanism->traits & FV_BLOCK_CAUSAL && !(mechanism->traits & FV_OWN_DECODE) &&
           mechanism->ahead(call->options) != 1 && call->decoding && call->queries == 1;
}

static fv_status run_dense(fv_ctx *ctx, const fv_call *call, const fv_tensor *sinks)
{
    fv_plan plan = {.causal = call->causal, .offset = call->offset};
    fv_attend_args attend = fv_call_attend(call, &plan);

    if (sinks && fv_present(sinks)) attend.sinks = *sinks;
    if (call->pairs) *call->pairs += fv_call_dense_pairs(call);
    return fv_attend(ctx, &attend);
}

/* The choice that a step may use again: not one that a later position made, nor one from before a chunk. */
static fv_kept_choice *choice_of(fv_attention_state *state, const fv_call *call)
{
    bool step = call->decoding && call->queries == 1;

    if (!state || !fv_present(&state->choice.index)) return NULL;
    if (!step || state->choice.end > call->offset) state->choice.end = 0;
    return step ? &state->choice : NULL;
}

static fv_status run(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *given, fv_attention_state *state,
                     const fv_attend_args *extra)
{
    fv_call call = *given;

    if (extra) {
        bool terms = extra->logits.softcap > 0 || extra->logits.gain != 0;
        if ((terms && mechanism->scan) || (fv_present(&extra->sinks) && !mechanism->plan))
            return fv_fail(FV_E_UNSUPPORTED, "%s: cannot take the %s of this model", mechanism->name,
                           terms ? "soft-cap" : "sinks");
        call.softcap = extra->logits.softcap;
        call.gain = extra->logits.gain;
    }
    call.kept = state ? state->kept : NULL;
    call.choice = choice_of(state, &call);
    if (fv_call_reads_all(mechanism, &call)) return run_dense(ctx, &call, extra ? &extra->sinks : NULL);
    if (mechanism->plan) return run_plan(ctx, mechanism, &call, extra ? &extra->sinks : NULL);
    if (mechanism->scan) return run_scan(ctx, mechanism, &call, state, false);
    if (call.pairs && !mechanism->counts) {
        fv_work work;
        FV_TRY(fv_call_measure(ctx, mechanism, &call, NULL, &work));
        *call.pairs += (double)work.pairs;
    }
    return mechanism->forward(ctx, &call);
}

/* work: NULL, or filled in. */
static fv_status forward(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, fv_work *work)
{
    const fv_mechanism *mechanism = attention->mechanism;
    bool counts = mechanism->plan || mechanism->counts;
    double pairs = 0;
    fv_call call;

    FV_TRY(fv_call_make(attention, args, &call));
    if (work && counts) call.pairs = &pairs;
    if (call.queries > 0) FV_TRY(run(ctx, mechanism, &call, NULL, NULL));
    return work ? fv_call_measure(ctx, mechanism, &call, counts ? &pairs : NULL, work) : FV_OK;
}

fv_status fv_attention_measured(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                fv_work *work)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_ATTEND);
    fv_status status = forward(ctx, attention, args, work);

    fv_phase_enter(ctx, before);
    fv_scratch_release(ctx, mark);
    return status;
}

fv_status fv_attention_forward(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args)
{
    return fv_attention_measured(ctx, attention, args, NULL);
}

fv_status fv_attention_chunk(fv_ctx *ctx, const fv_attention *attention, const fv_call *call, fv_attention_state *state,
                             const fv_attend_args *extra)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_ATTEND);
    fv_status status = call->queries == 0 ? FV_OK : run(ctx, attention->mechanism, call, state, extra);

    fv_phase_enter(ctx, before);
    fv_scratch_release(ctx, mark);
    return status;
}

/* ---- decode ----------------------------------------------------------------------------------------------------- */

static fv_status new_state(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_attention_state *state)
{
    int64_t B = call->batch, width = 0;

    *state = (fv_attention_state){0};
    if (mechanism->scan) {
        width = fv_call_state_width(mechanism, call);
        FV_TRY(fv_tensor_zeros(ctx, &state->s, FV_F32, FV_DIMS(B, call->query_heads, width, call->value_dim)));
        return fv_tensor_zeros(ctx, &state->z, FV_F32, FV_DIMS(B, call->query_heads, width));
    }
    for (int kind = 0; kind < FV_KEPT && mechanism->kept; kind++) {
        int64_t rows = mechanism->kept(call, kind, call->keys, &width);
        fv_dtype type = fv_kept_type(mechanism, ctx->precision, call->k.dtype, call->v.dtype);
        FV_TRY(fv_tensor_new(ctx, &state->kept[kind].rows, type, FV_DIMS(B, call->key_heads, rows, width)));
    }
    width = mechanism->choice_width ? mechanism->choice_width(call, call->keys) : 0;
    return width > 0 ? fv_tensor_new(ctx, &state->choice.index, FV_I32, FV_DIMS(B, call->query_heads, width)) : FV_OK;
}

/* Computes token t of a call; `first` tokens may bring a state of their own. */
static fv_status step(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, int64_t t,
                      fv_attention_state *state)
{
    fv_call token;

    FV_TRY(fv_ctx_check(ctx));
    fv_call_cut(call, t, 1, &token);
    for (int i = 0; i < fv_params_count(mechanism->params); i++)
        token.param_out[i].data = NULL;
    if (t == 0 && mechanism->accept) FV_TRY(mechanism->accept(&token));
    if (mechanism->scan) return run_scan(ctx, mechanism, &token, state, t == 0);
    return run(ctx, mechanism, &token, state, NULL);
}

static fv_status decode(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args)
{
    const fv_mechanism *mechanism = attention->mechanism;
    fv_attention_state state;
    fv_call call;

    FV_TRY(fv_call_make(attention, args, &call));
    if (!call.causal) return fv_fail(FV_E_USAGE, "%s: decoding needs causal attention", mechanism->name);
    if (mechanism->traits & FV_BLOCK_CAUSAL && !(mechanism->traits & FV_OWN_DECODE) &&
        mechanism->ahead(call.options) != 1)
        return fv_fail(FV_E_USAGE, "%s: has no decoding of its own: its selection sees the rest of a block",
                       mechanism->name);
    FV_TRY(new_state(ctx, mechanism, &call, &state));
    for (int64_t t = 0; t < call.queries; t++)
        FV_TRY_SCRATCH(ctx, step(ctx, mechanism, &call, t, &state));
    for (int i = 0; mechanism->scan && i < fv_params_count(mechanism->params); i++)
        if (fv_present(&call.param_out[i]))
            FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = state.s, .out = call.param_out[i]}));
    return FV_OK;
}

fv_status fv_attention_decode(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_phase before = fv_phase_enter(ctx, FV_PHASE_ATTEND);
    fv_status status = decode(ctx, attention, args);

    fv_phase_enter(ctx, before);
    fv_scratch_release(ctx, mark);
    return status;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

static fv_status record(fv_ctx *ctx, const fv_attention *attention, fv_attention_args *args, fv_named_tensor *params)
{
    FV_TRY(fv_tape_leaf(ctx, &args->q));
    FV_TRY(fv_tape_leaf(ctx, &args->k));
    FV_TRY(fv_tape_leaf(ctx, &args->v));
    for (int i = 0; i < args->params; i++)
        if (params[i].tensor.dtype == FV_F32) FV_TRY(fv_tape_leaf(ctx, &params[i].tensor));
    FV_TRY(fv_tape_watch(ctx, &args->o)); /* rows that see no key depend on nothing, but may be seeded */
    return forward(ctx, attention, args, NULL);
}

static fv_status hand_out_all(fv_ctx *ctx, const char *owner, const fv_attention_args *args,
                              const fv_attention_grads *grads)
{
    FV_TRY(fv_tape_hand_out(ctx, owner, "q", &args->q, &grads->d_q));
    FV_TRY(fv_tape_hand_out(ctx, owner, "k", &args->k, &grads->d_k));
    FV_TRY(fv_tape_hand_out(ctx, owner, "v", &args->v, &grads->d_v));
    for (int g = 0; g < grads->params; g++) {
        int i = 0;
        while (i < args->params && strcmp(args->param[i].name, grads->d_param[g].name) != 0)
            i++;
        if (i == args->params)
            return fv_fail(FV_E_USAGE, "%s: gradient of param '%s', which is not given", owner, grads->d_param[g].name);
        FV_TRY(fv_tape_hand_out(ctx, owner, args->param[i].name, &args->param[i].tensor, &grads->d_param[g].tensor));
    }
    return FV_OK;
}

static fv_status backward(fv_ctx *ctx, const fv_attention *attention, fv_attention_args *args,
                          const fv_attention_grads *grads)
{
    fv_named_tensor *params;

    FV_TRY(FV_SCRATCH(ctx, params, args->params));
    if (args->params) memcpy(params, args->param, (size_t)args->params * sizeof *params);
    args->param = params;
    FV_TRY(record(ctx, attention, args, params));
    FV_TRY(fv_tape_seed(ctx, &args->o, &grads->d_o));
    FV_TRY(fv_tape_backward(ctx));
    return hand_out_all(ctx, attention->mechanism->name, args, grads);
}

fv_status fv_attention_backward(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args,
                                const fv_attention_grads *grads)
{
    const fv_mechanism *mechanism = attention->mechanism;
    fv_attention_args own = *args;
    fv_call call;
    fv_status status;

    if (!(mechanism->traits & FV_DIFFERENTIABLE)) return fv_fail(FV_E_USAGE, "%s: has no gradients", mechanism->name);
    FV_TRY(fv_call_make(attention, args, &call));
    if (!fv_present(&grads->d_o) || grads->d_o.dtype != FV_F32 || !fv_tensor_same_shape(&grads->d_o, &args->o))
        return fv_fail(FV_E_SHAPE, "%s: gradient of o: expected f32 %s, got %s", mechanism->name,
                       fv_shape_text(&args->o), fv_shape_text(&grads->d_o));
    for (int i = 0; i < grads->params; i++) {
        int index;
        FV_TRY(fv_params_find(mechanism->name, "param", mechanism->params, grads->d_param[i].name, &index));
        if (mechanism->params[index].fixed)
            return fv_fail(FV_E_USAGE, "%s: param '%s' has no gradient", mechanism->name, grads->d_param[i].name);
    }
    FV_TRY(fv_tape_begin(ctx));
    status = backward(ctx, attention, &own, grads);
    fv_tape_end(ctx);
    return status;
}
