"""`TaskEnv`: the one way in which training, evaluation and the real-time world use a task; `make_vec` runs many at once.

    env = TaskEnv("flip_mug", setting="dynamic", cameras=("front", "wrist"), image_size=(96, 96))
    env.reset(seed=7)
    result = env.step(action)            # (7,): six joints in rad, full gripper stroke in m; 50 ms pass
    if result.success or result.failure or result.truncated: ...

A control step is five physics steps of 10 ms and one `control_tick`. The real-time world drives the same pieces itself:
`substep(position, velocity)` every 10 ms and `control_tick()` after every fifth.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import traceback

import cv2
import gymnasium
import numpy as np
import sapien
import torch
from mani_skill.utils.structs.pose import Pose

from sim_bridge.agent import DAMPING, FORCE_LIMIT, STIFFNESS, to_project
from sim_bridge.step import StepResult
from sim_bridge.tasks import SETTINGS, SHARED, TASKS
from sim_bridge.tasks.scene import FOV_Y, TIME_LIMIT

SUBSTEPS = 5
SUBSTEP_S = 0.01
GYM_IDS = {"tape_box": "PolicyTrim-TapeBox-v1", "flip_mug": "PolicyTrim-FlipMug-v1", "hang_mug": "PolicyTrim-HangMug-v1"}


def _make_base(task, setting, cameras, image_size, num_envs, sim_backend):
    if task not in TASKS:
        raise ValueError(f"task '{task}' does not exist; choose one of {', '.join(TASKS)}")
    settings = SETTINGS + (("shared",) if task in SHARED else ())
    if setting not in settings:
        raise ValueError(f"setting '{setting}' does not exist for {task}; choose one of {', '.join(settings)}")
    _settle()
    render = "none" if not cameras else "sapien_cuda" if torch.cuda.is_available() else "sapien_cpu"
    return gymnasium.make(
        GYM_IDS[task].replace("-v1", "-Shared-v1") if setting == "shared" else GYM_IDS[task],
        num_envs=num_envs,
        obs_mode="none",
        reward_mode="none",
        setting="standard" if setting == "shared" else setting,
        cameras=cameras,
        image_size=image_size,
        sim_backend=sim_backend,
        render_backend=render,
    ).unwrapped


@functools.cache
def _settle() -> None:
    """Puts everything imported so far out of the garbage collector's sight: ManiSkill collects garbage whenever it builds a
    scene, and looking through the objects of torch and transformers took it half of an evaluation's resets."""
    gc.collect()
    gc.freeze()


