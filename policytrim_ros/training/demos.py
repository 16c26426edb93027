"""Demonstrations: successful episodes of scripted demonstrators, made and read.

    <dataset>/dataset.json           what was asked for, every episode with its SHA-256, every failed attempt
    <dataset>/episodes/<name>.npz    one episode (plain arrays, no pickle):
        images_<camera> (P, h, w, 3) uint8   pictures at the policy's size
        image_steps     (P,) int32           control step at which each was taken
        state           (T, 14) float32      measured 7 | setpoint 7 at the start of each step (rad, m)
        actions         (T + tail, 7) float32   absolute targets; the tail goes on after success
        objects         (T, 2, 7) float32    poses of up to two objects in base_link: x y z (m), quaternion w x y z (NaN: no such object)

Files are written beside and renamed, and the index after every episode: an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import io
import json
import multiprocessing
import os
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import implausible
from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS
from policytrim_ros.policies.policy import resize_image
from policytrim_ros.training.recipe import Collection, Pictures, Recipe, commit, factory, load_recipe

FORMAT = "policytrim-demonstrations"
FORMAT_VERSION = 2
OBJECT_SLOTS = 2
TAIL_STEPS = 20
"""Actions kept after success, so that the last chunks of an episode are whole."""


DISPLACEMENT_RAD = np.array([0.6, 0.3, 0.3, 0.2, 0.3, 0.4])
DISPLACED_STEPS = 25
MISTAKE_M = 0.05
MISTAKEN_STEPS = (20, 110)


class DatasetError(ValueError):
    """A dataset cannot be used; one sentence: which, what is wrong, what to do."""


@dataclass(frozen=True)
class Episode:
    """One episode in memory; shapes as in the module's docstring."""

    name: str
    instruction: str
    task: str
    images: dict[str, np.ndarray]
    image_steps: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    objects: np.ndarray


# -- making ---------------------------------------------------------------------------------------------------------


def record_episode(env, demonstrator, seed: int, pictures: Pictures, start: str = "ready") -> tuple[dict | None, dict]:
    """Lets the demonstrator act once; (arrays or None when it failed, facts: outcome, steps, instruction)."""
    env.reset(seed)
    demonstrator.reset(seed)
    if start != "ready":
        (displace if start == "displaced" else mislead)(env, demonstrator, np.random.default_rng((seed, 5)))
        demonstrator.reset(seed)
    images = {name: [] for name in pictures.cameras}
    image_steps, states, actions, objects = [], [], [], []
    while True:
        if len(states) % pictures.every == 0:
            image_steps.append(len(states))
            for name, picture in env.images(pictures.cameras).items():
                images[name].append(resize_image(picture, pictures.width, pictures.height))
        state, things = env.proprioception(), env.objects()
        action = demonstrator.act(state[:7], state[7:], things)
        states.append(state)
        actions.append(action)
        objects.append(object_poses(things))
        result = env.step(action)
        if result.success or result.failure or result.truncated:
            break
    facts = {
        "seed": seed,
        "outcome": "success" if result.success else "failure" if result.failure else "truncated",
        "steps": len(states),
        "instruction": env.instruction,
    }
    if not result.success:
        return None, facts
    tail_states, tail_objects = [], []
    for _ in range(TAIL_STEPS):
        if demonstrator.done:
            break
        state = env.proprioception()
        tail_states.append(state)
        tail_objects.append(object_poses(env.objects()))
        actions.append(demonstrator.act(state[:7], state[7:], env.objects()))
        env.step(actions[-1])
    arrays = {f"images_{name}": np.stack(frames) for name, frames in images.items()}
    arrays["image_steps"] = np.array(image_steps, np.int32)
    arrays["tail_state"] = np.array(tail_states, np.float32).reshape(-1, 14)
    arrays["tail_objects"] = np.array(tail_objects, np.float32).reshape(-1, OBJECT_SLOTS, 7)
    arrays["state"] = np.array(states, np.float32)
    arrays["actions"] = np.array(actions, np.float32)
    arrays["objects"] = np.array(objects, np.float32)
    return arrays, facts


