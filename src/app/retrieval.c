#include "app/retrieval.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/app.h"
#include "app/weights.h"
#include "base/memory.h"
#include "ops/blocks.h"

enum { MOST_ANSWER = 50 };

/* One prompt, read and answered. */
struct reader {
    struct app *app;
    const retrieval_task *task;
    retrieval *result;
    fv_model *model;
    fv_session *session, *evicted; /* evicted: the same prompt under the policy, for the rows it keeps */
    const int32_t *ids;
    int64_t count, from, to;   /* tokens of the prompt; of them the fact's */
    double *own_srh, *own_trh; /* [layers, heads] of this run, by the last step */
    double *step, *top;        /* [layers, heads]: mass on the fact, and where the largest weight lies */
    double *error;             /* [layers] */
    bool looking;
    fv_listener listener;
};

/* ---- looking at a step ------------------------------------------------------------------------------------------ */

/* o = sum of weights v over the keys, and over those kept with the weights they have among themselves. */
struct outputs {
    const app_weights *weights;
    const fv_call *call;
    const bool *kept;  /* [key heads, keys] */
    float *full, *few; /* [heads, Dv] */
    float *row;        /* [heads, Dv] */
};

static void outputs_item(void *user, int64_t head, int thread)
{
    const struct outputs *o = user;
    const fv_tensor *v = &o->call->v;
    int64_t keys = o->weights->keys, dim = o->call->value_dim, g = head / (o->call->query_heads / o->call->key_heads);
    const float *weight = o->weights->weight + head * keys;
    float *full = o->full + head * dim, *few = o->few + head * dim, *row = o->row + head * dim;
    double mass = 0;

    (void)thread;
    memset(full, 0, (size_t)dim * sizeof *full);
    memset(few, 0, (size_t)dim * sizeof *few);
    for (int64_t j = 0; j < keys; j++)
        if (o->kept[g * keys + j]) mass += weight[j];
    for (int64_t j = 0; j < keys; j++) {
        bool kept = o->kept[g * keys + j];
        fv_tensor at = fv_slice(v, 1, g, 1);
        if (weight[j] == 0) continue;
        at = fv_slice(&at, 2, j, 1);
        fv_blocks_load(v->dtype, at.data, 0, dim / fv_dtype_block(v->dtype), row);
        for (int64_t d = 0; d < dim; d++) {
            full[d] += weight[j] * row[d];
            if (kept) few[d] += (float)(weight[j] / mass) * row[d];
        }
    }
}

/* Rows of the prompt that the policy kept, and all behind the prompt. */
static fv_status mark_kept(struct reader *r, const fv_look *look, bool *kept)
{
    int64_t keys = look->call->keys;

    for (int64_t g = 0; g < look->call->key_heads; g++) {
        int64_t count;
        const int32_t *position = fv_session_positions(r->evicted, look->layer, g, &count);
        for (int64_t j = 0; j < keys; j++)
            kept[g * keys + j] = j >= r->count - 1;
        for (int64_t i = 0; i < count; i++)
            if (position[i] < keys) kept[g * keys + position[i]] = true;
    }
    return FV_OK;
}

static double norm_of(const float *a, const float *b, int64_t count)
{
    double sum = 0;

    for (int64_t i = 0; i < count; i++) {
        double d = (double)a[i] - (b ? (double)b[i] : 0);
        sum += d * d;
    }
    return sqrt(sum);
}

