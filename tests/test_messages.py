"""What the nodes say to each other survives the wire, and nonsense is refused by name."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from sensor_msgs.msg import JointState

from policytrim_ros.core.types import JOINTS, Chunk
from policytrim_ros.nodes.messages import (
    BadMessage,
    Consumed,
    chunk_from_message,
    chunk_to_message,
    joint_state,
    positions_of,
    seconds_to_time,
    time_to_seconds,
)


def message(n=3):
    return chunk_to_message(Chunk(np.arange(n * 7).reshape(n, 7) / 100.0, 4, 42, 210), Time(sec=5, nanosec=7))


def test_a_chunk_survives_the_wire_with_generation_and_ids():
    chunk = chunk_from_message(message())
    assert (chunk.generation, chunk.chunk_id, chunk.first, chunk.rate_hz) == (4, 42, 210, 20.0)
    assert chunk.positions == pytest.approx(np.arange(21).reshape(3, 7) / 100.0)


def test_a_chunk_says_whether_another_follows_and_one_that_does_not_say_is_the_last():
    said = chunk_to_message(Chunk(np.zeros((1, 7)), 4, 42, 210, follows=True), Time())
    assert chunk_from_message(said).follows and not chunk_from_message(message()).follows
    said.header.frame_id = "generation=4 chunk=42 first=210"
    assert not chunk_from_message(said).follows


def test_joints_may_come_in_another_order_but_never_in_part():
    shuffled = message()
    order = [6, 5, 4, 3, 2, 1, 0]
    shuffled.joint_names = [JOINTS[i] for i in order]
    for point in shuffled.points:
        point.positions = [point.positions[i] for i in order]
    assert chunk_from_message(shuffled).positions == pytest.approx(np.arange(21).reshape(3, 7) / 100.0)
    with pytest.raises(BadMessage, match="exactly joint1"):
        positions_of(JointState(name=list(JOINTS[:6]), position=[0.0] * 6))


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda m: setattr(m.header, "frame_id", "base_link"), "is not 'generation=N"),
        (lambda m: setattr(m.header, "frame_id", "generation=1 chunk=2 first=3 follows=yes"), r"'follows=0\|1'"),
        (lambda m: m.points.clear(), "no points"),
        (lambda m: setattr(m.points[1], "positions", [0.0] * 6), "needs 7 positions"),
        (lambda m: setattr(m.points[1], "positions", [float("nan")] * 7), "NaN"),
        (lambda m: m.joint_names.pop(), "refused"),
    ],
)
def test_a_damaged_chunk_is_refused_with_the_reason(damage, said):
    damaged = message()
    damage(damaged)
    with pytest.raises(BadMessage, match=said):
        chunk_from_message(damaged)


def test_consumed_and_joint_states_and_stamps_survive_the_wire():
    consumed = Consumed(1, 2, 3, 4, True, 5, 0.25)
    assert Consumed.from_message(consumed.to_message()) == consumed
    assert positions_of(joint_state(Time(), range(7), range(7))) == pytest.approx(np.arange(7))
    assert time_to_seconds(seconds_to_time(1234.5678)) == pytest.approx(1234.5678, abs=1e-6)
