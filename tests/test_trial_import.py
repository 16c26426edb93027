"""Recorded trials become episodes that training reads, once each, with where they come from."""

import numpy as np
import pytest
from recorded_trial import SCENE, STEP_RAD, write_trial

from policytrim_ros.core.replanning import SYNC
from policytrim_ros.core.types import READY
from policytrim_ros.training import demos
from policytrim_ros.training.recording import RecordConfig
from policytrim_ros.trial_import import imported

CONFIG = RecordConfig(cameras=["front"], width=32, height=18)
FACTS = dict(task="tape_box", setting="standard", seed=7, session="s1", number=4, checkpoint="models/y", labelled_by="ann")


def run(recordings, out, **options):
    return imported([(path, facts) for path, facts in recordings], out, config=CONFIG, **options)


@pytest.mark.parametrize("mode", ["async", SYNC])
def test_a_recorded_success_becomes_the_episode_that_was_played(tmp_path, mode):
    path = write_trial(tmp_path / "a.mcap", mode=mode, first_step=157)
    found = run([(path, {**FACTS, "outcome": "success"})], tmp_path / "data")
    assert (found.new, found.left_out, found.problems) == (1, [], [])
    (episode,) = demos.read_episodes(tmp_path / "data")
    assert len(episode.state) == pytest.approx(58 if mode == "async" else 42, abs=1)
    assert np.allclose(episode.actions[:, 1], READY[1] + STEP_RAD * (157 + np.arange(len(episode.actions))), atol=1e-6)
    # a row shows the arm as it was when its step began: one step, and what the limits take, behind the target
    assert np.abs(episode.state[1:, 7] - episode.actions[: len(episode.state) - 1, 0]).max() < 0.02
    assert episode.images["front"].shape[1:] == (18, 32, 3) and episode.images["front"].std() > 10
    (entry,) = demos.read_index(tmp_path / "data")["episodes"]
    assert (entry["session"], entry["trial"], entry["recording"]) == ("s1", 4, "s1/trial-0004")
    assert (entry["checkpoint"], entry["style"], entry["labelled_by"], entry["source"]) == ("models/y", "y", "ann", "trial")
    assert entry["camera_sizes"] == {"front": [64, 36]} and entry["seed"] == 7 and entry["outcome"] == "success"


def test_without_a_label_the_scene_decides_and_the_status_names_the_policy(tmp_path):
    recordings = [write_trial(tmp_path / f"{outcome}.mcap", outcome=outcome) for outcome in ("success", "failure")]
    found = run([(path, {}) for path in recordings], tmp_path / "data")
    assert found.new == 1 and found.left_out == [f"{recordings[1]}: dropped"]
    assert demos.read_index(tmp_path / "data")["episodes"][0]["checkpoint"] == "models/x"


@pytest.mark.parametrize("scene", ["success", "failure"])
def test_the_label_overrules_what_the_scene_said(tmp_path, scene):
    path = write_trial(tmp_path / "a.mcap", outcome=scene)
    label = {"success": "failure", "failure": "success"}[scene]
    found = run([(path, {"outcome": label})], tmp_path / "data", keep_failures=True)
    index = demos.read_index(tmp_path / "data")
    assert found.new == 1 and [entry["outcome"] for entry in index["episodes"] + index["failures"]] == [label]


def test_a_trial_that_only_the_operator_could_judge_ends_where_the_arm_was_held(tmp_path):
    path = write_trial(tmp_path / "a.mcap", labelled=True)
    assert run([(path, {**FACTS, "outcome": "success"})], tmp_path / "data").new == 1
    (episode,) = demos.read_episodes(tmp_path / "data")
    assert len(episode.state) == pytest.approx(58, abs=2)
    found = run([(path, {})], tmp_path / "unlabelled")
    assert found.new == 0 and "stopped in the middle" in found.left_out[0]


def test_failures_are_imported_only_when_asked_for(tmp_path):
    path = write_trial(tmp_path / "a.mcap", outcome="failure")
    for outcome in ("failure", "invalid", "aborted"):
        found = run([(path, {"outcome": outcome})], tmp_path / "data")
        assert found.new == 0 and found.left_out == [f"{path}: outcome: {outcome}"]
    assert run([(path, {"outcome": "failure"})], tmp_path / "data", keep_failures=True).new == 1
    assert run([(path, {"outcome": "invalid"})], tmp_path / "data", keep_failures=True).new == 0
    index = demos.read_index(tmp_path / "data")
    assert index["episodes"] == [] and [entry["outcome"] for entry in index["failures"]] == [
        "failure"
    ]  # training does not see it


def test_what_was_imported_is_not_imported_again_under_any_name(tmp_path):
    path = write_trial(tmp_path / "a.mcap")
    assert run([(path, FACTS)], tmp_path / "data").new == 1
    other = path.rename(tmp_path / "b.mcap")
    found = run([(other, FACTS), (write_trial(tmp_path / "c.mcap", seconds=2.0), FACTS)], tmp_path / "data")
    assert (found.new, found.known) == (1, 1)
    assert len(demos.read_index(tmp_path / "data")["episodes"]) == 2


def test_a_label_that_was_changed_after_the_import_is_told(tmp_path):
    path = write_trial(tmp_path / "a.mcap")
    run([(path, {"outcome": "success"})], tmp_path / "data")
    found = run([(path, {"outcome": "failure"})], tmp_path / "data", keep_failures=True)
    assert "was imported as success, its label is now failure" in found.problems[0]


def test_damaged_and_unfinished_recordings_are_named_and_the_others_imported(tmp_path):
    good = write_trial(tmp_path / "good.mcap")
    data = good.read_bytes()
    bad = {"cut.mcap": data[: len(data) // 2], "x.mcap.partial": data, "text.mcap": b"text", "missing.mcap": None}
    for name, content in bad.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    found = run([*((tmp_path / name, FACTS) for name in bad), (good, FACTS)], tmp_path / "data")
    assert (found.new, found.known, found.left_out) == (1, 0, [])
    assert [problem.split(": ")[0] for problem in found.problems] == [str(tmp_path / name) for name in bad]


@pytest.mark.parametrize(
    "facts, options, config, words",
    [
        (dict(task="hang_mug"), {}, CONFIG, "shows task tape_box, its label says hang_mug"),
        (dict(seed=8), {}, CONFIG, "shows seed 7, its label says 8"),
        ({}, dict(cameras=("wrist",)), CONFIG, "no pictures of camera front, only of wrist"),
        ({}, {}, RecordConfig(cameras=["front"]), "sends 64x36, smaller than the 128x72"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(tmp_path, facts, options, config, words):
    path = write_trial(tmp_path / "a.mcap", **options)
    found = imported([(path, facts)], tmp_path / "data", config=config)
    assert found.new == 0 and words in found.problems[0]


def test_a_chunk_that_is_not_in_the_recording_is_no_demonstration(tmp_path):
    path = write_trial(tmp_path / "a.mcap", lost=(3,))
    found = run([(path, {"outcome": "success"})], tmp_path / "data")
    assert found.new == 0 and "chunk 3, played at control step" in found.left_out[0]
    assert run([(path, {"outcome": "success"})], tmp_path / "data").new == 0
    assert len(demos.read_index(tmp_path / "data")["failures"]) == 1  # noted once


def test_the_instruction_of_the_scene_is_the_sentence_of_the_episode(tmp_path):
    run([(write_trial(tmp_path / "a.mcap", namespace="/left"), {})], tmp_path / "data")
    (episode,) = demos.read_episodes(tmp_path / "data")
    assert episode.instruction == SCENE["instruction"]
