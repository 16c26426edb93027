"""Sequential tests: what they are by definition, what they promise at all looks together, and what they say."""

import copy
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special

from policytrim_ros.core.sequential import (
    FASTER,
    FRACTIONS,
    INFERIOR,
    NON_INFERIOR,
    SLOWER,
    SUPERIOR,
    UNDECIDED,
    ConfidenceSequence,
    PairedTest,
    SpeedTest,
    evidence_above,
    evidence_below,
    lower_limit,
)

unhurried = settings(max_examples=60, deadline=None)  # a busy machine is no failure

OUTCOMES = st.lists(st.sampled_from([-1, 0, 1]), max_size=60)
COUNTS = st.tuples(*[st.integers(0, 40)] * 3)
MEANS = st.floats(-0.99, 0.99)
BOTH, ONLY_A, ONLY_B, NEITHER = (True, True), (True, False), (False, True), (False, False)


def fed(sequence, outcomes):
    for d in outcomes:
        sequence.add(d)
    return sequence


@unhurried
@given(OUTCOMES, MEANS)
def test_the_evidence_is_the_money_of_fixed_fractions_played_bet_by_bet(outcomes, mean):
    money = np.ones(len(FRACTIONS))
    for d in outcomes:
        money *= 1 - FRACTIONS + FRACTIONS * (1 + d) / (1 + mean)
    counts = [outcomes.count(d) for d in (1, 0, -1)]
    assert float(evidence_above(*counts, mean)) == pytest.approx(money.mean(), rel=1e-9)


@pytest.mark.parametrize("mean", [-0.5, -0.1, 0.0, 0.3])
@pytest.mark.parametrize("discordant", [0.5, 0.75, 1.0])
def test_every_bet_is_fair_if_the_mean_is_just_the_claimed_one(mean, discordant):
    wins, losses = (discordant + mean) / 2, (discordant - mean) / 2
    for k in range(1, 6):  # the expectation over every sequence of k outcomes
        expected = sum(
            math.prod({1: wins, 0: 1 - discordant, -1: losses}[d] for d in ds)
            * float(evidence_above(ds.count(1), ds.count(0), ds.count(-1), mean))
            for ds in itertools.product((1, 0, -1), repeat=k)
        )
        assert expected == pytest.approx(1.0)


@unhurried
@given(COUNTS, MEANS, MEANS)
def test_evidence_against_a_smaller_mean_is_larger_so_the_limits_bound_one_interval(counts, mean, other):
    least, most = sorted((mean, other))
    assert evidence_above(*counts, least) >= evidence_above(*counts, most) * (1 - 1e-9)
    assert evidence_below(*counts, most) >= evidence_below(*counts, least) * (1 - 1e-9)


@unhurried
@given(COUNTS, st.floats(0.005, 0.4))
def test_the_lower_limit_is_where_the_evidence_is_one_over_alpha(counts, alpha):
    low = lower_limit(*counts, alpha)
    if low > -1:
        assert float(evidence_above(*counts, low)) == pytest.approx(1 / alpha, rel=1e-3)
    else:
        assert evidence_above(*counts, -1 + 1e-9) < 1 / alpha


@unhurried
@given(OUTCOMES)
def test_exchanging_a_and_b_mirrors_the_limits(outcomes):
    one, other = fed(ConfidenceSequence(), outcomes), fed(ConfidenceSequence(), [-d for d in outcomes])
    assert (one.low, one.high) == (-other.high, -other.low)


@unhurried
@given(OUTCOMES)
def test_limits_only_move_inwards_and_stay_in_range(outcomes):
    sequence, before = ConfidenceSequence(), (-1.0, 1.0)
    for d in outcomes:
        sequence.add(d)
        assert before[0] <= sequence.low <= 1 and -1 <= sequence.high <= before[1]
        before = sequence.low, sequence.high


@unhurried
@given(st.lists(st.sampled_from([BOTH, ONLY_A, ONLY_B, NEITHER]), max_size=40), st.integers(0, 40))
def test_the_same_pairs_give_the_same_state_at_once_and_one_by_one(pairs, split):
    at_once = PairedTest(0.1).extend(pairs)
    in_two = PairedTest(0.1).extend(pairs[:split]).extend(pairs[split:])
    assert at_once == in_two and at_once.verdict == in_two.verdict and at_once.count == len(pairs)


def test_a_copy_goes_its_own_way():
    test = PairedTest(0.1).extend([BOTH] * 5)
    other = copy.deepcopy(test)
    other.add(*ONLY_A)
    assert test.count == 5 and other.count == 6 and test != other


