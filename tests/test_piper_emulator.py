"""The emulated Piper: its protocol through the vendor's unmodified driver, its habits, its faults, its bus."""

import copy
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import uuid

import can
import numpy as np
import pytest
from emulated_arm import DEADLINE_S, ROOT, EmulatedArm, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from piper_sdk import C_PiperForwardKinematics, C_PiperInterface_V2, LogLevel

from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import PARK, READY
from sim_bridge import shared
from sim_bridge.can_hub import FRAME, Hub, HubInUse
from sim_bridge.faults import FAULTS, FaultError, Faults, inject
from sim_bridge.piper_emulator import DAMPED_SPEED, TICK_S, PiperEmulator, euler_xyz, parse_pose, pose_matrix
from sim_bridge.virtual_arm import CAN_MODE, ENABLE, VirtualArm

MDEG = math.degrees(1.0) * 1000.0
DISABLE, STOP, RESUME = bytes((7, 1, 0, 0, 0, 0, 0, 0)), bytes((1, 0, 0, 0, 0, 0, 0, 0)), bytes((2, 0, 0, 0, 0, 0, 0, 0))
WRIST_OFF = bytes((6, 1, 0, 0, 0, 0, 0, 0))


def test_a_resting_target_is_reached_within_the_speed_and_acceleration_of_the_motors():
    bench = VirtualArm().enable()
    goal = np.array(READY) + (0.8, 0.5, -0.5, 0.5, -0.5, 1.0, 0)
    bench.joints(goal)
    path = bench.run(3.0)[:, :6]
    velocity = np.diff(path, axis=0) / TICK_S
    assert np.abs(path[-1] - goal[:6]).max() < 1e-4
    assert np.abs(velocity).max() <= 3.0 + 1e-9
    assert np.abs(np.diff(velocity, axis=0)).max() <= 5.0 * TICK_S + 1e-9


def test_the_speed_percentage_lowers_the_speed():
    bench = VirtualArm().enable()
    bench.command(0x151, bytes((1, 1, 10)))
    bench.joints(np.array(READY) + (1, 0, 0, 0, 0, 0, 0))
    assert 0.28 < np.abs(np.diff(bench.run(2.0)[:, 0])).max() / TICK_S <= 0.3 + 1e-9


@pytest.mark.parametrize(
    "rate_hz, jitter_s, error_mrad", [(200, 0.0, 0.1), (100, 0.001, 1.0), (50, 0.002, 3.0), (30, 0.002, 8.0)]
)
def test_a_feasible_stream_is_followed_without_lag(rate_hz, jitter_s, error_mrad):
    def path(t):
        return np.array(READY[:6]) + 0.25 * np.array((1, 0.5, -0.5, 1, 0.2, 1)) * (1 - np.cos(3 * t))

    bench, random, errors, sent = VirtualArm().enable(), np.random.default_rng(0), [], 0.0
    for tick in range(600):
        while sent <= tick * TICK_S:
            bench.joints(path(sent), stamp=100.0 + sent)
            sent = (round(sent * rate_hz) + 1) / rate_hz + jitter_s * random.random()
        bench.now = 100.0 + tick * TICK_S
        bench.arm.step(bench.now)
        errors.append(np.abs(bench.arm.x[:6] - path(tick * TICK_S)).max())
    assert max(errors[100:]) * 1000 < error_mrad


@pytest.mark.parametrize("seed", range(3))
def test_a_jerky_stream_within_the_limits_is_followed_without_swinging(seed):
    bench, random, setpoints = VirtualArm().enable(), np.random.default_rng(seed), SafetyFilter(SafetyLimits())
    setpoints.reset(READY)
    begin = goal = np.array(READY)
    errors = []
    for _ in range(40):  # control steps of a policy that changes its mind with each
        begin, goal = goal, READY + np.append(random.normal(0.0, 0.02, 6), 0.0)
        speed = 20.0 * (goal - begin)
        for i in range(5):
            setpoint = setpoints.step(begin + speed * 0.01 * i, speed, 0.01).setpoint
            bench.joints(setpoint, bench.now + random.uniform(-0.0005, 0.0005))
            errors.append(np.abs(bench.run(0.01)[-1] - setpoint)[:6].max())
    assert np.percentile(errors, 95) < 0.025


def test_a_copy_of_the_arm_moves_and_reports_as_the_arm_itself():
    bench = VirtualArm().enable()
    bench.joints(np.array(READY) + (0.3, 0, 0, 0, 0, 0, 0))
    bench.run(0.1)
    twin = copy.deepcopy(bench)
    assert (twin.run(0.2) == bench.run(0.2)).all()
    frames = bench.frames()
    assert twin.frames() == frames and frames[0x2A5] != VirtualArm().enable().frames()[0x2A5]


def test_when_the_stream_ends_the_last_target_is_held():
    bench = VirtualArm().enable()
    for k in range(20):
        bench.joints(np.array(READY) + (0.01 * k, 0, 0, 0, 0, 0, 0))
        bench.run(0.01)
    path = bench.run(2.0)
    assert abs(path[-1, 0] - 0.19) < 1e-4 and np.abs(np.diff(path[-20:], axis=0)).max() < 1e-9


