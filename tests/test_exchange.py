"""One inference process, several checkpoints: exchanged at rest, refused with a reason, taken back."""

import json
import re

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from stack import Operator, Stack, wait_for

from policytrim_ros.share import share

pytestmark = pytest.mark.integration


@pytest.fixture
def inference(tmp_path):
    """(operator, a function that asks for another checkpoint, the directories of two checkpoints)."""
    stack = Stack(tmp_path)
    first, second = (str(share("models") / name) for name in ("tape-box-oft-tiny", "piper-pi0-tiny"))
    stack.start("inference", "policytrim_ros.nodes.inference", checkpoint=first, mode="rtc")
    operator = Operator(stack, beats=())
    client = operator.node.create_client(SetParameters, "inference/set_parameters")

    def ask(directory):
        operator.until(client.service_is_ready, f"inference offers no parameters: {stack.log('inference')}", 60.0)
        request = SetParameters.Request(parameters=[Parameter("checkpoint", value=directory).to_parameter_msg()])
        future = client.call_async(request)
        operator.until(future.done, "inference does not answer")
        return future.result().results[0]

    operator.stack = stack
    yield operator, ask, first, second
    operator.close()
    stack.close()


def status(operator) -> dict:
    return json.loads(operator.status) if operator.status else {}


def test_checkpoints_are_exchanged_in_the_running_process(inference):
    operator, ask, first, second = inference
    assert ask(second).successful
    early = operator.order("inference/run", True)
    assert not early.success and "is being loaded" in early.message
    assert status(operator)["mode"] == "async" and "mode=async: a policy of family 'parallel'" in operator.stack.log("inference")
    operator.until(lambda: status(operator).get("checkpoint") == second, "the second checkpoint is not loaded", 60.0)
    now = status(operator)
    assert (now["generation"], now["horizon"], now["loading"], now["news"]) == (2, 5, "", "")
    assert now["earlier"] == [first] and now["probation"] == 50 and now["mode"] == "rtc"
    assert ask(first).successful
    operator.until(lambda: status(operator).get("generation") == 3, "the first checkpoint does not come back", 60.0)
    assert status(operator)["horizon"] == 8


def test_what_cannot_be_loaded_leaves_the_old_one_and_says_why(inference):
    operator, ask, first, _ = inference
    assert ask("nowhere").successful
    operator.until(lambda: status(operator).get("news"), "nobody complains", 60.0)
    now = status(operator)
    assert (now["checkpoint"], now["generation"], now["loading"]) == (first, 1, "")
    assert now["news"].startswith(f"nowhere is not used, {first} stays: nowhere: is not a checkpoint")
    assert operator.order("inference/run", True).success


def test_the_one_before_comes_back_under_a_new_number(inference):
    operator, ask, first, second = inference
    operator.until(lambda: status(operator), "inference does not report", 60.0)
    answer = operator.order("inference/roll_back")
    assert not answer.success and "no earlier generation" in answer.message
    assert ask(second).successful
    operator.until(lambda: status(operator)["checkpoint"] == second, "the second checkpoint is not loaded", 60.0)
    assert operator.order("inference/roll_back").success
    operator.until(lambda: status(operator)["checkpoint"] == first, "the first checkpoint does not come back")
    assert status(operator)["generation"] == 3 and status(operator)["earlier"] == []


def test_a_policy_on_another_machine_speaks_like_any_other_and_its_death_is_told(inference):
    operator, ask, first, second = inference
    stack = operator.stack
    stack.start("server", "policytrim_ros.cli", "serve", second, "--port", "0")
    address = wait_for(lambda: re.search(r"on (ws://\S+),", stack.log("server")), "the server does not listen", 60.0)[1]
    assert ask(address).successful
    operator.until(lambda: status(operator).get("checkpoint") == address, "the server's policy does not speak", 60.0)
    stack.kill("server")
    assert ask(address).successful
    operator.until(lambda: status(operator).get("exchanges") == 3, "nobody notices that the server is gone", 60.0)
    assert "no policy server there" in status(operator)["news"] and status(operator)["checkpoint"] == address