def test_before_the_first_pair_nothing_is_known():
    test = PairedTest(0.1)
    assert test.interval == (-1.0, 1.0) and test.verdict == UNDECIDED and not test.drifting
    assert test.against_worse == test.against_not_worse == 1.0


@pytest.mark.parametrize(
    "pairs, verdict",
    [
        ([BOTH] * 60, NON_INFERIOR),
        ([NEITHER] * 60, NON_INFERIOR),
        ([ONLY_B] * 20, SUPERIOR),
        ([ONLY_A] * 20, INFERIOR),
        ([ONLY_A, ONLY_B] * 10, UNDECIDED),
        ([BOTH] * 20, UNDECIDED),
        ([ONLY_A] * 5, UNDECIDED),
    ],
)
def test_verdicts(pairs, verdict):
    assert PairedTest(0.1).extend(pairs).verdict == verdict


@unhurried
@given(st.lists(st.sampled_from([BOTH, ONLY_A, ONLY_B, NEITHER]), max_size=40))
def test_a_verdict_is_what_an_e_value_has_reached_at_some_look(pairs):
    test, worse, not_worse = PairedTest(0.3, alpha=0.2), 1.0, 1.0
    for pair in pairs:
        test.add(*pair)
        worse, not_worse = max(worse, test.against_worse), max(not_worse, test.against_not_worse)
        if test.drifting:
            assert test.verdict == UNDECIDED
        else:
            assert (test.verdict in (NON_INFERIOR, SUPERIOR)) == (worse >= 5) and (test.verdict == INFERIOR) == (not_worse >= 5)


def test_a_verdict_stands_when_later_pairs_are_less_clear():
    test = PairedTest(0.1).extend([BOTH] * 60)
    assert test.extend([ONLY_A] * 3).verdict == NON_INFERIOR and test.against_worse < 20


def test_a_policy_that_becomes_worse_during_the_session_contradicts_itself():
    test = PairedTest(0.1).extend([ONLY_B] * 40 + [ONLY_A] * 200)
    assert test.drifting and test.verdict == UNDECIDED


@pytest.mark.parametrize("arguments", [(0.0,), (1.0,), (-0.1,), (10,), (0.1, 0.0), (0.1, 0.5)])
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(ValueError, match="outside"):
        PairedTest(*arguments)


@pytest.mark.parametrize("wins, losses", [(0, 0), (5, 0), (0, 7), (6, 6), (12, 3), (20, 9)])
def test_the_evidence_is_the_beta_mixture_of_the_literature(wins, losses):
    """The mixture of all fractions in closed form, an incomplete beta function: Robbins (1970), Howard et al. (2021) for a fair coin."""
    n = wins + losses
    mixture = 2 ** (n + 1) * special.beta(wins + 1, losses + 1) * special.betainc(losses + 1, wins + 1, 0.5)
    assert float(evidence_above(wins, 17, losses, 0.0)) == pytest.approx(mixture, rel=0.03)  # of which ours is a sum of 32 terms


@pytest.mark.parametrize("counts, margin", [((4, 20, 1), 0.1), ((2, 15, 6), 0.2), ((0, 30, 0), 0.1)])
def test_the_e_values_of_a_paired_test_are_the_integral_over_all_fractions(counts, margin):
    wins, ties, losses = counts
    test = PairedTest(margin).extend([ONLY_B] * wins + [BOTH] * ties + [ONLY_A] * losses)

    def money(sign):
        up, down = (wins, losses) if sign > 0 else (losses, wins)
        fair = 1 - sign * margin  # what 1 + d is on average, seen from this side
        play = lambda f: (1 - f + 2 * f / fair) ** up * (1 - f + f / fair) ** ties * (1 - f) ** down  # noqa: E731
        return integrate.quad(play, 0, 1)[0]

    assert (test.against_worse, test.against_not_worse) == (pytest.approx(money(1), rel=0.03), pytest.approx(money(-1), rel=0.03))


@pytest.mark.parametrize("only_a, only_b", [(0.6, 0.1), (0.5, 0.0), (0.75, 0.25)])
def test_every_course_of_five_pairs_counted_out_errs_no_more_often_than_alpha(only_a, only_b):
    """B is worse by just the margin: whatever the test says is wrong. Each of the 3^5 courses is played, with its probability."""
    chances = {ONLY_A: only_a, ONLY_B: only_b, BOTH: 1 - only_a - only_b}
    said = {NON_INFERIOR: 0.0, INFERIOR: 0.0}
    for course in itertools.product(chances, repeat=5):
        test, weight, verdicts = PairedTest(0.5, alpha=0.4), math.prod(chances[pair] for pair in course), set()
        for pair in course if weight else ():
            test.add(*pair)
            verdicts.add(NON_INFERIOR if test.verdict == SUPERIOR else test.verdict)
        for verdict in verdicts & said.keys():
            said[verdict] += weight
    assert 0.02 < said[NON_INFERIOR] <= 0.4 and said[INFERIOR] <= 0.4


