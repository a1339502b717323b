/* The scheduler: the same tokens alone, in any company, at any place in the queue, with rows lent or not; requests
 * leave when they are told to, and fail one by one. */
#define _GNU_SOURCE
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

#include "generate/scheduler.h"
#include "support/tiny_model.h"

enum { VOCABULARY = 50, REQUESTS = 8, MOST = 40, CONTEXT = 900 };

struct fixture {
    tiny_model tiny;
    fv_model *model;
    fv_ctx *ctx;
    fv_scheduler *scheduler;
    pthread_t thread;
};

/* What callbacks have said about a request. */
struct outcome {
    int count[FV_MOST_CHOICES];
    int32_t ids[FV_MOST_CHOICES][MOST];
    int choices_over, done;
    fv_request_end end, choice_end[FV_MOST_CHOICES];
    fv_request_usage usage;
    char error[200];
    float embedding[64];
    int64_t width;
    int prompt_rows;
    int stop_after; /* 0: never */
    fv_scheduler *cancel_in;
    fv_request *request;
    int cancel_after;
};

/* The n-th write from now on, and all later ones, fail (0: none); and those that end behind so many bytes of a file. */
static _Atomic long writes, refused_from, most_bytes;

ssize_t __real_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset)
{
    bool full = most_bytes > 0 && offset + (off_t)count > most_bytes;

    if (!full && (++writes < refused_from || refused_from == 0)) return __real_pwrite(file, bytes, count, offset);
    errno = ENOSPC;
    return -1;
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static bool on_token(void *user, int choice, int32_t id, const float *logits)
{
    struct outcome *o = user;

    assert_true(isfinite(logits[id]));
    assert_true(o->count[choice] < MOST);
    o->ids[choice][o->count[choice]++] = id;
    if (o->cancel_after && o->count[choice] == o->cancel_after) fv_request_cancel(o->cancel_in, o->request);
    return !o->stop_after || o->count[choice] < o->stop_after;
}

static void on_choice(void *user, int choice, fv_request_end end)
{
    struct outcome *o = user;

    o->choice_end[choice] = end;
    o->choices_over++;
}

static void on_prompt(void *user, int64_t at, const float *logits)
{
    struct outcome *o = user;

    assert_int_equal(at, o->prompt_rows++);
    assert_true(isfinite(logits[0]));
}

static void on_done(void *user, fv_request_end end, const char *error, const fv_request_usage *usage,
                    const float *embedding)
{
    struct outcome *o = user;

    pthread_mutex_lock(&mutex);
    o->end = end;
    o->usage = *usage;
    snprintf(o->error, sizeof o->error, "%s", error ? error : "");
    for (int64_t c = 0; embedding && c < o->width; c++)
        o->embedding[c] = embedding[c];
    o->done++;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
}

static void wait_for(const struct outcome *o)
{
    pthread_mutex_lock(&mutex);
    while (!o->done)
        pthread_cond_wait(&changed, &mutex);
    pthread_mutex_unlock(&mutex);
    assert_int_equal(o->done, 1);
}

static void *run(void *user)
{
    struct fixture *f = user;
    static fv_status status;

    status = fv_scheduler_run(f->scheduler);
    return &status;
}

static void start(struct fixture *f, const fv_scheduler_options *options)
{
    fv_scheduler_options own = *options;

    own.context = CONTEXT;
    assert_ok(fv_scheduler_new(f->ctx, f->model, &own, &f->scheduler));
    assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
}

static void stop(struct fixture *f, bool drain)
{
    void *status;

    fv_scheduler_stop(f->scheduler, drain);
    pthread_join(f->thread, &status);
    assert_int_equal(*(fv_status *)status, FV_OK);
    fv_scheduler_free(f->scheduler);
    f->scheduler = NULL;
}

static void begin(struct fixture *f, tiny_model tiny, int threads)
{
    const char *path;

    f->tiny = tiny;
    tiny_make(&f->tiny);
    path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    f->ctx = test_ctx("cpu", threads);
}

static void end(struct fixture *f)
{
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}

static fv_request_options request_of(const int32_t *ids, int64_t count, struct outcome *o)
{
    return (fv_request_options){.ids = ids,
                                .count = count,
                                .limit = 12,
                                .choices = 1,
                                .ignore_end = true,
                                .user = o,
                                .token = on_token,
                                .choice = on_choice,
                                .done = on_done};
}

static fv_status submit(const struct fixture *f, const fv_request_options *options, struct outcome *o)
{
    memset(o->count, 0, sizeof o->count);
    o->done = o->choices_over = 0;
    return fv_scheduler_submit(f->scheduler, options, &o->request);
}

static void same_tokens(const char *what, const struct outcome *a, const struct outcome *b, int choices)
{
    for (int c = 0; c < choices; c++) {
        assert_int_equal(a->count[c], b->count[c]);
        for (int i = 0; i < a->count[c]; i++)
            if (a->ids[c][i] != b->ids[c][i])
                fail_msg("%s: choice %d, token %d: expected %d, got %d", what, c, i, a->ids[c][i], b->ids[c][i]);
    }
}

/* Prompts of many lengths, some of which begin alike. */
static void draw_prompts(int32_t ids[REQUESTS][CONTEXT], int64_t *counts, fv_random *random)
{
    for (int r = 0; r < REQUESTS; r++) {
        counts[r] = 1 + fv_random_below(random, r % 4 == 3 ? 800 : 100);
        for (int64_t i = 0; i < counts[r]; i++)
            ids[r][i] = (int32_t)fv_random_below(random, VOCABULARY);
        int64_t common = fv_random_below(random, 90);
        for (int64_t i = 0; r % 2 == 1 && i < fv_min(common, fv_min(counts[r], counts[r - 1])); i++)
            ids[r][i] = ids[r - 1][i];
    }
}

static const tiny_model models[] = {
    {.architecture = "llama", .layers = 2, .heads = 6, .key_heads = 3, .context = CONTEXT},
    {.architecture = "gemma3", .layers = 7, .context = CONTEXT, .window = 30},
};
static const struct {
    const char *attention, *cache;
} setups[] = {
    {NULL, NULL},
    {NULL, "full:k=q8_0,v=q8_0"},
    {NULL, "sinkring:sink=2,window=20"},
    {NULL, "sinkring:sink=2,window=20,prefill=dense"},
    {NULL, "h2o:budget=24"},
    {NULL, "snapkv:budget=24,window=4"},
    {NULL, "shard:block=8,local=2"},
    {NULL, "gemfilter:budget=24"},
    {NULL, "alisa:r=0.3"},
    {NULL, "alisa:r=0.3,resident=20,recompute=40"},
    {NULL, "alisa:r=0.3,bits=8,resident=20"},
    {NULL, "blocktopk:block=4,top=3,local=8"},
    {NULL, "vattn:page=4096"},
    {"moba:block=16,top=2", "full:k=q4_0"},
    {"lightning2", NULL},
};
enum { SETUPS = sizeof setups / sizeof *setups };

/* Alone and without rows of others; then all at once, through a short row of places, with and without memory. */
static void check_company(struct fixture *f, int setup, bool sampled, fv_random *random)
{
    static int32_t ids[REQUESTS][CONTEXT];
    static struct outcome alone[REQUESTS], company[REQUESTS];
    /* 0: no limit; then room for about one of the long prompts: others are sent back and computed again */
    const size_t limits[] = {0, (size_t)f->tiny.layers * (size_t)f->tiny.key_heads * 2 * 64 * 700};
    int64_t counts[REQUESTS];

    draw_prompts(ids, counts, random);
    for (int pass = 0; pass < 4; pass++) {
        struct outcome *out = pass == 0 ? alone : company;
        start(f, &(fv_scheduler_options){.parallel = pass == 2 ? 2 : 5,
                                         .attention = setups[setup].attention,
                                         .cache = setups[setup].cache,
                                         .kv_memory = limits[pass == 3]});
        for (int r = 0; r < REQUESTS; r++) {
            fv_request_options options = request_of(ids[r], counts[r], &out[r]);
            options.no_reuse = pass == 0;
            if (sampled) options.sampling = (fv_sampler_options){.temperature = 0.9F, .top_p = 0.95F, .seed = 7};
            if (sampled) options.presence_penalty = 0.3F;
            assert_ok(submit(f, &options, &out[r]));
            if (pass == 0) wait_for(&out[r]);
        }
        for (int r = 0; r < REQUESTS; r++) {
            char what[200];
            wait_for(&out[r]);
            snprintf(what, sizeof what, "%s, %s %s, pass %d, request %d of %d tokens", f->tiny.architecture,
                     setups[setup].attention ? setups[setup].attention : "own",
                     setups[setup].cache ? setups[setup].cache : "", pass, r, (int)counts[r]);
            if (out[r].end != FV_REQUEST_STOP) fail_msg("%s: ended as %d: %s", what, (int)out[r].end, out[r].error);
            assert_int_equal(out[r].choice_end[0], FV_REQUEST_LENGTH);
            assert_int_equal(out[r].count[0], 12);
            same_tokens(what, &alone[r], &out[r], 1);
        }
        stop(f, true);
    }
}

static void company_changes_no_token(void **state)
{
    fv_random random = fv_random_new(test_seed(), 9600);
    struct fixture f;
    (void)state;

    for (size_t m = 0; m < sizeof models / sizeof *models; m++)
        for (int n = 0; n < SETUPS; n++) {
            begin(&f, models[m], n % 2 ? 1 : 2);
            check_company(&f, n, n % 2, &random);
            end(&f);
        }
}

static void prompts_are_lent(void **state)
{
    static int32_t ids[CONTEXT];
    static struct outcome first, again, other;
    fv_random random = fv_random_new(test_seed(), 9700);
    fv_request_options options;
    fv_scheduler_stats stats;
    struct fixture f;
    (void)state;

    for (int i = 0; i < CONTEXT; i++)
        ids[i] = (int32_t)fv_random_below(&random, VOCABULARY);
    begin(&f, models[1], 2);
    start(&f, &(fv_scheduler_options){0});
    options = request_of(ids, 600, &first);
    assert_ok(submit(&f, &options, &first));
    wait_for(&first);
    assert_int_equal(first.usage.cached_tokens, 0);
    options = request_of(ids, 600, &again);
    assert_ok(submit(&f, &options, &again));
    wait_for(&again);
    assert_int_equal(again.usage.cached_tokens, 599); /* the last token gives the answer's first logits */
    same_tokens("again", &first, &again, 1);
    options = request_of(ids, 77, &other);
    assert_ok(submit(&f, &options, &other));
    wait_for(&other);
    assert_int_equal(other.usage.cached_tokens, 76);
    options.no_reuse = true;
    options.user = &again;
    assert_ok(submit(&f, &options, &again));
    wait_for(&again);
    assert_int_equal(again.usage.cached_tokens, 0);
    same_tokens("without", &other, &again, 1);
    options = request_of(ids, 600, &again);
    options.cache = "full:k=f32"; /* rows of another kind */
    assert_ok(submit(&f, &options, &again));
    wait_for(&again);
    assert_int_equal(again.usage.cached_tokens, 0);
    fv_scheduler_measure(f.scheduler, &stats);
    assert_int_equal(stats.prompt_tokens, 600 + 600 + 77 + 77 + 600);
    assert_int_equal(stats.cached_tokens, 599 + 76);
    assert_int_equal(stats.generated_tokens, 5 * 12);
    assert_true(stats.row_bytes > 0 && stats.committed_bytes >= stats.row_bytes);
    stop(&f, true);
    end(&f);
}

enum { LIMITED = 6, LIMITED_PROMPT = 400 };

/* Request `r` of those below: the second one is an embedding. */
static void submit_limited(struct fixture *f, int32_t ids[LIMITED][CONTEXT], int r, struct outcome *o)
{
    fv_request_options options = request_of(ids[r], LIMITED_PROMPT, o);

    options.embed = r == 1;
    options.all_logits = r == 2;
    options.prompt = on_prompt;
    if (options.embed) options.limit = 0;
    o->width = f->tiny.width;
    o->prompt_rows = 0;
    assert_ok(submit(f, &options, o));
}

static void same_outcome(const char *what, const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(b->end, FV_REQUEST_STOP);
    same_tokens(what, a, b, 1);
    assert_memory_equal(a->embedding, b->embedding, sizeof a->embedding);
}

/* Under a limit requests wait or are computed again, and change nothing; kept prompts go, the longest unused first. */
static void memory_has_a_limit(void **state)
{
    static const char *const caches[] = {"full", "vattn:page=4096,async=0", "vattn:page=16384,megacache=1,async=0"};
    static int32_t ids[LIMITED][CONTEXT];
    static struct outcome alone[LIMITED], o[LIMITED];
    fv_random random = fv_random_new(test_seed(), 9750);
    fv_scheduler_stats stats;
    struct fixture f;
    (void)state;

    for (int i = 0; i < LIMITED * CONTEXT; i++)
        ids[i / CONTEXT][i % CONTEXT] = (int32_t)fv_random_below(&random, VOCABULARY);
    for (int r = 0; r < LIMITED; r++)
        ids[r][0] = r; /* no prompt begins as another one does */
    begin(&f, models[0], 2);
    for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
        size_t limit;
        start(&f, &(fv_scheduler_options){.cache = caches[c]});
        for (int r = 0; r < LIMITED; r++) {
            submit_limited(&f, ids, r, &alone[r]);
            wait_for(&alone[r]);
        }
        fv_scheduler_measure(f.scheduler, &stats);
        assert_true(stats.given_back == 0 && stats.sent_back == 0);
        stop(&f, true);
        limit = alone[0].usage.row_bytes * 5 / 2;
        start(&f, &(fv_scheduler_options){.cache = caches[c], .parallel = LIMITED, .kv_memory = limit});
        for (int r = 0; r < LIMITED; r++)
            submit_limited(&f, ids, r, &o[r]);
        for (int r = 0; r < LIMITED; r++) {
            wait_for(&o[r]);
            same_outcome(caches[c], &alone[r], &o[r]);
        }
        for (int r = 0; r < LIMITED; r++) {
            submit_limited(&f, ids, r, &o[r]);
            wait_for(&o[r]);
            same_outcome(caches[c], &alone[r], &o[r]);
        }
        fv_scheduler_measure(f.scheduler, &stats);
        assert_true(stats.given_back > 0);
        assert_true(stats.committed_bytes > 0 && stats.committed_bytes <= limit);
        submit_limited(&f, ids, LIMITED - 1, &o[LIMITED - 1]); /* the last one is kept still, the first one is not */
        wait_for(&o[LIMITED - 1]);
        assert_int_equal(o[LIMITED - 1].usage.cached_tokens, LIMITED_PROMPT - 1);
        submit_limited(&f, ids, 0, &o[0]);
        wait_for(&o[0]);
        assert_int_equal(o[0].usage.cached_tokens, 0);
        stop(&f, true);
    }
    end(&f);
}

