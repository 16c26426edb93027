"""What the benchmarks of faults break in the running system, which failsafe must answer, and how that is seen: failsafes.py and soak.py.

    with running_bench(folder) as bench:
        bench.cases() -> {name: Case}; once(bench, case): the policy moves the arm, the case is broken, watched and mended

Nothing is asked of the product that an operator could not ask: the emulated arm says what it really does.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator

import can
import numpy as np
from std_msgs.msg import String
from trajectory_msgs.msg import JointTrajectory

from benchmarks.control_loop import ROOT, processes, running_system
from benchmarks.policy_server import PolicyServer
from benchmarks.swap import Watch
from policytrim_ros.core.contract import is_remote
from policytrim_ros.core.safety import FAILSAFES
from policytrim_ros.core.types import READY, Chunk
from policytrim_ros.graph import runtime_dir
from policytrim_ros.nodes.messages import LATCHED, chunk_to_message, seconds_to_time
from policytrim_ros.up import restart
from sim_bridge import realsense
from sim_bridge.faults import inject
from sim_bridge.sim_clock import SimClock

SESSION = "benchmark"
STILL_RAD, STILL_S, SPEED_ZERO = 0.003, 0.3, 1e-6
"""At rest: no joint moves further than STILL_RAD in STILL_S; contacts of the simulated world shake one that is held by 1.9 mrad."""

PATIENCE_S = 120.0  # for a node that is started again on a loaded machine
GOES_ON_S = 3.0
SINKS_S = 60.0  # an arm in damped stop comes to rest at its lowest pose
OWN_LIMITS = "beyond limits"
"""The policy was held for what it asked itself, after its task was done perhaps: such a round says nothing about the fault."""

JUMP_S = 60.0
"""For so long after a clock was set back, a node that was killed and started again gets no pictures: shared memory of Fast DDS 2.14, see Probe."""

BELOW = (0.0, 2.9, -0.6, 0.0, 0.9, 0.0, 0.07)
"""A pose whose fingertip would be deep in the table."""

GO_ON = ("chunk late", "chunk cut", "swap failed", "disk full")
"""Failsafes after which the arm goes on by itself."""

POLICIES = ("piper-pi0-tiny", "tape-box-pi0-trimmed")
ARM = {
    "mute": {}, "bus_off": {}, "no_transmit": {}, "stale_joints": {}, "zero_feedback": {}, "teach_mode": {}, "status": dict(code=10), "collision": dict(joint=2),
    "stall": dict(joint=3), "joint_error": dict(joint=4), "comm_error": dict(joint=5), "undervoltage": dict(joint=1),
}  # fmt: skip


class WentWrong(RuntimeError):
    """A round that did not end as it must."""


@dataclass
class Case:
    """One fault: how it is ``broken``; the ``failsafe`` that must answer, '' when the arm must go on; ``also``: or one with these words;
    ``remote``: the policy is that of a server behind a line."""

    broken: Callable[[], None]
    failsafe: str
    words: str = ""
    kills: str = ""
    also: str = ""
    remote: bool = False
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

    def __init__(self, clock: SimClock, said: list, folder: Path):
        self.watch, self.clock, self.said, self.folder = Watch(), clock, said, folder
        self.bus = str(runtime_dir() / f"{SESSION}.can")
        self._chunks = self.watch.node.create_publisher(JointTrajectory, "chunk", 10)
        self._trials = self.watch.node.create_publisher(String, "trial/state", LATCHED)
        self.recorder, self.tried, self.refusal, self.fills = {}, "", "", 0
        self.watch.node.create_subscription(String, "recorder/status", self._on_recorder, LATCHED)
        self.damaged = damaged_checkpoint(folder)
        self.server = PolicyServer(POLICIES[1])

    def _on_recorder(self, message) -> None:
        self.recorder = json.loads(message.data)

    def cases(self) -> dict[str, Case]:
        cases = {f"arm: {name}": Case(lambda n=name, a=a: inject(self.bus, n, **a), "arm status") for name, a in ARM.items()}
        for name in ("mute", "bus_off"):
            cases[f"arm: {name}"].failsafe = "feedback silent"
        cases["arm: no_transmit"].failsafe = "send failed"
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
        # longer than what this process hears late
        cases["a chunk into the table"] = Case(lambda: self.send_last(np.tile(BELOW, (80, 1))), "beyond limits")
        ends_below = np.concatenate([np.tile(READY, (30, 1)), np.tile(BELOW, (50, 1))])
        cases["a chunk that ends in the table"] = Case(lambda: self.send(ends_below), "chunk cut", "beyond the workspace or table")
        cases["clock set forwards by 1 min"] = Case(lambda: self.clock.jump(JUMP_S), "clock jump")
        cases["clock set backwards by 1 min"] = Case(lambda: self.clock.jump(-JUMP_S), "clock jump")
        cases["swap for a damaged checkpoint"] = Case(self.swap_damaged, "swap failed", "changed or truncated")
        cases["disk full"] = Case(self.fill, "disk full", "File too large")
        cases["inference is stopped (SIGSTOP)"] = Case(lambda: self.signal("inference", signal.SIGSTOP), "node lost", "'inference'")
        cases["exchange of the policy"] = Case(self.exchange, "")
        cases["inference is stopped for 0.7 s"] = Case(self.pause_inference, "chunk late", "slowed by")
        cases["the policy's line takes 0.4 s each way"] = Case(self.delay, "chunk late", "slowed by", remote=True)
        cases["the policy's line is cut for a moment"] = Case(lambda: self.server.line.cut(), "", remote=True)
        cases["the policy's line falls silent"] = Case(lambda: setattr(self.server.line, "silent", True), "server lost", "no answer", remote=True)
        cases["kill -9 the policy's server"] = Case(lambda: self.server.kill(), "server lost", "no policy server there", remote=True)
        for name in ("camera", "inference", "console"):
            cases[f"kill -9 {name}"] = Case(lambda n=name: self.kill(n), "node lost", f"'{name}' is silent", name)
        cases["kill -9 inference while it is exchanged"] = Case(self.kill_exchanging, "node lost", "'inference'", "inference")
        cases["kill -9 recorder"] = Case(lambda: self.kill("recorder"), "", "the arm does not depend on it", "recorder")
        cases["kill -9 controller"] = Case(lambda: self.kill("controller"), "", "the arm keeps its last setpoint", "controller")
        cases["damped stop"] = Case(lambda: self.watch.order("controller/damped_stop"), "damped stop")
        return cases

    # ---- what is broken -------------------------------------------------------------------------------------------------

    def disable(self) -> None:
        switch_off(self.bus)

    def block(self) -> None:
        """The arm is told to turn by 0.9 rad and cannot; the policy looks again and would follow the arm."""
        self.watch.order("inference/run", False)
        inject(self.bus, "blocked", joint=1)
        aside = np.tile(READY, (15, 1))
        aside[:, 0] += np.linspace(0.0, 0.9, 15)
        self.send(aside)

    def pause_inference(self) -> None:
        """Not for as long as a node may be silent."""
        self.signal("inference", signal.SIGSTOP)
        time.sleep(0.7)
        self.signal("inference", signal.SIGCONT)

    def delay(self) -> None:
        self.server.line.delay_s = 0.4

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

    def send_last(self, positions) -> None:
        """No chunk of the policy takes its place."""
        self.watch.order("inference/run", False)
        self.send(positions)

    def fill(self) -> None:
        """The recorder can write no more than 2 kB of the file of a trial that begins and ends."""
        self.fills += 1
        self.limit_recorder(2000)
        for phase in ("running", "done"):
            self._trials.publish(String(data=json.dumps({"recording": f"full/trial{self.fills}", "phase": phase})))
            self.watch.spin(1.5)

    def limit_recorder(self, size: int) -> None:
        pid = self.pid("recorder")
        most = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size if size >= 0 else most, most))

    def pid(self, name: str) -> int:
        if name not in (running := processes()):
            raise WentWrong(f"{name} does not run")
        return running[name]

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def kill(self, name: str) -> None:
        self.signal(name, signal.SIGKILL)

    @property
    def other(self) -> str:
        """The one of POLICIES that does not speak."""
        now = Path(self.watch.status["checkpoint"]).name
        return str(ROOT / "models" / POLICIES[now == POLICIES[0]])

    def exchange(self) -> None:
        """For the other of POLICIES."""
        self.swap(self.other)

    def swap(self, checkpoint: str, **how) -> None:
        try:
            self.watch.swap(checkpoint, **how)
        except SystemExit as refusal:
            raise WentWrong(str(refusal)) from refusal

    def swap_damaged(self) -> None:
        """Is refused, and what spoke goes on."""
        before, self.refusal = self.watch.status["checkpoint"], ""
        try:
            self.watch.swap(str(self.damaged))
        except SystemExit as refusal:
            self.refusal = str(refusal)
        if not self.refusal or self.watch.status["checkpoint"] != before:
            raise WentWrong(f"a damaged checkpoint speaks: {self.watch.status['checkpoint']}; {self.refusal}")

    def kill_exchanging(self) -> None:
        """While another checkpoint is tried."""
        self.tried = self.other
        self.watch.ask_for(self.tried)
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
        except SystemExit:  # refused, or not answered: its process has just ended
            return False
        return True

    def speaks(self, checkpoint: str) -> None:
        """The policy of ``checkpoint``, exchanged while the arm rests."""
        if self.watch.status["checkpoint"] == checkpoint:
            return
        self.ordered("controller/hold")
        self.ordered("inference/run", False)
        self.until(lambda: not self.watch.status["loading"], "the exchange does not end")
        self.swap(checkpoint, at_rest=True, within_s=PATIENCE_S)

    def moves(self) -> None:
        """A new scene, and the policy moves the arm. Again while it is refused: nodes come back one after the other."""
        watch = self.watch

        def begun():
            self.until(lambda: not watch.status.get("loading"), "the exchange does not end", 2 * PATIENCE_S)  # nobody runs meanwhile
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

    def round(self, case: Case, pause_s: float) -> None:
        self.tried = ""
        if case.remote:
            try:
                self.server.start()
            except RuntimeError as error:
                raise WentWrong(str(error)) from error
            self.speaks(self.server.address)
        elif is_remote(self.watch.status["checkpoint"]):
            self.speaks(str(ROOT / "models" / POLICIES[0]))
        self.moves()
        self.watch.spin(pause_s)
        before, lines = self.truth(), len(self.said)
        began = time.monotonic()
        self.watch.setpoints.clear()
        self.watch.heard.pop("controller", None)
        case.broken()
        if case.failsafe in ("", *GO_ON) and case.kills != "controller":
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
        elif case.failsafe in ("chunk late", "chunk cut"):
            told = [said["message"] for said in self.watch.heard["controller"] if case.failsafe in said["message"]]
            case.said = told[0].partition("; ")[2] if told else "nothing of it"
        elif case.failsafe == "disk full":
            self.until(lambda: self.recorder.get("state") == "failed", "the recording does not fail", 20.0)
            case.said = self.recorder["reason"]
            if [path.suffix for path in self.folder.glob(f"runs/full/trial{self.fills}.*")] != [".partial"]:
                raise WentWrong("half a recording bears the name of a whole one")
        elif case.failsafe == "swap failed":
            case.said = self.refusal  # other news may have come since
        else:
            case.said = self.watch.status["news"]
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
                raise WentWrong("not noticed" if told is None else f"the arm does not come to rest: {self.restless(samples)}")
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

    def restless(self, samples: list) -> str:
        """What still moves: an arm whose setpoints rest may be shaken by what it touches in the simulated world."""
        moved = np.ptp([position[:6] for t, position in samples if t > samples[-1][0] - STILL_S], axis=0)
        speed = np.max(np.abs(self.watch.setpoints[-1][1:7])) if self.watch.setpoints else 0.0
        return f"joint{np.argmax(moved) + 1} by {1000 * moved.max():.1f} mrad within {STILL_S:g} s; its setpoint at {speed:.3f} rad/s"

    def mend(self, case: Case) -> None:
        inject(self.bus, "clear")
        self.server.mend()
        self.clock.right()
        if "inference" in (running := processes()):
            os.kill(running["inference"], signal.SIGCONT)
        for camera in ("front", "wrist"):
            realsense.inject(SESSION, camera, "clear")
        if case.failsafe == "disk full":
            self.limit_recorder(-1)
        if case.failsafe in ("camera stale", "node lost") and not case.kills:
            self.watch.spin(2.0)  # the camera or the node is back before it is asked to move the arm
        if case.kills:
            self.bring_back(case)
        self.ordered("inference/run", False)
        self.ordered("controller/hold")

    def bring_back(self, case: Case) -> None:
        watch, began, name = self.watch, time.monotonic(), case.kills
        spoke, on_probation = watch.status["checkpoint"], name == "inference" and watch.status["probation"] > 0
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
        speaks, news = watch.status["checkpoint"], watch.status["news"]
        proved = "had proved itself" in news or "the last good one, is not used" in news  # its server may have been killed, too
        if on_probation and not proved or not on_probation and speaks != spoke:
            raise WentWrong(f"{spoke} spoke{' on probation' if on_probation else ''}, now {speaks}: {news}")
        if self.tried not in ("", speaks) and self.tried not in news:
            raise WentWrong(f"{self.tried} was being tried, which is not said: {news}")
        case.said += f"; then: {news}" if self.tried else ""
        self.tried = ""


@contextmanager
def running_bench(folder: Path) -> Iterator[Bench]:
    """The simulated robot, moved by the first of POLICIES, with recorder and console, and a clock that can be set; ended afterwards."""
    said: list[str] = []
    clock = SimClock(folder / "clock")
    up = ["mode:=async", "record:=true", "console:=true", "console_port:=0", f"out:={folder / 'runs'}"]
    first = f"checkpoint:={ROOT / 'models' / POLICIES[0]}"
    with running_system(first, *up, said=said, environment=clock.environment):  # this process keeps its own
        bench = Bench(clock, said, folder)
        try:
            bench.until(lambda: bench.watch.status and bench.watch.state and bench.watch.consumed, "the system does not speak")
            yield bench
        finally:
            bench.server.close()


def once(bench: Bench, case: Case, pause_s: float = 0.0) -> None:
    """One round, the fault ``pause_s`` after the arm began to move, and what mends it; again when the policy itself asked for what lies
    beyond the limits. Raises WentWrong."""
    for tries_left in (2, 1, 0):
        try:
            bench.round(case, pause_s)
        except WentWrong as error:
            if OWN_LIMITS not in str(error) or case.failsafe == OWN_LIMITS or not tries_left:
                raise
        else:
            return
        finally:
            if case.failsafe != "damped stop":
                bench.mend(case)
            case.said = case.said.replace(f"{bench.folder}/", "").replace(f"{ROOT}/", "")  # the pages name no machine's paths


def switch_off(socket: str) -> None:
    """Another voice on the bus at ``socket`` switches the wrist's last motor off."""
    with can.Bus(interface="piper_hub", channel=socket) as bus:
        bus.send(can.Message(arbitration_id=0x471, data=[6, 1, 0, 0, 0, 0, 0, 0], is_extended_id=False))


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


def damaged_checkpoint(folder: Path) -> Path:
    """A checkpoint in ``folder`` whose weights are cut off."""
    damaged = folder / "damaged"
    shutil.copytree(ROOT / "models" / POLICIES[1], damaged)
    with open(damaged / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    return damaged


def unharmed(before: dict, after: dict) -> None:
    """WentWrong unless the emulated arm's motors are on and nobody has disabled or reset it since ``before``."""
    if not all(after["enabled"]) or (after["disables"], after["power_cuts"]) != (before["disables"], before["power_cuts"]):
        raise WentWrong("a motor was disabled or the arm was reset")


def apart(one, other) -> float:
    """Largest difference of the six joints (rad)."""
    return float(np.max(np.abs(np.array(one[:6]) - other[:6])))
