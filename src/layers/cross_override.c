/* A block of a video model above the resolution it was trained at: one copy of the tokens attends to a window of the
 * trained size, the other to all tokens, and what that one reads of the text both receive.  FreeSwim, arXiv
 * 2511.14712.
 *
 * Where the definition leaves it open: an axis shorter than the window is seen whole, also by windows that end at its
 * borders. */
#include <math.h>

#include "layers/layer.h"

struct steer {
    fv_tuple grid, native;
    int64_t heads;
    bool override, inward, temp_fix;
};

static const fv_option options[] = {
    FV_SIDES(struct steer, grid, "frames x rows x columns", NULL, 1, INT32_MAX,
             "frames x rows x columns of the tokens"),
    FV_SIDES(struct steer, native, "rows x columns", NULL, 1, INT32_MAX,
             "rows x columns that the model was trained on"),
    FV_INT_REQUIRED(struct steer, heads, 1, INT32_MAX, "of both attentions; they divide C"),
    FV_BOOL(struct steer, override, 1, "w takes what f reads of the text; 0: it reads itself"),
    FV_BOOL(struct steer, inward, 1, "windows move inwards at borders; 0: they end there"),
    FV_BOOL(struct steer, temp_fix, 1, "logits among tokens grow by sqrt(ln(2 h w) / ln(h w)), h x w native"),
    FV_OPTIONS_END,
};

enum { W, F, TEXT };
static const fv_param inputs[] = {
    FV_PARAM_NEEDED("w", "[B, N, C]", "tokens of the windowed copy, frame by frame, row by row"),
    FV_PARAM_NEEDED("f", "[B, N, C]", "tokens of the copy that sees all"),
    FV_PARAM_NEEDED("c", "[B, T, C]", "what the text says, a row for each of its tokens"),
    {0},
};

enum { SELF, CROSS = 4, BIASES = 8 }; /* first of q, k, v, o */
enum { PART_Q, PART_K, PART_V, PART_O };
static const fv_param params[] = {
    FV_PARAM_NEEDED("self_q", "[C, C]", "of queries to tokens"),
    FV_PARAM_NEEDED("self_k", "[C, C]", "of their keys"),
    FV_PARAM_NEEDED("self_v", "[C, C]", "of their values"),
    FV_PARAM_NEEDED("self_o", "[C, C]", "of the result"),
    FV_PARAM_NEEDED("cross_q", "[C, C]", "of queries to the text"),
    FV_PARAM_NEEDED("cross_k", "[C, C]", "of its keys"),
    FV_PARAM_NEEDED("cross_v", "[C, C]", "of its values"),
    FV_PARAM_NEEDED("cross_o", "[C, C]", "of the result"),
    FV_PARAM("self_q_bias", "[C]", "(0)"),
    FV_PARAM("self_k_bias", "[C]", "(0)"),
    FV_PARAM("self_v_bias", "[C]", "(0)"),
    FV_PARAM("self_o_bias", "[C]", "(0)"),
    FV_PARAM("cross_q_bias", "[C]", "(0)"),
    FV_PARAM("cross_k_bias", "[C]", "(0)"),
    FV_PARAM("cross_v_bias", "[C]", "(0)"),
    FV_PARAM("cross_o_bias", "[C]", "(0)"),
    {0},
};

static const fv_param outputs[] = {
    FV_PARAM("w", "[B, N, C]", "the windowed copy behind both attentions"),
    FV_PARAM("f", "[B, N, C]", "the other"),
    {0},
};

static fv_status check(const void *values)
{
    const struct steer *o = values;
    int64_t tokens;

    if (!fv_mul_i64(o->grid.items[0], o->grid.items[1], &tokens) || !fv_mul_i64(tokens, o->grid.items[2], &tokens))
        return fv_fail(FV_E_USAGE, "cross_override: option 'grid': more than 2^63 tokens");
    if (o->temp_fix && o->native.items[0] * o->native.items[1] == 1)
        return fv_fail(FV_E_USAGE,
                       "cross_override: option 'native': temp_fix=1 needs more than one token, as ln 1 = 0");
    return FV_OK;
}

static int64_t size(const fv_layer_call *call, const char *name)
{
    const int64_t *grid = ((const struct steer *)call->options)->grid.items;

    return strcmp(name, "N") == 0 ? grid[0] * grid[1] * grid[2] : -1;
}

static fv_status accept(const fv_layer_call *call)
{
    return fv_layer_check_heads(call, ((const struct steer *)call->options)->heads, "C");
}