def test_the_arm_rests_where_it_is_until_somebody_enables_it():
    bench = VirtualArm()
    bench.command(0x151, CAN_MODE)
    bench.joints(np.array(READY) + 0.1)
    assert np.array_equal(bench.run(1.0)[-1], READY)


def test_one_enable_is_not_enough():
    bench = VirtualArm().enable(times=1)
    assert not bench.arm.powered.any()
    assert VirtualArm().enable(times=2).arm.powered.all()


def test_a_disabled_arm_falls_at_a_plausible_rate_to_the_rest_pose():
    bench = VirtualArm().enable()
    bench.command(0x471, DISABLE)
    path = bench.run(3.0)
    assert np.abs(np.diff(path, axis=0)).max() / TICK_S <= 2.5 + 1e-9
    assert np.abs(path[40] - READY).max() < 0.15  # 0.2 s
    assert np.allclose(path[-1, [1, 2, 4]], np.array(PARK)[[1, 2, 4]])
    assert np.allclose(path[-1, [0, 3, 5, 6]], np.array(READY)[[0, 3, 5, 6]])


def test_an_emergency_stop_sinks_slowly_and_ignores_targets_until_power_is_cut():
    bench = VirtualArm().enable()
    bench.command(0x150, STOP)
    bench.command(0x151, CAN_MODE)
    bench.joints(np.array(READY) + (1, 0, 0, 0, 0, 0, 0))
    path = bench.run(1.0)
    assert bench.arm.arm_status == 1
    assert np.abs(np.diff(path, axis=0)).max() / TICK_S <= DAMPED_SPEED + 1e-9
    assert path[-1, 1] < READY[1] - 0.25 and path[-1, 0] == READY[0]
    bench.command(0x150, RESUME)
    assert bench.arm.arm_status == 0 and not bench.arm.powered.any()
    assert np.abs(np.diff(bench.run(0.5), axis=0)).max() / TICK_S > 3 * DAMPED_SPEED
    bench.enable(times=1)
    assert not bench.arm.powered.any()
    bench.enable(times=1)
    assert bench.arm.powered.all()


def test_enabling_does_not_move_the_arm():
    bench = VirtualArm()
    bench.joints(np.array(READY) + 0.2)  # an old target, sent while disabled
    bench.enable()
    assert np.abs(bench.run(0.5) - READY).max() < 1e-9


def test_targets_are_ignored_outside_can_control_mode():
    bench = VirtualArm().enable()
    bench.command(0x151, bytes((0, 1, 100)))
    bench.joints(np.array(READY) + 0.2)
    assert np.abs(bench.run(0.5) - READY).max() < 1e-9


def test_a_target_beyond_a_limit_is_not_followed_and_reported():
    bench = VirtualArm().enable()
    bench.joints((3.0, 1.2, -1.1, 0, 0.9, 0))
    assert np.abs(bench.run(0.5) - READY).max() < 1e-9
    status = bench.frames()[0x2A1]
    assert status[1] == 4 and struct.unpack(">H", status[6:])[0] == 1 << 8
    bench.joints(READY)
    assert bench.frames()[0x2A1][1] == 0


def test_configured_limits_speed_and_acceleration_are_kept():
    bench = VirtualArm().enable()
    bench.command(0x474, struct.pack(">BhhHx", 1, 100, -100, 500))
    bench.command(0x475, struct.pack(">BBBHB2x", 1, 0, 0xAE, 100, 0))
    bench.joints((0.5, *READY[1:]))
    assert bench.frames()[0x2A1][1] == 4
    bench.joints((0.17, *READY[1:]))
    velocity = np.diff(bench.run(2.0)[:, 0]) / TICK_S
    assert velocity.max() <= 0.5 and np.diff(velocity).max() <= 1.0 * TICK_S + 1e-9
    bench.command(0x477, bytes((0, 2)))
    assert bench.arm.limits[0].tolist() == [-1500, 1500] and bench.arm.max_acc[0] == 5.0


def test_setting_zero_changes_the_reading_and_not_the_arm():
    bench = VirtualArm().enable()
    bench.command(0x475, struct.pack(">BBBHB2x", 2, 0xAE, 0, 0x7FFF, 0))
    bench.run(0.1)
    frames = bench.frames()
    assert struct.unpack(">ii", frames[0x2A5])[1] == 0
    assert frames[0x476][:2] == bytes((0x75, 1))
    assert np.allclose(bench.arm.state(bench.now)["position"], READY)


def test_the_gripper_follows_only_when_it_is_enabled_and_within_its_range():
    bench = VirtualArm(pose=(*READY[:6], 0.0)).enable()
    bench.gripper(0.05, code=0)
    assert bench.run(0.5)[-1, 6] == 0.0
    bench.gripper(0.05)
    bench.gripper(0.05)
    assert abs(bench.run(1.0)[-1, 6] - 0.05) < 1e-4
    bench.gripper(0.2)
    assert abs(bench.run(1.0)[-1, 6] - 0.07) < 1e-4