class TaskEnv:
    """One task in one simulated scene on the CPU. Without ``cameras`` neither a renderer nor a Vulkan device is needed.

    ``image_size`` is (width, height) of all cameras. ValueError names an unknown task, setting or camera.
    """

    def __init__(self, task: str, setting: str = "standard", cameras=(), image_size=(128, 128)):
        self.task, self.setting, self.cameras, self.image_size = task, setting, tuple(cameras), tuple(image_size)
        self._env = _make_base(task, setting, self.cameras, self.image_size, 1, "physx_cpu")
        self.steps = 0

    @property
    def _controller(self):
        return self._env.agent.controller

    @property
    def instruction(self) -> str:
        """The task in words, as a policy is told."""
        return self._env.INSTRUCTION

    def reset(self, seed: int, rebuild: bool = False) -> None:
        """Lays the scene that belongs to ``seed``; the arm is at READY, at rest, the gripper open.

        ``rebuild`` builds the scene anew first (0.15 s): what follows is then bit for bit a function of seed and actions.
        Otherwise contacts that the engine remembers from earlier episodes change the last bits.
        """
        self._env.reset(seed=int(seed), options={"reconfigure": True} if rebuild else None)
        self.steps = 0

    def step(self, action) -> StepResult:
        """Plays one action (7,) for one control step of 50 ms; values beyond the joint limits are clipped."""
        action = np.asarray(action, dtype=np.float32)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, got {action}")
        controller, scene = self._controller, self._env.scene
        controller.set_action(action)
        for _ in range(SUBSTEPS):
            controller.before_simulation_step()
            scene.step()
        success, failure = self.control_tick()
        return StepResult(success, failure, not (success or failure) and self.steps >= TIME_LIMIT, self.steps)

    # Real time ----------------------------------------------------------------------------------------------------

    def substep(self, position7, velocity7) -> None:
        """One physics step of 10 ms with the drives at ``position7`` (rad, m) and ``velocity7`` (rad/s, m/s), unlimited."""
        self._controller.put(position7, velocity7)
        self._env.scene.step()

    def control_tick(self) -> tuple[bool, bool]:
        """Ends a control step (after every fifth `substep`): (success, failure). Also shifts the target when dynamic."""
        self._env.tick()
        self.steps += 1
        success, failure = self._env.outcome()
        return bool(success), bool(failure)

    def joint_state(self):
        """Measured position (rad, m), velocity (rad/s, m/s) and effort of the drives (N m, N), each (7,) float64."""
        controller = self._controller
        position, velocity = (x.astype(np.float64) for x in controller.measured())
        target, speed = controller.targets(controller.setpoint, controller.setpoint_velocity)
        error, speed_error = np.array(target) - controller.qpos, np.array(speed) - controller.qvel
        effort = np.clip(STIFFNESS * error + DAMPING * speed_error, -FORCE_LIMIT, FORCE_LIMIT)
        return position, velocity, np.append(effort[:6], 0.5 * (effort[6] - effort[7]))

    def place_arm(self, position7) -> None:
        """Puts the arm at ``position7`` (rad, m), at rest, the drives holding it there."""
        position = np.asarray(position7, dtype=np.float32)
        half = 0.5 * position[6]
        self._env.agent.robot.set_qpos(np.array([*position[:6], half, -half]))
        self._env.agent.robot.set_qvel(np.zeros(8, dtype=np.float32))
        self._controller.put(position, np.zeros(7))

    def loosen(self, resistance) -> None:
        """Takes motors of the arm away: on a joint whose ``resistance`` (6, 2) (N m s/rad, at most N m) is not 0 only the weight of
        what lies beyond it acts, against that. Where it is 0 the motor is back (the weight is compensated then, as by the arm's
        firmware)."""
        loose = np.flatnonzero(resistance[:, 0])
        light = 1 + loose[0] if len(loose) else None  # the base, and a link for each joint before the first loose one
        for i, link in enumerate(self._env.agent.robot._objs[0].links):
            link.disable_gravity = light is None or i < light
        self._controller.set_drive_property()
        for i in loose:
            damping, most = resistance[i]
            self._controller.joints[i].set_drive_properties(0.0, float(damping), force_limit=float(most), mode="force")

    # Observation --------------------------------------------------------------------------------------------------

    def proprioception(self) -> np.ndarray:
        """Measured joints (7) and limited setpoint (7) as (14,) float32: rad, m."""
        controller = self._controller
        return np.concatenate([to_project(controller.qpos), controller.setpoint])

    def objects(self) -> dict:
        """Privileged: name -> pose (7,) float64 of every object, x y z in m and quaternion w x y z."""
        return {name: np.array(self._env.pose(name), dtype=np.float64) for name in self._env.actors}

    def shifted(self) -> float:
        """Privileged: how far (m) the dynamic setting has shifted the target so far."""
        return float(self._env.shifted()[0])

    def shift(self) -> tuple[str, np.ndarray]:
        """Privileged: the target's name, and the way (2,) in m by which the dynamic setting is to shift it in this scene."""
        return self._env.TARGET, self._env._shift[0].numpy().astype(np.float64)

    def place(self, name: str, pose7) -> None:
        """Puts an object at a pose (7,), at rest; for tests and for laying out a scene by hand."""
        actor = self._env.actors[name]
        actor.set_pose(Pose.create(torch.as_tensor(np.asarray(pose7), dtype=torch.float32)[None]))
        if actor.px_body_type == "dynamic":
            actor.set_linear_velocity(torch.zeros(1, 3))
            actor.set_angular_velocity(torch.zeros(1, 3))

    def hide(self, *names) -> None:
        """Draws the scene without the objects ``names`` from now on, and with all others; physics and poses stay.

        `reset` keeps it, `restore` may not. ValueError names an unknown object.
        """
        for name in names:
            if name not in self._env.actors:
                raise ValueError(f"object '{name}' does not exist; the scene has {', '.join(self._env.actors)}")
        for name, actor in self._env.actors.items():
            body = actor._objs[0].find_component_by_type(sapien.render.RenderBodyComponent)
            if body is not None:  # without cameras nothing can be drawn anyway
                body.visibility = 0.0 if name in names else 1.0

    def images(self, names=None) -> dict:
        """Renders now: camera name -> (height, width, 3) uint8 RGB."""
        return {name: colour for name, (colour, _) in self._render(self.cameras if names is None else names, False).items()}

    def rgbd(self, name: str):
        """Renders now: colour (height, width, 3) uint8 RGB and depth (height, width) uint16 in mm (0 = nothing seen)."""
        return self._render((name,), True)[name]

    def _render(self, names, depth):
        for name in names:
            if name not in self.cameras:
                raise ValueError(f"camera '{name}' was not asked for when the environment was made; it has {self.cameras}")
        if not names:
            return {}  # an environment without cameras has nothing to draw with
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        pictures = {}
        for name in names:
            sensor = self._env._sensors[name]
            sensor.capture()
            data = sensor.get_obs(rgb=True, depth=depth, position=False, segmentation=False)
            far = data["depth"][0, ..., 0].numpy().astype(np.int64) if depth else None
            pictures[name] = (
                data["rgb"][0].numpy().astype(np.uint8),
                np.clip(far, 0, 65535).astype(np.uint16) if depth else None,
            )
        return pictures

    def expose(self) -> None:
        """Begins to draw all cameras as the scene is now and returns at once; the scene may go on meanwhile."""
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        for name in self.cameras:
            self._lens(name).take_picture()

    def develop(self) -> dict:
        """Waits for what `expose` began: camera name -> (colour, depth) like `rgbd`."""
        pictures = {}
        for name in self.cameras:
            lens = self._lens(name)
            color, position = (
                lens.get_picture("Color"),
                lens.get_picture("PositionSegmentation"),
            )  # int16, mm, camera looks along -z
            depth = np.negative(position[..., 2]).astype(np.uint16)
            pictures[name] = cv2.cvtColor(color, cv2.COLOR_RGBA2RGB), depth  # numpy takes 1 ms to leave a channel out
        return pictures

    def _lens(self, name):
        return self._env._sensors[name].camera._render_cameras[0]

    def intrinsics(self, name: str):
        """Pinhole parameters (fx, fy, cx, cy) in pixels of camera ``name``."""
        return intrinsics(name, self.image_size)

    # State --------------------------------------------------------------------------------------------------------

    def save(self) -> dict:
        """Everything that the future depends on, at the end of a control step; may be restored any number of times."""
        return {"scene": _cloned(self._env.get_state_dict()), "steps": self.steps}

    def restore(self, saved: dict, rebuild: bool = True) -> None:
        """Returns to ``saved``: two rollouts of the same actions after two restores are bit-identical.

        The engine caches contacts that are not part of any state, and their order depends on the past. So the scene is
        built anew first (0.1 to 0.3 s). ``rebuild=False`` saves that time; rollouts then agree to about 1e-6. Either
        way restore for every member of a group, the first included.
        """
        if rebuild:
            self._env.reset(seed=0, options={"reconfigure": True})
        self._env.set_state_dict(_cloned(saved["scene"]))
        self.steps = saved["steps"]

    def close(self) -> None:
        self._env.close()


