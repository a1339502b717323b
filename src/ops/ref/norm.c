#include <math.h>

#include "ops/check.h"
#include "ops/ref/ref.h"

static float *row_at(const fv_tensor *t, int64_t row)
{
    return fv_present(t) ? (float *)t->data + fv_lead_offset(t, t->rank - 1, row) : NULL;
}

/* What is normalised: x, or its sum with a part that is normalised itself or not, as it is stored. */
struct row {
    const fv_norm_args *norm;
    const float *x, *add;
    double add_scale;
};

static double element(const struct row *r, int64_t i)
{
    const fv_norm_args *n = r->norm;
    int last = n->x.rank - 1;
    double add, x = r->x[i * n->x.strides[last]];

    if (!r->add) return x;
    add = r->add[i * n->add.strides[last]] * r->add_scale;
    if (fv_present(&n->add_weight))
        add *= fv_load(n->add_weight.dtype, n->add_weight.data, i * n->add_weight.strides[0]);
    return (float)(x + add);
}

static void norm_row(void *user, int64_t index, int thread)
{
    const fv_norm_args *n = user;
    int last = n->x.rank - 1;
    int64_t count = n->x.dims[last];
    float *out = row_at(&n->out, index), *sum = row_at(&n->sum, index);
    struct row row = {n, row_at(&n->x, index), row_at(&n->add, index), 1};
    double mean = 0, square = 0;

    (void)thread;
    if (fv_present(&n->add_weight)) {
        for (int64_t i = 0; i < count; i++)
            square += pow(row.add[i * n->add.strides[last]], 2);
        row.add_scale = 1 / sqrt(square / (double)count + n->epsilon);
        square = 0;
    }
    for (int64_t i = 0; n->layer && i < count; i++)
        mean += element(&row, i) / (double)count;
    for (int64_t i = 0; i < count; i++)
        square += (element(&row, i) - mean) * (element(&row, i) - mean);
    double inverse = 1 / sqrt(square / (double)count + n->epsilon);
    for (int64_t i = 0; i < count; i++) {
        double x = element(&row, i), value = (x - mean) * inverse;
        if (fv_present(&n->weight)) value *= fv_load(n->weight.dtype, n->weight.data, i * n->weight.strides[0]);
        if (fv_present(&n->bias)) value += fv_load(n->bias.dtype, n->bias.data, i * n->bias.strides[0]);
        if (sum) sum[i * n->sum.strides[last]] = (float)x;
        out[i * n->out.strides[last]] = (float)value;
    }
}

fv_status fv_ref_norm(fv_ctx *ctx, const fv_norm_args *args)
{
    fv_norm_args n = *args;

    fv_run(ctx, fv_lead_count(&n.x, n.x.rank - 1), norm_row, &n);
    return FV_OK;
}
