"""What real-time chunking changes: sync, async and rtc in the same scenes, at several latencies of inference.

    python -m benchmarks.rtc                    # finished rows are kept in docs/results/rtc.json and not played again

Episodes in virtual time through the robot's executor, as `policytrim eval` plays them. Seam: how far the first action that a new chunk
plays lies from what the chunk before said about that control step (largest joint, mean over chunks and episodes), that is how far the
path jumps; where the chunk before says nothing about that step there is none. The latency is the same in all modes, though guidance makes
a prediction slower, as the second table says: for one policy on one machine compare async with rtc at about twice its latency. An
episode ends after 22.5 s, which the rests of sync with h = 5 use up. Writes docs/results/rtc.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.inference_latency import observation
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core.commitment import Commitment
from policytrim_ros.core.replanning import MODES
from policytrim_ros.policies import checkpoint
from policytrim_ros.training import evaluate
from policytrim_ros.training.recipe import Evaluation

POLICIES = (
    ("models/piper-pi0-tiny", "tape_box", 5),
    ("models/piper-pi0-tiny", "flip_mug", 5),
    ("models/tape-box-pi0-trimmed", "tape_box", 15),
)
LATENCIES_S = (0.2, 0.34, 0.1)
SIZE = 424, 240
CERTAIN = 3
"""Actions that are certain where one prediction is timed; the time does not depend on it."""

HEAD = ("policy", "task", "h", "latency", "mode", "success", "S of successes", "seam, rad", "rests, s", "held", "rtc : async")
COST = ("policy", "async, ms", "rtc, ms", "ratio")


def cost(directory: str, calls: int) -> dict:
    """Seconds of one prediction, batch 1 and one thread, with and without a plan in turn: medians, and of their ratios."""
    policy, _ = checkpoint.load(directory)
    seen = observation(policy.contract, 1, *SIZE)
    guided = replace(seen, committed=[Commitment(policy.predict(seen, seeds=[0])[0, 5:], CERTAIN)])
    spent = np.empty((calls, 2))
    for call in range(-3, calls):
        for which, one in enumerate((seen, guided)):
            began = time.perf_counter()
            policy.predict(one, seeds=[call + 3])
            if call >= 0:
                spent[call, which] = time.perf_counter() - began
    plain_s, guided_s = np.median(spent, axis=0)
    ratio = float(np.median(spent[:, 1] / spent[:, 0]))
    return {"checkpoint": Path(directory).name, "async_s": float(plain_s), "rtc_s": float(guided_s), "ratio": ratio}


def played(kept: list[dict], episodes: int, lanes: int, latencies: list[float]):
    """The report of every row, from ``kept`` where it is there already."""
    bench = evaluate.Bench(lanes=lanes)
    workers = evaluate.Workers(bench)
    for latency_s in latencies:
        for directory, task, horizon in POLICIES:
            manifest = checkpoint.read_manifest(directory)
            for mode in reversed(MODES):  # the pair that is compared comes first
                row = Evaluation(task, "standard", episodes, horizon, mode, latency_s)
                key = evaluate.identity(row, bench, manifest)
                known = [report for report in kept if evaluate.same(report, key)]
                yield known[0] if known else evaluate.evaluate(directory, row, bench, workers=workers)
    workers.close()


def seam_rad(report: dict) -> float | None:
    """Mean over the episodes that have one."""
    seams = [episode["seam_rad"] for episode in report["episodes_list"] if episode["seam_rad"] is not None]
    return float(np.mean(seams)) if seams else None


def beside(report: dict, other: dict) -> str:
    """Scenes in which only ``report`` succeeds, and only ``other``."""
    one, two = ({e["seed"] for e in r["episodes_list"] if e["outcome"] == "success"} for r in (report, other))
    return f"{len(one - two)} : {len(two - one)}"


def line(report: dict, reports: list[dict]) -> tuple:
    """A row of the table."""
    low, high = report["success_interval"]
    steps, seam = report["steps_success"], seam_rad(report)
    same = ("checkpoint", "task", "latency_s", "horizon")
    pair = [r for r in reports if r["mode"] == "async" and all(r[name] == report[name] for name in same)]
    return (
        report["checkpoint"], report["task"], report["horizon"], f"{1000 * report['latency_s']:.0f} ms", report["mode"],
        f"{report['successes']}/{report['n']} [{100 * low:.0f}, {100 * high:.0f}] %", f"{steps[0]:.0f}" if steps else "-",
        "-" if seam is None else f"{seam:.4f}", f"{report['stalled_all'][0]:.1f}",
        sum(bool(episode["held"]) for episode in report["episodes_list"]),
        beside(report, pair[0]) if report["mode"] == "rtc" and pair else "",
    )  # fmt: skip


def together(reports: list[dict]) -> str:
    """All rows of a mode as one sentence."""
    words = []
    for mode in MODES:
        rows = [report for report in reports if report["mode"] == mode]
        won, n = sum(r["successes"] for r in rows), sum(r["n"] for r in rows)
        if n:
            words.append(f"{mode} {won}/{n}")
    return ", ".join(words)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=24, help="scenes of each row (24)")
    parser.add_argument("--lanes", type=int, default=8, help="simulators (8)")
    parser.add_argument("--latency", type=float, nargs="+", default=LATENCIES_S, help="seconds from look to chunk (0.2 0.34 0.1)")
    parser.add_argument("--calls", type=int, default=60, help="timed predictions of each policy and mode (60)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/rtc"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    head = circumstances("rtc", os.getloadavg()[0], episodes=options.episodes, first_seed=evaluate.FIRST_SEED)
    old = options.out.with_suffix(".json")
    kept = json.loads(old.read_bytes())["rows"] if old.exists() else []
    costs = [cost(directory, options.calls) for directory in dict.fromkeys(policy[0] for policy in POLICIES)]
    prices = [
        (found["checkpoint"], f"{1000 * found['async_s']:.0f}", f"{1000 * found['rtc_s']:.0f}", f"{found['ratio']:.1f}")
        for found in costs
    ]
    reports: list[dict] = []
    for report in played(kept, options.episodes, options.lanes, list(options.latency)):
        reports.append(report)
        reports.sort(key=lambda r: (r["checkpoint"], r["task"], r["latency_s"], MODES.index(r["mode"])))
        about = (
            f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}, {options.episodes} scenes a row, seeds from "
            f"{evaluate.FIRST_SEED}, the same in every row; success with its Wilson interval (95 %); held: the controller would "
            "have held the arm; rtc : async: scenes in which only one of the two succeeds; rests: after the first action, mean over "
            f"all episodes. Rows together: {together(reports)} (the same scenes at several latencies: not independent, so no interval)."
        )
        table = markdown(HEAD, [line(report, reports) for report in reports])
        second = f"One prediction, batch 1, one thread, medians of {options.calls} calls in turn:\n\n{markdown(COST, prices)}"
        leave(options.out, "Real-time chunking", about, f"{table}\n\n{second}", {**head, "costs": costs, "rows": reports})
    return 0


if __name__ == "__main__":
    sys.exit(main())
