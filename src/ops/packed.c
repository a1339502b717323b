#include "ops/packed.h"

#include <string.h>

#include "base/size.h"

/* What a block of a row holds: its integers and its scales, as they are stored. */
struct block {
    uint8_t q[256];
    uint16_t scale, least; /* half precision */
    uint8_t scales[16], lows[16];
};

typedef void read_fn(const uint8_t *bytes, struct block *block);

struct format {
    read_fn *read;
    int parts;     /* of 32 columns in a block */
    int main_bits; /* 2, 4 or 8 */
    int high_bits; /* of the plane behind them: 0, 1 or 2 */
    int least;     /* halves have a minimum beside the scale */
    int scales;    /* bytes of integer scales of a row; none with one part */
    int lows;      /* the same of minima */
};

/* ---- reading blocks (ops/blocks.c says how they lie) --------------------------------------------------------------
 */

static uint16_t half_bits(const uint8_t *p)
{
    uint16_t bits;

    memcpy(&bits, p, sizeof bits);
    return bits;
}

static void split_nibbles(const uint8_t *from, uint8_t *q, int count)
{
    for (int j = 0; j < count; j++) {
        q[j] = from[j] & 15;
        q[j + count] = from[j] >> 4;
    }
}

/* Bit j of four bytes is the fifth bit of value j.  A byte's bits are spread over the bytes of a word: copies of it,
 * of which byte j keeps bit j, and becomes 1 by a carry into its top bit. */
static void add_fifth(const uint8_t *from, uint8_t *q)
{
    for (int byte = 0; byte < 4; byte++) {
        uint64_t bits = from[byte] * UINT64_C(0x0101010101010101) & UINT64_C(0x8040201008040201), x;
        bits = (bits + UINT64_C(0x7f7f7f7f7f7f7f7f)) >> 7 & UINT64_C(0x0101010101010101);
        memcpy(&x, q + byte * 8, sizeof x);
        x |= bits << 4;
        memcpy(q + byte * 8, &x, sizeof x);
    }
}

static void read_q4_0(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    split_nibbles(bytes + 2, b->q, 16);
}

static void read_q4_1(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    b->least = half_bits(bytes + 2);
    split_nibbles(bytes + 4, b->q, 16);
}

static void read_q5_0(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    split_nibbles(bytes + 6, b->q, 16);
    add_fifth(bytes + 2, b->q);
}

static void read_q5_1(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    b->least = half_bits(bytes + 2);
    split_nibbles(bytes + 8, b->q, 16);
    add_fifth(bytes + 4, b->q);
}

static void read_q8_0(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    memcpy(b->q, bytes + 2, 32);
}

/* Eight scales and minima of 6 bits in 12 bytes. */
static void read_six_bits(const uint8_t *from, struct block *b)
{
    for (int j = 0; j < 4; j++) {
        b->scales[j] = from[j] & 63;
        b->lows[j] = from[j + 4] & 63;
        b->scales[j + 4] = (uint8_t)((from[j + 8] & 15) | from[j] >> 6 << 4);
        b->lows[j + 4] = (uint8_t)(from[j + 8] >> 4 | from[j + 4] >> 6 << 4);
    }
}

static void read_q4_k(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    b->least = half_bits(bytes + 2);
    read_six_bits(bytes + 4, b);
    for (int pair = 0; pair < 4; pair++)
        split_nibbles(bytes + 16 + pair * 32, b->q + pair * 64, 32);
}

static void read_q5_k(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes);
    b->least = half_bits(bytes + 2);
    read_six_bits(bytes + 4, b);
    for (int pair = 0; pair < 4; pair++)
        split_nibbles(bytes + 48 + pair * 32, b->q + pair * 64, 32);
    for (int part = 0; part < 8; part++)
        for (int j = 0; j < 32; j++)
            b->q[part * 32 + j] |= (uint8_t)((bytes[16 + j] >> part & 1) << 4);
}

static void read_q6_k(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes + 208);
    memcpy(b->scales, bytes + 192, 16);
    for (int half = 0; half < 2; half++) {
        uint8_t *q = b->q + half * 128;
        split_nibbles(bytes + half * 64, q, 64);
        for (int run = 0; run < 4; run++)
            for (int j = 0; j < 32; j++)
                q[run * 32 + j] |= (uint8_t)((bytes[128 + half * 32 + j] >> (2 * run) & 3) << 4);
    }
}

