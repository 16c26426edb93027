"""The Piper driver against the emulated arm: what it refuses, what it reports, and that the arm always goes on holding."""

import inspect
import threading
import time
from dataclasses import FrozenInstanceError, fields

import can
import numpy as np
import pytest
from emulated_arm import EmulatedArm, wait_for
from hypothesis import given
from hypothesis import strategies as st
from piper_sdk import C_PiperInterface_V2, LogLevel

from policytrim_ros.arm import piper as module
from policytrim_ros.arm.piper import ArmError, Piper, PiperConfig, WallStamps, one_taker, quaternion
from policytrim_ros.arm.status import firmware_number, problems
from policytrim_ros.core import kinematics
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.types import READY
from sim_bridge.can_hub import FRAME, Hub

pytestmark = pytest.mark.alone  # the emulated arm moves in real time

HEALTHY = dict(ctrl_mode=1, arm_status=0, err_code=0, driver_bits=[0x40] * 6, gripper_bits=0xC0)


def piper_on(socket, **options) -> Piper:
    return Piper(PiperConfig(can_interface="piper_hub", can_port=socket, **options))


@pytest.fixture(scope="module")
def shared_arm():
    with EmulatedArm() as made:
        yield made


@pytest.fixture
def arm(shared_arm):
    """An emulated arm without faults; its power stays on between tests."""
    shared_arm.inject("clear")
    yield shared_arm
    shared_arm.inject("clear")


@pytest.fixture
def own_arm():
    with EmulatedArm() as made:
        yield made


@pytest.fixture
def piper(arm):
    made = piper_on(arm.socket)
    made.connect()
    yield made
    made.close()


def near(piper, target, tolerance=1e-4):
    return np.abs(piper.feedback().state.position - target).max() < tolerance


# ---- refused connections ---------------------------------------------------------------------------------------------


def test_a_missing_can_interface_is_named_with_what_to_do():
    with pytest.raises(ArmError, match="no CAN interface 'can77': plug in .*`sudo ip link set can77 up type can bitrate 1000000"):
        Piper(PiperConfig(can_port="can77")).connect()


def test_a_sleeping_can_interface_is_named_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "INTERFACES", tmp_path)
    (tmp_path / "can0").mkdir()
    (tmp_path / "can0" / "flags").write_text("0x80\n")
    with pytest.raises(ArmError, match="'can0' is down: bring it up with `sudo ip link set can0 up"):
        Piper(PiperConfig()).connect()


@pytest.mark.parametrize("check_bitrate", [True, False])
def test_an_interface_that_is_not_can_is_refused(check_bitrate):
    with pytest.raises(ArmError, match="socketcan port 'lo' cannot be opened"):
        Piper(PiperConfig(can_port="lo", check_bitrate=check_bitrate)).connect()


def test_a_missing_emulated_bus_is_named_with_what_to_do(tmp_path):
    with pytest.raises(ArmError, match="start `piper_emulator --socket"):
        piper_on(str(tmp_path / "can")).connect()


def test_a_dead_emulated_bus_is_refused_and_leaves_no_spinning_thread(own_arm):
    own_arm.kill()
    before = threading.active_count()
    with pytest.raises(ArmError, match="cannot be opened: does it exist"):
        piper_on(own_arm.socket).connect()
    wait_for(lambda: threading.active_count() == before, "no thread left over")


def test_a_bus_without_an_arm_is_refused(tmp_path):
    hub = Hub(str(tmp_path / "can"))
    with pytest.raises(ArmError, match="no Piper answers on piper_hub port .* within 0.2 s: check its power"):
        piper_on(hub.path, connect_timeout_s=0.2).connect()
    hub.close()


