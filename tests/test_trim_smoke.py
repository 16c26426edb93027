"""The effect itself, in two or three minutes: a short run on Meta-World needs fewer steps and fewer calls and loses no success.

The shipped state policy, the real scenes (MuJoCo), the real command; the horizon stays, so that every call saved is a step saved.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from policytrim_ros.training.evaluate import read_reports
from policytrim_ros.training.evidence import judge

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.long


def test_a_short_run_trims_the_state_policy_of_metaworld(tmp_path):
    line = [sys.executable, "-m", "policytrim_ros.cli", "train", "trim", "--recipe", "config/trim_smoke.yaml"]
    line += ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "trimmed"), "--processes", "2"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    reports = read_reports(tmp_path / "run" / "evidence.json")
    whole = judge(reports[:2], reports[2:], 0.15, 0.95)["rows"][-1]
    assert (whole["task"], whole["n"], whole["horizon"]) == ("all", 60, [5, 5])
    assert whole["lower_bound"] > -0.15, done.stdout
    assert whole["steps"]["ratio"][1] > 1.15 and whole["calls"]["ratio"][1] > 1.15, done.stdout  # lower ends of the intervals
    manifest = json.loads((tmp_path / "trimmed" / "manifest.json").read_text())
    assert manifest["made"]["improvement"] and manifest["made"]["parent"] == reports[0]["weights_sha256"]
