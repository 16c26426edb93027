"""How soon the arm slows down and rests after each fault of the failsafe table, and what the operator is told.

    python -m benchmarks.failsafes [--rounds 2] [--only NAME ...] [--out docs/results/failsafes]

Starts the simulated robot (`policytrim up`, async, a learned policy, recorder and console) once. Every round lets the policy move the arm,
injects one fault beneath the running processes, and asks the emulated arm what it really does. `slows after`: the setpoints' speed falls
from then on until they rest; `at rest after`: no true joint moves further than 1 mrad any more; `told after`: the controller
has said so. The bound is the table's (core/safety.py). A killed node is started again with `policytrim restart`, and moves
the arm again, before the next round. Exit code 1 when a round went wrong. It takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable

import can
import numpy as np
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from benchmarks.control_loop import ROOT, processes, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from benchmarks.soak import ARM, OWN_LIMITS, POLICIES, SESSION, WentWrong, apart, damaged_checkpoint, refused_swap, unharmed
from benchmarks.swap import Watch
from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.children import LOWEST, step_aside
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.graph import runtime_dir
from policytrim_ros.nodes.messages import LATCHED, chunk_to_message, seconds_to_time
from policytrim_ros.up import restart
from sim_bridge import realsense
from sim_bridge.faults import inject
from sim_bridge.wall_clock import WallClock

STILL_RAD, STILL_S, SPEED_ZERO = 0.001, 0.3, 1e-6
PATIENCE_S = 120.0  # for a node that is started again on a loaded machine
GOES_ON_S = 3.0
SINKS_S = 60.0  # an arm in damped stop comes to rest at its lowest pose
HEAD = (
    "injected",
    "failsafe",
    "rounds",
    "slows after, s",
    "at rest after, s",
    "bound, s",
    "told after, s",
    "what the operator is told",
)


@dataclass
class Case:
    """One fault: how it is ``broken``; the ``failsafe`` that must answer, '' when the arm must go on; ``also``: or one with these words."""

    broken: Callable[[], None]
    failsafe: str
    words: str = ""
    kills: str = ""
    also: str = ""
    rounds: int = 0
    slows: list = field(default_factory=list)
    rests: list = field(default_factory=list)
    told: list = field(default_factory=list)
    back: list = field(default_factory=list)
    wrong: list = field(default_factory=list)
    said: str = ""

    @property
    def bound_s(self) -> float:
        return FAILSAFES[self.failsafe].within_s if self.failsafe else 0.0


class Bench:
    """The running system, its clock, and everything that can be broken in it."""

    def __init__(self, clock: WallClock, said: list, folder: Path):
        self.watch, self.clock, self.said, self.folder = Watch(), clock, said, folder
        self.bus = str(runtime_dir() / f"{SESSION}.can")
        self._chunks = self.watch.node.create_publisher(JointTrajectory, "chunk", 10)
        self._trials = self.watch.node.create_publisher(String, "trial/state", LATCHED)
        self.recorder, self.tried = {}, ""
        self.watch.node.create_subscription(String, "recorder/status", self._on_recorder, LATCHED)
        self.damaged = damaged_checkpoint(folder)

    def _on_recorder(self, message) -> None:
        self.recorder = json.loads(message.data)

    def cases(self) -> dict[str, Case]:
        cases = {f"arm: {name}": Case(lambda n=name, a=a: inject(self.bus, n, **a), "arm status") for name, a in ARM.items()}
        for name in ("mute", "bus_off"):
            cases[f"arm: {name}"].failsafe = "feedback silent"
        for name in ("stale_joints", "zero_feedback"):
            cases[f"arm: {name}"].failsafe = "impossible feedback"
        cases[
            "arm: zero_feedback"
        ].also = "all feedback is zero"  # joints and status say so both; it depends on which is heard first
        cases["arm: a motor loses its enable bit"] = Case(self.disable, "not enabled")
        cases["arm: something holds its first joint"] = Case(self.block, "tracking")
        cases["arm: 5 % of frames lost"] = Case(lambda: inject(self.bus, "lost_frames", fraction=0.05), "")
        cases["operator's hold"] = Case(lambda: self.watch.order("controller/hold"), "operator hold")
        cases["front camera stalls"] = Case(lambda: realsense.inject(SESSION, "front", "stall"), "camera stale", "camera/front")
        cases["both cameras unplugged"] = Case(self.unplug, "camera stale", "camera/")
        cases["the policy falls silent"] = Case(lambda: self.watch.order("inference/run", False), "chunk starved")
        cases["a chunk with NaN"] = Case(lambda: self.send(np.full((5, 7), np.nan)), "bad chunk")
        below = np.tile([0.0, 2.9, -0.6, 0.0, 0.9, 0.0, 0.07], (15, 1))
        cases["a chunk into the table"] = Case(lambda: self.send(below), "beyond limits")
        cases["clock set forwards by 5 min"] = Case(lambda: self.clock.jump(300.0), "clock jump")
        cases["clock set backwards by 5 min"] = Case(lambda: self.clock.jump(-300.0), "clock jump")
        cases["swap for a damaged checkpoint"] = Case(
            lambda: refused_swap(self.watch, self.damaged), "swap failed", "changed or truncated"
        )
        cases["disk full"] = Case(self.fill, "disk full", "File too large")
        for name in ("camera", "inference", "console"):
            cases[f"kill -9 {name}"] = Case(lambda n=name: self.kill(n), "node lost", f"'{name}' is silent", name)
        cases["kill -9 inference while it is exchanged"] = Case(self.kill_exchanging, "node lost", "'inference'", "inference")
        cases["kill -9 recorder"] = Case(lambda: self.kill("recorder"), "", "the arm does not depend on it", "recorder")
        cases["kill -9 controller"] = Case(lambda: self.kill("controller"), "", "the arm keeps its last setpoint", "controller")
        cases["damped stop"] = Case(lambda: self.watch.order("controller/damped_stop"), "damped stop")
        return cases

    # ---- what is broken -------------------------------------------------------------------------------------------------

    def disable(self) -> None:
        """Another voice on the bus switches the wrist's last motor off."""
        with can.Bus(interface="piper_hub", channel=self.bus) as bus:
            bus.send(can.Message(arbitration_id=0x471, data=[6, 1, 0, 0, 0, 0, 0, 0], is_extended_id=False))

    def block(self) -> None:
        """The arm is told to turn by 0.9 rad and cannot; the policy looks again and would follow the arm."""
        self.watch.order("inference/run", False)
        inject(self.bus, "blocked", joint=1)
        aside = np.tile(READY, (15, 1))
        aside[:, 0] += np.linspace(0.0, 0.9, 15)
        self.send(aside)

    def unplug(self) -> None:
        for camera in ("front", "wrist"):
            realsense.inject(SESSION, camera, "unplug")

    def send(self, positions) -> None:
        watch = self.watch
        good = np.tile(READY, (len(positions), 1))
        message = chunk_to_message(
            Chunk(good, watch.status["generation"], 10**6, watch.consumed.next_step), seconds_to_time(time.time())
        )
        for point, position in zip(message.points, positions):
            point.positions = [float(v) for v in position]
        self._chunks.publish(message)

    def fill(self) -> None:
        """The recorder can write no more than 2 kB of the file of a trial that begins and ends."""
        self.limit_recorder(2000)
        for phase in ("running", "done"):
            self._trials.publish(String(data=json.dumps({"recording": "full/trial", "phase": phase})))
            self.watch.spin(1.5)

    def limit_recorder(self, size: int) -> None:
        pid = processes()["recorder"]
        most = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size if size >= 0 else most, most))

    def kill(self, name: str) -> None:
        os.kill(processes()[name], signal.SIGKILL)

    def kill_exchanging(self) -> None:
        """While another checkpoint is tried."""
        now = Path(self.watch.status["checkpoint"]).name
        self.tried = str(ROOT / "models" / POLICIES[now == POLICIES[0]])
        parameter = Parameter("checkpoint", value=self.tried).to_parameter_msg()
        client = self.watch.node.create_client(SetParameters, "inference/set_parameters")
        client.wait_for_service(10.0)
        client.call_async(SetParameters.Request(parameters=[parameter]))
        self.until(lambda: self.watch.status["loading"], "the exchange does not begin", 20.0)
        self.kill("inference")

    # ---- rounds -----------------------------------------------------------------------------------------------------------

    def until(self, condition, what: str, within_s: float = PATIENCE_S) -> float:
        began = time.monotonic()
        while not condition():
            self.watch.spin(0.02)
            if time.monotonic() - began > within_s:
                raise WentWrong(f"{what} (controller: {self.watch.state})")
        return time.monotonic() - began

    def ordered(self, name: str, request=None) -> bool:
        try:
            self.watch.order(name, request)
        except (SystemExit, AttributeError):  # refused, or not answered: its process has just ended
            return False
        return True

    def moves(self) -> None:
        """A new scene, and the policy moves the arm. Again while it is refused: nodes come back one after the other."""
        watch = self.watch

        def begun():
            if watch.state.startswith("fault") and not self.ordered("controller/clear_fault"):
                return False
            if not self.ordered("controller/home"):
                return False
            self.until(lambda: "home" in watch.state or watch.state.startswith("fault"), "nobody moves home", 20.0)
            self.until(lambda: not watch.state.startswith("moving: home"), "it does not come home", 20.0)
            if not (watch.state.startswith("holding: home") and self.ordered("scene/reset")):
                return False
            watch.spin(0.5)
            if not (self.ordered("controller/go") and self.ordered("inference/run", True)):
                return False
            step, end = watch.consumed.next_step, time.monotonic() + 10.0
            while (
                not watch.state.startswith("moving") and time.monotonic() < end - 9.0
            ):  # the answer may be heard before the state
                watch.spin(0.05)
            while watch.consumed.next_step < step + 15 and time.monotonic() < end and watch.state.startswith("moving"):
                watch.spin(0.05)
            return watch.consumed.next_step >= step + 15 and watch.state.startswith("moving")

        self.until(lambda: not watch.state.startswith("moving"), "nobody holds") if self.ordered("controller/hold") else None
        self.until(begun, "the policy does not move the arm", PATIENCE_S)

    def truth(self) -> dict:
        return inject(self.bus, "state")

    def round(self, name: str, case: Case) -> None:
        self.moves()
        before, lines = self.truth(), len(self.said)
        began = time.monotonic()
        self.watch.setpoints.clear()
        case.broken()
        if case.failsafe in ("", "swap failed", "disk full") and case.kills != "controller":
            self.goes_on(case, lines)
        else:
            self.holds(case, began, before, lines)

    def goes_on(self, case: Case, lines: int) -> None:
        step = self.watch.consumed.next_step
        self.watch.spin(GOES_ON_S)
        if not self.watch.state.startswith("moving") or self.watch.consumed.next_step <= step + 5:
            raise WentWrong(f"the arm does not go on: {self.watch.state}")
        if case.kills:
            case.said = self.said_since(lines, case)
        elif case.failsafe == "disk full":
            self.until(lambda: self.recorder.get("state") == "failed", "the recording does not fail", 20.0)
            case.said = self.recorder["reason"]
            if [path.suffix for path in self.folder.glob("runs/full/*")] != [".partial"]:
                raise WentWrong("half a recording bears the name of a whole one")
        else:
            case.said = self.watch.status["news"].replace(f"{self.folder}/", "")
        if case.words not in case.said:
            raise WentWrong(f"other words: {case.said}")

    def said_since(self, lines: int, case: Case) -> str:
        found = lambda: [line for line in self.said[lines:] if case.words in line]  # noqa: E731
        self.until(found, f"nobody says '{case.words}'", 20.0)
        return found()[0]

    def holds(self, case: Case, began: float, before: dict, lines: int) -> None:
        """Samples the true arm until it has been still for STILL_S and the controller has said why."""
        watch, samples, told, first = self.watch, [], None, ""
        while True:
            samples.append((time.monotonic() - began, self.truth()["position"]))
            watch.spin(0.005)
            if told is None and not watch.state.startswith("moving"):
                told, first = time.monotonic() - began, watch.state
            elif told is None and case.kills == "controller" and any(case.words in line for line in self.said[lines:]):
                told = time.monotonic() - began
            late = samples[-1][0]
            still = [apart(p, samples[-1][1]) < STILL_RAD for t, p in samples if t > late - STILL_S]
            if told is not None and late > told + STILL_S and all(still):
                break
            if late > (SINKS_S if case.failsafe == "damped stop" else max(case.bound_s, 2.0) + 8.0):
                raise WentWrong("not noticed" if told is None else "the arm does not come to rest")
        rest = next(t for i, (t, p) in enumerate(samples) if all(apart(q, p) < STILL_RAD for _, q in samples[i:]))
        case.told.append(told), case.rests.append(rest)
        if (slows := slowing(watch.setpoints, began)) is not None:
            case.slows.append(slows)
        latest = watch.state if case.failsafe in watch.state else first  # more words may follow, and other faults
        case.said = self.said_since(lines, case) if case.kills == "controller" else latest
        known = case.failsafe in case.said and case.words in case.said or case.also and case.also in case.said
        if case.kills != "controller" and not known:
            raise WentWrong(f"another reason: {case.said}")
        if case.broken != self.disable and case.failsafe != "damped stop":
            unharmed(before, self.truth())
        if case.bound_s and rest > case.bound_s:
            raise WentWrong(f"at rest after {rest:.2f} s, the bound is {case.bound_s:g} s")

    def mend(self, case: Case) -> None:
        inject(self.bus, "clear")
        self.clock.right()
        for camera in ("front", "wrist"):
            realsense.inject(SESSION, camera, "clear")
        if case.failsafe == "disk full":
            self.limit_recorder(-1)
        if case.kills:
            self.bring_back(case)
        self.ordered("inference/run", False)
        self.ordered("controller/hold")

    def bring_back(self, case: Case) -> None:
        watch, began, name = self.watch, time.monotonic(), case.kills
        spoke = watch.status["checkpoint"]
        if name == "controller":
            watch.state, watch.consumed = "", None
        if name == "inference":
            watch.status = {}
        self.until(lambda: name not in processes(), f"{name} does not end", 20.0)
        watch.spin(0.5)  # `up` looks ten times a second
        restart(SESSION)
        self.until(lambda: watch.status and watch.state and watch.consumed, f"{name} does not come back")
        self.moves()
        case.back.append(time.monotonic() - began)
        if watch.status["checkpoint"] != spoke or (self.tried and self.tried not in watch.status["news"]):
            raise WentWrong(f"{spoke} spoke, now {watch.status['checkpoint']}: {watch.status['news']}")
        case.said += f"; then: {watch.status['news']}" if self.tried else ""
        self.tried = ""


