/* fovea compare: one model, one document, several set-ups, each against dense. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "app/flags.h"
#include "app/compare.h"
#include "app/verbs.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *file, *question, *report;
    cli_texts with;
    int64_t tokens, score, context, dense_last;
    int precision;
    bool raw;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Input"),
    FLAG_FILE(AT(file), false, "the document to read"),
    FLAG_QUESTION(AT(question)),
    FLAG_RAW(AT(raw)),
    FLAG_CONTEXT(AT(context)),
    {.name = "with",
     .kind = CLI_SPECS,
     .offset = AT(with),
     .argument = "SPEC",
     .required = true,
     .group = "How",
     .help = "a set-up: '[attention=SPEC][ cache=SPEC][ steer=SPEC]...', or an attention or layer plan by itself"},
    FLAG_DENSE_LAST(AT(dense_last)),
    FLAG_SCORE(AT(score), "256"),
    {.name = "tokens",
     .letter = 'n',
     .kind = CLI_INT,
     .offset = AT(tokens),
     .argument = "N",
     .initial = "64",
     .min = 0,
     .max = 1 << 24,
     .help = "most tokens of each answer"},
    FLAG_PRECISION(AT(precision)),
    {.name = "report",
     .kind = CLI_FILE,
     .offset = AT(report),
     .argument = "FILE.html",
     .group = "Output",
     .help = "one self-contained page with plots, answers, and which keys each head read"},
    CLI_END,
};

/* ---- columns --------------------------------------------------------------------------------------------------- */

#define OF(field) offsetof(compare_run, field)
const compare_column compare_columns[] = {
    {"READ", "Reading", "tokens/s", "prefill of the document", 1, .ratio = true, .offset = OF(prefill_rate)},
    {"WRITE", "Writing", "tokens/s", "one token at a time behind the document", 1, .ratio = true, .digits = 1,
     .offset = OF(decode_rate)},
    {"MEMORY", "Memory", "", "keys, values and states held at the end", -1, .ratio = true, .offset = OF(kv_bytes)},
    {"DENSITY", "Density", "of dense", "query-key pairs computed", -1, .digits = 3, .offset = OF(density)},
    {"KL", "Distance", "nats", "mean KL(dense || this) over the scored tokens", -1, .others = true, .digits = 4,
     .offset = OF(kl)},
    {"TOP-1", "Agreement", "", "share of scored tokens with dense's likeliest next token", 1, .others = true,
     .digits = 3, .offset = OF(top1)},
    {"PPL", "Perplexity", "", "of the scored tokens", -1, .ratio = true, .digits = 2, .offset = OF(perplexity)},
    {"ATTENTION", "Attention", "of dense's speed",
     "dense's seconds over its own, in the layers it replaces, while reading", 1, .times = true, .digits = 2,
     .offset = OF(speedup)},
};

double compare_value(const compare_column *column, const compare_run *run)
{
    return *(const double *)((const char *)run + column->offset);
}

bool compare_best(const comparison *c, const compare_column *column, int run)
{
    double own = compare_value(column, &c->run[run]);
    bool differs = false; /* nobody is best where all are alike: answers of other lengths, a little more memory */

    if (c->runs < 2 || (column->others && (run == 0 || c->runs < 3))) return false;
    for (int r = column->others ? 1 : 0; r < c->runs; r++) {
        double other = compare_value(column, &c->run[r]);
        if (column->better * other > column->better * own) return false;
        differs |= fabs(other - own) > (column->ratio || column->times ? 0.01 * fabs(own) : 0);
    }
    return differs;
}

const char *compare_text(const compare_column *column, const compare_run *run)
{
    double value = compare_value(column, run);

    if (column->offset == OF(kv_bytes)) return app_bytes_text(value);
    if (column->offset == OF(kl) && value > 0 && value < 1e-3) return app_words("%.1e", value);
    return app_words("%.*f%s", column->digits, value, column->times ? "x" : "");
}

/* ---- set-ups --------------------------------------------------------------------------------------------------- */

