"""GRPO: the objective against numbers worked out by hand, ratios of 1 before the first update, and that it learns."""

import math

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from policy_samples import observation, policy
from reach_task import ReachEnv
from test_token_policies import make

from policytrim_ros.policies.samplers import Sampler
from policytrim_ros.training.exploration import Trace, explore
from policytrim_ros.training.groups import Group, collect
from policytrim_ros.training.grpo import Experience, GrpoConfig, Optimizer, objective

SAMPLERS = [Sampler("sde"), Sampler("sde", joint=True), Sampler("cps", level=0.7, joint=True)]


def case(log_ratio, advantage, executed=None, kl=None):
    now = torch.tensor(log_ratio, dtype=torch.float64)
    executed = torch.ones_like(now, dtype=torch.bool) if executed is None else torch.tensor(executed)
    kl = torch.zeros_like(now) if kl is None else torch.tensor(kl, dtype=torch.float64)
    return now, torch.zeros_like(now), executed, torch.tensor(advantage, dtype=torch.float64), kl


def test_a_chunk_has_one_ratio_of_its_executed_actions():
    executed = [[True, True, False], [True, False, False]]
    loss, figures = objective(*case([[0.1, 0.05, 9.0], [-0.3, 5.0, 5.0]], [1.0, 2.0], executed), GrpoConfig())
    assert loss.item() == pytest.approx(-(math.exp(0.15) + 2 * math.exp(-0.3)) / 2)
    assert figures["ratio"] == pytest.approx((math.exp(0.15) + math.exp(-0.3)) / 2) and figures["clipped"] == 0.5


def test_at_the_level_of_actions_every_executed_action_has_its_own_ratio():
    executed = [[True, True, False], [True, False, False]]
    loss, _ = objective(*case([[0.1, 0.05, 9.0], [-0.1, 5.0, 5.0]], [1.0, 2.0], executed), GrpoConfig(level="action"))
    assert loss.item() == pytest.approx(-(math.exp(0.1) + math.exp(0.05) + 2 * math.exp(-0.1)) / 3)


@pytest.mark.parametrize(
    "log_ratio, advantage, gain",
    [
        (math.log(1.5), 1.0, 1.2),  # good, already much likelier: no more pay
        (math.log(0.5), 1.0, 0.5),
        (math.log(0.5), -1.0, -0.8),  # bad, already much less likely: no more blame
        (math.log(2.0), -1.0, -2.0),
        (math.log(9.0), -1.0, -3.0),  # the dual clip bounds the blame
    ],
)
def test_the_clips(log_ratio, advantage, gain):
    loss, _ = objective(*case([[log_ratio]], [advantage]), GrpoConfig())
    assert loss.item() == pytest.approx(-gain)


def test_the_divergence_is_a_mean_over_executed_actions():
    executed = [[True, True, False], [True, False, False]]
    values = case([[0.0] * 3] * 2, [0.0, 0.0], executed, kl=[[1.0, 2.0, 50.0], [3.0, 50.0, 50.0]])
    loss, figures = objective(*values, GrpoConfig(kl=0.5))
    assert loss.item() == pytest.approx(0.5 * 2.0) and figures["kl"] == pytest.approx(2.0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(
    "family, sampler", [*(("flow", sampler) for sampler in SAMPLERS), ("parallel", Sampler()), ("autoregressive", Sampler())]
)
def test_before_the_first_update_every_ratio_is_one_and_an_update_moves_it(family, sampler, frozen):
    torch.manual_seed(0)
    made = (policy() if family == "flow" else make(family)).eval()
    frozen = frozen and family == "flow"
    exploration = explore(made, sampler, frozen_prefix=frozen)
    horizon = made.config.horizon
    parts = [exploration.act(made, made.inputs(observation(batch)), None)[1] for batch in (3, 2)]
    trace = Trace.cat(parts)
    log_prob, kl = exploration.measure(made, trace, nullcontext(made))
    assert log_prob.shape == (5, horizon) and torch.allclose(log_prob, trace.log_prob, atol=1e-4)
    assert torch.allclose(kl, torch.zeros_like(kl), atol=1e-6)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])
    experience = Experience(trace, torch.ones(5, horizon, dtype=torch.bool), advantage)
    optimizer = Optimizer(made, exploration, GrpoConfig(learning_rate=1e-3, warmup_updates=0, minibatches=1))
    before = {key: value.detach().clone() for key, value in made.named_parameters()}
    figures = optimizer.update(experience, np.random.default_rng(0))
    assert figures["ratio"] == pytest.approx(1.0, abs=1e-3) and figures["old_kl"] == pytest.approx(0.0, abs=1e-4)
    after = exploration.measure(made, trace)[0].sum(1) - log_prob.sum(1)
    assert (after[advantage > 0]).mean() > (after[advantage < 0]).mean()
    moved = {key for key, value in made.named_parameters() if not torch.equal(value, before[key])}
    assert moved and moved <= set(optimizer.trained)
    assert not frozen or not any(key.startswith("pi0.model.vlm") for key in moved)


