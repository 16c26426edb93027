"""The effect itself, in two or three minutes: a short run on TapeBox needs fewer calls and fewer steps and loses no success.

The shipped state policy, the real scene, the real command. The baseline is also played at the trimmed policy's own h: fewer
calls come from a longer h alone, fewer steps do not.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from policytrim_ros.core.statistics import wilson
from policytrim_ros.training import evaluate
from policytrim_ros.training.compare import compare
from policytrim_ros.training.evaluate import Bench, Evaluation, read_reports

ROOT = Path(__file__).parents[1]
EPISODES = 48

pytestmark = pytest.mark.integration


def test_a_short_run_trims_the_state_policy(tmp_path):
    line = [sys.executable, "-m", "policytrim_ros.cli", "train", "trim", "--recipe", "config/trim_smoke.yaml"]
    line += ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "trimmed"), "--processes", "2", "--lanes", "16"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode in (0, 3), done.stdout[-2000:] + done.stderr[-2000:]
    before, after = read_reports(tmp_path / "run" / "evidence.json")
    assert (before["horizon"], after["horizon"], before["n"], after["n"]) == (5, 15, EPISODES, EPISODES)
    row = Evaluation("tape_box", "standard", EPISODES, 15)
    untrained = evaluate.evaluate(ROOT / "models/piper-state-tiny", row, Bench(lanes=16, processes=2), progress=False)

    against_h5, against_h15 = compare(before, after, margin=0.15), compare(untrained, after, margin=0.15)
    assert wilson(after["successes"], EPISODES)[0] > 0.8, done.stdout
    assert against_h5["non_inferior"], done.stdout
    assert against_h5["quantities"]["calls N"]["all"]["ratio"][1] > 2.5, against_h5  # lower end of the interval
    assert against_h15["quantities"]["control steps S"]["both_succeed"]["difference"][2] < 0, against_h15  # upper end
    manifest = json.loads((tmp_path / "run" / "trimmed" / "manifest.json").read_text())
    assert manifest["contract"]["execution_horizon"] == 15 and manifest["made"]["parent"] == before["weights_sha256"]
