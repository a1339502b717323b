/* Safetensors: what is in a file comes out, of every type; whatever is broken gives a sentence, never a crash. */
#include "models/safetensors.h"

#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"
#include "base/text.h"
#include "support/support.h"

/* A file in memory: a header as given, and `data` bytes 1, 2, 3, .. */
static unsigned char *make(const char *header, size_t length, size_t data, size_t *size)
{
    unsigned char *file = malloc(8 + length + data); /* ends where it ends, for a sanitizer to see */

    assert_non_null(file);
    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(file + 8, header, length);
    for (size_t i = 0; i < data; i++)
        file[8 + length + i] = (unsigned char)(i + 1);
    *size = 8 + length + data;
    return file;
}

static fv_status parse(const char *header, size_t length, size_t data)
{
    fv_safetensors *f;
    size_t size;
    unsigned char *file = make(header, length, data, &size);
    fv_status status = fv_safetensors_parse("x.safetensors", file, size, &f);

    if (status != FV_OK) assert_null(f);
    fv_safetensors_close(f);
    free(file);
    return status;
}

/* ---- what is written is read ------------------------------------------------------------------------------------- */

static const fv_dtype types[] = {FV_F32, FV_F16, FV_BF16, FV_F64, FV_I8, FV_U8, FV_I16, FV_U16, FV_I32, FV_I64};
enum { TYPES = sizeof types / sizeof *types, ROWS = 3, COLUMNS = 5 };

/* A tensor of small whole numbers, which every type holds. */
static fv_tensor small_numbers(fv_ctx *ctx, fv_dtype dtype, fv_random *random)
{
    fv_tensor t;

    assert_ok(fv_tensor_new(ctx, &t, dtype, FV_DIMS(ROWS, COLUMNS)));
    for (int64_t i = 0; i < ROWS * COLUMNS; i++)
        fv_store(dtype, t.data, i, (double)fv_random_below(random, 100));
    return t;
}

static void check_same(const char *name, const fv_safetensors *f, const fv_tensor *expected)
{
    const fv_safetensor *stored = fv_safetensors_find(f, name);
    fv_tensor t;
    void *owned;

    assert_non_null(stored);
    assert_string_equal(stored->name, name);
    assert_true((uintptr_t)stored->tensor.data % fv_dtype_size(expected->dtype) == 0);
    assert_ok(fv_safetensors_copy(stored, &t, &owned));
    assert_int_equal(t.dtype, expected->dtype);
    assert_true(fv_tensor_same_shape(&t, expected));
    for (int64_t i = 0; i < t.dims[0]; i++)
        for (int64_t j = 0; j < t.dims[1]; j++) {
            double got = fv_load(t.dtype, t.data, i * t.dims[1] + j);
            double wanted = fv_load(t.dtype, expected->data, i * expected->strides[0] + j * expected->strides[1]);
            if (got != wanted) fail_msg("%s [%d,%d]: expected %g, got %g", name, (int)i, (int)j, wanted, got);
        }
    fv_free(owned);
}

static void every_type_is_written_and_read(void **state)
{
    static const fv_note notes[] = {{"format", "pt"}, {"\xc3\xa9\n\"", "a \\ b \xf0\x9f\x99\x82"}, {"empty", ""}};
    fv_ctx *ctx = test_ctx("ref", 1);
    fv_random random = fv_random_new(test_seed(), 3);
    fv_named_tensor named[TYPES + 2];
    char path[] = "/tmp/fovea-safetensors-XXXXXX";
    fv_safetensors *f;
    (void)state;

    for (int i = 0; i < TYPES; i++)
        named[i] = (fv_named_tensor){fv_dtype_name(types[i]), small_numbers(ctx, types[i], &random)};
    named[TYPES] = (fv_named_tensor){"turned \xe2\x86\xbb", fv_transposed(&named[0].tensor)};
    named[TYPES + 1] = (fv_named_tensor){"empty", fv_slice(&named[1].tensor, 0, 0, 0)};
    close(mkstemp(path));
    assert_ok(fv_safetensors_write(path, TYPES + 2, named, 3, notes));
    assert_ok(fv_safetensors_open(path, &f));
    assert_int_equal(fv_safetensors_count(f), TYPES + 2);
    for (int i = 0; i < TYPES + 2; i++)
        check_same(named[i].name, f, &named[i].tensor);
    for (int i = 0; i < 3; i++)
        assert_string_equal(fv_safetensors_note(f, notes[i].key), notes[i].value);
    assert_null(fv_safetensors_note(f, "none"));
    assert_null(fv_safetensors_find(f, "f3"));
    for (int64_t i = 1; i < fv_safetensors_count(f); i++)
        assert_true(strcmp(fv_safetensors_at(f, i - 1)->name, fv_safetensors_at(f, i)->name) < 0);
    fv_safetensors_close(f);
    assert_ok(fv_safetensors_write(path, 0, NULL, 0, NULL));
    assert_ok(fv_safetensors_open(path, &f));
    assert_int_equal(fv_safetensors_count(f), 0);
    assert_null(fv_safetensors_find(f, "f32"));
    fv_safetensors_close(f);
    unlink(path);
    assert_fails(fv_safetensors_open(path, &f), FV_E_IO, "cannot be opened");
    fv_ctx_free(ctx);
}

