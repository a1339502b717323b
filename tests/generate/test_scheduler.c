/* The scheduler: rows are lent, choices draw for themselves, requests leave when they are told to, and bad ones are
 * refused. */
#include <math.h>

#include "support/scheduled.h"

static void prompts_are_lent(void **state)
{
    static int32_t ids[SCHEDULED_CONTEXT];
    static struct outcome first, again, other;
    fv_random random = fv_random_new(test_seed(), 9700);
    fv_request_options options;
    fv_scheduler_stats stats;
    struct scheduled f;
    (void)state;

    scheduled_ids(&random, ids, SCHEDULED_CONTEXT);
    scheduled_begin(&f, &scheduled_models[1], 2);
    scheduled_start(&f, &(fv_scheduler_options){0});
    options = scheduled_request(ids, 600, &first);
    assert_ok(scheduled_submit(&f, &options, &first));
    scheduled_wait(&first);
    assert_int_equal(first.usage.cached_tokens, 0);
    options = scheduled_request(ids, 600, &again);
    assert_ok(scheduled_submit(&f, &options, &again));
    scheduled_wait(&again);
    assert_int_equal(again.usage.cached_tokens, 599); /* the last token gives the answer's first logits */
    scheduled_same("again", &first, &again, 1);
    options = scheduled_request(ids, 77, &other);
    assert_ok(scheduled_submit(&f, &options, &other));
    scheduled_wait(&other);
    assert_int_equal(other.usage.cached_tokens, 76);
    options.no_reuse = true;
    options.user = &again;
    assert_ok(scheduled_submit(&f, &options, &again));
    scheduled_wait(&again);
    assert_int_equal(again.usage.cached_tokens, 0);
    scheduled_same("without", &other, &again, 1);
    options = scheduled_request(ids, 600, &again);
    options.cache = "full:k=f32"; /* rows of another kind */
    assert_ok(scheduled_submit(&f, &options, &again));
    scheduled_wait(&again);
    assert_int_equal(again.usage.cached_tokens, 0);
    fv_scheduler_measure(f.scheduler, &stats);
    assert_int_equal(stats.prompt_tokens, 600 + 600 + 77 + 77 + 600);
    assert_int_equal(stats.cached_tokens, 599 + 76);
    assert_int_equal(stats.generated_tokens, 5 * 12);
    assert_true(stats.row_bytes > 0 && stats.committed_bytes >= stats.row_bytes);
    scheduled_stop(&f, true);
    scheduled_end(&f);
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
    struct scheduled f;
    (void)state;

    scheduled_ids(&random, ids, 100);
    scheduled_begin(&f, &scheduled_models[0], 2);
    scheduled_start(&f, &(fv_scheduler_options){0});
    for (size_t s = 0; s < sizeof ways / sizeof *ways; s++) {
        fv_request_options options = scheduled_request(ids, 100, &all);
        options.sampling = (fv_sampler_options){.temperature = 1, .seed = 41};
        options.attention = ways[s].attention;
        options.cache = ways[s].cache;
        options.choices = 4;
        assert_ok(scheduled_submit(&f, &options, &all));
        scheduled_wait(&all);
        assert_int_equal(all.choices_over, 4);
        options.choices = 1;
        options.user = &one;
        for (int c = 0; c < 4; c++) {
            options.sampling.seed = 41 + (uint64_t)c;
            assert_ok(scheduled_submit(&f, &options, &one));
            scheduled_wait(&one);
            assert_int_equal(one.count[0], all.count[c]);
            assert_memory_equal(one.ids[0], all.ids[c], (size_t)one.count[0] * sizeof(int32_t));
        }
    }
    scheduled_stop(&f, true);
    scheduled_end(&f);
}

