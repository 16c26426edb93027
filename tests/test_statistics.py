"""Intervals against published values and by simulation of their coverage."""

import numpy as np
import pytest

from policytrim_ros.core.statistics import bootstrap_mean, wilson


@pytest.mark.parametrize(
    "k, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_agrees_with_published_values(k, n, low, high):
    """81 of 263: Newcombe 1998, table I, method 3."""
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_wilson_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.binomial(50, 0.8, 4000)
    covered = np.mean([low <= 0.8 <= high for low, high in (wilson(int(k), 50) for k in draws)])
    assert 0.93 < covered < 0.975


def test_impossible_counts_are_refused_and_no_trials_say_nothing():
    with pytest.raises(ValueError):
        wilson(3, 2)
    assert wilson(0, 0) == (0.0, 1.0)
    assert np.isnan(bootstrap_mean([])[0])


def test_bootstrap_interval_of_a_mean_is_close_to_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(10, 2, 400)
    mean, low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert (
        mean == pytest.approx(values.mean())
        and low == pytest.approx(mean - half, abs=0.04)
        and high == pytest.approx(mean + half, abs=0.04)
    )
