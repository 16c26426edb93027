"""An operator's order from the command line: service calls to the running system, each answered in one line."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager

import rclpy
from rcl_interfaces.srv import SetParametersAtomically
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import SetBool, Trigger

from policytrim_ros.nodes.asking import HOLD, SETTLE_S, answer, spinning

FIND_S = 6.0  # discovery takes up to 3 s
ANSWER_S = 15.0  # go and home may have to bring the motors on


def order(service: str, policy: bool | None, namespace: str) -> int:
    """Calls ``service``, then tells inference to run or not (``policy``; None: nothing). Returns the exit code."""
    with _operator(namespace) as node:
        accepted = _call(node, Trigger, service, Trigger.Request())
        if accepted and policy is not None:
            accepted = _call(node, SetBool, "inference/run", SetBool.Request(data=policy))
        return 0 if accepted else 1


def swap(directory: str, timeout_s: float, namespace: str) -> int:
    """Has inference exchange its checkpoint for the one in ``directory`` and waits until that speaks. Returns the exit code."""
    with _operator(namespace) as node, _hearing(node, "inference/status") as heard:
        began = time.monotonic()
        before = heard(lambda status: True, FIND_S)
        if before is None:
            where = node.resolve_topic_name("inference/status")
            print(f"nobody speaks on {where}: is the system up, with this namespace and ROS_DOMAIN_ID?", file=sys.stderr)
            return 1
        if not _set(node, "inference", {"checkpoint": directory}):
            return 1
        after = heard(lambda now: now["exchanges"] != before["exchanges"], timeout_s)
        if after is None:
            print(f"{directory} does not speak after {timeout_s:.0f} s; see inference/status", file=sys.stderr)
            return 1
        if after["checkpoint"] != directory:
            print(f"inference: {after['news']}", file=sys.stderr)
            return 1
        print(
            f"generation {after['generation']} speaks after {time.monotonic() - began:.1f} s: {after['checkpoint']}, h = "
            f"{after['horizon']}; for {after['probation']} chunks a hold that a policy can cause brings the one before back"
        )
        return 0


def train(on: bool, changes, namespace: str) -> int:
    """Sets the trainer's parameters ``changes`` (name -> value), then starts (``on``) or stops it. Returns the exit code."""
    with _operator(namespace) as node:
        if changes and not _set(node, "trainer", changes):
            return 1
        return 0 if _call(node, SetBool, "trainer/run", SetBool.Request(data=on)) else 1


def training_status(namespace: str) -> int:
    """Prints what the trainer says of itself, a line for each entry that it knows. Returns the exit code."""
    with _operator(namespace) as node, _hearing(node, "trainer/status") as heard:
        status = heard(lambda status: True, FIND_S)
        if status is None:
            where = node.resolve_topic_name("trainer/status")
            print(f"nobody speaks on {where}: was the system started with trainer:=true, in this namespace?", file=sys.stderr)
            return 1
        for name, value in status.items():
            if value not in (None, ""):
                print(f"{name:15} {value}")
        return 0


@contextmanager
def _hearing(node, topic: str):
    """A function (condition, seconds) -> the first status on ``topic``, a JSON mapping, of which ``condition`` is true, or None."""
    from policytrim_ros.nodes.messages import LATCHED  # numpy and all messages, which no other order waits for

    heard: list[dict] = []
    node.create_subscription(String, topic, lambda message: heard.append(json.loads(message.data)), LATCHED)
    executor = SingleThreadedExecutor()

    def hear(condition, timeout_s: float):
        end = time.monotonic() + timeout_s
        executor.add_node(node)
        try:
            while not (heard and condition(heard[-1])) and time.monotonic() < end:
                executor.spin_once(timeout_sec=0.1)
            return heard[-1] if heard and condition(heard[-1]) else None
        finally:
            executor.remove_node(node)

    yield hear


@contextmanager
def _operator(namespace: str):
    """The node that gives the order."""
    rclpy.init(args=[])
    node = rclpy.create_node("operator", namespace=namespace.strip("/"))
    try:
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _call(node, kind, name: str, request) -> bool:
    """Whether the service has accepted; prints what it answers."""
    began = time.monotonic()
    response = _answer(node, kind, name, request)
    if response is None:
        return False
    print(
        f"{name}: {response.message or 'done'} ({time.monotonic() - began:.2f} s)"
        if response.success
        else f"{name} refused: {response.message}",
        file=sys.stdout if response.success else sys.stderr,
    )
    return response.success


def _set(node, name: str, changes) -> bool:
    """Whether node ``name`` has taken the parameters ``changes`` (name -> value), all or none; prints why it has not."""
    values = [Parameter(key, value=value).to_parameter_msg() for key, value in changes.items()]
    request = SetParametersAtomically.Request(parameters=values)
    response = _answer(node, SetParametersAtomically, f"{name}/set_parameters_atomically", request)
    if response is not None and not response.result.successful:
        print(f"{name} refused: {response.result.reason}", file=sys.stderr)
    return response is not None and response.result.successful


def _answer(node, kind, name: str, request):
    """The response of the service, or None after a line that says why there is none."""
    client = node.create_client(kind, name)
    where = node.resolve_service_name(name)
    if not client.wait_for_service(FIND_S):
        print(f"nobody offers {where}: is the system up, with this namespace and ROS_DOMAIN_ID?", file=sys.stderr)
        return None
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    if name != HOLD:
        spinning(executor)(lambda: False, SETTLE_S)
    response = answer(client, request, spinning(executor), ANSWER_S, again=name == HOLD)
    executor.remove_node(node)
    if response is None:
        print(
            f"{where} did not answer within {ANSWER_S:.0f} s: is its process alive? It may have done it all the same",
            file=sys.stderr,
        )
    return response
