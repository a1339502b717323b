/* Products with packed weights: every stored type on every instruction set against double sums over the values that the
 * file's own form stands for. */
#include "support/stored.h"

#include <math.h>
#include <stdlib.h>

#include "ops/backend.h"
#include "ops/blocks.h"
#include "support/tensors.h"

/* A weight with its packed form and its values. */
struct weight {
    fv_tensor tensor;
    fv_packed packed;
    float *values;
};

static struct weight new_weight(fv_ctx *ctx, fv_dtype dtype, int64_t rows, int64_t k)
{
    struct weight w = {.tensor = test_stored(ctx, dtype, rows, k)};
    size_t bytes = fv_packed_bytes(&w.tensor);
    int64_t blocks = k / fv_dtype_block(dtype);
    void *memory;

    assert_true(bytes > 0);
    assert_ok(fv_arena_alloc(ctx->arena, &memory, (int64_t)bytes, 1));
    w.packed = fv_packed_at(&w.tensor, memory);
    for (int64_t g = 0; g < fv_packed_groups(&w.packed); g++)
        fv_pack_group(&w.tensor, &w.packed, g);
    assert_ok(FV_SCRATCH(ctx, w.values, rows * k));
    for (int64_t r = 0; r < rows; r++)
        fv_blocks_load(dtype, w.tensor.data, r * blocks, blocks, w.values + r * k);
    return w;
}

/* x_i . w_r + bias, and how far off it may be.  Few rows: x is held to half of max|x| / 32767 of its 32 columns; many
 * rows with bf16: x and w to 2^-8 of themselves each at most.
 * Sums in f32: a rounding of 2^-24 for each part, of about k / 8 partial sums. */
static double dot(const struct weight *w, const float *x, int64_t r, int64_t k, bool words, bool pairs, double *bound)
{
    double sum = 0;

    *bound = 0;
    for (int64_t n = 0; n < k; n += 32) {
        double top = 0;
        for (int64_t c = n; c < n + 32; c++)
            top = fmax(top, fabs((double)x[c]));
        for (int64_t c = n; c < n + 32; c++) {
            double product = (double)x[c] * (double)w->values[r * k + c], size = fabs(product);
            sum += product;
            *bound += size * (double)k * 0x1p-24;
            if (words) *bound += fabs((double)w->values[r * k + c]) * top * (0.5 / 32767 + 0x1p-22);
            if (pairs) *bound += size * 2 * 0x1p-8;
        }
    }
    /* integers times a scale before a minimum is added: a block's terms may be larger than their sum */
    *bound = *bound * 4 + 1e-6;
    return sum;
}

