"""What trimming gained, beside the paper's figures: one table of finished runs of `policytrim train trim`.

    python -m benchmarks.trimming docs/results/trimming/* runs/mine --latency 0.09

writes docs/results/trimming_table.md and, of every new run, its raw episodes, page and curves to docs/results/trimming/.
The seconds of an episode are N x latency + S x control step, as on an arm that waits while the policy thinks; of a run that was
trimmed asynchronously, S x control step.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from benchmarks.results import markdown
from policytrim_ros.core.replanning import ASYNC
from policytrim_ros.core.types import CONTROL_RATE_HZ
from policytrim_ros.files import replace_file
from policytrim_ros.training.evaluate import read_reports
from policytrim_ros.training.evidence import judge
from policytrim_ros.training.version import commit

MARGIN, CONFIDENCE = 0.05, 0.95
KEPT = ("evidence.json", "evidence.md", "learning.png", "baseline.json")
HEAD = ("run", "task", "n", "h", "SR %", "S", "S saved", "N", "fewer calls", "seconds", "speedup")
REPORTED = {
    "pi0.5, LIBERO Spatial": ("libero", "pi05", "spatial"),
    "pi0.5, LIBERO Object": ("libero", "pi05", "object"),
    "pi0.5, LIBERO Goal": ("libero", "pi05", "goal"),
    "pi0.5, LIBERO Long": ("libero", "pi05", "long"),
    "pi0.5, ManiSkill": ("maniskill", "pi05"),
    "pi0.5, Meta-World": ("metaworld", "pi05"),
    "OpenVLA-OFT, LIBERO Spatial": ("libero", "openvla_oft", "spatial"),
    "OpenVLA-OFT, LIBERO Object": ("libero", "openvla_oft", "object"),
    "OpenVLA-OFT, LIBERO Goal": ("libero", "openvla_oft", "goal"),
    "OpenVLA-OFT, LIBERO Long": ("libero", "openvla_oft", "long"),
    "OpenVLA-OFT, ManiSkill": ("maniskill", "openvla_oft"),
}
"""Rows of the paper (arXiv 2606.22540) that stand beside ours: where they are in reported.json."""


def line(policy: str, task: str, n, horizons, rates, steps, calls, latency_s: float) -> tuple:
    """One row; every pair is (before, after)."""
    seconds = [n_calls * latency_s + s / CONTROL_RATE_HZ for n_calls, s in zip(calls, steps)]
    return (
        policy,
        task,
        str(n),
        "{} -> {}".format(*horizons),
        "{} -> {}".format(*rates),
        "{:.0f} -> {:.0f}".format(*steps),
        f"{100 * (1 - steps[1] / steps[0]):.0f} %",
        "{:.1f} -> {:.1f}".format(*calls),
        f"{calls[0] / calls[1]:.2f} x",
        "{:.1f} -> {:.1f}".format(*seconds),
        f"{seconds[0] / seconds[1]:.2f} x",
    )


def ours(run: Path, latency_s: float) -> list[tuple]:
    """Rows of one run: its tasks, and all together. S and N: pairs in which both succeed."""
    reports = read_reports(run / "evidence.json") if (run / "evidence.json").exists() else []
    baseline = reports[0]["weights_sha256"] if reports else ""  # it is played first
    before = [r for r in reports if r["weights_sha256"] == baseline]
    after = [r for r in reports if r["weights_sha256"] != baseline]
    if len(before) != len(after) or not after:
        raise SystemExit(f"{run}: has no finished evidence; run `policytrim train trim` to its end first")
    rows = judge(before, after, MARGIN, CONFIDENCE)["rows"]
    waits_s = 0.0 if reports[0]["mode"] == ASYNC else latency_s
    found = []
    for row in rows:
        if row["steps"] is None:
            continue
        low, high = (100 * value for value in row["difference"][1:])
        rates = f"{100 * row['success'][0]:.1f}", f"{100 * row['success'][1]:.1f} [{low:+.1f}, {high:+.1f}]"
        means = [(row[name]["a"], row[name]["b"]) for name in ("steps", "calls")]
        found.append(line(run.name, row["task"], row["n"], row["horizon"], rates, *means, waits_s))
    return found


def reported(path: Path, latency_s: float) -> list[tuple]:
    """The paper's rows: SR, S, h; calls are S / h."""
    figures, found = json.loads(path.read_text())["policytrim"], []
    for name, keys in REPORTED.items():
        value = figures
        for key in keys:
            value = value[key]
        (sr_a, s_a, h_a, _), (sr_b, s_b, h_b, _) = value["baseline"], value["policytrim"]
        found.append(line("paper", name, "-", (h_a, h_b), (sr_a, sr_b), (s_a, s_b), (s_a / h_a, s_b / h_b), latency_s))
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="finished runs, or what is kept of them in docs/results/trimming")
    parser.add_argument("--latency", type=float, default=0.09, metavar="S", help="seconds of one inference call (0.09)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="directory of the results")
    options = parser.parse_args(arguments)
    rows = [row for run in options.runs for row in ours(run, options.latency)]
    for run in options.runs:
        kept = options.out / "trimming" / run.name
        if run.resolve() == kept.resolve():
            continue
        kept.mkdir(parents=True, exist_ok=True)
        for name in KEPT:
            shutil.copy(run / name, kept / name)
    about = (
        f"`python -m benchmarks.trimming {' '.join(map(str, options.runs))} --latency {options.latency:g}`, commit {commit()}."
    )
    page = [
        "# Trimmed policies",
        "",
        f"Ours, both policies in the same scenes; h, SR, S, N: baseline -> trimmed. SR: the difference has a 95 % interval in "
        f"brackets (points). S, N: means over the scenes in which both succeed. Seconds: N x {1000 * options.latency:g} ms + "
        f"S x {1000 / CONTROL_RATE_HZ:g} ms; of a run that was trimmed asynchronously S x {1000 / CONTROL_RATE_HZ:g} ms, for there the arm does not wait.",
        "",
        markdown(HEAD, rows),
        "",
        "As reported by the paper (arXiv 2606.22540), other robots, tasks and policies; N is S / h:",
        "",
        markdown(HEAD, reported(options.out / "reported.json", options.latency)),
        "",
        about,
        "",
    ]
    print("\n".join(page))
    replace_file(options.out / "trimming_table.md", "\n".join(page).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
