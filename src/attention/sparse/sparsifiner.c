/* Sparsifiner: a low-rank, sparsely coded guess at each head's attention says which keys a query reads.
 * arXiv 2303.13755. */
#include "attention/sparse/core.h"

#include <math.h>

#define BITS_BYTES ((int64_t)8 << 20) /* of keys chosen that are held at once */

struct sparsifiner {
    double keep, threshold, coef_threshold, basis_threshold, token_keep;
    int64_t coef_top;
    int basis, gamma;
    bool cls;
};

enum { BASIS_ABS, BASIS_POSITIVE, BASIS_SIGNED };
static const char *const bases[] = {"abs", "positive", "signed", NULL};
enum { GAMMA_HEADS, GAMMA_DIM };
static const char *const gammas[] = {"heads", "dim", NULL};

static const fv_option options[] = {
    FV_FLOAT(struct sparsifiner, keep, 0.25, 1e-9, 1, "part of the keys that a query reads, rounded up"),
    FV_FLOAT(struct sparsifiner, threshold, 0, 0, 1e30, "keys guessed above it instead (0: no)"),
    FV_INT(struct sparsifiner, coef_top, 8, 1, INT32_MAX, "coefficients of a query's code"),
    FV_FLOAT(struct sparsifiner, coef_threshold, 0, 0, 1, "coefficients above it instead (0: no)"),
    FV_FLOAT(struct sparsifiner, basis_threshold, 0.02, -1e30, 1e30, "what `up` holds up to it counts as 0"),
    FV_ENUM(struct sparsifiner, basis, "abs", bases, "of the entries of `up`"),
    FV_ENUM(struct sparsifiner, gamma, "heads", gammas, "codes are softmaxes of products times H^-1/2 or F^-1/2"),
    FV_BOOL(struct sparsifiner, cls, 1, "query 0 reads every key"),
    FV_FLOAT(struct sparsifiner, token_keep, 0, 0, 1,
             "part of the other queries, those that query 0 weighs most, that has results (0: all)"),
    FV_OPTIONS_END,
};

enum { Q_WEIGHT, Q_BIAS, K_WEIGHT, K_BIAS, DOWN, UP };

static const fv_param params[] = {
    FV_PARAM_FIXED("q_weight", "[F, D]", "map of queries (identity)"),
    FV_PARAM_FIXED("q_bias", "[F]", "its bias (0)"),
    FV_PARAM_FIXED("k_weight", "[F, D]", "map of keys (identity)"),
    FV_PARAM_FIXED("k_bias", "[F]", "its bias (0)"),
    FV_PARAM_FIXED("down", "[N, R]", "columns sum keys (means of N/6 runs of equal length)"),
    FV_PARAM_FIXED("up", "[N, R]", "columns are the basis of rows of attention (the same means)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    bool identity = !fv_present(&call->param[Q_WEIGHT]) || !fv_present(&call->param[K_WEIGHT]);

    (void)values;
    return name[0] == 'F' && identity ? call->head_dim : -1;
}

static fv_status check(const void *values)
{
    const struct sparsifiner *o = values;

    if (o->token_keep == 0 || o->cls) return FV_OK;
    return fv_fail(FV_E_USAGE, "sparsifiner: option 'token_keep': needs a query 0 that reads every key, got cls=0");
}

/* ---- the guess -------------------------------------------------------------------------------------------------- */

struct choosing {
    const fv_call *call;
    int64_t rank, *start; /* basis vector r: value[n] at key[n] for n in start[r] .. start[r + 1] - 1 */
    int32_t *key;
    float *value;
    fv_tensor q, k;      /* [B,H,N,F], and sums of keys [B,Hkv,rank,F] */
    const uint8_t *lost; /* [B,N] queries without results; NULL: none */
    fv_key_bits bits;    /* of a stretch of queries */
    /* of rows of it */
    fv_tensor coefficient, code, guess;
};

static fv_status project(fv_ctx *ctx, const fv_tensor *x, const fv_tensor *weight, const fv_tensor *bias,
                         fv_tensor *out)
{
    fv_tensor plain;

    FV_TRY(fv_as_f32(ctx, x, &plain));
    *out = plain;
    if (!fv_present(weight) && !fv_present(bias)) return FV_OK;
    FV_TRY(
        fv_tensor_new(ctx, out, FV_F32,
                      FV_DIMS(x->dims[0], x->dims[1], x->dims[2], fv_present(weight) ? weight->dims[0] : x->dims[3])));
    if (!fv_present(weight))
        return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = plain, .y = *bias, .out = *out});
    return fv_gemm(ctx, &(fv_gemm_args){.a = plain, .b = fv_transposed(weight), .c = *out, .bias = *bias});
}

