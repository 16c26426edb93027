"""What the doctor concludes from what it is told: each rule with a case that is well and one that is not."""

import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from policytrim_ros import doctor, findings, live_doctor
from policytrim_ros.arm.piper import ArmLimits
from policytrim_ros.core.contract import Camera, Contract
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.core.types import frozen
from policytrim_ros.findings import BAD, GOOD, WARNING, Finding, Subject, report
from policytrim_ros.live_doctor import Heard, judged
from policytrim_ros.nodes.controller import limits_told
from policytrim_ros.nodes.messages import seconds_to_time
from policytrim_ros.nodes.process import priority_of
from policytrim_ros.policies import checkpoint

NOW_S = 1_700_000_000.0
PARAMETERS = {**asdict(SafetyLimits()), "realtime_priority": 50, "control_rate_hz": 20.0}


def firmware(**changes) -> ArmLimits:
    """Limits of an arm as it is sold."""
    low, high = np.radians([-150, 0, -170, -100, -70, -120]), np.radians([150, 180, 0, 100, 70, 120])
    values = dict(low=low, high=high, speed=[3.0] * 6, acceleration=[5.0] * 6) | changes
    return ArmLimits(**{name: frozen(value) for name, value in values.items()})


def diagnostics(name: str, stamp_s: float = NOW_S, level: bytes = DiagnosticStatus.OK, **values: str) -> DiagnosticArray:
    status = DiagnosticStatus(name=name, level=level, values=[KeyValue(key=key, value=value) for key, value in values.items()])
    array = DiagnosticArray(status=[status])
    array.header.stamp = seconds_to_time(stamp_s)
    return array


def controller(**changes: str) -> dict[str, str]:
    """What a controller says that is well."""
    well = dict(can_frames_per_s="3040", feedback_age_ms="4.0", joint_reports_per_s="200.0", motors_enabled="6 of 6")
    return well | dict(lateness_p99_ms="0.3", realtime_priority="50") | limits_told(firmware()) | changes


def found(messages, parameters=None) -> dict[str, Finding]:
    heard = Heard(states=["holding: ready"], parameters={"controller": PARAMETERS} if parameters is None else parameters)
    for message in messages:
        heard.take(message, NOW_S)
    return {finding.subject: finding for finding in judged(heard)}


def of_controller(**changes: str) -> dict[str, Finding]:
    return found([diagnostics("controller", **controller(**changes))])


# ---- the running arm -----------------------------------------------------------------------------------------------------


def test_a_controller_that_is_well_has_good_findings_only():
    said = of_controller()
    assert {"stamps", "controller", "CAN", "feedback", "joint rate", "motors", "limits", "priority", "setpoints"} < set(said)
    assert [line for line in said.values() if line.state != GOOD and line.subject != "inference"] == []
    assert all(len(subject) < 12 for subject in said)  # in columns


@pytest.mark.parametrize(
    "subject, changes, state, words",
    [
        ("joint rate", dict(joint_reports_per_s="90.0"), BAD, "90 reports/s"),
        ("joint rate", dict(joint_reports_per_s=""), BAD, "unknown"),
        ("motors", dict(motors_enabled="unknown"), WARNING, "unknown whether"),
        ("priority", dict(realtime_priority="0"), WARNING, "was refused"),
        ("priority", dict(realtime_priority="unknown"), WARNING, "does not say"),
        ("limits", limits_told(firmware(speed=[3.0, 3.0, 3.0, 3.0, 1.5, 3.0])), WARNING, "joint5: the arm allows at most 1.500 rad/s, ours 2.500"),
        ("limits", limits_told(firmware(acceleration=[2.0] + [5.0] * 5)), WARNING, "joint1: the arm allows at most 2.000 rad/s2, ours 4.800"),
        ("limits", dict(arm_low=""), WARNING, "the arm's own are unknown"),
    ],
)
def test_what_is_not_well_is_said_with_its_number(subject, changes, state, words):
    line = of_controller(**changes)[subject]
    assert line.state == state and words in line.found and line.advice


