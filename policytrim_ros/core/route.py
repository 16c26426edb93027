"""The way to a fixed pose, for home and park: straight in joint space where that keeps clear of table and workspace, else up first.

Poses in, poses out: no clock and no arm. What moves along the way is judged by the safety filter all the same.
"""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.motion import limited_step
from policytrim_ros.core.types import READY

SPACING_RAD = 0.03
"""A straight way is looked at so often; the fingertip moves by two centimetres meanwhile."""

CLEAR_M = 0.003
"""A way keeps so far inside the limits, or comes no nearer to them than it began."""

LIFT_RAD, LIFTS = 0.06, 50
"""Step of the joint that moves most while the arm is lifted, and the greatest number of steps."""

RAISED = 0.02, -0.6
"""Joints 2 and 3 of an arm that is drawn back and up."""


def route(start, goal, depths, low, high) -> list[np.ndarray]:
    """The poses (7,) to go to one after the other, straight each time, the last of them ``goal``; [] when no way was found.

    ``depths`` says of poses (N, 7) how far (m) each is outside workspace and table; ``low`` and ``high`` (7,) are the joint limits.
    Where the straight way is barred the arm is lifted, away from what it is nearest to, until the goal can be reached straight or by
    way of READY and of an arm that is drawn back.
    """
    ready, goal = np.array(READY), np.asarray(goal, dtype=np.float64)
    ways = [[goal], [ready, goal]] if is_clear(ready, goal, depths) else [[goal]]

    def onwards(pose):
        return next((way for way in ways if is_clear(pose, way[0], depths)), None)

    lifted = np.asarray(start, dtype=np.float64)
    begun = [lifted]
    for _ in range(LIFTS):
        way = onwards(lifted)
        if way is None:
            raised = np.array([lifted[0], *RAISED, *lifted[3:]])
            if is_clear(lifted, raised, depths) and (way := onwards(raised)):
                way = [raised, *way]
        if way is not None:
            return [*begun[1:], lifted, *way] if lifted is not begun[0] else way
        away = _away(lifted, depths, low, high)
        if away is None:
            return []
        before, lifted = lifted, np.clip(lifted + LIFT_RAD * away, np.minimum(low, lifted), np.maximum(high, lifted))
        if not is_clear(begun[-1], lifted, depths):  # the way up bends
            if before is begun[-1] or not is_clear(before, lifted, depths):
                return []
            begun.append(before)
    return []


def is_clear(start, end, depths) -> bool:
    """Whether the straight way keeps CLEAR_M inside the limits, or comes no nearer to them as long as it does not."""
    steps = 2 + int(np.max(np.abs(end - start)[:6]) / SPACING_RAD)
    on_the_way = depths(start + np.linspace(0.0, 1.0, steps)[:, None] * (end - start))
    allowed = np.maximum(np.minimum.accumulate(on_the_way), -CLEAR_M)
    return bool(np.all(on_the_way[1:] <= allowed[:-1] + 1e-9))


def _away(pose, depths, low, high):
    """Direction (7,), 1 at most, in which the arm comes inside fastest; None when no joint can move it there."""
    nudge = 1e-4 * np.eye(7)[:5]  # the last joint turns the gripper, and moves nothing that is watched
    depth, *nudged = depths(np.vstack([pose, pose + nudge]))
    away = np.append((depth - np.array(nudged)) / 1e-4, [0.0, 0.0])
    away[(away < 0.0) & (pose <= low) | (away > 0.0) & (pose >= high)] = 0.0
    most = np.max(np.abs(away))
    return away / most if most > 1e-6 else None


class Leg:
    """One straight way, all joints arriving together: `tick` gives the pose (7,) to be at now and the velocity (7,) of the next ``dt`` s."""

    def __init__(self, start, end, v_max, a_max):
        self._start = np.array(start, dtype=np.float64)
        self._span = np.asarray(end, dtype=np.float64) - self._start
        share = np.maximum(np.abs(self._span), 1e-9)
        self._v_max, self._a_max = float(np.min(v_max / share)), float(np.min(a_max / share))
        self._done = self._speed = 0.0  # share of the way, and of it a second

    def tick(self, dt: float) -> tuple[np.ndarray, np.ndarray]:
        done = self._done
        self._done, self._speed = limited_step(done, self._speed, 1.0, 0.0, dt, self._v_max, self._a_max)
        return self._start + done * self._span, self._speed * self._span
