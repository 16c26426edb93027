"""True poses of objects, as the simulator knows them and as policies are told them. Without torch: a recorder needs it, too."""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.contract import ACTION_KIND, HAND_POSITION
from policytrim_ros.core.kinematics import tools

OBJECT_SLOTS = 2
"""Objects that demonstrations note and that the auxiliary task asks for: the first ones by the environment's order."""

OBJECT_FEATURES = 13
DECIMETRE = 0.1
"""Positions are fed to networks, and asked of them, in units of 0.1 m: about one in size."""

POSITIONS, DIRECTIONS = slice(0, 6), slice(6, 18)
"""Parts of `object_places`."""


def object_poses(objects, slots: int = OBJECT_SLOTS) -> np.ndarray:
    """Name -> pose (7,) as (slots, 7) float32 in the environment's order; NaN where there is no object."""
    found = np.full((slots, 7), np.nan, np.float32)
    for slot, pose in enumerate(list(objects.values())[:slots]):
        found[slot] = pose
    return found


def object_features(objects: np.ndarray, state: np.ndarray, action_kind: str = ACTION_KIND) -> np.ndarray:
    """Poses (B, slots, 7) and state (B, 14), joints or hand as ``action_kind`` says -> (B, slots, 13) float32, all zero where
    there is no object.

    Present (1), position in base_link and in the tool's frame (3 + 3, in 0.1 m), first two columns of the rotation (6).
    """
    features = np.zeros((*objects.shape[:2], OBJECT_FEATURES), np.float32)
    there = np.isfinite(objects).all(axis=-1)
    features[..., 0] = 1.0
    features[..., 1:7] = object_places(objects, state, action_kind)[..., POSITIONS]
    features[..., 7:] = np.concatenate(axes(objects)[:2], axis=-1)
    features[~there] = 0.0
    return features


def object_places(objects: np.ndarray, state: np.ndarray, action_kind: str = ACTION_KIND) -> np.ndarray:
    """Poses (B, slots, 7) and state (B, 14) -> (B, slots, 18) float32, what the auxiliary task asks for; NaN: no object.

    Position in base_link and in the tool's frame (3 + 3, in 0.1 m); the object's x and z axis (where a handle points, and
    the axis of what is round) in base_link and in the tool's frame (6 + 6).
    """
    tool, position = (hands if action_kind == HAND_POSITION else tools)(state[:, :6]), objects[..., :3].astype(np.float64)
    turn = tool[:, :3, :3]
    x, _, z = axes(objects)
    found = [position / DECIMETRE, (position - tool[:, None, :3, 3]) @ turn / DECIMETRE, x, z, x @ turn, z @ turn]
    return np.concatenate(found, axis=-1).astype(np.float32)


def hands(state: np.ndarray) -> np.ndarray:
    """`core.kinematics.tools` of hands that never turn: x y z in m and three zeros (B, 6) -> (B, 4, 4)."""
    poses = np.tile(np.eye(4), (len(state), 1, 1))
    poses[:, :3, 3] = state[:, :3]
    return poses


def axes(poses: np.ndarray) -> list[np.ndarray]:
    """x, y and z axis (..., 3) of poses (..., 7)."""
    w, x, y, z = np.moveaxis(poses[..., 3:].astype(np.float64), -1, 0)
    return [
        np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=-1),
        np.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], axis=-1),
        np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], axis=-1),
    ]
