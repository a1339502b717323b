/* halo and na: worked numbers and what must hold, of the twins and of the library, and where names agree. */
#include <math.h>
#include <stdlib.h>

#include "support/other.h"

/* ---- halo -------------------------------------------------------------------------------------------------------- */

/* q = 0 and values of ones: a corner's share of what is not beside the image. */
static void halo_corners(void **unused)
{
    static const double corner = 9. / 16;
    struct twin *f = other_with_lse(twin_make(1, 1, 1, 16, 16, 2, 1));

    (void)unused;
    for (int n = 0; n < 16; n++)
        f->q[2 * n] = f->q[2 * n + 1] = 0, f->v[n] = 1;
    twin_set(f, "grid", 2, 4, 4);
    twin_set(f, "block", 1, 2);
    twin_set(f, "halo", 1, 1);
    beside_forward(f, "halo:grid=4x4,block=2,halo=1");
    for (int n = 0; n < 16; n++)
        twin_close("corner", f->o + n, &corner, 1, TWIN_EXACT);
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 2, 4, 5, 6, 8, 9, 10));
    assert_true(fabs(f->lse[0] - log(16)) < TWIN_EXACT);
    twin_set(f, "pad", 1, 1);
    beside_forward(f, "halo:grid=4x4,block=2,halo=1,pad=mask");
    for (int n = 0; n < 16; n++)
        assert_true(fabs(f->o[n] - 1) < TWIN_EXACT && fabs(f->lse[n] - log(9)) < TWIN_EXACT);
    twin_drop(f);
}

/* Blocks of 8 with a halo of 3 on 32 rows: inside as gna, at the border shorter. */
static void halo_windows(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 1024, 1024, 1, 1);
    struct other *gna = other_make(f, 1);

    (void)unused;
    twin_set(f, "grid", 2, 32, 32);
    twin_set(f, "pad", 1, 1);
    beside_forward(f, "halo:grid=32x32,pad=mask");
    for (int j = 0; j < 1024; j++) {
        int y = j / 32, x = j % 32;
        assert_int_equal(f->map[(9 * 32 + 15) * 1024 + j], y >= 5 && y < 19 && x >= 5 && x < 19);
        assert_int_equal(f->map[7 * 1024 + j], y < 11 && x < 11);
    }
    other_set(gna, "grid", 2, 32, 32, 0);
    other_set(gna, "window", 1, 14, 0, 0);
    other_set(gna, "stride", 1, 8, 0, 0);
    other_forward(gna, &sheet_gna, f, 0, 1);
    for (int i = 0; i < 1024; i++)
        if (i / 32 >= 8 && i / 32 < 24 && i % 32 >= 8 && i % 32 < 24)
            twin_close("inside", f->o + i, gna->o + i, 1, TWIN_EXACT);
    other_drop(gna);
    twin_drop(f);
}

/* One block of the whole image and no halo is dense; without a halo blocks are apart, as those of gna. */
static void halo_without_a_halo(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 4, 2, 36, 36, 2, 3));
    struct other *dense = other_make(f, 4), *gna = other_make(f, 4);

    (void)unused;
    twin_set(f, "grid", 2, 6, 6);
    twin_set(f, "block", 1, 6);
    twin_set(f, "halo", 1, 0);
    beside_forward(f, "halo:grid=6x6,block=6,halo=0");
    other_forward(dense, &sheet_dense, f, 0, 4);
    other_agrees(f, dense, 0, 4);
    twin_set(f, "block", 1, 3);
    beside_forward(f, "halo:grid=6x6,block=3,halo=0");
    other_set(gna, "grid", 2, 6, 6, 0);
    other_set(gna, "window", 1, 3, 0, 0);
    other_set(gna, "stride", 1, 3, 0, 0);
    other_forward(gna, &sheet_gna, f, 0, 4);
    other_agrees(f, gna, 0, 4);
    other_drop(dense);
    other_drop(gna);
    twin_drop(f);
}

