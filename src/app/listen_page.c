/* What probes heard, as sections of a page: a map by layer and head, curves along the text, keys with their text. */
#include <math.h>
#include <string.h>

#include "app/heat.h"
#include "app/listen.h"
#include "app/page.h"
#include "app/plot.h"
#include "base/memory.h"

/* Layers are told apart as those nearest to the text, those in the middle and the last. */
enum { PARTS = 3 };
static const char *const part_names[PARTS] = {"first", "middle", "last"};
static const int part_colours[PARTS] = {2, 3, 1};

static int64_t part_from(const fv_probing *p, int part)
{
    return part * p->layers / PARTS;
}

/* The fields' words need to know which field it is, a callback of numbers does not. */
static const char *in_share(double value)
{
    return listen_words(&(fv_probe_field){.unit = ""}, value);
}

static const char *in_units(double value)
{
    return listen_words(&(fv_probe_field){.unit = "some"}, value);
}

static const char *(*words_of(const fv_probe_field *field))(double value)
{
    return *field->unit ? in_units : in_share;
}

/* ---- maps ------------------------------------------------------------------------------------------------------- */

/* "Entropy, nats" */
static void draw_map(fv_text *out, const fv_probing *p, int field)
{
    const fv_probe_field *own = &p->probe->fields[field];
    char title[96];
    double *value = NULL;

    if (out->status == FV_OK) out->status = FV_ALLOC(value, p->layers * p->heads);
    if (out->status != FV_OK) return;
    for (int64_t n = 0; n < p->layers * p->heads; n++)
        value[n] = fv_probing_value(p, field, n / p->heads, n % p->heads);
    snprintf(title, sizeof title, "%s%s%s", own->title, *own->unit ? ", " : "", own->unit);
    heat_draw(out, &(heat_map){.title = title,
                               .help = own->help,
                               .row = "layer",
                               .column = "head",
                               .axes = "layers down, heads across",
                               .rows = p->layers,
                               .columns = p->heads,
                               .value = value,
                               .words = words_of(own)});
    fv_free(value);
}

/* ---- curves ----------------------------------------------------------------------------------------------------- */

static void draw_tick(fv_text *out, const plot_axes *axes, double x)
{
    char words[48];

    snprintf(words, sizeof words, "%.0f", x);
    plot_tick(out, axes, x, words);
}

static void draw_key(fv_text *out, const fv_probing *p)
{
    fv_text_printf(out, "<div class=\"axis keys\">");
    for (int part = 0; part < PARTS && p->layers >= PARTS; part++)
        fv_text_printf(out, "<span><i class=\"key s%d\"></i>%s layers, %lld to %lld</span>", part_colours[part],
                       part_names[part], (long long)part_from(p, part), (long long)part_from(p, part + 1) - 1);
    fv_text_printf(out, "</div></figure>\n");
}

/* Lines [PARTS, count] along the text; on decades where `decades`, otherwise from 0. */
static void draw_lines(fv_text *out, const fv_probing *p, int64_t count, const double *x, const double *y, bool decades,
                       const char *(*words)(double value))
{
    double most = 0;
    plot_axes axes;

    for (int64_t i = 0; i < PARTS * count; i++)
        if (y[i] > most) most = y[i];
    axes = plot_even_of((double)p->tokens, words == in_share ? fmin(most, 1) : most);
    if (decades) {
        axes.even_y = false;
        axes.from_y = INFINITY, axes.to_y = 0;
        for (int64_t i = 0; i < PARTS * count; i++)
            if (y[i] > 0) plot_cover(&axes, y[i]);
    }
    plot_begin(out, "along the text");
    plot_mesh(out, &axes, words);
    draw_tick(out, &axes, 0);
    draw_tick(out, &axes, round((double)p->tokens / 2));
    draw_tick(out, &axes, (double)p->tokens);
    for (int part = 0; part < PARTS; part++)
        if (!isnan(y[part * count])) plot_line(out, &axes, count, x, y + part * count, part_colours[part]);
    plot_end(out);
    draw_key(out, p);
}

/* The mean of a bin over the heads of some layers (of a most, the most). */
static double of_part(const fv_probing *p, int field, int part, int64_t bin)
{
    double sum = 0, most = NAN;
    int64_t count = 0;

    for (int64_t l = part_from(p, part); l < part_from(p, part + 1); l++)
        for (int64_t h = 0; h < p->heads; h++) {
            double value = fv_probing_bin(p, field, l, h, bin);
            if (isnan(value)) continue;
            sum += value;
            most = fmax(most, value);
            count++;
        }
    return p->probe->fields[field].most ? most : count > 0 ? sum / (double)count : NAN;
}

