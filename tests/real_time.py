"""Whether this machine can play the robot in real time at all: where it cannot, tests of running processes say so and are skipped.

A virtual machine may get a third of its processor for minutes or hours. An arm whose feedback is then silent for 0.1 s is held, as it should be, and
says nothing about the code. Before a controller starts two things must both be seen: arithmetic is slow (nothing of this project), and the controller
alone, with the emulated arm and nothing else, keeps its deadlines badly. And a test of running processes that has failed is called skipped, with
what it failed with, when the arithmetic of `Pulse`, which nothing of ordinary priority disturbs, was slow for a good part of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

ROUNDS, SLOW_S = 1_000_000, 0.17
"""So many multiplications take about 0.1 s on the machine on which this project's figures were measured."""

LATE_MS, LISTEN_S, KEPT_S = 15.0, 5.0, 20.0
BEAT_S, SLOW_SHARE, FEWEST = 0.25, 0.25, 4
_found = [float("-inf"), ""]  # when it was asked last (monotonic s), and the answer


def arithmetic_s(rounds: int = ROUNDS, tries: int = 5) -> float:
    """Seconds that ROUNDS multiplications take, measured on ``rounds`` of them, the best of ``tries``."""

    def once() -> float:
        began, total = time.perf_counter(), 0
        for i in range(rounds):
            total += i * i
        return (time.perf_counter() - began) * ROUNDS / rounds

    return min(once() for _ in range(tries))


class Pulse:
    """A child process that does a little arithmetic every BEAT_S, before everything of ordinary priority, and keeps how long it took."""

    def __init__(self, folder: Path):
        self._path = folder / "pulse"
        self._child = subprocess.Popen([sys.executable, __file__, str(self._path)])

    def slow_since(self, began: float) -> str:
        """Why what happened from ``began`` (unix s) until now says nothing; '' when the machine ran as it should."""
        beats = [tuple(map(float, line.split())) for line in self._path.read_text().splitlines() if line.count(" ") == 1]
        took = [seconds for when, seconds in beats if when >= began]
        slow = sum(seconds > SLOW_S for seconds in took)
        if len(took) < FEWEST or slow <= SLOW_SHARE * len(took):
            return ""
        return f"this machine was too slow for real time in {slow} of {len(took)} moments ({max(took):.2f} s for {ROUNDS} multiplications at worst)"

    def close(self) -> None:
        self._child.kill()
        self._child.wait()


def beat(path: str) -> None:
    """Until its parent is gone."""
    if os.geteuid() == 0:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    parent = os.getppid()
    with open(path, "w") as file:
        while os.getppid() == parent:
            print(time.time(), arithmetic_s(ROUNDS // 50, 1), file=file, flush=True)
            time.sleep(BEAT_S)


def needed() -> None:
    """Skips the test that asks where real time cannot be kept; asked anew after KEPT_S."""
    if time.monotonic() > _found[0] + KEPT_S:
        _found[1] = why_not()
        _found[0] = time.monotonic()
    if _found[1]:
        pytest.skip(_found[1])


def why_not() -> str:
    """Why this machine cannot; '' when it can."""
    took = arithmetic_s()
    if took <= SLOW_S:
        return ""
    late = lateness_ms()
    if late <= LATE_MS:
        return ""
    return (
        f"this machine cannot keep real time now: {ROUNDS} multiplications take {took:.2f} s (more than {SLOW_S}), and the controller with nothing "
        f"beside it is {late:.0f} ms late (p99, more than {LATE_MS:.0f})"
    )


def lateness_ms() -> float:
    """p99 of the setpoint thread's lateness (ms) in a controller that runs with the emulated arm alone; infinite when it says nothing."""
    from diagnostic_msgs.msg import DiagnosticArray
    from stack import Operator, Stack

    heard: list[float] = []

    def hear(message) -> None:
        heard.extend(float(pair.value) for status in message.status for pair in status.values if pair.key == "lateness_p99_ms")

    with tempfile.TemporaryDirectory() as folder:
        alone = Stack(Path(folder), domain=100)  # no test's
        try:
            alone.start_emulator()
            alone.start("controller", "policytrim_ros.nodes.controller", can_interface="piper_hub", can_port=alone.socket)
            operator = Operator(alone, beats=())
            operator.node.create_subscription(DiagnosticArray, "diagnostics", hear, 10)
            operator.spin(LISTEN_S)
            operator.close()
        finally:
            alone.close()
    return heard[-1] if heard else float("inf")


if __name__ == "__main__":
    beat(sys.argv[1])
