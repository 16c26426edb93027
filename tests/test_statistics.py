"""Intervals and tests against published values, against scipy, and by simulation of their coverage."""

import numpy as np
import pytest
from scipy import stats

from policytrim_ros.core.statistics import bootstrap_mean, bootstrap_ratio, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    "k, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)]
)
def test_wilson_agrees_with_published_values(k, n, low, high):
    """81 of 263: Newcombe 1998, table I, method 3."""
    assert wilson(k, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("k, n", [(0, 7), (3, 7), (93, 100), (200, 200)])
def test_wilson_agrees_with_scipy(k, n):
    theirs = stats.binomtest(k, n).proportion_ci(0.9, method="wilson")
    assert wilson(k, n, 0.9) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_covers_the_true_rate_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    draws = rng.binomial(50, 0.8, 4000)
    covered = np.mean([low <= 0.8 <= high for low, high in (wilson(int(k), 50) for k in draws)])
    assert 0.93 < covered < 0.975


def test_impossible_counts_are_refused_and_no_trials_say_nothing():
    with pytest.raises(ValueError):
        wilson(3, 2)
    with pytest.raises(ValueError):
        mcnemar(-1, 2)
    with pytest.raises(ValueError):
        paired_difference(1, 2, -1, 4)
    with pytest.raises(ValueError):
        bootstrap_ratio([1, 2], [1])
    assert wilson(0, 0) == (0.0, 1.0)
    assert mcnemar(0, 0) == 1.0 and paired_difference(0, 0, 0, 0) == (0.0, -1.0, 1.0)
    assert np.isnan(bootstrap_mean([])[0]) and np.isnan(bootstrap_ratio([], [])[0])


def test_bootstrap_interval_of_a_mean_is_close_to_the_normal_one_for_many_values():
    values = np.random.default_rng(1).normal(10, 2, 400)
    mean, low, high = bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert (
        mean == pytest.approx(values.mean())
        and low == pytest.approx(mean - half, abs=0.04)
        and high == pytest.approx(mean + half, abs=0.04)
    )


def test_bootstrap_interval_of_a_mean_agrees_with_scipy():
    values = np.random.default_rng(2).gamma(2, 30, 80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(3))
    assert bootstrap_mean(values)[1:] == pytest.approx(tuple(theirs.confidence_interval), rel=0.02)


def test_the_paired_bootstrap_covers_the_true_difference_and_ratio_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(4), np.zeros(2)
    for trial in range(300):
        scene = rng.gamma(9, 12, 60)  # scenes differ more than the policies do
        a, b = scene + rng.normal(40, 10, 60), 0.5 * scene + rng.normal(30, 10, 60)
        _, low, high = bootstrap_mean(b - a, resamples=400, seed=trial)
        covered[0] += low <= (0.5 * 108 + 30) - (108 + 40) <= high
        _, low, high = bootstrap_ratio(a, b, resamples=400, seed=trial)
        covered[1] += low <= 148 / 84 <= high
    assert np.all(covered / 300 > 0.91) and np.all(covered / 300 < 0.985)


@pytest.mark.parametrize("first, second", [(0, 1), (1, 7), (6, 16), (12, 2), (5, 5), (0, 30), (200, 260)])
def test_mcnemar_is_the_exact_binomial_test_on_the_discordant_pairs(first, second):
    assert mcnemar(first, second) == pytest.approx(stats.binomtest(first, first + second).pvalue, abs=1e-12)


@pytest.mark.parametrize(
    "table, low, high",
    [
        ((59, 16, 6, 80), -0.1186, -0.0046),  # Cavo et al. 2012 in Fagerland et al., Statistical Analysis of Contingency Tables
        ((1, 1, 7, 12), 0.0255, 0.5069),  # Bentur et al. 2009, ibid.
        ((36, 12, 2, 0), -0.3404, -0.0569),  # Newcombe 1998 (paired), method 10
    ],
)
def test_the_interval_of_a_paired_difference_agrees_with_published_values(table, low, high):
    assert paired_difference(*table)[1:] == pytest.approx((low, high), abs=1e-4)


def test_swapping_the_two_sides_mirrors_the_interval():
    difference, low, high = paired_difference(50, 3, 9, 38)
    assert paired_difference(50, 9, 3, 38) == pytest.approx((-difference, -high, -low))


@pytest.mark.parametrize("chances", [(0.75, 0.05, 0.10, 0.10), (0.92, 0.03, 0.03, 0.02), (0.3, 0.2, 0.1, 0.4)])
def test_the_interval_of_a_paired_difference_covers_the_truth_about_as_often_as_it_says(chances):
    draws, truth = np.random.default_rng(5).multinomial(120, chances, 2000), chances[2] - chances[1]
    covered = np.mean([low <= truth <= high for _, low, high in (paired_difference(*map(int, draw)) for draw in draws)])
    assert 0.935 < covered < 0.985


def test_the_one_sided_bound_is_too_high_no_more_often_than_it_says():
    chances, truth = (0.80, 0.08, 0.03, 0.09), -0.05
    draws = np.random.default_rng(6).multinomial(200, chances, 2000)
    wrong = np.mean([paired_difference(*map(int, draw), 0.9)[1] > truth for draw in draws])
    assert 0.025 < wrong < 0.065  # a policy that is worse by just the margin is called non-inferior in about 5 % of trials
