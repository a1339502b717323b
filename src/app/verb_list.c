/* fovea list, fovea show: what there is, from the registry. */
#include "app/app.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/verbs.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "base/options.h"
#include "models/architecture.h"

static const char *const kinds[] = {"mechanism", "model"};
enum { KIND_MECHANISM, KIND_MODEL, KINDS };

static const struct {
    unsigned trait;
    const char *name, *words;
} traits[] = {
    {FV_CAUSAL, "causal", "causal by nature"},
    {FV_NEVER_CAUSAL, "never_causal", "cannot be causal"},
    {FV_STATIC_PLAN, "static_plan", "who sees whom depends on shape and options only"},
    {FV_BLOCK_CAUSAL, "block_causal", "its selection is causal by block, not by token"},
    {FV_ROWS_SUM_TO_ONE, "rows_sum_to_one", "weights of a query sum to one"},
    {FV_LINEAR_IN_V, "linear_in_v", "linear in v"},
    {FV_DECODE_EXACT, "decode_exact", "decoding token by token gives what prefill gives"},
    {FV_DIFFERENTIABLE, "differentiable", "has gradients"},
    {FV_SELF_ONLY, "self_only", "as many queries as keys"},
    {FV_NO_SCALE, "no_scale", "has no scale"},
    {FV_NO_LSE, "no_lse", "has no log-sum-exp"},
    {FV_NO_MAP, "no_plan", "has no set of query-key pairs"},
    {FV_RECURRENT, "recurrent", "in a model it keeps a state instead of keys and values"},
};
enum { TRAITS = sizeof traits / sizeof traits[0] };

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static json_t *mechanism_json(const fv_mechanism *mechanism)
{
    json_t *object = json_object(), *list = json_array();

    app_put(object, "name", json_string(mechanism->name));
    app_put(object, "kind", json_string(kinds[KIND_MECHANISM]));
    app_put(object, "title", json_string(mechanism->title));
    app_put(object, "sheet", json_integer(mechanism->sheet));
    app_put(object, "family", json_string(fv_family_name(mechanism->family)));
    for (int t = 0; t < TRAITS; t++)
        if (mechanism->traits & traits[t].trait) app_append(list, json_string(traits[t].name));
    app_put(object, "traits", list);
    return object;
}

static json_t *model_json(const fv_architecture *architecture)
{
    json_t *object = json_object();

    app_put(object, "name", json_string(architecture->name));
    app_put(object, "kind", json_string(kinds[KIND_MODEL]));
    app_put(object, "title", json_string(architecture->title));
    app_put(object, "sheet", json_null());
    app_put(object, "family", json_string("decoder"));
    app_put(object, "traits", json_array());
    return object;
}

/* A bound of an option: a whole number where the option holds whole numbers. */
static json_t *bound(const fv_option *option, double value)
{
    if (option->type == FV_OPTION_ENUM || !isfinite(value)) return json_null();
    return option->type == FV_OPTION_FLOAT ? app_number(value) : json_integer((json_int_t)value);
}

/* A default as a number where it is one, a single item of a tuple or list too. */
static json_t *initial(const fv_option *option)
{
    bool several = option->type == FV_OPTION_TUPLE || option->type == FV_OPTION_LIST;

    if (!option->initial) return json_null();
    if (option->type == FV_OPTION_INT || option->type == FV_OPTION_BOOL || (several && !strpbrk(option->initial, "x+")))
        return json_integer(strtoll(option->initial, NULL, 10));
    if (option->type == FV_OPTION_FLOAT) return app_number(strtod(option->initial, NULL));
    return json_string(option->initial);
}

static json_t *option_json(const fv_option *option)
{
    json_t *object = json_object();

    app_put(object, "name", json_string(option->name));
    app_put(object, "type", json_string(fv_option_type_name(option->type)));
    app_put(object, "default", initial(option));
    app_put(object, "min", bound(option, option->min));
    app_put(object, "max", bound(option, option->max));
    if (option->choices) {
        json_t *choices = json_array();
        for (int i = 0; option->choices[i]; i++)
            app_append(choices, json_string(option->choices[i]));
        app_put(object, "choices", choices);
    }
    app_put(object, "help", json_string(option->help));
    return object;
}

static json_t *show_json(const fv_mechanism *mechanism)
{
    json_t *object = mechanism_json(mechanism), *options = json_array(), *params = json_array();

    for (const fv_option *o = mechanism->options; o && o->name; o++)
        app_append(options, option_json(o));
    for (const fv_param *p = mechanism->params; p && p->name; p++) {
        json_t *param = json_object();
        app_put(param, "name", json_string(p->name));
        app_put(param, "shape", json_string(p->shape));
        app_put(param, "help", json_string(p->help));
        app_append(params, param);
    }
    app_put(object, "options", options);
    app_put(object, "params", params);
    app_put(object, "formula", json_string(mechanism->formula ? mechanism->formula : ""));
    app_put(object, "cost", json_string(mechanism->cost ? mechanism->cost : ""));
    app_put(object, "paper", json_string(mechanism->paper ? mechanism->paper : ""));
    return object;
}

/* ---- list ------------------------------------------------------------------------------------------------------ */

static const char *kind_name(const void *user, int index)
{
    (void)user;
    return kinds[index];
}

