#include "ops/cpu/panels.h"
#include "ops/cpu/weights_kernels.h"

enum { EMPTY, BUSY, FULL, FULL_NOT_FINITE };

void fv_panels_open(const struct fv_kernels *kernels, const fv_tensor *k, const fv_tensor *v, bool pairs,
                    fv_panel_store *store)
{
    int64_t D = k->dims[3];

    *store = (fv_panel_store){.kernels = kernels, .k = *k, .pairs = pairs};
    store->depth = pairs ? fv_ceil_div(D, 2) : D;
    store->key_floats = store->depth * FV_KEY_TILE;
    store->blocks = fv_ceil_div(k->dims[2], FV_KEY_TILE);
    if (!v) return;
    store->v = *v;
    store->width = fv_round_up(v->dims[3], kernels->tile_columns);
    store->value_floats = store->width * (pairs ? FV_KEY_TILE / 2 : FV_KEY_TILE);
}

fv_status fv_panels_hold(fv_ctx *ctx, fv_panel_store *store, int64_t slots)
{
    FV_TRY(FV_SCRATCH(ctx, store->slot, store->k.dims[0] * store->k.dims[1]));
    FV_TRY(FV_SCRATCH(ctx, store->memory,
                      slots * store->blocks * (store->key_floats + store->value_floats) + FV_MAX_TILE_COLUMNS));
    FV_TRY(FV_SCRATCH(ctx, store->state, slots * store->blocks));
    store->slots = slots;
    fv_panels_clear(store);
    return FV_OK;
}

void fv_panels_clear(fv_panel_store *store)
{
    for (int64_t n = 0; n < store->slots * store->blocks; n++)
        atomic_init(&store->state[n], EMPTY);
    for (int64_t n = 0; n < store->k.dims[0] * store->k.dims[1]; n++)
        store->slot[n] = -1;
}

const char *fv_panels_row(const fv_tensor *t, int64_t b, int64_t h, int64_t n)
{
    int64_t offset = b * t->strides[0] + h * t->strides[1] + n * t->strides[2];

    return (const char *)t->data + offset / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype);
}

/* Floats between staged rows: whole vectors of pairs. */
static int64_t staged_row(int64_t columns)
{
    return fv_round_up(columns, FV_MAX_TILE_COLUMNS);
}

int64_t fv_panels_staging(const fv_panel_store *store)
{
    return FV_KEY_TILE * staged_row(fv_max(store->k.dims[3], store->width));
}

/* Row n as floats: in place where nothing has to be converted or padded to `padded`. */
static const float *row_of(const fv_panel_store *store, const fv_tensor *t, int64_t b, int64_t h, int64_t n,
                           int64_t padded, float *staging)
{
    const char *row = fv_panels_row(t, b, h, n);
    int64_t columns = t->dims[3];

    if (t->dtype == FV_F32 && columns == padded) return (const float *)row;
    fv_kernels_load(store->kernels, t->dtype, row, 0, columns, staging);
    memset(staging + columns, 0, (size_t)(padded - columns) * sizeof *staging);
    return staging;
}

static void fill_keys(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count, float *staging,
                      float *keys)
{
    const struct fv_kernels *kernels = store->kernels;
    const fv_tensor *k = &store->k;
    int64_t D = k->dims[3], step = staged_row(D), columns = kernels->tile_columns, in_row = step;
    bool in_place = !store->pairs && k->dtype == FV_F32 && (count == 0 || key[count - 1] - key[0] == count - 1);

    if (in_place) in_row = k->strides[2];
    for (int n = 0; n < count && !in_place; n++) {
        float *to = staging + n * step;
        int64_t padded = store->pairs ? fv_round_up(D, 2 * kernels->width) : D;
        if (store->pairs && k->dtype == FV_BF16) { /* pairs already */
            memset(to + D / 2, 0, sizeof *to);
            memcpy(to, fv_panels_row(k, b, h, key[n]), (size_t)D * 2);
            continue;
        }
        const float *row = row_of(store, k, b, h, key[n], padded, to);
        if (store->pairs)
            kernels->join_pairs(padded, row, to);
        else if (row != to)
            memcpy(to, row, (size_t)D * sizeof *to);
    }
    const float *in = in_place && count > 0 ? (const float *)fv_panels_row(k, b, h, key[0]) : staging;
    for (int n = 0; n < fv_round_up(count, columns); n += kernels->width)
        kernels->transpose(in + n * in_row, in_row, (int)fv_clamp(count - n, 0, kernels->width), store->depth,
                           keys + n / columns * columns * store->depth + n % columns, columns);
}

