#include "generate/prefix.h"

#include <string.h>

#include "base/memory.h"

int64_t fv_common_tokens(const int32_t *a, int64_t a_count, const int32_t *b, int64_t b_count)
{
    int64_t count = 0, most = fv_min(a_count, b_count);

    while (count < most && a[count] == b[count])
        count++;
    return count;
}

static void drop(fv_prefixes *prefixes, int index)
{
    fv_prefix *prefix = &prefixes->at[index];

    fv_session_free(prefix->session);
    fv_free(prefix->ids);
    fv_free(prefix->setup);
    *prefix = prefixes->at[--prefixes->count];
}

static int oldest(const fv_prefixes *prefixes)
{
    int first = -1;

    for (int i = 0; i < prefixes->count; i++)
        if (first < 0 || prefixes->at[i].used < prefixes->at[first].used) first = i;
    return first;
}

int fv_prefixes_find(fv_prefixes *prefixes, const char *setup, const int32_t *ids, int64_t most, int64_t *common)
{
    int best = -1;

    *common = 0;
    for (int i = 0; i < prefixes->count; i++) {
        const fv_prefix *prefix = &prefixes->at[i];
        int64_t own = fv_common_tokens(prefix->ids, prefix->count, ids, most);
        if (own <= *common || strcmp(prefix->setup, setup) != 0) continue;
        best = i;
        *common = own;
    }
    if (best >= 0) prefixes->at[best].used = ++prefixes->clock;
    return best;
}

void fv_prefixes_add(fv_prefixes *prefixes, const fv_prefix *prefix)
{
    for (int i = prefixes->count - 1; i >= 0; i--) {
        const fv_prefix *other = &prefixes->at[i];
        if (strcmp(other->setup, prefix->setup) != 0 || other->count > prefix->count) continue;
        if (fv_common_tokens(other->ids, other->count, prefix->ids, prefix->count) == other->count) drop(prefixes, i);
    }
    if (prefixes->count == FV_MOST_PREFIXES) drop(prefixes, oldest(prefixes));
    prefixes->at[prefixes->count] = *prefix;
    prefixes->at[prefixes->count++].used = ++prefixes->clock;
}

bool fv_prefixes_drop_oldest(fv_prefixes *prefixes)
{
    if (prefixes->count == 0) return false;
    drop(prefixes, oldest(prefixes));
    return true;
}

void fv_prefixes_clear(fv_prefixes *prefixes)
{
    while (prefixes->count > 0)
        drop(prefixes, prefixes->count - 1);
}

/* What a mechanism keeps of the first `count` tokens goes along. */
static void copy_kept(fv_session_layer *to, const fv_session_layer *from, const fv_sizes *s, int64_t count)
{
    const fv_call sizes = {
        .query_heads = s->query_heads, .key_heads = s->key_heads, .head_dim = s->key_dim, .value_dim = s->value_dim};

    for (int kind = 0; kind < FV_KEPT; kind++) {
        const fv_kept_rows *rows = &from->state.kept[kind];
        int64_t width, most = fv_attention_kept(from->attention, &sizes, kind, count, &width);
        fv_kept_rows *own = &to->state.kept[kind];
        own->count = fv_present(&own->rows) ? fv_min(rows->count, most) : 0;
        for (int64_t g = 0; g < s->key_heads && own->count > 0; g++)
            memcpy(fv_at(&own->rows, 0, g, 0, 0), fv_at(&rows->rows, 0, g, 0, 0),
                   (size_t)(own->count * width) * fv_dtype_size(own->rows.dtype));
    }
}

fv_status fv_session_lend(fv_session *to, fv_session *from, int64_t count)
{
    for (int64_t l = 0; l < to->model->sizes.layers; l++) {
        fv_status status = fv_rows_share(&to->layers[l].rows, &from->layers[l].rows, count);
        copy_kept(&to->layers[l], &from->layers[l], &to->model->sizes, count);
        if (status == FV_OK) continue;
        fv_session_clear(to);
        return status;
    }
    to->length = count;
    fv_session_recount(to);
    return FV_OK;
}
