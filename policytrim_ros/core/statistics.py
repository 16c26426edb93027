"""Intervals and tests for honest tables: rates by Wilson, means by t and bootstrap, differences by Newcombe, pairs by McNemar."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

RESAMPLES = 4000


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate (Wilson 1927); (0, 1) when nothing was tried.

    Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is impossible")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def upper_bound(events: int, n: int, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a rate (Clopper and Pearson 1934): the rate at which so few events have probability
    1 - confidence. 1 when nothing was tried. ValueError unless 0 <= events <= n."""
    if not 0 <= events <= n:
        raise ValueError(f"{events} events in {n} trials is impossible")
    if events == n:
        return 1.0
    low, high = events / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if _at_most(events, n, middle) > 1 - confidence:
            low = middle
        else:
            high = middle
    return high


def _at_most(events: int, n: int, rate: float) -> float:
    """Probability of at most ``events`` in ``n`` trials."""
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(rate) + (n - k) * math.log1p(-rate)
        for k in range(events + 1)
    )
    return math.fsum(map(math.exp, logs)) if 0 < rate < 1 else float(rate <= 0)


def bootstrap_mean(values, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """(mean, low, high) by the percentile bootstrap; NaN for no values, no spread for a single one.

    Paired differences are values too: the interval of their mean is the paired bootstrap.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size == 0:
        return math.nan, math.nan, math.nan
    draws = np.random.default_rng(seed).choice(values, (resamples, values.size)).mean(axis=1)
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(values.mean()), float(low), float(high)


def t_mean(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) by Student's t; (mean, -inf, inf) for a single value, NaN for none. Paired differences are values too.

    For few values that are not wildly skewed: it knows that their spread is a guess, the bootstrap does not.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.size < 2:
        return (float(values[0]), -math.inf, math.inf) if values.size else (math.nan, math.nan, math.nan)
    half = _t_quantile(0.5 + confidence / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def wider(bootstrap: tuple[float, float, float], t: tuple[float, float, float]) -> tuple[float, float, float]:
    """(estimate, low, high) of the bootstrap, each bound that of the wider of the two: with few values the bootstrap is too narrow
    (docs/results/statistics.md), and t alone supposes that means are normal."""
    return bootstrap[0], min(bootstrap[1], t[1]), max(bootstrap[2], t[2])


def mean_interval(values, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) as tables and claims give it: `bootstrap_mean` or `t_mean`, the wider."""
    return wider(bootstrap_mean(values, confidence), t_mean(values, confidence))


def t_difference(a, b, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean(b) - mean(a), low, high) of two unpaired groups by Welch's t (Biometrika 34:28, 1947).

    Without limits when a group has one value, NaN when one has none.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if min(a.size, b.size) == 0:
        return math.nan, math.nan, math.nan
    gap = float(b.mean() - a.mean())
    if min(a.size, b.size) == 1:
        return gap, -math.inf, math.inf
    variances = np.array([group.var(ddof=1) / group.size for group in (a, b)])
    if not variances.any():
        return gap, gap, gap
    shares = variances / variances.sum()
    freedom = 1 / (shares**2 / [a.size - 1, b.size - 1]).sum()
    half = _t_quantile(0.5 + confidence / 2, freedom) * math.sqrt(variances.sum())
    return gap, gap - half, gap + half


def _t_quantile(chance: float, freedom: float) -> float:
    """Quantile of Student's t for ``chance`` >= 0.5, ``freedom`` >= 1, to 1e-5 of it: t = sqrt(freedom) tan(angle)."""
    freedom = min(freedom, 1e5)
    even = np.linspace(0, 1, 20001)
    angles = math.pi / 2 * even**2 * (3 - 2 * even)  # dense at both ends, where the density may be narrow or steep
    density = np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) * np.diff(angles))])
    return math.sqrt(freedom) * math.tan(np.interp(2 * chance - 1, mass / mass[-1], angles))


