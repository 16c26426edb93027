"""The policy that a run begins with: a new one with random weights, or a checkpoint that is fine-tuned."""

from __future__ import annotations

from dataclasses import fields, replace

import torch

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import Camera, Contract
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import ChunkPolicy
from policytrim_ros.policies.tokenizer import UNKNOWN, train_tokenizer
from policytrim_ros.training.recipe import Recipe, world_of
from policytrim_ros.training.samples import Samples

FIXED = (
    "cameras",
    "object_slots",
    "prediction_horizon",
    "joints",
    "joint_unit",
    "signs",
    "gripper_unit",
    "control_rate_hz",
    "action_kind",
)
"""What a parent and a recipe must have in common."""


def start(recipe: Recipe, samples: Samples, tasks) -> tuple[ChunkPolicy, str | None]:
    """(policy, SHA-256 of its parent's weights): the parent of the recipe, or a new one with random weights."""
    return descended(recipe, samples, tasks) if recipe.parent else (new_policy(recipe, samples, tasks), None)


def new_policy(recipe: Recipe, samples: Samples, tasks) -> ChunkPolicy:
    """An untrained policy whose contract and words come from the recipe and the demonstrations."""
    instructions = sorted(set(samples.instructions))
    contract = replace(
        offered(recipe),
        execution_horizon=recipe.execution_horizon,
        tasks=tuple(tasks),
        instructions=tuple(instructions),
        normalisation=samples.normalisation(recipe.training.action_quantile),
    )
    kind = checkpoint.FAMILIES[recipe.family].policy
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        try:
            return kind(recipe.network, contract, train_tokenizer(kind.prompt(instruction) for instruction in instructions))
        except ValueError as error:
            raise ConfigError(f"Recipe.network: {error}") from error


def descended(recipe: Recipe, samples: Samples, tasks) -> tuple[ChunkPolicy, str]:
    """The recipe's parent with its contract; tasks and instructions are added. ConfigError when it does not fit.

    With `Recipe.renormalise` normalisation and tasks are the demonstrations' alone, and the prediction horizon of a flow
    policy, whose action expert attends to however many actions there are, is the recipe's.
    """
    policy, manifest = checkpoint.load(recipe.parent)
    contract = policy.contract
    if recipe.renormalise and policy.family == "flow":
        contract = replace(contract, prediction_horizon=recipe.network.horizon, execution_horizon=recipe.execution_horizon)
    misfits = [
        f"{name.replace('_', ' ')}: the parent has {theirs}, the recipe {ours}"
        for name, theirs, ours in (
            ("family", manifest["family"], recipe.family),
            *((name, _said(getattr(contract, name)), _said(getattr(offered(recipe), name))) for name in FIXED),
            *(
                (f"network.{spec.name}", getattr(policy.config, spec.name, None), getattr(recipe.network, spec.name))
                for spec in fields(recipe.network)
                if spec.name != "horizon"  # which is the contract's
                and getattr(recipe.network, spec.name) != getattr(type(recipe.network)(), spec.name)
            ),
        )
        if theirs != ours
    ]
    if misfits:
        raise ConfigError(f"{recipe.parent}: cannot be fine-tuned with this recipe: {misfits[0]}; correct the recipe")
    instructions = sorted(set(samples.instructions))
    unknown = policy.tokenizer.token_to_id(UNKNOWN)
    for sentence in instructions:
        if unknown is not None and unknown in policy.tokenizer.encode(policy.prompt(sentence)).ids:
            raise ConfigError(f"{recipe.parent}: does not know every word of '{sentence}'; train a new policy")
    contract = replace(
        contract,
        tasks=tuple(dict.fromkeys(tasks if recipe.renormalise else (*contract.tasks, *tasks))),
        instructions=tuple(dict.fromkeys((*contract.instructions, *instructions))),
        normalisation=samples.normalisation(recipe.training.action_quantile) if recipe.renormalise else contract.normalisation,
    )
    return policy.under(contract), manifest["files"]["model.safetensors"]


def offered(recipe: Recipe) -> Contract:
    """The terms that recipe and demonstrations set: cameras, horizon, kind of action, and the units in which demonstrations are written."""
    pictures = recipe.pictures
    return Contract(
        cameras=tuple(Camera(name, pictures.width, pictures.height) for name in pictures.cameras),
        object_slots=recipe.object_slots,
        prediction_horizon=recipe.network.horizon,
        action_kind=world_of(recipe.environment).action_kind,
    )


def _said(value) -> str:
    if isinstance(value, tuple) and value and isinstance(value[0], Camera):
        return ", ".join(f"{camera.name} {camera.width}x{camera.height}" for camera in value)
    return (", ".join(map(str, value)) or "none") if isinstance(value, tuple) else str(value)
