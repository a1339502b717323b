/* The scheduler: the same tokens alone, in any company, at any place in the queue, with rows lent or not, and under a
 * limit of memory. */
#include <stdio.h>

#include "support/scheduled.h"

enum { REQUESTS = 8 };

/* Prompts of many lengths, some of which begin alike. */
static void draw_prompts(int32_t ids[REQUESTS][SCHEDULED_CONTEXT], int64_t *counts, fv_random *random)
{
    for (int r = 0; r < REQUESTS; r++) {
        counts[r] = 1 + fv_random_below(random, r % 4 == 3 ? 800 : 100);
        for (int64_t i = 0; i < counts[r]; i++)
            ids[r][i] = (int32_t)fv_random_below(random, SCHEDULED_VOCABULARY);
        int64_t common = fv_random_below(random, 90);
        for (int64_t i = 0; r % 2 == 1 && i < fv_min(common, fv_min(counts[r], counts[r - 1])); i++)
            ids[r][i] = ids[r - 1][i];
    }
}

static const struct {
    const char *attention, *cache;
    int64_t dense_last;
} setups[] = {
    {NULL, NULL, 0},
    {NULL, "full:k=q8_0,v=q8_0", 0},
    {NULL, "sinkring:sink=2,window=20", 0},
    {NULL, "sinkring:sink=2,window=20,prefill=dense", 0},
    {NULL, "h2o:budget=24", 0},
    {NULL, "snapkv:budget=24,window=4", 0},
    {NULL, "shard:block=8,local=2", 0},
    {NULL, "gemfilter:budget=24", 0},
    {NULL, "alisa:r=0.3", 0},
    {NULL, "alisa:r=0.3,resident=20,recompute=40", 0},
    {NULL, "alisa:r=0.3,bits=8,resident=20", 0},
    {NULL, "blocktopk:block=4,top=3,local=8", 0},
    {NULL, "vattn:page=4096", 0},
    {"moba:block=16,top=2", "full:k=q4_0", 0},
    {"anchor:block=16,step=2,init=1,theta=-1", NULL, 24},
    {"lightning2", NULL, 0},
};
enum { SETUPS = sizeof setups / sizeof *setups };

/* Alone and without rows of others; then all at once, through a short row of places, with and without memory. */
static void check_company(struct scheduled *f, int setup, bool sampled, fv_random *random)
{
    static int32_t ids[REQUESTS][SCHEDULED_CONTEXT];
    static struct outcome alone[REQUESTS], company[REQUESTS];
    /* 0: no limit; then room for about one of the long prompts: others are sent back and computed again */
    const size_t limits[] = {0, (size_t)f->tiny.layers * (size_t)f->tiny.key_heads * 2 * 64 * 700};
    int64_t counts[REQUESTS];

    draw_prompts(ids, counts, random);
    for (int pass = 0; pass < 4; pass++) {
        struct outcome *out = pass == 0 ? alone : company;
        scheduled_start(f, &(fv_scheduler_options){.parallel = pass == 2 ? 2 : 5,
                                                   .attention = setups[setup].attention,
                                                   .cache = setups[setup].cache,
                                                   .dense_last = setups[setup].dense_last,
                                                   .kv_memory = limits[pass == 3]});
        for (int r = 0; r < REQUESTS; r++) {
            fv_request_options options = scheduled_request(ids[r], counts[r], &out[r]);
            options.no_reuse = pass == 0;
            if (sampled) options.sampling = (fv_sampler_options){.temperature = 0.9F, .top_p = 0.95F, .seed = 7};
            if (sampled) options.presence_penalty = 0.3F;
            assert_ok(scheduled_submit(f, &options, &out[r]));
            if (pass == 0) scheduled_wait(&out[r]);
        }
        for (int r = 0; r < REQUESTS; r++) {
            char what[200];
            scheduled_wait(&out[r]);
            snprintf(what, sizeof what, "%s, %s %s, pass %d, request %d of %d tokens", f->tiny.architecture,
                     setups[setup].attention ? setups[setup].attention : "own",
                     setups[setup].cache ? setups[setup].cache : "", pass, r, (int)counts[r]);
            if (out[r].end != FV_REQUEST_STOP) fail_msg("%s: ended as %d: %s", what, (int)out[r].end, out[r].error);
            assert_int_equal(out[r].choice_end[0], FV_REQUEST_LENGTH);
            assert_int_equal(out[r].count[0], 12);
            scheduled_same(what, &alone[r], &out[r], 1);
        }
        scheduled_stop(f, true);
    }
}

