/* Kernels for few rows of attention (decode) on every instruction set, each number of rows and type of keys and values:
 * against sums in double precision of the elements as stored, within what rounding to the kernel's operands allows. */
#include <math.h>

#include "ops/cpu/kernels.h"
#include "support/stored.h"

enum { ROWS = 8, MOST_KEYS = 150, MOST_COLUMNS = 320, STRIDE = 256 };

static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_Q8_0, FV_Q4_0};

struct few_case {
    const struct fv_kernels *kernels;
    const struct fv_few_kernels *few;
    fv_dtype dtype;
    bool shortened; /* operands are rounded to 16 bits */
    int rows;
    int64_t keys, d, row_bytes;
    const char *stored;
    double (*element)[MOST_COLUMNS]; /* [keys]: what is stored */
};

static void check(const struct few_case *c, const char *what, int row, int64_t place, double got, double expected,
                  double tolerance)
{
    if (!(fabs(got - expected) <= tolerance))
        fail_msg("%s of %s%s, %d rows, %lld keys, d=%lld: row %d place %lld: expected %.9g within %.3g, got %.9g", what,
                 fv_dtype_name(c->dtype), c->shortened ? " shortened" : "", c->rows, (long long)c->keys,
                 (long long)c->d, row, (long long)place, expected, tolerance, got);
}

/* Rounding to bf16 (unit 2^-8) of both operands, sums in f32 in any order. */
static double rounding(const struct few_case *c, int64_t terms)
{
    return (c->shortened ? 2.02 * 0x1p-8 : 0) + (double)(terms + 4) * 0x1p-24;
}

static void dots_of(const struct few_case *c, const float *q, float *out)
{
    static float taken[ROWS * MOST_COLUMNS];

    for (int r = 0; c->few->query && r < c->rows; r++)
        c->few->query(fv_round_up(c->d, 32), q + r * MOST_COLUMNS, taken + r * MOST_COLUMNS);
    c->few->dots(c->rows, c->d, c->few->query ? taken : q, MOST_COLUMNS, c->stored, c->row_bytes, c->keys, out, STRIDE);
}

static void check_dots(const struct few_case *c, fv_random *random)
{
    static float q[ROWS * MOST_COLUMNS], out[ROWS * STRIDE];
    bool integers = c->shortened && fv_dtype_block(c->dtype) > 1;

    memset(q, 0, sizeof q);
    for (int r = 0; r < ROWS; r++)
        for (int64_t n = 0; n < c->d; n++)
            q[r * MOST_COLUMNS + n] = (float)fv_random_normal(random);
    dots_of(c, q, out);
    for (int r = 0; r < c->rows; r++) {
        const float *row = q + r * MOST_COLUMNS;
        double largest = 0;
        for (int64_t n = 0; n < c->d; n++)
            largest = fmax(largest, fabs((double)row[n]));
        for (int64_t key = 0; key < c->keys; key++) {
            double expected = 0, products = 0, size = 0;
            for (int64_t n = 0; n < c->d; n++) {
                expected += row[n] * c->element[key][n];
                products += fabs(row[n] * c->element[key][n]);
                size += fabs(c->element[key][n]);
            }
            /* integers: q is a multiple of its largest / 32767, and a block's sum is exact */
            check(c, "dots", r, key, out[r * STRIDE + key], expected,
                  integers ? size * largest / 65534 * 1.01 + products * (double)(c->d / 32 + 8) * 0x1p-24
                           : products * rounding(c, c->d));
        }
    }
}

static void check_add(const struct few_case *c, fv_random *random)
{
    static float p[ROWS * STRIDE], joined[ROWS * STRIDE], o[ROWS * MOST_COLUMNS], before[ROWS * MOST_COLUMNS];

    memset(p, 0, sizeof p);
    for (int r = 0; r < ROWS; r++) {
        for (int64_t key = 0; key < c->keys; key++)
            p[r * STRIDE + key] = (float)fv_random_uniform(random);
        if (c->few->pairs) c->kernels->join_pairs(STRIDE, p + r * STRIDE, joined + r * STRIDE);
    }
    for (int n = 0; n < ROWS * MOST_COLUMNS; n++)
        o[n] = before[n] = (float)fv_random_normal(random);
    c->few->add(c->rows, c->d, c->few->pairs ? joined : p, STRIDE, c->stored, c->row_bytes, c->keys, o, MOST_COLUMNS);
    for (int r = 0; r < ROWS; r++)
        for (int64_t n = 0; n < MOST_COLUMNS; n++) {
            double expected = before[r * MOST_COLUMNS + n], products = 0, sums = 0;
            if (r < c->rows && n >= c->d && n < fv_round_up(c->d, 2 * c->kernels->width)) continue; /* padding */
            for (int64_t key = 0; r < c->rows && n < c->d && key < c->keys; key++) {
                expected += p[r * STRIDE + key] * c->element[key][n];
                products += fabs(p[r * STRIDE + key] * c->element[key][n]);
            }
            if (r < c->rows && n < c->d) sums = (double)(c->keys + 4) * 0x1p-24;
            check(c, "add", r, n, o[r * MOST_COLUMNS + n], expected,
                  products * rounding(c, c->keys) + fabs((double)before[r * MOST_COLUMNS + n]) * sums);
        }
}

