/* Matrix products.
 *
 * Many rows (BLIS in spirit): rows of a are packed once into panels of tile_rows; each item takes some columns, packs
 * (dequantises) DEPTH rows of b for them into panels of tile_columns, and runs the micro-kernel over all panels of a.
 * Bound by flops: at 2048^3 75 to 85 % of the FMA peak, 84 to 96 % of the bf16 dot peak.  Few rows (decode): weights
 * are multiplied where they lie, bound by their bytes.
 *
 * An element's sum runs over k in ascending order in pieces of DEPTH whatever the blocking of m and n, so results do
 * not depend on threads, nor on how many rows a call has beyond FV_DOT_ROWS. */
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum {
    DEPTH = 512,           /* units of b at a time (k, or pairs of k): a multiple of every block */
    BLOCK_COLUMNS = 256,   /* of b at a time: 256 KiB with DEPTH, a share of the second-level cache */
    SLAB_FLOATS = 4 << 20, /* of packed a at a time */
    PANEL_SPARE = FV_MAX_TILE_COLUMNS,
    ROW = 2 * DEPTH + 1, /* of a buffer of rows on their way */
    DOT_ROWS_AT_ONCE = 256,
};

/* A stack of products; the front end has repeated a and b to c's leading dims and joined what it could to m. */
struct product {
    const struct fv_kernels *kernels;
    fv_tensor a, b, c; /* [.., m, k], [.., k, n], [.., m, n] */
    const float *bias;
    int64_t bias_stride;
    float alpha, beta;
    int lead;
    int64_t products, m, n, k;
    bool pairs; /* operands are packed as bf16 pairs */
    /* many rows */
    int64_t units, depth; /* k in packed floats: k, or pairs of k; and k of b at a time */
    int64_t slab_product, slab_row, slab_products, slab_rows, panels, panel_floats;
    int64_t block_columns, blocks;
    float *packed_a, *scratch;
    int64_t scratch_floats; /* per thread */
    /* few rows */
    const float *x, *x_sums;
    int64_t x_row, x_product, chunk, chunks;
};

static int64_t stride(const fv_tensor *t, int from_last)
{
    return t->strides[t->rank - from_last];
}

static const void *address(const fv_tensor *t, int64_t offset)
{
    return (const char *)t->data + offset / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype);
}

/* Offset of the n-th matrix. */
static int64_t matrix_offset(const struct product *p, const fv_tensor *t, int64_t n)
{
    int64_t offset = 0;

    for (int d = p->lead - 1; d >= 0; d--) {
        offset += n % p->c.dims[d] * t->strides[d];
        n /= p->c.dims[d];
    }
    return offset;
}

/* Strided elements of a row of a or b to f32. */
static void load_strided(const struct product *p, const fv_tensor *t, int64_t offset, int64_t step, float *out,
                         int64_t count)
{
    if (step == 1 || fv_dtype_block(t->dtype) > 1)
        fv_kernels_load(p->kernels, t->dtype, address(t, offset), 0, count, out);
    else
        fv_load_row(t->dtype, t->data, offset, step, out, count);
}

/* ---- few rows -------------------------------------------------------------------------------------------------- */

static void dot_item(void *user, int64_t index, int thread)
{
    const struct product *p = user;
    int64_t product = index / p->chunks, from = index % p->chunks * p->chunk, count = fv_min(p->chunk, p->n - from);
    int64_t column = stride(&p->b, 1), c_row = stride(&p->c, 2), c_column = stride(&p->c, 1);
    int64_t row_bytes = column / fv_dtype_block(p->b.dtype) * (int64_t)fv_dtype_block_bytes(p->b.dtype);
    const void *w = address(&p->b, matrix_offset(p, &p->b, product) + from * column);
    const float *x = p->x + product * p->x_product;
    float *c = (float *)p->c.data + matrix_offset(p, &p->c, product) + from * c_column;
    float sums[FV_DOT_ROWS * DOT_ROWS_AT_ONCE];
    const float *x_sums = p->x_sums ? p->x_sums + product * p->m * (p->k / 32) : NULL;
    bool plain = p->alpha == 1 && p->beta == 0 && !p->bias && c_column == 1;

    (void)thread;
    p->kernels->dot[p->b.dtype]((int)p->m, p->k, x, p->x_row, x_sums, w, row_bytes, count, plain ? c : sums,
                                plain ? c_row : DOT_ROWS_AT_ONCE);
    if (plain) return;
    for (int64_t i = 0; i < p->m; i++)
        for (int64_t j = 0; j < count; j++) {
            float *to = c + i * c_row + j * c_column, value = p->alpha * sums[i * DOT_ROWS_AT_ONCE + j];
            if (p->beta != 0) value += p->beta * *to;
            if (p->bias) value += p->bias[(from + j) * p->bias_stride];
            *to = value;
        }
}

