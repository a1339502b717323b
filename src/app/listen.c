#include "app/listen.h"

#include <math.h>
#include <string.h>

#include "base/memory.h"
#include "base/npy.h"
#include "layers/layer.h"
#include "models/session.h"

/* ---- reading ---------------------------------------------------------------------------------------------------- */

/* How many tokens a probe reads. */
static fv_status fit(const probe_task *task, const app_prompt *prompt, fv_probing *p)
{
    int64_t wanted = fv_probing_common(p)->tokens;

    p->ctx = task->app->ctx;
    p->layers = task->info->layers;
    p->heads = task->info->query_heads;
    p->tokens = fv_min(prompt->count, wanted > 0 ? wanted : task->info->context);
    if (wanted > task->info->context)
        return fv_fail(FV_E_USAGE, "%s: tokens: expected at most %lld, which this model was trained for, got %lld",
                       p->probe->name, (long long)task->info->context, (long long)wanted);
    if (p->tokens >= 2) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: %s needs a text of at least 2 tokens, got %lld", task->file, p->probe->name,
                   (long long)prompt->count);
}

static fv_status read_text(const probe_task *task, fv_probing *probing, int count, const app_prompt *prompt,
                           fv_session *session, int64_t tokens)
{
    FV_TRY(fv_probing_begin(probing, count, &session->listeners));
    FV_TRY(fv_session_prompt(session, prompt->ids, tokens, NULL, 0));
    app_progress_end();
    if (tokens < prompt->count && tokens == task->info->context)
        app_say(task->app, "%s has %lld tokens: the first %lld are read, for which the model was trained", task->file,
                (long long)prompt->count, (long long)tokens);
    return fv_probing_end(probing, count);
}

fv_status listen_read(const probe_task *task, fv_probing *probing, int count, const app_prompt *prompt)
{
    fv_session_options options = {.precision = task->precision};
    fv_session *session;
    fv_status status;

    for (int n = 0; n < count; n++) {
        FV_TRY(fit(task, prompt, &probing[n]));
        options.context = fv_max(options.context, probing[n].tokens);
    }
    options.chunk = fv_probing_chunk(probing, count);
    if (options.chunk > 0) options.chunk = fv_max(options.chunk, 512);
    FV_TRY(fv_session_new(task->app->ctx, task->model, &options, &session));
    status = read_text(task, probing, count, prompt, session, options.context);
    fv_session_free(session);
    return status;
}

/* ---- what was heard --------------------------------------------------------------------------------------------- */

const char *listen_words(const fv_probe_field *field, double value)
{
    if (isnan(value)) return "-";
    if (*field->unit) return app_words(value >= 1000 ? "%.0f" : "%.3g", value);
    return app_words(value >= 0.0995 ? "%.0f %%" : "%.2g %%", 100 * value);
}

const char *listen_token(const probe_task *task, const app_prompt *prompt, int64_t position, size_t *length)
{
    size_t from = position > 0 ? (size_t)prompt->ends[position - 1] : 0;
    const char *name;

    *length = (size_t)prompt->ends[position] - from;
    if (*length == 0 && fv_model_piece(task->model, prompt->ids[position], &name, length) == FV_OK) return name;
    return prompt->text + from;
}

