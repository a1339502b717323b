/* hip: the worked numbers of its definition in the library, what a sequence's state does between steps, and what
 * values that are not finite do. */
#include "support/support.h"

#include <math.h>
#include <stdlib.h>

#include "attention/mechanism.h"

struct fixture {
    fv_ctx *ctx;
    fv_attention *attention;
    fv_attention_args args;
};

static void begin(struct fixture *f, const char *device, const char *spec, int64_t H, int64_t Hkv, int64_t N, int64_t M)
{
    f->ctx = test_ctx(device, 2);
    assert_ok(fv_attention_new(spec, &f->attention));
    f->args = (fv_attention_args){.q = test_random(f->ctx, 1, FV_DIMS(1, H, N, 16)),
                                  .k = test_random(f->ctx, 1, FV_DIMS(1, Hkv, M, 16)),
                                  .v = test_random(f->ctx, 1, FV_DIMS(1, Hkv, M, 16)),
                                  .o = test_random(f->ctx, 1, FV_DIMS(1, H, N, 16))};
}

static void end(struct fixture *f)
{
    fv_attention_free(f->attention);
    fv_ctx_free(f->ctx);
}

/* One query whose product with key i is score[i]; the keys it reads besides the last, which is the window. */
static void expect_read(const char *spec, const double *score, int64_t count, const int64_t *expected)
{
    for (int d = 0; test_devices[d]; d++) {
        struct fixture f;
        fv_tensor map;
        void *owned;
        begin(&f, test_devices[d], spec, 1, 1, 1, count + 1);
        memset(f.args.q.data, 0, 16 * sizeof(float));
        ((float *)f.args.q.data)[0] = 1;
        for (int64_t j = 0; j < count; j++)
            ((float *)f.args.k.data)[16 * j] = (float)score[j];
        assert_ok(fv_attention_map(f.ctx, f.attention, &f.args, &map, &owned));
        const int64_t *next = expected;
        for (int64_t j = 0; j < count; j++) {
            bool seen = *next == j;
            next += seen;
            if (((uint8_t *)map.data)[j] != seen) fail_msg("%s: key %d: expected %d", spec, (int)j, seen);
        }
        assert_int_equal(((uint8_t *)map.data)[count], 1);
        fv_release(owned);
        end(&f);
    }
}

static void worked_numbers(void **state)
{
    static const double lone[] = {3, 0, 1, 2, 0, 9, 4, 1, 5, 2, 0, 0, 1, 0, 8, 0};
    double wave[16];
    (void)state;

    for (int i = 0; i < 16; i++)
        wave[i] = cos((i - 11) / 6.0);
    expect_read("hip:k=4,block_k=1,window=1", lone, 16, (const int64_t[]){0, 6, 8, 14, -1});
    expect_read("hip:k=4,block_k=1,window=1,rep=centre", lone, 16, (const int64_t[]){3, 5, 6, 8, -1});
    expect_read("hip:k=4,block_k=1,window=1", wave, 16, (const int64_t[]){9, 10, 11, 12, -1});
}

/* Scores that are not numbers choose something, and as much as others. */
static void what_is_not_finite_is_read_or_not(void **state)
{
    static const float odd[] = {NAN, INFINITY, -INFINITY};
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int n = 0; n < 3; n++) {
            struct fixture f;
            fv_work work;
            begin(&f, test_devices[d], "hip:k=8,block_q=4,window=4", 2, 1, 40, 40);
            for (int64_t i = 0; i < 40 * 16; i += 1 + n)
                ((float *)f.args.k.data)[i] = odd[(i + n) % 3];
            assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
            assert_ok(fv_attention_work(f.ctx, f.attention, &f.args, &work));
            assert_true(work.pairs <= 2 * 40 * 12);
            assert_true(work.pairs >= 2 * (40 - 12) * 9);
            end(&f);
        }
}

