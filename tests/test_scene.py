"""The scene that an operator lays by hand, offered as the simulated world offers its own."""

import json
import os

import pytest
import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import String
from std_srvs.srv import Trigger

from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.scene import HandScene

pytestmark = pytest.mark.integration


class Table:
    """The node and somebody who calls it, served by one executor."""

    def __init__(self):
        rclpy.init(domain_id=int(os.environ["ROS_DOMAIN_ID"]))
        self.scene, self.caller = HandScene(), rclpy.create_node("caller")
        self.executor = SingleThreadedExecutor()
        for node in (self.scene, self.caller):
            self.executor.add_node(node)
        self.states = []
        self.caller.create_subscription(String, "scene/state", lambda m: self.states.append(json.loads(m.data)), LATCHED)
        self.clients = {name: self.caller.create_client(Trigger, name) for name in ("scene/reset", "scene/start")}
        self.parameters = self.caller.create_client(SetParameters, "scene/set_parameters")

    def ask(self, client, request):
        assert client.wait_for_service(10)
        future = client.call_async(request)
        self.executor.spin_until_future_complete(future, 10)
        return future.result()

    def call(self, name):
        return self.ask(self.clients[name], Trigger.Request())

    def set(self, **values):
        request = SetParameters.Request(parameters=[Parameter(n, value=v).to_parameter_msg() for n, v in values.items()])
        return self.ask(self.parameters, request).results

    def phase(self, wanted):
        for _ in range(200):
            if self.states and self.states[-1]["phase"] == wanted:
                return self.states[-1]
            self.executor.spin_once(0.05)
        raise AssertionError(f"never {wanted}: {self.states[-1:]}")

    def close(self):
        self.executor.shutdown()
        for node in (self.scene, self.caller):
            node.destroy_node()
        rclpy.try_shutdown()


@pytest.fixture
def table():
    made = Table()
    yield made
    made.close()


def test_a_scene_is_asked_for_laid_confirmed_started_and_ended_by_the_operators_word(table):
    assert all(result.successful for result in table.set(task="flip_mug", setting="dynamic", seed=7))
    assert not table.scene.confirm(), "nothing was asked for"
    assert "lay scene 7 of flip_mug" in table.call("scene/reset").message
    state = table.phase("laying")
    assert (state["task"], state["setting"], state["seed"], state["by_hand"]) == ("flip_mug", "dynamic", 7, True)
    assert state["instruction"] == "set the mug upright"
    refused = table.call("scene/start")
    assert not refused.success and "has to lie first" in refused.message
    assert table.scene.confirm()
    assert table.call("scene/start").success
    while table.phase("running")["elapsed_s"] == 0:
        table.executor.spin_once(0.05)
    table.scene.end("success", "said by Li")
    state = table.phase("done")
    assert (state["outcome"], state["reason"]) == ("success", "said by Li") and state["elapsed_s"] > 0
    before = state["scene_id"]
    table.call("scene/reset")
    assert table.phase("laying")["scene_id"] == before + 1


@pytest.mark.parametrize("wrong, said", [({"task": "juggle"}, "no instruction"), ({"setting": "windy"}, "allowed values")])
def test_a_task_without_a_sentence_or_an_unknown_setting_is_refused_and_the_old_scene_stays(table, wrong, said):
    (result,) = table.set(**wrong)
    assert not result.successful and said in result.reason
    table.call("scene/reset")
    assert table.phase("laying")["task"] == "tape_box"
