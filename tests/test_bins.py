"""The 256 action bins: the published formulas, exactly."""

import numpy as np
import pytest
import torch

from policytrim_ros.policies.bins import BINS, CENTRES, padded, to_tokens, to_values

VOCABULARY = 32000
EDGES = np.linspace(-1, 1, 256)
BIN_CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


def published_tokens(x):
    return VOCABULARY - np.digitize(np.clip(x, -1, 1), EDGES)


def published_values(tokens):
    return BIN_CENTRES[np.clip(VOCABULARY - tokens - 1, 0, len(BIN_CENTRES) - 1)]


def numbers():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.uniform(-1.2, 1.2, 10_000), EDGES, BIN_CENTRES, [-1, 0, 1, -5, 5]]).astype(np.float32)


def test_tokens_are_the_published_ones():
    x = numbers()
    assert np.array_equal(to_tokens(torch.from_numpy(x), VOCABULARY).numpy(), published_tokens(x.astype(np.float64)))


def test_values_are_the_published_ones():
    tokens = torch.arange(VOCABULARY - 300, VOCABULARY + 64)
    np.testing.assert_array_equal(to_values(tokens, VOCABULARY).numpy(), published_values(tokens.numpy()).astype(np.float32))


def test_an_action_comes_back_to_within_half_a_bin():
    x = torch.from_numpy(numbers()).clamp(-1, 1)
    assert (to_values(to_tokens(x, VOCABULARY), VOCABULARY) - x).abs().max() <= 1 / 255 + 1e-6


def test_every_centre_is_its_own_token():
    tokens = to_tokens(CENTRES, VOCABULARY)
    assert len(set(tokens.tolist())) == 255
    assert torch.equal(to_tokens(to_values(tokens, VOCABULARY), VOCABULARY), tokens)


def test_action_tokens_are_the_last_ids_of_the_text():
    tokens = to_tokens(torch.linspace(-2, 2, 9999), VOCABULARY)
    assert (tokens.min().item(), tokens.max().item()) == (VOCABULARY - BINS, VOCABULARY - 1)


@pytest.mark.parametrize("vocabulary, rows", [(32000, 32064), (320, 384), (319, 320), (300, 320)])
def test_the_embedding_is_padded_to_a_multiple_of_64_with_room_for_a_padding_token(vocabulary, rows):
    assert padded(vocabulary) == rows
