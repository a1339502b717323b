/* Probes that listen to a reading: against maps of all pairs in double precision, in any chunks, alone and together. */
#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "hooks/probe.h"
#include "models/session.h"
#include "support/tiny_model.h"

enum { TOKENS = 150, MAPS = 60, PROBES = 16 };

struct fixture {
    tiny_model tiny;
    fv_precision precision;
    fv_ctx *ctx;
    fv_model *model;
    int32_t ids[TOKENS];
    float *q, *k;   /* [layers, H, TOKENS, D], [layers, Hkv, ..]: what attention read, from the hook */
    double *weight; /* [layers, H, TOKENS, TOKENS] */
    double *logit;  /* the same, before any soft-cap; NAN where a key is not seen */
    double largest; /* of their magnitudes */
};

/* ---- a model, and its maps from queries and keys ------------------------------------------------------------------
 */

static double *row_of(const struct fixture *f, double *maps, int64_t l, int64_t h, int64_t i)
{
    return maps + ((l * f->tiny.heads + h) * TOKENS + i) * TOKENS;
}

static fv_status record(void *user, const fv_look *look)
{
    struct fixture *f = user;
    const fv_call *call = look->call;
    int64_t D = f->tiny.key_dim;

    assert_int_equal(look->point, FV_POINT_ATTEND);
    assert_int_equal(look->position, call->offset);
    for (int64_t h = 0; h < call->query_heads; h++)
        for (int64_t i = 0; i < call->queries; i++)
            for (int64_t d = 0; d < D; d++)
                f->q[((look->layer * f->tiny.heads + look->head + h) * TOKENS + look->position + i) * D + d] =
                    *(float *)fv_at(&call->q, 0, h, i, d);
    for (int64_t g = 0; g < call->key_heads; g++)
        for (int64_t j = 0; j < call->keys; j++) {
            int64_t at = look->plan->key_position ? look->plan->key_position[j] : j;
            for (int64_t d = 0; d < D; d++)
                f->k[((look->layer * f->tiny.key_heads + g) * TOKENS + at) * D + d] =
                    (float)fv_load(call->k.dtype, call->k.data,
                                   g * call->k.strides[1] + j * call->k.strides[2] + d * call->k.strides[3]);
        }
    return FV_OK;
}

static void make_row(struct fixture *f, int64_t l, int64_t h, int64_t i)
{
    const fv_sizes *s = &f->model->sizes;
    int64_t D = s->key_dim, window = f->model->layers[l].window;
    const float *q = f->q + ((l * s->query_heads + h) * TOKENS + i) * D;
    double *logit = row_of(f, f->logit, l, h, i), *weight = row_of(f, f->weight, l, h, i), sum = 0, most = -INFINITY;

    for (int64_t j = 0; j < TOKENS; j++) {
        const float *k = f->k + ((l * s->key_heads + h / (s->query_heads / s->key_heads)) * TOKENS + j) * D;
        logit[j] = NAN;
        weight[j] = -INFINITY;
        if (j > i || (window > 0 && i - j >= window)) continue;
        logit[j] = 0;
        for (int64_t d = 0; d < D; d++)
            logit[j] += s->scale * (double)q[d] * (double)k[d];
        f->largest = fmax(f->largest, fabs(logit[j]));
        weight[j] = s->attention_cap > 0 ? s->attention_cap * tanh(logit[j] / s->attention_cap) : logit[j];
        most = fmax(most, weight[j]);
    }
    for (int64_t j = 0; j < TOKENS; j++)
        sum += weight[j] = exp(weight[j] - most);
    for (int64_t j = 0; j < TOKENS; j++)
        weight[j] /= sum;
}

static fv_session *session_of(const struct fixture *f, int64_t chunk, const char *attention)
{
    fv_session *session;

    assert_ok(fv_session_new(
        f->ctx, f->model,
        &(fv_session_options){.context = TOKENS, .chunk = chunk, .attention = attention, .precision = f->precision},
        &session));
    return session;
}

