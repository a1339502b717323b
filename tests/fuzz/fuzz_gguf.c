/* Any bytes as a GGUF file and as a model: all of it can be read and run, or there is a sentence. */
#define _GNU_SOURCE /* memfd_create */
#include "fuzz/fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "base/memory.h"
#include "fovea/fovea.h"
#include "models/tokenizer.h"

static volatile unsigned fuzz_kept; /* so that what is read is not optimised away */

/* Every byte that tensors and strings claim is there. */
static void read_all(const fv_gguf *gguf)
{
    unsigned sum = 0;
    fv_gguf_text *texts = NULL;
    int64_t count = 0;

    for (int64_t i = 0; i < fv_gguf_tensors(gguf); i++) {
        const fv_gguf_tensor *t = fv_gguf_tensor_at(gguf, i);
        for (size_t b = 0; b < t->bytes; b++)
            sum += ((const unsigned char *)t->tensor.data)[b];
    }
    if (fv_gguf_strings(gguf, "tokenizer.ggml.tokens", &texts, &count) == FV_OK)
        for (int64_t i = 0; i < count; i++)
            for (int64_t b = 0; b < texts[i].length; b++)
                sum += (unsigned char)texts[i].data[b];
    fv_free(texts);
    fuzz_kept = sum;
}

static void tokenize(const fv_tokenizer *t, const uint8_t *data, size_t size)
{
    int32_t *ids;
    int64_t *ends, count;
    char *text;
    size_t length = size < 64 ? size : 64;
    unsigned flags = FV_TOKENIZE_SPECIAL | FV_TOKENIZE_MODEL;

    if (fv_tokenizer_encode(t, (const char *)data + size - length, length, flags, &ids, &ends, &count) != FV_OK &&
        fv_tokenizer_encode(t, "a b\n12 <s>", 10, flags, &ids, &ends, &count) != FV_OK)
        return;
    PROMISE(fv_tokenizer_decode(t, ids, count, &text, &length) == FV_OK);
    fv_free(text);
    fv_free(ids);
    fv_free(ends);
}

static void run(const fv_model *model)
{
    fv_session_options options = {.context = 8};
    fv_model_info info;
    fv_ctx *ctx;
    fv_session *session;
    float *logits = NULL;
    char *text;
    size_t length, user_at;

    fv_model_describe(model, &info);
    if (fv_model_chat(model, NULL, "hi", &text, &length, &user_at) == FV_OK) {
        PROMISE(user_at <= length);
        fv_free(text);
    }
    if (fv_ctx_new(&(fv_ctx_options){.threads = 1}, &ctx) != FV_OK) return;
    if (fv_session_new(ctx, model, &options, &session) == FV_OK) {
        int32_t ids[2] = {0, (int32_t)info.vocabulary - 1};
        if (FV_ALLOC(logits, info.vocabulary) == FV_OK) fv_session_feed(session, ids, 2, logits, 1);
        fv_free(logits);
        fv_session_free(session);
    }
    fv_ctx_free(ctx);
}

static void open_model(const uint8_t *data, size_t size)
{
    char path[64];
    fv_model *model;
    int file = memfd_create("fuzz", 0);

    if (file < 0) return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    if (write(file, data, size) == (ssize_t)size) {
        if (fv_model_open(path, &model) == FV_OK) {
            run(model);
            fv_model_close(model);
        } else {
            PROMISE(*fv_error());
        }
    }
    close(file);
}

int fuzz_gguf(const uint8_t *data, size_t size)
{
    unsigned char *aligned = NULL;
    fv_gguf *gguf;
    fv_tokenizer *tokenizer;

    if (FV_ALLOC(aligned, (int64_t)size) != FV_OK) return 0;
    if (size) memcpy(aligned, data, size);
    if (fv_gguf_parse("fuzz.gguf", aligned, size, &gguf) == FV_OK) {
        read_all(gguf);
        if (fv_tokenizer_new(gguf, &tokenizer) == FV_OK) {
            tokenize(tokenizer, data, size);
            fv_tokenizer_free(tokenizer);
        }
        fv_gguf_close(gguf);
        open_model(data, size);
    } else {
        PROMISE(*fv_error());
    }
    fv_free(aligned);
    return 0;
}

FUZZ_TARGET(fuzz_gguf)
