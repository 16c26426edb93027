"""Virtual processors that are kept from falling asleep: what a host takes to wake one up makes setpoints late.

A virtual processor with nothing to do is given back to the host, and a crowded host gives it again when it pleases: measured on two
cores, an arm's controller with nothing beside it was 14 to 63 ms late (p99), and 0.8 to 1.1 ms while something, however
unimportant, kept both processors busy. So one process a processor spins at SCHED_IDLE, which gives way at once to whatever else
wants to run. It costs the host its power, and a training beside (SCHED_IDLE, too) half of what nobody else wants.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from policytrim_ros.children import Aside

AUTO, ALWAYS, NEVER = "auto", "always", "never"
CHOICES = AUTO, ALWAYS, NEVER

SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: pass"


def is_virtual() -> bool:
    """Whether this machine is a guest, by what its processor says."""
    try:
        return " hypervisor" in Path("/proc/cpuinfo").read_text() or Path("/sys/hypervisor/type").exists()
    except OSError:
        return False


class Awake:
    """Keeps every processor of this process awake until `close`, or until the thread that made it ends. ``when``: one of CHOICES."""

    def __init__(self, when: str = AUTO):
        wanted = when == ALWAYS or when == AUTO and is_virtual()
        processors = sorted(os.sched_getaffinity(0)) if wanted else []
        self._spinning = [Aside([sys.executable, "-S", "-c", SPIN, str(number)]) for number in processors]

    @property
    def processors(self) -> int:
        """How many are kept awake."""
        return sum(child.running for child in self._spinning)

    def close(self) -> None:
        for child in self._spinning:
            child.kill()
        for child in self._spinning:
            child.wait()
        self._spinning = []
