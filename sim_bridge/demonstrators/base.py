"""How a scripted demonstrator moves.

    demonstrator = make_demonstrator("flip_mug", "hesitant")
    demonstrator.reset(seed)
    while not demonstrator.done:
        action = demonstrator.act(measured7, setpoint7, objects)      # one action a control step

A demonstrator sees the measured joints, the limited setpoint and the poses of the objects, nothing else, so it runs
beside a TaskEnv and behind ROS nodes alike. Its script is a generator that advances by one control step with each
`act`. Goals are recomputed from the live object poses in every step. All commands pass a limiter below the project's
MOTION_LIMITS; when the arm does not follow (held, late), the script waits for it.

Tool orientation: yaw = heading of the approach in the table plane, pitch = angle from straight down (0) towards that
heading (90 degrees = horizontal, outward).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from policytrim_ros.core.kinematics import A_MAX, LIMITS, V_MAX, follow_ik, rotation_matrix, rotation_vector, solve_ik, tool
from policytrim_ros.core.motion import limited_step, stopping_speed
from policytrim_ros.core.types import CONTROL_RATE_HZ

DT = 1.0 / CONTROL_RATE_HZ
OPEN, CLOSED = 0.07, 0.0

JOINT_SPEED = 2.0
"""Fastest joint of a joint move (rad/s)."""

JOINT_ACCELERATION = 2.8
"""Of the fastest joint of a joint move (rad/s^2)."""

LINE_SPEED, TURN_SPEED = 0.16, 1.2
"""Straight moves: m/s and rad/s."""

LINE_RAMP_S = 0.2
"""Straight moves: time to full speed and to a stop (s)."""

V_OWN, A_OWN = 0.96 * V_MAX, 0.7 * A_MAX
"""Limits of the commands. Below the project's, or the limiter behind could not catch up while the arm brakes."""

WAIT_GAP = 0.35
"""Gap (rad) between command and setpoint at which the script waits for the arm."""

NUDGED = 0.012
"""The target has been moved: horizontal displacement (m) that sends the descent back to its start."""

SLIPPED = 0.030
"""The grasp is lost: displacement (m) of the object in the tool frame."""


@dataclass(frozen=True)
class Style:
    """How a demonstrator moves; probabilities are per phase, times in control steps, drawn anew in each episode."""

    speed: tuple = (1.0, 1.0)
    """Range of the episode's speed factor."""
    pause: float = 0.0
    """Probability of stopping before a delicate phase."""
    pause_steps: tuple = (5, 25)
    back_out: float = 0.0
    """Probability of pulling back, displaced, just before closing the gripper."""
    back_outs: int = 0
    overshoot: float = 0.0
    """Probability of passing beyond the end of a free move."""
    jitter: float = 0.0
    """Standard deviation (rad) of a slow random motion laid over free moves."""


STYLES = {
    "clean": Style(),
    "slow": Style(speed=(0.5, 0.5)),
    "hesitant": Style(speed=(0.5, 0.8), pause=0.5, back_out=0.4, back_outs=2, overshoot=0.4, jitter=0.008),
}


def matrix(pose7) -> np.ndarray:
    """Homogeneous matrix (4, 4) of a pose (7,): x y z, quaternion w x y z."""
    x, y, z, qw, qx, qy, qz = (float(v) for v in pose7)
    out = np.eye(4)
    out[:3, 3] = x, y, z
    out[:3, :3] = [
        [1 - 2 * (qy * qy + qz * qz), 2 * (qx * qy - qw * qz), 2 * (qx * qz + qw * qy)],
        [2 * (qx * qy + qw * qz), 1 - 2 * (qx * qx + qz * qz), 2 * (qy * qz - qw * qx)],
        [2 * (qx * qz - qw * qy), 2 * (qy * qz + qw * qx), 1 - 2 * (qx * qx + qy * qy)],
    ]
    return out


def tool_rotation(yaw: float, pitch: float) -> np.ndarray:
    """Tool axes (3, 3): z approaches at ``pitch`` from straight down towards heading ``yaw``, y is horizontal."""
    approach = np.array([np.sin(pitch) * np.cos(yaw), np.sin(pitch) * np.sin(yaw), -np.cos(pitch)])
    closing = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
    return np.stack([np.cross(closing, approach), closing, approach], axis=1)


