"""The words in which claims are made: intervals of differences, claims with their verdict, and what they compare."""

from __future__ import annotations

import math
from dataclasses import dataclass

SUPPORTED, NOT_SUPPORTED, CONTRADICTED = "supported", "not supported", "contradicted"
SUCCESS, TIME = "non-inferiority of success", "superiority of time"


@dataclass(frozen=True)
class Interval:
    """A difference, the later arm's figure minus the first arm's: a share of trials (unit 'points') or a mean in its unit."""

    estimate: float
    low: float
    high: float
    n: int  # pairs, or trials of the smaller arm
    paired: bool
    method: str
    unit: str

    @property
    def words(self) -> str:
        if math.isnan(self.estimate):
            return "-"
        scale, digits, unit = (100, 0, " points") if self.unit == "points" else (1, 1, f" {self.unit}")
        middle, low, high = (f"{scale * value:+.{digits}f}" for value in (self.estimate, self.low, self.high))
        return f"{middle}{unit}" + (f" [{low}, {high}]" if math.isfinite(self.low) else "")


@dataclass(frozen=True)
class Claim:
    """One statement about a later arm against the first, with the numbers behind it."""

    kind: str  # SUCCESS or TIME
    verdict: str
    sentence: str
    difference: Interval
    bound: float  # one-sided, of the difference: not below it (success), not above it (time); NaN where there is none
    p: float | None = None  # the smallest alpha at which it would be supported; None: anytime-valid, see e_value
    adjusted: float | None = None  # p after Holm
    e_value: float | None = None
    needed: int | None = None  # pairs (trials of each arm, unpaired) still to do, about; None: none, or no number would do


@dataclass(frozen=True)
class Change:
    """One quantity before and after, over the scenes in which both arms succeeded (unpaired: over all successes of each)."""

    quantity: str
    before: float
    after: float
    difference: Interval
    ratio: tuple[float, float, float] | None  # before / after with its interval; None where it makes no sense


@dataclass(frozen=True)
class Comparison:
    """A later arm against the first one, in one cell or in all."""

    name: str  # of the cell, or ALL
    first: str
    second: str
    success: Claim
    time: Claim
    changes: tuple[Change, ...]
