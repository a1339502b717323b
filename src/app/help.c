/* Help, man page and completions, all from the verbs' tables. */
#include "app/cli.h"

#include <stdio.h>
#include <string.h>

#include "app/probes.h"
#include "attention/mechanism.h"
#include "cache/policy.h"
#include "layers/layer.h"
#include "models/architecture.h"

enum { WIDTH = 100, COLUMN = 30 };

/* Breaks `words` into lines no longer than WIDTH, each but the first behind `indent` spaces; `at` is where the first
 * line stands already. */
static void wrap(fv_text *text, const char *words, int indent, int at)
{
    while (*words) {
        size_t length = strcspn(words, " \n");
        if (length > 0 && at > indent && at + 1 + (int)length > WIDTH) {
            fv_text_printf(text, "\n%*s", indent, "");
            at = indent;
        } else if (at > indent && length > 0) {
            fv_text_add(text, " ", 1);
            at++;
        }
        fv_text_add(text, words, (int64_t)length);
        at += (int)length;
        words += length;
        if (*words == '\n') {
            fv_text_printf(text, "\n%*s", indent, "");
            at = indent;
        }
        if (*words) words++;
    }
    fv_text_add(text, "\n", 1);
}

static void flag_head(const cli_flag *flag, fv_text *text)
{
    cli_spell(flag, text);
    if (!cli_takes_value(flag)) return;
    fv_text_add(text, " ", 1);
    for (int i = 0; flag->choices && flag->choices[i]; i++)
        fv_text_printf(text, "%s%s", i ? "|" : "", flag->choices[i]);
    if (!flag->choices) fv_text_printf(text, "%s", flag->argument);
}

static void flag_words(const cli_flag *flag, fv_text *text)
{
    fv_text_printf(text, "%s", flag->help);
    if (flag->required) fv_text_printf(text, " (required)");
    if (flag->kind == CLI_TEXTS || flag->kind == CLI_SPECS) fv_text_printf(text, " (may be given several times)");
    if (flag->initial) fv_text_printf(text, " (default %s)", flag->initial);
}

static void usage_line(const cli_verb *verb, fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;

    fv_text_printf(text, "fovea %s", verb->name);
    if (verb->operands) fv_text_printf(text, " %s", verb->operands);
    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        if (!flag->required) continue;
        fv_text_printf(text, " %s%c%s %s", flag->letter ? "-" : "--", flag->letter ? flag->letter : flag->name[0],
                       flag->letter ? "" : flag->name + 1, flag->argument);
    }
    fv_text_printf(text, " [flags]");
}

void cli_help_verb(const cli_verb *verb, fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;

    fv_text_printf(text, "fovea %s: %s\n\nusage: ", verb->name, verb->summary);
    usage_line(verb, text);
    fv_text_printf(text, "\n\n");
    wrap(text, verb->about, 0, 0);
    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        int64_t start = text->length;
        if (flag->group || i == 0) {
            fv_text_printf(text, "\n%s:\n", flag->group ? flag->group : "Flags");
            start = text->length;
        }
        fv_text_printf(text, "  %s", flag->letter || !flag->name ? "" : "    ");
        flag_head(flag, text);
        int used = (int)(text->length - start);
        if (used >= COLUMN) {
            fv_text_printf(text, "\n");
            used = 0;
        }
        fv_text_printf(text, "%*s", COLUMN - used, "");
        fv_text words = {0};
        flag_words(flag, &words);
        wrap(text, fv_text_get(&words), COLUMN, COLUMN);
        fv_text_free(&words);
    }
    if (verb->example) fv_text_printf(text, "\nExamples:\n%s", verb->example);
}