/* Choices draw with seeds of their own from one prompt; with a policy or a state each reads the prompt itself. */
static void choices_are_requests_with_other_seeds(void **state)
{
    static const struct {
        const char *attention, *cache;
    } ways[] = {{NULL, NULL}, {NULL, "sinkring:window=20"}, {"lightning2", NULL}};
    static int32_t ids[100];
    static struct outcome all, one;
    fv_random random = fv_random_new(test_seed(), 9800);
    struct fixture f;
    (void)state;

    for (int i = 0; i < 100; i++)
        ids[i] = (int32_t)fv_random_below(&random, VOCABULARY);
    begin(&f, models[0], 2);
    start(&f, &(fv_scheduler_options){0});
    for (size_t s = 0; s < sizeof ways / sizeof *ways; s++) {
        fv_request_options options = request_of(ids, 100, &all);
        options.sampling = (fv_sampler_options){.temperature = 1, .seed = 41};
        options.attention = ways[s].attention;
        options.cache = ways[s].cache;
        options.choices = 4;
        assert_ok(submit(&f, &options, &all));
        wait_for(&all);
        assert_int_equal(all.choices_over, 4);
        options.choices = 1;
        options.user = &one;
        for (int c = 0; c < 4; c++) {
            options.sampling.seed = 41 + (uint64_t)c;
            assert_ok(submit(&f, &options, &one));
            wait_for(&one);
            assert_int_equal(one.count[0], all.count[c]);
            assert_memory_equal(one.ids[0], all.ids[c], (size_t)one.count[0] * sizeof(int32_t));
        }
    }
    stop(&f, true);
    end(&f);
}

