"""What happens in a trial, read from top to bottom; the same on the real arm and in simulation.

    home -> the policy -> lay the scene -> go -> start the scene's clock -> run inference -> outcome -> stop, hold -> one row

Several plans are compared scene by scene: each policy in turn meets the first scene, then the second, in the same processes.

The protocol talks to a `Rig`: the ROS node on a robot, a virtual one in tests. Seconds are counted from the operator's go.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Callable, Protocol, Sequence

from policytrim_ros.trials.store import Row, Store


class RigError(RuntimeError):
    """Something does not answer or refuses; the message says what, where and what to do."""


class Interrupted(RuntimeError):
    """The operator ended the run."""


class Rig(Protocol):
    """What a trial needs from the running system. Calls raise RigError when they are refused or not answered."""

    scene: dict  # the newest scene/state
    inference: dict  # the newest inference/status
    controller: tuple[str, str]  # state and reason
    next_step: int  # the next control step to begin; like the two below from controller/consumed
    stalls: int
    stall_s: float

    def clock(self) -> float:
        """Monotonic seconds."""

    def wait(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Lets the world go on until ``condition()`` (True) or the timeout (False); raises Interrupted."""

    def silent(self) -> str | None:
        """Name of a process that a trial needs and that has fallen silent."""

    def at_ready(self) -> bool:
        """Whether the arm rests at the ready pose."""

    def lay(self, task: str, setting: str, seed: int) -> None:
        """Asks for a new scene; `scene` changes its scene_id when it lies."""

    def use(self, checkpoint: str) -> None:
        """Has inference load ``checkpoint`` (nothing when it runs that one); returns when it is ready."""

    def home(self) -> None: ...
    def go(self) -> None: ...
    def start(self) -> None: ...
    def run(self, on: bool) -> None: ...
    def hold(self) -> None: ...


@dataclass(frozen=True)
class Plan:
    """Which trials: ``trials`` of one task, with seeds ``seed``, ``seed + 1``, ..., of ``checkpoint`` (empty: what inference
    has loaded), called ``label`` in the table."""

    task: str
    setting: str
    label: str
    trials: int
    seed: int
    timeout_s: float
    checkpoint: str = ""
    answer_s: float = 15.0  # how long the arm may take to be ready, and a scene to lie
    repeat: bool = False  # whether finished trials are run again


def run_trials(
    rig: Rig, plans: Sequence[Plan], store: Store, say: Callable[[str], None], begin: Callable[[str], None]
) -> str | None:
    """Runs the trials of ``plans`` that ``store`` does not hold yet; returns why it ended early, or None.

    ``begin`` gets one line before each trial, ``say`` one line after it. An aborted trial ends the run: whatever stopped
    it wants a person's eyes. Raises Interrupted after the row is stored.
    """
    done = {row.key for row in store.rows if row.counts}
    wanted = sorted((seed, turn) for turn, plan in enumerate(plans) for seed in range(plan.seed, plan.seed + plan.trials))
    todo = [(seed, plans[turn]) for seed, turn in wanted]
    todo = [(seed, plan) for seed, plan in todo if plan.repeat or (plan.task, plan.setting, plan.label, seed) not in done]
    if len(todo) < len(wanted):
        say(f"{len(wanted) - len(todo)} of {len(wanted)} trials are recorded already in {store.path}")
    began, left = rig.clock(), "?"
    for number, (seed, plan) in enumerate(todo, start=1):
        who = f" {plan.label}" if len(plans) > 1 else ""
        begin(f"trial {number}/{len(todo)}{who} task={plan.task} setting={plan.setting} seed={seed} left={left} s")
        row, cause = run_trial(rig, plan, seed)
        store.append(row)
        left = f"{(rig.clock() - began) / number * (len(todo) - number):.0f}"
        why = "" if row.outcome == "success" else f" ({row.reason})"
        say(
            f"trial {number}/{len(todo)}{who} task={row.task} setting={row.setting} seed={row.seed} {row.outcome}{why} "
            f"{row.seconds:.1f} s S={row.steps} N={row.calls} h={row.horizon} stalls={row.stalls} left={left} s"
        )
        if isinstance(cause, Interrupted):
            raise cause
        if row.outcome == "aborted":
            return f"trial with seed {seed} was aborted: {row.reason}"
    return None


