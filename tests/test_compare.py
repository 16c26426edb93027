"""Comparing two evaluations: pairs by scene, words that say no more than the figures, refusals."""

import argparse
import json

import numpy as np
import pytest

from policytrim_ros.training import compare, evaluate
from policytrim_ros.training.evaluate import Bench, EvaluationError
from policytrim_ros.training.recipe import Evaluation
from policytrim_ros.training.rollout import EpisodeResult

MANIFEST = {"files": {"model.safetensors": "0" * 64}}


def report(outcomes, steps, horizon=5, name="a", **changes):
    """A row of an evaluation with these outcomes (True: success) and steps."""
    bench = Bench(first_seed=changes.pop("first_seed", 1_000_000))
    row = Evaluation(episodes=len(outcomes), horizon=horizon, **changes)
    episodes = [
        EpisodeResult(bench.first_seed + i, "success" if won else "truncated", s, s, -(-s // horizon), s / 20, 0.0, (), 0, 0.1)
        for i, (won, s) in enumerate(zip(outcomes, map(int, steps)))
    ]
    return {**evaluate.report(f"models/{name}", MANIFEST, row, bench, episodes, 1.0), "command": "policytrim eval"}


def pair(n=200, loss=0.0, ratio=0.5, seed=0):
    """Two rows: B needs ``ratio`` of A's steps, and fails in ``loss`` of A's successes."""
    rng = np.random.default_rng(seed)
    won, steps = rng.random(n) < 0.9, rng.integers(100, 300, n)
    return report(won, steps), report(won & (rng.random(n) >= loss), (steps * ratio).astype(int), horizon=15, name="b")


def test_a_policy_that_is_as_good_and_shorter_is_called_not_worse_with_its_figures():
    result = compare.compare(*pair())
    assert result["non_inferior"] and result["mcnemar_p"] == 1.0 and result["success_difference"][0] == 0.0
    steps = result["quantities"]["control steps S"]["both_succeed"]
    assert steps["ratio"][0] == pytest.approx(2.0, abs=0.02) and steps["difference"][2] < 0
    calls = result["quantities"]["calls N"]["both_succeed"]
    assert calls["ratio"][0] == pytest.approx(6.0, abs=0.4)
    assert compare.verdict(result).startswith("B is not worse than A by 5 points or more, with 95 % confidence")


def test_a_policy_that_fails_more_often_is_called_worse():
    result = compare.compare(*pair(loss=0.3))
    assert not result["non_inferior"] and result["only_a"] > 30 and result["mcnemar_p"] < 1e-6
    assert "B is worse than A by more than 5 points" in compare.verdict(result)


def test_few_episodes_show_nothing_and_the_verdict_says_so():
    result = compare.compare(*pair(n=20))
    assert not result["non_inferior"] and "It is not shown" in compare.verdict(result)
    assert "does not show B to be worse" in compare.verdict(result)


def test_non_inferiority_depends_on_the_margin_that_was_asked_for():
    a, b = pair(n=400, loss=0.03)
    loss = -compare.compare(a, b)["lower_bound"]
    assert compare.compare(a, b, margin=loss + 0.001)["non_inferior"]
    assert not compare.compare(a, b, margin=loss - 0.001)["non_inferior"]


def test_pairs_are_made_by_seed_not_by_order():
    a, b = pair(50)
    shuffled = {**b, "episodes_list": b["episodes_list"][::-1]}
    assert compare.compare(a, shuffled)["quantities"] == compare.compare(a, b)["quantities"]


@pytest.mark.parametrize(
    "changes, words",
    [(dict(task="flip_mug"), "task"), (dict(setting="dynamic"), "setting"), (dict(first_seed=5), "first_seed")],
)
def test_rows_of_other_scenes_are_not_paired(changes, words):
    with pytest.raises(EvaluationError, match=words):
        compare.compare(report([True] * 5, [100] * 5), report([True] * 5, [100] * 5, **changes))


def test_rows_with_other_numbers_of_episodes_are_not_paired():
    with pytest.raises(EvaluationError, match="1 only in A"):
        compare.compare(report([True] * 6, [100] * 6), report([True] * 5, [100] * 5))


def test_a_difference_in_conditions_is_compared_and_told():
    result = compare.compare(report([True] * 5, [100] * 5), report([True] * 5, [100] * 5, blur_px=13))
    assert "blur_px 0 against 13" in compare.page(result)


def test_without_any_success_there_is_nothing_to_pair_in_steps_but_the_page_is_made():
    result = compare.compare(report([False] * 5, [450] * 5), report([True] * 5, [100] * 5))
    assert result["quantities"]["seconds"]["both_succeed"] is None and "| - |" in compare.page(result)


@pytest.fixture
def files(tmp_path):
    a, b = pair(60)
    blurred = report([True] * 60, [120] * 60, blur_px=13)
    for name, rows in (("a", [a, blurred]), ("b", [b]), ("foreign", [report([True], [9], task="hang_mug")])):
        evaluate.write_reports(tmp_path / name, rows)
    return tmp_path


def command(*arguments):
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    return compare.main(parser.parse_args([str(a) for a in arguments]))


def test_the_command_pairs_the_rows_that_fit_and_writes_what_it_prints(files, capsys):
    assert command(files / "a.json", files / "b.json", "--out", files / "both") == 0
    printed = capsys.readouterr().out
    assert printed.count("## tape_box") == 1 and "60 pairs" in printed
    assert len(json.loads((files / "both.json").read_text())) == 1 and printed.strip() in (files / "both.md").read_text()


def test_the_command_compares_two_named_rows(files, capsys):
    assert command(f"{files}/a.json#0", f"{files}/a.json#1") == 0
    assert "The rows differ in blur_px 0 against 13" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("a.json", "foreign.json"), "no row of A fits"),
        (("a.json#7", "b.json"), "rows 0 to 1"),
        (("a.json", "none.json"), "cannot be read"),
        (("a.json", "broken.json"), "is damaged"),
        (("a.json", "other.json"), "is not an evaluation"),
        (("a.json", "b.json", "--margin", "5"), "margin 5.0"),
    ],
)
def test_the_command_answers_a_mistake_with_one_sentence(files, arguments, words, monkeypatch, capsys):
    monkeypatch.chdir(files)
    (files / "broken.json").write_text('{"rows": [')
    (files / "other.json").write_text("[]")
    assert command(*arguments) == 1
    said = capsys.readouterr().out
    assert words in said and said.count("\n") == 1
