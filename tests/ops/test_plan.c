/* Plans: fv_plan_sees against the header's words, runs and bits against both, counts, tiles, and what is refused. */
#include "support/plans.h"

#include <stdio.h>

#include "ops/plan.h"

struct shape {
    int64_t B, H, Hkv, N, M;
};

static struct shape random_shape(fv_random *random, unsigned kinds, fv_plan *plan)
{
    struct shape s = {.B = 1 + fv_random_below(random, 2), .Hkv = 1 + fv_random_below(random, 2)};

    s.H = s.Hkv * (1 + fv_random_below(random, 3));
    s.N = 1 + fv_random_below(random, 150);
    s.M = 1 + fv_random_below(random, 150);
    *plan = (fv_plan){0};
    if (kinds & PLAN_GRID) {
        int64_t tokens = test_plan_grid(random, &plan->grid);
        s.N = test_plan_grid_queries(&plan->grid);
        if (fv_random_below(random, 2)) s.N = 1 + fv_random_below(random, s.N);
        s.M = tokens + fv_random_below(random, 8) - fv_random_below(random, 3);
        s.M = s.M < 1 ? 1 : s.M;
    }
    return s;
}

/* Every pair of every head comes out of runs and bits exactly as the predicate says, once, with its bias; and rows are
 * covered once. */
static void check_runs(fv_ctx *ctx, const fv_plan *plan, struct shape s, int64_t share, int64_t tile_rows)
{
    fv_mark mark = fv_scratch_mark(ctx);
    int64_t rows = test_plan_rows(plan, s.N), expected = 0, pairs;
    uint8_t *seen;
    double bias;
    fv_plan_view view;

    assert_ok(FV_SCRATCH(ctx, seen, s.B * s.H * rows * s.M));
    memset(seen, 0, (size_t)(s.B * s.H * rows * s.M));
    assert_ok(fv_plan_open(ctx, plan, s.B, s.H, share, tile_rows, s.N, s.M, &view));
    for (int64_t item = 0; item < view.items; item++) {
        fv_plan_tile tile;
        fv_plan_runs runs;
        fv_plan_run run;
        int64_t last = 0;
        fv_plan_tile_at(&view, item, &tile);
        assert_in_range(tile.rows, 1, tile_rows);
        fv_plan_runs_begin(&runs, &view, &tile);
        while (fv_plan_runs_next(&runs, &run)) {
            if (run.key < last || run.count < 1 || run.key + run.count > s.M)
                fail_msg("run %lld + %lld after %lld", (long long)run.key, (long long)run.count, (long long)last);
            last = run.key + run.count;
            for (int64_t key = run.key; key < last; key += 64) {
                uint64_t bits[FV_TILE];
                int count = (int)fv_min(64, last - key);
                fv_plan_bits(&runs, &run, key, count, bits);
                for (int r = 0; r < FV_TILE; r++) {
                    if (r >= tile.rows && bits[r]) fail_msg("bits beyond the tile");
                    if (run.whole && run.rows >> r & 1 && bits[r] != (count == 64 ? UINT64_MAX : (1ull << count) - 1))
                        fail_msg("a whole run has gaps");
                    for (int n = 0; n < count; n++) {
                        if (!(bits[r] >> n & 1)) continue;
                        assert_int_equal(tile.query[r], test_plan_query(plan, s.H, tile.b, tile.h, tile.row[r]));
                        for (int64_t h = tile.h; h < tile.h + share; h++) {
                            seen[((tile.b * s.H + h) * rows + tile.row[r]) * s.M + key + n]++;
                            test_plan_sees(plan, s.H, tile.b, h, tile.row[r], key + n, &bias);
                            if ((run.bias ? run.bias[r] : 0) != bias) fail_msg("entry bias");
                        }
                    }
                }
            }
        }
    }
    for (int64_t n = 0; n < s.B * s.H * rows * s.M; n++) {
        int64_t j = n % s.M, i = n / s.M % rows, h = n / s.M / rows % s.H, b = n / s.M / rows / s.H;
        bool naive = test_plan_sees(plan, s.H, b, h, i, j, &bias);
        if (fv_plan_sees(plan, s.H, b, h, i, j) != naive || seen[n] != naive)
            fail_msg("b %lld h %lld row %lld key %lld: expected %d, fv_plan_sees %d, runs %d", (long long)b,
                     (long long)h, (long long)i, (long long)j, naive, fv_plan_sees(plan, s.H, b, h, i, j), seen[n]);
        expected += naive;
    }
    assert_ok(fv_plan_pairs(ctx, plan, s.B, s.H, s.N, s.M, &pairs));
    assert_int_equal(pairs, expected);
    fv_scratch_release(ctx, mark);
}

