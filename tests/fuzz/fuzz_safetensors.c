/* Any bytes as a safetensors file: tensors all of which can be read and whose bytes are all of the data, or a
 * sentence. */
#include "fuzz/fuzz.h"

#include "base/memory.h"
#include "models/safetensors.h"

static volatile double fuzz_kept; /* so that what is read is not optimised away */

static void check_tensor(const fv_safetensors *f, const fv_safetensor *t)
{
    fv_tensor copy;
    void *owned;
    double sum = 0;

    PROMISE(fv_safetensors_find(f, t->name) == t);
    PROMISE(strlen(t->name) <= FV_SAFETENSORS_NAME);
    if (fv_safetensors_copy(t, &copy, &owned) != FV_OK) return;
    PROMISE((size_t)fv_tensor_count(&copy) * fv_dtype_size(copy.dtype) == t->bytes);
    for (int64_t i = 0; i < fv_tensor_count(&copy); i++)
        sum += fv_load(copy.dtype, copy.data, i);
    fuzz_kept = sum;
    fv_free(owned);
}

int fuzz_safetensors(const uint8_t *data, size_t size)
{
    fv_safetensors *f;
    size_t bytes = 0, header = 0;

    if (fv_safetensors_parse("fuzz.safetensors", data, size, &f) != FV_OK) {
        PROMISE(!f && *fv_error());
        return 0;
    }
    for (int64_t i = 0; i < fv_safetensors_count(f); i++) {
        check_tensor(f, fv_safetensors_at(f, i));
        bytes += fv_safetensors_at(f, i)->bytes;
    }
    memcpy(&header, data, sizeof header);
    PROMISE(8 + header + bytes == size);
    fuzz_kept = fv_safetensors_note(f, "format") != NULL;
    fv_safetensors_close(f);
    return 0;
}

FUZZ_TARGET(fuzz_safetensors)
