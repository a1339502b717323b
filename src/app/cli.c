#include "app/cli.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/memory.h"

#define COMMON(field) offsetof(cli_common, field)

const cli_flag cli_common_flags[] = {
    {.name = "threads",
     .kind = CLI_INT,
     .offset = COMMON(threads),
     .argument = "N",
     .initial = "0",
     .max = 1024,
     .group = "Everywhere",
     .help = "threads to use (0: as many as the process may)"},
    {.name = "device",
     .kind = CLI_TEXT,
     .offset = COMMON(device),
     .argument = "ref|cpu",
     .initial = "cpu",
     .help = "cpu, or ref: plain loops with double sums, slow and exact"},
    {.name = "seed",
     .kind = CLI_INT,
     .offset = COMMON(seed),
     .argument = "N",
     .initial = "0",
     .max = 9e18,
     .help = "seed of everything random"},
    {.name = "json", .kind = CLI_SWITCH, .offset = COMMON(json), .help = "write JSON, alone, to standard output"},
    {.name = "quiet", .kind = CLI_SWITCH, .offset = COMMON(quiet), .help = "no words and no progress"},
    {.name = "help", .letter = 'h', .kind = CLI_SWITCH, .offset = COMMON(help), .help = "show this help"},
    CLI_END,
};

static bool is_end(const cli_flag *flag)
{
    return !flag->name && !flag->letter;
}

static int count_written(const cli_verb *verb)
{
    int count = 0;

    while (verb->flags && !is_end(&verb->flags[count]))
        count++;
    return count;
}

int cli_own_flags(const cli_verb *verb)
{
    int count = 0;

    while (verb->options && verb->options[count].name)
        count++;
    return count_written(verb) + count;
}

static const cli_flag *flag_of_option(const cli_verb *verb, const fv_option *option, cli_flag *made)
{
    static const char *const arguments[] = {"N", "X", "0|1", "NAME", "NxN", "N+N", "X+X", "FILE"};

    *made = (cli_flag){
        .name = option->name,
        .kind = CLI_OPTION,
        .offset = verb->options_offset,
        .argument = arguments[option->type],
        .help = option->help,
        .initial = option->initial && *option->initial ? option->initial : NULL,
        .choices = option->type == FV_OPTION_ENUM ? option->choices : NULL,
        .option = option,
        .required = !option->initial,
        .group = option == verb->options ? "What" : NULL,
    };
    return made;
}

const cli_flag *cli_flag_at(const cli_verb *verb, int index, cli_flag *made)
{
    int written = count_written(verb), own = cli_own_flags(verb);

    if (index < written) return &verb->flags[index];
    if (index < own) return flag_of_option(verb, &verb->options[index - written], made);
    for (int i = 0; !is_end(&cli_common_flags[i]); i++)
        if (i == index - own) return &cli_common_flags[i];
    return NULL;
}

bool cli_takes_value(const cli_flag *flag)
{
    return flag->kind != CLI_SWITCH;
}

void cli_spell(const cli_flag *flag, fv_text *text)
{
    if (flag->letter) fv_text_printf(text, "-%c%s", flag->letter, flag->name ? ", " : "");
    if (flag->name) fv_text_printf(text, "--%s", flag->name);
}

/* The flag's name as people type it, in a small ring of buffers. */
static const char *typed(const cli_flag *flag)
{
    static _Thread_local char ring[4][40];
    static _Thread_local unsigned next;
    char *text = ring[next++ % 4];

    if (flag->letter)
        snprintf(text, sizeof ring[0], "-%c", flag->letter);
    else
        snprintf(text, sizeof ring[0], "--%s", flag->name);
    return text;
}

fv_status cli_missing(const char *flag, const char *why)
{
    return fv_fail(FV_E_USAGE, "%s is missing: %s", flag, why);
}

/* ---- values ---------------------------------------------------------------------------------------------------- */

