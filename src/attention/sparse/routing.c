/* Routing attention: centroids gather the queries and keys that lie nearest to them, and within each such cluster there
 * is one softmax.  The k-means routing of the Routing Transformer, arXiv 2003.05997. */
#include <math.h>

#include "attention/sparse/core.h"
#include "attention/sparse/order.h"
#include "base/random.h"

struct routing {
    int64_t clusters, per_cluster;
    int share, membership;
    bool norm, mask_self;
    double eps;
};

enum { SHARE_AUTO, SHARE_NO, SHARE_YES };
enum { TOP, PREFIX };
enum { CENTROIDS, RANK_BIAS };

#define EPSILON 1e-6f   /* of the norm */
#define SELF_BIAS -5e4f /* of a masked own key beside others */
#define STREAM 9        /* of random numbers */

static const char *const shares[] = {"auto", "0", "1", NULL};
static const char *const memberships[] = {"top", "prefix", NULL};

static const fv_option options[] = {
    FV_INT(struct routing, clusters, 0, 0, INT32_MAX, "random centroids, of --seed; 0: the rows of `centroids`"),
    FV_INT(struct routing, per_cluster, 0, 0, INT32_MAX, "members of a cluster; 0: keys / clusters, rounded up"),
    FV_ENUM(struct routing, share, "auto", shares, "keys are the queries, k is ignored; auto: when causal"),
    FV_BOOL(struct routing, norm, 1, "queries and keys are normed (layer norm without weights)"),
    FV_ENUM(struct routing, membership, "top", memberships,
            "top: the best of the whole sequence for each centroid; prefix: each token is in its best cluster, and "
            "reads the latest keys there"),
    FV_FLOAT(struct routing, eps, 0, 0, 1e6,
             "outputs are divided by clusters + eps; 0: by clusters, 1 if there are none"),
    FV_BOOL(struct routing, mask_self, 0, "a token reads itself only where it is alone (where keys are the queries)"),
    FV_OPTIONS_END,
};

static const fv_param params[] = {
    FV_PARAM_FIXED("centroids", "[H, k, D]", "of the clusters of each head (random with `clusters`)"),
    FV_PARAM("rank_bias", "[H, R]", "added at each difference of ranks in a cluster, from 0; the last beyond (0)"),
    {0},
};

static int64_t size(const void *values, const fv_call *call, const char *name)
{
    const struct routing *o = values;

    (void)call;
    return strcmp(name, "k") == 0 && o->clusters > 0 ? o->clusters : -1;
}

static bool is_shared(const struct routing *o, bool causal)
{
    return o->share == SHARE_AUTO ? causal : o->share == SHARE_YES;
}

static bool masks_own(const fv_call *call)
{
    const struct routing *o = call->options;

    return o->mask_self && is_shared(o, call->causal);
}

static fv_status accept(fv_call *call)
{
    const struct routing *o = call->options;
    bool shared = is_shared(o, call->causal);

    if (o->clusters == 0 && !fv_present(&call->param[CENTROIDS]))
        return fv_fail(FV_E_USAGE, "routing: expected param 'centroids' or option 'clusters'");
    if (o->membership == PREFIX && !call->causal)
        return fv_fail(FV_E_USAGE, "routing: option 'membership': prefix needs --causal");
    if (o->membership == PREFIX && !shared && fv_present(&call->param[RANK_BIAS]))
        return fv_fail(FV_E_USAGE, "routing: param 'rank_bias': with membership=prefix it needs share=1, where queries "
                                   "and keys have the same ranks");
    if ((call->causal || shared) && !call->decoding && call->queries != call->keys)
        return fv_fail(FV_E_SHAPE, "routing: %s: expected as many queries as keys, got %lld and %lld",
                       shared ? "share=1" : "--causal", (long long)call->queries, (long long)call->keys);
    return FV_OK;
}

static int64_t ahead(const void *values)
{
    return ((const struct routing *)values)->membership == PREFIX ? 1 : 0;
}

/* ---- queries and keys as they are compared ---------------------------------------------------------------------- */

static fv_status norm(fv_ctx *ctx, const struct routing *o, const fv_tensor *x, const fv_tensor *out)
{
    if (o->norm) return fv_norm(ctx, &(fv_norm_args){.layer = true, .x = *x, .out = *out, .epsilon = EPSILON});
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_COPY, .x = *x, .out = *out});
}

