/* Every architecture equals its naive twin, in any chunks, for every block type; files that lie are refused in words.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "fovea/model.h"
#include "models/model.h"
#include "support/tiny_model.h"

enum { TOKENS = 40 };

/* Of the largest logit: f32 sums of 256 terms are off by 1e-7 * sqrt(256) of their size, which a few layers pass on,
 * and in blocks with a minimum scale * q and the minimum are several times as large as the weight that is their
 * difference. */
static const double tolerance = 7e-5;
/* A key or value that is rounded to its other f16 neighbour is off by 2^-11 of itself. */
static const double tolerance_f16 = 1e-3;

static fv_status open_tiny(const tiny_model *m, fv_model **model)
{
    const char *path = tiny_save(m);
    fv_status status = fv_model_open(path, model);

    unlink(path);
    return status;
}

static void draw_ids(int32_t *ids, int64_t count, int64_t vocabulary)
{
    static uint64_t stream = 5000;
    fv_random random = fv_random_new(test_seed(), ++stream);

    for (int64_t i = 0; i < count; i++)
        ids[i] = (int32_t)fv_random_below(&random, vocabulary);
}

/* Feeds all ids in calls of `piece`, in chunks of `chunk`; logits of every row. */
static void run(fv_ctx *ctx, const fv_model *model, const tiny_model *m, const int32_t *ids, int64_t piece,
                int64_t chunk, float *logits)
{
    fv_session *session;

    assert_ok(fv_session_new(ctx, model,
                             &(fv_session_options){.precision = FV_PRECISION_F32,
                                                   .chunk = chunk,
                                                   .cache = m->f16_cache ? NULL : "full:k=f32,v=f32"},
                             &session));
    for (int64_t at = 0; at < TOKENS; at += piece) {
        int64_t count = fv_min(piece, TOKENS - at);
        assert_ok(fv_session_feed(session, ids + at, count, logits + at * m->vocabulary, count));
    }
    fv_session_free(session);
}

static void compare(const char *what, const float *got, const double *expected, int64_t count, double bound)
{
    double most = 1;

    for (int64_t i = 0; i < count; i++)
        most = fmax(most, fabs(expected[i]));
    for (int64_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - expected[i]) <= bound * most))
            fail_msg("%s, value %lld: expected %.9g, got %.9g (tolerance %g)", what, (long long)i, expected[i],
                     (double)got[i], bound * most);
}

/* The model against its twin, on both devices, whole, in chunks and token by token; the model is freed. */
static void check(tiny_model *m)
{
    static const int64_t ways[][2] = {{TOKENS, 0}, {TOKENS, 7}, {1, 0}, {13, 5}};
    double bound = m->f16_cache ? tolerance_f16 : tolerance;
    fv_model *model;
    int32_t ids[TOKENS];
    float *got;
    double *expected;

    tiny_make(m);
    int64_t count = TOKENS * m->vocabulary;
    draw_ids(ids, TOKENS, m->vocabulary);
    assert_ok(FV_ALLOC(got, count));
    assert_ok(FV_ALLOC(expected, count));
    tiny_twin(m, ids, TOKENS, expected);
    assert_ok(open_tiny(m, &model));
    for (int d = 0; test_devices[d]; d++) {
        fv_ctx *ctx = test_ctx(test_devices[d], 2);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            char what[128];
            snprintf(what, sizeof what, "%s of %s on %s, pieces of %d in chunks of %d", m->architecture,
                     m->dtype == FV_DTYPE_COUNT ? "all types" : fv_dtype_name(m->dtype), test_devices[d],
                     (int)ways[w][0], (int)ways[w][1]);
            run(ctx, model, m, ids, ways[w][0], ways[w][1], got);
            compare(what, got, expected, count, bound);
        }
        fv_ctx_free(ctx);
    }
    fv_model_close(model);
    fv_free(got);
    fv_free(expected);
    tiny_free(m);
}

static const char *const architectures[] = {"llama", "qwen2", "qwen3", "gemma2", "gemma3"};
enum { ARCHITECTURES = sizeof architectures / sizeof *architectures };

static void architectures_equal_their_twins(void **state)
{
    (void)state;
    for (int a = 0; a < ARCHITECTURES; a++) {
        check(&(tiny_model){.architecture = architectures[a]});
        check(&(tiny_model){.architecture = architectures[a], .untied = true, .heads = 3, .key_heads = 3, .window = 5});
        check(&(tiny_model){.architecture = architectures[a], .heads = 5, .key_heads = 1, .value_dim = 64});
        check(&(tiny_model){.architecture = architectures[a], .f16_cache = true});
    }
}

