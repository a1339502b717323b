/* What every mechanism gets from its descriptor: forward, chunks, decode, backward, pairs and work. */
#include "attention/attention.h"

#include <math.h>
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

fv_status fv_kept_queries(const fv_call *call, int64_t from, int64_t count, fv_tensor *q)
{
    if (from < call->offset)
        return fv_fail(FV_E_UNSUPPORTED, "%s: the queries before this part of the sequence are not known",
                       call->mechanism->name);
    *q = fv_slice(&call->q, 2, from - call->offset, count);
    return FV_OK;
}

/* ---- recurrences ------------------------------------------------------------------------------------------------ */

/* Features of a call's tokens that are in memory at once, where no tape wants them all. */
enum { FEATURE_BYTES = 64 << 20, LEAST_TOKENS = 64 };

/* Adds k^T v to s [B,H,F,Dv] and the sum of k to z [B,H,F] (unless absent), or sets them.  Grouped values or features
 * count as repeated. */
static fv_status sum_keys(fv_ctx *ctx, int64_t heads, const fv_tensor *k, const fv_tensor *v, bool add,
                          const fv_tensor *s, const fv_tensor *z)
{
    fv_tensor wide_k, wide_v, row, before;

    FV_TRY(fv_repeat_heads(ctx, k, heads, &wide_k));
    FV_TRY(fv_repeat_heads(ctx, v, heads, &wide_v));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = fv_transposed(&wide_k), .b = wide_v, .c = *s, .beta = add ? 1 : 0}));
    if (!fv_present(z)) return FV_OK;
    before = row = fv_expanded(z, 2);
    if (add) FV_TRY(fv_tensor_new(ctx, &row, FV_F32, 4, before.dims));
    FV_TRY(fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_SUM, .x = wide_k, .out = row, .block = k->dims[2]}));
    if (!add) return FV_OK;
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = before, .y = row, .out = before});
}

/* The sums over keys of a scan. */
static fv_status sum_all(fv_ctx *ctx, const fv_call *call, const fv_scan_args *scan, const fv_tensor *k,
                         const fv_tensor *v, fv_tensor *s, fv_tensor *z)
{
    int64_t B = call->batch, H = call->query_heads, F = scan->k.dims[3], Dv = call->value_dim;

    *z = (fv_tensor){0};
    FV_TRY(fv_tensor_zeros(ctx, s, FV_F32, FV_DIMS(B, H, F, Dv)));
    if (scan->normalise) FV_TRY(fv_tensor_zeros(ctx, z, FV_F32, FV_DIMS(B, H, F)));
    return k->dims[2] == 0 ? FV_OK : sum_keys(ctx, H, k, v, false, s, z);
}

/* Features from..from+count-1 of a scan. */
static fv_scan_args features_of(const fv_scan_args *scan, int64_t from, int64_t count)
{
    fv_scan_args part = *scan;
    fv_tensor *states[] = {&part.state_in, &part.state_out, &part.z_in, &part.z_out};

    part.q = fv_slice(&scan->q, 3, from, count);
    part.k = fv_slice(&scan->k, 3, from, count);
    for (int n = 0; n < 4; n++)
        if (fv_present(states[n])) *states[n] = fv_slice(states[n], 2, from, count);
    return part;
}

typedef fv_status read_fn(fv_ctx *ctx, const fv_scan_args *scan);

/* o, and lse if asked for: that of each group of features that is normalised by itself, added. */
static fv_status read_groups(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, const fv_scan_args *scan,
                             const fv_tensor *lse, read_fn *read)
{
    int64_t start[FV_FEATURE_GROUPS + 1] = {0, scan->q.dims[3]};
    int groups = mechanism->feature_groups ? mechanism->feature_groups(call, start) : 1;
    fv_tensor sum = {0}, divisors = {0};

    for (int g = 0; g < groups; g++) {
        fv_scan_args part = features_of(scan, start[g], start[g + 1] - start[g]);
        if (groups > 1) FV_TRY(fv_tensor_new(ctx, &part.o, FV_F32, 4, scan->o.dims));
        if (fv_present(lse)) FV_TRY(fv_tensor_new(ctx, &part.denominator, FV_F32, 3, scan->o.dims));
        FV_TRY(read(ctx, &part));
        if (g > 0) {
            fv_tensor before[] = {sum, divisors};
            sum = scan->o;
            if (g + 1 < groups) FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, 4, scan->o.dims));
            FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = before[0], .y = part.o, .out = sum}));
            if (!fv_present(lse)) continue;
            FV_TRY(fv_tensor_new(ctx, &divisors, FV_F32, 3, scan->o.dims));
            FV_TRY(fv_map_apply(
                ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = before[1], .y = part.denominator, .out = divisors}));
        } else {
            sum = part.o;
            divisors = part.denominator;
        }
    }
    return fv_present(lse) ? fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_LOG, .x = divisors, .out = *lse}) : FV_OK;
}

