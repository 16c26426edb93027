"""A start that cannot go well is refused: one sentence that says what, where and what to do, and a non-zero exit code."""

import re
import shutil

import pytest

from policytrim_ros.graph import own_checkpoint
from policytrim_ros.share import share

pytestmark = pytest.mark.long

CONTROLLER, INFERENCE = "policytrim_ros.nodes.controller", "policytrim_ros.nodes.inference"


def refusal(stack, name: str) -> str:
    """The one line with which process ``name`` refused to start."""
    assert stack.exit_code_within(name, 60) == 1, stack.log(name)
    lines = [line for line in stack.log(name).splitlines() if line.startswith((name, "start refused"))]
    assert "Traceback" not in stack.log(name), stack.log(name)
    assert lines, stack.log(name)
    return lines[0]


@pytest.mark.parametrize(
    "parameters, said",
    [
        (dict(setpoint_rate="100.0"), "unknown parameter 'setpoint_rate'; known: "),
        (dict(setpoint_rate_hz="500.0"), "setpoint_rate_hz = 500.0: allowed range is 30.0 to 200.0 Hz"),
        (dict(speed_scale="fast"), "speed_scale = 'fast': expected a number"),
        (dict(can_interface="socketcan", can_port="can9"), "can9"),
        (dict(can_interface="no_such_bus"), "no_such_bus"),
        (dict(can_interface="piper_hub", can_port="/tmp/nobody-serves-this"), "/tmp/nobody-serves-this"),
    ],
)
def test_the_controller_refuses_a_bad_parameter_or_bus(stack, parameters, said):
    stack.start("controller", CONTROLLER, **parameters)
    assert said in refusal(stack, "controller")


def test_the_controller_refuses_a_bus_without_an_arm(stack):
    stack.start_emulator()
    stack.fault("mute")
    stack.start_controller()
    assert re.search(r"no Piper answers.*power", refusal(stack, "controller"))


def test_the_controller_refuses_an_arm_in_teach_mode_and_does_not_move_it(stack):
    stack.start_emulator()
    stack.fault("teach_mode")
    stack.start_controller()
    assert "teach mode" in refusal(stack, "controller")
    assert not stack.truth()["received"].get("0x155")


def test_a_second_emulator_on_one_socket_is_refused_and_the_first_serves_on(stack):
    stack.start_emulator()
    stack.start("second", "sim_bridge.piper_emulator", "--socket", stack.socket)
    assert stack.exit_code_within("second", 30) == 1
    assert stack.truth()["frames_sent"] > 0


def test_inference_refuses_no_checkpoint(stack):
    stack.start("inference", INFERENCE, checkpoint=str(stack.folder / "none"))
    assert str(stack.folder / "none") in refusal(stack, "inference")


@pytest.mark.parametrize(
    "parameters, said",
    [
        (dict(width="640", height="640"), "aspect"),
        (dict(cameras="['front']"), "camera 'wrist' is missing"),
        (dict(task="pour_tea"), "not made for 'pour_tea'"),
        (dict(horizon="99"), "execution horizon"),
        (dict(control_rate_hz="30.0"), "control rate (Hz): the checkpoint uses 20.0, the robot 30.0"),
        (dict(mode="fast"), "'sync', 'async'"),
    ],
)
def test_inference_refuses_a_checkpoint_that_does_not_fit_the_robot(stack, parameters, said):
    stack.start("inference", INFERENCE, checkpoint=str(own_checkpoint("tape_box")), **parameters)
    assert said in refusal(stack, "inference")


def test_inference_refuses_a_policy_that_is_told_where_the_objects_are(stack):
    stack.start("inference", INFERENCE, checkpoint=str(share("models") / "piper-state-tiny"))
    assert "true poses of 2 objects" in refusal(stack, "inference")


def test_inference_refuses_a_checkpoint_with_one_changed_byte(stack):
    copy = shutil.copytree(own_checkpoint("tape_box"), stack.folder / "copy")
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    stack.start("inference", INFERENCE, checkpoint=str(copy))
    assert "model.safetensors" in refusal(stack, "inference")
