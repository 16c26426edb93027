"""What exchanging the policy costs while it moves the arm: rests, setpoints, velocity, latency, and how long it takes.

    python -m benchmarks.swap [--swaps 6] [--mode async] [--out docs/results/swap]

Starts the simulated robot (`policytrim up`), lets a policy move the arm, and exchanges it for another and back. Rests are the
executor's own count; velocity is that of the setpoints which left the safety filter, as the share of what the acceleration
limit allows between two of them (a listener that misses setpoints sees more than 1; tests/test_safety.py keeps the limit itself);
lateness is the setpoint thread's own, over the last five seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String

from benchmarks.control_loop import ROOT, Probe, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core.replanning import ASYNC, MODES
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.nodes.messages import LATCHED, Consumed

QUIET_S = 8.0
"""Moving without an exchange, for comparison; every exchange has a scene of its own."""

TICK_S = 0.01
HEAD = ("phase", "seconds", "rests", "setpoint late p99 ms", "largest step of velocity, of the limit", "policy p50 / p99 ms")


class Watch(Probe):
    """Also hears what is executed."""

    def __init__(self):
        super().__init__()
        self.status, self.state, self.consumed, self.setpoints = {}, "", None, []
        hear = self.node.create_subscription
        hear(String, "inference/status", lambda m: setattr(self, "status", json.loads(m.data)), LATCHED)
        hear(String, "controller/state", lambda m: setattr(self, "state", m.data), LATCHED)
        hear(Int64MultiArray, "controller/consumed", lambda m: setattr(self, "consumed", Consumed.from_message(m)), 2)
        hear(JointState, "controller/setpoint", self._on_setpoint, 200)
        self._parameters = self.node.create_client(SetParameters, "inference/set_parameters")

    def _on_setpoint(self, message) -> None:
        self.setpoints.append((time.monotonic(), *message.velocity))

    def begin(self) -> None:
        """A new scene, the arm at the ready pose, then go."""
        self.order("controller/home")
        self.spin(0.5)
        while not self.state.startswith("holding"):
            self.spin(0.1)
        self.order("scene/reset")
        self.spin(1.0)
        self.order("controller/go")
        self.order("inference/run", True)
        self.spin(2.0)

    def ask_for(self, directory: str) -> None:
        """Has inference load ``directory``; its status tells what comes of it."""
        self._parameters.wait_for_service(10.0)
        self._parameters.call_async(
            SetParameters.Request(parameters=[Parameter("checkpoint", value=directory).to_parameter_msg()])
        )

    def swap(self, directory: str) -> float:
        """Seconds until ``directory`` speaks and its first action plays."""
        began, before = time.monotonic(), self.status["exchanges"]
        self.ask_for(directory)
        while self.status["exchanges"] == before or self.consumed.generation != self.status["generation"]:
            self.spin(0.01)
            if not self.state.startswith("moving"):
                raise SystemExit(f"the arm does not move any more: {self.state}; {self.status['news']}")
            if time.monotonic() - began > 180.0:
                raise SystemExit(f"no exchange within 180 s: {self.status['news']}")
        if self.status["checkpoint"] != directory:
            raise SystemExit(self.status["news"])
        return time.monotonic() - began


def measured(watch: Watch, phase: str, act) -> dict:
    """One row: what happened while ``act()`` ran."""
    watch.setpoints.clear(), watch.heard.clear()
    rests, began = watch.consumed.stalls, time.monotonic()
    act()
    seconds = time.monotonic() - began
    rested = watch.consumed.stalls - rests
    watch.spin(1.5)  # diagnostics come once a second
    times, velocities = np.array([row[0] for row in watch.setpoints]), np.array([row[1:] for row in watch.setpoints])
    ticks = np.maximum(1, np.round(np.diff(times) / TICK_S))[:, None]  # a subscriber may miss some
    steps = np.abs(np.diff(velocities, axis=0)) / (np.array(SafetyLimits().a_max) * TICK_S * (ticks + 1))
    return {
        "phase": phase,
        "seconds": seconds,
        "rests": rested,
        "late_p99_ms": float(watch.heard["controller"][-1]["lateness_p99_ms"]),
        "velocity_step_of_limit": float(steps.max()),
        "policy_p50_ms": watch.status["latency_ms_p50"],
        "policy_p99_ms": watch.status["latency_ms_p99"],
        "generation": watch.status["generation"],
    }


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=6, help="exchanges (6)")
    parser.add_argument("--checkpoints", nargs=2, default=["models/piper-pi0-tiny", "models/tape-box-pi0-trimmed"], metavar="DIR")
    parser.add_argument("--mode", default=ASYNC, choices=MODES, help="when the policies look again (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/swap"))
    options = parser.parse_args(arguments)
    load = os.getloadavg()[0]
    first, second = (str((ROOT / directory).resolve()) for directory in options.checkpoints)
    rows = []
    with running_system(f"checkpoint:={first}", f"mode:={options.mode}"):
        watch = Watch()
        for number in range(options.swaps + 1):
            watch.begin()
            directory = (first, second)[number % 2]
            if number == 0:
                rows.append(measured(watch, "no exchange", lambda: watch.spin(QUIET_S)))
            else:
                rows.append(measured(watch, f"to {Path(directory).name}", lambda: watch.swap(directory)))
            watch.order("inference/run", False)
            watch.order("controller/hold")
    cells = [
        (
            row["phase"], f"{row['seconds']:.1f}", row["rests"], f"{row['late_p99_ms']:.2f}", f"{row['velocity_step_of_limit']:.2f}",
            f"{row['policy_p50_ms']:.0f} / {row['policy_p99_ms']:.0f}",
        )
        for row in rows
    ]  # fmt: skip
    head = circumstances("swap", load, mode=options.mode)
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}; mode {options.mode}; generations {rows[0]['generation']} to {rows[-1]['generation']}."
    leave(options.out, "Exchanging the policy while it moves the arm", about, markdown(HEAD, cells), {**head, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
