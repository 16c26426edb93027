"""The clock of a simulated system: it may run slower than real time, and the wall clock in it may be set (the fault `clock jump`).

    python -m sim_bridge.sim_clock FILE FACTOR COMMAND ...       runs COMMAND on the clock in FILE, which is made when missing
    clock = SimClock(file); subprocess.Popen(..., env={**os.environ, **clock.environment}); clock.jump(300.0)

A second of it takes 1 / FACTOR real seconds, for every process on it alike: the robot's code runs as it is, at its own rates and
deadlines, with more of the processor's time for each. A small library, compiled here and preloaded, stands between the processes
and the C library; Python, rclpy, the middleware and the drivers ask nobody else. The machine's own clock, and every process that
is not on it, stays as it is. What the kernel counts by itself (times of files, CPU time) is real.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

VARIABLE = "POLICYTRIM_SIM_CLOCK"
"""Names the clock's file in the environment of every process on it."""

CLOCKS = (time.CLOCK_REALTIME, time.CLOCK_MONOTONIC, time.CLOCK_MONOTONIC_RAW, 5, 6, time.CLOCK_BOOTTIME)
"""The clocks of the C library that it slows down (5, 6: the coarse ones), each from its own reading at the beginning."""

FORMAT = "dq6q"
"""Factor, ns by which the wall clock was set, the clocks' readings in ns when the clock was made."""

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
#define SLICE 100000000LL /* real ns; a wait by the wall clock looks so often whether that was set */

static struct shared { double factor; volatile int64_t ahead; int64_t began[6]; } *clock_;
static const int slots[] = {0, 1, -1, -1, 2, 3, 4, 5}; /* clock id -> index in began */

#define REAL(name, ...) ({ static __typeof__(&name) f; if (!f) f = (__typeof__(&name))dlsym(RTLD_NEXT, #name); f(__VA_ARGS__); })

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("POLICYTRIM_SIM_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *at = file < 0 ? MAP_FAILED : mmap(0, sizeof *clock_, PROT_READ, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (at != MAP_FAILED) clock_ = at;
}

#define NEVER INT64_MAX /* and what is so far away that it does not fit */
static int64_t divided(int64_t ns) {
    double wanted = ns / clock_->factor;
    return wanted < 9e18 ? (int64_t)wanted + 1 : NEVER;
}
static int64_t sum(int64_t a, int64_t b) {
    int64_t c;
    return a == NEVER || b == NEVER || __builtin_add_overflow(a, b, &c) ? NEVER : c;
}
static int64_t ns_of(const struct timespec *t) { return t->tv_sec < NEVER / SECOND ? t->tv_sec * SECOND + t->tv_nsec : NEVER; }
static struct timespec spec_of(int64_t ns) {
    if (ns < 0) ns = 0;
    return (struct timespec){ns / SECOND, ns % SECOND};
}
static int slow(void) { return clock_ && clock_->factor != 1.0; }
static int known(clockid_t id) { return clock_ && id >= 0 && id < 8 && slots[id] >= 0; }

/* lengths of time, rounded up: who wakes up too soon waits once more, or takes it for late */
static int64_t longer(int64_t ns) { return slow() && ns > 0 ? divided(ns) : ns; }
static int longer_ms(int ms) {
    int64_t ns = longer(ms * 1000000LL);
    return ms <= 0 ? ms : ns > INT32_MAX * 1000000LL ? INT32_MAX : (int)((ns + 999999) / 1000000);
}
static int64_t real_time_of(clockid_t id, int64_t at) { /* when, by the machine, the clock shows `at` */
    if (!known(id)) return at;
    int64_t began = clock_->began[slots[id]];
    if (at == NEVER) return at;
    if (id == CLOCK_REALTIME) at -= clock_->ahead;
    return slow() ? sum(began, divided(at - began)) : at;
}

int clock_gettime(clockid_t id, struct timespec *t) {
    int failed = REAL(clock_gettime, id, t);
    if (failed || !known(id)) return failed;
    int64_t ns = ns_of(t), began = clock_->began[slots[id]];
    if (slow()) ns = began + (int64_t)((ns - began) * clock_->factor);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) ns += clock_->ahead;
    *t = spec_of(ns);
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

int timespec_get(struct timespec *t, int base) {
    return base == TIME_UTC ? (clock_gettime(CLOCK_REALTIME, t), base) : REAL(timespec_get, t, base);
}

/* ---- sleeping ---- */

int clock_nanosleep(clockid_t id, int flags, const struct timespec *wanted, struct timespec *left) {
    struct timespec t;
    if (!clock_ || !known(id)) return REAL(clock_nanosleep, id, flags, wanted, left);
    t = spec_of(flags & TIMER_ABSTIME ? real_time_of(id, ns_of(wanted)) : longer(ns_of(wanted)));
    int result = REAL(clock_nanosleep, id, flags, &t, left);
    if (result == EINTR && left && !(flags & TIMER_ABSTIME)) *left = spec_of(ns_of(left) * clock_->factor);
    return result;
}