/* Without causality every query reads the same sums, state_in and z_in: two gemms and a division. */
static fv_status read_sums(fv_ctx *ctx, const fv_scan_args *scan)
{
    const int64_t *dims = scan->o.dims, column_dims[] = {dims[0], dims[1], dims[2], 1};
    const fv_tensor *z = &scan->z_in;
    fv_tensor column, sum, divisor, changed;
    fv_map_args change = {.op = FV_MAP_COPY, .beta = scan->epsilon};

    if (!scan->normalise) return fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = scan->state_in, .c = scan->o});
    FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, 4, dims));
    FV_TRY(fv_tensor_new(ctx, &divisor, FV_F32, 4, column_dims));
    column = fv_expanded(z, 3);
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = scan->state_in, .c = sum}));
    FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = scan->q, .b = column, .c = divisor}));
    if (scan->epsilon > 0 || scan->floor > 0) { /* not both: epsilon is added, floor replaces */
        if (scan->floor > 0) change = (fv_map_args){.op = FV_MAP_MAX, .alpha = scan->floor};
        FV_TRY(fv_tensor_new(ctx, &changed, FV_F32, 4, column_dims));
        change.x = divisor;
        change.out = changed;
        FV_TRY(fv_map_apply(ctx, &change));
        divisor = changed;
    }
    if (fv_present(&scan->denominator))
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = fv_reshaped(&divisor, 3, dims), .out = scan->denominator}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_DIV, .x = sum, .y = divisor, .out = scan->o});
}

/* More keys than queries: the first ones are in the state before the first query.  Fewer: the first queries see none.
 */
static fv_status align(fv_ctx *ctx, const fv_call *call, fv_scan_args *scan, fv_tensor *lse)
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
        if (!fv_present(lse)) return FV_OK;
        blind = fv_slice(lse, 2, 0, -ahead);
        FV_TRY(fv_fill(ctx, &blind, -INFINITY));
        *lse = fv_slice(lse, 2, -ahead, call->keys);
    }
    return FV_OK;
}

/* state: NULL, or read (unless it is fresh and the call brings its own) and written. */
static fv_status scan_whole(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_attention_state *state,
                            bool fresh)
{
    fv_scan_args scan = {.q = call->q, .k = call->k, .v = call->v, .o = call->o};
    fv_tensor lse = call->lse;

    FV_TRY(mechanism->scan(ctx, call, &scan));
    if (!call->causal && call->keys == 0 && scan.normalise) { /* a mean of nothing */
        FV_TRY(fv_fill(ctx, &call->o, 0));
        return fv_present(&lse) ? fv_fill(ctx, &lse, -INFINITY) : FV_OK;
    }
    if (!call->causal) {
        FV_TRY(sum_all(ctx, call, &scan, &scan.k, &scan.v, &scan.state_in, &scan.z_in));
        return read_groups(ctx, mechanism, call, &scan, &lse, read_sums);
    }
    FV_TRY(align(ctx, call, &scan, &lse));
    if (state) {
        if (!fresh || !fv_present(&scan.state_in)) scan.state_in = state->s;
        scan.state_out = state->s;
        if (scan.normalise) {
            if (!fresh || !fv_present(&scan.z_in)) scan.z_in = state->z;
            scan.z_out = state->z;
        }
    }
    return scan.q.dims[2] == 0 ? FV_OK : read_groups(ctx, mechanism, call, &scan, &lse, fv_scan);
}

/* ---- a part of the tokens at a time */

/* So many queries and keys of a call. */
static fv_call part_of(const fv_call *call, int64_t query, int64_t queries, int64_t key, int64_t keys)
{
    fv_call part = *call;

    part.queries = queries;
    part.keys = keys;
    part.offset = keys - queries;
    part.q = fv_slice(&call->q, 2, query, queries);
    part.o = fv_slice(&call->o, 2, query, queries);
    if (fv_present(&call->lse)) part.lse = fv_slice(&call->lse, 2, query, queries);
    part.k = fv_slice(&call->k, 2, key, keys);
    part.v = fv_slice(&call->v, 2, key, keys);
    return part;
}