static void requests_end_as_they_are_told(void **state)
{
    static int32_t ids[CONTEXT];
    static struct outcome o, slow;
    fv_request_options options;
    struct fixture f;
    (void)state;

    begin(&f, models[0], 2);
    start(&f, &(fv_scheduler_options){.parallel = 1});
    options = request_of(ids, 10, &o);
    o.stop_after = 3;
    assert_ok(submit(&f, &options, &o));
    wait_for(&o);
    assert_int_equal(o.count[0], 3);
    assert_int_equal(o.choice_end[0], FV_REQUEST_STOP);
    memset(&o, 0, sizeof o);
    options.limit = 0; /* the prompt only */
    options.all_logits = true;
    options.prompt = on_prompt;
    assert_ok(submit(&f, &options, &o));
    wait_for(&o);
    assert_int_equal(o.count[0], 0);
    assert_int_equal(o.prompt_rows, 10);
    options = request_of(ids, CONTEXT - 5, &o); /* the context ends it */
    assert_ok(submit(&f, &options, &o));
    wait_for(&o);
    assert_int_equal(o.count[0], 5);
    assert_int_equal(o.choice_end[0], FV_REQUEST_LENGTH);
    /* cancelled while it writes, and while it waits */
    options = request_of(ids, 700, &slow);
    options.limit = MOST;
    slow.cancel_in = f.scheduler;
    slow.cancel_after = 4;
    memset(&o, 0, sizeof o);
    pthread_mutex_lock(&mutex); /* so that slow.request is there before its first token */
    assert_ok(submit(&f, &options, &slow));
    pthread_mutex_unlock(&mutex);
    options = request_of(ids, 700, &o);
    assert_ok(submit(&f, &options, &o));
    fv_request_cancel(f.scheduler, o.request);
    wait_for(&slow);
    wait_for(&o);
    assert_int_equal(slow.end, FV_REQUEST_CANCELLED);
    assert_true(slow.count[0] >= 4 && slow.count[0] < MOST);
    assert_int_equal(o.end, FV_REQUEST_CANCELLED);
    stop(&f, true);
    end(&f);
}

