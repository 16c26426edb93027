"""The pipeline of trimming on a stand-in task: exact when resumed, honest about improvement, clear about what cannot work."""

import argparse
import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from policy_samples import observation, reach_recipe

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.samplers import Sampler
from policytrim_ros.training import evidence, progress, run_state, sft, trim
from policytrim_ros.training.exploration import explore
from policytrim_ros.training.fleet import Fleet, Grounds
from policytrim_ros.training.groups import Group
from policytrim_ros.training.run_state import TrainingError
from policytrim_ros.training.trim import Interrupted, Trimming, select
from policytrim_ros.training.trim_recipe import load_trim, parse_change

LITTLE = {
    "environment": "reach_task:ReachEnv",
    "camera_width": 64,
    "camera_height": 36,
    "check_every": 2,
    "collapse": 1.0,
    "check_episodes": 4,
    "selection_episodes": 6,
    "evaluation_episodes": 6,
    "grpo.learning_rate": 3e-4,
    "extension.iterations": 2,
    "extension.groups": 2,
    "extension.group_size": 3,
    "saving.iterations": 4,
    "saving.groups": 2,
    "saving.group_size": 3,
}


def made(baseline, run, **changes):
    recipe = load_trim(None, {**LITTLE, "parent": str(baseline), **changes})
    return Trimming(recipe, run, lanes=4, progress=False, say=lambda text: None)


@pytest.fixture
def trimming(baseline, tmp_path):
    """A function that makes runs of the pipeline in ``run``."""
    return lambda run="run", **changes: made(baseline, tmp_path / run, **changes)


@pytest.fixture(scope="module")
def whole(baseline, tmp_path_factory):
    """(a run that was never interrupted, what it found, its weights before)."""
    one = made(baseline, tmp_path_factory.mktemp("whole"))
    before = weights(one)
    return one, one.run(), before


def weights(trimming):
    return torch.cat([parameter.detach().flatten() for parameter in trimming.policy.parameters()])


def test_it_runs_through_all_phases_and_leaves_its_evidence(whole):
    one, found, before = whole
    assert one.phase == "evidence" and one.horizon in (5, 6) and set(one.budgets) == {"tape_box"}
    assert [entry["iteration"] for entry in one.history] == [1, 2, 1, 2, 3, 4]
    assert not torch.equal(before, weights(one)) or one.best["iteration"] == 0
    policy, manifest = checkpoint.load(one.run_dir / "trimmed")
    assert policy.contract.execution_horizon == one.horizon and manifest["made"]["parent"] == one.parent
    assert manifest["made"]["improvement"] is found["improvement"] and manifest["made"]["verdict"] == found["verdict"]
    assert len(manifest["evaluation"]["rows"]) == 2
    assert found["verdict"][1:] in (one.run_dir / "evidence.md").read_text()
    assert (one.run_dir / "learning.png").stat().st_size > 1000
    told = progress.read(one.run_dir)
    assert (told["phase"], told["horizon"], told["verdict"]) == ("evidence", one.horizon, found["verdict"])
    assert told["improvement"] is found["improvement"] and told["success_rate"] == found["rows"][-1]["success"][1]


def run_until(one, stop_after):
    """Runs ``one`` until it is told to stop after so many iterations."""
    iterate, count = one._iterate, iter(range(1, 100))

    def stopping(*arguments):
        figures = iterate(*arguments)
        one.stop_requested = next(count) == stop_after
        return figures

    one._iterate = stopping
    with pytest.raises(Interrupted, match="the same command resumes"):
        one.run()


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4, 5])  # after 2 and 4: in the check that follows
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(whole, trimming, stop_after):
    whole, _, _ = whole
    run_until(trimming(), stop_after)
    again = trimming()
    found = again.run()
    assert len(again.history) == 6 and torch.equal(weights(again), weights(whole))
    untimed = [{key: value for key, value in check.items() if key != "minutes"} for check in again.checks]
    assert untimed == [{key: value for key, value in check.items() if key != "minutes"} for check in whole.checks]
    assert found["rows"] == again.run()["rows"]  # a finished run only says again what it found


