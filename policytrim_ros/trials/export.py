"""The trials of a directory as CSV, Parquet or JSON: one row a trial, with what it was carried out with."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import fields
from pathlib import Path

from policytrim_ros.files import replace_file
from policytrim_ros.trials.store import Row, StoreError, history, read, read_sessions
from policytrim_ros.trials.table import is_blind

HIDDEN = (
    "label",
    "checkpoint",
    "generation",
    "horizon",
    "weights_sha256",
    "calls",
    "steps",
    "stalls",
    "stall_s",
    "motion_s",
    "mode",
)
"""Columns that tell the arm, or hint at it; empty while a session is blind."""

OF_SESSION = {  # further columns, and how they come from a session
    "blind": is_blind,
    "locked": lambda session: session["locked"],
    "simulated": lambda session: session["provenance"].get("simulated"),
    "real_time_factor": lambda session: session["provenance"].get("real_time_factor"),
    "commit": lambda session: session["provenance"].get("commit"),
    "version": lambda session: session["provenance"].get("version"),
    "machine": lambda session: session["provenance"].get("machine"),
    "spec_sha256": lambda session: spec_sha256(session["spec"]),
}
TYPES = {"str": str, "int": int, "float": float, "contract_sha256": str}
TYPES |= {"blind": bool, "locked": float, "simulated": bool, "real_time_factor": float}
COLUMNS = {spec.name: TYPES[spec.type] for spec in fields(Row)}
COLUMNS |= {name: TYPES.get(name, str) for name in (*OF_SESSION, "contract_sha256")}


class ExportError(RuntimeError):
    """Nothing was written; the message says why."""


def export(out, path, session: str = "") -> str:
    """Writes the trials below directory ``out``, or those of one session, to ``path``: .csv, .parquet or .json. Returns what it did.

    Trials of a blind session that is not locked are written without what tells their arm. JSON also has every label that a
    trial ever had and the plan and provenance of the sessions. ExportError when there is nothing, or it cannot be written.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ExportError(f"{path}: choose a name that ends in {', '.join(WRITERS)}")
    try:
        rows = read(out, session)  # before the sessions: no trial of a blind one may slip in between
        sessions = [found for found in read_sessions(out) if session in ("", found["id"])]
        if not sessions and not rows:
            raise ExportError(f"there is no session '{session}' in {out}" if session else f"there are no trials in {out}")
        known = {found["id"]: found for found in sessions}
        records = [record(row, known.get(row.session)) for row in rows]
        replace_file(path, WRITERS[path.suffix](out, records, sessions))
    except (OSError, StoreError) as error:
        raise ExportError(f"{path} was not written: {error}") from error
    except ImportError as error:
        raise ExportError(f"{path} was not written: '{error.name}' is not installed (extra 'train')") from error
    blind = [found["id"] for found in sessions if is_blind(found)]
    hidden = sum(row.session in blind for row in rows)
    note = f"; {hidden} of them without their arm, for {', '.join(blind)} is blind and not locked" if blind else ""
    return f"{len(rows)} trials written to {path}{note}"


def record(row: Row, session: dict | None) -> dict:
    """One trial as a plain dictionary of all `COLUMNS`; None where something is hidden or not known."""
    values = {name: getattr(row, name, None) for name in COLUMNS}
    if session is None:
        return values
    values |= {name: of(session) for name, of in OF_SESSION.items()}
    arm = session["provenance"].get("arms", {}).get(row.label, {})
    values["contract_sha256"] = arm.get("tasks", {}).get(row.task, arm).get("contract_sha256")
    return values | dict.fromkeys((*HIDDEN, "contract_sha256")) if values["blind"] else values


def spec_sha256(spec: dict) -> str:
    """What a plan is recognised by: SHA-256 of its JSON with sorted keys, without the salt, which each session draws for itself."""
    spec = {name: value for name, value in spec.items() if name != "salt"}
    return hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()


def _csv(out, records: list[dict], sessions) -> bytes:
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in values.items()} for values in records)
    return file.getvalue().encode("utf-8", "replace")


def _cell(value):
    """A spreadsheet runs what begins like a formula: such text gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value


def _parquet(out, records: list[dict], sessions) -> bytes:
    import pyarrow
    import pyarrow.parquet

    kinds = {str: pyarrow.string(), int: pyarrow.int64(), float: pyarrow.float64(), bool: pyarrow.bool_()}
    schema = pyarrow.schema([(name, kinds[kind]) for name, kind in COLUMNS.items()])
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records, schema), file)
    return file.getvalue()


def _json(out, records: list[dict], sessions: list[dict]) -> bytes:
    told = [
        {name: found[name] for name in ("id", "began", "locked", "lock_reason")}
        | {"blind": is_blind(found), "spec_sha256": spec_sha256(found["spec"])}
        | ({} if is_blind(found) else {name: found[name] for name in ("spec", "provenance", "events")})
        for found in sessions
    ]
    trials = [values | {"history": history(out, values["id"])} for values in records]
    return json.dumps({"sessions": told, "trials": trials}, indent=1, ensure_ascii=False).encode("utf-8", "replace")


WRITERS = {".csv": _csv, ".parquet": _parquet, ".json": _json}