static void two_bits(const uint8_t *from, uint8_t *q)
{
    for (int part = 0; part < 8; part++)
        for (int j = 0; j < 32; j++)
            q[part * 32 + j] = from[part / 4 * 32 + j] >> (part % 4 * 2) & 3;
}

static void read_q2_k(const uint8_t *bytes, struct block *b)
{
    b->scale = half_bits(bytes + 80);
    b->least = half_bits(bytes + 82);
    for (int j = 0; j < 16; j++) {
        b->scales[j] = bytes[j] & 15;
        b->lows[j] = bytes[j] >> 4;
    }
    two_bits(bytes + 16, b->q);
}

static void read_q3_k(const uint8_t *bytes, struct block *b)
{
    const uint8_t *scales = bytes + 96;

    b->scale = half_bits(bytes + 108);
    for (int j = 0; j < 16; j++) {
        int low = j < 8 ? scales[j] & 15 : scales[j - 8] >> 4, high = scales[8 + j % 4] >> (2 * (j / 4)) & 3;
        b->scales[j] = (uint8_t)((low | high << 4) - 32);
    }
    two_bits(bytes + 32, b->q);
    for (int part = 0; part < 8; part++)
        for (int j = 0; j < 32; j++)
            b->q[part * 32 + j] |= (uint8_t)((bytes[j] >> part & 1) << 2);
}

static const struct format formats[FV_DTYPE_COUNT] = {
    [FV_Q4_0] = {read_q4_0, 1, 4, 0, 0, 0, 0},   [FV_Q4_1] = {read_q4_1, 1, 4, 0, 1, 0, 0},
    [FV_Q5_0] = {read_q5_0, 1, 4, 1, 0, 0, 0},   [FV_Q5_1] = {read_q5_1, 1, 4, 1, 1, 0, 0},
    [FV_Q8_0] = {read_q8_0, 1, 8, 0, 0, 0, 0},   [FV_IQ4_NL] = {read_q4_0, 1, 4, 0, 0, 0, 0},
    [FV_Q2_K] = {read_q2_k, 8, 2, 0, 1, 16, 16}, [FV_Q3_K] = {read_q3_k, 8, 2, 1, 0, 16, 0},
    [FV_Q4_K] = {read_q4_k, 8, 4, 0, 1, 8, 8},   [FV_Q5_K] = {read_q5_k, 8, 4, 1, 1, 8, 8},
    [FV_Q6_K] = {read_q6_k, 8, 4, 2, 0, 16, 0},
};

/* ---- writing parts ------------------------------------------------------------------------------------------------
 */

static uint64_t eight(const uint8_t *q)
{
    uint64_t x;

    memcpy(&x, q, sizeof x);
    return x;
}

/* Bytes 0, 2, 4, 6 of x, of `bits` bits each, side by side. */
static uint32_t gather_even(uint64_t x, int bits)
{
    x |= x >> (16 - bits);
    x = (x & 0xffff) | (x >> 32 & 0xffff) << 32;
    x &= ((UINT64_C(1) << (2 * bits)) - 1) * UINT64_C(0x100000001);
    return (uint32_t)(x | x >> (32 - 2 * bits));
}

/* The `bits` bits from `from` on of the values of 8 columns: even ones in the low half, odd ones in the high half. */
static uint32_t halves(const uint8_t *q, int from, int bits)
{
    uint64_t x = eight(q) >> from, mask = ((UINT64_C(1) << bits) - 1) * UINT64_C(0x0001000100010001);

    return gather_even(x & mask, bits) | gather_even(x >> 8 & mask, bits) << 16;
}

static void store_row(uint8_t *to, int vector, int64_t row, uint32_t value)
{
    memcpy(to + vector * 64 + row * 4, &value, sizeof value);
}

/* A plane of `bits` bits from `from` on: 16 / bits pairs of columns in a dword. */
static uint8_t *write_plane(const uint8_t *q, int from, int bits, int64_t row, uint8_t *to)
{
    int eighths = 4 / bits; /* groups of 8 columns in a dword */

    for (int vector = 0; vector < bits; vector++) {
        uint32_t value = 0;
        for (int e = 0; e < eighths; e++)
            value |= halves(q + (vector * eighths + e) * 8, from, bits) << (4 * bits * e);
        store_row(to, vector, row, value);
    }
    return to + bits * 64;
}

