"""What the running system says of itself, judged: bus, arm, setpoints, cameras, policy. Listens for some seconds, orders nothing."""

from __future__ import annotations

import time
from typing import Iterator

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String

from policytrim_ros.doctor import BAD, GOOD, WARNING, Finding
from policytrim_ros.nodes.messages import LATCHED

LISTEN_S = 5.0
"""Diagnostics come once a second, after a discovery of up to 3 s."""

FRAMES_PER_S = 2500.0
"""An arm that is well sends about 3040 CAN frames a second."""

FEEDBACK_MS, LATE_MS, IMAGE_MS, IMAGES_PER_S = 20.0, 2.0, 120.0, 10.0


def running_system(namespace: str) -> Iterator[Finding]:
    """Findings about the system in ``namespace``; one that says that nobody speaks when none runs."""
    rclpy.init(args=[])
    node = rclpy.create_node("doctor", namespace=namespace.strip("/"), start_parameter_services=False, enable_rosout=False)
    try:
        told, states = _listen(node)
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    if not told:
        yield Finding("system", BAD, f"nobody speaks within {LISTEN_S:.0f} s", "start it, or check namespace and ROS_DOMAIN_ID")
        return
    yield from _arm(told.get("controller"), states)
    yield from _policy(told.get("inference"))
    for name, (level, message, _) in sorted(told.items()):
        if name not in ("controller", "inference"):
            yield Finding(name.replace("camera: ", ""), (GOOD, WARNING, BAD)[min(level, 2)], message)


def _listen(node) -> tuple[dict, list[str]]:
    """What every node has said on ``diagnostics``, {name: (level, message, values)}, and the controller's states."""
    told: dict[str, tuple[int, str, dict]] = {}
    states: list[str] = []

    def hear(message: DiagnosticArray) -> None:
        for status in message.status:
            level = status.level[0] if isinstance(status.level, bytes) else int(status.level)
            told[status.name] = level, status.message, {pair.key: pair.value for pair in status.values}

    node.create_subscription(DiagnosticArray, "diagnostics", hear, 50)
    node.create_subscription(String, "controller/state", lambda message: states.append(message.data), LATCHED)
    executor, end = SingleThreadedExecutor(), time.monotonic() + LISTEN_S
    executor.add_node(node)
    while time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    return told, states


def _arm(said, states) -> Iterator[Finding]:
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
    yield Finding("motors", GOOD, f"{values.get('motors_enabled', 'unknown')} enabled; go, home and park bring them on")
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
