/* Pictures of pairs in a terminal, as SVG, as PNG, and in pages. */
#include "app/picture.h"

#include <math.h>
#include <string.h>

#include "app/page.h"
#include "app/png.h"
#include "base/file.h"
#include "base/memory.h"

/* ---- fewer cells ------------------------------------------------------------------------------------------------ */

/* One head's sums in n x n cells. */
struct panel {
    int64_t n;
    float *even, *seen, *weight;
};

static fv_status shrink(const app_picture *p, const float *from, int64_t n, float **to)
{
    FV_TRY(FV_ZALLOC(*to, n * n));
    for (int64_t r = 0; r < p->cells; r++)
        for (int64_t c = 0; c < p->cells; c++)
            (*to)[r * n / p->cells * n + c * n / p->cells] += from[r * p->cells + c];
    return FV_OK;
}

static void panel_free(struct panel *panel)
{
    fv_free(panel->even);
    fv_free(panel->seen);
    fv_free(panel->weight);
}

/* Released with panel_free whatever happens. */
static fv_status panel_of(const app_picture *p, int64_t head, int64_t most, struct panel *panel)
{
    int64_t plane = head * p->cells * p->cells;

    *panel = (struct panel){.n = fv_min(p->cells, most)};
    FV_TRY(shrink(p, p->even, panel->n, &panel->even));
    FV_TRY(shrink(p, p->seen + plane, panel->n, &panel->seen));
    return p->weighed ? shrink(p, p->weight + plane, panel->n, &panel->weight) : FV_OK;
}

/* Share of a cell that is read; -1 where nothing is to be seen. */
static double share(const struct panel *panel, int64_t r, int64_t c)
{
    double even = panel->even[r * panel->n + c];

    return even > 0 ? fmin(panel->seen[r * panel->n + c] / even, 1) : -1;
}

/* Attention on a cell, in even shares; -1 where nothing is to be seen. */
static double times(const struct panel *panel, int64_t r, int64_t c)
{
    double even = panel->even[r * panel->n + c];

    return even > 0 ? panel->weight[r * panel->n + c] / even : -1;
}

/* ---- terminals -------------------------------------------------------------------------------------------------- */

enum { ALONE = 72, BESIDE = 38 }; /* columns of a panel */

/* Two lines of cells are a line of characters, which are twice as high as wide. */
static const char *pair_sign(double upper, double lower)
{
    if (upper > 0) return lower > 0 ? "█" : "▀";
    if (lower > 0) return "▄";
    return upper < 0 && lower < 0 ? " " : "·";
}

static const char *shade_sign(double value, const double steps[4])
{
    static const char *const signs[] = {"·", "░", "▒", "▓", "█"};
    int level = 0;

    while (level < 4 && value > steps[level])
        level++;
    return value < 0 ? " " : signs[level];
}

static const double shares[] = {0, 0.25, 0.5, 0.75}, shares_of_attention[] = {0.25, 1, 4, 16};

/* The mean of two lines' values; -1 where there are none. */
static double mean(double upper, double lower)
{
    if (upper < 0 || lower < 0) return fmax(upper, lower);
    return (upper + lower) / 2;
}

static void print_line(const struct panel *panel, int64_t r, bool exact,
                       double (*value)(const struct panel *, int64_t, int64_t), const double steps[4], FILE *stream)
{
    for (int64_t c = 0; c < panel->n; c++) {
        double upper = value(panel, r, c), lower = r + 1 < panel->n ? value(panel, r + 1, c) : -1;
        fputs(exact ? pair_sign(upper, lower) : shade_sign(mean(upper, lower), steps), stream);
    }
}

fv_status app_picture_print(const app_picture *p, int64_t head, FILE *stream)
{
    struct panel panel;
    fv_status status = panel_of(p, head, p->weighed ? BESIDE : ALONE, &panel);
    bool exact = panel.n == p->size && !p->weighed;

    for (int64_t r = 0; r < panel.n && status == FV_OK; r += 2) {
        print_line(&panel, r, exact, share, shares, stream);
        if (p->weighed) fputs("  ", stream);
        if (p->weighed) print_line(&panel, r, false, times, shares_of_attention, stream);
        fputc('\n', stream);
    }
    if (status == FV_OK && p->weighed)
        fputs("left, what is read: · nothing, ░ ▒ ▓ up to 1/4, 1/2, 3/4, █ more\n"
              "right, attention: · under 1/4 of an even share, ░ more, ▒ over 1, ▓ 4, █ 16 of it\n",
              stream);
    else if (status == FV_OK && exact)
        fputs("a column is a key, a line two queries: █ read, ▀ ▄ by one of them, · not read\n", stream);
    else if (status == FV_OK)
        fprintf(stream,
                "a column is %.3g keys, a line %.3g queries\n· nothing read, ░ ▒ ▓ up to 1/4, 1/2, 3/4, █ more\n",
                (double)p->size / (double)panel.n, 2.0 * (double)p->size / (double)panel.n);
    panel_free(&panel);
    return status;
}

