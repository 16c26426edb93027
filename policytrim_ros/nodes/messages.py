"""The messages between the nodes: one place that packs and unpacks them, the QoS that both ends use, and readers without a callback.

A callback wakes a whole executor, which costs about 1 ms. Where messages are many, or may wait, DDS keeps what has come (as much as
the QoS says) until somebody takes it; no executor serves such readers, so they live on nodes of their own (`unserved`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import rclpy
from builtin_interfaces.msg import Duration, Time
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS, Chunk

LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""For states: who comes late gets the last one."""

TRIAL_EVENT = "trial/event"
"""Topic of what was done in a session: String, JSON {"session", "at" (unix s), "kind", "detail"}, as the store keeps it."""

EVENTS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""For what happens once, all of which counts."""

NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
"""For streams of which only the newest matters (images, joint states)."""

LISTEN_S = 0.1
"""Between two looks at who lives."""


class BadMessage(ValueError):
    """A message does not mean what its topic promises; the text says what is wrong."""


def chunk_to_message(chunk: Chunk, stamp: Time) -> JointTrajectory:
    """``stamp``: ROS time of the oldest image that the policy saw."""
    message = JointTrajectory(joint_names=list(JOINTS))
    message.header.stamp = stamp
    message.header.frame_id = (
        f"generation={chunk.generation} chunk={chunk.chunk_id} first={chunk.first} follows={chunk.follows:d}"
    )
    for index, position in enumerate(chunk.positions):
        nanoseconds = round((index + 1) * 1e9 / chunk.rate_hz)
        when = Duration(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)
        message.points.append(JointTrajectoryPoint(positions=position.tolist(), time_from_start=when))
    return message


def chunk_from_message(message: JointTrajectory) -> Chunk:
    """Raises BadMessage on a partial or unknown joint list, unreadable ids, NaN or ragged points."""
    order = joint_order(message.joint_names)
    try:
        ids = dict(part.split("=") for part in message.header.frame_id.split())
        generation, chunk_id, first = int(ids["generation"]), int(ids["chunk"]), int(ids["first"])
        follows = {"0": False, "1": True}[ids.get("follows", "0")]
    except (KeyError, ValueError):
        raise BadMessage(
            f"chunk header.frame_id '{message.header.frame_id}' is not 'generation=N chunk=N first=N' with 'follows=0|1' or without"
        ) from None
    if not message.points:
        raise BadMessage(f"chunk {chunk_id} holds no points")
    if any(len(point.positions) != len(JOINTS) for point in message.points):
        raise BadMessage(f"chunk {chunk_id}: every point needs {len(JOINTS)} positions")
    first_at = message.points[0].time_from_start.sec + message.points[0].time_from_start.nanosec * 1e-9
    rate_hz = round(1.0 / first_at, 3) if first_at > 0 else CONTROL_RATE_HZ
    positions = np.array([point.positions for point in message.points])[:, order]
    try:
        return Chunk(positions, generation, chunk_id, first, rate_hz, follows)
    except ValueError as error:
        raise BadMessage(f"chunk {chunk_id}: {error}") from None


def joint_order(names) -> list[int]:
    """Where each of JOINTS stands in ``names``; BadMessage when one is missing, unknown or twice (never filled with zeros)."""
    names = list(names)
    if sorted(names) != sorted(JOINTS):
        raise BadMessage(f"joint names [{', '.join(names)}] refused: exactly {', '.join(JOINTS)} are needed")
    return [names.index(joint) for joint in JOINTS]


def joint_state(stamp: Time, position, velocity, effort=()) -> JointState:
    """A JointState in the order of JOINTS: rad, rad/s, N m; gripper m, m/s, N."""
    message = JointState(
        name=list(JOINTS),
        position=[float(v) for v in position],
        velocity=[float(v) for v in velocity],
        effort=[float(v) for v in effort],
    )
    message.header.stamp = stamp
    return message


def positions_of(message: JointState) -> np.ndarray:
    """(7,) positions in the order of JOINTS; BadMessage on a partial joint list."""
    if list(message.name) == list(JOINTS):
        return np.array(message.position)
    return np.array(message.position)[joint_order(message.name)]


@dataclass(frozen=True)
class Consumed:
    """What the controller has played (docs/architecture.md)."""

    generation: int
    chunk_id: int
    next_step: int
    queued: int
    playing: bool
    stalls: int
    stall_s: float

    def to_message(self) -> Int64MultiArray:
        return Int64MultiArray(
            data=[
                self.generation,
                self.chunk_id,
                self.next_step,
                self.queued,
                int(self.playing),
                self.stalls,
                round(self.stall_s * 1000),
            ]
        )

    @classmethod
    def from_message(cls, message: Int64MultiArray) -> "Consumed":
        if len(message.data) != 7:
            raise BadMessage(f"controller/consumed holds {len(message.data)} numbers, expected 7")
        generation, chunk_id, next_step, queued, playing, stalls, stall_ms = message.data
        return cls(generation, chunk_id, next_step, queued, bool(playing), stalls, stall_ms / 1000.0)


def seconds_to_time(seconds: float) -> Time:
    """ROS time from seconds since the epoch."""
    whole = math.floor(seconds)
    return Time(sec=whole, nanosec=min(999_999_999, round((seconds - whole) * 1e9)))


def time_to_seconds(stamp: Time) -> float:
    """Seconds since the epoch from ROS time."""
    return stamp.sec + stamp.nanosec * 1e-9


def unserved(node, name: str, **options):
    """A node beside ``node``, called after it, for readers that no executor serves."""
    name = f"{node.get_name()}_{name}"
    return rclpy.create_node(name, namespace=node.get_namespace(), start_parameter_services=False, **options)


class Reader:
    """What has arrived on a topic, taken off the middleware when asked for; ``node``: see `unserved`."""

    def __init__(self, node, kind, topic: str, qos):
        self._reader = node.create_subscription(kind, topic, lambda message: None, qos)

    def take(self):
        """Yields (message, when it was sent, in seconds since the epoch), oldest first."""
        with self._reader.handle:
            while (taken := self._reader.handle.take_message(self._reader.msg_type, False)) is not None:
                yield taken[0], taken[1]["source_timestamp"] * 1e-9


class Newest:
    """The newest message of fast topics, taken when asked for: DDS keeps only that."""

    def __init__(self, node, kind, topics: dict[str, str]):
        self._node = unserved(node, "states")
        self._readers = {name: Reader(self._node, kind, topic, NEWEST) for name, topic in topics.items()}
        self._kept = dict.fromkeys(topics)

    def take(self, name: str):
        """The newest message of topic ``name``, or None before the first."""
        for message, _ in self._readers[name].take():
            self._kept[name] = message
        return self._kept[name]

    def close(self) -> None:
        self._node.destroy_node()


class Heartbeats:
    """Who has been heard on ``heartbeat`` since the last look, which is due every LISTEN_S."""

    def __init__(self, node):
        self._node = unserved(node, "heartbeats")
        self._reader = Reader(self._node, String, "heartbeat", 100)

    def take(self) -> list[str]:
        """The messages (core.types.heartbeats_of) that came since the last call, oldest first."""
        return [message.data for message, _ in self._reader.take()]

    def close(self) -> None:
        self._node.destroy_node()