def test_the_reference_of_stage_2_stays_that_of_stage_1_when_resumed(trimming):
    changes = {"extension.iterations": 0, "grpo.kl": 0.1, "horizon": 6}
    first, again = trimming(**changes), trimming(**changes)
    run_until(first, 1)
    run_until(again, 1)
    assert not torch.equal(weights(again), weights(first))
    ours, theirs = (torch.cat([p.flatten() for p in one.reference.enter_result.parameters()]) for one in (first, again))
    assert torch.equal(ours, theirs)


def test_a_reference_that_is_renewed_is_the_policy_of_that_iteration(trimming):
    changes = {"extension.iterations": 0, "grpo.kl": 0.1, "horizon": 6, "renew_reference": 2, "grpo.final_rate": 0.5}
    one = trimming(**changes)
    run_until(one, 2)
    kept = torch.cat([p.detach().flatten() for p in one.reference.enter_result.parameters()])
    assert torch.equal(kept, weights(one))
    again, whole = trimming(**changes), trimming("whole", **changes)
    again.run(), whole.run()
    assert torch.equal(weights(again), weights(whole))
    updates = [entry for entry in whole.history if "learning_rate" in entry]  # the others had nothing to learn from
    for number, entry in enumerate(updates):
        falling = 1.0 - 0.5 * (entry["iteration"] - 1) / 4
        assert entry["learning_rate"] == pytest.approx(3e-4 * min(1.0, (number + 1) / 5) * falling)
    assert updates
    with pytest.raises(ConfigError, match="what lies beneath them"):
        trimming(**ADAPTERS, renew_reference=2)


HASTENING = {
    "extension.iterations": 0,
    "saving.iterations": 1,
    "horizon": 6,
    "grpo.kl": 0.1,
    "sampler.method": "cps",
    "sampler.joint": True,
    "hastening.iterations": 3,
    "hastening.groups": 2,
    "hastening.group_size": 3,
    "hastening.renew": 2,
    "hastening.learning_rate": 2e-4,
}


def test_the_third_stage_explores_tempos_and_goes_on_where_it_was_stopped(trimming):
    one, whole = trimming(**HASTENING), trimming("whole", **HASTENING)
    assert one.exploration.sampler.tempo == 0
    run_until(one, 3)  # its second iteration, after which the reference is renewed
    assert one.phase == "hastening" and one.exploration.sampler.tempo == 0.15
    assert one.optimizer.config.learning_rate == 2e-4 and one.optimizer.config.final_rate == 1.0
    kept = torch.cat([p.detach().flatten() for p in one.reference.enter_result.parameters()])
    assert torch.equal(kept, weights(one))
    again = trimming(**HASTENING)
    again.run(), whole.run()
    assert torch.equal(weights(again), weights(whole))
    assert [entry["phase"] for entry in again.history] == ["saving", "hastening", "hastening", "hastening"]
    manifest = checkpoint.read_manifest(again.run_dir / "trimmed")
    assert manifest["made"]["iterations"] == {"extension": 0, "saving": 1, "hastening": 3}


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"sampler.method": "sde"}, "only method 'cps'"),
        ({"grpo.kl": 0}, "without grpo.kl"),
        ({"lora.rank": 2, "lora.targets": ["q_proj"]}, "hastening.renew"),
    ],
)
def test_a_third_stage_that_cannot_work_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        load_trim(None, {**HASTENING, **changes})


@pytest.mark.parametrize("method", ("sde", "noise"))
def test_where_no_tempo_is_explored_every_sampler_gets_to_the_end(method):
    recipe = load_trim(None, {"sampler.method": method})
    assert all(recipe.explorer(phase) == recipe.sampler for phase in trim.PHASES)


