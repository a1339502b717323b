/* fovea list, fovea show: what there is, from the registry. */
#include "app/app.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/flags.h"
#include "app/probes.h"
#include "app/show_plan.h"
#include "app/verbs.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "base/options.h"
#include "cache/policy.h"
#include "layers/layer.h"
#include "models/architecture.h"

enum { MECHANISM, POLICY, PROBE, LAYER, OPERATOR, REDUCER, STEER, MODEL, KINDS };
static const char *const kinds[] = {"mechanism", "policy", "probe", "layer", "operator", "reducer", "steer", "model"};
static const char *const plurals[] = {"mechanisms", "policies", "probes", "layers",
                                      "operators",  "reducers", "steers", "models"};

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
    const fv_param *inputs, *outputs; /* of layers */
};

static struct thing thing_of_mechanism(const fv_mechanism *m)
{
    return (struct thing){.kind = MECHANISM,
                          .name = m->name,
                          .title = m->title,
                          .family = fv_family_name(m->family),
                          .paper = m->paper,
                          .formula = m->formula,
                          .cost = m->cost,
                          .sheet = m->sheet,
                          .traits = m->traits,
                          .words = mechanism_traits,
                          .options = {m->options},
                          .params = m->params};
}

static struct thing thing_of_policy(const fv_policy *p)
{
    return (struct thing){.kind = POLICY,
                          .name = p->name,
                          .title = p->title,
                          .family = "cache",
                          .paper = p->paper,
                          .formula = p->keeps,
                          .cost = p->cost,
                          .sheet = p->sheet,
                          .traits = p->traits,
                          .words = policy_traits,
                          .options = {p->options, fv_policy_common_options}};
}

static const struct trait no_traits[] = {{0}};

static struct thing thing_of_probe(const fv_probe *p)
{
    return (struct thing){.kind = PROBE,
                          .name = p->name,
                          .title = p->title,
                          .family = "probe",
                          .paper = p->paper,
                          .formula = p->finds,
                          .cost = p->cost,
                          .sheet = p->sheet,
                          .words = no_traits,
                          .options = {p->options}};
}

static const struct trait layer_traits[] = {{FV_LAYER_DIFFERENTIABLE, "differentiable", "has gradients"}, {0}};

static struct thing thing_of_layer(const fv_layer_type *l)
{
    static const int kind[] = {[FV_KIND_LAYER] = LAYER, [FV_KIND_OPERATOR] = OPERATOR, [FV_KIND_REDUCER] = REDUCER,
                               [FV_KIND_STEER] = STEER, [FV_KIND_PROBE] = PROBE,       [FV_KIND_POLICY] = POLICY};

    return (struct thing){.kind = kind[l->kind],
                          .name = l->name,
                          .title = l->title,
                          .family = kinds[kind[l->kind]],
                          .paper = l->paper,
                          .formula = l->formula,
                          .cost = l->cost,
                          .sheet = l->sheet,
                          .traits = l->traits,
                          .words = layer_traits,
                          .options = {l->options},
                          .params = l->params,
                          .inputs = l->inputs,
                          .outputs = l->outputs};
}

static struct thing thing_of_model(const fv_architecture *a)
{
    return (struct thing){.kind = MODEL, .name = a->name, .title = a->title, .family = "decoder", .words = no_traits};
}

/* In the order of the list; false behind the last. */
static bool thing_at(int index, struct thing *thing)
{
    app_probe probe;

    for (int i = 0; fv_mechanisms[i]; i++)
        if (index-- == 0) return *thing = thing_of_mechanism(fv_mechanisms[i]), true;
    for (int i = 0; fv_policies[i]; i++)
        if (index-- == 0) return *thing = thing_of_policy(fv_policies[i]), true;
    for (int i = 0; app_probe_at(i, &probe); i++)
        if (index-- == 0) return *thing = thing_of_probe(probe.what), true;
    for (int i = 0; fv_layer_types[i]; i++)
        if (index-- == 0) return *thing = thing_of_layer(fv_layer_types[i]), true;
    for (int i = 0; fv_architecture_at(i); i++)
        if (index-- == 0) return *thing = thing_of_model(fv_architecture_at(i)), true;
    return false;
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
    return option->type == FV_OPTION_FLOAT || option->type == FV_OPTION_FLOATS ? app_number(value)
                                                                               : json_integer((json_int_t)value);
}

