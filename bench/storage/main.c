/* fovea-storage: what keeping rows costs: waste after many requests, calls of the system, sharing, a file, and decoding
 * from dense rows beside a gather by block table.  Not installed. */
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "app/app.h"
#include "app/measure.h"
#include "app/noise.h"
#include "base/context.h"
#include "base/random.h"
#include "cache/rows.h"
#include "ops/ops.h"

enum { SLOTS = 16, CHUNK = 512, TURNS = 31, BLOCK = 16 /* rows of a block table's block */ };

static const char help[] =
    "fovea-storage: what keeping rows of keys and values costs\n\n"
    "usage: fovea-storage [--part lives|requests|decode|share|file] [--heads H] [--dim D] [--layers L]\n"
    "                     [--context N] [--queries H] [--threads N] [--seed N]\n\n"
    "  lives      waste after 10,000 random lives of requests that append, drop and share rows\n"
    "  requests   1000 requests of lognormal lengths in 16 places: memory and calls by page size\n"
    "  decode     a step of attention over --context rows: dense, and behind a gather by block table\n"
    "  share      time to lend a prefix and to copy it\n"
    "  file       time to offload rows, and to fetch them with and without reading ahead\n";

struct bench {
    int64_t heads, dim, layers, context, queries, threads, seed;
    const char *part;
    fv_ctx *ctx;
    fv_random random;
    app_table table;
    fv_tensor k, v; /* [1,heads,CHUNK,dim] */
};

static void begin_table(struct bench *b, int columns, const char *const *heads)
{
    static const bool left[] = {true, false, false, false, false, false, false, false};

    b->table = (app_table){.columns = columns, .left = left};
    for (int n = 0; n < columns; n++)
        app_table_cell(&b->table, "%s", heads[n]);
}

static fv_status end_table(struct bench *b)
{
    fv_status status = app_table_print(&b->table, stdout);

    app_table_free(&b->table);
    printf("\n");
    return status;
}

static fv_rows_options options(const struct bench *b)
{
    return (fv_rows_options){.heads = b->heads,
                             .key_dim = b->dim,
                             .value_dim = b->dim,
                             .capacity = b->context,
                             .key_type = FV_F16,
                             .value_type = FV_F16};
}

static fv_status append(struct bench *b, fv_rows *rows, int64_t position, int64_t count)
{
    for (int64_t n = 0; n < count; n += CHUNK) {
        int64_t part = fv_min(CHUNK, count - n);
        fv_tensor k = fv_slice(&b->k, 2, 0, part), v = fv_slice(&b->v, 2, 0, part);
        FV_TRY(fv_rows_append(b->ctx, rows, &k, &v, position + n));
    }
    return FV_OK;
}

/* exp of a normal number, about `median`. */
static int64_t lognormal(struct bench *b, double median, int64_t least, int64_t most)
{
    return fv_clamp((int64_t)(median * exp(fv_random_normal(&b->random))), least, most);
}

static double megabytes(double bytes)
{
    return bytes / 1048576;
}

/* ---- lives ------------------------------------------------------------------------------------------------------ */

/* From /proc/self: resident kilobytes, and maps. */
static void count_process(double *resident, int64_t *maps)
{
    char line[512];
    FILE *file = fopen("/proc/self/smaps_rollup", "r");

    *resident = 0;
    *maps = 0;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "Rss: %lf", resident) == 1) break;
    if (file) fclose(file);
    file = fopen("/proc/self/maps", "r");
    while (file && fgets(line, sizeof line, file))
        ++*maps;
    if (file) fclose(file);
}

struct life {
    bool alive;
    fv_rows rows;
    int64_t length, end;
};

/* A request begins, with a prefix of another one if there is one and chance wills. */
static fv_status begin_life(struct bench *b, struct life *lives, struct life *own, const fv_rows_options *o)
{
    struct life *other = &lives[fv_random_below(&b->random, SLOTS)];
    int64_t prompt = lognormal(b, 512, 16, b->context - 1);

    FV_TRY(fv_rows_new(&own->rows, o));
    own->alive = true;
    own->length = 0;
    if (o->shared && other != own && other->alive && fv_random_below(&b->random, 2)) {
        int64_t length = fv_min(prompt - 1, other->length / 2);
        if (fv_rows_share(&own->rows, &other->rows, length) == FV_OK) own->length = length;
    }
    FV_TRY(append(b, &own->rows, own->length, prompt - own->length));
    own->length = prompt;
    own->end = fv_min(prompt + lognormal(b, 64, 1, b->context), b->context);
    return FV_OK;
}

