#include "app/layer_reuse.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/app.h"
#include "app/weights.h"
#include "base/memory.h"
#include "cache/reuse_plan.h"

struct probe {
    struct app *app;
    const layer_reuse_task *task;
    layer_reuse *result;
    fv_session *session;
    int64_t heads, chunks; /* key-value heads; chunks at most */
    double *mass;          /* [chunks] of a head */
    struct ranked {
        double mass;
        int64_t chunk;
    } * order;     /* [chunks] by falling mass */
    bool *chosen;  /* [layers, heads, chunks] in this step */
    double *ratio; /* [layers, heads * steps] */
    double *sum;   /* [layers, layers, heads] of overlaps */
    int64_t step;
    fv_listener listener;
};

/* ---- a step ----------------------------------------------------------------------------------------------------- */

static int by_mass(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;

    if (x->mass != y->mass) return x->mass > y->mass ? -1 : 1;
    return x->chunk < y->chunk ? -1 : 1;
}

/* Masses of a key-value head's chunks: all its query heads together. */
static void add_masses(const struct probe *p, const app_weights *weights, int64_t first, int64_t group)
{
    memset(p->mass, 0, (size_t)p->chunks * sizeof *p->mass);
    for (int64_t h = first; h < first + group; h++)
        for (int64_t j = 0; j < weights->keys; j++)
            p->mass[app_weights_position(weights, j) / p->task->chunk] += weights->weight[h * weights->keys + j];
}

/* The share of chunks that hold 90 % of the mass, largest first. */
static double spread_of(const struct probe *p, int64_t chunks)
{
    double all = 0, sum = 0;
    int64_t count = 0;

    for (int64_t c = 0; c < chunks; c++)
        all += p->mass[c];
    while (count < chunks && sum < (0.9 - 1e-6) * all)
        sum += p->order[count++].mass;
    return (double)count / (double)chunks;
}

/* The chunks that the policy would read: sinks and recent ones first, then the heaviest. */
static void choose(const struct probe *p, int64_t chunks, int64_t keys, bool *chosen)
{
    int64_t chunk = p->task->chunk, left = p->task->keep / chunk;

    memset(chosen, 0, (size_t)p->chunks * sizeof *chosen);
    for (int64_t c = 0; c < chunks && left > 0; c++) {
        bool forced = c * chunk < p->task->sink || (c + 1) * chunk > keys - p->task->recent;
        chosen[c] = forced;
        left -= forced;
    }
    for (int64_t n = 0; n < chunks && left > 0; n++) {
        left -= !chosen[p->order[n].chunk];
        chosen[p->order[n].chunk] = true;
    }
}

static fv_status look_at(void *user, const fv_look *look)
{
    struct probe *p = user;
    fv_mark mark = fv_scratch_mark(p->app->ctx);
    int64_t group = look->call->query_heads / look->call->key_heads, l = look->layer;
    app_weights weights;
    fv_status status;

    if (p->session->layers[l].window > 0) return FV_OK;
    status = app_weights_of(p->app->ctx, look, &weights);
    for (int64_t g = 0; status == FV_OK && g < look->call->key_heads; g++) {
        int64_t head = look->head / group + g, chunks = fv_ceil_div(weights.keys, p->task->chunk);
        add_masses(p, &weights, g * group, group);
        for (int64_t c = 0; c < chunks; c++)
            p->order[c] = (struct ranked){p->mass[c], c};
        qsort(p->order, (size_t)chunks, sizeof *p->order, by_mass);
        p->ratio[l * p->heads * p->task->steps + p->step * p->heads + head] = spread_of(p, chunks);
        choose(p, chunks, weights.keys, p->chosen + (l * p->heads + head) * p->chunks);
    }
    fv_scratch_release(p->app->ctx, mark);
    return status;
}

/* |S_i and S_j| / |S_j| of this step for all pairs of layers. */
static void add_overlaps(struct probe *p)
{
    int64_t layers = p->result->layers;

    for (int64_t i = 0; i < layers; i++)
        for (int64_t j = i + 1; j < layers; j++)
            for (int64_t g = 0; g < p->heads; g++) {
                const bool *a = p->chosen + (i * p->heads + g) * p->chunks;
                const bool *b = p->chosen + (j * p->heads + g) * p->chunks;
                int64_t both = 0, own = 0;
                for (int64_t c = 0; c < p->chunks; c++) {
                    both += a[c] && b[c];
                    own += b[c];
                }
                if (own > 0) p->sum[(i * layers + j) * p->heads + g] += (double)both / (double)own;
            }
}

/* ---- what the steps say ----------------------------------------------------------------------------------------- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

/* The mean without outliers: what lies further than 1.5 interquartile ranges outside of the quartiles. */
static double mean_within(double *values, int64_t count)
{
    double low, high, sum = 0;
    int64_t used = 0;

    qsort(values, (size_t)count, sizeof *values, by_value);
    low = values[count / 4];
    high = values[3 * count / 4];
    for (int64_t i = 0; i < count; i++)
        if (values[i] >= low - 1.5 * (high - low) && values[i] <= high + 1.5 * (high - low)) {
            sum += values[i];
            used++;
        }
    return used > 0 ? sum / (double)used : values[count / 2];
}

