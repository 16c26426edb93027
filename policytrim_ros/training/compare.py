"""Paired comparison of two evaluations that met the same scenes: success, control steps, calls, seconds.

    policytrim compare A.json B.json             every pair of rows that fits, B against A
    policytrim compare A.json#0 B.json#3         these two rows (counted from 0)

Episodes are paired by the seed of their scene. Success: McNemar's exact test, and Newcombe's interval (method 10) for the
difference of the rates. Steps, calls and seconds: over the pairs in which both succeeded and over all pairs, with the paired
bootstrap. Non-inferiority: B is not worse than A by the margin or more, when the lower end of the one-sided interval of
B - A lies above -margin; nothing follows from a test that merely finds no difference.
"""

from __future__ import annotations

import json
from pathlib import Path

from policytrim_ros.core.statistics import bootstrap_mean, bootstrap_ratio, mcnemar, mean_interval, paired_difference, ratio_interval
from policytrim_ros.training.evaluate import EvaluationError, note, read_reports, write_file

SCENE = ("task", "setting", "first_seed", "environment")
"""What two rows must share to be paired: the scenes and their seeds."""

CONDITIONS = ("mode", "latency_s", "blank", "hide_target", "blur_px", "occlusion", "shift_px", "action_noise_rad", "instruction", "camera_size")  # fmt: skip
"""What two rows should share unless it is the very thing that is compared."""

QUANTITIES = {"control steps S": "steps", "calls N": "calls", "seconds": "seconds"}


def misfits(a: dict, b: dict) -> list[str]:
    """Sentences that say why two rows cannot be paired; empty when they can."""
    found = [f"{name}: {a[name]} against {b[name]}" for name in SCENE if a[name] != b[name]]
    ours, theirs = ({episode["seed"] for episode in row["episodes_list"]} for row in (a, b))
    if not found and ours != theirs:
        found.append(f"seeds: {len(ours - theirs)} only in A, {len(theirs - ours)} only in B")
    return found


def differing(a: dict, b: dict) -> list[str]:
    """Conditions in which two rows differ, in words; they may be what is compared, and the reader must know."""
    return [f"{name} {a[name]} against {b[name]}" for name in CONDITIONS if a[name] != b[name]]


def compare(a: dict, b: dict, margin: float = 0.05, confidence: float = 0.95) -> dict:
    """The comparison of row B with row A of evaluations, JSON-ready. EvaluationError when they cannot be paired.

    ``margin``: the loss of success rate that would matter (0.05: five percentage points); ``confidence`` of all intervals,
    and of the one-sided statement about non-inferiority.
    """
    if problem := misfits(a, b):
        raise EvaluationError(f"the rows cannot be paired: {'; '.join(problem)}; evaluate both in the same scenes")
    return {
        "a": _facts(a),
        "b": _facts(b),
        "task": a["task"],
        "setting": a["setting"],
        "differ_in": differing(a, b),
        **compare_pairs(pairs_of(a, b), margin, confidence),
    }


def pairs_of(a: dict, b: dict) -> list[tuple[dict, dict]]:
    """The episodes of two rows that met the same scenes, by seed."""
    before, after = ({e["seed"]: e for e in row["episodes_list"]} for row in (a, b))
    return [(before[seed], after[seed]) for seed in sorted(before)]


def compare_pairs(pairs, margin: float, confidence: float) -> dict:
    """What `compare` says of the pairs (episode of A, episode of B), which may come from several rows."""
    won = [tuple(e["outcome"] == "success" for e in pair) for pair in pairs]
    counts = [sum(w == kind for w in won) for kind in ((True, True), (True, False), (False, True), (False, False))]
    bound = paired_difference(*counts, 2 * confidence - 1)[1]
    both = [pair for pair, kind in zip(pairs, won) if all(kind)]
    return {
        "pairs": len(pairs),
        "both_succeed": counts[0],
        "only_a": counts[1],
        "only_b": counts[2],
        "neither": counts[3],
        "success_difference": list(paired_difference(*counts, confidence)),
        "mcnemar_p": mcnemar(counts[1], counts[2]),
        "margin": margin,
        "confidence": confidence,
        "lower_bound": bound,
        "non_inferior": bound > -margin,
        "quantities": {
            words: {"both_succeed": _paired(both, key, confidence), "all": _paired(pairs, key, confidence)}
            for words, key in QUANTITIES.items()
        },
    }


def _facts(row) -> dict:
    names = ("checkpoint", "weights_sha256", "horizon", "denoising_steps", "n", "success_rate", "commit")
    return {name: row[name] for name in names} | {"note": note(row)}


def _paired(pairs, key, confidence) -> dict | None:
    """Means of both, the mean difference B - A and the ratio A / B, with intervals (of a single pair: without width); None when there is
    nothing to compare."""
    a, b = ([pair[side][key] for pair in pairs] for side in (0, 1))
    if not pairs:
        return None
    of_mean, of_ratio = (mean_interval, ratio_interval) if len(pairs) > 1 else (bootstrap_mean, bootstrap_ratio)
    return {
        "a": sum(a) / len(a),
        "b": sum(b) / len(b),
        "difference": list(of_mean([y - x for x, y in zip(a, b)], confidence)),
        "ratio": list(of_ratio(a, b, confidence)) if min(*a, *b) > 0 else None,
    }


