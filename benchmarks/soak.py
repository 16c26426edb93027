"""Random faults, one after another, in a robot that moves: does the arm hold each time, how soon, and does it go on afterwards?

    python -m benchmarks.soak --minutes 60

Starts the simulated robot (`policytrim up`, async, a learned policy). Every round lays a scene, lets the policy move the arm and, after a
random while, breaks something beneath the running processes: the emulated arm, its bus, a camera, the policy's process (stopped for a
while), an exchange of the policy, one for a damaged checkpoint. The emulated arm is asked what it really does: it must come to
rest and stay, with its motors on, never disabled or reset; or go on, where the fault is one that must not disturb. Then the
cause is removed, the fault cleared, and the next round begins. Exit code 1 when any round went wrong. Ctrl-C ends it with the table.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.control_loop import ROOT, processes, running_system
from benchmarks.results import circumstances, in_words, leave, markdown
from benchmarks.swap import Watch
from policytrim_ros.graph import runtime_dir
from sim_bridge import realsense
from sim_bridge.faults import inject

SESSION = "benchmark"
STILL_S, STILL_RAD, MOVED_RAD = 0.1, 0.001, 0.003
"""At rest: no joint moves further than STILL_RAD in STILL_S; held: not further than MOVED_RAD in half a second."""

OWN_LIMITS = "beyond limits"
"""The policy was held for what it asked itself, after its task was done perhaps: such a round says nothing about the fault."""

POLICIES = ("piper-pi0-tiny", "tape-box-pi0-trimmed")
HEAD = ("fault", "rounds", "went wrong", "noticed after p50 / max, s", "at rest after p50 / max, s", "what the operator was told")


class WentWrong(RuntimeError):
    """A round that did not end as it must."""


@dataclass
class Fault:
    """``within_s``: the arm must hold so soon; 0: it must go on moving."""

    within_s: float
    words: str = ""
    rounds: int = 0
    noticed: list = field(default_factory=list)
    rested: list = field(default_factory=list)
    wrong: list = field(default_factory=list)
    told: str = ""


ARM = {
    "mute": {}, "bus_off": {}, "stale_joints": {}, "zero_feedback": {}, "teach_mode": {}, "status": dict(code=10), "collision": dict(joint=2),
    "stall": dict(joint=3), "joint_error": dict(joint=4), "comm_error": dict(joint=5), "undervoltage": dict(joint=1),
}  # fmt: skip
FAULTS = {f"arm: {name}": Fault(2.0) for name in ARM}
FAULTS |= {
    "arm: 5 % of frames lost": Fault(0.0),
    "cameras unplugged": Fault(8.0, "camera stale"),
    "front camera stalls": Fault(8.0, "'camera/front' is silent"),
}
FAULTS |= {"inference stopped": Fault(3.0, "'inference' is silent"), "operator hold": Fault(0.5)}
FAULTS |= {"exchange of the policy": Fault(0.0), "exchange for a damaged checkpoint": Fault(0.0)}


class Soak:
    def __init__(self, watch: Watch, damaged: Path):
        self.watch, self.damaged = watch, damaged
        self.bus = str(runtime_dir() / f"{SESSION}.can")

    def truth(self) -> dict:
        return inject(self.bus, "state")

    def round(self, name: str, rng) -> None:
        """Begins a scene, breaks ``name``, sees what comes of it, mends it."""
        fault, watch = FAULTS[name], self.watch
        watch.begin()
        watch.spin(float(rng.uniform(0.5, 3.0)))
        before, began = self.truth(), time.monotonic()
        try:
            self.break_(name, rng)
            if fault.within_s:
                self.must_hold(fault, began, before)
            else:
                self.must_go_on(began)
        finally:
            self.mend(name)

    def break_(self, name: str, rng) -> None:
        kind, _, what = name.partition(": ")
        if what in ARM:
            inject(self.bus, what, **ARM[what])
        elif kind == "arm":
            inject(self.bus, "lost_frames", fraction=0.05)
        elif name == "cameras unplugged":
            for camera in ("front", "wrist"):
                realsense.inject(SESSION, camera, "unplug")
        elif name == "front camera stalls":
            realsense.inject(SESSION, "front", "stall")
        elif name == "inference stopped":
            os.kill(processes()["inference"], signal.SIGSTOP)
        elif name == "operator hold":
            self.watch.order("controller/hold")
        elif name == "exchange of the policy":
            now = Path(self.watch.status["checkpoint"]).name
            self.watch.swap(str(ROOT / "models" / POLICIES[now == POLICIES[0]]))
        else:
            refused_swap(self.watch, self.damaged)

    def must_go_on(self, began: float) -> None:
        step = self.watch.consumed.next_step
        self.watch.spin(1.0)
        if not self.watch.state.startswith("moving") or self.watch.consumed.next_step <= step:
            raise WentWrong(f"the arm does not go on: {self.watch.state}")

    def must_hold(self, fault: Fault, began: float, before: dict) -> None:
        watch = self.watch
        while watch.state.startswith("moving"):
            watch.spin(0.005)
            if time.monotonic() - began > fault.within_s:
                raise WentWrong(f"not noticed within {fault.within_s:g} s")
        fault.noticed.append(time.monotonic() - began)
        fault.told = watch.state
        if fault.words not in watch.state:
            raise WentWrong(f"another reason: {watch.state}")
        while True:
            here, at = self.truth()["position"], time.monotonic() - began
            watch.spin(STILL_S)
            if apart(self.truth()["position"], here) < STILL_RAD:
                break
            if at > fault.within_s + 2.0:
                raise WentWrong("the arm does not come to rest")
        fault.rested.append(at)
        watch.spin(0.5)
        after = self.truth()
        if (moved := apart(after["position"], here)) > MOVED_RAD:
            raise WentWrong(f"the arm moved by {moved:.4f} rad while it should hold")
        unharmed(before, after)

    def mend(self, name: str) -> None:
        watch = self.watch
        inject(self.bus, "clear")
        for camera in ("front", "wrist"):
            realsense.inject(SESSION, camera, "clear")
        if (pid := processes().get("inference")) is not None:
            os.kill(pid, signal.SIGCONT)
        watch.spin(1.0 if name.startswith("arm") else 3.0)
        watch.order("inference/run", False)
        if watch.state.startswith("fault"):
            watch.order("controller/clear_fault")
        watch.order("controller/hold")


def damaged_checkpoint(folder: Path) -> Path:
    """A checkpoint in ``folder`` whose weights are cut off."""
    damaged = folder / "damaged"
    shutil.copytree(ROOT / "models" / POLICIES[1], damaged)
    with open(damaged / "model.safetensors", "r+b") as file:
        file.truncate(1000)
    return damaged


def refused_swap(watch: Watch, damaged: Path) -> None:
    """Orders the exchange for ``damaged``; WentWrong unless it is refused for that and what spoke goes on."""
    before = watch.status["checkpoint"]
    try:
        watch.swap(str(damaged))
    except SystemExit as refusal:
        if "changed or truncated" not in str(refusal) or watch.status["checkpoint"] != before:
            raise WentWrong(f"a damaged checkpoint: {refusal}") from refusal
    else:
        raise WentWrong("a damaged checkpoint speaks")


def unharmed(before: dict, after: dict) -> None:
    """WentWrong unless the emulated arm's motors are on and nobody has disabled or reset it since ``before``."""
    if not all(after["enabled"]) or (after["disables"], after["power_cuts"]) != (before["disables"], before["power_cuts"]):
        raise WentWrong("a motor was disabled or the arm was reset")


