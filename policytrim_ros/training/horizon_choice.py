"""The longest execution horizon that a calibration set allows, by a stated rule.

    policytrim eval --checkpoint models/mine --task tape_box --horizon 5 8 10 15 --episodes 200 --out runs/calibration
    policytrim horizon runs/calibration.json --failures 0.1 --write models/mine

Fixed-sequence testing: the horizons are tested from the shortest to the longest, each at the same level; a horizon passes when the
exact (Clopper-Pearson) upper bound of its failure rate is at most ``failures``; the first that does not pass ends the sequence. What
it guarantees: with the given confidence **every** horizon that passed fails at most so often, since no horizon is looked at after one
that did not pass. For which distribution: scenes, robot and conditions as in the calibration, drawn independently; not another table.

With ``--write`` the horizon becomes the checkpoint's own, and the calibration stands in its manifest as the evidence for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Sequence

from policytrim_ros.core.statistics import upper_bound
from policytrim_ros.files import sha256_of
from policytrim_ros.training.evaluate import EvaluationError, note, read_reports


@dataclass(frozen=True)
class Tested:
    """One horizon: n episodes, failures among them, exact upper bound of the failure rate, whether it passed (None: not looked at)."""

    horizon: int
    n: int
    failures: int
    bound: float
    passed: bool | None


def choose(counts: Sequence[tuple[int, int, int]], failures: float, confidence: float = 0.95) -> tuple[int | None, list[Tested]]:
    """(the longest horizon that passes or None, what was found) from (h, n, failures in n) of every horizon."""
    found, chosen, open_ = [], None, True
    for horizon, n, failed in sorted(counts):
        bound = upper_bound(failed, n, confidence)
        passed = bound <= failures if open_ else None
        chosen, open_ = (horizon, True) if passed else (chosen, False)
        found.append(Tested(horizon, n, failed, bound, passed))
    return chosen, found


def counts_of(reports: Sequence[dict]) -> list[tuple[int, int, int]]:
    """(h, n, failures) of rows that differ in nothing but h and task, tasks added up. EvaluationError for other rows."""
    kinds = {(row["checkpoint"], row["weights_sha256"], row["setting"], note(row)) for row in reports}
    if len(kinds) != 1:
        raise EvaluationError("the rows differ in more than h and task; evaluate one checkpoint in one setting")
    tasks = {h: sorted(row["task"] for row in reports if row["horizon"] == h) for h in {row["horizon"] for row in reports}}
    if len({tuple(names) for names in tasks.values()}) != 1:
        raise EvaluationError("not every horizon was evaluated in the same tasks")
    rows = {h: [row for row in reports if row["horizon"] == h] for h in tasks}
    return [(h, sum(r["n"] for r in of), sum(r["n"] - r["successes"] for r in of)) for h, of in rows.items()]


def evidence(reports: Sequence[dict], found: Sequence[Tested], failures: float, confidence: float) -> dict[str, Any]:
    """What a manifest keeps of a calibration: the rule's two numbers, what was evaluated, and what was found of every horizon."""
    first = reports[0]
    tasks = sorted({row["task"] for row in reports})
    kept = dict(failures=failures, confidence=confidence, tasks=tasks, setting=first["setting"], conditions=note(first))
    return kept | dict(weights_sha256=first["weights_sha256"], tested=[asdict(row) for row in found])


def write(directory, horizon: int, calibration: dict[str, Any]) -> None:
    """Makes ``horizon`` that of the checkpoint in ``directory``. EvaluationError when the calibration is not one of it and all its tasks."""
    from policytrim_ros.policies import checkpoint

    try:
        manifest = checkpoint.verify(directory)
        weights = manifest["files"][checkpoint.WEIGHTS]
        if calibration["weights_sha256"] != weights:
            raise EvaluationError(
                f"the calibration was made with other weights ({calibration['weights_sha256'][:12]}) than those of {directory} "
                f"({weights[:12]}); evaluate it"
            )
        if calibration["tasks"] != sorted(manifest["tasks"]):
            raise EvaluationError(
                f"the calibration is of {', '.join(calibration['tasks'])}, {directory} of {', '.join(manifest['tasks'])}, and its h counts "
                "for each of them; evaluate just these"
            )
        checkpoint.recommend(directory, horizon, calibration)
    except checkpoint.CheckpointError as error:
        raise EvaluationError(str(error)) from error


# -- command line ---------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim horizon``."""
    parser.add_argument("report", help="evaluation of one checkpoint at several horizons, of `policytrim eval --out`")
    parser.add_argument("--failures", type=float, default=0.1, metavar="SHARE", help="failure rate that is tolerated (0.1)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the statement (0.95)")
    parser.add_argument("--write", default="", metavar="CHECKPOINT", help="make h that checkpoint's own, with the calibration as evidence")


def main(args) -> int:
    """0: a horizon was found; 3: none; 1 after one sentence about what went wrong."""
    try:
        if not 0 < args.failures < 1 or not 0.5 < args.confidence < 1:
            raise EvaluationError(f"failures {args.failures} must lie in (0, 1) and confidence {args.confidence} in (0.5, 1)")
        reports = read_reports(args.report)
        chosen, found = choose(counts_of(reports), args.failures, args.confidence)
    except EvaluationError as error:
        print(f"horizon: {error}")
        return 1
    percent = f"{100 * args.confidence:g} %"
    print(f"| h | episodes | failures | failure rate at most ({percent}) | passed |\n| --- | --- | --- | --- | --- |")
    for row in found:
        word = {True: "yes", False: "no", None: "not looked at"}[row.passed]
        print(f"| {row.horizon} | {row.n} | {row.failures} | {100 * row.bound:.1f} % | {word} |")
    if chosen is None:
        needed = next(n for n in range(1, 100_000) if upper_bound(0, n, args.confidence) <= args.failures)
        print(f"horizon: none passes at {100 * args.failures:g} %; without any failure {needed} episodes would be enough")
        return 3
    print(
        f"horizon: h = {chosen}: with {percent} confidence it fails in at most {100 * args.failures:g} % of scenes like these "
        "(same robot, table and conditions)"
    )
    if not args.write:
        return 0
    kept = evidence(reports, found, args.failures, args.confidence) | {"report_sha256": sha256_of(args.report)}
    try:
        write(args.write, chosen, kept)
    except EvaluationError as error:
        print(f"horizon: nothing was written: {error}")
        return 1
    print(f"horizon: {args.write} now executes h = {chosen}; a robot wants it to pass the gate with that (`policytrim gate`)")
    return 0