static void draw_curves(fv_text *out, const fv_probing *p, int field)
{
    const fv_probe_field *own = &p->probe->fields[field];
    double *x = NULL, *y;

    if (out->status == FV_OK) out->status = FV_ALLOC(x, (PARTS + 1) * p->bins);
    if (out->status != FV_OK) return;
    y = x + p->bins;
    for (int64_t bin = 0; bin < p->bins; bin++) {
        x[bin] = ((double)bin + 0.5) / (double)p->bins * (double)p->tokens;
        for (int part = 0; part < PARTS; part++)
            y[part * p->bins + bin] = of_part(p, field, part, bin);
    }
    fv_text_printf(out,
                   "<figure><figcaption><b>%s along the text</b> <span>%s%sby the token that reads; %s over heads"
                   "</span></figcaption>",
                   own->title, own->unit, *own->unit ? "; " : "", own->most ? "the most" : "mean");
    draw_lines(out, p, p->bins, x, y, false, words_of(own));
    fv_free(x);
}

/* ---- keys ------------------------------------------------------------------------------------------------------- */

enum { STRETCHES = 64 };

/* How much of all attention each stretch of the text gets. */
static void draw_received(fv_text *out, const fv_probing *p)
{
    int64_t count = fv_min(STRETCHES, p->tokens);
    double x[STRETCHES], y[PARTS * STRETCHES], heads[PARTS] = {0};

    for (int64_t i = 0; i < PARTS * count; i++)
        y[i] = 0;
    for (int64_t i = 0; i < count; i++)
        x[i] = ((double)i + 0.5) / (double)count * (double)p->tokens;
    for (int part = 0; part < PARTS; part++) {
        for (int64_t n = part_from(p, part) * p->heads; n < part_from(p, part + 1) * p->heads; n++) {
            const float *share = p->columns + n * p->tokens;
            if (isnan(share[0])) continue;
            heads[part]++;
            for (int64_t j = 0; j < p->tokens; j++)
                y[part * count + j * count / p->tokens] += (double)share[j];
        }
        for (int64_t i = 0; i < count; i++)
            y[part * count + i] = heads[part] > 0 ? fmax(y[part * count + i] / heads[part], 1e-9) : NAN;
    }
    fv_text_printf(
        out,
        "<figure><figcaption><b>Attention received along the text</b> <span>share of all attention that each "
        "of %lld stretches gets; mean over heads</span></figcaption>",
        (long long)count);
    draw_lines(out, p, count, x, y, true, in_share);
}

/* A token, with some of the text around where it stands. */
static void write_place(fv_text *out, const probe_task *task, const app_prompt *prompt, int64_t position)
{
    enum { AROUND = 24 };
    size_t length, from, to, at = position > 0 ? (size_t)prompt->ends[position - 1] : 0;
    size_t end = (size_t)prompt->ends[position];
    const char *token = listen_token(task, prompt, position, &length);

    from = at > AROUND ? at - AROUND : 0;
    while (from < at && (prompt->text[from] & 0xc0) == 0x80)
        from++;
    to = (size_t)fv_min((int64_t)(end + AROUND), (int64_t)prompt->length);
    while (to < prompt->length && (prompt->text[to] & 0xc0) == 0x80)
        to++;
    page_escape(out, prompt->text + from, at - from);
    fv_text_printf(out, "<mark>");
    page_escape(out, token, length);
    fv_text_printf(out, "</mark>");
    page_escape(out, prompt->text + end, to - end);
}

static void write_keys(fv_text *out, const probe_task *task, const fv_probing *p, const app_prompt *prompt)
{
    enum { MOST = 12 };
    listen_key keys[MOST];
    int64_t count = listen_keys(p, keys, MOST);

    fv_text_printf(out,
                   "<div class=\"wide below\"><table><thead><tr><th>Key</th><th>Attention<small>mean over heads</small>"
                   "</th><th>Top key of<small>heads</small></th><th class=\"text\">In the text</th></tr></thead>"
                   "<tbody>\n");
    for (int64_t n = 0; n < count; n++) {
        fv_text_printf(out, "<tr><td>%lld</td><td>%s</td><td>%lld</td><td class=\"text\">", (long long)keys[n].position,
                       in_share(keys[n].share), (long long)keys[n].heads);
        write_place(out, task, prompt, keys[n].position);
        fv_text_printf(out, "</td></tr>\n");
    }
    fv_text_printf(out, "</tbody></table></div>\n");
}