static void begin(struct fixture *f, tiny_model tiny)
{
    static uint64_t stream = 400;
    fv_random random = fv_random_new(test_seed(), ++stream);

    *f = (struct fixture){.tiny = tiny, .precision = FV_PRECISION_F32, .ctx = test_ctx("cpu", 2)};
    tiny_make(&f->tiny);
    const char *path = tiny_save(&f->tiny);
    assert_ok(fv_model_open(path, &f->model));
    unlink(path);
    for (int i = 0; i < TOKENS; i++)
        f->ids[i] = (int32_t)fv_random_below(&random, f->tiny.vocabulary);
    const fv_sizes *s = &f->model->sizes;
    f->q = calloc((size_t)(s->layers * s->query_heads * TOKENS * s->key_dim), sizeof *f->q);
    f->k = calloc((size_t)(s->layers * s->key_heads * TOKENS * s->key_dim), sizeof *f->k);
    f->weight = calloc((size_t)(s->layers * s->query_heads * TOKENS * TOKENS), sizeof *f->weight);
    f->logit = calloc((size_t)(s->layers * s->query_heads * TOKENS * TOKENS), sizeof *f->logit);
    assert_true(f->q && f->k && f->weight && f->logit);
}

static void end(struct fixture *f)
{
    free(f->q);
    free(f->k);
    free(f->weight);
    free(f->logit);
    fv_model_close(f->model);
    fv_ctx_free(f->ctx);
    tiny_free(&f->tiny);
}

/* ---- probes at work -----------------------------------------------------------------------------------------------
 */

struct asked {
    int count;
    fv_probing probing[PROBES];
    void *options[PROBES];
};

/* "entropy:tokens=9 distance": with the options that are not given as they are by default. */
static void ask(const struct fixture *f, const char *specs, struct asked *asked)
{
    char words[1024];
    char *rest = words;

    *asked = (struct asked){0};
    snprintf(words, sizeof words, "%s", specs);
    for (char *word; (word = strtok_r(rest, " ", &rest));) {
        fv_probing *p = &asked->probing[asked->count];
        fv_spec spec;
        assert_ok(fv_spec_parse(&spec, word));
        for (int n = 0; fv_probes[n]; n++)
            if (strcmp(fv_probes[n]->name, fv_spec_name(&spec)) == 0) p->probe = fv_probes[n];
        assert_non_null(p->probe);
        assert_ok(fv_zalloc(&asked->options[asked->count], 1, p->probe->options_size));
        assert_ok(fv_options_parse(p->probe->options, &spec, asked->options[asked->count]));
        p->options = asked->options[asked->count++];
        p->ctx = f->ctx;
        p->tokens = fv_probing_common(p)->tokens > 0 ? fv_probing_common(p)->tokens : TOKENS;
        p->layers = f->model->sizes.layers;
        p->heads = f->model->sizes.query_heads;
    }
}

static void forget(struct asked *asked)
{
    fv_probing_free(asked->probing, asked->count);
    for (int n = 0; n < asked->count; n++)
        fv_free(asked->options[n]);
}

/* Reads the text, in chunks of so many tokens at least; its maps are those of what was read. */
static void listen(struct fixture *f, const char *specs, int64_t chunk, float *logits, struct asked *asked)
{
    fv_listener recorder = {.points = FV_POINT_ATTEND, .hear = record, .user = f};
    const fv_sizes *s = &f->model->sizes;
    fv_session *session;

    ask(f, specs, asked);
    session = session_of(f, chunk > 0 ? fv_max(chunk, fv_probing_chunk(asked->probing, asked->count)) : 0, NULL);
    if (asked->count > 0) fv_listen(&session->listeners, &recorder);
    assert_ok(fv_probing_begin(asked->probing, asked->count, &session->listeners));
    assert_ok(fv_session_prompt(session, f->ids, TOKENS, logits, logits ? TOKENS : 0));
    assert_ok(fv_probing_end(asked->probing, asked->count));
    fv_session_free(session);
    for (int64_t n = 0; n < s->layers * s->query_heads * TOKENS; n++)
        make_row(f, n / (s->query_heads * TOKENS), n / TOKENS % s->query_heads, n % TOKENS);
}

