"""A Piper that speaks CAN: what the vendor's driver and an operator can send, what the real arm reports, and its habits.

    python -m sim_bridge.piper_emulator --socket /tmp/piper.sock

One loop with absolute deadlines runs at 200 Hz: take commands from the bus (can_hub.py), move the motors, send feedback
(3040 frames/s, as one real arm does). With ``--session`` the motors are those of the simulated world: drive targets go out and
measured joints come in through shared memory (shared.py). Faults are injected over ``<socket>.control`` (faults.py).

Habits of the real arm that are kept (vendor documents and issues; firmware S-V1.8):

* Motors need the enable command at least twice; disabled motors do not hold and the arm sinks.
* Emergency stop (0x150 = 1) sinks the arm slowly and makes it deaf until 0x150 = 2, which cuts the power at once: it falls.
* It moves only in control mode 1, ignores targets beyond its limits (arm_status 4) and goes on holding the last target
  when its computer dies.
* The firmware answers its version about 20 ms late.

Before the first enable the arm is taken to be supported by its operator, so it does not sink from its initial pose.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import struct
import sys
import time
from collections import Counter

import numpy as np

from policytrim_ros.core import kinematics
from policytrim_ros.core.motion import limited_step
from policytrim_ros.core.types import PARK, READY
from sim_bridge.can_hub import FRAME, Hub, HubInUse, PythonCanBus
from sim_bridge.faults import ControlServer, Faults
from sim_bridge.shared import ARM_COMMAND, ARM_STATE, Block

TICK_S = 0.005
LOW_SPEED_EVERY = 5
"""Driver temperature and enable bits are sent every fifth tick: 40 Hz."""

MOTOR_SPEED, MOTOR_ACC = 3.0, 5.0
"""Firmware defaults of every joint (rad/s, rad/s^2)."""

CATCHING_UP, ARRIVING = 0.1, 0.8
"""Shares of MOTOR_ACC for braking relative to a target that moves, and to one that rests. Nearly all of it is wanted to brake with the
target: joints that caught up as fast as can be swung by 0.02 rad around the setpoints of a policy."""

GRIPPER_SPEED, GRIPPER_ACC = 0.25, 3.0
"""Of the full stroke (m/s, m/s^2)."""

SINK_ACC, SINK_SPEED, DAMPED_SPEED = 4.0, 2.5, 0.3
"""An unpowered arm falls with the first two (rad/s^2, rad/s); after an emergency stop it sinks with the third (rad/s)."""

SINKING = np.array((False, True, True, False, True, False, False))
"""Joints that gravity moves when nothing holds them."""

ENABLES_NEEDED = 2
FIRMWARE_DELAY_S = 0.02
STREAM_GAP_S = 0.03
"""Setpoints further apart than this (and than 1.5 of their own period) are single targets, not a stream."""

WORLD_SILENCE_S, EXTRAPOLATION_S = 0.5, 0.03

CURRENT_PER_NM = 1000.0 / np.array((1.18125,) * 3 + (0.95844,) * 3)
"""mA of motor current for one N m, from the vendor driver's conversion."""

INERTIA = np.array((0.3, 0.4, 0.2, 0.02, 0.02, 0.005, 0.1))
"""Rough inertia of each joint (kg m^2; gripper kg), which makes up the effort of an arm without a world."""

INVALID = 0x7FFF
MDEG = math.degrees(1.0) * 1000.0


class Stream:
    """The latest target of ``size`` joints and the velocity of the stream of targets that it belongs to."""

    def __init__(self, start):
        self.target = np.array(start, dtype=float)
        self.velocity = np.zeros_like(self.target)
        self.stamp, self.period = -math.inf, 0.0

    def put(self, target, stamp: float) -> None:
        elapsed = stamp - self.stamp
        if elapsed > 2.0 * STREAM_GAP_S:
            self.velocity, self.period = np.zeros_like(self.target), 0.0
        elif elapsed > 0.002:
            self.velocity, self.period = (target - self.target) / elapsed, elapsed
        self.target, self.stamp = np.array(target, dtype=float), stamp

    def rest(self, at) -> None:
        """Forgets the stream; the target becomes ``at``."""
        self.__init__(at)

    def follow(self, at, which) -> None:
        """The target of the joints ``which`` (bool) becomes ``at``, at rest; the others keep their stream."""
        self.target, self.velocity = np.where(which, at, self.target), np.where(which, 0.0, self.velocity)

    def goal(self, now: float):
        """Position and velocity of the stream at ``now``: extrapolated by at most one period, at rest when it has ended."""
        age = now - self.stamp
        if age > max(STREAM_GAP_S, 1.5 * self.period):
            return self.target, np.zeros_like(self.velocity)
        return self.target + self.velocity * min(age, self.period), self.velocity


