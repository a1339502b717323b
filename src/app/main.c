/* fovea: finds the verb, runs it, and turns its status into a sentence and an exit status. */
#include "app/app.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "app/verbs.h"
#include "base/memory.h"

/* clang-format off */
const cli_verb *const cli_verbs[] = {
    &verb_run,
    &verb_compare,
    &verb_recommend,
    &verb_eval_ppl,
    &verb_eval_needle,
    &verb_eval_cache,
    &verb_eval_recall,
    &verb_inspect_srh,
    &verb_inspect_hylra,
    &verb_inspect_moa,
    &verb_inspect_influence,
    &verb_inspect,
    &verb_attend,
    &verb_apply,
    &verb_list,
    &verb_show,
    &verb_tokenize,
    &verb_bench,
    &verb_serve,
    NULL,
};
/* clang-format on */

/* ---- interruption ---------------------------------------------------------------------------------------------- */

static fv_ctx *volatile running;
static volatile sig_atomic_t interrupted;

/* The first Ctrl-C asks the work to stop; a second one ends the process at once, and may leave a temporary file. */
static void on_signal(int number)
{
    static const char sentence[] = "fovea: interrupted twice: ended at once\n";

    (void)number;
    if (interrupted) {
        ssize_t told = write(STDERR_FILENO, sentence, sizeof sentence - 1);
        (void)told;
        _exit(1);
    }
    interrupted = 1;
    if (running) fv_ctx_interrupt(running);
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART: reading a terminal stops as well */

    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
}

fv_status app_check(void)
{
    return interrupted ? fv_fail(FV_E_INTERRUPTED, "interrupted") : FV_OK;
}

void app_forget_interrupt(struct app *app)
{
    interrupted = 0;
    if (app->ctx) fv_ctx_clear_interrupt(app->ctx);
}

fv_status app_begin(struct app *app, fv_precision precision)
{
    const cli_common *common = app->common;
    fv_ctx_options options = {
        .device = common->device,
        .threads = (int)common->threads,
        .seed = (uint64_t)common->seed,
        .precision = precision,
        .progress = app_progress,
        .progress_user = app,
    };

    FV_TRY(fv_ctx_new(&options, &app->ctx));
    running = app->ctx;
    return app_check();
}

/* ---- help ------------------------------------------------------------------------------------------------------ */

static fv_status print_text(fv_text *text)
{
    fv_status status = fv_text_status(text);

    if (status == FV_OK) fwrite(fv_text_get(text), 1, (size_t)text->length, stdout);
    fv_text_free(text);
    return status;
}

/* `fovea help`, `fovea help VERB`, `fovea help --man`. */
static fv_status help(int count, char **words)
{
    static const struct {
        const char *flag;
        void (*make)(fv_text *);
    } makers[] = {{"--man", cli_man}, {"--bash", cli_bash}, {"--zsh", cli_zsh}};
    const cli_verb *verb;
    fv_text text = {0};
    int used;

    if (count == 0) {
        cli_help(&text);
        return print_text(&text);
    }
    for (size_t i = 0; i < sizeof makers / sizeof makers[0]; i++) {
        if (strcmp(words[0], makers[i].flag) != 0) continue;
        makers[i].make(&text);
        return print_text(&text);
    }
    bool family = false; /* one word of a two-word verb: all of its family */
    for (int v = 0; count == 1 && cli_verbs[v]; v++) {
        size_t length = strlen(words[0]);
        const char *name = cli_verbs[v]->name;
        if (strncmp(name, words[0], length) != 0 || (name[length] && name[length] != ' ')) continue;
        if (family) fv_text_printf(&text, "\n\n");
        cli_help_verb(cli_verbs[v], &text);
        family = true;
    }
    if (!family) {
        FV_TRY(cli_find(count, words, &verb, &used));
        cli_help_verb(verb, &text);
    }
    return print_text(&text);
}

/* ---- running --------------------------------------------------------------------------------------------------- */

static fv_status run_verb(const cli_verb *verb, int count, char **words)
{
    fv_status status;
    void *values;
    struct app app = {.verb = verb};

    FV_TRY(fv_zalloc(&values, (int64_t)verb->size, 1));
    app.common = values;
    status = cli_parse(verb, count, words, values);
    if (status == FV_OK) {
        if (app.common->help) {
            fv_text text = {0};
            cli_help_verb(verb, &text);
            status = print_text(&text);
        } else {
            status = verb->run(&app, values);
        }
    }
    app_progress_end();
    running = NULL;
    fv_ctx_free(app.ctx);
    cli_release(verb, values);
    fv_free(values);
    return status;
}

static int output_error; /* why standard output could not be written, the first time */

bool app_flush(void)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) return true;
    if (!output_error) output_error = errno;
    return false;
}

static int finish(fv_status status, const char *where)
{
    if (!app_flush() && status == FV_OK)
        status = fv_fail(FV_E_IO, "standard output cannot be written%s%s", output_error ? ": " : "",
                         output_error ? strerror(output_error) : "");
    if (status == FV_OK) return 0;
    if (status == FV_E_INTERRUPTED)
        fprintf(stderr, "fovea: %s: interrupted before it was done\n", where);
    else
        fprintf(stderr, "fovea: %s%s%s\n", where, *where ? ": " : "", fv_error());
    return status == FV_E_USAGE ? 2 : 1;
}

int main(int count, char **words)
{
    const cli_verb *verb = NULL;
    int used = 0;
    fv_status status;

    catch_signals();
    if (count < 2) {
        fv_text text = {0};
        cli_help(&text);
        fputs(fv_text_get(&text), stderr);
        fv_text_free(&text);
        return 2;
    }
    if (strcmp(words[1], "--version") == 0 || strcmp(words[1], "-V") == 0) {
        printf("fovea %s\n", fv_version());
        return finish(FV_OK, "");
    }
    if (strcmp(words[1], "help") == 0) return finish(help(count - 2, words + 2), "help");
    if (strcmp(words[1], "--help") == 0 || strcmp(words[1], "-h") == 0) return finish(help(0, NULL), "help");
    if (count == 3 && strcmp(words[2], "--help") == 0) return finish(help(1, words + 1), "help");
    status = cli_find(count - 1, words + 1, &verb, &used);
    if (status != FV_OK) return finish(status, "");
    status = run_verb(verb, count - 1 - used, words + 1 + used);
    return finish(status, verb->name);
}
