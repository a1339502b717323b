/* Parts of the report. */
#ifndef APP_REPORT_H
#define APP_REPORT_H

#include "app/compare.h"

/* One chart of a column: a bar for each set-up, as inline SVG. */
void report_chart(fv_text *out, const comparison *comparison, const compare_column *column);

/* Which keys each head read under one set-up. */
void report_reads(fv_text *out, const comparison *comparison, const compare_run *run);

#endif
