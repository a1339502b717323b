/* The report of fovea compare: one page that needs nothing else, in light and dark, on wide screens and phones. */
#include "app/report.h"

#include <math.h>
#include <string.h>

#include "app/page.h"
#include "app/png.h"
#include "base/memory.h"

static void escape(fv_text *out, const char *words)
{
    page_escape(out, words, strlen(words));
}

/* ---- charts ---------------------------------------------------------------------------------------------------- */

void report_chart(fv_text *out, const comparison *c, const compare_column *column)
{
    int first = column->others ? 1 : 0;
    double most = 0;

    for (int r = first; r < c->runs; r++)
        most = fmax(most, compare_value(column, &c->run[r]));
    fv_text_printf(out,
                   "<figure><figcaption><b>%s</b> <span>%s%s%s; %s is better</span></figcaption>"
                   "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">",
                   column->title, column->unit, *column->unit ? ", " : "", column->help,
                   column->better > 0 ? "more" : "less", PAGE_WIDTH, PAGE_ROW * (c->runs - first), column->title);
    for (int r = first; r < c->runs; r++) {
        char value[64];
        snprintf(value, sizeof value, "%s%s", compare_best(c, column, r) ? "★ " : "", compare_text(column, &c->run[r]));
        page_bar(out, r - first, c->run[r].spec, value, most > 0 ? compare_value(column, &c->run[r]) / most : 0, r);
    }
    fv_text_printf(out, "</svg></figure>\n");
}

/* ---- which keys each head read --------------------------------------------------------------------------------- */

/* Shades 1..255 from hardly read to read most; 0 is what a head could not see. */
static void make_palette(uint8_t palette[256][3])
{
    static const uint8_t stops[5][3] = {{44, 52, 92}, {70, 95, 190}, {40, 160, 170}, {240, 190, 60}, {255, 245, 200}};

    memset(palette[0], 128, 3);
    for (int i = 1; i < 256; i++) {
        double at = (i - 1) / 254.0 * 4;
        int stop = at >= 4 ? 3 : (int)at;
        for (int c = 0; c < 3; c++)
            palette[i][c] = (uint8_t)lround(stops[stop][c] + (at - stop) * (stops[stop + 1][c] - stops[stop][c]));
    }
}

/* The weight of a bin against an even share of everything, from a hundredth to a hundred times, on a log scale. */
static uint8_t shade(float weight, int64_t steps)
{
    double share = weight / (double)steps * APP_READS_BINS;

    if (weight < 0) return 0;
    return (uint8_t)(1 + lround(254 * fmin(fmax((log10(fmax(share, 1e-9)) + 2) / 4, 0), 1)));
}

void report_reads(fv_text *out, const comparison *c, const compare_run *run)
{
    const app_reads *reads = &run->reads;
    uint8_t palette[256][3], *pixels;
    int64_t rows = reads->layers * reads->heads, states = 0;

    for (int64_t l = 0; l < reads->layers; l++)
        states += reads->state[l];
    fv_text_printf(out, "<figure class=\"reads\"><figcaption><b>");
    escape(out, run->spec);
    fv_text_printf(out, "</b> <span>density %.3f</span></figcaption>", run->density);
    if (states == reads->layers || reads->steps == 0) {
        fv_text_printf(out, "<p>It keeps a state instead of keys: there is nothing to point at.</p></figure>\n");
        return;
    }
    if (out->status == FV_OK) out->status = FV_ALLOC(pixels, rows * APP_READS_BINS);
    if (out->status != FV_OK) return;
    for (int64_t i = 0; i < rows * APP_READS_BINS; i++)
        pixels[i] = shade(reads->weight[i], reads->steps);
    make_palette(palette);
    fv_text_printf(out, "<div class=\"map\"><img alt=\"which keys each head read\" src=\"");
    png_uri(out, APP_READS_BINS, rows, pixels, palette);
    fv_text_printf(out, "\"></div><div class=\"axis\"><span>start of the document</span><span>%lld tokens</span></div>",
                   (long long)c->document_tokens);
    if (states > 0)
        fv_text_printf(out, "<p>%lld of %lld layers keep a state instead of keys (left blank).</p>", (long long)states,
                       (long long)reads->layers);
    fv_text_printf(out, "</figure>\n");
    fv_free(pixels);
}

/* ---- the page -------------------------------------------------------------------------------------------------- */

static void write_head(fv_text *out, const comparison *c)
{
    const char *slash = c->file ? strrchr(c->file, '/') : NULL;

    page_begin(out, "fovea compare");
    fv_text_printf(out, "<h1>");
    escape(out, *c->info.name ? c->info.name : c->model_path);
    fv_text_printf(out, " reads ");
    escape(out, c->file ? (slash ? slash + 1 : c->file) : "a prompt");
    fv_text_printf(
        out,
        "</h1>\n<p>%lld tokens of document; the last %lld were fed one at a time and scored. %lld layers, %lld "
        "query and %lld key-value heads. %s, %d thread%s; %.0f seconds in all; fovea %s.</p>\n",
        (long long)c->document_tokens, (long long)c->scored_tokens, (long long)c->info.layers,
        (long long)c->info.query_heads, (long long)c->info.key_heads, c->backend, c->threads,
        c->threads == 1 ? "" : "s", c->seconds, fv_version());
    if (!c->question || !c->file) return;
    fv_text_printf(out, "<p>The question behind it:</p><blockquote>");
    escape(out, c->question);
    fv_text_printf(out, "</blockquote>\n");
}

