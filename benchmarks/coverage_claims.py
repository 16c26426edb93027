"""What the verdicts of a report are worth, each through the code that gives it: times, the sign test, the canary, whole sessions.

Part of `python -m benchmarks.coverage`, which prints and keeps it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from policytrim_ros.core.canary import CanaryTest
from policytrim_ros.core.sequential import UNDECIDED
from policytrim_ros.trials.claims import claims
from policytrim_ros.trials.evidence import Evidence
from policytrim_ros.trials.session import Session, schedule
from policytrim_ros.trials.statements import SUPPORTED
from policytrim_ros.trials.store import Row

SIZES = (5, 10, 20, 50)
MARGIN, ALPHA = 0.1, 0.05
CLAIM_RUNS = 500  # at most: an interval of a claim is two, of which one is resampled 4000 times

CANARY_EVERY, CANARY_RATES, CANARY_BLOCKS = (2, 4, 10), (0.9, 0.5), 200

PLAN = Session.from_mapping(
    {
        "tasks": ["tape_box", "flip_mug", "hang_mug"],
        "settings": ["standard", "dynamic"],
        "arms": [{"name": "A", "checkpoint": "a"}, {"name": "B", "checkpoint": "b"}],
        "scenes": 20,
        "margin": MARGIN,
        "alpha": ALPHA,
    }
)
SESSIONS = 200
RATE_A, SHARED = 0.9, 0.5
"""Success of A, and in what share of scenes A and B fare as alike as their rates allow."""

WORLDS = {  # name: of six cells, in how many B is worse by the margin and no faster
    "B worse by the margin and no faster in all 6 cells": 6,
    "so in 3 cells, as good and 1.9 x as fast in 3": 3,
}


def _row(trial, outcome: str = "success", seconds: float = 10.0) -> Row:
    """The row of a planned trial."""
    return Row(
        task=trial.task, setting=trial.setting, label=trial.arm.label, seed=trial.seed, outcome=outcome, reason="", seconds=seconds,
        steps=int(20 * seconds), calls=int(2 * seconds) + 1, horizon=10, stalls=0, stall_s=0.0, mode="async", generation=1,
        checkpoint=trial.arm.checkpoint, began=0.0, ended=seconds, weights_sha256=trial.arm.label, session="s", number=trial.number,
        code=trial.code, labelled_by="scene",
    )  # fmt: skip


# ---- times -----------------------------------------------------------------------------------------------------------


def _evidence(a, b, paired: bool) -> Evidence:
    """Successful trials of two arms in one cell, of so many seconds."""
    trial = schedule(PLAN)[0]
    groups = tuple([replace(_row(trial), seconds=float(seconds), seed=i) for i, seconds in enumerate(side)] for side in (a, b))
    return Evidence(PLAN, "a cell", "A", "B", list(zip(*groups)) if paired else [], groups, paired)


def time_claim_rows(kinds: dict, mean_a_s: float, mean_b_s: float, runs: int) -> list[dict]:
    """A row for each design, kind of times and size: does the interval hold the truth, and how often is an equally fast B called faster?

    ``kinds``: name -> function (rng, mean, shape) that draws times.
    """
    rows = []
    for (kind, draw), paired in ((one, paired) for one in kinds.items() for paired in (True, False)):
        for n in SIZES:
            rng, runs_here = np.random.default_rng([n, paired]), min(runs, CLAIM_RUNS)
            a, b = draw(rng, mean_a_s, (runs_here, n)), draw(rng, mean_b_s, (runs_here, n))
            slower = draw(rng, mean_a_s, (runs_here, n))  # as slow as A
            limits = np.array([_evidence(*pair, paired).change("seconds", 1 - ALPHA)[1:] for pair in zip(a, b)])
            highest = np.array([_evidence(*pair, paired).change("seconds", 1 - 2 * ALPHA)[2] for pair in zip(a, slower)])
            truth = mean_b_s - mean_a_s
            rows.append(
                {
                    "design": "paired" if paired else "unpaired",
                    "times": kind,
                    "n": n,
                    "coverage": float(np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1]))),
                    "wrongly_faster": float(np.mean(highest < 0)),
                }
            )
    return rows


# ---- the canary ------------------------------------------------------------------------------------------------------


def canary_rows(runs: int) -> list[dict]:
    """A row for each share of trials and rate, with a candidate that is worse by just the margin: either verdict is an error then."""
    rows = []
    for every in CANARY_EVERY:
        for rate in (*CANARY_RATES, None):
            rng = np.random.default_rng([every, int(100 * (rate or 0))])
            said = [_canary_says(rng, every, rate) for _ in range(min(runs, 2 * CLAIM_RUNS))]
            shares = {verdict: float(np.mean([one == verdict for one in said])) for verdict in ("worse", "as good")}
            rows.append({"every": every, "rate": rate, **{name.replace(" ", "_"): share for name, share in shares.items()}})
    return rows


def _canary_says(rng: np.random.Generator, every: int, rate: float | None) -> str:
    """Verdict of one session read after every block; ``rate`` of the incumbent, None: another in each block."""
    test = CanaryTest(MARGIN, ALPHA)
    while test.verdict == UNDECIDED and test.blocks < CANARY_BLOCKS:
        now = rng.uniform(0.5, 0.95) if rate is None else rate
        test.add(rng.random() < now - MARGIN, rng.random(every - 1) < now)
    return test.verdict


# ---- whole sessions --------------------------------------------------------------------------------------------------


def session_rows(draw) -> list[dict]:
    """For each of WORLDS the share of sessions in which `claims` says something wrong of some cell, with and without Holm, and of all
    cells together; ``draw(rng, mean, shape)``: times."""
    rows = []
    for name, bad in WORLDS.items():
        rng = np.random.default_rng(bad)
        said = [_errors(rng, bad, draw) for _ in range(SESSIONS)]
        shares = {key: None if said[0][key] is None else float(np.mean([one[key] for one in said])) for key in said[0]}
        rows.append({"world": name, "sessions": SESSIONS, **shares})
    return rows


def _errors(rng: np.random.Generator, bad: int, draw) -> dict[str, float | None]:
    """What one session says wrongly (keys: claim and family), and how much of what is true it finds; None where nothing can be."""
    found = claims(PLAN, _played(rng, bad, draw))
    wrong = {}
    for kind in ("success", "time"):
        cells = [getattr(cell.comparisons[0], kind) for cell in found.cells]
        wrong[f"{kind}_alone"] = any(claim.p <= ALPHA for claim in cells[:bad])
        wrong[kind] = any(claim.verdict == SUPPORTED for claim in cells[:bad])
        good = cells[bad:]
        wrong[f"{kind}_found"] = sum(claim.verdict == SUPPORTED for claim in good) / len(good) if good else None
        together = getattr(found.overall[0], kind)
        wrong[f"{kind}_overall"] = together.verdict == SUPPORTED if bad == len(PLAN.cells) else None
    return wrong


def _played(rng: np.random.Generator, bad: int, draw) -> list[Row]:
    """The rows of one session; in the first ``bad`` cells B is worse by the margin and as slow as A."""
    worse = {cell: number < bad for number, cell in enumerate(PLAN.cells)}
    luck: dict[tuple, tuple[float, bool]] = {}
    rows = []
    for trial in schedule(PLAN):
        cell, second = (trial.task, trial.setting), trial.arm.name == "B"
        drawn, alike = luck.setdefault((cell, trial.seed), (rng.random(), rng.random() < SHARED))
        rate = RATE_A - MARGIN if second and worse[cell] else RATE_A
        solved = (drawn if alike else rng.random()) < rate
        mean_s = 7.6 if second and not worse[cell] else 14.6
        rows.append(_row(trial, "success" if solved else "failure", float(draw(rng, mean_s, ()))))
    return rows
