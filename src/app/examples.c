#include "app/examples.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

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

/* Whether a SPEC gives an option. */
static bool gives(const char *spec, const char *name)
{
    size_t length = strlen(name);

    for (const char *at = strchr(spec, ':'); at; at = strchr(at + 1, ','))
        if (strncmp(at + 1, name, length) == 0 && at[1 + length] == '=') return true;
    return false;
}

void example_add(fv_text *spec, const char *name, const char *value)
{
    if (!gives(fv_text_get(spec), name))
        fv_text_printf(spec, "%c%s=%s", strchr(fv_text_get(spec), ':') ? ',' : ':', name, value);
}

/* Sides of a grid as square as the number of cells allows, the shorter first, each at most `most` long; as text. */
static const char *sides(int64_t cells, int axes, int64_t most, char text[64])
{
    int length = 0;

    for (int left = axes; left > 0; left--) {
        int64_t side = left > 1 ? (int64_t)(pow((double)cells, 1.0 / left) + 1e-9) : cells;
        while (side > 1 && cells % side != 0)
            side--;
        side = fv_max(side, 1);
        length += snprintf(text + length, (size_t)(64 - length), "%s%lld", left < axes ? "x" : "",
                           (long long)fv_min(side, most));
        cells /= side;
    }
    return text;
}

/* axes 0: without a grid. */
static void write_spec(const fv_mechanism *mechanism, const char *given, int64_t tokens, int axes, fv_text *spec)
{
    const fv_option *clusters = example_option(mechanism, "clusters"), *window = example_option(mechanism, "window");
    char text[64];

    fv_text_free(spec);
    fv_text_printf(spec, "%s", given);
    if (axes > 0) example_add(spec, "grid", sides(tokens, axes, INT64_MAX, text));
    if (axes > 0 && window && !window->initial) example_add(spec, "window", sides(tokens, axes, 13, text));
    if (!clusters || !clusters->initial || strcmp(clusters->initial, "0") != 0) return;
    snprintf(text, sizeof text, "%.0f", fmax(round(sqrt((double)tokens)), 1));
    example_add(spec, "clusters", text);
}

/* Whether a call would be accepted. */
static fv_status try_call(const char *spec, const int64_t dims[4], bool causal)
{
    static float nothing;
    fv_tensor any = {.data = &nothing, .dtype = FV_F32, .rank = 4};
    fv_attention *attention;
    fv_call call;

    memcpy(any.dims, dims, 4 * sizeof *dims);
    FV_TRY(fv_attention_new(spec, &attention));
    fv_status status =
        fv_call_make(attention, &(fv_attention_args){.q = any, .k = any, .v = any, .o = any, .causal = causal}, &call);
    fv_attention_free(attention);
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
        if (*causal && try_call(fv_text_get(spec), dims, true) == FV_OK) return FV_OK;
        *causal = false;
        if (try_call(fv_text_get(spec), dims, false) == FV_OK) return FV_OK;
    }
    write_spec(mechanism, given, tokens, 0, spec); /* for the sentence */
    return try_call(fv_text_get(spec), dims, false);
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
