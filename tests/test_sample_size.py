"""Numbers of trials against published values, statsmodels and simulated power."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.power import NormalIndPower, TTestIndPower

from policytrim_ros.core.sample_size import (
    for_faster,
    for_non_inferiority,
    pairs_for_non_inferiority,
    pairs_still_needed,
    pairs_until_verdict,
    still_needed,
)
from policytrim_ros.core.sequential import NON_INFERIOR, PairedTest
from policytrim_ros.core.statistics import paired_difference

unhurried = settings(deadline=None)  # a busy machine is no failure

MARGINS = st.floats(0.02, 0.5)


@pytest.mark.parametrize(
    "rate, margin, n", [(0.7, 0.10, 260), (0.7, 0.15, 116), (0.7, 0.20, 65), (0.9, 0.10, 112), (0.9, 0.15, 50), (0.9, 0.20, 28)]
)
def test_equal_policies_need_the_well_known_numbers(rate, margin, n):
    assert for_non_inferiority(rate, margin) == n


def test_a_published_example_of_non_inferiority():
    """Chow, Shao and Wang, section 4.2.4: 65 % against 85 %, margin 10 %, alpha 5 %, power 80 %: 25 an arm."""
    assert for_non_inferiority(0.65, 0.10, difference=0.20) == 25


@pytest.mark.parametrize("rate, difference, margin", [(0.7, -0.02, 0.1), (0.6, 0.05, 0.1), (0.85, 0.1, 0.05), (0.9, 0.0, 0.1)])
def test_numbers_agree_with_statsmodels(rate, difference, margin):
    """Its test of normal means, told the standard deviation of one trial, or of one pair when the rates are independent."""
    variances = rate * (1 - rate), (rate + difference) * (1 - rate - difference)
    distance, pair_sd = difference + margin, math.sqrt(sum(variances))
    arguments = dict(alpha=0.05, power=0.8, alternative="larger")
    unpaired = NormalIndPower().solve_power(distance / math.sqrt(np.mean(variances)), **arguments)
    paired = NormalIndPower().solve_power(distance / pair_sd, ratio=0, **arguments)
    assert for_non_inferiority(rate, margin, difference) == math.ceil(unpaired)
    assert pairs_for_non_inferiority(pair_sd**2 + difference**2, margin, difference) == math.ceil(paired)


@pytest.mark.parametrize("sd", [2.0, 4.0, 8.0, 20.0])
def test_trials_for_a_faster_policy_agree_with_the_exact_power_of_the_t_test(sd):
    theirs = TTestIndPower().solve_power((14.6 - 7.6) / sd, alpha=0.05, power=0.8, alternative="larger")
    assert abs(for_faster(14.6, sd, 7.6, sd) - math.ceil(theirs)) <= 1


def test_a_halved_time_shows_in_two_to_five_trials():
    assert for_faster(14.6, 2, 7.6, 2) == 2 and for_faster(14.6, 4, 7.6, 4) == 5
    assert for_faster(14.6, 0, 7.6, 0) == 2


@unhurried
@given(st.floats(0.05, 0.95), MARGINS)
def test_a_wider_margin_or_less_power_never_needs_more_trials(rate, margin):
    n = for_non_inferiority(rate, margin)
    assert for_non_inferiority(rate, margin * 1.5) <= n
    assert for_non_inferiority(rate, margin, power=0.6) <= n <= for_non_inferiority(rate, margin, alpha=0.01)


@unhurried
@given(st.floats(0.05, 0.95), MARGINS, st.floats(0, 1))
def test_pairs_never_need_more_scenes_than_two_arms_whose_success_is_not_opposed(rate, margin, agreement):
    discordant = 2 * rate * (1 - rate) * (1 - agreement)  # independent policies at 0, equal ones at 1
    assert pairs_for_non_inferiority(discordant, margin) <= for_non_inferiority(rate, margin)


def test_that_many_pairs_have_about_the_power_that_was_asked_for():
    n = pairs_for_non_inferiority(0.2, 0.1)
    draws = np.random.default_rng(0).multinomial(n, (0.6, 0.1, 0.1, 0.2), 1500)
    found = np.mean([paired_difference(*map(int, draw), 0.9)[1] > -0.1 for draw in draws])
    assert found == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(
    "call",
    [
        lambda: for_non_inferiority(0.7, 0.0),
        lambda: for_non_inferiority(0.7, 0.1, difference=-0.1),
        lambda: for_non_inferiority(0.7, 0.1, difference=0.4),
        lambda: for_non_inferiority(0.7, 0.1, power=0.01),
        lambda: for_non_inferiority(0.7, 0.1, alpha=0.5),
        lambda: pairs_for_non_inferiority(0.05, 0.1, difference=0.06),
        lambda: pairs_for_non_inferiority(1.1, 0.1),
        lambda: for_faster(7.0, 1, 7.0, 1),
        lambda: for_faster(9.0, -1, 7.0, 1),
        lambda: still_needed(3, 2, 0, 0, 0.1),
        lambda: pairs_still_needed(3, 2, 0.1),
        lambda: pairs_until_verdict(-1, 2, 0, 0.1),
        lambda: pairs_until_verdict(0, 0, 0, 1.0),
        lambda: pairs_until_verdict(0, 0, 0, 0.1, alpha=0.7),
    ],
)
def test_what_no_number_of_trials_can_show_is_refused(call):
    with pytest.raises(ValueError):
        call()


def test_what_is_still_needed_shrinks_with_every_trial_to_nothing():
    assert still_needed(0, 0, 0, 0, 0.1) == (310, 310)  # nothing known: the worst rate, one half
    assert still_needed(14, 20, 15, 25, 0.1) == (for_non_inferiority(31 / 49, 0.1) - 20, for_non_inferiority(31 / 49, 0.1) - 25)
    assert still_needed(280, 400, 280, 400, 0.1) == (0, 0)
    assert pairs_still_needed(4, 20, 0.1) == pairs_for_non_inferiority(5 / 22, 0.1) - 20
    assert pairs_still_needed(20, 200, 0.1) == 0


@unhurried
@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 20))
def test_what_is_still_needed_does_not_tell_a_from_b(a, b, n):
    a, b, n = min(a, n), min(b, n), max(n, 1)
    assert still_needed(a, n, b, n, 0.1) == still_needed(b, n, a, n, 0.1)


def test_pairs_until_the_verdict_are_those_after_which_an_average_session_gets_it():
    more = pairs_until_verdict(2, 16, 2, 0.2)
    share = 5 / 22
    future = [(False, True), (True, False)] * round(more * share / 2) + [(True, True)] * round(more * (1 - share))
    now = [(False, True), (True, False)] * 2 + [(True, True)] * 16
    assert PairedTest(0.2).extend(now).verdict != NON_INFERIOR
    assert PairedTest(0.2).extend(now + future * 2).verdict == NON_INFERIOR
    assert pairs_until_verdict(4 * 2, 16 * 4, 4 * 2, 0.2) == 0
    assert pairs_until_verdict(0, 0, 60, 0.05) is None
