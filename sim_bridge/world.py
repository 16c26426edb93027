"""Process `world_node`: one scene in real time behind the emulated arm and the emulated cameras.

    arm_command (shared memory) --> drive targets --> physics, 100 Hz --> arm_state
                                                  '-> camera_front, camera_wrist (colour and depth, camera_fps)
    scene/reset, scene/start, parameters task, setting, seed  <-->  scene/state, scene/objects

The loop owns the scene in a thread of its own: nothing else touches it, ROS callbacks hand it work and wait. It keeps absolute
deadlines. When it falls behind it steps the physics until it has caught up, and drops frames before it drops physics.
`scene/objects` is the simulation's ground truth for the demonstrator; nothing on the robot may read it.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import sys
import threading
import time
from concurrent.futures import Future, wait
from dataclasses import dataclass, fields

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from std_msgs.msg import String
from std_srvs.srv import Trigger

from policytrim_ros.core.config import Config, ConfigError, check_value
from policytrim_ros.core.config import setting as option
from policytrim_ros.nodes.messages import LATCHED, NEWEST
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import STEADY, ask_for_priority, run, udp_alone
from sim_bridge.env import SUBSTEP_S, SUBSTEPS, TIME_LIMIT, TaskEnv
from sim_bridge.shared import ARM_COMMAND, ARM_STATE, Block, camera_frame, remove_session, session_dir
from sim_bridge.tasks import SETTINGS, TASKS

CAMERAS = ("front", "wrist")
COMMAND_TIMEOUT_S = 0.5  # an emulated arm that is silent for longer is gone: its last targets hold
DRAWING_S = 0.025  # both cameras are usually drawn after so long on one core; fetching earlier would block the physics
MAX_BLIND_S = 0.2
HELD = np.zeros((6, 2))
LIMP = np.array([(200.0, 0.5)] * 3 + [(200.0, 0.3)] * 3)  # dry friction: the arm is down in less than a second, a wrist joint may stay
DAMPED = np.array([(20.0, 1000.0)] * 6)  # the arm sinks for two to three seconds
"""What resists a joint's turning, N m s/rad and at most N m, while its motor holds, is off, or brakes."""

MAX_LATE_S = 0.5  # beyond this, physics is given up as well and the scene runs slower than time
REPEAT_S = 0.02  # arm feedback is repeated this often while a scene is built
BUILD_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class WorldConfig(Config):
    """Which scene, and what it shows. Task, setting and seed may change while the node runs; scene/reset lays them."""

    task: str = option("tape_box", "task whose objects stand on the table", choices=tuple(TASKS), read_only=False)
    setting: str = option(
        "standard", "whether the target stays or is moved during the approach", choices=SETTINGS, read_only=False
    )
    seed: int = option(0, "seed of the next scene", low=0, high=2**31 - 1, read_only=False)
    session: str = option("default", "name of the shared memory that joins world, emulated arm and emulated cameras")
    render: bool = option(True, "draw the cameras' images (needs a Vulkan device)")
    camera_width: int = option(424, "width of both cameras' images", low=32, high=1920, unit="px")
    camera_height: int = option(240, "height of both cameras' images", low=32, high=1080, unit="px")
    camera_fps: float = option(30.0, "frames a second of each camera", low=1.0, high=60.0, unit="1/s")
    realtime_priority: int = option(
        10,
        "SCHED_FIFO priority where the system allows it (below controller and arm: the world stands for "
        "hardware, which does not wait for a policy that thinks); 0: do not ask",
        low=0,
        high=90,
    )


class Drives:
    """What the joints are told at each physics step, from what the emulated arm last wrote."""

    def __init__(self, session: str):
        self._session = session
        self._block = None
        self._look_again = 0.0
        self._hold = None

    def newest(self, now: float, measured):
        """(position (7,), velocity (7,), resistance (6, 2)): drive targets in rad and m; HELD, or what resists where no motor does."""
        command = self._newest(now)
        if command is None:
            self._hold = measured if self._hold is None else self._hold
            return self._hold, np.zeros(7), HELD
        fresh = now - command["stamp"] <= COMMAND_TIMEOUT_S
        resistance = DAMPED if command["damped"] else np.where(command["held"][:, None], HELD, LIMP)
        driven = np.append(resistance[:, 0] == 0.0, True) & fresh
        return command["position"], np.where(driven, command["velocity"], 0.0), resistance

    def _newest(self, now: float):
        command = None if self._block is None else self._block.read()
        gone = command is None or now - command["stamp"] > COMMAND_TIMEOUT_S
        if gone and now >= self._look_again:  # a restarted emulator writes a new file under the same name
            self._look_again = now + COMMAND_TIMEOUT_S
            try:
                block = Block(self._session, "arm_command", ARM_COMMAND)
            except FileNotFoundError:
                return command
            newer = block.read()
            if newer is not None:
                self._block, command = block, newer
        return command


