"""Speed of evaluation: lanes, batches and processes against a plain loop over one environment, with one and the same policy.

    python -m benchmarks.evaluation [models/piper-state-tiny models/piper-pi0-tiny] [--episodes 16]

The plain loop is what one writes first: one environment, rendered at every control step, the policy asked for one
observation at a time. Everything else is `policytrim eval` with so many processes and lanes. All play the same seeds, h = 5,
after a warm-up; the cells of a table are measured in turn, in --rounds rounds, and the fastest round counts.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import torch

from benchmarks.results import circumstances, in_words, leave
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.objects import object_poses
from policytrim_ros.policies.policy import Observation
from policytrim_ros.training.evaluate import Bench, Workers
from policytrim_ros.training.recipe import Evaluation, Pictures, factory
from policytrim_ros.training.rollout import outcome_of

ROOT = Path(__file__).resolve().parents[1]
HORIZON = 5
CELLS = ((1, 1), (1, 4), (1, 16), (2, 8))
"""(processes, lanes)."""

SIZE = (212, 120)


class PlainLoop:
    """One environment, one observation at a time, pictures at every step."""

    def __init__(self, directory, bench: Bench):
        self.policy = checkpoint.load(directory)[0]
        self.cameras = tuple(camera.name for camera in self.policy.contract.cameras)
        self.env = factory(bench.environment)("tape_box", cameras=self.cameras, image_size=SIZE)

    def episodes(self, seeds):
        for seed in seeds:
            self.env.reset(seed)
            steps = over = 0
            while not over:
                actions = None
                for k in range(HORIZON):
                    images = self.env.images(self.cameras) if self.cameras else {}
                    actions = self._predict(images, seed) if actions is None else actions
                    result = self.env.step(actions[k])
                    steps += 1
                    if over := bool(outcome_of(result)):
                        break
            yield steps

    def _predict(self, images, seed):
        slots = self.policy.contract.object_slots
        objects = object_poses(self.env.objects(), slots)[None] if slots else None
        state, told = self.env.proprioception()[None], [self.env.instruction]
        return self.policy.predict(Observation({n: p[None] for n, p in images.items()}, state, told, objects), seeds=[seed])[0]


def measure(directory, episodes: int, rounds: int) -> list[dict]:
    """Rows of one table: episodes/s and control steps/s of the plain loop and of every cell."""
    cameras = tuple(camera.name for camera in checkpoint.contract_of(checkpoint.read_manifest(directory)).cameras)
    pictures = Pictures(cameras=cameras, camera_width=SIZE[0], camera_height=SIZE[1])
    seeds, row = list(range(1_000_000, 1_000_000 + episodes)), Evaluation(horizon=HORIZON)
    plain = PlainLoop(directory, Bench(pictures=pictures))
    ways = {"plain loop": plain.episodes}
    workers = []
    for processes, lanes in CELLS:
        worker = Workers(Bench(pictures=pictures, processes=processes, lanes=lanes))
        workers.append(worker)
        name = f"{processes} process{'es' * (processes > 1)}, {lanes} lane{'s' * (lanes > 1)} each"
        ways[name] = lambda seeds, worker=worker: (e.control_steps for e in worker.episodes(str(directory), row, seeds))
    best: dict[str, dict] = {}
    try:
        for name, play in ways.items():
            list(play(seeds[:1]))  # builds environments, loads the policy
        for _ in range(rounds):
            for name, play in ways.items():
                began = time.perf_counter()
                steps = sum(play(seeds))
                took = time.perf_counter() - began
                rates = {
                    "way": name,
                    "steps": steps,
                    "seconds": took,
                    "episodes_per_s": episodes / took,
                    "steps_per_s": steps / took,
                }
                if name not in best or rates["steps_per_s"] > best[name]["steps_per_s"]:
                    best[name] = rates
                print(f"{name}: {steps} steps in {took:.1f} s", file=sys.stderr)
    finally:
        for worker in workers:
            worker.close()
    for rates in best.values():
        rates["ratio"] = rates["steps_per_s"] / best["plain loop"]["steps_per_s"]
    return list(best.values())


def table(tables: dict[str, list[dict]]) -> str:
    lines = ["| policy | way | episodes/s | control steps/s | against the plain loop |", "| --- | --- | --- | --- | --- |"]
    for policy, rows in tables.items():
        for r in rows:
            lines.append(f"| {policy} | {r['way']} | {r['episodes_per_s']:.2f} | {r['steps_per_s']:.0f} | {r['ratio']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [ROOT / "models" / name for name in ("piper-state-tiny", "piper-pi0-tiny")]
    parser.add_argument("checkpoints", nargs="*", type=Path, default=default, help="default: the two baselines")
    parser.add_argument("--episodes", type=int, default=16, help="episodes in every cell (default 16)")
    parser.add_argument("--rounds", type=int, default=2, help="rounds; the fastest counts (default 2)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "results" / "evaluation_speed", help="results, without suffix"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    tables = {path.name: measure(path, options.episodes, options.rounds) for path in options.checkpoints}
    head = circumstances("evaluation", load, episodes=options.episodes, rounds=options.rounds)
    about = (
        f"{in_words(head)}. TapeBox, h = {HORIZON}, {options.episodes} episodes a cell, the fastest of {options.rounds} rounds, pictures "
        f"{SIZE[0]}x{SIZE[1]}. Rates fall with whatever else runs; ratios are from one run."
    )
    leave(options.out, "Speed of evaluation", about, table(tables), {**head, "tables": tables})
    return 0


if __name__ == "__main__":
    sys.exit(main())