static void stopping_lets_the_running_finish(void **state)
{
    static int32_t ids[CONTEXT];
    static struct outcome o[6];
    fv_request *request;
    fv_request_options options;
    struct fixture f;
    int finished = 0, refused = 0;
    (void)state;

    for (int drain = 0; drain < 2; drain++) {
        begin(&f, models[0], 2);
        start(&f, &(fv_scheduler_options){.parallel = 2});
        memset(o, 0, sizeof o);
        for (int r = 0; r < 6; r++) {
            options = request_of(ids, 800, &o[r]);
            options.no_reuse = true;
            options.limit = MOST;
            assert_ok(submit(&f, &options, &o[r]));
        }
        if (drain)
            while (true) {
                fv_scheduler_stats stats;
                fv_scheduler_measure(f.scheduler, &stats);
                if (stats.running == 2 || o[5].done) break;
            }
        fv_scheduler_stop(f.scheduler, drain);
        assert_fails(fv_scheduler_submit(f.scheduler, &options, &request), FV_E_INTERRUPTED, "no requests");
        for (int r = 0; r < 6; r++) {
            wait_for(&o[r]);
            finished += o[r].end == FV_REQUEST_STOP;
            refused += o[r].end == FV_REQUEST_REFUSED;
            if (o[r].end == FV_REQUEST_STOP) assert_int_equal(o[r].count[0], MOST);
        }
        stop(&f, drain);
        end(&f);
    }
    assert_true(finished >= 2 && refused >= 1);
}

