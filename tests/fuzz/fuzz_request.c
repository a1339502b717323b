/* Any bytes as a request's head, and as the body of every kind of request (the first byte says which). */
#include "fuzz/fuzz.h"

#include "app/serve_head.h"
#include "app/serve_request.h"
#include "base/memory.h"

static void check_error(const serve_error *error)
{
    json_t *json = serve_error_json(error);

    PROMISE(error->status >= 400 && error->status < 600);
    PROMISE(error->type && *error->message);
    PROMISE(json); /* whatever was quoted, it is text */
    json_decref(json);
}

static void check_request(const serve_request *request, const serve_limits *limits)
{
    bool chat = request->kind == SERVE_CHAT || request->kind == SERVE_ATTENTION;

    PROMISE(chat ? request->messages > 0 : request->prompts > 0);
    for (int64_t i = 0; i < request->messages; i++)
        PROMISE(request->message[i].content && request->message[i].role <= FV_CHAT_TOOL);
    for (int64_t i = 0; i < request->prompts; i++) {
        const serve_prompt *prompt = &request->prompt[i];
        PROMISE((prompt->text != NULL) != (prompt->ids != NULL));
        PROMISE(!prompt->text || strlen(prompt->text) == prompt->length);
        for (int64_t k = 0; k < prompt->count; k++)
            PROMISE(prompt->ids[k] >= 0 && prompt->ids[k] < limits->vocabulary);
    }
    for (int i = 0; i < request->biases; i++)
        PROMISE(request->bias_id[i] >= 0 && request->bias_id[i] < limits->vocabulary && request->bias[i] >= -100 &&
                request->bias[i] <= 100);
    for (int i = 0; i < request->stops; i++)
        PROMISE(*request->stop[i]);
    PROMISE(request->stops <= SERVE_STOPS && request->top >= 0 && request->top <= SERVE_TOP);
    PROMISE(request->choices >= 1 && request->choices <= SERVE_CHOICES);
    PROMISE(request->limit >= -1 && (double)request->limit <= SERVE_INTEGER);
    PROMISE(request->sampling.temperature >= 0 && request->sampling.temperature <= 2);
    PROMISE(request->sampling.top_p >= 0 && request->sampling.top_p <= 1);
}

/* What a head is judged as does not change when more of it comes, and a whole one is still one with bytes behind it. */
static void check_head(const char *bytes, size_t size)
{
    serve_error error;
    serve_head_state whole = serve_head_check(bytes, size, &error);

    if (whole == SERVE_HEAD_BAD) check_error(&error);
    PROMISE(whole != SERVE_HEAD_PART || size < SERVE_HEAD_MOST);
    for (size_t part = 0; part < size; part += 1 + size / 16) {
        serve_head_state early = serve_head_check(bytes, part, &error);
        PROMISE(early == SERVE_HEAD_PART || early == whole);
    }
}

int fuzz_request(const uint8_t *data, size_t size)
{
    static const serve_limits limits = {1000, 64};
    serve_request request;
    serve_error error;
    char *bytes = NULL;

    if (size == 0 || FV_ALLOC(bytes, (int64_t)size) != FV_OK) return 0; /* a copy: no 0 stands behind it */
    memcpy(bytes, data, size);
    check_head(bytes, size);
    if (serve_request_parse((serve_kind)(data[0] % (SERVE_ATTENTION + 1)), bytes + 1, size - 1, &limits, &request,
                            &error))
        check_request(&request, &limits);
    else
        check_error(&error);
    serve_request_free(&request);
    fv_free(bytes);
    return 0;
}

FUZZ_TARGET(fuzz_request)
