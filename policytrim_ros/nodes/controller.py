"""Controller node: the only owner of the arm.

    chunk, services --> Supervisor (core) --> setpoints at setpoint_rate_hz from an own thread --> Piper (arm/)
    Piper --> joint_states (100 Hz), controller/setpoint, controller/consumed, controller/state, diagnostics

The setpoint thread keeps absolute deadlines and does nothing but judge, filter and send; ROS callbacks only hand it data.
Every ending (SIGINT, SIGTERM, a lost node, a lost bus) decelerates and holds; nothing here disables or resets the arm.
"""

from __future__ import annotations

import collections
import gc
import sys
import threading
import time
from dataclasses import dataclass

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rcl_interfaces.msg import SetParametersResult
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros import awake
from policytrim_ros.arm.piper import ArmError, ArmLimits, Piper, PiperConfig
from policytrim_ros.core.config import ConfigError, setting
from policytrim_ros.core.executor import ChunkRefused
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.core.supervisor import FAULTED, MOVING, Health, Refused, Supervisor, SupervisorConfig
from policytrim_ros.core.types import JOINTS
from policytrim_ros.nodes import agilex
from policytrim_ros.nodes.messages import (
    LATCHED,
    LISTEN_S,
    NEWEST,
    BadMessage,
    Consumed,
    Heartbeats,
    chunk_from_message,
    joint_state,
    seconds_to_time,
)
from policytrim_ros.nodes.parameters import current, declare
from policytrim_ros.nodes.process import STEADY, ask_for_priority, priority_of, run, udp_alone

SPEED_PERCENT = 100  # the arm's own speed limit; ours are lower and are kept setpoint by setpoint


@dataclass(frozen=True)
class ControllerConfig(PiperConfig, SafetyLimits, SupervisorConfig):
    """Parameters of the controller node: the arm, its limits, when to doubt, and how to stream."""

    setpoint_rate_hz: float = setting(100.0, "setpoints streamed to the arm", low=30.0, high=200.0, unit="Hz")
    state_rate_hz: float = setting(100.0, "joint_states and controller/setpoint published", low=10.0, high=200.0, unit="Hz")
    realtime_priority: int = setting(
        50, "SCHED_FIFO priority of this process where the system allows it; 0: do not ask", low=0, high=90
    )
    keep_awake: str = setting(
        awake.AUTO,
        "keep the processors busy at SCHED_IDLE, since a host is slow to wake virtual ones up (auto: on a virtual machine)",
        choices=awake.CHOICES,
    )
    enable_timeout_s: float = setting(
        5.0, "how long go, home and park wait for the motors to come on", low=0.5, high=30.0, unit="s"
    )
    agilex_topics: bool = setting(
        False, "also offer AgileX's topics (joint_states_single, joint_ctrl_single, end_pose, enable_flag)"
    )


def following(due: float, now: float, period: float) -> tuple[float, int]:
    """(the deadline after ``due``, deadlines that pass without a tick) for a tick that comes at ``now`` (s).

    After a long pause of the machine there is no burst of old deadlines: they are missed.
    """
    if now <= due + 2 * period:
        return due + period, 0
    return now + period, int((now - due) / period)


def limits_told(limits: ArmLimits | None) -> dict[str, str]:
    """The arm's own limits as its diagnostics say them, joint by joint in rad, rad/s and rad/s2; nothing when it did not tell them."""
    if limits is None:
        return {}
    told = {"low": limits.low, "high": limits.high, "v_max": limits.speed, "a_max": limits.acceleration}
    return {f"arm_{name}": " ".join(f"{value:.4f}" for value in values) for name, values in told.items()}


