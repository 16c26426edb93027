"""Golden observations: what a checkpoint predicted, when it was made, for a few scenes; asked again before it may speak.

A file beside the weights holds observations and the actions that followed. Whoever loads the checkpoint, on another machine or
with another version of a library, asks the policy for the same once more: weights that are whole can still be computed wrongly.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from policytrim_ros.policies.pictures import resize_images
from policytrim_ros.policies.policy import ChunkPolicy, Observation

GOLDEN = "golden.safetensors"
FAR = 0.01
"""Largest difference (rad, m) that is taken for another machine's rounding."""


@dataclass(frozen=True)
class Golden:
    """``observation`` of B scenes, the ``seeds`` (B,) of the sampler, and the ``actions`` (B, H, 7) that were predicted."""

    observation: Observation
    seeds: tuple[int, ...]
    actions: np.ndarray

    @classmethod
    def of(cls, policy: ChunkPolicy, observation: Observation) -> "Golden":
        """What ``policy`` predicts for ``observation``, pictures brought to its own size."""
        images = resize_images(observation.images, policy.contract.cameras)
        observation = Observation(images, observation.state, list(observation.instruction), observation.objects)
        seeds = tuple(range(len(observation.state)))
        return cls(observation, seeds, predicted(policy, observation, seeds))

    def compare(self, policy: ChunkPolicy) -> tuple[np.ndarray, float]:
        """What ``policy`` predicts now (B, H, 7), and the largest difference to what it predicted then (rad or m)."""
        actions = predicted(policy, self.observation, self.seeds)
        if actions.shape != self.actions.shape:
            return actions, float("inf")
        return actions, float(np.max(np.abs(actions - self.actions)))

    def write(self, path) -> None:
        """As one safetensors file."""
        arrays = {f"image.{name}": pictures for name, pictures in self.observation.images.items()}
        arrays |= {"state": self.observation.state, "actions": self.actions}
        if self.observation.objects is not None:
            arrays["objects"] = self.observation.objects
        words = {"instruction": json.dumps(list(self.observation.instruction)), "seeds": json.dumps(self.seeds)}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path, metadata=words)

    @classmethod
    def read(cls, path) -> "Golden":
        """ValueError, with the path, for a file that cannot be read or lacks a part."""
        try:
            with safe_open(Path(path), framework="np") as file:
                words = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}
            images = {name.removeprefix("image."): array for name, array in arrays.items() if name.startswith("image.")}
            observation = Observation(images, arrays["state"], json.loads(words["instruction"]), arrays.get("objects"))
            return cls(observation, tuple(json.loads(words["seeds"])), arrays["actions"])
        except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: cannot be read ({error}); take an intact copy") from error


def predicted(policy: ChunkPolicy, observation: Observation, seeds) -> np.ndarray:
    """(B, H, 7), row by row: a batch is rounded differently from the single observations of deployment."""
    rows = []
    for row, seed in enumerate(seeds):
        images = {name: pictures[row : row + 1] for name, pictures in observation.images.items()}
        objects = None if observation.objects is None else observation.objects[row : row + 1]
        one = Observation(images, observation.state[row : row + 1], [observation.instruction[row]], objects)
        rows.append(np.asarray(policy.predict(one, seeds=[seed]))[0])
    return np.stack(rows).astype(np.float32)
