"""Tests that may be looked at after every pair and stopped at any time: success within a margin, and time, of B against A.

The method is betting (Waudby-Smith and Ramdas, JRSS B 86:1, 2024): somebody who doubts a claim stakes money on each next pair at
odds that are fair if the claim holds. Money then grows to c times itself with probability at most 1 / c, however long the game
lasts and whenever it is left (Ville's inequality). The bet here is a fraction of the money, and the money is spread over a grid
of fractions at the start (Cover's universal portfolio; Orabona and Jun, IEEE Trans. Inf. Theory 70:436, 2024), so no fraction
needs to be chosen and the money depends on three counts only.

Words: a pair's outcome d is +1 (only B did it), 0 (no difference) or -1 (only A did it); `mean` is E[d | the pairs before].
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Iterable

import numpy as np

UNDECIDED, NON_INFERIOR, INFERIOR, SUPERIOR = "undecided", "non-inferior", "inferior", "superior"
FASTER, SLOWER = "faster", "slower"

FRACTIONS = (np.arange(32) + 0.5) / 32
"""Shares of the money that are staked; each begins with the same amount."""


def evidence_above(wins, ties, losses, mean) -> np.ndarray:
    """E-value against "the mean is ``mean`` or less" after so many +1, 0 and -1; arguments broadcast, -1 < mean <= 1.

    If that claim holds for every pair, its expectation is at most 1 at any stopping time. It falls as ``mean`` grows. A stake f
    becomes f * (1 + d) / (1 + mean): at least nothing, and on average f when the claim holds just so.
    """
    wins, ties, losses, mean = (np.asarray(value, dtype=np.float64)[..., None] for value in (wins, ties, losses, mean))
    rest, stake = 1 - FRACTIONS, FRACTIONS / (1 + mean)
    money = wins * np.log(rest + 2 * stake) + ties * np.log(rest + stake) + losses * np.log(rest)
    best = money.max(axis=-1)
    with np.errstate(over="ignore"):
        return np.exp(best + np.log(np.exp(money - best[..., None]).mean(axis=-1)))


def evidence_below(wins, ties, losses, mean) -> np.ndarray:
    """E-value against "the mean is ``mean`` or more", -1 <= mean < 1: `evidence_above` seen from the other side."""
    return evidence_above(losses, ties, wins, -np.asarray(mean, dtype=np.float64))


def lower_limit(wins: int, ties: int, losses: int, alpha: float) -> float:
    """The largest mean that `evidence_above` refutes with 1 / alpha; -1 when it refutes none."""
    refuted, open_ = -1.0, 1.0
    for _ in range(6):  # of 64 parts each: to 3e-11
        means = np.linspace(refuted, open_, 65)
        beyond = 1 + int(np.count_nonzero(evidence_above(wins, ties, losses, means[1:-1]) >= 1 / alpha))
        refuted, open_ = means[beyond - 1], means[beyond]
    return float(refuted)


@dataclass
class ConfidenceSequence:
    """Limits of the mean of outcomes in {-1, 0, +1} that hold at all times at once.

    Guarantee: if E[d | the pairs before] is the same number for every pair, then with probability at least 1 - alpha ``low``
    never exceeds it, and with probability at least 1 - alpha ``high`` never falls below it; both with 1 - 2 alpha. Nothing else
    is assumed, independence neither. It may be read after every outcome and left whenever one likes, for whatever reason in the
    past.

    Limits only move inwards. ``low`` > ``high`` says that the mean changed on the way (or an event of probability 2 alpha).
    The same outcomes in the same order give an equal object.
    """

    alpha: float = 0.05
    wins: int = 0
    ties: int = 0
    losses: int = 0
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self):
        if not 0 < self.alpha < 0.5:
            raise ValueError(f"alpha {self.alpha} is outside (0, 0.5)")

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many +1, 0 and -1."""
        return self.wins, self.ties, self.losses

    @property
    def count(self) -> int:
        """How many outcomes."""
        return sum(self.counts)

    def add(self, d: int) -> None:
        """Takes the next outcome; ValueError unless it is -1, 0 or 1."""
        if d not in (-1, 0, 1):
            raise ValueError(f"outcome {d!r} of a pair is none of -1, 0, 1")
        self.wins += d == 1
        self.ties += d == 0
        self.losses += d == -1
        self.low = max(self.low, lower_limit(*self.counts, self.alpha))
        self.high = min(self.high, -lower_limit(*self.counts[::-1], self.alpha))


