"""How often the intervals of a comparison hold the truth, and how often its tests err: what the trial statistics are worth.

    python -m benchmarks.coverage [--runs 2000]

Rates (Wilson, Clopper-Pearson, Newcombe unpaired and paired) and the sequential test are exact: every possible outcome with its
probability. Times, prediction-powered inference, the canary and whole sessions are simulated (runs a cell; the standard error of a
coverage of 95 % is 0.5 points for 2000 runs). Needs scipy and matplotlib. Writes docs/results/statistics.md, .json and .png.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.coverage_claims import CANARY_BLOCKS, CLAIM_RUNS, PLAN, SESSIONS, canary_rows, session_rows, time_claim_rows
from benchmarks.results import circumstances, in_words, leave, markdown
from policytrim_ros.core import prediction_powered, sample_size, statistics
from policytrim_ros.core.sequential import evidence_above, evidence_below
from policytrim_ros.training.figures import save_figure

SIZES = (5, 10, 20, 50)
ALPHA = 0.05
RATES = np.round(np.arange(0.05, 0.9951, 0.01), 2)
PAIR_RATES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
Z = stats.norm.ppf(0.975)

TIMES = {
    "even times (gamma, CV 0.27)": (lambda rng, mean, shape: rng.gamma(13.7, mean / 13.7, shape)),
    "skewed times (log-normal, CV 0.8)": (lambda rng, mean, shape: mean * np.exp(rng.normal(-0.247, 0.703, shape))),
}
"""Seconds with a given mean: what a policy that rarely hesitates takes, and one that sometimes hesitates for long."""

MEAN_A_S, MEAN_B_S = 14.6, 7.6
RESAMPLES = 1000

MOST_PAIRS, EVERY = 300, 5
MARGINS = (0.10, 0.20)
TRUTHS = (  # share of discordant pairs, B - A in margins
    (0.1, -1.0), (0.2, -1.0), (0.4, -1.0), (0.1, 0.0), (0.2, 0.0), (0.4, 0.0), (0.2, 0.5), (0.4, -2.0),
)  # fmt: skip


# ---- rates, exactly --------------------------------------------------------------------------------------------------


def rate_coverage(interval, n: int) -> np.ndarray:
    """Coverage of ``interval(k, n)`` at each of RATES."""
    limits = np.array([interval(k, n) for k in range(n + 1)])
    chances = stats.binom.pmf(np.arange(n + 1)[:, None], n, RATES)
    return (chances * ((limits[:, :1] <= RATES) & (RATES <= limits[:, 1:]))).sum(axis=0)


def wald(k: int, n: int) -> tuple[float, float]:
    """The textbook interval, for comparison."""
    half = Z * np.sqrt(k * (n - k) / n**3)
    return k / n - half, k / n + half


def unpaired_coverage(n: int) -> np.ndarray:
    """Coverage of `statistics.difference` at each pair of PAIR_RATES, n an arm."""
    limits = np.array([[statistics.difference(k, n, m, n)[1:] for m in range(n + 1)] for k in range(n + 1)])
    found = []
    for p_a, p_b in product(PAIR_RATES, PAIR_RATES):
        chances = np.outer(*(stats.binom.pmf(np.arange(n + 1), n, p) for p in (p_a, p_b)))
        truth = p_b - p_a
        found.append(chances[(limits[..., 0] <= truth + 1e-12) & (truth - 1e-12 <= limits[..., 1])].sum())
    return np.array(found)


def paired_chances():
    """(both, only A, only B, neither) for PAIR_RATES and scenes that decide nothing, half or all that they can."""
    for p_a, p_b, shared in product(PAIR_RATES, PAIR_RATES, (0.0, 0.5, 1.0)):
        both = (1 - shared) * p_a * p_b + shared * min(p_a, p_b)
        yield both, p_a - both, p_b - both, 1 - p_a - p_b + both


def paired_coverage(n: int) -> np.ndarray:
    """Coverage of `statistics.paired_difference` at each of paired_chances, n pairs."""
    tables = np.array([(i, j, k, n - i - j - k) for i in range(n + 1) for j in range(n + 1 - i) for k in range(n + 1 - i - j)])
    limits = np.array([statistics.paired_difference(*table)[1:] for table in tables.tolist()])
    found = []
    for chances in paired_chances():
        pmf, truth = stats.multinomial.pmf(tables, n, np.clip(chances, 0, 1)), chances[2] - chances[1]
        found.append(pmf[(limits[:, 0] <= truth + 1e-12) & (truth - 1e-12 <= limits[:, 1])].sum())
    return np.array(found)


def rate_rows() -> list[dict]:
    """A row for every interval of rates and size."""
    methods = {
        "rate: Wilson (`wilson`)": lambda n: rate_coverage(statistics.wilson, n),
        "rate: Wald, for comparison": lambda n: rate_coverage(wald, n),
        "rate: one-sided upper bound (`upper_bound`)": lambda n: rate_coverage(lambda k, n: (0, statistics.upper_bound(k, n)), n),
        "difference, unpaired: Newcombe (`difference`)": unpaired_coverage,
        "difference, paired: Newcombe (`paired_difference`)": paired_coverage,
    }
    rows = []
    for (name, coverage), n in product(methods.items(), SIZES):
        found = coverage(n)
        rows.append({"interval": name, "n": n, "mean": float(found.mean()), "least": float(found.min())})
        if found.size == RATES.size:
            rows[-1]["at"] = found.round(4).tolist()
    return rows


# ---- times, simulated ------------------------------------------------------------------------------------------------


def scipy_bootstrap(a: np.ndarray, b: np.ndarray, method: str, seed: int) -> np.ndarray:
    """(runs, 2): limits of mean(b) - mean(a), one for each row."""
    found = stats.bootstrap(
        (a, b),
        lambda a, b, axis: b.mean(axis=axis) - a.mean(axis=axis),
        method=method,
        axis=-1,
        n_resamples=RESAMPLES,
        batch=100,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.stack([found.low, found.high], axis=-1)


def time_limits(a: np.ndarray, b: np.ndarray, seed: int) -> dict[str, tuple[np.ndarray, float]]:
    """method -> (limits (runs, 2), truth) for times (runs, n), unpaired and taken as pairs."""
    gap, ours = MEAN_B_S - MEAN_A_S, dict(resamples=RESAMPLES, seed=seed)
    runs = list(zip(a, b))
    return {
        "difference: percentile bootstrap (`bootstrap_difference`)": (
            np.array([statistics.bootstrap_difference(x, y, **ours)[1:] for x, y in runs]),
            gap,
        ),
        "difference: BCa bootstrap (scipy)": (scipy_bootstrap(a, b, "BCa", seed), gap),
        "difference: Welch's t (`t_difference`)": (np.array([statistics.t_difference(x, y)[1:] for x, y in runs]), gap),
        "mean: percentile bootstrap (`bootstrap_mean`)": (
            np.array([statistics.bootstrap_mean(x, **ours)[1:] for x in a]),
            MEAN_A_S,
        ),
        "mean: Student's t (`t_mean`)": (np.array([statistics.t_mean(x)[1:] for x in a]), MEAN_A_S),
        "ratio, paired: percentile bootstrap (`bootstrap_ratio`)": (
            np.array([statistics.bootstrap_ratio(x, y, **ours)[1:] for x, y in runs]),
            MEAN_A_S / MEAN_B_S,
        ),
        "ratio, paired: Student's t on its logarithm (`t_ratio`)": (
            np.array([statistics.t_ratio(x, y)[1:] for x, y in runs]),
            MEAN_A_S / MEAN_B_S,
        ),
    }


def time_rows(runs: int) -> list[dict]:
    """A row for every interval of times, kind of times and size."""
    rows = []
    for (kind, draw), n in product(TIMES.items(), SIZES):
        rng = np.random.default_rng(n)
        a, b = draw(rng, MEAN_A_S, (runs, n)), draw(rng, MEAN_B_S, (runs, n))
        for name, (limits, truth) in time_limits(a, b, seed=n).items():
            covered = np.mean((limits[:, 0] <= truth) & (truth <= limits[:, 1]))
            rows.append({"interval": name, "times": kind, "n": n, "coverage": float(covered)})
    return rows


# ---- the sequential test, exactly ------------------------------------------------------------------------------------


def truth_of(discordant: float, difference: float) -> tuple[float, float]:
    """(P(only B succeeds), P(only A succeeds))."""
    return (discordant + difference) / 2, (discordant - difference) / 2


def sequential(margin: float, truths: list[tuple[float, float]]) -> list[dict]:
    """What `PairedTest` has said by each pair if it is stopped at its first verdict, for several true (win, loss) chances.

    The evidence depends on the counts of wins and losses only: their distribution is carried from pair to pair.
    """
    shape = (MOST_PAIRS + 1, MOST_PAIRS + 1)
    masses = np.zeros((len(truths), *shape))
    masses[:, 0, 0] = 1.0
    said = np.zeros((len(truths), 2, MOST_PAIRS + 1))  # non-inferior, inferior: at which pair
    for pair in range(1, MOST_PAIRS + 1):
        side = slice(0, pair + 1)
        wins, losses = np.mgrid[side, side]
        reached = wins + losses <= pair
        counts = wins[reached], pair - wins[reached] - losses[reached], losses[reached]
        verdicts = np.zeros((2, *wins.shape), bool)
        verdicts[0][reached] = evidence_above(*counts, -margin) >= 1 / ALPHA
        verdicts[1][reached] = evidence_below(*counts, -margin) >= 1 / ALPHA
        for k, (win, loss) in enumerate(truths):
            before = masses[k, side, side]
            after = (1 - win - loss) * before
            after[1:] += win * before[:-1]
            after[:, 1:] += loss * before[:, :-1]
            said[k, :, pair] = [after[verdict].sum() for verdict in verdicts]
            after[verdicts.any(axis=0)] = 0.0
            masses[k, side, side] = after
    pairs = np.arange(MOST_PAIRS + 1)
    return [
        {
            "non_inferior": float(one[0].sum()),
            "inferior": float(one[1].sum()),
            "mean_pairs": float(pairs @ one.sum(axis=0) + MOST_PAIRS * (1 - one.sum())),
            "non_inferior_by_pair": one[0].cumsum()[::EVERY].round(4).tolist(),
        }
        for one in said
    ]


def fixed(margin: float, win: float, loss: float, runs: int) -> dict:
    """The test at a number of pairs that was set before, from Newcombe's paired interval; planned for no difference."""
    n = sample_size.pairs_for_non_inferiority(win + loss, margin)
    rest = 1 - win - loss
    draws = np.random.default_rng(n).multinomial(n, (0.75 * rest, loss, win, 0.25 * rest), runs)
    lows = [statistics.paired_difference(*draw, 1 - 2 * ALPHA)[1] for draw in draws.tolist()]
    return {"pairs": n, "non_inferior": float(np.mean(np.array(lows) > -margin))}