/* ---- definitions --------------------------------------------------------------------------------------------------
 */

/* What a field of a row is. */
static double of_row(struct fixture *f, const char *field, const fv_spec *spec, int64_t l, int64_t h, int64_t i)
{
    const double *weight = row_of(f, f->weight, l, h, i), *logit = row_of(f, f->logit, l, h, i);
    double sum = 0, clip = 0, sink = 4, recent = 64;

    for (int n = 0; n < spec->count; n++) {
        fv_assignment option = fv_spec_option(spec, n);
        if (strcmp(option.name, "clip") == 0) clip = atof(option.value);
        if (strcmp(option.name, "sink") == 0) sink = atof(option.value);
        if (strcmp(option.name, "recent") == 0) recent = atof(option.value);
    }
    for (int64_t j = 0; j <= i; j++) {
        double away = (double)(i - j), p = weight[j];
        if (strcmp(field, "entropy") == 0) sum -= p > 0 ? p * log(p) : 0;
        if (strcmp(field, "distance") == 0) sum += p * (clip > 0 ? fmin(away, clip) : away);
        if (strcmp(field, "sink") == 0) sum += (double)j < sink ? p : 0;
        if (strcmp(field, "recent") == 0) sum += away < recent ? p : 0;
        if (strcmp(field, "max_logit") == 0) sum = isnan(logit[j]) ? sum : fmax(sum, fabs(logit[j]));
    }
    return sum;
}

static double of_rows(struct fixture *f, const fv_probe_field *field, const fv_spec *spec, int64_t l, int64_t h,
                      int64_t from, int64_t to)
{
    double all = 0;

    for (int64_t i = from; i < to; i++) {
        double value = of_row(f, field->name, spec, l, h, i);
        all = field->most ? fmax(all, value) : all + value / (double)(to - from);
    }
    return all;
}

/* Logits are sums of D products in f32, an error that weights have as a share, and a mean distance that of all tokens.
 */
static double tolerance(const struct fixture *f, const char *field)
{
    double share = 4 * FLT_EPSILON * (double)f->tiny.key_dim * fmax(f->largest, 1);

    return share * (strcmp(field, "distance") == 0    ? TOKENS
                    : strcmp(field, "max_logit") == 0 ? fmax(f->largest, 1)
                                                      : 8);
}

static void close_to(const struct fixture *f, const char *what, const char *field, int64_t l, int64_t h,
                     double expected, double got)
{
    if (!(fabs(got - expected) <= tolerance(f, field)))
        fail_msg("%s: %s: %s of layer %lld, head %lld: expected %.9g, got %.9g, tolerance %.3g", f->tiny.architecture,
                 what, field, (long long)l, (long long)h, expected, got, tolerance(f, field));
}

static void check_rows(struct fixture *f, const fv_probing *p, const char *what)
{
    fv_spec spec;

    assert_ok(fv_spec_parse(&spec, what));
    for (int64_t n = 0; n < p->layers * p->heads; n++)
        for (int field = 0; field < fv_probe_fields(p->probe); field++) {
            const fv_probe_field *own = &p->probe->fields[field];
            int64_t l = n / p->heads, h = n % p->heads, bin = (n * 7 + field) % p->bins;
            int64_t from = 0, to = 0;
            while (from < p->tokens && from * p->bins / p->tokens < bin)
                from++;
            for (to = from; to < p->tokens && to * p->bins / p->tokens == bin;)
                to++;
            close_to(f, what, own->name, l, h, of_rows(f, own, &spec, l, h, 0, p->tokens),
                     fv_probing_value(p, field, l, h));
            close_to(f, what, own->name, l, h, of_rows(f, own, &spec, l, h, from, to),
                     fv_probing_bin(p, field, l, h, bin));
        }
}

