"""Speed and memory of supervised fine-tuning: samples/s, ms a step and peak memory for each recipe, threads and accumulation.

    python -m benchmarks.sft config/sft_piper.yaml config/sft_state.yaml --threads 1 2 --accumulate 1 4

prints one table and writes it to docs/results/sft.md, with the raw figures in .json beside it. Every cell is a process of
its own, so that its peak memory is its own. Demonstrations are made up (noise of the recipe's sizes) unless --real.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import circumstances, in_words, leave
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.types import READY
from policytrim_ros.policies.objects import OBJECT_SLOTS
from policytrim_ros.training import mixture
from policytrim_ros.training.demos import DatasetError, Episode
from policytrim_ros.training.recipe import Recipe, Source, load_recipe
from policytrim_ros.training.sft import Trainer, memory_mb

WARM_UP = 5
EPISODES, STEPS = 12, 150


def made_up(recipe: Recipe) -> mixture.Mixture:
    """Demonstrations of noise, sized as the recipe's."""
    rng, pictures = np.random.default_rng(0), recipe.pictures
    episodes = []
    for number in range(EPISODES):
        taken = np.arange(0, STEPS, pictures.every, dtype=np.int32)
        shape = (len(taken), pictures.height, pictures.width, 3)
        objects = np.tile(np.array([0.25, 0.0, 0.03, 1.0, 0.0, 0.0, 0.0], np.float32), (STEPS, OBJECT_SLOTS, 1))
        objects[..., :3] += rng.normal(0, 0.05, (STEPS, OBJECT_SLOTS, 3))
        path = READY + np.cumsum(rng.normal(0, 0.01, (STEPS + recipe.network.horizon, 7)), axis=0)
        episodes.append(
            Episode(
                f"noise-{number}",
                "put the tape into the box",
                "tape_box",
                {name: rng.integers(0, 256, shape, dtype=np.uint8) for name in pictures.cameras},
                taken,
                np.concatenate([path[:STEPS], path[:STEPS]], axis=1).astype(np.float32),
                path.astype(np.float32),
                objects,
            )
        )
    return mixture.mix(episodes, [(0, "tape_box")] * EPISODES, (Source("noise"),), recipe, "noise")


def cell(path: str, threads: int, accumulate: int, options) -> dict:
    """Trains a few steps and says how long they took."""
    torch.set_num_threads(threads)
    recipe = load_recipe(path)
    recipe = replace(recipe, training=replace(recipe.training, accumulate=accumulate))
    data = mixture.load(recipe) if options.real else made_up(recipe)
    trainer = Trainer(recipe, data, "unused", progress=False, device=options.device)
    with_data = memory_mb(torch.device("cpu"))
    spent, making = np.empty(options.steps), np.empty(options.steps)
    for step in range(-WARM_UP, options.steps):
        began = time.perf_counter()
        for _, batch, _ in trainer.my_pieces():
            batch.pixels()
        made = time.perf_counter()
        trainer.train_step()
        if step >= 0:
            making[step], spent[step] = made - began, time.perf_counter() - made
    p50, p99 = np.percentile(1000 * spent, [50, 99])
    return {
        "recipe": Path(path).stem,
        "family": recipe.family,
        "parameters": sum(parameter.numel() for parameter in trainer.policy.parameters()),
        "trained": sum(parameter.numel() for parameter in trainer.trained.values()),
        "device": trainer.device.type,
        "precision": "bfloat16" if trainer.bfloat16 else "float32",
        "threads": threads,
        "batch": recipe.training.batch,
        "pieces": trainer.pieces,
        "step_p50_ms": round(float(p50), 1),
        "step_p99_ms": round(float(p99), 1),
        "batch_making_ms": round(float(np.median(1000 * making)), 2),
        "samples_per_s": round(recipe.training.batch / (p50 / 1000), 1),
        "memory_before_mb": round(with_data),
        "memory_peak_mb": round(memory_mb(torch.device("cpu"))),
        "gpu_peak_mb": round(memory_mb(trainer.device)) if trainer.device.type == "cuda" else None,
    }


def measured(options) -> list[dict]:
    """One entry for each recipe, number of threads and accumulation."""
    rows = []
    for path in options.recipes:
        for threads in options.threads:
            for accumulate in options.accumulate:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    rows.append(pool.apply(cell, (path, threads, accumulate, options)))
                print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict]) -> str:
    """One line a cell."""
    names = ["recipe", "parameters", "device", "threads", "batch", "samples/s", "ms a step, p50 / p99", "of which the batch"]
    names += ["peak memory, MB", "of which training, MB"]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for row in rows:
        share = f" ({100 * row['trained'] / row['parameters']:.1f} % trained)" if row["trained"] < row["parameters"] else ""
        gpu = f" + {row['gpu_peak_mb']} of the GPU" if row["gpu_peak_mb"] is not None else ""
        cells = [
            f"{row['recipe']} ({row['family']})",
            f"{row['parameters'] / 1e6:.2f} M{share}",
            f"{row['device']}, {row['precision']}",
            row["threads"],
            f"{row['batch']} in {row['pieces']}" if row["pieces"] > 1 else row["batch"],
            f"{row['samples_per_s']:.0f}",
            f"{row['step_p50_ms']:.0f} / {row['step_p99_ms']:.0f}",
            f"{row['batch_making_ms']:.1f} ms",
            f"{row['memory_peak_mb']}{gpu}",
            row["memory_peak_mb"] - row["memory_before_mb"],
        ]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="recipe files")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of torch threads")
    parser.add_argument("--accumulate", type=int, nargs="+", default=[1, 4], help="pieces of a batch")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each cell")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument("--real", action="store_true", help="use the recipe's demonstrations")
    parser.add_argument("--out", type=Path, default=Path("docs/results/sft"), help="without suffix")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    try:
        rows = measured(options)
    except (ConfigError, DatasetError) as error:
        print(f"sft: {error}", file=sys.stderr)
        return 1
    data = "the recipes' demonstrations" if options.real else "made up"
    head = circumstances("sft", load, data=data, steps=options.steps)
    about = (
        f"{in_words(head)}; demonstrations: {data}. {options.steps} steps of each cell after {WARM_UP}: forward and "
        "backward pass, optimiser, average. Making the batch (pictures, augmentation, pixels) is part of a step."
    )
    leave(options.out, "Supervised fine-tuning", about, table(rows), {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