def intrinsics(camera: str, image_size):
    """Pinhole parameters (fx, fy, cx, cy) in pixels of ``camera`` at ``image_size`` (width, height)."""
    width, height = image_size
    focal = 0.5 * height / np.tan(0.5 * FOV_Y[camera])
    return focal, focal, width / 2, height / 2


def _cloned(tree):
    return {key: _cloned(value) for key, value in tree.items()} if isinstance(tree, dict) else tree.clone()


# Many at once -----------------------------------------------------------------------------------------------------


def make_vec(task: str, n: int, backend: str = "cpu", setting: str = "standard", cameras=(), image_size=(128, 128)):
    """``n`` copies of a task with the interface of TaskEnv, every argument and result stacked over n.

    backend "cpu": one process for each; "gpu": one batched scene on ManiSkill's physx_cuda.
    """
    if backend == "cpu":
        return ProcessVec(task, n, setting, cameras, image_size)
    if backend == "gpu":
        return GpuVec(task, n, setting, cameras, image_size)
    raise ValueError(f"backend '{backend}' does not exist; choose 'cpu' or 'gpu'")


class ProcessVec:
    """``n`` TaskEnv in processes of their own. RuntimeError carries the traceback of a process that failed."""

    def __init__(self, task, n, setting="standard", cameras=(), image_size=(128, 128)):
        context = multiprocessing.get_context("forkserver")
        self.num_envs, self._pipes, self._processes = n, [], []
        for _ in range(n):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, (task, setting, cameras, image_size)), daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self._processes.append(process)
        self.instruction = self.call("instruction")[0]

    def call(self, name, *arguments) -> list:
        """``name`` of every environment, a method or an attribute; each argument is a sequence over the environments."""
        for i, pipe in enumerate(self._pipes):
            pipe.send((name, [argument[i] for argument in arguments]))
        answers = []
        for pipe in self._pipes:
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append((False, "the process ended without an answer"))
        for ok, answer in answers:
            if not ok:
                raise RuntimeError(f"simulation process failed in {name}: {answer}")
        return [answer for _, answer in answers]

    def reset(self, seeds) -> None:
        self.call("reset", seeds)

    def step(self, actions) -> list:
        """Plays actions (n, 7); a list of n StepResult."""
        return self.call("step", actions)

    def proprioception(self) -> np.ndarray:
        """(n, 14) float32."""
        return np.stack(self.call("proprioception"))

    def objects(self) -> dict:
        """Name -> (n, 7)."""
        return _stacked(self.call("objects"))

    def images(self, names) -> dict:
        """Name -> (n, height, width, 3) uint8."""
        return _stacked(self.call("images", [names] * self.num_envs))

    def save(self) -> list:
        return self.call("save")

    def restore(self, saved) -> None:
        self.call("restore", saved)

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(timeout=5)
            if process.is_alive():
                process.terminate()