def test_an_arm_that_reports_only_in_part_is_refused_with_the_missing_frames(tmp_path):
    hub, done = Hub(str(tmp_path / "can")), threading.Event()

    def babble():
        while not done.wait(0.005):
            hub.collect()
            hub.broadcast(FRAME.pack(0x2A1, 8, bytes(8)) + FRAME.pack(0x2A8, 8, bytes(8)))

    thread = threading.Thread(target=babble)
    thread.start()
    try:
        with pytest.raises(ArmError, match="only a part of its condition .*0x251.*0x2A5"):
            piper_on(hub.path, connect_timeout_s=0.5).connect()
    finally:
        done.set()
        thread.join()
        hub.close()


def test_an_arm_in_teach_mode_is_refused(arm):
    arm.inject("teach_mode")
    with pytest.raises(ArmError, match="is in teach mode: leave it with the button"):
        piper_on(arm.socket).connect()


def test_an_arm_after_an_emergency_stop_is_neither_connected_nor_enabled(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    piper.enable()
    piper.damped_stop()
    wait_for(lambda: piper.feedback().arm_status == 1, "emergency stop reported")
    assert any("emergency stop is active" in problem for problem in piper.feedback().problems)
    with pytest.raises(ArmError, match="support the arm"):
        piper.enable()
    piper.close()
    with pytest.raises(ArmError, match="emergency stop is active: support the arm"):
        piper_on(own_arm.socket).connect()
    assert own_arm.state()["power_cuts"] == 0 and own_arm.state()["disables"] == 0


def test_a_port_is_used_once_in_a_process_and_free_again_after_close(arm, piper):
    with pytest.raises(ArmError, match="already in use in this process"):
        piper_on(arm.socket).connect()
    piper.close()
    piper.connect()
    assert piper.feedback() is not None


def test_an_unconnected_driver_says_so(tmp_path):
    piper = piper_on(str(tmp_path / "can"))
    assert piper.feedback() is None and piper.end_pose() is None and piper.firmware is None
    for use in (lambda: piper.send(READY), piper.enable, piper.damped_stop, piper.limits_readback, piper.reconnect):
        with pytest.raises(ArmError, match="call connect"):
            use()
    piper.close()


# ---- what the arm reports --------------------------------------------------------------------------------------------


def test_feedback_is_a_frozen_copy_in_radians_and_metres_with_a_fresh_stamp(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    feedback = piper.feedback()
    assert np.abs(feedback.state.position - READY).max() < 2e-5
    assert feedback.enabled == (False,) * 6 and not feedback.gripper_enabled and feedback.gripper_homed
    assert feedback.problems == () and feedback.ctrl_mode == 0 and feedback.arm_status == 0
    with pytest.raises(FrozenInstanceError):
        feedback.ctrl_mode = 1
    with pytest.raises(ValueError):
        feedback.state.position[0] = 0.0
    assert 0.0 <= time.monotonic() - feedback.state.stamp < 5.0
    wait_for(lambda: piper.feedback().state.stamp > feedback.state.stamp, "a newer stamp")
    wait_for(lambda: piper.feedback().frames_per_s > 0, "a frame rate")
    piper.close()


def test_firmware_limits_and_end_pose_are_read(arm, piper):
    assert piper.firmware == "S-V1.8-5"
    limits = piper.limits_readback()
    assert np.all(limits.low <= kinematics.LIMITS[:6, 0] + 1e-6) and np.all(limits.high >= kinematics.LIMITS[:6, 1] - 1e-6)
    assert np.all(limits.speed == 3.0) and np.all(limits.acceleration == 5.0)
    (x, y, z), rotation = piper.end_pose()
    pose = kinematics.forward(piper.feedback().state.position[:6])
    assert np.abs(np.array((x, y, z)) - pose[:3, 3]).max() < 1e-4
    qx, qy, qz, qw = rotation
    approach = (2 * (qx * qz + qy * qw), 2 * (qy * qz - qx * qw), 1 - 2 * (qx * qx + qy * qy))
    assert np.abs(approach - pose[:3, 2]).max() < 1e-4


def test_a_silent_joint_is_named_when_limits_are_read(arm, piper):
    arm.inject("mute")
    with pytest.raises(ArmError, match="joint1, joint2, joint3, joint4, joint5, joint6 on .* did not tell its limits"):
        piper.limits_readback(timeout_s=0.1)


def test_a_limit_that_was_set_in_the_arm_is_read_back_and_reading_changes_nothing(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    piper._sdk.MotorAngleLimitMaxSpdSet(2, 1000, 100, 500)  # as the vendor's tools do it; the driver has no way to
    before = own_arm.wait(lambda state: state["time"] > 0.0, "its condition")
    wait_for(lambda: np.allclose(piper.limits_readback().high[1], np.radians(100.0)), "the new limit")
    limits = piper.limits_readback()
    assert np.isclose(limits.low[1], np.radians(10.0)) and limits.speed.tolist() == [3.0, 0.5, 3.0, 3.0, 3.0, 3.0]
    after = own_arm.state()
    assert not any(after["enabled"]) and after["disables"] == after["power_cuts"] == after["estops"] == 0
    assert np.allclose(after["position"], before["position"])
    piper.close()


def test_reports_of_the_joints_are_counted(arm, piper):
    before = piper.joint_reports
    wait_for(lambda: piper.joint_reports > before + 10, "ten more reports")
    arm.inject("mute")
    time.sleep(0.1)  # what was on its way
    silent = piper.joint_reports
    time.sleep(0.1)
    assert piper.joint_reports == silent


def test_velocity_and_effort_are_reported_in_si_units(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    piper.enable()
    piper.send(np.array(READY) + (1.0, 0, 0, 0, 0, 0, -0.05), 100)
    fastest = strongest = widest = 0.0

    def watch():
        nonlocal fastest, strongest, widest
        state = piper.feedback().state
        fastest, strongest, widest = (
            max(fastest, state.velocity[0]),
            max(strongest, state.effort[0]),
            min(widest, state.velocity[6]),
        )
        return near(piper, np.array(READY) + (1.0, 0, 0, 0, 0, 0, -0.05))

    wait_for(watch, "the target")
    assert 1.0 < fastest <= 3.0 and 0.5 < strongest < 3.0 and -0.3 < widest < -0.02
    piper.close()


@pytest.mark.parametrize("firmware, factor", [("S-V1.8-2", 4.0), ("S-V1.8-3", 1.0)])
def test_the_effort_of_old_firmware_is_multiplied_by_four(firmware, factor, monkeypatch):
    piper = Piper(PiperConfig())
    piper._sdk, piper._firmware = type("Sdk", (), {"GetCanFps": lambda self: 3040.0})(), firmware
    joints, motors, drivers = (time.monotonic(), 1, 0, 0, 0, 0, 0), ((0, 1000),) * 6, ((0, 240),) * 6
    effort = piper._build(joints, motors, (0, 500, 0), (1, 0, 1, 0, 0), drivers, "").state.effort
    assert np.allclose(effort, [factor] * 3 + [1.0] * 3 + [0.5])


@pytest.mark.parametrize(
    "fault, arguments, sentence",
    [
        ("collision", {"joint": 2}, "joint2: collision"),
        ("stall", {"joint": 5}, "joint5: stalled"),
        ("status", {"code": 6}, "brake"),
        ("joint_error", {"joint": 3}, "joint3: driver error"),
        ("comm_error", {"joint": 4}, "joint4: no communication"),
        ("undervoltage", {"joint": 1}, "joint1: supply voltage too low"),
        ("teach_mode", {}, "teach mode"),
        ("zero_feedback", {}, "all feedback is zero"),
    ],
)
def test_an_injected_fault_becomes_a_sentence_and_leaves_again(arm, piper, fault, arguments, sentence):
    assert piper.feedback().problems == ()
    arm.inject(fault, **arguments)
    wait_for(lambda: any(sentence in problem for problem in piper.feedback().problems), sentence)
    arm.inject("clear")
    wait_for(lambda: piper.feedback().problems == (), "a healthy arm")


def test_a_muted_arm_leaves_its_last_feedback_with_its_age(arm, piper):
    arm.inject("mute")
    wait_for(lambda: time.monotonic() - piper.feedback().state.stamp > 1.0, "old feedback")
    arm.inject("clear")
    wait_for(lambda: time.monotonic() - piper.feedback().state.stamp < 0.5, "fresh feedback")


@pytest.mark.parametrize("jump_s", [300.0, -300.0])
def test_a_stamp_is_as_young_as_either_clock_allows_when_the_wall_clock_was_set(jump_s):
    clock = WallStamps()
    assert clock.monotonic(1000.0, 5.0, 1000.25) == pytest.approx(4.75)
    assert clock.monotonic(1000.5, 5.6, 1000.85 + jump_s) == pytest.approx(5.25)  # on its way while the clock was set
    assert clock.monotonic(1000.75 + jump_s, 5.8, 1001.05 + jump_s) == pytest.approx(5.5)
    assert clock.monotonic(1000.75 + jump_s, 9.8, 1005.05 + jump_s) == pytest.approx(5.5)  # what is old stays old
    assert clock.monotonic(1010.0 + jump_s, 9.9, 1005.15 + jump_s) <= 9.9  # never in the future


@pytest.mark.parametrize("jump_s", [300.0, -300.0])
def test_a_wall_clock_that_is_set_makes_feedback_neither_old_nor_fresh(arm, piper, jump_s, monkeypatch):
    real, since = time.time, piper.feedback().state.stamp
    arm.inject("mute")
    wait_for(lambda: time.monotonic() - piper.feedback().state.stamp > 0.3, "old feedback")
    monkeypatch.setattr(time, "time", lambda: real() + jump_s)
    monkeypatch.setattr(piper, "_bus_error", "the feedback is put together anew")
    assert piper.feedback().problems
    assert 0.3 < time.monotonic() - piper.feedback().state.stamp < 30.0 and piper.feedback().state.stamp >= since


def test_a_healthy_arm_has_no_problems_whether_enabled_or_not():
    assert problems(**HEALTHY) == ()
    assert problems(**{**HEALTHY, "ctrl_mode": 0, "driver_bits": [0] * 6, "gripper_bits": 0}) == ()


@given(
    st.integers(0, 255),
    st.integers(0, 255),
    st.integers(0, 65535),
    st.lists(st.integers(0, 255), min_size=6, max_size=6),
    st.integers(0, 255),
)
def test_every_code_becomes_sentences_and_only_health_is_silent(ctrl_mode, arm_status, err_code, driver_bits, gripper_bits):
    found = problems(ctrl_mode, arm_status, err_code, driver_bits, gripper_bits)
    healthy = (
        ctrl_mode in (0, 1)
        and arm_status == 0
        and not err_code & 0x3F3F
        and not any(b & 0xBF for b in driver_bits)
        and not gripper_bits & 0x3F
    )
    assert all(isinstance(text, str) and text for text in found)
    assert (found == ()) == healthy


@pytest.mark.parametrize("text, number", [("S-V1.8-5", (1, 8, 5)), ("S-V1.6-3", (1, 6, 3)), (None, None), ("garbage", None)])
def test_firmware_numbers_are_read_or_none(text, number):
    assert firmware_number(text) == number


@given(st.tuples(*[st.floats(-3.1, 3.1)] * 3))
def test_quaternions_are_of_unit_length(angles):
    assert abs(sum(v * v for v in quaternion(*angles)) - 1.0) < 1e-12


# ---- what the arm is told ----------------------------------------------------------------------------------------------


def test_enabling_keeps_pose_and_gripper_and_takes_over_control(own_arm):
    before = own_arm.position()
    piper = piper_on(own_arm.socket)
    piper.connect()
    piper.enable()
    feedback = piper.feedback()
    assert all(feedback.enabled) and feedback.gripper_enabled and feedback.ctrl_mode == 1 and feedback.problems == ()
    assert np.abs(own_arm.position() - before).max() < 1e-4
    piper.enable()  # again: nothing changes
    assert np.abs(own_arm.position() - before).max() < 1e-4
    piper.close()


def test_enabling_an_arm_that_does_not_answer_ends_with_a_reason(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    own_arm.inject("bus_off")
    with pytest.raises(ArmError, match="joint1, .*gripper did not come on within 0.3 s: check the arm's supply"):
        piper.enable(timeout_s=0.3)
    own_arm.inject("clear")
    piper.close()


def test_a_sent_target_is_reached(arm, piper):
    piper.enable()
    target = np.array((0.1, 1.1, -1.0, 0.1, 0.8, -0.1, 0.04))
    assert piper.send(target, 100)
    wait_for(lambda: near(piper, target), "the target")
    assert piper.send_failures == 0 and piper.feedback().problems == ()


@pytest.mark.parametrize(
    "target, sentence",
    [
        ((np.nan,) * 7, "7 finite numbers"),
        ((0, 1, -1, 0, np.inf, 0, 0), "7 finite numbers"),
        ((0.0,) * 6, "7 finite numbers"),
        ((0, 1, 0.2, 0, 0, 0, 0), "joint3 to 0.200 rad: allowed is -2.967 to 0.000"),
        ((3.0, 1, -1, 0, 0, 0, 0), "joint1 to 3.000"),
    ],
)
def test_an_impossible_target_is_refused_and_never_reaches_the_bus(arm, piper, target, sentence):
    sent = arm.state()["frames_received"]
    with pytest.raises(ArmError, match=sentence):
        piper.send(target)
    assert arm.state()["frames_received"] == sent


def test_a_target_a_little_beyond_the_stops_is_cut_off(arm, piper):
    piper.enable()
    piper.send((0.0, -0.05, -1.0, 0.0, 0.5, 0.0, -0.02), 100)
    expected = np.array((0.0, 0.0, -1.0, 0.0, 0.5, 0.0, 0.0))
    wait_for(lambda: near(piper, expected), "the cut target")
    assert piper.feedback().problems == ()


def test_commands_of_several_threads_never_mix(arm, piper):
    ids, bus = [], piper._bus

    def record(can_id, data, *_):
        ids.append(can_id)
        time.sleep(0)  # invites another thread in the middle of a command
        return bus.CAN_STATUS.SEND_MESSAGE_SUCCESS

    bus.SendCanMessage = record
    threads = [threading.Thread(target=lambda: [piper.send(READY) for _ in range(100)]) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ids == [0x151, 0x155, 0x156, 0x157, 0x159] * 300


def test_failed_sends_are_counted_in_a_row_and_forgotten_after_a_success(arm, piper):
    piper.enable()
    arm.inject("bus_off")
    wait_for(lambda: not piper.send(READY) and piper.send_failures >= 3, "three failures in a row")
    arm.inject("clear")
    wait_for(lambda: piper.send(READY), "a send that works")
    assert piper.send_failures == 0


def test_a_damped_stop_that_does_not_reach_the_arm_is_an_error(arm, piper):
    arm.inject("bus_off")
    wait_for(lambda: not piper.send(READY), "a full send buffer")
    with pytest.raises(ArmError, match="use the emergency stop switch"):
        piper.damped_stop()


# ---- ends and losses: the arm goes on holding -----------------------------------------------------------------------------


def test_close_sends_nothing_ends_its_threads_and_leaves_the_arm_holding(arm):
    threads = threading.active_count()
    piper = piper_on(arm.socket)
    piper.connect()
    piper.enable()
    before = arm.wait(lambda state: np.abs(state["velocity"]).max() < 1e-6, "the arm at rest")
    piper.close()
    piper.close()  # again: nothing happens
    wait_for(lambda: threading.active_count() == threads, "the threads of the driver ended")
    after = arm.state()
    assert after["holding"] and all(after["enabled"]) and after["frames_received"] == before["frames_received"]
    assert np.abs(np.array(after["position"]) - before["position"]).max() < 1e-3


def test_a_dead_bus_ends_the_reading_thread_and_a_new_one_is_found_again(own_arm):
    piper = piper_on(own_arm.socket)
    piper.connect()
    piper.enable()
    own_arm.kill()
    wait_for(lambda: not piper._reader.is_alive(), "the reading thread ended instead of spinning")
    assert any("is gone: reconnect" in problem for problem in piper.feedback().problems)
    assert not piper.send(READY) and piper.send_failures == 1
    with pytest.raises(ArmError, match="cannot be opened again"):
        piper.reconnect()
    with EmulatedArm(socket=own_arm.socket) as second:
        piper.reconnect()
        assert piper.feedback().problems == () and piper.send_failures == 0
        piper.enable()
        assert all(second.state()["enabled"])
        piper.close()


def test_reconnecting_a_living_bus_changes_nothing_for_the_arm(arm, piper):
    piper.enable()
    before = np.array(arm.wait(lambda state: np.abs(state["velocity"]).max() < 1e-6, "the arm at rest")["position"])
    piper.reconnect()
    assert all(piper.feedback().enabled) and np.abs(arm.position() - before).max() < 1e-3
    assert piper.send(piper.feedback().state.position)


def test_the_driver_has_no_way_to_disable_or_reset_the_arm():
    names = [name.lower() for name in dir(Piper)]
    assert not any("disable" in name or "reset" in name for name in names)
    source = inspect.getsource(module)
    assert not any(word in source for word in ("DisableArm", "DisablePiper", "ResetPiper", "MotionCtrl_1", "EmergencyStop(2"))


def test_after_all_of_this_nothing_was_disabled_or_reset(arm):
    state = arm.state()
    assert state["disables"] == 0 and state["power_cuts"] == 0 and state["estops"] == 0


# ---- configuration ---------------------------------------------------------------------------------------------------------


def test_every_setting_of_the_arm_is_documented():
    assert all(spec.metadata["doc"] for spec in fields(PiperConfig))


@pytest.mark.parametrize(
    "values", [dict(dh_is_offset=2), dict(gripper_effort_nm=5.0), dict(installation="upside down"), dict(can_port=3)]
)
def test_an_impossible_setting_is_refused(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        PiperConfig(**values)


def test_the_short_way_through_the_sdk_decodes_every_frame_as_its_own_does():
    """`one_taker` against ``ParseCANFrame``, by whatever both SDKs hold afterwards, for every CAN id of the arm and then some."""
    short, whole = (
        C_PiperInterface_V2(name, judge_flag=False, can_auto_init=False, logger_level=LogLevel.SILENT) for name in ("short", "whole")
    )
    parse = one_taker(short)
    assert parse != short.ParseCANFrame  # the methods are where this version has them
    random = np.random.default_rng(3)
    for can_id in (*range(0x150, 0x160), *range(0x250, 0x268), *range(0x2A0, 0x2AA), *range(0x470, 0x480), 0x4AF):
        for data in (random.bytes(8), bytes(2) + random.bytes(2) + bytes(2) + random.bytes(2)):  # the SDK drops what is too large
            frame = can.Message(timestamp=random.random(), arbitration_id=can_id, data=data, is_extended_id=False)
            parse(frame), whole.ParseCANFrame(frame)
            assert held(short) == held(whole), f"0x{can_id:X}"
    assert short.GetArmJointMsgs().joint_state.joint_6 != 0 and short.GetArmHighSpdInfoMsgs().motor_6.pos != 0


def held(sdk) -> list[str]:
    """What every getter of feedback says."""
    return [
        str(get())
        for get in (
            sdk.GetArmStatus,
            sdk.GetArmEndPoseMsgs,
            sdk.GetArmJointMsgs,
            sdk.GetArmGripperMsgs,
            sdk.GetArmHighSpdInfoMsgs,
            sdk.GetArmLowSpdInfoMsgs,
            sdk.GetArmJointCtrl,
            sdk.GetArmGripperCtrl,
            sdk.GetArmCtrlCode151,
            sdk.GetCurrentMotorAngleLimitMaxVel,
            sdk.GetCurrentMotorMaxAccLimit,
            sdk.GetAllMotorAngleLimitMaxSpd,
        )
    ]