def test_the_evidence_can_be_drawn_up_against_an_ancestor(whole, baseline, trimming):
    whole, _, _ = whole
    changes = {"parent": str(whole.run_dir / "trimmed"), "against": str(baseline), "extension.iterations": 0, "saving.iterations": 0}
    one = trimming(**{**changes, "horizon": 6})
    one.run()
    before, after = json.loads((one.run_dir / "evidence.json").read_text())["rows"]
    ancestor = checkpoint.read_manifest(baseline)
    assert before["weights_sha256"] == ancestor["files"]["model.safetensors"] != after["weights_sha256"]
    assert (before["horizon"], after["horizon"]) == (ancestor["contract"]["execution_horizon"], 6)
    assert f"Baseline {baseline};" in (one.run_dir / "evidence.md").read_text()
    with pytest.raises(checkpoint.CheckpointError, match="nowhere"):
        trimming(against="nowhere")  # before hours of training, not after


def test_every_stage_leaves_a_part_of_the_budget_to_those_behind_it(trimming):
    for stages, shares in (
        ({}, {"extension": 1 / 3, "saving": 1}),
        ({"saving.iterations": 0}, {"extension": 1}),
        ({**HASTENING, "extension.iterations": 1}, {"extension": 1 / 3, "saving": 2 / 3, "hastening": 1}),
    ):
        one = trimming(minutes=30, **stages)
        for one.phase, share in shares.items():
            assert one._time_left_s() == pytest.approx(1800 * share)


ADAPTERS = {"lora.rank": 2, "lora.alpha": 4, "lora.targets": ["q_proj", "v_proj"], "grpo.kl": 0.1}


def test_adapters_alone_learn_and_their_switching_off_is_the_reference(baseline, trimming):
    one = trimming(**ADAPTERS)
    assert all(".lora_" in name for name in one.optimizer.trained)
    before = {name: tensor.clone() for name, tensor in one.policy.state_dict().items() if ".lora_" not in name}
    one.phase, one.horizon, one.budgets = "saving", 6, {"tape_box": 30.0}
    one.reference = one._as_reference()
    divergences = [one._iterate(one.recipe.saving, (6,))["kl"] for one.iteration in range(4)]
    assert divergences[0] == pytest.approx(0.0, abs=1e-6) and divergences[-1] > 0
    after = one.policy.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    with one.reference as theirs, torch.no_grad():
        assert theirs is one.policy
    deployed, parent = one._deployed(6), checkpoint.load(baseline)[0]
    assert deployed.state_dict().keys() == parent.state_dict().keys()
    changed = [name for name, tensor in parent.state_dict().items() if not torch.equal(tensor, deployed.state_dict()[name])]
    assert changed and all(name.endswith(("q_proj.weight", "v_proj.weight")) for name in changed)


def test_a_run_with_adapters_resumes_in_stage_2_from_what_stage_1_learned(trimming):
    whole = trimming("whole", **ADAPTERS)
    whole.run()
    broken = trimming("broken", **ADAPTERS)
    run_until(broken, 4)  # the second iteration of stage 2
    again = trimming("broken", **ADAPTERS)
    again.run()
    ours, theirs = (one._deployed(6).state_dict() for one in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_plan_as_long_as_it_is_executed_is_sampled_learned_from_and_deployed(baseline, trimming):
    one = trimming(reading="plan", horizon=4, **{"extension.horizons": [2, 4, 6]})
    one.phase, one.budgets = "extension", {"tape_box": 30.0}
    groups = one.groups(one.recipe.extension, (2, 4, 6))
    rollouts = one.fleet.collect(groups)
    length = rollouts.trace.length
    assert [int(length[rollouts.episode == i][0]) for i in range(3)] == [2, 4, 6]
    beyond = torch.arange(6)[None] >= length[:, None]
    assert (rollouts.trace.log_prob[beyond] == 0).all() and (rollouts.trace.drawn.actions[beyond] == 0).all()
    assert not rollouts.executed[beyond.numpy()].any()
    found, _ = one.exploration.measure(one.policy, rollouts.trace)
    assert torch.allclose(found, rollouts.trace.log_prob, atol=1e-3)
    found.sum().backward()  # gradient reaches the weights that all lengths share
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in one.optimizer.trained.values())
    short = one.policy.shortened(4)
    assert short.contract.prediction_horizon == 4 and short.shortened(4) is short and one.policy.config.horizon == 6
    seen = observation(2, size=(64, 36))
    whole, plan = (policy.predict(seen, seeds=[1, 2]) for policy in (one.policy, short))
    assert plan.shape == (2, 4, 7) and not np.allclose(whole[:, :4], plan)  # it knows that it plans less
    one.close()
    again = trimming("again", reading="plan", horizon=4)
    again.run()
    policy, manifest = checkpoint.load(again.run_dir / "trimmed")
    assert policy.config.horizon == manifest["contract"]["execution_horizon"] == 4


