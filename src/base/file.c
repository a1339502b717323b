#define _GNU_SOURCE
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/memory.h"

/* Most bytes read from what has no size of its own: a device may never end. */
#define MOST_STREAMED ((int64_t)1 << 30)

static fv_status open_file(const char *path, int flags, int *descriptor, struct stat *info)
{
    *descriptor = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (*descriptor < 0)
        return fv_fail(errno == EINTR ? FV_E_INTERRUPTED : FV_E_IO, "%s: cannot be opened: %s", path, strerror(errno));
    if (fstat(*descriptor, info) != 0 || S_ISDIR(info->st_mode)) {
        fv_status status = S_ISDIR(info->st_mode)
                               ? fv_fail(FV_E_IO, "%s: is a directory, expected a file", path)
                               : fv_fail(FV_E_IO, "%s: cannot be examined: %s", path, strerror(errno));
        close(*descriptor);
        return status;
    }
    return FV_OK;
}

fv_status fv_file_read(const char *path, char **owned, size_t *size)
{
    int64_t capacity = 0, used = 0;
    struct stat info;
    fv_status status = FV_OK;
    int descriptor;

    *owned = NULL;
    *size = 0;
    FV_TRY(open_file(path, 0, &descriptor, &info));
    for (;;) {
        int64_t want = used == 0 && info.st_size > 0 ? (int64_t)info.st_size : 65536;
        FV_TRY_DONE(FV_GROW(*owned, capacity, used + want + 1));
        ssize_t got = read(descriptor, *owned + used, (size_t)fv_min(capacity - used - 1, 1 << 24));
        if (got < 0) { /* EINTR: reading a file is never interrupted, waiting for a pipe is, and means to stop */
            status =
                fv_fail(errno == EINTR ? FV_E_INTERRUPTED : FV_E_IO, "%s: cannot be read: %s", path, strerror(errno));
            goto done;
        }
        if (got == 0) break;
        used += got;
        if (!S_ISREG(info.st_mode) && used > MOST_STREAMED) {
            status = fv_fail(FV_E_IO, "%s: has not ended after %lld bytes", path, (long long)used);
            goto done;
        }
    }
    (*owned)[used] = 0;
    *size = (size_t)used;
done:
    close(descriptor);
    if (status != FV_OK) {
        fv_free(*owned);
        *owned = NULL;
    }
    return status;
}

fv_status fv_file_map(const char *path, const void **data, size_t *size)
{
    struct stat info;
    int descriptor;

    *data = NULL;
    *size = 0;
    FV_TRY(open_file(path, O_NONBLOCK, &descriptor, &info)); /* a pipe nobody writes to would be waited for */
    if (!S_ISREG(info.st_mode)) {
        close(descriptor);
        return fv_fail(FV_E_IO, "%s: expected a regular file", path);
    }
    if (info.st_size > 0) {
        void *mapped = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (mapped == MAP_FAILED) {
            fv_status status = fv_fail(FV_E_IO, "%s: cannot be mapped into memory: %s", path, strerror(errno));
            close(descriptor);
            return status;
        }
        *data = mapped;
        *size = (size_t)info.st_size;
    }
    close(descriptor);
    return FV_OK;
}

void fv_file_unmap(const void *data, size_t size)
{
    if (data) munmap((void *)(uintptr_t)data, size);
}

fv_status fv_file_unnamed(const char *folder, int *descriptor)
{
    const char *temporary = getenv("TMPDIR");
    size_t length;
    char *name;

    if (!folder) folder = temporary && *temporary ? temporary : "/tmp";
    *descriptor = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC | O_EXCL, 0600);
    if (*descriptor >= 0) return FV_OK;
    length = strlen(folder) + 32; /* not every file system has files without names */
    FV_TRY(FV_ALLOC(name, (int64_t)length));
    snprintf(name, length, "%s/fovea-XXXXXX", folder);
    *descriptor = mkostemp(name, O_CLOEXEC);
    fv_status status = *descriptor < 0 ? fv_fail(FV_E_IO, "a temporary file in the folder %s (TMPDIR says where): %s",
                                                 folder, strerror(errno))
                                       : FV_OK;
    if (status == FV_OK) unlink(name);
    fv_free(name);
    return status;
}

fv_status fv_file_create(const char *path, fv_file_out *out)
{
    size_t length = strlen(path) + 32;
    bool special = false; /* a pipe or device is written to as it is: renaming would replace it */
    struct stat info;
    fv_status status;

    *out = (fv_file_out){0};
    if (stat(path, &info) == 0) {
        if (S_ISDIR(info.st_mode)) return fv_fail(FV_E_IO, "%s: is a directory, expected a file", path);
        special = !S_ISREG(info.st_mode);
    }
    FV_TRY_DONE(FV_ALLOC(out->path, (int64_t)length));
    snprintf(out->path, length, "%s", path);
    if (!special) {
        FV_TRY_DONE(FV_ALLOC(out->temporary, (int64_t)length));
        snprintf(out->temporary, length, "%s.part%ld", path, (long)getpid());
    }
    out->stream = fopen(special ? path : out->temporary, "wb");
    if (!out->stream) {
        status = fv_fail(FV_E_IO, "%s: cannot be created: %s", path, strerror(errno));
        fv_free(out->temporary);
        out->temporary = NULL;
        goto done;
    }
    return FV_OK;
done:
    fv_file_discard(out);
    return status;
}

fv_status fv_file_commit(fv_file_out *out)
{
    fv_status status = FV_OK;
    bool failed = ferror(out->stream) != 0;

    if (fclose(out->stream) != 0 || failed)
        status = fv_fail(FV_E_IO, "%s: cannot be written: %s", out->path, strerror(errno));
    out->stream = NULL;
    if (status == FV_OK && out->temporary && rename(out->temporary, out->path) != 0)
        status = fv_fail(FV_E_IO, "%s: cannot be renamed into place: %s", out->path, strerror(errno));
    if (status == FV_OK) {
        fv_free(out->temporary);
        out->temporary = NULL;
    }
    fv_file_discard(out);
    return status;
}

void fv_file_discard(fv_file_out *out)
{
    if (out->stream) fclose(out->stream);
    if (out->temporary) unlink(out->temporary);
    fv_free(out->temporary);
    fv_free(out->path);
    *out = (fv_file_out){0};
}
