"""Checkpoints: whole or not there; anything changed, missing or foreign is refused with one sentence."""

import copy
import hashlib
import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
from policy_samples import contract, observation, policy
from safetensors.numpy import load_file, save_file

from policytrim_ros.core.contract import robot_contract
from policytrim_ros.files import sha256_of
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import CheckpointError
from policytrim_ros.policies.flow import FlowPolicy
from policytrim_ros.policies.tokenizer import train_tokenizer

FILES = ["config.json", "model.safetensors", "tokenizer.json", "processor.json", "manifest.json"]
ROBOT = robot_contract({"front": (64, 36), "wrist": (64, 36)})


@pytest.fixture
def saved(tmp_path):
    original = policy()
    checkpoint.save(tmp_path / "good", original, made={"recipe": "test", "seed": 0})
    return tmp_path / "good", original


def reseal(directory, **changes):
    """Changes the manifest the way a careful forger, or another program, would: with digests and seal renewed."""
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


@pytest.mark.parametrize("name", FILES)
def test_one_changed_byte_is_noticed(saved, name):
    path = saved[0] / name
    data = bytearray(path.read_bytes())
    place = data.rfind(b"0") if name == "manifest.json" else len(data) // 2
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=name):
        checkpoint.load(saved[0])


@pytest.mark.parametrize("name", FILES)
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
    assert np.array_equal(
        checkpoint.load(directory)[0].predict(observation(), seeds=[1, 1]), original.predict(observation(), seeds=[1, 1])
    )


def test_overwriting_replaces_the_whole_checkpoint(saved):
    checkpoint.save(saved[0], policy(), made={"recipe": "second"}, overwrite=True)
    assert checkpoint.verify(saved[0])["made"]["recipe"] == "second"
    assert [path.name for path in saved[0].parent.iterdir()] == ["good"]


def test_a_checkpoint_that_is_replaced_while_it_is_read_is_not_mixed_with_the_other(saved, monkeypatch):
    directory, original = saved
    load_weights = checkpoint._load_weights

    def replaced_meanwhile(policy, path):
        checkpoint.save(directory, original, made={"recipe": "another"}, overwrite=True)
        load_weights(policy, path)

    monkeypatch.setattr(checkpoint, "_load_weights", replaced_meanwhile)
    with pytest.raises(CheckpointError, match="another checkpoint took its place while it was read; load it again"):
        checkpoint.load(directory)
    monkeypatch.undo()
    assert checkpoint.load(directory)[1]["made"] == {"recipe": "another"}


def test_an_evaluation_can_be_added_later(saved):
    checkpoint.annotate(saved[0], evaluation={"rows": [{"success_rate": 0.7}]})
    assert checkpoint.load(saved[0])[1]["evaluation"]["rows"][0]["success_rate"] == 0.7


def test_no_evaluation_is_added_to_a_damaged_checkpoint(saved):
    (saved[0] / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError):
        checkpoint.annotate(saved[0], evaluation={})


def test_pictures_treated_otherwise_than_in_training_are_refused(saved):
    values = json.loads((saved[0] / "processor.json").read_text())
    assert values == {"size": [32, 18], "resize": "area", "range": [-1.0, 1.0]}
    (saved[0] / "processor.json").write_text(json.dumps({**values, "resize": "nearest"}))
    reseal(saved[0])
    with pytest.raises(CheckpointError, match="processor.json.*nearest"):
        checkpoint.load(saved[0])


def test_siglip_says_on_what_square_a_picture_lies(tmp_path):
    checkpoint.save(tmp_path / "siglip", policy(vision="siglip", patch_size=8), made={})
    assert json.loads((tmp_path / "siglip" / "processor.json").read_text())["canvas"] == [32, 32]
    loaded, _ = checkpoint.load(tmp_path / "siglip")
    assert loaded.predict(observation(), seeds=[0, 1]).shape == (2, 6, 7)


def test_the_digest_of_a_file_is_sha256(tmp_path):
    data = b"x" * (3 * 2**20 + 7)  # several pieces
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# -- differences ----------------------------------------------------------------------------------------------------


def compared(saved, edit=lambda policy: None, **made):
    """Sentences about a copy of the saved policy after ``edit``."""
    directory, original = saved
    other = copy.deepcopy(original)
    other = edit(other) or other
    checkpoint.save(directory.parent / "other", other, made=made or {"recipe": "test", "seed": 0})
    return checkpoint.diff(directory, directory.parent / "other")


def test_a_copy_does_not_differ(saved):
    assert compared(saved) == []


def test_the_weights_that_moved_are_told_by_group_and_distance(saved):
    def edit(other):
        other.pi0.action_out_proj.weight.data *= 1.1

    lines = compared(saved, edit)
    assert len(lines) == 2
    assert lines[0].startswith("weights, all that both have: 1 of ")
    name = "weights, pi0.action_out_proj.weight: 1 of 1 tensors changed, relative L2 distance "
    assert lines[1].startswith(name) and abs(float(lines[1].removeprefix(name)) - 0.1) < 1e-3


def test_how_it_was_made_and_how_it_was_judged_is_compared(saved):
    checkpoint.annotate(saved[0], evaluation={"success_rate": 0.7})
    lines = compared(saved, recipe="test", seed=1)
    assert "made.seed: 0 in the first, 1 in the second" in lines
    assert any(line.startswith('evaluation: {"success_rate": 0.7} in the first, nothing') for line in lines)


def test_contracts_and_sizes_are_compared(saved):
    def edit(other):
        changed = contract(horizon=4, tasks=("flip_mug",))
        return FlowPolicy(replace(other.config, horizon=4, hidden=8), changed, train_tokenizer(["wipe the table"]))

    text = "\n".join(compared(saved, edit))
    for words in (
        "config.hidden: 16 in the first, 8 in the second",
        "contract.prediction_horizon: 6 in the first, 4 in the second",
        'contract.tasks[0]: "tape_box" in the first, "flip_mug" in the second',
        "contract.normalisation.actions: shape (6, 7) in the first, (4, 7) in the second",
        "tokenizer: words only in the first: box, hang, into and",
        "only in the second: table, wipe",
        "has shape",
    ):
        assert words in text


def test_other_quantiles_are_summed_up(saved):
    def edit(other):
        norm = other.contract.normalisation["state"]
        changed = {**other.contract.normalisation, "state": replace(norm, q99=(2.5,) * 14)}
        return FlowPolicy(other.config, replace(other.contract, normalisation=changed), other.tokenizer)

    assert "contract.normalisation.state: quantiles differ by up to 0.5 rad or m" in compared(saved, edit)


def test_a_policy_with_more_weights_or_of_another_family_can_be_compared(saved, tmp_path):
    assert any("noise_head" in line for line in compared(saved, lambda other: other.add_noise_head()))
    names = ("family", "architecture")
    manifest = json.loads((tmp_path / "other" / "manifest.json").read_text())
    shutil.copytree(tmp_path / "other", tmp_path / "third")
    reseal(tmp_path / "third", **{**manifest, "family": "parallel", "architecture": "Llama"})
    lines = checkpoint.diff(saved[0], tmp_path / "third")
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in names)


def test_a_damaged_checkpoint_is_not_compared(saved):
    shutil.copytree(saved[0], saved[0].parent / "other")
    (saved[0].parent / "other" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="other"):
        checkpoint.diff(saved[0], saved[0].parent / "other")
