#include "cache/span_plan.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/random.h"
#include "base/size.h"

enum { EIGHTHS = 8, ROUNDS = 200, RESTARTS = 4, PAIRS = 8, FEW_PLANS = 1 << 16, CUTS = 4 };
static const double least_share = 0.9, NEVER = 1e6 /* the price of what is never worth it */;

/* ---- rules ------------------------------------------------------------------------------------------------------ */

static double span(const fv_span_rule *rule, int64_t length)
{
    return rule->alpha + rule->beta * (double)length;
}

static int64_t blocks_of(int64_t length)
{
    return fv_ceil_div(length, FV_SPAN_BLOCK);
}

/* Blocks of the band. */
static int64_t band(const fv_span_rule *rule, int64_t length)
{
    int64_t blocks = (int64_t)floor(span(rule, length) / FV_SPAN_BLOCK);

    return fv_clamp(blocks, 1, blocks_of(length));
}

int64_t fv_span_rules(int64_t shortest, int64_t profiled, int64_t longest, int64_t step, fv_span_rule *rules)
{
    int64_t count = 0;

    for (int64_t alpha = -shortest; alpha <= profiled; alpha += step)
        for (int eighth = 0; eighth <= EIGHTHS; eighth++) {
            fv_span_rule rule = {(double)alpha, eighth / (double)EIGHTHS};
            int64_t at = count;
            if (span(&rule, profiled) > (double)profiled || span(&rule, longest) > (double)longest ||
                span(&rule, shortest) <= 0)
                continue;
            count++;
            if (!rules) continue;
            for (; at > 0 && span(&rules[at - 1], longest) < span(&rule, longest); at--)
                rules[at] = rules[at - 1];
            rules[at] = rule;
        }
    return count;
}

double fv_span_density(const fv_span_rule *rule, int64_t length)
{
    int64_t blocks = blocks_of(length), seen = fv_min(band(rule, length) + 1, blocks);

    return (double)seen / (double)blocks;
}

double fv_span_loss(const fv_span_rule *rule, int64_t length, const double *influence)
{
    int64_t blocks = blocks_of(length), wide = band(rule, length);
    double loss = 0;

    for (int64_t r = 0; r < blocks; r++)
        for (int64_t c = 1; c <= r - wide; c++)
            loss += influence[r * blocks + c];
    return loss;
}

/* ---- a plan being made ------------------------------------------------------------------------------------------ */

struct search {
    const fv_span_task *task;
    int objective;
    double cap[FV_SPAN_LENGTHS], unit[FV_SPAN_LENGTHS]; /* of losses; what a loss is counted in */
    double price_of_excess;
    double *density; /* [lengths, rules] */
    double *price;   /* [heads, rules] of a layer under the multipliers */
    double for_density[FV_SPAN_LENGTHS], for_loss[FV_SPAN_LENGTHS];
    /* the plan, and its sums over all heads */
    int32_t *rule;
    double loss[FV_SPAN_LENGTHS], read[FV_SPAN_LENGTHS];
    /* the best so far */
    int32_t *best, *before;
    double best_merit;
};

static const double *losses_of(const fv_span_task *t, int n, int64_t head)
{
    return t->loss + ((int64_t)n * t->layers * t->heads + head) * t->rules;
}

static void count_up(struct search *s)
{
    const fv_span_task *t = s->task;

    for (int n = 0; n < t->lengths; n++) {
        s->loss[n] = s->read[n] = 0;
        for (int64_t h = 0; h < t->layers * t->heads; h++) {
            s->read[n] += s->density[n * t->rules + s->rule[h]];
            if (n < t->profiled) s->loss[n] += losses_of(t, n, h)[s->rule[h]];
        }
    }
}

/* How far a plan's sums are from what is asked, in parts of it: 0 if it will do. */
static double excess(const struct search *s, const double *loss, const double *read)
{
    const fv_span_task *t = s->task;
    double all = (double)(t->layers * t->heads) * t->density, sum = 0;

    for (int n = 0; n < t->lengths; n++) {
        sum += fmax(0, read[n] / all - (1 + 1e-9)) + fmax(0, least_share - 1e-9 - read[n] / all);
        if (n < t->profiled && n != s->objective) sum += fmax(0, (loss[n] - s->cap[n]) / s->unit[n] - 1e-9);
    }
    return sum;
}

