/* Gradients of scan, in doubles.  The states are kept at every SEGMENT-th token and recomputed within a segment; R, the
 * gradient of the state, runs backward:  with S' the decayed state, e = v - [delta] S'^T k and S = S' + beta k e^T,
 *   d_q = S d_o,  R += q d_o^T,  d_beta = k.R e,  d_k = beta R e - [delta] S' d_e,  d_e = d_v = beta R^T k,
 *   d_S' = R - [delta] k d_e^T,  d_log_decay = sum of d_S' S' over what shares the factor,  R before = decay d_S'. */
#include <math.h>
#include <string.h>

#include "ops/ref/pieces.h"
#include "ops/ref/recurrence.h"
#include "ops/ref/ref.h"

enum { SEGMENT = 64 };

struct work {
    fv_ref_token token;
    double *kept_state, *kept_z; /* [segments][D,Dv], [segments][D]: before each segment */
    double *state, *z;           /* [SEGMENT + 1][..]: before each token of one, and after the last */
    double *r, *r_z;             /* gradients of the state and z */
    double *d_o, *d_e, *decayed; /* [Dv], [Dv], [D,Dv]: S' */
    double *d_q, *d_k, *d_decay; /* [D], [D], [max(D, Dv)] */
    double d_head_decay;
};

struct backward {
    const fv_scan_args *args;
    const fv_scan_grads *grads;
    struct work *work; /* per thread */
};

static void add_row(const fv_tensor *t, int64_t b, int64_t h, int64_t n, const double *row, int64_t count)
{
    if (!fv_present(t)) return;
    for (int64_t d = 0; d < count; d++)
        fv_ref_f32(t, b, h, n)[d * t->strides[3]] += (float)row[d];
}

/* From the read-out: d_q, and what it adds to r and r_z. */
static void readout(const struct backward *w, struct work *k, int64_t b, int64_t h, int64_t t, const double *state,
                    const double *z)
{
    const fv_scan_args *args = w->args;
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];
    double divisor, d_divisor = 0;
    bool floored;

    fv_ref_load(&w->grads->d_o, b, h, t, k->token.row, k->d_o);
    divisor = fv_ref_denominator(args, &k->token, z, &floored);
    for (int64_t c = 0; c < Dv; c++)
        k->d_o[c] = divisor != 0 ? k->d_o[c] / divisor : 0;
    for (int64_t d = 0; d < D; d++) {
        double sum = 0;
        for (int64_t c = 0; c < Dv; c++) {
            sum += state[d * Dv + c] * k->d_o[c];
            k->r[d * Dv + c] += k->token.q[d] * k->d_o[c];
        }
        k->d_q[d] = sum;
        if (args->normalise && !floored && divisor != 0) d_divisor -= sum * k->token.q[d] / divisor;
    }
    for (int64_t d = 0; d < D && args->normalise; d++) {
        k->d_q[d] += d_divisor * z[d];
        k->r_z[d] += d_divisor * k->token.q[d];
    }
    add_row(&w->grads->d_q, b, h, t, k->d_q, D);
}

/* From the write: d_k, d_v, d_beta; r becomes d_S', and k->decayed is S'. */
static void write_back(const struct backward *w, struct work *k, int64_t b, int64_t h, int64_t t, const double *before)
{
    const fv_scan_args *args = w->args;
    int64_t D = args->q.dims[3], Dv = args->v.dims[3], kv = h / (args->q.dims[1] / args->k.dims[1]);
    const fv_ref_token *token = &k->token;
    double d_beta = 0;

    memset(k->d_e, 0, (size_t)Dv * sizeof *k->d_e);
    memcpy(token->e, token->v, (size_t)Dv * sizeof *token->e);
    for (int64_t d = 0; d < D; d++) {
        for (int64_t c = 0; c < Dv; c++) {
            double decayed = before[d * Dv + c] * fv_ref_decay(args, token, d, c);
            k->decayed[d * Dv + c] = decayed;
            if (args->delta) token->e[c] -= decayed * token->k[d];
            k->d_e[c] += token->beta * k->r[d * Dv + c] * token->k[d];
        }
    }
    for (int64_t d = 0; d < D; d++) {
        double along = args->normalise ? k->r_z[d] : 0;
        for (int64_t c = 0; c < Dv; c++)
            along += k->r[d * Dv + c] * token->e[c];
        d_beta += token->k[d] * along;
        k->d_k[d] = token->beta * along;
        for (int64_t c = 0; c < Dv && args->delta; c++) {
            k->d_k[d] -= k->decayed[d * Dv + c] * k->d_e[c];
            k->r[d * Dv + c] -= token->k[d] * k->d_e[c];
        }
    }
    add_row(&w->grads->d_k, b, kv, t, k->d_k, D);
    add_row(&w->grads->d_v, b, kv, t, k->d_e, Dv);
    if (fv_present(&w->grads->d_beta)) *fv_ref_f32(&w->grads->d_beta, b, h, t) += (float)d_beta;
}

