#include "support/problem.h"

#include <math.h>

int64_t test_between(fv_random *random, int64_t low, int64_t high)
{
    return low + fv_random_below(random, high - low + 1);
}

bool test_chance(fv_random *random, int64_t one_in)
{
    return fv_random_below(random, one_in) == 0;
}

double test_at(const fv_tensor *t, int64_t a, int64_t b, int64_t c, int64_t d)
{
    int64_t index[4] = {a, b, c, d}, offset = 0;

    for (int n = 0; n < t->rank; n++)
        offset += (t->dims[n] == 1 ? 0 : index[n]) * t->strides[n];
    return fv_load(t->dtype, t->data, offset);
}

void test_problem(fv_ctx *ctx, fv_random *random, unsigned kinds, struct problem *p)
{
    static const int64_t widths[] = {16, 64, 80, 256};

    *p = (struct problem){.B = test_between(random, 1, 2), .Hkv = test_between(random, 1, 2)};
    p->H = p->Hkv * test_between(random, 1, 3);
    p->N = test_chance(random, 5) ? 1 : test_between(random, 1, 90);
    p->M = test_chance(random, 5) ? 1 : test_between(random, 1, 140);
    p->D = test_chance(random, 4) ? widths[test_between(random, 0, 3)] : test_between(random, 1, 20);
    p->Dv = test_chance(random, 3) ? p->D : test_between(random, 1, 24);
    if (kinds & PLAN_GRID) {
        int64_t tokens = test_plan_grid(random, &p->plan.grid);
        int64_t queries = test_plan_grid_queries(&p->plan.grid);
        p->N = test_chance(random, 2) ? queries : test_between(random, 1, queries);
        p->M = tokens + test_between(random, 0, 5);
    }
    test_plan_random(ctx, random, kinds, p->B, p->H, p->Hkv, p->N, p->M, &p->plan);
    p->S = test_plan_rows(&p->plan, p->N);
    p->args.plan = kinds ? &p->plan : NULL;
    p->args.q = test_random(ctx, 1, FV_DIMS(p->B, p->H, p->N, p->D));
    p->args.k = test_random(ctx, 1, FV_DIMS(p->B, p->Hkv, p->M, p->D));
    p->args.v = test_random(ctx, 1, FV_DIMS(p->B, p->Hkv, p->M, p->Dv));
    assert_ok(fv_tensor_new(ctx, &p->args.o, FV_F32, FV_DIMS(p->B, p->H, p->S, p->Dv)));
    assert_ok(fv_tensor_new(ctx, &p->args.lse, FV_F32, FV_DIMS(p->B, p->H, p->S)));
}

/* Random places, about a half of which lie beyond the ends of a bias of R numbers. */
static fv_places random_places(fv_ctx *ctx, fv_random *random, const struct problem *p, int64_t R)
{
    int32_t *query, *key;

    assert_ok(FV_SCRATCH(ctx, query, p->N));
    assert_ok(FV_SCRATCH(ctx, key, p->M));
    for (int64_t i = 0; i < p->N; i++)
        query[i] = (int32_t)test_between(random, -R, R);
    for (int64_t j = 0; j < p->M; j++)
        key[j] = (int32_t)test_between(random, -R, R);
    return (fv_places){query, key};
}

void test_problem_logits(fv_ctx *ctx, fv_random *random, struct problem *p)
{
    fv_logits *l = &p->args.logits;
    int64_t B = test_chance(random, 2) ? p->B : 1, H = test_chance(random, 2) ? p->H : 1,
            N = test_chance(random, 2) ? p->N : 1;

    if (test_chance(random, 3)) l->scale = 0.3f;
    if (test_chance(random, 6)) l->zero_scale = true;
    if (test_chance(random, 3)) l->softcap = 2;
    if (test_chance(random, 3)) l->gain = 0.4f;
    if (test_chance(random, 3)) l->temperature = test_random(ctx, 1, FV_DIMS(B, H, p->N));
    if (test_chance(random, 3)) {
        l->bias = test_random(ctx, 1, FV_DIMS(B, H, N, p->M));
        for (int64_t n = 0; n < fv_tensor_count(&l->bias); n++)
            if (test_chance(random, 9)) ((float *)l->bias.data)[n] = -INFINITY;
    }
    if (test_chance(random, 3)) l->offset_bias = test_random(ctx, 1, FV_DIMS(H, test_between(random, 1, 40)));
    if (l->offset_bias.data && test_chance(random, 2))
        l->offset_place = random_places(ctx, random, p, l->offset_bias.dims[1]);
    if (test_chance(random, 3)) {
        int64_t columns = test_between(random, 1, p->M);
        while (p->M % columns)
            columns--;
        l->row_bias = test_random(ctx, 1, FV_DIMS(B, H, p->N, p->M / columns));
        l->column_bias = test_random(ctx, 1, FV_DIMS(B, H, p->N, columns));
    } else if (test_chance(random, 4)) {
        int64_t rows = test_between(random, 1, 20), columns = test_between(random, 1, 20);
        l->row_bias = test_random(ctx, 1, FV_DIMS(B, H, p->N, rows));
        l->column_bias = test_random(ctx, 1, FV_DIMS(B, H, p->N, columns));
        l->row_place = random_places(ctx, random, p, rows);
        l->column_place = random_places(ctx, random, p, columns);
    }
    if (test_chance(random, 3)) p->args.sinks = test_random(ctx, 1, FV_DIMS(p->H));
    if (test_chance(random, 3)) {
        assert_ok(FV_SCRATCH(ctx, p->key_head, p->H));
        for (int64_t h = 0; h < p->H; h++)
            p->key_head[h] = (int32_t)fv_random_below(random, p->Hkv);
        p->args.key_head = p->key_head;
    }
}

