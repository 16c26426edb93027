"""Evaluation: every figure is counted right, rows are resumed and kept, perturbations do what they say, mistakes are sentences."""

import argparse
import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from policy_samples import SENTENCES, TINY, contract, observation
from reach_task import ReachEnv

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import Normalisation
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.flow import FlowConfig, FlowPolicy
from policytrim_ros.policies.tokenizer import train_tokenizer
from policytrim_ros.share import share
from policytrim_ros.training import evaluate, perturbations
from policytrim_ros.training.evaluate import Bench, EvaluationError, Workers
from policytrim_ros.training.films import read_film
from policytrim_ros.training.recipe import Evaluation, Pictures
from policytrim_ros.training.rollout import EpisodeResult

REACH = Bench(
    "reach_task:ReachEnv", "reach_task:make_demonstrator", Pictures(cameras=("front",), camera_width=64, camera_height=36)
)
ROW = Evaluation(episodes=5, horizon=3)


class DyingEnv(ReachEnv):
    """The process in which it plays seed 1000002 ends without a word."""

    def reset(self, seed, rebuild=False):
        if seed == 1_000_002:
            os._exit(9)
        super().reset(seed)


class BrokenEnv(ReachEnv):
    def reset(self, seed, rebuild=False):
        raise RuntimeError("the scene has no floor")


