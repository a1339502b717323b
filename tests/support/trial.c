#include "support/trial.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

bool trial_has(const struct trial *t, unsigned trait)
{
    return (t->mechanism->traits & trait) != 0;
}

/* ---- drawing a trial -------------------------------------------------------------------------------------------- */

double *trial_doubled(const fv_tensor *t)
{
    int64_t count = fv_tensor_count(t);
    double *out = calloc((size_t)fv_max(count, 1), sizeof *out);

    assert_non_null(out);

    for (int64_t i = 0; i < count; i++)
        out[i] = t->dtype == FV_F32   ? ((const float *)t->data)[i]
                 : t->dtype == FV_I32 ? ((const int32_t *)t->data)[i]
                                      : ((const uint8_t *)t->data)[i];
    return out;
}

/* Whole numbers below `bound`; ascending ones from 0 with `ascending`, and the last of them is then the bound. */
static fv_tensor draw_integers(struct trial *t, fv_dtype dtype, int64_t bound, bool ascending, int rank,
                               const int64_t *dims)
{
    fv_random random = fv_random_new(test_seed(), 76);
    fv_tensor tensor;
    int64_t count;

    assert_ok(fv_tensor_new(t->ctx, &tensor, dtype, rank, dims));
    count = fv_tensor_count(&tensor);
    for (int64_t i = 0; i < count; i++) {
        int64_t low = count > 1 ? i * bound / (count - 1) : 0, next = count > 1 ? (i + 1) * bound / (count - 1) : 1;
        int64_t value = !ascending                 ? fv_random_below(&random, bound)
                        : i == 0 || i == count - 1 ? low
                                                   : low + fv_random_below(&random, fv_max(next - low, 1));
        if (dtype == FV_I32)
            ((int32_t *)tensor.data)[i] = (int32_t)value;
        else
            ((uint8_t *)tensor.data)[i] = (uint8_t)value;
    }
    return tensor;
}

/* Reads one "name=2x3" and draws it; "name=2x3<7": whole numbers below 7; "name=5^40": ascending ones from 0 to 40. */
static const char *draw_param(struct trial *t, const char *text)
{
    int64_t dims[4], rank = 0, largest = 1;
    int index = t->args.params++, length, place;
    const fv_param *param = t->mechanism->params;
    fv_tensor tensor;
    bool absolute;

    assert_int_equal(sscanf(text, "%31[^=]=%n", t->names[index], &length), 1);
    text += length;
    absolute = *text == '|';
    for (place = 0; strcmp(param[place].name, t->names[index]) != 0; place++)
        ;
    for (text += absolute; *text && !strchr(" <^", *text); text += *text == 'x')
        dims[rank++] = strtoll(text, (char **)&text, 10);
    for (int64_t d = 0; d < rank; d++)
        largest = fv_max(largest, dims[d]);
    if (*text == '<' || *text == '^') {
        bool ascending = *text == '^';
        int64_t bound = strtoll(text + 1, (char **)&text, 10);
        tensor = draw_integers(t, param[place].dtype, bound, ascending, (int)rank, dims);
    } else {
        tensor = test_random(t->ctx, 1 / sqrt((double)largest), (int)rank, dims); /* products keep their size */
    }
    for (int64_t i = 0; absolute && i < fv_tensor_count(&tensor); i++)
        ((float *)tensor.data)[i] = fminf(fabsf(((float *)tensor.data)[i]), 1);
    t->param[index] = (fv_named_tensor){t->names[index], tensor};
    t->data[index] = trial_doubled(&tensor);
    t->sheet_params[index] = (sheet_param){.name = t->names[index], .data = t->data[index], .rank = (int)rank};
    memcpy(t->sheet_params[index].dims, dims, sizeof dims);
    t->sheet.params = t->args.params;
    return text + strspn(text, " ");
}

