#define _GNU_SOURCE
#include "cache/offload.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"

/* Places that are free, of records of one size. */
struct places {
    size_t size;
    int64_t *at, count, capacity;
};

struct fv_read_ahead {
    fv_read_ahead *next;
    fv_record *records;
    size_t size;
    int64_t count;
    char *bytes;
    bool done, failed;
};

struct fv_offload {
    int file;
    pthread_mutex_t mutex;
    pthread_cond_t wake, done;
    pthread_t thread;
    bool threaded, stop;
    int64_t holders, end; /* end: of what was ever written since the file was empty */
    int64_t held;         /* records */
    struct places *free;
    int64_t sizes, sizes_capacity;
    fv_read_ahead *work, *running;
};

/* ---- the file --------------------------------------------------------------------------------------------------- */

fv_status fv_offload_new(const char *folder, fv_offload **file)
{
    fv_offload *f;

    *file = NULL;
    FV_TRY(FV_ZALLOC(f, 1));
    fv_status status = fv_file_unnamed(folder, &f->file);
    if (status != FV_OK) {
        fv_free(f);
        return status;
    }
    f->holders = 1;
    pthread_mutex_init(&f->mutex, NULL);
    pthread_cond_init(&f->wake, NULL);
    pthread_cond_init(&f->done, NULL);
    *file = f;
    return FV_OK;
}

fv_offload *fv_offload_hold(fv_offload *file)
{
    pthread_mutex_lock(&file->mutex);
    file->holders++;
    pthread_mutex_unlock(&file->mutex);
    return file;
}

void fv_offload_drop(fv_offload *file)
{
    bool last;

    if (!file) return;
    pthread_mutex_lock(&file->mutex);
    last = --file->holders == 0;
    file->stop = last;
    pthread_cond_signal(&file->wake);
    pthread_mutex_unlock(&file->mutex);
    if (!last) return;
    if (file->threaded) pthread_join(file->thread, NULL);
    for (int64_t s = 0; s < file->sizes; s++)
        fv_free(file->free[s].at);
    fv_free(file->free);
    close(file->file);
    pthread_cond_destroy(&file->done);
    pthread_cond_destroy(&file->wake);
    pthread_mutex_destroy(&file->mutex);
    fv_free(file);
}

int64_t fv_offload_size(fv_offload *file)
{
    struct stat about;

    return fstat(file->file, &about) == 0 ? (int64_t)about.st_size : 0;
}

/* ---- bytes ------------------------------------------------------------------------------------------------------ */

/* Of a record at its place: what another place's record does not have. */
static uint64_t check_of(const char *bytes, size_t size, int64_t place)
{
    uint64_t sum = (uint64_t)place * UINT64_C(0x9E3779B97F4A7C15) + size, word;

    for (size_t at = 0; at < size; at += sizeof word) {
        word = 0;
        memcpy(&word, bytes + at, size - at < sizeof word ? size - at : sizeof word);
        sum = (sum ^ word) * UINT64_C(0xFF51AFD7ED558CCD);
        sum ^= sum >> 29;
    }
    return sum;
}

static fv_status write_bytes(const fv_offload *file, const char *bytes, size_t size, int64_t place)
{
    struct rlimit most;

    /* A process that writes past its limit is ended. */
    if (getrlimit(RLIMIT_FSIZE, &most) == 0 && most.rlim_cur != RLIM_INFINITY &&
        (uint64_t)place + size > (uint64_t)most.rlim_cur)
        return fv_fail(FV_E_IO, "the file of offloaded rows: %zu bytes at %lld pass the limit of %llu for files", size,
                       (long long)place, (unsigned long long)most.rlim_cur);
    for (size_t done = 0; done < size;) {
        ssize_t wrote = pwrite(file->file, bytes + done, size - done, (off_t)(place + (int64_t)done));
        if (wrote < 0 && errno == EINTR) continue;
        if (wrote <= 0)
            return fv_fail(FV_E_IO, "the file of offloaded rows: writing %zu bytes at %lld: %s", size - done,
                           (long long)place, strerror(wrote < 0 ? errno : ENOSPC));
        done += (size_t)wrote;
    }
    return FV_OK;
}

