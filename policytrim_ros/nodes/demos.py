"""Demonstration recorder: listens to the running system and writes what succeeds as a dataset for training.

    images, joint_states, controller/setpoint, controller/consumed, controller/state, chunk, scene/state --> episodes

It only listens: no publisher but its heartbeat (which nobody requires), no service, and whoever waits for the disk is a
thread of its own. Which rows make an episode is decided in training/recording.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import sys
import threading
import time
from datetime import datetime, timezone

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Int64MultiArray, String
from trajectory_msgs.msg import JointTrajectory

from policytrim_ros.nodes.messages import (
    LATCHED,
    BadMessage,
    Consumed,
    Reader,
    chunk_from_message,
    positions_of,
    time_to_seconds,
    unserved,
)
from policytrim_ros.nodes.parameters import declare
from policytrim_ros.nodes.process import STEADY, run
from policytrim_ros.training.demos import DemonstrationWriter, encode
from policytrim_ros.training.lerobot import DatasetError
from policytrim_ros.training.recording import STATES_KEPT, RecordConfig, Recorder, Sight, episode_facts

IMAGES_WAITING = 15  # of each camera, in the middleware: half a second
NICENESS = -5
WRITE_QUEUE = 4  # attempts that may wait for the disk; more means that it does not keep up


class DemonstrationRecorder(Node):
    """See the module. Raises DatasetError when the dataset cannot be added to."""

    def __init__(self):
        super().__init__("demonstration_recorder")
        self.fatal = None
        self.config = declare(self, RecordConfig)
        self._writer = DemonstrationWriter(self.config.out, self.config.pictures)
        self._heard: set[str] = set()
        self._checkpoint, self._kept, self._lost = "", 0, 0
        self._began = time.monotonic()
        self._sight = Sight(self.config)
        self._recorder = Recorder(self.config, self._sight.look, self._finished)
        self._readers = unserved(self, "readers")
        self._cameras = {
            camera: Reader(self._readers, Image, f"{camera}/color/image_raw", IMAGES_WAITING) for camera in self.config.cameras
        }
        self._measured = Reader(self._readers, JointState, "joint_states", STATES_KEPT)
        self._setpoint = Reader(self._readers, JointState, "controller/setpoint", STATES_KEPT)
        self._status = Reader(self._readers, String, "inference/status", LATCHED)
        self._events = {
            "scene": Reader(self._readers, String, "scene/state", LATCHED),
            "controller": Reader(self._readers, String, "controller/state", LATCHED),
            "chunk": Reader(self._readers, JointTrajectory, "chunk", 100),
            "consumed": Reader(self._readers, Int64MultiArray, "controller/consumed", 200),
        }
        self._waiting = self.create_timer(0.25, self._wait, clock=STEADY)
        self.create_timer(0.05, self._advance, clock=STEADY)
        self._queue: queue.Queue = queue.Queue(WRITE_QUEUE)
        self._thread = threading.Thread(target=self._write, name="writer", daemon=True)
        self._thread.start()

    # ---- what arrives ----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        """Takes everything that has arrived since the last time, in the order in which it was sent."""
        for camera, reader in self._cameras.items():
            for message, _ in reader.take():
                self._take_image(camera, message)
        for name, reader in (("measured", self._measured), ("setpoint", self._setpoint)):
            for message, _ in reader.take():
                self._sight.state(name, time_to_seconds(message.header.stamp), positions_of(message))
        for message, _ in self._status.take():
            self._checkpoint = json.loads(message.data).get("checkpoint", "")
        events = [(sent, name, message) for name, reader in self._events.items() for message, sent in reader.take()]
        for sent, name, message in sorted(events, key=lambda event: event[0]):
            self._heard.add(name)
            self._take_event(name, message, sent)
        self._recorder.advance(time.time())

    def _take_image(self, camera: str, message: Image) -> None:
        if message.encoding != "rgb8":
            self.fatal = f"camera '{camera}' sends {message.encoding}, expected rgb8; start the project's camera node"
            return
        picture = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
        try:
            self._sight.picture(camera, time_to_seconds(message.header.stamp), picture)
        except ValueError as error:
            self.fatal = str(error)

    def _take_event(self, name: str, message, sent: float) -> None:
        if name == "consumed":
            self._recorder.on_consumed(Consumed.from_message(message), sent)
        elif name == "controller":
            self._recorder.on_controller(message.data)
        elif name == "chunk":
            try:
                self._recorder.on_chunk(chunk_from_message(message))
            except BadMessage as error:
                self.get_logger().warning(f"{error}")
        else:
            was = self._recorder.recording
            self._recorder.on_scene(json.loads(message.data), sent)
            if self._recorder.recording and not was:
                self.get_logger().info("episode begins")

    def _wait(self) -> None:
        """Until everything has been heard once: says what is missing when it takes too long."""
        unseen = self._sight.missing()
        missing = [f"{name}/color/image_raw" for name in unseen if name in self._cameras]
        missing += ["joint_states"] if "measured" in unseen else []
        topics = (("consumed", "controller/consumed"), ("scene", "scene/state"))
        missing += [topic for name, topic in topics if name not in self._heard]
        if not missing:
            self._waiting.cancel()
            self.get_logger().info(f"ready: dataset={self.config.out} episodes={len(self._writer.episodes)}")
        elif time.monotonic() - self._began > self.config.startup_s:
            topic = self.resolve_topic_name(missing[0])
            self.fatal = (
                f"nothing on topic '{topic}' for {self.config.startup_s:.0f} s: start the system with `policytrim up`, "
                "name the cameras it has, or check namespace and ROS_DOMAIN_ID"
            )

    # ---- what is written ---------------------------------------------------------------------------------------------

    def _finished(self, recording, facts: dict) -> None:
        facts = episode_facts(
            facts,
            checkpoint=self._checkpoint,
            style=self.config.style,
            source="recorder",
            when=datetime.now(timezone.utc),
            sizes=self._sight.sizes,
        )
        try:
            self._queue.put_nowait((recording, facts))
        except queue.Full:
            self.fatal = f"the disk of {self.config.out} does not keep up: {WRITE_QUEUE} episodes wait; use a faster one"

    def _write(self) -> None:
        while (item := self._queue.get()) is not None:
            recording, facts = item
            try:
                if recording is None:
                    self._writer.add_failure(facts)
                    self._lost += 1
                    self.get_logger().warning(f"episode not kept: {facts['reason']}")
                else:
                    self._writer.add(encode(recording), facts)
                    self._kept += 1
                    self.get_logger().info(
                        f"episode kept: name={facts['name']} outcome={facts['outcome']} steps={facts['steps']} kept={self._kept}"
                    )
            except DatasetError as error:
                self.fatal = str(error)
                return
            if self.config.episodes and self._kept >= self.config.episodes:
                signal.raise_signal(signal.SIGINT)  # the clean end that Ctrl-C is
                return

    def close(self) -> None:
        self._advance()
        self._recorder.close()
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            pass  # the writer has ended with an error, which is told
        self._thread.join(timeout=30.0)
        self._writer.close()
        self._readers.destroy_node()
        print(f"demonstrations: kept={self._kept} not_kept={self._lost} dataset={self.config.out}", flush=True)


def main(args=None) -> int:
    """Records until Ctrl-C, or until as many episodes as wanted were kept; returns the exit code."""
    with contextlib.suppress(PermissionError):  # after the controller, before what thinks: a late recorder misses control steps
        os.setpriority(os.PRIO_PROCESS, 0, NICENESS)
    return run(DemonstrationRecorder, args)


if __name__ == "__main__":
    sys.exit(main())
