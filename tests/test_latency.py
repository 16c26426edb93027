"""How long a chunk takes, live slack, and a policy that takes over without letting the plan run out, on a virtual clock."""

import operator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.latency import ENOUGH, UNKNOWN_S, Handover, Latency, still_takes
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.core.types import Chunk

RATE, DT = 20.0, 0.005


def test_what_was_measured_before_a_policy_speaks_counts_until_there_is_enough_of_its_own():
    latency = Latency((0.3, 0.34))
    assert latency.p99 == pytest.approx(0.34, abs=0.001) and Latency().p99 == UNKNOWN_S
    for _ in range(ENOUGH - 1):
        latency.add(0.05)
    assert latency.p99 > 0.3
    latency.add(0.05)
    assert latency.p99 == pytest.approx(0.05)


def test_a_rare_hiccup_does_not_shorten_every_plan_and_a_slow_policy_does():
    hiccups, varied = Latency(), Latency()
    for n in range(200):
        hiccups.add(0.8 if n % 50 == 7 else 0.1)
        varied.add(0.1 + 0.001 * n)
    assert hiccups.p99 > 0.7 and hiccups.planned == pytest.approx(0.15)
    assert varied.planned == varied.p99 == pytest.approx(0.298, abs=0.002)
    for _ in range(30):
        hiccups.add(0.8)  # no longer rare
    assert hiccups.planned == pytest.approx(0.8)


def test_what_is_overdue_takes_ever_longer():
    assert [still_takes(0.2, running, 0.05) for running in (None, 0.0, 0.15)] == pytest.approx([0.2, 0.2, 0.05])
    assert still_takes(0.2, 0.21, 0.05) == pytest.approx(0.06) and still_takes(0.2, 0.5, 0.05) == pytest.approx(0.35)


def test_a_policy_takes_over_where_the_plan_lasts_or_after_one_look_of_the_old_one():
    handover = Handover()
    assert handover.takes_over(0.0)
    assert [handover.takes_over(-0.1) for _ in range(4)] == [False, True, False, True]


class Exchange:
    """Inference and executor: an old policy, then at ``at`` seconds a new one waits. As the node does, look by look; ``planned`` names
    the latency that plans are made for. Every fiftieth chunk, the tenth first, takes ``hiccup_s`` more."""

    def __init__(self, old_s, new_s=None, at=3.0, H=30, h=12, known=True, seconds=6.0, planned="planned", hiccup_s=0.0):
        self.executor, self.replanner, self.handover = ChunkExecutor(RATE), Replanner("async", h, RATE), Handover()
        self.executor.start(np.zeros(7), 0.0)
        self.latency, waits = Latency((old_s,)), None
        takes, coming, began, self.calls = old_s, None, 0.0, 0
        self.switched_at, expects = None, operator.attrgetter(planned)
        for tick in range(round(seconds / DT)):
            now = tick * DT
            if coming and now >= coming[0]:
                count = self.replanner.trim(H, max(expects(self.latency), expects(waits)) if waits else expects(self.latency))
                self.replanner.sent(coming[1], count, now)
                chunk = np.full((count, 7), 0.001 * self.calls)
                self.executor.accept(Chunk(chunk, 1 + bool(self.switched_at), self.calls, coming[1], RATE, True))
                self.latency.add(coming[2])
                coming = None
            before = self.executor.next_step
            point = self.executor.tick(now)
            began = now if point.next_step != before else began
            if new_s is not None and waits is None and self.switched_at is None and now >= at:
                waits = Latency((new_s,) if known else ())
            if coming:
                continue
            expected = max(expects(self.latency), expects(waits)) if waits and known else expects(self.latency)
            if not self.replanner.turn(point.next_step, point.queued, point.playing, expected, now):
                continue
            if waits and (not known or self.handover.takes_over(self.replanner.slack(point.next_step, expects(waits)))):
                self.latency, waits, takes, self.switched_at = waits, None, new_s, now
            self.calls += 1
            took = takes + hiccup_s * (self.calls % 50 == 10)
            coming = now + took, self.replanner.first(point.next_step, point.playing, now - began), took


@pytest.mark.parametrize("planned, calls, stalls", [("p99", 254, 1), ("planned", 118, 3)])
def test_what_a_hiccup_in_fifty_chunks_costs_when_it_is_planned_for_and_when_it_slows_the_arm(planned, calls, stalls):
    """A minute at h = H = 15: 80 ms a chunk, now and then 0.45 s."""
    played = Exchange(0.08, H=15, h=15, seconds=60.0, planned=planned, hiccup_s=0.37)
    assert played.calls == pytest.approx(calls, rel=0.1) and played.executor.stalls <= stalls and played.executor.slowed_s < 0.5


@pytest.mark.parametrize("phase", [3.0, 3.07, 3.14, 3.215])
@pytest.mark.parametrize("old_s, new_s", [(0.02, 0.09), (0.02, 0.2), (0.02, 0.34), (0.34, 0.02), (0.09, 0.4)])
def test_a_slow_successor_finds_a_plan_that_lasts_until_its_first_chunk(old_s, new_s, phase):
    played = Exchange(old_s, new_s, phase)
    assert played.executor.generation == 2 and played.switched_at < phase + 1.5
    assert played.executor.stalls == 0 and played.executor.slowed_s < 0.03


def test_a_slow_successor_of_which_nothing_was_measured_let_the_arm_rest():
    """Before, it was taken to need 0.1 s and its first look was chosen by the latency of the one before."""
    assert Exchange(0.02, 0.34, known=False).executor.stalls > 0


@settings(max_examples=25, deadline=None)
@given(st.floats(0.01, 0.4), st.floats(0.01, 0.4), st.floats(2.0, 3.0), st.integers(10, 14))
def test_whatever_the_two_latencies_are_an_exchange_leaves_no_rest(old_s, new_s, at, h):
    played = Exchange(old_s, new_s, at, h=h, seconds=5.0)
    assert played.executor.generation == 2 and played.executor.stalls == 0


@pytest.mark.parametrize("late_s", [0.02, 0.1, 0.3])
def test_slack_warns_when_the_path_begins_to_slow_at_the_latest_when_a_prediction_is_slower_than_ever(late_s):
    """The plan of a policy of 0.2 s; then a prediction that takes ``late_s`` more."""
    executor, replanner, p99 = ChunkExecutor(RATE), Replanner("async", 5, RATE), 0.2
    executor.start(np.zeros(7), 0.0)
    replanner.sent(0, 12, 0.0)
    executor.accept(Chunk(np.zeros((12, 7)), 1, 1, 0, RATE, True))
    looked = warned = slowed = None
    began, quiet = 0.0, []
    for tick in range(300):
        now, before = tick * DT, executor.next_step
        executor.tick(now)
        began = now if executor.next_step != before else began
        if looked is None and replanner.turn(executor.next_step, executor.queued, executor.playing, p99, now):
            looked = now
        if looked is not None and now >= looked + p99 + late_s:
            break
        running = None if looked is None else now - looked
        slack = replanner.slack(executor.next_step, still_takes(p99, running, 1 / RATE)) + max(0.0, 1 / RATE - (now - began))
        if slack < 0.05 and warned is None:
            warned = now
        quiet += [slack] if running is not None and running <= p99 else []
        if executor.slowed_s > 0 and slowed is None:
            slowed = now
    assert min(quiet) >= 0.05, "it warned of a prediction that was in time"
    if late_s >= 0.1:
        assert warned is not None and warned <= slowed + DT + 1e-9