/* Queries of every second row and column give what they give among all. */
static void halo_strided_is_a_part(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 2, 1, 64, 64, 4, 3)),
                *part = other_with_lse(twin_make(1, 2, 1, 16, 64, 4, 3));
    double *rel = twin_sines(22, 3), whole[2 * 64 * 3], whole_lse[2 * 64];

    (void)unused;
    for (int half = 0; half < 2; half++) {
        struct twin *each = half ? part : f;
        twin_set(each, "grid", 2, 8, 8);
        twin_set(each, "block", 1, 4);
        twin_set(each, "halo", 1, 2);
        twin_set(each, "stride", 1, 1 + half);
        twin_give(each, "rel_h", rel, TWIN_DIMS(11, 2));
        twin_give(each, "rel_w", rel, TWIN_DIMS(11, 2));
    }
    beside_forward(f, "halo:grid=8x8,block=4,halo=2");
    memcpy(whole, f->o, sizeof whole);
    memcpy(whole_lse, f->lse, sizeof whole_lse);
    for (int n = 0; n < 32; n++) { /* head, row, column of the part */
        int from = n / 16 * 64 + n % 16 / 4 * 16 + n % 4 * 2;
        memcpy(part->q + n * 4, f->q + from * 4, 4 * sizeof(double));
    }
    beside_forward(part, "halo:grid=8x8,block=4,halo=2,stride=2");
    for (int n = 0; n < 32; n++) {
        int from = n / 16 * 64 + n % 16 / 4 * 16 + n % 4 * 2;
        twin_close("o", part->o + n * 3, whole + from * 3, 3, TWIN_EXACT);
        twin_close("lse", part->lse + n, whole_lse + from, 1, TWIN_EXACT);
    }
    free(rel);
    twin_drop(f);
    twin_drop(part);
}

/* A shift by a block moves what lies away from the borders along, a shift by one pixel does not; and an offset that no
 * pair of the image has is read where zeros stand, but not where nothing does. */
static void halo_moves_by_blocks(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 96, 96, 2, 1), *moved = twin_make(1, 1, 1, 96, 96, 2, 1);
    bool same[2] = {true, true};

    (void)unused;
    for (int by = 0; by < 2; by++) { /* 4 columns, a block, and 1 */
        for (int n = 0; n < 96; n++) {
            int from = n / 24 * 24 + (n % 24 + (by ? 1 : 4)) % 24;
            memcpy(moved->q + 2 * n, f->q + 2 * from, 2 * sizeof(double));
            memcpy(moved->k + 2 * n, f->k + 2 * from, 2 * sizeof(double));
            moved->v[n] = f->v[from];
        }
        for (int each = 0; each < 2; each++) {
            twin_set(each ? moved : f, "grid", 2, 4, 24);
            twin_set(each ? moved : f, "block", 1, 4);
            twin_set(each ? moved : f, "halo", 1, 2);
            beside_forward(each ? moved : f, "halo:grid=4x24,block=4,halo=2");
        }
        for (int n = 0; n < 96; n++)
            if (n % 24 >= 4 && n % 24 < 16)
                same[by] = same[by] && fabs(moved->o[n] - f->o[n + (by ? 1 : 4)]) < TWIN_EXACT;
    }
    assert_true(same[0] && !same[1]);
    twin_drop(f);
    twin_drop(moved);
}

