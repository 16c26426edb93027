"""Each fault is injected into the running processes, beneath the product; the emulated arm's true joints must come to hold."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from stack import ROOT, Operator, Stack, wait_for
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from benchmarks.injections import BELOW, switch_off
from policytrim_ros.core.types import JOINTS, READY, Chunk
from policytrim_ros.nodes.messages import LATCHED, chunk_to_message, seconds_to_time
from sim_bridge.sim_clock import SimClock

REQUIRED = dict(required_nodes="['camera','camera/front','inference']")
BEATS = ("camera", "camera/front", "inference")

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def stack(tmp_path_factory):
    running = Stack(tmp_path_factory.mktemp("stack"))
    running.clock = SimClock(running.folder / "clock") if shutil.which("cc") else None
    if running.clock:
        running.environment.update(running.clock.environment)
    try:
        running.start_emulator()
        running.start_controller(**REQUIRED)
        yield running
    finally:
        running.close()


@pytest.fixture
def clock(stack):
    """The wall clock of the controller and of what else is started."""
    if stack.clock is None:
        pytest.skip("needs a C compiler")
    return stack.clock


@pytest.fixture
def operator(stack):
    """An operator beside a controller that holds at the ready pose; whatever a test broke is mended afterwards."""
    if "controller" not in stack.processes or stack.processes["controller"].poll() is not None:
        stack.start_controller(**REQUIRED)
    made = Operator(stack, BEATS)
    made.ready()
    yield made
    stack.clear()
    if stack.clock:
        stack.clock.right()
    made.rest()
    if made.state.startswith("fault"):
        made.until(lambda: made.order("controller/clear_fault").success, "the fault cannot be cleared")
    made.order("controller/hold")
    made.close()


FAULTS = {
    "mute": ({}, "fault", "feedback silent"),
    "bus_off": ({}, "fault", "feedback silent"),
    "no_transmit": ({}, "fault", "send failed"),
    "stale_joints": ({}, "fault", "exactly the same"),
    "zero_feedback": ({}, "fault", ""),
    "status": (dict(code=10), "fault", "unspecified error"),
    "collision": (dict(joint=2), "fault", "joint2: collision"),
    "stall": (dict(joint=3), "fault", "joint3: stalled"),
    "joint_error": (dict(joint=4), "fault", "joint4: driver error"),
    "comm_error": (dict(joint=5), "fault", "joint5: no communication"),
    "undervoltage": (dict(joint=1), "fault", "supply voltage"),
    "teach_mode": ({}, "fault", "teach mode"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_the_arm_latches_with_its_reason_and_the_arm_holds(stack, operator, name):
    arguments, state, reason = FAULTS[name]
    operator.swing()
    stack.fault(name, **arguments)
    operator.until(
        lambda: operator.state.startswith(state) and reason in operator.state, f"{name} is not noticed with its reason", 5.0
    )
    stack.assert_held(operator.spin)
    refused = operator.order("controller/go")
    assert not refused.success and "clear_fault" in refused.message
    stack.clear()
    operator.until(lambda: operator.order("controller/clear_fault").success, "a fault whose cause is gone cannot be cleared")
    stack.assert_held(operator.spin)


def test_no_process_that_starts_can_keep_the_controller_waiting_in_shared_memory(stack, operator):
    mapped = Path(f"/proc/{stack.processes['controller'].pid}/maps").read_text()
    assert "libfastrtps" in mapped and "/dev/shm/fastrtps" not in mapped


def test_a_motor_that_another_voice_on_the_bus_switches_off_is_a_fault_until_the_operator_clears_it(stack, operator):
    operator.swing()
    switch_off(stack.socket)
    wait_for(lambda: stack.truth()["disables"] == stack.disables + 1, "the order does not reach the arm")
    stack.disables += 1
    operator.until(lambda: operator.state.startswith("fault: not enabled"), "a motor that is off is not noticed", 5.0)
    assert "joint6" in operator.state and "support the arm" in operator.state
    operator.rest()
    operator.until(lambda: np.max(np.abs(stack.truth()["velocity"])) < 0.01, "the arm does not come to rest", 5.0)
    off = stack.truth()["enabled"]
    assert off == [True] * 5 + [False] + off[6:], "the controller did something about the motor by itself"
    refused = operator.order("controller/go")
    assert not refused.success and "clear_fault" in refused.message and not all(stack.truth()["enabled"])
    assert operator.order("controller/clear_fault").success
    operator.ready()
    stack.assert_held(operator.spin)


def test_a_chunk_that_comes_late_slows_the_arm_and_with_the_next_it_goes_on(stack, operator):
    states, said = [], []
    operator.node.create_subscription(
        DiagnosticArray, "diagnostics", lambda m: said.extend(s.message for s in m.status if s.name == "controller"), 10
    )
    operator.follows = True
    operator.swing()
    operator.node.create_subscription(String, "controller/state", lambda m: states.append(m.data), LATCHED)
    operator.pause()
    operator.until(lambda: operator.consumed.queued == 0, "the chunk does not come to its end")
    operator.spin(0.3)
    stood = operator.consumed.next_step
    operator.go_on()
    operator.until(lambda: operator.consumed.next_step > stood + 20, "the arm does not go on")
    operator.until(lambda: any("chunk late: slowed by" in words for words in said), "nobody says why it was slow")
    assert {state.partition(":")[0] for state in states} == {"moving"}


def test_of_a_chunk_that_leads_into_the_table_the_beginning_is_played_and_with_the_next_the_arm_goes_on(stack, operator):
    said = []
    operator.node.create_subscription(
        DiagnosticArray, "diagnostics", lambda m: said.extend(s.message for s in m.status if s.name == "controller"), 10
    )
    operator.swing()
    operator.pause()
    operator.until(lambda: not operator.consumed.playing, "the chunk does not come to its end")
    stood = operator.consumed.next_step
    operator.send(np.concatenate([np.tile(READY, (6, 1)), np.tile(BELOW, (4, 1))]), stood)
    operator.until(lambda: any("chunk cut: chunk" in words and "to 6 of 10 actions" in words for words in said), "nobody says that it was cut")
    operator.until(lambda: not operator.consumed.playing and operator.consumed.next_step > stood, "the chunk does not come to its end")
    assert operator.consumed.next_step == stood + 6 and operator.state.startswith("moving")
    operator.go_on()
    operator.until(lambda: operator.consumed.next_step > stood + 26, "the arm does not go on")
    assert operator.state.startswith("moving")


def test_an_arm_that_something_holds_is_not_pushed_on(stack, operator):
    operator.swing()
    operator.until(lambda: stack.truth()["position"][0] > 0.35, "the arm does not swing far")
    stack.fault("blocked", joint=1)
    operator.until(lambda: operator.state.startswith("holding: tracking"), "a blocked joint is not noticed", 10.0)
    assert "rad from its setpoint; something blocks the arm" in operator.state
    stack.assert_held(operator.spin)
    stack.clear()
    stack.assert_held(operator.spin)  # free again, it does not spring to where it was told to be
    operator.rest()
    operator.swing()


def test_five_percent_of_lost_frames_do_not_disturb(stack, operator):
    stack.fault("lost_frames", fraction=0.05)
    operator.swing()
    operator.spin(2.0)
    assert operator.state.startswith("moving")


def test_an_operators_hold_stops_the_arm_and_go_moves_it_again(stack, operator):
    operator.swing()
    assert operator.order("controller/hold").success
    stack.assert_held(operator.spin)
    operator.rest()
    operator.swing()
    assert operator.state.startswith("moving")


def test_the_speed_changes_in_motion_and_no_other_parameter_does(stack, operator):
    client = AsyncParameterClient(operator.node, "controller")
    operator.until(client.services_are_ready, "no parameter services")

    def change(name, value):
        future = client.set_parameters([Parameter(name, value=value)])
        operator.until(future.done, "no answer")
        return future.result().results[0].successful

    operator.swing()
    assert not change("speed_scale", 1.5) and not change("speed_scale", float("nan")) and not change("chunk_timeout_s", 30.0)
    assert change("speed_scale", 0.25)
    changed = operator.consumed.next_step
    operator.until(lambda: operator.consumed.next_step > changed + 10, "the arm does not move on")
    began, steps = time.monotonic(), operator.consumed.next_step
    operator.spin(2.0)
    a_second = (operator.consumed.next_step - steps) / (time.monotonic() - began)
    assert 0 < a_second < 10 and operator.state.startswith("moving")  # 5; what was published before may be heard late
    assert change("speed_scale", 1.0)


def test_a_starved_controller_holds(stack, operator):
    operator.swing()
    operator.rest()
    operator.until(lambda: operator.state.startswith("holding"), "starving is not noticed", 10.0)
    assert "chunk starved" in operator.state
    stack.assert_held(operator.spin)


@pytest.mark.parametrize(
    "lost, failsafe", [("camera", "node lost"), ("inference", "node lost"), ("camera/front", "camera stale")]
)
def test_a_lost_node_or_camera_is_named_and_the_arm_holds(stack, operator, lost, failsafe):
    operator.swing()
    operator.beats.discard(lost)
    operator.until(lambda: operator.state.startswith("holding"), "the loss is not noticed", 5.0)
    assert operator.state.startswith(f"holding: {failsafe}: '{lost}' is silent")
    stack.assert_held(operator.spin)
    refused = operator.order("controller/go")
    assert not refused.success and lost in refused.message


@pytest.mark.parametrize("jump_s", [300.0, -300.0])
def test_a_wall_clock_that_is_set_holds_the_arm_and_a_go_moves_it_again(stack, clock, operator, jump_s):
    operator.swing()
    clock.jump(jump_s)
    operator.until(lambda: operator.state.startswith("holding"), "the jump is not noticed", 5.0)
    assert f"clock jump: by {jump_s:+.1f} s" in operator.state
    stack.assert_held(operator.spin)
    operator.rest()
    operator.spin(2.0)
    if operator.state.startswith("fault: feedback silent"):  # set back, some wait on the way to the arm may take a second longer
        operator.until(lambda: operator.order("controller/clear_fault").success, "the fault cannot be cleared")
    operator.swing()  # neither the bus nor the middleware is worse off
    operator.spin(0.5)
    assert operator.state.startswith("moving")


QUIET_NODE = """
import sys
from rclpy.node import Node
from policytrim_ros.nodes.process import run
def make():
    node = Node("quiet")
    node.fatal = None
    return node
