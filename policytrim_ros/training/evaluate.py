"""Closed-loop evaluation of a checkpoint: success rate, control steps S, calls N and seconds, from fixed initial states.

Episode k of a row begins in the scene of seed ``first_seed + k``, and the same number seeds the policy's sampler, so that
two checkpoints meet the same scenes (`policytrim compare`). Evaluation seeds lie far from those of the demonstrations.
Episodes are played by rollout.py: the robot's chunk executor in virtual time, sync or async, with a given latency.

    <out>.json   every row with every episode; each is added as soon as it is finished, and a finished one is not run again
    <out>.md     a table
    <out>.png    SR and S against h, where several were asked for

Every scene is built anew, draws are seeded row by row and no batch is smaller than SMALLEST_BATCH, so that an episode is a
function of checkpoint, row and seed alone, whatever lanes, processes and earlier rows. Contact amplifies the last bit of a
network's output into another episode: do not expect the same one from another machine or another release of torch.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import shlex
import signal
import sys
import time
import traceback
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Callable, Iterator, Sequence

import numpy as np
import torch
from tqdm import tqdm

from policytrim_ros.children import end_with_parent
from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.replanning import RTC, SYNC
from policytrim_ros.core.statistics import bootstrap_mean, wilson
from policytrim_ros.files import replace_file
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import CheckpointError
from policytrim_ros.policies.policy import Observation
from policytrim_ros.training.figures import horizon_figure
from policytrim_ros.training.films import Films, failure_sheet, films_of
from policytrim_ros.training.perturbations import perturbed
from policytrim_ros.training.recipe import TASKS, Evaluation, Pictures, Recipe, commit, factory, load_recipe, world_of
from policytrim_ros.training.rollout import (
    Conditions,
    EpisodeResult,
    Look,
    Start,
    first_position,
    moved,
    outcome_of,
    play,
    play_together,
)

FIRST_SEED = 1_000_000
FORMAT = "policytrim-evaluation"
FORMAT_VERSION = 1
SMALLEST_BATCH = 4
"""Rows; torch's matrix products on a CPU round differently below it, and alike from there on."""

BACKENDS = ("cpu", "processes", "gpu")


class EvaluationError(RuntimeError):
    """An evaluation cannot go on; one sentence: what happened and what to do."""


@dataclass(frozen=True)
class Bench:
    """Where episodes are played: factories of environment and demonstrator (module:name), pictures, lanes, processes.

    backend: cpu (``lanes`` environments in every one of ``processes``), processes or gpu (one vector environment of ``lanes``).
    ``device``: the policy's torch device. ``films``: directory for a film of every episode (cpu only).
    """

    environment: str = Recipe().environment
    demonstrator: str = Recipe().demonstrator
    pictures: Pictures = Pictures()
    first_seed: int = FIRST_SEED
    lanes: int = 4
    processes: int = 1
    backend: str = "cpu"
    device: str = "cpu"
    films: str | None = None


# -- one row --------------------------------------------------------------------------------------------------------


def evaluate(
    directory,
    row: Evaluation,
    bench: Bench = Bench(),
    *,
    workers: "Workers | None" = None,
    progress=True,
    between: Callable[[], None] = lambda: None,
) -> dict:
    """Plays ``row`` and returns its `report`. ``directory``: the checkpoint, None for a demonstrator's row.

    ``between`` is called after every episode; what it raises ends the evaluation.
    Raises ConfigError when the row does not fit the checkpoint or the bench, CheckpointError when the checkpoint cannot
    be used, EvaluationError when a worker process fails.
    """
    manifest = None if row.demonstrator else checkpoint.verify(directory)
    check(row, bench, manifest)
    seeds = [bench.first_seed + k for k in range(row.episodes)]
    if bench.films:
        for old in films_of(bench.films, file_label(row)):
            old.unlink()
    began, episodes = time.perf_counter(), []
    own = Workers(bench) if workers is None else workers
    try:
        with tqdm(total=len(seeds), desc=label(row), unit="episode", disable=not progress, mininterval=1.0, smoothing=0.1) as bar:
            for episode in own.episodes(None if row.demonstrator else str(directory), row, seeds):
                episodes.append(episode)
                bar.update()
                bar.set_postfix_str(f"SR={np.mean([e.outcome == 'success' for e in episodes]):.2f}")
                between()
    finally:
        if workers is None:
            own.close()
    if bench.films:
        failure_sheet(bench.films, file_label(row))
    episodes.sort(key=lambda episode: episode.seed)
    return report(directory, manifest, row, bench, episodes, time.perf_counter() - began)


