/* Sessions and generation: pieces, plans, counts, interrupts, stops. */
#include <math.h>
#include <stdio.h>
#include <unistd.h>

#include "base/text.h"
#include "fovea/model.h"
#include "models/model.h"
#include "support/tiny_model.h"

enum { TOKENS = 70, VOCABULARY = 50 };

struct fixture {
    fv_ctx *ctx;
    fv_model *model;
    tiny_model tiny;
    int32_t ids[TOKENS];
};

static fv_status open_tiny(const tiny_model *m, fv_model **model)
{
    const char *path = tiny_save(m);
    fv_status status = fv_model_open(path, model);

    unlink(path);
    return status;
}

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 9000;
    fv_random random = fv_random_new(test_seed(), ++stream);

    f->tiny = tiny;
    tiny_make(&f->tiny);
    assert_ok(open_tiny(&f->tiny, &f->model));
    f->ctx = test_ctx("cpu", 2);
    for (int i = 0; i < TOKENS; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}

static fv_session *session_of(const struct fixture *f, fv_session_options options)
{
    fv_session *session;

    options.precision = FV_PRECISION_F32;
    assert_ok(fv_session_new(f->ctx, f->model, &options, &session));
    return session;
}

/* Logits of all rows, fed in calls of `piece`. */
static void feed_all(const struct fixture *f, fv_session *session, int64_t piece, float *logits)
{
    for (int64_t at = 0; at < TOKENS; at += piece) {
        int64_t count = fv_min(piece, TOKENS - at);
        assert_ok(fv_session_feed(session, f->ids + at, count, logits + at * VOCABULARY, count));
    }
}

/* The largest difference, as a share of the largest of a. */
static double distance(const float *a, const float *b, int64_t count)
{
    double most = 0, size = 1;

    for (int64_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        size = fmax(size, fabs((double)a[i]));
        if (!(d <= most)) most = d;
    }
    return most / size;
}

/* f32 sums in another order: 1e-7 * sqrt(256) of their size, which the layers pass on. */
static const double rounding = 2e-5;

static const char f32_rows[] = "full:k=f32,v=f32";

/* ---- pieces ----------------------------------------------------------------------------------------------------- */

static const char *const specs[] = {
    NULL,
    "dense",
    "dense:window=5",
    "sinkwin:sink=2,window=6",
    "sinkwin:sink=1,window=2,block=4",
    "power:block=4,window_blocks=2",
    "lightning2:block=8",
    "lightning2:decay=none",
    "hedgehog",
    "moba:block=8,top=2",
    "nsa:compress=mean,compress_block=8,compress_stride=4,block=8,top=3,window=6",
    "hip:k=8,block_q=1,window=6,sink=2,refresh=1",
    "0-1/sinkwin:sink=1,window=4;3/lightning2;rest/power:block=2",
};

/* Whole, in chunks, and token by token: the same numbers up to the order of sums. */
static void any_pieces_give_the_same_numbers(void **state)
{
    static const int64_t ways[][2] = {{TOKENS, 16}, {TOKENS, 9}, {11, 0}, {1, 0}};
    static float whole[TOKENS * VOCABULARY], got[TOKENS * VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3"});
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++) {
        /* A sum in another order may round a cached row to its other f16 neighbour, off by 2^-11 of itself, and a
         * choice between blocks that score alike may turn on that: f32 rows but for the first two. */
        bool exact = s >= 2;
        fv_session *session = session_of(
            &f, (fv_session_options){.attention = specs[s], .chunk = TOKENS, .cache = exact ? f32_rows : NULL});
        feed_all(&f, session, TOKENS, whole);
        fv_session_clear(session);
        assert_int_equal(fv_session_length(session), 0);
        feed_all(&f, session, TOKENS, got); /* nothing is left of the first time */
        assert_true(distance(whole, got, TOKENS * VOCABULARY) == 0);
        fv_session_free(session);
        for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
            session = session_of(
                &f, (fv_session_options){.attention = specs[s], .chunk = ways[w][1], .cache = exact ? f32_rows : NULL});
            feed_all(&f, session, ways[w][0], got);
            double d = distance(whole, got, TOKENS * VOCABULARY);
            if (!(d <= (exact ? rounding : 1e-3)))
                fail_msg("%s in pieces of %d, chunks of %d: differs by %g", specs[s] ? specs[s] : "(own)",
                         (int)ways[w][0], (int)ways[w][1], d);
            fv_session_free(session);
        }
    }
    end(&f);
}

