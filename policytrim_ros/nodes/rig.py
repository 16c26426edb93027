"""The running system as trials/protocol.py sees it: services and topics behind a `Rig`. One thread: everything arrives while `wait` spins."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters, ListParameters, SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter, parameter_value_to_python
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.core.config import Config
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.types import READY, heartbeats_of
from policytrim_ros.nodes.asking import HOLD, answer
from policytrim_ros.nodes.messages import EVENTS, LATCHED, LISTEN_S, TRIAL_EVENT, Consumed, Heartbeats, Newest, positions_of
from policytrim_ros.nodes.process import STEADY
from policytrim_ros.trials.protocol import Interrupted, RigError

ANSWER_S = 5.0  # a service that is there answers well within this; discovery alone may take 3 s
ENABLE_S = 12.0  # go and home may have to bring the motors on
READY_TOLERANCE = 0.05  # rad, m
SILENT_S = 2.0
LOADING_S = 180.0  # a large checkpoint, tried by a child of low priority on a busy machine
INFERENCE = "inference"
DISCOVERY_S = 5.0  # how long nodes on one machine may take to hear each other
WORLD_S = 3.0  # a simulated world is heard, or the scene is laid by hand: within this it is known which
DESCRIBED_S = 4.0  # for one node, which may have started just now: until it is heard, and asked again
DIAGNOSED_S = 2.5  # diagnostics come once a second
WRITTEN_S = 5.0  # a recording is closed well within this
DESCRIBED = ("controller", INFERENCE, "camera")
"""Nodes whose parameters belong to the provenance of a session; of a simulated one, the scene's, too."""


@dataclass(frozen=True)
class RigConfig(Config):
    """How the running system is found and watched."""

    startup_s: float = option(30.0, "how long to wait for controller, scene and inference", low=1.0, high=600.0, unit="s")
    scene_node: str = option("world", "node that takes the parameters task, setting and seed")
    watch: list = option(
        ["controller", "world", "inference", "demonstrator", "camera"],
        "of these nodes, those that were heard at the start may not fall silent during a trial",
    )


