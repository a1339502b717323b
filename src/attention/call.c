/* Making a call: what was given, checked against the descriptor, with its sizes spelled out. */
#include <ctype.h>
#include <math.h>
#include <stdlib.h>

#include "attention/attention.h"
#include "ops/check.h"

/* ---- shapes of params ------------------------------------------------------------------------------------------- */

enum { SHAPE_NAMES = 8 };

/* Names that stand for whatever the first tensor has. */
struct free_names {
    int count;
    struct {
        const char *text;
        size_t length;
        int64_t size;
    } at[SHAPE_NAMES];
};

static bool same_word(const char *name, const char *text, size_t length)
{
    return strlen(name) == length && memcmp(name, text, length) == 0;
}

/* The size a name or number stands for; -1: free and not yet bound. */
static int64_t word_size(const fv_mechanism *mechanism, const fv_call *call, const struct free_names *names,
                         const char *text, size_t length)
{
    const struct {
        const char *name;
        int64_t size;
    } known[] = {{"B", call->batch}, {"H", call->query_heads}, {"Hkv", call->key_heads}, {"N", call->queries},
                 {"M", call->keys},  {"D", call->head_dim},    {"Dv", call->value_dim}};
    char word[64];

    if (isdigit((unsigned char)*text)) return strtoll(text, NULL, 10);
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (same_word(known[i].name, text, length)) return known[i].size;
    for (int i = 0; i < names->count; i++)
        if (names->at[i].length == length && memcmp(names->at[i].text, text, length) == 0) return names->at[i].size;
    if (!mechanism->size || length >= sizeof word) return -1;
    memcpy(word, text, length);
    word[length] = 0;
    return mechanism->size(call->options, call, word);
}

/* Reads a product of words, "2*D"; moves *text behind it.  -1: a single free word, put into free_text. */
static int64_t product_size(const fv_mechanism *mechanism, const fv_call *call, const struct free_names *names,
                            const char **text, const char **free_text)
{
    int64_t product = 1;

    for (;; (*text)++) {
        const char *word = *text;
        while (isalnum((unsigned char)**text) || **text == '_')
            (*text)++;
        int64_t size = word_size(mechanism, call, names, word, (size_t)(*text - word));
        if (size < 0) *free_text = word;
        if (size < 0 || !fv_mul_i64(product, size, &product)) return -1;
        if (**text != '*') return product;
    }
}

/* Reads one dim of a shape, "1|B"; true if `size` fits.  `expected` receives a size that would. */
static bool dim_fits(const fv_mechanism *mechanism, const fv_call *call, struct free_names *names, const char **text,
                     int64_t size, int64_t *expected)
{
    bool fits = false;

    for (;; (*text)++) {
        const char *word = NULL;
        while (**text == ' ' || **text == '[' || **text == ',')
            (*text)++;
        int64_t wanted = product_size(mechanism, call, names, text, &word);
        if (word && names->count < SHAPE_NAMES) {
            names->at[names->count].text = word;
            names->at[names->count].length = (size_t)(*text - word);
            names->at[names->count++].size = wanted = size;
        }
        *expected = wanted;
        fits |= wanted == size;
        if (**text != '|') return fits;
    }
}

static int shape_rank(const char *shape)
{
    int rank = 1;

    for (; *shape && *shape != ']'; shape++)
        rank += *shape == ',';
    return rank;
}

/* Of several shapes, "[H, N] or [H, N, M]", that of the rank, else the first. */
static const char *shape_of_rank(const char *shape, int rank)
{
    for (const char *each = shape; each; each = strchr(each + 1, '['))
        if (shape_rank(each) == rank) return each;
    return shape;
}

/* Whether dim `d` of a param is called `name` alone. */
static bool dim_is(const fv_param *param, int d, const char *name)
{
    const char *text = param->shape;

    for (; d > 0; text++)
        d -= *text == ',';
    text += strspn(text, "[ ,");
    return same_word(name, text, strcspn(text, ",]"));
}