def peeking(margin: float, win: float, loss: float, sessions: int = 400) -> float:
    """Share of sessions in which the fixed test, read after every pair from the 10th to the last, says non-inferior."""
    rest = 1 - win - loss
    draws = np.random.default_rng(1).choice(4, (sessions, MOST_PAIRS), p=(0.75 * rest, loss, win, 0.25 * rest))
    tables = np.cumsum(draws[..., None] == np.arange(4), axis=1)[:, 9:]
    return float(np.mean([any(_above(table, margin) for table in session) for session in tables.tolist()]))


def _above(table: list[int], margin: float) -> bool:
    return statistics.paired_difference(*table, 1 - 2 * ALPHA)[1] > -margin


def sequential_rows(runs: int) -> list[dict]:
    """A row for every margin and truth."""
    rows = []
    for margin in MARGINS:
        cases = [(discordant, share * margin) for discordant, share in TRUTHS if abs(share * margin) <= discordant]
        truths = [truth_of(*case) for case in cases]
        for (discordant, difference), truth, found in zip(cases, truths, sequential(margin, truths)):
            row = {"margin": margin, "discordant": discordant, "difference": round(difference, 3), **found}
            row["fixed"] = fixed(margin, *truth, runs)
            if difference == -margin:
                row["peeking"] = peeking(margin, *truth)
            rows.append(row)
    return rows


