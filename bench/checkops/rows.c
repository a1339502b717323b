/* Primitives over rows: elementwise maps, norms, rotary positions, softmax, pooling, selection, gathers, sums. */
#include "checkops.h"

#include <math.h>

struct call {
    fv_map_args map;
    fv_norm_args norm;
    fv_rope_args rope;
    fv_softmax_args softmax;
    fv_pool_args pool;
    fv_select_args select;
    fv_gather_args gather;
    fv_match_args match;
    fv_sampled_dots_args dots;
    fv_sampled_sums_args sums;
    fv_cumsum_args cumsum;
};

#define CALL(name, function)                                                                                           \
    static fv_status call_##name(fv_ctx *ctx, void *args)                                                              \
    {                                                                                                                  \
        return function(ctx, &((struct call *)args)->name);                                                            \
    }
CALL(map, fv_map_apply)
CALL(norm, fv_norm)
CALL(rope, fv_rope)
CALL(softmax, fv_softmax)
CALL(pool, fv_pool_rows)
CALL(select, fv_select)
CALL(gather, fv_gather)
CALL(match, fv_match)
CALL(dots, fv_sampled_dots)
CALL(sums, fv_sampled_sums)
CALL(cumsum, fv_cumsum)

/* What every trial here ends with: bytes in and out, `flops` for each element in. */
static fv_status finish(struct checkops *c, trial *t, struct call *call, fv_status (*function)(fv_ctx *, void *),
                        double flops, const fv_tensor *in, const fv_tensor *second)
{
    t->call = function;
    t->args = call;
    t->work.read = checkops_bytes(in) + (second ? checkops_bytes(second) : 0);
    for (int n = 0; n < t->outputs; n++)
        t->work.written += checkops_bytes(&t->output[n].tensor);
    t->work.flops = flops * (double)fv_tensor_count(in);
    return checkops_try(c, t);
}

/* Rows and columns: odd, or beyond the caches. */
static int64_t rows_of(const struct checkops *c)
{
    return c->small ? 13 : 6144;
}

static int64_t columns_of(const struct checkops *c)
{
    return c->small ? 133 : 2048;
}

/* Functions of one argument; outputs of those that compute in f32 err by some ulp. */
static const struct {
    fv_map op;
    const char *name;
    bool two; /* of x and y */
    double tolerance;
    double shift;
} maps[] = {
    {FV_MAP_COPY, "copy", false, 0, 0},
    {FV_MAP_ADD, "add", true, 0x1p-23, 0},
    {FV_MAP_SUB, "sub", true, 0x1p-23, 0},
    {FV_MAP_MUL, "mul", true, 0x1p-23, 0},
    {FV_MAP_DIV, "div", true, 0x1p-23, 3},
    {FV_MAP_MAX, "max", true, 0, 0},
    {FV_MAP_EXP, "exp", false, 0x1p-22, 0}, /* two ulp */
    {FV_MAP_LOG, "log", false, 0x1p-22, 3},
    {FV_MAP_SQRT, "sqrt", false, 0x1p-23, 3},
    {FV_MAP_TANH, "tanh", false, 0x1p-21, 0}, /* of an exp, a sum and a quotient each */
    {FV_MAP_SIGMOID, "sigmoid", false, 0x1p-21, 0},
    {FV_MAP_SILU, "silu", false, 0x1p-21, 0},
    {FV_MAP_GELU, "gelu", false, 0x1p-20, 0}, /* erf: a polynomial more */
    {FV_MAP_GELU_TANH, "gelu_tanh", false, 0x1p-20, 0},
    {FV_MAP_RELU, "relu", false, 0, 0},
    {FV_MAP_ELU1, "elu1", false, 0x1p-22, 0},
    {FV_MAP_SOFTPLUS, "softplus", false, 0x1p-21, 0},
    {FV_MAP_SOFTCAP, "softcap", false, 0x1p-21, 0},
};

static fv_status map(struct checkops *c, size_t n)
{
    int64_t rows = rows_of(c), columns = columns_of(c);
    struct call call = {.map = {.op = maps[n].op}};
    fv_map_args *a = &call.map;
    trial t;

    if (!checkops_wanted(c, &t, "map", "%s %lld x %lld", maps[n].name, (long long)rows, (long long)columns))
        return c->status;
    a->x = checkops_noise(c, FV_F32, 2, maps[n].shift, FV_DIMS(rows, columns));
    if (maps[n].two) a->y = checkops_noise(c, FV_F32, 2, maps[n].shift, FV_DIMS(rows, columns));
    if (maps[n].op == FV_MAP_SOFTCAP) a->alpha = 1.5f;
    a->out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(rows, columns)), maps[n].tolerance);
    return finish(c, &t, &call, call_map, 1, &a->x, &a->y);
}

