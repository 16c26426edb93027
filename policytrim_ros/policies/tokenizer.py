"""Words to numbers without a network: a word-level tokenizer trained on the instructions and shipped with the checkpoint."""

from __future__ import annotations

from typing import Iterable, Sequence

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

PAD, UNKNOWN, BEGIN, IMAGE = "[PAD]", "[UNK]", "[BOS]", "[IMAGE]"


def train_tokenizer(instructions: Iterable[str]) -> Tokenizer:
    """A lower-casing word-level tokenizer over the words of ``instructions``; each sentence starts with [BOS]."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [PAD, UNKNOWN, BEGIN, IMAGE]
    tokenizer.train_from_iterator(
        sorted(set(instructions)), trainers.WordLevelTrainer(special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, tokenizer.token_to_id(BEGIN))]
    )
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(PAD), pad_token=PAD)
    return tokenizer


def encode(tokenizer: Tokenizer, instructions: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (B, L) int64 and attention mask (B, L) int64, padded on the right to the longest sentence.

    Raises ValueError for a sentence without a single known word: the policy could not tell what is meant.
    """
    encodings = tokenizer.encode_batch(list(instructions))
    ids = np.array([encoding.ids for encoding in encodings], dtype=np.int64)
    mask = np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64)
    meaningless = {tokenizer.token_to_id(token) for token in (PAD, UNKNOWN, BEGIN)}
    for sentence, row in zip(instructions, ids):
        if set(row.tolist()) <= meaningless:
            raise ValueError(f"instruction '{sentence}' has no word that this checkpoint knows")
    return ids, mask
