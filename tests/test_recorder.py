"""The recorder's files can be read back by an independent reader."""

import os
import resource
import signal

import pytest
from mcap.reader import make_reader
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState

from policytrim_ros.nodes.messages import joint_state, seconds_to_time
from policytrim_ros.nodes.recorder import McapFile, definition


def test_what_was_written_is_read_back_with_its_definition(tmp_path):
    path = tmp_path / "run.mcap"
    file = McapFile(path)
    message = joint_state(seconds_to_time(3.5), range(7), range(7))
    for stamp in range(5):
        file.write("/joint_states", JointState, bytes(serialize_message(message)), stamp)
    assert not path.exists()  # unfinished files do not carry the final name
    file.close()
    with open(path, "rb") as stream:
        read = list(make_reader(stream).iter_messages())
    assert len(read) == 5 and read[0][0].name == "sensor_msgs/msg/JointState" and read[0][0].encoding == "ros2msg"
    assert deserialize_message(read[0][2].data, JointState) == message


def test_a_definition_holds_everything_that_the_message_is_made_of():
    text = definition("trajectory_msgs/msg/JointTrajectory")
    for inner in (
        "MSG: std_msgs/Header",
        "MSG: builtin_interfaces/Time",
        "MSG: trajectory_msgs/JointTrajectoryPoint",
        "MSG: builtin_interfaces/Duration",
    ):
        assert inner in text


def test_a_disk_that_takes_no_more_is_an_error(tmp_path):
    file = McapFile(tmp_path / "run.mcap")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            for stamp in range(1000):
                file.write("/joint_states", JointState, os.urandom(4096), stamp)
            file.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (tmp_path / "run.mcap").exists()