def once(bench: Bench, name: str, case: Case) -> None:
    """One round and what mends it; again when the policy itself asked for what lies beyond the limits."""
    for tries_left in (2, 1, 0):
        try:
            bench.round(name, case)
        except WentWrong as error:
            if OWN_LIMITS not in str(error) or case.failsafe == OWN_LIMITS or not tries_left:
                raise
        else:
            return
        finally:
            if case.failsafe != "damped stop":
                bench.mend(case)


def slowing(setpoints, began: float) -> float | None:
    """Seconds from ``began`` to the first of the setpoints from which on their speed only falls until they rest; None without a rest."""
    times, speeds = np.array([row[0] for row in setpoints]) - began, np.array([np.max(np.abs(row[1:7])) for row in setpoints])
    resting = np.flatnonzero(speeds < SPEED_ZERO)
    if not len(resting) or resting[-1] != len(speeds) - 1:
        return None
    at = len(speeds) - 1
    while at > 0 and speeds[at - 1] < SPEED_ZERO:
        at -= 1
    while at > 0 and speeds[at - 1] > speeds[at] + 1e-9:
        at -= 1
    return max(0.0, float(times[at]))


def loaded(bench: Bench) -> dict:
    """Two processes that never wait, at normal priority, and two at the trainer's: how late setpoints are, and how soon a hold is heard."""
    spin = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(spin, start_new_session=True) for _ in range(2)]
    busy += [subprocess.Popen(spin, start_new_session=True, preexec_fn=lambda: step_aside(LOWEST)) for _ in range(2)]
    try:
        bench.moves()
        bench.watch.heard.clear()
        bench.watch.spin(8.0)
        late = bench.watch.heard["controller"]
        case = Case(lambda: bench.watch.order("controller/hold"), "operator hold")
        bench.round("hold under load", case)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    return {
        "late_p99_ms": max(float(d["lateness_p99_ms"]) for d in late),
        "late_max_ms": max(float(d["lateness_max_ms"]) for d in late),
        "rest_s": case.rests[0],
        "told_s": case.told[0],
    }


