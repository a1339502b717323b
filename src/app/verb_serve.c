/* fovea serve: a model behind OpenAI's HTTP interface. */
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "app/flags.h"
#include "app/prompt.h"
#include "app/serve.h"
#include "app/verbs.h"
#include "models/model.h"

struct values {
    cli_common common;
    const char *model, *host, *attention, *cache, *key, *alias, *cors;
    cli_texts hosts;
    int64_t port, parallel, context, queue, max_body, kv_memory, dense_last;
    double timeout, drain;
    int precision;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), "Model"),
    FLAG_CONTEXT(AT(context)),
    FLAG_ATTENTION(AT(attention), NULL),
    FLAG_DENSE_LAST(AT(dense_last)),
    FLAG_CACHE(AT(cache)),
    FLAG_PRECISION(AT(precision)),
    {.name = "alias", .kind = CLI_TEXT, .offset = AT(alias), .argument = "NAME", .help = "what the model is called"},
    {.name = "host",
     .kind = CLI_TEXT,
     .offset = AT(host),
     .argument = "HOST",
     .initial = "127.0.0.1",
     .group = "Network",
     .help = "address to listen on; 0.0.0.0 lets other machines in"},
    {.name = "port",
     .kind = CLI_INT,
     .offset = AT(port),
     .argument = "PORT",
     .initial = "8080",
     .max = 65535,
     .help = "port to listen on; 0 picks a free one"},
    {.name = "api-key",
     .kind = CLI_TEXT,
     .offset = AT(key),
     .argument = "KEY",
     .help = "what requests must bring as 'Authorization: Bearer KEY' (also from FOVEA_API_KEY, which no list of "
             "processes shows)"},
    {.name = "allow-host",
     .kind = CLI_TEXTS,
     .offset = AT(hosts),
     .argument = "NAME",
     .help = "a further name that requests may call this server by, while it listens to this machine alone"},
    {.name = "cors",
     .kind = CLI_TEXT,
     .offset = AT(cors),
     .argument = "ORIGIN",
     .help = "pages of this origin may send requests (* for all); otherwise none may"},
    {.name = "parallel",
     .kind = CLI_INT,
     .offset = AT(parallel),
     .argument = "N",
     .initial = "4",
     .min = 1,
     .max = 1024,
     .group = "Limits",
     .help = "requests that decode together"},
    {.name = "queue",
     .kind = CLI_INT,
     .offset = AT(queue),
     .argument = "N",
     .initial = "64",
     .min = 1,
     .max = 1 << 20,
     .help = "requests that may wait"},
    {.name = "kv-memory",
     .kind = CLI_INT,
     .offset = AT(kv_memory),
     .argument = "BYTES",
     .min = 0,
     .max = 1LL << 53,
     .help = "memory for keys and values; beyond it requests wait their turn; 0: no limit (otherwise half of what the "
             "system has available)"},
    {.name = "max-body",
     .kind = CLI_INT,
     .offset = AT(max_body),
     .argument = "BYTES",
     .initial = "8388608",
     .min = 1,
     .max = 1 << 30,
     .help = "largest body of a request"},
    {.name = "timeout",
     .kind = CLI_NUMBER,
     .offset = AT(timeout),
     .argument = "S",
     .initial = "10",
     .min = 0.1,
     .max = 86400,
     .help = "seconds a request's head, and each part of its body, may take to come"},
    {.name = "drain",
     .kind = CLI_NUMBER,
     .offset = AT(drain),
     .argument = "S",
     .initial = "60",
     .min = 0,
     .max = 86400,
     .help = "seconds that running requests have to finish after SIGTERM"},
    CLI_END,
};

/* ---- starting --------------------------------------------------------------------------------------------------- */

/* A number behind `name` in a file of the system; false: there is none. */
static bool read_number(const char *path, const char *name, uint64_t *number)
{
    FILE *file = fopen(path, "re");
    char line[256];
    unsigned long long value;
    bool found = false;

    while (file && !found && fgets(line, sizeof line, file)) {
        size_t length = strlen(name);
        found = strncmp(line, name, length) == 0 && sscanf(line + length, "%llu", &value) == 1;
        if (found) *number = value;
    }
    if (file) fclose(file);
    return found;
}

