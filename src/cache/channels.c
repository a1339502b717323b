#include "cache/channels.h"

#include <math.h>

/* q - zero must be a float without rounding: values that hardly differ get a wider scale, of one part in 2^23. */
static const double least_scale = 0x1p-23;

static void range(const float *x, int64_t count, int64_t stride, double *low, double *high)
{
    *low = *high = (double)x[0];
    for (int64_t i = 0; i < count; i++) {
        double value = (double)x[i * stride];
        if (!isfinite(value)) *low = *high = NAN;
        if (value < *low) *low = value;
        if (value > *high) *high = value;
    }
}

/* To the nearest whole number, halves away from 0, of what is far from the largest. */
static int32_t nearest(double x)
{
    return (int32_t)(x < 0 ? x - 0.5 : x + 0.5);
}

/* Rounded up, so that the range is no more than 255 scales. */
static float scale_of(double low, double high)
{
    double exact = fmax((high - low) / 255, fmax(fabs(low), fabs(high)) * least_scale);
    float scale = (float)exact;

    return (double)scale < exact ? nextafterf(scale, INFINITY) : scale;
}

static void pack_channel(const float *x, int64_t count, int64_t stride, float *scale, int32_t *zero, uint8_t *q)
{
    double low, high;

    range(x, count, stride, &low, &high);
    if (!(high > low)) { /* a constant is one times itself */
        *scale = (float)low;
        *zero = 0;
        for (int64_t i = 0; i < count; i++)
            q[i * stride] = 1;
        return;
    }
    *scale = scale_of(low, high);
    *zero = nearest(-low / (double)*scale);
    for (int64_t i = 0; i < count; i++) {
        int32_t code = nearest((double)x[i * stride] / (double)*scale) + *zero;
        q[i * stride] = (uint8_t)(code < 0 ? 0 : code > 255 ? 255 : code);
    }
}

void fv_channels_pack(const float *rows, int64_t count, int64_t channels, float *scale, int32_t *zero, uint8_t *q)
{
    for (int64_t c = 0; c < channels; c++)
        pack_channel(rows + c, count, channels, scale + c, zero + c, q + c);
}

void fv_channels_unpack(const uint8_t *q, const float *scale, const int32_t *zero, int64_t channels, float *out)
{
    for (int64_t c = 0; c < channels; c++)
        out[c] = scale[c] * (float)(q[c] - zero[c]);
}