/* Mechanisms that compute on keys read rows of blocks too, in chunks and token by token. */
static void mechanisms_run_over_rows_of_blocks(void **state)
{
    static const char *const caches[] = {"full:k=q8_0,v=q4_0", "full:k=q4_0,v=q8_0"};
    static float exact[TOKENS * VOCABULARY], got[TOKENS * VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3", .key_dim = 32, .value_dim = 64, .rotary = 32});
    for (size_t s = 0; s < sizeof specs / sizeof *specs; s++)
        for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
            fv_session *plain = session_of(&f, (fv_session_options){.attention = specs[s], .cache = f32_rows});
            fv_session *session =
                session_of(&f, (fv_session_options){.attention = specs[s], .chunk = 16, .cache = caches[c]});
            fv_session_stats counts, plain_counts;
            feed_all(&f, plain, TOKENS, exact);
            assert_ok(fv_session_feed(session, f.ids, TOKENS - 5, got, TOKENS - 5));
            for (int64_t i = TOKENS - 5; i < TOKENS; i++)
                assert_ok(fv_session_feed(session, f.ids + i, 1, got + i * VOCABULARY, 1));
            double d = distance(exact, got, TOKENS * VOCABULARY);
            fv_session_measure(plain, &plain_counts);
            fv_session_measure(session, &counts);
            /* layers whose mechanism keeps a state have no rows, which then are f32 as before */
            if (!isfinite(d) || (counts.cache_bytes == plain_counts.cache_bytes) != (d <= rounding))
                fail_msg("%s over %s: differs by %g, with %zu bytes instead of %zu", specs[s] ? specs[s] : "(own)",
                         caches[c], d, counts.cache_bytes, plain_counts.cache_bytes);
            fv_session_free(session);
            fv_session_free(plain);
        }
    end(&f);
}

static fv_status take_rows(void *user, int64_t first, int64_t rows, const float *logits)
{
    memcpy((float *)user + first * VOCABULARY, logits, (size_t)(rows * VOCABULARY) * sizeof *logits);
    return FV_OK;
}

static fv_status refuse_rows(void *user, int64_t first, int64_t rows, const float *logits)
{
    (void)user;
    (void)first;
    (void)rows;
    (void)logits;
    return fv_fail(FV_E_IO, "the sink is full");
}

static void logits_come_of_the_rows_asked_for(void **state)
{
    static float whole[TOKENS * VOCABULARY], got[(TOKENS + 1) * VOCABULARY];
    struct fixture f;
    fv_session *session;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama"});
    session = session_of(&f, (fv_session_options){.chunk = 16});
    assert_ok(fv_session_stream(session, f.ids, TOKENS, take_rows, whole));
    for (int64_t rows = 0; rows <= TOKENS; rows += 7) {
        fv_session_clear(session);
        memset(got, 0xff, sizeof got);
        assert_ok(fv_session_feed(session, f.ids, TOKENS, got, rows));
        assert_true(distance(got, whole + (TOKENS - rows) * VOCABULARY, rows * VOCABULARY) <= rounding);
        for (int i = 0; i < 10; i++)
            assert_true(isnan(got[rows * VOCABULARY + i])); /* nothing is written behind */
    }
    fv_session_clear(session);
    assert_fails(fv_session_stream(session, f.ids, TOKENS, refuse_rows, NULL), FV_E_IO, "the sink is full");
    assert_fails(fv_session_feed(session, f.ids, 3, got, 4), FV_E_ARGUMENT, "0 to 3 rows, got 4");
    assert_fails(fv_session_feed(session, f.ids, 3, NULL, 1), FV_E_ARGUMENT, "expected memory");
    assert_ok(fv_session_feed(session, f.ids, 0, NULL, 0));
    fv_session_free(session);
    end(&f);
}

