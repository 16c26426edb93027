"""Demonstrations in LeRobot's layout: complete, resumable at any moment, read by LeRobot, and clear about bad data."""

import argparse
import errno
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from policy_samples import gentle, reach_recipe
from reach_task import ReachDemonstrator, ReachEnv, TiringEnv

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.types import JOINTS
from policytrim_ros.policies import checkpoint
from policytrim_ros.training import demos, interventions, lerobot
from policytrim_ros.training.demos import DatasetError
from policytrim_ros.training.recipe import Collection


@pytest.fixture
def copy(dataset, tmp_path):
    """A copy that a test may spoil."""
    shutil.copytree(dataset, tmp_path / "copy")
    return tmp_path / "copy"


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def change_episode(directory, edit, number=0):
    """Rewrites the rows of an episode: ``edit`` gets {column: list of cells}."""
    path = directory / f"data/chunk-000/file-{number:03d}.parquet"
    columns = pq.read_table(path).to_pydict()
    edit(columns)
    pq.write_table(pa.table(columns), path)


def change_facts(directory, edit, number=0):
    path = directory / lerobot.EPISODES
    table = pq.read_table(path)
    texts = table[lerobot.FACTS].to_pylist()
    facts = json.loads(texts[number])
    edit(facts)
    texts[number] = json.dumps(facts)
    pq.write_table(table.set_column(table.column_names.index(lerobot.FACTS), lerobot.FACTS, [texts]), path)


def same(one, other):
    """Are two episodes equal to the bit?"""
    arrays = ("image_steps", "state", "actions", "objects")
    return (
        (one.name, one.instruction, one.task) == (other.name, other.instruction, other.task)
        and all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True) for name in arrays)
        and one.images.keys() == other.images.keys()
        and all(np.array_equal(one.images[camera], other.images[camera]) for camera in one.images)
    )


# -- what is written ------------------------------------------------------------------------------------------------


def test_only_successes_are_kept_and_failures_are_counted(dataset):
    index = demos.read_index(dataset)
    assert [entry["seed"] for entry in index["episodes"]] == [0, 1, 2, 3, 5, 6, 7, 8]
    assert [entry["seed"] for entry in index["failures"]] == [4]
    assert len(list((dataset / "data/chunk-000").iterdir())) == 8


def test_an_episode_holds_pictures_state_and_whole_chunks(dataset):
    episode = next(demos.read_episodes(dataset))
    assert episode.images["front"].shape[1:] == (18, 32, 3)
    assert len(episode.actions) == len(episode.state) + demos.TAIL_STEPS
    assert episode.image_steps[:3].tolist() == [0, 2, 4] and episode.image_steps[-1] < len(episode.state)
    assert np.isfinite(episode.objects[:, 0]).all() and np.isnan(episode.objects[:, 1]).all()  # there is one dot


def test_what_is_read_is_what_was_recorded_to_the_bit(dataset):
    recipe = reach_recipe()
    env = ReachEnv("tape_box", image_size=(64, 36))
    recording, facts = demos.record_episode(env, ReachDemonstrator(), 3, recipe.pictures)
    name = "tape_box-standard-hesitant-ready-00000003"
    read = {episode.name: episode for episode in demos.read_episodes(dataset)}
    assert same(read[name], demos.episode_of(recording, name, "tape_box"))
    assert facts["outcome"] == "success" and facts["steps"] == len(read[name].state)


def test_rows_after_success_are_the_tail(dataset):
    rows = pq.read_table(dataset / "data/chunk-000/file-000.parquet").to_pydict()
    entry = demos.read_index(dataset)["episodes"][0]
    steps = entry["steps"]
    assert rows["next.success"] == [False] * (steps - 1) + [True] * (demos.TAIL_STEPS + 1)
    assert rows["next.done"] == [False] * (steps + demos.TAIL_STEPS - 1) + [True]
    assert np.allclose(rows["timestamp"], np.arange(len(rows["timestamp"])) / 20)
    pictures = [cell["bytes"] for cell in rows["observation.images.front"]]
    assert pictures[2] is not None and pictures[2] == pictures[3]  # taken every second step


