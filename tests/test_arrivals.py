"""When pictures come and when to look: cameras, control steps and a policy on a virtual clock."""

import math

import numpy as np
import pytest

from policytrim_ros.core.arrivals import Arrivals
from policytrim_ros.core.replanning import Replanner

RATE = 20.0
OLD = 0.035
"""Seconds that a picture takes until it is there."""


def looks(cameras, horizon=12, latency_s=0.03, seconds=60.0, early=1.0, jitter_s=0.0, dead=()):
    """[(s, age of the oldest picture, how long before it was due)] of a policy whose chunks are always in time.

    ``cameras``: name -> (seconds between two pictures, the first one). ``dead``: from when to when "front" is silent.
    """
    random = np.random.default_rng(0)
    come = sorted(
        (first + n * between + OLD + jitter_s * random.random(), first + n * between, name)
        for name, (between, first) in cameras.items()
        for n in range(int(seconds / between))
        if not (name == "front" and dead and dead[0] <= first + n * between < dead[1])
    )
    arrivals, replanner, newest, rows = Arrivals(cameras), Replanner("async", horizon, RATE), {}, []
    replanner.sent(0, horizon, 0.0)
    for tick in range(round(seconds / 0.001)):
        now = tick * 0.001
        while come and come[0][0] <= now:
            came, taken, name = come.pop(0)
            newest[name] = taken
            arrivals.came(name, came, came - taken)
        next_step = 1 + int(now * RATE + 1e-9)
        since = now - (next_step - 1) / RATE
        due = replanner.until_turn(next_step, latency_s, since)
        turn = replanner.turn(next_step, 0, True, latency_s, now)
        if len(newest) == len(cameras) and (turn or replanner.may_look(due, early) and arrivals.best_now(list(cameras), now, due)):
            rows.append((now, now - min(newest.values()), due))
            arrivals.looked(cameras)
            replanner.sent(next_step - 1, replanner.trim(100, latency_s), now)
    return np.array(rows[3:])


@pytest.mark.parametrize("between", [0.1, 0.05, 1 / 30, 1 / 15])
@pytest.mark.parametrize("jitter_s", [0.0, 0.004])
def test_pictures_are_looked_at_when_they_come(between, jitter_s):
    cameras = {"front": (between, 0.033), "wrist": (between, 0.033)}
    ages = looks(cameras, jitter_s=jitter_s)[:, 1]
    assert np.percentile(ages, 95) <= OLD + jitter_s + 0.003
    late = looks(cameras, jitter_s=jitter_s, early=0.0)[:, 1]
    assert late.max() > ages.max() + between / 4 or between < 0.05, "waiting for the control step costs nothing here"


def test_a_look_is_never_made_later_than_due_nor_more_than_a_picture_earlier():
    for between in (0.1, 0.05, 1 / 30):
        early = looks({"front": (between, 0.0), "wrist": (between, 0.02)})[:, 2]
        assert early.min() > -0.0011, "a millisecond is the clock's tick"
        assert early.max() <= 1.1 * between + 0.001


def test_cameras_that_do_not_send_together_are_looked_at_when_the_older_picture_is_youngest():
    ages = looks({"front": (0.1, 0.0), "wrist": (0.1, 0.02)})[:, 1]
    assert np.percentile(ages, 95) <= OLD + 0.02 + 0.003  # front is 20 ms older when wrist comes; the other way round it is 80
    ages = looks({"front": (0.1, 0.0), "wrist": (1 / 30, 0.0)})[:, 1]
    assert np.percentile(ages, 95) <= OLD + 0.003 + 1 / 30


@pytest.mark.parametrize("early", [0.0, 0.05, 0.1, 1.0])
@pytest.mark.parametrize("horizon", [5, 12])
def test_the_price_is_at_most_the_given_share_of_every_chunk_and_one_picture(early, horizon):
    rows = looks({"front": (0.1, 0.033)}, horizon, early=early)
    most_s = min(0.11, early * horizon / RATE)
    assert rows[:, 2].max() <= most_s + 0.0011
    if early > 0:
        assert rows[:, 1].max() <= max(OLD, OLD + 0.1 - most_s) + 0.011


def test_a_camera_that_falls_silent_does_not_keep_the_policy_from_looking():
    rows = looks({"front": (0.1, 0.0), "wrist": (0.1, 0.0)}, dead=(20.0, 21.0))
    assert np.diff(rows[:, 0]).max() <= 12 / RATE + 0.051


def test_nothing_is_looked_at_early_that_was_looked_at_or_of_which_nothing_is_known():
    arrivals = Arrivals(["front"])
    assert not arrivals.best_now(["front"], 1.0, 0.01) and not arrivals.best_now([], 1.0, 0.01)
    for came in (1.0, 1.1):
        arrivals.came("front", came, OLD)
    assert arrivals.best_now(["front"], 1.1, 0.05)
    assert not arrivals.best_now(["front"], 1.1, math.inf)
    assert not arrivals.best_now(["front"], 1.19, 0.05), "the next one comes in a moment"
    arrivals.looked(["front"])
    assert not arrivals.best_now(["front"], 1.1, 0.05)
    arrivals.came("front", 1.1, OLD)
    assert arrivals.per_second("front") == pytest.approx(20.0) and arrivals.ages("front").tolist() == [OLD] * 3


def test_in_mode_sync_the_policy_waits_until_the_arm_rests():
    replanner = Replanner("sync", 5, RATE)
    replanner.sent(0, 5, 0.0)
    assert replanner.until_turn(3, 0.1, 0.0) == math.inf
    assert Replanner("async", 5, RATE).until_turn(0, 0.1, 0.0) == math.inf


def test_who_may_not_wait_for_the_next_picture_does_not_wait_until_the_look_is_due_either():
    arrivals = Arrivals(["front"])
    for came in (1.0, 1.1):
        arrivals.came("front", came, OLD)
    assert arrivals.best_now(["front"], 1.15, 0.04)
    assert not arrivals.best_now(["front"], 1.15, 0.06)
