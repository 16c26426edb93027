"""Recorder node: MCAP files that Foxglove and `ros2 bag` read, one for a run or one for every trial.

    topics --raw bytes, 20 times a second--> bounded queue --> one thread --> <out>/<name>.mcap.partial --> <out>/<name>.mcap
    trial/state --> when a file begins and ends                                       recorder/status <-- how it goes

The recorder is never in the way of control: a full queue drops messages and counts them, a failed write (full disk) fails the
recording, not the run. A file carries its name when it is complete; every file of a trial holds the latched states and the
parameters of controller, inference and camera from its beginning.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log, ParameterEvent
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.config import Config, setting
from policytrim_ros.nodes.messages import LATCHED, unserved
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import STEADY, run
from policytrim_ros.nodes.recording import ENDING, IMAGES, McapFile, free_path

RUN, TRIAL = "run", "trial"
BEGINS, DURING = ("ready", "running"), ("ready", "running", "ending", "labelling")
"""Phases of trial/state in which a recording begins, and in which it goes on."""

MARGIN_S = 0.5
"""A file stays open so long after its trial: what was sent before the end has arrived by then."""

TAKE_S = 0.05
DESCRIBED = ("controller", "inference", "camera")
"""Nodes whose parameters are written down."""

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)*"

LATCHED_ALL = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
"""Of a latched topic every state, also those that last shorter than the time between two looks."""

STREAMS = (  # topic, kind, how much the middleware keeps until it is taken
    ("joint_states", JointState, 1000),
    ("controller/setpoint", JointState, 1000),
    ("controller/consumed", Int64MultiArray, 1000),
    ("controller/state", String, LATCHED_ALL),
    ("chunk", JointTrajectory, 200),
    ("inference/status", String, LATCHED_ALL),
    ("scene/state", String, LATCHED_ALL),
    ("trial/state", String, LATCHED_ALL),
    ("trial/event", String, 200),
    ("diagnostics", DiagnosticArray, 200),
    ("/parameter_events", ParameterEvent, 200),
    ("/rosout", Log, 200),
)
PICTURES_KEPT = 60


@dataclass(frozen=True)
class RecorderConfig(Config):
    """Parameters of the recorder node."""

    out: str = setting("runs", "directory of the recordings")
    split: str = setting(RUN, "one file for the run, or one for every trial that trial/state names", choices=(RUN, TRIAL))
    cameras: list = setting(["front", "wrist"], "cameras whose compressed images are recorded")
    queue_size: int = setting(2000, "messages that may wait for the disk before some are dropped", low=10, high=100000)
    free_space_mb: int = setting(200, "recording ends before less than this is free on the disk", low=0, high=1000000, unit="MB")


class Recorder(Node):
    """See the module."""

    def __init__(self):
        super().__init__("recorder")
        self.fatal = None
        self.config = declare(self, RecorderConfig)
        self._out = Path(self.config.out)
        self._name, self._open, self._ends_at, self._free_mb = "", False, None, None
        self._told = None
        self._scribe = Scribe(self.config.queue_size)
        self._scribe.start()
        self._readers = unserved(self, "readers", enable_rosout=False)
        pictures = [(camera + IMAGES, CompressedImage, PICTURES_KEPT) for camera in self.config.cameras]
        self._streams = [Stream(self._readers, *stream) for stream in (*STREAMS, *pictures)]
        self._latest: dict[str, tuple] = {}  # of latched topics and pictures: stream, data, sent_ns, number
        self._described_by = {
            name: (
                self.create_client(ListParameters, f"{name}/list_parameters"),
                self.create_client(GetParameters, f"{name}/get_parameters"),
            )
            for name in DESCRIBED
        }
        self._undescribed: set[str] = set()
        self._status = self.create_publisher(String, "recorder/status", LATCHED)
        if self.config.split == RUN:
            self._begin(time.strftime("%Y%m%d-%H%M%S"), None)
        else:
            self.get_logger().info(f"recording trials into {self._out}")
        self.create_timer(TAKE_S, self._take, clock=STEADY)
        self.create_timer(1.0, self._watch, clock=STEADY)
        self._watch()

    # ---- what arrives ------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Hands everything that has arrived to the thread that writes, in the order in which it was sent."""
        arrived = [(stream, *item) for stream in self._streams for item in stream.take()]
        for stream, data, heard_ns, sent_ns, number in sorted(arrived, key=lambda item: item[3]):
            if self._open:
                self._scribe.dropped += stream.lost_before(number)
            stream.number = number
            if stream.lasts:
                self._latest[stream.topic] = (stream, data, sent_ns, number)
            began = stream.name == "trial/state" and self.config.split == TRIAL and self._follow(data)
            if self._open and not began:
                self._scribe.offer(stream.topic, stream.kind, data, heard_ns, sent_ns, number)
        if self._ends_at is not None and time.monotonic() > self._ends_at:
            self._end()
        if self._open and self._scribe.state == FAILED and self._scribe.recording == self._name:
            self._open = False
            self._alarm(self._scribe.reason)
        self._tell()

    def _follow(self, data: bytes) -> bool:
        """Begins and ends files as trial/state says; True when one has begun, with this message in it."""
        text = rclpy.serialization.deserialize_message(data, String).data
        try:
            trial = json.loads(text)
            name, phase = str(trial["recording"]), trial["phase"]
        except (ValueError, TypeError, KeyError) as error:
            self._refuse("", f"trial/state is not understood ({type(error).__name__}: {error})")
            return False
        if name and name != self._name and phase in BEGINS:
            self._end()
            return self._begin(name, text)
        if self._open:
            goes_on = name == self._name and phase in DURING
            self._ends_at = None if goes_on else self._ends_at or time.monotonic() + MARGIN_S
        return False

    # ---- files ---------------------------------------------------------------------------------------------------------

    def _begin(self, name: str, trial: str | None) -> bool:
        self._name, path = name, self._out / f"{name}{ENDING}"
        if not re.fullmatch(NAME, name) or self._out.resolve() not in path.resolve().parents:
            return self._refuse(name, f"{name!r} names no file in {self._out}: use letters, digits, '-', '_', '.' and '/'")
        self._measure()
        if self._lacks_space():
            return self._refuse(name, self._lacks_space())
        self._open, self._ends_at = True, None
        self._scribe.begin(path, name)
        if trial is not None:
            self._scribe.note("trial", {"json": trial})
        now = time.time_ns()
        for stream, data, sent_ns, number in self._latest.values():
            self._scribe.offer(stream.topic, stream.kind, data, now, sent_ns, number)
        self._undescribed = set(DESCRIBED)
        self._describe()
        self.get_logger().info(f"recording file={path}")
        return True

    def _refuse(self, name: str, why: str) -> bool:
        self._open = False
        self._scribe.refuse(name, why)
        self._alarm(why)
        return False

    def _alarm(self, why: str) -> None:
        self.get_logger().error(f"not recorded: {why}")
        if self.config.split == RUN:
            self.fatal = why

    def _end(self) -> None:
        self._ends_at = None
        if self._open:
            self._open = False
            self._scribe.end()

    def _describe(self) -> None:
        """Asks the nodes that can be reached for their parameters, which are written when they come."""
        for node in list(self._undescribed):
            names, values = self._described_by[node]
            if names.service_is_ready() and values.service_is_ready():
                self._undescribed.discard(node)
                names.call_async(ListParameters.Request()).add_done_callback(partial(self._on_names, node, self._name))

    def _on_names(self, node: str, recording: str, future) -> None:
        if future.exception() is not None:
            return  # the node has gone
        names = list(future.result().result.names)
        asked = self._described_by[node][1].call_async(GetParameters.Request(names=names))
        asked.add_done_callback(partial(self._on_values, node, recording, names))

    def _on_values(self, node: str, recording: str, names: list, future) -> None:
        if self._open and recording == self._name and future.exception() is None:
            values = map(parameter_value_to_python, future.result().values)
            found = {name: json.dumps(value, default=list) for name, value in zip(names, values)}
            self._scribe.note(f"parameters/{node}", found)

    # ---- reports -------------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        self._measure()
        if self._open:
            self._describe()
            if self._lacks_space():
                self._scribe.fail(self._lacks_space())
        self._tell(again=True)

    def _measure(self) -> None:
        there = next(folder for folder in (self._out.absolute(), *self._out.absolute().parents) if folder.exists())
        self._free_mb = shutil.disk_usage(there).free / 1e6

    def _lacks_space(self) -> str:
        if self._free_mb >= self.config.free_space_mb:
            return ""
        return f"only {self._free_mb:.0f} MB are free on the disk of {self._out}, {self.config.free_space_mb} MB must stay free"

    def _tell(self, again: bool = False) -> None:
        status = self._scribe.status()
        told = status["state"], status["recording"], status["reason"]
        if again or told != self._told:
            self._told = told
            self._status.publish(String(data=json.dumps({**status, "free_mb": round(self._free_mb or 0.0)})))

    def close(self) -> None:
        """Completes the file."""
        self._take()
        self._end()
        self._scribe.close()
        self._tell(again=True)
        self._readers.destroy_node()
        if self._scribe.reason:
            print(f"recorder: {self._scribe.reason}", file=sys.stderr, flush=True)


