"""Kinematics of the AgileX Piper: forward, Jacobian, numeric inverse. numpy only, fast enough for a 200 Hz loop.

Frames: `base_link` is the world of the project (x forward, z up, table at z = 0). The flange is link6; the TCP (tool
centre point) lies between the fingertips, TCP_OFFSET further along the flange's z. Tool axes: z approaches, y closes.
Modified Denavit-Hartenberg parameters of piper_sdk 0.6.2 with ``dh_is_offset=1`` (firmware newer than S-V1.6-3); the
older convention differs by about 10 mm at the flange.
"""

from __future__ import annotations

from math import atan2, cos, sin

import numpy as np

TCP_OFFSET = 0.1358
"""Distance from the flange to the fingertips along the flange's z (m)."""

LIMITS = np.array(
    [[-2.6179, 2.6179], [0.0, 3.14], [-2.967, 0.0], [-1.745, 1.745], [-1.22, 1.22], [-2.09439, 2.09439], [0.0, 0.07]]
)
"""Lowest and highest position of every joint (7, 2): rad, and m of full gripper stroke."""

V_MAX = np.array((2.5,) * 6 + (0.2,))
"""Velocity limit of every setpoint in the project (rad/s, m/s). The arm's own ceiling is 3 rad/s."""

A_MAX = np.array((4.8,) * 6 + (2.0,))
"""Acceleration limit of every setpoint in the project (rad/s^2, m/s^2). The arm's own ceiling is 5 rad/s^2."""

MOTION_LIMITS = (V_MAX, A_MAX)

for _array in (LIMITS, V_MAX, A_MAX):
    _array.flags.writeable = False

_ALPHA = np.radians([0.0, -90.0, 0.0, 90.0, -90.0, 90.0])
_A = (0.0, 0.0, 0.28503, -0.02198, 0.0, 0.0)
_D = (0.123, 0.0, 0.0, 0.25075, 0.0, 0.091)
_THETA = tuple(np.radians([0.0, -172.22, -102.78, 0.0, 0.0, 0.0]))

# Everything of the six link transforms that does not depend on the joints; the cosines and sines are written in.
_FIXED = np.zeros((6, 4, 4))
_FIXED[:, 0, 3] = _A
_FIXED[:, 1, 2] = -np.sin(_ALPHA)
_FIXED[:, 2, 2] = np.cos(_ALPHA)
_FIXED[:, 1, 3] = -np.sin(_ALPHA) * _D
_FIXED[:, 2, 3] = np.cos(_ALPHA) * _D
_FIXED[:, 3, 3] = 1.0
_ROWS = np.stack([np.ones(6), np.cos(_ALPHA), np.sin(_ALPHA)], axis=1)  # factor of cos/sin theta in rows 0, 1, 2


def frames(q6) -> np.ndarray:
    """Poses (6, 4, 4) of link1..link6 in base_link for joint positions ``q6`` (6,) in rad."""
    theta = [float(q) + offset for q, offset in zip(q6, _THETA)]
    c, s = np.array([cos(t) for t in theta]), np.array([sin(t) for t in theta])
    links = _FIXED.copy()
    links[:, 1:3, 0] = _ROWS[:, 1:] * s[:, None]
    links[:, 1:3, 1] = _ROWS[:, 1:] * c[:, None]
    links[:, 0, 0] = c
    links[:, 0, 1] = -s
    for i in range(1, 6):
        links[i] = links[i - 1].dot(links[i])
    return links


def forward(q6) -> np.ndarray:
    """Flange pose (4, 4) in base_link, metres, for joint positions ``q6`` (6,) in rad."""
    return frames(q6)[5]


def tool(q6) -> np.ndarray:
    """TCP pose (4, 4) in base_link, metres, for joint positions ``q6`` (6,) in rad."""
    pose = frames(q6)[5].copy()
    pose[:3, 3] += TCP_OFFSET * pose[:3, 2]
    return pose


def tools(q6) -> np.ndarray:
    """`tool` for many joint positions at once: (N, 6) in rad -> (N, 4, 4)."""
    poses = _many_frames(q6)[5]
    poses[:, :3, 3] += TCP_OFFSET * poses[:, :3, 2]
    return poses


def _many_frames(q6) -> list[np.ndarray]:
    """`frames` for many joint positions at once: (N, 6) in rad -> six (N, 4, 4)."""
    theta = np.asarray(q6, dtype=float) + _THETA
    c, s = np.cos(theta), np.sin(theta)
    links = np.broadcast_to(_FIXED, (*theta.shape, 4, 4)).copy()
    links[..., 1:3, 0] = _ROWS[:, 1:] * s[..., None]
    links[..., 1:3, 1] = _ROWS[:, 1:] * c[..., None]
    links[..., 0, 0] = c
    links[..., 0, 1] = -s
    poses = [links[:, 0]]
    for i in range(1, 6):
        poses.append(poses[-1] @ links[:, i])
    return poses


def link_points(q6) -> np.ndarray:
    """Points (4, 3) in base_link that a table or workspace check should watch: elbow, wrist, flange, TCP (m)."""
    links = frames(q6)
    points = links[[2, 4, 5, 5], :3, 3]
    points[3] += TCP_OFFSET * links[5, :3, 2]
    return points