/* Keys summed by the columns of `down`. */
static fv_status sum_keys(fv_ctx *ctx, const fv_call *call, struct choosing *c)
{
    const fv_tensor *down = &call->param[DOWN];
    int64_t *run;
    fv_tensor k;

    FV_TRY(project(ctx, &call->k, &call->param[K_WEIGHT], &call->param[K_BIAS], &k));
    FV_TRY(fv_tensor_new(ctx, &c->k, FV_F32, FV_DIMS(call->batch, call->key_heads, c->rank, k.dims[3])));
    if (fv_present(down)) return fv_gemm(ctx, &(fv_gemm_args){.a = fv_transposed(down), .b = k, .c = c->k});
    FV_TRY(FV_SCRATCH(ctx, run, c->rank + 1));
    for (int64_t r = 0; r <= c->rank; r++)
        run[r] = r * call->keys / c->rank;
    return fv_pool_rows(ctx, &(fv_pool_args){.x = k, .out = c->k, .start = run});
}

static float basis_value(const struct sparsifiner *o, float x)
{
    float size = o->basis == BASIS_POSITIVE ? x : fabsf(x);

    if (!(size > (float)o->basis_threshold)) return 0;
    return o->basis == BASIS_SIGNED ? x : size;
}

/* The columns of `up` as lists of what they hold. */
static fv_status make_basis(fv_ctx *ctx, const fv_call *call, struct choosing *c)
{
    const fv_tensor *up = &call->param[UP];
    int64_t keys = call->keys, count = 0, room = fv_present(up) ? keys * c->rank : keys;

    FV_TRY(FV_SCRATCH(ctx, c->start, c->rank + 1));
    FV_TRY(FV_SCRATCH(ctx, c->key, room));
    FV_TRY(FV_SCRATCH(ctx, c->value, room));
    for (int64_t r = 0; r < c->rank; r++) {
        int64_t from = fv_present(up) ? 0 : r * keys / c->rank, to = fv_present(up) ? keys : (r + 1) * keys / c->rank;
        c->start[r] = count;
        for (int64_t j = from; j < to; j++) {
            float value =
                fv_present(up) ? basis_value(call->options, *(float *)fv_at(up, j, r, 0, 0)) : 1 / (float)(to - from);
            if (value == 0) continue;
            c->key[count] = (int32_t)j;
            c->value[count++] = value;
        }
    }
    c->start[c->rank] = count;
    return FV_OK;
}

/* guess = code * basis, of one row. */
static void guess_row(void *user, int64_t row, int thread)
{
    const struct choosing *c = user;
    int64_t top = c->code.dims[3];
    const int32_t *code = (int32_t *)c->code.data + row * top;
    const float *coefficient = (float *)c->coefficient.data + row * c->rank;
    float *guess = (float *)c->guess.data + row * c->call->keys;

    (void)thread;
    memset(guess, 0, (size_t)c->call->keys * sizeof *guess);
    for (int64_t n = 0; n < top && code[n] >= 0; n++)
        for (int64_t e = c->start[code[n]]; e < c->start[code[n] + 1]; e++)
            guess[c->key[e]] += coefficient[code[n]] * c->value[e];
}

