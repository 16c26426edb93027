"""The tempo of a chunk, as something to explore: the same path, played faster or slower as a whole.

    tempo = 0.15 * noise                                            # (B,), relative to the chunk's own
    played = hasten(x, tempo, policy.action_low, policy.action_high)
    ...
    moved = progress(now, x, 0.15, low, high)                       # (B,) tempo of what the policy says now, seen from x
    log_prob = Normal(moved, 0.15).log_prob(tempo)

Noise that a flow policy's samplers add to every action by itself averages out over a chunk, and what Flow-CPS adds is denoised
again: a policy that has become sure of itself never sees what it would be like to be faster. One number a chunk tries just that.
Its density is that of a Gaussian along the direction in which the chunk changes with its tempo; what the policy does across
that direction is left to the sampler's own noise. Not in the papers.
"""

from __future__ import annotations

import torch

ARM = 6
"""Joints that go on beyond the last action; what is behind them, the gripper, stays."""

ONWARD = 3
"""Actions whose mean velocity the joints keep beyond the last one: a single one is too noisy."""


def hasten(x: torch.Tensor, tempo: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Chunks x (B, H, 7), normalised with low and high (H, 7), played (1 + tempo) times as fast; tempo (B,), at least -1.

    Straight lines between actions, from the setpoint that they are relative to (the gripper: from the first action) on.
    """
    horizon, device = x.shape[1], x.device
    relative = (x + 1.0) * 0.5 * (high - low) + low
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
    return 2.0 * (found - low) / (high - low) - 1.0


def progress(now: torch.Tensor, x: torch.Tensor, std: float, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """(B,) by how much ``now`` (B, H, 7) is faster than x, relative to the tempo of x: the difference along the direction in which x
    changes between tempos of -std and std. With gradient for ``now``."""
    step = torch.full_like(x[:, 0, 0], std)
    way = ((hasten(x, step, low, high) - hasten(x, -step, low, high)) / (2.0 * std)).detach()
    return ((now - x) * way).sum((1, 2)) / way.square().sum((1, 2)).clamp_min(1e-6)
