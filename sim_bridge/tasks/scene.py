"""What all tasks share: table, arm, cameras, settings, and how success, failure and the moved target are decided.

A task runs on physx_cpu (one scene) and on physx_cuda (a batch of n) alike: coordinates, distances, flags and counters are
numbers on the CPU and tensors (n,) on the GPU, and what a task says holds for both (sim_bridge/coordinates.py).
Settings: `standard` leaves the target object where it was laid; `dynamic` shifts it once, by 3 to 5 cm within 5 control
steps, when the open gripper first comes closer than MOVE_DISTANCE to where it would grasp. The shift stops early when
a finger touches the object. When and where depends only on the scene and the seed, never on who moves the arm.
"""

from __future__ import annotations

import numpy as np
import sapien
import torch
from mani_skill.envs.sapien_env import BaseEnv
from mani_skill.sensors.camera import CameraConfig
from mani_skill.utils.sapien_utils import look_at
from mani_skill.utils.structs.pose import Pose
from mani_skill.utils.structs.types import SceneConfig, SimConfig

import sim_bridge.agent  # noqa: F401  registers the agent "piper"
from policytrim_ros.core.types import READY
from sim_bridge.coordinates import coordinates, hypot
from sim_bridge.shaders import plain_shader

TIME_LIMIT = 450
"""Control steps until an episode is truncated."""

SUCCESS_STEPS = 5
"""Consecutive control steps for which the goal must hold."""

MOVE_DISTANCE = 0.065
"""TCP to grasp distance (m) at which the dynamic setting shifts the target."""

MOVE_STEPS = 5
REACH = 0.60
"""Horizontal distance from the base (m) beyond which the target counts as lost."""

TOUCH_FORCE = 0.2
"""Contact force (N) above which a finger counts as touching."""

FOV_Y = {"front": np.radians(42.5), "wrist": np.radians(58.0)}
"""Vertical field of view of the cameras (rad); the front one is that of a D435i's colour sensor."""

FRONT_EYE, FRONT_TARGET = (0.95, -0.10, 0.58), (0.25, 0.05, 0.115)
WRIST_EYE, WRIST_TILT = (-0.085, 0.0, 0.040), np.radians(32.0)

COURSE = {
    "streak": torch.int32,
    "failed": torch.bool,
    "moved": torch.bool,
    "move_left": torch.int32,
    "moves_made": torch.int32,
}
"""The course of an episode: control steps at the goal, lost for good; shift begun, its steps to come and those made."""


class Material:
    """Colour of a visual shape; creates nothing where nothing can be rendered."""

    def __init__(self, *rgb):
        self.rgba = [*rgb, 1.0]

    def render(self):
        return sapien.render.RenderMaterial(base_color=self.rgba, roughness=0.6, specular=0.1)


def add_box(builder, half, position=(0.0, 0.0, 0.0), quaternion=(1.0, 0.0, 0.0, 0.0), color=None, density=1000.0):
    """Adds one box (half sizes in m) to collision and, where the scene can render, to vision."""
    pose = sapien.Pose(list(position), list(quaternion))
    builder.add_box_collision(pose, half, density=density)
    if builder.scene.can_render():
        builder.add_box_visual(pose, half, material=color.render())


def new_builder(scene, parking_place: float):
    """An actor builder; until the first episode is laid the actor waits ``parking_place`` m behind the robot."""
    builder = scene.create_actor_builder()
    builder.initial_pose = sapien.Pose([-parking_place, 0.0, 0.1])
    return builder


def about_z(angle):
    """Quaternion (w, x, y, z) of a turn about z."""
    return (np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2))