/* Some steps; some lives drop half of what they hold, here and there. */
static fv_status live_on(struct bench *b, struct life *own)
{
    int64_t n = fv_min(1 + fv_random_below(&b->random, 64), own->end - own->length);
    static int32_t keep[1 << 16];

    if (n > 0) FV_TRY(append(b, &own->rows, own->length, n));
    own->length += n;
    if (fv_random_below(&b->random, 8) == 0)
        for (int64_t g = 0; g < b->heads; g++) {
            int64_t kept = 0;
            for (int64_t i = 0; i < fv_rows_count(&own->rows, g); i++)
                if (fv_random_below(&b->random, 2)) keep[kept++] = (int32_t)i;
            FV_TRY(fv_rows_keep(&own->rows, g, keep, kept));
        }
    if (own->length < own->end) return FV_OK;
    fv_rows_free(&own->rows);
    own->alive = false;
    return FV_OK;
}

static fv_status run_lives(struct bench *b, const char *name, bool shared)
{
    static struct life lives[SLOTS];
    fv_rows_options o = options(b);
    double before, after, waste = 0, most = 0, committed = 0;
    int64_t maps_before, maps_after, ended = 0, samples = 0;
    fv_rows_bytes bytes;

    o.shared = shared;
    if (shared) FV_TRY(fv_lender_new(&o.lender));
    count_process(&before, &maps_before);
    for (int64_t n = 0; ended < 10000; n++) {
        struct life *own = &lives[fv_random_below(&b->random, SLOTS)];
        bool was = own->alive;
        FV_TRY(was ? live_on(b, own) : begin_life(b, lives, own, &o));
        ended += was && !own->alive;
        if (n % 64) continue;
        const fv_rows *all[SLOTS];
        int64_t count = 0;
        for (int i = 0; i < SLOTS; i++)
            if (lives[i].alive) all[count++] = &lives[i].rows;
        FV_TRY(fv_rows_measure_all(all, count, &bytes));
        if (bytes.used == 0) continue;
        double here = (double)bytes.committed / (double)bytes.used - 1;
        waste += here;
        most = fmax(most, here);
        committed = fmax(committed, (double)bytes.committed);
        samples++;
    }
    for (int i = 0; i < SLOTS; i++) {
        if (lives[i].alive) fv_rows_free(&lives[i].rows);
        lives[i].alive = false;
    }
    fv_lender_drop(o.lender);
    count_process(&after, &maps_after);
    app_table_cell(&b->table, "%s", name);
    app_table_cell(&b->table, "%lld", (long long)ended);
    app_table_cell(&b->table, "%.1f", megabytes(committed));
    app_table_cell(&b->table, "%.1f %%", 100 * waste / (double)samples);
    app_table_cell(&b->table, "%.1f %%", 100 * most);
    app_table_cell(&b->table, "%.1f", megabytes((after - before) * 1024));
    app_table_cell(&b->table, "%lld", (long long)(maps_after - maps_before));
    return FV_OK;
}