class _OnPairs:
    """What tests on pairs share: they wait for `add(a, b)` and read their `sequence`."""

    sequence: ConfidenceSequence

    def extend(self, pairs: Iterable[tuple]):
        """Takes pairs (a, b) in their order; itself."""
        for a, b in pairs:
            self.add(a, b)
        return self

    @property
    def count(self) -> int:
        """Pairs that counted so far."""
        return self.sequence.count

    @property
    def interval(self) -> tuple[float, float]:
        """(low, high) with confidence 1 - 2 alpha at all times at once."""
        return self.sequence.low, self.sequence.high

    @property
    def drifting(self) -> bool:
        """Whether the limits contradict each other: what is measured changed on the way, or the test is wrong both ways."""
        return self.sequence.low > self.sequence.high


@dataclass
class PairedTest(_OnPairs):
    """Is B's success rate less than ``margin`` below A's? Pairs on the same scenes, a look after every one, stop at will.

    ``alpha`` is the one-sided error of each direction, so ``interval`` (of B - A) is a 1 - 2 alpha sequence, as is usual for
    non-inferiority. With delta = E[B - A | the pairs before], the same for every pair, over all looks together:

        P(it ever says non-inferior or superior) <= alpha if delta <= -margin
        P(it ever says superior)                 <= alpha if delta <= 0
        P(it ever says inferior)                 <= alpha if delta >= -margin

    Alpha is not split between the directions: each has its own, and any false verdict at all has at most 2 alpha. Superior needs
    no share, it is said only where non-inferior holds too. Inferior means worse by the margin or more, not just worse.

    Holds for scenes drawn at random or in any order that does not look ahead. Not if the policies, the robot or the choice of
    scenes change during the session: ``drifting`` shows gross cases. Choose margin and alpha before the first pair.
    """

    margin: float
    alpha: float = 0.05
    sequence: ConfidenceSequence = field(init=False)

    def __post_init__(self):
        if not 0 < self.margin < 1:
            raise ValueError(f"margin {self.margin} is outside (0, 1): give 0.1 for 10 percentage points")
        self.sequence = ConfidenceSequence(self.alpha)

    def add(self, a: bool, b: bool) -> None:
        """Takes the next pair: whether A and whether B succeeded."""
        self.sequence.add(int(bool(b)) - int(bool(a)))

    @property
    def against_worse(self) -> float:
        """E-value, now, against "B is worse than A by the margin or more"; 1 / alpha refutes it."""
        return float(evidence_above(*self.sequence.counts, -self.margin))

    @property
    def against_not_worse(self) -> float:
        """E-value, now, against "B is worse than A by no more than the margin, or not worse"; 1 / alpha refutes it."""
        return float(evidence_below(*self.sequence.counts, -self.margin))

    @property
    def verdict(self) -> str:
        """What all looks so far have shown. Once said it stands, or grows to superior; ``drifting`` makes it undecided."""
        low, high = self.interval
        if self.drifting:
            return UNDECIDED
        if low >= 0:
            return SUPERIOR
        if low >= -self.margin:
            return NON_INFERIOR
        return INFERIOR if high <= -self.margin else UNDECIDED


@dataclass
class SpeedTest(_OnPairs):
    """A sign test, valid at any time, of whether B is faster than A where both succeed.

    With p = P(B faster) - P(A faster) among such pairs given the pairs before, the same for each: P(it ever says faster) <= alpha
    if p <= 0 (without equal times: P(B faster) <= 1/2), P(it ever says slower) <= alpha if p >= 0. Each direction has its own
    alpha; only with p = 0 can both be false, at most 2 alpha together. ``interval`` is that of p.

    It says which is faster more often, not by how much, and nothing about scenes in which one failed: a B that fails where it is
    slow looks no slower for it.
    """

    alpha: float = 0.05
    sequence: ConfidenceSequence = field(init=False)

    def __post_init__(self):
        self.sequence = ConfidenceSequence(self.alpha)

    def add(self, seconds_a: float | None, seconds_b: float | None) -> None:
        """Takes the next pair: times (s, or steps), None for a failure. A pair with a failure changes nothing."""
        if seconds_a is None or seconds_b is None:
            return
        if not (math.isfinite(seconds_a) and math.isfinite(seconds_b)):
            raise ValueError(f"times {seconds_a} and {seconds_b} must be finite; give None for a failure")
        self.sequence.add(int(seconds_b < seconds_a) - int(seconds_b > seconds_a))

    @property
    def against_not_faster(self) -> float:
        """E-value, now, against "B is not faster more often than A"; 1 / alpha refutes it."""
        return float(evidence_above(*self.sequence.counts, 0.0))

    @property
    def against_not_slower(self) -> float:
        """E-value, now, against "B is not slower more often than A"; 1 / alpha refutes it."""
        return float(evidence_below(*self.sequence.counts, 0.0))

    @property
    def verdict(self) -> str:
        """faster, slower or undecided, by all looks so far."""
        low, high = self.interval
        if self.drifting:
            return UNDECIDED
        if low >= 0:
            return FASTER
        return SLOWER if high <= 0 else UNDECIDED