static void company_changes_no_token(void **state)
{
    fv_random random = fv_random_new(test_seed(), 9600);
    struct scheduled f;
    (void)state;

    for (size_t m = 0; m < sizeof scheduled_models / sizeof *scheduled_models; m++)
        for (int n = 0; n < SETUPS; n++) {
            scheduled_begin(&f, &scheduled_models[m], n % 2 ? 1 : 2);
            check_company(&f, n, n % 2, &random);
            scheduled_end(&f);
        }
}

enum { LIMITED = 6, LIMITED_PROMPT = 400 };

/* Request `r` of those below: the second one is an embedding. */
static void submit_limited(struct scheduled *f, int32_t ids[LIMITED][SCHEDULED_CONTEXT], int r, struct outcome *o)
{
    fv_request_options options = scheduled_request(ids[r], LIMITED_PROMPT, o);

    options.embed = r == 1;
    options.all_logits = r == 2;
    options.prompt = scheduled_on_prompt;
    if (options.embed) options.limit = 0;
    o->width = f->tiny.width;
    o->prompt_rows = 0;
    assert_ok(scheduled_submit(f, &options, o));
}

static void same_outcome(const char *what, const struct outcome *a, const struct outcome *b)
{
    assert_int_equal(b->end, FV_REQUEST_STOP);
    scheduled_same(what, a, b, 1);
    assert_memory_equal(a->embedding, b->embedding, sizeof a->embedding);
}

/* Under a limit requests wait or are computed again, and change nothing; kept prompts go, the longest unused first. */
static void memory_has_a_limit(void **state)
{
    static const char *const caches[] = {"full", "vattn:page=4096,async=0", "vattn:page=16384,megacache=1,async=0"};
    static int32_t ids[LIMITED][SCHEDULED_CONTEXT];
    static struct outcome alone[LIMITED], o[LIMITED];
    fv_random random = fv_random_new(test_seed(), 9750);
    fv_scheduler_stats stats;
    struct scheduled f;
    (void)state;

    for (int i = 0; i < LIMITED * SCHEDULED_CONTEXT; i++)
        ids[i / SCHEDULED_CONTEXT][i % SCHEDULED_CONTEXT] = (int32_t)fv_random_below(&random, SCHEDULED_VOCABULARY);
    for (int r = 0; r < LIMITED; r++)
        ids[r][0] = r; /* no prompt begins as another one does */
    scheduled_begin(&f, &scheduled_models[0], 2);
    for (size_t c = 0; c < sizeof caches / sizeof *caches; c++) {
        size_t limit;
        scheduled_start(&f, &(fv_scheduler_options){.cache = caches[c]});
        for (int r = 0; r < LIMITED; r++) {
            submit_limited(&f, ids, r, &alone[r]);
            scheduled_wait(&alone[r]);
        }
        fv_scheduler_measure(f.scheduler, &stats);
        assert_true(stats.given_back == 0 && stats.sent_back == 0);
        scheduled_stop(&f, true);
        limit = alone[0].usage.row_bytes * 5 / 2;
        scheduled_start(&f, &(fv_scheduler_options){.cache = caches[c], .parallel = LIMITED, .kv_memory = limit});
        for (int r = 0; r < LIMITED; r++)
            submit_limited(&f, ids, r, &o[r]);
        for (int r = 0; r < LIMITED; r++) {
            scheduled_wait(&o[r]);
            same_outcome(caches[c], &alone[r], &o[r]);
        }
        for (int r = 0; r < LIMITED; r++) {
            submit_limited(&f, ids, r, &o[r]);
            scheduled_wait(&o[r]);
            same_outcome(caches[c], &alone[r], &o[r]);
        }
        fv_scheduler_measure(f.scheduler, &stats);
        assert_true(stats.given_back > 0);
        assert_true(stats.committed_bytes > 0 && stats.committed_bytes <= limit);
        submit_limited(&f, ids, LIMITED - 1, &o[LIMITED - 1]); /* the last one is kept still, the first one is not */
        scheduled_wait(&o[LIMITED - 1]);
        assert_int_equal(o[LIMITED - 1].usage.cached_tokens, LIMITED_PROMPT - 1);
        submit_limited(&f, ids, 0, &o[0]);
        scheduled_wait(&o[0]);
        assert_int_equal(o[0].usage.cached_tokens, 0);
        scheduled_stop(&f, true);
    }
    scheduled_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(company_changes_no_token),
        cmocka_unit_test(memory_has_a_limit),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
