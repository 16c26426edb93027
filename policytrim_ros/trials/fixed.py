"""Claims of a session with a fixed number of trials, read once when they are done: Newcombe and bootstrap, corrected after Holm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import stdev
from typing import Callable, Sequence

from policytrim_ros.core.sample_size import for_faster
from policytrim_ros.trials.evidence import Evidence, method_of, changes, needed_for_success
from policytrim_ros.trials.statements import CONTRADICTED, NOT_SUPPORTED, SUCCESS, SUPPORTED, TIME, Claim, Comparison, Interval


def fixed(family: Sequence[Evidence]) -> list[Comparison]:
    """Comparisons that are read once, when the planned trials are done; corrected after Holm as one family of each kind."""
    success = tested([_p_of_success(data) for data in family], [_p_of_loss(data) for data in family])
    faster = tested([_p_of_time(data) for data in family], [_p_of_delay(data) for data in family])
    return [
        Comparison(
            data.name,
            data.first,
            data.second,
            _success_claim(data, s),
            _time_claim(data, t),
            changes(data),
        )  # fmt: skip
        for data, s, t in zip(family, success, faster)
    ]


def _p_of_success(data: Evidence) -> float:
    return smallest_alpha(lambda alpha: data.success(1 - 2 * alpha)[1] > -data.spec.margin) if data.n else 1.0


def _p_of_loss(data: Evidence) -> float:
    spec = data.spec
    return smallest_alpha(lambda alpha: data.success(1 - 2 * alpha)[2] < -spec.margin, spec.alpha) if data.n else 1.0


def _p_of_time(data: Evidence) -> float:
    return smallest_alpha(lambda alpha: data.change("seconds", 1 - 2 * alpha)[2] < 0) if _has_spread(data) else 1.0


def _p_of_delay(data: Evidence) -> float:
    if not _has_spread(data):
        return 1.0
    return smallest_alpha(lambda alpha: data.change("seconds", 1 - 2 * alpha)[1] > 0, data.spec.alpha)


def _has_spread(data: Evidence) -> bool:
    return min(map(len, data.values("seconds"))) > 1


def smallest_alpha(holds: Callable[[float], bool], largest: float = 0.499) -> float:
    """The p-value that belongs to an interval: the smallest one-sided error at which the claim ``holds``; 1 when it does not at
    ``largest``. Beyond the session's alpha an opposite's p decides nothing, nor does Holm with it: it need not be looked for."""
    if not holds(largest):
        return 1.0
    refused, held = 0.0, largest
    for _ in range(14):
        middle = (refused + held) / 2
        refused, held = (refused, middle) if holds(middle) else (middle, held)
    return held


@dataclass(frozen=True)
class Tested:
    """A claim that was tested beside others of its kind: one-sided p-values of it and of its opposite, alone and after Holm."""

    p: float
    adjusted: float
    against: float
    against_adjusted: float
    family: int  # claims of its kind

    def verdict(self, alpha: float) -> str:
        if self.adjusted <= alpha:
            return SUPPORTED
        return CONTRADICTED if self.against_adjusted <= alpha else NOT_SUPPORTED

    def alone(self, alpha: float) -> str:
        """What the claim would be without the correction, in words; '' where that changes nothing."""
        for verb, p, adjusted in (("show", self.p, self.adjusted), ("contradict", self.against, self.against_adjusted)):
            if p <= alpha < adjusted:
                return (
                    f"Alone this comparison would {verb} it, but not among {self.family} claims "
                    f"(Holm: p = {p:.3f} becomes {adjusted:.3f})"
                )
        return ""


def tested(p_values: Sequence[float], against: Sequence[float]) -> list[Tested]:
    """``p_values`` of claims of one kind and, in a family of their own, those of their opposites, corrected after Holm."""
    return [Tested(*own, *opposite, len(p_values)) for own, opposite in zip(_holm(p_values), _holm(against))]


def _holm(p_values: Sequence[float]) -> list[tuple[float, float]]:
    """(p, p adjusted) of each claim of a family (Holm, Scandinavian Journal of Statistics 6:65, 1979)."""
    adjusted, worst = {}, 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = worst
    return [(p, adjusted[i]) for i, p in enumerate(p_values)]


FEWEST = 5
"""Seconds of fewer successes are no ground for a verdict, whatever their interval: its t supposes a normal spread."""


def _success_claim(data: Evidence, found: Tested) -> Claim:
    spec = data.spec
    gap = success_alone(data)
    _, bound, highest = data.success(1 - 2 * spec.alpha)
    verdict = found.verdict(spec.alpha)
    needed = needed_for_success(data) if verdict == NOT_SUPPORTED else None
    names = f"{data.second} succeeds"
    margin, percent = f"{100 * spec.margin:g} points", f"{100 * (1 - spec.alpha):g} %"
    seen = f"measured {gap.words} over {data.n} {data.unit} ({gap.method})"
    if not data.n:
        sentence = f"There is no {data.unit.rstrip('s') if data.paired else 'trial of both arms'} yet."
    elif verdict == SUPPORTED:
        more = " It even succeeds more often: the interval lies above zero." if gap.low > 0 else ""
        sentence = (
            f"{data.second} is not worse than {data.first} by {margin} or more: its success is lower by at most "
            f"{max(0.0, -100 * bound):.0f} points ({percent}, one-sided); {seen}.{more}"
        )
    elif verdict == CONTRADICTED:
        sentence = (
            f"{names} less often than {data.first} by more than the margin of {margin}: by at least {-100 * highest:.0f} points "
            f"({percent}, one-sided); {seen}."
        )
    elif alone := found.alone(spec.alpha):
        sentence = f"{alone}; {seen}."
    else:
        sentence = (
            f"It is not shown that {names} at most {margin} less often than {data.first}; the loss may be up to "
            f"{max(0.0, -100 * bound):.0f} "
            f"points ({percent}, one-sided); {seen}. This does not show a loss either.{_plan(data, needed)}"
        )
    return Claim(SUCCESS, verdict, sentence, gap, bound, found.p, found.adjusted, needed=needed)


def success_alone(data: Evidence) -> Interval:
    """The difference of success as these trials alone give it, two-sided at 1 - alpha."""
    method = "Newcombe, paired" if data.paired else "Newcombe, unpaired"
    return Interval(*data.success(1 - data.spec.alpha), data.n, data.paired, method, "points")


def _plan(data: Evidence, needed: int) -> str:
    if needed:
        return (
            f" If both succeed equally often, about {data.n + needed} {data.unit} would show it 4 times in 5 ({needed} more than "
            "there are): plan them as a new session, since going on after a look is not covered."
        )
    return " So many trials would have shown it 4 times in 5 if both succeeded equally often."


def _time_claim(data: Evidence, found: Tested) -> Claim:
    spec = data.spec
    before, after = data.values("seconds")
    n = min(len(before), len(after))
    gap = Interval(*data.change("seconds", 1 - spec.alpha), n, data.paired, method_of(data), "s")
    _, lowest, bound = data.change("seconds", 1 - 2 * spec.alpha)
    verdict, p, adjusted = found.verdict(spec.alpha), found.p, found.adjusted
    where = f"{n} {'scenes in which both succeeded' if data.paired else 'successes of each arm'}"
    if not n:
        where = "there is no scene in which both succeeded" if data.paired else "one arm has no success"
        return Claim(TIME, verdict, f"Nothing can be said: {where}.", gap, math.nan, p, adjusted)
    means = f"{sum(before) / len(before):.1f} → {sum(after) / len(after):.1f} s, {gap.words} over {where} ({gap.method})"
    if n < FEWEST:
        return Claim(
            TIME, NOT_SUPPORTED, f"So few do not tell who is faster ({FEWEST} are wanted): {means}.", gap, bound, p, adjusted
        )
    needed, percent = None, f"{100 * (1 - spec.alpha):g} %, one-sided"
    if verdict == SUPPORTED:
        sentence = f"{data.second} is faster than {data.first} where both succeed, by at least {-bound:.2f} s ({percent}); measured {means}."
    elif verdict == CONTRADICTED:
        sentence = f"{data.second} is slower than {data.first} where both succeed, by at least {lowest:.2f} s ({percent}); measured {means}."
    elif alone := found.alone(spec.alpha):
        sentence = f"{alone}; {means}."
    else:
        needed = _needed_for_time(data, before, after)
        what = "scenes" if data.paired else "successes"
        more = f" About {needed} more such {what} would show a gain of this size 4 times in 5." if needed else ""
        sentence = f"It is not shown that {data.second} is faster than {data.first} where both succeed: {means}.{more}"
    return Claim(TIME, verdict, sentence, gap, bound, p, adjusted, needed=needed)


def _needed_for_time(data: Evidence, before: list[float], after: list[float]) -> int | None:
    """More successes for the gain that was seen; None when there was none, or too little to tell its spread."""
    n, power = min(len(before), len(after)), {"alpha": data.spec.alpha, "power": max(0.8, data.spec.alpha + 0.01)}
    gain = sum(before) / len(before) - sum(after) / len(after)
    if n < 2 or gain <= 0:
        return None
    if data.paired:  # the differences are one group, compared with zero
        return max(1, for_faster(0.0, 0.0, -gain, stdev(b - a for a, b in zip(before, after)), **power) - n)
    return max(1, for_faster(gain, stdev(before), 0.0, stdev(after), **power) - n)
