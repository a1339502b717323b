/* Linear recurrences, in chunks of tokens and token by token.
 * Products and triangles are bound by flops: ROWS x TILE_COLUMNS sums in registers, two vectors and ROWS single floats
 * loaded for ROWS x TILE_VECTORS multiplications.  Advancing a state reaches 91 % of the FMA peak over 32
 * tokens (94 % over 64), triangles 96 %, weights within a chunk 64 % (76 %): half of their last tile is hidden.  A step
 * is bound by the bytes of the state, which it reads and writes once, and with the delta rule reads once more: 82 % of
 * the rate of a copy, 83 % with the delta rule (states of 256 MiB). */
#include "ops/cpu/leaf.h"
#include "ops/cpu/scan_kernels.h"

enum { V = TILE_VECTORS, ROWS = W == 16 ? 8 : 4, STEP_VECTORS = W == 16 ? 8 : 4 };

/* s += a b over k, with `vectors` of columns. */
INLINE void multiply(vf s[ROWS][V], const int vectors, int64_t k, const float *a, int64_t a_row, int64_t a_step,
                     const float *b, int64_t b_row)
{
    for (int64_t p = 0; p < k; p++, a += a_step, b += b_row) {
        vf column[V];
        UNROLL
        for (int v = 0; v < vectors; v++)
            column[v] = load(b + v * W);
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            vf x = splat(a[i * a_row]);
            UNROLL
            for (int v = 0; v < vectors; v++)
                s[i][v] = x * column[v] + s[i][v];
        }
    }
}

/* Rows packed side by side are a case of their own: their places are constants to the compiler. */
INLINE void multiply_any(vf s[ROWS][V], const int vectors, int64_t k, const float *a, int64_t a_row, int64_t a_step,
                         const float *b, int64_t b_row)
{
    if (a_row == 1)
        multiply(s, vectors, k, a, 1, a_step, b, b_row);
    else
        multiply(s, vectors, k, a, a_row, 1, b, b_row);
}

INLINE void clear(vf s[ROWS][V])
{
    UNROLL
    for (int i = 0; i < ROWS; i++) {
        UNROLL
        for (int v = 0; v < V; v++)
            s[i][v] = splat(0);
    }
}

/* Into the second level: the first is full of the chunk and the state. */
INLINE void look_ahead(struct fv_scan_ahead *ahead)
{
    if (!ahead) return;
    for (int each = ahead->each; each > 0 && ahead->left > 0; each--, ahead->left--)
        for (int n = 0; n < 4; n++) {
            for (int64_t c = 0; c < ahead->width[n]; c += 64 / (int)sizeof(float))
                __builtin_prefetch(ahead->at[n] + c, 0, 2);
            ahead->at[n] += ahead->row[n];
        }
}

/* What is asked of a product is looked up before the first store, which may write anything as far as the compiler
 * knows. */
INLINE void product_tile(const struct fv_scan_product *p, const int vectors, int64_t r, int64_t n)
{
    const int64_t c_row = p->c_row, keep_step = p->keep_step, times_row = p->times_row;
    const float *times = p->times, *keep = p->keep, *keep_columns = p->keep_columns;
    float *c = p->c + r * c_row + n;
    vf s[ROWS][V];

    look_ahead(p->ahead);
    clear(s);
    multiply_any(s, vectors, p->k, p->a + r * p->a_row, p->a_row, p->a_step, p->b + n, p->b_row);
    if (times) {
        times += r * times_row + n;
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            UNROLL
            for (int v = 0; v < vectors; v++)
                s[i][v] *= load(times + i * times_row + v * W);
        }
    }
    if (keep) {
        keep += r * keep_step;
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            vf factor = splat(keep[i * keep_step]);
            UNROLL
            for (int v = 0; v < vectors; v++)
                s[i][v] += load(c + i * c_row + v * W) * factor;
        }
    }
    if (keep_columns) {
        UNROLL
        for (int v = 0; v < vectors; v++) {
            vf factor = load(keep_columns + n + v * W);
            UNROLL
            for (int i = 0; i < ROWS; i++)
                s[i][v] += load(c + i * c_row + v * W) * factor;
        }
    }
    UNROLL
    for (int i = 0; i < ROWS; i++) {
        UNROLL
        for (int v = 0; v < vectors; v++)
            store(c + i * c_row + v * W, s[i][v]);
    }
}