/* |W_o (o_few - o_full)| / (|W_o o_full| + 1e-5) of this layer. */
static fv_status add_error(struct reader *r, const fv_look *look, const app_weights *weights)
{
    fv_ctx *ctx = r->app->ctx;
    const fv_weight *output = &r->model->layers[look->layer].o;
    int64_t heads = look->call->query_heads, dim = look->call->value_dim, width = r->model->sizes.width;
    struct outputs o = {.weights = weights, .call = look->call};
    float *rows, *out;
    bool *kept;
    fv_tensor x, y;

    FV_TRY(FV_SCRATCH(ctx, kept, look->call->key_heads * weights->keys));
    FV_TRY(FV_SCRATCH(ctx, rows, 2 * heads * dim));
    FV_TRY(FV_SCRATCH(ctx, o.row, heads * dim));
    FV_TRY(FV_SCRATCH(ctx, out, 2 * width));
    FV_TRY(mark_kept(r, look, kept));
    o.kept = kept;
    o.full = rows;
    o.few = rows + heads * dim;
    fv_run(ctx, heads, outputs_item, &o);
    FV_TRY(fv_tensor_wrap(&x, rows, FV_F32, FV_DIMS(2, heads * dim)));
    FV_TRY(fv_tensor_wrap(&y, out, FV_F32, FV_DIMS(2, width)));
    FV_TRY(fv_linear(
        ctx, &(fv_linear_args){
                 .x = x, .parts = 1, .part = {{.weight = output->tensor, .packed = &output->packed, .out = y}}}));
    r->error[look->layer] += norm_of(out + width, out, width) / (norm_of(out, NULL, width) + 1e-5);
    return FV_OK;
}