/* Of prefixes: normed keys; where the queries are the keys, those of a group side by side (in a model it is not known
 * how many there are, and none are kept). */
static int64_t kept(const fv_call *call, int kind, int64_t keys, int64_t *width)
{
    const struct routing *o = call->options;
    bool shared = o->share != SHARE_NO;
    int64_t group = shared && call->key_heads > 0 ? call->query_heads / call->key_heads : !shared;

    *width = call->head_dim * group;
    return kind == 0 && o->membership == PREFIX && group > 0 ? keys : 0;
}

static fv_status make_keys(fv_ctx *ctx, const fv_call *call, int64_t from, const fv_tensor *out)
{
    const struct routing *o = call->options;
    fv_tensor rows, groups, place, plain;

    if (!is_shared(o, call->causal)) {
        rows = fv_slice(&call->k, 2, from, out->dims[2]);
        FV_TRY(fv_as_f32(ctx, &rows, &plain));
        return norm(ctx, o, &plain, out);
    }
    FV_TRY(fv_kept_queries(call, from, out->dims[2], &rows));
    groups = fv_grouped(&rows, call->key_heads);
    groups = fv_permuted(&groups, (const int[]){0, 1, 3, 2, 4});
    place = fv_parted(out, 3, call->head_dim);
    return norm(ctx, o, &groups, &place);
}

struct operands {
    fv_call call;              /* with q and k as they are compared; those of a group may stand side by side */
    fv_tensor centroids, bias; /* [H,k,D], [H,R] or absent */
    int64_t clusters, members; /* of a cluster */
};

static fv_status place_centroids(fv_ctx *ctx, const fv_call *call, fv_tensor *centroids)
{
    const struct routing *o = call->options;
    fv_random random = fv_random_new(ctx->seed, STREAM);
    fv_tensor drawn;

    *centroids = call->param[CENTROIDS];
    if (fv_present(centroids)) return FV_OK;
    FV_TRY(fv_tensor_new(ctx, &drawn, FV_F32, FV_DIMS(call->query_heads, o->clusters, call->head_dim)));
    FV_TRY(fv_tensor_new(ctx, centroids, FV_F32, 3, drawn.dims));
    for (int64_t n = 0; n < fv_tensor_count(&drawn); n++)
        ((float *)drawn.data)[n] = (float)fv_random_normal(&random);
    return norm(ctx, o, &drawn, centroids);
}

/* rank_bias as a bias by relative offset, [H, 2R]: place x holds difference R - x.  It masks own keys as well, unless
 * they are the last of their lists. */
static fv_status spread_bias(fv_ctx *ctx, const fv_call *call, int64_t members, fv_tensor *bias)
{
    const fv_tensor *given = &call->param[RANK_BIAS];
    bool masked = masks_own(call) && !call->causal && members > 1;
    int64_t H = call->query_heads, ranks = fv_present(given) ? given->dims[1] : 0, R = fv_max(ranks, 2);
    fv_tensor index, spread, self;

    *bias = (fv_tensor){0};
    if (ranks == 0 && !masked) return FV_OK;
    FV_TRY(fv_tensor_zeros(ctx, &spread, FV_F32, FV_DIMS(H, 2 * R, 1)));
    FV_TRY(fv_tensor_zeros(ctx, &self, FV_F32, FV_DIMS(2 * R)));
    FV_TRY(fv_tensor_new(ctx, &index, FV_I32, FV_DIMS(2 * R)));
    FV_TRY(fv_tensor_new(ctx, bias, FV_F32, FV_DIMS(H, 2 * R)));
    for (int64_t x = 0; x < 2 * R; x++)
        ((int32_t *)index.data)[x] = (int32_t)fv_clamp(R - x, 0, fv_max(ranks - 1, 0));
    if (masked) ((float *)self.data)[R] = SELF_BIAS;
    if (ranks > 0) FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = fv_expanded(given, 2), .index = index, .out = spread}));
    return fv_map_apply(
        ctx, &(fv_map_args){.op = FV_MAP_ADD, .x = fv_reshaped(&spread, FV_DIMS(H, 2 * R)), .y = self, .out = *bias});
}

