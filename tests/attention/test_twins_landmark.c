/* The naive twin of landmark attention: worked numbers of its definition and small cases by hand. */
#include <math.h>
#include <string.h>

#include "support/twin.h"

/* One head whose query 1 and scale 1 make the keys the logits, and values that show the weights. */
static struct twin *weights_of(int64_t M, const double *logits)
{
    static const double one = 1;
    struct twin *f = twin_make(1, 1, 1, M, M, 1, M);

    f->call.scale = &one;
    memcpy(f->k, logits, (size_t)M * sizeof *logits);
    memset(f->v, 0, (size_t)(M * M) * sizeof *f->v);
    for (int64_t j = 0; j < M; j++)
        f->q[j] = f->v[j * M + j] = 1;
    return f;
}

/* a b L c d L e */
static void weighs_tokens_by_their_landmarks(void **unused)
{
    static const double logits[] = {1, 0, 2, 0, 1, 1, 0};
    static const double token[] = {.4863, .1789, 0, .0658, .1789, 0, .0900};
    static const double landmark[] = {.4863, .1789, 0, .0900, .2447, 0, 0}; /* its own section's is hidden */
    struct twin *f = weights_of(7, logits);

    (void)unused;
    twin_set(f, "period", 1, 3);
    twin_forward(f, "landmark");
    twin_close("query e", f->o + 6 * 7, token, 7, 6e-5);
    twin_close("query of the second landmark", f->o + 5 * 7, landmark, 7, 6e-5);
    twin_sees(f, 0, 5, TWIN_KEYS(0, 1, 3, 4));
    twin_sees(f, 0, 6, TWIN_KEYS(0, 1, 3, 4, 6));
    twin_drop(f);
}

/* A landmark whose logit is the log-sum-exp of its section's gives plain attention to tokens. */
static void is_plain_where_landmarks_sum_up_their_sections(void **unused)
{
    static const double logits[] = {1, 0, 0, .5, -1, 2, 0, .25, 0};
    static const int at[] = {2, 6};
    double landmarks[9] = {0}, expected[9];
    struct twin *f = weights_of(9, logits);

    (void)unused;
    f->k[2] = log(exp(1) + exp(0));
    f->k[6] = log(exp(.5) + exp(-1) + exp(2));
    for (int n = 0; n < 2; n++)
        landmarks[at[n]] = 1;
    twin_give(f, "landmarks", landmarks, TWIN_DIMS(9));
    twin_set(f, "period", 1, 0);
    twin_forward(f, "landmark");
    for (int64_t i = 0; i < 9; i++) {
        for (int64_t j = 0; j < 9; j++)
            expected[j] = j <= i && !landmarks[j] ? f->k[j] : -INFINITY;
        sheet_softmax(expected, 9, -INFINITY);
        twin_close("weights", f->o + i * 9, expected, 9, TWIN_EXACT);
    }
    twin_drop(f);
}

/* Landmarks at the start and behind one another close nothing: only key 2 and its gate, key 3, are there for query 6.
 */
static void ignores_landmarks_of_empty_sections(void **unused)
{
    static const double logits[] = {5, 5, 1, 2, 5, 5, 0}, landmarks[] = {1, 1, 0, 1, 1, 1, 0};
    const double expected[] = {0, 0, exp(2) / (exp(2) + 1), 0, 0, 0, 1 / (exp(2) + 1)}, nothing[7] = {0};
    const double gated[] = {0, 0, 1, 0, 0, 0, 0};
    struct twin *f = weights_of(7, logits);

    (void)unused;
    twin_give(f, "landmarks", landmarks, TWIN_DIMS(7));
    twin_set(f, "period", 1, 0);
    twin_forward(f, "landmark");
    twin_close("query 6", f->o + 6 * 7, expected, 7, TWIN_EXACT);
    twin_close("a landmark's query with nothing of its own", f->o + 5 * 7, gated, 7, TWIN_EXACT);
    twin_close("a landmark's query with nothing before it", f->o, nothing, 7, TWIN_EXACT);
    twin_drop(f);
}

static void is_dense_without_landmarks(void **unused)
{
    static const double landmarks[9] = {0};
    struct twin *f = twin_make(2, 2, 1, 5, 9, 2, 2);

    (void)unused;
    twin_set(f, "period", 1, 10);
    twin_equals_dense(f, "landmark", true, false);
    twin_set(f, "period", 1, 0);
    twin_give(f, "landmarks", landmarks, TWIN_DIMS(9));
    twin_equals_dense(f, "landmark", true, false);
    twin_drop(f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weighs_tokens_by_their_landmarks),
        cmocka_unit_test(is_plain_where_landmarks_sum_up_their_sections),
        cmocka_unit_test(ignores_landmarks_of_empty_sections),
        cmocka_unit_test(is_dense_without_landmarks),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
