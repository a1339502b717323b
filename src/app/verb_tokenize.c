/* fovea tokenize: text to ids, ids to text. */
#include <string.h>

#include "app/flags.h"
#include "app/prompt.h"
#include "app/verbs.h"
#include "base/file.h"
#include "base/memory.h"

struct values {
    cli_common common;
    const char *model, *text, *file;
    cli_ints ids;
    bool special, begin;
};

#define AT(field) offsetof(struct values, field)
static const cli_flag flags[] = {
    FLAG_MODEL(AT(model), NULL),
    {.name = "prompt", .letter = 'p', .kind = CLI_TEXT, .offset = AT(text), .argument = "TEXT", .help = "text"},
    {.name = "file",
     .letter = 'f',
     .kind = CLI_FILE,
     .offset = AT(file),
     .argument = "FILE",
     .help = "text from a file"},
    {.name = "ids",
     .kind = CLI_INTS,
     .offset = AT(ids),
     .argument = "1,2,3",
     .max = INT32_MAX,
     .help = "ids to turn into text"},
    {.name = "special",
     .kind = CLI_SWITCH,
     .offset = AT(special),
     .help = "text of a special token becomes that token"},
    {.name = "bos", .kind = CLI_SWITCH, .offset = AT(begin), .help = "a begin token first, where the model has one"},
    CLI_END,
};

/* A piece as text: bytes that are part of a character as <0xE2>. */
static fv_status piece_text(const fv_model *model, int32_t id, fv_text *text)
{
    const char *bytes;
    size_t length;

    FV_TRY(fv_model_piece(model, id, &bytes, &length));
    for (size_t at = 0; at < length;) {
        size_t one = (size_t)fv_utf8_length(bytes + at, length - at);
        if (one)
            fv_text_add(text, bytes + at, (int64_t)one);
        else
            fv_text_printf(text, "<0x%02X>", (unsigned char)bytes[at]);
        at += one ? one : 1;
    }
    return fv_text_status(text);
}

static fv_status print_json(const fv_model *model, const int32_t *ids, int64_t count)
{
    json_t *root = json_object(), *pieces = json_array();
    fv_status status = FV_OK;

    app_put(root, "ids", app_ids(ids, count));
    app_put(root, "pieces", pieces);
    for (int64_t i = 0; status == FV_OK && i < count; i++) {
        fv_text text = {0};
        status = piece_text(model, ids[i], &text);
        app_append(pieces, app_text(fv_text_get(&text), (size_t)text.length));
        fv_text_free(&text);
    }
    if (status == FV_OK) return app_json_print(root);
    json_decref(root);
    return status;
}

static fv_status print_table(const fv_model *model, const int32_t *ids, int64_t count)
{
    for (int64_t i = 0; i < count; i++) {
        fv_text text = {0};
        fv_status status = piece_text(model, ids[i], &text);
        if (status == FV_OK) printf("%d\t", ids[i]);
        for (int64_t c = 0; status == FV_OK && c < text.length; c++) /* one line each */
            if (text.data[c] == '\n')
                fputs("\\n", stdout);
            else
                putchar(text.data[c]);
        putchar('\n');
        fv_text_free(&text);
        FV_TRY(status);
    }
    return FV_OK;
}

static fv_status to_ids(const struct values *values, const fv_model *model)
{
    unsigned mode = (values->special ? FV_TOKENIZE_SPECIAL : 0) | (values->begin ? FV_TOKENIZE_BEGIN : 0);
    char *owned = NULL;
    size_t length = values->text ? strlen(values->text) : 0;
    int32_t *ids = NULL;
    int64_t count = 0;
    fv_status status = FV_OK;

    if (values->file) FV_TRY(fv_file_read(values->file, &owned, &length));
    status = fv_model_tokenize(model, owned ? owned : values->text, length, mode, &ids, &count);
    if (status != FV_OK) fv_fail_in(status, "%s", values->file ? values->file : "-p");
    if (status == FV_OK) status = values->common.json ? print_json(model, ids, count) : print_table(model, ids, count);
    fv_release(ids);
    fv_free(owned);
    return status;
}

static fv_status to_text(const struct values *values, const fv_model *model, int64_t vocabulary)
{
    int32_t *ids = NULL;
    char *text = NULL;
    size_t length = 0;
    fv_status status;

    for (int i = 0; i < values->ids.count; i++)
        if (values->ids.items[i] >= vocabulary)
            return fv_fail(FV_E_USAGE, "--ids: expected ids below the vocabulary's %lld, got %lld",
                           (long long)vocabulary, (long long)values->ids.items[i]);
    FV_TRY(FV_ALLOC(ids, values->ids.count));
    for (int i = 0; i < values->ids.count; i++)
        ids[i] = (int32_t)values->ids.items[i];
    status = fv_model_detokenize(model, ids, values->ids.count, &text, &length);
    if (status == FV_OK && values->common.json)
        status = print_json(model, ids, values->ids.count);
    else if (status == FV_OK)
        fwrite(text, 1, length, stdout); /* byte for byte: no newline behind it */
    fv_release(text);
    fv_free(ids);
    return status;
}

static fv_status run(struct app *app, const void *data)
{
    const struct values *values = data;
    int sources = !!values->text + !!values->file + (values->ids.count > 0);
    fv_model_info info;
    fv_model *model;
    fv_status status;

    (void)app;
    if (sources != 1) return fv_fail(FV_E_USAGE, "expected one of -p TEXT, -f FILE and --ids LIST, got %d", sources);
    FV_TRY(app_model_open(values->model, &model, &info));
    status = values->ids.count ? to_text(values, model, info.vocabulary) : to_ids(values, model);
    fv_model_close(model);
    return status;
}

const cli_verb verb_tokenize = {
    .name = "tokenize",
    .summary = "text to a model's ids, or ids to text",
    .about = "Shows the ids of a text and the piece of text each stands for; with --ids writes their text, byte for "
             "byte, and nothing else. Without --special the text of a special token is plain text; without --bos "
             "there is no begin token.",
    .example = "  fovea tokenize -m model.gguf -p 'Hello' --json\n  fovea tokenize -m model.gguf --ids 19556,905\n",
    .flags = flags,
    .size = sizeof(struct values),
    .run = run,
};
