/* Rows of every stored type: to f32, and multiplied with activations while their blocks are in registers.
 *
 * A group is 32 elements of a block.  scales_TYPE gives the scales of all groups of a block (each group has two, one
 * for each 16 elements) and what is added to them; unpack_TYPE the integers of a group as floats.  An element is
 * scale * q + low, where types without a minimum have no low.  All products scale * q are exact in f32, so that the
 * rows agree bit for bit with the plain loops in ops/blocks.c whether or not the compiler fuses multiply and add. */
#include "ops/cpu/leaf.h"

enum {
    GROUP = 32,
    VECTORS = GROUP / W,
    AHEAD = 4096, /* bytes: weights are asked for that early: the hardware sees no stream, or follows it too closely */
};

struct scales {
    float scale[16], low[8];
};

typedef void scales_fn(const uint8_t *block, struct scales *scales);
typedef void unpack_fn(const uint8_t *block, int part, vf q[VECTORS]);

INLINE void one_scale(const uint8_t *block, struct scales *s)
{
    s->scale[0] = s->scale[1] = half(block);
}

INLINE void scale_and_low(const uint8_t *block, struct scales *s)
{
#if defined(__F16C__)
    int32_t both;
    memcpy(&both, block, sizeof both);
    __m128 values = _mm_cvtph_ps(_mm_cvtsi32_si128(both));
    s->scale[0] = s->scale[1] = _mm_cvtss_f32(values);
    s->low[0] = _mm_cvtss_f32(_mm_movehdup_ps(values));
#else
    s->scale[0] = s->scale[1] = half(block);
    s->low[0] = half(block + 2);
#endif
}

/* Eight scales and eight minima of 6 bits each in 12 bytes: the upper two bits of the last four lie in the first. */
INLINE void six_bit_scales(const uint8_t *block, struct scales *s)
{
    uint32_t u[3], scale[2], low[2];
    uint8_t scales[8], lows[8];
    float d = half(block), least = -half(block + 2);

    memcpy(u, block + 4, sizeof u);
    scale[0] = u[0] & 0x3f3f3f3f;
    low[0] = u[1] & 0x3f3f3f3f;
    scale[1] = (u[2] & 0x0f0f0f0f) | (u[0] >> 6 & 0x03030303) << 4;
    low[1] = (u[2] >> 4 & 0x0f0f0f0f) | (u[1] >> 6 & 0x03030303) << 4;
    memcpy(scales, scale, sizeof scales);
    memcpy(lows, low, sizeof lows);
    for (int i = 0; i < 8; i++) {
        s->scale[2 * i] = s->scale[2 * i + 1] = d * (float)scales[i];
        s->low[i] = least * (float)lows[i];
    }
}

INLINE void signed_scales(const uint8_t *block, struct scales *s)
{
    float d = half(block + 208);

    for (int i = 0; i < 16; i += W)
        store(s->scale + i, splat(d) * to_float(load_i8((const int8_t *)block + 192 + i)));
}

/* 16 bytes: low nibbles are the first half of the group, high nibbles the second. */
INLINE void nibbles(const uint8_t *p, vi q[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS / 2; v++) {
        vi byte = load_u8(p + v * W);
        q[v] = byte & 15;
        q[v + VECTORS / 2] = byte >> 4;
    }
}

/* Bit i of the word at p as 16 in lane i. */
INLINE void fifth_bits(const uint8_t *p, vi q[VECTORS])
{
    uint32_t bits;

    memcpy(&bits, p, sizeof bits);
#if W == 16
    q[0] = (vi)_mm512_mask_add_epi32((__m512i)q[0], (__mmask16)bits, (__m512i)q[0], _mm512_set1_epi32(16));
    q[1] = (vi)_mm512_mask_add_epi32((__m512i)q[1], (__mmask16)(bits >> 16), (__m512i)q[1], _mm512_set1_epi32(16));
#else
    vi lane;
    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] |= ((splat_i((int32_t)(bits >> (v * W))) >> lane) & 1) << 4;
#endif
}

