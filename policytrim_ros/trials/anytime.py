"""Claims of a session that stops when its test has decided: by tests that may be read after every pair (core/sequential.py)."""

from __future__ import annotations

import math
from typing import Sequence

from policytrim_ros.core.sample_size import pairs_until_verdict
from policytrim_ros.core.sequential import FASTER, INFERIOR, NON_INFERIOR, SLOWER, SUPERIOR, PairedTest, SpeedTest
from policytrim_ros.trials.evidence import ALL, Evidence, added_up, method_of, changes
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.statements import CONTRADICTED, NOT_SUPPORTED, SUCCESS, SUPPORTED, TIME, Claim, Comparison, Interval


def anytime(family: Sequence[Evidence]) -> list[Comparison]:
    """Comparisons by tests that may be read after every pair."""
    return [
        Comparison(data.name, data.first, data.second, _anytime_success(data), _anytime_time(data), changes(data))
        for data in family
    ]


def _anytime_success(data: Evidence) -> Claim:
    spec = data.spec
    outcomes = [tuple(row.outcome == "success" for row in pair) for pair in data.pairs]
    test = PairedTest(spec.margin, spec.alpha).extend(outcomes)
    low, high = PairedTest(spec.margin, spec.alpha / 2).extend(outcomes).interval
    estimate = sum(b - a for a, b in outcomes) / len(outcomes) if outcomes else 0.0
    gap = Interval(estimate, low, high, len(outcomes), True, "confidence sequence", "points")
    state = test.verdict
    verdict = {NON_INFERIOR: SUPPORTED, SUPERIOR: SUPPORTED, INFERIOR: CONTRADICTED}.get(state, NOT_SUPPORTED)
    wins, losses = data.counts[2], data.counts[1]
    needed = None
    if verdict == NOT_SUPPORTED and not test.drifting:
        needed = pairs_until_verdict(wins, len(outcomes) - wins - losses, losses, spec.margin, spec.alpha)
    margin = f"{100 * spec.margin:g} points"
    words = {
        NON_INFERIOR: f"{data.second} is not worse than {data.first} by {margin} or more",
        SUPERIOR: f"{data.second} succeeds more often than {data.first}",
        INFERIOR: f"{data.second} is worse than {data.first} by more than {margin}",
    }.get(state, f"It is not decided whether {data.second} is within {margin} of {data.first}")
    sentence = (
        f"{words}: the anytime-valid test says {state} after {len(outcomes)} pairs (e-value {test.against_worse:.3g} against a "
        "loss of "
        f"{margin}, {1 / spec.alpha:g} is enough); measured {gap.words} (confidence sequence). It was read after every pair, "
        "and that is covered."
    )
    if test.drifting:
        sentence += " Its limits contradict each other: success changed during the session."
    elif verdict == NOT_SUPPORTED:
        sentence += (
            f" If both succeed equally often, about {needed} more pairs decide." if needed else " It is far from a decision."
        )
    return Claim(SUCCESS, verdict, sentence, gap, test.interval[0], e_value=test.against_worse, needed=needed)


def _anytime_time(data: Evidence) -> Claim:
    test = SpeedTest(data.spec.alpha).extend((a.seconds, b.seconds) for a, b in data.both)
    before, after = data.values("seconds")
    gap = Interval(*data.change("seconds", 1 - data.spec.alpha), len(data.both), data.paired, method_of(data), "s")
    verdict = {FASTER: SUPPORTED, SLOWER: CONTRADICTED}.get(test.verdict, NOT_SUPPORTED)
    if not data.both:
        return Claim(TIME, verdict, "Nothing can be said: there is no scene in which both succeeded.", gap, math.nan, e_value=1.0)
    faster = sum(b.seconds < a.seconds for a, b in data.both)
    words = {
        SUPPORTED: f"{data.second} is faster than {data.first} more often than not, where both succeed",
        CONTRADICTED: f"{data.second} is slower than {data.first} more often than not, where both succeed",
        NOT_SUPPORTED: f"It is not shown that {data.second} is faster than {data.first} where both succeed",
    }[verdict]
    sentence = (
        f"{words}: in {faster} of {test.count} scenes (anytime-valid sign test, e-value {test.against_not_faster:.3g}, "
        f"{1 / data.spec.alpha:g} "
        f"is enough). Means {sum(before) / max(1, len(before)):.1f} → {sum(after) / max(1, len(after)):.1f} s, {gap.words}: "
        "this interval does not "
        "cover a session that stops by its results."
    )
    return Claim(TIME, verdict, sentence, gap, math.nan, e_value=test.against_not_faster)


def in_every_cell(spec: Session, found: Sequence[Evidence], compared: Sequence[Comparison]) -> Comparison:
    """Cells that stopped by their results cannot be added; that something holds in *every* cell needs no correction (Berger 1982)."""
    added = added_up(found)
    stated = []
    for kind, of_cells in ((SUCCESS, [c.success for c in compared]), (TIME, [c.time for c in compared])):
        verdicts = [claim.verdict for claim in of_cells]
        verdict = CONTRADICTED if CONTRADICTED in verdicts else SUPPORTED if set(verdicts) == {SUPPORTED} else NOT_SUPPORTED
        sentence = (
            f"{verdicts.count(SUPPORTED)} of {len(verdicts)} cells support it, {verdicts.count(CONTRADICTED)} contradict it. It "
            "is claimed only if "
            "every cell supports it, which needs no correction; the numbers are not added, since each cell ended by its own "
            "results."
        )
        raw = added.success(1 - spec.alpha) if kind == SUCCESS else added.change("seconds", 1 - spec.alpha)
        gap = Interval(
            raw[0],
            math.nan,
            math.nan,
            added.n,
            True,
            "none: each cell ended by its own results",
            "points" if kind == SUCCESS else "s",
        )
        stated.append(Claim(kind, verdict, sentence, gap, math.nan))
    return Comparison(ALL, added.first, added.second, *stated, changes(added))
