/* Streams that share rows and keep some in a file: whatever one of them does, each holds what a plain list says; the
 * bytes reported are those the system counts; and what the system refuses is an error of one stream. */
#define _GNU_SOURCE
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

static bool refuse(void)
{
    return refused_from && ++calls >= refused_from;
}

static void refuse_from(long n)
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
static float value(int64_t head, int32_t position, int32_t tag, int64_t d)
{
    uint32_t x = (uint32_t)position * 2654435761U ^ (uint32_t)tag * 40503U ^ (uint32_t)(head * 131 + d * 7919);

    x ^= x >> 15;
    x *= 2246822519U;
    x ^= x >> 13;
    return (float)(x % 201) - 100;
}

/* Half a step of a block's largest, 100, and the scale's rounding. */
static float loss(fv_dtype type)
{
    return type == FV_Q8_0 ? 0.45F : type == FV_Q4_0 ? 12.6F : 0;
}

static fv_rows_options options(fv_dtype type)
{
    return (fv_rows_options){.heads = HEADS,
                             .key_dim = D,
                             .value_dim = E,
                             .capacity = CAPACITY,
                             .key_type = type,
                             .value_type = type,
                             .shared = true};
}

static void check(const stream *s)
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

static fv_status append_rows(fv_ctx *ctx, fv_rows *rows, int64_t position, int32_t tag, int64_t count)
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

static void append(fv_ctx *ctx, stream *s, int64_t count)
{
    static int32_t tag;

    tag++;
    assert_ok(append_rows(ctx, &s->rows, s->length, tag, count));
    for (int64_t g = 0; g < HEADS; g++)
        for (int64_t i = 0; i < count; i++)
            s->row[g][s->count[g]++] = (plain_row){(int32_t)(s->length + i), tag, false};
    s->length += count;
}

static void begin(stream *s, const fv_rows_options *o)
{
    memset(s, 0, sizeof *s);
    assert_ok(fv_rows_new(&s->rows, o));
    s->alive = true;
}

static void end(stream *s)
{
    if (s->alive) fv_rows_free(&s->rows);
    s->alive = false;
}

/* ---- what the system counts -----------------------------------------------------------------------------------------
 */

/* Bytes of a stream's spans that are resident. */
static size_t resident(const fv_rows *rows)
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
static size_t in_files(void)
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

static void check_bytes(const stream *streams)
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

/* ---- random lives ---------------------------------------------------------------------------------------------------
 */

/* Places in memory of a head's rows, as the plain list has them: [count]. */
static int64_t in_memory(const stream *s, int64_t g, int64_t *index)
{
    int64_t count = 0;

    for (int64_t i = 0; i < s->count[g]; i++)
        if (!s->row[g][i].away) index[count++] = i;
    return count;
}

static void drop_random(stream *s, fv_random *random, bool stretch)
{
    static int64_t index[CAPACITY];
    static int32_t keep[CAPACITY];
    int64_t g = fv_random_below(random, HEADS), count = in_memory(s, g, index), kept = 0, to = 0;
    int64_t from = fv_random_below(random, count + 1), gone = fv_random_below(random, count - from + 1);
    bool lives[CAPACITY] = {0};

    for (int64_t n = 0; n < count; n++)
        if (stretch ? n < from || n >= from + gone : fv_random_below(random, 4) > 0) {
            keep[kept++] = (int32_t)n;
            lives[index[n]] = true;
        }
    if (stretch)
        assert_ok(fv_rows_erase(&s->rows, g, from, gone));
    else
        assert_ok(fv_rows_keep(&s->rows, g, keep, kept));
    for (int64_t i = 0; i < s->count[g]; i++)
        if (lives[i] || s->row[g][i].away) s->row[g][to++] = s->row[g][i];
    s->count[g] = to;
}

/* Going back works if every head still holds all positions below. */
static void truncate_random(stream *s, fv_random *random)
{
    int64_t length = fv_random_below(random, s->length + 1);
    bool whole = true;

    for (int64_t g = 0; g < HEADS; g++)
        whole = whole && (length == 0 || (s->count[g] >= length && s->row[g][length - 1].position == length - 1));
    if (!whole) {
        assert_fails(fv_rows_truncate(&s->rows, length, 0, NULL, NULL), FV_E_ARGUMENT, "is gone");
        return;
    }
    assert_ok(fv_rows_truncate(&s->rows, length, 0, NULL, NULL));
    for (int64_t g = 0; g < HEADS; g++)
        while (s->count[g] > 0 && s->row[g][s->count[g] - 1].position >= length)
            s->count[g]--;
    s->length = length;
}

