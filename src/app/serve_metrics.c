#include "app/serve_metrics.h"

#include <string.h>

static const double bounds[SERVE_BUCKETS] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25,
                                             0.5,   1,      2.5,   5,    10,    30,   60};

void serve_metrics_request(serve_metrics *metrics, const char *path, unsigned status)
{
    int i = 0;

    pthread_mutex_lock(&metrics->lock);
    while (i < metrics->counters &&
           (metrics->requests[i].status != status || strcmp(metrics->requests[i].path, path) != 0))
        i++;
    if (i < SERVE_COUNTERS) {
        if (i == metrics->counters) metrics->counters++;
        metrics->requests[i].path = path;
        metrics->requests[i].status = status;
        metrics->requests[i].count++;
    }
    pthread_mutex_unlock(&metrics->lock);
}

void serve_metrics_cancelled(serve_metrics *metrics)
{
    pthread_mutex_lock(&metrics->lock);
    metrics->cancelled++;
    pthread_mutex_unlock(&metrics->lock);
}

void serve_metrics_observe(serve_metrics *metrics, serve_histogram *histogram, double seconds)
{
    int bucket = 0;

    while (bucket < SERVE_BUCKETS && seconds > bounds[bucket])
        bucket++;
    pthread_mutex_lock(&metrics->lock);
    histogram->count[bucket]++;
    histogram->sum += seconds;
    pthread_mutex_unlock(&metrics->lock);
}

static void write_number(fv_text *out, const char *name, const char *type, const char *help, int64_t value)
{
    fv_text_printf(out, "# HELP %s %s\n# TYPE %s %s\n%s %lld\n", name, help, name, type, name, (long long)value);
}

static void write_histogram(fv_text *out, const char *name, const char *help, const serve_histogram *histogram)
{
    int64_t sum = 0;

    fv_text_printf(out, "# HELP %s %s\n# TYPE %s histogram\n", name, help, name);
    for (int i = 0; i <= SERVE_BUCKETS; i++) {
        sum += histogram->count[i];
        if (i < SERVE_BUCKETS)
            fv_text_printf(out, "%s_bucket{le=\"%g\"} %lld\n", name, bounds[i], (long long)sum);
        else
            fv_text_printf(out, "%s_bucket{le=\"+Inf\"} %lld\n", name, (long long)sum);
    }
    fv_text_printf(out, "%s_sum %.9g\n%s_count %lld\n", name, histogram->sum, name, (long long)sum);
}

void serve_metrics_write(serve_metrics *metrics, const fv_scheduler_stats *stats, int64_t kv_memory, fv_text *out)
{
    static const char requests[] = "fovea_requests_total";

    pthread_mutex_lock(&metrics->lock);
    fv_text_printf(out, "# HELP %s Requests answered.\n# TYPE %s counter\n", requests, requests);
    for (int i = 0; i < metrics->counters; i++)
        fv_text_printf(out, "%s{path=\"%s\",code=\"%u\"} %lld\n", requests, metrics->requests[i].path,
                       metrics->requests[i].status, (long long)metrics->requests[i].count);
    write_number(out, "fovea_requests_running", "gauge", "Requests that the model works on.", stats->running);
    write_number(out, "fovea_requests_waiting", "gauge", "Requests in the queue.", stats->waiting);
    write_number(out, "fovea_requests_cancelled_total", "counter", "Requests whose client left.", metrics->cancelled);
    write_number(out, "fovea_prompt_tokens_total", "counter", "Tokens of prompts.", stats->prompt_tokens);
    write_number(out, "fovea_cached_prompt_tokens_total", "counter", "Tokens of prompts whose rows were there already.",
                 stats->cached_tokens);
    write_number(out, "fovea_generated_tokens_total", "counter", "Tokens written.", stats->generated_tokens);
    write_number(out, "fovea_kv_bytes", "gauge", "Bytes of keys and values held.", (int64_t)stats->row_bytes);
    write_number(out, "fovea_kv_committed_bytes", "gauge", "Memory mapped for keys and values.",
                 (int64_t)stats->committed_bytes);
    write_number(out, "fovea_kv_memory_bytes", "gauge", "Limit of that memory; 0: none.", kv_memory);
    write_number(out, "fovea_requests_sent_back_total", "counter",
                 "Times a request gave its rows up for want of memory.", stats->sent_back);
    write_number(out, "fovea_prompts_given_back_total", "counter", "Kept prompts given back for want of memory.",
                 stats->given_back);
    write_histogram(out, "fovea_time_to_first_token_seconds", "From a request's arrival to its first token.",
                    &metrics->first_token);
    write_histogram(out, "fovea_time_per_token_seconds", "Between tokens of an answer.", &metrics->token);
    write_histogram(out, "fovea_queue_seconds", "From a request's arrival to its first step.", &metrics->queue);
    pthread_mutex_unlock(&metrics->lock);
}