/* What is made small: the loss, and what there is too much of at a price. */
static double merit(const struct search *s, const double *loss, const double *read)
{
    return loss[s->objective] / s->unit[s->objective] + s->price_of_excess * excess(s, loss, read);
}

static void keep_best(struct search *s)
{
    double now = s->loss[s->objective] / s->unit[s->objective] + NEVER * excess(s, s->loss, s->read);

    if (now >= s->best_merit) return;
    s->best_merit = now;
    memcpy(s->best, s->rule, (size_t)(s->task->layers * s->task->heads) * sizeof *s->best);
}

/* ---- few plans: all of them ------------------------------------------------------------------------------------- */

static bool few(const fv_span_task *t)
{
    double plans = 1;

    for (int64_t h = 0; h < t->layers * t->heads && plans <= FEW_PLANS; h++)
        plans *= (double)t->rules;
    return plans <= FEW_PLANS;
}

/* Different rules among the heads of a layer. */
static int64_t variety(const int32_t *rule, int64_t heads)
{
    int64_t count = 0;

    for (int64_t h = 0; h < heads; h++) {
        bool seen = false;
        for (int64_t i = 0; i < h && !seen; i++)
            seen = rule[i] == rule[h];
        count += !seen;
    }
    return count;
}

static bool allowed(const struct search *s)
{
    const fv_span_task *t = s->task;

    for (int64_t l = 0; l < t->layers; l++)
        if (variety(s->rule + l * t->heads, t->heads) > t->per_layer) return false;
    return true;
}

static void try_all(struct search *s)
{
    const fv_span_task *t = s->task;
    int64_t count = t->layers * t->heads, h = 0;

    memset(s->rule, 0, (size_t)count * sizeof *s->rule);
    while (h < count) {
        if (allowed(s)) {
            count_up(s);
            keep_best(s);
        }
        for (h = 0; h < count && ++s->rule[h] == t->rules; h++)
            s->rule[h] = 0;
    }
}

/* ---- many: multipliers ------------------------------------------------------------------------------------------ */

static void price_layer(struct search *s, int64_t layer)
{
    const fv_span_task *t = s->task;

    for (int64_t h = 0; h < t->heads; h++)
        for (int64_t r = 0; r < t->rules; r++) {
            double price = 0;
            for (int n = 0; n < t->lengths; n++) {
                price += s->for_density[n] * s->density[n * t->rules + r];
                if (n < t->profiled) price += s->for_loss[n] * losses_of(t, n, layer * t->heads + h)[r] / s->unit[n];
            }
            s->price[h * t->rules + r] = price;
        }
}

/* The least that heads pay if they may also take rule r, `pays` being what they pay without it. */
static double with_rule(const struct search *s, const double *pays, int64_t r)
{
    double sum = 0;

    for (int64_t h = 0; h < s->task->heads; h++)
        sum += fmin(pays[h], s->price[h * s->task->rules + r]);
    return sum;
}

/* The best rule beside those the heads pay for. */
static int64_t next_rule(const struct search *s, const double *pays, double *sum)
{
    int64_t best = 0;

    *sum = INFINITY;
    for (int64_t r = 0; r < s->task->rules; r++) {
        double with = with_rule(s, pays, r);
        if (with >= *sum) continue;
        *sum = with;
        best = r;
    }
    return best;
}

static void take_rule(struct search *s, int64_t layer, int64_t r, double *pays)
{
    const fv_span_task *t = s->task;

    for (int64_t h = 0; h < t->heads; h++) {
        double price = s->price[h * t->rules + r];
        if (price >= pays[h]) continue;
        pays[h] = price;
        s->rule[layer * t->heads + h] = (int32_t)r;
    }
}

