/* GUI-KV: SnapKV for prompts of many screenshots (frames).  Tokens of the newest one gain by how loud they are, and
 * tokens of older ones whose keys lie in the newest one's span lose their score. */
#include <math.h>
#include <stdlib.h>

#include "cache/frame_scores.h"
#include "cache/window_scores.h"

enum { KERNEL = 5, MOST_FRAMES = FV_TEXT_MAX / 4 };

struct guikv {
    double budget_pct, alpha, tau;
    int64_t window, rank;
    char frames[FV_TEXT_MAX];
    int norm, subspace, per;
};

static const char *const norms[] = {"input", "residual", NULL};
static const char *const subspaces[] = {"first", "svd", NULL};
static const char *const pers[] = {"kv", "query", NULL};
enum { NORM_INPUT, NORM_RESIDUAL };
enum { SUBSPACE_FIRST, SUBSPACE_SVD };
enum { PER_KV, PER_QUERY };

static const fv_option options[] = {
    FV_FLOAT(struct guikv, budget_pct, 20, 0, 100, "rows kept, in percent of the text; above 0"),
    FV_INT(struct guikv, window, 8, 1, 64, "last rows, always kept, whose queries score the others"),
    FV_FLOAT(struct guikv, alpha, 2, 0, 1e6, "what the newest frame's tokens gain together"),
    FV_FLOAT(struct guikv, tau, 3.5, 1e-6, 1e6, "how evenly they gain"),
    FV_INT(struct guikv, rank, 32, 1, INT32_MAX, "directions of the newest frame's keys"),
    FV_WORDS(struct guikv, frames, "", "positions start-end+start-end, end exclusive, oldest first"),
    FV_ENUM(struct guikv, norm, "input", norms, "whose length is loudness: what q, k and v read, or the residual"),
    FV_ENUM(struct guikv, subspace, "first", subspaces, "span of the first keys, or of the main directions"),
    FV_ENUM(struct guikv, per, "kv", pers,
            "one list for each key-value head, or all that one of its query heads lists"),
    FV_OPTIONS_END,
};

/* ---- frames ------------------------------------------------------------------------------------------------------ */

struct span {
    int64_t start, end;
};

struct frames {
    int count;
    struct span at[MOST_FRAMES];
};

/* Digits up to INT32_MAX, then `behind`. */
static bool read_number(const char **text, char behind, int64_t *number)
{
    const char *c = *text;

    *number = 0;
    while (*c >= '0' && *c <= '9' && *number <= INT32_MAX)
        *number = *number * 10 + (*c++ - '0');
    if (c == *text || *number > INT32_MAX || (behind && *c != behind)) return false;
    *text = c + (behind != 0);
    return true;
}

static fv_status read_frames(const char *text, struct frames *frames)
{
    const char *c = text;

    frames->count = 0;
    while (*c) {
        struct span *span = &frames->at[frames->count];
        int64_t before = frames->count ? span[-1].end : 0;
        if (!read_number(&c, '-', &span->start) || !read_number(&c, 0, &span->end) || (*c && (*c != '+' || !c[1])))
            return fv_fail(FV_E_USAGE, "guikv: option 'frames': expected start-end+start-end, got '%.200s'", text);
        if (span->start >= span->end || span->start < before)
            return fv_fail(FV_E_USAGE,
                           "guikv: option 'frames': expected each frame to end behind its start and to begin behind "
                           "the one before, got %lld-%lld behind %lld",
                           (long long)span->start, (long long)span->end, (long long)before);
        frames->count++;
        if (*c) c++;
    }
    return FV_OK;
}

static fv_status check(const void *values)
{
    const struct guikv *o = values;
    struct frames frames;

    if (!(o->budget_pct > 0))
        return fv_fail(FV_E_USAGE, "guikv: option 'budget_pct': expected more than 0, got %g", o->budget_pct);
    return read_frames(o->frames, &frames);
}

