/* Shifted groups: half of the heads read within groups of tokens, the others within groups that are shifted by half of
 * one.  S2-Attn of LongLoRA (arXiv 2309.12307), and SF-Attn (arXiv 2406.05678), which puts a share of the shifted heads
 * back and shows everybody the first tokens. */
#include <math.h>

#include "attention/mechanism.h"

struct s2attn {
    bool causal;
    int64_t groups, group, sinks;
    int shift;
    double return_share;
};

enum { CUT, ROLL };

static const char *const shifts[] = {"cut", "roll", NULL};

#define S2ATTN_OPTIONS(share_, sinks_)                                                                                 \
    {                                                                                                                  \
        FV_BOOL(struct s2attn, causal, 1, "nothing behind the query"),                                                 \
            FV_INT(struct s2attn, groups, 4, 1, INT32_MAX, "groups that the tokens make"),                             \
            FV_INT(struct s2attn, group, 0, 0, INT32_MAX, "tokens of a group, in place of `groups`"),                  \
            FV_ENUM(struct s2attn, shift, "cut", shifts,                                                               \
                    "cut: the first and last group of a shifted head are short; roll: they are one, which leaks"),     \
            FV_FLOAT(struct s2attn, return_share, share_, 0, 1, "share of the shifted half that is not shifted"),      \
            FV_INT(struct s2attn, sinks, sinks_, 0, INT32_MAX, "first tokens, which everyone reads"), FV_OPTIONS_END,  \
    }

static const fv_option s2attn_options[] = S2ATTN_OPTIONS(0, 0), sfattn_options[] = S2ATTN_OPTIONS(0.5, 4);

static int64_t group_of(const fv_call *call)
{
    const struct s2attn *o = call->options;

    return o->group > 0 ? o->group : fv_max(fv_ceil_div(call->keys, o->groups), 1);
}

static fv_status accept(fv_call *call)
{
    const struct s2attn *o = call->options;
    const char *name = call->mechanism->name;

    if (call->causal && !o->causal)
        return fv_fail(FV_E_USAGE, "%s: option 'causal': expected 1 of a causal call, got 0", name);
    if (call->causal && o->shift == ROLL)
        return fv_fail(FV_E_USAGE, "%s: option 'shift': roll is not causal: the first tokens read the last", name);
    if (call->decoding && o->group == 0)
        return fv_fail(FV_E_USAGE,
                       "%s: decoding, and a prompt in chunks, need option 'group': the tokens are not counted yet",
                       name);
    call->causal = o->causal && o->shift == CUT;
    if (o->shift == CUT || call->keys % group_of(call) == 0) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: shift=roll: expected a multiple of the group's %lld tokens, got %lld", name,
                   (long long)group_of(call), (long long)call->keys);
}

/* Of the second half of the heads the last ones are shifted. */
static bool is_shifted(const fv_call *call, int64_t head)
{
    const struct s2attn *o = call->options;
    int64_t n = call->query_heads - call->query_heads / 2;

    return head >= call->query_heads - (int64_t)floor((1 - o->return_share) * (double)n + 0.5);
}

/* Keys of a segment that begins at `first`, in the order that rolls N tokens back by `shift`: those up to place `to`.
 */
static void add_rolled(int64_t N, int64_t shift, int64_t first, int64_t to, fv_key_row *row)
{
    fv_key_row_add(row, first + shift, fv_min(to + shift, N));
    if (to + shift > N) fv_key_row_add(row, fv_max(first + shift - N, 0), to + shift - N);
}

static void fill(const void *user, int64_t head, int64_t i, fv_key_row *row)
{
    const fv_call *call = user;
    const struct s2attn *o = call->options;
    int64_t G = group_of(call), shift = is_shifted(call, head) ? G / 2 : 0, p = call->offset + i, N = call->keys;
    bool roll = o->shift == ROLL && shift > 0;
    int64_t place = roll ? (p - shift + N) % N : p, first = roll ? place / G * G : (place + shift) / G * G - shift;
    int64_t to = o->causal ? place + 1 : first + G;

    fv_key_row_add(row, 0, o->causal ? fv_min(o->sinks, p + 1) : p < o->sinks ? N : o->sinks);
    if (roll)
        add_rolled(N, shift, first, to, row);
    else
        fv_key_row_add(row, first, to);
}

static fv_status plan(fv_ctx *ctx, const fv_call *call, fv_plan *plan_, fv_attend_args *attend)
{
    (void)attend;
    plan_->causal = false; /* the keys of each query say it */
    return fv_key_rows_plan(ctx, call->query_heads, call->queries, call->keys, fill, call, plan_);
}

#define S2ATTN(name_, title_, paper_, options_, formula_)                                                              \
    {                                                                                                                  \
        .name = name_, .title = title_, .paper = paper_, .sheet = 115, .family = FV_STATIC_SPARSE,                     \
        .traits =                                                                                                      \
            FV_STATIC_PLAN | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE, \
        .formula = formula_, .cost = "each query reads G / 2 + sinks keys on average", .options = options_,            \
        .options_size = sizeof(struct s2attn), .accept = accept, .plan = plan                                          \
    }
#define RULE                                                                                                           \
    "with G = ceil(N / groups) or `group`: j <= p is visible iff seg(j) = seg(p) or j < sinks; seg(j) = j div G, and " \
    "(j + G div 2) div G in "

const fv_mechanism fv_mechanism_s2attn =
    S2ATTN("s2attn", "Shifted sparse attention (LongLoRA)", "arXiv 2309.12307", s2attn_options,
           RULE "the last heads, round((1 - return_share) H / 2) of them");
const fv_mechanism fv_mechanism_sfattn =
    S2ATTN("sfattn", "Sink fixed attention (SinkLoRA)", "arXiv 2406.05678", sfattn_options,
           RULE "the last heads, round((1 - return_share) H / 2) of them: a quarter");