def pose_at(position, rotation) -> np.ndarray:
    """Homogeneous matrix (4, 4)."""
    out = np.eye(4)
    out[:3, :3], out[:3, 3] = rotation, position
    return out


def moved(pose, offset) -> np.ndarray:
    """``pose`` translated by ``offset`` (3,) in the base frame."""
    out = pose.copy()
    out[:3, 3] += offset
    return out


class Demonstrator:
    """Base class: limiter, joint moves, straight moves, gripper, hesitation. A task implements `script`."""

    def __init__(self, style: Style = STYLES["clean"]):
        self.style = style
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Starts over; ``seed`` decides everything random about the hesitation."""
        self.random = np.random.default_rng([7, int(seed)])
        self.speed = float(self.random.uniform(*self.style.speed))
        self.back_outs_left = self.style.back_outs
        self.phase = "start"
        self._jitter = np.zeros(6)
        self._rate = 0.0
        self._run = None
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the script has ended (solved, or given up); `act` then keeps the arm where it is."""
        return self._done

    def act(self, measured7, setpoint7, objects) -> np.ndarray:
        """The action (7,) of this control step: absolute joints in rad and gripper stroke in m.

        ``measured7`` and ``setpoint7`` (7,) as in TaskEnv.proprioception; ``objects``: name -> pose (7,) in m and
        quaternion w x y z.
        """
        self.measured = np.asarray(measured7, dtype=float)
        self.objects = {name: matrix(pose) for name, pose in objects.items()}
        if self._run is None:
            self.command, self.velocity = np.array(setpoint7, dtype=float), np.zeros(7)
            self._target = self.command.copy()
            self.stroke = float(self.command[6])
            self._run = self.script()
        if np.abs(np.asarray(setpoint7) - self.command)[:6].max() > WAIT_GAP:
            self.velocity[:] = 0.0
            return self.command.copy()
        if not self._done:
            try:
                next(self._run)
            except StopIteration:
                self._done = True
        if self._done:
            self._send(self._target[:6])
        return self.command.copy()

    def script(self):
        """A generator that yields once a control step, after one of the moves below has called `_send`."""
        raise NotImplementedError

    # Moves: generators that return whether they arrived ---------------------------------------------------------------

    def joint_move(self, goal, speed=1.0, tolerance=0.03, limit=150, lost=None, free=False):
        """Moves all joints together to the pose (4, 4) that ``goal()`` returns now. False: unreachable, late or ``lost()``."""
        self._rate, q_goal = 0.0, None
        fastest = JOINT_SPEED * speed * self.speed
        for _ in range(limit):
            if lost is not None and lost():
                return False
            q_goal = solve_ik(goal(), self._target[:6] if q_goal is None else q_goal)
            if q_goal is None:
                return False
            remaining = q_goal - self._target[:6]
            largest = float(np.abs(remaining).max())
            if largest < 1e-3 and self._arrived(tolerance):
                return True
            share = self._share(largest / fastest, JOINT_ACCELERATION / fastest)
            self._send(self._target[:6] + share * remaining, self._drift() * min(1.0, 3.0 * largest) if free else 0.0)
            yield
        return False

    def line_move(self, goal, speed=1.0, tolerance=0.03, limit=150, lost=None):
        """Moves the TCP straight to the pose (4, 4) that ``goal()`` returns now. False: not arrived in time, or ``lost()``."""
        self._rate, carrot = 0.0, tool(self._target[:6])
        for _ in range(limit):
            if lost is not None and lost():
                return False
            target = goal()
            step = target[:3, 3] - carrot[:3, 3]
            turn = rotation_vector(target[:3, :3] @ carrot[:3, :3].T)
            duration = max(np.linalg.norm(step) / LINE_SPEED, np.linalg.norm(turn) / TURN_SPEED) / (speed * self.speed)
            if duration < 1e-3 and self._arrived(tolerance):
                return True
            behind = np.abs(self._target[:6] - self.command[:6]).max() > 0.08
            if not behind:
                share = self._share(duration, 1.0 / LINE_RAMP_S)
                carrot[:3, 3] += share * step
                carrot[:3, :3] = rotation_matrix(share * turn) @ carrot[:3, :3]
            self._send(follow_ik(carrot, self._target[:6])[0])
            yield
        return False

    def free_move(self, goal, beyond, lost=None, **options):
        """A joint move through open space; a hesitant one may first pass ``beyond`` (3,) metres past its end."""
        if self.random.random() < self.style.overshoot:
            offset = self.random.uniform(0.6, 1.2) * np.asarray(beyond)
            yield from self.joint_move(lambda: moved(goal(), offset), lost=lost, free=True, **{**options, "tolerance": 0.2})
        return (yield from self.joint_move(goal, lost=lost, free=self.style.jitter > 0, **options))

    def grip(self, stroke, steps):
        """Moves the gripper to ``stroke`` (m) and lets ``steps`` control steps pass."""
        self.stroke = stroke
        for _ in range(steps):
            self._send(self._target[:6])
            yield

    def close_gripper(self):
        """Closes until the fingers have stopped; True when they hold something."""
        self.stroke, before, still = CLOSED, self.measured[6], 0
        for step in range(20):
            self._send(self._target[:6])
            yield
            still = still + 1 if abs(self.measured[6] - before) < 3e-4 else 0
            before = self.measured[6]
            if step >= 6 and still >= 2 and self.command[6] < 0.01:
                break
        return self.measured[6] > 0.006

    def hesitate(self):
        """Stops for a while, or not, as the style has it."""
        if self.random.random() < self.style.pause:
            for _ in range(int(self.random.integers(*self.style.pause_steps))):
                self._send(self._target[:6])
                yield

    def hesitates_to_close(self) -> bool:
        """Whether to pull back once more instead of closing."""
        if self.back_outs_left > 0 and self.random.random() < self.style.back_out:
            self.back_outs_left -= 1
            return True
        return False

    # What moves are made of -------------------------------------------------------------------------------------------

    def _send(self, joints6, drift=0.0):
        target = np.append(np.asarray(joints6), self.stroke)
        feed = (target - self._target) / DT
        wanted = self._target + np.append(np.ones(6) * drift, 0.0)  # limited_step takes the goal at the beginning of the step
        self._target = target
        self.command, self.velocity = limited_step(self.command, self.velocity, wanted, feed, DT, V_OWN, A_OWN)
        self.command = np.clip(self.command, LIMITS[:, 0], LIMITS[:, 1])

    def _arrived(self, tolerance):
        lag = max(np.abs(self._target - self.command)[:6].max(), np.abs(self.measured - self.command)[:6].max())
        return lag < tolerance

    def _share(self, duration, ramp):
        """Share of the way to go in this step, when all of it takes ``duration`` s at full speed; ``ramp``: 1/s."""
        self._rate = float(min(1.0, self._rate + ramp * DT, stopping_speed(duration, ramp, DT)))
        return min(1.0, self._rate * DT / max(duration, 1e-9))

    def _drift(self):
        self._jitter = 0.9 * self._jitter + np.sqrt(1 - 0.81) * self.style.jitter * self.random.normal(size=6)
        return self._jitter

    # What scripts ask -------------------------------------------------------------------------------------------------

    def tool_now(self) -> np.ndarray:
        """Measured pose (4, 4) of the TCP."""
        return tool(self.measured[:6])

    def in_tool(self, name) -> np.ndarray:
        """Pose (4, 4) of an object seen from the tool."""
        return np.linalg.inv(self.tool_now()) @ self.objects[name]

    def nudged(self, name):
        """A test whether object ``name`` has been moved on the table from now on."""
        start = self.objects[name][:2, 3].copy()
        return lambda: np.linalg.norm(self.objects[name][:2, 3] - start) > NUDGED

    def slipped(self, name):
        """A test whether object ``name`` leaves its place in the gripper from now on."""
        start = self.in_tool(name)[:3, 3].copy()
        return lambda: np.linalg.norm(self.in_tool(name)[:3, 3] - start) > SLIPPED

    def first_reachable(self, poses, *lifts):
        """The first of ``poses`` that has an inverse solution, as has every copy translated by one of ``lifts``; or None."""
        for pose in poses:
            q = solve_ik(pose, self._target[:6], tries=0)
            if q is not None and all(solve_ik(moved(pose, lift), q, tries=0) is not None for lift in lifts):
                return pose
        return None


def heading(position) -> float:
    """Direction (rad) from the base to ``position`` in the table plane."""
    return float(np.arctan2(position[1], position[0]))
