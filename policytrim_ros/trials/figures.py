"""Figures of a session as SVG for a page: intervals of the rates and their differences, and when trials succeeded.

Ink is ``currentColor``, so that a page may be light or dark. An arm has a colour, a marker and a line style: colour is never all.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import threading
import warnings
from typing import Sequence

from policytrim_ros.trials.claims import Claims
from policytrim_ros.trials.page import Figure, clean
from policytrim_ros.trials.store import Row

INK = "#010203"
"""Stands for the page's own ink until the drawing is text."""

ARMS = (  # colour (readable on white and on black), marker, line style
    ("#2f86d6", "o", "solid"),
    ("#d9722b", "s", (0, (5, 1.5))),
    ("#4a9e5c", "^", (0, (1.5, 1.2))),
    ("#a86cc9", "D", (0, (5, 1.5, 1.5, 1.5))),
    ("#b0892f", "v", (0, (8, 2))),
)
LONGEST_NAME = 40
WIDTH_IN = 9.5


def interval_figure(claims: Claims) -> Figure:
    """Success rates with their Wilson intervals; beside them the differences, against zero and the margin."""
    cells = [cell for cell in claims.cells if any(rate.n for rate in cell.rates)]
    compared = len(claims.arms) > 1 and claims.canary is None
    overall = [comparison for comparison in claims.overall if not math.isnan(comparison.success.difference.low)]
    with _style() as matplotlib:
        height = 1.3 + 0.32 * max(1, len(overall) + sum(len(cell.rates) for cell in cells)) + 0.1 * len(cells)
        figure = matplotlib.figure.Figure(figsize=(WIDTH_IN, height), layout="constrained")
        rate_axes, gap_axes = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2)) if compared else (figure.subplots(), None)
        position, ticks, words = 0.0, [], []
        for cell in cells:
            top = position
            for i, rate in enumerate(cell.rates):
                _bar(rate_axes, position, 100 * rate.rate if rate.n else None, 100 * rate.low, 100 * rate.high, i)
                ticks.append(position)
                words.append(f"{_name(cell.name)}: {_name(rate.arm)}" if i == 0 else _name(rate.arm))
                position += 1
            for comparison in cell.comparisons:
                index = claims.arms.index(comparison.second)
                gap = comparison.success.difference
                _bar(gap_axes, top + index, *(100 * value for value in (gap.estimate, gap.low, gap.high)), index)
            position += 0.4
        for comparison in overall:
            gap = comparison.success.difference
            _bar(
                gap_axes,
                position,
                *(100 * value for value in (gap.estimate, gap.low, gap.high)),
                claims.arms.index(comparison.second),
            )
            ticks.append(position)
            words.append(f"{comparison.name}: {_name(comparison.second)}")
            position += 1
        rate_axes.set(xlabel=f"success rate, % [{claims.percent}, Wilson]", xlim=(-3, 103), yticks=ticks)
        rate_axes.set_yticklabels(words)
        rate_axes.set_ylim(max(position - 0.4, 1) - 0.3, -0.7)
        if gap_axes is not None:
            gap_axes.axvline(0, color=INK, linewidth=0.8)
            gap_axes.axvline(-100 * claims.margin, color=INK, linewidth=1.2, linestyle="dashed")
            gap_axes.set(xlabel=f"difference from {_name(claims.arms[0])}, points [{claims.percent}]\n(dashed: the margin)")
        for axes in filter(None, (rate_axes, gap_axes)):
            axes.grid(axis="x", alpha=0.3)
        svg = _svg(figure, "intervals")
    rates = "; ".join(f"{cell.name}, {rate.arm}: {rate.words}" for cell in cells for rate in cell.rates)
    gaps = "; ".join(f"{cell.name}, {c.second}: {c.success.difference.words}" for cell in cells for c in cell.comparisons)
    alt = f"Success rates with intervals. {rates}." + (f" Differences from {claims.arms[0]}. {gaps}." if gaps else "")
    caption = (
        f"Success rates and their differences with {claims.percent} intervals. An interval of the difference that lies right of "
        "the dashed "
        "line shows non-inferiority; one that lies right of zero shows more success."
    )
    if claims.canary:
        caption = f"Success rates with {claims.percent} intervals, which do not cover that the session ends by its results."
    return Figure("intervals", svg, clean(alt, 2000), caption)


