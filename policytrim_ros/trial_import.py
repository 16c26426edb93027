"""Labelled trials become demonstrations: recordings (MCAP) in, episodes of a LeRobotDataset out.

    [(file, what its label says), ...] --> messages in the order of their sending --> training/recording.py --> dataset

The same `Recorder` decides that decides beside the running robot. The label of a trial counts more than what the scene said; without
one, the scene's outcome counts. An episode notes the digest of its recording, so that none is imported twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Callable

import cv2
import numpy as np
from sensor_msgs.msg import CompressedImage, JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.files import sha256_of
from policytrim_ros.nodes.messages import Consumed, chunk_from_message, positions_of, time_to_seconds
from policytrim_ros.nodes.recording import IMAGES, Recording, RecordingError
from policytrim_ros.training.demos import DemonstrationWriter, encode
from policytrim_ros.training.lerobot import DatasetError
from policytrim_ros.training.recording import RecordConfig, Recorder, Sight, episode_facts

LABELS = ("success", "failure")
KINDS = {
    "joint_states": JointState,
    "controller/setpoint": JointState,
    "controller/consumed": Int64MultiArray,
    "controller/state": String,
    "chunk": JointTrajectory,
    "inference/status": String,
    "scene/state": String,
    "trial/state": String,
}
STATES = {"joint_states": "measured", "controller/setpoint": "setpoint"}


@dataclass
class Imported:
    """How an import went: episodes that are new, recordings that were imported before; which trials are no demonstrations, and which
    recordings cannot be used, a sentence each."""

    new: int = 0
    known: int = 0
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def imported(
    recordings: Sequence[tuple[object, Mapping]],
    out,
    keep_failures: bool = False,
    config: RecordConfig | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Imported:
    """Adds the trials in ``recordings`` to the dataset ``out``; those that are there already stay as they are.

    Each is (path, facts): facts of the trial store, of which ``outcome`` (success, failure; anything else is left out; missing: what
    the scene said), ``task`` and ``setting`` are compared with the recording and all are noted with the episode. ``config``: cameras
    and size of the pictures. DatasetError when the dataset cannot be written; a recording that cannot be read is a problem, not an end.
    """
    values = {name: getattr(config or RecordConfig(), name) for name in ("cameras", "width", "height", "every", "stale_after_s")}
    config = RecordConfig(out=str(out), keep_failures=keep_failures, **values)
    found = Imported()
    with DemonstrationWriter(out, config.pictures) as writer:
        for path, facts in recordings:
            try:
                _import(str(path), facts, config, writer, found, say)
            except DatasetError:
                raise
            except ValueError as error:  # of a recording, a message, a picture
                found.problems.append(f"{path}: {str(error).removeprefix(f'{path}: ')}")
    return found


def _import(path: str, given: Mapping, config: RecordConfig, writer: DemonstrationWriter, found: Imported, say) -> None:
    label = given.get("outcome", "")
    if label and (label not in LABELS or label == "failure" and not config.keep_failures):
        found.left_out.append(f"{path}: outcome: {label}")
        return
    recording = Recording(path)
    digest = sha256_of(path)
    before = [entry for entry in writer.episodes if entry.get("recording_sha256") == digest]
    if before:
        found.known += 1
        if label and any(entry["outcome"] != label for entry in before):
            raise RecordingError(f"was imported as {before[0]['outcome']}, its label is now {label}; import into a new directory")
        return
    made = attempts(recording, config, given)
    for number, (attempt, facts) in enumerate(made, 1):
        facts = {**given, **{name: value for name, value in facts.items() if value or name not in given}}
        facts = {**facts, "recording_sha256": digest, "attempt": number}
        if attempt is None:
            found.left_out.append(f"{path}: {facts['reason']}")
            if not any(entry.get("recording_sha256") == digest and entry.get("attempt") == number for entry in writer.failures):
                writer.add_failure(facts)
        else:
            writer.add(encode(attempt), facts)
            found.new += 1
            say(f"{path}: name={facts['name']} outcome={facts['outcome']} steps={facts['steps']}")
    if not made:
        raise RecordingError("shows no attempt from its beginning; was it recorded with split:=trial?")


def attempts(recording: Recording, config: RecordConfig, given: Mapping = {}) -> list[tuple]:
    """(training recording or None, facts) of every attempt in ``recording``; a label in ``given`` overrules the scene.

    RecordingError when a camera is missing, a picture is damaged, or the recording shows another task than ``given``.
    """
    missing = [camera for camera in config.cameras if camera not in recording.cameras]
    if missing:
        raise RecordingError(f"holds no pictures of camera {missing[0]}, only of {', '.join(recording.cameras) or 'none'}")
    sight, found = Sight(config), []
    follower = _Follower(recording, config, sight, given, found)
    kinds = {**KINDS, **{camera + IMAGES: CompressedImage for camera in config.cameras}}
    for heard in recording.messages(kinds):
        follower.hear(heard)
    follower.recorder.close()
    return found


class _Follower:
    """Feeds one recording to a `Recorder` and adds to each attempt where it comes from."""

    def __init__(self, recording: Recording, config: RecordConfig, sight: Sight, given: Mapping, found: list):
        self.recorder = Recorder(config, sight.look, self._finished)
        self._recording, self._sight, self._given, self._found = recording, sight, given, found
        self._scene, self._began, self._checkpoint = {}, 0.0, ""
        self._moved = self._labelled = False  # since the attempt began

    def hear(self, heard) -> None:
        message, sent = heard.message, heard.sent
        if heard.topic in STATES:
            self._sight.state(STATES[heard.topic], time_to_seconds(message.header.stamp), positions_of(message))
        elif heard.topic.endswith(IMAGES):
            self._sight.picture(heard.topic.removesuffix(IMAGES), time_to_seconds(message.header.stamp), decoded(message))
        elif heard.topic == "chunk":
            self.recorder.on_chunk(chunk_from_message(message))
        elif heard.topic == "controller/consumed":
            consumed = Consumed.from_message(message)
            self._moved = self._moved or consumed.playing
            self.recorder.on_consumed(consumed, sent)
        elif heard.topic == "controller/state":
            if self._moved and not message.data.startswith("moving"):
                self._label(sent)
            self.recorder.on_controller(message.data)
        elif heard.topic == "inference/status":
            self._checkpoint = json.loads(message.data).get("checkpoint", "")
        elif heard.topic == "trial/state":
            if json.loads(message.data).get("phase") not in ("ready", "running"):
                self._label(sent)
        else:
            self._on_scene(json.loads(message.data), sent)
        self.recorder.advance(sent)

    def _on_scene(self, scene: dict, sent: float) -> None:
        for name in ("task", "setting", "seed"):
            if name in self._given and scene.get("phase") == "running" and scene.get(name) != self._given[name]:
                raise RecordingError(f"shows {name} {scene.get(name)}, its label says {self._given[name]}")
        if scene.get("phase") == "done":
            self._scene = scene
            return self._label(sent) if self._given.get("outcome") else self.recorder.on_scene(scene, sent)
        was = self.recorder.recording
        self.recorder.on_scene(scene, sent)
        self._scene = scene
        if self.recorder.recording and not was:
            self._began, self._moved, self._labelled = sent, False, False

    def _label(self, sent: float) -> None:
        """The attempt is over: its label is its outcome."""
        outcome = self._given.get("outcome")
        if outcome and self.recorder.recording and not self._labelled:
            self._labelled = True
            reason = self._given.get("reason") or self._scene.get("reason", "")
            self.recorder.on_scene({**self._scene, "phase": "done", "outcome": outcome, "reason": reason}, sent)

    def _finished(self, attempt, facts: dict) -> None:
        when = datetime.fromtimestamp(self._began, timezone.utc)
        checkpoint = self._given.get("checkpoint") or self._checkpoint
        facts = episode_facts(facts, checkpoint=checkpoint, style="", source="trial", when=when, sizes=self._sight.sizes)
        trial = self._recording.trial
        number = trial.get("trial") or (trial.get("card") or {}).get("number")
        whence = {"session": trial.get("session", ""), "trial": number, "recording": trial.get("recording", "")}
        self._found.append((attempt, {**whence, **facts}))


def decoded(message: CompressedImage) -> np.ndarray:
    """(h, w, 3) uint8 RGB; RecordingError when it is no picture."""
    data = np.frombuffer(message.data, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        raise RecordingError("a picture in it cannot be decoded")
    return np.ascontiguousarray(picture[..., ::-1])
