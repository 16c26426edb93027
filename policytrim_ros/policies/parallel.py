"""OpenVLA-OFT (Kim et al. 2025): the whole chunk in one forward pass.

Behind the prompt stand H * 7 placeholders without content; every position sees every other, and the hidden state before
each placeholder says its action component. Two heads: tokens (256 bins, with probabilities: the one for reinforcement
learning) and regression (L1, deterministic).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from policytrim_ros.core.config import setting
from policytrim_ros.core.contract import Contract
from policytrim_ros.policies.policy import ACTIONS, Inputs
from policytrim_ros.policies.prismatic import Prefix, PrismaticConfig, PrismaticPolicy, last_token

STOP = "</s>"


@dataclass(frozen=True)
class ParallelConfig(PrismaticConfig):
    """`PrismaticConfig` with the head and the placeholders."""

    head: str = setting("tokens", "how actions are read: tokens (256 bins) or regression (L1)", choices=("tokens", "regression"))
    placeholders: str = setting(
        "zero",
        "what stands at the action positions: zero (as published: told apart by position alone) or learned (ours: an embedding"
        " each, which a small network trained from scratch finds much easier)",
        choices=("zero", "learned"),
    )


class RegressionHead(nn.Module):
    """Hidden states (B, H, 7 * D) -> actions (B, H, 7); the published residual network of two blocks."""

    def __init__(self, hidden: int, blocks: int = 2):
        super().__init__()
        self.model = nn.Module()
        self.model.layer_norm1, self.model.fc1 = nn.LayerNorm(ACTIONS * hidden), nn.Linear(ACTIONS * hidden, hidden)
        self.model.mlp_resnet_blocks = nn.ModuleList(_ResidualBlock(hidden) for _ in range(blocks))
        self.model.layer_norm2, self.model.fc2 = nn.LayerNorm(hidden), nn.Linear(hidden, ACTIONS)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.model.fc1(self.model.layer_norm1(hidden)))
        for block in self.model.mlp_resnet_blocks:
            x = block(x)
        return self.model.fc2(self.model.layer_norm2(x))


class _ResidualBlock(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.ffn(x)


class ParallelPolicy(PrismaticPolicy):
    """Pictures, joint state and an instruction in; H actions out of one forward pass."""

    family = "parallel"

    def __init__(self, config: ParallelConfig, contract: Contract, tokenizer):
        super().__init__(config, contract, tokenizer)
        if config.placeholders == "learned":
            self.placeholders = nn.Parameter(0.02 * torch.randn(config.horizon * ACTIONS, config.hidden))
        if config.head == "regression":
            self.action_head = RegressionHead(config.hidden)

    def action_hidden(self, prefix: Prefix, *, causal: bool = False) -> torch.Tensor:
        """(B, H, 7, D): the hidden state that speaks of each action component.

        ``causal`` (never used to act) makes the first one that of an autoregressive model with these weights.
        """
        batch, count = len(prefix.tokens), self.config.horizon * ACTIONS
        if self.config.placeholders == "learned":
            slots = self.placeholders.expand(batch, -1, -1)
        else:
            slots = prefix.tokens.new_zeros(batch, count, self.config.hidden)
        slots = torch.cat([slots, self._stop(batch)], dim=1)
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(batch, slots.shape[1])], dim=1)
        hidden = self.transform(torch.cat([prefix.tokens, slots], dim=1), mask, causal=causal)
        prompt_end = last_token(hidden, prefix.mask)
        first = prefix.tokens.shape[1]
        hidden = torch.cat([prompt_end[:, None], hidden[:, first : first + count - 1]], dim=1)
        return hidden.unflatten(1, (self.config.horizon, ACTIONS))

    def action_logits(self, prefix: Prefix, tokens: torch.Tensor | None = None) -> torch.Tensor:
        return self.bin_logits(self.action_hidden(prefix))

    def act(self, inputs: Inputs, generators=None, temperature: float = 1.0, correlation: float = 0.0):
        self._needs_tokens()
        logits = self.action_logits(self.encode(inputs))
        tokens = self._draw(logits, self._chances(inputs, generators, correlation), temperature)
        return tokens, self.values_of(tokens), self._log_prob(logits, tokens, temperature)

    def log_prob(self, inputs: Inputs, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        self._needs_tokens()
        return super().log_prob(inputs, tokens, temperature)

    def losses(self, inputs: Inputs, actions, *, generator, repeats: int = 1, places=None) -> dict[str, torch.Tensor]:
        """ "action": cross-entropy of one token (nat), or the mean absolute error of the regression head."""
        if self.config.head == "tokens":
            return super().losses(inputs, actions, generator=generator, repeats=repeats, places=places)
        prefix = self.encode(inputs)
        return {
            "action": F.l1_loss(self.regress(prefix), self.to_model(actions, inputs.state)),
            **self.locating(prefix, places),
        }

    def regress(self, prefix: Prefix) -> torch.Tensor:
        """(B, H, 7) normalised actions of the regression head."""
        return self.action_head(self.action_hidden(prefix).flatten(2))

    def sample(self, inputs: Inputs, generators=None, steps: int | None = None) -> torch.Tensor:
        if self.config.head == "regression":
            return self.regress(self.encode(inputs))
        return super().sample(inputs, generators, steps)

    def _needs_tokens(self) -> None:
        if self.config.head != "tokens":
            raise ValueError("the regression head is deterministic: it has no log-probability; use head = tokens")

    def _stop(self, batch: int) -> torch.Tensor:
        """The embedded end-of-sentence token where the tokenizer has one (Llama's does): it stood there in training."""
        stop = self.tokenizer.token_to_id(STOP)
        embedding = self.language_model.get_input_embeddings().weight
        return embedding[[] if stop is None else [stop]].expand(batch, -1, -1)