def lanes(count=4):
    return [ReachEnv("tape_box", image_size=(64, 36)) for _ in range(count)]


def test_a_group_shares_its_scene_and_keeps_what_was_executed():
    made = policy().eval()
    exploration = explore(made, Sampler("sde", joint=True))
    groups = [Group("tape_box", 1, (2, 4, 6), draw=100), Group("tape_box", 2, (6, 6), draw=200)]
    # the small policy of the tests sees two cameras
    rollouts = collect(lanes(), made, exploration, groups, cameras=("front", "wrist"))
    assert [len(group) for group in rollouts.results] == [3, 2]
    assert [result.seed for group in rollouts.results for result in group] == [1, 1, 1, 2, 2]
    results = [result for group in rollouts.results for result in group]
    for i, result in enumerate(results):
        mine = rollouts.executed[rollouts.episode == i]
        assert len(mine) == result.calls and mine.sum() == result.steps
        mine = mine[mine.any(axis=1)]  # what an untrained policy proposes may be refused and is not played then
        assert (mine.sum(1)[:-1] == (2, 4, 6, 6, 6)[i]).all() and mine[:, 0].all()
    log_prob, _ = exploration.measure(made, rollouts.trace)
    assert torch.allclose(log_prob, rollouts.trace.log_prob, atol=1e-4)
    experience = rollouts.experience([None, np.array([1.0, -1.0])])
    assert len(experience) == rollouts.executed[rollouts.episode > 2].any(1).sum() and set(experience.advantage.tolist()) == {
        1.0,
        -1.0,
    }
    assert rollouts.experience([None, None]) is None


def test_rollouts_depend_on_their_numbers_alone():
    made = policy().eval()
    exploration = explore(made, Sampler("sde", joint=True))
    groups = [Group("tape_box", 1, (3,) * 4, draw=100), Group("tape_box", 2, (3,) * 4, draw=104)]
    wide, narrow = (collect(lanes(count), made, exploration, groups, cameras=("front", "wrist")) for count in (8, 1))
    steps = [[[result.steps for result in group] for group in rollouts.results] for rollouts in (wide, narrow)]
    assert steps[0] == steps[1]
    with pytest.raises(ValueError, match="same number"):
        collect(lanes(), made, exploration, [groups[0], Group("tape_box", 2, (3,), draw=101)], cameras=("front", "wrist"))


def test_what_pays_becomes_more_likely():
    """A bandit: chunks that move joint 1 up pay. After some updates the policy's own chunks move it up."""
    torch.manual_seed(1)
    made = policy().eval()
    exploration = explore(made, Sampler("sde", joint=True), frozen_prefix=True)
    optimizer = Optimizer(made, exploration, GrpoConfig(learning_rate=3e-3, minibatches=2))
    inputs, rng = made.inputs(observation(1)).rows(torch.zeros(64, dtype=torch.long)), np.random.default_rng(0)
    means = []
    for _ in range(12):
        x, trace = exploration.act(made, inputs)
        reward = x[:, :, 0].mean(1)
        means.append(reward.mean().item())
        advantage = (reward - reward.mean()) / (reward.std() + 1e-6)
        optimizer.update(Experience(trace, torch.ones(x.shape[:2], dtype=torch.bool), advantage), rng)
    assert np.mean(means[-3:]) > np.mean(means[:3]) + 0.1


def test_a_broken_number_stops_before_it_reaches_the_weights():
    made = policy().eval()
    exploration = explore(made)
    _, trace = exploration.act(made, made.inputs(observation(2)), None)
    experience = Experience(trace, torch.ones(2, 6, dtype=torch.bool), torch.tensor([float("nan"), 1.0]))
    optimizer = Optimizer(made, exploration)
    with pytest.raises(FloatingPointError, match="update 0"):
        optimizer.update(experience, np.random.default_rng(0))
    assert all(torch.isfinite(parameter).all() for parameter in made.parameters())