static void requests_end_as_they_are_told(void **state)
{
    static int32_t ids[SCHEDULED_CONTEXT];
    static struct outcome o, slow;
    fv_request_options options;
    struct scheduled f;
    (void)state;

    scheduled_begin(&f, &scheduled_models[0], 2);
    scheduled_start(&f, &(fv_scheduler_options){.parallel = 1});
    options = scheduled_request(ids, 10, &o);
    o.stop_after = 3;
    assert_ok(scheduled_submit(&f, &options, &o));
    scheduled_wait(&o);
    assert_int_equal(o.count[0], 3);
    assert_int_equal(o.choice_end[0], FV_REQUEST_STOP);
    memset(&o, 0, sizeof o);
    options.limit = 0; /* the prompt only */
    options.all_logits = true;
    options.prompt = scheduled_on_prompt;
    assert_ok(scheduled_submit(&f, &options, &o));
    scheduled_wait(&o);
    assert_int_equal(o.count[0], 0);
    assert_int_equal(o.prompt_rows, 10);
    options = scheduled_request(ids, SCHEDULED_CONTEXT - 5, &o); /* the context ends it */
    assert_ok(scheduled_submit(&f, &options, &o));
    scheduled_wait(&o);
    assert_int_equal(o.count[0], 5);
    assert_int_equal(o.choice_end[0], FV_REQUEST_LENGTH);
    /* cancelled while it writes, and while it waits */
    options = scheduled_request(ids, 700, &slow);
    options.limit = SCHEDULED_TOKENS;
    slow.cancel_in = f.scheduler;
    slow.hold_at = 4;
    memset(&o, 0, sizeof o);
    assert_ok(scheduled_submit(&f, &options, &slow));
    scheduled_wait_held(&slow);
    options = scheduled_request(ids, 700, &o);
    assert_ok(scheduled_submit(&f, &options, &o));
    fv_request_cancel(f.scheduler, o.request);
    scheduled_release(&slow);
    scheduled_wait(&slow);
    scheduled_wait(&o);
    assert_int_equal(slow.end, FV_REQUEST_CANCELLED);
    assert_int_equal(slow.count[0], 4);
    assert_int_equal(o.end, FV_REQUEST_CANCELLED);
    assert_int_equal(o.count[0], 0);
    scheduled_stop(&f, true);
    scheduled_end(&f);
}

static void stopping_lets_the_running_finish(void **state)
{
    static int32_t ids[SCHEDULED_CONTEXT];
    static struct outcome o[6];
    (void)state;

    for (int drain = 0; drain < 2; drain++) {
        fv_scheduler_stats stats;
        fv_request_options options;
        fv_request *request;
        struct scheduled f;
        int ends[FV_REQUEST_FAILED + 1] = {0};
        scheduled_begin(&f, &scheduled_models[0], 2);
        scheduled_start(&f, &(fv_scheduler_options){.parallel = 2});
        memset(o, 0, sizeof o);
        o[0].hold_at = 1;
        for (int r = 0; r < 6; r++) {
            options = scheduled_request(ids, 800, &o[r]);
            options.no_reuse = true;
            options.limit = SCHEDULED_TOKENS;
            assert_ok(scheduled_submit(&f, &options, &o[r]));
        }
        scheduled_wait_held(&o[0]);
        fv_scheduler_measure(f.scheduler, &stats);
        assert_in_range(stats.running, 1, 2);
        fv_scheduler_stop(f.scheduler, drain);
        assert_fails(fv_scheduler_submit(f.scheduler, &options, &request), FV_E_INTERRUPTED, "no requests");
        scheduled_release(&o[0]);
        for (int r = 0; r < 6; r++) {
            scheduled_wait(&o[r]);
            ends[o[r].end]++;
            if (o[r].end == FV_REQUEST_STOP) assert_int_equal(o[r].count[0], SCHEDULED_TOKENS);
        }
        assert_int_equal(ends[drain ? FV_REQUEST_STOP : FV_REQUEST_CANCELLED], stats.running);
        assert_int_equal(ends[FV_REQUEST_REFUSED], 6 - stats.running);
        scheduled_stop(&f, drain);
        scheduled_end(&f);
    }
}