def test_outcomes_that_are_none_are_refused():
    with pytest.raises(ValueError, match="none of -1, 0, 1"):
        ConfidenceSequence().add(2)
    with pytest.raises(ValueError, match="finite"):
        SpeedTest().add(3.0, math.nan)


def stops(margin, chances, sessions, most, alpha, seed):
    """Shares of sessions that ever say non-inferior and ever say inferior, with a look after every pair up to ``most``."""
    draws = np.random.default_rng(seed).choice([1, 0, -1], (sessions, most), p=chances)
    counts = [np.cumsum(draws == d, axis=1) for d in (1, 0, -1)]
    reached = [(evidence(*counts, -margin) >= 1 / alpha).any(axis=1) for evidence in (evidence_above, evidence_below)]
    return [float(one.mean()) for one in reached]


@pytest.mark.parametrize("chances", [(0.05, 0.80, 0.15), (0.0, 0.9, 0.1), (0.3, 0.3, 0.4)])
def test_stopping_as_soon_as_it_looks_good_errs_no_more_often_than_alpha(chances):
    """B is worse by just the margin; both directions are errors then, each with its own alpha."""
    good, bad = stops(0.1, chances, 1500, 300, 0.05, seed=1)
    assert good <= 0.05 + 0.011 and bad <= 0.05 + 0.011  # two standard errors of 1500 sessions
    assert good + bad > 0.005  # a test that never says anything would pass, too


def test_a_mean_that_depends_on_the_past_but_never_exceeds_the_margin_errs_no_more_often_either():
    """After a win B gets much worse, after a loss it is worse by just the margin: pairs are not independent."""
    rng, wrong = np.random.default_rng(2), 0
    for _ in range(600):
        counts, last, uniform = [0, 0, 0], 0, rng.random(150)
        history = []
        for u in uniform:
            chances = (0.05, 0.5) if last == 1 else (0.2, 0.5)
            last = 1 if u < chances[0] else (-1 if u > 0.7 else 0)
            counts[1 - last] += 1
            history.append(tuple(counts))
        wrong += bool((evidence_above(*np.array(history).T, -0.1) >= 20).any())
    assert wrong / 600 <= 0.05 + 0.018


def test_equal_policies_are_found_non_inferior_and_much_worse_ones_inferior():
    assert stops(0.2, (0.1, 0.8, 0.1), 500, 200, 0.05, seed=3)[0] > 0.95
    assert stops(0.1, (0.05, 0.55, 0.4), 500, 200, 0.05, seed=4)[1] > 0.95


def test_the_interval_holds_the_truth_at_all_looks_at_once_as_often_as_it_says():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(60):
        sequence = fed(ConfidenceSequence(), rng.choice([1, 0, -1], 40, p=(0.1, 0.6, 0.3)))
        covered += sequence.low <= -0.2 <= sequence.high
    assert covered >= 60 * 0.9 - 2 * 2.3


# ---- time ------------------------------------------------------------------------------------------------------------


def test_a_policy_that_is_always_faster_is_found_faster_after_a_few_pairs():
    test = SpeedTest()
    while test.verdict == UNDECIDED:
        test.add(14.6, 7.6)
    assert test.verdict == FASTER and 5 <= test.count <= 10 and test.against_not_faster >= 20 > test.against_not_slower
    assert SpeedTest().extend([(7.6, 14.6)] * test.count).verdict == SLOWER


def test_pairs_with_a_failure_do_not_count_and_equal_times_tell_nothing_about_who_is_faster():
    test = SpeedTest().extend([(None, 3.0), (3.0, None), (None, None)])
    assert test == SpeedTest() and test.count == 0
    test.extend([(4.0, 4.0)] * 30)
    assert test.count == 30 and test.against_not_faster == pytest.approx(1.0) and test.verdict == UNDECIDED


def test_policies_of_equal_speed_are_called_faster_no_more_often_than_alpha():
    draws = np.random.default_rng(6).choice([1, -1], (1500, 300))
    counts = np.cumsum(draws == 1, axis=1), 0, np.cumsum(draws == -1, axis=1)
    wrong = (evidence_above(*counts, 0.0) >= 20).any(axis=1).mean()
    assert 0.005 < wrong <= 0.05 + 0.011


def test_times_that_change_sides_contradict_each_other():
    test = SpeedTest().extend([(2.0, 1.0)] * 40 + [(1.0, 2.0)] * 300)
    assert test.drifting and test.verdict == UNDECIDED
