/* Files of the command's own. */
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "app/app.h"
#include "base/file.h"

fv_status app_file_try(const char *path)
{
    struct stat info;
    fv_file_out file;

    if (!path) return FV_OK;
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode) && !S_ISDIR(info.st_mode))
        return FV_OK; /* who reads from a pipe would take its closing for the end */
    FV_TRY(fv_file_create(path, &file));
    fv_file_discard(&file);
    return FV_OK;
}

fv_status app_file_unnamed(FILE **file)
{
    int descriptor;

    FV_TRY(fv_file_unnamed(NULL, &descriptor));
    *file = fdopen(descriptor, "w+b");
    if (*file) return FV_OK;
    close(descriptor);
    return fv_fail(FV_E_MEMORY, "a temporary file: %s", strerror(errno));
}