def time_figure(rows: Sequence[Row], cells: Sequence[tuple[str, str]], arms: Sequence[str]) -> Figure:
    """For each cell the share of trials that had succeeded by a time, an arm a line; failures are marked where they ended."""
    columns = min(3, len(cells))
    lines = -(-len(cells) // columns)
    with _style() as matplotlib:
        figure = matplotlib.figure.Figure(figsize=(WIDTH_IN, 0.6 + 2.5 * lines), layout="constrained")
        grid = figure.subplots(lines, columns, squeeze=False, sharey=True).flat
        alt = []
        for axes, cell in zip(grid, cells):
            for i, arm in enumerate(arms):
                trials = [row for row in rows if row.counts and (row.task, row.setting, row.label) == (*cell, arm)]
                if trials:
                    _curve(axes, trials, arm, i)
                    alt.append(f"{cell[0]} {cell[1]}, {arm}: {_reached(trials)}")
            axes.set_title(clean(f"{cell[0]}, {cell[1]}", LONGEST_NAME), fontsize="medium")
            axes.set(xlabel="s from go", ylim=(-4, 104))
            axes.set_xlim(left=0)
            axes.grid(alpha=0.3)
        for axes in list(grid)[len(cells) :]:
            axes.set_axis_off()
        grid[0].set_ylabel("succeeded, % of the trials")
        handles, labels = {}, []
        for axes in figure.axes:
            handles |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels())}
        labels = [name for name in map(_name, arms) if name in handles]
        if labels:
            figure.legend([handles[name] for name in labels], labels, loc="outside upper left", ncols=2, frameon=False)
        svg = _svg(figure, "time")
    caption = (
        "Time to success: the share of the counted trials that had succeeded so many seconds after go. A vertical tick is a "
        "failure at the "
        "time at which it ended (or ran out of time). As in a Kaplan-Meier plot it leaves at its time; unlike there it stays in "
        "the "
        "denominator, because a failed trial never succeeds later: the curve ends at the success rate."
    )
    return Figure("time_to_success", svg, clean("Time to success. " + "; ".join(alt) + ".", 2000), caption)


def curve(trials: Sequence[Row]) -> list[tuple[float, float]]:
    """Corners (s, share of ``trials`` that had succeeded by then) of the step curve, from (0, 0) to the end of the longest trial."""
    times = sorted(row.seconds for row in trials if row.outcome == "success")
    points = [(0.0, 0.0)] + [(time, (i + 1) / len(trials)) for i, time in enumerate(times)]
    return points + [(max(row.seconds for row in trials), points[-1][1])]


def _curve(axes, trials, arm, i) -> None:
    colour, marker, style = ARMS[i % len(ARMS)]
    points = curve(trials)
    axes.step(
        *zip(*((time, 100 * share) for time, share in points)), where="post", color=colour, linestyle=style, linewidth=1.8,
        label=_name(arm), marker=marker, markersize=3, markevery=slice(1, -1),
    )  # fmt: skip
    failures = [row.seconds for row in trials if row.outcome == "failure"]
    heights = [100 * max(share for time, share in points if time <= failure) for failure in failures]
    axes.plot(failures, heights, linestyle="none", marker="|", markersize=9, markeredgewidth=1.6, color=colour)


def _reached(trials) -> str:
    times = sorted(row.seconds for row in trials if row.outcome == "success")
    half = len(trials) / 2
    middle = f", half of the trials by {times[int(-(-half // 1)) - 1]:.1f} s" if len(times) >= half else ""
    return f"{len(times)} of {len(trials)} succeeded{middle}"


def _bar(axes, position, middle, low, high, i) -> None:
    colour, marker, _ = ARMS[i % len(ARMS)]
    axes.plot([low, high], [position, position], color=colour, linewidth=2, marker="|", markersize=7)
    if middle is not None:
        axes.plot([middle], [position], color=colour, marker=marker, markersize=6.5)


def _name(text: str) -> str:
    return clean(text, LONGEST_NAME)


_LOCK = threading.Lock()
"""matplotlib's settings belong to the whole process."""


@contextlib.contextmanager
def _style():
    """matplotlib with this module's settings; foreign text is never read as mathematics."""
    import matplotlib
    import matplotlib.figure

    parts = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color", "grid.color")
    settings = {"svg.fonttype": "none", "svg.hashsalt": "the same ids each time", "text.parse_math": False, "font.size": 9}
    settings |= {"axes.spines.top": False, "axes.spines.right": False, "axes.facecolor": "none"} | dict.fromkeys(parts, INK)
    with _LOCK, matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's font has what matplotlib's lacks
        yield matplotlib


def _svg(figure, name: str) -> str:
    """The figure as an <svg> element that a page can hold beside others: no declaration, no metadata, ids of its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg ") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = (
        re.sub(r' id="([^"]*)"', rf' id="{name}-\1"', svg)
        .replace("url(#", f"url(#{name}-")
        .replace('xlink:href="#', f'href="#{name}-')
    )
    return svg.replace(INK, "currentColor").strip()