def test_repeated_pictures_cost_nothing(dataset, tmp_path):
    recording, _ = demos.record_episode(
        ReachEnv("tape_box", image_size=(640, 360)),
        ReachDemonstrator(),
        1,
        replace(reach_recipe().pictures, width=320, height=180),
    )
    noise = np.random.default_rng(0).integers(0, 256, recording.images["front"].shape, dtype=np.uint8)
    sizes = []
    for number, images in enumerate((noise, noise[:1])):
        with demos.DemonstrationWriter(tmp_path / str(number), {"cameras": ["front"], "width": 320, "height": 180}) as writer:
            steps = recording.image_steps[: len(images)]
            writer.add(demos.encode(replace(recording, images={"front": images}, image_steps=steps)), {"outcome": "success"})
        sizes.append((tmp_path / str(number) / "data/chunk-000/file-000.parquet").stat().st_size)
    picture = len(lerobot.to_png(noise[0]))
    assert sizes[0] < (len(noise) + 1) * picture and sizes[1] < 2 * picture


def test_the_statistics_are_those_of_the_rows(dataset):
    stats = json.loads((dataset / lerobot.STATS).read_text())
    tables = [pq.read_table(path) for path in sorted((dataset / "data").rglob("*.parquet"))]
    actions = np.concatenate([lerobot.vectors(table, "action") for table in tables]).astype(float)
    assert np.allclose(stats["action"]["mean"], actions.mean(0)) and np.allclose(stats["action"]["std"], actions.std(0))
    assert np.allclose(stats["action"]["min"], actions.min(0)) and stats["action"]["count"] == [len(actions)]
    assert np.shape(stats["observation.images.front"]["q99"]) == (3, 1, 1)
    one = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    found, plain = lerobot.picture_statistics(one), one.reshape(-1, 3) / 255
    assert np.allclose(found["mean"].ravel(), plain.mean(0)) and np.allclose(found["std"].ravel(), plain.std(0))
    assert np.abs(found["q50"].ravel() - np.quantile(plain, 0.5, axis=0)).max() <= 1 / 255
    assert set(stats["action"]) == {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


@pytest.mark.parametrize("start", ["displaced", "mistaken"])
def test_a_recovery_is_recorded_from_where_the_arm_was_left(start):
    env, pictures = ReachEnv("tape_box", image_size=(64, 36)), reach_recipe().pictures
    recording, facts = demos.record_episode(env, ReachDemonstrator(), 1, pictures, start)
    again, _ = demos.record_episode(env, ReachDemonstrator(), 1, pictures, start)
    assert facts["outcome"] == "success" and recording.steps == facts["steps"]
    assert abs(recording.state[0, 0]) > 0.01  # not where the environment puts the arm
    assert same(demos.episode_of(recording), demos.episode_of(again))  # the seed decides everything


@pytest.fixture
def driver(tmp_path):
    checkpoint.save(tmp_path / "driver", gentle(cameras=("front",)), made={})
    return tmp_path / "driver"


def test_an_intervention_is_recorded_from_where_the_policy_is_taken_over(driver, monkeypatch):
    monkeypatch.setattr(interventions, "TAKEN_OVER_STEPS", (10, 20))
    env, pictures = ReachEnv("tape_box", image_size=(64, 36)), reach_recipe().pictures
    arguments = (env, ReachDemonstrator(), 1, pictures, "intervention", 0.0, interventions.Driver(driver, 4, 0.1))
    recording, facts = demos.record_episode(*arguments)
    again, _ = demos.record_episode(*arguments)
    assert facts["outcome"] == "success" and 10 <= facts["taken_over"] < 20 and recording.steps == facts["steps"]
    assert facts["driver"] == checkpoint.read_manifest(driver)["files"][checkpoint.WEIGHTS]
    assert abs(recording.state[0, 1] - 1.2) > 1e-4  # the demonstrator moves joint1 alone: the policy was here before
    assert same(demos.episode_of(recording), demos.episode_of(again))


def test_what_the_policy_can_do_needs_no_intervention_and_what_it_holds_is_not_taken_from_it(driver, monkeypatch):
    monkeypatch.setattr(interventions, "TAKEN_OVER_STEPS", (10, 11))
    env = TiringEnv("tape_box", image_size=(64, 36))
    for fingers_apart, expected in ((0.0, 10), (0.01, None)):  # None: through by itself before it lets go
        reads = ReachEnv.proprioception
        apart = np.float32([0, 0, 0, 0, 0, 0, fingers_apart] + [0] * 7)
        monkeypatch.setattr(TiringEnv, "proprioception", lambda self: reads(self) + apart)  # noqa: B023
        env.reset(1)
        assert interventions.Driver(driver, 6).drive(env, 1) == expected
    recording, facts = demos.record_episode(
        env, ReachDemonstrator(), 1, reach_recipe().pictures, "intervention", driver=interventions.Driver(driver, 6)
    )
    assert recording is None and facts["outcome"] == "not needed"


def test_interventions_of_a_recipe_name_their_driver(driver, tmp_path, monkeypatch):
    monkeypatch.setattr(interventions, "TAKEN_OVER_STEPS", (5, 9))
    collect = Collection(episodes=2, start="intervention", driver=str(driver), driver_horizon=4)
    index = demos.make(replace(reach_recipe(), collect=(collect,)), tmp_path / "made", progress=False)
    assert [entry["start"] for entry in index["episodes"]] == ["intervention"] * 2
    assert "| intervention | 2 |" in demos.summary(index)
    for wrong in (dict(start="intervention"), dict(driver=str(driver))):
        with pytest.raises(ConfigError, match="Collection.driver: the checkpoint that acts first"):
            Collection(**wrong)
    missing = replace(collect, driver=str(tmp_path / "nowhere"))
    with pytest.raises(DatasetError, match="the driver: .*nowhere: is not a checkpoint"):
        demos.make(replace(reach_recipe(), collect=(missing,)), tmp_path / "other", progress=False)


def test_a_disturbance_moves_the_arm_and_is_not_in_the_actions():
    env, pictures = ReachEnv("tape_box", image_size=(64, 36)), reach_recipe().pictures

    def strayed(seed, disturbance_rad):
        """How far (steps, 6) the arm of this environment was from where it had been told to be."""
        recording, _ = demos.record_episode(env, ReachDemonstrator(), seed, pictures, "ready", disturbance_rad)
        return recording.state[1:, :6] - recording.actions[: len(recording.state) - 1, :6]

    calm, first, again = strayed(1, 0.0), strayed(1, 0.004), strayed(1, 0.004)
    assert np.array_equal(first, again) and np.abs(calm).max() < 1e-6
    together = np.concatenate([strayed(seed, 0.004) for seed in (0, 1, 2, 3, 5, 6, 7, 8)])
    assert 0.002 < together.std() < 0.006 and np.abs(together[0]).max() > 0


# -- interrupted, crowded, full -------------------------------------------------------------------------------------


class Killed(BaseException):
    """Death at a chosen moment; nothing in the code under test may catch it."""


def test_a_collection_killed_at_any_moment_leaves_whole_episodes_and_goes_on(tmp_path, monkeypatch):
    recipe = replace(reach_recipe(), collect=(Collection(episodes=2, first_seed=3),))  # seed 4 fails
    whole = demos.make(recipe, tmp_path / "whole", progress=False)
    renames, limit = 0, 0
    rename = os.replace

    def mortal(source, target):
        nonlocal renames
        if renames == limit:
            raise Killed
        renames += 1
        rename(source, target)

    while True:
        directory, renames = tmp_path / f"killed{limit}", 0
        monkeypatch.setattr(os, "replace", mortal)
        try:
            demos.make(recipe, directory, progress=False)
            break
        except Killed:
            pass
        monkeypatch.setattr(os, "replace", rename)
        if (directory / lerobot.INFO).exists():
            index = demos.read_index(directory)
            if index["episodes"]:
                assert len(list(demos.read_episodes(directory))) == len(index["episodes"])
                readable_by_lerobot(directory)
        resumed = demos.make(recipe, directory, progress=False)
        readable_by_lerobot(directory)
        assert demos.data_digest(resumed) == demos.data_digest(whole)
        assert [entry["seed"] for entry in resumed["failures"]] == [4]
        assert not list(directory.rglob(f"*{lerobot.PARTIAL}"))
        limit += 1
    assert limit > 8  # data, episodes, statistics and counts of two episodes, at least


def readable_by_lerobot(directory):
    """LeRobot finds rows by position over all files below data, and believes info.json."""
    info = lerobot.read_info(directory)
    rows = lerobot.read_episode_rows(directory)[: info["total_episodes"]]
    positions = np.concatenate(
        [pq.read_table(path)["index"].to_numpy() for path in sorted((directory / "data").rglob("*.parquet"))]
    )
    assert np.array_equal(positions, np.arange(len(positions)))
    assert len(rows) == info["total_episodes"] and sum(row["length"] for row in rows) == info["total_frames"] <= len(positions)
    assert all(lerobot.read_tasks(directory)[0] == row["tasks"][0] for row in rows)


def test_a_finished_collection_is_left_as_it_is(copy):
    before = {path: path.stat().st_mtime_ns for path in (copy / "data").rglob("*.parquet")}
    demos.make(reach_recipe(), copy, progress=False)
    assert before == {path: path.stat().st_mtime_ns for path in (copy / "data").rglob("*.parquet")}


def test_several_processes_make_the_same_demonstrations(dataset, tmp_path):
    index = demos.make(reach_recipe(), tmp_path / "two", processes=2, progress=False)
    assert demos.data_digest(index) == demos.data_digest(demos.read_index(dataset))
    assert all(same(a, b) for a, b in zip(demos.read_episodes(dataset), demos.read_episodes(tmp_path / "two"), strict=True))


def test_a_full_disk_is_one_sentence_and_keeps_what_was_finished(copy, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    more = replace(reach_recipe(), collect=(Collection(episodes=9),))
    with pytest.raises(DatasetError, match="No space left on device.*free some space"):
        demos.make(more, copy, progress=False)
    monkeypatch.undo()
    assert len(list(demos.read_episodes(copy))) == 8
    assert not list(copy.rglob(f"*{lerobot.PARTIAL}"))
    assert len(demos.make(more, copy, progress=False)["episodes"]) == 9


def test_a_disk_that_fills_up_after_the_rows_leaves_no_rows_behind(copy, monkeypatch):
    write = lerobot.write

    def full(path, data):
        if path.name == lerobot.EPISODES.name and "episodes" in path.parts:
            raise DatasetError(f"{path}: could not be written (No space left on device)")
        write(path, data)

    monkeypatch.setattr(lerobot, "write", full)
    with pytest.raises(DatasetError, match="No space left"):
        demos.make(replace(reach_recipe(), collect=(Collection(episodes=9),)), copy, progress=False)
    assert len(list((copy / "data/chunk-000").iterdir())) == 8


def test_two_writers_do_not_share_a_dataset(copy):
    with demos.DemonstrationWriter(copy, reach_pictures()), pytest.raises(DatasetError, match="another process is writing"):
        demos.make(reach_recipe(), copy, progress=False)


def test_demonstrations_of_another_picture_size_are_not_mixed(copy):
    recipe = reach_recipe()
    with pytest.raises(DatasetError, match="pictures"):
        demos.make(replace(recipe, pictures=replace(recipe.pictures, width=64)), copy, progress=False)


def test_a_dataset_of_another_program_is_not_added_to(copy):
    (copy / demos.HEADER).unlink()
    with pytest.raises(DatasetError, match="choose another directory"):
        demos.make(reach_recipe(), copy, progress=False)


def reach_pictures():
    from dataclasses import asdict

    return asdict(reach_recipe().pictures)


# -- bad data -------------------------------------------------------------------------------------------------------


def test_a_directory_without_demonstrations_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="demos make"):
        list(demos.read_episodes(tmp_path))
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DatasetError, match="older format"):
        demos.read_index(tmp_path)


