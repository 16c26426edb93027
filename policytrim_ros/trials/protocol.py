"""What happens in a trial, read from top to bottom; the same on the real arm and in simulation.

    home -> the policy -> lay the scene -> go -> start the scene's clock -> run inference -> outcome -> stop, hold -> one row

The protocol talks to a `Rig`, the running system (the ROS node on a robot, a virtual one in tests), and to a `Desk`, where the operator
says go and names the outcome (trials/desk.py; the default one is unattended). Seconds are counted from the operator's go.

A hold or fault that a policy can cause (last column of docs/failsafes.md) is a failure of the policy: to leave such trials out
would flatter the policy that needs to be held. Everything else that stops the arm aborts the trial.

In a canary session (trials/canary.py) the incumbent is put back after every trial of the candidate, however it ended: it costs nothing, the
next trial is mostly the incumbent's, and whatever ends the session leaves the incumbent speaking.
"""

from __future__ import annotations

import json
import math
import time
from contextlib import suppress
from dataclasses import replace
from typing import Callable, Protocol, Sequence

from policytrim_ros.core.safety import blames_policy
from policytrim_ros.core.sequential import PairedTest
from policytrim_ros.trials.canary import Canary, canary_of
from policytrim_ros.trials.desk import Desk
from policytrim_ros.trials.session import Session, Trial
from policytrim_ros.trials.store import HELD, Row, Store, StoreError


ATTEMPTS = 3
"""An unattended run ends when the same trial was invalid so often."""


AGAIN_S = 5.0
"""Beside an operator a row that the disk does not take is tried again so often."""


DEATH_S = 2.5
"""A process that has died is known to be silent well within this."""


class RigError(RuntimeError):
    """Something does not answer or refuses; the message says what, where and what to do."""


class Interrupted(RuntimeError):
    """The operator ended the run."""


class Rig(Protocol):
    """What a trial needs from the running system. Calls raise RigError when they are refused or not answered."""

    scene: dict  # the newest scene/state
    inference: dict  # the newest inference/status
    controller: tuple[str, str]  # state and reason
    went: bool  # whether the controller has been moving since `go` was called
    next_step: int  # the next control step to begin; like the two below from controller/consumed
    stalls: int
    stall_s: float
    real_time_factor: float  # seconds of `clock` in a real one

    def clock(self) -> float:
        """Monotonic seconds, of the robot."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Lets the world go on until ``condition()`` (True) or the timeout (False); raises Interrupted."""

    def silent(self) -> str | None:
        """Name of a process that a trial needs and that has fallen silent."""

    def at_ready(self) -> bool:
        """Whether the arm rests at the ready pose."""

    def lay(self, task: str, setting: str, seed: int) -> None:
        """Asks for a new scene; `scene` changes its scene_id when it lies."""

    def use(self, checkpoint: str, horizon: int) -> None:
        """Has inference load ``checkpoint`` (nothing when it runs that one, or '') and execute ``horizon`` actions of a chunk
        (0: the checkpoint's own); returns when it is ready."""

    def home(self) -> None: ...
    def go(self) -> None: ...
    def start(self) -> None: ...
    def run(self, on: bool) -> None: ...
    def hold(self) -> None: ...

    def recorded(self) -> str:
        """Why the recording of the trial is not whole; '' when it is, or none was asked for."""