static fv_status out_of_range(const cli_flag *flag, const char *value)
{
    return fv_fail(FV_E_USAGE, "%s: expected %.15g to %.15g, got '%s'", typed(flag), flag->min, flag->max, value);
}

static bool within(const cli_flag *flag, double number)
{
    return (flag->min == 0 && flag->max == 0) || (number >= flag->min && number <= flag->max);
}

static fv_status read_int(const cli_flag *flag, const char *whole, const char **at, int64_t *number)
{
    char *end;

    errno = 0;
    *number = strtoll(*at, &end, 10);
    if (end == *at || **at == ' ' || **at == '+')
        return fv_fail(FV_E_USAGE, "%s: expected %s, got '%s'", typed(flag),
                       flag->kind == CLI_INTS ? "whole numbers like 1,2,3" : "a whole number", whole);
    if (errno || !within(flag, (double)*number)) return out_of_range(flag, whole);
    *at = end;
    return FV_OK;
}

static fv_status set_ints(const cli_flag *flag, const char *value, cli_ints *ints)
{
    int64_t most = 1;

    for (const char *c = value; *c; c++)
        most += *c == ',';
    fv_free(ints->items);
    *ints = (cli_ints){0};
    FV_TRY(FV_ALLOC(ints->items, most));
    for (const char *at = value;; at++) {
        FV_TRY(read_int(flag, value, &at, &ints->items[ints->count]));
        ints->count++;
        if (!*at) return FV_OK;
        if (*at != ',')
            return fv_fail(FV_E_USAGE, "%s: expected whole numbers like 1,2,3, got '%s'", typed(flag), value);
    }
}

static fv_status set_choice(const cli_flag *flag, const char *value, int *index)
{
    fv_text list = {0};
    fv_status status;

    for (int i = 0; flag->choices[i]; i++) {
        if (strcmp(flag->choices[i], value) == 0) {
            *index = i;
            fv_text_free(&list);
            return FV_OK;
        }
        fv_text_printf(&list, "%s%s", i ? " or " : "", flag->choices[i]);
    }
    status = fv_fail(FV_E_USAGE, "%s: expected %s, got '%s'", typed(flag), fv_text_get(&list), value);
    fv_text_free(&list);
    return status;
}

/* `owner` is whose options they are. */
static fv_status set_value(const cli_flag *flag, const char *owner, const char *value, void *values)
{
    void *field = (char *)values + flag->offset;
    char *end;

    switch (flag->kind) {
    case CLI_SWITCH: *(bool *)field = true; return FV_OK;
    case CLI_FILE:
        if (!*value) return fv_fail(FV_E_USAGE, "%s: expected a file's name, got ''", typed(flag));
        /* fall through */
    case CLI_TEXT:
    case CLI_SPEC: *(const char **)field = value; return FV_OK;
    case CLI_INT: {
        const char *at = value;
        FV_TRY(read_int(flag, value, &at, field));
        if (*at) return fv_fail(FV_E_USAGE, "%s: expected a whole number, got '%s'", typed(flag), value);
        return FV_OK;
    }
    case CLI_NUMBER: {
        double number = strtod(value, &end);
        if (end == value || *end || !isfinite(number))
            return fv_fail(FV_E_USAGE, "%s: expected a finite number, got '%s'", typed(flag), value);
        if (!within(flag, number)) return out_of_range(flag, value);
        *(double *)field = number;
        return FV_OK;
    }
    case CLI_CHOICE: return set_choice(flag, value, field);
    case CLI_TEXTS:
    case CLI_SPECS: {
        cli_texts *texts = field; /* room for all of them was made before */
        texts->items[texts->count++] = value;
        return FV_OK;
    }
    case CLI_INTS: return set_ints(flag, value, field);
    case CLI_OPTION: return fv_option_set(flag->option, owner, value, field);
    }
    return FV_OK;
}

/* The last word of a verb's name: where it has options, whose they are. */
static const char *last_word(const cli_verb *verb)
{
    const char *space = strrchr(verb->name, ' ');

    return space ? space + 1 : verb->name;
}

