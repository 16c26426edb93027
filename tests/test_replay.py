"""A recording played again does what was recorded; what it cannot answer it says. In virtual time, from files as the recorder writes them."""

import argparse
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest
from recorded_trial import STEP_RAD, Rig, swing, write_trial

from policytrim_ros import replay
from policytrim_ros.core.replanning import ASYNC, SYNC
from policytrim_ros.core.types import JOINTS, READY
from policytrim_ros.nodes.recording import RecordingError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import Observation
from policytrim_ros.share import share
from policytrim_ros.track import Track

TRIMMED, OTHER = (share("models", name) for name in ("tape-box-pi0-trimmed", "piper-pi0-tiny"))


def command(*words):
    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    return replay.main(parser.parse_args([str(word) for word in words]))


@pytest.mark.parametrize("mode", [ASYNC, SYNC])
@pytest.mark.parametrize("namespace", ["", "/left"])
def test_a_replay_plays_what_was_played_and_follows_the_recorded_setpoint(tmp_path, mode, namespace):
    track = Track(write_trial(tmp_path / "a.mcap", mode=mode, first_step=157, namespace=namespace))
    found = replay.replay(track)
    assert found.steps.tolist() == list(range(157, 157 + len(track.steps))) and len(found.steps) > 40
    assert (found.lost, found.other, found.refused) == (0, 0, 0)
    assert np.allclose(found.targets[:, 1], READY[1] + STEP_RAD * found.steps)
    assert found.stalls == track.stalls and found.stall_s == pytest.approx(track.stall_s, abs=0.01)
    assert (found.stalls > 3) == (mode == SYNC)
    top, mean = found.errors("limited")
    assert top.max() < 0.01 and mean.max() < 0.002  # rad: the same limits; when a step began is known within a setpoint


@pytest.mark.parametrize("mode", [ASYNC, SYNC])
def test_of_a_chunk_that_leads_beyond_the_limits_the_replay_plays_what_the_controller_played(tmp_path, mode):
    def astray(number, images, state):
        actions = swing(number, images, state)
        actions[7:, 0] = 3.5
        return actions

    track = Track(write_trial(tmp_path / "a.mcap", mode=mode, policy=astray, seconds=2.9))
    found = replay.replay(track)
    assert (found.lost, found.other, found.refused, found.stalls) == (0, 0, 0, track.stalls) and len(found.steps) > 30
    assert np.allclose(found.targets[:, 1], READY[1] + STEP_RAD * found.steps) and np.abs(found.targets[:, 0]).max() < 0.3
    assert max(len(said.chunk.positions) for said in track.chunks) > 7, "the recorded chunks are whole"


def test_every_go_begins_a_run_of_its_own(tmp_path):
    rig_path = tmp_path / "a.mcap"
    rig = Rig(rig_path, ASYNC, 10, 0.1, swing, None, first_step=40)
    rig.scene("ready")
    rig.play(0.3)
    for _ in range(2):
        rig.controller("moving: go")
        rig.play(1.0)
        rig.controller("holding: operator hold")
        rig.play(0.5)
    rig.file.close()
    track = Track(rig_path)
    found = replay.replay(track)
    assert [len(run) for run in track.runs] == [18, 18] and (found.lost, found.other, found.stalls) == (0, 0, 0)


def test_steps_whose_chunk_was_not_recorded_are_counted_and_the_others_played(tmp_path):
    track = Track(write_trial(tmp_path / "a.mcap", lost=(3,)))
    found = replay.replay(track)
    missing = [step.number for step in track.steps if step.chunk_id == 3]
    assert len(missing) > 3 and found.lost + found.other == len(missing)
    known = ~np.isnan(found.targets[:, 0])
    assert np.allclose(found.targets[known, 1], READY[1] + STEP_RAD * found.steps[known])


def test_an_empty_recording_and_one_without_motion_are_refused(tmp_path, capsys):
    path = write_trial(tmp_path / "a.mcap", seconds=0.0)
    with pytest.raises(RecordingError, match="shows no control step"):
        Track(path)
    (tmp_path / "text.mcap").write_bytes(b"text")
    assert command(tmp_path / "text.mcap") == 1 and "text.mcap: is damaged or no recording" in capsys.readouterr().out


# ---- another horizon ---------------------------------------------------------------------------------------------------


def ask(track, horizon, mode=ASYNC, latency_s=0.1):
    replayed = replay.replay(track)
    return replay.what_if(track, replayed, replay.WhatIf(horizon, mode, latency_s), replay.recorded_chunks(track, replayed))


def test_the_recorded_horizon_looks_as_often_as_recorded(tmp_path):
    track = Track(write_trial(tmp_path / "a.mcap"))
    found = ask(track, 10)
    assert abs(len(found.looks) - len(track.chunks)) <= 1
    assert found.same == len(track.steps) and found.max_rad < 1e-6  # this policy always says the same of a step


def test_a_shorter_horizon_looks_more_often_and_the_actions_differ_where_the_policy_changed_its_mind(tmp_path):
    said = []

    def fickle(number, images, state):
        said.append(number)
        actions = swing(number, images, state)
        actions[:, 3] = 0.01 * (len(said) % 2)
        return actions

    track = Track(write_trial(tmp_path / "a.mcap", mode=SYNC, latency_s=0.0, policy=fickle, seconds=4.0))
    shorter = ask(track, 5, SYNC, 0.0)
    assert [b - a for a, b in zip(shorter.looks, shorter.looks[1:])] == [5] * (len(shorter.looks) - 1)
    assert shorter.same == len(track.steps)  # open loop, sync: between two recorded looks there is only the one chunk
    track = Track(write_trial(tmp_path / "b.mcap", mode=ASYNC, policy=fickle, seconds=4.0))
    other = ask(track, 4, ASYNC, 0.0)
    assert 0 < other.same < len(track.steps) and other.max_rad == pytest.approx(0.01) and other.max_m == 0.0
    assert len(other.looks) > len(track.chunks)


