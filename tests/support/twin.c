#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "support/twin.h"

double *twin_sines(int64_t count, double shift)
{
    double *x = sheet_zeros(count);

    for (int64_t n = 0; n < count; n++)
        x[n] = sin(0.7 * (double)n + shift);
    return x;
}

struct twin *twin_make(int64_t B, int64_t H, int64_t Hkv, int64_t N, int64_t M, int64_t D, int64_t Dv)
{
    struct twin *f = calloc(1, sizeof *f);

    assert_non_null(f);
    f->q = twin_sines(B * H * N * D, 0);
    f->k = twin_sines(B * Hkv * M * D, 1);
    f->v = twin_sines(B * Hkv * M * Dv, 2);
    f->o = sheet_zeros(B * H * N * Dv);
    f->lse = sheet_zeros(B * H * N);
    f->map = calloc((size_t)(B * H * N * M), 1);
    assert_non_null(f->map);
    f->call = (sheet_call){.B = B,
                           .H = H,
                           .Hkv = Hkv,
                           .N = N,
                           .M = M,
                           .D = D,
                           .Dv = Dv,
                           .q = f->q,
                           .k = f->k,
                           .v = f->v,
                           .o = f->o,
                           .map = f->map,
                           .option = f->option,
                           .param = f->param};
    return f;
}

void twin_drop(struct twin *f)
{
    free(f->q);
    free(f->k);
    free(f->v);
    free(f->o);
    free(f->lse);
    free(f->map);
    free(f);
}

void twin_set(struct twin *f, const char *name, int count, ...)
{
    int slot = 0;
    va_list list;

    while (slot < f->call.options && strcmp(f->option[slot].name, name) != 0)
        slot++;
    assert_true(slot < TWIN_SLOTS && count <= 4);
    va_start(list, count);
    for (int n = 0; n < count; n++)
        f->values[slot][n] = va_arg(list, int);
    va_end(list);
    f->option[slot] = (sheet_option){name, count, f->values[slot]};
    if (slot == f->call.options) f->call.options++;
}

void twin_set_number(struct twin *f, const char *name, double value)
{
    int slot = 0;

    twin_set(f, name, 1, 0);
    while (strcmp(f->option[slot].name, name) != 0)
        slot++;
    f->values[slot][0] = value;
}

void twin_give(struct twin *f, const char *name, const double *data, int rank, const int64_t *dims)
{
    sheet_param *param = &f->param[f->call.params++];

    assert_true(f->call.params <= TWIN_SLOTS);
    *param = (sheet_param){.name = name, .data = data, .rank = rank};
    memcpy(param->dims, dims, (size_t)rank * sizeof *dims);
}

/* Mechanisms without a set of pairs refuse a map. */
void twin_forward(struct twin *f, const char *name)
{
    const sheet *twin = sheet_find(name);

    assert_non_null(twin);
    if (twin == &sheet_agent || twin == &sheet_hedgehog || twin == &sheet_lightning2 || twin == &sheet_taylor2 ||
        twin == &sheet_descriptor)
        f->call.map = NULL;
    if (!twin->forward(&f->call)) fail_msg("%s: the twin refuses a call it should take", name);
}

void twin_refuses(struct twin *f, const char *name)
{
    if (sheet_find(name)->forward(&f->call)) fail_msg("%s: the twin takes a call it should refuse", name);
}

void twin_close(const char *what, const double *got, const double *expected, int64_t count, double tolerance)
{
    for (int64_t n = 0; n < count; n++)
        if (!(fabs(got[n] - expected[n]) <= tolerance))
            fail_msg("%s[%lld]: expected %.9g, got %.9g, tolerance %g", what, (long long)n, expected[n], got[n],
                     tolerance);
}

void twin_sees(const struct twin *f, int64_t h, int64_t i, const int64_t *expected)
{
    const unsigned char *row = f->map + (h * f->call.N + i) * f->call.M;

    for (int64_t j = 0; j < f->call.M; j++) {
        bool seen = *expected == j;

        if (seen) expected++;
        if (row[j] != seen)
            fail_msg("head %lld, query %lld, key %lld: expected %d, got %d", (long long)h, (long long)i, (long long)j,
                     seen, row[j]);
    }
    assert_int_equal(*expected, -1);
}

int64_t twin_pairs(const struct twin *f)
{
    int64_t sum = 0;

    for (int64_t n = 0; n < f->call.B * f->call.H * f->call.N * f->call.M; n++)
        sum += f->map[n];
    return sum;
}

void twin_equals_dense(struct twin *f, const char *name, bool causal, bool has_lse)
{
    int64_t rows = f->call.B * f->call.H * f->call.N;
    double *o = sheet_zeros(rows * f->call.Dv), *lse = sheet_zeros(rows);
    sheet_call dense = f->call;

    f->call.lse = has_lse ? f->lse : NULL;
    twin_forward(f, name);
    dense.options = dense.params = 0;
    dense.causal = causal;
    dense.o = o;
    dense.lse = lse;
    dense.map = NULL;
    assert_true(sheet_dense.forward(&dense));
    twin_close(name, f->o, o, rows * f->call.Dv, TWIN_EXACT);
    if (has_lse) twin_close("lse", f->lse, lse, rows, TWIN_EXACT);
    free(o);
    free(lse);
}
