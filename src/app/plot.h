/* Lines over axes, as inline SVG for pages: x and y logarithmic or even. */
#ifndef APP_PLOT_H
#define APP_PLOT_H

#include "base/text.h"

enum { PLOT_DOTS = 32 };
enum { PLOT_LEFT = 44, PLOT_RIGHT = 340, PLOT_TOP = 12, PLOT_BOTTOM = 210, PLOT_HEIGHT = 236 };

typedef struct plot_axes {
    double from_x, to_x, from_y, to_y;
    bool even_x, even_y; /* from 0 */
} plot_axes;

/* What is plotted along x; y is taken up by plot_cover, in whole decades, so that pages read alike. */
plot_axes plot_axes_of(double from_x, double to_x);
plot_axes plot_shares_of(double from_x, double to_x); /* y even from 0 to 1 */
plot_axes plot_even_of(double to_x, double to_y);     /* both; y to a number that divides into quarters */
void plot_cover(plot_axes *axes, double y);

double plot_x(const plot_axes *axes, double x);
double plot_y(const plot_axes *axes, double y);

/* A figure's drawing from here to plot_end; `label` is for readers that see none. */
void plot_begin(fv_text *out, const char *label);
void plot_end(fv_text *out);

/* A mesh line for each decade of y, or each quarter of an even one, with its words. */
void plot_mesh(fv_text *out, const plot_axes *axes, const char *(*words)(double y));
/* Words below x. */
void plot_tick(fv_text *out, const plot_axes *axes, double x, const char *words);
/* A line through `count` points, with dots on them if they are few, in one of six colours. */
void plot_line(fv_text *out, const plot_axes *axes, int64_t count, const double *x, const double *y, int colour);

#endif
