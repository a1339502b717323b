/* Which pairs a mechanism computes, as a map and as numbers. */
#include "attention/attention.h"

enum { MAP_LIMIT = 1 << 26 };

static bool has_pairs(const fv_mechanism *mechanism)
{
    return mechanism->plan || mechanism->map;
}

fv_status fv_call_pairs(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, fv_pairs *pairs)
{
    fv_attend_args attend;

    *pairs = (fv_pairs){.plan = {.causal = call->causal, .offset = call->offset}};
    if (fv_call_reads_all(mechanism, call)) return FV_OK;
    if (mechanism->plan) return fv_call_plan(ctx, mechanism, call, &pairs->plan, &attend);
    if (mechanism->map) return mechanism->map(ctx, call, pairs);
    return fv_fail(FV_E_USAGE, "%s: has no set of query-key pairs", mechanism->name);
}

/* ---- the map ---------------------------------------------------------------------------------------------------- */

struct map_work {
    const fv_pairs *pairs;
    int64_t heads, rows, columns, map_heads;
    uint8_t *map;
};

void fv_pairs_row(const fv_pairs *pairs, int64_t heads, int64_t b, int64_t h, int64_t i, int64_t keys, uint8_t *row)
{
    int64_t list = b * pairs->batch_stride + h * pairs->head_stride, columns = pairs->columns ? pairs->columns : keys;

    if (pairs->columns) memset(row, 0, (size_t)keys);
    for (int64_t j = 0; j < columns; j++) {
        bool seen = fv_plan_sees(&pairs->plan, heads, b, h, i, j);
        int64_t key = pairs->columns ? pairs->column_key[j] : j;
        int64_t end = key + (pairs->columns ? pairs->column_keys[j] : 1);
        for (; (seen || !pairs->columns) && key < end; key++)
            row[pairs->key_order ? pairs->key_order[list + key] : key] =
                seen && pairs->columns ? pairs->column_mark[j] : seen;
    }
}

int64_t fv_pairs_query(const fv_pairs *pairs, int64_t b, int64_t h, int64_t i)
{
    return pairs->query_order ? pairs->query_order[b * pairs->batch_stride + h * pairs->head_stride + i] : i;
}

static void map_row(void *user, int64_t index, int thread)
{
    const struct map_work *work = user;
    const fv_pairs *pairs = work->pairs;
    int64_t i = index % work->rows, plane = index / work->rows;
    int64_t h = plane % work->map_heads, b = plane / work->map_heads;
    int64_t query = fv_pairs_query(pairs, b, h, i);

    (void)thread;
    fv_pairs_row(pairs, work->heads, b, h, i, work->columns, work->map + (plane * work->rows + query) * work->columns);
}

static fv_status make_map(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, fv_tensor *map,
                          void **owned)
{
    fv_call call;
    fv_pairs pairs;
    int64_t dims[4], plane;

    FV_TRY(fv_call_make(attention, args, &call));
    if (call.queries * call.keys > MAP_LIMIT)
        return fv_fail(FV_E_SHAPE, "%s: map of pairs: expected at most %d, got %lld x %lld", attention->mechanism->name,
                       MAP_LIMIT, (long long)call.queries, (long long)call.keys);
    if (call.queries * call.keys > 0 || !has_pairs(attention->mechanism))
        FV_TRY(fv_call_pairs(ctx, attention->mechanism, &call, &pairs));
    else
        pairs = (fv_pairs){0};
    dims[0] = (pairs.plan.lists.row_start && pairs.plan.lists.batch_stride) || pairs.batch_stride ? call.batch : 1;
    dims[1] =
        (pairs.plan.lists.row_start && pairs.plan.lists.head_stride) || pairs.plan.window.heads > 1 || pairs.head_stride
            ? call.query_heads
            : 1;
    dims[2] = call.queries;
    dims[3] = call.keys;
    plane = dims[2] * dims[3];
    if (!fv_mul_i64(dims[0] * dims[1], plane, &plane))
        return fv_fail(FV_E_MEMORY, "%s: map of pairs: too large", attention->mechanism->name);
    FV_TRY(fv_zalloc(owned, plane, 1));
    fv_run(ctx, dims[0] * dims[1] * dims[2], map_row,
           &(struct map_work){.pairs = &pairs,
                              .heads = call.query_heads,
                              .rows = dims[2],
                              .columns = dims[3],
                              .map_heads = dims[1],
                              .map = *owned});
    return fv_tensor_wrap(map, *owned, FV_U8, 4, dims);
}

