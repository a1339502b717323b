#include "app/heat.h"

#include <math.h>

#include "app/page.h"

enum { LEFT = 26, TOP = 18, SIDE = PAGE_WIDTH - LEFT, TALL = 330, LABEL = 22 };

/* From dark to bright, as in the pictures of attention. */
static unsigned colour(double share)
{
    static const int stop[5][3] = {{44, 52, 92}, {70, 95, 190}, {40, 160, 170}, {240, 190, 60}, {255, 245, 200}};
    double at = fmin(fmax(share, 0), 1) * 4;
    int below = at >= 4 ? 3 : (int)at;
    unsigned all = 0;

    for (int c = 0; c < 3; c++)
        all = all << 8 | (unsigned)lround(stop[below][c] + (at - below) * (stop[below + 1][c] - stop[below][c]));
    return all;
}

/* Numbers along a side, so far apart that they can be read. */
static void label(fv_text *out, int64_t count, double cell, bool down)
{
    int64_t step = 1;

    while (cell * (double)step < (down ? 14 : LABEL))
        step += step < 2 ? 1 : step < 5 ? 3 : 5;
    for (int64_t i = 0; i < count; i += step)
        fv_text_printf(out, "<text class=\"tick %s\" x=\"%.1f\" y=\"%.1f\">%lld</text>", down ? "end" : "middle",
                       down ? LEFT - 5 : LEFT + ((double)i + 0.5) * cell,
                       down ? TOP + ((double)i + 0.5) * cell + 4 : TOP - 5, (long long)i);
}

static void draw_cells(fv_text *out, const heat_map *m, double least, double most, double width, double height)
{
    for (int64_t r = 0; r < m->rows; r++)
        for (int64_t c = 0; c < m->columns; c++) {
            double value = m->value[r * m->columns + c];
            if (isnan(value)) continue;
            fv_text_printf(out,
                           "<rect x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"#%06x\"><title>%s %lld, "
                           "%s %lld: %s</title></rect>",
                           LEFT + (double)c * width, TOP + (double)r * height, width + 0.3, height + 0.3,
                           colour(most > least ? (value - least) / (most - least) : 0.5), m->row, (long long)r,
                           m->column, (long long)c, m->words(value));
        }
}

void heat_draw(fv_text *out, const heat_map *m)
{
    double least = INFINITY, most = -INFINITY, width = SIDE / (double)m->columns,
           height = fmin(fmin(fmax(TALL / (double)m->rows, 4), 24), fmax(width, 11));

    for (int64_t n = 0; n < m->rows * m->columns; n++) {
        if (isnan(m->value[n])) continue;
        least = fmin(least, m->value[n]);
        most = fmax(most, m->value[n]);
    }
    fv_text_printf(out, "<figure class=\"heat\"><figcaption><b>%s</b> <span>%s</span></figcaption>", m->title, m->help);
    if (!(least <= most)) {
        fv_text_printf(out, "<p>Nothing was found.</p></figure>\n");
        return;
    }
    fv_text_printf(out,
                   "<svg viewBox=\"0 0 %d %.0f\" role=\"img\" aria-label=\"%s by %s and %s\"><rect class=\"rail\" "
                   "x=\"%d\" y=\"%d\" width=\"%d\" height=\"%.1f\"/><g shape-rendering=\"crispEdges\">",
                   PAGE_WIDTH, TOP + height * (double)m->rows + 2, m->title, m->row, m->column, LEFT, TOP, SIDE,
                   height * (double)m->rows);
    draw_cells(out, m, least, most, width, height);
    fv_text_printf(out, "</g>");
    label(out, m->rows, height, true);
    label(out, m->columns, width, false);
    fv_text_printf(out,
                   "</svg><div class=\"axis\"><span>%s</span></div><div class=\"ramp\"></div>"
                   "<div class=\"axis ends\"><span>%s</span><span>%s</span></div></figure>\n",
                   m->axes, m->words(least), m->words(most));
}