def test_progress_is_told_after_every_iteration(trimming):
    one = trimming(**{"extension.iterations": 0, "minutes": 500})
    told = []
    one._report = lambda **result: (Trimming._report(one, **result), told.append(progress.read(one.run_dir)))
    run_until(one, 3)
    assert [values["phase"] for values in told] == ["baseline", "selection", "saving"] + ["saving"] * 3  # without iterations: no stage 1
    assert [values["iteration"] for values in told[2:]] == [0, 1, 2, 3] and told[-1]["iterations"] == 4
    assert told[2]["eta_s"] is None and told[-1]["eta_s"] == pytest.approx(one.elapsed_s / 3, abs=0.6)
    assert 0 <= told[-1]["success_rate"] <= 1 and told[-1]["steps"] > 0 and told[-1]["horizon"] == one.horizon
    assert set(told[-1]["best"]) == {"iteration", "success_rate", "steps", "calls"} and "verdict" not in told[-1]
    assert one.phase == "saving" and one._next() == "evidence"  # nor a stage 3


def test_a_checkpoint_acts_as_it_was_trained_when_the_recipe_says_so(trimming):
    one = trimming(as_trained=True, **{"sampler.level": 0.4})
    policy, _ = checkpoint.load(one._candidate(5))
    assert policy.config.acting_noise == 0.4 and policy.config.acting_gripper and one.policy.config.acting_noise == 0.0
    joints = trimming("joints alone", as_trained=True, **{"sampler.gripper": False})
    assert not checkpoint.load(joints._candidate(5))[0].config.acting_gripper
    again = trimming("by the ODE")
    again.policy.config = replace(again.policy.config, acting_noise=0.4)  # also where its baseline acts with noise
    assert checkpoint.load(again._candidate(5))[0].config.acting_noise == 0.0
    with pytest.raises(ConfigError, match="sampler.method cps and joint true"):
        trimming(as_trained=True, **{"sampler.method": "sde"})


def test_two_processes_do_not_work_in_one_run(trimming):
    one = trimming()
    with run_state.alone_in(one.run_dir):
        with pytest.raises(TrainingError, match=rf"run: process {os.getpid()} is at work in it; wait for its end or stop it"):
            one.run()
    with run_state.alone_in(one.run_dir):
        pass  # the holder has let go of it


def test_other_settings_do_not_continue_a_run(trimming):
    one = trimming()
    one.save_state()
    with pytest.raises(TrainingError, match="belongs to other settings"):
        trimming(**{"reward.stability": 0.0}).run()


def test_two_processes_play_what_one_plays(baseline):
    policy, _ = checkpoint.load(baseline)
    exploration = explore(policy, Sampler("cps", joint=True), frozen_prefix=True)
    grounds = Grounds("reach_task:ReachEnv", image_size=(64, 36), lanes=4)
    groups = [Group("tape_box", seed, (2, 4, 6), draw=10 * seed) for seed in range(3)]
    here, there = Fleet(grounds, policy, exploration), Fleet(grounds, policy, exploration, processes=2)
    try:
        ours, theirs = here.collect(groups), there.collect(groups)
        assert ours.results == theirs.results
        for i in range(9):  # the chunks may come in another order, but belong to the same episodes
            mine, other = (
                rollouts.trace.log_prob[torch.from_numpy(np.flatnonzero(rollouts.episode == i))] for rollouts in (ours, theirs)
            )
            assert torch.allclose(mine.sort(0).values, other.sort(0).values, atol=1e-4)
        with pytest.raises(TrainingError, match="rollout process failed: ValueError: .*same number"):
            there.collect([groups[0], groups[1], groups[0]])
        there._workers[1]._process.kill()
        with pytest.raises(TrainingError, match="ended with exit code -9; the same command resumes"):
            there.collect(groups)
    finally:
        there.close()