static bool acts(const struct probe *p, int64_t layer)
{
    return p->session->layers[layer].window == 0;
}

/* The layers whose attention is most spread read everything. */
static int64_t choose_full(struct probe *p, int64_t acted)
{
    layer_reuse *r = p->result;
    int64_t count = (int64_t)ceil((double)acted * (1 - p->task->sparsity) - 1e-9);

    for (int64_t n = 0; n < count; n++) {
        int64_t best = -1;
        for (int64_t l = 0; l < r->layers; l++)
            if (acts(p, l) && !r->full[l] && (best < 0 || r->spread[l] > r->spread[best])) best = l;
        if (best >= 0) r->full[best] = true;
    }
    return count;
}

static void merge_heads(struct probe *p)
{
    layer_reuse *r = p->result;

    for (int64_t i = 0; i < r->layers; i++)
        for (int64_t j = i; j < r->layers; j++) {
            const double *of = p->sum + (i * r->layers + j) * p->heads;
            double least = INFINITY, mean = 0;
            for (int64_t g = 0; g < p->heads; g++) {
                least = fmin(least, of[g] / (double)p->task->steps);
                mean += of[g] / (double)(p->task->steps * p->heads);
            }
            r->overlap[i * r->layers + j] = i == j ? 1 : p->task->merge_mean ? mean : least;
        }
}

/* How many sources a plan may have over `acted` layers of which `full` read everything. */
static int64_t sources_of(const layer_reuse_task *task, int64_t acted, int64_t full)
{
    int64_t own = (int64_t)ceil((double)acted * task->sparsity * task->change - 1e-9);

    return fv_max(task->changes > 0 ? task->changes : own + full, 1);
}

/* Layers that read everything are sources, as their columns are 0, and nobody reads from them where their rows are 0
 * too. */
static fv_status plan_acted(const layer_reuse_task *task, layer_reuse *r, const int64_t *layer, int64_t acted)
{
    int64_t *plan = NULL;
    double *overlap = NULL;
    fv_reuse_gains gains;
    fv_status status;

    FV_TRY_DONE(FV_ALLOC(plan, acted));
    FV_TRY_DONE(FV_ALLOC(overlap, acted * acted));
    for (int64_t i = 0; i < acted; i++)
        for (int64_t j = 0; j < acted; j++) {
            bool zero = j < i || r->full[layer[j]] || (r->full[layer[i]] && !task->full_as_source);
            overlap[i * acted + j] = zero ? 0 : r->overlap[layer[i] * r->layers + layer[j]];
        }
    FV_TRY_DONE(fv_reuse_plan(overlap, acted, r->sources, plan, &gains));
    for (int64_t l = 0; l < r->layers; l++)
        r->plan[l] = -1;
    for (int64_t n = 0; n < acted; n++)
        if (plan[n] >= 0) r->plan[layer[n]] = layer[plan[n]];
    r->least = gains.least;
    r->sum = gains.sum;
done:
    fv_free(plan);
    fv_free(overlap);
    return status;
}

/* The plan over the layers that are not windows. */
static fv_status plan_layers(struct probe *p)
{
    layer_reuse *r = p->result;
    int64_t acted = 0, samples = p->heads * p->task->steps, *layer;

    FV_TRY(FV_SCRATCH(p->app->ctx, layer, r->layers));
    for (int64_t l = 0; l < r->layers; l++) {
        r->spread[l] = acts(p, l) ? mean_within(p->ratio + l * samples, samples) : NAN;
        if (acts(p, l)) layer[acted++] = l;
    }
    r->sources = sources_of(p->task, acted, choose_full(p, acted));
    merge_heads(p);
    return plan_acted(p->task, r, layer, acted);
}

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static fv_status new_plan(layer_reuse *r)
{
    FV_TRY(FV_ZALLOC(r->overlap, r->layers * r->layers));
    FV_TRY(FV_ZALLOC(r->full, r->layers));
    return FV_ZALLOC(r->plan, r->layers);
}

