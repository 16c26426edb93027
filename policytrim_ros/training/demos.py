"""Demonstrations: successful episodes of scripted demonstrators, made and read; a LeRobotDataset v3 with our facts beside it.

    <dataset>/data, meta              as in lerobot.py; one row a control step:
        observation.images.<camera>   PNG, the newest picture at that step
        observation.state             (14,) float32   measured 7 | setpoint 7 at the start of the step (rad, m)
        observation.objects           (14,) float32   poses of two objects in base_link: x y z (m), quaternion w x y z;
                                                      seven zeros where there is no such object (a rotation has norm 1)
        action                        (7,) float32    absolute target for the end of the step
        next.success, next.done       bool            success was reached by this step or before; last row of the episode
    <dataset>/meta/policytrim.json    units, joint order, how the pictures were made, every failed attempt
    meta/episodes, column policytrim  JSON an episode: task, setting, style, start, seed, outcome, steps until success,
                                      picture_steps (steps at which a new picture was taken), SHA-256 of the content, commit

The rows after success are the tail: ordinary rows, there so that the last chunks of an episode are whole. Training looks
only at what lies before (`Episode`), and the SHA-256 is of just that. A dataset of another program is read, too, when it
has these features (objects and next.* may be missing); an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import json
import multiprocessing
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import STATE_LAYOUT, implausible
from policytrim_ros.core.types import CONTROL_RATE_HZ, JOINTS
from policytrim_ros.files import sha256_of
from policytrim_ros.policies.objects import OBJECT_SLOTS, object_poses
from policytrim_ros.policies.pictures import resize_image
from policytrim_ros.training import lerobot
from policytrim_ros.training.lerobot import DatasetError
from policytrim_ros.training.version import commit

if TYPE_CHECKING:  # recipes and drivers know networks: torch is loaded only by those who make demonstrations
    from policytrim_ros.training.interventions import Driver
    from policytrim_ros.training.recipe import Collection, Pictures, Recipe

FORMAT = "policytrim-demonstrations"
FORMAT_VERSION = 3
HEADER = Path("meta/policytrim.json")
ROBOT = "piper"
STATE, ACTION, OBJECTS, SUCCESS, DONE = "observation.state", "action", "observation.objects", "next.success", "next.done"
PICTURES = "observation.images."
STATE_NAMES = [f"{part}.{joint}" for part in STATE_LAYOUT for joint in JOINTS]
UNITS = {"joints": "rad", "gripper": "m", "objects": "m"}
OBJECT_NAMES = [f"object{slot}.{part}" for slot in range(OBJECT_SLOTS) for part in ("x", "y", "z", "qw", "qx", "qy", "qz")]
KEPT = 0.9
"""Share of the disturbance that is left after one control step."""

TAIL_STEPS = 20
"""Actions kept after success, so that the last chunks of an episode are whole."""

DISPLACEMENT_RAD = np.array([0.6, 0.3, 0.3, 0.2, 0.3, 0.4])
DISPLACED_STEPS = 25
MISTAKE_M = 0.05
MISTAKEN_STEPS = (20, 110)


@dataclass(frozen=True)
class Recording:
    """One attempt, step by step, before it is an episode on disk.

    images: camera -> (P, h, w, 3) uint8; image_steps (P,) int32: the step at which each was taken; state (N, 14),
    actions (N, 7), objects (N, 2, 7) float32 as in the module; ``steps``: those until success, the rest is the tail.
    """

    instruction: str
    images: dict[str, np.ndarray]
    image_steps: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    objects: np.ndarray
    steps: int
    success: bool = True


@dataclass(frozen=True)
class Episode:
    """What training sees of an episode: T steps before success, and the actions of the tail.

    images: camera -> (P, h, w, 3) uint8; image_steps (P,) int32 below T; state (T, 14), actions (T + tail, 7),
    objects (T, 2, 7) float32, NaN where there is no such object.
    """

    name: str
    instruction: str
    task: str
    images: dict[str, np.ndarray]
    image_steps: np.ndarray
    state: np.ndarray
    actions: np.ndarray
    objects: np.ndarray


# -- making ---------------------------------------------------------------------------------------------------------


def record_episode(
    env,
    demonstrator,
    seed: int,
    pictures: Pictures,
    start: str = "ready",
    disturbance_rad: float = 0.0,
    driver: Driver | None = None,
) -> tuple[Recording | None, dict]:
    """Lets the demonstrator act once; (recording or None when it failed, facts: outcome, steps, instruction).

    ``driver`` acts first when ``start`` is intervention; without need of one the outcome is "not needed".
    ``disturbance_rad``: standard deviation of a slow random motion of the joints that is laid over what the demonstrator
    does but is not in the recorded actions: they lead back to its path (DART, Laskey et al. 2017).
    """
    env.reset(seed)
    demonstrator.reset(seed)
    facts = {"seed": seed, "instruction": env.instruction}
    if start == "intervention":
        taken_over = driver.drive(env, seed)
        if taken_over is None:
            return None, {**facts, "outcome": "not needed", "steps": 0}
        facts |= {"driver": driver.weights_sha256, "taken_over": taken_over}
        env.steps = 0  # the demonstrator has the time of a whole episode
    elif start != "ready":
        (displace if start == "displaced" else mislead)(env, demonstrator, np.random.default_rng((seed, 5)))
        demonstrator.reset(seed)
    random, disturbance = np.random.default_rng((seed, 7)), np.zeros(7)
    images = {name: [] for name in pictures.cameras}
    image_steps, states, actions, objects = [], [], [], []

    def step():
        if len(states) % pictures.every == 0:
            image_steps.append(len(states))
            for name, picture in env.images(pictures.cameras).items():
                images[name].append(resize_image(picture, pictures.width, pictures.height))
        state, things = env.proprioception(), env.objects()
        action = demonstrator.act(state[:7], state[7:], things)
        states.append(state)
        actions.append(action)
        objects.append(object_poses(things))
        disturbance[:6] = KEPT * disturbance[:6] + np.sqrt(1 - KEPT**2) * disturbance_rad * random.normal(size=6)
        return env.step(action + disturbance)

    result = step()
    while not (result.success or result.failure or result.truncated):
        result = step()
    steps = len(states)
    outcome = "success" if result.success else "failure" if result.failure else "truncated"
    facts = {**facts, "outcome": outcome, "steps": steps}
    if not result.success:
        return None, facts
    while len(states) < steps + TAIL_STEPS and not demonstrator.done:
        step()
    recording = Recording(
        env.instruction,
        {name: np.stack(frames) for name, frames in images.items()},
        np.array(image_steps, np.int32),
        np.array(states, np.float32),
        np.array(actions, np.float32),
        np.array(objects, np.float32),
        steps,
    )
    return recording, facts


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


def make(recipe: Recipe, directory=None, processes: int = 1, progress=True) -> dict:
    """Fills the dataset of ``recipe`` up to the episodes it asks for and returns the index. Resumes what is there."""
    directory = Path(directory or recipe.dataset)
    wanted = sum(collection.episodes for collection in recipe.collect)
    with (
        DemonstrationWriter(directory, asdict(recipe.pictures)) as writer,
        _pool(processes) as pool,
        tqdm(total=wanted, unit="episode", disable=not progress, mininterval=2.0, smoothing=0.1) as bar,
    ):
        for collection in recipe.collect:
            _collect(pool, processes, recipe, collection, writer, bar)
    return read_index(directory)


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


def _collect(pool, processes, recipe, collection, writer, bar) -> None:
    kind = {name: getattr(collection, name) for name in ("task", "setting", "style", "start")}
    mine = [
        facts
        for facts in writer.episodes + writer.failures
        if all(facts[k] == v for k, v in kind.items()) and facts["seed"] >= collection.first_seed
    ]
    tried = {facts["seed"] for facts in mine}
    have = sum(facts["outcome"] == "success" for facts in mine)
    bar.update(min(have, collection.episodes))
    seed, running = collection.first_seed, set()
    while have < collection.episodes or running:
        while have + len(running) < collection.episodes and len(running) < processes:
            while seed in tried:
                seed += 1
            tried.add(seed)
            running.add(pool.submit(_attempt, recipe, collection, seed))
        done, running = concurrent.futures.wait(running, return_when=concurrent.futures.FIRST_COMPLETED)
        for future in done:
            try:
                encoded, facts = future.result()
            except BrokenProcessPool as error:
                raise DatasetError(
                    f"{writer.directory}: a simulator process died (out of memory?); repeat with fewer processes, what was finished is kept"
                ) from error
            facts = {**kind, **facts}
            if encoded is None:
                writer.add_failure(facts)
            else:
                writer.add(encoded, {"name": "{task}-{setting}-{style}-{start}-{seed:08d}".format(**facts), **facts})
                have += 1
                bar.update()
            bar.set_postfix_str(f"{collection.task} {collection.setting} failed={len(writer.failures)}")


_environments: dict = {}  # one per worker process: building a scene takes seconds


@functools.cache
def _driver(directory: str, horizon: int, latency_s: float) -> Driver:
    import torch

    from policytrim_ros.policies.checkpoint import CheckpointError
    from policytrim_ros.training.interventions import Driver

    torch.set_num_threads(1)  # beside as many processes as there are processors
    try:
        return Driver(directory, horizon, latency_s)
    except CheckpointError as error:
        raise DatasetError(f"the driver: {error}") from error


def _attempt(recipe: Recipe, collection: Collection, seed: int) -> tuple[Encoded | None, dict]:
    from policytrim_ros.training.recipe import factory

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
    driver = None
    if collection.driver:
        driver = _driver(collection.driver, collection.driver_horizon, collection.driver_latency_s)
    recording, facts = record_episode(
        _environments[key], demonstrator, seed, recipe.pictures, collection.start, collection.disturbance_rad, driver
    )
    return None if recording is None else encode(recording), facts


# -- writing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """A recording as rows: feature -> array or PNGs, the statistics of its pictures, and what is noted about it."""

    frames: dict
    statistics: dict
    facts: dict


def encode(recording: Recording) -> Encoded:
    """The part of writing that costs time and needs no dataset."""
    rows = len(recording.state)
    newest = np.searchsorted(recording.image_steps, np.arange(rows), side="right") - 1
    frames, statistics = {}, {}
    for camera, pictures in recording.images.items():
        coded = [lerobot.to_png(picture) for picture in pictures]
        frames[PICTURES + camera] = [coded[i] for i in newest]
        statistics[PICTURES + camera] = lerobot.picture_statistics(pictures)
    frames[STATE], frames[ACTION] = recording.state, recording.actions
    frames[OBJECTS] = np.nan_to_num(recording.objects, nan=0.0).reshape(rows, -1)
    frames[SUCCESS] = recording.success & (np.arange(rows) >= recording.steps - 1)
    frames[DONE] = np.arange(rows) == rows - 1
    parts = digests(episode_of(recording))
    facts = {
        "instruction": recording.instruction,
        "steps": recording.steps,
        "picture_steps": recording.image_steps.tolist(),
        "sha256": combined(parts),
        "parts": parts,
    }
    return Encoded(frames, statistics, facts)


def episode_of(recording: Recording, name: str = "", task: str = "") -> Episode:
    """What training will see of a recording."""
    steps, seen = recording.steps, recording.image_steps < recording.steps
    images = {camera: pictures[seen] for camera, pictures in recording.images.items()}
    return Episode(
        name,
        recording.instruction,
        task,
        images,
        recording.image_steps[seen],
        recording.state[:steps],
        recording.actions,
        recording.objects[:steps],
    )


def digests(episode: Episode) -> dict[str, str]:
    """SHA-256 of what training sees: of each camera's pictures, and of the numbers and the sentence."""
    numbers = hashlib.sha256(episode.instruction.encode())
    for values, kind in (
        (episode.image_steps, np.int32),
        (episode.state, np.float32),
        (episode.actions, np.float32),
        (np.nan_to_num(episode.objects, nan=0.0), np.float32),
    ):
        numbers.update(str(values.shape).encode() + np.ascontiguousarray(values, kind).tobytes())
    parts = {"numbers": numbers.hexdigest()}
    for camera, pictures in episode.images.items():
        parts[camera] = hashlib.sha256(str(pictures.shape).encode() + np.ascontiguousarray(pictures).tobytes()).hexdigest()
    return parts


