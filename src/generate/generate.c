/* Generation: pick, show, feed, until something ends it.  Bytes are held back while they may be the start of a
 * character, and characters while they may be the start of a stop text.  Bytes that are no character become U+FFFD;
 * those of a character that was never finished are left out. */
#define _GNU_SOURCE
#include <string.h>
#include <time.h>

#include "base/memory.h"
#include "base/text.h"
#include "models/session.h"

struct run {
    fv_session *session;
    const fv_generate_options *options;
    fv_text raw;   /* the bytes of tokens so far */
    int64_t read;  /* of them, those that became text */
    fv_text text;  /* whole characters */
    int64_t shown; /* bytes given to the caller */
    int32_t *ids;
    int64_t count, capacity;
};

const char *fv_stop_name(fv_stop stop)
{
    static const char *const names[] = {"end", "limit", "text", "context", "caller"};

    return stop >= FV_STOP_END && stop <= FV_STOP_CALLER ? names[stop] : "?";
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Where the first stop text begins at or after `from`; -1: nowhere. */
static int64_t find_stop(const struct run *run, int64_t from)
{
    int64_t first = -1;

    for (int i = 0; i < run->options->stops; i++) {
        size_t length = strlen(run->options->stop[i]);
        const char *text = fv_text_get(&run->text) + from, *at;
        if (length == 0) continue;
        at = memmem(text, (size_t)(run->text.length - from), run->options->stop[i], length);
        if (at && (first < 0 || from + (at - text) < first)) first = from + (at - text);
    }
    return first;
}

/* Bytes at the end that may be the beginning of a stop text. */
static int64_t undecided(const struct run *run)
{
    int64_t most = 0;

    for (int i = 0; i < run->options->stops; i++) {
        const char *stop = run->options->stop[i];
        for (int64_t n = fv_min((int64_t)strlen(stop) - 1, run->text.length - run->shown); n > most; n--)
            if (memcmp(fv_text_get(&run->text) + run->text.length - n, stop, (size_t)n) == 0) most = n;
    }
    return most;
}

/* Whether the bytes are the start of a character that the next ones may complete. */
static bool unfinished(const unsigned char *bytes, int64_t count)
{
    int64_t length = bytes[0] >= 0xf0 ? 4 : bytes[0] >= 0xe0 ? 3 : 2;

    if (bytes[0] < 0xc2 || bytes[0] > 0xf4 || count >= length) return false;
    for (int64_t i = 1; i < count; i++)
        if ((bytes[i] & 0xc0) != 0x80) return false;
    return true;
}

/* Turns bytes of tokens into text as far as they are decided. */
static void read_characters(struct run *run)
{
    while (run->read < run->raw.length) {
        const char *bytes = run->raw.data + run->read;
        int64_t left = run->raw.length - run->read, length = fv_utf8_length(bytes, (size_t)left);
        if (length == 0 && unfinished((const unsigned char *)bytes, left)) return;
        if (length > 0)
            fv_text_add(&run->text, bytes, length);
        else
            fv_text_add(&run->text, "\xef\xbf\xbd", 3);
        run->read += length > 0 ? length : 1;
    }
}

/* Gives text up to `end` to the caller; false: the caller wants no more. */
static bool show(struct run *run, int64_t end)
{
    const char *text = fv_text_get(&run->text) + run->shown;
    int64_t length = end - run->shown;

    if (length <= 0) return true;
    run->shown = end;
    return !run->options->text || run->options->text(run->options->user, text, (size_t)length);
}

/* Takes a token in; sets *stop and returns true when the answer is over. */
static fv_status take(struct run *run, int32_t id, bool *over, fv_stop *stop)
{
    const fv_model *model = run->session->model;
    int64_t before = run->text.length, longest = 0, at;
    const char *bytes;
    size_t length;

    FV_TRY(FV_GROW(run->ids, run->capacity, run->count + 1));
    run->ids[run->count++] = id;
    if (model->tokenizer && !fv_model_is_special(model, id)) {
        FV_TRY(fv_model_piece(model, id, &bytes, &length));
        fv_text_add(&run->raw, bytes, (int64_t)length);
        FV_TRY(fv_text_status(&run->raw));
        read_characters(run);
        FV_TRY(fv_text_status(&run->text));
    }
    for (int i = 0; i < run->options->stops; i++)
        longest = fv_max(longest, (int64_t)strlen(run->options->stop[i]));
    at = find_stop(run, fv_max(run->shown, before - longest));
    *over = at >= 0;
    if (*over) {
        run->text.length = at;
        run->text.data[at] = 0;
        *stop = FV_STOP_TEXT;
        return FV_OK; /* the rest is shown at the end */
    }
    *over = !show(run, run->text.length - undecided(run));
    if (*over) *stop = FV_STOP_CALLER;
    return FV_OK;
}

static fv_status loop(struct run *run, float *logits, fv_stop *stop)
{
    const fv_model *model = run->session->model;
    bool over = false;

    for (;;) {
        *stop = FV_STOP_LIMIT;
        if (run->count >= run->options->limit) return FV_OK;
        FV_TRY(fv_ctx_check(run->session->ctx));
        int32_t id = fv_sampler_pick(run->options->sampler, logits);
        *stop = FV_STOP_END;
        if (fv_model_is_end(model, id)) return FV_OK;
        if (run->options->row) FV_TRY(run->options->row(run->options->user, run->count, 1, logits));
        FV_TRY(take(run, id, &over, stop));
        if (over) return FV_OK;
        *stop = FV_STOP_CONTEXT;
        if (run->session->length >= run->session->context) return FV_OK;
        *stop = FV_STOP_LIMIT;
        if (run->count >= run->options->limit) return FV_OK; /* its logits are of no use */
        FV_TRY(fv_session_feed(run->session, &id, 1, logits, 1));
    }
}

fv_status fv_generate(fv_session *session, const float *logits, const fv_generate_options *options,
                      fv_generation *generation)
{
    struct run run = {.session = session, .options = options};
    int64_t vocabulary = session->model->sizes.vocabulary;
    double start = now();
    float *row = NULL;
    fv_status status;

    *generation = (fv_generation){0};
    if (!options->sampler) return fv_fail(FV_E_ARGUMENT, "generate: a sampler is missing");
    FV_TRY_DONE(FV_ALLOC(row, vocabulary));
    memcpy(row, logits, (size_t)vocabulary * sizeof *row);
    FV_TRY_DONE(FV_GROW(run.text.data, run.text.capacity, 1)); /* so that an empty answer has a text */
    run.text.data[0] = 0;
    FV_TRY_DONE(FV_GROW(run.ids, run.capacity, 1));
    FV_TRY_DONE(loop(&run, row, &generation->stop));
    if (!show(&run, run.text.length) && generation->stop != FV_STOP_END) generation->stop = FV_STOP_CALLER;
    generation->ids = run.ids;
    generation->count = run.count;
    generation->text = run.text.data;
    generation->length = (size_t)run.text.length;
    generation->seconds = now() - start;
    fv_text_free(&run.raw);
    fv_free(row);
    return FV_OK;
done:
    fv_text_free(&run.raw);
    fv_free(row);
    fv_free(run.ids);
    fv_text_free(&run.text);
    return status;
}

void fv_generation_free(fv_generation *generation)
{
    fv_free(generation->ids);
    fv_free(generation->text);
    *generation = (fv_generation){0};
}
