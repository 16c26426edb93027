"""The running system as trials see it: how inference comes to speak as the checkpoint of the next trial."""

import json

import pytest
import rclpy
from rcl_interfaces.msg import SetParametersResult
from stack import Beside
from std_msgs.msg import String
from std_srvs.srv import Trigger

from policytrim_ros.core.generations import Generations, NothingToReturnTo
from policytrim_ros.nodes.messages import LATCHED
from policytrim_ros.nodes.rig import RigConfig, RosRig

pytestmark = pytest.mark.integration


class Inference(Beside):
    """A node with inference's parameters, roll back and status, and no policy."""

    def __init__(self):
        super().__init__("inference")
        self.node.declare_parameter("checkpoint", "")
        self.node.declare_parameter("horizon", 0)
        self.node.add_on_set_parameters_callback(self._set)
        self.node.create_service(Trigger, "inference/roll_back", self._roll_back)
        self._status = self.node.create_publisher(String, "inference/status", LATCHED)
        self.generations, self.exchanges, self.did = Generations(keep=1), 0, []
        self._load("models/old")
        self.did.clear()
        self.serve()

    def _set(self, parameters):
        for parameter in parameters:
            self._load(parameter.value) if parameter.name == "checkpoint" else self.did.append(f"h {parameter.value}")
        return SetParametersResult(successful=True)

    def _load(self, checkpoint):
        self.did.append(f"load {checkpoint}")
        self.generations.stage(checkpoint, "", None)
        self.generations.switch()
        self.exchanges += 1
        self.tell()

    def _roll_back(self, _request, response):
        self.did.append("roll back")
        try:
            self.generations.roll_back()
            response.success = True
        except NothingToReturnTo as error:
            response.message = str(error)
        self.tell()
        return response

    def tell(self):
        now = self.generations
        values = dict(
            generation=now.current.number, checkpoint=now.current.checkpoint, exchanges=self.exchanges, weights_sha256=""
        )
        self._status.publish(String(data=json.dumps({**values, "earlier": [one.checkpoint for one in now.previous], "news": ""})))


@pytest.fixture
def inference():
    made = Inference()
    yield made
    made.close()


@pytest.fixture
def rig(inference):
    rclpy.init()
    node = rclpy.create_node("trial", enable_rosout=False)
    made = RosRig(node, RigConfig())
    assert made.wait(lambda: made.inference, 20.0)
    yield made
    made.close()
    node.destroy_node()
    rclpy.try_shutdown()


def test_the_checkpoint_before_comes_back_from_memory_and_others_are_loaded(rig, inference):
    for checkpoint, did in (
        ("models/old", []),
        ("models/new", ["load models/new"]),
        ("models/old", ["roll back"]),
        ("models/new", ["load models/new"]),
        ("models/other", ["load models/other"]),
        ("models/old", ["load models/old"]),
    ):
        inference.did.clear()
        rig.use(checkpoint, 0)
        assert rig.inference["checkpoint"] == checkpoint and inference.did == did


def test_a_candidate_that_its_probation_took_back_is_not_rolled_back_again(rig, inference):
    rig.use("models/new", 15)
    inference.generations.roll_back()
    inference.tell()
    assert rig.wait(lambda: rig.inference["checkpoint"] == "models/old", 10.0)
    inference.did.clear()
    rig.use("models/old", 0)
    assert inference.did == ["h 0"]


def test_a_roll_back_that_is_refused_becomes_a_load(rig, inference):
    rig.use("models/new", 0)
    inference.generations.previous.clear()  # gone, and not told yet
    inference.did.clear()
    rig.use("models/old", 0)
    assert inference.did == ["roll back", "load models/old"] and rig.inference["checkpoint"] == "models/old"