class TabletopEnv(BaseEnv):
    """Base of the tasks. A task says what stands on the table (`build`), where (`layout`), when it is done (`placed`)
    and how far the TCP is from grasping (`grasp_distance`)."""

    SUPPORTED_ROBOTS = ["piper"]
    SUPPORTED_REWARD_MODES = ("sparse", "none")
    INSTRUCTION = ""
    TARGET = ""
    """Name of the object that is grasped (and shifted in the dynamic setting)."""
    CENTRE = (0.3, 0.0)
    """Middle of the target's placement range; shifts never point away from it."""

    def __init__(self, *args, robot_uids="piper", setting="standard", cameras=(), image_size=(128, 128), **kwargs):
        if setting not in ("standard", "dynamic"):
            raise ValueError(f"setting '{setting}': use 'standard' or 'dynamic'")
        unknown = set(cameras) - set(FOV_Y)
        if unknown:
            raise ValueError(f"cameras {sorted(unknown)} do not exist; the scene has {', '.join(FOV_Y)}")
        self.setting, self.cameras, self.image_size = setting, tuple(cameras), tuple(image_size)
        self.actors: dict = {}
        super().__init__(*args, robot_uids=robot_uids, **kwargs)

    # What a task defines ------------------------------------------------------------------------------------------

    def build(self) -> dict:
        """Builds the objects; returns name -> actor."""
        raise NotImplementedError

    def layout(self, rng: np.random.RandomState) -> dict:
        """Draws one episode: name -> pose (7,) of every object, x y z in m and quaternion w x y z."""
        raise NotImplementedError

    def placed(self):
        """Whether the goal holds now, contact with the gripper aside."""
        raise NotImplementedError

    def grasp_distance(self):
        """Distance in m from the TCP to the nearest place where the target would be grasped."""
        raise NotImplementedError

    # Scene --------------------------------------------------------------------------------------------------------

    @property
    def _default_sim_config(self):
        return SimConfig(sim_freq=100, control_freq=20, scene_config=SceneConfig(enable_enhanced_determinism=True))

    @property
    def _default_sensor_configs(self):
        width, height = self.image_size
        tilt = WRIST_TILT
        # The wrist camera sits behind the palm (-x of the hand) and leans towards the fingertips; camera axes: x looks, z up.
        look = np.array([np.sin(tilt), 0.0, np.cos(tilt)])
        up = np.array([-np.cos(tilt), 0.0, np.sin(tilt)])
        rotation = np.eye(4)
        rotation[:3, :3] = np.stack([look, np.cross(up, look), up], axis=1)
        rotation[:3, 3] = WRIST_EYE
        configs = {
            "front": lambda: CameraConfig(
                "front", look_at(FRONT_EYE, FRONT_TARGET), width, height, FOV_Y["front"], 0.01, 10.0, shader_config=plain_shader()
            ),
            "wrist": lambda: CameraConfig(
                "wrist",
                sapien.Pose(rotation),
                width,
                height,
                FOV_Y["wrist"],
                0.01,
                10.0,
                mount=self.agent.hand,
                shader_config=plain_shader(),
            ),
        }
        return [configs[name]() for name in self.cameras]

    def _load_agent(self, options):
        super()._load_agent(options, sapien.Pose())

    def _load_scene(self, options):
        builder = self.scene.create_actor_builder()
        add_box(builder, [0.6, 0.6, 0.02], color=Material(0.62, 0.55, 0.46))
        builder.initial_pose = sapien.Pose([0.3, 0.0, -0.02])
        builder.build_static("table")
        self.actors = self.build()

    def _load_lighting(self, options):
        self.scene.set_ambient_light([0.45, 0.45, 0.45])
        self.scene.add_directional_light([-0.6, 0.3, -1.0], [0.9, 0.9, 0.9])
        self.scene.add_directional_light([0.5, -0.6, -0.6], [0.4, 0.4, 0.4])

    def _initialize_episode(self, env_idx, options):
        n = len(env_idx)
        course = self._course()
        for values in course.values():
            values[env_idx] = 0
        self._take_course(course)
        if not hasattr(self, "_shift"):
            self._shift = torch.zeros(self.num_envs, 2, device=self.device)
        joints = np.zeros((n, 8), dtype=np.float32)
        poses = {name: np.zeros((n, 7), dtype=np.float32) for name in self.actors}
        for row, index in enumerate(env_idx.tolist()):
            rng = self._batched_episode_rng[index]
            joints[row, :6] = np.array(READY[:6]) + rng.normal(0.0, 0.01, 6)
            joints[row, 6:] = 0.5 * READY[6], -0.5 * READY[6]
            for name, pose in self.layout(rng).items():
                poses[name][row] = pose
            length, angle = rng.uniform(0.03, 0.05), rng.uniform(-np.pi, np.pi)
            shift = length * np.array([np.cos(angle), np.sin(angle)])
            if shift @ (np.array(self.CENTRE) - poses[self.TARGET][row, :2]) < 0:
                shift = -shift
            self._shift[index] = torch.from_numpy(shift).to(self._shift)
        self.agent.robot.set_qpos(torch.from_numpy(joints).to(self.device))
        for name, pose in poses.items():
            self.actors[name].set_pose(Pose.create(torch.from_numpy(pose).to(self.device)))

    # Course of an episode -----------------------------------------------------------------------------------------

    def pose(self, name):
        """Where an object is: x, y, z in m and its quaternion w, x, y, z."""
        return coordinates(self.actors[name])

    def finger_force(self):
        """Largest contact force in N between a finger and the target."""
        target = self.actors[self.TARGET]
        if not self.gpu_sim_enabled:  # one pass over the engine's contacts: ManiSkill's pairwise query costs five times that
            touching = {finger._bodies[0]: 0.0 for finger in self.agent.fingers}
            body = target._bodies[0]
            for contact in self.scene.px.get_contacts():
                one, other = contact.bodies
                finger = one if other is body else other
                if finger in touching and (one is body or other is body):
                    touching[finger] += sum(point.impulse for point in contact.points)
            return max(np.linalg.norm(impulse) for impulse in touching.values()) / self.scene.px.timestep
        forces = [self.scene.get_pairwise_contact_forces(finger, target).norm(dim=-1) for finger in self.agent.fingers]
        return torch.maximum(*forces)

    def _step_action(self, action):
        action = super()._step_action(action)
        self.tick()
        return action

    def tick(self):
        """Ends a control step: counts success, notices failure, shifts the target in the dynamic setting."""
        done = self.placed()
        if done.any():  # contacts are asked for only when they matter: the query costs more than the rest of a tick
            done = done & (self.finger_force() <= TOUCH_FORCE)
        self._streak = (self._streak + 1) * done
        x, y, z = self.pose(self.TARGET)[:3]
        self._failed = self._failed | (z < -0.03) | (hypot(x, y) > REACH)
        if self.setting == "dynamic":
            self._shift_target()

    def _shift_target(self):
        if (self._moved & (self._move_left == 0)).all():
            return
        gripper_open = self.agent.controller.measured()[0][..., 6] > 0.04
        begin = ~self._moved & gripper_open & (self.grasp_distance() < MOVE_DISTANCE)
        self._moved = self._moved | begin
        self._move_left = self._move_left + MOVE_STEPS * begin
        moving = self._move_left > 0
        if moving.any():
            moving = moving & (self.finger_force() <= 0.0)
        self._move_left = (self._move_left - 1) * moving
        self._moves_made = self._moves_made + moving
        if moving.any():
            self._push_target(torch.as_tensor(moving).reshape(self.num_envs))

    def _push_target(self, moving: torch.Tensor):
        """One step of the shift, in the environments ``moving`` (n,)."""
        target = self.actors[self.TARGET]
        pose = target.pose.raw_pose.clone()
        pose[:, :2] += self._shift / MOVE_STEPS
        everyone, self.scene._reset_mask = self.scene._reset_mask, moving
        target.set_pose(Pose.create(pose[moving]))
        still = torch.zeros(int(moving.sum()), 3, device=self.device)
        target.set_linear_velocity(still)
        target.set_angular_velocity(still)
        self.scene._reset_mask = everyone
        if self.gpu_sim_enabled:
            self.scene._gpu_apply_all()
            self.scene._gpu_fetch_all()

    def shifted(self) -> torch.Tensor:
        """How far (n,) in m the dynamic setting has shifted the target so far in this episode."""
        return self._shift.norm(dim=-1) * self._course()["moves_made"] / MOVE_STEPS

    def outcome(self):
        """Whether the task has succeeded, and whether it has failed for good."""
        return self._streak >= SUCCESS_STEPS, self._failed

    def evaluate(self):
        course = self._course()
        return {"success": course["streak"] >= SUCCESS_STEPS, "fail": course["failed"]}

    def _get_obs_extra(self, info):
        return {name: actor.pose.raw_pose for name, actor in self.actors.items()}

    # State --------------------------------------------------------------------------------------------------------

    def get_state_dict(self):
        state = super().get_state_dict()  # holds the controller's state too
        state["task"] = {**self._course(), "shift": self._shift.clone(), "elapsed_steps": self._elapsed_steps.clone()}
        return state

    def set_state_dict(self, state, env_idx=None):
        super().set_state_dict(state, env_idx)
        if env_idx is not None and len(env_idx) != self.num_envs:
            raise NotImplementedError("controller and task state can only be restored for all environments at once")
        if "controller" in state:
            self.agent.set_controller_state(state["controller"])
        if "task" in state:
            self._take_course(state["task"])
            self._shift, self._elapsed_steps = (
                state["task"][name].clone().to(self.device) for name in ("shift", "elapsed_steps")
            )

    def _course(self) -> dict:
        """The COURSE as tensors (n,) of their own; zeros before the first episode."""
        zeros = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)
        return {name: (zeros + getattr(self, f"_{name}", 0)).to(dtype) for name, dtype in COURSE.items()}

    def _take_course(self, course: dict) -> None:
        """Goes on from what `_course` returned."""
        for name in COURSE:
            values = course[name].to(self.device)
            setattr(self, f"_{name}", values.clone() if self.gpu_sim_enabled else values.numpy()[0])