static void bytes_are_read_as_they_lie(void **state)
{
    static const char header[] =
        " {\"b\" : {\"data_offsets\":[1,5], \"shape\":[1,1,1,1,1,2], \"dtype\":\"I16\"},\n"
        "\"caf\\u00e9 \\ud83d\\ude42\":{\"dtype\":\"BOOL\",\"shape\":[1],\"data_offsets\":[0,1]},\"none\":{\"dtype\":"
        "\"F64\",\"shape\":[3,0],\"data_offsets\":[5,5]},\"scalar\":{\"dtype\":\"U8\",\"shape\":[],\"data_offsets\":"
        "[5,6]},\"__metadata__\":{\"k\":\"v\"}}   ";
    size_t size;
    unsigned char *file = make(header, sizeof header - 1, 6, &size);
    const fv_safetensor *t;
    fv_safetensors *f;
    fv_tensor copy;
    void *owned;
    (void)state;

    assert_ok(fv_safetensors_parse("x", file, size, &f));
    t = fv_safetensors_find(f, "b");
    assert_string_equal(fv_shape_text(&t->tensor), "[1,1,1,1,1,2]");
    assert_ok(fv_safetensors_copy(t, &copy, &owned)); /* it lies at an odd byte */
    assert_int_equal(((int16_t *)copy.data)[1], 0x0504);
    fv_free(owned);
    t = fv_safetensors_find(f, "caf\xc3\xa9 \xf0\x9f\x99\x82");
    assert_true(t && t->tensor.dtype == FV_U8 && *(unsigned char *)t->tensor.data == 1);
    t = fv_safetensors_find(f, "none");
    assert_string_equal(fv_shape_text(&t->tensor), "[3,0]");
    assert_ok(fv_safetensors_copy(t, &copy, &owned));
    assert_int_equal(fv_tensor_count(&copy), 0);
    fv_free(owned);
    t = fv_safetensors_find(f, "scalar");
    assert_true(t && t->tensor.rank == 0 && *(unsigned char *)t->tensor.data == 6);
    assert_string_equal(fv_safetensors_note(f, "k"), "v");
    fv_safetensors_close(f);
    free(file);
    assert_ok(parse("{}", 2, 0));
    assert_ok(parse("{\"__metadata__\":{}}", 19, 0));
}

/* ---- refusals ---------------------------------------------------------------------------------------------------- */

#define T(fields) "{\"t\":{" fields "}}"
#define D "\"dtype\":\"F32\","
#define S "\"shape\":[2,3],"
#define O "\"data_offsets\":[0,24]"
#define LONG "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn"
#define TENSOR(name, from, to) "\"" name "\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[" #from "," #to "]}"