static void random_plans_give_runs_that_agree_with_the_definition(void **state)
{
    fv_random random = fv_random_new(test_seed(), 77);
    fv_ctx *ctx = test_ctx("ref", 2);
    (void)state;

    for (int round = 0; round < 600; round++) {
        fv_mark mark = fv_scratch_mark(ctx);
        unsigned kinds = round < PLAN_KINDS ? 1u << round : test_plan_kinds(&random);
        fv_plan plan;
        struct shape s = random_shape(&random, kinds, &plan);
        test_plan_random(ctx, &random, kinds, s.B, s.H, s.Hkv, s.N, s.M, &plan);
        assert_ok(fv_plan_check(&plan, s.B, s.H, s.N, s.M, test_plan_rows(&plan, s.N)));
        int64_t share = fv_plan_heads_share(&plan, s.H, s.H / s.Hkv) ? s.H / s.Hkv : 1;
        check_runs(ctx, &plan, s, share, round % 2 ? FV_TILE : 1 + fv_random_below(&random, FV_TILE));
        fv_scratch_release(ctx, mark);
    }
    fv_ctx_free(ctx);
}

/* What the blocks of strips show the rows of each tile, each pair once, is what the definition says. */
static void strips_of_a_grid_agree_with_the_definition(void **state)
{
    fv_random random = fv_random_new(test_seed(), 78);
    fv_ctx *ctx = test_ctx("ref", 1);
    int laid = 0;
    (void)state;

    for (int round = 0; round < 300; round++) {
        fv_mark mark = fv_scratch_mark(ctx);
        fv_plan plan = {0};
        int64_t M = test_plan_grid(&random, &plan.grid), N = test_plan_grid_queries(&plan.grid);
        fv_plan_view view;
        uint8_t *seen;
        plan.causal = round % 3 == 0;
        assert_ok(fv_plan_check(&plan, 1, 1, N, M, N));
        assert_ok(fv_plan_open(ctx, &plan, 1, 1, 1, round % 2 ? FV_TILE : 1 + fv_random_below(&random, FV_TILE), N, M,
                               &view));
        assert_ok(FV_SCRATCH(ctx, seen, N * M));
        memset(seen, 0, (size_t)(N * M));
        for (int64_t item = 0; view.strips > 0 && item < view.items; item++) {
            fv_plan_tile tile;
            fv_plan_strip strip;
            fv_plan_tile_at(&view, item, &tile);
            fv_plan_strip_of(&view, &tile, &strip);
            for (int64_t block = strip.block; block < strip.end; block++) {
                int64_t key[FV_TILE];
                uint64_t bits[FV_TILE];
                int count = fv_plan_strip_keys(&view, block, key);
                assert_in_range(count, 1, FV_TILE);
                fv_plan_strip_bits(&strip, block, bits);
                for (int r = 0; r < tile.rows; r++) {
                    if (count < FV_TILE && bits[r] >> count) fail_msg("bits beyond the strip's keys");
                    for (int n = 0; n < count; n++) {
                        assert_in_range(key[n], n > 0 ? key[n - 1] + 1 : 0, M - 1);
                        seen[tile.query[r] * M + key[n]] += bits[r] >> n & 1;
                    }
                }
            }
        }
        laid += view.strips > 0;
        for (int64_t n = 0; view.strips > 0 && n < N * M; n++)
            if (seen[n] != test_plan_sees(&plan, 1, 0, 0, n / M, n % M, &(double){0}))
                fail_msg("round %d: query %lld, key %lld: seen %d times", round, (long long)(n / M), (long long)(n % M),
                         seen[n]);
        fv_scratch_release(ctx, mark);
    }
    assert_true(laid > 100);
    fv_ctx_free(ctx);
}

