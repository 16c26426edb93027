"""Every limit and every reaction to trouble, in one place.

``SafetyFilter`` is the only way from a path to the arm: whatever goal comes in, the setpoints that leave it respect joint,
velocity, acceleration, workspace and table limits. ``FAILSAFES`` is the one table of what triggers which reaction;
docs/failsafes.md is printed from it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from policytrim_ros.core import kinematics
from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.motion import limited_step, stopping_speed
from policytrim_ros.core.route import Leg, route
from policytrim_ros.core.types import JOINTS, Chunk

SLOW, CUT, HOLD, FAULT, REFUSE = "slow", "cut", "hold", "fault", "refuse"
"""Slow down along the path, and go on by itself; play only the beginning of what was asked for; decelerate and hold; the same, latched;
motion is not touched: what was asked for is not done, and that is said."""


@dataclass(frozen=True)
class Failsafe:
    """One row: when ``condition`` is true the arm decelerates and holds; a fault also latches until an operator clears it."""

    name: str
    condition: str
    reaction: str
    advice: str
    within_s: float = 0.0
    """The arm is at rest so soon after the cause, with the default settings; 0: the row says nothing of the motion."""

    policy: bool = False
    """Whether the policy that plays may be the cause."""


FAILSAFES = {
    row.name: row
    for row in (
        Failsafe("operator hold", "controller/hold was called", HOLD, "call controller/go to move on", 1.0),
        Failsafe(
            "chunk late",
            "the last two actions of a chunk play and the one that was to follow is not there",
            SLOW,
            "nothing at once: the path slows evenly to rest and goes on at full speed with the next chunk; when it comes again, look at "
            "slack_ms of inference/status: a longer h or a faster policy",
        ),
        Failsafe(
            "chunk starved",
            "no action left and no new chunk for chunk_timeout_s while moving",
            HOLD,
            "look at the inference node (its latency, its log), then call controller/go",
            3.0,
            policy=True,
        ),
        Failsafe(
            "server lost",
            "the same, while inference says that the policy's server (`policytrim serve`) is gone, silent or another one",
            HOLD,
            "look at the server and the network; inference asks again by itself, so then call controller/go",
            3.0,
        ),
        Failsafe(
            "camera stale",
            "a camera sent no picture for stale_after_s (camera node) and then heartbeat_timeout_s; the policy gets no older one, so "
            "that the arm may rest sooner, at its chunk's end",
            HOLD,
            "check the cable of the named camera (it is opened again by itself), then call controller/go",
            3.0,
        ),
        Failsafe(
            "bad chunk",
            "a chunk with NaN, a partial joint list or unreadable ids",
            HOLD,
            "the sender of `chunk` is faulty; fix it, then call controller/go",
            1.0,
            policy=True,
        ),
        Failsafe(
            "chunk cut",
            "an action further on in a chunk asks for more than limit_tolerance beyond a joint, workspace or table limit: neither it nor "
            "what follows it is played, and the policy looks again before",
            CUT,
            "nothing at once: no limit is passed; when it comes often the policy does not know the end of its chunks: try a shorter h",
            policy=True,
        ),
        Failsafe(
            "beyond limits",
            "the next action asks for more than limit_tolerance beyond a joint, workspace or table limit",
            HOLD,
            "the policy asks for what the arm must not do; check the checkpoint and the limits, then call controller/go",
            1.0,
            policy=True,
        ),
        Failsafe(
            "tracking",
            "arm and setpoint differ by more than tracking_tolerance_rad for tracking_time_s",
            HOLD,
            "something blocks the arm; free it, then call controller/go",
            2.0,
            policy=True,
        ),
        Failsafe(
            "node lost",
            "a required node sent no heartbeat for heartbeat_timeout_s while moving",
            HOLD,
            "start the named node again (`policytrim restart` starts what has died), then call controller/go",
            2.0,
        ),
        Failsafe(
            "clock jump",
            "the wall clock was set by more than clock_jump_s while moving; control itself goes by the monotonic clock",
            HOLD,
            "find out who sets the clock: it must be slewed, not stepped; times in this recording are in doubt, and after a step back start "
            "everything anew rather than one node: it would not be heard until the clock has caught up; then call controller/go",
            1.0,
        ),
        Failsafe(
            "feedback silent",
            "no joint feedback for feedback_timeout_s: cable, power, a bus that went off",
            FAULT,
            "check CAN cable, power and interface, then call controller/clear_fault",
            1.0,
        ),
        Failsafe(
            "arm status",
            "the arm reports an error, a collision, a stall or teach mode",
            FAULT,
            "remove the cause, then call controller/clear_fault",
            1.0,
            policy=True,
        ),
        Failsafe(
            "not enabled",
            "a motor lost its enable bit while it should hold",
            FAULT,
            "support the arm, find out why, then call controller/clear_fault and controller/go",
            1.0,
        ),
        Failsafe(
            "send failed",
            "send_failures_max commands in a row could not be put on the bus",
            FAULT,
            "check the CAN interface (bus-off?), then call controller/clear_fault",
            1.0,
        ),
        Failsafe(
            "impossible feedback",
            "the reported joints are NaN, all exactly zero after motion, frozen while the setpoint travels, or jump further than the arm can",
            FAULT,
            "do not trust the pose; support the arm, power-cycle it, then call controller/clear_fault",
            1.5,
        ),
        Failsafe(
            "damped stop",
            "an operator called controller/damped_stop",
            FAULT,
            "the arm sinks and must be recovered by hand; see docs/can.md",
        ),
        Failsafe(
            "disk full",
            "a recording or a trial cannot be written, or less than free_space_mb is free",
            REFUSE,
            "free some space; what was finished is whole, what was not keeps the name of a partial file; see recorder/status",
        ),
        Failsafe(
            "swap failed",
            "a checkpoint that inference was told to use is missing, damaged, does not fit, answers otherwise than when it was made, or kills its loader",
            REFUSE,
            "the one before goes on; `news` of inference/status says what is wrong with the new one",
        ),
    )
}


def blames_policy(reason: str) -> bool:
    """Whether ``reason``, as a controller gives it for a hold or fault, begins with a failsafe that a policy can cause."""
    return any(row.policy and reason.startswith(row.name) for row in FAILSAFES.values())


@dataclass(frozen=True)
class SafetyLimits(Config):
    """Limits of motion. Positions in rad and m in the order of JOINTS; the workspace is a box for the fingertip."""

    position_low: list = setting(
        [float(v) for v in kinematics.LIMITS[:, 0]], "lower joint limits and least gripper stroke", unit="rad, m"
    )
    position_high: list = setting(
        [float(v) for v in kinematics.LIMITS[:, 1]], "upper joint limits and widest gripper stroke", unit="rad, m"
    )
    joint_margin_rad: float = setting(0.015, "kept away from every joint limit", low=0.0, high=0.3, unit="rad")
    v_max: list = setting(
        [float(v) for v in kinematics.V_MAX], "greatest joint velocities", low=0.01, high=3.0, unit="rad/s, m/s"
    )
    a_max: list = setting(
        [float(v) for v in kinematics.A_MAX], "greatest joint accelerations", low=0.1, high=5.0, unit="rad/s2, m/s2"
    )
    workspace_low: list = setting(
        [-0.30, -0.60, -0.02], "lower corner of the fingertip's box in base_link", low=-1.0, high=1.0, unit="m"
    )
    workspace_high: list = setting(
        [0.65, 0.60, 0.75], "upper corner of the fingertip's box in base_link", low=-1.0, high=1.0, unit="m"
    )
    table_z: float = setting(-0.003, "no fingertip, wrist or elbow below this height", low=-0.5, high=0.5, unit="m")
    limit_tolerance_rad: float = setting(
        0.25,
        "how far beyond a joint limit an action may ask before the arm holds; less is cut off",
        low=0.0,
        high=1.0,
        unit="rad",
    )
    limit_tolerance_m: float = setting(0.05, "the same for workspace and table", low=0.0, high=0.5, unit="m")

    def __post_init__(self):
        super().__post_init__()
        for low, high, what in (
            (self.position_low, self.position_high, "position"),
            (self.workspace_low, self.workspace_high, "workspace"),
        ):
            if len(low) != len(high) or not all(a < b for a, b in zip(low, high)):
                raise ValueError(f"SafetyLimits.{what}_low must lie below {what}_high everywhere")
        if any(len(getattr(self, n)) != len(JOINTS) for n in ("position_low", "position_high", "v_max", "a_max")):
            raise ValueError(
                f"SafetyLimits: positions, v_max and a_max need {len(JOINTS)} values, one for each of {', '.join(JOINTS)}"
            )


@dataclass(frozen=True)
class Filtered:
    """What left the filter: setpoint and velocity (7,), and a reason when the goal was beyond the tolerances (else '')."""

    setpoint: np.ndarray
    velocity: np.ndarray
    breach: str


class SafetyFilter:
    """Turns goals into setpoints that keep every limit. One instance per arm; call ``reset`` with the measured pose first."""

    def __init__(self, limits: SafetyLimits):
        self.limits = limits
        margin = np.array([limits.joint_margin_rad] * 6 + [0.0])
        self._low = np.array(limits.position_low) + margin
        self._high = np.array(limits.position_high) - margin
        self._v_max, self._a_max = np.array(limits.v_max), np.array(limits.a_max)
        self._box_low, self._box_high = np.array(limits.workspace_low), np.array(limits.workspace_high)
        self.setpoint = self.velocity = None

    def reset(self, measured) -> None:
        """Begins at ``measured`` (7,) rad|m, at rest."""
        self.setpoint, self.velocity = np.array(measured, dtype=np.float64), np.zeros(len(JOINTS))

    @property
    def at_rest(self) -> bool:
        return bool(np.all(np.abs(self.velocity) < 1e-9))

    def brake(self, dt: float) -> Filtered:
        """Decelerates at the acceleration limit; at rest it keeps the setpoint."""
        change = self._a_max * dt
        velocity = np.sign(self.velocity) * np.maximum(0.0, np.abs(self.velocity) - change)
        self.setpoint, self.velocity = self.setpoint + velocity * dt, velocity
        return Filtered(self.setpoint, velocity, "")

    def step(self, goal, goal_velocity, dt: float, speed: float = 1.0) -> Filtered:
        """One setpoint towards ``goal`` (7,) moving with ``goal_velocity``; ``speed`` in (0, 1] lowers the velocity limit."""
        if not (np.all(np.isfinite(goal)) and np.all(np.isfinite(goal_velocity))):
            return Filtered(*self._braked(dt), "the goal holds NaN or infinity")
        breach = self._joint_breach(goal)
        if breach:
            return Filtered(*self._braked(dt), breach)
        inside = np.clip(goal, np.minimum(self._low, self.setpoint), np.maximum(self._high, self.setpoint))
        forward = np.where(inside == goal, goal_velocity, 0.0)
        _, v = limited_step(self.setpoint, self.velocity, inside, forward, dt, self._v_max * speed, self._a_max)
        x, v = self._keep_inside(v, dt)
        resting = x + v * np.abs(v) / (2.0 * self._a_max)  # where the arm would come to rest if it braked now
        now, then = self._depth(self.setpoint), self._depth(resting)
        if then > max(now, 0.0):
            return Filtered(*self._braked(dt), self._depth_breach(self._depth(inside)))
        self.setpoint, self.velocity = x, v
        return Filtered(x, v, "")

    def _braked(self, dt):
        out = self.brake(dt)
        return out.setpoint, out.velocity

    def _keep_inside(self, v, dt):
        """Slows down early enough to stop at the joint limits (or where the arm is, when it begins beyond them)."""
        x = self.setpoint
        braking = 0.8 * self._a_max  # the last step of a stop takes up to a quarter more
        above = stopping_speed(np.maximum(self._high - x, 0.0), braking, dt)
        below = stopping_speed(np.maximum(x - self._low, 0.0), braking, dt)
        v = np.clip(v, -below, above)
        return x + v * dt, v

    def judge(self, goal) -> tuple[bool, str]:
        """(whether the arm may go to ``goal`` (7,), why it would be held rather than stopped at the limit; '' when it would not)."""
        depth = self._depth(goal)
        return depth <= 0.0, self._joint_breach(goal) or self._depth_breach(depth)

    def cut(self, chunk: Chunk, next_step: int) -> tuple[Chunk, str]:
        """``chunk`` without what the arm would be held at, from there on, and why it would be; (itself, '') where it would not be.

        What lies before control step ``next_step`` is never played and not judged. Where the arm would be held at once the chunk is
        left as it is.
        """
        past = max(0, next_step - chunk.first)
        goals = chunk.positions[past:]
        if not len(goals):
            return chunk, ""
        held = (self._excess(goals).max(axis=-1) > self.limits.limit_tolerance_rad) | (self._depths(goals) > self.limits.limit_tolerance_m)
        reach = int(np.argmax(held))
        if not held[reach] or not reach:
            return chunk, ""
        return replace(chunk, positions=chunk.positions[: past + reach]), self.judge(goals[reach])[1]

    def _depth_breach(self, depth: float) -> str:
        if depth <= self.limits.limit_tolerance_m:
            return ""
        return f"the goal lies {depth * 1000:.0f} mm beyond the workspace or table limit"

    def _joint_breach(self, goal) -> str:
        excess = self._excess(goal)
        worst = int(np.argmax(excess))
        if excess[worst] <= self.limits.limit_tolerance_rad:
            return ""
        return f"{JOINTS[worst]} asked for {goal[worst]:.3f} rad, allowed is {self._low[worst]:.3f} to {self._high[worst]:.3f}"

    def _excess(self, goals) -> np.ndarray:
        """How far each joint of ``goals`` (..., 7) is asked beyond its limits."""
        excess = np.maximum(self._low - goals, goals - self._high)
        excess[..., 6] = 0.0  # the gripper closes beyond its stops to keep its grip; its target is only ever cut off
        return excess

    def way_to(self, pose) -> list[np.ndarray]:
        """The poses (7,) by which ``pose`` is reached from the setpoint within the limits; [] when no way was found."""
        return route(self.setpoint, pose, self._depths, self._low, self._high)

    def leg(self, pose, speed: float) -> Leg:
        """The straight way from the setpoint to ``pose`` (7,) with the share ``speed`` of the velocity limits."""
        return Leg(self.setpoint, pose, self._v_max * speed, self._a_max)

    def _depths(self, poses) -> np.ndarray:
        """`_depth` of many poses (N, 7) at once."""
        return self._outside(kinematics.many_link_points(poses[:, :6]))

    def _depth(self, q) -> float:
        """How far (m) the arm at ``q`` is outside workspace and table; negative when inside."""
        return float(self._outside(kinematics.link_points(q[:6])))

    def _outside(self, points):
        """How far (m) the farthest of ``points`` (..., 4, 3) is outside workspace (the last of them) and table."""
        tips = points[..., -1, :]
        beyond = np.maximum(self._box_low - tips, tips - self._box_high).max(axis=-1)
        return np.maximum(beyond, self.limits.table_z - points[..., 2].min(axis=-1))


def failsafe_table() -> str:
    """The failsafe table as Markdown."""
    lines = [
        "| failsafe | when | reaction | at rest within, s | what the operator does | takes a new policy back |",
        "| --- " * 6 + "|",
    ]
    lines += [
        f"| {row.name} | {row.condition} | {row.reaction} | {row.within_s or '-'} | {row.advice} | {'yes' if row.policy else 'no'} |"
        for row in FAILSAFES.values()
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(
        "# Failsafes\n\nPrinted from `policytrim_ros/core/safety.py` by `python -m policytrim_ros.core.safety > docs/failsafes.md`. `hold` and `fault`\n"
        "decelerate within the acceleration limit and keep the motors on; a fault also latches until `controller/clear_fault`. `slow` keeps to the\n"
        "path, slower, and ends by itself; `cut` plays what comes before it; the controller's diagnostics say WARN meanwhile. `refuse` does not\n"
        "touch the motion. What a policy can cause takes a new one back while it is on probation (core/generations.py); the arm reacts all\n"
        "the same. Measured times: [results/failsafes.md](results/failsafes.md).\n"
    )
    print(failsafe_table(), end="")
