#include "app/serve_head.h"

#include <string.h>
#include <strings.h>

static serve_head_state bad(serve_error *error, int status, const char *code, const char *message)
{
    serve_fail(error, NULL, code, "%s", message);
    error->status = status;
    return SERVE_HEAD_BAD;
}

/* Characters of methods and header names. */
static bool is_token(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           (c && strchr("!#$%&'*+-.^_`|~", c));
}

static size_t token_length(const char *bytes, size_t length)
{
    size_t count = 0;

    while (count < length && is_token(bytes[count]))
        count++;
    return count;
}

static int count_of(const char *bytes, size_t length, char c)
{
    int count = 0;

    for (size_t i = 0; i < length; i++)
        count += bytes[i] == c;
    return count;
}

/* METHOD SP target SP HTTP/1.0 or 1.1 */
static serve_head_state check_line(const char *line, size_t length, serve_error *error)
{
    static const char malformed[] = "the request line is malformed";
    size_t method = token_length(line, length), target;

    if (method == 0 || method == length || line[method] != ' ') return bad(error, 400, "bad_request", malformed);
    line += method + 1;
    length -= method + 1;
    for (target = 0; target < length && (unsigned char)line[target] > ' ' && line[target] != 127;)
        target++;
    if (target == 0 || length - target != 9 || memcmp(line + target, " HTTP/", 6) != 0 || line[target + 7] != '.')
        return bad(error, 400, "bad_request", malformed);
    if (count_of(line, target, '&') > SERVE_HEADERS)
        return bad(error, 414, "uri_too_long", "the request has more than 100 arguments");
    line += target + 6;
    if (line[0] == '1' && (line[2] == '0' || line[2] == '1')) return SERVE_HEAD_GOOD;
    return bad(error, 505, "http_version", "expected HTTP/1.0 or HTTP/1.1");
}

/* What the header lines say so far. */
struct seen {
    int lengths, encodings, hosts, cookies;
    int64_t body;
};

static serve_head_state check_length(const char *value, size_t length, struct seen *seen, serve_error *error)
{
    size_t digits = 0;

    seen->body = 0;
    for (; digits < length && digits < 19 && value[digits] >= '0' && value[digits] <= '9'; digits++)
        seen->body = digits < 18 ? seen->body * 10 + value[digits] - '0' : 0;
    if (digits == 0 || (digits < length && digits < 19))
        return bad(error, 400, "bad_request", "Content-Length: expected a number");
    if (digits > 18) return bad(error, 413, "body_too_large", "the body is larger than this server takes");
    if (++seen->lengths > 1) return bad(error, 400, "bad_request", "Content-Length is given more than once");
    return SERVE_HEAD_GOOD;
}

static bool is_text(const char *bytes, size_t length, const char *text)
{
    return length == strlen(text) && strncasecmp(bytes, text, length) == 0;
}

