"""What the trials of a session show, and what they do not: two claims about every later arm, told apart, each with its verdict.

    non-inferiority of success     the success rate is lower than the first arm's by less than the margin written down before
    superiority of time            less time from go to success, over the scenes in which both arms succeeded

A verdict is `supported`, `not supported` or `contradicted`. The bound behind it is one-sided at the session's alpha; intervals
that are shown are two-sided at 1 - alpha. Where the arms met the same scenes, outcomes are pairs. Cells together: pairs never cross
cells, and each cell weighs as many as its pairs; their counts are added, which overstates the spread a little where cells
differ (their variation stays in it). Several claims of one kind are corrected after Holm (1979), those about single cells as one
family and those about all cells as another. A session that stops by its sequential test gets the anytime-valid verdicts of
core/sequential.py instead, a canary session what its own test says (canary.py).

Trials in simulation and on a robot are never pooled; `combined` puts them together by prediction-powered inference (combination.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Mapping, Sequence

from policytrim_ros.core.statistics import wilson
from policytrim_ros.trials.anytime import anytime, in_every_cell
from policytrim_ros.trials.canary import Canary, canary_of
from policytrim_ros.trials.cautions import cautions
from policytrim_ros.trials.evidence import Evidence, added_up, counted, simulated
from policytrim_ros.trials.fixed import fixed
from policytrim_ros.trials.session import Session, schedule
from policytrim_ros.trials.statements import Comparison
from policytrim_ros.trials.store import Row


@dataclass(frozen=True)
class Rate:
    """Success of one arm in one cell, with its Wilson interval."""

    arm: str
    successes: int
    n: int
    low: float
    high: float

    @property
    def rate(self) -> float:
        return self.successes / self.n if self.n else math.nan

    @property
    def words(self) -> str:
        percent = f"{100 * self.rate:.0f}" if self.n else "-"
        return f"{self.successes}/{self.n} = {percent} % [{100 * self.low:.0f}, {100 * self.high:.0f}]"


@dataclass(frozen=True)
class Cell:
    """One task in one setting."""

    task: str
    setting: str
    rates: tuple[Rate, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def name(self) -> str:
        return f"{self.task} {self.setting}"


@dataclass(frozen=True)
class Claims:
    """Everything a session's trials say. ``overall``: all cells together; empty where there is one, or where that makes no sense."""

    arms: tuple[str, ...]
    alpha: float
    margin: float
    stop: str
    simulated: bool | None
    cells: tuple[Cell, ...]
    overall: tuple[Comparison, ...]
    warnings: tuple[str, ...]
    canary: Canary | None = None  # of a canary session, in place of comparisons

    @property
    def percent(self) -> str:
        return f"{100 * (1 - self.alpha):g} %"

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """All comparisons, those over all cells first."""
        return self.overall + tuple(comparison for cell in self.cells for comparison in cell.comparisons)


def claims(spec: Session, rows: Sequence[Row], sessions: Sequence[Mapping] = (), relabelled: Sequence[int] = ()) -> Claims:
    """What ``rows`` show under the plan ``spec``.

    ``sessions``: the sessions that the rows belong to (store.read_sessions), which say whether they were simulated and locked;
    ``relabelled``: numbers of trials whose outcome was changed. ClaimsError where simulated and real trials are mixed.
    """
    kind = simulated(rows, sessions)
    labels = [arm.label for arm in spec.arms]
    strangers = sorted({row.label for row in rows} - set(labels))
    rows = [row for row in rows if row.label in labels and (row.task, row.setting) in spec.cells]
    if spec.canary:
        return _of_canary(spec, rows, sessions, kind, relabelled, strangers)
    judge = anytime if spec.stop == "sequential" else fixed
    data = {cell: [Evidence.of(spec, rows, cell, i) for i in range(1, len(labels))] for cell in spec.cells}
    compared = iter(judge([found for cell in spec.cells for found in data[cell]]))
    cells = tuple(
        Cell(*cell, tuple(_rate(spec, rows, cell, label) for label in labels), tuple(next(compared) for _ in data[cell]))
        for cell in spec.cells
    )
    together = _together(spec, data, cells) if len(cells) > 1 else ()
    warned = cautions(spec, rows, sessions, kind, relabelled, strangers, data)
    if len(cells) > 1 and len(labels) > 1 and not together:
        warned.append("Nothing is claimed over all cells together: not every cell has pairs.")
    return Claims(tuple(labels), spec.alpha, spec.margin, spec.stop, kind, cells, together, tuple(warned))


def _of_canary(spec: Session, rows, sessions, kind, relabelled, strangers) -> Claims:
    """Rates, and what its own test says: no interval of the difference covers a session that ends by its results."""
    labels = tuple(arm.label for arm in spec.arms)
    cells = tuple(Cell(*cell, tuple(_rate(spec, rows, cell, label) for label in labels), ()) for cell in spec.cells)
    warned = cautions(spec, rows, sessions, kind, relabelled, strangers, {})
    canary = canary_of(spec, schedule(spec), rows)
    return Claims(labels, spec.alpha, spec.margin, spec.stop, kind, cells, (), tuple(warned), canary)


def _rate(spec, rows, cell, label) -> Rate:
    trials = counted(rows, cell, label)
    successes = sum(row.outcome == "success" for row in trials)
    return Rate(label, successes, len(trials), *wilson(successes, len(trials), 1 - spec.alpha))


def _together(spec: Session, data: Mapping[tuple, list[Evidence]], cells: Sequence[Cell]) -> tuple[Comparison, ...]:
    """Each later arm against the first over all cells; () where a cell has no pairs: other counts of different cells do not add up."""
    found = [list(of_arm) for of_arm in zip(*data.values())]
    if spec.stop == "sequential":
        return tuple(in_every_cell(spec, of_arm, [cell.comparisons[i] for cell in cells]) for i, of_arm in enumerate(found))
    if not all(one.paired and one.n for of_arm in found for one in of_arm):
        return ()
    return tuple(fixed([added_up(of_arm) for of_arm in found]))