static fv_status sum_groups(fv_ctx *ctx, struct product *p)
{
    int64_t groups = p->k / 32;
    float *sums;

    FV_TRY(FV_SCRATCH(ctx, sums, p->products * p->m * groups));
    for (int64_t r = 0; r < p->products * p->m; r++)
        for (int64_t g = 0; g < groups; g++)
            sums[r * groups + g] = p->kernels->sum(32, p->x + r / p->m * p->x_product + r % p->m * p->x_row + g * 32);
    p->x_sums = sums;
    return FV_OK;
}

static fv_status few_rows(fv_ctx *ctx, struct product *p)
{
    int64_t row_bytes = p->k / fv_dtype_block(p->b.dtype) * (int64_t)fv_dtype_block_bytes(p->b.dtype);

    if (p->a.dtype == FV_F32 && stride(&p->a, 1) == 1 && p->lead == 0) {
        p->x = p->a.data;
        p->x_row = stride(&p->a, 2);
    } else {
        float *x;
        FV_TRY(FV_SCRATCH(ctx, x, p->products * p->m * p->k));
        for (int64_t r = 0; r < p->products * p->m; r++)
            load_strided(p, &p->a, matrix_offset(p, &p->a, r / p->m) + r % p->m * stride(&p->a, 2), stride(&p->a, 1),
                         x + r * p->k, p->k);
        p->x = x;
        p->x_row = p->k;
        p->x_product = p->m * p->k;
    }
    if (fv_dtype_block(p->b.dtype) > 1) FV_TRY(sum_groups(ctx, p));
    p->chunk = fv_clamp((320 << 10) / fv_max(row_bytes, 1), 8, DOT_ROWS_AT_ONCE) & ~1;
    p->chunks = fv_ceil_div(p->n, p->chunk);
    fv_cpu_run(ctx, p->products * p->chunks, 2.0 * (double)(p->products * p->m * p->n) * (double)p->k, dot_item, p);
    return FV_OK;
}

/* ---- many rows ------------------------------------------------------------------------------------------------- */

/* `rows` rows of `count` floats at `in`, as bf16 pairs in place; an odd end is paired with 0. */
static void to_pairs(const struct product *p, float *in, int64_t in_row, int rows, int64_t count)
{
    for (int r = 0; r < rows; r++) {
        float *row = in + r * in_row;
        if (count & 1) row[count] = 0;
        p->kernels->to_bf16(row, count + (count & 1), (uint16_t *)row);
    }
}

/* Rows of t, `row` elements apart, that already are pairs of bf16; NULL if they are not. */
static const float *pairs_in_place(const struct product *p, const fv_tensor *t, int64_t offset, int64_t row,
                                   int64_t step)
{
    const void *at = address(t, offset);

    if (!p->pairs || t->dtype != FV_BF16 || step != 1 || p->k % 2 || row % 2 || (uintptr_t)at % sizeof(float))
        return NULL;
    return at;
}

/* Packs a panel of up to tile_rows rows of a. */
static void pack_item(void *user, int64_t index, int thread)
{
    const struct product *p = user;
    const struct fv_kernels *kernels = p->kernels;
    int64_t product = p->slab_product + index / p->panels, panel = index % p->panels;
    int64_t row = p->slab_row + panel * kernels->tile_rows;
    int rows = (int)fv_min(kernels->tile_rows, p->slab_row + p->slab_rows - row);
    int64_t a_row = stride(&p->a, 2), a_step = stride(&p->a, 1);
    int64_t offset = matrix_offset(p, &p->a, product) + row * a_row;
    float *out = p->packed_a + index * p->panel_floats, *buffer = p->scratch + thread * p->scratch_floats;
    bool as_is = p->a.dtype == FV_F32 && !p->pairs && p->alpha == 1;
    const float *paired = p->alpha == 1 ? pairs_in_place(p, &p->a, offset, a_row, a_step) : NULL;

    if (paired) {
        kernels->transpose(paired, a_row / 2, rows, p->units, out, rows);
        return;
    }

    if (as_is && a_step == 1) {
        kernels->transpose((const float *)p->a.data + offset, a_row, rows, p->k, out, rows);
        return;
    }
    if (as_is && a_row == 1) {
        for (int64_t q = 0; q < p->k; q++)
            memcpy(out + q * rows, (const float *)p->a.data + offset + q * a_step, (size_t)rows * sizeof *out);
        return;
    }
    for (int64_t q = 0; q < p->k; q += DEPTH) {
        int64_t count = fv_min(DEPTH, p->k - q);
        for (int r = 0; r < rows; r++) {
            load_strided(p, &p->a, offset + r * a_row + q * a_step, a_step, buffer + r * ROW, count);
            if (p->alpha != 1)
                for (int64_t i = 0; i < count; i++)
                    buffer[r * ROW + i] *= p->alpha;
        }
        if (p->pairs) to_pairs(p, buffer, ROW, rows, count);
        kernels->transpose(buffer, ROW, rows, p->pairs ? fv_ceil_div(count, 2) : count,
                           out + (p->pairs ? q / 2 : q) * rows, rows);
    }
}