static fv_status part_lives(struct bench *b)
{
    static const char *const heads[] = {"ROWS",       "LIVES",       "PEAK MB",  "MEAN WASTE",
                                        "MOST WASTE", "RSS LEFT MB", "MAPS LEFT"};

    begin_table(b, 7, heads);
    FV_TRY(run_lives(b, "own pages", false));
    FV_TRY(run_lives(b, "shared prefixes", true));
    return end_table(b);
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

struct request {
    int64_t length, end;
    fv_slab *slab[2];
};

struct traffic {
    int64_t tokens, requests;
    double peak, waste, weight;
};

/* A round: every place goes on by one token, and an ended request's place is taken by the next. */
static fv_status play(struct bench *b, fv_pages *pool, size_t token, struct request *places, struct traffic *t)
{
    double used = 0, mapped = 0;

    for (int i = 0; i < SLOTS; i++) {
        struct request *r = &places[i];
        bool begins = r->length == r->end && t->requests < 1000;
        if (r->length == r->end) {
            for (int side = 0; side < 2 && r->slab[side]; side++)
                fv_slab_drop(r->slab[side]);
            *r = (struct request){0};
        }
        if (begins) {
            int64_t prompt = lognormal(b, 512, 16, b->context - 1);
            r->length = prompt;
            r->end = fv_min(prompt + lognormal(b, 128, 1, b->context), b->context);
            t->requests++;
            t->tokens += prompt;
            for (int side = 0; side < 2; side++)
                FV_TRY(fv_slab_take(pool, token, b->context, prompt, &r->slab[side]));
        } else if (r->length < r->end) {
            r->length++;
            t->tokens++;
        }
        for (int side = 0; side < 2 && r->slab[side]; side++) {
            FV_TRY(fv_slab_map(r->slab[side], r->length));
            used += (double)token * (double)r->length;
        }
    }
    fv_pages_stats stats;
    fv_pages_measure(pool, &stats);
    mapped = (double)stats.mapped;
    if (used == 0) return FV_OK;
    t->peak = fmax(t->peak, mapped);
    t->waste += mapped - used;
    t->weight += used;
    return FV_OK;
}

static fv_status run_requests(struct bench *b, const char *name, int64_t page, bool keep, bool one)
{
    size_t token = (size_t)(b->heads * b->dim * 2 * (one ? b->layers : 1));
    double tensors = one ? 1 : (double)b->layers; /* all of them do the same: one stands for them */
    struct request places[SLOTS] = {0};
    struct traffic t = {0};
    fv_pages_stats stats;
    fv_pages *pool;
    bool running = true;

    b->random = fv_random_new((uint64_t)b->seed, 2); /* the same requests for every page */
    FV_TRY(fv_pages_new(&(fv_pages_options){.page = page, .async = true, .deferred = keep, .lookahead = 9}, &pool));
    while (running) {
        FV_TRY(play(b, pool, token, places, &t));
        running = t.requests < 1000;
        for (int i = 0; i < SLOTS; i++)
            running = running || places[i].length < places[i].end;
    }
    fv_pages_measure(pool, &stats);
    for (int i = 0; i < SLOTS; i++)
        for (int side = 0; side < 2 && places[i].slab[side]; side++)
            fv_slab_drop(places[i].slab[side]);
    fv_pages_drop(pool);
    app_table_cell(&b->table, "%s", name);
    app_table_cell(&b->table, "%.0f", megabytes(t.peak * tensors));
    app_table_cell(&b->table, "%.1f %%", 100 * t.peak / (2 * (double)token * (double)(SLOTS * b->context)));
    app_table_cell(&b->table, "%.1f %%", 100 * t.waste / t.weight);
    app_table_cell(&b->table, "%.2f", 1e3 * tensors * (double)stats.calls / (double)t.tokens);
    app_table_cell(&b->table, "%.2f", 1e3 * tensors * (double)stats.ahead / (double)t.tokens);
    app_table_cell(&b->table, "%.2f", 1e3 * tensors * (double)stats.unmaps / (double)t.tokens);
    return FV_OK;
}

static fv_status part_requests(struct bench *b)
{
    static const char *const heads[] = {"PAGES",          "PEAK MB",   "OF RESERVED", "WASTE",
                                        "WAITED /1k tok", "AHEAD /1k", "UNMAPS /1k"};
    static const struct {
        const char *name;
        int64_t page;
        bool keep, one;
    } cases[] = {
        {"4 KiB", 4096, false, false},
        {"4 KiB, kept", 4096, true, false},
        {"64 KiB", 65536, false, false},
        {"64 KiB, kept", 65536, true, false},
        {"256 KiB, kept", 262144, true, false},
        {"2 MiB, kept", 2097152, true, false},
        {"2 MiB, one tensor", 2097152, false, true},
        {"2 MiB, one tensor, kept", 2097152, true, true},
        {"256 KiB, one tensor, kept", 262144, true, true},
    };

    begin_table(b, 7, heads);
    for (size_t n = 0; n < sizeof cases / sizeof *cases; n++)
        FV_TRY(run_requests(b, cases[n].name, cases[n].page, cases[n].keep, cases[n].one));
    return end_table(b);
}

/* ---- decoding --------------------------------------------------------------------------------------------------- */

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

static double median(double *seconds, int count)
{
    qsort(seconds, (size_t)count, sizeof *seconds, by_size);
    return seconds[count / 2];
}

struct step {
    fv_attend_args attend;
    fv_gather_args gather[2]; /* first, if there is a table */
    bool gathers;
};

static fv_status one_step(fv_ctx *ctx, const struct step *s)
{
    for (int side = 0; side < 2 && s->gathers; side++)
        FV_TRY(fv_gather(ctx, &s->gather[side]));
    return fv_attend(ctx, &s->attend);
}

/* Blocks of rows in a random order, and the table that puts them in theirs. */
static fv_status make_table(struct bench *b, const fv_tensor *rows, fv_gather_args *gather, fv_tensor *dense)
{
    int64_t blocks = b->context / BLOCK, wide = BLOCK * b->dim;
    fv_tensor pool;
    int32_t *table;

    FV_TRY(fv_tensor_new(b->ctx, &pool, FV_F16, FV_DIMS(1, b->heads, blocks, wide)));
    FV_TRY(fv_tensor_new(b->ctx, dense, FV_F16, FV_DIMS(1, b->heads, b->context, b->dim)));
    FV_TRY(fv_tensor_new(b->ctx, &gather->index, FV_I32, FV_DIMS(1, 1, blocks)));
    table = gather->index.data;
    for (int64_t i = 0; i < blocks; i++)
        table[i] = (int32_t)i;
    for (int64_t i = blocks - 1; i > 0; i--) {
        int64_t j = fv_random_below(&b->random, i + 1);
        int32_t other = table[i];
        table[i] = table[j];
        table[j] = other;
    }
    for (int64_t g = 0; g < b->heads; g++)
        for (int64_t i = 0; i < blocks; i++)
            for (int64_t r = 0; r < BLOCK; r++)
                memcpy((char *)fv_at(&pool, 0, g, table[i], 0) + r * b->dim * 2, fv_at(rows, 0, g, i * BLOCK + r, 0),
                       (size_t)b->dim * 2);
    gather->x = pool;
    gather->out = fv_reshaped(dense, FV_DIMS(1, b->heads, blocks, wide));
    return FV_OK;
}

static fv_status fill(struct bench *b, const fv_rows_options *o, fv_rows *rows, struct step *s, const fv_tensor *q)
{
    FV_TRY(fv_rows_new(rows, o));
    FV_TRY(append(b, rows, 0, b->context));
    s->attend = (fv_attend_args){.q = *q, .logits = {.scale = (float)(1 / sqrt((double)b->dim))}};
    fv_rows_view(rows, 0, b->heads, &s->attend.k, &s->attend.v);
    return fv_tensor_new(b->ctx, &s->attend.o, FV_F32, 4, q->dims);
}

static fv_status part_decode(struct bench *b)
{
    static const char *const heads[] = {"ROWS", "MS A STEP", "OF DENSE"};
    static const char *const names[] = {"dense rows", "in shared pages (4 KiB)", "pool, [tokens, heads, dim]",
                                        "pool, one tensor of all layers", "gathered by block table"};
    enum { STEPS = 5 };
    double seconds[STEPS][TURNS];
    struct step s[STEPS] = {0};
    fv_rows rows[STEPS] = {0};
    fv_rows_options o = options(b);
    fv_tensor q, dense[2];

    FV_TRY(fv_tensor_new(b->ctx, &q, FV_F32, FV_DIMS(1, b->queries, 1, b->dim)));
    app_noise(&q, 7);
    FV_TRY(fill(b, &o, &rows[0], &s[0], &q));
    o.shared = true;
    FV_TRY(fill(b, &o, &rows[1], &s[1], &q));
    o.shared = false;
    FV_TRY(fv_pages_of(b->ctx, &(fv_pages_options){.page = 2097152}, &o.pages));
    FV_TRY(fill(b, &o, &rows[2], &s[2], &q));
    o.layers = b->layers;
    FV_TRY(fill(b, &o, &rows[3], &s[3], &q));
    s[4].attend = s[0].attend;
    s[4].gathers = true;
    FV_TRY(make_table(b, &s[0].attend.k, &s[4].gather[0], &dense[0]));
    FV_TRY(make_table(b, &s[0].attend.v, &s[4].gather[1], &dense[1]));
    s[4].attend.k = dense[0];
    s[4].attend.v = dense[1];
    FV_TRY(fv_tensor_new(b->ctx, &s[4].attend.o, FV_F32, 4, q.dims));
    for (int turn = -1; turn < TURNS; turn++)
        for (int n = 0; n < STEPS; n++) {
            double start = app_seconds();
            FV_TRY(one_step(b->ctx, &s[n]));
            if (turn >= 0) seconds[n][turn] = app_seconds() - start;
            if (memcmp(s[n].attend.o.data, s[0].attend.o.data, (size_t)(b->queries * b->dim) * sizeof(float)) != 0)
                return fv_fail(FV_E_FORMAT, "%s: not the same bits as dense rows", names[n]);
        }
    begin_table(b, 3, heads);
    for (int n = 0; n < STEPS; n++) {
        double own = median(seconds[n], TURNS);
        app_table_cell(&b->table, "%s", names[n]);
        app_table_cell(&b->table, "%.3f", 1e3 * own);
        app_table_cell(&b->table, "%.2f", own / median(seconds[0], TURNS));
        fv_rows_free(&rows[n]);
    }
    return end_table(b);
}

/* ---- sharing ---------------------------------------------------------------------------------------------------- */

/* A prefix of all layers, lent for the first time, lent again, and copied. */
static fv_status run_share(struct bench *b, int64_t tokens)
{
    fv_rows *from, *to[2];
    fv_rows_options o = options(b);
    double seconds[3];

    FV_TRY(FV_ZALLOC(from, b->layers));
    FV_TRY(FV_ZALLOC(to[0], b->layers));
    FV_TRY(FV_ZALLOC(to[1], b->layers));
    FV_TRY(fv_lender_new(&o.lender));
    for (int turn = 0; turn < 3; turn++) {
        o.shared = turn < 2;
        for (int64_t l = 0; l < b->layers; l++) {
            if (turn != 1) FV_TRY(fv_rows_new(&from[l], &o));
            if (turn != 1) FV_TRY(append(b, &from[l], 0, fv_min(tokens + 100, b->context)));
            FV_TRY(fv_rows_new(&to[turn % 2][l], &o));
        }
        double start = app_seconds();
        for (int64_t l = 0; l < b->layers; l++)
            FV_TRY(fv_rows_share(&to[turn % 2][l], &from[l], tokens));
        seconds[turn] = app_seconds() - start;
        for (int64_t l = 0; l < b->layers && turn > 0; l++) {
            fv_rows_free(&from[l]);
            fv_rows_free(&to[0][l]);
            fv_rows_free(&to[1][l]);
        }
    }
    fv_lender_drop(o.lender);
    fv_free(from);
    fv_free(to[0]);
    fv_free(to[1]);
    app_table_cell(&b->table, "%lld", (long long)tokens);
    app_table_cell(&b->table, "%.1f", megabytes((double)(tokens * b->layers * b->heads * b->dim * 4)));
    for (int turn = 0; turn < 3; turn++)
        app_table_cell(&b->table, "%.2f", 1e3 * seconds[turn]);
    return FV_OK;
}

static fv_status part_share(struct bench *b)
{
    static const char *const heads[] = {"TOKENS", "MB", "LENT FIRST, MS", "LENT AGAIN, MS", "COPIED, MS"};

    begin_table(b, 5, heads);
    for (int64_t tokens = 250; tokens < b->context; tokens *= 4)
        FV_TRY(run_share(b, tokens));
    return end_table(b);
}

/* ---- a file ----------------------------------------------------------------------------------------------------- */

static fv_status compute(double seconds)
{
    double start = app_seconds();

    while (app_seconds() - start < seconds)
        ;
    return FV_OK;
}

static fv_status part_file(struct bench *b)
{
    static const char *const heads[] = {"WHAT", "ROWS", "MS", "MB/S"};
    fv_rows_options o = options(b);
    int64_t count = b->context / 2;
    int32_t *position;
    double seconds[3], size = (double)count * (double)(b->dim * 4);
    fv_offload *file;
    fv_rows rows;

    FV_TRY(fv_offload_new(NULL, &file));
    FV_TRY(fv_rows_new(&rows, &o));
    FV_TRY(append(b, &rows, 0, b->context));
    FV_TRY(FV_SCRATCH(b->ctx, position, count));
    for (int64_t n = 0; n < count; n++)
        position[n] = (int32_t)(2 * n); /* every other row */
    for (int turn = 0; turn < 2; turn++) {
        double start = app_seconds();
        FV_TRY(fv_rows_offload_some(&rows, file, 0, position, count));
        seconds[0] = app_seconds() - start;
        if (turn) fv_rows_prefetch(&rows, 0, position, count);
        if (turn) FV_TRY(compute(0.05));
        start = app_seconds();
        FV_TRY(fv_rows_fetch(&rows, 0, position, count));
        seconds[1 + turn] = app_seconds() - start;
    }
    begin_table(b, 4, heads);
    for (int n = 0; n < 3; n++) {
        app_table_cell(&b->table, "%s", n == 0 ? "offload" : n == 1 ? "fetch" : "fetch what was read ahead");
        app_table_cell(&b->table, "%lld", (long long)count);
        app_table_cell(&b->table, "%.3f", 1e3 * seconds[n]);
        app_table_cell(&b->table, "%.0f", megabytes(size) / seconds[n]);
    }
    fv_rows_free(&rows);
    fv_offload_drop(file);
    return end_table(b);
}

/* ------------------------------------------------------------------------------------------------------------------ */

static fv_status run(struct bench *b)
{
    static const struct {
        const char *name;
        fv_status (*run)(struct bench *b);
    } parts[] = {{"lives", part_lives},
                 {"requests", part_requests},
                 {"decode", part_decode},
                 {"share", part_share},
                 {"file", part_file}};
    bool any = false;

    FV_TRY(fv_ctx_new(&(fv_ctx_options){.threads = (int)b->threads}, &b->ctx));
    FV_TRY(fv_tensor_new(b->ctx, &b->k, FV_F32, FV_DIMS(1, b->heads, CHUNK, b->dim)));
    FV_TRY(fv_tensor_new(b->ctx, &b->v, FV_F32, FV_DIMS(1, b->heads, CHUNK, b->dim)));
    app_noise(&b->k, (uint64_t)b->seed);
    app_noise(&b->v, (uint64_t)b->seed + 1);
    for (size_t n = 0; n < sizeof parts / sizeof *parts; n++) {
        if (b->part && strcmp(b->part, parts[n].name) != 0) continue;
        any = true;
        printf("%s: %lld heads of %lld, %lld layers, %lld tokens, f16\n", parts[n].name, (long long)b->heads,
               (long long)b->dim, (long long)b->layers, (long long)b->context);
        FV_TRY(parts[n].run(b));
    }
    return any ? FV_OK
               : fv_fail(FV_E_USAGE, "--part: expected lives, requests, decode, share or file, got '%s'", b->part);
}

static int wrong(const char *sentence, const char *word)
{
    fprintf(stderr, "fovea-storage: %s '%s' (--help)\n", sentence, word);
    return 2;
}

/* -1: go on; otherwise the exit status. */
static int parse(int count, char **words, struct bench *b)
{
    static const struct option names[] = {
        {"part", required_argument, NULL, 'p'},    {"heads", required_argument, NULL, 'e'},
        {"dim", required_argument, NULL, 'd'},     {"layers", required_argument, NULL, 'l'},
        {"context", required_argument, NULL, 'c'}, {"queries", required_argument, NULL, 'q'},
        {"threads", required_argument, NULL, 't'}, {"seed", required_argument, NULL, 's'},
        {"help", no_argument, NULL, 'h'},          {NULL, 0, NULL, 0},
    };
    int letter;

    opterr = 0;
    while ((letter = getopt_long(count, words, "h", names, NULL)) != -1) {
        int64_t *number = letter == 'e'   ? &b->heads
                          : letter == 'd' ? &b->dim
                          : letter == 'l' ? &b->layers
                          : letter == 'c' ? &b->context
                          : letter == 'q' ? &b->queries
                          : letter == 't' ? &b->threads
                                          : &b->seed;
        char *end = "";
        if (letter == 'h') {
            fputs(help, stdout);
            return 0;
        }
        if (letter == '?') return wrong("unknown option, or one without its value:", words[optind - 1]);
        if (letter == 'p') {
            b->part = optarg;
            continue;
        }
        *number = strtoll(optarg, &end, 10);
        if (*end || *number < (letter == 't' || letter == 's' ? 0 : 1) || *number > 65536)
            return wrong("expected a number within reason, got", optarg);
    }
    if (optind < count) return wrong("unexpected word", words[optind]);
    if (b->context % CHUNK != 0) return wrong("--context: expected", "a multiple of 512");
    if (b->queries % b->heads != 0) return wrong("--queries: expected", "a multiple of --heads");
    return -1;
}

int main(int count, char **words)
{
    struct bench b = {.heads = 3, .dim = 64, .layers = 30, .context = 8192, .queries = 9, .seed = 1};
    int stop = parse(count, words, &b);
    fv_status status;

    if (stop >= 0) return stop;
    b.random = fv_random_new((uint64_t)b.seed, 1);
    status = run(&b);
    if (status != FV_OK) fprintf(stderr, "fovea-storage: %s\n", fv_error());
    app_table_free(&b.table);
    fv_ctx_free(b.ctx);
    return status == FV_OK ? 0 : 1;
}
