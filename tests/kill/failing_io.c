/* Has the n-th call of the system on a file below a folder fail: preloaded, and armed by the process itself. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MOST_FILES 4096
#define MOST_CALLS 65536

struct counter {
    long calls;  /* so far */
    long failed; /* of them */
    char what[496];
    char kinds[MOST_CALLS]; /* what each call was: a letter, see `kind_of` */
};

static char prefix[1024];
static size_t prefix_length;
static long nth;
static int error_code, sticky;
static struct counter *counter;
static char tracked[MOST_FILES];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Count in the file `place`, and fail call `n` (0: none; all from it on, where it is `stays`) below `folder`. */
int failing_io_arm(const char *folder, long n, int code, int stays, const char *place) {
    int fd = REAL(open)(place, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || REAL(ftruncate)(fd, sizeof *counter) < 0) return -1;
    counter = mmap(NULL, sizeof *counter, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    REAL(close)(fd);
    if (counter == MAP_FAILED) return -1;
    snprintf(prefix, sizeof prefix, "%s/", folder);
    nth = n, error_code = code, sticky = stays;
    prefix_length = strlen(prefix);
    return 0;
}

static int below(const char *path) { return prefix_length && path && !strncmp(path, prefix, prefix_length); }

static int is_tracked(int fd) { return fd >= 0 && fd < MOST_FILES && tracked[fd]; }

/* o open, w write, s sync, t truncate, r rename, u unlink, m mkdir */
static char kind_of(const char *call) {
    if (strstr(call, "write")) return 'w';
    if (strstr(call, "sync")) return 's';
    if (strstr(call, "trunc")) return 't';
    return call[0];
}

static int fails(const char *call, const char *path, int fd) {
    long number = __sync_add_and_fetch(&counter->calls, 1);
    if (number < MOST_CALLS) counter->kinds[number] = kind_of(call);
    if (!nth || !(number == nth || (sticky && number > nth))) return 0;
    if (__sync_add_and_fetch(&counter->failed, 1) == 1) {
        char link[64], name[400] = "";
        if (!path) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            if (readlink(link, name, sizeof name - 1) < 0) name[0] = 0;
            path = name;
        }
        snprintf(counter->what, sizeof counter->what, "%s %.400s", call, path);
    }
    errno = error_code;
    return 1;
}

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < MOST_FILES) tracked[fd] = below(path);
    return fd;
}

#define OPEN(name)                                           \
    int name(const char *path, int flags, ...) {             \
        va_list more;                                        \
        va_start(more, flags);                               \
        mode_t mode = va_arg(more, mode_t);                  \
        va_end(more);                                        \
        if (below(path) && fails("open", path, -1)) return -1; \
        return opened(REAL(name)(path, flags, mode), path);  \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                         \
    int name(int folder, const char *path, int flags, ...) { \
        va_list more;                                        \
        va_start(more, flags);                               \
        mode_t mode = va_arg(more, mode_t);                  \
        va_end(more);                                        \
        if (below(path) && fails("open", path, -1)) return -1; \
        return opened(REAL(name)(folder, path, flags, mode), path); \
    }
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
    if (fd >= 0 && fd < MOST_FILES) tracked[fd] = 0;
    return REAL(close)(fd);
}

#define ON_FILE(result, name, parameters, arguments)                 \
    result name parameters {                                         \
        if (is_tracked(fd) && fails(#name, NULL, fd)) return -1;     \
        return REAL(name) arguments;                                 \
    }
ON_FILE(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
ON_FILE(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
ON_FILE(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at))
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, fdatasync, (int fd), (fd))
ON_FILE(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FILE(int, ftruncate64, (int fd, off64_t size), (fd, size))

#define ON_PATH(name, parameters, arguments)                         \
    int name parameters {                                            \
        if (below(path) && fails(#name, path, -1)) return -1;        \
        return REAL(name) arguments;                                 \
    }
ON_PATH(truncate, (const char *path, off_t size), (path, size))
ON_PATH(truncate64, (const char *path, off64_t size), (path, size))
ON_PATH(rename, (const char *path, const char *target), (path, target))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
