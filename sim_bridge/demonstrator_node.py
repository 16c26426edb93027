"""Process `demonstrator_node`: a scripted demonstrator in the place of inference (checkpoint demonstrator:clean|slow|hesitant).

    controller/consumed: step k begins --> act(measured, setpoint, objects) --> chunk for step k+1

It decides one action a control step, like beside a TaskEnv, while the action before it plays. A chunk repeats its action:
a late decision then lets the arm rest at the last one, and the queue never runs dry. It reads scene/objects, the ground truth
that only a simulation has; to the controller and to a trial it looks like the inference node.
"""

from __future__ import annotations

import collections
import json
import queue
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
import torch
from rclpy.node import Node
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.config import Config
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.types import Chunk
from policytrim_ros.nodes.messages import LATCHED, NEWEST, Consumed, Newest, chunk_to_message, positions_of
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import STEADY, run
from sim_bridge.demonstrators import STYLES, make_demonstrator

GENERATION = 0
REPEATS = 10  # half a second of rest, longer than most decisions take
RESEND_S = 0.25


@dataclass(frozen=True)
class DemonstratorConfig(Config):
    """How the scripted demonstrator moves."""

    style: str = option(
        "clean",
        "clean: without detours; slow: the same at half the speed; hesitant: slow, with pauses, jitter and overshoot",
        choices=tuple(STYLES),
    )


@dataclass(frozen=True)
class Moment:
    """What a decision is made of. ``episode`` counts scenes and starts: a new one begins the script anew."""

    episode: int
    task: str
    seed: int
    measured: np.ndarray
    setpoint: np.ndarray
    objects: dict


class DemonstratorNode(Node):
    """See the module. Decisions are made in a thread of their own, since a plan may take longer than a heartbeat."""

    def __init__(self):
        super().__init__("demonstrator")
        self.config = declare(self, DemonstratorConfig)
        self.fatal = None
        self._scene = self._objects = None
        self._running, self._moving, self._episode = False, False, 0
        self._next_step, self._decided_step, self._action, self._sent = 0, None, None, 0.0
        self._calls = self._chunk_id = 0
        self._latency_ms = collections.deque(maxlen=200)
        self._moments: queue.SimpleQueue = queue.SimpleQueue()
        self._deciding = False
        self._lock = threading.Lock()  # guards what callbacks and decisions share
        self._chunks = self.create_publisher(JointTrajectory, "chunk", 10)
        self._status = self.create_publisher(String, "inference/status", LATCHED)
        self.create_subscription(String, "scene/state", self._on_scene, LATCHED)
        self.create_subscription(String, "scene/objects", self._on_objects, NEWEST)
        self._states = Newest(self, JointState, {"measured": "joint_states", "setpoint": "controller/setpoint"})
        self.create_subscription(
            String, "controller/state", lambda m: setattr(self, "_moving", m.data.startswith("moving")), LATCHED
        )
        self.create_subscription(Int64MultiArray, "controller/consumed", self._on_consumed, 10)
        self.create_service(SetBool, "inference/run", self._on_run)
        self.create_timer(1.0, self._publish_status, clock=STEADY)
        self._publish_status()
        self._thread = threading.Thread(target=self._decide, name="script", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._running = False
        self._moments.put(None)
        self._thread.join(timeout=5.0)
        self._states.close()

    # ---- what arrives ---------------------------------------------------------------------------------------------

    def _on_scene(self, message: String) -> None:
        scene = json.loads(message.data)
        if self._scene is None or scene["scene_id"] != self._scene["scene_id"]:
            self._scene, self._objects = scene, None
            self._begin()

    def _on_objects(self, message: String) -> None:
        seen = json.loads(message.data)
        if self._scene is not None and seen["scene_id"] == self._scene["scene_id"]:
            self._objects = {name: np.array(pose) for name, pose in seen["objects"].items()}

    def _on_run(self, request, response):
        if request.data and not self._running:
            self._begin()
        self._running = bool(request.data)
        self._publish_status()
        response.success, response.message = True, "running" if self._running else "stopped"
        return response

    def _begin(self) -> None:
        with self._lock:
            self._episode += 1
            self._decided_step = self._action = None

    def _on_consumed(self, message: Int64MultiArray) -> None:
        consumed = Consumed.from_message(message)
        with self._lock:
            self._next_step = consumed.next_step
            if not (self._running and self._moving):
                return
            measured, setpoint = self._states.take("measured"), self._states.take("setpoint")
            if any(x is None for x in (self._objects, measured, setpoint)):
                return
            if not self._deciding and consumed.next_step != self._decided_step:
                self._deciding, self._decided_step = True, consumed.next_step
                arm = positions_of(measured), positions_of(setpoint)
                self._moments.put(Moment(self._episode, self._scene["task"], self._scene["seed"], *arm, self._objects))
            elif self._action is not None and consumed.queued < REPEATS // 2 and time.monotonic() - self._sent > RESEND_S:
                self._send()  # a plan takes long, or the chunk came before the arm was let go and was refused

    # ---- decisions ------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        try:
            demonstrator, episode, task = None, None, None
            while (moment := self._moments.get()) is not None:
                began = time.perf_counter()
                if moment.task != task:
                    demonstrator, task = make_demonstrator(moment.task, self.config.style), moment.task
                if moment.episode != episode:
                    demonstrator.reset(moment.seed)
                    episode = moment.episode
                action = demonstrator.act(moment.measured, moment.setpoint, moment.objects)
                with self._lock:
                    self._deciding = False
                    self._latency_ms.append((time.perf_counter() - began) * 1000)
                    self._calls += 1
                    if self._running and moment.episode == self._episode:
                        self._action = action
                        self._send()
        except Exception as error:  # without its script the node is useless: the process must end and say why
            self.fatal = f"the script stopped: {type(error).__name__}: {error}"

    def _send(self) -> None:
        self._chunk_id += 1
        chunk = Chunk(np.tile(self._action, (REPEATS, 1)), GENERATION, self._chunk_id, self._next_step)
        self._chunks.publish(chunk_to_message(chunk, self.get_clock().now().to_msg()))
        self._sent = time.monotonic()

    def _publish_status(self) -> None:
        with self._lock:
            p50, p99 = np.percentile(self._latency_ms, [50, 99]) if self._latency_ms else (0.0, 0.0)
        values = dict(
            generation=GENERATION,
            checkpoint=f"demonstrator:{self.config.style}",
            horizon=1,
            mode="async",
            calls=self._calls,
            latency_ms_p50=round(float(p50), 2),
            latency_ms_p99=round(float(p99), 2),
            running=self._running,
            complaint="",
        )
        self._status.publish(String(data=json.dumps(values)))


def main(args=None) -> int:
    """Runs the demonstrator until SIGINT or SIGTERM; returns the exit code."""
    torch.set_num_threads(1)
    return run(DemonstratorNode, args)


if __name__ == "__main__":
    sys.exit(main())
