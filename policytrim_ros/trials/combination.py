"""Real trials with the help of simulated ones: prediction-powered inference (core/prediction_powered.py), never a common pot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

from policytrim_ros.core import prediction_powered
from policytrim_ros.trials.evidence import ClaimsError, Evidence, simulated
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
    spec: Session, real_rows: Sequence[Row], simulated_rows: Sequence[Row], sessions: Sequence[Mapping], second: int = 1
) -> list[Combined]:
    """Each cell's difference of success *on the robot*, by prediction-powered inference (core/prediction_powered.py).

    The scenes of the robot must have been simulated, too (equal seeds), with both arms, and further scenes
    beside them. ClaimsError when the sessions do not say that ``real_rows`` are real and ``simulated_rows``
    simulated, or when the scenes are too few.
    """
    if simulated(real_rows, sessions) is not False or simulated(simulated_rows, sessions) is not True:
        raise ClaimsError("to combine them, the sessions of the real trials must say simulated: false, those of the others true")
    return [_powered(spec, real_rows, simulated_rows, cell, second) for cell in spec.cells]


def _powered(spec: Session, real_rows, simulated_rows, cell, second) -> Combined:
    real, virtual = ({pair[0].seed: pair for pair in pairs(spec, rows, *cell, second)} for rows in (real_rows, simulated_rows))
    same, more = sorted(real.keys() & virtual.keys()), sorted(virtual.keys() - real.keys())
    if len(same) < len(real):
        raise ClaimsError(f"{' '.join(cell)}: {len(real) - len(same)} scenes of the robot were not simulated with both arms")
    won = lambda found, seeds, side: [float(found[seed][side].outcome == "success") for seed in seeds]  # noqa: E731
    arms = [(won(real, same, side), won(virtual, same, side), won(virtual, more, side)) for side in (0, 1)]
    outcomes = [values for pair in zip(*arms) for values in pair]
    try:
        shown, bounds = (
            prediction_powered.paired_difference(*outcomes, confidence) for confidence in (1 - spec.alpha, 1 - 2 * spec.alpha)
        )
    except ValueError as error:
        raise ClaimsError(f"{' '.join(cell)}: {error}") from error
    verdict = SUPPORTED if bounds.low > -spec.margin else CONTRADICTED if bounds.high < -spec.margin else NOT_SUPPORTED
    gap = Interval(shown.value, shown.low, shown.high, len(same), True, "prediction-powered, paired", "points")
    data = Evidence.of(spec, real_rows, cell, second)
    alone = Interval(*data.success(1 - spec.alpha), data.n, data.paired, "Newcombe, paired", "points")
    words = {SUPPORTED: "is", CONTRADICTED: "is not", NOT_SUPPORTED: "is not shown to be"}[verdict]
    sentence = (
        f"On the robot {data.second} {words} within {100 * spec.margin:g} points of {data.first}: {gap.words} from {len(same)} "
        "real scenes and "
        f"{len(more)} further simulated ones (prediction-powered inference, weight of the simulator "
        f"{shown.simulator_weight:.2f}); the real "
        f"trials alone say {alone.words}. No simulated success is counted as a real one."
    )
    claim = Claim(SUCCESS, verdict, sentence, gap, bounds.low)
    return Combined(data.name, data.first, data.second, claim, alone, shown.simulator_weight, len(same), len(more))
