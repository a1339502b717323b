/* The page of fovea bench: shares of peaks as bars, time over length for each mechanism beside dense, and costs of
 * test-time runs. */
#include <math.h>
#include <string.h>

#include "app/bench.h"
#include "app/page.h"
#include "app/plot.h"

enum { PLOTTED = 256 }; /* lengths in a plot */

static void escape(fv_text *out, const char *words)
{
    page_escape(out, words, strlen(words));
}

/* ---- bars ------------------------------------------------------------------------------------------------------ */

/* Colours: f32, bf16 and integers, memory. */
static int colour_of(const bench_row *row)
{
    return strcmp(row->bound, "memory") == 0 ? 3 : strcmp(row->bound, "fma f32") == 0 ? 1 : 2;
}

static void bars(fv_text *out, const struct bench *b, const char *what)
{
    int count = 0;

    for (int64_t r = 0; r < b->count; r++)
        count += strcmp(b->rows[r].what, what) == 0;
    fv_text_printf(out, "<figure><figcaption><b>");
    escape(out, what);
    fv_text_printf(out,
                   "</b> <span>share of the peak that bounds it</span></figcaption><svg viewBox=\"0 0 %d %d\" "
                   "role=\"img\" aria-label=\"shares of peaks\">",
                   PAGE_WIDTH, PAGE_ROW * count);
    for (int64_t r = 0, at = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        char value[32];
        if (strcmp(row->what, what) != 0) continue;
        snprintf(value, sizeof value, "%.0f %%", 100 * row->of_peak);
        page_bar(out, (int)at++, row->shape, value, row->of_peak, colour_of(row));
    }
    fv_text_printf(out, "</svg></figure>\n");
}

static bool is_peak(const bench_row *row)
{
    return strncmp(row->what, "peak ", 5) == 0;
}

static bool seen_before(const struct bench *b, int64_t r)
{
    for (int64_t q = 0; q < r; q++)
        if (strcmp(b->rows[q].what, b->rows[r].what) == 0) return true;
    return false;
}

static void write_kernels(fv_text *out, const struct bench *b)
{
    bool any = false;

    for (int64_t r = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        if (is_peak(row) || row->tokens || seen_before(b, r)) continue;
        if (!any)
            fv_text_printf(out, "<h2>Kernels</h2><p><span class=\"key s1\"></span> judged by f32 multiply-adds "
                                "<span class=\"key s2\"></span> by dot products <span class=\"key s3\"></span> by "
                                "memory, where the data exceed the caches</p><div class=\"grid\">\n");
        any = true;
        bars(out, b, row->what);
    }
    if (any) fv_text_printf(out, "</div>\n");
}

/* ---- lines ----------------------------------------------------------------------------------------------------- */

/* The times of a mechanism's rows, or of dense ones beside them. */
static void line(fv_text *out, const plot_axes *a, const bench_row *rows, int64_t count, bool dense, int colour)
{
    double x[PLOTTED], y[PLOTTED];

    for (int64_t r = 0; r < count; r++) {
        x[r] = (double)rows[r].tokens;
        y[r] = dense ? rows[r].dense_seconds : rows[r].seconds;
    }
    plot_line(out, a, count, x, y, colour);
}

static const char *seconds_text(double seconds)
{
    static _Thread_local char text[32];
    bool whole = seconds > 0.9;

    snprintf(text, sizeof text, "%g %s",
             whole              ? round(seconds)
             : seconds > 0.9e-3 ? 1e3 * seconds
                                : 1e6 * seconds,
             whole              ? "s"
             : seconds > 0.9e-3 ? "ms"
                                : "µs");
    return text;
}

static void plot(fv_text *out, const struct bench *b, int64_t first, int64_t last)
{
    const bench_row *rows = &b->rows[first];
    int64_t count = fv_min(last - first + 1, PLOTTED);
    plot_axes a = plot_axes_of((double)rows[0].tokens, (double)rows[count - 1].tokens);
    double from = rows[0].beats_from;

    fv_text_printf(out, "<figure><figcaption><b>");
    escape(out, rows[0].what);
    fv_text_printf(out, "</b> <span>");
    bench_crossing(b, &b->rows[last], out);
    fv_text_printf(out, "</span></figcaption>");
    for (int64_t r = 0; r < count; r++) {
        plot_cover(&a, rows[r].seconds);
        plot_cover(&a, rows[r].dense_seconds);
    }
    plot_begin(out, "time over length");
    plot_mesh(out, &a, seconds_text);
    for (int64_t r = 0; r < count; r++) {
        char tokens[32];
        snprintf(tokens, sizeof tokens, "%lld", (long long)rows[r].tokens);
        plot_tick(out, &a, (double)rows[r].tokens, tokens);
    }
    if (from > (double)rows[0].tokens) {
        double x = plot_x(&a, from);
        fv_text_printf(out, "<line class=\"cross\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%d\" y2=\"%d\"/>", x, x, PLOT_TOP,
                       PLOT_BOTTOM);
        fv_text_printf(out, "<text class=\"tick %s\" x=\"%.1f\" y=\"%d\">%.0f tokens</text>",
                       x > (PLOT_LEFT + PLOT_RIGHT) / 2.0 ? "end" : "start",
                       x > (PLOT_LEFT + PLOT_RIGHT) / 2.0 ? x - 4 : x + 4, PLOT_TOP + 8, from);
    }
    line(out, &a, rows, count, true, 0);
    line(out, &a, rows, count, false, 1);
    plot_end(out);
    fv_text_printf(out, "<p>");
    escape(out, b->rows[last].shape);
    fv_text_printf(out, ": %.2f × dense%s", b->rows[last].seconds / b->rows[last].dense_seconds,
                   b->rows[last].dense_reckoned ? ", whose time is extrapolated from a shorter length" : "");
    if (b->rows[last].score_seconds > 0)
        fv_text_printf(out, "; %.0f %% of its time is choosing, density %.3f",
                       100 * (1 - b->rows[last].attend_seconds / b->rows[last].seconds), b->rows[last].density);
    if (!isnan(b->rows[last].slope)) fv_text_printf(out, "; time grows as length^%.2f", b->rows[last].slope);
    fv_text_printf(out, "</p></figure>\n");
}

