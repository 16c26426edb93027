"""Whether this machine lets the robot be played in real time: where its processor is given to others, tests of running processes say so.

A virtual machine on a crowded host may lose a third of its processor for hours. An arm whose feedback is then silent for 0.1 s is held, as it should be,
and says nothing about the code. The kernel counts such time as stolen: time in which something here wanted to run and the host ran something
else. Whatever this project itself burns is not in it, and on a machine of one's own it is 0.

Before its first controller starts a test is skipped when time was being stolen and a controller that runs alone is late; and one of running processes
that has failed is called skipped, with what it failed with, when much was stolen while it ran.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

MUCH = 0.1
"""Share of all time, of all processors, that may be stolen: of a busy machine, not of the little that an idle one wants."""

LATE_MS, LISTEN_S, KEPT_S = 15.0, 5.0, 20.0


class Processor(NamedTuple):
    """Time of all processors since the machine started, in ticks of the kernel: all of it, and what was stolen."""

    passed: int
    stolen: int

    @classmethod
    def now(cls) -> "Processor":
        return cls.read(Path("/proc/stat").read_text())

    @classmethod
    def read(cls, text: str) -> "Processor":
        ticks = [int(word) for word in text.partition("\n")[0].split()[1:9]]  # user, nice, system, idle, iowait, irq, softirq, steal
        return cls(sum(ticks), ticks[-1])

    def lost_until(self, now: "Processor") -> float:
        """Share of the time since then that was stolen."""
        return (now.stolen - self.stolen) / max(1, now.passed - self.passed)


_asked: list = [float("-inf"), Processor.now(), ""]  # when (monotonic s), the processor then, and the answer


def needed() -> None:
    """Skips the test that asks where real time cannot be kept; asked anew after KEPT_S."""
    now = Processor.now()
    if time.monotonic() > _asked[0] + KEPT_S:
        why = why_not() if _asked[1].lost_until(now) > MUCH else ""
        _asked[:] = time.monotonic(), Processor.now(), why
    if _asked[2]:
        pytest.skip(_asked[2])


def why_not() -> str:
    """Why a controller with nothing beside it cannot keep its deadlines; '' when it can, or when it is not the host's fault."""
    before = Processor.now()
    late, lost = lateness_ms(), before.lost_until(Processor.now())
    if late <= LATE_MS or lost <= MUCH:
        return ""
    return f"{_words(lost)}; a controller with nothing beside it is {late:.0f} ms late (p99)"


def excuse(before: Processor, now: Processor) -> str:
    """Why what failed in between says nothing; '' when it does."""
    lost = before.lost_until(now)
    return _words(lost) if lost > MUCH else ""


def _words(lost: float) -> str:
    return f"this machine cannot keep real time now: its host gives {100 * lost:.0f} % of the processor to others"


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
