"""Reports for a process that must not be disturbed: figures, bootstraps and clips are made in a child of low priority."""

from __future__ import annotations

import sys
import tempfile
import threading
from pathlib import Path

from policytrim_ros.children import Aside
from policytrim_ros.trials.report import ReportError
from policytrim_ros.trials.store import version

NICENESS = 10
"""Of the child: not the lowest, somebody waits for it, and on a busy machine it would never come to an end."""

LONGEST_S = 600.0
KEPT = 4
"""So many reports are kept, those that were asked for last."""

MAKE = [sys.executable, "-m", "policytrim_ros.trials.report"]


class Reporter:
    """Reports of the sessions in directory ``out``: one is made at a time, and kept until something is added to its session.

    Thread-safe; whoever asks meanwhile waits. ``make``: the program, which gets ``out``, a session and where to write.
    """

    def __init__(self, out, make: list[str] = MAKE):
        self._out, self._line = Path(out), make
        self._kept: dict[str, tuple[tuple, tuple[str, str]]] = {}
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._child: Aside | None = None
        self._closed = False

    def report(self, session: str) -> tuple[str, str]:
        """HTML and Markdown. ReportError says why there is none, StoreError when the trials cannot be read."""
        kept = self._known(session)
        if kept is not None:
            return kept
        with self._turn:
            now = version(self._out, session)
            kept = self._known(session) or self._made(session)
            self._kept.pop(session, None)
            self._kept[session] = now, kept
            if len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
            return kept

    def _known(self, session: str) -> tuple[str, str] | None:
        at, kept = self._kept.get(session, (None, None))
        return kept if at == version(self._out, session) else None

    def _made(self, session: str) -> tuple[str, str]:
        try:
            with tempfile.TemporaryDirectory(prefix="policytrim-report-") as directory:
                with self._lock:
                    if self._closed:
                        raise ReportError(f"no report of session {session}: the console ends")
                    self._child = Aside([*self._line, str(self._out), session, directory], NICENESS)
                if why := self._child.wait(LONGEST_S):
                    raise ReportError(f"no report of session {session}: {why}")
                return tuple((Path(directory) / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
        except OSError as error:
            raise ReportError(f"no report of session {session}: {error}; is {tempfile.gettempdir()} full?") from error

    def close(self) -> None:
        """Ends the child, if one works; whoever waits is refused."""
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