def test_an_end_pose_command_moves_the_flange_there_and_an_impossible_one_is_reported():
    bench = VirtualArm().enable()
    bench.command(0x151, bytes((1, 0, 50)))
    x, y, z = 0.26, 0.05, 0.33
    rpy = (0.0, math.radians(135.0), 0.0)
    numbers = [round(v * 1e6) for v in (x, y, z)] + [round(v * MDEG) for v in rpy]
    for i in range(3):
        bench.command(0x152 + i, struct.pack(">ii", *numbers[2 * i : 2 * i + 2]))
    bench.run(3.0)
    pose = bench.frames()
    assert np.abs(np.array(struct.unpack(">iiii", pose[0x2A2] + pose[0x2A3]))[:3] - numbers[:3]).max() < 1500
    bench.command(0x152, struct.pack(">ii", 2_000_000, 0))
    bench.command(0x154, struct.pack(">ii", 0, 0))
    assert bench.frames()[0x2A1][1] == 2


def test_the_reported_end_pose_is_that_of_the_vendors_kinematics():
    vendor, random = C_PiperForwardKinematics(1), np.random.default_rng(1)
    for _ in range(20):
        q = random.uniform((-2, 0.1, -2.5, -1.5, -1.1, -2), (2, 2.5, -0.1, 1.5, 1.1, 2))
        frames = VirtualArm(pose=(*q, 0.0)).frames()
        units = struct.unpack(">iiiiii", frames[0x2A2] + frames[0x2A3] + frames[0x2A4])
        expected = np.array(vendor.CalFK(list(q))[5]) * 1000.0
        assert np.abs(units - expected)[:3].max() < 2.0
        angles = np.radians((units - expected)[3:] / 1000.0)
        assert np.abs(np.sin(angles / 2)).max() < 1e-4


@given(st.tuples(*[st.floats(-1.5, 1.5)] * 3))
def test_euler_angles_survive_the_way_through_a_pose(rpy):
    assert np.allclose(euler_xyz(pose_matrix((0, 0, 0), np.array(rpy))), rpy, atol=1e-9)


def test_every_tick_carries_the_frames_of_one_real_arm():
    bench = VirtualArm()
    counts = {}
    for _ in range(200):
        bench.run(TICK_S)
        for can_id in bench.frames():
            counts[can_id] = counts.get(can_id, 0) + 1
    assert all(counts[can_id] == 200 for can_id in (*range(0x2A1, 0x2A9), *range(0x251, 0x257)))
    assert all(counts[can_id] == 40 for can_id in range(0x261, 0x267)) and sum(counts.values()) == 3040


def test_old_firmware_reports_a_quarter_of_the_current_of_the_first_joints():
    def current(firmware):
        bench = VirtualArm(firmware=firmware).enable()
        bench.joints(np.array(READY) + (0.5, 0, 0, 0.5, 0, 0, 0))
        bench.run(0.05)
        frames = bench.frames()
        return np.array([struct.unpack(">h", frames[can_id][2:4])[0] for can_id in (0x251, 0x254)])

    old, new = current("S-V1.8-2"), current("S-V1.8-5")
    assert abs(new[0] / old[0] - 4) < 0.02 and new[1] == old[1]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(PiperEmulator.HANDLERS)), st.binary(min_size=8, max_size=8)), max_size=40))
def test_no_command_whatsoever_breaks_the_arm_or_its_feedback(commands):
    bench = VirtualArm().enable()
    for can_id, data in commands:
        bench.command(can_id, data)
        bench.run(2 * TICK_S)
        bench.frames()
    assert np.all(np.isfinite(bench.arm.x))
    json.dumps(bench.arm.state(bench.now), default=lambda value: value.tolist())


def test_faults_do_not_stop_the_emulated_arm_from_following():
    for name in FAULTS:
        if name in ("teach_mode", "lost_frames", "joint_offset", "blocked"):
            continue
        bench = VirtualArm().enable()
        bench.arm.faults.inject(name, {})
        bench.joints(np.array(READY) + (0.1, 0, 0, 0, 0, 0, 0))
        assert abs(bench.run(1.0)[-1, 0] - 0.1) < 1e-4, name


def test_a_blocked_joint_stays_while_the_others_follow_and_goes_on_when_it_is_free():
    bench = VirtualArm().enable()
    bench.arm.faults.inject("blocked", {"joint": 1})
    target = np.array(READY) + (0.3, 0.1, 0, 0, 0, 0, 0)
    bench.joints(target)
    where = bench.run(2.0)[-1]
    assert where[0] == READY[0] and abs(where[1] - target[1]) < 1e-4
    bench.arm.faults.clear("blocked")
    assert abs(bench.run(2.0)[-1, 0] - target[0]) < 1e-4


@pytest.mark.parametrize(
    "request_, sentence",
    [
        (("melt", {}), "unknown fault 'melt'; known: mute"),
        (("collision", {"joint": 7}), "joint = 7, expected a number from 1 to 6"),
        (("mute", {"volume": 1}), "unknown argument 'volume'; known: seconds"),
        (("mute", {"seconds": -1}), "seconds = -1"),
        (("lost_frames", {"fraction": 2}), "expected a number from 0.0 to 1.0"),
        (("status", {"code": True}), "expected a number"),
    ],
)
def test_an_impossible_fault_is_refused_in_one_sentence(request_, sentence):
    with pytest.raises(FaultError, match=sentence.replace("(", r"\(")):
        Faults().inject(*request_)


