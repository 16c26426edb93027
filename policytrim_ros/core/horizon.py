"""How far a chunk can be trusted: the old one's tail against the new one's head, and a horizon that is cut when they disagree.

A policy that says at the next look the same about a moment as it said before could have been followed further; one that does
not has met something new, or is out of its depth. `disagreement` is measured at every look, whatever the horizon.
"""

from __future__ import annotations

import numpy as np


def disagreement(old, old_first: int, new, new_first: int) -> float | None:
    """Mean over the control steps that both chunks predict of the largest difference of a joint (rad); None when they share none.

    ``old`` (n, 7) begins at control step ``old_first``, ``new`` (m, 7) at ``new_first``. The gripper does not count.
    """
    ahead = new_first - old_first
    if ahead < 0 or ahead >= len(old):
        return None
    shared = min(len(old) - ahead, len(new))
    difference = np.abs(np.asarray(old)[ahead : ahead + shared, :6] - np.asarray(new)[:shared, :6])
    return float(difference.max(axis=1).mean())


class HorizonGuard:
    """The execution horizon now: ``longest``, halved (not below ``shortest``) for every look whose disagreement exceeds
    ``limit_rad``, doubled again after ``calm`` looks in a row below half of it. ``limit_rad`` 0: always the longest.

    It is asked once a look and holds for the chunk of that look: no chunk is extended or cut while it plays.
    """

    def __init__(self, longest: int, shortest: int = 2, limit_rad: float = 0.0, calm: int = 5):
        self.longest, self.shortest = longest, min(shortest, longest)
        self.limit_rad, self.calm = limit_rad, calm
        self.horizon, self.cuts, self._quiet = longest, 0, 0

    def judge(self, found: float | None) -> int:
        """The horizon of the chunk whose disagreement with the one before is ``found`` (rad; None: unknown)."""
        if not self.limit_rad or found is None:
            return self.horizon
        if found > self.limit_rad:
            self._quiet = 0
            if self.horizon > self.shortest:
                self.horizon, self.cuts = max(self.shortest, self.horizon // 2), self.cuts + 1
        else:
            self._quiet = self._quiet + 1 if found < 0.5 * self.limit_rad else 0
            if self._quiet >= self.calm and self.horizon < self.longest:
                self.horizon, self._quiet = min(self.longest, 2 * self.horizon), 0
        return self.horizon
