#include "app/app.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

#include "base/memory.h"

const char *app_words(const char *format, ...)
{
    static _Thread_local char ring[16][48];
    static _Thread_local unsigned next;
    char *text = ring[next++ % 16];
    va_list list;

    va_start(list, format);
    vsnprintf(text, sizeof ring[0], format, list);
    va_end(list);
    return text;
}

static const char *with_unit(double value, double step, const char *const *units, int count)
{
    int unit = 0;

    while (fabs(value) >= step && unit + 1 < count) {
        value /= step;
        unit++;
    }
    return app_words("%.*f%s%s",
                     unit == 0 || value >= 99.95 ? 0
                     : value >= 9.995            ? 1
                                                 : 2,
                     value, *units[unit] ? " " : "", units[unit]);
}

const char *app_bytes_text(double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};

    return with_unit(bytes, 1024, units, 5);
}

const char *app_count_text(double count)
{
    static const char *const units[] = {"", "k", "M", "G", "T", "P"};

    return with_unit(count, 1000, units, 6);
}

/* ---- tables ---------------------------------------------------------------------------------------------------- */

void app_table_cell(app_table *table, const char *format, ...)
{
    char words[1024];
    va_list arguments;
    char *cell;

    if (table->status != FV_OK) return;
    va_start(arguments, format);
    vsnprintf(words, sizeof words, format, arguments);
    va_end(arguments);
    table->status = FV_GROW(table->cells, table->capacity, table->count + 1);
    if (table->status == FV_OK) table->status = FV_ALLOC(cell, (int64_t)strlen(words) + 1);
    if (table->status != FV_OK) return;
    strcpy(cell, words);
    table->cells[table->count++] = cell;
}

/* Columns on a terminal: characters, not bytes. */
static int width(const char *text)
{
    int count = 0;

    for (; *text; text++)
        count += (*text & 0xc0) != 0x80;
    return count;
}

fv_status app_table_print(app_table *table, FILE *stream)
{
    fv_status status = table->status;

    for (int64_t i = 0; status == FV_OK && i < table->count; i++) {
        int column = (int)(i % table->columns), widest = 0, own = width(table->cells[i]);
        bool last = column + 1 == table->columns;
        for (int64_t other = column; other < table->count; other += table->columns)
            widest = (int)fv_max(widest, width(table->cells[other]));
        int space = widest - own;
        if (!table->left[column]) fprintf(stream, "%*s", space, "");
        fputs(table->cells[i], stream);
        if (table->left[column] && !last) fprintf(stream, "%*s", space, "");
        fputs(last ? "\n" : "  ", stream);
    }
    app_table_free(table);
    return status;
}

void app_table_free(app_table *table)
{
    for (int64_t i = 0; i < table->count; i++)
        fv_free(table->cells[i]);
    fv_free(table->cells);
    *table = (app_table){0};
}