static double gated(fv_map gate, double x)
{
    if (gate == FV_MAP_SILU_MUL) return x / (1 + exp(-x));
    return 0.5 * x * (1 + tanh(sqrt(2 / acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

struct sizes {
    int64_t m, k, rows[3];
};

static void check_sizes(fv_ctx *ctx, fv_dtype dtype, const struct sizes *s, fv_map gate)
{
    fv_mark mark = fv_arena_mark(ctx->arena);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(s->m, s->k)), before[3];
    fv_linear_args args = {.x = x, .gate = gate};
    struct weight w[3];
    bool words = s->m < 8, pairs = !words && ctx->isa == FV_ISA_AVX512;

    for (; args.parts < 3 && s->rows[args.parts]; args.parts++) {
        fv_linear_part *p = &args.part[args.parts];
        int n = args.parts;
        w[n] = new_weight(ctx, dtype, s->rows[n], s->k);
        *p = (fv_linear_part){.weight = w[n].tensor, .packed = &w[n].packed, .add = n == 1 && !gate};
        before[n] = test_random(ctx, 1, FV_DIMS(s->m, s->rows[n]));
        p->out = test_cast(ctx, &before[n], FV_F32);
        if (n != 1) p->bias = test_random(ctx, 1, FV_DIMS(s->rows[n]));
    }
    assert_ok(fv_linear(ctx, &args));
    for (int n = 0; n < (gate ? 1 : args.parts); n++)
        for (int64_t i = 0; i < s->m; i++)
            for (int64_t r = 0; r < s->rows[n]; r++) {
                const fv_linear_part *p = &args.part[n];
                const float *row = (const float *)x.data + i * s->k;
                double bound, other, expected = dot(&w[n], row, r, s->k, words, pairs, &bound);
                double got = ((float *)p->out.data)[i * s->rows[n] + r];
                if (fv_present(&p->bias)) expected += ((float *)p->bias.data)[r];
                if (p->add) expected += ((float *)before[n].data)[i * s->rows[n] + r];
                if (gate) { /* the gates' slopes are at most 1.13 */
                    double up = dot(&w[1], row, r, s->k, words, pairs, &other);
                    bound = 1.13 * bound * (fabs(up) + other) + fabs(gated(gate, expected)) * other + 1e-6;
                    expected = gated(gate, expected) * up;
                }
                bound += fabs(expected) * 0x1p-22;
                if (!(fabs(got - expected) <= bound))
                    fail_msg(
                        "%s: %s [%lld x %lld] part %d row %lld column %lld: expected %.9g, got %.9g, tolerance %.3g",
                        fv_ctx_backend(ctx), fv_dtype_name(dtype), (long long)s->m, (long long)s->k, n, (long long)i,
                        (long long)r, expected, got, bound);
            }
    fv_arena_release(ctx->arena, mark);
}

static const struct sizes sizes[] = {{1, 256, {16}},        {1, 512, {33, 7, 160}}, {2, 256, {17, 48}},
                                     {3, 256, {40, 16, 1}}, {5, 512, {50, 200}},    {7, 256, {130}},
                                     {8, 256, {16, 33}},    {9, 512, {1, 100, 64}}, {45, 256, {150, 31}}};
enum { SIZES = sizeof sizes / sizeof *sizes };

static void each_case(void (*check)(fv_ctx *ctx, fv_dtype dtype))
{
    for (int i = 0; test_isas[i]; i++)
        for (int threads = 1; threads <= 3; threads += 2) {
            fv_ctx *ctx = test_isa_ctx(test_isas[i], threads, FV_PRECISION_AUTO);
            for (int n = 0; ctx && n < TEST_BLOCK_TYPES; n++)
                check(ctx, test_block_types[n]);
            fv_ctx_free(ctx);
        }
}

static void check_type(fv_ctx *ctx, fv_dtype dtype)
{
    for (int n = 0; n < SIZES; n++)
        check_sizes(ctx, dtype, &sizes[n], 0);
    if (fv_dtype_block(dtype) == 32) check_sizes(ctx, dtype, &(struct sizes){2, 96, {20, 64}}, 0);
    if (fv_dtype_block(dtype) == 32) check_sizes(ctx, dtype, &(struct sizes){11, 32, {20}}, 0);
    if (dtype == FV_Q4_1) check_sizes(ctx, dtype, &(struct sizes){1050, 64, {20}}, 0); /* more than a slab of rows */
}

static void packed_products_agree_with_stored_ones(void **state)
{
    (void)state;
    each_case(check_type);
}

static void check_gates(fv_ctx *ctx, fv_dtype dtype)
{
    check_sizes(ctx, dtype, &(struct sizes){1, 256, {70, 70}}, FV_MAP_SILU_MUL);
    check_sizes(ctx, dtype, &(struct sizes){6, 256, {33, 33}}, FV_MAP_GELU_TANH_MUL);
    check_sizes(ctx, dtype, &(struct sizes){20, 256, {150, 150}}, FV_MAP_SILU_MUL);
}

static void gates_are_applied_to_the_first_of_two(void **state)
{
    (void)state;
    each_case(check_gates);
}

/* Bytes as fv_pack_group writes them, but for those that round a group up; the last group is not full. */
static void check_packing(fv_ctx *ctx, fv_dtype dtype)
{
    fv_mark mark = fv_arena_mark(ctx->arena);
    const int64_t rows = 41, k = fv_dtype_block(dtype) * 3;
    struct weight w = new_weight(ctx, dtype, rows, k);
    fv_packed own = w.packed;
    int64_t part_bytes, scale_bytes, parts, groups = fv_packed_groups(&own);
    uint8_t *data;

    assert_true(fv_packed_format(dtype, &part_bytes, &scale_bytes, &parts));
    assert_ok(FV_SCRATCH(ctx, data, groups * own.group_bytes));
    memset(data, 0xa5, (size_t)(groups * own.group_bytes));
    own.data = data;
    for (int64_t g = 0; g < groups; g++) {
        const uint8_t *expected = w.packed.data + g * own.group_bytes, *got = own.data + g * own.group_bytes;
        ctx->backend->pack(ctx, &w.tensor, &own, g);
        for (int64_t i = 0; i < k / 32 / parts * (scale_bytes + parts * part_bytes); i++)
            if (got[i] != expected[i])
                fail_msg("%s: %s: group %lld, byte %lld: expected %d, got %d", fv_ctx_backend(ctx),
                         fv_dtype_name(dtype), (long long)g, (long long)i, expected[i], got[i]);
    }
    fv_arena_release(ctx->arena, mark);
}

static void every_way_of_packing_gives_the_same_bytes(void **state)
{
    (void)state;
    each_case(check_packing);
}

/* A row's result is the same whatever rows stand beside it, as long as both calls have few rows or both many; and for
 * any number of threads. */
static void rows_do_not_depend_on_company_or_threads(void **state)
{
    fv_tensor x, first;
    (void)state;

    for (int many = 0; many < 2; many++)
        for (int threads = 1; threads <= 3; threads++) {
            fv_ctx *ctx = test_ctx("cpu", threads);
            int64_t m = many ? 40 : 7, part = many ? 13 : 1;
            static float kept[40 * 100], values[40 * 256];
            struct weight w;
            fv_random random = fv_random_new(7, 1), scales = fv_random_new(7, 2);
            for (int i = 0; i < 40 * 256; i++)
                values[i] = (float)fv_random_normal(&random);
            assert_ok(fv_tensor_wrap(&x, values, FV_F32, FV_DIMS(m, 256)));
            w.tensor = test_stored(ctx, FV_Q4_1, 100, 256);
            for (int64_t n = 0; n < 100 * 8; n++) { /* the same weights each time */
                uint8_t *block = (uint8_t *)w.tensor.data + n * 20;
                for (int b = 4; b < 20; b++)
                    block[b] = (uint8_t)(fv_random_normal(&scales) * 100);
                block[0] = block[2] = (uint8_t)n, block[1] = block[3] = 0x20;
            }
            void *memory;
            assert_ok(fv_arena_alloc(ctx->arena, &memory, (int64_t)fv_packed_bytes(&w.tensor), 1));
            w.packed = fv_packed_at(&w.tensor, memory);
            for (int64_t g = 0; g < fv_packed_groups(&w.packed); g++)
                fv_pack_group(&w.tensor, &w.packed, g);
            fv_tensor out = test_random(ctx, 1, FV_DIMS(m, 100)), rows = fv_slice(&x, 0, m - part, part);
            fv_linear_args args = {.x = x, .parts = 1, .part = {{.weight = w.tensor, .packed = &w.packed, .out = out}}};
            assert_ok(fv_linear(ctx, &args));
            if (threads == 1) memcpy(kept, out.data, (size_t)(m * 100) * sizeof(float));
            assert_memory_equal(kept, out.data, (size_t)(m * 100) * sizeof(float));
            first = test_random(ctx, 1, FV_DIMS(part, 100));
            args.x = rows;
            args.part[0].out = first;
            assert_ok(fv_linear(ctx, &args));
            assert_memory_equal(kept + (m - part) * 100, first.data, (size_t)(part * 100) * sizeof(float));
            fv_ctx_free(ctx);
        }
}

static void nan_and_infinity_come_out(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    struct weight w = new_weight(ctx, FV_Q4_1, 20, 256);
    (void)state;

    for (int64_t m = 1; m <= 9; m += 8)
        for (int what = 0; what < 2; what++) {
            fv_tensor x = test_random(ctx, 1, FV_DIMS(m, 256)), out = test_random(ctx, 1, FV_DIMS(m, 20));
            ((float *)x.data)[77] = what ? NAN : INFINITY;
            assert_ok(fv_linear(
                ctx, &(fv_linear_args){
                         .x = x, .parts = 1, .part = {{.weight = w.tensor, .packed = &w.packed, .out = out}}}));
            for (int c = 0; c < 20; c++)
                if (isfinite(((float *)out.data)[c])) fail_msg("m %lld: a finite sum of what is not", (long long)m);
            for (int64_t c = 20; c < m * 20; c++)
                if (!isfinite(((float *)out.data)[c])) fail_msg("m %lld: another row was spoilt", (long long)m);
        }
    fv_ctx_free(ctx);
}

static void bad_arguments_are_refused_in_words(void **state)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    struct weight w = new_weight(ctx, FV_Q8_0, 20, 64), other = new_weight(ctx, FV_Q8_0, 24, 64);
    fv_tensor x = test_random(ctx, 1, FV_DIMS(2, 64)), out = test_random(ctx, 1, FV_DIMS(2, 20));
    fv_tensor narrow = test_random(ctx, 1, FV_DIMS(2, 32));
    fv_linear_args args = {.x = x, .parts = 1, .part = {{.weight = w.tensor, .packed = &w.packed, .out = out}}};
    (void)state;

    args.parts = 4;
    assert_fails(fv_linear(ctx, &args), FV_E_ARGUMENT, "expected 1 to 3 weights, got 4");
    args.parts = 1;
    args.gate = FV_MAP_SILU_MUL;
    assert_fails(fv_linear(ctx, &args), FV_E_ARGUMENT, "expected 2 weights, got 1");
    args.parts = 2;
    args.part[1] = (fv_linear_part){.weight = other.tensor, .packed = &other.packed};
    assert_fails(fv_linear(ctx, &args), FV_E_SHAPE, "two weights of the same shape");
    args = (fv_linear_args){.x = narrow, .parts = 1, .part = {{.weight = w.tensor, .packed = &w.packed, .out = out}}};
    assert_fails(fv_linear(ctx, &args), FV_E_SHAPE, "linear: weight: expected shape [*,32], got [20,64]");
    args.x = x;
    args.part[0].out = narrow;
    assert_fails(fv_linear(ctx, &args), FV_E_SHAPE, "linear: out: expected shape [2,20], got [2,32]");
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_products_agree_with_stored_ones),
        cmocka_unit_test(gates_are_applied_to_the_first_of_two),
        cmocka_unit_test(every_way_of_packing_gives_the_same_bytes),
        cmocka_unit_test(rows_do_not_depend_on_company_or_threads),
        cmocka_unit_test(nan_and_infinity_come_out),
        cmocka_unit_test(bad_arguments_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
