"""When the policy looks again, and how much of its chunk is sent.

The controller counts control steps; this side knows up to which step it has planned. ``sync``: look when everything
planned has been played and the arm rests. ``async``: look while the plan still plays, so early that the new chunk is there
before the old one runs out. ``rtc``: as async; the policy is told what is played meanwhile (core/commitment.py).
"""

from __future__ import annotations

import math

from policytrim_ros.core.commitment import Commitment, remainder

SYNC, ASYNC, RTC = "sync", "async", "rtc"
MODES = SYNC, ASYNC, RTC
LOST_AFTER_S = 0.5
"""A chunk that has not begun to play for so long after it was sent is taken for lost (refused, or a new go)."""


class Replanner:
    """Decides from what was consumed; time is an argument (s)."""

    def __init__(self, mode: str, horizon: int, rate_hz: float):
        if mode not in MODES:
            raise ValueError(f"mode '{mode}': use one of {', '.join(MODES)}")
        self.mode, self.horizon, self.rate_hz = mode, horizon, rate_hz
        self.reset()

    def reset(self) -> None:
        """Forgets the plan: the next turn comes at once."""
        self._planned_until = self._sent = self._sent_at = self.rest_since = None

    def plays(self, chunk: tuple[int, int], next_step: int, queued: int) -> bool:
        """The controller plays ``chunk`` (generation and number), of which ``queued`` actions are left. Of the one that was sent last it may
        have cut the end (core/safety.py): that is where the plan ends then. Whether it does so sooner than was known."""
        if chunk != self._sent:
            return False
        before, self._planned_until = self._planned_until, next_step + queued
        return self._planned_until < before

    def turn(self, next_step: int, queued: int, playing: bool, latency_s: float, now: float) -> bool:
        """Whether to look now. ``latency_s``: how long a chunk takes from look to arrival (a high percentile)."""
        resting = not playing and queued == 0
        if not resting:
            self.rest_since = None
        elif self.rest_since is None:
            self.rest_since = now
        if self._planned_until is not None and resting and self._planned_until > next_step:
            if now - self._sent_at < LOST_AFTER_S:
                return False  # on its way
            self.reset()
            self.rest_since = now
        if self.mode == SYNC:
            return resting
        left = queued if self._planned_until is None else max(queued, self._planned_until - next_step)
        return left <= self.lead(latency_s)

    def predates(self, taken: float) -> bool:
        """Whether a picture ``taken`` then (s) is too old for this look: what follows go, and in sync mode every chunk, rests on
        pictures taken since the arm rests."""
        waits = self.mode == SYNC or self._planned_until is None
        return waits and self.rest_since is not None and taken < self.rest_since

    def until_turn(self, next_step: int, latency_s: float, since_step_s: float) -> float:
        """Seconds until the turn comes while a plan plays, ``since_step_s`` after its last control step began; inf where it does not come
        before the plan is over (sync) or nothing is planned."""
        if self.mode == SYNC or self._planned_until is None:
            return math.inf
        return (self._planned_until - next_step - self.lead(latency_s)) / self.rate_hz - since_step_s

    def may_look(self, due_s: float, early: float) -> bool:
        """Whether a look that is due in ``due_s`` is at most the share ``early`` of h before its time: so many more calls may it cost."""
        return due_s <= early * self.horizon / self.rate_hz

    def first(self, next_step: int, playing: bool, since_step_s: float) -> int:
        """The control step that an observation's first action belongs to, ``since_step_s`` after the last step began.

        A policy learned from observations taken between two steps: its first action ends one step after the observation. That is
        the end of the playing step when it has just begun, of the next one when it is nearly over.
        """
        return next_step - 1 if playing and since_step_s < 0.5 / self.rate_hz else next_step

    def slack(self, next_step: int, latency_s: float) -> float:
        """Seconds for which the plan would still play when a chunk arrived that is looked for now; negative: the arm will wait."""
        left = 0 if self._planned_until is None else max(0, self._planned_until - next_step)
        return left / self.rate_hz - latency_s

    def lead(self, latency_s: float) -> int:
        """Actions that must be left when the policy looks: 0 in sync mode."""
        return 0 if self.mode == SYNC else math.ceil(latency_s * self.rate_hz) + 1

    def committed(self, first: int, playing: bool, latency_s: float) -> int:
        """Actions from control step ``first`` on that are played before a chunk that is looked for now arrives; 0 at rest."""
        left = 0 if self._planned_until is None or not playing else max(0, self._planned_until - first)
        return min(left, self.lead(latency_s))

    def remainder(self, old, old_first: int, first: int, playing: bool, latency_s: float) -> Commitment | None:
        """In mode rtc what is left of ``old`` (n, 7), which begins at control step ``old_first``, for a chunk that begins at ``first``;
        None in other modes, at rest, and when nothing is left."""
        if self.mode != RTC or not playing:
            return None
        return remainder(old, old_first, first, self.committed(first, playing, latency_s))

    def trim(self, predicted: int, latency_s: float) -> int:
        """How many of ``predicted`` actions to send: h, and outside sync mode those that are over or playing on arrival."""
        late = 0 if self.mode == SYNC else self.lead(latency_s) + 1
        return min(predicted, self.horizon + late)

    def sent(self, first: int, count: int, now: float, chunk: tuple[int, int] | None = None) -> None:
        """A chunk of ``count`` actions for control steps ``first``.. was sent; ``chunk``: its generation and number, for `plays`."""
        self._planned_until, self._sent, self._sent_at = first + count, chunk, now
