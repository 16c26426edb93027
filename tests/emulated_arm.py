"""Starts the emulated Piper as a real process for tests, and asks it what really happens to the arm."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from sim_bridge.faults import inject

ROOT = Path(__file__).resolve().parents[1]
DEADLINE_S = 20.0
"""Longest that a test waits for anything; far more than needed, so that a busy machine does not fail it."""


def wait_for(condition, what: str, deadline_s: float = DEADLINE_S):
    """The first true value of ``condition()``; AssertionError with ``what`` when it stays false."""
    end = time.monotonic() + deadline_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < end, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(0.002)


class EmulatedArm:
    """A ``piper_emulator`` process of its own. ``with EmulatedArm() as arm: ... arm.socket ...``"""

    def __init__(self, *arguments: str, socket: str | None = None):
        self._folder = None if socket else tempfile.TemporaryDirectory(prefix="piper-")
        self.socket = socket or str(Path(self._folder.name) / "can")
        command = [sys.executable, "-m", "sim_bridge.piper_emulator", "--socket", self.socket, *arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.first_line = self.process.stdout.readline()

    def __enter__(self):
        assert "ready" in self.first_line, self.process.communicate()[1]
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=DEADLINE_S)
        if self._folder is not None:
            self._folder.cleanup()

    def inject(self, fault: str, **arguments) -> dict:
        return inject(self.socket, fault, timeout_s=DEADLINE_S, **arguments)

    def state(self) -> dict:
        """The arm's true condition; see ``PiperEmulator.state``."""
        return self.inject("state")

    def position(self) -> np.ndarray:
        return np.array(self.state()["position"])

    def wait(self, condition, what: str) -> dict:
        """The first state for which ``condition(state)`` is true."""
        found = {}

        def check():
            found.update(self.state())
            return condition(found)

        wait_for(check, what)
        return found

    def kill(self) -> None:
        """Ends the process as a crash would."""
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(DEADLINE_S)