class Stream:
    """A topic whose messages, as bytes, are taken off the middleware when asked for.

    No executor serves it: a callback for each of 500 messages a second would cost more than everything else here.
    """

    def __init__(self, node: Node, name: str, kind: type, qos):
        self.name, self.topic, self.kind = name, node.resolve_topic_name(name), kind
        self.lasts = qos is LATCHED_ALL or kind is CompressedImage  # what was said before a file begins still holds in it
        self.number, self._node = None, node
        self._subscription = node.create_subscription(kind, name, lambda message: None, qos, raw=True)

    def take(self):
        """Yields (CDR bytes, received, sent (ns since the epoch), number of the message among its publisher's)."""
        with self._subscription.handle:
            while (taken := self._subscription.handle.take_message(self.kind, True)) is not None:
                data, about = taken
                number = about["publication_sequence_number"] or 0
                yield data, about["received_timestamp"], about["source_timestamp"], number

    def lost_before(self, number: int) -> int:
        """Messages that were sent between the last one and ``number`` and have not arrived; 0 where several publish, whose
        numbers tell nothing."""
        gap = number - self.number - 1 if self.number else 0
        return gap if gap > 0 and self._node.count_publishers(self.topic) == 1 else 0


IDLE, RECORDING, FAILED = "idle", "recording", "failed"


