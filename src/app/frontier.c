/* Distance and needles over memory, as pictures: a line for each policy. */
#include "app/frontier.h"

#include <math.h>
#include <string.h>

#include "app/app.h"
#include "app/page.h"

void frontier_mark(frontier *f)
{
    for (int a = 0; a < f->count; a++) {
        f->row[a].best = true;
        for (int b = 0; b < f->count; b++) {
            const compare_run *x = f->row[a].run, *y = f->row[b].run;
            bool less = y->kv_bytes < x->kv_bytes || y->kl < x->kl;
            if (y->kv_bytes <= x->kv_bytes && y->kl <= x->kl && less) f->row[a].best = false;
        }
    }
}

static void escape(fv_text *out, const char *words)
{
    page_escape(out, words, strlen(words));
}

/* ---- pictures --------------------------------------------------------------------------------------------------- */

enum { WIDTH = 760, HEIGHT = 380, LEFT = 64, RIGHT = 620, TOP = 12, BOTTOM = 340 };

struct axes {
    double from_x, to_x, from_y, to_y; /* log2 of bytes; log10 of nats, or a score */
    bool needles;
};

static const double least = 1e-6; /* nats: what is less is as good as nothing */

static double value_of(const struct axes *a, const frontier_row *row)
{
    return a->needles ? row->needle : log10(fmax(row->run->kl, least));
}

static double place_x(const struct axes *a, const frontier_row *row)
{
    return LEFT + (log2(fmax(row->run->kv_bytes, 1)) - a->from_x) / (a->to_x - a->from_x) * (RIGHT - LEFT);
}

static double place_y(const struct axes *a, double value)
{
    return BOTTOM - (value - a->from_y) / (a->to_y - a->from_y) * (BOTTOM - TOP);
}

static struct axes axes_of(const frontier *f, bool needles)
{
    struct axes a = {INFINITY, -INFINITY, needles ? 0 : 0, needles ? 1 : -1, needles};

    for (int r = 0; r < f->count; r++) {
        double x = log2(fmax(f->row[r].run->kv_bytes, 1));
        a.from_x = fmin(a.from_x, floor(x));
        a.to_x = fmax(a.to_x, ceil(x));
        if (needles) continue;
        a.from_y = fmin(a.from_y, floor(value_of(&a, &f->row[r])));
        a.to_y = fmax(a.to_y, ceil(value_of(&a, &f->row[r])));
    }
    if (a.to_x <= a.from_x) a.to_x = a.from_x + 1;
    return a;
}

static void mesh(fv_text *out, const struct axes *a)
{
    double step = a->needles ? 0.25 : 1;

    for (double y = a->from_y; y <= a->to_y + step / 2; y += step) {
        double at = place_y(a, y);
        fv_text_printf(out, "<line class=\"mesh\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", LEFT, RIGHT, at, at);
        fv_text_printf(out, "<text class=\"tick end\" x=\"%d\" y=\"%.1f\">%g%s</text>", LEFT - 6, at + 4,
                       a->needles ? 100 * y : pow(10, y), a->needles ? " %" : "");
    }
    for (double x = a->from_x; x <= a->to_x + 0.5; x++) {
        double at = LEFT + (x - a->from_x) / (a->to_x - a->from_x) * (RIGHT - LEFT);
        fv_text_printf(out, "<text class=\"tick middle\" x=\"%.1f\" y=\"%d\">%s</text>", at, BOTTOM + 18,
                       app_bytes_text(exp2(x)));
    }
}

/* Names stand at the right, in the order of the lines' ends, without covering one another. */
struct label {
    const char *name;
    double x, y;
    int colour;
};

static void draw_labels(fv_text *out, struct label *labels, int count)
{
    double at = TOP;

    for (int i = 1; i < count; i++)
        for (int j = i; j > 0 && labels[j].y < labels[j - 1].y; j--) {
            struct label other = labels[j];
            labels[j] = labels[j - 1];
            labels[j - 1] = other;
        }
    for (int i = 0; i < count; i++) {
        at = fmax(at, fmin(labels[i].y, BOTTOM - 15.0 * (count - 1 - i)));
        fv_text_printf(out, "<path class=\"mesh\" fill=\"none\" d=\"M%.1f %.1fL%d %.1f\"/>", labels[i].x, labels[i].y,
                       RIGHT + 12, at);
        fv_text_printf(out, "<rect class=\"s%d\" x=\"%d\" y=\"%.1f\" width=\"8\" height=\"8\"/>", labels[i].colour,
                       RIGHT + 14, at - 4);
        fv_text_printf(out, "<text class=\"tick\" x=\"%d\" y=\"%.1f\">", RIGHT + 26, at + 4);
        escape(out, labels[i].name);
        fv_text_printf(out, "</text>");
        at += 15;
    }
}

