/* Pictures of palette indices as PNG. */
#ifndef APP_PNG_H
#define APP_PNG_H

#include "base/text.h"

/* The bytes of a file, or those as a data: URI.  Index 0 is transparent. */
void png_add(fv_text *out, int64_t width, int64_t height, const uint8_t *pixels, const uint8_t palette[256][3]);
void png_uri(fv_text *out, int64_t width, int64_t height, const uint8_t *pixels, const uint8_t palette[256][3]);

#endif
