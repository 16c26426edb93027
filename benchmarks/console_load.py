"""The console beside a moving arm: does the control loop become later while people look at the page?

    python -m benchmarks.console_load [--viewers 0 8 0 8] [--seconds 20] [--out docs/results/console_load]

Brings the whole simulated system up with its console, has a session carried out without an operator, and connects viewers, all in one
process of their own, that take every state and every picture as the page does. Lateness is the setpoint thread's own, from the controller's
diagnostics.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import aiohttp

from benchmarks.control_loop import Probe, running_system
from benchmarks.results import circumstances, in_words, leave, markdown

PORT = 8791
URL = f"http://127.0.0.1:{PORT}"
PLAN = dict(scenes=40, seed=3000, blind=False, arms=[dict(checkpoint="models/tape-box-pi0-trimmed")])
HEAD = (
    "viewers",
    "pictures/s each",
    "states/s each",
    "console, % of a core",
    "setpoints late: p50, p99 ms",
    "moving, % of the time",
)


async def look(seconds: float, viewers: int) -> dict:
    """Pictures (of both cameras together) and states a second that each of ``viewers`` gets."""
    counts = {"/ws": 0, "/pictures": 0}

    async def follow(session, path: str, number: int):
        async with session.ws_connect(URL + path, max_msg_size=1 << 22) as socket:
            if path == "/ws":
                await socket.send_str(json.dumps({"client": f"{number:032d}"}))
            for _ in range(2):
                await socket.send_str("next")
            async for _ in socket:
                counts[path] += 1
                await socket.send_str("next")

    async with aiohttp.ClientSession() as session:
        work = [asyncio.ensure_future(follow(session, path, n)) for n in range(viewers) for path in counts]
        await asyncio.sleep(seconds)
        for each in work:
            each.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    return {path: count / seconds / viewers for path, count in counts.items()}


def order(name: str, **details) -> None:
    body = json.dumps({"who": "benchmark", "client": "0" * 32, "details": details}).encode()
    request = urllib.request.Request(f"{URL}/order/{name}", body, {"Content-Type": "application/json", "Origin": URL})
    urllib.request.urlopen(request, timeout=30).close()


def cpu_s(pid: int) -> float:
    """Processor time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def console_pid() -> int:
    found = subprocess.run(["pgrep", "-f", "policytrim_ros.nodes.console .*port:=" + str(PORT)], capture_output=True, text=True)
    return int(found.stdout.split()[0])


def measure(probe: Probe, viewers: int, seconds: float) -> dict:
    """One stretch of time with so many viewers."""
    watching = None
    if viewers:
        line = [sys.executable, "-m", "benchmarks.console_load", "--look", str(seconds), str(viewers)]
        watching = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        time.sleep(2.0)
    pid, probe.heard = console_pid(), {}
    began, before = time.monotonic(), cpu_s(pid)
    probe.spin(seconds - 2.0)
    share = (cpu_s(pid) - before) / (time.monotonic() - began)
    said = probe.heard["controller"]
    seen = json.loads(watching.communicate()[0]) if watching else {"/ws": None, "/pictures": None}
    return {
        "viewers": viewers,
        "pictures_hz": seen["/pictures"],
        "states_hz": seen["/ws"],
        "cpu": share,
        "late_p50_ms": statistics.median(float(one["lateness_p50_ms"]) for one in said),
        "late_p99_ms": statistics.median(float(one["lateness_p99_ms"]) for one in said),
        "moving": sum(one["state"] == "moving" for one in said) / len(said),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 8, 0, 8], help="viewers of each stretch")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each stretch")
    parser.add_argument("--out", type=Path, default=Path("docs/results/console_load"))
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(asyncio.run(look(float(options.look[0]), int(options.look[1])))))
        return
    load, found = os.getloadavg()[0], []
    with tempfile.TemporaryDirectory() as out:
        with running_system("console:=true", f"console_port:={PORT}", "mode:=async", f"out:={out}") as said:
            probe = Probe()
            order("start", plan=PLAN, attended=False)
            probe.spin(15.0)
            for viewers in options.viewers:
                found.append(measure(probe, viewers, options.seconds))
                print(found[-1], flush=True)
    rows = [
        (
            one["viewers"],
            "-" if one["pictures_hz"] is None else f"{one['pictures_hz']:.1f}",
            "-" if one["states_hz"] is None else f"{one['states_hz']:.1f}",
            f"{100 * one['cpu']:.0f}",
            f"{one['late_p50_ms']:.2f}, {one['late_p99_ms']:.2f}",
            f"{100 * one['moving']:.0f}",
        )
        for one in found
    ]
    head = circumstances("console_load", load, system=said)
    about = f"{in_words(head)}. Viewers are one process on the same machine; a message of pictures holds those of both cameras that are new."
    leave(options.out, "The console beside a moving arm", about, markdown(HEAD, rows), {**head, "stretches": found})


if __name__ == "__main__":
    main()
