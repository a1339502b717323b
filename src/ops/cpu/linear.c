/* Products of the same rows with packed weights.
 *
 * Few rows: rows become 16-bit integers, and each item multiplies some groups of 16 rows of weights: bound by the bytes
 * of the weights (71 to 87 % of a reading speed of 96 GB/s; q2_K and q3_K 60 %, by their instructions).  Many rows:
 * rows are packed once into panels of tile_rows; an item unpacks some columns of a weight into panels of tile_columns,
 * all of k, and runs the micro-kernel over all panels of x: bound by flops (86 to 96 % of the dot peak at 512 rows).  A
 * weight is unpacked once for at most SLAB_ROWS rows.
 *
 * An element's sum does not depend on the number of threads, nor on how many rows a call has on either side of
 * FV_FEW_LINEAR. */
#include "ops/cpu/cpu.h"
#include "ops/cpu/kernels.h"

enum {
    AHEAD = 4096,            /* bytes of an item's beginning that are asked for at once */
    SLAB_ROWS = 1024,        /* of x at a time */
    ITEM_BYTES = 192 << 10,  /* of weights at most, few rows; as many items for each thread */
    PANEL_BYTES = 384 << 10, /* of an item's unpacked columns: a share of the second-level cache */
    MOST_COLUMNS = 128,
};

struct linear {
    const fv_linear_args *args;
    const struct fv_kernels *kernels;
    int64_t m, k;
    int products;                      /* parts that give a result: 1 with a gate */
    int64_t chunk[FV_LINEAR_PARTS];    /* groups in an item */
    int64_t item_end[FV_LINEAR_PARTS]; /* items of this part and those before it */
    struct fv_activations x;           /* few rows */
    /* many rows */
    bool pairs;
    int64_t columns; /* of an item */
    int64_t units;   /* of k in a packed row: floats, or pairs of bf16 */
    int64_t slab_row, slab_rows, panels, panel_floats;
    float *packed_x, *scratch;
    int64_t scratch_floats; /* per thread */
};

/* The part of an item, and its first group. */
static int part_of(const struct linear *l, int64_t item, int64_t *group, int64_t *groups)
{
    int n = 0;

    while (item >= l->item_end[n])
        n++;
    *group = (item - (n ? l->item_end[n - 1] : 0)) * l->chunk[n];
    *groups = fv_min(l->chunk[n], fv_packed_groups(l->args->part[n].packed) - *group);
    return n;
}

static void add_bias(const fv_tensor *bias, int64_t from, int64_t rows, int64_t columns, float *c, int64_t c_row)
{
    const float *b = (const float *)bias->data;

    if (!b) return;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            c[i * c_row + j] += b[(from + j) * bias->strides[0]];
}

/* Results [rows, columns] of part n (and of its partner) go out. */
static void put(const struct linear *l, int n, int64_t row, int64_t rows, int64_t from, int64_t columns, float *c,
                float *partner, int64_t c_row)
{
    const fv_linear_part *p = &l->args->part[n];
    const fv_map gate = l->args->gate; /* with its product */

    add_bias(&p->bias, from, rows, columns, c, c_row);
    if (gate) add_bias(&l->args->part[1].bias, from, rows, columns, partner, c_row);
    for (int64_t i = 0; i < rows; i++) {
        float *out = (float *)p->out.data + (row + i) * p->out.strides[0] + from, *x = c + i * c_row;
        if (gate) l->kernels->map(gate, columns, x, partner + i * c_row, 1, 1, 0, x);
        if (p->add)
            l->kernels->map(FV_MAP_ADD, columns, out, x, 1, 1, 0, out);
        else
            memcpy(out, x, (size_t)columns * sizeof *out);
    }
}

/* ---- few rows ---------------------------------------------------------------------------------------------------- */

static void ask(const fv_packed *w, int64_t group)
{
    for (int64_t byte = 0; byte < AHEAD; byte += 64) /* the kernel asks for what lies further on */
        __builtin_prefetch(w->data + group * w->group_bytes + byte);
}

