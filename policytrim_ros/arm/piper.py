"""The AgileX Piper over the vendor's piper_sdk, unmodified: the only place that knows 0.001 degree and 0.001 mm.

    controller --position (7,) rad|m--> Piper --piper_sdk--> CAN        CAN --piper_sdk's thread--> Piper --Feedback--> controller

The vendor's driver is not thread-safe when it sends, hides failed sends, spins when the bus dies and hands out live objects.
This module puts one lock around every send, counts failures, ends the reading thread of a dead bus, and copies what was
decoded as soon as the last frame of a group has arrived. It has no way to disable or reset the arm: a disabled Piper falls.
"""

from __future__ import annotations

import math
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import can
import numpy as np
from piper_sdk import C_PiperInterface_V2, LogLevel

from policytrim_ros.arm import status
from policytrim_ros.core import kinematics
from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.types import JOINTS, ArmState, frozen

MDEG = math.degrees(1.0) * 1000.0
"""0.001 degree in one radian; the gripper's unit is 1e-6 m."""

INTERFACES = Path("/sys/class/net")
BITRATE = 1_000_000
MOVE_J = 1
INSTALLATIONS = ("unchanged", "horizontal", "left", "right")

HOLD_SPEED_PERCENT = 30
"""Speed with which the arm is told to stay where it is when it is enabled."""

LIMIT_TOLERANCE_RAD = 0.1
"""Targets this little beyond a limit are cut off (an arm at rest reads a few mrad beyond its stop); more is refused."""

JOINT_IDS, MOTOR_IDS, DRIVER_IDS = range(0x2A5, 0x2A8), range(0x251, 0x257), range(0x261, 0x267)
NEEDED_IDS = frozenset((0x2A1, 0x2A8, *JOINT_IDS, *MOTOR_IDS, *DRIVER_IDS))
"""CAN ids without which the arm's condition is not known."""

STAMPED_IDS = frozenset((*JOINT_IDS, 0x2A8))
"""CAN ids whose time of arrival is kept."""

SET_S = 0.1  # a difference of the two clocks that changes by more than this was not slewed
READ_FAILURES_MAX, READ_RETRY_S = 10, 0.02
"""A bus whose reads fail this often in a row, with this pause between them, is given up as dead."""

FULL_EFFORT_SINCE = (1, 8, 3)
"""Older firmware reports a quarter of the effort of joints 1 to 3."""


class ArmError(RuntimeError):
    """The arm cannot be used; the message says what happened, where, and what to do."""


@dataclass(frozen=True)
class PiperConfig(Config):
    """How to reach the arm."""

    can_interface: str = setting("socketcan", "python-can interface: socketcan on the robot, piper_hub for the emulated arm")
    can_port: str = setting("can0", "CAN interface name, or the socket path of the emulated arm")
    check_bitrate: bool = setting(True, "refuse a SocketCAN interface that does not run at 1 Mbit/s; switch off for vxcan")
    dh_is_offset: int = setting(1, "kinematics convention of the firmware: 1 for newer than S-V1.6-3, else 0", choices=(0, 1))
    installation: str = setting(
        "unchanged", "how the arm is mounted (cable to the rear); unchanged: as it was told before", choices=INSTALLATIONS
    )
    gripper_effort_nm: float = setting(1.0, "torque with which the gripper closes", low=0.05, high=2.0, unit="N m")
    connect_timeout_s: float = setting(
        3.0, "how long to wait for the arm's first complete feedback", low=0.2, high=60.0, unit="s"
    )


@dataclass(frozen=True)
class Feedback:
    """What the arm reports, copied. ``state.stamp`` is the monotonic time at which the oldest of its joint frames arrived;
    the effort of the gripper is its motor's torque in N m, as the arm reports it."""

    state: ArmState
    ctrl_mode: int
    arm_status: int
    move_mode: int
    reached: bool
    enabled: tuple[bool, ...]
    gripper_enabled: bool
    gripper_homed: bool
    problems: tuple[str, ...]
    frames_per_s: float


