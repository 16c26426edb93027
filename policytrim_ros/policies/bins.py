"""Actions as words: the 256 bins of OpenVLA (Kim et al. 2024), which borrow the last ids of the text vocabulary.

    edges = linspace(-1, 1, 256)      centres = (edges[:-1] + edges[1:]) / 2      255 of them
    id = vocabulary - digitize(x, edges)            x in [-1, 1], so ids vocabulary - 256 .. vocabulary - 1
    x  = centres[clip(vocabulary - id - 1, 0, 254)]

A larger x has a smaller id; the two smallest ids mean the same action. ``vocabulary`` counts the text ids before padding:
the network itself has `padded` rows, 32000 -> 32064 for Llama 2.
"""

from __future__ import annotations

import torch

BINS = 256
PADDING_MULTIPLE = 64

EDGES = torch.linspace(-1, 1, BINS, dtype=torch.float64)
CENTRES = (EDGES[:-1] + EDGES[1:]) / 2


def to_tokens(x: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Normalised actions -> ids of the same shape (int64); what lies outside [-1, 1] becomes the nearest bin."""
    edges = EDGES.to(x.device)
    return vocabulary - torch.bucketize(x.double().clamp(-1.0, 1.0), edges, right=True)


def to_values(tokens: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Ids -> centres of their bins (float32); an id that is no action token becomes the nearest bin, as published."""
    index = (vocabulary - tokens - 1).clamp(0, BINS - 2)
    return CENTRES.to(tokens.device)[index].float()


def padded(vocabulary: int) -> int:
    """Rows of the network's embedding: the text ids and a padding token, filled up to a multiple of 64."""
    return (vocabulary // PADDING_MULTIPLE + 1) * PADDING_MULTIPLE