void cli_help(fv_text *text)
{
    fv_text_printf(text, "fovea %s: computes, runs and compares attention\n\nusage: fovea VERB [flags]\n\nVerbs:\n",
                   fv_version());
    for (int i = 0; cli_verbs[i]; i++)
        fv_text_printf(text, "  %-12s  %s\n", cli_verbs[i]->name, cli_verbs[i]->summary);
    fv_text_printf(
        text,
        "\n'fovea help VERB' shows a verb's flags, 'fovea list' mechanisms, cache policies, probes and layers, 'fovea "
        "show NAME' one of "
        "them.\n'fovea --version' prints the version. Exit status: 0 done, 1 the work failed, 2 the "
        "command line is wrong.\n");
}

/* ---- man page -------------------------------------------------------------------------------------------------- */

/* Text for roff: backslashes and dashes escaped, no line starts with a dot. */
static void roff(fv_text *text, const char *words)
{
    for (const char *c = words; *c; c++) {
        if (*c == '\\')
            fv_text_printf(text, "\\e");
        else if (*c == '-')
            fv_text_printf(text, "\\-");
        else if ((*c == '.' || *c == '\'') && (c == words || c[-1] == '\n'))
            fv_text_printf(text, "\\&%c", *c);
        else
            fv_text_add(text, c, 1);
    }
}

static void man_flags(const cli_verb *verb, int from, int to, fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;

    for (int i = from; i < to && (flag = cli_flag_at(verb, i, &made)); i++) {
        fv_text part = {0};
        flag_head(flag, &part);
        fv_text_printf(text, ".TP\n.B ");
        roff(text, fv_text_get(&part));
        fv_text_printf(text, "\n");
        part.length = 0;
        flag_words(flag, &part);
        roff(text, fv_text_get(&part));
        fv_text_printf(text, "\n");
        fv_text_free(&part);
    }
}

void cli_man(fv_text *text)
{
    fv_text_printf(text,
                   ".TH FOVEA 1 \"\" \"fovea %s\" \"User Commands\"\n.SH NAME\nfovea \\- computes, runs and compares "
                   "attention\n.SH SYNOPSIS\n.B fovea\n.I VERB\n[flags]\n.SH DESCRIPTION\n"
                   "Runs language models from GGUF files under many kinds of attention, compares each with dense "
                   "attention on the same text, and computes the mechanisms themselves on tensors.\n.SH VERBS\n",
                   fv_version());
    for (int i = 0; cli_verbs[i]; i++) {
        const cli_verb *verb = cli_verbs[i];
        fv_text usage = {0};
        usage_line(verb, &usage);
        fv_text_printf(text, ".SS %s\n.B ", verb->name);
        roff(text, fv_text_get(&usage));
        fv_text_printf(text, "\n.PP\n");
        roff(text, verb->about);
        fv_text_printf(text, "\n");
        man_flags(verb, 0, cli_own_flags(verb), text);
        if (verb->example) {
            fv_text_printf(text, ".PP\n.nf\n");
            roff(text, verb->example);
            fv_text_printf(text, ".fi\n");
        }
        fv_text_free(&usage);
    }
    fv_text_printf(text, ".SH FLAGS OF EVERY VERB\n");
    man_flags(cli_verbs[0], cli_own_flags(cli_verbs[0]), 1 << 20, text);
    fv_text_printf(text, ".SH EXIT STATUS\n0: done. 1: the work failed. 2: the command line is wrong. Every failure "
                         "prints one sentence.\n");
}

/* ---- completions ----------------------------------------------------------------------------------------------- */

static void mechanism_names(fv_text *text)
{
    for (int i = 0; fv_mechanisms[i]; i++)
        fv_text_printf(text, "%s%s", i ? " " : "", fv_mechanisms[i]->name);
}

static void policy_names(fv_text *text)
{
    for (int i = 0; fv_policies[i]; i++)
        fv_text_printf(text, "%s%s", i ? " " : "", fv_policies[i]->name);
}

static void probe_names(fv_text *text)
{
    app_probe probe;

    for (int i = 0; app_probe_at(i, &probe); i++)
        fv_text_printf(text, "%s%s", i ? " " : "", probe.what->name);
}

