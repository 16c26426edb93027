"""The chunk executor: which action is playing now, and where on the way to it the arm should be.

Control steps are counted from the executor's birth and never reused. ``queue[i]`` is the action of control step
``next_step + i``. A chunk says which step its first action belongs to (``Chunk.first``); what lies in the past is skipped,
what lies in the future replaces the queue. Who takes the observation therefore aligns a chunk by what was really consumed,
never by an estimated latency. Between two actions the path is a straight line in joint space.

    inference --chunk--> accept() ... tick(now) -> PathPoint --> safety filter --> arm

Time is an argument: on the robot it is the monotonic clock, in evaluation a virtual one. Along the path a clock of its own
runs, at ``speed_scale`` of that time, so that the speed changes and the path does not. When only the last SLOWED_ACTIONS are left
and the chunk that was to follow (``Chunk.follows``) is not there, the path clock slows evenly to rest at their end: they take
twice as long, and the arm need not brake hard. A chunk that comes meanwhile is played at the full rate at once.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS, SAME_RATE_HZ, Chunk, frozen

SCALE_CHANGE = 0.1
"""So much the speed scale changes at most from one action to the next."""

SLOWED_ACTIONS = 2
"""Actions before the end of a chunk whose successor is late over which the path clock slows to rest.

As many as are left when a chunk takes as long as it is planned for (core/latency.py), so that one in time slows next to nothing.
"""

FULL = 1.0, 1.0
"""Rates of the path clock at both ends of an action that is not slowed."""


class ChunkRefused(ValueError):
    """A chunk cannot be played; the message says why."""


@dataclass(frozen=True)
class PathPoint:
    """Where the path is now: position (7,), velocity (7,), and which action it belongs to."""

    position: np.ndarray
    velocity: np.ndarray
    playing: bool
    generation: int
    chunk_id: int
    next_step: int
    queued: int


class ChunkExecutor:
    """Plays chunks at ``rate_hz`` control steps a second, times ``speed_scale``, which may change while they play.

    stalls, stall_s: how often and for how long the path rested for a late chunk; slowed_s: what slowing before that cost besides.
    """

    def __init__(self, rate_hz: float = CONTROL_RATE_HZ, speed_scale: float = 1.0):
        if rate_hz <= 0:
            raise ValueError(f"rate {rate_hz} Hz must be positive")
        self.rate_hz = rate_hz
        self.speed_scale = speed_scale
        self.next_step = 0
        self.generation = 0  # of the action that plays
        self.newest = 0  # highest generation of which a chunk was accepted
        self.chunk_id = 0
        self.stalls = 0
        self.stall_s = self.slowed_s = 0.0
        self._queue: deque[tuple[np.ndarray, int, int]] = deque()
        self._follows = False  # whether a chunk was to come before the queue's end
        self._from = self._to = self._velocity = None  # velocity: of the playing step at the full rate of the path clock
        self._began = None  # time at which the playing step began; None while the path rests
        self._ends = 0.0  # and at which it is over
        self._rates = FULL  # of the path clock at both ends of the playing step; it changes evenly between
        self._renewed = False  # whether a chunk came since
        self._scale = speed_scale  # of the playing step, on its way to speed_scale
        self._dry_since = None  # time at which the queue ran dry while playing

    @property
    def speed_scale(self) -> float:
        """In (0, 1]. A change begins with the next action, by at most SCALE_CHANGE with each."""
        return self._speed_scale

    @speed_scale.setter
    def speed_scale(self, value: float) -> None:
        if not 0 < value <= 1:
            raise ValueError(f"speed scale {value} must be in (0, 1]")
        self._speed_scale = value

    @property
    def period_s(self) -> float:
        """Seconds that an action takes at ``speed_scale``."""
        return 1.0 / (self.rate_hz * self._speed_scale)

    def start(self, position, now: float) -> None:
        """Puts the path at ``position`` (7,), at rest, with an empty queue. Counting goes on; the stall clock does not.

        What was retired stays so. ``generation`` is the newest one from here on, also if the path was stopped before it began to play.
        """
        self.generation = self.newest
        self._from = self._to = frozen(position, (len(JOINTS),))
        self._queue.clear()
        self._began = self._dry_since = None
        self._scale, self._rates, self._renewed = self.speed_scale, FULL, False

    def stop(self) -> None:
        """Forgets everything that has not begun; the playing step is cut off. ``start`` begins anew."""
        self._queue.clear()
        self._from = self._to = self._began = self._dry_since = None

    @property
    def running(self) -> bool:
        """Whether ``start`` was called since the last ``stop``."""
        return self._to is not None

    @property
    def playing(self) -> bool:
        """Whether an action is being played now."""
        return self._began is not None

    @property
    def queued(self) -> int:
        """Actions that have not begun."""
        return len(self._queue)

    @property
    def target(self) -> np.ndarray:
        """Where the playing action leads (7,); at rest, where the path rests. ChunkRefused before `start`."""
        if not self.running:
            raise ChunkRefused("nothing is being executed")
        return self._to

    def dry_for(self, now: float) -> float:
        """Seconds since the queue ran dry in the middle of playing; 0 while actions play or before the first chunk."""
        return 0.0 if self._dry_since is None else now - self._dry_since

    def accept(self, chunk: Chunk) -> int:
        """Takes ``chunk`` over the queue and returns how many of its actions lay in the past and were skipped.

        Raises ChunkRefused when the executor rests, a newer generation's chunk was accepted before, all actions lie in the past, the
        control rate differs, or a step between the queue's end and the chunk's beginning would have no action.
        """
        if not self.running:
            raise ChunkRefused(f"chunk {chunk.chunk_id} refused: nothing is being executed")
        if chunk.generation < self.newest:
            raise ChunkRefused(f"chunk {chunk.chunk_id} refused: generation {chunk.generation} is retired, {self.newest} runs")
        if abs(chunk.rate_hz - self.rate_hz) > SAME_RATE_HZ:
            raise ChunkRefused(f"chunk {chunk.chunk_id} refused: {chunk.rate_hz} actions/s, the executor plays {self.rate_hz}")
        skipped = max(0, self.next_step - chunk.first)
        if skipped >= len(chunk.positions):
            raise ChunkRefused(
                f"chunk {chunk.chunk_id} refused: all {len(chunk.positions)} actions lie in the past "
                f"(first {chunk.first}, next control step {self.next_step})"
            )
        keep = max(0, chunk.first - self.next_step)
        if keep > len(self._queue):
            raise ChunkRefused(
                f"chunk {chunk.chunk_id} refused: it begins at control step {chunk.first}, "
                f"{keep - len(self._queue)} steps after the end of the queue"
            )
        while len(self._queue) > keep:
            self._queue.pop()
        self._queue.extend((action, chunk.generation, chunk.chunk_id) for action in chunk.positions[skipped:])
        self.newest, self._follows, self._renewed = chunk.generation, chunk.follows, True
        return skipped

    def tick(self, now: float) -> PathPoint:
        """Advances to time ``now`` (s, must not go backwards) and returns the point of the path."""
        self.advance(now)
        return self._point(now)

    def advance(self, now: float) -> None:
        """`tick` for who asks only for `target`, not for the point of the path."""
        if not self.running:
            raise ChunkRefused("nothing is being executed")
        while self._began is not None and now >= self._ends:
            self._from = self._to
            if self._queue:
                self._begin(self._ends)
            else:
                self._began, self._dry_since = None, self._ends
        if self._began is None and self._queue:
            if self._dry_since is not None:
                self.stalls += 1
                self.stall_s += now - self._dry_since
            self._begin(now)
        elif self._renewed and self.playing and self._rates != FULL:
            self._speed_up(now)
        self._renewed = False

    def _begin(self, at: float) -> None:
        self._to, self.generation, self.chunk_id = self._queue.popleft()
        self._scale += min(max(self.speed_scale - self._scale, -SCALE_CHANGE), SCALE_CHANGE)
        period = 1.0 / (self.rate_hz * self._scale)
        self._velocity = (self._to - self._from) / period
        self._rates = self._next_rates()
        self._began, self._ends = at, at + period / (sum(self._rates) / 2)
        if self._rates != FULL:
            self.slowed_s += self._ends - at - period
        self._dry_since, self._renewed = None, False
        self.next_step += 1

    def _next_rates(self) -> tuple[float, float]:
        """For the action that begins: with an even deceleration the square of the rate falls in proportion to the way left."""
        left = len(self._queue) + 1
        if not self._follows or left > SLOWED_ACTIONS:
            return FULL
        rate = 1.0 if self._renewed else self._rates[1]
        return rate, rate * math.sqrt(1.0 - 1.0 / left)

    def _speed_up(self, now: float) -> None:
        """A chunk has come: from here to the end of the playing action at the full rate."""
        clock, _ = self._path_clock(now)
        ends = now + (self._ends - self._began) * sum(self._rates) / 2 - clock
        self.slowed_s -= self._ends - ends
        self._from = self._from + clock * self._velocity
        self._began, self._ends, self._rates = now, ends, FULL

    def _path_clock(self, now: float) -> tuple[float, float]:
        """Seconds of the path clock since the playing step began, and its rate."""
        passed, (begin, end) = now - self._began, self._rates
        if self._rates == FULL:
            return passed, 1.0
        change = (end - begin) * passed / (self._ends - self._began)
        return passed * (begin + change / 2), begin + change

    def _point(self, now: float) -> PathPoint:
        if self._began is None:
            position, velocity = self._to, np.zeros(len(JOINTS))
        else:
            clock, rate = self._path_clock(now)
            position, velocity = self._from + clock * self._velocity, rate * self._velocity
        return PathPoint(
            position, velocity, self._began is not None, self.generation, self.chunk_id, self.next_step, len(self._queue)
        )
