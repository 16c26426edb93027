"""A checkpoint is tried before it may take over: memory, contract, nonsense, other answers than when it was made, a loader that dies."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from policy_samples import at_ready, gentle

from policytrim_ros.core.contract import robot_contract
from policytrim_ros.policies import checkpoint, staging
from policytrim_ros.policies.golden import GOLDEN, Golden
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.staging import StagingError
from policytrim_ros.training.golden_scenes import record

ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)})


@pytest.fixture
def saved(tmp_path):
    made = gentle()
    checkpoint.save(tmp_path / "good", made, made={"recipe": "test"}, golden=Golden.of(made, at_ready()))
    return tmp_path / "good"


def altered(directory, change):
    """The checkpoint with other weights, or other golden answers, and a manifest that agrees with them."""
    made, manifest = checkpoint.load(directory)
    golden = checkpoint.golden_of(directory, manifest)
    made, golden = change(made, golden)
    checkpoint.save(directory, made, made=manifest["made"], golden=golden, overwrite=True)


def test_golden_observations_travel_with_a_checkpoint_and_agree(saved, tmp_path):
    checkpoint.copy(saved, tmp_path / "copy")
    loaded, manifest = checkpoint.load(tmp_path / "copy")
    golden = checkpoint.golden_of(tmp_path / "copy", manifest)
    actions, far = golden.compare(loaded)
    assert actions.shape == (2, 6, 7) and far == 0.0
    said = []
    assert staging.stage(saved, ROBOT, say=said.append, golden_needed=True)[1] == manifest["files"]["model.safetensors"]
    assert "MB are free" in said[0] and "2 golden observations agree" in said[1]


def test_weights_that_answer_otherwise_than_when_they_were_made_are_refused(saved):
    def nudge(made, golden):
        for parameter in made.parameters():
            parameter.add_(0.3)
        return made, golden

    altered(saved, nudge)
    with pytest.raises(StagingError, match="predicts other actions for its golden observations .*by up to"):
        staging.stage(saved, ROBOT)


def test_golden_answers_beyond_the_limits_are_refused_even_when_they_agree(saved):
    def beyond_joint5(made, golden):
        seen = golden.observation
        state = seen.state.copy()
        state[:, 11] = 1.7  # the setpoint of joint5, where the chunk begins
        return made, Golden.of(made, Observation(seen.images, state, seen.instruction))

    altered(saved, beyond_joint5)
    with pytest.raises(StagingError, match="would be held"):
        staging.stage(saved, ROBOT)


def test_without_golden_observations_it_is_taken_at_rest_alone(saved):
    altered(saved, lambda made, golden: (made, None))
    staging.stage(saved, ROBOT)
    with pytest.raises(StagingError, match="policytrim checkpoint golden"):
        staging.stage(saved, ROBOT, golden_needed=True)


def test_a_damaged_golden_file_is_noticed(saved):
    path = saved / GOLDEN
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(checkpoint.CheckpointError, match=GOLDEN):
        staging.stage(saved, ROBOT)


def test_what_does_not_fit_into_memory_is_not_even_loaded(saved, monkeypatch):
    monkeypatch.setattr(staging, "free_mb", lambda device: 0.01)
    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(StagingError, match="only 0 MB are free"):
        staging.stage(saved, ROBOT)


def test_a_child_tries_it_first_and_its_words_are_the_refusal(saved, tmp_path):
    said = []
    policy, weights = staging.tried(saved, ROBOT, golden_needed=True, say=said.append)
    assert weights == checkpoint.read_manifest(saved)["files"]["model.safetensors"] and not policy.training
    assert "2 golden observations agree" in said[1]
    with pytest.raises(StagingError, match="nowhere: is not a checkpoint"):
        staging.tried(tmp_path / "nowhere", ROBOT)
    with pytest.raises(StagingError, match="camera 'wrist' is missing"):
        staging.tried(saved, robot_contract({"front": (64, 36)}))


def test_a_checkpoint_that_kills_its_loader_kills_the_child_alone(saved, monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: pytest.fail("it was loaded here, too"))
    with pytest.raises(StagingError, match="ended with -9, for want of memory perhaps"):
        staging.tried(saved, ROBOT)


def test_golden_observations_are_recorded_in_the_simulator(saved):
    shutil.rmtree(saved)
    one = gentle(cameras=("front",))
    checkpoint.save(saved, one, made={"recipe": "test"}, evaluation={"n": 1})
    manifest = record(saved, "reach_task:ReachEnv", (64, 36))
    golden = checkpoint.golden_of(saved, manifest)
    assert golden.actions.shape == (2, 6, 7) and manifest["evaluation"] == {"n": 1}
    assert golden.observation.images["front"].shape == (2, 18, 32, 3)
    assert not np.array_equal(golden.observation.state[0], golden.observation.state[1]), "the arm has not moved in between"
    assert json.loads(json.dumps(manifest))["files"][GOLDEN]


@pytest.mark.parametrize(
    "stage_on, device, free, where",
    [
        ("auto", "cuda", 1e6, "cuda"),
        ("auto", "cuda", 0.01, "cpu"),
        ("device", "cuda", 0.01, "cuda"),
        ("cpu", "cuda", 1e6, "cpu"),
        ("auto", "cpu", 0.01, "cpu"),
    ],
)
def test_a_candidate_is_staged_on_the_cpu_where_both_do_not_fit_on_the_device(saved, monkeypatch, stage_on, device, free, where):
    monkeypatch.setattr(staging, "free_mb", lambda device: free)
    assert staging.place(saved, device, stage_on) == where


class Child:
    """A process that finds nothing wrong; the first ``late`` waits for it are in vain."""

    pid, returncode, late = 4321, 0, 0

    def communicate(self, timeout=None):
        if timeout is not None and self.late:
            raise subprocess.TimeoutExpired("child", timeout)
        return "said\nsha\n", ""


def test_a_child_that_is_not_done_after_a_while_gets_the_share_of_any_other_process(saved, monkeypatch):
    hurried = []
    monkeypatch.setattr(Child, "late", 1)
    monkeypatch.setattr(staging.subprocess, "Popen", lambda *a, **k: Child())
    monkeypatch.setattr(staging, "hurry", hurried.append)
    monkeypatch.setattr(staging, "_loaded", lambda *a: ("policy", "sha"))
    assert staging.tried(saved, ROBOT) == ("policy", "sha") and hurried == [Child.pid]


def test_what_is_free_is_asked_again_before_the_parent_loads(saved, monkeypatch):
    monkeypatch.setattr(staging.subprocess, "Popen", lambda *a, **k: Child())
    monkeypatch.setattr(staging, "free_mb", lambda device: 0.01)
    monkeypatch.setattr(checkpoint, "load", lambda *a, **k: pytest.fail("it was loaded"))
    with pytest.raises(StagingError, match="only 0 MB are free"):
        staging.tried(saved, ROBOT)
