#include "ops/tape.h"

#include "ops/accumulate.h"
#include "ops/check.h"

/* Memory [from, to) whose gradient is kept; extents ascend and do not overlap. */
struct extent {
    const float *from, *to;
    float *gradient; /* NULL until somebody asks for gradients */
};

struct record {
    fv_backward_fn *backward;
    void *args;
};

struct fv_tape {
    struct extent *extents;
    int64_t extent_count, extent_capacity;
    struct record *records;
    int64_t record_count, record_capacity;
    fv_mark mark;
};

/* ---- extents --------------------------------------------------------------------------------------------------- */

/* false for a tensor without elements */
static bool extent_of(const fv_tensor *t, struct extent *extent)
{
    int64_t low = 0, high = 0;

    if (!fv_present(t)) return false;
    for (int d = 0; d < t->rank; d++) {
        int64_t last = (t->dims[d] - 1) * t->strides[d];
        if (t->dims[d] == 0) return false;
        low += fv_min(last, 0);
        high += fv_max(last, 0);
    }
    *extent = (struct extent){.from = (const float *)t->data + low, .to = (const float *)t->data + high + 1};
    return true;
}

/* The first extent that ends behind `from`. */
static int64_t first_behind(const struct fv_tape *tape, const float *from)
{
    int64_t low = 0, high = tape->extent_count;

    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (tape->extents[middle].to > from)
            high = middle;
        else
            low = middle + 1;
    }
    return low;
}

static bool known(const struct fv_tape *tape, const fv_tensor *t)
{
    struct extent extent;

    if (!extent_of(t, &extent)) return false;
    int64_t at = first_behind(tape, extent.from);
    return at < tape->extent_count && tape->extents[at].from < extent.to;
}

/* Adds an extent, joined with those that it overlaps. */
static fv_status join(struct fv_tape *tape, const fv_tensor *t)
{
    struct extent whole;
    bool gradients = false;

    if (!extent_of(t, &whole)) return FV_OK;
    FV_TRY(FV_GROW(tape->extents, tape->extent_capacity, tape->extent_count + 1));
    int64_t first = first_behind(tape, whole.from), last = first;
    for (; last < tape->extent_count && tape->extents[last].from < whole.to; last++) {
        const struct extent *old = &tape->extents[last];
        if (old->from <= whole.from && old->to >= whole.to) return FV_OK;
        whole.from = old->from < whole.from ? old->from : whole.from;
        whole.to = old->to > whole.to ? old->to : whole.to;
        gradients |= old->gradient != NULL;
    }
    if (gradients) FV_TRY(FV_ZALLOC(whole.gradient, whole.to - whole.from));
    for (int64_t i = first; i < last; i++) {
        const struct extent *old = &tape->extents[i];
        if (old->gradient)
            memcpy(whole.gradient + (old->from - whole.from), old->gradient,
                   (size_t)(old->to - old->from) * sizeof(float));
        fv_free(old->gradient);
    }
    memmove(tape->extents + first + 1, tape->extents + last,
            (size_t)(tape->extent_count - last) * sizeof *tape->extents);
    tape->extents[first] = whole;
    tape->extent_count += 1 - (last - first);
    return FV_OK;
}

static fv_status allocate_gradients(struct fv_tape *tape)
{
    for (int64_t i = 0; i < tape->extent_count; i++) {
        struct extent *extent = &tape->extents[i];
        if (!extent->gradient) FV_TRY(FV_ZALLOC(extent->gradient, extent->to - extent->from));
    }
    return FV_OK;
}

/* ---- the tape -------------------------------------------------------------------------------------------------- */

fv_status fv_tape_begin(fv_ctx *ctx)
{
    struct fv_tape *tape;

    if (ctx->tape) return fv_fail(FV_E_ARGUMENT, "tape: this context records already");
    FV_TRY(FV_ZALLOC(tape, 1));
    tape->mark = fv_scratch_mark(ctx);
    ctx->tape = tape;
    ctx->recording = true;
    return FV_OK;
}

void fv_tape_end(fv_ctx *ctx)
{
    struct fv_tape *tape = ctx->tape;

    if (!tape) return;
    ctx->tape = NULL;
    ctx->recording = false;
    for (int64_t i = 0; i < tape->extent_count; i++)
        fv_free(tape->extents[i].gradient);
    fv_free(tape->extents);
    fv_free(tape->records);
    fv_scratch_release(ctx, tape->mark);
    fv_free(tape);
}

static fv_status need_tape(const fv_ctx *ctx)
{
    return ctx->tape ? FV_OK : fv_fail(FV_E_ARGUMENT, "tape: this context has none; fv_tape_begin comes first");
}