INLINE void to_floats(const vi in[VECTORS], int bias, vf q[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float(in[v] - bias);
}

INLINE void unpack_q4_0(const uint8_t *block, int part, vf q[VECTORS])
{
    vi n[VECTORS];

    (void)part;
    nibbles(block + 2, n);
    to_floats(n, 8, q);
}

INLINE void unpack_q4_1(const uint8_t *block, int part, vf q[VECTORS])
{
    vi n[VECTORS];

    (void)part;
    nibbles(block + 4, n);
    to_floats(n, 0, q);
}

INLINE void unpack_q5_0(const uint8_t *block, int part, vf q[VECTORS])
{
    vi n[VECTORS];

    (void)part;
    nibbles(block + 6, n);
    fifth_bits(block + 2, n);
    to_floats(n, 16, q);
}

INLINE void unpack_q5_1(const uint8_t *block, int part, vf q[VECTORS])
{
    vi n[VECTORS];

    (void)part;
    nibbles(block + 8, n);
    fifth_bits(block + 4, n);
    to_floats(n, 0, q);
}

INLINE void unpack_q8_0(const uint8_t *block, int part, vf q[VECTORS])
{
    (void)part;
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float(load_i8((const int8_t *)block + 2 + v * W));
}

INLINE void unpack_iq4_nl(const uint8_t *block, int part, vf q[VECTORS])
{
    static const int8_t value[16] = {FV_IQ4_LEVELS};
    int8_t list[GROUP];

    (void)part;
    for (int i = 0; i < GROUP / 2; i++) {
        list[i] = value[block[2 + i] & 15];
        list[i + GROUP / 2] = value[block[2 + i] >> 4];
    }
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float(load_i8(list + v * W));
}

INLINE void unpack_q4_k(const uint8_t *block, int part, vf q[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float(load_u8(block + 16 + part / 2 * 32 + v * W) >> (part & 1 ? 4 : 0) & 15);
}

INLINE void unpack_q5_k(const uint8_t *block, int part, vf q[VECTORS])
{
    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float((load_u8(block + 48 + part / 2 * 32 + v * W) >> (part & 1 ? 4 : 0) & 15) |
                        (load_u8(block + 16 + v * W) >> part & 1) << 4);
}

INLINE void unpack_q6_k(const uint8_t *block, int part, vf q[VECTORS])
{
    int side = part / 4, quarter = part & 3;
    const uint8_t *low = block + side * 64 + (quarter & 1) * 32, *high = block + 128 + side * 32;

    UNROLL
    for (int v = 0; v < VECTORS; v++)
        q[v] = to_float(
            ((load_u8(low + v * W) >> (quarter & 2 ? 4 : 0) & 15) | (load_u8(high + v * W) >> (2 * quarter) & 3) << 4) -
            32);
}

INLINE void load_groups(scales_fn *read_scales, unpack_fn *unpack, const int bytes, const int parts, const bool low,
                        const void *row, int64_t from, int64_t count, float *out)
{
    const uint8_t *block = (const uint8_t *)row + from / (parts * GROUP) * bytes;
    struct scales s;
    vf q[VECTORS];

    for (; count > 0; count -= parts * GROUP, block += bytes) {
        read_scales(block, &s);
        UNROLL
        for (int part = 0; part < parts; part++) {
            unpack(block, part, q);
            UNROLL
            for (int v = 0; v < VECTORS; v++) {
                vf value = q[v] * splat(s.scale[2 * part + v * 2 / VECTORS]);
                store(out, low ? value + splat(s.low[part]) : value);
                out += W;
            }
        }
    }
}

/* M rows of x, R rows of weights at once: x is loaded once for R, a weight unpacked once for M.  x_sums holds the sums
 * of x's groups, which minima are multiplied with. */
INLINE void dot_groups(scales_fn *read_scales, unpack_fn *unpack, const int bytes, const int parts, const bool low,
                       const bool halves, const int M, const int R, int64_t k, const float *x, int64_t x_row,
                       const float *x_sums, const uint8_t *w, int64_t w_row_bytes, float *out, int64_t out_row)
{
    vf s[2][FV_DOT_ROWS], q[VECTORS];
    float lows[2][FV_DOT_ROWS];
    struct scales scales[2];

    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int i = 0; i < M; i++)
            s[r][i] = splat(lows[r][i] = 0);
    }
    for (int64_t n = 0; n < k / (parts * GROUP); n++, x += parts * GROUP) {
        UNROLL
        for (int r = 0; r < R; r++)
            read_scales(w + r * w_row_bytes + n * bytes, &scales[r]);
        UNROLL
        for (int part = 0; part < parts; part++) {
            UNROLL
            for (int r = 0; r < R; r++) {
                __builtin_prefetch(w + ((n * parts + part) * R + r) * bytes / parts + AHEAD);
                unpack(w + r * w_row_bytes + n * bytes, part, q);
                UNROLL
                for (int i = 0; i < M; i++) {
                    vf dot = splat(0);
                    UNROLL
                    for (int v = 0; v < VECTORS; v++) {
                        vf xv = load(x + i * x_row + part * GROUP + v * W);
                        if (halves && v == VECTORS / 2) {
                            s[r][i] = dot * splat(scales[r].scale[2 * part]) + s[r][i];
                            dot = q[v] * xv;
                        } else {
                            dot = v ? q[v] * xv + dot : q[v] * xv;
                        }
                    }
                    s[r][i] = dot * splat(scales[r].scale[2 * part + 1]) + s[r][i];
                    if (low) lows[r][i] += scales[r].low[part] * x_sums[i * (k / GROUP) + n * parts + part];
                }
            }
        }
    }
    UNROLL
    for (int r = 0; r < R; r++) {
        UNROLL
        for (int i = 0; i < M; i++)
            out[i * out_row + r] = low ? sum(s[r][i]) + lows[r][i] : sum(s[r][i]);
    }
}