static void few_item(void *user, int64_t item, int thread)
{
    const struct linear *l = user;
    enum { AT_ONCE = 8 }; /* groups */
    float c[2][FV_DOT_ROWS * AT_ONCE * FV_PACK_ROWS];
    int64_t group, groups, row_floats = AT_ONCE * FV_PACK_ROWS;
    int n = part_of(l, item, &group, &groups);
    const fv_packed *w = l->args->part[n].packed, *up = l->args->gate ? l->args->part[1].packed : NULL;

    (void)thread;
    ask(w, group);
    if (up) ask(up, group);
    for (int64_t g = group; g < group + groups; g += AT_ONCE) {
        int64_t count = fv_min(AT_ONCE, group + groups - g), from = g * FV_PACK_ROWS;
        int64_t columns = fv_min(count * FV_PACK_ROWS, w->rows - from);
        for (int64_t row = 0; row < l->m; row += FV_DOT_ROWS) {
            int rows = (int)fv_min(FV_DOT_ROWS, l->m - row);
            l->kernels->dot_packed[w->dtype](&l->x, row, rows, w, g, count, c[0], row_floats);
            if (up) l->kernels->dot_packed[up->dtype](&l->x, row, rows, up, g, count, c[1], row_floats);
            put(l, n, row, rows, from, columns, c[0], c[1], row_floats);
        }
    }
}

static fv_status few_rows(fv_ctx *ctx, struct linear *l)
{
    const fv_tensor *x = &l->args->x;
    int64_t parts = l->k / FV_PACK_COLUMNS, items = 0;
    double work = 0;

    l->x.columns = l->k;
    FV_TRY(FV_SCRATCH(ctx, l->x.q, l->m * l->k));
    FV_TRY(FV_SCRATCH(ctx, l->x.scale, l->m * parts));
    FV_TRY(FV_SCRATCH(ctx, l->x.sum, l->m * parts * 2));
    for (int64_t i = 0; i < l->m; i++)
        l->kernels->to_words((const float *)x->data + i * x->strides[0], l->k, l->x.q + i * l->k,
                             l->x.scale + i * parts, l->x.sum + i * parts * 2);
    for (int n = 0; n < l->products; n++) {
        const fv_packed *w = l->args->part[n].packed;
        int64_t groups = fv_packed_groups(w), pieces = fv_ceil_div(groups * w->group_bytes, ITEM_BYTES);
        l->chunk[n] = fv_max(fv_ceil_div(groups, fv_round_up(fv_max(pieces, 1), fv_ctx_threads(ctx))), 1);
        l->item_end[n] = items += fv_ceil_div(groups, l->chunk[n]);
        work += (double)(w->group_bytes * fv_packed_groups(w));
    }
    fv_cpu_run(ctx, items, 8 * work, few_item, l);
    return FV_OK;
}

/* ---- many rows --------------------------------------------------------------------------------------------------- */

static void pack_item(void *user, int64_t panel, int thread)
{
    const struct linear *l = user;
    const struct fv_kernels *kernels = l->kernels;
    const fv_tensor *x = &l->args->x;
    int64_t row = panel * kernels->tile_rows;
    int rows = (int)fv_min(kernels->tile_rows, l->slab_rows - row);
    const float *from = (const float *)x->data + (l->slab_row + row) * x->strides[0];
    float *out = l->packed_x + panel * l->panel_floats, *words = l->scratch + thread * l->scratch_floats;

    if (!l->pairs) {
        kernels->transpose(from, x->strides[0], rows, l->k, out, rows);
        return;
    }
    for (int r = 0; r < rows; r++)
        kernels->to_bf16(from + r * x->strides[0], l->k, (uint16_t *)(words + r * l->units));
    kernels->transpose(words, l->units, rows, l->units, out, rows);
}

/* Unpacks groups of part n into panels. */
static void unpack(const struct linear *l, int n, int64_t group, int64_t groups, float *out)
{
    const fv_packed *w = l->args->part[n].packed;
    int64_t width = l->kernels->tile_columns, panel = width * l->units;

    for (int64_t g = 0; g < groups; g++)
        l->kernels->unpack[w->dtype](l->pairs, w, group + g,
                                     out + g * FV_PACK_ROWS / width * panel + g * FV_PACK_ROWS % width, panel);
}

static void many_item(void *user, int64_t item, int thread)
{
    const struct linear *l = user;
    const struct fv_kernels *kernels = l->kernels;
    fv_tile_fn *tile = l->pairs ? kernels->tile_bf16 : kernels->tile;
    float edge[2][FV_MAX_TILE_ROWS * FV_MAX_TILE_COLUMNS];
    int64_t group, groups, width = kernels->tile_columns, panel_floats = width * l->units;
    int n = part_of(l, item, &group, &groups);
    const fv_linear_part *p = &l->args->part[n];
    int64_t from = group * FV_PACK_ROWS, columns = fv_min(groups * FV_PACK_ROWS, p->packed->rows - from);
    float *panels = l->scratch + thread * l->scratch_floats, *partner = panels + l->columns * l->units;
    bool gated = l->args->gate != 0, direct = !gated && !fv_present(&p->bias);

    unpack(l, n, group, groups, panels);
    if (gated) unpack(l, 1, group, groups, partner);
    for (int64_t row = 0; row < l->slab_rows; row += kernels->tile_rows) {
        int rows = (int)fv_min(kernels->tile_rows, l->slab_rows - row);
        const float *a = l->packed_x + row / kernels->tile_rows * l->panel_floats;
        for (int64_t j = 0; j < columns; j += width) {
            const float *b = panels + j / width * panel_floats;
            fv_kernels_ahead(a + l->panel_floats, l->units * rows, j / width, fv_ceil_div(columns, width));
            float *out = (float *)p->out.data + (l->slab_row + row) * p->out.strides[0] + from + j;
            if (direct && columns - j >= width) {
                tile(rows, l->units, a, 1, rows, b, width, out, p->out.strides[0], p->add);
                continue;
            }
            tile(rows, l->units, a, 1, rows, b, width, edge[0], width, false);
            if (gated)
                tile(rows, l->units, a, 1, rows, partner + j / width * panel_floats, width, edge[1], width, false);
            put(l, n, l->slab_row + row, rows, from + j, fv_min(width, columns - j), edge[0], edge[1], width);
        }
    }
}