/* From the decay: d_log_decay; r and r_z become gradients of the state before the token. */
static void decay_back(const struct backward *w, struct work *k, int64_t b, int64_t h, int64_t t, const double *z)
{
    const fv_scan_args *args = w->args;
    const fv_tensor *out = &w->grads->d_log_decay;
    int64_t D = args->q.dims[3], Dv = args->v.dims[3];
    bool by_key = args->decay == FV_DECAY_PER_KEY, by_value = args->decay == FV_DECAY_PER_VALUE;

    if (args->decay == FV_DECAY_NONE) return;
    memset(k->d_decay, 0, (size_t)fv_max(D, Dv) * sizeof *k->d_decay);
    for (int64_t d = 0; d < D; d++) {
        for (int64_t c = 0; c < Dv; c++) {
            k->d_decay[by_key ? d : by_value ? c : 0] += k->r[d * Dv + c] * k->decayed[d * Dv + c];
            k->r[d * Dv + c] *= fv_ref_decay(args, &k->token, d, c);
        }
        if (args->normalise) {
            double factor = fv_ref_decay(args, &k->token, d, 0);
            k->d_decay[by_key ? d : 0] += k->r_z[d] * factor * z[d];
            k->r_z[d] *= factor;
        }
    }
    k->d_head_decay += k->d_decay[0];
    if (!fv_present(out)) return;
    if (by_key || by_value) add_row(out, b, h, t, k->d_decay, by_key ? D : Dv);
    if (args->decay == FV_DECAY_PER_TOKEN) *fv_ref_f32(out, b, h, t) += (float)k->d_decay[0];
}

static void head_back(const struct backward *w, struct work *k, int64_t b, int64_t h)
{
    const fv_scan_args *args = w->args;
    const fv_scan_grads *g = w->grads;
    int64_t N = args->q.dims[2], D = args->q.dims[3], Dv = args->v.dims[3], cells = D * Dv;
    int64_t segments = fv_ceil_div(N, SEGMENT);

    fv_ref_begin(args, b, h, k->state, k->z);
    for (int64_t t = 0; t < N; t++) {
        if (t % SEGMENT == 0) {
            memcpy(k->kept_state + t / SEGMENT * cells, k->state, (size_t)cells * sizeof *k->state);
            memcpy(k->kept_z + t / SEGMENT * D, k->z, (size_t)D * sizeof *k->z);
        }
        fv_ref_token_load(args, b, h, t, &k->token);
        fv_ref_step(args, &k->token, k->state, k->z);
    }
    for (int64_t d = 0; d < D; d++) {
        k->r_z[d] = fv_present(&g->d_z_out) ? *fv_ref_f32(&g->d_z_out, b, h, d) : 0;
        for (int64_t c = 0; c < Dv; c++)
            k->r[d * Dv + c] =
                fv_present(&g->d_state_out) ? fv_ref_f32(&g->d_state_out, b, h, d)[c * g->d_state_out.strides[3]] : 0;
    }
    k->d_head_decay = 0;
    for (int64_t s = segments - 1; s >= 0; s--) {
        int64_t first = s * SEGMENT, count = fv_min(SEGMENT, N - first);
        memcpy(k->state, k->kept_state + s * cells, (size_t)cells * sizeof *k->state);
        memcpy(k->z, k->kept_z + s * D, (size_t)D * sizeof *k->z);
        for (int64_t n = 0; n < count; n++) {
            memcpy(k->state + (n + 1) * cells, k->state + n * cells, (size_t)cells * sizeof *k->state);
            memcpy(k->z + (n + 1) * D, k->z + n * D, (size_t)D * sizeof *k->z);
            fv_ref_token_load(args, b, h, first + n, &k->token);
            fv_ref_step(args, &k->token, k->state + (n + 1) * cells, k->z + (n + 1) * D);
        }
        for (int64_t n = count - 1; n >= 0; n--) {
            fv_ref_token_load(args, b, h, first + n, &k->token);
            readout(w, k, b, h, first + n, k->state + (n + 1) * cells, k->z + (n + 1) * D);
            write_back(w, k, b, h, first + n, k->state + n * cells);
            decay_back(w, k, b, h, first + n, k->z + n * D);
        }
    }
    for (int64_t d = 0; d < D; d++) {
        if (fv_present(&g->d_z_in)) *fv_ref_f32(&g->d_z_in, b, h, d) += (float)k->r_z[d];
        add_row(&g->d_state_in, b, h, d, k->r + d * Dv, Dv);
    }
    if (args->decay == FV_DECAY_PER_HEAD && fv_present(&g->d_log_decay))
        ((float *)g->d_log_decay.data)[h * g->d_log_decay.strides[0]] += (float)k->d_head_decay;
}