def run_session(
    rig: Rig, session: str, spec: Session, trials: Sequence[Trial], store: Store, desk: Desk, say: Callable[[str], None]
) -> str | None:
    """Runs those of ``trials`` that have no outcome that counts yet; returns why it ended early, or None when none is left.

    What does not count is tried again: beside an operator when the operator says go. Unattended, an invalid trial is tried ATTEMPTS
    times, and an aborted one ends the run: whatever stopped it wants a person's eyes. Raises Interrupted after the row is stored,
    StoreError when it cannot be (`keep`).
    """
    began, here = rig.clock(), 0
    canary = desk.watch(canary_of(spec, trials, store.rows_of(session)))
    if canary and canary.over:
        say(told(canary))
    while (trial := upcoming(spec, trials, store.rows_of(session))) is not None:
        done = {row.number for row in store.rows_of(session) if row.counts}
        attempt = sum(row.number == trial.number for row in store.rows_of(session)) + 1
        took = (rig.clock() - began) / rig.real_time_factor
        left = f"{took / here * sum(one.number not in done for one in trials):.0f}" if here else "?"
        desk.begin(trial, session, f"{session}/trial-{trial.number:04d}" + (f"-{attempt}" if attempt > 1 else ""), left)
        row, cause = run_trial(rig, trial, desk)
        stuck = put_back(rig, spec, trial, desk)  # before anything that a full disk can stop
        interrupted = isinstance(cause, Interrupted)
        if interrupted and not desk.began:
            raise cause  # before go there was nothing to record
        row = replace(row, session=session, recording=desk.recording if desk.records else "")
        row = keep(rig, spec, row, store, desk, say, patient=desk.attended and not interrupted)
        here += 1
        canary = desk.watch(canary_of(spec, trials, store.rows_of(session)))
        desk.end(row)
        if alarm := desk.records and rig.recorded():
            desk.alarm(f"the recording of trial {trial.number} is not whole: {alarm}")
            store.note(session, "recording", trial=trial.number, reason=alarm)
        say(line(row, spec.planned, trial.code if spec.blind else row.label if len(spec.arms) > 1 else "", left, spec.blind))
        if canary and canary.over:
            conclude(canary, session, row, store, desk, say)
        if stuck:
            store.note(session, "canary", trial=row.number, verdict="not put back", reason=stuck)
        if interrupted:
            raise cause
        if stuck:
            return stuck
        if not desk.attended and (row.outcome == "aborted" or (row.outcome == "invalid" and attempt == ATTEMPTS)):
            return f"trial {trial.number} (seed {trial.seed}) was {row.outcome}: {row.reason}"
    return None


def keep(rig: Rig, spec: Session, row: Row, store: Store, desk: Desk, say: Callable[[str], None], patient: bool) -> Row:
    """Puts ``row`` on the disk; of a blind session without the names in its reason, which an event keeps.

    A disk that does not take it: when ``patient``, an alarm, and it is tried again every AGAIN_S until it is taken or the operator
    interrupts; otherwise once. Then the row, whole, is said as one line of JSON and StoreError raised.
    """
    shown, alarm = spec.concealed(row.reason) if spec.blind else row.reason, ""
    to_note = shown != row.reason
    while True:
        try:
            if to_note:
                store.note(row.session, "reason", trial=row.number, text=row.reason)
                to_note = False
            kept = store.append(replace(row, reason=shown))
            desk.all_clear(alarm)
            return kept
        except StoreError as error:
            if patient:
                alarm = alarm or f"trial {row.number} is not stored yet and is tried again: {error}; to give it up, pause"
                desk.alarm(alarm)
                with suppress(Interrupted):
                    rig.wait(lambda: False, AGAIN_S)
                    continue
            desk.all_clear(alarm)
            say(json.dumps({"unstored": vars(row)}))
            lost = f'trial {row.number} is not in it: its row stands in the log, after {{"unstored":'
            raise StoreError(f"{error}; {lost}") from error


def put_back(rig: Rig, spec: Session, trial: Trial, desk: Desk) -> str:
    """After a trial of a canary's candidate has inference speak as the incumbent again; '' or, also as an alarm, why it does not: it
    refused, or the operator interrupted."""
    if not spec.canary or trial.arm != spec.arms[1]:
        return ""
    incumbent = spec.arms[0]
    try:
        rig.use(incumbent.checkpoint, incumbent.horizon)
    except (RigError, Interrupted) as error:
        stuck = f"{incumbent.label} could not be put back after trial {trial.number}: {error}; do it with `policytrim swap {incumbent.checkpoint}`"
        desk.alarm(stuck)
        return stuck
    return ""


def conclude(canary: Canary, session: str, row: Row, store: Store, desk: Desk, say: Callable[[str], None]) -> None:
    """Says what came of the candidate, and keeps it beside the rows."""
    if canary.returned:
        desk.alarm(canary.reason)
    say(told(canary))
    store.note(session, "canary", trial=row.number, verdict=canary.verdict, reason=canary.sentence)


def told(canary: Canary) -> str:
    return f"canary {canary.verdict}: {canary.sentence}"


