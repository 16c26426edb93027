"""Demonstrations as training samples in memory: pictures, state, actions, where the objects are; with augmentation.

Augmentation imitates the real robot: pictures are up to ``image_delay_steps`` older than the joint state, measured
positions may be one step old, at rest or noisy (else the lag behind the setpoint would tell a pause from a motion, and a
policy that waits for its arm would pause for ever), cameras shift by a few pixels, the light changes a little.
What is random is drawn for a whole batch from the generator handed in (`Samples.draw`, cheap), so that a step of training
is a function of its number and several processes can each make their rows of it (`Samples.batch`, the work).

Shapes: B rows, n cameras, H = prediction horizon.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Sequence

import numpy as np
import torch

from policytrim_ros.core.contract import ACTION_KIND, Normalisation
from policytrim_ros.policies.objects import OBJECT_SLOTS, object_features, object_places
from policytrim_ros.training.demos import DatasetError, Episode
from policytrim_ros.training.recipe import Training

JOINT_FLOOR_RAD, GRIPPER_FLOOR_M, LAG_FLOOR_RAD, LAG_FLOOR_M = 0.03, 0.01, 0.02, 0.005
"""Smallest quantile range per component: an idle joint must not turn its noise into signal."""


@dataclass(frozen=True)
class Draw:
    """What augmentation decided for each row: sample (B,), joint state (B, 14), age of its picture (B,) in control steps,
    shift of every picture in y and x (B, n, 2) in pixels and its brightness (B, n)."""

    index: np.ndarray
    state: np.ndarray
    delay: np.ndarray
    shift: np.ndarray
    light: np.ndarray

    def rows(self, part) -> "Draw":
        return Draw(self.index[part], self.state[part], self.delay[part], self.shift[part], self.light[part])


@dataclass
class Batch:
    """pictures (B, n, h, w, 3) uint8 and their brightness light (B, n), None without cameras; state (B, 14) and actions
    (B, H, 7) rad, m; objects (B, slots, 13) from `policies.objects.object_features`, None without slots; places (B, 2, 18)
    from `object_places`, NaN = none, None without cameras."""

    pictures: torch.Tensor | None
    light: torch.Tensor | None
    state: torch.Tensor
    actions: torch.Tensor
    objects: torch.Tensor | None
    places: torch.Tensor | None
    instructions: list[str]

    def to(self, device) -> "Batch":
        """The same batch on another device."""
        values = (getattr(self, spec.name) for spec in fields(self))
        return Batch(*(value.to(device) if isinstance(value, torch.Tensor) else value for value in values))

    def pixels(self) -> torch.Tensor | None:
        """(B, n, 3, h, w) float32 in [-1, 1], the light applied."""
        if self.pictures is None:
            return None
        pixels = self.pictures.permute(0, 1, 4, 2, 3).float()
        return pixels.mul_((self.light / 127.5)[:, :, None, None, None]).sub_(1.0).clamp_(max=1.0)


class Samples:
    """Every control step of the given episodes is one sample. The pictures stay where the episodes have them.

    ``object_slots`` > 0: batches hold the poses of so many objects; ``action_kind``: of the contract. Raises DatasetError when
    there is no episode, when pictures differ in size or when object poses are wanted and missing.
    """

    def __init__(
        self, episodes: Sequence[Episode], cameras: Sequence[str], horizon: int, object_slots: int = 0, action_kind=ACTION_KIND
    ):
        if not episodes:
            raise DatasetError("no episode is left to train on; make more demonstrations")
        self.horizon, self.cameras, self.object_slots, self.action_kind = horizon, tuple(cameras), object_slots, action_kind
        steps = np.array([len(episode.state) for episode in episodes])
        self.state = np.concatenate([episode.state for episode in episodes])
        self.first = np.repeat(np.cumsum(steps) - steps, steps)
        self.step = np.concatenate([np.arange(n) for n in steps])
        self.episode = np.repeat(np.arange(len(episodes)), steps)
        self.names = [episode.name for episode in episodes]
        self.instructions = [episode.instruction for episode in episodes]
        lengths = np.array([len(episode.actions) for episode in episodes])
        self.actions = np.concatenate([episode.actions for episode in episodes])
        self.first_action, self.last_action = np.cumsum(lengths) - lengths, np.cumsum(lengths) - 1
        self.objects = np.concatenate([episode.objects for episode in episodes])
        if object_slots and (unknown := [e.name for e in episodes if not np.isfinite(e.objects[:, 0]).all()]):
            raise DatasetError(
                f"{unknown[0]}: holds no object poses, and the policy is to be told them; take demonstrations of the simulator"
            )
        if self.cameras:
            self._take_pictures(episodes)

    def __len__(self) -> int:
        return len(self.state)

    @property
    def picture_size(self) -> tuple[int, int]:
        """(width, height) of the pictures."""
        height, width = self.images[self.cameras[0]][0].shape[1:3]
        return width, height

    def chunk(self, index: np.ndarray) -> np.ndarray:
        """(B, H, 7): the actions from each sample on; an episode that ends earlier repeats its last action."""
        episode = self.episode[index]
        wanted = (self.first_action[episode] + self.step[index])[:, None] + np.arange(self.horizon)
        return self.actions[np.minimum(wanted, self.last_action[episode][:, None])]

    def plain(self, index: np.ndarray) -> Batch:
        """The samples as they were recorded."""
        count, cameras = len(index), len(self.cameras)
        shift, light = np.zeros((count, cameras, 2), int), np.ones((count, cameras), np.float32)
        return self.batch(Draw(index, self.state[index], np.zeros(count, int), shift, light))

    def augmented(self, index: np.ndarray, rng: np.random.Generator, training: Training) -> Batch:
        """The samples as the robot might have seen them."""
        return self.batch(self.draw(index, rng, training))

    def draw(self, index: np.ndarray, rng: np.random.Generator, training: Training) -> Draw:
        """Everything random about the given samples."""
        count, cameras = len(index), len(self.cameras)
        state = self.state[index].copy()
        old = rng.random(count) < training.state_delay
        state[old, :7] = self.state[np.maximum(index - 1, self.first[index])][old, :7]
        rests = rng.random(count) < training.rest
        state[rests, :6] = state[rests, 7:13]
        state[:, :6] += rng.normal(0, training.joint_noise_rad, (count, 6)).astype(np.float32)
        state[:, 6] += rng.normal(0, training.gripper_noise_m, count).astype(np.float32)
        delay = rng.integers(0, training.image_delay_steps + 1, count)
        limits = np.asarray(training.shift_px[:cameras], dtype=int).reshape(-1, 1)
        shift = rng.integers(-limits, limits + 1, (count, cameras, 2))
        light = 1 + rng.uniform(-training.brightness, training.brightness, (count, cameras)).astype(np.float32)
        return Draw(index, state, delay, shift, light)

    def batch(self, draw: Draw) -> Batch:
        """The rows of a draw as tensors."""
        index, objects, pictures, light, places = draw.index, None, None, None, None
        if self.object_slots:
            objects = torch.from_numpy(object_features(self.objects[index, : self.object_slots], draw.state, self.action_kind))
        if self.cameras:
            taken = np.maximum(index - draw.delay, self.first[index])
            pictures, light = torch.from_numpy(self._pictures(taken, draw.shift)), torch.from_numpy(draw.light)
            places = torch.from_numpy(self._places(taken))
        return Batch(
            pictures,
            light,
            torch.from_numpy(draw.state),
            torch.from_numpy(self.chunk(index)),
            objects,
            places,
            [self.instructions[episode] for episode in self.episode[index]],
        )

    def normalisation(self, action_quantile: float = 0.01) -> dict[str, Normalisation]:
        """q01/q99 of the state features (14,) and ends of the relative actions (H, 7), with a floor for idle joints;
        ``action_quantile`` of the actions lie beyond each end."""
        index = np.arange(0, len(self), max(1, len(self) // 20_000))
        state = self.state[index].astype(np.float64)
        features = np.concatenate([state[:, :7], state[:, 7:] - state[:, :7]], axis=1)
        actions = self.chunk(index).astype(np.float64)
        actions[..., :6] -= state[:, None, 7:13]
        joints, lags = [JOINT_FLOOR_RAD] * 6 + [GRIPPER_FLOOR_M], [LAG_FLOOR_RAD] * 6 + [LAG_FLOOR_M]
        return {
            "state": _quantiles(features, 0.01, np.array(joints + lags)),
            "actions": _quantiles(actions, action_quantile, np.array(joints)),
        }

    def _take_pictures(self, episodes) -> None:
        shapes = {episode.images[camera].shape[1:] for episode in episodes for camera in self.cameras}
        if len(shapes) != 1:
            raise DatasetError(f"pictures of several sizes in one dataset: {sorted(shapes)}; train on one size")
        self.images = {camera: [episode.images[camera] for episode in episodes] for camera in self.cameras}
        newest = [np.searchsorted(e.image_steps, np.arange(len(e.state)), side="right") - 1 for e in episodes]
        self.newest_picture = np.concatenate(newest)  # of its episode, for each sample
        self.picture_step = np.concatenate([e.image_steps[rows] for e, rows in zip(episodes, newest)])  # when it was taken

    def _pictures(self, taken, shift) -> np.ndarray:
        """(B, n, h, w, 3) uint8: the newest picture at each sample of ``taken``, moved."""
        width, height = self.picture_size
        pictures = np.empty((len(taken), len(self.cameras), height, width, 3), np.uint8)
        episodes, rows = self.episode[taken].tolist(), self.newest_picture[taken].tolist()
        for i, camera in enumerate(self.cameras):
            images = self.images[camera]
            for place, episode, row, (dy, dx) in zip(pictures[:, i], episodes, rows, shift[:, i].tolist()):
                move(images[episode][row], dy, dx, place)
        return pictures

    def _places(self, taken) -> np.ndarray:
        """(B, 2, 18): where the objects are, and how they lie, in the picture of each sample of ``taken``: `object_places`."""
        moment = self.first[taken] + self.picture_step[taken]
        return object_places(self.objects[moment, :OBJECT_SLOTS], self.state[moment], self.action_kind)


def move(picture: np.ndarray, dy: int, dx: int, out: np.ndarray) -> None:
    """Writes ``picture`` (h, w, 3), moved by dy and dx pixels, into ``out``: out[y, x] = picture[y + dy, x + dx], its edge
    repeated where that lies outside."""
    height, width = picture.shape[:2]
    top, bottom = max(0, -dy), min(height, height - dy)
    left, right = max(0, -dx), min(width, width - dx)
    out[top:bottom, left:right] = picture[top + dy : bottom + dy, left + dx : right + dx]
    out[top:bottom, :left] = out[top:bottom, left : left + 1]
    out[top:bottom, right:] = out[top:bottom, right - 1 : right]
    out[:top], out[bottom:] = out[top], out[bottom - 1]


def _quantiles(values: np.ndarray, beyond: float, floor: np.ndarray) -> Normalisation:
    low, high = np.quantile(values, [beyond, 1.0 - beyond], axis=0)
    middle, half = (low + high) / 2, np.maximum(high - low, floor) / 2
    return Normalisation(_nested(middle - half), _nested(middle + half))


def _nested(array):
    return tuple(_nested(row) for row in array) if array.ndim > 1 else tuple(float(value) for value in array)
