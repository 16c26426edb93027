"""Recipes: what a file may say, and the sentence for what it may not."""

from pathlib import Path

import pytest
from policy_samples import TINY, reach_recipe

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies.checkpoint import FAMILIES
from policytrim_ros.policies.flow import FlowConfig
from policytrim_ros.training.recipe import Recipe, Source, load_recipe

RECIPES = sorted((Path(__file__).parents[1] / "config").glob("sft_*.yaml"))


def written(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    return tmp_path / "recipe.yaml"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_network_is_read_as_the_configuration_of_its_family(tmp_path, family):
    recipe = load_recipe(written(tmp_path, f"{{family: {family}, execution_horizon: 1, network: {{hidden: 48}}}}"))
    assert type(recipe.network) is FAMILIES[family].config and recipe.network.hidden == 48


def test_a_dataset_is_one_directory_or_many_with_or_without_weights(tmp_path):
    assert load_recipe(written(tmp_path, "dataset: a")).sources == (Source("a"),)
    assert load_recipe(written(tmp_path, "dataset: [a, b]")).sources == (Source("a"), Source("b"))
    weighted = load_recipe(written(tmp_path, "dataset: [{directory: a, weight: 2}, {directory: b, weight: 1}]"))
    assert weighted.sources == (Source("a", 2), Source("b", 1))


@pytest.mark.parametrize(
    "text, words",
    [
        ("training: {step: 3}", "unknown key 'step'"),
        ("training: {steps: -3}", "steps"),
        ("training: {precision: float16}", "allowed values are 'auto', 'float32', 'bfloat16'"),
        ("colour: red", "unknown key 'colour'"),
        ("family: diffusion", "'diffusion': allowed values are 'flow'"),
        ("network: {keypoint: 3}", "unknown key 'keypoint'"),
        ("network: 3", "expected a mapping"),
        ("lora: {ranks: 3}", "unknown key 'ranks'"),
        ("collect: [{setting: windy}]", "windy"),
        ("collect: [tape_box]", "expected a mapping"),
        ("dataset: [{folder: a}]", "unknown key 'folder'"),
        ("dataset: [{directory: a, weight: 1}, b]", "give every directory a weight above 0, or none"),
        ("{dataset: [a, b], collect: [{task: tape_box}]}", "fills one directory"),
        ("pictures: {cameras: []}", "needs a camera, or object_slots"),
        ("{network: {horizon: 4}, execution_horizon: 5}", "predicts only 4 actions"),
        ("[1, 2", "cannot be read"),
        ("just words", "expected a mapping"),
    ],
)
def test_a_bad_recipe_is_refused_with_its_file_and_reason(tmp_path, text, words):
    with pytest.raises(ConfigError, match="recipe.yaml") as refused:
        load_recipe(written(tmp_path, text))
    assert words in str(refused.value)


def test_a_network_of_another_family_is_refused():
    with pytest.raises(ConfigError, match="the family 'parallel' wants"):
        Recipe(family="parallel", network=FlowConfig(**TINY))


def test_the_digest_knows_what_shapes_the_weights_and_nothing_else():
    digest = reach_recipe().digest
    assert reach_recipe(learning_rate=1e-5).digest != digest
    assert Recipe(name="a", dataset="b", checkpoint="c").digest == Recipe().digest


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path):
    recipe = load_recipe(path)
    assert recipe.evaluation and all(row.horizon <= recipe.network.horizon for row in recipe.evaluation)