static void write_table(fv_text *out, const comparison *c)
{
    fv_text_printf(out, "<div class=\"wide\"><table><thead><tr><th>Set-up</th>");
    for (int i = 0; i < COMPARE_COLUMNS; i++)
        fv_text_printf(out, "<th title=\"%s\">%s<small>%s</small></th>", compare_columns[i].help,
                       compare_columns[i].title, *compare_columns[i].unit ? compare_columns[i].unit : "&nbsp;");
    fv_text_printf(out, "</tr></thead><tbody>\n");
    for (int r = 0; r < c->runs; r++) {
        fv_text_printf(out, "<tr><td>");
        escape(out, c->run[r].spec);
        fv_text_printf(out, "</td>");
        for (int i = 0; i < COMPARE_COLUMNS; i++) {
            const compare_column *column = &compare_columns[i];
            double ratio = compare_value(column, &c->run[r]) / compare_value(column, &c->run[0]);
            bool best = compare_best(c, column, r);
            fv_text_printf(out, "<td%s>%s%s", best ? " class=\"best\"" : "", best ? "★ " : "",
                           column->others && r == 0 ? "–" : compare_text(column, &c->run[r]));
            if (column->ratio && r > 0 && isfinite(ratio)) fv_text_printf(out, "<small>%.2f × dense</small>", ratio);
            fv_text_printf(out, "</td>");
        }
        fv_text_printf(out, "</tr>\n");
    }
    fv_text_printf(out,
                   "</tbody></table></div>\n<p>★ best in its column. Distance is the mean KL divergence of the next "
                   "token's distribution from dense attention's, over the scored tokens; agreement is how often "
                   "both think the same token likeliest.</p>\n");
}

static void write_answers(fv_text *out, const comparison *c)
{
    fv_text_printf(out, "<h2>Answers</h2><div class=\"grid\">\n");
    for (int r = 0; r < c->runs; r++) {
        const fv_generation *answer = &c->run[r].answer;
        fv_text_printf(out, "<article><h3>");
        escape(out, c->run[r].spec);
        fv_text_printf(out, "</h3><div>");
        page_escape(out, answer->text ? answer->text : "", answer->length);
        fv_text_printf(out, "</div><p>%lld tokens, ended by %s</p></article>\n", (long long)answer->count,
                       fv_stop_name(answer->stop));
    }
    fv_text_printf(out, "</div>\n");
}

static void write_reads(fv_text *out, const comparison *c)
{
    fv_text_printf(out,
                   "<h2>Which keys each head read</h2><p>Each line is a head, layer 0 on top, %lld heads a layer; from "
                   "left to right the document. Seen in %lld of the scored steps: how much of its attention the head "
                   "gave to that stretch, against an even share of the document. What is blank it could not "
                   "see.</p><div class=\"ramp\"></div><div class=\"axis\" style=\"max-width:320px\"><span>1/100</span>"
                   "<span>1/10</span><span>even</span><span>10</span><span>100 times</span></div>"
                   "<div class=\"grid\" style=\"margin-top:12px\">\n",
                   (long long)c->info.query_heads, (long long)c->run[0].reads.steps);
    for (int r = 0; r < c->runs; r++)
        report_reads(out, c, &c->run[r]);
    fv_text_printf(out, "</div>\n");
}

/* The head whose attention lies least on what is read. */
static int64_t worst_head(const app_picture *picture)
{
    int64_t worst = 0;

    for (int64_t h = 1; h < picture->heads; h++)
        if (picture->reached[h] < picture->reached[worst]) worst = h;
    return worst;
}

static void write_pictures(fv_text *out, const comparison *c)
{
    bool any = false;

    for (int r = 0; r < c->runs; r++) {
        const compare_run *run = &c->run[r];
        if (run->picture.queries == 0) continue;
        int64_t head = worst_head(&run->picture);
        if (!any)
            fv_text_printf(out,
                           "<h2>What is chosen, and where attention lies</h2><p>One head of the middle layer that a "
                           "set-up replaces, the one whose attention lies least on what is read: queries from top "
                           "to bottom, keys from left to right, over the document that is read at once. On the "
                           "left the pairs that are read, from none <span class=\"key none\"></span> to all <span "
                           "class=\"key all\"></span>; on the right what dense attention would give the same "
                           "queries and keys, in the colours above.</p><div class=\"grid\">\n");
        any = true;
        fv_text_printf(out, "<figure><figcaption><b>");
        escape(out, run->spec);
        fv_text_printf(out,
                       "</b> <span>layer %lld, head %lld: %.1f %% of the attention is on the %.1f %% of pairs that are "
                       "read</span></figcaption>",
                       (long long)run->drawn, (long long)head, 100 * app_picture_reached(&run->picture, head),
                       100 * app_picture_density(&run->picture, head));
        app_picture_html(out, &run->picture, head);
        fv_text_printf(out, "</figure>\n");
    }
    if (any) fv_text_printf(out, "</div>\n");
}

fv_status compare_report(const char *path, const comparison *c)
{
    fv_text out = {0};

    write_head(&out, c);
    write_table(&out, c);
    fv_text_printf(&out, "<h2>Speed, memory, distance</h2><div class=\"grid\">\n");
    for (int i = 0; i < COMPARE_COLUMNS; i++)
        report_chart(&out, c, &compare_columns[i]);
    fv_text_printf(&out, "</div>\n");
    write_answers(&out, c);
    write_reads(&out, c);
    write_pictures(&out, c);
    return page_write(&out, path);
}
