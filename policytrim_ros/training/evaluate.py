"""Closed-loop evaluation of a checkpoint: success rate, steps S and inference calls N from fixed initial states.

Execution mode ``sync``: the arm waits while the policy looks, then h actions of the chunk are played; pictures are
rendered only when the policy looks. Episode k uses seed ``first_seed + k`` for the scene and for the sampler's noise,
so that two checkpoints meet the same scenes. Evaluation seeds lie far from those of the demonstrations.
"""

from __future__ import annotations

import concurrent.futures
import json
import multiprocessing
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.statistics import bootstrap_mean, wilson
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import Observation
from policytrim_ros.training.recipe import Evaluation, Pictures, Recipe, factory, load_recipe

FIRST_SEED = 1_000_000
GREY = 128


@dataclass(frozen=True)
class EpisodeResult:
    """One episode: outcome (success, failure, truncated), S control steps, N inference calls, mean seconds of a call."""

    seed: int
    outcome: str
    steps: int
    calls: int
    call_s: float


def run_episode(env, policy, seed: int, row: Evaluation, cameras, steps=None) -> EpisodeResult:
    """Plays one episode in ``sync`` mode with the execution horizon of ``row``; its ``blank`` cameras are shown as grey."""
    env.reset(seed)
    calls, spent, action = 0, 0.0, env.proprioception()[7:]
    while True:
        for _ in range(row.rest_steps if calls else 0):
            result = env.step(action)
            if result.success or result.failure or result.truncated:
                return _result(seed, result, calls, spent)
        images = {
            name: (np.full_like(picture, GREY) if name in row.blank else picture)[None]
            for name, picture in env.images(cameras).items()
        }
        observation = Observation(images, env.proprioception()[None], [env.instruction])
        began = time.perf_counter()
        chunk = policy.predict(observation, seeds=[seed * 1000 + calls], steps=steps)[0]
        spent += time.perf_counter() - began
        calls += 1
        for action in chunk[: row.horizon]:
            result = env.step(action)
            if result.success or result.failure or result.truncated:
                return _result(seed, result, calls, spent)


def _result(seed, result, calls, spent) -> EpisodeResult:
    outcome = "success" if result.success else "failure" if result.failure else "truncated"
    return EpisodeResult(seed, outcome, result.steps, calls, spent / calls)


def evaluate(
    directory,
    row: Evaluation,
    *,
    environment: str,
    pictures: Pictures,
    first_seed=FIRST_SEED,
    steps=None,
    processes=1,
    progress=True,
) -> dict:
    """Runs ``row.episodes`` episodes and returns `report`. ``steps``: denoising steps (None: the checkpoint's own).

    Raises ConfigError when the horizon is longer than the chunk, CheckpointError when the checkpoint cannot be used.
    """
    manifest = checkpoint.verify(directory)
    horizon = checkpoint.contract_of(manifest, directory).prediction_horizon
    if row.horizon > horizon:
        raise ConfigError(f"Evaluation.horizon = {row.horizon}: the checkpoint predicts only H = {horizon} actions")
    began = time.perf_counter()
    seeds = [first_seed + k for k in range(row.episodes)]
    arguments = (str(directory), row, environment, pictures, steps)
    label = f"{row.task} {row.setting} h={row.horizon}" + (" blank" if row.blank else "")
    with tqdm(total=len(seeds), desc=label, unit="episode", disable=not progress, mininterval=2.0) as bar:
        episodes = []
        for result in _results(arguments, seeds, processes):
            episodes.append(result)
            bar.update()
            bar.set_postfix_str(f"SR={np.mean([e.outcome == 'success' for e in episodes]):.2f}")
    return report(directory, manifest, row, sorted(episodes, key=lambda e: e.seed), time.perf_counter() - began, steps)


def report(directory, manifest, row: Evaluation, episodes, wall_s: float, steps) -> dict:
    """The figures of one row (JSON-ready): SR with Wilson interval, S and N over successes and over all, every episode."""
    successes = [episode for episode in episodes if episode.outcome == "success"]
    low, high = wilson(len(successes), len(episodes))
    return {
        "checkpoint": Path(directory).name,
        "weights_sha256": manifest["files"]["model.safetensors"],
        **asdict(row),
        "mode": "sync",
        "denoising_steps": steps,
        "n": len(episodes),
        "successes": len(successes),
        "success_rate": len(successes) / len(episodes),
        "success_interval": [low, high],
        "steps_success": _mean(successes, "steps"),
        "steps_all": _mean(episodes, "steps"),
        "calls_success": _mean(successes, "calls"),
        "calls_all": _mean(episodes, "calls"),
        "call_ms": float(np.mean([episode.call_s for episode in episodes])) * 1000,
        "wall_s": wall_s,
        "first_seed": episodes[0].seed,
        "episodes_list": [asdict(episode) for episode in episodes],
    }


