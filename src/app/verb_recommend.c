/* fovea recommend: the fastest set-up for a document whose distance from dense stays within a bound. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/budgets.h"
#include "app/compare.h"
#include "app/flags.h"
#include "app/verbs.h"
#include "attention/mechanism.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *question, *only;
    cli_texts with;
    int64_t tokens, score, context, dense_last;
    double within;
    int precision;
    bool raw;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), true, "the document to read"),
    FLAG_QUESTION(AT(question)),
    FLAG_RAW(AT(raw)),
    FLAG_CONTEXT(AT(context)),
    {.name = "within",
     .kind = CLI_NUMBER,
     .offset = AT(within),
     .argument = "KL",
     .initial = "0.05",
     .min = 0,
     .max = 100,
     .group = "What",
     .help = "largest mean KL distance of the next token from dense, in nats"},
    {.name = "tokens",
     .letter = 'n',
     .kind = CLI_INT,
     .offset = AT(tokens),
     .argument = "N",
     .initial = "256",
     .min = 0,
     .max = 1 << 24,
     .help = "tokens of an answer: what is fastest is what reads the document and writes so many soonest"},
    {.name = "only",
     .kind = CLI_TEXT,
     .offset = AT(only),
     .argument = "NAME,NAME",
     .help = "these mechanisms and policies only"},
    {.name = "with", .kind = CLI_SPECS, .offset = AT(with), .argument = "SPEC", .help = "a further attention or cache"},
    FLAG_DENSE_LAST(AT(dense_last)),
    FLAG_SCORE(AT(score), "128"),
    FLAG_PRECISION(AT(precision)),
    CLI_END,
};

enum { ANSWERED = 32 /* tokens of answers to a question, that are held against dense's */ };

/* ---- what there is to try ---------------------------------------------------------------------------------------- */

/* Mechanisms that need no training, each at budgets of an eighth and a quarter of the document, or as it stands, with
 * about the share of pairs that it reads then.  Where it reads as little when it decodes, that is said. */
static const struct candidate {
    const char *name;
    budget budget;
    const char *options;
    double density;
    bool decodes;
} candidates[] = {
    {.name = "sinkwin", .budget = {"sink=16,window=%lld", .unit = 64, .least = 2, .in_keys = true}, .decodes = true},
    {.name = "moba", .budget = {"block=128,top=%lld", .unit = 128, .anyway = -64, .least = 2}, .decodes = true},
    {.name = "blocktopk_gated",
     .budget = {"block=32,init=1,local=4,top=%lld", .unit = 32, .least = 8},
     .decodes = true},
    {.name = "corecontext",
     .budget = {"group=8,pool=kv_head,log_bias=1,window=%lld", .unit = 64, .least = 2, .in_keys = true},
     .decodes = true},
    {.name = "hip",
     .budget = {"window=256,sink=16,rep=centre,k=%lld", .unit = 64, .least = 2, .in_keys = true},
     .decodes = true},
    {.name = "dhsa", .budget = {"block=128,chunk=32,budget=%lld", .unit = 64, .least = 4, .in_keys = true}},
    {.name = "anchor", .options = "block=64,step=4,theta=8", .density = .3},
    {.name = "psa", .options = "block_q=64,block_k=64", .density = .3},
    {.name = "superlinear",
     .options = "window_index=31,back=3,forward=1,search_scale=0.125",
     .density = .3,
     .decodes = true},
};
enum { CANDIDATES = sizeof candidates / sizeof *candidates };
static const int64_t percents[] = {12, 25};
enum { BUDGETS = sizeof percents / sizeof *percents };

/* A set-up, and what it is expected to read of what dense does. */
struct setup {
    char *spec;
    bool cache, given;       /* given: nothing is known of it, and it is tried */
    double reading, writing; /* shares of pairs, while the document is read and while the answer is written */
};

struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    comparison result;
    app_prompt prompt;
    struct setup *setup; /* cheapest first */
    int64_t setups, room;
    int64_t unwanted; /* set-ups that were not tried */
};

/* Once: budgets of a short document may be the same. */
static fv_status add(struct job *job, const struct setup *setup)
{
    struct setup *own;

    for (int64_t i = 0; i < job->setups; i++)
        if (strcmp(job->setup[i].spec, setup->spec) == 0) return FV_OK;
    FV_TRY(FV_GROW(job->setup, job->room, job->setups + 1));
    own = &job->setup[job->setups];
    *own = *setup;
    FV_TRY(FV_ALLOC(own->spec, (int64_t)strlen(setup->spec) + 1));
    strcpy(own->spec, setup->spec);
    job->setups++;
    return FV_OK;
}