def line(row: Row, planned: int, who: str, left: str, blind: bool) -> str:
    """One finished trial in one line; of a blind session nothing that tells the arm."""
    why = "" if row.outcome == "success" else f" ({row.reason})"
    counts = "" if blind else f" S={row.steps} N={row.calls} h={row.horizon} stalls={row.stalls}"
    return (
        f"trial {row.number}/{planned}{' ' if who else ''}{who} task={row.task} setting={row.setting} seed={row.seed} {row.outcome}{why} "
        f"{row.seconds:.1f} s{counts} left={left} s"
    )


def upcoming(spec: Session, trials: Sequence[Trial], rows: Sequence[Row]) -> Trial | None:
    """The first trial without an outcome that counts, of a cell or a canary that is not decided yet; None when the session is complete."""
    last = {row.number: row for row in rows}
    done = {number for number, row in last.items() if row.counts or row.outcome == "unlabelled"}
    if spec.canary and canary_of(spec, trials, rows).over:
        return None
    decided = decided_cells(spec, rows) if spec.stop == "sequential" else set()
    return next((t for t in trials if t.number not in done and (t.task, t.setting) not in decided), None)


def decided_cells(spec: Session, rows: Sequence[Row]) -> set[tuple[str, str]]:
    """Cells whose sequential test needs no further pair."""
    decided = set()
    for cell in spec.cells:
        test = PairedTest(spec.margin, spec.alpha)
        for pair in pairs(spec, rows, *cell):
            test.add(*(row.outcome == "success" for row in pair))
        if test.verdict != "undecided":
            decided.add(cell)
    return decided


def pairs(spec: Session, rows: Sequence[Row], task: str, setting: str, second: int = 1) -> list[tuple[Row, Row]]:
    """Rows of the first arm and of arm ``second`` that met the same scene of a cell, in the order in which the pairs became complete."""
    first, other = spec.arms[0].label, spec.arms[second].label
    met: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row.counts and (row.task, row.setting) == (task, setting):
            met.setdefault(row.seed, {})[row.label] = row
    both = [(found[first], found[other]) for found in met.values() if first in found and other in found]
    return sorted(both, key=lambda pair: max(row.id for row in pair))


def run_trial(rig: Rig, trial: Trial, desk: Desk) -> tuple[Row, Exception | None]:
    """One trial; returns its row and, when it was aborted, what aborted it. Leaves inference stopped and the arm held."""
    meter = Meter(rig)
    cause, by = None, "protocol"
    try:
        prepare(rig, trial, desk)
        desk.phase("ready")
        rig.wait(desk.may_go, math.inf)
        meter.reset()
        outcome, reason, by = observe(rig, trial, desk, meter)
    except (RigError, Interrupted) as error:
        outcome, reason, cause = "aborted", str(error), error
    meter.stop()
    desk.phase("ending")
    for rest in (lambda: rig.run(False), rig.hold):
        try:
            rest()
        except RigError as error:
            if outcome != "aborted":
                outcome, reason, cause = "aborted", str(error), error
    if outcome == UNKNOWN:
        desk.phase("labelling")
        try:
            rig.wait(lambda: desk.verdict is not None, math.inf)
            desk.phase("ending")
            outcome, reason, by = desk.verdict
        except Interrupted as error:
            outcome, reason, cause = "aborted", str(error), error
            desk.phase("ending")
    return meter.row(trial, outcome, reason, by), cause


UNKNOWN = "unknown"
"""The arm is at rest and only the operator can say what came of it."""


def prepare(rig: Rig, trial: Trial, desk: Desk) -> None:
    """Brings the arm to the ready pose and lays the scene; raises RigError when either does not come about."""
    if desk.asks_before_home and not rig.at_ready():
        desk.phase("homing")
        rig.wait(desk.may_go, math.inf)
        desk.phase("preparing")
    rig.home()
    rig.use(trial.arm.checkpoint_for(trial.task), trial.arm.horizon)
    if not rig.wait(lambda: rig.at_ready() or rig.controller[0] == "fault", trial.answer_s) or rig.controller[0] == "fault":
        raise RigError(f"the arm did not reach the ready pose (controller: {': '.join(rig.controller)})")
    before = rig.scene.get("scene_id")
    rig.lay(trial.task, trial.setting, trial.seed)
    lies = lambda: rig.scene.get("scene_id") != before and rig.scene.get("phase") == "ready"  # noqa: E731
    if not rig.wait(lambda: lies() or rig.scene.get("phase") == "laying", trial.answer_s):
        raise RigError(f"no new scene after {trial.answer_s:.0f} s")
    rig.wait(lies, math.inf)  # by hand it takes as long as it takes


