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
#include "cache/policy.h"
#include "models/architecture.h"

static const char *const kinds[] = {"mechanism", "policy", "model"}, *const plurals[] = {"mechanisms", "policies",
                                                                                         "models"};
enum { KIND_MECHANISM, KIND_POLICY, KIND_MODEL, KINDS };

struct trait {
    unsigned trait;
    const char *name, *words;
};

static const struct trait mechanism_traits[] = {
    {FV_CAUSAL, "causal", "causal by nature"},
    {FV_NEVER_CAUSAL, "never_causal", "cannot be causal"},
    {FV_STATIC_PLAN, "static_plan", "who sees whom depends on shape and options only"},
    {FV_BLOCK_CAUSAL, "block_causal",
     "its selection is causal by block, not by token; in a model a token alone reads every key"},
    {FV_OWN_DECODE, "own_decode", "decodes by a rule of its own"},
    {FV_ROWS_SUM_TO_ONE, "rows_sum_to_one", "weights of a query sum to one"},
    {FV_LINEAR_IN_V, "linear_in_v", "linear in v"},
    {FV_DECODE_EXACT, "decode_exact", "decoding token by token gives what prefill gives"},
    {FV_DIFFERENTIABLE, "differentiable", "has gradients"},
    {FV_SELF_ONLY, "self_only", "as many queries as keys"},
    {FV_NO_SCALE, "no_scale", "has no scale"},
    {FV_NO_LSE, "no_lse", "has no log-sum-exp"},
    {FV_NO_MAP, "no_plan", "has no set of query-key pairs"},
    {FV_NEEDS_KEPT, "needs_kept", "in a model its pooled rows are made when their tokens come, and kept"},
    {FV_RECURRENT, "recurrent", "in a model it keeps a state instead of keys and values"},
    {0},
};

static const struct trait policy_traits[] = {
    {FV_POLICY_POSITION, "position", "what is kept and read depends on positions only"},
    {FV_POLICY_SCORES, "scores", "it goes by scores that the model's own attention gives"},
    {FV_POLICY_PER_HEAD, "per_head", "key-value heads may hold or read different rows"},
    {FV_POLICY_ONCE, "once", "acts at the end of a prompt, from full attention"},
    {FV_POLICY_SELECTS, "selects", "keeps every row and reads some"},
    {FV_POLICY_BOUNDED, "bounded", "a prompt of any length never holds many more rows than its bound"},
    {FV_POLICY_CHUNKS, "chunks", "a prompt in any pieces gives the same rows"},
    {FV_POLICY_INSERTS, "inserts", "puts a token of its own between those of the text"},
    {FV_POLICY_FILTERS, "filters", "chooses tokens of the prompt before it is read"},
    {0},
};

/* Anything that has a name. */
struct thing {
    int kind;
    const char *name, *title, *family, *paper, *formula, *cost; /* the last three may be NULL */
    int sheet;                                                  /* 0: none */
    unsigned traits;
    const struct trait *words;   /* of its kind, ends with trait 0 */
    const fv_option *options[2]; /* its own, and those of its kind but for the ones it has itself */
    const fv_param *params;
};

static struct thing thing_of_mechanism(const fv_mechanism *m)
{
    return (struct thing){KIND_MECHANISM, m->name,  m->title,  fv_family_name(m->family), m->paper,     m->formula,
                          m->cost,        m->sheet, m->traits, mechanism_traits,          {m->options}, m->params};
}

static struct thing thing_of_policy(const fv_policy *p)
{
    return (struct thing){KIND_POLICY,
                          p->name,
                          p->title,
                          "cache",
                          p->paper,
                          p->keeps,
                          p->cost,
                          p->sheet,
                          p->traits,
                          policy_traits,
                          {p->options, fv_policy_common_options},
                          NULL};
}

/* In the order of the list; false behind the last. */
static bool thing_at(int index, struct thing *thing)
{
    static const struct trait none[] = {{0}};
    int mechanisms = 0, policies = 0;

    while (fv_mechanisms[mechanisms])
        mechanisms++;
    while (fv_policies[policies])
        policies++;
    if (index < mechanisms) {
        *thing = thing_of_mechanism(fv_mechanisms[index]);
        return true;
    }
    if (index < mechanisms + policies) {
        *thing = thing_of_policy(fv_policies[index - mechanisms]);
        return true;
    }
    const fv_architecture *architecture = fv_architecture_at(index - mechanisms - policies);
    if (!architecture) return false;
    *thing = (struct thing){.kind = KIND_MODEL,
                            .name = architecture->name,
                            .title = architecture->title,
                            .family = "decoder",
                            .words = none};
    return true;
}