static void broken_headers_are_named(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        fv_status status;
        const char *words;
    } cases[] = {
        /* no JSON object */
        {"", 0, FV_E_FORMAT, "header, byte 8: expected '{', got its end"},
        {"[]", 0, FV_E_FORMAT, "expected '{', got '['"},
        {"\1", 0, FV_E_FORMAT, "expected '{', got '?'"},
        {"{", 0, FV_E_FORMAT, "byte 9: expected a text in quotes, got its end"},
        {"{1:2}", 0, FV_E_FORMAT, "byte 9: expected a text in quotes, got '1'"},
        {"{\"t\"}", 0, FV_E_FORMAT, "byte 12: expected ':', got '}'"},
        {"{\"t\":}", 0, FV_E_FORMAT, "byte 13: expected a value, got '}'"},
        {"{\"t\":", 0, FV_E_FORMAT, "expected a value, got its end"},
        {"{\"t\":{", 0, FV_E_FORMAT, "expected a closing bracket, got its end"},
        {"{\"t", 0, FV_E_FORMAT, "byte 9: a text has no closing quote"},
        {"{\"t\\\"", 0, FV_E_FORMAT, "no closing quote"},
        {"{\"t\\", 0, FV_E_FORMAT, "no closing quote"},
        {T(D S O) "x", 24, FV_E_FORMAT, "expected nothing but spaces behind '}', got 'x'"},
        {"{" TENSOR("a", 0, 4) TENSOR("b", 4, 8) "}", 8, FV_E_FORMAT, "expected ',' or '}', got '\"'"},
        {"{" TENSOR("a", 0, 4) ",}", 4, FV_E_FORMAT, "expected a text in quotes, got '}'"},
        {"{\"t\":{]}", 0, FV_E_FORMAT, "is not JSON"},
        {"{\"t\":{\"dtype\":tru}}", 0, FV_E_FORMAT, "is not JSON"},
        {"{\"\xff\":1}", 0, FV_E_FORMAT, "is not JSON: unable to decode byte 0xff"},
        {"{\"\\u0000\":1}", 0, FV_E_FORMAT, "is not JSON: \\u0000"},
        {"{\"\\ud800\":1}", 0, FV_E_FORMAT, "is not JSON"},
        {"{\"\\x\":1}", 0, FV_E_FORMAT, "is not JSON: invalid escape"},
        {T("\"shape\":[[[1]]]"), 0, FV_E_FORMAT, "is nested too deep"},
        {T("\"shape\":{\"a\":{}}"), 0, FV_E_FORMAT, "is nested too deep"},
        /* fields */
        {"{\"t\":1}", 0, FV_E_FORMAT, "tensor 't': expected 'dtype', 'shape' and 'data_offsets' in braces, got 1"},
        {"{\"t\":[1]}", 0, FV_E_FORMAT, "in braces, got [1]"},
        {T(D S), 0, FV_E_FORMAT, "is not JSON"},
        {T(S O), 24, FV_E_FORMAT, "'dtype': expected a text such as \"F32\", got nothing"},
        {T(D O), 24, FV_E_FORMAT, "'shape': expected whole numbers in brackets, got nothing"},
        {T(D "\"shape\":[2,3]"), 24, FV_E_FORMAT, "'data_offsets': expected whole numbers in brackets, got nothing"},
        {T(D S O ",\"x\":1"), 24, FV_E_FORMAT, "expected 'dtype', 'shape' and 'data_offsets', got 'x'"},
        {T(D D S O), 24, FV_E_FORMAT, "duplicate object key"},
        {T("\"dtype\":4," S O), 24, FV_E_FORMAT, "'dtype': expected a text such as \"F32\", got 4"},
        {T("\"dtype\":\"F8_E4M3\"," S O), 24, FV_E_UNSUPPORTED, "tensor 't' is of type \"F8_E4M3\"; expected F32"},
        {T("\"dtype\":\"f32\"," S O), 24, FV_E_UNSUPPORTED, "of type \"f32\""},
        {T("\"dtype\":\"" LONG "\"," S O), 24, FV_E_UNSUPPORTED, "of type \"...; expected"},
        {T("\"dtype\":[" LONG "]," S O), 24, FV_E_FORMAT, "is not JSON"},
        {T("\"dtype\":[1000000000,2000000000,3000000000,4000000000,5000000000,6000000000]," S O), 24, FV_E_FORMAT,
         "got [1000000000,2000000000,3000000000,4000000000,5000000000,..."},
        {T("\"dtype\":\"\"," S O), 24, FV_E_UNSUPPORTED, "of type \"\""},
        {T("\"dtype\":\"U32\"," S O), 24, FV_E_UNSUPPORTED, "of type \"U32\"; expected F32, F16"},
        /* shapes */
        {T(D "\"shape\":6," O), 24, FV_E_FORMAT, "'shape': expected whole numbers in brackets, got 6"},
        {T(D "\"shape\":[6.0]," O), 24, FV_E_FORMAT, "'shape': expected whole numbers of 0 or more, got 6.0"},
        {T(D "\"shape\":[\"6\"]," O), 24, FV_E_FORMAT, "got \"6\""},
        {T(D "\"shape\":[null]," O), 24, FV_E_FORMAT, "got null"},
        {T(D "\"shape\":[-2,-3]," O), 24, FV_E_FORMAT, "got -2"},
        {T(D "\"shape\":[[6]]," O), 24, FV_E_FORMAT, "nested too deep"},
        {T(D "\"shape\":[99999999999999999999]," O), 24, FV_E_FORMAT, "too big integer"},
        {T(D "\"shape\":[4294967296,4294967296]," O), 24, FV_E_FORMAT, "its dimensions overflow"},
        {T(D "\"shape\":[4611686018427387904]," O), 24, FV_E_FORMAT, "its dimensions overflow"},
        {T(D "\"shape\":[1,1,1,1,1,2,3]," O), 24, FV_E_SHAPE, "expected at most 6 dimensions, got 7"},
        /* places */
        {T(D S "\"data_offsets\":24"), 24, FV_E_FORMAT, "'data_offsets': expected whole numbers in brackets, got 24"},
        {T(D S "\"data_offsets\":[24]"), 24, FV_E_FORMAT,
         "'data_offsets': expected where it begins and ends, got [24]"},
        {T(D S "\"data_offsets\":[0,24,24]"), 24, FV_E_FORMAT, "begins and ends, got [0,24,24]"},
        {T(D S "\"data_offsets\":[24,0]"), 24, FV_E_FORMAT, "begins and ends, got [24,0]"},
        {T(D S "\"data_offsets\":[-24,0]"), 24, FV_E_FORMAT,
         "'data_offsets': expected whole numbers of 0 or more, got -24"},
        {T(D S "\"data_offsets\":[0,24.5]"), 24, FV_E_FORMAT, "got 24.5"},
        {T(D S "\"data_offsets\":[0,20]"), 24, FV_E_FORMAT,
         "f32 of shape [2,3] takes 24 bytes, 'data_offsets' give it 20"},
        {T(D S "\"data_offsets\":[0,28]"), 28, FV_E_FORMAT, "takes 24 bytes, 'data_offsets' give it 28"},
        {T(D S O), 20, FV_E_FORMAT,
         "would end at byte 24 of the data, but there are 20: the download may be incomplete"},
        {T(D S "\"data_offsets\":[9223372036854775783,9223372036854775807]"), 24, FV_E_FORMAT,
         "would end at byte 9223372036854775807"},
        {T(D S O), 25, FV_E_FORMAT, "expected the file to end with its last tensor, got 1 bytes behind it"},
        {"{}", 3, FV_E_FORMAT, "got 3 bytes behind it"},
        {"{" TENSOR("a", 0, 4) "," TENSOR("b", 5, 9) "}", 9, FV_E_FORMAT,
         "bytes 4 to 5 of the data, before tensor 'b', are no tensor's"},
        {"{" TENSOR("a", 1, 5) "}", 5, FV_E_FORMAT, "bytes 0 to 1 of the data"},
        {"{" TENSOR("a", 0, 4) "," TENSOR("b", 3, 7) "}", 7, FV_E_FORMAT,
         "tensor 'b' begins at byte 3 of the data, before 'a' ends at 4"},
        {"{" TENSOR("a", 0, 4) "," TENSOR("b", 0, 4) "}", 4, FV_E_FORMAT, "begins at byte 0 of the data, before"},
        /* names */
        {"{" TENSOR("a", 0, 4) "," TENSOR("\\u0061", 4, 8) "}", 8, FV_E_FORMAT, "tensor 'a' stands twice"},
        {"{" TENSOR("a\\nb", 0, 4) "}", 5, FV_E_FORMAT, "got 1 bytes behind it"},
        {"{\"a\\nb\":1}", 0, FV_E_FORMAT, "tensor 'a?b'"},
        /* what it says about itself */
        {"{\"__metadata__\":1}", 0, FV_E_FORMAT, "'__metadata__': expected texts by name in braces, got 1"},
        {"{\"__metadata__\":{\"a\":1}}", 0, FV_E_FORMAT, "__metadata__ 'a': expected a text, got 1"},
        {"{\"__metadata__\":{\"a\":{}}}", 0, FV_E_FORMAT, "__metadata__ 'a': expected a text, got {}"},
        {"{\"__metadata__\":{\"a\"}}", 0, FV_E_FORMAT, "expected ':', got '}'"},
        {"{\"__metadata__\":{\"a\":\"\xc3(\"}}", 0, FV_E_FORMAT, "is not JSON"},
        {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, FV_E_FORMAT, "__metadata__ 'a' stands twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, FV_E_FORMAT, "'__metadata__' stands twice"},
    };
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_fails(parse(cases[i].header, strlen(cases[i].header), cases[i].data), cases[i].status, cases[i].words);
        assert_true(strncmp(fv_error(), "x.safetensors: ", 15) == 0);
        const char *got = strstr(cases[i].words, "got ");
        if (got) assert_string_equal(strstr(fv_error(), got), got); /* nothing stands behind it */
    }
    assert_fails(parse("{\"t\0\":1}", 8, 0), FV_E_FORMAT, "is not JSON");
    assert_fails(parse("{\"t\":\0}", 7, 0), FV_E_FORMAT, "in braces, got ?");
    assert_fails(parse("{\"t\":{\0}}", 9, 0), FV_E_FORMAT, "is not JSON");
}