static fv_status set_defaults(const cli_verb *verb, int words, void *values)
{
    const cli_flag *flag;
    cli_flag made;

    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        void *field = (char *)values + flag->offset;
        if (flag->kind == CLI_INT) *(int64_t *)field = CLI_UNSET;
        if (flag->kind == CLI_NUMBER) *(double *)field = NAN;
        if (flag->kind == CLI_TEXTS || flag->kind == CLI_SPECS)
            FV_TRY(FV_ALLOC(((cli_texts *)field)->items, words + 1));
        if (flag->initial) FV_TRY(set_value(flag, last_word(verb), flag->initial, values));
    }
    return FV_OK;
}

/* ---- words ----------------------------------------------------------------------------------------------------- */

static const char *flag_name(const void *user, int index)
{
    cli_flag made;
    const cli_flag *flag = cli_flag_at(user, index, &made);

    return flag->name ? flag->name : "";
}

static int count_flags(const cli_verb *verb)
{
    int count = 0;
    cli_flag made;

    while (cli_flag_at(verb, count, &made))
        count++;
    return count;
}

static fv_status unknown_flag(const cli_verb *verb, const char *word)
{
    const char *near = word[1] == '-' ? fv_nearest(word + 2, count_flags(verb), flag_name, verb) : NULL;

    if (near && *near)
        return fv_fail(FV_E_USAGE, "flag '%s' is not known; did you mean '--%s'? ('fovea help %s' lists them)", word,
                       near, verb->name);
    return fv_fail(FV_E_USAGE, "flag '%s' is not known ('fovea help %s' lists them)", word, verb->name);
}

/* The index of the flag a word names, or -1; *value points at a value joined to it ("--n=3", "-n3"), or is NULL. */
static int match_flag(const cli_verb *verb, const char *word, const char **value)
{
    const cli_flag *flag;
    cli_flag made;

    *value = NULL;
    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        if (word[1] != '-') {
            if (!flag->letter || word[1] != flag->letter) continue;
            if (!word[2]) return i;
            if (!cli_takes_value(flag)) continue;
            *value = word + 2;
            return i;
        }
        size_t length = flag->name ? strlen(flag->name) : 0;
        if (length == 0 || strncmp(word + 2, flag->name, length) != 0) continue;
        if (!word[2 + length]) return i;
        if (word[2 + length] != '=') continue;
        *value = word + 3 + length;
        return i;
    }
    return -1;
}

static fv_status check_required(const cli_verb *verb, const bool *given)
{
    const cli_flag *flag;
    cli_flag made;

    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++)
        if (flag->required && !given[i]) return fv_fail(FV_E_USAGE, "%s is missing: %s", typed(flag), flag->help);
    return FV_OK;
}

enum { FLAGS_MAX = 96 };

static bool repeats(const cli_flag *flag)
{
    return flag->kind == CLI_TEXTS || flag->kind == CLI_SPECS;
}

fv_status cli_parse(const cli_verb *verb, int count, char **words, void *values)
{
    cli_common *common = values;
    bool given[FLAGS_MAX] = {false}, flags_end = false;

    FV_TRY(FV_ALLOC(common->operand, count + 1));
    FV_TRY(set_defaults(verb, count, values));
    for (int w = 0; w < count; w++) {
        const char *value, *word = words[w];
        if (flags_end || word[0] != '-' || !word[1]) {
            if (common->operands == verb->operands_max)
                return fv_fail(FV_E_USAGE, "'%s' is not expected here ('fovea help %s' shows what is)", word,
                               verb->name);
            common->operand[common->operands++] = word;
            continue;
        }
        if (strcmp(word, "--") == 0) {
            flags_end = true;
            continue;
        }
        int index = match_flag(verb, word, &value);
        if (index < 0) return unknown_flag(verb, word);
        cli_flag made;
        const cli_flag *flag = cli_flag_at(verb, index, &made);
        if (!cli_takes_value(flag)) {
            if (value) return fv_fail(FV_E_USAGE, "%s takes no value, got '%s'", typed(flag), value);
        } else if (!value) {
            if (w + 1 == count)
                return fv_fail(FV_E_USAGE, "%s: expected %s behind it, got nothing", word, flag->argument);
            value = words[++w];
        }
        if (given[index] && cli_takes_value(flag) && !repeats(flag))
            return fv_fail(FV_E_USAGE, "%s is given twice", typed(flag));
        given[index] = true;
        FV_TRY(set_value(flag, last_word(verb), value, values));
    }
    if (common->help) return FV_OK;
    FV_TRY(check_required(verb, given));
    if (common->operands < verb->operands_min)
        return fv_fail(FV_E_USAGE, "expected %s ('fovea help %s' shows how)", verb->operands, verb->name);
    return FV_OK;
}

