"""Recorder node: one MCAP file of a run, readable by Foxglove and `ros2 bag`.

Callbacks put raw CDR bytes into a bounded queue; one thread writes. The recorder is never in the way of control: a full
queue drops messages and says so, a failed write (full disk) ends the recording with an error, not the run. The file is
``<out>/<time>.mcap.partial`` until it is finished and renamed.
"""

from __future__ import annotations

import queue
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticArray
from mcap.writer import CompressionType, Writer
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.config import Config, setting
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import run


@dataclass(frozen=True)
class RecorderConfig(Config):
    """Parameters of the recorder node."""

    out: str = setting("runs", "directory of the recordings")
    cameras: list = setting(["front", "wrist"], "cameras whose compressed images are recorded")
    queue_size: int = setting(2000, "messages that may wait for the disk before some are dropped", low=10, high=100000)
    free_space_mb: int = setting(200, "recording ends before less than this is free on the disk", low=0, high=1000000, unit="MB")


class McapFile:
    """A growing MCAP file of ROS 2 messages. OSError when the disk is full; ``close`` makes the name final."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._partial = path, path.with_suffix(".mcap.partial")
        self._file = open(self._partial, "wb")
        self._writer = Writer(self._file, compression=CompressionType.LZ4)
        self._writer.start(profile="ros2", library="policytrim_ros")
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}

    def write(self, topic: str, kind: type, data: bytes, stamp_ns: int) -> None:
        if topic not in self._channels:
            name = message_name(kind)
            if name not in self._schemas:
                self._schemas[name] = self._writer.register_schema(name, "ros2msg", definition(name).encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[name])
        self._writer.add_message(self._channels[topic], stamp_ns, data, stamp_ns)

    def close(self) -> None:
        self._writer.finish()
        self._file.close()
        self._partial.rename(self.path)


def message_name(kind: type) -> str:
    """``sensor_msgs/msg/JointState`` of a message class."""
    package = kind.__module__.split(".")[0]
    return f"{package}/msg/{kind.__name__}"


def definition(name: str) -> str:
    """The text of a message definition with those of all messages it holds, as MCAP's ``ros2msg`` encoding wants it."""
    parts, waiting, seen = [], [name], {name}
    while waiting:
        current = waiting.pop(0)
        package, _, kind = current.split("/")
        text = (share_of(package) / "msg" / f"{kind}.msg").read_text()
        parts.append(text if current == name else f"MSG: {package}/{kind}\n{text}")
        for line in text.splitlines():
            field = line.split("#")[0].split()
            if len(field) < 2:
                continue
            base = field[0].split("[")[0]
            inner = base if "/" in base else f"{package}/{base}" if base[:1].isupper() else None
            if inner is not None:
                inner = f"{inner.split('/')[0]}/msg/{inner.split('/')[-1]}"
                if inner not in seen:
                    seen.add(inner)
                    waiting.append(inner)
    return ("\n" + "=" * 80 + "\n").join(parts)


def share_of(package: str) -> Path:
    """The share directory of a ROS package, of a ROS 2 installation or of the wheels."""
    from ament_index_python.packages import PackageNotFoundError, get_package_share_directory

    try:
        return Path(get_package_share_directory(package))
    except (PackageNotFoundError, EnvironmentError):  # not found, or no AMENT_PREFIX_PATH at all: the wheels' own prefix
        return Path(sys.prefix) / "share" / package


class Recorder(Node):
    """See the module."""

    def __init__(self):
        super().__init__("recorder")
        self.fatal = None
        self.config = declare(self, RecorderConfig)
        self._queue: queue.Queue = queue.Queue(self.config.queue_size)
        self._dropped = 0
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self._mcap = McapFile(Path(self.config.out) / f"{stamp}.mcap")
        topics = [
            ("joint_states", JointState, 10),
            ("controller/setpoint", JointState, 10),
            ("controller/consumed", Int64MultiArray, 50),
            ("controller/state", String, LATCHED),
            ("chunk", JointTrajectory, 50),
            ("inference/status", String, LATCHED),
            ("scene/state", String, LATCHED),
            ("diagnostics", DiagnosticArray, 50),
        ]
        topics += [(f"{camera}/color/image_raw/compressed", CompressedImage, 5) for camera in self.config.cameras]
        for topic, kind, qos in topics:
            full = self.resolve_topic_name(topic)
            self.create_subscription(
                kind, topic, self._keep(full, kind), qos if isinstance(qos, QoSProfile) else QoSProfile(depth=qos), raw=True
            )
        self.create_timer(5.0, self._report)
        self._ending = threading.Event()
        self._writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self._writer.start()
        self.get_logger().info(f"recording file={self._mcap.path}")

    def _keep(self, topic, kind):
        def callback(data: bytes):
            try:
                self._queue.put_nowait((topic, kind, data, time.time_ns()))
            except queue.Full:
                self._dropped += 1

        return callback

    def _write(self) -> None:
        try:
            while not (self._ending.is_set() and self._queue.empty()):
                try:
                    item = self._queue.get(timeout=0.1)
                except queue.Empty:
                    continue
                self._mcap.write(*item)
            self._mcap.close()
        except OSError as error:
            self.fatal = f"recording to {self._mcap.path} failed: {error}; free some space. The arm is not affected"

    def _report(self) -> None:
        if self._dropped:
            self.get_logger().error(f"dropped={self._dropped} messages: the disk is too slow for this recording")
            self._dropped = 0

        free_mb = shutil.disk_usage(self._mcap.path.parent).free / 1e6
        if free_mb < self.config.free_space_mb:
            self.fatal = f"recording ended: only {free_mb:.0f} MB are free on the disk of {self._mcap.path}"

    def close(self) -> None:
        self._ending.set()
        self._writer.join(timeout=10.0)


def main() -> None:
    sys.exit(run(Recorder))


if __name__ == "__main__":
    main()