/* Keys taken at once are those that runs would give one by one, whatever comes between. */
static void keys_taken_at_once_are_those_of_the_runs(void **state)
{
    fv_random random = fv_random_new(test_seed(), 79);
    fv_ctx *ctx = test_ctx("ref", 1);
    int at_once = 0, by_block = 0;
    (void)state;

    for (int round = 0; round < 100; round++) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t N = 64, M = 1 + fv_random_below(&random, 2000), one_in = 1 + fv_random_below(&random, 6), count = 0;
        int64_t row_start[2] = {0}, taken[2000];
        int32_t entry[2000];
        fv_plan plan = {.causal = round % 2, .offset = M - N};
        fv_plan_view view;
        fv_plan_tile tile;
        fv_plan_runs runs;
        fv_plan_run run;
        for (int32_t j = 0; j < M; j++)
            if (fv_random_below(&random, one_in) == 0) entry[row_start[1]++] = j;
        plan.lists = (fv_lists){
            .query_block = N, .key_block = 1, .groups = 1, .key_blocks = M, .row_start = row_start, .entry = entry};
        assert_ok(fv_plan_open(ctx, &plan, 1, 1, 1, FV_TILE, N, M, &view));
        fv_plan_tile_at(&view, 0, &tile);
        fv_plan_runs_begin(&runs, &view, &tile);
        for (bool more = true; more;) {
            int want = 1 + (int)fv_random_below(&random, FV_TILE);
            int got = fv_random_below(&random, 3) ? fv_plan_runs_keys(&runs, want, 0, taken + count) : 0;
            assert_true(got == 0 || got == want);
            at_once += got;
            count += got;
            if (got > 0) {
                int64_t next[FV_TILE];
                int ahead = fv_plan_runs_ahead(&runs, want, next);
                assert_int_equal(ahead, fv_min(want, row_start[1] - count));
                for (int n = 0; n < ahead; n++)
                    assert_int_equal(next[n], entry[count + n]);
                continue;
            }
            int64_t block;
            uint64_t bits = fv_random_below(&random, 3) ? fv_plan_runs_block(&runs, &block) : 0;
            for (uint64_t left = bits; left; left &= left - 1)
                taken[count++] = block * FV_TILE + __builtin_ctzll(left);
            by_block += bits != 0;
            if (bits) continue;
            more = fv_plan_runs_next(&runs, &run);
            for (int64_t n = 0; more && n < run.count; n++)
                taken[count++] = run.key + n;
        }
        for (int64_t n = 0; n < count && n < row_start[1]; n++)
            assert_int_equal(taken[n], entry[n]);
        assert_int_equal(count, row_start[1]);
        fv_scratch_release(ctx, mark);
    }
    assert_true(at_once > 1000 && by_block > 100);
    fv_ctx_free(ctx);
}

/* Words of bit tiles that lie as kernels take them, cut by intervals and by the ends of both axes, are what pairs say.
 */