class Scribe:
    """One thread that writes one file after the other. What is offered while ``queue_size`` messages wait is dropped and counted.

    A write that fails abandons the file, which keeps its name for partial files; the next `begin` tries again. ``reason``, the
    last failure, stays until a file has been completed.
    """

    def __init__(self, queue_size: int):
        self.state, self.reason, self.recording, self.path = IDLE, "", "", None
        self.messages = self.dropped = self.bytes = 0
        self._size, self._file = queue_size, None
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self, path: Path, recording: str) -> None:
        """A new file, after the one before was ended."""
        self.dropped = 0
        self._queue.put((self._begin, path, recording))

    def offer(self, topic: str, kind: type, data: bytes, heard_ns: int, sent_ns: int, number: int) -> None:
        """A message for the file that was begun last."""
        if self._queue.qsize() >= self._size:
            self.dropped += 1
        else:
            self._queue.put((self._write, topic, kind, data, heard_ns, sent_ns, number))

    def note(self, name: str, values: dict) -> None:
        """A metadata record."""
        self._queue.put((self._note, name, values))

    def end(self) -> None:
        """The file is complete."""
        self._queue.put((self._end,))

    def fail(self, reason: str) -> None:
        """The file cannot be completed."""
        self._queue.put((self._fail, reason))

    def refuse(self, recording: str, reason: str) -> None:
        """There will be no file for ``recording``."""
        self.dropped = 0
        self._queue.put((self._refuse, recording, reason))

    def close(self, timeout_s: float = 10.0) -> None:
        """Waits until everything is written, and ends the thread."""
        self._queue.put(None)
        self._thread.join(timeout_s)

    def status(self) -> dict:
        return {
            "state": self.state,
            "file": str(self.path or ""),
            "recording": self.recording,
            "messages": self.messages,
            "dropped": self.dropped,
            "bytes": self.bytes,
            "reason": self.reason,
        }

    # ---- the thread ------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (task := self._queue.get()) is not None:
            do, *arguments = task
            try:
                do(*arguments)
            except Exception as error:  # a full disk most of all; whatever it is, the recording is not whole
                why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
                self._fail(f"recording to {self.path} failed: {why}; is the disk full or read-only? The arm is not affected")
        if self._file is not None:
            self._fail("the recorder ended")

    def _begin(self, path: Path, recording: str) -> None:
        self.path, self.messages, self.bytes = free_path(path), 0, 0
        self.state = RECORDING  # before the name: who waits for a name must not find the state of the recording before
        self.recording = recording
        self._file = McapFile(self.path)

    def _write(self, topic, kind, data, heard_ns, sent_ns, number) -> None:
        if self._file is not None:
            self._file.write(topic, kind, data, heard_ns, sent_ns, number)
            self.messages, self.bytes = self.messages + 1, self._file.size

    def _note(self, name: str, values: dict) -> None:
        if self._file is not None:
            self._file.note(name, values)

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
            self.bytes = self.path.stat().st_size
            self._file, self.reason = None, ""
            self.state = IDLE

    def _refuse(self, recording: str, reason: str) -> None:
        self.path, self.messages, self.bytes = None, 0, 0
        self.recording = recording
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        if self._file is not None:
            self._file.abandon()
        self._file, self.reason = None, reason
        self.state = FAILED


def main() -> None:
    sys.exit(run(Recorder))


if __name__ == "__main__":
    main()