class World:
    """The shared-memory coupling to the simulated world; ``measured`` is None while the world is silent."""

    def __init__(self, session: str):
        self.session = session
        self._command = Block(session, "arm_command", ARM_COMMAND, create=True)
        self._state, self._next_try, self._silent = None, -math.inf, True
        self.position = self.velocity = self.effort = None
        print(f"piper_emulator: waiting for the world of session '{session}'", file=sys.stderr, flush=True)

    def command(self, **values) -> None:
        self._command.write(**values)

    def read(self, now: float) -> bool:
        """Takes the newest measured joints, extrapolated to ``now``; False while the world has been silent for 0.5 s."""
        record = None if self._state is None else self._state.read()
        if record is None or now - record["stamp"] > WORLD_SILENCE_S:
            self._reopen(now)
            if not self._silent:
                self._silent = True
                print(
                    f"piper_emulator: the world of session '{self.session}' has been silent for {WORLD_SILENCE_S} s: the arm "
                    "falls silent too until it is back",
                    file=sys.stderr,
                    flush=True,
                )
            return False
        if self._silent:
            self._silent = False
            print(f"piper_emulator: coupled to the world of session '{self.session}'", file=sys.stderr, flush=True)
        age = min(max(now - float(record["stamp"]), 0.0), EXTRAPOLATION_S)
        self.velocity, self.effort = record["velocity"], record["effort"]
        self.position = record["position"] + self.velocity * age
        return True

    def _reopen(self, now: float) -> None:
        if now < self._next_try:
            return
        self._next_try = now + 0.1
        try:
            self._state = Block(self.session, "arm_state", ARM_STATE)  # a world that started anew made a new file
        except FileNotFoundError:
            self._state = None
            return
        if not self._command.path.exists():  # the old world removed the whole session when it ended
            self._command = Block(self.session, "arm_command", ARM_COMMAND, create=True)

    def close(self) -> None:
        """Removes the drive targets; the world holds the last ones."""
        self._command.path.unlink(missing_ok=True)