/* ---- plans ------------------------------------------------------------------------------------------------------ */

static void logits_of(const struct fixture *f, const char *attention, float *logits)
{
    fv_session *session = session_of(f, (fv_session_options){.attention = attention});

    feed_all(f, session, TOKENS, logits);
    fv_session_free(session);
}

/* Layer 5 of seven sees everything, the others have windows of their own. */
static void bare_specs_leave_windows_alone(void **state)
{
    enum { COUNT = TOKENS * VOCABULARY };
    static float own[COUNT], bare[COUNT], named[COUNT], rest[COUNT];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3"});
    logits_of(&f, NULL, own);
    logits_of(&f, "dense", bare);
    assert_true(distance(own, bare, COUNT) == 0);
    logits_of(&f, "dense:window=3", bare);
    logits_of(&f, "5/dense:window=3", named);
    logits_of(&f, "rest/dense:window=3", rest);
    assert_true(distance(bare, named, COUNT) == 0);
    assert_true(distance(bare, own, COUNT) > 1e-3);
    assert_true(distance(bare, rest, COUNT) > 1e-3);
    logits_of(&f, "5/dense;rest/dense:window=9", rest);
    assert_true(distance(own, rest, COUNT) == 0);
    logits_of(&f, "rest/dense", rest);
    assert_true(distance(own, rest, COUNT) > 1e-3);
    end(&f);
}

static void bad_plans_are_refused(void **state)
{
    static const struct {
        const char *attention, *words;
    } bad[] = {{"dens", "did you mean 'dense'"}, {"dense:windw=3", "windw"},        {"bra:grid=8x8", "causal"},
               {"0-9/dense", "outside 0 to 6"},  {"0/dense;0/dense", "twice"},      {"", "empty"},
               {"agent:grid=8x8", "causal"},     {"rest/dense:window=-1", "window"}};
    struct fixture f;
    fv_session *session;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3"});
    for (size_t b = 0; b < sizeof bad / sizeof *bad; b++) {
        assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.attention = bad[b].attention}, &session),
                     FV_E_USAGE, bad[b].words);
        assert_null(session);
    }
    assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.context = -1}, &session), FV_E_ARGUMENT,
                 "context");
    assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.chunk = 1 << 20}, &session), FV_E_ARGUMENT,
                 "chunk");
    assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.cache = "full:k=i8"}, &session), FV_E_USAGE,
                 "'k'");
    end(&f);
}

/* ---- counts ----------------------------------------------------------------------------------------------------- */

enum { ROW = 2 * (32 + 32) * 2 }; /* two heads of keys and values, f16 */

static void check_counts(const struct fixture *f, fv_session_options options, size_t bytes, double pairs, double dense)
{
    fv_session *session = session_of(f, options);
    fv_session_stats stats;

    for (int64_t at = 0; at < TOKENS; at += 10)
        assert_ok(fv_session_feed(session, f->ids + at, 10, NULL, 0));
    fv_session_measure(session, &stats);
    assert_int_equal(stats.cache_bytes, bytes);
    /* a layer holds a chunk's rows for a moment beside those of its window */
    assert_true(stats.peak_cache_bytes >= bytes && stats.peak_cache_bytes <= bytes + 10 * ROW * 2);
    assert_true(stats.committed_bytes >= bytes && stats.committed_bytes <= stats.peak_cache_bytes + 28 * (64 << 10));
    if (stats.pairs != pairs || stats.dense_pairs != dense)
        fail_msg("%s: expected %g of %g pairs, got %g of %g", options.attention ? options.attention : "(own)", pairs,
                 dense, stats.pairs, stats.dense_pairs);
    fv_session_free(session);
}

static double window_pairs(int64_t window)
{
    double pairs = 0;

    for (int64_t p = 0; p < TOKENS; p++)
        pairs += (double)fv_min(p + 1, window);
    return 6 * pairs; /* heads */
}

