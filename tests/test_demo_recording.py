"""`policytrim demos record` beside the whole simulated robot: what was driven over ROS becomes a dataset for training."""

import signal
import subprocess
import sys

import numpy as np
import pytest
from stack import ROOT, wait_for
from test_system import System

from policytrim_ros.training import demos
from policytrim_ros.trials.store import Store

pytestmark = pytest.mark.integration


@pytest.fixture
def system(tmp_path):
    made = System(tmp_path)
    yield made
    made.close()


def start_recorder(system, *arguments):
    """In a session of its own, as a terminal of its own would be: the scheduler shares the machine among sessions."""
    line = [sys.executable, "-m", "policytrim_ros.cli", "demos", "record", *arguments]
    with open(system.folder / "record.log", "w") as log:
        system.processes["record"] = subprocess.Popen(
            line, cwd=ROOT, env=system.environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def test_an_episode_driven_over_ros_becomes_a_demonstration(system, tmp_path):
    system.up("up", "checkpoint:=demonstrator:hesitant")
    wait_for(lambda: "running;" in system.log("up"), "the system does not come up", 240)
    start_recorder(system, f"out:={tmp_path / 'recorded'}")
    wait_for(lambda: "ready:" in system.log("record"), f"the recorder does not start: {system.log('record')}", 120)
    trials = ("task:=tape_box", "trials:=2", "seed:=40", f"out:={tmp_path / 'trials'}", "label:=recorded")
    system.start("trial", "policytrim_ros.cli", "trial", *trials)
    assert system.exit_code_within("trial", 240) == 0, system.log("trial")
    system.processes["record"].send_signal(signal.SIGINT)
    assert system.exit_code_within("record", 60) == 0, system.log("record")

    rows = {row.seed: row for row in Store(tmp_path / "trials").rows}
    index = demos.read_index(tmp_path / "recorded")
    assert len(index["episodes"]) + len(index["failures"]) == len(rows), system.log("record")
    assert index["episodes"], system.log("record")
    for episode, entry in zip(demos.read_episodes(tmp_path / "recorded"), sorted(index["episodes"], key=lambda e: e["name"])):
        assert len(episode.state) == pytest.approx(
            rows[entry["seed"]].steps, rel=0.1
        )  # counted by another process, at its own moment
        assert (entry["style"], entry["task"], episode.instruction) == ("hesitant", "tape_box", "put the tape into the box")
        assert {name: pictures.shape[1:] for name, pictures in episode.images.items()} == dict.fromkeys(
            ["front", "wrist"], (72, 128, 3)
        )
        assert np.ptp(episode.state[:, :3], axis=0).max() > 0.2 and episode.images["wrist"].std() > 10
        # an action is where the setpoint is one control step later, but for the limits of motion
        reached = np.abs(episode.state[1:, 7:13] - episode.actions[: len(episode.state) - 1, :6])
        assert (
            np.median(reached) < 0.005
            and np.median(reached) < np.median(np.abs(episode.state[1:, 7:13] - episode.state[:-1, 7:13])) + 1e-6
        )


def test_a_camera_that_does_not_deliver_is_named(system, tmp_path):
    start_recorder(system, f"out:={tmp_path / 'recorded'}", "startup_s:=1.0")
    assert system.exit_code("record") == 1
    assert "nothing on topic '/front/color/image_raw'" in system.log("record") and "policytrim up" in system.log("record")