def check(row: Evaluation, bench: Bench, manifest) -> None:
    """ConfigError when ``row`` cannot be played on ``bench`` with the checkpoint of ``manifest`` (None: a demonstrator)."""
    if manifest is not None:
        horizon = checkpoint.contract_of(manifest).prediction_horizon
        if row.horizon > horizon:
            raise ConfigError(f"Evaluation.horizon = {row.horizon}: the checkpoint predicts only H = {horizon} actions")
        if row.mode == RTC and not checkpoint.FAMILIES[manifest["family"]].policy.guided:
            raise ConfigError(
                f"Evaluation.mode = rtc: a policy of family '{manifest['family']}' is played as async; ask for async"
            )
    if bench.backend != "cpu" and (row.hide_target or row.demonstrator or bench.films):
        raise ConfigError(
            f"backend '{bench.backend}' plays no demonstrator, hides no target and films nothing: use backend 'cpu'"
        )
    if bench.backend != "cpu" and bench.processes > 1:
        raise ConfigError(f"backend '{bench.backend}' is one vector environment: use --lanes, and --processes 1")
    perturbed(None, row)


def report(directory, manifest, row: Evaluation, bench: Bench, episodes: Sequence[EpisodeResult], wall_s: float) -> dict:
    """The figures of one row (JSON-ready): what was asked for, SR, S, N and seconds with intervals, every episode."""
    of_demonstrator = manifest is None
    return {
        "checkpoint": f"demonstrator:{row.demonstrator}" if of_demonstrator else Path(directory).name,
        **identity(row, bench, manifest),
        "lanes": bench.lanes,
        "processes": bench.processes,
        "backend": bench.backend,
        "commit": commit(),
        "wall_s": round(wall_s, 1),
        **figures(episodes),
        "episodes_list": [{key: value for key, value in asdict(episode).items() if key != "looks"} for episode in episodes],
    }


def identity(row: Evaluation, bench: Bench, manifest: dict | None) -> dict:
    """What makes two rows the same evaluation: the checkpoint (None: a demonstrator), every setting of the row, seeds and pictures."""
    pictures = bench.pictures
    files = manifest["files"] if manifest else {}
    return json.loads(
        json.dumps(
            {
                "weights_sha256": files.get("model.safetensors"),
                "config_sha256": files.get("config.json"),
                **asdict(row),
                "first_seed": bench.first_seed,
                "environment": bench.environment,
                "camera_size": [pictures.camera_width, pictures.camera_height],
            }
        )
    )


def figures(episodes) -> dict:
    """SR with its Wilson interval; mean and bootstrap interval of steps, calls, seconds and stalled seconds, over successes
    and over all. ``episodes``: EpisodeResult, or the dicts of a report."""
    rows = [asdict(episode) if isinstance(episode, EpisodeResult) else episode for episode in episodes]
    successes = [row for row in rows if row["outcome"] == "success"]
    quantities = {
        "steps": "steps",
        "control_steps": "control_steps",
        "calls": "calls",
        "seconds": "seconds",
        "stalled": "stalled_s",
    }
    values = {
        "n": len(rows),
        "successes": len(successes),
        "success_rate": len(successes) / len(rows),
        "success_interval": list(wilson(len(successes), len(rows))),
        "refused": sum(row["refused"] for row in rows),
    }
    for name, key in quantities.items():
        for which, chosen in (("success", successes), ("all", rows)):
            values[f"{name}_{which}"] = list(bootstrap_mean([row[key] for row in chosen])) if chosen else None
    return values


# -- processes ------------------------------------------------------------------------------------------------------