static fv_status prepare(fv_ctx *ctx, const fv_call *call, struct operands *p)
{
    const struct routing *o = call->options;
    int64_t whole = call->keys; /* keys of the sequence to come */
    bool shared = is_shared(o, call->causal), keeps = call->kept && fv_present(&call->kept[0].rows);
    fv_tensor *q = &p->call.q, *k = &p->call.k;

    p->call = *call;
    FV_TRY(place_centroids(ctx, call, &p->centroids));
    FV_TRY(fv_tensor_new(ctx, q, FV_F32, 4, call->q.dims));
    FV_TRY(norm(ctx, o, &call->q, q));
    if (o->membership == PREFIX && keeps) {
        FV_TRY(fv_keep(ctx, call, kept, 0, call->keys, make_keys, k));
        whole = call->kept[0].rows.dims[2];
    } else if (shared && call->offset == 0) {
        *k = *q;
    } else {
        FV_TRY(fv_tensor_new(ctx, k, FV_F32, 4, call->k.dims));
        FV_TRY(make_keys(ctx, call, 0, k));
    }
    if (fv_dtype_block(call->v.dtype) > 1) FV_TRY(fv_plain(ctx, &call->v, &p->call.v));
    p->clusters = p->centroids.dims[1];
    p->members = fv_min(o->per_cluster > 0 ? o->per_cluster : fv_ceil_div(whole, p->clusters), call->keys);
    FV_TRY(spread_bias(ctx, call, p->members, &p->bias));
    if (p->clusters > INT32_MAX / fv_max(p->members, 1))
        return fv_fail(FV_E_SHAPE, "routing: %lld clusters of %lld members are more than %d", (long long)p->clusters,
                       (long long)p->members, INT32_MAX);
    return FV_OK;
}

/* Query head h of batch b as a call; of keys that stand side by side it has its own. */
static fv_call head_of(const struct operands *p, int64_t b, int64_t h)
{
    int64_t D = p->call.head_dim, place = h % (p->call.query_heads / p->call.key_heads);
    fv_call head = fv_call_head(&p->call, b, h);

    if (head.k.dims[3] > D) head.k = fv_slice(&head.k, 3, place * D, D);
    return head;
}

/* ---- members of clusters ---------------------------------------------------------------------------------------- */

/* Rows that belong to cluster c: index[start[c]] .. index[end[c]-1], ascending; -1 where there is none. */
struct members {
    fv_tensor index; /* [slots] i32 */
    int64_t *start, *end;
};

/* The best rows of x [1,1,R,D] for each centroid [1,1,k,D], or each row in its best cluster. */
static fv_status gather_members(fv_ctx *ctx, const struct routing *o, const struct operands *p, const fv_tensor *x,
                                const fv_tensor *centroids, struct members *m)
{
    int64_t k = p->clusters, R = x->dims[2], slots = o->membership == TOP ? k * p->members : R;
    fv_tensor best;
    int64_t *start;

    FV_TRY(FV_SCRATCH(ctx, start, k + 1));
    FV_TRY(FV_SCRATCH(ctx, m->end, k));
    FV_TRY(fv_tensor_new(ctx, &m->index, FV_I32, FV_DIMS(slots)));
    m->start = start;
    if (o->membership == TOP) {
        const int32_t *index = m->index.data;
        best = fv_reshaped(&m->index, FV_DIMS(1, 1, k, p->members));
        FV_TRY(fv_best_rows(ctx, centroids, x, &best));
        for (int64_t c = 0; c < k; c++)
            for (m->start[c] = m->end[c] = c * p->members; m->end[c] < (c + 1) * p->members && index[m->end[c]] >= 0;)
                m->end[c]++;
        return FV_OK;
    }
    FV_TRY(fv_tensor_new(ctx, &best, FV_I32, FV_DIMS(1, 1, R, 1)));
    memset(m->index.data, -1, (size_t)slots * sizeof(int32_t));
    FV_TRY(fv_best_rows(ctx, x, centroids, &best));
    FV_TRY(fv_sort_by_key(ctx, best.data, 1, R, k, m->index.data, start));
    memcpy(m->end, start + 1, (size_t)k * sizeof *start);
    return FV_OK;
}

/* What the queries of one head read: slot s stands for query.index[s] and reads the keys key[from[s]] .. key[to[s]-1].
 */