/* The first layers, whose attention is spread, stay dense.  Of a model whose other layers have windows of their own a
 * bare SPEC leaves those, and that is enough. */
static fv_status add_attention(struct job *job, const char *spec, double reading, double writing)
{
    int64_t layers = job->result.info.layers, dense = fv_min(3, layers / 4);
    double others;
    char plan[BUDGET_SPEC + 32];

    for (int64_t l = 0; l < layers; l++)
        if (job->model->layers[l].window > 0) dense = 0;
    snprintf(plan, sizeof plan, "%s", spec);
    if (dense == 1) snprintf(plan, sizeof plan, "0/dense;rest/%s", spec);
    if (dense > 1) snprintf(plan, sizeof plan, "0-%lld/dense;rest/%s", (long long)dense - 1, spec);
    others = (double)(layers - dense) / (double)layers;
    return add(job, &(struct setup){
                        .spec = plan, .reading = 1 - others * (1 - reading), .writing = 1 - others * (1 - writing)});
}

/* Pairs of a causal text, if each query reads a share of all its keys at most. */
static double pairs_of(double share)
{
    return 2 * share - share * share;
}

static fv_status add_candidate(struct job *job, const struct candidate *c)
{
    char spec[BUDGET_SPEC];

    if (!fv_mechanism_find(c->name) || (job->values->only && !budget_named(job->values->only, c->name))) return FV_OK;
    if (c->options) {
        snprintf(spec, sizeof spec, "%s:%s", c->name, c->options);
        return add_attention(job, spec, c->density, c->decodes ? c->density : 1);
    }
    for (int n = 0; n < BUDGETS; n++) {
        double share = (double)percents[n] / 100;
        budget_spec(c->name, &c->budget, share * (double)job->prompt.count, spec);
        FV_TRY(add_attention(job, spec, pairs_of(share), c->decodes ? share : 1));
    }
    return FV_OK;
}

/* Most policies read the document as dense does; some know what they read by position, or leave tokens out. */
static fv_status add_policy(struct job *job, const fv_policy *policy)
{
    bool early = policy->traits & (FV_POLICY_POSITION | FV_POLICY_FILTERS);

    if (!policy->sweep || (job->values->only && !budget_named(job->values->only, policy->name))) return FV_OK;
    for (int n = 0; n < BUDGETS; n++) {
        double share = (double)percents[n] / 100;
        char spec[BUDGET_SPEC];
        budget_policy_spec(policy, percents[n], job->prompt.count, spec);
        FV_TRY(add(job, &(struct setup){
                            .spec = spec, .cache = true, .reading = early ? pairs_of(share) : 1, .writing = share}));
    }
    return FV_OK;
}

/* A set-up that was asked for must be one; others are left out where a model does not allow them. */
static fv_status add_given(struct job *job, const char *spec)
{
    bool cache = app_names_cache(spec);
    fv_session_options options = {.context = job->prompt.count, .precision = flag_precision(job->values->precision)};
    fv_session *session;

    *(cache ? &options.cache : &options.attention) = spec;
    FV_TRY(fv_session_new(job->app->ctx, job->model, &options, &session));
    fv_session_free(session);
    return add(job, &(struct setup){.spec = (char *)(uintptr_t)spec, .cache = cache, .given = true});
}

/* By what is expected of them: pairs of the document, and of the answer behind it. */
static double cost_of(const struct setup *setup, double document, double answer)
{
    return setup->given ? -1 : setup->reading * document / 2 + setup->writing * answer;
}

static fv_status make_setups(struct job *job)
{
    const struct values *values = job->values;
    double document = (double)job->prompt.count, answer = (double)values->tokens;
    comparison *c = &job->result;

    for (int i = 0; i < values->with.count; i++)
        FV_TRY(add_given(job, values->with.items[i]));
    for (int i = 0; i < CANDIDATES; i++)
        FV_TRY(add_candidate(job, &candidates[i]));
    for (int i = 0; fv_policies[i]; i++)
        FV_TRY(add_policy(job, fv_policies[i]));
    for (int64_t i = 1; i < job->setups; i++) /* stable: they stand in an order already */
        for (int64_t j = i; j > 0; j--) {
            struct setup here = job->setup[j];
            if (cost_of(&job->setup[j - 1], document, answer) <= cost_of(&here, document, answer)) break;
            job->setup[j] = job->setup[j - 1];
            job->setup[j - 1] = here;
        }
    c->runs = (int)job->setups + 1;
    FV_TRY(FV_ZALLOC(c->run, c->runs));
    c->run[0].spec = "dense";
    for (int64_t i = 0; i < job->setups; i++) {
        compare_run *run = &c->run[i + 1];
        run->spec = job->setup[i].spec;
        *(job->setup[i].cache ? &run->cache : &run->attention) = run->spec;
    }
    return FV_OK;
}

