"""The contract between checkpoint and robot: every misfit is one sentence that says which and how."""

import json
from dataclasses import replace

import numpy as np
import pytest
from policy_samples import contract

from policytrim_ros.core.contract import Camera, Contract, Normalisation, implausible, mismatches, robot_contract

ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)})


def test_a_checkpoint_made_for_this_robot_fits():
    assert mismatches(contract(), ROBOT) == []


@pytest.mark.parametrize(
    "checkpoint, robot, words",
    [
        (contract(), robot_contract({"front": (64, 36)}), ["'wrist'", "missing", "front"]),
        (contract(), robot_contract({}), ["'front'", "missing", "none"]),
        (contract(), robot_contract({"front": (64, 48), "wrist": (64, 36)}), ["'front'", "64x48", "aspect"]),
        (contract(), robot_contract({"front": (16, 9), "wrist": (64, 36)}), ["'front'", "16x9", "smaller"]),
        (contract(cameras=("front",)), replace(ROBOT, cameras=(Camera("front", 64, 36, "bgr"),)), ["bgr", "rgb"]),
        (replace(contract(), joint_unit="degree"), ROBOT, ["unit of joint angles", "degree", "rad"]),
        (replace(contract(), gripper_unit="mm"), ROBOT, ["unit of the gripper", "mm"]),
        (replace(contract(), gripper_range=(0.0, 0.1)), ROBOT, ["gripper range", "0.1", "0.07"]),
        (replace(contract(), signs=(1, -1, 1, 1, 1, 1, 1)), ROBOT, ["signs", "-1"]),
        (
            replace(contract(), joints=("joint2", "joint1", "joint3", "joint4", "joint5", "joint6", "gripper")),
            ROBOT,
            ["joint order"],
        ),
        (replace(contract(), control_rate_hz=30.0), ROBOT, ["control rate", "30", "20"]),
        (replace(contract(), state_layout=("measured",)), ROBOT, ["layout of the joint state"]),
        (replace(contract(), action_kind="joint_velocity"), ROBOT, ["kind of action", "joint_velocity"]),
        (replace(contract(), version=9), ROBOT, ["version", "9"]),
        (
            contract(),
            robot_contract({"front": (64, 36), "wrist": (64, 36)}, execution_horizon=8),
            ["execution horizon", "8", "H = 6"],
        ),
        (contract(), replace(ROBOT, prediction_horizon=15), ["prediction horizon", "6", "15"]),
        (contract(), robot_contract({"front": (64, 36), "wrist": (64, 36)}, tasks=("hang_mug",)), ["hang_mug", "tape_box"]),
    ],
)
def test_a_misfit_is_named(checkpoint, robot, words):
    sentences = mismatches(checkpoint, robot)
    assert any(all(word in sentence for word in words) for sentence in sentences), sentences


def test_all_misfits_are_reported_at_once():
    assert len(mismatches(replace(contract(), joint_unit="degree", control_rate_hz=30.0), robot_contract({}))) == 4


def test_a_contract_survives_json():
    assert Contract.from_dict(json.loads(json.dumps(contract().to_dict()))) == contract()


@pytest.mark.parametrize(
    "change", [{"units": "rad"}, {"cameras": [{"title": "front"}]}, {"normalisation": {"state": {"q01": [1.0]}}}]
)
def test_a_malformed_contract_is_refused(change):
    with pytest.raises(ValueError, match="contract"):
        Contract.from_dict({**contract().to_dict(), **change})


def test_a_missing_entry_is_named():
    values = contract().to_dict()
    del values["joint_unit"]
    with pytest.raises(ValueError, match="joint_unit"):
        Contract.from_dict(values)


def test_quantiles_must_span_a_range():
    with pytest.raises(ValueError, match="q99 above q01"):
        Normalisation((0.0, 1.0), (1.0, 1.0))


def test_degrees_are_recognised():
    assert "degrees" in implausible([0, 68.0, -63.0, 0, 51.0, 0, 0.07])
    assert "millimetres" in implausible([0, 1.2, -1.1, 0, 0.9, 0, 70.0])
    assert "NaN" in implausible([np.nan] * 7)
    assert "shape" in implausible([0.0] * 6)
    assert implausible(np.zeros((0, 7))) is None
    assert implausible([0, 1.2, -1.1, 0, 0.9, 0, 0.07]) is None
