"""The protocol between whoever has pictures (inference node, evaluation, rollouts) and whoever has a network.

    robot = robot_contract({"front": (424, 240), "wrist": (424, 240)})
    policy, manifest = checkpoint.load("models/piper-pi0-tiny", robot=robot)
    observation = Observation(images={"front": rgb[None], "wrist": rgb2[None]}, state=state14[None], instruction=["..."])
    actions = policy.predict(observation, seeds=[0])          # (1, H, 7) float32: absolute targets, rad and m

Shapes: B = batch, H = prediction horizon, A = 7 (six joints in rad, gripper stroke in m), state = 14 = measured 7 + setpoint 7.
Pictures may arrive at any size of the contract's aspect ratio: `ChunkPolicy.inputs` brings them to the policy's size with
`resize_image`, the very function with which the training pictures were made.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from policytrim_ros.core.commitment import Commitment, prefix_weights
from policytrim_ros.core.contract import Contract
from policytrim_ros.core.types import JOINTS
from policytrim_ros.policies.objects import DIRECTIONS, POSITIONS, object_features
from policytrim_ros.policies.pictures import resize_images
from policytrim_ros.policies.tokenizer import encode as encode_words

ACTIONS = len(JOINTS)
STATE = 2 * ACTIONS


@dataclass(frozen=True)
class Observation:
    """What a policy sees at one moment, B of them.

    images: name -> (B, h, w, 3) uint8 RGB; state: (B, 14) float32, measured positions then setpoints (rad, m);
    instruction: B sentences; objects, for policies that are told the truth by the simulator: (B, slots, 7) poses in
    base_link, x y z (m) and quaternion w x y z, NaN where there is no such object; committed, in mode rtc: the plan that the
    arm goes on playing in each row, None where there is none. Families that are not `guided` take no notice of it.
    Raises ValueError on other shapes, dtypes or on a state with NaN.
    """

    images: Mapping[str, np.ndarray]
    state: np.ndarray
    instruction: Sequence[str]
    objects: np.ndarray | None = None
    committed: Sequence[Commitment | None] | None = None

    def __post_init__(self):
        state = np.asarray(self.state, dtype=np.float32)
        if state.ndim != 2 or state.shape[1] != STATE:
            raise ValueError(f"state has shape {state.shape}, expected (B, {STATE}): 7 measured positions, 7 setpoints")
        if not np.all(np.isfinite(state)):
            raise ValueError("state holds NaN or infinity")
        if isinstance(self.instruction, str) or len(self.instruction) != len(state):
            raise ValueError(f"instruction must be a list of {len(state)} sentences")
        for name, pictures in self.images.items():
            if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[3] != 3 or len(pictures) != len(state):
                raise ValueError(f"images of '{name}': {pictures.dtype} {pictures.shape}, expected uint8 ({len(state)}, h, w, 3)")
        if self.objects is not None:
            objects = np.asarray(self.objects, dtype=np.float32)
            if objects.ndim != 3 or len(objects) != len(state) or objects.shape[2] != 7:
                raise ValueError(f"objects have shape {objects.shape}, expected ({len(state)}, slots, 7) poses")
            object.__setattr__(self, "objects", objects)
        if self.committed is not None and len(self.committed) != len(state):
            raise ValueError(f"{len(self.committed)} plans for {len(state)} observations; give None where there is none")
        object.__setattr__(self, "state", state)


def blank(contract: Contract, size: tuple[int, int] | None = None) -> Observation:
    """One observation of black pictures, of ``size`` (width, height) or the policy's own, and an arm at zero: for timing and warm-up."""
    sizes = {camera.name: size or (camera.width, camera.height) for camera in contract.cameras}
    images = {name: np.zeros((1, height, width, 3), np.uint8) for name, (width, height) in sizes.items()}
    objects = np.full((1, contract.object_slots, 7), np.nan, np.float32) if contract.object_slots else None
    return Observation(images, np.zeros((1, STATE), np.float32), [contract.instructions[0]], objects)


def repeated(seen: Observation, rows: int, plan: Commitment | None = None) -> Observation:
    """``seen`` (one row) so many times, each with ``plan`` to go on from."""
    return Observation(
        {name: np.repeat(pictures, rows, axis=0) for name, pictures in seen.images.items()},
        np.repeat(seen.state, rows, axis=0),
        list(seen.instruction) * rows,
        None if seen.objects is None else np.repeat(seen.objects, rows, axis=0),
        [plan] * rows if plan else None,
    )


