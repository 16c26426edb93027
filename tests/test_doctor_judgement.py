"""What the doctor concludes from what it is told: each rule with a case that is well and one that is not."""

import os
import threading

import numpy as np
import pytest

from policytrim_ros.arm.piper import ArmLimits
from policytrim_ros.core.types import frozen
from policytrim_ros.nodes.controller import limits_told
from policytrim_ros.nodes.process import priority_of


def firmware(**changes) -> ArmLimits:
    """Limits of an arm as it is sold."""
    low, high = np.radians([-150, 0, -170, -100, -70, -120]), np.radians([150, 180, 0, 100, 70, 120])
    values = dict(low=low, high=high, speed=[3.0] * 6, acceleration=[5.0] * 6) | changes
    return ArmLimits(**{name: frozen(value) for name, value in values.items()})


# ---- what the controller says --------------------------------------------------------------------------------------------


def test_the_controller_says_the_arms_limits_joint_by_joint_and_nothing_when_it_was_told_none():
    told = limits_told(firmware())
    assert told["arm_high"].split()[:2] == ["2.6180", "3.1416"] and told["arm_v_max"].split() == ["3.0000"] * 6
    assert limits_told(None) == {}


def test_a_thread_without_real_time_priority_has_priority_0():
    assert priority_of(threading.get_native_id()) == (os.sched_getparam(0).sched_priority if os.sched_getscheduler(0) else 0)
