#include "app/budgets.h"

#include <stdio.h>
#include <string.h>

#include "base/size.h"

long long budget_spec(const char *name, const budget *of, double keys, char spec[BUDGET_SPEC])
{
    long long units = (long long)fv_max((int64_t)((keys - of->anyway) / of->unit + 0.5), of->least);
    const char *place = strstr(of->options, "%lld");

    if (of->in_keys) units *= of->unit;
    snprintf(spec, BUDGET_SPEC, "%s:%.*s%lld%s", name, (int)(place - of->options), of->options, units, place + 4);
    return units;
}

void budget_policy_spec(const fv_policy *policy, int64_t percent, int64_t rows, char spec[BUDGET_SPEC])
{
    double share = (double)percent / 100;
    const char *option = policy->sweep;
    size_t name = strcspn(option, "=") + 1;

    if (strcmp(option + name, "ROWS") == 0)
        snprintf(spec, BUDGET_SPEC, "%s:%.*s%.0f", policy->name, (int)name, option, share * (double)rows);
    else if (strcmp(option + name, "PERCENT") == 0)
        snprintf(spec, BUDGET_SPEC, "%s:%.*s%lld", policy->name, (int)name, option, (long long)percent);
    else if (strcmp(option + name, "SHARE") == 0)
        snprintf(spec, BUDGET_SPEC, "%s:%.*s%g", policy->name, (int)name, option, share);
    else if (strcmp(option + name, "BLOCKS") == 0)
        snprintf(spec, BUDGET_SPEC, "%s:%.*s%.0f", policy->name, (int)name, option, share * (double)rows / 16 + 0.5);
    else
        snprintf(spec, BUDGET_SPEC, "%s:%.*s%.0f", policy->name, (int)name, option, 1 / share);
}

bool budget_named(const char *list, const char *name)
{
    size_t length = strlen(name);

    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, name, length) == 0 && (at[length] == ',' || !at[length])) return true;
        if (!strchr(at, ',')) break;
    }
    return false;
}
