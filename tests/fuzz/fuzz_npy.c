/* Any bytes as a .npy file: a tensor all of which can be read, or a sentence. */
#include "fuzz/fuzz.h"

#include "base/memory.h"
#include "base/npy.h"

static volatile double fuzz_kept; /* so that what is read is not optimised away */

int fuzz_npy(const uint8_t *data, size_t size)
{
    fv_tensor tensor;
    void *owned = NULL;
    double sum = 0;

    if (fv_npy_parse("fuzz.npy", data, size, &tensor, &owned) == FV_OK) {
        int64_t count = fv_tensor_count(&tensor);
        PROMISE(count >= 0 && (size_t)count <= size); /* each element has bytes in the file */
        for (int64_t i = 0; i < count; i++)
            sum += fv_load(tensor.dtype, tensor.data, i);
        fuzz_kept = sum;
    } else {
        PROMISE(*fv_error());
    }
    fv_free(owned);
    return 0;
}

FUZZ_TARGET(fuzz_npy)
