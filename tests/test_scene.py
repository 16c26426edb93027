"""The scene that an operator lays by hand, offered as the simulated world offers its own, and a session at such a table."""

import json
import os
import signal
import subprocess
import sys
import urllib.error

import pytest
import rclpy
from console_client import Client, url_in
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from stack import ROOT, wait_for
from std_msgs.msg import String
from std_srvs.srv import Trigger
from test_trials import FakeSystem

from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.scene import HandScene
from policytrim_ros.trials.store import read, read_sessions

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


def test_a_session_at_a_table_wants_the_scene_confirmed_go_and_the_outcome_by_one_key(tmp_path):
    system = FakeSystem(scene=False)
    values = dict(out=tmp_path, port=0, simulated="false", scene_node="scene")
    words = [word for name, value in values.items() for word in ("-p", f"{name}:={value}")]
    log = tmp_path / "console.log"
    with open(log, "w") as said:
        console = subprocess.Popen(
            [sys.executable, "-u", "-m", "policytrim_ros.nodes.console", "--ros-args", *words], cwd=ROOT, stdout=said, stderr=said
        )
    try:
        wait_for(lambda: "console: http" in log.read_text() or console.poll() is not None, "the console", 60)
        assert console.poll() is None, log.read_text()
        client = Client(url_in(log))
        with pytest.raises(urllib.error.HTTPError) as refused:
            client.order("start", plan={"scenes": 1}, attended=False)
        assert "an operator says go before every trial" in refused.value.read().decode()
        client.order("start", plan={"scenes": 1, "seed": 1, "settings": ["dynamic"]}, attended=True)
        wait_for(lambda: accepted(client, "confirm"), "nothing to confirm", 30)
        assert "controller/go" not in system.orders
        wait_for(lambda: accepted(client, "go"), "no go", 30)
        wait_for(lambda: system.running and system.steps > 505, "no motion", 30)
        wait_for(lambda: accepted(client, "label", outcome="success"), "no label", 30)
        wait_for(lambda: read(tmp_path), "no row", 30)
        (row,) = read(tmp_path)
        assert (row.outcome, row.labelled_by, row.setting, row.number) == ("success", "Li", "dynamic", 1)
        assert read_sessions(tmp_path)[0]["provenance"]["simulated"] is False
        console.send_signal(signal.SIGINT)
        assert console.wait(20) == 0, log.read_text()
        assert "controller/hold" in system.orders
    finally:
        console.kill()
        system.close()


def accepted(client, order, **details) -> bool:
    try:
        client.order(order, **details)
    except urllib.error.HTTPError as error:
        assert error.code == 409, error.read()
        return False
    return True