static serve_head_state check_header(const char *line, size_t length, struct seen *seen, serve_error *error)
{
    size_t name = token_length(line, length), at = name + 1, end = length;

    if (name == 0 || name == length || line[name] != ':')
        return bad(error, 400, "bad_request", "a header line is malformed");
    for (size_t i = at; i < length; i++)
        if (((unsigned char)line[i] < ' ' && line[i] != '\t') || line[i] == 127)
            return bad(error, 400, "bad_request", "a header holds a control character");
    while (at < end && (line[at] == ' ' || line[at] == '\t'))
        at++;
    while (end > at && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    if (is_text(line, name, "Content-Length")) return check_length(line + at, end - at, seen, error);
    if (is_text(line, name, "Cookie") && (seen->cookies += count_of(line, length, ';')) > SERVE_HEADERS)
        return bad(error, 431, "headers_too_large", "the request has more than 100 cookies");
    if (is_text(line, name, "Host") && ++seen->hosts > 1)
        return bad(error, 400, "bad_request", "Host is given more than once");
    if (is_text(line, name, "Transfer-Encoding") && (++seen->encodings > 1 || !is_text(line + at, end - at, "chunked")))
        return bad(error, 400, "bad_request", "Transfer-Encoding: expected chunked");
    return SERVE_HEAD_GOOD;
}

/* Header lines from bytes[*at] on, to the empty one behind them, which *at is moved past. */
static serve_head_state check_headers(const char *bytes, size_t length, size_t *at, struct seen *seen,
                                      serve_error *error)
{
    size_t first = *at;

    for (int line = 1;; line++) {
        const char *start = bytes + *at, *feed = memchr(start, '\n', length - *at);
        size_t count = feed ? (size_t)(feed - start) : length - *at;
        serve_head_state state;
        if (*at + count - first > SERVE_HEAD)
            return bad(error, 431, "headers_too_large", "the request's headers are larger than 16 KiB");
        if (!feed) return SERVE_HEAD_PART;
        *at += count + 1;
        if (count > 0 && start[count - 1] == '\r') count--;
        if (count == 0) return SERVE_HEAD_GOOD;
        if (line > SERVE_HEADERS)
            return bad(error, 431, "headers_too_large", "the request has more than 100 header lines");
        state = check_header(start, count, seen, error);
        if (state == SERVE_HEAD_BAD) return state;
    }
}

serve_head_state serve_head_check(const char *bytes, size_t length, serve_head *head, serve_error *error)
{
    struct seen seen = {0};
    serve_head_state state;
    const char *line, *feed;
    size_t at = 0, count;

    while (at < length && (bytes[at] == '\r' || bytes[at] == '\n')) /* some clients end bodies with one */
        at++;
    if (at > SERVE_HEADERS) return bad(error, 400, "bad_request", "the request is empty");
    line = bytes + at;
    feed = memchr(line, '\n', length - at);
    count = feed ? (size_t)(feed - line) : length - at;
    if (count > SERVE_LINE) return bad(error, 414, "uri_too_long", "the request line is longer than 8 KiB");
    if (!feed) return SERVE_HEAD_PART;
    at += count + 1;
    if (count > 0 && line[count - 1] == '\r') count--;
    state = check_line(line, count, error);
    if (state == SERVE_HEAD_GOOD) state = check_headers(bytes, length, &at, &seen, error);
    if (state != SERVE_HEAD_GOOD) return state;
    /* where a body ends must be said once, in one way */
    if (seen.encodings && seen.lengths)
        return bad(error, 400, "bad_request", "Content-Length stands beside Transfer-Encoding");
    if (seen.encodings && line[count - 1] == '0')
        return bad(error, 400, "bad_request", "Transfer-Encoding: HTTP/1.0 has none");
    *head = (serve_head){.bytes = at, .body = seen.body, .chunked = seen.encodings > 0};
    return SERVE_HEAD_GOOD;
}

/* ---- chunks ----------------------------------------------------------------------------------------------------- */

static int digit_of(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

serve_head_state serve_chunk_check(const char *bytes, size_t length, int64_t *size, size_t *used, serve_error *error)
{
    enum { DIGITS = 15, EXTENSIONS = 256 };
    const char *feed = memchr(bytes, '\n', length);
    size_t count = feed ? (size_t)(feed - bytes) : length, digits = 0;

    *size = 0;
    while (digits < count && digits < DIGITS && digit_of(bytes[digits]) >= 0)
        *size = *size * 16 + digit_of(bytes[digits++]);
    if (count > EXTENSIONS || (digits < count && (digits == 0 || !strchr("; \t\r", bytes[digits]) || !bytes[digits])))
        return bad(error, 400, "bad_request", "a chunk's size is malformed");
    if (!feed) return SERVE_HEAD_PART;
    if (digits == 0 || count == digits || bytes[count - 1] != '\r' || memchr(bytes, '\r', count - 1))
        return bad(error, 400, "bad_request", "a chunk's size is malformed");
    *used = count + 1;
    return SERVE_HEAD_GOOD;
}

serve_head_state serve_trailer_check(const char *bytes, size_t length, size_t *used, serve_error *error)
{
    struct seen seen = {0};

    *used = 0;
    return check_headers(bytes, length, used, &seen, error);
}
