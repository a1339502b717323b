/* Streams of rows beside plain lists of what they hold, what the system counts of them, and a system that refuses. */
#ifndef FV_STREAMS_H
#define FV_STREAMS_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/rows.h"
#include "ops/blocks.h"
#include "support/support.h"

enum { HEADS = 2, D = 64, E = 32, CAPACITY = 1500, STREAMS = 6 };

/* ---- a system that refuses ------------------------------------------------------------------------------------------
 */

/* The n-th call from now on of what a set names, and all later ones, fail (0: none). */
static _Atomic long calls, refused_from;

static inline bool refuse(void)
{
    return refused_from && ++calls >= refused_from;
}

static inline void refuse_from(long n)
{
    calls = 0;
    refused_from = n;
}

void *__real_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset);
void *__wrap_mmap(void *at, size_t bytes, int protection, int flags, int file, off_t offset)
{
    if (!refuse()) return __real_mmap(at, bytes, protection, flags, file, offset);
    errno = ENOMEM;
    return MAP_FAILED;
}

int __real_mprotect(void *at, size_t bytes, int protection);
int __wrap_mprotect(void *at, size_t bytes, int protection);
int __wrap_mprotect(void *at, size_t bytes, int protection)
{
    if (!refuse()) return __real_mprotect(at, bytes, protection);
    errno = ENOMEM;
    return -1;
}

int __real_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags);
int __wrap_memfd_create(const char *name, unsigned flags)
{
    if (!refuse()) return __real_memfd_create(name, flags);
    errno = EMFILE;
    return -1;
}

ssize_t __real_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset);
ssize_t __wrap_pwrite(int file, const void *bytes, size_t count, off_t offset)
{
    if (!refuse()) return __real_pwrite(file, bytes, count, offset);
    errno = ENOSPC;
    return -1;
}

/* ---- plain lists ----------------------------------------------------------------------------------------------------
 */

typedef struct plain_row {
    int32_t position, tag; /* tag: which append wrote it */
    bool away;
} plain_row;

typedef struct stream {
    bool alive;
    fv_rows rows;
    plain_row row[HEADS][CAPACITY];
    int64_t count[HEADS]; /* with those in the file */
    int64_t length;
} stream;

/* Small whole numbers, which f32, f16 and bf16 hold as they are. */
static inline float value(int64_t head, int32_t position, int32_t tag, int64_t d)
{
    uint32_t x = (uint32_t)position * 2654435761U ^ (uint32_t)tag * 40503U ^ (uint32_t)(head * 131 + d * 7919);

    x ^= x >> 15;
    x *= 2246822519U;
    x ^= x >> 13;
    return (float)(x % 201) - 100;
}

/* Half a step of a block's largest, 100, and the scale's rounding. */
static inline float loss(fv_dtype type)
{
    return type == FV_Q8_0 ? 0.45F : type == FV_Q4_0 ? 12.6F : 0;
}

static inline fv_rows_options options(fv_dtype type)
{
    return (fv_rows_options){.heads = HEADS,
                             .key_dim = D,
                             .value_dim = E,
                             .capacity = CAPACITY,
                             .key_type = type,
                             .value_type = type,
                             .shared = true};
}

static inline void check(const stream *s)
{
    for (int64_t g = 0; g < HEADS; g++) {
        int64_t at = 0, away = 0, away_count;
        const int32_t *in_file = fv_rows_offloaded(&s->rows, g, &away_count);
        fv_tensor side[2];
        fv_rows_view(&s->rows, g, 1, &side[0], &side[1]);
        for (int64_t i = 0; i < s->count[g]; i++) {
            const plain_row *row = &s->row[g][i];
            if (row->away) {
                assert_true(away < away_count);
                assert_int_equal(in_file[away++], row->position);
                continue;
            }
            assert_true(at < fv_rows_count(&s->rows, g));
            assert_int_equal(fv_rows_positions(&s->rows, g)[at], row->position);
            for (int which = 0; which < 2; which++) {
                fv_tensor one = fv_slice(&side[which], 2, at, 1);
                float got[D];
                int64_t dim = one.dims[3];
                fv_blocks_load(one.dtype, one.data, 0, dim / fv_dtype_block(one.dtype), got);
                for (int64_t d = 0; d < dim; d++) {
                    float expected = value(g, row->position, row->tag, d + 100 * which);
                    if (!(fabsf(got[d] - expected) <= loss(one.dtype)))
                        fail_msg("head %d, position %d, side %d, channel %d: expected %g, got %g", (int)g,
                                 row->position, which, (int)d, (double)expected, (double)got[d]);
                }
            }
            at++;
        }
        assert_int_equal(fv_rows_count(&s->rows, g), at);
        assert_int_equal(away_count, away);
    }
}