def run_trial(rig: Rig, plan: Plan, seed: int) -> tuple[Row, Exception | None]:
    """One trial; returns its row and, when it was aborted, what aborted it. Leaves inference stopped and the arm held."""
    meter = Meter(rig)
    cause = None
    try:
        prepare(rig, plan, seed)
        meter.reset()
        outcome, reason = observe(rig, plan)
    except (RigError, Interrupted) as error:
        outcome, reason, cause = "aborted", str(error), error
    meter.stop()
    for rest in (lambda: rig.run(False), rig.hold):
        try:
            rest()
        except RigError as error:
            if outcome != "aborted":
                outcome, reason, cause = "aborted", str(error), error
    return meter.row(plan, seed, outcome, reason), cause


def prepare(rig: Rig, plan: Plan, seed: int) -> None:
    """Brings the arm to the ready pose and lays the scene; raises RigError when either does not come about."""
    rig.home()
    if plan.checkpoint:
        rig.use(plan.checkpoint)
    if not rig.wait(lambda: rig.at_ready() or rig.controller[0] == "fault", plan.answer_s) or rig.controller[0] == "fault":
        raise RigError(f"the arm did not reach the ready pose (controller: {': '.join(rig.controller)})")
    before = rig.scene.get("scene_id")
    rig.lay(plan.task, plan.setting, seed)
    if not rig.wait(lambda: rig.scene.get("scene_id") != before and rig.scene.get("phase") == "ready", plan.answer_s):
        raise RigError(f"no new scene after {plan.answer_s:.0f} s")


def observe(rig: Rig, plan: Plan) -> tuple[str, str]:
    """Go, then watch until the trial is over; returns outcome and reason, raises RigError when something breaks."""
    scene_id = rig.scene["scene_id"]
    laid = (rig.scene.get("task"), rig.scene.get("setting"))
    if laid != (plan.task, plan.setting):
        return "invalid", f"the scene is {laid[0]} {laid[1]}"
    end, first = rig.clock() + plan.timeout_s, rig.next_step
    rig.go()
    rig.start()
    rig.run(True)
    moved = False

    def over():
        nonlocal moved
        state = rig.controller[0]
        moved = moved or (state == "moving" and rig.next_step > first)
        stopped = state in ("fault", "unconfigured") or (moved and state == "holding")
        return stopped or rig.scene["phase"] == "done" or rig.scene["scene_id"] != scene_id or rig.silent() is not None

    if not rig.wait(over, end - rig.clock()) and rig.controller[0] == "moving":
        return "failure", f"no success within {plan.timeout_s:.0f} s"
    if rig.scene["scene_id"] != scene_id:
        return "invalid", "somebody laid another scene"
    if rig.scene["phase"] == "done":
        return rig.scene["outcome"], rig.scene.get("reason") or rig.scene["outcome"]
    if rig.silent() is not None:
        raise RigError(f"{rig.silent()} has fallen silent")
    raise RigError(f"controller: {': '.join(rig.controller)}")


class Meter:
    """Counts what a trial used: differences of running counters between `reset` (before go) and `stop` (at the outcome)."""

    def __init__(self, rig: Rig):
        self.rig = rig
        self.reset()

    def reset(self) -> None:
        rig = self.rig
        self._began = time.time()
        self._clock, self._steps, self._stalls, self._stall_s = rig.clock(), rig.next_step, rig.stalls, rig.stall_s
        self._calls = rig.inference.get("calls", 0)
        self.stop()

    def stop(self) -> None:
        rig = self.rig
        self._used = dict(
            seconds=rig.clock() - self._clock,
            steps=rig.next_step - self._steps,
            stalls=rig.stalls - self._stalls,
            stall_s=rig.stall_s - self._stall_s,
        )

    def row(self, plan: Plan, seed: int, outcome: str, reason: str) -> Row:
        """The row of the trial. Calls are read now: inference has stopped and reported for the last time."""
        status = self.rig.inference
        return Row(
            task=plan.task,
            setting=plan.setting,
            label=plan.label,
            seed=seed,
            outcome=outcome,
            reason=reason,
            **self._used,
            calls=status.get("calls", 0) - self._calls,
            horizon=status.get("horizon", 0),
            mode=status.get("mode", ""),
            generation=status.get("generation", 0),
            checkpoint=status.get("checkpoint", ""),
            began=self._began,
            ended=time.time(),
        )