int nanosleep(const struct timespec *wanted, struct timespec *left) {
    int error = clock_nanosleep(CLOCK_REALTIME, 0, wanted, left);
    if (error) errno = error;
    return error ? -1 : 0;
}

int usleep(useconds_t us) {
    struct timespec t = spec_of(us * 1000LL);
    return nanosleep(&t, 0);
}

unsigned sleep(unsigned seconds) {
    struct timespec t = {seconds, 0}, left = {0, 0};
    return nanosleep(&t, &left) ? left.tv_sec + (left.tv_nsec > 0) : 0;
}

/* ---- waiting for files ---- */

int poll(struct pollfd *fds, nfds_t n, int ms) { return REAL(poll, fds, n, longer_ms(ms)); }

int ppoll(struct pollfd *fds, nfds_t n, const struct timespec *wanted, const sigset_t *mask) {
    struct timespec t;
    if (wanted) t = spec_of(longer(ns_of(wanted)));
    return REAL(ppoll, fds, n, wanted ? &t : 0, mask);
}

int epoll_wait(int fd, struct epoll_event *events, int n, int ms) { return REAL(epoll_wait, fd, events, n, longer_ms(ms)); }

int epoll_pwait(int fd, struct epoll_event *events, int n, int ms, const sigset_t *mask) {
    return REAL(epoll_pwait, fd, events, n, longer_ms(ms), mask);
}

int select(int n, fd_set *r, fd_set *w, fd_set *e, struct timeval *wanted) {
    struct timeval t;
    if (wanted) {
        int64_t ns = longer(ns_of(&(struct timespec){wanted->tv_sec, wanted->tv_usec * 1000})), us = ns / 1000 + (ns % 1000 > 0);
        t.tv_sec = us / 1000000, t.tv_usec = us % 1000000;
    }
    return REAL(select, n, r, w, e, wanted ? &t : 0);
}

int pselect(int n, fd_set *r, fd_set *w, fd_set *e, const struct timespec *wanted, const sigset_t *mask) {
    struct timespec t;
    if (wanted) t = spec_of(longer(ns_of(wanted)));
    return REAL(pselect, n, r, w, e, wanted ? &t : 0, mask);
}

int timerfd_settime(int fd, int flags, const struct itimerspec *wanted, struct itimerspec *old) {
    struct itimerspec t = *wanted;
    if (slow()) {
        int64_t value = ns_of(&wanted->it_value);
        t.it_interval = spec_of(longer(ns_of(&wanted->it_interval)));
        if (value > 1 && flags & TFD_TIMER_ABSTIME) t.it_value = spec_of(real_time_of(CLOCK_MONOTONIC, value));
        else if (value > 1) t.it_value = spec_of(longer(value));
    }
    return REAL(timerfd_settime, fd, flags, &t, old);
}

/* ---- waiting for others, until a time. The wall clock may be set meanwhile: such a wait is kept slice by slice. ---- */

static int64_t left_of(const struct timespec *until, struct timespec *slice) { /* real ns; a slice ends by the machine's clock */
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t left = ns_of(until) == NEVER ? NEVER : longer(ns_of(until) - ns_of(&now));
    REAL(clock_gettime, CLOCK_REALTIME, slice);
    *slice = spec_of(ns_of(slice) + (left < 0 ? 0 : left < SLICE ? left : SLICE));
    return left;
}

int sem_timedwait(sem_t *restrict semaphore, const struct timespec *restrict until) {
    if (!clock_) return REAL(sem_timedwait, semaphore, until);
    for (struct timespec slice;;) {
        int64_t left = left_of(until, &slice);
        if (!REAL(sem_timedwait, semaphore, &slice)) return 0;
        if (errno != ETIMEDOUT || left <= SLICE) return -1;
    }
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t id, const struct timespec *restrict until) {
    if (id == CLOCK_REALTIME) return sem_timedwait(semaphore, until);
    struct timespec t = spec_of(real_time_of(id, ns_of(until)));
    return REAL(sem_clockwait, semaphore, id, &t);
}

static int wait_until(pthread_cond_t *cond, pthread_mutex_t *mutex, const struct timespec *until) {
    static int (*f)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    if (!f) f = dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
    if (!f) f = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
    return f(cond, mutex, until);
}

int pthread_cond_timedwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    if (!clock_) return wait_until(cond, mutex, until);
    struct timespec t;
    if (cond->__data.__wrefs & 2) { /* a condition that goes by the monotonic clock */
        t = spec_of(real_time_of(CLOCK_MONOTONIC, ns_of(until)));
        return wait_until(cond, mutex, &t);
    }
    int64_t left = left_of(until, &t);
    int result = wait_until(cond, mutex, &t);
    return result == ETIMEDOUT && left > SLICE ? 0 : result; /* a spurious wake-up: who waits looks again */
}