/* Row i of b, `columns` elements, spread over panels; what is missing at the right becomes 0. */
static void spread_row(const struct product *p, const float *row, int64_t columns, float *out)
{
    int64_t width = p->kernels->tile_columns;

    for (int64_t j = 0; j < columns; j += width, out += width * DEPTH) {
        int64_t some = fv_min(width, columns - j);
        memcpy(out, row + j, (size_t)some * sizeof *out);
        memset(out + some, 0, (size_t)(width - some) * sizeof *out);
    }
}

/* Rows of b whose columns lie together: whole rows at a time, so that each page is met once. */
static void pack_rows(const struct product *p, int64_t b_offset, int64_t count, int64_t columns, float *out,
                      float *buffer)
{
    int64_t width = p->kernels->tile_columns, step = stride(&p->b, 2);
    float *next = buffer + BLOCK_COLUMNS;

    if (!p->pairs) {
        for (int64_t i = 0; i < count; i++) {
            const float *row = p->b.dtype == FV_F32 ? address(&p->b, b_offset + i * step) : buffer;
            for (int64_t c = 0; row != buffer && c < columns; c += 16) /* rows lie on pages of their own */
                __builtin_prefetch(row + 4 * step + c);
            if (row == buffer) load_strided(p, &p->b, b_offset + i * step, 1, buffer, columns);
            spread_row(p, row, columns, out + i * width);
        }
        return;
    }
    memset(buffer, 0, 2 * BLOCK_COLUMNS * sizeof *buffer);
    for (int64_t i = 0; i < count; i += 2) { /* rows 2i and 2i + 1 are joined column by column */
        int64_t whole = fv_round_up(columns, width);
        load_strided(p, &p->b, b_offset + i * step, 1, buffer, columns);
        if (i + 1 < count)
            load_strided(p, &p->b, b_offset + (i + 1) * step, 1, next, columns);
        else
            memset(next, 0, BLOCK_COLUMNS * sizeof *next);
        p->kernels->pack_pairs(whole, buffer, next, buffer);
        spread_row(p, buffer, whole, out + i / 2 * width);
    }
}

/* Packs rows [q, q + count) of b for one panel of columns; what is missing at the right becomes 0. */
static void pack_columns(const struct product *p, int64_t b_offset, int64_t count, int columns, float *out,
                         float *buffer)
{
    const struct fv_kernels *kernels = p->kernels;
    int64_t step = stride(&p->b, 2), column = stride(&p->b, 1);
    int width = kernels->tile_columns;
    const float *paired = pairs_in_place(p, &p->b, b_offset, column, step);

    for (int j = 0; j < width; j += kernels->width) {
        int rows = (int)fv_clamp(columns - j, 0, kernels->width);
        if (p->b.dtype == FV_F32 && step == 1 && !p->pairs && rows > 0) {
            kernels->transpose((const float *)p->b.data + b_offset + j * column, column, rows, count, out + j, width);
            continue;
        }
        if (paired && rows > 0) {
            kernels->transpose(paired + j * column / 2, column / 2, rows, count / 2, out + j, width);
            continue;
        }
        for (int r = 0; r < rows; r++)
            load_strided(p, &p->b, b_offset + (j + r) * column, step, buffer + r * ROW, count);
        if (p->pairs) to_pairs(p, buffer, ROW, rows, count);
        kernels->transpose(buffer, ROW, rows, p->pairs ? fv_ceil_div(count, 2) : count, out + j, width);
    }
}