static bool fill_values(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count,
                        float *staging, float *values)
{
    const struct fv_kernels *kernels = store->kernels;
    int64_t step = staged_row(store->width), columns = kernels->tile_columns, lines = store->pairs ? 2 : 1;
    bool finite = true;

    for (int n = 0; n < count; n += (int)lines) {
        const float *row[2];
        for (int side = 0; side < lines; side++) {
            row[side] = staging + side * step;
            if (n + side < count) {
                row[side] = row_of(store, &store->v, b, h, key[n + side], store->width, staging + side * step);
                finite = finite && !kernels->weights->spoiled(1, store->width, row[side], 0);
            } else {
                memset(staging + side * step, 0, (size_t)store->width * sizeof *staging);
            }
        }
        for (int64_t c = 0; c < store->width; c += columns) {
            float *to = values + c * (FV_KEY_TILE / lines) + n / lines * columns;
            if (store->pairs)
                kernels->pack_pairs(columns, row[0] + c, row[1] + c, to);
            else
                memcpy(to, row[0] + c, (size_t)columns * sizeof *to);
        }
    }
    return finite;
}

bool fv_panels_fill(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count, float *staging,
                    float *keys, float *values)
{
    fill_keys(store, b, h, key, count, staging, keys);
    return !values || fill_values(store, b, h, key, count, staging, values);
}

/* Fills block number `at` of all that are held, unless another thread has begun to; its state then. */
static unsigned char fill_block(const fv_panel_store *store, int64_t b, int64_t h, int64_t at, float *staging)
{
    unsigned char state = EMPTY;
    float *keys = store->memory + at * (store->key_floats + store->value_floats);
    int64_t key[FV_KEY_TILE], from = at % store->blocks * FV_KEY_TILE;
    int count = (int)fv_min(FV_KEY_TILE, store->k.dims[2] - from);

    if (!atomic_compare_exchange_strong_explicit(&store->state[at], &state, BUSY, memory_order_acquire,
                                                 memory_order_acquire))
        return state;
    for (int n = 0; n < count; n++)
        key[n] = from + n;
    state = fv_panels_fill(store, b, h, key, count, staging, keys, store->v.data ? keys + store->key_floats : NULL)
                ? FULL
                : FULL_NOT_FINITE;
    atomic_store_explicit(&store->state[at], state, memory_order_release);
    return state;
}

fv_panels fv_panels_block(const fv_panel_store *store, int64_t b, int64_t h, int64_t block, float *staging)
{
    int64_t at = store->slot[b * store->k.dims[1] + h] * store->blocks + block;
    float *keys = store->memory + at * (store->key_floats + store->value_floats);
    unsigned char state = fill_block(store, b, h, at, staging);

    /* threads that walk side by side: the other one is at work on this block, so here is time for the next */
    if (state == BUSY && block + 1 < store->blocks) fill_block(store, b, h, at + 1, staging);
    while (state == BUSY)
        state = atomic_load_explicit(&store->state[at], memory_order_acquire);
    return (fv_panels){keys, keys + store->key_floats, state == FULL};
}

void fv_panels_copy(const fv_panel_store *store, const fv_panels *block, int from, int count, int at, float *keys,
                    float *values)
{
    int columns = store->kernels->tile_columns, lines = store->pairs ? 2 : 1;

    for (int n = 0, length; n < count; n += length) {
        int source = from + n, target = at + n;
        length = (int)fv_min(count - n, columns - fv_max(source % columns, target % columns));
        store->kernels->copy_columns(store->depth, length, columns,
                                     block->keys + source / columns * columns * store->depth + source % columns,
                                     keys + target / columns * columns * store->depth + target % columns);
    }
    for (int64_t c = 0; c < store->width; c += columns) {
        int64_t panel = c * (FV_KEY_TILE / lines);
        memcpy(values + panel + at / lines * columns, block->values + panel + from / lines * columns,
               (size_t)(fv_ceil_div(count, lines) * columns) * sizeof *values);
    }
}