static void layer_names(fv_text *text)
{
    for (int i = 0; fv_layer_types[i]; i++)
        fv_text_printf(text, "%s%s", i ? " " : "", fv_layer_types[i]->name);
}

/* What `show` knows, once each. */
static void all_names(fv_text *text)
{
    app_probe probe;

    mechanism_names(text);
    for (int i = 0; fv_policies[i]; i++)
        if (!fv_mechanism_find(fv_policies[i]->name)) fv_text_printf(text, " %s", fv_policies[i]->name);
    for (int i = 0; app_probe_at(i, &probe); i++)
        if (!fv_mechanism_find(probe.what->name) && !fv_policy_find(probe.what->name))
            fv_text_printf(text, " %s", probe.what->name);
    for (int i = 0; fv_layer_types[i]; i++)
        if (!fv_mechanism_find(fv_layer_types[i]->name) && !fv_policy_find(fv_layer_types[i]->name))
            fv_text_printf(text, " %s", fv_layer_types[i]->name);
    for (int i = 0; fv_architecture_at(i); i++)
        fv_text_printf(text, " %s", fv_architecture_at(i)->name);
}

static const char list_kinds[] = "mechanism policy probe layer operator reducer steer model";

static void flag_spellings(const cli_verb *verb, fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;

    for (int i = 0; (flag = cli_flag_at(verb, i, &made)); i++) {
        if (flag->letter) fv_text_printf(text, "-%c ", flag->letter);
        if (flag->name) fv_text_printf(text, "--%s ", flag->name);
    }
}

/* "eval ppl" as a case label and as a function's name */
static void verb_label(const cli_verb *verb, char joint, fv_text *text)
{
    for (const char *c = verb->name; *c; c++)
        fv_text_printf(text, "%c", *c == ' ' ? joint : *c);
}

/* Words that may follow `fovea`: first words only, once each (verbs that share one are neighbours). */
static void first_words(fv_text *text)
{
    for (int i = 0; cli_verbs[i]; i++) {
        size_t length = strcspn(cli_verbs[i]->name, " ");
        if (i > 0 && strcspn(cli_verbs[i - 1]->name, " ") == length &&
            strncmp(cli_verbs[i]->name, cli_verbs[i - 1]->name, length) == 0)
            continue;
        fv_text_printf(text, "%.*s ", (int)length, cli_verbs[i]->name);
    }
    fv_text_printf(text, "help");
}

/* A case list of the flags of one kind of value: "-m|--model|-f|--file" over every verb. */
static void flags_of(bool (*wanted)(const cli_flag *), fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;
    fv_text seen = {0};

    for (int v = 0; cli_verbs[v]; v++)
        for (int i = 0; (flag = cli_flag_at(cli_verbs[v], i, &made)); i++) {
            char spelling[64];
            if (!wanted(flag)) continue;
            for (int form = 0; form < 2; form++) {
                if (form == 0 ? !flag->letter : !flag->name) continue;
                if (form == 0)
                    snprintf(spelling, sizeof spelling, "|-%c|", flag->letter);
                else
                    snprintf(spelling, sizeof spelling, "|--%s|", flag->name);
                if (strstr(fv_text_get(&seen), spelling)) continue;
                fv_text_printf(&seen, "%s", spelling);
                fv_text_printf(text, "%s%.*s", text->length ? "|" : "", (int)strlen(spelling) - 2, spelling + 1);
            }
        }
    fv_text_free(&seen);
}

static bool wants_file(const cli_flag *flag)
{
    return flag->kind == CLI_FILE || (flag->option && flag->option->type == FV_OPTION_TEXT);
}

static bool wants_spec(const cli_flag *flag)
{
    return flag->kind == CLI_SPEC || flag->kind == CLI_SPECS;
}

static bool wants_policy(const cli_flag *flag)
{
    return flag->name && strcmp(flag->name, "cache") == 0;
}