/* Packs rows [q, q + count) of some columns of b into panels. */
static void pack_block(const struct product *p, int64_t b_offset, int64_t q, int64_t count, int64_t columns, float *out,
                       float *buffer)
{
    int64_t step = stride(&p->b, 2), column = stride(&p->b, 1), width = p->kernels->tile_columns;

    b_offset += q * step;
    if (column == 1 && step != 1) {
        pack_rows(p, b_offset, count, columns, out, buffer);
        return;
    }
    for (int64_t j = 0; j < columns; j += width)
        pack_columns(p, b_offset + j * column, count, (int)fv_min(width, columns - j), out + j * DEPTH, buffer);
}

/* c = beta c + bias for some columns of a matrix, before products are added. */
static void prepare(const struct product *p, float *c, int64_t from, int64_t columns)
{
    int64_t c_row = stride(&p->c, 2), c_column = stride(&p->c, 1);

    for (int64_t i = 0; i < p->slab_rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            float *to = c + i * c_row + j * c_column, value = p->beta != 0 ? p->beta * *to : 0;
            *to = p->bias ? value + p->bias[(from + j) * p->bias_stride] : value;
        }
}

/* One tile; what does not fill it, or lies in strided columns, goes by way of `edge`. */
static void tile(const struct product *p, fv_tile_fn *kernel, int rows, int64_t k, const float *a, const float *b,
                 float *c, int columns, bool add)
{
    int width = p->kernels->tile_columns;
    int64_t c_row = stride(&p->c, 2), c_column = stride(&p->c, 1);
    float edge[FV_MAX_TILE_ROWS * FV_MAX_TILE_COLUMNS];

    if (columns == width && c_column == 1) {
        for (int i = 0; i < rows; i++) /* needed when the sums are ready */
            for (int j = 0; j < width; j += 16)
                __builtin_prefetch(c + i * c_row + j, 1);
        kernel(rows, k, a, 1, rows, b, width, c, c_row, add);
        return;
    }
    kernel(rows, k, a, 1, rows, b, width, edge, width, false);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < columns; j++) {
            float *to = c + i * c_row + j * c_column;
            *to = add ? *to + edge[i * width + j] : edge[i * width + j];
        }
}

static void block_item(void *user, int64_t index, int thread)
{
    const struct product *p = user;
    const struct fv_kernels *kernels = p->kernels;
    fv_tile_fn *kernel = p->pairs ? kernels->tile_bf16 : kernels->tile;
    int64_t product = index / p->blocks, from = index % p->blocks * p->block_columns;
    int64_t columns = fv_min(p->block_columns, p->n - from), width = kernels->tile_columns;
    int64_t b_offset = matrix_offset(p, &p->b, p->slab_product + product) + from * stride(&p->b, 1);
    float *c = (float *)p->c.data + matrix_offset(p, &p->c, p->slab_product + product) +
               p->slab_row * stride(&p->c, 2) + from * stride(&p->c, 1);
    float *packed_b = p->scratch + thread * p->scratch_floats, *buffer = packed_b + p->block_columns * DEPTH;
    const float *packed_a = p->packed_a + product * p->panels * p->panel_floats;
    bool add = p->beta != 0 || p->bias || p->k == 0;

    if (add) prepare(p, c, from, columns);
    for (int64_t q = 0; q < p->k; q += p->depth, add = true) {
        int64_t count = fv_min(p->depth, p->k - q), units = p->pairs ? fv_ceil_div(count, 2) : count;
        pack_block(p, b_offset, q, count, columns, packed_b, buffer);
        for (int64_t panel = 0; panel < p->panels; panel++) {
            int64_t row = panel * kernels->tile_rows;
            int rows = (int)fv_min(kernels->tile_rows, p->slab_rows - row);
            const float *a = packed_a + panel * p->panel_floats + (p->pairs ? q / 2 : q) * rows;
            for (int64_t j = 0; j < columns; j += width) {
                fv_kernels_ahead(a + p->panel_floats, units * rows, j / width, fv_ceil_div(columns, width));
                tile(p, kernel, rows, units, a, packed_b + j * DEPTH, c + row * stride(&p->c, 2) + j * stride(&p->c, 1),
                     (int)fv_min(width, columns - j), add);
            }
        }
    }
}

