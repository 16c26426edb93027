"""The Piper as a ManiSkill agent: `urdf/piper.urdf`, and one controller that moves as the real arm is moved.

An action is an absolute 7-vector (six joints in rad, full gripper stroke in m) for the end of the control step. The
controller walks the straight line between two actions at the physics rate, passes every point through the limits of
`core.motion.limited_step` and feeds position and velocity to the joint drives. A batch on the GPU uses the mirror of that
function in torch; a single scene on the CPU uses the function itself and walks all five physics steps at once.

Gripper: both fingers get the same target. From 0.07 m down to GRIP_STROKE the stroke is split evenly; below, the targets
run up to GRIP_DEPTH past the closed position, so that a commanded stroke of 0 presses with about 200 N/m x
(half the object's width + GRIP_DEPTH): 3.5 N on the tape, 7.6 N on the mug. The measured stroke is the sum of the two
finger positions.
"""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sapien
import torch
from gymnasium import spaces
from mani_skill.agents.base_agent import BaseAgent
from mani_skill.agents.controllers.base_controller import BaseController, ControllerConfig
from mani_skill.agents.registration import register_agent
from mani_skill.utils.structs.pose import Pose

from policytrim_ros.core import motion
from policytrim_ros.core.kinematics import A_MAX, LIMITS, TCP_OFFSET, V_MAX

GRIP_STROKE = 0.02
GRIP_DEPTH = 0.010

JOINT_NAMES = [f"joint{i}" for i in range(1, 9)]
STIFFNESS = np.array([1000.0] * 6 + [200.0] * 2)
DAMPING = np.array([100.0] * 6 + [20.0] * 2)
FORCE_LIMIT = np.array([100.0] * 6 + [10.0] * 2)


def urdf_file() -> Path:
    """`piper.urdf` in the checkout or under the installation's share directory; FileNotFoundError when in neither."""
    for parent in Path(__file__).resolve().parents:
        for place in ("urdf/piper.urdf", "share/policytrim_ros/urdf/piper.urdf"):
            if (parent / place).is_file():
                return parent / place
    raise FileNotFoundError("piper.urdf is neither in urdf/ of the checkout nor in share/policytrim_ros/urdf of the installation")


def limited_step(x, v, goal, goal_v, dt, v_max, a_max):
    """`core.motion.limited_step` on tensors."""
    error = goal - x
    distance, brake = error.abs(), 0.8 * a_max
    stopping = torch.minimum(brake * (torch.sqrt(dt * dt / 4.0 + 2.0 * distance / brake) - dt / 2.0), distance / dt)
    closing = torch.sign(error) * stopping
    wanted = torch.clamp(goal_v + closing, -v_max, v_max)
    v_new = torch.clamp(wanted, v - a_max * dt, v + a_max * dt)
    return x + v_new * dt, v_new


def finger_targets(position, velocity):
    """Drive targets of the 8 joints (n, 8) x 2 from project units (n, 7) x 2: joint7 = half stroke, joint8 = -joint7.

    For tensors and for arrays alike.
    """
    join = torch.cat if isinstance(position, torch.Tensor) else np.concatenate
    stroke, speed = position[..., 6:7], velocity[..., 6:7]
    pressing = 1.0 * (stroke < GRIP_STROKE)
    finger = 0.5 * stroke - pressing * GRIP_DEPTH * (1.0 - stroke / GRIP_STROKE)
    finger_speed = speed * (0.5 + pressing * GRIP_DEPTH / GRIP_STROKE)
    return (
        join([position[..., :6], finger, -finger], -1),
        join([velocity[..., :6], finger_speed, -finger_speed], -1),
    )


def z_axis(pose):
    """Third column (n, 3) of the rotation of poses (n, 7), quaternion w x y z."""
    w, x, y, z = pose[:, 3:].unbind(-1)
    return torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], dim=-1)


def to_local(pose, points):
    """World points (n, 3) in the frames of poses (n, 7)."""
    w, axis, offset = pose[:, 3:4], -pose[:, 4:], points - pose[:, :3]
    twice = 2.0 * torch.linalg.cross(axis, offset)
    return offset + w * twice + torch.linalg.cross(axis, twice)


