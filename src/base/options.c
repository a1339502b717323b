#include "base/options.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/size.h"

static const char *option_name(const void *user, int index)
{
    return ((const fv_option *)user)[index].name;
}

const char *fv_nearest(const char *word, int count, const char *(*name_at)(const void *user, int index),
                       const void *user)
{
    const char *best = NULL;
    int best_distance = (int)strlen(word) / 3 + 2;

    for (int i = 0; i < count; i++) {
        int distance = fv_edit_distance(word, name_at(user, i));
        if (distance < best_distance) {
            best_distance = distance;
            best = name_at(user, i);
        }
    }
    return best;
}

const char *fv_option_type_name(fv_option_type type)
{
    static const char *const names[] = {"int", "float", "bool", "enum", "tuple", "list", "floats", "text"};

    return names[type];
}

static fv_status bad(const fv_option *option, const char *owner, const char *expected, const char *value)
{
    return fv_fail(FV_E_USAGE, "%s: option '%s': expected %s, got '%s'", owner, option->name, expected, value);
}

static fv_status out_of_range(const fv_option *option, const char *owner, const char *value)
{
    return fv_fail(FV_E_USAGE, "%s: option '%s': expected %.17g to %.17g, got '%s'", owner, option->name, option->min,
                   option->max, value);
}

/* Reads an integer up to `stop` or the end; moves *text behind it. */
static bool read_int(const char **text, int64_t *value)
{
    char *end;

    if (**text != '-' && (**text < '0' || **text > '9')) return false;
    errno = 0;
    *value = strtoll(*text, &end, 10);
    if (errno || end == *text) return false;
    *text = end;
    return true;
}

static fv_status set_items(const fv_option *option, const char *owner, const char *value, char separator, int max,
                           int64_t *items, int *count)
{
    const char *at = value;

    *count = 0;
    for (;;) {
        int64_t item;
        if (!read_int(&at, &item))
            return bad(option, owner, separator == 'x' ? "integers joined by 'x'" : "integers joined by '+'", value);
        if ((double)item < option->min || (double)item > option->max) return out_of_range(option, owner, value);
        if (*count == max)
            return fv_fail(FV_E_USAGE, "%s: option '%s': expected at most %d items, got '%s'", owner, option->name, max,
                           value);
        items[(*count)++] = item;
        if (!*at) return FV_OK;
        if (*at++ != separator)
            return bad(option, owner, separator == 'x' ? "integers joined by 'x'" : "integers joined by '+'", value);
    }
}

static fv_status set_floats(const fv_option *option, const char *owner, const char *value, fv_floats *floats)
{
    const char *at = value;
    char *end;

    for (floats->count = 0;; at = end + 1) {
        double item = strtod(at, &end);
        if (end == at || !isfinite(item) || (*end && *end != '+'))
            return bad(option, owner, "finite numbers joined by '+'", value);
        if (item < option->min || item > option->max) return out_of_range(option, owner, value);
        if (floats->count == FV_FLOATS_MAX)
            return fv_fail(FV_E_USAGE, "%s: option '%s': expected at most %d items, got '%s'", owner, option->name,
                           FV_FLOATS_MAX, value);
        floats->items[floats->count++] = item;
        if (!*end) return FV_OK;
    }
}

static fv_status set_enum(const fv_option *option, const char *owner, const char *value, int *index)
{
    char list[256] = "";
    size_t used = 0;

    for (int i = 0; option->choices[i]; i++) {
        if (strcmp(option->choices[i], value) == 0) {
            *index = i;
            return FV_OK;
        }
        int wrote = snprintf(list + used, sizeof list - used, "%s%s", i ? " or " : "", option->choices[i]);
        if (wrote > 0 && used + (size_t)wrote < sizeof list) used += (size_t)wrote;
    }
    return bad(option, owner, list, value);
}

static fv_status set_tuple(const fv_option *option, const char *owner, const char *value, fv_tuple *tuple)
{
    int sides = 1;

    FV_TRY(set_items(option, owner, value, 'x', FV_TUPLE_MAX, tuple->items, &tuple->count));
    for (const char *at = option->sides; at && *at; at++)
        sides += *at == 'x';
    return option->sides && tuple->count != sides ? bad(option, owner, option->sides, value) : FV_OK;
}

