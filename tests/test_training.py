"""Training and evaluation on a stand-in task: resumable, exact, and clear about bad data."""

import argparse
import json

import pytest
import torch
import yaml
from policy_samples import reach_recipe

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import CheckpointError
from policytrim_ros.training import demos, evaluate, sft
from policytrim_ros.training.recipe import Evaluation, load_recipe


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    directory = tmp_path_factory.mktemp("demos") / "reach"
    demos.make(reach_recipe(), directory, progress=False)
    return directory


# -- training -------------------------------------------------------------------------------------------------------


def weights(trainer):
    return torch.cat([tensor.flatten() for tensor in trainer.ema.values()])


def test_a_killed_run_resumed_ends_with_the_same_weights(dataset, tmp_path):
    whole = sft.Trainer(reach_recipe(), dataset, tmp_path / "whole", progress=False)
    assert whole.run()
    killed = sft.Trainer(reach_recipe(), dataset, tmp_path / "killed", progress=False)
    for _ in range(3):
        killed.train_step()
    (tmp_path / "killed").mkdir()
    killed.save_state()
    killed.train_step()  # work after the last save is lost in the kill
    resumed = sft.Trainer(reach_recipe(), dataset, tmp_path / "killed", progress=False)
    assert resumed.run() and resumed.step == whole.step
    assert torch.equal(weights(resumed), weights(whole))


def test_a_stop_request_saves_and_the_next_run_finishes(dataset, tmp_path):
    first = sft.Trainer(reach_recipe(), dataset, tmp_path, progress=False)
    first.stop_requested = True
    assert not first.run()
    second = sft.Trainer(reach_recipe(), dataset, tmp_path, progress=False)
    assert second.run() and second.step == 6


def test_a_run_of_another_recipe_is_not_resumed(dataset, tmp_path):
    sft.Trainer(reach_recipe(), dataset, tmp_path, progress=False).run()
    with pytest.raises(sft.TrainingError, match="another recipe"):
        sft.Trainer(reach_recipe(learning_rate=1e-3), dataset, tmp_path, progress=False).run()


def test_a_broken_training_state_is_named(dataset, tmp_path):
    (tmp_path / sft.STATE_FILE).write_bytes(b"nonsense")
    with pytest.raises(sft.TrainingError, match="cannot be read"):
        sft.Trainer(reach_recipe(), dataset, tmp_path, progress=False).run()


def test_training_stops_when_the_held_out_loss_no_longer_falls(dataset, tmp_path):
    trainer = sft.Trainer(
        reach_recipe(steps=40, evaluate_every=1, patience=2, learning_rate=1e-7, warmup_steps=0, ema=0.0),
        dataset,
        tmp_path,
        False,
    )
    trainer.best = -1.0  # nothing can be better
    assert trainer.run() and trainer.step < 40