def test_an_empty_dataset_is_refused(tmp_path):
    with demos.DemonstrationWriter(tmp_path, reach_pictures()):
        pass
    with pytest.raises(DatasetError, match="is empty"):
        list(demos.read_episodes(tmp_path))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda i: i.update(codebase_version="v2.1"), "v2.1, expected v3.0"),
        (lambda i: i.update(fps=30), "30 rows a second"),
        (lambda i: i.pop("features"), "no features"),
        (lambda i: i["features"].pop("action"), "'action' is missing"),
        (lambda i: i["features"]["action"].update(names=list(JOINTS[::-1])), "joint order"),
        (lambda i: i["features"]["action"].update(names=None), "joint order"),
        (lambda i: i["features"]["observation.state"].update(shape=[7], names=list(JOINTS)), "joint order"),
        (lambda i: i["features"]["observation.images.front"].update(dtype="video"), "use_videos=False"),
        (lambda i: i["features"].pop("observation.images.front"), "no pictures of camera 'front'"),
        (lambda i: i.update(data_path="data/{episode}.parquet"), "data_path"),
    ],
)
def test_a_dataset_of_another_kind_is_refused(copy, change, words):
    change_json(copy / lerobot.INFO, change)
    with pytest.raises(DatasetError, match=words):
        list(demos.read_episodes(copy, cameras=("front",)))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"joints": ["gripper"]}, "joint order"),
        ({"units": {"joints": "degree", "gripper": "m"}}, "degree"),
        ({"format_version": 7}, "version"),
    ],
)
def test_other_units_are_refused(copy, change, words):
    change_json(copy / demos.HEADER, lambda header: header.update(change))
    with pytest.raises(DatasetError, match=words):
        list(demos.read_episodes(copy))


