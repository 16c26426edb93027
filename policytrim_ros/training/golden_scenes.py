"""Golden observations from the simulator: what a checkpoint sees, and answers, at the beginning and in the middle of a few scenes."""

from __future__ import annotations

from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.golden import Golden
from policytrim_ros.policies.policy import ChunkPolicy, Observation
from policytrim_ros.training.recipe import ENVIRONMENT, factory
from policytrim_ros.training.rollout import observation, view

GOLDEN_SEED = 800_000
"""Seed of every task's scene: neither training nor selection nor evidence draws it."""

CHUNKS = 2
"""Chunks that are played between the first look and the second."""


def record(directory, environment: str = ENVIRONMENT, image_size=(424, 240)) -> dict:
    """Gives the checkpoint in ``directory`` golden observations of all its tasks, in place of older ones; its manifest.

    ``image_size``: (width, height) at which pictures are rendered. ConfigError when the environment cannot be imported.
    """
    policy, manifest = checkpoint.load(directory)
    golden = Golden.of(policy, seen(policy, environment, image_size))
    kept = {name: manifest.get(name) for name in ("made", "evaluation", "gate")}
    return checkpoint.save(directory, policy, **kept, golden=golden, overwrite=True)


def seen(policy: ChunkPolicy, environment: str, image_size) -> Observation:
    """Two looks into one scene of every task of the policy, the arm moved by the policy in between."""
    contract, views = policy.contract, []
    cameras = tuple(camera.name for camera in contract.cameras)
    for task in contract.tasks:
        env = factory(environment)(task, cameras=cameras, image_size=image_size)
        env.reset(GOLDEN_SEED)
        views.append(view(env, cameras, contract.object_slots))
        for _ in range(CHUNKS):
            chunk = policy.predict(observation([view(env, cameras, contract.object_slots)]), seeds=[0])[0]
            for action in chunk[: contract.execution_horizon]:
                env.step(action)
        views.append(view(env, cameras, contract.object_slots))
    return observation(views)
