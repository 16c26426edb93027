"""The kinematics agree with the vendor's SDK, with the URDF and with themselves."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from piper_sdk.kinematics.piper_fk import C_PiperForwardKinematics

from policytrim_ros.core import kinematics
from policytrim_ros.core.types import PARK, READY

URDF = Path(__file__).parents[1] / "urdf" / "piper.urdf"
POSES = np.random.default_rng(0).uniform(kinematics.LIMITS[:6, 0], kinematics.LIMITS[:6, 1], (200, 6))


def rpy_matrix(roll, pitch, yaw):
    turn = kinematics.rotation_matrix
    return turn([0, 0, yaw]) @ turn([0, pitch, 0]) @ turn([roll, 0, 0])


def urdf_pose(link, positions):
    """Pose (4, 4) of a link of the URDF in base_link, for joint name -> position."""
    joints = {joint.find("child").get("link"): joint for joint in ElementTree.parse(URDF).iter("joint")}
    pose = np.eye(4)
    while link in joints:
        joint, step = joints[link], np.eye(4)
        origin = joint.find("origin")
        step[:3, :3] = rpy_matrix(*map(float, origin.get("rpy").split()))
        step[:3, 3] = list(map(float, origin.get("xyz").split()))
        if joint.get("type") != "fixed":
            axis = np.array(list(map(float, joint.find("axis").get("xyz").split())))
            q, motion = positions[joint.get("name")], np.eye(4)
            if joint.get("type") == "revolute":
                motion[:3, :3] = kinematics.rotation_matrix(axis * q)
            else:
                motion[:3, 3] = axis * q
            step = step @ motion
        pose, link = step @ pose, joint.find("parent").get("link")
    return pose


def test_flange_agrees_with_the_sdk_to_a_tenth_of_a_millimetre():
    sdk = C_PiperForwardKinematics(dh_is_offset=1)
    for q in POSES:
        x, y, z, roll, pitch, yaw = sdk.CalFK(list(q))[5]
        flange = kinematics.forward(q)
        assert np.linalg.norm(flange[:3, 3] - np.array([x, y, z]) / 1000.0) < 1e-4
        if abs(pitch) < 89.0:
            error = flange[:3, :3].T @ rpy_matrix(*np.radians([roll, pitch, yaw]))
            assert np.linalg.norm(kinematics.rotation_vector(error)) < 1e-4


def test_the_urdf_agrees_with_the_sdk_to_a_tenth_of_a_millimetre():
    sdk = C_PiperForwardKinematics(dh_is_offset=1)
    for q in POSES[:50]:
        flange = urdf_pose("link6", {f"joint{i + 1}": q[i] for i in range(6)})
        assert np.linalg.norm(flange[:3, 3] - np.array(sdk.CalFK(list(q))[5][:3]) / 1000.0) < 1e-4
        assert np.allclose(flange, kinematics.forward(q), atol=1e-6)


def test_the_fingers_of_the_urdf_open_symmetrically_about_the_tcp():
    arm = dict(zip([f"joint{i}" for i in range(1, 7)], READY))
    left, right = urdf_pose("link7", arm | {"joint7": 0.02}), urdf_pose("link8", arm | {"joint8": -0.02})
    tcp = kinematics.tool(READY[:6])
    assert np.allclose(0.5 * (left + right)[:3, 3], tcp[:3, 3], atol=1e-6)
    assert np.allclose(np.abs((left - right)[:3, 3] @ tcp[:3, :3]), [0.0, 0.04, 0.0], atol=1e-6)


def test_the_urdf_has_valid_inertias_and_the_limits_of_the_kinematics():
    tree = ElementTree.parse(URDF)
    for inertia in tree.iter("inertia"):
        ixx, iyy, izz = (float(inertia.get(name)) for name in ("ixx", "iyy", "izz"))
        assert min(ixx, iyy, izz) > 0 and ixx + iyy >= izz and iyy + izz >= ixx and ixx + izz >= iyy
    assert all(float(mass.get("value")) > 0 for mass in tree.iter("mass"))
    limits = {j.get("name"): j.find("limit") for j in tree.iter("joint") if j.find("limit") is not None}
    for i in range(6):
        limit = limits[f"joint{i + 1}"]
        assert np.allclose([float(limit.get("lower")), float(limit.get("upper"))], kinematics.LIMITS[i])
    assert tree.find(".//joint[@name='joint8']/mimic").get("joint") == "joint7"


def test_the_jacobian_is_the_derivative_of_the_tool_pose():
    for q in POSES[:20]:
        jacobian, here, eps = kinematics.jacobian(q), kinematics.tool(q), 1e-6
        for i in range(6):
            there = kinematics.tool(q + eps * np.eye(6)[i])
            assert np.allclose((there - here)[:3, 3] / eps, jacobian[:3, i], atol=1e-5)
            assert np.allclose(kinematics.rotation_vector(there[:3, :3] @ here[:3, :3].T) / eps, jacobian[3:, i], atol=1e-5)


def test_inverse_kinematics_reach_what_a_nearby_posture_reaches():
    for q in POSES[:40]:
        q = np.clip(q, kinematics.LIMITS[:6, 0] + 0.1, kinematics.LIMITS[:6, 1] - 0.1)
        target = kinematics.tool(q)
        solution = kinematics.solve_ik(target, q + 0.05)
        assert solution is not None
        reached = kinematics.tool(solution)
        assert np.linalg.norm(reached[:3, 3] - target[:3, 3]) < 5e-4
        assert np.linalg.norm(kinematics.rotation_vector(reached[:3, :3].T @ target[:3, :3])) < 3e-3
        assert np.all(solution >= kinematics.LIMITS[:6, 0]) and np.all(solution <= kinematics.LIMITS[:6, 1])


def test_inverse_kinematics_say_none_for_a_pose_out_of_reach():
    target = kinematics.tool(READY[:6])
    target[0, 3] = 1.5
    assert kinematics.solve_ik(target) is None


@pytest.mark.parametrize("angle", [0.0, 1e-9, 0.3, 3.0, np.pi])
def test_rotation_vector_and_matrix_are_inverse(angle):
    for axis in np.vstack([np.eye(3), np.random.default_rng(1).normal(size=(5, 3))]):
        rotation = kinematics.rotation_matrix(angle * axis / np.linalg.norm(axis))
        assert np.allclose(kinematics.rotation_matrix(kinematics.rotation_vector(rotation)), rotation, atol=1e-6)


def test_link_points_are_elbow_wrist_flange_and_tcp():
    for q in (READY[:6], PARK[:6]):
        points = kinematics.link_points(q)
        assert points.shape == (4, 3)
        assert np.allclose(points[2], kinematics.forward(q)[:3, 3])
        assert np.allclose(points[3], kinematics.tool(q)[:3, 3])
        assert np.isclose(np.linalg.norm(points[0] - [0, 0, 0.123]), 0.28503)
        assert np.isclose(np.linalg.norm(points[1] - points[2]), 0.091)


def test_many_tool_poses_at_once_are_the_single_ones():
    assert np.array_equal(kinematics.tools(POSES), np.stack([kinematics.tool(q) for q in POSES]))
    assert np.allclose(kinematics.many_link_points(POSES), np.stack([kinematics.link_points(q) for q in POSES]), atol=1e-12)
