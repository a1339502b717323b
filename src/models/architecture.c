#include "models/architecture.h"

#include <stdio.h>

/* LLaMA (arXiv 2302.13971), Qwen2 (2407.10671), Qwen3 (2505.09388), Gemma 2 (2408.00118), Gemma 3 (2503.19786).
 * Files of LLaMA models carry q and k with their channels permuted for interleaved rope. */
static const fv_architecture architectures[] = {
    {.name = "llama", .title = "LLaMA and its kin (Mistral, SmolLM)", .parts = FV_INTERLEAVED},
    {.name = "qwen2", .title = "Qwen 2", .parts = FV_QKV_BIAS},
    {.name = "qwen3", .title = "Qwen 3", .parts = FV_HEAD_NORMS},
    {.name = "gemma2",
     .title = "Gemma 2",
     .parts = FV_POST_NORMS | FV_GELU | FV_SCALED_EMBEDDING,
     .window_period = 2,
     .window_default = 4096,
     .attention_cap = 50,
     .final_cap = 30,
     .wide_scale_layers = 46},
    {.name = "gemma3",
     .title = "Gemma 3",
     .parts = FV_HEAD_NORMS | FV_POST_NORMS | FV_GELU | FV_SCALED_EMBEDDING,
     .window_period = 6,
     .window_base = 10000,
     .window_default = 1024,
     .wide_scale_layers = 62},
};
enum { ARCHITECTURES = sizeof architectures / sizeof *architectures };

const fv_architecture *fv_architecture_at(int index)
{
    return index >= 0 && index < ARCHITECTURES ? &architectures[index] : NULL;
}

fv_status fv_architecture_find(const char *file, const char *name, int64_t length, const fv_architecture **found)
{
    char known[256] = "";

    for (int a = 0; a < ARCHITECTURES; a++) {
        size_t used = strlen(known);
        *found = &architectures[a];
        if (strlen((*found)->name) == (size_t)length && memcmp((*found)->name, name, (size_t)length) == 0) return FV_OK;
        snprintf(known + used, sizeof known - used, "%s%s", a ? ", " : "", (*found)->name);
    }
    *found = NULL;
    return fv_fail(FV_E_UNSUPPORTED, "%s: architecture: expected one of %s, got '%.*s'", file, known,
                   (int)fv_min(length, 60), name);
}