def apart(one, other) -> float:
    """Largest difference of the six joints (rad)."""
    return float(np.max(np.abs(np.array(one[:6]) - other[:6])))


def table() -> str:
    rows = []
    for name, fault in FAULTS.items():
        spans = (f"{np.median(values):.2f} / {max(values):.2f}" if values else "-" for values in (fault.noticed, fault.rested))
        told = fault.told.partition(";")[0] if fault.within_s else "goes on"
        rows.append((name, fault.rounds, len(fault.wrong), *spans, told))
    return markdown(HEAD, rows)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments (0)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/soak"))
    options = parser.parse_args(arguments)
    load, rng, rounds, wrong, aside = os.getloadavg()[0], np.random.default_rng(options.seed), 0, [], []
    end = time.monotonic() + 60 * options.minutes
    with tempfile.TemporaryDirectory() as folder:
        damaged = damaged_checkpoint(Path(folder))
        with running_system(f"checkpoint:={ROOT / 'models' / POLICIES[0]}", "mode:=async"):
            soak = Soak(Watch(), damaged)
            soak.watch.spin(2.0)
            queue: list[str] = []
            try:
                while time.monotonic() < end:
                    queue = queue or list(rng.permutation(list(FAULTS)))  # every fault once before any comes again
                    name = str(queue.pop())
                    FAULTS[name].rounds += 1
                    rounds += 1
                    try:
                        soak.round(name, rng)
                    except (WentWrong, SystemExit) as error:
                        if OWN_LIMITS in str(error):
                            aside.append(name)
                            continue
                        FAULTS[name].wrong.append(str(error))
                        wrong.append(f"round {rounds}, {name}: {error}")
                    left = max(0.0, end - time.monotonic())
                    print(
                        f"round {rounds} {name}: {FAULTS[name].told or 'goes on'}; {len(wrong)} wrong, {left / 60:.1f} min left",
                        flush=True,
                    )
            except KeyboardInterrupt:
                print("soak: ended by the operator", flush=True)
    head = circumstances("soak", load, rounds=rounds, seed=options.seed)
    about = f"{in_words(head)}: {rounds} rounds, {len(wrong)} went wrong, {len(aside)} aside (the policy itself "
    about += f"asked for what lies beyond the limits), seed {options.seed}.\n\n" + "\n".join(f"- {line}" for line in wrong)
    figures = {
        name: {"noticed_s": f.noticed, "rested_s": f.rested, "wrong": f.wrong, "told": f.told} for name, f in FAULTS.items()
    }
    leave(options.out, "Soak: random faults in a moving robot", about, table(), {**head, "faults": figures})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