static void offload_random(stream *s, fv_offload *file, fv_random *random)
{
    static int64_t index[CAPACITY];
    static int32_t place[CAPACITY];
    int64_t g = fv_random_below(random, HEADS), count = in_memory(s, g, index), n = 0;

    for (int64_t i = 0; i < count; i++)
        if (fv_random_below(random, 5) == 0) {
            place[n++] = (int32_t)i;
            s->row[g][index[i]].away = true;
        }
    assert_ok(fv_rows_offload_some(&s->rows, file, g, place, n));
}

static void fetch_random(stream *s, fv_random *random)
{
    static int32_t ahead[CAPACITY], wanted[CAPACITY];
    int64_t g = fv_random_below(random, HEADS), count = 0, n = 0;

    for (int64_t i = 0; i < s->count[g]; i++) {
        if (!s->row[g][i].away) continue;
        if (fv_random_below(random, 2)) ahead[count++] = s->row[g][i].position;
        if (fv_random_below(random, 3) == 0) continue;
        wanted[n++] = s->row[g][i].position;
        s->row[g][i].away = false;
    }
    if (fv_random_below(random, 2)) fv_rows_prefetch(&s->rows, g, ahead, count);
    assert_ok(fv_rows_fetch(&s->rows, g, wanted, n));
}

/* A stream begins with what another one holds: all of it, or a prefix. */
static void share_random(stream *to, stream *from, const fv_rows_options *o, fv_random *random)
{
    int64_t length = fv_random_below(random, from->length + 1), away = 0;
    fv_rows_options same = *o;
    bool whole = true;

    for (int64_t g = 0; g < HEADS; g++) {
        int64_t below = 0;
        for (int64_t i = 0; i < from->count[g]; i++) {
            away += from->row[g][i].away;
            below += !from->row[g][i].away && from->row[g][i].position < length;
        }
        whole = whole && below == length;
    }
    same.key_type = from->rows.side[0].type;
    same.value_type = from->rows.side[1].type;
    begin(to, &same);
    if (whole) {
        assert_ok(fv_rows_share(&to->rows, &from->rows, length));
    } else {
        assert_fails(fv_rows_share(&to->rows, &from->rows, length), FV_E_ARGUMENT, "sharing rows: expected those");
        length = from->length;
        if (away > 0) {
            assert_fails(fv_rows_fork(&to->rows, &from->rows), FV_E_ARGUMENT, "lie in a file");
            return;
        }
        assert_ok(fv_rows_fork(&to->rows, &from->rows));
    }
    to->length = length;
    for (int64_t g = 0; g < HEADS; g++)
        for (int64_t i = 0; i < from->count[g]; i++)
            if (!from->row[g][i].away && from->row[g][i].position < length)
                to->row[g][to->count[g]++] = from->row[g][i];
}

static void step(fv_ctx *ctx, stream *streams, const fv_rows_options *o, fv_offload *file, fv_random *random)
{
    static const fv_dtype plain[] = {FV_F32, FV_F16, FV_BF16};
    stream *s = &streams[fv_random_below(random, STREAMS)], *other = &streams[fv_random_below(random, STREAMS)];
    int64_t n = 1 + fv_random_below(random, fv_random_below(random, 3) ? 20 : 300);

    if (!s->alive && other->alive && fv_random_below(random, 4)) {
        share_random(s, other, o, random);
        return;
    }
    if (!s->alive) begin(s, o);
    switch (fv_random_below(random, 12)) {
    case 0: drop_random(s, random, true); break;
    case 1: drop_random(s, random, false); break;
    case 2: truncate_random(s, random); break;
    case 3: end(s); break;
    case 4: offload_random(s, file, random); break;
    case 5:
    case 6: fetch_random(s, random); break;
    case 7:
        if (fv_dtype_block(o->key_type) > 1) break; /* they lose something each time */
        assert_ok(fv_rows_convert(ctx, &s->rows, plain[fv_random_below(random, 3)], plain[fv_random_below(random, 3)]));
        break;
    default:
        if (s->length + n <= CAPACITY) append(ctx, s, n);
    }
}