@pytest.mark.parametrize("file", [lerobot.INFO, lerobot.TASKS, lerobot.EPISODES, demos.HEADER, "data/chunk-000/file-000.parquet"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "random"])
def test_a_damaged_file_is_named(copy, file, damage):
    path = copy / file
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "emptied": b"", "random": os.urandom(2000)}[damage])
    with pytest.raises(DatasetError, match=path.name):
        list(demos.read_episodes(copy))


@pytest.mark.parametrize("column", ["observation.images.front.bytes", "observation.state.list.element", "action.list.element"])
def test_a_flipped_bit_is_found(copy, column):
    path = copy / "data/chunk-000/file-003.parquet"
    group = pq.read_metadata(path).row_group(0)
    chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == column)
    data = bytearray(path.read_bytes())
    data[(chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="file-003"):
        list(demos.read_episodes(copy))


def test_a_missing_file_is_named(copy):
    (copy / "data/chunk-000/file-002.parquet").unlink()
    with pytest.raises(DatasetError, match="file-002"):
        list(demos.read_episodes(copy))


def scaled(factor):
    return lambda cells: [[value * factor for value in cell] for cell in cells]


@pytest.mark.parametrize(
    "column, change, words",
    [
        ("observation.images.front", None, "observation.images.front' is missing"),
        ("action", None, "'action' is missing"),
        ("observation.images.front", lambda cells: [{"bytes": None, "path": None}] + cells[1:], "pictures cannot be read"),
        ("observation.images.front", lambda cells: [{"bytes": b"no PNG", "path": None}] + cells[1:], "pictures cannot be read"),
        ("observation.images.front", lambda cells: [1.0] * len(cells), "holds no pictures"),
        ("observation.state", lambda cells: [[float("nan")] * 14] + cells[1:], "NaN"),
        ("observation.state", lambda cells: [None] + cells[1:], "empty cells"),
        ("observation.state", lambda cells: [[0.0] * 13] + cells[1:], "different lengths"),
        ("observation.state", scaled(57.3), "degrees"),
        ("action", scaled(57.3), "degrees"),
        ("action", lambda cells: [cell[:6] for cell in cells], "do not belong together"),
        ("action", lambda cells: [cell[:6] + [35.0] for cell in cells], "millimetres"),
        ("observation.objects", lambda cells: [[float("inf")] * 14] + cells[1:], "infinity"),
        ("observation.objects", lambda cells: [cell[:6] for cell in cells], "6 numbers a row"),
        ("action", lambda cells: [[value + 1e-3 for value in cell] for cell in cells], "SHA-256"),
        ("episode_index", lambda cells: cells[:-1] + [77], "rows of episode 0"),
    ],
)
def test_a_bad_episode_is_refused_with_its_reason(copy, column, change, words):
    def edit(columns):
        columns.update({column: change(columns[column])}) if change else columns.pop(column)

    change_episode(copy, edit)
    with pytest.raises(DatasetError, match=words) as caught:
        list(demos.read_episodes(copy))
    assert "file-000.parquet" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda facts: facts.update(picture_steps=facts["picture_steps"][::-1]), "increase"),
        (lambda facts: facts.update(steps=10_000), "steps until success"),
        (lambda facts: facts.update(sha256="0" * 64), "SHA-256"),
        (lambda facts: facts.update(instruction="do something else"), "SHA-256"),
    ],
)
def test_facts_that_do_not_fit_the_rows_are_refused(copy, edit, words):
    change_facts(copy, edit)
    with pytest.raises(DatasetError, match=words):
        list(demos.read_episodes(copy))


