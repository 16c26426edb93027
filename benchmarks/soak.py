"""Random faults, one after another, in a robot that moves: does the arm hold each time, how soon, and does it go on afterwards?

    python -m benchmarks.soak --minutes 60 [--trainer] [--seed 0] [--out docs/results/soak]

Starts the simulated robot (`policytrim up`, async, a learned policy, recorder and console). Every round lays a scene, lets the policy move
the arm and, after a random while, breaks one of the cases of injections.py beneath the running processes (those of benchmarks/failsafes.py,
without the damped stop, which only a power cycle ends): every case once, in random order, before any comes again. The emulated arm is asked
what it really does: it must rest within the bound of the failsafe table, or go on, where the fault is one that must not disturb. Then the
cause is removed, what was killed started again (`policytrim restart`), and the next round begins. `--trainer` trims a policy beside it,
at the lowest priority. Memory (RSS) of every process and the lateness of setpoints are noted after every round, and the table is written:
what was measured survives whatever ends the run. Exit code 1 when a round went wrong. Ctrl-C ends it with the table.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.control_loop import processes
from benchmarks.injections import GO_ON, SESSION, Bench, Case, WentWrong, once, running_bench
from benchmarks.results import circumstances, in_words, markdown, write
from policytrim_ros.children import Aside
from policytrim_ros.up import StartRefused, restart

HEAD = ("fault", "failsafe", "rounds", "went wrong", "noticed after p50 / max, s", "at rest after p50 / max, s", "bound, s", "what was said")
MEMORY_HEAD = ("process", "lives", "RSS at first, MB", "at last, MB", "largest, MB", "longest life, min", "MB an hour in it")
SETTLES_S = 60.0  # a process takes its buffers and its libraries meanwhile
LOST = 4  # rounds in a row that went wrong end the run
RECIPE = "config/metaworld_trim.yaml"


class Memory:
    """RSS of every process after every round: {name: [(minutes since the beginning, pid, MB)]}."""

    def __init__(self):
        self.rows: dict[str, list] = {}
        self._began = time.monotonic()

    def note(self, pids: dict[str, int]) -> None:
        minutes = (time.monotonic() - self._began) / 60
        for name, pid in pids.items():
            try:
                status = Path(f"/proc/{pid}/status").read_text()
            except OSError:
                continue  # it has ended
            if "VmRSS" in status:
                megabytes = int(status.split("VmRSS:")[1].split()[0]) / 1e3
                self.rows.setdefault(name, []).append((round(minutes, 2), pid, round(megabytes, 1)))

    def table(self) -> str:
        """First and last of the run; the growth is that of the process that lived longest, after it has settled."""
        rows = []
        for name, seen in sorted(self.rows.items()):
            lives: dict[int, list] = {}
            for minutes, pid, megabytes in seen:
                lives.setdefault(pid, []).append((minutes, megabytes))
            longest = max(lives.values(), key=lambda life: life[-1][0] - life[0][0])
            sizes = [megabytes for *_, megabytes in seen]
            figures = (f"{sizes[0]:.0f}", f"{sizes[-1]:.0f}", f"{max(sizes):.0f}")
            rows.append((name, len(lives), *figures, f"{longest[-1][0] - longest[0][0]:.1f}", growth(longest)))
        return markdown(MEMORY_HEAD, rows)


def growth(life: list) -> str:
    """Slope, MB an hour, of the line through ``life`` [(minutes, MB)] after SETTLES_S; '-' when that is less than five minutes."""
    settled = np.array([row for row in life if row[0] >= life[0][0] + SETTLES_S / 60])
    if len(settled) < 4 or settled[-1, 0] - settled[0, 0] < 5.0:
        return "-"
    return f"{60 * np.polyfit(settled[:, 0], settled[:, 1], 1)[0]:+.0f}"


class Training:
    """A real training beside the robot, at the lowest priority; started again when it is done."""

    def __init__(self, folder: Path):
        self._folder, self.starts, self.failures, self._child = folder, 0, [], None

    def keep_up(self) -> None:
        if self._child is not None and self._child.running:
            return
        if self._child is not None and (why := self._child.wait()):
            self.failures.append(why)
        if len(self.failures) < 3:
            self.starts += 1
            out = self._folder / f"training{self.starts}"
            words = ["-m", "policytrim_ros.cli", "train", "trim", "--recipe", RECIPE, "--out", f"{out}/checkpoint", "--run", f"{out}/run"]
            self._child = Aside([sys.executable, *words])

    @property
    def pids(self) -> dict[str, int]:
        return {"training": self._child.pid} if self._child is not None else {}

    def end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def words(self) -> str:
        failed = f"; it FAILED: {'; '.join(self.failures)}" if self.failures else ""
        return f"`policytrim train trim --recipe {RECIPE}` ran beside it at niceness 19, SCHED_IDLE, started {self.starts} times{failed}."


class Soak:
    """What ran and what came of it."""

    def __init__(self, cases: dict[str, Case], training: Training | None):
        self.cases, self.training, self.memory = cases, training, Memory()
        self.rounds, self.wrong, self.late = 0, [], []

    def round(self, bench: Bench, name: str, pause_s: float) -> bool:
        """One round of case ``name``; whether it went as it must."""
        case, before = self.cases[name], len(self.wrong)
        case.rounds += 1
        self.rounds += 1
        try:
            once(bench, case, pause_s)
        except (WentWrong, SystemExit, RuntimeError, OSError) as error:
            case.wrong.append(str(error))
            self.wrong.append(f"round {self.rounds}, {name}: {error}")
        said = bench.watch.heard.pop("controller", [])
        bench.watch.heard.clear()
        self.late += [(float(d["lateness_p99_ms"]), float(d["lateness_max_ms"])) for d in said]
        if self.training is not None:
            self.training.keep_up()
        self.memory.note(processes() | {"benchmark": os.getpid()} | (self.training.pids if self.training else {}))
        return len(self.wrong) == before

    def write(self, out: Path, head: dict) -> None:
        about = f"{in_words(head)}: {head['minutes']:.1f} min, {self.rounds} rounds, {len(self.wrong)} went wrong, seed {head['seed']}.\n"
        about += "".join(f"\n- {line}" for line in self.wrong)
        about += f"\n\n{self.training.words()}" if self.training is not None else ""
        if self.late:
            p99, most = np.array(self.late).T
            about += (
                f"\n\nSetpoints late, by the controller's own windows of 5 s, one a second ({len(p99)}): p99 {np.median(p99):.2f} ms in the middle "
                f"one, {p99.max():.2f} ms in the worst; at most {most.max():.1f} ms; more than 2 ms (p99) in {np.mean(p99 > 2.0):.1%} of them."
            )
        figures = {
            name: dict(rounds=c.rounds, failsafe=c.failsafe, told_s=c.told, rests_s=c.rests, back_s=c.back, wrong=c.wrong, said=c.said)
            for name, c in self.cases.items()
        }
        figures = {**head, "lateness_ms": self.late, "rss_mb": self.memory.rows, "faults": figures}
        tables = f"{self.table()}\n\nMemory:\n\n{self.memory.table()}"
        write(out, "Soak: random faults in a moving robot", about, tables, figures)

    def table(self) -> str:
        rows = []
        for name, case in self.cases.items():
            spans = (f"{np.median(v):.2f} / {max(v):.2f}" if v else "-" for v in (case.told, case.rests))
            disturbs = case.failsafe not in ("", *GO_ON) or case.kills == "controller"
            bound = f"{case.bound_s:g}" if case.bound_s else "-" if disturbs else "goes on"
            said = case.said.replace("|", "/").partition(";")[0]
            rows.append((name, case.failsafe or "-", case.rounds, len(case.wrong), *spans, bound, said))
        return markdown(HEAD, rows)


def recovered() -> None:
    """Has `up` start what has died; nothing, when that does not run any more either."""
    try:
        restart(SESSION)
    except StartRefused as error:
        print(f"soak: {error}", flush=True)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long (60)")
    parser.add_argument("--seed", type=int, default=0, help="of faults and moments (0)")
    parser.add_argument("--trainer", action="store_true", help="train beside it, at the lowest priority")
    parser.add_argument("--only", nargs="+", default=[], help="only faults in whose names one of these is found")
    parser.add_argument("--out", type=Path, default=Path("docs/results/soak"))
    options = parser.parse_args(arguments)
    head = circumstances("soak", os.getloadavg()[0], seed=options.seed)
    rng = np.random.default_rng(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with running_bench(folder) as bench:
            wanted = lambda name, case: case.failsafe != "damped stop" and any(word in name for word in options.only or [""])  # noqa: E731
            cases = {name: case for name, case in bench.cases().items() if wanted(name, case)}
            soak = Soak(cases, Training(folder) if options.trainer else None)
            began, queue, lost = time.monotonic(), [], 0
            soak.memory.note(processes() | {"benchmark": os.getpid()})
            try:
                if soak.training is not None:
                    soak.training.keep_up()
                while time.monotonic() < began + 60 * options.minutes and lost < LOST:
                    queue = queue or list(rng.permutation(list(cases)))  # every fault once before any comes again
                    name = str(queue.pop())
                    right = soak.round(bench, name, float(rng.uniform(0.0, 3.0)))
                    lost = 0 if right else lost + 1
                    if not right:
                        recovered()
                    head["minutes"] = (time.monotonic() - began) / 60
                    soak.write(options.out, head)
                    left = options.minutes - head["minutes"]
                    outcome = cases[name].said[:90] if right else f"WRONG: {soak.wrong[-1]}"
                    print(f"round {soak.rounds} {name}: {outcome}; {len(soak.wrong)} wrong, {left:.1f} min left", flush=True)
            except KeyboardInterrupt:
                print("soak: ended by the operator", flush=True)
            finally:
                if soak.training is not None:
                    soak.training.end()
    print(f"\n{soak.table()}\n\n{soak.memory.table()}")
    failed = soak.training is not None and bool(soak.training.failures)
    return 1 if soak.wrong or failed or not soak.rounds else 0


if __name__ == "__main__":
    sys.exit(main())