def test_a_fault_ends_by_itself_when_it_was_given_seconds():
    faults = Faults()
    faults.inject("mute", {"seconds": 1.0})
    faults.expire(time.monotonic())
    assert faults.active() == ["mute"]
    faults.expire(time.monotonic() + 1.1)
    assert faults.active() == []


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["high"], "ready, park or seven"),
        (["0"] * 6, "six joints"),
        (["9"] + ["0"] * 6, "within the limits"),
        (["nan"] * 7, "within the limits"),
    ],
)
def test_an_impossible_initial_pose_is_refused(words, sentence):
    with pytest.raises(Exception, match=sentence):
        parse_pose(words)


# ---- the bus ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path):
    made = Hub(str(tmp_path / "can"))
    yield made
    made.close()


def bus_on(hub, **options):
    return can.Bus(interface="piper_hub", channel=hub.path, bitrate=1_000_000, **options)


def test_a_frame_reaches_the_hub_and_every_client_but_its_sender(hub):
    with bus_on(hub) as one, bus_on(hub) as two:
        hub.collect()
        one.send(can.Message(arbitration_id=0x155, data=bytes(range(8)), is_extended_id=False))
        ((stamp, can_id, data),) = hub.collect()
        heard = two.recv(timeout=DEADLINE_S)
        assert (can_id, data) == (0x155, bytes(range(8))) == (heard.arbitration_id, bytes(heard.data))
        assert abs(stamp - time.time()) < 5.0 and heard.timestamp == stamp
        assert one.recv(timeout=0.0) is None


@pytest.mark.parametrize("discards", [False, True])
def test_the_last_words_of_a_client_that_left_without_reading_are_heard_or_thrown_away_like_any_others(hub, discards):
    with bus_on(hub) as client:
        hub.collect()
        hub.broadcast(FRAME.pack(0x2A1, 8, bytes(8)))
        client.send(can.Message(arbitration_id=0x471, data=WRIST_OFF, is_extended_id=False))
    if discards:
        hub.discard()
    assert [can_id for _, can_id, _ in hub.collect()] == ([] if discards else [0x471])
    assert hub.clients == 0


def test_without_loopback_a_frame_reaches_the_arm_and_no_other_client(hub):
    with bus_on(hub, local_loopback=False) as quiet, bus_on(hub) as listener:
        hub.collect()
        quiet.send(can.Message(arbitration_id=0x155, data=bytes(8), is_extended_id=False))
        assert [can_id for _, can_id, _ in hub.collect()] == [0x155]
        assert listener.recv(timeout=0.0) is None


def test_filters_remote_and_extended_frames_work_as_on_other_buses(hub):
    with bus_on(hub, can_filters=[{"can_id": 0x2A1, "can_mask": 0x7FF}]) as filtered, bus_on(hub) as sender:
        hub.collect()
        sender.send(can.Message(arbitration_id=0x100, data=b"\1"))
        sender.send(can.Message(arbitration_id=0x2A1, is_remote_frame=True, dlc=3, is_extended_id=False))
        hub.collect()
        heard = filtered.recv(timeout=DEADLINE_S)
        assert heard.arbitration_id == 0x2A1 and heard.is_remote_frame and heard.dlc == 3 and not heard.is_extended_id


def test_a_client_that_never_reads_disturbs_nobody(hub):
    with bus_on(hub), bus_on(hub) as reader:
        hub.collect()
        frame = FRAME.pack(0x2A1, 8, bytes(8))
        for _ in range(5000):
            hub.broadcast(frame)
            assert reader.recv(timeout=DEADLINE_S).arbitration_id == 0x2A1
        assert hub.clients == 2


def test_a_listener_that_was_held_up_finds_little_of_the_past(hub):
    with bus_on(hub) as slow:
        hub.collect()
        for _ in range(1000):
            hub.broadcast(FRAME.pack(0x2A1, 8, bytes(8)) * 14)
        waiting = 0
        while slow.recv(timeout=0.0) is not None:
            waiting += 1
        assert 100 < waiting <= 14 * 30


@pytest.mark.parametrize("fault", ["passing", "taking"])
def test_sends_fail_once_a_hub_leaves_the_buffer_full_and_work_again_afterwards(hub, fault):
    with bus_on(hub) as client:
        hub.collect()
        setattr(hub, fault, False)
        hub.broadcast(FRAME.pack(0x2A1, 8, bytes(8)))
        assert (client.recv(timeout=0.0) is not None) == hub.passing  # without acknowledgement the arm is still heard
        message = can.Message(arbitration_id=0x155, data=bytes(8), is_extended_id=False)
        with pytest.raises(can.CanOperationError, match="buffer full"):
            for _ in range(1000):
                client.send(message)
        assert hub.collect() == []
        setattr(hub, fault, True)
        hub.discard()
        client.send(message)
        assert len(hub.collect()) == 1


