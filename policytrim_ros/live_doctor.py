"""What the running system says of itself, judged: bus, arm, limits, setpoints, clocks, cameras, policy.

Listens for some seconds and asks the nodes for their parameters; orders nothing.
"""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field, fields
from typing import Any, Iterator, Mapping

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.srv import GetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import parameter_value_to_python
from rclpy.signals import SignalHandlerOptions
from std_msgs.msg import String

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.core.types import JOINTS
from policytrim_ros.doctor import devices, serials
from policytrim_ros.findings import BAD, GOOD, WARNING, Finding
from policytrim_ros.nodes.asking import answer, spinning
from policytrim_ros.nodes.messages import LATCHED, time_to_seconds
from policytrim_ros.nodes.rig import plain

LISTEN_S, ASK_S = 5.0, 2.0
"""Diagnostics come once a second, after a discovery of up to 3 s."""

FRAMES_PER_S, REPORTS_PER_S = 2500.0, 150.0
"""An arm that is well sends about 3040 CAN frames a second, among them 200 reports of its joints."""

FEEDBACK_MS, LATE_MS, IMAGE_MS, IMAGES_PER_S, APART_S = 20.0, 2.0, 120.0, 10.0, 0.5

SAME_LIMIT = 1e-3
"""Half of what the arm's limits are rounded to (0.1 degree), in rad."""

ASKED = {
    "controller": (*(spec.name for spec in fields(SafetyLimits)), "realtime_priority", "control_rate_hz"),
    "inference": ("cameras", "width", "height", "control_rate_hz", "horizon", "task"),
    "camera": ("cameras", "serials", "source", "realsense_context"),
}
"""The parameters that are asked of each node."""


@dataclass
class Heard:
    """What was said: diagnostics {name: (level, message, values)}, the controller's states, and how far each name's stamps are from
    this clock (s; the least, since the way only makes them older)."""

    told: dict[str, tuple[int, str, dict]] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)
    apart_s: dict[str, float] = field(default_factory=dict)
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, message: DiagnosticArray, wall_s: float) -> None:
        for status in message.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            self.told[status.name] = level, status.message, {pair.key: pair.value for pair in status.values}
            apart = wall_s - time_to_seconds(message.header.stamp)
            self.apart_s[status.name] = min(apart, self.apart_s.get(status.name, apart))


