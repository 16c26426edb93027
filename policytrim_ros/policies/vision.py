"""A small vision tower: one convolutional network a camera, read out by spatial softmax into a few tokens.

It stands where PI0 has SigLIP. A keypoint is the expected image position under a softmax over one feature map, so that
a place in the picture becomes a number directly (Levine et al. 2016); that is what lets the tower learn in minutes.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPooling


class KeypointNet(nn.Module):
    """(B, 3, h, w) in [-1, 1] -> (B, 3 * keypoints): x, y in [-1, 1] and a scaled expected activation of each keypoint."""

    def __init__(self, keypoints: int, channels: tuple[int, int, int] = (16, 32, 64)):
        super().__init__()
        first, second, third = channels
        self.maps = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(third, keypoints, 1),
        )

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = self.maps(pixels)
        height, width = maps.shape[-2:]
        logits = maps.flatten(2)
        weights = logits.softmax(-1)
        x = torch.linspace(-1, 1, width, device=maps.device, dtype=maps.dtype).repeat(height)
        y = torch.linspace(-1, 1, height, device=maps.device, dtype=maps.dtype).repeat_interleave(width)
        return torch.cat([weights @ x, weights @ y, 0.1 * (weights * logits).sum(-1)], dim=-1)


class KeypointTower(nn.Module):
    """Pictures of all cameras -> tokens; camera i has a network of its own.

    ``forward`` has the signature PI0 expects of its vision tower: (B * cameras, 3, h, w) -> last_hidden_state
    (B * cameras, tokens, hidden).
    """

    def __init__(self, cameras: int, keypoints: int, tokens: int, hidden: int):
        super().__init__()
        self.cameras, self.tokens, self.hidden = cameras, tokens, hidden
        self.nets = nn.ModuleList(KeypointNet(keypoints) for _ in range(cameras))
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(3 * keypoints, 256), nn.GELU(), nn.Linear(256, tokens * hidden)) for _ in range(cameras)
        )

    def keypoints(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, cameras, 3, h, w) -> (B, cameras, 3 * keypoints)."""
        return torch.stack([net(pixels[:, index]) for index, net in enumerate(self.nets)], dim=1)

    def embed(self, keypoints: torch.Tensor) -> torch.Tensor:
        """(B, cameras, 3 * keypoints) -> (B, cameras * tokens, hidden)."""
        tokens = [head(keypoints[:, index]).unflatten(-1, (self.tokens, self.hidden)) for index, head in enumerate(self.heads)]
        return torch.cat(tokens, dim=1)

    def forward(self, pixel_values: torch.Tensor, **_) -> BaseModelOutputWithPooling:
        pixels = pixel_values.unflatten(0, (-1, self.cameras))
        return BaseModelOutputWithPooling(
            last_hidden_state=self.embed(self.keypoints(pixels)).reshape(-1, self.tokens, self.hidden)
        )