static fv_status measure(struct probe *p)
{
    const layer_reuse_task *task = p->task;
    layer_reuse *r = p->result;
    int64_t read = task->count - task->steps;

    if (read <= task->keep)
        return fv_fail(FV_E_SHAPE,
                       "the text has %lld tokens before the %lld that are looked at, and %lld are kept: "
                       "nothing would be left out",
                       (long long)read, (long long)task->steps, (long long)task->keep);
    p->heads = task->info->key_heads;
    p->chunks = fv_ceil_div(task->count, task->chunk);
    FV_TRY(FV_ZALLOC(r->spread, r->layers));
    FV_TRY(new_plan(r));
    FV_TRY(FV_ZALLOC(p->mass, p->chunks));
    FV_TRY(FV_ZALLOC(p->order, p->chunks));
    FV_TRY(FV_ZALLOC(p->chosen, r->layers * p->heads * p->chunks));
    FV_TRY(FV_ZALLOC(p->ratio, r->layers * p->heads * task->steps));
    FV_TRY(FV_ZALLOC(p->sum, r->layers * r->layers * p->heads));
    FV_TRY(fv_session_new(p->app->ctx, task->model,
                          &(fv_session_options){.context = task->count, .precision = task->precision}, &p->session));
    p->listener = (fv_listener){.points = FV_POINT_ATTEND, .select.phases = FV_IN_STEP, .hear = look_at, .user = p};
    fv_listen(&p->session->listeners, &p->listener);
    FV_TRY(fv_session_prompt(p->session, task->ids, read, NULL, 0));
    app_progress_end();
    for (; p->step < task->steps; p->step++) {
        FV_TRY(fv_session_feed(p->session, task->ids + read + p->step, 1, NULL, 0));
        add_overlaps(p);
        FV_TRY(app_check());
        app_progress(p->app, "looking at steps", (double)(p->step + 1) / (double)task->steps);
    }
    app_progress_end();
    return plan_layers(p);
}

fv_status layer_reuse_measure(struct app *app, const layer_reuse_task *task, layer_reuse *result)
{
    struct probe p = {.app = app, .task = task, .result = result};
    fv_mark mark = fv_scratch_mark(app->ctx);
    fv_status status;

    *result = (layer_reuse){.layers = task->info->layers};
    status = measure(&p);
    fv_scratch_release(app->ctx, mark);
    fv_session_free(p.session);
    fv_free(p.mass);
    fv_free(p.order);
    fv_free(p.chosen);
    fv_free(p.ratio);
    fv_free(p.sum);
    return status;
}

/* ---- from a file ------------------------------------------------------------------------------------------------ */

static fv_status check_overlap(const char *path, const fv_tensor *t)
{
    if (t->rank != 2 || t->dims[0] != t->dims[1] || t->dims[0] < 1 || t->dims[0] > FV_LIST_MAX)
        return fv_fail(FV_E_SHAPE, "%s: expected overlaps [layers,layers] of 1 to %d layers, got %s", path, FV_LIST_MAX,
                       fv_shape_text(t));
    for (int64_t i = 0; i < t->dims[0]; i++)
        for (int64_t j = i + 1; j < t->dims[0]; j++) {
            double x = (double)((const float *)t->data)[i * t->dims[0] + j];
            if (!(x >= 0 && x <= 1))
                return fv_fail(FV_E_FORMAT, "%s: [%lld,%lld]: expected an overlap of 0 to 1, got %g", path,
                               (long long)i, (long long)j, x);
        }
    return FV_OK;
}

static fv_status plan_file(const char *path, const fv_list *full, const layer_reuse_task *task, const fv_tensor *t,
                           layer_reuse *r)
{
    int64_t layer[FV_LIST_MAX], count = 0;

    FV_TRY(check_overlap(path, t));
    r->layers = t->dims[0];
    FV_TRY(new_plan(r));
    for (int n = 0; n < full->count; n++) {
        if (full->items[n] >= r->layers)
            return fv_fail(FV_E_USAGE, "%s has layers 0 to %lld, layer %lld cannot read everything", path,
                           (long long)r->layers - 1, (long long)full->items[n]);
        if (full->items[n] >= 0) r->full[full->items[n]] = true;
    }
    for (int64_t i = 0; i < r->layers; i++) {
        layer[i] = i;
        count += r->full[i];
        for (int64_t j = i; j < r->layers; j++)
            r->overlap[i * r->layers + j] = i == j ? 1 : (double)((const float *)t->data)[i * r->layers + j];
    }
    r->sources = sources_of(task, r->layers, count);
    return plan_acted(task, r, layer, r->layers);
}

fv_status layer_reuse_from(const char *path, const fv_list *full, const layer_reuse_task *task, layer_reuse *result)
{
    app_tensor file;
    fv_status status;

    *result = (layer_reuse){0};
    FV_TRY(app_tensor_read(path, &file));
    status = plan_file(path, full, task, &file.t, result);
    app_tensor_free(&file);
    return status;
}

/* ---- plan files ------------------------------------------------------------------------------------------------- */

void layer_reuse_free(layer_reuse *r)
{
    fv_free(r->spread);
    fv_free(r->overlap);
    fv_free(r->full);
    fv_free(r->plan);
    *r = (layer_reuse){0};
}

fv_status layer_reuse_write(const layer_reuse *r, const layer_reuse_task *task, const char *path)
{
    json_t *root = json_object(), *plan = json_array(), *full = json_array();

    for (int64_t l = 0; l < r->layers; l++) {
        app_append(plan, json_integer(r->plan[l]));
        if (r->full[l]) app_append(full, json_integer(l));
    }
    app_put(root, "plan", plan);
    app_put(root, "full", full);
    if (task->info) {
        app_put(root, "model", json_string(task->info->name));
        app_put(root, "chunk", json_integer(task->chunk));
        app_put(root, "keep", json_integer(task->keep));
        app_put(root, "tokens", json_integer(task->count));
    }
    return app_json_write(root, path);
}