class Workers:
    """Plays rows in this process, or in ``bench.processes`` of its own that keep policy and environments from row to row."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self._desk, self._processes = None, []
        if bench.processes == 1:
            return
        context = multiprocessing.get_context("spawn")
        self._results, self._taken = context.Queue(), context.Value("q", 0)
        self._jobs = [context.SimpleQueue() for _ in range(bench.processes)]
        for jobs in self._jobs:
            process = context.Process(target=_serve, args=(bench, jobs, self._results, self._taken), daemon=True)
            process.start()
            self._processes.append(process)

    def episodes(self, directory: str | None, row: Evaluation, seeds: Sequence[int]) -> Iterator[EpisodeResult]:
        """Plays one episode for each seed and yields them in the order in which they end. EvaluationError when a process fails."""
        if not self._processes:
            self._desk = self._desk or _Desk(self.bench)
            yield from self._desk.episodes(directory, row, iter(seeds))
            return
        self._taken.value = 0
        for jobs in self._jobs:
            jobs.put((directory, row, list(seeds)))
        for _ in seeds:
            yield self._next()

    def _next(self) -> EpisodeResult:
        while True:
            try:
                result = self._results.get(timeout=1.0)
            except queue.Empty:
                for process in self._processes:
                    if not process.is_alive():
                        raise EvaluationError(
                            f"a simulation process ended with exit code {process.exitcode}; finished rows are kept, run the same "
                            "command again (with fewer --processes or --lanes if memory ran out)"
                        ) from None
                continue
            if isinstance(result, str):
                raise EvaluationError(result)
            return result

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join()


def _serve(bench: Bench, jobs, results, taken) -> None:
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what a Ctrl-C means
    torch.set_num_threads(1)
    desk = _Desk(bench)
    while True:
        directory, row, seeds = jobs.get()
        try:
            for result in desk.episodes(directory, row, _shared(seeds, taken)):
                results.put(result)
        except (ConfigError, CheckpointError, RuntimeError, ValueError, OSError) as error:
            results.put(f"{type(error).__name__}: {error}")
        except Exception:  # the boundary of the process: the parent raises it again
            results.put(traceback.format_exc())


def _shared(seeds, taken) -> Iterator[int]:
    """The seeds that nobody else has taken."""
    while True:
        with taken.get_lock():
            index, taken.value = taken.value, taken.value + 1
        if index >= len(seeds):
            return
        yield seeds[index]


class _Desk:
    """A policy and the environments it plays in: both take seconds to build, so the last ones are kept."""

    def __init__(self, bench: Bench):
        self.bench = bench
        self._policy, self._of = None, None
        self._envs, self._for = [], None

    def episodes(self, directory, row: Evaluation, seeds: Iterator[int]) -> Iterator[EpisodeResult]:
        if row.demonstrator:
            yield from self._demonstrations(row, seeds)
            return
        policy = self._load(directory)
        contract = policy.contract
        cameras = tuple(camera.name for camera in contract.cameras)
        look = perturbed(looking_with(policy, row.denoising_steps), row)
        rest = dict(rebuild=True, guarded=contract.moves_joints)
        conditions = Conditions(row.mode, row.latency_s, row.action_noise_rad, row.hide_target, **rest, **cuts(row))
        starts = (Start(seed, row.horizon) for seed in seeds)
        options = dict(cameras=cameras, object_slots=contract.object_slots)
        if self.bench.backend == "cpu":
            options["watch"] = self._films(row, cameras)
            results = play(self._lanes(row, cameras), starts, look, conditions, **options)
        else:
            results = play_together(self._vector(row, cameras), starts, look, conditions, **options)
        for _, result in results:
            yield result

    def _demonstrations(self, row, seeds):
        watch = self._films(row, ())
        env = self._lanes(row, watch.cameras if watch else (), 1)[0]
        demonstrator = factory(self.bench.demonstrator)(row.task, row.demonstrator)
        for seed in seeds:
            yield demonstrate(env, demonstrator, seed, watch)

    def _films(self, row, cameras):
        return Films(self.bench.films, file_label(row), cameras or ("front",)) if self.bench.films else None

    def _load(self, directory):
        weights = checkpoint.read_manifest(directory)["files"]["model.safetensors"]
        if self._of != (directory, weights):
            self._policy, self._of = checkpoint.load(directory, device=self.bench.device)[0], (directory, weights)
        return self._policy

    def _lanes(self, row, cameras, count=None):
        make, size = factory(self.bench.environment), self._size
        cameras = cameras or (("front",) if self.bench.films else ())
        return self._kept(
            (row.task, row.setting, cameras, row.hide_target),
            lambda: make(row.task, setting=row.setting, cameras=cameras, image_size=size),
            count or self.bench.lanes,
        )

    def _vector(self, row, cameras):
        make, size = factory(f"{self.bench.environment.partition(':')[0]}:make_vec"), self._size
        backend = "gpu" if self.bench.backend == "gpu" else "cpu"
        return self._kept(
            (row.task, row.setting, cameras, "vector"),
            lambda: make(row.task, self.bench.lanes, backend=backend, setting=row.setting, cameras=cameras, image_size=size),
            1,
        )[0]

    @property
    def _size(self):
        return self.bench.pictures.camera_width, self.bench.pictures.camera_height

    def _kept(self, key, make, count):
        if self._for != key:
            for env in self._envs:
                if hasattr(env, "close"):
                    env.close()
            self._envs, self._for = [], key
        while len(self._envs) < count:
            try:
                self._envs.append(make())
            except (ValueError, RuntimeError) as error:  # a setting that the task lacks, no CUDA device, no renderer
                raise EvaluationError(f"the environment for {key[0]} {key[1]} cannot be made: {error}") from error
        return self._envs[:count]


def cuts(row: Evaluation) -> dict:
    """What of `Conditions` says when the horizon is cut."""
    limits = ("tail", row.tail_limit_rad), ("tracking", row.tracking_limit_rad), ("motion", row.motion_limit)
    return dict(cut_limits=tuple(pair for pair in limits if pair[1]), shortest_horizon=row.shortest_horizon)


def looking_with(policy, denoising_steps: int = 0) -> Look:
    """``policy`` as rollouts want it; a small batch is filled up with its last row."""

    def look(seen: Observation, seeds: Sequence[int]) -> np.ndarray:
        missing = max(0, SMALLEST_BATCH - len(seeds))
        return policy.predict(filled(seen, missing), seeds=[*seeds, *seeds[-1:] * missing], steps=denoising_steps or None)[
            : len(seeds)
        ]

    return look


def filled(seen: Observation, missing: int) -> Observation:
    """The observation with its last row repeated ``missing`` times more."""
    if not missing:
        return seen
    rows = np.append(np.arange(len(seen.state)), [len(seen.state) - 1] * missing)
    return Observation(
        {name: pictures[rows] for name, pictures in seen.images.items()},
        seen.state[rows],
        [seen.instruction[row] for row in rows],
        None if seen.objects is None else seen.objects[rows],
        None if seen.committed is None else [seen.committed[row] for row in rows],
    )


def demonstrate(env, demonstrator, seed: int, watch=None) -> EpisodeResult:
    """One episode of a scripted demonstrator (no policy: it calls nobody and never waits)."""
    env.reset(seed, rebuild=True)
    demonstrator.reset(seed)
    placed, result = first_position(env.objects()), None
    if watch:
        watch(Start(seed, 1), env, None)
    while result is None or not outcome_of(result):
        state = env.proprioception()
        result = env.step(demonstrator.act(state[:7], state[7:], env.objects()))
        if watch:
            watch(Start(seed, 1), env, result)
    gone = moved(placed, first_position(env.objects()))
    return EpisodeResult(seed, outcome_of(result), result.steps, result.steps, 0, round(result.steps * 0.05, 6), 0.0, (), 0, gone)


# -- tables ---------------------------------------------------------------------------------------------------------


def label(row: Evaluation) -> str:
    """A row in a few words, for the progress bar."""
    if row.demonstrator:
        return f"{row.task} {row.setting} {row.demonstrator} demonstrator"
    return " ".join(filter(None, [row.task, row.setting, f"h={row.horizon}", note(asdict(row))]))


def file_label(row: Evaluation) -> str:
    """`label` as a file name."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in label(row).replace("=", "").replace(" ", "-"))