@dataclass(frozen=True)
class Inputs:
    """An observation as tensors, B rows: what every network of the project begins with.

    pixels (B, n, 3, h, w) in [-1, 1], n cameras in the contract's order, or None; state (B, 14) rad, m;
    objects (B, slots, 13) from `object_features`, or None; ids and words (B, L): tokens of the instruction and their mask;
    plan (B, H, 7) normalised actions that the chunk is to go on from, and plan_weights (B, H), or None.
    """

    pixels: torch.Tensor | None
    state: torch.Tensor
    objects: torch.Tensor | None
    ids: torch.Tensor
    words: torch.Tensor
    plan: torch.Tensor | None = None
    plan_weights: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.state)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Inputs":
        """The inputs with ``change`` applied to every tensor."""
        values = (getattr(self, spec.name) for spec in fields(self))
        return Inputs(*(None if value is None else change(value) for value in values))

    def rows(self, index) -> "Inputs":
        """The chosen rows, in the order of ``index``."""
        return self.each(lambda tensor: tensor[index])

    def to(self, device) -> "Inputs":
        """The same on another device."""
        return self.each(lambda tensor: tensor.to(device))


class ChunkPolicy(nn.Module):
    """Base of every family: an observation in, a chunk of H absolute actions out.

    Inside every network, action x[k] is the joint target of step k minus the setpoint at observation time (rad) and the
    absolute gripper stroke (m), both scaled to [-1, 1] with quantiles of their own for every k, so that the first small
    steps of a chunk are learned as precisely as its far end. State features are measured positions and setpoint - measured.
    A family is a subclass with `losses` (how it is trained) and `sample` (how it acts).
    """

    family: str
    architecture: str
    guided = False
    """Whether `sample` heeds a plan (mode rtc)."""

    def __init__(self, config, contract: Contract, tokenizer):
        super().__init__()
        if contract.prediction_horizon != config.horizon:
            raise ValueError(f"the contract says H = {contract.prediction_horizon}, the network H = {config.horizon}")
        if len({(camera.width, camera.height) for camera in contract.cameras}) > 1:
            raise ValueError("all cameras of one policy must have one picture size")
        if not contract.cameras and not contract.object_slots:
            raise ValueError("a policy needs a camera, or the simulator's object poses")
        self.config, self.contract, self.tokenizer = config, contract, tokenizer
        state, actions = contract.normalisation["state"], contract.normalisation["actions"]
        for name, values, shape in (
            ("state_low", state.q01, (STATE,)),
            ("state_high", state.q99, (STATE,)),
            ("action_low", actions.q01, (config.horizon, ACTIONS)),
            ("action_high", actions.q99, (config.horizon, ACTIONS)),
        ):
            tensor = torch.tensor(values, dtype=torch.float32)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"normalisation '{name}' has shape {tuple(tensor.shape)}, expected {shape}")
            self.register_buffer(name, tensor, persistent=False)  # they live in the contract, not in the weights

    # -- what a family adds -------------------------------------------------------------------------------------

    def losses(self, inputs: Inputs, actions, *, generator, repeats: int = 1, places=None) -> dict[str, torch.Tensor]:
        """Scalars to minimise: "action", and "locate" when ``places`` (B, 2, 18), `objects.object_places`, are given and wanted.

        actions (B, H, 7) absolute rad, m; ``generator`` draws whatever is random; ``repeats``: random draws for each row
        that share its encoded observation.
        """
        raise NotImplementedError

    def sample(self, inputs: Inputs, generators=None, steps: int | None = None) -> torch.Tensor:
        """(B, H, 7) normalised actions for deployment; ``generators``: one for each row (None: torch's own)."""
        raise NotImplementedError

    # -- observations -------------------------------------------------------------------------------------------

    @staticmethod
    def prompt(instruction: str) -> str:
        """What this family reads instead of the bare instruction; its tokenizer is trained on prompts."""
        return instruction

    @property
    def device(self) -> torch.device:
        return self.state_low.device

    def inputs(self, observation: Observation) -> Inputs:
        """The observation as tensors on this policy's device. ValueError names a missing camera or missing object poses."""
        pixels = self.pixels(observation.images) if self.contract.cameras else None
        objects = None
        if slots := self.contract.object_slots:
            if observation.objects is None or observation.objects.shape[1] < slots:
                raise ValueError(f"this policy needs the poses of {slots} objects, which only the simulator knows")
            features = object_features(observation.objects[:, :slots], observation.state, self.contract.action_kind)
            objects = torch.from_numpy(features).to(self.device)
        state = torch.from_numpy(observation.state).to(self.device)
        plan = self.plan(observation.committed, state) if self.guided and observation.committed else ()
        return Inputs(pixels, state, objects, *self.words(observation.instruction), *plan)

    def pixels(self, images) -> torch.Tensor:
        """Named uint8 pictures (B, h, w, 3) -> (B, n, 3, h, w) in [-1, 1], resized. ValueError names a missing camera."""
        resized = resize_images(images, self.contract.cameras)
        return scale_pixels(torch.from_numpy(np.stack(list(resized.values()), axis=1)).to(self.device))

    def processor(self) -> dict:
        """What `pixels` does to a picture, in words that a checkpoint keeps and that must still be true when it is loaded."""
        sizes = [[camera.width, camera.height] for camera in self.contract.cameras[:1]]
        return {"size": sizes[0] if sizes else None, "resize": "area", "range": [-1.0, 1.0]}

    def words(self, instruction: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask (B, L) of B sentences."""
        return tuple(torch.from_numpy(array).to(self.device) for array in encode_words(self.tokenizer, instruction))

    def under(self, contract: Contract) -> "ChunkPolicy":
        """A copy of this policy with another contract, in training mode and with gradients as a new one. Its prediction horizon is the
        contract's; RuntimeError where weights depend on that."""
        copy = type(self)(replace(self.config, horizon=contract.prediction_horizon), contract, self.tokenizer)
        copy.load_state_dict(self.state_dict())
        return copy

    # -- units --------------------------------------------------------------------------------------------------

    def state_features(self, state: torch.Tensor) -> torch.Tensor:
        """(B, 14) measured | setpoint (rad, m) -> (B, 14) normalised measured | setpoint - measured."""
        measured, setpoint = state[..., :ACTIONS], state[..., ACTIONS:]
        return scale(torch.cat([measured, setpoint - measured], dim=-1), self.state_low, self.state_high)

    def to_model(self, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, H, 7) absolute targets -> normalised relative actions."""
        relative = torch.cat([actions[..., :6] - state[:, None, ACTIONS : ACTIONS + 6], actions[..., 6:]], dim=-1)
        return scale(relative, self.action_low, self.action_high)

    def plan(self, committed: Sequence[Commitment | None], state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`Inputs.plan` and its weights: absolute actions, which other observations led to, relative to the setpoint of this one."""
        horizon = self.config.horizon
        actions = state[:, None, ACTIONS:].repeat(1, horizon, 1)  # where there is no plan anything finite will do
        weights = state.new_zeros(len(state), horizon)
        for row, left in enumerate(committed):
            if left is not None:
                known = left.actions[:horizon]
                actions[row, : len(known)] = torch.from_numpy(known.copy())
                weights[row] = torch.from_numpy(prefix_weights(left.certain, len(known), horizon))
        return self.to_model(actions, state), weights

    def to_robot(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_model`; the gripper is kept within its range."""
        relative = unscale(x, self.action_low, self.action_high)
        joints = relative[..., :6] + state[:, None, ACTIONS : ACTIONS + 6]
        return torch.cat([joints, relative[..., 6:].clamp(*self.contract.gripper_range)], dim=-1)

    # -- deployment ---------------------------------------------------------------------------------------------

    def predict(self, observation: Observation, *, seeds: Sequence[int] | None = None, steps: int | None = None) -> np.ndarray:
        """(B, H, 7) float32 absolute targets in rad and m, one a control step, the first for the end of the coming step.

        ``seeds`` (one a row) fix the sampling whoever else is in the batch; ``steps`` is the number of denoising steps
        where the family has any (None: the policy's own). Raises ValueError when a camera is missing.
        """
        generators = None
        if seeds is not None:
            if len(seeds) != len(observation.state):
                raise ValueError(f"{len(seeds)} seeds for {len(observation.state)} observations")
            generators = [torch.Generator(self.device).manual_seed(int(seed)) for seed in seeds]
        inputs = self.inputs(observation)
        # guidance differentiates the network, which inference mode rules out
        with torch.inference_mode() if inputs.plan is None else torch.no_grad():
            return self.to_robot(self.sample(inputs, generators, steps), inputs.state).cpu().numpy()


def locate_loss(guess: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Smooth L1 of the auxiliary task: mean over the positions that are known (places: NaN where not) plus mean over the
    directions; of the positions alone when ``guess`` (B, slots, 6) has no more. 0 when none is known."""
    places, total = places[..., : guess.shape[-1]], guess.sum() * 0
    for part in (POSITIONS, DIRECTIONS):
        known = torch.isfinite(places[..., part])
        if known.any():
            total = total + F.smooth_l1_loss(guess[..., part][known], places[..., part][known], beta=0.1)
    return total


def noise(shape: Sequence[int], generators=None, device="cpu", draw=torch.randn) -> torch.Tensor:
    """Noise (B, ...), standard normal or as ``draw`` has it; row i is drawn by ``generators[i]``."""
    if generators is None:
        return draw(shape, device=device)
    return torch.stack([draw(shape[1:], generator=generator, device=device) for generator in generators])


def scale_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """(B, n, h, w, 3) uint8 -> (B, n, 3, h, w) float32 in [-1, 1]."""
    return pictures.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0


def scale(values, low, high):
    """Normalised: low becomes -1 and high 1."""
    return 2.0 * (values - low) / (high - low) - 1.0


def unscale(x, low, high):
    """Inverse of `scale`."""
    return (x + 1.0) * 0.5 * (high - low) + low
