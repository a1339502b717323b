/* The command line.  Each verb declares its flags once, in a table; parsing, --help, the man page and the completions
 * are all made from these tables. */
#ifndef APP_CLI_H
#define APP_CLI_H

#include "base/options.h"

typedef enum cli_kind {
    CLI_SWITCH, /* bool */
    CLI_TEXT,   /* const char * */
    CLI_FILE,   /* const char *, a file's name */
    CLI_SPEC,   /* const char *, completed with the mechanisms' names */
    CLI_INT,    /* int64_t; without a default CLI_UNSET */
    CLI_NUMBER, /* double; without a default NAN */
    CLI_CHOICE, /* int, an index into `choices` */
    CLI_TEXTS,  /* cli_texts: may be given several times */
    CLI_SPECS,  /* cli_texts, completed as CLI_SPEC */
    CLI_INTS,   /* cli_ints: 1,2,3 */
    CLI_OPTION, /* what `option` says, read as in a SPEC */
} cli_kind;

#define CLI_UNSET INT64_MIN

typedef struct cli_texts {
    int count;
    const char **items;
} cli_texts;

typedef struct cli_ints {
    int count;
    int64_t *items;
} cli_ints;

typedef struct cli_flag {
    const char *name; /* without the dashes; NULL: only the letter */
    char letter;      /* 0: only the name */
    cli_kind kind;
    size_t offset;
    const char *argument; /* what stands for the value in help texts */
    const char *help;
    const char *initial; /* the default as it would be typed; NULL: none */
    double min, max;     /* of INT, NUMBER and each of INTS; both 0: no limit */
    const char *const *choices;
    const fv_option *option; /* of OPTION; offset: of the struct that the option's belongs to */
    bool required;
    const char *group; /* heading in help texts; NULL: as the flag before */
} cli_flag;

/* What every verb's values begin with. */
typedef struct cli_common {
    int64_t threads, seed;
    const char *device;
    bool json, quiet, help;
    int operands;
    const char **operand;
} cli_common;

struct app;

typedef struct cli_verb {
    const char *name;     /* "run", or two words: "eval ppl" */
    const char *summary;  /* one line */
    const char *operands; /* "[KIND]"; NULL: takes none */
    int operands_min, operands_max;
    const char *about;        /* a paragraph or two */
    const char *example;      /* command lines */
    const cli_flag *flags;    /* ends with an entry without name and letter */
    const fv_option *options; /* flags of the same names, behind the others; NULL: none */
    size_t options_offset;    /* of the struct that their offsets belong to */
    size_t size;              /* of the struct the offsets belong to; it starts with a cli_common */
    fv_status (*run)(struct app *app, const void *values);
} cli_verb;

#define CLI_END                                                                                                        \
    {                                                                                                                  \
        .name = NULL                                                                                                   \
    }

/* Every verb, NULL-ended (main.c). */
extern const cli_verb *const cli_verbs[];

/* Reads the words behind the verb into values (zeroed, verb->size bytes).  FV_E_USAGE says what was expected. */
fv_status cli_parse(const cli_verb *verb, int count, char **words, void *values);
void cli_release(const cli_verb *verb, void *values);

/* The verb named by the first one or two words; *used is how many.  FV_E_USAGE offers the nearest. */
fv_status cli_find(int count, char **words, const cli_verb **verb, int *used);

/* FV_E_USAGE, with "-m is missing" and the like. */
fv_status cli_missing(const char *flag, const char *why);

/* Texts made from the tables (help.c). */
void cli_help(fv_text *text);
void cli_help_verb(const cli_verb *verb, fv_text *text);
void cli_man(fv_text *text);
void cli_bash(fv_text *text);
void cli_zsh(fv_text *text);

extern const cli_flag cli_common_flags[];

/* The flag at `index` of a verb's own, its options and then the common ones; NULL behind the last.  That of an option
 * is made in `made`. */
const cli_flag *cli_flag_at(const cli_verb *verb, int index, cli_flag *made);
/* How many are a verb's own, options among them. */
int cli_own_flags(const cli_verb *verb);
bool cli_takes_value(const cli_flag *flag);
/* "-m, --model" or "--seed" */
void cli_spell(const cli_flag *flag, fv_text *text);

#endif
