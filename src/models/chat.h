/* Chat templates: the file's Jinja text is recognised by what is distinctive in it, not interpreted. */
#ifndef FV_CHAT_H
#define FV_CHAT_H

#include "fovea/model.h"
#include "models/tokenizer.h"

/* Renders one user message and an optional system message (NULL: the template's own default, where it has one), up to
 * where the answer starts.  The begin token is left out where the tokenizer adds it by itself; otherwise it stands in
 * the text if the template writes it.  *text is released with fv_free; *user_at is where the user's text starts in it.
 * `where` names the file.  FV_E_UNSUPPORTED for a template that is none of those we know (lists them). */
fv_status fv_chat_render(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer, const char *system,
                         const char *user, char **text, size_t *length, size_t *user_at);

/* The same for a whole conversation. */
fv_status fv_chat_messages(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer,
                           const fv_chat_message *messages, int64_t count, char **text, size_t *length);

/* A further user message of a conversation whose last answer stands there without its end: ends that answer, and goes
 * up to where the next one starts.  Tokenize without a begin token. */
fv_status fv_chat_follow(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer, const char *user,
                         char **text, size_t *length);

#endif