static bool wants_probe(const cli_flag *flag)
{
    return flag->name && strcmp(flag->name, "probe") == 0;
}

static bool wants_other(const cli_flag *flag)
{
    return cli_takes_value(flag) && !wants_file(flag) && !wants_spec(flag) && !wants_policy(flag) && !wants_probe(flag);
}

void cli_bash(fv_text *text)
{
    fv_text files = {0}, specs = {0}, policies = {0}, probes = {0}, others = {0};

    flags_of(wants_file, &files);
    flags_of(wants_spec, &specs);
    flags_of(wants_policy, &policies);
    flags_of(wants_probe, &probes);
    flags_of(wants_other, &others);
    fv_text_printf(text, "# bash completion for fovea, made by 'fovea help --bash'\n_fovea()\n{\n"
                         "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]}\n"
                         "    COMPREPLY=()\n    case $before in\n");
    fv_text_printf(text, "    %s) COMPREPLY=($(compgen -f -- \"$word\")); return ;;\n", fv_text_get(&files));
    const struct {
        const char *label;
        void (*names)(fv_text *text);
    } named[] = {{fv_text_get(&specs), mechanism_names},
                 {fv_text_get(&policies), policy_names},
                 {fv_text_get(&probes), probe_names},
                 {"show", all_names},
                 {"apply", layer_names}};
    for (size_t n = 0; n < sizeof named / sizeof *named; n++) {
        fv_text_printf(text, "    %s) COMPREPLY=($(compgen -W \"", named[n].label);
        named[n].names(text);
        fv_text_printf(text, "\" -- \"$word\")); return ;;\n");
    }
    fv_text_printf(text, "    list) COMPREPLY=($(compgen -W \"%s\" -- \"$word\")); return ;;\n", list_kinds);
    fv_text_printf(text, "    %s) return ;;\n    esac\n", fv_text_get(&others));
    fv_text_printf(text, "    if [ \"$COMP_CWORD\" -eq 1 ]; then\n        COMPREPLY=($(compgen -W \"");
    first_words(text);
    fv_text_printf(text, "\" -- \"$word\"))\n        return\n    fi\n"
                         "    case ${COMP_WORDS[1]}:${COMP_WORDS[2]} in\n");
    for (int i = 0; cli_verbs[i]; i++) {
        bool two = strchr(cli_verbs[i]->name, ' ') != NULL;
        fv_text_printf(text, "    ");
        verb_label(cli_verbs[i], ':', text);
        fv_text_printf(text, "%s) COMPREPLY=($(compgen -W \"", two ? "" : ":*");
        flag_spellings(cli_verbs[i], text);
        fv_text_printf(text, "\" -- \"$word\")) %s\n", two ? ";;" : ";;&");
    }
    for (int i = 0; cli_verbs[i]; i++) {
        const char *space = strchr(cli_verbs[i]->name, ' ');
        if (space)
            fv_text_printf(text, "    %.*s:*) COMPREPLY+=($(compgen -W \"%s\" -- \"$word\")) ;;&\n",
                           (int)(space - cli_verbs[i]->name), cli_verbs[i]->name, space + 1);
    }
    fv_text_printf(text, "    help:*) COMPREPLY=($(compgen -W \"");
    first_words(text);
    fv_text_printf(text, "\" -- \"$word\")) ;;\n    esac\n}\ncomplete -o filenames -F _fovea fovea\n");
    fv_text_free(&files);
    fv_text_free(&specs);
    fv_text_free(&policies);
    fv_text_free(&probes);
    fv_text_free(&others);
}

/* Text inside a zsh specification: quotes, brackets and colons escaped. */
static void zsh_words(fv_text *text, const char *words)
{
    for (const char *c = words; *c; c++) {
        if (*c == '\'')
            fv_text_printf(text, "'\\''");
        else if (strchr("[]:\\", *c))
            fv_text_printf(text, "\\%c", *c);
        else
            fv_text_add(text, c, 1);
    }
}