/* All frames, and of rows and columns 2 (native div 2) + 1 around the query. */
static fv_plan windows(const struct steer *o)
{
    fv_plan plan = {.grid.rank = 3};

    memcpy(plan.grid.dims, o->grid.items, sizeof plan.grid.dims);
    plan.grid.window[0] = plan.grid.dims[0];
    for (int a = 1; a < 3; a++) {
        int64_t window = o->native.items[a - 1] / 2 * 2 + 1;
        plan.grid.window[a] = fv_min(window, plan.grid.dims[a]);
        plan.grid.truncated[a] = !o->inward && window <= plan.grid.dims[a];
    }
    return plan;
}

/* Scale of the logits among tokens. */
static float sharpened(const struct steer *o, int64_t C)
{
    double native = (double)(o->native.items[0] * o->native.items[1]), D = (double)C / (double)o->heads;

    return (float)sqrt((o->temp_fix ? log(2 * native) / log(native) : 1) / D);
}

/* The heads of x by a matrix. */
static fv_status project(fv_ctx *ctx, const fv_layer_call *call, const fv_tensor *x, int part, fv_tensor *out)
{
    return fv_layer_project(ctx, x, &call->param[part], &call->param[BIASES + part],
                            ((const struct steer *)call->options)->heads, out);
}

/* out = x + o where o is what x reads of `of`; `read` receives o alone. */
static fv_status add_read(fv_ctx *ctx, const fv_layer_call *call, int first, const fv_tensor *x, const fv_tensor *of,
                          const fv_plan *plan, float scale, fv_tensor *read, const fv_tensor *out)
{
    const fv_tensor *w = call->param;
    fv_attend_args args = {.plan = plan, .logits.scale = scale};
    fv_tensor o;

    FV_TRY(project(ctx, call, x, first + PART_Q, &args.q));
    FV_TRY(project(ctx, call, of, first + PART_K, &args.k));
    FV_TRY(project(ctx, call, of, first + PART_V, &args.v));
    FV_TRY(fv_tensor_new(ctx, &o, FV_F32, 3, x->dims));
    args.o = fv_layer_heads(&o, args.q.dims[1]);
    FV_TRY(fv_attend(ctx, &args));
    *read = (fv_tensor){0};
    FV_TRY(fv_layer_linear(ctx, &o, &w[first + PART_O], &w[BIASES + first + PART_O], read));
    if (!fv_present(out)) return FV_OK;
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = *x, .y = *read, .out = *out});
}

static fv_status forward(fv_ctx *ctx, const fv_layer_call *call)
{
    const struct steer *o = call->options;
    const fv_tensor *in = call->in, *out = call->out, *text = &in[TEXT];
    const fv_plan window = windows(o);
    float scale = sharpened(o, in[W].dims[2]);
    fv_tensor x, read, said;

    if (fv_present(&out[F]) || o->override) {
        FV_TRY(fv_tensor_new(ctx, &x, FV_F32, 3, in[F].dims));
        FV_TRY(add_read(ctx, call, SELF, &in[F], &in[F], NULL, scale, &read, &x));
        FV_TRY(add_read(ctx, call, CROSS, &x, text, NULL, 0, &said, &out[F]));
    }
    if (!fv_present(&out[W])) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &x, FV_F32, 3, in[W].dims));
    FV_TRY(add_read(ctx, call, SELF, &in[W], &in[W], &window, scale, &read, &x));
    if (!o->override) return add_read(ctx, call, CROSS, &x, text, NULL, 0, &said, &out[W]);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = x, .y = said, .out = out[W]});
}

const fv_layer_type fv_layer_cross_override = {
    .name = "cross_override",
    .title = "Windowed and full copy with one reading of the text (FreeSwim)",
    .paper = "arXiv 2511.14712",
    .sheet = 5,
    .kind = FV_KIND_STEER,
    .traits = FV_LAYER_DIFFERENTIABLE,
    .formula = "w += MHA(w in windows); f += MHA(f); r = MHA(f; text); w += r, f += r; logits among tokens scaled by "
               "sqrt(ln(2 h w) / ln(h w) / D)",
    .cost = "4 N C flops for each key: N for f, T (2 (h div 2) + 1) (2 (w div 2) + 1) for w; 8 N C^2 for each copy, "
            "4 N C^2 to read the text",
    .options = options,
    .options_size = sizeof(struct steer),
    .inputs = inputs,
    .params = params,
    .outputs = outputs,
    .check = check,
    .size = size,
    .accept = accept,
    .forward = forward,
};
