"""What a recording says of the robot, as numbers: control steps, chunks, states, pictures, and what the policy saw at a moment."""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass, fields

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.core.supervisor import SupervisorConfig
from policytrim_ros.core.types import Chunk
from policytrim_ros.nodes.messages import Consumed, chunk_from_message, positions_of, time_to_seconds
from policytrim_ros.nodes.recording import IMAGES, Recording, RecordingError
from policytrim_ros.training.recording import LATE_STEPS

KINDS = {
    "joint_states": JointState,
    "controller/setpoint": JointState,
    "controller/consumed": Int64MultiArray,
    "controller/state": String,
    "chunk": JointTrajectory,
    "inference/status": String,
    "scene/state": String,
}
NEAR_S = 0.5


@dataclass(frozen=True)
class Step:
    """A control step as it was played: its number, whose action it was, when it began (s), in which run from go to hold, and how
    long the arm had rested before it because there was no action (s)."""

    number: int
    generation: int
    chunk_id: int
    at: float
    run: int
    rested_s: float = 0.0


@dataclass(frozen=True)
class Said:
    """A chunk as it was sent: when (s), and the stamp of the newest picture that the policy saw."""

    chunk: Chunk
    sent: float
    stamp: float


class Track:
    """The recording in ``path``. RecordingError when it cannot be read or shows no control step.

    steps, chunks: in the order of time; setpoint, measured: (stamps (N,), positions (N, 7)); stalls, stall_s: what the controller
    counted meanwhile; status: the last report of inference; pictures: camera -> (stamp, JPEG) of each; calls: inference calls meanwhile, None when it did not say.
    """

    def __init__(self, path):
        self.recording = Recording(path)
        pictures = {camera + IMAGES: CompressedImage for camera in self.recording.cameras}
        heard = {topic: [] for topic in (*KINDS, *pictures)}
        for item in self.recording.messages({**KINDS, **pictures}):
            heard[item.topic].append(item)
        moving = [(item.sent, item.message.data.startswith("moving")) for item in heard["controller/state"]]
        self._stops = [sent for (_, before), (sent, after) in zip(moving, moving[1:]) if before and not after]
        self.steps, self.stalls, self.stall_s = self._played(heard["controller/consumed"])
        if not self.steps:
            raise RecordingError(f"{path}: shows no control step; was the arm moved by a policy while it was recorded?")
        self.chunks = [
            Said(chunk_from_message(item.message), item.sent, time_to_seconds(item.message.header.stamp))
            for item in heard["chunk"]
        ]
        self.measured, self.setpoint = (_positions(heard[name]) for name in ("joint_states", "controller/setpoint"))
        statuses = [json.loads(item.message.data) for item in heard["inference/status"]]
        self.status = statuses[-1] if statuses else {}
        counts = [status["calls"] for status in statuses if "calls" in status]
        self.calls = counts[-1] - counts[0] if counts else None
        self._scenes = [(item.sent, json.loads(item.message.data)) for item in heard["scene/state"]]
        self.pictures = {
            topic.removesuffix(IMAGES): [(time_to_seconds(item.message.header.stamp), item.message.data) for item in heard[topic]]
            for topic in pictures
        }

    @property
    def horizon(self) -> int:
        """h: actions of a chunk that were to be executed; what inference said, or the longest chunk."""
        return self.status.get("horizon") or max((len(said.chunk.positions) for said in self.chunks), default=0)

    @property
    def runs(self) -> list[list[Step]]:
        """The steps of each run from go to hold."""
        return [[step for step in self.steps if step.run == run] for run in sorted({step.run for step in self.steps})]

    def parameters(self, node: str, config):
        """``config`` (a Config class) as far as the parameters of ``node`` were recorded, else its defaults."""
        found = self.recording.parameters(node)
        return config.from_mapping({spec.name: found[spec.name] for spec in fields(config) if spec.name in found})

    def setpoint_at(self, at: float) -> np.ndarray:
        """(7,) between the two recorded setpoints around ``at``."""
        stamps, positions = self.setpoint
        return np.array([np.interp(at, stamps, column) for column in positions.T])

    def seen_at(self, said: Said) -> float:
        """When the policy looked: as long before it spoke as it usually thinks, and not before its picture was taken."""
        return max(said.stamp, said.sent - self.status.get("latency_ms_p50", 0.0) / 1000.0)

    def picture_age_s(self) -> float:
        """How old the newest picture usually was when the policy looked (s)."""
        return float(np.median([self.seen_at(said) - said.stamp for said in self.chunks])) if self.chunks else 0.0

    def instruction_at(self, at: float) -> str:
        """What the scene asked for, or a parameter of inference said; '' when nobody did."""
        told = self.recording.parameters("inference").get("instruction") or ""
        return told or next((scene["instruction"] for sent, scene in reversed(self._scenes) if sent <= at), "")

    def state_at(self, at: float) -> np.ndarray:
        """(14,) measured | setpoint, the newest at ``at``."""
        found = []
        for stamps, positions in (self.measured, self.setpoint):
            found.append(positions[max(0, bisect_right(stamps, at) - 1)])
        return np.concatenate(found).astype(np.float32)

    def pictures_at(self, stamp: float, cameras) -> dict[str, np.ndarray]:
        """camera -> (h, w, 3) uint8 RGB, the one taken nearest to ``stamp``: not every picture that a policy saw is recorded.

        RecordingError when there is none within NEAR_S.
        """
        found = {}
        for camera in cameras:
            kept = self.pictures.get(camera, [])
            taken, data = min(kept, key=lambda picture: abs(picture[0] - stamp), default=(-math.inf, b""))
            if abs(taken - stamp) > NEAR_S:
                raise RecordingError(f"{self.recording.path}: holds no picture of camera '{camera}' near {stamp:.3f} s")
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            if picture is None:
                raise RecordingError(f"{self.recording.path}: a picture of camera '{camera}' cannot be decoded")
            found[camera] = np.ascontiguousarray(picture[..., ::-1])
        return found

    def _played(self, heard) -> tuple[list[Step], int, float]:
        """Steps from the controller's count of them; one that was not heard is put between its neighbours."""
        steps: list[Step] = []
        rate_hz = self.parameters("controller", SupervisorConfig).control_rate_hz
        before = first = last = None
        for item in heard:
            last = consumed = Consumed.from_message(item.message)
            first, before = first or consumed, before or consumed
            news = consumed.next_step - before.next_step
            if -LATE_STEPS <= news < 0:
                continue
            if news > 0 and consumed.playing:
                run, chunk = bisect_right(self._stops, item.sent), (consumed.generation, consumed.chunk_id)
                rested_s = consumed.stall_s - before.stall_s
                for back in range(news - 1, -1, -1):
                    number, at = consumed.next_step - 1 - back, item.sent - back / rate_hz
                    steps.append(Step(number, *chunk, at, run, rested_s if back == news - 1 else 0.0))
            before = consumed
        return steps, *((last.stalls - first.stalls, last.stall_s - first.stall_s) if first else (0, 0.0))


def _positions(heard) -> tuple[np.ndarray, np.ndarray]:
    stamps = np.array([time_to_seconds(item.message.header.stamp) for item in heard])
    positions = np.array([positions_of(item.message) for item in heard]).reshape(-1, 7)
    order = np.argsort(stamps, kind="stable")
    return stamps[order], positions[order]