static void bad_requests_are_refused_in_words(void **state)
{
    static int32_t ids[CONTEXT + 1], wrong[2] = {0, VOCABULARY};
    static struct outcome o, busy[3];
    fv_request_options options;
    struct fixture f;
    (void)state;

    begin(&f, models[0], 1);
    assert_fails(fv_scheduler_new(f.ctx, f.model, &(fv_scheduler_options){.cache = "nosuch"}, &f.scheduler), FV_E_USAGE,
                 "no cache policy");
    assert_null(f.scheduler);
    start(&f, &(fv_scheduler_options){.parallel = 1, .queue = 1});
    options = request_of(ids, CONTEXT, &o);
    assert_fails(submit(&f, &options, &o), FV_E_SHAPE, "the prompt is 900 tokens");
    options = request_of(ids, 0, &o);
    assert_fails(submit(&f, &options, &o), FV_E_ARGUMENT, "one token or more");
    options = request_of(wrong, 2, &o);
    assert_fails(submit(&f, &options, &o), FV_E_ARGUMENT, "token 1");
    options = request_of(ids, 4, &o);
    options.cache = "sinkring:window=0";
    assert_fails(submit(&f, &options, &o), FV_E_USAGE, "'window'");
    options = request_of(ids, 4, &o);
    options.attention = "bra:grid=2x2";
    assert_fails(submit(&f, &options, &o), FV_E_USAGE, "causal");
    options = request_of(ids, 4, &o);
    options.choices = 17;
    assert_fails(submit(&f, &options, &o), FV_E_USAGE, "choices");
    options = request_of(ids, 4, &o);
    options.sampling.temperature = -1;
    assert_fails(submit(&f, &options, &o), FV_E_USAGE, "temperature");
    fv_status status = FV_OK; /* one runs, one waits, and the next is too many */
    int sent = 0;
    for (; sent < 3 && status == FV_OK; sent++) {
        options = request_of(ids, 850, &busy[sent]);
        options.no_reuse = true;
        status = submit(&f, &options, &busy[sent]);
        if (status != FV_OK) break;
    }
    if (status != FV_OK) {
        assert_int_equal(status, FV_E_UNSUPPORTED);
        assert_non_null(strstr(fv_error(), "wait already"));
    }
    for (int r = 0; r < sent; r++)
        wait_for(&busy[r]);
    stop(&f, true);
    end(&f);
}