def test_a_horizon_beyond_what_was_sent_cannot_be_answered_without_the_policy(tmp_path, capsys):
    path = write_trial(tmp_path / "a.mcap")
    assert command(path, "--what-if", "h=11") == 1
    said = capsys.readouterr().out
    assert "h=11 cannot be answered: inference sends what is executed, here h=10" in said and "--checkpoint" in said
    for words in ("h=0", "h=x", "5", "H=5", "h=-1"):
        assert command(path, "--what-if", words) == 1
        assert "expected h=N" in capsys.readouterr().out


def test_the_command_prints_and_writes_what_it_found(tmp_path, capsys):
    path = write_trial(tmp_path / "a.mcap")
    numbers, picture = tmp_path / "a.json", tmp_path / "a.svg"
    assert command(path, "--what-if", "h=5", "--latency-ms", 0, "--json", numbers, "--plot", picture) == 0
    said = capsys.readouterr().out
    assert "(session s1, trial 4)" in said and "policy models/x, mode async, h=10" in said and "generation 1:" in said
    assert "what if h=5 (async, 0 ms from look to chunk; recorded chunks, open loop)" in said
    written = json.loads(numbers.read_text())
    assert (
        written["S"] == written["what_if"]["same"] > 40
        and written["lost"] == 0
        and written["generations"] == {"1": written["chunks"]}
    )
    assert picture.read_text().lstrip().startswith("<?xml") and "joint6" in picture.read_text()


def test_rerun_that_is_not_installed_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    assert command(write_trial(tmp_path / "a.mcap"), "--rerun", tmp_path / "a.rrd") == 1
    assert "extra 'rerun'" in capsys.readouterr().out


def test_rerun_reads_the_joints_and_the_pictures_that_were_written(tmp_path):
    pytest.importorskip("rerun", reason="rerun-sdk (extra 'rerun') is not installed; it is optional")
    path = tmp_path / "a.rrd"
    assert command(write_trial(tmp_path / "a.mcap"), "--rerun", path) == 0
    rrd = [sys.executable, "-m", "rerun", "rrd"]
    subprocess.run([*rrd, "verify", path], check=True, timeout=120)
    read = subprocess.run([*rrd, "print", path], check=True, timeout=120, capture_output=True, text=True)
    said = read.stdout + read.stderr
    wanted = ["cameras/front", *(f"joints/{joint}/{name}" for joint in JOINTS for name in ("setpoint", "target"))]
    assert [name for name in wanted if name not in said] == []


# ---- another checkpoint ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A recording of a real policy at rest between its chunks."""
    policy, manifest = checkpoint.load(TRIMMED)
    looks = []

    def acts(number, images, state):
        pictures = {
            name: cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR)[None, ..., ::-1]
            for name, message in images.items()
        }
        observation = Observation(pictures, state[None], ["put the tape into the box"])
        looks.append(number)
        return policy.predict(observation, seeds=[5 + len(looks) - 1])[0].astype(np.float64)

    path = tmp_path_factory.mktemp("driven") / "a.mcap"
    cameras = [camera.name for camera in policy.contract.cameras]
    parameters = {"seed": 5, "denoising_steps": 0, "instruction": ""}
    return write_trial(path, SYNC, 5, 0.0, acts, 2.0, parameters=parameters, cameras=cameras)


def test_the_policy_that_was_recorded_says_the_same_again_and_another_does_not(driven, tmp_path, capsys):
    track = Track(driven)
    rows = replay.Other(TRIMMED, track).differences()
    assert len(rows) == len(track.chunks) > 3 and {row.actions for row in rows} == {5}
    again = np.mean([row.mean_rad for row in rows])
    other = np.mean([row.mean_rad for row in replay.Other(OTHER, track).differences()])
    assert again < 0.005 and other > 3 * again
    assert command(driven, "--checkpoint", TRIMMED, "--json", tmp_path / "a.json") == 0
    said = capsys.readouterr().out
    assert "| 1 | 1 | 0 | 5 |" in said and f"{len(rows)} chunks: mean" in said and "seed" not in said
    assert len(json.loads((tmp_path / "a.json").read_text())["checkpoint"]["chunks"]) == len(rows)


def test_a_longer_horizon_is_answered_by_the_policy_itself_up_to_what_it_predicts(driven, capsys):
    assert command(driven, "--checkpoint", TRIMMED, "--what-if", "h=15") == 0
    said = capsys.readouterr().out
    looks = [int(word) for word in said.split("at control steps ")[1].split("\n")[0].split(", ")]
    assert looks == list(range(0, looks[-1] + 1, 15)) and "chunks of" in said
    assert command(driven, "--checkpoint", TRIMMED, "--what-if", "h=16") == 1
    assert "predicts 15 actions" in capsys.readouterr().out


def test_a_checkpoint_that_cannot_look_at_the_recording_is_refused(driven, tmp_path, capsys):
    assert command(driven, "--checkpoint", tmp_path) == 1
    assert "is not a checkpoint" in capsys.readouterr().out
    assert command(driven, "--checkpoint", share("models", "piper-state-tiny")) == 1
    assert "what no robot records" in capsys.readouterr().out
    assert command(write_trial(tmp_path / "a.mcap"), "--checkpoint", TRIMMED) == 1
    assert "no picture of camera 'wrist' near" in capsys.readouterr().out
