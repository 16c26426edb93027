"""Is a trimmed policy better than its baseline? The judgement, the page and the figure that show it."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from policytrim_ros.training.compare import compare_pairs, pairs_of
from policytrim_ros.training.evaluate import READING, table
from policytrim_ros.training.figures import save_figure


def judge(before: Sequence[dict], after: Sequence[dict], margin: float, confidence: float) -> dict:
    """Compares reports of the same scenes, task by task and all together, JSON-ready.

    improvement: success non-inferior by ``margin`` (one-sided ``confidence``, all tasks together), and the two-sided
    intervals of the differences in calls and in steps, over the pairs in which both succeed, below zero.
    """
    pairs = {a["task"]: (a, b) for a in before for b in after if a["task"] == b["task"]}
    rows = [_compared(task, [pair], margin, confidence) for task, pair in pairs.items()]
    if len(rows) > 1:
        rows.append(_compared("all", list(pairs.values()), margin, confidence))
    whole = rows[-1]
    reasons = []
    if not whole["non_inferior"]:
        reasons.append(f"success may be lower by up to {-100 * whole['lower_bound']:.1f} points (margin {100 * margin:g})")
    for name in ("steps", "calls"):
        if not (whole[name] and whole[name]["difference"][2] < 0):
            reasons.append(f"{name} are not shown to be fewer")
    improvement = not reasons
    said = (
        f"success {whole['success'][0]:.3f} -> {whole['success'][1]:.3f} (loss at most {max(0.0, -100 * whole['lower_bound']):.1f} "
        f"points), "
        + ", ".join(
            f"{name} {whole[name]['a']:.1f} -> {whole[name]['b']:.1f} ({whole[name]['ratio'][0]:.2f} times fewer)"
            for name in ("steps", "calls")
            if whole[name]
        )
    )
    verdict = f"an improvement: {said}" if improvement else f"no improvement: {'; '.join(reasons)}; {said}"
    return {
        "improvement": improvement,
        "verdict": verdict,
        "margin": margin,
        "confidence": confidence,
        "rows": rows,
        "table": _table(rows),
    }


def _compared(task: str, rows, margin: float, confidence: float) -> dict:
    """What `compare` says of all pairs of the ``rows``, (before, after) of each task, for the table."""
    found = compare_pairs([pair for a, b in rows for pair in pairs_of(a, b)], margin, confidence)
    n, both = found["pairs"], found["both_succeed"]
    return {
        "task": task,
        "n": n,
        "horizon": [row["horizon"] for row in rows[0]],
        "success": [(both + found["only_a"]) / n, (both + found["only_b"]) / n],
        "difference": found["success_difference"],
        "lower_bound": found["lower_bound"],
        "non_inferior": found["non_inferior"],
        "steps": found["quantities"]["control steps S"]["both_succeed"],
        "calls": found["quantities"]["calls N"]["both_succeed"],
    }


def _table(rows) -> str:
    lines = [
        "| task | n | h | SR | difference | S | S ratio | N | N ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        difference, low, high = row["difference"]
        cells = [
            row["task"], row["n"], f"{row['horizon'][0]} -> {row['horizon'][1]}",
            f"{row['success'][0]:.3f} -> {row['success'][1]:.3f}", f"{difference:+.3f} [{low:+.3f}, {high:+.3f}]",
        ]  # fmt: skip
        for name in ("steps", "calls"):
            found = row[name]
            cells += (
                [f"{found['a']:.1f} -> {found['b']:.1f}", "{:.2f} [{:.2f}, {:.2f}]".format(*found["ratio"])]
                if found
                else ["-", "-"]
            )
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def evidence_page(recipe, evidence: dict, before, after, checks) -> str:
    """Everything that a reader needs to believe or to doubt the result, as Markdown."""
    seeds = f"{before[0]['first_seed']} to {before[0]['first_seed'] + before[0]['n'] - 1}"
    commits = dict.fromkeys(row["commit"] for row in (*before, *after))  # rows that a resumed run has kept may be older
    lines = [
        f"# {recipe.name}: {'an improvement' if evidence['improvement'] else 'no improvement'}",
        "",
        f"{evidence['verdict'][0].upper()}{evidence['verdict'][1:]}.",
        "",
        evidence["table"],
        "",
        f"Pairs of the same scenes, seeds {seeds}, never used in training or selection. S, N and their ratios (before / after): "
        f"pairs in which both succeed. Intervals {100 * evidence['confidence']:g} %: Newcombe's for paired rates, bootstrap for means.",
        f"Baseline {recipe.against or recipe.parent}; seed {recipe.seed}; commit {', '.join(commits)}.",
        "",
        "## Both by themselves",
        "",
        table([*before, *after]),
        "",
        READING,
        "",
        "## Checks while training (selection scenes)",
        "",
        "| stage | iteration | minutes | h | SR | S (lost: as given up) | N (all) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for check in checks:
        lines.append(
            f"| {check['phase']} | {check['iteration']} | {check['minutes']} | {check['horizon']} | {check['success_rate']:.3f} "
            f"| {check['steps']:.1f} | {check['calls']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def learning_figure(path, history: Sequence[dict], checks: Sequence[dict]) -> None:
    """A PNG: success rate and control steps of every iteration's rollouts, and of the checks, through all stages."""
    from matplotlib.figure import Figure

    if not history:
        return
    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    axes = figure.subplots(1, 2)
    firsts = {entry["phase"]: i for i, entry in reversed(list(enumerate(history)))}  # how many iterations came before a stage
    at = [firsts[check["phase"]] + check["iteration"] for check in checks]
    for axis, key, words in ((axes[0], "success_rate", "success rate"), (axes[1], "steps", "control steps S (all episodes)")):
        axis.plot(range(1, len(history) + 1), [entry[key] for entry in history], alpha=0.4, label="rollouts (exploring)")
        axis.plot(at, [check[key] for check in checks], marker="o", markersize=4, label="checks (deployed sampling)")
        axis.set(xlabel="iteration", ylabel=words)
        axis.grid(alpha=0.3)
        for first in filter(None, firsts.values()):
            axis.axvline(first + 0.5, color="grey", linestyle="--", linewidth=1)
    axes[0].set_ylim(-0.02, 1.02)
    axes[1].set_ylim(bottom=0)
    axes[0].legend(fontsize="small")
    save_figure(figure, Path(path))
