#include "app/examples.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/noise.h"
#include "attention/attention.h"
#include "base/random.h"

/* ---- options ---------------------------------------------------------------------------------------------------- */

const fv_option *example_option(const fv_mechanism *mechanism, const char *name)
{
    for (const fv_option *o = mechanism->options; o && o->name; o++)
        if (strcmp(o->name, name) == 0) return o;
    return NULL;
}

fv_status example_mechanism(const char *spec, const fv_mechanism **mechanism)
{
    char name[64];

    snprintf(name, sizeof name, "%.*s", (int)fv_min((int64_t)strcspn(spec, ":"), 63), spec);
    return fv_mechanism_named(name, mechanism);
}

/* What a SPEC gives for an option; NULL: nothing. */
static const char *value_of(const char *spec, const char *name)
{
    size_t length = strlen(name);

    for (const char *at = strchr(spec, ':'); at; at = strchr(at + 1, ','))
        if (strncmp(at + 1, name, length) == 0 && at[1 + length] == '=') return at + 2 + length;
    return NULL;
}

static bool gives(const char *spec, const char *name)
{
    return value_of(spec, name) != NULL;
}

int64_t example_cells(const char *spec)
{
    const char *at = value_of(spec, "grid");
    int64_t cells = at ? 1 : 0;
    char *end = NULL;

    for (; at; at = *end == 'x' ? end + 1 : NULL) {
        long long side = strtoll(at, &end, 10);
        if (side < 1 || !fv_mul_i64(cells, side, &cells)) return 0; /* the mechanism says why */
    }
    return cells;
}

void example_add(fv_text *spec, const char *name, const char *value)
{
    if (!gives(fv_text_get(spec), name))
        fv_text_printf(spec, "%c%s=%s", strchr(fv_text_get(spec), ':') ? ',' : ':', name, value);
}

/* Sides of a grid as square as the number of cells allows, the shorter first, or of a window on it; as text. */
static const char *sides(int64_t cells, int axes, bool window, char text[64])
{
    enum { WINDOW = 13 };
    int length = 0;

    for (int left = axes; left > 0; left--) {
        int64_t side = left > 1 ? (int64_t)(pow((double)cells, 1.0 / left) + 1e-9) : cells;
        while (side > 1 && cells % side != 0)
            side--;
        side = fv_max(side, 1);
        int64_t shown = !window ? side : side > WINDOW ? WINDOW : side / 2 | 1;
        length += snprintf(text + length, (size_t)(64 - length), "%s%lld", left < axes ? "x" : "", (long long)shown);
        cells /= side;
    }
    return text;
}

/* About the square root of the tokens, a divisor of them. */
static int64_t frames_of(int64_t tokens)
{
    int64_t frames = (int64_t)(sqrt((double)tokens) + 1e-9);

    while (frames > 1 && tokens % frames != 0)
        frames--;
    return fv_max(frames, 1);
}

/* A video of so many tokens, where the mechanism wants one. */
static void add_frames(const fv_mechanism *mechanism, int64_t tokens, fv_text *spec)
{
    const fv_option *frames = example_option(mechanism, "frames"), *refs = example_option(mechanism, "refs");
    char text[64];

    if (!frames || frames->initial || tokens < 1) return;
    snprintf(text, sizeof text, "%lld", (long long)frames_of(tokens));
    example_add(spec, "frames", text);
    if (refs && !refs->initial) example_add(spec, "refs", "1");
}

/* An option whose number must divide the last two sides of a grid: the largest one up to its default. */
static void add_divisor(const fv_mechanism *mechanism, const char *name, const char *grid, fv_text *spec)
{
    const fv_option *option = example_option(mechanism, name);
    const char *width = strrchr(grid, 'x'), *height = width;
    int64_t most;
    char text[32];

    if (!option || !width) return;
    while (height > grid && height[-1] != 'x')
        height--;
    most = strtoll(option->initial, NULL, 10);
    while (strtoll(height, NULL, 10) % most != 0 || strtoll(width + 1, NULL, 10) % most != 0)
        most--;
    snprintf(text, sizeof text, "%lld", (long long)most);
    example_add(spec, name, text);
}