static void write_mechanisms(fv_text *out, const struct bench *b)
{
    bool any = false;

    for (int64_t r = 0; r < b->count; r++) {
        int64_t first = r;
        if (!bench_is_last(b, r)) continue;
        while (first > 0 && b->rows[first - 1].what == b->rows[r].what)
            first--;
        if (!any)
            fv_text_printf(out, "<h2>Mechanisms</h2><p>Time over tokens, both logarithmic: <span class=\"key s1\">"
                                "</span> the mechanism, <span class=\"key s0\"></span> dense attention of the same "
                                "shape. A dashed line marks the length from which it is faster.</p>"
                                "<div class=\"grid\">\n");
        any = true;
        plot(out, b, first, r);
    }
    if (any) fv_text_printf(out, "</div>\n");
}

/* ---- the page -------------------------------------------------------------------------------------------------- */

static void write_rows(fv_text *out, const struct bench *b)
{
    fv_text_printf(out, "<h2>All rows</h2><div class=\"wide\"><table><thead><tr><th>What</th><th>Shape</th>"
                        "<th>Time<small>ms</small></th><th>GFLOP/s</th><th>GB/s</th><th>Of peak<small>bound</small>"
                        "</th><th>Runs</th></tr></thead><tbody>\n");
    for (int64_t r = 0; r < b->count; r++) {
        const bench_row *row = &b->rows[r];
        fv_text_printf(out, "<tr><td>");
        escape(out, row->what);
        fv_text_printf(out, "</td><td>");
        escape(out, row->shape);
        fv_text_printf(out,
                       "</td><td>%.4g</td><td>%.1f</td><td>%.1f</td><td>%.0f %%<small>%s</small></td><td>%d</td>"
                       "</tr>\n",
                       1e3 * row->seconds, 1e-9 * row->work.flops / row->seconds,
                       1e-9 * (row->work.read + row->work.written) / row->seconds, 100 * row->of_peak, row->bound,
                       row->runs);
    }
    fv_text_printf(out, "</tbody></table></div>\n<p>Times are medians. Of peak: the least time the machine's own peaks "
                        "allow, measured in the same run, over the time.</p>\n");
}

static void write_peaks(fv_text *out, const app_peaks *p)
{
    fv_text_printf(out, " Peaks in the same run: %.0f GFLOP/s of f32 multiply-adds", 1e-9 * p->rate[APP_FMA]);
    if (p->rate[APP_DOT_BF16] > 0)
        fv_text_printf(out, ", %.0f of bf16 and %.0f of 8-bit dot products", 1e-9 * p->rate[APP_DOT_BF16],
                       1e-9 * p->rate[APP_DOT_INT8]);
    fv_text_printf(out, "; %.1f GB/s read from memory, %.1f copied.", 1e-9 * p->read, 1e-9 * p->copy);
}

fv_status bench_report(const struct bench *b, const char *path)
{
    fv_text out = {0};

    page_begin(&out, "fovea bench");
    fv_text_printf(&out, "<h1>fovea bench</h1>\n<p>");
    escape(&out, b->app->ctx->cpu.model);
    fv_text_printf(&out, ", %s, %d thread%s; fovea %s.", fv_ctx_backend(b->app->ctx), fv_ctx_threads(b->app->ctx),
                   fv_ctx_threads(b->app->ctx) == 1 ? "" : "s", fv_version());
    if (b->count > 0) write_peaks(&out, &b->peaks);
    fv_text_printf(&out, "</p>\n");
    write_mechanisms(&out, b);
    write_kernels(&out, b);
    for (int n = 0; n < b->costs; n++)
        bench_kinetics_write(&out, &b->cost[n], n == 0);
    if (b->count > 0) write_rows(&out, b);
    return page_write(&out, path);
}
