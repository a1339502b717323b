/* Fuzz targets.  Each is a function of bytes, linked twice: with libFuzzer (cmake/fuzz.cmake), and into test_seeds,
 * which runs every file of tests/fuzz/seeds through it in ordinary test runs. */
#ifndef FV_FUZZ_H
#define FV_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fuzz_gguf(const uint8_t *data, size_t size);
int fuzz_npy(const uint8_t *data, size_t size);
int fuzz_request(const uint8_t *data, size_t size);
int fuzz_safetensors(const uint8_t *data, size_t size);
int fuzz_spec(const uint8_t *data, size_t size);
int fuzz_tokenizer(const uint8_t *data, size_t size);

#ifdef FOVEA_FUZZ_TARGET
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
#define FUZZ_TARGET(function)                                                                                          \
    int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)                                                       \
    {                                                                                                                  \
        return function(data, size);                                                                                   \
    }
#else
#define FUZZ_TARGET(function)
#endif

/* A promise: the run ends, loudly, where it is broken. */
#define PROMISE(condition)                                                                                             \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: broken promise: %s\n", __FILE__, __LINE__, #condition);                            \
            abort();                                                                                                   \
        }                                                                                                              \
    } while (0)

#endif
