"""What holds for every policy: its output is in the robot's units, a row stands for itself, its input is checked."""

import numpy as np
import pytest
import torch
from policy_samples import SENTENCES, observation, policy

from policytrim_ros.policies.pictures import resize_image
from policytrim_ros.policies.policy import Observation
from policytrim_ros.policies.tokenizer import encode, train_tokenizer


@pytest.fixture(scope="module")
def flow():
    torch.manual_seed(0)
    return policy()


def test_a_chunk_is_absolute_and_in_the_robot_s_units(flow):
    seen = observation(batch=3)
    chunk = flow.predict(seen, seeds=[0, 1, 2])
    assert chunk.shape == (3, 6, 7) and chunk.dtype == np.float32
    assert np.all((0 <= chunk[..., 6]) & (chunk[..., 6] <= 0.07))
    moved = Observation(seen.images, seen.state + np.r_[np.zeros(7), np.full(6, 0.2), 0].astype(np.float32), seen.instruction)
    again = flow.predict(moved, seeds=[0, 1, 2])
    assert abs(float((again - chunk)[..., :6].mean()) - 0.2) < 0.1  # follows the setpoint: relative inside, absolute outside


def test_model_units_and_robot_units_are_inverse(flow):
    state, actions = torch.randn(2, 14), torch.rand(2, 6, 7) * 0.07
    torch.testing.assert_close(flow.to_robot(flow.to_model(actions, state), state), actions)


def test_a_seed_fixes_the_chunk_and_another_changes_it(flow):
    seen = observation()
    assert np.array_equal(flow.predict(seen, seeds=[3, 3]), flow.predict(seen, seeds=[3, 3]))
    assert not np.array_equal(flow.predict(seen, seeds=[3, 3]), flow.predict(seen, seeds=[4, 4]))


def test_the_chunk_of_a_row_does_not_depend_on_the_rest_of_the_batch(flow):
    seen = observation(batch=2)
    alone = Observation({k: v[1:] for k, v in seen.images.items()}, seen.state[1:], seen.instruction[1:])
    np.testing.assert_allclose(flow.predict(seen, seeds=[5, 6])[1:], flow.predict(alone, seeds=[6]), atol=1e-5)


def test_pictures_and_words_matter(flow):
    seen = observation()
    dark = Observation({k: np.zeros_like(v) for k, v in seen.images.items()}, seen.state, seen.instruction)
    other = Observation(seen.images, seen.state, seen.instruction[::-1])
    assert not np.allclose(flow.predict(dark, seeds=[0, 0]), flow.predict(seen, seeds=[0, 0]))
    assert not np.allclose(flow.predict(other, seeds=[0, 0]), flow.predict(seen, seeds=[0, 0]))


def test_a_missing_camera_is_named(flow):
    with pytest.raises(ValueError, match="'wrist'"):
        flow.predict(observation(cameras=("front",)))


@pytest.mark.parametrize(
    "images, state, instruction, words",
    [
        ({"front": np.zeros((1, 4, 4, 3), np.float32)}, np.zeros((1, 14)), ["x"], "uint8"),
        ({"front": np.zeros((2, 4, 4, 3), np.uint8)}, np.zeros((1, 14)), ["x"], "front"),
        ({}, np.zeros((1, 7)), ["x"], "14"),
        ({}, np.full((1, 14), np.nan), ["x"], "NaN"),
        ({}, np.zeros((1, 14)), "x", "list"),
    ],
)
def test_a_malformed_observation_is_refused(images, state, instruction, words):
    with pytest.raises(ValueError, match=words):
        Observation(images, state, instruction)


def test_an_instruction_of_unknown_words_is_refused(flow):
    with pytest.raises(ValueError, match="no word"):
        flow.words(["zzz qqq"])


def test_words_survive_case_and_padding():
    tokenizer = train_tokenizer(SENTENCES)
    ids, mask = encode(tokenizer, ["Stand the MUG upright", SENTENCES[0]])
    assert mask.sum(1).tolist() == [5, 7] and ids.shape == (2, 7)
    assert tokenizer.decode(ids[0].tolist()) == "stand the mug upright"


def test_a_picture_of_the_right_size_is_not_touched():
    picture = np.zeros((18, 32, 3), np.uint8)
    assert resize_image(picture, 32, 18) is picture
    assert resize_image(np.full((36, 64, 3), 7, np.uint8), 32, 18).shape == (18, 32, 3)
