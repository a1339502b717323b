#include "app/app.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static struct {
    bool drawn;
    double at;      /* when the last bar or line was written */
    double started; /* when `what` began */
    char what[80];
} bar;

void app_progress_end(void)
{
    if (bar.drawn) fputs("\r\033[K", stderr);
    bar.drawn = false;
}

void app_say(const struct app *app, const char *format, ...)
{
    va_list arguments;

    if (app->common->quiet) return;
    app_progress_end();
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

void app_warn(const struct app *app, const fv_session *session)
{
    const char *warning;

    for (int i = 0; (warning = fv_session_warning(session, i)); i++)
        app_say(app, "warning: %s", warning);
}

static void draw(const char *what, double fraction, double elapsed)
{
    enum { CELLS = 30 };
    int full = (int)(fraction * CELLS);
    char cells[CELLS + 1];

    for (int i = 0; i < CELLS; i++)
        cells[i] = i < full ? '#' : '.';
    cells[CELLS] = 0;
    fprintf(stderr, "\r%-20.40s [%s] %3.0f %%", what, cells, 100 * fraction);
    if (elapsed > 2 && fraction > 0.02) fprintf(stderr, "  %.0f s left", elapsed * (1 - fraction) / fraction);
    fputs("\033[K", stderr);
    fflush(stderr);
    bar.drawn = true;
}

void app_progress(void *user, const char *what, double fraction)
{
    const struct app *app = user;
    double now = app_seconds();
    bool terminal = isatty(STDERR_FILENO), fresh = strncmp(bar.what, what, sizeof bar.what - 1) != 0;

    if (app->common->quiet) return;
    if (fresh) {
        snprintf(bar.what, sizeof bar.what, "%s", what);
        bar.started = now;
        if (!terminal) bar.at = now; /* the first line comes when it takes long */
    }
    if (fraction >= 1) {
        app_progress_end();
        bar.what[0] = 0;
        return;
    }
    if (now - bar.at < (terminal ? 0.1 : 5)) return;
    bar.at = now;
    if (terminal)
        draw(what, fraction, now - bar.started);
    else
        fprintf(stderr, "%s: %.0f %%\n", what, 100 * fraction);
}