/* axes 0: without a grid. */
static void write_spec(const fv_mechanism *mechanism, const char *given, int64_t tokens, int axes, fv_text *spec)
{
    const fv_option *clusters = example_option(mechanism, "clusters"), *window = example_option(mechanism, "window");
    char text[64], number[32];

    fv_text_free(spec);
    fv_text_printf(spec, "%s", given);
    if (axes == 3 && !gives(given, "grid")) add_divisor(mechanism, "groups", sides(tokens, axes, false, text), spec);
    if (axes == 2 && !gives(given, "grid") && example_option(mechanism, "halo"))
        add_divisor(mechanism, "block", sides(tokens, axes, false, text), spec);
    if (axes > 0) example_add(spec, "grid", sides(tokens, axes, false, text));
    add_frames(mechanism, tokens, spec);
    if (axes == 3 && example_option(mechanism, "special")) example_add(spec, "special", "0"); /* tokens off the grid */
    if (axes > 0 && window && !window->initial) example_add(spec, "window", sides(tokens, axes, true, text));
    if (!clusters || !clusters->initial || strcmp(clusters->initial, "0") != 0) return;
    snprintf(number, sizeof number, "%.0f", fmax(round(sqrt((double)tokens)), 1));
    example_add(spec, "clusters", number);
}

/* Whether a call would be accepted; *causal: it is, asked for or by its options. */
static fv_status try_call(const char *spec, const int64_t dims[4], bool *causal)
{
    static float nothing;
    fv_tensor any = {.data = &nothing, .dtype = FV_F32, .rank = 4};
    fv_attention *attention;
    fv_call call;

    memcpy(any.dims, dims, 4 * sizeof *dims);
    FV_TRY(fv_attention_new(spec, &attention));
    fv_status status =
        fv_call_make(attention, &(fv_attention_args){.q = any, .k = any, .v = any, .o = any, .causal = *causal}, &call);
    fv_attention_free(attention);
    if (status == FV_OK) *causal = call.causal;
    return status;
}

fv_status example_spec(const char *given, int64_t heads, int64_t tokens, int64_t dim, fv_text *spec, bool *causal)
{
    static const int axes[] = {0, 2, 3};
    const int64_t dims[] = {1, heads, tokens, dim};
    const fv_mechanism *mechanism;

    FV_TRY(example_mechanism(given, &mechanism));
    for (int n = 0; n < 3; n++) {
        if (axes[n] > 0 && !example_option(mechanism, "grid")) continue;
        write_spec(mechanism, given, tokens, axes[n], spec);
        FV_TRY(fv_text_status(spec));
        *causal = !(mechanism->traits & FV_NEVER_CAUSAL) && !gives(fv_text_get(spec), "grid");
        if (*causal && try_call(fv_text_get(spec), dims, causal) == FV_OK) return FV_OK;
        *causal = false;
        if (try_call(fv_text_get(spec), dims, causal) == FV_OK) return FV_OK;
    }
    write_spec(mechanism, given, tokens, 0, spec); /* for the sentence */
    return try_call(fv_text_get(spec), dims, causal);
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

enum { TOPICS = 4, STRETCHES = 8, RARE = 16 };

void example_topics(const fv_tensor *q, const fv_tensor *k, uint64_t seed)
{
    fv_random random = fv_random_new(seed, 0x70b1c5);
    int64_t N = q->dims[2], M = k->dims[2], stretch = fv_ceil_div(N, STRETCHES);
    float strength = 4 * powf((float)q->dims[3], 0.25f); /* of the logit, times D^-1/2: 16 */

    for (int64_t plane = 0; plane < q->dims[0] * q->dims[1]; plane++)
        for (int64_t i = 0; i < N; i++)
            *(float *)fv_at(q, plane / q->dims[1], plane % q->dims[1], i, i / stretch % TOPICS) += strength;
    for (int64_t plane = 0; plane < k->dims[0] * k->dims[1]; plane++)
        for (int64_t j = 0; j < M; j++) {
            uint32_t draw = fv_random_u32(&random);
            if (draw % RARE == 0)
                *(float *)fv_at(k, plane / k->dims[1], plane % k->dims[1], j, draw / RARE % TOPICS) += strength;
        }
}

fv_status example_call(fv_ctx *ctx, int64_t heads, int64_t tokens, int64_t dim, uint64_t seed, fv_attention_args *args)
{
    const int64_t dims[] = {1, heads, tokens, dim};

    *args = (fv_attention_args){0};
    FV_TRY(fv_tensor_new(ctx, &args->q, FV_F32, 4, dims));
    FV_TRY(fv_tensor_new(ctx, &args->k, FV_F32, 4, dims));
    FV_TRY(fv_tensor_new(ctx, &args->o, FV_F32, 4, dims));
    app_noise(&args->q, seed);
    app_noise(&args->k, seed + 1);
    example_topics(&args->q, &args->k, seed);
    args->v = args->k;
    return FV_OK;
}

/* ---- options for few tokens -------------------------------------------------------------------------------------- */

/* Options that count many tokens and those that count some, by their defaults, are halved so many times. */
enum { MANY = 32, SOME = 9, MANY_HALVINGS = 9, SOME_HALVINGS = 3 };
#define WANTED 0.3 /* density */
#define ENOUGH 0.5 /* where defaults stay */

/* The default of an option that is one whole number; 0: it is none. */
static int64_t number_of(const fv_option *o)
{
    bool numbers = o->type == FV_OPTION_INT || o->type == FV_OPTION_TUPLE || o->type == FV_OPTION_LIST;

    return numbers && o->initial && !strpbrk(o->initial, "x+.") ? strtoll(o->initial, NULL, 10) : 0;
}

static void add_halved(const fv_mechanism *mechanism, int many, int some, fv_text *spec)
{
    for (const fv_option *o = mechanism->options; o && o->name; o++) {
        int64_t initial = number_of(o), halvings = initial >= MANY ? many : initial >= SOME ? some : 0;
        char value[32];
        if (halvings == 0 || gives(fv_text_get(spec), o->name)) continue;
        snprintf(value, sizeof value, "%lld", (long long)fv_max(initial >> halvings, fv_max((int64_t)o->min, 1)));
        example_add(spec, o->name, value);
    }
}

static fv_status density_of(fv_ctx *ctx, const char *spec, const fv_attention_args *args, double *density)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_attention *attention;
    fv_pairs pairs;
    fv_call call;
    int64_t count = 0;

    FV_TRY(fv_attention_new(spec, &attention));
    fv_status status = fv_call_make(attention, args, &call);
    if (status == FV_OK) status = fv_call_pairs(ctx, fv_attention_mechanism(attention), &call, &pairs);
    if (status == FV_OK)
        status = fv_plan_pairs(ctx, &pairs.plan, 1, call.query_heads, call.queries,
                               pairs.columns ? pairs.columns : call.keys, &count);
    if (status == FV_OK) *density = (double)count / fv_call_dense_pairs(&call);
    fv_attention_free(attention);
    fv_scratch_release(ctx, mark);
    return status;
}

