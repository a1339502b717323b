/* Rows of keys and values: what was stored is what is read, in order, whatever was dropped; pages come and go. */
#define _GNU_SOURCE
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "cache/rows.h"
#include "ops/blocks.h"
#include "support/support.h"

enum { HEADS = 3, D = 64, E = 32, CAPACITY = 3000 };

static fv_rows_options options(fv_dtype key_type, fv_dtype value_type)
{
    return (fv_rows_options){.heads = HEADS,
                             .key_dim = D,
                             .value_dim = E,
                             .capacity = CAPACITY,
                             .key_type = key_type,
                             .value_type = value_type};
}

/* The d-th channel of the row of position p: its own numbers, which every type holds with some loss. */
static float value(int64_t head, int64_t p, int64_t d)
{
    return sinf((float)(p * 17 + head * 5 + d * 3));
}

static void append(fv_ctx *ctx, fv_rows *rows, int64_t position, int64_t count)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor k, v;

    assert_ok(fv_tensor_new(ctx, &k, FV_F32, FV_DIMS(1, HEADS, count, D)));
    assert_ok(fv_tensor_new(ctx, &v, FV_F32, FV_DIMS(1, HEADS, count, E)));
    for (int64_t g = 0; g < HEADS; g++)
        for (int64_t i = 0; i < count; i++) {
            for (int64_t d = 0; d < D; d++)
                *(float *)fv_at(&k, 0, g, i, d) = value(g, position + i, d);
            for (int64_t d = 0; d < E; d++)
                *(float *)fv_at(&v, 0, g, i, d) = value(g, position + i, d + 100);
        }
    assert_ok(fv_rows_append(ctx, rows, &k, &v, position));
    fv_scratch_release(ctx, mark);
}

/* Steps of a type: of q8_0 1/127 of the block's largest, half of it either way; of q4_0 1/8. */
static double loss(fv_dtype type)
{
    return type == FV_Q8_0 ? 0.5 / 127 + 5e-4 : type == FV_Q4_0 ? 1.0 / 8 + 5e-4 : type == FV_BF16 ? 0x1p-8 : 0x1p-10;
}

/* A head holds exactly `positions`, and their rows. */
static void check_head(const fv_rows *rows, int64_t g, const int32_t *positions, int64_t count)
{
    fv_tensor side[2];

    assert_int_equal(fv_rows_count(rows, g), count);
    fv_rows_view(rows, g, 1, &side[0], &side[1]);
    for (int64_t i = 0; i < count; i++) {
        if (fv_rows_positions(rows, g)[i] != positions[i])
            fail_msg("head %d, row %d: expected position %d, got %d", (int)g, (int)i, positions[i],
                     fv_rows_positions(rows, g)[i]);
        for (int s = 0; s < 2; s++) {
            fv_tensor row = fv_slice(&side[s], 2, i, 1);
            float got[D];
            int64_t dim = row.dims[3];
            fv_blocks_load(row.dtype, row.data, 0, dim / fv_dtype_block(row.dtype), got);
            for (int64_t d = 0; d < dim; d++)
                if (!(fabs((double)got[d] - value(g, positions[i], d + 100 * s)) <= loss(row.dtype)))
                    fail_msg("head %d, position %d, side %d, channel %d: expected %g, got %g", (int)g, positions[i], s,
                             (int)d, (double)value(g, positions[i], d + 100 * s), (double)got[d]);
        }
    }
}

static const fv_dtype types[] = {FV_F16, FV_BF16, FV_F32, FV_Q8_0, FV_Q4_0};
enum { TYPES = sizeof types / sizeof *types };

