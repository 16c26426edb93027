"""Groups of rollouts to learn from: G episodes from one initial state each, every chunk kept with its probability.

    rollouts = collect(envs, policy, exploration, [Group("tape_box", 7, horizons=(5, 10, 15, 5), draw=0)], cameras=(...))
    experience = rollouts.experience(advantages)         # one advantage for every episode; None: its group taught nothing

Episodes run through the robot's own executor (`rollout.play`), under its conditions. A member's horizon is its start's;
the policy predicts all H actions and the first h are executed, or samples a plan of h (`FlowExploration.plans`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Sequence

import numpy as np
import torch

from policytrim_ros.policies.policy import ChunkPolicy, Observation
from policytrim_ros.training.exploration import Trace
from policytrim_ros.training.grpo import Experience
from policytrim_ros.training.rollout import LOOKS_PER_EPISODE, Conditions, EpisodeResult, Start, play, play_together


@dataclass(frozen=True)
class Group:
    """Rollouts of ``task`` in the scene of ``seed``, one for each of ``horizons``. Member i explores by ``draw + i``: members
    that should differ need numbers of their own, in every group of a run."""

    task: str
    seed: int
    horizons: tuple[int, ...]
    draw: int

    def starts(self) -> list[Start]:
        return [Start(self.seed, horizon, draw=self.draw + member) for member, horizon in enumerate(self.horizons)]


@dataclass(frozen=True)
class Rollouts:
    """What came of some groups: results[g][i] of member i of group g; and all chunks with, for each, the number of its
    episode (B,) counted through the groups and which of its actions were executed (B, H)."""

    results: list[list[EpisodeResult]]
    trace: Trace
    episode: np.ndarray
    executed: np.ndarray

    @staticmethod
    def cat(parts: Sequence["Rollouts"]) -> "Rollouts":
        """Groups played apart, one part after another."""
        before = np.cumsum([0, *(sum(map(len, part.results)) for part in parts)])
        return Rollouts(
            [group for part in parts for group in part.results],
            Trace.cat([part.trace for part in parts]),
            np.concatenate([part.episode + first for part, first in zip(parts, before)]),
            np.concatenate([part.executed for part in parts]),
        )

    def ordered(self, numbers: Sequence[int]) -> "Rollouts":
        """The same with the groups in another order: the one that is now i-th becomes the ``numbers[i]``-th."""
        place = np.argsort(numbers)  # where the group is now that comes first, second, ...
        starts = np.cumsum([0, *map(len, self.results)])
        members = np.concatenate([np.arange(starts[i], starts[i + 1]) for i in place])
        return Rollouts([self.results[i] for i in place], self.trace, np.argsort(members)[self.episode], self.executed)

    def to(self, device) -> "Rollouts":
        """The same with its tensors on ``device``."""
        return replace(self, trace=self.trace.to(device))

    def experience(self, advantages: Sequence[np.ndarray | None]) -> Experience | None:
        """The chunks of the groups that have advantages (G,); None when no group has."""
        known = [np.full(len(group), np.nan) if a is None else np.asarray(a) for group, a in zip(self.results, advantages)]
        advantage = np.concatenate(known)[self.episode]
        rows = np.flatnonzero(np.isfinite(advantage) & self.executed.any(axis=1))
        if not len(rows):
            return None
        index = torch.from_numpy(rows)
        device = self.trace.log_prob.device
        return Experience(
            self.trace.rows(index.to(device)),
            torch.from_numpy(self.executed[rows]).to(device),
            torch.from_numpy(advantage[rows].astype(np.float32)).to(device),
        )


def collect(
    envs,
    policy: ChunkPolicy,
    exploration,
    groups: Sequence[Group],
    *,
    cameras: Sequence[str] = (),
    object_slots: int = 0,
    conditions: Conditions = Conditions(),
) -> Rollouts:
    """Plays all members of ``groups``, of one task, in the lanes ``envs`` (or one vector environment) and keeps what the policy drew."""
    traces: list[Trace] = []
    place: dict[int, int] = {}  # seed of a look -> row of all traces

    def look(seen: Observation, seeds: Sequence[int]) -> np.ndarray:
        generators = [torch.Generator(policy.device).manual_seed(int(seed)) for seed in seeds]
        inputs = policy.inputs(seen)
        x, trace = exploration.act(policy, inputs, generators, [horizon[seed // LOOKS_PER_EPISODE] for seed in seeds])
        for seed in seeds:
            place[seed] = len(place)
        traces.append(trace)
        return policy.to_robot(x, inputs.state).cpu().numpy()

    starts = [start for group in groups for start in group.starts()]
    horizon = {start.sampler_seed: start.horizon for start in starts}
    number = {start.sampler_seed: i for i, start in enumerate(starts)}
    if len(number) < len(starts):
        raise ValueError("two members of these groups explore by the same number; give every group draws of its own")
    found: list[EpisodeResult | None] = [None] * len(starts)
    episodes = play_together if hasattr(envs, "num_envs") else play
    for start, result in episodes(envs, starts, look, conditions, cameras=cameras, object_slots=object_slots):
        found[number[start.sampler_seed]] = result
    trace = Trace.cat(traces)
    executed = np.zeros(trace.log_prob.shape, dtype=bool)
    episode = np.zeros(len(trace), dtype=int)
    for i, (start, result) in enumerate(zip(starts, found)):
        for look_number, (_, skipped, played) in enumerate(result.looks):
            row = place[start.sampler_seed * LOOKS_PER_EPISODE + look_number]
            episode[row] = i
            executed[row, skipped : skipped + played] = True
    sizes = np.cumsum([len(group.horizons) for group in groups])[:-1]
    return Rollouts([list(part) for part in np.split(np.array(found, dtype=object), sizes)], trace, episode, executed)