enum { MOST_LINES = 24 };

static void plot(fv_text *out, const frontier *f, bool needles)
{
    struct axes a = axes_of(f, needles);
    struct label labels[MOST_LINES];
    int lines = 0;

    fv_text_printf(out,
                   "<figure><figcaption><b>%s</b> <span>over memory of keys and values; a line is a policy, a point "
                   "a budget</span></figcaption><svg style=\"max-width:900px\" viewBox=\"0 0 %d %d\" role=\"img\" "
                   "aria-label=\"%s over memory\">",
                   needles ? "Facts found" : "Distance from dense", WIDTH, HEIGHT, needles ? "score" : "distance");
    mesh(out, &a);
    for (int first = 0; first < f->count && lines < MOST_LINES;) {
        int end = first;
        while (end < f->count && strcmp(f->row[end].policy, f->row[first].policy) == 0)
            end++;
        fv_text_printf(out, "<polyline class=\"line s-line\" style=\"stroke:var(--c%d)\" points=\"", lines % 6);
        for (int r = first; r < end; r++)
            fv_text_printf(out, "%.1f,%.1f ", place_x(&a, &f->row[r]), place_y(&a, value_of(&a, &f->row[r])));
        fv_text_printf(out, "\"/>");
        for (int r = first; r < end; r++) {
            fv_text_printf(out, "<circle class=\"s%d\" r=\"%d\" cx=\"%.1f\" cy=\"%.1f\"><title>", lines % 6,
                           f->row[r].best ? 5 : 3, place_x(&a, &f->row[r]), place_y(&a, value_of(&a, &f->row[r])));
            escape(out, f->row[r].run->spec);
            fv_text_printf(out, "</title></circle>");
        }
        labels[lines] = (struct label){f->row[first].policy, place_x(&a, &f->row[first]),
                                       place_y(&a, value_of(&a, &f->row[first])), lines % 6};
        lines++;
        first = end;
    }
    draw_labels(out, labels, lines);
    fv_text_printf(out, "</svg></figure>\n");
}

/* ---- the page --------------------------------------------------------------------------------------------------- */

static void write_rows(fv_text *out, const frontier *f)
{
    fv_text_printf(out, "<h2>All set-ups</h2><div class=\"wide\"><table><thead><tr><th>Set-up</th><th>Memory</th>"
                        "<th>At most</th><th>Reads<small>tokens/s</small></th><th>Writes<small>tokens/s</small></th>"
                        "<th>KL</th><th>Top-1</th><th>Perplexity</th><th>Facts</th></tr></thead><tbody>\n");
    for (int r = 0; r < f->count; r++) {
        const compare_run *run = f->row[r].run;
        fv_text_printf(out, "<tr><td%s>", f->row[r].best ? " class=\"best\"" : "");
        escape(out, run->spec);
        fv_text_printf(out, "</td><td>%s</td>", app_bytes_text(run->kv_bytes));
        fv_text_printf(out,
                       "<td>%s</td><td>%.0f</td><td>%.1f</td><td>%.3g</td><td>%.3f</td><td>%.2f</td><td>%.0f %%"
                       "</td></tr>\n",
                       app_bytes_text(run->peak_bytes), run->prefill_rate, run->decode_rate, run->kl, run->top1,
                       run->perplexity, 100 * f->row[r].needle);
    }
    fv_text_printf(out,
                   "</tbody></table></div>\n<p>Bold, and large in the pictures: no other set-up has less memory and "
                   "is as close.</p>\n");
}

fv_status frontier_report(const char *path, const frontier *f)
{
    const comparison *c = f->comparison;
    fv_text out = {0};

    page_begin(&out, "Cache policies");
    fv_text_printf(&out, "<style>:root{--c0:#8a8f9c;--c1:#3b6fd4;--c2:#d9822b;--c3:#2a9d6f;--c4:#b3478f;--c5:#8064d2}"
                         "</style><h1>What each cache policy keeps, and loses</h1><p>");
    escape(&out, c->info.name);
    fv_text_printf(&out,
                   ", %lld tokens of document, the last %lld of them fed one at a time and scored; facts hidden in "
                   "texts of %s tokens. On %s, %d threads.</p><div class=\"grid\" style=\"grid-template-columns:"
                   "minmax(0,1fr)\">\n",
                   (long long)c->document_tokens, (long long)c->scored_tokens, f->lengths, c->backend, c->threads);
    plot(&out, f, false);
    plot(&out, f, true);
    fv_text_printf(&out, "</div>\n");
    write_rows(&out, f);
    return page_write(&out, path);
}
