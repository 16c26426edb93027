"""What the doctor found, a line a subject, in bounded time: a subject that hangs or fails is a line like any other.

Each subject is looked at in a thread of its own, one after the other, since they would disturb each other's measurements. What may hold
the interpreter while it hangs (a driver) belongs into a process of its own; should something hold it nevertheless, the process is ended.
"""

from __future__ import annotations

import faulthandler
import queue
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Callable, Iterable, Iterator

GOOD, WARNING, BAD = "ok", "warning", "missing"
DEADLINE_S, AT_LAST_S = 55.0, 58.0
"""All subjects together end within the first; at the second the process is ended, with the traces of its threads."""

THREADS = "doctor: "
"""How the names of the threads begin in which subjects are looked at."""


@dataclass(frozen=True)
class Finding:
    """One line: subject, state, what was found, and what to do unless the state is GOOD."""

    subject: str
    state: str
    found: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.state:8} {self.subject:12} {self.found}" + (f": {self.advice}" if self.advice else "")


@dataclass(frozen=True)
class Subject:
    """Something to look at: ``look`` gives a finding, or several as they become known, within ``share_s``; else its state is ``silent``."""

    name: str
    look: Callable[[], Finding | Iterable[Finding]]
    share_s: float = 3.0
    silent: str = BAD
    advice: str = "look for what hangs there"


def report(subjects: Iterable[Subject], deadline_s: float = DEADLINE_S) -> int:
    """Prints all findings, each as soon as it is known, and how long it took; 1 when something is missing."""
    began, missing = time.monotonic(), False
    faulthandler.dump_traceback_later(deadline_s + AT_LAST_S - DEADLINE_S, exit=True, file=sys.__stderr__)
    try:
        for subject in subjects:
            left = began + deadline_s - time.monotonic()
            for finding in answers(subject, min(subject.share_s, left)) if left > 0.0 else [_left_out(subject, deadline_s)]:
                print(finding, flush=True)
                missing |= finding.state == BAD
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(Finding("time", GOOD, f"{time.monotonic() - began:.1f} s"), flush=True)
    return 1 if missing else 0


def answers(subject: Subject, share_s: float) -> Iterator[Finding]:
    """The findings of ``subject`` as they come; a last one says that it failed, or that it did not end within ``share_s``."""
    told = queue.SimpleQueue()

    def look() -> None:
        try:
            found = subject.look()
            for finding in [found] if isinstance(found, Finding) else found:
                told.put(finding)
        except subprocess.TimeoutExpired as error:
            told.put(_silent(subject, error.timeout))
        except Exception as error:  # whatever it is, the other subjects are to be looked at
            told.put(Finding(subject.name, subject.silent, f"cannot be examined: {type(error).__name__}: {error}", subject.advice))
        told.put(None)

    threading.Thread(target=look, name=f"{THREADS}{subject.name}", daemon=True).start()
    end = time.monotonic() + share_s
    while True:
        try:
            finding = told.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            yield _silent(subject, share_s)
            return
        if finding is None:
            return
        yield finding


def hanging() -> list[str]:
    """Names of the subjects that are still being looked at."""
    return [thread.name.removeprefix(THREADS) for thread in threading.enumerate() if thread.name.startswith(THREADS)]


def _left_out(subject: Subject, deadline_s: float) -> Finding:
    return Finding(subject.name, subject.silent, f"not looked at: the others took all {deadline_s:.3g} s", "see what did not answer")


def _silent(subject: Subject, share_s: float) -> Finding:
    return Finding(subject.name, subject.silent, f"did not answer within {share_s:.2g} s", subject.advice)
