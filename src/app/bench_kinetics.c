/* fovea bench kinetics_cost: what test-time runs cost when memory counts, as rows and as a part of the report. */
#include <math.h>
#include <string.h>

#include "app/bench.h"
#include "app/page.h"
#include "app/plot.h"
#include "base/memory.h"

#define UNIT 1e12

static const char word[] = "kinetics_cost";

bool bench_is_kinetics(const char *text)
{
    size_t length = strlen(word);

    return strncmp(text, word, length) == 0 && (!text[length] || text[length] == ':');
}

fv_status bench_kinetics(struct bench *b)
{
    const cli_common *common = b->app->common;

    if (common->operands > 0) FV_TRY(FV_ALLOC(b->cost, common->operands));
    for (int w = 0; w < common->operands; w++)
        if (bench_is_kinetics(common->operand[w])) FV_TRY(fv_kinetics_read(common->operand[w], &b->cost[b->costs++]));
    return FV_OK;
}

void bench_kinetics_json(const struct bench *b, json_t *rows)
{
    for (int n = 0; n < b->costs; n++) {
        fv_kinetics_cost c = fv_kinetics_cost_of(&b->cost[n]);
        json_t *object = json_object();
        app_put(object, "what", json_string(word));
        app_put(object, "comp", app_number(c.comp / UNIT));
        app_put(object, "memory", app_number(c.memory / UNIT));
        app_put(object, "eflops", app_number((c.comp + c.memory) / UNIT));
        app_put(object, "parameter_flops", app_number(c.parameters / UNIT));
        app_append(rows, object);
    }
}

static const char *budget_words(const fv_kinetics *k, char words[48])
{
    if (k->budget == 0) return "all keys";
    snprintf(words, 48, k->block ? "%lld keys in blocks of %lld" : "%lld keys", (long long)(k->budget + k->local),
             (long long)k->block);
    return words;
}

fv_status bench_kinetics_table(const struct bench *b)
{
    static const bool left[10] = {true, true, false, false, false, false, false, false, false, true};
    static const char *const heading[] = {"WHAT",  "PARAMETERS", "IN",     "OUT",     "TRIALS",
                                          "FLOPS", "MEMORY",     "EFLOPS", "WEIGHTS", "EACH STEP READS"};
    app_table table = {.columns = 10, .left = left};

    for (int i = 0; i < table.columns; i++)
        app_table_cell(&table, "%s", heading[i]);
    for (int n = 0; n < b->costs; n++) {
        const fv_kinetics *k = &b->cost[n];
        fv_kinetics_cost c = fv_kinetics_cost_of(k);
        char words[48];
        app_table_cell(&table, "%s", word);
        app_table_cell(&table, "%.4gB", k->params / 1e9);
        app_table_cell(&table, "%lld", (long long)k->in);
        app_table_cell(&table, "%lld", (long long)k->out);
        app_table_cell(&table, "%lld", (long long)k->trials);
        app_table_cell(&table, "%.2f", c.comp / UNIT);
        app_table_cell(&table, "%.2f", c.memory / UNIT);
        app_table_cell(&table, "%.2f", (c.comp + c.memory) / UNIT);
        app_table_cell(&table, "%.2f", c.parameters / UNIT);
        app_table_cell(&table, "%s", budget_words(k, words));
    }
    FV_TRY(app_table_print(&table, stdout));
    printf(
        "In 1e12 flops. MEMORY: bytes of keys and values times intensity; WEIGHTS: the part of FLOPS that parameters "
        "are.\n");
    return FV_OK;
}

/* ---- in the report ---------------------------------------------------------------------------------------------- */

enum { LENGTHS = 8, FIRST_LENGTH = 512, BUDGETS = 4 };

static const char *power_words(double y)
{
    static _Thread_local char words[32];

    snprintf(words, sizeof words, "%g", y / UNIT);
    return words;
}

static double sum_of(fv_kinetics k)
{
    fv_kinetics_cost c = fv_kinetics_cost_of(&k);

    return c.comp + c.memory;
}

/* eFLOPs over tokens written, a line for each model, and the cost of the run that was asked for. */
static void write_curves(fv_text *out, const fv_kinetics *k, double cost)
{
    double x[LENGTHS], y[FV_KINETICS_MODELS][LENGTHS];
    plot_axes a = plot_axes_of(FIRST_LENGTH, FIRST_LENGTH << (LENGTHS - 1));
    char words[48];

    plot_cover(&a, cost);
    for (int m = 0; m < FV_KINETICS_MODELS; m++)
        for (int n = 0; n < LENGTHS; n++) {
            fv_kinetics run = fv_kinetics_with(k, &fv_kinetics_models[m]);
            run.out = (int64_t)FIRST_LENGTH << n;
            x[n] = (double)run.out;
            y[m][n] = sum_of(run);
            plot_cover(&a, y[m][n]);
        }
    fv_text_printf(out,
                   "<figure><figcaption><b>Each step reads %s</b> <span>10<sup>12</sup> eFLOPs over tokens "
                   "written</span></figcaption>",
                   budget_words(k, words));
    plot_begin(out, "cost over tokens written");
    plot_mesh(out, &a, power_words);
    for (int n = 0; n < LENGTHS; n++) {
        int64_t tokens = (int64_t)FIRST_LENGTH << n;
        snprintf(words, sizeof words, tokens < 1024 ? "%lld" : "%lldk",
                 (long long)(tokens < 1024 ? tokens : tokens / 1024));
        plot_tick(out, &a, x[n], words);
    }
    fv_text_printf(out, "<line class=\"cross\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", PLOT_LEFT, PLOT_RIGHT,
                   plot_y(&a, cost), plot_y(&a, cost));
    for (int m = 0; m < FV_KINETICS_MODELS; m++)
        plot_line(out, &a, LENGTHS, x, y[m], m);
    plot_end(out);
    fv_text_printf(out, "</figure>\n");
}