def test_a_hub_that_ends_is_an_error_for_its_clients_and_a_missing_one_for_newcomers(tmp_path):
    hub = Hub(str(tmp_path / "can"))
    client = bus_on(hub)
    hub.collect()
    hub.close()
    with pytest.raises(can.CanOperationError, match="its process ended"):
        client.recv(timeout=DEADLINE_S)
    client.shutdown()
    with pytest.raises(can.CanInitializationError, match="no emulated CAN bus"):
        bus_on(hub)


def test_the_last_frame_of_a_client_that_leaves_at_once_arrives(hub):
    listener, passer_by = bus_on(hub), bus_on(hub)
    passer_by.send(can.Message(arbitration_id=0x471, data=WRIST_OFF, is_extended_id=False))
    passer_by.shutdown()
    hub.collect()  # takes both in
    hub.broadcast(FRAME.pack(0x2A1, 8, bytes(8)))  # finds that nobody listens there any more
    assert [can_id for _, can_id, _ in hub.collect()] == [0x471]
    assert [m.arbitration_id for m in (listener.recv(timeout=DEADLINE_S), listener.recv(timeout=DEADLINE_S))] == [0x2A1, 0x471]
    assert hub.clients == 1
    listener.shutdown()


def test_a_live_socket_is_refused_a_dead_one_replaced_and_a_file_left_alone(tmp_path):
    path = str(tmp_path / "can")
    first = Hub(path)
    with pytest.raises(HubInUse, match="already served by another process"):
        Hub(path)
    first._listener.close()  # as after SIGKILL: the file stays
    Hub(path).close()
    (tmp_path / "precious").write_text("data")
    with pytest.raises(OSError, match="not a socket"):
        Hub(str(tmp_path / "precious"))
    assert (tmp_path / "precious").read_text() == "data"


# ---- the process, through the vendor's driver ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def arm():
    """One emulated arm for all tests that leave its power on."""
    with EmulatedArm() as made:
        yield made


@pytest.fixture
def healthy(arm):
    """The shared arm, without faults before and after."""
    arm.inject("clear")
    yield arm
    arm.inject("clear")


class Vendor:
    """The vendor's driver on an emulated arm."""

    def __init__(self, path):
        C_PiperInterface_V2._instances.pop(path, None)
        self.sdk = C_PiperInterface_V2(path, judge_flag=False, can_auto_init=False, logger_level=LogLevel.SILENT)
        self.sdk.CreateCanBus(path, bustype="piper_hub", expected_bitrate=1_000_000, judge_flag=False)
        self.sdk.ConnectPort()
        wait_for(lambda: self.sdk.GetArmJointMsgs().time_stamp and self.sdk.GetArmLowSpdInfoMsgs().time_stamp, "feedback")

    def enable(self):
        wait_for(self.sdk.EnablePiper, "all motors enabled")
        self.sdk.MotionCtrl_2(1, 1, 100, 0)
        wait_for(lambda: self.sdk.GetArmStatus().arm_status.ctrl_mode == 1, "CAN control mode")

    def joints(self):
        state = self.sdk.GetArmJointMsgs().joint_state
        return [state.joint_1, state.joint_2, state.joint_3, state.joint_4, state.joint_5, state.joint_6]

    def status(self):
        return self.sdk.GetArmStatus().arm_status

    def driver(self, joint):
        return getattr(self.sdk.GetArmLowSpdInfoMsgs(), f"motor_{joint}").foc_status


@pytest.fixture
def vendor(healthy):
    made = Vendor(healthy.socket)
    yield made
    made.sdk.DisconnectPort()


def test_the_vendors_driver_enables_moves_and_reads_back_the_arm(healthy, vendor):
    vendor.enable()
    target = [10000, 70000, -60000, 5000, 45000, -5000]
    vendor.sdk.JointCtrl(*target)
    vendor.sdk.GripperCtrl(30000, 1000, 1, 0)
    wait_for(lambda: vendor.joints() == target and vendor.status().motion_status == 0, "the target")
    wait_for(lambda: vendor.sdk.GetArmGripperMsgs().gripper_state.grippers_angle == 30000, "the gripper's target")
    gripper = vendor.sdk.GetArmGripperMsgs().gripper_state.foc_status
    assert gripper.driver_enable_status and gripper.homing_status
    assert np.allclose(healthy.position()[:6], np.radians(np.array(target) / 1000.0), atol=1e-5)


