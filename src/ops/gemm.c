/* Matrix products: checks, the shapes backends see, and the backward pass as two products. */
#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/blocks.h"
#include "ops/check.h"
#include "ops/tape.h"

/* Blocks run along k: stride 1 there, and whole blocks between rows. */
static fv_status check_blocks(const fv_tensor *b)
{
    int64_t block = fv_dtype_block(b->dtype), k = b->dims[b->rank - 2];
    bool whole = k % block == 0 && (k == 1 || b->strides[b->rank - 2] == 1);

    if (block == 1) return FV_OK;
    if (!fv_blocks_supported(b->dtype))
        return fv_fail(FV_E_UNSUPPORTED, "gemm: b: blocks of %s are not supported", fv_dtype_name(b->dtype));
    for (int d = 0; d < b->rank; d++)
        if (d != b->rank - 2) whole = whole && b->strides[d] % block == 0;
    if (whole) return FV_OK;
    return fv_fail(FV_E_SHAPE, "gemm: b: expected %s blocks of %lld along k, got shape %s with other strides",
                   fv_dtype_name(b->dtype), (long long)block, fv_shape_text(b));
}

static fv_status check_gemm(const fv_gemm_args *g)
{
    const fv_tensor *c = &g->c;
    int64_t da[FV_MAX_RANK] = {0}, db[FV_MAX_RANK] = {0}, k;

    FV_TRY(fv_check_rank("gemm", "c", c, FV_TYPE(FV_F32), 2, FV_MAX_RANK));
    FV_TRY(fv_check_rank("gemm", "a", &g->a, FV_TYPES_HALF, 2, c->rank));
    FV_TRY(fv_check_rank("gemm", "b", &g->b, FV_TYPES_HALF | FV_TYPES_BLOCKS, 2, c->rank));
    k = g->a.dims[g->a.rank - 1];
    memcpy(da, c->dims, sizeof da);
    memcpy(db, c->dims, sizeof db);
    da[c->rank - 1] = k;
    db[c->rank - 2] = k;
    if (g->a.dims[g->a.rank - 2] != c->dims[c->rank - 2] || g->b.dims[g->b.rank - 2] != k ||
        g->b.dims[g->b.rank - 1] != c->dims[c->rank - 1])
        return fv_fail(FV_E_SHAPE, "gemm: a %s times b %s does not give c %s", fv_shape_text(&g->a),
                       fv_shape_text(&g->b), fv_shape_text(c));
    FV_TRY(fv_check_broadcast("gemm", "a", &g->a, FV_TYPES_HALF, c->rank, da));
    FV_TRY(fv_check_broadcast("gemm", "b", &g->b, FV_TYPES_HALF | FV_TYPES_BLOCKS, c->rank, db));
    FV_TRY(fv_check_optional("gemm", "bias", &g->bias, FV_TYPES_FLOAT, FV_DIMS(c->dims[c->rank - 1])));
    return check_blocks(&g->b);
}

/* Drops leading dim d of a, b and c. */
static void drop_dim(fv_gemm_args *g, int d)
{
    fv_tensor *tensors[] = {&g->a, &g->b, &g->c};

    for (int i = 0; i < 3; i++) {
        fv_tensor *t = tensors[i];
        for (int e = d; e + 1 < t->rank; e++) {
            t->dims[e] = t->dims[e + 1];
            t->strides[e] = t->strides[e + 1];
        }
        t->rank--;
    }
}

/* What backends see: a and b repeated to c's leading dims (strides of 0), dims of 1 gone, and a leading dim that
 * shares b joined to m where strides allow it. */
