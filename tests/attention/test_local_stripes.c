/* csw and lga: worked numbers and what must hold, of the twins and of the library, and where names agree. */
#include <math.h>
#include <stdlib.h>

#include "support/other.h"

/* ---- csw --------------------------------------------------------------------------------------------------------- */

static void csw_of_four_pixels(void **unused)
{
    static const double expected[] = {1, 2, 1, 2, .5, .5, 2.5, 2.5};
    struct twin *f = twin_make(1, 2, 1, 4, 4, 1, 1);

    (void)unused;
    for (int n = 0; n < 8; n++)
        f->q[n] = 0, f->v[n % 4] = n % 4;
    twin_set(f, "grid", 2, 2, 2);
    twin_set(f, "stripe", 1, 1);
    beside_forward(f, "csw:grid=2x2,stripe=1");
    twin_close("o", f->o, expected, 8, TWIN_EXACT);
    twin_sees(f, 0, 1, TWIN_KEYS(1, 3));
    twin_sees(f, 1, 1, TWIN_KEYS(0, 1));
    twin_drop(f);
}

/* Without a convolution each half is gna; a stripe as wide as the image is dense. */
static void csw_is_gna_by_halves(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 4, 2, 6 * 8, 6 * 8, 3, 2));
    struct other *columns = other_make(f, 2), *rows = other_make(f, 2), *all = other_make(f, 4);

    (void)unused;
    twin_set(f, "grid", 2, 6, 8);
    twin_set(f, "stripe", 1, 2);
    beside_forward(f, "csw:grid=6x8,stripe=2");
    for (int half = 0; half < 2; half++) {
        struct other *other = half ? rows : columns;
        other_set(other, "grid", 2, 6, 8, 0);
        other_set(other, "window", 2, half ? 2 : 6, half ? 8 : 2, 0);
        other_set(other, "stride", 2, half ? 2 : 6, half ? 8 : 2, 0);
        other_forward(other, &sheet_gna, f, 2 * half, 2);
        other_agrees(f, other, 2 * half, 2);
    }
    twin_set(f, "stripe", 1, 100);
    beside_forward(f, "csw:grid=6x8,stripe=100");
    other_forward(all, &sheet_dense, f, 0, 4);
    other_agrees(f, all, 0, 4);
    other_drop(columns);
    other_drop(rows);
    other_drop(all);
    twin_drop(f);
}

/* q = 0: pads count among the keys, or do not. */
static void csw_pads_weigh_as_much_as_keys(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 2, 1, 10, 10, 1, 1));
    double ones[20], expected[20];

    (void)unused;
    for (int n = 0; n < 20; n++) {
        f->q[n] = 0;
        f->v[n % 10] = ones[n] = 1;
        expected[n] = n < 10 && n % 5 >= 3 ? 4. / 6 : 1;
    }
    twin_set(f, "grid", 2, 2, 5);
    twin_set(f, "stripe", 1, 3); /* five columns become six: (6 - 5) div 2 = 0 pads before, one behind */
    beside_forward(f, "csw:grid=2x5,stripe=3");
    twin_close("zeros", f->o, expected, 20, TWIN_EXACT);
    for (int n = 0; n < 10; n++)
        assert_true(fabs(f->lse[n] - log(6)) < TWIN_EXACT);
    twin_set(f, "pad", 1, 1);
    beside_forward(f, "csw:grid=2x5,stripe=3,pad=mask");
    twin_close("mask", f->o, ones, 20, TWIN_EXACT);
    assert_true(fabs(f->lse[0] - log(6)) < TWIN_EXACT && fabs(f->lse[4] - log(4)) < TWIN_EXACT);
    twin_set(f, "stripe", 1, 4); /* eight: one before, two behind */
    twin_set(f, "pad", 1, 0);
    beside_forward(f, "csw:grid=2x5,stripe=4");
    twin_sees(f, 0, 2, TWIN_KEYS(0, 1, 2, 5, 6, 7));
    twin_sees(f, 0, 3, TWIN_KEYS(3, 4, 8, 9));
    assert_true(fabs(f->o[2] - 6. / 8) < TWIN_EXACT && fabs(f->o[3] - 4. / 8) < TWIN_EXACT);
    twin_drop(f);
}