int trial_options(const char *text, const fv_option *table, sheet_option *options, double values[][TRIAL_VALUES])
{
    fv_spec spec;

    assert_ok(fv_spec_parse(&spec, text));
    for (int i = 0; i < spec.count; i++) {
        fv_assignment given = fv_spec_option(&spec, i);
        const fv_option *option = table;
        while (strcmp(option->name, given.name) != 0)
            option++;
        options[i] = (sheet_option){.name = option->name, .values = values[i]};
        if (option->type == FV_OPTION_ENUM) {
            while (strcmp(option->choices[(int)values[i][0]], given.value) != 0)
                values[i][0]++;
            options[i].count = 1;
        }
        bool word = false;
        for (int w = 0; option->type == FV_OPTION_LIST && option->choices && option->choices[w]; w++) {
            if (strcmp(option->choices[w], given.value) != 0) continue;
            values[i][options[i].count++] = -1 - w;
            word = true;
        }
        for (const char *at = given.value; option->type != FV_OPTION_ENUM && !word && *at; at += *at != 0)
            values[i][options[i].count++] = option->type == FV_OPTION_TUPLE /* "0x2" is two numbers there */
                                                ? (double)strtoll(at, (char **)&at, 10)
                                                : strtod(at, (char **)&at);
    }
    return spec.count;
}

void trial_define(struct trial *t)
{
    if (!sheet_find(t->mechanism->name)->forward(&t->sheet)) fail_msg("%s: the definition has no such call", t->what);
}

static void sheet_free(struct trial *t)
{
    free(t->q);
    free(t->k);
    free(t->v);
    free(t->sheet.o);
    free(t->sheet.lse);
    free(t->sheet.map);
    free(t->sheet.state);
    free(t->sheet.selection);
    for (int i = 0; i < t->sheet.params; i++)
        free(t->data[i]);
}

void *trial_zeros(int64_t count, size_t size)
{
    void *memory = calloc((size_t)fv_max(count, 1), size);

    assert_non_null(memory);
    return memory;
}

static void draw_sheet(struct trial *t)
{
    const conformance_case *c = t->c;
    int64_t rows = c->B * c->H * c->N;

    t->q = trial_doubled(&t->args.q);
    t->k = trial_doubled(&t->args.k);
    t->v = trial_doubled(&t->args.v);
    t->sheet_scale = t->scale;
    t->sheet = (sheet_call){.B = c->B,
                            .H = c->H,
                            .Hkv = c->Hkv,
                            .N = c->N,
                            .M = c->M,
                            .D = c->D,
                            .Dv = c->Dv,
                            .causal = c->causal,
                            .decode = t->decode,
                            .q = t->q,
                            .k = t->k,
                            .v = t->v,
                            .param = t->sheet_params,
                            .scale = trial_has(t, FV_NO_SCALE) ? NULL : &t->sheet_scale};
    t->sheet.o = trial_zeros(rows * c->Dv, sizeof(double));
    if (!trial_has(t, FV_NO_LSE)) t->sheet.lse = trial_zeros(rows, sizeof(double));
    if (!trial_has(t, FV_NO_MAP)) t->sheet.map = trial_zeros(rows * c->M, 1);
    t->sheet.selection = trial_zeros(rows * 128, sizeof(int64_t));
}

static void make_positive(fv_tensor *t)
{
    for (int64_t i = 0; i < fv_tensor_count(t); i++)
        ((float *)t->data)[i] = fabsf(((float *)t->data)[i]);
}

static void draw(struct trial *t)
{
    const conformance_case *c = t->c;
    const char *text = c->params;
    bool shared = trial_has(t, FV_SHARED_QK);
    fv_call call;

    sheet_free(t);
    t->args = (fv_attention_args){.causal = c->causal, .param = t->param};
    t->args.q = test_random(t->ctx, 1, FV_DIMS(shared ? 1 : c->B, c->H, c->N, c->D));
    t->args.k = test_random(t->ctx, 1, FV_DIMS(shared ? 1 : c->B, shared ? c->H : c->Hkv, c->M, c->D));
    if (text && *text == '|' && !text[1]) {
        text = NULL;
        make_positive(&t->args.q);
        make_positive(&t->args.k);
    }
    t->args.v = test_random(t->ctx, 1, FV_DIMS(c->B, c->Hkv, c->M, c->Dv));
    t->args.o = test_random(t->ctx, 1, FV_DIMS(c->B, c->H, c->N, c->Dv));
    if (!trial_has(t, FV_NO_LSE)) t->args.lse = test_random(t->ctx, 1, FV_DIMS(c->B, c->H, c->N));
    t->scale = (float)(0.7 / sqrt((double)c->D));
    if (!trial_has(t, FV_NO_SCALE)) t->args.scale = &t->scale;
    draw_sheet(t);
    t->sheet.options = trial_options(c->spec, t->mechanism->options, t->options, t->values);
    t->sheet.option = t->options;
    while (text && *text)
        text = draw_param(t, text);
    if (fv_call_make(t->attention, &t->args, &call) != FV_OK) fail_msg("%s: %s", t->what, fv_error());
    trial_define(t);
}

