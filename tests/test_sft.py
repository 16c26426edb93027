"""Supervised fine-tuning on a stand-in task: exact when resumed or divided, any family, and clear about what cannot work."""

import argparse
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from policy_samples import TINY, reach_recipe

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import FAMILIES, CheckpointError
from policytrim_ros.policies.flow import FlowConfig
from policytrim_ros.policies.policy import blank
from policytrim_ros.training import demos, evaluate, mixture, run_state, sft
from policytrim_ros.training.demos import DatasetError
from policytrim_ros.training.recipe import Lora, Pictures, Source
from policytrim_ros.training.run_state import TrainingError

SMALL = dict(hidden=16, feed_forward=16, layers=2, heads=2, key_value_heads=2, head_dim=8)
OTHERS = {  # networks of the other families, small enough for a test
    name: {key: value for key, value in SMALL.items() if key in FAMILIES[name].config.__dataclass_fields__}
    for name in FAMILIES
    if name != "flow"
}


@pytest.fixture
def trainer(dataset, tmp_path):
    """A function that makes trainers of the stand-in task, each in a run of its own unless ``run`` names one."""
    runs = iter(range(100))

    def make(recipe=None, run=None, **training):
        recipe = recipe or reach_recipe(**training)
        return sft.Trainer(recipe, dataset, tmp_path / (run or f"run{next(runs)}"), progress=False, device="cpu")

    return make


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    trainer = sft.Trainer(reach_recipe(), dataset, directory / "run", progress=False, device="cpu")
    trainer.run()
    trainer.save_checkpoint(directory / "reach")
    return directory / "reach"


def weights(trainer):
    return torch.cat([tensor.flatten() for tensor in trainer.ema.values()])


def state_based(**changes):
    recipe = reach_recipe(shift_px=())
    return replace(recipe, pictures=replace(recipe.pictures, cameras=()), object_slots=1, **changes)


# -- one step -------------------------------------------------------------------------------------------------------


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole(trainer):
    """With a loss that draws nothing, accumulation changes no more than the last bits."""
    norms = {}
    for pieces in (1, 3):
        one = trainer(accumulate=pieces)
        one.policy.losses = lambda inputs, actions, **_: {
            "action": one.policy.state_features(inputs.state).pow(2).mean() * total(one)
        }
        norms[pieces] = one.train_step()["gradient_norm"]
    assert np.isclose(norms[1], norms[3], rtol=1e-5) and norms[1] > 0


def total(trainer):
    return sum(parameter.square().sum() for parameter in trainer.trained.values())


def test_the_average_follows_the_weights(trainer):
    one = trainer(ema=0.5, learning_rate=0.01, warmup_steps=0)
    before = {name: tensor.clone() for name, tensor in one.ema.items()}
    one.train_step()
    decay = min(0.5, 2 / 11)
    for name, parameter in one.trained.items():
        assert torch.allclose(one.ema[name], decay * before[name] + (1 - decay) * parameter.detach(), atol=1e-6)


def test_bfloat16_trains_weights_that_stay_float32(trainer):
    one = trainer(precision="bfloat16", steps=2)
    assert one.run() and {parameter.dtype for parameter in one.trained.values()} == {torch.float32}


def test_a_policy_without_eyes_learns_from_object_poses_and_reads_no_picture(dataset, trainer):
    one = trainer(state_based())
    assert one.run() and one.samples.plain(np.arange(3)).pictures is None
    assert one.averaged().contract.object_slots == 1 and one.averaged().contract.cameras == ()


@pytest.mark.parametrize("family", OTHERS)
def test_every_family_is_trained_saved_and_loaded(trainer, tmp_path, family):
    network = FAMILIES[family].config(**OTHERS[family])
    recipe = replace(reach_recipe(steps=2), family=family, network=network, execution_horizon=1)
    one = trainer(recipe)
    assert one.run()
    one.save_checkpoint(tmp_path / family)
    policy, manifest = checkpoint.load(tmp_path / family)
    assert manifest["family"] == family and torch.isfinite(torch.tensor(one.held_out_report["action"]))


# -- which samples --------------------------------------------------------------------------------------------------


