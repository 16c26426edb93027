"""Small policies and recipes shared by the tests of policies, checkpoints and training."""

from dataclasses import replace

import numpy as np
import torch

from policytrim_ros.core.contract import Camera, Contract, Normalisation
from policytrim_ros.core.types import READY
from policytrim_ros.policies.flow import FlowConfig, FlowPolicy
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.tokenizer import train_tokenizer
from policytrim_ros.training.recipe import Collection, Evaluation, Pictures, Recipe, Training

torch.set_num_threads(1)  # networks this small only get slower with more

SENTENCES = ["put the tape into the box", "stand the mug upright", "hang the mug on the rack"]
TINY = dict(hidden=16, feed_forward=16, layers=2, heads=2, head_dim=8, keypoints=4, tokens_per_camera=2)


def contract(horizon=6, cameras=("front", "wrist"), **changes) -> Contract:
    normalisation = {
        "state": Normalisation((-1.0,) * 14, (2.0,) * 14),
        "actions": Normalisation(((-0.5,) * 6 + (0.0,),) * horizon, ((0.5,) * 6 + (0.07,),) * horizon),
    }
    values = dict(
        cameras=tuple(Camera(name, 32, 18) for name in cameras),
        prediction_horizon=horizon,
        execution_horizon=2,
        tasks=("tape_box",),
        instructions=tuple(SENTENCES),
        normalisation=normalisation,
    )
    return Contract(**{**values, **changes})


def policy(horizon=6, **config) -> FlowPolicy:
    return FlowPolicy(FlowConfig(horizon=horizon, **{**TINY, **config}), contract(horizon), train_tokenizer(SENTENCES)).eval()


def observation(batch=2, size=(48, 27), cameras=("front", "wrist")) -> Observation:
    rng = np.random.default_rng(0)
    images = {name: rng.integers(0, 256, (batch, size[1], size[0], 3), dtype=np.uint8) for name in cameras}
    return Observation(images, rng.normal(0, 0.2, (batch, 14)), [SENTENCES[i % 3] for i in range(batch)])


def at_ready(batch=2) -> Observation:
    seen = observation(batch)
    return Observation(seen.images, np.tile(np.float32([*READY, *READY]), (batch, 1)), seen.instruction)


def gentle(**changes):
    """A policy that is untrained, too, but whose actions are small."""
    small = Normalisation(((-0.01,) * 6 + (0.0,),) * 6, ((0.01,) * 6 + (0.07,),) * 6)
    torch.manual_seed(0)
    given = contract(**changes)
    norms = {**given.normalisation, "actions": small}
    config = FlowConfig(horizon=6, **TINY)
    return FlowPolicy(config, replace(given, normalisation=norms), train_tokenizer(SENTENCES)).eval().requires_grad_(False)


def reach_recipe(**training) -> Recipe:
    values = dict(steps=6, batch=8, flow_samples=2, save_every=3, evaluate_every=3, shift_px=(1,), held_out=0.25, warmup_steps=2)
    return Recipe(
        name="reach",
        environment="reach_task:ReachEnv",
        demonstrator="reach_task:make_demonstrator",
        pictures=Pictures(cameras=("front",), camera_width=64, camera_height=36, width=32, height=18),
        collect=(Collection(task="tape_box", episodes=8),),
        network=FlowConfig(horizon=6, **TINY),
        training=Training(**{**values, **training}),
        evaluation=(Evaluation(episodes=3, horizon=3),),
    )
