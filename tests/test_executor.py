"""The chunk executor on a virtual clock."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.executor import SCALE_CHANGE, SLOWED_ACTIONS, ChunkExecutor, ChunkRefused
from policytrim_ros.core.generations import Generations
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.supervisor import Health, Supervisor, SupervisorConfig
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.nodes.messages import chunk_from_message, chunk_to_message, seconds_to_time

PERIOD = 0.05


def chunk(values, first, generation=1, chunk_id=1, follows=False):
    return Chunk(np.repeat(np.asarray(values, float)[:, None], 7, axis=1), generation, chunk_id, first, follows=follows)


def started(**kwargs):
    executor = ChunkExecutor(20.0, **kwargs)
    executor.start(np.zeros(7), 0.0)
    return executor


def test_the_path_is_a_straight_line_between_actions_and_rests_at_the_last_one():
    executor = started()
    executor.accept(chunk([0.1, 0.3], first=0))
    assert executor.tick(0.0).next_step == 1
    assert executor.tick(0.025).position == pytest.approx(np.full(7, 0.05))
    assert executor.tick(0.075).position == pytest.approx(np.full(7, 0.2))
    assert executor.tick(0.075).velocity == pytest.approx(np.full(7, 0.2 / PERIOD))
    resting = executor.tick(0.2)
    assert not resting.playing and resting.position == pytest.approx(np.full(7, 0.3)) and not resting.velocity.any()


def test_half_the_speed_scale_takes_twice_the_time_over_the_same_path():
    executor = started(speed_scale=0.5)
    executor.accept(chunk([1.0], first=0))
    executor.tick(0.0)
    assert executor.tick(0.05).position == pytest.approx(np.full(7, 0.5))


def test_a_new_speed_scale_comes_with_the_next_actions_in_small_steps_and_leaves_the_path_alone():
    executor, paces = started(), []
    executor.accept(chunk(np.arange(1, 30), first=0))
    executor.tick(0.0)
    executor.speed_scale = 0.5
    for now in np.arange(0.0, 2.0, 0.01):
        point = executor.tick(now)
        if point.next_step > len(paces):
            paces.append(point.velocity[0] * PERIOD)
        assert point.next_step - 1 <= point.position[0] <= point.next_step
    assert paces[0] == 1.0 and paces[5:10] == pytest.approx([0.5] * 5)
    assert np.abs(np.diff(paces)).max() <= SCALE_CHANGE + 1e-9
    for nonsense in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="speed scale"):
            executor.speed_scale = nonsense
    assert executor.speed_scale == 0.5


def test_before_the_end_of_a_chunk_whose_successor_is_late_the_path_slows_evenly_to_rest():
    executor = started()
    executor.accept(chunk(np.arange(1, 6), first=0, follows=True))
    slow_from, slow_until = PERIOD * (5 - SLOWED_ACTIONS), PERIOD * (5 + SLOWED_ACTIONS)
    for now in np.arange(0.0, slow_until, 0.005):
        point = executor.tick(now)
        left = 1.0 - max(0.0, now - slow_from) / (slow_until - slow_from)
        assert point.playing and point.velocity == pytest.approx(np.full(7, left / PERIOD))
        assert point.position[0] == pytest.approx(now / PERIOD if now < slow_from else 5 - SLOWED_ACTIONS * left**2)
    resting = executor.tick(slow_until + 1e-9)
    assert not resting.playing and resting.next_step == 5 and resting.position[0] == 5.0
    assert executor.slowed_s == pytest.approx(SLOWED_ACTIONS * PERIOD)
    assert executor.dry_for(slow_until + 1.0) == pytest.approx(1.0)  # the hold comes so much later, no more


def test_a_chunk_that_comes_while_the_path_slows_is_played_at_the_full_rate_from_there():
    executor = started()
    executor.accept(chunk(np.arange(1, 6), first=0, follows=True))
    executor.tick(0.0), executor.tick(0.2)
    before = executor.tick(0.28)
    assert before.next_step == 5 and before.velocity[0] < 0.4 / PERIOD
    executor.accept(chunk([6, 7, 8], first=5, chunk_id=2, follows=False))
    after = executor.tick(0.28)
    assert after.position == pytest.approx(before.position) and after.velocity == pytest.approx(np.full(7, 1 / PERIOD))
    end = 0.28 + (8 - after.position[0]) * PERIOD
    assert executor.tick(end - 1e-6).playing and not executor.tick(end + 1e-6).playing
    assert executor.slowed_s == pytest.approx(end - 8 * PERIOD) and executor.stalls == 0


def test_a_chunk_in_time_slows_nothing_and_one_later_than_the_slowing_begins_as_it_would_have_without():
    def begins(arrives, follows):
        """When each control step begins."""
        executor, steps = started(), []
        executor.accept(chunk(np.arange(1, 6), first=0, follows=follows))
        for tick in range(100):
            if tick == arrives:
                executor.accept(chunk(np.arange(6, 9), first=5, chunk_id=2))
            if executor.tick(tick * 0.01).next_step > len(steps):
                steps.append(tick)
        return steps

    in_time, late = 5 * (5 - SLOWED_ACTIONS) - 1, 5 * (5 + SLOWED_ACTIONS) + 2
    assert begins(in_time, True) == begins(in_time, False)
    assert begins(late, True)[5:] == begins(late, False)[5:]
    assert begins(late, True)[4] > begins(late, False)[4]


def test_a_late_chunk_skips_what_was_really_consumed():
    executor = started()
    executor.accept(chunk([1, 2, 3, 4], first=0, chunk_id=1))
    executor.tick(0.0)
    executor.tick(0.05)  # steps 0 and 1 have begun
    assert executor.accept(chunk([10, 20, 30, 40], first=1, chunk_id=2)) == 1
    assert executor.tick(0.15).position[0] == pytest.approx(20)
    assert executor.tick(0.15).chunk_id == 2


def test_a_future_chunk_keeps_the_queue_up_to_its_beginning():
    executor = started()
    executor.accept(chunk([1, 2, 3, 4], first=0))
    executor.accept(chunk([30], first=2, chunk_id=2))
    reached = [executor.tick(t).position[0] for t in (0.0, 0.05, 0.10, 0.15)]
    assert reached == pytest.approx([0, 1, 2, 30])


def test_a_gap_a_wholly_past_chunk_another_rate_and_a_retired_generation_are_refused():
    executor = started()
    with pytest.raises(ChunkRefused, match="2 steps after the end"):
        executor.accept(chunk([1], first=2))
    executor.accept(chunk([1, 2], first=0, generation=2))
    executor.tick(0.0), executor.tick(0.05)
    with pytest.raises(ChunkRefused, match="retired"):
        executor.accept(chunk([1], first=2, generation=1))
    with pytest.raises(ChunkRefused, match="lie in the past"):
        executor.accept(chunk([1, 2], first=0, generation=2))
    with pytest.raises(ChunkRefused, match="actions/s"):
        executor.accept(Chunk(np.zeros((1, 7)), 2, 9, 2, rate_hz=30.0))


def test_a_late_chunk_of_the_generation_before_is_refused_also_when_the_new_one_has_not_begun():
    """It once replaced the new generation's actions, because only the generation that played was looked at."""
    executor = started()
    executor.accept(chunk([1, 2, 3, 4], first=0, generation=1))
    executor.tick(0.0)
    executor.accept(chunk([20, 30, 40], first=1, generation=2, chunk_id=2))
    with pytest.raises(ChunkRefused, match="generation 1 is retired, 2 runs"):
        executor.accept(chunk([2, 3, 4], first=1, generation=1, chunk_id=3))
    assert [executor.tick(t).generation for t in (0.01, 0.06, 0.11)] == [1, 2, 2]
    assert executor.tick(0.2).position == pytest.approx(np.full(7, 40))