static void parts_of_heads_may_turn(void **state)
{
    (void)state;
    check(&(tiny_model){.architecture = "llama", .rotary = 20});
    check(&(tiny_model){.architecture = "qwen3", .rotary = 8});
    check(&(tiny_model){.architecture = "llama", .heads = 4, .key_heads = 2, .key_dim = 16, .no_dims = true});
}

static void biases_may_be_there(void **state)
{
    (void)state;
    check(&(tiny_model){.architecture = "llama", .biases = true, .dtype = FV_DTYPE_COUNT});
    check(&(tiny_model){.architecture = "qwen3", .biases = true});
}

static void every_block_type_is_read(void **state)
{
    static const fv_dtype types[] = {FV_F16,  FV_BF16, FV_Q4_0, FV_Q4_1, FV_Q5_0, FV_Q5_1,   FV_Q8_0,       FV_Q2_K,
                                     FV_Q3_K, FV_Q4_K, FV_Q5_K, FV_Q6_K, FV_Q8_K, FV_IQ4_NL, FV_DTYPE_COUNT};
    (void)state;
    for (size_t t = 0; t < sizeof types / sizeof *types; t++)
        check(&(tiny_model){.architecture = architectures[t % ARCHITECTURES],
                            .dtype = types[t],
                            .layers = 2,
                            .width = 256,
                            .hidden = 256,
                            .heads = 4,
                            .key_heads = 2,
                            .key_dim = 64,
                            .untied = t % 2});
}

static void rope_scaling_kinds_are_read(void **state)
{
    (void)state;
    check(&(tiny_model){.architecture = "llama", .scaling = "linear", .scaling_factor = 4});
    check(&(tiny_model){.architecture = "gemma3", .scaling = "linear", .scaling_factor = 8});
    check(&(tiny_model){.architecture = "qwen2", .scaling = "yarn", .scaling_factor = 4});
    check(&(tiny_model){.architecture = "llama", .scaling = "yarn", .scaling_factor = 2.5, .key_dim = 64});
    check(&(tiny_model){.architecture = "llama", .rope_factors = true});
}

/* ---- files that lie --------------------------------------------------------------------------------------------- */

static void refuse(tiny_model *m, fv_status expected, const char *words)
{
    fv_model *model;

    assert_fails(open_tiny(m, &model), expected, words);
    assert_null(model);
    tiny_free(m);
}

static void missing_and_misshapen_tensors_are_named(void **state)
{
    static const char *const names[] = {"token_embd.weight",       "output_norm.weight",    "blk.1.attn_q.weight",
                                        "blk.2.ffn_down.weight",   "blk.0.ffn_norm.weight", "blk.0.attn_q_norm.weight",
                                        "blk.1.attn_output.weight"};
    tiny_model m;
    char words[128];
    (void)state;

    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        m = (tiny_model){.architecture = "qwen3", .without = names[n]};
        tiny_make(&m);
        snprintf(words, sizeof words, "tensor '%s' is missing", names[n]);
        refuse(&m, FV_E_FORMAT, words);
    }
    m = (tiny_model){.architecture = "llama", .misshapen = "blk.1.ffn_up.weight"};
    tiny_make(&m);
    refuse(&m, FV_E_FORMAT, "tensor 'blk.1.ffn_up.weight': expected shape [96,64], got [64,96]");
    m = (tiny_model){.architecture = "qwen2", .without = "blk.1.attn_v.bias"};
    tiny_make(&m);
    refuse(&m, FV_E_FORMAT, "'blk.1.attn_v.bias' is missing");
    m = (tiny_model){.architecture = "llama"};
    tiny_make(&m);
    gguf_put_tensor(&m.writer, "blk.0.surprise.weight", FV_F32, FV_DIMS(2), (float[2]){0});
    refuse(&m, FV_E_UNSUPPORTED, "'blk.0.surprise.weight' has no place in architecture 'llama'");
}

static void unknown_architectures_list_the_known(void **state)
{
    gguf_writer w = {0};
    const char *path;
    fv_model *model;
    (void)state;

    gguf_put_string(&w, "general.architecture", "mamba");
    path = tiny_save(&(tiny_model){.writer = w});
    assert_fails(fv_model_open(path, &model), FV_E_UNSUPPORTED, "llama, qwen2, qwen3, gemma2, gemma3, got 'mamba'");
    unlink(path);
    gguf_writer_free(&w);
    path = tiny_save(&(tiny_model){.writer = w});
    assert_fails(fv_model_open(path, &model), FV_E_FORMAT, "'general.architecture' is missing");
    unlink(path);
}

