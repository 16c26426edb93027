"""The tempo of a chunk, as something to explore: the same path, played faster or slower as a whole.

    tempo = 0.15 * noise                                            # (B,), relative to the chunk's own
    played = hasten(x, tempo, policy.action_low, policy.action_high)
    ...
    seen = Tempo.of(now, x, tempo, std=0.15, across=0.1, low=..., high=...)      # now: what the policy says today
    seen.log_prob(), seen.kl(reference)                             # (B,), (B, H)

Noise that a flow policy's samplers add to every action by itself averages out over a chunk, and what Flow-CPS adds is denoised
again: a policy that has become sure of itself never sees what it would be like to be faster. One number a chunk tries just that.
Its density is a Gaussian along the direction in which the chunk changes with its tempo. What the policy does besides is not
tried, so nothing would keep it where it is: there the divergence from the reference is that from the reference's own path,
played as fast as the policy plays it, as if the chunk had a standard deviation ``across``. Not in the papers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributions import Normal

from policytrim_ros.policies.policy import scale, unscale

ARM = 6
"""Joints that go on beyond the last action; what is behind them, the gripper, stays."""

ONWARD = 3
"""Actions whose mean velocity the joints keep beyond the last one: a single one is too noisy."""


def hasten(x: torch.Tensor, tempo: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Chunks x (B, H, 7), normalised with low and high (H, 7), played (1 + tempo) times as fast; tempo (B,), at least -1.

    Straight lines between actions, from the setpoint that they are relative to (the gripper: from the first action) on.
    """
    horizon, device = x.shape[1], x.device
    relative = unscale(x, low, high)
    setpoint = torch.cat([torch.zeros_like(relative[:, :1, :ARM]), relative[:, :1, ARM:]], -1)
    path = torch.cat([setpoint, relative], 1)  # (B, H + 1, 7), at the end of control step 0, 1, ... H
    at = torch.arange(1, horizon + 1, device=device) * (1.0 + tempo[:, None]).clamp_min(0.0)  # (B, H)
    rows, before = torch.arange(len(x), device=device)[:, None], at.floor().long().clamp(max=horizon - 1)
    share = (at - before).clamp(max=1.0)[..., None]
    found = path[rows, before] * (1.0 - share) + path[rows, before + 1] * share
    back = min(ONWARD, horizon)
    velocity = (path[:, -1] - path[:, -1 - back]) / back
    velocity = torch.cat([velocity[:, :ARM], torch.zeros_like(velocity[:, ARM:])], -1)
    found = found + (at - horizon).clamp_min(0.0)[..., None] * velocity[:, None]
    return scale(found, low, high)


@dataclass(frozen=True)
class Tempo:
    """The tempo of B chunks as a policy sees it: by how much what it says ``now`` (B, H, 7) is faster than the chunk that was
    drawn, ``moved`` (B,), of which ``drawn`` (B,) is a sample. With gradient for ``now``."""

    now: torch.Tensor
    limits: tuple[torch.Tensor, torch.Tensor]
    moved: torch.Tensor
    drawn: torch.Tensor
    std: float
    across: float

    @staticmethod
    def of(now, x, drawn, *, std: float, across: float, low, high) -> "Tempo":
        """As seen from the chunk x (B, H, 7), played at the tempo ``drawn``; faster is along the way in which x changes between
        tempos of -std and std."""
        step = torch.full_like(x[:, 0, 0], std)
        way = ((hasten(x, step, low, high) - hasten(x, -step, low, high)) / (2.0 * std)).detach()
        moved = ((now - x) * way).sum((1, 2)) / way.square().sum((1, 2)).clamp_min(1e-6)
        return Tempo(now, (low, high), moved, drawn, std, across)

    def log_prob(self) -> torch.Tensor:
        """(B,)"""
        return Normal(self.moved, self.std, validate_args=False).log_prob(self.drawn)

    def kl(self, reference: "Tempo") -> torch.Tensor:
        """(B, H): KL(self || reference), mean over dimensions, with ``std`` along the way and ``across`` off the path."""
        faster = (1.0 + self.moved) / (1.0 + reference.moved).clamp_min(0.1) - 1.0
        path = hasten(reference.now, faster, *self.limits)
        off = 0.5 * ((self.now - path) / self.across).square().mean(-1)
        along = 0.5 * ((self.moved - reference.moved) / self.std).square()
        return off + along[:, None] / path[0].numel()
