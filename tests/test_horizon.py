"""Tail against head: what two chunks say about the same steps, and a horizon that is cut and given back with hysteresis."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policytrim_ros.core.horizon import HorizonGuard, disagreement


def line(first, count, slope=0.01, offset=0.0):
    steps = first + np.arange(count)
    return np.repeat((slope * steps + offset)[:, None], 7, axis=1)


def test_chunks_of_one_plan_agree_and_a_shift_is_measured_in_rad():
    assert disagreement(line(10, 15), 10, line(15, 15), 15) == pytest.approx(0.0, abs=1e-12)
    assert disagreement(line(10, 15), 10, line(15, 15, offset=0.2), 15) == pytest.approx(0.2)


def test_only_shared_steps_count_and_the_gripper_does_not():
    old, new = line(0, 10), line(8, 10)
    new[2:] += 5.0  # steps 10 and later, which the old one does not know
    new[:, 6] += 1.0
    assert disagreement(old, 0, new, 8) == pytest.approx(0.0, abs=1e-12)
    assert disagreement(old, 0, new, 10) is None and disagreement(old, 5, new, 4) is None


def test_the_horizon_is_cut_at_once_and_given_back_after_a_calm_while():
    guard = HorizonGuard(15, shortest=3, limit_rad=0.1, calm=3)
    assert [guard.judge(0.05), guard.judge(0.2), guard.judge(0.2), guard.judge(0.2)] == [15, 7, 3, 3]
    assert [guard.judge(x) for x in (0.04, 0.07, 0.04, 0.04, 0.04)] == [3, 3, 3, 3, 6]  # 0.07 is not calm
    assert [guard.judge(0.0) for _ in range(6)] == [6, 6, 12, 12, 12, 15]
    assert guard.cuts == 2


def test_without_a_limit_or_without_knowledge_nothing_is_cut():
    assert [HorizonGuard(15).judge(9.0), HorizonGuard(15, limit_rad=0.1).judge(None)] == [15, 15]


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=60), st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 0.5))
def test_the_horizon_stays_between_its_bounds(scores, longest, shortest, limit):
    guard = HorizonGuard(longest, shortest, limit)
    for score in scores:
        before = guard.horizon
        after = guard.judge(score)
        assert min(shortest, longest) <= after <= longest
        assert after <= 2 * before and (after >= before or (score is not None and score > limit))
