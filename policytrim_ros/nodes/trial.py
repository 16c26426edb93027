"""Process `trial_node`: runs trials of a task against the running system and prints their table.

It drives the operator's services (controller/*, scene/*, inference/run), watches the states, and stores each trial at once
(trials/store.py). What happens in a trial is trials/protocol.py; this file is its rig over ROS. Exit code: 0 when every
trial was run, 1 when something refused, broke or did not answer, 130 after Ctrl-C.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.types import READY
from policytrim_ros.nodes.messages import LATCHED, NEWEST, Consumed, positions_of
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import heartbeat
from policytrim_ros.trials.protocol import Interrupted, Plan, RigError, run_trials
from policytrim_ros.trials.store import Store, StoreError
from policytrim_ros.trials.table import tables

ANSWER_S = 5.0  # a service that is there answers well within this; discovery alone may take 3 s
ENABLE_S = 12.0  # go and home may have to bring the motors on
READY_TOLERANCE = 0.05  # rad, m
SILENT_S = 2.0
LOADING_S = 180.0  # a large checkpoint, tried by a child of low priority on a busy machine
INFERENCE = "inference"
DISCOVERY_S = 5.0  # how long nodes on one machine may take to hear each other


@dataclass(frozen=True)
class TrialConfig(Config):
    """Which trials, and where they are recorded."""

    task: str = option("tape_box", "task to try")
    setting: str = option("standard", "whether the target stays or is moved", choices=("standard", "dynamic"))
    trials: int = option(10, "how many", low=1, high=10000)
    seed: int = option(1000, "seed of the first scene; the others follow", low=0, high=2**31 - 1)
    label: str = option("", "name of these trials in the table; empty: the checkpoint's name")
    checkpoint: str = option("", "checkpoint that inference loads for these trials; empty: the one that it has loaded")
    compare: str = option("", "a second checkpoint, tried in the same scenes in turn, in the same processes; empty: none")
    out: str = option("trials", "directory of trials.jsonl")
    timeout_s: float = option(60.0, "a trial without an outcome after this is a failure", low=1.0, high=3600.0, unit="s")
    startup_s: float = option(30.0, "how long to wait for controller, scene and inference", low=1.0, high=600.0, unit="s")
    scene_node: str = option("world", "node that takes the parameters task, setting and seed")
    repeat: bool = option(False, "run trials again that are recorded already")
    watch: list = option(
        ["controller", "world", "inference", "demonstrator", "camera"],
        "of these nodes, those that were heard at the start may not fall silent during a trial",
    )


class RosRig:
    """The running system as trials/protocol.py sees it. One thread: everything arrives while `wait` spins."""

    def __init__(self, node, config: TrialConfig, screen: "Screen"):
        self.node, self.config, self.screen = node, config, screen
        self.scene, self.inference, self.controller = {}, {}, ("", "")
        self.next_step, self.stalls, self.stall_s = 0, 0, 0.0
        self.stop_signal = None
        self._position, self._consumed, self._heard = None, False, {}
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        node.create_subscription(String, "scene/state", lambda m: setattr(self, "scene", json.loads(m.data)), LATCHED)
        node.create_subscription(String, "inference/status", lambda m: setattr(self, "inference", json.loads(m.data)), LATCHED)
        node.create_subscription(String, "controller/state", self._on_controller, LATCHED)
        node.create_subscription(Int64MultiArray, "controller/consumed", self._on_consumed, 10)
        node.create_subscription(JointState, "joint_states", self._on_joints, NEWEST)
        node.create_subscription(String, "heartbeat", lambda m: self._heard.__setitem__(m.data, time.monotonic()), 50)
        self._clients = {
            name: node.create_client(Trigger, name)
            for name in ("controller/home", "controller/go", "controller/hold", "scene/reset", "scene/start")
        }
        self._clients["inference/run"] = node.create_client(SetBool, "inference/run")
        for name in (config.scene_node, INFERENCE):
            self._clients[f"{name}/set_parameters"] = node.create_client(SetParameters, f"{name}/set_parameters")

    def connect(self) -> None:
        """Waits until controller, scene and inference have been heard; RigError names the one that is missing."""
        for what, topic, heard in (
            ("controller", "controller/state", lambda: self.controller[0] and self._position is not None and self._consumed),
            ("scene", "scene/state", lambda: self.scene),
            ("inference", "inference/status", lambda: self.inference),
        ):
            if not self.wait(heard, self.config.startup_s):
                raise RigError(
                    f"no {what} answers (nothing on topic '{self.node.resolve_topic_name(topic)}' for "
                    f"{self.config.startup_s:.0f} s): start the system with `policytrim up`, or check namespace and ROS_DOMAIN_ID"
                )

    def clock(self) -> float:
        return time.monotonic()

    def wait(self, condition, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not condition():
            if self.stop_signal is not None:
                self.stop_signal = None
                raise Interrupted("ended by the operator")
            if time.monotonic() > end:
                return False
            self._spin()
        return True

    def silent(self) -> str | None:
        now = time.monotonic()
        return next((name for name in self.config.watch if now - self._heard.get(name, now) > SILENT_S), None)

    def at_ready(self) -> bool:
        return self.controller[0] == "holding" and float(np.max(np.abs(self._position - READY))) < READY_TOLERANCE

    def home(self) -> None:
        self._trigger("controller/home", ENABLE_S)

    def go(self) -> None:
        """Go, asked for again for a while: a controller that has just started may not have heard every node yet."""
        end = time.monotonic() + DISCOVERY_S
        while True:
            try:
                return self._trigger("controller/go", ENABLE_S)
            except RigError:
                if time.monotonic() > end:
                    raise
                self.wait(lambda: False, 0.25)

    def hold(self) -> None:
        self._trigger("controller/hold")

    def start(self) -> None:
        self._trigger("scene/start")

    def run(self, on: bool) -> None:
        self._ask("inference/run", SetBool.Request(data=on))
        end = time.monotonic() + ANSWER_S
        while self.inference.get("running") != on and time.monotonic() < end:  # its last report holds the final count of calls
            self._spin()

    def choose(self, task: str, setting: str, seed: int) -> None:
        """Sets the parameters of the next scene; RigError with the scene's own words when it refuses them."""
        self._set(self.config.scene_node, task=task, setting=setting, seed=seed)

    def use(self, checkpoint: str) -> None:
        """Has inference load ``checkpoint``; RigError with its own words when it cannot."""
        speaks = self.inference.get("checkpoint"), self.inference.get("weights_sha256")
        if speaks[0] == checkpoint and weights_at(checkpoint) in ("", speaks[1]):
            return
        before = self.inference["exchanges"]
        self._set(INFERENCE, checkpoint=checkpoint)
        if not self.wait(lambda: self.inference["exchanges"] != before, LOADING_S):
            raise RigError(f"{INFERENCE} did not load {checkpoint} within {LOADING_S:.0f} s")
        if self.inference["checkpoint"] != checkpoint:
            raise RigError(f"{INFERENCE}: {self.inference['news']}")

    def _set(self, node: str, **values) -> None:
        request = SetParameters.Request(parameters=[Parameter(n, value=v).to_parameter_msg() for n, v in values.items()])
        for result in self._answer(f"{node}/set_parameters", request).results:
            if not result.successful:
                raise RigError(f"{node}: {result.reason}")

    def lay(self, task: str, setting: str, seed: int) -> None:
        self.choose(task, setting, seed)
        self._trigger("scene/reset", timeout_s=60.0)  # the scene of another task is built first

    def _trigger(self, name: str, timeout_s: float = ANSWER_S) -> None:
        self._ask(name, Trigger.Request(), timeout_s)

    def _ask(self, name: str, request, timeout_s: float = ANSWER_S) -> None:
        answer = self._answer(name, request, timeout_s)
        if not answer.success:
            raise RigError(f"{name} refused: {answer.message}")

    def _answer(self, name: str, request, timeout_s: float = ANSWER_S):
        """The service's response. Not ended by Ctrl-C: a hold on the way must arrive."""
        client, end = self._clients[name], time.monotonic() + timeout_s
        while not client.service_is_ready() and time.monotonic() < end:
            self._spin()
        future = client.call_async(request)
        while not future.done() and time.monotonic() < end:
            self._spin()
        if not future.done():
            client.remove_pending_request(future)
            raise RigError(f"service '{name}' did not answer within {timeout_s:.0f} s: is its process running?")
        return future.result()

    def _spin(self) -> None:
        self._executor.spin_once(timeout_sec=0.05)
        self.screen.live(self)

    def _on_controller(self, message: String) -> None:
        state, _, reason = message.data.partition(": ")
        self.controller = (state, reason)

    def _on_consumed(self, message: Int64MultiArray) -> None:
        consumed = Consumed.from_message(message)
        self.next_step, self.stalls, self.stall_s, self._consumed = consumed.next_step, consumed.stalls, consumed.stall_s, True

    def _on_joints(self, message: JointState) -> None:
        self._position = positions_of(message)


