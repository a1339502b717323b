/* What each known template writes for a system message, a user message and the start of the answer. */
#define _GNU_SOURCE /* memmem */
#include "models/chat.h"

#include <string.h>

#include "base/memory.h"
#include "base/text.h"

#define EOS "\1" /* stands for the end token's text */
#define BOS "\2" /* and for the begin token's, where the template writes it */

struct form {
    const char *name;
    bool folded; /* the system message is part of the user's turn */
    const char *system_open, *system_close, *user_open, *user_close, *answer_open, *answer_close;
    const char *answer_lead; /* before an answer that is read, not written: models of these begin theirs so */
    const char *tool_open;   /* NULL: a tool's turn is a user's */
};

enum { CHATML, PHI4, LLAMA2, LLAMA2_PLAIN, LLAMA3, GEMMA, MISTRAL_1, MISTRAL_3, MISTRAL_TEKKEN, ZEPHYR, PHI3, FORMS };

static const struct form forms[FORMS] = {
    [CHATML] = {"chatml", false, "<|im_start|>system\n", "<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n",
                "<|im_start|>assistant\n", "<|im_end|>\n", "", "<|im_start|>tool\n"},
    [PHI4] = {"phi", false, "<|im_start|>system<|im_sep|>", "<|im_end|>", "<|im_start|>user<|im_sep|>", "<|im_end|>",
              "<|im_start|>assistant<|im_sep|>", "<|im_end|>", "", NULL},
    [LLAMA2] = {"llama2", true, "<<SYS>>\n", "\n<</SYS>>\n\n", "[INST] ", " [/INST]", "", EOS BOS, "", NULL},
    [LLAMA2_PLAIN] = {"llama2", true, "", "\n\n", "[INST] ", " [/INST]", "", EOS BOS, "", NULL},
    [LLAMA3] = {"llama3", false, "<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>",
                "<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>",
                "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", "",
                "<|start_header_id|>ipython<|end_header_id|>\n\n"},
    [GEMMA] = {"gemma", true, "", "\n\n", "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n",
               "<end_of_turn>\n", "", NULL},
    [MISTRAL_1] = {"mistral", true, "", "\n\n", " [INST] ", " [/INST]", "", EOS, " ", NULL},
    [MISTRAL_3] = {"mistral", true, "", "\n\n", "[INST] ", "[/INST]", "", EOS, " ", NULL},
    [MISTRAL_TEKKEN] = {"mistral", true, "", "\n\n", "[INST]", "[/INST]", "", EOS, "", NULL},
    [ZEPHYR] = {"zephyr", false, "<|system|>\n", EOS "\n", "<|user|>\n", EOS "\n", "<|assistant|>\n", EOS "\n", "",
                NULL},
    [PHI3] = {"phi", false, "<|system|>\n", "<|end|>\n", "<|user|>\n", "<|end|>\n", "<|assistant|>\n", "<|end|>\n", "",
              NULL},
};

/* ---- recognising ------------------------------------------------------------------------------------------------ */

static const char *find(fv_gguf_text text, const char *words)
{
    return memmem(text.data, (size_t)text.length, words, strlen(words));
}

static bool has(fv_gguf_text text, const char *words)
{
    return find(text, words) != NULL;
}

static int recognise_inst(fv_gguf_text jinja)
{
    if (has(jinja, "[SYSTEM_PROMPT]")) return -1;
    if (!has(jinja, "' [INST] ' + system_message") && !has(jinja, "[AVAILABLE_TOOLS]"))
        return has(jinja, "<<SYS>>") ? LLAMA2 : LLAMA2_PLAIN;
    if (has(jinja, " [INST]")) return MISTRAL_1;
    return has(jinja, "\"[INST]\"") ? MISTRAL_TEKKEN : MISTRAL_3;
}

static int recognise(fv_gguf_text jinja)
{
    if (has(jinja, "<|im_start|>"))
        return has(jinja, "<|im_sep|>") ? PHI4 : has(jinja, "<end_of_utterance>") ? -1 : CHATML;
    if (has(jinja, "[INST]")) return recognise_inst(jinja);
    if (has(jinja, "<|start_header_id|>") && has(jinja, "<|end_header_id|>")) return LLAMA3;
    if (has(jinja, "<start_of_turn>")) return GEMMA;
    if (!has(jinja, "<|user|>") || !has(jinja, "<|assistant|>")) return -1;
    if (has(jinja, "<|end|>")) return PHI3;
    return has(jinja, "+ eos_token") || has(jinja, "<|endoftext|>") ? ZEPHYR : -1;
}