def test_the_vendors_driver_reads_firmware_limits_and_parameters(vendor):
    sdk = vendor.sdk
    wait_for(lambda: sdk.GetPiperFirmwareVersion() == "S-V1.8-5", "the firmware version")
    sdk.SearchMotorMaxAngleSpdAccLimit(3, 1)
    limits = sdk.GetCurrentMotorAngleLimitMaxVel().current_motor_angle_limit_max_vel
    wait_for(
        lambda: (limits.motor_num, limits.max_angle_limit, limits.min_angle_limit, limits.max_joint_spd) == (3, 0, -1700, 3000),
        "limits",
    )
    sdk.SearchMotorMaxAngleSpdAccLimit(3, 2)
    acceleration = sdk.GetCurrentMotorMaxAccLimit().current_motor_max_acc_limit
    wait_for(lambda: (acceleration.joint_motor_num, acceleration.max_joint_acc) == (3, 500), "acceleration limit")
    sdk.CrashProtectionConfig(1, 2, 3, 4, 5, 6)
    wait_for(lambda: sdk.GetRespInstruction().instruction_response.instruction_index == 0x7A, "acknowledgement")
    sdk.ArmParamEnquiryAndConfig(2, 0, 0, 0, 3)
    levels = sdk.GetCrashProtectionLevelFeedback().crash_protection_level_feedback
    wait_for(lambda: (levels.joint_1_protection_level, levels.joint_6_protection_level) == (1, 6), "crash protection levels")
    sdk.EndSpdAndAccParamSet(111, 222, 333, 444)
    sdk.ArmParamEnquiryAndConfig(1, 0, 0, 0, 3)
    end = sdk.GetCurrentEndVelAndAccParam().current_end_vel_acc_param
    wait_for(lambda: (end.end_max_linear_vel, end.end_max_angular_acc) == (111, 444), "end speed limits")
    sdk.GripperTeachingPendantParamConfig(100, 100, 5)
    sdk.ArmParamEnquiryAndConfig(4, 0, 0, 0, 3)
    stroke = sdk.GetGripperTeachingPendantParamFeedback().arm_gripper_teaching_param_feedback
    wait_for(lambda: stroke.max_range_config == 100, "gripper range")


def test_the_arm_sends_as_many_frames_as_a_real_one(healthy, vendor):
    before = healthy.state()
    after = healthy.wait(lambda state: state["time"] > before["time"] + 1.0, "one second")
    rate = (after["frames_sent"] - before["frames_sent"]) / (after["time"] - before["time"])
    assert 1500 < rate <= 3100  # a busy machine loses some
    assert vendor.sdk.GetCanFps() > 0


def test_two_clients_hear_the_arm_and_its_answers_to_either(healthy, vendor):
    with can.Bus(interface="piper_hub", channel=healthy.socket, can_filters=[{"can_id": 0x473, "can_mask": 0x7FF}]) as listener:
        wait_for(lambda: healthy.state()["clients"] >= 3, "the listener connected")
        vendor.sdk.SearchMotorMaxAngleSpdAccLimit(2, 1)
        assert listener.recv(timeout=DEADLINE_S).arbitration_id == 0x473
    second = Vendor(healthy.socket)
    assert wait_for(lambda: second.joints() == vendor.joints(), "the same joints on both")
    second.sdk.DisconnectPort()


def test_muted_the_arm_falls_silent_and_comes_back(healthy, vendor):
    healthy.inject("mute")
    wait_for(lambda: not vendor.sdk.isOk(), "silence noticed")
    healthy.inject("clear", name="mute")
    wait_for(vendor.sdk.isOk, "frames again")


def test_in_bus_off_nothing_passes_in_either_direction(healthy, vendor):
    vendor.enable()
    healthy.inject("bus_off")
    received = healthy.state()["frames_received"]
    bus = vendor.sdk.GetCanBus()
    wait_for(lambda: bus.SendCanMessage(0x477, [0] * 8) is bus.CAN_STATUS.SEND_MESSAGE_FAILED, "a failing send")
    wait_for(lambda: not vendor.sdk.isOk(), "silence")
    assert healthy.state()["frames_received"] == received
    healthy.inject("clear")
    wait_for(vendor.sdk.isOk, "frames again")
    wait_for(lambda: bus.SendCanMessage(0x477, [0] * 8) is bus.CAN_STATUS.SEND_MESSAGE_SUCCESS, "a send that works")


def test_stale_joints_keep_coming_while_the_arm_moves_on(healthy, vendor):
    vendor.enable()
    before = vendor.joints()
    healthy.inject("stale_joints")
    target = list(before)
    target[0] += 8000
    vendor.sdk.JointCtrl(*target)
    healthy.wait(lambda state: abs(state["position"][0] - math.radians(target[0] / 1000)) < 1e-3, "the true joint at its target")
    stamp = vendor.sdk.GetArmJointMsgs().time_stamp
    wait_for(lambda: vendor.sdk.GetArmJointMsgs().time_stamp > stamp, "more joint frames")
    assert vendor.joints() == before
    healthy.inject("clear")
    wait_for(lambda: vendor.joints() == target, "the true joints")


@pytest.mark.parametrize(
    "fault, arguments, check",
    [
        ("status", {"code": 10}, lambda v: v.status().arm_status == 10),
        (
            "collision",
            {"joint": 2},
            lambda v: v.status().arm_status == 7 and v.driver(2).collision_status and not v.driver(1).collision_status,
        ),
        ("stall", {"joint": 3}, lambda v: v.driver(3).stall_status),
        ("joint_error", {"joint": 6}, lambda v: v.status().arm_status == 9 and v.driver(6).driver_error_status),
        ("comm_error", {"joint": 4}, lambda v: v.status().arm_status == 5 and v.status().err_status.communication_status_joint_4),
        ("undervoltage", {"joint": 1}, lambda v: v.driver(1).voltage_too_low),
        ("teach_mode", {}, lambda v: v.status().ctrl_mode == 2),
        (
            "zero_feedback",
            {},
            lambda v: (
                v.joints() == [0] * 6 and not any(v.sdk.GetArmEnableStatus()) and v.sdk.GetArmLowSpdInfoMsgs().motor_1.vol == 0
            ),
        ),
    ],
)
def test_an_injected_fault_is_reported_and_ends_when_cleared(healthy, vendor, fault, arguments, check):
    assert not check(vendor)
    healthy.inject(fault, **arguments)
    wait_for(lambda: check(vendor), fault)
    healthy.inject("clear", name=fault)
    wait_for(lambda: not check(vendor), f"no {fault}")


