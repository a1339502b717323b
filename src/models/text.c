/* The public text functions of a model: its tokenizer's, and its file's chat template. */
#include "models/chat.h"
#include "models/model.h"
#include "models/tokenizer.h"

static fv_status need_tokenizer(const fv_model *model)
{
    if (model->tokenizer) return FV_OK;
    return fv_fail(FV_E_UNSUPPORTED,
                   "%s: the file has no tokenizer (key 'tokenizer.ggml.model'): it takes token ids only",
                   fv_gguf_name(model->file));
}

fv_status fv_model_tokenize(const fv_model *model, const char *text, size_t length, unsigned flags, int32_t **ids,
                            int64_t *count)
{
    FV_TRY(need_tokenizer(model));
    return fv_tokenizer_encode(model->tokenizer, text, length, flags, ids, NULL, count);
}

fv_status fv_model_tokenize_spans(const fv_model *model, const char *text, size_t length, unsigned flags, int32_t **ids,
                                  int64_t **ends, int64_t *count)
{
    FV_TRY(need_tokenizer(model));
    return fv_tokenizer_encode(model->tokenizer, text, length, flags, ids, ends, count);
}

fv_status fv_model_piece(const fv_model *model, int32_t id, const char **bytes, size_t *length)
{
    FV_TRY(need_tokenizer(model));
    return fv_tokenizer_piece(model->tokenizer, id, bytes, length);
}

fv_status fv_model_detokenize(const fv_model *model, const int32_t *ids, int64_t count, char **text, size_t *length)
{
    FV_TRY(need_tokenizer(model));
    return fv_tokenizer_decode(model->tokenizer, ids, count, text, length);
}

bool fv_model_is_special(const fv_model *model, int32_t id)
{
    return model->tokenizer && fv_tokenizer_is_special(model->tokenizer, id);
}

bool fv_model_is_end(const fv_model *model, int32_t id)
{
    return model->tokenizer && fv_tokenizer_is_end(model->tokenizer, id);
}

int32_t fv_model_begin_token(const fv_model *model)
{
    return model->tokenizer ? fv_tokenizer_begin(model->tokenizer) : -1;
}

bool fv_model_adds_begin(const fv_model *model)
{
    return model->tokenizer && fv_tokenizer_adds_begin(model->tokenizer);
}

static fv_status chat_template(const fv_model *model, fv_gguf_text *jinja)
{
    FV_TRY(need_tokenizer(model));
    FV_TRY(fv_gguf_string(model->file, "tokenizer.chat_template", jinja));
    if (jinja->length > 0) return FV_OK;
    return fv_fail(FV_E_UNSUPPORTED, "%s: the file has no chat template: give the prompt as it is, with --raw",
                   fv_gguf_name(model->file));
}

fv_status fv_model_chat(const fv_model *model, const char *system, const char *user, char **text, size_t *length,
                        size_t *user_at)
{
    fv_gguf_text jinja = {0};

    FV_TRY(chat_template(model, &jinja));
    return fv_chat_render(fv_gguf_name(model->file), jinja, model->tokenizer, system, user, text, length, user_at);
}

fv_status fv_model_chat_messages(const fv_model *model, const fv_chat_message *messages, int64_t count, char **text,
                                 size_t *length)
{
    fv_gguf_text jinja = {0};

    FV_TRY(chat_template(model, &jinja));
    return fv_chat_messages(fv_gguf_name(model->file), jinja, model->tokenizer, messages, count, text, length);
}

fv_status fv_model_chat_next(const fv_model *model, const char *user, char **text, size_t *length)
{
    fv_gguf_text jinja = {0};

    FV_TRY(chat_template(model, &jinja));
    return fv_chat_follow(fv_gguf_name(model->file), jinja, model->tokenizer, user, text, length);
}