static void halo_tables_have_gradients_where_they_are_read(void **unused)
{
    static const struct {
        const char *spec;
        int first, last;
    } read[] = {{"halo:grid=2x2,block=2,halo=1", 0, 4}, {"halo:grid=2x2,block=2,halo=1,pad=mask", 1, 3}};

    (void)unused;
    for (int n = 0; n < 2; n++)
        for (int d = 0; test_devices[d]; d++) {
            double *rel = twin_sines(10, 3);
            struct twin *f = twin_make(1, 1, 1, 4, 4, 4, 2);
            struct beside l;
            fv_attention_grads grads = {.params = 1};
            fv_named_tensor d_rel;
            twin_set(f, "grid", 2, 2, 2);
            twin_give(f, "rel_h", rel, TWIN_DIMS(5, 2));
            twin_give(f, "rel_w", rel, TWIN_DIMS(5, 2));
            l = beside_open(f, read[n].spec, test_devices[d]);
            l.args.param = l.param;
            d_rel = (fv_named_tensor){"rel_h", test_random(l.ctx, 1, FV_DIMS(5, 2))};
            grads.d_o = test_random(l.ctx, 1, FV_DIMS(1, 1, 4, 2));
            grads.d_param = &d_rel;
            assert_ok(fv_attention_backward(l.ctx, l.attention, &l.args, &grads));
            for (int row = 0; row < 5; row++)
                assert_int_equal(((float *)d_rel.tensor.data)[2 * row] != 0,
                                 row >= read[n].first && row <= read[n].last);
            beside_close(&l);
            twin_drop(f);
            free(rel);
        }
}

static void halo_refusals(void **unused)
{
    double rel[64] = {0};
    struct twin *f = twin_make(1, 1, 1, 16, 16, 3, 2);
    fv_attention *attention;

    (void)unused;
    assert_fails(fv_attention_new("halo", &attention), FV_E_USAGE, "'grid' must be given");
    assert_fails(fv_attention_new("halo:grid=8", &attention), FV_E_USAGE, "rows x columns, got '8'");
    assert_fails(fv_attention_new("halo:grid=8x12", &attention), FV_E_USAGE, "divisor of 8 rows and 12 columns, got 8");
    assert_fails(fv_attention_new("halo:grid=9x9,block=3,stride=2", &attention), FV_E_USAGE, "2 needs an even block");
    assert_fails(fv_attention_new("halo:grid=8x8,stride=3", &attention), FV_E_USAGE, "stride");
    assert_fails(fv_attention_new("halo:grid=8x8,halo=100000", &attention), FV_E_USAGE, "100000 around 8x8");
    twin_set(f, "grid", 2, 4, 4);
    twin_set(f, "block", 1, 2);
    twin_set(f, "halo", 1, 1);
    twin_give(f, "rel_h", rel, TWIN_DIMS(5, 1));
    beside_refuses(f, "halo:grid=4x4,block=2,halo=1", FV_E_USAGE, "need one another");
    twin_give(f, "rel_w", rel, TWIN_DIMS(5, 1));
    beside_refuses(f, "halo:grid=4x4,block=2,halo=1", FV_E_SHAPE, "expected an even head, got 3 channels");
    f->call.params = 0;
    twin_set(f, "stride", 1, 2);
    beside_refuses(f, "halo:grid=4x4,block=2,halo=1,stride=2", FV_E_SHAPE,
                   "16 cells, but there are 16 keys and 16 queries");
    twin_set(f, "stride", 1, 1);
    f->call.causal = true;
    beside_refuses(f, "halo:grid=4x4,block=2,halo=1", FV_E_USAGE, "cannot be causal");
    twin_drop(f);
}

/* ---- na ---------------------------------------------------------------------------------------------------------- */

static struct twin *line_of_eight(int window, int dilation)
{
    struct twin *f = other_with_lse(twin_make(1, 1, 1, 8, 8, 1, 1));

    twin_set(f, "grid", 1, 8);
    twin_set(f, "window", 1, window);
    twin_set(f, "dilation", 1, dilation);
    for (int n = 0; n < 8; n++)
        f->q[n] = 0, f->v[n] = n;
    return f;
}

