#define _GNU_SOURCE
#include "cache/pages.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/context.h"

enum {
    MOST_AHEAD = 2, /* pages of a tensor that are mapped ahead at once */
    HUGE = 2 << 20, /* a huge page of the system: pages of whole ones become such, since kernels that read them need
                       fewer translations */
};

struct fv_slab {
    fv_pages *pages;
    fv_slab *next; /* in the list of idle ones, or of the thread's work */
    int holders;
    char *memory;
    size_t alignment; /* bytes that were reserved before memory, to align it */
    size_t row_bytes, reserved, mapped;
    size_t wanted; /* by the thread; at most `mapped`: nothing to do */
    bool queued, busy;
};

struct fv_pages {
    fv_pages_options options;
    fv_pages *next; /* of a context's */
    size_t page;
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    pthread_t thread;
    bool threaded, working, stop;
    int64_t holders;
    fv_slab *idle, *work; /* idle: the last one given back first */
    fv_pages_stats stats;
};

static size_t round_up(size_t bytes, size_t to)
{
    return (bytes + to - 1) / to * to;
}

/* ---- mapping ---------------------------------------------------------------------------------------------------- */

static void unmap(fv_slab *slab, size_t from)
{
    fv_pages *pages = slab->pages;

    if (from >= slab->mapped) return;
    (void)madvise(slab->memory + from, slab->mapped - from, MADV_DONTNEED);
    (void)mprotect(slab->memory + from, slab->mapped - from, PROT_NONE);
    pages->stats.mapped -= slab->mapped - from;
    pages->stats.unmaps++;
    slab->mapped = from;
}

static bool is_huge(const fv_pages *pages)
{
    return pages->page % HUGE == 0;
}

static void free_slab(fv_slab *slab)
{
    munmap(slab->memory - slab->alignment, slab->reserved + (is_huge(slab->pages) ? HUGE : 0));
    fv_free(slab);
}

/* Pages of tensors given back, the longest idle first, until `bytes` more may be mapped beside `limit`. */
static bool reclaim(fv_pages *pages, size_t bytes, size_t limit)
{
    while (pages->stats.mapped + bytes > limit && pages->idle) {
        fv_slab **last = &pages->idle, *slab;
        while ((*last)->next)
            last = &(*last)->next;
        slab = *last;
        *last = NULL;
        pages->stats.idle -= slab->mapped;
        unmap(slab, 0);
        free_slab(slab);
    }
    return pages->stats.mapped + bytes <= limit;
}

/* One call of the system for bytes mapped .. to, taking the faults now.  Old systems cannot: then every page is
 * touched, which nobody else does before it counts as mapped. */