def test_a_retired_generation_stays_retired_after_a_hold_and_who_starts_again_is_told_its_number():
    """Else a process that starts again beside an arm that was held would go on under a number that is refused for ever."""
    executor = started()
    executor.accept(chunk([1, 2, 3, 4], first=0, generation=1))
    executor.tick(0.0)
    executor.accept(chunk([40], first=3, generation=2))
    assert executor.generation == 1
    executor.stop()
    executor.start(np.zeros(7), 1.0)
    assert executor.generation == 2
    with pytest.raises(ChunkRefused, match="retired"):
        executor.accept(chunk([5], first=1, generation=1))
    generations = Generations()
    generations.stage("a", "sha", "A"), generations.switch()
    generations.follow(executor.generation)
    assert executor.accept(chunk([5], first=1, generation=generations.current.number)) == 0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_however_chunks_of_several_generations_arrive_none_plays_after_a_newer_one_was_accepted(data):
    executor, now, accepted, played, begins = started(), 0.0, [0], [0], 0  # generations; an action's value is its generation
    for _ in range(data.draw(st.integers(2, 12))):
        if not data.draw(st.integers(0, 9)):
            executor.stop()
            executor.start(np.zeros(7), now)
        generation, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8))
        first = executor.next_step + data.draw(st.integers(-3, executor.queued))
        fits = generation >= max(accepted) and first + length > executor.next_step
        try:
            executor.accept(chunk([generation] * length, first, generation))
            assert fits
            begins = min(first, begins) if generation == max(accepted) else first
            accepted.append(generation)
        except ChunkRefused:
            assert not fits
        for _ in range(data.draw(st.integers(0, 40))):
            now += 0.01
            before, point = executor.next_step, executor.tick(now)
            if point.next_step > before:
                assert executor.target[0] == point.generation >= max(played)
                assert point.generation == max(accepted) or point.next_step <= begins  # until the new one begins
                played.append(point.generation)
    for _ in range(executor.queued + 1):
        now += 10.0
        executor.tick(now)
    assert executor.generation == max(accepted)



