/* What the verbs share: the context, words and progress on standard error, JSON on standard output, tensors from and
 * to files. */
#ifndef APP_APP_H
#define APP_APP_H

#include <jansson.h>

#include "app/cli.h"
#include "app/measure.h"
#include "base/param.h"
#include "fovea/fovea.h"
#include "models/safetensors.h"

struct app {
    const cli_verb *verb;
    const cli_common *common;
    fv_ctx *ctx; /* made by app_begin */
};

/* ---- context and interruption (main.c) --------------------------------------------------------------------------- */

/* Makes the context that --threads, --device and --seed ask for.  FV_E_USAGE for an unknown device. */
fv_status app_begin(struct app *app, fv_precision precision);
/* FV_E_INTERRUPTED after Ctrl-C; for loops of the command's own. */
fv_status app_check(void);
/* Forgets a Ctrl-C: a chat goes on after one. */
void app_forget_interrupt(struct app *app);
/* What was printed goes out now; false if it could not, which main tells at the end. */
bool app_flush(void);

/* Minutes of work should not end at a file that cannot be written: FV_E_IO now (path NULL: no file is wanted). */
fv_status app_file_try(const char *path);
/* A file without a name, for what would be too much for memory.  FV_E_IO. */
fv_status app_file_unnamed(FILE **file);

/* ---- words (progress.c) ------------------------------------------------------------------------------------------ */

/* One line of words on standard error, unless --quiet. */
void app_say(const struct app *app, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* What the session's cache policies have to say about their options. */
void app_warn(const struct app *app, const fv_session *session);
/* The library's progress callback: a bar on a terminal, a line now and then elsewhere.  user is the app. */
void app_progress(void *user, const char *what, double fraction);
/* Takes the bar away before other words. */
void app_progress_end(void);

/* ---- JSON (json.c) ----------------------------------------------------------------------------------------------- */

/* Sets a field; a failure (memory) is remembered for app_json_print. */
void app_put(json_t *object, const char *key, json_t *value);
void app_append(json_t *array, json_t *value);
json_t *app_number(double value); /* null for what is no number */
/* Bytes as JSON text; what is not UTF-8 becomes U+FFFD. */
json_t *app_text(const char *bytes, size_t length);
json_t *app_ids(const int32_t *ids, int64_t count);
/* Prints and releases.  FV_E_MEMORY if any part could not be made. */
fv_status app_json_print(json_t *root);
/* Writes a file and releases, whatever happens.  FV_E_IO, FV_E_MEMORY. */
fv_status app_json_write(json_t *root, const char *path);

/* ---- tensors in files (tensors.c) -------------------------------------------------------------------------------- */

/* A tensor with its own memory, from fv_alloc. */
typedef struct app_tensor {
    fv_tensor t;
    void *owned;
} app_tensor;

/* Reads numbers as f32.  FV_E_DTYPE for integers, which are no numbers to compute with here. */
fv_status app_tensor_read(const char *path, app_tensor *tensor);
/* The same as f32, or as i32 or u8 of a file of any integers that fit. */
fv_status app_tensor_read_as(const char *path, fv_dtype dtype, app_tensor *tensor);
/* The same of a tensor that was read as it is stored, which is taken over; sentences do not say where it was. */
fv_status app_tensor_as(app_tensor *stored, fv_dtype dtype, app_tensor *tensor);
fv_status app_tensor_new(app_tensor *tensor, fv_dtype dtype, int rank, const int64_t *dims);
void app_tensor_free(app_tensor *tensor);
void app_round_bf16(app_tensor *tensor);

/* ---- tensors that flags name (named.c) --------------------------------------------------------------------------- */

typedef struct app_place {
    char *name;
    const char *file; /* NULL: it is in the bundle */
    void *memory;     /* of the tensor, from fv_alloc */
} app_place;

/* Tensors of a flag that repeats, NAME=FILE. */
typedef struct app_named {
    const char *flag; /* "param" */
    int count;
    fv_named_tensor *named; /* [count], as the library takes them; absent until they are read or made */
    app_place *places;      /* [count] */
    int64_t named_room, places_room;
    const char *bundle; /* of weights=FILE, which holds tensors by their names; NULL: none.  What is written is written
                           there too */
    fv_safetensors *weights; /* what is read of it */
} app_named;

/* Takes the flag's values apart.  With a table in which nothing has that name, weights=FILE.safetensors is a bundle.
 * FV_E_USAGE for what is no NAME=FILE, or a name given twice. */
fv_status app_named_begin(const char *flag, const cli_texts *texts, const fv_param *table, app_named *named);
void app_named_free(app_named *named);
/* Opens a bundle and adds the names in it.  FV_E_FORMAT for one that the owner's table has not, FV_E_USAGE for one that
 * is given otherwise. */
fv_status app_named_open(const char *owner, const fv_param *table, app_named *named);
/* Reads the files as what the table says; names were checked. */
fv_status app_named_read(const fv_param *table, app_named *named);
/* Makes tensor i, of a shape without data. */
fv_status app_named_make(app_named *named, int i, const fv_tensor *shape);
/* FV_E_USAGE for a name that the owner's table has not, or, where gradients are named, for what has none. */
fv_status app_named_check(const char *owner, const char *what, const fv_param *table, const app_named *named,
                          bool gradients);
/* Names of gradients of what was given: FV_E_USAGE for others, and for what has none; to a bundle, adds all there are.
 */
fv_status app_named_match(const char *owner, const fv_param *table, const app_named *given, app_named *named);
/* Makes gradients, of the shapes of what was given. */
fv_status app_named_like(const app_named *given, app_named *named);
/* Whether the files can be written, as app_file_try. */
fv_status app_named_try(const app_named *named);
fv_status app_named_write(const app_named *named);

/* ---- numbers for people (table.c) -------------------------------------------------------------------------------- */

/* A number as words of at most 47 bytes, in a ring of buffers that the next functions use too. */
const char *app_words(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* "1.23 GB", "12.3 k": three digits and a unit. */
const char *app_bytes_text(double bytes);
const char *app_count_text(double count);

/* A table: columns as wide as their widest cell, the first row a heading. */
typedef struct app_table {
    int columns;
    const bool *left;        /* [columns]: set to the left; otherwise to the right */
    int64_t count, capacity; /* of cells, row by row */
    char **cells;
    fv_status status;
} app_table;

void app_table_cell(app_table *table, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* Prints and releases. */
fv_status app_table_print(app_table *table, FILE *stream);
void app_table_free(app_table *table);

#endif
