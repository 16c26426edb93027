"""A wall clock that jumps for some processes alone: the fault `clock jump`, injected beneath them.

    clock = WallClock(folder); subprocess.Popen(..., env={**os.environ, **clock.environment}); clock.jump(300.0)

A small library, compiled here and preloaded into the processes, adds seconds to what the C library answers for
CLOCK_REALTIME, and waits until its deadlines; Python, rclpy and the middleware ask nobody else. The machine's own clock and all
others stay as they are.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SLICE_NS 100000000LL

static int (*real)(clockid_t, struct timespec *);
static volatile const long long *ahead_ns;

static int spared(void) { /* whether a word of the command line is the one that is spared */
    const char *word = getenv("POLICYTRIM_WALL_CLOCK_SPARES");
    char line[4096];
    int file = word && *word ? open("/proc/self/cmdline", O_RDONLY) : -1, found = 0;
    ssize_t size = file < 0 ? 0 : read(file, line, sizeof line - 1);
    if (file >= 0) close(file);
    for (ssize_t at = 0; at < size && !found; at += strlen(line + at) + 1) line[size] = 0, found = !strcmp(line + at, word);
    return found;
}

__attribute__((constructor)) static void begin(void) {
    if (spared()) return;
    const char *path = getenv("POLICYTRIM_WALL_CLOCK");
    int file = path ? open(path, O_RDONLY) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *ahead_ns, PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) ahead_ns = at;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(id, t);
    if (failed || id != CLOCK_REALTIME || !ahead_ns) return failed;
    long long ns = t->tv_nsec + *ahead_ns % 1000000000LL;
    t->tv_sec += *ahead_ns / 1000000000LL;
    if (ns < 0) ns += 1000000000LL, t->tv_sec--;
    if (ns >= 1000000000LL) ns -= 1000000000LL, t->tv_sec++;
    t->tv_nsec = ns;
    return 0;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec, t->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

/* Deadlines in the wall clock are the kernel's business, which knows nothing of the jump: they are kept here, slice by slice. */
static long long left_of(const struct timespec *until, struct timespec *slice) { /* ns; a slice ends by the machine's clock */
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long left = (until->tv_sec - now.tv_sec) * 1000000000LL + until->tv_nsec - now.tv_nsec;
    real(CLOCK_REALTIME, slice);
    slice->tv_nsec += left < 0 ? 0 : left < SLICE_NS ? left : SLICE_NS;
    if (slice->tv_nsec >= 1000000000LL) slice->tv_nsec -= 1000000000LL, slice->tv_sec++;
    return left;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    static int (*wait)(sem_t *, const struct timespec *);
    if (!wait) wait = dlsym(RTLD_NEXT, "sem_timedwait");
    for (struct timespec slice;;) {
        long long left = left_of(until, &slice);
        if (!wait(semaphore, &slice)) return 0;
        if (errno != ETIMEDOUT || left <= SLICE_NS) return -1;
    }
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    static int (*wait)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!wait) wait = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!wait) wait = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    if (cond->__data.__wrefs & 2) return wait(cond, mutex, until); /* a condition that goes by the monotonic clock */
    struct timespec slice;
    long long left = left_of(until, &slice);
    int result = wait(cond, mutex, &slice);
    return result == ETIMEDOUT && left > SLICE_NS ? 0 : result; /* a spurious wake-up: who waits looks again */
}
"""


class WallClock:
    """``folder`` keeps the library and the offset. A process with the word ``spares`` in its command line keeps its clock. Raises
    RuntimeError without a C compiler."""

    def __init__(self, folder, spares: str = ""):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("a wall clock cannot be made to jump without a C compiler: install gcc")
        offset, library = Path(folder) / "wall_clock", Path(folder) / "wall_clock.so"
        offset.write_bytes(bytes(8))
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", library], input=SOURCE, text=True, check=True)
        with open(offset, "r+b") as file:
            self._ahead_ns = mmap.mmap(file.fileno(), 8)
        self.environment = {
            "LD_PRELOAD": str(library),
            "POLICYTRIM_WALL_CLOCK": str(offset),
            "POLICYTRIM_WALL_CLOCK_SPARES": spares,
        }

    def jump(self, seconds: float) -> None:
        """Sets the clock of the processes by ``seconds``, forwards or backwards."""
        ahead_ns = struct.unpack("q", self._ahead_ns[:])[0] + round(seconds * 1e9)
        self._ahead_ns[:] = struct.pack("q", ahead_ns)

    def right(self) -> None:
        """The processes have the machine's clock again."""
        self._ahead_ns[:] = bytes(8)
