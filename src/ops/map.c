/* Elementwise functions: checks and derivatives. */
#include <math.h>

#include "ops/accumulate.h"
#include "ops/backend.h"
#include "ops/check.h"
#include "ops/tape.h"

static bool takes_two(fv_map op, const fv_tensor *y)
{
    return (op >= FV_MAP_ADD && op < FV_MAP_MAX) || (op == FV_MAP_MAX && fv_present(y));
}

static fv_status check_map(const fv_ctx *ctx, const fv_map_args *m)
{
    unsigned types = m->op == FV_MAP_COPY ? FV_TYPES_PLAIN : FV_TYPES_FLOAT;

    if (m->op < FV_MAP_COPY || m->op > FV_MAP_SOFTCAP)
        return fv_fail(FV_E_ARGUMENT, "map: unknown operation %d", (int)m->op);
    FV_TRY(fv_check_rank("map", "out", &m->out, types, 0, FV_MAX_RANK));
    FV_TRY(fv_check_broadcast("map", "x", &m->x, types, m->out.rank, m->out.dims));
    FV_TRY(fv_check_apart(ctx, "map", &m->x, &m->out));
    if (takes_two(m->op, &m->y)) {
        FV_TRY(fv_check_broadcast("map", "y", &m->y, types, m->out.rank, m->out.dims));
        FV_TRY(fv_check_apart(ctx, "map", &m->y, &m->out));
    } else if (fv_present(&m->y)) {
        return fv_fail(FV_E_ARGUMENT, "map: y: expected none for operation %d, got shape %s", (int)m->op,
                       fv_shape_text(&m->y));
    }
    if (m->op == FV_MAP_SOFTCAP && !(m->alpha > 0))
        return fv_fail(FV_E_ARGUMENT, "map: a soft cap of %g: expected more than 0", (double)m->alpha);
    if (fv_type_in(m->out.dtype, FV_TYPES_FLOAT)) return FV_OK;
    if (m->x.dtype == m->out.dtype && (m->alpha == 0 || m->alpha == 1) && m->beta == 0) return FV_OK;
    return fv_fail(FV_E_DTYPE, "map: a copy to %s: expected the same type unchanged, got %s times %g plus %g",
                   fv_dtype_name(m->out.dtype), fv_dtype_name(m->x.dtype), (double)m->alpha, (double)m->beta);
}

/* ---- backward -------------------------------------------------------------------------------------------------- */

static double gelu_slope(double x)
{
    return 0.5 * (1 + erf(x * M_SQRT1_2)) + x * exp(-0.5 * x * x) * 0.5 * M_2_SQRTPI * M_SQRT1_2;
}

static double gelu_tanh_slope(double x)
{
    double c = M_2_SQRTPI * M_SQRT1_2, t = tanh(c * (x + 0.044715 * x * x * x));

    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
}

static double silu(double x)
{
    return x / (1 + exp(-x));
}

static double silu_slope(double x)
{
    return (1 + x * (1 - 1 / (1 + exp(-x)))) / (1 + exp(-x));
}

static double gelu_tanh(double x)
{
    return 0.5 * x * (1 + tanh(M_2_SQRTPI * M_SQRT1_2 * (x + 0.044715 * x * x * x)));
}

/* d out / d x */
static double slope_x(const fv_map_args *m, double x, double y, double out)
{
    double alpha = m->alpha, one = alpha == 0 ? 1 : alpha;

    switch (m->op) {
    case FV_MAP_COPY: return one;
    case FV_MAP_ADD:
    case FV_MAP_SUB: return 1;
    case FV_MAP_MUL: return one * y;
    case FV_MAP_DIV: return 1 / y;
    case FV_MAP_SILU_MUL: return silu_slope(x) * y;
    case FV_MAP_GELU_TANH_MUL: return gelu_tanh_slope(x) * y;
    case FV_MAP_MAX: return x >= (fv_present(&m->y) ? y : alpha);
    case FV_MAP_EXP: return x < 88 ? out : 0;
    case FV_MAP_LOG: return 1 / x;
    case FV_MAP_SQRT: return 0.5 / out;
    case FV_MAP_TANH: return 1 - out * out;
    case FV_MAP_SIGMOID: return out * (1 - out);
    case FV_MAP_SILU: return silu_slope(x);
    case FV_MAP_GELU: return gelu_slope(x);
    case FV_MAP_GELU_TANH: return gelu_tanh_slope(x);
    case FV_MAP_RELU: return x > 0;
    case FV_MAP_ELU1: return x > 0 ? 1 : out;
    case FV_MAP_SOFTPLUS: return 1 / (1 + exp(-x));
    case FV_MAP_SOFTCAP: return 1 - (out / alpha) * (out / alpha);
    }
    return 0;
}

