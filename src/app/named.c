/* Tensors that flags name: --param NAME=FILE and the like. */
#include "app/app.h"

#include <string.h>

#include "base/memory.h"
#include "base/npy.h"
#include "base/options.h"

static fv_status take_apart(const char *flag, const char *text, app_named *named, int i)
{
    const char *equals = strchr(text, '=');

    if (!equals || equals == text || !equals[1])
        return fv_fail(FV_E_USAGE, "--%s: expected NAME=FILE, got '%s'", flag, text);
    int64_t length = equals - text;
    FV_TRY(FV_ZALLOC(named->names[i], length + 1));
    memcpy(named->names[i], text, (size_t)length);
    named->named[i].name = named->names[i];
    named->files[i] = equals + 1;
    for (int other = 0; other < i; other++)
        if (strcmp(named->names[other], named->names[i]) == 0)
            return fv_fail(FV_E_USAGE, "--%s: '%s' is given twice", flag, named->names[i]);
    return FV_OK;
}

fv_status app_named_begin(const char *flag, const cli_texts *texts, app_named *named)
{
    *named = (app_named){0};
    FV_TRY(FV_ZALLOC(named->names, texts->count));
    named->count = texts->count;
    FV_TRY(FV_ZALLOC(named->files, texts->count));
    FV_TRY(FV_ZALLOC(named->tensors, texts->count));
    FV_TRY(FV_ZALLOC(named->named, texts->count));
    for (int i = 0; i < texts->count; i++)
        FV_TRY(take_apart(flag, texts->items[i], named, i));
    return FV_OK;
}

void app_named_free(app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        fv_free(named->names[i]);
        if (named->tensors) app_tensor_free(&named->tensors[i]);
    }
    fv_free(named->names);
    fv_free(named->files);
    fv_free(named->tensors);
    fv_free(named->named);
    *named = (app_named){0};
}

fv_status app_named_read(const fv_param *table, app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        const fv_param *param = table;
        while (strcmp(param->name, named->names[i]) != 0)
            param++;
        FV_TRY(app_tensor_read_as(named->files[i], param->dtype, &named->tensors[i]));
        named->named[i].tensor = named->tensors[i].t;
    }
    return FV_OK;
}

fv_status app_named_make(app_named *named, int i, const fv_tensor *shape)
{
    FV_TRY(app_tensor_new(&named->tensors[i], shape->dtype, shape->rank, shape->dims));
    named->named[i].tensor = named->tensors[i].t;
    return FV_OK;
}

static const char *name_at(const void *user, int index)
{
    return ((const app_named *)user)->names[index];
}

fv_status app_named_like(const char *flag, const char *given_flag, const app_named *given, app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        int of = 0;
        while (of < given->count && strcmp(given->names[of], named->names[i]) != 0)
            of++;
        if (of == given->count) {
            const char *near = fv_nearest(named->names[i], given->count, name_at, given);
            return fv_fail(FV_E_USAGE, "%s %s: expected a tensor given with %s%s%s%s", flag, named->names[i],
                           given_flag, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
        }
        FV_TRY(app_named_make(named, i, &given->tensors[of].t));
    }
    return FV_OK;
}

fv_status app_named_write(const app_named *named)
{
    for (int i = 0; i < named->count; i++)
        FV_TRY(fv_npy_write(named->files[i], &named->tensors[i].t));
    return FV_OK;
}