def combined(parts: dict[str, str]) -> str:
    """One SHA-256 over the named parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def features(cameras, width: int, height: int) -> dict:
    """The features of a dataset with pictures of ``width`` x ``height`` of these cameras."""
    vector = {"dtype": "float32"}
    flag = {"dtype": "bool", "shape": [1], "names": None}
    picture = {"dtype": "image", "shape": [height, width, 3], "names": ["height", "width", "channels"]}
    return {
        **{PICTURES + camera: picture for camera in cameras},
        STATE: {**vector, "shape": [len(STATE_NAMES)], "names": STATE_NAMES},
        OBJECTS: {**vector, "shape": [len(OBJECT_NAMES)], "names": OBJECT_NAMES},
        ACTION: {**vector, "shape": [len(JOINTS)], "names": list(JOINTS)},
        SUCCESS: flag,
        DONE: flag,
    }


class DemonstrationWriter:
    """Adds episodes and failed attempts to a dataset of demonstrations, which is made when it does not exist.

    ``pictures``: how the pictures are made, with at least cameras, width and height; DatasetError when the dataset there was
    made in another way.
    """

    def __init__(self, directory, pictures: dict):
        self.directory = Path(directory)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "joints": list(JOINTS),
            "units": UNITS,
            "control_rate_hz": CONTROL_RATE_HZ,
            "pictures": json.loads(json.dumps(pictures)),
        }
        if (self.directory / lerobot.EPISODES).exists() or (self.directory / HEADER).exists():
            found = _read_header(self.directory)
            for key, value in header.items():
                if found.get(key) != value:
                    raise DatasetError(
                        f"{directory}: holds demonstrations with {key} = {found.get(key)}, wanted is {value}; choose another directory"
                    )
            header = found
        kind = features(pictures["cameras"], pictures["width"], pictures["height"])
        self._writer = lerobot.Writer(self.directory, kind, round(CONTROL_RATE_HZ), ROBOT)
        self.failures: list[dict] = header.get("failures", [])
        self.episodes: list[dict] = self._writer.facts()
        self._header, self._commit = header, commit()
        try:
            self._write_header()
        except BaseException:
            self._writer.close()
            raise

    def __enter__(self) -> DemonstrationWriter:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Lets others write."""
        self._writer.close()

    def add(self, encoded: Encoded, facts: dict) -> None:
        """Writes one episode; ``facts``: name, task, setting, style, start, seed, outcome and what else is worth noting."""
        facts = {"commit": self._commit, **facts, **encoded.facts}
        self._writer.append(encoded.frames, encoded.facts["instruction"], facts, encoded.statistics)
        self.episodes.append(facts)

    def add_failure(self, facts: dict) -> None:
        """Notes an attempt of which nothing is kept."""
        self.failures.append(facts)
        self._write_header()

    def _write_header(self) -> None:
        text = json.dumps({**self._header, "failures": self.failures}, indent=1)
        lerobot.write(self.directory / HEADER, text.encode())


