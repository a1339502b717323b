/* Choosing the next token.  The order is: repetition penalty, then top-k, top-p and min-p on the probabilities at the
 * given temperature, each on what the one before left; then one draw. */
#include <math.h>
#include <stdlib.h>

#include "base/memory.h"
#include "base/random.h"
#include "fovea/model.h"

enum { REMEMBERED = 64 };

struct candidate {
    int32_t id;
    float logit;
    double probability;
};

struct fv_sampler {
    fv_sampler_options options;
    int64_t vocabulary;
    fv_random random;
    int32_t recent[REMEMBERED]; /* a ring */
    int64_t accepted;
    struct candidate *candidates; /* [vocabulary] */
};

fv_status fv_sampler_new(const fv_sampler_options *options, int64_t vocabulary, fv_sampler **sampler)
{
    fv_sampler *s;

    *sampler = NULL;
    if (vocabulary < 1 || vocabulary > INT32_MAX)
        return fv_fail(FV_E_ARGUMENT, "sampler: expected a vocabulary of 1 to %d, got %lld", INT32_MAX,
                       (long long)vocabulary);
    if (!(options->temperature >= 0) || !isfinite(options->temperature))
        return fv_fail(FV_E_USAGE, "temperature: expected 0 or more, got %g", (double)options->temperature);
    if (options->top_k < 0) return fv_fail(FV_E_USAGE, "top-k: expected 0 or more, got %d", options->top_k);
    if (!(options->top_p >= 0 && options->top_p <= 1))
        return fv_fail(FV_E_USAGE, "top-p: expected 0 to 1, got %g", (double)options->top_p);
    if (!(options->min_p >= 0 && options->min_p <= 1))
        return fv_fail(FV_E_USAGE, "min-p: expected 0 to 1, got %g", (double)options->min_p);
    if (!(options->repeat_penalty >= 0) || !isfinite(options->repeat_penalty))
        return fv_fail(FV_E_USAGE, "repeat penalty: expected 0 or more, got %g", (double)options->repeat_penalty);
    FV_TRY(FV_ZALLOC(s, 1));
    fv_status status = FV_ALLOC(s->candidates, vocabulary);
    if (status != FV_OK) {
        fv_sampler_free(s);
        return status;
    }
    s->options = *options;
    s->vocabulary = vocabulary;
    s->random = fv_random_new(options->seed, 0);
    *sampler = s;
    return FV_OK;
}

void fv_sampler_free(fv_sampler *sampler)
{
    if (!sampler) return;
    fv_free(sampler->candidates);
    fv_free(sampler);
}

void fv_sampler_accept(fv_sampler *sampler, int32_t id)
{
    sampler->recent[sampler->accepted++ % REMEMBERED] = id;
}

/* A logit of a token that came before moves towards less likely: divided if positive, multiplied if negative. */
static void penalise(fv_sampler *s)
{
    int64_t count = s->accepted < REMEMBERED ? s->accepted : REMEMBERED;
    float penalty = s->options.repeat_penalty;

    if (penalty == 0 || penalty == 1) return;
    for (int64_t i = 0; i < count; i++) {
        int32_t id = s->recent[i];
        bool again = id < 0 || id >= s->vocabulary;
        for (int64_t j = 0; j < i && !again; j++)
            again = s->recent[j] == id;
        if (again) continue;
        float *logit = &s->candidates[id].logit;
        *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
    }
}

static bool better(const struct candidate *a, const struct candidate *b)
{
    return a->logit > b->logit || (a->logit == b->logit && a->id < b->id);
}

static int compare(const void *a, const void *b)
{
    return better(a, b) ? -1 : 1;
}

/* Sinks candidate i in a heap whose root is the worst. */
static void sink(struct candidate *heap, int64_t count, int64_t i)
{
    for (;;) {
        int64_t child = 2 * i + 1;
        if (child >= count) return;
        if (child + 1 < count && better(&heap[child], &heap[child + 1])) child++;
        if (!better(&heap[i], &heap[child])) return;
        struct candidate other = heap[i];
        heap[i] = heap[child];
        heap[child] = other;
        i = child;
    }
}