def test_lost_frames_lower_the_frame_rate(healthy, vendor):
    healthy.inject("lost_frames", fraction=0.5)
    before = healthy.state()
    after = healthy.wait(lambda state: state["time"] > before["time"] + 0.5, "half a second")
    assert (after["frames_sent"] - before["frames_sent"]) / (after["time"] - before["time"]) < 2000


def test_a_wrong_encoder_reports_the_target_while_the_arm_is_elsewhere(healthy, vendor):
    vendor.enable()
    reported, true = vendor.joints(), healthy.position()
    healthy.inject("joint_offset", joint=1, degrees=5.0)
    healthy.wait(lambda state: abs(true[0] - state["position"][0] - math.radians(5.0)) < 1e-6, "the true joint elsewhere")
    assert vendor.joints() == reported


def test_the_control_socket_refuses_nonsense_in_one_sentence(healthy):
    with pytest.raises(FaultError, match="unknown fault 'melt'"):
        healthy.inject("melt")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(DEADLINE_S)
        connection.connect(healthy.socket + ".control")
        connection.sendall(b"not json\n[1]\n")
        answers = connection.makefile("rb")
        assert [json.loads(answers.readline())["ok"] for _ in range(2)] == [False, False]
    with pytest.raises(FaultError, match="is piper_emulator running"):
        inject("/nowhere/can", "mute")


# ---- habits that end with the power off, and the life of the process: each with an arm of its own ---------------------------


@pytest.fixture
def own_arm():
    with EmulatedArm() as made:
        yield made


def test_through_the_driver_a_damped_stop_sinks_and_a_reset_drops_the_arm(own_arm):
    vendor = Vendor(own_arm.socket)
    vendor.enable()
    vendor.sdk.EmergencyStop(1)
    wait_for(lambda: vendor.status().arm_status == 1, "emergency stop reported")
    start = own_arm.position()
    vendor.sdk.JointCtrl(20000, 70000, -60000, 0, 0, 0)
    state = own_arm.wait(lambda state: state["position"][1] < start[1] - 0.05, "sinking")
    assert (
        all(state["enabled"])
        and abs(state["position"][0] - start[0]) < 1e-6
        and np.abs(state["velocity"]).max() <= DAMPED_SPEED + 1e-9
    )
    vendor.sdk.ResetPiper()
    state = own_arm.wait(lambda state: not any(state["enabled"]), "power cut")
    assert state["power_cuts"] == 1
    own_arm.wait(lambda state: np.abs(np.array(state["position"])[[1, 2]] - np.array(PARK)[[1, 2]]).max() < 1e-6, "the arm down")
    vendor.enable()
    assert all(own_arm.state()["enabled"])
    vendor.sdk.DisconnectPort()


def test_a_killed_emulator_leaves_a_socket_that_the_next_one_replaces(own_arm):
    own_arm.kill()
    assert os.path.exists(own_arm.socket)
    with EmulatedArm(socket=own_arm.socket) as second:
        second.wait(lambda state: state["frames_sent"] > 0, "frames")


def test_a_second_emulator_on_the_same_socket_is_refused_in_one_sentence(healthy):
    second = EmulatedArm(socket=healthy.socket)
    _, errors = second.process.communicate(timeout=DEADLINE_S)
    assert second.process.returncode == 1 and errors.count("\n") == 1
    assert f"{healthy.socket} is already served by another process" in errors
    assert healthy.state()["frames_sent"] > 0


