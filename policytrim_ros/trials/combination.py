"""Real trials with the help of simulated ones: prediction-powered inference (core/prediction_powered.py), never a common pot."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

from policytrim_ros.core import prediction_powered
from policytrim_ros.core.prediction_powered import Estimate
from policytrim_ros.files import replace_file
from policytrim_ros.trials.evidence import ClaimsError, Evidence, counted, simulated
from policytrim_ros.trials.fixed import Tested, smallest_alpha, success_alone, tested
from policytrim_ros.trials.protocol import pairs
from policytrim_ros.trials.session import Session
from policytrim_ros.trials.statements import CONTRADICTED, NOT_SUPPORTED, SUCCESS, SUPPORTED, Claim, Interval
from policytrim_ros.trials.store import Row


@dataclass(frozen=True)
class Combined:
    """The difference of success on the robot in one cell, estimated with the help of the simulator."""

    name: str
    first: str
    second: str
    claim: Claim
    real_alone: Interval
    simulator_weight: float  # lambda of PPI++: 0 when the simulator was of no use
    scenes: int  # on the robot and in the simulator
    further: int  # in the simulator only


def combined(
    spec: Session, real_rows: Sequence[Row], simulated_rows: Sequence[Row], sessions: Sequence[Mapping]
) -> list[Combined]:
    """Each cell's difference of success *on the robot*, of every later arm from the first, corrected after Holm as one family.

    The scenes of the robot must have been simulated, too (equal seeds), with both arms, and further scenes
    beside them. ClaimsError when the sessions do not say that ``real_rows`` are real and ``simulated_rows``
    simulated, when an arm was not the same policy (weights, h) in both, or when the scenes are too few.
    """
    if simulated(real_rows, sessions) is not False or simulated(simulated_rows, sessions) is not True:
        raise ClaimsError("to combine them, the sessions of the real trials must say simulated: false, those of the others true")
    _check_policies(spec, real_rows, simulated_rows)
    found = [
        _Powered(spec, real_rows, simulated_rows, cell, second) for cell in spec.cells for second in range(1, len(spec.arms))
    ]
    judged = tested([one.p_of_success for one in found], [one.p_of_loss for one in found])
    return [one.stated(verdict) for one, verdict in zip(found, judged)]


def _check_policies(spec: Session, real_rows: Sequence[Row], simulated_rows: Sequence[Row]) -> None:
    """Names are not enough: ClaimsError unless each arm has executed the same weights with the same h in all its trials."""
    for cell in spec.cells:
        for arm in spec.arms:
            real, virtual = (counted(rows, cell, arm.label) for rows in (real_rows, simulated_rows))
            for what, of in (("weights", lambda row: row.weights_sha256[:12] or "unknown"), ("h", lambda row: str(row.horizon))):
                here, there = sorted(set(map(of, real))), sorted(set(map(of, virtual)))
                if real and virtual and (here != there or len(here) > 1 or here == ["unknown"]):
                    raise ClaimsError(
                        f"{' '.join(cell)}, {arm.label}: {what} {', '.join(here)} on the robot, {', '.join(there)} in the simulator; "
                        "only trials of the same policy are combined: choose other sessions, or simulate this one"
                    )


class _Powered:
    """The pairs of one cell and one later arm, on the robot and in the simulator."""

    def __init__(self, spec: Session, real_rows, simulated_rows, cell, second: int):
        self.data = Evidence.of(spec, real_rows, cell, second)
        real, virtual = (
            {pair[0].seed: pair for pair in pairs(spec, rows, *cell, second)} for rows in (real_rows, simulated_rows)
        )
        self.same, self.more = sorted(real.keys() & virtual.keys()), sorted(virtual.keys() - real.keys())
        if len(self.same) < len(real):
            raise ClaimsError(
                f"{self.data.name}, {self.data.first} and {self.data.second}: {len(real) - len(self.same)} scenes of the robot "
                "were not simulated with both arms"
            )
        won = lambda met, seeds, side: [float(met[seed][side].outcome == "success") for seed in seeds]  # noqa: E731
        arms = [(won(real, self.same, side), won(virtual, self.same, side), won(virtual, self.more, side)) for side in (0, 1)]
        self._outcomes = [values for pair in zip(*arms) for values in pair]

    def estimate(self, confidence: float) -> Estimate:
        try:
            return prediction_powered.paired_difference(*self._outcomes, confidence)
        except ValueError as error:
            raise ClaimsError(f"{self.data.name}: {error}") from error

    @property
    def p_of_success(self) -> float:
        return smallest_alpha(lambda alpha: self.estimate(1 - 2 * alpha).low > -self.data.spec.margin)

    @property
    def p_of_loss(self) -> float:
        spec = self.data.spec
        return smallest_alpha(lambda alpha: self.estimate(1 - 2 * alpha).high < -spec.margin, spec.alpha)

    def stated(self, found: Tested) -> Combined:
        data, spec = self.data, self.data.spec
        shown, bound = self.estimate(1 - spec.alpha), self.estimate(1 - 2 * spec.alpha).low
        verdict, alone = found.verdict(spec.alpha), success_alone(data)
        gap = Interval(shown.value, shown.low, shown.high, len(self.same), True, "prediction-powered, paired", "points")
        words = {SUPPORTED: "is", CONTRADICTED: "is not", NOT_SUPPORTED: "is not shown to be"}[verdict]
        sentence = (
            f"On the robot {data.second} {words} within {100 * spec.margin:g} points of {data.first}: {gap.words} from "
            f"{len(self.same)} real scenes and {len(self.more)} further simulated ones (prediction-powered inference, weight of "
            f"the simulator {shown.simulator_weight:.2f}); the real trials alone say {alone.words} ({alone.method}). "
            "No simulated success is counted as a real one."
        )
        if verdict == NOT_SUPPORTED and (corrected := found.alone(spec.alpha)):
            sentence += f" {corrected}."
        claim = Claim(SUCCESS, verdict, sentence, gap, bound, found.p, found.adjusted)
        return Combined(data.name, data.first, data.second, claim, alone, shown.simulator_weight, len(self.same), len(self.more))


# ---- kept for the report ---------------------------------------------------------------------------------------------------


def kept_in(out, session: str) -> Path:
    """Where the result of ``session`` lies, for its report."""
    return Path(out) / session / "combined.json"


def keep(out, session: str, found: Sequence[Combined], real_rows: Sequence[Row], simulated_sessions: Sequence[str]) -> Path:
    """Writes ``found`` beside the trials of ``session``; a later result takes its place. OSError when that cannot be."""
    cells = [
        {"name": one.name, "first": one.first, "second": one.second, "verdict": one.claim.verdict, "sentence": one.claim.sentence}
        for one in found
    ]
    values = {"simulated_sessions": list(simulated_sessions), "outcomes_sha256": _digest(real_rows), "cells": cells}
    path = kept_in(out, session)
    replace_file(path, (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def kept(out, session: str, real_rows: Sequence[Row]) -> dict | None:
    """What `keep` wrote for ``session``; None when there is nothing, or when outcomes have changed since."""
    try:
        values = json.loads(kept_in(out, session).read_text(encoding="utf-8"))
        cells = [{name: str(cell[name]) for name in ("name", "first", "second", "verdict", "sentence")} for cell in values["cells"]]
        sessions = [str(name) for name in values["simulated_sessions"]]
        return {"cells": cells, "simulated_sessions": sessions} if values["outcomes_sha256"] == _digest(real_rows) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _digest(rows: Sequence[Row]) -> str:
    """Changes with every outcome."""
    return hashlib.sha256(json.dumps([(row.number, row.label, row.outcome) for row in rows]).encode()).hexdigest()