def test_training_without_pictures_reads_none(dataset):
    episode = next(demos.read_episodes(dataset, cameras=()))
    assert episode.images == {} and len(episode.state) > 0


# -- command line ---------------------------------------------------------------------------------------------------


def test_info_says_what_a_dataset_holds(dataset, capsys):
    parser = argparse.ArgumentParser()
    demos.add_arguments(parser)
    assert demos.main(parser.parse_args(["info", str(dataset)])) == 0
    said = capsys.readouterr().out
    assert "| tape_box | standard | hesitant | ready | 8 | 9 |" in said and "8 episodes are intact" in said
    assert "front 32x18 (image)" in said and demos.data_digest(demos.read_index(dataset)) in said


# -- other programs -------------------------------------------------------------------------------------------------


def test_a_dataset_without_our_facts_takes_defaults(dataset, copy):
    """As another LeRobot writer leaves it: several episodes in a file, none of our columns."""
    (copy / demos.HEADER).unlink()
    files = sorted((copy / "data/chunk-000").iterdir())
    joined = pa.concat_tables([pq.read_table(path) for path in files])
    for path in files:
        path.unlink()
    pq.write_table(joined, files[0])
    episodes = pq.read_table(copy / lerobot.EPISODES)
    zero = pa.array([0] * len(episodes), pa.int64())
    episodes = episodes.drop_columns([lerobot.FACTS, "data/file_index"]).append_column("data/file_index", zero)
    pq.write_table(episodes, copy / lerobot.EPISODES)
    ours = sorted(demos.read_episodes(dataset), key=lambda episode: episode.actions.tobytes())
    theirs = sorted(demos.read_episodes(copy), key=lambda episode: episode.actions.tobytes())
    for mine, other in zip(ours, theirs, strict=True):
        assert np.array_equal(mine.state, other.state) and np.array_equal(mine.actions, other.actions)
        newest = [np.searchsorted(e.image_steps, np.arange(len(e.state)), side="right") - 1 for e in (mine, other)]
        assert np.array_equal(mine.images["front"][newest[0]], other.images["front"][newest[1]])
        assert other.task == other.instruction == "move to the dot"
    assert len(demos.data_digest(demos.read_index(copy))) == 64