static int populate(char *from, size_t bytes, bool huge)
{
    size_t system = (size_t)sysconf(_SC_PAGESIZE);

    if (mprotect(from, bytes, PROT_READ | PROT_WRITE) != 0) return errno;
    if (huge) (void)madvise(from, bytes, MADV_HUGEPAGE); /* where the system has none, nothing is lost */
#ifdef MADV_POPULATE_WRITE
    if (madvise(from, bytes, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) {
        int error = errno;
        (void)mprotect(from, bytes, PROT_NONE);
        return error;
    }
#endif
    for (size_t at = 0; at < bytes; at += system)
        *(volatile char *)(from + at) = 0;
    return 0;
}

/* Locked; unlocks while the system works, as `busy`. */
static fv_status map(fv_slab *slab, size_t to, int64_t *calls)
{
    fv_pages *pages = slab->pages;
    size_t bytes = to - slab->mapped;
    int error;

    if (!reclaim(pages, bytes, pages->options.limit > 0 ? (size_t)pages->options.limit : SIZE_MAX))
        return fv_fail(FV_E_MEMORY, "the page pool: %zu bytes more do not fit beside %zu of at most %lld", bytes,
                       pages->stats.mapped, (long long)pages->options.limit);
    pages->stats.mapped += bytes;
    slab->busy = true;
    pthread_mutex_unlock(&pages->mutex);
    error = populate(slab->memory + slab->mapped, bytes, is_huge(pages));
    pthread_mutex_lock(&pages->mutex);
    slab->busy = false;
    ++*calls;
    if (error)
        pages->stats.mapped -= bytes;
    else
        slab->mapped = to;
    pthread_cond_broadcast(&pages->done);
    if (!error) return FV_OK;
    return fv_fail(FV_E_MEMORY, "the page pool: mapping %zu bytes: %s", bytes, strerror(error));
}

static void *thread_main(void *argument)
{
    fv_pages *pages = argument;

    pthread_mutex_lock(&pages->mutex);
    for (;;) {
        fv_slab *slab = pages->work;
        if (!slab && pages->stop) break;
        if (!slab) {
            pthread_cond_wait(&pages->wake, &pages->mutex);
            continue;
        }
        pages->work = slab->next;
        slab->queued = false;
        pages->working = true;
        if (slab->wanted > slab->mapped && !slab->busy) (void)map(slab, slab->wanted, &pages->stats.ahead);
        pages->working = false;
        if (!pages->work) pthread_cond_broadcast(&pages->done);
    }
    pthread_mutex_unlock(&pages->mutex);
    return NULL;
}

/* Takes a tensor out of the thread's hands. */
static void rest(fv_slab *slab)
{
    fv_pages *pages = slab->pages;

    slab->wanted = 0;
    while (slab->busy)
        pthread_cond_wait(&pages->done, &pages->mutex);
    for (fv_slab **at = &pages->work; slab->queued && *at; at = &(*at)->next)
        if (*at == slab) {
            *at = slab->next;
            slab->queued = false;
            break;
        }
}

/* ---- the pool --------------------------------------------------------------------------------------------------- */

fv_status fv_pages_new(const fv_pages_options *options, fv_pages **pages)
{
    size_t system = (size_t)sysconf(_SC_PAGESIZE);
    fv_pages *p;

    *pages = NULL;
    if (options->page < 0 || options->page > 1 << 30 || options->page & (options->page - 1) || options->lookahead < 0)
        return fv_fail(FV_E_USAGE, "page pool: expected pages of a power of two up to 1 GiB, got %lld",
                       (long long)options->page);
    FV_TRY(FV_ZALLOC(p, 1));
    p->options = *options;
    p->page = fv_max((int64_t)system, options->page);
    p->holders = 1;
    pthread_mutex_init(&p->mutex, NULL);
    pthread_cond_init(&p->wake, NULL);
    pthread_cond_init(&p->done, NULL);
    /* Without a thread pages are mapped when they are needed, no more. */
    p->threaded = options->async && pthread_create(&p->thread, NULL, thread_main, p) == 0;
    *pages = p;
    return FV_OK;
}

void fv_pages_drop(fv_pages *pages)
{
    bool last;

    if (!pages) return;
    pthread_mutex_lock(&pages->mutex);
    last = --pages->holders == 0;
    pages->stop = last;
    pthread_cond_signal(&pages->wake);
    pthread_mutex_unlock(&pages->mutex);
    if (!last) return;
    if (pages->threaded) pthread_join(pages->thread, NULL);
    for (fv_slab *slab = pages->idle, *next; slab; slab = next) {
        next = slab->next;
        free_slab(slab);
    }
    pthread_cond_destroy(&pages->done);
    pthread_cond_destroy(&pages->wake);
    pthread_mutex_destroy(&pages->mutex);
    fv_free(pages);
}

static void drop_all(void *kept)
{
    for (fv_pages *pages = kept, *next; pages; pages = next) {
        next = pages->next;
        fv_pages_drop(pages);
    }
}

static bool same_knobs(const fv_pages_options *a, const fv_pages_options *b)
{
    return a->page == b->page && a->async == b->async && a->deferred == b->deferred && a->lookahead == b->lookahead &&
           a->limit == b->limit;
}

fv_status fv_pages_of(fv_ctx *ctx, const fv_pages_options *options, fv_pages **pages)
{
    for (*pages = ctx->kept; *pages; *pages = (*pages)->next)
        if (same_knobs(&(*pages)->options, options)) return FV_OK;
    FV_TRY(fv_pages_new(options, pages));
    (*pages)->next = ctx->kept;
    ctx->kept = *pages;
    ctx->free_kept = drop_all;
    return FV_OK;
}

void fv_pages_measure(fv_pages *pages, fv_pages_stats *stats)
{
    pthread_mutex_lock(&pages->mutex);
    while (pages->work || pages->working)
        pthread_cond_wait(&pages->done, &pages->mutex);
    *stats = pages->stats;
    pthread_mutex_unlock(&pages->mutex);
}

size_t fv_pages_idle(const fv_ctx *ctx)
{
    size_t idle = 0;

    for (fv_pages *pages = ctx->kept; pages; pages = pages->next) {
        pthread_mutex_lock(&pages->mutex);
        idle += pages->stats.idle;
        pthread_mutex_unlock(&pages->mutex);
    }
    return idle;
}

bool fv_pages_trim(const fv_ctx *ctx)
{
    bool any = false;

    for (fv_pages *pages = ctx->kept; pages; pages = pages->next) {
        pthread_mutex_lock(&pages->mutex);
        any |= pages->stats.idle > 0;
        (void)reclaim(pages, 0, 0);
        pthread_mutex_unlock(&pages->mutex);
    }
    return any;
}

/* ---- tensors ---------------------------------------------------------------------------------------------------- */

/* Of the idle ones of this size: the one with the fewest pages among those that have enough, otherwise the last. */
static fv_slab *take_idle(fv_pages *pages, size_t row_bytes, size_t reserved, size_t need)
{
    fv_slab **best = NULL, *slab;

    for (fv_slab **at = &pages->idle; *at; at = &(*at)->next) {
        if ((*at)->row_bytes != row_bytes || (*at)->reserved != reserved) continue;
        if (!best || ((*at)->mapped >= need && ((*best)->mapped < need || (*at)->mapped < (*best)->mapped))) best = at;
    }
    if (!best) return NULL;
    slab = *best;
    *best = slab->next;
    pages->stats.idle -= slab->mapped;
    pages->stats.reused++;
    return slab;
}

static fv_status make_slab(fv_pages *pages, size_t row_bytes, size_t reserved, fv_slab **slab)
{
    size_t more = is_huge(pages) ? HUGE : 0;
    fv_slab *s;

    FV_TRY(FV_ZALLOC(s, 1));
    *s = (fv_slab){.pages = pages, .row_bytes = row_bytes, .reserved = reserved};
    s->memory = mmap(NULL, reserved + more, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (s->memory == MAP_FAILED) {
        fv_free(s);
        return fv_fail(FV_E_MEMORY, "the page pool needs %zu bytes of address space: %s", reserved, strerror(errno));
    }
    if (more) s->alignment = (HUGE - (uintptr_t)s->memory % HUGE) % HUGE;
    s->memory += s->alignment;
    *slab = s;
    return FV_OK;
}

fv_status fv_slab_take(fv_pages *pages, size_t row_bytes, int64_t rows, int64_t expected, fv_slab **slab)
{
    fv_status status = FV_OK;
    size_t bytes;

    *slab = NULL;
    if (!fv_mul_size((size_t)rows, row_bytes, &bytes) || bytes > SIZE_MAX / 4)
        return fv_fail(FV_E_MEMORY, "a cache of %lld tokens is more than memory can hold", (long long)rows);
    bytes = round_up(bytes, pages->page);
    pthread_mutex_lock(&pages->mutex);
    *slab = take_idle(pages, row_bytes, bytes, (size_t)expected * row_bytes);
    if (!*slab) status = make_slab(pages, row_bytes, bytes, slab);
    if (status == FV_OK) {
        (*slab)->holders = 1;
        (*slab)->next = NULL;
        pages->stats.taken++;
        pages->holders++;
    }
    pthread_mutex_unlock(&pages->mutex);
    return status;
}

fv_slab *fv_slab_hold(fv_slab *slab)
{
    pthread_mutex_lock(&slab->pages->mutex);
    slab->holders++;
    pthread_mutex_unlock(&slab->pages->mutex);
    return slab;
}

void fv_slab_drop(fv_slab *slab)
{
    fv_pages *pages = slab->pages;
    bool last;

    pthread_mutex_lock(&pages->mutex);
    last = --slab->holders == 0;
    if (last) rest(slab);
    if (last && pages->options.deferred) {
        slab->next = pages->idle;
        pages->idle = slab;
        pages->stats.idle += slab->mapped;
    } else if (last) {
        unmap(slab, 0);
        free_slab(slab);
    }
    pthread_mutex_unlock(&pages->mutex);
    if (last) fv_pages_drop(pages);
}

char *fv_slab_memory(const fv_slab *slab)
{
    return slab->memory;
}

size_t fv_slab_row_bytes(const fv_slab *slab)
{
    return slab->row_bytes;
}

size_t fv_slab_reserved(const fv_slab *slab)
{
    return slab->reserved;
}

size_t fv_slab_mapped(const fv_slab *slab)
{
    size_t mapped;

    pthread_mutex_lock(&slab->pages->mutex);
    mapped = slab->mapped;
    pthread_mutex_unlock(&slab->pages->mutex);
    return mapped;
}

/* What the thread shall map: for `lookahead` rows more, and no more than a few pages. */
static void look_ahead(fv_slab *slab, int64_t rows)
{
    fv_pages *pages = slab->pages;
    size_t ahead = (size_t)(rows + pages->options.lookahead) * slab->row_bytes;

    if (!pages->threaded) return;
    slab->wanted = (size_t)fv_min((int64_t)round_up(ahead, pages->page), (int64_t)slab->reserved);
    slab->wanted = (size_t)fv_min((int64_t)slab->wanted, (int64_t)(slab->mapped + MOST_AHEAD * pages->page));
    if (slab->wanted <= slab->mapped || slab->queued) return;
    slab->next = pages->work;
    pages->work = slab;
    slab->queued = true;
    pthread_cond_signal(&pages->wake);
}

fv_status fv_slab_map(fv_slab *slab, int64_t rows)
{
    fv_pages *pages = slab->pages;
    size_t need = round_up((size_t)rows * slab->row_bytes, pages->page);
    fv_status status = FV_OK;

    if (need > slab->reserved)
        return fv_fail(FV_E_MEMORY, "the page pool: %lld rows do not fit a tensor of %zu bytes", (long long)rows,
                       slab->reserved);
    pthread_mutex_lock(&pages->mutex);
    while (slab->busy && slab->mapped < need)
        pthread_cond_wait(&pages->done, &pages->mutex);
    if (slab->mapped < need) status = map(slab, need, &pages->stats.calls);
    if (status == FV_OK && !slab->busy) look_ahead(slab, rows);
    pthread_mutex_unlock(&pages->mutex);
    return status;
}

void fv_slab_shrink(fv_slab *slab, int64_t rows)
{
    fv_pages *pages = slab->pages;

    pthread_mutex_lock(&pages->mutex);
    if (!pages->options.deferred) {
        rest(slab);
        unmap(slab, round_up((size_t)rows * slab->row_bytes, pages->page));
    }
    pthread_mutex_unlock(&pages->mutex);
}