static fv_status check_names(const char *list)
{
    char name[64];

    for (const char *at = list; at && *at; at += strcspn(at, ","), at += *at == ',') {
        const fv_mechanism *mechanism;
        const fv_policy *policy;
        bool known = false;
        snprintf(name, sizeof name, "%.*s", (int)strcspn(at, ","), at);
        policy = fv_policy_find(name);
        for (int i = 0; i < CANDIDATES; i++)
            known |= strcmp(candidates[i].name, name) == 0 && fv_mechanism_find(name);
        if (known || (policy && policy->sweep)) continue;
        if (!policy) FV_TRY(fv_mechanism_named(name, &mechanism));
        return fv_fail(FV_E_USAGE, "--only: '%s' is not among what is tried; give it by --with", name);
    }
    return FV_OK;
}

/* ---- what is worth its time -------------------------------------------------------------------------------------- */

/* Seconds to read the document, to write the answer, and to do both. */
static double seconds_reading(const struct job *job, const compare_run *run)
{
    return (double)job->result.document_tokens / run->prefill_rate;
}

static double seconds_writing(const struct job *job, const compare_run *run)
{
    return job->values->tokens > 0 ? (double)job->values->tokens / run->decode_rate : 0;
}

static double seconds_of(const struct job *job, const compare_run *run)
{
    return seconds_reading(job, run) + seconds_writing(job, run);
}

static bool is_within(const struct job *job, const compare_run *run)
{
    return run == job->result.run || run->kl <= job->values->within;
}

/* The fastest within the bound among the first `done` runs. */
static const compare_run *best_of(const struct job *job, int done)
{
    const compare_run *best = job->result.run;

    for (int r = 1; r < done; r++) {
        const compare_run *run = &job->result.run[r];
        if (is_within(job, run) && seconds_of(job, run) < seconds_of(job, best)) best = run;
    }
    return best;
}

static const struct setup *setup_of(const struct job *job, const compare_run *run)
{
    for (int64_t i = 0; i < job->setups; i++)
        if (job->setup[i].spec == run->spec) return &job->setup[i];
    return NULL; /* dense */
}

/* The largest share of dense's time that not reading a pair has saved in a run so far: 1 before there was one, as if
 * nothing but attention took time. */
static double savings(const struct job *job, int done, bool writing)
{
    double (*seconds)(const struct job *, const compare_run *) = writing ? seconds_writing : seconds_reading;
    double most = 0.1, dense = seconds(job, job->result.run); /* a little remains possible: times vary */
    bool any = false;

    for (int r = 1; r < done && dense > 0; r++) {
        const struct setup *setup = setup_of(job, &job->result.run[r]);
        double share = writing ? setup->writing : setup->reading;
        if (setup->given || share >= 1) continue;
        most = fmax(most, (1 - seconds(job, &job->result.run[r]) / dense) / (1 - share));
        any = true;
    }
    return any ? fmin(most, 1) : 1;
}

/* Whether a set-up would be faster than the best so far if reading less saved as much as it ever has. */
static bool is_worth_it(void *user, const compare_run *run, int done)
{
    struct job *job = user;
    const compare_run *dense = job->result.run;
    const struct setup *setup = setup_of(job, run);
    double expected = seconds_reading(job, dense) * (1 - savings(job, done, false) * (1 - setup->reading)) +
                      seconds_writing(job, dense) * (1 - savings(job, done, true) * (1 - setup->writing));
    bool worth = setup->given || expected < seconds_of(job, best_of(job, done));

    job->unwanted += !worth;
    return worth;
}

/* Tokens of a run's answer that are dense's, up to the first that is not. */
static int64_t same_answer(const struct job *job, const compare_run *run)
{
    const fv_generation *own = &run->answer, *dense = &job->result.run->answer;
    int64_t same = 0;

    while (same < fv_min(own->count, dense->count) && own->ids[same] == dense->ids[same])
        same++;
    return same;
}

/* ---- results ----------------------------------------------------------------------------------------------------- */