static void bytes_and_pairs_are_counted(void **state)
{
    const size_t row = ROW;
    double own = 6 * window_pairs(9) + window_pairs(TOKENS);
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3"});
    check_counts(&f, (fv_session_options){0}, (row * (6 * 9 + TOKENS)), own, own);
    check_counts(&f, (fv_session_options){.cache = f32_rows}, 2 * row * (6 * 9 + TOKENS), own, own);
    check_counts(&f, (fv_session_options){.attention = "dense:window=3"}, row * (6 * 9 + TOKENS),
                 6 * window_pairs(9) + window_pairs(3), own);
    check_counts(&f, (fv_session_options){.attention = "rest/dense"}, 7 * row * TOKENS, 7 * window_pairs(TOKENS), own);
    /* a state of 32 x 32 sums and 32 counts for each of six query heads takes the place of layer 5's rows */
    check_counts(&f, (fv_session_options){.attention = "lightning2"}, 6 * row * 9 + 6 * (32 * 32 + 32) * 4,
                 6 * window_pairs(9), own);
    end(&f);
}

/* ---- the last tokens of a prompt ------------------------------------------------------------------------------- */

enum { ASKED = TOKENS - 10, LAST = 13 };

/* Logits of a prompt, and of the steps behind it; the pairs of the layer that sees everything are those of `expected`.
 */
static void read_prompt(const struct fixture *f, fv_session_options options, double expected, float *logits)
{
    fv_session *session = session_of(f, options);
    fv_session_stats stats;

    assert_ok(fv_session_prompt(session, f->ids, ASKED, logits, ASKED));
    for (int64_t i = ASKED; i < TOKENS; i++)
        assert_ok(fv_session_feed(session, f->ids + i, 1, logits + i * VOCABULARY, 1));
    fv_session_measure(session, &stats);
    if (stats.pairs != 6 * window_pairs(9) + 6 * expected)
        fail_msg("expected %g pairs, got %g", 6 * window_pairs(9) + 6 * expected, stats.pairs);
    fv_session_free(session);
}

static void the_last_rows_of_a_prompt_read_everything(void **state)
{
    static float dense[TOKENS * VOCABULARY], narrow[TOKENS * VOCABULARY], got[TOKENS * VOCABULARY];
    double seen = 0, wide = 0, all = 0;
    fv_session *session;
    struct fixture f;
    (void)state;

    for (int64_t p = 0; p < TOKENS; p++) {
        all += (double)(p + 1);
        seen += (double)fv_min(p + 1, 6);
        wide += (double)(p >= ASKED - LAST && p < ASKED ? p + 1 : fv_min(p + 1, 6));
    }
    begin(&f, (tiny_model){.architecture = "gemma3"});
    fv_session_options options = {.cache = f32_rows, .attention = "sinkwin:sink=2,window=4"};
    read_prompt(&f, (fv_session_options){.cache = f32_rows}, all, dense);
    read_prompt(&f, options, seen, narrow);
    options.dense_last = LAST;
    for (options.chunk = 7; options.chunk <= TOKENS; options.chunk += TOKENS - 7) {
        read_prompt(&f, options, wide, got);
        assert_true(distance(narrow, got, (ASKED - LAST) * VOCABULARY) < rounding);
        for (int64_t p = ASKED - LAST; p < ASKED; p++)
            assert_true(distance(narrow + p * VOCABULARY, got + p * VOCABULARY, VOCABULARY) > 10 * rounding);
    }
    options = (fv_session_options){
        .cache = f32_rows, .attention = "anchor:block=4,step=2,init=2,theta=-1", .dense_last = ASKED};
    read_prompt(&f, options, all, got); /* its steps read everything as they are */
    assert_true(distance(dense, got, TOKENS * VOCABULARY) < rounding);
    assert_fails(
        fv_session_new(f.ctx, f.model, &(fv_session_options){.attention = "hedgehog", .dense_last = 1}, &session),
        FV_E_USAGE, "a state in place of keys");
    assert_fails(fv_session_new(f.ctx, f.model, &(fv_session_options){.dense_last = -1}, &session), FV_E_ARGUMENT,
                 "dense_last");
    end(&f);
}

