/* The command: options, contexts for each instruction set, and what is printed at the end. */
#include "checkops.h"

#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
    "fovea-checkops: every primitive against the reference backend, then timed\n"
    "\n"
    "usage: fovea-checkops [--check] [--isa NAME] [--filter TEXT] [--threads N] [--seed N] [--json]\n"
    "\n"
    "  --check         no timing, small odd shapes: a test\n"
    "  --isa NAME      avx512, avx512f, avx2 or c; without it all that this machine has\n"
    "  --filter TEXT   only trials whose name and shape, as the table shows them, contain TEXT\n"
    "  --threads N     threads; 0: as many as the process may use (default 0)\n"
    "  --seed N        of the random inputs; without it the clock; it is printed\n"
    "  --json          rows as JSON on standard output\n"
    "  --help          this text\n"
    "\n"
    "A result that is further from the reference backend than rounding explains is printed with its place, and the "
    "exit\n"
    "status is 1. Times are medians of at least five calls over at least 0.1 seconds; CYCLES are those of the "
    "time-stamp\n"
    "counter, which runs at one rate whatever the core's clock does. OF PEAK is the least time that the machine's own\n"
    "peaks allow, measured in the same run, over the time; BOUND is the peak that sets it: multiply-adds, dot "
    "products,\n"
    "or memory where the data exceed the caches.\n";

struct options {
    const char *isa, *filter;
    long threads;
    uint64_t seed;
    bool check, json;
};

static int wrong(const char *sentence, const char *word)
{
    fprintf(stderr, "fovea-checkops: %s '%s' (--help)\n", sentence, word);
    return 2;
}

static bool is_isa(const char *name)
{
    for (int i = 0; i < FV_ISA_COUNT; i++)
        if (strcmp(name, fv_isa_name((fv_isa)i)) == 0) return true;
    return false;
}

/* 0: go on; otherwise the exit status + 1. */
static int parse(int count, char **words, struct options *o)
{
    static const struct option names[] = {
        {"check", no_argument, NULL, 'c'},        {"isa", required_argument, NULL, 'i'},
        {"filter", required_argument, NULL, 'f'}, {"threads", required_argument, NULL, 't'},
        {"seed", required_argument, NULL, 's'},   {"json", no_argument, NULL, 'j'},
        {"help", no_argument, NULL, 'h'},         {NULL, 0, NULL, 0},
    };
    int letter;
    char *end;

    opterr = 0;
    while ((letter = getopt_long(count, words, "h", names, NULL)) != -1) {
        end = (char[]){0};
        if (letter == 'h') {
            fputs(help, stdout);
            return 1;
        }
        if (letter == '?') return 1 + wrong("unknown option, or one without its value:", words[optind - 1]);
        if (letter == 'c') o->check = true;
        if (letter == 'j') o->json = true;
        if (letter == 'f') o->filter = optarg;
        if (letter == 'i') o->isa = optarg;
        if (letter == 't') o->threads = strtol(optarg, &end, 10);
        if (letter == 's') o->seed = strtoull(optarg, &end, 10);
        if (*end || o->threads < 0 || o->threads > 1024) return 1 + wrong("expected a number, got", optarg);
        if (o->isa && !is_isa(o->isa)) return 1 + wrong("--isa: expected avx512, avx512f, avx2 or c, got", o->isa);
    }
    return optind < count ? 1 + wrong("unexpected word", words[optind]) : 0;
}

/* A context held to each instruction set of this machine. */
static fv_status make_contexts(struct checkops *c, const struct options *o)
{
    int made = 0;

    FV_TRY(fv_ctx_new(&(fv_ctx_options){.device = "ref", .threads = (int)o->threads}, &c->reference));
    for (int isa = 0; isa < FV_ISA_COUNT; isa++) {
        const char *name = fv_isa_name((fv_isa)isa);
        if (o->isa && strcmp(o->isa, name) != 0) continue;
        setenv("FOVEA_ISA", name, 1);
        fv_status status = fv_ctx_new(&(fv_ctx_options){.threads = (int)o->threads}, &c->contexts[isa]);
        unsetenv("FOVEA_ISA");
        if (status == FV_E_UNSUPPORTED) continue;
        FV_TRY(status);
        if ((int)c->contexts[isa]->isa == isa) { /* avx512 falls back to avx512f where it must */
            made++;
            continue;
        }
        fv_ctx_free(c->contexts[isa]);
        c->contexts[isa] = NULL;
    }
    return made ? FV_OK : fv_fail(FV_E_UNSUPPORTED, "this processor has no %s", o->isa);
}

static fv_status run(struct checkops *c)
{
    static fv_status (*const files[])(struct checkops *) = {checkops_pool, checkops_products, checkops_attend,
                                                            checkops_scan, checkops_rows};

    if (!c->small) FV_TRY(app_peaks_measure(c->reference, &c->peaks));
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        FV_TRY(files[i](c));
    return FV_OK;
}

static void print_peaks(const struct checkops *c)
{
    const app_peaks *p = &c->peaks;

    printf("%s, %d threads. Peaks: fma f32 %.0f GFLOP/s", c->reference->cpu.model, fv_ctx_threads(c->reference),
           1e-9 * p->rate[APP_FMA]);
    if (p->rate[APP_DOT_BF16] > 0)
        printf(", dot bf16 %.0f, dot int8 %.0f", 1e-9 * p->rate[APP_DOT_BF16], 1e-9 * p->rate[APP_DOT_INT8]);
    printf("; memory read %.1f GB/s, copied %.1f.\n", 1e-9 * p->read, 1e-9 * p->copy);
}

static fv_status print(struct checkops *c)
{
    if (c->json) return app_json_print(json_incref(c->rows));
    if (!c->small) {
        print_peaks(c);
        FV_TRY(app_table_print(&c->table, stdout));
    }
    printf("%lld passed, %lld failed\n", (long long)(c->trials - c->failures), (long long)c->failures);
    return FV_OK;
}

int main(int count, char **words)
{
    static const bool left[9] = {true, true, true, false, false, false, false, false, true};
    static const char *const heading[9] = {"OP", "SHAPE", "ISA", "CYCLES", "MS", "GFLOP/S", "GB/S", "OF PEAK", "BOUND"};
    struct options o = {.seed = (uint64_t)time(NULL)};
    int stop = parse(count, words, &o);
    struct checkops c = {.small = o.check, .filter = o.filter, .seed = o.seed, .json = o.json};
    fv_status status;

    if (stop) return stop - 1;
    c.table = (app_table){.columns = 9, .left = left};
    c.rows = json_array();
    for (int i = 0; i < 9; i++)
        app_table_cell(&c.table, "%s", heading[i]);
    fprintf(stderr, "seed: --seed %llu\n", (unsigned long long)c.seed);
    status = make_contexts(&c, &o);
    if (status == FV_OK) status = run(&c);
    if (!c.small && isatty(STDERR_FILENO)) fputs("\r\033[K", stderr);
    if (status == FV_OK) status = print(&c);
    if (status == FV_OK && c.trials == 0) status = fv_fail(FV_E_ARGUMENT, "no trial's name contains '%s'", c.filter);
    if (status != FV_OK) fprintf(stderr, "fovea-checkops: %s\n", fv_error());
    json_decref(c.rows);
    app_table_free(&c.table);
    for (int isa = 0; isa < FV_ISA_COUNT; isa++)
        fv_ctx_free(c.contexts[isa]);
    fv_ctx_free(c.reference);
    return status == FV_OK && c.failures == 0 ? 0 : 1;
}