SPEEDS = ((0.5, 0.5), (0.4, 0.4), (0.6, 0.4), (0.75, 0.25), (0.9, 0.1))
"""P(B faster), P(A faster) among pairs in which both succeed."""


def speed_rows() -> list[dict]:
    """What `SpeedTest` says of each of SPEEDS: it is the paired test with a margin of nothing."""
    found = sequential(0.0, list(SPEEDS))
    return [
        {
            "b_faster": b,
            "a_faster": a,
            "faster": one["non_inferior"],
            "slower": one["inferior"],
            "mean_pairs": one["mean_pairs"],
        }
        for (b, a), one in zip(SPEEDS, found)
    ]


# ---- prediction-powered inference, simulated -------------------------------------------------------------------------


def worlds(rng, runs: int, n: int, rate: float, agreement: float) -> tuple[np.ndarray, np.ndarray]:
    """(real, simulated), (runs, n): the simulator repeats the robot with ``agreement``, else it draws 0.1 too kindly."""
    real = rng.random((runs, n)) < rate
    simulated = np.where(rng.random((runs, n)) < agreement, real, rng.random((runs, n)) < min(rate + 0.1, 0.99))
    return real.astype(float), simulated.astype(float)


def plain(real, same, more) -> tuple[float, float]:
    """PPI++ as published, without pseudo-scenes."""
    both = np.stack([real, same])
    value, variance = prediction_powered.powered_mean(both, more, prediction_powered.tuning(both, more))
    return value - Z * variance**0.5, value + Z * variance**0.5