/* The file of a tiny llama with one key more or changed: keys are written before, so the first one counts as twice. */
static void with_key(const char *key, fv_gguf_type type, double value, fv_status expected, const char *words)
{
    static const char *const plain[] = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                        "attention.head_count"};
    static const int sizes[] = {1, 64, 64, 96, 2};
    const uint32_t whole = (uint32_t)(int64_t)value;
    const float real = (float)value;
    tiny_model m = {.architecture = "llama", .layers = 1};
    char full[96];

    tiny_make(&m);
    fv_text_free(&m.writer.keys);
    m.writer.key_count = 0;
    gguf_put_string(&m.writer, "general.architecture", "llama");
    for (int k = 0; k < 5; k++) {
        snprintf(full, sizeof full, "llama.%s", plain[k]);
        if (strcmp(plain[k], key) != 0) gguf_put_u32(&m.writer, full, (uint32_t)sizes[k]);
    }
    snprintf(full, sizeof full, "llama.%s", key);
    if (type == FV_GGUF_STRING)
        gguf_put_string(&m.writer, full, "what");
    else
        gguf_put_raw(&m.writer, full, type, type == FV_GGUF_F32 ? (const void *)&real : &whole, 4);
    if (strcmp(key, "attention.layer_norm_rms_epsilon") != 0)
        gguf_put_f32(&m.writer, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    refuse(&m, expected, words);
}

static void absurd_numbers_are_refused(void **state)
{
    (void)state;
    with_key("block_count", FV_GGUF_U32, 0, FV_E_FORMAT, "'llama.block_count': expected 1 to 65536, got 0");
    with_key("block_count", FV_GGUF_U32, 60000, FV_E_FORMAT, "60000 layers need at least 540000 tensors");
    with_key("block_count", FV_GGUF_F32, 2, FV_E_FORMAT, "expected an integer, got f32");
    with_key("embedding_length", FV_GGUF_U32, 4e9, FV_E_FORMAT, "'llama.embedding_length': expected 1 to");
    with_key("embedding_length", FV_GGUF_U32, 128, FV_E_FORMAT, "tensor 'token_embd.weight': expected shape [50,128]");
    with_key("attention.head_count", FV_GGUF_U32, 0, FV_E_FORMAT, "head_count");
    with_key("attention.head_count", FV_GGUF_U32, 65536, FV_E_FORMAT, "'llama.attention.key_length' is missing");
    with_key("attention.head_count_kv", FV_GGUF_U32, 3, FV_E_FORMAT, "3 key-value heads do not divide 2 query heads");
    with_key("rope.dimension_count", FV_GGUF_U32, 15, FV_E_FORMAT, "rope turns 15 channels");
    with_key("rope.dimension_count", FV_GGUF_U32, 64, FV_E_FORMAT, "up to the head's 32");
    with_key("rope.freq_base", FV_GGUF_F32, 0, FV_E_FORMAT, "'llama.rope.freq_base'");
    with_key("rope.freq_base", FV_GGUF_F32, (double)NAN, FV_E_FORMAT, "finite");
    with_key("rope.scaling.type", FV_GGUF_STRING, 0, FV_E_UNSUPPORTED, "expected none, linear or yarn, got 'what'");
    with_key("rope.scaling.factor", FV_GGUF_F32, -3, FV_E_FORMAT, "'llama.rope.scaling.factor'");
    with_key("attention.sliding_window", FV_GGUF_U32, 8, FV_E_UNSUPPORTED, "sliding windows are not known");
    with_key("attention.layer_norm_rms_epsilon", FV_GGUF_F32, -1, FV_E_FORMAT, "rms_epsilon': expected 0 to 1");
    with_key("attention.layer_norm_rms_epsilon", FV_GGUF_STRING, 0, FV_E_FORMAT, "expected a floating-point number");
}

