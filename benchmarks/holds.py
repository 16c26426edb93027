"""From an operator's hold to the first braking setpoint, in a robot that a policy moves.

    python -m benchmarks.holds [--holds 60] [--busy]

Starts the simulated robot (`policytrim up`, async, a learned policy). Each time the policy moves the arm, `controller/hold` is called.
`controller`: from the arrival of the call in the controller until the first setpoint that brakes has been handed to the bus, by the controller's own
clock (its diagnostics, `hold_to_braking_ms`). `answered`: from the call, here, to the answer, here; it holds the way of a ROS service both
ways. --busy: once more, with two processes that never wait beside it, at normal priority. Writes docs/results/holds.md and .json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rclpy
from std_srvs.srv import Trigger

from benchmarks.control_loop import ROOT, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from benchmarks.swap import Watch

HEAD = ("beside it", "holds", "controller p50, ms", "p99, ms", "answered p50, ms", "p95, ms", "largest, ms", "setpoints late p99, ms")
STEPS, PATIENCE_S = 10, 20.0


def moving(watch: Watch) -> None:
    """The policy moves the arm; in a new scene where it has come to an end of the old one."""
    for order in (lambda: watch.order("controller/go"), watch.begin, watch.begin):
        step, end = watch.consumed.next_step, time.monotonic() + PATIENCE_S
        try:
            order()
        except SystemExit:  # refused: the next order begins anew
            continue
        while time.monotonic() < end:
            watch.spin(0.02)
            if watch.state.startswith("moving") and watch.consumed.next_step > step + STEPS:
                return
            if not watch.state.startswith("moving") and watch.consumed.next_step > step:
                break
    raise SystemExit(f"the policy does not move the arm: {watch.state}")


def measure(watch: Watch, holds: int, beside: str) -> dict:
    answered, hold = [], watch.node.create_client(Trigger, "controller/hold")
    for _ in range(holds):
        moving(watch)
        began = time.monotonic()
        rclpy.spin_until_future_complete(watch.node, future := hold.call_async(Trigger.Request()), timeout_sec=PATIENCE_S)
        if not future.done():
            raise SystemExit("controller/hold does not answer")
        answered.append(1000 * (time.monotonic() - began))
        watch.spin(0.3)
    watch.heard.clear()
    watch.spin(2.0)  # diagnostics come once a second
    said = watch.heard["controller"][-1]
    return {
        "beside": beside,
        "holds": holds,
        "controller_ms": [float(said["hold_to_braking_ms_p50"]), float(said["hold_to_braking_ms_p99"])],
        "answered_ms": answered,
        "late_p99_ms": float(said["lateness_p99_ms"]),
    }


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--holds", type=int, default=60, help="holds (60)")
    parser.add_argument("--busy", action="store_true", help="once more with two busy processes beside it")
    parser.add_argument("--out", type=Path, default=Path("docs/results/holds"))
    options = parser.parse_args(arguments)
    load, rows = os.getloadavg()[0], []
    for busy in (False, True)[: 1 + options.busy]:
        with running_system(f"checkpoint:={ROOT / 'models' / 'piper-pi0-tiny'}", "mode:=async"):
            rows.append(measured(options.holds, busy))
    cells = [
        (
            row["beside"], row["holds"], *(f"{ms:.1f}" for ms in row["controller_ms"]),
            *(f"{ms:.1f}" for ms in np.percentile(row["answered_ms"], [50, 95, 100])), f"{row['late_p99_ms']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    head = circumstances("holds", load)
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}. The controller's figures include the one hold before the {options.holds}."
    leave(options.out, "From hold to braking", about, markdown(HEAD, cells), {**head, "rows": rows})
    return 0


def measured(holds: int, busy: bool) -> dict:
    """The row of a system that has just been started."""
    watch = Watch()
    watch.spin(2.0)
    watch.begin()
    watch.order("controller/hold")
    spin = [sys.executable, "-c", "while True: pass"]
    beside = [subprocess.Popen(spin, start_new_session=True) for _ in range(2 * busy)]
    try:
        return measure(watch, holds, "two busy processes" if busy else "nothing else")
    finally:
        for process in beside:
            process.kill()
            process.wait()
        watch.close()


if __name__ == "__main__":
    sys.exit(main())