def powered_rows(runs: int) -> list[dict]:
    """A row for every size, rate and agreement; 10 n further scenes in the simulator, at least 200."""
    rows = []
    for n, rate, agreement in product((10, 20, 50), (0.7, 0.9), (0.0, 0.6, 0.9)):
        rng = np.random.default_rng(n)
        real, same = worlds(rng, runs, n, rate, agreement)
        more = worlds(rng, runs, max(200, 10 * n), rate, agreement)[1]
        ours = [prediction_powered.rate(*three) for three in zip(real, same, more)]
        limits = {
            "ours": np.array([(one.low, one.high) for one in ours]),
            "published": np.array([plain(*three) for three in zip(real, same, more)]),
            "wilson": np.array([statistics.wilson(int(one.sum()), n) for one in real]),
        }
        row = {"n": n, "rate": rate, "agreement": agreement, "lambda": float(np.mean([one.simulator_weight for one in ours]))}
        for name, both in limits.items():
            row[name] = float(np.mean((both[:, 0] <= rate) & (rate <= both[:, 1])))
            row[f"{name}_width"] = float(np.mean(both[:, 1] - both[:, 0]))
        rows.append(row)
    return rows


def powered_difference_rows(runs: int) -> list[dict]:
    """The same for a paired difference: A 0.7, B 0.8 on the robot."""
    rows = []
    for n, agreement in product((10, 20, 50), (0.0, 0.6, 0.9)):
        rng = np.random.default_rng(n)
        (real_a, same_a), (real_b, same_b) = worlds(rng, runs, n, 0.7, agreement), worlds(rng, runs, n, 0.8, agreement)
        more_a, more_b = (worlds(rng, runs, max(200, 10 * n), rate, agreement)[1] for rate in (0.7, 0.8))
        ours = [prediction_powered.paired_difference(*six) for six in zip(real_a, real_b, same_a, same_b, more_a, more_b)]
        covered = float(np.mean([one.low <= 0.1 <= one.high for one in ours]))
        width = float(np.mean([one.high - one.low for one in ours]))
        rows.append({"n": n, "agreement": agreement, "coverage": covered, "width": width})
    return rows


# ---- what is left ----------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def by_size(rows: list[dict], name, cell) -> str:
    """A table with a column for each of SIZES."""
    lines: dict[str, list[str]] = {}
    for row in rows:
        lines.setdefault(name(row), []).append(cell(row))
    return markdown(("", *(f"n = {n}" for n in SIZES)), [(key, *cells) for key, cells in lines.items()])


