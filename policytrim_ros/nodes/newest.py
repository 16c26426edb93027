"""Messages that are taken when somebody looks, without a callback for each: every callback wakes an executor and costs it 1 ms."""

from __future__ import annotations

import rclpy
from std_msgs.msg import String

from policytrim_ros.nodes.messages import NEWEST


class Newest:
    """The newest message of fast topics, taken when asked for.

    A callback for each of 400 messages a second would take the interpreter from the policy: the reader is not served by
    any executor, and DDS keeps only the newest message.
    """

    def __init__(self, node, kind, topics: dict[str, str]):
        self._node = rclpy.create_node(
            f"{node.get_name()}_states", namespace=node.get_namespace(), start_parameter_services=False
        )
        self._readers = {
            name: self._node.create_subscription(kind, topic, lambda message: None, NEWEST) for name, topic in topics.items()
        }
        self._kept = dict.fromkeys(topics)

    def take(self, name: str):
        """The newest message of topic ``name``, or None before the first."""
        reader = self._readers[name]
        with reader.handle:
            taken = reader.handle.take_message(reader.msg_type, False)
        if taken is not None:
            self._kept[name] = taken[0]
        return self._kept[name]

    def close(self) -> None:
        self._node.destroy_node()


class Heartbeats:
    """Who has been heard on ``heartbeat`` since the last look. The reader is not served by any executor."""

    def __init__(self, node):
        self._node = rclpy.create_node(
            f"{node.get_name()}_heartbeats", namespace=node.get_namespace(), start_parameter_services=False
        )
        self._reader = self._node.create_subscription(String, "heartbeat", lambda message: None, 100)

    def take(self) -> list[str]:
        """The messages (core.types.heartbeats_of) that came since the last call, oldest first; call it a few times a second."""
        heard = []
        with self._reader.handle:
            while (taken := self._reader.handle.take_message(self._reader.msg_type, False)) is not None:
                heard.append(taken[0].data)
        return heard

    def close(self) -> None:
        self._node.destroy_node()