/* A tap in the centre adds v; another stays within the stripe; zeros leave constants as they are. */
static void csw_convolves_inside_stripes(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 24, 24, 2, 1), *plain = twin_make(1, 2, 1, 24, 24, 2, 1);
    double weight[18] = {[4] = 1, [9 + 4] = 1}, expected[48];

    (void)unused;
    twin_set(f, "grid", 2, 4, 6);
    twin_set(f, "stripe", 1, 2);
    twin_set(plain, "grid", 2, 4, 6);
    twin_set(plain, "stripe", 1, 2);
    twin_forward(plain, "csw");
    twin_give(f, "lepe_weight", weight, TWIN_DIMS(2, 3, 3));
    beside_forward(f, "csw:grid=4x6,stripe=2");
    for (int n = 0; n < 48; n++)
        expected[n] = plain->o[n] + f->v[n % 24];
    twin_close("centre", f->o, expected, 48, TWIN_EXACT);
    weight[4] = weight[13] = 0;
    weight[5] = weight[9 + 7] = 1; /* the right neighbour of head 0, the one below of head 1 */
    beside_forward(f, "csw:grid=4x6,stripe=2");
    for (int n = 0; n < 24; n++) {
        expected[n] = plain->o[n] + (n % 6 % 2 == 0 ? f->v[n + 1] : 0);
        expected[24 + n] = plain->o[24 + n] + (n / 6 % 2 == 0 ? f->v[n + 6] : 0);
    }
    twin_close("neighbours", f->o, expected, 48, TWIN_EXACT);
    memset(weight, 0, sizeof weight);
    for (int n = 0; n < 24; n++)
        f->v[n] = expected[n] = expected[24 + n] = -2.5;
    beside_forward(f, "csw:grid=4x6,stripe=2");
    twin_close("constant", f->o, expected, 48, TWIN_EXACT);
    twin_drop(f);
    twin_drop(plain);
}

/* A pixel moves its column stripe in one half, its row stripe in the other, and nothing else. */
static void csw_reaches_a_cross(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 30, 30, 2, 1);
    double *weight = twin_sines(18, 4), before[60];

    (void)unused;
    twin_set(f, "grid", 2, 5, 6);
    twin_set(f, "stripe", 1, 3);
    twin_give(f, "lepe_weight", weight, TWIN_DIMS(2, 3, 3));
    beside_forward(f, "csw:grid=5x6,stripe=3");
    memcpy(before, f->o, sizeof before);
    f->v[2 * 6 + 1] += 5; /* row 2, column 1; six rows with the pad below */
    beside_forward(f, "csw:grid=5x6,stripe=3");
    for (int n = 0; n < 60; n++) {
        bool reached = n < 30 ? n % 6 < 3 : n % 30 / 6 < 3;
        assert_int_equal(f->o[n] != before[n], reached);
    }
    free(weight);
    twin_drop(f);
}

static void csw_refusals(void **unused)
{
    struct twin *f = twin_make(1, 3, 1, 12, 12, 2, 2);
    fv_attention *attention;

    (void)unused;
    assert_fails(fv_attention_new("csw", &attention), FV_E_USAGE, "'grid' must be given");
    assert_fails(fv_attention_new("csw:grid=12", &attention), FV_E_USAGE, "rows x columns, got '12'");
    assert_fails(fv_attention_new("csw:grid=3x4,stripe=0", &attention), FV_E_USAGE, "stripe");
    assert_fails(fv_attention_new("csw:grid=3x4,pad=same", &attention), FV_E_USAGE, "zero or mask");
    twin_set(f, "grid", 2, 3, 4);
    beside_refuses(f, "csw:grid=3x4", FV_E_SHAPE, "even number of query heads, got 3");
    twin_drop(f);
    f = twin_make(1, 2, 1, 12, 12, 2, 2);
    twin_set(f, "grid", 2, 3, 5);
    beside_refuses(f, "csw:grid=3x5", FV_E_SHAPE, "it has 15 cells");
    twin_set(f, "grid", 2, 3, 4);
    f->call.causal = true;
    beside_refuses(f, "csw:grid=3x4", FV_E_USAGE, "cannot be causal");
    twin_drop(f);
}

/* ---- lga --------------------------------------------------------------------------------------------------------- */

static void lga_groups_of_a_small_grid(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 16, 16, 1, 1);

    (void)unused;
    twin_set(f, "grid", 3, 1, 4, 4);
    twin_set(f, "groups", 1, 2);
    beside_forward(f, "lga:grid=1x4x4,groups=2");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 2, 8, 10));
    twin_sees(f, 0, 15, TWIN_KEYS(5, 7, 13, 15));
    twin_set(f, "grouping", 1, 1);
    beside_forward(f, "lga:grid=1x4x4,groups=2,grouping=short");
    twin_sees(f, 0, 0, TWIN_KEYS(0, 1, 4, 5));
    twin_sees(f, 0, 15, TWIN_KEYS(10, 11, 14, 15));
    twin_drop(f);
}

