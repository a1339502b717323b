/* Packed weights (ops/packed.h): products with few rows, bound by the weights' bytes, and unpacking for the
 * micro-kernel.
 *
 * Activations are integers of 16 bits with a scale for every 32 (struct fv_activations): 15 bits hold them closer than
 * bf16 would, and a product of weights as they are stored with them is exact; what is rounded is only the sum over
 * parts. A pair of columns takes one multiply-add of 16-bit pairs for 16 rows of weights. */
#include "ops/cpu/leaf.h"

enum {
    HALVES = FV_PACK_ROWS / W,
    PAIRS = FV_PACK_COLUMNS / 2,
    AHEAD = 8192, /* bytes */
};

/* Of a type: bytes of a part and of a block's scales, parts of a block, what is subtracted from integers, whether there
 * are minima, scales (and minima) for 16 columns rather than 32, signed scales, and words that can be raised. */
struct layout {
    int part_bytes, scale_bytes, parts, offset;
    bool low, fine, is_signed, raised;
};

/* Columns 2j and 2j + 1 of the rows of half h, in the halves of dwords; `raised` ones by raised_by(j) bits. */
typedef vi words_fn(const uint8_t *part, int j, int h, const bool raised);

typedef uint16_t v_words __attribute__((vector_size(4 * W)));

INLINE vi dwords(const uint8_t *part, int vector, int h)
{
    return *(const vi_unaligned *)(part + vector * 64 + h * 4 * W);
}

INLINE int raised_by(int j)
{
    return j % 4 == 3 ? 0 : j % 4 * 4;
}

INLINE vi words_4(const uint8_t *part, int j, int h, const bool raised)
{
    vi v = dwords(part, j / 4, h);

    if (j % 4 == 3) return (vi)((v_words)v >> 12);
    return raised ? v & (0x000f000f << raised_by(j)) : (v >> (j % 4 * 4)) & 0x000f000f;
}

INLINE vi words_2(const uint8_t *part, int j, int h, const bool raised)
{
    (void)raised;
    return (dwords(part, j / 8, h) >> (j % 8 * 2)) & 0x00030003;
}

/* `bits` bits more, from the planes behind `main` vectors, above the first `from`. */
INLINE vi plane(const uint8_t *part, const int main, const int from, const int bits, int j, int h)
{
    int per_vector = 16 / bits, place = j % per_vector * bits - from;
    vi v = dwords(part, main + j / per_vector, h);

    return (place >= 0 ? v >> place : v << -place) & (((1 << bits) - 1) * 0x00010001 << from);
}

INLINE vi words_5(const uint8_t *part, int j, int h, const bool raised)
{
    return words_4(part, j, h, raised) | plane(part, 4, 4 + (raised ? raised_by(j) : 0), 1, j, h);
}

INLINE vi words_6(const uint8_t *part, int j, int h, const bool raised)
{
    return words_4(part, j, h, raised) | plane(part, 4, 4 + (raised ? raised_by(j) : 0), 2, j, h);
}

INLINE vi words_3(const uint8_t *part, int j, int h, const bool raised)
{
    return words_2(part, j, h, raised) | plane(part, 2, 2, 1, j, h);
}

INLINE vi words_8(const uint8_t *part, int j, int h, const bool raised)
{
    vi v = dwords(part, j / 2, h);

    (void)raised;
    return j % 2 ? high_bytes(v) : low_bytes(v);
}

INLINE vi words_levels(const uint8_t *part, int j, int h, const bool raised)
{
    (void)raised;
    return low_bytes(levels(words_4(part, j, h, false)));
}

INLINE vf read_scale(const struct layout l, const uint8_t *scales, int part, int side, int h)
{
    const uint8_t *at = scales + 32 + (l.low ? 32 : 0) + ((l.fine ? 2 * part + side : part) * FV_PACK_ROWS + h * W);
    vf scale = load_f16((const uint16_t *)(scales + h * 2 * W));

    if (l.parts == 1) return scale;
    return scale * to_float(l.is_signed ? load_i8((const int8_t *)at) : load_u8(at));
}

