/* What every template of kernels (*_tmpl.c) begins with.  A template is compiled once per instruction set, with FV_ISA
 * (a name: c, avx2, ...) and FV_VECTOR (the header of its vectors) defined; it exports one function LEAF(fill_...) that
 * puts its kernels into the table. */
#ifndef FV_LEAF_H
#define FV_LEAF_H

#include "ops/cpu/kernels.h"

#include FV_VECTOR

#define TILE_COLUMNS (TILE_VECTORS * W)

#define LEAF_OF(isa, name) fv_##isa##_##name
#define LEAF_IN(isa, name) LEAF_OF(isa, name)
#define LEAF(name) LEAF_IN(FV_ISA, name)

void LEAF(fill)(struct fv_kernels *kernels);
void LEAF(fill_tile)(struct fv_kernels *kernels);
void LEAF(fill_blocks)(struct fv_kernels *kernels);
void LEAF(fill_packed)(struct fv_kernels *kernels);
void LEAF(fill_pack)(struct fv_kernels *kernels);
void LEAF(fill_math)(struct fv_kernels *kernels);
void LEAF(fill_rows)(struct fv_kernels *kernels);
void LEAF(fill_select)(struct fv_kernels *kernels);
void LEAF(fill_match)(struct fv_kernels *kernels);
void LEAF(fill_attend)(struct fv_kernels *kernels);
void LEAF(fill_few)(struct fv_kernels *kernels);
void LEAF(fill_few_short)(struct fv_kernels *kernels);
void LEAF(fill_scan)(struct fv_kernels *kernels);
void LEAF(fill_weights)(struct fv_kernels *kernels);

INLINE vf load_bf16(const uint16_t *p)
{
    return (vf)(load_u16(p) << 16);
}

/* bf16 of a in the low halves of dwords, of b in the high ones: to nearest, ties away from zero. */
INLINE vf bf16_pairs(vf a, vf b)
{
    const uint32_t top = 0xffff0000u;

    return (vf)((((vi)a + 0x8000) >> 16 & 0xffff) | (((vi)b + 0x8000) & (int32_t)top));
}

INLINE float half(const void *p)
{
    uint16_t bits;
    memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#else
    return fv_f16_to_f32(bits);
#endif
}

INLINE vf to_float(vi x)
{
    return __builtin_convertvector(x, vf);
}

#ifndef EXP2_PARTS
INLINE vf vmin(vf a, vf b)
{
    return -vmax(-a, -b);
}

/* count < W floats */
INLINE void copy_part(float *to, const float *from, int count)
{
    for (int n = 0; n < count; n++)
        to[n] = from[n];
}

/* Lanes whose bit, from bit `from` on, is set; -inf elsewhere. */
INLINE vf keep_seen(vf x, uint64_t bits, int from)
{
    vi lane;

    UNROLL
    for (int i = 0; i < W; i++)
        lane[i] = i;
    return choose(-((splat_i((int32_t)(bits >> from)) >> lane) & 1), x, splat(-INFINITY));
}

/* floor(t), at least -127, for t < 2^31 */
INLINE vi exp2_whole(vf t)
{
    vf bounded = vmax(splat(-127), t);
    vi whole = __builtin_convertvector(bounded, vi);

    return whole + (to_float(whole) > bounded);
}

INLINE vf exp2_fraction(vf t)
{
    return vmax(splat(-127), t) - to_float(exp2_whole(t));
}

/* p 2^floor(t), 0 where t <= -127 */
INLINE vf exp2_scale(vf p, vf t)
{
    return p * (vf)((exp2_whole(t) + 127) << 23);
}
#endif

/* exp(x): at most exp(88), below exp(-87.3) it is 0; NaN stays.  Degree-6 polynomial on |r| <= ln2 / 2 after Cody-Waite
 * reduction: within 2^-22 of itself (measured 1.2 2^-23 with fused multiply-adds). */
INLINE vf vexp(vf x)
{
    const vf magic = splat(12582912.0f);
    vi small = x<splat(-87.3f), large = x> splat(88.0f);
    vf clamped = choose(large, splat(88.0f), choose(small, splat(-87.0f), x));
    vf shifted = clamped * splat(1.44269504f) + magic, n = shifted - magic;
    vf r = clamped - n * splat(0.693359375f);
    r = r - n * splat(-2.12194440e-4f);
    vf p = splat(1.3981999e-3f);
    p = p * r + splat(8.3334519e-3f);
    p = p * r + splat(4.1665796e-2f);
    p = p * r + splat(1.6666666e-1f);
    p = p * r + splat(0.5f);
    p = (p * r) * r + r + splat(1.0f);
    vi exponent = ((vi)shifted - (vi)magic + 127) << 23;
    return (vf)(~small & (vi)(p * (vf)exponent));
}

#define LOG2E 1.44269504f

/* 2^t for t <= 127: polynomial on the fraction, exponent by the whole part; 0 below -127 (or nearly: denormal numbers),
 * NaN stays.  Minimax for the relative error on [0, 1): degree 5 within 7.5e-8, with rounding 2 ulp; degree 3 within
 * 7.5e-5, a 52nd of the half ulp (up to 2^-8) that weights lose when they become bf16. */
INLINE vf exp2_of(vf t, const bool coarse)
{
    vf f = exp2_fraction(t), p;

    if (coarse) {
        p = splat(7.80245227e-2f);
        p = p * f + splat(2.26067155e-1f);
        p = p * f + splat(6.95833541e-1f);
        p = p * f + splat(9.99925219e-1f);
    } else {
        p = splat(1.87757667e-3f);
        p = p * f + splat(8.98934009e-3f);
        p = p * f + splat(5.58263181e-2f);
        p = p * f + splat(2.40153617e-1f);
        p = p * f + splat(6.93153073e-1f);
        p = p * f + splat(9.99999925e-1f);
    }
    return exp2_scale(p, t);
}

#endif
