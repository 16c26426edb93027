"""The tempo of a chunk: the same path sooner or later, and a density of one number that learning can use."""

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from policy_samples import observation, policy
from torch.distributions import Normal, kl_divergence

from policytrim_ros.policies.samplers import Chain, Sampler, log_prob, rollout, transitions
from policytrim_ros.policies.tempo import Tempo, hasten
from policytrim_ros.training.exploration import FlowExploration

LOW, HIGH = -torch.ones(6, 7), torch.ones(6, 7)  # normalised = relative
TEMPO = Sampler("cps", joint=True, tempo=0.15)


def line(velocity=0.1, horizon=6):
    """A chunk (1, H, 7) that moves all joints evenly; the gripper closes between the third action and the fourth."""
    x = velocity * torch.arange(1, horizon + 1)[None, :, None].repeat(1, 1, 7)
    x[..., 6] = torch.tensor([1.0, 1, 1, 0, 0, 0])[:horizon]
    return x


def progress(now, x):
    """By how much ``now`` is faster than x."""
    return Tempo.of(now, x, torch.zeros(len(x)), std=0.15, across=0.1, low=LOW, high=HIGH).moved


def generators(batch, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(batch)]


def test_at_its_own_tempo_a_chunk_is_itself():
    x = torch.randn(3, 6, 7)
    torch.testing.assert_close(hasten(x, torch.zeros(3), LOW, HIGH), x)


def test_an_even_motion_becomes_faster_or_slower_as_a_whole_also_beyond_its_end():
    for tempo in (0.5, -0.5, 0.15):
        found = hasten(line(), torch.tensor([tempo]), LOW, HIGH)
        torch.testing.assert_close(found[..., :6], (1 + tempo) * line()[..., :6])


def test_at_no_tempo_at_all_the_arm_stays_at_the_setpoint():
    torch.testing.assert_close(hasten(line(), torch.tensor([-1.0]), LOW, HIGH)[..., :6], torch.zeros(1, 6, 6))


def test_the_gripper_moves_with_the_path_and_then_stays():
    found = hasten(line(), torch.tensor([1.0]), LOW, HIGH)[0, :, 6]
    torch.testing.assert_close(found, torch.tensor([1.0, 0, 0, 0, 0, 0]))
    assert (hasten(line(), torch.tensor([-0.5]), LOW, HIGH)[0, :, 6] == 1).all()  # it closes in what is not played


def test_what_is_played_is_a_path_in_the_units_of_the_robot():
    """Normalisation differs from action to action; the path does not."""
    low, high = -torch.arange(1.0, 7)[:, None].repeat(1, 7), 2 * torch.arange(1.0, 7)[:, None].repeat(1, 7)
    x = 2 * (line() - low) / (high - low) - 1
    found = (hasten(x, torch.tensor([0.5]), low, high) + 1) / 2 * (high - low) + low
    torch.testing.assert_close(found[..., :6], 1.5 * line()[..., :6])


def test_each_row_has_a_tempo_of_its_own():
    x, tempo = torch.randn(3, 6, 7), torch.tensor([0.3, 0.0, -0.2])
    together = hasten(x, tempo, LOW, HIGH)
    for row in range(3):
        torch.testing.assert_close(together[row], hasten(x[row : row + 1], tempo[row : row + 1], LOW, HIGH)[0])


def test_progress_is_the_tempo_of_what_has_become_faster():
    x = line()
    x[..., 6] = 0.0
    for tempo in (0.1, -0.1, 0.0):
        found = progress(hasten(x, torch.tensor([tempo]), LOW, HIGH), x)
        torch.testing.assert_close(found, torch.tensor([tempo]))


def test_what_lies_across_the_direction_of_the_tempo_is_no_progress():
    x = line()
    x[..., 1:] = 0.0  # one joint moves
    across = torch.zeros_like(x)
    across[..., 3] = torch.randn(6)
    torch.testing.assert_close(progress(x + across, x), torch.zeros(1))


def test_the_tempo_follows_the_generator_and_is_played():
    flow = policy()
    context = flow.encode(flow.inputs(observation(batch=4)))
    first, again, plain = (
        rollout(flow, context, flow.noise(4, generators(4)), sampler, generators(4, 10))
        for sampler in (TEMPO, TEMPO, Sampler("cps", joint=True))
    )
    assert torch.equal(first.tempo, again.tempo) and len(first.tempo.unique()) == 4
    torch.testing.assert_close(first.x, plain.x)  # a tempo changes nothing before it
    torch.testing.assert_close(
        first.played(flow), hasten(plain.actions, first.tempo, flow.action_low, flow.action_high)
    )
    assert torch.equal(plain.played(flow), plain.actions)
    wide = rollout(flow, context.rows(torch.zeros(2000, dtype=torch.long)), flow.noise(2000), TEMPO).tempo
    assert abs(float(wide.mean())) < 5 * 0.15 / 2000**0.5 and abs(float(wide.std()) / 0.15 - 1) < 5 / 4000**0.5