class PickyEnv(ReachEnv):
    def __init__(self, *arguments, **options):
        raise ValueError("no such setting")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An untrained tiny policy with one camera, H = 6, as a checkpoint."""
    torch.manual_seed(0)
    slow = Normalisation(((-0.02,) * 6 + (0.0,),) * 6, ((0.02,) * 6 + (0.07,),) * 6)
    terms = contract(6, ("front",))
    terms = replace(terms, normalisation={**terms.normalisation, "actions": slow})
    policy = FlowPolicy(FlowConfig(horizon=6, **TINY), terms, train_tokenizer(SENTENCES))
    directory = tmp_path_factory.mktemp("models") / "reach"
    checkpoint.save(directory, policy, made={})
    return directory


def run(*arguments):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return evaluate.main(parser.parse_args([str(argument) for argument in arguments]))


def on_reach(trained, *arguments):
    return run("--checkpoint", trained, "--environment", "reach_task:ReachEnv", "--camera-size", "64x36", *arguments)


def told(report):
    return [(e["seed"], e["outcome"], e["steps"], e["calls"], e["moved_m"]) for e in report["episodes_list"]]


# -- a row ----------------------------------------------------------------------------------------------------------


def test_a_report_counts_what_was_played(trained):
    report = evaluate.evaluate(trained, ROW, REACH, progress=False)
    assert report["n"] == 5 and 0 <= report["success_interval"][0] <= report["success_rate"] <= report["success_interval"][1] <= 1
    assert [e["seed"] for e in report["episodes_list"]] == list(range(1_000_000, 1_000_005))
    for episode in report["episodes_list"]:
        assert episode["calls"] == -(-episode["steps"] // 3) and episode["seconds"] == episode["steps"] / 20
    json.dumps(report, allow_nan=False)


def test_figures_of_known_episodes():
    made = [
        EpisodeResult(i, outcome, steps, steps + 4, 10, (steps + 4) / 20, 0.2, (), 0, 0.0)
        for i, (outcome, steps) in enumerate([("success", 100), ("success", 200), ("failure", 30), ("truncated", 450)])
    ]
    found = evaluate.figures(made)
    assert (found["n"], found["successes"], found["success_rate"]) == (4, 2, 0.5)
    assert found["steps_success"][0] == 150 and found["steps_all"][0] == 195
    assert found["seconds_success"][0] == pytest.approx(7.7) and found["stalled_all"][0] == pytest.approx(0.2)
    assert evaluate.figures(made[2:])["steps_success"] is None


@pytest.mark.parametrize("bench", [dict(lanes=1), dict(lanes=5), dict(lanes=2, processes=2)])
def test_lanes_and_processes_do_not_change_an_episode(trained, bench):
    row = replace(ROW, mode="async", latency_s=0.06, occlusion=0.5)
    reports = [evaluate.evaluate(trained, row, b, progress=False) for b in (replace(REACH, lanes=3), replace(REACH, **bench))]
    assert told(reports[0]) == told(reports[1])


def test_workers_keep_policy_and_environment_from_row_to_row(trained, monkeypatch):
    made = []
    monkeypatch.setattr(
        "reach_task.ReachEnv.__init__",
        lambda self, *a, **k: made.append(1) or setattr(self, "height", 36) or setattr(self, "width", 64),
    )
    workers = Workers(REACH)
    for horizon in (1, 2, 3):
        list(workers.episodes(str(trained), replace(ROW, horizon=horizon), [1, 2]))
    assert len(made) == REACH.lanes


def test_a_dead_process_ends_the_evaluation_with_a_sentence(trained):
    with pytest.raises(EvaluationError, match="exit code 9"):
        evaluate.evaluate(trained, ROW, replace(REACH, environment="test_evaluate:DyingEnv", processes=2), progress=False)


def test_what_goes_wrong_in_a_process_is_told(trained):
    with pytest.raises(EvaluationError, match="RuntimeError: the scene has no floor"):
        evaluate.evaluate(trained, ROW, replace(REACH, environment="test_evaluate:BrokenEnv", processes=2), progress=False)


@pytest.mark.parametrize(
    "row, bench, words",
    [
        (dict(horizon=7), {}, "H = 6"),
        (dict(blur_px=4), {}, "odd"),
        (dict(hide_target=True), dict(backend="processes"), "hides no target"),
        ({}, dict(backend="gpu", processes=2), "one vector environment"),
    ],
)
def test_a_row_that_does_not_fit_is_refused(trained, row, bench, words):
    with pytest.raises(ConfigError, match=words):
        evaluate.evaluate(trained, replace(ROW, **row), replace(REACH, **bench), progress=False)


def test_rtc_is_refused_for_a_policy_that_takes_no_notice_of_a_plan():
    manifest = evaluate.checkpoint.read_manifest(share("models") / "tape-box-oft-tiny")
    with pytest.raises(ConfigError, match="family 'parallel' is played as async"):
        evaluate.check(replace(ROW, mode="rtc"), REACH, manifest)


def test_a_demonstrator_is_evaluated_on_the_same_seeds():
    report = evaluate.evaluate(None, Evaluation(episodes=10, demonstrator="clean"), REACH, progress=False)
    assert report["checkpoint"] == "demonstrator:clean" and report["weights_sha256"] is None
    outcomes = [e["outcome"] for e in report["episodes_list"]]
    assert [o == "success" for o in outcomes] == [seed % 5 != 4 for seed in range(1_000_000, 1_000_010)]
    assert report["calls_all"][0] == 0 and "| demonstrator:clean |" in evaluate.table([report])


# -- what the policy is shown -----------------------------------------------------------------------------------------


def shown(row, seen=None, seeds=(1000, 2001)):
    """What a policy is shown under ``row``."""
    kept = []
    perturbations.perturbed(lambda o, s: kept.append(o), row)(seen or observation(len(seeds)), list(seeds))
    return kept[0]


def test_without_perturbations_the_policy_is_handed_in_as_it_is():
    def look(observation, seeds):
        return None

    assert perturbations.perturbed(look, ROW) is look


def test_blank_cameras_are_grey_and_the_others_untouched():
    seen = observation(2)
    images = shown(replace(ROW, blank=("wrist",)), seen).images
    assert np.all(images["wrist"] == perturbations.GREY) and np.array_equal(images["front"], seen.images["front"])


def test_blur_takes_the_detail_and_leaves_the_brightness():
    seen = observation(2, (96, 54)).images["front"]
    soft = shown(replace(ROW, blur_px=13), observation(2, (96, 54))).images["front"]
    assert soft.shape == seen.shape and soft.std() < 0.3 * seen.std() and abs(soft.mean() - seen.mean()) < 2
    assert np.array_equal(soft[0], cv2.GaussianBlur(seen[0], (13, 13), 0))


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_occlusion_covers_its_share_of_every_picture_in_patches_drawn_anew_at_every_look(share):
    white = np.full((3, 120, 212, 3), 255, np.uint8)
    covered = perturbations.occluded(white, share, [1, 2, 1])
    black = np.all(covered == 0, axis=-1)
    assert np.all(np.abs(black.mean(axis=(1, 2)) - share) < 0.03) and set(np.unique(covered)) <= {0, 255}
    assert np.array_equal(covered[0], covered[2]) and (share == 1.0 or not np.array_equal(covered[0], covered[1]))
    assert np.all(white == 255)


def test_a_knocked_camera_stays_knocked_for_an_episode():
    seen = observation(3, (96, 54))
    seen = replace(seen, images={name: np.repeat(p[:1], 3, 0) for name, p in seen.images.items()})
    images = shown(replace(ROW, shift_px=8), seen, (7000, 7001, 8000)).images["front"]
    assert np.array_equal(images[0], images[1]) and not np.array_equal(images[0], images[2])
    moved = perturbations.displaced(np.pad(np.full((1, 1, 1, 3), 255, np.uint8), [(0, 0), (20, 20), (20, 20), (0, 0)]), 8, [3])
    row, column = np.unravel_index(moved[0, ..., 0].argmax(), (41, 41))
    assert 6.5 < np.hypot(row - 20, column - 20) < 9.5


def test_what_is_random_does_not_depend_on_the_rest_of_the_batch():
    seen, row = observation(3), replace(ROW, occlusion=0.5, shift_px=3)
    alone = replace(seen, images={n: p[1:2] for n, p in seen.images.items()}, state=seen.state[1:2], instruction=["x"])
    for name in seen.images:
        assert np.array_equal(shown(row, seen, (1, 2, 3)).images[name][1], shown(row, alone, (2,)).images[name][0])


def test_another_instruction_is_told_to_the_policy():
    assert shown(replace(ROW, instruction="hang the mug on the rack")).instruction == ["hang the mug on the rack"] * 2


def test_a_small_batch_is_filled_up_and_cut_again():
    class Policy:
        def predict(self, seen, *, seeds, steps):
            assert len(seen.state) == len(seeds) == 4 and seeds == [1, 2, 2, 2] and steps is None
            return np.arange(4)

    assert evaluate.looking_with(Policy())(observation(2), [1, 2]).tolist() == [0, 1]


# -- rows, files, command line ----------------------------------------------------------------------------------------


def test_several_values_make_a_grid_and_results_are_written_with_a_figure(trained, tmp_path, capsys):
    out = tmp_path / "deep" / "report"
    arguments = ("--task", "tape_box", "flip_mug", "--horizon", 1, 6, "--episodes", 2, "--out", out)
    assert on_reach(trained, *arguments) == 0
    rows = evaluate.read_reports(f"{out}.json")
    assert [(r["task"], r["horizon"]) for r in rows] == [("tape_box", 1), ("tape_box", 6), ("flip_mug", 1), ("flip_mug", 6)]
    page = Path(f"{out}.md").read_text()
    assert page.count("| all | standard |") == 2 and "| all | standard | 6 | 4 |" in page and "Seeds 1000000 to 1000001" in page
    assert cv2.imread(f"{out}.png").shape[0] > 300
    assert all(r["command"].startswith("policytrim") and r["commit"] for r in rows)


def test_finished_rows_are_not_run_again(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    assert on_reach(trained, "--horizon", 2, "--episodes", 2, "--out", out) == 0
    played, real = [], evaluate.evaluate
    monkeypatch.setattr(evaluate, "evaluate", lambda d, row, *a, **k: played.append(row.horizon) or real(d, row, *a, **k))
    assert on_reach(trained, "--horizon", 2, 3, "--episodes", 2, "--out", out, "--lanes", 2) == 0
    assert played == [3] and "1 of 2 rows" in capsys.readouterr().out
    assert on_reach(trained, "--horizon", 2, "--episodes", 3, "--out", out) == 0
    assert on_reach(trained, "--horizon", 2, "--episodes", 2, "--first-seed", 7, "--out", out) == 0
    assert on_reach(trained, "--horizon", 2, "--episodes", 2, "--blur-px", 5, "--out", out) == 0
    assert played == [3, 2, 2, 2] and len(evaluate.read_reports(f"{out}.json")) == 5


def test_a_row_is_known_by_weights_and_configuration_and_an_old_one_by_its_weights(trained, tmp_path):
    policy, manifest = checkpoint.load(trained)
    policy.config = replace(policy.config, acting_noise=0.5)
    checkpoint.save(tmp_path / "with noise", policy, made={})
    other = checkpoint.read_manifest(tmp_path / "with noise")
    assert other["files"]["model.safetensors"] == manifest["files"]["model.safetensors"]
    here, there = (evaluate.identity(evaluate.Evaluation("tape_box"), evaluate.Bench(), which) for which in (manifest, other))
    assert evaluate.same(here, here) and not evaluate.same(here, there)
    old = {name: value for name, value in here.items() if name != "config_sha256"}
    assert evaluate.same(old, here) and evaluate.same(old, there)
    assert not evaluate.same(old | {"weights_sha256": "another"}, here)


def test_an_interruption_keeps_the_finished_rows_and_the_next_run_does_the_rest(trained, tmp_path, monkeypatch, capsys):
    out, real = tmp_path / "report", evaluate.evaluate

    def interrupted(directory, row, *arguments, **options):
        if row.horizon == 3:
            raise KeyboardInterrupt
        return real(directory, row, *arguments, **options)

    monkeypatch.setattr(evaluate, "evaluate", interrupted)
    grid = ("--horizon", 2, 3, 4, "--episodes", 2, "--out", out)
    assert on_reach(trained, *grid) == 130
    assert "1 of 3 rows are finished and kept" in capsys.readouterr().out
    assert [r["horizon"] for r in evaluate.read_reports(f"{out}.json")] == [2]
    monkeypatch.setattr(evaluate, "evaluate", real)
    assert on_reach(trained, *grid) == 0
    assert [r["horizon"] for r in evaluate.read_reports(f"{out}.json")] == [2, 3, 4]


def test_a_full_disk_is_told_and_the_old_results_stay(trained, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report"
    assert on_reach(trained, "--horizon", 2, "--episodes", 1, "--out", out) == 0
    before = Path(f"{out}.json").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", full)
    assert on_reach(trained, "--horizon", 3, "--episodes", 1, "--out", out) == 1
    assert "No space left on device" in capsys.readouterr().out
    assert Path(f"{out}.json").read_bytes() == before and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "name a checkpoint"),
        (("--checkpoint", "none"), "is not a checkpoint"),
        (("--checkpoint", "CHECKPOINT", "--task", "fly"), "task 'fly' does not exist"),
        (("--checkpoint", "CHECKPOINT", "--horizon", "1", "60"), "H = 6"),
        (("--checkpoint", "CHECKPOINT", "--mode", "lazy"), "'sync', 'async'"),
        (("--checkpoint", "CHECKPOINT", "--latency", "-1"), "allowed range is 0.0 to 10.0"),
        (("--checkpoint", "CHECKPOINT", "--camera-size", "big"), "WIDTHxHEIGHT"),
        (("--checkpoint", "CHECKPOINT", "--environment", "nowhere:Env"), "cannot be imported"),
        (("--checkpoint", "CHECKPOINT", "--environment", "reach_task:ReachEnv", "--out", "broken"), "is damaged"),
        (("--checkpoint", "CHECKPOINT", "--environment", "test_evaluate:PickyEnv"), "cannot be made: no such setting"),
    ],
)
def test_a_mistake_is_answered_with_one_sentence(trained, arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert run(*[trained if a == "CHECKPOINT" else a for a in arguments]) == 1
    said = capsys.readouterr().out
    assert words in said and said.count("\n") == 1


def test_the_summary_goes_into_the_manifest_without_the_single_episodes(trained, tmp_path):
    assert on_reach(trained, "--horizon", 2, 3, "--episodes", 2, "--record") == 0
    rows = checkpoint.verify(trained)["evaluation"]["rows"]
    assert [r["horizon"] for r in rows] == [2, 3] and rows[0]["n"] == 2 and "episodes_list" not in rows[0]


def test_options_change_every_row_of_a_recipe_and_equal_rows_are_played_once():
    base = [Evaluation(horizon=5), Evaluation(horizon=15), Evaluation(horizon=5, blank=("front",))]
    rows = evaluate.combinations(base, {"horizon": [1, 2], "episodes": 7})
    assert [(r.horizon, r.blank, r.episodes) for r in rows] == [(1, (), 7), (2, (), 7), (1, ("front",), 7), (2, ("front",), 7)]


def test_films_and_a_sheet_of_failures_are_made(tmp_path):
    bench = replace(REACH, films=str(tmp_path / "films"))
    report = evaluate.evaluate(None, Evaluation(episodes=6, demonstrator="clean"), bench, progress=False)
    films = sorted((tmp_path / "films").glob("*.mp4"))
    assert len(films) == 6 and sum("success" in f.name for f in films) == report["successes"] == 5
    steps = report["episodes_list"][0]["steps"]
    assert len(read_film(films[0])) == 1 + -(-steps // 2) + 10
    sheet = cv2.imread(str(next((tmp_path / "films").glob("*failures.png"))))
    assert sheet.shape == (36 + 14, 64 * 5, 3)


# -- the simulator --------------------------------------------------------------------------------------------------


def test_a_hidden_object_is_not_drawn_but_still_there():
    from sim_bridge.env import TaskEnv

    env = TaskEnv("tape_box", cameras=("front",), image_size=(106, 60))
    env.reset(3)
    there, pose = env.images()["front"], env.objects()["tape"]
    env.hide("tape")
    env.reset(3)
    gone = env.images()["front"]
    assert np.array_equal(env.objects()["tape"], pose) and 10 < np.any(there != gone, axis=-1).sum() < 300
    env.hide()
    assert np.array_equal(env.images()["front"], there)
    with pytest.raises(ValueError, match="'spoon' does not exist; the scene has tape, box"):
        env.hide("spoon")


def test_the_clean_demonstrator_solves_the_simulated_task_in_as_many_steps_as_measured():
    report = evaluate.evaluate(None, Evaluation(task="tape_box", episodes=2, demonstrator="clean"), Bench(), progress=False)
    assert report["success_rate"] == 1.0 and 80 < report["steps_success"][0] < 95  # docs/results/demonstrators.md: 87.0
    assert all(e["moved_m"] > 0.1 for e in report["episodes_list"])