class Stage:
    """The scene and the trial on it: lays, starts, steps, judges. No clock and no thread; time is counted in physics steps.

    ``make_env(task, setting)`` builds a task environment (sim_bridge/env.py); the arm keeps its pose from scene to scene.
    """

    def __init__(self, make_env, task: str, setting: str, seed: int):
        self._make_env = make_env
        self.env = None
        self._key = None
        self.scene_id = 0
        self.lay(task, setting, seed)

    def lay(self, task: str, setting: str, seed: int) -> None:
        """Lays the objects anew (phase ready). Another task or setting is built first."""
        joints = None if self.env is None else self.env.joint_state()[0]
        if (task, setting) != self._key:
            env = self._make_env(task, setting)
            if self.env is not None:
                self.env.close()
            self.env, self._key, self._resistance = env, (task, setting), HELD
        self.env.reset(seed)
        if joints is not None:
            self.env.place_arm(joints)
        self.seed, self.scene_id = seed, self.scene_id + 1
        self.phase, self.outcome, self.reason, self.steps = "ready", None, "", 0

    def start(self) -> None:
        """Starts the trial; RuntimeError unless a fresh scene lies."""
        if self.phase != "ready":
            raise RuntimeError(f"the scene is {self.phase}; call scene/reset first")
        self.phase = "running"

    def step(self, position, velocity, resistance=HELD) -> bool:
        """One physics step with what `Drives.newest` returned; returns whether the trial's phase changed."""
        if not np.array_equal(resistance, self._resistance):
            self.env.loosen(resistance)
            self._resistance = resistance
        self.env.substep(position, velocity)
        if self.phase != "running":
            return False
        self.steps += 1
        if self.steps % SUBSTEPS:
            return False
        success, failure = self.env.control_tick()
        if success:
            self._end("success", "")
        elif failure:
            self._end("failure", "the object is lost")
        elif self.steps >= TIME_LIMIT * SUBSTEPS:
            self._end("failure", "time limit")
        return self.phase == "done"

    def _end(self, outcome: str, reason: str) -> None:
        self.phase, self.outcome, self.reason = "done", outcome, reason

    def state(self) -> dict:
        """scene/state."""
        task, setting = self._key
        return dict(
            task=task,
            setting=setting,
            seed=self.seed,
            instruction=self.env.instruction,
            phase=self.phase,
            outcome=self.outcome,
            reason=self.reason,
            elapsed_s=round(self.steps * SUBSTEP_S, 3),
            scene_id=self.scene_id,
        )


class Cameras:
    """The emulated cameras: both see the same instant. Drawing goes on beside the physics and is fetched some steps later."""

    def __init__(self, config: WorldConfig, now: float):
        self.frames = 0
        self._period, self._due, self._exposed = 1.0 / config.camera_fps, now, None
        frame = camera_frame(config.camera_width, config.camera_height)
        self._blocks = {name: Block(config.session, f"camera_{name}", frame, create=True) for name in CAMERAS}

    def work(self, env, now: float) -> None:
        """Fetches a drawing that should be finished, begins the next when it is due."""
        if self._exposed is not None and now - self._exposed >= DRAWING_S:
            self.finish(env)
        if self._exposed is None and now >= self._due:
            env.expose()
            self._exposed = now
            self._due += self._period * max(1.0, np.ceil((now - self._due) / self._period))

    def starved(self, now: float) -> bool:
        """Whether even a machine that is too slow owes a picture: a camera that shows nothing for long counts as broken."""
        return now - self._due > MAX_BLIND_S

    def finish(self, env) -> None:
        """Waits for the drawing that was begun, if any, and writes it."""
        if self._exposed is None:
            return
        self.frames += 1
        for name, (color, depth) in env.develop().items():
            self._blocks[name].write(stamp=self._exposed, number=self.frames, color=color, depth=depth)
        self._exposed = None


