"""OpenVLA (Kim et al. 2024): one action a call, its seven tokens spoken one after the other.

Each token is drawn given those before it, with a cache of keys and values; a forward pass over all of them
(teacher forcing) gives the same probabilities at once, which is how it is trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from policytrim_ros.core.config import setting
from policytrim_ros.policies.policy import ACTIONS, Inputs
from policytrim_ros.policies.prismatic import Prefix, PrismaticConfig, PrismaticPolicy, attention, last_token


@dataclass(frozen=True)
class AutoregressiveConfig(PrismaticConfig):
    """`PrismaticConfig` with a horizon of one."""

    horizon: int = setting(1, "prediction horizon H: this family decides one action at a time", low=1, high=1)


class AutoregressivePolicy(PrismaticPolicy):
    """Pictures, joint state and an instruction in; one action out, token by token."""

    family = "autoregressive"

    def action_logits(self, prefix: Prefix, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 1, 7, 256), each component given the ``tokens`` (B, 1, 7) before it, in one forward pass."""
        spoken = self.language_model.get_input_embeddings()(tokens.flatten(1)[:, :-1])
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(spoken.shape[:2])], dim=1)
        hidden = self.transform(torch.cat([prefix.tokens, spoken], dim=1), mask, causal=True)
        hidden = torch.cat([last_token(hidden, prefix.mask)[:, None], hidden[:, prefix.tokens.shape[1] :]], dim=1)
        return self.bin_logits(hidden)[:, None]

    def act(self, inputs: Inputs, generators=None, temperature: float = 1.0, correlation: float = 0.0):
        """``correlation`` is of the actions of a chunk, and this one has a single action: it changes nothing."""
        prefix, chances = self.encode(inputs), self._chances(inputs, generators).flatten(1)
        mask, llama, dtype = prefix.mask, self.language_model.model, prefix.tokens.dtype
        out = llama(
            inputs_embeds=prefix.tokens,
            attention_mask=attention(mask, True, dtype),
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            use_cache=True,
        )
        logits = [self.bin_logits(last_token(out.last_hidden_state, mask))]
        tokens = [self._draw(logits[0], chances[:, 0], temperature)]
        for component in range(1, ACTIONS):
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            out = llama(
                inputs_embeds=self.language_model.get_input_embeddings()(tokens[-1])[:, None],
                attention_mask=attention(mask, True, dtype)[:, :, -1:],
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            logits.append(self.bin_logits(out.last_hidden_state[:, -1]))
            tokens.append(self._draw(logits[-1], chances[:, component], temperature))
        spoken, logits = torch.stack(tokens, dim=-1)[:, None], torch.stack(logits, dim=1)[:, None]
        return spoken, self.values_of(spoken), self._log_prob(logits, spoken, temperature)