/* A row for each cost: the model it is best spent on by each law. */
static void write_choices(fv_text *out, const fv_kinetics *dense, const fv_kinetics *sparse)
{
    char words[48];

    fv_text_printf(out,
                   "<h3>The model that a cost is best spent on</h3><p>If accuracy is 1 − P<sup>−0.2</sup> "
                   "tokens<sup>−0.4</sup>, which is an assumption, and the tokens it then writes.</p>"
                   "<div class=\"wide\"><table><thead><tr><th>Cost<small>10<sup>12</sup> flops</small></th>"
                   "<th>By flops alone</th><th>With memory<small>all keys</small></th>"
                   "<th>With memory<small>%s</small></th></tr></thead><tbody>\n",
                   budget_words(sparse, words));
    for (double cost = 1; cost < 2e5; cost *= 10) {
        fv_text_printf(out, "<tr><td>%g</td>", cost);
        for (int law = 0; law < 3; law++) {
            int64_t tokens;
            int m = fv_kinetics_choose(law == 2 ? sparse : dense, cost * UNIT, law > 0, &tokens);
            if (m < 0)
                fv_text_printf(out, "<td>none</td>");
            else
                fv_text_printf(out, "<td>%s<small>%lld tokens</small></td>", fv_kinetics_models[m].name,
                               (long long)tokens);
        }
        fv_text_printf(out, "</tr>\n");
    }
    fv_text_printf(out, "</tbody></table></div>\n");
}

static fv_kinetics with_budget(const fv_kinetics *k, int64_t budget)
{
    fv_kinetics run = *k;

    run.budget = budget;
    run.local = 0;
    run.block = budget ? k->block : 0;
    return run;
}

/* Tokens each model writes for the cost of the run, by budget. */
static void write_tokens(fv_text *out, const fv_kinetics *k, double cost)
{
    static const int64_t budgets[BUDGETS] = {0, 4096, 1024, 256};
    char words[48];

    fv_text_printf(out,
                   "<h3>Tokens for the cost of this run</h3><p>%.1f · 10<sup>12</sup> eFLOPs; bold: the best of a "
                   "column by the same assumption.</p>"
                   "<div class=\"wide\"><table><thead><tr><th>Model</th>",
                   cost / UNIT);
    for (int n = 0; n < BUDGETS; n++) {
        fv_kinetics run = with_budget(k, budgets[n]);
        fv_text_printf(out, "<th>%s</th>", budget_words(&run, words));
    }
    fv_text_printf(out, "</tr></thead><tbody>\n");
    for (int m = 0; m < FV_KINETICS_MODELS; m++) {
        fv_text_printf(out, "<tr><td>%s</td>", fv_kinetics_models[m].name);
        for (int n = 0; n < BUDGETS; n++) {
            fv_kinetics budget = with_budget(k, budgets[n]);
            fv_kinetics run = fv_kinetics_with(&budget, &fv_kinetics_models[m]);
            int64_t best;
            bool chosen = fv_kinetics_choose(&run, cost, true, &best) == m;
            fv_text_printf(out, "<td%s>%lld</td>", chosen ? " class=\"best\"" : "",
                           (long long)fv_kinetics_longest(&run, cost, true));
        }
        fv_text_printf(out, "</tr>\n");
    }
    fv_text_printf(out, "</tbody></table></div>\n");
}

void bench_kinetics_write(fv_text *out, const fv_kinetics *k, bool first)
{
    fv_kinetics dense = with_budget(k, 0), sparse = *k;
    double cost = sum_of(*k);

    if (sparse.budget == 0) sparse.budget = 1024;
    if (first)
        fv_text_printf(out,
                       "<h2>What a test-time run costs</h2><p>Flops, and bytes of keys and values times %g flops a "
                       "byte (arXiv 2506.05333). Both axes are logarithmic; the dashed line is the cost of the run "
                       "that was asked for.</p>\n",
                       k->intensity);
    fv_text_printf(out, "<p>%.4gB parameters, %lld tokens read, %lld written, %lld trial%s:", k->params / 1e9,
                   (long long)k->in, (long long)k->out, (long long)k->trials, k->trials == 1 ? "" : "s");
    for (int m = 0; m < FV_KINETICS_MODELS; m++)
        fv_text_printf(out, " <span class=\"key s%d\"></span> %s", m, fv_kinetics_models[m].name);
    fv_text_printf(out, "</p><div class=\"grid\">\n");
    write_curves(out, &dense, cost);
    write_curves(out, &sparse, cost);
    fv_text_printf(out, "</div>\n");
    write_tokens(out, k, cost);
    write_choices(out, &dense, &sparse);
}
