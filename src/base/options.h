/* Option tables: one table gives parsing, defaults, ranges, help and JSON. */
#ifndef FV_OPTIONS_H
#define FV_OPTIONS_H

#include <stddef.h>
#include <stdint.h>

#include "base/spec.h"
#include "base/text.h"

typedef enum fv_option_type {
    FV_OPTION_INT,    /* int64_t */
    FV_OPTION_FLOAT,  /* double */
    FV_OPTION_BOOL,   /* bool, written 0 or 1 */
    FV_OPTION_ENUM,   /* int, an index into choices */
    FV_OPTION_TUPLE,  /* fv_tuple, written 4x8x8 */
    FV_OPTION_LIST,   /* fv_list, written 0+3+7 */
    FV_OPTION_FLOATS, /* fv_floats, written 0.5+0.25 */
    FV_OPTION_TEXT,   /* char[FV_TEXT_MAX]: a file's name, say */
} fv_option_type;

enum { FV_TUPLE_MAX = 4, FV_LIST_MAX = 256, FV_FLOATS_MAX = 16, FV_TEXT_MAX = 1024 };

typedef struct fv_tuple {
    int count;
    int64_t items[FV_TUPLE_MAX];
} fv_tuple;

typedef struct fv_list {
    int count;
    int64_t items[FV_LIST_MAX];
} fv_list;

typedef struct fv_floats {
    int count;
    double items[FV_FLOATS_MAX];
} fv_floats;

typedef struct fv_option {
    const char *name;
    fv_option_type type;
    size_t offset;
    const char *initial;        /* the default, as it would be typed; NULL: must be given */
    double min, max;            /* of a number, and of each item of a tuple or list */
    const char *const *choices; /* of an enum; words in place of a list, or NULL */
    const char *sides;          /* of a tuple: "rows x columns", which all have to be there; NULL: any number */
    const char *help;
} fv_option;

#define FV_OPTION_(s, f, t, initial_, min_, max_, choices_, help_)                                                     \
    {                                                                                                                  \
        .name = #f, .type = t, .offset = offsetof(s, f), .initial = initial_, .min = (double)(min_),                   \
        .max = (double)(max_), .choices = choices_, .help = help_                                                      \
    }
/* The default is written as a literal: it is stringised. */
#define FV_INT(s, f, initial, min, max, help) FV_OPTION_(s, f, FV_OPTION_INT, #initial, min, max, NULL, help)
#define FV_FLOAT(s, f, initial, min, max, help) FV_OPTION_(s, f, FV_OPTION_FLOAT, #initial, min, max, NULL, help)
/* Those that must be given. */
#define FV_INT_REQUIRED(s, f, min, max, help) FV_OPTION_(s, f, FV_OPTION_INT, NULL, min, max, NULL, help)
#define FV_FLOAT_REQUIRED(s, f, min, max, help) FV_OPTION_(s, f, FV_OPTION_FLOAT, NULL, min, max, NULL, help)
#define FV_BOOL(s, f, initial, help) FV_OPTION_(s, f, FV_OPTION_BOOL, #initial, 0, 1, NULL, help)
/* choices: a NULL-ended array of names; initial is one of them, as a string. */
#define FV_ENUM(s, f, initial, choices, help) FV_OPTION_(s, f, FV_OPTION_ENUM, initial, 0, 0, choices, help)
/* initial is a string, or NULL where the option must be given. */
#define FV_TUPLE(s, f, initial, min, max, help) FV_OPTION_(s, f, FV_OPTION_TUPLE, initial, min, max, NULL, help)
#define FV_SIDES(s, f, sides_, initial_, min_, max_, help_)                                                            \
    {                                                                                                                  \
        .name = #f, .type = FV_OPTION_TUPLE, .offset = offsetof(s, f), .initial = initial_, .min = (double)(min_),     \
        .max = (double)(max_), .sides = sides_, .help = help_                                                          \
    }
/* A list, or one of a NULL-ended array of words in its place: the single item -1 for the first, -2 for the next. */
#define FV_LIST_OR(s, f, initial, words, min, max, help)                                                               \
    FV_OPTION_(s, f, FV_OPTION_LIST, initial, min, max, words, help)
#define FV_LIST(s, f, initial, min, max, help) FV_OPTION_(s, f, FV_OPTION_LIST, initial, min, max, NULL, help)
#define FV_FLOATS(s, f, initial, min, max, help) FV_OPTION_(s, f, FV_OPTION_FLOATS, initial, min, max, NULL, help)
/* initial is a string, or NULL where the option must be given. */
#define FV_WORDS(s, f, initial, help) FV_OPTION_(s, f, FV_OPTION_TEXT, initial, 0, 0, NULL, help)
#define FV_OPTIONS_END                                                                                                 \
    {                                                                                                                  \
        .name = NULL                                                                                                   \
    }

/* Fills `values` (a struct the table's offsets belong to) with defaults, then with the SPEC's assignments.  A NULL
 * table has no options.  FV_E_USAGE names the owner, the option, what was expected and what was got. */
fv_status fv_options_parse(const fv_option *table, const fv_spec *spec, void *values);

/* One value, as in a SPEC. */
fv_status fv_option_set(const fv_option *option, const char *owner, const char *value, void *values);

/* The value as it would be typed. */
void fv_option_print(const fv_option *option, const void *values, fv_text *text);

const char *
fv_option_type_name(fv_option_type type); /* "int", "float", "bool", "enum", "tuple", "list", "floats", "text" */

/* The nearest of `count` names (by name_at) to `word`, or NULL when none is near. */
const char *fv_nearest(const char *word, int count, const char *(*name_at)(const void *user, int index),
                       const void *user);

#endif