static fv_status cast(struct checkops *c, fv_dtype from, fv_dtype to)
{
    int64_t rows = rows_of(c), columns = columns_of(c);
    struct call call = {.map = {.op = FV_MAP_COPY}};
    trial t;

    if (!checkops_wanted(c, &t, "map", "cast %s to %s, %lld x %lld", fv_dtype_name(from), fv_dtype_name(to),
                         (long long)rows, (long long)columns))
        return c->status;
    call.map.x = checkops_noise(c, from, 1, 0, FV_DIMS(rows, columns));
    call.map.out =
        checkops_output(&t, "out", checkops_empty(c, to, FV_DIMS(rows, columns)), 0); /* rounded to nearest */
    return finish(c, &t, &call, call_map, 0, &call.map.x, NULL);
}

static fv_status norm(struct checkops *c, bool layer)
{
    int64_t rows = rows_of(c), columns = columns_of(c);
    struct call call = {.norm = {.layer = layer, .epsilon = 1e-5f}};
    fv_norm_args *a = &call.norm;
    trial t;

    if (!checkops_wanted(c, &t, "norm", "%s %lld x %lld", layer ? "layer" : "rms", (long long)rows, (long long)columns))
        return c->status;
    a->x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(rows, columns));
    a->weight = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(columns));
    if (layer) a->bias = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(columns));
    /* a sum of C squares in f32, half of whose relative error the root takes over */
    a->out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(rows, columns)),
                             0x1p-24 * (double)(columns / 2 + 8));
    return finish(c, &t, &call, call_norm, 4, &a->x, NULL);
}

static fv_status rope(struct checkops *c, bool interleaved)
{
    int64_t heads = c->small ? 3 : 32, tokens = c->small ? 13 : 2048, dim = c->small ? 40 : 128;
    struct call call = {.rope = {.base = 10000, .interleaved = interleaved, .offset = 100}};
    trial t;

    if (!checkops_wanted(c, &t, "rope", "%s, %lld heads, %lld x %lld", interleaved ? "interleaved" : "split halves",
                         (long long)heads, (long long)tokens, (long long)dim))
        return c->status;
    call.rope.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, heads, tokens, dim));
    /* an angle in f32 errs by 2^-24 of itself, up to the position, in its frequency and in the product */
    call.rope.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(1, heads, tokens, dim)),
                                    0x1p-24 * (double)(2 * (tokens + 100) + 4));
    return finish(c, &t, &call, call_rope, 3, &call.rope.x, NULL);
}

static fv_status softmax(struct checkops *c)
{
    int64_t rows = rows_of(c), columns = columns_of(c);
    struct call call = {.softmax = {.scale = 3}};
    trial t;

    if (!checkops_wanted(c, &t, "softmax", "%lld x %lld", (long long)rows, (long long)columns)) return c->status;
    call.softmax.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(rows, columns));
    /* an exponential of up to -6: 2^-24 of that and two ulp; a sum of C such */
    call.softmax.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(rows, columns)),
                                       0x1p-24 * (12 + sqrt((double)columns)));
    t.output[0].of = OF_EACH;
    return finish(c, &t, &call, call_softmax, 5, &call.softmax.x, NULL);
}

static fv_status pool(struct checkops *c, fv_pool_kind kind, bool grid)
{
    static const char *const kinds[] = {"mean", "max", "sum"};
    int64_t side = c->small ? 9 : 256, rows = side * side, channels = c->small ? 20 : 128, block = 16;
    int64_t cells = grid ? 49 : (rows + block - 1) / block;
    struct call call = {.pool = {.kind = kind, .block = grid ? 0 : block}};
    trial t;

    if (!checkops_wanted(c, &t, "pool", "%s of %s, %lld x %lld", kinds[kind], grid ? "a grid to 7 x 7" : "16 rows",
                         (long long)rows, (long long)channels))
        return c->status;
    if (grid) call.pool.grid_height = call.pool.grid_width = side, call.pool.out_height = call.pool.out_width = 7;
    call.pool.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(2, rows, channels));
    /* f32 sums of the rows of a cell */
    double members = grid ? (double)((side / 7 + 2) * (side / 7 + 2)) : (double)block;
    call.pool.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(2, cells, channels)),
                                    kind == FV_POOL_MAX ? 0 : 0x1p-24 * (members + 4));
    return finish(c, &t, &call, call_pool, 1, &call.pool.x, NULL);
}

