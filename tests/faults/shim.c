/* Stands between a process and the C library: counts the calls that change files below one folder, and makes the
   k-th of them fail, kill the process, or interrupt it. Loaded with LD_PRELOAD; quiet until it is armed. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF, COUNT, FAIL, KILL, SIGNAL };
enum { BEFORE, HALF, AFTER };

static int mode = OFF, number, when, sticky;
static long calls, at;
static char root[PATH_MAX];
static size_t length;
static char names[1 << 16][12];

void shim_arm(const char *folder, int what, long k, int value, int moment, int lasting) {
    snprintf(root, sizeof root, "%s", folder);
    length = strlen(root);
    calls = 0, at = k, number = value, when = moment, sticky = lasting;
    mode = what;
}
void shim_disarm(void) { mode = OFF; }
long shim_calls(void) { return calls; }
const char *shim_name(long k) { return names[k & 0xffff]; }

static int below(const char *path) { return !strncmp(path, root, length) && (path[length] == '/' || !path[length]); }

static int at_path(int folder, const char *path) {
    char whole[2 * PATH_MAX], base[PATH_MAX], link[64];
    if (mode == OFF || !path) return 0;
    if (path[0] == '/') return below(path);
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t size = readlink(link, base, sizeof base - 1);
    if (size < 0) return 0;
    base[size] = 0;
    snprintf(whole, sizeof whole, "%s/%s", base, path);
    return below(whole);
}

static int at_fd(int fd) {
    char link[64], path[PATH_MAX];
    if (mode == OFF) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return below(path);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* 0: go on; 1: fail with errno set; 2: this is the call, and something happens after it (or in its middle). */
static int hit(const char *name) {
    long k = __sync_add_and_fetch(&calls, 1);
    snprintf(names[(k - 1) & 0xffff], 12, "%s", name);
    if (mode == COUNT) return 0;
    if (mode == FAIL) {
        int frees = !strcmp(name, "unlink") || !strcmp(name, "rmdir") || !strcmp(name, "rename");
        if (k == at || (sticky && k > at && !frees)) {
            errno = number;
            return 1;
        }
        return 0;
    }
    if (k != at) return 0;
    if (mode == KILL && when == BEFORE) die();
    return 2;
}

static void then(int what) {
    int kept = errno;
    if (what != 2) return;
    if (mode == KILL) die();
    if (mode == SIGNAL) raise(number);
    errno = kept;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define WRAP(result, name, shown, mine, parameters, arguments) \
    result name parameters { \
        REAL(name); \
        int what = (mine) ? hit(shown) : 0; \
        if (what == 1) return -1; \
        result done = real arguments; \
        then(what); \
        return done; \
    }

#define WRITES (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t rights = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int what = (flags & WRITES) && at_path(AT_FDCWD, path) ? hit("open") : 0; \
        if (what == 1) return -1; \
        int done = real(path, flags, rights); \
        then(what); \
        return done; \
    }
#define OPENAT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t rights = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        int what = (flags & WRITES) && at_path(folder, path) ? hit("open") : 0; \
        if (what == 1) return -1; \
        int done = real(folder, path, flags, rights); \
        then(what); \
        return done; \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    int what = at_fd(fd) ? hit("write") : 0;
    if (what == 1) return -1;
    if (what == 2 && mode == KILL && when == HALF) {
        real(fd, data, size / 2);
        die();
    }
    ssize_t done = real(fd, data, size);
    then(what);
    return done;
}
WRAP(ssize_t, writev, "write", at_fd(fd), (int fd, const struct iovec *parts, int count), (fd, parts, count))
WRAP(ssize_t, pwrite64, "write", at_fd(fd), (int fd, const void *data, size_t size, off64_t place), (fd, data, size, place))
WRAP(ssize_t, sendfile64, "sendfile", at_fd(to), (int to, int from, off64_t *place, size_t size), (to, from, place, size))
WRAP(ssize_t, sendfile, "sendfile", at_fd(to), (int to, int from, off_t *place, size_t size), (to, from, place, size))
WRAP(int, fsync, "fsync", at_fd(fd), (int fd), (fd))
WRAP(int, fdatasync, "fsync", at_fd(fd), (int fd), (fd))
WRAP(int, ftruncate, "ftruncate", at_fd(fd), (int fd, off_t size), (fd, size))
WRAP(int, ftruncate64, "ftruncate", at_fd(fd), (int fd, off64_t size), (fd, size))
WRAP(int, rename, "rename", at_path(AT_FDCWD, to), (const char *from, const char *to), (from, to))
WRAP(int, renameat, "rename", at_path(b, to), (int a, const char *from, int b, const char *to), (a, from, b, to))
WRAP(int, link, "link", at_path(AT_FDCWD, to), (const char *from, const char *to), (from, to))
WRAP(int, linkat, "link", at_path(b, to), (int a, const char *from, int b, const char *to, int flags), (a, from, b, to, flags))
WRAP(int, unlink, "unlink", at_path(AT_FDCWD, path), (const char *path), (path))
WRAP(int, unlinkat, flags & AT_REMOVEDIR ? "rmdir" : "unlink", at_path(folder, path), (int folder, const char *path, int flags), (folder, path, flags))
WRAP(int, rmdir, "rmdir", at_path(AT_FDCWD, path), (const char *path), (path))
WRAP(int, mkdir, "mkdir", at_path(AT_FDCWD, path), (const char *path, mode_t rights), (path, rights))
WRAP(int, mkdirat, "mkdir", at_path(folder, path), (int folder, const char *path, mode_t rights), (folder, path, rights))
WRAP(int, chmod, "chmod", at_path(AT_FDCWD, path), (const char *path, mode_t rights), (path, rights))
WRAP(int, fchmod, "chmod", at_fd(fd), (int fd, mode_t rights), (fd, rights))
WRAP(int, fchmodat, "chmod", at_path(folder, path), (int folder, const char *path, mode_t rights, int flags), (folder, path, rights, flags))