def sections(found: dict) -> list[tuple[str, str, str]]:
    """(title, what it shows, table)."""
    rates = by_size(found["rates"], lambda r: r["interval"], lambda r: f"{percent(r['mean'])} / {percent(r['least'])}")
    times = by_size(found["times"], lambda r: f"{r['interval']}, {r['times']}", lambda r: percent(r["coverage"]))
    differences = [(r["n"], r["agreement"], percent(r["coverage"]), f"{r['width']:.2f}") for r in found["powered_difference"]]
    return [
        ("Success rates", RATES_SHOW, rates),
        ("Times", TIMES_SHOW, times),
        ("Claims about time", CLAIMS_SHOW, claims_table(found["time_claims"])),
        ("The sequential test", SEQUENTIAL_SHOWS, sequential_table(found["sequential"])),
        ("The sequential test of time", SPEED_SHOWS, speed_table(found["speed"])),
        ("The canary", CANARY_SHOWS, canary_table(found["canary"])),
        ("Whole sessions", SESSIONS_SHOW, session_table(found["sessions"])),
        ("Real trials with the simulator's help", POWERED_SHOWS, powered_table(found["powered"])),
        (
            "The same for a paired difference",
            "A succeeds in 70 %, B in 80 % of real scenes, independently.",
            markdown(("real scenes n", "agreement", "`paired_difference` %", "width"), differences),
        ),
    ]


def sequential_table(rows: list[dict]) -> str:
    """What it said, how soon, and the fixed test beside it."""
    head = ("margin", "discordant", "B - A", "says non-inferior %", "says inferior %", "mean pairs")
    beside = ("fixed: pairs", "fixed: non-inferior %", "fixed, but read after every pair %")
    cells = []
    for r in rows:
        case = f"{100 * r['margin']:.0f} pp", r["discordant"], f"{100 * r['difference']:+.0f} pp"
        said = percent(r["non_inferior"]), percent(r["inferior"]), f"{r['mean_pairs']:.0f}"
        peeked = percent(r["peeking"]) if "peeking" in r else ""
        cells.append((*case, *said, r["fixed"]["pairs"], percent(r["fixed"]["non_inferior"]), peeked))
    return markdown(head + beside, cells)


def claims_table(rows: list[dict]) -> str:
    """Coverage and wrong verdicts by size."""
    cell = lambda r: f"{percent(r['coverage'])} / {percent(r['wrongly_faster'])}"  # noqa: E731
    return by_size(rows, lambda r: f"{r['design']}, {r['times']}", cell)


def speed_table(rows: list[dict]) -> str:
    """What it said, and how soon."""
    head = ("B faster", "A faster", "says faster %", "says slower %", "mean pairs")
    cells = [
        (f"{100 * r['b_faster']:.0f} %", f"{100 * r['a_faster']:.0f} %", percent(r["faster"]), percent(r["slower"]))
        + (f"{r['mean_pairs']:.0f}",)
        for r in rows
    ]
    return markdown(head, cells)


def canary_table(rows: list[dict]) -> str:
    """Both of its errors."""
    rate = lambda r: "drifts, 50 to 95 %" if r["rate"] is None else f"{100 * r['rate']:.0f} %"  # noqa: E731
    cells = [(f"1 in {r['every']}", rate(r), percent(r["worse"]), percent(r["as_good"])) for r in rows]
    return markdown(("the candidate's", "incumbent", "says worse %", "says as good %"), cells)


def session_table(rows: list[dict]) -> str:
    """Sessions with an error, uncorrected and after Holm, and what is found of what is true."""
    head = ("B", "claim", "some cell wrong, uncorrected %", "some cell wrong, as reported %", "all cells together wrong %")
    told = lambda value: "" if value is None else percent(value)  # noqa: E731
    cells = [
        (r["world"], words, percent(r[f"{kind}_alone"]), percent(r[kind]), told(r[f"{kind}_overall"]), told(r[f"{kind}_found"]))
        for r in rows
        for kind, words in (("success", "not worse by the margin"), ("time", "faster"))
    ]
    return markdown((*head, "true ones found %"), cells)


def powered_table(rows: list[dict]) -> str:
    """Coverage and width with and without the simulator."""
    head = ("real scenes n", "rate", "agreement", "mean lambda")
    beside = ("`rate` %", "PPI++ as published %", "Wilson, real only %", "width of `rate`", "width of Wilson")
    cells = []
    for r in rows:
        case = r["n"], r["rate"], r["agreement"], f"{r['lambda']:.2f}"
        widths = f"{r['ours_width']:.2f}", f"{r['wilson_width']:.2f}"
        cells.append((*case, percent(r["ours"]), percent(r["published"]), percent(r["wilson"]), *widths))
    return markdown(head + beside, cells)