class PiperEmulator:
    """The arm: ``receive`` takes one command frame, ``step`` moves the motors, ``feedback`` builds the frames of this tick.

    ``pose`` (7,) is where the arm starts (rad, m). ``world`` replaces its motors by those of a simulated world. Positions
    inside are what the arm believes; the true ones differ by ``offset`` (zero setting, faulty encoder).
    """

    def __init__(self, pose=READY, firmware: str = "S-V1.8-5", homed: bool = True, world: World | None = None):
        self.firmware, self.world, self.homed = firmware, world, homed
        old = firmware_number(firmware) <= (1, 8, 2)  # reports a quarter of the current of joints 1 to 3
        self.current_per_nm = CURRENT_PER_NM / np.array((4.0 if old else 1.0,) * 3 + (1.0,) * 3)
        self.faults = Faults()
        self.x, self.v = np.array(pose, dtype=float), np.zeros(7)
        self.zero = np.zeros(7)
        self.acceleration = np.zeros(7)
        self.joints, self.gripper = Stream(self.x[:6]), Stream(self.x[6:])
        self.pending = [None] * 6
        self.pose_pending = [None] * 6
        self.supported, self.powered, self.gripper_on = True, np.zeros(6, bool), False
        self.enables = np.zeros(6, int)
        self.estop = self.teaching = self.leading = False
        self.ctrl_mode = self.move_mode = self.trajectory = 0
        self.speed = 0.0
        self.command_status, self.limit_bits = 0, 0
        self.set_defaults()
        self.end_limits, self.crash_levels, self.gripper_range = [500, 1000, 1000, 2000], [0] * 6, [100, 70, 1]
        self.replies: list[tuple[float, int, bytes]] = []
        self.received, self.sent, self.ticks = Counter(), 0, 0
        self.disables = self.power_cuts = self.estops = 0
        self.last_step = None
        self._goal = np.zeros(7), np.zeros(7), np.full(7, GRIPPER_SPEED), np.full(7, GRIPPER_ACC)
        self.silent = world is not None
        self._frames = _CycleFrames()
        self._end_pose_of = self._end_pose = None

    def set_defaults(self) -> None:
        """Firmware defaults of joint limits (0.1 degree), speed and acceleration."""
        self.limits = np.array([[-1500, 1500], [0, 1800], [-1700, 0], [-1000, 1000], [-700, 700], [-1200, 1200]])
        self.max_speed, self.max_acc = np.full(6, MOTOR_SPEED), np.full(6, MOTOR_ACC)

    # --- commands -------------------------------------------------------------------------------------------------

    def receive(self, can_id: int, data: bytes, stamp: float, now: float) -> None:
        """One command frame that entered the bus at monotonic time ``stamp``."""
        if self.faults.lost_frames and self.faults.random.random() < self.faults.lost_frames:
            return
        self.received[can_id] += 1
        handler = self.HANDLERS.get(can_id)
        if handler is not None:
            handler(self, data, stamp, now)

    def _reply(self, due: float, can_id: int, data: bytes) -> None:
        self.replies.append((due, can_id, data.ljust(8, b"\0")))

    def _acknowledge(self, can_id: int, now: float, zero_set: bool = False) -> None:
        self._reply(now, 0x476, bytes((can_id & 0xFF, zero_set)))

    def _motion_ctrl_1(self, data, _stamp, _now):
        if data[0] == 1:
            self.estops += 1
            self.estop = True
            self._hold()
        elif data[0] == 2:
            self.power_cuts += 1
            self._cut_power()
        self.trajectory = data[3] if data[1] else self.trajectory
        if data[2] == 1 and not self.estop:
            self.teaching, self.ctrl_mode = True, 2
            self._hold()
        elif data[2] in (2, 6) and self.teaching:
            self.teaching, self.ctrl_mode = False, 0

    def _motion_ctrl_2(self, data, _stamp, _now):
        if self.estop or self.ctrl_mode == 2 or data[0] not in (0, 1, 3, 4, 7) or data[2] > 100:
            return
        if data[0] == 1 and self.ctrl_mode != 1:
            self._hold()
        self.ctrl_mode, self.move_mode, self.speed = data[0], data[1], data[2] / 100.0

    def _joint_ctrl(self, first, data, stamp):
        self.pending[first : first + 2] = struct.unpack(">ii", data)
        if first == 4 and self.ctrl_mode == 1 and self.move_mode in (1, 4) and not self.estop:
            self._take_joint_target(stamp)

    def _take_joint_target(self, stamp):
        target = [x * MDEG if p is None else p for p, x in zip(self.pending, self.x.tolist())]
        beyond = [not low * 100 <= p <= high * 100 for p, (low, high) in zip(target, self.limits.tolist())]
        self.limit_bits = sum(1 << i for i, out in enumerate(beyond) if out)
        if self.limit_bits:
            self.command_status = 4
            return
        self.command_status = 0
        self.joints.put(np.array(target) / MDEG, stamp)

    def _pose_ctrl(self, first, data, stamp):
        self.pose_pending[first : first + 2] = struct.unpack(">ii", data)
        if first == 4 and self.ctrl_mode == 1 and self.move_mode in (0, 2) and not self.estop and None not in self.pose_pending:
            self._take_end_pose(stamp)

    def _take_end_pose(self, stamp):
        x, y, z, rx, ry, rz = self.pose_pending
        target = pose_matrix((x * 1e-6, y * 1e-6, z * 1e-6), np.radians(np.array((rx, ry, rz)) * 1e-3))
        target[:3, 3] += kinematics.TCP_OFFSET * target[:3, 2]
        q, position_error, rotation_error = kinematics.follow_ik(target, self.x[:6], iterations=30, step=0.3)
        if position_error > 0.001 or rotation_error > 0.01:
            self.command_status = 2
            return
        self.command_status = 0
        self.joints.rest(q)
        self.joints.stamp = stamp

    def _gripper_ctrl(self, data, stamp, now):
        stroke, _effort, code, zero = struct.unpack(">iHBB", data)
        if zero == 0xAE:
            self.zero[6] -= self.x[6]
            self.x[6] = 0.0
            self.gripper.rest(self.x[6:])
            self.homed = True
            return
        if self.estop or self.ctrl_mode != 1:
            return
        was_on, self.gripper_on = self.gripper_on, bool(code & 1)
        if not self.gripper_on or not was_on:
            self.gripper.rest(self.x[6:])
        if self.gripper_on:
            self.gripper.put(np.clip([abs(stroke) * 1e-6], 0.0, self.gripper_range[1] * 1e-3), stamp)

    def _enable(self, data, _stamp, now):
        motor, flag = data[0], data[1]
        chosen = slice(0, 6) if motor in (7, 0xFF) else slice(motor - 1, motor) if 1 <= motor <= 6 else None
        if chosen is None or flag not in (1, 2):
            return
        self._acknowledge(0x471, now)
        if flag == 1:
            self.disables += 1
            self.supported = False
            self.powered[chosen], self.enables[chosen] = False, 0
            self.gripper_on = self.gripper_on and motor != 0xFF
        elif not self.estop:
            self.enables[chosen] += 1
            newly = (self.enables >= ENABLES_NEEDED) & ~self.powered
            if newly.any():
                self.powered |= newly
                self.v[:6][newly] = 0.0
                target = self.joints.target.copy()
                target[newly] = self.x[:6][newly]
                self.joints.rest(target)
            self.supported = self.supported and not self.powered.all()
            self.gripper_on = self.gripper_on or motor == 0xFF

    def _linkage(self, data, _stamp, now):
        self.leading = data[0] == 0xFA
        self._acknowledge(0x470, now)

    def _ask_limits(self, data, _stamp, now):
        motor, what = data[0], data[1]
        if not 1 <= motor <= 6:
            return
        if what == 1:
            low, high = self.limits[motor - 1].tolist()
            self._reply(now, 0x473, struct.pack(">BhhH", motor, high, low, round(self.max_speed[motor - 1] * 1000)))
        elif what == 2:
            self._reply(now, 0x47C, struct.pack(">BH", motor, round(self.max_acc[motor - 1] * 100)))

    def _set_limits(self, data, _stamp, now):
        motor, high, low, speed = struct.unpack(">BhhHx", data)
        if not 1 <= motor <= 6:
            return
        if high != INVALID:
            self.limits[motor - 1, 1] = high
        if low != INVALID:
            self.limits[motor - 1, 0] = low
        if speed != INVALID:
            self.max_speed[motor - 1] = min(speed, 3000) / 1000.0
        self._acknowledge(0x474, now)

    def _joint_config(self, data, _stamp, now):
        motor, zero, with_acc, acc, clear = struct.unpack(">BBBHB2x", data)
        chosen = slice(0, 6) if motor == 7 else slice(motor - 1, motor) if 1 <= motor <= 6 else None
        if chosen is None:
            return
        if zero == 0xAE:
            self.zero[chosen] -= self.x[chosen]
            self.x[chosen] = 0.0
            self._hold()
        if with_acc == 0xAE and acc != INVALID:
            self.max_acc[chosen] = max(min(acc, 500), 1) / 100.0
        if clear == 0xAE:
            for name in ("collision", "stall", "joint_error"):
                self.faults.clear(name)
        self._acknowledge(0x475, now, zero_set=zero == 0xAE)

    def _parameters(self, data, _stamp, now):
        if data[0] == 1:
            self._reply(now, 0x478, struct.pack(">HHHH", *self.end_limits))
        elif data[0] == 2:
            self._reply(now, 0x47B, bytes(self.crash_levels))
        elif data[0] == 4:
            self._reply(now, 0x47E, bytes(self.gripper_range))
        if data[1] == 1:
            self.end_limits = [500, 1000, 1000, 2000]
        elif data[1] == 2:
            self.set_defaults()
        if data[1] or data[3] == 0xAE:
            self._acknowledge(0x477, now)

    def _set_end_limits(self, data, _stamp, now):
        values = struct.unpack(">HHHH", data)
        self.end_limits = [old if new == INVALID else new for old, new in zip(self.end_limits, values)]
        self._acknowledge(0x479, now)

    def _set_crash_levels(self, data, _stamp, now):
        self.crash_levels = [new if new <= 8 else old for old, new in zip(self.crash_levels, data)]
        self._acknowledge(0x47A, now)

    def _set_gripper_range(self, data, _stamp, now):
        scale, stroke, friction = data[:3]
        self.gripper_range = [scale or self.gripper_range[0], stroke or self.gripper_range[1], friction or self.gripper_range[2]]
        self._acknowledge(0x47D, now)

    def _ask_firmware(self, _data, _stamp, now):
        text = f"H-V1.2-1{self.firmware}AgileX P".encode()
        for i in range(0, len(text), 8):
            self._reply(now + FIRMWARE_DELAY_S, 0x4AF, text[i : i + 8])

    HANDLERS = {
        0x150: _motion_ctrl_1,
        0x151: _motion_ctrl_2,
        0x152: lambda arm, data, stamp, _: arm._pose_ctrl(0, data, stamp),
        0x153: lambda arm, data, stamp, _: arm._pose_ctrl(2, data, stamp),
        0x154: lambda arm, data, stamp, _: arm._pose_ctrl(4, data, stamp),
        0x155: lambda arm, data, stamp, _: arm._joint_ctrl(0, data, stamp),
        0x156: lambda arm, data, stamp, _: arm._joint_ctrl(2, data, stamp),
        0x157: lambda arm, data, stamp, _: arm._joint_ctrl(4, data, stamp),
        0x159: _gripper_ctrl,
        0x470: _linkage,
        0x471: _enable,
        0x472: _ask_limits,
        0x474: _set_limits,
        0x475: _joint_config,
        0x477: _parameters,
        0x479: _set_end_limits,
        0x47A: _set_crash_levels,
        0x47D: _set_gripper_range,
        0x4AF: _ask_firmware,
    }

    # --- motors ---------------------------------------------------------------------------------------------------

    @property
    def held(self) -> np.ndarray:
        """Which joints (6,) a motor, or before the first enable the operator, holds."""
        return self.powered | self.supported

    def _hold(self) -> None:
        self.joints.rest(self.x[:6])
        self.gripper.rest(self.x[6:])

    def _cut_power(self) -> None:
        self.powered[:], self.enables[:], self.gripper_on, self.supported = False, 0, False, False
        self.estop = self.teaching = False
        self.ctrl_mode = self.move_mode = self.command_status = self.limit_bits = 0
        self.pending, self.pose_pending = [None] * 6, [None] * 6
        for name in ("collision", "stall", "joint_error"):
            self.faults.clear(name)

    @property
    def offset(self) -> np.ndarray:
        """What the arm believes minus what is true (7,)."""
        return self.zero + np.array(self.faults.joint_offset + [0.0])

    def step(self, now: float) -> None:
        """Moves the motors from the last tick to ``now``."""
        dt = TICK_S if self.last_step is None else min(max(now - self.last_step, 1e-4), 4 * TICK_S)
        self.last_step = now
        self.faults.expire(now)
        if self.faults.teach_mode and self.ctrl_mode != 2:
            self.ctrl_mode = 2
            self._hold()
        elif self.ctrl_mode == 2 and not (self.teaching or self.faults.teach_mode):
            self.ctrl_mode = 0
        old_v = self.v
        self._drive(now, dt)
        self.acceleration = (self.v - old_v) / dt
        if self.world is not None:
            self._couple(now)

    def _drive(self, now: float, dt: float) -> None:
        before, all_on = self.x, self.gripper_on and not self.estop and bool(self.powered.all())
        (q, q_v), (stroke, stroke_v) = self.joints.goal(now - dt), self.gripper.goal(now - dt)
        goal, goal_v, v_max, a_max = self._goal
        goal[:6], goal[6:], goal_v[:6], goal_v[6:] = q, stroke, q_v, stroke_v
        v_max[:6], a_max[:6] = self.max_speed * self.speed, self.max_acc
        braking = np.where(goal_v == 0.0, ARRIVING, CATCHING_UP)
        driven, v = limited_step(self.x, self.v, goal, goal_v, dt, v_max, a_max, braking)
        if all_on:
            self.x, self.v = driven, v
        else:
            active = np.append(self.powered & (not self.estop), self.gripper_on and not self.estop)
            rest_x, rest_v = self._unpowered(dt)
            self.x, self.v = np.where(active, driven, rest_x), np.where(active, v, rest_v)
        if any(self.faults.blocked):
            blocked = np.append(self.faults.blocked, False)
            self.x, self.v = np.where(blocked, before, self.x), np.where(blocked, 0.0, self.v)

    def _unpowered(self, dt: float):
        """Where joints go that no motor drives: they stay (supported), sink slowly (emergency stop) or fall."""
        if self.supported:
            return self.x, np.zeros(7)
        distance = np.where(SINKING, np.array(PARK) - (self.x - self.offset), 0.0)
        if self.estop and self.powered.any():
            speed = np.full(7, DAMPED_SPEED)
        else:
            speed = np.minimum(np.abs(self.v) + SINK_ACC * dt, SINK_SPEED)
        v = np.sign(distance) * np.minimum(speed, np.abs(distance) / dt)
        return self.x + v * dt, v

    def _couple(self, now: float) -> None:
        was_silent, self.silent = self.silent, not self.world.read(now)
        met = was_silent and not self.silent and self.supported  # take over the pose in which the world's arm stands
        follows = np.append(~self.held | self.estop, False) | met
        if not self.silent and follows.any():
            self.x = np.where(follows, self.world.position + self.offset, self.x)
            self.v = np.where(follows, 0.0, self.v)
            self.joints.follow(self.x[:6], follows[:6])
            self.gripper.follow(self.x[6:], follows[6:])
        self.world.command(stamp=now, position=self.x - self.offset, velocity=self.v, held=self.held, damped=self.estop)

    # --- feedback -------------------------------------------------------------------------------------------------

    def feedback(self, now: float) -> bytes:
        """Concatenated frames of this tick, empty while the arm is silent."""
        self.ticks += 1
        due = [reply for reply in self.replies if reply[0] <= now]
        self.replies = [reply for reply in self.replies if reply[0] > now]
        if self.silent or self.faults.mute:
            return b""
        position, velocity, effort = self._reported()
        low_speed = self.ticks % LOW_SPEED_EVERY == 0
        frames = self._frames
        if not self.leading:
            self._fill(frames, position, velocity, effort)
        out = b"" if self.leading else frames.bytes(low_speed, self.faults.zero_feedback)
        out += b"".join(FRAME.pack(can_id, 8, data) for _, can_id, data in due)
        if self.faults.lost_frames:
            pieces = (out[i : i + FRAME.size] for i in range(0, len(out), FRAME.size))
            out = b"".join(piece for piece in pieces if self.faults.random.random() >= self.faults.lost_frames)
        self.sent += len(out) // FRAME.size
        return out

    def _reported(self):
        if self.world is None:
            return self.x, self.v, self.acceleration * INERTIA
        return self.world.position + self.offset, self.world.velocity, self.world.effort

    def _fill(self, frames, position, velocity, effort):
        joints = position[:6]
        away = bool(np.abs(self.joints.target - joints).max() > 0.01)
        err_code = self.faults.err_code | self.limit_bits << 8
        teach = 1 if self.ctrl_mode == 2 else 0
        frames.put(0x2A1, ">BBBBBBH", self.ctrl_mode, self.arm_status, self.move_mode, teach, away, self.trajectory, err_code)
        frames.end_pose[:] = self._end_pose_units(joints)
        if not self.faults.stale_joints:
            frames.joints[:] = np.rint(joints * MDEG).reshape(3, 2)
        grip = max(-32768, min(32767, round(float(effort[6]) * 1000.0)))
        frames.put(0x2A8, ">ihBx", round(float(position[6]) * 1e6), grip, self.gripper_on << 6 | self.homed << 7)
        current = np.rint(effort[:6] * self.current_per_nm)
        frames.high_speed["speed"] = np.rint(velocity[:6] * 1000.0).clip(-32768, 32767)
        frames.high_speed["current"] = current.clip(-32768, 32767)
        frames.high_speed["position"] = np.rint(joints * 1000.0)
        frames.low_speed["foc"] = np.array(self.faults.foc_bits) | self.powered << 6
        frames.low_speed["bus_current"] = np.minimum(np.abs(current), 65535)

    @property
    def arm_status(self) -> int:
        if self.estop:
            return 1
        if self.faults.status is not None:
            return self.faults.status
        return 11 if self.ctrl_mode == 2 else self.command_status

    def _end_pose_units(self, joints):
        """X Y, Z RX, RY RZ (3, 2) in 0.001 mm and 0.001 degree."""
        key = joints.tobytes()
        if key != self._end_pose_of:
            pose = kinematics.forward(joints)
            metres, angles = pose[:3, 3] * 1e6, np.array(euler_xyz(pose)) * MDEG
            self._end_pose_of, self._end_pose = key, np.rint(np.concatenate((metres, angles))).reshape(3, 2)
        return self._end_pose

    # --- what really is -------------------------------------------------------------------------------------------

    def state(self, now: float) -> dict:
        """The arm's true condition, for tests: positions in rad and m, targets, power, counters."""
        true = self.x - self.offset if self.world is None or self.silent else self.world.position
        return dict(
            position=true,
            velocity=self.v if self.world is None or self.silent else self.world.velocity,
            target=np.append(self.joints.target, self.gripper.target),
            motor_position=self.x,
            enabled=self.powered,
            gripper_enabled=self.gripper_on,
            holding=bool(self.held.all()),
            supported=self.supported,
            estop=self.estop,
            ctrl_mode=self.ctrl_mode,
            move_mode=self.move_mode,
            speed_percent=round(self.speed * 100),
            arm_status=self.arm_status,
            silent=self.silent,
            target_age_s=now - self.joints.stamp if self.joints.stamp > -math.inf else None,
            faults=self.faults.active(),
            frames_sent=self.sent,
            frames_received=sum(self.received.values()),
            received={f"0x{k:X}": n for k, n in self.received.items()},
            disables=self.disables,
            power_cuts=self.power_cuts,
            estops=self.estops,
            time=now,
        )

    def answer(self, request: dict, clients: int = 0) -> dict:
        """Answers one request of the control socket; ``clients`` are those of the bus."""
        request = dict(request)
        name = request.pop("fault")
        if name == "clear":
            self.faults.clear(request.get("name"))
        elif name != "state":
            self.faults.inject(name, request)
        return {**self.state(time.monotonic()), "clients": clients} if name == "state" else {"faults": self.faults.active()}