/* Random appends and drops, against plain lists of positions. */
static void random_life(fv_ctx *ctx, fv_dtype key_type, fv_dtype value_type, fv_random *random)
{
    static int32_t list[HEADS][CAPACITY], keep[CAPACITY];
    int64_t count[HEADS] = {0}, position = 0;
    fv_rows_options o = options(key_type, value_type);
    fv_rows_bytes bytes;
    fv_rows rows;

    assert_ok(fv_rows_new(&rows, &o));
    for (int step = 0; step < 60; step++) {
        int64_t n = 1 + fv_random_below(random, step % 3 ? 3 : 200), most = 0;
        for (int64_t g = 0; g < HEADS; g++)
            most = fv_max(most, count[g]);
        if (most + n <= CAPACITY) {
            append(ctx, &rows, position, n);
            for (int64_t g = 0; g < HEADS; g++)
                for (int64_t i = 0; i < n; i++)
                    list[g][count[g]++] = (int32_t)(position + i);
            position += n;
        }
        int64_t g = fv_random_below(random, HEADS);
        if (count[g] == 0) continue;
        if (step % 4 == 1) { /* a stretch goes */
            int64_t from = fv_random_below(random, count[g]), gone = fv_random_below(random, count[g] - from + 1);
            fv_rows_erase(&rows, g, from, gone);
            memmove(&list[g][from], &list[g][from + gone], (size_t)(count[g] - from - gone) * sizeof list[g][0]);
            count[g] -= gone;
        } else if (step % 4 == 2) { /* some stay */
            int64_t kept = 0;
            for (int64_t i = 0; i < count[g]; i++)
                if (fv_random_below(random, 3)) keep[kept++] = (int32_t)i;
            fv_rows_keep(&rows, g, keep, kept);
            for (int64_t i = 0; i < kept; i++)
                list[g][i] = list[g][keep[i]];
            count[g] = kept;
        }
        fv_rows_measure(&rows, &bytes);
        assert_true(bytes.used <= bytes.committed && bytes.committed <= bytes.reserved);
        assert_true(bytes.committed <= bytes.used + 2 * HEADS * (64 << 10));
    }
    for (int64_t g = 0; g < HEADS; g++)
        check_head(&rows, g, list[g], count[g]);
    fv_rows_clear(&rows);
    fv_rows_measure(&rows, &bytes);
    assert_int_equal(bytes.used, 0);
    assert_int_equal(bytes.committed, 0);
    fv_rows_free(&rows);
}

static void rows_stay_in_order_whatever_is_dropped(void **state)
{
    fv_random random = fv_random_new(test_seed(), 7100);
    fv_ctx *ctx = test_ctx("cpu", 2);
    (void)state;

    for (int t = 0; t < TYPES; t++)
        for (int life = 0; life < 6; life++)
            random_life(ctx, types[t], types[(t + life) % TYPES], &random);
    fv_ctx_free(ctx);
}

/* Long spans, whose full ranges may become huge pages: what is reported is what the system has. */
static void long_spans_hold_what_is_resident(void **state)
{
    enum { LONG = 40000 };
    static unsigned char pages[1 << 14];
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_rows_options o = options(FV_F32, FV_F16);
    fv_rows rows;
    (void)state;

    o.capacity = LONG;
    assert_ok(fv_rows_new(&rows, &o));
    for (int64_t at = 0; at < LONG; at += 2000) {
        append(ctx, &rows, at, 2000);
        if (at == 20000) fv_rows_erase(&rows, 1, 0, 17000);
        if (at == 30000) assert_ok(fv_rows_erase(&rows, 2, 9000, 15000));
        fv_rows_bytes bytes;
        size_t resident = 0;
        for (int s = 0; s < 2; s++) {
            size_t count = rows.side[s].reserved * HEADS / 4096;
            assert_true(count <= sizeof pages);
            assert_int_equal(mincore(rows.side[s].memory, count * 4096, pages), 0);
            for (size_t p = 0; p < count; p++)
                resident += pages[p] & 1 ? 4096 : 0;
        }
        fv_rows_measure(&rows, &bytes);
        assert_int_equal(bytes.committed, resident);
        assert_true(bytes.committed <= bytes.used + 2 * HEADS * (64 << 10));
    }
    for (int64_t i = 0; i < LONG; i += 777) {
        fv_tensor side[2];
        fv_rows_view(&rows, 0, 1, &side[0], &side[1]);
        assert_int_equal(fv_rows_positions(&rows, 0)[i], i);
        for (int64_t d = 0; d < D; d++)
            assert_true(*(float *)fv_at(&side[0], 0, 0, i, d) == value(0, i, d));
    }
    fv_rows_free(&rows);
    fv_ctx_free(ctx);
}