struct slots {
    struct members query;
    fv_tensor key; /* [..] i32 */
    int32_t *from, *to;
    int64_t rank;     /* of the last query, less its slot: ranks are places in `key` */
    fv_tensor factor; /* [N,1]: 1 / the clusters of each query */
};

/* With `few`, the keys that somebody reads are listed anew.  The last key that a query of a causal call reads where
 * queries are the keys is its own. */
static void fill_slots(const fv_call *call, const struct operands *p, const struct members *key, bool few,
                       struct slots *s)
{
    const struct routing *o = call->options;
    const int32_t *i = s->query.index.data, *j = key->index.data;
    float *factor = s->factor.data;
    int64_t used = 0;
    bool trim = masks_own(call) && call->causal;

    for (int64_t c = 0; c < p->clusters; c++) {
        int64_t end = key->start[c], shift = 0, lowest = end;
        for (int64_t r = s->query.start[c]; r < s->query.end[c]; r++) {
            while (end < key->end[c] && (!call->causal || j[end] <= call->offset + i[r]))
                end++;
            int64_t first = o->membership == TOP ? key->start[c] : fv_max(end - p->members, key->start[c]);
            if (few && r == s->query.start[c]) lowest = first, shift = used - first;
            s->from[r] = (int32_t)(first + shift);
            s->to[r] = (int32_t)(end + shift - (trim && end - first > 1));
            s->rank = end + shift - 1 - r;
            factor[i[r]]++;
        }
        for (int64_t n = lowest; few && n < end; n++)
            ((int32_t *)s->key.data)[used++] = j[n];
    }
    if (few) s->key.dims[0] = fv_max(used, 1);
    for (int64_t n = 0; n < call->queries; n++)
        factor[n] = o->eps > 0 ? (float)(1 / (factor[n] + o->eps)) : 1 / fmaxf(factor[n], 1);
}

/* `call` is of head h. */
static fv_status choose(fv_ctx *ctx, const fv_call *call, const struct operands *p, int64_t h, struct slots *s)
{
    const struct routing *o = call->options;
    int64_t slots;
    bool few = o->membership == PREFIX && call->queries < call->keys;
    fv_tensor own = fv_slice(&p->centroids, 0, h, 1);
    struct members key;

    own = fv_expanded(&own, 0);
    FV_TRY(gather_members(ctx, o, p, &call->q, &own, &s->query));
    if (call->q.data == call->k.data)
        key = s->query;
    else
        FV_TRY(gather_members(ctx, o, p, &call->k, &own, &key));
    slots = s->query.index.dims[0];
    s->key = key.index;
    if (few) FV_TRY(fv_tensor_new(ctx, &s->key, FV_I32, FV_DIMS(call->keys)));
    if (few) memset(s->key.data, -1, sizeof(int32_t)); /* should there be none */
    FV_TRY(FV_SCRATCH(ctx, s->from, slots));
    FV_TRY(FV_SCRATCH(ctx, s->to, slots));
    FV_TRY(fv_tensor_zeros(ctx, &s->factor, FV_F32, FV_DIMS(call->queries, 1)));
    s->rank = 0;
    memset(s->from, 0, (size_t)slots * sizeof *s->from);
    memset(s->to, 0, (size_t)slots * sizeof *s->to);
    fill_slots(call, p, &key, few, s);
    return FV_OK;
}

/* ---- attention -------------------------------------------------------------------------------------------------- */