def test_each_epoch_sees_every_sample_at_most_once(dataset, tmp_path):
    trainer = sft.Trainer(reach_recipe(), dataset, tmp_path, progress=False)
    seen = []
    for step in range(len(trainer.samples) // 8):
        trainer.step = step
        seen += trainer._indices().tolist()
    assert len(seen) == len(set(seen))


def test_the_stand_in_task_is_learned(dataset, tmp_path):
    recipe = reach_recipe(steps=120, batch=16, learning_rate=3e-3, evaluate_every=1000, save_every=1000)
    trainer = sft.Trainer(recipe, dataset, tmp_path, progress=False)
    before = sft.held_out_report(trainer.averaged(), trainer.held_out, 0)["action"]
    trainer.run()
    assert trainer.held_out_report["action"] < 0.6 * before


# -- evaluation and the whole way -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    directory = tmp_path_factory.mktemp("trained")
    trainer = sft.Trainer(reach_recipe(), dataset, directory / "run", progress=False)
    trainer.run()
    trainer.save_checkpoint(directory / "reach")
    return directory / "reach"


def test_a_checkpoint_says_how_it_was_made(trained, dataset):
    policy, manifest = checkpoint.load(trained)
    assert manifest["made"]["data_sha256"] == demos.data_digest(demos.read_index(dataset))
    assert manifest["made"]["recipe_sha256"] == reach_recipe().digest
    assert policy.contract.instructions == ("move to the dot",)
    assert policy.contract.execution_horizon == 5 and manifest["tasks"] == ["tape_box"]


def test_an_evaluation_counts_calls_and_steps(trained):
    recipe = reach_recipe()
    report = evaluate.evaluate(
        trained, recipe.evaluation[0], environment=recipe.environment, pictures=recipe.pictures, progress=False
    )
    assert report["n"] == 3 and 0 <= report["success_interval"][0] <= report["success_rate"] <= report["success_interval"][1] <= 1
    for episode in report["episodes_list"]:
        assert episode["calls"] == -(-episode["steps"] // 3)
    again = evaluate.evaluate(
        trained, recipe.evaluation[0], environment=recipe.environment, pictures=recipe.pictures, progress=False
    )
    assert [e["steps"] for e in again["episodes_list"]] == [e["steps"] for e in report["episodes_list"]]


def test_several_processes_give_the_same_episodes(trained):
    recipe = reach_recipe()
    arguments = dict(environment=recipe.environment, pictures=recipe.pictures, progress=False)
    alone, together = (evaluate.evaluate(trained, recipe.evaluation[0], processes=p, **arguments) for p in (1, 2))
    assert [(e["seed"], e["steps"], e["outcome"]) for e in alone["episodes_list"]] == [
        (e["seed"], e["steps"], e["outcome"]) for e in together["episodes_list"]
    ]


def test_a_horizon_beyond_the_chunk_is_refused(trained):
    recipe = reach_recipe()
    with pytest.raises(ConfigError, match="H = 6"):
        evaluate.evaluate(trained, Evaluation(horizon=7), environment=recipe.environment, pictures=recipe.pictures)


def test_the_command_line_goes_from_recipe_to_recorded_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = {
        "name": "reach",
        "environment": "reach_task:ReachEnv",
        "demonstrator": "reach_task:make_demonstrator",
        "dataset": "data/reach",
        "checkpoint": "models/reach",
        "pictures": {"cameras": ["front"], "camera_width": 64, "camera_height": 36, "width": 32, "height": 18},
        "collect": [{"task": "tape_box", "episodes": 4}],
        "evaluation": [{"task": "tape_box", "episodes": 2, "horizon": 5}],
        "network": {"horizon": 6, "hidden": 16, "feed_forward": 16, "layers": 1, "heads": 2, "head_dim": 8, "keypoints": 4},
        "training": {"steps": 3, "batch": 8, "shift_px": [1], "held_out": 0.25},
    }
    (tmp_path / "reach.yaml").write_text(yaml.safe_dump(recipe))
    for module, arguments in (
        (demos, ["make", "--recipe", "reach.yaml"]),
        (sft, ["--recipe", "reach.yaml"]),
        (evaluate, ["--recipe", "reach.yaml", "--out", "report", "--record"]),
        (demos, ["info", "data/reach"]),
    ):
        parser = argparse.ArgumentParser()
        module.add_arguments(parser)
        assert module.main(parser.parse_args(arguments)) == 0
    assert checkpoint.verify("models/reach")["evaluation"]["rows"][0]["n"] == 2
    assert json.loads((tmp_path / "report.json").read_text())[0]["episodes_list"]
    assert "| tape_box | standard | 5 | 2 |" in (tmp_path / "report.md").read_text()
    assert "4 episodes are intact" in capsys.readouterr().out


@pytest.mark.parametrize(
    "module, arguments", [(sft, ["--recipe", "none.yaml"]), (evaluate, ["--checkpoint", "none"]), (demos, ["info", "none"])]
)
def test_the_command_line_answers_a_mistake_with_one_sentence(module, arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    assert module.main(parser.parse_args(arguments)) == 1
    assert "none" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, words",
    [
        ("training: {step: 3}", "unknown key 'step'"),
        ("training: {steps: -3}", "steps"),
        ("colour: red", "unknown key 'colour'"),
        ("collect: [{setting: windy}]", "windy"),
        ("[1, 2", "cannot be read"),
        ("just words", "expected a mapping"),
    ],
)
def test_a_bad_recipe_is_refused(tmp_path, text, words):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        load_recipe(tmp_path / "bad.yaml")


def test_the_shipped_recipes_are_valid():
    from pathlib import Path

    for path in Path(__file__).parents[1].glob("config/sft_*.yaml"):
        recipe = load_recipe(path)
        assert recipe.collect and recipe.evaluation


def test_a_checkpoint_for_another_robot_is_refused(trained):
    from policytrim_ros.core.contract import robot_contract

    with pytest.raises(CheckpointError, match="'front' is missing"):
        checkpoint.load(trained, robot=robot_contract({"wrist": (64, 36)}))