def table(reports) -> str:
    """Markdown: one line a report."""
    lines = [
        "| task | setting | h | n | SR [95 %] | S (success) | N (success) | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in reports:
        low, high = r["success_interval"]
        note = (
            f"{', '.join(r['blank'])} hidden"
            if r["blank"]
            else f"{r['rest_steps']} steps of rest before each look"
            if r["rest_steps"]
            else ""
        )
        lines.append(
            f"| {r['task']} | {r['setting']} | {r['horizon']} | {r['n']} | {r['success_rate']:.3f} [{low:.3f}, {high:.3f}] "
            f"| {_figure(r['steps_success'])} | {_figure(r['calls_success'])} | {note} |"
        )
    return "\n".join(lines)


def summary(reports) -> dict:
    """What a manifest keeps of the reports: everything but the single episodes."""
    dropped = ("episodes_list", "checkpoint", "wall_s", "call_ms")
    return {"rows": [{key: value for key, value in r.items() if key not in dropped} for r in reports]}


def _mean(episodes, name) -> list | None:
    values = [getattr(episode, name) for episode in episodes]
    return list(bootstrap_mean(values)) if values else None


def _figure(mean) -> str:
    return "-" if mean is None else f"{mean[0]:.1f} [{mean[1]:.1f}, {mean[2]:.1f}]"


_worker: dict = {}  # policy and environment of this process: both take seconds to build


def _results(arguments, seeds, processes):
    if processes == 1:
        _prepare(*arguments)
        yield from map(_episode, seeds)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=context, initializer=_prepare, initargs=arguments) as pool:
        for future in concurrent.futures.as_completed([pool.submit(_episode, seed) for seed in seeds]):
            yield future.result()


def _prepare(directory, row, environment, pictures, steps) -> None:
    weights = checkpoint.read_manifest(directory)["files"]["model.safetensors"]
    if _worker.get("weights") != (directory, weights):
        _worker.update(weights=(directory, weights), policy=checkpoint.load(directory)[0])
    key = (row.task, row.setting, environment, pictures)
    if _worker.get("key") != key:
        env = factory(environment)(
            row.task,
            setting=row.setting,
            cameras=tuple(pictures.cameras),
            image_size=(pictures.camera_width, pictures.camera_height),
        )
        _worker.update(key=key, env=env)
    _worker.update(row=row, cameras=tuple(pictures.cameras), steps=steps)


def _episode(seed: int) -> EpisodeResult:
    return run_episode(_worker["env"], _worker["policy"], seed, _worker["row"], _worker["cameras"], _worker["steps"])


def add_arguments(parser) -> None:
    """``policytrim eval``."""
    parser.add_argument("--checkpoint", help="checkpoint directory (default: the recipe's)")
    parser.add_argument(
        "--recipe", help="take rows and picture sizes from this recipe; without it the options below make one row"
    )
    parser.add_argument("--task", default="tape_box", help="task")
    parser.add_argument("--setting", default="standard", choices=("standard", "dynamic"), help="task setting")
    parser.add_argument("--episodes", type=int, default=100, help="episodes")
    parser.add_argument("--horizon", type=int, default=0, help="execution horizon h (0: the checkpoint's own)")
    parser.add_argument("--denoising-steps", type=int, help="denoising steps (default: the checkpoint's own)")
    parser.add_argument(
        "--blank", nargs="*", default=(), metavar="CAMERA", help="show these cameras as grey (control: does the policy look?)"
    )
    parser.add_argument(
        "--rest-steps", type=int, default=0, help="control steps that the arm stands still before the policy looks"
    )
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seed of the first episode")
    parser.add_argument(
        "--camera-size", help="size at which pictures are rendered, WIDTHxHEIGHT (default: the recipe's, else 424x240)"
    )
    parser.add_argument("--environment", default=Recipe().environment, help="factory of the environment, module:name")
    parser.add_argument("--processes", type=int, default=1, choices=range(1, 65), metavar="N", help="simulator processes")
    parser.add_argument("--out", help="write <out>.json with every episode and <out>.md with the table")
    parser.add_argument("--record", action="store_true", help="write the summary into the checkpoint's manifest")


def main(args) -> int:
    """Evaluates and prints the table; 0 on success, 1 after one sentence about what went wrong."""
    torch.set_num_threads(1)
    try:
        directory, environment, pictures, rows = _plan(args)
        reports = [
            evaluate(
                directory,
                row,
                environment=environment,
                pictures=pictures,
                first_seed=args.first_seed,
                steps=args.denoising_steps,
                processes=args.processes,
            )
            for row in rows
        ]
        print(table(reports))
        if args.out:
            _write(Path(args.out), reports)
        if args.record:
            checkpoint.record_evaluation(directory, summary(reports))
    except (ConfigError, checkpoint.CheckpointError) as error:
        print(f"eval: {error}")
        return 1
    return 0


def _plan(args):
    recipe = load_recipe(args.recipe) if args.recipe else None
    if recipe is None and not args.checkpoint:
        raise ConfigError("name a checkpoint with --checkpoint or a recipe with --recipe")
    directory = args.checkpoint or recipe.checkpoint
    contract = checkpoint.contract_of(checkpoint.verify(directory), directory)
    made = recipe.pictures if recipe else Pictures()
    width, _, height = (args.camera_size or f"{made.camera_width}x{made.camera_height}").partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--camera-size {args.camera_size}: expected WIDTHxHEIGHT, for example 424x240")
    cameras = tuple(camera.name for camera in contract.cameras)
    pictures = Pictures(cameras=cameras, camera_width=int(width), camera_height=int(height))
    if recipe is not None:
        return directory, recipe.environment, pictures, recipe.evaluation
    row = Evaluation(
        args.task, args.setting, args.episodes, args.horizon or contract.execution_horizon, args.rest_steps, tuple(args.blank)
    )
    return directory, args.environment, pictures, [row]


def _write(path: Path, reports) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", json.dumps(reports, indent=1)), (".md", table(reports) + "\n")):
        beside = path.with_name(f".{path.name}{suffix}.{os.getpid()}")
        beside.write_text(text)
        os.replace(beside, path.with_name(path.name + suffix))
