"""Geometry on coordinates, each a number in the one scene of the CPU and a tensor (n,) in a batch on the GPU.

Formulas that only add, multiply and compare hold for both, so a task states its goal once. The numbers are NumPy's float32,
which rounds as the engine and torch do; torch itself costs some fifteen times as much for a single number.
"""

from __future__ import annotations

import numpy as np
import torch


def coordinates(body):
    """Where an actor or a link is: x, y, z in m and its quaternion w, x, y, z."""
    if body.scene.gpu_sim_enabled:
        return body.pose.raw_pose.unbind(-1)
    pose = body._bodies[0].entity_pose  # the engine's own: ManiSkill's wrapper costs ten times as much
    return (*pose.p, *pose.q)


def hypot(a, b):
    """Length of the vector (a, b)."""
    return torch.hypot(a, b) if isinstance(a, torch.Tensor) else np.hypot(a, b)


def offset(start, end):
    """The way (x, y, z) from one point or pose to another."""
    return end[0] - start[0], end[1] - start[1], end[2] - start[2]


def cross(a, b):
    """Vector product of two vectors (x, y, z)."""
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


def z_axis(pose):
    """Where the z axis of a pose points (x, y, z)."""
    w, x, y, z = pose[3:]
    return 2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)


def to_local(pose, point):
    """A point of the world (x, y, z) in the frame of ``pose``."""
    w, axis, way = pose[3], [-q for q in pose[4:]], offset(pose, point)
    twice = [2 * c for c in cross(axis, way)]
    return [p + w * t + c for p, t, c in zip(way, twice, cross(axis, twice))]
