#include "ops/cpu/panels.h"

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

void fv_panels_follow(fv_panel_store *store, const fv_plan_view *view)
{
    store->strips = view;
    store->blocks = view->strip_first[view->strips];
}

fv_status fv_panels_hold(fv_ctx *ctx, fv_panel_store *store, int64_t slots)
{
    FV_TRY(FV_SCRATCH(ctx, store->slot, store->k.dims[0] * store->k.dims[1]));
    FV_TRY(FV_SCRATCH(ctx, store->memory,
                      slots * store->blocks * (store->key_floats + store->value_floats) + FV_MAX_TILE_COLUMNS));
    FV_TRY(FV_SCRATCH(ctx, store->state, slots * store->blocks));
    store->slots = slots;
    store->beside = fv_ctx_threads(ctx);
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

/* Where the rows of a head lie. */
struct rows {
    const char *first;
    int64_t bytes; /* from one to the next */
};

static struct rows rows_of(const fv_tensor *t, int64_t b, int64_t h)
{
    return (struct rows){fv_panels_row(t, b, h, 0),
                         t->strides[2] / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype)};
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

/* A row as floats: in place where nothing has to be converted or padded to `padded`. */
static const float *row_of(const fv_panel_store *store, const fv_tensor *t, const char *row, int64_t padded,
                           float *staging)
{
    int64_t columns = t->dims[3];

    if (t->dtype == FV_F32 && columns == padded) return (const float *)(const void *)row;
    fv_kernels_load(store->kernels, t->dtype, row, 0, columns, staging);
    memset(staging + columns, 0, (size_t)(padded - columns) * sizeof *staging);
    return staging;
}

/* Whether rows of t are, as they lie, rows of floats or of pairs. */
static bool lies_ready(const fv_tensor *t, bool pairs)
{
    if (!pairs) return t->dtype == FV_F32;
    return t->dtype == FV_BF16 && t->dims[3] % 2 == 0 && t->strides[0] % 2 == 0 && t->strides[1] % 2 == 0 &&
           t->strides[2] % 2 == 0 && (uintptr_t)t->data % sizeof(float) == 0;
}

/* A row of keys brought to floats or pairs. */
static const float *stage_key(const fv_panel_store *store, const char *from, float *to)
{
    const struct fv_kernels *kernels = store->kernels;
    const fv_tensor *k = &store->k;
    int64_t D = k->dims[3], padded = store->pairs ? fv_round_up(D, 2 * kernels->width) : D;

    if (k->dtype == FV_BF16 && store->pairs) { /* pairs already */
        memset(to + D / 2, 0, sizeof *to);
        memcpy(to, from, (size_t)D * 2);
        return to;
    }
    const float *row = row_of(store, k, from, padded, to);
    if (!store->pairs) return row;
    kernels->join_pairs(padded, row, to);
    return to;
}

/* Keys are transposed a vector's width of rows at a time, from where they lie if they are floats or pairs there. */
static void fill_keys(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count, float *staging,
                      float *keys)
{
    const struct fv_kernels *kernels = store->kernels;
    const fv_tensor *k = &store->k;
    struct rows rows = rows_of(k, b, h);
    int64_t step = staged_row(k->dims[3]), columns = kernels->tile_columns;
    bool ready = lies_ready(k, store->pairs);

    for (int n = 0; n < fv_round_up(count, columns); n += kernels->width) {
        const float *row[FV_MAX_TILE_COLUMNS] = {NULL};
        int found = (int)fv_clamp(count - n, 0, kernels->width);
        for (int r = 0; r < found; r++) {
            const char *at = rows.first + key[n + r] * rows.bytes;
            row[r] = ready ? (const float *)(const void *)at : stage_key(store, at, staging + r * step);
        }
        kernels->transpose_rows(row, found, store->depth, keys + n / columns * columns * store->depth + n % columns,
                                columns);
    }
}

/* The exponent of both halves is carried into the bit above it where it is all ones. */
static bool finite_pairs(int64_t n, const uint32_t *pair)
{
    uint32_t bad = 0;

    for (int64_t i = 0; i < n; i++)
        bad |= (pair[i] & 0x7f807f80u) + 0x00800080u;
    return !(bad & 0x80008000u);
}

static bool fill_values(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count,
                        float *staging, float *values)
{
    const struct fv_kernels *kernels = store->kernels;
    const fv_tensor *v = &store->v;
    struct rows rows = rows_of(v, b, h);
    int64_t step = staged_row(store->width), columns = kernels->tile_columns, panel = FV_KEY_TILE * columns;
    bool as_stored = store->pairs && v->dtype == FV_BF16 && v->dims[3] == store->width, finite = true;
    const void *row[FV_KEY_TILE];

    for (int n = 0; n < count; n++) {
        const char *at = rows.first + key[n] * rows.bytes;
        row[n] = as_stored ? (const void *)at : row_of(store, v, at, store->width, staging + n * step);
    }
    if (!store->pairs) return kernels->panel_rows(count, store->width, row, panel, values);
    if (as_stored) return kernels->panel_pairs(count, store->width, row, panel / 2, values);
    for (int n = 0; n < count; n += 2) {
        const float *even = row[n], *odd = n + 1 < count ? row[n + 1] : staging + (n + 1) * step;
        float *to = values + n / 2 * columns;
        if (n + 1 == count) memset(staging + (n + 1) * step, 0, (size_t)store->width * sizeof *staging);
        for (int64_t c = 0; c < store->width; c += columns, to += panel / 2) {
            kernels->pack_pairs(columns, even + c, odd + c, to);
            finite = finite_pairs(columns, (const uint32_t *)(const void *)to) && finite;
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

void fv_panels_ask(const fv_panel_store *store, int64_t b, int64_t h, const int64_t *key, int count)
{
    for (int side = 0; side < (store->v.data ? 2 : 1); side++) {
        const fv_tensor *t = side ? &store->v : &store->k;
        struct rows rows = rows_of(t, b, h);
        int64_t bytes = t->dims[3] / fv_dtype_block(t->dtype) * (int64_t)fv_dtype_block_bytes(t->dtype);
        for (int n = 0; n < count; n++)
            for (int64_t i = 0; i < bytes; i += 64)
                __builtin_prefetch(rows.first + key[n] * rows.bytes + i, 0, 2); /* into the second level */
    }
}

/* The keys of a block; how many. */
static int keys_of(const fv_panel_store *store, int64_t block, int64_t key[FV_KEY_TILE])
{
    int64_t from = block * FV_KEY_TILE;
    int count = (int)fv_min(FV_KEY_TILE, store->k.dims[2] - from);

    if (store->strips) return fv_plan_strip_keys(store->strips, block, key);
    for (int n = 0; n < count; n++)
        key[n] = from + n;
    return count;
}

/* The block that the thread is likely to fill after number `at` of all that are held; -1: none is known.  Tiles of
 * queries go down: where the blocks behind are there, the next tile's is before this one, and others work beside. */
static int64_t next_block(const fv_panel_store *store, int64_t at)
{
    int64_t block = at % store->blocks, down = block - store->beside;

    if (block + 1 < store->blocks &&
        (store->strips || atomic_load_explicit(&store->state[at + 1], memory_order_relaxed) == EMPTY))
        return block + 1;
    return store->strips || down < 0 ? -1 : down;
}

/* Fills block number `at` of all that are held, unless another thread has begun to; its state then. */
static unsigned char fill_block(const fv_panel_store *store, int64_t b, int64_t h, int64_t at, float *staging)
{
    unsigned char state;
    float *keys = store->memory + at * (store->key_floats + store->value_floats), *values = keys + store->key_floats;
    int64_t key[FV_KEY_TILE], block = at % store->blocks;
    int count;

    /* most are full: exchanges would take the line from one core to the other */
    state = atomic_load_explicit(&store->state[at], memory_order_acquire);
    if (state != EMPTY) return state;
    if (!atomic_compare_exchange_strong_explicit(&store->state[at], &state, BUSY, memory_order_acquire,
                                                 memory_order_acquire))
        return state;
    count = keys_of(store, block, key);
    state =
        fv_panels_fill(store, b, h, key, count, staging, keys, store->v.data ? values : NULL) ? FULL : FULL_NOT_FINITE;
    atomic_store_explicit(&store->state[at], state, memory_order_release);
    block = next_block(store, at);
    if (block >= 0) fv_panels_ask(store, b, h, key, keys_of(store, block, key));
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