/* What is added to scaled integers. */
INLINE vf read_low(const struct layout l, const uint8_t *scales, int part, int side, int h)
{
    const uint8_t *at = scales + 64 + ((l.fine ? 16 : 8) + (l.fine ? 2 * part + side : part)) * FV_PACK_ROWS + h * W;
    vf low = load_f16((const uint16_t *)(scales + 32 + h * 2 * W));

    return l.parts == 1 ? low : -low * to_float(load_u8(at));
}

/* ---- few rows ---------------------------------------------------------------------------------------------------- */

/* Asks for what comes AHEAD of p. */
INLINE void ahead(const uint8_t *p, const int bytes)
{
    UNROLL
    for (int line = 0; line < bytes; line += 64)
        __builtin_prefetch(p + AHEAD + line);
}

/* 16 / HALVES rows of weights with M rows of activations.
 *
 * One row: integers of 4 bits and more are taken where they lie in 16 bits, up to 8 bits too high, which spares most
 * shifts; what they add up to is a whole multiple of what it is too high by, and fits 32 bits (63 x 2^8 x 32767 x 4).
 *
 * One stream of weights: two groups at once are a fifth faster in the caches, and a fifth slower from memory. */
INLINE void dot_rows(const struct layout l, words_fn *words, const int M, const struct fv_activations *x, int64_t row,
                     const uint8_t *scales, const int h, float *out, int64_t out_row)
{
    enum { SUMS = 3 };
    int64_t parts = x->columns / FV_PACK_COLUMNS;
    const int16_t *q = x->q + row * x->columns;
    const float *x_scale = x->scale + row * parts;
    const int32_t *x_sum = x->sum + row * parts * 2;
    const bool raised = M == 1 && l.raised;
    vf total[FV_DOT_ROWS];

    UNROLL
    for (int i = 0; i < M; i++)
        total[i] = splat(0);
    for (int64_t n = 0; n < parts; scales += l.scale_bytes + l.parts * l.part_bytes) {
        const uint8_t *part = scales + l.scale_bytes;
        if (h == 0) ahead(scales, l.scale_bytes);
        for (int p = 0; p < l.parts; p++, n++, part += l.part_bytes) {
            if (h == 0) ahead(part, l.part_bytes);
            vi sum[FV_DOT_ROWS][2][SUMS];
            UNROLL
            for (int i = 0; i < M; i++) {
                const int32_t *s = x_sum + (i * parts + n) * 2;
                sum[i][0][0] = splat_i(-l.offset * (l.fine ? s[0] : s[0] + s[1]));
                sum[i][1][0] = splat_i(-l.offset * s[1]);
                UNROLL
                for (int a = 1; a < SUMS; a++)
                    sum[i][0][a] = sum[i][1][a] = splat_i(0);
            }
            UNROLL
            for (int j = 0; j < PAIRS; j++) {
                vi w = words(part, j, h, raised);
                UNROLL
                for (int i = 0; i < M; i++) {
                    int32_t pair;
                    memcpy(&pair, q + i * x->columns + n * FV_PACK_COLUMNS + 2 * j, sizeof pair);
                    vi *to = &sum[i][l.fine && j >= PAIRS / 2][raised ? raised_by(j) / 4 : 0];
                    *to = multiply_add_words(*to, w, splat_i(pair));
                }
            }
            UNROLL
            for (int side = 0; side <= l.fine; side++) {
                vf scale = read_scale(l, scales, p, side, h), low = l.low ? read_low(l, scales, p, side, h) : splat(0);
                UNROLL
                for (int i = 0; i < M; i++) {
                    const int32_t *s = x_sum + (i * parts + n) * 2;
                    float x_step = x_scale[i * parts + n];
                    vi whole = sum[i][side][0];
                    if (raised) whole += (sum[i][side][1] >> 4) + (sum[i][side][2] >> 8);
                    total[i] = to_float(whole) * (scale * splat(x_step)) + total[i];
                    if (l.low) total[i] = low * splat(x_step * (float)(l.fine ? s[side] : s[0] + s[1])) + total[i];
                }
            }
        }
    }
    UNROLL
    for (int i = 0; i < M; i++)
        store(out + i * out_row + h * W, total[i]);
}

