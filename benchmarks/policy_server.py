"""A policy server of the project's own on this machine, behind a network line with faults and delays on command.

    server = PolicyServer("piper-pi0-tiny")     # of models/
    server.start()                              # `policytrim serve`; `policytrim up checkpoint:=<server.address>`
    server.line.delay_s = 0.05                  # of every byte, each way, from now on
    server.close()
"""

from __future__ import annotations

import socket
import subprocess
import sys

from benchmarks.control_loop import ROOT
from sim_bridge.line import Line


class PolicyServer:
    """`policytrim serve` for a policy of models/ behind a `Line`; runs from the first `start` on."""

    def __init__(self, name: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._name, self._process = name, None
        self.line = Line(self._port)
        self.address = f"ws://127.0.0.1:{self.line.port}"

    def start(self) -> None:
        """Again, when it has been killed; RuntimeError when it does not serve."""
        if self._process is not None and self._process.poll() is None:
            return
        words = [sys.executable, "-m", "policytrim_ros.cli", "serve", str(ROOT / "models" / self._name), "--port", str(self._port)]
        self._process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
        if not any("ws://" in line for line in self._process.stdout):  # ends with the first that is, or with the process
            raise RuntimeError("the policy's server does not serve")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def mend(self) -> None:
        self.line.delay_s, self.line.silent = 0.0, False

    def close(self) -> None:
        if self._process is not None:
            self.kill()
        self.line.close()