static void words_of_bit_tiles_are_those_of_pairs(void **state)
{
    enum { BLOCKS = 4, TILES = 3 };
    fv_random random = fv_random_new(test_seed(), 80);
    fv_ctx *ctx = test_ctx("ref", 1);
    int64_t shown = 0;
    (void)state;

    for (int round = 0; round < 40; round++) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t N = 1 + fv_random_below(&random, BLOCKS * FV_TILE), M = 1 + fv_random_below(&random, BLOCKS * FV_TILE);
        int64_t row_start[BLOCKS + 1] = {0}, seen = 0, pairs = 0;
        int32_t entry[BLOCKS * BLOCKS], tile[BLOCKS * BLOCKS];
        uint64_t tiles[TILES * FV_TILE];
        fv_plan plan = {.causal = round % 2, .offset = M - N, .window = {.window = round % 3 ? 0 : 100}};
        fv_plan_view view;
        for (int n = 0; n < TILES * FV_TILE; n++)
            tiles[n] = (uint64_t)fv_random_u32(&random) << 32 | fv_random_u32(&random);
        for (int32_t g = 0; g < BLOCKS; g++) {
            int64_t *end = &row_start[g + 1];
            *end = row_start[g];
            for (int32_t block = 0; block < BLOCKS; block++) {
                if (fv_random_below(&random, 4) == 0) continue;
                entry[*end] = block;
                tile[(*end)++] = (int32_t)fv_random_below(&random, TILES + 1);
            }
        }
        plan.lists = (fv_lists){.query_block = FV_TILE,
                                .key_block = FV_TILE,
                                .groups = BLOCKS,
                                .key_blocks = BLOCKS,
                                .row_start = row_start,
                                .entry = entry,
                                .tile = tile,
                                .tiles = tiles,
                                .tile_words = FV_TILE};
        assert_ok(fv_plan_check(&plan, 1, 1, N, M, N));
        assert_ok(fv_plan_open(ctx, &plan, 1, 1, 1, round % 4 ? FV_TILE : 40, N, M, &view));
        for (int64_t item = 0; item < view.items; item++) {
            fv_plan_tile rows;
            fv_plan_runs runs;
            fv_plan_run run;
            fv_plan_tile_at(&view, item, &rows);
            fv_plan_runs_begin(&runs, &view, &rows);
            while (fv_plan_runs_next(&runs, &run))
                for (int64_t key = run.key; key < run.key + run.count; key += FV_TILE) {
                    uint64_t bits[FV_TILE];
                    int count = (int)fv_min(FV_TILE, run.key + run.count - key);
                    fv_plan_bits(&runs, &run, key, count, bits);
                    for (int r = 0; r < FV_TILE; r++) {
                        seen += __builtin_popcountll(bits[r]);
                        for (uint64_t word = bits[r]; word; word &= word - 1)
                            assert_true(r < rows.rows &&
                                        fv_plan_sees(&plan, 1, 0, 0, rows.row[r], key + __builtin_ctzll(word)));
                    }
                }
        }
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < M; j++)
                pairs += fv_plan_sees(&plan, 1, 0, 0, i, j);
        assert_int_equal(seen, pairs);
        shown += seen;
        fv_scratch_release(ctx, mark);
    }
    assert_true(shown > 0);
    fv_ctx_free(ctx);
}

/* Starts and ends the sheet of generalised neighbourhood attention lists for small axes. */
static void grids_have_the_windows_of_the_paper(void **state)
{
    static const int64_t starts[9] = {0, 0, 0, 2, 2, 2, 4, 4, 4};
    static const int64_t causal[8][2] = {{0, 1}, {0, 2}, {0, 3}, {0, 4}, {2, 5}, {2, 6}, {4, 7}, {4, 8}};
    fv_plan plan = {.grid = {.rank = 1, .dims = {9}, .window = {5}, .stride = {3}}};
    (void)state;

    for (int64_t i = 0; i < 9; i++)
        for (int64_t j = 0; j < 9; j++)
            assert_int_equal(fv_plan_sees(&plan, 1, 0, 0, i, j), j >= starts[i] && j < starts[i] + 5);
    plan.grid = (fv_grid){.rank = 1, .dims = {8}, .window = {4}, .stride = {2}, .causal = {true}};
    for (int64_t i = 0; i < 8; i++)
        for (int64_t j = 0; j < 8; j++)
            assert_int_equal(fv_plan_sees(&plan, 1, 0, 0, i, j), j >= causal[i][0] && j < causal[i][1]);
}

