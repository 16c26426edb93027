"""Trials on disk: one JSON object a line in ``<out>/trials.jsonl``, written at once and never rewritten.

A row counts once its line end is on disk. What a killed process left of a last line is not a row: reading skips it,
the next writer cuts it off.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path

OUTCOMES = ("success", "failure", "aborted", "invalid")
FILE = "trials.jsonl"


class StoreError(RuntimeError):
    """The file of trials cannot be used; the message names the file, the line and what to do."""


@dataclass(frozen=True)
class Row:
    """One trial. ``success`` and ``failure`` are the policy's; ``aborted`` (a fault, an operator, a dead process) and
    ``invalid`` (the scene was not what was asked for) say nothing about it."""

    task: str
    setting: str
    label: str
    seed: int
    outcome: str
    reason: str
    seconds: float  # from the operator's go to the outcome
    steps: int  # S: control steps that were begun
    calls: int  # N: inference calls
    horizon: int  # h: actions executed of a chunk
    stalls: int
    stall_s: float
    mode: str  # sync | async | rtc
    generation: int
    checkpoint: str
    began: float  # wall clock, s since 1970
    ended: float

    def __post_init__(self):
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome '{self.outcome}': allowed are {', '.join(OUTCOMES)}")

    @property
    def key(self) -> tuple:
        """What makes two rows the same trial."""
        return self.task, self.setting, self.label, self.seed

    @property
    def counts(self) -> bool:
        """Whether the row says something about the policy."""
        return self.outcome in ("success", "failure")


def read(out) -> list[Row]:
    """Every finished row below directory ``out``; [] when there is none. StoreError on a line that is no row."""
    path = Path(out) / FILE
    if not path.exists():
        return []
    names = {spec.name for spec in fields(Row)}
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(Row(**{name: value for name, value in json.loads(line).items() if name in names}))
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{path} line {number} is not a trial ({error}); mend or remove that line") from error
    return rows


class Store:
    """The one writer of a directory's trials."""

    def __init__(self, out):
        self.path = Path(out) / FILE
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)
        except OSError as error:
            raise StoreError(f"trials cannot be written to {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise StoreError(f"another trial run is writing {self.path}; end it or choose another directory") from None
        self._file.truncate(self._file.read().rfind(b"\n") + 1)
        self._file.seek(0, os.SEEK_END)
        self._sync_directory()
        self.rows = read(out)

    def append(self, row: Row) -> None:
        """Puts ``row`` on the disk before it returns."""
        self._file.write(json.dumps(asdict(row)).encode() + b"\n")
        os.fsync(self._file.fileno())
        self.rows.append(row)

    def close(self) -> None:
        self._file.close()

    def _sync_directory(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY)
        os.fsync(directory)
        os.close(directory)