sys.exit(run(make))
"""


def test_a_node_that_hears_nothing_goes_on_beating_when_the_wall_clock_is_set_back_and_ends_on_ctrl_c(stack, clock, operator):
    beats = []
    operator.node.create_subscription(String, "heartbeat", lambda m: beats.append(m.data) if m.data == "quiet" else None, 10)
    process = subprocess.Popen([sys.executable, "-c", QUIET_NODE], cwd=ROOT, env=stack.environment)
    try:
        operator.until(lambda: beats, "the node does not beat", 60.0)
        clock.jump(-300.0)
        for _ in range(2):
            beats.clear()
            operator.until(lambda: len(beats) > 5, "the heart stands still")
        process.send_signal(signal.SIGINT)
        operator.until(lambda: process.poll() is not None, "the node does not end")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()


def nan_chunk(first):
    message = chunk_to_message(Chunk(np.tile(READY, (3, 1)), 1, 1, first), seconds_to_time(time.time()))
    message.points[1].positions = [float("nan")] * 7
    return message


def partial_chunk(first):
    message = chunk_to_message(Chunk(np.tile(READY, (3, 1)), 1, 1, first), seconds_to_time(time.time()))
    message.joint_names = list(JOINTS[:6])
    return message


@pytest.mark.parametrize(
    "make, reason", [(nan_chunk, "NaN"), (partial_chunk, "refused: exactly"), (lambda first: JointTrajectory(), "refused")]
)
def test_a_bad_chunk_holds_with_the_reason(stack, operator, make, reason):
    operator.swing()
    operator.publish_raw(make(operator.consumed.next_step))
    operator.until(lambda: operator.state.startswith("holding"), "the bad chunk is not noticed", 5.0)
    assert "bad chunk" in operator.state and reason in operator.state
    stack.assert_held(operator.spin)


def test_actions_beyond_the_limits_hold_and_the_true_arm_never_leaves_them(stack, operator):
    operator.swing()
    operator.rest()
    operator.send(np.tile(BELOW, (15, 1)), operator.consumed.next_step)
    operator.until(lambda: operator.state.startswith("holding"), "the breach is not noticed", 5.0)
    assert "beyond limits" in operator.state
    stack.assert_held(operator.spin)
    from policytrim_ros.core.kinematics import link_points

    assert link_points(stack.truth()["position"][:6])[:, 2].min() > -0.01


def test_a_killed_controller_leaves_the_arm_holding_and_its_successor_starts_from_where_the_arm_is(stack, operator):
    operator.swing()
    stack.kill("controller")
    stack.assert_held(operator.spin)
    where = np.array(stack.truth()["position"])
    operator.rest()
    operator.state = ""
    stack.start_controller(**REQUIRED)
    operator.until(lambda: "unconfigured" in operator.state, "the new controller does not speak")
    operator.spin(0.5)
    assert np.max(np.abs(np.array(stack.truth()["position"]) - where)) < 0.003
    operator.ready()


def test_ctrl_c_in_motion_decelerates_and_leaves_the_arm_held(stack, operator):
    operator.swing()
    process = stack.processes["controller"]
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)  # an impatient operator
    assert stack.exit_code("controller") == 0
    assert "holds its position" in stack.log("controller")
    stack.assert_held(operator.spin)
    operator.rest()
    operator.state = ""
    stack.start_controller(**REQUIRED)
    operator.until(lambda: "unconfigured" in operator.state, "the new controller does not speak")


def test_a_damped_stop_is_an_order_of_its_own(stack, operator, tmp_path):
    other = Stack(tmp_path)
    other.domain = stack.domain + 1
    other.environment["ROS_DOMAIN_ID"] = str(other.domain)
    try:
        other.start_emulator()
        other.start_controller()
        mine = Operator(other)
        mine.ready()
        mine.swing()
        assert mine.order("controller/damped_stop").success
        mine.until(lambda: mine.state.startswith("fault"), "no fault after a damped stop")
        mine.until(lambda: other.truth()["estop"], "the arm has not heard of it")
        assert not mine.order("controller/go").success
        mine.close()
    finally:
        other.close()
