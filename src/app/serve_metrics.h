/* What the server counts, and its text for Prometheus. */
#ifndef APP_SERVE_METRICS_H
#define APP_SERVE_METRICS_H

#include <pthread.h>

#include "base/text.h"
#include "generate/scheduler.h"

enum { SERVE_BUCKETS = 15, SERVE_COUNTERS = 256 };

typedef struct serve_histogram {
    int64_t count[SERVE_BUCKETS + 1]; /* the last: above every bound */
    double sum;
} serve_histogram;

typedef struct serve_metrics {
    pthread_mutex_t lock;
    int counters;
    struct {
        const char *path; /* lives as long as the server */
        unsigned status;
        int64_t count;
    } requests[SERVE_COUNTERS];
    int64_t cancelled;
    serve_histogram first_token, token, queue; /* seconds */
} serve_metrics;

void serve_metrics_request(serve_metrics *metrics, const char *path, unsigned status);
void serve_metrics_cancelled(serve_metrics *metrics);
void serve_metrics_observe(serve_metrics *metrics, serve_histogram *histogram, double seconds);
void serve_metrics_write(serve_metrics *metrics, const fv_scheduler_stats *stats, int64_t kv_memory, fv_text *out);

#endif
