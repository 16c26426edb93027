"""Sessions of trials from the command line (`policytrim trials ...`); each function takes the parsed options and returns the exit code."""

from __future__ import annotations

import json
from pathlib import Path

from policytrim_ros.trials.combination import combined, keep
from policytrim_ros.trials.evidence import ClaimsError
from policytrim_ros.trials.export import ExportError, export
from policytrim_ros.trials.report import ReportError, write
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.store import Store, StoreError, read, read_sessions
from policytrim_ros.trials.table import is_blind, show

REFUSALS = (StoreError, ReportError, ExportError, ClaimsError)


def run_trials(options) -> int:
    """Carries a plan out against the running system; the same plan again goes on where it ended."""
    from policytrim_ros.nodes.trial import main

    namespace = options.namespace.strip("/")
    values = dict(plan=options.plan, out=options.out, recorded=options.recorded)
    words = [word for name, value in values.items() for word in ("-p", f"{name}:={json.dumps(value)}")]
    return main(["trial", "--ros-args", *(["-r", f"__ns:=/{namespace}"] if namespace else []), *words])


def list_trials(options) -> int:
    """All sessions, a line each, then the table of one, the newest if none is named: equal names in two sessions may be two policies."""
    rows, sessions = read(options.out), read_sessions(options.out)
    shown = chosen(options.out, options.session)["id"] if sessions or options.session else ""
    for found in sessions:
        spec, of_it = found["spec"], [row for row in rows if row.session == found["id"]]
        state = "locked" if found["locked"] else "open, blind" if spec["blind"] else "open"
        counted = sum(row.counts for row in of_it)
        print(f"{found['id']}  {counted}/{Session.from_mapping(spec).planned} trials  {state}  {', '.join(spec['tasks'])}")
    print((f"\n{shown}:\n\n" if shown else "") + show(options.out, shown))
    return 0


def lock_trials(options) -> int:
    session = chosen(options.out, options.session)["id"]
    store = Store(options.out)
    try:
        store.lock(session, options.reason)
    finally:
        store.close()
    print(f"{session} is locked; `policytrim trials report --out {options.out}` shows what came of it")
    return 0


def report_trials(options) -> int:
    session = chosen(options.out, options.session)["id"]
    print(write(options.out, session, options.to or Path(options.out) / session))
    return 0


def export_trials(options) -> int:
    print(export(options.out, options.file, options.session))
    return 0


def import_trials(options) -> int:
    """Labelled trials of a session whose arms may be seen, with their recordings, into a dataset, which names the arm of each."""
    from policytrim_ros.trial_import import imported

    session = seen(options.out, options.session)["id"]
    rows = [row for row in read(options.out, session) if row.counts and row.recording]
    names = ("outcome", "reason", "task", "setting", "seed", "session", "number", "code", "label", "checkpoint", "weights_sha256")
    names += ("labelled_by",)
    recordings = [(Path(options.out) / f"{row.recording}.mcap", {name: getattr(row, name) for name in names}) for row in rows]
    found = imported(recordings, options.dataset, options.keep_failures, say=print)
    print(f"{found.new} episodes added to {options.dataset}, {found.known} were there already")
    for line in (*found.left_out, *found.problems):
        print(line)
    return 1 if found.problems else 0


def combine_trials(options) -> int:
    """What the real trials of one session say with the help of the simulated ones of others, cell by cell and arm by arm."""
    real = seen(options.out, options.session)
    simulated = [seen(options.simulated, name) for name in options.simulated_session or [""]]
    spec, rows = Session.from_mapping(real["spec"]), read(options.out, real["id"])
    more = [row for found in simulated for row in read(options.simulated, found["id"])]
    found = combined(spec, rows, more, [real, *simulated])
    for cell in found:
        print(f"{cell.name}, {cell.first} → {cell.second}: {cell.claim.verdict}\n  {cell.claim.sentence}")
    path = keep(options.out, real["id"], found, rows, [one["id"] for one in simulated])
    print(f"kept in {path}; `policytrim trials report --out {options.out} --session {real['id']}` shows it, too")
    return 0


def chosen(out, session: str) -> dict:
    """The session of directory ``out`` that was named (store.read_sessions), or the newest (''); StoreError when there is none."""
    known = {found["id"]: found for found in read_sessions(out)}
    if not known:
        raise StoreError(f"{out} holds no session of trials")
    if session and session not in known:
        raise StoreError(f"{out} holds no session {session}; it has {', '.join(known)}")
    return known[session] if session else list(known.values())[-1]


def seen(out, session: str) -> dict:
    """The same, of a session whose arms may be seen; StoreError when it is blind: what is made of it would tell them."""
    found = chosen(out, session)
    if is_blind(found):
        raise StoreError(
            f"session {found['id']} is blind and not locked; lock it first: "
            f"policytrim trials lock --out {out} --session {found['id']}"
        )
    return found
