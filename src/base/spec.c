#include "base/spec.h"

#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

static bool word_char(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
}

/* Values may be names of files: anything that ends no value. */
static bool value_char(char c)
{
    return (unsigned char)c >= ' ' && c != 127 && c != ';';
}

static fv_status check_word(const char *word, bool (*allowed)(char), const char *what, const char *whole)
{
    if (!*word) return fv_fail(FV_E_USAGE, "SPEC '%.200s': %s is empty (expected name:option=value,...)", whole, what);
    for (const char *c = word; *c; c++)
        if (!allowed(*c))
            return fv_fail(FV_E_USAGE, "SPEC '%.200s': %s has an unexpected character '%c'", whole, what, *c);
    return FV_OK;
}

fv_status fv_spec_parse(fv_spec *spec, const char *text)
{
    size_t length = strlen(text);
    char *at;

    memset(spec, 0, sizeof *spec);
    if (length >= sizeof spec->text)
        return fv_fail(FV_E_USAGE, "SPEC '%.60s...': expected at most %zu characters, got %zu", text,
                       sizeof spec->text - 1, length);
    memcpy(spec->text, text, length + 1);
    at = strchr(spec->text, ':');
    if (at) *at++ = 0;
    FV_TRY(check_word(spec->text, word_char, "the name", text));
    while (at) {
        char *name = at, *value = strchr(at, '='), *next = strchr(at, ',');
        if (next) *next++ = 0;
        if (!value || (next && value >= next))
            return fv_fail(FV_E_USAGE, "SPEC '%.200s': '%s' has no value (expected option=value)", text, name);
        *value++ = 0;
        FV_TRY(check_word(name, word_char, "an option's name", text));
        FV_TRY(check_word(value, value_char, "an option's value", text));
        for (int i = 0; i < spec->count; i++)
            if (strcmp(fv_spec_option(spec, i).name, name) == 0)
                return fv_fail(FV_E_USAGE, "SPEC '%.200s': option '%s' is given twice", text, name);
        if (spec->count == FV_SPEC_OPTIONS)
            return fv_fail(FV_E_USAGE, "SPEC '%.200s': expected at most %d options", text, FV_SPEC_OPTIONS);
        spec->at[spec->count].name = (int)(name - spec->text);
        spec->at[spec->count].value = (int)(value - spec->text);
        spec->count++;
        at = next;
    }
    return FV_OK;
}

const char *fv_spec_name(const fv_spec *spec)
{
    return spec->text + spec->name;
}

fv_assignment fv_spec_option(const fv_spec *spec, int index)
{
    return (fv_assignment){spec->text + spec->at[index].name, spec->text + spec->at[index].value};
}

/* ---- layer plans ----------------------------------------------------------------------------------------------- */

static fv_status name_layer(fv_layer_plan *plan, int64_t layer, int part, const char *text)
{
    if (layer < 0 || layer >= plan->layers)
        return fv_fail(FV_E_USAGE, "layer plan '%.200s': layer %lld is outside 0 to %d", text, (long long)layer,
                       plan->layers - 1);
    if (plan->layer_part[layer] >= 0)
        return fv_fail(FV_E_USAGE, "layer plan '%.200s': layer %lld is named twice", text, (long long)layer);
    plan->layer_part[layer] = part;
    return FV_OK;
}

static bool read_layer(char **at, int64_t *layer)
{
    char *end;

    if (**at < '0' || **at > '9') return false;
    *layer = strtoll(*at, &end, 10);
    *at = end;
    return true;
}

/* "0-3,29" or "rest" */
static fv_status name_range(fv_layer_plan *plan, char *range, int part, const char *text)
{
    if (strcmp(range, "rest") == 0) {
        for (int layer = 0; layer < plan->layers; layer++)
            if (plan->layer_part[layer] < 0) plan->layer_part[layer] = part;
        return FV_OK;
    }
    for (char *at = range;; at++) {
        int64_t first, last;
        if (!read_layer(&at, &first)) goto malformed;
        last = first;
        if (*at == '-') {
            at++;
            if (!read_layer(&at, &last) || last < first) goto malformed;
        }
        for (int64_t layer = first; layer <= last; layer++)
            FV_TRY(name_layer(plan, layer, part, text));
        if (!*at) return FV_OK;
        if (*at != ',') goto malformed;
    }
malformed:
    return fv_fail(FV_E_USAGE, "layer plan '%.200s': expected layers like 0-3,29 or rest before '/', got '%s'", text,
                   range);
}

static fv_status parse_parts(fv_layer_plan *plan, char *copy, const char *text)
{
    bool rest = false;

    for (char *part = copy; part; plan->parts++) {
        char *next = strchr(part, ';'), *slash;
        if (next) *next++ = 0;
        slash = strchr(part, '/');
        if (!slash)
            return fv_fail(FV_E_USAGE, "layer plan '%.200s': '%.100s' has no '/' (expected RANGE/SPEC;...;rest/SPEC)",
                           text, part);
        *slash++ = 0;
        if (rest) return fv_fail(FV_E_USAGE, "layer plan '%.200s': 'rest' must be the last part", text);
        rest = strcmp(part, "rest") == 0;
        FV_TRY(fv_spec_parse(&plan->specs[plan->parts], slash));
        FV_TRY(name_range(plan, part, plan->parts, text));
        part = next;
    }
    return FV_OK;
}

/* A '/' before the first ':' stands behind layers, a later one in the name of a file. */
static bool is_bare(const char *text)
{
    return !strchr(text, ';') && text[strcspn(text, ":/")] != '/';
}

fv_status fv_layer_plan_parse(fv_layer_plan *plan, const char *text, int layers)
{
    fv_status status;
    char *copy = NULL;
    int parts = 1;

    *plan = (fv_layer_plan){.layers = layers};
    for (const char *c = text; *c; c++)
        parts += *c == ';';
    FV_TRY_DONE(FV_ZALLOC(plan->specs, parts));
    FV_TRY_DONE(FV_ALLOC(plan->layer_part, layers));
    for (int layer = 0; layer < layers; layer++)
        plan->layer_part[layer] = -1;
    if (is_bare(text)) {
        plan->bare = true;
        plan->parts = 1;
        FV_TRY_DONE(fv_spec_parse(&plan->specs[0], text));
        for (int layer = 0; layer < layers; layer++)
            plan->layer_part[layer] = 0;
        return FV_OK;
    }
    FV_TRY_DONE(FV_ALLOC(copy, (int64_t)strlen(text) + 1));
    strcpy(copy, text);
    FV_TRY_DONE(parse_parts(plan, copy, text));
    fv_free(copy);
    return FV_OK;
done:
    fv_free(copy);
    fv_layer_plan_free(plan);
    return status;
}

void fv_layer_plan_free(fv_layer_plan *plan)
{
    fv_free(plan->specs);
    fv_free(plan->layer_part);
    *plan = (fv_layer_plan){0};
}

const fv_spec *fv_layer_plan_at(const fv_layer_plan *plan, int layer)
{
    return layer < 0 || layer >= plan->layers || plan->layer_part[layer] < 0 ? NULL
                                                                             : &plan->specs[plan->layer_part[layer]];
}