/* Does the template trim messages?  `content'] | trim`, `content|trim`, `content.strip()` and their kin. */
static bool trims(fv_gguf_text jinja)
{
    const char *end = jinja.data + jinja.length;

    for (const char *at = jinja.data; (at = memmem(at, (size_t)(end - at), "content", 7));) {
        at += 7;
        const char *next = at;
        while (next < end && strchr("'\"] ", *next) && *next)
            next++;
        fv_gguf_text rest = {next, end - next};
        if (rest.length >= 8 && memcmp(rest.data, ".strip()", 8) == 0) return true;
        if (rest.length == 0 || *rest.data != '|') continue;
        for (next++; next < end && *next == ' ';)
            next++;
        if (end - next >= 4 && memcmp(next, "trim", 4) == 0) return true;
    }
    return false;
}

/* Reads a Jinja string literal that starts at *at (a quote) and moves *at behind it; false: it has no end. */
static bool read_literal(fv_gguf_text jinja, const char **at, fv_text *out)
{
    const char *end = jinja.data + jinja.length, quote = **at;

    out->length = 0;
    for (const char *c = *at + 1; c < end; c++) {
        char byte = *c;
        if (byte == quote) {
            *at = c + 1;
            return true;
        }
        if (byte == '\\' && c + 1 < end) {
            byte = *++c;
            byte = byte == 'n' ? '\n' : byte == 't' ? '\t' : byte == 'r' ? '\r' : byte;
        }
        fv_text_add(out, &byte, 1);
    }
    return false;
}

/* The system message a chatml template writes when it is given none: the one literal that is a whole system turn. */
static void default_system(fv_gguf_text jinja, const struct form *form, fv_text *system)
{
    int64_t open = (int64_t)strlen(form->system_open), close = (int64_t)strlen(form->system_close);
    const char *end = jinja.data + jinja.length, *at = jinja.data;
    fv_text literal = {0};

    while (at < end && fv_text_status(&literal) == FV_OK) {
        bool inside = at + 1 < end && at[0] == '{' && (at[1] == '{' || at[1] == '%');
        if (!inside) {
            at++;
            continue;
        }
        for (at += 2; at < end && !(at + 1 < end && (*at == '}' || *at == '%') && at[1] == '}');) {
            if (*at != '\'' && *at != '"') {
                at++;
                continue;
            }
            if (!read_literal(jinja, &at, &literal)) {
                at = end;
                break;
            }
            if (literal.length > open + close && memcmp(literal.data, form->system_open, (size_t)open) == 0 &&
                memcmp(literal.data + literal.length - close, form->system_close, (size_t)close) == 0) {
                fv_text_add(system, literal.data + open, literal.length - open - close);
                at = end;
            }
        }
    }
    if (fv_text_status(&literal) != FV_OK) system->status = fv_text_status(&literal);
    fv_text_free(&literal);
}

/* ---- writing ---------------------------------------------------------------------------------------------------- */

static void write_token(fv_text *out, const fv_tokenizer *tokenizer, int32_t id)
{
    const char *bytes;
    size_t length;

    if (id >= 0 && fv_tokenizer_piece(tokenizer, id, &bytes, &length) == FV_OK)
        fv_text_add(out, bytes, (int64_t)length);
}

static void write_form(fv_text *out, const char *form, fv_gguf_text jinja, const fv_tokenizer *tokenizer)
{
    for (; *form; form++) {
        if (*form == *BOS)
            write_token(out, tokenizer, has(jinja, "bos_token") ? fv_tokenizer_begin(tokenizer) : -1);
        else if (*form != *EOS)
            fv_text_add(out, form, 1);
        else if (has(jinja, "<|endoftext|>"))
            fv_text_add(out, "<|endoftext|>", 13);
        else
            write_token(out, tokenizer, fv_tokenizer_end(tokenizer));
    }
}

static void write_message(fv_text *out, const char *message, bool trimmed)
{
    size_t length = strlen(message), skip = trimmed ? strspn(message, " \t\r\n\v\f") : 0;

    while (trimmed && length > skip && strchr(" \t\r\n\v\f", message[length - 1]))
        length--;
    fv_text_add(out, message + skip, (int64_t)(length - skip));
}

static fv_status find_form(const char *where, fv_gguf_text jinja, const struct form **form)
{
    int kind = recognise(jinja);

    if (kind < 0)
        return fv_fail(
            FV_E_UNSUPPORTED,
            "%s: the chat template is none of those we know (chatml, llama2, llama3, gemma, mistral, zephyr, "
            "phi): give the prompt as the model expects it, with --raw",
            where);
    *form = &forms[kind];
    return FV_OK;
}

static fv_status hand_over(fv_text *out, char **text, size_t *length)
{
    fv_status status = fv_text_status(out);

    if (status != FV_OK) {
        fv_text_free(out);
        return status;
    }
    *text = out->data;
    *length = (size_t)out->length;
    return FV_OK;
}

/* A conversation on its way to text. */
struct chat {
    const struct form *form;
    fv_gguf_text jinja;
    const fv_tokenizer *tokenizer;
    bool trimmed;
    fv_text out, held; /* held: system messages that wait for the next turn of a user */
    int64_t user_at;   /* where the last user's own text starts */
};

static void write_words(struct chat *chat, const char *form)
{
    write_form(&chat->out, form, chat->jinja, chat->tokenizer);
}