def test_a_joint_that_the_arm_stops_earlier_than_we_do_is_named_with_both_numbers():
    low, high = np.array(firmware().low), np.array(firmware().high)
    low[2], high[1] = -1.0, 2.0
    line = of_controller(**limits_told(firmware(low=low, high=high)))["limits"]
    assert line.state == WARNING and "config/controller.yaml" in line.advice
    assert line.found == "joint3: the arm allows down to -1.000 rad, ours -2.952; joint2: the arm allows up to 2.000 rad, ours 3.125"


def test_limits_are_not_judged_without_the_controllers_parameters():
    line = found([diagnostics("controller", **controller())], parameters={})["limits"]
    assert line.state == WARNING and "the controller's are unknown" in line.found


def test_a_controller_that_was_told_not_to_ask_for_priority_was_not_refused():
    told = [diagnostics("controller", **controller(realtime_priority="0"))]
    assert "did not ask" in found(told, {"controller": PARAMETERS | {"realtime_priority": 0}})["priority"].found


@pytest.mark.parametrize("apart_s, state, words", [(0.4, GOOD, "within 400 ms"), (3.0, BAD, "3.0 s behind"), (-60.0, BAD, "60.0 s ahead")])
def test_stamps_of_another_clock_are_noticed_whatever_the_delay(apart_s, state, words):
    late = diagnostics("inference", NOW_S - apart_s - 0.3)  # a message that waited
    line = found([diagnostics("controller", **controller()), late, diagnostics("inference", NOW_S - apart_s)])["stamps"]
    assert line.state == state and words in line.found
    assert state == GOOD or "'inference'" in line.found and "chrony" in line.advice


# ---- what the controller says --------------------------------------------------------------------------------------------


def test_the_controller_says_the_arms_limits_joint_by_joint_and_nothing_when_it_was_told_none():
    told = limits_told(firmware())
    assert told["arm_high"].split()[:2] == ["2.6180", "3.1416"] and told["arm_v_max"].split() == ["3.0000"] * 6
    assert limits_told(None) == {}


