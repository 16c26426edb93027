"""What a child process does before it becomes its program: it ends with its parent, and has its share of the processor; what memory there is."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile

LOWEST = 19
"""The niceness of what may only have the time that nobody else wants."""

_libc = ctypes.CDLL(None)


def end_with_parent(number: int = signal.SIGINT) -> None:
    """Asks for signal ``number`` when the thread that started this process ends: a killed parent leaves no orphans behind."""
    _libc.prctl(1, number)  # PR_SET_PDEATHSIG


def share_as(niceness: int, pid: int | str = "self") -> None:
    """Makes ``niceness`` of the session of process ``pid`` count beside other sessions, where that is allowed.

    The kernel shares the processor between sessions first; `nice` alone would only count within the child's own.
    """
    try:
        with open(f"/proc/{pid}/autogroup", "w", encoding="ascii") as file:
            file.write(str(niceness))
    except OSError:
        return  # not allowed, or a kernel without autogroups: then `nice` alone decides


def step_aside(niceness: int) -> None:
    """Lowers this process and what it starts to ``niceness`` (0 to 19), at LOWEST also to SCHED_IDLE where the system has that."""
    share_as(niceness)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, niceness)
        if niceness == LOWEST:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    except OSError:
        return  # a parent that is lower already, or a sandbox that forbids it


def free_memory_mb() -> float:
    """Memory (MB) of the machine that a new process could have."""
    with open("/proc/meminfo", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("MemAvailable")).split()[1]) / 1e3


def hurry(pid: int) -> None:
    """Takes back, where that is allowed, what `step_aside` has done to process ``pid``: for one that is waited for."""
    share_as(0, pid)
    try:
        os.sched_setscheduler(pid, os.SCHED_OTHER, os.sched_param(0))
    except OSError:
        return  # it is gone, or the system forbids it


class Aside:
    """A program that steps aside (`step_aside`) from the beginning; it is killed when the thread that made it ends.

    In a session of its own: in its parent's it would take the parent's share of the processor down with its own (`share_as`).
    """

    def __init__(self, line: list[str], niceness: int = LOWEST):
        self._words = tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="replace"
        )  # not a pipe: nobody need read it meanwhile
        self._child = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._words,
            start_new_session=True,
            preexec_fn=lambda: (end_with_parent(signal.SIGKILL), step_aside(niceness)),
        )

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child.poll() is None

    def wait(self, timeout_s: float | None = None) -> str:
        """Waits for its end, and kills it after ``timeout_s``; why it failed, in its own last words, or '' when it has not."""
        try:
            code = self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            self._child.wait()
            return f"it was not done after {timeout_s:g} s"
        if code == 0:
            return ""
        self._words.seek(0)
        words = (self._words.read().strip().splitlines() or ["no words"])[-1]
        if code > 0:
            return words
        guess = ", for want of memory perhaps" if code == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-code).name}{guess}: {words}"

    def kill(self) -> None:
        self._child.kill()
