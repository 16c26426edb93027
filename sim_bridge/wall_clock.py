"""A wall clock that jumps for some processes alone: the fault `clock jump`, injected beneath them.

    clock = WallClock(folder); subprocess.Popen(..., env={**os.environ, **clock.environment}); clock.jump(300.0)

A small library, compiled here and preloaded into the processes, adds seconds to what the C library answers for
CLOCK_REALTIME; Python, rclpy and the middleware ask nobody else. The machine's own clock and all others stay as they are.
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
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static volatile const long long *ahead_ns;

__attribute__((constructor)) static void begin(void) {
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
"""


class WallClock:
    """``folder`` keeps the library and the offset. Raises RuntimeError without a C compiler."""

    def __init__(self, folder):
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise RuntimeError("a wall clock cannot be made to jump without a C compiler: install gcc")
        offset, library = Path(folder) / "wall_clock", Path(folder) / "wall_clock.so"
        offset.write_bytes(bytes(8))
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", library], input=SOURCE, text=True, check=True)
        with open(offset, "r+b") as file:
            self._ahead_ns = mmap.mmap(file.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "POLICYTRIM_WALL_CLOCK": str(offset)}

    def jump(self, seconds: float) -> None:
        """Sets the clock of the processes by ``seconds``, forwards or backwards."""
        ahead_ns = struct.unpack("q", self._ahead_ns[:])[0] + round(seconds * 1e9)
        self._ahead_ns[:] = struct.pack("q", ahead_ns)