/* ---- the definition -------------------------------------------------------------------------------------------- */

static int64_t limited(int64_t index, int64_t R)
{
    return index < 0 ? 0 : index > R - 1 ? R - 1 : index;
}

int64_t test_offset_at(const struct problem *p, int64_t query, int64_t j)
{
    const fv_places *places = &p->args.logits.offset_place;
    int64_t R = p->args.logits.offset_bias.dims[1], key = p->plan.key_position ? p->plan.key_position[j] : j;

    if (places->key) return limited(places->key[j] - places->query[query], R);
    return limited(key - (query + p->plan.offset) + R / 2, R);
}

int64_t test_row_at(const struct problem *p, int64_t query, int64_t j)
{
    const fv_places *places = &p->args.logits.row_place;

    if (places->key) return limited(places->key[j] - places->query[query], p->args.logits.row_bias.dims[3]);
    return j / p->args.logits.column_bias.dims[3];
}

int64_t test_column_at(const struct problem *p, int64_t query, int64_t j)
{
    const fv_places *places = &p->args.logits.column_place;

    if (places->key) return limited(places->key[j] - places->query[query], p->args.logits.column_bias.dims[3]);
    return j % p->args.logits.column_bias.dims[3];
}

static double logit(const struct problem *p, int64_t b, int64_t h, int64_t i, int64_t j, uint64_t *negative)
{
    const fv_attend_args *a = &p->args;
    const fv_logits *l = &a->logits;
    int64_t kv = a->key_head ? a->key_head[h] : h / (p->H / p->Hkv);
    int64_t query = test_plan_query(&p->plan, p->H, b, h, i);
    double dot = 0, s, entry_bias;

    if (!test_plan_sees(&p->plan, p->H, b, h, i, j, &entry_bias)) return -INFINITY;
    for (int64_t d = 0; d < p->D; d++)
        dot += test_at(&a->q, b, h, query, d) * test_at(&a->k, b, kv, j, d);
    s = dot * (l->zero_scale ? 0 : l->scale != 0 ? (double)l->scale : 1 / sqrt((double)p->D));
    if (l->temperature.data) s *= test_at(&l->temperature, b, h, query, 0);
    if (s < 0) *negative += (uint64_t)(((b * p->H + h) * p->S + i) * p->M + j + 1) * 0x9e3779b97f4a7c15;
    if (l->gain != 0) s += l->gain * fabs(s);
    if (l->softcap != 0) s = l->softcap * tanh(s / l->softcap);
    if (l->bias.data) s += test_at(&l->bias, b, h, query, j);
    if (l->offset_bias.data) s += test_at(&l->offset_bias, h, test_offset_at(p, query, j), 0, 0);
    if (l->row_bias.data) s += test_at(&l->row_bias, b, h, query, test_row_at(p, query, j));
    if (l->row_bias.data) s += test_at(&l->column_bias, b, h, query, test_column_at(p, query, j));
    return s + entry_bias;
}

double test_problem_logit(const struct problem *p, int64_t b, int64_t h, int64_t i, int64_t j)
{
    uint64_t negative = 0;

    return logit(p, b, h, i, j, &negative);
}

void test_problem_define(fv_ctx *ctx, const struct problem *p, struct naive *out)
{
    int64_t cells = p->B * p->H * p->S;

    assert_ok(FV_SCRATCH(ctx, out->o, cells * p->Dv));
    assert_ok(FV_SCRATCH(ctx, out->lse, cells));
    assert_ok(FV_SCRATCH(ctx, out->max, cells));
    assert_ok(FV_SCRATCH(ctx, out->arg, cells));
    assert_ok(FV_SCRATCH(ctx, out->probability, cells * p->M));
    out->negative = 0;
    for (int64_t cell = 0; cell < cells; cell++) {
        int64_t b = cell / p->S / p->H, h = cell / p->S % p->H, i = cell % p->S;
        int64_t kv = p->args.key_head ? p->args.key_head[h] : h / (p->H / p->Hkv);
        double sink = p->args.sinks.data ? test_at(&p->args.sinks, h, 0, 0, 0) : -INFINITY;
        double *s = out->probability + cell * p->M, max = sink, sum = 0;
        out->max[cell] = -INFINITY;
        out->arg[cell] = -1;
        for (int64_t j = 0; j < p->M; j++) {
            s[j] = logit(p, b, h, i, j, &out->negative);
            if (s[j] > out->max[cell]) {
                out->max[cell] = s[j];
                out->arg[cell] = j;
            }
        }
        max = fmax(max, out->max[cell]);
        if (max > -INFINITY) sum = exp(sink - max);
        for (int64_t j = 0; j < p->M && max > -INFINITY; j++)
            sum += exp(s[j] - max);
        out->lse[cell] = max > -INFINITY ? max + log(sum) : -INFINITY;
        for (int64_t j = 0; j < p->M; j++) {
            double lse = out->lse[cell];
            if (p->args.lse_in.data) lse = test_at(&p->args.lse_in, b, h, i, 0);
            if (p->args.lse_in_key.data) lse = test_at(&p->args.lse_in_key, b, h, j, 0);
            s[j] = s[j] == -INFINITY || lse == -INFINITY ? 0 : exp(s[j] - lse);
        }
        for (int64_t d = 0; d < p->Dv; d++) {
            double o = 0;
            for (int64_t j = 0; j < p->M; j++)
                o += s[j] * test_at(&p->args.v, b, kv, j, d);
            out->o[cell * p->Dv + d] = o;
        }
    }
}

double test_problem_tolerance(const struct problem *p)
{
    return 0x1p-24 * (40 * 2 * (double)(p->D + 8) + (double)p->M);
}
