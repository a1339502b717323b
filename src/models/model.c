/* Opening a model: the file, its numbers, its weights. */
#include "models/model.h"
#include "models/tokenizer.h"

static fv_status copy_text(fv_gguf_text text, char **copy)
{
    FV_TRY(FV_ALLOC(*copy, text.length + 1));
    if (text.length) memcpy(*copy, text.data, (size_t)text.length);
    (*copy)[text.length] = 0;
    return FV_OK;
}

/* A file without a tokenizer takes ids only.  Ids and rows of the embedding must be the same set. */
static fv_status read_tokenizer(fv_model *model)
{
    if (!fv_gguf_has(model->file, "tokenizer.ggml.model")) return FV_OK;
    FV_TRY(fv_tokenizer_new(model->file, &model->tokenizer));
    if (fv_tokenizer_count(model->tokenizer) == model->sizes.vocabulary) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: tensor 'token_embd.weight' has %lld rows, but the tokenizer has %lld pieces",
                   fv_gguf_name(model->file), (long long)model->sizes.vocabulary,
                   (long long)fv_tokenizer_count(model->tokenizer));
}

static fv_status open_model(const char *path, fv_model *model)
{
    fv_gguf_text architecture = {0}, name = {0};

    FV_TRY(fv_arena_new(&model->memory));
    FV_TRY(fv_gguf_open(path, &model->file));
    FV_TRY(fv_gguf_require(model->file, "general.architecture"));
    FV_TRY(fv_gguf_string(model->file, "general.architecture", &architecture));
    FV_TRY(fv_gguf_string(model->file, "general.name", &name));
    FV_TRY(copy_text(name, &model->name));
    FV_TRY(fv_architecture_find(path, architecture.data, architecture.length, &model->architecture));
    FV_TRY(fv_model_read_sizes(model));
    FV_TRY(fv_model_read_weights(model));
    return read_tokenizer(model);
}

fv_status fv_model_open(const char *path, fv_model **model)
{
    fv_model *m;

    *model = NULL;
    FV_TRY(FV_ZALLOC(m, 1));
    pthread_mutex_init(&m->mutex, NULL);
    fv_status status = open_model(path, m);
    if (status == FV_OK)
        *model = m;
    else
        fv_model_close(m);
    return status;
}

void fv_model_close(fv_model *model)
{
    if (!model) return;
    fv_model_unpack(model);
    pthread_mutex_destroy(&model->mutex);
    fv_tokenizer_free(model->tokenizer);
    fv_free(model->layers);
    fv_free(model->name);
    fv_arena_free(model->memory);
    fv_gguf_close(model->file);
    fv_free(model);
}

void fv_model_describe(const fv_model *model, fv_model_info *info)
{
    const fv_sizes *s = &model->sizes;

    *info = (fv_model_info){.architecture = model->architecture->name,
                            .name = model->name,
                            .layers = s->layers,
                            .query_heads = s->query_heads,
                            .key_heads = s->key_heads,
                            .head_dim = s->key_dim,
                            .width = s->width,
                            .vocabulary = s->vocabulary,
                            .context = s->context,
                            .parameters = model->parameters,
                            .weight_bytes = model->weight_bytes,
                            .has_chat_template = fv_gguf_has(model->file, "tokenizer.chat_template")};
}
