/* Flags that several verbs have, written once: where a value goes, and the heading it stands under (NULL: none). */
#ifndef FV_APP_FLAGS_H
#define FV_APP_FLAGS_H

#include "app/cli.h"
#include "fovea/base.h"

/* clang-format off */
#define FLAG_MODEL(at, heading)                                                                                        \
    {.name = "model", .letter = 'm', .kind = CLI_FILE, .offset = (at), .argument = "MODEL", .required = true,         \
     .group = heading, .help = "GGUF file"}
#define FLAG_FILE(at, needed, words)                                                                                   \
    {.name = "file", .letter = 'f', .kind = CLI_FILE, .offset = (at), .argument = "FILE", .required = (needed),        \
     .help = words}
#define FLAG_DEPTHS(at, first, words)                                                                                  \
    {.name = "depths", .kind = CLI_INTS, .offset = (at), .argument = "0,50,100", .initial = first, .min = 0,           \
     .max = 100, .help = words}
#define FLAG_RAW(at)                                                                                                   \
    {.name = "raw", .kind = CLI_SWITCH, .offset = (at), .help = "no chat template: FILE, then TEXT, as they are"}
#define FLAG_CONTEXT(at)                                                                                               \
    {.name = "ctx", .kind = CLI_INT, .offset = (at), .argument = "N", .min = 1, .max = 1 << 24,                       \
     .help = "most tokens to hold (otherwise as many as the model was trained for)"}
#define FLAG_ATTENTION(at, heading)                                                                                    \
    {.name = "attention", .letter = 'a', .kind = CLI_SPEC, .offset = (at), .argument = "SPEC", .group = heading,      \
     .help = "mechanism in the layers that see everything, or a layer plan RANGE/SPEC;...;rest/SPEC"}
#define FLAG_DENSE_LAST(at)                                                                                            \
    {.name = "dense-last", .kind = CLI_INT, .offset = (at), .argument = "N", .initial = "0", .min = 0, .max = 1 << 24, \
     .help = "tokens at a prompt's end that read everything, whatever SPEC says: the question stands there"}
#define FLAG_CACHE(at)                                                                                                 \
    {.name = "cache", .kind = CLI_TEXT, .offset = (at), .argument = "SPEC",                                           \
     .help = "cache policy, or a layer plan of them ('fovea list policy')"}
#define FLAG_PRECISION(at)                                                                                             \
    {.name = "precision", .kind = CLI_CHOICE, .offset = (at), .argument = "TYPE", .initial = "auto",                  \
     .choices = (const char *const[]){"auto", "f32", NULL}, .help = "f32 computes everything in f32 from the weights as stored"}
#define FLAG_QUESTION(at)                                                                                              \
    {.name = "prompt", .letter = 'p', .kind = CLI_TEXT, .offset = (at), .argument = "QUESTION",                       \
     .help = "what to ask about it"}
#define FLAG_SCORE(at, first)                                                                                          \
    {.name = "score", .kind = CLI_INT, .offset = (at), .argument = "S", .initial = first, .min = 1, .max = 1 << 20,   \
     .help = "tokens at the document's end that are fed one at a time and scored"}
/* clang-format on */

/* What FLAG_PRECISION's value says. */
static inline fv_precision flag_precision(int choice)
{
    return choice == 1 ? FV_PRECISION_F32 : FV_PRECISION_AUTO;
}

#endif
