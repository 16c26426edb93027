"""Speed of the rollouts that trimming learns from, and of the update: over processes, and over two Ray workers of this machine.

    python -m benchmarks.rollouts [config/trim_tape_box_state.yaml config/trim_tape_box.yaml config/metaworld_trim.yaml]

Each recipe's baseline explores as the recipe says, at the recipe's horizon, in groups of eight from one scene each; all ways play
the same groups, once before it counts, to build environments and processes. They take turns, and the fastest of --rounds counts. The update is the
recipe's own, on what was played. Ray is left out, and said so, where it is not installed. Writes docs/results/rollouts.md and .json.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib.util
import os
import pstats
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.policies import checkpoint
from policytrim_ros.training.exploration import explore
from policytrim_ros.training.fleet import Fleet, Grounds, Worker
from policytrim_ros.training.groups import Group
from policytrim_ros.training.grpo import Optimizer
from policytrim_ros.training.trim_recipe import load_trim

ROOT = Path(__file__).resolve().parents[1]
RECIPES = [ROOT / "config" / f"{name}.yaml" for name in ("trim_tape_box_state", "trim_tape_box", "metaworld_trim")]
WAYS = {"this process": dict(processes=1), "2 processes": dict(processes=2), "2 Ray workers": dict(processes=2, ray="local")}
MEMBERS, FIRST_SEED, LIMIT = 8, 2_000_000, 300
HEAD = ("recipe", "way", "control steps/s", "rollouts/s", "against one process", "memory of this process and its workers, MB")


class Ground:
    """A recipe's baseline, exploration and groups."""

    def __init__(self, path: Path, groups: int, lanes: int):
        self.recipe = load_trim(path)
        self.policy, _ = checkpoint.load(self.recipe.parent)
        contract = self.policy.contract
        self.tasks = self.recipe.tasks or contract.tasks
        self.exploration = explore(self.policy, self.recipe.sampler, self.recipe.temperature, self.recipe.frozen_prefix)
        learning = self.exploration.parameters(self.policy)
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(name in learning)
        horizon = self.recipe.horizon or contract.execution_horizon
        tasks = [self.tasks[i % len(self.tasks)] for i in range(groups)]
        self.groups = [Group(task, FIRST_SEED + i, (horizon,) * MEMBERS, draw=MEMBERS * i) for i, task in enumerate(tasks)]
        size = self.recipe.camera_width, self.recipe.camera_height
        self.grounds = Grounds(self.recipe.environment, self.recipe.task_setting, size, lanes, mode=self.recipe.mode,
                               latency_s=self.recipe.latency_s)  # fmt: skip
        self.limits = dict.fromkeys(self.tasks, LIMIT)

    def play(self, fleet: Fleet):
        """(seconds, rollouts) of all groups."""
        began = time.perf_counter()
        rollouts = fleet.collect(self.groups, self.limits)
        return time.perf_counter() - began, rollouts

    def update(self, rollouts) -> float:
        """Seconds of one update; the baseline's weights are put back."""
        before = {name: tensor.clone() for name, tensor in self.policy.state_dict().items()}
        advantages = [np.linspace(-1, 1, len(results)) for results in rollouts.results]
        began = time.perf_counter()
        Optimizer(self.policy, self.exploration, self.recipe.grpo).update(rollouts.experience(advantages), np.random.default_rng(0))
        took = time.perf_counter() - began
        self.policy.load_state_dict(before)
        return took

    def profile(self) -> dict[str, float]:
        """Share of the rollouts' CPU time, of one process, spent in the environment's step, its pictures and the policy."""
        worker = Worker(self.grounds, self.policy, self.exploration)
        worker.collect(self.groups, self.limits)
        profiler = cProfile.Profile(time.process_time)
        profiler.runcall(worker.collect, self.groups, self.limits)
        spent = pstats.Stats(profiler).stats
        whole = sum(own for _, _, own, _, _ in spent.values())

        def within(file: str, *functions: str) -> float:
            return sum(row[3] for (path, _, name), row in spent.items() if path.endswith(file) and name in functions) / whole

        environment = self.recipe.environment.partition(":")[0].replace(".", "/") + ".py"
        return {
            "environment's step": within(environment, "step"),
            "pictures": within(environment, "images"),
            "reset": within(environment, "reset", "restore"),
            "policy": within("training/exploration.py", "act"),
        }