/* A call of head h: a softmax for each slot, and the mean over the slots of each query. */
static fv_status attend_head(fv_ctx *ctx, const fv_call *call, const struct operands *p, int64_t h)
{
    int64_t Dv = call->value_dim;
    fv_tensor sum;
    fv_plan plan = {0};
    fv_attend_args attend = {.plan = &plan, .logits = fv_call_logits(call)};
    struct slots s;

    FV_TRY_CHOOSING(ctx, choose(ctx, call, p, h, &s));
    plan.key_from = s.from;
    plan.key_to = s.to;
    if (call->queries == 1) plan.offset = s.rank;
    if (fv_present(&p->bias)) attend.logits.offset_bias = fv_slice(&p->bias, 0, h, 1);
    FV_TRY(fv_order_rows(ctx, &s.query.index, &call->q, &attend.q));
    FV_TRY(fv_order_rows(ctx, &s.key, &call->k, &attend.k));
    FV_TRY(fv_order_rows(ctx, &s.key, &call->v, &attend.v));
    FV_TRY(fv_tensor_new(ctx, &attend.o, FV_F32, FV_DIMS(1, 1, s.query.index.dims[0], Dv)));
    FV_TRY(fv_attend_counted(ctx, call, &attend));
    FV_TRY(fv_tensor_zeros(ctx, &sum, FV_F32, 4, call->o.dims));
    FV_TRY(fv_gather(ctx, &(fv_gather_args){.x = attend.o, .index = s.query.index, .out = sum, .scatter = true}));
    return fv_map_apply(ctx, &(fv_map_args){.op = FV_MAP_MUL, .x = sum, .y = s.factor, .out = call->o});
}

static fv_status forward(fv_ctx *ctx, const fv_call *call)
{
    struct operands p;

    FV_TRY(prepare(ctx, call, &p));
    for (int64_t n = 0; n < call->batch * call->query_heads; n++) {
        fv_call head = head_of(&p, n / call->query_heads, n % call->query_heads);
        FV_TRY_SCRATCH(ctx, attend_head(ctx, &head, &p, n % call->query_heads));
        FV_TRY(fv_ctx_check(ctx));
    }
    return FV_OK;
}

/* The keys of each query, from the slots it has. */
static fv_status list_head(fv_ctx *ctx, const fv_call *call, const struct operands *p, int64_t h,
                           fv_list_builder *lists)
{
    struct slots s;
    int32_t *order;
    int64_t *start, slots;

    FV_TRY_CHOOSING(ctx, choose(ctx, call, p, h, &s));
    slots = s.query.index.dims[0];
    FV_TRY(FV_SCRATCH(ctx, order, slots));
    FV_TRY(FV_SCRATCH(ctx, start, call->queries + 1));
    FV_TRY(fv_sort_by_key(ctx, s.query.index.data, 1, slots, call->queries, order, start));
    for (int64_t i = 0; i < call->queries; i++) {
        fv_lists_row(lists);
        for (int64_t n = start[i]; n < start[i + 1]; n++)
            for (int64_t r = s.from[order[n]]; r < s.to[order[n]]; r++)
                fv_lists_add(lists, ((int32_t *)s.key.data)[r]);
        if (masks_own(call) && start[i] < start[i + 1]) fv_lists_add(lists, i); /* it is in the same clusters */
    }
    return FV_OK;
}

static fv_status map(fv_ctx *ctx, const fv_call *call, fv_pairs *pairs)
{
    fv_list_shape shape = fv_call_lists(call, call->query_heads, 1, 1);
    fv_list_builder lists;
    struct operands p;

    FV_TRY(prepare(ctx, call, &p));
    FV_TRY(fv_lists_begin(ctx, &lists, &shape));
    for (int64_t n = 0; n < call->batch * call->query_heads; n++) {
        fv_call head = head_of(&p, n / call->query_heads, n % call->query_heads);
        FV_TRY(list_head(ctx, &head, &p, n % call->query_heads, &lists));
    }
    return fv_lists_end(&lists, &pairs->plan);
}

const fv_mechanism fv_mechanism_routing = {
    .name = "routing",
    .title = "Routing attention (k-means)",
    .paper = "arXiv 2003.05997",
    .sheet = 9,
    .family = FV_CONTENT_SPARSE,
    .traits = FV_BLOCK_CAUSAL | FV_LINEAR_IN_V | FV_DECODE_EXACT | FV_DIFFERENTIABLE | FV_NO_LSE,
    .formula =
        "cluster c has the per_cluster queries and keys of largest centroid.norm(x), or the latest keys of those "
        "whose largest it is; one softmax in each; o = mean over the clusters that hold the query, 0 in none",
    .cost = "each cluster computes per_cluster^2 pairs (causal: half); scores cost 2 (N + M) k D flops a head",
    .options = options,
    .options_size = sizeof(struct routing),
    .params = params,
    .size = size,
    .accept = accept,
    .ahead = ahead,
    .kept = kept,
    .forward = forward,
    .counts = true,
    .apart = true,
    .map = map,
};