/* Bytes that the system could still give, or what this process's container leaves of them; 0: it does not say. */
static uint64_t available_memory(void)
{
    uint64_t kilobytes = 0, most, taken, bytes;

    if (!read_number("/proc/meminfo", "MemAvailable:", &kilobytes)) return 0;
    bytes = kilobytes * 1024;
    if (read_number("/sys/fs/cgroup/memory.max", "", &most) &&
        read_number("/sys/fs/cgroup/memory.current", "", &taken) && most - (taken < most ? taken : most) < bytes)
        bytes = most - (taken < most ? taken : most);
    return bytes;
}

static void set_options(serve_server *server, const struct values *values)
{
    const char *key = values->key ? values->key : getenv("FOVEA_API_KEY");

    server->options = (serve_options){
        .host = values->host,
        .attention = values->attention,
        .cache = values->cache,
        .key = key && *key ? key : NULL,
        .alias = values->alias && *values->alias ? values->alias : NULL,
        .cors = values->cors && *values->cors ? values->cors : NULL,
        .hosts = values->hosts,
        .port = values->port,
        .parallel = values->parallel,
        .context = values->context == CLI_UNSET ? 0 : values->context,
        .queue = values->queue,
        .max_body = values->max_body,
        .kv_memory = values->kv_memory == CLI_UNSET ? (int64_t)(available_memory() / 2) : values->kv_memory,
        .dense_last = values->dense_last,
        .timeout = values->timeout,
        .drain = values->drain,
        .precision = flag_precision(values->precision),
    };
}

static void name_model(serve_server *server, const char *path)
{
    const char *slash = strrchr(path, '/');
    size_t stem;

    snprintf(server->file, sizeof server->file, "%s", slash ? slash + 1 : path);
    server->id = server->options.alias ? server->options.alias : server->info.name;
    if (*server->id) return;
    stem = strlen(server->file);
    server->id = server->file;
    if (stem > 5 && strcmp(server->file + stem - 5, ".gguf") == 0) server->id = server->stem;
    snprintf(server->stem, sizeof server->stem, "%.*s", stem > 5 ? (int)stem - 5 : 0, server->file);
}

/* Room for as many connections as the server takes. */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= 4 * SERVE_CONNECTIONS) return;
    limit.rlim_cur = limit.rlim_max < 4 * SERVE_CONNECTIONS ? limit.rlim_max : 4 * SERVE_CONNECTIONS;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static size_t longest_token(const serve_server *server)
{
    size_t longest = 1, length;
    const char *bytes;

    for (int32_t id = 0; id < server->info.vocabulary; id++)
        if (fv_model_piece(server->model, id, &bytes, &length) == FV_OK && length > longest) longest = length;
    return longest;
}