def test_a_priority_that_is_not_allowed_is_refused_with_what_to_do_and_nothing_else_changes():
    asks = "from policytrim_ros.nodes.process import *; import threading; "
    asks += "resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0)); print(ask_for_priority(50)); print(priority_of(threading.get_native_id()))"
    line = [sys.executable, "-c", f"import resource; {asks}"]
    if os.geteuid() == 0:  # who may do everything gives that up first
        line = ["setpriv", "--bounding-set=-sys_nice", *line]
    said = subprocess.run(line, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    assert said == ["Operation not permitted; allow it with an rtprio line for this user in /etc/security/limits.d", "0"]


def test_the_priority_of_a_thread_is_that_of_its_scheduler(monkeypatch):
    real_time = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
    assert priority_of(threading.get_native_id()) == (os.sched_getparam(0).sched_priority if real_time else 0)
    monkeypatch.setattr(os, "sched_getscheduler", lambda _: os.SCHED_FIFO | os.SCHED_RESET_ON_FORK)
    monkeypatch.setattr(os, "sched_getparam", lambda _: os.sched_param(42))
    assert priority_of(1) == 42


# ---- cameras -------------------------------------------------------------------------------------------------------------

PRESENT = (("D435I", "111"), ("D435I", "222"))


@pytest.mark.parametrize(
    "names, serials, state, words",
    [
        (("front", "wrist"), ("111", "222"), GOOD, "front is 111, wrist is 222, connected"),
        (("front", "wrist"), ("111", "333"), BAD, "wrist is to be serial 333, connected: 111, 222"),
        (("front", "wrist"), ("111", "111"), BAD, "front and wrist both have serial 111"),
        (("front", "wrist"), ("", ""), GOOD, "none is configured"),
    ],
)
def test_configured_serials_are_compared_with_what_is_connected(names, serials, state, words):
    lines = list(doctor.serials(dict(cameras=names, serials=serials), PRESENT, robot=False))
    assert [line.state for line in lines] == [state] and words in lines[0].found


def test_on_a_robot_cameras_without_serials_are_a_warning():
    (line,) = doctor.serials({}, PRESENT, robot=True)
    assert line.state == WARNING and "cameras:=" in line.advice


def test_the_serials_of_a_running_camera_node_are_compared_with_the_usb_and_with_what_it_has_open(monkeypatch):
    camera = dict(cameras=["front", "wrist"], serials=["111", "emulated"], source="realsense", realsense_context="")
    monkeypatch.setattr(live_doctor, "devices", lambda: (("D435I", "111"),))
    told = [diagnostics("camera: front", device="111"), diagnostics("camera: wrist", level=DiagnosticStatus.ERROR, device="emulated")]
    assert "wrist is to be serial emulated" in found(told, {"camera": camera})["serials"].found
    assert "wrist is to be serial emulated" in found(told, {"camera": camera | {"realsense_context": "a:b"}})["serials"].found
    told[1] = diagnostics("camera: wrist", device="emulated")
    assert found(told, {"camera": camera | {"realsense_context": "a:b"}})["serials"].state == GOOD


def test_a_driver_that_hangs_while_cameras_are_looked_for_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "FIND_CAMERAS", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "CAMERAS_S", 0.3)
    doctor.devices.cache_clear()
    (line,) = findings.answers(Subject("cameras", lambda: doctor.cameras(True), 20.0), 20.0)
    assert line.state == BAD and line.found == "did not answer within 0.3 s"


# ---- clock ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state, good", [(0, True), (1, True), (5, False)])
def test_a_clock_without_a_time_server_is_a_warning(state, good):
    line = doctor.clock(state)
    assert (line.state == GOOD) is good and (good or line.state == WARNING and "set-ntp" in line.advice)


def test_a_system_that_does_not_say_whether_its_clock_is_synchronised_is_no_crash(monkeypatch):
    monkeypatch.setattr(doctor.Path, "exists", lambda path: False)
    assert doctor.clock(-1).state == WARNING
    assert isinstance(doctor.clock_state(), int)


# ---- contract ------------------------------------------------------------------------------------------------------------

INFERENCE = dict(cameras=["front", "wrist"], width=424, height=240, control_rate_hz=20.0, horizon=0, task="")


@pytest.fixture
def speaks(monkeypatch):
    """Makes every checkpoint one that was made for 424x240 pictures of front and wrist at 20 Hz."""
    cameras = (Camera("front", 424, 240), Camera("wrist", 424, 240))
    made = Contract(cameras, prediction_horizon=15, tasks=("tape_box",))
    monkeypatch.setattr(checkpoint, "read_manifest", lambda directory: {})
    monkeypatch.setattr(checkpoint, "contract_of", lambda manifest, directory: made)


@pytest.mark.parametrize(
    "inference, rate_hz, state, words",
    [
        ({}, 20.0, GOOD, "front 424x240, wrist 424x240, 20 Hz"),
        (dict(cameras=["front", "side"]), 20.0, BAD, "camera 'wrist' is missing: the robot has front, side"),
        (dict(control_rate_hz=30.0), 30.0, BAD, "control rate (Hz): the checkpoint uses 20.0, the robot 30.0"),
        (dict(task="hang_mug"), 20.0, BAD, "was not made for 'hang_mug'"),
        (dict(horizon=20), 20.0, BAD, "predicts H = 15"),
        ({}, 25.0, BAD, "inference speaks for 20, the controller plays 25"),
    ],
)
def test_a_checkpoint_is_compared_with_the_running_system(speaks, inference, rate_hz, state, words):
    line = doctor.contract("mine", {"inference": INFERENCE | inference, "controller": {"control_rate_hz": rate_hz}})
    assert line.state == state and words in line.found
    assert state == GOOD or line.advice


