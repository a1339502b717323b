#include "hooks/picked.h"

#include <math.h>

#include "attention/attention.h"

fv_picked fv_picked_rows(const fv_picked *picked, int64_t from, int64_t rows)
{
    fv_picked part = *picked;
    fv_plan *plan = &part.plan;

    part.rows = rows;
    part.position += from;
    part.q = fv_slice(&part.q, 2, from, rows);
    if (fv_present(&part.lse)) part.lse = fv_slice(&part.lse, 2, from, rows);
    plan->offset += from;
    if (plan->query_segment) plan->query_segment += from;
    if (plan->key_from) plan->key_from += from;
    if (plan->key_to) plan->key_to += from;
    return part;
}

/* Rows of some heads side by side: x [1,H,rows,..] of the call's heads. */
static fv_status gather(fv_ctx *ctx, const int32_t *place, int64_t heads, fv_tensor *x)
{
    const fv_tensor from = *x;
    int64_t dims[4] = {1, heads, x->dims[2], x->dims[3]};

    FV_TRY(fv_tensor_new(ctx, x, FV_F32, from.rank, dims));
    for (int64_t h = 0; h < heads; h++)
        FV_TRY(fv_map_apply(
            ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = fv_slice(&from, 1, place[h], 1), .out = fv_slice(x, 1, h, 1)}));
    return FV_OK;
}

static fv_status pick_heads(fv_ctx *ctx, const fv_look *look, const fv_list *wanted, fv_picked *picked)
{
    int64_t all = look->call->query_heads, group = all / look->call->key_heads;
    int32_t *head, *place, *key_head;

    FV_TRY(FV_SCRATCH(ctx, head, all));
    FV_TRY(FV_SCRATCH(ctx, place, all));
    FV_TRY(FV_SCRATCH(ctx, key_head, all));
    for (int64_t h = 0; h < all; h++) {
        if (!fv_selects(wanted, look->head + h)) continue;
        place[picked->heads] = (int32_t)h;
        key_head[picked->heads] = (int32_t)(h / group);
        head[picked->heads++] = (int32_t)(look->head + h);
    }
    picked->head = head;
    if (picked->heads == all) return FV_OK;
    picked->key_head = key_head;
    FV_TRY(gather(ctx, place, picked->heads, &picked->q));
    return fv_present(&picked->lse) ? gather(ctx, place, picked->heads, &picked->lse) : FV_OK;
}

/* Keys are held in the order of their positions. */
static void pick_keys(const fv_selector *select, int64_t held, fv_picked *picked)
{
    int64_t end = held;

    while (picked->key_from < held && fv_picked_key(picked, picked->key_from) < select->key_from)
        picked->key_from++;
    while (select->key_to > 0 && end > picked->key_from && fv_picked_key(picked, end - 1) >= select->key_to)
        end--;
    picked->keys = end - picked->key_from;
}

fv_status fv_pick(fv_ctx *ctx, const fv_look *look, const fv_selector *select, fv_picked *picked)
{
    const fv_call *call = look->call;
    int64_t first, rows = fv_selected_rows(select, look->position, call->queries, &first);

    if (!look->plan || look->plan->lists.row_start || look->plan->grid.rank > 0 || look->plan->window.heads > 0)
        return fv_fail(FV_E_UNSUPPORTED, "layer %lld: what '%s' reads there is no plain range of keys for each query",
                       (long long)look->layer, fv_attention_mechanism(look->attention)->name);
    *picked = (fv_picked){.q = call->q,
                          .k = call->k,
                          .v = call->v,
                          .lse = call->lse,
                          .position = look->position,
                          .plan = *look->plan,
                          .logits = *look->extra};
    *picked = fv_picked_rows(picked, first, rows);
    pick_keys(select, call->keys, picked);
    return pick_heads(ctx, look, select->heads, picked);
}

/* ---- maps ------------------------------------------------------------------------------------------------------- */

/* Makes something of the picked rows in f32, whatever the model computes in; all else is given back. */
static fv_status in_f32(fv_ctx *ctx, const fv_picked *p, fv_status (*make)(fv_ctx *, const fv_picked *, fv_tensor *),
                        int rank, fv_tensor *out)
{
    const int64_t dims[] = {1, p->heads, p->rows, p->keys};
    fv_precision before = ctx->precision;
    fv_status status;

    FV_TRY(fv_tensor_new(ctx, out, FV_F32, rank, dims));
    fv_mark mark = fv_scratch_mark(ctx);
    ctx->precision = FV_PRECISION_F32;
    status = make(ctx, p, out);
    ctx->precision = before;
    fv_scratch_release(ctx, mark);
    return status;
}

static fv_attend_args args_of(const fv_picked *p)
{
    return (fv_attend_args){
        .q = p->q, .k = p->k, .v = p->v, .plan = &p->plan, .logits = p->logits, .key_head = p->key_head};
}

static fv_status weigh(fv_ctx *ctx, const fv_picked *p, fv_tensor *weights)
{
    fv_attend_args args = args_of(p);

    args.weights = *weights;
    args.weight_from = p->key_from;
    FV_TRY(fv_tensor_new(ctx, &args.o, FV_F32, FV_DIMS(1, p->heads, p->rows, p->v.dims[3])));
    return fv_attend(ctx, &args);
}

fv_status fv_picked_weights(fv_ctx *ctx, const fv_picked *p, fv_tensor *weights)
{
    return in_f32(ctx, p, weigh, 4, weights);
}

static fv_status search(fv_ctx *ctx, const fv_picked *p, fv_tensor *most)
{
    fv_attend_args args = args_of(p);

    args.logits.softcap = 0;
    return fv_largest_logits(ctx, &args, most);
}

fv_status fv_picked_largest(fv_ctx *ctx, const fv_picked *p, fv_tensor *most)
{
    return in_f32(ctx, p, search, 3, most);
}

struct capping {
    const fv_picked *picked;
    const fv_tensor *logits;
};

/* What goes into the softmax: capped, and nothing where a key is not seen. */
static void cap_item(void *user, int64_t index, int thread)
{
    const struct capping *c = user;
    const fv_picked *p = c->picked;
    int64_t h = index / p->rows, i = index % p->rows;
    float *row = fv_at(c->logits, 0, h, i, 0), cap = p->logits.softcap;

    (void)thread;
    for (int64_t j = 0; j < p->keys; j++)
        if (!fv_plan_sees(&p->plan, p->heads, 0, h, i, p->key_from + j))
            row[j] = -INFINITY;
        else if (cap > 0)
            row[j] = cap * tanhf(row[j] / cap);
}

static fv_status multiply(fv_ctx *ctx, const fv_picked *p, fv_tensor *logits)
{
    fv_tensor stored = fv_slice(&p->k, 2, p->key_from, p->keys), k;
    int64_t group = p->heads / p->k.dims[1];

    FV_TRY(fv_plain(ctx, &stored, &k));
    for (int64_t h = 0; h < p->heads; h++) {
        fv_tensor keys = fv_slice(&k, 1, p->key_head ? p->key_head[h] : h / group, 1);
        FV_TRY(fv_gemm(ctx, &(fv_gemm_args){.a = fv_slice(&p->q, 1, h, 1),
                                            .b = fv_transposed(&keys),
                                            .c = fv_slice(logits, 1, h, 1),
                                            .alpha = p->logits.scale}));
    }
    fv_run(ctx, p->heads * p->rows, cap_item, &(struct capping){p, logits});
    return FV_OK;
}

fv_status fv_picked_logits(fv_ctx *ctx, const fv_picked *p, fv_tensor *logits)
{
    return in_f32(ctx, p, multiply, 4, logits);
}