/* One choice of halvings; *distance from the wanted density is INFINITY where it cannot be. */
static fv_status try_halved(fv_ctx *ctx, const char *given, int many, int some, fv_attention_args *args, fv_text *spec,
                            double *distance)
{
    const fv_mechanism *mechanism;
    fv_text halved = {0};
    double density = 0;

    FV_TRY(example_mechanism(given, &mechanism));
    fv_text_printf(&halved, "%s", given);
    add_halved(mechanism, many, some, &halved);
    fv_status status = fv_text_status(&halved);
    if (status == FV_OK)
        status =
            example_spec(fv_text_get(&halved), args->q.dims[1], args->q.dims[2], args->q.dims[3], spec, &args->causal);
    if (status == FV_OK) status = density_of(ctx, fv_text_get(spec), args, &density);
    fv_text_free(&halved);
    *distance = status == FV_OK && density > 0 ? fabs(log(density / WANTED)) : INFINITY;
    if (many == 0 && some == 0 && density > 0 && density <= ENOUGH) *distance = 0;
    return status;
}

fv_status example_fit(fv_ctx *ctx, const char *given, int64_t heads, int64_t tokens, uint64_t seed, fv_text *spec,
                      bool *causal)
{
    enum { DIM = 64 };
    int best_many = 0, best_some = 0;
    double best = INFINITY, distance;
    fv_mark mark = fv_scratch_mark(ctx);
    fv_attention_args args;
    fv_status status;

    FV_TRY(example_call(ctx, heads, tokens, DIM, seed, &args));
    for (int some = 0; some <= SOME_HALVINGS && best > 0; some++)
        for (int many = 0; many <= MANY_HALVINGS && best > 0; many++) {
            (void)try_halved(ctx, given, many, some, &args, spec, &distance); /* others may do */
            FV_TRY(fv_ctx_check(ctx));
            if (distance < best) {
                best = distance;
                best_many = many;
                best_some = some;
            }
        }
    status = try_halved(ctx, given, best_many, best_some, &args, spec, &distance);
    *causal = args.causal;
    fv_scratch_release(ctx, mark);
    return status;
}
