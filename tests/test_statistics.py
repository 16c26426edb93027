"""Intervals and tests against published values, against scipy, and by simulation of their coverage."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from policytrim_ros.core.statistics import (
    bootstrap_difference,
    bootstrap_mean,
    bootstrap_ratio,
    difference,
    hybrid_difference,
    mcnemar,
    paired_difference,
    t_difference,
    t_mean,
    t_ratio,
    wider,
    wilson,
)

unhurried = settings(deadline=None)  # a busy machine is no failure


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


def test_the_paired_bootstrap_of_a_ratio_agrees_with_scipy():
    rng = np.random.default_rng(6)
    scene = rng.gamma(9, 12, 80)  # which both meet: resampled one by one the interval would be twice as wide
    above, below = scene + rng.normal(40, 10, 80), 0.5 * scene + rng.normal(30, 10, 80)
    ratio = lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis)  # noqa: E731
    theirs = stats.bootstrap((above, below), ratio, paired=True, method="percentile", n_resamples=4000, rng=np.random.default_rng(7))
    low, high = theirs.confidence_interval
    estimate, *ours = bootstrap_ratio(above, below)
    assert estimate == pytest.approx(ratio(above, below, 0)) and ours == pytest.approx([low, high], abs=0.05 * (high - low))


def test_the_interval_of_a_ratio_of_few_pairs_covers_it_where_the_bootstrap_alone_falls_short():
    rng, covered = np.random.default_rng(5), np.zeros(2)
    for trial in range(400):
        a, b = rng.gamma(14, 9 / 14, 5), rng.gamma(14, 7 / 14, 5)
        bootstrap = bootstrap_ratio(a, b, resamples=400, seed=trial)
        covered += [low <= 9 / 7 <= high for _, low, high in (bootstrap, wider(bootstrap, t_ratio(a, b)))]
    assert covered[0] / 400 < 0.9 and 0.92 < covered[1] / 400 < 0.985


def test_a_ratio_of_pairs_by_t_is_that_of_the_logarithm_and_says_nothing_of_a_single_pair():
    a, b = np.array([4.0, 5.0, 6.5]), np.array([2.0, 2.5, 3.5])
    ratio, low, high = t_ratio(a, b)
    spread = stats.sem(a / a.mean() - b / b.mean()) * stats.t.ppf(0.975, 2)
    assert ratio == pytest.approx(15.5 / 8) and [low, high] == pytest.approx([ratio * np.exp(-spread), ratio * np.exp(spread)], rel=1e-4)
    assert t_ratio([2.0], [1.0]) == (2.0, 0.0, np.inf) and np.isnan(t_ratio([], [])[0])
    with pytest.raises(ValueError):
        t_ratio([1.0, 2.0], [1.0])


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


ARMS = st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize(
    "a, b, low, high",
    [
        ((48, 80), (56, 70), 0.0524, 0.3339),  # Newcombe 1998 (unpaired), table II, method 10, examples (a) to (h)
        ((3, 10), (9, 10), 0.1705, 0.8090),
        ((2, 7), (6, 7), 0.0582, 0.8062),
        ((0, 29), (5, 56), -0.0381, 0.1926),
        ((0, 20), (0, 10), -0.1611, 0.2775),
        ((0, 10), (0, 10), -0.2775, 0.2775),
        ((0, 20), (10, 10), 0.6791, 1.0),
        ((0, 10), (10, 10), 0.6075, 1.0),
    ],
)
def test_the_interval_of_an_unpaired_difference_agrees_with_published_values(a, b, low, high):
    assert difference(*a, *b)[1:] == pytest.approx((low, high), abs=1e-4)


@unhurried
@given(ARMS, ARMS, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_interval_of_an_unpaired_difference_is_that_of_statsmodels(a, b, confidence):
    theirs = confint_proportions_2indep(*b, *a, method="newcomb", alpha=1 - confidence)
    assert difference(*a, *b, confidence)[1:] == pytest.approx(theirs, abs=1e-9)
    assert wilson(*a, confidence) == pytest.approx(proportion_confint(*a, alpha=1 - confidence, method="wilson"), abs=1e-9)


@unhurried
@given(ARMS, ARMS)
def test_an_unpaired_difference_mirrors_stays_inside_its_range_and_holds_its_estimate(a, b):
    gap, low, high = difference(*a, *b)
    assert -1 <= low <= gap <= high <= 1
    assert difference(*b, *a) == pytest.approx((-gap, -high, -low))


@unhurried
@given(ARMS, ARMS)
def test_one_more_success_of_b_never_lowers_the_difference_or_its_limits(a, b):
    (successes, n), before = b, difference(*a, *b)
    if successes < n:
        assert all(after >= value - 1e-12 for after, value in zip(difference(*a, successes + 1, n), before))


def test_more_confidence_or_fewer_trials_make_the_interval_wider():
    _, low, high = difference(14, 20, 15, 20)
    _, wider_low, wider_high = difference(14, 20, 15, 20, 0.99)
    _, many_low, many_high = difference(140, 200, 150, 200)
    assert wider_low < low < many_low < many_high < high < wider_high
    assert (low, high) == pytest.approx((-0.2178, 0.3089), abs=1e-4)  # 70 against 75 % at n = 20 shows nothing


def test_an_arm_without_trials_says_nothing_about_the_difference():
    assert difference(0, 0, 3, 5) == difference(3, 5, 0, 0) == (0.0, -1.0, 1.0)
    with pytest.raises(ValueError, match="6 successes of 5"):
        difference(1, 2, 6, 5)


def test_two_intervals_without_width_make_a_difference_without_width():
    assert hybrid_difference((0.25, 0.25, 0.25), (0.75, 0.75, 0.75)) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("p_a, p_b, n_a, n_b", [(0.7, 0.75, 20, 20), (0.95, 0.95, 20, 10), (0.5, 0.9, 5, 5)])
def test_the_interval_of_an_unpaired_difference_covers_the_truth_about_as_often_as_it_says(p_a, p_b, n_a, n_b):
    """Not by simulation: every possible outcome with its probability."""
    covered = sum(
        stats.binom.pmf(k, n_a, p_a) * stats.binom.pmf(m, n_b, p_b)
        for k in range(n_a + 1)
        for m in range(n_b + 1)
        if difference(k, n_a, m, n_b)[1] <= p_b - p_a <= difference(k, n_a, m, n_b)[2]
    )
    assert 0.93 < covered < 0.998


def test_the_unpaired_bootstrap_agrees_with_scipy():
    rng = np.random.default_rng(7)
    a, b = rng.gamma(4, 3.5, 30), rng.gamma(4, 2, 50)
    theirs = stats.bootstrap(
        (a, b), lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis), method="percentile", rng=np.random.default_rng(8)
    )
    gap, low, high = bootstrap_difference(a, b)
    assert gap == b.mean() - a.mean() and (low, high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.15)


def test_the_unpaired_bootstrap_repeats_itself_and_knows_groups_of_none_and_one():
    a, b = [1.0, 2.0, 4.0], [3.0, 5.0]
    assert bootstrap_difference(a, b, seed=3) == bootstrap_difference(a, b, seed=3)
    assert np.isnan(bootstrap_difference([], b)).all() and np.isnan(bootstrap_difference(a, [])).all()
    assert bootstrap_difference([1.0], [3.0]) == (2.0, 2.0, 2.0)


def test_the_unpaired_bootstrap_covers_the_true_difference_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(9), 0
    for trial in range(400):
        a, b = rng.normal(14.6, 4, 40), rng.normal(7.6, 2, 40)
        _, low, high = bootstrap_difference(a, b, resamples=400, seed=trial)
        covered += low <= -7 <= high
    assert 0.91 < covered / 400 < 0.98


VALUES = st.lists(st.integers(-1000, 1000), min_size=2, max_size=30)


@unhurried
@given(VALUES, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_t_interval_of_a_mean_is_that_of_scipy(values, confidence):
    theirs = stats.ttest_1samp(values, 0).confidence_interval(confidence) if np.ptp(values) else [values[0]] * 2
    assert t_mean(values, confidence)[1:] == pytest.approx(tuple(theirs), rel=1e-4, abs=1e-4 * np.ptp(values))


@pytest.mark.filterwarnings("ignore:Precision loss")  # scipy, of groups of equal values
@unhurried
@given(VALUES, VALUES, st.sampled_from([0.8, 0.9, 0.95, 0.99]))
def test_the_t_interval_of_a_difference_is_that_of_scipy(a, b, confidence):
    gap, low, high = t_difference(a, b, confidence)
    assert gap == pytest.approx(np.mean(b) - np.mean(a), abs=1e-9) and t_difference(b, a, confidence)[1] == pytest.approx(-high)
    if np.ptp(a) + np.ptp(b):
        theirs = stats.ttest_ind(b, a, equal_var=False).confidence_interval(confidence)
        assert (low, high) == pytest.approx(tuple(theirs), rel=1e-4, abs=1e-4 * (high - low))


def test_the_t_interval_of_very_many_values_is_the_normal_one():
    values = np.random.default_rng(10).normal(0, 1, 400_000)
    mean, _, high = t_mean(values)
    assert (high - mean) / (values.std() / values.size**0.5) == pytest.approx(1.959964, abs=1e-3)


def test_a_single_value_has_no_limits_and_equal_values_no_width():
    assert t_mean([3.0]) == (3.0, -np.inf, np.inf) and t_difference([1.0], [2.0, 4.0]) == (2.0, -np.inf, np.inf)
    assert t_difference([1.0, 1.0], [3.0, 3.0]) == (2.0, 2.0, 2.0) and t_mean([3.0, 3.0]) == (3.0, 3.0, 3.0)
    assert np.isnan(t_mean([])).all() and np.isnan(t_difference([1.0, 2.0], [])).all()