/* Whether what is chosen would be the same from inputs that differ by far more than f32 rounds: a choice between near
 * equals may fall either way, and such inputs are drawn again. */
static bool is_stable(struct trial *t)
{
    int64_t n_q = fv_tensor_count(&t->args.q), n_k = fv_tensor_count(&t->args.k), n_v = fv_tensor_count(&t->args.v),
            count = t->c->B * t->c->H * t->c->N * 128;
    int64_t *chosen = t->sheet.selection;
    fv_random random = fv_random_new(test_seed(), 79);
    double *q = t->q, *k = t->k, *v = t->v;
    bool same = true;

    if (t->mechanism->family != FV_CONTENT_SPARSE) return true;
    t->q = trial_zeros(n_q, sizeof *q);
    t->k = trial_zeros(n_k, sizeof *k);
    t->v = trial_zeros(n_v, sizeof *v);
    t->sheet.q = t->q;
    t->sheet.k = t->k;
    t->sheet.v = t->v;
    t->sheet.selection = trial_zeros(count, sizeof *chosen);
    for (int round = 0; round < 4 && same; round++) {
        for (int64_t i = 0; i < n_q; i++)
            t->q[i] = q[i] * (1 + 1e-5 * fv_random_normal(&random));
        for (int64_t i = 0; i < n_k; i++)
            t->k[i] = k[i] * (1 + 1e-5 * fv_random_normal(&random));
        for (int64_t i = 0; i < n_v; i++)
            t->v[i] = v[i] * (1 + 1e-5 * fv_random_normal(&random));
        trial_define(t);
        same = memcmp(chosen, t->sheet.selection, (size_t)count * sizeof *chosen) == 0;
    }
    free(t->q);
    free(t->k);
    free(t->v);
    free(t->sheet.selection);
    t->sheet.q = t->q = q;
    t->sheet.k = t->k = k;
    t->sheet.v = t->v = v;
    t->sheet.selection = chosen;
    trial_define(t);
    return same;
}

void trial_draw(struct trial *t)
{
    do
        draw(t);
    while (!is_stable(t));
}

/* Sums of up to M weights of up to D products each, every step rounded once; a few of them follow one another. */
static double tolerance_of(const conformance_case *c)
{
    return 4 * FLT_EPSILON * (double)(c->M + c->D + c->Dv);
}

const char *trial_only = "";

/* Calls `check` for every case on every device. */
void trial_for_all(void (*check)(struct trial *t), int threads)
{
    for (int d = 0; test_devices[d]; d++)
        for (const conformance_case *c = conformance_cases; c->spec; c++) {
            if (strncmp(c->spec, trial_only, strlen(trial_only)) != 0) continue;
            struct trial t = {.c = c, .ctx = test_ctx(test_devices[d], threads), .tolerance = tolerance_of(c)};
            snprintf(t.what, sizeof t.what, "%s on %s, N %d M %d%s%s%s", c->spec, fv_ctx_backend(t.ctx), (int)c->N,
                     (int)c->M, c->causal ? ", causal" : "", c->params ? ", " : "", c->params ? c->params : "");
            assert_ok(fv_attention_new(c->spec, &t.attention));
            t.mechanism = fv_attention_mechanism(t.attention);
            trial_draw(&t);
            check(&t);
            sheet_free(&t);
            fv_attention_free(t.attention);
            fv_ctx_free(t.ctx);
        }
}

fv_tensor trial_like(struct trial *t, const fv_tensor *x)
{
    return test_random(t->ctx, 1, x->rank, x->dims);
}

/* Whether the call is causal, be it by nature, flag or option. */
bool trial_is_causal(struct trial *t)
{
    fv_call call;

    assert_ok(fv_call_make(t->attention, &t->args, &call));
    return call.causal;
}