static void all(int32_t *positions, int64_t from, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        positions[i] = (int32_t)(from + i);
}

static bool first_eight(void *user, int64_t head, int64_t position)
{
    (void)user;
    (void)head;
    return position < 8;
}

static void going_back_needs_the_rows_of_a_fresh_stream(void **state)
{
    static int32_t positions[CAPACITY];
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_rows_options o = options(FV_F16, FV_F16);
    fv_rows rows;
    (void)state;

    assert_ok(fv_rows_new(&rows, &o));
    append(ctx, &rows, 0, 100);
    assert_ok(fv_rows_truncate(&rows, 70, 0, NULL, NULL));
    all(positions, 0, 70);
    check_head(&rows, 1, positions, 70);
    for (int64_t g = 0; g < HEADS; g++)
        fv_rows_erase(&rows, g, 0, 40); /* a window of 30 */
    assert_fails(fv_rows_truncate(&rows, 60, 0, NULL, NULL), FV_E_ARGUMENT, "the row of position 0");
    assert_fails(fv_rows_truncate(&rows, 60, 30, NULL, NULL), FV_E_ARGUMENT, "the row of position 30");
    all(positions, 40, 30);
    check_head(&rows, 0, positions, 30);
    assert_ok(fv_rows_truncate(&rows, 60, 20, NULL, NULL));
    check_head(&rows, 0, positions, 20);
    fv_rows_clear(&rows);
    append(ctx, &rows, 0, 20);
    fv_rows_erase(&rows, 2, 10, 5);
    assert_ok(fv_rows_truncate(&rows, 16, 0, first_eight, NULL));
    assert_int_equal(fv_rows_count(&rows, 2), 11);
    fv_rows_erase(&rows, 2, 3, 1);
    assert_fails(fv_rows_truncate(&rows, 15, 0, first_eight, NULL), FV_E_ARGUMENT, "the row of position 3");
    fv_rows_free(&rows);
    fv_ctx_free(ctx);
}

static void rows_merge_into_the_last(void **state)
{
    static const int32_t place[] = {2, 5, 6}, wrong[] = {5, 2, 6}, left[] = {0, 1, 3, 4, 6, 7};
    static const float weight[] = {0.5F, 0.25F, 0.25F};
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_rows_options o = options(FV_F32, FV_F32);
    fv_tensor keys, values;
    fv_rows rows;
    (void)state;

    assert_ok(fv_rows_new(&rows, &o));
    append(ctx, &rows, 0, 8);
    assert_fails(fv_rows_merge(ctx, &rows, 1, wrong, weight, 3), FV_E_ARGUMENT, "merge: row 1");
    assert_ok(fv_rows_merge(ctx, &rows, 1, place, weight, 3));
    assert_int_equal(fv_rows_count(&rows, 1), 6);
    fv_rows_view(&rows, 1, 1, &keys, &values);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(fv_rows_positions(&rows, 1)[i], left[i]);
        for (int64_t d = 0; d < D; d++) {
            float got = *(float *)fv_at(&keys, 0, 0, i, d), expected = value(1, left[i], d);
            if (i == 4) expected = 0.5F * value(1, 2, d) + 0.25F * (value(1, 5, d) + value(1, 6, d));
            assert_true(fabsf(got - expected) <= 1e-6F);
        }
    }
    assert_ok(fv_rows_merge(ctx, &rows, 0, place, NULL, 3));
    fv_rows_view(&rows, 0, 1, &keys, &values);
    for (int64_t d = 0; d < E; d++) {
        float expected = (value(0, 2, d + 100) + value(0, 5, d + 100) + value(0, 6, d + 100)) / 3;
        assert_true(fabsf(*(float *)fv_at(&values, 0, 0, 4, d) - expected) <= 1e-6F);
    }
    fv_rows_free(&rows);
    fv_ctx_free(ctx);
}

