#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
}

static double apply(const fv_map_args *m, double x, double y)
{
    double alpha = m->alpha;

    switch (m->op) {
    case FV_MAP_COPY: return alpha * x + m->beta;
    case FV_MAP_ADD: return x + alpha * y;
    case FV_MAP_SUB: return x - y;
    case FV_MAP_MUL: return alpha * x * y;
    case FV_MAP_DIV: return x / y;
    case FV_MAP_SILU_MUL: return silu(x) * y;
    case FV_MAP_GELU_TANH_MUL: return gelu_tanh(x) * y;
    case FV_MAP_MAX: return x >= y || isnan(x) ? x : y;
    case FV_MAP_EXP: return exp(x < 88 || isnan(x) ? x : 88);
    case FV_MAP_LOG: return log(x);
    case FV_MAP_SQRT: return sqrt(x);
    case FV_MAP_TANH: return tanh(x);
    case FV_MAP_SIGMOID: return 1 / (1 + exp(-x));
    case FV_MAP_SILU: return silu(x);
    case FV_MAP_GELU: return 0.5 * x * (1 + erf(x * M_SQRT1_2));
    case FV_MAP_GELU_TANH: return gelu_tanh(x);
    case FV_MAP_RELU: return x > 0 || isnan(x) ? x : 0;
    case FV_MAP_ELU1: return x > 0 ? x + 1 : exp(x);
    case FV_MAP_SOFTPLUS: return (x > 0 ? x : 0) + log1p(exp(-fabs(x)));
    case FV_MAP_SOFTCAP: return alpha * tanh(x / alpha);
    }
    return 0;
}

static void map_row(void *user, int64_t index, int thread)
{
    const fv_map_args *m = user;
    int lead = fv_max(m->out.rank, 1) - 1;
    int64_t count = m->out.rank ? m->out.dims[lead] : 1;
    int64_t x = fv_lead_offset(&m->x, lead, index), out = fv_lead_offset(&m->out, lead, index);
    int64_t y = fv_present(&m->y) ? fv_lead_offset(&m->y, lead, index) : 0;

    (void)thread;
    for (int64_t i = 0; i < count; i++) {
        double xi = fv_load(m->x.dtype, m->x.data, x + i * m->x.strides[lead]), yi = m->alpha;
        if (fv_present(&m->y)) yi = fv_load(m->y.dtype, m->y.data, y + i * m->y.strides[lead]);
        fv_store(m->out.dtype, m->out.data, out + i * m->out.strides[lead], apply(m, xi, yi));
    }
}

/* Bytes as they are: every value of every type arrives. */
static void copy_row(void *user, int64_t index, int thread)
{
    const fv_map_args *m = user;
    int lead = fv_max(m->out.rank, 1) - 1;
    int64_t count = m->out.rank ? m->out.dims[lead] : 1;
    size_t size = fv_dtype_size(m->x.dtype);
    const char *x = (const char *)m->x.data + fv_lead_offset(&m->x, lead, index) * (int64_t)size;
    char *out = (char *)m->out.data + fv_lead_offset(&m->out, lead, index) * (int64_t)size;

    (void)thread;
    if (count == 1 || (m->x.strides[lead] == 1 && m->out.strides[lead] == 1)) {
        memmove(out, x, (size_t)count * size);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        memcpy(out + i * m->out.strides[lead] * (int64_t)size, x + i * m->x.strides[lead] * (int64_t)size, size);
}

fv_status fv_ref_map(fv_ctx *ctx, const fv_map_args *args)
{
    bool copies = args->op == FV_MAP_COPY && args->alpha == 1 && args->beta == 0 && args->x.dtype == args->out.dtype;
    fv_map_args m = *args;

    fv_run(ctx, fv_lead_count(&m.out, (int)fv_max(m.out.rank, 1) - 1), copies ? copy_row : map_row, &m);
    return FV_OK;
}