/* Rows of weights in pairs for one row of x; one by one for several, which share what was unpacked. */
#define DOT_TYPE(scales, type, bytes, parts, low, halves, M, R)                                                        \
    for (; rows >= R; rows -= R, w += R * w_row_bytes, out += R)                                                       \
    dot_groups(scales, unpack_##type, bytes, parts, low, halves, M, R, k, x, x_row, x_sums, w, w_row_bytes, out,       \
               out_row)
#define BLOCK_TYPE(type, scales, bytes, parts, low, halves)                                                            \
    static void row_##type(const void *row, int64_t from, int64_t count, float *out)                                   \
    {                                                                                                                  \
        load_groups(scales, unpack_##type, bytes, parts, low, row, from, count, out);                                  \
    }                                                                                                                  \
    static void dot_##type(int m, int64_t k, const float *x, int64_t x_row, const float *x_sums, const void *weights,  \
                           int64_t w_row_bytes, int64_t rows, float *out, int64_t out_row)                             \
    {                                                                                                                  \
        const uint8_t *w = weights;                                                                                    \
        if (m == 3) {                                                                                                  \
            dot_##type(1, k, x + 2 * x_row, x_row, x_sums ? x_sums + 2 * (k / GROUP) : NULL, weights, w_row_bytes,     \
                       rows, out + 2 * out_row, out_row);                                                              \
            m = 2;                                                                                                     \
        }                                                                                                              \
        if (m == 4) DOT_TYPE(scales, type, bytes, parts, low, halves, 4, 1);                                           \
        if (m == 2) DOT_TYPE(scales, type, bytes, parts, low, halves, 2, 1);                                           \
        DOT_TYPE(scales, type, bytes, parts, low, halves, 1, 2);                                                       \
        DOT_TYPE(scales, type, bytes, parts, low, halves, 1, 1);                                                       \
    }

BLOCK_TYPE(q4_0, one_scale, 18, 1, false, false)
BLOCK_TYPE(q4_1, scale_and_low, 20, 1, true, false)
BLOCK_TYPE(q5_0, one_scale, 22, 1, false, false)
BLOCK_TYPE(q5_1, scale_and_low, 24, 1, true, false)
BLOCK_TYPE(q8_0, one_scale, 34, 1, false, false)
BLOCK_TYPE(iq4_nl, one_scale, 18, 1, false, false)
BLOCK_TYPE(q4_k, six_bit_scales, 144, 8, true, false)
BLOCK_TYPE(q5_k, six_bit_scales, 176, 8, true, false)
BLOCK_TYPE(q6_k, signed_scales, 210, 8, false, true)

/* ---- plain types ----------------------------------------------------------------------------------------------- */

typedef vf read_fn(const void *row, int64_t index);

INLINE vf read_f32(const void *row, int64_t index)
{
    return load((const float *)row + index);
}

INLINE vf read_f16(const void *row, int64_t index)
{
    return load_f16((const uint16_t *)row + index);
}

INLINE vf read_bf16(const void *row, int64_t index)
{
    return load_bf16((const uint16_t *)row + index);
}

INLINE void load_plain(read_fn *read, fv_dtype dtype, const void *row, int64_t from, int64_t count, float *out)
{
    int64_t i = 0;

    for (; i + W <= count; i += W)
        store(out + i, read(row, from + i));
    for (; i < count; i++)
        out[i] = (float)fv_load(dtype, row, from + i);
}

