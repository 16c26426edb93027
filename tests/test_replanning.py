"""Replanner and executor together on a virtual clock: what a deployment does, without the deployment."""

import numpy as np
import pytest

from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.core.types import Chunk

RATE = 20.0


def play(mode, horizon, latency_s, seconds=10.0, predicted=15, dt=0.005):
    """Runs a policy of constant latency; returns (executor, calls, chunk id of each control step)."""
    executor, replanner = ChunkExecutor(RATE), Replanner(mode, horizon, RATE)
    executor.start(np.zeros(7), 0.0)
    pending, calls, played = None, 0, []
    for tick in range(round(seconds / dt)):
        now = tick * dt
        if pending and now >= pending[0]:
            executor.accept(pending[1])
            pending = None
        before = executor.next_step
        point = executor.tick(now)
        played += [point.chunk_id] * (point.next_step - before)
        if pending is None and replanner.turn(executor.next_step, executor.queued, executor.playing, latency_s, now):
            calls += 1
            count = replanner.trim(predicted, latency_s)
            first = replanner.first(executor.next_step, executor.playing, now % (1 / RATE))
            replanner.sent(first, count, now)
            pending = (now + latency_s, Chunk(np.zeros((count, 7)), 1, calls, first))
    return executor, calls, played


@pytest.mark.parametrize("latency", [0.02, 0.09, 0.2])
@pytest.mark.parametrize("horizon", [1, 5, 10])
def test_sync_plays_exactly_h_actions_of_every_chunk_and_stalls_for_the_latency(horizon, latency):
    executor, calls, played = play("sync", horizon, latency)
    counts = np.unique(played, return_counts=True)[1]
    assert set(counts[:-1]) == {horizon}
    assert executor.stall_s / executor.stalls == pytest.approx(latency, abs=0.011)


@pytest.mark.parametrize("latency", [0.02, 0.09, 0.2, 0.34])
def test_async_never_runs_dry_when_the_latency_leaves_enough_actions(latency):
    executor, calls, played = play("async", 8, latency, predicted=30)
    assert executor.stalls == 0
    assert calls == pytest.approx(len(played) / 8, rel=0.35)


def test_async_with_too_short_a_chunk_stalls_rather_than_replays():
    executor, _, played = play("async", 2, 0.34, predicted=8)
    assert executor.next_step == len(played)


def test_a_chunk_that_never_plays_is_given_up_after_a_while():
    replanner = Replanner("sync", 5, RATE)
    assert replanner.turn(0, 0, False, 0.0, 1.0)
    replanner.sent(0, 5, 1.0)
    assert not replanner.turn(0, 0, False, 0.0, 1.2)
    assert replanner.turn(0, 0, False, 0.0, 1.7)
    with pytest.raises(ValueError, match="use one of sync, async, rtc"):
        Replanner("rtc2", 5, RATE)


@pytest.mark.parametrize(
    "playing, since_s, first",
    [(False, 9.0, 7), (True, 0.0, 6), (True, 0.024, 6), (True, 0.026, 7), (True, 0.049, 7)],
)
def test_an_observation_belongs_to_the_end_of_a_control_step_that_is_one_period_away(playing, since_s, first):
    """The first action of a chunk ends one control step after the observation; step 6 plays, step 7 is next."""
    assert Replanner("async", 5, RATE).first(7, playing, since_s) == first


def test_slack_is_what_the_plan_still_plays_when_the_chunk_arrives():
    replanner = Replanner("async", 5, RATE)
    assert replanner.slack(10, 0.1) == pytest.approx(-0.1)  # nothing is planned
    replanner.sent(10, 8, 0.0)
    assert replanner.slack(14, 0.1) == pytest.approx(0.1)
    assert replanner.slack(17, 0.1) == pytest.approx(-0.05)


@pytest.mark.parametrize("mode", ["sync", "async", "rtc"])
def test_what_follows_go_rests_on_pictures_that_were_taken_after_it(mode):
    replanner = Replanner(mode, 5, RATE)
    assert not replanner.predates(0.0)  # nothing rests yet
    assert replanner.turn(0, 0, False, 0.05, 7.0)
    assert replanner.predates(6.99) and not replanner.predates(7.0)
    replanner.sent(0, 6, 7.1)
    replanner.turn(2, 4, True, 0.05, 7.3)
    assert not replanner.predates(0.0)  # a plan plays
    replanner.turn(6, 0, False, 0.05, 7.6)  # it ran out: sync rests at every look, the others move on with what they have
    assert replanner.predates(7.5) == (mode == "sync")
    replanner.reset()
    assert replanner.turn(6, 0, False, 0.05, 9.0) and replanner.predates(8.0)  # a new go