static fv_status selection(struct checkops *c, int64_t k)
{
    int64_t rows = c->small ? 13 : 4096, columns = c->small ? 133 : 4096;
    struct call call = {0};
    trial t;

    if (!checkops_wanted(c, &t, "select", "%lld largest of %lld x %lld", (long long)k, (long long)rows,
                         (long long)columns))
        return c->status;
    call.select.scores = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(rows, columns));
    call.select.index = checkops_output(&t, "index", checkops_empty(c, FV_I32, FV_DIMS(rows, k)), 0);
    call.select.count = checkops_output(&t, "count", checkops_empty(c, FV_I32, FV_DIMS(rows)), 0);
    return finish(c, &t, &call, call_select, 1, &call.select.scores, NULL);
}

static fv_status gather(struct checkops *c, bool scatter)
{
    int64_t rows = rows_of(c), columns = c->small ? 40 : 1024, many = 2 * rows;
    struct call call = {.gather = {.scatter = scatter}};
    fv_random random = fv_random_new(c->seed, ++c->stream);
    trial t;

    if (!checkops_wanted(c, &t, scatter ? "scatter" : "gather", "%lld of %lld rows of %lld", (long long)many,
                         (long long)rows, (long long)columns))
        return c->status;
    call.gather.index = checkops_empty(c, FV_I32, FV_DIMS(many));
    FV_TRY(c->status);
    for (int64_t i = 0; i < many; i++)
        ((int32_t *)call.gather.index.data)[i] = (int32_t)fv_random_below(&random, rows + 1) - 1;
    call.gather.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(scatter ? many : rows, columns));
    call.gather.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(scatter ? rows : many, columns)),
                                      scatter ? 0x1p-21 : 0); /* a row adds up a few others */
    t.output[0].added = scatter;
    return finish(c, &t, &call, call_gather, 0, &call.gather.x, NULL);
}

/* Rows of 64 channels, in pairs, against those of a query block. */
static fv_status match(struct checkops *c, int64_t rows)
{
    int64_t blocks = c->small ? 3 : 256, entries = c->small ? 37 : 512, keys = c->small ? 50 : 8192;
    struct call call = {0};
    fv_random random = fv_random_new(c->seed, ++c->stream);
    trial t;

    if (!checkops_wanted(c, &t, "match", "%lld pairs of %lld with %lld", (long long)(blocks * entries), (long long)keys,
                         (long long)rows))
        return c->status;
    call.match.index = checkops_empty(c, FV_I32, FV_DIMS(blocks, entries, 2));
    FV_TRY(c->status);
    for (int64_t n = 0; n < blocks * entries; n++)
        for (int m = 0, first = (int)fv_random_below(&random, keys - 1); m < 2; m++)
            ((int32_t *)call.match.index.data)[2 * n + m] = first + m;
    call.match.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(blocks, rows, 64));
    call.match.y = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(keys, 64));
    call.match.out = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(blocks, entries)), 0x1p-24 * 64);
    /* flops of a pair, for each channel of x */
    return finish(c, &t, &call, call_match, 4 * (double)entries, &call.match.x, &call.match.y);
}