static fv_status check_param(const fv_mechanism *mechanism, const fv_call *call, struct free_names *names,
                             const fv_param *param, const fv_tensor *t)
{
    const char *text = shape_of_rank(param->shape, t->rank);
    fv_tensor expected = {.data = t->data, .rank = shape_rank(text)}; /* with data its shape prints */
    bool fits = true;

    if (t->dtype != param->dtype)
        return fv_fail(FV_E_DTYPE, "%s: param '%s': expected %s, got %s", mechanism->name, param->name,
                       fv_dtype_name(param->dtype), fv_dtype_name(t->dtype));
    if (t->rank != expected.rank)
        return fv_fail(FV_E_SHAPE, "%s: param '%s': expected %s, got %s", mechanism->name, param->name, param->shape,
                       fv_shape_text(t));
    for (int d = 0; d < expected.rank; d++)
        fits &= dim_fits(mechanism, call, names, &text, t->dims[d], &expected.dims[d]);
    if (fits) return FV_OK;
    return fv_fail(FV_E_SHAPE, "%s: param '%s': expected %s = %s, got %s", mechanism->name, param->name, param->shape,
                   fv_shape_text(&expected), fv_shape_text(t));
}

/* ---- params by name --------------------------------------------------------------------------------------------- */

int fv_param_count(const fv_mechanism *mechanism)
{
    int count = 0;

    while (mechanism->params && mechanism->params[count].name)
        count++;
    return count;
}

static const char *param_name(const void *user, int index)
{
    return ((const fv_param *)user)[index].name;
}

fv_status fv_param_find(const fv_mechanism *mechanism, const char *name, int *index)
{
    int count = fv_param_count(mechanism);
    const char *near;

    for (*index = 0; *index < count; (*index)++)
        if (strcmp(mechanism->params[*index].name, name) == 0) return FV_OK;
    if (count == 0) return fv_fail(FV_E_USAGE, "%s: param '%s' is not known; it has none", mechanism->name, name);
    near = fv_nearest(name, count, param_name, mechanism->params);
    return fv_fail(FV_E_USAGE, "%s: param '%s' is not known; %s'%s'? ('fovea show %s' lists them)", mechanism->name,
                   name, near ? "did you mean " : "perhaps ", near ? near : mechanism->params[0].name, mechanism->name);
}

static fv_status place_params(const fv_mechanism *mechanism, int count, const fv_named_tensor *given, bool output,
                              fv_tensor *place)
{
    for (int i = 0; i < count; i++) {
        int index;
        FV_TRY(fv_param_find(mechanism, given[i].name, &index));
        if (output && !mechanism->params[index].output)
            return fv_fail(FV_E_USAGE, "%s: param '%s' is not one it writes", mechanism->name, given[i].name);
        if (place[index].data)
            return fv_fail(FV_E_USAGE, "%s: param '%s' is given twice", mechanism->name, given[i].name);
        if (!given[i].tensor.data)
            return fv_fail(FV_E_ARGUMENT, "%s: param '%s' has no data", mechanism->name, given[i].name);
        place[index] = given[i].tensor;
    }
    return FV_OK;
}

/* ---- the call --------------------------------------------------------------------------------------------------- */

/* What q, and k and v of a call and of a chunk may be: f32, plain, as a cache stores them. */
static const struct operand_types {
    unsigned types;
    const char *words;
} query_types = {FV_TYPE(FV_F32), "f32"}, key_types = {FV_TYPES_HALF, "f32, f16 or bf16"},
  row_types = {FV_TYPES_ROWS, "f32, f16, bf16, q8_0 or q4_0"};

