"""Flow-matching chunk policy on transformers' PI0ForConditionalGeneration.

Convention: tau = 1 is noise, tau = 0 is the action; x_tau = tau * noise + (1 - tau) * action; the network's velocity is
v = noise - action. Deployment starts at tau = 1 and takes K Euler steps of size 1/K.

Shapes: B batch, H = config.horizon, A = 7, n cameras, L prefix tokens (n * tokens_per_camera + objects + words).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.cache_utils import Cache

from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.contract import Contract
from policytrim_ros.policies.policy import ACTIONS, OBJECT_FEATURES, STATE, ChunkPolicy, Inputs, noise
from policytrim_ros.policies.tokenizer import IMAGE
from policytrim_ros.policies.vision import KeypointTower

OBJECT_SLOTS = 2
"""Objects whose positions the auxiliary task asks for."""


@dataclass(frozen=True)
class FlowConfig(Config):
    """Size of the network. The defaults make the tiny one of 1.4 million parameters."""

    horizon: int = setting(15, "prediction horizon H: actions in one chunk", low=1, high=100)
    denoising_steps: int = setting(4, "Euler steps K from noise to actions", low=1, high=100)
    hidden: int = setting(128, "width of both transformers", low=8, high=4096)
    feed_forward: int = setting(256, "inner width of their feed-forward layers", low=8, high=32768)
    layers: int = setting(3, "layers of prefix transformer and action expert", low=1, high=64)
    heads: int = setting(4, "attention heads", low=1, high=64)
    key_value_heads: int = setting(1, "key/value heads (grouped-query attention)", low=1, high=64)
    head_dim: int = setting(32, "width of one head", low=4, high=512)
    keypoints: int = setting(32, "spatial-softmax keypoints of one camera", low=1, high=512)
    tokens_per_camera: int = setting(4, "visual tokens of one camera", low=1, high=1024)
    vocabulary: int = setting(64, "size of the word embedding; at least the tokenizer's", low=4, high=300000)


@dataclass
class Context:
    """An encoded observation: everything the action expert needs while it denoises one chunk.

    state: (B, 14) normalised features; mask: (B, L); cache: keys and values of the prefix; keypoints: (B, n, 3 * keypoints)
    or None.
    """

    state: torch.Tensor
    mask: torch.Tensor
    cache: Cache
    length: int
    keypoints: torch.Tensor | None

    def repeat(self, times: int) -> "Context":
        """The same context ``times`` times each (B -> B * times), gradients included. The cache of self is used up."""
        self.cache.batch_repeat_interleave(times)
        return Context(
            self.state.repeat_interleave(times, 0), self.mask.repeat_interleave(times, 0), self.cache, self.length, self.keypoints
        )


class FlowPolicy(ChunkPolicy):
    """Pictures (or object poses), joint state and an instruction in; a chunk of H absolute actions out."""

    family = "flow"
    architecture = "PI0ForConditionalGeneration"

    def __init__(self, config: FlowConfig, contract: Contract, tokenizer):
        super().__init__(config, contract, tokenizer)
        if tokenizer.get_vocab_size() > config.vocabulary:
            raise ValueError(f"the tokenizer knows {tokenizer.get_vocab_size()} words, the network only {config.vocabulary}")
        self.pi0 = PI0ForConditionalGeneration(_pi0_config(config, tokenizer.token_to_id(IMAGE)))
        paligemma, cameras = self.pi0.model.vlm, len(contract.cameras)
        paligemma.multi_modal_projector = nn.Identity()
        if cameras:
            paligemma.vision_tower = KeypointTower(cameras, config.keypoints, config.tokens_per_camera, config.hidden)
            width = cameras * 3 * config.keypoints
            self.locator = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, OBJECT_SLOTS * 6))
        else:
            paligemma.vision_tower = nn.Identity()
        if contract.object_slots:
            self.object_embedding = nn.Sequential(
                nn.Linear(OBJECT_FEATURES, config.hidden), nn.GELU(), nn.Linear(config.hidden, config.hidden)
            )
            self.slot_embedding = nn.Parameter(0.02 * torch.randn(contract.object_slots, config.hidden))

    # -- network ------------------------------------------------------------------------------------------------

    def encode(self, inputs: Inputs) -> Context:
        """Runs the prefix once."""
        paligemma, tokens, keypoints = self.pi0.model.vlm, [], None
        if inputs.pixels is not None:
            keypoints = paligemma.vision_tower.keypoints(inputs.pixels)
            tokens.append(paligemma.vision_tower.embed(keypoints))
        if inputs.objects is not None:
            tokens.append(self.object_embedding(inputs.objects) + self.slot_embedding)
        seen = sum(part.shape[1] for part in tokens)
        prefix = torch.cat([*tokens, paligemma.get_input_embeddings()(inputs.ids)], dim=1)
        mask = torch.cat([inputs.words.new_ones(len(inputs), seen), inputs.words], dim=1)
        cache = paligemma(
            inputs_embeds=prefix,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(mask),
            use_cache=True,
        ).past_key_values
        return Context(self.state_features(inputs.state), mask, cache, prefix.shape[1], keypoints)

    def velocity(self, context: Context, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """v = noise - action at x (B, H, 7) and tau (B,). The context stays usable: its cache is cropped back."""
        v = self.pi0(
            state=context.state, noise=x, timestep=tau, attention_mask=context.mask, past_key_values=context.cache
        ).logits
        context.cache.crop(context.length - context.cache.get_seq_length())
        return v

    def integrate(self, context: Context, x: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Deterministic (ODE) sampling: noise x (B, H, 7) at tau = 1 -> normalised actions at tau = 0."""
        steps = steps or self.config.denoising_steps
        for k in range(steps):
            tau = torch.full((len(x),), 1.0 - k / steps, dtype=torch.float32, device=x.device)
            x = x - self.velocity(context, x, tau) / steps
        return x

    def sample(self, inputs: Inputs, generators=None, steps: int | None = None) -> torch.Tensor:
        return self.integrate(
            self.encode(inputs), noise((len(inputs), self.config.horizon, ACTIONS), generators, self.device), steps
        )

    def locate(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Where the objects seem to be, an auxiliary task: (B, 2, 6) positions in the base and the tool frame, in 0.1 m."""
        return self.locator(keypoints.flatten(1)).unflatten(-1, (OBJECT_SLOTS, 6))

    def losses(self, inputs: Inputs, actions, *, generator, repeats: int = 1, places=None) -> dict[str, torch.Tensor]:
        """Flow matching with tau ~ 0.001 + 0.999 Beta(1.5, 1) as in pi0, ``repeats`` (noise, tau) for each encoded prefix:
        |v(x_tau, tau) - (noise - action)|^2; and smooth L1 on the object positions when the policy has eyes."""
        context, found = self.encode(inputs), {}
        if places is not None and context.keypoints is not None:
            guess, known = self.locate(context.keypoints), torch.isfinite(places)
            found["locate"] = F.smooth_l1_loss(guess[known], places[known], beta=0.1) if known.any() else guess.sum() * 0
        x0 = self.to_model(actions, inputs.state).repeat_interleave(repeats, 0)
        # Beta(1.5, 1) by inverting its distribution function: exact, and drawn from the given generator
        tau = 0.001 + 0.999 * torch.rand(len(x0), generator=generator, device=x0.device) ** (1 / 1.5)
        x1 = torch.randn(x0.shape, generator=generator, device=x0.device)
        x = tau[:, None, None] * x1 + (1 - tau[:, None, None]) * x0
        return {"action": F.mse_loss(self.velocity(context.repeat(repeats), x, tau), x1 - x0), **found}


def _pi0_config(config: FlowConfig, image_token: int) -> PI0Config:
    transformer = dict(
        model_type="gemma",
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=1024,
    )
    placeholder = dict(  # replaced by the keypoint tower; PI0 wants one to build
        model_type="siglip_vision_model",
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        image_size=16,
        patch_size=16,
        vision_use_head=False,
    )
    return PI0Config(
        vlm_config=dict(
            model_type="paligemma",
            image_token_id=image_token,
            projection_dim=config.hidden,
            text_config=dict(transformer, vocab_size=config.vocabulary),
            vision_config=placeholder,
        ),
        dit_config=dict(transformer),
        chunk_size=config.horizon,
        max_state_dim=STATE,
        max_action_dim=ACTIONS,
        num_inference_steps=config.denoising_steps,
    )