def weights_at(checkpoint: str) -> str:
    """SHA-256 of the weights that the manifest in ``checkpoint`` names; '' where it cannot be read from here."""
    try:
        return json.loads((Path(checkpoint) / "manifest.json").read_text())["files"]["model.safetensors"]
    except (OSError, ValueError, KeyError):
        return ""


class Screen:
    """Lines that stay, and on a terminal one line that follows the running trial."""

    def __init__(self, file=sys.stdout):
        self.file = file
        self._terminal = file.isatty()
        self._head, self._next = None, 0.0

    def begin(self, head: str) -> None:
        self._head = head

    def say(self, text: str) -> None:
        self._head = None
        print(("\r\x1b[K" if self._terminal else "") + text, file=self.file, flush=True)

    def live(self, rig: RosRig) -> None:
        now = time.monotonic()
        if not self._terminal or self._head is None or now < self._next:
            return
        self._next = now + 0.25
        line = f"{self._head} | {rig.controller[0]} | scene {rig.scene.get('phase', '?')} {rig.scene.get('elapsed_s', 0.0):.1f} s"
        print("\r\x1b[K" + line[: shutil.get_terminal_size().columns - 1], end="", file=self.file, flush=True)


def plans(config: TrialConfig, loaded: str) -> list[Plan]:
    """The trials that ``config`` asks for while inference has checkpoint ``loaded``: one plan, or two to compare."""
    first = config.checkpoint or (loaded if config.compare else "")
    plan = Plan(
        config.task,
        config.setting,
        config.label or Path(first or loaded or "unnamed").name,
        config.trials,
        config.seed,
        config.timeout_s,
        checkpoint=first,
        repeat=config.repeat,
    )
    if not config.compare:
        return [plan]
    if Path(config.compare).name == plan.label:
        raise ConfigError(f"TrialConfig.compare: both checkpoints are called '{plan.label}' in the table; give a label")
    return [plan, replace(plan, label=Path(config.compare).name, checkpoint=config.compare)]


