"""The words of the house as data: joints, chunk, arm state.

Shapes: H = prediction horizon, h = execution horizon, A = 7 = six joints (rad) and the gripper stroke (m).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JOINTS = ("joint1", "joint2", "joint3", "joint4", "joint5", "joint6", "gripper")
"""Order of every 7-vector in the project: six joints in rad, then the full gripper stroke in metres."""

READY = (0.0, 1.2, -1.1, 0.0, 0.9, 0.0, 0.07)
"""Where a trial begins: arm raised over the table, gripper open (rad, m)."""

PARK = (0.0, 0.0, 0.0, 0.02, 0.5, 0.0, 0.0)
"""The folded pose in which the arm rests on itself and may be disabled without falling (rad, m)."""

CONTROL_RATE_HZ = 20.0
"""Control steps each second unless a parameter says otherwise: the rate of the policy's actions."""

CONTROL_RATES_HZ = 10.0, 30.0
"""The lowest and the highest rate that may be said."""

SAME_RATE_HZ = 1e-3
"""Rates that differ by no more are the same: on the wire a period has whole nanoseconds."""


def heartbeats_of(words: str) -> list[tuple[str, str]]:
    """[(who lives, why it cannot do its work or '')] of a message on ``heartbeat``: a line each, `name` or `name: why`."""
    return [(name, why) for name, _, why in (line.partition(": ") for line in words.splitlines())]


def frozen(values, shape=None, dtype=np.float64) -> np.ndarray:
    """A read-only array; raises ValueError on another shape or on NaN/infinity."""
    array = np.array(values, dtype=dtype)
    if shape is not None and (array.ndim != len(shape) or any(s not in (-1, n) for s, n in zip(shape, array.shape))):
        raise ValueError(f"expected shape {shape}, got {array.shape}")
    if not np.all(np.isfinite(array)):
        raise ValueError("array holds NaN or infinity")
    array.flags.writeable = False
    return array


@dataclass(frozen=True)
class Chunk:
    """A policy's proposal: actions ``positions`` (h, 7), one a control step, already trimmed to the execution horizon.

    ``first`` is the control step that ``positions[0]`` belongs to, counted by the executor since it started:
    the step that was next when the observation was taken. Whoever plays the chunk skips what lies in the past.
    ``follows``: the sender means to send another chunk before this one ends.
    """

    positions: np.ndarray
    generation: int
    chunk_id: int
    first: int
    rate_hz: float = CONTROL_RATE_HZ
    follows: bool = False

    def __post_init__(self):
        object.__setattr__(self, "positions", frozen(self.positions, (-1, len(JOINTS))))
        if len(self.positions) == 0:
            raise ValueError("a chunk needs at least one action")


@dataclass(frozen=True)
class ArmState:
    """What the arm reports: position (7,) rad|m, velocity (7,) rad/s|m/s, effort (7,) N m|N, monotonic stamp in s."""

    position: np.ndarray
    velocity: np.ndarray
    effort: np.ndarray
    stamp: float
