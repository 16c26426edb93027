"""What a trial loses to waiting: our asynchronous loop beside the loop of most peers, on the whole simulated robot.

    python -m benchmarks.broker [--latency 0.02 0.09 0.2 0.34] [--trials 4] [--out docs/results/broker]

The broker (mode sync) plays its chunk to the end, rests, waits for pictures of the resting arm and then for the next chunk; async looks
while the chunk plays. Each plays trials of TapeBox (`policytrim trial`) in the same scenes with the same policies, served by `policytrim
serve` behind a network line which delays every answer. Rest is the executor's own count: seconds between go and outcome, after the first
action, in which no action was left. Latency is what the inference node measured. A trial ends with the simulator's verdict, at the latest
after --timeout seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

from benchmarks.control_loop import ROOT, running_system
from benchmarks.policy_server import PolicyServer
from benchmarks.results import circumstances, in_words, leave, markdown
from benchmarks.swap import NAMES, Watch
from policytrim_ros.core.replanning import ASYNC, SYNC
from policytrim_ros.trials.store import Row, read
from policytrim_ros.trials.table import mean

HEAD = (
    "policy", "loop", "latency p50 / p99, ms", "succeeded", "rest, s a trial", "rests a trial", "longest", "share of the time at rest",
    "seconds of a success", "calls a trial",
)  # fmt: skip


def trials(out: Path, address: str, label: str, options) -> list[Row]:
    """Of ``label``, with the policy at ``address``, on the running system."""
    words = [
        "trial", "task:=tape_box", f"trials:={options.trials}", f"seed:={options.seed}", f"label:={label}", f"checkpoint:={address}",
        f"out:={out}", f"timeout_s:={options.timeout:g}",
    ]  # fmt: skip
    subprocess.run([sys.executable, "-m", "policytrim_ros.cli", *words], cwd=ROOT, check=True)
    return [row for row in read(out) if row.label == label and row.counts]


def line(cell: dict) -> tuple:
    """Of the table."""
    rows = [Row(**row) for row in cell["rows"]]
    won = [row.seconds for row in rows if row.outcome == "success"]
    ms = "{latency_ms_p50:.0f} / {latency_ms_p99:.0f}".format(**cell)
    longest = max((row.stall_s / row.stalls for row in rows if row.stalls), default=0.0)
    return (
        cell["policy"], cell["mode"], ms, f"{len(won)} of {len(rows)}", mean([row.stall_s for row in rows], 2),
        mean([row.stalls for row in rows], 1), f"{longest:.2f} s",
        f"{100 * sum(row.stall_s for row in rows) / sum(row.seconds for row in rows):.0f} %", mean(won, 1), mean([row.calls for row in rows], 0),
    )  # fmt: skip


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, nargs="+", default=[0.02, 0.09, 0.2, 0.34], metavar="S", help="of a policy (%(default)s)")
    parser.add_argument("--trials", type=int, default=4, help="of each policy, loop and latency, in the same scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1_100_000, help="of the first scene (%(default)s)")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds of a trial (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/broker"))
    options = parser.parse_args(arguments)
    load, cells = os.getloadavg()[0], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        servers = {name: stack.enter_context(closing(PolicyServer(name))) for name in NAMES}
        for server in servers.values():
            server.start()
        for mode in (SYNC, ASYNC):
            with running_system(f"checkpoint:={ROOT / 'models' / NAMES[0]}", f"mode:={mode}"), closing(Watch()) as watch:
                undelayed = {}
                for latency in options.latency:
                    for name, server in servers.items():  # each is exchanged for the other, so its latencies are counted anew
                        server.line.delay_s = max(0.0, (latency - undelayed.get(name, latency)) / 2)
                        rows = trials(folder, server.address, f"{name}, {mode}, {1000 * latency:.0f} ms", options)
                        watch.spin(1.5)
                        measured = {key: watch.status[key] for key in ("latency_ms_p50", "latency_ms_p99")}
                        undelayed.setdefault(name, measured["latency_ms_p50"] / 1000)
                        cells.append({"policy": name, "mode": mode, **measured, "rows": [dataclasses.asdict(row) for row in rows]})
                        print(line(cells[-1]), flush=True)
    head = circumstances("broker", load, seed=options.seed, trials=options.trials)
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}; {options.trials} scenes from seed {options.seed}."
    leave(options.out, "Asynchronous beside the broker", about, markdown(HEAD, map(line, cells)), {**head, "cells": cells})
    return 0


if __name__ == "__main__":
    sys.exit(main())
