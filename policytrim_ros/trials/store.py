"""Trials on disk: a SQLite database ``<out>/trials.db`` to which rows are only ever added.

    session   what was planned, and with what it was carried out (provenance); locked once, never changed otherwise
    trial     one row a finished trial: what it used
    label     its outcome; an undo and a new outcome are further rows, the latest counts
    event     orders (who, what, refused or not), who is in control, alarms, notes

A row is on the disk before `append` returns (WAL, synchronous=FULL): neither kill -9 nor a full disk loses a finished trial. The
database itself refuses to change or delete trials and labels, and new labels of a locked session.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Callable

from policytrim_ros.files import claim

COUNTED = ("success", "failure")
HELD = "held by the controller: "
"""How the reason of a failure begins that the controller ended."""

UNLABELLED = "unlabelled"
OUTCOMES = (*COUNTED, "aborted", "invalid", UNLABELLED)
FILE = "trials.db"
VERSION = 1


class StoreError(RuntimeError):
    """The database of trials cannot be used; the message says what, where and what to do."""


@dataclass(frozen=True)
class Row:
    """One trial. ``success`` and ``failure`` are the policy's; ``aborted`` (a fault, an operator, a dead process) and
    ``invalid`` (the scene was not what was asked for) say nothing about it."""

    task: str
    setting: str
    label: str  # name of the arm
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
    weights_sha256: str = ""
    motion_s: float = 0.0  # from go to the first control step
    session: str = ""
    number: int = 0  # in the session's schedule
    code: str = ""
    recording: str = ""  # beside the database, without its ending
    labelled_by: str = ""  # scene | protocol | name of an operator
    id: int = 0  # in the database

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
        return self.outcome in COUNTED


LABEL = ("outcome", "reason", "labelled_by")
TRIAL = tuple(spec for spec in fields(Row) if spec.name not in (*LABEL, "id"))
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS session (
    id TEXT PRIMARY KEY, began REAL NOT NULL, spec TEXT NOT NULL, provenance TEXT NOT NULL, locked REAL, lock_reason TEXT);
CREATE TABLE IF NOT EXISTS trial (
    id INTEGER PRIMARY KEY, {
    ", ".join(f'"{s.name}" {dict(str="TEXT", int="INTEGER", float="REAL")[s.type]} NOT NULL' for s in TRIAL)
});
CREATE TABLE IF NOT EXISTS label (
    id INTEGER PRIMARY KEY, trial INTEGER NOT NULL REFERENCES trial(id), outcome TEXT NOT NULL, reason TEXT NOT NULL,
    labelled_by TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS event (
    id INTEGER PRIMARY KEY, session TEXT NOT NULL, at REAL NOT NULL, kind TEXT NOT NULL, detail TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS label_trial ON label(trial);
CREATE TRIGGER IF NOT EXISTS locked_labels BEFORE INSERT ON label
    WHEN (SELECT locked FROM session WHERE id = (SELECT session FROM trial WHERE id = NEW.trial)) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'the session is locked'); END;
CREATE TRIGGER IF NOT EXISTS locked_trials BEFORE INSERT ON trial
    WHEN (SELECT locked FROM session WHERE id = NEW.session) IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'the session is locked'); END;
CREATE TRIGGER IF NOT EXISTS locked_once BEFORE UPDATE ON session
    WHEN OLD.locked IS NOT NULL OR NEW.spec != OLD.spec OR NEW.provenance != OLD.provenance
    BEGIN SELECT RAISE(ABORT, 'what a session has said stays as it is'); END;
{
    "".join(
        f'''CREATE TRIGGER IF NOT EXISTS {table}_{order.lower()} BEFORE {order} ON {table}
    BEGIN SELECT RAISE(ABORT, 'rows are added, never changed or removed'); END;
'''
        for table, order in (
            ("trial", "UPDATE"),
            ("trial", "DELETE"),
            ("label", "UPDATE"),
            ("label", "DELETE"),
            ("event", "UPDATE"),
            ("event", "DELETE"),
            ("session", "DELETE"),
        )
    )
}"""
ROWS = f"""
SELECT trial.id AS id, {", ".join(f'trial."{s.name}"' for s in TRIAL)}, {", ".join(f"label.{name}" for name in LABEL)}
FROM trial JOIN label ON label.id = (SELECT MAX(id) FROM label WHERE label.trial = trial.id)
"""


def read(out, session: str = "") -> list[Row]:
    """Every finished row below directory ``out``, or those of one session; [] when there is none."""
    with _reading(out) as connection:
        return _rows(connection, session) if connection else []


def read_sessions(out) -> list[dict]:
    """All sessions below directory ``out``, the oldest first: id, began, spec, provenance, locked, lock_reason, events."""
    with _reading(out) as connection:
        if connection is None:
            return []
        events: dict[str, list[dict]] = {}
        for event in connection.execute("SELECT session, at, kind, detail FROM event ORDER BY id"):
            events.setdefault(event["session"], []).append({**dict(event), "detail": json.loads(event["detail"])})
        sessions = [dict(row) for row in connection.execute("SELECT * FROM session ORDER BY began, id")]
    decoded = ({name: json.loads(session[name]) for name in ("spec", "provenance")} for session in sessions)
    return [{**session, **plain, "events": events.get(session["id"], [])} for session, plain in zip(sessions, decoded)]


def history(out, trial_id: int) -> list[dict]:
    """All labels that a trial ever had, the oldest first: outcome, reason, labelled_by, at."""
    with _reading(out) as connection:
        labels = connection.execute("SELECT outcome, reason, labelled_by, at FROM label WHERE trial = ? ORDER BY id", (trial_id,))
        return [dict(label) for label in labels]