class Pace:
    """Figures of the last second: pace (seconds of physics in a second), frames a second, CPU time of the process, greatest lateness of a step."""

    def __init__(self, now: float):
        self._since, self._frames, self._cpu_s = now, 0, time.process_time()
        self._steps, self._late_s, self.dropped_s = 0, 0.0, 0.0
        self.report: dict[str, str] = {}

    def step(self, now: float, late_s: float, frames: int) -> None:
        """Counts a physics step that began ``late_s`` after its deadline."""
        self._steps, self._late_s = self._steps + 1, max(self._late_s, late_s)
        span = now - self._since
        if span < 1.0:
            return
        cpu_s = time.process_time()
        self.report = {
            "pace": f"{self._steps * SUBSTEP_S / span:.3f}",
            "frames_per_s": f"{(frames - self._frames) / span:.1f}",
            "cpu_cores": f"{(cpu_s - self._cpu_s) / span:.2f}",
            "lateness_max_ms": f"{self._late_s * 1000:.1f}",
            "dropped_s": f"{self.dropped_s:.2f}",
        }
        self._since, self._frames, self._cpu_s, self._steps, self._late_s = now, frames, cpu_s, 0, 0.0


class Loop(threading.Thread):
    """Runs the stage in real time. ``on_state(dict)`` and ``on_objects(dict)`` are called from this thread."""

    def __init__(self, config: WorldConfig, make_env, on_state, on_objects):
        super().__init__(name="scene", daemon=True)
        self.config, self._make_env, self._on_state, self._on_objects = config, make_env, on_state, on_objects
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        self._stopping = threading.Event()
        self.error = None
        self.pace = Pace(time.monotonic())
        self.ready = Future()
        self._arm_state = Block(config.session, "arm_state", ARM_STATE, create=True)
        self._writing = threading.Lock()

    def call(self, function, timeout_s: float = BUILD_TIMEOUT_S) -> None:
        """Runs ``function(stage)`` between two physics steps; raises what it raised.

        While a scene is being built the arm stands still, but its feedback must not fall silent: it is repeated from here.
        """
        future = Future()
        self._requests.put((function, future))
        end = time.monotonic() + timeout_s
        while not wait((future,), REPEAT_S).done:
            if self.error is not None or time.monotonic() > end:
                raise RuntimeError("the scene does not answer")
            with self._writing:
                if not future.done():
                    self._arm_state.write(stamp=time.monotonic(), velocity=np.zeros(7))
        future.result()

    def stop(self) -> None:
        self._stopping.set()
        if self.is_alive():
            self.join(timeout=10.0)

    def run(self) -> None:
        try:
            config = self.config
            stage = Stage(self._make_env, config.task, config.setting, config.seed)
            self._live(stage)
        except Exception as error:  # the boundary of the thread: the node ends the process and says why
            self.error = error
            if not self.ready.done():
                self.ready.set_exception(error)

    def _live(self, stage: Stage) -> None:
        config, drives = self.config, Drives(self.config.session)
        due = time.monotonic()
        cameras = Cameras(config, due) if config.render else None
        self.pace = pace = Pace(due)
        tick = 0
        position, velocity, effort = self._feel(stage)
        self._on_state(stage.state())  # once there is something to read
        self.ready.set_result(None)
        while not self._stopping.is_set():
            changed = self._serve(stage, cameras)
            began = time.monotonic()
            if began - due > MAX_LATE_S:
                pace.dropped_s += began - due
                due = began
            pace.step(began, began - due, 0 if cameras is None else cameras.frames)
            changed |= stage.step(*drives.newest(began, position))
            position, velocity, effort = self._feel(stage)
            tick, due = tick + 1, due + SUBSTEP_S
            if changed or (stage.phase == "running" and tick % 20 == 0):
                self._on_state(stage.state())
            if tick % SUBSTEPS == 0:
                self._on_objects(stage)
            now = time.monotonic()
            if cameras is not None and (now < due or cameras.starved(now)):
                cameras.work(stage.env, now)
            time.sleep(max(0.0, due - time.monotonic()))

    def _feel(self, stage: Stage):
        """The joints as they are now, also for the emulated arm: position, velocity, effort, each (7,)."""
        position, velocity, effort = stage.env.joint_state()
        with self._writing:
            self._arm_state.write(stamp=time.monotonic(), position=position, velocity=velocity, effort=effort)
        return position, velocity, effort

    def _serve(self, stage: Stage, cameras: Cameras | None) -> bool:
        served = False
        while not self._requests.empty():
            function, future = self._requests.get()
            if cameras is not None:
                cameras.finish(stage.env)  # the scene may be replaced now
            try:
                future.set_result(function(stage))
            except Exception as error:  # handed to the caller, who answers with it
                future.set_exception(error)
            served = True
        return served