def running_system(namespace: str, parameters: dict[str, dict] | None = None) -> Iterator[Finding]:
    """Findings about the system in ``namespace``; one that says that nobody speaks when none runs. Fills ``parameters`` by node."""
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node("doctor", namespace=namespace.strip("/"), start_parameter_services=False, enable_rosout=False)
    try:
        heard = _listen(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    if parameters is not None:
        parameters.update(heard.parameters)
    yield from judged(heard)


def judged(heard: Heard) -> Iterator[Finding]:
    """The findings that follow from what was heard."""
    told, parameters = heard.told, heard.parameters
    if not told:
        yield Finding("system", BAD, f"nobody speaks within {LISTEN_S:.0f} s", "start it, or check namespace and ROS_DOMAIN_ID")
        return
    yield stamps(heard.apart_s)
    yield from _arm(told.get("controller"), heard.states, parameters.get("controller", {}))
    yield from _policy(told.get("inference"))
    for name, (level, message, _) in sorted(told.items()):
        if name not in ("controller", "inference"):
            yield Finding(name.replace("camera: ", ""), (GOOD, WARNING, BAD)[min(level, 2)], message)
    yield from _serials(told, parameters.get("camera", {}))


def _listen(node) -> Heard:
    heard = Heard()
    node.create_subscription(DiagnosticArray, "diagnostics", lambda message: heard.take(message, time.time()), 50)
    node.create_subscription(String, "controller/state", lambda message: heard.states.append(message.data), LATCHED)
    clients = {name: node.create_client(GetParameters, f"{name}/get_parameters") for name in ASKED}
    executor, end = SingleThreadedExecutor(), time.monotonic() + LISTEN_S
    executor.add_node(node)
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    for name, client in clients.items():
        if client.service_is_ready():
            response = answer(client, GetParameters.Request(names=list(ASKED[name])), spinning(executor), ASK_S, again=True)
            values = map(parameter_value_to_python, response.values) if response is not None else ()
            heard.parameters[name] = {key: plain(value) for key, value in zip(ASKED[name], values) if value is not None}
    return heard


def stamps(apart_s: Mapping[str, float]) -> Finding:
    """Whether the stamps of what was heard agree with this machine's wall clock."""
    worst = max(apart_s, key=lambda name: abs(apart_s[name]))
    apart = apart_s[worst]
    if abs(apart) <= APART_S:
        return Finding("stamps", GOOD, f"within {1000 * abs(apart):.0f} ms of this clock")
    what = f"those of '{worst}' are {abs(apart):.1f} s {'behind' if apart > 0 else 'ahead of'} this clock"
    return Finding("stamps", BAD, what, "synchronise the clocks of all machines (chrony, `timedatectl set-ntp true`), then start again")


def limits(values: Mapping[str, str], parameters: Mapping[str, Any]) -> Finding:
    """The limits that the arm keeps by itself against those of our setpoints, from the controller's diagnostics and parameters."""
    try:
        low, high, speed, acceleration = (
            np.array([float(word) for word in values[f"arm_{name}"].split()]).reshape(6)
            for name in ("low", "high", "v_max", "a_max")
        )
    except (KeyError, ValueError):
        return Finding("limits", WARNING, "the arm's own are unknown", "it did not tell them at the start: start the controller again")
    try:
        ours = SafetyLimits.from_mapping({spec.name: parameters[spec.name] for spec in fields(SafetyLimits)})
    except (KeyError, ConfigError, ValueError):
        return Finding("limits", WARNING, "the controller's are unknown", "it does not tell its parameters: look at its log")
    lowest, highest = (np.array(bound[:6]) for bound in (ours.position_low, ours.position_high))
    narrower = []
    for text, unit, theirs, own in (
        ("down to", "rad", -low, -(lowest + ours.joint_margin_rad)),
        ("up to", "rad", high, highest - ours.joint_margin_rad),
        ("at most", "rad/s", speed, np.array(ours.v_max[:6])),
        ("at most", "rad/s2", acceleration, np.array(ours.a_max[:6])),
    ):
        sign = -1.0 if text == "down to" else 1.0
        for joint in np.flatnonzero(theirs < own - SAME_LIMIT):
            narrower.append(f"{JOINTS[joint]}: the arm allows {text} {sign * theirs[joint]:.3f} {unit}, ours {sign * own[joint]:.3f}")
    if narrower:
        advice = "it does not follow beyond its own: narrow ours in config/controller.yaml, or widen the arm's with the vendor's tool"
        return Finding("limits", WARNING, "; ".join(narrower), advice)
    return Finding("limits", GOOD, "the arm's own are as wide as ours")


def realtime(values: Mapping[str, str], parameters: Mapping[str, Any]) -> Finding:
    """The priority that the controller's setpoint thread has got."""
    got, asked = values.get("realtime_priority", "unknown"), parameters.get("realtime_priority")
    if got.isdigit() and int(got):
        return Finding("priority", GOOD, f"the controller runs at real-time priority {got}")
    advice = "setpoints will be late on a busy machine; add an rtprio line to /etc/security/limits.d and log in again"
    if got != "0":
        return Finding("priority", WARNING, "the controller does not say at which it runs", advice)
    if asked == 0:
        return Finding("priority", WARNING, "the controller did not ask for any", "set realtime_priority")
    return Finding("priority", WARNING, "the controller was refused real-time priority", advice)


def _motors(values: Mapping[str, str]) -> Finding:
    enabled = values.get("motors_enabled", "unknown")
    if enabled == "unknown":
        return Finding("motors", WARNING, "unknown whether they are enabled", "the arm does not report: see CAN and feedback")
    return Finding("motors", GOOD, f"{enabled} enabled; go, home and park bring them on")


def _serials(told: Mapping[str, tuple], camera: Mapping[str, Any]) -> Iterator[Finding]:
    """The serials of the running camera node against what it has open, and against the USB where that is where it looks."""
    if not camera or camera.get("source", "realsense") != "realsense":
        return
    present = {said[2].get("device"): (name, said[2].get("device")) for name, said in told.items() if _has_open(name, said)}
    if not camera.get("realsense_context"):
        try:
            present |= {serial: (name, serial) for name, serial in devices()}
        except (ImportError, subprocess.TimeoutExpired):
            yield Finding("serials", WARNING, "unknown which cameras are connected", "see cameras")
            return
    yield from serials(camera, list(present.values()), robot=False)


def _has_open(name: str, said: tuple) -> bool:
    level, _, values = said
    return name.startswith("camera: ") and level < 2 and bool(values.get("device"))


def _arm(said, states, parameters) -> Iterator[Finding]:
    if said is None:
        yield Finding("controller", BAD, "silent", "start the controller node")
        return
    values = said[2]
    state = states[-1] if states else said[1]
    yield Finding("controller", BAD if state.startswith("fault") else GOOD, state)
    yield _measured(
        "CAN",
        values,
        "can_frames_per_s",
        lambda x: x >= FRAMES_PER_S,
        "frames/s",
        "check cable, bitrate (1 Mbit/s) and termination",
    )
    yield _measured(
        "feedback", values, "feedback_age_ms", lambda x: x <= FEEDBACK_MS, "ms old", "the bus is silent or overloaded"
    )
    seldom = "the bus is overloaded, or the arm was set up to report less often"
    yield _measured("joint rate", values, "joint_reports_per_s", lambda x: x >= REPORTS_PER_S, "reports/s", seldom)
    yield _motors(values)
    yield limits(values, parameters)
    yield realtime(values, parameters)
    late = "give the controller real-time priority, or take load from this machine"
    yield _measured("setpoints", values, "lateness_p99_ms", lambda x: x <= LATE_MS, "ms late (p99)", late, state=WARNING)


def _policy(said) -> Iterator[Finding]:
    if said is None:
        yield Finding("inference", WARNING, "silent", "without it no policy moves the arm")
        return
    level, message, values = said
    yield Finding("inference", GOOD if level == 0 else WARNING, f"{message}; h = {values.get('horizon')}, {values.get('mode')}")
    for name in sorted(key.removesuffix("_images_per_s") for key in values if key.endswith("_images_per_s")):
        few = "check USB 3 port and cable"
        yield _measured(f"{name} images", values, f"{name}_images_per_s", lambda x: x >= IMAGES_PER_S, "a second", few)
        old = "this machine is too busy, or the camera is"
        yield _measured(f"{name} age", values, f"{name}_age_ms_p99", lambda x: x <= IMAGE_MS, "ms (p99)", old, state=WARNING)


def _measured(subject: str, values: dict, key: str, good, unit: str, advice: str, state: str = BAD) -> Finding:
    """A finding about one number of a node's diagnostics."""
    try:
        value = float(values.get(key, ""))
    except ValueError:
        return Finding(subject, state, "unknown", advice)
    fine = good(value)
    return Finding(subject, GOOD if fine else state, f"{value:g} {unit}", "" if fine else advice)