static void na_windows(void **unused)
{
    static const double three[] = {1, 1, 2, 3, 4, 5, 6, 6};
    static const int64_t starts[] = {0, 1, 0, 1, 2, 3, 2, 3};
    struct twin *f = line_of_eight(3, 1);

    (void)unused;
    beside_forward(f, "na:grid=8,window=3");
    twin_close("w=3", f->o, three, 8, TWIN_EXACT);
    twin_drop(f);
    f = line_of_eight(3, 2);
    beside_forward(f, "na:grid=8,window=3,dilation=2");
    for (int64_t i = 0; i < 8; i++)
        twin_sees(f, 0, i, TWIN_KEYS(starts[i], starts[i] + 2, starts[i] + 4));
    twin_drop(f);
    f = line_of_eight(4, 1);
    f->call.causal = true;
    beside_forward(f, "na:grid=8,window=4");
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2)); /* not pushed inwards */
    twin_sees(f, 0, 6, TWIN_KEYS(3, 4, 5, 6));
    twin_drop(f);
}

/* The same bias for all offsets changes nothing but lse; one that leaves only the offset 0 gives v. */
static void na_reads_its_bias_by_offset(void **unused)
{
    double bias[2 * 5 * 9], plain[2 * 35 * 2];
    struct twin *f = other_with_lse(twin_make(1, 2, 1, 35, 35, 3, 2));

    (void)unused;
    twin_set(f, "grid", 2, 5, 7);
    twin_set(f, "window", 2, 3, 5);
    beside_forward(f, "na:grid=5x7,window=3x5");
    memcpy(plain, f->o, sizeof plain);
    for (int n = 0; n < 90; n++)
        bias[n] = 0.75;
    twin_give(f, "rpb", bias, TWIN_DIMS(2, 5, 9));
    beside_forward(f, "na:grid=5x7,window=3x5");
    twin_close("constant", f->o, plain, 140, TWIN_EXACT);
    for (int n = 0; n < 90; n++)
        bias[n] = n % 45 == 2 * 9 + 4 ? 0 : -INFINITY;
    beside_forward(f, "na:grid=5x7,window=3x5");
    for (int h = 0; h < 2; h++)
        twin_close("self", f->o + h * 70, f->v, 70, TWIN_EXACT);
    for (int n = 0; n < 90; n++)
        bias[n] = n % 45 == 3 * 9 + 3 ? 50 : 0; /* a row below, a column to the left */
    beside_forward(f, "na:grid=5x7,window=3x5");
    for (int i = 0; i < 35; i++)
        if (i / 7 < 4 && i % 7 > 0) twin_close("below", f->o + 2 * i, f->v + 2 * (i + 6), 2, 1e-12);
    twin_drop(f);
}

/* Without a bias it is gna, over the whole grid dense, and on an axis of one what it is without that. */
static void na_is_gna_of_stride_1(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 4, 2, 42, 42, 3, 2)),
                *flat = other_with_lse(twin_make(1, 1, 1, 8, 8, 1, 1));
    struct other *gna = other_make(f, 4), *dense = other_make(f, 4), *line = other_make(flat, 1);
    double *bias = twin_sines(5, 0);

    (void)unused;
    twin_set(f, "grid", 2, 6, 7);
    twin_set(f, "window", 2, 2, 3);
    twin_set(f, "dilation", 2, 2, 1);
    twin_set(f, "causal", 2, 1, 0);
    beside_forward(f, "na:grid=6x7,window=2x3,dilation=2x1,causal=1x0,impl=naive");
    other_set(gna, "grid", 2, 6, 7, 0);
    other_set(gna, "window", 2, 2, 3, 0);
    other_set(gna, "dilation", 2, 2, 1, 0);
    other_set(gna, "causal", 2, 1, 0, 0);
    other_forward(gna, &sheet_gna, f, 0, 4);
    other_agrees(f, gna, 0, 4);
    f->call.options = 0;
    twin_set(f, "grid", 2, 6, 7);
    twin_set(f, "window", 1, 0);
    beside_forward(f, "na:grid=6x7,window=0");
    other_forward(dense, &sheet_dense, f, 0, 4);
    other_agrees(f, dense, 0, 4);

    twin_set(flat, "grid", 2, 1, 8);
    twin_set(flat, "window", 2, 1, 3);
    twin_give(flat, "rpb", bias, TWIN_DIMS(1, 1, 5));
    beside_forward(flat, "na:grid=1x8,window=1x3");
    memcpy(line->o, flat->o, 8 * sizeof(double));
    memcpy(line->lse, flat->lse, 8 * sizeof(double));
    flat->call.options = flat->call.params = 0;
    twin_set(flat, "grid", 1, 8);
    twin_set(flat, "window", 1, 3);
    twin_give(flat, "rpb", bias, TWIN_DIMS(1, 5));
    beside_forward(flat, "na:grid=8,window=3");
    other_agrees(flat, line, 0, 1);
    free(bias);
    other_drop(gna);
    other_drop(dense);
    other_drop(line);
    twin_drop(f);
    twin_drop(flat);
}

