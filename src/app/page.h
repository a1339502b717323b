/* HTML pages that need nothing else: one file, in light and dark, on wide screens and phones. */
#ifndef APP_PAGE_H
#define APP_PAGE_H

#include "base/text.h"

/* Everything before the first heading. */
void page_begin(fv_text *out, const char *title);
/* Ends the page, writes it under `path` and releases it, whatever happens.  FV_E_IO, FV_E_MEMORY. */
fv_status page_write(fv_text *out, const char *path);

/* Text from files and models, safe between tags and in attributes. */
void page_escape(fv_text *out, const char *bytes, size_t length);

/* Charts of bars are figures of this many units across, scaled to the page; a bar takes so many down. */
enum { PAGE_WIDTH = 360, PAGE_ROW = 40 };

/* Bar number `row` of a chart: a name, a value in words, and a share of 0 to 1 of the width, in one of six colours. */
void page_bar(fv_text *out, int row, const char *name, const char *value, double share, int colour);

#endif