def test_its_density_is_computed_again_and_prefers_weights_that_are_faster_where_faster_was_drawn():
    flow = policy()
    context = flow.encode(flow.inputs(observation(batch=4))).detach()
    with torch.no_grad():
        chain = rollout(flow, context, flow.noise(4, generators(4)), TEMPO, generators(4, 10))
    torch.testing.assert_close(log_prob(flow, context, chain, TEMPO), chain.log_prob, rtol=1e-4, atol=1e-4)
    tempo = transitions(flow, context, chain, TEMPO).tempo
    assert torch.equal(tempo.drawn, chain.tempo)
    torch.testing.assert_close(tempo.moved, torch.zeros(4), rtol=0, atol=1e-4)
    found = tempo.log_prob()
    torch.testing.assert_close(found, Normal(0.0, 0.15).log_prob(chain.tempo), rtol=1e-4, atol=1e-3)
    (slope,) = torch.autograd.grad(found.sum(), tempo.moved, retain_graph=True)
    assert torch.equal(torch.sign(slope), torch.sign(chain.tempo))
    found.sum().backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in flow.pi0.parameters())


def test_every_action_has_an_equal_share_in_it():
    flow = policy()
    with torch.no_grad():
        context = flow.encode(flow.inputs(observation(batch=4)))
        chain = rollout(flow, context, flow.noise(4, generators(4)), TEMPO, generators(4, 10))
    without = Chain(chain.x, chain.step, chain.log_prob)
    share = chain.log_prob - log_prob(flow, context, without, Sampler("cps", joint=True))
    expected = Normal(0.0, 0.15).log_prob(chain.tempo)[:, None] / 6
    torch.testing.assert_close(share, expected.expand(4, 6), rtol=1e-3, atol=1e-3)


def test_beside_it_the_steps_count_with_their_weight():
    flow, light = policy(), replace(TEMPO, weight=0.1)
    with torch.no_grad():
        context = flow.encode(flow.inputs(observation(batch=4)))
        chain, same = (rollout(flow, context, flow.noise(4, generators(4)), each, generators(4, 10)) for each in (TEMPO, light))
    torch.testing.assert_close(same.x, chain.x)
    of_tempo = Normal(0.0, 0.15).log_prob(chain.tempo)[:, None] / 6
    torch.testing.assert_close(same.log_prob, 0.1 * (chain.log_prob - of_tempo) + of_tempo, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_prob(flow, context, same, light), same.log_prob, rtol=1e-4, atol=1e-4)


def test_a_reference_is_far_along_the_tempo_by_its_deviation_and_off_its_path_by_the_other():
    x = line()
    x[..., 1:] = 0.0  # one joint moves
    gap = torch.zeros_like(x)
    gap[..., 3] = 0.2  # across
    ours, across, faster = (
        Tempo.of(now, x, torch.zeros(1), std=0.15, across=0.1, low=LOW, high=HIGH)
        for now in (x, x + gap, hasten(x, torch.tensor([0.3]), LOW, HIGH))
    )
    assert ours.kl(ours).max() < 1e-6
    torch.testing.assert_close(ours.kl(across), torch.full((1, 6), 0.5 * (0.2 / 0.1) ** 2 / 7))
    torch.testing.assert_close(ours.kl(faster), torch.full((1, 6), 0.5 * (0.3 / 0.15) ** 2 / (6 * 7)))


def test_the_divergence_of_a_chunk_is_that_of_its_steps_and_of_its_tempo():
    flow, other = policy(), policy()
    with torch.no_grad():
        context = flow.encode(flow.inputs(observation()))
        chain = rollout(flow, context, flow.noise(2), TEMPO)
        ours = transitions(flow, context, chain, TEMPO)
        theirs = transitions(other, other.encode(other.inputs(observation())), chain, TEMPO)
    steps = kl_divergence(Normal(ours.mean, ours.std), Normal(theirs.mean, theirs.std)).sum(1).mean(-1)
    torch.testing.assert_close(ours.kl(theirs), steps + ours.tempo.kl(theirs.tempo))
    assert ours.kl(ours).max() < 1e-6 and (ours.tempo.kl(theirs.tempo) > 0).all()


@pytest.mark.parametrize("plans", [False, True])
def test_an_exploration_plays_what_it_can_measure_again(plans):
    flow, exploration = policy(), FlowExploration(TEMPO, plans=plans)
    inputs = flow.inputs(observation(batch=4))
    x, trace = exploration.act(flow, inputs, generators(4), horizons=[4, 6, 4, 6])
    assert x.shape == (4, 6, 7) and not torch.equal(x, trace.drawn.actions)
    found, divergence = exploration.measure(flow, trace, nullcontext(flow))
    torch.testing.assert_close(found, trace.log_prob, rtol=1e-4, atol=1e-3)
    assert divergence.abs().max() < 1e-5
    part = trace.rows(torch.tensor([3, 0]))
    torch.testing.assert_close(exploration.measure(flow, part)[0], trace.log_prob[[3, 0]], rtol=1e-4, atol=1e-3)