def span(values) -> str:
    return f"{np.median(values):.2f} / {max(values):.2f}" if values else "-"


def table(cases: dict[str, Case]) -> str:
    rows = []
    for name, case in cases.items():
        wrong = f" ({len(case.wrong)} wrong)" if case.wrong else ""
        bound = f"{case.bound_s:g}" if case.bound_s else ("-" if case.rests else "goes on")
        said = case.said if case.failsafe in ("swap failed", "") else case.said.partition(";")[0]
        row = (span(case.slows), span(case.rests), bound, span(case.told), said.replace(str(ROOT) + "/", "").replace("|", "/"))
        rows.append((name, case.failsafe or "-", f"{case.rounds}{wrong}", *row))
    return markdown(HEAD, rows)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each fault; of each killed node one (2)")
    parser.add_argument("--only", nargs="+", default=[], help="only faults in whose names one of these is found")
    parser.add_argument("--out", type=Path, default=Path("docs/results/failsafes"))
    options = parser.parse_args(arguments)
    load, said, wrong, under_load = os.getloadavg()[0], [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        clock = WallClock(folder, spares="sim_bridge.world")  # its software renderer waits by the wall clock
        os.environ.update(clock.environment)  # of what is started from here on; this process keeps its clock
        up = ["mode:=async", "record:=true", "console:=true", "console_port:=0", f"out:={folder / 'runs'}"]
        with running_system(f"checkpoint:={ROOT / 'models' / POLICIES[0]}", *up, said=said):
            for name in clock.environment:
                del os.environ[name]
            bench = Bench(clock, said, folder)
            bench.until(lambda: bench.watch.status and bench.watch.state and bench.watch.consumed, "the system does not speak")
            cases = {n: c for n, c in bench.cases().items() if not options.only or any(word in n for word in options.only)}
            for name, case in cases.items():
                for _ in range(1 if case.kills or case.failsafe in ("damped stop", "disk full") else options.rounds):
                    case.rounds += 1
                    try:
                        once(bench, name, case)
                    except WentWrong as error:
                        case.wrong.append(str(error))
                        wrong.append(f"{name}: {error}")
                    print(
                        f"{name}: rest {span(case.rests)} told {span(case.told)}: {case.said[:90]}; {len(wrong)} wrong",
                        flush=True,
                    )
                if name == "operator's hold":
                    try:
                        under_load = loaded(bench)
                    except WentWrong as error:
                        wrong.append(f"loaded machine: {error}")
    head = circumstances("failsafes", load, rounds=options.rounds)
    back = {name: round(case.back[0], 1) for name, case in cases.items() if case.back}
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}: {sum(c.rounds for c in cases.values())} rounds, "
    about += f"{len(wrong)} went wrong. Median / largest of the rounds.\n\n" + "\n".join(f"- {line}" for line in wrong)
    if under_load:
        about += (
            "\nTwo processes that never wait at normal priority and two at the trainer's (niceness 19, SCHED_IDLE) beside the moving arm: setpoints "
            f"late p99 {under_load['late_p99_ms']:.2f} ms, at most {under_load['late_max_ms']:.1f} ms; an operator's hold was told after "
            f"{under_load['told_s']:.2f} s, the arm at rest after {under_load['rest_s']:.2f} s.\n"
        )
    if back:
        about += "\nFrom `policytrim restart` to an arm that moves again (home, a new scene, go): "
        about += ", ".join(f"{name.removeprefix('kill -9 ')} {seconds:g} s" for name, seconds in back.items()) + ".\n"
    about += "\n`send failed` cannot be injected alone: an emulated bus that takes nothing says nothing either, and `feedback silent` is sooner (tests/test_safety.py has it)."
    figures = {
        n: dict(failsafe=c.failsafe, bound_s=c.bound_s, slows_s=c.slows, rests_s=c.rests, told_s=c.told, back_s=c.back, wrong=c.wrong, told=c.said)
        for n, c in cases.items()
    }  # fmt: skip
    leave(options.out, "Failsafes: measured times", about, table(cases), {**head, "loaded": under_load, "faults": figures})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