/* A default as a number where it is one, a single item of a tuple or list too. */
static json_t *initial(const fv_option *option)
{
    bool several = option->type == FV_OPTION_TUPLE || option->type == FV_OPTION_LIST;

    if (!option->initial) return json_null();
    if (option->type == FV_OPTION_INT || option->type == FV_OPTION_BOOL || (several && !strpbrk(option->initial, "x+")))
        return json_integer(strtoll(option->initial, NULL, 10));
    if (option->type == FV_OPTION_FLOAT || (option->type == FV_OPTION_FLOATS && !strchr(option->initial, '+')))
        return app_number(strtod(option->initial, NULL));
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

static json_t *tensors_json(const fv_param *table)
{
    json_t *list = json_array();

    for (const fv_param *p = table; p && p->name; p++) {
        json_t *param = json_object();
        app_put(param, "name", json_string(p->name));
        app_put(param, "shape", json_string(p->shape));
        app_put(param, "help", json_string(p->help));
        app_append(list, param);
    }
    return list;
}

static json_t *show_json(const struct thing *thing)
{
    json_t *object = thing_json(thing), *options = json_array();

    for (int i = 0; option_at(thing, i); i++)
        app_append(options, option_json(option_at(thing, i)));
    app_put(object, "options", options);
    app_put(object, "params", tensors_json(thing->params));
    if (thing->inputs) {
        app_put(object, "inputs", tensors_json(thing->inputs));
        app_put(object, "outputs", tensors_json(thing->outputs));
    }
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
    return fv_fail(FV_E_USAGE,
                   "kind: expected mechanism, policy, probe, layer, operator, reducer, steer or model, got '%s'%s%s%s",
                   word, near ? "; did you mean '" : "", near ? near : "", near ? "'?" : "");
}

/* Of the kind (KINDS: of any), and the first of its name: a probe of models may be one on tensors too, which 'show' has
 * both of. */
static bool is_listed(int kind, int index, const struct thing *thing)
{
    struct thing other;

    for (int i = 0; i < index && thing_at(i, &other); i++)
        if (other.kind == thing->kind && strcmp(other.name, thing->name) == 0) return false;
    return kind == KINDS || kind == thing->kind;
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
        if (!is_listed(kind, i, &thing)) continue;
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
        if (is_listed(kind, i, &thing)) app_append(array, thing_json(&thing));
    return app_json_print(array);
}

/* ---- show ------------------------------------------------------------------------------------------------------ */

static void show_option(const fv_option *o)
{
    printf("  %s=%s", o->name, o->initial ? o->initial : "(must be given)");
    printf("   %s: %s", fv_option_type_name(o->type), o->help);
    bool numbers = o->type != FV_OPTION_ENUM && o->type != FV_OPTION_BOOL && o->type != FV_OPTION_TEXT;

    for (int i = 0; o->choices && o->choices[i]; i++)
        printf("%s%s", i ? " or " : " [", o->choices[i]);
    if (numbers) printf("%s%.10g to %.10g", o->choices ? " or " : " [", o->min, o->max);
    printf("%s\n", numbers || o->choices ? "]" : "");
}

static void show_tensors(const char *heading, const fv_param *table)
{
    if (table && table->name) printf("\n%s:\n", heading);
    for (const fv_param *p = table; p && p->name; p++)
        printf("  %s %s%s%s   %s%s\n", p->name, p->dtype == FV_F32 ? "" : fv_dtype_name(p->dtype),
               p->dtype == FV_F32 ? "" : " ", p->shape, p->help,
               p->output   ? " (also --param-out)"
               : p->needed ? " (must be given)"
                           : "");
}

static void show_text(const struct thing *thing)
{
    printf("%s: %s\n", thing->name, thing->title);
    if (thing->kind == MODEL) {
        printf("  a decoder that 'fovea run', 'compare' and 'eval' take as a GGUF file\n");
        return;
    }
    printf("  %-8s %s\n", "family", thing->family);
    if (thing->paper) printf("  %-8s %s\n", "paper", thing->paper);
    if (thing->formula)
        printf("  %-8s %s\n",
               thing->inputs           ? "formula"
               : thing->kind == POLICY ? "keeps"
               : thing->kind == PROBE  ? "finds"
                                       : "formula",
               thing->formula);
    if (thing->cost) printf("  %-8s %s\n", "cost", thing->cost);
    if (thing->traits) printf("\nIt promises:\n");
    for (const struct trait *t = thing->words; t->trait; t++)
        if (thing->traits & t->trait) printf("  %-16s %s\n", t->name, t->words);
    if (option_at(thing, 0)) printf("\nOptions, with their defaults:\n");
    for (int i = 0; option_at(thing, i); i++)
        show_option(option_at(thing, i));
    show_tensors("Inputs (--in NAME=FILE)", thing->inputs);
    show_tensors("Tensors of its own (--param NAME=FILE)", thing->params);
    show_tensors("Outputs (--out NAME=FILE)", thing->outputs);
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

/* What says how a plan is drawn means nothing without one. */
static fv_status check_flags(const struct show_values *values)
{
    const char *of_plan = values->size != CLI_UNSET ? "--size"
                          : values->svg             ? "--svg"
                          : values->png             ? "--png"
                          : values->model           ? "--from"
                                                    : NULL;
    const char *of_model = values->file                 ? "-f"
                           : values->layer != CLI_UNSET ? "--layer"
                           : values->head != CLI_UNSET  ? "--head"
                                                        : NULL;

    if (!values->plan && (of_plan || of_model)) return cli_missing("--plan", "what else is given draws a plan");
    if (of_model && !values->model)
        return fv_fail(FV_E_USAGE, "%s: needs --from MODEL, whose attention it names", of_model);
    return FV_OK;
}

/* Things of different kinds may share a name: then all are shown. */
static fv_status show(struct app *app, const void *values)
{
    const char *name = app->common->operand[0];
    json_t *object = NULL, *also;
    struct thing thing;
    int found = 0;

    FV_TRY(check_flags(values));
    if (((const struct show_values *)values)->plan) return show_plan(app, values);
    also = json_array();
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

#define AT(field) offsetof(struct show_values, field)
static const cli_flag show_flags[] = {
    {.name = "plan",
     .kind = CLI_SWITCH,
     .offset = AT(plan),
     .group = "Plans",
     .help = "draw which keys each query reads, on noise or on a model's own queries and keys"},
    {.name = "size",
     .kind = CLI_INT,
     .offset = AT(size),
     .argument = "N",
     .min = 2,
     .max = 4096,
     .help = "tokens (otherwise 64, or 512 with --from)"},
    {.name = "svg", .kind = CLI_FILE, .offset = AT(svg), .argument = "FILE", .help = "also draw it as SVG"},
    {.name = "png", .kind = CLI_FILE, .offset = AT(png), .argument = "FILE", .help = "also draw it as PNG"},
    {.name = "from",
     .kind = CLI_FILE,
     .offset = AT(model),
     .argument = "MODEL",
     .help = "a GGUF file: draw what would be read in one of its heads, beside that head's attention"},
    {.name = "layer",
     .kind = CLI_INT,
     .offset = AT(layer),
     .argument = "L",
     .max = 1 << 20,
     .help = "of the model (otherwise the middle one)"},
    {.name = "head",
     .kind = CLI_INT,
     .offset = AT(head),
     .argument = "H",
     .max = 1 << 20,
     .help = "query head of the layer (otherwise the first)"},
    FLAG_FILE(AT(file), false, "the text it reads, from its beginning"),
    CLI_END,
};

const cli_verb verb_list = {
    .name = "list",
    .summary = "what there is: mechanisms, cache policies, probes, layers and model architectures",
    .operands = "[mechanism|policy|probe|layer|operator|reducer|steer|model]",
    .operands_max = 1,
    .about = "Lists everything that has a name, or one kind of it. 'fovea show NAME' says more about one.",
    .example = "  fovea list\n  fovea list policy\n  fovea list mechanism --json\n",
    .size = sizeof(cli_common),
    .run = list,
};

const cli_verb verb_show = {
    .name = "show",
    .summary =
        "one mechanism, cache policy, probe or layer: formula, options, tensors, cost; a picture of who reads whom",
    .operands = "NAME[:options]",
    .operands_min = 1,
    .operands_max = 1,
    .about = "Shows a mechanism's formula in plain text, its options with defaults and ranges, its own tensors with "
             "their shapes, what it costs, and the paper it comes from; of a cache policy what it keeps, with the "
             "options every policy has; of a layer its inputs and outputs. Where several have the name all are shown, "
             "with --json the later ones under "
             "'also'.\n"
             "--plan draws a mechanism instead: queries from top to bottom, keys from left to right. Without --from q "
             "and k are noise, in which a few keys stand out. Options that are not given become smaller, by halves, "
             "until a picture of that many tokens leaves something out; the first line says them.",
    .example =
        "  fovea show nsa\n  fovea show sinkring\n  fovea show moba --json\n"
        "  fovea show moba:block=8,top=3 --plan --svg moba.svg\n"
        "  fovea show moba:block=32,top=4 --plan --from model.gguf --layer 15 --head 3 -f report.txt --png moba.png\n",
    .flags = show_flags,
    .size = sizeof(struct show_values),
    .run = show,
};