/* "mechanism", or "mechanisms"; KINDS for all. */
static fv_status read_kind(const cli_common *common, int *kind)
{
    const char *word = common->operands ? common->operand[0] : NULL;

    for (*kind = 0; word && *kind < KINDS; (*kind)++) {
        size_t length = strlen(kinds[*kind]);
        if (strncmp(word, kinds[*kind], length) == 0 && (!word[length] || strcmp(word + length, "s") == 0))
            return FV_OK;
    }
    *kind = KINDS;
    if (!word) return FV_OK;
    const char *near = fv_nearest(word, KINDS, kind_name, NULL);
    return fv_fail(FV_E_USAGE, "kind: expected mechanism or model, got '%s'%s%s%s", word,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static fv_status list_table(int kind)
{
    app_table table = {.columns = 4, .left = (const bool[]){true, true, true, true}};

    app_table_cell(&table, "NAME");
    app_table_cell(&table, "KIND");
    app_table_cell(&table, "FAMILY");
    app_table_cell(&table, "TITLE");
    for (int i = 0; kind != KIND_MODEL && fv_mechanisms[i]; i++) {
        app_table_cell(&table, "%s", fv_mechanisms[i]->name);
        app_table_cell(&table, "%s", kinds[KIND_MECHANISM]);
        app_table_cell(&table, "%s", fv_family_name(fv_mechanisms[i]->family));
        app_table_cell(&table, "%s", fv_mechanisms[i]->title);
    }
    for (int i = 0; kind != KIND_MECHANISM && fv_architecture_at(i); i++) {
        app_table_cell(&table, "%s", fv_architecture_at(i)->name);
        app_table_cell(&table, "%s", kinds[KIND_MODEL]);
        app_table_cell(&table, "decoder");
        app_table_cell(&table, "%s", fv_architecture_at(i)->title);
    }
    return app_table_print(&table, stdout);
}

static fv_status list(struct app *app, const void *values)
{
    json_t *array;
    int kind;

    (void)values;
    FV_TRY(read_kind(app->common, &kind));
    if (!app->common->json) return list_table(kind);
    array = json_array();
    for (int i = 0; kind != KIND_MODEL && fv_mechanisms[i]; i++)
        app_append(array, mechanism_json(fv_mechanisms[i]));
    for (int i = 0; kind != KIND_MECHANISM && fv_architecture_at(i); i++)
        app_append(array, model_json(fv_architecture_at(i)));
    return app_json_print(array);
}

/* ---- show ------------------------------------------------------------------------------------------------------ */

static void show_options(const fv_mechanism *mechanism)
{
    for (const fv_option *o = mechanism->options; o && o->name; o++) {
        printf("  %s=%s", o->name, o->initial ? o->initial : "(must be given)");
        printf("   %s: %s", fv_option_type_name(o->type), o->help);
        if (o->choices) {
            for (int i = 0; o->choices[i]; i++)
                printf("%s%s", i ? " or " : " [", o->choices[i]);
            printf("]");
        } else if (o->type != FV_OPTION_BOOL) {
            printf(" [%.10g to %.10g]", o->min, o->max);
        }
        printf("\n");
    }
}

static void show_text(const fv_mechanism *mechanism)
{
    printf("%s: %s\n", mechanism->name, mechanism->title);
    printf("  family   %s\n", fv_family_name(mechanism->family));
    if (mechanism->paper) printf("  paper    %s\n", mechanism->paper);
    if (mechanism->formula) printf("  formula  %s\n", mechanism->formula);
    if (mechanism->cost) printf("  cost     %s\n", mechanism->cost);
    printf("\nIt promises:\n");
    for (int t = 0; t < TRAITS; t++)
        if (mechanism->traits & traits[t].trait) printf("  %-16s %s\n", traits[t].name, traits[t].words);
    if (mechanism->options && mechanism->options->name) printf("\nOptions, with their defaults:\n");
    show_options(mechanism);
    if (mechanism->params && mechanism->params->name) printf("\nTensors of its own (--param NAME=FILE):\n");
    for (const fv_param *p = mechanism->params; p && p->name; p++)
        printf("  %s %s   %s%s\n", p->name, p->shape, p->help, p->output ? " (also --param-out)" : "");
}

static fv_status show_model(struct app *app, const fv_architecture *architecture)
{
    json_t *object;

    if (!app->common->json) {
        printf("%s: %s\n  a decoder that 'fovea run', 'compare' and 'eval' take as a GGUF file\n", architecture->name,
               architecture->title);
        return FV_OK;
    }
    object = model_json(architecture);
    app_put(object, "options", json_array());
    app_put(object, "params", json_array());
    app_put(object, "formula", json_string(""));
    app_put(object, "cost", json_string(""));
    app_put(object, "paper", json_string(""));
    return app_json_print(object);
}

static fv_status show(struct app *app, const void *values)
{
    const char *name = app->common->operand[0];
    const fv_mechanism *mechanism;

    (void)values;
    for (int i = 0; fv_architecture_at(i); i++)
        if (strcmp(fv_architecture_at(i)->name, name) == 0) return show_model(app, fv_architecture_at(i));
    FV_TRY(fv_mechanism_named(name, &mechanism));
    if (app->common->json) return app_json_print(show_json(mechanism));
    show_text(mechanism);
    return FV_OK;
}

const cli_verb verb_list = {
    .name = "list",
    .summary = "what there is: mechanisms and model architectures",
    .operands = "[mechanism|model]",
    .operands_max = 1,
    .about = "Lists everything that has a name, or one kind of it. 'fovea show NAME' says more about one.",
    .example = "  fovea list\n  fovea list mechanism --json\n",
    .size = sizeof(cli_common),
    .run = list,
};

const cli_verb verb_show = {
    .name = "show",
    .summary = "one mechanism: formula, options, tensors, cost",
    .operands = "NAME",
    .operands_min = 1,
    .operands_max = 1,
    .about = "Shows a mechanism's formula in plain text, its options with defaults and ranges, its own tensors with "
             "their shapes, what it costs, and the paper it comes from.",
    .example = "  fovea show nsa\n  fovea show moba --json\n",
    .size = sizeof(cli_common),
    .run = show,
};