static fv_status open(fv_policy_use *use)
{
    const struct guikv *o = use->options;
    struct frames *frames;

    FV_TRY(FV_ALLOC(frames, 1));
    use->plan = frames;
    return read_frames(o->frames, frames);
}

static void close(fv_policy_use *use)
{
    fv_free(use->plan);
}

/* ---- while the prompt is read ------------------------------------------------------------------------------------ */

struct state {
    fv_window_queries window;
    float *norm; /* of the tokens from the first frame's start to the last one's end; kept for later prompts */
    int64_t tokens;
};

/* Lengths of the tokens that frames are made of. */
static fv_status note_norms(fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct guikv *o = layer->use->options;
    const struct frames *frames = layer->use->plan;
    const fv_tensor *x = o->norm == NORM_INPUT ? &call->input : &call->residual;
    struct state *state = layer->state;
    int64_t first, end;

    if (frames->count == 0 || o->alpha == 0) return FV_OK;
    first = frames->at[0].start;
    end = fv_min(frames->at[frames->count - 1].end, layer->use->model->context);
    if (first >= end) return FV_OK;
    if (!state->norm) FV_TRY(FV_ZALLOC(state->norm, end - first));
    state->tokens = end - first;
    for (int64_t p = fv_max(call->offset, first); p < fv_min(call->offset + call->queries, end); p++) {
        double square = 0;
        for (int64_t c = 0; c < x->dims[1]; c++) {
            double value = (double)*(const float *)fv_at(x, p - call->offset, c, 0, 0);
            square += value * value;
        }
        state->norm[p - first] = (float)sqrt(square);
    }
    return FV_OK;
}

static fv_status after(fv_ctx *ctx, fv_policy_layer *layer, const fv_policy_call *call)
{
    const struct guikv *o = layer->use->options;
    struct state *state = layer->state;

    (void)ctx;
    FV_TRY(fv_window_note(&state->window, layer, call, o->window));
    return note_norms(layer, call);
}

static void drop(fv_policy_layer *layer)
{
    struct state *state = layer->state;

    fv_window_drop(layer);
    fv_free(state->norm);
    *state = (struct state){0};
}

static size_t state_bytes(const fv_policy_layer *layer)
{
    const struct state *state = layer->state;

    return fv_window_state_bytes(layer) + (size_t)state->tokens * sizeof(float);
}

/* ---- scores of one key-value head -------------------------------------------------------------------------------- */

struct choice {
    int64_t cap, window;
    fv_window_vote vote;
};

struct head {
    fv_policy_layer *layer;
    int64_t key_head, count, columns; /* rows held, and those that can be dropped */
    struct span newest;               /* places */
    int32_t *older;                   /* [olders] places in older frames, ascending */
    int64_t olders;
};

/* Places of a frame's rows that are held and can be dropped. */
static struct span places_of(const struct head *h, const struct span *frame)
{
    int64_t start = fv_rows_below(h->layer->rows, h->key_head, frame->start);
    int64_t end = fv_rows_below(h->layer->rows, h->key_head, frame->end);

    return (struct span){start, fv_min(end, h->columns)};
}

/* The newest frame is the last of which there are such rows. */
static fv_status find_frames(fv_ctx *ctx, struct head *h)
{
    const struct frames *frames = h->layer->use->plan;

    FV_TRY(FV_SCRATCH(ctx, h->older, h->columns));
    for (int f = 0; f < frames->count; f++) {
        struct span span = places_of(h, &frames->at[f]);
        if (span.start >= span.end) continue;
        for (int64_t j = h->newest.start; j < h->newest.end; j++)
            h->older[h->olders++] = (int32_t)j;
        h->newest = span;
    }
    return FV_OK;
}

