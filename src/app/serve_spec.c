/* SPECs that come with requests. */
#include <string.h>

#include "app/serve.h"
#include "attention/mechanism.h"
#include "base/memory.h"
#include "cache/policy.h"

static const fv_option *attention_options(const char *name, size_t *size)
{
    const fv_mechanism *mechanism = fv_mechanism_find(name);

    *size = mechanism ? mechanism->options_size : 0;
    return mechanism ? mechanism->options : NULL;
}

static const fv_option *cache_options(const char *name, size_t *size)
{
    const fv_policy *policy = fv_policy_find(name);

    *size = policy ? policy->options_size : 0;
    return policy ? policy->options : NULL;
}

/* Whether any part of a SPEC sets an option that names a file. */
static bool names_file(const char *text, int layers, const fv_option *(*options_of)(const char *, size_t *))
{
    fv_layer_plan plan;
    bool found = false;
    size_t size;

    if (!text || fv_layer_plan_parse(&plan, text, layers) != FV_OK) return false; /* refused later, for what it is */
    for (int p = 0; p < plan.parts; p++) {
        const fv_option *table = options_of(fv_spec_name(&plan.specs[p]), &size);
        for (int i = 0; i < plan.specs[p].count; i++)
            for (const fv_option *option = table; option && option->name; option++)
                found |=
                    option->type == FV_OPTION_TEXT && strcmp(option->name, fv_spec_option(&plan.specs[p], i).name) == 0;
    }
    fv_layer_plan_free(&plan);
    return found;
}

/* A stranger must not make this machine open files of his choice. */
bool serve_check_specs(const serve_server *server, const serve_request *request, serve_error *error)
{
    static const char why[] = "'%s': files may be named by requests to this machine alone, or with an API key";
    int layers = (int)server->info.layers;

    if (server->loopback || server->options.key) return true;
    if (names_file(request->attention, layers, attention_options))
        return serve_fail(error, "attention", "invalid_value", why, "attention");
    if (names_file(request->cache, layers, cache_options))
        return serve_fail(error, "cache", "invalid_value", why, "cache");
    return true;
}

/* Whether a SPEC of attention is one at all, whatever a model can do with it. */
static bool is_attention(const char *text)
{
    enum { LAYERS = 1 << 12 };
    fv_layer_plan plan;
    bool good = true;

    if (fv_layer_plan_parse(&plan, text, LAYERS) != FV_OK) return false;
    for (int p = 0; p < plan.parts && good; p++) {
        const fv_mechanism *mechanism = fv_mechanism_find(fv_spec_name(&plan.specs[p]));
        void *values = NULL;
        good = mechanism && fv_zalloc(&values, 1, mechanism->options_size + 1) == FV_OK &&
               fv_options_parse(mechanism->options, &plan.specs[p], values) == FV_OK;
        fv_free(values);
    }
    fv_layer_plan_free(&plan);
    return good;
}

const char *serve_blame_spec(const serve_request *request)
{
    if (!request->attention) return request->cache ? "cache" : NULL;
    return request->cache && is_attention(request->attention) ? "cache" : "attention";
}