static fv_status read_bytes(const fv_offload *file, char *bytes, size_t size, int64_t place)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = pread(file->file, bytes + done, size - done, (off_t)(place + (int64_t)done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0)
            return fv_fail(FV_E_IO, "the file of offloaded rows: reading %zu bytes at %lld: %s", size, (long long)place,
                           strerror(errno));
        if (got == 0)
            return fv_fail(FV_E_IO, "the file of offloaded rows was cut: expected %zu bytes at %lld, got %zu", size,
                           (long long)place, done);
        done += (size_t)got;
    }
    return FV_OK;
}

/* Records from `first` on that lie one behind the other. */
static int64_t run_of(const fv_record *records, size_t size, int64_t first, int64_t count)
{
    int64_t run = 1;

    while (first + run < count && records[first + run].place == records[first].place + run * (int64_t)size)
        run++;
    return run;
}

fv_status fv_offload_read(fv_offload *file, const fv_record *records, size_t size, int64_t count, void *bytes)
{
    for (int64_t n = 0, run; n < count; n += run) {
        run = run_of(records, size, n, count);
        FV_TRY(read_bytes(file, (char *)bytes + (size_t)n * size, (size_t)run * size, records[n].place));
    }
    for (int64_t n = 0; n < count; n++)
        if (check_of((char *)bytes + (size_t)n * size, size, records[n].place) != records[n].check)
            return fv_fail(FV_E_IO, "the file of offloaded rows was changed: expected what was written at %lld",
                           (long long)records[n].place);
    return FV_OK;
}

/* ---- places ----------------------------------------------------------------------------------------------------- */

static fv_status places_of(fv_offload *file, size_t size, struct places **places)
{
    for (int64_t s = 0; s < file->sizes; s++) {
        *places = &file->free[s];
        if (file->free[s].size == size) return FV_OK;
    }
    FV_TRY(FV_GROW(file->free, file->sizes_capacity, file->sizes + 1));
    *places = &file->free[file->sizes++];
    **places = (struct places){.size = size};
    return FV_OK;
}

/* Free places first, then behind the end.  Room for all places of this size is kept, so that giving them back cannot
 * fail. */
static fv_status take_places(fv_offload *file, size_t size, int64_t count, fv_record *records)
{
    struct places *places;
    fv_status status;

    pthread_mutex_lock(&file->mutex);
    status = places_of(file, size, &places);
    if (status == FV_OK) status = FV_GROW(places->at, places->capacity, file->held + places->count + count);
    for (int64_t n = 0; n < count && status == FV_OK; n++) {
        if (places->count > 0) {
            records[n].place = places->at[--places->count];
        } else {
            records[n].place = file->end;
            file->end += (int64_t)size;
        }
    }
    if (status == FV_OK) file->held += count;
    pthread_mutex_unlock(&file->mutex);
    return status;
}

void fv_offload_forget(fv_offload *file, const fv_record *records, size_t size, int64_t count)
{
    struct places *places;

    if (count == 0) return;
    pthread_mutex_lock(&file->mutex);
    file->held -= count;
    if (places_of(file, size, &places) == FV_OK)
        for (int64_t n = count - 1; n >= 0; n--) /* so that they are taken in this order again */
            places->at[places->count++] = records[n].place;
    if (file->held == 0) { /* the disk has it back */
        for (int64_t s = 0; s < file->sizes; s++)
            file->free[s].count = 0;
        file->end = 0;
        if (ftruncate(file->file, 0) != 0) errno = 0; /* then it is written over */
    }
    pthread_mutex_unlock(&file->mutex);
}

