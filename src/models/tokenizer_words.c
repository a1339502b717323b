/* The pre-tokenizers of byte-pair vocabularies.  What each name of tokenizer.ggml.pre means is settled by the programs
 * that write such files; \s is spelled out, because regular expression libraries differ over it. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "base/text.h"
#include "models/tokenizer_parts.h"

enum { STAGES = 4 };

#define SPACE "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"
#define SPACES "[" SPACE "]+(?![^" SPACE "])|[" SPACE "]+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACE "\\p{L}\\p{N}]+|" SPACES
/* LLaMA 3's, with its runs of digits: at most three in one, and one by one */
#define LLAMA3(digits)                                                                                                 \
    "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits "| ?[^" SPACE        \
    "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACE "]*[\\r\\n]+|" SPACES

static const struct kind {
    const char *names[16]; /* of tokenizer.ggml.pre */
    const char *stages[STAGES];
    fv_words_traits traits;
} kinds[] = {
    {{"default"}, {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9]{3}"}, {false, false}},
    {{"gpt-2", "phi-2", "mpt", "olmo", "jais", "gigachat", "trillion", "modern-bert", "exaone4"},
     {GPT2},
     {false, false}},
    {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
     {"\\p{N}", GPT2},
     {false, false}},
    {{"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"},
     {LLAMA3("\\p{N}{1,3}")},
     {true, true}},
    {{"dbrx", "smaug-bpe"}, {LLAMA3("\\p{N}{1,3}")}, {false, false}},
    {{"qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "solar-open"}, {LLAMA3("\\p{N}")}, {false, false}},
};

struct fv_words {
    int stages;
    pcre2_code *code[STAGES];
};

struct walk {
    const fv_words *words;
    pcre2_match_data *match;
    pcre2_match_context *limits;
    fv_word_fn *each;
    void *user;
};

static fv_status unknown_kind(const char *where, fv_gguf_text pre)
{
    fv_text known = {0};

    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int n = 0; kinds[k].names[n]; n++)
            fv_text_printf(&known, "%s%s", known.length ? ", " : "", kinds[k].names[n]);
    fv_fail(FV_E_UNSUPPORTED, "%s: tokenizer.ggml.pre: '%.*s' is not a pre-tokenizer we know; known are %s", where,
            (int)fv_min(pre.length, 80), pre.data, fv_text_get(&known));
    fv_text_free(&known);
    return FV_E_UNSUPPORTED;
}

static const struct kind *find_kind(fv_gguf_text pre)
{
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (int n = 0; kinds[k].names[n]; n++)
            if (fv_gguf_text_is(pre, kinds[k].names[n])) return &kinds[k];
    return NULL;
}

fv_status fv_words_new(const char *where, fv_gguf_text pre, fv_words **words, fv_words_traits *traits)
{
    const struct kind *kind = find_kind(pre);

    *words = NULL;
    if (!kind) return unknown_kind(where, pre);
    *traits = kind->traits;
    FV_TRY(FV_ZALLOC(*words, 1));
    for (int s = 0; s < STAGES && kind->stages[s]; s++) {
        int error = 0;
        PCRE2_SIZE offset = 0;
        pcre2_code *code = pcre2_compile((PCRE2_SPTR)kind->stages[s], PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                                         &error, &offset, NULL);
        if (!code) {
            fv_words_free(*words);
            *words = NULL;
            return fv_fail(FV_E_MEMORY, "%s: pre-tokenizer '%s': PCRE2 error %d at offset %zu of pattern %d", where,
                           kind->names[0], error, offset, s);
        }
        pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* where there is no JIT, matching is slower but the same */
        (*words)->code[(*words)->stages++] = code;
    }
    return FV_OK;
}

void fv_words_free(fv_words *words)
{
    if (!words) return;
    for (int s = 0; s < words->stages; s++)
        pcre2_code_free(words->code[s]);
    fv_free(words);
}

static fv_status cut(const struct walk *w, int stage, const char *text, size_t length)
{
    size_t at = 0;

    if (stage == w->words->stages) return w->each(w->user, text, length);
    while (at < length) {
        int found =
            pcre2_match(w->words->code[stage], (PCRE2_SPTR)text, length, at, PCRE2_NO_UTF_CHECK, w->match, w->limits);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0)
            return fv_fail(found == PCRE2_ERROR_NOMEMORY ? FV_E_MEMORY : FV_E_FORMAT,
                           "the text could not be cut into words at byte %zu of a stretch of %zu: PCRE2 error %d", at,
                           length, found);
        const PCRE2_SIZE *range = pcre2_get_ovector_pointer(w->match);
        size_t start = range[0], end = range[1];
        if (end <= start) break; /* no pattern matches the empty text */
        if (start > at) FV_TRY(cut(w, stage + 1, text + at, start - at));
        FV_TRY(cut(w, stage + 1, text + start, end - start));
        at = end;
    }
    return at < length ? cut(w, stage + 1, text + at, length - at) : FV_OK;
}

fv_status fv_words_each(const fv_words *words, const char *text, size_t length, fv_word_fn *each, void *user)
{
    struct walk w = {words, pcre2_match_data_create(1, NULL), pcre2_match_context_create(NULL), each, user};
    fv_status status = FV_E_MEMORY;

    if (w.match && w.limits) {
        /* A match backs up at most once over a run of spaces: some steps for each byte are enough for any text. */
        uint64_t steps = 10000000 + 16 * (uint64_t)length;
        pcre2_set_match_limit(w.limits, steps > UINT32_MAX ? UINT32_MAX : (uint32_t)steps);
        status = cut(&w, 0, text, length);
    } else {
        fv_fail(FV_E_MEMORY, "out of memory: no room to match patterns");
    }
    pcre2_match_data_free(w.match);
    pcre2_match_context_free(w.limits);
    return status;
}