/* Reads "[attention=SPEC][ cache=SPEC][ steer=SPEC]..." or a bare SPEC; cuts `text` into words. */
static fv_status read_with(char *text, compare_run *run)
{
    static const char attention[] = "attention=", cache[] = "cache=", steer[] = "steer=";
    char *rest = NULL;

    for (char *word = strtok_r(text, " ", &rest); word; word = strtok_r(NULL, " ", &rest)) {
        bool is_cache = strncmp(word, cache, sizeof cache - 1) == 0;
        bool is_attention = strncmp(word, attention, sizeof attention - 1) == 0;
        if (strncmp(word, steer, sizeof steer - 1) == 0) FV_TRY(app_refuse_steer(word + sizeof steer - 1));
        if (is_cache) word += sizeof cache - 1;
        if (is_attention) word += sizeof attention - 1;
        is_cache = is_cache || (!is_attention && app_names_cache(word));
        const char **place = is_cache ? &run->cache : &run->attention;
        if (*place)
            return fv_fail(FV_E_USAGE, "--with '%s': names two %s", run->spec, is_cache ? "caches" : "attentions");
        *place = word;
    }
    if (!run->attention && !run->cache) return fv_fail(FV_E_USAGE, "--with: expected a SPEC, got '%s'", run->spec);
    return FV_OK;
}

struct job {
    struct app *app;
    const struct values *values;
    fv_model *model;
    comparison result;
    app_prompt prompt;
    char **words; /* copies of --with values, cut */
};

static fv_status read_setups(struct job *job)
{
    const cli_texts *with = &job->values->with;
    comparison *c = &job->result;

    c->runs = with->count + 1;
    FV_TRY(FV_ZALLOC(c->run, c->runs));
    FV_TRY(FV_ZALLOC(job->words, with->count));
    c->run[0].spec = "dense";
    for (int i = 0; i < with->count; i++) {
        FV_TRY(FV_ALLOC(job->words[i], (int64_t)strlen(with->items[i]) + 1));
        strcpy(job->words[i], with->items[i]);
        c->run[i + 1].spec = with->items[i];
        FV_TRY(read_with(job->words[i], &c->run[i + 1]));
    }
    return FV_OK;
}

/* ---- results --------------------------------------------------------------------------------------------------- */

static fv_status print_json(const comparison *c)
{
    json_t *root = json_object(), *runs = json_array();

    app_put(root, "model", json_string(c->model_path));
    app_put(root, "document_tokens", json_integer(c->document_tokens));
    app_put(root, "scored_tokens", json_integer(c->scored_tokens));
    app_put(root, "runs", runs);
    for (int r = 0; r < c->runs; r++) {
        const compare_run *run = &c->run[r];
        json_t *object = json_object();
        app_put(object, "spec", json_string(run->spec));
        app_put(object, "prefill_tokens_per_second", app_number(run->prefill_rate));
        app_put(object, "decode_tokens_per_second", app_number(run->decode_rate));
        app_put(object, "attention_seconds", app_number(run->attending));
        app_put(object, "score_seconds", app_number(run->scoring));
        app_put(object, "select_seconds", app_number(run->selecting));
        app_put(object, "attention_speedup", app_number(run->speedup));
        app_put(object, "kv_bytes", json_integer((json_int_t)run->kv_bytes));
        app_put(object, "density", app_number(run->density));
        app_put(object, "kl", app_number(run->kl));
        app_put(object, "top1", app_number(run->top1));
        app_put(object, "perplexity", app_number(run->perplexity));
        app_put(object, "answer", app_text(run->answer.text ? run->answer.text : "", run->answer.length));
        app_put(object, "tokens", app_ids(run->answer.ids, run->answer.count));
        app_append(runs, object);
    }
    return app_json_print(root);
}