/* Brings the `keep` best of all candidates to the front, in order. */
static void keep_best(struct candidate *all, int64_t count, int64_t keep)
{
    for (int64_t i = keep / 2 - 1; i >= 0; i--)
        sink(all, keep, i);
    for (int64_t i = keep; i < count; i++) {
        if (!better(&all[i], &all[0])) continue;
        struct candidate other = all[0];
        all[0] = all[i];
        all[i] = other;
        sink(all, keep, 0);
    }
    qsort(all, (size_t)keep, sizeof *all, compare);
}

/* Sets probabilities, the best candidate's being 1; returns their sum. */
static double weigh(struct candidate *all, int64_t count, float best, float temperature)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++)
        sum += all[i].probability = exp(((double)all[i].logit - (double)best) / (double)temperature);
    return sum;
}

/* The fewest best candidates whose share reaches top_p come to the front; tries small numbers first, since few are
 * enough as a rule and sorting a whole vocabulary takes longer than a small model does. */
static int64_t cut_by_mass(struct candidate *all, int64_t count, double wanted)
{
    for (int64_t keep = 64;; keep *= 4) {
        double sum = 0;
        if (keep > count) keep = count;
        keep_best(all, count, keep);
        for (int64_t i = 0; i < keep; i++) {
            sum += all[i].probability;
            if (sum >= wanted) return i + 1;
        }
        if (keep == count) return count;
    }
}

static int64_t cut_by_ratio(struct candidate *all, int64_t count, double least)
{
    int64_t kept = 0;

    for (int64_t i = 0; i < count; i++)
        if (all[i].probability >= least) all[kept++] = all[i];
    return kept;
}

static int32_t draw(fv_sampler *s, const struct candidate *all, int64_t count)
{
    double sum = 0, target;

    for (int64_t i = 0; i < count; i++)
        sum += all[i].probability;
    target = fv_random_uniform(&s->random) * sum;
    for (int64_t i = 0; i < count - 1; i++) {
        target -= all[i].probability;
        if (target < 0) return all[i].id;
    }
    return all[count - 1].id;
}

/* Draws among the candidates, of which all[first] is the best. */
static int32_t choose(fv_sampler *s, struct candidate *all, int64_t first)
{
    const fv_sampler_options *o = &s->options;
    int64_t count = s->vocabulary;
    float best = all[first].logit;

    if (o->temperature == 0 || !isfinite(best)) return all[first].id; /* nothing to weigh */
    if (o->top_k > 0 && o->top_k < count) {
        keep_best(all, count, o->top_k);
        count = o->top_k;
    }
    double sum = weigh(all, count, best, o->temperature);
    if (o->top_p > 0 && o->top_p < 1) count = cut_by_mass(all, count, (double)o->top_p * sum);
    if (o->min_p > 0) count = cut_by_ratio(all, count, (double)o->min_p);
    return draw(s, all, count);
}

/* The best logit that is a number, the lower id of equals. */
static int32_t best_of(const float *logits, int64_t count)
{
    int64_t best = 0;

    for (int64_t i = 1; i < count; i++)
        if (logits[i] > logits[best] || (isnan(logits[best]) && !isnan(logits[i]))) best = i;
    return (int32_t)best;
}

int32_t fv_sampler_pick(fv_sampler *s, const float *logits)
{
    bool penalty = s->options.repeat_penalty != 0 && s->options.repeat_penalty != 1;
    struct candidate *all = s->candidates;
    int64_t first = 0;

    if (s->options.temperature == 0 && !penalty) {
        int32_t best = best_of(logits, s->vocabulary);
        fv_sampler_accept(s, best);
        return best;
    }
    for (int64_t i = 0; i < s->vocabulary; i++)
        all[i] = (struct candidate){(int32_t)i, isnan(logits[i]) ? -INFINITY : logits[i], 0};
    penalise(s);
    for (int64_t i = 1; i < s->vocabulary; i++)
        if (all[i].logit > all[first].logit) first = i;
    int32_t id = choose(s, all, first);
    fv_sampler_accept(s, id);
    return id;
}
