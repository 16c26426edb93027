"""What exchanging the policy costs while it moves the arm: rests, setpoints, velocity, latency, and how long it takes.

    python -m benchmarks.swap [--swaps 3] [--latency 0.09 0.2 0.34] [--mode async] [--out docs/results/swap]

Starts the simulated robot (`policytrim up`), lets a policy move the arm, exchanges it for another and back, and takes the last one back
(`inference/roll_back`). With --latency the same again for policies that take so long: served by `policytrim serve` behind a network line
which delays every answer. Each exchange has a scene of its own. Rests are the executor's own count; slack is what was left of the plan when
the next chunk came, at least; velocity is that of the setpoints which left the safety filter, as the share of what the acceleration
limit allows between two of them (a listener that misses setpoints sees more than 1; tests/test_safety.py keeps the limit itself);
lateness is the setpoint thread's own, over the last five seconds, ticks missed its own count from up to a second before; the age is
that of an observation when its first action plays.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import JointState
from std_msgs.msg import Int64MultiArray, String

from benchmarks.control_loop import ROOT, Probe, running_system
from benchmarks.policy_server import PolicyServer
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core.replanning import ASYNC, MODES
from policytrim_ros.core.safety import SafetyLimits
from policytrim_ros.nodes.messages import LATCHED, Consumed

QUIET_S = 8.0
"""Moving without an exchange, for comparison."""

TICK_S = 0.01
HEAD = (
    "policies", "phase", "seconds", "rests", "ticks missed", "least slack, ms", "setpoint late p99, ms", "largest step of velocity, of the limit",
    "policy p50 / p99, ms", "age of an observation p95, ms",
)  # fmt: skip
NAMES = ("piper-pi0-tiny", "tape-box-pi0-trimmed")


class Watch(Probe):
    """Also hears what is executed."""

    def __init__(self):
        super().__init__()
        self.status, self.state, self.consumed, self.setpoints, self.slacks = {}, "", None, [], []
        hear = self.node.create_subscription
        hear(String, "inference/status", self._on_status, LATCHED)
        hear(String, "controller/state", lambda m: setattr(self, "state", m.data), LATCHED)
        hear(Int64MultiArray, "controller/consumed", lambda m: setattr(self, "consumed", Consumed.from_message(m)), 2)
        hear(JointState, "controller/setpoint", self._on_setpoint, 200)
        self._parameters = self.node.create_client(SetParameters, "inference/set_parameters")

    def _on_status(self, message) -> None:
        self.status = json.loads(message.data)
        if self.status["slack_ms"] is not None:
            self.slacks.append(self.status["slack_ms"])

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
        self.go()
        self.order("inference/run", True)
        self.spin(2.0)

    def go(self, within_s: float = 10.0) -> None:
        """Again while it is refused: a controller that has just started may not have heard every node yet."""
        end = time.monotonic() + within_s
        while True:
            try:
                return self.order("controller/go")
            except SystemExit:
                if time.monotonic() > end:
                    raise
                self.spin(0.25)

    def ask_for(self, directory: str) -> None:
        """Has inference load ``directory``; its status tells what comes of it."""
        self._parameters.wait_for_service(10.0)
        self._parameters.call_async(
            SetParameters.Request(parameters=[Parameter("checkpoint", value=directory).to_parameter_msg()])
        )

    def swap(self, directory: str, at_rest: bool = False, within_s: float = 180.0) -> float:
        """Seconds until ``directory`` speaks and, unless ``at_rest``, its first action plays."""
        began, before = time.monotonic(), self.status["exchanges"]
        self.ask_for(directory)
        while self.status["exchanges"] == before or not (at_rest or self.consumed.generation == self.status["generation"]):
            self.spin(0.01)
            if not (at_rest or self.state.startswith("moving")):
                raise SystemExit(f"the arm does not move any more: {self.state}; {self.status['news']}")
            if time.monotonic() - began > within_s:
                raise SystemExit(f"no exchange within {within_s:g} s: {self.status['news']}")
        if self.status["checkpoint"] != directory:
            raise SystemExit(self.status["news"])
        return time.monotonic() - began

    def roll_back(self, directory: str) -> None:
        """Until the earlier generation, that of ``directory``, plays its first action."""
        self.order("inference/roll_back")
        began = time.monotonic()
        while self.status["checkpoint"] != directory or self.consumed.generation != self.status["generation"]:
            self.spin(0.01)
            if not self.state.startswith("moving") or time.monotonic() - began > 20.0:
                raise SystemExit(f"rolled back, but: {self.state}; {self.status['checkpoint']}; {self.status['news']}")

    def settle(self) -> None:
        """Until no exchange is under way."""
        while self.status["loading"]:
            self.spin(0.1)


def measured(watch: Watch, policies: str, phase: str, act) -> dict:
    """One row: what happened while ``act()`` ran."""
    missed = lambda: int(watch.heard["controller"][-1]["ticks_missed"])  # noqa: E731
    missed_before, rests, began = missed(), watch.consumed.stalls, time.monotonic()
    watch.setpoints.clear(), watch.heard.clear(), watch.slacks.clear()
    act()
    seconds = time.monotonic() - began
    rested = watch.consumed.stalls - rests
    watch.spin(1.5)  # diagnostics come once a second
    times, velocities = np.array([row[0] for row in watch.setpoints]), np.array([row[1:] for row in watch.setpoints])
    ticks = np.maximum(1, np.round(np.diff(times) / TICK_S))[:, None]  # a subscriber may miss some
    steps = np.abs(np.diff(velocities, axis=0)) / (np.array(SafetyLimits().a_max) * TICK_S * (ticks + 1))
    return {
        "policies": policies,
        "phase": phase,
        "seconds": seconds,
        "rests": rested,
        "ticks_missed": missed() - missed_before,
        "least_slack_ms": min(watch.slacks, default=None),
        "late_p99_ms": float(watch.heard["controller"][-1]["lateness_p99_ms"]),
        "velocity_step_of_limit": float(steps.max()),
        "policy_p50_ms": watch.status["latency_ms_p50"],
        "policy_p99_ms": watch.status["latency_ms_p99"],
        "observation_age_p95_ms": watch.status["observation_age_ms_p95"],
        "generation": watch.status["generation"],
    }


def exchanges(watch: Watch, policies: str, names: dict[str, str], swaps: int) -> list[dict]:
    """Rows: no exchange, ``swaps`` exchanges between the two addresses of ``names`` (address -> name), the last one taken back."""
    rows = []
    for number in range(swaps + 2 if swaps else 1):
        for tries_left in (2, 1, 0):  # a policy may ask for what lies beyond the limits, and is held: once more
            watch.begin()
            speaking = watch.status["checkpoint"]
            other = next(address for address in names if address != speaking)
            try:
                if number == 0:
                    row = measured(watch, policies, "no exchange", lambda: watch.spin(QUIET_S))
                elif number <= swaps:
                    row = measured(watch, policies, f"to {names[other]}", lambda: watch.swap(other))
                else:
                    row = measured(watch, policies, f"back to {names[other]}", lambda: watch.roll_back(other))
            except SystemExit as held:
                if not tries_left:
                    raise
                print(f"once more: {held}", flush=True)
            else:
                rows.append(row)
                break
            finally:
                watch.order("inference/run", False)
                watch.order("controller/hold")
                watch.settle()
        print(rows[-1], flush=True)
    return rows


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=3, help="exchanges, before one is taken back; 0: neither (%(default)s)")
    parser.add_argument(
        "--latency", type=float, nargs="*", default=[], metavar="S", help="also with served policies that take so many seconds"
    )
    parser.add_argument("--mode", default=ASYNC, choices=MODES, help="when the policies look again (%(default)s)")
    parser.add_argument("--up", nargs="+", default=[], metavar="NAME:=VALUE", help="more words for `policytrim up`, e.g. camera_fps:=20")
    parser.add_argument("--out", type=Path, default=Path("docs/results/swap"))
    options = parser.parse_args(arguments)
    load, rows = os.getloadavg()[0], []
    here = {str(ROOT / "models" / name): name for name in NAMES}
    first = next(iter(here))
    with ExitStack() as stack:
        stack.enter_context(running_system(f"checkpoint:={first}", f"mode:={options.mode}", *options.up))
        watch = Watch()
        rows += exchanges(watch, "in the inference node", here, options.swaps)
        if options.latency:
            servers = [stack.enter_context(closing(PolicyServer(name))) for name in NAMES]
            for server in servers:
                server.start()
            served = {server.address: name for server, name in zip(servers, NAMES)}
            watch.swap(servers[0].address, at_rest=True)
            rows += exchanges(watch, "served", served, options.swaps)
            undelayed = next(row for row in rows if row["policies"] == "served")["policy_p50_ms"] / 1000
            for latency in options.latency:
                for server in servers:
                    server.line.delay_s = max(0.0, (latency - undelayed) / 2)
                rows += exchanges(watch, f"served, {latency * 1000:.0f} ms", served, options.swaps)
            unlike = {first: NAMES[0], servers[1].address: NAMES[1]}
            watch.swap(first, at_rest=True)
            rows += exchanges(watch, f"{NAMES[0]} in the node, {NAMES[1]} served, {latency * 1000:.0f} ms", unlike, options.swaps)
    head = circumstances("swap", load, mode=options.mode)
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}; mode {options.mode}; generations {rows[0]['generation']} to {rows[-1]['generation']}."
    leave(options.out, "Exchanging the policy while it moves the arm", about, table(rows), {**head, "rows": rows})
    return 0


def table(rows: list[dict]) -> str:
    ms = lambda value: "-" if value is None else f"{value:.0f}"  # noqa: E731
    return markdown(
        HEAD,
        [
            (
                row["policies"], row["phase"], f"{row['seconds']:.1f}", row["rests"], row["ticks_missed"], ms(row["least_slack_ms"]),
                f"{row['late_p99_ms']:.2f}",
                f"{row['velocity_step_of_limit']:.2f}", f"{ms(row['policy_p50_ms'])} / {ms(row['policy_p99_ms'])}",
                ms(row["observation_age_p95_ms"]),
            )
            for row in rows
        ],
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
