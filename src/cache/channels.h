/* Rows in 8 bits by channel (arXiv 2403.17312): over the rows of a block, channel c is the affine code
 *   x = scale (q - zero),  scale = (max - min) / 255,  zero = round(-min / scale),  q = clamp(round(x / scale) + zero),
 * so no element is off by more than scale / 2.  A channel that is constant is exact; one with a value that is not
 * finite is not a number in all rows of its block, and its neighbours know nothing of it. */
#ifndef FV_CHANNELS_H
#define FV_CHANNELS_H

#include <stdint.h>

/* rows [count, channels] to q of the same shape; scale and zero [channels]. */
void fv_channels_pack(const float *rows, int64_t count, int64_t channels, float *scale, int32_t *zero, uint8_t *q);
/* One row: q, scale, zero and out [channels]. */
void fv_channels_unpack(const uint8_t *q, const float *scale, const int32_t *zero, int64_t channels, float *out);

#endif
