"""Which checkpoint speaks, which one waits for the next chunk boundary, and which can come back.

A generation is one checkpoint in use. Its number marks every action that it proposes and only ever grows, also when an
earlier checkpoint comes back: the controller refuses what a retired generation sent, however late it arrives.

    stage      loaded, warm and compared with its golden observations: it waits
    switch     at a chunk boundary: it speaks; the one before is kept
    said       one chunk of the one that speaks was sent
    trouble    the arm was held, or a chunk was nonsense or cut: while on probation, the new one is taken back
    roll_back  the one before speaks again
    follow     another process spoke before this one: its numbers are not used again

What a policy is does not matter here; nothing is loaded, and time plays no part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from policytrim_ros.core.latency import Latency


@dataclass(frozen=True)
class Generation:
    """One checkpoint in use: its number, where it came from, the SHA-256 of its weights, and the loaded policy."""

    number: int
    checkpoint: str
    weights_sha256: str
    policy: Any
    proved: bool = True
    """Whether it had proved itself when it last spoke."""
    latency: Latency = field(default_factory=Latency)
    """How long its chunks take; it is known before it speaks, and again when it comes back."""


class NothingToReturnTo(RuntimeError):
    """There is no earlier generation."""


class Generations:
    """``keep``: how many earlier policies stay in memory; ``probation``: chunks until a new one has proved itself."""

    def __init__(self, keep: int = 1, probation: int = 50):
        self.keep, self.probation = keep, probation
        self.current: Generation | None = None
        self.waiting: tuple[str, str, Any, Latency] | None = None
        self.previous: list[Generation] = []  # the newest last
        self.unproved = 0  # chunks that the current one has to send until it has proved itself
        self.good: Generation | None = None  # the last one that had
        self._count = 0

    def stage(self, checkpoint: str, weights_sha256: str, policy, latency: Latency | None = None) -> None:
        """``policy`` takes over at the next `switch`; one that waited already is forgotten."""
        self.waiting = checkpoint, weights_sha256, policy, latency or Latency()

    def switch(self) -> Generation | None:
        """The generation that speaks from now on, or None when none waits."""
        if self.waiting is None:
            return None
        if self.current is not None:
            before = replace(self.current, proved=self.unproved == 0)
            self.previous = [*self.previous, before][-self.keep :] if self.keep else []
        return self._begin(*self.waiting, self.probation if self.current is not None else 0)

    def _begin(self, checkpoint: str, weights_sha256: str, policy, latency: Latency, unproved: int) -> Generation:
        self._count += 1
        self.waiting, self.unproved = None, unproved
        self.current = Generation(self._count, checkpoint, weights_sha256, policy, latency=latency)
        if unproved == 0:
            self.good = self.current
        return self.current

    def follow(self, number: int) -> None:
        """Another process has used numbers up to ``number``: the current generation goes on under the next one."""
        if number > self._count:
            self._count = number + 1
            self.current = replace(self.current, number=self._count)

    def tried(self, wanted: str) -> str:
        """The checkpoint that is being tried: ``wanted`` (which is being loaded), what waits or, on probation, what speaks; '' when none is
        but the last that had proved itself."""
        found = (wanted, self.waiting[0] if self.waiting else "", self.current.checkpoint if self.unproved else "")
        return next((checkpoint for checkpoint in found if checkpoint not in ("", self.good.checkpoint)), "")

    def said(self) -> bool:
        """Counts one chunk of the current generation; True when it has just proved itself."""
        if self.unproved == 0:
            return False
        self.unproved -= 1
        if self.unproved == 0:
            self.good = self.current
        return self.unproved == 0

    def trouble(self) -> Generation | None:
        """The earlier generation, under a new number, when the current one is on probation; else None."""
        return self.roll_back() if self.unproved and self.previous else None

    def roll_back(self) -> Generation:
        """The checkpoint before the current one speaks again, under a new number and, unless it had proved itself, on probation; what
        waited is forgotten."""
        if not self.previous:
            raise NothingToReturnTo("no earlier generation is kept")
        back = self.previous.pop()
        return self._begin(back.checkpoint, back.weights_sha256, back.policy, back.latency, 0 if back.proved else self.probation)