def observe(rig: Rig, trial: Trial, desk: Desk, meter: "Meter") -> tuple[str, str, str]:
    """Go, then watch until the trial is over; returns outcome, reason and who said so, raises RigError when something breaks."""
    scene_id = rig.scene["scene_id"]
    laid = (rig.scene.get("task"), rig.scene.get("setting"))
    if laid != (trial.task, trial.setting):
        return "invalid", f"the scene is {laid[0]} {laid[1]}", "protocol"
    end, first = rig.clock() + trial.timeout_s, rig.next_step
    desk.phase("running")
    rig.go()
    rig.start()
    rig.run(True)
    moved = False

    def over():
        nonlocal moved
        state = rig.controller[0]
        if not moved and state == "moving" and rig.next_step > first:
            moved = True
            meter.moves()
        stopped = state in ("fault", "unconfigured") or (rig.went and state == "holding")
        ended = stopped or rig.scene["phase"] == "done" or rig.scene["scene_id"] != scene_id or rig.silent() is not None
        return ended or desk.verdict is not None

    in_time = rig.wait(over, end - rig.clock())
    meter.stop()
    desk.phase("ending")  # a later word is refused, so that none is accepted and then dropped
    if desk.verdict is not None:
        return desk.verdict
    if not in_time and rig.controller[0] == "moving":
        return "failure", f"no success within {trial.timeout_s:.0f} s", "protocol"
    if rig.scene["scene_id"] != scene_id:
        return "invalid", "somebody laid another scene", "protocol"
    if rig.scene["phase"] == "done":
        return rig.scene["outcome"], rig.scene.get("reason") or rig.scene["outcome"], "scene"
    state, reason = rig.controller
    blamed = blames_policy(reason) and (moved or (rig.went and state == "holding"))
    if blamed:  # a policy whose process has died starves the arm, too, which is heard a little later
        rig.wait(lambda: rig.silent() is not None, DEATH_S)
    if rig.silent() is not None:
        raise RigError(f"{rig.silent()} has fallen silent")
    if blamed:
        return "failure", f"{HELD}{reason}", "protocol"
    if rig.went and desk.attended and state == "holding":
        return UNKNOWN, reason, ""
    raise RigError(f"controller: {state}: {reason}")


class Meter:
    """Counts what a trial used: differences of running counters between `reset` (before go) and `stop` (at the outcome)."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self._used = None
        self.reset()

    def reset(self) -> None:
        rig = self.rig
        self._began, self._motion_s = time.time(), 0.0
        self._clock, self._steps, self._stalls, self._stall_s = rig.clock(), rig.next_step, rig.stalls, rig.stall_s
        self._calls = rig.inference.get("calls", 0)
        self._began_with = dict(rig.inference)
        self._used = None

    def moves(self) -> None:
        """The first control step has begun."""
        self._motion_s = self.rig.clock() - self._clock

    def stop(self) -> None:
        """The first call counts: what comes after the outcome is not the trial's."""
        rig = self.rig
        self._used = self._used or dict(
            seconds=rig.clock() - self._clock,
            steps=rig.next_step - self._steps,
            stalls=rig.stalls - self._stalls,
            stall_s=rig.stall_s - self._stall_s,
            ended=time.time(),
        )

    def row(self, trial: Trial, outcome: str, reason: str, by: str) -> Row:
        """The row of the trial. Calls are read now: inference has stopped and reported for the last time. After a hold the policy
        is named that got the go: one on probation has been taken back, and another one speaks."""
        status = self.rig.inference
        policy = self._began_with if reason.startswith(HELD) else status
        return Row(
            task=trial.task,
            setting=trial.setting,
            label=trial.arm.label,
            seed=trial.seed,
            outcome=outcome,
            reason=reason,
            **self._used,
            calls=status.get("calls", 0) - self._calls,
            horizon=policy.get("horizon", 0),
            mode=policy.get("mode", ""),
            generation=policy.get("generation", 0),
            checkpoint=policy.get("checkpoint", ""),
            weights_sha256=policy.get("weights_sha256", "") or "",
            began=self._began,
            motion_s=self._motion_s,
            number=trial.number,
            code=trial.code,
            labelled_by=by,
        )
