"""How soon the arm slows down and rests after each fault of the failsafe table, and what the operator is told.

    python -m benchmarks.failsafes [--rounds 2] [--only NAME ...] [--out docs/results/failsafes]

Starts the simulated robot (`policytrim up`, async, a learned policy, recorder and console) once. Every round lets the policy move the arm,
injects one fault beneath the running processes, and asks the emulated arm what it really does. `slows after`: the setpoints' speed falls
from then on until they rest; `at rest after`: no true joint moves further than 3 mrad any more (contacts shake a held one by 2);
`told after`: the controller has said so. The bound is the table's (core/safety.py). A killed node is started again with `policytrim restart`, and moves
the arm again, before the next round. Exit code 1 when a round went wrong. It takes about ten minutes.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.injections import Bench, Case, WentWrong, once, running_bench
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.children import LOWEST, step_aside

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
        bench.round(case, 0.0)
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
        row = (span(case.slows), span(case.rests), bound, span(case.told), said.replace("|", "/"))
        rows.append((name, case.failsafe or "-", f"{case.rounds}{wrong}", *row))
    return markdown(HEAD, rows)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2, help="of each fault; of each killed node one (2)")
    parser.add_argument("--only", nargs="+", default=[], help="only faults in whose names one of these is found")
    parser.add_argument("--out", type=Path, default=Path("docs/results/failsafes"))
    options = parser.parse_args(arguments)
    load, wrong, under_load = os.getloadavg()[0], [], {}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with running_bench(folder) as bench:
            cases = {n: c for n, c in bench.cases().items() if not options.only or any(word in n for word in options.only)}
            for name, case in cases.items():
                for _ in range(1 if case.kills or case.failsafe in ("damped stop", "disk full") else options.rounds):
                    case.rounds += 1
                    try:
                        once(bench, case)
                    except WentWrong as error:
                        case.wrong.append(str(error))
                        wrong.append(f"{name}: {error}")
                        print(f"    went wrong: {wrong[-1]}", flush=True)
                    print(
                        f"{name}: rest {span(case.rests)} told {span(case.told)}: {case.said[:90]}; {len(wrong)} wrong",
                        flush=True,
                    )
                if name == "operator's hold":
                    try:
                        under_load = loaded(bench)
                    except WentWrong as error:
                        wrong.append(f"loaded machine: {error}")
                        print(f"    went wrong: {wrong[-1]}", flush=True)
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
    figures = {
        n: dict(failsafe=c.failsafe, bound_s=c.bound_s, slows_s=c.slows, rests_s=c.rests, told_s=c.told, back_s=c.back, wrong=c.wrong, told=c.said)
        for n, c in cases.items()
    }  # fmt: skip
    leave(options.out, "Failsafes: measured times", about, table(cases), {**head, "loaded": under_load, "faults": figures})
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