static void run_slab(fv_ctx *ctx, struct product *p)
{
    double work = (double)(p->slab_products * p->slab_rows) * (double)p->k;

    p->panels = fv_ceil_div(p->slab_rows, p->kernels->tile_rows);
    fv_cpu_run(ctx, p->slab_products * p->panels, 2 * work, pack_item, p);
    fv_cpu_run(ctx, p->slab_products * p->blocks, 2 * work * (double)p->n, block_item, p);
}

static fv_status many_rows(fv_ctx *ctx, struct product *p)
{
    const struct fv_kernels *kernels = p->kernels;
    int64_t width = kernels->tile_columns, share = fv_ceil_div(p->n * p->products, 4 * fv_ctx_threads(ctx));
    int64_t slab_rows, slab_products;

    p->units = p->pairs ? fv_ceil_div(p->k, 2) : p->k;
    p->depth = p->pairs ? 2 * DEPTH : DEPTH;
    p->panel_floats = fv_round_up(p->units * kernels->tile_rows, 16) + PANEL_SPARE;
    p->block_columns = fv_clamp(fv_round_up(share, width), width, BLOCK_COLUMNS);
    p->blocks = fv_ceil_div(p->n, p->block_columns);
    p->scratch_floats = p->block_columns * DEPTH + fv_max(kernels->tile_rows, kernels->width) * ROW + 64;
    slab_rows = fv_min(p->m, fv_max(SLAB_FLOATS / fv_max(p->units, 1) / kernels->tile_rows, 1) * kernels->tile_rows);
    slab_products = slab_rows < p->m ? 1 : fv_clamp(SLAB_FLOATS / fv_max(p->m * p->units, 1), 1, p->products);
    FV_TRY(FV_SCRATCH(ctx, p->packed_a, slab_products * fv_ceil_div(slab_rows, kernels->tile_rows) * p->panel_floats));
    FV_TRY(FV_SCRATCH(ctx, p->scratch, fv_ctx_threads(ctx) * p->scratch_floats));
    for (int64_t product = 0; product < p->products; product += slab_products)
        for (int64_t row = 0; row < p->m; row += slab_rows) {
            FV_TRY(fv_ctx_check(ctx));
            p->slab_product = product;
            p->slab_products = fv_min(slab_products, p->products - product);
            p->slab_row = row;
            p->slab_rows = fv_min(slab_rows, p->m - row);
            run_slab(ctx, p);
        }
    return FV_OK;
}

/* Whether operands may be rounded to bf16: where b is stored in no more than 16 bits its own error is larger (and a
 * model's distance from f32 stays below 2e-3 by far), unless the caller wants f32 throughout. */
static bool takes_pairs(const fv_ctx *ctx, const struct product *p)
{
    if (!p->kernels->tile_bf16 || ctx->precision == FV_PRECISION_F32) return false;
    return ctx->precision == FV_PRECISION_BF16 || fv_dtype_block(p->b.dtype) > 1 || p->b.dtype == FV_BF16;
}

fv_status fv_cpu_gemm(fv_ctx *ctx, const fv_gemm_args *args)
{
    const fv_tensor *c = &args->c;
    struct product p = {.kernels = fv_kernels_of(ctx), .a = args->a, .b = args->b, .c = *c};
    fv_mark mark = fv_arena_mark(ctx->arena); /* nothing of this call outlives it, tape or not */
    fv_status status;

    if (args->bias.data && args->bias.dtype != FV_F32) return fv_backend_ref.gemm(ctx, args);
    p.lead = c->rank - 2;
    p.products = 1;
    for (int d = 0; d < p.lead; d++)
        p.products *= c->dims[d];
    p.m = c->dims[c->rank - 2];
    p.n = c->dims[c->rank - 1];
    p.k = args->a.dims[args->a.rank - 1];
    p.alpha = args->alpha != 0 ? args->alpha : 1;
    p.beta = args->beta;
    p.bias = args->bias.data;
    p.bias_stride = p.bias ? args->bias.strides[0] : 0;
    if (p.products * p.m * p.n == 0) return FV_OK;
    if (p.m <= FV_DOT_ROWS && ctx->batching != FV_BATCH_PROMPT && stride(&p.b, 2) == 1 && p.kernels->dot[p.b.dtype])
        status = few_rows(ctx, &p);
    else {
        p.pairs = takes_pairs(ctx, &p);
        status = many_rows(ctx, &p);
    }
    fv_arena_release(ctx->arena, mark);
    return status;
}
