"""How many trials a canary takes: simulated sessions of core.canary.CanaryTest, as a table for docs/trials.md.

python -m benchmarks.canary
"""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.canary import CanaryTest
from policytrim_ros.core.sequential import UNDECIDED

RATES = ((0.9, 0.2), (0.9, 0.5), (0.8, 0.4), (0.8, 0.6), (0.8, 0.7), (0.8, 0.8), (0.9, 0.9), (0.95, 0.95))
EVERY = (2, 4, 10)
MARGIN, SESSIONS, LONGEST = 0.1, 200, 400


def blocks_until(every: int, incumbent: float, candidate: float, draws: np.random.Generator) -> tuple[str, int]:
    """Verdict of one simulated session and the blocks it took; undecided after LONGEST."""
    test = CanaryTest(MARGIN)
    while test.verdict == UNDECIDED and test.blocks < LONGEST:
        test.add(draws.random() < candidate, draws.random(every - 1) < incumbent)
    return test.verdict, test.blocks


def main() -> None:
    draws = np.random.default_rng(0)
    print(f"| success of incumbent / candidate | {' | '.join(f'one in {k}' for k in EVERY)} |\n| --- |{' --- |' * len(EVERY)}")
    for incumbent, candidate in RATES:
        cells = []
        for every in EVERY:
            ended = [blocks_until(every, incumbent, candidate, draws) for _ in range(SESSIONS)]
            shares = {verdict: sum(v == verdict for v, _ in ended) / SESSIONS for verdict, _ in ended}
            half, most = (
                np.quantile([b if v != UNDECIDED else LONGEST + 1 for v, b in ended], q, method="higher") for q in (0.5, 0.8)
            )
            counts = " / ".join(f"over {LONGEST}" if b > LONGEST else str(b) for b in (half, most))
            told = ", ".join(f"{verdict} {100 * share:.0f} %" for verdict, share in sorted(shares.items()))
            cells.append(f"{counts} ({told})")
        print(f"| {100 * incumbent:.0f} / {100 * candidate:.0f} % | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
