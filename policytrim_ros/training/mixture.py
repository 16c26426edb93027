"""What a run learns from: the demonstrations of one or several directories, and in which order their samples come.

An epoch has as many samples as there are; every task has an equal share of it, or every directory the share of its weight.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Sequence

import numpy as np

from policytrim_ros.training.demos import DatasetError, data_digest, read_episodes, read_index
from policytrim_ros.training.recipe import Recipe, Source, world_of
from policytrim_ros.training.samples import Samples


@dataclass
class Mixture:
    """Demonstrations in memory: samples to train on and held-out ones (or None), the groups of `groups`, all tasks, and one
    SHA-256 over all files."""

    samples: Samples
    held_out: Samples | None
    groups: list[tuple[str, np.ndarray, float]]
    tasks: tuple[str, ...]
    sha256: str


def load(recipe: Recipe, directories=None, progress=False) -> Mixture:
    """Reads the recipe's demonstrations, or those in ``directories``. DatasetError when they cannot be used."""
    sources = tuple(Source(str(directory)) for directory in directories) if directories else recipe.sources
    indexes = [read_index(source.directory) for source in sources]
    return mix(*read(sources, indexes, recipe, progress), sources, recipe, digest(indexes))


def mix(episodes, labels, sources: Sequence[Source], recipe: Recipe, sha256: str) -> Mixture:
    """Divides episodes into training and held-out ones. ``labels``: (number of the source, task) of each."""
    train, held_out = split(len(episodes), recipe.training.held_out, recipe.seed)
    options = (recipe.pictures.cameras, recipe.network.horizon, recipe.object_slots, world_of(recipe.environment).action_kind)
    samples = Samples([episodes[i] for i in train], *options)
    return Mixture(
        samples,
        Samples([episodes[i] for i in held_out], *options) if held_out else None,
        groups(samples, [labels[i] for i in train], sources),
        tuple(sorted({episode.task for episode in episodes})),
        sha256,
    )


def digest(indexes: Sequence[dict]) -> str:
    """One SHA-256 for all demonstrations."""
    parts = [data_digest(index) for index in indexes]
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def read(sources: Sequence[Source], indexes: Sequence[dict], recipe: Recipe, progress: bool):
    """(episodes, (number of the source, task) of each); ``indexes``: one of each source. DatasetError when the pictures are not those of the recipe."""
    pictures, episodes, labels = recipe.pictures, [], []
    for number, (source, index) in enumerate(zip(sources, indexes, strict=True)):
        for episode in read_episodes(source.directory, pictures.cameras, progress, index):
            for camera in pictures.cameras:
                height, width = episode.images[camera].shape[1:3]
                if (width, height) != (pictures.width, pictures.height):
                    raise DatasetError(
                        f"{source.directory}: {episode.name}: pictures of '{camera}' are {width}x{height}, the recipe asks for "
                        f"{pictures.width}x{pictures.height}; record them at that size or correct the recipe"
                    )
            episodes.append(episode)
            labels.append((number, episode.task))
    return episodes, labels


def split(count: int, share: float, seed: int) -> tuple[list[int], list[int]]:
    """(training, held-out) episodes, drawn by seed; at least one is held out when there are two and ``share`` > 0."""
    order = np.random.default_rng((seed, 4)).permutation(count).tolist()
    kept = min(count - 1, max(1, round(share * count))) if share else 0
    return sorted(order[kept:]), sorted(order[:kept])


def groups(samples: Samples, labels, sources: Sequence[Source]) -> list[tuple[str, np.ndarray, float]]:
    """(name, samples, share of every epoch) of each group: the tasks, equally; or, where directories have weights, every
    directory by its weight and within it the tasks equally. ``labels``: (number of the source, task) of each episode."""
    weighted = any(source.weight for source in sources)
    keys = [(number if weighted else 0, task) for number, task in labels]
    found, total = [], sum(source.weight for source in sources if weighted) or 1.0
    for number, task in sorted(set(keys)):
        members = np.flatnonzero(np.array([key == (number, task) for key in keys])[samples.episode])
        tasks = len({other for which, other in keys if which == number})
        weight = sources[number].weight / total if weighted else 1.0
        found.append((f"{sources[number].directory} {task}" if weighted else task, members, weight / tasks))
    return found


def epoch(groups: Sequence[tuple[str, np.ndarray, float]], count: int, seed: int, number: int) -> np.ndarray:
    """The samples (count,) of epoch ``number`` in their order; of each group every sample once before any comes again."""
    chosen = []
    for which, (_, members, share) in enumerate(groups):
        wanted = round(share * count)
        turns, places = divmod(np.arange(number * wanted, (number + 1) * wanted), len(members))
        for turn in np.unique(turns):
            order = np.random.default_rng((seed, 6, which, turn)).permutation(members)
            chosen.append(order[places[turns == turn]])
    chosen = np.random.default_rng((seed, 2, number)).permutation(np.concatenate(chosen))
    return np.resize(chosen, count)  # rounding may have left it a sample short or long
