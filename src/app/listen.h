/* A reading of a text to which probes listen, and what they heard: as JSON, as words, in files, on a page. */
#ifndef APP_LISTEN_H
#define APP_LISTEN_H

#include "app/probes.h"

/* Reads as much of the text as the probes want, whose probe and options are set, and what is theirs to make. FV_E_USAGE
 * for more tokens than the model was trained for, FV_E_SHAPE for a text of one token. */
fv_status listen_read(const probe_task *task, fv_probing *probing, int count, const app_prompt *prompt);

json_t *listen_object(const probe_task *task, const fv_probing *probing, const app_prompt *prompt);
fv_status listen_print(const probe_task *task, const fv_probing *probing, const app_prompt *prompt);
/* Its option `out`; nothing where it is empty. */
fv_status listen_write(const fv_probing *probing);
/* A section of the report (listen_page.c). */
void listen_page(fv_text *out, const probe_task *task, const fv_probing *probing, const app_prompt *prompt);

/* A number of a field as people read it, in the ring of app_words. */
const char *listen_words(const fv_probe_field *field, double value);
/* The bytes of a token in the text; of one that is not in it, as that which begins it, its name. */
const char *listen_token(const probe_task *task, const app_prompt *prompt, int64_t position, size_t *length);

/* A key that many heads read. */
typedef struct listen_key {
    int64_t position, heads; /* heads: among whose most read ones it is */
    double share;            /* of attention, mean over heads */
} listen_key;
/* The `most` keys with the largest mean shares, falling; returns how many there are. */
int64_t listen_keys(const fv_probing *probing, listen_key *keys, int64_t most);

#endif
