"""Demonstrations from the running robot: control steps, chunks and pictures become a `Recording`. No ROS, no clock, no files.

    scene/state          running ........................... done(success)
    controller/consumed        step 210 begins, 211, 212 ...          -> a row each: what arm and cameras showed at that moment
    chunk                      first=205, first=220 ...               -> the row's action: positions[step - first]

The action of a row is the target that the executor was asked to reach by the end of that control step, before any limit: the
very number that a policy has to predict. The setpoint at the end of the step is what the safety filter made of it; it is in
the state of the next row. Rests between two chunks (mode sync) have no control steps and so no rows. The true poses of the
objects are not known on a robot and are left out.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Callable, Mapping

import numpy as np

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.contract import implausible
from policytrim_ros.core.types import CONTROL_RATE_HZ, Chunk
from policytrim_ros.policies.objects import OBJECT_SLOTS
from policytrim_ros.policies.pictures import resize_image
from policytrim_ros.training.demos import TAIL_STEPS, Recording

CHUNKS_KEPT = 2000
PICTURES_KEPT = 150
"""Of each camera, at their final size: five seconds."""

STATES_KEPT = 1000
"""Joint states: five seconds."""

PERIOD_TOLERANCE = 0.2
LATE_STEPS = 3
"""A count that goes back by so little is old news, by more it is a controller that has started again."""

SETTLE_S = 0.15
"""After this long, what the arm and the cameras showed at a moment has arrived."""

TAIL_S = 1.5
"""The tail is not waited for longer than this."""

MAX_STEPS = 6000
"""Five minutes: pictures of an attempt wait in memory until it has ended."""


@dataclass(frozen=True)
class RecordConfig(Config):
    """What `policytrim demos record` writes, and where."""

    out: str = option("data/recorded", "directory of the dataset; one that is there already is added to")
    episodes: int = option(0, "ends after so many kept episodes; 0: after Ctrl-C", low=0, high=100_000)
    cameras: list = option(["front", "wrist"], "cameras whose pictures are recorded; every one must deliver")
    width: int = option(128, "width of the stored pictures: what the policy eats", low=16, high=1920, unit="px")
    height: int = option(72, "height of the stored pictures", low=16, high=1080, unit="px")
    every: int = option(2, "control steps from one stored picture to the next", low=1, high=5)
    style: str = option("", "name of who demonstrates; empty: the checkpoint that inference/status names")
    keep_failures: bool = option(False, "write episodes that ended in failure, too; training does not use them")
    startup_s: float = option(15.0, "how long to wait for cameras, controller and scene", low=1.0, high=600.0, unit="s")
    stale_after_s: float = option(
        0.5, "an attempt with an older picture or joint state is not kept", low=0.05, high=5.0, unit="s"
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.cameras or len(set(self.cameras)) != len(self.cameras):
            raise ConfigError(f"RecordConfig.cameras = {self.cameras}: name every camera once, and at least one")
        if not self.out:
            raise ConfigError("RecordConfig.out: give the directory of the dataset")

    @property
    def pictures(self) -> dict:
        """How the pictures are made, for the dataset's header."""
        return {"cameras": list(self.cameras), "width": self.width, "height": self.height, "every": self.every}


@dataclass(frozen=True)
class Look:
    """The robot at one moment: state (14,) measured | setpoint, pictures at their final size, age of the oldest of it."""

    state: np.ndarray
    pictures: Mapping[str, np.ndarray]
    age_s: float


class Sight:
    """The newest of what arm and cameras showed, by the stamps of who showed it: fed as it comes, asked later.

    ``measured`` and ``setpoint``: (7,) rad, m; ``picture``: (h, w, 3) uint8 RGB of any size, kept at the dataset's.
    """

    def __init__(self, config: RecordConfig):
        self._size = config.width, config.height
        self._states = {name: collections.deque(maxlen=STATES_KEPT) for name in ("measured", "setpoint")}
        self._pictures = {camera: collections.deque(maxlen=PICTURES_KEPT) for camera in config.cameras}
        self.sizes: dict[str, list[int]] = {}  # camera -> width, height of what it sends

    def state(self, name: str, stamp: float, position: np.ndarray) -> None:
        """``name``: measured or setpoint."""
        self._states[name].append((stamp, position))

    def picture(self, camera: str, stamp: float, picture: np.ndarray) -> None:
        """ValueError when the picture is smaller than what is to be stored."""
        height, width = picture.shape[:2]
        if width < self._size[0] or height < self._size[1]:
            raise ValueError(
                f"camera '{camera}' sends {width}x{height}, smaller than the {self._size[0]}x{self._size[1]} to be stored; "
                "give smaller width and height"
            )
        self._pictures[camera].append((stamp, resize_image(picture, *self._size)))
        self.sizes[camera] = [width, height]

    def missing(self) -> list[str]:
        """Names of cameras, then measured and setpoint, of which nothing has been seen."""
        return [name for name, kept in (*self._pictures.items(), *self._states.items()) if not kept]

    def look(self, at: float) -> Look | None:
        """The newest of everything that was taken by then; None when something is missing."""
        found = [newest(kept, at) for kept in (*self._states.values(), *self._pictures.values())]
        if any(entry is None for entry in found):
            return None
        state = np.concatenate([position for _, position in found[:2]])
        pictures = {camera: picture for camera, (_, picture) in zip(self._pictures, found[2:])}
        return Look(state, pictures, at - min(stamp for stamp, _ in found))


