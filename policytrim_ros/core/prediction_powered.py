"""Success on the robot, estimated with the help of the simulator, without ever counting a simulated success as a real one.

Prediction-powered inference with power tuning, PPI++ (Angelopoulos, Duchi and Zrnic, arXiv 2311.01453; Angelopoulos et al.,
Science 382:669, 2023): n scenes were tried on the robot and in the simulator, N further scenes in the simulator only. What the
robot and the simulator agree on across the n scenes is replaced by what the many scenes say about it,

    estimate = mean(real) + lambda * (mean(simulated_more) - mean(simulated_same_scenes)),

with the lambda that makes the variance least. A simulator that knows nothing gets lambda 0 and changes nothing; a biased one
costs nothing either, its bias cancels. What is needed: all scenes are drawn from the same distribution, independently, and
the scenes of the robot are not chosen after their simulation.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from policytrim_ros.core.statistics import hybrid_difference

FEWEST_SCENES = 10
"""Below it, a normal approximation says nothing about rates."""


@dataclass(frozen=True)
class Estimate:
    """Of the mean of real outcomes; ``simulator_weight`` is lambda in [0, 1], 0 when the simulator was of no use."""

    value: float
    low: float
    high: float
    simulator_weight: float


def rate(real, simulated_same_scenes, simulated_more, confidence: float = 0.95) -> Estimate:
    """The robot's success rate.

    real, simulated_same_scenes: (n,) outcomes in [0, 1] of the same scenes in the same order; simulated_more: (N,) of others. The
    interval is normal with the four pseudo-scenes of Agresti and Coull (The American Statistician 52:119, 1998), one for every
    combination of success and failure on the robot and in the simulator, since without them 20 successes of 20 would have no
    width. ValueError for n or N below `FEWEST_SCENES`, unequal lengths or outcomes outside [0, 1].
    """
    same, more = _checked(real, simulated_same_scenes, simulated_more)
    return _estimate(same, more, np.array([0.0, 1.0]), np.full(2, 0.5), 4.0, 0.0, confidence)


def paired_difference(
    real_a, real_b, simulated_same_scenes_a, simulated_same_scenes_b, simulated_more_a, simulated_more_b, confidence: float = 0.95
) -> Estimate:
    """B - A of the robot's success rates, both tried on the same n scenes, and both simulated on these and on the same N others.

    Shapes and errors as for `rate`. Two pseudo-scenes, spread over the outcomes of a pair (Agresti and Min, Statistics in
    Medicine 24:729, 2005).
    """
    same_a, more_a = _checked(real_a, simulated_same_scenes_a, simulated_more_a)
    same_b, more_b = _checked(real_b, simulated_same_scenes_b, simulated_more_b)
    if same_a.shape != same_b.shape or more_a.shape != more_b.shape:
        raise ValueError(
            f"A has {same_a.shape[1]} + {more_a.size} scenes, B {same_b.shape[1]} + {more_b.size}: they are not pairs"
        )
    pseudo, shares = np.array([-1.0, 0.0, 1.0]), np.array([0.25, 0.5, 0.25])
    return _estimate(same_b - same_a, more_b - more_a, pseudo, shares, 2.0, -1.0, confidence)


def difference(a: Estimate, b: Estimate) -> tuple[float, float, float]:
    """(b - a, low, high) of two `rate` estimates of the same confidence from different scenes, real and simulated."""
    return hybrid_difference((a.value, a.low, a.high), (b.value, b.low, b.high))


def tuning(same: np.ndarray, more: np.ndarray) -> float:
    """The lambda in [0, 1] that makes the variance least: PPI++, section 6, for a mean. same: (2, n); more: (N,)."""
    n, spread = same.shape[1], np.concatenate([same[1], more]).var()
    shared = np.mean((same[0] - same[0].mean()) * (same[1] - same[1].mean()))
    return float(np.clip(shared / (spread * (1 + n / more.size)), 0.0, 1.0)) if spread > 0 else 0.0


def powered_mean(same: np.ndarray, more: np.ndarray, weight: float, counts: np.ndarray | float = 1.0) -> tuple[float, float]:
    """(estimate, variance of it) with lambda ``weight``. ``counts``: (n,), 1 for a whole scene."""
    counts = np.broadcast_to(counts, same.shape[1])
    residual, n = same[0] - weight * same[1], counts.sum()
    mean = counts @ residual / n
    variance = counts @ (residual - mean) ** 2 / n**2 + weight**2 * more.var() / more.size
    return float(mean + weight * more.mean()), float(variance)


def _estimate(same, more, pseudo, shares, pseudo_scenes: float, least: float, confidence: float) -> Estimate:
    """The estimate without pseudo-scenes, the interval with them: ``pseudo`` outcomes, independent in both worlds."""
    weight = tuning(same, more)
    value, _ = powered_mean(same, more, weight)
    grid = np.array([(real, simulated) for real in pseudo for simulated in pseudo]).T
    counts = np.concatenate([np.ones(same.shape[1]), pseudo_scenes * np.outer(shares, shares).ravel()])
    middle, variance = powered_mean(np.concatenate([same, grid], axis=1), more, weight, counts)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * variance**0.5
    value = min(max(value, least), 1.0)
    return Estimate(value, min(value, max(least, middle - half)), max(value, min(1.0, middle + half)), weight)


def _checked(real, simulated_same_scenes, simulated_more) -> tuple[np.ndarray, np.ndarray]:
    """((2, n), (N,)) or an error that says what to do."""
    real, same, more = (np.asarray(v, dtype=np.float64).ravel() for v in (real, simulated_same_scenes, simulated_more))
    if real.size != same.size:
        raise ValueError(f"{real.size} real outcomes and {same.size} simulated ones of the same scenes: give one for each scene")
    if min(real.size, more.size) < FEWEST_SCENES:
        raise ValueError(
            f"{real.size} real scenes and {more.size} further simulated ones are too few: "
            f"at least {FEWEST_SCENES} of each, or report the real ones alone"
        )
    for values in (real, same, more):
        if not np.all((values >= 0) & (values <= 1)):
            raise ValueError("outcomes must lie in [0, 1]: 0 failure, 1 success")
    return np.stack([real, same]), more