def version(out, session: str) -> tuple:
    """Differs after anything was added to ``session``: its numbers of trials, labels and events, and when it was locked."""
    counts = (
        "SELECT COUNT(*) FROM trial WHERE session = ?",
        "SELECT COUNT(*) FROM label JOIN trial ON trial.id = label.trial WHERE session = ?",
        "SELECT COUNT(*) FROM event WHERE session = ?",
        "SELECT locked FROM session WHERE id = ?",
    )
    with _reading(out) as connection:
        return (
            tuple(connection.execute(f"SELECT {', '.join(f'({c})' for c in counts)}", (session,) * 4).fetchone())
            if connection
            else ()
        )


@contextmanager
def _reading(out):
    """The database below directory ``out``; None where there is none."""
    path = Path(out) / FILE
    if not path.exists():
        yield None
        return
    with _translated(path), closing(_open(path)) as connection:
        yield connection


class Store:
    """The one writer of a directory's trials; its methods may be called from several threads.

    ``noted``: called with every event that is to be kept, also when the disk does not take it.
    """

    def __init__(self, out, noted: Callable[[dict], None] = lambda event: None):
        self.noted = noted
        self.path = Path(out) / FILE
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._claimed = claim(self.path.with_suffix(".lock"))
        except BlockingIOError as error:
            raise StoreError(
                f"another trial run ({error.strerror}) is writing {self.path}; end it or choose another directory"
            ) from None
        except OSError as error:
            raise StoreError(f"trials cannot be written to {self.path}: {error.strerror}") from error
        try:
            with _translated(self.path):
                self._connection = _open(self.path, check_same_thread=False)
                self._connection.executescript(SCHEMA)
                self._connection.execute(f"PRAGMA user_version = {VERSION}")
        except StoreError:
            self._claimed.close()
            raise

    @property
    def rows(self) -> list[Row]:
        return self.rows_of("")

    def rows_of(self, session: str) -> list[Row]:
        """The rows of one session, or of all ('')."""
        with self._lock, _translated(self.path):
            return _rows(self._connection, session)

    def begin(self, session: str, spec: dict, provenance: dict) -> None:
        """Writes down what is about to be tried. StoreError when there is such a session already."""
        self._do(
            "INSERT INTO session (id, began, spec, provenance) VALUES (?, ?, ?, ?)",
            (session, time.time(), json.dumps(spec), json.dumps(provenance)),
        )

    def append(self, row: Row) -> Row:
        """Puts ``row`` on the disk before it returns; the row with its number in the database."""
        values = [getattr(row, spec.name) for spec in TRIAL]
        names = ", ".join(f'"{spec.name}"' for spec in TRIAL)
        with self._lock, _translated(self.path), self._connection:
            cursor = self._connection.execute(f"INSERT INTO trial ({names}) VALUES ({', '.join('?' * len(values))})", values)
            self._label(cursor.lastrowid, row.outcome, row.reason, row.labelled_by)
        return Row(**{**vars(row), "id": cursor.lastrowid})

    def label(self, trial: int, outcome: str, reason: str, by: str) -> None:
        """Gives trial ``trial`` another outcome (UNLABELLED: takes the last one back); the earlier ones stay in the record."""
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome '{outcome}': allowed are {', '.join(OUTCOMES)}")
        with self._lock, _translated(self.path), self._connection:
            self._label(trial, outcome, reason, by)

    def _label(self, trial: int, outcome: str, reason: str, by: str) -> None:
        self._connection.execute(
            "INSERT INTO label (trial, outcome, reason, labelled_by, at) VALUES (?, ?, ?, ?, ?)",
            (trial, outcome, reason, by, time.time()),
        )

    def note(self, session: str, kind: str, **detail) -> None:
        """Keeps an event of a session ('': of none)."""
        at = time.time()
        self.noted({"session": session, "at": at, "kind": kind, "detail": detail})
        self._do("INSERT INTO event (session, at, kind, detail) VALUES (?, ?, ?, ?)", (session, at, kind, json.dumps(detail)))

    def lock(self, session: str, reason: str = "") -> None:
        """No trial and no label of ``session`` can be added from now on. StoreError while one has no outcome."""
        if open_rows := [row.number for row in self.rows_of(session) if row.outcome == UNLABELLED]:
            raise StoreError(f"trial {open_rows[0]} has no outcome; label it before the session is locked")
        self._do("UPDATE session SET locked = ?, lock_reason = ? WHERE id = ?", (time.time(), reason, session))

    def _do(self, statement: str, values) -> None:
        with self._lock, _translated(self.path), self._connection:
            self._connection.execute(statement, values)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
        self._claimed.close()


def _open(path: Path, **options) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, **options)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(f"{path} was written by a later release (layout {version}, this one knows {VERSION}); use that release")
    return connection


def _rows(connection, session: str) -> list[Row]:
    found = connection.execute(f"{ROWS} WHERE ? IN ('', trial.session) ORDER BY trial.id", (session,))
    return [Row(**dict(row)) for row in found]


class _translated:
    """SQLite's errors in a sentence that names the file."""

    def __init__(self, path: Path):
        self._path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        if isinstance(error, sqlite3.IntegrityError):
            raise StoreError(f"{self._path}: refused: {error}") from error
        if isinstance(error, sqlite3.Error):
            full = "full" in str(error) or "disk I/O" in str(error)
            what_to_do = "free some space; what was finished before is kept" if full else "is it a database of trials?"
            raise StoreError(f"{self._path} cannot be used: {error}; {what_to_do}") from error