def to_project(joints8):
    """Six joints and the full stroke (n, 7) from the 8 joints of the model (n, 8); for positions and velocities."""
    return torch.cat([joints8[..., :6], joints8[..., 6:7] - joints8[..., 7:8]], dim=-1)


class LimitedJointController(BaseController):
    """Absolute joint positions, interpolated and limited; see the module's docstring."""

    config: "LimitedJointControllerConfig"
    sets_target_qpos = True
    sets_target_qvel = True
    setpoint = None
    """Limited setpoint (n, 7) of the last physics step: rad, m."""
    setpoint_velocity = None
    _start = None
    _goal = None
    _substep = 0

    def _initialize_action_space(self):
        self.single_action_space = spaces.Box(LIMITS[:, 0].astype(np.float32), LIMITS[:, 1].astype(np.float32), dtype=np.float32)
        self._low, self._high, self._v_max, self._a_max = (
            torch.tensor(a.copy(), dtype=torch.float32, device=self.device) for a in (LIMITS[:, 0], LIMITS[:, 1], V_MAX, A_MAX)
        )

    def set_drive_property(self):
        for joint, stiffness, damping, force in zip(self.joints, STIFFNESS, DAMPING, FORCE_LIMIT):
            joint.set_drive_properties(float(stiffness), float(damping), force_limit=float(force), mode="force")
            joint.set_friction(0.0)

    def measured(self):
        """Joint positions and velocities in project units: two tensors (n, 7)."""
        return to_project(self.qpos), to_project(self.qvel)

    def reset(self):
        position, _ = self.measured()
        if self.setpoint is None:
            self.setpoint, self.setpoint_velocity = position.clone(), torch.zeros_like(position)
            self._start, self._goal = position.clone(), position.clone()
        mask = self.scene._reset_mask
        self.setpoint[mask] = position[mask]
        self.setpoint_velocity[mask] = 0.0
        self._start[mask] = position[mask]
        self._goal[mask] = position[mask]
        self.drive(self.setpoint, self.setpoint_velocity)

    def set_action(self, action):
        self._preprocess_action(action)  # asserts the shape
        self._start = self._goal
        self._goal = torch.clamp(action.to(torch.float32), self._low, self._high)
        self._substep = 0

    def before_simulation_step(self):
        if self.scene.gpu_sim_enabled:
            span = self._goal - self._start
            goal = self._start + span * (self._substep / self._sim_steps)  # at the beginning of this physics step
            now = (self.setpoint, self.setpoint_velocity, goal, span * self._control_freq)
            self.setpoint, self.setpoint_velocity = limited_step(*now, self._dt, self._v_max, self._a_max)
            self.drive(self.setpoint, self.setpoint_velocity)
        else:
            if self._substep == 0:
                self._path = self._walk()
            self.setpoint, self.setpoint_velocity, *targets = (part[self._substep] for part in self._path)
            self._drive_one(*targets)
        self._substep += 1

    @property
    def _dt(self):
        return 1.0 / (self._control_freq * self._sim_steps)

    def _walk(self):
        """All physics steps of this control step at once, for a single scene on the CPU: setpoint and its velocity (steps,
        1, 7), then drive targets of the joints, positions and velocities (steps lists of 8)."""
        start, goal = self._start.numpy(), self._goal.numpy()
        span = goal - start
        shares = (np.arange(self._sim_steps) / self._sim_steps).astype(np.float32)
        goals, goal_velocity = start + span * shares[:, None, None], span * np.float32(self._control_freq)
        after, x, v = [], self.setpoint.numpy(), self.setpoint_velocity.numpy()
        for passed in goals:
            moved = motion.limited_step(x, v, passed, goal_velocity, self._dt, V_MAX, A_MAX)
            x, v = (value.astype(np.float32) for value in moved)
            after.append((x, v))
        position, velocity = (np.stack(values) for values in zip(*after))
        targets = (value[:, 0].tolist() for value in finger_targets(position, velocity))
        return torch.from_numpy(position), torch.from_numpy(velocity), *targets

    def drive(self, position, velocity):
        """Sets the drive targets of the next physics step: position and velocity (n, 7) in project units."""
        if self.scene.gpu_sim_enabled:
            position, velocity = finger_targets(position, velocity)
            self.articulation.set_joint_drive_targets(position, self.joints, self.active_joint_indices)
            self.articulation.set_joint_drive_velocity_targets(velocity, self.joints, self.active_joint_indices)
            self.scene.px.gpu_apply_articulation_target_position()
            self.scene.px.gpu_apply_articulation_target_velocity()
        else:
            self._drive_one(*(target[0].tolist() for target in finger_targets(position.numpy(), velocity.numpy())))

    def _drive_one(self, positions, velocities):
        """The same in the one scene of the CPU, for the 8 joints of the model."""
        if not hasattr(self, "_drives"):  # the engine's own joints: ManiSkill's wrappers cost a few times more
            by_name = {joint.name.split("/")[-1]: joint for joint in self.articulation._objs[0].active_joints}
            self._drives = [by_name[joint._objs[0].name.split("/")[-1]] for joint in self.joints]
        for joint, position, velocity in zip(self._drives, positions, velocities):
            joint.set_drive_target(position)
            joint.set_drive_velocity_target(velocity)

    def get_state(self) -> dict:
        return {
            "setpoint": self.setpoint.clone(),
            "setpoint_velocity": self.setpoint_velocity.clone(),
            "goal": self._goal.clone(),
        }

    def set_state(self, state: dict):
        """Restores what `get_state` returned at the end of a control step; also sets the drives."""
        self.setpoint = state["setpoint"].clone()
        self.setpoint_velocity = state["setpoint_velocity"].clone()
        self._goal, self._start = state["goal"].clone(), state["goal"].clone()
        self.drive(self.setpoint, self.setpoint_velocity)


