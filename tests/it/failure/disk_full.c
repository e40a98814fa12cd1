/*
 * Preloaded into a PostgreSQL server, makes the disk of its tables full while the file disk_full lies in the
 * cluster's directory, above the data directory: a file below base/ cannot grow. What is there already can be
 * written to, as on any full disk; the WAL is on another one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define FLAG "../disk_full"

static int is_full(int descriptor, off_t end)
{
    char        link[64], path[1024];
    ssize_t     length;
    struct stat file;

    if (access(FLAG, F_OK) != 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, "/base/") != NULL && fstat(descriptor, &file) == 0 && end > file.st_size;
}

static off_t length_of(const struct iovec *parts, int count)
{
    off_t       length = 0;
    int         i;

    for (i = 0; i < count; i++)
        length += parts[i].iov_len;
    return length;
}

#define WRITE(name) \
    ssize_t name(int descriptor, const void *data, size_t length, off_t offset) \
    { \
        ssize_t     (*real) (int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, #name); \
        if (is_full(descriptor, offset + (off_t) length)) \
        { \
            errno = ENOSPC; \
            return -1; \
        } \
        return real(descriptor, data, length, offset); \
    }
WRITE(pwrite)
WRITE(pwrite64)

#define WRITE_PARTS(name) \
    ssize_t name(int descriptor, const struct iovec *parts, int count, off_t offset) \
    { \
        ssize_t     (*real) (int, const struct iovec *, int, off_t) = dlsym(RTLD_NEXT, #name); \
        if (is_full(descriptor, offset + length_of(parts, count))) \
        { \
            errno = ENOSPC; \
            return -1; \
        } \
        return real(descriptor, parts, count, offset); \
    }
WRITE_PARTS(pwritev)
WRITE_PARTS(pwritev64)

#define ALLOCATE(name) \
    int name(int descriptor, off_t offset, off_t length) \
    { \
        int         (*real) (int, off_t, off_t) = dlsym(RTLD_NEXT, #name); \
        return is_full(descriptor, offset + length) ? ENOSPC : real(descriptor, offset, length); \
    }
ALLOCATE(posix_fallocate)
ALLOCATE(posix_fallocate64)