def test_the_arm_can_be_on_a_further_bus_at_the_same_time(hub):
    with EmulatedArm("--also-on", f"piper_hub:{hub.path}") as arm:
        heard = []

        def enabled():
            heard.extend(can_id for _, can_id, _ in hub.collect())
            hub.broadcast(FRAME.pack(0x471, 8, ENABLE))
            return all(arm.state()["enabled"])

        wait_for(enabled, "enabled over the further bus")
        wait_for(
            lambda: heard.extend(can_id for _, can_id, _ in hub.collect()) or {0x2A1, 0x2A5, 0x256} <= set(heard),
            "feedback on it",
        )
        arm.inject("bus_off")
        received = arm.state()["frames_received"]
        hub.broadcast(FRAME.pack(0x471, 8, DISABLE))
        sent = arm.state()["time"]
        assert arm.wait(lambda state: state["time"] > sent, "a tick")["frames_received"] == received


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_process_cleanly(number, tmp_path):
    with EmulatedArm(socket=str(tmp_path / "can")) as arm:
        arm.process.send_signal(number)
        assert arm.process.wait(DEADLINE_S) == 0
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["--socket", "/nowhere/can"], "No such file"),
        (["--socket", "x" * 200], "too long"),
        ([], "--socket"),
        (["--socket", "x", "--also-on", "vxcan1"], "expected INTERFACE:CHANNEL"),
        (["--socket", "x", "--also-on", "no_such_bus:can0"], "no_such_bus"),
        (["--socket", "x", "--also-on", "socketcan:vxcan77"], "vxcan77"),
        (["--socket", "x", "--initial-pose", "1", "2"], "give six joints"),
        (["--socket", "x", "--firmware", "new"], "expected the form"),
    ],
)
def test_bad_arguments_are_refused_in_one_sentence(arguments, sentence, tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "sim_bridge.piper_emulator", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode != 0 and sentence in ended.stderr and "Traceback" not in ended.stderr


# ---- coupled to a world -------------------------------------------------------------------------------------------------


class FakeWorld:
    """Writes ``arm_state`` as a world would and reads the drive targets."""

    def __init__(self, session, position=READY):
        self.position = np.array(position)
        self._state = shared.Block(session, "arm_state", shared.ARM_STATE, create=True)
        self._command = shared.open_block(session, "arm_command", shared.ARM_COMMAND, timeout_s=DEADLINE_S)

    def tick(self, **changes):
        values = dict(stamp=time.monotonic(), position=self.position, velocity=np.zeros(7), effort=np.zeros(7))
        self._state.write(**{**values, **changes})
        return self._command.read()

    def until(self, condition, what):
        """Keeps the world alive until ``condition(drive command)``; returns that command."""
        found = []

        def check():
            command = self.tick()
            if command is not None and condition(command):
                found.append(command)
            return found

        wait_for(check, what)
        return found[0]


@pytest.fixture
def session():
    name = f"arm-{uuid.uuid4().hex[:8]}"
    yield name
    shared.remove_session(name)


def test_with_a_session_the_world_is_the_arm(session):
    pose = np.array((0.3, 1.0, -0.9, 0.1, 0.5, -0.1, 0.03))
    with EmulatedArm("--session", session) as arm:
        world = FakeWorld(session, pose)
        command = world.until(lambda command: np.allclose(command["position"], pose), "the world's pose taken over")
        assert all(command["held"]) and not command["damped"] and not command["velocity"].any()
        with can.Bus(interface="piper_hub", channel=arm.socket) as client:

            def send(can_id, data):
                client.send(can.Message(arbitration_id=can_id, data=data, is_extended_id=False))

            def held_are(*expected):
                return world.until(lambda command: tuple(command["held"]) == expected, f"held={expected}")

            def send_target(target):
                for i, pair in enumerate(np.rint(target[:6] * MDEG).astype(int).reshape(3, 2).tolist()):
                    send(0x155 + i, struct.pack(">ii", *pair))

            send(0x471, ENABLE)
            send(0x471, ENABLE)
            send(0x151, CAN_MODE)
            target = pose.copy()
            target[0] += 0.2
            send_target(target)
            world.until(lambda command: abs(command["position"][0] - target[0]) < 1e-4, "the drive target")
            state = arm.state()
            assert abs(state["position"][0] - pose[0]) < 1e-9 and abs(state["target"][0] - target[0]) < 1e-5

            send(0x471, WRIST_OFF)  # that joint alone goes where the world lets it sink; the others still follow their targets
            held_are(1, 1, 1, 1, 1, 0)
            world.position[5] -= 0.4
            target[[0, 5]] += 0.1
            send_target(target)
            command = world.until(lambda command: abs(command["position"][0] - target[0]) < 1e-4, "the others' next target")
            assert abs(command["position"][5] - world.position[5]) < 1e-9

            send(0x150, STOP)
            world.until(lambda command: bool(command["damped"]), "damped")
            send(0x150, RESUME)
            held_are(0, 0, 0, 0, 0, 0)


def test_measured_joints_are_extrapolated_by_their_velocity(session):
    with EmulatedArm("--session", session) as arm:
        world = FakeWorld(session)
        velocity = np.array((1.0, 0, 0, 0, 0, 0, 0))
        world.until(lambda command: not arm.state()["silent"], "coupled")

        def reported():
            world.tick(velocity=velocity, stamp=time.monotonic() - 0.2)  # old, so the full 30 ms apply
            return arm.state()["position"][0]

        wait_for(lambda: abs(reported() - (READY[0] + 0.03)) < 1e-6, "30 ms of extrapolation")


def test_without_its_world_the_arm_falls_silent_and_says_so(session):
    with EmulatedArm("--session", session) as arm:
        assert arm.state()["silent"] and arm.state()["frames_sent"] == 0
        world = FakeWorld(session)
        world.until(lambda command: arm.state()["frames_sent"] > 0, "frames")
        arm.wait(lambda state: state["silent"], "silence")
        sent = arm.state()["frames_sent"]
        assert arm.wait(lambda state: state["time"] > 0, "a state")["frames_sent"] == sent
        shared.remove_session(session)  # as a world does when it ends
        again = FakeWorld(session)
        again.until(lambda command: arm.state()["frames_sent"] > sent, "frames of the new world")
        arm.process.terminate()
        errors = arm.process.communicate(timeout=DEADLINE_S)[1]
    assert (
        "waiting for the world" in errors and errors.count("has been silent") == 1 and errors.count("coupled to the world") == 2
    )