/* A search of 8 keys between two sinks and the four newest serves three steps, in which the window grows; nothing of it
 * is left when the session is cleared. */
static void a_choice_serves_several_steps(void **state)
{
    enum { PROMPT = 40 };
    static float first[TOKENS * VOCABULARY], logits[VOCABULARY];
    const size_t choices = 7 * 6 * 8 * sizeof(int32_t); /* of layers and heads */
    fv_session_stats before, stats;
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma3"});
    fv_session *session =
        session_of(&f, (fv_session_options){.attention = "rest/hip:k=8,block_q=8,block_k=1,window=4,sink=2,refresh=3"});
    for (int round = 0; round < 2; round++) {
        assert_ok(fv_session_feed(session, f.ids, PROMPT, NULL, 0));
        fv_session_measure(session, &before);
        assert_int_equal(before.cache_bytes, 7 * ROW * PROMPT);
        for (int t = PROMPT; t < TOKENS; t++) {
            assert_ok(fv_session_feed(session, f.ids + t, 1, round ? logits : first + t * VOCABULARY, 1));
            fv_session_measure(session, &stats);
            assert_true(stats.pairs - before.pairs == 7 * 6 * (2 + 8 + 4 + (t - PROMPT) % 3));
            assert_int_equal(stats.cache_bytes, 7 * ROW * (t + 1) + choices);
            if (round) assert_memory_equal(logits, first + t * VOCABULARY, sizeof logits);
            before = stats;
        }
        fv_session_clear(session);
    }
    fv_session_free(session);
    end(&f);
}

/* ---- limits ----------------------------------------------------------------------------------------------------- */

static void what_does_not_fit_is_refused(void **state)
{
    struct fixture f;
    fv_session *session;
    const int32_t below[2] = {0, -1}, above[2] = {VOCABULARY, 0};
    (void)state;

    begin(&f, (tiny_model){.architecture = "qwen2"});
    session = session_of(&f, (fv_session_options){.context = 50});
    assert_fails(fv_session_feed(session, f.ids, 51, NULL, 0), FV_E_SHAPE, "the context of 50 holds 50 more");
    assert_ok(fv_session_feed(session, f.ids, 45, NULL, 0));
    assert_fails(fv_session_feed(session, f.ids, 6, NULL, 0), FV_E_SHAPE, "the context of 50 holds 5 more");
    assert_int_equal(fv_session_length(session), 45);
    assert_fails(fv_session_feed(session, below, 2, NULL, 0), FV_E_ARGUMENT, "token 1: expected an id of 0 to 49");
    assert_fails(fv_session_feed(session, above, 2, NULL, 0), FV_E_ARGUMENT, "token 0: expected an id of 0 to 49");
    assert_ok(fv_session_feed(session, f.ids, 5, NULL, 0));
    assert_fails(fv_session_feed(session, f.ids, 1, NULL, 0), FV_E_SHAPE, "holds 0 more");
    fv_session_free(session);
    end(&f);
}

struct stopper {
    fv_ctx *ctx;
    int calls, at;
};

static void stop_at(void *user, const char *what, double fraction)
{
    struct stopper *s = user;

    (void)what;
    (void)fraction;
    if (++s->calls == s->at) fv_ctx_interrupt(s->ctx);
}

/* An interrupt leaves whole chunks; what follows continues from there. */
static void interrupts_leave_whole_chunks(void **state)
{
    static float whole[VOCABULARY], got[VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "gemma2"});
    for (int kind = 0; kind < 2; kind++) {
        const char *attention = kind ? "0/sinkwin;rest/power:block=4" : NULL;
        struct stopper stopper = {.at = 3};
        fv_ctx *ctx;
        fv_session *session = session_of(&f, (fv_session_options){.attention = attention, .chunk = 10});
        assert_ok(fv_session_feed(session, f.ids, TOKENS, whole, 1));
        fv_session_free(session);
        assert_ok(fv_ctx_new(&(fv_ctx_options){.progress = stop_at, .progress_user = &stopper}, &ctx));
        stopper.ctx = ctx;
        assert_ok(fv_session_new(
            ctx, f.model, &(fv_session_options){.attention = attention, .chunk = 10, .precision = FV_PRECISION_F32},
            &session));
        assert_fails(fv_session_feed(session, f.ids, TOKENS, got, 1), FV_E_INTERRUPTED, "interrupted");
        assert_int_equal(fv_session_length(session), 30);
        fv_ctx_clear_interrupt(ctx);
        assert_ok(fv_session_feed(session, f.ids + 30, TOKENS - 30, got, 1));
        assert_true(distance(whole, got, VOCABULARY) <= rounding);
        fv_session_free(session);
        fv_ctx_free(ctx);
    }
    end(&f);
}

