"""Episodes in memory become training samples: which picture, state and chunk belong together, and what augmentation may do."""

import numpy as np
import pytest
from policy_samples import reach_recipe
from scipy.spatial.transform import Rotation

from policytrim_ros.core.kinematics import tool
from policytrim_ros.core.types import READY
from policytrim_ros.policies.objects import object_features
from policytrim_ros.training.demos import DatasetError, Episode
from policytrim_ros.training.samples import Samples, move


def episode(seed, steps=9, tail=4, size=(32, 18), objects=1, task="tape_box", instruction="move to the dot"):
    """An episode of noise, a picture every second step."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(0, 256, (-(-steps // 2), size[1], size[0], 3), dtype=np.uint8)
    poses = np.full((steps, 2, 7), np.nan, np.float32)
    turns = rng.normal(size=(steps, objects, 4))
    poses[:, :objects] = np.concatenate(
        [rng.uniform(0.1, 0.4, (steps, objects, 3)), turns / np.linalg.norm(turns, axis=-1, keepdims=True)], -1
    )
    return Episode(
        f"{task}-{seed}",
        instruction,
        task,
        {"front": pictures, "wrist": 255 - pictures},
        np.arange(0, steps, 2, dtype=np.int32),
        (np.tile(READY, 2) + rng.normal(0, 0.1, (steps, 14))).astype(np.float32),
        (READY + rng.normal(0, 0.1, (steps + tail, 7))).astype(np.float32),
        poses,
    )


@pytest.fixture(scope="module")
def episodes():
    return [episode(seed, steps) for seed, steps in enumerate((9, 12, 7))]


def test_a_sample_is_a_picture_a_state_and_the_chunk_that_followed(episodes):
    samples = Samples(episodes, ("front", "wrist"), horizon=6)
    batch = samples.plain(np.array([9 + 3]))  # step 3 of the second episode
    assert np.array_equal(batch.actions[0].numpy(), episodes[1].actions[3:9])
    assert np.array_equal(batch.state[0].numpy(), episodes[1].state[3])
    assert np.array_equal(batch.pictures[0, 0].numpy(), episodes[1].images["front"][1])  # taken at step 2: the newest there was
    assert np.array_equal(batch.pictures[0, 1].numpy(), episodes[1].images["wrist"][1])
    assert batch.objects is None and batch.instructions == ["move to the dot"]


def test_objects_are_placed_where_they_were_when_the_picture_was_taken(episodes):
    batch = Samples(episodes, ("front",), horizon=6).plain(np.array([9 + 3]))
    base, pose = episodes[1].objects[2, 0, :3].astype(float), tool(episodes[1].state[2, :6])
    expected = np.concatenate([base, pose[:3, :3].T @ (base - pose[:3, 3])]) * 10
    assert np.allclose(batch.places[0, 0, :6].numpy(), expected, atol=1e-5)
    turned = Rotation.from_quat(np.roll(episodes[1].objects[2, 0, 3:], -1)).as_matrix()  # scipy has w last
    directions = [turned[:, 0], turned[:, 2], pose[:3, :3].T @ turned[:, 0], pose[:3, :3].T @ turned[:, 2]]
    assert np.allclose(batch.places[0, 0, 6:].numpy(), np.concatenate(directions), atol=1e-5)
    assert np.isnan(batch.places[0, 1].numpy()).all()  # there is no second object


def test_a_chunk_never_reaches_into_the_next_episode(episodes):
    samples = Samples(episodes, ("front",), horizon=60)
    assert np.array_equal(samples.chunk(np.array([0]))[0, -1], episodes[0].actions[-1])


def test_pixels_are_the_pictures_between_minus_one_and_one(episodes):
    batch = Samples(episodes, ("front", "wrist"), horizon=6).plain(np.arange(4))
    assert np.allclose(batch.pixels().numpy(), batch.pictures.permute(0, 1, 4, 2, 3).numpy() / 127.5 - 1, atol=1e-6)


def test_augmentation_keeps_the_setpoint_and_never_looks_ahead_or_into_another_episode(episodes):
    samples, index = Samples(episodes, ("front",), horizon=6), np.arange(28)
    training = reach_recipe(shift_px=(0,), brightness=0.1).training
    for seed in range(20):
        batch = samples.augmented(index, np.random.default_rng(seed), training)
        assert np.array_equal(batch.state[:, 7:].numpy(), samples.state[:, 7:])
        for row in index:
            mine = episodes[samples.episode[row]]
            seen = [
                k for k, picture in enumerate(mine.images["front"]) if np.array_equal(picture, batch.pictures[row, 0].numpy())
            ]
            assert len(seen) == 1 and max(0, samples.step[row] - 3) <= mine.image_steps[seen[0]] <= samples.step[row]
        assert -1 <= batch.pixels().min() and batch.pixels().max() <= 1


def test_rows_of_a_draw_are_the_rows_of_its_batch(episodes):
    samples, training = Samples(episodes, ("front", "wrist"), 6, object_slots=2), reach_recipe(shift_px=(2, 1)).training
    draw = samples.draw(np.arange(28), np.random.default_rng(0), training)
    whole, part = samples.batch(draw), samples.batch(draw.rows(slice(5, 9)))
    for name in ("pictures", "light", "state", "actions", "objects", "places"):
        assert np.array_equal(getattr(whole, name)[5:9].numpy(), getattr(part, name).numpy(), equal_nan=True), name


def test_objects_are_seen_from_the_joint_state_that_the_policy_is_shown(episodes):
    samples = Samples(episodes, (), 6, object_slots=1)
    batch = samples.augmented(np.arange(28), np.random.default_rng(0), reach_recipe().training)
    assert batch.pictures is None and batch.places is None and batch.pixels() is None
    expected = object_features(samples.objects[:, :1], batch.state.numpy())
    assert batch.objects.shape == (28, 1, 13) and np.allclose(batch.objects.numpy(), expected, atol=1e-6)


def test_a_shift_moves_the_picture_and_repeats_its_edge():
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            moved = np.empty_like(picture)
            move(picture, dy, dx, moved)
            rows, columns = np.clip(np.arange(5) + dy, 0, 4), np.clip(np.arange(7) + dx, 0, 6)
            assert np.array_equal(moved, picture[rows[:, None], columns])


def test_an_idle_joint_has_a_range_above_its_noise(episodes):
    normal = Samples(episodes, (), horizon=6).normalisation()["actions"]
    assert np.asarray(normal.q99).shape == (6, 7)
    assert np.min(np.asarray(normal.q99) - np.asarray(normal.q01)) > 0.009


def test_bad_sets_of_episodes_are_refused(episodes):
    with pytest.raises(DatasetError, match="no episode"):
        Samples([], ("front",), 6)
    with pytest.raises(DatasetError, match="several sizes"):
        Samples([*episodes, episode(7, size=(48, 27))], ("front",), 6)
    with pytest.raises(DatasetError, match="tape_box-9: holds no object poses"):
        Samples([*episodes, episode(9, objects=0)], (), 6, object_slots=2)