def newest(kept, at: float):
    """The last (stamp, value) that is not younger than ``at``, or None."""
    return next((entry for entry in reversed(kept) if entry[0] <= at), None)


def episode_facts(facts: dict, *, checkpoint: str, style: str, source: str, when: datetime, sizes: dict) -> dict:
    """What the dataset notes of an attempt whose `Recorder` says ``facts``; ``when`` makes its name."""
    style = style or Path(checkpoint).name.removeprefix("demonstrator:") or "unknown"
    return {
        "name": f"{facts['task']}-{facts['setting']}-{style}-{when:%Y%m%d-%H%M%S-%f}",
        **facts,
        "style": style,
        "source": source,
        "checkpoint": checkpoint,
        "recorded_at": when.isoformat(timespec="seconds"),
        "camera_sizes": dict(sorted(sizes.items())),
    }


@dataclass(frozen=True)
class Step:
    """The beginning of a control step: its number, the chunk whose action plays, and when."""

    number: int
    generation: int
    chunk_id: int
    at: float


@dataclass
class Take:
    """One attempt, growing."""

    scene: dict
    steps: list[Step] = field(default_factory=list)  # those whose look has been taken
    states: list[np.ndarray] = field(default_factory=list)
    pictures: list[dict[str, np.ndarray]] = field(default_factory=list)
    picture_steps: list[int] = field(default_factory=list)
    ended: float | None = None  # when the outcome was known
    outcome: str = "none"
    reason: str = ""
    problem: str = ""  # why it cannot be kept


