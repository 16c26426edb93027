"""A recording for tests: the real executor, replanner and safety filter play a made-up policy in virtual time, and everything that the
nodes would have said is written as the recorder writes it."""

from __future__ import annotations

import json
import math

import cv2
import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.replanning import ASYNC, Replanner
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.nodes.messages import Consumed, chunk_to_message, joint_state, seconds_to_time
from policytrim_ros.nodes.recording import McapFile

STEP_RAD = 1e-4
BEGAN = 1_700_000_000.0
SCENE = dict(
    task="tape_box", setting="standard", seed=7, instruction="put the tape into the box", scene_id=3, outcome=None, reason=""
)


def swing(number, images, state):
    """(15, 7) actions from control step ``number`` on: joint1 on a slow sine, joint2 tells the step."""
    steps = number + np.arange(15)
    actions = np.repeat(np.array(READY)[None], 15, axis=0)
    actions[:, 0] = 0.2 * np.sin((steps + 1) * 0.08)
    actions[:, 1] += STEP_RAD * steps
    return actions


class Rig:
    """The nodes of one trial, 100 ticks a second; ``now`` is in s since the epoch."""

    def __init__(self, path, mode, horizon, latency_s, policy, parameters, first_step=0, cameras=("front",), namespace=""):
        self.file, self.now, self.namespace = McapFile(path), BEGAN, namespace
        self.executor, self.filter = ChunkExecutor(), SafetyFilter(SafetyLimits())
        self.executor.next_step = first_step
        self.replanner, self.latency_s, self.policy = Replanner(mode, horizon, 20.0), latency_s, policy
        self.filter.reset(READY)
        self.cameras, self.images, self.tick_count = cameras, {}, 0
        self.moving, self.coming, self.chunk_id, self.reported, self.stepped_at = False, None, 0, None, 0.0
        self.lost = ()
        self.file.note("trial", {"json": json.dumps({"session": "s1", "trial": 4, "recording": "s1/trial-0004"})})
        if parameters is not None:
            self.file.note("parameters/inference", {name: json.dumps(value) for name, value in parameters.items()})
        self.status = dict(generation=1, checkpoint="models/x", horizon=horizon, mode=mode, latency_ms_p99=1000 * latency_s)

    def say(self, topic, message, delay_s=0.002):
        sent = round(self.now * 1e9)
        topic = f"{self.namespace}/{topic}"
        self.file.write(topic, type(message), bytes(serialize_message(message)), sent + round(delay_s * 1e9), sent)

    def scene(self, phase, **changes):
        self.say("scene/state", String(data=json.dumps({**SCENE, "phase": phase, **changes})))

    def trial(self, phase):
        self.say("trial/state", String(data=json.dumps({"recording": "s1/trial-0004", "phase": phase})))

    def controller(self, state):
        if state.startswith("moving") and not self.moving:
            self.executor.start(self.filter.setpoint, self.now)
            self.replanner.reset()
        elif not state.startswith("moving"):
            self.executor.stop()
            self.coming = None
        self.moving = state.startswith("moving")
        self.say("controller/state", String(data=state))

    def play(self, seconds):
        for _ in range(round(seconds * 100)):
            self.tick()

    def tick(self):
        self.now = round(self.now + 0.01, 6)
        self.tick_count += 1
        if self.moving:
            path = self.executor.tick(self.now)
            self.filter.step(path.position, path.velocity, 0.01)
        played = self.executor.next_step, self.executor.playing
        if played != self.reported or self.tick_count % 5 == 0:
            if self.reported is None or played[0] != self.reported[0]:
                self.stepped_at = self.now
            self.reported = played
            playing, queued = self.executor.playing, self.executor.queued
            consumed = Consumed(
                1, self.executor.chunk_id, played[0], queued, playing, self.executor.stalls, self.executor.stall_s
            )
            self.say("controller/consumed", consumed.to_message())
        setpoint, velocity = self.filter.setpoint, self.filter.velocity
        self.say("joint_states", joint_state(seconds_to_time(self.now), setpoint, velocity))
        self.say("controller/setpoint", joint_state(seconds_to_time(self.now), setpoint, velocity))
        if self.tick_count % 10 == 1:
            for camera in self.cameras:
                self.picture(camera)
        if self.moving:
            self.infer()

    def picture(self, camera):
        brightness = 100 + 100 * math.sin(self.now)
        picture = np.full((36, 64, 3), (brightness, 50, 200), np.uint8)
        message = CompressedImage(format="jpeg", data=cv2.imencode(".jpg", picture)[1].tobytes())
        message.header.stamp = seconds_to_time(self.now)
        self.images[camera] = (self.now, message)
        self.say(f"{camera}/color/image_raw/compressed", message)

    def infer(self):
        executor, replanner = self.executor, self.replanner
        if self.coming is not None and self.now >= self.coming[0]:
            (_, stamp, chunk), self.coming = self.coming, None
            if chunk.chunk_id not in self.lost:
                self.say("chunk", chunk_to_message(chunk, seconds_to_time(stamp)), 0.0)
            executor.accept(self.filter.cut(chunk, executor.next_step)[0])
            return
        if self.coming is not None:
            return
        replanner.plays((executor.generation, executor.chunk_id), executor.next_step, executor.queued)
        if replanner.turn(executor.next_step, executor.queued, executor.playing, self.latency_s, self.now):
            first = replanner.first(executor.next_step, executor.playing, self.now - self.stepped_at)
            state = np.concatenate([self.filter.setpoint, self.filter.setpoint]).astype(np.float32)
            stamp = min(stamp for stamp, _ in self.images.values())
            if replanner.predates(stamp):
                return  # the next picture will do
            actions = self.policy(first, {name: message for name, (_, message) in self.images.items()}, state)
            self.chunk_id += 1
            chunk = Chunk(actions[: replanner.trim(len(actions), self.latency_s)], 1, self.chunk_id, first)
            replanner.sent(first, len(chunk.positions), self.now, (1, self.chunk_id))
            self.coming = (self.now + self.latency_s, stamp, chunk)
            self.say("inference/status", String(data=json.dumps({**self.status, "calls": self.chunk_id})))


def write_trial(
    path,
    mode=ASYNC,
    horizon=10,
    latency_s=0.1,
    policy=swing,
    seconds=3.0,
    outcome="success",
    labelled=False,
    lost=(),
    parameters=None,
    **rig,
):
    """Writes one trial as the recorder would, and returns ``path``.

    ``labelled``: the scene never says how it ended, as on a robot; the operator does, after the arm was held.
    """
    rig = Rig(path, mode, horizon, latency_s, policy, parameters, **rig)
    rig.lost = lost
    rig.trial("ready")
    rig.scene("ready")
    rig.controller("holding: home: arrived")
    rig.play(0.5)
    rig.trial("running")
    rig.controller("moving: go")
    rig.scene("running")
    rig.play(seconds)
    if not labelled:
        rig.scene("done", outcome=outcome, reason="" if outcome == "success" else "dropped")
        rig.play(0.1)
    rig.trial("ending")
    rig.controller("holding: operator hold")
    rig.trial("labelling" if labelled else "done")
    rig.play(0.3)
    rig.file.close()
    return path