# -- reading --------------------------------------------------------------------------------------------------------


def read_index(directory) -> dict:
    """What a dataset holds: joints, units, control_rate_hz, pictures, cameras, episodes (an entry each), failures.

    Episodes that did not end in success are among the failures. DatasetError when version, rate, joint order or units are
    not ours.
    """
    directory = Path(directory)
    try:
        info = lerobot.read_info(directory)
    except FileNotFoundError as error:
        if (directory / "dataset.json").exists():
            raise DatasetError(f"{directory}: holds demonstrations of an older format; make them again") from error
        raise DatasetError(
            f"{directory}: holds no demonstrations (no {lerobot.INFO}); make some with 'policytrim demos make'"
        ) from error
    _check_features(directory, info)
    header = _read_header(directory)
    rows = lerobot.read_episode_rows(directory)
    tasks = lerobot.read_tasks(directory) if rows else {}
    digest_of_file: dict[str, str] = {}
    entries = [
        {**_facts(directory, info, row, tasks, digest_of_file), "row": row, "file": lerobot.data_file(info, row)} for row in rows
    ]
    return {
        **header,
        "info": info,
        "cameras": [name.removeprefix(PICTURES) for name in info["features"] if name.startswith(PICTURES)],
        "episodes": [entry for entry in entries if entry["outcome"] == "success"],
        "failures": header["failures"] + [entry for entry in entries if entry["outcome"] != "success"],
    }


