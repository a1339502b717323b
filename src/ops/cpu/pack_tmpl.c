/* Packing whole groups of weights (ops/packed.h): what fv_pack_group does, byte for byte, for the types that most
 * models are stored in.  Four rows at a time: 32 columns of a row become vectors of four dwords, which are transposed
 * with those of the other three.  Bound: the bytes read and written, and the system's work for fresh pages. */
#include "ops/cpu/leaf.h"

enum { FOUR = 4 };

typedef uint8_t bytes __attribute__((vector_size(16)));
typedef uint32_t dwords __attribute__((vector_size(16)));
typedef uint64_t qwords __attribute__((vector_size(16)));

/* Of a type: bytes of a block, parts in it, bytes of its scales packed and of a packed part; where in a block the scale
 * is, and the minimum (-1: there is none); dwords of a part behind the first four. */
struct form {
    int block_bytes, parts, scale_bytes, part_bytes, scale, least, further;
    bool fifth; /* the fifth dword has bits in the order of columns */
};

/* The packed dwords of a row's part; integer scales of a row's block, which go to to[0], to[FV_PACK_ROWS], ... */
typedef void part_fn(const uint8_t *block, int part, dwords to[2]);
typedef void scales_fn(const uint8_t *block, uint8_t *to);

INLINE bytes sixteen(const uint8_t *p)
{
    bytes x;

    memcpy(&x, p, sizeof x);
    return x;
}

/* ---- parts ------------------------------------------------------------------------------------------------------- */

/* 4 bits of columns 0 to 15 and 16 to 31.  A dword's bytes 0 and 1 take in bytes 2 and 3. */
INLINE dwords nibbles(bytes a, bytes b)
{
    a = (bytes)((dwords)a | (dwords)a >> 12);
    b = (bytes)((dwords)b | (dwords)b >> 12);
    return (dwords)__builtin_shufflevector(a, b, 0, 4, 1, 5, 8, 12, 9, 13, 16, 20, 17, 21, 24, 28, 25, 29);
}

/* 2 bits of the same columns, in the first two dwords.  Bytes 0 and 1 take in a qword's other bytes. */
INLINE dwords twos(bytes a, bytes b)
{
    a = (bytes)((dwords)a | (dwords)a >> 14);
    b = (bytes)((dwords)b | (dwords)b >> 14);
    a = (bytes)((qwords)a | (qwords)a >> 28);
    b = (bytes)((qwords)b | (qwords)b >> 28);
    return (dwords)__builtin_shufflevector(a, b, 0, 8, 1, 9, 16, 24, 17, 25, 0, 8, 1, 9, 16, 24, 17, 25);
}

INLINE dwords whole(bytes x)
{
    return (dwords)__builtin_shufflevector(x, x, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15);
}

INLINE dwords nibbles_at(const uint8_t *p)
{
    bytes q = sixteen(p);

    return nibbles(q & 15, q >> 4);
}

INLINE void part_4_0(const uint8_t *block, int part, dwords to[2])
{
    (void)part;
    to[0] = nibbles_at(block + 2);
}

INLINE void part_4_1(const uint8_t *block, int part, dwords to[2])
{
    (void)part;
    to[0] = nibbles_at(block + 4);
}

INLINE void part_5(const uint8_t *fifths, dwords to[2])
{
    uint32_t bits;

    memcpy(&bits, fifths, sizeof bits);
    to[0] = nibbles_at(fifths + 4);
    to[1] = (dwords){bits};
}

INLINE void part_5_0(const uint8_t *block, int part, dwords to[2])
{
    (void)part;
    part_5(block + 2, to);
}

INLINE void part_5_1(const uint8_t *block, int part, dwords to[2])
{
    (void)part;
    part_5(block + 4, to);
}

INLINE void part_8_0(const uint8_t *block, int part, dwords to[2])
{
    (void)part;
    to[0] = whole(sixteen(block + 2));
    to[1] = whole(sixteen(block + 18));
}

INLINE void part_4_k(const uint8_t *block, int part, dwords to[2])
{
    const uint8_t *q = block + 16 + part / 2 * 32;
    bytes a = sixteen(q), b = sixteen(q + 16);

    to[0] = part % 2 ? nibbles(a >> 4, b >> 4) : nibbles(a & 15, b & 15);
}

INLINE void part_6_k(const uint8_t *block, int part, dwords to[2])
{
    const uint8_t *low = block + part / 4 * 64 + part % 2 * 32, *high = block + 128 + part / 4 * 32;
    bytes a = sixteen(low), b = sixteen(low + 16), c = sixteen(high), d = sixteen(high + 16);
    int place = part % 4 * 2;

    to[0] = part % 4 / 2 ? nibbles(a >> 4, b >> 4) : nibbles(a & 15, b & 15);
    to[1] = twos(c >> place & 3, d >> place & 3);
}

/* Bits in the order of columns become even ones in the low half, odd ones in the high half: halves of 4 bits change
 * their middle bits, of 8 their middle pairs, ... */
INLINE dwords even_and_odd(dwords x)
{
    const uint32_t middle[] = {0x22222222, 0x0c0c0c0c, 0x00f000f0, 0x0000ff00};

    UNROLL
    for (int i = 0; i < 4; i++) {
        dwords change = (x ^ x >> (1 << i)) & middle[i];
        x ^= change ^ change << (1 << i);
    }
    return x;
}

/* ---- scales ------------------------------------------------------------------------------------------------------ */

