"""What PolicyTrim pays for (arXiv 2606.22540): rewards of one group of rollouts, and the advantages that follow.

A group is G rollouts from one initial state: success (G,) bool, steps (G,) S of each, gamma (G,) its acceptance ratio h / H.

    stage 1  extension(...)      succ (1 + beta gamma)                       longer chunks pay when they succeed
    stage 2  step_saving(...)    succ (1 + eta R_step - P_stab)              fewer steps than the budget S_base pay
             R_step = max(0, S_base - S) / S_base                            eta = 1; 0 pays for success alone (a control)
             P_stab = lambda tanh(|S - mu| / max(sigma, floor))              mu, sigma of S over the group's successes

Both are divided by the most that can be earned, so that every reward lies in [0, 1]. ``form``: "paper" as above; "code" as the
public code has it: stage 1 pays coefficient h / 20 whatever H is, and stage 2 has no penalty where sigma is below its floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np

from policytrim_ros.core.config import Config, setting

FORMS = ("paper", "code")
SPREADS = ("group", "batch")
CODE_BASE_HORIZON = 20
"""Horizon at which the public code's extension reward is its coefficient."""

SPREAD = 1e-6
"""Added to the standard deviation of a group's rewards; below a thousand times this all rewards are equal."""


@dataclass(frozen=True)
class RewardConfig(Config):
    """Weights of the rewards; the defaults are the paper's."""

    form: str = setting("paper", "the paper's formulas or those of its public code", choices=FORMS)
    beta: float = setting(0.8, "weight of the acceptance ratio in stage 1 (code: coefficient of h / 20)", low=0, high=100)
    saving: float = setting(1.0, "eta, weight of the steps saved in stage 2 (0: success alone counts)", low=0, high=100)
    stability: float = setting(0.15, "lambda, weight of the penalty on steps far from the group's mean in stage 2", low=0, high=1)
    sigma_floor: float = setting(
        5.0, "smallest standard deviation of steps that counts", low=1e-6, high=1000, unit="control steps"
    )
    spread: str = setting(
        "group",
        "whose standard deviation scales an advantage: the group's (paper), so that a group in which all succeed teaches speed as "
        "loudly as a failure teaches success; or the batch's, which keeps the proportions of the rewards",
        choices=SPREADS,
    )
    lowest_mean: float = setting(0.1, "groups whose mean success is below this teach nothing and are dropped", low=0, high=1)


def extension(success, gamma, horizon: int, config: RewardConfig = RewardConfig()) -> np.ndarray:
    """Stage 1: rewards (G,) in [0, 1]. ``gamma`` (G,) in (0, 1], ``horizon`` H."""
    longest = 1.0 if config.form == "paper" else horizon / CODE_BASE_HORIZON
    share = np.asarray(gamma, dtype=np.float64) * longest
    return np.where(success, 1.0 + config.beta * share, 0.0) / (1.0 + config.beta * longest)


def step_saving(success, steps, budget: float, config: RewardConfig = RewardConfig()) -> np.ndarray:
    """Stage 2: rewards (G,) in [0, 1]. ``steps`` (G,) and ``budget`` S_base in control steps."""
    saved = config.saving * np.maximum(0.0, budget - np.asarray(steps, dtype=np.float64)) / budget
    earned = np.maximum(0.0, 1.0 + saved - instability(success, steps, config))
    return np.where(success, earned, 0.0) / (1.0 + config.saving)


def instability(success, steps, config: RewardConfig = RewardConfig()) -> np.ndarray:
    """P_stab (G,): 0 for failures, and for all when nobody succeeded."""
    success, steps = np.asarray(success, dtype=bool), np.asarray(steps, dtype=np.float64)
    if not success.any():
        return np.zeros(len(steps))
    mean, sigma = steps[success].mean(), steps[success].std()
    if config.form == "code" and sigma < config.sigma_floor:
        return np.zeros(len(steps))
    return np.where(success, config.stability * np.tanh(np.abs(steps - mean) / max(sigma, config.sigma_floor)), 0.0)


def advantages(rewards, success, config: RewardConfig = RewardConfig()) -> np.ndarray | None:
    """(R - mean) / (std + 1e-6) within the group, or R - mean for `in_proportion`; None for a group without a signal: all
    rewards equal, or too few successes."""
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.std() < 1000 * SPREAD or np.mean(success) < config.lowest_mean:
        return None
    return (rewards - rewards.mean()) / (rewards.std() + SPREAD if config.spread == "group" else 1.0)


def in_proportion(groups: Sequence[np.ndarray | None], config: RewardConfig = RewardConfig()) -> list[np.ndarray | None]:
    """The advantages of a batch, scaled by their common standard deviation where ``config.spread`` is "batch"."""
    known = [values for values in groups if values is not None]
    if config.spread == "group" or not known:
        return list(groups)
    scale = np.concatenate(known).std() + SPREAD
    return [None if values is None else values / scale for values in groups]


def sweep(base: int, horizon: int, count: int = 3) -> tuple[int, ...]:
    """Execution horizons of the dynamic exploration: from the default ``base`` evenly to ``horizon`` (H = 15, base 5: 5, 10, 15)."""
    return tuple(sorted({int(round(h)) for h in np.linspace(base, horizon, count)}))
