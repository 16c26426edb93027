"""When pictures come, and whether a look is better now than a little later.

A policy sees the newest picture of every camera; the oldest of these is the age of what it sees. That age is least in the moment
in which a picture comes, and grows from then on: so a look that is due soon is made with the pictures that are there, where the next
ones would come too late for it. Time is an argument (s, one clock); nothing here measures it.
"""

from __future__ import annotations

import collections

import numpy as np

WINDOW = 150

LATE = 90
"""Percentile of the seconds between two pictures of a camera at which the next one is counted on."""

MARGIN = 0.1
"""Share of these seconds by which all next pictures must be in time: cameras that send together do not do so to the millisecond."""

LEAST_S = 0.001
"""Pictures that come together count as so far apart."""


class Arrivals:
    """The newest WINDOW pictures of each of ``cameras``: when each came and how old it was then."""

    def __init__(self, cameras):
        self._seen = {camera: collections.deque(maxlen=WINDOW) for camera in cameras}  # (came, age), s
        self._between: dict[str, float] = {}  # seconds until a camera's next picture can be counted on; absent: not worked out yet
        self._looked: dict[str, float] = {}  # when the pictures came that were looked at last

    def came(self, camera: str, now: float, age_s: float) -> None:
        """A picture of ``camera`` came, ``age_s`` after it was taken."""
        self._seen[camera].append((now, max(0.0, age_s)))
        self._between.pop(camera, None)

    def looked(self, cameras) -> None:
        """The newest pictures of ``cameras`` were looked at."""
        self._looked = {camera: self._seen[camera][-1][0] for camera in cameras if self._seen[camera]}

    def best_now(self, cameras, now: float, due_s: float) -> bool:
        """Whether to look at ``cameras`` now rather than within the next ``due_s``.

        Now: all pictures are new, and none that can be counted on to come in time makes what is seen any younger than it is now.
        """
        if not cameras or any(len(self._seen[camera]) < 2 for camera in cameras):
            return False  # nothing is known; the look is made when it is due
        if any(self._seen[camera][-1][0] == self._looked.get(camera) for camera in cameras):
            return False
        between = [self._until_next(camera) for camera in cameras]
        if due_s > (1 + MARGIN) * max(between):
            return False  # every camera sends another one before
        coming = {camera: self._coming(camera, now, now + due_s) for camera in cameras}
        ages = [self._age(coming, when) for when in sum(coming.values(), [])]
        return self._age(dict.fromkeys(cameras, []), now) <= min(ages, default=np.inf)

    def per_second(self, camera: str) -> float | None:
        """Pictures of ``camera`` a second; None where fewer than two are known."""
        seen = self._seen[camera]
        return (len(seen) - 1) / (seen[-1][0] - seen[0][0]) if len(seen) > 1 and seen[-1][0] > seen[0][0] else None

    def ages(self, camera: str) -> np.ndarray:
        """How old pictures of ``camera`` were when they came (n,), s."""
        return np.array([age for _, age in self._seen[camera]])

    def _until_next(self, camera: str) -> float:
        if camera not in self._between:
            between = np.percentile(np.diff([came for came, _ in self._seen[camera]]), LATE)
            self._between[camera] = max(LEAST_S, float(between))
        return self._between[camera]

    def _coming(self, camera: str, now: float, until: float) -> list[float]:
        """When pictures can be counted on, until ``until``; one that is overdue may come at any moment."""
        between = self._until_next(camera)
        first = max(self._seen[camera][-1][0] + between, now)
        return [first + between * n for n in range(int((until - first) / between) + 1)] if until >= first else []

    def _age(self, coming: dict[str, list[float]], when: float) -> float:
        """How old the oldest of the newest pictures is at ``when``; ``coming`` are those that nobody has yet."""
        ages = []
        for camera, times in coming.items():
            came, age = self._seen[camera][-1]
            ages.append(when - max([came, *(time for time in times if time <= when)]) + age)
        return max(ages)