static void check_top(struct fixture *f, const fv_probing *p, const char *what)
{
    for (int64_t n = 0; n < p->layers * p->heads; n++) {
        int64_t l = n / p->heads, h = n % p->heads;
        double share[TOKENS] = {0}, all = 0;
        for (int64_t i = 0; i < TOKENS; i++)
            for (int64_t j = 0; j <= i; j++)
                share[j] += row_of(f, f->weight, l, h, i)[j] / TOKENS;
        for (int64_t j = 0; j < TOKENS; j++)
            close_to(f, what, "column", l, h, share[j], (double)p->columns[n * TOKENS + j]);
        for (int64_t t = 0; t < p->top; t++) {
            const fv_probe_key *key = &p->key[n * p->top + t];
            double most = 0;
            for (int64_t j = 0; j < TOKENS; j++)
                most = fmax(most, share[j]);
            assert_in_range(key->position, 0, TOKENS - 1);
            close_to(f, what, "key", l, h, most, key->share);
            close_to(f, what, "key's own", l, h, share[key->position], key->share); /* and each only once: */
            share[key->position] = -1;
            all += key->share;
        }
        close_to(f, what, "share", l, h, all, fv_probing_value(p, 0, l, h));
    }
}

static void check_maps(struct fixture *f, const fv_probing *p, const char *what)
{
    int64_t L = p->tokens, H = p->heads;

    for (int64_t l = 0; l < p->layers; l++) {
        double expected[8] = {0};
        for (int64_t h = 0; h < H; h++) {
            double square = 0;
            for (int64_t i = 0; i < L; i++) {
                const double *weight = row_of(f, f->weight, l, h, i);
                expected[0] += of_row(f, "entropy", &(fv_spec){0}, l, h, i) / (double)H;
                expected[3] += weight[0] / (double)(H * L);
                for (int64_t j = 0; j <= i; j++)
                    square += weight[j] * weight[j];
                for (int64_t n = 0; n < 4 && n <= i; n++)
                    expected[4 + n] += weight[i - n] / (double)(H * (L - n));
            }
            expected[1] += sqrt(square) / (double)H;
        }
        for (int64_t i = 0; i < L; i++)
            for (int64_t j = 0; j <= i; j++) {
                double mean = 0, square = 0;
                for (int64_t h = 0; h < H; h++)
                    mean += row_of(f, f->weight, l, h, i)[j] / (double)H;
                for (int64_t h = 0; h < H; h++)
                    square += pow(row_of(f, f->weight, l, h, i)[j] - mean, 2) / (double)H;
                expected[2] += 2 * sqrt(square) / (double)(L * (L + 1));
            }
        for (int n = 0; n < 8; n++)
            close_to(f, what, n == 0 ? "distance" : "map", l, n, expected[n], fv_probing_value(p, n, l, -1));
    }
}

static void check_all(struct fixture *f, const char *specs, int64_t chunk)
{
    char words[1024], *rest = words;
    struct asked asked;

    listen(f, specs, chunk, NULL, &asked);
    snprintf(words, sizeof words, "%s", specs);
    for (int n = 0; n < asked.count; n++) {
        const char *what = strtok_r(rest, " ", &rest);
        const fv_probing *p = &asked.probing[n];
        if (strcmp(p->probe->name, "top_keys") == 0)
            check_top(f, p, what);
        else if (strcmp(p->probe->name, "attn_indicators") == 0)
            check_maps(f, p, what);
        else
            check_rows(f, p, what);
    }
    forget(&asked);
}

#define STREAMING                                                                                                      \
    "entropy distance:clip=5,bins=7 top_keys:top=5 sink_mass:sink=3,recent=6,bins=150 distance "                       \
    "entropy:tokens=70,bins=1 "                                                                                        \
    "logit_growth:tokens=80,bins=3"