def displace(env, demonstrator, rng) -> None:
    """Takes the arm somewhere else within reach, the gripper open, half open or closed on nothing."""
    goal = env.proprioception()[7:].astype(np.float64)
    goal[:6] += rng.uniform(-1, 1, 6) * DISPLACEMENT_RAD
    goal[6] = rng.choice([goal[6], goal[6] / 2, 0.0])
    for _ in range(DISPLACED_STEPS):
        env.step(goal)


def mislead(env, demonstrator, rng) -> None:
    """Lets the demonstrator act for a while as if every object lay a few centimetres beside where it is."""
    offsets = {name: rng.uniform(-MISTAKE_M, MISTAKE_M, 2) for name in env.objects()}
    for _ in range(rng.integers(*MISTAKEN_STEPS)):
        believed = {name: np.asarray(pose, dtype=np.float64).copy() for name, pose in env.objects().items()}
        for name, offset in offsets.items():
            believed[name][:2] += offset
        state = env.proprioception()
        env.step(demonstrator.act(state[:7], state[7:], believed))


def object_poses(objects) -> np.ndarray:
    """(2, 7) poses of the first two objects by the environment's order; NaN where there is none."""
    found = np.full((OBJECT_SLOTS, 7), np.nan, np.float32)
    for slot, pose in enumerate(list(objects.values())[:OBJECT_SLOTS]):
        found[slot] = pose
    return found


def make(recipe: Recipe, directory=None, processes: int = 1, progress=True) -> dict:
    """Fills the dataset of ``recipe`` up to the episodes it asks for and returns the index. Resumes what is there."""
    directory = Path(directory or recipe.dataset)
    (directory / "episodes").mkdir(parents=True, exist_ok=True)
    index = _open_index(directory, recipe)
    wanted = sum(collection.episodes for collection in recipe.collect)
    with (
        _pool(processes) as pool,
        tqdm(total=wanted, unit="episode", disable=not progress, mininterval=2.0, smoothing=0.1) as bar,
    ):
        for collection in recipe.collect:
            _collect(pool, processes, recipe, collection, directory, index, bar)
    return index


class _Here(concurrent.futures.Executor):
    """Runs a task at once in this process: one worker needs no second interpreter."""

    def submit(self, function, *arguments):
        future = concurrent.futures.Future()
        future.set_result(function(*arguments))
        return future


def _pool(processes: int) -> concurrent.futures.Executor:
    if processes == 1:
        return _Here()
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def _collect(pool, processes, recipe, collection, directory, index, bar) -> None:
    key = {name: getattr(collection, name) for name in ("task", "setting", "style", "start")}
    mine = [
        e
        for e in index["episodes"] + index["failures"]
        if all(e[k] == v for k, v in key.items()) and e["seed"] >= collection.first_seed
    ]
    tried = {entry["seed"] for entry in mine}
    have = sum(entry["outcome"] == "success" for entry in mine)
    bar.update(min(have, collection.episodes))
    seed, running = collection.first_seed, set()
    while have < collection.episodes or running:
        while have + len(running) < collection.episodes and len(running) < processes:
            while seed in tried:
                seed += 1
            tried.add(seed)
            running.add(pool.submit(_attempt, recipe, collection, seed, str(directory)))
        done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            entry = future.result()
            success = entry["outcome"] == "success"
            index["episodes" if success else "failures"].append(entry)
            _write_beside(directory / "dataset.json", json.dumps(index, indent=1).encode())
            have += success
            bar.update(success)
            bar.set_postfix_str(f"{collection.task} {collection.setting} failed={len(index['failures'])}")


_environments: dict = {}  # one per worker process: building a scene takes seconds


