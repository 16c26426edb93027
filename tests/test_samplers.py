"""Stochastic sampling of flow chunks: the right density, the right marginals, the same number when it is computed again."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from policy_samples import observation, policy
from torch.distributions import Normal, kl_divergence

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.flow import NOISE_STD, Context
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.samplers import Chain, Sampler, log_prob, rollout, transitions

ALL = [Sampler(method=method, joint=joint) for method in ("sde", "cps", "noise") for joint in (False, True)]


def named(sampler):
    return f"{sampler.method}-{'joint' if sampler.joint else 'mixed'}"


def generators(batch, seed=0):
    return [torch.Generator().manual_seed(seed + row) for row in range(batch)]


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    made = policy(noise_head=True)
    torch.nn.init.normal_(made.noise_head[-1].weight, std=0.3)
    return made


class Field:
    """A velocity field written down by hand, where a policy is expected."""

    def __init__(self, velocity, steps=4, std=None):
        self.field, self.std, self.calls = velocity, std, 0
        self.config = SimpleNamespace(denoising_steps=steps)

    def velocity(self, context, x, tau):
        self.calls += 1
        return self.field(x, tau[:, None, None])

    def velocity_and_std(self, context, x, tau):
        return self.velocity(context, x, tau), self.std.expand_as(x)


def gaussian(mean, std, steps):
    """The exact velocity E[noise - action | x] when actions are N(mean, std^2)."""

    def velocity(x, tau):
        pull = (x - (1 - tau) * mean) / (tau**2 + (1 - tau) ** 2 * std**2)
        return tau * pull - (mean + (1 - tau) * std**2 * pull)

    return Field(velocity, steps)


# -- the mathematics of one step ------------------------------------------------------------------------------------


def test_flow_sde_is_the_density_of_the_papers():
    field, a, steps = Field(lambda x, tau: torch.sin(x) + tau), 0.4, 4
    sampler = Sampler(level=a, joint=True)
    chain = rollout(field, None, torch.randn(3, 5, 2, dtype=torch.float64), sampler)
    expected, dt = 0, -1 / steps
    for k in range(steps):  # the expanded form of Flow-GRPO, with dt < 0
        tau = 1 - k / steps
        x, v = chain.x[:, k], torch.sin(chain.x[:, k]) + tau
        sigma = a * math.sqrt(tau / (1 - (tau + dt if k == 0 else tau)))
        mean = x * (1 + sigma**2 / (2 * tau) * dt) + v * (1 + sigma**2 * (1 - tau) / (2 * tau)) * dt
        expected = expected + Normal(mean, sigma * math.sqrt(-dt)).log_prob(chain.x[:, k + 1]).sum(-1)
    torch.testing.assert_close(chain.log_prob, expected)


def test_flow_cps_is_the_density_of_the_paper_and_its_last_step_has_none():
    field, a, steps = Field(lambda x, tau: x**2 - tau), 0.6, 4
    chain = rollout(field, None, torch.randn(3, 5, 2, dtype=torch.float64), Sampler(method="cps", level=a, joint=True))
    expected = 0
    for k in range(steps - 1):
        tau, after = 1 - k / steps, 1 - (k + 1) / steps
        x, v = chain.x[:, k], chain.x[:, k] ** 2 - tau
        std = after * math.sin(a * math.pi / 2)
        mean = (x - tau * v) * (1 - after) + (x + v * (1 - tau)) * math.sqrt(after**2 - std**2)
        expected = expected + Normal(mean, std).log_prob(chain.x[:, k + 1]).sum(-1)
    torch.testing.assert_close(chain.log_prob, expected)
    last = chain.x[:, -2]
    torch.testing.assert_close(chain.x[:, -1], last - (last**2 - 1 / steps) / steps)


def test_flow_noise_is_an_euler_step_with_the_head_s_standard_deviation():
    std = torch.tensor([0.1, 0.3], dtype=torch.float64)
    field = Field(lambda x, tau: tau * x, std=std)
    chain = rollout(field, None, torch.randn(3, 5, 2, dtype=torch.float64), Sampler(method="noise", joint=True))
    x = chain.x
    tau = torch.tensor([1, 0.75, 0.5, 0.25], dtype=torch.float64)[None, :, None, None]
    expected = Normal(x[:, :-1] * (1 - tau / 4), std).log_prob(x[:, 1:]).sum((1, 3))
    torch.testing.assert_close(chain.log_prob, expected)


@pytest.mark.parametrize("method", ["sde", "cps"])
def test_the_density_of_a_step_integrates_to_one(method):
    field, sampler = Field(lambda x, tau: torch.sin(3 * x)), Sampler(method=method, steps=3)
    grid = torch.linspace(-6, 6, 4001, dtype=torch.float64)
    for k in range(2):
        x = torch.full((len(grid), 4, 1, 1), 0.7, dtype=torch.float64)
        x[:, k + 1, 0, 0] = grid
        chain = Chain(x, torch.full((len(grid),), k), torch.zeros(len(grid), 1))
        total = torch.trapezoid(log_prob(field, None, chain, sampler)[:, 0].exp(), grid)
        assert abs(float(total) - 1) < 1e-6


def test_the_initial_noise_counts_when_asked():
    x = torch.randn(2, 3, 2)
    field = Field(lambda x, tau: x)
    with_it, without = (
        rollout(field, None, x, Sampler(joint=True, initial=initial), generators(2)).log_prob for initial in (True, False)
    )
    torch.testing.assert_close(with_it - without, Normal(0.0, 1.0).log_prob(x).sum(-1))


# -- distributions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_sde_marginals_are_those_of_the_ode(joint):
    mean, std, steps, count = 0.7, 0.4, 100, 20_000
    torch.manual_seed(0)
    chain = rollout(gaussian(mean, std, steps), None, torch.randn(count, 1, 1), Sampler(level=0.3, joint=joint))
    for k in range(0, steps + 1, 10):
        tau = 1 - k / steps
        expected = math.sqrt(tau**2 + (1 - tau) ** 2 * std**2)
        found = chain.x[:, k, 0, 0].double()
        assert abs(float(found.mean()) - (1 - tau) * mean) < 5 * expected / math.sqrt(count)
        assert abs(float(found.std()) / expected - 1) < 5 / math.sqrt(2 * count) + 0.005  # and the step size is not zero


def test_cps_keeps_the_coefficients_of_noise_and_action_however_few_the_steps():
    mean, steps, count = 0.7, 4, 20_000
    torch.manual_seed(0)
    chain = rollout(gaussian(mean, 0.0, steps), None, torch.randn(count, 1, 1), Sampler(method="cps", level=0.8, joint=True))
    for k in range(steps):
        tau, found = 1 - k / steps, chain.x[:, k, 0, 0].double()
        assert abs(float(found.mean()) - (1 - tau) * mean) < 5 * tau / math.sqrt(count)
        assert abs(float(found.std()) / tau - 1) < 5 / math.sqrt(2 * count)


@torch.no_grad()
@pytest.mark.parametrize("method", ["sde", "cps"])
@pytest.mark.parametrize("joint", [True, False])
def test_without_noise_they_are_the_ode(flow, method, joint):
    context, x = flow.encode(flow.inputs(observation())), torch.randn(2, 6, 7)
    ode = flow.integrate(context, x)
    far, near = (
        (rollout(flow, context, x, Sampler(method=method, level=level, joint=joint), generators(2)).actions - ode).abs().max()
        for level in (1e-2, 1e-4)
    )
    assert near < 1e-3 and near < far / 10


# -- chains of a policy ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ALL, ids=named)
def test_a_log_probability_computed_again_is_the_same(flow, sampler):
    inputs = flow.inputs(observation(batch=4))
    with torch.no_grad():
        chain = rollout(flow, flow.encode(inputs), flow.noise(4, generators(4)), sampler, generators(4, 10))
    again = log_prob(flow, flow.encode(inputs), chain, sampler)
    assert again.shape == (4, 6)
    torch.testing.assert_close((again - chain.log_prob).exp(), torch.ones(4, 6), rtol=0, atol=1e-5)
    torch.testing.assert_close((again - chain.log_prob).sum(1).exp(), torch.ones(4), rtol=0, atol=1e-4)
    again.sum().backward()
    for part in (flow.pi0.action_out_proj, flow.pi0.model.vlm.vision_tower):
        grads = [parameter.grad for parameter in part.parameters()]
        assert all(torch.isfinite(grad).all() for grad in grads) and any(grad.abs().sum() > 0 for grad in grads)
    flow.zero_grad()


@torch.no_grad()
@pytest.mark.parametrize("sampler", ALL, ids=named)
def test_a_gripper_that_does_not_explore_follows_the_ode_and_only_the_joints_count(flow, sampler):
    context, sampler = flow.encode(flow.inputs(observation())), replace(sampler, gripper=False)
    chain = rollout(flow, context, flow.noise(2, generators(2)), sampler, generators(2, 10))
    for k in range(4):
        tau = torch.full((2,), 1.0 - k / 4)
        ode = chain.x[:, k] - flow.velocity(context, chain.x[:, k], tau) / 4
        torch.testing.assert_close(chain.x[:, k + 1, :, 6], ode[..., 6], rtol=0, atol=1e-6)
    steps = transitions(flow, context, chain, sampler)
    joints = Normal(steps.mean[..., :6], steps.std[..., :6]).log_prob(steps.drawn[..., :6]).sum((1, -1))
    torch.testing.assert_close(steps.log_prob(), joints)
    torch.testing.assert_close(steps.log_prob(), chain.log_prob, rtol=0, atol=1e-4)
    moved = replace(steps, mean=steps.mean + torch.tensor([0.0] * 6 + [0.1]))
    assert torch.equal(moved.log_prob(), steps.log_prob()) and (moved.kl(steps) > 0).all()  # the divergence still holds it


@torch.no_grad()
@pytest.mark.parametrize("sampler", ALL, ids=named)
def test_a_row_does_not_depend_on_the_rest_of_the_batch(flow, sampler):
    seen = observation(batch=3)
    alone = Observation({k: v[2:] for k, v in seen.images.items()}, seen.state[2:], seen.instruction[2:])
    chains = []
    for each, seed in ((seen, 0), (alone, 2)):
        batch = len(each.state)
        context = flow.encode(flow.inputs(each))
        chains.append(rollout(flow, context, flow.noise(batch, generators(batch, seed)), sampler, generators(batch, seed + 10)))
    torch.testing.assert_close(chains[0].rows(slice(2, 3)).x, chains[1].x, rtol=1e-4, atol=1e-5)
    assert sampler.joint or chains[0].step[2] == chains[1].step[0]


@torch.no_grad()
@pytest.mark.parametrize("sampler", ALL[:2], ids=named)
def test_minibatches_can_be_cut_from_contexts_of_several_rollouts(flow, sampler):
    first, second = observation(batch=1), observation(batch=3)  # their sentences differ in length
    first = Observation(first.images, first.state, ["stand the mug upright"])
    contexts = [flow.encode(flow.inputs(seen)) for seen in (first, second)]
    assert contexts[0].mask.shape[1] < contexts[1].mask.shape[1]
    chains = [rollout(flow, context, flow.noise(len(context)), sampler) for context in contexts]
    context, chain, index = Context.cat(contexts), Chain.cat(chains), torch.tensor([3, 0])
    found = log_prob(flow, context.rows(index), chain.rows(index), sampler)
    torch.testing.assert_close(found, chain.log_prob[index], rtol=1e-4, atol=1e-4)


def test_a_kept_prefix_gets_no_gradient(flow):
    inputs = flow.inputs(observation())
    context = flow.encode(inputs).detach()
    chain = rollout(flow, context, flow.noise(2), Sampler())
    log_prob(flow, context, chain, Sampler()).sum().backward()
    assert all(parameter.grad is None for parameter in flow.pi0.model.vlm.parameters())
    assert flow.pi0.action_out_proj.weight.grad.abs().sum() > 0
    flow.zero_grad()


@pytest.mark.parametrize("sampler", ALL, ids=named)
def test_actions_that_were_not_executed_do_not_count(flow, sampler):
    inputs, executed = flow.inputs(observation()), 2
    with torch.no_grad():
        context = flow.encode(inputs)
        chain = rollout(flow, context, flow.noise(2), sampler)
    drawn = transitions(flow, context, chain, sampler)
    drawn.drawn.requires_grad_()
    drawn.log_prob()[:, :executed].sum().backward()
    assert (drawn.drawn.grad[:, :, executed:] == 0).all() and (drawn.drawn.grad[:, :, :executed] != 0).any()
    flow.zero_grad()


@torch.no_grad()
def test_the_random_step_is_uniform_and_one_evaluation_is_enough():
    for method, choices in (("sde", 4), ("cps", 3)):
        field, sampler = Field(lambda x, tau: x), Sampler(method=method)
        chain = rollout(field, None, torch.randn(4000, 1, 2), sampler, generators(4000))
        counts = torch.bincount(chain.step, minlength=4)
        assert (counts[choices:] == 0).all() and ((counts[:choices] / 4000 * choices - 1).abs() < 0.15).all()
        field.calls = 0
        log_prob(field, None, chain, sampler)
        assert field.calls == 1


@pytest.mark.parametrize("sampler", ALL, ids=named)
def test_the_gradient_is_that_of_finite_differences(sampler):
    weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    std = torch.tensor([0.2, 0.4], dtype=torch.float64)

    def found(value):
        field = Field(lambda x, tau: torch.sin(value * x) + tau * value, std=std * (1 + value**2))
        return log_prob(field, None, chain, sampler).sum()

    start = Field(lambda x, tau: torch.sin(0.3 * x) + tau * 0.3, std=std * 1.09)
    chain = rollout(start, None, torch.randn(3, 4, 2, dtype=torch.float64), sampler)
    found(weight).backward()
    with torch.no_grad():
        difference = (found(weight + 1e-5) - found(weight - 1e-5)) / 2e-5
    torch.testing.assert_close(weight.grad, difference, rtol=1e-7, atol=1e-7)


def test_the_gradient_of_the_network_is_that_of_finite_differences():
    torch.manual_seed(1)
    flow, sampler = policy().double(), Sampler(joint=True)
    inputs = flow.inputs(observation())
    inputs = replace(inputs, pixels=inputs.pixels.double(), state=inputs.state.double())
    chain = rollout(flow, flow.encode(inputs), flow.noise(2).double(), sampler, generators(2))
    log_prob(flow, flow.encode(inputs), chain, sampler).sum().backward()
    weights = [weight for weight in flow.pi0.parameters() if weight.grad is not None]
    directions = [torch.randn_like(weight) for weight in weights]
    slope = sum((weight.grad * direction).sum() for weight, direction in zip(weights, directions))
    ends, step = [], 1e-5
    with torch.no_grad():
        for shift in (step, -2 * step):
            for weight, direction in zip(weights, directions):
                weight.add_(direction, alpha=shift)
            ends.append(log_prob(flow, flow.encode(inputs), chain, sampler).sum())
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-3, atol=0)


def test_divergence_from_a_reference_is_that_of_the_gaussians(flow):
    inputs, other = flow.inputs(observation()), policy(noise_head=True)
    with torch.no_grad():
        context = flow.encode(inputs)
        for sampler in ALL:
            chain = rollout(flow, context, flow.noise(2), sampler)
            ours, theirs = transitions(flow, context, chain, sampler), transitions(other, other.encode(inputs), chain, sampler)
            assert (ours.kl(ours) == 0).all() and (ours.kl(theirs) > 0).all()
            by_hand = kl_divergence(Normal(ours.mean, ours.std), Normal(theirs.mean, theirs.std))
            torch.testing.assert_close(ours.kl(theirs), by_hand.sum(1).mean(-1))


# -- the noise head -------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_learned_noise_stays_in_its_range_and_differs_between_dimensions(flow):
    context = flow.encode(flow.inputs(observation()))
    _, std = flow.velocity_and_std(context, torch.randn(2, 6, 7), torch.ones(2))
    assert std.shape == (2, 6, 7) and NOISE_STD[0] <= std.min() < std.max() <= NOISE_STD[1]


def test_a_checkpoint_with_a_noise_head_loads_and_one_without_has_none_of_it(tmp_path):
    plain = policy()
    assert not any("noise_head" in name for name in plain.state_dict())
    plain.add_noise_head()
    checkpoint.save(tmp_path / "explorer", plain, made={})
    loaded, _ = checkpoint.load(tmp_path / "explorer")
    context, x = loaded.encode(loaded.inputs(observation())), torch.randn(2, 6, 7)
    _, std = loaded.velocity_and_std(context, x, torch.ones(2))
    torch.testing.assert_close(std, torch.full_like(std, math.sqrt(NOISE_STD[0] * NOISE_STD[1])))


def test_learned_noise_needs_the_head():
    plain = policy()
    with pytest.raises(ValueError, match="add_noise_head"):
        rollout(plain, plain.encode(plain.inputs(observation())), plain.noise(2), Sampler(method="noise"))


# -- misuse ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, words",
    [
        (dict(method="dance"), "sde"),
        (dict(level=0.0), "level"),
        (dict(initial=True), "joint"),
        (dict(steps=-1), "steps"),
        (dict(tempo=0.1), "cps"),
    ],
)
def test_a_senseless_sampler_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        Sampler(**values)


def test_cps_with_a_single_step_is_refused():
    with pytest.raises(ValueError, match="at least two"):
        rollout(Field(lambda x, tau: x, steps=1), None, torch.randn(1, 1, 1), Sampler(method="cps"))


@pytest.mark.parametrize("other, words", [(Sampler(joint=True), "mode"), (Sampler(steps=3), "denoising steps")])
def test_a_chain_of_another_sampler_is_refused(other, words):
    field = Field(lambda x, tau: x)
    chain = rollout(field, None, torch.randn(2, 3, 2), Sampler())
    with pytest.raises(ValueError, match=words):
        log_prob(field, None, chain, other)
