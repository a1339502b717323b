#include "app/page.h"

#include <math.h>
#include <string.h>

#include "app/app.h"
#include "base/file.h"

static const char style[] =
    ":root{color-scheme:light dark;--back:#fbfaf7;--ink:#1d2230;--soft:#667;--line:#d9d7d0;--card:#fff;--rail:#ecebe6}"
    "@media(prefers-color-scheme:dark){:root{--back:#14161c;--ink:#e8e8ea;--soft:#9aa0ae;--line:#2c303a;--card:#1b1e26;"
    "--rail:#262a34}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);font:16px/1.5 system-ui,sans-serif}"
    "main{max-width:1100px;margin:0 auto;padding:24px 16px 64px}h1{font-size:1.5rem;margin:0 0 4px}"
    "h2{font-size:1.15rem;margin:40px 0 8px}p{margin:8px 0;color:var(--soft);max-width:75ch}"
    ".wide{overflow-x:auto;border:1px solid var(--line);border-radius:8px;background:var(--card)}"
    "table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;font-size:.9rem}"
    "th,td{padding:8px 10px;text-align:right;white-space:nowrap;vertical-align:top;border-top:1px solid var(--line)}"
    "thead th{border-top:0;color:var(--soft);font-weight:600}th:first-child,td:first-child{text-align:left}"
    "td:first-child{white-space:normal;overflow-wrap:anywhere;min-width:110px}td.best{font-weight:700}"
    "th small,td small{color:var(--soft);font-weight:400;display:block}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(300px,100%),1fr));gap:16px}"
    "figure,article{margin:0;padding:14px 16px;border:1px solid var(--line);border-radius:8px;background:var(--card);"
    "min-width:0}figcaption{margin-bottom:10px;overflow-wrap:anywhere}figcaption "
    "span{color:var(--soft);font-size:.85rem}"
    "svg{width:100%;max-width:560px;display:block}svg text{font:13px system-ui,sans-serif;fill:var(--ink)}"
    "svg .value{text-anchor:end;font-weight:600;paint-order:stroke;stroke:var(--card);stroke-width:4px}"
    "svg .rail{fill:var(--rail)}"
    ".s0{fill:#8a8f9c}.s1{fill:#3b6fd4}.s2{fill:#d9822b}.s3{fill:#2a9d6f}.s4{fill:#b3478f}.s5{fill:#8064d2}"
    ".line{fill:none;stroke-width:2.5;stroke-linejoin:round}.l0{stroke:#8a8f9c}.l1{stroke:#3b6fd4}"
    ".l2{stroke:#d9822b}.l3{stroke:#2a9d6f}.l4{stroke:#b3478f}.l5{stroke:#8064d2}"
    ".mesh{stroke:var(--line)}.cross{stroke:#d9822b;stroke-width:1.5;stroke-dasharray:5 4}svg text.tick{font-size:11px;"
    "fill:var(--soft)}.end{text-anchor:end}.middle{text-anchor:middle}.key{display:inline-block;width:10px;height:10px;"
    "border-radius:2px;margin:0 2px 0 6px}.key.s0{background:#8a8f9c}.key.s1{background:#3b6fd4}"
    ".key.s2{background:#d9822b}.key.s3{background:#2a9d6f}.key.s4{background:#b3478f}.key.s5{background:#8064d2}"
    "article h3{font-size:.95rem;margin:0 0 8px;overflow-wrap:anywhere}"
    "article div{white-space:pre-wrap;overflow-wrap:anywhere;font-size:.95rem}article p{font-size:.85rem}"
    ".map{background:var(--rail);border-radius:4px;overflow:hidden}"
    ".map img{width:100%;height:330px;display:block;image-rendering:pixelated}"
    ".pair{display:grid;grid-template-columns:1fr 1fr;gap:10px;color:var(--soft);font-size:.8rem}.pair img{width:100%;"
    "aspect-ratio:1;display:block;image-rendering:pixelated;margin-top:2px}.key.none{background:#e2e0d8}"
    ".key.all{background:#2656be}"
    ".axis{display:flex;justify-content:space-between;color:var(--soft);font-size:.8rem;margin-top:4px}"
    ".rows,.below{margin-top:16px}.rows{grid-template-columns:repeat(auto-fit,minmax(min(420px,100%),1fr))}"
    "th.text,td.text{text-align:left;white-space:normal;min-width:220px;overflow-wrap:anywhere}mark{background:#f0be3c;"
    "color:#1d2230;border-radius:2px;white-space:pre-wrap}code{font:.9em ui-monospace,monospace;color:var(--ink)}"
    ".keys{justify-content:start;flex-wrap:wrap;gap:0 10px}.keys span{white-space:nowrap}"
    ".heat .ramp{margin-top:6px}.heat .ends{max-width:320px}"
    ".ramp{height:10px;border-radius:5px;max-width:320px;margin:8px 0 2px;background:linear-gradient(90deg,"
    "#2c345c,#465fbe,#28a0aa,#f0be3c,#fff5c8)}blockquote{margin:8px 0;padding:4px 14px;border-left:3px solid "
    "var(--line);"
    "white-space:pre-wrap}";

void page_begin(fv_text *out, const char *title)
{
    fv_text_printf(out,
                   "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
                   "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
                   "<title>%s</title><style>%s</style></head><body><main>\n",
                   title, style);
}

fv_status page_write(fv_text *out, const char *path)
{
    fv_file_out file;
    fv_status status;

    fv_text_printf(out, "</main></body></html>\n");
    status = fv_text_status(out);
    if (status == FV_OK) status = fv_file_create(path, &file);
    if (status == FV_OK) {
        fwrite(fv_text_get(out), 1, (size_t)out->length, file.stream);
        status = fv_file_commit(&file);
    }
    fv_text_free(out);
    return status;
}

void page_escape(fv_text *out, const char *bytes, size_t length)
{
    for (size_t at = 0; at < length;) {
        size_t one = (size_t)fv_utf8_length(bytes + at, length - at);
        const char *safe = bytes[at] == '&'    ? "&amp;"
                           : bytes[at] == '<'  ? "&lt;"
                           : bytes[at] == '>'  ? "&gt;"
                           : bytes[at] == '"'  ? "&quot;"
                           : bytes[at] == '\'' ? "&#39;"
                           : !one              ? "\xef\xbf\xbd"
                                               : NULL;
        if (safe)
            fv_text_printf(out, "%s", safe);
        else if ((unsigned char)bytes[at] >= 32 || bytes[at] == '\n' || bytes[at] == '\t')
            fv_text_add(out, bytes + at, (int64_t)one);
        at += one ? one : 1;
    }
}

void page_bar(fv_text *out, int row, const char *name, const char *value, double share, int colour)
{
    enum { BAR = 12 };
    double length = isfinite(share) ? fmin(fmax(share, 0), 1) * PAGE_WIDTH : 0;

    fv_text_printf(out, "<text x=\"0\" y=\"%d\" class=\"name\">", row * PAGE_ROW + 14);
    page_escape(out, name, strnlen(name, 44));
    fv_text_printf(out,
                   "</text><text x=\"%d\" y=\"%d\" class=\"value\">%s</text>"
                   "<rect x=\"0\" y=\"%d\" width=\"%d\" height=\"%d\" class=\"rail\"/>"
                   "<rect x=\"0\" y=\"%d\" width=\"%.1f\" height=\"%d\" class=\"s%d\"/>",
                   PAGE_WIDTH, row * PAGE_ROW + 14, value, row * PAGE_ROW + 20, PAGE_WIDTH, BAR, row * PAGE_ROW + 20,
                   fmax(length, 1), BAR, colour % 6);
}