/* Option number i of a thing, from 0; NULL behind the last. */
static const fv_option *option_at(const struct thing *thing, int i)
{
    for (const fv_option *o = thing->options[0]; o && o->name; o++)
        if (i-- == 0) return o;
    for (const fv_option *o = thing->options[1]; o && o->name; o++) {
        bool own = false;
        for (const fv_option *other = thing->options[0]; other && other->name; other++)
            own |= strcmp(other->name, o->name) == 0;
        if (!own && i-- == 0) return o;
    }
    return NULL;
}

/* ---- JSON ------------------------------------------------------------------------------------------------------ */

static json_t *thing_json(const struct thing *thing)
{
    json_t *object = json_object(), *list = json_array();

    app_put(object, "name", json_string(thing->name));
    app_put(object, "kind", json_string(kinds[thing->kind]));
    app_put(object, "title", json_string(thing->title));
    app_put(object, "sheet", thing->sheet ? json_integer(thing->sheet) : json_null());
    app_put(object, "family", json_string(thing->family));
    for (const struct trait *t = thing->words; t->trait; t++)
        if (thing->traits & t->trait) app_append(list, json_string(t->name));
    app_put(object, "traits", list);
    return object;
}

/* A bound of an option: a whole number where the option holds whole numbers. */
static json_t *bound(const fv_option *option, double value)
{
    if (option->type == FV_OPTION_ENUM || option->type == FV_OPTION_TEXT || !isfinite(value)) return json_null();
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

static json_t *show_json(const struct thing *thing)
{
    json_t *object = thing_json(thing), *options = json_array(), *params = json_array();

    for (int i = 0; option_at(thing, i); i++)
        app_append(options, option_json(option_at(thing, i)));
    for (const fv_param *p = thing->params; p && p->name; p++) {
        json_t *param = json_object();
        app_put(param, "name", json_string(p->name));
        app_put(param, "shape", json_string(p->shape));
        app_put(param, "help", json_string(p->help));
        app_append(params, param);
    }
    app_put(object, "options", options);
    app_put(object, "params", params);
    app_put(object, "formula", json_string(thing->formula ? thing->formula : ""));
    app_put(object, "cost", json_string(thing->cost ? thing->cost : ""));
    app_put(object, "paper", json_string(thing->paper ? thing->paper : ""));
    return object;
}

/* ---- list ------------------------------------------------------------------------------------------------------ */

static const char *kind_name(const void *user, int index)
{
    (void)user;
    return kinds[index];
}

/* "policy", or "policies"; KINDS for all. */
static fv_status read_kind(const cli_common *common, int *kind)
{
    const char *word = common->operands ? common->operand[0] : NULL;

    for (*kind = 0; word && *kind < KINDS; (*kind)++)
        if (strcmp(word, kinds[*kind]) == 0 || strcmp(word, plurals[*kind]) == 0) return FV_OK;
    *kind = KINDS;
    if (!word) return FV_OK;
    const char *near = fv_nearest(word, KINDS, kind_name, NULL);
    return fv_fail(FV_E_USAGE, "kind: expected mechanism, policy or model, got '%s'%s%s%s", word,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

static fv_status list_table(int kind)
{
    app_table table = {.columns = 4, .left = (const bool[]){true, true, true, true}};
    struct thing thing;

    app_table_cell(&table, "NAME");
    app_table_cell(&table, "KIND");
    app_table_cell(&table, "FAMILY");
    app_table_cell(&table, "TITLE");
    for (int i = 0; thing_at(i, &thing); i++) {
        if (kind != KINDS && kind != thing.kind) continue;
        app_table_cell(&table, "%s", thing.name);
        app_table_cell(&table, "%s", kinds[thing.kind]);
        app_table_cell(&table, "%s", thing.family);
        app_table_cell(&table, "%s", thing.title);
    }
    return app_table_print(&table, stdout);
}

static fv_status list(struct app *app, const void *values)
{
    struct thing thing;
    json_t *array;
    int kind;

    (void)values;
    FV_TRY(read_kind(app->common, &kind));
    if (!app->common->json) return list_table(kind);
    array = json_array();
    for (int i = 0; thing_at(i, &thing); i++)
        if (kind == KINDS || kind == thing.kind) app_append(array, thing_json(&thing));
    return app_json_print(array);
}

/* ---- show ------------------------------------------------------------------------------------------------------ */

static void show_option(const fv_option *o)
{
    printf("  %s=%s", o->name, o->initial ? o->initial : "(must be given)");
    printf("   %s: %s", fv_option_type_name(o->type), o->help);
    if (o->choices) {
        for (int i = 0; o->choices[i]; i++)
            printf("%s%s", i ? " or " : " [", o->choices[i]);
        printf("]");
    } else if (o->type != FV_OPTION_BOOL && o->type != FV_OPTION_TEXT) {
        printf(" [%.10g to %.10g]", o->min, o->max);
    }
    printf("\n");
}

static void show_text(const struct thing *thing)
{
    printf("%s: %s\n", thing->name, thing->title);
    if (thing->kind == KIND_MODEL) {
        printf("  a decoder that 'fovea run', 'compare' and 'eval' take as a GGUF file\n");
        return;
    }
    printf("  %-8s %s\n", "family", thing->family);
    if (thing->paper) printf("  %-8s %s\n", "paper", thing->paper);
    if (thing->formula) printf("  %-8s %s\n", thing->kind == KIND_POLICY ? "keeps" : "formula", thing->formula);
    if (thing->cost) printf("  %-8s %s\n", "cost", thing->cost);
    if (thing->traits) printf("\nIt promises:\n");
    for (const struct trait *t = thing->words; t->trait; t++)
        if (thing->traits & t->trait) printf("  %-16s %s\n", t->name, t->words);
    if (option_at(thing, 0)) printf("\nOptions, with their defaults:\n");
    for (int i = 0; option_at(thing, i); i++)
        show_option(option_at(thing, i));
    if (thing->params && thing->params->name) printf("\nTensors of its own (--param NAME=FILE):\n");
    for (const fv_param *p = thing->params; p && p->name; p++)
        printf("  %s %s   %s%s\n", p->name, p->shape, p->help, p->output ? " (also --param-out)" : "");
}

static const char *name_at(const void *user, int index)
{
    struct thing thing;

    (void)user;
    thing_at(index, &thing);
    return thing.name;
}

static fv_status no_such_thing(const char *name)
{
    struct thing thing;
    int count = 0;

    while (thing_at(count, &thing))
        count++;
    const char *near = fv_nearest(name, count, name_at, NULL);
    return fv_fail(FV_E_USAGE, "'%s' is not known%s%s%s ('fovea list' has all names)", name,
                   near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* A mechanism and a policy may share a name: then both are shown. */
static fv_status show(struct app *app, const void *values)
{
    const char *name = app->common->operand[0];
    json_t *object = NULL, *also = json_array();
    struct thing thing;
    int found = 0;

    (void)values;
    for (int i = 0; thing_at(i, &thing); i++) {
        if (strcmp(thing.name, name) != 0) continue;
        if (app->common->json) {
            if (found == 0)
                object = show_json(&thing);
            else
                app_append(also, show_json(&thing));
        } else {
            if (found > 0) printf("\n");
            show_text(&thing);
        }
        found++;
    }
    if (found > 1 && object)
        app_put(object, "also", also);
    else
        json_decref(also);
    if (found == 0) return no_such_thing(name);
    return object ? app_json_print(object) : FV_OK;
}

const cli_verb verb_list = {
    .name = "list",
    .summary = "what there is: mechanisms, cache policies and model architectures",
    .operands = "[mechanism|policy|model]",
    .operands_max = 1,
    .about = "Lists everything that has a name, or one kind of it. 'fovea show NAME' says more about one.",
    .example = "  fovea list\n  fovea list policy\n  fovea list mechanism --json\n",
    .size = sizeof(cli_common),
    .run = list,
};

const cli_verb verb_show = {
    .name = "show",
    .summary = "one mechanism or cache policy: formula, options, tensors, cost",
    .operands = "NAME",
    .operands_min = 1,
    .operands_max = 1,
    .about = "Shows a mechanism's formula in plain text, its options with defaults and ranges, its own tensors with "
             "their shapes, what it costs, and the paper it comes from; of a cache policy what it keeps, with the "
             "options every policy has. Where both have the name both are shown, with --json the policy under 'also'.",
    .example = "  fovea show nsa\n  fovea show sinkring\n  fovea show moba --json\n",
    .size = sizeof(cli_common),
    .run = show,
};
