"""A canary: one trial in k is a candidate's, the others are the incumbent's. Is the candidate worse, or as good?

    block      k trials, one of the candidate at a place drawn by chance, k - 1 of the incumbent
    d          of a block: the candidate's success, 0 or 1, minus the incumbents' mean; in [-1, 1]

A test by betting on d (Waudby-Smith and Ramdas, JRSS B 86:1, 2024), as in core/sequential.py, where d takes three values only: a stake
becomes (1 - d) / (1 + margin) times itself, which is fair if the candidate is worse by just the margin. It may be looked at after every
block and left at any time (Ville's inequality).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Sequence

import numpy as np

from policytrim_ros.core.sequential import FRACTIONS, UNDECIDED

WORSE, AS_GOOD = "worse", "as good"


@dataclass
class CanaryTest:
    """Is the candidate's success rate lower than the incumbent's by more than ``margin``, or by less? A look after every block, stop at will.

    With delta = E[d | the blocks before], over all looks together:

        P(it ever says worse)   <= alpha if delta >= -margin in every block
        P(it ever says as good) <= alpha if delta <= -margin in every block

    Each direction has its own alpha, as with `sequential.PairedTest`. As good means not worse by the margin or more. Since the place
    in the block is drawn by chance, delta is the difference of the success rates over the block's scenes, whatever these are; the rates
    may drift from block to block. Choose k, margin and alpha before the first block.
    """

    margin: float
    alpha: float = 0.05
    blocks: int = field(default=0, init=False)
    verdict: str = field(default=UNDECIDED, init=False)  # what is said first stands

    def __post_init__(self):
        if not 0 < self.margin < 1:
            raise ValueError(f"margin {self.margin} is outside (0, 1): give 0.1 for 10 percentage points")
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha {self.alpha} is outside (0, 0.5)")
        self._money = np.zeros((2, len(FRACTIONS)))  # log of what each fraction has: against not worse, against worse

    def add(self, candidate: bool, incumbents: Sequence[bool]) -> None:
        """Takes the next block: whether the candidate succeeded, and each trial of the incumbent; ValueError without one of these."""
        if not len(incumbents):
            raise ValueError("a block needs at least one trial of the incumbent")
        d = float(bool(candidate)) - sum(map(bool, incumbents)) / len(incumbents)
        odds = np.array([[(1 - d) / (1 + self.margin)], [(1 + d) / (1 - self.margin)]])
        self._money += np.log(1 - FRACTIONS + FRACTIONS * odds)
        self.blocks += 1
        if self.verdict == UNDECIDED:
            self.verdict = WORSE if self.worse >= self.needed else AS_GOOD if self.as_good >= self.needed else UNDECIDED

    @property
    def needed(self) -> float:
        """The e-value that is a verdict."""
        return 1 / self.alpha

    @property
    def worse(self) -> float:
        """E-value, now, against "the candidate is not worse, or by no more than the margin"."""
        return _mean_of_exp(self._money[0])

    @property
    def as_good(self) -> float:
        """E-value, now, against "the candidate is worse by the margin or more"."""
        return _mean_of_exp(self._money[1])


def _mean_of_exp(logs: np.ndarray) -> float:
    best = logs.max()
    with np.errstate(over="ignore"):
        return float(np.exp(best + np.log(np.exp(logs - best).mean())))