class _CycleFrames:
    """The frames of one feedback cycle as one buffer that is filled in place through views of its payloads."""

    IDS = tuple(range(0x2A1, 0x2A9)) + tuple(range(0x251, 0x257)) + tuple(range(0x261, 0x267))
    FAST_BYTES = 14 * FRAME.size
    HIGH_SPEED = np.dtype([("speed", ">i2"), ("current", ">i2"), ("position", ">i4")])
    LOW_SPEED = np.dtype(
        [("voltage", ">u2"), ("foc_temperature", ">i2"), ("motor_temperature", "i1"), ("foc", "u1"), ("bus_current", ">u2")]
    )

    def __init__(self):
        self._buffer = bytearray(b"".join(FRAME.pack(can_id, 8, bytes(8)) for can_id in self.IDS))
        self._zeros = bytes(self._buffer)
        payload = np.frombuffer(self._buffer, np.uint8).reshape(-1, FRAME.size)[:, 8:]
        self.end_pose, self.joints = payload[1:4].view(">i4"), payload[4:7].view(">i4")
        self.high_speed, self.low_speed = payload[8:14].view(self.HIGH_SPEED)[:, 0], payload[14:20].view(self.LOW_SPEED)[:, 0]
        self.low_speed["voltage"], self.low_speed["foc_temperature"], self.low_speed["motor_temperature"] = 240, 35, 33

    def __reduce__(self):
        return _CycleFrames, ()  # of a copy the views would not be views; every cycle is filled anew

    def put(self, can_id: int, layout: str, *values) -> None:
        struct.pack_into(layout, self._buffer, self.IDS.index(can_id) * FRAME.size + 8, *values)

    def bytes(self, with_low_speed: bool, zeros: bool) -> bytes:
        whole = self._zeros if zeros else bytes(self._buffer)
        return whole if with_low_speed else whole[: self.FAST_BYTES]


