/* Any text as a SPEC, as a layer plan, and as the options of every mechanism it names. */
#include "fuzz/fuzz.h"

#include "attention/mechanism.h"
#include "base/memory.h"
#include "base/options.h"

static void print_all(const fv_mechanism *mechanism, const void *values, fv_text *text)
{
    fv_text_printf(text, "%s", mechanism->name);
    for (const fv_option *option = mechanism->options; option->name; option++) {
        fv_text_printf(text, "%c%s=", option == mechanism->options ? ':' : ',', option->name);
        fv_option_print(option, values, text);
    }
}

/* Options that parse print as a SPEC that parses to the same print. */
static void check_options(const fv_mechanism *mechanism, const fv_spec *spec)
{
    void *values = NULL;
    fv_text first = {0}, second = {0};
    fv_spec printed;

    if (!mechanism->options || fv_zalloc(&values, 1, mechanism->options_size) != FV_OK) return;
    if (fv_options_parse(mechanism->options, spec, values) == FV_OK) {
        print_all(mechanism, values, &first);
        if (first.length < FV_SPEC_TEXT) {
            PROMISE(fv_spec_parse(&printed, fv_text_get(&first)) == FV_OK);
            PROMISE(fv_options_parse(mechanism->options, &printed, values) == FV_OK);
            print_all(mechanism, values, &second);
            PROMISE(strcmp(fv_text_get(&first), fv_text_get(&second)) == 0);
        }
    }
    fv_text_free(&first);
    fv_text_free(&second);
    fv_free(values);
}

static void check_plan(const char *text)
{
    enum { LAYERS = 30 };
    fv_layer_plan plan;

    if (fv_layer_plan_parse(&plan, text, LAYERS) != FV_OK) {
        PROMISE(*fv_error());
        return;
    }
    PROMISE(plan.layers == LAYERS);
    for (int layer = 0; layer < LAYERS; layer++) {
        const fv_spec *at = fv_layer_plan_at(&plan, layer);
        PROMISE(!at || *fv_spec_name(at));
    }
    fv_layer_plan_free(&plan);
}

int fuzz_spec(const uint8_t *data, size_t size)
{
    static fv_spec spec;
    char *text = NULL;

    if (FV_ALLOC(text, (int64_t)size + 1) != FV_OK) return 0;
    if (size) memcpy(text, data, size);
    text[size] = 0;
    if (fv_spec_parse(&spec, text) == FV_OK) {
        const fv_mechanism *named = fv_mechanism_find(fv_spec_name(&spec));
        if (named) check_options(named, &spec);
        for (int i = 0; !named && fv_mechanisms[i]; i++)
            check_options(fv_mechanisms[i], &spec);
    } else {
        PROMISE(*fv_error());
    }
    check_plan(text);
    fv_free(text);
    return 0;
}

FUZZ_TARGET(fuzz_spec)