def many_link_points(q6) -> np.ndarray:
    """`link_points` for many joint positions at once: (N, 6) in rad -> (N, 4, 3)."""
    links = _many_frames(q6)
    points = np.stack([links[i][:, :3, 3] for i in (2, 4, 5, 5)], axis=1)
    points[:, 3] += TCP_OFFSET * links[5][:, :3, 2]
    return points


def jacobian(q6, offset: float = TCP_OFFSET) -> np.ndarray:
    """Geometric Jacobian (6, 6) of the TCP (or of a point ``offset`` m along the flange's z): rows are linear, then angular."""
    return _tool_and_jacobian(q6, offset)[1]


def _tool_and_jacobian(q6, offset):
    links = frames(q6)
    pose = links[5].copy()
    pose[:3, 3] += offset * pose[:3, 2]
    axes, lever = links[:, :3, 2], pose[:3, 3] - links[:, :3, 3]
    jac = np.empty((6, 6))
    jac[0] = axes[:, 1] * lever[:, 2] - axes[:, 2] * lever[:, 1]
    jac[1] = axes[:, 2] * lever[:, 0] - axes[:, 0] * lever[:, 2]
    jac[2] = axes[:, 0] * lever[:, 1] - axes[:, 1] * lever[:, 0]
    jac[3:] = axes.T
    return pose, jac


def rotation_vector(rotation) -> np.ndarray:
    """Axis times angle (3,) of a rotation matrix (3, 3)."""
    axis = np.array([rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]])
    sine = 0.5 * float(np.sqrt(axis @ axis))
    angle = atan2(sine, 0.5 * (float(np.trace(rotation)) - 1.0))
    if sine > 1e-6:
        return axis * (0.5 * angle / sine)
    if angle < 1.0:
        return 0.5 * axis
    column = int(np.argmax(np.diag(rotation)))  # half a turn: the axis is a column of R + 1
    direction = rotation[:, column] + np.eye(3)[column]
    return direction * (angle / np.linalg.norm(direction))


def rotation_matrix(vector) -> np.ndarray:
    """Rotation matrix (3, 3) of a rotation vector (3,): the inverse of ``rotation_vector``."""
    x, y, z = (float(v) for v in vector)
    angle = (x * x + y * y + z * z) ** 0.5
    skew = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    if angle < 1e-9:
        return np.eye(3) + skew
    return np.eye(3) + (sin(angle) / angle) * skew + ((1.0 - cos(angle)) / angle**2) * (skew @ skew)


ROTATION_WEIGHT = 0.3
"""Metres that one radian of orientation error counts for in the inverse kinematics."""


def follow_ik(target, q6, iterations: int = 6, step: float = 0.15, margin: float = 0.005):
    """A few damped least-squares iterations from ``q6`` towards TCP pose ``target`` (4, 4); for following a line.

    Returns (q (6,), position error m, rotation error rad). Stays within the joint limits less ``margin``.
    """
    q = np.array(q6, dtype=float)
    low, high = LIMITS[:6, 0] + margin, LIMITS[:6, 1] - margin
    position_error = rotation_error = reference = np.inf
    for i in range(iterations + 1):
        pose, jac = _tool_and_jacobian(q, TCP_OFFSET)
        dp = target[:3, 3] - pose[:3, 3]
        dr = rotation_vector(target[:3, :3] @ pose[:3, :3].T)
        position_error, rotation_error = float(np.sqrt(dp @ dp)), float(np.sqrt(dr @ dr))
        if i == iterations or (position_error < 0.0005 and rotation_error < 0.003):
            break
        if i % 10 == 0:
            total = position_error + ROTATION_WEIGHT * rotation_error
            if total > 0.85 * reference:  # stuck, as a rule at a joint limit
                break
            reference = total
        jac[3:] *= ROTATION_WEIGHT
        error = np.concatenate([dp, ROTATION_WEIGHT * dr])
        dq = jac.T @ np.linalg.solve(jac @ jac.T + 1e-5 * np.eye(6), error)
        largest = np.abs(dq).max()
        q = np.clip(q + (dq * (step / largest) if largest > step else dq), low, high)
    return q, position_error, rotation_error


def solve_ik(target, q6=None, seed: int = 0, tries: int = 6, margin: float = 0.02):
    """Joint positions (6,) that bring the TCP to ``target`` (4, 4) within 0.5 mm and 3 mrad, or None.

    Starts from ``q6`` when given, then from postures that face the target, then from ``tries`` random ones drawn from
    ``seed``, so the answer is a function of the arguments. The result keeps ``margin`` rad from the joint limits.
    """
    heading = atan2(target[1, 3], target[0, 3])
    starts = [] if q6 is None else [np.asarray(q6, dtype=float)]
    starts += [np.array([heading, 1.6, -1.4, 0.0, 0.8, turn]) for turn in (0.0, 1.0, -1.0)]
    random = np.random.default_rng(seed)
    starts += [random.uniform(LIMITS[:6, 0], LIMITS[:6, 1]) for _ in range(tries)]
    for start in starts:
        q, position_error, rotation_error = follow_ik(target, start, iterations=80, step=0.3, margin=margin)
        if position_error < 0.0005 and rotation_error < 0.003:
            return q
    return None