static fv_status print_table(const comparison *c)
{
    static const bool left[COMPARE_COLUMNS + 1] = {true};
    app_table table = {.columns = COMPARE_COLUMNS + 1, .left = left};

    app_table_cell(&table, "SET-UP");
    for (int i = 0; i < COMPARE_COLUMNS; i++)
        app_table_cell(&table, "%s", compare_columns[i].name);
    for (int r = 0; r < c->runs; r++) {
        app_table_cell(&table, "%.60s", c->run[r].spec);
        for (int i = 0; i < COMPARE_COLUMNS; i++) {
            const compare_column *column = &compare_columns[i];
            double ratio = compare_value(column, &c->run[r]) / compare_value(column, &c->run[0]);
            const char *mark = compare_best(c, column, r) ? "*" : " ", *value = compare_text(column, &c->run[r]);
            if (column->others && r == 0)
                app_table_cell(&table, "- ");
            else if (column->ratio && r > 0 && isfinite(ratio))
                app_table_cell(&table, "%s (%.2fx)%s", value, ratio, mark);
            else
                app_table_cell(&table, "%s%s", value, mark);
        }
    }
    printf("\n%s, %lld tokens of document, the last %lld scored. * best; (ratio to dense).\n", c->info.name,
           (long long)c->document_tokens, (long long)c->scored_tokens);
    printf("READ and WRITE in tokens a second; KL in nats from dense; TOP-1 agreement with dense; PPL perplexity;\n"
           "ATTENTION of the layers replaced, against dense's time there.\n\n");
    FV_TRY(app_table_print(&table, stdout));
    for (int r = 0; r < c->runs; r++) {
        printf("\n%s:\n", c->run[r].spec);
        fwrite(c->run[r].answer.text, 1, c->run[r].answer.length, stdout);
        printf("\n");
    }
    return FV_OK;
}

/* ---- the verb -------------------------------------------------------------------------------------------------- */

static fv_status compare(struct job *job)
{
    const struct values *values = job->values;
    comparison *c = &job->result;
    compare_task task = {.prompt = &job->prompt,
                         .context = values->context,
                         .score = values->score,
                         .dense_last = values->dense_last,
                         .tokens = values->tokens,
                         .precision = flag_precision(values->precision),
                         .reads = values->report != NULL};

    FV_TRY(read_setups(job));
    FV_TRY(app_file_try(values->report));
    FV_TRY(app_begin(job->app, task.precision));
    FV_TRY(app_model_open(values->model, &job->model, &c->info));
    task.model = job->model;
    c->model_path = values->model;
    c->file = values->file;
    c->question = values->question;
    FV_TRY(app_prompt_make(job->model, values->file, values->question, values->raw, &job->prompt));
    app_prompt_note(job->app, &job->prompt, values->raw);
    FV_TRY(compare_all(job->app, &task, c));
    FV_TRY(values->common.json ? print_json(c) : print_table(c));
    if (!values->report) return FV_OK;
    FV_TRY(compare_report(values->report, c));
    app_say(job->app, "\nreport: %s", values->report);
    return FV_OK;
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    struct job job = {.app = app, .values = values};
    fv_status status;

    if (!values->file && !values->question)
        return cli_missing("-f FILE", "there is no document to read (-p QUESTION alone is read as one)");
    status = compare(&job);
    comparison_free(&job.result);
    for (int i = 0; job.words && i < values->with.count; i++)
        fv_free(job.words[i]);
    fv_free(job.words);
    app_prompt_free(&job.prompt);
    fv_model_close(job.model);
    return status;
}

const cli_verb verb_compare = {
    .name = "compare",
    .summary = "one model and document under several attentions, each against dense",
    .about =
        "Reads a document with a model under dense attention and then under each set-up: prefills all but the last S "
        "tokens of it, feeds those one at a time and scores them, and then answers the question greedily. Shows "
        "speed, memory, distance from dense, and the answers.",
    .example = "  fovea compare -m model.gguf -f report.txt -p 'What was decided?' \\\n"
               "      --with sinkwin:window=1024 --with moba:block=256,top=4 --report report.html\n"
               "  fovea compare -m model.gguf -f report.txt -p Who --with '0-2/dense;rest/sinkwin:window=512' --json\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