INLINE void no_scales(const uint8_t *block, uint8_t *to)
{
    (void)block;
    (void)to;
}

/* Eight scales and minima of 6 bits in 12 bytes: four of either in a dword. */
INLINE void scales_4_k(const uint8_t *block, uint8_t *to)
{
    const uint32_t low_4 = 0x0f0f0f0f, low_6 = 0x3f3f3f3f, top_2 = 0x30303030;
    uint32_t x[3];

    memcpy(x, block + 4, sizeof x);
    const uint32_t four[] = {x[0] & low_6, (x[2] & low_4) | (x[0] >> 2 & top_2), x[1] & low_6,
                             (x[2] >> 4 & low_4) | (x[1] >> 2 & top_2)};
    UNROLL
    for (int i = 0; i < 16; i++)
        to[i * FV_PACK_ROWS] = (uint8_t)(four[i / 4] >> (i % 4 * 8));
}

INLINE void scales_6_k(const uint8_t *block, uint8_t *to)
{
    UNROLL
    for (int i = 0; i < 16; i++)
        to[i * FV_PACK_ROWS] = block[192 + i];
}

/* ---- groups ------------------------------------------------------------------------------------------------------ */

/* Dword v of four rows goes to vector v. */
INLINE void put_four(dwords a, dwords b, dwords c, dwords d, const int vectors, const bool fifth, uint8_t *to)
{
    dwords ab[2] = {__builtin_shufflevector(a, b, 0, 4, 1, 5), __builtin_shufflevector(a, b, 2, 6, 3, 7)};
    dwords cd[2] = {__builtin_shufflevector(c, d, 0, 4, 1, 5), __builtin_shufflevector(c, d, 2, 6, 3, 7)};

    UNROLL
    for (int v = 0; v < vectors; v++) {
        dwords x = v % 2 ? __builtin_shufflevector(ab[v / 2], cd[v / 2], 2, 3, 6, 7)
                         : __builtin_shufflevector(ab[v / 2], cd[v / 2], 0, 1, 4, 5);
        if (fifth) x = even_and_odd(x);
        memcpy(to + v * 64, &x, sizeof x);
    }
}

INLINE void pack_group(const struct form f, part_fn *part, scales_fn *scales, const uint8_t *rows, int64_t row_bytes,
                       int64_t columns, uint8_t *to)
{
    int64_t blocks = columns / FV_PACK_COLUMNS / f.parts;

    for (int r = 0; r < FV_PACK_ROWS; r += FOUR, rows += FOUR * row_bytes) {
        const uint8_t *block = rows;
        uint8_t *out = to;
        for (int64_t n = 0; n < blocks; n++, block += f.block_bytes) {
            for (int i = 0; i < FOUR; i++) {
                const uint8_t *own = block + i * row_bytes;
                memcpy(out + (r + i) * 2, own + f.scale, 2);
                if (f.least >= 0) memcpy(out + 2 * FV_PACK_ROWS + (r + i) * 2, own + f.least, 2);
                scales(own, out + (f.least >= 0 ? 4 : 2) * FV_PACK_ROWS + r + i);
            }
            out += f.scale_bytes;
            UNROLL
            for (int p = 0; p < f.parts; p++, out += f.part_bytes) {
                dwords x[FOUR][2];
                UNROLL
                for (int i = 0; i < FOUR; i++)
                    part(block + i * row_bytes, p, x[i]);
                put_four(x[0][0], x[1][0], x[2][0], x[3][0], 4, false, out + r * 4);
                if (f.further) put_four(x[0][1], x[1][1], x[2][1], x[3][1], f.further, f.fifth, out + 4 * 64 + r * 4);
            }
        }
    }
}

#define PACKED_TYPE(type, part, scales, ...)                                                                           \
    INLINE void pack_##type(const uint8_t *rows, int64_t row_bytes, int64_t columns, uint8_t *to)                      \
    {                                                                                                                  \
        pack_group((struct form){__VA_ARGS__}, part, scales, rows, row_bytes, columns, to);                            \
    }

PACKED_TYPE(q4_0, part_4_0, no_scales, 18, 1, 32, 256, 0, -1, 0, false)
PACKED_TYPE(q4_1, part_4_1, no_scales, 20, 1, 64, 256, 0, 2, 0, false)
PACKED_TYPE(q5_0, part_5_0, no_scales, 22, 1, 32, 320, 0, -1, 1, true)
PACKED_TYPE(q5_1, part_5_1, no_scales, 24, 1, 64, 320, 0, 2, 1, true)
PACKED_TYPE(q8_0, part_8_0, no_scales, 34, 1, 32, 512, 0, -1, 4, false)
PACKED_TYPE(q4_k, part_4_k, scales_4_k, 144, 8, 320, 256, 0, 2, 0, false)
PACKED_TYPE(q6_k, part_6_k, scales_6_k, 210, 8, 288, 384, 208, -1, 2, false)

static fv_pack_fn *const table[FV_DTYPE_COUNT] = {
    [FV_Q4_0] = pack_q4_0, [FV_Q4_1] = pack_q4_1, [FV_Q5_0] = pack_q5_0, [FV_Q5_1] = pack_q5_1,
    [FV_Q8_0] = pack_q8_0, [FV_Q4_K] = pack_q4_k, [FV_Q6_K] = pack_q6_k, [FV_IQ4_NL] = pack_q4_0,
};

void LEAF(fill_pack)(struct fv_kernels *kernels)
{
    kernels->pack = table;
}