def test_ray_workers_play_what_this_process_plays_and_a_lost_one_is_told(baseline):
    ray = pytest.importorskip("ray", reason="Ray is an extra of its own")
    policy, _ = checkpoint.load(baseline)
    exploration = explore(policy, Sampler("cps", joint=True), frozen_prefix=True)
    grounds = Grounds("reach_task:ReachEnv", image_size=(64, 36), lanes=4)
    groups = [Group("tape_box", seed, (2, 4, 6), draw=10 * seed) for seed in range(2)]
    here, there = Fleet(grounds, policy, exploration), Fleet(grounds, policy, exploration, processes=2, ray="local")
    try:
        assert there.collect(groups).results == here.collect(groups).results
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(0.5)
        assert there.collect(groups).results == here.collect(groups).results  # actors play with the present weights
        ray.kill(there._workers[1]._actor)
        with pytest.raises(TrainingError, match="a Ray worker failed: .*; the same command resumes"):
            there.collect(groups)
    finally:
        there.close()
        ray.shutdown()


def test_groups_are_scenes_of_training_alone_and_tasks_take_turns(trimming):
    one = trimming()
    one.tasks, one.phase = ("tape_box", "flip_mug", "hang_mug"), "saving"
    seen = []
    for one.iteration in range(20):
        groups = one.groups(one.recipe.saving, (5, 6))
        assert all(group.horizons == (5, 6, 5) and group.seed >= trim.TRAINING_SEED for group in groups)
        seen += groups
    assert [group.task for group in seen[:4]] == ["tape_box", "flip_mug", "hang_mug", "tape_box"]
    draws = {group.draw + member for group in seen for member in range(3)}
    assert len(draws) == 3 * len(seen) and len({group.seed for group in seen}) == len(seen)


def test_rollouts_and_evaluation_meet_the_latency_that_the_recipe_names(trimming):
    one = trimming(mode="async", latency_s=0.1)
    try:
        rollouts = one.fleet.collect([Group("tape_box", 7, (2, 3), draw=5)])
        late = [skipped for result in rollouts.results[0] for _, skipped, _ in result.looks[1:]]
        assert sum(late) > 0  # the arm went on while the policy looked
        for result, row in zip(rollouts.results[0], (0, 1)):
            mine = rollouts.executed[rollouts.episode == row]
            assert mine.sum() == result.steps  # what was skipped is not learned from
        (report,) = one._play(one.recipe.parent, None, 2, 3)
        assert (report["mode"], report["latency_s"]) == ("async", 0.1)
    finally:
        one.close()


def test_training_loses_the_episode_where_the_robot_would_cut_the_chunk(trimming, monkeypatch):
    """What a cut does not punish a policy learns to ask for: FlipMug's went from 97 to 80 % and from 11 to 20 calls."""
    near = SafetyLimits()
    reach = [0.02] + [3.0] * 5
    narrow = replace(
        near,
        position_low=[*(np.array(READY)[:6] - reach), near.position_low[6]],
        position_high=[*(np.array(READY)[:6] + reach), near.position_high[6]],
        limit_tolerance_rad=0.0,
        joint_margin_rad=0.0,
    )
    monkeypatch.setattr("policytrim_ros.training.rollout._guard", lambda: SafetyFilter(narrow))
    one = trimming(mode="async", latency_s=0.1)
    try:
        rollouts = one.fleet.collect([Group("tape_box", seed, (6, 6), draw=10 * seed) for seed in range(4)])
        results = [result for row in rollouts.results for result in row]
        assert sum(bool(result.held) for result in results) > 0 and not any(result.chunks_cut for result in results)
        (report,) = one._play(one.recipe.parent, None, 6, 8)
        assert sum(episode["chunks_cut"] for episode in report["episodes_list"]) > 0
    finally:
        one.close()


def test_a_lost_episode_costs_as_much_as_one_that_is_given_up(trimming):
    one = trimming(limit=2.0)
    one.budgets = {"tape_box": 50.0}
    held = {"outcome": "failure", "steps": 3}
    row = {"task": "tape_box", "episodes_list": [{"outcome": "success", "steps": 40}, held]}
    assert one._cost(row) == 0.5 * (40 + 100)