static fv_status many_rows(fv_ctx *ctx, struct linear *l)
{
    const struct fv_kernels *kernels = l->kernels;
    int64_t threads = fv_ctx_threads(ctx), total = 0, items = 0, most;
    int64_t slab = fv_min(l->m, SLAB_ROWS / kernels->tile_rows * kernels->tile_rows);

    l->pairs = kernels->tile_bf16 != NULL;
    l->units = l->pairs ? l->k / 2 : l->k;
    l->panel_floats = fv_round_up(l->units * kernels->tile_rows + FV_MAX_TILE_COLUMNS, 16);
    for (int n = 0; n < l->products; n++)
        total += l->args->part[n].packed->rows;
    most = fv_clamp(total / (8 * threads), 32, MOST_COLUMNS) / (l->args->gate ? 2 : 1);
    l->columns = fv_max(fv_min(PANEL_BYTES / 4 / l->units, most) / 32 * 32, 32);
    for (int n = 0; n < l->products; n++) {
        l->chunk[n] = l->columns / FV_PACK_ROWS;
        l->item_end[n] = items += fv_ceil_div(fv_packed_groups(l->args->part[n].packed), l->chunk[n]);
    }
    l->scratch_floats = 2 * l->columns * l->units + FV_MAX_TILE_COLUMNS;
    FV_TRY(FV_SCRATCH(ctx, l->packed_x, fv_ceil_div(slab, kernels->tile_rows) * l->panel_floats));
    FV_TRY(FV_SCRATCH(ctx, l->scratch, threads * l->scratch_floats));
    for (l->slab_row = 0; l->slab_row < l->m; l->slab_row += slab) {
        FV_TRY(fv_ctx_check(ctx));
        l->slab_rows = fv_min(slab, l->m - l->slab_row);
        l->panels = fv_ceil_div(l->slab_rows, kernels->tile_rows);
        fv_cpu_run(ctx, l->panels, 4.0 * (double)(l->slab_rows * l->k), pack_item, l);
        fv_cpu_run(ctx, items, 2.0 * (double)(l->slab_rows * l->k) * (double)total, many_item, l);
    }
    return FV_OK;
}

fv_status fv_cpu_linear(fv_ctx *ctx, const fv_linear_args *args)
{
    fv_mark mark = fv_arena_mark(ctx->arena);
    struct linear l = {.args = args,
                       .kernels = fv_kernels_of(ctx),
                       .m = args->x.dims[0],
                       .k = args->x.dims[1],
                       .products = args->gate ? 1 : args->parts};
    bool few = ctx->batching == FV_BATCH_FREE ? l.m <= FV_FEW_LINEAR : ctx->batching == FV_BATCH_STEPS;
    fv_status status = few ? few_rows(ctx, &l) : many_rows(ctx, &l);

    fv_arena_release(ctx->arena, mark);
    return status;
}

void fv_cpu_pack(const fv_ctx *ctx, const fv_tensor *weight, const fv_packed *packed, int64_t group)
{
    fv_pack_fn *pack = fv_kernels_of(ctx)->pack[packed->dtype];
    int64_t block = fv_dtype_block(packed->dtype);
    int64_t row_bytes = weight->strides[0] / block * (int64_t)fv_dtype_block_bytes(packed->dtype);

    if (pack && packed->rows - group * FV_PACK_ROWS >= FV_PACK_ROWS)
        pack((const uint8_t *)weight->data + group * FV_PACK_ROWS * row_bytes, row_bytes, packed->columns,
             (uint8_t *)(uintptr_t)packed->data + group * packed->group_bytes);
    else
        fv_pack_group(weight, packed, group);
}