static fv_status look_at(void *user, const fv_look *look)
{
    struct reader *r = user;
    fv_mark mark = fv_scratch_mark(r->app->ctx);
    bool windowed = r->session->layers[look->layer].window > 0;
    app_weights weights;
    fv_status status;

    if (!r->looking || look->call->queries != 1) return FV_OK;
    status = app_weights_of(r->app->ctx, look, &weights);
    for (int64_t h = 0; status == FV_OK && h < weights.heads; h++) {
        const float *weight = weights.weight + h * weights.keys;
        int64_t at = look->layer * r->result->heads + look->head + h, best = 0;
        r->step[at] = 0;
        for (int64_t j = 0; j < weights.keys; j++) {
            int64_t position = app_weights_position(&weights, j);
            if (position >= r->from && position < r->to) r->step[at] += weight[j];
            if (weight[j] > weight[best]) best = j;
        }
        r->top[at] = (double)app_weights_position(&weights, best);
    }
    if (status == FV_OK && r->evicted && !windowed) status = add_error(r, look, &weights);
    fv_scratch_release(r->app->ctx, mark);
    return status;
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static bool in_list(const int32_t *ids, int64_t count, int32_t id)
{
    for (int64_t i = 0; i < count; i++)
        if (ids[i] == id) return true;
    return false;
}

/* The first stretch of the fact's length that holds more than 90 % of its distinct tokens; false: there is none. */
static bool find_fact(struct reader *r, const int32_t *fact, int64_t length)
{
    int64_t distinct = 0;

    for (int64_t i = 0; i < length; i++)
        distinct += !in_list(fact, i, fact[i]);
    for (int64_t at = 0; at + length <= r->count; at++) {
        int64_t held = 0;
        for (int64_t i = 0; i < length; i++)
            held += !in_list(fact, i, fact[i]) && in_list(r->ids + at, length, fact[i]);
        if ((double)held <= 0.9 * (double)distinct) continue;
        r->from = at;
        r->to = at + length;
        return true;
    }
    return false;
}

/* A produced token: each place of the fact that has it counts. */
static void score_token(struct reader *r, int32_t id)
{
    const retrieval *result = r->result;
    int64_t matches = 0;

    for (int64_t i = r->from; i < r->to; i++)
        matches += r->ids[i] == id;
    for (int64_t n = 0; n < result->layers * result->heads; n++) {
        int64_t at = (int64_t)r->top[n];
        r->own_srh[n] += (double)matches * r->step[n];
        if (at >= r->from && at < r->to && r->ids[at] == id) r->own_trh[n] += 1 / (double)(r->to - r->from);
    }
}

/* Lower-case words of a text, one after the other; false: no more. */
static bool next_word(const char **at, char word[64])
{
    size_t length = 0;

    while (**at && !isalnum((unsigned char)**at))
        (*at)++;
    for (; isalnum((unsigned char)**at) || **at == '\''; (*at)++)
        if (length < 63) word[length++] = (char)tolower((unsigned char)**at);
    word[length] = 0;
    return length > 0;
}

/* ROUGE-1 recall: the share of the fact's words that the answer has, each as often as it occurs. */
static double recall_of(const char *fact, const char *answer)
{
    char word[64], other[64];
    double words = 0, found = 0;

    for (const char *at = fact; next_word(&at, word); words++) {
        int64_t before = 0, there = 0;
        for (const char *a = fact; a < at && next_word(&a, other);)
            before += strcmp(word, other) == 0;
        for (const char *a = answer; next_word(&a, other);)
            there += strcmp(word, other) == 0;
        found += there >= before;
    }
    return words > 0 ? found / words : 0;
}

/* Decodes greedily from the last token of the prompt, looking at every step. */
static fv_status decode(struct reader *r, fv_text *answer)
{
    int64_t vocabulary = r->model->sizes.vocabulary;
    fv_sampler *sampler = NULL;
    int32_t id = r->ids[r->count - 1];
    float *logits = NULL;
    fv_status status;

    FV_TRY(fv_sampler_new(&(fv_sampler_options){0}, vocabulary, &sampler));
    FV_TRY_DONE(FV_ALLOC(logits, vocabulary));
    r->looking = true;
    for (int n = 0; n < MOST_ANSWER && fv_session_held(r->session) < r->session->context; n++) {
        const char *bytes;
        size_t length;
        FV_TRY_DONE(fv_session_feed(r->session, &id, 1, logits, 1));
        FV_TRY_DONE(app_check());
        id = fv_sampler_pick(sampler, logits);
        if (fv_model_is_end(r->model, id)) break;
        FV_TRY_DONE(fv_model_piece(r->model, id, &bytes, &length));
        if (memchr(bytes, '\n', length)) break;
        score_token(r, id);
        fv_text_add(answer, bytes, (int64_t)length);
    }
    status = fv_text_status(answer);
done:
    r->looking = false;
    fv_sampler_free(sampler);
    fv_free(logits);
    return status;
}

static fv_status read_prompt(struct reader *r, const needle_fact *fact, const app_prompt *prompt)
{
    retrieval *result = r->result;
    int64_t cells = result->layers * result->heads, length;
    bool chat = r->task->needle.info->has_chat_template;
    fv_text answer = {0};
    int32_t *ids;
    char text[512];

    r->ids = prompt->ids;
    r->count = prompt->count;
    snprintf(text, sizeof text, " %s", fact->sentence);
    FV_TRY(fv_model_tokenize(r->model, text, strlen(text), 0, &ids, &length));
    bool found = find_fact(r, ids, length);
    fv_release(ids);
    result->runs++;
    if (!found) return FV_OK;
    memset(r->own_srh, 0, (size_t)cells * sizeof *r->own_srh);
    memset(r->own_trh, 0, (size_t)cells * sizeof *r->own_trh);
    fv_session_clear(r->session);
    fv_status status = fv_session_prompt(r->session, r->ids, r->count - 1, NULL, 0);
    if (status == FV_OK && r->evicted) {
        fv_session_clear(r->evicted);
        status = fv_session_prompt(r->evicted, r->ids, r->count - 1, NULL, 0);
    }
    if (status == FV_OK && !chat) fv_text_printf(&answer, "%s ", fact->lead);
    if (status == FV_OK) status = decode(r, &answer);
    if (status == FV_OK && recall_of(fact->sentence, fv_text_get(&answer)) > 0.5) {
        result->counted++;
        for (int64_t n = 0; n < cells; n++) {
            result->srh[n] += r->own_srh[n];
            result->trh[n] += r->own_trh[n];
        }
    }
    fv_text_free(&answer);
    return status;
}

static fv_status read_all(struct reader *r, const char *what)
{
    const needle_task *task = &r->task->needle;
    int done = 0, all = task->lengths->count * task->depths->count * NEEDLE_TOLD;

    for (int l = 0; l < task->lengths->count; l++)
        for (int d = 0; d < task->depths->count; d++)
            for (int f = 0; f < NEEDLE_TOLD; f++) {
                needle_facts hidden = {1, &needle_told[f].sentence, needle_told[f].question, needle_told[f].lead};
                int64_t most = task->info->context - MOST_ANSWER;
                app_prompt prompt;
                FV_TRY(needle_prompt(task, fv_min(task->lengths->items[l], most), task->depths->items[d], &hidden,
                                     &prompt));
                fv_status status = read_prompt(r, &needle_told[f], &prompt);
                app_prompt_free(&prompt);
                FV_TRY(status);
                app_progress(r->app, what, (double)++done / (double)all);
            }
    app_progress_end();
    return FV_OK;
}

/* ---- both parts ------------------------------------------------------------------------------------------------- */

static void divide(double *values, int64_t count, double by)
{
    for (int64_t i = 0; i < count && by > 0; i++)
        values[i] /= by;
}

static fv_status find_heads(struct reader *r)
{
    retrieval *result = r->result;
    int64_t cells = result->layers * result->heads;

    FV_TRY(read_all(r, "looking for retrieval heads"));
    divide(result->srh, cells, result->counted);
    divide(result->trh, cells, result->counted);
    if (result->counted > 0) return FV_OK;
    return fv_fail(FV_E_UNSUPPORTED,
                   "in none of %d prompts the answer named the fact: nothing can be said about this "
                   "model's heads (shorter --lengths may help)",
                   result->runs);
}

/* The same prompts, with the rows that the found heads would keep beside all rows. */
static fv_status find_errors(struct reader *r, const char *plan)
{
    const needle_task *task = &r->task->needle;
    retrieval *result = r->result, before = *r->result;
    int64_t cells = result->layers * result->heads;
    char spec[1200];
    double sum = 0, *srh, *trh;

    snprintf(spec, sizeof spec, "compresskv:budget=%lld,layer_budget=uniform,plan=%s", (long long)r->task->cap, plan);
    FV_TRY(FV_ALLOC(srh, cells));
    fv_status status = FV_ALLOC(trh, cells);
    if (status == FV_OK) {
        memcpy(srh, result->srh, (size_t)cells * sizeof *srh); /* the second reading counts anew */
        memcpy(trh, result->trh, (size_t)cells * sizeof *trh);
        status = fv_session_new(
            r->app->ctx, r->model,
            &(fv_session_options){.context = r->session->context, .cache = spec, .precision = task->precision},
            &r->evicted);
    }
    if (status == FV_OK) status = read_all(r, "measuring what layers lose");
    if (status == FV_OK) {
        memcpy(result->srh, srh, (size_t)cells * sizeof *srh);
        memcpy(result->trh, trh, (size_t)cells * sizeof *trh);
        result->runs = before.runs;
        result->counted = before.counted;
        for (int64_t l = 0; l < result->layers; l++)
            sum += r->error[l];
        for (int64_t l = 0; l < result->layers; l++)
            result->importance[l] = sum > 0 ? r->error[l] / sum : 1 / (double)result->layers;
    }
    fv_free(srh);
    fv_free(trh);
    return status;
}

static fv_status find_errors_by_file(struct reader *r)
{
    const char *folder = getenv("TMPDIR");
    char path[1000];
    int descriptor;
    fv_status status;

    snprintf(path, sizeof path, "%s/fovea-plan-XXXXXX", folder && *folder ? folder : "/tmp");
    descriptor = mkstemp(path);
    if (descriptor < 0) return fv_fail(FV_E_IO, "%s: cannot be created: %s (TMPDIR says where)", path, strerror(errno));
    close(descriptor);
    status = retrieval_write(r->result, r->task->voters, NULL, path);
    if (status == FV_OK) status = find_errors(r, path);
    unlink(path);
    return status;
}

static fv_status measure(struct reader *r)
{
    const needle_task *task = &r->task->needle;
    retrieval *result = r->result;
    int64_t cells = result->layers * result->heads, longest = 0;

    for (int l = 0; l < task->lengths->count; l++)
        longest = fv_max(longest, task->lengths->items[l]);
    FV_TRY(FV_ZALLOC(result->srh, cells));
    FV_TRY(FV_ZALLOC(result->trh, cells));
    FV_TRY(FV_ZALLOC(result->importance, result->layers));
    FV_TRY(FV_ZALLOC(r->own_srh, cells));
    FV_TRY(FV_ZALLOC(r->own_trh, cells));
    FV_TRY(FV_ZALLOC(r->step, cells));
    FV_TRY(FV_ZALLOC(r->top, cells));
    FV_TRY(FV_ZALLOC(r->error, result->layers));
    FV_TRY(fv_session_new(r->app->ctx, task->model,
                          &(fv_session_options){.context = fv_min(longest + MOST_ANSWER, task->info->context),
                                                .precision = task->precision},
                          &r->session));
    r->listener = (fv_listener){.points = FV_POINT_ATTEND, .hear = look_at, .user = r};
    fv_listen(&r->session->listeners, &r->listener);
    FV_TRY(find_heads(r));
    return r->task->errors ? find_errors_by_file(r) : FV_OK;
}

fv_status retrieval_measure(struct app *app, const retrieval_task *task, retrieval *result)
{
    struct reader r = {.app = app, .task = task, .result = result, .model = (fv_model *)(uintptr_t)task->needle.model};
    fv_status status;

    *result = (retrieval){.layers = task->needle.info->layers, .heads = task->needle.info->query_heads};
    status = measure(&r);
    fv_session_free(r.session);
    fv_session_free(r.evicted);
    fv_free(r.own_srh);
    fv_free(r.own_trh);
    fv_free(r.step);
    fv_free(r.top);
    fv_free(r.error);
    return status;
}

void retrieval_free(retrieval *result)
{
    fv_free(result->srh);
    fv_free(result->trh);
    fv_free(result->importance);
    *result = (retrieval){0};
}

void retrieval_voters(const retrieval *result, const double *score, int64_t layer, int64_t voters, int64_t *head)
{
    for (int64_t n = 0; n < voters; n++) {
        head[n] = -1;
        for (int64_t h = 0; h < result->heads; h++) {
            bool taken = false;
            for (int64_t m = 0; m < n; m++)
                taken = taken || head[m] == h;
            if (taken) continue;
            if (head[n] < 0 || score[layer * result->heads + h] > score[layer * result->heads + head[n]]) head[n] = h;
        }
    }
}

fv_status retrieval_write(const retrieval *result, int64_t voters, const double *importance, const char *path)
{
    json_t *root = json_object(), *heads = json_array(), *shares = json_array();
    int64_t count = fv_min(voters, result->heads), *head;
    fv_status status = FV_ALLOC(head, count);

    for (int64_t l = 0; status == FV_OK && l < result->layers; l++) {
        json_t *row = json_array();
        retrieval_voters(result, result->srh, l, count, head);
        for (int64_t n = 0; n < count; n++)
            app_append(row, json_integer(head[n]));
        app_append(heads, row);
        app_append(shares, app_number(importance ? importance[l] : 1 / (double)result->layers));
    }
    app_put(root, "heads", heads);
    app_put(root, "importance", shares);
    fv_free(head);
    if (status == FV_OK) return app_json_write(root, path);
    json_decref(root);
    return status;
}