RATES_SHOW = f"""\
Coverage of 95 % intervals in %, mean / least: over rates 0.05 to 0.99 in steps of 0.01 for one rate; over all pairs of
{", ".join(map(str, PAIR_RATES))} for differences, and for pairs with scenes that decide nothing, half or all that they can."""

TIMES_SHOW = f"""\
Coverage of 95 % intervals in %. A takes {MEAN_A_S} s on average, B {MEAN_B_S} s, with the given coefficient of variation (CV)."""

SEQUENTIAL_SHOWS = f"""\
`PairedTest` with alpha = {ALPHA}, a look after every pair, stopped at its first verdict or after {MOST_PAIRS} pairs. Where B - A
is just -margin, both verdicts are errors and each may be said in at most 5 % of sessions. Beside it the test with a number of
pairs set before, for a power of 80 % if there is no difference (Newcombe's paired interval, 90 %); its last column is that
test, wrongly, read after every pair from the 10th on and stopped when one likes what one sees."""

CLAIMS_SHOW = f"""\
Of the interval that decides a claim (`Evidence.change`): bootstrap or t, the wider on either side. Coverage at 95 % / how often a B
that is just as fast is called faster where {100 * ALPHA:g} % are allowed, in %; {CLAIM_RUNS} runs a cell."""

SPEED_SHOWS = f"""\
`SpeedTest` with alpha = {ALPHA}, a look after every pair, stopped at its first verdict or after {MOST_PAIRS} pairs. Where B and A
are faster equally often, both verdicts are errors."""

CANARY_SHOWS = f"""\
`CanaryTest` with alpha = {ALPHA} and a margin of 10 points, a look after every block, at most {CANARY_BLOCKS}. The candidate is worse by
just the margin: both verdicts are errors, each may be said in at most 5 % of sessions. {2 * CLAIM_RUNS} sessions a row."""

SESSIONS_SHOW = f"""\
{SESSIONS} sessions a row of {len(PLAN.cells)} cells, {PLAN.scenes} scenes each, two arms, alpha = {ALPHA}, margin 10 points, through
`trials.claims`; A succeeds in 90 %, times are the skewed ones. Wrong is a claim that is called supported and is not true."""

POWERED_SHOWS = """\
Coverage of 95 % intervals in %. The simulator repeats the robot's outcome in the given share of scenes and otherwise draws its
own, 10 points too kindly. There are 10 n further simulated scenes, at least 200."""


