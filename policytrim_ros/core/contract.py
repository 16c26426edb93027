"""What a checkpoint needs and speaks, and whether a robot can give and understand it.

A checkpoint carries a `Contract`; a deployment declares one with `robot_contract`. `mismatches` compares the two and
answers in sentences. Nothing is converted silently: a policy that speaks degrees is refused, not scaled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Mapping, Sequence

import numpy as np

from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS

VERSION = 2
"""Version of the contract's meaning; raised when a field changes what it says."""

STATE_LAYOUT = ("measured", "setpoint")
"""Proprioception is a 14-vector: the 7 measured positions, then the 7 limited setpoints, in the joint order."""

ACTION_KIND = "absolute_joint_position"
HAND_POSITION = "absolute_hand_position"
"""Of a simulated arm that is told where its hand is to be: x y z in m, three zeros, gripper stroke in m."""

GRIPPER_RANGE_M = (0.0, 0.07)
ASPECT_TOLERANCE = 0.03
PLAUSIBLE_RAD = 3.5


@dataclass(frozen=True)
class Camera:
    """One colour stream: the size in pixels that a policy eats, or that a robot delivers."""

    name: str
    width: int
    height: int
    channels: str = "rgb"

    @property
    def aspect(self) -> float:
        return self.width / self.height


@dataclass(frozen=True)
class Normalisation:
    """Quantiles that map a quantity to [-1, 1]: nested tuples of one shape, last axis = components."""

    q01: tuple
    q99: tuple

    def __post_init__(self):
        low, high = np.asarray(self.q01, float), np.asarray(self.q99, float)
        if low.shape != high.shape:
            raise ValueError(f"q01 has shape {low.shape} but q99 has {high.shape}")
        if not (np.all(np.isfinite(low)) and np.all(np.isfinite(high)) and np.all(high > low)):
            raise ValueError("quantiles must be finite, with q99 above q01 in every component")


@dataclass(frozen=True)
class Contract:
    """The terms between a policy and a robot.

    ``prediction_horizon`` H and ``execution_horizon`` h count control steps; a robot declares H = 0 (any) and the h it
    will execute (0: the checkpoint's own). ``tasks`` are the tasks a checkpoint was made for, or those a robot is asked
    to do; ``instructions`` the sentences the policy was trained with. ``normalisation`` belongs to the policy alone.
    ``object_slots`` > 0: the policy is told the true poses of so many objects, in the order of the environment's; a robot has 0.
    """

    cameras: tuple[Camera, ...]
    joints: tuple[str, ...] = JOINTS
    joint_unit: str = "rad"
    signs: tuple[int, ...] = (1,) * len(JOINTS)
    gripper_unit: str = "m"
    gripper_range: tuple[float, float] = GRIPPER_RANGE_M
    object_slots: int = 0
    control_rate_hz: float = CONTROL_RATE_HZ
    prediction_horizon: int = 0
    execution_horizon: int = 0
    state_layout: tuple[str, ...] = STATE_LAYOUT
    action_kind: str = ACTION_KIND
    tasks: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
    normalisation: Mapping[str, Normalisation] = field(default_factory=dict)
    version: int = VERSION

    def __post_init__(self):
        if len({camera.name for camera in self.cameras}) != len(self.cameras):
            raise ValueError("two cameras of one contract have the same name")
        if len(self.signs) != len(self.joints):
            raise ValueError(f"{len(self.signs)} signs for {len(self.joints)} joints")
        if self.execution_horizon > self.prediction_horizon > 0:
            raise ValueError(
                f"execution horizon {self.execution_horizon} is longer than the prediction horizon {self.prediction_horizon}"
            )

    @property
    def moves_joints(self) -> bool:
        """Whether actions are targets of the robot's joints, so that the controller's limits concern them."""
        return self.action_kind == ACTION_KIND

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Contract":
        """Raises ValueError that names a missing, unknown or malformed entry."""
        known = {spec.name for spec in fields(cls)}
        unknown, missing = sorted(set(values) - known), sorted(known - set(values))
        if unknown or missing:
            raise ValueError(f"contract: unknown entries {unknown}, missing entries {missing}")
        try:
            plain = {key: _tuples(value) for key, value in values.items() if key not in ("cameras", "normalisation")}
            cameras = tuple(Camera(**camera) for camera in values["cameras"])
            norms = {key: Normalisation(_tuples(n["q01"]), _tuples(n["q99"])) for key, n in values["normalisation"].items()}
            return cls(cameras=cameras, normalisation=norms, **plain)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"contract: malformed entry ({error})") from error