static void lengths_are_checked(void **state)
{
    char many[5000], name[2000];
    fv_safetensors *f;
    (void)state;

    assert_fails(fv_safetensors_parse("x", "", 0, &f), FV_E_FORMAT, "is not a safetensors file: it has 0 bytes");
    assert_fails(fv_safetensors_parse("x", "\2\0\0\0\0\0\0", 7, &f), FV_E_FORMAT, "it has 7 bytes");
    assert_fails(fv_safetensors_parse("x", "\3\0\0\0\0\0\0\0{}", 10, &f), FV_E_FORMAT,
                 "the header would take 3 bytes, but the file ends after 2");
    assert_fails(fv_safetensors_parse("x", "\x93NUMPY\1\0{}", 10, &f), FV_E_FORMAT, "a header of");
    assert_fails(fv_safetensors_parse("x", "\1\xe1\xf5\5\0\0\0\0{}", 10, &f), FV_E_FORMAT,
                 "a header of 100000001 bytes, expected at most 100000000");
    assert_fails(fv_safetensors_parse("x", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, &f), FV_E_FORMAT,
                 "18446744073709551615");
    memset(name, 'n', sizeof name);
    snprintf(many, sizeof many, "{\"%.*s\":{" D S O "}}", FV_SAFETENSORS_NAME, name);
    assert_ok(parse(many, strlen(many), 24));
    snprintf(many, sizeof many, "{\"%.*s\":{" D S O "}}", FV_SAFETENSORS_NAME + 1, name);
    assert_fails(parse(many, strlen(many), 24), FV_E_FORMAT, "n...': expected a name of at most 1024 bytes, got 1025");
    snprintf(many, sizeof many, "{\"t\":{%4090s}}", "");
    assert_fails(parse(many, strlen(many), 0), FV_E_FORMAT, "'dtype'");
    snprintf(many, sizeof many, "{\"t\":{%4095s}}", "");
    assert_fails(parse(many, strlen(many), 0), FV_E_FORMAT, "a description of at most 4096 bytes, got 4097");
}

