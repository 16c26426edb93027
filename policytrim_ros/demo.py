"""`policytrim demo`: the whole system, once for each task, with a few trials of baseline and trimmed policy; tables at the end."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from policytrim_ros.film import film
from policytrim_ros.graph import LaunchArguments, baseline_of, resolve_checkpoint
from policytrim_ros.trials.table import show
from policytrim_ros.up import INTERRUPTED, up


def demo(tasks, setting: str, trials: int, seed: int, out: str) -> int:
    """Runs ``trials`` of each task, of the project's policy and its baseline in the same scenes and the same processes, and
    prints the tables. A system that breaks down is brought up once more; 1 when it does so again (a failed trial is a result)."""
    began, broken = time.monotonic(), []
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / "log.txt", "a", encoding="utf-8") as log:
        for number, task in enumerate(tasks, start=1):
            arguments = LaunchArguments(
                task=task, setting=setting, trials=trials, seed=seed, mode="async", out=out, on_failure="shutdown", record=True
            )
            policy = resolve_checkpoint(arguments)
            if baseline := None if policy.startswith("demonstrator:") else baseline_of(policy):
                arguments = replace(arguments, checkpoint=str(baseline), compare=policy)
            recorded = set(Path(out).glob("*.mcap"))
            moved_by = f"{baseline} and, trimmed, {policy}" if baseline else policy
            print(f"\n{task} ({number} of {len(tasks)}), moved by {moved_by}", flush=True)
            code = up(arguments, Screen(log))
            if code not in (0, INTERRUPTED):
                print(f"{task}: broke down; look into {out}/log.txt. Once more, with the trials that are left:", flush=True)
                code = up(arguments, Screen(log))
            if code == INTERRUPTED:
                print(f"\n{show(out)}\n\ninterrupted; records, recordings and log in {out}", flush=True)
                return code
            for recording in sorted(set(Path(out).glob("*.mcap")) - recorded):
                show_film(recording, Path(out) / f"{task}.mp4")
            if code:
                broken.append(task)
                print(f"{task}: broke down again; look into {out}/log.txt", flush=True)
    print(f"\n{show(out)}\n\n{time.monotonic() - began:.0f} s in all; records, recordings, films and log in {out}", flush=True)
    return 1 if broken else 0


def show_film(recording: Path, out: Path) -> None:
    """Makes a film of what the cameras saw, and says where it is."""
    try:
        film(recording, out)
        print(f"  film: {out}", flush=True)
    except (ValueError, OSError) as error:
        print(f"  no film: {error}", flush=True)


class Screen:
    """Where the starter's lines go: all to the log; on the screen those of the starter and of the trials."""

    def __init__(self, log):
        self._log = log

    def __call__(self, text: str) -> None:
        print(text, file=self._log, flush=True)
        if text.startswith("[trial] ") and not text.startswith("[trial] |"):
            print("  " + text.removeprefix("[trial] "), flush=True)
        elif not text.startswith("["):
            print("  " + text, flush=True)
