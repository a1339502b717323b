/* The page of fovea eval recall: recall over density for each mechanism, between chance and the best there is. */
#include <math.h>
#include <string.h>

#include "app/page.h"
#include "app/plot.h"
#include "app/recall.h"

enum { PLOTTED = 64 }; /* points of a line */

static void escape(fv_text *out, const char *words)
{
    page_escape(out, words, strlen(words));
}

static size_t name_length(const recall_setup *setup)
{
    return strcspn(setup->name, ":");
}

/* Set-ups of one mechanism are neighbours: the first behind those that begin at `first`. */
static int64_t end_of(const recall *r, int64_t first)
{
    const recall_setup *a = &r->setup[first];
    int64_t end = first + 1;

    while (end < r->setups && name_length(&r->setup[end]) == name_length(a) &&
           strncmp(r->setup[end].name, a->name, name_length(a)) == 0)
        end++;
    return end;
}

/* Points of a line, by rising density. */
struct line {
    int64_t count;
    double x[PLOTTED], y[PLOTTED];
};

static struct line line_of(const recall *r, int64_t first)
{
    struct line line = {0};

    for (int64_t s = first, end = end_of(r, first); s < end && line.count < PLOTTED; s++) {
        recall_row mean = recall_mean(r, s);
        int64_t at = line.count;
        if (r->setup[s].left_out || !(mean.density > 0)) continue;
        for (; at > 0 && line.x[at - 1] > mean.density; at--) {
            line.x[at] = line.x[at - 1];
            line.y[at] = line.y[at - 1];
        }
        line.x[at] = mean.density;
        line.y[at] = mean.recall;
        line.count++;
    }
    return line;
}

/* The recall that a line has at a density; NAN outside of it. */
static double recall_at(const struct line *line, double density)
{
    for (int64_t n = 0; n < line->count; n++) {
        if (fabs(log(line->x[n] / density)) < 1e-3) return line->y[n];
        if (n == 0 || line->x[n - 1] > density || line->x[n] < density) continue;
        double share = log(density / line->x[n - 1]) / log(line->x[n] / line->x[n - 1]);
        return line->y[n - 1] + share * (line->y[n] - line->y[n - 1]);
    }
    return NAN;
}

/* ---- pictures --------------------------------------------------------------------------------------------------- */

static const char *percent(double y)
{
    static _Thread_local char words[16];

    snprintf(words, sizeof words, "%.0f %%", 100 * y);
    return words;
}

static int64_t first_of(const recall *r, recall_kind kind)
{
    int64_t s = 0;

    while (s < r->setups && r->setup[s].kind != kind)
        s++;
    return s;
}

static void draw(fv_text *out, const plot_axes *a, const struct line *line, int colour)
{
    plot_line(out, a, line->count, line->x, line->y, colour);
}

static void plot(fv_text *out, const recall *r, int64_t first, double from)
{
    static const double ticks[] = {.01, .02, .05, .1, .2, .5, 1};
    const recall_setup *setup = &r->setup[first];
    const struct line line = line_of(r, first), chance = line_of(r, first_of(r, RECALL_RANDOM));
    const struct line best = line_of(r, first_of(r, RECALL_ORACLE));
    plot_axes a = plot_shares_of(from, 1);

    if (line.count == 0) return;
    fv_text_printf(out, "<figure><figcaption><b>");
    page_escape(out, setup->name, name_length(setup));
    fv_text_printf(out, "</b></figcaption>");
    plot_begin(out, "recall over density");
    plot_mesh(out, &a, percent);
    for (size_t t = 0; t < sizeof ticks / sizeof *ticks; t++)
        if (ticks[t] >= from) plot_tick(out, &a, ticks[t], percent(ticks[t]));
    draw(out, &a, &chance, 0);
    draw(out, &a, &best, 3);
    draw(out, &a, &line, 1);
    plot_end(out);
    fv_text_printf(out, "</figure>\n");
}

