"""Real success estimated with the simulator's help: against ppi_py, by its coverage, and what it refuses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from policytrim_ros.core.prediction_powered import (
    FEWEST_SCENES,
    Estimate,
    difference,
    paired_difference,
    powered_mean,
    rate,
    tuning,
)
from policytrim_ros.core.statistics import wilson

unhurried = settings(deadline=None)  # a busy machine is no failure

REAL = [1] * 12 + [0] * 8
SAME = [1] * 10 + [0] * 2 + [1] * 3 + [0] * 5
MORE = [1] * 140 + [0] * 60
BITS = st.integers(0, 1)


def scenes(rng, n, agreement=0.9, p=0.7, shift=0.0):
    """(real, simulated) outcomes of n scenes: the simulator repeats the robot with ``agreement``, else draws its own."""
    real = rng.random(n) < p
    return real.astype(float), np.where(rng.random(n) < agreement, real, rng.random(n) < p + shift).astype(float)


@pytest.mark.parametrize(
    "real, same, more, theirs",
    [
        (REAL, SAME, MORE, (0.62350, 0.43172, 0.81528)),
        (
            [1] * 5 + [0] * 10 + [-1] * 3,
            [1] * 4 + [0] * 10 + [1] + [-1] * 2 + [0],
            [1] * 30 + [0] * 60 + [-1] * 10,
            (0.13558, -0.07071, 0.34188),
        ),
    ],
)
def test_without_pseudo_scenes_it_is_the_package_of_the_authors(real, same, more, theirs):
    """ppi_py, ppi_mean_ci(alpha=0.05), whose covariances have n - 1 for n."""
    same, more = np.array([real, same], float), np.array(more, float)
    value, variance = powered_mean(same, more, tuning(same, more))
    half = 1.959964 * variance**0.5
    assert (value, value - half, value + half) == pytest.approx(theirs, abs=5e-4)


@unhurried
@given(st.lists(st.tuples(BITS, BITS), min_size=10, max_size=40), st.lists(BITS, min_size=10, max_size=60))
def test_lambda_is_where_the_variance_is_least(pairs, more):
    same, more = np.array(pairs, float).T, np.array(more, float)
    n, n_more = same.shape[1], len(more)
    spread = np.concatenate([same[1], more]).var()

    def variance(weight):
        shared = np.mean((same[0] - same[0].mean()) * (same[1] - same[1].mean()))
        return (same[0].var() - 2 * weight * shared + weight**2 * spread) / n + weight**2 * spread / n_more

    assert variance(tuning(same, more)) <= min(map(variance, np.linspace(0, 1, 201))) + 1e-12


def test_a_simulator_that_always_agrees_is_worth_its_scenes():
    rng = np.random.default_rng(0)
    real, same = scenes(rng, 20, agreement=1.0)
    more = scenes(rng, 2000)[1]
    helped = rate(real, same, more)
    low, high = wilson(int(real.sum()), 20)
    assert helped.simulator_weight > 0.95 and helped.high - helped.low < 0.75 * (high - low)


def test_a_simulator_without_any_difference_between_scenes_changes_nothing():
    alone = rate(REAL, np.ones(20), np.ones(500))
    assert alone.simulator_weight == 0.0 and alone.value == 0.6
    unrelated = rate(REAL, [1] * 6 + [0] * 6 + [1] * 4 + [0] * 4, MORE)
    assert alone == rate(REAL, np.zeros(20), np.zeros(500))
    assert (alone.value, alone.low, alone.high) == pytest.approx((unrelated.value, unrelated.low, unrelated.high))


@pytest.mark.parametrize("successes", [0, 1, 12, 20])
def test_without_the_simulator_the_interval_is_that_of_agresti_and_coull(successes):
    found = rate([1] * successes + [0] * (20 - successes), np.ones(20), np.ones(500))
    low, high = proportion_confint(successes + 2, 24, alpha=0.05, method="normal")
    assert (found.low, found.high) == pytest.approx((max(0, low), min(1, high)))


def test_a_simulator_that_contradicts_the_robot_gets_no_weight():
    assert rate(REAL, 1 - np.array(REAL), MORE).simulator_weight == 0.0


def test_twenty_successes_of_twenty_are_no_certainty():
    found = rate(np.ones(20), np.ones(20), np.ones(300))
    assert found.value == found.high == 1.0 and 0.75 < found.low < 0.87


@unhurried
@given(
    st.lists(st.tuples(BITS, BITS), min_size=10, max_size=30),
    st.lists(BITS, min_size=10, max_size=30),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_an_interval_holds_its_estimate_and_stays_in_range(pairs, more, confidence):
    found = rate(*np.array(pairs).T, more, confidence)
    assert 0 <= found.low <= found.value <= found.high <= 1 and 0 <= found.simulator_weight <= 1
    turned = rate(*(1 - np.array(pairs).T), 1 - np.array(more), confidence)
    assert (turned.low, turned.high) == pytest.approx((1 - found.high, 1 - found.low))


def test_exchanging_a_and_b_mirrors_the_difference():
    rng = np.random.default_rng(1)
    (real_a, same_a), (real_b, same_b) = scenes(rng, 30, p=0.8), scenes(rng, 30, p=0.6)
    more_a, more_b = scenes(rng, 200, p=0.8)[1], scenes(rng, 200, p=0.6)[1]
    one = paired_difference(real_a, real_b, same_a, same_b, more_a, more_b)
    other = paired_difference(real_b, real_a, same_b, same_a, more_b, more_a)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert -1 <= one.low <= one.value <= one.high <= 1


def test_equal_policies_differ_by_nothing_but_not_for_certain():
    found = paired_difference(REAL, REAL, SAME, SAME, MORE, MORE)
    assert found.value == 0.0 and found.low == pytest.approx(-found.high) and found.high > 0.05


def test_a_difference_of_separate_scenes_is_put_together_from_the_two_intervals():
    a, b = Estimate(0.6, 0.4, 0.8, 0.5), Estimate(0.7, 0.6, 0.9, 0.0)
    assert difference(a, b) == pytest.approx((0.1, 0.1 - np.hypot(0.1, 0.2), 0.1 + np.hypot(0.2, 0.2)))


@pytest.mark.parametrize("agreement, shift", [(0.9, 0.0), (0.8, -0.5), (0.0, 0.2)])
def test_it_covers_the_real_rate_about_as_often_as_it_says_even_if_the_simulator_is_biased(agreement, shift):
    rng, covered = np.random.default_rng(2), 0
    for _ in range(1500):
        real, same = scenes(rng, 30, agreement, 0.7, shift)
        found = rate(real, same, scenes(rng, 300, agreement, 0.7, shift)[1])
        covered += found.low <= 0.7 <= found.high
    assert 0.93 < covered / 1500 < 0.985


def test_the_paired_difference_covers_the_real_one_about_as_often_as_it_says():
    rng, covered = np.random.default_rng(3), 0
    for _ in range(1500):
        (real_a, same_a), (real_b, same_b) = scenes(rng, 30, p=0.7), scenes(rng, 30, p=0.8)
        more_a, more_b = scenes(rng, 300, p=0.7)[1], scenes(rng, 300, p=0.8)[1]
        found = paired_difference(real_a, real_b, same_a, same_b, more_a, more_b)
        covered += found.low <= 0.1 <= found.high
    assert 0.93 < covered / 1500 < 0.985


@pytest.mark.parametrize(
    "real, same, more, message",
    [
        (REAL[:9], SAME[:9], MORE, f"at least {FEWEST_SCENES}"),
        (REAL, SAME, MORE[:9], f"at least {FEWEST_SCENES}"),
        (REAL, SAME[:19], MORE, "20 real outcomes and 19 simulated"),
        ([2] * 20, SAME, MORE, "0 failure, 1 success"),
        (REAL, SAME, [np.nan] * 20, "0 failure, 1 success"),
    ],
)
def test_too_few_unmatched_or_impossible_outcomes_are_refused(real, same, more, message):
    with pytest.raises(ValueError, match=message):
        rate(real, same, more)


def test_arms_with_different_scenes_are_no_pairs():
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference(REAL, REAL[:15], SAME, SAME[:15], MORE, MORE)
    with pytest.raises(ValueError, match="not pairs"):
        paired_difference(REAL, REAL, SAME, SAME, MORE, MORE[:150])