def test_nothing_is_accepted_or_played_while_it_rests():
    executor = ChunkExecutor()
    with pytest.raises(ChunkRefused):
        executor.accept(chunk([1], first=0))
    executor.start(np.zeros(7), 0.0)
    executor.accept(chunk([1, 2], first=0))
    executor.tick(0.0)
    executor.stop()
    executor.start(np.full(7, 5.0), 1.0)
    assert executor.tick(2.0).position == pytest.approx(np.full(7, 5.0))


def test_a_dry_queue_is_a_stall_from_the_end_of_the_last_action_to_the_next_chunk():
    executor = started()
    executor.accept(chunk([1], first=0))
    executor.tick(0.0)
    executor.tick(0.08)
    assert executor.dry_for(0.08) == pytest.approx(0.03)
    executor.accept(chunk([2], first=1, chunk_id=2))
    executor.tick(0.10)
    assert executor.stalls == 1 and executor.stall_s == pytest.approx(0.05) and executor.dry_for(0.10) == 0.0


def test_waiting_for_the_first_chunk_is_no_stall():
    executor = started()
    executor.tick(3.0)
    executor.accept(chunk([1], first=0))
    executor.tick(4.0)
    assert executor.stalls == 0 and executor.stall_s == 0.0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_control_step_is_played_once_and_in_order_for_any_chunks_and_delays(data):
    """Actions carry their control step as value, so what is played can be read off the path."""
    executor = started()
    now, observed, played = 0.0, 0, []
    for chunk_id in range(data.draw(st.integers(1, 12))):
        length = data.draw(st.integers(1, 15))
        late = data.draw(st.integers(0, 8))
        first = executor.next_step + data.draw(st.integers(0, executor.queued))
        executor.speed_scale = data.draw(st.sampled_from([0.05, 0.3, 1.0]))
        for _ in range(late):
            now += 0.01 * data.draw(st.integers(1, 9))
            point = executor.tick(now)
            assert point.next_step >= observed
            observed = point.next_step
        try:
            executor.accept(
                chunk(np.arange(first, first + length) + 1.0, first, chunk_id=chunk_id, follows=data.draw(st.booleans()))
            )
        except ChunkRefused:
            continue
        for _ in range(data.draw(st.integers(0, 60))):
            now += 0.01
            before = executor.next_step
            point = executor.tick(now)
            if point.next_step > before:
                played.append(point.next_step)
                assert point.next_step == before + 1
                assert executor._to[0] == pytest.approx(point.next_step)  # step n plays the action meant for step n
    assert played == sorted(set(played))


