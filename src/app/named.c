/* Tensors that flags name: --param NAME=FILE and the like, and weights=FILE.safetensors for many in one file. */
#include "app/app.h"

#include <string.h>

#include "base/memory.h"
#include "base/npy.h"

static const char many[] = "weights";

static const fv_param *find(const fv_param *table, const char *name)
{
    for (; table && table->name; table++)
        if (strcmp(table->name, name) == 0) return table;
    return NULL;
}

static int index_of(const app_named *named, const char *name)
{
    int i = 0;

    while (i < named->count && strcmp(named->named[i].name, name) != 0)
        i++;
    return i;
}

static fv_status add(app_named *named, const char *name, size_t length, const char *file)
{
    char *copy;

    FV_TRY(FV_GROW(named->named, named->named_room, named->count + 1));
    FV_TRY(FV_GROW(named->places, named->places_room, named->count + 1));
    FV_TRY(FV_ZALLOC(copy, (int64_t)length + 1));
    memcpy(copy, name, length);
    named->named[named->count] = (fv_named_tensor){.name = copy};
    named->places[named->count++] = (app_place){.name = copy, .file = file};
    return FV_OK;
}

static bool ends_in(const char *text, const char *end)
{
    size_t length = strlen(text), own = strlen(end);

    return length > own && strcmp(text + length - own, end) == 0;
}

static fv_status take_bundle(const char *file, app_named *named)
{
    if (named->bundle) return fv_fail(FV_E_USAGE, "--%s: '%s' is given twice", named->flag, many);
    named->bundle = file;
    return FV_OK;
}

static fv_status take_apart(const char *text, const fv_param *table, app_named *named)
{
    const char *equals = strchr(text, '='), *name, *hint = "";

    if (!equals || equals == text || !equals[1])
        return fv_fail(FV_E_USAGE, "--%s: expected NAME=FILE, got '%s'", named->flag, text);
    if (fv_params_count(table) > 0 && !find(table, many)) {
        if ((size_t)(equals - text) == strlen(many) && strncmp(text, many, strlen(many)) == 0)
            return take_bundle(equals + 1, named);
        hint = " (weights=FILE is for many in one)";
    }
    FV_TRY(add(named, text, (size_t)(equals - text), equals + 1));
    name = named->named[named->count - 1].name;
    if (index_of(named, name) < named->count - 1)
        return fv_fail(FV_E_USAGE, "--%s: '%s' is given twice", named->flag, name);
    if (strcmp(name, many) == 0 || !ends_in(equals + 1, ".safetensors")) return FV_OK;
    return fv_fail(FV_E_USAGE, "--%s %s: expected a .npy file, got %s%s", named->flag, name, equals + 1, hint);
}

fv_status app_named_begin(const char *flag, const cli_texts *texts, const fv_param *table, app_named *named)
{
    *named = (app_named){.flag = flag};
    for (int i = 0; i < texts->count; i++)
        FV_TRY(take_apart(texts->items[i], table, named));
    return FV_OK;
}

void app_named_free(app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        fv_free(named->places[i].name);
        fv_free(named->places[i].memory);
    }
    fv_free(named->places);
    fv_free(named->named);
    fv_safetensors_close(named->weights);
    *named = (app_named){0};
}

fv_status app_named_check(const char *owner, const char *what, const fv_param *table, const app_named *named,
                          bool gradients)
{
    for (int i = 0; i < named->count; i++) {
        int index;
        FV_TRY(fv_params_find(owner, what, table, named->named[i].name, &index));
        if (gradients && table[index].fixed)
            return fv_fail(FV_E_USAGE, "%s: '%s' has no gradient", owner, named->named[i].name);
    }
    return FV_OK;
}

static const char *param_at(const void *user, int index)
{
    return ((const fv_param *)user)[index].name;
}

