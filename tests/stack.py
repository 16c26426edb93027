"""Real processes for tests: the emulated arm, the controller, and whatever a test adds; and a node that plays the operator."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import real_time
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.types import CONTROL_RATE_HZ, READY, Chunk
from policytrim_ros.nodes.asking import SETTLE_S, answer, spinning
from policytrim_ros.nodes.messages import LATCHED, Consumed, chunk_to_message, seconds_to_time
from sim_bridge.faults import inject

ROOT = Path(__file__).parents[1]
ANSWER_S = 20.0  # generous: the machine may be busy with other tests
PATIENCE_S = 60.0  # what prepares a test may take longer than what it is about


def wait_for(condition, what, timeout_s: float = ANSWER_S, between=lambda: time.sleep(0.01)):
    """Polls until ``condition()`` is true and returns its value; AssertionError says ``what`` (text, or what gives it) did not happen."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"after {timeout_s:.0f} s: {what() if callable(what) else what}"
        between()


class Stack:
    """Processes of one test, in a ROS domain of their own, with their output in ``folder``."""

    def __init__(self, folder: Path, domain: int = 0):
        self.folder = Path(folder)
        self.socket = str(self.folder / "can")
        self.domain = domain or 50 + os.getpid() % 50  # above 101 the ports of a domain meet those that Linux hands out
        self.environment = dict(
            os.environ,
            ROS_DOMAIN_ID=str(self.domain),
            ROS_AUTOMATIC_DISCOVERY_RANGE="LOCALHOST",
            OMP_NUM_THREADS="1",
            PYTHONUNBUFFERED="1",
            FASTRTPS_DEFAULT_PROFILES_FILE=str(ROOT / "config" / "fastdds_shm.xml"),
        )
        self.processes: dict[str, subprocess.Popen] = {}
        self.disables = 0  # what the test itself has sent to the arm
        self._in_time = False  # whether it was asked for real time: in the middle of a test is too late

    def start(self, name: str, module: str, *arguments: str, **parameters) -> subprocess.Popen:
        """Starts ``python -m module``; ``parameters`` become ROS parameters."""
        first = ["nice", "-n", "-10"] if os.geteuid() == 0 else []  # what plays the hardware must not starve beside other tests
        line = [*first, sys.executable, "-m", module, *arguments]
        if parameters:
            line += ["--ros-args"] + [word for key, value in parameters.items() for word in ("-p", f"{key}:={value}")]
        with open(self.folder / f"{name}.log", "w") as log:
            self.processes[name] = subprocess.Popen(line, cwd=ROOT, env=self.environment, stdout=log, stderr=subprocess.STDOUT)
        return self.processes[name]

    def start_emulator(self, *arguments: str) -> None:
        self.start("emulator", "sim_bridge.piper_emulator", "--socket", self.socket, *arguments)
        wait_for(lambda: "ready on" in self.log("emulator"), f"the emulated arm serves no bus: {self.log('emulator')}")

    def start_controller(self, **parameters) -> subprocess.Popen:
        if not self._in_time:
            real_time.needed()
            self._in_time = True
        return self.start(
            "controller", "policytrim_ros.nodes.controller", can_interface="piper_hub", can_port=self.socket, **parameters
        )

    def log(self, name: str) -> str:
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def exit_code(self, name: str) -> int:
        return self.exit_code_within(name, ANSWER_S)

    def exit_code_within(self, name: str, timeout_s: float) -> int:
        ended = wait_for(
            lambda: self.processes[name].poll() is not None and [self.processes[name].returncode],
            f"{name} does not end; its last words: {self.log(name)[-1500:]}",
            timeout_s,
        )
        return ended[0]

    def kill(self, name: str, number=signal.SIGKILL) -> None:
        process = self.processes.pop(name)
        process.send_signal(number)
        process.wait(ANSWER_S)

    def truth(self) -> dict:
        """The emulated arm's true condition (not what it reports)."""
        return inject(self.socket, "state")

    def fault(self, name: str, **arguments) -> None:
        inject(self.socket, name, **arguments)

    def clear(self) -> None:
        inject(self.socket, "clear")

    def assert_held(self, spin=lambda seconds: time.sleep(seconds)) -> None:
        """The true arm comes to rest within 2 s, motors on, and stays there."""

        def rests():
            still = []
            for _ in range(5):  # an arm that turns around is still for a moment, too
                spin(0.05)
                still.append(max(abs(v) for v in self.truth()["velocity"]) < 0.01)
            return all(still)

        wait_for(rests, "the arm does not come to rest", 2.0, between=lambda: None)
        before = self.truth()
        spin(0.5)
        after = self.truth()
        moved = np.max(np.abs(np.array(after["position"]) - before["position"]))
        assert moved < 0.003, f"the arm moved by {moved:.4f} rad while it should hold"
        assert all(after["enabled"]) and after["holding"], "the motors do not hold"
        assert after["disables"] == self.disables and after["power_cuts"] == 0, "somebody disabled or reset the arm"

    def close(self) -> None:
        for process in reversed(self.processes.values()):
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def arm_with_controller(folder: Path, **parameters):
    """A `Stack` of the emulated arm and a controller with ``parameters``; ended afterwards."""
    running = Stack(folder)
    try:
        running.start_emulator()
        running.start_controller(**parameters)
        yield running
    finally:
        running.close()