def figure(path: Path, found: dict) -> None:
    """Coverage of rates and times, the sequential test, and what the simulator is worth."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    picture = Figure(figsize=(11, 7.5), layout="constrained")
    FigureCanvasAgg(picture)
    ((rates, times), (tests, powered)) = picture.subplots(2, 2)
    for row in found["rates"][:4]:
        rates.plot(RATES, row["at"], label=f"n = {row['n']}", linewidth=1.2)
    rates.set(title="Wilson", xlabel="true success rate", ylabel="coverage", ylim=(0.8, 1.0))
    for style, kind in zip("-:", TIMES):
        for colour, name in enumerate(("percentile", "BCa", "Welch")):
            rows = [r for r in found["times"] if r["interval"].startswith(f"difference: {name}") and r["times"] == kind]
            label = f"{name}, {kind.split(' ')[0]} times"
            times.plot([r["n"] for r in rows], [r["coverage"] for r in rows], style, marker=".", color=f"C{colour}", label=label)
    times.set(title="difference of mean times", xlabel="trials in each arm", ylabel="coverage", ylim=(0.8, 1.0))
    for axes in (rates, times):
        axes.axhline(0.95, color="grey", linewidth=0.8)
    for row in found["sequential"]:
        if row["margin"] == 0.2 and row["discordant"] in (0.2, 0.4):
            label = f"{row['discordant']:.0%} discordant, B - A = {100 * row['difference']:+.0f} pp"
            tests.plot(np.arange(0, MOST_PAIRS + 1, EVERY), row["non_inferior_by_pair"], label=label, linewidth=1.2)
    tests.axhline(ALPHA, color="grey", linewidth=0.8)
    tests.set(title="sequential test, margin 20 pp", xlabel="pairs", ylabel="share of sessions: non-inferior", ylim=(0, 1))
    for rate, style in ((0.7, "-"), (0.9, ":")):
        for colour, agreement in enumerate((0.0, 0.6, 0.9)):
            rows = [r for r in found["powered"] if (r["rate"], r["agreement"]) == (rate, agreement)]
            ratio = [r["ours_width"] / r["wilson_width"] for r in rows]
            label = f"rate {rate}, agreement {agreement}"
            powered.plot([r["n"] for r in rows], ratio, style, marker=".", color=f"C{colour}", label=label)
    powered.axhline(1.0, color="grey", linewidth=0.8)
    powered.set(title="simulator's help", xlabel="real scenes", ylabel="width of the interval / Wilson's of real trials alone")
    for axes in (rates, times, tests, powered):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_figure(picture, path)


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000, help="simulated sessions a cell (2000)")
    parser.add_argument("--out", type=Path, default=Path("docs/results/statistics"))
    options = parser.parse_args(arguments)
    load, began = os.getloadavg()[0], time.perf_counter()
    parts = {
        "rates": rate_rows,
        "times": lambda: time_rows(options.runs),
        "time_claims": lambda: time_claim_rows(TIMES, MEAN_A_S, MEAN_B_S, options.runs),
        "sequential": lambda: sequential_rows(options.runs),
        "speed": speed_rows,
        "canary": lambda: canary_rows(options.runs),
        "sessions": lambda: session_rows(list(TIMES.values())[1]),
        "powered": lambda: powered_rows(options.runs),
        "powered_difference": lambda: powered_difference_rows(options.runs),
    }
    found = {}
    for name, part in parts.items():
        found[name] = part()
        print(f"{name}: {time.perf_counter() - began:.0f} s", flush=True)
    head = circumstances("coverage", load, runs=options.runs)
    about = f"{__doc__.strip().split(chr(10) * 2)[2]}\n\n{in_words(head)}.\n\n![coverage]({options.out.name}.png)\n\n{READING}"
    body = "\n\n".join(f"## {title}\n\n{shows}\n\n{table}" for title, shows, table in sections(found))
    figure(options.out.with_suffix(".png"), found)
    leave(options.out, "What the trial statistics are worth", about, body, {**head, **found})
    return 0


READING = """\
How to read it (figures of 2000 runs):

- **Rates hold from n = 5 on.** Wilson and Newcombe cover 95 % on average. At single rates near 1 Wilson falls to 86 % (n = 5)
  and 91 % (n = 50), Newcombe never below 91 %. The textbook interval (Wald) misses in every third session at n = 5.
- **The bootstrap falls short for few trials.** Its 95 % are 80 to 87 % at n = 5, 85 to 92 % at n = 10, 90 to 93 % at n = 20; it
  needs more than 50 trials to be what it says. BCa is no better, and worse for skewed times. Welch's t (`t_difference`) covers
  94 to 95 % at every size: use it, `t_mean` for paired differences and `t_ratio` for their
  ratios (94 to 96 %). One mean of skewed times stays short even so: 90 % at n
  = 5 and 10.
- **"Faster" is said a little too often of pairs:** where both are just as fast it is said in 6.0 to 6.6 % of sessions of 10 to 50 pairs
  with even times, where 5 % are allowed (500 runs, so give or take 2).
- **The sequential test errs no more often than it says** whenever it is stopped: 2 to 4 % by 300 pairs where 5 % is allowed.
  The fixed test, read after every pair, calls a policy that is worse by the margin non-inferior in about a third of sessions.
- **Its price:** for equal policies 15 to 90 % more pairs on average than the fixed test with a power of 80 %, and no end that
  is known before; it is sooner than the fixed test where B is better or much worse. At a margin of 10 pp with 40 % discordant
  pairs even 300 pairs decide little more than half of the sessions.
- **Planned pairs are a little few where few pairs are discordant:** 16 pairs have a power of 67 %, not 80 %, since Newcombe's
  interval is cautious there.
- **PPI++ as published is not for so few trials:** 47 to 94 % for 10 to 50 real scenes. With pseudo-scenes (`rate`) it covers 92
  to 100 %, more than it says where the simulator agrees well, and is still 5 to 40 % narrower than Wilson's interval of the
  real trials. A simulator that knows nothing costs up to 10 % of width."""

if __name__ == "__main__":
    sys.exit(main())