fv_status fv_attention_map(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, fv_tensor *map,
                           void **owned)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_status status;

    *owned = NULL;
    status = make_map(ctx, attention, args, map, owned);
    fv_scratch_release(ctx, mark);
    return status;
}

void fv_release(void *owned)
{
    fv_free(owned);
}

fv_status fv_count_pairs(fv_ctx *ctx, const fv_call *call, const fv_plan *plan, int64_t keys)
{
    int64_t pairs = 0;

    if (!call->pairs) return FV_OK;
    FV_TRY(fv_plan_pairs(ctx, plan, call->batch, call->query_heads, call->queries, keys, &pairs));
    *call->pairs += (double)pairs;
    return FV_OK;
}

/* ---- work ------------------------------------------------------------------------------------------------------- */

static double tensor_bytes(const fv_tensor *t)
{
    double blocks = fv_present(t) ? (double)fv_tensor_count(t) / (double)fv_dtype_block(t->dtype) : 0;

    return blocks * (double)fv_dtype_block_bytes(t->dtype);
}

double fv_call_dense_pairs(const fv_call *call)
{
    double N = (double)call->queries, M = (double)call->keys, heads = (double)(call->batch * call->query_heads);
    double first = M - N + 1; /* keys of query 0 */

    if (!call->causal) return heads * N * M;
    return heads * (first >= 0 ? N * (first + M) / 2 : M * (M + 1) / 2);
}

/* What a mechanism that counts computes is known when it has been. */
static fv_status count_pairs(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, int64_t *pairs)
{
    fv_call counted = *call;
    double count = 0;

    counted.pairs = &count;
    counted.lse = (fv_tensor){0};
    FV_TRY(fv_tensor_new(ctx, &counted.o, FV_F32, 4, call->o.dims));
    FV_TRY(mechanism->forward(ctx, &counted));
    *pairs = (int64_t)count;
    return FV_OK;
}

fv_status fv_call_measure(fv_ctx *ctx, const fv_mechanism *mechanism, const fv_call *call, const double *counted,
                          fv_work *work)
{
    fv_pairs pairs;
    double dense;

    *work = (fv_work){.bytes = tensor_bytes(&call->q) + tensor_bytes(&call->k) + tensor_bytes(&call->v) +
                               tensor_bytes(&call->o) + tensor_bytes(&call->lse)};
    for (int i = 0; i < fv_params_count(mechanism->params); i++)
        work->bytes += tensor_bytes(&call->param[i]);
    if (call->queries == 0 || call->keys == 0) return FV_OK;
    if (counted) {
        work->pairs = (int64_t)*counted;
        work->flops = 2.0 * *counted * (double)(call->head_dim + call->value_dim);
    } else if (mechanism->work) {
        FV_TRY(mechanism->work(ctx, call, work));
    } else if (mechanism->scan) {
        int64_t width = fv_call_state_width(mechanism, call);
        work->flops = 2.0 * (double)(call->queries + call->keys) * (double)(call->batch * call->query_heads) *
                      (double)width * (double)call->value_dim;
    } else if (mechanism->counts) {
        FV_TRY(count_pairs(ctx, mechanism, call, &work->pairs));
        work->flops = 2.0 * (double)work->pairs * (double)(call->head_dim + call->value_dim);
    } else {
        FV_TRY(fv_call_pairs(ctx, mechanism, call, &pairs));
        FV_TRY(fv_plan_pairs(ctx, &pairs.plan, call->batch, call->query_heads, call->queries,
                             pairs.columns ? pairs.columns : call->keys, &work->pairs));
        work->flops = 2.0 * (double)work->pairs * (double)(call->head_dim + call->value_dim);
    }
    dense = fv_call_dense_pairs(call);
    work->density = dense > 0 ? (double)work->pairs / dense : 0;
    return FV_OK;
}

fv_status fv_attention_work(fv_ctx *ctx, const fv_attention *attention, const fv_attention_args *args, fv_work *work)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_call call;
    fv_status status = fv_call_make(attention, args, &call);

    if (status == FV_OK) status = fv_call_measure(ctx, attention->mechanism, &call, NULL, work);
    fv_scratch_release(ctx, mark);
    return status;
}