/* Four sums a row, so that additions do not wait for each other. */
INLINE void dot_plain(read_fn *read, fv_dtype dtype, const int size, const int M, int64_t k, const float *x,
                      int64_t x_row, const void *w, float *out, int64_t out_row)
{
    vf s[FV_DOT_ROWS][4];
    float tail[FV_DOT_ROWS];
    int64_t p = 0;

    UNROLL
    for (int i = 0; i < M; i++)
        s[i][0] = s[i][1] = s[i][2] = s[i][3] = splat(tail[i] = 0);
    for (; p + 4 * W <= k; p += 4 * W) {
        UNROLL
        for (int u = 0; u < 4; u++) {
            vf weight = read(w, p + u * W);
            if (u * W * size % 64 == 0) __builtin_prefetch((const char *)w + (p + u * W) * size + AHEAD);
            UNROLL
            for (int i = 0; i < M; i++)
                s[i][u] = weight * load(x + i * x_row + p + u * W) + s[i][u];
        }
    }
    for (; p + W <= k; p += W) {
        vf weight = read(w, p);
        UNROLL
        for (int i = 0; i < M; i++)
            s[i][0] = weight * load(x + i * x_row + p) + s[i][0];
    }
    for (; p < k; p++) {
        float weight = (float)fv_load(dtype, w, p);
        UNROLL
        for (int i = 0; i < M; i++)
            tail[i] += weight * x[i * x_row + p];
    }
    UNROLL
    for (int i = 0; i < M; i++)
        out[i * out_row] = sum((s[i][0] + s[i][1]) + (s[i][2] + s[i][3])) + tail[i];
}

