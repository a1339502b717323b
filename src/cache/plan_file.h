/* Plan files of policies: JSON, unknown keys ignored, everything else checked.  A file is hostile. */
#ifndef FV_PLAN_FILE_H
#define FV_PLAN_FILE_H

#include <jansson.h>

#include "base/status.h"

/* A file whose top is an object; json_decref it.  FV_E_IO, FV_E_FORMAT (with line and column). */
fv_status fv_plan_file_open(const char *path, json_t **root);

/* The array under `key` (borrowed); `count` items, or any number if -1.  FV_E_FORMAT. */
fv_status fv_plan_file_array(const char *path, const json_t *root, const char *key, int64_t count,
                             const json_t **array);

/* Item `index` of an array that `where` names in sentences ("betas[3]"): an array of least..most items; a finite
 * number, or a whole one, of low..high.  FV_E_FORMAT. */
fv_status fv_plan_file_row(const char *path, const char *where, const json_t *array, int64_t index, int64_t least,
                           int64_t most, const json_t **row);
fv_status fv_plan_file_number(const char *path, const char *where, const json_t *array, int64_t index, double low,
                              double high, double *number);
fv_status fv_plan_file_integer(const char *path, const char *where, const json_t *array, int64_t index, int64_t low,
                               int64_t high, int64_t *number);

#endif
