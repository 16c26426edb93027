"""The table of trials: success rates with Wilson intervals, seconds and counts with bootstrap intervals (95 %).

Seconds, steps and calls are means over the *successful* trials (time to success); stalls over all that count. Every aborted
and invalid try is counted beside the table's rates, never in them. Where a task was tried with several policies, a
second table compares each with the first one, over the scenes in which both succeeded. Simulated and
real trials have tables of their own.
"""

from __future__ import annotations

import math
from collections import Counter

from policytrim_ros.core.statistics import mean_interval, wilson
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.store import Row, read, read_sessions

COLUMNS = (
    "task",
    "setting",
    "label",
    "trials",
    "SR %",
    "seconds",
    "S steps",
    "N calls",
    "h",
    "stalls",
    "stalled s",
    "not counted",
)


def table(rows: list[Row]) -> str:
    """Aligned Markdown table of ``rows``, one line for each (task, setting, label), in the order of their first trial."""
    return _aligned(lines(rows))


def lines(rows: list[Row]) -> list[tuple[str, ...]]:
    """The cells of `table`: the names of its columns, then one line for each (task, setting, label)."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault((row.task, row.setting, row.label), []).append(row)
    return [COLUMNS] + [_line(key, group) for key, group in groups.items()]


def _aligned(cells: list[tuple]) -> str:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def show(out, session: str = "") -> str:
    """Tables of one session below directory ``out``, or of all together (''), but of what is still blind: that is only counted."""
    rows, sessions = read(out, session), read_sessions(out)
    if not rows:
        return f"no trials of session {session} in {out}" if session else f"no trials in {out}"
    seen = unblinded(rows, sessions)
    kinds: dict[bool | None, list[Row]] = {}
    said = {session["id"]: session["provenance"].get("simulated") for session in sessions}
    for row in in_order(seen, sessions):
        kinds.setdefault(said.get(row.session), []).append(row)
    title = {True: "Simulated:\n\n", False: "Real:\n\n", None: "Of unknown origin:\n\n"} if len(kinds) > 1 else {}
    parts = [title.get(kind, "") + tables(of_kind) for kind, of_kind in kinds.items()]
    if hidden := len(rows) - len(seen):
        parts.append(f"{hidden} trials are of blind sessions; lock them to see their arms.")
    return "\n\n".join(parts)


def unblinded(rows: list[Row], sessions: list[dict]) -> list[Row]:
    """Those of ``rows`` whose arm may be seen: of sessions that are locked or were never blind."""
    blind = {session["id"] for session in sessions if is_blind(session)}
    return [row for row in rows if row.session not in blind]


def in_order(rows: list[Row], sessions: list[dict]) -> list[Row]:
    """``rows`` cell by cell, in each the arms as their session names them: the first one is what others are compared with."""
    place = {
        (session["id"], arm.label): number
        for session in sessions
        for number, arm in enumerate(Session.from_mapping(session["spec"]).arms)
    }
    cells = {cell: number for number, cell in enumerate(dict.fromkeys((row.task, row.setting) for row in rows))}
    return sorted(rows, key=lambda row: (cells[row.task, row.setting], place.get((row.session, row.label), 0)))


def is_blind(session: dict) -> bool:
    """Whether nobody may see yet which arm a trial of this session (store.read_sessions) belongs to."""
    return session["locked"] is None and session["spec"].get("blind", False)


def tables(rows: list[Row]) -> str:
    """`table`, and `comparison` where there is something to compare."""
    return "\n\n".join(filter(None, (table(rows), comparison(rows))))


def comparison(rows: list[Row]) -> str:
    """Each later policy beside the first one of its task and setting, as a Markdown table; empty where there is only one."""
    groups: dict[tuple, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.counts:
            groups.setdefault((row.task, row.setting), {}).setdefault(row.label, {})[row.seed] = row
    cells = [("task", "setting", "from", "to", "scenes", "solved", "both", "seconds", "S steps", "N calls")]
    for key, labels in groups.items():
        (first, before), *others = labels.items()
        for label, after in others:
            shared = [(before[seed], after[seed]) for seed in sorted(set(before) & set(after))]
            if not shared:
                continue  # of a canary, whose scenes are met once
            both = [pair for pair in shared if all(row.outcome == "success" for row in pair)]
            solved = " -> ".join(str(sum(pair[i].outcome == "success" for pair in shared)) for i in (0, 1))
            means = [_change([(getattr(a, name), getattr(b, name)) for a, b in both]) for name in ("seconds", "steps", "calls")]
            cells.append((*key, first, label, str(len(shared)), solved, str(len(both)), *means))
    return _aligned(cells) if len(cells) > 1 else ""


def _line(key: tuple, group: list[Row]) -> tuple:
    """``group``: every try of an arm in a cell. Of those that count, a repeated scene's last one; the others are told, each."""
    counted = list({row.seed: row for row in group if row.counts}.values())
    solved = [row for row in counted if row.outcome == "success"]
    low, high = wilson(len(solved), len(counted))
    rate = f"{100 * len(solved) / len(counted):.0f} [{100 * low:.0f}, {100 * high:.0f}]" if counted else "-"
    rest = Counter(row.outcome for row in group if not row.counts)
    return (
        *key,
        f"{len(solved)}/{len(counted)}",
        rate,
        mean([row.seconds for row in solved], 1),
        mean([row.steps for row in solved], 0),
        mean([row.calls for row in solved], 0),
        "/".join(str(h) for h in sorted({row.horizon for row in counted})) or "-",
        mean([row.stalls for row in counted], 1),
        mean([row.stall_s for row in counted], 2),
        ", ".join(f"{count} {outcome}" for outcome, count in sorted(rest.items())) or "-",
    )


FEW = 3
"""Of fewer values the spread is anybody's guess: their mean stands alone."""


def mean(values: list, digits: int) -> str:
    """The mean of what cannot be negative, from FEW values on with its interval: bootstrap or Student's t, the wider."""
    point, low, high = mean_interval(values)
    if math.isnan(point):
        return "-"
    return f"{point:.{digits}f}" + (f" [{max(0.0, low):.{digits}f}, {high:.{digits}f}]" if len(values) >= FEW else "")


def _change(pairs: list[tuple[float, float]]) -> str:
    """Means before and after, and how many times less."""
    if not pairs:
        return "-"
    a, b = (sum(values) / len(pairs) for values in zip(*pairs))
    return f"{a:.1f} -> {b:.1f} ({a / b:.2f} x)" if b else f"{a:.1f} -> {b:.1f}"
