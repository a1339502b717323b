#include "cache/kinetics.h"

#include <math.h>

static const char *const shares[] = {"auto", "0", "1", NULL};
enum { SHARE_AUTO, SHARE_OFF, SHARE_ON };

enum { MOST = 1 << 30 };

const fv_option fv_kinetics_options[] = {
    FV_FLOAT(fv_kinetics, params, 8.19e9, 0, 1e18, "parameters of the model"),
    FV_INT(fv_kinetics, layers, 36, 1, MOST, "layers"),
    FV_INT(fv_kinetics, heads, 32, 1, MOST, "query heads"),
    FV_INT(fv_kinetics, kv_heads, 8, 1, MOST, "key-value heads"),
    FV_INT(fv_kinetics, dim, 128, 1, MOST, "channels of a head"),
    FV_INT(fv_kinetics, in, 1024, 0, MOST, "tokens of the prompt"),
    FV_INT(fv_kinetics, out, 16384, 1, MOST, "tokens that are written"),
    FV_INT(fv_kinetics, trials, 1, 1, MOST, "answers to the same prompt"),
    FV_INT(fv_kinetics, budget, 0, 0, MOST, "keys a step reads beside the local ones; 0: all"),
    FV_INT(fv_kinetics, block, 0, 0, MOST, "keys of a block by whose mean they are found; 0: finding them is free"),
    FV_INT(fv_kinetics, local, 0, 0, MOST, "last keys, which a step with a budget always reads"),
    FV_FLOAT(fv_kinetics, intensity, 562.5, 0, 1e9, "flops in the time of reading a byte"),
    FV_ENUM(fv_kinetics, share_prompt, "auto", shares, "whether trials read the prompt's rows once: without a budget"),
    FV_FLOAT(fv_kinetics, bytes, 2, 0, 8, "bytes of a number in the cache"),
    FV_OPTIONS_END,
};

fv_status fv_kinetics_read(const char *text, fv_kinetics *kinetics)
{
    fv_spec spec;

    FV_TRY(fv_spec_parse(&spec, text));
    FV_TRY(fv_options_parse(fv_kinetics_options, &spec, kinetics));
    if (kinetics->heads % kinetics->kv_heads != 0)
        return fv_fail(FV_E_USAGE, "kinetics_cost: %lld key-value heads do not divide %lld query heads",
                       (long long)kinetics->kv_heads, (long long)kinetics->heads);
    if (kinetics->budget == 0 && (kinetics->block > 0 || kinetics->local > 0))
        return fv_fail(FV_E_USAGE, "kinetics_cost: option '%s' needs a budget",
                       kinetics->block > 0 ? "block" : "local");
    return FV_OK;
}

fv_kinetics_cost fv_kinetics_cost_of(const fv_kinetics *k)
{
    double in = (double)k->in, out = (double)k->out, trials = (double)k->trials, block = (double)k->block;
    double queries = (double)k->heads * (double)k->dim * (double)k->layers;
    double rows = (double)k->kv_heads * (double)k->dim * (double)k->layers;
    double budget = k->budget ? fmin((double)k->budget + (double)k->local, in + out) : in + out;
    double late = fmax(budget - in, 0); /* steps that see fewer keys than the budget */
    double keys = budget * out - late * late / 2;
    bool shared = k->share_prompt == SHARE_AUTO ? !k->budget : k->share_prompt == SHARE_ON;
    double once = shared ? fmin(budget, in) * out : 0; /* at best all trials read the same rows of the prompt */
    fv_kinetics_cost cost = {.parameters = trials * 2 * k->params * out};
    double read = 2 * k->bytes * (once + trials * (keys - once)) * rows;

    cost.comp = cost.parameters + trials * 4 * keys * queries;
    if (k->block > 0) { /* a mean key for each block of what is there, of the prompt's once */
        cost.comp += trials * floor((2 * in + out) / block) * out * queries;
        double means = k->share_prompt == SHARE_OFF ? trials * floor((2 * in + out) / block)
                                                    : floor((2 * in + trials * out) / block);
        read += k->bytes / 2 * means * out * rows;
    }
    cost.memory = k->intensity * read;
    return cost;
}

/* ---- a choice among models -------------------------------------------------------------------------------------- */

const fv_kinetics_model fv_kinetics_models[FV_KINETICS_MODELS] = {
    {"Qwen3 0.6B", .752e9, 28, 16, 8, 128}, {"Qwen3 1.7B", 2.03e9, 28, 16, 8, 128},
    {"Qwen3 4B", 4.02e9, 36, 32, 8, 128},   {"Qwen3 8B", 8.19e9, 36, 32, 8, 128},
    {"Qwen3 14B", 14.77e9, 40, 40, 8, 128}, {"Qwen3 32B", 32.76e9, 64, 64, 8, 128},
};

fv_kinetics fv_kinetics_with(const fv_kinetics *kinetics, const fv_kinetics_model *model)
{
    fv_kinetics k = *kinetics;

    k.params = model->params;
    k.layers = model->layers;
    k.heads = model->heads;
    k.kv_heads = model->kv_heads;
    k.dim = model->dim;
    return k;
}

static bool affords(fv_kinetics k, int64_t out, double cost, bool memory)
{
    k.out = out;
    fv_kinetics_cost c = fv_kinetics_cost_of(&k);
    return c.comp + (memory ? c.memory : 0) <= cost;
}

int64_t fv_kinetics_longest(const fv_kinetics *kinetics, double cost, bool memory)
{
    int64_t from = 0, to = (int64_t)MOST + 1; /* affordable, too long */

    while (to - from > 1) {
        int64_t middle = from + (to - from) / 2;
        if (affords(*kinetics, middle, cost, memory))
            from = middle;
        else
            to = middle;
    }
    return from;
}

int fv_kinetics_choose(const fv_kinetics *kinetics, double cost, bool memory, int64_t *out)
{
    double best = -INFINITY;
    int chosen = -1;

    *out = 0;
    for (int m = 0; m < FV_KINETICS_MODELS; m++) {
        fv_kinetics k = fv_kinetics_with(kinetics, &fv_kinetics_models[m]);
        int64_t longest = fv_kinetics_longest(&k, cost, memory);
        double gain = 0.2 * log(k.params) + 0.4 * log((double)longest);
        if (longest == 0 || !(gain > best)) continue;
        best = gain;
        chosen = m;
        *out = longest;
    }
    return chosen;
}
