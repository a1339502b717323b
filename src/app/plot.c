#include "app/plot.h"

#include <math.h>

#include "app/page.h"

plot_axes plot_axes_of(double from_x, double to_x)
{
    return (plot_axes){from_x, to_x, INFINITY, 0, false, false};
}

plot_axes plot_shares_of(double from_x, double to_x)
{
    return (plot_axes){from_x, to_x, 0, 1, false, true};
}

plot_axes plot_even_of(double to_x, double to_y)
{
    static const double steps[] = {1, 2, 4, 6, 8, 10};
    double power = to_y > 0 ? pow(10, floor(log10(to_y))) : 1;
    int step = 0;

    while (step < 5 && steps[step] * power < to_y)
        step++;
    return (plot_axes){0, to_x, 0, steps[step] * power, true, true};
}

void plot_cover(plot_axes *a, double y)
{
    a->from_y = fmin(a->from_y, pow(10, floor(log10(y))));
    a->to_y = fmax(a->to_y, pow(10, ceil(log10(y) + 1e-9)));
}

double plot_x(const plot_axes *a, double x)
{
    double width = log(a->to_x) - log(a->from_x);

    if (a->even_x) return PLOT_LEFT + x / a->to_x * (PLOT_RIGHT - PLOT_LEFT);
    return width > 0 ? PLOT_LEFT + (log(x) - log(a->from_x)) / width * (PLOT_RIGHT - PLOT_LEFT)
                     : (PLOT_LEFT + PLOT_RIGHT) / 2.0;
}

double plot_y(const plot_axes *a, double y)
{
    double height = a->even_y ? a->to_y : log10(a->to_y) - log10(a->from_y),
           above = a->even_y ? y : log10(y) - log10(a->from_y);

    return PLOT_BOTTOM - above / height * (PLOT_BOTTOM - PLOT_TOP);
}

void plot_begin(fv_text *out, const char *label)
{
    fv_text_printf(out, "<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"%s\">", PAGE_WIDTH, PLOT_HEIGHT, label);
}

void plot_end(fv_text *out)
{
    fv_text_printf(out, "</svg>");
}

static void mesh_line(fv_text *out, const plot_axes *a, double y, const char *words)
{
    double at = plot_y(a, y);

    fv_text_printf(out, "<line class=\"mesh\" x1=\"%d\" x2=\"%d\" y1=\"%.1f\" y2=\"%.1f\"/>", PLOT_LEFT, PLOT_RIGHT, at,
                   at);
    fv_text_printf(out, "<text class=\"tick end\" x=\"%d\" y=\"%.1f\">%s</text>", PLOT_LEFT - 4, at + 4, words);
}

void plot_mesh(fv_text *out, const plot_axes *a, const char *(*words)(double y))
{
    for (int quarter = 0; a->even_y && quarter <= 4; quarter++)
        mesh_line(out, a, 0.25 * quarter * a->to_y, words(0.25 * quarter * a->to_y));
    for (double power = round(log10(a->from_y)); !a->even_y && power <= log10(a->to_y) + 0.5; power++)
        mesh_line(out, a, pow(10, power), words(pow(10, power)));
}

void plot_tick(fv_text *out, const plot_axes *a, double x, const char *words)
{
    fv_text_printf(out, "<text class=\"tick middle\" x=\"%.1f\" y=\"%d\">%s</text>", plot_x(a, x), PLOT_BOTTOM + 18,
                   words);
}

void plot_line(fv_text *out, const plot_axes *a, int64_t count, const double *x, const double *y, int colour)
{
    fv_text_printf(out, "<polyline class=\"line l%d\" points=\"", colour);
    for (int64_t i = 0; i < count; i++)
        fv_text_printf(out, "%.1f,%.1f ", plot_x(a, x[i]), plot_y(a, y[i]));
    fv_text_printf(out, "\"/>");
    for (int64_t i = 0; i < count && count <= PLOT_DOTS; i++)
        fv_text_printf(out, "<circle class=\"s%d\" r=\"3\" cx=\"%.1f\" cy=\"%.1f\"/>", colour, plot_x(a, x[i]),
                       plot_y(a, y[i]));
}
