#define _GNU_SOURCE
#include "cache/lender.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

struct fv_lender {
    int file;
    pthread_mutex_t mutex;
    int64_t next, holders;
};

struct fv_block {
    fv_lender *lender;
    size_t page;
    int64_t place, held; /* held: pages that somebody holds */
    int32_t holders[];   /* of each page */
};

/* ---- the file --------------------------------------------------------------------------------------------------- */

fv_status fv_lender_new(fv_lender **lender)
{
    struct rlimit most;
    fv_lender *l;

    *lender = NULL;
    /* A limit on files ends the process that passes it. */
    if (getrlimit(RLIMIT_FSIZE, &most) != 0 || most.rlim_cur != RLIM_INFINITY)
        return fv_fail(FV_E_UNSUPPORTED, "shared rows: the size of files is limited here");
    FV_TRY(FV_ZALLOC(l, 1));
    l->holders = 1;
    l->file = memfd_create("fovea-rows", MFD_CLOEXEC);
    if (l->file < 0 || ftruncate(l->file, INT64_MAX / 2) != 0) {
        int error = errno;
        if (l->file >= 0) close(l->file);
        fv_free(l);
        return fv_fail(FV_E_UNSUPPORTED, "shared rows: a file in memory: %s", strerror(error));
    }
    pthread_mutex_init(&l->mutex, NULL);
    *lender = l;
    return FV_OK;
}

fv_lender *fv_lender_hold(fv_lender *lender)
{
    pthread_mutex_lock(&lender->mutex);
    lender->holders++;
    pthread_mutex_unlock(&lender->mutex);
    return lender;
}

void fv_lender_drop(fv_lender *lender)
{
    bool last;

    if (!lender) return;
    pthread_mutex_lock(&lender->mutex);
    last = --lender->holders == 0;
    pthread_mutex_unlock(&lender->mutex);
    if (!last) return;
    close(lender->file);
    pthread_mutex_destroy(&lender->mutex);
    fv_free(lender);
}

int64_t fv_lender_take(fv_lender *lender, size_t bytes)
{
    int64_t place;

    pthread_mutex_lock(&lender->mutex);
    place = lender->next;
    lender->next += (int64_t)bytes; /* 4 EiB in all: a lifetime at any speed of memory */
    pthread_mutex_unlock(&lender->mutex);
    return place;
}

char *fv_lender_map(const fv_lender *lender, void *at, size_t bytes, int64_t place, bool writable)
{
    void *memory = mmap(at, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ,
                        MAP_SHARED | MAP_NORESERVE | (at ? MAP_FIXED : 0), lender->file, place);

    return memory == MAP_FAILED ? NULL : memory;
}

bool fv_lender_write(const fv_lender *lender, const char *from, size_t bytes, int64_t place)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t wrote = pwrite(lender->file, from + done, bytes - done, (off_t)(place + (int64_t)done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0) return false;
        done += (size_t)wrote;
    }
    return true;
}

void fv_lender_punch(const fv_lender *lender, int64_t place, size_t bytes)
{
    if (bytes > 0) (void)fallocate(lender->file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, place, (off_t)bytes);
}

/* The limit it stands for is the process's. */
int64_t fv_lender_count(int64_t more)
{
    static atomic_llong maps;

    return atomic_fetch_add(&maps, more) + more;
}

/* ---- counted pages ---------------------------------------------------------------------------------------------- */

fv_status fv_block_new(fv_lender *lender, int64_t place, size_t bytes, size_t page, fv_block **block)
{
    int64_t pages = (int64_t)(bytes / page);
    fv_block *b;

    FV_TRY(fv_alloc((void **)&b, (int64_t)sizeof *b + pages * (int64_t)sizeof b->holders[0], 1));
    *b = (fv_block){.lender = fv_lender_hold(lender), .page = page, .place = place, .held = pages};
    for (int64_t p = 0; p < pages; p++)
        b->holders[p] = 1;
    *block = b;
    return FV_OK;
}

fv_lender *fv_block_lender(const fv_block *block)
{
    return block->lender;
}

static int64_t first_page(const fv_block *block, int64_t place)
{
    return (place - block->place) / (int64_t)block->page;
}

void fv_block_hold(fv_block *block, int64_t place, size_t bytes)
{
    int64_t from = first_page(block, place), pages = (int64_t)(bytes / block->page);

    pthread_mutex_lock(&block->lender->mutex);
    for (int64_t p = from; p < from + pages; p++)
        block->holders[p]++;
    pthread_mutex_unlock(&block->lender->mutex);
}

static void free_block(fv_block *block)
{
    fv_lender *lender = block->lender;

    fv_free(block);
    fv_lender_drop(lender);
}

void fv_block_drop(fv_block *block, int64_t place, size_t bytes)
{
    int64_t from = first_page(block, place), to = from + (int64_t)(bytes / block->page);
    bool last;

    pthread_mutex_lock(&block->lender->mutex);
    for (int64_t p = from, gone = 0; p < to; p++) { /* runs of pages at once */
        bool free = --block->holders[p] == 0;
        gone = free ? gone + 1 : 0;
        block->held -= free;
        if (free && (p + 1 == to || block->holders[p + 1] > 1))
            fv_lender_punch(block->lender, block->place + (p + 1 - gone) * (int64_t)block->page,
                            (size_t)gone * block->page);
    }
    last = block->held == 0;
    pthread_mutex_unlock(&block->lender->mutex);
    if (last) free_block(block);
}

bool fv_block_claim(fv_block *block, int64_t place, size_t bytes)
{
    int64_t from = first_page(block, place), to = from + (int64_t)(bytes / block->page);
    bool alone = true, last;

    pthread_mutex_lock(&block->lender->mutex);
    for (int64_t p = from; p < to; p++)
        alone = alone && block->holders[p] == 1;
    for (int64_t p = from; p < to && alone; p++)
        block->holders[p] = 0;
    if (alone) block->held -= to - from;
    last = block->held == 0;
    pthread_mutex_unlock(&block->lender->mutex);
    if (last) free_block(block);
    return alone;
}

size_t fv_block_shared(const fv_block *block, int64_t place, size_t bytes)
{
    int64_t from = first_page(block, place), to = from + (int64_t)(bytes / block->page);
    size_t shared = 0;

    pthread_mutex_lock(&block->lender->mutex);
    for (int64_t p = from; p < to; p++)
        if (block->holders[p] > 1) shared += block->page;
    pthread_mutex_unlock(&block->lender->mutex);
    return shared;
}