/* Counting must not walk over the pairs of a long sequence: of this one it would take days. */
static void long_plans_are_counted_from_their_intervals(void **state)
{
    int64_t N = 3000000, pairs, sum = 0;
    fv_plan causal = {.causal = true}, window = {.causal = true, .window = {.sink = 4, .window = 1000}};
    fv_ctx *ctx = test_ctx("ref", 1);
    (void)state;

    assert_ok(fv_plan_pairs(ctx, &causal, 2, 3, N, N, &pairs));
    assert_int_equal(pairs, 6 * N * (N + 1) / 2);
    assert_ok(fv_plan_pairs(ctx, &window, 1, 1, N, N, &pairs));
    for (int64_t i = 0; i < N; i++)
        sum += i < 1000 ? i + 1 : 1000 + (i - 999 < 4 ? i - 999 : 4);
    assert_int_equal(pairs, sum);
    assert_ok(fv_plan_pairs(ctx, NULL, 2, 3, N, N, &pairs));
    assert_int_equal(pairs, 6 * N * N);
    fv_ctx_free(ctx);
}

/* Of rows that follow each other; on a grid, where strips make tiles, of one whose windows are whole tiles. */
static void tiles_are_made_of_the_keys_that_somebody_sees(void **state)
{
    fv_random random = fv_random_new(test_seed(), 79);
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_plan blocks = {.grid = {.rank = 2, .dims = {16, 24}, .window = {8, 8}, .stride = {8, 8}, .dilation = {1, 1}}};
    int64_t tiles;
    (void)state;

    for (int round = 0; round < 100; round++) {
        int64_t N = 1 + fv_random_below(&random, 300), M = 1 + fv_random_below(&random, 300), expected = 0;
        fv_mark mark = fv_scratch_mark(ctx);
        unsigned kinds = test_plan_kinds(&random) &
                         (PLAN_CAUSAL | PLAN_WINDOW | PLAN_SEGMENTS | PLAN_INTERVALS | PLAN_LIFETIMES | PLAN_OFFSET);
        fv_plan plan;
        test_plan_random(ctx, &random, kinds, 1, 1, 1, N, M, &plan);
        for (int64_t first = 0; first < N; first += FV_TILE) {
            int64_t keys = 0;
            for (int64_t j = 0; j < M; j++) {
                int64_t i = first;
                while (i < fv_min(first + FV_TILE, N) && !fv_plan_sees(&plan, 1, 0, 0, i, j))
                    i++;
                keys += i < fv_min(first + FV_TILE, N);
            }
            expected += fv_ceil_div(keys, FV_TILE);
        }
        assert_ok(fv_plan_tiles(ctx, &plan, N, M, &tiles));
        assert_int_equal(tiles, expected);
        fv_scratch_release(ctx, mark);
    }
    assert_ok(fv_plan_tiles(ctx, NULL, 130, 65, &tiles));
    assert_int_equal(tiles, 6);
    assert_ok(fv_plan_tiles(ctx, &blocks, 384, 384, &tiles));
    assert_int_equal(tiles, 6);
    fv_ctx_free(ctx);
}