static void write_part(const struct format *f, const uint8_t *q, int64_t row, uint8_t *to)
{
    if (f->main_bits == 8) {
        for (int vector = 0; vector < 8; vector++, q += 4) {
            uint32_t four;
            memcpy(&four, q, sizeof four);
            four = (four & 0xff0000ff) | (four >> 8 & 0xff00) | (four << 8 & 0xff0000);
            store_row(to, vector, row, four);
        }
        return;
    }
    to = write_plane(q, 0, f->main_bits, row, to);
    if (f->high_bits) write_plane(q, f->main_bits, f->high_bits, row, to);
}

static void write_scales(const struct format *f, const struct block *b, int64_t row, uint8_t *to)
{
    memcpy(to + row * 2, &b->scale, 2);
    to += 2 * FV_PACK_ROWS;
    if (f->least) memcpy(to + row * 2, &b->least, 2);
    if (f->least) to += 2 * FV_PACK_ROWS;
    for (int i = 0; i < f->scales; i++, to += FV_PACK_ROWS)
        to[row] = b->scales[i];
    for (int i = 0; i < f->lows; i++, to += FV_PACK_ROWS)
        to[row] = b->lows[i];
}

/* ------------------------------------------------------------------------------------------------------------------ */

bool fv_packed_format(fv_dtype dtype, int64_t *part_bytes, int64_t *scale_bytes, int64_t *parts)
{
    const struct format *f = &formats[dtype];

    *part_bytes = 64 * (f->main_bits + f->high_bits);
    *scale_bytes = FV_PACK_ROWS * (2 + 2 * f->least + f->scales + f->lows);
    *parts = f->parts;
    return f->read != NULL;
}

fv_packed fv_packed_at(const fv_tensor *weight, const void *data)
{
    fv_packed p = {.dtype = weight->dtype, .rows = weight->dims[0], .columns = weight->dims[1], .data = data};
    int64_t part_bytes, scale_bytes, parts;

    if (!fv_packed_format(p.dtype, &part_bytes, &scale_bytes, &parts)) return (fv_packed){0};
    p.group_bytes = fv_round_up(p.columns / FV_PACK_COLUMNS / parts * (scale_bytes + parts * part_bytes), 64);
    return p;
}

size_t fv_packed_bytes(const fv_tensor *weight)
{
    int64_t part_bytes, scale_bytes, parts;

    if (weight->rank != 2 || weight->dims[1] == 0 || weight->strides[1] != 1 ||
        !fv_packed_format(weight->dtype, &part_bytes, &scale_bytes, &parts))
        return 0;
    fv_packed p = fv_packed_at(weight, NULL);
    return (size_t)(fv_packed_groups(&p) * p.group_bytes);
}

void fv_pack_group(const fv_tensor *weight, const fv_packed *packed, int64_t group)
{
    const struct format *f = &formats[packed->dtype];
    int64_t part_bytes, scale_bytes, parts, block_bytes = (int64_t)fv_dtype_block_bytes(packed->dtype);
    int64_t blocks = packed->columns / fv_dtype_block(packed->dtype);
    int64_t row_bytes = weight->strides[0] / fv_dtype_block(packed->dtype) * block_bytes;
    uint8_t *to = (uint8_t *)(uintptr_t)packed->data + group * packed->group_bytes;
    int64_t rows = fv_min(FV_PACK_ROWS, packed->rows - group * FV_PACK_ROWS);
    struct block b;

    (void)fv_packed_format(packed->dtype, &part_bytes, &scale_bytes, &parts);
    if (rows < FV_PACK_ROWS) memset(to, 0, (size_t)packed->group_bytes);
    for (int64_t r = 0; r < rows; r++) {
        const uint8_t *from = (const uint8_t *)weight->data + (group * FV_PACK_ROWS + r) * row_bytes;
        uint8_t *block = to;
        for (int64_t n = 0; n < blocks; n++, from += block_bytes, block += scale_bytes + parts * part_bytes) {
            f->read(from, &b);
            write_scales(f, &b, r, block);
            for (int64_t p = 0; p < parts; p++)
                write_part(f, b.q + p * 32, r, block + scale_bytes + p * part_bytes);
        }
    }
}