def verdict(result: dict) -> str:
    """The statement about success in plain words."""
    points, percent = 100 * result["margin"], 100 * result["confidence"]
    difference, low, high = (100 * x for x in result["success_difference"])
    lower = 100 * result["lower_bound"]
    measured = f"B succeeds {abs(difference):.1f} points {'more' if difference >= 0 else 'less'} often than A"
    if result["non_inferior"]:
        text = (
            f"B is not worse than A by {points:g} points or more, with {percent:g} % confidence (one-sided): {measured}, "
            f"and the loss is at most {max(0.0, -lower):.1f} points."
        )
        return text + (" It is better: the two-sided interval lies above zero." if low > 0 else "")
    if high < -points:
        return f"B is worse than A by more than {points:g} points: {measured}, interval {low:.1f} to {high:.1f} points."
    return (
        f"It is not shown that B is within {points:g} points of A: {measured}, but the loss may be up to {-lower:.1f} points "
        f"({percent:g} % confidence, one-sided). That does not show B to be worse; more episodes would narrow it."
    )


def page(result: dict) -> str:
    """One comparison as Markdown."""
    a, b = (" ".join(filter(None, [r["checkpoint"], f"h={r['horizon']}", r["note"]])) for r in (result["a"], result["b"]))
    difference, low, high = result["success_difference"]
    percent = f"{100 * result['confidence']:g} %"
    lines = [
        f"## {result['task']} {result['setting']}: A = {a}, B = {b}",
        "",
        f"{result['pairs']} pairs of the same scenes: both succeed {result['both_succeed']}, only A {result['only_a']}, "
        f"only B {result['only_b']}, neither {result['neither']}.",
        f"Success A {result['a']['success_rate']:.3f}, B {result['b']['success_rate']:.3f}, B - A {difference:+.3f} "
        f"[{low:+.3f}, {high:+.3f}] ({percent}, Newcombe, paired); McNemar exact p = {result['mcnemar_p']:.3g}.",
        "",
        verdict(result),
        "",
        f"| quantity | pairs | A | B | B - A [{percent}] | A / B [{percent}] |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    if result["differ_in"]:
        lines.insert(2, f"The rows differ in {'; '.join(result['differ_in'])}.\n")
    for words, cells in result["quantities"].items():
        for which, found in cells.items():
            pairs = "both succeed" if which == "both_succeed" else "all"
            lines.append(f"| {words} | {pairs} | {_cells(found)} |")
    return "\n".join(lines)


def _cells(found) -> str:
    if found is None:
        return "- | - | - | -"
    ratio = "-" if found["ratio"] is None else "{:.2f} [{:.2f}, {:.2f}]".format(*found["ratio"])
    return f"{found['a']:.1f} | {found['b']:.1f} | {'{:+.1f} [{:+.1f}, {:+.1f}]'.format(*found['difference'])} | {ratio}"


# -- command line ---------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim compare``."""
    parser.add_argument("a", metavar="A.json[#row]", help="evaluation to compare with; #row: this row alone, counted from 0")
    parser.add_argument("b", metavar="B.json[#row]", help="evaluation that is compared")
    parser.add_argument("--margin", type=float, default=0.05, help="loss of success rate that would matter (default 0.05)")
    parser.add_argument("--confidence", type=float, default=0.95, help="of all intervals and of the statement (default 0.95)")
    parser.add_argument("--out", help="write <out>.json and <out>.md")


def main(args) -> int:
    """Prints the comparisons; 0 on success, 1 after one sentence about what went wrong."""
    try:
        if not 0 < args.margin < 1 or not 0.5 < args.confidence < 1:
            raise EvaluationError(f"margin {args.margin} must lie in (0, 1) and confidence {args.confidence} in (0.5, 1)")
        results = [compare(a, b, args.margin, args.confidence) for a, b in partners(rows_of(args.a), rows_of(args.b))]
        text = "\n\n".join(page(result) for result in results)
        print(text)
        if args.out:
            write_file(f"{args.out}.json", json.dumps(results, indent=1, allow_nan=False))
            write_file(f"{args.out}.md", f"# Comparison\n\nA: {args.a}, B: {args.b}\n\n{text}\n")
    except EvaluationError as error:
        print(f"compare: {error}")
        return 1
    return 0


def rows_of(words: str) -> list[dict]:
    """The rows of ``FILE`` or the one of ``FILE#row``."""
    path, _, number = words.partition("#")
    rows = read_reports(path)
    if not number:
        return rows
    if not number.isdigit() or int(number) >= len(rows):
        raise EvaluationError(f"{words}: {Path(path).name} has the rows 0 to {len(rows) - 1}")
    return [rows[int(number)]]


def partners(ours: list[dict], theirs: list[dict]) -> list[tuple[dict, dict]]:
    """Which rows to compare: the two that were named, else every pair that shares scenes, horizon and conditions.

    EvaluationError when there is none.
    """
    if len(ours) == len(theirs) == 1:
        return [(ours[0], theirs[0])]
    found = [
        (a, b)
        for a in ours
        for b in theirs
        if not misfits(a, b) and not differing(a, b) and (a["horizon"] == b["horizon"] or 1 in (len(ours), len(theirs)))
    ]
    if not found:
        raise EvaluationError(
            "no row of A fits a row of B (task, setting, seeds, horizon and conditions); name two rows with A.json#0 B.json#0"
        )
    return found