static void plot_all(fv_text *out, const recall *r)
{
    double from = recall_shares[0];

    for (int64_t s = 0; s < r->setups; s = end_of(r, s)) {
        const struct line line = line_of(r, s);
        if (line.count > 0) from = fmin(from, line.x[0]);
    }
    fv_text_printf(out,
                   "<h2>Recall over density</h2><p><span class=\"key s1\"></span> the mechanism, <span class=\"key "
                   "s3\"></span> the keys with most attention, <span class=\"key s0\"></span> keys chosen by "
                   "chance. Means over layers; density is logarithmic.</p><div class=\"grid\">\n");
    for (int64_t s = 0; s < r->setups; s = end_of(r, s))
        if (r->setup[s].kind == RECALL_PLAN) plot(out, r, s, from);
    fv_text_printf(out, "</div>\n");
}

static void bars(fv_text *out, const recall *r, double density)
{
    int rows = 0;

    for (int64_t s = 0; s < r->setups; s = end_of(r, s)) {
        const struct line line = line_of(r, s);
        rows += isfinite(recall_at(&line, density));
    }
    fv_text_printf(out,
                   "<figure><figcaption><b>At a density of %s</b></figcaption><svg viewBox=\"0 0 %d %d\" role=\"img\" "
                   "aria-label=\"recall at one density\">",
                   percent(density), PAGE_WIDTH, PAGE_ROW * rows);
    rows = 0;
    for (int64_t s = 0; s < r->setups; s = end_of(r, s)) {
        const struct line line = line_of(r, s);
        double here = recall_at(&line, density);
        char name[64];
        if (!isfinite(here)) continue;
        snprintf(name, sizeof name, "%.*s", (int)name_length(&r->setup[s]), r->setup[s].name);
        page_bar(out, rows++, name, percent(here), here,
                 r->setup[s].kind == RECALL_PLAN     ? 1
                 : r->setup[s].kind == RECALL_ORACLE ? 3
                                                     : 0);
    }
    fv_text_printf(out, "</svg></figure>\n");
}

/* ---- the page --------------------------------------------------------------------------------------------------- */

static void write_rows(fv_text *out, const recall *r)
{
    fv_text_printf(out, "<style>td:first-child{min-width:340px}</style><h2>All set-ups</h2><div "
                        "class=\"wide\"><table><thead><tr><th>Attention</th><th>Density</th>"
                        "<th>Recall</th><th>At best</th>");
    for (int64_t l = 0; l < r->layers; l++)
        fv_text_printf(out, "<th><small>layer %lld</small></th>", (long long)r->layer[l]);
    fv_text_printf(out, "</tr></thead><tbody>\n");
    for (int64_t s = 0; s < r->setups; s++) {
        recall_row mean = recall_mean(r, s);
        if (r->setup[s].left_out) continue;
        fv_text_printf(out, "<tr><td>");
        escape(out, r->setup[s].name);
        fv_text_printf(out, "</td><td>%.3f</td><td>%.3f</td><td>", mean.density, mean.recall);
        if (isfinite(mean.best)) fv_text_printf(out, "%.3f", mean.best);
        fv_text_printf(out, "</td>");
        for (int64_t l = 0; l < r->layers; l++)
            fv_text_printf(out, "<td><small>%.2f</small></td>", r->row[s * r->layers + l].recall);
        fv_text_printf(out, "</tr>\n");
    }
    fv_text_printf(out, "</tbody></table></div>\n<p>At best: if each query read as many keys as the mechanism lets it, "
                        "those with most of its attention.</p>\n");
}

fv_status recall_report(const char *path, const recall *r, const fv_model_info *info)
{
    fv_text out = {0};

    page_begin(&out, "Recall of attention");
    fv_text_printf(&out, "<h1>How much of the attention each mechanism reads</h1><p>");
    escape(&out, info->name);
    fv_text_printf(&out,
                   ", %lld tokens. The share of the model's own attention that lies on the query-key pairs of a "
                   "mechanism's plan, and those pairs as a share of all; queries count by the keys they see.</p>\n",
                   (long long)r->tokens);
    fv_text_printf(&out, "<div class=\"grid\">\n");
    bars(&out, r, .05);
    bars(&out, r, .1);
    bars(&out, r, .2);
    fv_text_printf(&out, "</div>\n");
    plot_all(&out, r);
    write_rows(&out, r);
    return page_write(&out, path);
}