static void na_refusals(void **unused)
{
    double bias[49] = {0};
    struct twin *f = twin_make(1, 1, 1, 12, 12, 2, 2);
    fv_attention *attention;

    (void)unused;
    assert_fails(fv_attention_new("na:grid=8,window=3,stride=2", &attention), FV_E_USAGE, "stride");
    assert_fails(fv_attention_new("na:grid=8,window=9", &attention), FV_E_USAGE, "na: axis 0: window 9");
    assert_fails(fv_attention_new("na:grid=8x8,window=3x3x3", &attention), FV_E_USAGE, "expected 1 or 2 items");
    assert_fails(fv_attention_new("na:grid=8,window=3,impl=fast", &attention), FV_E_USAGE, "fused or gemm or naive");
    twin_set(f, "grid", 2, 3, 4);
    twin_set(f, "window", 2, 3, 4);
    twin_give(f, "rpb", bias, TWIN_DIMS(1, 5, 7));
    beside_refuses(f, "na:grid=3x4,window=3x4", FV_E_USAGE, "needs odd windows and no causal axis; axis 1: window 4");
    twin_set(f, "window", 2, 3, 3);
    f->call.params = 0;
    twin_give(f, "rpb", bias, TWIN_DIMS(1, 5, 5));
    twin_set(f, "causal", 2, 0, 1);
    beside_refuses(f, "na:grid=3x4,window=3,causal=0x1", FV_E_USAGE, "axis 1: window 3, causal");
    twin_set(f, "causal", 1, 0);
    f->call.causal = true;
    beside_refuses(f, "na:grid=3x4,window=3", FV_E_USAGE, "axis 0: window 3, causal");
    f->call.causal = false;
    f->call.params = 0;
    twin_give(f, "rpb", bias, TWIN_DIMS(1, 5, 7));
    beside_refuses(f, "na:grid=3x4,window=3", FV_E_SHAPE, "[1,5,5], got [1,5,7]");
    f->call.params = 0;
    twin_give(f, "rpb", bias, TWIN_DIMS(1, 5));
    beside_refuses(f, "na:grid=3x4,window=3", FV_E_SHAPE, "expected 2 axes after the heads");
    twin_set(f, "grid", 2, 3, 5);
    f->call.params = 0;
    beside_refuses(f, "na:grid=3x5,window=3", FV_E_SHAPE, "15 cells");
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(halo_corners),
        cmocka_unit_test(halo_windows),
        cmocka_unit_test(halo_without_a_halo),
        cmocka_unit_test(halo_strided_is_a_part),
        cmocka_unit_test(halo_moves_by_blocks),
        cmocka_unit_test(halo_tables_have_gradients_where_they_are_read),
        cmocka_unit_test(halo_refusals),
        cmocka_unit_test(na_windows),
        cmocka_unit_test(na_reads_its_bias_by_offset),
        cmocka_unit_test(na_is_gna_of_stride_1),
        cmocka_unit_test(na_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