@dataclass
class LimitedJointControllerConfig(ControllerConfig):
    controller_cls = LimitedJointController


@register_agent()
class Piper(BaseAgent):
    """The arm at the world's origin, base on the table. The coarse link boxes would collide with each other: switched off."""

    uid = "piper"
    disable_self_collisions = True
    urdf_config = dict(
        _materials=dict(grip=dict(static_friction=2.0, dynamic_friction=2.0, restitution=0.0)),
        link={name: dict(material="grip", patch_radius=0.1, min_patch_radius=0.1) for name in ("link7", "link8")},
    )

    @property
    def _controller_configs(self):
        return {"limited_joint_pos": LimitedJointControllerConfig(JOINT_NAMES)}

    def _load_articulation(self, initial_pose=None):
        tree = ElementTree.parse(urdf_file())
        for joint in tree.iter("joint"):
            for mimic in joint.findall("mimic"):  # the controller keeps the fingers together; a coupling would fight it
                joint.remove(mimic)
        if not self.scene.can_render():  # visuals need a Vulkan device
            for link in tree.iter("link"):
                for visual in link.findall("visual"):
                    link.remove(visual)
        with tempfile.TemporaryDirectory() as folder:
            self.urdf_path = str(Path(folder) / "piper.urdf")
            tree.write(self.urdf_path)
            super()._load_articulation(initial_pose)

    def _after_init(self):
        self.hand = self.robot.links_map["gripper_base"]
        self.fingers = [self.robot.links_map["link7"], self.robot.links_map["link8"]]

    @property
    def tcp_pose(self) -> Pose:
        """Pose of the point between the fingertips, batched."""
        return self.hand.pose * Pose.create(sapien.Pose([0.0, 0.0, TCP_OFFSET]), device=self.device)

    @property
    def tcp_position(self) -> torch.Tensor:
        """Position (n, 3) of the point between the fingertips; cheaper than the pose."""
        pose = self.hand.pose.raw_pose
        return pose[:, :3] + TCP_OFFSET * z_axis(pose)