/* The best two rules together, then the best further ones, one at a time. */
static void choose_layer(struct search *s, int64_t layer, double *pays)
{
    const fv_span_task *t = s->task;
    double least = INFINITY, sum;
    int64_t first = 0;

    price_layer(s, layer);
    for (int64_t r = 0; r < t->rules; r++) {
        for (int64_t h = 0; h < t->heads; h++)
            pays[h] = s->price[h * t->rules + r];
        sum = with_rule(s, pays, r);
        if (t->per_layer > 1) next_rule(s, pays, &sum);
        if (sum >= least) continue;
        least = sum;
        first = r;
    }
    for (int64_t h = 0; h < t->heads; h++)
        pays[h] = INFINITY;
    take_rule(s, layer, first, pays);
    for (int64_t n = 1; n < fv_min(t->per_layer, t->heads); n++)
        take_rule(s, layer, next_rule(s, pays, &sum), pays);
}

/* Prices rise for what there is too much of and fall for what there is too little of. */
static void move_multipliers(struct search *s, double step)
{
    const fv_span_task *t = s->task;
    double all = (double)(t->layers * t->heads) * t->density;

    for (int n = 0; n < t->lengths; n++) {
        double share = s->read[n] / all, off = share > 1 ? share - 1 : fmin(0, share - least_share);
        s->for_density[n] += step * (off != 0 ? off : -0.1 * s->for_density[n]);
        if (n >= t->profiled || n == s->objective || isinf(s->cap[n])) continue;
        s->for_loss[n] = fmax(0, s->for_loss[n] + step * (s->loss[n] - s->cap[n]) / s->unit[n]);
    }
}

/* ---- exchanges -------------------------------------------------------------------------------------------------- */

/* What the plan would be worth if the heads of a layer that have rule `from` (or only head `only`) took rule r. */
static double after_move(const struct search *s, int64_t layer, int64_t only, int32_t from, int32_t r)
{
    const fv_span_task *t = s->task;
    double loss[FV_SPAN_LENGTHS], read[FV_SPAN_LENGTHS];

    memcpy(loss, s->loss, sizeof loss);
    memcpy(read, s->read, sizeof read);
    for (int64_t h = layer * t->heads; h < (layer + 1) * t->heads; h++) {
        if (only >= 0 ? h != only : s->rule[h] != from) continue;
        for (int n = 0; n < t->lengths; n++) {
            read[n] += s->density[n * t->rules + r] - s->density[n * t->rules + s->rule[h]];
            if (n < t->profiled) loss[n] += losses_of(t, n, h)[r] - losses_of(t, n, h)[s->rule[h]];
        }
    }
    return merit(s, loss, read);
}

static void move(struct search *s, int64_t layer, int64_t only, int32_t from, int32_t r)
{
    for (int64_t h = layer * s->task->heads; h < (layer + 1) * s->task->heads; h++)
        if (only >= 0 ? h == only : s->rule[h] == from) s->rule[h] = r;
    count_up(s);
}

/* Whether a head may take a rule without the layer having too many. */
static bool may_take(const struct search *s, int64_t layer, int64_t head, int32_t r)
{
    int32_t before = s->rule[head];
    bool may;

    s->rule[head] = r;
    may = variety(s->rule + layer * s->task->heads, s->task->heads) <= s->task->per_layer;
    s->rule[head] = before;
    return may;
}

struct change {
    double merit; /* of the plan after it */
    int64_t layer, only;
    int32_t from, to;
};

/* The best changes there are, best first; returns how many of `most` it found. */
static int64_t best_changes(const struct search *s, int64_t most, struct change *best)
{
    const fv_span_task *t = s->task;
    int64_t count = 0;

    for (int64_t h = 0; h < t->layers * t->heads; h++)
        for (int32_t r = 0; r < t->rules; r++) {
            int64_t layer = h / t->heads, at;
            double alone = may_take(s, layer, h, r) ? after_move(s, layer, h, 0, r) : INFINITY;
            double together = after_move(s, layer, -1, s->rule[h], r);
            struct change c = {fmin(alone, together), layer, alone <= together ? h : -1, s->rule[h], r};
            if (r == s->rule[h] || (count == most && c.merit >= best[count - 1].merit)) continue;
            for (at = count < most ? count++ : count - 1; at > 0 && best[at - 1].merit > c.merit; at--)
                best[at] = best[at - 1];
            best[at] = c;
        }
    return count;
}

