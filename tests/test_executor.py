"""The chunk executor on a virtual clock."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from policytrim_ros.core.executor import ChunkExecutor, ChunkRefused
from policytrim_ros.core.types import Chunk

PERIOD = 0.05


def chunk(values, first, generation=1, chunk_id=1):
    return Chunk(np.repeat(np.asarray(values, float)[:, None], 7, axis=1), generation, chunk_id, first)


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
        for _ in range(late):
            now += 0.01 * data.draw(st.integers(1, 9))
            point = executor.tick(now)
            assert point.next_step >= observed
            observed = point.next_step
        try:
            executor.accept(chunk(np.arange(first, first + length) + 1.0, first, generation=1, chunk_id=chunk_id))
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
