"""The load that the console holds: frames/s of each viewer, CPU of the server's process, and how soon a hold is carried out.

    python -m benchmarks.console [--seconds 10] [--out docs/results/console]

A server in a process of its own shows two cameras of 424 x 240 at 20 Hz and a state that changes all the time; viewers take
everything they can over real sockets. Meanwhile another order is being carried out that never ends, and holds are given one after
the other, each over a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import struct
import subprocess
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import numpy as np

VIEWERS = (1, 4, 16)
CAMERAS = ("front", "wrist")
FRAME_HZ = 20.0
HOLD_S = 0.05


class Moving:
    """A cockpit whose pictures and state change all the time, and whose `swap` never ends."""

    def __init__(self):
        import cv2

        draws = np.random.default_rng(1)
        coarse = [draws.integers(0, 255, (60, 106, 3), np.uint8) for _ in range(10)]
        pictures = [cv2.resize(one, (424, 240), interpolation=cv2.INTER_CUBIC) for one in coarse]
        self.pictures = [cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes() for one in pictures]
        self.began = time.time()

    def state(self):
        seconds = time.time() - self.began
        return {
            "stamp": time.time(),
            "robot": {"state": "moving", "reason": "", "simulated": True, "silent": None},
            "trial": {"phase": "running", "since_s": seconds, "card": None, "alarms": []},
            "policy": {"generation": 1, "tail_rad": seconds % 1, "slack_ms": 200.0, "calls": int(seconds * 4)},
            "cameras": [{"name": name, "age_ms": 20, "fps": FRAME_HZ} for name in CAMERAS],
        }

    def picture(self, camera):
        frame = int((time.time() - self.began) * FRAME_HZ)
        return self.pictures[frame % len(self.pictures)], self.began + frame / FRAME_HZ

    def order(self, name, details, who):
        if name == "swap":
            threading.Event().wait()
        return "held"


def serve() -> None:
    """The server's process: says its port and the size of a picture, then answers each line with the CPU seconds it has used."""
    from policytrim_ros.console.server import Server

    cockpit = Moving()
    with Server(cockpit, port=0) as server:
        print(json.dumps({"port": server.port, "bytes": int(np.mean([len(one) for one in cockpit.pictures]))}), flush=True)
        for _ in sys.stdin:
            print(time.process_time(), flush=True)


async def view(url: str, seconds: float) -> tuple[dict[str, int], list[float], int]:
    """One viewer: frames of each camera, their ages when they came, and states."""
    import aiohttp

    frames, ages, states = dict.fromkeys(CAMERAS, 0), [], 0
    end = time.monotonic() + seconds

    async def take(path: str, first: list[str]):
        async with session.ws_connect(url + path, max_msg_size=0) as live:
            for word in [*first, "next", "next"]:
                await live.send_str(word)
            while time.monotonic() < end:
                message = await live.receive(timeout=5)
                await live.send_str("next")
                yield message.data

    async def take_states():
        nonlocal states
        async for _ in take("/ws", [json.dumps({"client": os.urandom(16).hex()})]):
            states += 1

    async def take_pictures():
        async for data in take("/pictures", []):
            at = 0
            while at < len(data):
                length = data[at]
                name = data[at + 1 : at + 1 + length].decode()
                age_s, size = struct.unpack_from(">fI", data, at + 1 + length)
                frames[name], at = frames[name] + 1, at + 1 + length + 8 + size
                ages.append(age_s)

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(take_states(), take_pictures())
    return frames, ages, states


def hold(port: int, ended: threading.Event, latencies: list[float]) -> None:
    """Gives holds until ``ended``; appends how many seconds each took to be carried out and answered."""
    body = json.dumps({"who": "benchmark"})
    while not ended.wait(HOLD_S):
        began = time.perf_counter()
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/order/hold", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if answer.status != 200:
            raise RuntimeError(f"a hold was answered with {answer.status}")
        latencies.append(time.perf_counter() - began)


def measure(viewers: int, seconds: float) -> dict:
    """One row: ``viewers`` at a server of their own for ``seconds``."""
    command = [sys.executable, "-m", "benchmarks.console", "--serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        told = json.loads(server.stdout.readline())

        def cpu_s() -> float:
            server.stdin.write("\n")
            server.stdin.flush()
            return float(server.stdout.readline())

        ended, latencies = threading.Event(), []
        stuck = HTTPConnection("127.0.0.1", told["port"])
        body = {"client": "b" * 32, "who": "benchmark", "details": {"checkpoint": "x"}}
        stuck.request("POST", "/order/swap", json.dumps(body), {"Content-Type": "application/json"})
        holding = threading.Thread(target=hold, args=(told["port"], ended, latencies))
        holding.start()

        async def all_viewers():
            return await asyncio.gather(*(view(f"http://127.0.0.1:{told['port']}", seconds) for _ in range(viewers)))

        began, cpu = time.monotonic(), cpu_s()
        seen = asyncio.run(all_viewers())
        elapsed, cpu = time.monotonic() - began, cpu_s() - cpu
        ended.set()
        holding.join()
        stuck.close()
        server.terminate()
    rates = [count / elapsed for frames, _, _ in seen for count in frames.values()]
    return {
        "viewers": viewers,
        "seconds": elapsed,
        "picture_bytes": told["bytes"],
        "fps_worst": min(rates),
        "fps_mean": float(np.mean(rates)),
        "states_hz_worst": min(states for _, _, states in seen) / elapsed,
        "age_ms_p99": 1000 * float(np.percentile([age for _, ages, _ in seen for age in ages], 99)),
        "cpu_percent": 100 * cpu / elapsed,
        "holds": len(latencies),
        "hold_ms_p50": 1000 * float(np.percentile(latencies, 50)),
        "hold_ms_p99": 1000 * float(np.percentile(latencies, 99)),
        "hold_ms_worst": 1000 * max(latencies),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds for each number of viewers (10)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/console"), help="where the figures go, without suffix")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return serve()

    from benchmarks.results import circumstances, in_words, leave, markdown  # torch: not for the server

    head = circumstances("console", os.getloadavg()[0])
    rows = [measure(viewers, options.seconds) for viewers in VIEWERS]
    table = markdown(
        [
            "viewers",
            "frames/s each (worst)",
            "states/s (worst)",
            "age p99 ms",
            "CPU of the server %",
            "hold p50 / p99 / worst ms",
        ],
        (
            [
                row["viewers"],
                f"{row['fps_mean']:.1f} ({row['fps_worst']:.1f})",
                f"{row['states_hz_worst']:.1f}",
                f"{row['age_ms_p99']:.0f}",
                f"{row['cpu_percent']:.0f}",
                f"{row['hold_ms_p50']:.1f} / {row['hold_ms_p99']:.1f} / {row['hold_ms_worst']:.1f}",
            ]
            for row in rows
        ),
    )
    about = (
        f"{in_words(head)}. Two cameras of 424 x 240 at {FRAME_HZ:.0f} Hz, {rows[0]['picture_bytes']} bytes a picture, "
        f"{options.seconds:.0f} s a row; viewers and server on one machine. 100 % is one core. "
        f"Frames/s are of one camera; a hold is one HTTP request of its own, from connect to answer, while another order hangs."
    )
    leave(options.out, "Load of the console", about, table, {**head, "rows": rows})


if __name__ == "__main__":
    main()