def _read_header(directory: Path) -> dict:
    """meta/policytrim.json; for a dataset of another program, what its features promise. DatasetError on other units."""
    path = directory / HEADER
    try:
        header = lerobot.read_json(path)
    except FileNotFoundError:
        return {"joints": list(JOINTS), "units": UNITS, "control_rate_hz": CONTROL_RATE_HZ, "pictures": {}, "failures": []}
    if not isinstance(header, dict) or header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
        raise DatasetError(f"{path}: is not about demonstrations of version {FORMAT_VERSION}; give another directory")
    if header.get("joints") != list(JOINTS):
        raise DatasetError(f"{path}: has the joint order {header.get('joints')}, expected {list(JOINTS)}; convert it first")
    units = header.get("units", {})
    if (units.get("joints"), units.get("gripper")) != ("rad", "m"):
        raise DatasetError(f"{path}: has units {units}, expected joints in rad and the gripper in m; convert it first")
    return header


def _check_features(directory: Path, info: dict) -> None:
    path = directory / lerobot.INFO
    if info.get("fps") != CONTROL_RATE_HZ:
        raise DatasetError(
            f"{path}: has {info.get('fps')} rows a second, expected {CONTROL_RATE_HZ:g} (a row a control step); resample it first"
        )
    for name, expected in ((STATE, STATE_NAMES), (ACTION, list(JOINTS))):
        feature = info["features"].get(name)
        if feature is None:
            raise DatasetError(f"{path}: the feature '{name}' is missing; record it with the names {expected}")
        names = feature.get("names")
        if isinstance(names, dict) and len(names) == 1:  # older writers: {"motors": [...]}
            names = next(iter(names.values()))
        if list(feature.get("shape", [])) != [len(expected)] or names != expected:
            raise DatasetError(
                f"{path}: '{name}' has the joint order {names} (shape {feature.get('shape')}), expected {expected}; convert it first"
            )


