"""What one chunk costs in the controller beside the arm: unpack the message, accept it, tick and filter its setpoints.

python benchmarks/executor_overhead.py
"""

import time

import numpy as np
from builtin_interfaces.msg import Time

from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.nodes.messages import chunk_from_message, chunk_to_message


def timed(function, repeats=2000):
    samples = np.empty(repeats)
    for i in range(repeats):
        began = time.perf_counter()
        function()
        samples[i] = time.perf_counter() - began
    return np.percentile(samples * 1e6, [50, 99])


def main():
    ready = np.array(READY)
    message = chunk_to_message(Chunk(np.tile(ready, (15, 1)), 1, 1, 0), Time())
    executor = ChunkExecutor()
    executor.start(ready, 0.0)
    safety = SafetyFilter(SafetyLimits())
    safety.reset(ready)
    clock = iter(np.arange(0.0, 1e6, 0.01))
    chunk = Chunk(np.tile(ready, (15, 1)), 1, 1, 10**9)

    def accept():
        object.__setattr__(chunk, "first", executor.next_step)
        executor.accept(chunk)

    goal = ready + np.array([0.3, 0, 0, 0, 0, 0, 0])
    rows = [
        ("unpack a chunk of 15 actions", timed(lambda: chunk_from_message(message))),
        ("accept it", timed(accept)),
        ("tick the path once", timed(lambda: executor.tick(next(clock)))),
        ("filter one setpoint", timed(lambda: safety.step(goal, np.zeros(7), 0.01))),
    ]
    print("| step | p50 us | p99 us |\n| --- | --- | --- |")
    for name, (p50, p99) in rows:
        print(f"| {name} | {p50:.0f} | {p99:.0f} |")


if __name__ == "__main__":
    main()
