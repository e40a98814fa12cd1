/*
 * Preloaded into a PostgreSQL server, adds DELAY_US microseconds to each fdatasync(), which is
 * how PostgreSQL on Linux flushes its WAL: the disk of an ordinary cloud machine.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stddef.h>
#include <time.h>

int fdatasync(int descriptor)
{
    static int (*flush)(int);
    struct timespec left = {0, DELAY_US * 1000L};
    int result, error;

    if (flush == NULL)
        flush = (int (*)(int)) dlsym(RTLD_NEXT, "fdatasync");
    result = flush(descriptor);
    error = errno;
    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
    errno = error;
    return result;
}