/* The best `top` of each row, or with a threshold those above it. */
static fv_status select(fv_ctx *ctx, const fv_tensor *scores, double threshold, int64_t top, fv_tensor *index)
{
    const int64_t *dims = scores->dims;

    if (threshold > 0) top = dims[3];
    FV_TRY(fv_tensor_new(ctx, index, FV_I32, FV_DIMS(dims[0], dims[1], dims[2], fv_min(top, dims[3]))));
    return fv_select(ctx, &(fv_select_args){.scores = *scores,
                                            .index = *index,
                                            .use_threshold = threshold > 0,
                                            .threshold = nextafterf((float)threshold, INFINITY)});
}

static fv_status guess(fv_ctx *ctx, struct choosing *c, const fv_tensor *scores)
{
    const struct sparsifiner *o = c->call->options;
    const int64_t *dims = scores->dims;

    FV_TRY(fv_tensor_new(ctx, &c->coefficient, FV_F32, 4, dims));
    FV_TRY(fv_softmax(ctx, &(fv_softmax_args){.x = *scores, .out = c->coefficient}));
    FV_TRY(select(ctx, &c->coefficient, o->coef_threshold, o->coef_top, &c->code));
    FV_TRY(fv_tensor_new(ctx, &c->guess, FV_F32, FV_DIMS(dims[0], dims[1], dims[2], c->call->keys)));
    fv_run(ctx, dims[0] * dims[1] * dims[2], guess_row, c);
    return FV_OK;
}

static fv_status choose_rows(fv_ctx *ctx, void *user, int64_t from, const fv_tensor *scores)
{
    struct choosing *c = user;
    const struct sparsifiner *o = c->call->options;
    fv_tensor index;

    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, guess(ctx, c, scores));
    FV_TRY(select(ctx, &c->guess, o->threshold, (int64_t)ceil(o->keep * (double)c->call->keys), &index));
    fv_key_bits_add(ctx, &c->bits, from, &index);
    return FV_OK;
}

/* ---- tokens ----------------------------------------------------------------------------------------------------- */

/* Whose results are dropped: all but the part of the tokens behind the first that it weighs most over all heads. */
static fv_status drop_tokens(fv_ctx *ctx, const fv_call *call, struct choosing *c)
{
    const struct sparsifiner *o = call->options;
    int64_t B = call->batch, H = call->query_heads, N = call->queries, rest = N - 1;
    int64_t left = (int64_t)ceil(o->token_keep * (double)rest);
    fv_tensor unused, weights, means, index;
    uint8_t *lost;

    FV_TRY(fv_tensor_new(ctx, &unused, FV_F32, FV_DIMS(B, H, 1, call->value_dim)));
    FV_TRY(fv_tensor_new(ctx, &weights, FV_F32, FV_DIMS(B, H, 1, rest)));
    FV_TRY(fv_tensor_new(ctx, &means, FV_F32, FV_DIMS(B, 1, rest)));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(B, 1, left)));
    FV_TRY(fv_attend(ctx, &(fv_attend_args){.q = fv_slice(&call->q, 2, 0, 1),
                                            .k = call->k,
                                            .v = call->v,
                                            .o = unused,
                                            .logits = fv_call_logits(call),
                                            .weights = weights,
                                            .weight_from = 1}));
    FV_TRY(
        fv_pool_rows(ctx, &(fv_pool_args){.x = fv_reshaped(&weights, FV_DIMS(B, H, rest)), .out = means, .block = H}));
    FV_TRY(fv_select(ctx, &(fv_select_args){.scores = means, .index = index}));
    FV_TRY(FV_SCRATCH(ctx, lost, B * N));
    for (int64_t b = 0; b < B; b++) {
        const int32_t *kept = (int32_t *)index.data + b * left;
        memset(lost + b * N, 1, (size_t)N);
        lost[b * N] = 0;
        for (int64_t n = 0; n < left && kept[n] >= 0; n++)
            lost[b * N + 1 + kept[n]] = 0;
    }
    c->lost = lost;
    return FV_OK;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static fv_status prepare(fv_ctx *ctx, const fv_call *call, struct choosing *c)
{
    const fv_tensor *given = &call->param[fv_present(&call->param[UP]) ? UP : DOWN];

    *c = (struct choosing){.call = call};
    c->rank = fv_present(given) ? given->dims[1] : fv_max(call->keys / 6, 1);
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, project(ctx, &call->q, &call->param[Q_WEIGHT], &call->param[Q_BIAS], &c->q));
    FV_TRY_PHASE(ctx, FV_PHASE_SCORE, sum_keys(ctx, call, c));
    FV_TRY(make_basis(ctx, call, c));
    if (((const struct sparsifiner *)call->options)->token_keep == 0 || call->queries == 1) return FV_OK;
    return drop_tokens(ctx, call, c);
}