class World(Node):
    """ROS face of the loop: services, parameters, states. ``fatal`` is set when the loop has died."""

    def __init__(self):
        super().__init__("world")
        self._loop = None
        self.config = config = declare(self, WorldConfig)
        self._claim(config.session)
        refused = ask_for_priority(config.realtime_priority) if config.realtime_priority else ""
        if refused:
            self.get_logger().info(f"no real-time priority: {refused}")
        self._state = self.create_publisher(String, "scene/state", LATCHED)
        self._objects = self.create_publisher(String, "scene/objects", NEWEST)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self._loop = Loop(
            config, self._make_env, lambda state: self._state.publish(String(data=json.dumps(state))), self._publish_objects
        )
        self._loop.start()
        try:
            self._loop.ready.result()
        except BaseException:
            self.close()
            raise
        self.add_on_set_parameters_callback(self._check)
        self.create_service(Trigger, "scene/reset", self._reset)
        self.create_service(Trigger, "scene/start", self._start)
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        self._seconds = 0

    @property
    def fatal(self) -> str | None:
        error = None if self._loop is None else self._loop.error
        return None if error is None else f"the scene stopped: {type(error).__name__}: {error}"

    def close(self) -> None:
        """Ends the loop and removes the session's shared memory."""
        if self._loop is not None:
            self._loop.stop()
            remove_session(self.config.session)

    def _claim(self, session: str) -> None:
        directory = session_dir(session)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = open(directory / "world.lock", "w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another world runs in session '{session}'; end it or choose another session") from None

    def _make_env(self, task: str, setting: str):
        config = self.config
        env = TaskEnv(
            task, setting, cameras=CAMERAS if config.render else (), image_size=(config.camera_width, config.camera_height)
        )
        if config.render:  # the first picture of a process takes seconds: the driver compiles its shaders
            env.reset(config.seed)
            env.expose()
            env.develop()
        return env

    def _check(self, parameters) -> SetParametersResult:
        specs = {spec.name: spec for spec in fields(WorldConfig)}
        try:
            for parameter in parameters:
                if parameter.name in specs:
                    check_value(specs[parameter.name], parameter.value, self.get_name())
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _reset(self, _request, response):
        task, setting, seed = (self.get_parameter(name).value for name in ("task", "setting", "seed"))
        return self._answer(response, lambda stage: stage.lay(task, setting, seed), f"{task} {setting} seed={seed}")

    def _start(self, _request, response):
        return self._answer(response, Stage.start, "running")

    def _answer(self, response, work, done: str):
        try:
            self._loop.call(work)
            response.success, response.message = True, done
        except Exception as error:  # whatever the scene raised is the operator's answer
            response.success, response.message = False, str(error) or type(error).__name__
        return response

    def _publish_objects(self, stage: Stage) -> None:
        if self._objects.get_subscription_count():
            objects = {name: np.round(pose, 5).tolist() for name, pose in stage.env.objects().items()}
            self._objects.publish(String(data=json.dumps({"scene_id": stage.scene_id, "objects": objects})))

    def _publish_diagnostics(self) -> None:
        report = self._loop.pace.report
        if not report:
            return
        slow = float(report["pace"]) < 0.95
        status = DiagnosticStatus(
            level=DiagnosticStatus.WARN if slow else DiagnosticStatus.OK,
            name="world",
            hardware_id="simulation",
            message="slower than real time" if slow else "real time",
            values=[KeyValue(key=key, value=value) for key, value in report.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)
        self._seconds += 1
        if self._seconds == 3:
            config = self.config
            cameras = f"{','.join(CAMERAS)} {config.camera_width}x{config.camera_height}" if config.render else "none"
            self.get_logger().info(
                f"session={config.session} pid={os.getpid()} physics_hz={1 / SUBSTEP_S:.0f} cameras={cameras} "
                + " ".join(f"{key}={value}" for key, value in report.items())
            )


def main(args=None) -> int:
    """Runs the world until SIGINT or SIGTERM; returns the exit code."""
    torch.set_num_threads(1)
    udp_alone()
    sys.setswitchinterval(0.001)  # the scene's thread asks for the interpreter after 1 ms, not 5
    return run(World, args)


if __name__ == "__main__":
    sys.exit(main())