static void streams_that_share_hold_what_plain_lists_say(void **state)
{
    static const fv_dtype types[] = {FV_F16, FV_Q8_0, FV_F32, FV_Q4_0, FV_BF16};
    static stream streams[STREAMS];
    fv_random random = fv_random_new(test_seed(), 7400);
    fv_ctx *ctx = test_ctx("cpu", 2);
    fv_lender *lender;
    fv_offload *file;
    (void)state;

    for (int life = 0; life < 10; life++) {
        fv_rows_options o = options(types[life % 5]);
        assert_ok(fv_lender_new(&lender));
        assert_ok(fv_offload_new(NULL, &file));
        o.lender = life % 3 ? lender : NULL; /* of all, or of each */
        o.page = life % 4 == 3 ? 16384 : 0;
        if (life % 2) o.capacity = 20000; /* spans of some MB */
        for (int n = 0; n < 250; n++) {
            step(ctx, streams, &o, file, &random);
            check_bytes(streams);
            if (n % 10 == 9)
                for (int i = 0; i < STREAMS; i++)
                    if (streams[i].alive) check(&streams[i]);
        }
        for (int i = 0; i < STREAMS; i++) {
            if (streams[i].alive) check(&streams[i]);
            end(&streams[i]);
        }
        assert_int_equal(in_files(), 0);
        assert_int_equal(fv_offload_size(file), 0);
        fv_lender_drop(lender);
        fv_offload_drop(file);
    }
    assert_int_equal(fv_lender_count(0), 0);
    fv_ctx_free(ctx);
}

/* ---- figures --------------------------------------------------------------------------------------------------------
 */

/* Whole pages once, the partly filled last one of each span twice; until a stream writes, and not those it does not. */
static void shared_pages_count_once(void **state)
{
    static stream a, b;
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    const fv_rows *both[] = {&a.rows, &b.rows};
    size_t row = (D + E) * 2, whole = 0;
    fv_rows_bytes one, other, all;
    (void)state;

    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 1000);
    fv_rows_measure(&a.rows, &one);
    assert_int_equal(one.shared, 0);
    assert_ok(fv_rows_share(&b.rows, &a.rows, 900));
    whole = HEADS * ((900 * D * 2) / 4096 * 4096 + (900 * E * 2) / 4096 * 4096);
    fv_rows_measure(&b.rows, &other);
    assert_int_equal(other.used, 900 * HEADS * row);
    assert_int_equal(other.shared, whole);
    assert_int_equal(other.committed, whole + 2 * HEADS * 4096);
    assert_ok(fv_rows_measure_all(both, 2, &all));
    assert_int_equal(all.shared, whole);
    assert_int_equal(all.used, (1000 + 900) * HEADS * row - whole);
    assert_int_equal(all.committed, one.committed + other.committed - whole);
    assert_int_equal(all.committed, in_files());

    /* An early row of one head goes: what stands before it moves up, in the first page of each side. */
    assert_ok(fv_rows_erase(&b.rows, 1, 3, 1));
    fv_rows_measure(&b.rows, &other);
    assert_int_equal(other.shared, whole - 2 * 4096);
    assert_int_equal(other.committed, whole + 2 * HEADS * 4096);
    assert_int_equal(other.committed, resident(&b.rows));
    check(&a);

    /* The last holder takes its pages back, and nothing is copied. */
    end(&a);
    fv_rows_measure(&b.rows, &other);
    assert_int_equal(other.shared, 0);
    assert_int_equal(other.committed, in_files());
    fv_rows_free(&b.rows);
    fv_ctx_free(ctx);
}

static void windows_share_their_last_rows(void **state)
{
    static stream a, b;
    fv_rows_options o = options(FV_F32);
    fv_ctx *ctx = test_ctx("cpu", 1);
    (void)state;

    begin(&a, &o);
    append(ctx, &a, 800);
    for (int64_t g = 0; g < HEADS; g++) {
        assert_ok(fv_rows_erase(&a.rows, g, 0, 100));
        a.count[g] = 700;
        memmove(a.row[g], a.row[g] + 100, 700 * sizeof a.row[g][0]);
    }
    begin(&b, &o);
    assert_fails(fv_rows_share(&b.rows, &a.rows, 750), FV_E_ARGUMENT, "positions 0 to 749, of which head 0 holds 650");
    assert_fails(fv_rows_share_window(&b.rows, &a.rows, 750, 651), FV_E_ARGUMENT, "positions 99 to 749");
    assert_ok(fv_rows_share_window(&b.rows, &a.rows, 750, 600));
    b.length = 750;
    for (int64_t g = 0; g < HEADS; g++) {
        b.count[g] = 600;
        memcpy(b.row[g], a.row[g] + 50, 600 * sizeof b.row[g][0]);
    }
    check(&b);
    append(ctx, &b, 40);
    append(ctx, &a, 60);
    check(&a);
    check(&b);
    assert_fails(fv_rows_share(&b.rows, &a.rows, 10), FV_E_ARGUMENT, "expected an empty stream");
    end(&a);
    check(&b);
    end(&b);
    fv_ctx_free(ctx);
}