/* Adds the keys of a part to the sums of a state. */
static fv_status add_keys(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *part, fv_attention_state *state)
{
    static const fv_tensor none;
    fv_scan_args scan = {.q = part->q, .k = part->k, .v = part->v, .o = part->o};

    FV_TRY(mechanism->scan(ctx, part, &scan));
    return sum_keys(ctx, part->query_heads, &scan.k, &scan.v, true, &state->s, scan.normalise ? &state->z : &none);
}

/* Reads sums that are complete. */
static fv_status read_state(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *part, fv_attention_state *state)
{
    fv_scan_args scan = {.q = part->q, .k = part->k, .v = part->v, .o = part->o};

    FV_TRY(mechanism->scan(ctx, part, &scan));
    scan.state_in = state->s;
    if (scan.normalise) scan.z_in = state->z;
    return read_groups(ctx, mechanism, part, &scan, &part->lse, read_sums);
}

/* Tokens whose features are made at once: all that a tape, or a mechanism without features, has. */
static int64_t tokens_at_once(const fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call)
{
    double bytes = (double)sizeof(float) * (double)(call->batch * (call->query_heads + call->key_heads));

    if (ctx->recording || !mechanism->state_width) return INT64_MAX;
    return fv_max((int64_t)(FEATURE_BYTES / (bytes * (double)mechanism->state_width(call))), LEAST_TOKENS);
}

/* Keys that come before every query, and then queries, with their own keys where it is causal. */
static fv_status scan_parts(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_attention_state *state,
                            int64_t most)
{
    int64_t N = call->queries, M = call->keys, ahead = call->causal ? fv_max(M - N, 0) : M;
    int64_t blind = call->causal ? fv_max(N - M, 0) : 0;

    for (int64_t from = 0, count; from < ahead + N; from += count) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t query = from - ahead, key = call->causal ? from - blind : M;
        fv_status status;
        count = fv_min(most, from < ahead ? ahead - from : query < blind ? blind - query : N - query);
        fv_call part = from < ahead    ? part_of(call, 0, 0, from, count)
                       : query < blind ? part_of(call, query, count, 0, 0)
                                       : part_of(call, query, count, key, call->causal ? count : 0);
        if (from < ahead)
            status = add_keys(ctx, mechanism, &part, state);
        else if (call->causal)
            status = scan_whole(ctx, mechanism, &part, state, false);
        else
            status = read_state(ctx, mechanism, &part, state);
        fv_scratch_release(ctx, mark);
        FV_TRY(status);
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
}

/* state: as of scan_whole. */
static fv_status run_scan(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *given, fv_attention_state *state,
                          bool fresh)
{
    int64_t most = tokens_at_once(ctx, mechanism, given), width;
    fv_attention_state own = {0};
    fv_call call = *given;

    if (call.k.dtype != FV_F32) FV_TRY(fv_plain(ctx, &given->k, &call.k));
    if (call.v.dtype != FV_F32) FV_TRY(fv_plain(ctx, &given->v, &call.v));
    if (fv_max(call.queries, call.keys) <= most) return scan_whole(ctx, mechanism, &call, state, fresh);
    if (!state) {
        width = mechanism->state_width(&call);
        FV_TRY(fv_tensor_zeros(ctx, &own.s, FV_F32, FV_DIMS(call.batch, call.query_heads, width, call.value_dim)));
        FV_TRY(fv_tensor_zeros(ctx, &own.z, FV_F32, FV_DIMS(call.batch, call.query_heads, width)));
        state = &own;
    }
    return scan_parts(ctx, mechanism, &call, state, most);
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
    if (call.queries == 0) return FV_OK;
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
    bool empty;

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
    empty = call.queries == 0 || call.keys == 0;
    if (empty) FV_TRY(fv_attention_forward(ctx, attention, args));
    FV_TRY(fv_tape_begin(ctx));
    status = empty ? hand_out_all(ctx, mechanism->name, args, grads) /* nothing was recorded: zeros */
                   : backward(ctx, attention, &own, grads);
    fv_tape_end(ctx);
    return status;
}
