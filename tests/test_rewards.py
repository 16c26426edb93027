"""Rewards and advantages against groups worked out by hand, the awkward ones included."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policytrim_ros.core.config import ConfigError
from policytrim_ros.training.rewards import RewardConfig, advantages, extension, in_proportion, instability, step_saving, sweep

CODE = RewardConfig(form="code", beta=1.0)


def test_longer_chunks_pay_when_they_succeed():
    found = extension([True, True, True, False], [1 / 3, 2 / 3, 1.0, 1.0], 15)
    assert found == pytest.approx(np.array([1 + 0.8 / 3, 1 + 1.6 / 3, 1.8, 0.0]) / 1.8)


def test_the_public_code_pays_for_the_horizon_in_twentieths():
    found = extension([True, True, False], [1 / 3, 1.0, 1.0], 15, CODE)
    assert found == pytest.approx(np.array([1.25, 1.75, 0.0]) / 1.75)


def test_saved_steps_pay_and_straying_from_the_group_costs():
    steps = [80, 100, 120, 450]  # mean 100, sigma sqrt(800 / 3) = 16.33 of the three that succeeded
    stray = 0.15 * math.tanh(20 / math.sqrt(800 / 3))
    saved = [(130 - 80) / 130, (130 - 100) / 130, (130 - 120) / 130]
    expected = [1 + saved[0] - stray, 1 + saved[1], 1 + saved[2] - stray, 0.0]
    assert step_saving([True, True, True, False], steps, 130) == pytest.approx(np.array(expected) / 2)


def test_a_success_beyond_the_budget_saves_nothing_and_is_still_a_success():
    assert step_saving([True, False], [200, 50], 130) == pytest.approx([0.5, 0.0])


def test_below_its_floor_sigma_is_the_floor_and_in_the_public_code_there_is_no_penalty():
    success, steps = [True, True], [100, 104]  # sigma 2, floor 5
    assert instability(success, steps) == pytest.approx([0.15 * math.tanh(2 / 5)] * 2)
    assert instability(success, steps, CODE) == pytest.approx([0, 0])
    wide = [100, 140]
    assert instability(success, wide, CODE) == pytest.approx([0.15 * math.tanh(1.0)] * 2)


def test_a_group_that_failed_or_succeeded_alike_teaches_nothing():
    assert step_saving([False] * 4, [450] * 4, 130) == pytest.approx([0] * 4)
    assert advantages([0.0] * 4, [False] * 4) is None
    assert advantages(step_saving([True] * 4, [90] * 4, 130), [True] * 4) is None


def test_one_success_in_eight_has_the_advantage_that_eight_allow():
    success = [True] + [False] * 7
    found = advantages(extension(success, [1 / 3] * 8, 15), success)
    assert found[0] == pytest.approx(math.sqrt(7), rel=1e-4) and found[1:] == pytest.approx(-1 / math.sqrt(7), rel=1e-4)
    assert advantages(extension(success, [1 / 3] * 8, 15), success, RewardConfig(lowest_mean=0.2)) is None


def test_the_sweep_goes_evenly_from_the_default_to_the_whole_chunk():
    assert sweep(5, 15) == (5, 10, 15) and sweep(5, 10, 2) == (5, 10) and sweep(8, 8) == (8,)


def test_a_form_that_nobody_wrote_is_refused():
    with pytest.raises(ConfigError, match="paper"):
        RewardConfig(form="mine")


outcomes = st.lists(st.tuples(st.booleans(), st.integers(1, 450)), min_size=1, max_size=16)


@given(outcomes, st.floats(20, 600), st.sampled_from(["paper", "code"]), st.floats(0, 1))
def test_rewards_stay_in_their_range_and_failures_earn_nothing(group, budget, form, stability):
    success, steps = (np.array(values) for values in zip(*group))
    config = RewardConfig(form=form, stability=stability)
    for rewards in (step_saving(success, steps, budget, config), extension(success, np.linspace(0.1, 1, len(group)), 15, config)):
        assert ((rewards >= 0) & (rewards <= 1)).all() and (rewards[~success] == 0).all()


@given(outcomes, st.floats(20, 600))
def test_advantages_are_centred_and_of_unit_spread(group, budget):
    success, steps = (np.array(values) for values in zip(*group))
    found = advantages(step_saving(success, steps, budget), success)
    if found is not None:
        assert abs(found.mean()) < 1e-9 and found.std() == pytest.approx(1.0, rel=1e-2)


def test_scaled_by_the_batch_a_failure_weighs_more_than_a_few_steps():
    config = RewardConfig(stability=0.0, spread="batch")
    fast, failed = [True] * 4, [True, True, True, False]
    groups = [
        advantages(step_saving(success, steps, 200, config), success, config)
        for success, steps in ((fast, [100, 104, 100, 104]), (failed, [100, 100, 100, 300]), (fast, [100] * 4))
    ]
    speed, success, nothing = in_proportion(groups, config)
    assert nothing is None and np.concatenate([speed, success]).std() == pytest.approx(1.0, abs=1e-4)
    assert speed[0] / success[0] == pytest.approx(0.005 / (0.75 / 4))  # 2 steps of 200, halved; 0.75 lost by one in four
    same = [advantages(step_saving(fast, [100, 104, 100, 104], 200), fast), None]
    assert in_proportion(same)[0] is same[0] and in_proportion([None], config) == [None]