def robot_contract(
    cameras: Mapping[str, tuple[int, int]],
    *,
    control_rate_hz: float = CONTROL_RATE_HZ,
    execution_horizon: int = 0,
    tasks: Sequence[str] = (),
    gripper_range: tuple[float, float] = GRIPPER_RANGE_M,
) -> Contract:
    """What this robot delivers and obeys. ``cameras``: name -> (width, height) of the RGB stream in pixels."""
    return Contract(
        cameras=tuple(Camera(name, int(width), int(height)) for name, (width, height) in cameras.items()),
        control_rate_hz=control_rate_hz,
        execution_horizon=execution_horizon,
        tasks=tuple(tasks),
        gripper_range=tuple(gripper_range),
    )


def mismatches(checkpoint: Contract, robot: Contract) -> list[str]:
    """Sentences that say in what the checkpoint does not fit the robot; empty when it fits."""
    found = [sentence for camera in checkpoint.cameras for sentence in _camera_mismatches(camera, robot.cameras)]
    for name, label in (
        ("version", "contract version"),
        ("joints", "joint order"),
        ("joint_unit", "unit of joint angles"),
        ("signs", "joint signs"),
        ("gripper_unit", "unit of the gripper"),
        ("control_rate_hz", "control rate (Hz)"),
        ("state_layout", "layout of the joint state"),
        ("action_kind", "kind of action"),
    ):
        theirs, ours = getattr(checkpoint, name), getattr(robot, name)
        if theirs != ours:
            found.append(f"{label}: the checkpoint uses {_words(theirs)}, the robot {_words(ours)}")
    if checkpoint.gripper_unit == robot.gripper_unit and not _within(checkpoint.gripper_range, robot.gripper_range):
        found.append(
            f"gripper range: the checkpoint uses {_words(checkpoint.gripper_range)} {checkpoint.gripper_unit}, "
            f"the robot only {_words(robot.gripper_range)}"
        )
    if checkpoint.object_slots > robot.object_slots:
        found.append(
            f"objects: the checkpoint is told the true poses of {checkpoint.object_slots} objects, which only the simulator knows"
        )
    if checkpoint.prediction_horizon < 1:
        found.append("prediction horizon: the checkpoint does not say how many actions it predicts")
    elif robot.execution_horizon > checkpoint.prediction_horizon:
        found.append(
            f"execution horizon: {robot.execution_horizon} actions a chunk are asked for, "
            f"the checkpoint predicts H = {checkpoint.prediction_horizon}"
        )
    if robot.prediction_horizon not in (0, checkpoint.prediction_horizon):
        found.append(
            f"prediction horizon: the checkpoint predicts H = {checkpoint.prediction_horizon}, "
            f"the robot expects {robot.prediction_horizon}"
        )
    for task in robot.tasks:
        if task not in checkpoint.tasks:
            found.append(f"task: the checkpoint was not made for '{task}', only for {_words(checkpoint.tasks)}")
    return found


def is_remote(checkpoint) -> bool:
    """Whether ``checkpoint`` is not a directory but the address of a policy server."""
    return str(checkpoint).startswith(("ws://", "wss://"))


def implausible(positions) -> str | None:
    """One sentence when 7-vectors (..., 7) cannot be rad and m, else None. Joint angles above 3.5 look like degrees."""
    values = np.asarray(positions, dtype=float)
    if values.shape[-1:] != (len(JOINTS),):
        return f"positions have shape {values.shape}; the last axis must be the {len(JOINTS)} joints"
    if not np.all(np.isfinite(values)):
        return "positions hold NaN or infinity"
    if values.size == 0:
        return None
    largest = np.abs(values[..., :6]).max()
    if largest > PLAUSIBLE_RAD:
        return f"a joint angle of {largest:.4g} rad is beyond the arm's reach; it looks like degrees (expected rad)"
    stroke = np.abs(values[..., 6]).max()
    if stroke > 2 * GRIPPER_RANGE_M[1]:
        return f"a gripper stroke of {stroke:.4g} m is beyond the gripper; it looks like millimetres or a 0..1 value (expected m)"
    return None


def _camera_mismatches(camera: Camera, available: Sequence[Camera]) -> list[str]:
    match = next((other for other in available if other.name == camera.name), None)
    if match is None:
        return [f"camera '{camera.name}' is missing: the robot has {_words([c.name for c in available]) or 'none'}"]
    found = []
    if match.channels != camera.channels:
        found.append(f"camera '{camera.name}': the checkpoint wants {camera.channels} pictures, the robot sends {match.channels}")
    if abs(match.aspect / camera.aspect - 1) > ASPECT_TOLERANCE:
        found.append(
            f"camera '{camera.name}': the checkpoint was trained on {camera.width}x{camera.height} pictures, "
            f"the robot sends {match.width}x{match.height}, another aspect ratio"
        )
    elif match.width < camera.width:
        found.append(
            f"camera '{camera.name}': the robot's {match.width}x{match.height} is smaller "
            f"than the checkpoint's {camera.width}x{camera.height}"
        )
    return found


def _within(inner, outer, slack=1e-9) -> bool:
    return inner[0] >= outer[0] - slack and inner[1] <= outer[1] + slack


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, (list, tuple)) else value


def _words(value) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