static void probes_are_their_definitions_in_any_chunks(void **state)
{
    static const char *const architectures[] = {"llama", "gemma2", "gemma3"}; /* soft-caps, windows of their own */

    (void)state;
    for (int a = 0; a < 3; a++) {
        struct fixture f;
        begin(&f, (tiny_model){.architecture = architectures[a]});
        check_all(&f, STREAMING, 7);
        check_all(&f, STREAMING, 64);
        check_all(&f, STREAMING " attn_indicators:tokens=60", 0);
        check_all(&f, "attn_indicators:tokens=60 sink_mass:sink=200,recent=1000", 13);
        end(&f);
    }
}

/* Where attention takes products in bf16, its log-sum-exp is not that of statistics, which do not. */
static void rows_sum_to_one_in_any_precision(void **state)
{
    struct asked asked;
    struct fixture f;

    (void)state;
    begin(&f, (tiny_model){.architecture = "gemma2"});
    f.precision = FV_PRECISION_BF16;
    check_all(&f, "entropy distance:bins=7", 64);
    listen(&f, "top_keys", 64, NULL, &asked);
    for (int64_t n = 0; n < asked.probing[0].layers * asked.probing[0].heads; n++) {
        double all = 0;
        for (int64_t j = 0; j < TOKENS; j++)
            all += (double)asked.probing[0].columns[n * TOKENS + j];
        close_to(&f, "top_keys", "columns", n / asked.probing[0].heads, n % asked.probing[0].heads, 1, all);
    }
    forget(&asked);
    end(&f);
}

static void heads_of_a_kind_may_be_odd(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, (tiny_model){.architecture = "qwen3", .heads = 5, .key_heads = 1, .value_dim = 64});
    check_all(&f, STREAMING " attn_indicators:tokens=2", 50);
    end(&f);
}

/* ---- together, apart, in part ---------------------------------------------------------------------------------------
 */

static void several_at_once_find_what_each_finds_alone(void **state)
{
    struct asked all, one;
    char words[1024], *rest = words;
    struct fixture f;

    (void)state;
    begin(&f, (tiny_model){.architecture = "gemma3"});
    listen(&f, STREAMING, 20, NULL, &all);
    snprintf(words, sizeof words, "%s", STREAMING);
    for (int n = 0; n < all.count; n++) {
        const char *spec = strtok_r(rest, " ", &rest);
        listen(&f, spec, 20, NULL, &one);
        const fv_probing *p = &all.probing[n], *alone = &one.probing[0];
        int64_t count = fv_probe_fields(p->probe) * p->layers * p->heads * p->bins;
        if (memcmp(p->value, alone->value, (size_t)count * sizeof *p->value) != 0) fail_msg("%s: not the same", spec);
        forget(&one);
    }
    forget(&all);
    end(&f);
}

static void a_part_is_that_part_of_the_whole(void **state)
{
    struct asked all, part;
    struct fixture f;

    (void)state;
    begin(&f, (tiny_model){.architecture = "gemma2"});
    listen(&f, "entropy top_keys sink_mass", 33, NULL, &all);
    listen(&f, "entropy:layers=1+2,heads=0+4 top_keys:layers=2,heads=1 sink_mass:heads=5", 33, NULL, &part);
    for (int n = 0; n < 3; n++)
        for (int64_t at = 0; at < 18; at++) {
            int64_t l = at / 6, h = at % 6;
            bool in = n == 0 ? l > 0 && (h == 0 || h == 4) : n == 1 ? l == 2 && h == 1 : h == 5;
            double whole = fv_probing_value(&all.probing[n], 0, l, h),
                   own = fv_probing_value(&part.probing[n], 0, l, h);
            if (in)
                close_to(&f, "part", all.probing[n].probe->fields[0].name, l, h, whole, own);
            else if (!isnan(own))
                fail_msg("layer %d, head %d: was not asked for, got %.9g", (int)l, (int)h, own);
        }
    assert_int_equal(part.probing[1].key[0].position, -1);
    assert_true(part.probing[1].key[(2 * 6 + 1) * 8].position >= 0);
    forget(&all);
    forget(&part);
    end(&f);
}