def note(report) -> str:
    """What is special about a row: mode, latency, perturbations; empty for sync without latency."""
    r = report
    words = [
        (r["mode"] != SYNC or r["latency_s"]) and f"{r['mode']} {1000 * r['latency_s']:.0f} ms",
        r["denoising_steps"] and f"K={r['denoising_steps']}",
        r["blank"] and f"{'+'.join(r['blank'])} grey",
        r["hide_target"] and "target hidden",
        r["blur_px"] and f"blur {r['blur_px']} px",
        r["occlusion"] and f"occlusion {100 * r['occlusion']:.0f} %",
        r["shift_px"] and f"shift {r['shift_px']} px",
        r.get("tail_limit_rad") and f"tail limit {r['tail_limit_rad']} rad",
        r.get("tracking_limit_rad") and f"tracking limit {r['tracking_limit_rad']} rad",
        r.get("motion_limit") and f"motion limit {r['motion_limit']}",
        r["action_noise_rad"] and f"action noise {r['action_noise_rad']} rad",
        r["instruction"] and f'told "{r["instruction"]}"',
    ]
    return ", ".join(word for word in words if word)


def pooled(reports) -> list[dict]:
    """One more row for every set of rows that differ in nothing but the task: all their episodes together."""
    apart = {"task", "wall_s", "commit", "command", "lanes", "processes", "backend", "episodes_list", *_FIGURES}
    groups: dict[str, list[dict]] = {}
    for r in reports:
        key = json.dumps({name: value for name, value in r.items() if name not in apart}, sort_keys=True)
        groups.setdefault(key, []).append(r)
    together = []
    for rows in groups.values():
        if len({r["task"] for r in rows}) > 1:
            episodes = [episode for r in rows for episode in r["episodes_list"]]
            together.append({**rows[0], "task": "all", "wall_s": sum(r["wall_s"] for r in rows), **figures(episodes)})
    return together


