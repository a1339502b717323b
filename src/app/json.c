#include "app/app.h"

#include <errno.h>
#include <string.h>

#include "base/file.h"

static bool failed;

void app_put(json_t *object, const char *key, json_t *value)
{
    if (json_object_set_new(object, key, value) != 0) failed = true;
}

void app_append(json_t *array, json_t *value)
{
    if (json_array_append_new(array, value) != 0) failed = true;
}

json_t *app_number(double value)
{
    json_t *number = json_real(value);

    return number ? number : json_null();
}

json_t *app_text(const char *bytes, size_t length)
{
    fv_text text = {0};
    json_t *string;

    for (size_t at = 0; at < length;) {
        size_t one = (size_t)fv_utf8_length(bytes + at, length - at);
        if (one)
            fv_text_add(&text, bytes + at, (int64_t)one);
        else
            fv_text_add(&text, "\xef\xbf\xbd", 3);
        at += one ? one : 1;
    }
    string = fv_text_status(&text) == FV_OK ? json_stringn(fv_text_get(&text), (size_t)text.length) : NULL;
    fv_text_free(&text);
    return string;
}

json_t *app_ids(const int32_t *ids, int64_t count)
{
    json_t *array = json_array();

    for (int64_t i = 0; i < count; i++)
        app_append(array, json_integer(ids[i]));
    return array;
}

fv_status app_json_print(json_t *root)
{
    fv_status status = FV_OK;

    if (!root || failed)
        status = fv_fail(FV_E_MEMORY, "out of memory while writing JSON");
    else if (json_dumpf(root, stdout, JSON_REAL_PRECISION(9)) == 0)
        putchar('\n');
    json_decref(root);
    return status; /* what standard output says is asked at the end */
}

fv_status app_json_write(json_t *root, const char *path)
{
    fv_file_out out;
    fv_status status = failed ? fv_fail(FV_E_MEMORY, "out of memory while writing JSON") : fv_file_create(path, &out);

    if (status == FV_OK && (json_dumpf(root, out.stream, JSON_COMPACT) != 0 || fputc('\n', out.stream) == EOF)) {
        status = fv_fail(FV_E_IO, "%s: cannot be written: %s", path, strerror(errno));
        fv_file_discard(&out);
    } else if (status == FV_OK) {
        status = fv_file_commit(&out);
    }
    json_decref(root);
    return status;
}
