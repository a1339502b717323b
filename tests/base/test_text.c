/* Text that grows, sentences of failures, and nearest names. */
#include "support/support.h"

#include "base/memory.h"
#include "base/options.h"
#include "base/text.h"

static void text_grows(void **state)
{
    fv_text text = {0};
    (void)state;

    assert_string_equal(fv_text_get(&text), "");
    for (int i = 0; i < 1000; i++) {
        fv_text_printf(&text, "%d,", i);
        fv_text_add(&text, "ab", 1);
    }
    assert_ok(fv_text_status(&text));
    assert_int_equal(text.length, 10 + 90 * 2 + 900 * 3 + 2000);
    assert_memory_equal(text.data, "0,a1,a2,a", 9);
    assert_string_equal(text.data + text.length - 5, "999,a");
    fv_text_add(&text, "", 0);
    fv_text_free(&text);
    assert_null(text.data);
}

static void failed_growth_is_remembered(void **state)
{
    fv_text text = {0};
    (void)state;

    fv_text_printf(&text, "kept");
    test_alloc_fail(1);
    for (int i = 0; i < 100; i++)
        fv_text_printf(&text, "a longer text than fits");
    test_alloc_fail(0);
    fv_text_add(&text, "x", 1); /* nothing comes behind a hole */
    assert_int_equal(fv_text_status(&text), FV_E_MEMORY);
    assert_true(strncmp(fv_text_get(&text), "kept", 4) == 0);
    assert_null(strstr(fv_text_get(&text), "fitsx"));
    fv_text_free(&text);
}

static void edit_distance_counts_changes(void **state)
{
    (void)state;
    assert_int_equal(fv_edit_distance("", ""), 0);
    assert_int_equal(fv_edit_distance("abc", ""), 3);
    assert_int_equal(fv_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(fv_edit_distance("flaw", "lawn"), 2);
    assert_int_equal(fv_edit_distance("same", "same"), 0);
}

static const char *name_at(const void *user, int index)
{
    return ((const char *const *)user)[index];
}

static void nearest_names_are_near(void **state)
{
    static const char *const names[] = {"dense", "sinkwin", "power"};
    (void)state;

    assert_string_equal(fv_nearest("dens", 3, name_at, names), "dense");
    assert_string_equal(fv_nearest("snkwin", 3, name_at, names), "sinkwin");
    assert_null(fv_nearest("lightning", 3, name_at, names));
    assert_null(fv_nearest("x", 0, name_at, names));
}

static void sentences_may_quote_the_last_one(void **state)
{
    char longer[5000];
    (void)state;

    assert_int_equal(fv_fail(FV_E_FORMAT, "inner %d", 7), FV_E_FORMAT);
    assert_int_equal(fv_fail_in(FV_E_FORMAT, "file %s", "x"), FV_E_FORMAT);
    assert_string_equal(fv_error(), "file x: inner 7");
    fv_fail(FV_E_IO, "outer (%s)", fv_error());
    assert_string_equal(fv_error(), "outer (file x: inner 7)");
    memset(longer, 'a', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    fv_fail(FV_E_IO, "%s", longer);
    assert_true(strlen(fv_error()) > 100 && strlen(fv_error()) < sizeof longer);
    assert_string_equal(fv_status_name(FV_E_SHAPE), "FV_E_SHAPE");
    assert_string_equal(fv_status_name((fv_status)99), "FV_E_?");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_grows),
        cmocka_unit_test(failed_growth_is_remembered),
        cmocka_unit_test(edit_distance_counts_changes),
        cmocka_unit_test(nearest_names_are_near),
        cmocka_unit_test(sentences_may_quote_the_last_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
