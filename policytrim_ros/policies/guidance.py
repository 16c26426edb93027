"""Guidance of a flow towards the plan that the arm is playing: real-time chunking (Black, Galliker, Levine 2025, arXiv 2506.07339).

The paper's t is 1 - tau, its velocity -v (conventions of flow.py). With the predicted action x0(x) = x - tau v(x), the plan Y and
weights W (core/commitment.py), equations 2 to 4 become

    v'   = v - min(beta, c / r^2) g,     g = (Y - x0)^T diag(W) dx0/dx      (one vector-Jacobian product)
    c    = tau / (1 - tau)               1 / r^2 = (tau^2 + (1 - tau)^2) / tau^2

Where a policy is sure, x0 hardly depends on x and guidance changes little: it can only choose among what the policy would do.
"""

from __future__ import annotations

from typing import Callable

import torch
import torch.nn.functional as F

GUIDANCE_LIMIT = 5.0
"""beta, the largest guidance weight: with few denoising steps more makes the flow diverge (the paper's choice, at 5 steps)."""


def guided_velocity(
    velocity: Callable[[torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    tau: float,
    plan: torch.Tensor,
    weights: torch.Tensor,
    limit: float = GUIDANCE_LIMIT,
) -> torch.Tensor:
    """v' (B, H, D) at x (B, H, D). ``plan`` (B, H, A), A <= D: the dimensions behind A are not drawn anywhere; ``weights`` (B, H).

    A row whose weights are all 0 follows ``velocity`` itself. Needs torch.no_grad() around it rather than inference mode.
    """
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        v = velocity(x).to(x.dtype)
        x0 = x - tau * v
        error = (plan - x0.detach()[..., : plan.shape[-1]]) * weights[..., None]
        (pull,) = torch.autograd.grad(x0, x, F.pad(error, (0, x.shape[-1] - error.shape[-1])))
    return v.detach() - guidance_weight(tau, limit) * pull


def guidance_weight(tau: float, limit: float = GUIDANCE_LIMIT) -> float:
    """min(beta, c / r^2); the limit where that is infinite."""
    scale = tau * (1.0 - tau)
    return limit if scale <= 0.0 else min(limit, (tau**2 + (1.0 - tau) ** 2) / scale)