class Recorder:
    """Follows scene, controller and chunks, and hands out each attempt when its tail has been played.

    ``look(at)``: the robot at that moment, asked for SETTLE_S later, when everything that was seen by then has arrived.
    ``finished(recording or None, facts)``: None when nothing can be kept; facts["reason"] says why. All times are those of
    the senders, in seconds of one clock; the order in which different topics arrive does not matter within SETTLE_S.
    """

    def __init__(
        self,
        config: RecordConfig,
        look: Callable[[float], Look | None],
        finished: Callable[[Recording | None, dict], None],
    ):
        self.config, self._look, self._finished = config, look, finished
        self._take: Take | None = None
        self._pending: collections.deque[Step] = collections.deque()
        self._phase, self._next_step = "", None
        self._chunks: collections.OrderedDict[tuple[int, int], Chunk] = collections.OrderedDict()

    @property
    def recording(self) -> bool:
        """Whether an attempt is going on."""
        return self._take is not None

    def on_chunk(self, chunk: Chunk) -> None:
        """Every chunk is remembered for a while: what is played of it is known later."""
        self._chunks[chunk.generation, chunk.chunk_id] = chunk
        while len(self._chunks) > CHUNKS_KEPT:
            self._chunks.popitem(last=False)

    def on_scene(self, scene: dict, at: float) -> None:
        """scene/state: an attempt begins with phase running and gets its outcome with phase done."""
        phase, before = scene.get("phase", ""), self._phase
        self._phase = phase
        take = self._take
        if take is not None and (phase == "ready" or scene.get("scene_id") != take.scene.get("scene_id")):
            if take.ended is None:
                take.problem = take.problem or "the scene was laid anew before there was an outcome"
            self._end()
        if phase == "running" and before not in ("", "running") and self._take is None:  # else its beginning was not seen
            self._take = Take(scene)
            self._pending.clear()
        if phase == "done" and self._take is not None and self._take.ended is None:
            self._take.ended, self._take.outcome = at, scene.get("outcome") or "none"
            self._take.reason = scene.get("reason") or ""

    def on_controller(self, state: str) -> None:
        """controller/state: an attempt in which the arm was held or failed is no demonstration; after the outcome it ends it."""
        take = self._take
        if take is None or state.startswith("moving"):
            return
        if take.ended is not None:
            self._end()
        elif take.steps or self._pending:
            take.problem = take.problem or f"the arm was stopped in the middle ({state})"

    def on_consumed(self, consumed, at: float) -> None:
        """controller/consumed: a row begins when the count of control steps goes up while an action plays."""
        if self._next_step is not None and 0 < self._next_step - consumed.next_step <= LATE_STEPS:
            return  # two threads of the controller say it: what one of them saw earlier can come later
        before, self._next_step = self._next_step, consumed.next_step
        take = self._take
        if take is None or before is None or consumed.next_step == before or not consumed.playing:
            return
        step = Step(consumed.next_step - 1, consumed.generation, consumed.chunk_id, at)
        last = self._pending[-1] if self._pending else take.steps[-1] if take.steps else None
        if last is not None and step.number != last.number + 1:
            take.problem = take.problem or f"{step.number - last.number - 1} control steps were missed; is the machine too busy?"
        self._pending.append(step)

    def advance(self, now: float) -> None:
        """Takes the looks that are due; call it many times a second."""
        while self._take is not None and self._pending and now - self._pending[0].at > SETTLE_S:
            self._see(self._take, self._pending.popleft())
        take = self._take
        if (
            take is not None
            and take.ended is not None
            and (len(take.steps) >= self._until(take) + TAIL_STEPS or now - take.ended > TAIL_S)
        ):
            self._end()

    def close(self) -> None:
        """The program ends: what has an outcome is kept, what has none is not."""
        if self._take is not None:
            if self._take.ended is None:
                self._take.problem = self._take.problem or "recording ended before there was an outcome"
            self._end()

    @staticmethod
    def _until(take: Take) -> int:
        """Steps that began before the outcome."""
        return len(take.steps) if take.ended is None else sum(step.at <= take.ended for step in take.steps)

    def _see(self, take: Take, step: Step) -> None:
        if len(take.steps) >= MAX_STEPS:
            take.problem = take.problem or f"it is longer than {MAX_STEPS} control steps"
        if take.problem:
            return
        seen = self._look(step.at)
        if seen is None:
            take.problem = "what was seen at a control step came too late; is the machine too busy?"
            return
        if seen.age_s > self.config.stale_after_s:
            take.problem = f"a camera or the arm was silent for {seen.age_s:.1f} s"
            return
        if len(take.steps) % self.config.every == 0:
            take.picture_steps.append(len(take.steps))
            take.pictures.append({name: seen.pictures[name] for name in self.config.cameras})
        take.steps.append(step)
        take.states.append(seen.state)

    def _end(self) -> None:
        take, self._take = self._take, None
        while self._pending:
            self._see(take, self._pending.popleft())
        steps = self._until(take)
        period_s = float(np.median(np.diff([step.at for step in take.steps]))) if len(take.steps) > 1 else 0.0
        facts = {
            **{name: take.scene.get(name) for name in ("task", "setting", "seed", "instruction")},
            "start": "ready",
            "outcome": take.outcome,
            "steps": steps,
            "seconds_per_step": round(period_s, 4),
        }
        recording, problem = None, take.problem or self._doubt(take, steps, period_s)
        if not problem:
            recording, problem = self._recording(take, steps)
        if problem:
            facts = {**facts, "outcome": "not kept" if take.outcome == "success" else take.outcome, "reason": problem}
        self._finished(None if problem else recording, facts)

    def _doubt(self, take: Take, steps: int, period_s: float) -> str:
        if take.outcome != "success" and not (take.outcome == "failure" and self.config.keep_failures):
            return take.reason or f"outcome: {take.outcome}"
        if steps == 0:
            return "no control step was played before the outcome"
        expected = 1.0 / CONTROL_RATE_HZ
        if steps > 1 and abs(period_s / expected - 1) > PERIOD_TOLERANCE:
            return f"a control step took {period_s * 1000:.0f} ms instead of {expected * 1000:.0f}; record with speed_scale 1"
        return ""

    def _recording(self, take: Take, steps: int) -> tuple[Recording | None, str]:
        """(recording, '') or (None, why there is none)."""
        actions = []
        for step in take.steps:
            chunk = self._chunks.get((step.generation, step.chunk_id))
            if chunk is None or not 0 <= step.number - chunk.first < len(chunk.positions):
                return None, f"chunk {step.chunk_id}, played at control step {step.number}, was not received"
            actions.append(chunk.positions[step.number - chunk.first])
        recording = Recording(
            take.scene["instruction"],
            {name: np.stack([pictures[name] for pictures in take.pictures]) for name in self.config.cameras},
            np.array(take.picture_steps, np.int32),
            np.array(take.states, np.float32),
            np.array(actions, np.float32),
            np.full((len(take.steps), OBJECT_SLOTS, 7), np.nan, np.float32),
            steps,
            take.outcome == "success",
        )
        doubts = [implausible(values) for values in (recording.actions, recording.state[:, :7], recording.state[:, 7:])]
        return recording, next((doubt for doubt in doubts if doubt), "")
