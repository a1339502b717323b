/* Tables of named tensors, and shapes as text. */
#include "base/param.h"
#include "support/support.h"

static int64_t known(const void *user, const char *name)
{
    (void)user;
    return strcmp(name, "N") == 0 ? 6 : -1;
}

static fv_tensor shaped(int rank, const int64_t *dims)
{
    static float data;
    fv_tensor t;

    assert_ok(fv_tensor_wrap(&t, &data, FV_F32, rank, dims));
    return t;
}

static fv_status check(const char *shape, fv_named_sizes *sizes, int rank, const int64_t *dims)
{
    const fv_param param = {.name = "p", .shape = shape};
    fv_tensor t = shaped(rank, dims);

    return fv_param_check("owner", "param", &param, &t, sizes);
}

static void names_stand_for_one_size(void **state)
{
    fv_named_sizes sizes = {.known = known};
    (void)state;

    assert_fails(check("[B, N, C]", &sizes, FV_DIMS(2, 6)), FV_E_SHAPE, "'p': expected [B, N, C] = [?,6,?], got [2,6]");
    assert_ok(check("[B, N, C]", &sizes, FV_DIMS(2, 6, 4)));
    assert_int_equal(fv_size_of(&sizes, "C"), 4);
    assert_int_equal(fv_size_of(&sizes, "N"), 6);
    assert_int_equal(fv_size_of(&sizes, "K"), -1);
    assert_fails(check("[C, B]", &sizes, FV_DIMS(4, 3)), FV_E_SHAPE, "expected [C, B] = [4,2], got [4,3]");
    assert_ok(check("[1|B, 3]", &sizes, FV_DIMS(1, 3)));
    assert_ok(check("[1|B, 3]", &sizes, FV_DIMS(2, 3)));
    assert_fails(check("[1|B, 3]", &sizes, FV_DIMS(3, 3)), FV_E_SHAPE, "[2,3], got [3,3]");
}

static void products_are_read_and_solved(void **state)
{
    fv_named_sizes sizes = {.known = known};
    (void)state;

    assert_fails(check("[2*K]", &sizes, FV_DIMS(7)), FV_E_SHAPE, "expected [2*K] = [?], got [7]");
    assert_ok(check("[2*K]", &sizes, FV_DIMS(10)));
    assert_int_equal(fv_size_of(&sizes, "K"), 5);
    assert_ok(check("[K*N]", &sizes, FV_DIMS(30)));
    assert_fails(check("[A*E]", &sizes, FV_DIMS(30)), FV_E_SHAPE, "[?]"); /* either could be anything */
}

static void shapes_follow_from_sizes(void **state)
{
    const fv_param out = {.name = "y", .shape = "[N, 2*K]", .dtype = FV_I32};
    fv_named_sizes sizes = {.known = known};
    fv_tensor shape;
    (void)state;

    assert_fails(fv_param_shape("owner", "output", &out, &sizes, &shape), FV_E_UNSUPPORTED, "'y'");
    assert_ok(check("[K]", &sizes, FV_DIMS(3)));
    assert_ok(fv_param_shape("owner", "output", &out, &sizes, &shape));
    assert_true(shape.rank == 2 && shape.dims[0] == 6 && shape.dims[1] == 6 && shape.dtype == FV_I32 && !shape.data);
}

static void names_are_placed(void **state)
{
    static const fv_param table[] = {FV_PARAM("weight", "[N]", ""), FV_PARAM_NEEDED("bias", "[N]", ""), {0}};
    fv_named_tensor given[2] = {{"bias", shaped(FV_DIMS(6))}, {"weight", shaped(FV_DIMS(6))}};
    fv_tensor place[2] = {0}, again[2] = {0};
    int index;
    (void)state;

    assert_ok(fv_params_place("owner", "param", table, 2, given, place));
    assert_true(place[0].data && place[1].data);
    assert_int_equal(fv_params_count(table), 2);
    assert_int_equal(fv_params_count(NULL), 0);
    given[1].name = "bias";
    assert_fails(fv_params_place("owner", "param", table, 2, given, again), FV_E_USAGE, "'bias' is given twice");
    given[1] = (fv_named_tensor){.name = "weight"};
    memset(again, 0, sizeof again);
    assert_fails(fv_params_place("owner", "param", table, 2, given, again), FV_E_ARGUMENT, "'weight' has no data");
    assert_fails(fv_params_find("owner", "param", table, "wieght", &index), FV_E_USAGE, "did you mean 'weight'");
    assert_fails(fv_params_find("owner", "param", NULL, "weight", &index), FV_E_USAGE, "it has none");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_stand_for_one_size),
        cmocka_unit_test(products_are_read_and_solved),
        cmocka_unit_test(shapes_follow_from_sizes),
        cmocka_unit_test(names_are_placed),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
