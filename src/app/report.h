/* Parts of the report. */
#ifndef APP_REPORT_H
#define APP_REPORT_H

#include "app/compare.h"

/* A PNG of palette indices (0 is transparent) as a data: URI. */
void report_png(fv_text *out, int64_t width, int64_t height, const uint8_t *pixels, const uint8_t palette[256][3]);

/* One chart of a column: a bar for each set-up, as inline SVG. */
void report_chart(fv_text *out, const comparison *comparison, const compare_column *column);

/* Which keys each head read under one set-up. */
void report_reads(fv_text *out, const comparison *comparison, const compare_run *run);

#endif