def test_a_collapsed_policy_is_given_up_for_the_best(trimming):
    one = trimming(**{"extension.iterations": 0, "saving.iterations": 6, "saving.groups": 4, "collapse": 0.2, "check_every": 4})
    iterate = one._iterate

    def ruin(*arguments):
        figures = iterate(*arguments)
        if one.iteration == 3:
            with torch.no_grad():
                for parameter in one.optimizer.trained.values():
                    parameter.fill_(3.0)  # never by chance a policy that succeeds
        return figures

    one._iterate = ruin
    one.run()
    assert "collapse" in one.ended["saving"] and len(one.history) == 4
    assert max(parameter.abs().max() for parameter in one.optimizer.trained.values()) < 3  # the ruin is gone


def test_the_wall_clock_budget_ends_a_stage(trimming):
    one = trimming(**{"minutes": 1e-4})
    one.run()
    assert len(one.history) == 2 and set(one.ended.values()) == {"the wall-clock budget is used up"}


@pytest.mark.parametrize("family", ["parallel", "autoregressive"])
def test_token_policies_are_trimmed_too(family, dataset, tmp_path):
    from dataclasses import replace

    from policytrim_ros.policies.checkpoint import FAMILIES

    network = dict(hidden=16, feed_forward=16, layers=2, heads=2, key_value_heads=2)
    network |= {} if family == "autoregressive" else {"horizon": 6}
    recipe = replace(
        reach_recipe(steps=60, batch=16, learning_rate=3e-3, flow_samples=1),
        family=family,
        network=FAMILIES[family].config(**network),
        execution_horizon=1,
    )
    trainer = sft.Trainer(recipe, dataset, tmp_path / "sft", progress=False, device="cpu")
    trainer.run()
    trainer.save_checkpoint(tmp_path / "parent")
    little = {**LITTLE, "parent": str(tmp_path / "parent"), "extension.iterations": 0, "horizon": recipe.network.horizon}
    hastened = {**little, **HASTENING, "horizon": recipe.network.horizon}
    with pytest.raises(ConfigError, match="only flow policies explore a tempo, not the"):
        Trimming(load_trim(None, hastened), tmp_path / "hastened", progress=False)
    with pytest.raises(ConfigError, match="only flow policies act by a sampler, not the"):
        Trimming(load_trim(None, {**little, "as_trained": True}), tmp_path / "acting", progress=False)
    one = Trimming(load_trim(None, little), tmp_path / "run", progress=False, lanes=4, say=lambda text: None)
    try:
        one.run()
    except TrainingError as error:
        assert "never succeeded" in str(error)  # so little training may not be enough
    else:
        assert len(one.history) == 4


# -- judgement ------------------------------------------------------------------------------------------------------


def rows(outcomes, steps, calls, horizon=5, task="tape_box"):
    episodes = [
        {"seed": seed, "outcome": outcome, "steps": s, "calls": c, "seconds": s / 20}
        for seed, (outcome, s, c) in enumerate(zip(outcomes, steps, calls))
    ]
    return {"task": task, "horizon": horizon, "episodes_list": episodes}


def test_fewer_steps_and_calls_at_equal_success_are_an_improvement():
    won = ["success"] * 97 + ["truncated"] * 3
    before, after = (
        rows(won, [200 + i % 7 for i in range(100)], [40] * 100),
        rows(won, [100 + i % 5 for i in range(100)], [7] * 100),
    )
    found = evidence.judge([before], [after], 0.05, 0.95)
    assert found["improvement"] and found["verdict"].startswith("an improvement: success 0.970 -> 0.970")
    assert found["rows"][0]["steps"]["ratio"][0] == pytest.approx(2.0, abs=0.1)
    assert found["rows"][0]["calls"]["ratio"][0] == pytest.approx(40 / 7)