def firmware_number(firmware: str) -> tuple[int, ...]:
    """(1, 8, 5) of "S-V1.8-5"; ValueError on another form."""
    numbers = firmware.removeprefix("S-V").replace("-", ".").split(".")
    return tuple(int(number) for number in numbers)


def euler_xyz(pose) -> tuple[float, float, float]:
    """Roll, pitch, yaw (rad) about fixed x, y, z of a pose (4, 4), as the arm reports its end pose."""
    pitch = math.asin(max(-1.0, min(1.0, -pose[2, 0])))
    return math.atan2(pose[2, 1], pose[2, 2]), pitch, math.atan2(pose[1, 0], pose[0, 0])


def pose_matrix(xyz, rpy) -> np.ndarray:
    """Pose (4, 4) of a position in m and roll, pitch, yaw in rad: the inverse of ``euler_xyz``."""
    (sr, sp, sy), (cr, cp, cy) = np.sin(rpy), np.cos(rpy)
    pose = np.eye(4)
    pose[:3, :3] = [
        [cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr],
        [sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr],
        [-sp, cp * sr, cp * cr],
    ]
    pose[:3, 3] = xyz
    return pose


def serve(emulator: PiperEmulator, hub: Hub, control: ControlServer, stopping, other: PythonCanBus | None = None) -> None:
    """The loop: commands in, motors on, feedback out, every 5 ms on absolute deadlines, until ``stopping()``.

    ``other`` is a further bus that the arm is connected to; bus-off concerns it too.
    """

    def take() -> None:
        frames = hub.collect()
        if other is not None:
            heard = other.collect()
            frames += heard if hub.passing else []
        now = time.monotonic()
        to_monotonic = now - time.time()
        for stamp, can_id, data in frames:
            emulator.receive(can_id, data, min(stamp + to_monotonic, now), now)  # not later, though the wall clock was set back

    def answer(request: dict) -> dict:
        take()  # an answer tells of every frame that was sent before it was asked for
        return emulator.answer(request, hub.clients)

    deadline = time.monotonic()
    while not stopping():
        control.serve(answer)
        passing, taking = not emulator.faults.bus_off, not emulator.faults.no_transmit
        if (hub.passing, hub.taking) != (passing, taking):
            hub.passing, hub.taking = passing, taking
            hub.discard()
        take()
        now = time.monotonic()
        emulator.step(now)
        feedback = emulator.feedback(now)
        hub.broadcast(feedback)
        if other is not None and hub.passing:
            other.broadcast(feedback)
        deadline += TICK_S
        ahead = deadline - time.monotonic()
        if ahead > 0:
            time.sleep(ahead)
        elif ahead < -10 * TICK_S:
            print(f"piper_emulator: held up by this machine for {-ahead:.2f} s, silent meanwhile", file=sys.stderr, flush=True)
            deadline = time.monotonic()  # do not catch up in a burst