int pthread_cond_clockwait(pthread_cond_t *restrict cond, pthread_mutex_t *restrict mutex, clockid_t id,
                           const struct timespec *restrict until) {
    if (!clock_) return REAL(pthread_cond_clockwait, cond, mutex, id, until);
    struct timespec t;
    int64_t left = 0;
    if (id == CLOCK_REALTIME) left = left_of(until, &t);
    else t = spec_of(real_time_of(id, ns_of(until)));
    int result = REAL(pthread_cond_clockwait, cond, mutex, id, &t);
    return result == ETIMEDOUT && left > SLICE ? 0 : result;
}

int cnd_timedwait(cnd_t *restrict cond, mtx_t *restrict mutex, const struct timespec *restrict until) {
    int result = pthread_cond_timedwait((pthread_cond_t *)cond, (pthread_mutex_t *)mutex, until);
    return result == 0 ? thrd_success : result == ETIMEDOUT ? thrd_timedout : thrd_error;
}

int pthread_mutex_timedlock(pthread_mutex_t *restrict mutex, const struct timespec *restrict until) {
    if (!clock_) return REAL(pthread_mutex_timedlock, mutex, until);
    for (struct timespec slice;;) {
        int64_t left = left_of(until, &slice);
        int result = REAL(pthread_mutex_timedlock, mutex, &slice);
        if (result != ETIMEDOUT || left <= SLICE) return result;
    }
}

int pthread_mutex_clocklock(pthread_mutex_t *restrict mutex, clockid_t id, const struct timespec *restrict until) {
    if (id == CLOCK_REALTIME) return pthread_mutex_timedlock(mutex, until);
    struct timespec t = spec_of(real_time_of(id, ns_of(until)));
    return REAL(pthread_mutex_clocklock, mutex, id, &t);
}
"""


class SimClock:
    """The clock kept in ``file``, made with ``factor`` (in (0, 1]) when it is not there; where this process is on a clock itself, as a
    copy of that, which shows the same time until it is set. Raises RuntimeError without a C compiler."""

    def __init__(self, file, factor: float = 1.0):
        file = Path(file)
        library = _library(file.parent)
        if not file.exists():
            made = file.with_name(f".{file.name}.{os.getpid()}")
            ours = os.environ.get(VARIABLE)
            made.write_bytes(Path(ours).read_bytes() if ours else struct.pack(FORMAT, factor, 0, *map(time.clock_gettime_ns, CLOCKS)))
            try:
                os.link(made, file)  # of several that start together one makes it
            except FileExistsError:
                pass
            made.unlink()
        with open(file, "r+b") as opened:
            self._shared = mmap.mmap(opened.fileno(), struct.calcsize(FORMAT))
        others = [name for name in os.environ.get("LD_PRELOAD", "").split() if not Path(name).name.startswith("sim_clock.")]
        self.environment = {
            "LD_PRELOAD": " ".join([str(library), *others]),  # one such library: a second would slow down what the first gives it
            VARIABLE: str(file),
            "POLICYTRIM_REAL_TIME_FACTOR": f"{self.factor:g}",
        }

    @property
    def factor(self) -> float:
        """Seconds of this clock in a real second."""
        return struct.unpack_from("d", self._shared)[0]

    def jump(self, seconds: float) -> None:
        """Sets the wall clock of the processes by ``seconds``, forwards or backwards."""
        struct.pack_into("q", self._shared, 8, struct.unpack_from("q", self._shared, 8)[0] + round(seconds * 1e9))

    def right(self) -> None:
        """The wall clock of the processes is no longer set."""
        struct.pack_into("q", self._shared, 8, 0)


def _library(folder: Path) -> Path:
    """The compiled library in ``folder``; its name says of which source."""
    path = folder / f"sim_clock.{hashlib.sha256(SOURCE.encode()).hexdigest()[:12]}.so"
    with open(folder / ".sim_clock.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            compiler = shutil.which("cc") or shutil.which("gcc")
            if compiler is None:
                raise RuntimeError("a simulated clock needs a C compiler: install gcc")
            made = path.with_suffix(".partial")
            line = [compiler, "-shared", "-fPIC", "-O2", "-x", "c", "-", "-o", made]
            done = subprocess.run(line, input=SOURCE, text=True, capture_output=True)
            if done.returncode:
                raise RuntimeError(f"the simulated clock cannot be compiled: {done.stderr.strip().splitlines()[-1:]}")
            made.rename(path)
    return path


def main(arguments=None) -> None:
    """Becomes the command, on the clock; one that is already on a clock stays on that."""
    file, factor, *line = sys.argv[1:] if arguments is None else arguments
    try:
        environment = {} if os.environ.get(VARIABLE) else SimClock(file, float(factor)).environment
    except (RuntimeError, OSError) as error:
        sys.exit(f"{file}: {error}")
    os.execvpe(line[0], line, {**os.environ, **environment})


if __name__ == "__main__":
    main()