def _facts(directory, info, row, tasks, digest_of_file) -> dict:
    """What is known about an episode: our own facts, or defaults for one that another program wrote."""
    if row.get(lerobot.FACTS):
        try:
            return json.loads(row[lerobot.FACTS])
        except json.JSONDecodeError as error:
            raise DatasetError(
                f"{directory}: the facts of episode {row['episode_index']} are damaged ({error}); make the dataset again"
            ) from error
    sentence = row["tasks"][0] if row["tasks"] else tasks.get(0, "")
    steps, outcome = row["length"], "success"
    if SUCCESS in info["features"]:
        flags = lerobot.vectors(lerobot.read_frames(directory, info, row, ["episode_index", SUCCESS]), SUCCESS)[:, 0]
        steps, outcome = (int(np.argmax(flags)) + 1, "success") if flags.any() else (row["length"], "failure")
    file = lerobot.data_file(info, row)
    if file not in digest_of_file:
        digest_of_file[file] = _file_digest(directory / file)
    return {
        "name": f"episode-{row['episode_index']:06d}",
        "task": sentence,
        "setting": "standard",
        "style": "unknown",
        "start": "unknown",
        "seed": row["episode_index"],
        "outcome": outcome,
        "steps": steps,
        "instruction": sentence,
        "sha256": hashlib.sha256(f"{digest_of_file[file]} {row['episode_index']}".encode()).hexdigest(),
    }