/* Opens damaged files, and runs what still opens. */
static void flipped_bits_never_crash(void **state)
{
    fv_random random = fv_random_new(test_seed(), 77);
    tiny_model m = {.architecture = "gemma3", .layers = 1, .dtype = FV_Q4_0, .vocabulary = 9};
    fv_ctx *ctx = test_ctx("cpu", 1);
    unsigned char *bytes;
    size_t size;
    int opened = 0;
    (void)state;

    tiny_make(&m);
    gguf_bytes(&m.writer, &bytes, &size);
    int64_t head = (int64_t)size - m.writer.data.length;
    for (int round = 0; round < 1500; round++) {
        int64_t bit = fv_random_below(&random, head * 8);
        char path[] = "/tmp/fovea-flip-XXXXXX";
        int file = mkstemp(path);
        fv_model *model;
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
        assert_true(write(file, bytes, size) == (ssize_t)size);
        close(file);
        if (fv_model_open(path, &model) == FV_OK) {
            const int32_t ids[3] = {0, 8, 3};
            fv_session *session;
            opened++;
            if (fv_session_new(ctx, model, &(fv_session_options){.context = 16}, &session) == FV_OK) {
                (void)fv_session_feed(session, ids, model->sizes.vocabulary >= 9 ? 3 : 1, NULL, 0);
                fv_session_free(session);
            }
            fv_model_close(model);
        }
        unlink(path);
        bytes[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    assert_true(opened > 0 && opened < 1500);
    fv_free(bytes);
    fv_ctx_free(ctx);
    tiny_free(&m);
}

static void failing_allocations_leave_nothing_behind(void **state)
{
    tiny_model m = {.architecture = "llama", .layers = 2};
    fv_ctx *ctx = test_ctx("cpu", 1);
    fv_model *model = NULL;
    fv_session *session = NULL;
    fv_status status = FV_E_MEMORY;
    const char *path;
    (void)state;

    tiny_make(&m);
    path = tiny_save(&m);
    for (int64_t nth = 1; nth < 1000 && status != FV_OK; nth++) {
        test_alloc_fail(nth);
        status = fv_model_open(path, &model);
        test_alloc_fail(0);
        assert_true(status == FV_OK || (status == FV_E_MEMORY && !model));
    }
    assert_int_equal(status, FV_OK);
    status = FV_E_MEMORY;
    for (int64_t nth = 1; nth < 1000 && status != FV_OK; nth++) {
        test_alloc_fail(nth);
        status = fv_session_new(ctx, model, &(fv_session_options){.attention = "0/lightning2;rest/dense"}, &session);
        test_alloc_fail(0);
        assert_true(status == FV_OK || (status == FV_E_MEMORY && !session));
    }
    assert_int_equal(status, FV_OK);
    fv_session_free(session);
    fv_model_close(model);
    unlink(path);
    fv_ctx_free(ctx);
    tiny_free(&m);
}

static void models_describe_themselves(void **state)
{
    tiny_model m = {.architecture = "qwen3", .untied = true};
    fv_model *model;
    fv_model_info info;
    int32_t *ids;
    int64_t count, parameters = 0;
    (void)state;

    tiny_make(&m);
    assert_ok(open_tiny(&m, &model));
    fv_model_describe(model, &info);
    for (int w = 0; w < m.count; w++)
        parameters += m.weights[w].rows * m.weights[w].columns;
    assert_string_equal(info.architecture, "qwen3");
    assert_string_equal(info.name, "tiny");
    assert_true(info.layers == 3 && info.query_heads == 6 && info.key_heads == 2 && info.head_dim == 32);
    assert_true(info.width == 64 && info.vocabulary == 50 && info.context == 256 && !info.has_chat_template);
    assert_int_equal(info.parameters, parameters);
    assert_int_equal(info.weight_bytes, 4 * parameters);
    assert_fails(fv_model_tokenize(model, "x", 1, 0, &ids, &count), FV_E_UNSUPPORTED, "no tokenizer");
    fv_model_close(model);
    tiny_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(architectures_equal_their_twins),
        cmocka_unit_test(parts_of_heads_may_turn),
        cmocka_unit_test(biases_may_be_there),
        cmocka_unit_test(every_block_type_is_read),
        cmocka_unit_test(rope_scaling_kinds_are_read),
        cmocka_unit_test(missing_and_misshapen_tensors_are_named),
        cmocka_unit_test(unknown_architectures_list_the_known),
        cmocka_unit_test(absurd_numbers_are_refused),
        cmocka_unit_test(flipped_bits_never_crash),
        cmocka_unit_test(failing_allocations_leave_nothing_behind),
        cmocka_unit_test(models_describe_themselves),
    };
    return cmocka_run_group_tests_name("arch", tests, NULL, NULL);
}
