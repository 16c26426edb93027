"""Latency of `Policy.predict` for one observation, picture resizing included: p50 and p99 in ms, at 1 and 2 threads.

python benchmarks/inference_latency.py models/tape-box-pi0-tiny
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import Observation

WARM_UP = 20


def observation(contract, width: int, height: int) -> Observation:
    """One made-up observation of the size that the robot's cameras deliver."""
    rng = np.random.default_rng(0)
    images = {camera.name: rng.integers(0, 256, (1, height, width, 3), dtype=np.uint8) for camera in contract.cameras}
    state = np.array([[0.0, 1.2, -1.1, 0.0, 0.9, 0.0, 0.07] * 2], np.float32)
    return Observation(images, state, [contract.instructions[0]])


def latencies_ms(policy, seen: Observation, calls: int, steps: int | None) -> np.ndarray:
    for _ in range(WARM_UP):
        policy.predict(seen, seeds=[0], steps=steps)
    spent = np.empty(calls)
    for call in range(calls):
        began = time.perf_counter()
        policy.predict(seen, seeds=[call], steps=steps)
        spent[call] = 1000 * (time.perf_counter() - began)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="checkpoint directory")
    parser.add_argument("--calls", type=int, default=200, help="timed calls of each row")
    parser.add_argument("--camera-size", default="424x240", help="size of the pictures handed in, WIDTHxHEIGHT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="numbers of torch threads")
    parser.add_argument("--denoising-steps", type=int, nargs="+", default=[1, 4, 10], help="Euler steps K")
    arguments = parser.parse_args()
    policy, manifest = checkpoint.load(arguments.checkpoint)
    seen = observation(policy.contract, *map(int, arguments.camera_size.split("x")))
    print(
        f"{arguments.checkpoint}: {manifest['parameters'] / 1e6:.2f} M parameters, "
        f"H = {policy.contract.prediction_horizon}, {arguments.calls} calls"
    )
    print("| threads | K | p50 ms | p99 ms |\n| --- | --- | --- | --- |")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for steps in arguments.denoising_steps:
            spent = latencies_ms(policy, seen, arguments.calls, steps)
            print(f"| {threads} | {steps} | {np.percentile(spent, 50):.1f} | {np.percentile(spent, 99):.1f} |", flush=True)


if __name__ == "__main__":
    main()