/* ---- pixels ----------------------------------------------------------------------------------------------------- */

/* 1 .. 127: attention, from hardly any to most; 128 .. 254: the share that is read; 0 transparent, 255 white. */
enum { ATTENTION = 1, READ = 128, WHITE = 255, STEPS = 126 };

static void ramp(uint8_t (*palette)[3], const uint8_t (*stop)[3], int stops)
{
    for (int i = 0; i <= STEPS; i++) {
        double at = (double)i / STEPS * (stops - 1);
        int below = at >= stops - 1 ? stops - 2 : (int)at;
        for (int c = 0; c < 3; c++)
            palette[i][c] = (uint8_t)lround(stop[below][c] + (at - below) * (stop[below + 1][c] - stop[below][c]));
    }
}

static void make_palette(uint8_t palette[256][3])
{
    static const uint8_t attention[][3] = {
        {44, 52, 92}, {70, 95, 190}, {40, 160, 170}, {240, 190, 60}, {255, 245, 200}};
    static const uint8_t read[][3] = {{226, 224, 216}, {150, 176, 228}, {38, 86, 190}};

    memset(palette, 255, 256 * 3);
    ramp(palette + ATTENTION, attention, 5);
    ramp(palette + READ, read, 3);
}

static uint8_t read_pixel(double value, uint8_t nothing)
{
    return value < 0 ? nothing : (uint8_t)(READ + lround(STEPS * value));
}

/* From a hundredth to a hundred even shares. */
static uint8_t attention_pixel(double value, uint8_t nothing)
{
    double level = fmin(fmax((log10(fmax(value, 1e-9)) + 2) / 4, 0), 1);

    return value < 0 ? nothing : (uint8_t)(ATTENTION + lround(STEPS * level));
}

/* Writes a panel, each cell `scale` pixels wide and high. */
static void paint(const struct panel *panel, bool attention, int64_t scale, uint8_t nothing, uint8_t *pixels,
                  int64_t width)
{
    for (int64_t y = 0; y < panel->n * scale; y++)
        for (int64_t x = 0; x < panel->n * scale; x++)
            pixels[y * width + x] = attention ? attention_pixel(times(panel, y / scale, x / scale), nothing)
                                              : read_pixel(share(panel, y / scale, x / scale), nothing);
}

static fv_status write_file(const char *path, const fv_text *bytes)
{
    fv_file_out file;

    FV_TRY(fv_text_status(bytes));
    FV_TRY(fv_file_create(path, &file));
    fwrite(fv_text_get(bytes), 1, (size_t)bytes->length, file.stream);
    return fv_file_commit(&file);
}

fv_status app_picture_png(const app_picture *p, int64_t head, const char *path)
{
    enum { ACROSS = 512, GAP = 16 };
    uint8_t palette[256][3], *pixels = NULL;
    struct panel panel;
    fv_text bytes = {0};
    fv_status status = panel_of(p, head, p->cells, &panel);
    int64_t scale = fv_max(ACROSS / panel.n, 1), side = panel.n * scale, width = p->weighed ? 2 * side + GAP : side;

    if (status == FV_OK) status = FV_ALLOC(pixels, width * side);
    if (status == FV_OK) {
        memset(pixels, WHITE, (size_t)(width * side));
        make_palette(palette);
        paint(&panel, false, scale, WHITE, pixels, width);
        if (p->weighed) paint(&panel, true, scale, WHITE, pixels + side + GAP, width);
        png_add(&bytes, width, side, pixels, palette);
        status = write_file(path, &bytes);
    }
    fv_text_free(&bytes);
    fv_free(pixels);
    panel_free(&panel);
    return status;
}

/* A panel as a data: URI. */
static void add_image(fv_text *out, const struct panel *panel, bool attention)
{
    uint8_t palette[256][3], *pixels;

    if (out->status == FV_OK) out->status = FV_ALLOC(pixels, panel->n * panel->n);
    if (out->status != FV_OK) return;
    make_palette(palette);
    paint(panel, attention, 1, 0, pixels, panel->n);
    png_uri(out, panel->n, panel->n, pixels, palette);
    fv_free(pixels);
}

