#include "support/beside.h"

#include <stdio.h>

/* Sums of some tens of products of numbers near 1 in f32. */
#define TOLERANCE 1e-5

static fv_tensor narrowed(fv_ctx *ctx, const double *data, fv_dtype dtype, int rank, const int64_t *dims)
{
    fv_tensor t;

    assert_ok(fv_tensor_new(ctx, &t, dtype, rank, dims));
    for (int64_t n = 0; n < fv_tensor_count(&t); n++) {
        if (dtype == FV_F32) ((float *)t.data)[n] = (float)data[n];
        if (dtype == FV_I32) ((int32_t *)t.data)[n] = (int32_t)data[n];
        if (dtype == FV_U8) ((uint8_t *)t.data)[n] = (uint8_t)data[n];
    }
    return t;
}

struct beside beside_open(const struct twin *f, const char *spec, const char *device)
{
    const sheet_call *c = &f->call;
    struct beside l = {.ctx = test_ctx(device, 2)};
    const fv_param *param;

    assert_ok(fv_attention_new(spec, &l.attention));
    param = fv_attention_mechanism(l.attention)->params;
    l.args.q = narrowed(l.ctx, c->q, FV_F32, FV_DIMS(c->B, c->H, c->N, c->D));
    l.args.k = narrowed(l.ctx, c->k, FV_F32, FV_DIMS(c->B, c->Hkv, c->M, c->D));
    l.args.v = narrowed(l.ctx, c->v, FV_F32, FV_DIMS(c->B, c->Hkv, c->M, c->Dv));
    l.args.o = test_random(l.ctx, 1, FV_DIMS(c->B, c->H, c->N, c->Dv));
    if (c->lse) l.args.lse = test_random(l.ctx, 1, FV_DIMS(c->B, c->H, c->N));
    l.args.causal = c->causal;
    for (int n = 0; n < c->params; n++) {
        int at = 0;
        while (strcmp(param[at].name, c->param[n].name) != 0)
            at++;
        l.param[n].name = c->param[n].name;
        l.param[n].tensor = narrowed(l.ctx, c->param[n].data, param[at].dtype, c->param[n].rank, c->param[n].dims);
    }
    l.args.params = c->params;
    return l;
}

void beside_close(struct beside *l)
{
    fv_attention_free(l->attention);
    fv_ctx_free(l->ctx);
}

/* What points into the struct itself. */
static const fv_attention_args *args_of(struct beside *l, const struct twin *f)
{
    l->args.param = l->param;
    if (f->call.scale) {
        l->scale = (float)*f->call.scale;
        l->args.scale = &l->scale;
    }
    return &l->args;
}

static void check_map(struct beside *l, const struct twin *f, const char *spec)
{
    const sheet_call *c = &f->call;
    fv_tensor map;
    void *owned;

    assert_ok(fv_attention_map(l->ctx, l->attention, &l->args, &map, &owned));
    for (int64_t n = 0; n < c->B * c->H * c->N * c->M; n++) {
        int64_t j = n % c->M, i = n / c->M % c->N, h = n / c->M / c->N % c->H, b = n / c->M / c->N / c->H;
        uint8_t got = *(uint8_t *)fv_at(&map, map.dims[0] > 1 ? b : 0, map.dims[1] > 1 ? h : 0, i, j);
        if (got != f->map[n])
            fail_msg("%s: batch %d, head %d, query %d, key %d: expected %d, got %d", spec, (int)b, (int)h, (int)i,
                     (int)j, f->map[n], got);
    }
    fv_release(owned);
}

void beside_forward(struct twin *f, const char *spec)
{
    char name[64];

    assert_int_equal(sscanf(spec, "%63[^:]", name), 1);
    twin_forward(f, name);
    for (int d = 0; test_devices[d]; d++) {
        struct beside l = beside_open(f, spec, test_devices[d]);
        assert_ok(fv_attention_forward(l.ctx, l.attention, args_of(&l, f)));
        test_close(spec, &l.args.o, f->o, TOLERANCE);
        if (f->call.lse) test_close("lse", &l.args.lse, f->lse, TOLERANCE);
        if (f->call.map) check_map(&l, f, spec);
        beside_close(&l);
    }
}

void beside_refuses(struct twin *f, const char *spec, fv_status status, const char *words)
{
    char name[64];
    struct beside l = beside_open(f, spec, "cpu");

    assert_fails(fv_attention_forward(l.ctx, l.attention, args_of(&l, f)), status, words);
    beside_close(&l);
    assert_int_equal(sscanf(spec, "%63[^:]", name), 1);
    twin_refuses(f, name);
}