void cli_release(const cli_verb *verb, void *values)
{
    const cli_flag *flag;
    cli_flag made;

    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        void *field = (char *)values + flag->offset;
        if (repeats(flag)) fv_free(((cli_texts *)field)->items);
        if (flag->kind == CLI_INTS) fv_free(((cli_ints *)field)->items);
    }
    fv_free(((cli_common *)values)->operand);
}

/* ---- verbs ----------------------------------------------------------------------------------------------------- */

/* The verb whose first word is nearest to `word`; NULL when none is near. */
static const cli_verb *nearest_verb(const char *word)
{
    const cli_verb *best = NULL;
    int best_distance = (int)strlen(word) / 3 + 2;

    for (int i = 0; cli_verbs[i]; i++) {
        char first[32];
        snprintf(first, sizeof first, "%.*s", (int)strcspn(cli_verbs[i]->name, " "), cli_verbs[i]->name);
        int distance = fv_edit_distance(word, first);
        if (distance >= best_distance) continue;
        best_distance = distance;
        best = cli_verbs[i];
    }
    return best;
}

/* "ppl or needle", for the verbs whose first word is `first`. */
static fv_status second_word(const char *first, const char *second)
{
    fv_text list = {0};
    size_t length = strlen(first);
    fv_status status;

    for (int i = 0; cli_verbs[i]; i++)
        if (strncmp(cli_verbs[i]->name, first, length) == 0 && cli_verbs[i]->name[length] == ' ')
            fv_text_printf(&list, "%s%s", list.length ? " or " : "", cli_verbs[i]->name + length + 1);
    status = list.length == 0 ? FV_OK
             : second ? fv_fail(FV_E_USAGE, "%s: expected %s behind it, got '%s'", first, fv_text_get(&list), second)
                      : fv_fail(FV_E_USAGE, "%s: expected %s behind it, got nothing", first, fv_text_get(&list));
    fv_text_free(&list);
    return status;
}

fv_status cli_find(int count, char **words, const cli_verb **verb, int *used)
{
    for (int i = 0; cli_verbs[i]; i++) {
        const char *space = strchr(cli_verbs[i]->name, ' ');
        size_t first = space ? (size_t)(space - cli_verbs[i]->name) : strlen(cli_verbs[i]->name);
        if (strlen(words[0]) != first || strncmp(words[0], cli_verbs[i]->name, first) != 0) continue;
        if (space && (count < 2 || strcmp(words[1], space + 1) != 0)) continue;
        *verb = cli_verbs[i];
        *used = space ? 2 : 1;
        return FV_OK;
    }
    FV_TRY(second_word(words[0], count > 1 ? words[1] : NULL));
    const cli_verb *near = nearest_verb(words[0]);
    if (near)
        return fv_fail(FV_E_USAGE, "'%s' is no verb of this version; did you mean '%s'? ('fovea help' lists them)",
                       words[0], near->name);
    return fv_fail(FV_E_USAGE, "'%s' is no verb of this version ('fovea help' lists them)", words[0]);
}
