/* The list builder: sorted, without repeats, cut at blocks of positions, so a chunk sees what the whole call sees. */
#include "support/support.h"

#include "attention/lists.h"

static void adds_are_sorted_clipped_and_made_unique(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_list_shape shape = {.query_block = 4, .key_block = 2, .queries = 7, .keys = 9};
    fv_list_builder builder;
    fv_plan plan = {0};
    (void)state;

    assert_ok(fv_lists_begin(ctx, &builder, &shape));
    fv_lists_row(&builder);
    fv_lists_add(&builder, 4);
    fv_lists_add_range(&builder, -3, 2);
    fv_lists_add(&builder, 4);
    fv_lists_add(&builder, 5); /* nine keys make five blocks of two */
    fv_lists_add(&builder, -1);
    fv_lists_row(&builder);
    assert_ok(fv_lists_end(&builder, &plan));
    assert_int_equal(plan.lists.groups, 2);
    assert_int_equal(plan.lists.key_blocks, 5);
    assert_int_equal(plan.lists.row_start[1], 3);
    assert_int_equal(plan.lists.row_start[2], 3);
    assert_int_equal(plan.lists.entry[0], 0);
    assert_int_equal(plan.lists.entry[1], 1);
    assert_int_equal(plan.lists.entry[2], 4);
    fv_ctx_free(ctx);
}

static void misuse_is_kept_until_the_end(void **state)
{
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_list_shape shape = {.query_block = 4, .key_block = 2, .queries = 7, .keys = 9};
    fv_list_builder builder;
    fv_plan plan = {0};
    (void)state;

    assert_ok(fv_lists_begin(ctx, &builder, &shape));
    fv_lists_row(&builder);
    assert_fails(fv_lists_end(&builder, &plan), FV_E_ARGUMENT, "expected 2 rows, got 1");
    assert_ok(fv_lists_begin(ctx, &builder, &shape));
    fv_lists_add(&builder, 1);
    assert_fails(fv_lists_end(&builder, &plan), FV_E_ARGUMENT, "before the first row");
    assert_ok(fv_lists_begin(ctx, &builder, &shape));
    for (int n = 0; n < 3; n++)
        fv_lists_row(&builder);
    assert_fails(fv_lists_end(&builder, &plan), FV_E_ARGUMENT, "more than 2 rows");
    shape.query_block = 0;
    assert_fails(fv_lists_begin(ctx, &builder, &shape), FV_E_ARGUMENT, "query block 0");
    fv_ctx_free(ctx);
}

/* Each group reads its own block, the block before it and every third one: a rule that depends on the position. */
static fv_plan build(fv_ctx *ctx, int64_t queries, int64_t keys, int64_t query_block, int64_t key_block, int64_t heads)
{
    fv_list_shape shape = {.query_block = query_block,
                           .key_block = key_block,
                           .heads = heads,
                           .queries = queries,
                           .keys = keys,
                           .offset = keys - queries};
    fv_plan plan = {.causal = true, .offset = keys - queries};
    fv_list_builder builder;

    assert_ok(fv_lists_begin(ctx, &builder, &shape));
    for (int64_t h = 0; h < heads; h++) {
        for (int64_t g = 0; g < builder.groups; g++) {
            int64_t own = (fv_lists_first_block(&builder) + g) * query_block / key_block;
            fv_lists_row(&builder);
            fv_lists_add(&builder, own);
            fv_lists_add(&builder, own - 1 - h);
            for (int64_t block = own % 3; block < own; block += 3)
                fv_lists_add(&builder, block);
        }
    }
    assert_ok(fv_lists_end(&builder, &plan));
    return plan;
}

static void chunks_see_what_the_whole_call_sees(void **state)
{
    fv_random random = fv_random_new(test_seed(), 5);
    fv_ctx *ctx = test_ctx("ref", 1);
    (void)state;

    for (int round = 0; round < 50; round++) {
        fv_mark mark = fv_scratch_mark(ctx);
        int64_t N = 1 + fv_random_below(&random, 120), query_block = 1 + fv_random_below(&random, 40);
        int64_t key_block = 1 + fv_random_below(&random, 20), heads = 1 + fv_random_below(&random, 3);
        fv_plan whole = build(ctx, N, N, query_block, key_block, heads);
        for (int64_t from = 0; from < N;) {
            int64_t count = 1 + fv_random_below(&random, N - from);
            fv_plan chunk = build(ctx, count, from + count, query_block, key_block, heads);
            for (int64_t h = 0; h < heads; h++)
                for (int64_t i = 0; i < count; i++)
                    for (int64_t j = 0; j < from + count; j++)
                        if (fv_plan_sees(&chunk, heads, 0, h, i, j) != fv_plan_sees(&whole, heads, 0, h, from + i, j))
                            fail_msg("blocks %lld %lld: query %lld of the chunk at %lld, key %lld",
                                     (long long)query_block, (long long)key_block, (long long)i, (long long)from,
                                     (long long)j);
            from += count;
        }
        fv_scratch_release(ctx, mark);
    }
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(adds_are_sorted_clipped_and_made_unique),
        cmocka_unit_test(misuse_is_kept_until_the_end),
        cmocka_unit_test(chunks_see_what_the_whole_call_sees),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
