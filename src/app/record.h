/* What `fovea run` writes down for people who check a cache policy: the rows kept, and the scores behind each token. */
#ifndef APP_RECORD_H
#define APP_RECORD_H

#include "app/prompt.h"

/* Positions held, [layers][key-value heads][..], as JSON. */
typedef struct app_record {
    const char *kept_path, *logits_path; /* NULL: not asked for */
    FILE *rows;                          /* logits so far, in a file without a name */
    int64_t vocabulary, count;
    json_t *prefill; /* kept right after the prompt */
} app_record;

fv_status app_record_begin(app_record *record, int64_t vocabulary);
void app_record_end(app_record *record);

/* Right after the prompt. */
fv_status app_record_prompt(app_record *record, const fv_session *session, const fv_model_info *info);
/* A row that a token was chosen from: what fv_generate_options.row wants. */
fv_status app_record_row(void *user, int64_t index, int64_t rows, const float *logits);

/* Writes both files: `ids` are all that were fed, the prompt's first. */
fv_status app_record_write(app_record *record, const fv_session *session, const fv_model_info *info, const char *model,
                           const char *cache, const int32_t *prompt, int64_t prompt_tokens, const int32_t *fed,
                           int64_t fed_tokens);

#endif
