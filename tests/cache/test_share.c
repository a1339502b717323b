/* Streams that share rows and keep some in a file: whatever one of them does, each holds what a plain list says, and
 * the bytes reported are those the system counts. */
#define _GNU_SOURCE
#include "streams.h"

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(streams_that_share_hold_what_plain_lists_say),
        cmocka_unit_test(shared_pages_count_once),
        cmocka_unit_test(windows_share_their_last_rows),
        cmocka_unit_test(a_merge_in_one_stream_leaves_the_others),
        cmocka_unit_test(streams_of_several_threads_share),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
