#include "support/other.h"

#include <stdlib.h>

struct other *other_make(const struct twin *f, int64_t heads)
{
    struct other *other = calloc(1, sizeof *other);

    assert_non_null(other);
    other->o = sheet_zeros(heads * f->call.N * f->call.Dv);
    other->lse = sheet_zeros(heads * f->call.N);
    return other;
}

void other_drop(struct other *other)
{
    free(other->o);
    free(other->lse);
    free(other);
}

void other_set(struct other *other, const char *name, int count, int64_t a, int64_t b, int64_t c)
{
    int slot = 0;

    while (other->option[slot].count > 0)
        slot++;
    memcpy(other->values[slot], (double[]){(double)a, (double)b, (double)c}, 3 * sizeof(double));
    other->option[slot] = (sheet_option){name, count, other->values[slot]};
}

void other_forward(struct other *other, const sheet *definition, const struct twin *f, int64_t head, int64_t heads)
{
    sheet_call part = f->call;
    int64_t group = part.H / part.Hkv, key_head = head / group;

    part.q = f->q + head * part.N * part.D;
    part.k = f->k + key_head * part.M * part.D;
    part.v = f->v + key_head * part.M * part.Dv;
    part.H = heads;
    part.Hkv = (heads + group - 1) / group;
    part.option = other->option;
    part.options = 0;
    while (other->option[part.options].count > 0)
        part.options++;
    part.params = 0;
    part.map = NULL;
    part.o = other->o;
    part.lse = other->lse;
    assert_true(definition->forward(&part));
}

void other_agrees(const struct twin *f, const struct other *other, int64_t head, int64_t heads)
{
    int64_t N = f->call.N, Dv = f->call.Dv;

    twin_close("o", f->o + head * N * Dv, other->o, heads * N * Dv, TWIN_EXACT);
    if (f->call.lse) twin_close("lse", f->lse + head * N, other->lse, heads * N, TWIN_EXACT);
}

struct twin *other_with_lse(struct twin *f)
{
    f->call.lse = f->lse;
    return f;
}
