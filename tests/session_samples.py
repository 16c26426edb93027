"""Sessions of trials for tests: rows as the protocol would write them, in a real store."""

from dataclasses import replace

from policytrim_ros.trials.session import Session, schedule
from policytrim_ros.trials.store import Row, Store

TWO = [{"name": "baseline", "checkpoint": "models/a"}, {"name": "trimmed", "checkpoint": "models/b"}]
SECONDS = {"baseline": 14.0, "trimmed": 8.0}


def plan(**changes) -> Session:
    return Session.from_mapping({"arms": TWO, "scenes": 20, **changes})


def row_of(trial, session="s1", outcome="success", **changes) -> Row:
    """The row of a planned trial. Seconds differ from scene to scene, so that intervals have a width."""
    spread = 0.2 * (trial.seed % 5) if trial.arm.label == "trimmed" else 0.3 * (trial.seed % 7)
    seconds = SECONDS.get(trial.arm.label, 10.0) + spread
    row = Row(
        task=trial.task, setting=trial.setting, label=trial.arm.label, seed=trial.seed, outcome=outcome,
        reason="" if outcome == "success" else "dropped it", seconds=seconds, steps=int(20 * seconds), calls=int(4 * seconds), horizon=5,
        stalls=0, stall_s=0.0, mode="async", generation=1, checkpoint=trial.arm.checkpoint, began=1.0, ended=1.0 + seconds,
        weights_sha256=trial.arm.label * 8, session=session, number=trial.number, code=trial.code, labelled_by="scene",
    )  # fmt: skip
    return replace(row, **changes)


def rows_of(spec, outcome=lambda trial: "success", session="s1", **changes) -> list[Row]:
    """One row for each planned trial, numbered as the database would."""
    return [row_of(t, session, outcome(t), id=i + 1, **changes) for i, t in enumerate(schedule(spec))]


def about(session="s1", locked=1.0, **provenance) -> dict:
    """A session as store.read_sessions gives it, as far as claims read it."""
    return {"id": session, "locked": locked, "provenance": {"simulated": True, **provenance}}


def store_session(out, spec, rows, session="s1", lock=True, provenance=None) -> list[Row]:
    """Puts a session into the database below ``out``; its rows as they were stored."""
    store = Store(out)
    store.begin(session, spec.as_dict(), {"simulated": True, "commit": "abc123"} if provenance is None else provenance)
    stored = [store.append(row) for row in rows]
    if lock:
        store.lock(session)
    store.close()
    return stored


def failing(*scenes, arm="trimmed"):
    """An outcome for `rows_of`: ``arm`` fails in these scenes (counted from 0 with the session's seed 1000)."""
    return lambda trial: "failure" if trial.arm.label == arm and trial.seed - 1000 in scenes else "success"