static void who_listens_changes_nothing(void **state)
{
    float *heard = calloc(TOKENS * 50, sizeof *heard), *alone = calloc(TOKENS * 50, sizeof *alone);
    struct asked asked;
    struct fixture f;

    (void)state;
    assert_true(heard && alone);
    begin(&f, (tiny_model){.architecture = "gemma3"});
    listen(&f, STREAMING, 20, heard, &asked);
    forget(&asked);
    listen(&f, "", 20, alone, &asked);
    forget(&asked);
    assert_memory_equal(heard, alone, TOKENS * 50 * sizeof *heard);
    free(heard);
    free(alone);
    end(&f);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------
 */

static void begin_fails(const struct fixture *f, const char *specs, const char *words)
{
    fv_listener *listeners = NULL;
    struct asked asked;

    ask(f, specs, &asked);
    assert_fails(fv_probing_begin(asked.probing, asked.count, &listeners), FV_E_USAGE, words);
    forget(&asked);
}

static void what_cannot_be_looked_at_is_refused(void **state)
{
    struct asked asked;
    struct fixture f;
    fv_session *session;

    (void)state;
    begin(&f, (tiny_model){.architecture = "llama"});
    begin_fails(&f, "entropy distance:layers=3", "'layers': the model has 3 of them, 0 to 2, got 3");
    begin_fails(&f, "top_keys:heads=0+6", "'heads': the model has 6 of them");
    ask(&f, "entropy", &asked);
    session = session_of(&f, 0, "moba:block=16,top=2");
    assert_ok(fv_probing_begin(asked.probing, asked.count, &session->listeners));
    assert_fails(fv_session_prompt(session, f.ids, TOKENS, NULL, 0), FV_E_UNSUPPORTED, "'moba' reads there");
    fv_session_free(session);
    forget(&asked);
    ask(&f, "attn_indicators:tokens=60", &asked);
    session = session_of(&f, 20, NULL);
    assert_ok(fv_probing_begin(asked.probing, asked.count, &session->listeners));
    assert_fails(fv_session_prompt(session, f.ids, TOKENS, NULL, 0), FV_E_SHAPE, "60 tokens at once, got 20 rows");
    fv_session_free(session);
    forget(&asked);
    end(&f);
}

/* With the n-th allocation from the beginning of the probes on, and all later ones, failing. */
static fv_status listen_without(const struct fixture *f, int64_t nth)
{
    struct asked asked;
    fv_session *session;
    fv_status status;

    ask(f, "entropy top_keys:tokens=40 logit_growth:tokens=20 attn_indicators:tokens=20", &asked);
    session = session_of(f, 0, NULL);
    test_alloc_fail(nth);
    status = fv_probing_begin(asked.probing, asked.count, &session->listeners);
    if (status == FV_OK) status = fv_session_prompt(session, f->ids, TOKENS, NULL, 0);
    if (status == FV_OK) status = fv_probing_end(asked.probing, asked.count);
    test_alloc_fail(0);
    fv_session_free(session);
    forget(&asked);
    return status;
}

static void without_memory_it_fails_with_a_sentence(void **state)
{
    struct fixture f;
    fv_status status = FV_E_MEMORY;
    int64_t nth = 0;

    (void)state;
    begin(&f, (tiny_model){.architecture = "llama"});
    while (status != FV_OK) {
        status = listen_without(&f, ++nth);
        assert_true(status == FV_OK || (status == FV_E_MEMORY && *fv_error()));
    }
    assert_true(nth > 5);
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(probes_are_their_definitions_in_any_chunks),
        cmocka_unit_test(rows_sum_to_one_in_any_precision),
        cmocka_unit_test(heads_of_a_kind_may_be_odd),
        cmocka_unit_test(several_at_once_find_what_each_finds_alone),
        cmocka_unit_test(a_part_is_that_part_of_the_whole),
        cmocka_unit_test(who_listens_changes_nothing),
        cmocka_unit_test(what_cannot_be_looked_at_is_refused),
        cmocka_unit_test(without_memory_it_fails_with_a_sentence),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
