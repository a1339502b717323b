/* Runs every file of tests/fuzz/seeds/TARGET, whole, cut short and with flipped bits, through its fuzz target. */
#include "support/support.h"

#include <dirent.h>

#include "base/file.h"
#include "base/memory.h"
#include "fuzz/fuzz.h"

static void run_file(int (*target)(const uint8_t *, size_t), const char *path, fv_random *random)
{
    char *bytes;
    size_t size;

    assert_ok(fv_file_read(path, &bytes, &size));
    target((const uint8_t *)bytes, size);
    for (int i = 0; i < 40 && size > 0; i++) {
        size_t at = (size_t)fv_random_below(random, (int64_t)size);
        char kept = bytes[at];
        target((const uint8_t *)bytes, at);
        bytes[at] = (char)(kept ^ 1 << fv_random_below(random, 8));
        target((const uint8_t *)bytes, size);
        if (i % 2) bytes[at] = kept;
    }
    fv_free(bytes);
}

static void run_seeds(const char *name, int (*target)(const uint8_t *, size_t))
{
    fv_random random = fv_random_new(test_seed(), 1);
    char path[4096], file[8192];
    struct dirent *entry;
    int count = 0;

    snprintf(path, sizeof path, "%s/tests/fuzz/seeds/%s", FOVEA_SOURCE_DIR, name);
    DIR *folder = opendir(path);
    if (!folder) fail_msg("%s is missing", path);
    while ((entry = readdir(folder))) {
        if (entry->d_name[0] == '.') continue;
        snprintf(file, sizeof file, "%s/%s", path, entry->d_name);
        run_file(target, file, &random);
        count++;
    }
    closedir(folder);
    target((const uint8_t *)"", 0);
    assert_true(count >= 4);
}

static void test_gguf_seeds(void **state)
{
    (void)state;
    run_seeds("gguf", fuzz_gguf);
}

static void test_npy_seeds(void **state)
{
    (void)state;
    run_seeds("npy", fuzz_npy);
}

static void test_request_seeds(void **state)
{
    (void)state;
    run_seeds("request", fuzz_request);
}

static void test_safetensors_seeds(void **state)
{
    (void)state;
    run_seeds("safetensors", fuzz_safetensors);
}

static void test_spec_seeds(void **state)
{
    (void)state;
    run_seeds("spec", fuzz_spec);
}

static void test_tokenizer_seeds(void **state)
{
    (void)state;
    run_seeds("tokenizer", fuzz_tokenizer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gguf_seeds),    cmocka_unit_test(test_npy_seeds),
        cmocka_unit_test(test_request_seeds), cmocka_unit_test(test_safetensors_seeds),
        cmocka_unit_test(test_spec_seeds),    cmocka_unit_test(test_tokenizer_seeds),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