static void add_word(fv_text *text, const char *flag, const char *word)
{
    bool plain = *word != 0;

    for (const char *c = word; *c; c++)
        plain = plain && (isalnum((unsigned char)*c) || strchr("_@%+=:,./-", *c));
    fv_text_printf(text, "%s%s", flag, plain ? word : "'");
    for (const char *c = word; *c && !plain; c++)
        fv_text_printf(text, *c == '\'' ? "'\\''" : "%c", *c);
    if (!plain) fv_text_printf(text, "'");
}

/* A line to copy into a shell. */
static void command_of(const struct job *job, const compare_run *run, fv_text *text)
{
    const struct values *values = job->values;

    add_word(text, "fovea run -m ", values->model);
    add_word(text, " -f ", values->file);
    if (values->question) add_word(text, " -p ", values->question);
    if (values->raw) fv_text_printf(text, " --raw");
    if (values->context != CLI_UNSET) fv_text_printf(text, " --ctx %lld", (long long)values->context);
    if (run->attention) add_word(text, " --attention ", run->attention);
    if (run->attention && values->dense_last > 0)
        fv_text_printf(text, " --dense-last %lld", (long long)values->dense_last);
    if (run->cache) add_word(text, " --cache ", run->cache);
    if (flag_precision(values->precision) == FV_PRECISION_F32) fv_text_printf(text, " --precision f32");
}

static json_t *run_json(const struct job *job, const compare_run *run)
{
    json_t *object = json_object();

    app_put(object, "spec", json_string(run->spec));
    app_put(object, "prefill_tokens_per_second", app_number(run->prefill_rate));
    app_put(object, "decode_tokens_per_second", app_number(run->decode_rate));
    app_put(object, "seconds", app_number(seconds_of(job, run)));
    app_put(object, "kv_bytes", json_integer((json_int_t)run->kv_bytes));
    app_put(object, "density", app_number(run->density));
    app_put(object, "kl", app_number(run->kl));
    app_put(object, "top1", app_number(run->top1));
    app_put(object, "within", json_boolean(is_within(job, run)));
    if (job->values->question) app_put(object, "same_answer_tokens", json_integer(same_answer(job, run)));
    return object;
}

static fv_status print_json(const struct job *job, const compare_run *best, const char *command)
{
    const comparison *c = &job->result;
    json_t *root = json_object(), *tried = json_array(), *found = run_json(job, best);

    app_put(root, "model", json_string(c->model_path));
    app_put(root, "document_tokens", json_integer(c->document_tokens));
    app_put(root, "scored_tokens", json_integer(c->scored_tokens));
    app_put(root, "answer_tokens", json_integer(job->values->tokens));
    app_put(root, "within", app_number(job->values->within));
    app_put(found, "attention", best->attention ? json_string(best->attention) : json_null());
    app_put(found, "cache", best->cache ? json_string(best->cache) : json_null());
    app_put(found, "speedup", app_number(seconds_of(job, c->run) / seconds_of(job, best)));
    app_put(found, "command", json_string(command));
    app_put(root, "recommended", found);
    app_put(root, "tried", tried);
    for (int r = 0; r < c->runs; r++)
        app_append(tried, run_json(job, &c->run[r]));
    app_put(root, "not_tried", json_integer(job->unwanted));
    return app_json_print(root);
}

static void print_verdict(const struct job *job, const compare_run *best)
{
    const comparison *c = &job->result;
    bool any = false;

    for (int r = 1; r < c->runs; r++)
        any |= is_within(job, &c->run[r]);
    if (best != c->run)
        printf("\n%s is the fastest within %g nats of dense: %.1f s instead of %.1f s, %.2f times as fast.\n",
               best->spec, job->values->within, seconds_of(job, best), seconds_of(job, c->run),
               seconds_of(job, c->run) / seconds_of(job, best));
    else if (any)
        printf("\nNothing within %g nats of dense is faster here: stay with dense.\n", job->values->within);
    else
        printf("\nNothing that was tried is within %g nats of dense: stay with dense.\n", job->values->within);
    if (job->unwanted > 0)
        printf("%lld more set-ups were not tried: they read more, and would hardly be faster.\n",
               (long long)job->unwanted);
}