#define PLAIN_TYPE(type, dtype, size)                                                                                  \
    static void row_##type(const void *row, int64_t from, int64_t count, float *out)                                   \
    {                                                                                                                  \
        load_plain(read_##type, dtype, row, from, count, out);                                                         \
    }                                                                                                                  \
    static void dot_##type(int m, int64_t k, const float *x, int64_t x_row, const float *x_sums, const void *weights,  \
                           int64_t w_row_bytes, int64_t rows, float *out, int64_t out_row)                             \
    {                                                                                                                  \
        const uint8_t *w = weights;                                                                                    \
        (void)x_sums;                                                                                                  \
        for (; rows > 0; rows--, w += w_row_bytes, out++)                                                              \
            switch (m) {                                                                                               \
            case 1: dot_plain(read_##type, dtype, size, 1, k, x, x_row, w, out, out_row); break;                       \
            case 2: dot_plain(read_##type, dtype, size, 2, k, x, x_row, w, out, out_row); break;                       \
            case 3: dot_plain(read_##type, dtype, size, 3, k, x, x_row, w, out, out_row); break;                       \
            default: dot_plain(read_##type, dtype, size, 4, k, x, x_row, w, out, out_row); break;                      \
            }                                                                                                          \
    }

PLAIN_TYPE(f32, FV_F32, 4)
PLAIN_TYPE(f16, FV_F16, 2)
PLAIN_TYPE(bf16, FV_BF16, 2)

static fv_load_fn *const load_table[FV_DTYPE_COUNT] = {
    [FV_F32] = row_f32,   [FV_F16] = row_f16,   [FV_BF16] = row_bf16, [FV_Q4_0] = row_q4_0,
    [FV_Q4_1] = row_q4_1, [FV_Q5_0] = row_q5_0, [FV_Q5_1] = row_q5_1, [FV_Q8_0] = row_q8_0,
    [FV_Q4_K] = row_q4_k, [FV_Q5_K] = row_q5_k, [FV_Q6_K] = row_q6_k, [FV_IQ4_NL] = row_iq4_nl,
};

static fv_dot_fn *const dot_table[FV_DTYPE_COUNT] = {
    [FV_F32] = dot_f32,   [FV_F16] = dot_f16,   [FV_BF16] = dot_bf16, [FV_Q4_0] = dot_q4_0,
    [FV_Q4_1] = dot_q4_1, [FV_Q5_0] = dot_q5_0, [FV_Q5_1] = dot_q5_1, [FV_Q8_0] = dot_q8_0,
    [FV_Q4_K] = dot_q4_k, [FV_Q5_K] = dot_q5_k, [FV_Q6_K] = dot_q6_k, [FV_IQ4_NL] = dot_iq4_nl,
};

static void to_bf16(const float *in, int64_t count, uint16_t *out)
{
    typedef uint16_t half_vector __attribute__((vector_size(2 * W), aligned(2), may_alias));
    int64_t i = 0;

    for (; i + W <= count; i += W) {
        vf x = load(in + i);
        vi bits = (vi)x, odd = bits >> 16 & 1, quiet = x != x;
        vi rounded = ((bits + 0x7fff + odd) & ~quiet) | ((bits | 0x400000) & quiet);
        *(half_vector *)(out + i) = __builtin_convertvector(rounded >> 16 & 0xffff, half_vector);
    }
    for (; i < count; i++)
        out[i] = fv_f32_to_bf16(in[i]);
}

static void to_f16(const float *in, int64_t count, uint16_t *out)
{
    int64_t i = 0;

    for (; i + W <= count; i += W)
        store_f16(out + i, load(in + i));
    for (; i < count; i++)
        out[i] = fv_f32_to_f16(in[i]);
}

/* ---- the way back ----------------------------------------------------------------------------------------------- */

/* The magnitude of the largest of a block in every lane.  false if one is not finite: then the block is spoilt. */
INLINE bool measure(const float *in, vf x[VECTORS], float *most)
{
    vf check = splat(0), high = splat(0);

    UNROLL
    for (int v = 0; v < VECTORS; v++) {
        x[v] = load(in + v * W);
        check += x[v] * 0;
        high = vmax((vf)((vi)x[v] & INT32_MAX), high);
    }
    *most = largest(high);
    return sum(check) == 0;
}

static void spoil(uint8_t *block, size_t bytes)
{
    uint16_t half = fv_f32_to_f16(NAN);

    memset(block, 0, bytes);
    memcpy(block, &half, sizeof half);
}

/* Puts the scale in front of a block; what its values are multiplied with. */
static float put_scale(float scale, uint8_t *block)
{
    uint16_t half = fv_f32_to_f16(scale);
    float inverse = scale != 0 ? 1 / scale : 0;

    memcpy(block, &half, sizeof half);
    return isfinite(inverse) ? inverse : 0;
}

/* A product that is rounded before it is used: compilers may not fuse what follows. */
INLINE vf rounded(vf product)
{
    __asm__("" : "+m"(product));
    return product;
}

INLINE void store_bytes(uint8_t *to, vi x)
{
    typedef uint8_t bytes_vector __attribute__((vector_size(W), aligned(1), may_alias));

    *(bytes_vector *)to = __builtin_convertvector(x & 255, bytes_vector);
}

static void store_q8_0(const float *in, int64_t count, void *row)
{
    uint8_t *block = row;

    for (int64_t n = 0; n < count; n += GROUP, in += GROUP, block += 34) {
        vf x[VECTORS];
        float most;
        if (!measure(in, x, &most)) {
            spoil(block, 34);
            continue;
        }
        float inverse = put_scale(most / 127, block);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            vf y = rounded(x[v] * inverse);
            vi whole = __builtin_convertvector(y, vi);
            vf rest = y - to_float(whole);
            whole += (rest <= splat(-0.5F)) - (rest >= splat(0.5F)); /* true is -1 */
            store_bytes(block + 2 + v * W, whole);
        }
    }
}

/* The first value of the largest magnitude. */
INLINE float first_of(const float *in, const vf x[VECTORS], float most)
{
    for (int v = 0; v < VECTORS; v++) {
        unsigned found = lanes((vf)((vi)x[v] & INT32_MAX) == splat(most));
        if (found) return in[v * W + __builtin_ctz(found)];
    }
    return most;
}

static void store_q4_0(const float *in, int64_t count, void *row)
{
    uint8_t *block = row;

    for (int64_t n = 0; n < count; n += GROUP, in += GROUP, block += 18) {
        vf x[VECTORS];
        vi step[VECTORS];
        float most;
        if (!measure(in, x, &most)) {
            spoil(block, 18);
            continue;
        }
        float inverse = put_scale((most > 0 ? first_of(in, x, most) : 0) / -8, block);
        UNROLL
        for (int v = 0; v < VECTORS; v++) {
            vi whole = __builtin_convertvector(rounded(x[v] * inverse) + splat(8.5F), vi), over = whole > 15;
            step[v] = (whole & ~over) | (over & 15);
        }
        UNROLL
        for (int v = 0; v < VECTORS / 2; v++)
            store_bytes(block + 2 + v * W, step[v] | step[v + VECTORS / 2] << 4);
    }
}

static fv_store_fn *const store_table[FV_DTYPE_COUNT] = {[FV_Q8_0] = store_q8_0, [FV_Q4_0] = store_q4_0};

void LEAF(fill_blocks)(struct fv_kernels *kernels)
{
    kernels->load = load_table;
    kernels->store = store_table;
    kernels->dot = dot_table;
    kernels->to_bf16 = to_bf16;
    kernels->to_f16 = to_f16;
}