def lerobot_dataset():
    """LeRobot's own class; the check runs wherever it is installed."""
    pytest.importorskip("lerobot", reason="LeRobot is no dependency; install lerobot to check against it")
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset


def test_lerobot_reads_our_rows_to_the_bit(dataset):
    horizon = 15
    theirs = lerobot_dataset()("local/reach", root=dataset, delta_timestamps={"action": [i / 20 for i in range(horizon)]})
    index = demos.read_index(dataset)
    episodes = {episode.name: episode for episode in demos.read_episodes(dataset)}
    assert theirs.num_episodes == len(episodes)
    for entry in index["episodes"]:
        ours, first = episodes[entry["name"]], entry["row"]["dataset_from_index"]
        for step in range(len(ours.state)):
            row = theirs[first + step]
            newest = np.searchsorted(ours.image_steps, step, side="right") - 1
            picture = (row["observation.images.front"].numpy() * 255).round().astype(np.uint8).transpose(1, 2, 0)
            places = np.minimum(step + np.arange(horizon), len(ours.actions) - 1)
            assert np.array_equal(picture, ours.images["front"][newest])
            assert np.array_equal(row["observation.state"].numpy(), ours.state[step])
            assert np.array_equal(row["action"].numpy(), ours.actions[places])
            assert row["action_is_pad"].tolist() == (step + np.arange(horizon) >= len(ours.actions)).tolist()
            assert row["task"] == ours.instruction


def test_we_read_the_rows_that_lerobot_writes(dataset, tmp_path):
    ours = list(demos.read_episodes(dataset))[:3]
    kind = {name: {**feature, "shape": tuple(feature["shape"])} for name, feature in demos.features(["front"], 32, 18).items()}
    theirs = lerobot_dataset().create("local/other", 20, kind, root=tmp_path / "other", use_videos=False)
    for episode in ours:
        for step, action in enumerate(episode.actions):
            now = min(step, len(episode.state) - 1)
            theirs.add_frame(
                {
                    "observation.images.front": episode.images["front"][
                        np.searchsorted(episode.image_steps, now, side="right") - 1
                    ],
                    "observation.state": episode.state[now],
                    "observation.objects": np.nan_to_num(episode.objects[now]).ravel(),
                    "action": action,
                    "next.success": np.array([step >= len(episode.state) - 1]),
                    "next.done": np.array([step == len(episode.actions) - 1]),
                    "task": episode.instruction,
                }
            )
        theirs.save_episode()
    theirs.finalize()
    read = list(demos.read_episodes(tmp_path / "other"))
    for mine, other in zip(ours, read, strict=True):
        assert np.array_equal(mine.state, other.state) and np.array_equal(mine.actions, other.actions)
        assert np.array_equal(mine.objects, other.objects, equal_nan=True) and mine.instruction == other.instruction
        newest = [np.searchsorted(e.image_steps, np.arange(len(e.state)), side="right") - 1 for e in (mine, other)]
        assert np.array_equal(mine.images["front"][newest[0]], other.images["front"][newest[1]])
