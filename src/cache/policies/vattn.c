/* vAttention: rows of all layers lie in tensors of reserved address space that a pool maps page by page, ahead of what
 * is written, and hands from one stream to the next with their pages.  What is kept and read is the full cache. */
#include "cache/policy.h"

struct vattn {
    int64_t page, lookahead;
    bool async, deferred, megacache;
};

static const fv_option options[] = {
    FV_INT(struct vattn, page, 2097152, 4096, 1 << 30, "bytes that are mapped at once, a power of two"),
    FV_BOOL(struct vattn, async, 1, "a thread maps ahead of what is written"),
    FV_INT(struct vattn, lookahead, 9, 0, 1 << 20, "rows that it maps ahead, within two pages"),
    FV_BOOL(struct vattn, deferred, 1, "pages of a stream that has ended stay mapped for the next one"),
    FV_BOOL(struct vattn, megacache, 0, "all layers in one tensor: pages fill faster"),
    FV_OPTIONS_END,
};

static fv_status check(const void *values)
{
    const struct vattn *o = values;

    if (o->page & (o->page - 1))
        return fv_fail(FV_E_USAGE, "vattn: option 'page': expected a power of two of 4096 or more, got %lld",
                       (long long)o->page);
    return FV_OK;
}

static void pool(const fv_policy_use *use, fv_pages_options *pool, bool *one)
{
    const struct vattn *o = use->options;

    *pool = (fv_pages_options){.page = o->page, .async = o->async, .deferred = o->deferred, .lookahead = o->lookahead};
    *one = o->megacache && use->layers > 1;
}

const fv_policy fv_policy_vattn = {
    .name = "vattn",
    .title = "Tensors mapped on demand (vAttention)",
    .paper = "arXiv 2405.04437",
    .sheet = 35,
    .traits = FV_POLICY_POSITION | FV_POLICY_CHUNKS,
    .keeps = "all rows",
    .cost = "as full; a map call for each page of rows, none in a steady state; at most a page of each tensor is waste",
    .options = options,
    .options_size = sizeof(struct vattn),
    .check = check,
    .pool = pool,
};
