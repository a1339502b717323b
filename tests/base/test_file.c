/* Files: whole in, whole out, and nothing half done under a final name. */
#include "support/support.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/file.h"
#include "base/memory.h"

static char folder[] = "/tmp/fovea-file-XXXXXX";

static const char *in_folder(const char *name)
{
    static char path[128];

    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int files_there(void)
{
    DIR *directory = opendir(folder);
    int count = -2; /* . and .. */

    while (readdir(directory))
        count++;
    closedir(directory);
    return count;
}

static void write_text(const char *name, const char *text)
{
    fv_file_out out;

    assert_ok(fv_file_create(in_folder(name), &out));
    fputs(text, out.stream);
    assert_ok(fv_file_commit(&out));
}

static void whole_files_come_back(void **state)
{
    const void *data;
    char *owned;
    size_t size;
    (void)state;

    write_text("a", "some text");
    assert_ok(fv_file_read(in_folder("a"), &owned, &size));
    assert_int_equal(size, 9);
    assert_string_equal(owned, "some text");
    fv_free(owned);
    assert_ok(fv_file_map(in_folder("a"), &data, &size));
    assert_memory_equal(data, "some text", 9);
    fv_file_unmap(data, size);
    write_text("a", "");
    assert_ok(fv_file_read(in_folder("a"), &owned, &size));
    assert_int_equal(size, 0);
    fv_free(owned);
    assert_ok(fv_file_map(in_folder("a"), &data, &size));
    assert_null(data);
    unlink(in_folder("a"));
}

static void what_is_no_file_is_refused(void **state)
{
    const void *data;
    size_t size;
    (void)state;

    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    assert_fails(fv_file_map(in_folder("pipe"), &data, &size), FV_E_IO, "expected a regular file"); /* and no wait */
    unlink(in_folder("pipe"));
    assert_fails(fv_file_map(folder, &data, &size), FV_E_IO, "is a directory");
    assert_fails(fv_file_map("a\x1b[31m\nb", &data, &size), FV_E_IO, "a?[31m?b: cannot be opened");
}

static void a_name_appears_only_when_done(void **state)
{
    fv_file_out out;
    (void)state;

    assert_ok(fv_file_create(in_folder("b"), &out));
    fputs("half", out.stream);
    fflush(out.stream);
    assert_int_not_equal(access(in_folder("b"), F_OK), 0);
    fv_file_discard(&out);
    assert_int_equal(files_there(), 0);
    write_text("b", "old");
    assert_ok(fv_file_create(in_folder("b"), &out));
    fputs("new and half", out.stream);
    fv_file_discard(&out);
    char *owned;
    size_t size;
    assert_ok(fv_file_read(in_folder("b"), &owned, &size));
    assert_string_equal(owned, "old");
    fv_free(owned);
    unlink(in_folder("b"));
    assert_int_equal(files_there(), 0);
}

static void failures_say_which_file(void **state)
{
    const void *data;
    char *owned;
    size_t size;
    fv_file_out out;
    struct stat info;
    (void)state;

    assert_fails(fv_file_read(in_folder("none"), &owned, &size), FV_E_IO, "none: cannot be opened");
    assert_fails(fv_file_read(folder, &owned, &size), FV_E_IO, "is a directory");
    assert_fails(fv_file_map(folder, &data, &size), FV_E_IO, "is a directory");
    assert_fails(fv_file_map("/dev/null", &data, &size), FV_E_IO, "regular file");
    assert_fails(fv_file_create(in_folder("none/x"), &out), FV_E_IO, "cannot be created");
    assert_fails(fv_file_create(folder, &out), FV_E_IO, "is a directory");
    assert_ok(fv_file_create("/dev/full", &out));
    for (int i = 0; i < 100000; i++)
        fputs("more than a buffer", out.stream);
    assert_fails(fv_file_commit(&out), FV_E_IO, "cannot be written");
    assert_ok(fv_file_create("/dev/null", &out)); /* a device is written to, not replaced */
    assert_ok(fv_file_commit(&out));
    assert_int_equal(stat("/dev/null", &info), 0);
    assert_true(S_ISCHR(info.st_mode));
    for (int64_t n = 1; n <= 4; n++) {
        test_alloc_fail(n);
        fv_status status = fv_file_create(in_folder("m"), &out);
        test_alloc_fail(0);
        if (status == FV_OK) fv_file_discard(&out);
    }
    assert_int_equal(files_there(), 0);
}

static void pipes_are_read_whole(void **state)
{
    char *owned;
    size_t size;
    (void)state;

    assert_int_equal(mkfifo(in_folder("pipe"), 0600), 0);
    char command[256];
    snprintf(command, sizeof command, "head -c 300000 /dev/zero > %s/pipe &", folder);
    assert_int_equal(system(command), 0);
    assert_ok(fv_file_read(in_folder("pipe"), &owned, &size));
    assert_int_equal(size, 300000);
    fv_free(owned);
    unlink(in_folder("pipe"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_files_come_back),         cmocka_unit_test(what_is_no_file_is_refused),
        cmocka_unit_test(a_name_appears_only_when_done), cmocka_unit_test(failures_say_which_file),
        cmocka_unit_test(pipes_are_read_whole),
    };

    if (!mkdtemp(folder)) return 1;
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
