"""Demonstrations as training samples in memory: pictures, state, actions, where the objects are; with augmentation.

Augmentation imitates the real robot: pictures are up to ``image_delay_steps`` older than the joint state, measured
positions may be one step old, at rest or noisy (else the lag behind the setpoint would tell a pause from a motion, and a
policy that waits for its arm would pause for ever), cameras shift by a few pixels, the light changes a little.
Everything random comes from the generator handed in, so that a step of training is a function of its number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch

from policytrim_ros.core.contract import Normalisation
from policytrim_ros.core.kinematics import tool
from policytrim_ros.policies.policy import DECIMETRE, object_features
from policytrim_ros.training.demos import OBJECT_SLOTS, DatasetError, Episode
from policytrim_ros.training.recipe import Training

JOINT_FLOOR_RAD, GRIPPER_FLOOR_M, LAG_FLOOR_RAD, LAG_FLOOR_M = 0.03, 0.01, 0.02, 0.005
"""Smallest quantile range per component: an idle joint must not turn its noise into signal."""


@dataclass
class Batch:
    """pictures (B, n, h, w, 3) uint8 or None without cameras; state (B, 14) and actions (B, H, 7) rad, m; objects
    (B, 2, 13) from `policies.policy.object_features`; places (B, 2, 6) in 0.1 m, NaN = none, or None without cameras."""

    pictures: torch.Tensor | None
    state: torch.Tensor
    actions: torch.Tensor
    objects: torch.Tensor
    places: torch.Tensor | None
    instructions: list[str]


class Samples:
    """Every control step of the given episodes is one sample."""

    def __init__(self, episodes: Sequence[Episode], cameras: Sequence[str], horizon: int):
        if not episodes:
            raise DatasetError("no episode is left to train on; make more demonstrations")
        self.horizon, self.cameras = horizon, tuple(cameras)
        steps = np.array([len(episode.state) for episode in episodes])
        self.state = np.concatenate([episode.state for episode in episodes])
        self.first = np.repeat(np.cumsum(steps) - steps, steps)
        self.step = np.concatenate([np.arange(n) for n in steps])
        self.episode = np.repeat(np.arange(len(episodes)), steps)
        self.instructions = [episode.instruction for episode in episodes]
        lengths = np.array([len(episode.actions) for episode in episodes])
        self.actions = np.concatenate([episode.actions for episode in episodes])
        self.first_action, self.last_action = np.cumsum(lengths) - lengths, np.cumsum(lengths) - 1
        self.objects = object_features(np.concatenate([episode.objects for episode in episodes]), self.state)
        if self.cameras:
            self._take_pictures(episodes)
            self._place_objects(episodes)

    def __len__(self) -> int:
        return len(self.state)

    def chunk(self, index: np.ndarray) -> np.ndarray:
        """(B, H, 7): the actions from each sample on; an episode that ends earlier repeats its last action."""
        episode = self.episode[index]
        wanted = (self.first_action[episode] + self.step[index])[:, None] + np.arange(self.horizon)
        return self.actions[np.minimum(wanted, self.last_action[episode][:, None])]

    def plain(self, index: np.ndarray) -> Batch:
        """The samples as they were recorded."""
        return self._batch(index, self.state[index], 0)

    def augmented(self, index: np.ndarray, rng: np.random.Generator, training: Training) -> Batch:
        """The samples as the robot might have seen them."""
        state = self.state[index].copy()
        old = rng.random(len(index)) < training.state_delay
        state[old, :7] = self.state[np.maximum(index - 1, self.first[index])][old, :7]
        rests = rng.random(len(index)) < training.rest
        state[rests, :6] = state[rests, 7:13]
        state[:, :6] += rng.normal(0, training.joint_noise_rad, (len(index), 6)).astype(np.float32)
        state[:, 6] += rng.normal(0, training.gripper_noise_m, len(index)).astype(np.float32)
        delay = rng.integers(0, training.image_delay_steps + 1, len(index))
        batch = self._batch(index, state, delay)
        if batch.pictures is None:
            return batch
        pictures = np.stack(
            [
                shifted(batch.pictures[:, i].numpy(), int(limit), rng)
                for i, limit in zip(range(len(self.cameras)), training.shift_px)
            ],
            axis=1,
        )
        light = 1 + rng.uniform(-training.brightness, training.brightness, (len(index), len(self.cameras), 1, 1, 1))
        batch.pictures = (torch.from_numpy(pictures).float() * torch.from_numpy(light).float()).clamp_(0, 255).to(torch.uint8)
        return batch

    def normalisation(self) -> dict[str, Normalisation]:
        """q01/q99 of the state features (14,) and of the relative actions (H, 7), with a floor for idle joints."""
        index = np.arange(0, len(self), max(1, len(self) // 20_000))
        state = self.state[index].astype(np.float64)
        features = np.concatenate([state[:, :7], state[:, 7:] - state[:, :7]], axis=1)
        actions = self.chunk(index).astype(np.float64)
        actions[..., :6] -= state[:, None, 7:13]
        joints, lags = [JOINT_FLOOR_RAD] * 6 + [GRIPPER_FLOOR_M], [LAG_FLOOR_RAD] * 6 + [LAG_FLOOR_M]
        return {"state": _quantiles(features, np.array(joints + lags)), "actions": _quantiles(actions, np.array(joints))}

    def _batch(self, index, state, delay) -> Batch:
        pictures = places = None
        if self.cameras:
            row = self._picture(index, delay)
            pictures = torch.from_numpy(np.stack([self.images[camera][row] for camera in self.cameras], axis=1))
            places = torch.from_numpy(self.places[row])
        return Batch(
            pictures,
            torch.from_numpy(state),
            torch.from_numpy(self.chunk(index)),
            torch.from_numpy(self.objects[index]),
            places,
            [self.instructions[episode] for episode in self.episode[index]],
        )

    def _picture(self, index, delay) -> np.ndarray:
        """Row of the newest picture that was taken ``delay`` steps before each sample or earlier."""
        return self.newest_picture[np.maximum(index - delay, self.first[index])]

    def _take_pictures(self, episodes) -> None:
        counts = [len(episode.image_steps) for episode in episodes]
        shapes = {episode.images[camera].shape[1:] for episode in episodes for camera in self.cameras}
        if len(shapes) != 1:
            raise DatasetError(f"pictures of several sizes in one dataset: {sorted(shapes)}; train on one size")
        self.images = {camera: np.concatenate([episode.images[camera] for episode in episodes]) for camera in self.cameras}
        offsets = np.cumsum(counts) - counts
        self.newest_picture = np.concatenate(
            [
                offset + np.searchsorted(e.image_steps, np.arange(len(e.state)), side="right") - 1
                for offset, e in zip(offsets, episodes)
            ]
        )

    def _place_objects(self, episodes) -> None:
        places = []
        for episode in episodes:
            for step in episode.image_steps:
                base = episode.objects[step, :, :3].astype(np.float64)
                pose = tool(episode.state[step, :6])
                places.append(np.concatenate([base, (base - pose[:3, 3]) @ pose[:3, :3]], axis=1))
        self.places = (np.array(places) / DECIMETRE).astype(np.float32).reshape(-1, OBJECT_SLOTS, 6)


def shifted(pictures: np.ndarray, limit: int, rng: np.random.Generator) -> np.ndarray:
    """(B, h, w, 3): every picture moved by up to ``limit`` pixels in x and y, its edge repeated."""
    count, height, width = pictures.shape[:3]
    dx, dy = rng.integers(-limit, limit + 1, (2, count))
    rows = np.clip(np.arange(height) + dy[:, None], 0, height - 1)
    columns = np.clip(np.arange(width) + dx[:, None], 0, width - 1)
    return pictures[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]


def _quantiles(values: np.ndarray, floor: np.ndarray) -> Normalisation:
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    middle, half = (low + high) / 2, np.maximum(high - low, floor) / 2
    return Normalisation(_nested(middle - half), _nested(middle + half))


def _nested(array):
    return tuple(_nested(row) for row in array) if array.ndim > 1 else tuple(float(value) for value in array)
