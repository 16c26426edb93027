"""The protocol between whoever has pictures (inference node, evaluation, rollouts) and whoever has a network.

    robot = robot_contract({"front": (424, 240), "wrist": (424, 240)})
    policy, manifest = checkpoint.load("models/tape-box-pi0-tiny", robot=robot)
    observation = Observation(images={"front": rgb[None], "wrist": rgb2[None]}, state=state14[None], instruction=["..."])
    actions = policy.predict(observation, seed=0)          # (1, H, 7) float32: absolute targets, rad and m

Shapes: B = batch, H = prediction horizon, A = 7 (six joints in rad, gripper stroke in m), state = 14 = measured 7 + setpoint 7.
Pictures may arrive at any size of the contract's aspect ratio: `predict` brings them to the policy's size with
`resize_image`, the very function with which the training pictures were made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Protocol, Sequence

import cv2
import numpy as np

from policytrim_ros.core.contract import Contract


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one moment, B of them.

    images: name -> (B, h, w, 3) uint8 RGB; state: (B, 14) float32, measured positions then setpoints (rad, m);
    instruction: B sentences. Raises ValueError on other shapes, dtypes or on NaN.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: Sequence[str]

    def __post_init__(self):
        state = np.asarray(self.state, dtype=np.float32)
        if state.ndim != 2 or state.shape[1] != 14:
            raise ValueError(f"state has shape {state.shape}, expected (B, 14): 7 measured positions, 7 setpoints")
        if not np.all(np.isfinite(state)):
            raise ValueError("state holds NaN or infinity")
        if isinstance(self.instruction, str) or len(self.instruction) != len(state):
            raise ValueError(f"instruction must be a list of {len(state)} sentences")
        for name, pictures in self.images.items():
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) != len(state):
                raise ValueError(f"images of '{name}': {pictures.dtype} {pictures.shape}, expected uint8 ({len(state)}, h, w, 3)")
        object.__setattr__(self, "state", state)


class Policy(Protocol):
    """A chunk policy. ``contract`` says what it needs; ``family`` names its kind (``flow``)."""

    family: str
    contract: Contract

    def predict(
        self, observation: Observation, *, seed: int | None = None, generator=None, steps: int | None = None
    ) -> np.ndarray:
        """(B, H, 7) float32 absolute targets in rad and m, one a control step, the first for the end of the coming step.

        ``seed`` or a ``torch.Generator`` fixes the sampling; ``steps`` is the number of denoising steps where the
        family has any (None: the policy's own). Raises ValueError when a camera is missing.
        """


def resize_image(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """(h, w, 3) uint8 -> (height, width, 3) uint8 by area averaging; an image of that size already is returned as it is."""
    if image.shape[:2] == (height, width):
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