static fv_gemm_args simplified(const fv_gemm_args *args)
{
    fv_gemm_args g = *args;
    int64_t da[FV_MAX_RANK], db[FV_MAX_RANK];
    int r = g.c.rank;

    memcpy(da, g.c.dims, sizeof da);
    memcpy(db, g.c.dims, sizeof db);
    da[r - 1] = db[r - 2] = g.a.dims[g.a.rank - 1];
    /* the last two dims are not to be repeated, but fv_broadcast gives dims of 1 a stride of 0: no harm */
    g.a = fv_broadcast(&g.a, r, da);
    g.b = fv_broadcast(&g.b, r, db);
    if (fv_dtype_block(g.b.dtype) > 1) g.b.strides[r - 2] = 1;
    if (g.alpha == 0) g.alpha = 1;
    for (int d = r - 3; d >= 0; d--)
        if (g.c.dims[d] == 1) drop_dim(&g, d);
    while (g.c.rank > 2) {
        int d = g.c.rank - 3, m = d + 1;
        int64_t rows = g.c.dims[m];
        if (rows == 1) { /* the stride of a single row is free to choose */
            g.a.strides[m] = g.a.strides[d];
            g.c.strides[m] = g.c.strides[d];
        }
        if (g.b.strides[d] != 0 || g.a.strides[d] != rows * g.a.strides[m] || g.c.strides[d] != rows * g.c.strides[m])
            break;
        g.a.dims[m] = g.c.dims[m] = rows * g.c.dims[d];
        drop_dim(&g, d);
    }
    return g;
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

/* to += alpha x y over c's leading dims, where `to` may repeat. */
static fv_status add_product(fv_ctx *ctx, const fv_tensor *to, const fv_tensor *x, const fv_tensor *y, float alpha)
{
    int lead = x->rank - 2;
    int64_t dims[FV_MAX_RANK];

    memcpy(dims, x->dims, sizeof dims);
    dims[lead + 1] = y->dims[lead + 1];
    fv_tensor spread = fv_broadcast(to, x->rank, dims);
    if (fv_tensor_apart(&spread))
        return fv_gemm(ctx, &(fv_gemm_args){.a = *x, .b = *y, .c = spread, .alpha = alpha, .beta = 1});

    fv_tensor tile = fv_view(&spread, 2, spread.dims + lead, spread.strides + lead, 0), sum = tile;
    bool direct = fv_tensor_apart(&tile);
    if (!direct) FV_TRY(fv_tensor_new(ctx, &sum, FV_F32, 2, tile.dims));
    for (int64_t n = 0; n < fv_lead_count(&spread, lead); n++) {
        int64_t offset = fv_lead_offset(&spread, lead, n);
        fv_tensor xn = fv_view(x, 2, x->dims + lead, x->strides + lead, fv_lead_offset(x, lead, n));
        fv_tensor yn = fv_view(y, 2, y->dims + lead, y->strides + lead, fv_lead_offset(y, lead, n));
        fv_tensor into = fv_view(&spread, 2, tile.dims, tile.strides, offset);
        fv_gemm_args g = {.a = xn, .b = yn, .c = direct ? into : sum, .alpha = alpha, .beta = direct};
        FV_TRY(fv_gemm(ctx, &g));
        if (!direct) fv_add_into(ctx, &into, &sum, 1);
    }
    return FV_OK;
}

/* Quantised weights [.., k, n] as f32, still transposed in memory. */
static fv_status plain_weights(fv_ctx *ctx, fv_tensor *b)
{
    int lead = b->rank - 2;
    fv_tensor rows = fv_transposed(b), plain;

    if (fv_dtype_block(b->dtype) == 1) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &plain, FV_F32, rows.rank, rows.dims));
    for (int64_t n = 0; n < fv_lead_count(&rows, lead); n++) {
        fv_dequantize_args d = {
            .x = fv_view(&rows, 2, rows.dims + lead, rows.strides + lead, fv_lead_offset(&rows, lead, n)),
            .out = fv_view(&plain, 2, plain.dims + lead, plain.strides + lead, fv_lead_offset(&plain, lead, n))};
        FV_TRY(fv_dequantize_rows(ctx, &d));
    }
    *b = fv_transposed(&plain);
    return FV_OK;
}

enum { PLAIN_ROWS = 4096 /* of quantised weights that are made f32 together */ };

/* da += alpha dc b^T, b [.., k, n]. */
static fv_status add_by_weights(fv_ctx *ctx, const fv_tensor *da, const fv_tensor *dc, const fv_tensor *b, float alpha)
{
    int last = b->rank - 1;
    int64_t n = b->dims[last], step = fv_dtype_block(b->dtype) > 1 ? PLAIN_ROWS : n, dims[FV_MAX_RANK];

    memcpy(dims, dc->dims, sizeof dims);
    dims[dc->rank - 2] = b->dims[last - 1];
    for (int64_t at = 0; at < n; at += step) {
        int64_t count = fv_min(step, n - at);
        fv_mark mark = fv_scratch_mark(ctx);
        fv_tensor part = fv_slice(b, last, at, count), dcp = fv_slice(dc, dc->rank - 1, at, count);
        FV_TRY(plain_weights(ctx, &part));
        dims[dc->rank - 1] = count;
        part = fv_broadcast(&part, dc->rank, dims);
        part = fv_transposed(&part);
        FV_TRY(add_product(ctx, da, &dcp, &part, alpha));
        fv_scratch_release(ctx, mark);
    }
    return FV_OK;
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    fv_gemm_args g = *(const fv_gemm_args *)args;
    fv_tensor dc = fv_tape_shadow(ctx, &g.c), da = fv_tape_shadow(ctx, &g.a), db = fv_tape_shadow(ctx, &g.b);
    fv_tensor bias = fv_tape_shadow(ctx, &g.bias);
    float alpha = g.alpha == 0 ? 1 : g.alpha;

    if (fv_present(&bias)) fv_add_into(ctx, &bias, &dc, 1);
    int64_t dims[FV_MAX_RANK];
    memcpy(dims, g.c.dims, sizeof dims);
    dims[g.c.rank - 1] = g.a.dims[g.a.rank - 1];
    fv_tensor a = fv_broadcast(&g.a, g.c.rank, dims);
    if (fv_present(&da)) FV_TRY(add_by_weights(ctx, &da, &dc, &g.b, alpha));
    if (fv_present(&db)) {
        fv_tensor at = fv_transposed(&a);
        FV_TRY(add_product(ctx, &db, &at, &dc, alpha));
    }
    /* what c held before is scaled by beta, and its gradient lives in the same shadow */
    if (g.beta == 0 || g.beta == 1) return FV_OK;
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = dc, .out = dc, .alpha = g.beta});
}

fv_status fv_gemm(fv_ctx *ctx, const fv_gemm_args *args)
{
    FV_TRY(check_gemm(args));
    fv_gemm_args g = simplified(args);
    if (fv_tensor_count(&g.c) > 0) FV_TRY(ctx->backend->gemm(ctx, &g));
    const fv_tensor *before = args->beta != 0 ? &args->c : &args->bias; /* adding to c reads it */
    return FV_TAPE_RECORD(ctx, backward, args, 4, &args->a, &args->b, &args->bias, before, &args->c);
}