int64_t listen_keys(const fv_probing *p, listen_key *keys, int64_t most)
{
    int64_t found = 0, heads = 0;

    for (int64_t n = 0; n < p->layers * p->heads; n++)
        heads += !isnan(p->columns[n * p->tokens]);
    for (int64_t j = 0; j < p->tokens && heads > 0; j++) {
        listen_key own = {.position = j};
        int64_t at;
        for (int64_t n = 0; n < p->layers * p->heads; n++)
            if (!isnan(p->columns[n * p->tokens])) own.share += (double)p->columns[n * p->tokens + j] / (double)heads;
        for (at = found; at > 0 && own.share > keys[at - 1].share; at--)
            if (at < most) keys[at] = keys[at - 1];
        if (at < most) keys[at] = own;
        found = fv_min(found + (at < most), most);
    }
    for (int64_t n = 0; n < p->layers * p->heads * p->top; n++)
        for (int64_t k = 0; k < found; k++)
            keys[k].heads += p->key[n].position == keys[k].position;
    return found;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------- */

static void put_fields(json_t *object, const fv_probing *p, int64_t layer, int64_t head)
{
    for (int field = 0; p->probe->fields[field].name; field++)
        app_put(object, p->probe->fields[field].name, app_number(fv_probing_value(p, field, layer, head)));
}

static json_t *numbers_of(const fv_probing *p, int64_t layer, int64_t head)
{
    json_t *numbers = json_array();

    for (int field = 0; p->probe->fields[field].name; field++)
        app_append(numbers, app_number(fv_probing_value(p, field, layer, head)));
    return numbers;
}

/* What the layer of a probe's name gives as `y`: its numbers, of each head if they are of heads. */
static json_t *output_of(const fv_probing *p, int64_t layer)
{
    json_t *heads;

    if (p->probe->wants & FV_PROBE_BY_LAYER) return numbers_of(p, layer, -1);
    heads = json_array();
    for (int64_t h = 0; h < p->heads; h++)
        if (fv_selects(&fv_probing_common(p)->heads, h)) app_append(heads, numbers_of(p, layer, h));
    return heads;
}

static json_t *keys_of(const probe_task *task, const fv_probing *p, const app_prompt *prompt, int64_t layer,
                       int64_t head)
{
    const fv_probe_key *key = p->key + (layer * p->heads + head) * p->top;
    json_t *keys = json_array();

    for (int64_t t = 0; t < p->top && key[t].position >= 0; t++) {
        json_t *one = json_object();
        size_t length;
        const char *text = listen_token(task, prompt, key[t].position, &length);
        app_put(one, "position", json_integer(key[t].position));
        app_put(one, "share", app_number(key[t].share));
        app_put(one, "text", app_text(text, length));
        app_append(keys, one);
    }
    return keys;
}

static json_t *heads_of(const probe_task *task, const fv_probing *p, const app_prompt *prompt, int64_t layer)
{
    json_t *heads = json_array();

    for (int64_t h = 0; h < p->heads; h++) {
        json_t *head = json_object();
        if (!fv_selects(&fv_probing_common(p)->heads, h)) {
            json_decref(head);
            continue;
        }
        app_put(head, "head", json_integer(h));
        put_fields(head, p, layer, h);
        if (p->key) app_put(head, "keys", keys_of(task, p, prompt, layer, h));
        app_append(heads, head);
    }
    return heads;
}

json_t *listen_object(const probe_task *task, const fv_probing *p, const app_prompt *prompt)
{
    json_t *root = json_object(), *layers = json_array();

    for (int64_t l = 0; l < p->layers; l++) {
        json_t *layer;
        if (!fv_selects(&fv_probing_common(p)->layers, l)) continue;
        layer = json_object();
        app_put(layer, "layer", json_integer(l));
        app_put(layer, "window", json_integer(task->model->layers[l].window));
        put_fields(layer, p, l, -1);
        if (fv_layer_type_find(p->probe->name)) app_put(layer, "y", output_of(p, l));
        if (!(p->probe->wants & FV_PROBE_BY_LAYER)) app_put(layer, "heads", heads_of(task, p, prompt, l));
        app_append(layers, layer);
    }
    app_put(root, "probe", json_string(p->probe->name));
    app_put(root, "tokens", json_integer(p->tokens));
    app_put(root, "layers", layers);
    return root;
}

/* ---- words ------------------------------------------------------------------------------------------------------ */

static void put_name(app_table *table, const char *name)
{
    char words[32];
    size_t n = 0;

    for (; name[n] && n + 1 < sizeof words; n++)
        words[n] = (char)(name[n] >= 'a' && name[n] <= 'z' ? name[n] - 'a' + 'A' : name[n] == '_' ? ' ' : name[n]);
    words[n] = 0;
    app_table_cell(table, "%s", words);
}

/* The least or the most of a layer's heads, and which it is. */
static void put_extreme(app_table *table, const fv_probing *p, int field, int64_t layer, double sign)
{
    int64_t best = -1;

    for (int64_t h = 0; h < p->heads; h++) {
        double value = fv_probing_value(p, field, layer, h);
        if (!isnan(value) && (best < 0 || sign * value > sign * fv_probing_value(p, field, layer, best))) best = h;
    }
    if (best < 0)
        app_table_cell(table, "-");
    else
        app_table_cell(table, "%s (%lld)",
                       listen_words(&p->probe->fields[field], fv_probing_value(p, field, layer, best)),
                       (long long)best);
}

static fv_status print_table(const fv_probing *p)
{
    enum { MOST = 32 };
    static const bool left[MOST] = {false};
    bool by_layer = (p->probe->wants & FV_PROBE_BY_LAYER) != 0;
    int fields = fv_probe_fields(p->probe);
    app_table table = {.columns = 1 + fields * (by_layer ? 1 : 3), .left = left};

    app_table_cell(&table, "LAYER");
    for (int field = 0; field < fields; field++) {
        put_name(&table, p->probe->fields[field].name);
        if (by_layer) continue;
        app_table_cell(&table, "LEAST (HEAD)");
        app_table_cell(&table, "MOST (HEAD)");
    }
    for (int64_t l = 0; l < p->layers; l++) {
        if (!fv_selects(&fv_probing_common(p)->layers, l)) continue;
        app_table_cell(&table, "%lld", (long long)l);
        for (int field = 0; field < fields; field++) {
            app_table_cell(&table, "%s", listen_words(&p->probe->fields[field], fv_probing_value(p, field, l, -1)));
            if (by_layer) continue;
            put_extreme(&table, p, field, l, -1);
            put_extreme(&table, p, field, l, 1);
        }
    }
    return app_table_print(&table, stdout);
}

/* A token on one line: what would move the cursor is written as C does, the rest as it is. */
static void quote(const char *bytes, size_t length, char *words, size_t room)
{
    size_t used = 0;

    for (size_t at = 0; at < length && used + 8 < room;) {
        size_t one = (size_t)fv_utf8_length(bytes + at, length - at);
        unsigned char c = (unsigned char)bytes[at];
        if (!one || c < 32 || c == 127)
            used += (size_t)snprintf(words + used, room - used, c == '\n' ? "\\n" : c == '\t' ? "\\t" : "\\x%02x", c);
        else
            used += (size_t)snprintf(words + used, room - used, "%.*s", (int)one, bytes + at);
        at += one ? one : 1;
    }
    words[used] = 0;
}

static fv_status print_keys(const probe_task *task, const fv_probing *p, const app_prompt *prompt)
{
    enum { MOST = 12 };
    static const bool left[4] = {false, true, false, false};
    app_table table = {.columns = 4, .left = left};
    listen_key keys[MOST];
    int64_t count = listen_keys(p, keys, MOST);

    app_table_cell(&table, "KEY");
    app_table_cell(&table, "TEXT");
    app_table_cell(&table, "SHARE");
    app_table_cell(&table, "TOP KEY OF");
    for (int64_t n = 0; n < count; n++) {
        char words[64];
        size_t length;
        const char *text = listen_token(task, prompt, keys[n].position, &length);
        quote(text, length, words, sizeof words);
        app_table_cell(&table, "%lld", (long long)keys[n].position);
        app_table_cell(&table, "'%s'", words);
        app_table_cell(&table, "%s", listen_words(&p->probe->fields[0], keys[n].share));
        app_table_cell(&table, "%lld heads", (long long)keys[n].heads);
    }
    printf("\nThe keys with most attention over all heads:\n\n");
    return app_table_print(&table, stdout);
}

fv_status listen_print(const probe_task *task, const fv_probing *p, const app_prompt *prompt)
{
    FV_TRY(print_table(p));
    if (p->key) FV_TRY(print_keys(task, p, prompt));
    printf("\n%lld tokens. ", (long long)p->tokens);
    for (int field = 0; p->probe->fields[field].name; field++) {
        const fv_probe_field *own = &p->probe->fields[field];
        printf("%s%s%s%s: %s.", field ? " " : "", own->title, *own->unit ? ", " : "", own->unit, own->help);
    }
    printf("%s\n", p->probe->wants & FV_PROBE_BY_LAYER ? "" : " Of a layer: over all heads.");
    return FV_OK;
}

/* ---- files ------------------------------------------------------------------------------------------------------ */

/* [fields,layers,heads,bins], of layers [fields,layers]; without fields where there is but one. */
static fv_status write_bins(const fv_probing *p, const char *path)
{
    int fields = fv_probe_fields(p->probe);
    int64_t heads = p->probe->wants & FV_PROBE_BY_LAYER ? 1 : p->heads, count = fields * p->layers * heads * p->bins;
    const int64_t dims[] = {fields, p->layers, heads, p->bins};
    bool flat = (p->probe->wants & FV_PROBE_BY_LAYER) != 0;
    fv_tensor t;
    float *all;
    fv_status status;

    FV_TRY(FV_ALLOC(all, count));
    for (int64_t n = 0; n < count; n++)
        all[n] = (float)fv_probing_bin(p, (int)(n / (p->layers * heads * p->bins)), n / (heads * p->bins) % p->layers,
                                       n / p->bins % heads, n % p->bins);
    status = fv_tensor_wrap(&t, all, FV_F32, (flat ? 2 : 4) - (fields == 1), dims + (fields == 1));
    if (status == FV_OK) status = fv_npy_write(path, &t);
    fv_free(all);
    return status;
}

fv_status listen_write(const fv_probing *p)
{
    const char *path = fv_probing_common(p)->out;
    fv_tensor t;

    if (!*path) return FV_OK;
    if (!p->columns) return write_bins(p, path);
    FV_TRY(fv_tensor_wrap(&t, p->columns, FV_F32, FV_DIMS(p->layers, p->heads, p->tokens)));
    return fv_npy_write(path, &t);
}
