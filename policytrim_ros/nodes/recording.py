"""A recording: one MCAP file of ROS 2 messages, written as it grows and read back. Foxglove and `ros2 bag` read it, too.

Of every message ``log_time`` is when the recorder received it and ``publish_time`` when it was sent. Metadata records: ``trial``
(the JSON of trial/state) and ``parameters/<node>`` (name -> value as JSON).
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Iterator, Mapping

from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from rclpy.serialization import deserialize_message

ENDING, PARTIAL = ".mcap", ".partial"
IMAGES = "/color/image_raw/compressed"


class RecordingError(ValueError):
    """A recording cannot be used; one sentence: which, what is wrong, what to do."""


# -- writing --------------------------------------------------------------------------------------------------------


class McapFile:
    """A growing MCAP file of ROS 2 messages. OSError when the disk is full; ``close`` makes the name final."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._partial = path, path.with_name(path.name + PARTIAL)
        self._file = open(self._partial, "wb")
        self._writer = Writer(self._file, compression=CompressionType.LZ4)
        self._writer.start(profile="ros2", library="policytrim_ros")
        self._channels: dict[str, int] = {}
        self._schemas: dict[str, int] = {}

    def write(self, topic: str, kind: type, data: bytes, heard_ns: int, sent_ns: int | None = None, sequence: int = 0) -> None:
        """Adds the CDR bytes of a message, received at ``heard_ns`` and sent at ``sent_ns`` (ns since the epoch)."""
        if topic not in self._channels:
            name = message_name(kind)
            if name not in self._schemas:
                self._schemas[name] = self._writer.register_schema(name, "ros2msg", definition(name).encode())
            self._channels[topic] = self._writer.register_channel(topic, "cdr", self._schemas[name])
        sent_ns = heard_ns if sent_ns is None else sent_ns
        self._writer.add_message(self._channels[topic], heard_ns, data, sent_ns, sequence & 0xFFFFFFFF)

    def note(self, name: str, values: Mapping[str, str]) -> None:
        """Adds a metadata record."""
        self._writer.add_metadata(name, dict(values))

    @property
    def size(self) -> int:
        """Bytes in the file; what is not compressed yet does not count."""
        return self._file.tell()

    def close(self) -> None:
        """Completes the file, down to the disk, and gives it its name."""
        self._writer.finish()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._partial.rename(self.path)

    def abandon(self) -> None:
        """Leaves what was written as a partial file, readable where the disk still allows that."""
        with contextlib.suppress(OSError, ValueError):
            self._writer.finish()
        with contextlib.suppress(OSError):
            self._file.close()


def free_path(path: Path) -> Path:
    """``path``, or beside it the first of path-2, path-3, ... that no recording, complete or not, has."""
    number, free = 1, path
    while free.exists() or free.with_name(free.name + PARTIAL).exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


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


# -- reading --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Heard:
    """A message of a recording: its topic without namespace, when it was sent (s since the epoch), and what it says."""

    topic: str
    sent: float
    message: Any


class Recording:
    """A complete recording in ``path``. RecordingError when it is missing, unfinished or damaged."""

    def __init__(self, path):
        self.path = Path(path)
        if self.path.name.endswith(PARTIAL):
            raise RecordingError(f"{path}: was not finished; `mcap recover` saves what is in it")
        with self._opened() as reader:
            summary = reader.get_summary()
            if summary is None:
                raise RecordingError(f"{path}: has no summary, so it is not whole; `mcap recover` saves what is in it")
            self._topics = sorted(channel.topic for channel in summary.channels.values())
            self.metadata = {record.name: dict(record.metadata) for record in reader.iter_metadata()}

    @property
    def cameras(self) -> list[str]:
        """Names of the cameras whose pictures it holds."""
        return [topic.removesuffix(IMAGES).rpartition("/")[2] for topic in self._topics if topic.endswith(IMAGES)]

    @property
    def trial(self) -> dict:
        """What trial/state said when it began; {} when it belongs to no trial."""
        return json.loads(self.metadata.get("trial", {}).get("json", "{}"))

    def parameters(self, node: str) -> dict:
        """The parameters of ``node`` as they were found when the recording began; {} when it did not answer."""
        return {name: json.loads(text) for name, text in self.metadata.get(f"parameters/{node}", {}).items()}

    def messages(self, kinds: Mapping[str, type]) -> list[Heard]:
        """All messages of the topics in ``kinds`` (relative name -> message class), in the order in which they were sent."""
        names = {topic: name for topic in self._topics for name in kinds if topic == name or topic.endswith(f"/{name}")}
        found = []
        with self._opened() as reader:
            for _, channel, message in reader.iter_messages(topics=list(names)) if names else ():
                name = names[channel.topic]
                found.append(Heard(name, message.publish_time * 1e-9, deserialize_message(message.data, kinds[name])))
        return sorted(found, key=lambda heard: heard.sent)

    @contextlib.contextmanager
    def _opened(self) -> Iterator:
        try:
            with open(self.path, "rb") as stream:
                yield make_reader(stream, validate_crcs=True)
        except RecordingError:
            raise
        except OSError as error:
            raise RecordingError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        except Exception as error:  # mcap, lz4 and the deserialiser each raise their own
            raise RecordingError(
                f"{self.path}: is damaged or no recording ({type(error).__name__}: {error}); `mcap recover` saves what can be read"
            ) from error