class Controller(Node):
    """See the module. ``fatal`` is set when the node cannot go on."""

    def __init__(self):
        super().__init__("controller")
        self.fatal = None
        self.config = declare(self, ControllerConfig)
        self._awake = awake.Awake(self.config.keep_awake)
        if self.config.realtime_priority:
            refused = ask_for_priority(self.config.realtime_priority)
            if refused:
                self.get_logger().warning(f"no real-time priority: {refused}")
        self.arm = Piper(self.config)
        self.supervisor = Supervisor(self.config, self.config)
        self._lock = threading.Lock()  # guards the supervisor; never held across a call into the SDK
        self._stop = threading.Event()
        self._lateness = collections.deque(maxlen=int(5 * self.config.setpoint_rate_hz))
        self._hold_asked, self._to_braking = None, collections.deque(maxlen=200)  # s, from a hold's call to its first setpoint sent
        self._ticks_missed = 0  # deadlines without a setpoint since the node started
        self._setpoint = None
        self._consumed_at = 0.0
        self._reported = self._published_state = None
        self.arm.connect()
        self.get_logger().info(
            f"connected can_interface={self.config.can_interface} can_port={self.config.can_port} firmware={self.arm.firmware}"
        )
        self._limits_told = limits_told(self._limits_read())
        self._joints_reported = time.monotonic(), self.arm.joint_reports  # at the last diagnostics

        self._joints = self.create_publisher(JointState, "joint_states", QoSProfile(depth=10))
        self._setpoints = self.create_publisher(JointState, "controller/setpoint", NEWEST)
        self._consumed = self.create_publisher(Int64MultiArray, "controller/consumed", 10)
        self._state = self.create_publisher(String, "controller/state", LATCHED)
        self._diagnostics = self.create_publisher(DiagnosticArray, "diagnostics", 10)
        self.create_subscription(JointTrajectory, "chunk", self._on_chunk, 10)
        self._heartbeats, self._listened_at = Heartbeats(self), 0.0
        for name in ("go", "home", "park", "hold", "clear_fault", "damped_stop"):
            self.create_service(Trigger, f"controller/{name}", self._order(getattr(self, f"_{name}")))
        self.create_timer(1.0, self._publish_diagnostics, clock=STEADY)
        self.add_on_set_parameters_callback(self._on_parameters)
        self._agilex = agilex.Topics(self) if self.config.agilex_topics else None
        self._thread = threading.Thread(
            target=self._at_rate,
            name="setpoints",
            daemon=True,
            args=(self.config.setpoint_rate_hz, self._tick, self._lateness.append, self._missed),
        )
        # the states are not spoken by a ROS timer: it would wake the whole executor each time
        self._speaker = threading.Thread(
            target=self._at_rate, name="states", daemon=True, args=(self.config.state_rate_hz, self._publish_joints)
        )
        gc.collect()
        gc.freeze()  # what is alive now stays: later collections do not walk it beside the setpoint thread
        self._thread.start()
        self._speaker.start()

    def _limits_read(self) -> ArmLimits | None:
        """The limits that the arm keeps by itself, asked once and before anything moves; None, and a warning, where it is silent."""
        try:
            return self.arm.limits_readback()
        except ArmError as error:
            self.get_logger().warning(f"limits of the arm unknown: {error}")
            return None

    # ---- the setpoint thread --------------------------------------------------------------------------------------

    def _missed(self, count: int) -> None:
        self._ticks_missed += count

    def _at_rate(self, rate_hz: float, act, note_lateness=lambda seconds: None, note_missed=lambda count: None) -> None:
        """Calls ``act(now)`` at absolute deadlines until the node ends; an error ends the process, which says why."""
        period = 1.0 / rate_hz
        due = time.monotonic() + period
        try:
            while not self._stop.is_set():
                time.sleep(max(0.0, due - time.monotonic()))
                now = time.monotonic()
                note_lateness(now - due)
                due, missed = following(due, now, period)
                note_missed(missed)
                act(now)
        except Exception as error:  # the arm holds its last setpoint
            self.fatal = f"thread {threading.current_thread().name} stopped: {type(error).__name__}: {error}"

    def _tick(self, now: float) -> None:
        health = self._health()
        with self._lock:
            self.supervisor.clock(time.time() - time.monotonic())
            asked, self._hold_asked = self._hold_asked, None
            command = self.supervisor.tick(now, health)
            state = f"{self.supervisor.state}: {self.supervisor.reason}"
        if command.setpoint is not None:
            self.arm.send(command.setpoint, SPEED_PERCENT)
            if asked is not None:
                self._to_braking.append(time.monotonic() - asked)
        self._setpoint = (command.setpoint, command.velocity) if command.setpoint is not None else None
        if state != self._published_state:
            self._published_state = state
            self._state.publish(String(data=state))
            if state.startswith(FAULTED):
                self.get_logger().error(f"state={state}")
            else:
                self.get_logger().info(f"state={state}")

    def _health(self) -> Health:
        feedback = self.arm.feedback()
        if feedback is None:
            return Health(None, float("inf"), False, (), self.arm.send_failures)
        age = time.monotonic() - feedback.state.stamp
        off = tuple(name for name, on in zip(JOINTS, feedback.enabled) if not on)
        return Health(feedback.state.position, age, not off, feedback.problems, self.arm.send_failures, off)

    # ---- the operator's orders -------------------------------------------------------------------------------------

    def _order(self, carry_out):
        def serve(_request, response):
            try:
                response.message = carry_out() or ""
                response.success = True
            except (Refused, ArmError) as error:
                response.success, response.message = False, str(error)
                self.get_logger().warning(f"refused order={carry_out.__name__.strip('_')} reason={error}")
            return response

        return serve

    def order(self, name: str) -> str:
        """Carries out an operator's order by its service name; raises Refused or ArmError."""
        return getattr(self, f"_{name}")()

    def _enable(self) -> None:
        health = self._health()
        with self._lock:
            self.supervisor.may_enable(health)
        if not health.enabled:
            self.arm.enable(self.config.enable_timeout_s)

    def _go(self) -> str:
        self._enable()
        with self._lock:
            self.supervisor.go(self._health(), time.monotonic())
        return "chunks may move the arm"

    def _home(self) -> str:
        self._enable()
        with self._lock:
            self.supervisor.home(self._health(), time.monotonic())
        return "moving to the ready pose"

    def _park(self) -> str:
        self._enable()
        with self._lock:
            self.supervisor.park(self._health(), time.monotonic())
        return "moving to the rest pose"

    def _hold(self) -> str:
        asked = time.monotonic()
        with self._lock:
            if self.supervisor.state == MOVING:
                self._hold_asked = asked
            self.supervisor.hold()
            return f"{self.supervisor.state}: {self.supervisor.reason}"

    def _clear_fault(self) -> str:
        health = self._health()
        if health.age_s > 1.0:
            self.arm.reconnect()
            health = self._health()
        with self._lock:
            self.supervisor.clear_fault(health)
            return f"{self.supervisor.state}: {self.supervisor.reason}"

    def _damped_stop(self) -> str:
        with self._lock:
            self.supervisor.damped_stop()
        self.arm.damped_stop()
        return "the arm sinks with damping; support it. Recovery cuts its power: see docs/can.md"

    def _on_parameters(self, changes) -> SetParametersResult:
        """Only speed_scale may change: declared so, and every other parameter read-only."""
        try:
            wanted = current(self, ControllerConfig, changes)
        except ConfigError as error:
            return SetParametersResult(successful=False, reason=str(error))
        with self._lock:
            self.supervisor.executor.speed_scale = wanted.speed_scale
        self.get_logger().info(f"speed_scale={wanted.speed_scale}")
        return SetParametersResult(successful=True)

    # ---- data in and out -------------------------------------------------------------------------------------------

    def _on_chunk(self, message: JointTrajectory) -> None:
        try:
            chunk = chunk_from_message(message)
        except BadMessage as error:
            with self._lock:
                self.supervisor.bad_chunk(str(error))
            self.get_logger().error(f"bad chunk: {error}")
            return
        self.take(chunk)

    def take(self, chunk) -> None:
        """Hands a chunk to the supervisor; a refusal is logged, never silent."""
        try:
            with self._lock:
                self.supervisor.accept(chunk)
        except ChunkRefused as error:
            self.get_logger().warning(str(error), throttle_duration_sec=1.0)

    def _listen(self, now: float) -> None:
        self._listened_at = now
        heard = self._heartbeats.take()
        with self._lock:
            for words in heard:
                self.supervisor.heartbeat(words, now)

    def _publish_joints(self, now: float) -> None:
        if now - self._listened_at >= LISTEN_S:
            self._listen(now)
        executor = self.supervisor.executor
        played = executor.next_step, executor.playing
        if (
            played != self._reported or now - self._consumed_at > 0.05
        ):  # also at the end of the last action: the policy waits for it
            self._reported = played
            self._publish_consumed()
        feedback = self.arm.feedback()
        if feedback is None:
            return
        state = feedback.state
        stamp = seconds_to_time(time.time() - (time.monotonic() - state.stamp))
        message = joint_state(stamp, state.position, state.velocity, state.effort)
        self._joints.publish(message)
        setpoint = self._setpoint
        where, speed = setpoint if setpoint is not None else (state.position, np.zeros(7))
        self._setpoints.publish(joint_state(stamp, where, speed))
        if self._agilex is not None:
            self._agilex.publish(message, self.arm)

    def _publish_consumed(self) -> None:
        self._consumed_at = time.monotonic()
        executor = self.supervisor.executor
        with self._lock:  # all of it from between the same two ticks
            playing = self.supervisor.state == MOVING and executor.running and executor.playing
            consumed = Consumed(
                executor.generation,
                executor.chunk_id,
                executor.next_step,
                executor.queued,
                playing,
                executor.stalls,
                executor.stall_s,
            )
        self._consumed.publish(consumed.to_message())

    def _publish_diagnostics(self) -> None:
        feedback = self.arm.feedback()
        lag = np.array(self._lateness) * 1000 if self._lateness else np.zeros(1)
        values = {
            "state": self.supervisor.state,
            "reason": self.supervisor.reason,
            "lateness_p50_ms": f"{np.percentile(lag, 50):.3f}",
            "lateness_p99_ms": f"{np.percentile(lag, 99):.3f}",
            "lateness_max_ms": f"{lag.max():.3f}",
            **self._braking(),
            "ticks_missed": str(self._ticks_missed),
            "processors_kept_awake": str(self._awake.processors),
            "send_failures": str(self.arm.send_failures),
            "firmware": self.arm.firmware or "unknown",
            "can_frames_per_s": "0" if feedback is None else f"{feedback.frames_per_s:.0f}",
            "joint_reports_per_s": f"{self._joint_rate():.1f}",
            "feedback_age_ms": "none" if feedback is None else f"{(time.monotonic() - feedback.state.stamp) * 1000:.1f}",
            "motors_enabled": "unknown" if feedback is None else f"{sum(feedback.enabled)} of {len(feedback.enabled)}",
            "control_steps": str(self.supervisor.executor.next_step),
            "stalls": str(self.supervisor.executor.stalls),
            "stall_s": f"{self.supervisor.executor.stall_s:.3f}",
            "slowed_s": f"{self.supervisor.executor.slowed_s:.3f}",
            "chunks_cut": str(self.supervisor.chunks_cut),
            "speed_scale": f"{self.supervisor.executor.speed_scale:g}",
            "realtime_priority": str(priority_of(self._thread.native_id)) if self._thread.is_alive() else "unknown",
            **self._limits_told,
        }
        with self._lock:
            warnings = self.supervisor.warnings()
        level = {FAULTED: DiagnosticStatus.ERROR, "unconfigured": DiagnosticStatus.WARN}.get(
            self.supervisor.state, DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK
        )
        status = DiagnosticStatus(
            level=level,
            name="controller",
            message=f"{self.supervisor.state}: {self.supervisor.reason}" + (f"; {warnings}" if warnings else ""),
            hardware_id=self.config.can_port,
            values=[KeyValue(key=k, value=v) for k, v in values.items()],
        )
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)
        self._say_again()

    def _say_again(self) -> None:
        """A state must not be lost for whom one message was lost; nor may the state before be heard after a new one, which another
        thread may tell meanwhile."""
        said = None
        while said != self._published_state:
            said = self._published_state
            self._state.publish(String(data=said))

    def _joint_rate(self) -> float:
        """Complete reports of the joints a second since the call before; none are counted over a reconnection."""
        (then, before), self._joints_reported = self._joints_reported, (time.monotonic(), self.arm.joint_reports)
        return max(0, self._joints_reported[1] - before) / max(self._joints_reported[0] - then, 1e-3)

    def _braking(self) -> dict[str, str]:
        """How long the latest holds took from the service call until the first braking setpoint was on its way to the bus."""
        taken = 1000 * np.array(self._to_braking)
        if not len(taken):
            return {}
        figures = {"last": taken[-1], "p50": np.percentile(taken, 50), "p99": np.percentile(taken, 99)}
        return {f"hold_to_braking_ms_{name}": f"{value:.2f}" for name, value in figures.items()}

    def close(self) -> None:
        """Decelerates and leaves the arm holding with its motors on."""
        with self._lock:
            self.supervisor.hold("the controller ends")
        deadline = time.monotonic() + 2.0
        while self._thread.is_alive() and not self._at_rest() and time.monotonic() < deadline:
            time.sleep(0.005)
        self._stop.set()
        self._thread.join(timeout=1.0)
        self._speaker.join(timeout=1.0)
        self._heartbeats.close()
        self.arm.close()
        self._awake.close()
        print("controller: ended; the arm holds its position with the motors as they were", flush=True)

    def _at_rest(self) -> bool:
        with self._lock:
            return self.supervisor.filter.setpoint is None or self.supervisor.filter.at_rest


def main() -> None:
    sys.setswitchinterval(0.0005)  # a waiting setpoint thread asks for the interpreter after 0.5 ms, not 5
    udp_alone()
    sys.exit(run(Controller))


if __name__ == "__main__":
    main()