class Watched:
    """An executor and a filter on a virtual clock; every tick is checked."""

    LIMITS = SafetyLimits()
    MOVING = np.array([1.0] * 6 + [0.0])

    def __init__(self):
        self.executor, self.guard, self.now = started(), SafetyFilter(self.LIMITS), 0.0
        self.guard.reset(READY)
        self.point, self.begin, self.end, self.pace = self.executor.tick(0.0), 0.0, 0.0, 0.0

    def tick(self):
        before, pace, self.now = self.point, self.pace, self.now + 0.01
        here = self.executor.target[0]
        point = self.point = self.executor.tick(self.now)
        assert 0 <= point.next_step - before.next_step <= 1
        if point.next_step > before.next_step:
            self.begin, self.end = here, self.executor.target[0]
            self.pace = abs(self.end - self.begin) / PERIOD
        forward = np.sign(self.end - self.begin)
        assert min(self.begin, self.end) - 1e-9 <= point.position[0] <= max(self.begin, self.end) + 1e-9
        assert abs(point.velocity[0]) <= self.pace + 1e-9
        assert abs(point.position[0] - before.position[0]) <= 0.01 * max(pace, self.pace) + 1e-9
        if point.next_step == before.next_step:
            assert (point.position[0] - before.position[0]) * forward >= -1e-9
        velocity = self.guard.velocity
        out = self.guard.step(READY + point.position * self.MOVING, point.velocity * self.MOVING, 0.01)
        assert np.all(np.abs(out.velocity) <= np.array(self.LIMITS.v_max) + 1e-9)
        assert np.all(np.abs(out.velocity - velocity) <= np.array(self.LIMITS.a_max) * 0.01 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_comes_and_when_the_path_runs_forward_through_its_actions_no_faster_than_they_ask_and_ends(data):
    watched = Watched()
    executor = watched.executor
    for chunk_id in range(data.draw(st.integers(1, 6))):
        first = executor.next_step + data.draw(st.integers(0, executor.queued))
        values = data.draw(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=8))
        executor.accept(chunk(values, first, chunk_id=chunk_id, follows=data.draw(st.booleans())))
        executor.speed_scale = data.draw(st.sampled_from([0.3, 0.7, 1.0]))
        for _ in range(data.draw(st.integers(1, 60))):
            watched.tick()
    left = executor.queued + 1 + SLOWED_ACTIONS
    for _ in range(math.ceil(left * PERIOD / 0.3 / 0.01) + 1):
        watched.tick()
    assert not watched.point.playing and watched.point.position[0] == pytest.approx(values[-1], abs=1e-12)
    assert executor.next_step == first + len(values)
    assert executor.slowed_s >= -1e-9


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([10.0, 20.0, 30.0]), st.floats(-0.3, 0.3), st.floats(-0.8, 0.8), st.integers(0, 4), st.floats(0.0, 0.0099)
)
def test_at_a_seam_the_setpoint_stays_between_the_two_plans_but_for_a_stated_bound_and_joins_the_new_one(
    rate_hz, apart, speed, seam, phase_s
):
    """Two plans of one speed (rad/s) that lie ``apart`` (rad); the bound is derived in docs/architecture.md."""
    period, dt, a_max = 1 / rate_hz, 0.01, SafetyLimits().a_max[0]
    bound = 0.4 * a_max * period**2 + (abs(speed) + a_max * period) * dt
    actions = np.tile(READY, (round(1.5 * rate_hz) + 6, 1))
    actions[:, 0] = speed * period * (np.arange(len(actions)) + 1)
    executor, guard, begun = ChunkExecutor(rate_hz), SafetyFilter(SafetyLimits()), None
    executor.start(READY, -phase_s)
    guard.reset(READY)
    guard.velocity[0] = speed  # the old plan was followed before
    executor.accept(Chunk(actions, 1, 1, 0, rate_hz))
    executor.tick(-phase_s)
    executor.accept(Chunk(actions[seam + 1 :] + np.eye(7)[0] * apart, 2, 2, seam + 1, rate_hz))
    for tick in range(round((1.5 + seam * period) / dt)):
        point, old = executor.tick(tick * dt), speed * (tick * dt + phase_s)
        x = guard.step(point.position, point.velocity, dt).setpoint[0]
        begun = tick if begun is None and point.generation == 2 else begun
        between = sorted([old, old + apart * (begun is not None)])
        assert between[0] - bound <= x <= between[1] + bound
    assert x == pytest.approx(old + apart, abs=abs(speed) * dt + 1e-3)


@pytest.mark.parametrize("rate_hz", [10.0, 12.5, 30.0])
def test_a_policy_plays_at_its_own_rate_and_one_of_another_rate_is_refused(rate_hz):
    supervisor = Supervisor(SupervisorConfig(control_rate_hz=rate_hz), SafetyLimits())
    health = Health(np.array(READY), 0.0, True)
    supervisor.tick(0.0, health)
    supervisor.go(health, 0.0)
    actions = np.tile(READY, (4, 1))
    actions[:, 0] = [0.01, 0.02, 0.03, 0.04]
    with pytest.raises(ChunkRefused, match=f"20.0 actions/s, the executor plays {rate_hz}"):
        supervisor.accept(Chunk(actions, 1, 1, 0))
    on_the_wire = chunk_from_message(chunk_to_message(Chunk(actions, 1, 1, 0, rate_hz), seconds_to_time(0.0)))
    supervisor.accept(on_the_wire)
    executor = supervisor.executor
    executor.tick(0.0)
    assert executor.tick(1.5 / rate_hz).position[0] == pytest.approx(0.015)
    assert executor.tick(3.999 / rate_hz).playing and not executor.tick(4.001 / rate_hz).playing
    with pytest.raises(ConfigError, match="control_rate_hz = 31.0: allowed range is 10.0 to 30.0 Hz"):
        SupervisorConfig(control_rate_hz=31.0)