class RosRig:
    """See the module. ``live``: called after everything that has arrived."""

    def __init__(self, node, config: RigConfig, live=lambda: None):
        self.node, self.config, self.live = node, config, live
        self.scene, self.inference, self.recorder, self.controller, self.went = {}, {}, {}, ("", ""), False
        self.next_step, self.stalls, self.stall_s = 0, 0, 0.0
        self.stop_signal = None
        self.diagnostics: dict[str, dict[str, str]] = {}  # node -> what it measures of itself
        self._consumed, self._heard = False, {}
        self._horizon = 0  # what inference was last told; 0: nothing
        self._recording = ""
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        node.create_subscription(String, "scene/state", lambda m: setattr(self, "scene", json.loads(m.data)), LATCHED)
        node.create_subscription(String, "inference/status", lambda m: setattr(self, "inference", json.loads(m.data)), LATCHED)
        node.create_subscription(String, "recorder/status", lambda m: setattr(self, "recorder", json.loads(m.data)), LATCHED)
        node.create_subscription(DiagnosticArray, "diagnostics", self._on_diagnostics, 20)
        self._trial = node.create_publisher(String, "trial/state", LATCHED)
        self._event = node.create_publisher(String, TRIAL_EVENT, EVENTS)
        node.create_subscription(String, "controller/state", self._on_controller, LATCHED)
        node.create_subscription(Int64MultiArray, "controller/consumed", self._on_consumed, 10)
        self._joints = Newest(node, JointState, {"measured": "joint_states"})
        self._heartbeats = Heartbeats(node)
        node.create_timer(LISTEN_S, self._listen, clock=STEADY)
        self._clients = {
            name: node.create_client(Trigger, name)
            for name in ("controller/home", "controller/go", HOLD, "scene/reset", "scene/start")
        }
        self._clients["inference/roll_back"] = node.create_client(Trigger, "inference/roll_back")
        self._clients["inference/run"] = node.create_client(SetBool, "inference/run")
        for name in (config.scene_node, INFERENCE):
            self._clients[f"{name}/set_parameters"] = node.create_client(SetParameters, f"{name}/set_parameters")
        for name in (*DESCRIBED, config.scene_node):
            self._clients[f"{name}/list_parameters"] = node.create_client(ListParameters, f"{name}/list_parameters")
            self._clients[f"{name}/get_parameters"] = node.create_client(GetParameters, f"{name}/get_parameters")

    def add(self, node) -> None:
        """Serves another node of this process, too."""
        self._executor.add_node(node)

    @property
    def simulated(self) -> bool:
        """Whether a simulated world was heard, and it lays the scenes."""
        return "world" in self._heard and not self.scene.get("by_hand", False)

    @property
    def real_time_factor(self) -> float:
        """Seconds of `clock` in a real one: of a simulated robot there may be fewer (graph.FACTOR)."""
        return float(os.environ.get("POLICYTRIM_REAL_TIME_FACTOR") or 1.0) if self.simulated else 1.0

    def connect(self) -> None:
        """Waits until controller, scene and inference have been heard; RigError names the one that is missing."""
        for what, topic, heard in (
            (
                "controller",
                "controller/state",
                lambda: self.controller[0] and self._joints.take("measured") is not None and self._consumed,
            ),
            ("scene", "scene/state", lambda: self.scene),
            ("inference", "inference/status", lambda: self.inference),
        ):
            if not self.wait(heard, self.config.startup_s):
                raise RigError(
                    f"no {what} answers (nothing on topic '{self.node.resolve_topic_name(topic)}' for "
                    f"{self.config.startup_s:.0f} s): start the system with `policytrim up`, or check namespace and ROS_DOMAIN_ID"
                )
        self.wait(lambda: "world" in self._heard or self.scene.get("by_hand"), WORLD_S)

    def clock(self) -> float:
        return time.monotonic()

    def wait(self, condition, timeout_s: float) -> bool:
        end = time.monotonic() + timeout_s
        while not condition():
            if self.stop_signal is not None:
                said, self.stop_signal = self.stop_signal, None
                raise Interrupted(said if isinstance(said, str) else "told to end, by Ctrl-C or with the system")
            if time.monotonic() > end:
                return False
            self._spin()
        return True

    def silent(self) -> str | None:
        now = time.monotonic()
        return next((name for name in self.config.watch if now - self._heard.get(name, now) > SILENT_S), None)

    def at_ready(self) -> bool:
        measured = self._joints.take("measured")
        if self.controller[0] != "holding" or measured is None:
            return False
        return float(np.max(np.abs(positions_of(measured) - READY))) < READY_TOLERANCE

    def home(self) -> None:
        self._trigger("controller/home", ENABLE_S)

    def go(self) -> None:
        """Go, asked for again for a while: a controller that has just started may not have heard every node yet."""
        self.went = False
        end = time.monotonic() + DISCOVERY_S
        while True:
            try:
                return self._trigger("controller/go", ENABLE_S)
            except RigError:
                if time.monotonic() > end:
                    raise
                self.wait(lambda: False, 0.25)

    def hold(self) -> None:
        self._trigger(HOLD)

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

    def use(self, checkpoint: str, horizon: int) -> None:
        """Has inference load ``checkpoint`` and take ``horizon``; RigError with its own words when it cannot."""
        if checkpoint:
            self._load(checkpoint)
        if horizon != self._horizon:
            self._set(INFERENCE, horizon=horizon)
            self._horizon = horizon

    def _speaks(self, checkpoint: str) -> bool:
        speaks = self.inference.get("checkpoint"), self.inference.get("weights_sha256")
        return speaks[0] == checkpoint and weights_at(checkpoint) in ("", speaks[1])

    def _load(self, checkpoint: str) -> None:
        if self._speaks(checkpoint):
            return
        if self._horizon:  # h of another arm may be more than this one predicts
            self._set(INFERENCE, horizon=0)
            self._horizon = 0
        if (self.inference.get("earlier") or [""])[-1] == checkpoint:  # still in memory: at once
            with suppress(RigError):
                self._trigger("inference/roll_back")
                self.wait(lambda: self.inference["checkpoint"] == checkpoint, ANSWER_S)
            if self._speaks(checkpoint):
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

    def tell(self, trial: dict) -> None:
        """Publishes trial/state (docs/architecture.md)."""
        self._recording = trial["recording"]
        self._trial.publish(String(data=json.dumps(trial)))

    def tell_event(self, event: dict) -> None:
        """Publishes trial/event (nodes/messages.py)."""
        self._event.publish(String(data=json.dumps(event)))

    def recorded(self) -> str:
        def closed():
            status = self.recorder
            return status.get("state") == "failed" or (status.get("recording") == self._recording and status["state"] == "idle")

        if not self.wait(closed, WRITTEN_S):
            return f"the recorder does not say that it has closed it ({self.recorder.get('state', 'no recorder is heard')})"
        dropped = self.recorder.get("dropped", 0)
        return self.recorder.get("reason", "") or (f"{dropped} messages were dropped" if dropped else "")

    @property
    def described(self) -> tuple[str, ...]:
        """Nodes whose parameters belong to the provenance."""
        return (*DESCRIBED, self.config.scene_node) if self.simulated else DESCRIBED

    def parameters(self, node: str) -> dict:
        """All parameters of ``node``, which is waited for and asked again; {} when it tells none within DESCRIBED_S."""
        end = time.monotonic() + DESCRIBED_S
        self.wait(lambda: node in self._heard, DESCRIBED_S)
        while node in self._heard and (left := end - time.monotonic()) > 0:
            with suppress(RigError):
                return self._parameters(node, min(left, DESCRIBED_S / 2))
        return {}

    def _parameters(self, node: str, timeout_s: float) -> dict:
        names = self._answer(f"{node}/list_parameters", ListParameters.Request(), timeout_s).result.names
        values = self._answer(f"{node}/get_parameters", GetParameters.Request(names=names), timeout_s).values
        return {name: plain(parameter_value_to_python(value)) for name, value in zip(names, values)}

    def measured(self, part: str, key: str) -> str:
        """What ``part`` says of ``key`` in its diagnostics, which are waited for; '' when it says nothing."""
        self.wait(lambda: key in self.diagnostics.get(part, {}), DIAGNOSED_S)
        return self.diagnostics.get(part, {}).get(key, "")

    def close(self) -> None:
        self._joints.close()
        self._heartbeats.close()
        self._executor.shutdown()

    def _trigger(self, name: str, timeout_s: float = ANSWER_S) -> None:
        self._ask(name, Trigger.Request(), timeout_s)

    def _ask(self, name: str, request, timeout_s: float = ANSWER_S) -> None:
        response = self._answer(name, request, timeout_s)
        if not response.success:
            raise RigError(f"{name} refused: {response.message}")

    def _answer(self, name: str, request, timeout_s: float = ANSWER_S):
        """The service's response. Not ended by Ctrl-C: a hold on the way must arrive."""
        client, end = self._clients[name], time.monotonic() + timeout_s
        self._until(client.service_is_ready, timeout_s)
        response = answer(client, request, self._until, end - time.monotonic(), again=name == HOLD)
        if response is None:
            raise RigError(f"service '{name}' did not answer within {timeout_s:.0f} s: is its process running?")
        return response

    def _until(self, condition, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < end:
            self._spin()

    def _spin(self) -> None:
        self._executor.spin_once(timeout_sec=0.05)
        self.live()

    def _on_controller(self, message: String) -> None:
        state, _, reason = message.data.partition(": ")
        self.controller = (state, reason)
        self.went |= state == "moving"

    def _on_consumed(self, message: Int64MultiArray) -> None:
        consumed = Consumed.from_message(message)
        self.next_step, self.stalls, self.stall_s, self._consumed = consumed.next_step, consumed.stalls, consumed.stall_s, True

    def _listen(self) -> None:
        now = time.monotonic()
        self._heard.update((name, now) for words in self._heartbeats.take() for name, _ in heartbeats_of(words))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self.diagnostics[status.name] = {value.key: value.value for value in status.values}


def weights_at(checkpoint: str) -> str:
    """SHA-256 of the weights that the manifest in ``checkpoint`` names; '' where it cannot be read from here."""
    try:
        return json.loads((Path(checkpoint) / "manifest.json").read_text())["files"]["model.safetensors"]
    except (OSError, ValueError, KeyError):
        return ""


def plain(value):
    """A parameter's value as JSON takes it."""
    return list(value) if hasattr(value, "tolist") or isinstance(value, tuple) else value