@pytest.mark.parametrize(
    "successes, steps, calls, reason",
    [(80, 100, 7, "success may be lower by up to"), (97, 200, 7, "steps are not shown"), (97, 100, 40, "calls are not shown")],
)
def test_anything_less_is_none(successes, steps, calls, reason):
    before = rows(["success"] * 97 + ["truncated"] * 3, [200] * 100, [40] * 100)
    after = rows(["success"] * successes + ["truncated"] * (100 - successes), [steps] * 100, [calls] * 100)
    found = evidence.judge([before], [after], 0.05, 0.95)
    assert not found["improvement"] and reason in found["verdict"]


def test_few_episodes_are_not_enough():
    before, after = rows(["success"] * 10, [200] * 10, [40] * 10), rows(["success"] * 10, [100] * 10, [7] * 10)
    assert not evidence.judge([before], [after], 0.05, 0.95)["improvement"]
    assert "success may be lower" in evidence.judge([before], [after], 0.05, 0.95)["verdict"]


def test_the_longest_horizon_within_the_tolerance_is_selected():
    assert select({5: 0.9, 10: 0.88, 15: 0.80}, 0.03) == 10
    assert select({5: 0.9, 10: 0.7, 15: 0.9}, 0.0) == 15
    assert select({5: 0.9, 10: 0.7, 15: 0.6}, 0.03) == 5


# -- settings and the command line ----------------------------------------------------------------------------------


def test_settings_come_from_a_file_and_are_changed_by_name(tmp_path):
    path = tmp_path / "trim.yaml"
    path.write_text("name: mine\nsaving: {iterations: 7}\nreward: {form: code}\ntasks: [tape_box]\n")
    recipe = load_trim(path, dict([parse_change("saving.groups=3"), parse_change("reward.stability=0")]))
    assert (recipe.saving.iterations, recipe.saving.groups, recipe.reward.form, recipe.reward.stability) == (7, 3, "code", 0)
    assert recipe.tasks == ("tape_box",) and recipe.digest != load_trim(path).digest
    assert load_trim(path).extension.iterations == load_trim().extension.iterations
    assert load_trim(path, dict([parse_change("grpo.learning_rate=3e-5")])).grpo.learning_rate == 3e-5
    for change, words in [
        ("saving.iteration=3", "unknown key 'iteration'"),
        ("nothing.iterations=3", "there is no section 'nothing'"),
        ("tasks=[tape]", "task 'tape' does not exist"),
        ("alpha=0.5", "allowed range is 1 to 10"),
        ("alpha", "expected NAME=VALUE"),
    ]:
        with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
            load_trim(path, dict([parse_change(change)]))


def test_what_does_not_fit_the_checkpoint_is_refused(trimming):
    with pytest.raises(ConfigError, match="was not trained for flip_mug, but tape_box"):
        trimming(tasks=["flip_mug"])
    with pytest.raises(ConfigError, match="predicts only H = 6"):
        trimming(**{"saving.horizons": [9]})
    with pytest.raises(ConfigError, match="predicts only H = 6"):
        trimming(horizon=9)


def test_the_command_says_what_came_of_it(baseline, tmp_path, capsys):
    parser = argparse.ArgumentParser()
    trim.add_arguments(parser)
    changes = [f"{name}={json.dumps(value)}" for name, value in LITTLE.items()]
    words = ["--checkpoint", str(baseline), "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out"), "--set", *changes]
    code = trim.main(parser.parse_args(words))
    said = capsys.readouterr().out
    assert code in (0, 3) and (code == 0) == (tmp_path / "out").exists()
    assert "trim: baseline at h = 5" in said and ("an improvement" in said or "not published" in said)
    assert trim.main(parser.parse_args(["--checkpoint", str(tmp_path)])) == 1
    assert "is not a checkpoint" in capsys.readouterr().out
    trim.publish(tmp_path / "run", tmp_path / "out")
    told = progress.read(tmp_path / "run")
    assert told["checkpoint"] == str(tmp_path / "out") and told["verdict"] in said
    assert told["weights_sha256"] == checkpoint.verify(tmp_path / "out")["files"]["model.safetensors"]
    tensors, facts = run_state.load(tmp_path / "run" / trim.STATE_FILE)
    assert facts["phase"] == "evidence" and tensors