/* Memory that runs out under way: whoever is hit is told, the rest go on, and later requests are as ever. */
static void failing_memory_ends_requests_one_by_one(void **state)
{
    static int32_t ids[CONTEXT];
    static struct outcome good, o[3];
    fv_request_options options;
    struct fixture f;
    int failed = 0, finished = 0;
    (void)state;

    begin(&f, models[0], 2);
    start(&f, &(fv_scheduler_options){.parallel = 3});
    options = request_of(ids, 60, &good);
    options.no_reuse = true;
    assert_ok(submit(&f, &options, &good));
    wait_for(&good);
    for (int64_t nth = 1; nth < 120; nth += 7) {
        for (int r = 0; r < 3; r++) {
            options = request_of(ids, 60, &o[r]);
            options.no_reuse = true;
            options.presence_penalty = r == 2 ? 0.5F : 0;
            if (r == 1) options.choices = 3;
            assert_ok(submit(&f, &options, &o[r]));
        }
        test_alloc_fail(nth);
        for (int r = 0; r < 3; r++)
            wait_for(&o[r]);
        test_alloc_fail(0);
        for (int r = 0; r < 3; r++) {
            failed += o[r].end == FV_REQUEST_FAILED;
            finished += o[r].end == FV_REQUEST_STOP;
            assert_true(o[r].end == FV_REQUEST_FAILED || o[r].end == FV_REQUEST_STOP);
            if (o[r].end == FV_REQUEST_FAILED) assert_true(o[r].error[0] != 0);
            if (o[r].end == FV_REQUEST_STOP && r == 0) same_tokens("beside failures", &good, &o[r], 1);
        }
    }
    assert_true(failed > 0 && finished > 0);
    options = request_of(ids, 60, &o[0]);
    assert_ok(submit(&f, &options, &o[0]));
    wait_for(&o[0]);
    same_tokens("afterwards", &good, &o[0], 1);
    stop(&f, true);
    end(&f);
}

