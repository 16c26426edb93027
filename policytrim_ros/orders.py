"""An operator's order from the command line: one service call to the running system, answered in one line."""

from __future__ import annotations

import sys
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import SetBool, Trigger

FIND_S = 6.0  # discovery takes up to 3 s
ANSWER_S = 15.0  # go and home may have to bring the motors on


def order(name: str, policy: bool | None, namespace: str) -> int:
    """Calls ``controller/<name>``, then tells inference to run or not (``policy``; None: nothing). Returns the exit code."""
    rclpy.init(args=[])
    node = rclpy.create_node("operator", namespace=namespace.strip("/"))
    try:
        accepted = _call(node, Trigger, f"controller/{name}", Trigger.Request())
        if accepted and policy is not None:
            accepted = _call(node, SetBool, "inference/run", SetBool.Request(data=policy))
        return 0 if accepted else 1
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def _call(node, kind, name: str, request) -> bool:
    client = node.create_client(kind, name)
    where = node.resolve_service_name(name)
    if not client.wait_for_service(FIND_S):
        print(f"nobody offers {where}: is the system up, with this namespace and ROS_DOMAIN_ID?", file=sys.stderr)
        return False
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    future = client.call_async(request)
    began = time.monotonic()
    executor.spin_until_future_complete(future, ANSWER_S)
    executor.remove_node(node)
    if not future.done():
        print(f"{where} did not answer within {ANSWER_S:.0f} s: is its process alive?", file=sys.stderr)
        return False
    answer = future.result()
    print(
        f"{name}: {answer.message or 'done'} ({time.monotonic() - began:.2f} s)"
        if answer.success
        else f"{name} refused: {answer.message}",
        file=sys.stdout if answer.success else sys.stderr,
    )
    return answer.success