static void write_system(struct chat *chat, const char *content, bool trimmed)
{
    const struct form *form = chat->form;

    if (form->folded) {
        if (chat->held.length) fv_text_add(&chat->held, "\n\n", 2);
        write_message(&chat->held, content, trimmed);
        return;
    }
    write_words(chat, form->system_open);
    write_message(&chat->out, content, trimmed);
    write_words(chat, form->system_close);
}

/* `content` NULL: a turn for system messages alone. */
static void write_user(struct chat *chat, const char *content)
{
    write_words(chat, chat->form->user_open);
    if (chat->held.length) {
        write_words(chat, chat->form->system_open);
        fv_text_add(&chat->out, fv_text_get(&chat->held), chat->held.length);
        write_words(chat, chat->form->system_close);
        chat->held.length = 0;
    }
    chat->user_at = chat->out.length;
    if (content) write_message(&chat->out, content, chat->trimmed);
    write_words(chat, chat->form->user_close);
}

static void write_tool(struct chat *chat, const char *content)
{
    static const char response[] = "<tool_response>"; /* chatml of the Qwen family: part of a user's turn */
    bool wrapped = chat->form == &forms[CHATML] && has(chat->jinja, response);

    if (!chat->form->tool_open) {
        write_user(chat, content);
        return;
    }
    write_words(chat, wrapped ? chat->form->user_open : chat->form->tool_open);
    if (wrapped) fv_text_printf(&chat->out, "%s\n", response);
    write_message(&chat->out, content, chat->trimmed);
    if (wrapped) fv_text_printf(&chat->out, "\n</tool_response>");
    write_words(chat, chat->form->user_close);
}

static void write_turn(struct chat *chat, const fv_chat_message *message)
{
    if (message->role == FV_CHAT_SYSTEM) {
        write_system(chat, message->content, chat->trimmed);
    } else if (message->role == FV_CHAT_USER) {
        write_user(chat, message->content);
    } else if (message->role == FV_CHAT_TOOL) {
        write_tool(chat, message->content);
    } else {
        if (chat->held.length) write_user(chat, NULL);
        write_words(chat, chat->form->answer_open);
        write_words(chat, chat->form->answer_lead);
        write_message(&chat->out, message->content, chat->trimmed);
        write_words(chat, chat->form->answer_close);
    }
}

static fv_status write_chat(const char *where, struct chat *chat, const fv_chat_message *messages, int64_t count)
{
    fv_text own = {0};

    FV_TRY(find_form(where, chat->jinja, &chat->form));
    chat->trimmed = trims(chat->jinja);
    if (has(chat->jinja, "bos_token") && !fv_tokenizer_adds_begin(chat->tokenizer))
        write_token(&chat->out, chat->tokenizer, fv_tokenizer_begin(chat->tokenizer));
    if (chat->form == &forms[CHATML] && (count == 0 || messages[0].role != FV_CHAT_SYSTEM))
        default_system(chat->jinja, chat->form, &own);
    if (own.length) write_system(chat, own.data, false);
    for (int64_t i = 0; i < count; i++)
        write_turn(chat, &messages[i]);
    if (chat->held.length) write_user(chat, NULL);
    write_words(chat, chat->form->answer_open);
    if (own.status != FV_OK) chat->out.status = own.status;
    if (chat->held.status != FV_OK) chat->out.status = chat->held.status;
    fv_text_free(&own);
    fv_text_free(&chat->held);
    return FV_OK;
}

fv_status fv_chat_messages(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer,
                           const fv_chat_message *messages, int64_t count, char **text, size_t *length)
{
    struct chat chat = {.jinja = jinja, .tokenizer = tokenizer};

    *text = NULL;
    FV_TRY(write_chat(where, &chat, messages, count));
    return hand_over(&chat.out, text, length);
}

fv_status fv_chat_render(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer, const char *system,
                         const char *user, char **text, size_t *length, size_t *user_at)
{
    const fv_chat_message messages[] = {{FV_CHAT_SYSTEM, system}, {FV_CHAT_USER, user}};
    struct chat chat = {.jinja = jinja, .tokenizer = tokenizer};

    *text = NULL;
    FV_TRY(write_chat(where, &chat, messages + !system, 2 - !system));
    *user_at = (size_t)chat.user_at;
    return hand_over(&chat.out, text, length);
}

fv_status fv_chat_follow(const char *where, fv_gguf_text jinja, const fv_tokenizer *tokenizer, const char *user,
                         char **text, size_t *length)
{
    struct chat chat = {.jinja = jinja, .tokenizer = tokenizer};

    *text = NULL;
    FV_TRY(find_form(where, jinja, &chat.form));
    chat.trimmed = trims(jinja);
    write_words(&chat, chat.form->answer_close);
    write_user(&chat, user);
    write_words(&chat, chat.form->answer_open);
    return hand_over(&chat.out, text, length);
}