@dataclass(frozen=True)
class ArmLimits:
    """The firmware's own limits of joints 1..6, each (6,): rad, rad, rad/s, rad/s^2."""

    low: np.ndarray
    high: np.ndarray
    speed: np.ndarray
    acceleration: np.ndarray


class Piper:
    """One arm on one CAN port. ``connect`` first; every method but ``connect`` may be called from any thread."""

    _ports_in_use: set[str] = set()

    def __init__(self, config: PiperConfig):
        self.config = config
        self._sdk = self._bus = None
        self._sending = threading.Lock()  # piper_sdk builds every command in one shared object
        self._snapshots = _Snapshots()
        self._usable = False
        self._reader = None  # piper_sdk's reading thread
        self._failed_sends, self._send_failed = 0, False
        self._bus_error = ""
        self._firmware = None
        self._cached = (None, None)

    @property
    def _port(self) -> str:
        return f"{self.config.can_interface} port '{self.config.can_port}'"

    # ---- connection --------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Opens the bus and waits for the arm's feedback; sends questions only. Raises ArmError with one sentence.

        Refused: a missing or sleeping CAN interface, a bus without an arm, an arm in teach mode or after an emergency stop.
        """
        port = self.config.can_port
        if port in Piper._ports_in_use:
            raise ArmError(f"{port} is already in use in this process: close the other Piper first")
        self._check_port()
        Piper._ports_in_use.add(port)
        try:
            self._open()
            self._await_feedback()
            self._ask_firmware()
            self._refuse_unusable()
        except BaseException:
            self.close()
            raise

    def _check_port(self) -> None:
        port = self.config.can_port
        if self.config.can_interface == "socketcan":
            flags = INTERFACES / port / "flags"
            bring_up = f"sudo ip link set {port} up type can bitrate {BITRATE}"
            if not flags.exists():
                raise ArmError(f"there is no CAN interface '{port}': plug in the CAN adapter, then `{bring_up}`, or set can_port")
            if not int(flags.read_text(), 16) & 1:
                raise ArmError(f"CAN interface '{port}' is down: bring it up with `{bring_up}`")
        elif self.config.can_interface == "piper_hub" and not Path(port).exists():
            raise ArmError(f"there is no emulated CAN bus at {port}: start `piper_emulator --socket {port}` or set can_port")

    def _open(self) -> None:
        config = self.config
        C_PiperInterface_V2._instances.pop(config.can_port, None)  # the SDK would return an old object with old feedback
        self._sdk = C_PiperInterface_V2(
            config.can_port, judge_flag=False, can_auto_init=False, dh_is_offset=config.dh_is_offset, logger_level=LogLevel.SILENT
        )
        judge = config.check_bitrate and config.can_interface == "socketcan"
        try:
            self._sdk.CreateCanBus(config.can_port, bustype=config.can_interface, expected_bitrate=BITRATE, judge_flag=judge)
        except ConnectionError as error:
            advice = f"is it up at {BITRATE} bit/s (`ip -details link show {config.can_port}`), or should check_bitrate be off?"
            raise ArmError(f"{self._port} cannot be opened: {advice}") from error
        self._bus = self._sdk.GetCanBus()
        if self._bus.recv_bus is None:
            raise ArmError(f"{self._port} cannot be opened: does it exist, and is its other end running?")
        self._watch_bus()
        self._start()

    def _start(self) -> None:
        self._snapshots.forget()
        self._failed_sends, self._bus_error = 0, ""
        self._usable = True
        with self._sending:
            self._sdk.ConnectPort(can_init=True)

    def _watch_bus(self) -> None:
        """Puts counters around the SDK's two ways to the bus: its reading thread hides errors, its commands hide failures."""
        bus, read, send = self._bus, self._bus.ReadCanMessage, self._bus.SendCanMessage
        failures = 0

        def read_and_copy():
            nonlocal failures
            self._reader = threading.current_thread()
            result = read()
            if result is bus.CAN_STATUS.READ_CAN_MSG_OK:
                failures = 0
                self._snapshots.take(self._sdk, bus.GetRxMessage())
            elif result is not bus.CAN_STATUS.READ_CAN_MSG_TIMEOUT:
                failures += 1
                if not self._usable:
                    raise can.CanOperationError("closed")
                if failures >= READ_FAILURES_MAX:
                    failures = 0
                    self._bus_error = f"{self._port} is gone: reconnect when it is back"
                    raise can.CanOperationError(self._bus_error)  # the SDK's thread ends on this error; it would spin on others
                time.sleep(READ_RETRY_S)
            return result

        def send_and_count(*arguments, **keywords):
            result = send(*arguments, **keywords)
            if result is not bus.CAN_STATUS.SEND_MESSAGE_SUCCESS:
                self._send_failed = True
            return result

        bus.ReadCanMessage, bus.SendCanMessage = read_and_copy, send_and_count
        bus.callback_function = one_taker(self._sdk)

    def _await_feedback(self) -> None:
        with self._snapshots.changed:
            if self._snapshots.changed.wait_for(lambda: self._snapshots.complete, self.config.connect_timeout_s):
                return
        if self._snapshots.seen:
            missing = ", ".join(f"0x{can_id:X}" for can_id in sorted(NEEDED_IDS - self._snapshots.seen))
            raise ArmError(
                f"the arm on {self._port} reports only a part of its condition (missing frames: {missing}): power-cycle it"
            )
        raise ArmError(
            f"no Piper answers on {self._port} within {self.config.connect_timeout_s:g} s: check its power, the CAN cable, "
            "the bit rate (1 Mbit/s) and that it is not set up as a leader arm"
        )

    def _ask_firmware(self) -> None:
        """Asks until the version is there; the SDK forgets an answer that arrives too soon after its question."""
        for _ in range(4):
            with self._snapshots.changed:
                self._snapshots.changed.wait_for(lambda: isinstance(self._sdk.GetPiperFirmwareVersion(), str), 0.25)
            version = self._sdk.GetPiperFirmwareVersion()
            if isinstance(version, str) and len(version) == 8:
                self._firmware = version
                return
            with self._sending:
                self._sdk.SearchPiperFirmwareVersion()

    def _refuse_unusable(self) -> None:
        feedback = self.feedback()
        if feedback.ctrl_mode == status.TEACH_MODE:
            raise ArmError(f"the arm on {self._port} {status.CTRL_MODES[status.TEACH_MODE]}, then start again")
        if feedback.arm_status == status.EMERGENCY_STOP:
            reason = status.ARM_STATUS[status.EMERGENCY_STOP]
            raise ArmError(f"the arm on {self._port}: {reason}; see docs/can.md, then start again")

    def reconnect(self) -> None:
        """Opens the bus again after it died; ArmError when it is still gone or silent. The arm goes on holding meanwhile."""
        self._require_connection()
        self._stop()
        self._check_port()
        self._start()
        if self._bus.recv_bus is None:
            self._usable = False
            raise ArmError(f"{self._port} cannot be opened again: bring it up, then try once more")
        self._await_feedback()

    def close(self) -> None:
        """Ends the connection and its threads. Sends nothing: the arm goes on holding its last target."""
        if self._sdk is not None:
            if self._bus is not None:
                self._stop()
            self._end_sdk_timers()
            C_PiperInterface_V2._instances.pop(self.config.can_port, None)
            self._sdk = self._bus = None
        Piper._ports_in_use.discard(self.config.can_port)

    def _stop(self) -> None:
        self._usable = False
        self._sdk.DisconnectPort()
        reader = self._reader
        if reader is not None and reader is not threading.current_thread():
            reader.join(timeout=2.0)  # the SDK does not wait for it, and would keep an old one

    def _end_sdk_timers(self) -> None:
        """piper_sdk 0.6.2 never stops its two timer threads, not even in DisconnectPort."""
        self._sdk._C_PiperInterface_V2__can_monitor_stop_event.set()
        self._sdk._C_PiperInterface_V2__fps_counter.stop()

    def _require_connection(self) -> None:
        if self._sdk is None:
            raise ArmError("the arm is not connected: call connect() first")

    # ---- what the arm reports ------------------------------------------------------------------------------------------

    @property
    def firmware(self) -> str | None:
        """Version such as "S-V1.8-5"; None when the arm did not tell."""
        return self._firmware

    def feedback(self) -> Feedback | None:
        """The newest complete feedback, or None until every needed frame has been seen since the connection was made.

        Its age is ``time.monotonic() - feedback.state.stamp``; the last feedback stays available when the arm falls silent.
        """
        snapshots = self._snapshots
        if self._sdk is None or not snapshots.complete:
            return None
        key = (snapshots.joints, snapshots.motors, snapshots.gripper, snapshots.status, snapshots.drivers, self._bus_error)
        if self._cached[0] != key:
            self._cached = (key, self._build(*key))
        return self._cached[1]

    def _build(self, joints, motors, gripper, arm, drivers, bus_error) -> Feedback:
        older = (status.firmware_number(self._firmware) or FULL_EFFORT_SINCE) < FULL_EFFORT_SINCE
        factors = (4.0 if older else 1.0,) * 3 + (1.0,) * 3
        ctrl_mode, arm_status, move_mode, not_reached, err_code = arm
        stroke, grip, gripper_bits = gripper
        state = ArmState(
            position=frozen([q / MDEG for q in joints[1:]] + [stroke * 1e-6], (7,)),
            velocity=frozen([speed * 1e-3 for speed, _ in motors] + [self._snapshots.gripper_speed * 1e-6], (7,)),
            effort=frozen([effort * factor * 1e-3 for (_, effort), factor in zip(motors, factors)] + [grip * 1e-3], (7,)),
            stamp=joints[0],
        )
        found = status.problems(ctrl_mode, arm_status, err_code, [bits for bits, _ in drivers], gripper_bits)
        if not any(joints[1:]) and not any(voltage for _, voltage in drivers):
            found += ("all feedback is zero: do not trust it; support the arm and power-cycle it",)
        return Feedback(
            state,
            ctrl_mode,
            arm_status,
            move_mode,
            not not_reached,
            tuple(bool(bits & status.ENABLED_BIT) for bits, _ in drivers),
            bool(gripper_bits & status.ENABLED_BIT),
            bool(gripper_bits & status.HOMED_BIT),
            found + ((bus_error,) if bus_error else ()),
            self._sdk.GetCanFps(),
        )

    @property
    def joint_reports(self) -> int:
        """How many complete reports of the joints (all three frames) have arrived since the connection was made."""
        return self._snapshots.joint_reports

    def end_pose(self):
        """Flange pose in base_link as the arm computes it: ((x, y, z) in m, (x, y, z, w)), or None before it was seen."""
        pose = self._snapshots.pose
        if pose is None:
            return None
        return tuple(v * 1e-6 for v in pose[:3]), quaternion(*(v / MDEG for v in pose[3:]))

    def limits_readback(self, timeout_s: float = 1.0) -> ArmLimits:
        """Asks the firmware for its joint limits; ArmError when a joint does not answer."""
        self._require_connection()
        angles, accelerations = self._snapshots.angle_limits, self._snapshots.acceleration_limits
        angles.clear()
        accelerations.clear()
        for motor in range(1, 7):
            with self._sending:
                self._sdk.SearchMotorMaxAngleSpdAccLimit(motor, 1)
                self._sdk.SearchMotorMaxAngleSpdAccLimit(motor, 2)
        with self._snapshots.changed:
            if not self._snapshots.changed.wait_for(lambda: len(angles) == len(accelerations) == 6, timeout_s):
                silent = ", ".join(
                    JOINTS[motor - 1] for motor in range(1, 7) if motor not in angles or motor not in accelerations
                )
                raise ArmError(f"{silent} on {self._port} did not tell its limits within {timeout_s:g} s: check the CAN bus")
        high, low, speed = np.array([angles[motor] for motor in range(1, 7)], dtype=float).T
        return ArmLimits(
            frozen(np.radians(low / 10.0)),
            frozen(np.radians(high / 10.0)),
            frozen(speed * 1e-3),
            frozen([accelerations[motor] * 1e-2 for motor in range(1, 7)]),
        )

    # ---- what the arm is told ------------------------------------------------------------------------------------------

    @property
    def send_failures(self) -> int:
        """How many commands in a row did not reach the bus; 0 after one that did."""
        return self._failed_sends

    def enable(self, timeout_s: float = 5.0) -> None:
        """Switches the motors on, on an operator's order, and holds the measured pose and gripper stroke.

        Raises ArmError when the arm cannot be enabled or the motors are not on and obeying after ``timeout_s``.
        """
        self._require_connection()
        if self.feedback() is None:
            raise ArmError(f"no feedback from the arm on {self._port} yet: it cannot be enabled without knowing where it is")
        self._refuse_unusable()
        deadline = time.monotonic() + timeout_s
        while not self._obeys():
            if time.monotonic() > deadline:
                raise ArmError(self._why_not_enabled(timeout_s))
            with self._command() as sdk:
                sdk.EnableArm(7)  # the firmware wants it at least twice
            self._hold_here(gripper_code=3)
            with self._snapshots.changed:
                self._snapshots.changed.wait(0.03)
        self._hold_here(gripper_code=1)

    def _obeys(self) -> bool:
        feedback = self.feedback()
        return all(feedback.enabled) and feedback.gripper_enabled and feedback.ctrl_mode == status.CAN_MODE

    def _why_not_enabled(self, timeout_s: float) -> str:
        feedback = self.feedback()
        off = [name for name, on in zip(JOINTS, (*feedback.enabled, feedback.gripper_enabled)) if not on]
        what = f"{', '.join(off)} did not come on" if off else f"the arm stayed in control mode {feedback.ctrl_mode}"
        detail = f" ({'; '.join(feedback.problems)})" if feedback.problems else ""
        return f"{what} within {timeout_s:g} s{detail}: check the arm's supply and its emergency stop, then try again"

    def _hold_here(self, gripper_code: int) -> None:
        """Tells the arm to stay where it is; ``gripper_code`` 1 enables the gripper, 3 also clears its errors."""
        position = self.feedback().state.position
        joints, stroke = self._raw_target(position)
        self._send_target(joints, stroke, HOLD_SPEED_PERCENT, gripper_code)

    def send(self, position, speed_percent: int = 100) -> bool:
        """Sends one setpoint (7,), rad and m, with the arm's own speed limit in percent; returns whether it reached the bus.

        Raises ArmError for NaN and for joints more than 0.1 rad beyond the limits; less, and the gripper's stroke, is cut off.
        The arm keeps the last setpoint when no other follows.
        """
        self._require_connection()
        joints, stroke = self._raw_target(position)
        return self._send_target(joints, stroke, int(speed_percent), gripper_code=1)

    def damped_stop(self) -> None:
        """Emergency stop on an operator's order, sent three times: the arm sinks slowly and can only be recovered by hand."""
        self._require_connection()
        for _ in range(3):
            with self._command() as sdk:
                sdk.EmergencyStop(1)
        if self._failed_sends:
            raise ArmError(f"the damped stop did not reach the arm on {self._port}: use the emergency stop switch")

    def _raw_target(self, position):
        """Integers for the wire: six joints in 0.001 degree, the stroke in 0.001 mm."""
        target = np.asarray(position, dtype=np.float64)
        if target.shape != (len(JOINTS),) or not np.all(np.isfinite(target)):
            raise ArmError(f"refused to send {np.array2string(target, precision=3)}: a target is {len(JOINTS)} finite numbers")
        low, high = kinematics.LIMITS.T
        excess = np.maximum(low - target, target - high)[:6]
        if excess.max() > LIMIT_TOLERANCE_RAD:
            worst = int(np.argmax(excess))
            raise ArmError(
                f"refused to send {JOINTS[worst]} to {target[worst]:.3f} rad: allowed is {low[worst]:.3f} to {high[worst]:.3f}"
            )
        inside = np.clip(target, low, high).tolist()
        return [round(q * MDEG) for q in inside[:6]], round(inside[6] * 1e6)

    def _send_target(self, joints, stroke, speed_percent, gripper_code) -> bool:
        effort = round(self.config.gripper_effort_nm * 1000.0)
        with self._command() as sdk:
            sdk.MotionCtrl_2(status.CAN_MODE, MOVE_J, speed_percent, 0x00, 0, INSTALLATIONS.index(self.config.installation))
            sdk.JointCtrl(*joints)
            sdk.GripperCtrl(stroke, effort, gripper_code, 0)
        return self._failed_sends == 0

    @contextmanager
    def _command(self):
        """The SDK, for one command of one or more frames: alone, and with its failures counted."""
        with self._sending:
            self._send_failed = not self._usable
            yield self._sdk
            self._failed_sends = self._failed_sends + 1 if self._send_failed else 0