def bootstrap_difference(a, b, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float, float]:
    """(mean(b) - mean(a), low, high) of two unpaired groups by the percentile bootstrap; NaN when a group is empty.

    Each group is resampled by itself. Too narrow for fewer than 20 values (docs/results/statistics.md): use `t_difference` there.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.size == 0 or b.size == 0:
        return math.nan, math.nan, math.nan
    rng = np.random.default_rng(seed)
    draws_a, draws_b = (rng.choice(values, (resamples, values.size)).mean(axis=1) for values in (a, b))
    low, high = np.quantile(draws_b - draws_a, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(b.mean() - a.mean()), float(low), float(high)


def bootstrap_ratio(
    above, below, confidence: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float, float]:
    """(mean(above) / mean(below), low, high), pairs resampled together; NaN for no pairs. Values must be positive."""
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if above.shape != below.shape:
        raise ValueError(f"{above.size} values cannot be paired with {below.size}")
    if above.size == 0:
        return math.nan, math.nan, math.nan
    rows = np.random.default_rng(seed).integers(0, above.size, (resamples, above.size))
    draws = above[rows].mean(axis=1) / below[rows].mean(axis=1)
    low, high = np.quantile(draws, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(above.mean() / below.mean()), float(low), float(high)


def t_ratio(above, below, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean(above) / mean(below), low, high) of pairs by Student's t on the logarithm of the ratio, with the delta method's variance.

    From 0 to infinity for a single pair, NaN for none. Values must be positive.
    """
    above, below = np.asarray(above, dtype=np.float64), np.asarray(below, dtype=np.float64)
    if above.shape != below.shape:
        raise ValueError(f"{above.size} values cannot be paired with {below.size}")
    if above.size == 0:
        return math.nan, math.nan, math.nan
    ratio = float(above.mean() / below.mean())
    if above.size == 1:
        return ratio, 0.0, math.inf
    shares = above / above.mean() - below / below.mean()
    half = _t_quantile(0.5 + confidence / 2, above.size - 1) * shares.std(ddof=1) / math.sqrt(above.size)
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def ratio_interval(above, below, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean(above) / mean(below), low, high) as tables give it: `bootstrap_ratio` or `t_ratio`, the wider."""
    return wider(bootstrap_ratio(above, below, confidence), t_ratio(above, below, confidence))


def difference(successes_a: int, n_a: int, successes_b: int, n_b: int, confidence: float = 0.95) -> tuple[float, float, float]:
    """(b - a, low, high) for success rates of two unpaired groups, by Newcombe's method 10 (Statistics in Medicine 17:873, 1998).

    Two Wilson intervals put together. (0, -1, 1) when a group has no trials; ValueError unless 0 <= successes <= n.
    """
    a, b = wilson(successes_a, n_a, confidence), wilson(successes_b, n_b, confidence)
    if n_a == 0 or n_b == 0:
        return 0.0, -1.0, 1.0
    return hybrid_difference((successes_a / n_a, *a), (successes_b / n_b, *b))


def hybrid_difference(a: tuple[float, float, float], b: tuple[float, float, float]) -> tuple[float, float, float]:
    """(b - a, low, high) of two independent rates, each given as (estimate, low, high) of the same confidence.

    Newcombe's way to put two intervals together; Zou and Donner (Statistics in Medicine 27:1693, 2008) for any two.
    """
    (rate_a, low_a, high_a), (rate_b, low_b, high_b) = a, b
    gap = rate_b - rate_a
    low, high = gap - math.hypot(rate_b - low_b, high_a - rate_a), gap + math.hypot(high_b - rate_b, rate_a - low_a)
    return gap, max(-1.0, low), min(1.0, high)


def mcnemar(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test: the discordant pairs fall on either side like a fair coin.

    ``only_first``: pairs in which only the first succeeded. 1 without discordant pairs. Raises ValueError on negative counts.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"{only_first} and {only_second} discordant pairs are impossible")
    n, fewer = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> tuple[float, float, float]:
    """(second - first, low, high) for success rates of n pairs, by Newcombe's method 10 (Statistics in Medicine 17:2635, 1998).

    Two Wilson intervals put together with the correlation of the pairs. (0, -1, 1) when there are no pairs.
    """
    counts = (both, only_first, only_second, neither)
    if min(counts) < 0:
        raise ValueError(f"negative counts of pairs {counts}")
    n = sum(counts)
    if n == 0:
        return 0.0, -1.0, 1.0
    first, second = (both + only_first) / n, (both + only_second) / n
    (low1, high1), (low2, high2) = (wilson(both + only, n, confidence) for only in (only_first, only_second))
    phi = _correlation(*counts)
    below = (second - low2) ** 2 - 2 * phi * (second - low2) * (high1 - first) + (high1 - first) ** 2
    above = (high2 - second) ** 2 - 2 * phi * (high2 - second) * (first - low1) + (first - low1) ** 2
    difference = second - first
    return difference, max(-1.0, difference - math.sqrt(max(0.0, below))), min(1.0, difference + math.sqrt(max(0.0, above)))


def _correlation(both, only_first, only_second, neither) -> float:
    """Phi with Newcombe's continuity correction; 0 when a margin is empty."""
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    if margins == 0:
        return 0.0
    cross, n = both * neither - only_first * only_second, both + only_first + only_second + neither
    return (max(cross - n / 2, 0.0) if cross > 0 else cross) / math.sqrt(margins)
