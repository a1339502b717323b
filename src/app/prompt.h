/* Prompts for models: FILE and TEXT as one message or as they are, in tokens that know their place in the text. */
#ifndef APP_PROMPT_H
#define APP_PROMPT_H

#include "app/app.h"

typedef struct app_prompt {
    char *text; /* as the model sees it */
    size_t length;
    int32_t *ids;
    int64_t *ends; /* byte offset in text where each id's text ends */
    int64_t count;
    size_t document_at, document_end; /* where FILE's text (without FILE: TEXT) stands in text */
    bool chat;
} app_prompt;

/* Opens a model; failures name the file. */
fv_status app_model_open(const char *path, fv_model **model, fv_model_info *info);

/* A whole file as text; FV_E_FORMAT names the offset of what is not UTF-8 and refuses an empty file. */
fv_status app_text_read(const char *path, char **text, size_t *length);

/* With a chat template in the model and not raw: FILE, a blank line and TEXT as one user message; otherwise FILE, then
 * TEXT, as they are.  file and text may be NULL (not both).  *release with app_prompt_free. */
fv_status app_prompt_make(const fv_model *model, const char *file, const char *text, bool raw, app_prompt *prompt);
/* The same from bytes in memory. */
fv_status app_prompt_from(const fv_model *model, const char *document, size_t length, const char *text, bool raw,
                          app_prompt *prompt);
/* Says on standard error that a model without a chat template reads the text as it is. */
void app_prompt_note(const struct app *app, const app_prompt *prompt, bool raw);
void app_prompt_free(app_prompt *prompt);

/* The context to use: `asked` (CLI_UNSET: the model's own).  FV_E_SHAPE when the prompt and `room` more tokens do not
 * fit: says how much of the document would. */
fv_status app_prompt_fit(const app_prompt *prompt, const fv_model_info *info, int64_t asked, int64_t room,
                         int64_t *context);

/* Tokens a second of an answer and `more` single tokens fed in `seconds`.  The last token of an answer that ended at
 * its limit was never fed. */
double app_decode_rate(const fv_generation *answer, int64_t more, double seconds);

/* Whether a bare SPEC names a cache policy (and no attention). */
bool app_names_cache(const char *spec);
/* --steer: none is registered yet.  FV_E_USAGE for any. */
fv_status app_refuse_steer(const char *spec);

#endif