TAKERS = {
    "__UpdateArmStatus": (0x2A1,),
    "__UpdateArmEndPoseState": range(0x2A2, 0x2A5),
    "__UpdateArmJointState": JOINT_IDS,
    "__UpdateArmGripperState": (0x2A8,),
    "__UpdateDriverInfoHighSpdFeedback": MOTOR_IDS,
    "__UpdateDriverInfoLowSpdFeedback": DRIVER_IDS,
}
"""Methods of the SDK (0.6.2) that take the feedback, by the CAN ids that each of them looks at."""


def one_taker(sdk: C_PiperInterface_V2):
    """``sdk.ParseCANFrame`` for 3000 frames a second: decodes a frame in the same way and hands it to the one method that takes it.

    The SDK itself offers every frame to all of its 19 takers, which is more than half of what reading costs. Frames that are rare,
    and all of them where another version has other methods, go through ``ParseCANFrame``.
    """
    inside = "_C_PiperInterface_V2"
    try:
        decode, message = getattr(sdk, f"{inside}__parser").DecodeMessage, sdk.rx_msg
        count = getattr(sdk, f"{inside}__fps_counter").increment
        takers = {can_id: getattr(sdk, inside + name) for name, ids in TAKERS.items() for can_id in ids}
    except AttributeError:
        return sdk.ParseCANFrame

    def parse(frame: can.Message) -> None:
        take = takers.get(frame.arbitration_id)
        if take is None:
            sdk.ParseCANFrame(frame)
        elif decode(frame, message):
            count("CanMonitor")
            take(message)

    return parse