/* In a prompt or in the answer, in the company of requests that know nothing of it. */
static void a_full_disk_ends_the_requests_it_concerns(void **state)
{
    static const char *const caches[] = {"alisa:r=0.3,resident=8", "alisa:r=0.3", NULL,
                                         "alisa:r=0.3,bits=8,resident=1"};
    /* 15 of 100 rows stay; 2 layers, 3 heads, keys and values of 32 f16 */
    const long prompt_bytes = 85 * 2 * 3 * 2 * 32 * 2;
    static int32_t ids[CONTEXT];
    static struct outcome alone[4], o[4];
    fv_random random = fv_random_new(test_seed(), 9850);
    fv_request_options options;
    struct fixture f;
    (void)state;

    for (int i = 0; i < CONTEXT; i++)
        ids[i] = (int32_t)fv_random_below(&random, VOCABULARY);
    begin(&f, models[0], 2);
    for (long nth = 0; nth < 30; nth += 1 + nth / 4) { /* 0: the disk is not full, and each is alone */
        start(&f, &(fv_scheduler_options){0});
        writes = 0;
        refused_from = nth < 24 ? nth : 0;
        most_bytes = nth < 24 ? 0 : prompt_bytes + 400; /* there is room again for who begins again */
        for (int r = 0; r < 4; r++) {
            struct outcome *out = nth ? &o[r] : &alone[r];
            options = request_of(ids + r, 100, out);
            options.cache = caches[r];
            options.no_reuse = true;
            assert_ok(submit(&f, &options, out));
            if (nth == 0) wait_for(out);
        }
        for (int r = 0; r < 4 && nth > 0; r++) {
            wait_for(&o[r]);
            if (o[r].end == FV_REQUEST_FAILED) {
                assert_true(caches[r] && strstr(caches[r], "resident"));
                assert_non_null(strstr(o[r].error, "No space left on device"));
            } else {
                assert_int_equal(o[r].end, FV_REQUEST_STOP);
                same_tokens(caches[r] ? caches[r] : "full", &alone[r], &o[r], 1);
            }
        }
        if (nth > 0 && (nth < 12 || nth >= 24))
            assert_int_equal(o[0].end, FV_REQUEST_FAILED); /* it writes nearly every step */
        stop(&f, true);
    }
    refused_from = most_bytes = 0;
    end(&f);
}

static void embeddings_have_length_one(void **state)
{
    static int32_t ids[600];
    static struct outcome o, again;
    fv_random random = fv_random_new(test_seed(), 9900);
    fv_request_options options;
    struct fixture f;
    double length = 0;
    (void)state;

    for (int i = 0; i < 600; i++)
        ids[i] = (int32_t)fv_random_below(&random, VOCABULARY);
    begin(&f, models[0], 2);
    assert_true(f.tiny.width <= 64);
    start(&f, &(fv_scheduler_options){0});
    for (int pass = 0; pass < 2; pass++) {
        struct outcome *out = pass ? &again : &o;
        options = request_of(ids, 600, out);
        options.limit = 0;
        options.embed = true;
        out->width = f.tiny.width;
        assert_ok(submit(&f, &options, out));
        wait_for(out);
        assert_int_equal(out->choices_over, 0); /* none is made */
    }
    for (int64_t c = 0; c < f.tiny.width; c++)
        length += (double)o.embedding[c] * (double)o.embedding[c];
    assert_true(fabs(length - 1) < 1e-5);
    assert_memory_equal(o.embedding, again.embedding, sizeof o.embedding);
    stop(&f, true);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_changes_no_token),
        cmocka_unit_test(prompts_are_lent),
        cmocka_unit_test(memory_has_a_limit),
        cmocka_unit_test(choices_are_requests_with_other_seeds),
        cmocka_unit_test(requests_end_as_they_are_told),
        cmocka_unit_test(stopping_lets_the_running_finish),
        cmocka_unit_test(bad_requests_are_refused_in_words),
        cmocka_unit_test(failing_memory_ends_requests_one_by_one),
        cmocka_unit_test(a_full_disk_ends_the_requests_it_concerns),
        cmocka_unit_test(embeddings_have_length_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