static fv_status load(serve_server *server, const struct values *values)
{
    /* Without the command's progress: forwards of several requests are no bar to show. */
    fv_ctx_options context = {.device = values->common.device,
                              .threads = (int)values->common.threads,
                              .seed = (uint64_t)values->common.seed,
                              .precision = server->options.precision};
    fv_scheduler_options options = {.parallel = values->parallel,
                                    .context = server->options.context,
                                    .queue = values->queue,
                                    .attention = values->attention,
                                    .cache = values->cache,
                                    .dense_last = values->dense_last,
                                    .kv_memory = (size_t)server->options.kv_memory,
                                    .precision = server->options.precision};

    FV_TRY(fv_ctx_new(&context, &server->app->ctx));
    FV_TRY(app_model_open(values->model, &server->model, &server->info));
    if (!server->model->tokenizer)
        return fv_fail(FV_E_UNSUPPORTED, "%s: the file has no tokenizer: there is no text to serve", values->model);
    name_model(server, values->model);
    server->longest = longest_token(server);
    server->context = server->options.context ? server->options.context : server->info.context;
    return fv_scheduler_new(server->app->ctx, server->model, &options, &server->scheduler);
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

struct steps {
    serve_server *server;
    pthread_t thread;
    fv_status status;
    char why[512];
    atomic_bool over;
};

static void *run_steps(void *user)
{
    struct steps *steps = user;

    steps->status = fv_scheduler_run(steps->server->scheduler);
    snprintf(steps->why, sizeof steps->why, "%s", steps->status == FV_OK ? "" : fv_error());
    atomic_store(&steps->over, true);
    return NULL;
}

static void second_signal(void)
{
    static const char sentence[] = "fovea: interrupted twice: ended at once\n";
    ssize_t told = write(STDERR_FILENO, sentence, sizeof sentence - 1);

    (void)told;
    _exit(1);
}

/* Waits for a signal; false: none came. */
static bool wait_signal(const sigset_t *signals, long milliseconds)
{
    struct timespec wait = {.tv_nsec = milliseconds * 1000000};

    return sigtimedwait(signals, NULL, &wait) > 0;
}

/* Running requests finish, as long as there is time. */
static void drain(serve_server *server, struct steps *steps, const sigset_t *signals)
{
    enum { LAST_SECONDS = 2 }; /* for answers that are ready to be read */
    double end = app_seconds() + server->options.drain;
    bool given_up = false;

    app_say(server->app, "shutting down: running requests have %g s to finish", server->options.drain);
    atomic_store(&server->state, SERVE_DRAINING);
    serve_door_shut(server);
    fv_scheduler_stop(server->scheduler, true);
    while (!atomic_load(&steps->over)) {
        if (wait_signal(signals, 20)) second_signal();
        if (given_up || app_seconds() < end) continue;
        fv_scheduler_stop(server->scheduler, false);
        given_up = true;
    }
    end = app_seconds() + LAST_SECONDS;
    while (atomic_load(&server->calls) > 0 && app_seconds() < end)
        if (wait_signal(signals, 20)) second_signal();
}

static fv_status serve(serve_server *server, const sigset_t *signals)
{
    struct steps steps = {.server = server};

    if (pthread_create(&steps.thread, NULL, run_steps, &steps) != 0)
        return fv_fail(FV_E_MEMORY, "a thread cannot be started");
    atomic_store(&server->state, SERVE_READY);
    fprintf(stderr, strchr(server->options.host, ':') ? "listening on http://[%s]:%d\n" : "listening on http://%s:%d\n",
            server->options.host, server->port);
    while (!atomic_load(&steps.over))
        if (wait_signal(signals, 100)) break;
    drain(server, &steps, signals);
    pthread_join(steps.thread, NULL);
    return steps.status == FV_OK ? FV_OK : fv_fail(steps.status, "%s", steps.why);
}

static void end(serve_server *server)
{
    while (atomic_load(&server->looks) > 0) /* they hold the model */
        poll(NULL, 0, 10);
    serve_door_shut(server);
    serve_http_stop(server);
    serve_door_end(server);
    serve_guard_stop(server);
    fv_scheduler_free(server->scheduler);
    fv_model_close(server->model);
    pthread_mutex_destroy(&server->metrics.lock);
    pthread_mutex_destroy(&server->peers_lock);
    pthread_mutex_destroy(&server->log_lock);
    pthread_mutex_destroy(&server->look_lock);
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    serve_server server = {.app = app, .created = (int64_t)time(NULL)};
    sigset_t signals;
    fv_status status;

    /* Every thread leaves signals to this one, which waits for them. */
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals, NULL);
    raise_file_limit();
    pthread_mutex_init(&server.metrics.lock, NULL);
    pthread_mutex_init(&server.peers_lock, NULL);
    pthread_mutex_init(&server.log_lock, NULL);
    pthread_mutex_init(&server.look_lock, NULL);
    if (getrandom(&server.random, sizeof server.random, 0) < 0) server.random = (uint64_t)server.created;
    set_options(&server, values);
    status = load(&server, values);
    if (status == FV_OK) status = serve_guard_start(&server);
    if (status == FV_OK) status = serve_http_start(&server);
    if (status == FV_OK) {
        fv_model_pack(app->ctx, server.model); /* /health says so meanwhile */
        status = serve(&server, &signals);
    }
    end(&server);
    return status;
}

const cli_verb verb_serve = {
    .name = "serve",
    .summary = "a model behind OpenAI's HTTP interface",
    .about = "Serves a model to programs that speak OpenAI's protocol, and to people under http://HOST:PORT/. Requests "
             "are decoded together, each under its own attention and cache policy if it asks for one. SIGTERM lets "
             "running requests finish. One line of JSON on standard error tells of each request, unless --quiet.",
    .example = "  fovea serve -m model.gguf\n"
               "  fovea serve -m model.gguf --cache snapkv:budget=1024 --parallel 16 --port 0\n"
               "  FOVEA_API_KEY=secret fovea serve -m model.gguf --host 0.0.0.0\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
