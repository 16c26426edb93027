"""Latency of `predict`, resizing of the camera's pictures included: p50 and p99 in ms of each family, batch and thread count.

    python -m benchmarks.inference_latency models/* --threads 1 2

prints one table and writes it to docs/results/inference_latency.md, with the raw figures in .json beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.results import circumstances, in_words, leave
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import ACTIONS, ChunkPolicy, Observation

WARM_UP = 10


def observation(contract, batch: int, width: int, height: int) -> Observation:
    """Made-up observations: pictures of the size that the robot's cameras deliver, objects on the table."""
    rng = np.random.default_rng(0)
    images = {camera.name: rng.integers(0, 256, (batch, height, width, 3), dtype=np.uint8) for camera in contract.cameras}
    state = np.tile(np.array([0.0, 1.2, -1.1, 0.0, 0.9, 0.0, 0.07] * 2, np.float32), (batch, 1))
    objects = np.tile(np.array([0.25, 0.0, 0.03, 1.0, 0.0, 0.0, 0.0], np.float32), (batch, contract.object_slots, 1))
    return Observation(images, state, [contract.instructions[0]] * batch, objects if contract.object_slots else None)


def effort(policy: ChunkPolicy, steps: int | None) -> str:
    """What one chunk costs the network: denoising steps or tokens."""
    if policy.family == "flow":
        return f"K = {steps or policy.config.denoising_steps}"
    if getattr(policy.config, "head", "tokens") == "regression":
        return "1 pass"
    return f"{policy.config.horizon * ACTIONS} tokens" + (", 1 pass" if policy.family == "parallel" else "")


def latencies_ms(policy: ChunkPolicy, seen: Observation, calls: int, steps: int | None) -> np.ndarray:
    """Wall time of every call."""
    rows, spent = len(seen.state), np.empty(calls)
    for call in range(-WARM_UP, calls):
        began = time.perf_counter()
        policy.predict(seen, seeds=[call + WARM_UP] * rows, steps=steps)
        if call >= 0:
            spent[call] = 1000 * (time.perf_counter() - began)
    return spent


def measured(options) -> list[dict]:
    """One entry for each checkpoint, number of denoising steps, batch and number of threads."""
    rows, size = [], tuple(map(int, options.camera_size.split("x")))
    for directory in options.checkpoints:
        policy, manifest = checkpoint.load(directory)
        for steps in options.denoising_steps or [None] if policy.family == "flow" else [None]:
            for batch in options.batch:
                seen = observation(policy.contract, batch, *size)
                for threads in options.threads:
                    torch.set_num_threads(threads)
                    spent = latencies_ms(policy, seen, options.calls, steps)
                    p50, p99 = np.percentile(spent, [50, 99])
                    rows.append(
                        {
                            "checkpoint": Path(directory).name,
                            "family": policy.family,
                            "parameters": manifest["parameters"],
                            "horizon": policy.config.horizon,
                            "effort": effort(policy, steps),
                            "batch": batch,
                            "threads": threads,
                            "p50_ms": round(float(p50), 2),
                            "p99_ms": round(float(p99), 2),
                        }
                    )
                    print(" ".join(f"{key}={value}" for key, value in rows[-1].items()), file=sys.stderr, flush=True)
    return rows


def table(rows: list[dict], batches, threads) -> str:
    """One line for each checkpoint and effort; a column for each batch and number of threads."""
    columns = [(batch, count) for batch in batches for count in threads]
    heads = [f"B = {batch}, {count} thread{'s' * (count > 1)}" for batch, count in columns]
    names = ["checkpoint", "family", "parameters", "H", "one chunk", *heads]
    lines = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    cells: dict[tuple, dict] = {}
    for row in rows:
        key = (row["checkpoint"], row["family"], f"{row['parameters'] / 1e6:.2f} M", str(row["horizon"]), row["effort"])
        cells.setdefault(key, {})[row["batch"], row["threads"]] = f"{row['p50_ms']:.1f} / {row['p99_ms']:.1f}"
    lines += [f"| {' | '.join([*key, *(found[column] for column in columns)])} |" for key, found in cells.items()]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="checkpoint directories")
    parser.add_argument("--calls", type=int, default=200, help="timed calls of each cell")
    parser.add_argument("--camera-size", default="424x240", help="size of the pictures handed in, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of torch threads")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16], help="observations a call")
    parser.add_argument("--denoising-steps", type=int, nargs="+", help="flow: Euler steps K (default: the checkpoint's own)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/inference_latency"), help="without suffix")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    rows = measured(options)
    head = circumstances("inference_latency", load, calls=options.calls, camera_size=options.camera_size)
    about = (
        f"{in_words(head)}, float32. One `predict` from pictures of {options.camera_size} px to actions in rad and m, "
        f"{options.calls} calls: p50 / p99 in ms. Batches are what evaluation and rollouts use."
    )
    leave(options.out, "Inference latency", about, table(rows, options.batch, options.threads), {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
