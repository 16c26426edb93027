"""Figures of evaluations: success rate and control steps against the execution horizon, with their intervals."""

from __future__ import annotations

from pathlib import Path
from typing import Callable, Sequence

LARGE = (10.0, 4.2)
"""Width and height in inches."""


def horizon_figure(path, reports: Sequence[dict], label: Callable[[dict], str]) -> bool:
    """Writes a PNG with SR and S against h, one line for each ``label``; False when no label has two horizons.

    Needs matplotlib. Written beside and renamed.
    """
    lines: dict[str, list[dict]] = {}
    for report in reports:
        lines.setdefault(label(report), []).append(report)
    lines = {name: sorted(rows, key=lambda r: r["horizon"]) for name, rows in lines.items()}
    if all(len({row["horizon"] for row in rows}) < 2 for rows in lines.values()):
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second of import, and only here
    from matplotlib.figure import Figure

    figure = Figure(figsize=LARGE, layout="constrained")
    FigureCanvasAgg(figure)
    rate, steps = figure.subplots(1, 2)
    for name, rows in lines.items():
        _line(rate, name, [(r["horizon"], r["success_rate"], *r["success_interval"]) for r in rows])
        _line(steps, name, [(r["horizon"], *r["steps_success"]) for r in rows if r["steps_success"]])
    rate.set(xlabel="execution horizon h", ylabel="success rate SR [95 % Wilson]", ylim=(-0.02, 1.02))
    steps.set(xlabel="execution horizon h", ylabel="control steps S of successes [95 % bootstrap]")
    for axes in (rate, steps):
        axes.grid(alpha=0.3)
        axes.set_xticks(sorted({r["horizon"] for r in reports}))
    rate.legend(fontsize="small")
    save_figure(figure, path)
    return True


def save_figure(figure, path) -> None:
    """Writes a matplotlib figure as PNG, beside and renamed."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.partial.png")
    figure.savefig(beside, dpi=120)
    beside.replace(path)


def _line(axes, name, points) -> None:
    h, middle, low, high = (list(column) for column in zip(*points)) if points else ([], [], [], [])
    spread = [[m - a for m, a in zip(middle, low)], [b - m for m, b in zip(middle, high)]]
    axes.errorbar(h, middle, yerr=spread, marker="o", markersize=4, capsize=3, linewidth=1.2, label=name)