static const char good[] =
    "{\"__metadata__\":{\"format\":\"pt\"},\"a.weight\":{\"dtype\":\"F32\",\"shape\":[2,3],"
    "\"data_offsets\":[0,24]},\"b\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[24,26]}}  ";
enum { GOOD_DATA = 26 };

/* Every prefix of a good file is refused, and every flipped byte gives tensors or a sentence. */
static void damaged_files_never_crash(void **state)
{
    size_t size;
    unsigned char *file = make(good, sizeof good - 1, GOOD_DATA, &size);
    fv_random random = fv_random_new(test_seed(), 7);
    fv_safetensors *f;
    (void)state;

    assert_ok(fv_safetensors_parse("x", file, size, &f));
    fv_safetensors_close(f);
    for (size_t cut = 0; cut < size; cut++) {
        void *exact = malloc(cut + !cut);
        memcpy(exact, file, cut);
        assert_true(fv_safetensors_parse("x", exact, cut, &f) != FV_OK);
        free(exact);
    }
    for (int round = 0; round < 20000; round++) {
        unsigned char *copy = malloc(size);
        memcpy(copy, file, size);
        for (int64_t flips = 1 + fv_random_below(&random, 3); flips > 0; flips--)
            copy[fv_random_below(&random, (int64_t)size)] = (unsigned char)fv_random_u32(&random);
        if (fv_safetensors_parse("x", copy, size, &f) == FV_OK) fv_safetensors_close(f);
        free(copy);
    }
    free(file);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

static void what_cannot_be_written_is_refused(void **state)
{
    static float numbers[2];
    static const fv_note again[] = {{"a", "b"}, {"a", "c"}}, bytes[] = {{"a", "\xff"}};
    char path[] = "/tmp/fovea-safetensors-XXXXXX", name[FV_SAFETENSORS_NAME + 2];
    fv_named_tensor t[2] = {{.name = "a"}, {.name = "b"}};
    struct stat info;
    (void)state;

    close(mkstemp(path));
    for (int i = 0; i < 2; i++)
        assert_ok(fv_tensor_wrap(&t[i].tensor, numbers, FV_F32, FV_DIMS(2)));
    t[1].name = "a";
    assert_fails(fv_safetensors_write(path, 2, t, 0, NULL), FV_E_ARGUMENT, "tensor 'a' is given twice");
    t[1].name = "\xc3(";
    assert_fails(fv_safetensors_write(path, 2, t, 0, NULL), FV_E_ARGUMENT, "tensor '?('");
    t[1].name = "__metadata__";
    assert_fails(fv_safetensors_write(path, 2, t, 0, NULL), FV_E_ARGUMENT, "other than __metadata__");
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    t[1].name = name;
    assert_fails(fv_safetensors_write(path, 2, t, 0, NULL), FV_E_ARGUMENT, "at most 1024 bytes");
    t[1].name = "b";
    t[1].tensor.dtype = FV_Q8_0;
    assert_fails(fv_safetensors_write(path, 2, t, 0, NULL), FV_E_DTYPE,
                 "tensor 'b': safetensors have no name for q8_0");
    assert_fails(fv_safetensors_write(path, 1, t, 2, again), FV_E_ARGUMENT, "note 'a' is given twice");
    assert_fails(fv_safetensors_write(path, 1, t, 1, bytes), FV_E_ARGUMENT, "note '?'");
    assert_int_equal(stat(path, &info), 0);
    assert_int_equal(info.st_size, 0); /* what was there is left as it was */
    unlink(path);
    assert_fails(fv_safetensors_write("/tmp/none/x", 1, t, 0, NULL), FV_E_IO, "cannot be created");
}

/* Running out of memory at any place leaves a sentence, and no file. */
static void without_memory_nothing_is_left(void **state)
{
    static float numbers[2];
    fv_named_tensor t = {.name = "a"};
    fv_note note = {"a", "b"};
    size_t size;
    unsigned char *file = make(good, sizeof good - 1, GOOD_DATA, &size);
    char folder[] = "/tmp/fovea-safetensors-XXXXXX", path[64];
    fv_status status = FV_E_MEMORY;
    fv_safetensors *f;
    (void)state;

    for (int64_t n = 1; status != FV_OK; n++) {
        test_alloc_fail(n);
        status = fv_safetensors_parse("x", file, size, &f);
        test_alloc_fail(0);
        assert_true(status == FV_OK || (status == FV_E_MEMORY && !f && n < 10));
        if (status == FV_OK) assert_true(n > 4); /* the reader, its path, texts, tensors, notes */
    }
    fv_safetensors_close(f);
    free(file);
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof path, "%s/x", folder);
    assert_ok(fv_tensor_wrap(&t.tensor, numbers, FV_F32, FV_DIMS(2)));
    status = FV_E_MEMORY;
    for (int64_t n = 1; status != FV_OK; n++) {
        test_alloc_fail(n);
        status = fv_safetensors_write(path, 1, &t, 1, &note);
        test_alloc_fail(0);
        assert_true(status == FV_OK || (status == FV_E_MEMORY && n < 10));
        assert_int_equal(access(path, F_OK), status == FV_OK ? 0 : -1);
    }
    unlink(path);
    assert_int_equal(rmdir(folder), 0); /* no part is left over */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_written_and_read), cmocka_unit_test(bytes_are_read_as_they_lie),
        cmocka_unit_test(broken_headers_are_named),       cmocka_unit_test(lengths_are_checked),
        cmocka_unit_test(damaged_files_never_crash),      cmocka_unit_test(what_cannot_be_written_is_refused),
        cmocka_unit_test(without_memory_nothing_is_left),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