static void zsh_flag(const cli_flag *flag, fv_text *text)
{
    for (int form = 0; form < 2; form++) {
        if (form == 0 ? !flag->letter : !flag->name) continue;
        fv_text_printf(text, " \\\n        '%s", flag->kind == CLI_TEXTS || flag->kind == CLI_SPECS ? "*" : "");
        if (form == 0)
            fv_text_printf(text, "-%c", flag->letter);
        else
            fv_text_printf(text, "--%s", flag->name);
        fv_text_printf(text, "[");
        zsh_words(text, flag->help);
        fv_text_printf(text, "]");
        if (cli_takes_value(flag)) {
            fv_text_printf(text, ":");
            zsh_words(text, flag->argument ? flag->argument : "value");
            fv_text_printf(text, ":");
            if (wants_file(flag)) fv_text_printf(text, "_files");
            if (wants_spec(flag) || wants_policy(flag) || wants_probe(flag)) {
                fv_text_printf(text, "(");
                (wants_policy(flag) ? policy_names : wants_probe(flag) ? probe_names : mechanism_names)(text);
                fv_text_printf(text, ")");
            }
            for (int i = 0; flag->choices && flag->choices[i]; i++)
                fv_text_printf(text, "%s%s%s", i ? " " : "(", flag->choices[i], flag->choices[i + 1] ? "" : ")");
        }
        fv_text_printf(text, "'");
    }
}

void cli_zsh(fv_text *text)
{
    const cli_flag *flag;
    cli_flag made;

    fv_text_printf(text, "#compdef fovea\n# zsh completion for fovea, made by 'fovea help --zsh'\n");
    for (int v = 0; cli_verbs[v]; v++) {
        fv_text_printf(text, "_fovea_");
        verb_label(cli_verbs[v], '_', text);
        fv_text_printf(text, "() {\n    _arguments");
        for (int i = 0; (flag = cli_flag_at(cli_verbs[v], i, &made)); i++)
            zsh_flag(flag, text);
        if (cli_verbs[v]->operands_max > 0) {
            fv_text_printf(text, " \\\n        '*:name:(");
            if (strcmp(cli_verbs[v]->name, "list") == 0)
                fv_text_printf(text, "%s", list_kinds);
            else if (strcmp(cli_verbs[v]->name, "inspect") == 0)
                probe_names(text);
            else if (strcmp(cli_verbs[v]->name, "apply") == 0)
                layer_names(text);
            else
                (strcmp(cli_verbs[v]->name, "show") == 0 ? all_names : mechanism_names)(text);
            fv_text_printf(text, ")'");
        }
        fv_text_printf(text, "\n}\n");
    }
    fv_text_printf(text, "_fovea() {\n    if (( CURRENT == 2 )); then\n        compadd ");
    first_words(text);
    fv_text_printf(text, "\n        return\n    fi\n    case $words[2]:$words[3] in\n");
    for (int v = 0; cli_verbs[v]; v++) {
        bool two = strchr(cli_verbs[v]->name, ' ') != NULL;
        fv_text_printf(text, "    ");
        verb_label(cli_verbs[v], ':', text);
        fv_text_printf(text, "%s) shift %d words; (( CURRENT -= %d )); _fovea_", two ? "" : ":*", two ? 2 : 1,
                       two ? 2 : 1);
        verb_label(cli_verbs[v], '_', text);
        fv_text_printf(text, " %s\n", two ? ";;" : ";|");
    }
    for (int v = 0; cli_verbs[v]; v++) {
        const char *space = strchr(cli_verbs[v]->name, ' ');
        if (space)
            fv_text_printf(text, "    %.*s:*) compadd %s ;|\n", (int)(space - cli_verbs[v]->name), cli_verbs[v]->name,
                           space + 1);
    }
    fv_text_printf(text, "    esac\n}\n_fovea \"$@\"\n");
}