static void product(const struct fv_scan_product *p)
{
    for (int64_t n = 0; n < p->columns; n += TILE_COLUMNS)
        for (int64_t r = 0; r < p->rows; r += ROWS) {
            if (p->triangle && r >= n + TILE_COLUMNS) break;
            if (p->triangle && V == 2 && r >= n + W)
                product_tile(p, 1, r, n + W);
            else
                product_tile(p, V, r, n);
        }
}

/* ---- triangles ------------------------------------------------------------------------------------------------- */

/* A row of a triangle takes in g u, and what it held fades. */
INLINE vf take_in(const bool decayed, vf s, vf d, vf x, float g)
{
    return splat(g) * x + (decayed ? s * d : s);
}

INLINE void rows_tile(const struct fv_scan_rows *p, const bool decayed, const bool solve, const int64_t g_row,
                      const int64_t step, int64_t r, int64_t n)
{
    const float *g = p->g + r * g_row, *decay = decayed ? p->decay + n : NULL, *scale = p->scale;
    const float *base = p->base ? p->base + r * p->base_row + n : NULL, *beta = solve ? p->beta + r * step : NULL;
    const int64_t g_step = p->g_step, u_row = p->u_row, decay_row = p->decay_row, base_row = p->base_row;
    const int64_t c_row = p->c_row;
    const bool add = p->add;
    float *u = p->u + n, *c = p->c + r * c_row + n;
    vf s[ROWS][V], x[V], d[V];

    look_ahead(p->ahead);
    clear(s);
    if (p->a) multiply_any(s, V, p->k, p->a + r * p->a_row, p->a_row, p->a_step, p->b + n, p->b_row);
    if (base && !solve) {
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            UNROLL
            for (int v = 0; v < V; v++)
                s[i][v] += load(base + i * base_row + v * W);
        }
    }
    if (scale) {
        scale += r * step;
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            UNROLL
            for (int v = 0; v < V; v++)
                s[i][v] *= splat(scale[i * step]);
        }
    }
    for (int64_t j = 0; j < r; j++, u += u_row, g += g_step, decay += decayed ? decay_row : 0) {
        UNROLL
        for (int v = 0; v < V; v++) {
            x[v] = load(u + v * W);
            d[v] = decayed ? load(decay + v * W) : splat(1);
        }
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            UNROLL
            for (int v = 0; v < V; v++)
                s[i][v] = take_in(decayed, s[i][v], d[v], x[v], g[i * g_row]);
        }
    }
    UNROLL
    for (int j = 0; j < ROWS; j++, u += u_row, g += g_step, decay += decayed ? decay_row : 0) {
        UNROLL
        for (int v = 0; v < V; v++) {
            d[v] = decayed ? load(decay + v * W) : splat(1);
            if (solve) {
                x[v] = load(base + j * base_row + v * W) - (decayed ? s[j][v] * d[v] : s[j][v]);
                store(c + j * c_row + v * W, x[v]);
                x[v] *= splat(beta[j * step]);
                store(u + v * W, x[v]);
            } else {
                x[v] = load(u + v * W);
            }
        }
        UNROLL
        for (int i = solve ? j + 1 : j; i < ROWS; i++) {
            UNROLL
            for (int v = 0; v < V; v++)
                s[i][v] = take_in(decayed, s[i][v], d[v], x[v], g[i * g_row]);
        }
    }
    if (solve) return;
    UNROLL
    for (int i = 0; i < ROWS; i++) {
        UNROLL
        for (int v = 0; v < V; v++) {
            float *to = c + i * c_row + v * W;
            store(to, add ? load(to) + s[i][v] : s[i][v]);
        }
    }
}

INLINE void rows_of(const struct fv_scan_rows *p, const bool decayed, const bool solve, const int64_t g_row,
                    const int64_t step)
{
    for (int64_t n = 0; n < p->columns; n += TILE_COLUMNS)
        for (int64_t r = 0; r < p->rows; r += ROWS)
            rows_tile(p, decayed, solve, g_row, step, r, n);
}