static void rows_change_their_types(void **state)
{
    static int32_t positions[40];
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_rows_options o = options(FV_F32, FV_F16);
    fv_rows_bytes bytes;
    fv_rows rows;
    (void)state;

    all(positions, 0, 40);
    assert_ok(fv_rows_new(&rows, &o));
    append(ctx, &rows, 0, 40);
    fv_rows_erase(&rows, 0, 0, 3);
    assert_ok(fv_rows_convert(ctx, &rows, FV_Q8_0, FV_Q4_0));
    check_head(&rows, 0, positions + 3, 37);
    check_head(&rows, 2, positions, 40);
    fv_rows_measure(&rows, &bytes);
    assert_int_equal(bytes.used, (37 + 2 * 40) * (2 * 34 + 18));
    assert_fails(fv_rows_convert(ctx, &rows, FV_I8, FV_F16), FV_E_DTYPE, "cache rows");
    check_head(&rows, 2, positions, 40);
    fv_rows_free(&rows);
    o.key_dim = 48;
    o.key_type = FV_Q8_0;
    assert_fails(fv_rows_new(&rows, &o), FV_E_SHAPE, "a head dim that 32 divides, got 48");
    o.capacity = INT32_MAX;
    o.heads = 1LL << 40;
    assert_fails(fv_rows_new(&rows, &o), FV_E_MEMORY, "more than memory can hold");
    fv_ctx_free(ctx);
}

/* Blocks against the formats' definition: d = largest / 127, and x = d q with the nearest q; largest / -8 for q4_0. */
static void blocks_are_stored_as_the_formats_say(void **state)
{
    fv_random random = fv_random_new(test_seed(), 7200);
    (void)state;

    for (int trial = 0; trial < 400; trial++) {
        float in[32], out[32], most = 0;
        uint8_t block[34];
        for (int i = 0; i < 32; i++) {
            in[i] = trial == 0 ? 0 : fv_random_normal(&random);
            if (fabsf(in[i]) > fabsf(most)) most = in[i];
        }
        fv_blocks_store(FV_Q8_0, in, 32, block);
        fv_blocks_load(FV_Q8_0, block, 0, 1, out);
        /* half a step, and the scale's own rounding to f16 times up to 127 steps */
        for (int i = 0; i < 32; i++)
            assert_true(fabsf(out[i] - in[i]) <= fabsf(most) / 127 * 0.5001F + fabsf(in[i]) * 0x1p-11F);
        fv_blocks_store(FV_Q4_0, in, 32, block);
        fv_blocks_load(FV_Q4_0, block, 0, 1, out);
        for (int i = 0; i < 32; i++) { /* the far end of the other sign has 7 steps: cut there */
            float low = fminf(most, -most * 7 / 8), high = fmaxf(most, -most * 7 / 8);
            float cut = fminf(fmaxf(in[i], low), high);
            assert_true(fabsf(out[i] - cut) <= fabsf(most) / 8 * 0.5001F + fabsf(in[i]) * 0x1p-11F);
        }
    }
}

static void values_that_are_no_numbers_spoil_their_block_only(void **state)
{
    static const fv_dtype blocked[] = {FV_Q8_0, FV_Q4_0};
    (void)state;

    for (int t = 0; t < 2; t++) {
        float in[96], out[96];
        uint8_t blocks[3 * 34];
        for (int i = 0; i < 96; i++)
            in[i] = 0.5F;
        in[40] = NAN;
        in[41] = INFINITY;
        fv_blocks_store(blocked[t], in, 96, blocks);
        fv_blocks_load(blocked[t], blocks, 0, 3, out);
        for (int i = 0; i < 96; i++)
            assert_true(i / 32 == 1 ? isnan(out[i]) : fabsf(out[i] - 0.5F) < 1e-3F);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(rows_stay_in_order_whatever_is_dropped),
        cmocka_unit_test(long_spans_hold_what_is_resident),
        cmocka_unit_test(going_back_needs_the_rows_of_a_fresh_stream),
        cmocka_unit_test(rows_merge_into_the_last),
        cmocka_unit_test(rows_change_their_types),
        cmocka_unit_test(blocks_are_stored_as_the_formats_say),
        cmocka_unit_test(values_that_are_no_numbers_spoil_their_block_only),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