def _file_digest(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); restore the file or make the dataset again") from error


def data_digest(index) -> str:
    """One SHA-256 for the whole dataset: over the sorted digests of its episodes."""
    return hashlib.sha256("".join(sorted(entry["sha256"] for entry in index["episodes"])).encode()).hexdigest()


def read_episodes(directory, cameras=None, progress=False, index=None):
    """Yields every successful `Episode` by name, checked. DatasetError names the episode and what is wrong with it.

    ``cameras``: those whose pictures are wanted; None: all, (): none. ``index``: what `read_index` said, if it was asked.
    """
    index = read_index(directory) if index is None else index
    if not index["episodes"]:
        raise DatasetError(f"{directory}: is empty; make some demonstrations with 'policytrim demos make'")
    cameras = tuple(index["cameras"] if cameras is None else cameras)
    for camera in cameras:
        feature = index["info"]["features"].get(PICTURES + camera)
        if feature is None:
            raise DatasetError(
                f"{directory}: has no pictures of camera '{camera}', only of {', '.join(index['cameras']) or 'none'}; "
                "record it with that camera or train without it"
            )
        if feature["dtype"] != "image":
            raise DatasetError(
                f"{directory}: the pictures of camera '{camera}' are a {feature['dtype']}, which changes pixels and needs a decoder; "
                "write them as images (in LeRobot: LeRobotDataset.create(..., use_videos=False))"
            )
    for entry in tqdm(sorted(index["episodes"], key=lambda e: e["name"]), "reading", disable=not progress, mininterval=2.0):
        yield read_episode(directory, index["info"], entry, cameras)


def read_episode(directory, info, entry, cameras) -> Episode:
    """One episode of the index; verifies rows, shapes, units, cameras and content."""
    where = f"{Path(directory) / entry['file']}: episode {entry['name']}"
    wanted = ["episode_index", STATE, ACTION] + [name for name in (OBJECTS, SUCCESS) if name in info["features"]]
    wanted += [PICTURES + camera for camera in cameras]
    table = lerobot.read_frames(directory, info, entry["row"], wanted)
    try:
        episode = _episode(table, entry, cameras)
        problem = _problem(episode)
        if problem:
            raise ValueError(problem)
    except ValueError as error:
        raise DatasetError(f"{where}: {error}; record the episode again or leave it out") from error
    parts = entry.get("parts", {})
    changed = [part for part, digest in digests(episode).items() if parts and parts.get(part) != digest]
    if changed or (parts and combined(parts) != entry["sha256"]):
        raise DatasetError(
            f"{where}: changed since it was recorded (SHA-256 of {', '.join(changed) or 'the whole'} differs); make the dataset again"
        )
    return episode