/* The keys of some queries: with as many keys as queries in all, their offset is the number of the first. */
static fv_status choose(fv_ctx *ctx, struct choosing *c, const fv_call *part, fv_plan *plan)
{
    const struct sparsifiner *o = part->options;
    int64_t B = part->batch, H = part->query_heads, count = part->queries, from = part->offset;
    float gamma = 1 / sqrtf((float)(o->gamma == GAMMA_HEADS ? H : c->q.dims[3]));
    fv_tensor q = fv_slice(&c->q, 2, from, count);

    FV_TRY(fv_key_bits_new(ctx, part, &c->bits));
    FV_TRY(fv_score_rows(ctx, &q, &c->k, gamma, choose_rows, c));
    for (int64_t plane = 0; plane < B * H; plane++) {
        if (o->cls && from == 0) fv_key_bits_set(&c->bits, plane / H, plane % H, 0, true);
        for (int64_t i = 0; c->lost && i < count; i++)
            if (c->lost[plane / H * part->keys + from + i]) fv_key_bits_set(&c->bits, plane / H, plane % H, i, false);
    }
    return fv_key_bits_plan(ctx, &c->bits, plan);
}

static fv_status attend_part(fv_ctx *ctx, const fv_call *part, void *choosing)
{
    fv_plan plan = {0};
    fv_attend_args attend = fv_call_attend(part, &plan);

    FV_TRY_CHOOSING(ctx, choose(ctx, choosing, part, &plan));
    return fv_attend_counted(ctx, part, &attend);
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    int64_t row = call->batch * call->query_heads * fv_ceil_div(call->keys, 8); /* bytes of a query's bits */
    int64_t step = fv_max(BITS_BYTES / row / FV_TILE, 1) * FV_TILE;
    struct choosing c;

    FV_TRY_CHOOSING(ctx, prepare(ctx, call, &c));
    return fv_run_stretches(ctx, call, step, attend_part, &c);
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    struct choosing c;

    FV_TRY(prepare(ctx, call, &c));
    return choose(ctx, &c, call, &pairs->plan);
}

const fv_mechanism fv_mechanism_sparsifiner = {
    .name = "sparsifiner",
    .title = "Sparsifiner",
    .paper = "arXiv 2303.13755",
    .sheet = 59,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_NEVER_CAUSAL | FV_SELF_ONLY | FV_ROWS_SUM_TO_ONE | FV_LINEAR_IN_V | FV_DIFFERENTIABLE,
    .formula = "guess = code * basis: the largest coefficients of softmax(gamma (Wq q).(down^T Wk k)), times |up|^T "
               "where it is above basis_threshold; softmax over the ceil(keep N) keys of largest guess",
    .cost = "each query reads keep N keys; guesses cost 2 N R F flops and N coef_top N at most, R = N / 6",
    .options = options,
    .options_size = sizeof(struct sparsifiner),
    .params = params,
    .check = check,
    .size = size,
    .forward = forward,
    .counts = true,
    .map = map,
};