def test_a_checkpoint_is_compared_with_the_configuration_when_nothing_runs(speaks, monkeypatch):
    assert doctor.contract("mine", None).state == GOOD
    monkeypatch.setattr(doctor, "configured", lambda node: {"control_rate_hz": 30.0})
    line = doctor.contract("mine", None)
    assert line.state == WARNING and "config/*.yaml" in line.found and "control rate" in line.found
    assert doctor.contract("mine", {}).state == WARNING  # nobody runs inference


# ---- deadline ------------------------------------------------------------------------------------------------------------


def test_what_hangs_or_fails_is_a_line_and_the_rest_goes_on(capfd):
    release = threading.Event()

    def half():
        yield Finding("half", GOOD, "began")
        release.wait()

    def fails():
        raise OSError("no such thing")

    def slow():
        subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)

    subjects = [
        Subject("half", half, 0.2, WARNING),
        Subject("fails", fails, silent=WARNING),
        Subject("slow", slow, 20.0, WARNING),
        Subject("well", lambda: Finding("well", GOOD, "here")),
    ]
    assert report(subjects) == 0  # warnings only
    lines = capfd.readouterr().out.splitlines()
    assert "half" in findings.hanging()
    release.set()
    assert lines[0].startswith("ok       half         began") and "half         did not answer within 0.2 s" in lines[1]
    assert lines[2].startswith("warning  fails        cannot be examined: OSError: no such thing")
    assert "slow         did not answer within 0.2 s" in lines[3] and lines[4].startswith("ok       well         here")
    assert lines[5].startswith("ok       time ") and len(lines) == 6


def test_all_together_end_within_the_deadline_and_what_is_left_out_is_said(capfd):
    release, began = threading.Event(), time.monotonic()
    hung = [Subject(f"hung{i}", lambda: release.wait() and [], 60.0) for i in range(3)]
    assert report(hung, deadline_s=0.5) == 1
    assert time.monotonic() - began < 10.0
    release.set()
    lines = capfd.readouterr().out.splitlines()
    assert "did not answer within 0.5 s" in lines[0] and "not looked at: the others took all 0.5 s" in lines[1]


def test_the_shares_of_all_subjects_but_the_checkpoints_fit_the_deadline_with_any_two_of_them_hanging():
    shares = sorted((subject.share_s for subject in doctor.subjects(True, "mine", live=True)[:-2]), reverse=True)
    assert sum(shares[:2]) < findings.DEADLINE_S - 10.0 and findings.AT_LAST_S < 60.0


def test_without_ros_the_running_system_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "policytrim_ros.live_doctor", None)  # as if rclpy could not be imported
    (subject,) = [each for each in doctor.subjects(False, live=True) if each.name == "system"]
    (line,) = findings.answers(subject, 10.0)
    assert line.state == BAD and "ModuleNotFoundError" in line.found and line.advice


@pytest.mark.parametrize(
    "script, state, words",
    [
        ("echo 'A, 1024, 16384'; echo 'B, 8192, 8192'", GOOD, "A: 1.0 of 16.0 GB free; B: 8.0 of 8.0 GB free"),
        ("echo 'has failed because it could not communicate with the driver'; exit 9", WARNING, "could not communicate"),
        ("exit 3", WARNING, "ended with 3"),
    ],
)
def test_free_memory_of_each_gpu_is_told_where_the_driver_has_its_tool(script, state, words, tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    finding = doctor.gpu()
    assert finding.state == state and words in finding.found
    assert "GPU" in [subject.name for subject in doctor.subjects(False, "", False, "")]
    tool.unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "GPU" not in [subject.name for subject in doctor.subjects(False, "", False, "")]
