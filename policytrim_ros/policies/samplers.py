"""Stochastic sampling of flow chunks with exact log-probabilities, for reinforcement learning.

    context = policy.encode(inputs)                                      # under torch.no_grad()
    chain = rollout(policy, context, policy.noise(B, generators), sampler, generators)
    chunk = policy.to_robot(chain.actions, inputs.state)
    ...
    steps = transitions(policy, policy.encode(inputs), chain, sampler)   # with gradient, under the present weights
    ratio = (steps.log_prob() - chain.log_prob).exp()                    # (B, H), 1 before the first update
    penalty = steps.kl(transitions(reference, reference.encode(inputs), chain, sampler))

Flow matching as in flow.py: tau_k = 1 - k/K, v = noise - action. One denoising step from tau to s = tau - 1/K goes through
the predicted action x0 = x - v tau and the predicted noise x1 = x + v (1 - tau); all samplers differ only in the mean and
standard deviation of that step:

    ODE   (deployment)  mean = (1 - s) x0 + s x1                              std = 0
    sde   Flow-SDE      mean = (1 - s) x0 + (s - sigma^2 / (2 tau K)) x1      std = sigma / sqrt(K)
                        sigma = a sqrt(tau / (1 - tau)); at tau = 1 with the next tau in the denominator
                        (Flow-GRPO, arXiv 2505.05470; the form of piRL, arXiv 2510.25889, and PolicyTrim, arXiv 2606.22540)
    cps   Flow-CPS      mean = (1 - s) x0 + s cos(pi a / 2) x1                std = s sin(pi a / 2)
                        (coefficients-preserving sampling, arXiv 2509.05952; no noise in the last step, where s = 0)
    noise Flow-Noise    mean = (1 - s) x0 + s x1                              std = the policy's noise head
                        (ReinFlow, arXiv 2505.22094; piRL, arXiv 2510.25889)

A policy whose configuration has acting_noise acts by cps, too.

With a tempo (Flow-CPS alone, whose last step adds no noise) the finished chunk is played faster or slower as a whole
(tempo.py); every action position has an equal share in the log-probability of that one number, and the steps count with a
weight beside it.

In mixed mode one denoising step a chunk, drawn at random, is stochastic and the others are ODE steps: then the update costs
one velocity evaluation. In joint mode all are. The log-probability is that of the stochastic steps given the stored state
before each: what the ODE steps do with the weights is part of the environment. Only the A action dimensions are
explored, or all but the gripper; the padding of an imported pi0 always follows the ODE.

Policies must be in evaluation mode (a dropout layer would make every ratio noise), and log-probabilities are float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Sequence

import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from policytrim_ros.core.config import Config, ConfigError, setting
from policytrim_ros.policies.policy import ACTIONS, noise
from policytrim_ros.policies.tempo import Tempo, hasten


@dataclass(frozen=True)
class Sampler(Config):
    """Which noise explores, how much of it, and at how many of the K denoising steps."""

    method: str = setting("sde", "noise of a denoising step", choices=("sde", "cps", "noise"))
    level: float = setting(0.5, "noise level a (not used by 'noise', whose head learns it)", low=0.0, high=1.0)
    steps: int = setting(0, "denoising steps K; 0: the policy's own", low=0, high=100)
    joint: bool = setting(False, "all steps are stochastic, instead of one drawn at random for each chunk")
    gripper: bool = setting(
        True, "the gripper explores and learns, too; false: it follows the ODE, held by the divergence from the reference alone"
    )
    initial: bool = setting(False, "joint: the log-probability of the initial noise counts (it cancels in every ratio)")
    tempo: float = setting(0.0, "cps: standard deviation of a chunk's tempo, relative to its own (0: none)", low=0.0, high=0.5)
    across: float = setting(0.1, "tempo: deviation across it that the divergence from the reference assumes", low=1e-3, high=10)
    weight: float = setting(
        1.0, "tempo: weight of the denoising steps' log-probability, which would drown that of the tempo", low=0.0, high=1.0
    )

    def __post_init__(self):
        super().__post_init__()
        if self.method != "noise" and self.level == 0.0:
            raise ConfigError("Sampler.level = 0: without noise there is no density; use the policy's integrate()")
        if self.initial and not self.joint:
            raise ConfigError("Sampler.initial = true needs joint = true: one random step does not include the first noise")
        if self.tempo and self.method != "cps":
            raise ConfigError(f"Sampler.tempo = {self.tempo}: only method 'cps' leaves the last denoising step to it")

    def of(self, policy) -> "Sampler":
        """The sampler with K filled in from the policy. ValueError where no step of such a chain would be stochastic."""
        sampler = replace(self, steps=self.steps or policy.config.denoising_steps)
        if not sampler.stochastic_steps:
            raise ValueError("Flow-CPS has no noise in its last step: it needs at least two denoising steps")
        return sampler

    @property
    def explored(self) -> int:
        """How many dimensions of an action are explored, the first ones."""
        return dimensions(self.gripper)

    @property
    def stochastic_steps(self) -> int:
        """How many of the K steps can be stochastic, the first ones."""
        return self.steps - 1 if self.method == "cps" else self.steps


@dataclass(frozen=True)
class Chain:
    """How B chunks were sampled.

    x: (B, K+1, H, D) from noise to actions; step: (B,) the stochastic step of each (mixed) or None (joint); log_prob:
    (B, H) of every action position, summed over its dimensions and the stochastic steps; tempo: (B,)
    at which the actions at the end of x are played, relative to their own (None: as they are).
    """

    x: torch.Tensor
    step: torch.Tensor | None
    log_prob: torch.Tensor
    tempo: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    @property
    def actions(self) -> torch.Tensor:
        """(B, H, A) normalised actions, at their own tempo."""
        return self.x[:, -1, :, :ACTIONS]

    def played(self, policy) -> torch.Tensor:
        """(B, H, A) normalised actions, at the tempo that was drawn."""
        return self.actions if self.tempo is None else hasten(self.actions, self.tempo, policy.action_low, policy.action_high)

    def rows(self, index) -> "Chain":
        return self._each(lambda tensor: tensor[index])

    def to(self, device) -> "Chain":
        return self._each(lambda tensor: tensor.to(device))

    @staticmethod
    def cat(chains: Sequence["Chain"]) -> "Chain":
        """Chains of one sampler one after another."""
        parts = ([getattr(chain, spec.name) for chain in chains] for spec in fields(Chain))
        return Chain(*(None if part[0] is None else torch.cat(part) for part in parts))

    def cut(self, horizon: int) -> "Chain":
        """Only the first ``horizon`` positions."""
        return replace(self, x=self.x[:, :, :horizon], log_prob=self.log_prob[:, :horizon])

    def padded(self, horizon: int) -> "Chain":
        """With zeros behind, as long as ``horizon``."""
        more = horizon - self.x.shape[2]
        return replace(self, x=F.pad(self.x, (0, 0, 0, more)), log_prob=F.pad(self.log_prob, (0, more)))

    def _each(self, change) -> "Chain":
        values = (getattr(self, spec.name) for spec in fields(self))
        return Chain(*(None if value is None else change(value) for value in values))


@dataclass(frozen=True)
class Transitions:
    """The stochastic steps of B chunks, T each (mixed: one): Gaussians (B, T, H, A) and what was drawn from them; the
    first noise where it counts; the tempo, beside which the steps have a weight; how many dimensions were explored."""

    mean: torch.Tensor
    std: torch.Tensor
    drawn: torch.Tensor
    initial: torch.Tensor | None
    tempo: Tempo | None = None
    weight: float = 1.0
    explored: int = ACTIONS

    def log_prob(self) -> torch.Tensor:
        """(B, H): sum over steps and dimensions, of every action position by itself, and its share in that of the tempo."""
        mean, std, drawn = (each[..., : self.explored] for each in (self.mean, self.std, self.drawn))
        found = _log_prob(mean, std, drawn).sum(1)
        if self.initial is not None:
            found = found + _log_prob(0.0, 1.0, self.initial)
        if self.tempo is not None:
            found = _beside(found, self.tempo.log_prob(), self.weight)
        return found

    def kl(self, reference: "Transitions") -> torch.Tensor:
        """(B, H): KL(self || reference) of the Gaussians, mean over dimensions, sum over steps; and of the tempo."""
        ours, theirs = (Normal(each.mean, each.std, validate_args=False) for each in (self, reference))
        found = kl_divergence(ours, theirs).mean(-1).sum(1)
        if self.tempo is not None:
            found = self.weight * found + self.tempo.kl(reference.tempo)
        return found


@torch.no_grad()
def rollout(policy, context, x: torch.Tensor, sampler: Sampler, generators: Sequence[torch.Generator] | None = None) -> Chain:
    """Denoises x (B, H, D), standard normal, stochastically. ``generators``: one a row, or None for torch's own.

    A row's chunk does not depend on who else is in the batch.
    """
    sampler, batch = sampler.of(policy), len(x)
    step = None if sampler.joint else _draw_step(batch, sampler.stochastic_steps, generators, x.device)
    n, first, chain = sampler.explored, x[..., :ACTIONS], [x]
    found = _log_prob(0.0, 1.0, first[..., :n]) if sampler.initial else x.new_zeros(x.shape[:2])
    drawn = None if sampler.joint else noise(first.shape, generators, x.device)  # the one noise of each row
    for k in range(sampler.steps):
        mean, std, follow = _step(policy, context, x, torch.full((batch,), k, device=x.device), sampler)
        if k < sampler.stochastic_steps:
            explored = mean + std * (noise(first.shape, generators, x.device) if sampler.joint else drawn).to(x.dtype)
            mean, std, explored = mean[..., :n], std[..., :n], explored[..., :n]
            here = torch.ones(batch, dtype=torch.bool, device=x.device) if sampler.joint else step == k
            found = found + torch.where(here[:, None], _log_prob(mean, std, explored), 0.0)
            follow = torch.where(here[:, None, None], torch.cat([explored, follow[..., n:]], -1), follow)
        x = follow
        chain.append(x)
    tempo = None
    if sampler.tempo:
        tempo = sampler.tempo * noise((batch, 1, 1), generators, x.device)[:, 0, 0].to(x.dtype)
        found = _beside(found, _log_prob(0.0, sampler.tempo, tempo[:, None]), sampler.weight)
    return Chain(torch.stack(chain, 1), step, found, tempo)


def transitions(policy, context, chain: Chain, sampler: Sampler) -> Transitions:
    """The stochastic steps of a chain as this policy sees them now, with gradient: one velocity evaluation (joint: K), and one
    more for a tempo."""
    sampler, batch = sampler.of(policy), torch.arange(len(chain), device=chain.x.device)
    if chain.x.shape[1] != sampler.steps + 1:
        raise ValueError(f"the chain has {chain.x.shape[1] - 1} denoising steps, the sampler {sampler.steps}")
    if (chain.step is None) != sampler.joint:
        raise ValueError("the chain was sampled in the other mode (one stochastic step, or all of them)")
    steps = [torch.full_like(batch, k) for k in range(sampler.stochastic_steps)] if sampler.joint else [chain.step]
    parts = [_step(policy, context, chain.x[batch, k], k, sampler)[:2] for k in steps]
    mean, std = (torch.stack(part, 1) for part in zip(*parts))
    drawn = torch.stack([chain.x[batch, k + 1, :, :ACTIONS] for k in steps], 1)
    tempo = _tempo(policy, context, chain, sampler) if sampler.tempo else None
    first = chain.x[:, 0, :, : sampler.explored] if sampler.initial else None
    return Transitions(mean, std, drawn, first, tempo, sampler.weight, sampler.explored)


def _tempo(policy, context, chain: Chain, sampler: Sampler) -> Tempo:
    """The tempo of a chain as this policy sees it now."""
    last = torch.full((len(chain),), sampler.steps - 1, device=chain.x.device)
    now = _step(policy, context, chain.x[:, -2], last, sampler)[0]
    limits = dict(low=policy.action_low, high=policy.action_high)
    return Tempo.of(now, chain.actions, chain.tempo, std=sampler.tempo, across=sampler.across, **limits)


def _beside(steps: torch.Tensor, tempo: torch.Tensor, weight: float) -> torch.Tensor:
    """(B, H): log-probabilities of the steps (B, H), with their weight, and of the tempo (B,), shared out evenly."""
    return weight * steps + tempo[:, None] / steps.shape[1]


def log_prob(policy, context, chain: Chain, sampler: Sampler) -> torch.Tensor:
    """(B, H): `Chain.log_prob` under the policy's present weights, with gradient."""
    return transitions(policy, context, chain, sampler).log_prob()


