"""What of a plan is played while the policy still thinks about the next one, and how much the rest of it counts (mode rtc).

Real-time chunking (Black, Galliker, Levine 2025, arXiv 2506.07339): of the plan that is left at a look, the first d actions are
played before the new chunk can arrive, whatever it says; those behind them are an offer, which counts less the further away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.types import JOINTS


@dataclass(frozen=True)
class Commitment:
    """The plan that is left at a look: actions (n, 7) absolute (rad, m), row i belongs to action i of the chunk to come; the
    first ``certain`` of them are played before it can arrive. ValueError on other shapes, NaN or a number beyond n."""

    actions: np.ndarray
    certain: int

    def __post_init__(self):
        actions = np.array(self.actions, dtype=np.float32)
        if actions.ndim != 2 or actions.shape[1] != len(JOINTS) or not len(actions) or not np.isfinite(actions).all():
            raise ValueError(f"a plan of shape {actions.shape}: expected (n, {len(JOINTS)}) finite numbers, n at least 1")
        if not 0 <= self.certain <= len(actions):
            raise ValueError(f"{self.certain} of {len(actions)} actions cannot be certain")
        actions.setflags(write=False)
        object.__setattr__(self, "actions", actions)


def remainder(old, old_first: int, first: int, certain: int) -> Commitment | None:
    """What is left of ``old`` (n, 7), which begins at control step ``old_first``, for a chunk that begins at ``first``; None
    when that is nothing. ``certain``: see `Commitment`; of what is left at most all."""
    ahead = first - old_first
    if not 0 <= ahead < len(old):
        return None
    return Commitment(old[ahead:], min(certain, len(old) - ahead))


def prefix_weights(certain: int, left: int, horizon: int) -> np.ndarray:
    """(H,) how much each action of a chunk is bound to the plan: 1 for the first d = ``certain``, then c (e^c - 1) / (e - 1) with
    c falling linearly, c_i = (n - i) / (n - d + 1), 0 from n = ``left`` on (eq. 5 of the paper, where n = H - s)."""
    i = np.arange(horizon)
    c = np.clip((left - i) / (left - certain + 1), 0.0, 1.0)
    return np.where(i < min(certain, left), 1.0, c * np.expm1(c) / np.expm1(1.0))