def _stacked(dicts):
    return {name: np.stack([d[name] for d in dicts]) for name in dicts[0]}


def _serve(pipe, arguments):
    torch.set_num_threads(1)
    env = None
    while True:
        try:
            name, values = pipe.recv()
        except EOFError:
            return
        try:
            env = env or TaskEnv(*arguments)
            member = getattr(env, name)
            pipe.send((True, member(*values) if callable(member) else member))
        except Exception:  # the boundary of the process: the caller raises it again
            pipe.send((False, traceback.format_exc()))


class GpuVec:
    """``n`` copies in one batched physx_cuda scene; same interface as ProcessVec, `save` covers the whole batch."""

    def __init__(self, task, n, setting="standard", cameras=(), image_size=(128, 128)):
        if not torch.cuda.is_available():
            raise RuntimeError("backend 'gpu' needs a CUDA device; use backend 'cpu'")
        self.num_envs, self._steps = n, np.zeros(n, dtype=int)
        self._env = _make_base(task, setting, tuple(cameras), tuple(image_size), n, "physx_cuda")
        self.instruction = self._env.INSTRUCTION

    def reset(self, seeds) -> None:
        self._env.reset(seed=[int(seed) for seed in seeds])
        self._steps[:] = 0

    def step(self, actions) -> list:
        self._env.step(torch.as_tensor(np.asarray(actions), dtype=torch.float32, device=self._env.device))
        self._steps += 1
        state = {name: value.cpu().numpy() for name, value in self._env.evaluate().items()}
        return [
            StepResult(bool(success), bool(fail), not (success or fail) and steps >= TIME_LIMIT, int(steps))
            for success, fail, steps in zip(state["success"], state["fail"], self._steps)
        ]

    def proprioception(self) -> np.ndarray:
        controller = self._env.agent.controller
        return torch.cat([controller.measured()[0], controller.setpoint], dim=-1).cpu().numpy().astype(np.float32)

    def objects(self) -> dict:
        return {name: actor.pose.raw_pose.cpu().numpy().astype(np.float64) for name, actor in self._env.actors.items()}

    def images(self, names) -> dict:
        self._env.scene.update_render(update_sensors=True, update_human_render_cameras=False)
        self._env.capture_sensor_data()
        sensors = {name: self._env._sensors[name] for name in names}
        seen = {name: sensor.get_obs(depth=False, position=False, segmentation=False) for name, sensor in sensors.items()}
        return {name: data["rgb"].cpu().numpy().astype(np.uint8) for name, data in seen.items()}

    def save(self) -> dict:
        return {"scene": _cloned(self._env.get_state_dict()), "steps": self._steps.copy()}

    def restore(self, saved) -> None:
        self._env.set_state_dict(_cloned(saved["scene"]))
        self._steps = saved["steps"].copy()

    def close(self) -> None:
        self._env.close()
