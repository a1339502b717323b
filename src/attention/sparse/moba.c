/* Mixture of Block Attention: every query reads its own block and the past blocks whose mean keys agree with it best.
 * The base of arXiv 2506.23858 (MoBA, arXiv 2502.13189), causal. */
#include "attention/choice.h"

struct moba {
    int64_t block, top;
};

/* Gate scores held at once. */
#define SCORES ((int64_t)1 << 17)

static const fv_option options[] = {
    FV_INT(struct moba, block, 512, 1, INT32_MAX, "tokens in a block"),
    FV_INT(struct moba, top, 3, 1, INT32_MAX, "blocks a query reads, its own included"),
    FV_OPTIONS_END,
};

static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    *width = kind == 0 ? call->head_dim : 0;
    return kind == 0 ? keys / ((const struct moba *)call->options)->block : 0;
}

/* Means of whole blocks of keys. */
static fv_status make_means(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    int64_t block = ((const struct moba *)call->options)->block;
    fv_tensor keys = fv_slice(&call->k, 2, from * block, out->dims[2] * block), plain;

    FV_TRY(fv_as_f32(ctx, &keys, &plain));
    return fv_pool_rows(ctx, &(fv_pool_args){.kind = FV_POOL_MEAN, .x = plain, .out = *out, .block = block});
}

/* Scores of queries from .. from+count-1 against the mean keys [B,Hkv,blocks,D], and the choice among them. */
static fv_status choose_part(fv_ctx *ctx, const fv_call *call, const fv_tensor *means, int64_t from, int64_t count,
                             fv_choice *choice)
{
    int64_t B = call->batch, Hkv = call->key_heads, H = call->query_heads, blocks = means->dims[2];
    fv_tensor q = fv_slice(&call->q, 2, from, count), scores, keys;

    FV_TRY(fv_tensor_new(ctx, &scores, FV_F32, FV_DIMS(B, H, count, blocks)));
    keys = fv_grouped(means, Hkv);
    FV_TRY(fv_gemm(
        ctx, &(fv_gemm_args){.a = fv_grouped(&q, Hkv), .b = fv_transposed(&keys), .c = fv_grouped(&scores, Hkv)}));
    return fv_choose(ctx, call, choice, from, &scores);
}

static fv_status choose(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    const struct moba *o = call->options;
    int64_t blocks = fv_max(call->offset + call->queries - 1, 0) / o->block; /* that lie before some query's own */
    int64_t chosen = fv_min(o->top - 1, blocks), step;
    fv_tensor means;

    *choice = (fv_choice){.block = o->block, .local = 1, .heads = call->query_heads};
    FV_TRY(fv_choice_new(ctx, call, chosen, choice));
    if (chosen == 0) return FV_OK;
    FV_TRY(fv_keep(ctx, call, kept, 0, blocks, make_means, &means));
    step = fv_clamp(SCORES / (call->batch * call->query_heads * blocks), 16, call->queries);
    for (int64_t from = 0; from < call->queries; from += step) {
        fv_mark mark = fv_scratch_mark(ctx);
        fv_status status = choose_part(ctx, call, &means, from, fv_min(step, call->queries - from), choice);
        fv_scratch_release(ctx, mark);
        FV_TRY(status);
    }
    return FV_OK;
}

static fv_status choose_unrecorded(fv_ctx *ctx, const fv_call *call, fv_choice *choice)
{
    bool recording = fv_tape_pause(ctx);
    fv_status status = choose(ctx, call, choice);

    fv_tape_resume(ctx, recording);
    return status;
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    fv_choice choice;

    FV_TRY(choose_unrecorded(ctx, call, &choice));
    return fv_choice_attend(ctx, call, &choice, call->queries > 1, &call->q, &call->k, &call->o, &call->lse);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_choice choice;

    FV_TRY(choose_unrecorded(ctx, call, &choice));
    return fv_choice_plan(ctx, call, &choice, &pairs->plan);
}

const fv_mechanism fv_mechanism_moba = {
    .name = "moba",
    .title = "Mixture of Block Attention",
    .paper = "arXiv 2502.13189, 2506.23858",
    .sheet = 20,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_CAUSAL | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE,
    .formula =
        "score of block c for query q: q.mean(k in c); softmax over the keys j <= p of the query's own block and "
        "the top - 1 past blocks of highest score, for each query head; ties go to the lower block",
    .cost = "each query reads at most top * block keys; scores cost 2 N (N / block) D flops a head",
    .options = options,
    .options_size = sizeof(struct moba),
    .kept = kept,
    .forward = forward,
    .map = map,
};