def _episode(table, entry, cameras) -> Episode:
    """ValueError says what is wrong with the rows."""
    state, actions = (lerobot.vectors(table, name).astype(np.float32) for name in (STATE, ACTION))
    steps = entry["steps"]
    if not 0 < steps <= len(state):
        raise ValueError(f"{steps} steps until success, but {len(state)} rows")
    objects = np.zeros((len(state), OBJECT_SLOTS * 7), np.float32)
    if OBJECTS in table.column_names:
        objects = lerobot.vectors(table, OBJECTS).astype(np.float32)
    if objects.shape[1] != OBJECT_SLOTS * 7:
        raise ValueError(f"'{OBJECTS}' has {objects.shape[1]} numbers a row, expected {OBJECT_SLOTS * 7}")
    if not np.all(np.isfinite(objects)):
        raise ValueError(f"'{OBJECTS}' holds NaN or infinity")
    objects = objects[:steps].reshape(steps, OBJECT_SLOTS, 7).copy()
    objects[~objects.any(axis=2)] = np.nan
    coded = {camera: lerobot.picture_bytes(table, PICTURES + camera)[:steps] for camera in cameras}
    if "picture_steps" in entry:
        image_steps = np.array([step for step in entry["picture_steps"] if step < steps], np.int32)
    else:  # a row that repeats the pictures of the row before saw nothing new
        rows = list(zip(*coded.values())) or [()]
        image_steps = np.array([i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]], np.int32)
    try:
        images = {camera: np.stack([lerobot.from_png(data[i]) for i in image_steps]) for camera, data in coded.items()}
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"its pictures cannot be read ({error})") from error
    return Episode(entry["name"], entry["instruction"], entry["task"], images, image_steps, state[:steps], actions, objects)


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


def add_arguments(parser):
    """``policytrim demos make|info``; returns the sub-commands, for those that come from elsewhere."""
    actions = parser.add_subparsers(dest="action", required=True)
    maker = actions.add_parser("make", help="run scripted demonstrators in the simulator and keep what succeeds")
    maker.add_argument("--recipe", required=True, help="recipe file, config/*.yaml")
    maker.add_argument("--out", help="directory of the dataset (default: the recipe's)")
    maker.add_argument(
        "--processes", type=int, default=1, choices=range(1, 65), metavar="N", help="simulator processes (default 1)"
    )
    info = actions.add_parser("info", help="say what a dataset holds and check every episode")
    info.add_argument("dataset", help="directory of the dataset")
    return actions


def main(args) -> int:
    """Runs ``demos make`` or ``demos info``; 0 on success, 1 after one sentence about what went wrong."""
    try:
        if args.action == "info":
            print(info(args.dataset))
        else:
            from policytrim_ros.training.recipe import load_recipe

            recipe = load_recipe(args.recipe)
            directory = args.out or recipe.dataset
            print(summary(make(recipe, directory, args.processes)))
    except (ConfigError, DatasetError) as error:
        print(f"demos: {error}")
        return 1
    return 0


def info(directory) -> str:
    """Reads and checks every episode; a few lines about them."""
    index = read_index(directory)
    steps = [len(episode.state) for episode in read_episodes(directory, progress=True, index=index)]
    size_mb = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file()) / 1e6
    cameras = ", ".join(
        f"{name} {shape[1]}x{shape[0]} ({index['info']['features'][PICTURES + name]['dtype']})"
        for name in index["cameras"]
        for shape in [index["info"]["features"][PICTURES + name]["shape"]]
    )
    return "\n".join(
        [
            summary(index),
            f"LeRobotDataset {index['info']['codebase_version']}, {CONTROL_RATE_HZ:g} steps/s, cameras: {cameras or 'none'}",
            f"{sum(steps)} steps ({sum(steps) / CONTROL_RATE_HZ / 60:.1f} min), {size_mb:.1f} MB, data_sha256 {data_digest(index)}",
            f"{len(steps)} episodes are intact",
        ]
    )


def kind_of(entry) -> tuple[str, str, str, str]:
    return tuple(entry[name] for name in ("task", "setting", "style", "start"))


def summary(index) -> str:
    """A table of the index: kind, kept, tried, mean steps of the kept ones."""
    lines = ["| task | setting | demonstrator | start | kept | tried | steps |", "| --- | --- | --- | --- | --- | --- | --- |"]
    kinds = sorted({kind_of(e) for e in index["episodes"] + index["failures"]})
    for kind in kinds:
        kept, failed = ([e for e in index[k] if kind_of(e) == kind] for k in ("episodes", "failures"))
        steps = np.mean([entry["steps"] for entry in kept]) if kept else float("nan")
        lines.append(f"| {' | '.join(kind)} | {len(kept)} | {len(kept) + len(failed)} | {steps:.0f} |")
    return "\n".join(lines)
