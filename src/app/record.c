#define _GNU_SOURCE
#include "app/record.h"

#include <errno.h>
#include <string.h>

#include "base/npy.h"

fv_status app_record_begin(app_record *record, int64_t vocabulary)
{
    record->vocabulary = vocabulary;
    record->count = 0;
    if (!record->logits_path) return FV_OK;
    return app_file_unnamed(&record->rows);
}

void app_record_end(app_record *record)
{
    if (record->rows) fclose(record->rows);
    json_decref(record->prefill);
    record->rows = NULL;
    record->prefill = NULL;
}

/* ---- rows kept -------------------------------------------------------------------------------------------------- */

typedef const int32_t *positions_fn(const fv_session *session, int64_t layer, int64_t head, int64_t *count);

static json_t *positions(const fv_session *session, const fv_model_info *info, positions_fn *of)
{
    json_t *layers = json_array();

    for (int64_t l = 0; l < info->layers; l++) {
        json_t *heads = json_array();
        for (int64_t g = 0; g < info->key_heads; g++) {
            int64_t count;
            const int32_t *at = of(session, l, g, &count);
            if (!at) at = fv_session_positions(session, l, g, &count);
            app_append(heads, app_ids(at, count));
        }
        app_append(layers, heads);
    }
    return layers;
}

fv_status app_record_prompt(app_record *record, const fv_session *session, const fv_model_info *info)
{
    if (record->kept_path) record->prefill = positions(session, info, fv_session_positions);
    return FV_OK;
}

static json_t *kept(const fv_session *session, const fv_model_info *info, bool steps)
{
    json_t *end = json_object();

    app_put(end, "kept", positions(session, info, fv_session_positions));
    app_put(end, "selected",
            steps && fv_session_selects(session) ? positions(session, info, fv_session_selected) : json_null());
    return end;
}

static fv_status write_kept(app_record *record, const fv_session *session, const fv_model_info *info, const char *model,
                            const char *cache, const int32_t *prompt, int64_t prompt_tokens, const int32_t *fed,
                            int64_t fed_tokens)
{
    json_t *root = json_object(), *prefill = json_object(), *heads = json_array(),
           *ids = app_ids(prompt, prompt_tokens);
    json_t *more = app_ids(fed, fed_tokens);

    json_array_extend(ids, more);
    json_decref(more);
    for (int64_t l = 0; l < info->layers; l++)
        app_append(heads, json_integer(info->key_heads));
    app_put(prefill, "kept", json_incref(record->prefill));
    app_put(root, "policy", json_string(cache ? cache : "full"));
    app_put(root, "model", json_string(model));
    app_put(root, "layers", json_integer(info->layers));
    app_put(root, "kv_heads", heads);
    app_put(root, "prompt_tokens", json_integer(prompt_tokens));
    app_put(root, "positions", json_integer(prompt_tokens + fed_tokens));
    app_put(root, "ids", ids);
    app_put(root, "renumbered", json_boolean(fv_session_renumbers(session)));
    app_put(root, "prefill", prefill);
    app_put(root, "end", kept(session, info, fed_tokens > 0));
    return app_json_write(root, record->kept_path);
}

/* ---- scores behind tokens --------------------------------------------------------------------------------------- */

fv_status app_record_row(void *user, int64_t index, int64_t rows, const float *logits)
{
    app_record *record = user;
    size_t count = (size_t)(rows * record->vocabulary);

    (void)index;
    if (!record->rows) return FV_OK;
    if (fwrite(logits, sizeof *logits, count, record->rows) != count)
        return fv_fail(FV_E_IO, "temporary file: %s (TMPDIR says where it lies)", strerror(errno));
    record->count += rows;
    return FV_OK;
}

static fv_status copy_rows(const app_record *record, FILE *to)
{
    char block[1 << 16];
    size_t count;

    rewind(record->rows);
    while ((count = fread(block, 1, sizeof block, record->rows)) > 0)
        if (fwrite(block, 1, count, to) != count)
            return fv_fail(FV_E_IO, "%s: cannot be written: %s", record->logits_path, strerror(errno));
    return ferror(record->rows) ? fv_fail(FV_E_IO, "temporary file: cannot be read: %s", strerror(errno)) : FV_OK;
}

static fv_status write_logits(const app_record *record)
{
    fv_file_out out;
    fv_status status;

    FV_TRY(fv_npy_begin(record->logits_path, FV_F32, FV_DIMS(record->count, record->vocabulary), &out));
    status = copy_rows(record, out.stream);
    if (status == FV_OK) return fv_file_commit(&out);
    fv_file_discard(&out);
    return status;
}

fv_status app_record_write(app_record *record, const fv_session *session, const fv_model_info *info, const char *model,
                           const char *cache, const int32_t *prompt, int64_t prompt_tokens, const int32_t *fed,
                           int64_t fed_tokens)
{
    if (record->logits_path) FV_TRY(write_logits(record));
    if (!record->kept_path) return FV_OK;
    return write_kept(record, session, info, model, cache, prompt, prompt_tokens, fed, fed_tokens);
}
