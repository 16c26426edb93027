"""Rollouts in virtual time: many episodes through the robot's own `ChunkExecutor` and `Replanner`, without ROS.

    envs = [TaskEnv("tape_box", cameras=("front", "wrist")) for _ in range(8)]
    starts = (Start(seed, horizon=5) for seed in range(1_000_000, 1_000_200))
    for start, episode in play(envs, starts, look, Conditions("async", latency_s=0.06), cameras=("front", "wrist")): ...

`look(observation, seeds) -> (B, H, 7)` is the policy: B observations of B episodes in, B chunks of absolute targets out.
`seeds` holds one number for every row, different for every look of every episode, that fixes whatever the policy draws.

An environment (a lane) plays one episode at a time. `play` lets every lane run on its own until it wants to look; then all
that want to are rendered and predicted in one batch. Nothing is rendered in between. `play_together` does the same with
a vector environment, whose lanes step together.

Virtual time advances by one control step of the executor at a time, so that an action ends exactly where the next one
begins. What happens in a control step is what happens on the robot: a chunk that has arrived is accepted; the next action
begins; then the replanner is asked whether to look, and the observation shows the scene as this control step begins; in mode
rtc it also holds what is left of the plan.
Latency is rounded up to whole control steps; in sync mode the arm rests for so long while the scene goes on.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np

from policytrim_ros.core.commitment import Commitment
from policytrim_ros.core.contract import implausible
from policytrim_ros.core.executor import ChunkExecutor, ChunkRefused
from policytrim_ros.core.horizon import HorizonGuard, SceneChange, disagreement, tracking_error
from policytrim_ros.core.replanning import SYNC, Replanner
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import CONTROL_RATE_HZ, Chunk
from policytrim_ros.policies.objects import object_poses
from policytrim_ros.policies.policy import Observation

Look = Callable[[Observation, Sequence[int]], np.ndarray]
LOOKS_PER_EPISODE = 1000
"""Sampler seeds are ``draw * LOOKS_PER_EPISODE + look``; an episode of 450 steps cannot look more often."""

GENERATION = 1


class RolloutError(RuntimeError):
    """A rollout cannot be played as it was asked for."""


@dataclass(frozen=True)
class Start:
    """How one episode begins: the scene of ``seed``, or ``state`` (from an environment's `save`), and h for this lane.

    ``draw`` seeds the sampler (None: ``seed``), so that members of a group may share a scene and differ in their actions.
    """

    seed: int
    horizon: int
    state: Any = None
    draw: int | None = None

    @property
    def sampler_seed(self) -> int:
        return self.seed if self.draw is None else self.draw


@dataclass(frozen=True)
class Conditions:
    """How episodes are played: mode (sync, async, rtc), latency from look to arrival (s), noise on played joint targets (rad).

    ``hide_target`` leaves the first object out of the pictures. ``rebuild`` builds every scene anew (0.01 s), so that an
    episode does not depend, in its last bits, on what was played before it. ``limit`` > 0: an episode that has not ended
    after so many control steps is truncated. ``guarded``: the arm keeps to the controller's default limits of workspace, table
    and joints (core/safety.py): it does not follow a target beyond them, a chunk is cut before one beyond the tolerance, and where such a
    target is next, so that the controller would hold until an operator comes, the episode is a failure. ``cut`` False: it is a failure
    wherever in a chunk such a target is reached; for training: what a cut does not punish a policy learns to ask for. ``cut_limits``:
    what cuts the horizon below a start's own, not below ``shortest_horizon``, as pairs (score, limit) of `core.horizon.HorizonGuard`.
    """

    mode: str = SYNC
    latency_s: float = 0.0
    action_noise_rad: float = 0.0
    hide_target: bool = False
    rebuild: bool = False
    limit: int = 0
    guarded: bool = False
    cut: bool = True
    cut_limits: tuple[tuple[str, float], ...] = ()
    shortest_horizon: int = 2


@dataclass(frozen=True)
class EpisodeResult:
    """One episode.

    outcome: success, failure (lost for good) or truncated (time limit); steps: S, control steps in which an action was
    played; control_steps: all of them, rests included; calls: N; seconds: control_steps at the control rate; stalled_s: of
    these, without an action since the first one was played; looks: for every call (control step of the look, actions of
    its chunk skipped on arrival, actions of its chunk played); refused: chunks that could not be played (NaN, beyond any
    arm's reach, too late); moved_m: how far the first object is from where it began; held: why the controller would have held the
    arm, which ended the episode ('' when it would not); seam_rad: mean over the chunks that took over of how far (largest
    joint, rad) their first played action lies from what the chunk before said about that step (None: it never said anything);
    cuts: how often the horizon was cut; chunks_cut: chunks of which only the beginning was played, since what followed lay beyond the
    controller's limits.
    """

    seed: int
    outcome: str
    steps: int
    control_steps: int
    calls: int
    seconds: float
    stalled_s: float
    looks: tuple[tuple[int, int, int], ...]
    refused: int
    moved_m: float
    held: str = ""
    seam_rad: float | None = None
    cuts: int = 0
    chunks_cut: int = 0


class Player:
    """One episode from the executor's side: when to look, which target is played now. Knows no environment.

    Every control step: `begin`; when it says so, observe and `hear` the chunk; step to `target`; `passed`.
    """

    def __init__(self, start: Start, setpoint, conditions: Conditions, rate_hz: float = CONTROL_RATE_HZ):
        self.start, self._latency_s = start, conditions.latency_s
        self._delay = math.ceil(conditions.latency_s * rate_hz - 1e-9)  # control steps
        self._executor = ChunkExecutor(rate_hz)
        self._executor.start(setpoint, 0.0)
        self._replanner = Replanner(conditions.mode, start.horizon, rate_hz)
        self._trust = HorizonGuard(start.horizon, conditions.shortest_horizon, dict(conditions.cut_limits))
        self._scene = SceneChange()
        self._noise, self._random = conditions.action_noise_rad, np.random.default_rng((start.sampler_seed, 11))
        self._now, self._coming = 0.0, None  # s; (control step of arrival, chunk, all H actions of it)
        self._before, self._seams = None, []  # (first control step, all H actions) of the chunk that took over last; rad
        self._guard, self._inside = (_guard() if conditions.guarded else None), np.array(setpoint, dtype=np.float64)
        self._cut = conditions.guarded and conditions.cut
        self.held = ""  # why the controller would have held the arm
        self.control_steps = self.steps = self.refused = self.chunks_cut = 0
        self.looks: list[list[int]] = []

    @property
    def look_seed(self) -> int:
        """Seed of the coming look."""
        return self.start.sampler_seed * LOOKS_PER_EPISODE + len(self.looks)

    def begin(self) -> bool:
        """Begins a control step and says whether the policy looks now."""
        if self._coming and self.control_steps >= self._coming[0]:
            self._deliver()
        executor = self._executor
        executor.advance(self._now)
        self._replanner.plays((executor.generation, executor.chunk_id), executor.next_step, executor.queued)
        busy = self._coming is not None
        return not busy and self._replanner.turn(executor.next_step, executor.queued, executor.playing, self._latency_s, self._now)

    @property
    def committed(self) -> Commitment | None:
        """What is left of the plan at the coming look; None at rest and outside mode rtc."""
        if self._before is None:
            return None
        old_first, old = self._before
        return self._replanner.remainder(old, old_first, self._first, self._executor.playing, self._latency_s)

    @property
    def _first(self) -> int:
        """The control step that a chunk begins with that is looked for now: what is seen is this step's beginning."""
        return self._replanner.first(self._executor.next_step, self._executor.playing, 0.0)

    def hear(self, actions: np.ndarray, seen=None) -> None:
        """The chunk (H, 7) that the policy answered to what it saw in this control step (``seen``, as from `view`). Nonsense is not
        played, as on the robot."""
        chunk, number = None, len(self.looks)
        if implausible(actions) is None:
            self._judge(actions, seen)
            count = self._replanner.trim(len(actions), self._latency_s)
            chunk = Chunk(actions[:count], GENERATION, number, self._first, self._executor.rate_hz)
        self._coming = (self.control_steps + self._delay, chunk, actions)
        self.looks.append([self.control_steps, 0, 0])
        if not self._delay:
            self._deliver()
            self._executor.advance(self._now)

    def _judge(self, actions: np.ndarray, seen) -> None:
        """Sets how much of the chunk is executed."""
        limits, scores = self._trust.limits, {}
        if not limits:
            return
        if "tail" in limits and self._before:
            scores["tail"] = disagreement(self._before[1], self._before[0], actions, self._first)
        if "tracking" in limits:
            scores["tracking"] = tracking_error(seen[1])
        if "motion" in limits:
            scores["motion"] = self._scene.look(seen[0], seen[1])
        self._replanner.horizon = self._trust.judge(**scores)

    def _deliver(self) -> None:
        (_, chunk, actions), self._coming = self._coming, None
        if chunk is None:
            self.refused += 1
            return
        self._replanner.sent(chunk.first, len(chunk.positions), self._now, (GENERATION, chunk.chunk_id))
        step = max(chunk.first, self._executor.next_step)  # the first that it plays
        allowed, beyond = self._guard.cut(chunk, self._executor.next_step) if self._cut else (chunk, "")
        try:
            self.looks[chunk.chunk_id][1] = self._executor.accept(allowed)
        except ChunkRefused:  # it came too late: the replanner takes it for lost after a while, as on the robot
            self.refused += 1
            return
        self.chunks_cut += bool(beyond)
        if self._before and step - self._before[0] < len(self._before[1]):
            difference = self._before[1][step - self._before[0]] - actions[step - chunk.first]
            self._seams.append(float(np.abs(difference[:6]).max()))
        self._before = chunk.first, np.asarray(actions)

    @property
    def target(self) -> np.ndarray:
        """What the arm is told for the end of this control step (7,)."""
        target = self._executor.target
        if self._noise:
            target = target + np.append(self._random.normal(0.0, self._noise, 6), 0.0)
        if not self._guard:
            return target
        inside, self.held = self._guard.judge(target)
        if inside and not self.held:
            self._inside = target
        return self._inside

    def judged(self, result):
        """What the environment says of this control step, a failure where the controller would have held the arm."""
        return replace(result, success=False, failure=True) if self.held else result

    def passed(self) -> None:
        """The control step is over."""
        self.control_steps += 1
        if self._executor.playing:
            self.steps += 1
            self.looks[self._executor.chunk_id][2] += 1
        self._now += self._executor.period_s  # the same sum as in the executor: an action ends exactly now

    def result(self, outcome: str, moved_m: float) -> EpisodeResult:
        executor = self._executor
        executor.advance(self._now)
        return EpisodeResult(
            self.start.seed,
            outcome,
            self.steps,
            self.control_steps,
            len(self.looks),
            round(self.control_steps * executor.period_s, 6),
            round(executor.stall_s + executor.dry_for(self._now), 6),
            tuple(tuple(look) for look in self.looks),
            self.refused,
            moved_m,
            self.held,
            round(float(np.mean(self._seams)), 5) if self._seams else None,
            self._trust.cuts,
            self.chunks_cut,
        )


@functools.cache
def _guard() -> SafetyFilter:
    """The controller's limits, for `SafetyFilter.judge` alone."""
    return SafetyFilter(SafetyLimits())


def play(
    envs,
    starts: Iterable[Start],
    look: Look,
    conditions: Conditions = Conditions(),
    *,
    cameras: Sequence[str] = (),
    object_slots: int = 0,
    watch: Callable | None = None,
) -> Iterator[tuple[Start, EpisodeResult]]:
    """Plays every start in one of ``envs`` and yields each as soon as it is over, in the order in which they end.

    ``cameras`` are rendered for a look; ``object_slots`` > 0 adds the true poses of so many objects. ``watch(start, env,
    result)`` is called after every control step (result None: just begun).
    """
    starts = iter(starts)
    lanes = [lane for lane in (_Lane.begin(env, starts, conditions, watch) for env in envs) if lane]
    while lanes:
        waiting = []
        for lane in lanes:
            while lane:
                if lane.player.begin():
                    waiting.append(lane)
                    break
                if lane.step():
                    yield lane.player.start, lane.ended
                    lane = _Lane.begin(lane.env, starts, conditions, watch)
        if waiting:
            views = [view(lane.env, cameras, object_slots) for lane in waiting]
            seen = observation(views, [lane.player.committed for lane in waiting])
            chunks = look(seen, [lane.player.look_seed for lane in waiting])
            for lane, chunk, row in zip(waiting, chunks, views):
                lane.player.hear(chunk, row)
        lanes = []
        for lane in waiting:
            if lane.step():
                yield lane.player.start, lane.ended
                lane = _Lane.begin(lane.env, starts, conditions, watch)
            if lane:
                lanes.append(lane)


class _Lane:
    """An environment and the player of the episode in it."""

    def __init__(self, env, start: Start, conditions: Conditions, watch):
        self.env, self._watch, self._limit, self.ended = env, watch, conditions.limit, None
        if start.state is None:
            env.reset(start.seed, conditions.rebuild)
        else:
            env.restore(start.state, conditions.rebuild)
        self.player = Player(start, env.proprioception()[7:], conditions)
        objects = env.objects()
        self._placed = first_position(objects)
        if conditions.hide_target:
            env.hide(next(iter(objects)))
        if watch:
            watch(start, env, None)

    @classmethod
    def begin(cls, env, starts: Iterator[Start], conditions: Conditions, watch) -> "_Lane | None":
        start = next(starts, None)
        return None if start is None else cls(env, start, conditions, watch)

    def step(self) -> bool:
        """Lets one control step pass; True when the episode has ended (then `ended` holds its result)."""
        result = self.player.judged(self.env.step(self.player.target))
        self.player.passed()
        if outcome := outcome_of(result, self._limit):
            self.ended = self.player.result(outcome, moved(self._placed, first_position(self.env.objects())))
        if self._watch:
            self._watch(self.player.start, self.env, result)
        return bool(outcome)


def play_together(
    vec,
    starts: Iterable[Start],
    look: Look,
    conditions: Conditions = Conditions(),
    *,
    cameras: Sequence[str] = (),
    object_slots: int = 0,
) -> Iterator[tuple[Start, EpisodeResult]]:
    """`play` in a vector environment (`sim_bridge.env.make_vec`): batches of ``vec.num_envs`` starts that begin together.

    A lane whose episode is over keeps still until the last one of its batch is done. All starts of a batch come from
    seeds, or all from states, one for each lane. RolloutError for ``hide_target``, which a shared scene cannot draw.
    """
    if conditions.hide_target:
        raise RolloutError("a vector environment cannot hide the target; play in single environments")
    starts = list(starts)
    for first in range(0, len(starts), vec.num_envs):
        batch = starts[first : first + vec.num_envs]
        yield from _play_batch(vec, batch, look, conditions, cameras, object_slots)


def _play_batch(vec, batch, look, conditions, cameras, object_slots):
    padded = batch + batch[-1:] * (vec.num_envs - len(batch))
    if batch[0].state is None:
        vec.reset([start.seed for start in padded])
    else:
        vec.restore([start.state for start in padded])
    state, placed = vec.proprioception(), _rows(vec.objects(), vec.num_envs)
    players = [Player(start, row[7:], conditions) for start, row in zip(batch, state)]
    targets = np.array(state[:, 7:], dtype=np.float64)
    running = dict(enumerate(players))
    while running:
        waiting = [lane for lane, player in running.items() if player.begin()]
        if waiting:
            images = vec.images(cameras) if cameras else {}
            state = vec.proprioception()
            objects = _rows(vec.objects(), vec.num_envs) if object_slots else None
            views = [
                (
                    {name: pictures[lane] for name, pictures in images.items()},
                    state[lane],
                    vec.instruction,
                    object_poses(objects[lane], object_slots) if object_slots else None,
                )
                for lane in waiting
            ]
            seen = observation(views, [players[lane].committed for lane in waiting])
            chunks = look(seen, [players[lane].look_seed for lane in waiting])
            for lane, chunk, row in zip(waiting, chunks, views):
                players[lane].hear(chunk, row)
        for lane, player in running.items():
            targets[lane] = player.target
        results = vec.step(targets)
        for lane, player in list(running.items()):
            player.passed()
            if outcome := outcome_of(player.judged(results[lane]), conditions.limit):
                end = first_position(_rows(vec.objects(), vec.num_envs)[lane])
                yield player.start, player.result(outcome, moved(first_position(placed[lane]), end))
                del running[lane]


def outcome_of(result, limit: int = 0) -> str:
    """success, failure or truncated (by the task, or after ``limit`` > 0 control steps); empty while the episode goes on."""
    over = result.truncated or 0 < limit <= result.steps
    return "success" if result.success else "failure" if result.failure else "truncated" if over else ""


def view(env, cameras, object_slots: int):
    """What a policy sees in ``env`` now: (images, state, instruction, object poses or None), a row for `observation`."""
    images = env.images(cameras) if cameras else {}
    objects = object_poses(env.objects(), object_slots) if object_slots else None
    return images, env.proprioception(), env.instruction, objects


def observation(views, committed=()) -> Observation:
    """One batch from (images, state, instruction, object poses or None) of each row; ``committed``: a plan or None for each."""
    images, state, instruction, objects = zip(*views)
    return Observation(
        {name: np.stack([row[name] for row in images]) for name in images[0]},
        np.stack(state),
        list(instruction),
        None if objects[0] is None else np.stack(objects),
        list(committed) if any(committed) else None,
    )


def first_position(objects) -> np.ndarray:
    """Position (3,) in m of the first object, the task's target; the origin when there is none."""
    return np.array(next(iter(objects.values()), (0.0,) * 3)[:3], dtype=np.float64)


def moved(before, after) -> float:
    """Distance in m, rounded to 0.1 mm."""
    return round(float(np.linalg.norm(after - before)), 4)


def _rows(stacked, count) -> list[dict]:
    return [{name: poses[row] for name, poses in stacked.items()} for row in range(count)]