/* Memory that fails in a chunk: rows are simply written again, a recurrent state must be cleared first. */
static void failed_chunks_can_be_fed_again(void **state)
{
    static float whole[VOCABULARY], got[VOCABULARY];
    struct fixture f;
    (void)state;

    begin(&f, (tiny_model){.architecture = "llama", .hidden = 4096}); /* more than a context's first scratch memory */
    for (int kind = 0; kind < 2; kind++) {
        fv_session_options options = {.attention = kind ? "1/lightning2" : NULL, .precision = FV_PRECISION_F32};
        fv_ctx *fresh = test_ctx("cpu", 1);
        fv_session *session = session_of(&f, options);
        fv_session_stats stats;
        assert_ok(fv_session_feed(session, f.ids, TOKENS, whole, 1));
        fv_session_free(session);
        assert_ok(fv_session_new(fresh, f.model, &options, &session));
        test_alloc_fail(1);
        fv_status status = fv_session_feed(session, f.ids, TOKENS, got, 1);
        test_alloc_fail(0);
        assert_int_equal(status, FV_E_MEMORY);
        assert_int_equal(fv_session_length(session), 0);
        fv_session_measure(session, &stats);
        assert_true(stats.pairs == 0 && stats.dense_pairs == 0);
        if (kind == 1) {
            assert_fails(fv_session_feed(session, f.ids, TOKENS, got, 1), FV_E_ARGUMENT, "clear the session");
            fv_session_clear(session);
        }
        assert_ok(fv_session_feed(session, f.ids, TOKENS, got, 1));
        assert_true(distance(whole, got, VOCABULARY) <= rounding);
        fv_session_free(session);
        fv_ctx_free(fresh);
    }
    end(&f);
}

/* ---- generation ------------------------------------------------------------------------------------------------- */

/* A model that says its vocabulary in order: token i is followed by i + 1, the last one by 2, the end. */
static const char *const pieces[] = {
    "<unk>", "<s>",    "</s>", "one",    "\xe2\x96\x81two", "<0xE2>", "<0x82>", "<0xAC>", "\xe2\x96\x81STOP",
    "PED",   "<0xC3>", "x",    "<0xF0>", "<0x9F>"};
static const int32_t kinds[] = {2, 3, 3, 1, 1, 6, 6, 6, 1, 1, 6, 1, 6, 6};
enum { SAID = 14, WIDE = 16 };

static void put_zeros(gguf_writer *w, const char *name, int64_t rows, int64_t columns, float fill)
{
    float data[WIDE * WIDE];
    int64_t shape[2] = {rows, columns};

    for (int i = 0; i < WIDE * WIDE; i++)
        data[i] = fill;
    gguf_put_tensor(w, name, FV_F32, rows ? 2 : 1, rows ? shape : &columns, data);
}

