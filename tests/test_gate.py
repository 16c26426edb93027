"""The simulated twin as a gate: what would be held, or fails too often, does not reach a robot; what passed is remembered."""

import pytest
from policy_samples import gentle, policy

from policytrim_ros.core.contract import robot_contract
from policytrim_ros.policies import checkpoint, staging
from policytrim_ros.training import evaluate, gate
from policytrim_ros.training.gate import pass_through
from policytrim_ros.training.recipe import Pictures

ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)}, tasks=["tape_box"])
BENCH = evaluate.Bench(
    "reach_task:ReachEnv", pictures=Pictures(camera_width=64, camera_height=36), lanes=2, first_seed=gate.GATE_SEED
)


def saved(tmp_path, made):
    checkpoint.save(tmp_path / "one", made, made={"recipe": "test"})
    return tmp_path / "one"


def through(directory, **options):
    return pass_through(directory, episodes=4, bench=BENCH, progress=False, **{"latency_s": 0.05, **options})


def test_a_robot_takes_what_has_passed_and_only_that(tmp_path):
    directory = saved(tmp_path, gentle())
    staging.stage(directory, ROBOT)
    with pytest.raises(staging.StagingError, match="tape_box was not tried in the simulated twin; run `policytrim gate"):
        staging.stage(directory, ROBOT, gate_needed=True)
    (entry,) = through(directory, min_success=0.0).values()
    assert entry["passed"] and entry["n"] == 4 and entry["held"] == 0 and entry["mode"] == "async" and entry["latency_s"] == 0.05
    staging.stage(directory, ROBOT, gate_needed=True)
    checkpoint.copy(directory, tmp_path / "published")
    staging.stage(tmp_path / "published", ROBOT, gate_needed=True)


def test_too_few_successes_are_a_failure_that_is_remembered(tmp_path):
    directory = saved(tmp_path, gentle())
    assert "success in 0 of 4 episodes, at least 50% are wanted" in through(directory)["tape_box"]["reason"]
    with pytest.raises(staging.StagingError, match="failed in the simulated twin .success in 0 of 4"):
        staging.stage(directory, ROBOT, gate_needed=True)


def test_one_episode_that_the_controller_would_hold_is_enough_to_fail(tmp_path):
    wild = policy().requires_grad_(False)  # untrained: its joints go wherever they like
    entry = through(saved(tmp_path, wild), min_success=0.0)["tape_box"]
    assert not entry["passed"] and entry["held"] > 0 and "would have held the arm" in entry["reason"]


def test_tasks_are_judged_apart_and_kept_from_one_run_to_the_next(tmp_path):
    directory = saved(tmp_path, gentle(tasks=("tape_box", "flip_mug")))
    through(directory, tasks=["tape_box"], min_success=0.0)
    found = through(directory, tasks=["flip_mug"])
    assert found["tape_box"]["passed"] and not found["flip_mug"]["passed"]
    assert staging.not_passed(directory, checkpoint.read_manifest(directory), ["tape_box"]) == ""
    assert "flip_mug" in staging.not_passed(directory, checkpoint.read_manifest(directory), [])
    with pytest.raises(ValueError, match="was not made for hang_mug"):
        through(directory, tasks=["hang_mug"])


@pytest.fixture
def passed(tmp_path):
    """A checkpoint that has passed here, in mode async, with its own h, and its manifest."""
    directory = saved(tmp_path, gentle())
    through(directory, min_success=0.0)
    return directory, checkpoint.read_manifest(directory)


def test_what_passed_on_another_machine_is_tried_again_here(passed, monkeypatch):
    directory, manifest = passed
    assert staging.not_passed(directory, manifest, ["tape_box"], mode="async") == ""
    monkeypatch.setattr(staging.platform, "node", lambda: "another")
    assert "with the latency of machine" in (refusal := staging.not_passed(directory, manifest, ["tape_box"]))
    assert "this is 'another'" in refusal and f"run `policytrim gate {directory} --task tape_box`" in refusal
    assert staging.not_passed("ws://there:8000", manifest, ["tape_box"]) == "", "a server is another machine by design"


def test_what_passed_in_another_mode_or_with_another_h_is_refused(passed):
    directory, manifest = passed
    with pytest.raises(staging.StagingError, match="passed the simulated twin in mode async, it is to run in mode rtc.*--mode rtc"):
        staging.stage(directory, ROBOT, gate_needed=True, mode="rtc")
    own = manifest["contract"]["execution_horizon"]
    assert staging.not_passed(directory, manifest, [], horizon=own) == ""
    refusal = staging.not_passed(directory, manifest, [], horizon=own - 1)
    assert f"with h = {own}, it is to run with h = {own - 1}; leave horizon at 0" in refusal


def test_a_policy_that_is_slower_than_the_twin_was_played_with_is_told(passed):
    _, manifest = passed
    assert staging.slower_than_gated(manifest, ["tape_box"], 0.05) == ""
    assert "takes 80 ms (p99), the simulated twin of tape_box was passed with 50 ms" in staging.slower_than_gated(manifest, [], 0.08)
    assert staging.slower_than_gated(manifest, ["flip_mug"], 0.08) == "", "it does not play that task"
    assert staging.slower_than_gated({}, [], 0.08) == ""


def test_latency_is_measured_on_this_machine():
    assert 0.0 < gate.measured_latency(gentle(), predictions=12) < 5.0