def main(args=None) -> int:
    """Runs the trials; returns the exit code."""
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("trial", start_parameter_services=False, enable_rosout=False)  # little for others to discover
    screen, store, code = Screen(), None, 0
    try:
        config = declare(node, TrialConfig)
        rig = RosRig(node, config, screen)
        heartbeat(node)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda received, _frame: setattr(rig, "stop_signal", received))
        store = Store(config.out)
        rig.connect()
        rig.choose(config.task, config.setting, config.seed)
        reason = run_trials(rig, plans(config, rig.inference.get("checkpoint", "")), store, screen.say, screen.begin)
        if reason is not None:
            print(f"trial: {reason}; the remaining trials were not run", file=sys.stderr, flush=True)
            code = 1
    except Interrupted as error:
        print(f"trial: {error}", file=sys.stderr, flush=True)
        code = 130
    except ConfigError as error:
        print(error, file=sys.stderr, flush=True)
        code = 1
    except (RigError, StoreError) as error:
        print(f"trial: {error}", file=sys.stderr, flush=True)
        code = 1
    finally:
        if store is not None:
            if store.rows:
                screen.say(tables(store.rows))
            store.close()
        node.destroy_node()
        rclpy.try_shutdown()
    return code


if __name__ == "__main__":
    sys.exit(main())