/* bonus [columns], 0 outside the newest frame. */
static fv_status find_bonus(fv_ctx *ctx, const struct head *h, float *bonus)
{
    const struct guikv *o = h->layer->use->options;
    const struct frames *frames = h->layer->use->plan;
    const struct state *state = h->layer->state;
    const int32_t *position = fv_rows_positions(h->layer->rows, h->key_head);
    int64_t count = h->newest.end - h->newest.start;
    float *norm;

    memset(bonus, 0, (size_t)h->columns * sizeof *bonus);
    if (count == 0 || o->alpha == 0) return FV_OK;
    FV_TRY(FV_SCRATCH(ctx, norm, count));
    for (int64_t j = 0; j < count; j++)
        norm[j] = state->norm[position[h->newest.start + j] - frames->at[0].start];
    fv_frame_bonus(norm, count, o->alpha, o->tau, bonus + h->newest.start);
    return FV_OK;
}

/* Keys of a head's rows as f32: keys [count, D]. */
static fv_status read_keys(fv_ctx *ctx, const struct head *h, const int32_t *place, int64_t count, float **keys)
{
    int64_t D = h->layer->use->model->key_dim;
    fv_tensor k, v, out;

    FV_TRY(FV_SCRATCH(ctx, *keys, count * D));
    FV_TRY(fv_tensor_wrap(&out, *keys, FV_F32, FV_DIMS(count, D)));
    fv_rows_view(h->layer->rows, h->key_head, 1, &k, &v);
    return fv_dequantize_rows(
        ctx, &(fv_dequantize_args){.x = fv_reshaped(&k, FV_DIMS(h->count, D)), .out = out, .index = place});
}

/* spent[0..zeros): places of older frames whose keys the newest one's say best. */
static fv_status find_spent(fv_ctx *ctx, const struct head *h, int64_t cap, int32_t **spent, int64_t *zeros)
{
    const struct guikv *o = h->layer->use->options;
    int64_t D = h->layer->use->model->key_dim, count = h->newest.end - h->newest.start, directions;
    bool svd = o->subspace == SUBSPACE_SVD;
    float *keys, *basis, *residual;
    int32_t *newest;

    *zeros = (int64_t)((1 - (double)cap / (double)h->count) * (double)h->olders);
    if (*zeros <= 0) return FV_OK;
    if (!svd) count = fv_min(count, fv_min(o->rank, D));
    FV_TRY(FV_SCRATCH(ctx, newest, count));
    for (int64_t j = 0; j < count; j++)
        newest[j] = (int32_t)(h->newest.start + j);
    FV_TRY(FV_SCRATCH(ctx, basis, fv_min(o->rank, fv_min(count, D)) * D));
    FV_TRY(FV_SCRATCH(ctx, residual, h->olders));
    FV_TRY(FV_SCRATCH(ctx, *spent, *zeros));
    FV_TRY(read_keys(ctx, h, newest, count, &keys));
    FV_TRY(fv_frame_basis(ctx, keys, count, D, o->rank, svd, basis, &directions));
    FV_TRY(read_keys(ctx, h, h->older, h->olders, &keys));
    FV_TRY(fv_frame_residuals(ctx, keys, h->olders, D, basis, directions, residual));
    for (int64_t t = 0; t < h->olders; t++)
        residual[t] = -residual[t];
    FV_TRY(fv_window_top(ctx, residual, h->olders, *zeros, *spent));
    for (int64_t z = 0; z < *zeros; z++)
        (*spent)[z] = h->older[(*spent)[z]];
    return FV_OK;
}

/* Keeps the best rows of each of `lists` rows of scores, and the window. */
static fv_status keep(fv_ctx *ctx, const struct head *h, const float *scores, int64_t lists, const struct choice *c)
{
    int64_t chosen = c->cap - c->window, count = 0;
    int32_t *place;
    bool *kept;

    FV_TRY(FV_SCRATCH(ctx, place, h->count));
    FV_TRY(FV_SCRATCH(ctx, kept, h->columns));
    memset(kept, 0, (size_t)h->columns * sizeof *kept);
    for (int64_t r = 0; r < lists; r++) {
        FV_TRY(fv_window_top(ctx, scores + r * h->columns, h->columns, chosen, place));
        for (int64_t i = 0; i < chosen; i++)
            kept[place[i]] = true;
    }
    for (int64_t j = 0; j < h->count; j++)
        if (j >= h->columns || kept[j]) place[count++] = (int32_t)j;
    return fv_rows_keep(h->layer->rows, h->key_head, place, count);
}

