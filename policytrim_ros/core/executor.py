"""The chunk executor: which action is playing now, and where on the way to it the arm should be.

Control steps are counted from the executor's birth and never reused. ``queue[i]`` is the action of control step
``next_step + i``. A chunk says which step its first action belongs to (``Chunk.first``); what lies in the past is skipped,
what lies in the future replaces the queue. Who takes the observation therefore aligns a chunk by what was really consumed,
never by an estimated latency. Between two actions the path is a straight line in joint space.

    inference --chunk--> accept() ... tick(now) -> PathPoint --> safety filter --> arm

Time is an argument: on the robot it is the monotonic clock, in evaluation a virtual one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS, Chunk, frozen


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
    """Plays chunks at ``rate_hz`` control steps a second, times ``speed_scale``."""

    def __init__(self, rate_hz: float = CONTROL_RATE_HZ, speed_scale: float = 1.0):
        if rate_hz <= 0 or not 0 < speed_scale <= 1:
            raise ValueError(f"rate {rate_hz} Hz must be positive, speed scale {speed_scale} in (0, 1]")
        self.period_s = 1.0 / (rate_hz * speed_scale)
        self.rate_hz = rate_hz
        self.next_step = 0
        self.generation = 0
        self.chunk_id = 0
        self.stalls = 0
        self.stall_s = 0.0
        self._queue: deque[tuple[np.ndarray, int, int]] = deque()
        self._from = self._to = None
        self._began = None  # time at which the playing step began; None while the path rests
        self._dry_since = None  # time at which the queue ran dry while playing

    def start(self, position, now: float) -> None:
        """Puts the path at ``position`` (7,), at rest, with an empty queue. Counting goes on; the stall clock does not."""
        self._from = self._to = frozen(position, (len(JOINTS),))
        self._queue.clear()
        self._began = self._dry_since = None

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

        Raises ChunkRefused when the executor rests, the generation is retired, all actions lie in the past, the
        control rate differs, or a step between the queue's end and the chunk's beginning would have no action.
        """
        if not self.running:
            raise ChunkRefused(f"chunk {chunk.chunk_id} refused: nothing is being executed")
        if chunk.generation < self.generation:
            raise ChunkRefused(
                f"chunk {chunk.chunk_id} refused: generation {chunk.generation} is retired, {self.generation} runs"
            )
        if chunk.rate_hz != self.rate_hz:
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
        return skipped

    def tick(self, now: float) -> PathPoint:
        """Advances to time ``now`` (s, must not go backwards) and returns the point of the path."""
        self.advance(now)
        return self._point(now)

    def advance(self, now: float) -> None:
        """`tick` for who asks only for `target`, not for the point of the path."""
        if not self.running:
            raise ChunkRefused("nothing is being executed")
        while self._began is not None and now >= self._began + self.period_s:
            ended = self._began + self.period_s
            self._from = self._to
            if self._queue:
                self._begin(ended)
            else:
                self._began, self._dry_since = None, ended
        if self._began is None and self._queue:
            if self._dry_since is not None:
                self.stalls += 1
                self.stall_s += now - self._dry_since
            self._begin(now)

    def _begin(self, at: float) -> None:
        self._to, generation, self.chunk_id = self._queue.popleft()
        self.generation = max(self.generation, generation)
        self._began, self._dry_since = at, None
        self.next_step += 1

    def _point(self, now: float) -> PathPoint:
        if self._began is None:
            position, velocity = self._to, np.zeros(len(JOINTS))
        else:
            way = (now - self._began) / self.period_s
            position = self._from + way * (self._to - self._from)
            velocity = (self._to - self._from) / self.period_s
        return PathPoint(
            position, velocity, self._began is not None, self.generation, self.chunk_id, self.next_step, len(self._queue)
        )