INLINE void dot_groups(const struct layout l, words_fn *words, const struct fv_activations *x, int64_t row, int rows,
                       const fv_packed *w, int64_t group, int64_t groups, float *out, int64_t out_row)
{
    for (; groups > 0; groups--, group++, out += FV_PACK_ROWS) {
        const uint8_t *scales = w->data + group * w->group_bytes;
        for (int h = 0; h < HALVES; h++)
            switch (rows) {
            case 1: dot_rows(l, words, 1, x, row, scales, h, out, out_row); break;
            case 2: dot_rows(l, words, 2, x, row, scales, h, out, out_row); break;
            case 3: dot_rows(l, words, 3, x, row, scales, h, out, out_row); break;
            default: dot_rows(l, words, 4, x, row, scales, h, out, out_row); break;
            }
    }
}

/* ---- many rows --------------------------------------------------------------------------------------------------- */

/* All columns of a group, as the micro-kernel wants b: column k of the weight becomes row k of a panel (pairs: rows 2j
 * and 2j + 1 become bf16 halves of row j).  Rows of weights lie side by side; where a group is wider than a panel, the
 * next panel begins `panel` floats on. */
INLINE void unpack_group(const struct layout l, words_fn *words, const bool pairs, const fv_packed *w, int64_t group,
                         float *out, int64_t panel)
{
    for (int h = 0; h < HALVES; h++) {
        const uint8_t *scales = w->data + group * w->group_bytes;
        float *to = out + h * W / TILE_COLUMNS * panel + h * W % TILE_COLUMNS;
        for (int64_t n = 0; n < w->columns / FV_PACK_COLUMNS; scales += l.scale_bytes + l.parts * l.part_bytes) {
            const uint8_t *part = scales + l.scale_bytes;
            for (int p = 0; p < l.parts; p++, n++, part += l.part_bytes) {
                UNROLL
                for (int side = 0; side < 2; side++) {
                    vf scale = read_scale(l, scales, p, side, h);
                    vf low = l.low ? read_low(l, scales, p, side, h) : scale * splat((float)-l.offset);
                    UNROLL
                    for (int j = side * PAIRS / 2; j < (side + 1) * PAIRS / 2; j++) {
                        vi pair = words(part, j, h, false);
                        vf even = to_float(pair << 16 >> 16) * scale + low, odd = to_float(pair >> 16) * scale + low;
                        if (pairs) {
                            store(to, bf16_pairs(even, odd));
                            to += TILE_COLUMNS;
                        } else {
                            store(to, even);
                            store(to + TILE_COLUMNS, odd);
                            to += 2 * TILE_COLUMNS;
                        }
                    }
                }
            }
        }
    }
}

#define PACKED_TYPE(type, words, ...)                                                                                  \
    static void dot_packed_##type(const struct fv_activations *x, int64_t row, int rows, const fv_packed *w,           \
                                  int64_t group, int64_t groups, float *out, int64_t out_row)                          \
    {                                                                                                                  \
        dot_groups((struct layout){__VA_ARGS__}, words, x, row, rows, w, group, groups, out, out_row);                 \
    }                                                                                                                  \
    static void unpack_##type(bool pairs, const fv_packed *w, int64_t group, float *out, int64_t panel)                \
    {                                                                                                                  \
        if (pairs)                                                                                                     \
            unpack_group((struct layout){__VA_ARGS__}, words, true, w, group, out, panel);                             \
        else                                                                                                           \
            unpack_group((struct layout){__VA_ARGS__}, words, false, w, group, out, panel);                            \
    }

