"""Success and control steps of the scripted demonstrators: 3 tasks x 2 settings x 2 styles over many seeds.

    python -m benchmarks.demonstrators [--seeds 200] [--processes 1] [--tasks flip_mug ...] [--out docs/results/demonstrators]

Steps are counted at 20 Hz up to the fifth consecutive step with success; limit 450. Each episode is a pure function of
its seed. Finished episodes are appended to OUT.jsonl, so an interrupted run continues where it stopped, or ends early when
called again with fewer seeds (--fresh starts over; episodes of another commit are not reused). At the end OUT.json and
OUT.md are written.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policytrim_ros.core.statistics import bootstrap_mean, wilson

ROOT = Path(__file__).resolve().parents[1]
TASKS, SETTINGS, STYLES = ("tape_box", "flip_mug", "hang_mug"), ("standard", "dynamic"), ("clean", "hesitant")

_envs: dict = {}


def episode(job):
    """Plays one episode; returns its row."""
    from sim_bridge.demonstrators import make_demonstrator
    from sim_bridge.env import TaskEnv

    task, setting, style, seed = job
    if (task, setting) not in _envs:
        import torch

        torch.set_num_threads(1)
        _envs[task, setting] = TaskEnv(task, setting)
    env, demonstrator = _envs[task, setting], make_demonstrator(task, style)
    env.reset(seed)
    demonstrator.reset(seed)
    while True:
        joints = env.proprioception()
        result = env.step(demonstrator.act(joints[:7], joints[7:], env.objects()))
        if result.over:
            break
    row = dict(task=task, setting=setting, style=style, seed=seed, success=result.success, failure=result.failure)
    return row | dict(steps=result.steps, shifted_mm=round(1000 * env.shifted(), 1))


WATCHED = ["sim_bridge/tasks", "sim_bridge/demonstrators", "sim_bridge/agent.py", "sim_bridge/env.py", "urdf"]
WATCHED += [f"policytrim_ros/core/{name}.py" for name in ("kinematics", "motion", "types")]


def commit() -> str:
    """The last commit that changed what these figures depend on, marked when there are uncommitted changes to it."""
    git = ["git", "-C", str(ROOT)]
    last = subprocess.run([*git, "log", "-1", "--format=%h", "--", *WATCHED], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "status", "--porcelain", "--", *WATCHED], capture_output=True, text=True).stdout.strip()
    return last + ("+changes" if changed else "")


def cells(rows, tasks) -> list:
    """One summary for each task, setting and style."""
    out = []
    for task, setting, style in product(tasks, SETTINGS, STYLES):
        chosen = [r for r in rows if (r["task"], r["setting"], r["style"]) == (task, setting, style)]
        if not chosen:
            continue
        steps = np.array([r["steps"] for r in chosen if r["success"]])
        moved = [r["shifted_mm"] for r in chosen if r["shifted_mm"] > 0]
        out.append(
            dict(
                task=task,
                setting=setting,
                style=style,
                episodes=len(chosen),
                successes=len(steps),
                interval=[round(x, 4) for x in wilson(len(steps), len(chosen))],
                steps_mean=[round(x, 1) for x in bootstrap_mean(steps)],
                steps_p5_p50_p95=[round(float(x), 1) for x in np.percentile(steps, [5, 50, 95])] if len(steps) else None,
                lost=sum(r["failure"] for r in chosen),
                shifted=len(moved),
                shifted_mm_mean=round(float(np.mean(moved)), 1) if moved else None,
                failed_seeds=[r["seed"] for r in chosen if not r["success"]],
            )
        )
    return out


def table(summary) -> str:
    """Markdown table of ``cells``."""
    lines = [
        "| task | setting | style | success | 95 % interval | steps, mean (95 %) | p5 / p50 / p95 | target shifted |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for c in summary:
        low, high = c["interval"]
        mean, mean_low, mean_high = c["steps_mean"]
        shifted = f"{c['shifted']}/{c['episodes']}, {c['shifted_mm_mean']} mm" if c["shifted"] else "-"
        percentiles = " / ".join(f"{x:.0f}" for x in c["steps_p5_p50_p95"]) if c["steps_p5_p50_p95"] else "-"
        lines.append(
            f"| {c['task']} | {c['setting']} | {c['style']} | {c['successes']}/{c['episodes']} | "
            f"{100 * low:.1f} - {100 * high:.1f} % | "
            f"{mean:.1f} ({mean_low:.1f} - {mean_high:.1f}) | {percentiles} | {shifted} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200, help="seeds 0..N-1 for every cell (default 200)")
    parser.add_argument("--processes", type=int, default=1, help="worker processes (default 1)")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS)
    default = ROOT / "docs" / "results" / "demonstrators"
    parser.add_argument("--out", type=Path, default=default, help="path of the results without suffix")
    parser.add_argument("--fresh", action="store_true", help="forget the episodes of an interrupted run")
    options = parser.parse_args()

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    version, partial = commit(), options.out.with_suffix(".jsonl")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    if partial.exists() and not options.fresh:
        rows = [json.loads(line) for line in partial.read_text().splitlines()]
        rows = [r for r in rows if r.pop("commit") == version and r["seed"] < options.seeds and r["task"] in options.tasks]
    known = {(r["task"], r["setting"], r["style"], r["seed"]) for r in rows}
    jobs = [(*cell, seed) for seed in range(options.seeds) for cell in product(options.tasks, SETTINGS, STYLES)]
    jobs = [job for job in jobs if job not in known]
    context = multiprocessing.get_context("forkserver")
    with open(partial, "w") as file, context.Pool(options.processes) as pool:
        for row in rows:
            file.write(json.dumps(row | {"commit": version}) + "\n")
        for row in tqdm(pool.imap_unordered(episode, jobs, chunksize=1), total=len(jobs), unit="episode"):
            rows.append(row)
            file.write(json.dumps(row | {"commit": version}) + "\n")
            file.flush()

    rows.sort(key=lambda r: (r["task"], r["setting"], r["style"], r["seed"]))
    command = f"python -m benchmarks.demonstrators --seeds {options.seeds}"
    if tuple(options.tasks) != TASKS:
        command += " --tasks " + " ".join(options.tasks)
    summary = cells(rows, options.tasks)
    episodes = {"/".join(key): [] for key in product(options.tasks, SETTINGS, STYLES)}
    for r in rows:
        cell = "/".join((r["task"], r["setting"], r["style"]))
        episodes[cell].append([r["seed"], int(r["success"]), int(r["failure"]), r["steps"], r["shifted_mm"]])
    head = dict(command=command, commit=version, seeds=[0, options.seeds - 1], control_rate_hz=20, limit_steps=450)
    raw = ",\n".join(f'  "{cell}": {json.dumps(values)}' for cell, values in episodes.items())
    fields = json.dumps(["seed", "success", "lost", "steps", "shifted_mm"])
    text = f'{{"run": {json.dumps(head)},\n"cells": {json.dumps(summary, indent=1)},\n"episode_fields": {fields},\n'
    options.out.with_suffix(".json").write_text(text + f'"episodes": {{\n{raw}\n}}}}\n')
    note = f"`{command}` at commit {version}, seeds 0 to {options.seeds - 1}, 20 control steps a second, limit 450 steps."
    explain = (
        "Steps: up to the fifth consecutive step with success, over successful episodes. "
        "Intervals: Wilson for rates, bootstrap for means. "
        "Target shifted: episodes in which the dynamic setting moved the target, and by how much on average "
        "(a finger that touches the target ends the shift early)."
    )
    options.out.with_suffix(".md").write_text(f"# Scripted demonstrators\n\n{note}\n{explain}\n\n{table(summary)}\n")
    partial.unlink()
    print(table(summary))
    return 0


if __name__ == "__main__":
    sys.exit(main())
