"""The owner's judgement: whether the arm may move, where to, and why not.

One object, one thread's worth of decisions, no clock of its own: the controller node calls ``tick`` at the setpoint rate
and sends what it returns; services and topics call the other methods. States:

    unconfigured --go/home/park (arm enabled)--> moving <--> holding        any --failsafe fault--> fault --clear_fault--> holding

``holding`` and ``fault`` keep the motors on and the setpoint still. Why the arm does not move is always in ``reason``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.executor import ChunkExecutor, ChunkRefused, PathPoint
from policytrim_ros.core.route import Leg
from policytrim_ros.core.safety import FAILSAFES, FAULT, SafetyFilter, SafetyLimits
from policytrim_ros.core.types import CONTROL_RATE_HZ, CONTROL_RATES_HZ, PARK, READY, Chunk, heartbeats_of

FROZEN_TRAVEL_RAD = 0.05
LATE_S = 0.01
"""Less slowing than this, one setpoint, is not worth a word."""

UNCONFIGURED, HOLDING, MOVING, FAULTED = "unconfigured", "holding", "moving", "fault"


@dataclass(frozen=True)
class SupervisorConfig(Config):
    """When to doubt."""

    speed_scale: float = setting(
        1.0,
        "speed of the whole motion, along the same path; begin a first real run at 0.3; may change while the arm moves",
        low=0.05,
        high=1.0,
        read_only=False,
    )
    control_rate_hz: float = setting(
        CONTROL_RATE_HZ,
        "actions of a chunk that are played each second; what the checkpoint's contract says",
        low=CONTROL_RATES_HZ[0],
        high=CONTROL_RATES_HZ[1],
        unit="Hz",
    )
    home_speed: float = setting(0.35, "share of the velocity limit used by home and park", low=0.05, high=1.0)
    feedback_timeout_s: float = setting(0.1, "joint feedback older than this is a fault", low=0.02, high=1.0, unit="s")
    chunk_timeout_s: float = setting(
        3.0, "hold when no action is left and no chunk came for so long", low=0.05, high=30.0, unit="s"
    )
    heartbeat_timeout_s: float = setting(1.0, "hold when a required node is silent for so long", low=0.2, high=10.0, unit="s")
    required_nodes: list = setting(
        [""], "nodes, and cameras as camera/<name>, without which the arm does not move (as they call themselves; empty: none)"
    )
    clock_jump_s: float = setting(0.5, "hold when the wall clock is set by more than this", low=0.1, high=60.0, unit="s")
    tracking_tolerance_rad: float = setting(0.5, "greatest difference between arm and setpoint", low=0.05, high=2.0, unit="rad")
    tracking_time_s: float = setting(0.5, "for how long it may last", low=0.05, high=5.0, unit="s")
    send_failures_max: int = setting(5, "commands in a row that may fail to reach the bus", low=1, high=100)
    frozen_feedback_s: float = setting(
        0.3,
        "joints that read exactly the same for so long while the setpoint travels are not believed",
        low=0.1,
        high=5.0,
        unit="s",
    )
    feedback_step_rad: float = setting(
        0.5, "a joint that jumps further between two feedbacks is not believed", low=0.05, high=3.0, unit="rad"
    )


@dataclass(frozen=True)
class Health:
    """What the driver knows of the arm at one tick. ``position`` (7,) or None before the first complete feedback; ``off``: names of
    joints whose motors are off."""

    position: np.ndarray | None
    age_s: float
    enabled: bool
    problems: tuple = ()
    send_failures: int = 0
    off: tuple[str, ...] = ()


@dataclass(frozen=True)
class Command:
    """What to send now: ``setpoint`` (7,) with ``velocity``, or None to send nothing; ``path`` while chunks are executed."""

    setpoint: np.ndarray | None
    velocity: np.ndarray | None
    path: PathPoint | None


def _kind(name: str) -> str:
    """What it is that calls itself ``name`` on heartbeat."""
    return "camera" if name.startswith("camera/") else "node"


class Refused(RuntimeError):
    """An operator's order cannot be carried out now; the message says why and what to do."""


BARRED_S = 1.0
BARRED = "no way there was found that keeps within workspace and table; move the arm clear by hand (its teach button), then give the order again"
"""What an order to a fixed pose ends with when there is no way, or when the setpoint has come to rest on it for BARRED_S."""