static void make(struct search *s, const struct change *c)
{
    move(s, c->layer, c->only, c->from, c->to);
}

/* The two changes that together make the plan best, the first of which is among the best ones. */
static bool improve_by_two(struct search *s, const struct change *first, int64_t count, double now)
{
    struct change best = {.merit = now * (1 - 1e-12)}, second;
    int64_t heads = s->task->layers * s->task->heads, chosen = -1;

    memcpy(s->before, s->rule, (size_t)heads * sizeof *s->rule);
    for (int64_t n = 0; n < count; n++) {
        make(s, &first[n]);
        if (best_changes(s, 1, &second) > 0 && second.merit < best.merit) {
            best = second;
            chosen = n;
        }
        memcpy(s->rule, s->before, (size_t)heads * sizeof *s->rule);
        count_up(s);
    }
    if (chosen < 0) return false;
    make(s, &first[chosen]);
    make(s, &best);
    return true;
}

/* One change for the better, or two; false: there is none. */
static bool improve(struct search *s)
{
    double now = merit(s, s->loss, s->read);
    struct change best[PAIRS];
    int64_t count = best_changes(s, PAIRS, best);

    if (count > 0 && best[0].merit < now * (1 - 1e-12)) {
        make(s, &best[0]);
        return true;
    }
    return s->price_of_excess == NEVER && improve_by_two(s, best, count, now);
}

/* At a price that rises, so that the way leads through plans that will not do. */
static void climb(struct search *s)
{
    int64_t turns = 4 * s->task->layers * s->task->heads;

    for (double price = 0.5; price <= NEVER; price = price < 500 ? 4 * price : price < NEVER ? NEVER : INFINITY) {
        s->price_of_excess = price;
        for (int64_t turn = 0; turn < turns && improve(s); turn++)
            keep_best(s);
        keep_best(s);
    }
}

static void begin_from_best(struct search *s)
{
    memcpy(s->rule, s->best, (size_t)(s->task->layers * s->task->heads) * sizeof *s->rule);
    count_up(s);
}

/* From the best plan, with some heads moved at random, up again. */
static void climb_again(struct search *s, fv_random *random)
{
    const fv_span_task *t = s->task;
    int64_t heads = t->layers * t->heads, moves = fv_max(2, heads / 20);

    begin_from_best(s);
    for (int64_t n = 0; n < moves; n++) {
        int64_t h = fv_random_below(random, heads);
        int32_t r = (int32_t)fv_random_below(random, t->rules);
        move(s, h / t->heads, may_take(s, h / t->heads, h, r) ? h : -1, s->rule[h], r);
    }
    climb(s);
}

static fv_status try_multipliers(struct search *s, const int32_t *start)
{
    const fv_span_task *t = s->task;
    double *pays, heads = (double)(t->layers * t->heads);
    fv_random random = fv_random_new(1, 0);

    FV_TRY(FV_ALLOC(pays, t->heads));
    for (int n = 0; n < t->lengths; n++)
        s->for_density[n] = s->for_loss[n] = 0;
    s->for_loss[s->objective] = 1;
    for (int round = 0; round < ROUNDS; round++) {
        for (int64_t l = 0; l < t->layers; l++)
            choose_layer(s, l, pays);
        count_up(s);
        keep_best(s);
        /* prices of reading are of the size of a head's loss */
        move_multipliers(s, 4 * fmax(s->loss[s->objective] / s->unit[s->objective], 0.02) / (1 + 0.05 * round) / heads);
        if (round % 50 == 49) climb(s);
    }
    if (start) {
        memcpy(s->rule, start, (size_t)(t->layers * t->heads) * sizeof *start);
        count_up(s);
        keep_best(s);
        climb(s);
    }
    for (int n = 0; n < RESTARTS; n++)
        climb_again(s, &random);
    fv_free(pays);
    return FV_OK;
}