static void a_merge_in_one_stream_leaves_the_others(void **state)
{
    static stream a, b;
    static const int32_t place[] = {2, 50, 400};
    fv_rows_options o = options(FV_F32);
    fv_ctx *ctx = test_ctx("cpu", 1);
    (void)state;

    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 500);
    assert_ok(fv_rows_fork(&b.rows, &a.rows));
    assert_ok(fv_rows_merge(ctx, &b.rows, 1, place, NULL, 3));
    assert_int_equal(fv_rows_count(&b.rows, 1), 498);
    check(&a);
    end(&a);
    end(&b);
    fv_ctx_free(ctx);
}

/* ---- threads --------------------------------------------------------------------------------------------------------
 */

static void *live(void *user)
{
    stream *s = user;
    fv_random random = fv_random_new(test_seed(), 7500 + s->length % 10);
    fv_ctx *ctx = test_ctx("cpu", 1);
    int32_t tag = 1 << 20;

    for (int n = 0; n < 60; n++) {
        drop_random(s, &random, n % 2);
        assert_ok(append_rows(ctx, &s->rows, s->length, ++tag, 3));
        for (int64_t g = 0; g < HEADS; g++)
            for (int64_t i = 0; i < 3; i++)
                s->row[g][s->count[g]++] = (plain_row){(int32_t)(s->length + i), tag, false};
        s->length += 3;
    }
    check(s);
    fv_ctx_free(ctx);
    return NULL;
}

static void *live_on_copies(void *user)
{
    stream *s = user;

    /* drop_random has tables of its own for one thread only: this one erases and appends. */
    fv_random random = fv_random_new(test_seed(), 7600);
    for (int n = 0; n < 200; n++) {
        int64_t g = fv_random_below(&random, HEADS);
        if (s->count[g] == 0) continue;
        int64_t at = fv_random_below(&random, s->count[g]);
        if (fv_rows_erase(&s->rows, g, at, 1) != FV_OK) return s;
        s->count[g]--;
        memmove(&s->row[g][at], &s->row[g][at + 1], (size_t)(s->count[g] - at) * sizeof s->row[g][0]);
    }
    return NULL;
}

static void streams_of_several_threads_share(void **state)
{
    static stream streams[4];
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    pthread_t thread[3];
    (void)state;

    assert_ok(fv_lender_new(&o.lender));
    for (int i = 0; i < 4; i++)
        begin(&streams[i], &o);
    append(ctx, &streams[0], 1000);
    for (int i = 1; i < 4; i++) {
        assert_ok(fv_rows_fork(&streams[i].rows, &streams[0].rows));
        memcpy(streams[i].row, streams[0].row, sizeof streams[i].row);
        memcpy(streams[i].count, streams[0].count, sizeof streams[i].count);
        streams[i].length = 1000;
    }
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&thread[i], NULL, live_on_copies, &streams[i + 1]), 0);
    live(&streams[0]);
    for (int i = 0; i < 3; i++) {
        void *failed;
        pthread_join(thread[i], &failed);
        assert_null(failed);
    }
    for (int i = 0; i < 4; i++) {
        check(&streams[i]);
        end(&streams[i]);
    }
    assert_int_equal(in_files(), 0);
    fv_lender_drop(o.lender);
    fv_ctx_free(ctx);
}

/* ---- refusals -------------------------------------------------------------------------------------------------------
 */