@dataclass
class Journey:
    """An order to a fixed ``pose`` (7,), called ``name``, while it is carried out."""

    pose: np.ndarray
    name: str
    way: list[np.ndarray] | None = None
    """The poses that are left on the way there; known once the arm rests."""

    leg: Leg | None = None
    """The straight way to the first of them."""

    barred_s: float = 0.0
    """For so long the limits have kept the setpoint at rest on it."""


class Supervisor:
    """Decides every setpoint. Not thread-safe: the caller serialises."""

    def __init__(self, config: SupervisorConfig, limits: SafetyLimits):
        self.config = config
        self.filter = SafetyFilter(limits)
        self.executor = ChunkExecutor(config.control_rate_hz, config.speed_scale)
        self.state, self.reason = UNCONFIGURED, "no feedback from the arm yet"
        self._required = tuple(name for name in config.required_nodes if name)
        self._seen: dict[str, float] = {}
        self._server = ""  # why the policy's server does not answer, if that was said since the last chunk
        self._journey: Journey | None = None  # the order to a fixed pose that is carried out
        self._frozen = None  # (since when, setpoint then) while the joints read exactly the same
        self._tick_at = self._moving_since = self._off_track_since = self._last_position = None
        self._streaming = False  # whether setpoints may be sent: the arm was enabled by an operator's order
        self._damped = False
        self._old_failures = 0
        self._wall_ahead_s = None
        self._waited_s = 0.0
        self.chunks_cut, self._cut = 0, ""  # so many since the start; why the latest, until it is told

    # ---- orders of the operator -------------------------------------------------------------------------------------

    def may_enable(self, health: Health) -> None:
        """Raises Refused unless an order of motion may enable and move the arm now."""
        if self.state == FAULTED:
            raise Refused(f"the arm is in fault ({self.reason}); remove the cause, then call controller/clear_fault")
        self._refuse_unhealthy(health)

    def _refuse_unhealthy(self, health: Health) -> None:
        if health.position is None or health.age_s > self.config.feedback_timeout_s:
            raise Refused("no fresh joint feedback from the arm; check power, CAN cable and interface")
        if health.problems:
            raise Refused("the arm reports " + "; ".join(health.problems))

    def go(self, health: Health, now: float) -> None:
        """The operator allows chunks to move the arm. The arm must be enabled; the path begins where the arm is."""
        self.may_enable(health)
        for name in self._required:
            if name not in self._seen:
                raise Refused(f"{_kind(name)} '{name}' has not been heard yet: wait a moment or start it, then call controller/go again")
            if now - self._seen[name] > self.config.heartbeat_timeout_s:
                raise Refused(f"{_kind(name)} '{name}' is not running; start it, then call controller/go again")
        self._begin(health, now, "go")
        self.executor.start(self.filter.setpoint, now)

    def travel(self, pose, name: str, health: Health, now: float) -> None:
        """The operator orders the arm to a fixed pose (7,): it comes to rest, goes there slowly, around table and workspace where they
        bar the straight way (core/route.py), and holds there."""
        self.may_enable(health)
        self._begin(health, now, name)
        self._journey = Journey(np.asarray(pose, dtype=np.float64), name)

    def home(self, health: Health, now: float) -> None:
        self.travel(READY, "home", health, now)

    def park(self, health: Health, now: float) -> None:
        self.travel(PARK, "park", health, now)

    def hold(self, reason: str = "operator hold") -> None:
        """Decelerate and hold. Works in every state; a fault stays a fault."""
        if self.state == MOVING:
            self._stop(HOLDING, reason)
        elif self.state == HOLDING:
            self.reason = reason

    def clear_fault(self, health: Health) -> None:
        """The operator has removed the cause of a fault: hold, motors on if they still are. Never moves, enables or resets."""
        if self.state != FAULTED:
            raise Refused(f"there is no fault to clear; the state is {self.state}")
        self._refuse_unhealthy(health)
        self._damped = False
        self._old_failures = health.send_failures  # those that led to the fault do not count again
        self._streaming = health.enabled
        self.filter.reset(health.position)
        self._off_track_since = None
        self.state, self.reason = (
            (HOLDING, "fault cleared") if health.enabled else (UNCONFIGURED, "fault cleared; the arm is not enabled")
        )

    def damped_stop(self) -> None:
        """The operator ordered the arm's own damped stop: no setpoint is sent any more."""
        self._damped = True
        self._streaming = False
        self._stop(FAULTED, "damped stop")

    def warnings(self) -> str:
        """The failsafes that leave the arm moving, in words: those of them that answered since the last call of this; else ''."""
        before, self._waited_s = self._waited_s, self.executor.slowed_s
        slower, (cut, self._cut) = self._waited_s - before, (self._cut, "")
        told = {"chunk late": f"slowed by {slower:.2f} s" if slower > LATE_S else "", "chunk cut": cut}
        return "; ".join(f"{name}: {detail}; {FAILSAFES[name].advice}" for name, detail in told.items() if detail)

    # ---- data ---------------------------------------------------------------------------------------------------------

    def heartbeat(self, words: str, now: float) -> None:
        """Lines, each a name, or `name: why the policy's server does not answer`."""
        for name, why in heartbeats_of(words):
            self._seen[name] = now
            self._server = why or self._server

    def clock(self, wall_ahead_s: float) -> None:
        """How far the wall clock is ahead of the monotonic one: between two ticks it only changes when somebody sets it."""
        before, self._wall_ahead_s = self._wall_ahead_s, wall_ahead_s
        if before is not None and abs(wall_ahead_s - before) > self.config.clock_jump_s:
            self._trip("clock jump", f"by {wall_ahead_s - before:+.1f} s")

    def accept(self, chunk: Chunk) -> int:
        """A chunk from the policy; ChunkRefused unless the arm moves by chunks. Returns the number of skipped actions.

        It is played up to the first action at which the arm would be held; where that is the next one, the arm is held.
        """
        if self.state != MOVING or self._journey is not None:
            raise ChunkRefused(f"chunk {chunk.chunk_id} refused: the arm is {self.state} ({self.reason})")
        allowed, beyond = self.filter.cut(chunk, self.executor.next_step)
        skipped = self.executor.accept(allowed)
        self._server = ""
        if beyond:
            self.chunks_cut += 1
            self._cut = f"chunk {chunk.chunk_id} to {len(allowed.positions)} of {len(chunk.positions)} actions, {beyond}"
        return skipped

    def bad_chunk(self, why: str) -> None:
        """A message on the chunk topic was not a chunk."""
        self._trip("bad chunk", why)

    # ---- the tick -----------------------------------------------------------------------------------------------------

    def tick(self, now: float, health: Health) -> Command:
        """Judges ``health``, advances the path and returns what to send."""
        dt = 0.0 if self._tick_at is None else min(now - self._tick_at, 0.1)
        self._tick_at = now
        self._judge(now, health)
        if self.state == FAULTED and self._streaming and self.filter.at_rest:
            self._streaming = False  # the arm holds its last target; a stale one must not wait for somebody to enable it again
        if not self._streaming or dt <= 0.0:
            return Command(None, None, None)
        path = None
        if self.state == MOVING and self._journey is not None:
            out = self._travel(dt)
        elif self.state == MOVING:
            path = self.executor.tick(now)
            dry = self.executor.dry_for(now)
            if dry > self.config.chunk_timeout_s:
                self._starve(dry)
            out = self.filter.step(path.position, path.velocity, dt)
            if out.breach:
                self._trip("beyond limits", out.breach)
        else:
            out = self.filter.brake(dt)
        return Command(out.setpoint, out.velocity, path)

    def _starve(self, dry_s: float) -> None:
        lost = self._server
        self._trip(*("server lost", f"{dry_s:.1f} s, {lost}") if lost else ("chunk starved", f"{dry_s:.1f} s"))

    def _travel(self, dt):
        journey = self._journey
        if journey.way is None:
            if not self.filter.at_rest:
                return self.filter.brake(dt)
            journey.way = self.filter.way_to(journey.pose)
            if not journey.way:
                self._stop(HOLDING, f"{journey.name}: {BARRED}")
                return self.filter.brake(dt)
        journey.leg = journey.leg or self.filter.leg(journey.way[0], self.config.home_speed)
        out = self.filter.step(*journey.leg.tick(dt), dt, speed=self.config.home_speed)
        if out.breach:
            self._trip("beyond limits", out.breach)
        elif np.max(np.abs(out.velocity)) >= 1e-3:
            journey.barred_s = 0.0
        elif np.max(np.abs(out.setpoint - journey.way[0])) < 0.02:
            journey.way, journey.leg = journey.way[1:], None
            if not journey.way:
                self._stop(HOLDING, f"{journey.name}: arrived")
        elif (waited := journey.barred_s + dt) > BARRED_S:
            self._stop(HOLDING, f"{journey.name}: {BARRED}")
        else:
            journey.barred_s = waited
        return out

    def _begin(self, health: Health, now: float, reason: str) -> None:
        if not health.enabled:
            raise Refused("the arm is not enabled")
        if not self._streaming or self.filter.setpoint is None:
            self.filter.reset(health.position)  # the first target is the measured pose
        self._streaming = True
        self._server = ""
        self._journey, self._off_track_since, self._moving_since = None, None, now
        self.state, self.reason = MOVING, reason

    def _stop(self, state: str, reason: str) -> None:
        self.executor.stop()
        self._journey = None
        self.state, self.reason = state, reason

    def _trip(self, failsafe: str, detail: str) -> None:
        row = FAILSAFES[failsafe]
        reason = f"{row.name}: {detail}" if detail else row.name
        # the joints' own words come up to 25 ms after the arm's status: a fault of that kind says those, too
        more_words = failsafe == "arm status" and self.reason.startswith(row.name)
        if row.reaction == FAULT and (self.state != FAULTED or more_words):
            self._stop(FAULTED, f"{reason}; {row.advice}")
        elif row.reaction != FAULT and self.state == MOVING:
            self._stop(HOLDING, f"{reason}; {row.advice}")

    def _judge(self, now: float, health: Health) -> None:
        config = self.config
        if health.position is None:
            return
        if self.state == UNCONFIGURED:
            self.reason = (
                "the arm reports " + "; ".join(health.problems) if health.problems else "the arm waits for go, home or park"
            )
            if health.age_s > config.feedback_timeout_s:
                self.reason = "no joint feedback; check CAN cable, power and interface"
            self._last_position = health.position
            return
        if health.age_s > config.feedback_timeout_s:
            self._trip("feedback silent", f"{health.age_s:.2f} s")
        elif health.problems:
            self._trip("arm status", "; ".join(health.problems))
        elif not health.enabled and not self._damped:
            self._trip("not enabled", ", ".join(health.off))
        self._old_failures = min(self._old_failures, health.send_failures)
        failures = health.send_failures - self._old_failures
        if self._streaming and failures >= config.send_failures_max:
            self._trip("send failed", f"{failures} in a row")
        self._believe(now, health)
        if self.state != MOVING:
            return
        for name in self._required:
            silent = now - self._seen.get(name, self._moving_since)
            if silent > config.heartbeat_timeout_s and self._journey is None:
                self._trip("camera stale" if _kind(name) == "camera" else "node lost", f"'{name}' is silent for {silent:.1f} s")
        self._track(now, health)

    def _believe(self, now: float, health: Health) -> None:
        before, after = self._last_position, health.position
        self._last_position = after
        if not np.all(np.isfinite(after)):
            self._trip("impossible feedback", "NaN")
        elif before is None:
            return
        elif np.all(after[:6] == 0.0) and np.max(np.abs(before[:6])) > 0.1:
            self._trip("impossible feedback", "all joints read exactly zero")
        elif np.max(np.abs(after[:6] - before[:6])) > self.config.feedback_step_rad:
            self._trip("impossible feedback", f"a joint jumped by {np.max(np.abs(after[:6] - before[:6])):.2f} rad")
        elif not np.array_equal(before[:6], after[:6]) or not self._streaming:
            self._frozen = None
        elif self._frozen is None:
            self._frozen = now, self.filter.setpoint.copy()
        else:
            since, setpoint = self._frozen
            if (
                now - since > self.config.frozen_feedback_s
                and np.max(np.abs(self.filter.setpoint - setpoint)[:6]) > FROZEN_TRAVEL_RAD
            ):
                self._trip(
                    "impossible feedback",
                    f"the joints have read exactly the same for {now - since:.1f} s while they were told to move",
                )

    def _track(self, now: float, health: Health) -> None:
        off = float(np.max(np.abs(self.filter.setpoint[:6] - health.position[:6])))
        if off <= self.config.tracking_tolerance_rad:
            self._off_track_since = None
        elif self._off_track_since is None:
            self._off_track_since = now
        elif now - self._off_track_since > self.config.tracking_time_s:
            self._trip("tracking", f"the arm is {off:.2f} rad from its setpoint")
            self.filter.reset(health.position)  # hold where the arm is, do not push on