/* d out / d y */
static double slope_y(const fv_map_args *m, double x, double y)
{
    double one = m->alpha == 0 ? 1 : m->alpha;

    switch (m->op) {
    case FV_MAP_ADD: return one;
    case FV_MAP_SUB: return -1;
    case FV_MAP_MUL: return one * x;
    case FV_MAP_DIV: return -x / (y * y);
    case FV_MAP_SILU_MUL: return silu(x);
    case FV_MAP_GELU_TANH_MUL: return gelu_tanh(x);
    case FV_MAP_MAX: return x < y;
    default: return 0;
    }
}

struct slopes {
    const fv_map_args *map; /* all of out's shape */
    fv_tensor gradient, into;
    bool second; /* with respect to y */
};

/* One row of gradient times slope. */
static void slope_row(void *user, int64_t index, int thread)
{
    const struct slopes *s = user;
    const fv_map_args *m = s->map;
    int lead = m->out.rank - 1;
    int64_t x = fv_lead_offset(&m->x, lead, index), out = fv_lead_offset(&m->out, lead, index);
    int64_t y = fv_present(&m->y) ? fv_lead_offset(&m->y, lead, index) : 0;
    int64_t from = fv_lead_offset(&s->gradient, lead, index);
    float *into = (float *)s->into.data + fv_lead_offset(&s->into, lead, index);

    (void)thread;
    for (int64_t i = 0; i < m->out.dims[lead]; i++) {
        double xi = fv_load(m->x.dtype, m->x.data, x + i * m->x.strides[lead]);
        double yi = fv_present(&m->y) ? fv_load(m->y.dtype, m->y.data, y + i * m->y.strides[lead]) : 0;
        double oi = fv_load(m->out.dtype, m->out.data, out + i * m->out.strides[lead]);
        double gi = ((const float *)s->gradient.data)[from + i * s->gradient.strides[lead]];
        into[i] = (float)(gi * (s->second ? slope_y(m, xi, yi) : slope_x(m, xi, yi, oi)));
    }
}

/* A scalar as a row of one. */
static fv_tensor as_row(const fv_tensor *t)
{
    return t->rank > 0 ? *t : fv_view(t, 1, (int64_t[]){1}, (int64_t[]){0}, 0);
}

static fv_status add_slopes(fv_ctx *ctx, const fv_map_args *map, const fv_tensor *gradient, const fv_tensor *to,
                            bool second)
{
    fv_tensor out = as_row(&map->out);
    fv_map_args m = *map;
    struct slopes s = {.map = &m, .gradient = as_row(gradient), .second = second};

    m.out = out;
    m.x = fv_broadcast(&map->x, out.rank, out.dims);
    if (fv_present(&m.y)) m.y = fv_broadcast(&map->y, out.rank, out.dims);
    FV_TRY(fv_tensor_new(ctx, &s.into, FV_F32, out.rank, out.dims));
    fv_run(ctx, fv_lead_count(&out, out.rank - 1), slope_row, &s);
    fv_add_into(ctx, to, &s.into, 1);
    return FV_OK;
}

static fv_status backward(fv_ctx *ctx, const void *args)
{
    const fv_map_args *m = args;
    fv_tensor out = fv_tape_shadow(ctx, &m->out), x = fv_tape_shadow(ctx, &m->x), y = fv_tape_shadow(ctx, &m->y);
    float one = m->alpha == 0 ? 1 : m->alpha;

    switch (m->op) { /* where the slope is a constant */
    case FV_MAP_COPY: fv_add_into(ctx, &x, &out, one); return FV_OK;
    case FV_MAP_ADD:
    case FV_MAP_SUB:
        if (fv_present(&x)) fv_add_into(ctx, &x, &out, 1);
        if (fv_present(&y)) fv_add_into(ctx, &y, &out, m->op == FV_MAP_SUB ? -1 : one);
        return FV_OK;
    default: break;
    }
    if (fv_present(&x)) FV_TRY(add_slopes(ctx, m, &out, &x, false));
    if (fv_present(&y)) FV_TRY(add_slopes(ctx, m, &out, &y, true));
    return FV_OK;
}

fv_status fv_map_apply(fv_ctx *ctx, const fv_map_args *args)
{
    fv_map_args m = *args;

    FV_TRY(check_map(ctx, args));
    m.x = fv_broadcast(&args->x, m.out.rank, m.out.dims);
    if (fv_present(&m.y)) m.y = fv_broadcast(&args->y, m.out.rank, m.out.dims);
    if ((m.op == FV_MAP_COPY || m.op == FV_MAP_ADD || m.op == FV_MAP_MUL) && m.alpha == 0) m.alpha = 1;
    if (fv_tensor_count(&m.out) > 0) FV_TRY(ctx->backend->map(ctx, &m));
    return FV_TAPE_RECORD(ctx, backward, args, 2, &args->x, &args->y, &args->out);
}

fv_status fv_fill(fv_ctx *ctx, const fv_tensor *out, float value)
{
    const fv_tensor x = {.data = &value, .dtype = FV_F32, .rank = 1, .dims = {1}, .strides = {1}};

    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = x, .out = *out});
}
