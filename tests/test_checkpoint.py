"""Checkpoints: whole or not there; anything changed, missing or foreign is refused with one sentence."""

import json
import resource
from dataclasses import replace

import numpy as np
import pytest
from policy_samples import contract, observation, policy
from safetensors.numpy import load_file, save_file

from policytrim_ros.core.contract import robot_contract
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import CheckpointError

ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)})


@pytest.fixture
def saved(tmp_path):
    original = policy()
    checkpoint.save(tmp_path / "good", original, made={"recipe": "test", "seed": 0})
    return tmp_path / "good", original


def reseal(directory, **changes):
    """Changes the manifest the way a careful forger, or another program, would: with digests and seal renewed."""
    import hashlib

    manifest = json.loads((directory / "manifest.json").read_text())
    files = {name: hashlib.sha256((directory / name).read_bytes()).hexdigest() for name in manifest["files"]}
    manifest = checkpoint.sealed({**manifest, "files": files, **changes})
    (directory / "manifest.json").write_text(json.dumps(manifest))


def test_a_loaded_policy_predicts_what_the_saved_one_did(saved):
    directory, original = saved
    loaded, manifest = checkpoint.load(directory, robot=ROBOT)
    assert np.array_equal(loaded.predict(observation(), seeds=[1, 1]), original.predict(observation(), seeds=[1, 1]))
    assert manifest["family"] == "flow" and manifest["made"]["recipe"] == "test"
    assert loaded.contract == original.contract


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "manifest.json"])
def test_one_changed_byte_is_noticed(saved, name):
    path = saved[0] / name
    data = bytearray(path.read_bytes())
    place = data.rfind(b"0") if name == "manifest.json" else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved[0])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_file_is_named(saved, name, damage):
    path = saved[0] / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved[0])


def change_weights(directory, edit):
    weights = load_file(directory / "model.safetensors")
    edit(weights)
    save_file(weights, directory / "model.safetensors")
    reseal(directory)


def test_a_missing_weight_is_named(saved):
    change_weights(saved[0], lambda w: w.pop("pi0.action_out_proj.bias"))
    with pytest.raises(CheckpointError, match="missing: pi0.action_out_proj.bias"):
        checkpoint.load(saved[0])


def test_an_unknown_weight_is_named(saved):
    change_weights(saved[0], lambda w: w.update(extra=np.zeros(3, np.float32)))
    with pytest.raises(CheckpointError, match="unknown: extra"):
        checkpoint.load(saved[0])


def test_a_weight_of_another_shape_is_named(saved):
    change_weights(saved[0], lambda w: w.update({"pi0.action_out_proj.bias": np.zeros(9, np.float32)}))
    with pytest.raises(CheckpointError, match=r"action_out_proj.bias.*\(9,\).*\(7,\)"):
        checkpoint.load(saved[0])


def test_a_weight_that_is_not_a_number_is_named(saved):
    change_weights(saved[0], lambda w: w["pi0.action_out_proj.bias"].fill(np.nan))
    with pytest.raises(CheckpointError, match="NaN"):
        checkpoint.load(saved[0])


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(format_version=99), "version 99"),
        (dict(family="oracle"), "oracle"),
        (dict(format="something else"), "not a manifest"),
        (dict(contract={"cameras": []}), "missing entries"),
        (dict(files={"../other": "0"}), "does not list"),
    ],
)
def test_a_foreign_manifest_is_refused(saved, changes, words):
    reseal(saved[0], **changes)
    with pytest.raises(CheckpointError, match=words):
        checkpoint.load(saved[0])


def test_a_file_outside_the_directory_is_refused(saved):
    manifest = json.loads((saved[0] / "manifest.json").read_text())
    reseal(saved[0], files={**manifest["files"], "../other": "0" * 64})
    with pytest.raises(CheckpointError, match="outside"):
        checkpoint.load(saved[0])


def test_a_network_of_another_size_is_refused(saved):
    values = json.loads((saved[0] / "config.json").read_text())
    (saved[0] / "config.json").write_text(json.dumps({**values, "hidden": 24, "heads": 3}))
    reseal(saved[0])
    with pytest.raises(CheckpointError, match="shape"):
        checkpoint.load(saved[0])


def test_an_unknown_setting_in_config_is_refused(saved):
    values = json.loads((saved[0] / "config.json").read_text())
    (saved[0] / "config.json").write_text(json.dumps({**values, "colour": 1}))
    reseal(saved[0])
    with pytest.raises(CheckpointError, match="unknown key 'colour'"):
        checkpoint.load(saved[0])


def test_other_units_are_refused_by_the_robot(saved):
    reseal(saved[0], contract=replace(contract(), joint_unit="degree").to_dict())
    with pytest.raises(CheckpointError, match="degree"):
        checkpoint.load(saved[0], robot=ROBOT)


def test_a_directory_without_manifest_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        checkpoint.load(tmp_path)


def test_a_checkpoint_is_not_overwritten_by_accident(saved):
    with pytest.raises(CheckpointError, match="exists already"):
        checkpoint.save(saved[0], policy(), made={})


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(saved):
    directory, original = saved
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # smaller than the weights: the write fails half-way
    try:
        with pytest.raises(CheckpointError, match="nothing was left behind"):
            checkpoint.save(directory, policy(), made={}, overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in directory.parent.iterdir()] == ["good"]
    assert np.array_equal(checkpoint.load(directory)[0].predict(observation(), seeds=[1, 1]), original.predict(observation(), seeds=[1, 1]))


def test_overwriting_replaces_the_whole_checkpoint(saved):
    checkpoint.save(saved[0], policy(), made={"recipe": "second"}, overwrite=True)
    assert checkpoint.verify(saved[0])["made"]["recipe"] == "second"
    assert [path.name for path in saved[0].parent.iterdir()] == ["good"]


def test_an_evaluation_can_be_added_later(saved):
    checkpoint.record_evaluation(saved[0], {"rows": [{"success_rate": 0.7}]})
    assert checkpoint.load(saved[0])[1]["evaluation"]["rows"][0]["success_rate"] == 0.7


def test_no_evaluation_is_added_to_a_damaged_checkpoint(saved):
    (saved[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        checkpoint.record_evaluation(saved[0], {})
