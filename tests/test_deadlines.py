"""Deadlines of the setpoint thread: late ones are made up for, those of a long pause are missed and counted."""

import pytest

from policytrim_ros.nodes.controller import following


@pytest.mark.parametrize("late, missed", [(0.0, 0), (0.009, 0), (0.019, 0), (0.025, 2), (0.1049, 10)])
def test_deadlines_that_pass_in_a_long_pause_are_counted(late, missed):
    due, count = following(1.0, 1.0 + late, 0.01)
    assert count == missed
    assert due == pytest.approx(1.0 + late + 0.01 if missed else 1.01)