_FIGURES = ("n", "successes", "success_rate", "success_interval", "refused") + tuple(
    f"{name}_{which}" for name in ("steps", "control_steps", "calls", "seconds", "stalled") for which in ("success", "all")
)


def table(reports) -> str:
    """Markdown: one line a report, then those pooled over tasks. Intervals are 95 %."""
    lines = [
        "| policy | task | setting | h | n | SR | S (success) | S (all) | N (success) | s (success) | stalled s | note |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in [*reports, *pooled(reports)]:
        low, high = r["success_interval"]
        h = "-" if r["demonstrator"] else r["horizon"]
        cells = [
            r["checkpoint"], r["task"], r["setting"], h, r["n"], f"{r['success_rate']:.3f} [{low:.3f}, {high:.3f}]",
            _cell(r["steps_success"]), _cell(r["steps_all"]), _cell(r["calls_success"]), _cell(r["seconds_success"]),
            _cell(r["stalled_success"]), _remarks(r),
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _remarks(r) -> str:
    return ", ".join(filter(None, [note(r), r["refused"] and f"{r['refused']} chunks refused"]))


def _cell(mean) -> str:
    return "-" if mean is None else f"{mean[0]:.1f} [{mean[1]:.1f}, {mean[2]:.1f}]"


def page(reports) -> str:
    """The table with what is needed to read and to repeat it."""
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(r["command"] for r in reports))
    seeds = ", ".join(dict.fromkeys(f"{r['first_seed']} to {r['first_seed'] + r['n'] - 1}" for r in reports))
    return (
        f"# Evaluation\n\n{commands}\n\nSeeds {seeds}; commit {', '.join(dict.fromkeys(r['commit'] for r in reports))}; "
        f"{sum(r['wall_s'] for r in reports):.0f} s wall clock.\n\n{table(reports)}\n\n{READING}\n"
    )


READING = """SR: success rate with its Wilson interval. S: control steps (20 Hz) in which an action was played; N: inference calls;
s: seconds from the start to success, rests included; stalled s: seconds without an action after the first one. Means over
successful episodes unless said otherwise, with bootstrap intervals; all intervals 95 %. Latencies are rounded up to whole
control steps; without a note the mode is sync with no latency, in which the arm never rests."""


def summary(reports) -> dict:
    """What a manifest keeps of the reports: everything but the single episodes."""
    dropped = ("episodes_list", "checkpoint", "wall_s", "command", "lanes", "processes", "backend", "environment")
    return {"rows": [{key: value for key, value in r.items() if key not in dropped} for r in reports]}


# -- files ----------------------------------------------------------------------------------------------------------


def read_reports(path) -> list[dict]:
    """The rows of an evaluation file. EvaluationError when it is missing, damaged or something else."""
    try:
        content = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise EvaluationError(f"{path}: is damaged ({error}); delete it or choose another name") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.get("format_version") != FORMAT_VERSION:
        raise EvaluationError(f"{path}: is not an evaluation of version {FORMAT_VERSION}; choose another name")
    return content["rows"]


def write_reports(out, reports) -> None:
    """<out>.json and <out>.md, beside and renamed. EvaluationError when the disk refuses."""
    write_file(
        f"{out}.json",
        json.dumps({"format": FORMAT, "format_version": FORMAT_VERSION, "rows": reports}, indent=1, allow_nan=False),
    )
    write_file(f"{out}.md", page(reports))


def write_file(path, text: str) -> None:
    """`replace_file` with a sentence: EvaluationError when the disk refuses; the old file is intact then."""
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise EvaluationError(f"{path}: could not be written ({error.strerror}); what was there is intact") from error


# -- command line ---------------------------------------------------------------------------------------------------

GRID = ("task", "setting", "horizon", "mode", "latency_s")
"""Fields of a row for which the command line takes several values."""


def add_arguments(parser) -> None:
    """``policytrim eval``."""
    parser.add_argument("--checkpoint", help="checkpoint directory (default: the recipe's)")
    parser.add_argument(
        "--recipe", help="take rows, picture sizes and environment from this recipe; the options of a row then change every one"
    )
    row = parser.add_argument_group("rows (several values where it says so: every combination is a row)")
    for spec in fields(Evaluation):
        name = {"latency_s": "latency", "action_noise_rad": "action-noise", "tail_limit_rad": "tail-limit", "tracking_limit_rad": "tracking-limit"}.get(spec.name, spec.name.replace("_", "-"))
        row.add_argument(f"--{name}", dest=f"row_{spec.name}", **_option(spec))
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="seed of the first episode")
    parser.add_argument(
        "--camera-size", help="size at which pictures are rendered, WIDTHxHEIGHT (default: the recipe's, else 424x240)"
    )
    parser.add_argument("--environment", help="factory of the environment, module:name (default: the recipe's)")
    parser.add_argument("--processes", type=int, default=1, choices=range(1, 65), metavar="N", help="simulator processes (1)")
    parser.add_argument(
        "--lanes",
        type=int,
        default=4,
        choices=range(1, 4097),
        metavar="N",
        help="environments that share one batch, in every process (4)",
    )
    parser.add_argument("--backend", default="cpu", choices=BACKENDS, help="cpu, or one vector environment: processes, gpu")
    parser.add_argument("--device", default="cpu", help="torch device of the policy")
    parser.add_argument("--out", help="write <out>.json (every episode), <out>.md and <out>.png; go on where it stopped")
    parser.add_argument("--film", metavar="DIR", help="film every episode (mp4), and a sheet of the failures")
    parser.add_argument("--record", action="store_true", help="write the summary into the checkpoint's manifest")


