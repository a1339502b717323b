#include "cache/plan_file.h"

#include <math.h>

#include "base/file.h"
#include "base/memory.h"

fv_status fv_plan_file_open(const char *path, json_t **root)
{
    json_error_t error;
    char *text;
    size_t length;

    *root = NULL;
    FV_TRY(fv_file_read(path, &text, &length));
    *root = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    fv_free(text);
    if (!*root)
        return fv_fail(FV_E_FORMAT, "%s: is not JSON: line %d, column %d: %s", path, error.line, error.column,
                       error.text);
    if (json_is_object(*root)) return FV_OK;
    json_decref(*root);
    *root = NULL;
    return fv_fail(FV_E_FORMAT, "%s: expected a JSON object at the top", path);
}

fv_status fv_plan_file_array(const char *path, const json_t *root, const char *key, int64_t count, const json_t **array)
{
    *array = json_object_get(root, key);
    if (!*array) return fv_fail(FV_E_FORMAT, "%s: '%s' is missing", path, key);
    if (!json_is_array(*array)) return fv_fail(FV_E_FORMAT, "%s: '%s': expected an array", path, key);
    if (count < 0 || (int64_t)json_array_size(*array) == count) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: '%s': expected %lld items, got %zu", path, key, (long long)count,
                   json_array_size(*array));
}

fv_status fv_plan_file_row(const char *path, const char *where, const json_t *array, int64_t index, int64_t least,
                           int64_t most, const json_t **row)
{
    int64_t count;

    *row = json_array_get(array, (size_t)index);
    if (!json_is_array(*row))
        return fv_fail(FV_E_FORMAT, "%s: %s[%lld]: expected an array", path, where, (long long)index);
    count = (int64_t)json_array_size(*row);
    if (count >= least && count <= most) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: %s[%lld]: expected %lld to %lld items, got %lld", path, where, (long long)index,
                   (long long)least, (long long)most, (long long)count);
}

fv_status fv_plan_file_number(const char *path, const char *where, const json_t *array, int64_t index, double low,
                              double high, double *number)
{
    const json_t *item = json_array_get(array, (size_t)index);

    *number = json_number_value(item);
    if (json_is_number(item) && isfinite(*number) && *number >= low && *number <= high) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: %s[%lld]: expected a number of %g to %g", path, where, (long long)index, low,
                   high);
}

fv_status fv_plan_file_integer(const char *path, const char *where, const json_t *array, int64_t index, int64_t low,
                               int64_t high, int64_t *number)
{
    const json_t *item = json_array_get(array, (size_t)index);

    *number = json_integer_value(item);
    if (json_is_integer(item) && *number >= low && *number <= high) return FV_OK;
    return fv_fail(FV_E_FORMAT, "%s: %s[%lld]: expected a whole number of %lld to %lld", path, where, (long long)index,
                   (long long)low, (long long)high);
}