static fv_status add_stored(const char *owner, const fv_param *table, const char *name, app_named *named)
{
    if (!find(table, name)) {
        const char *near = fv_nearest(name, fv_params_count(table), param_at, table);
        return fv_fail(FV_E_FORMAT, "%s: tensor '%s' is no param of %s%s%s%s ('fovea show %s' lists them)",
                       named->bundle, fv_shown(name, (int64_t)strlen(name)), owner, near ? "; did you mean '" : "",
                       near ? near : "", near ? "'?" : "", owner);
    }
    if (index_of(named, name) < named->count)
        return fv_fail(FV_E_USAGE, "--%s: '%s' is given twice: by itself and in %s", named->flag, name, named->bundle);
    return add(named, name, strlen(name), NULL);
}

fv_status app_named_open(const char *owner, const fv_param *table, app_named *named)
{
    if (!named->bundle) return FV_OK;
    FV_TRY(fv_safetensors_open(named->bundle, &named->weights));
    for (int64_t i = 0; i < fv_safetensors_count(named->weights); i++)
        FV_TRY(add_stored(owner, table, fv_safetensors_at(named->weights, i)->name, named));
    return FV_OK;
}

static fv_status read_stored(const app_named *named, const char *name, fv_dtype dtype, app_tensor *tensor)
{
    app_tensor raw = {0};

    FV_TRY(fv_safetensors_copy(fv_safetensors_find(named->weights, name), &raw.t, &raw.owned));
    fv_status status = app_tensor_as(&raw, dtype, tensor);
    return status == FV_OK ? FV_OK : fv_fail_in(status, "%s: tensor '%s'", named->bundle, name);
}

fv_status app_named_read(const fv_param *table, app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        fv_named_tensor *t = &named->named[i];
        fv_dtype dtype = find(table, t->name)->dtype;
        app_tensor tensor = {0};
        if (named->places[i].file)
            FV_TRY(app_tensor_read_as(named->places[i].file, dtype, &tensor));
        else
            FV_TRY(read_stored(named, t->name, dtype, &tensor));
        t->tensor = tensor.t;
        named->places[i].memory = tensor.owned;
    }
    return FV_OK;
}

fv_status app_named_make(app_named *named, int i, const fv_tensor *shape)
{
    app_tensor tensor;

    FV_TRY(app_tensor_new(&tensor, shape->dtype, shape->rank, shape->dims));
    named->named[i].tensor = tensor.t;
    named->places[i].memory = tensor.owned;
    return FV_OK;
}

static const char *name_at(const void *user, int index)
{
    return ((const app_named *)user)->named[index].name;
}

fv_status app_named_match(const char *owner, const fv_param *table, const app_named *given, app_named *named)
{
    for (int i = 0; i < named->count; i++) {
        const char *name = named->named[i].name, *near;
        if (index_of(given, name) < given->count) continue;
        near = fv_nearest(name, given->count, name_at, given);
        return fv_fail(FV_E_USAGE, "--%s %s: expected a tensor given with --%s%s%s%s", named->flag, name, given->flag,
                       near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
    }
    FV_TRY(app_named_check(owner, named->flag, table, named, true));
    for (int i = 0; i < given->count && named->bundle; i++) {
        const char *name = given->named[i].name;
        if (!find(table, name)->fixed && index_of(named, name) == named->count)
            FV_TRY(add(named, name, strlen(name), NULL));
    }
    if (!named->bundle || named->count > 0) return FV_OK;
    return fv_fail(FV_E_USAGE, "--%s %s: no tensor given with --%s has a gradient", named->flag, many, given->flag);
}

fv_status app_named_like(const app_named *given, app_named *named)
{
    for (int i = 0; i < named->count; i++)
        FV_TRY(app_named_make(named, i, &given->named[index_of(given, named->named[i].name)].tensor));
    return FV_OK;
}

fv_status app_named_try(const app_named *named)
{
    for (int i = 0; i < named->count; i++)
        FV_TRY(app_file_try(named->places[i].file));
    return app_file_try(named->bundle);
}

fv_status app_named_write(const app_named *named)
{
    for (int i = 0; i < named->count; i++)
        if (named->places[i].file) FV_TRY(fv_npy_write(named->places[i].file, &named->named[i].tensor));
    return named->bundle ? fv_safetensors_write(named->bundle, named->count, named->named, 0, NULL) : FV_OK;
}
