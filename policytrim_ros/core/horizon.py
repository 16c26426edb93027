"""How far a chunk can be trusted, and a horizon that is cut when something says that it cannot.

A policy that says at the next look the same about a moment as it said before could have been followed further; one that does
not has met something new, or is out of its depth. `disagreement` is measured at every look, whatever the horizon. The arm
may not be where it should be (`tracking_error`), the scene may move by itself (`SceneChange`), and several samples of one
look may differ (`spread`).
"""

from __future__ import annotations

import collections
from typing import Mapping

import numpy as np

UNITS = {"tail": "rad", "tracking": "rad", "motion": "", "spread": "rad"}
"""What can cut the horizon: the tail of the chunk before against the new head, setpoint against arm, what moves in the scene, sample
against sample."""


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


def tracking_error(state) -> float:
    """Largest distance (rad) of a joint from its setpoint; ``state`` (14,): measured positions, then setpoints."""
    return float(np.abs(np.asarray(state)[:6] - np.asarray(state)[7:13]).max())


def spread(samples, last: int) -> float | None:
    """Largest standard deviation of a joint (rad) over ``samples`` (k, H, 7) of one look, at action ``last``; None for fewer than two."""
    return float(np.asarray(samples)[:, last, :6].std(axis=0).max()) if len(samples) > 1 else None


class SceneChange:
    """How much changes between two looks that the arm's own motion does not explain: a share of the picture, 0 to 1.

    Every picture is averaged over cells of CELL x CELL pixels (green alone). A cell has changed when its brightness differs by more
    than NOISE from the look before. The share of changed cells grows with the way of the fastest joint; the median of share by
    way over the last REMEMBERED looks says how much of it the arm explains, and what is beyond that is the answer, of the
    camera that sees most. Lamps that flicker and a camera that is knocked count like an object that is pushed.
    """

    CELL, NOISE, REMEMBERED, ENOUGH = 8, 12.0, 20, 3

    def __init__(self):
        self._before: dict[str, np.ndarray] = {}
        self._joints = None
        self._ratios: dict[str, collections.deque] = {}

    def look(self, pictures: Mapping[str, np.ndarray], joints) -> float | None:
        """``pictures``: name -> (h, w, 3) uint8; ``joints``: positions (rad), the first six count. None until ENOUGH looks are known."""
        joints, before = np.asarray(joints, dtype=float)[:6], self._joints
        self._joints = joints
        way = 0.0 if before is None else float(np.abs(joints - before).max())
        found = [self._one(name, self._cells(picture), way) for name, picture in pictures.items()]
        known = [share for share in found if share is not None]
        return max(known) if known else None

    def _one(self, name: str, cells: np.ndarray, way: float) -> float | None:
        old, self._before[name] = self._before.get(name), cells
        if old is None or old.shape != cells.shape:
            return None
        share, ratios = float((np.abs(cells - old) > self.NOISE).mean()), self._ratios
        known = ratios.setdefault(name, collections.deque(maxlen=self.REMEMBERED))
        explained = float(np.median(known)) * way if len(known) >= self.ENOUGH else None
        if way > 0.005:  # of an arm at rest nothing can be learned
            known.append(share / way)
        return None if explained is None else max(0.0, share - explained)

    def _cells(self, picture: np.ndarray) -> np.ndarray:
        size = self.CELL
        high, wide = picture.shape[0] // size, picture.shape[1] // size
        return picture[: high * size, : wide * size, 1].reshape(high, size, wide, size).mean(axis=(1, 3), dtype=np.float32)


class HorizonGuard:
    """The execution horizon now: ``longest``, halved (not below ``shortest``) for every look of which one score exceeds its limit,
    doubled again after ``calm`` looks in a row of which all are below half of it.

    ``limits``: score (UNITS) -> limit; 0 or absent: it does not count. It is asked once a look and holds for the chunk of that
    look: no chunk is extended or cut while it plays. ``because``: which score cut last, and '' at the longest horizon.
    """

    def __init__(self, longest: int, shortest: int = 2, limits: Mapping[str, float] | None = None, calm: int = 5):
        unknown = set(limits or ()) - set(UNITS)
        if unknown:
            raise ValueError(f"no score is called {', '.join(sorted(unknown))}: use {', '.join(UNITS)}")
        self.longest, self.shortest, self.calm = longest, min(shortest, longest), calm
        self.limits = {name: limit for name, limit in (limits or {}).items() if limit > 0}
        self.horizon, self.cuts, self.because, self._quiet = longest, 0, "", 0

    def judge(self, **scores: float | None) -> int:
        """The horizon of the chunk of a look with these ``scores`` (None: unknown)."""
        known = {name: scores[name] for name in self.limits if scores.get(name) is not None}
        if not known:
            return self.horizon
        beyond = [name for name, score in known.items() if not score <= self.limits[name]]
        if beyond:
            self._quiet = 0
            if self.horizon > self.shortest:
                self.horizon, self.cuts = max(self.shortest, self.horizon // 2), self.cuts + 1
                self.because = ", ".join(self._words(name, known[name]) for name in beyond)
            return self.horizon
        calm = all(score < 0.5 * self.limits[name] for name, score in known.items())
        self._quiet = self._quiet + 1 if calm else 0
        if self._quiet >= self.calm and self.horizon < self.longest:
            self.horizon, self._quiet = min(self.longest, 2 * self.horizon), 0
            self.because = self.because if self.horizon < self.longest else ""
        return self.horizon

    def _words(self, name: str, score: float) -> str:
        return f"{name} {score:.3f} > {self.limits[name]:g} {UNITS[name]}".strip()