fv_status fv_option_set(const fv_option *option, const char *owner, const char *value, void *values)
{
    void *field = (char *)values + option->offset;
    const char *at = value;
    char *end;

    switch (option->type) {
    case FV_OPTION_INT: {
        int64_t number;
        if (!read_int(&at, &number) || *at) return bad(option, owner, "an integer", value);
        if ((double)number < option->min || (double)number > option->max) return out_of_range(option, owner, value);
        *(int64_t *)field = number;
        return FV_OK;
    }
    case FV_OPTION_FLOAT: {
        double number = strtod(value, &end);
        bool finite = isfinite(option->min) || isfinite(option->max);
        if (end == value || *end || isnan(number) || (finite && isinf(number)))
            return bad(option, owner, finite ? "a finite number" : "a number", value);
        if (number < option->min || number > option->max) return out_of_range(option, owner, value);
        *(double *)field = number;
        return FV_OK;
    }
    case FV_OPTION_BOOL:
        if (strcmp(value, "0") != 0 && strcmp(value, "1") != 0) return bad(option, owner, "0 or 1", value);
        *(bool *)field = value[0] == '1';
        return FV_OK;
    case FV_OPTION_ENUM: return set_enum(option, owner, value, field);
    case FV_OPTION_TUPLE: return set_tuple(option, owner, value, field);
    case FV_OPTION_LIST: {
        fv_list *list = field;
        for (int i = 0; option->choices && option->choices[i]; i++)
            if (strcmp(option->choices[i], value) == 0) {
                *list = (fv_list){.count = 1, .items = {-1 - i}};
                return FV_OK;
            }
        return set_items(option, owner, value, '+', FV_LIST_MAX, list->items, &list->count);
    }
    case FV_OPTION_FLOATS: return set_floats(option, owner, value, field);
    case FV_OPTION_TEXT:
        if (strlen(value) >= FV_TEXT_MAX) return bad(option, owner, "fewer than 1024 bytes", "a longer text");
        strcpy(field, value);
        return FV_OK;
    }
    return FV_OK;
}

fv_status fv_options_parse(const fv_option *table, const fv_spec *spec, void *values)
{
    const char *owner = fv_spec_name(spec);
    bool given[64] = {false};
    int count = 0;

    for (; table && table[count].name && count < 64; count++)
        if (table[count].initial) FV_TRY(fv_option_set(&table[count], owner, table[count].initial, values));
    for (int i = 0; i < spec->count; i++) {
        fv_assignment assignment = fv_spec_option(spec, i);
        int o = 0;
        while (o < count && strcmp(table[o].name, assignment.name) != 0)
            o++;
        if (o == count) {
            const char *near = fv_nearest(assignment.name, count, option_name, table);
            if (near)
                return fv_fail(FV_E_USAGE,
                               "%s: option '%s' is not known; did you mean '%s'? ('fovea show %s' lists them)", owner,
                               assignment.name, near, owner);
            return fv_fail(FV_E_USAGE, "%s: option '%s' is not known ('fovea show %s' lists %s)", owner,
                           assignment.name, owner, count ? "them" : "none");
        }
        FV_TRY(fv_option_set(&table[o], owner, assignment.value, values));
        given[o] = true;
    }
    for (int o = 0; o < count; o++)
        if (!table[o].initial && !given[o])
            return fv_fail(FV_E_USAGE, "%s: option '%s' must be given: %s", owner, table[o].name, table[o].help);
    return FV_OK;
}

static void print_items(const int64_t *items, int count, char separator, fv_text *text)
{
    for (int i = 0; i < count; i++) {
        if (i) fv_text_add(text, &separator, 1);
        fv_text_printf(text, "%lld", (long long)items[i]);
    }
}

void fv_option_print(const fv_option *option, const void *values, fv_text *text)
{
    const void *field = (const char *)values + option->offset;

    switch (option->type) {
    case FV_OPTION_INT: fv_text_printf(text, "%lld", (long long)*(const int64_t *)field); break;
    case FV_OPTION_FLOAT: fv_text_printf(text, "%.9g", *(const double *)field); break;
    case FV_OPTION_BOOL: fv_text_printf(text, "%d", *(const bool *)field); break;
    case FV_OPTION_ENUM: fv_text_printf(text, "%s", option->choices[*(const int *)field]); break;
    case FV_OPTION_TUPLE: {
        const fv_tuple *tuple = field;
        print_items(tuple->items, tuple->count, 'x', text);
        break;
    }
    case FV_OPTION_LIST: {
        const fv_list *list = field;
        if (option->choices && list->items[0] < 0) {
            fv_text_printf(text, "%s", option->choices[-1 - list->items[0]]);
            break;
        }
        print_items(list->items, list->count, '+', text);
        break;
    }
    case FV_OPTION_FLOATS: {
        const fv_floats *floats = field;
        for (int i = 0; i < floats->count; i++)
            fv_text_printf(text, "%s%.9g", i ? "+" : "", floats->items[i]);
        break;
    }
    case FV_OPTION_TEXT: fv_text_printf(text, "%s", (const char *)field); break;
    }
}