/* Whatever call of the system is refused: rows are copied, or nothing has changed and the sentence says so. */
static void refused_maps_lose_nothing(void **state)
{
    static stream a, b;
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    bool refused = true;
    (void)state;

    for (long n = 1; refused; n++) {
        begin(&a, &o);
        begin(&b, &o);
        append(ctx, &a, 700);
        refuse_from(n);
        fv_status shared = fv_rows_fork(&b.rows, &a.rows);
        fv_status erased = shared == FV_OK ? fv_rows_erase(&b.rows, 1, 300, 10) : FV_OK;
        refused = calls >= n;
        refuse_from(0);
        assert_ok(shared);
        memcpy(b.row, a.row, sizeof b.row);
        memcpy(b.count, a.count, sizeof b.count);
        b.length = 700;
        if (erased == FV_OK) {
            b.count[1] -= 10;
            memmove(&b.row[1][300], &b.row[1][310], 390 * sizeof b.row[1][0]);
        } else {
            assert_int_equal(erased, FV_E_MEMORY);
            assert_non_null(strstr(fv_error(), "could not be copied"));
            check(&b);
            assert_fails(append_rows(ctx, &b.rows, 700, 1, 1), FV_E_MEMORY, "could not be copied");
            fv_rows_clear(&b.rows);
            memset(b.count, 0, sizeof b.count);
            b.length = 0;
        }
        append(ctx, &b, 5);
        append(ctx, &a, 5);
        check(&a);
        check(&b);
        end(&b);
        append(ctx, &a, 500);
        check(&a);
        end(&a);
        assert_int_equal(in_files(), 0);
    }
    assert_int_equal(fv_lender_count(0), 0);
    refuse_from(1); /* no files in memory: copies */
    fv_lender *lender;
    assert_fails(fv_lender_new(&lender), FV_E_UNSUPPORTED, "a file in memory");
    refuse_from(0);
    o.shared = false;
    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 30);
    assert_false(fv_rows_shares(&a.rows));
    assert_ok(fv_rows_share(&b.rows, &a.rows, 20));
    memcpy(b.row, a.row, sizeof b.row);
    b.count[0] = b.count[1] = 20;
    check(&b);
    end(&a);
    end(&b);
    fv_ctx_free(ctx);
}

static void refused_memory_loses_nothing(void **state)
{
    static stream a, b;
    static const int32_t wanted[] = {20, 25, 41};
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    bool failed = true;
    fv_offload *file;
    (void)state;

    assert_ok(fv_offload_new(NULL, &file));
    for (int64_t n = 1; failed; n++) {
        begin(&a, &o);
        begin(&b, &o);
        append(ctx, &a, 300);
        test_alloc_fail(n);
        fv_status shared = fv_rows_share(&b.rows, &a.rows, 200);
        fv_status offloaded = fv_rows_offload(&a.rows, file, 0, 10, 50);
        if (offloaded == FV_OK) fv_rows_prefetch(&a.rows, 0, wanted, 3);
        fv_status fetched = offloaded == FV_OK ? fv_rows_fetch(&a.rows, 0, wanted, 3) : FV_OK;
        failed = test_alloc_count() >= n;
        test_alloc_fail(0);
        assert_true(shared == FV_OK || shared == FV_E_MEMORY);
        assert_true(offloaded == FV_OK || offloaded == FV_E_MEMORY);
        assert_true(fetched == FV_OK || fetched == FV_E_MEMORY);
        for (int i = 10; i < 60; i++)
            a.row[0][i].away =
                offloaded == FV_OK && (fetched != FV_OK || (i != wanted[0] && i != wanted[1] && i != wanted[2]));
        check(&a);
        if (shared == FV_OK) {
            memcpy(b.row, a.row, sizeof b.row);
            for (int i = 0; i < 300; i++)
                b.row[0][i].away = false;
            b.count[0] = b.count[1] = 200;
        }
        check(&b);
        end(&a);
        end(&b);
    }
    fv_offload_drop(file);
    fv_ctx_free(ctx);
}

/* ---- the file -------------------------------------------------------------------------------------------------------
 */

/* The number that the next file gets. */
static int next_file(void)
{
    int file = open("/dev/null", O_RDONLY);

    close(file);
    return file;
}

