"""How a policy explores, and how likely what it did is under other weights: one interface for all families.

    exploration = explore(policy, Sampler("sde", joint=True))
    x, trace = exploration.act(policy, inputs, generators)             # normalised actions (B, H, 7) and how they came about
    log_prob, kl = exploration.measure(policy, trace, reference)       # (B, H) each, with gradient

The reference is a context that gives a policy: ``nullcontext(copy)``, or `adapters.SwitchedOff`.

A flow policy explores by a stochastic sampler (policies/samplers.py), a token policy by drawing its tokens. With
``frozen_prefix`` a flow policy's prefix is encoded once, when it acts, and only its action expert learns: what it saw needs
not be kept, nor seen again.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import samplers
from policytrim_ros.policies.flow import Context, FlowPolicy
from policytrim_ros.policies.policy import ChunkPolicy, Inputs
from policytrim_ros.policies.samplers import Chain, Sampler


@dataclass(frozen=True)
class Trace:
    """B chunks: what was seen (`Inputs`, or a `Context` where the prefix is frozen), what was drawn (a `Chain`, or tokens
    (B, H, 7)), and log_prob (B, H) of every action position when it was drawn. ``length`` (B,): how long a plan was
    sampled, what is beyond is filled with zeros; None: all of H."""

    seen: Inputs | Context
    drawn: Chain | torch.Tensor
    log_prob: torch.Tensor
    length: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.log_prob)

    def rows(self, index) -> "Trace":
        """The chosen rows, in the order of ``index``: a minibatch."""
        drawn = self.drawn[index] if isinstance(self.drawn, torch.Tensor) else self.drawn.rows(index)
        return Trace(self.seen.rows(index), drawn, self.log_prob[index], None if self.length is None else self.length[index])

    def to(self, device) -> "Trace":
        """The same on another device."""
        length = None if self.length is None else self.length.to(device)
        return Trace(self.seen.to(device), self.drawn.to(device), self.log_prob.to(device), length)

    @staticmethod
    def cat(traces: Sequence["Trace"]) -> "Trace":
        """Traces of one exploration one after another."""
        seen = [trace.seen for trace in traces]
        drawn = [trace.drawn for trace in traces]
        return Trace(
            cat_inputs(seen) if isinstance(seen[0], Inputs) else Context.cat(seen),
            torch.cat(drawn) if isinstance(drawn[0], torch.Tensor) else Chain.cat(drawn),
            torch.cat([trace.log_prob for trace in traces]),
            None if traces[0].length is None else torch.cat([trace.length for trace in traces]),
        )


@dataclass(frozen=True)
class FlowExploration:
    """Flow-SDE, Flow-CPS or Flow-Noise.

    ``plans``: a rollout of horizon h samples a plan of h actions, as the public code does, so that the network knows its
    horizon by the number of its tokens; otherwise it predicts all H and h of them are executed.
    """

    sampler: Sampler
    frozen_prefix: bool = False
    plans: bool = False

    @torch.no_grad()
    def act(self, policy: FlowPolicy, inputs: Inputs, generators=None, horizons=None) -> tuple[torch.Tensor, Trace]:
        """``horizons``: h of every row; needed for ``plans`` alone. What lies beyond a plan is zero."""
        context = policy.encode(inputs)
        seen = context if self.frozen_prefix else inputs
        if not self.plans:
            chain = samplers.rollout(policy, context, policy.noise(len(inputs), generators), self.sampler, generators)
            return chain.played(policy), Trace(seen, chain, chain.log_prob)
        chains, played, rows = [], [], []
        for h, mine in _by_length(torch.as_tensor(horizons)):
            view, own = policy.shortened(h), generators and [generators[i] for i in mine.tolist()]
            chain = samplers.rollout(view, context.rows(mine), view.noise(len(mine), own), self.sampler, own)
            played.append(F.pad(chain.played(view), (0, 0, 0, policy.config.horizon - h)))
            chains.append(chain.padded(policy.config.horizon))
            rows.append(mine)
        order = torch.cat(rows).argsort()
        chain = Chain.cat(chains).rows(order)
        return torch.cat(played)[order], Trace(seen, chain, chain.log_prob, torch.as_tensor(horizons, device=chain.x.device))

    def measure(self, policy, trace: Trace, reference=None) -> tuple[torch.Tensor, torch.Tensor]:
        """log_prob (B, H) now, and KL(policy || reference) (B, H), mean over dimensions (0 without a reference, and beyond a
        plan)."""
        if trace.length is None:
            return self._measure(policy, trace, reference)
        found, rows = [], []
        for h, mine in _by_length(trace.length):
            part = trace.rows(mine)
            part = replace(part, drawn=part.drawn.cut(h))
            found.append([F.pad(each, (0, trace.log_prob.shape[1] - h)) for each in self._measure(policy, part, reference, h)])
            rows.append(mine)
        order = torch.cat(rows).argsort()
        return tuple(torch.cat(each)[order] for each in zip(*found))

    def _measure(self, policy, trace, reference, horizon=None):
        policy = policy.shortened(horizon) if horizon else policy
        steps = self._transitions(policy, trace)
        found = steps.log_prob()
        if reference is None:
            return found, torch.zeros_like(found)
        with torch.no_grad(), reference as theirs:
            other = self._transitions(theirs.shortened(horizon) if horizon else theirs, trace)
        return found, steps.kl(other)

    def parameters(self, policy: FlowPolicy) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        prefix = ("pi0.model.vlm.", "object_embedding.", "slot_embedding") if self.frozen_prefix else ()
        return _free(policy, ("locator.", *prefix))

    def _transitions(self, policy, trace):
        context = trace.seen if self.frozen_prefix else policy.encode(trace.seen)
        return samplers.transitions(policy, context, trace.drawn, self.sampler)


@dataclass(frozen=True)
class TokenExploration:
    """Action tokens drawn at a temperature.

    ``correlation``: of the draws of one joint along a chunk. Each action is drawn with the probability that its tokens have, so that its
    log-probability and divergence are exact; what is left out of a chunk's is how its actions hang together, which makes the gradient
    a step uphill of another length (for Gaussians: the policy gradient times their covariance), not another hill.
    """

    temperature: float = 1.0
    correlation: float = 0.0

    @torch.no_grad()
    def act(self, policy, inputs: Inputs, generators=None, horizons=None) -> tuple[torch.Tensor, Trace]:
        tokens, x, found = policy.act(inputs, generators, self.temperature, self.correlation)
        return x, Trace(inputs, tokens, found)

    def measure(self, policy, trace: Trace, reference=None) -> tuple[torch.Tensor, torch.Tensor]:
        """log_prob (B, H) now, and an unbiased estimate of KL(policy || reference) per dimension from what was drawn
        (Schulman's k3), 0 without a reference."""
        found = policy.log_prob(trace.seen, trace.drawn, self.temperature)
        if reference is None:
            return found, torch.zeros_like(found)
        with torch.no_grad(), reference as theirs:
            other = theirs.log_prob(trace.seen, trace.drawn, self.temperature)
        behind = (other - found) / trace.drawn.shape[-1]
        return found, behind.exp() - behind - 1.0

    def parameters(self, policy) -> dict[str, nn.Parameter]:
        """What learns, by name."""
        return _free(policy, ("locator.",))


def _free(policy, fixed: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """All parameters but those whose names begin with one of ``fixed``; of a policy with adapters, those that are not frozen."""
    adapted = any(".lora_" in name for name, _ in policy.named_parameters())
    return {
        name: parameter
        for name, parameter in policy.named_parameters()
        if not name.startswith(fixed) and (parameter.requires_grad or not adapted)
    }


def explore(
    policy: ChunkPolicy, sampler: Sampler = Sampler(), temperature=1.0, frozen_prefix=False, plans=False, correlation=0.0
):
    """The exploration of the policy's family. ConfigError for ``plans`` of a family whose weights belong to one length."""
    if policy.family == "flow":
        return FlowExploration(sampler, frozen_prefix, plans)
    if plans:
        raise ConfigError(f"a {policy.family} policy cannot sample plans of another length; use the reading 'execute'")
    return TokenExploration(temperature, correlation)


def _by_length(lengths: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Every length that occurs, with the rows that have it."""
    return [(int(h), torch.nonzero(lengths == h)[:, 0]) for h in lengths.unique()]


def cat_inputs(parts: Sequence[Inputs]) -> Inputs:
    """Observations one after another; shorter instructions are padded, and the padding masked, on the right."""
    length = max(part.ids.shape[1] for part in parts)
    values = {}
    for spec in fields(Inputs):
        tensors = [getattr(part, spec.name) for part in parts]
        if spec.name in ("ids", "words"):
            tensors = [F.pad(tensor, (0, length - tensor.shape[1])) for tensor in tensors]
        values[spec.name] = None if tensors[0] is None else torch.cat(tensors)
    return Inputs(**values)
