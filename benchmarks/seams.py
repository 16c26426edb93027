"""What an arm feels of its policy: rests, pauses between chunks and jerk at their seams, for several latencies of inference.

    python -m benchmarks.seams

No robot and no network: chunks of a policy that wants to follow a smooth path and errs more the further it looks ahead (its
error is drawn anew for every chunk), played by the controller's executor and safety filter at 100 setpoints a second on a
virtual clock. Latencies vary by a log-normal factor (sigma 0.15). The broker is the loop of most peers today: play the
chunk to its end, rest, look again (mode sync). Writes docs/results/seams.md and .json.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core.executor import ChunkExecutor
from policytrim_ros.core.replanning import Replanner
from policytrim_ros.core.safety import SafetyFilter, SafetyLimits
from policytrim_ros.core.types import READY, Chunk

RATE_HZ, SETPOINTS_HZ, H = 20.0, 100.0, 15
LATENCIES_S = (0.02, 0.09, 0.2, 0.34)
ARMS = (
    ("broker, h = 5", "sync", 5),
    ("broker, h = 15", "sync", 15),
    ("async, h = 5", "async", 5),
    ("async, h = 10", "async", 10),
)
ERROR_RAD = 0.02
"""Standard deviation of a chunk's error at its far end; it grows from zero, since a chunk begins at the setpoint."""

NEAR_S = 0.1
"""So long after a seam its jerk is counted as the seam's."""

HEAD = (
    "loop",
    "latency",
    "calls",
    "rests, s a minute",
    "pauses p50 / p99, ticks",
    "jerk at seams / elsewhere, rad/s3",
    "chunk age p95, ms",
)


def path(steps: np.ndarray) -> np.ndarray:
    """Where the policy wants the arm at the ends of control steps (n,): (n, 7) rad, m."""
    t = np.asarray(steps)[:, None] / RATE_HZ
    swing = 0.4 * np.sin(2 * np.pi * t * np.array([0.10, 0.13, 0.17, 0.19, 0.23, 0.29])) * np.array([1, 0.5, 0.5, 0.5, 0.5, 0.5])
    return np.concatenate([np.array(READY)[:6] + swing, np.full((len(t), 1), 0.05)], axis=1)


def play(mode: str, horizon: int, latency_s: float, seconds: float, seed: int = 0) -> dict:
    """Figures of one loop."""
    rng = np.random.default_rng(seed)
    executor, replanner = ChunkExecutor(RATE_HZ), Replanner(mode, horizon, RATE_HZ)
    guard = SafetyFilter(SafetyLimits())
    start = path(np.array([0]))[0]
    executor.start(start, 0.0)
    guard.reset(start)
    dt, coming, latencies, began = 1 / SETPOINTS_HZ, None, [latency_s], 0.0
    velocities, seams, pauses, rest, ages, looked_at, playing = [], [], [], 0, [], {}, None  # looked_at: chunk -> s
    for tick in range(round(seconds * SETPOINTS_HZ)):
        now = tick * dt
        if coming and now >= coming[0]:
            executor.accept(coming[1])
            coming = None
        before = executor.next_step
        point = executor.tick(now)
        if point.next_step != before:
            began = now
            if point.chunk_id != playing:
                seams.append(tick)
                pauses.append(rest)
                playing = point.chunk_id
            rest = 0
            ages.append(now - looked_at[playing])
        elif not point.playing and playing:
            rest += 1
        velocities.append(guard.step(point.position, point.velocity, dt).velocity[:6])
        p99 = float(np.percentile(latencies[-200:], 99))
        if coming is None and replanner.turn(point.next_step, point.queued, point.playing, p99, now):
            first = replanner.first(point.next_step, point.playing, now - began)
            count = replanner.trim(H, p99)
            ahead = np.arange(1, count + 1)
            error = rng.normal(0, ERROR_RAD, 7) * np.append(np.ones(6), 0) * (ahead[:, None] / H)
            latency = latency_s * float(np.exp(rng.normal(0, 0.15)))
            latencies.append(latency)
            number = len(looked_at) + 1
            looked_at[number] = now
            replanner.sent(first, count, now)
            coming = now + latency, Chunk(path(first + ahead) + error, 1, number, first)
    jerk = np.abs(np.diff(velocities, n=2, axis=0)).max(axis=1) / dt**2
    near = np.zeros(len(jerk), bool)
    for seam in seams[1:]:
        near[max(0, seam - 1) : seam + round(NEAR_S * SETPOINTS_HZ)] = True
    return {
        "calls": len(looked_at),
        "rests_s_per_minute": 60 * executor.stall_s / seconds,
        "pause_p50_ticks": float(np.percentile(pauses[1:], 50)),
        "pause_p99_ticks": float(np.percentile(pauses[1:], 99)),
        "jerk_seams": float(jerk[near].mean()),
        "jerk_elsewhere": float(jerk[~near].mean()) if (~near).any() else float("nan"),
        "largest_acceleration_of_limit": float(
            (np.abs(np.diff(velocities, axis=0)) / dt / np.array(SafetyLimits().a_max)[:6]).max()
        ),
        "chunk_age_p95_ms": 1000 * float(np.percentile(ages, 95)),
    }


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="virtual seconds of each loop (300)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/seams"))
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    rows, table = [], []
    for latency_s in LATENCIES_S:
        for name, mode, horizon in ARMS:
            found = play(mode, horizon, latency_s, options.seconds)
            rows.append({"loop": name, "latency_s": latency_s, **found})
            table.append((
                name, f"{1000 * latency_s:.0f} ms", found["calls"], f"{found['rests_s_per_minute']:.1f}",
                f"{found['pause_p50_ticks']:.0f} / {found['pause_p99_ticks']:.0f}",
                f"{found['jerk_seams']:.0f} / {found['jerk_elsewhere']:.0f}", f"{found['chunk_age_p95_ms']:.0f}",
            ))  # fmt: skip
    head = circumstances("seams", load, seconds=options.seconds, seed=0)
    about = (
        f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}, {options.seconds:g} virtual seconds a row, seed 0. A tick is 10 ms. "
        "Chunk age: from the look to the end of an action's control step. No setpoint asked for more than the acceleration limit: at most "
        f"{max(row['largest_acceleration_of_limit'] for row in rows):.2f} of it."
    )
    leave(options.out, "Rests and seams", about, markdown(HEAD, table), {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