def _step(policy, context, x, k, sampler: Sampler) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Step k (B,) from x (B, H, D): mean and std (B, H, A) of the stochastic step, and where the ODE goes (B, H, D)."""
    delta = 1.0 / sampler.steps
    tau = (1.0 - k.to(x.dtype) * delta)[:, None, None]
    s = 1.0 - (k.to(x.dtype) + 1.0)[:, None, None] * delta
    if sampler.method == "noise":
        v, std = policy.velocity_and_std(context, x, tau[:, 0, 0])
    else:
        v, std = policy.velocity(context, x, tau[:, 0, 0]), None
    v = v.to(x.dtype)
    x0, x1 = x - v * tau, x + v * (1.0 - tau)
    follow = (1.0 - s) * x0 + s * x1
    if sampler.method == "noise":
        return follow[..., :ACTIONS], std.to(x.dtype), follow
    if sampler.method == "cps":
        mean, std = cps_step(x0[..., :ACTIONS], x1[..., :ACTIONS], s, sampler.level)
    else:
        sigma = sampler.level * torch.sqrt(tau / (1.0 - torch.where(k[:, None, None] == 0, s, tau)))
        mean, std = ((1.0 - s) * x0 + (s - sigma**2 * delta / (2.0 * tau)) * x1)[..., :ACTIONS], sigma * math.sqrt(delta)
    return mean, std.expand_as(mean), follow


def dimensions(gripper: bool) -> int:
    """How many dimensions of an action have noise, the first ones: all, or all but the gripper."""
    return ACTIONS if gripper else ACTIONS - 1


def cps_step(x0, x1, s, level) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of a step of Flow-CPS to s, from the predicted action x0 and the predicted noise x1; ``level``: a."""
    angle = torch.as_tensor(math.pi / 2 * level, dtype=x0.dtype, device=x0.device)
    return (1.0 - s) * x0 + s * angle.cos() * x1, s * angle.sin()


def _log_prob(mean, std, x) -> torch.Tensor:
    """(..., D) -> (...): log density of independent Gaussians."""
    return Normal(mean, std, validate_args=False).log_prob(x).sum(-1)


def _draw_step(batch: int, choices: int, generators, device) -> torch.Tensor:
    if generators is None:
        return torch.randint(choices, (batch,), device=device)
    return torch.cat([torch.randint(choices, (1,), generator=generator, device=device) for generator in generators])