static void a_spoilt_file_is_an_error_of_its_stream(void **state)
{
    static stream a, b;
    static const int32_t wanted[] = {100, 101, 150}, none[] = {5};
    fv_rows_options o = options(FV_F16);
    fv_ctx *ctx = test_ctx("cpu", 1);
    int number = next_file();
    fv_offload *file, *other;
    struct stat about;
    (void)state;

    assert_ok(fv_offload_new(NULL, &file));
    assert_ok(fv_offload_new("/tmp", &other));
    assert_int_equal(fstat(number, &about), 0);
    assert_int_equal(about.st_nlink, 0); /* nobody can delete it, and it stays with nobody */
    begin(&a, &o);
    begin(&b, &o);
    append(ctx, &a, 300);
    append(ctx, &b, 300);
    assert_fails(fv_rows_offload(&a.rows, NULL, 0, 0, 10), FV_E_ARGUMENT, "expected a file");
    for (int i = 100; i < 200; i++)
        a.row[0][i].away = b.row[0][i].away = true;
    assert_ok(fv_rows_offload(&a.rows, file, 0, 100, 100));
    assert_ok(fv_rows_offload(&b.rows, other, 0, 100, 100));
    assert_fails(fv_rows_fetch(&a.rows, 0, none, 1), FV_E_ARGUMENT, "position 5 is not among those in the file");

    /* a byte changes */
    char byte = 0x55;
    assert_int_equal(pwrite(number, &byte, 1, 150 * 96 * 2 - 100 * 96 * 2 + 7), 1);
    fv_rows_prefetch(&a.rows, 0, wanted, 3);
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted, 3), FV_E_IO, "was changed");
    check(&a);
    assert_ok(fv_rows_fetch(&a.rows, 0, wanted, 2));
    a.row[0][100].away = a.row[0][101].away = false;
    check(&a);
    /* it is cut, and written on behind the hole */
    assert_int_equal(ftruncate(number, 100), 0);
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted + 2, 1), FV_E_IO, "was cut");
    for (int i = 0; i < 50; i++)
        a.row[1][i].away = true;
    assert_ok(fv_rows_offload(&a.rows, NULL, 1, 0, 50));
    assert_fails(fv_rows_fetch(&a.rows, 0, wanted + 2, 1), FV_E_IO, "was changed");
    check(&a);
    append(ctx, &a, 10); /* what is in memory goes on */
    check(&a);
    /* the other stream saw nothing */
    assert_ok(fv_rows_fetch(&b.rows, 0, wanted, 3));
    b.row[0][100].away = b.row[0][101].away = b.row[0][150].away = false;
    check(&b);
    end(&a);
    end(&b);
    fv_offload_drop(file);
    fv_offload_drop(other);
    assert_fails(fv_offload_new("/nowhere/at/all", &file), FV_E_IO, "/nowhere/at/all");
    fv_ctx_free(ctx);
}

static void a_full_disk_leaves_rows_in_memory(void **state)
{
    static stream a;
    fv_rows_options o = options(FV_F32);
    fv_ctx *ctx = test_ctx("cpu", 1);
    struct rlimit before, small;
    fv_offload *file;
    (void)state;

    o.shared = false;
    assert_ok(fv_offload_new(NULL, &file));
    begin(&a, &o);
    append(ctx, &a, 300);
    refuse_from(1);
    assert_fails(fv_rows_offload(&a.rows, file, 0, 0, 300), FV_E_IO, "No space left on device");
    refuse_from(0);
    check(&a);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 10000;
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    fv_status status = fv_rows_offload(&a.rows, file, 0, 0, 300);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(status, FV_E_IO);
    assert_non_null(strstr(fv_error(), "limit of 10000"));
    check(&a);
    assert_ok(fv_rows_offload(&a.rows, file, 0, 0, 300));
    for (int i = 0; i < 300; i++)
        a.row[0][i].away = true;
    check(&a);
    assert_ok(fv_rows_convert(ctx, &a.rows, FV_F16, FV_BF16));
    check(&a);
    fv_rows_clear(&a.rows);
    a.count[0] = a.count[1] = 0;
    check(&a);
    assert_int_equal(fv_offload_size(file), 0);
    end(&a);
    fv_offload_drop(file);
    fv_ctx_free(ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_that_share_hold_what_plain_lists_say),
        cmocka_unit_test(shared_pages_count_once),
        cmocka_unit_test(windows_share_their_last_rows),
        cmocka_unit_test(a_merge_in_one_stream_leaves_the_others),
        cmocka_unit_test(streams_of_several_threads_share),
        cmocka_unit_test(refused_maps_lose_nothing),
        cmocka_unit_test(refused_memory_loses_nothing),
        cmocka_unit_test(a_spoilt_file_is_an_error_of_its_stream),
        cmocka_unit_test(a_full_disk_leaves_rows_in_memory),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
