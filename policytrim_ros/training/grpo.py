"""Group relative policy optimisation (GRPO, arXiv 2402.03300) of chunk policies, without a critic.

    loss = -mean min(r A, clip(r, 1 - eps, 1 + eps) A)   with a dual clip: never below c A where A < 0
           + beta_KL KL(policy || reference)             per action: mean over executed actions and dimensions
    r    = exp(log_prob now - log_prob when drawn), of a whole chunk (its executed actions summed) or of every action

Only executed actions count: what a chunk held beyond its execution horizon, or beyond success, was never tried.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

import numpy as np
import torch

from policytrim_ros.core.config import Config, setting
from policytrim_ros.training.exploration import Trace

LEVELS = ("chunk", "action")


@dataclass(frozen=True)
class GrpoConfig(Config):
    """Settings of the update; the defaults are those that small networks need (large ones: learning rates near 5e-6)."""

    learning_rate: float = setting(1e-4, "of AdamW (betas 0.9 and 0.95)", low=1e-8, high=1e-1)
    warmup_updates: int = setting(5, "updates of linear warm-up; the first one is too large without", low=0, high=10_000)
    final_rate: float = setting(
        1.0, "learning rate at the end of a stage, relative to the one above: it falls linearly", low=0, high=1
    )
    weight_decay: float = setting(0.01, "decoupled weight decay", low=0, high=1)
    gradient_clip: float = setting(1.0, "largest norm of the gradient", low=1e-3, high=1e3)
    clip: float = setting(0.2, "eps of the clipped ratio", low=1e-3, high=1)
    dual_clip: float = setting(3.0, "c, bound on the loss of a chunk with a negative advantage (0: none)", low=0, high=100)
    kl: float = setting(0.0, "beta_KL, weight of the divergence from the reference", low=0, high=100)
    level: str = setting("chunk", "what a ratio belongs to: a whole chunk, or every action", choices=LEVELS)
    minibatches: int = setting(4, "pieces of a batch, one optimiser step each", low=1, high=4096)
    epochs: int = setting(1, "passes over a batch", low=1, high=100)


@dataclass(frozen=True)
class Experience:
    """B chunks to learn from: how they came about, which of their actions were executed (B, H) bool, advantage (B,)."""

    trace: Trace
    executed: torch.Tensor
    advantage: torch.Tensor

    def __len__(self) -> int:
        return len(self.advantage)

    def rows(self, index) -> "Experience":
        return Experience(self.trace.rows(index), self.executed[index], self.advantage[index])


def objective(log_prob, before, executed, advantage, kl, config: GrpoConfig) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of B chunks and figures about it. log_prob, before, kl: (B, H); executed: (B, H) bool; advantage: (B,).

    Figures: ratio (mean), clipped (share of the ratios outside the clip), kl (to the reference), old_kl (to the policy that
    drew; k3 estimate of a ratio's unit, chunk or action).
    """
    log_ratio = torch.where(executed, log_prob - before, 0.0)
    if config.level == "chunk":
        log_ratio, counts = log_ratio.sum(1), executed.any(1)
    else:
        advantage, counts = advantage[:, None].expand_as(log_ratio), executed
    ratio = log_ratio.exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - config.clip, 1 + config.clip) * advantage)
    if config.dual_clip:
        gain = torch.where(advantage < 0, torch.maximum(gain, config.dual_clip * advantage), gain)
    divergence = _mean(kl, executed)
    loss = -_mean(gain, counts) + config.kl * divergence
    with torch.no_grad():
        figures = {
            "ratio": _mean(ratio, counts).item(),
            "clipped": _mean(((ratio - 1).abs() > config.clip).float(), counts).item(),
            "kl": divergence.item(),
            "old_kl": _mean(ratio - 1 - log_ratio, counts).item(),
        }
    return loss, figures


class Optimizer:
    """AdamW over what the exploration lets learn, with warm-up; `update` is one GRPO update."""

    def __init__(self, policy, exploration, config: GrpoConfig = GrpoConfig()):
        self.policy, self.exploration, self.config = policy, exploration, config
        self.trained = exploration.parameters(policy)
        self.adam = torch.optim.AdamW(
            self.trained.values(), lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.updates = self.steps = 0  # an update is one optimiser step for every minibatch

    def update(self, experience: Experience, rng: np.random.Generator, reference=None, passed: float = 0.0) -> dict[str, float]:
        """One pass (or ``epochs``) over the experience; mean figures. ``passed``: share of the stage that is over.
        FloatingPointError when something is not finite: the weights are then those of the last finite step."""
        rate = self.config.learning_rate * min(1.0, (self.updates + 1) / max(1, self.config.warmup_updates))
        rate *= 1.0 - (1.0 - self.config.final_rate) * passed
        for group in self.adam.param_groups:
            group["lr"] = rate
        reference = reference if self.config.kl else None
        gathered: dict[str, list[float]] = {}
        for _ in range(self.config.epochs):
            for part in self._minibatches(experience, rng):
                log_prob, kl = self.exploration.measure(self.policy, part.trace, reference)
                loss, figures = objective(log_prob, part.trace.log_prob, part.executed, part.advantage, kl, self.config)
                self.adam.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.config.gradient_clip)
                if not (torch.isfinite(loss) and torch.isfinite(norm)):
                    raise FloatingPointError(f"loss {loss.item()}, gradient {norm.item()} in update {self.updates}")
                self.adam.step()
                self.steps += 1
                for name, value in {"loss": loss.item(), "gradient_norm": norm.item(), **figures}.items():
                    gathered.setdefault(name, []).append(value)
        self.updates += 1
        return {"learning_rate": rate, **{name: float(np.mean(values)) for name, values in gathered.items()}}

    def _minibatches(self, experience: Experience, rng) -> Iterator[Experience]:
        order = rng.permutation(len(experience))
        for part in np.array_split(order, min(self.config.minibatches, len(order))):
            yield experience.rows(torch.from_numpy(part))


def _mean(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Mean over the places that count; 0 when none does."""
    where = where.to(values.dtype)
    return (values * where).sum() / where.sum().clamp_min(1.0)