def _option(spec) -> dict:
    meta, default = spec.metadata, spec.default
    several = spec.name in GRID or isinstance(default, tuple) or spec.name == "demonstrator"
    allowed = meta["choices"] or (TASKS if spec.name == "task" else None)
    text = meta["doc"] + (f" ({meta['low']} to {meta['high']})" if meta["low"] is not None else "")
    text = text.replace("%", "%%")
    if isinstance(default, bool):
        return dict(action="store_const", const=True, help=text)
    values = dict(type=type(default) if isinstance(default, (int, float)) else str, help=text + (", several" if several else ""))
    if several:
        values["nargs"] = "+"
    return values | (dict(metavar="|".join(filter(None, allowed))) if allowed else dict(metavar="X"))


def main(args) -> int:
    """Evaluates and prints the table; 0 on success, 1 after one sentence about what went wrong, 130 after Ctrl-C."""
    torch.set_num_threads(1)
    try:
        return run(args)
    except (ConfigError, CheckpointError, EvaluationError) as error:
        print(f"eval: {error}")
        return 1


def run(args) -> int:
    """`main` without the sentence."""
    directory, bench, rows = plan(args)
    manifest = checkpoint.verify(directory) if directory else None
    out = Path(args.out) if args.out else None
    reports = read_reports(f"{out}.json") if out and Path(f"{out}.json").exists() else []
    wanted = [identity(row, bench, None if row.demonstrator else manifest) for row in rows]
    todo = [row for row, key in zip(rows, wanted) if not any(same(r, key) for r in reports)]
    if len(todo) < len(rows):
        print(f"{len(rows) - len(todo)} of {len(rows)} rows are in {out}.json already")
    command = "policytrim " + shlex.join(sys.argv[1:])
    workers, interrupted = Workers(bench), False
    try:
        for row in todo:
            reports.append({**evaluate(directory, row, bench, workers=workers), "command": command})
            if out:
                write_reports(out, reports)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        workers.close()
    asked = [r for key in wanted for r in reports if same(r, key)]
    if asked:
        print(table(asked))
    if out and horizon_figure(f"{out}.png", reports, _line_label):
        print(f"figure: {out}.png")
    if interrupted:
        print(f"eval: interrupted; {len(asked)} of {len(rows)} rows are finished" + (f" and kept in {out}.json" if out else ""))
        return 130
    if args.record and directory:
        checkpoint.annotate(directory, evaluation=summary(r for r in asked if not r["demonstrator"]))
    return 0