PACKED_TYPE(q4_0, words_4, 256, 32, 1, 8, false, false, false, true)
PACKED_TYPE(q4_1, words_4, 256, 64, 1, 0, true, false, false, true)
PACKED_TYPE(q5_0, words_5, 320, 32, 1, 16, false, false, false, true)
PACKED_TYPE(q5_1, words_5, 320, 64, 1, 0, true, false, false, true)
PACKED_TYPE(q8_0, words_8, 512, 32, 1, 0, false, false, false, false)
PACKED_TYPE(iq4_nl, words_levels, 256, 32, 1, 0, false, false, false, false)
PACKED_TYPE(q2_k, words_2, 128, 576, 8, 0, true, true, false, false)
PACKED_TYPE(q3_k, words_3, 192, 288, 8, 4, false, true, true, false)
PACKED_TYPE(q4_k, words_4, 256, 320, 8, 0, true, false, false, true)
PACKED_TYPE(q5_k, words_5, 320, 320, 8, 0, true, false, false, true)
PACKED_TYPE(q6_k, words_6, 384, 288, 8, 32, false, true, true, true)

#define PACKED_TABLE(prefix)                                                                                           \
    {                                                                                                                  \
        [FV_Q4_0] = prefix##q4_0, [FV_Q4_1] = prefix##q4_1, [FV_Q5_0] = prefix##q5_0, [FV_Q5_1] = prefix##q5_1,        \
        [FV_Q8_0] = prefix##q8_0, [FV_IQ4_NL] = prefix##iq4_nl, [FV_Q2_K] = prefix##q2_k, [FV_Q3_K] = prefix##q3_k,    \
        [FV_Q4_K] = prefix##q4_k, [FV_Q5_K] = prefix##q5_k, [FV_Q6_K] = prefix##q6_k                                   \
    }

static fv_packed_dot_fn *const dot_packed_table[FV_DTYPE_COUNT] = PACKED_TABLE(dot_packed_);
static fv_unpack_fn *const unpack_table[FV_DTYPE_COUNT] = PACKED_TABLE(unpack_);

/* ---- activations ------------------------------------------------------------------------------------------------- */

/* One row: 32 floats become integers of up to +-32767 and a scale; NaN and infinite values make the scale
 * NaN.  What is below 1e-26 counts as 0. */
static void to_words(const float *x, int64_t columns, int16_t *q, float *scale, int32_t *sums)
{
    for (int64_t n = 0; n < columns; n += FV_PACK_COLUMNS, x += FV_PACK_COLUMNS, q += FV_PACK_COLUMNS) {
        vf high = splat(0), check = splat(0);
        UNROLL
        for (int v = 0; v < FV_PACK_COLUMNS; v += W) {
            vf value = load(x + v);
            high = vmax((vf)((vi)value & INT32_MAX), high);
            check += value * splat(0);
        }
        float step = largest(high) * (1.0f / 32767), spoilt = sum(check);
        if (spoilt != 0) { /* NaN: integers could not say so */
            memset(q, 0, FV_PACK_COLUMNS * sizeof *q);
            *sums++ = 0;
            *sums++ = 0;
            *scale++ = spoilt;
            continue;
        }
        vf inverse = splat(step > 1e-30f ? 1 / step : 0);
        UNROLL
        for (int side = 0; side < 2; side++) {
            vi words = splat_i(0);
            UNROLL
            for (int v = side * FV_PACK_COLUMNS / 2; v < (side + 1) * FV_PACK_COLUMNS / 2; v += W) {
                const vf magic = splat(12582912.0f);
                vi value = (vi)(load(x + v) * inverse + magic) - (vi)magic;
                store_i16(q + v, value);
                words += value;
            }
            *sums++ = sum_i(words);
        }
        *scale++ = step;
    }
}

void LEAF(fill_packed)(struct fv_kernels *kernels)
{
    kernels->to_words = to_words;
    kernels->dot_packed = dot_packed_table;
    kernels->unpack = unpack_table;
}