/* ---- one plan --------------------------------------------------------------------------------------------------- */

/* Losses are counted in parts of the most that a plan can lose. */
static void find_units(struct search *s)
{
    const fv_span_task *t = s->task;

    for (int n = 0; n < t->profiled; n++) {
        s->unit[n] = 0;
        for (int64_t h = 0; h < t->layers * t->heads; h++) {
            double most = 0;
            for (int64_t r = 0; r < t->rules; r++)
                most = fmax(most, losses_of(t, n, h)[r]);
            s->unit[n] += most;
        }
        if (s->unit[n] == 0) s->unit[n] = 1;
    }
}

static void give(struct search *s, fv_span_plan *plan, bool *found)
{
    const fv_span_task *t = s->task;

    begin_from_best(s);
    *found = excess(s, s->loss, s->read) == 0;
    for (int n = 0; n < t->lengths; n++) {
        plan->density[n] = s->read[n] / (double)(t->layers * t->heads);
        plan->loss[n] = n < t->profiled ? s->loss[n] : 0;
    }
    memcpy(plan->rule, s->best, (size_t)(t->layers * t->heads) * sizeof *plan->rule);
}

fv_status fv_span_solve(const fv_span_task *task, int objective, const double *cap, const int32_t *start,
                        fv_span_plan *plan, bool *found)
{
    struct search s = {.task = task, .objective = objective, .best_merit = INFINITY};
    int64_t heads = task->layers * task->heads;
    fv_status status = FV_OK;

    *found = false;
    for (int n = 0; n < task->profiled; n++)
        s.cap[n] = cap ? cap[n] : INFINITY;
    FV_TRY_DONE(FV_ALLOC(s.density, task->lengths * task->rules));
    FV_TRY_DONE(FV_ALLOC(s.price, task->heads * task->rules));
    FV_TRY_DONE(FV_ZALLOC(s.rule, heads));
    FV_TRY_DONE(FV_ZALLOC(s.best, heads));
    FV_TRY_DONE(FV_ALLOC(s.before, heads));
    for (int n = 0; n < task->lengths; n++)
        for (int64_t r = 0; r < task->rules; r++)
            s.density[n * task->rules + r] = fv_span_density(&task->rule[r], task->length[n]);
    find_units(&s);
    if (few(task))
        try_all(&s);
    else
        status = try_multipliers(&s, start);
    if (status == FV_OK && !isinf(s.best_merit)) give(&s, plan, found);
done:
    fv_free(s.density);
    fv_free(s.price);
    fv_free(s.rule);
    fv_free(s.best);
    fv_free(s.before);
    return status;
}

/* ---- all that are best in their way ----------------------------------------------------------------------------- */

struct frontier {
    fv_ctx *ctx;
    const fv_span_task *task;
    int solved, all; /* times that a plan is looked for */
    fv_span_plan *plans;
    int64_t count, room;
};

/* No loss of `a` is larger than that of `b`. */
static bool as_good(const fv_span_task *t, const fv_span_plan *a, const fv_span_plan *b)
{
    for (int n = 0; n < t->profiled; n++)
        if (a->loss[n] > b->loss[n] * (1 + 1e-12)) return false;
    return true;
}

/* Takes the plan, or frees it. */
static fv_status add(struct frontier *f, fv_span_plan *plan, bool found)
{
    int64_t kept = 0;
    fv_status status = FV_OK;

    for (int64_t i = 0; i < f->count && found; i++)
        found = !as_good(f->task, &f->plans[i], plan);
    if (found) status = FV_GROW(f->plans, f->room, f->count + 1);
    if (!found || status != FV_OK) {
        fv_free(plan->rule);
        return status;
    }
    for (int64_t i = 0; i < f->count; i++) {
        if (as_good(f->task, plan, &f->plans[i]))
            fv_free(f->plans[i].rule);
        else
            f->plans[kept++] = f->plans[i];
    }
    f->plans[kept++] = *plan;
    f->count = kept;
    return FV_OK;
}