void app_picture_html(fv_text *out, const app_picture *p, int64_t head)
{
    struct panel panel;

    if (out->status == FV_OK) out->status = panel_of(p, head, p->cells, &panel);
    if (out->status != FV_OK) return;
    fv_text_printf(out, "<div class=\"pair\"><div>read<img alt=\"pairs that are read\" src=\"");
    add_image(out, &panel, false);
    fv_text_printf(out, "\"></div><div>attention<img alt=\"where attention lies\" src=\"");
    add_image(out, &panel, true);
    fv_text_printf(out, "\"></div></div>");
    panel_free(&panel);
}

/* ---- SVG -------------------------------------------------------------------------------------------------------- */

/* Runs of cells of one level in each line, as one path. */
enum { LEVELS = 8 };

static int level_of(const struct panel *panel, int64_t r, int64_t c)
{
    double value = share(panel, r, c);

    return value < 0 ? -1 : (int)ceil(LEVELS * value - 1e-6);
}

static void add_runs(fv_text *out, const struct panel *panel, int level)
{
    bool any = false;

    for (int64_t r = 0; r < panel->n; r++)
        for (int64_t c = 0, end; c < panel->n; c = end) {
            int own = level_of(panel, r, c);
            for (end = c + 1; end < panel->n && level_of(panel, r, end) == own;)
                end++;
            if (own != level) continue;
            if (!any) fv_text_printf(out, "<path class=\"l%d\" d=\"", level);
            fv_text_printf(out, "M%lld %lldh%lldv1h-%lldz", (long long)c, (long long)r, (long long)(end - c),
                           (long long)(end - c));
            any = true;
        }
    if (any) fv_text_printf(out, "\"/>\n");
}

static void add_svg(fv_text *out, const app_picture *p, const struct panel *panel, const char *title, const char *words)
{
    enum { SIDE = 400, LEFT = 20, TOP = 64, GAP = 24, LETTER = 8 };
    int width = 2 * LEFT + SIDE + (p->weighed ? GAP + SIDE : 0);

    fv_text_printf(out,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\">\n"
                   "<style>text{font:13px system-ui,sans-serif;fill:#667}.t{font-weight:600;fill:#1d2230}"
                   ".l0{fill:#e2e0d8}",
                   width, TOP + SIDE + LEFT, width);
    for (int level = 1; level <= LEVELS; level++)
        fv_text_printf(out, ".l%d{fill:#2656be;fill-opacity:%.3f}", level, 0.2 + 0.8 * level / LEVELS);
    fv_text_printf(
        out, "</style>\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/><text class=\"t\" x=\"%d\" y=\"22\"",
        LEFT);
    if ((int)strlen(title) * LETTER > width - 2 * LEFT)
        fv_text_printf(out, " textLength=\"%d\" lengthAdjust=\"spacingAndGlyphs\"", width - 2 * LEFT);
    fv_text_printf(out, ">");
    page_escape(out, title, strlen(title));
    fv_text_printf(out, "</text><text x=\"%d\" y=\"40\">", LEFT);
    page_escape(out, words, strlen(words));
    fv_text_printf(out, "</text><text x=\"%d\" y=\"58\">%s</text>\n", LEFT,
                   p->weighed ? "read" : "keys from left to right, queries from top to bottom");
    fv_text_printf(out, "<g transform=\"translate(%d %d) scale(%.6f)\" shape-rendering=\"crispEdges\">\n", LEFT, TOP,
                   (double)SIDE / (double)panel->n);
    for (int level = 0; level <= LEVELS; level++)
        add_runs(out, panel, level);
    fv_text_printf(out, "</g>\n");
    if (p->weighed) {
        int left = LEFT + SIDE + GAP;
        fv_text_printf(out,
                       "<text x=\"%d\" y=\"58\">attention: dark 1/100 of an even share, bright 100 times</text>"
                       "<image x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" "
                       "style=\"image-rendering:pixelated\" href=\"",
                       left, left, TOP, SIDE, SIDE);
        add_image(out, panel, true);
        fv_text_printf(out, "\"/>\n");
    }
    fv_text_printf(out, "</svg>\n");
}

fv_status app_picture_svg(const app_picture *p, int64_t head, const char *title, const char *words, const char *path)
{
    struct panel panel;
    fv_text out = {0};
    fv_status status = panel_of(p, head, p->cells, &panel);

    if (status == FV_OK) {
        add_svg(&out, p, &panel, title, words);
        status = write_file(path, &out);
    }
    fv_text_free(&out);
    panel_free(&panel);
    return status;
}
