/* Windows on images: worked numbers and what must hold, of the twins and of the library, and where names agree. */
#include <math.h>
#include <stdlib.h>

#include "support/beside.h"

/* Query heads head .. head + heads - 1 of a call of one batch by another definition: o and lse, to be freed. */
struct other {
    sheet_option option[6];
    double values[6][4];
    double *o, *lse;
};

static struct other *other_make(const struct twin *f, int64_t heads)
{
    struct other *other = calloc(1, sizeof *other);

    assert_non_null(other);
    other->o = sheet_zeros(heads * f->call.N * f->call.Dv);
    other->lse = sheet_zeros(heads * f->call.N);
    return other;
}

static void other_drop(struct other *other)
{
    free(other->o);
    free(other->lse);
    free(other);
}

static void other_set(struct other *other, const char *name, int count, int64_t a, int64_t b, int64_t c)
{
    int slot = 0;

    while (other->option[slot].count > 0)
        slot++;
    memcpy(other->values[slot], (double[]){(double)a, (double)b, (double)c}, 3 * sizeof(double));
    other->option[slot] = (sheet_option){name, count, other->values[slot]};
}

static void other_forward(struct other *other, const sheet *definition, const struct twin *f, int64_t head,
                          int64_t heads)
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

/* Those heads of f came out as by the other definition. */
static void agree(const struct twin *f, const struct other *other, int64_t head, int64_t heads)
{
    int64_t N = f->call.N, Dv = f->call.Dv;

    twin_close("o", f->o + head * N * Dv, other->o, heads * N * Dv, TWIN_EXACT);
    if (f->call.lse) twin_close("lse", f->lse + head * N, other->lse, heads * N, TWIN_EXACT);
}

static struct twin *with_lse(struct twin *f)
{
    f->call.lse = f->lse;
    return f;
}

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
    struct twin *f = with_lse(twin_make(1, 4, 2, 6 * 8, 6 * 8, 3, 2));
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
        agree(f, other, 2 * half, 2);
    }
    twin_set(f, "stripe", 1, 100);
    beside_forward(f, "csw:grid=6x8,stripe=100");
    other_forward(all, &sheet_dense, f, 0, 4);
    agree(f, all, 0, 4);
    other_drop(columns);
    other_drop(rows);
    other_drop(all);
    twin_drop(f);
}

/* q = 0: pads count among the keys, or do not. */
static void csw_pads_weigh_as_much_as_keys(void **unused)
{
    struct twin *f = with_lse(twin_make(1, 2, 1, 10, 10, 1, 1));
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
    assert_fails(fv_attention_new("csw:grid=12", &attention), FV_E_USAGE, "rows x columns, got 1");
    assert_fails(fv_attention_new("csw:grid=3x4,stripe=0", &attention), FV_E_USAGE, "stripe");
    assert_fails(fv_attention_new("csw:grid=3x4,pad=same", &attention), FV_E_USAGE, "zero or mask");
    twin_set(f, "grid", 2, 3, 4);
    beside_refuses(f, "csw:grid=3x4", FV_E_SHAPE, "even number of query heads, got 3");
    twin_drop(f);
    f = twin_make(1, 2, 1, 12, 12, 2, 2);
    twin_set(f, "grid", 2, 3, 5);
    beside_refuses(f, "csw:grid=3x5", FV_E_SHAPE, "3x5 has 15 cells");
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
    struct twin *f = with_lse(twin_make(1, 2, 1, 72, 72, 3, 2));
    struct other *dense = other_make(f, 2), *lattice = other_make(f, 2), *patches = other_make(f, 2);

    (void)unused;
    twin_set(f, "grid", 3, 2, 6, 6);
    twin_set(f, "groups", 1, 1);
    beside_forward(f, "lga:grid=2x6x6,groups=1");
    other_forward(dense, &sheet_dense, f, 0, 2);
    agree(f, dense, 0, 2);
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
    agree(f, lattice, 0, 2);
    twin_set(f, "grouping", 1, 1);
    beside_forward(f, "lga:grid=2x6x6,groups=3,grouping=short");
    other_forward(patches, &sheet_gna, f, 0, 2);
    agree(f, patches, 0, 2);
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
    assert_fails(fv_attention_new("lga:grid=7x7", &attention), FV_E_USAGE, "views x rows x columns, got 2");
    assert_fails(fv_attention_new("lga:grid=2x14x10", &attention), FV_E_USAGE, "divisor of 14 rows and 10 columns");
    assert_fails(fv_attention_new("lga:grid=1x7x7,groups=0", &attention), FV_E_USAGE, "groups");
    twin_set(f, "grid", 3, 1, 7, 7);
    beside_refuses(f, "lga:grid=1x7x7", FV_E_SHAPE, "1x7x7 does not make 12 tokens");
    twin_set(f, "grid", 3, 3, 2, 2);
    twin_set(f, "groups", 1, 2);
    f->call.causal = true;
    beside_refuses(f, "lga:grid=3x2x2,groups=2", FV_E_USAGE, "cannot be causal");
    twin_drop(f);
}

/* ---- halo -------------------------------------------------------------------------------------------------------- */

/* q = 0 and values of ones: a corner's share of what is not beside the image. */
static void halo_corners(void **unused)
{
    static const double corner = 9. / 16;
    struct twin *f = with_lse(twin_make(1, 1, 1, 16, 16, 2, 1));

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
    struct twin *f = with_lse(twin_make(1, 4, 2, 36, 36, 2, 3));
    struct other *dense = other_make(f, 4), *gna = other_make(f, 4);

    (void)unused;
    twin_set(f, "grid", 2, 6, 6);
    twin_set(f, "block", 1, 6);
    twin_set(f, "halo", 1, 0);
    beside_forward(f, "halo:grid=6x6,block=6,halo=0");
    other_forward(dense, &sheet_dense, f, 0, 4);
    agree(f, dense, 0, 4);
    twin_set(f, "block", 1, 3);
    beside_forward(f, "halo:grid=6x6,block=3,halo=0");
    other_set(gna, "grid", 2, 6, 6, 0);
    other_set(gna, "window", 1, 3, 0, 0);
    other_set(gna, "stride", 1, 3, 0, 0);
    other_forward(gna, &sheet_gna, f, 0, 4);
    agree(f, gna, 0, 4);
    other_drop(dense);
    other_drop(gna);
    twin_drop(f);
}

/* Queries of every second row and column give what they give among all. */
static void halo_strided_is_a_part(void **unused)
{
    struct twin *f = with_lse(twin_make(1, 2, 1, 64, 64, 4, 3)), *part = with_lse(twin_make(1, 2, 1, 16, 64, 4, 3));
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
    assert_fails(fv_attention_new("halo:grid=8", &attention), FV_E_USAGE, "rows x columns, got 1");
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
    struct twin *f = with_lse(twin_make(1, 1, 1, 8, 8, 1, 1));

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
    struct twin *f = with_lse(twin_make(1, 2, 1, 35, 35, 3, 2));

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
    struct twin *f = with_lse(twin_make(1, 4, 2, 42, 42, 3, 2)), *flat = with_lse(twin_make(1, 1, 1, 8, 8, 1, 1));
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
    agree(f, gna, 0, 4);
    f->call.options = 0;
    twin_set(f, "grid", 2, 6, 7);
    twin_set(f, "window", 1, 0);
    beside_forward(f, "na:grid=6x7,window=0");
    other_forward(dense, &sheet_dense, f, 0, 4);
    agree(f, dense, 0, 4);

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
    agree(flat, line, 0, 1);
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
