"""How long a policy takes for a chunk, whether the plan lasts so long, and when a policy that waits may look for the first time.

Time is an argument (s); nothing here measures it.
"""

from __future__ import annotations

import collections

import numpy as np

WINDOW = 200
ENOUGH = 20
"""Chunks of its own after which what a policy was expected to take counts no more."""

RARE = 1.5
"""A chunk that takes longer than RARE times the 90th percentile is a rare hiccup of the machine."""

UNKNOWN_S = 0.1
"""What a policy is taken to need of which nothing is known."""


class Latency:
    """Seconds from a look to its chunk, of one policy: the newest WINDOW of them, and ``expected`` ones, measured before it
    spoke, until there are ENOUGH."""

    def __init__(self, expected=()):
        self._expected = tuple(float(seconds) for seconds in expected)
        self._measured: collections.deque = collections.deque(maxlen=WINDOW)
        self._percentiles: dict[float, float] = {}  # they are asked for at every turn

    def add(self, seconds: float) -> None:
        self._measured.append(seconds)
        self._percentiles.clear()

    def percentile(self, q: float) -> float:
        """The ``q``-th percentile (s); UNKNOWN_S when nothing is known."""
        if q not in self._percentiles:
            known = [*self._measured, *(self._expected if len(self._measured) < ENOUGH else ())]
            self._percentiles[q] = float(np.percentile(known, q)) if known else UNKNOWN_S
        return self._percentiles[q]

    @property
    def p99(self) -> float:
        return self.percentile(99)

    @property
    def planned(self) -> float:
        """For how long plans are made (s): the 99th percentile, but not for rare hiccups. One of those slows the arm when it comes
        (core/executor.py); planned for, it would cost actions of every chunk until it leaves the window: a few in 200 chunks made a
        policy of h = 15 look again after 5."""
        return min(self.p99, RARE * self.percentile(90))


def still_takes(planned_s: float, running_s: float | None, period_s: float) -> float:
    """Seconds until a chunk is there whose prediction has run for ``running_s`` (None: it has not begun).

    What is overdue may take as long again as it is late, and one control step (``period_s``) more.
    """
    if running_s is None:
        return planned_s
    late = running_s - planned_s
    return late + period_s if late > 0 else -late


class Handover:
    """When a policy that waits takes over while the plan plays: at a look that leaves it time enough, whatever it takes itself.

    Where the plan is too short for it, the one that speaks looks once more, for a longer plan (`Replanner.trim` with the latency of
    the one that waits); after that look it takes over in any case.
    """

    def __init__(self):
        self._stretched = False

    def takes_over(self, slack_s: float) -> bool:
        """Whether the one that waits looks now; ``slack_s``: how long the plan still plays when its chunk arrives."""
        self._stretched = slack_s < 0 and not self._stretched
        return not self._stretched