def parse_pose(words) -> tuple[float, ...]:
    """The pose named by the command line: ready, park, or seven numbers (six rad, one m)."""
    named = {"ready": READY, "park": PARK}
    if len(words) == 1 and words[0] in named:
        return named[words[0]]
    try:
        pose = tuple(float(word) for word in words)
    except ValueError:
        raise argparse.ArgumentTypeError(f"initial pose {' '.join(words)}: give ready, park or seven numbers") from None
    low, high = kinematics.LIMITS.T
    if len(pose) != 7 or not all(a - 1e-6 <= p <= b + 1e-6 for p, a, b in zip(pose, low, high)):
        raise argparse.ArgumentTypeError(
            f"initial pose {' '.join(words)}: give six joints in rad and the gripper in m, within the limits"
        )
    return pose


def behave_like_hardware() -> None:
    """Real-time priority where the system allows it: a real arm's feedback does not wait for other programs either."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
    except PermissionError:
        print("piper_emulator: no real-time priority; on a busy machine feedback will be late", file=sys.stderr)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="piper_emulator", description="An AgileX Piper that speaks CAN frames on a Unix socket bus."
    )
    parser.add_argument("--socket", required=True, help="socket of the bus; clients use it as CAN port with interface piper_hub")
    parser.add_argument(
        "--session", default="", help="simulation session whose world moves the arm; without it the arm moves by itself"
    )
    parser.add_argument("--firmware", default="S-V1.8-5", help="version the arm answers (default: %(default)s)")
    parser.add_argument(
        "--initial-pose",
        nargs="+",
        default=["ready"],
        metavar="POSE",
        help="ready, park or seven numbers: six joints in rad, gripper in m (default: ready)",
    )
    parser.add_argument("--not-homed", action="store_true", help="the gripper has not found its zero since power-up")
    parser.add_argument(
        "--also-on",
        default="",
        metavar="INTERFACE:CHANNEL",
        help="a further python-can bus that the arm is connected to, such as socketcan:vxcan1",
    )
    options = parser.parse_args(arguments)
    if options.also_on and not all(options.also_on.partition(":")):
        parser.error(f"--also-on {options.also_on}: expected INTERFACE:CHANNEL, such as socketcan:vxcan1")
    try:
        pose = parse_pose(options.initial_pose)
        firmware_number(options.firmware)
        if len(options.firmware) != 8 or not options.firmware.startswith("S-V"):
            raise ValueError
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except ValueError:
        parser.error(f"firmware {options.firmware}: expected the form S-V1.8-5")
    stop = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.append(True))
    try:
        hub = Hub(options.socket)
    except (HubInUse, OSError) as error:
        print(f"piper_emulator: {error}", file=sys.stderr)
        return 1
    control = world = other = None
    try:
        control = ControlServer(options.socket)
        if options.also_on:
            interface, _, channel = options.also_on.partition(":")
            other = PythonCanBus(interface, channel)
        world = World(options.session) if options.session else None
        emulator = PiperEmulator(pose, options.firmware, not options.not_homed, world)
        behave_like_hardware()
        print(f"piper_emulator: ready on {options.socket} pid={os.getpid()} firmware={options.firmware}", flush=True)
        serve(emulator, hub, control, lambda: bool(stop), other)
    except (HubInUse, ValueError, OSError) as error:
        print(f"piper_emulator: {error}", file=sys.stderr)
        return 1
    finally:
        for opened in (hub, control, other, world):
            if opened is not None:
                opened.close()
        for number in (signal.SIGINT, signal.SIGTERM):  # a second Ctrl-C must not make a clean end look like a death
            signal.signal(number, signal.SIG_IGN)
    return 0


if __name__ == "__main__":
    sys.exit(main())