class Beside:
    """A node of this process in a context of its own, served by a thread from `serve` to `close`."""

    def __init__(self, name: str):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=int(os.environ["ROS_DOMAIN_ID"]))
        self.node = rclpy.create_node(name, context=self.context)

    def serve(self) -> None:
        self._executor = SingleThreadedExecutor(context=self.context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._executor.spin)
        self._thread.start()

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        self.context.try_shutdown()


class Operator:
    """A node that gives orders, sends chunks in the name of an inference node, and remembers what the controller says."""

    def __init__(self, stack: Stack, beats=("inference", "camera")):
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=stack.domain, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("test_operator", context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.state, self.consumed, self.status, self.answered = "", None, "", ""
        self.beats, self.heard_at = set(beats), None  # when consumed was heard
        self._chunk_id, self._playing, self._paused, self._sent_until, self.follows = 0, None, None, -1, False
        self._clients = {}
        self._beat = self.node.create_publisher(String, "heartbeat", 10)
        self._chunks = self.node.create_publisher(JointTrajectory, "chunk", 10)
        self.node.create_subscription(String, "controller/state", lambda m: setattr(self, "state", m.data), LATCHED)
        self.node.create_subscription(String, "inference/status", lambda m: setattr(self, "status", m.data), LATCHED)
        self.node.create_subscription(Int64MultiArray, "controller/consumed", self._on_consumed, 10)
        self.node.create_timer(0.05, self._tick)

    def _tick(self) -> None:
        for name in self.beats:
            self._beat.publish(String(data=name))

    def _on_consumed(self, message) -> None:
        self.consumed, self.heard_at = Consumed.from_message(message), time.monotonic()
        if self._playing is not None and max(self._sent_until - self.consumed.next_step, self.consumed.queued) <= 5:
            self.send(self._playing(np.arange(self.consumed.next_step, self.consumed.next_step + 15)), self.consumed.next_step)

    def send(self, positions, first: int, generation: int = 1, rate_hz: float = CONTROL_RATE_HZ) -> None:
        self._chunk_id += 1
        self._sent_until = first + len(positions)
        chunk = Chunk(positions, generation, self._chunk_id, first, rate_hz, follows=self.follows)
        self._chunks.publish(chunk_to_message(chunk, seconds_to_time(time.time())))

    def publish_raw(self, message: JointTrajectory) -> None:
        self._chunks.publish(message)

    def spin(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._executor.spin_once(timeout_sec=0.01)

    def until(self, condition, what: str, timeout_s: float = ANSWER_S):
        return wait_for(
            condition,
            lambda: f"{what} (controller: {self.state})",
            timeout_s,
            between=lambda: self._executor.spin_once(timeout_sec=0.01),
        )

    def order(self, name: str, request=None):
        """Calls a Trigger (or SetBool) service and returns its response."""
        kind = SetBool if request is not None else Trigger
        if new := name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
        client = self._clients[name]
        self.until(client.service_is_ready, f"no service {name}")
        self.spin(2 * SETTLE_S if new else 0.0)
        asked = kind.Request() if request is None else SetBool.Request(data=request)
        response = answer(client, asked, spinning(self._executor), PATIENCE_S, again=name.startswith("controller"))
        assert response is not None, f"after {PATIENCE_S:.0f} s: {name} does not answer (controller: {self.state})"
        self.answered = response.message
        return response

    def ready(self) -> None:
        """Waits for the controller, enables the arm and brings it to the ready pose.

        A busy machine can starve the emulated arm into a rightful fault on the way; this is only the preparation of a test.
        """
        self.until(lambda: self.state and self.consumed, "no controller")
        for _ in range(5):
            if self.state.startswith("fault"):
                self.order("controller/clear_fault")
            if self.order("controller/home").success:
                self.until(
                    lambda: "home: arrived" in self.state or self.state.startswith("fault"),
                    "the arm does not reach the ready pose",
                )
            if "home: arrived" in self.state:
                return
            self.spin(0.5)
        raise AssertionError(f"the arm cannot be made ready: {self.state}")

    def go(self) -> None:
        """Says go, again a little later while it is refused: a controller that has just started may not have heard every node yet, and
        orders without a pause would keep it from hearing them."""

        def accepted():
            answer = self.order("controller/go")
            if not answer.success:
                self.spin(0.25)
            return answer.success

        end = time.monotonic() + PATIENCE_S
        while not accepted():
            assert time.monotonic() < end, f"go is refused: {self.answered} (controller: {self.state})"

    def swing(self) -> None:
        """Says go and keeps joint1 and, a little, joint6 swinging by chunks, as an inference node would."""
        self.until(lambda: self._chunks.get_subscription_count() > 0, "nobody listens to chunks")
        self.go()
        base, origin = np.array(READY), self.consumed.next_step

        def path(steps):
            positions = np.repeat(base[None], len(steps), axis=0)
            positions[:, 0] += 0.5 * np.sin((steps - origin + 1) * 0.08)
            positions[:, 5] += 0.1 * np.sin((steps - origin + 1) * 0.08)
            return positions

        self._playing, self._sent_until = path, -1
        began = self.consumed.next_step
        self.until(lambda: self.state.startswith("moving") and self.consumed.next_step > began + 12, "the arm does not swing")

    def rest(self) -> None:
        self._playing = None

    def pause(self) -> None:
        """Sends no more chunks until `go_on`."""
        self._playing, self._paused = None, self._playing

    def go_on(self) -> None:
        self._playing, self._sent_until = self._paused, -1

    def close(self) -> None:
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()