def _attempt(recipe: Recipe, collection: Collection, seed: int, directory: str) -> dict:
    key = (collection.task, collection.setting)
    if key not in _environments:
        pictures = recipe.pictures
        _environments[key] = factory(recipe.environment)(
            collection.task,
            setting=collection.setting,
            cameras=tuple(pictures.cameras),
            image_size=(pictures.camera_width, pictures.camera_height),
        )
    demonstrator = factory(recipe.demonstrator)(collection.task, collection.style)
    arrays, facts = record_episode(_environments[key], demonstrator, seed, recipe.pictures, collection.start)
    entry = {
        "task": collection.task,
        "setting": collection.setting,
        "style": collection.style,
        "start": collection.start,
        **facts,
    }
    if arrays is not None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        entry["file"] = f"{collection.task}-{collection.setting}-{collection.style}-{collection.start}-{seed:08d}.npz"
        entry["sha256"] = hashlib.sha256(buffer.getbuffer()).hexdigest()
        _write_beside(Path(directory) / "episodes" / entry["file"], buffer.getbuffer())
    return entry


def _open_index(directory: Path, recipe: Recipe) -> dict:
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "joints": list(JOINTS),
        "units": {"joints": "rad", "gripper": "m", "objects": "m"},
        "control_rate_hz": CONTROL_RATE_HZ,
        "pictures": json.loads(json.dumps(asdict(recipe.pictures))),
    }
    path = directory / "dataset.json"
    if not path.exists():
        return {**header, "commit": commit(), "episodes": [], "failures": []}
    index = read_index(directory)
    for key, value in header.items():
        if index[key] != value:
            raise DatasetError(
                f"{path}: holds demonstrations with {key} = {index[key]}, the recipe asks for {value}; choose another directory"
            )
    return index


def _write_beside(path: Path, data) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise DatasetError(
            f"{path}: could not be written ({error.strerror}); free some space and repeat, what was finished is kept"
        ) from error


# -- reading --------------------------------------------------------------------------------------------------------


def read_index(directory) -> dict:
    """dataset.json, checked for format, version, joint order and units. DatasetError otherwise."""
    path = Path(directory) / "dataset.json"
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(
            f"{directory}: holds no demonstrations (no dataset.json); make some with 'policytrim demos make'"
        ) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); make the demonstrations again") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT or index.get("format_version") != FORMAT_VERSION:
        raise DatasetError(f"{path}: is not a demonstration index of version {FORMAT_VERSION}; give another directory")
    if index.get("joints") != list(JOINTS):
        raise DatasetError(f"{path}: has the joint order {index.get('joints')}, expected {list(JOINTS)}; convert it first")
    units = index.get("units", {})
    if (units.get("joints"), units.get("gripper")) != ("rad", "m"):
        raise DatasetError(f"{path}: has units {units}, expected joints in rad and the gripper in m; convert it first")
    return index


def data_digest(index) -> str:
    """One SHA-256 for the whole dataset: over the sorted digests of its episodes."""
    return hashlib.sha256("".join(sorted(entry["sha256"] for entry in index["episodes"])).encode()).hexdigest()


def read_episodes(directory, cameras=None, progress=False):
    """Yields every `Episode`, checked. DatasetError names the episode and what is wrong with it."""
    index = read_index(directory)
    if not index["episodes"]:
        raise DatasetError(f"{directory}: is empty; make some demonstrations with 'policytrim demos make'")
    cameras = tuple(cameras or index["pictures"]["cameras"])
    for entry in tqdm(sorted(index["episodes"], key=lambda e: e["file"]), "reading", disable=not progress, mininterval=2.0):
        yield read_episode(directory, entry, cameras)


def read_episode(directory, entry, cameras) -> Episode:
    """One episode of the index; verifies digest, arrays, shapes, units and cameras."""
    path = Path(directory) / "episodes" / entry["file"]
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); make the demonstrations again") from error
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise DatasetError(
            f"{path}: changed or truncated since it was recorded (SHA-256 differs); delete its entry or make it again"
        )
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: is not an episode ({error}); make it again") from error
    for camera in cameras:
        if f"images_{camera}" not in arrays:
            raise DatasetError(f"{path}: has no pictures of camera '{camera}'; record it with that camera or train without it")
    for name in ("image_steps", "state", "actions", "objects"):
        if name not in arrays:
            raise DatasetError(f"{path}: the array '{name}' is missing; make the episode again")
    episode = Episode(
        entry["file"],
        entry["instruction"],
        entry["task"],
        {camera: arrays[f"images_{camera}"] for camera in cameras},
        arrays["image_steps"],
        arrays["state"],
        arrays["actions"],
        arrays["objects"],
    )
    problem = _problem(episode)
    if problem:
        raise DatasetError(f"{path}: {problem}; record the episode again")
    return episode


