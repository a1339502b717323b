/* SPECs, layer plans and options: what they accept, what they refuse, and in which words. */
#include "support/support.h"

#include "base/options.h"

struct sample {
    int64_t block;
    double rate;
    bool wide;
    int kind;
    fv_tuple grid;
    fv_list layers, order;
    fv_floats shares;
};

static const char *const kinds[] = {"mean", "linear", NULL};
static const char *const words[] = {"auto", "none", NULL};
static const fv_option table[] = {
    FV_INT(struct sample, block, 64, 1, 512, "tokens in a block"),
    FV_FLOAT(struct sample, rate, 0.5, 0, 1, "a share"),
    FV_BOOL(struct sample, wide, 0, "a switch"),
    FV_ENUM(struct sample, kind, "mean", kinds, "how"),
    FV_TUPLE(struct sample, grid, NULL, 1, 1000, "rows and columns"),
    FV_LIST(struct sample, layers, "0+3", 0, 99, "some layers"),
    FV_LIST_OR(struct sample, order, "none", words, 0, 5, "numbers or a word"),
    FV_FLOATS(struct sample, shares, "0.5", 0, 2, "some shares"),
    FV_OPTIONS_END,
};

static fv_status parse(const char *text, struct sample *sample)
{
    fv_spec spec;

    FV_TRY(fv_spec_parse(&spec, text));
    return fv_options_parse(table, &spec, sample);
}

static void options_have_defaults_and_values(void **state)
{
    struct sample s;
    (void)state;

    assert_ok(parse("x:grid=4x8x8,rate=0.25,wide=1,kind=linear,layers=7", &s));
    assert_int_equal(s.block, 64);
    assert_true(s.rate == 0.25 && s.wide && s.kind == 1);
    assert_int_equal(s.grid.count, 3);
    assert_int_equal(s.grid.items[2], 8);
    assert_int_equal(s.layers.count, 1);
    assert_int_equal(s.layers.items[0], 7);
    assert_true(s.shares.count == 1 && s.shares.items[0] == 0.5);
    assert_ok(parse("x:grid=2,shares=.25+1e-1+2", &s));
    assert_true(s.shares.count == 3 && s.shares.items[0] == 0.25 && s.shares.items[1] == 0.1 && s.shares.items[2] == 2);
    fv_text text = {0};
    fv_option_print(&table[7], &s, &text);
    assert_string_equal(fv_text_get(&text), "0.25+0.1+2");
    fv_text_free(&text);
}

static void a_word_may_stand_in_place_of_a_list(void **state)
{
    struct sample s;
    fv_text text = {0};
    (void)state;

    assert_ok(parse("x:grid=2", &s));
    assert_true(s.order.count == 1 && s.order.items[0] == -2);
    assert_ok(parse("x:grid=2,order=auto", &s));
    assert_true(s.order.count == 1 && s.order.items[0] == -1);
    fv_option_print(&table[6], &s, &text);
    assert_ok(parse("x:grid=2,order=4+0", &s));
    assert_true(s.order.count == 2 && s.order.items[0] == 4);
    fv_option_print(&table[6], &s, &text);
    assert_string_equal(text.data, "auto4+0");
    fv_text_free(&text);
    assert_fails(parse("x:grid=2,order=automatic", &s), FV_E_USAGE, "joined by '+'");
    assert_fails(parse("x:grid=2,order=-1", &s), FV_E_USAGE, "expected 0 to 5");
}

static void bad_options_say_what_was_expected(void **state)
{
    struct sample s;
    (void)state;

    assert_fails(parse("x:grid=2,blok=3", &s), FV_E_USAGE, "did you mean 'block'");
    assert_fails(parse("x:grid=2,block=0", &s), FV_E_USAGE, "expected 1 to 512, got '0'");
    assert_fails(parse("x:grid=2,block=99999999999999999999", &s), FV_E_USAGE, "got");
    assert_fails(parse("x:grid=2,rate=nan", &s), FV_E_USAGE, "finite");
    assert_fails(parse("x:grid=2,wide=yes", &s), FV_E_USAGE, "0 or 1");
    assert_fails(parse("x:grid=2,kind=max", &s), FV_E_USAGE, "mean or linear");
    assert_fails(parse("x:grid=2x", &s), FV_E_USAGE, "joined by 'x'");
    assert_fails(parse("x", &s), FV_E_USAGE, "must be given");
    assert_fails(parse("x:grid=2,shares=1+", &s), FV_E_USAGE, "numbers joined by '+', got '1+'");
    assert_fails(parse("x:grid=2,shares=1x2", &s), FV_E_USAGE, "numbers joined by '+'");
    assert_fails(parse("x:grid=2,shares=1+inf", &s), FV_E_USAGE, "finite numbers");
    assert_fails(parse("x:grid=2,shares=1+3", &s), FV_E_USAGE, "expected 0 to 2, got '1+3'");
    assert_fails(parse("x:grid=2,shares=1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1+1", &s), FV_E_USAGE, "at most 16");
    assert_fails(parse("x:grid", &s), FV_E_USAGE, "no value");
    assert_fails(parse("x:grid=2,grid=3", &s), FV_E_USAGE, "twice");
    assert_fails(parse("", &s), FV_E_USAGE, "empty");
    assert_fails(parse("a b", &s), FV_E_USAGE, "unexpected character");
}

static void layer_plans_name_layers_once(void **state)
{
    fv_layer_plan plan;
    (void)state;

    assert_ok(fv_layer_plan_parse(&plan, "0-3,29/dense;rest/nsa:top=16", 30));
    assert_string_equal(fv_spec_name(fv_layer_plan_at(&plan, 3)), "dense");
    assert_string_equal(fv_spec_name(fv_layer_plan_at(&plan, 29)), "dense");
    assert_string_equal(fv_spec_name(fv_layer_plan_at(&plan, 4)), "nsa");
    assert_null(fv_layer_plan_at(&plan, 30));
    fv_layer_plan_free(&plan);
    assert_ok(fv_layer_plan_parse(&plan, "5/dense", 30));
    assert_null(fv_layer_plan_at(&plan, 4));
    fv_layer_plan_free(&plan);
    assert_fails(fv_layer_plan_parse(&plan, "0-30/dense", 30), FV_E_USAGE, "outside 0 to 29");
    assert_fails(fv_layer_plan_parse(&plan, "0-3/dense;3/dense", 30), FV_E_USAGE, "twice");
    assert_fails(fv_layer_plan_parse(&plan, "rest/dense;3/dense", 30), FV_E_USAGE, "last");
    assert_fails(fv_layer_plan_parse(&plan, "3-1/dense", 30), FV_E_USAGE, "expected layers");
    assert_fails(fv_layer_plan_parse(&plan, "dense;dense", 30), FV_E_USAGE, "no '/'");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_have_defaults_and_values),
        cmocka_unit_test(a_word_may_stand_in_place_of_a_list),
        cmocka_unit_test(bad_options_say_what_was_expected),
        cmocka_unit_test(layer_plans_name_layers_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