def test_each_epoch_sees_every_sample_at_most_once(trainer):
    one, seen = trainer(), []
    for step in range(len(one.samples) // 8):
        one.step = step
        seen += one._indices().tolist()
    assert len(seen) == len(set(seen))


def groups_of(sizes, labels, sources):
    samples = argparse.Namespace(episode=np.repeat(np.arange(len(sizes)), sizes))
    return mixture.groups(samples, labels, sources), samples.episode


def test_tasks_have_equal_shares_whatever_directories_hold_them():
    sources = (Source("a"), Source("b"))
    groups, episode = groups_of([100, 20, 30], [(0, "tape_box"), (1, "tape_box"), (1, "flip_mug")], sources)
    order = mixture.epoch(groups, 150, 0, 0)
    assert [name for name, *_ in groups] == ["flip_mug", "tape_box"] and len(order) == 150
    assert np.sum(episode[order] == 2) == 75
    seen = np.concatenate([mixture.epoch(groups, 150, 0, number) for number in range(8)])  # tape_box: five times 120
    assert set(np.bincount(seen, minlength=150)[:120]) == {5}


def test_directories_are_weighted_where_weights_are_given():
    sources = (Source("a", 3), Source("b", 1))
    groups, episode = groups_of([10, 50, 40], [(0, "tape_box"), (1, "tape_box"), (1, "flip_mug")], sources)
    share = np.bincount(episode[mixture.epoch(groups, 100, 0, 4)], minlength=3)
    assert share.tolist() == [75, 12, 12] or abs(share - [75, 12.5, 12.5]).max() <= 2


def test_several_directories_are_learned_from_together(dataset, trainer, tmp_path):
    one = sft.Trainer(reach_recipe(steps=1), [dataset, dataset], tmp_path, progress=False, device="cpu")
    assert len(one.samples) + len(one.held_out) == 2 * sum(e["steps"] for e in demos.read_index(dataset)["episodes"])
    assert one.data_sha256 != trainer().data_sha256


# -- stopping and resuming ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"accumulate": 2, "ema": 0.9}], ids=["plain", "accumulation"])
def test_a_run_that_lost_its_last_steps_ends_with_the_same_weights(trainer, changes):
    whole = trainer(**changes)
    assert whole.run()
    lost = trainer(run="lost", **changes)
    for _ in range(3):
        lost.train_step()
    lost.save_state()
    lost.train_step()  # work after the last save is lost
    resumed = trainer(run="lost", **changes)
    assert resumed.run() and resumed.step == whole.step
    assert torch.equal(weights(resumed), weights(whole))


def test_a_stop_request_saves_and_the_next_run_finishes(trainer):
    first = trainer(run="one")
    first.stop_requested = True
    assert not first.run()
    second = trainer(run="one")
    assert second.run() and second.step == 6


def test_a_run_of_another_recipe_is_not_resumed(trainer):
    trainer(run="one").run()
    with pytest.raises(TrainingError, match="another recipe"):
        trainer(run="one", learning_rate=1e-3).run()


def test_a_broken_training_state_is_named(trainer, tmp_path):
    (tmp_path / sft.STATE_FILE).write_bytes(b"nonsense")
    with pytest.raises(TrainingError, match="cannot be read"):
        trainer(run=".").run()


def test_a_state_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "state.safetensors"
    run_state.save(path, {"w": torch.ones(3)}, {"step": 1})
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(TrainingError, match="No space left on device.*last state is intact"):
        run_state.save(path, {"w": torch.zeros(3)}, {"step": 2})
    tensors, facts = run_state.load(path)
    assert facts == {"step": 1} and tensors["w"].sum() == 3 and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_training_stops_when_the_held_out_loss_no_longer_falls(trainer):
    one = trainer(steps=40, evaluate_every=1, patience=2, learning_rate=1e-7, warmup_steps=0, ema=0.0)
    one.best = -1.0  # nothing can be better
    assert one.run() and one.step < 40


def test_the_checkpoint_with_the_most_successes_is_kept_and_enough_of_them_end_the_run(trainer, tmp_path, monkeypatch):
    rates, seeds = iter([0.2, 0.7, 0.4, 0.9]), []

    def played(directory, row, bench, progress):
        checkpoint.verify(directory)
        seeds.append(bench.first_seed)
        return {"success_rate": next(rates)}

    monkeypatch.setattr(evaluate, "evaluate", played)
    one = trainer(run="one", steps=3, success_every=1, success_wanted=0.8)
    assert one.run() and one.step == 3
    assert one.finish(tmp_path / "out")["made"]["steps"] == 2 and one.best_success == 0.7
    other = trainer(steps=100, success_every=1, success_wanted=0.8)
    assert other.run() and other.step == 1 and max(seeds) < evaluate.FIRST_SEED
    resumed = trainer(run="one", steps=3, success_every=1, success_wanted=0.8)
    assert resumed.run() and resumed.best_success == 0.7


def test_a_loss_that_is_not_a_number_ends_the_run_and_keeps_the_last_state(trainer, tmp_path):
    one = trainer(run="one", steps=6, save_every=1)
    losses = one.policy.losses

    def spoiled(*arguments, **options):
        found = losses(*arguments, **options)
        return {**found, "action": found["action"] * (float("nan") if one.step == 2 else 1.0)}

    one.policy.losses = spoiled
    with pytest.raises(TrainingError, match=r"action became nan at step 2 \(gradient of .*learning rate"):
        one.run()
    tensors, facts = run_state.load(tmp_path / "one" / sft.STATE_FILE)
    assert facts["step"] == 2 and all(tensor.isfinite().all() for tensor in tensors.values())


def test_the_stand_in_task_is_learned(trainer):
    one = trainer(steps=120, batch=16, learning_rate=3e-3, evaluate_every=1000, save_every=1000)
    before = sft.held_out_report(one.averaged(), one.held_out, 0)["action"]
    one.run()
    assert one.held_out_report["action"] < 0.6 * before


def test_curves_hold_losses_rate_and_memory(trainer, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(run="one", steps=25, evaluate_every=10).run()
    curves = EventAccumulator(str(tmp_path / "one")).Reload()
    names = {"action", "locate", "gradient_norm", "learning_rate", "samples_per_s", "memory_mb"}
    assert {f"train/{name}" for name in names} <= set(curves.Tags()["scalars"])
    assert [event.step for event in curves.Scalars("held_out/action")] == [10, 20, 25]


# -- what a policy begins with --------------------------------------------------------------------------------------


def test_adapters_train_little_and_the_checkpoint_has_them_merged(trainer, tmp_path):
    recipe = replace(reach_recipe(learning_rate=0.01), lora=Lora(rank=2, targets=("q_proj", "v_proj"), train=("locator",)))
    one = trainer(recipe, run="one")
    assert all("lora_" in name or "locator" in name for name in one.trained)
    assert re.search(r"policy, [\d,]+ of [\d,]+ parameters \(\d+\.\d %\)", one.describe())
    assert one.run()
    tensors, _ = run_state.load(tmp_path / "one" / sft.STATE_FILE)
    assert all("lora_" in name or "locator" in name for name in tensors)
    one.save_checkpoint(tmp_path / "merged")
    policy, manifest = checkpoint.load(tmp_path / "merged")
    assert manifest["made"]["lora"]["rank"] == 2
    batch = one.held_out.plain(np.arange(4))
    with torch.no_grad(), one.averaging() as adapted:
        draws = [[torch.Generator().manual_seed(row) for row in range(4)] for _ in range(2)]
        acted = [p.sample(sft.inputs_of(p, batch), draw) for p, draw in zip((adapted, policy), draws)]
    fresh = trainer(recipe).averaged().state_dict()
    assert torch.allclose(*acted, atol=1e-5)
    assert any(not torch.equal(tensor, fresh[name]) for name, tensor in policy.state_dict().items() if "q_proj" in name)
    again = trainer(recipe, run="one")
    assert again.run() and torch.equal(weights(again), weights(one))


@pytest.mark.parametrize("lora", [Lora(rank=2, targets=("w_proj",)), Lora(rank=2, train=("nonsense",))])
def test_adapters_for_layers_that_do_not_exist_are_refused(trainer, lora):
    with pytest.raises(ConfigError, match="w_proj|nonsense"):
        trainer(replace(reach_recipe(), lora=lora))


def test_a_child_keeps_its_parents_contract_and_names_it(trained, trainer, tmp_path):
    one = trainer(replace(reach_recipe(steps=1, learning_rate=1e-7), parent=str(trained)))
    before = checkpoint.load(trained)[0]
    assert all(torch.equal(tensor, before.state_dict()[name]) for name, tensor in one.ema.items())
    one.run()
    manifest = one.save_checkpoint(tmp_path / "child")
    parent = checkpoint.read_manifest(trained)
    assert manifest["made"]["parent"] == parent["files"]["model.safetensors"] and manifest["contract"] == parent["contract"]


def test_a_child_takes_other_normalisation_only_when_told_to(trained, dataset, trainer):
    manifest = checkpoint.read_manifest(trained)
    for renormalise in (False, True):
        recipe = replace(reach_recipe(held_out=0.5), parent=str(trained), renormalise=renormalise)
        same = (
            trainer(recipe).policy.contract.to_dict()["normalisation"]
            == checkpoint.contract_of(manifest).to_dict()["normalisation"]
        )
        assert same != renormalise


def test_a_flow_policy_learns_to_predict_more_than_its_parent(trained, trainer, tmp_path):
    longer = replace(reach_recipe().network, horizon=9)
    recipe = replace(reach_recipe(steps=1), parent=str(trained), renormalise=True, network=longer, execution_horizon=4)
    one = trainer(recipe)
    before = checkpoint.load(trained)[0]
    assert all(torch.equal(parameter, before.get_parameter(name)) for name, parameter in one.policy.named_parameters())
    one.run()
    one.save_checkpoint(tmp_path / "child")
    child, manifest = checkpoint.load(tmp_path / "child")
    assert child.predict(blank(child.contract), seeds=[0]).shape == (1, 9, 7)
    assert (manifest["contract"]["prediction_horizon"], manifest["contract"]["execution_horizon"]) == (9, 4)


def test_a_parent_that_does_not_fit_is_refused(trained, trainer, tmp_path):
    recipe = replace(reach_recipe(), parent=str(trained))
    other = next(iter(OTHERS))
    for wrong, words in (
        (replace(recipe, network=replace(recipe.network, horizon=7)), "prediction horizon: the parent has 6, the recipe 7"),
        (replace(recipe, network=replace(recipe.network, hidden=32)), "network.hidden: the parent has 16, the recipe 32"),
        (replace(recipe, object_slots=1), "object slots"),
        (
            replace(recipe, family=other, network=FAMILIES[other].config(horizon=6)),
            f"family: the parent has flow, the recipe {other}",
        ),
    ):
        with pytest.raises(ConfigError, match=re.escape(words)):
            trainer(wrong)
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        trainer(replace(recipe, parent=str(tmp_path / "none")))


def test_a_parent_with_other_cameras_is_refused(trainer, tmp_path):
    one = trainer(state_based())
    one.save_checkpoint(tmp_path / "blind")
    with pytest.raises(ConfigError, match="cameras: the parent has none, the recipe front 32x18"):
        trainer(replace(reach_recipe(), parent=str(tmp_path / "blind")))


# -- bad input ------------------------------------------------------------------------------------------------------


def test_demonstrations_that_do_not_fit_the_recipe_are_refused(trainer, tmp_path):
    recipe = reach_recipe()
    with pytest.raises(DatasetError, match="32x18, the recipe asks for 64x36"):
        trainer(replace(recipe, pictures=Pictures(cameras=("front",), width=64, height=36)))
    with pytest.raises(DatasetError, match="wrist"):
        trainer(replace(reach_recipe(shift_px=(1, 1)), pictures=replace(recipe.pictures, cameras=("front", "wrist"))))
    with pytest.raises(DatasetError, match="demos make"):
        sft.Trainer(recipe, tmp_path / "none", tmp_path, progress=False, device="cpu")
    with pytest.raises(ConfigError, match="one number for each camera"):
        trainer(shift_px=(1, 1))
    with pytest.raises(ConfigError, match="8 samples cannot be divided into 9 pieces"):
        trainer(accumulate=9)
    with pytest.raises(ConfigError, match="network"):
        trainer(replace(recipe, network=FlowConfig(**{**TINY, "horizon": 6, "vocabulary": 4})))


# -- the command line -----------------------------------------------------------------------------------------------


def run_command(*words):
    parser = argparse.ArgumentParser()
    sft.add_arguments(parser)
    return sft.main(parser.parse_args(words))


def test_the_command_line_trains_and_says_what_it_did(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "name": "reach",
        "dataset": [str(dataset)],
        "checkpoint": "models/reach",
        "pictures": {"cameras": ["front"], "width": 32, "height": 18},
        "network": {**SMALL, "horizon": 6, "keypoints": 4},
        "training": {"steps": 3, "batch": 8, "shift_px": [1], "held_out": 0.25},
    }
    (tmp_path / "reach.yaml").write_text(yaml.safe_dump(recipe))
    assert run_command("--recipe", "reach.yaml", "--device", "cpu") == 0
    assert "samples (tape_box 100 %)" in capsys.readouterr().out
    assert run_command("--recipe", "reach.yaml", "--from", "models/reach", "--out", "models/child", "--run", "runs/child") == 0
    made = checkpoint.verify("models/child")["made"]
    assert made["parent"] == checkpoint.verify("models/reach")["files"]["model.safetensors"] and made["steps"] == 3
    assert made["data_sha256"] == demos.data_digest(demos.read_index(dataset)) and made["method"] == "sft"


def test_the_command_line_answers_a_mistake_with_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_command("--recipe", "none.yaml") == 1
    (tmp_path / "reach.yaml").write_text(json.dumps({"dataset": "nowhere"}))
    assert run_command("--recipe", "reach.yaml", "--device", "cpu") == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and "none.yaml" in lines[0] and "nowhere" in lines[1]


def test_a_checkpoint_says_how_it_was_made_and_for_which_robot(trained, dataset):
    from policytrim_ros.core.contract import robot_contract

    policy, manifest = checkpoint.load(trained)
    assert manifest["made"]["data_sha256"] == demos.data_digest(demos.read_index(dataset))
    assert manifest["made"]["recipe_sha256"] == reach_recipe().digest
    assert policy.contract.instructions == ("move to the dot",)
    assert policy.contract.execution_horizon == 5 and manifest["tasks"] == ["tape_box"]
    with pytest.raises(CheckpointError, match="'front' is missing"):
        checkpoint.load(trained, robot=robot_contract({"wrist": (64, 36)}))
