/*
 * Preloaded into a PostgreSQL server, makes a loss of power possible: keeps what each write to the
 * WAL replaced until the next flush makes the write durable. Undoing what is kept, after every
 * process of the server was killed, leaves the WAL as a disk would have it.
 *
 * In the cluster's directory, above the data directory in which the server runs: power_loss.undo
 * holds the replaced bytes, newest last; power_loss.delay, if it is there, holds the microseconds
 * for which each flush is put off. PostgreSQL writes and flushes its WAL under one lock, so there
 * is one writer at a time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define UNDO "../power_loss.undo"
#define DELAY "../power_loss.delay"

struct entry
{
    char    path[1024];
    int64_t offset;
    int64_t length;
};

static void die(const char *what)
{
    perror(what);
    abort();
}

static int is_wal(int descriptor, char *path, size_t size)
{
    char    link[64];
    ssize_t length;

    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    length = readlink(link, path, size - 1);
    if (length < 0)
        return 0;
    path[length] = '\0';
    return strstr(path, "/pg_wal/0") != NULL;
}

static void keep(int descriptor, size_t length, off_t offset)
{
    struct entry entry = {.offset = offset, .length = (int64_t) length};
    char        *record;
    int          undo;

    if (!is_wal(descriptor, entry.path, sizeof entry.path))
        return;
    record = calloc(1, sizeof entry + length);
    if (record == NULL)
        die("power_loss: calloc");
    memcpy(record, &entry, sizeof entry);
    if (pread(descriptor, record + sizeof entry, length, offset) < 0)
        die("power_loss: pread");
    undo = open(UNDO, O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (undo < 0)
        die("power_loss: open");
    if (write(undo, record, sizeof entry + length) != (ssize_t) (sizeof entry + length))
        die("power_loss: write");
    close(undo);
    free(record);
}

ssize_t pwrite(int descriptor, const void *buffer, size_t length, off_t offset)
{
    static ssize_t (*next)(int, const void *, size_t, off_t);

    if (next == NULL)
        next = (ssize_t (*)(int, const void *, size_t, off_t)) dlsym(RTLD_NEXT, "pwrite");
    keep(descriptor, length, offset);
    return next(descriptor, buffer, length, offset);
}

ssize_t pwrite64(int descriptor, const void *buffer, size_t length, off_t offset)
{
    return pwrite(descriptor, buffer, length, offset);
}

static void put_off(void)
{
    FILE *delay = fopen(DELAY, "r");
    long  microseconds = 0;

    if (delay == NULL)
        return;
    if (fscanf(delay, "%ld", &microseconds) == 1)
    {
        struct timespec left = {microseconds / 1000000, microseconds % 1000000 * 1000};

        while (nanosleep(&left, &left) == -1)
            ;
    }
    fclose(delay);
}

int fdatasync(int descriptor)
{
    static int (*next)(int);
    char       path[1024];
    int        wal = is_wal(descriptor, path, sizeof path);
    int        result;

    if (next == NULL)
        next = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    if (wal)
        put_off();
    result = next(descriptor);
    if (wal && result == 0 && access(UNDO, F_OK) == 0 && truncate(UNDO, 0) != 0)
        die("power_loss: truncate");
    return result;
}