static fv_model *talker(void)
{
    static const char *const numbers[] = {"block_count", "context_length", "embedding_length", "feed_forward_length",
                                          "attention.head_count"};
    static const char *const zeros[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    static const int values[] = {1, 64, WIDE, WIDE, 1};
    float embedding[SAID * WIDE] = {0}, output[SAID * WIDE] = {0};
    gguf_writer w = {0};
    char name[64];
    fv_model *model;

    gguf_put_string(&w, "general.architecture", "llama");
    for (int k = 0; k < 5; k++) {
        snprintf(name, sizeof name, "llama.%s", numbers[k]);
        gguf_put_u32(&w, name, (uint32_t)values[k]);
    }
    gguf_put_f32(&w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_put_string(&w, "tokenizer.ggml.model", "llama");
    gguf_put_strings(&w, "tokenizer.ggml.tokens", pieces, SAID);
    gguf_put_array(&w, "tokenizer.ggml.scores", FV_GGUF_F32, (float[SAID]){0}, SAID);
    gguf_put_array(&w, "tokenizer.ggml.token_type", FV_GGUF_I32, kinds, SAID);
    for (int i = 0; i < SAID; i++) {
        embedding[i * WIDE + i] = 1;
        output[(i + 1 < SAID ? i + 1 : 2) * WIDE + i] = 1;
    }
    gguf_put_tensor(&w, "token_embd.weight", FV_F32, FV_DIMS(SAID, WIDE), embedding);
    gguf_put_tensor(&w, "output.weight", FV_F32, FV_DIMS(SAID, WIDE), output);
    put_zeros(&w, "output_norm.weight", 0, WIDE, 1);
    put_zeros(&w, "blk.0.attn_norm.weight", 0, WIDE, 1);
    put_zeros(&w, "blk.0.ffn_norm.weight", 0, WIDE, 1);
    for (int z = 0; z < 7; z++) {
        snprintf(name, sizeof name, "blk.0.%s.weight", zeros[z]);
        put_zeros(&w, name, WIDE, WIDE, 0);
    }
    assert_ok(open_tiny(&(tiny_model){.writer = w}, &model));
    gguf_writer_free(&w);
    return model;
}

struct listener {
    char text[256];
    size_t length, most;
};

static bool listen(void *user, const char *text, size_t length)
{
    struct listener *l = user;

    assert_true(length > 0 && fv_utf8_valid(text, length) == length); /* whole characters */
    assert_true(l->length + length < sizeof l->text);
    memcpy(l->text + l->length, text, length);
    l->length += length;
    l->text[l->length] = 0;
    return l->length < l->most;
}

/* Generates after token `from`; what was said must be the text, and end for that reason. */
static void say(const fv_model *model, int32_t from, int64_t context, int64_t limit, size_t most,
                const char *const *stop, const char *expected, fv_stop reason, int64_t tokens)
{
    fv_ctx *ctx = test_ctx("cpu", 1);
    struct listener heard = {.most = most ? most : SIZE_MAX};
    float logits[SAID];
    fv_session *session;
    fv_sampler *sampler;
    fv_generation g;
    int stops = 0;

    while (stop && stop[stops])
        stops++;
    assert_ok(fv_sampler_new(&(fv_sampler_options){0}, SAID, &sampler));
    assert_ok(fv_session_new(ctx, model, &(fv_session_options){.context = context}, &session));
    assert_ok(fv_session_feed(session, &from, 1, logits, 1));
    assert_ok(fv_generate(
        session, logits,
        &(fv_generate_options){
            .limit = limit, .sampler = sampler, .stops = stops, .stop = stop, .text = listen, .user = &heard},
        &g));
    assert_string_equal(g.text, expected);
    assert_int_equal(g.length, strlen(expected));
    if (!most) assert_string_equal(heard.text, expected);
    assert_string_equal(fv_stop_name(g.stop), fv_stop_name(reason));
    assert_int_equal(g.count, tokens);
    for (int64_t i = 0; i < g.count; i++)
        assert_int_equal(g.ids[i], from + 1 + i);
    fv_generation_free(&g);
    fv_session_free(session);
    fv_sampler_free(sampler);
    fv_ctx_free(ctx);
}

static void answers_end_where_they_should(void **state)
{
    const char *whole = " two\xe2\x82\xac STOPPED\xef\xbf\xbdx"; /* C3 before x is no character; F0 9F never ends */
    const char *const stops[][3] = {{"STOPPERS", "zzz", NULL}, {"PE", NULL}, {"\xe2\x82\xac S", NULL}, {" two", NULL},
                                    {"STOPPED", "TOP", NULL},  {"", NULL}};
    fv_model *model = talker();
    (void)state;

    say(model, 3, 64, 100, 0, NULL, whole, FV_STOP_END, 10);
    say(model, 3, 64, 100, 0, stops[0], whole, FV_STOP_END, 10);
    say(model, 3, 64, 100, 0, stops[1], " two\xe2\x82\xac STOP", FV_STOP_TEXT, 6);
    say(model, 3, 64, 100, 0, stops[2], " two", FV_STOP_TEXT, 5);
    say(model, 3, 64, 100, 0, stops[3], "", FV_STOP_TEXT, 1);
    say(model, 3, 64, 100, 0, stops[4], " two\xe2\x82\xac S", FV_STOP_TEXT, 5);
    say(model, 3, 64, 100, 0, stops[5], whole, FV_STOP_END, 10);
    say(model, 3, 64, 0, 0, NULL, "", FV_STOP_LIMIT, 0);
    say(model, 3, 64, 3, 0, NULL, " two", FV_STOP_LIMIT, 3); /* two bytes of a character are held back for good */
    say(model, 3, 64, 5, 0, NULL, " two\xe2\x82\xac STOP", FV_STOP_LIMIT, 5);
    say(model, 3, 64, 5, 0, stops[0], " two\xe2\x82\xac STOP", FV_STOP_LIMIT, 5); /* undecided at the end: shown */
    say(model, 3, 3, 100, 0, NULL, " two", FV_STOP_CONTEXT, 3);
    say(model, 3, 64, 100, 5, NULL, " two\xe2\x82\xac", FV_STOP_CALLER, 4);
    say(model, 13, 64, 100, 0, NULL, "", FV_STOP_END, 0);
    fv_model_close(model);
}

static void interrupted_answers_leave_nothing_behind(void **state)
{
    fv_model *model = talker();
    fv_ctx *ctx = test_ctx("cpu", 1);
    float logits[SAID] = {0};
    fv_session *session;
    fv_sampler *sampler;
    fv_generation g;
    const fv_generate_options none = {.limit = 5};
    (void)state;

    assert_ok(fv_sampler_new(&(fv_sampler_options){0}, SAID, &sampler));
    assert_ok(fv_session_new(ctx, model, NULL, &session));
    assert_fails(fv_generate(session, logits, &none, &g), FV_E_ARGUMENT, "sampler");
    logits[3] = 1;
    fv_ctx_interrupt(ctx);
    assert_fails(fv_generate(session, logits, &(fv_generate_options){.limit = 5, .sampler = sampler}, &g),
                 FV_E_INTERRUPTED, "interrupted");
    fv_ctx_clear_interrupt(ctx);
    for (int64_t nth = 1; nth < 6; nth++) {
        test_alloc_fail(nth);
        fv_status status = fv_generate(session, logits, &(fv_generate_options){.limit = 1, .sampler = sampler}, &g);
        test_alloc_fail(0);
        assert_true(status == FV_OK || status == FV_E_MEMORY);
        fv_generation_free(&g);
    }
    fv_session_free(session);
    fv_sampler_free(sampler);
    fv_ctx_free(ctx);
    fv_model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_pieces_give_the_same_numbers),
        cmocka_unit_test(mechanisms_run_over_rows_of_blocks),
        cmocka_unit_test(logits_come_of_the_rows_asked_for),
        cmocka_unit_test(bare_specs_leave_windows_alone),
        cmocka_unit_test(bad_plans_are_refused),
        cmocka_unit_test(bytes_and_pairs_are_counted),
        cmocka_unit_test(the_last_rows_of_a_prompt_read_everything),
        cmocka_unit_test(a_choice_serves_several_steps),
        cmocka_unit_test(what_does_not_fit_is_refused),
        cmocka_unit_test(interrupts_leave_whole_chunks),
        cmocka_unit_test(failed_chunks_can_be_fed_again),
        cmocka_unit_test(answers_end_where_they_should),
        cmocka_unit_test(interrupted_answers_leave_nothing_behind),
    };
    return cmocka_run_group_tests_name("session", tests, NULL, NULL);
}
