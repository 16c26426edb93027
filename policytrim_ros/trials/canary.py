"""What has become of a canary session's candidate: a function of the plan and the rows alone, so that a restart changes nothing.

The candidate is returned, and no further trial is run, when in one of its trials the arm was held for something that a policy can cause
(last column of docs/failsafes.md), when inference took it back meanwhile (an operator's roll back, or its probation), or when the test of
core/canary.py says worse. When it says as good the session ends, too; to promote the candidate is the operator's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Sequence

from policytrim_ros.core.canary import AS_GOOD, WORSE, CanaryTest
from policytrim_ros.core.safety import blames_policy
from policytrim_ros.core.sequential import UNDECIDED
from policytrim_ros.trials.session import Session, Trial
from policytrim_ros.trials.store import HELD, Row

UNSAFE, ROLLED_BACK = "unsafe", "rolled back"
RETURNED = (WORSE, UNSAFE, ROLLED_BACK)
BLAMED = (HELD, "controller: holding: ", "controller: fault: ")
"""How a row's reason begins when the controller gave it (protocol.observe)."""


@dataclass(frozen=True)
class Canary:
    """A candidate, after the trials so far."""

    candidate: str
    incumbent: str
    every: int  # one trial in so many is the candidate's
    trials: int  # of the candidate, that count
    blocks: int  # whole ones, on which the test has bet
    verdict: str  # undecided | worse | as good | unsafe | rolled back
    worse: float  # e-values; `needed` is a verdict
    as_good: float
    needed: float
    reason: str  # of a verdict, in a sentence with what to do; else ''

    @property
    def over(self) -> bool:
        """Whether no further trial is run."""
        return self.verdict != UNDECIDED

    @property
    def returned(self) -> bool:
        return self.verdict in RETURNED

    @property
    def sentence(self) -> str:
        """Verdict, reason and evidence in a line."""
        evidence = (
            f"{self.trials} trials of {self.candidate} (one in {self.every}), {self.blocks} whole blocks: e-value {self.worse:.3g} for worse, "
            f"{self.as_good:.3g} for as good, {self.needed:g} is a verdict"
        )
        reason = self.reason or f"it is not known yet whether {self.candidate} is worse than {self.incumbent}"
        return f"{reason} ({evidence})"

    def seen(self) -> dict[str, Any]:
        """For trial/state (docs/architecture.md)."""
        values = asdict(self)
        evidence = {name: round(values.pop(name), 3) for name in ("worse", "as_good", "needed")}
        return {**values, "evidence": evidence}


def canary_of(spec: Session, trials: Sequence[Trial], rows: Sequence[Row]) -> Canary | None:
    """The candidate of the plan ``spec`` with the schedule ``trials`` after ``rows`` in their order; None where there is no canary."""
    if not spec.canary:
        return None
    incumbent, candidate = spec.arms
    test = CanaryTest(spec.margin, spec.alpha)
    last = {row.number: row for row in rows if row.counts}
    for begin in range(0, len(trials), spec.canary):
        block = [last[trial.number] for trial in trials[begin : begin + spec.canary] if trial.number in last]
        if len(block) == spec.canary:
            solved = {
                side: [r.outcome == "success" for r in block if (r.label == candidate.label) is side] for side in (True, False)
            }
            test.add(*solved[True], solved[False])
    tried = sum(row.label == candidate.label for row in last.values())
    verdict, reason = _taken_back(spec, rows) or _said(spec, test)
    return Canary(
        candidate.label, incumbent.label, spec.canary, tried, test.blocks, verdict, test.worse, test.as_good, test.needed, reason
    )


def _taken_back(spec: Session, rows: Sequence[Row]) -> tuple[str, str] | None:
    """The first trial of the candidate that ended it, as verdict and reason."""
    incumbent, candidate = spec.arms
    for row in rows:
        if row.label != candidate.label:
            continue
        if why := _blamed(row):
            return UNSAFE, (
                f"{candidate.label} was returned after trial {row.number}, in which the arm was held: {why}; {incumbent.label} speaks again, look "
                "at that trial before the candidate is tried again"
            )
        if row.reason.startswith(f"{ROLLED_BACK} by ") or (row.steps and row.checkpoint != candidate.checkpoint):
            return ROLLED_BACK, (
                f"{candidate.label} was rolled back in trial {row.number}, by an operator or on probation; {incumbent.label} speaks again, lock "
                "the session before the candidate is tried again"
            )
    return None


def _blamed(row: Row) -> str:
    """Why the controller held or latched, if for something that a policy can cause; '' if not."""
    if row.outcome not in ("failure", "aborted"):
        return ""
    said = next((row.reason[len(begin) :] for begin in BLAMED if row.reason.startswith(begin)), "")
    return said.partition("; ")[0] if blames_policy(said) else ""


def _said(spec: Session, test: CanaryTest) -> tuple[str, str]:
    (incumbent, candidate), margin = spec.arms, f"{100 * spec.margin:g} points"
    return test.verdict, {
        UNDECIDED: "",
        WORSE: f"{candidate.label} was returned: it succeeds less often than {incumbent.label} by more than {margin}; "
        f"{incumbent.label} speaks again, look at the candidate's failures before it is tried again",
        AS_GOOD: f"{candidate.label} is not worse than {incumbent.label} by {margin} or more; `policytrim swap {candidate.checkpoint}` "
        f"puts it into use, until then {incumbent.label} speaks",
    }[test.verdict]
