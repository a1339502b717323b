/* The report of fovea compare: one page that needs nothing else, in light and dark, on wide screens and phones. */
#include "app/report.h"

#include <math.h>
#include <string.h>

#include "base/file.h"
#include "base/memory.h"

void report_escape(fv_text *out, const char *bytes, size_t length)
{
    for (size_t at = 0; at < length;) {
        size_t one = app_character(bytes + at, length - at);
        const char *safe = bytes[at] == '&'    ? "&amp;"
                           : bytes[at] == '<'  ? "&lt;"
                           : bytes[at] == '>'  ? "&gt;"
                           : bytes[at] == '"'  ? "&quot;"
                           : bytes[at] == '\'' ? "&#39;"
                           : !one              ? "\xef\xbf\xbd"
                                               : NULL;
        if (safe)
            fv_text_printf(out, "%s", safe);
        else if ((unsigned char)bytes[at] >= 32 || bytes[at] == '\n' || bytes[at] == '\t')
            fv_text_add(out, bytes + at, (int64_t)one);
        at += one ? one : 1;
    }
}

static void escape(fv_text *out, const char *words)
{
    report_escape(out, words, strlen(words));
}

/* ---- charts ---------------------------------------------------------------------------------------------------- */

void report_chart(fv_text *out, const comparison *c, const compare_column *column)
{
    enum { WIDTH = 360, ROW = 40, BAR = 12 };
    int first = column->others ? 1 : 0, row = 0;
    double most = 0;

    for (int r = first; r < c->runs; r++)
        most = fmax(most, compare_value(column, &c->run[r]));
    fv_text_printf(out,
                   "<figure><figcaption><b>%s</b> <span>%s%s%s; %s is better</span></figcaption>"
                   "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">",
                   column->title, column->unit, *column->unit ? ", " : "", column->help,
                   column->better > 0 ? "more" : "less", WIDTH, ROW * (c->runs - first), column->title);
    for (int r = first; r < c->runs; r++, row++) {
        double value = compare_value(column, &c->run[r]);
        double length = most > 0 && isfinite(value) ? value / most * WIDTH : 0;
        fv_text_printf(out, "<text x=\"0\" y=\"%d\" class=\"name\">", row * ROW + 14);
        report_escape(out, c->run[r].spec, strnlen(c->run[r].spec, 38));
        fv_text_printf(out,
                       "</text><text x=\"%d\" y=\"%d\" class=\"value\">%s%s</text>"
                       "<rect x=\"0\" y=\"%d\" width=\"%d\" height=\"%d\" class=\"rail\"/>"
                       "<rect x=\"0\" y=\"%d\" width=\"%.1f\" height=\"%d\" class=\"s%d%s\"/>",
                       WIDTH, row * ROW + 14, compare_best(c, column, r) ? "★ " : "", compare_text(column, &c->run[r]),
                       row * ROW + 20, WIDTH, BAR, row * ROW + 20, fmax(length, 1), BAR, r % 6, r == 0 ? " base" : "");
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
    report_png(out, APP_READS_BINS, rows, pixels, palette);
    fv_text_printf(out, "\"></div><div class=\"axis\"><span>start of the document</span><span>%lld tokens</span></div>",
                   (long long)c->document_tokens);
    if (states > 0)
        fv_text_printf(out, "<p>%lld of %lld layers keep a state instead of keys (left blank).</p>", (long long)states,
                       (long long)reads->layers);
    fv_text_printf(out, "</figure>\n");
    fv_free(pixels);
}

/* ---- the page -------------------------------------------------------------------------------------------------- */

static const char style[] =
    ":root{color-scheme:light dark;--back:#fbfaf7;--ink:#1d2230;--soft:#667;--line:#d9d7d0;--card:#fff;--rail:#ecebe6}"
    "@media(prefers-color-scheme:dark){:root{--back:#14161c;--ink:#e8e8ea;--soft:#9aa0ae;--line:#2c303a;--card:#1b1e26;"
    "--rail:#262a34}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}"
    "main{max-width:1100px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.5rem;margin:0 0 4px}"
    "h2{font-size:1.15rem;margin:40px 0 8px}p{margin:8px 0;color:var(--soft);max-width:75ch}"
    ".wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}"
    "th,td{padding:8px 10px;text-align:right;white-space:nowrap;vertical-align:top;border-top:1px solid var(--line)}"
    "thead th{border-top:0;color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}"
    "td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:110px}td.best{font-weight:700}"
    "th small,td small{color:var(--soft);font-weight:400;display:block}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:16px}"
    "figure,article{margin:0;padding:14px 16px;border:1px solid var(--line);border-radius:8px;background:var(--card);"
    "min-width:0}figcaption{margin-bottom:10px;overflow-wrap:anywhere}figcaption "
    "span{color:var(--soft);font-size:.85rem}"
    "svg{width:100%;display:block}svg text{font:13px system-ui,sans-serif;fill:var(--ink)}"
    "svg .value{text-anchor:end;font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px}"
    "svg .rail{fill:var(--rail)}"
    ".s0{fill:#8a8f9c}.s1{fill:#3b6fd4}.s2{fill:#d9822b}.s3{fill:#2a9d6f}.s4{fill:#b3478f}.s5{fill:#8064d2}"
    "article h3{font-size:.95rem;margin:0 0 8px;overflow-wrap:anywhere}"
    "article div{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.95rem}article p{font-size:.85rem}"
    ".map{background:var(--rail);border-radius:4px;overflow:hidden}"
    ".map img{width:100%;height:330px;display:block;image-rendering:pixelated}"
    ".axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;margin-top:4px}"
    ".ramp{height:10px;border-radius:5px;max-width:320px;margin:8px 0 2px;background:linear-gradient(90deg,"
    "#2c345c,#465fbe,#28a0aa,#f0be3c,#fff5c8)}blockquote{margin:8px 0;padding:4px 14px;border-left:3px solid "
    "var(--line);"
    "white-space:pre-wrap}";

static void write_head(fv_text *out, const comparison *c)
{
    const char *slash = c->file ? strrchr(c->file, '/') : NULL;

    fv_text_printf(out,
                   "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                   "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                   "<title>fovea compare</title><style>%s</style></head><body><main>\n<h1>",
                   style);
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
        report_escape(out, answer->text ? answer->text : "", answer->length);
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

fv_status compare_report(const char *path, const comparison *c)
{
    fv_text out = {0};
    fv_file_out file;
    fv_status status;

    write_head(&out, c);
    write_table(&out, c);
    fv_text_printf(&out, "<h2>Speed, memory, distance</h2><div class=\"grid\">\n");
    for (int i = 0; i < COMPARE_COLUMNS; i++)
        report_chart(&out, c, &compare_columns[i]);
    fv_text_printf(&out, "</div>\n");
    write_answers(&out, c);
    write_reads(&out, c);
    fv_text_printf(&out, "</main></body></html>\n");
    status = fv_text_status(&out);
    if (status == FV_OK) status = fv_file_create(path, &file);
    if (status == FV_OK) {
        fwrite(fv_text_get(&out), 1, (size_t)out.length, file.stream);
        status = fv_file_commit(&file);
    }
    fv_text_free(&out);
    return status;
}
