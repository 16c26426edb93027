"""How many trials a claim needs, before the first one and in the middle of a session.

All by normal approximation for a one-sided test of size alpha (Chow, Shao and Wang, Sample Size Calculations in Clinical
Research, ch. 3 and 4): the standard deviation that one trial contributes, over the distance between the claim's limit and what
one expects to be true. What is planned from a running session uses only figures that do not tell A from B (the pooled rate, the
share of pairs that differ), so it may be shown while the session is blind and hardly changes the error of the test at its end
(Friede and Kieser, Biometrical Journal 48:537, 2006).
"""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from policytrim_ros.core.sequential import evidence_above

ALPHA, POWER = 0.05, 0.8


def for_non_inferiority(rate: float, margin: float, difference: float = 0.0, alpha: float = ALPHA, power: float = POWER) -> int:
    """Trials in each arm that show "B's success rate is less than ``margin`` below A's", unpaired.

    ``rate``: A's true success rate; ``difference``: B - A as it truly is. ValueError where no number of trials suffices.
    """
    rate_b = rate + difference
    _check(alpha, power, rate=rate, rate_of_b=rate_b)
    return _trials(rate * (1 - rate) + rate_b * (1 - rate_b), _room(margin, difference), alpha, power)


def pairs_for_non_inferiority(
    discordant: float, margin: float, difference: float = 0.0, alpha: float = ALPHA, power: float = POWER
) -> int:
    """Pairs on the same scenes that show the same; ``discordant``: the share of pairs in which just one of the two succeeds.

    Fewer than `for_non_inferiority` as far as scenes, not policies, decide. ValueError where no number of pairs suffices.
    """
    _check(alpha, power, discordant=discordant)
    if abs(difference) > discordant:
        raise ValueError(f"a difference of {difference} needs at least that share of discordant pairs, not {discordant}")
    return _trials(discordant - difference**2, _room(margin, difference), alpha, power)


def for_faster(mean_a: float, sd_a: float, mean_b: float, sd_b: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Successful trials in each arm that show "B takes less time on average than A", unpaired; any unit, at least 2.

    With Guenther's correction (The American Statistician 35:243, 1981) for standard deviations that are estimated too.
    Failures have no time, so divide by the success rate. ValueError unless mean_b < mean_a.
    """
    if min(sd_a, sd_b) < 0:
        raise ValueError(f"standard deviations {sd_a} and {sd_b} cannot be negative")
    if not mean_b < mean_a:
        raise ValueError(f"no number of trials shows that B is faster with means {mean_b} (B) and {mean_a} (A)")
    _check(alpha, power)
    correction = NormalDist().inv_cdf(1 - alpha) ** 2 / 4
    return max(2, _trials(sd_a**2 + sd_b**2, mean_a - mean_b, alpha, power, correction))


def still_needed(
    successes_a: int, n_a: int, successes_b: int, n_b: int, margin: float, alpha: float = ALPHA, power: float = POWER
) -> tuple[int, int]:
    """(for A, for B): trials still to do for non-inferiority of success, unpaired, if A and B are truly equal.

    From the pooled rate of the trials so far, drawn towards one half by two successes and two failures (Agresti and Coull 1998),
    so that a few early successes promise nothing.
    """
    for successes, n in ((successes_a, n_a), (successes_b, n_b)):
        if not 0 <= successes <= n:
            raise ValueError(f"{successes} successes of {n} trials is impossible")
    wanted = for_non_inferiority((successes_a + successes_b + 2) / (n_a + n_b + 4), margin, 0.0, alpha, power)
    return max(0, wanted - n_a), max(0, wanted - n_b)


def pairs_still_needed(discordant: int, n: int, margin: float, alpha: float = ALPHA, power: float = POWER) -> int:
    """Pairs still to do for the same on pairs at a fixed number of them, ``discordant`` of ``n`` so far.

    From their share, drawn towards one half by one pair of either kind.
    """
    return max(0, pairs_for_non_inferiority(_discordant_share(discordant, n), margin, 0.0, alpha, power) - n)


def pairs_until_verdict(
    wins: int, ties: int, losses: int, margin: float, alpha: float = ALPHA, at_most: int = 2000
) -> int | None:
    """About how many more pairs `sequential.PairedTest` needs to say non-inferior if A and B are truly equal; None: over
    ``at_most``.

    wins, ties, losses: pairs so far in which only B, both or neither, only A succeeded. Carries on with the average future: half
    of the sessions take longer. It depends on wins and losses apart, so it tells a reader who leads: not for a blind screen; give
    zeros there.
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"negative counts of pairs {wins}, {ties}, {losses}")
    _room(margin, 0.0)
    _check(alpha, POWER)
    share = _discordant_share(wins + losses, wins + ties + losses)
    more = np.arange(at_most + 1)
    evidence = evidence_above(wins + more * share / 2, ties + more * (1 - share), losses + more * share / 2, -margin)
    enough = evidence >= 1 / alpha
    return int(enough.argmax()) if enough.any() else None


def _discordant_share(discordant: int, n: int) -> float:
    if not 0 <= discordant <= n:
        raise ValueError(f"{discordant} discordant pairs of {n} is impossible")
    return (discordant + 1) / (n + 2)


def _room(margin: float, difference: float) -> float:
    """How far the truth lies inside the margin."""
    if not 0 < margin < 1:
        raise ValueError(f"margin {margin} is outside (0, 1): give 0.1 for 10 percentage points")
    if margin + difference <= 0:
        raise ValueError(f"no number of trials shows a loss of less than {margin} if the true difference is {difference}")
    return margin + difference


def _trials(variance: float, distance: float, alpha: float, power: float, correction: float = 0.0) -> int:
    """The smallest n >= 1 at which ``distance`` is far enough from zero for the wanted power."""
    z = NormalDist().inv_cdf(1 - alpha) + NormalDist().inv_cdf(power)
    return max(1, math.ceil(z * z * variance / distance**2 + correction - 1e-9))


def _check(alpha: float, power: float, **shares: float) -> None:
    if not 0 < alpha < 0.5 or not alpha < power < 1:
        raise ValueError(f"alpha {alpha} must be in (0, 0.5) and power {power} in (alpha, 1)")
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name.replace('_', ' ')} {share} is outside [0, 1]")