static fv_status check_operand(const char *owner, const char *name, const fv_tensor *t, int rank,
                               const struct operand_types *types)
{
    int64_t block = fv_dtype_block(t->dtype);

    if (!t->data) return fv_fail(FV_E_ARGUMENT, "%s: %s is missing", owner, name);
    if (!fv_type_in(t->dtype, types->types))
        return fv_fail(FV_E_DTYPE, "%s: %s: expected %s, got %s", owner, name, types->words, fv_dtype_name(t->dtype));
    if (t->rank != rank)
        return fv_fail(FV_E_SHAPE, "%s: %s: expected %d dims, got shape %s", owner, name, rank, fv_shape_text(t));
    for (int d = 0; d < rank; d++)
        if (t->dims[d] < (d != 2) || t->dims[d] > INT32_MAX)
            return fv_fail(FV_E_SHAPE, "%s: %s: expected dims of 1 to 2^31-1, got shape %s", owner, name,
                           fv_shape_text(t));
    if (block > 1 && (t->dims[rank - 1] % block != 0 || t->strides[rank - 1] != 1))
        return fv_fail(FV_E_SHAPE, "%s: %s: expected rows of whole %s blocks of %lld, got shape %s", owner, name,
                       fv_dtype_name(t->dtype), (long long)block, fv_shape_text(t));
    return FV_OK;
}

static fv_status check_operands(const char *owner, const fv_attention_args *args, bool chunk)
{
    const fv_tensor *q = &args->q, *k = &args->k, *v = &args->v;

    FV_TRY(check_operand(owner, "q", q, 4, &query_types));
    FV_TRY(check_operand(owner, "k", k, 4, chunk ? &row_types : &key_types));
    FV_TRY(check_operand(owner, "v", v, 4, chunk ? &row_types : &key_types));
    if (k->dims[0] != q->dims[0] || k->dims[3] != q->dims[3])
        return fv_fail(FV_E_SHAPE, "%s: k: expected the batch and head dim of q %s, got %s", owner, fv_shape_text(q),
                       fv_shape_text(k));
    if (v->dims[0] != k->dims[0] || v->dims[1] != k->dims[1] || v->dims[2] != k->dims[2])
        return fv_fail(FV_E_SHAPE, "%s: v: expected the batch, heads and keys of k %s, got %s", owner, fv_shape_text(k),
                       fv_shape_text(v));
    if (q->dims[1] % k->dims[1] != 0)
        return fv_fail(FV_E_SHAPE, "%s: k: %lld key-value heads do not divide %lld query heads (shapes %s and %s)",
                       owner, (long long)k->dims[1], (long long)q->dims[1], fv_shape_text(q), fv_shape_text(k));
    return FV_OK;
}

static fv_status check_outputs(const char *owner, const fv_attention_args *args)
{
    const int64_t *q = args->q.dims;
    const fv_tensor o = {.data = args->o.data, .rank = 4, .dims = {q[0], q[1], q[2], args->v.dims[3]}};
    const fv_tensor lse = {.data = args->lse.data, .rank = 3, .dims = {q[0], q[1], q[2]}};

    FV_TRY(check_operand(owner, "o", &args->o, 4, &query_types));
    if (!fv_tensor_same_shape(&args->o, &o))
        return fv_fail(FV_E_SHAPE, "%s: o: expected %s, got %s", owner, fv_shape_text(&o), fv_shape_text(&args->o));
    if (!args->lse.data) return FV_OK;
    FV_TRY(check_operand(owner, "lse", &args->lse, 3, &query_types));
    if (!fv_tensor_same_shape(&args->lse, &lse))
        return fv_fail(FV_E_SHAPE, "%s: lse: expected %s, got %s", owner, fv_shape_text(&lse),
                       fv_shape_text(&args->lse));
    return FV_OK;
}

/* What the traits refuse. */
static fv_status check_promises(const fv_mechanism *mechanism, const fv_attention_args *args)
{
    if (args->causal && (mechanism->traits & FV_NEVER_CAUSAL))
        return fv_fail(FV_E_USAGE, "%s: cannot be causal", mechanism->name);
    if (args->scale && (mechanism->traits & FV_NO_SCALE))
        return fv_fail(FV_E_USAGE, "%s: has no scale", mechanism->name);
    if (args->scale && !isfinite(*args->scale))
        return fv_fail(FV_E_USAGE, "%s: scale: expected a finite number, got %g", mechanism->name, *args->scale);
    if (args->lse.data && (mechanism->traits & FV_NO_LSE))
        return fv_fail(FV_E_USAGE, "%s: has no log-sum-exp", mechanism->name);
    return FV_OK;
}