static void bad_requests_are_refused_in_words(void **state)
{
    static int32_t ids[SCHEDULED_CONTEXT + 1], wrong[2] = {0, SCHEDULED_VOCABULARY};
    static struct outcome o, busy[3];
    fv_request_options options;
    struct scheduled f;
    (void)state;

    scheduled_begin(&f, &scheduled_models[0], 1);
    assert_fails(fv_scheduler_new(f.ctx, f.model, &(fv_scheduler_options){.cache = "nosuch"}, &f.scheduler), FV_E_USAGE,
                 "no cache policy");
    assert_null(f.scheduler);
    scheduled_start(&f, &(fv_scheduler_options){.parallel = 1, .queue = 1});
    options = scheduled_request(ids, SCHEDULED_CONTEXT, &o);
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_SHAPE, "the prompt is 900 tokens");
    options = scheduled_request(ids, 0, &o);
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_ARGUMENT, "one token or more");
    options = scheduled_request(wrong, 2, &o);
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_ARGUMENT, "token 1");
    options = scheduled_request(ids, 4, &o);
    options.cache = "sinkring:window=0";
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_USAGE, "'window'");
    options = scheduled_request(ids, 4, &o);
    options.attention = "bra:grid=2x2";
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_USAGE, "causal");
    options = scheduled_request(ids, 4, &o);
    options.choices = 17;
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_USAGE, "choices");
    options = scheduled_request(ids, 4, &o);
    options.sampling.temperature = -1;
    assert_fails(scheduled_submit(&f, &options, &o), FV_E_USAGE, "temperature");
    fv_status status = FV_OK; /* one runs, one waits, and the next is too many */
    int sent = 0;
    for (busy[0].hold_at = 1; sent < 3 && status == FV_OK; sent += status == FV_OK) {
        options = scheduled_request(ids, 850, &busy[sent]);
        options.no_reuse = true;
        status = scheduled_submit(&f, &options, &busy[sent]);
    }
    assert_int_equal(status, FV_E_UNSUPPORTED);
    assert_non_null(strstr(fv_error(), "wait already"));
    scheduled_release(&busy[0]);
    for (int r = 0; r < sent; r++)
        scheduled_wait(&busy[r]);
    scheduled_stop(&f, true);
    scheduled_end(&f);
}

static void embeddings_have_length_one(void **state)
{
    static int32_t ids[600];
    static struct outcome o, again;
    fv_random random = fv_random_new(test_seed(), 9900);
    fv_request_options options;
    struct scheduled f;
    double length = 0;
    (void)state;

    scheduled_ids(&random, ids, 600);
    scheduled_begin(&f, &scheduled_models[0], 2);
    assert_true(f.tiny.width <= 64);
    scheduled_start(&f, &(fv_scheduler_options){0});
    for (int pass = 0; pass < 2; pass++) {
        struct outcome *out = pass ? &again : &o;
        options = scheduled_request(ids, 600, out);
        options.limit = 0;
        options.embed = true;
        out->width = f.tiny.width;
        assert_ok(scheduled_submit(&f, &options, out));
        scheduled_wait(out);
        assert_int_equal(out->choices_over, 0); /* none is made */
    }
    for (int64_t c = 0; c < f.tiny.width; c++)
        length += (double)o.embedding[c] * (double)o.embedding[c];
    assert_true(fabs(length - 1) < 1e-5);
    assert_memory_equal(o.embedding, again.embedding, sizeof o.embedding);
    scheduled_stop(&f, true);
    scheduled_end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_are_lent),
        cmocka_unit_test(choices_are_requests_with_other_seeds),
        cmocka_unit_test(requests_end_as_they_are_told),
        cmocka_unit_test(stopping_lets_the_running_finish),
        cmocka_unit_test(bad_requests_are_refused_in_words),
        cmocka_unit_test(embeddings_have_length_one),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
