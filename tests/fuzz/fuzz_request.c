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

typedef struct verdict {
    serve_head_state state;
    size_t used;
} verdict;

typedef verdict judge_fn(const char *bytes, size_t size, serve_error *error);

static verdict judge_head(const char *bytes, size_t size, serve_error *error)
{
    serve_head head = {0};
    serve_head_state state = serve_head_check(bytes, size, &head, error);

    PROMISE(head.body >= 0 && (!head.chunked || head.body == 0));
    return (verdict){state, head.bytes};
}

static verdict judge_chunk(const char *bytes, size_t size, serve_error *error)
{
    size_t used = 0;
    int64_t length;
    serve_head_state state = serve_chunk_check(bytes, size, &length, &used, error);

    PROMISE(length >= 0);
    return (verdict){state, used};
}

static verdict judge_trailer(const char *bytes, size_t size, serve_error *error)
{
    size_t used = 0;
    serve_head_state state = serve_trailer_check(bytes, size, &used, error);

    return (verdict){state, used};
}

/* What a head is judged as does not change when more of it comes, and a whole one is still one with bytes behind it. */
static void check_judge(judge_fn *judge, const char *bytes, size_t size)
{
    serve_error error;
    verdict whole = judge(bytes, size, &error);

    if (whole.state == SERVE_HEAD_BAD) check_error(&error);
    PROMISE(whole.state != SERVE_HEAD_PART || size < SERVE_HEAD_MOST);
    PROMISE(whole.state != SERVE_HEAD_GOOD || (whole.used > 0 && whole.used <= size && bytes[whole.used - 1] == '\n'));
    for (size_t part = 0; part < size; part += 1 + size / 16) {
        verdict early = judge(bytes, part, &error);
        PROMISE(early.state == SERVE_HEAD_PART || early.state == whole.state);
        PROMISE(early.state != SERVE_HEAD_GOOD || early.used == whole.used);
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
    check_judge(judge_head, bytes, size);
    check_judge(judge_chunk, bytes, size);
    check_judge(judge_trailer, bytes, size);
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