/* Of the plans so far that keep the caps the one of least loss; NULL: none does. */
static const int32_t *start_of(const struct frontier *f, int objective, const double *cap)
{
    const fv_span_plan *best = NULL;

    for (int64_t p = 0; p < f->count; p++) {
        bool keeps = true;
        for (int n = 0; n < f->task->profiled && cap; n++)
            keeps = keeps && (n == objective || f->plans[p].loss[n] <= cap[n]);
        if (keeps && (!best || f->plans[p].loss[objective] < best->loss[objective])) best = &f->plans[p];
    }
    return best ? best->rule : NULL;
}

/* losses [profiled] or NULL receives those of the plan; they stay as they are where none was found. */
static fv_status solve(struct frontier *f, int objective, const double *cap, double *losses)
{
    fv_span_plan plan = {0};
    bool found = false;

    fv_ctx_report(f->ctx, "plans", (double)f->solved++ / f->all);
    FV_TRY(fv_ctx_check(f->ctx));
    FV_TRY(FV_ALLOC(plan.rule, f->task->layers * f->task->heads));
    fv_status status = fv_span_solve(f->task, objective, cap, start_of(f, objective, cap), &plan, &found);
    if (status != FV_OK) {
        fv_free(plan.rule);
        return status;
    }
    if (found && losses) memcpy(losses, plan.loss, sizeof plan.loss);
    return add(f, &plan, found);
}

/* Of the quarters of all objectives but one. */
static int combinations_of(const fv_span_task *t)
{
    int count = 1;

    for (int i = 1; i < t->profiled; i++)
        count *= CUTS;
    return count;
}

/* Every objective under every combination of the others' quarters. */
static fv_status cut(struct frontier *f, const double *low, const double *high)
{
    int combinations = combinations_of(f->task);

    for (int objective = 0; objective < f->task->profiled; objective++)
        for (int c = 0; c < combinations; c++) {
            double cap[FV_SPAN_LENGTHS];
            int rest = c;
            for (int n = 0; n < f->task->profiled; n++) {
                if (n == objective) continue;
                cap[n] = low[n] + (high[n] - low[n]) * (1 + rest % CUTS) / CUTS;
                rest /= CUTS;
            }
            FV_TRY(solve(f, objective, cap, NULL));
        }
    return FV_OK;
}

fv_status fv_span_frontier(fv_ctx *ctx, const fv_span_task *task, fv_span_plan **plans, int64_t *count)
{
    struct frontier f = {.ctx = ctx, .task = task, .all = task->profiled * (1 + combinations_of(task))};
    double low[FV_SPAN_LENGTHS], high[FV_SPAN_LENGTHS];
    fv_status status = FV_OK;

    *plans = NULL;
    *count = 0;
    for (int n = 0; n < task->profiled; n++) {
        low[n] = INFINITY;
        high[n] = 0;
    }
    for (int objective = 0; objective < task->profiled && status == FV_OK; objective++) {
        double losses[FV_SPAN_LENGTHS];
        for (int n = 0; n < FV_SPAN_LENGTHS; n++)
            losses[n] = NAN; /* which fmin and fmax leave out */
        status = solve(&f, objective, NULL, losses);
        for (int n = 0; n < task->profiled && status == FV_OK; n++) {
            low[n] = fmin(low[n], losses[n]);
            high[n] = fmax(high[n], losses[n]);
        }
    }
    if (status == FV_OK && f.count == 0)
        status = fv_fail(FV_E_ARGUMENT,
                         "no plan of at most %lld spans in a layer reads %.3g to %.3g of the keys at "
                         "every length; other lengths or another density may do",
                         (long long)task->per_layer, least_share * task->density, task->density);
    if (status == FV_OK && task->profiled > 1) status = cut(&f, low, high);
    if (status != FV_OK) {
        fv_span_free(f.plans, f.count);
        return status;
    }
    *plans = f.plans;
    *count = f.count;
    return FV_OK;
}

void fv_span_free(fv_span_plan *plans, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        fv_free(plans[i].rule);
    fv_free(plans);
}