def resident_mb() -> float:
    """Resident memory of this process and all below it, shared pages counted in each."""
    parents, pages = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)], pages[int(entry.name)] = int(fields[1]), int(fields[21])

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and parents[pid] > 0 and ours(parents[pid]))

    return sum(count for pid, count in pages.items() if ours(pid)) * resource.getpagesize() / 2**20


def measure(path: Path, options) -> dict:
    ground, best, fleets = Ground(path, options.groups, options.lanes), {}, {}
    try:
        for way, how in WAYS.items():
            if "ray" in how and importlib.util.find_spec("ray") is None:
                print(f"{way}: not measured, Ray is not installed (pip install 'policytrim_ros[ray]')", file=sys.stderr)
                continue
            before = resident_mb()
            fleet = fleets[way] = Fleet(ground.grounds, ground.policy, ground.exploration, **how)
            ground.play(fleet)  # builds the environments of every task
            best[way] = {"memory_mb": resident_mb() - (before if len(fleets) > 1 else 0.0)}
        updates = []
        for _ in range(options.rounds):
            for way, fleet in fleets.items():
                seconds, rollouts = ground.play(fleet)
                steps = sum(result.steps for group in rollouts.results for result in group)
                print(f"{path.stem}, {way}: {steps} steps in {seconds:.1f} s", file=sys.stderr)
                if seconds < best[way].get("seconds", np.inf):
                    best[way] |= {"seconds": seconds, "steps": steps, "rollouts": MEMBERS * len(ground.groups)}
            updates.append(ground.update(rollouts))
    finally:
        for fleet in fleets.values():
            fleet.close()
    return {"ways": best, "update_s": min(updates), "chunks": len(rollouts.trace), "profile": ground.profile()}


def table(found: dict[str, dict]) -> str:
    rows = []
    for name, figures in found.items():
        alone = figures["ways"]["this process"]["seconds"]
        for way, r in figures["ways"].items():
            rates = f"{r['steps'] / r['seconds']:.0f}", f"{r['rollouts'] / r['seconds']:.2f}", f"{alone / r['seconds']:.2f}"
            rows.append((name, way, *rates, f"{r['memory_mb']:.0f}"))
    second = [
        (name, f["chunks"], f"{f['update_s']:.1f}", *(f"{100 * share:.0f} %" for share in f["profile"].values()))
        for name, f in found.items()
    ]
    head = ("recipe", "chunks", "update, s", *(f"rollouts: {what}" for what in next(iter(found.values()))["profile"]))
    return f"{markdown(HEAD, rows)}\n\n{markdown(head, second)}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", type=Path, default=RECIPES, help="recipes of trimming (default: three)")
    parser.add_argument("--groups", type=int, default=6, help="groups of eight rollouts (6)")
    parser.add_argument("--lanes", type=int, default=16, help="environments of every worker (16)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the fastest counts (2)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "rollouts", help="results, without suffix")
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = {path.stem: measure(path, options) for path in options.recipes}
    head = circumstances("rollouts", load, groups=options.groups, lanes=options.lanes, rounds=options.rounds)
    about = (
        f"{in_words(head)}. {options.groups} groups of {MEMBERS} rollouts by the baseline, {options.lanes} environments a worker, the fastest of "
        f"{options.rounds} rounds; one torch thread in every process. The shares are of the processor time of rollouts in one process, under "
        "a profiler. Rates fall with whatever else runs; ratios are from one run."
    )
    leave(options.out, "Speed of rollouts and update", about, table(found), {**head, "recipes": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
