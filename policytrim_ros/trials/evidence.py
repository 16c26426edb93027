"""The counted trials of two arms, from which every claim about them is made: pairs of equal scenes if there are enough."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Mapping, Sequence

from policytrim_ros.core.sample_size import pairs_still_needed
from policytrim_ros.core.sample_size import still_needed as trials_still_needed
from policytrim_ros.core.statistics import bootstrap_difference, difference, mean_interval, paired_difference, ratio_interval
from policytrim_ros.core.statistics import t_difference, wider
from policytrim_ros.trials.protocol import pairs
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.statements import Change, Interval
from policytrim_ros.trials.store import Row

ALL = "all cells"
QUANTITIES = {"seconds": "s", "steps": "control steps", "calls": "inference calls", "stall_s": "stalled s"}


class ClaimsError(ValueError):
    """Nothing may be claimed from these rows; the message says why."""


def simulated(rows: Sequence[Row], sessions: Sequence[Mapping]) -> bool | None:
    """Whether ``rows`` come from the simulator; None where their sessions do not say. ClaimsError unless of one kind."""
    said = {session["id"]: session["provenance"].get("simulated") for session in sessions}
    kinds = {said.get(row.session) for row in rows}
    if len(kinds) > 1:
        words = sorted({True: "simulated", False: "real", None: "of unknown origin"}[kind] for kind in kinds)
        raise ClaimsError(f"trials that are {' and '.join(words)} are not pooled; put them together with combined()")
    return kinds.pop() if kinds else (said.popitem()[1] if len(set(said.values())) == 1 else None)


@dataclass(frozen=True)
class Evidence:
    """The counted trials of two arms, in one cell or in several."""

    spec: Session
    name: str
    first: str
    second: str
    pairs: list[tuple[Row, Row]]
    groups: tuple[list[Row], list[Row]]
    paired: bool

    @classmethod
    def of(cls, spec: Session, rows, cell, second: int) -> "Evidence":
        groups = tuple(counted(rows, cell, spec.arms[i].label) for i in (0, second))
        met = pairs(spec, rows, *cell, second)
        # Few common scenes among many others would throw most trials away; treated as unpaired they claim less, not more.
        paired = 2 * len(met) >= min(map(len, groups)) and (bool(met) or not all(groups))
        return cls(spec, " ".join(cell), spec.arms[0].label, spec.arms[second].label, met, groups, paired)

    @property
    def counts(self) -> list[int]:
        """Pairs in which both succeeded, only the first, only the second, neither."""
        won = Counter(tuple(row.outcome == "success" for row in pair) for pair in self.pairs)
        return [won[kind] for kind in ((True, True), (True, False), (False, True), (False, False))]

    @property
    def solved(self) -> list[int]:
        return [sum(row.outcome == "success" for row in group) for group in self.groups]

    @property
    def both(self) -> list[tuple[Row, Row]]:
        return [pair for pair in self.pairs if all(row.outcome == "success" for row in pair)]

    @property
    def n(self) -> int:
        return len(self.pairs) if self.paired else min(map(len, self.groups))

    @property
    def unit(self) -> str:
        return "pairs" if self.paired else "trials of each arm"

    def success(self, confidence: float) -> tuple[float, float, float]:
        if self.paired:
            return paired_difference(*self.counts, confidence)
        (a, b), (solved_a, solved_b) = map(len, self.groups), self.solved
        return difference(solved_a, a, solved_b, b, confidence)

    def values(self, quantity: str) -> tuple[list[float], list[float]]:
        """The quantity of successful trials, of the first arm and of the second; in pairs where they are paired."""
        sides = zip(*self.both) if self.both else ((), ())
        if not self.paired:
            sides = ([row for row in group if row.outcome == "success"] for group in self.groups)
        return tuple([getattr(row, quantity) for row in side] for side in sides)

    def change(self, quantity: str, confidence: float) -> tuple[float, float, float]:
        """Difference of the means by the bootstrap and by Student's t (unpaired: Welch's), whichever is wider on either side."""
        before, after = self.values(quantity)
        if self.paired:
            return mean_interval([b - a for a, b in zip(before, after)], confidence)
        return wider(bootstrap_difference(before, after, confidence), t_difference(before, after, confidence))


def counted(rows, cell, label) -> list[Row]:
    """The trials that count, of one arm in one cell; the last one where a scene was tried again."""
    found = {row.seed: row for row in rows if row.counts and (row.task, row.setting) == cell and row.label == label}
    return list(found.values())


def added_up(found: Sequence[Evidence]) -> Evidence:
    groups = tuple([row for one in found for row in one.groups[side]] for side in (0, 1))
    return replace(found[0], name=ALL, pairs=[pair for one in found for pair in one.pairs], groups=groups, paired=True)


def changes(data: Evidence) -> tuple[Change, ...]:
    found = []
    for quantity, unit in QUANTITIES.items():
        before, after = data.values(quantity)
        if not before or not after:
            continue
        confidence = 1 - data.spec.alpha
        gap = Interval(*data.change(quantity, confidence), min(len(before), len(after)), data.paired, method_of(data), unit)
        positive = data.paired and len(before) > 1 and min(*before, *after) > 0
        ratio = ratio_interval(before, after, confidence) if positive else None
        found.append(Change(quantity, sum(before) / len(before), sum(after) / len(after), gap, ratio))
    return tuple(found)


def method_of(data: Evidence) -> str:
    return "paired bootstrap or t, the wider" if data.paired else "unpaired bootstrap or Welch's t, the wider"


def needed_for_success(data: Evidence) -> int:
    spec = data.spec
    power = {"alpha": spec.alpha, "power": max(0.8, spec.alpha + 0.01)}
    if data.paired:
        return pairs_still_needed(data.counts[1] + data.counts[2], len(data.pairs), spec.margin, **power)
    (a, b), (solved_a, solved_b) = map(len, data.groups), data.solved
    return max(trials_still_needed(solved_a, a, solved_b, b, spec.margin, **power))