/* All query heads of a key-value head, so that nobody else adds to its keys and values. */
static void keys_back(void *user, int64_t item, int thread)
{
    const struct backward *w = user;
    int64_t Hkv = w->args->k.dims[1], group = w->args->q.dims[1] / Hkv;

    for (int64_t n = 0; n < group; n++)
        head_back(w, &w->work[thread], item / Hkv, item % Hkv * group + n);
}

static fv_status work_new(fv_ctx *ctx, const fv_scan_args *args, struct work *k)
{
    int64_t N = args->q.dims[2], D = args->q.dims[3], Dv = args->v.dims[3], cells, segments, kept;

    segments = fv_ceil_div(N, SEGMENT) + 1;
    if (!fv_mul_i64(D, Dv, &cells) || !fv_mul_i64(cells, fv_max(segments, SEGMENT + 1), &kept))
        return fv_fail(FV_E_MEMORY, "scan backward: the size of the states overflows");
    FV_TRY(fv_ref_token_new(ctx, args, &k->token));
    FV_TRY(FV_SCRATCH(ctx, k->kept_state, segments * cells));
    FV_TRY(FV_SCRATCH(ctx, k->kept_z, segments * D));
    FV_TRY(FV_SCRATCH(ctx, k->state, (SEGMENT + 1) * cells));
    FV_TRY(FV_SCRATCH(ctx, k->z, (SEGMENT + 1) * D));
    FV_TRY(FV_SCRATCH(ctx, k->r, cells));
    FV_TRY(FV_SCRATCH(ctx, k->r_z, D));
    FV_TRY(FV_SCRATCH(ctx, k->d_o, Dv));
    FV_TRY(FV_SCRATCH(ctx, k->d_e, Dv));
    FV_TRY(FV_SCRATCH(ctx, k->decayed, cells));
    FV_TRY(FV_SCRATCH(ctx, k->d_q, D));
    FV_TRY(FV_SCRATCH(ctx, k->d_k, D));
    return FV_SCRATCH(ctx, k->d_decay, fv_max(D, Dv) + 1);
}

/* Whether several batches or key-value heads add to one element. */
static bool shared(const fv_scan_args *args, const fv_scan_grads *g)
{
    const fv_tensor *each[] = {&g->d_q, &g->d_k, &g->d_v, &g->d_beta, &g->d_state_in, &g->d_z_in};

    for (size_t n = 0; n < sizeof each / sizeof each[0]; n++)
        if (fv_present(each[n]) && !fv_ref_apart(each[n])) return true;
    if (!fv_present(&g->d_log_decay)) return false;
    if (args->decay != FV_DECAY_PER_HEAD) return !fv_ref_apart(&g->d_log_decay);
    return args->q.dims[0] > 1 || g->d_log_decay.strides[0] == 0;
}

fv_status fv_ref_scan_backward(fv_ctx *ctx, const fv_scan_args *args, const fv_scan_grads *grads)
{
    fv_mark mark = fv_scratch_mark(ctx);
    struct backward w = {.args = args, .grads = grads};
    int64_t items = args->q.dims[0] * args->k.dims[1];
    bool alone = shared(args, grads);
    fv_status status;

    FV_TRY_DONE(FV_SCRATCH(ctx, w.work, fv_ctx_threads(ctx)));
    for (int t = 0; t < (alone ? 1 : fv_ctx_threads(ctx)); t++)
        FV_TRY_DONE(work_new(ctx, args, &w.work[t]));
    if (alone) {
        for (int64_t item = 0; item < items; item++)
            keys_back(&w, item, 0);
    } else {
        fv_run(ctx, items, keys_back, &w);
    }
    status = fv_ctx_check(ctx);
done:
    fv_scratch_release(ctx, mark);
    return status;
}