def same(report: dict, key: dict) -> bool:
    """Whether ``report`` is that of the row with this `identity`. A report from before there was a setting was made with its default;
    one that does not say the configuration of its policy is known by the weights alone."""
    known = _DEFAULTS | {"config_sha256": key["config_sha256"]}
    return all(report.get(name, known.get(name)) == value for name, value in key.items())


_DEFAULTS = json.loads(json.dumps({spec.name: spec.default for spec in fields(Evaluation)}))


def _line_label(r) -> str:
    return " ".join(filter(None, [r["checkpoint"], r["task"], r["setting"], note(r)]))


def plan(args) -> tuple[str | None, Bench, list[Evaluation]]:
    """(checkpoint or None, bench, rows) of a command line. ConfigError for what does not fit together."""
    recipe = load_recipe(args.recipe) if args.recipe else None
    given = {spec.name: getattr(args, f"row_{spec.name}") for spec in fields(Evaluation)}
    given = {name: value for name, value in given.items() if value is not None}
    demonstrators = given.pop("demonstrator", [])
    directory = args.checkpoint or (recipe.checkpoint if recipe else None)
    if directory is None and not demonstrators:
        raise ConfigError("name a checkpoint with --checkpoint, a recipe with --recipe, or a --demonstrator")
    contract = checkpoint.contract_of(checkpoint.verify(directory), directory) if directory else None
    made = recipe.pictures if recipe else Pictures()
    cameras = tuple(camera.name for camera in contract.cameras) if contract else ()
    width, height = _size(args.camera_size) if args.camera_size else (made.camera_width, made.camera_height)
    origin = recipe or Recipe()
    bench = Bench(
        args.environment or origin.environment,
        origin.demonstrator,
        Pictures(cameras=cameras, camera_width=width, camera_height=height),
        args.first_seed,
        args.lanes,
        args.processes,
        args.backend,
        args.device,
        args.film,
    )
    rows, known = [], world_of(bench.environment).tasks
    if contract:
        tasks = tuple(task for task in contract.tasks if task in known) or known
        base = recipe.evaluation if recipe else [Evaluation(task, horizon=contract.execution_horizon) for task in tasks]
        rows = combinations(base, given)
    if demonstrators:
        plain = {name: value for name, value in given.items() if name in ("task", "setting", "episodes")}
        rows += combinations([Evaluation(task) for task in known], {**plain, "demonstrator": demonstrators})
    for row in rows:
        if row.task not in known:
            raise ConfigError(f"task '{row.task}' does not exist; choose one of {', '.join(known)}")
        check(row, bench, checkpoint.read_manifest(directory) if directory and not row.demonstrator else None)
    return directory, bench, rows


def combinations(rows: Sequence[Evaluation], given: dict) -> list[Evaluation]:
    """Every row with every combination of the given values (a list where several are allowed), each once."""
    for name, value in given.items():
        several = value if name in (*GRID, "demonstrator") else [tuple(value) if isinstance(value, list) else value]
        rows = [replace(row, **{name: one}) for row in rows for one in several]
    return list(dict.fromkeys(rows))


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit()):
        raise ConfigError(f"--camera-size {text}: expected WIDTHxHEIGHT, for example 424x240")
    return int(width), int(height)
