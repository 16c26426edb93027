"""The Piper as a ManiSkill agent: `urdf/piper.urdf`, and one controller that moves as the real arm is moved.

An action is an absolute 7-vector (six joints in rad, full gripper stroke in m) for the end of the control step. The
controller walks the straight line between two actions at the physics rate, passes every point through the limits of
`core.motion.limited_step` and feeds position and velocity to the joint drives. A batch on the GPU uses the mirror of that
function in torch (`LimitedJointController`); the one scene of the CPU uses the function itself (`SingleArmController`).

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
from sim_bridge.coordinates import coordinates, z_axis

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


def finger_target(stroke, speed):
    """Drive target of joint7 (m) and its velocity (m/s) from the stroke and its speed; for tensors and numbers alike."""
    pressing = 1.0 * (stroke < GRIP_STROKE)
    finger = 0.5 * stroke - pressing * GRIP_DEPTH * (1.0 - stroke / GRIP_STROKE)
    return finger, speed * (0.5 + pressing * GRIP_DEPTH / GRIP_STROKE)


def finger_targets(position, velocity):
    """Drive targets of the 8 joints (n, 8) x 2 from project units (n, 7) x 2, tensors: joint8 = -joint7."""
    finger, speed = finger_target(position[..., 6:7], velocity[..., 6:7])
    return (
        torch.cat([position[..., :6], finger, -finger], dim=-1),
        torch.cat([velocity[..., :6], speed, -speed], dim=-1),
    )


def to_project(joints8):
    """Six joints and the full stroke (n, 7) from the 8 joints of the model (n, 8); for positions and velocities.

    For tensors and for arrays alike.
    """
    join = torch.cat if isinstance(joints8, torch.Tensor) else np.concatenate
    return join([joints8[..., :6], joints8[..., 6:7] - joints8[..., 7:8]], -1)


class LimitedJointController(BaseController):
    """Absolute joint positions, interpolated and limited, of a batch of arms on the GPU; see the module's docstring."""

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
        span = self._goal - self._start
        goal = self._start + span * (self._substep / self._sim_steps)  # at the beginning of this physics step
        now = (self.setpoint, self.setpoint_velocity, goal, span * self._control_freq)
        self.setpoint, self.setpoint_velocity = limited_step(*now, self._dt, self._v_max, self._a_max)
        self.drive(self.setpoint, self.setpoint_velocity)
        self._substep += 1

    @property
    def _dt(self):
        return 1.0 / (self._control_freq * self._sim_steps)

    def drive(self, position, velocity):
        """Sets the drive targets of the next physics step: position and velocity (n, 7) in project units."""
        position, velocity = finger_targets(position, velocity)
        self.articulation.set_joint_drive_targets(position, self.joints, self.active_joint_indices)
        self.articulation.set_joint_drive_velocity_targets(velocity, self.joints, self.active_joint_indices)
        self.scene.px.gpu_apply_articulation_target_position()
        self.scene.px.gpu_apply_articulation_target_velocity()

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


class SingleArmController(LimitedJointController):
    """The same for the one arm of a scene on the CPU: arrays (7,) instead of tensors (n, 7), and the engine's own joints
    instead of ManiSkill's, because here the arithmetic of one control step would cost as much as its physics."""

    def _initialize_joints(self):
        super()._initialize_joints()
        self._arm = self.articulation._objs[0]
        self._order = self.active_joint_indices.numpy()
        by_name = {joint.name.split("/")[-1]: joint for joint in self._arm.active_joints}
        drives = [by_name[joint._objs[0].name.split("/")[-1]] for joint in self.joints]
        self._drives = [(joint.set_drive_target, joint.set_drive_velocity_target) for joint in drives]

    def _initialize_action_space(self):
        super()._initialize_action_space()
        self._low, self._high = LIMITS.astype(np.float32).T
        self._shares = (np.arange(self._sim_steps) / self._sim_steps).astype(np.float32)[:, None]
        self._rate = np.float32(self._control_freq)

    @property
    def qpos(self):
        return self._arm.qpos[self._order]

    @property
    def qvel(self):
        return self._arm.qvel[self._order]

    def reset(self):
        position, _ = self.measured()
        self.put(position, np.zeros_like(position))

    def put(self, position, velocity):
        """Drives at ``position`` and ``velocity`` (7,), unlimited; the next action starts there."""
        self.setpoint, self.setpoint_velocity = (np.array(x, dtype=np.float32) for x in (position, velocity))
        self._goal = self.setpoint
        self.drive(self.setpoint, self.setpoint_velocity)

    def set_action(self, action):
        action = np.asarray(action, dtype=np.float32).reshape(7)
        start, self._goal = self._goal, np.minimum(np.maximum(action, self._low), self._high)
        span = self._goal - start
        self._path, self._speed = iter(start + span * self._shares), span * self._rate

    def before_simulation_step(self):
        now = self.setpoint, self.setpoint_velocity, next(self._path), self._speed
        position, velocity = motion.limited_step(*now, self._dt, V_MAX, A_MAX)
        self.setpoint, self.setpoint_velocity = position.astype(np.float32), velocity.astype(np.float32)
        self.drive(self.setpoint, self.setpoint_velocity)

    def targets(self, position, velocity):
        """`finger_targets` of one arm: two tuples of 8 numbers."""
        finger, speed = finger_target(position[6], velocity[6])
        return (*position[:6].tolist(), finger, -finger), (*velocity[:6].tolist(), speed, -speed)

    def drive(self, position, velocity):
        positions, velocities = self.targets(position, velocity)
        for (set_position, set_velocity), position, velocity in zip(self._drives, positions, velocities):
            set_position(position)
            set_velocity(velocity)

    def get_state(self) -> dict:
        state = {"setpoint": self.setpoint, "setpoint_velocity": self.setpoint_velocity, "goal": self._goal}
        return {name: torch.tensor(value)[None] for name, value in state.items()}

    def set_state(self, state: dict):
        self.put(state["setpoint"][0], state["setpoint_velocity"][0])
        self._goal = np.array(state["goal"][0])


@dataclass
class LimitedJointControllerConfig(ControllerConfig):
    controller_cls = LimitedJointController


@dataclass
class SingleArmControllerConfig(ControllerConfig):
    controller_cls = SingleArmController


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
        config = LimitedJointControllerConfig if self.scene.gpu_sim_enabled else SingleArmControllerConfig
        return {"limited_joint_pos": config(JOINT_NAMES)}

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
    def tcp_position(self):
        """Coordinates (x, y, z) of the point between the fingertips; cheaper than the pose."""
        hand = coordinates(self.hand)
        return [place + TCP_OFFSET * way for place, way in zip(hand, z_axis(hand))]