/* NaN in a row of q, or in a key, is seen in its own logits, and moves no bit of the others. */
static void check_spoilt(const struct few_case *c, fv_random *random)
{
    static float q[ROWS * MOST_COLUMNS], before[ROWS * STRIDE], after[ROWS * STRIDE];
    int64_t key = fv_random_below(random, c->keys), n = fv_random_below(random, c->d), bytes = c->row_bytes;
    int row = (int)fv_random_below(random, c->rows);
    char *at = (char *)(uintptr_t)c->stored + key * bytes, kept[MOST_COLUMNS * sizeof(float)];

    memset(q, 0, sizeof q);
    for (int r = 0; r < c->rows; r++)
        for (int64_t i = 0; i < c->d; i++)
            q[r * MOST_COLUMNS + i] = (float)fv_random_normal(random);
    dots_of(c, q, before);
    memcpy(kept, at, (size_t)bytes);
    if (fv_dtype_block(c->dtype) > 1)
        memcpy(at + n / 32 * (int64_t)fv_dtype_block_bytes(c->dtype), &(uint16_t){0x7e00}, 2); /* a block's scale */
    else
        fv_store(c->dtype, at, n, NAN);
    dots_of(c, q, after);
    memcpy(at, kept, (size_t)bytes);
    for (int r = 0; r < c->rows; r++)
        for (int64_t i = 0; i < c->keys; i++)
            if (i == key ? !isnan(after[r * STRIDE + i])
                         : memcmp(&after[r * STRIDE + i], &before[r * STRIDE + i], sizeof *after) != 0)
                check(c, "dots beside a key of NaN", r, i, after[r * STRIDE + i], before[r * STRIDE + i], -1);
    q[row * MOST_COLUMNS + n] = NAN;
    dots_of(c, q, after);
    for (int r = 0; r < c->rows; r++)
        for (int64_t i = 0; i < c->keys; i++)
            if (r == row ? !isnan(after[r * STRIDE + i])
                         : memcmp(&after[r * STRIDE + i], &before[r * STRIDE + i], sizeof *after) != 0)
                check(c, "dots beside a query of NaN", r, i, after[r * STRIDE + i], before[r * STRIDE + i], -1);
}

static void check_kernels(fv_ctx *ctx, bool shortened)
{
    const struct fv_kernels *kernels = fv_kernels_of(ctx);
    const struct fv_few_kernels *table = shortened ? kernels->few_short : kernels->few;
    static double element[MOST_KEYS][MOST_COLUMNS];
    static uint64_t stream;
    fv_random random = fv_random_new(test_seed(), ++stream);

    if (!table) return;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        for (int rows = 1; rows <= ROWS; rows++)
            for (int turn = 0; turn < 6; turn++) {
                int64_t keys = 1 + fv_random_below(&random, turn < 3 ? MOST_KEYS : 20);
                int64_t d = 1 + fv_random_below(&random, turn % 2 ? 130 : MOST_COLUMNS - 32);
                d = fv_round_up(d, fv_dtype_block(types[t]));
                fv_tensor stored = test_stored(ctx, types[t], keys, d);
                struct few_case c = {
                    .kernels = kernels, .few = &table[types[t]], .dtype = types[t], .shortened = shortened};
                c.rows = rows;
                c.keys = keys;
                c.d = d;
                c.row_bytes = (int64_t)fv_dtype_block_bytes(types[t]) * (d / fv_dtype_block(types[t]));
                c.stored = stored.data;
                c.element = element;
                for (int64_t key = 0; key < keys; key++) {
                    static float row[MOST_COLUMNS];
                    fv_kernels_load(kernels, types[t], c.stored + key * c.row_bytes, 0, d, row);
                    for (int64_t n = 0; n < d; n++)
                        element[key][n] = row[n];
                }
                check_dots(&c, &random);
                check_add(&c, &random);
                check_spoilt(&c, &random);
            }
}

static void check_isa(fv_ctx *ctx)
{
    check_kernels(ctx, false);
    check_kernels(ctx, true);
}

static void few_rows_agree_with_double_sums(void **state)
{
    (void)state;
    test_each_isa(check_isa);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(few_rows_agree_with_double_sums)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