fv_status fv_offload_write(fv_offload *file, const void *bytes, size_t size, int64_t count, fv_record *records)
{
    const char *from = bytes;
    fv_status status = FV_OK;

    FV_TRY(take_places(file, size, count, records));
    for (int64_t n = 0, run; n < count && status == FV_OK; n += run) {
        run = run_of(records, size, n, count);
        status = write_bytes(file, from + (size_t)n * size, (size_t)run * size, records[n].place);
    }
    for (int64_t n = 0; n < count; n++)
        records[n].check = check_of(from + (size_t)n * size, size, records[n].place);
    if (status != FV_OK) fv_offload_forget(file, records, size, count);
    return status;
}

/* ---- reading ahead ---------------------------------------------------------------------------------------------- */

static void *thread_main(void *argument)
{
    fv_offload *file = argument;

    pthread_mutex_lock(&file->mutex);
    for (;;) {
        fv_read_ahead *ahead = file->work;
        if (!ahead && file->stop) break;
        if (!ahead) {
            pthread_cond_wait(&file->wake, &file->mutex);
            continue;
        }
        file->work = ahead->next;
        file->running = ahead;
        pthread_mutex_unlock(&file->mutex);
        bool failed = fv_offload_read(file, ahead->records, ahead->size, ahead->count, ahead->bytes) != FV_OK;
        pthread_mutex_lock(&file->mutex);
        file->running = NULL;
        ahead->failed = failed;
        ahead->done = true;
        pthread_cond_broadcast(&file->done);
    }
    pthread_mutex_unlock(&file->mutex);
    return NULL;
}

static void free_ahead(fv_read_ahead *ahead)
{
    fv_free(ahead->records);
    fv_free(ahead->bytes);
    fv_free(ahead);
}

fv_status fv_read_ahead_begin(fv_offload *file, const fv_record *records, size_t size, int64_t count,
                              fv_read_ahead **ahead)
{
    fv_read_ahead *a, **last;
    fv_status status;

    *ahead = NULL;
    FV_TRY(FV_ZALLOC(a, 1));
    a->size = size;
    a->count = count;
    FV_TRY_DONE(FV_ALLOC(a->records, count));
    FV_TRY_DONE(fv_alloc((void **)&a->bytes, count, size));
    memcpy(a->records, records, (size_t)count * sizeof *records);
    pthread_mutex_lock(&file->mutex);
    if (!file->threaded) file->threaded = pthread_create(&file->thread, NULL, thread_main, file) == 0;
    if (!file->threaded) { /* the fetch reads */
        pthread_mutex_unlock(&file->mutex);
        status = fv_fail(FV_E_MEMORY, "a thread that reads ahead could not be started");
        goto done;
    }
    for (last = &file->work; *last; last = &(*last)->next)
        ;
    *last = a;
    pthread_cond_signal(&file->wake);
    pthread_mutex_unlock(&file->mutex);
    *ahead = a;
    return FV_OK;
done:
    free_ahead(a);
    return status;
}

const void *fv_read_ahead_wait(fv_offload *file, fv_read_ahead *ahead)
{
    pthread_mutex_lock(&file->mutex);
    while (!ahead->done)
        pthread_cond_wait(&file->done, &file->mutex);
    pthread_mutex_unlock(&file->mutex);
    return ahead->failed ? NULL : ahead->bytes;
}

void fv_read_ahead_end(fv_offload *file, fv_read_ahead *ahead)
{
    if (!ahead) return;
    pthread_mutex_lock(&file->mutex);
    for (fv_read_ahead **at = &file->work; *at; at = &(*at)->next)
        if (*at == ahead) {
            *at = ahead->next;
            ahead->done = true;
            break;
        }
    while (!ahead->done)
        pthread_cond_wait(&file->done, &file->mutex);
    pthread_mutex_unlock(&file->mutex);
    free_ahead(ahead);
}