/* ---- numbers of layers ------------------------------------------------------------------------------------------ */

/* A bar for each layer that was looked at. */
static void draw_layers(fv_text *out, const fv_probing *p, int field)
{
    const fv_probe_field *own = &p->probe->fields[field];
    double most = 0, height, top = 0;
    int64_t rows = 0;

    for (int64_t l = 0; l < p->layers; l++) {
        double value = fv_probing_value(p, field, l, -1);
        most = fmax(most, value);
        rows += !isnan(value);
    }
    height = fmin(fmax(330 / (double)fv_max(rows, 1), 6), 18);
    fv_text_printf(out,
                   "<figure><figcaption><b>%s%s%s</b> <span>%s</span></figcaption><svg viewBox=\"0 0 %d %.0f\" "
                   "role=\"img\" aria-label=\"%s by layer\">",
                   own->title, *own->unit ? ", " : "", own->unit, own->help, PAGE_WIDTH, height * (double)rows,
                   own->title);
    for (int64_t l = 0; l < p->layers; l++) {
        double value = fv_probing_value(p, field, l, -1), width = most > 0 ? value / most * (PAGE_WIDTH - 26) : 0;
        if (isnan(value)) continue;
        if (height >= 10 || l % 5 == 0)
            fv_text_printf(out, "<text class=\"tick end\" x=\"20\" y=\"%.1f\">%lld</text>", top + height / 2 + 4,
                           (long long)l);
        fv_text_printf(out,
                       "<rect class=\"rail\" x=\"26\" y=\"%.1f\" width=\"%d\" height=\"%.1f\"/><rect class=\"s1\" "
                       "x=\"26\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>layer %lld: %s</title></rect>",
                       top + 1, PAGE_WIDTH - 26, height - 2, top + 1, fmax(width, 0), height - 2, (long long)l,
                       listen_words(own, value));
        top += height;
    }
    fv_text_printf(out, "</svg><div class=\"axis\"><span>layers down</span><span>most: %s</span></div></figure>\n",
                   listen_words(own, most));
}

/* ---- a section -------------------------------------------------------------------------------------------------- */

/* A map and a curve side by side. */
static void write_field(fv_text *out, const fv_probing *p, int field)
{
    fv_text_printf(out, "<div class=\"grid rows\">\n");
    draw_map(out, p, field);
    if (p->bins > 1) draw_curves(out, p, field);
    if (p->columns) draw_received(out, p);
    fv_text_printf(out, "</div>\n");
}

/* "sink_mass:sink=4,recent=64": options of its own, and parts that were chosen. */
static void write_spec(fv_text *out, const fv_probing *p)
{
    const char *separator = ":";

    fv_text_printf(out, "<code>%s", p->probe->name);
    for (const fv_option *o = p->probe->options; o->name; o++) {
        bool common = o->offset < sizeof(fv_probe_common), list = o->type == FV_OPTION_LIST;
        if (common && !(list && ((const fv_list *)((const char *)p->options + o->offset))->items[0] >= 0)) continue;
        fv_text_printf(out, "%s%s=", separator, o->name);
        fv_option_print(o, p->options, out);
        separator = ",";
    }
    fv_text_printf(out, "</code>");
}

void listen_page(fv_text *out, const probe_task *task, const fv_probing *p, const app_prompt *prompt)
{
    bool by_layer = (p->probe->wants & FV_PROBE_BY_LAYER) != 0;

    fv_text_printf(out, "<h2>%s</h2><p>", p->probe->title);
    write_spec(out, p);
    fv_text_printf(out, " over the first %lld tokens: ", (long long)p->tokens);
    page_escape(out, p->probe->finds, strlen(p->probe->finds));
    fv_text_printf(out, ".</p>%s\n", by_layer ? "<div class=\"grid\">" : "");
    for (int field = 0; p->probe->fields[field].name; field++)
        (by_layer ? draw_layers : write_field)(out, p, field);
    if (by_layer) fv_text_printf(out, "</div>\n");
    if (p->key) write_keys(out, task, p, prompt);
}