static void plain_rows(const struct fv_scan_rows *p)
{
    if (p->g_row == 1)
        rows_of(p, false, false, 1, 1);
    else
        rows_of(p, false, false, p->g_row, p->step);
}

static void triangle(const struct fv_scan_rows *p)
{
    if (!p->decay && !p->solve)
        plain_rows(p);
    else if (!p->decay)
        rows_of(p, false, true, p->g_row, p->step);
    else if (!p->solve)
        rows_of(p, true, false, p->g_row, p->step);
    else
        rows_of(p, true, true, p->g_row, p->step);
}

/* ---- channels that decay apart --------------------------------------------------------------------------------- */

/* x a in lanes that are not before the key, x in those before. */
INLINE vf multiply_from(vf x, vi past, float a)
{
    return choose(past >= splat_i(0), x * splat(a), x);
}

/* Tokens `from`.. in the lanes of a vector, against keys first..first + ROWS - 1; `own`: lanes before a key do not
 * decay any more. */
INLINE void pairs_of(const struct fv_scan_pairs *p, const bool own, int64_t from, int64_t first)
{
    int64_t decay = p->decay - p->k;
    const float *k[ROWS];
    vf s[ROWS];
    vi past[ROWS], lane = splat_i(0); /* lanes, counted from that of the key */

    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    UNROLL
    for (int j = 0; j < ROWS; j++) {
        s[j] = splat(0);
        k[j] = p->k + (first + j) * p->row;
        past[j] = lane - splat_i((int)(first - from) + j);
    }
    for (int64_t d = 0; d < p->depth; d++) {
        float *place = p->x + d * p->lanes + from;
        vf x = load(place);
        UNROLL
        for (int j = ROWS - 1; j >= 0; j--) {
            s[j] = x * splat(k[j][d]) + s[j];
            x = own ? multiply_from(x, past[j], k[j][decay + d]) : x * splat(k[j][decay + d]);
        }
        store(place, x);
    }
    UNROLL
    for (int j = 0; j < ROWS; j++) {
        if (own) s[j] = choose(past[j] >= splat_i(p->strict), s[j], splat(0));
        store(p->out + (first + j) * p->lanes + from, s[j]);
    }
}

static void pairs(const struct fv_scan_pairs *p)
{
    for (int64_t from = 0; from < p->tokens; from += W) {
        int64_t end = from + W < p->tokens ? from + W : p->tokens, first = (end - 1) / ROWS * ROWS;
        for (int64_t j = end; j < p->tokens; j++)
            store(p->out + j * p->lanes + from, splat(0));
        for (; first >= from; first -= ROWS)
            pairs_of(p, true, from, first);
        for (; first >= 0; first -= ROWS)
            pairs_of(p, false, from, first);
    }
}

/* ---- rows ------------------------------------------------------------------------------------------------------ */

static void gather(int64_t count, int64_t width, const float *in, int64_t in_row, const float *scale, int64_t rows,
                   int64_t columns, float *out, int64_t out_row)
{
    for (int64_t r = 0; r < rows; r++, in += in_row, out += out_row) {
        vf factor = splat(r < count && scale ? scale[r] : 1);
        for (int64_t c = 0; c < columns; c += W) {
            int64_t left = r < count ? width - c : 0;
            store(out + c, left >= W  ? factor * load(in + c)
                           : left > 0 ? factor * load_part(in + c, left, 0)
                                      : splat(0));
        }
    }
}

static void fade(int64_t rows, int64_t columns, float *x, int64_t x_row, const float *scale, const float *decay,
                 int64_t decay_row, bool upto, float *total)
{
    for (int64_t c = 0; c < columns; c += W) {
        vf y = splat(1);
        for (int64_t n = 0; n < rows; n++) {
            int64_t r = upto ? n : rows - 1 - n;
            float *to = x + r * x_row + c;
            vf d = decay ? load(decay + r * decay_row + c) : splat(1), before = y;
            y *= d;
            store(to, load(to) * (upto ? y : before) * splat(scale ? scale[r] : 1));
        }
        if (total) store(total + c, y);
    }
}