static void decoding_afresh_is_a_prefill_of_single_rows(void **state)
{
    (void)state;
    for (int d = 0; test_devices[d]; d++)
        for (int n = 0; n < 4; n++) {
            static const char *const specs[] = {"hip:k=8,block_q=1,window=3,sink=2,refresh=1",
                                                "hip:k=6,block_q=1,block_k=3,window=1,refresh=1,rep=last",
                                                "hip:k=8,block_q=1,window=3,refresh=1,share_heads=1",
                                                "hip:k=8,block_q=1,window=3,refresh=1,stride=1,rep=centre"};
            struct fixture f;
            begin(&f, test_devices[d], specs[n], 4, 2, 50, n < 2 ? 50 : 61);
            int64_t count = fv_tensor_count(&f.args.o);
            double *expected = calloc((size_t)count, sizeof *expected);
            assert_non_null(expected);
            assert_ok(fv_attention_forward(f.ctx, f.attention, &f.args));
            for (int64_t i = 0; i < count; i++)
                expected[i] = ((float *)f.args.o.data)[i];
            assert_ok(fv_attention_decode(f.ctx, f.attention, &f.args));
            test_close(specs[n], &f.args.o, expected, 1e-5);
            free(expected);
            end(&f);
        }
}

/* Queries from .. of the call as a chunk of its sequence. */
static void run_chunk(struct fixture *f, int64_t from, int64_t count, const fv_tensor *k, fv_attention_state *state)
{
    fv_attention_args part = f->args;
    fv_call call;
    int64_t keys = f->args.k.dims[2] - f->args.q.dims[2] + from + count;

    part.q = fv_slice(&f->args.q, 2, from, count);
    part.o = fv_slice(&f->args.o, 2, from, count);
    part.k = fv_slice(k, 2, 0, keys);
    part.v = fv_slice(&f->args.v, 2, 0, keys);
    assert_ok(fv_call_chunk(f->attention, &part, &call));
    assert_ok(fv_attention_chunk(f->ctx, f->attention, &call, state, NULL));
}

/* Steps behind a prompt that was read in one chunk are those of a decoding that begins there, whatever was tried and
 * taken back in between. */
static void a_state_survives_what_is_taken_back(void **state)
{
    enum { PROMPT = 40, STEPS = 13, COUNT = 2 * STEPS * 16 };
    double expected[COUNT];
    (void)state;

    for (int d = 0; test_devices[d]; d++)
        for (int upset = 0; upset < 4; upset++) {
            struct fixture f;
            fv_attention_state own = {0};
            begin(&f, test_devices[d], "hip:k=8,block_q=4,window=3,sink=1,refresh=4", 2, 1, STEPS, PROMPT + STEPS);
            fv_tensor other = test_random(f.ctx, 1, 4, f.args.k.dims);
            assert_int_equal(fv_attention_choice(f.attention, PROMPT + STEPS), 4);
            assert_int_equal(fv_attention_choice(f.attention, 12), 0);
            assert_ok(fv_tensor_new(f.ctx, &own.choice.index, FV_I32, FV_DIMS(1, 2, 4)));
            assert_ok(fv_attention_decode(f.ctx, f.attention, &f.args));
            for (int i = 0; i < COUNT; i++)
                expected[i] = ((float *)f.args.o.data)[i];
            for (int64_t t = 0; t < STEPS; t++) {
                if (upset == 1) run_chunk(&f, t, 1, &other, &own); /* a step of another text, taken back */
                if (upset == 2 && t == 0) run_chunk(&f, 0, 9, &other, &own);
                if (upset == 3 && t == 8) { /* everything is taken back, and read again */
                    for (int64_t again = 0; again < 8; again++)
                        run_chunk(&f, again, 1, &f.args.k, &own);
                }
                run_chunk(&f, t, 1, &f.args.k, &own);
                assert_int_equal(own.choice.end, PROMPT + t / 4 * 4 + 1);
            }
            test_close("steps", &f.args.o, expected, 1e-6);
            end(&f);
        }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(worked_numbers),
        cmocka_unit_test(what_is_not_finite_is_read_or_not),
        cmocka_unit_test(decoding_afresh_is_a_prefill_of_single_rows),
        cmocka_unit_test(a_state_survives_what_is_taken_back),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