/* Windows of 49 rows, or some others that are not there, of 32 channels: products with them, or sums of them. */
static fv_status sampled(struct checkops *c, bool sums)
{
    int64_t heads = c->small ? 3 : 8, rows = c->small ? 70 : 4096, few = 49, D = c->small ? 21 : 32;
    struct call call = {0};
    fv_tensor index, x, y, weights;
    trial t;

    if (!checkops_wanted(c, &t, sums ? "sampled sums" : "sampled dots", "%lld heads, %lld x %lld of %lld",
                         (long long)heads, (long long)rows, (long long)few, (long long)D))
        return c->status;
    index = checkops_empty(c, FV_I32, FV_DIMS(1, 1, rows, few));
    FV_TRY(c->status);
    for (int64_t n = 0; n < rows * few; n++)
        ((int32_t *)index.data)[n] = (int32_t)fv_max(n / few + n % few - few / 2, -1) % (int32_t)rows;
    y = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, heads, rows, D));
    if (sums) {
        weights = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, heads, rows, few));
        x = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(1, heads, rows, D)), 0x1p-24 * (double)few);
        call.sums = (fv_sampled_sums_args){.weight = weights, .y = y, .index = index, .out = x};
        return finish(c, &t, &call, call_sums, 2 * (double)D, &weights, &y);
    }
    x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(1, heads, rows, D));
    weights = checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(1, heads, rows, few)), 0x1p-24 * (double)D);
    call.dots = (fv_sampled_dots_args){.x = x, .y = y, .index = index, .out = weights};
    return finish(c, &t, &call, call_dots, 2 * (double)few, &x, &y);
}

static fv_status cumsum(struct checkops *c)
{
    int64_t rows = c->small ? 77 : 4096, columns = c->small ? 20 : 1024;
    struct call call = {0};
    trial t;

    if (!checkops_wanted(c, &t, "cumsum", "4 x %lld x %lld", (long long)rows, (long long)columns)) return c->status;
    call.cumsum.x = checkops_noise(c, FV_F32, 1, 0, FV_DIMS(4, rows, columns));
    /* the sum so far, below the largest, is rounded with each row */
    call.cumsum.out =
        checkops_output(&t, "out", checkops_empty(c, FV_F32, FV_DIMS(4, rows, columns)), 0x1p-24 * (double)rows);
    return finish(c, &t, &call, call_cumsum, 1, &call.cumsum.x, NULL);
}

struct sort {
    const int32_t *keys;
    int64_t n, bound, *start;
    int32_t *order;
};

static fv_status call_sort(fv_ctx *ctx, void *args)
{
    const struct sort *s = args;

    return fv_sort_by_key(ctx, s->keys, 1, s->n, s->bound, s->order, s->start);
}

static fv_status sort(struct checkops *c, int64_t bound)
{
    int64_t n = c->small ? 40001 : 1 << 20;
    struct sort call = {.n = n, .bound = bound};
    fv_random random = fv_random_new(c->seed, ++c->stream);
    fv_tensor keys;
    trial t;

    if (!checkops_wanted(c, &t, "sort", "%lld keys below %lld", (long long)n, (long long)bound)) return c->status;
    keys = checkops_empty(c, FV_I32, FV_DIMS(n));
    call.order = checkops_output(&t, "order", checkops_empty(c, FV_I32, FV_DIMS(n)), 0).data;
    FV_TRY(c->status);
    FV_TRY(FV_SCRATCH(c->reference, call.start, bound + 1));
    for (int64_t i = 0; i < n; i++)
        ((int32_t *)keys.data)[i] = (int32_t)fv_random_below(&random, bound);
    call.keys = keys.data;
    t.call = call_sort;
    t.args = &call;
    t.work.read = checkops_bytes(&keys);
    t.work.written = checkops_bytes(&keys);
    return checkops_try(c, &t);
}

fv_status checkops_rows(struct checkops *c)
{
    for (size_t n = 0; n < sizeof maps / sizeof *maps; n++)
        FV_TRY(map(c, n));
    FV_TRY(cast(c, FV_F32, FV_BF16));
    FV_TRY(cast(c, FV_F32, FV_F16));
    FV_TRY(cast(c, FV_F16, FV_F32));
    FV_TRY(cast(c, FV_BF16, FV_F32));
    for (int kind = 0; kind < 2; kind++) {
        FV_TRY(norm(c, kind));
        FV_TRY(rope(c, kind));
        FV_TRY(gather(c, kind));
    }
    FV_TRY(softmax(c));
    for (int kind = FV_POOL_MEAN; kind <= FV_POOL_SUM; kind++)
        for (int grid = 0; grid < 2; grid++)
            FV_TRY(pool(c, (fv_pool_kind)kind, grid));
    FV_TRY(selection(c, 1));
    FV_TRY(selection(c, 16));
    FV_TRY(selection(c, 128));
    FV_TRY(match(c, 1));
    FV_TRY(match(c, 16));
    FV_TRY(sampled(c, false));
    FV_TRY(sampled(c, true));
    FV_TRY(sort(c, 64));
    FV_TRY(sort(c, c->small ? 500 : 4096));
    return cumsum(c);
}