def _problem(episode: Episode) -> str | None:
    steps, pictures = len(episode.state), len(episode.image_steps)
    if steps == 0 or pictures == 0:
        return "holds no step"
    if (
        episode.state.shape != (steps, 14)
        or episode.actions.ndim != 2
        or episode.actions.shape[1] != 7
        or len(episode.actions) < steps
    ):
        return f"state {episode.state.shape} and actions {episode.actions.shape} do not belong together"
    if episode.objects.shape != (steps, OBJECT_SLOTS, 7):
        return f"objects have shape {episode.objects.shape}, expected ({steps}, {OBJECT_SLOTS}, 7)"
    for camera, frames in episode.images.items():
        if frames.dtype != np.uint8 or frames.ndim != 4 or len(frames) != pictures or frames.shape[3] != 3:
            return f"pictures of '{camera}' are {frames.dtype} {frames.shape}, expected uint8 ({pictures}, h, w, 3)"
    if episode.image_steps[0] != 0 or np.any(np.diff(episode.image_steps) <= 0) or episode.image_steps[-1] >= steps:
        return "picture times do not increase within the episode"
    for name, values in (
        ("measured positions", episode.state[:, :7]),
        ("setpoints", episode.state[:, 7:]),
        ("actions", episode.actions),
    ):
        if (sentence := implausible(values)) is not None:
            return f"{name}: {sentence}"
    return None


# -- command line ---------------------------------------------------------------------------------------------------


def add_arguments(parser) -> None:
    """``policytrim demos make|info``."""
    actions = parser.add_subparsers(dest="action", required=True)
    maker = actions.add_parser("make", help="run scripted demonstrators in the simulator and keep what succeeds")
    maker.add_argument("--recipe", required=True, help="recipe file, config/*.yaml")
    maker.add_argument("--out", help="directory of the dataset (default: the recipe's)")
    maker.add_argument(
        "--processes", type=int, default=1, choices=range(1, 65), metavar="N", help="simulator processes (default 1)"
    )
    info = actions.add_parser("info", help="say what a dataset holds and check every episode")
    info.add_argument("dataset", help="directory of the dataset")


def main(args) -> int:
    """Runs ``demos make`` or ``demos info``; 0 on success, 1 after one sentence about what went wrong."""
    try:
        if args.action == "info":
            print(info(args.dataset))
        else:
            recipe = load_recipe(args.recipe)
            directory = args.out or recipe.dataset
            make(recipe, directory, args.processes)
            print(summary(directory))
    except (ConfigError, DatasetError) as error:
        print(f"demos: {error}")
        return 1
    return 0


def info(directory) -> str:
    """Reads and checks every episode; a few lines about them."""
    count = sum(1 for _ in read_episodes(directory, progress=True))
    return f"{summary(directory)}\n{count} episodes are intact"


def kind_of(entry) -> tuple[str, str, str, str]:
    return tuple(entry[name] for name in ("task", "setting", "style", "start"))


def summary(directory) -> str:
    """A table of the index: kind, kept, tried, mean steps of the kept ones."""
    index = read_index(directory)
    lines = ["| task | setting | demonstrator | start | kept | tried | steps |", "| --- | --- | --- | --- | --- | --- | --- |"]
    kinds = sorted({kind_of(e) for e in index["episodes"] + index["failures"]})
    for kind in kinds:
        kept, failed = ([e for e in index[k] if kind_of(e) == kind] for k in ("episodes", "failures"))
        steps = np.mean([entry["steps"] for entry in kept]) if kept else float("nan")
        lines.append(f"| {' | '.join(kind)} | {len(kept)} | {len(kept) + len(failed)} | {steps:.0f} |")
    return "\n".join(lines)
