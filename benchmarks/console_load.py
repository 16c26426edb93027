"""The console beside a moving arm: does the control loop become later while people look at the page, or while trials are recorded?

    python -m benchmarks.console_load [--viewers 0 8 0 16 0 32] [--recorded 0 8] [--seconds 20] [--out docs/results/console_load]

Brings the whole simulated system up with its console, has a session carried out without an operator, and connects viewers, all in one
process of their own, that take every state and every picture as the page does, each from an address of its own. Then the same with
record:=true. Lateness is the setpoint thread's own, from the controller's diagnostics.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from std_msgs.msg import String

from benchmarks.control_loop import Probe, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.nodes.messages import LATCHED

PORT = 8791
URL = f"http://127.0.0.1:{PORT}"
PLAN = dict(scenes=1000, seed=3000, blind=False, arms=[dict(checkpoint="models/tape-box-pi0-trimmed")])
HEAD = (
    "recorded",
    "viewers",
    "connections lost",
    "pictures/s each",
    "states/s each",
    "console, % of a core",
    "setpoints late: p50, p99 ms",
    "moving, % of the time",
    "messages written/s, dropped",
)


async def look(seconds: float, viewers: int) -> dict:
    """Pictures (of both cameras together) and states a second that each of ``viewers`` gets; connections that were lost."""
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

    async with contextlib.AsyncExitStack() as stack:
        work = []
        for number in range(viewers):  # from so many machines, as far as the console can tell
            connector = aiohttp.TCPConnector(local_addr=(f"127.0.0.{number + 2}", 0))
            session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
            work += [asyncio.ensure_future(follow(session, path, number)) for path in counts]
        await asyncio.sleep(seconds)
        lost = sum(one.done() for one in work)  # the console has closed it, or never let it in
        for each in work:
            each.cancel()
        await asyncio.gather(*work, return_exceptions=True)
    return {path: count / seconds / viewers for path, count in counts.items()} | {"lost": lost}


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


class Listener(Probe):
    """Hears the recorder, too."""

    def __init__(self):
        super().__init__()
        self.written: list[dict] = []
        self.node.create_subscription(String, "recorder/status", lambda m: self.written.append(json.loads(m.data)), LATCHED)


def measure(probe: Listener, viewers: int, seconds: float, recorded: bool) -> dict:
    """One stretch of time with so many viewers."""
    watching = None
    if viewers:
        line = [sys.executable, "-m", "benchmarks.console_load", "--look", str(seconds), str(viewers)]
        watching = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
        time.sleep(2.0)
    pid, probe.heard, probe.written = console_pid(), {}, []
    began, before = time.monotonic(), cpu_s(pid)
    probe.spin(seconds - 2.0)
    took = time.monotonic() - began
    share, said, written = (cpu_s(pid) - before) / took, probe.heard["controller"], list(probe.written)
    seen = json.loads(watching.communicate()[0]) if watching else {"/ws": None, "/pictures": None, "lost": 0}
    return {
        "recorded": recorded,
        "viewers": viewers,
        "pictures_hz": seen["/pictures"],
        "states_hz": seen["/ws"],
        "lost": seen["lost"],
        "cpu": share,
        "late_p50_ms": statistics.median(float(one["lateness_p50_ms"]) for one in said),
        "late_p99_ms": statistics.median(float(one["lateness_p99_ms"]) for one in said),
        "moving": sum(one["state"] == "moving" for one in said) / len(said),
        **(_written(written, took) if recorded else {}),
    }


def _written(said: list[dict], took_s: float) -> dict:
    """Of a stretch, in which one recording follows the other: messages a second, and those that were dropped or belong to one that failed."""
    if not said or any(one["state"] == "failed" for one in said):
        raise SystemExit(f"nothing was recorded: {said[-1:]}")
    files: dict[str, list[dict]] = {}
    for one in said:
        files.setdefault(one["file"], []).append(one)
    new = [max(one["messages"] for one in of_file) - min(one["messages"] for one in of_file) for of_file in files.values()]
    return {"written_hz": sum(new) / took_s, "dropped": sum(max(one["dropped"] for one in of_file) for of_file in files.values())}


def stretches(viewers: list[int], seconds: float, recorded: bool, command: list[str]) -> list[dict]:
    """One system from its start to its end, with so many viewers in one stretch after the other; ``command`` gets its command line."""
    found = []
    with tempfile.TemporaryDirectory() as out:
        line = ("console:=true", f"console_port:={PORT}", "mode:=async", f"out:={out}", f"record:={str(recorded).lower()}")
        with running_system(*line) as said:
            command.append(said)
            probe = Listener()
            order("start", plan=PLAN, attended=False)
            probe.spin(15.0)
            for each in viewers:
                found.append(measure(probe, each, seconds, recorded))
                print(found[-1], flush=True)
            probe.close()
    return found


def row(one: dict) -> tuple:
    """A line of the table."""
    told = lambda value: "-" if value is None else f"{value:.1f}"  # noqa: E731
    return (
        "yes" if one["recorded"] else "no",
        one["viewers"],
        one["lost"],
        told(one["pictures_hz"]),
        told(one["states_hz"]),
        f"{100 * one['cpu']:.0f}",
        f"{one['late_p50_ms']:.2f}, {one['late_p99_ms']:.2f}",
        f"{100 * one['moving']:.0f}",
        f"{one['written_hz']:.0f}, {one['dropped']}" if one["recorded"] else "-",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 8, 0, 16, 0, 32], help="viewers of each stretch")
    parser.add_argument("--recorded", type=int, nargs="*", default=[0, 8], help="the same of stretches that are recorded")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each stretch")
    parser.add_argument("--out", type=Path, default=Path("docs/results/console_load"))
    parser.add_argument("--look", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.look:
        print(json.dumps(asyncio.run(look(float(options.look[0]), int(options.look[1])))))
        return
    load, command, found = os.getloadavg()[0], [], []
    for viewers, recorded in ((options.viewers, False), (options.recorded, True)):
        if viewers:
            found += stretches(viewers, options.seconds, recorded, command)
    head = circumstances("console_load", load, system=command)
    about = f"{in_words(head)}. Viewers are one process on the same machine; a message of pictures holds those of both cameras that are new."
    leave(options.out, "The console beside a moving arm", about, markdown(HEAD, map(row, found)), {**head, "stretches": found})


if __name__ == "__main__":
    main()
