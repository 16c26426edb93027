"""One inference process, several checkpoints: exchanged at rest, refused with a reason, taken back."""

import json
import re

import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from stack import Operator, Stack, wait_for
from std_msgs.msg import Int64MultiArray, String

from policytrim_ros.nodes.last_good import Known, LastGood
from policytrim_ros.nodes.messages import LATCHED, Consumed
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
    assert operator.order("inference/run", False).success  # the service is found: the next order is not late
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


def test_a_hold_that_a_policy_can_cause_takes_one_on_probation_back_and_an_operators_hold_does_not(inference):
    operator, ask, first, second = inference
    says = operator.node.create_publisher(String, "controller/state", LATCHED)
    operator.until(lambda: status(operator), "inference does not report", 60.0)

    def held(why):
        for state in ("moving: go", why):
            says.publish(String(data=state))
            operator.spin(0.3)

    assert ask(second).successful
    operator.until(lambda: status(operator)["checkpoint"] == second, "the second checkpoint is not loaded", 60.0)
    held("holding: operator hold")
    held("fault: feedback silent: 0.20 s; check CAN cable, power and interface, then call controller/clear_fault")
    assert (status(operator)["checkpoint"], status(operator)["generation"]) == (second, 2)
    held("holding: beyond limits: joint6 asked for 2.336 rad")
    operator.until(lambda: status(operator)["checkpoint"] == first, "the one on probation is not taken back")
    now = status(operator)
    assert now["generation"] == 3 and now["probation"] == 0
    assert now["news"] == f"{second} was taken back on probation: holding: beyond limits: joint6 asked for 2.336 rad"
    held("holding: beyond limits: joint6 asked for 2.336 rad")
    assert status(operator)["generation"] == 3, "nobody is left to return to"


def test_a_killed_process_is_followed_by_one_with_the_last_good_checkpoint_and_never_with_one_that_was_tried(stack):
    first, second = (str(share("models") / name) for name in ("tape-box-oft-tiny", "piper-pi0-tiny"))
    weights = json.loads((share("models") / "piper-pi0-tiny" / "manifest.json").read_text())["files"]["model.safetensors"]
    path, operator = stack.folder / "last_good", Operator(stack, beats=())
    client = operator.node.create_client(SetParameters, "inference/set_parameters")

    def start():
        operator.status = ""
        stack.start("inference", "policytrim_ros.nodes.inference", checkpoint=first, last_good=str(path))
        operator.until(lambda: operator.status, f"inference does not speak: {stack.log('inference')}", 60.0)
        return status(operator)

    try:
        LastGood(path).write(Known(second, weights))
        now = start()
        assert now["checkpoint"] == second and now["probation"] == 0
        assert now["news"] == f"started again with {second}, the last checkpoint that had proved itself"

        operator.until(client.service_is_ready, "inference offers no parameters", 60.0)
        client.call_async(SetParameters.Request(parameters=[Parameter("checkpoint", value=first).to_parameter_msg()]))
        operator.until(lambda: status(operator)["checkpoint"] == first, "the other checkpoint is not loaded", 60.0)
        assert LastGood(path).read() == Known(second, weights, tried=first)
        stack.kill("inference")
        now = start()
        assert now["checkpoint"] == second and f"{first} was being tried when this process ended" in now["news"]
        assert LastGood(path).read() == Known(second, weights)

        stack.kill("inference")
        LastGood(path).write(Known(second, "other weights"))
        now = start()
        assert now["checkpoint"] == first and now["news"].endswith(
            f"{second}, the last good one, is not used: other weights lie there now"
        )
    finally:
        operator.close()


def test_the_numbers_of_a_process_that_has_died_are_not_used_again(inference):
    operator, *_ = inference
    consumed = operator.node.create_publisher(Int64MultiArray, "controller/consumed", 10)
    operator.until(lambda: status(operator), "inference does not report", 60.0)
    operator.until(
        lambda: consumed.publish(Consumed(7, 1, 0, 0, False, 0, 0.0).to_message()) or status(operator)["generation"] == 8,
        "the number does not follow",
    )


def test_what_a_damaged_or_missing_file_says_of_the_last_good_one_is_nothing(tmp_path):
    path = tmp_path / "folder" / "last_good"
    assert LastGood(path).read() is None and LastGood("").read() is None
    LastGood("").write(Known("a", "sha"))
    LastGood(path).write(Known("a", "sha", "b"))
    assert LastGood(path).read() == Known("a", "sha", "b")
    for damage in ("", "{", "[]", '{"checkpoint": "a"}', '{"checkpoint": "a", "weights_sha256": "b", "more": 1}'):
        path.write_text(damage)
        assert LastGood(path).read() is None


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