static void between(int64_t rows, int64_t lanes, const float *decay, float *out)
{
    vi lane = splat_i(0);

    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    for (int64_t t = 0; t < lanes; t += W) {
        vf x = splat(0);
        for (int64_t j = rows - 1; j >= 0; j--) {
            if (j + 1 < rows) x *= splat(decay[j + 1]);
            x = choose(lane == splat_i((int32_t)(j - t)), splat(1), x);
            store(out + j * lanes + t, x);
        }
    }
}

static void add_products(int64_t columns, const float *x, const float *y, const float *z, const float *w, float *to)
{
    for (int64_t c = 0; c < columns; c += W) {
        vf sum = load(x + c) * load(y + c);
        if (z) sum -= load(z + c) * load(w + c);
        store(to + c, load(to + c) + sum);
    }
}

/* ---- token by token -------------------------------------------------------------------------------------------- */

INLINE vf load_some(const float *p, int64_t part)
{
    return part ? load_part(p, part, 0) : load(p);
}

/* `vectors` of columns from n on; part > 0: only so many lanes of one. */
INLINE void step_columns(const struct fv_scan_step *s, const int vectors, const bool delta, int64_t n, int64_t part)
{
    vf out[STEP_VECTORS], e[STEP_VECTORS], decay[STEP_VECTORS];

    UNROLL
    for (int u = 0; u < vectors; u++) {
        out[u] = splat(0);
        e[u] = load_some(s->v + n + u * W, part);
        decay[u] = s->value_decay ? load_some(s->value_decay + n + u * W, part) : splat(1);
    }
    for (int64_t d = 0; delta && s->from && d < s->keys; d++) {
        const float *row = s->from + d * s->from_row + n;
        vf k = splat(-s->k[d] * (s->decay ? s->decay[d * s->decay_step] : 1));
        UNROLL
        for (int u = 0; u < vectors; u++)
            e[u] = k * decay[u] * load_some(row + u * W, part) + e[u];
    }
    UNROLL
    for (int u = 0; u < vectors; u++)
        e[u] *= splat(s->beta);
    for (int64_t d = 0; d < s->keys; d++) {
        vf factor = splat(s->decay ? s->decay[d * s->decay_step] : 1), k = splat(s->k[d]), q = splat(s->q[d]);
        UNROLL
        for (int u = 0; u < vectors; u++) {
            float *to = s->to + d * s->to_row + n + u * W;
            vf x = s->from ? load_some(s->from + d * s->from_row + n + u * W, part) * (factor * decay[u]) : splat(0);
            x = k * e[u] + x;
            if (part)
                store_part(to, x, part);
            else
                store(to, x);
            out[u] = q * x + out[u];
        }
    }
    UNROLL
    for (int u = 0; u < vectors; u++) {
        if (part)
            store_part(s->o + n, out[u], part);
        else
            store(s->o + n + u * W, out[u]);
    }
}

INLINE void step_of(const struct fv_scan_step *s, const bool delta)
{
    int64_t n = 0;

    for (; n + STEP_VECTORS * W <= s->columns; n += STEP_VECTORS * W)
        step_columns(s, STEP_VECTORS, delta, n, 0);
    for (; n + STEP_VECTORS / 2 * W <= s->columns; n += STEP_VECTORS / 2 * W)
        step_columns(s, STEP_VECTORS / 2, delta, n, 0);
    for (; n + W <= s->columns; n += W)
        step_columns(s, 1, delta, n, 0);
    if (n < s->columns) step_columns(s, 1, delta, n, s->columns - n);
}

static void step(const struct fv_scan_step *s)
{
    if (s->delta)
        step_of(s, true);
    else
        step_of(s, false);
}

void LEAF(fill_scan)(struct fv_kernels *kernels)
{
    static const struct fv_scan_kernels scan = {.rows = ROWS,
                                                .step_columns = STEP_VECTORS * W,
                                                .product = product,
                                                .triangle = triangle,
                                                .pairs = pairs,
                                                .step = step,
                                                .gather = gather,
                                                .fade = fade,
                                                .between = between,
                                                .add_products = add_products};

    kernels->scan = &scan;
}