static inline fv_status append_rows(fv_ctx *ctx, fv_rows *rows, int64_t position, int32_t tag, int64_t count)
{
    fv_mark mark = fv_scratch_mark(ctx);
    fv_tensor side[2];
    fv_status status;

    for (int which = 0; which < 2; which++) {
        int64_t dim = which ? E : D;
        assert_ok(fv_tensor_new(ctx, &side[which], FV_F32, FV_DIMS(1, HEADS, count, dim)));
        for (int64_t g = 0; g < HEADS; g++)
            for (int64_t i = 0; i < count; i++)
                for (int64_t d = 0; d < dim; d++)
                    *(float *)fv_at(&side[which], 0, g, i, d) = value(g, (int32_t)(position + i), tag, d + 100 * which);
    }
    status = fv_rows_append(ctx, rows, &side[0], &side[1], position);
    fv_scratch_release(ctx, mark);
    return status;
}

static inline void append(fv_ctx *ctx, stream *s, int64_t count)
{
    static int32_t tag;

    tag++;
    assert_ok(append_rows(ctx, &s->rows, s->length, tag, count));
    for (int64_t g = 0; g < HEADS; g++)
        for (int64_t i = 0; i < count; i++)
            s->row[g][s->count[g]++] = (plain_row){(int32_t)(s->length + i), tag, false};
    s->length += count;
}

static inline void begin(stream *s, const fv_rows_options *o)
{
    memset(s, 0, sizeof *s);
    assert_ok(fv_rows_new(&s->rows, o));
    s->alive = true;
}

static inline void end(stream *s)
{
    if (s->alive) fv_rows_free(&s->rows);
    s->alive = false;
}

/* ---- what the system counts -----------------------------------------------------------------------------------------
 */

/* Bytes of a stream's spans that are resident. */
static inline size_t resident(const fv_rows *rows)
{
    static unsigned char pages[1 << 14];
    size_t bytes = 0;

    for (int side = 0; side < 2; side++) {
        size_t all = rows->side[side].reserved * HEADS;
        assert_true(all / 4096 <= sizeof pages);
        assert_int_equal(mincore(rows->side[side].memory, all, pages), 0);
        for (size_t p = 0; p < all / 4096; p++)
            bytes += pages[p] & 1 ? 4096 : 0;
    }
    return bytes;
}

/* Bytes of all files in memory that rows lie in. */
static inline size_t in_files(void)
{
    DIR *folder = opendir("/proc/self/fd");
    size_t bytes = 0;

    assert_non_null(folder);
    for (struct dirent *entry; (entry = readdir(folder));) {
        char name[300], target[100] = "";
        struct stat about;
        snprintf(name, sizeof name, "/proc/self/fd/%s", entry->d_name);
        if (readlink(name, target, sizeof target - 1) > 0 && strstr(target, "memfd:fovea-rows") &&
            stat(name, &about) == 0)
            bytes += (size_t)about.st_blocks * 512;
    }
    closedir(folder);
    return bytes;
}

static inline void check_bytes(const stream *streams)
{
    const fv_rows *all[STREAMS];
    fv_rows_bytes one, together;
    size_t committed = 0, used = 0;
    int64_t count = 0;

    for (int i = 0; i < STREAMS; i++) {
        if (!streams[i].alive) continue;
        const fv_rows *rows = &streams[i].rows;
        size_t row = rows->side[0].row_bytes + rows->side[1].row_bytes, here = 0, away = 0;
        for (int64_t g = 0; g < HEADS; g++)
            for (int64_t n = 0; n < streams[i].count[g]; n++)
                *(streams[i].row[g][n].away ? &away : &here) += row;
        fv_rows_measure(rows, &one);
        assert_int_equal(one.used, here);
        assert_int_equal(one.used, fv_rows_used(rows));
        assert_int_equal(one.host, away);
        if (rows->page > 4096) /* taken as a whole, by parts as they are written */
            assert_true(one.committed >= resident(rows));
        else
            assert_int_equal(one.committed, resident(rows));
        assert_true(one.used <= one.committed && one.shared <= one.committed && one.committed <= one.reserved);
        assert_true(one.committed <= one.used + 2 * HEADS * (64 << 10));
        committed += one.committed;
        used += one.used;
        all[count++] = rows;
    }
    assert_ok(fv_rows_measure_all(all, count, &together));
    if (count > 0 && all[0]->page > 4096)
        assert_true(together.committed >= in_files());
    else
        assert_int_equal(together.committed, in_files());
    assert_int_equal(together.shared, committed - together.committed);
    assert_true(together.used <= used && together.used <= together.committed);
}

#endif
