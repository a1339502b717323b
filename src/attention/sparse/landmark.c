/* Landmark attention: a landmark closes each section of the text.  A query reads the tokens of its own section, and
 * those of each section before by a softmax of their own; landmarks, which nobody reads, are the gates to theirs in the
 * softmax over own tokens and sections.  arXiv 2305.16300. */
#include "attention/sparse/core.h"
#include "attention/sparse/order.h"

struct landmark {
    int64_t period;
};

/* Gates held at once. */
#define GATES ((int64_t)1 << 20)

static const fv_option options[] = {
    FV_INT(struct landmark, period, 51, 0, INT32_MAX,
           "every so many tokens the last one is a landmark; 0: param 'landmarks' says it"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_OF(FV_U8, "landmarks", "[M]", "1 where a key is a landmark, else 0; with period=0"),
    {0},
};

static fv_status check(const void *options_)
{
    const struct landmark *o = options_;

    if (o->period != 1) return FV_OK;
    return fv_fail(FV_E_USAGE,
                   "landmark: option 'period': expected at least 2 (a token and its landmark), or 0, got 1");
}

static bool is_landmark(const fv_call *call, int64_t j)
{
    const struct landmark *o = call->options;
    const fv_tensor *given = &call->param[0];

    return o->period > 0 ? (j + 1) % o->period == 0 : ((const uint8_t *)given->data)[j * given->strides[0]] != 0;
}

static fv_status accept(fv_call *call)
{
    const struct landmark *o = call->options;
    const fv_tensor *given = &call->param[0];

    if (fv_present(given) != (o->period == 0))
        return fv_fail(FV_E_USAGE, "landmark: %s",
                       o->period > 0 ? "param 'landmarks' needs period=0" : "period=0 needs param 'landmarks'");
    for (int64_t j = 0; o->period == 0 && j < call->keys; j++)
        if (((const uint8_t *)given->data)[j * given->strides[0]] > 1)
            return fv_fail(FV_E_FORMAT, "landmark: param 'landmarks'[%lld]: expected 0 or 1, got %d", (long long)j,
                           ((const uint8_t *)given->data)[j * given->strides[0]]);
    return FV_OK;
}

/* ---- sections --------------------------------------------------------------------------------------------------- */

/* The keys as blocks, tokens and landmarks in turn: block 2 s holds the tokens of section s and may be empty, block
 * 2 s + 1 the landmark behind them.  Gates are the landmarks that close a section with tokens. */
struct sections {
    int64_t blocks, gates;
    int64_t *start;  /* [blocks + 1] */
    int32_t *gate;   /* [gates] keys */
    int32_t *closed; /* [gates] the blocks behind them */
    fv_tensor keys;  /* [B,Hkv,gates,D] of the gates */
};

static fv_status find_sections(fv_ctx *ctx, const fv_call *call, struct sections *s)
{
    *s = (struct sections){0};
    FV_TRY(FV_SCRATCH(ctx, s->start, 2 * call->keys + 2));
    FV_TRY(FV_SCRATCH(ctx, s->gate, call->keys));
    FV_TRY(FV_SCRATCH(ctx, s->closed, call->keys));
    s->start[0] = 0;
    for (int64_t j = 0; j < call->keys; j++) {
        if (!is_landmark(call, j)) continue;
        if (j > s->start[s->blocks]) {
            s->gate[s->gates] = (int32_t)j;
            s->closed[s->gates++] = (int32_t)s->blocks;
        }
        s->start[s->blocks + 1] = j;
        s->start[s->blocks + 2] = j + 1;
        s->blocks += 2;
    }
    s->start[++s->blocks] = call->keys;
    return FV_OK;
}

/* Queries of a call: the tokens of its section that each reads, and the gates before it. */
struct view {
    int32_t *from, *to, *gates;
};

static fv_status look(fv_ctx *ctx, const fv_call *call, const struct sections *s, struct view *view)
{
    int64_t section = 0, gates = 0;

    FV_TRY(FV_SCRATCH(ctx, view->from, call->queries));
    FV_TRY(FV_SCRATCH(ctx, view->to, call->queries));
    FV_TRY(FV_SCRATCH(ctx, view->gates, call->queries));
    for (int64_t i = 0; i < call->queries; i++) {
        int64_t p = call->offset + i;
        while (section + 2 < s->blocks && s->start[section + 2] <= p) /* a section begins behind a landmark before p */
            section += 2;
        while (gates < s->gates && s->gate[gates] < p)
            gates++;
        view->from[i] = (int32_t)s->start[section];
        view->to[i] = (int32_t)fv_clamp(p + 1, 0, s->start[section + 1]);
        view->gates[i] = (int32_t)gates;
    }
    return FV_OK;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* The sections before that of each query, and the logits of their landmarks. */
static fv_status choose(fv_ctx *ctx, const fv_call *call, const struct sections *s, const struct view *view,
                        fv_choice *choice)
{
    int64_t N = call->queries, K = view->gates[N - 1];
    fv_tensor some = fv_slice(&s->keys, 2, 0, K);

    *choice = (fv_choice){.block = 1, .heads = 1, .key_start = s->start, .key_blocks = s->blocks};
    FV_TRY(fv_choice_new(ctx, call, K, choice));
    for (int64_t row = 0; row < call->batch * N; row++)
        for (int64_t n = 0; n < K; n++)
            ((int32_t *)choice->index.data)[row * K + n] = n < view->gates[row % N] ? s->closed[n] : -1;
    return fv_call_products(ctx, call, &call->q, &some, &choice->gate);
}

static fv_status attend(fv_ctx *ctx, const fv_call *call, void *user)
{
    const struct sections *s = user;
    fv_plan own = {.causal = true, .offset = call->offset};
    fv_attend_args attend = fv_call_attend(call, &own);
    fv_merge_args merge;
    fv_call far;
    fv_choice choice;
    struct view view;

    FV_TRY(look(ctx, call, s, &view));
    own.key_from = view.from;
    own.key_to = view.to;
    if (view.gates[call->queries - 1] == 0) return fv_attend_counted(ctx, call, &attend);
    FV_TRY(fv_call_merge(ctx, call, 2, &merge));
    far = fv_merge_part(call, &merge, 0);
    FV_TRY(choose(ctx, call, s, &view, &choice));
    FV_TRY(fv_choice_attend(ctx, &far, &choice, true));
    attend.o = merge.o_part[1];
    attend.lse = merge.lse_part[1];
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    return fv_merge(ctx, &merge);
}

/* lse, for callers inside the library, is that of own tokens and gates. */
static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct sections s;
    fv_tensor gates;

    FV_TRY(find_sections(ctx, call, &s));
    FV_TRY(fv_tensor_wrap(&gates, s.gate, FV_I32, FV_DIMS(s.gates)));
    if (s.gates > 0) FV_TRY(fv_order_rows(ctx, &gates, &call->k, &s.keys));
    return fv_run_stretches(ctx, call, fv_max(GATES / (call->batch * call->query_heads * fv_max(s.gates, 1)), 64),
                            attend, &s);
}

/* Every token up to the query, but no landmark. */
static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct sections s;
    fv_list_builder lists;

    FV_TRY(find_sections(ctx, call, &s));
    FV_TRY(fv_lists_begin(ctx, &lists,
                          &(fv_list_shape){.query_block = call->queries,
                                           .key_block = 1,
                                           .key_start = s.start,
                                           .key_blocks = s.blocks,
                                           .queries = call->queries,
                                           .keys = call->keys}));
    fv_lists_row(&lists);
    for (int64_t block = 0; block < s.blocks; block += 2)
        fv_lists_add(&lists, block);
    return fv_lists_end(&lists, &pairs->plan);
}

const fv_mechanism fv_mechanism_landmark = {
    .name = "landmark",
    .title = "Landmark attention",
    .paper = "arXiv 2305.16300",
    .sheet = 84,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "G = softmax over the tokens of p's own section and the landmarks before p; o = sum over own tokens of G(j) "
        "v_j + sum over sections b before of G(landmark_b) softmax over j in b (q.k_j D^-1/2) v_j",
    .cost = "each query reads every token before it once, as dense attention does, and a landmark for each section",
    .options = options,
    .options_size = sizeof(struct landmark),
    .params = params,
    .check = check,
    .accept = accept,
    .forward = forward,
    .counts = true,
    .map = map,
};
