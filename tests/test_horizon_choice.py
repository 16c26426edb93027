"""The rule that chooses h: exact bounds, tested in order, and what it promises kept in simulation."""

import json

import numpy as np
import pytest
from policy_samples import policy
from scipy import stats

from policytrim_ros.cli import main
from policytrim_ros.core.statistics import upper_bound
from policytrim_ros.policies import checkpoint
from policytrim_ros.training.horizon_choice import choose


@pytest.mark.parametrize("events, n", [(0, 1), (0, 20), (0, 300), (3, 20), (19, 20), (17, 200), (150, 1000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_the_bound_is_that_of_clopper_and_pearson(events, n, confidence):
    assert upper_bound(events, n, confidence) == pytest.approx(stats.beta.ppf(confidence, events + 1, n - events), abs=1e-9)


def test_the_bound_at_its_ends():
    assert upper_bound(0, 0) == upper_bound(5, 5) == 1.0
    with pytest.raises(ValueError, match="impossible"):
        upper_bound(3, 2)


def test_the_first_horizon_that_does_not_pass_ends_the_test_even_if_a_longer_one_would_pass():
    chosen, found = choose([(15, 200, 2), (5, 200, 4), (10, 200, 30)], failures=0.1)
    assert chosen == 5 and [row.passed for row in found] == [True, False, None]
    assert choose([(5, 20, 3)], failures=0.1)[0] is None
    assert choose([(5, 200, 0), (10, 200, 5), (15, 200, 9)], failures=0.1)[0] == 15


def test_a_horizon_that_fails_too_often_is_let_through_no_more_often_than_promised():
    rng, rates, runs = np.random.default_rng(0), {5: 0.02, 10: 0.05, 15: 0.1001}, 2000
    wrong = 0
    for _ in range(runs):
        chosen, _ = choose([(h, 150, rng.binomial(150, rate)) for h, rate in rates.items()], failures=0.1)
        wrong += chosen == 15
    assert wrong / runs < 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def row(horizon, n, successes, **changes):
    base = {
        "checkpoint": "mine",
        "weights_sha256": "a",
        "task": "tape_box",
        "setting": "standard",
        "mode": "sync",
        "latency_s": 0.0,
    }
    more = {"denoising_steps": 0, "blank": [], "hide_target": False, "blur_px": 0, "occlusion": 0.0, "shift_px": 0}
    rest = {"action_noise_rad": 0.0, "instruction": "", "demonstrator": "", "episodes_list": []}
    return base | more | rest | {"horizon": horizon, "n": n, "successes": successes} | changes


def told(tmp_path, capsys, rows, *arguments):
    path = tmp_path / "report.json"
    path.write_text(json.dumps({"format": "policytrim-evaluation", "format_version": 1, "rows": rows}))
    code = main(["horizon", str(path), *arguments])
    return code, capsys.readouterr().out


def test_the_command_says_what_it_found_and_what_it_promises(tmp_path, capsys):
    rows = [row(5, 100, 99), row(10, 100, 98), row(15, 100, 80), row(5, 100, 100, task="flip_mug")]
    code, said = told(tmp_path, capsys, rows)
    assert code == 1 and "not every horizon was evaluated in the same tasks" in said
    code, said = told(tmp_path, capsys, rows[:3])
    assert (
        code == 0
        and "h = 10: with 95 % confidence it fails in at most 10 %" in said
        and "| 15 | 100 | 20 | 27.7 % | no |" in said
    )
    code, said = told(tmp_path, capsys, rows[:3], "--failures", "0.01")
    assert code == 3 and "without any failure 299 episodes would be enough" in said
    code, said = told(tmp_path, capsys, [rows[0], row(10, 100, 98, setting="dynamic")])
    assert code == 1 and "differ in more than h and task" in said


@pytest.fixture
def mine(tmp_path):
    """A checkpoint that predicts H = 6 and executes h = 2, and the SHA-256 of its weights."""
    directory = tmp_path / "mine"
    manifest = checkpoint.save(directory, policy(), made={"recipe": "test"})
    return directory, manifest["files"][checkpoint.WEIGHTS]


def test_the_chosen_horizon_becomes_the_checkpoints_own_with_the_evidence(tmp_path, capsys, mine):
    directory, weights = mine
    rows = [row(3, 100, 99, weights_sha256=weights), row(5, 100, 98, weights_sha256=weights), row(6, 100, 80, weights_sha256=weights)]
    code, said = told(tmp_path, capsys, rows, "--write", str(directory))
    assert code == 0 and "now executes h = 5" in said and "policytrim gate" in said
    loaded, manifest = checkpoint.load(directory)  # whole, and its seal fits
    assert loaded.contract.execution_horizon == 5 and manifest["files"][checkpoint.WEIGHTS] == weights
    kept = manifest["calibration"]
    assert (kept["failures"], kept["confidence"], kept["tasks"], kept["setting"]) == (0.1, 0.95, ["tape_box"], "standard")
    assert [(tested["horizon"], tested["n"], tested["failures"], tested["passed"]) for tested in kept["tested"]] == [
        (3, 100, 1, True),
        (5, 100, 2, True),
        (6, 100, 20, False),
    ]
    assert len(kept["report_sha256"]) == 64
    assert checkpoint.copy(directory, tmp_path / "copy")["calibration"] == kept


@pytest.mark.parametrize(
    "rows, code, words",
    [
        ([row(5, 100, 99)], 1, "made with other weights"),
        ([row(5, 100, 99, task="flip_mug", weights_sha256="its")], 1, "the calibration is of flip_mug"),
        ([row(5, 50, 50, task=task, weights_sha256="its") for task in ("tape_box", "flip_mug")], 1, "of flip_mug, tape_box"),
        ([row(7, 100, 99, weights_sha256="its")], 1, "h = 7 is not possible, it predicts H = 6"),
        ([row(5, 100, 60, weights_sha256="its")], 3, "none passes"),
    ],
)
def test_a_horizon_without_evidence_for_this_checkpoint_is_not_written(tmp_path, capsys, mine, rows, code, words):
    directory, weights = mine
    before = (directory / checkpoint.MANIFEST).read_bytes()
    rows = [each | {"weights_sha256": weights if each["weights_sha256"] == "its" else "another"} for each in rows]
    found, said = told(tmp_path, capsys, rows, "--write", str(directory))
    assert found == code and words in said
    assert (directory / checkpoint.MANIFEST).read_bytes() == before


def test_a_horizon_is_not_written_into_a_damaged_checkpoint(tmp_path, capsys, mine):
    directory, weights = mine
    (directory / checkpoint.WEIGHTS).write_bytes(b"")
    code, said = told(tmp_path, capsys, [row(5, 100, 99, weights_sha256=weights)], "--write", str(directory))
    assert code == 1 and "nothing was written" in said and "changed or truncated" in said