static void bad_plans_are_refused_in_words(void **state)
{
    int64_t row_start[] = {0, 2}, bad_start[] = {0, -1}, query_start[] = {0, 3};
    int32_t entry[] = {1, 0}, good[] = {0, 1}, tile[] = {0, 9}, index[] = {0, 1, 4}, segment[4] = {0};
    uint64_t tiles[1] = {0};
    fv_plan plan = {
        .lists = {
            .query_block = 4, .key_block = 2, .groups = 1, .key_blocks = 2, .row_start = row_start, .entry = entry}};
    fv_plan grid = {.grid = {.rank = 2, .dims = {2, 2}, .window = {2, 2}}}, window = {.window = {.heads = 3}};
    (void)state;

    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "key block 0 after 1: expected ascending");
    plan.lists.entry = good;
    assert_ok(fv_plan_check(&plan, 1, 1, 4, 4, 4));
    assert_fails(fv_plan_check(&plan, 1, 1, 5, 4, 5), FV_E_SHAPE, "hold 4 queries, but there are 5");
    plan.lists.key_blocks = 1;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "below 1");
    plan.lists.key_blocks = 2;
    plan.lists.row_start = bad_start;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "row_start goes from 0 to -1");
    plan.lists.row_start = row_start;
    plan.lists.heads = 2;
    assert_fails(fv_plan_check(&plan, 1, 3, 4, 4, 4), FV_E_SHAPE, "made for 2 heads, which do not divide 3");
    plan.lists.heads = 1;
    plan.lists.tile = tile;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "table is absent");
    plan.lists.tiles = tiles;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "tiles of 0 words");
    plan.lists.tile = NULL;
    plan.lists.query_index = index;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "needs query_start");
    plan.lists.query_start = query_start;
    plan.lists.slot_from = good;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "slot_from, slot_to and query_index");
    plan.lists.slot_from = NULL;
    assert_fails(fv_plan_check(&plan, 1, 1, 4, 4, 4), FV_E_ARGUMENT, "query_index[2] is 4: expected 0 to 3");
    assert_fails(fv_plan_check(&plan, 1, 1, 5, 4, 2), FV_E_SHAPE, "3 slots, but o has 2 rows");
    assert_fails(fv_plan_check(&grid, 1, 1, 5, 4, 5), FV_E_SHAPE, "do not lie on a grid of 4");
    grid.grid.stride[1] = 3;
    assert_fails(fv_plan_check(&grid, 1, 1, 4, 4, 4), FV_E_SHAPE, "expected a stride of 1 to the window (2), got 3");
    grid.grid.stride[1] = 1;
    grid.grid.query_count[0] = 2;
    assert_ok(fv_plan_check(&grid, 1, 1, 4, 4, 4));
    grid.grid.query_first[0] = 1;
    assert_fails(fv_plan_check(&grid, 1, 1, 4, 4, 4), FV_E_SHAPE, "2 queries from 1 on by 1");
    grid.grid.query_count[0] = 1;
    assert_fails(fv_plan_check(&grid, 1, 1, 4, 4, 4), FV_E_SHAPE,
                 "4 queries from position 0 do not lie on a grid of 2");
    grid.grid.window[0] = 3;
    assert_fails(fv_plan_check(&grid, 1, 1, 2, 4, 2), FV_E_SHAPE, "a window of 3 with dilation 1 does not fit 2");
    grid.grid.truncated[0] = true;
    assert_ok(fv_plan_check(&grid, 1, 1, 2, 4, 2));
    grid.grid.stride_first[0] = 2;
    assert_fails(fv_plan_check(&grid, 1, 1, 2, 4, 2), FV_E_SHAPE, "strides from 2");
    assert_fails(fv_plan_check(&window, 1, 4, 4, 4, 4), FV_E_SHAPE, "made for 3 heads");
    window = (fv_plan){.query_segment = segment};
    assert_fails(fv_plan_check(&window, 1, 4, 4, 4, 4), FV_E_ARGUMENT, "given together");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_plans_give_runs_that_agree_with_the_definition),
        cmocka_unit_test(strips_of_a_grid_agree_with_the_definition),
        cmocka_unit_test(keys_taken_at_once_are_those_of_the_runs),
        cmocka_unit_test(words_of_bit_tiles_are_those_of_pairs),
        cmocka_unit_test(grids_have_the_windows_of_the_paper),
        cmocka_unit_test(long_plans_are_counted_from_their_intervals),
        cmocka_unit_test(tiles_are_made_of_the_keys_that_somebody_sees),
        cmocka_unit_test(bad_plans_are_refused_in_words),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