/* One group is dense, as many as there are rows is one position of all views, and between them lies gna. */
static void lga_is_gna_over_views(void **unused)
{
    struct twin *f = other_with_lse(twin_make(1, 2, 1, 72, 72, 3, 2));
    struct other *dense = other_make(f, 2), *lattice = other_make(f, 2), *patches = other_make(f, 2);

    (void)unused;
    twin_set(f, "grid", 3, 2, 6, 6);
    twin_set(f, "groups", 1, 1);
    beside_forward(f, "lga:grid=2x6x6,groups=1");
    other_forward(dense, &sheet_dense, f, 0, 2);
    other_agrees(f, dense, 0, 2);
    twin_set(f, "groups", 1, 6);
    beside_forward(f, "lga:grid=2x6x6,groups=6");
    twin_sees(f, 1, 40, TWIN_KEYS(4, 40));
    twin_set(f, "groups", 1, 3);
    beside_forward(f, "lga:grid=2x6x6,groups=3");
    for (int n = 0; n < 2; n++) {
        other_set(n ? patches : lattice, "grid", 3, 2, 6, 6);
        other_set(n ? patches : lattice, "window", 3, 2, 2, 2);
        other_set(n ? patches : lattice, n ? "stride" : "dilation", 3, n ? 2 : 1, n ? 2 : 3, n ? 2 : 3);
    }
    other_forward(lattice, &sheet_gna, f, 0, 2);
    other_agrees(f, lattice, 0, 2);
    twin_set(f, "grouping", 1, 1);
    beside_forward(f, "lga:grid=2x6x6,groups=3,grouping=short");
    other_forward(patches, &sheet_gna, f, 0, 2);
    other_agrees(f, patches, 0, 2);
    other_drop(dense);
    other_drop(lattice);
    other_drop(patches);
    twin_drop(f);
}

/* Views in another order come out in that order; a tap in the centre adds v, and none reaches into another view. */
static void lga_does_not_order_views(void **unused)
{
    struct twin *f = twin_make(1, 1, 1, 48, 48, 2, 1), *turned = twin_make(1, 1, 1, 48, 48, 2, 1);
    double weight[9] = {[4] = 1}, plain[48], expected[48];

    (void)unused;
    for (int n = 0; n < 48; n++) { /* views 0 1 2 become 1 2 0 */
        memcpy(turned->q + n * 2, f->q + (n + 16) % 48 * 2, 2 * sizeof(double));
        memcpy(turned->k + n * 2, f->k + (n + 16) % 48 * 2, 2 * sizeof(double));
        turned->v[n] = f->v[(n + 16) % 48];
    }
    for (int n = 0; n < 2; n++) {
        twin_set(n ? turned : f, "grid", 3, 3, 4, 4);
        twin_set(n ? turned : f, "groups", 1, 2);
        beside_forward(n ? turned : f, "lga:grid=3x4x4,groups=2");
    }
    for (int n = 0; n < 48; n++)
        expected[n] = f->o[(n + 16) % 48];
    twin_close("views", turned->o, expected, 48, TWIN_EXACT);
    memcpy(plain, f->o, sizeof plain);
    twin_give(f, "ifs_weight", weight, TWIN_DIMS(1, 3, 3));
    beside_forward(f, "lga:grid=3x4x4,groups=2");
    for (int n = 0; n < 48; n++)
        expected[n] = plain[n] + f->v[n];
    twin_close("centre", f->o, expected, 48, TWIN_EXACT);
    weight[4] = 0;
    weight[1] = 1; /* the neighbour above */
    beside_forward(f, "lga:grid=3x4x4,groups=2");
    for (int n = 0; n < 48; n++)
        expected[n] = plain[n] + (n % 16 < 4 ? 0 : f->v[n - 4]);
    twin_close("above", f->o, expected, 48, TWIN_EXACT);
    twin_drop(f);
    twin_drop(turned);
}

static void lga_refusals(void **unused)
{
    struct twin *f = twin_make(1, 2, 1, 12, 12, 2, 2);
    fv_attention *attention;

    (void)unused;
    assert_fails(fv_attention_new("lga", &attention), FV_E_USAGE, "'grid' must be given");
    assert_fails(fv_attention_new("lga:grid=7x7", &attention), FV_E_USAGE, "views x rows x columns, got '7x7'");
    assert_fails(fv_attention_new("lga:grid=2x14x10", &attention), FV_E_USAGE, "divisor of 14 rows and 10 columns");
    assert_fails(fv_attention_new("lga:grid=1x7x7,groups=0", &attention), FV_E_USAGE, "groups");
    twin_set(f, "grid", 3, 1, 7, 7);
    beside_refuses(f, "lga:grid=1x7x7", FV_E_SHAPE, "49 cells, but there are 12 tokens");
    twin_set(f, "grid", 3, 3, 2, 2);
    twin_set(f, "groups", 1, 2);
    f->call.causal = true;
    beside_refuses(f, "lga:grid=3x2x2,groups=2", FV_E_USAGE, "cannot be causal");
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(csw_of_four_pixels),
        cmocka_unit_test(csw_is_gna_by_halves),
        cmocka_unit_test(csw_pads_weigh_as_much_as_keys),
        cmocka_unit_test(csw_convolves_inside_stripes),
        cmocka_unit_test(csw_reaches_a_cross),
        cmocka_unit_test(csw_refusals),
        cmocka_unit_test(lga_groups_of_a_small_grid),
        cmocka_unit_test(lga_is_gna_over_views),
        cmocka_unit_test(lga_does_not_order_views),
        cmocka_unit_test(lga_refusals),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
