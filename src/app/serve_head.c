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
    line += target + 6;
    if (line[0] == '1' && (line[2] == '0' || line[2] == '1')) return SERVE_HEAD_GOOD;
    return bad(error, 505, "http_version", "expected HTTP/1.0 or HTTP/1.1");
}

static serve_head_state check_length(const char *value, size_t length, int *lengths, serve_error *error)
{
    size_t digits = 0;

    while (digits < length && value[digits] >= '0' && value[digits] <= '9')
        digits++;
    if (digits == 0 || digits < length) return bad(error, 400, "bad_request", "Content-Length: expected a number");
    if (digits > 18) return bad(error, 413, "body_too_large", "the body is larger than this server takes");
    if (++*lengths > 1) return bad(error, 400, "bad_request", "Content-Length is given more than once");
    return SERVE_HEAD_GOOD;
}

static serve_head_state check_header(const char *line, size_t length, int *lengths, serve_error *error)
{
    static const char name_of_length[] = "Content-Length";
    size_t name = token_length(line, length), end = length;

    if (name == 0 || name == length || line[name] != ':')
        return bad(error, 400, "bad_request", "a header line is malformed");
    for (size_t i = name + 1; i < length; i++)
        if (((unsigned char)line[i] < ' ' && line[i] != '\t') || line[i] == 127)
            return bad(error, 400, "bad_request", "a header holds a control character");
    if (name != sizeof name_of_length - 1 || strncasecmp(line, name_of_length, name) != 0) return SERVE_HEAD_GOOD;
    for (name++; name < end && (line[name] == ' ' || line[name] == '\t');)
        name++;
    while (end > name && (line[end - 1] == ' ' || line[end - 1] == '\t'))
        end--;
    return check_length(line + name, end - name, lengths, error);
}

serve_head_state serve_head_check(const char *bytes, size_t length, serve_error *error)
{
    size_t at = 0, headers_at = 0;
    int line = 0, lengths = 0;

    while (at < length && (bytes[at] == '\r' || bytes[at] == '\n')) /* some clients end bodies with one */
        at++;
    if (at > SERVE_HEADERS) return bad(error, 400, "bad_request", "the request is empty");
    for (;; line++) {
        const char *start = bytes + at, *feed = memchr(start, '\n', length - at);
        size_t count = feed ? (size_t)(feed - start) : length - at;
        serve_head_state state;
        if (line == 0 && count > SERVE_LINE)
            return bad(error, 414, "uri_too_long", "the request line is longer than 8 KiB");
        if (line > 0 && at + count - headers_at > SERVE_HEAD)
            return bad(error, 431, "headers_too_large", "the request's headers are larger than 16 KiB");
        if (!feed) return SERVE_HEAD_PART;
        at += count + 1;
        if (count > 0 && start[count - 1] == '\r') count--;
        if (line > 0 && count == 0) return SERVE_HEAD_GOOD;
        if (line > SERVE_HEADERS)
            return bad(error, 431, "headers_too_large", "the request has more than 100 header lines");
        state = line == 0 ? check_line(start, count, error) : check_header(start, count, &lengths, error);
        if (state == SERVE_HEAD_BAD) return state;
        if (line == 0) headers_at = at;
    }
}