static fv_status make(const fv_attention *attention, const fv_attention_args *args, bool chunk, fv_call *call)
{
    const fv_mechanism *mechanism = attention->mechanism;
    struct free_names names = {0};

    FV_TRY(check_promises(mechanism, args));
    FV_TRY(check_operands(mechanism->name, args, chunk));
    FV_TRY(check_outputs(mechanism->name, args));
    *call = (fv_call){
        .mechanism = mechanism,
        .options = attention->options,
        .q = args->q,
        .k = args->k,
        .v = args->v,
        .o = args->o,
        .lse = args->lse,
        .batch = args->q.dims[0],
        .query_heads = args->q.dims[1],
        .key_heads = args->k.dims[1],
        .queries = args->q.dims[2],
        .keys = args->k.dims[2],
        .head_dim = args->q.dims[3],
        .value_dim = args->v.dims[3],
        .offset = args->k.dims[2] - args->q.dims[2],
        .causal = args->causal || (mechanism->traits & FV_CAUSAL),
        .decoding = chunk,
        .scale = args->scale ? *args->scale : (float)(1 / sqrt((double)args->q.dims[3])),
    };
    if ((mechanism->traits & FV_SELF_ONLY) && !chunk && call->queries != call->keys)
        return fv_fail(FV_E_SHAPE, "%s: expected as many queries as keys, got %lld and %lld", mechanism->name,
                       (long long)call->queries, (long long)call->keys);
    FV_TRY(place_params(mechanism, args->params, args->param, false, call->param));
    FV_TRY(place_params(mechanism, args->params_out, args->param_out, true, call->param_out));
    for (int i = 0; i < fv_param_count(mechanism); i++) {
        const fv_param *param = &mechanism->params[i];
        if (call->param[i].data) FV_TRY(check_param(mechanism, call, &names, param, &call->param[i]));
        if (call->param_out[i].data) FV_TRY(check_param(mechanism, call, &names, param, &call->param_out[i]));
    }
    return mechanism->accept ? mechanism->accept(call) : FV_OK;
}

fv_status fv_call_make(const fv_attention *attention, const fv_attention_args *args, fv_call *call)
{
    return make(attention, args, false, call);
}

fv_status fv_call_chunk(const fv_attention *attention, const fv_attention_args *args, fv_call *call)
{
    return make(attention, args, true, call);
}

void fv_call_cut(const fv_call *call, int64_t from, int64_t count, fv_call *part)
{
    const fv_mechanism *mechanism = call->mechanism;
    bool recurrent = (mechanism->traits & FV_RECURRENT) && call->causal;
    int64_t keys = fv_clamp(call->offset + from + count, 0, call->keys);
    int64_t key_from = recurrent && from > 0 ? fv_clamp(call->offset + from, 0, call->keys) : 0;

    *part = *call;
    part->decoding = true;
    part->queries = count;
    part->keys = keys - key_from;
    part->offset = call->offset + from - key_from;
    part->q = fv_slice(&call->q, 2, from, count);
    part->o = fv_slice(&call->o, 2, from, count);
    if (fv_present(&call->lse)) part->lse = fv_slice(&call->lse, 2, from, count);
    part->k = fv_slice(&call->k, 2, key_from, part->keys);
    part->v = fv_slice(&call->v, 2, key_from, part->keys);
    for (int i = 0; i < fv_param_count(mechanism); i++) {
        fv_tensor *t = &part->param[i];
        for (int d = 0; fv_present(t) && d < t->rank; d++) {
            if (dim_is(&mechanism->params[i], d, "N")) *t = fv_slice(t, d, from, count);
            if (dim_is(&mechanism->params[i], d, "M")) *t = fv_slice(t, d, key_from, part->keys);
        }
    }
}

fv_logits fv_call_logits(const fv_call *call)
{
    return (fv_logits){
        .scale = call->scale, .zero_scale = call->scale == 0, .softcap = call->softcap, .gain = call->gain};
}