static fv_status print_table(const struct job *job, const compare_run *best, const char *command)
{
    static const bool left[9] = {true};
    static const char *const heads[] = {"SET-UP", "READ",  "WRITE",  "SECONDS", "MEMORY",
                                        "KL",     "TOP-1", "WITHIN", "ANSWER"};
    const comparison *c = &job->result;
    app_table table = {.columns = job->values->question ? 9 : 8, .left = left};

    for (int i = 0; i < table.columns; i++)
        app_table_cell(&table, "%s", heads[i]);
    for (int r = 0; r < c->runs; r++) {
        const compare_run *run = &c->run[r];
        app_table_cell(&table, "%.90s", run->spec);
        app_table_cell(&table, "%.0f (%.2fx)", run->prefill_rate, run->prefill_rate / c->run->prefill_rate);
        app_table_cell(&table, "%.1f (%.2fx)", run->decode_rate, run->decode_rate / c->run->decode_rate);
        app_table_cell(&table, "%.1f%s", seconds_of(job, run), run == best ? "*" : " ");
        app_table_cell(&table, "%s", app_bytes_text(run->kv_bytes));
        app_table_cell(&table, r ? "%.4f" : "-", run->kl);
        app_table_cell(&table, r ? "%.3f" : "-", run->top1);
        app_table_cell(&table, "%s", is_within(job, run) ? "yes" : "no");
        if (job->values->question)
            app_table_cell(&table, "%lld of %lld", (long long)same_answer(job, run),
                           (long long)job->result.run->answer.count);
    }
    printf("\n%s, %lld tokens of document, the last %lld scored; SECONDS to read it and write %lld tokens.\n",
           c->info.name, (long long)c->document_tokens, (long long)c->scored_tokens, (long long)job->values->tokens);
    printf("READ and WRITE in tokens a second (ratio to dense); KL in nats from dense; * recommended%s.\n\n",
           job->values->question ? ";\nANSWER: tokens as dense writes them, up to the first that differs" : "");
    FV_TRY(app_table_print(&table, stdout));
    print_verdict(job, best);
    printf("\n  %s\n", command);
    return FV_OK;
}

/* ---- the verb ---------------------------------------------------------------------------------------------------- */

static fv_status print(const struct job *job)
{
    const compare_run *best = best_of(job, job->result.runs);
    fv_text command = {0};
    fv_status status;

    command_of(job, best, &command);
    status = fv_text_status(&command);
    if (status == FV_OK)
        status = (job->values->common.json ? print_json : print_table)(job, best, fv_text_get(&command));
    fv_text_free(&command);
    return status;
}

static fv_status recommend(struct job *job)
{
    const struct values *values = job->values;
    comparison *c = &job->result;
    compare_task task = {.prompt = &job->prompt,
                         .context = values->context,
                         .score = values->score,
                         .dense_last = values->dense_last,
                         .tokens = values->question ? ANSWERED : 0,
                         .precision = flag_precision(values->precision),
                         .lenient = true,
                         .wanted = is_worth_it,
                         .user = job};

    FV_TRY(check_names(values->only));
    FV_TRY(app_begin(job->app, task.precision));
    FV_TRY(app_model_open(values->model, &job->model, &c->info));
    task.model = job->model;
    c->model_path = values->model;
    c->file = values->file;
    c->question = values->question;
    FV_TRY(app_prompt_make(job->model, values->file, values->question, values->raw, &job->prompt));
    app_prompt_note(job->app, &job->prompt, values->raw);
    FV_TRY(make_setups(job));
    FV_TRY(compare_all(job->app, &task, c));
    return print(job);
}

static fv_status run(struct app *app, const void *data)
{
    struct job job = {.app = app, .values = data};
    fv_status status = recommend(&job);

    comparison_free(&job.result);
    for (int64_t i = 0; i < job.setups; i++)
        fv_free(job.setup[i].spec);
    fv_free(job.setup);
    app_prompt_free(&job.prompt);
    fv_model_close(job.model);
    return status;
}

const cli_verb verb_recommend = {
    .name = "recommend",
    .summary = "the fastest set-up for a document that stays close to dense",
    .about =
        "Reads the document under dense attention and then, as 'compare' does, under sparse attentions that need no "
        "training and cache policies that need no plan file, those first that should read least, and recommends the "
        "fastest one whose next tokens are within a KL distance of dense's, as a 'fovea run' line to copy. Fastest is "
        "what reads the document and writes an answer of N tokens soonest. A set-up is not tried if it would not be "
        "faster than the best so far, even if reading less saved as much of dense's time as in the best run so far. "
        "Where nothing is within the bound, or nothing within it is faster, dense is recommended.",
    .example = "  fovea recommend -m model.gguf -f report.txt --within 0.05 -p 'What was decided?'\n"
               "  fovea recommend -m model.gguf -f report.txt --only moba,snapkv --with moba:block=64,top=8 --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