class WallStamps:
    """Turns stamps of the wall clock into monotonic time where they arrive. A clock that is set makes nothing old or fresh, not
    even what was on its way meanwhile: a stamp is taken to be as young as the present clock or the one before it was set allows.
    """

    def __init__(self):
        # the wall clock's lead over the monotonic one: now, and before it was last set
        self._ahead_s = self._ahead_before_s = None

    def monotonic(self, stamp_s: float, now_s: float, wall_s: float) -> float:
        """When ``stamp_s`` was, given what both clocks show now."""
        ahead_s = wall_s - now_s
        if self._ahead_s is not None and abs(ahead_s - self._ahead_s) > SET_S:
            self._ahead_before_s = self._ahead_s
        self._ahead_s = ahead_s
        ages_s = [now_s + lead - stamp_s for lead in (ahead_s, self._ahead_before_s) if lead is not None]
        return now_s - min((age for age in ages_s if age >= 0.0), default=0.0)


class _Snapshots:
    """What piper_sdk has decoded, in raw units, copied in its reading thread when the last frame of a group has arrived.

    Readers in other threads take whole tuples. ``changed`` is notified after frames that somebody may wait for.
    """

    AWAITED = frozenset((0x266, 0x2A8, 0x473, 0x47C, 0x4AF))

    def __init__(self):
        self.changed = threading.Condition()
        self.forget()

    def forget(self) -> None:
        self.seen, self._stamps, self._clock = set(), {}, WallStamps()
        self.joint_reports = 0
        self.joints = self.motors = self.drivers = self.gripper = self.status = self.pose = None
        self.gripper_speed, self._gripper_before = 0.0, None
        self.angle_limits, self.acceleration_limits = {}, {}

    @property
    def complete(self) -> bool:
        """Whether every needed frame has been seen."""
        groups = (self.joints, self.motors, self.drivers, self.gripper, self.status)
        return all(group is not None for group in groups) and self.seen >= NEEDED_IDS

    def take(self, sdk, message) -> None:
        can_id = message.arbitration_id
        self.seen.add(can_id)
        if can_id in STAMPED_IDS:
            self._stamps[can_id] = self._clock.monotonic(message.timestamp, time.monotonic(), time.time())
        if can_id == JOINT_IDS[-1]:
            q = sdk.GetArmJointMsgs().joint_state
            oldest = min(self._stamps.get(each, 0.0) for each in JOINT_IDS)
            self.joints = (oldest, q.joint_1, q.joint_2, q.joint_3, q.joint_4, q.joint_5, q.joint_6)
            self.joint_reports += 1
        elif can_id == MOTOR_IDS[-1]:
            info = sdk.GetArmHighSpdInfoMsgs()
            motors = (info.motor_1, info.motor_2, info.motor_3, info.motor_4, info.motor_5, info.motor_6)
            self.motors = tuple((motor.motor_speed, motor.effort) for motor in motors)
        elif can_id == DRIVER_IDS[-1]:
            info = sdk.GetArmLowSpdInfoMsgs()
            drivers = (info.motor_1, info.motor_2, info.motor_3, info.motor_4, info.motor_5, info.motor_6)
            self.drivers = tuple((driver.foc_status_code, driver.vol) for driver in drivers)
        elif can_id == 0x2A8:
            self._take_gripper(sdk.GetArmGripperMsgs().gripper_state, self._stamps[can_id])
        elif can_id == 0x2A1:
            arm = sdk.GetArmStatus().arm_status
            self.status = (int(arm.ctrl_mode), int(arm.arm_status), int(arm.mode_feed), int(arm.motion_status), arm.err_code)
        elif can_id == 0x2A4:
            p = sdk.GetArmEndPoseMsgs().end_pose
            self.pose = (p.X_axis, p.Y_axis, p.Z_axis, p.RX_axis, p.RY_axis, p.RZ_axis)
        elif can_id == 0x473:
            m = sdk.GetCurrentMotorAngleLimitMaxVel().current_motor_angle_limit_max_vel
            self.angle_limits[m.motor_num] = (m.max_angle_limit, m.min_angle_limit, m.max_joint_spd)
        elif can_id == 0x47C:
            m = sdk.GetCurrentMotorMaxAccLimit().current_motor_max_acc_limit
            self.acceleration_limits[m.joint_motor_num] = m.max_joint_acc
        if can_id in self.AWAITED:
            with self.changed:
                self.changed.notify_all()

    def _take_gripper(self, gripper, stamp) -> None:
        self.gripper = (gripper.grippers_angle, gripper.grippers_effort, gripper.status_code)
        before = self._gripper_before
        if before is None or stamp - before[0] > 0.02:  # the protocol carries no gripper speed
            self.gripper_speed = 0.0 if before is None else (gripper.grippers_angle - before[1]) / (stamp - before[0])
            self._gripper_before = (stamp, gripper.grippers_angle)


def quaternion(rx: float, ry: float, rz: float) -> tuple[float, float, float, float]:
    """(x, y, z, w) of rotations in rad about the fixed axes x, then y, then z."""
    (sr, cr), (sp, cp), (sy, cy) = ((math.sin(a / 2), math.cos(a / 2)) for a in (rx, ry, rz))
    return sr * cp * cy - cr * sp * sy, cr * sp * cy + sr * cp * sy, cr * cp * sy - sr * sp * cy, cr * cp * cy + sr * sp * sy