/* rows [G, columns]: of the head's query heads.  What frames add and take is the same for all of them. */
static fv_status act_on_head(fv_ctx *ctx, struct head *h, float *rows, int64_t group, const struct choice *c)
{
    const struct guikv *o = h->layer->use->options;
    int64_t lists = o->per == PER_QUERY ? group : 1, zeros = 0;
    int32_t *spent = NULL;
    float *bonus;

    FV_TRY(find_frames(ctx, h));
    FV_TRY(FV_SCRATCH(ctx, bonus, h->columns));
    FV_TRY(find_bonus(ctx, h, bonus));
    FV_TRY(find_spent(ctx, h, c->cap, &spent, &zeros));
    if (o->per == PER_KV) fv_window_mean(rows, group, h->columns, rows);
    for (int64_t r = 0; r < lists; r++) {
        float *row = rows + r * h->columns;
        for (int64_t j = 0; j < h->columns; j++)
            row[j] += bonus[j];
        for (int64_t z = 0; z < zeros; z++)
            row[spent[z]] = 0;
    }
    return keep(ctx, h, rows, lists, c);
}

static fv_status act_on(fv_ctx *ctx, fv_policy_layer *layer, int64_t key_head, int64_t key_heads, const void *user)
{
    const struct choice *c = user;
    const struct state *state = layer->state;
    int64_t count = fv_rows_count(layer->rows, key_head), columns = count - c->window;
    int64_t group = layer->use->model->query_heads / layer->use->model->key_heads;
    fv_status status = FV_OK;
    float *rows;

    if (count <= c->cap) return FV_OK;
    FV_TRY(fv_window_scores(ctx, layer, &state->window, &c->vote, key_head, key_heads, columns, &rows));
    for (int64_t g = 0; g < key_heads && status == FV_OK; g++) {
        struct head head = {.layer = layer, .key_head = key_head + g, .count = count, .columns = columns};
        fv_mark mark = fv_scratch_mark(ctx);
        status = act_on_head(ctx, &head, rows + g * group * columns, group, c);
        fv_scratch_release(ctx, mark);
    }
    return status;
}

static fv_status act(fv_ctx *ctx, fv_policy_layer *layer, int64_t prompt)
{
    const struct guikv *o = layer->use->options;
    fv_precision before = ctx->precision;
    struct choice c = {.cap = fv_max((int64_t)((double)prompt * o->budget_pct / 100), 3)};
    fv_status status;

    c.window = fv_max(fv_min(o->window, c.cap - 2), 1);
    c.vote = (fv_window_vote){.window = c.window, .kernel = KERNEL};
    ctx->precision = FV_PRECISION_F32;
    status = fv_window_each(ctx, layer, act_on, &c);
    ctx->precision = before;
    fv_window_drop(layer);
    return status;
}

const fv_policy fv_policy_guikv = {
    .name = "guikv",
    .title = "SnapKV for screenshots (GUI-KV)",
    .paper = "arXiv 2510.00536",
    .sheet = 21,
    .traits = FV_POLICY_SCORES | FV_POLICY_PER_HEAD | FV_POLICY_ONCE,
    .keeps = "the last `window` rows, and those that their queries look at most; loud tokens of the newest frame gain, "
             "tokens of older frames that it says again lose",
    .cost = "budget_pct of a prompt's rows; H window T D once, and D rank for each key of an older frame",
    .sweep = "budget_pct=PERCENT",
    .options = options,
    .options_size = sizeof(struct guikv),
    .layer_bytes = sizeof(struct state),
    .check = check,
    .open = open,
    .close = close,
    .after = after,
    .act = act,
    .drop = drop,
    .state_bytes = state_bytes,
};