fv_status fv_tape_watch(fv_ctx *ctx, const fv_tensor *leaf)
{
    FV_TRY(need_tape(ctx));
    FV_TRY(fv_check_rank("tape", "leaf", leaf, FV_TYPE(FV_F32), 0, FV_MAX_RANK));
    return join(ctx->tape, leaf);
}

fv_status fv_tape_leaf(fv_ctx *ctx, fv_tensor *t)
{
    fv_tensor copy;

    FV_TRY(fv_tensor_new(ctx, &copy, FV_F32, t->rank, t->dims));
    FV_TRY(fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *t, .out = copy}));
    *t = copy;
    return fv_tape_watch(ctx, t);
}

fv_status fv_tape_seed(fv_ctx *ctx, const fv_tensor *output, const fv_tensor *gradient)
{
    fv_tensor shadow;

    FV_TRY(need_tape(ctx));
    FV_TRY(fv_check("tape", "gradient", gradient, FV_TYPE(FV_F32), output->rank, output->dims));
    FV_TRY(allocate_gradients(ctx->tape));
    if (!fv_tape_gradient(ctx, output, &shadow))
        return fv_fail(FV_E_ARGUMENT, "tape: the output of shape %s does not depend on a watched tensor",
                       fv_shape_text(output));
    fv_add_into(ctx, &shadow, gradient, 1);
    return FV_OK;
}

fv_status fv_tape_backward(fv_ctx *ctx)
{
    fv_status status = FV_OK;

    FV_TRY(need_tape(ctx));
    FV_TRY(allocate_gradients(ctx->tape));
    ctx->recording = false;
    while (ctx->tape->record_count > 0 && status == FV_OK) {
        const struct record *record = &ctx->tape->records[--ctx->tape->record_count];
        fv_mark mark = fv_scratch_mark(ctx);
        status = record->backward(ctx, record->args);
        fv_scratch_release(ctx, mark);
    }
    ctx->recording = true;
    return status;
}

bool fv_tape_gradient(fv_ctx *ctx, const fv_tensor *tensor, fv_tensor *gradient)
{
    struct extent extent;

    if (!ctx->tape || tensor->dtype != FV_F32 || !extent_of(tensor, &extent)) return false;
    int64_t at = first_behind(ctx->tape, extent.from);
    if (at == ctx->tape->extent_count) return false;
    const struct extent *home = &ctx->tape->extents[at];
    if (home->from > extent.from || home->to < extent.to || !home->gradient) return false;
    *gradient = *tensor;
    gradient->data = home->gradient + ((const float *)tensor->data - home->from);
    return true;
}

fv_status fv_tape_hand_out(fv_ctx *ctx, const char *owner, const char *name, const fv_tensor *leaf,
                           const fv_tensor *out)
{
    fv_tensor gradient;

    if (!fv_present(out)) return FV_OK;
    if (!fv_tensor_same_shape(leaf, out))
        return fv_fail(FV_E_SHAPE, "%s: gradient of %s: expected %s, got %s", owner, name, fv_shape_text(leaf),
                       fv_shape_text(out));
    if (!fv_tape_gradient(ctx, leaf, &gradient)) return fv_fill(ctx, out, 0);
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = gradient, .out = *out});
}

static fv_status check_f32(const fv_tensor *t)
{
    if (t->dtype == FV_F32) return FV_OK;
    return fv_fail(FV_E_DTYPE, "tape: a tensor of shape %s that depends on a leaf: expected f32, got %s",
                   fv_shape_text(t), fv_dtype_name(t->dtype));
}

fv_status fv_tape_record(fv_ctx *ctx, fv_backward_fn *backward, const void *args, size_t size, int inputs,
                         const fv_tensor *const *input, int outputs, const fv_tensor *const *output)
{
    struct fv_tape *tape = ctx->tape;
    struct record record = {.backward = backward};
    bool wanted = false;

    if (!ctx->recording) return FV_OK;
    for (int i = 0; i < inputs; i++)
        wanted |= known(tape, input[i]);
    if (!wanted) return FV_OK;
    for (int i = 0; i < inputs; i++) {
        if (!known(tape, input[i])) continue;
        FV_TRY(check_f32(input[i]));
        FV_TRY(join(tape, input[i])); /* a view may reach beyond what was written so far */
    }
    for (int i = 0; i < outputs; i++) {
        if (!fv_present(output[i])) continue;
        FV_TRY(check_f32(output[i]));
        FV_TRY(join(tape, output[i]));
    }
    FV_TRY(FV_GROW(tape->records, tape->record_capacity, tape->record_count + 1));
    FV_TRY(fv_arena_alloc(ctx->arena, &record.args, (int64_t)size, 1));
    memcpy(record.args, args, size);
    tape->records[tape->record_count++] = record;
    return FV_OK;
}
