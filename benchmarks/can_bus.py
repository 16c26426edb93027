"""The arm's bus: frames received, command-to-feedback latency and CPU, with the real driver on the emulated arm.

    python -m benchmarks.can_bus [--seconds 10] [--rate 100]

One process is the emulated Piper, this one the product's driver (piper_sdk below it). Rows: reading only, then streaming
setpoints. Latency is from the call of ``Piper.send`` with a changed target to the moment at which this process has the
first changed joint reading; it holds up to one feedback period (5 ms) by design. Run it on a quiet machine: the load is printed.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from policytrim_ros.arm.piper import Piper, PiperConfig
from policytrim_ros.core.types import READY
from sim_bridge.faults import inject

ROOT = Path(__file__).resolve().parents[1]
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """CPU seconds that process ``pid`` has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def measure(piper: Piper, emulator: int, seconds: float, rate_hz: float | None) -> dict:
    """Frames/s, CPU shares and failed sends while reading only (``rate_hz`` None) or streaming a slow sine."""
    frames, failures, late = [], 0, []
    began, used, own = time.monotonic(), cpu_s(emulator), cpu_s(os.getpid())
    due = began
    while (now := time.monotonic()) < began + seconds:
        if rate_hz is not None:
            target = np.array(READY)
            target[:6] += 0.1 * (1 - math.cos(now - began))
            failures += not piper.send(target)
        feedback = piper.feedback()
        late.append(now - feedback.state.stamp)
        frames.append(feedback.frames_per_s)
        due += 1.0 / (rate_hz or 10.0)
        time.sleep(max(0.0, due - time.monotonic()))
    wall = time.monotonic() - began
    return dict(
        frames_per_s=float(np.mean(frames)),
        emulator_cpu=(cpu_s(emulator) - used) / wall,
        driver_cpu=(cpu_s(os.getpid()) - own) / wall,
        age_ms=1000 * np.percentile(late, 99),
        failures=failures,
    )


def latencies_ms(piper: Piper, count: int) -> np.ndarray:
    """Time from a changed command to a changed joint reading, ``count`` times, from rest."""
    snapshots, random, spent = piper._snapshots, np.random.default_rng(0), []

    def reading(condition, *arguments):
        with snapshots.changed:
            if not snapshots.changed.wait_for(lambda: condition(*arguments), 5.0):
                raise TimeoutError(f"the arm did not react within 5 s (failed sends in a row: {piper.send_failures})")

    def moved(before):
        return snapshots.joints[1:] != before

    def arrived(target):
        feedback = piper.feedback()
        return np.abs(feedback.state.position - target).max() < 1e-5 and not feedback.state.velocity.any()

    piper.send(READY)
    reading(arrived, READY)
    for k in range(count):
        time.sleep(0.05 + 0.005 * random.random())  # any phase of the feedback period
        before, target = snapshots.joints[1:], np.array(READY)
        target[0] += 0.02 * ((k + 1) % 2)
        began = time.perf_counter()
        piper.send(target)
        reading(moved, before)
        spent.append(1000 * (time.perf_counter() - began))
        reading(arrived, target)
    return np.array(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each row")
    parser.add_argument("--rate", type=float, default=100.0, help="setpoints streamed each second")
    parser.add_argument("--commands", type=int, default=100, help="commands timed for the latency")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "can")
        command = [sys.executable, "-W", "ignore", "-m", "sim_bridge.piper_emulator", "--socket", path]
        emulator = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        piper = Piper(PiperConfig(can_interface="piper_hub", can_port=path))
        try:
            emulator.stdout.readline()
            piper.connect()
            piper.enable()
            time.sleep(1.0)
            rows = {"reading only": measure(piper, emulator.pid, options.seconds, None)}
            rows[f"streaming {options.rate:g} Hz"] = measure(piper, emulator.pid, options.seconds, options.rate)
            spent = latencies_ms(piper, options.commands)
            received = inject(path, "state")["frames_received"]
        finally:
            piper.close()
            emulator.terminate()
            emulator.wait()
    print(f"{os.cpu_count()} cores, load before the run {load:.2f}, {received} command frames received by the arm\n")
    print("| | frames/s received | age of joints p99 ms | failed sends | emulator % of a core | driver % of a core |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(
            f"| {name} | {row['frames_per_s']:.0f} | {row['age_ms']:.1f} | {row['failures']} | {100 * row['emulator_cpu']:.1f} | "
            f"{100 * row['driver_cpu']:.1f} |"
        )
    p50, p99 = np.percentile(spent, (50, 99))
    print(f"\ncommand to changed feedback, {len(spent)} commands: p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {spent.max():.2f} ms")


if __name__ == "__main__":
    main()
