"""Flow-matching chunk policy on transformers' PI0ForConditionalGeneration.

Convention: tau = 1 is noise, tau = 0 is the action; x_tau = tau * noise + (1 - tau) * action; the network's velocity is
v = noise - action. Deployment starts at tau = 1 and takes K Euler steps of size 1/K, or steps of Flow-CPS where
config.acting_noise says so; samplers.py has the stochastic ones.

Shapes: B batch, H = config.horizon, A = 7, n cameras, L prefix tokens (pictures, then objects, then words). x is
(B, H, D): D = A for a network of our own; an imported pi0 pads state and actions with zeros to D = 32, and what it says
beyond A is dropped.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from policytrim_ros.core.config import Config, ConfigError, setting
from policytrim_ros.core.contract import Contract, Normalisation
from policytrim_ros.policies.guidance import guided_velocity
from policytrim_ros.policies.objects import DIRECTIONS, OBJECT_FEATURES, OBJECT_SLOTS
from policytrim_ros.policies.policy import ACTIONS, STATE, ChunkPolicy, Inputs, locate_loss, noise
from policytrim_ros.policies.samplers import cps_step, dimensions
from policytrim_ros.policies.tokenizer import IMAGE
from policytrim_ros.policies.vision import KeypointTower

NOISE_STD = (0.08, 0.16)
"""Range of the learned standard deviation, as in the public configurations of Flow-Noise (piRL, arXiv 2510.25889)."""

TRANSFORMER_KEYS = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act "
    "max_position_embeddings vocab_size rms_norm_eps rope_parameters attention_bias".split()
)
VISION_KEYS = frozenset(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size hidden_act "
    "layer_norm_eps vision_use_head".split()
)
PI0_KEYS = frozenset("text vision expert image_token_id max_state_dim max_action_dim min_period max_period".split())


@dataclass(frozen=True)
class FlowConfig(Config):
    """Size of the network. The defaults make the tiny one of 1.4 million parameters."""

    horizon: int = setting(15, "prediction horizon H: actions in one chunk", low=1, high=100)
    denoising_steps: int = setting(4, "Euler steps K from noise to actions", low=1, high=100)
    acting_noise: float = setting(
        0.0, "level of the Flow-CPS noise with which the policy draws its chunks when it acts; 0: they follow the ODE", low=0, high=1
    )
    acting_gripper: bool = setting(True, "the gripper has acting_noise, too; false: it follows the ODE")
    hidden: int = setting(128, "width of all transformers", low=8, high=4096)
    feed_forward: int = setting(256, "inner width of their feed-forward layers", low=8, high=32768)
    layers: int = setting(3, "layers of prefix transformer, action expert and SigLIP", low=1, high=64)
    heads: int = setting(4, "attention heads", low=1, high=64)
    key_value_heads: int = setting(1, "key/value heads (grouped-query attention)", low=1, high=64)
    head_dim: int = setting(32, "width of one head", low=4, high=512)
    vision: str = setting("keypoints", "eyes: a small convolutional net a camera, or SigLIP", choices=("keypoints", "siglip"))
    keypoints: int = setting(32, "spatial-softmax keypoints of one camera", low=1, high=512)
    tokens_per_camera: int = setting(4, "visual tokens of one camera (keypoints; SigLIP: one a patch)", low=1, high=1024)
    patch_size: int = setting(16, "side of one SigLIP patch", low=1, high=64, unit="px")
    vocabulary: int = setting(64, "size of the word embedding; at least the tokenizer's", low=4, high=300000)
    noise_head: bool = setting(False, "a head that learns how much noise to explore with (Flow-Noise)")
    prompt: str = setting("{}", "how an instruction is written for the tokenizer; {} is the instruction")
    pi0: dict = setting({}, "an imported pi0: its sizes (text, vision, expert, ...) in place of all sizes above")

    def __post_init__(self):
        super().__post_init__()
        if "{}" not in self.prompt:
            raise ConfigError(f"FlowConfig.prompt = {self.prompt!r}: must hold {{}}, the place of the instruction")
        if self.heads % self.key_value_heads:
            raise ConfigError(f"FlowConfig.key_value_heads = {self.key_value_heads}: does not divide heads = {self.heads}")
        if not self.pi0:
            return
        parts = {"pi0": (self.pi0, PI0_KEYS)}
        for part, known in (("text", TRANSFORMER_KEYS), ("expert", TRANSFORMER_KEYS), ("vision", VISION_KEYS)):
            parts[f"pi0.{part}"] = (self.pi0.get(part), known)
        for name, (sizes, known) in parts.items():  # sizes only: nothing in here may name code or a place to get it from
            if not isinstance(sizes, dict):
                raise ConfigError(f"FlowConfig.{name} is missing or not a mapping")
            if unknown := sorted(set(sizes) - known):
                raise ConfigError(f"FlowConfig.{name}: unknown key '{unknown[0]}'; known keys: {', '.join(sorted(known))}")


@dataclass(frozen=True)
class Context:
    """An encoded observation: everything the action expert needs while it denoises one chunk. It is never changed.

    state: (B, D) normalised features; mask: (B, L); keys_values: of the prefix, a pair (B, key/value heads, L, head_dim)
    for each layer; keypoints: (B, n, 3 * keypoints) or None.
    """

    state: torch.Tensor
    mask: torch.Tensor
    keys_values: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    keypoints: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.state)

    def cache(self) -> Cache:
        """A cache that holds the prefix, for one pass of the action expert (which appends to it, not to this context)."""
        cache = DynamicCache()
        for keys, values in self.keys_values:
            layer = DynamicLayer()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            cache.layers.append(layer)
        return cache

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Context":
        """The context with ``change`` applied to every tensor."""
        return Context(
            change(self.state),
            change(self.mask),
            tuple((change(keys), change(values)) for keys, values in self.keys_values),
            None if self.keypoints is None else change(self.keypoints),
        )

    def rows(self, index) -> "Context":
        """The chosen rows, in the order of ``index``: a minibatch of a stored batch."""
        return self.each(lambda tensor: tensor[index])

    def repeat(self, times: int) -> "Context":
        """Every row ``times`` times in a row (B -> B * times), gradients included."""
        return self.each(lambda tensor: tensor.repeat_interleave(times, 0))

    def to(self, device) -> "Context":
        """The same on another device."""
        return self.each(lambda tensor: tensor.to(device))

    def detach(self) -> "Context":
        """The same without gradient to the prefix: what a frozen prefix costs nothing to keep."""
        return self.each(torch.Tensor.detach)

    @staticmethod
    def cat(contexts: Sequence["Context"]) -> "Context":
        """Contexts of one policy one after another; shorter prefixes are padded, and the padding masked, on the right."""
        length = max(context.mask.shape[1] for context in contexts)
        padded = []
        for context in contexts:
            more = length - context.mask.shape[1]
            pairs = tuple(tuple(F.pad(part, (0, 0, 0, more)) for part in pair) for pair in context.keys_values)
            padded.append(replace(context, mask=F.pad(context.mask, (0, more)), keys_values=pairs))
        return Context(
            torch.cat([context.state for context in padded]),
            torch.cat([context.mask for context in padded]),
            tuple(tuple(map(torch.cat, zip(*pairs))) for pairs in zip(*(context.keys_values for context in padded))),
            None if padded[0].keypoints is None else torch.cat([context.keypoints for context in padded]),
        )


class FlowPolicy(ChunkPolicy):
    """Pictures (or object poses), joint state and an instruction in; a chunk of H absolute actions out."""

    family = "flow"
    architecture = "PI0ForConditionalGeneration"
    guided = True

    def __init__(self, config: FlowConfig, contract: Contract, tokenizer, pi0: PI0ForConditionalGeneration | None = None):
        """``pi0``: an imported network with its weights; else one is built."""
        super().__init__(config, contract, tokenizer)
        cameras = len(contract.cameras)
        sides = [side for camera in contract.cameras for side in (camera.width, camera.height)]
        image_token = tokenizer.token_to_id(IMAGE)
        self.pi0 = pi0 or PI0ForConditionalGeneration(pi0_config(config, image_token, max(sides, default=16)))
        paligemma, sizes = self.pi0.model.vlm, self.pi0.config
        self.image_token, self.vocabulary = sizes.vlm_config.image_token_id, sizes.vlm_config.text_config.vocab_size
        self.width, state_width = sizes.max_action_dim, sizes.max_state_dim
        known = tokenizer.get_vocab().items()
        if any(number >= self.vocabulary and number != self.image_token for _, number in known):
            raise ValueError(f"the tokenizer knows {tokenizer.get_vocab_size()} words, the network only {self.vocabulary}")
        if self.width < ACTIONS or state_width < STATE:
            raise ValueError(
                f"this network has room for {state_width} states and {self.width} actions, not for {STATE} and {ACTIONS}"
            )
        if cameras and not config.pi0 and config.vision == "keypoints":
            paligemma.multi_modal_projector = nn.Identity()
            paligemma.vision_tower = KeypointTower(cameras, config.keypoints, config.tokens_per_camera, config.hidden)
            width = cameras * 3 * config.keypoints
            self.locator = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, OBJECT_SLOTS * DIRECTIONS.stop))
        elif cameras:
            if max(sides) > (canvas := sizes.vlm_config.vision_config.image_size):
                raise ValueError(f"the pictures of the contract do not fit this network's {canvas}x{canvas} px")
        else:
            paligemma.multi_modal_projector = paligemma.vision_tower = nn.Identity()
        if contract.object_slots:
            hidden = sizes.vlm_config.text_config.hidden_size
            self.object_embedding = nn.Sequential(nn.Linear(OBJECT_FEATURES, hidden), nn.GELU(), nn.Linear(hidden, hidden))
            self.slot_embedding = nn.Parameter(0.02 * torch.randn(contract.object_slots, hidden))
        if config.noise_head:
            self.add_noise_head()

    def add_noise_head(self) -> None:
        """Gives the policy a head for Flow-Noise (kept in its checkpoints from now on), at the middle of its range."""
        self.config = replace(self.config, noise_head=True)
        self.noise_head = nn.Sequential(
            nn.Linear(self.pi0.config.dit_config.hidden_size, 128), nn.Tanh(), nn.Linear(128, ACTIONS)
        ).to(self.device)
        nn.init.zeros_(self.noise_head[-1].weight)
        nn.init.zeros_(self.noise_head[-1].bias)

    def shortened(self, horizon: int) -> "FlowPolicy":
        """This policy, weights shared, as one that samples plans of ``horizon`` actions: the action expert attends to so many
        tokens and no more. ValueError beyond H."""
        if horizon > self.config.horizon:
            raise ValueError(f"a plan of {horizon} actions is longer than H = {self.config.horizon}")
        if horizon == self.config.horizon:
            return self
        normalisation = dict(self.contract.normalisation)
        low, high = normalisation["actions"].q01[:horizon], normalisation["actions"].q99[:horizon]
        normalisation["actions"] = Normalisation(low, high)
        view = copy(self)  # shallow: modules and parameters are the same objects
        view._buffers = {**self._buffers, "action_low": self.action_low[:horizon], "action_high": self.action_high[:horizon]}
        view.config = replace(self.config, horizon=horizon)
        view.contract = replace(self.contract, prediction_horizon=horizon, execution_horizon=horizon, normalisation=normalisation)
        return view

    # -- network ------------------------------------------------------------------------------------------------

    def processor(self) -> dict:
        sizes = self.pi0.model.vlm.config.vision_config
        squared = self.contract.cameras and not isinstance(self.pi0.model.vlm.vision_tower, KeypointTower)
        return {**super().processor(), **({"canvas": [sizes.image_size, sizes.image_size]} if squared else {})}

    def words(self, instruction: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids, mask = super().words([self.config.prompt.replace("{}", sentence) for sentence in instruction])
        if (ids == self.image_token).any():
            raise ValueError("an instruction holds the token that stands for a picture; leave it out")
        return ids, mask

    def encode(self, inputs: Inputs) -> Context:
        """Runs the prefix once."""
        paligemma, tokens, keypoints = self.pi0.model.vlm, [], None
        if inputs.pixels is not None:
            if isinstance(paligemma.vision_tower, KeypointTower):
                keypoints = paligemma.vision_tower.keypoints(inputs.pixels)
                tokens.append(paligemma.vision_tower.embed(keypoints))
            else:
                tokens.append(self._look(inputs.pixels))
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
        state = self.state_features(inputs.state)
        state = F.pad(state, (0, self.pi0.config.max_state_dim - state.shape[1]))
        return Context(state, mask, tuple((layer.keys, layer.values) for layer in cache.layers), keypoints)

    def velocity(self, context: Context, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """v = noise - action (B, H, D) at x (B, H, D) and tau (B,)."""
        return self.pi0.action_out_proj(self._denoise(context, x, tau))

    def velocity_and_std(self, context: Context, x: torch.Tensor, tau: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`velocity`, and the standard deviation (B, H, A) with which the noise head wants this step to be explored."""
        if not self.config.noise_head:
            raise ValueError("this policy has no noise head; give it one with add_noise_head()")
        hidden = self._denoise(context, x, tau)
        low, high = torch.tensor(NOISE_STD, dtype=hidden.dtype).log()
        return self.pi0.action_out_proj(hidden), (low + (high - low) * (self.noise_head(hidden).tanh() + 1) / 2).exp()

    def integrate(
        self, context: Context, x: torch.Tensor, steps: int | None = None, plan=None, weights=None, level=0.0, generators=None
    ) -> torch.Tensor:
        """Noise x (B, H, D) at tau = 1 -> normalised actions (B, H, D) at tau = 0, deterministic but for ``level``.

        ``plan`` (B, H, A) and ``weights`` (B, H): what the actions are drawn to (guidance.py), or None. ``level``: of Flow-CPS noise on
        the way, from ``generators``; the more an action is bound to a plan, the less of it."""
        steps, noisy = steps or self.config.denoising_steps, level > 0.0
        explored = dimensions(self.config.acting_gripper)
        if plan is not None:
            level = level * (1.0 - weights[..., None])
        for k in range(steps):
            now = 1.0 - k / steps
            tau = torch.full((len(x),), now, dtype=torch.float32, device=x.device)
            if plan is None:
                velocity = self.velocity(context, x, tau)
            else:
                velocity = guided_velocity(lambda x: self.velocity(context, x, tau), x, now, plan, weights)
            follow = x - velocity / steps
            if noisy and k + 1 < steps:
                x0, x1 = (x - velocity * now)[..., :ACTIONS], (x + velocity * (1.0 - now))[..., :ACTIONS]
                mean, std = cps_step(x0, x1, now - 1.0 / steps, level)
                drawn = (mean + std * noise(mean.shape, generators, x.device).to(x.dtype))[..., :explored]
                follow = torch.cat([drawn, follow[..., explored:]], -1)
            x = follow
        return x

    def sample(self, inputs: Inputs, generators=None, steps: int | None = None) -> torch.Tensor:
        x, level = self.noise(len(inputs), generators), self.config.acting_noise
        return self.integrate(self.encode(inputs), x, steps, inputs.plan, inputs.plan_weights, level, generators)[..., :ACTIONS]

    def noise(self, batch: int, generators=None) -> torch.Tensor:
        """Where sampling starts: (B, H, D) standard normal, row i from ``generators[i]``."""
        return noise((batch, self.config.horizon, self.width), generators, self.device)

    def locate(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Where the objects seem to be and how they seem to lie, an auxiliary task: (B, 2, 18) as `objects.object_places`."""
        return self.locator(keypoints.flatten(1)).unflatten(-1, (OBJECT_SLOTS, DIRECTIONS.stop))

    def losses(self, inputs: Inputs, actions, *, generator, repeats: int = 1, places=None) -> dict[str, torch.Tensor]:
        """Flow matching with tau ~ 0.001 + 0.999 Beta(1.5, 1) as in pi0, ``repeats`` (noise, tau) for each encoded prefix:
        |v(x_tau, tau) - (noise - action)|^2; and smooth L1 on where the objects are when the policy has keypoints."""
        context, found = self.encode(inputs), {}
        if places is not None and context.keypoints is not None:
            found["locate"] = locate_loss(self.locate(context.keypoints), places)
        x0 = self.to_model(actions, inputs.state).repeat_interleave(repeats, 0)
        x0 = F.pad(x0, (0, self.width - ACTIONS))
        # Beta(1.5, 1) by inverting its distribution function: exact, and drawn from the given generator
        tau = 0.001 + 0.999 * torch.rand(len(x0), generator=generator, device=x0.device) ** (1 / 1.5)
        x1 = torch.randn(x0.shape, generator=generator, device=x0.device)
        x = tau[:, None, None] * x1 + (1 - tau[:, None, None]) * x0
        return {"action": F.mse_loss(self.velocity(context.repeat(repeats), x, tau), x1 - x0), **found}

    def _look(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, n, 3, h, w) -> SigLIP tokens (B, n * patches, hidden). As in pi0's own picture processor, a picture lies in
        the upper left corner of a square, the rest of which is grey."""
        paligemma, (height, width) = self.pi0.model.vlm, pixels.shape[-2:]
        side = paligemma.config.vision_config.image_size
        pixels = F.pad(pixels, (0, side - width, 0, side - height))
        features = paligemma.get_image_features(pixels.flatten(0, 1)).pooler_output
        return features.unflatten(0, pixels.shape[:2]).flatten(1, 2)

    def _denoise(self, context: Context, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """Last hidden states (B, H, expert's hidden) of the action tokens."""
        tokens = self.pi0.embed_action_time(context.state, x, tau)
        output = self.pi0.model(action_embeds=tokens, attention_mask=context.mask, past_key_values=context.cache())
        return output.last_hidden_state[:, -self.config.horizon :]


def pi0_config(config: FlowConfig, image_token: int | None, side: int) -> PI0Config:
    """transformers' configuration. ``image_token``: its id in a tokenizer of ours; ``side``: the larger of a picture (px)."""
    sizes = dict(config.pi0) or _own_sizes(config, image_token, side)
    text, vision, expert = (dict(sizes.pop(part)) for part in ("text", "vision", "expert"))
    return PI0Config(
        vlm_config=dict(
            model_type="paligemma",
            image_token_id=sizes.pop("image_token_id"),
            projection_dim=text["hidden_size"],
            text_config=dict(text, model_type="gemma"),
            vision_config=dict(vision, model_type="siglip_vision_model"),
        ),
        dit_config=dict(expert, model_type="gemma"),
        chunk_size=config.horizon,
        num_inference_steps=config.denoising_steps,
        **sizes,
    )


def _own_sizes(config: FlowConfig, image_token: int | None, side: int) -> Mapping[str, Any]:
    transformer = dict(
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_value_heads,
        head_dim=config.head_dim,
        max_position_embeddings=1024,
    )
    vision = dict(
        hidden_size=config.hidden,
        intermediate_size=config.feed_forward,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=-(-side // config.patch_size) * config.patch_size,
        patch_size=config.patch_size,
    )
    if config.vision == "keypoints":  # replaced by the keypoint tower; PI0 wants one to build
        vision = dict(
            hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=16
        )
    return dict(
        text=dict(transformer, vocab_size=config.vocabulary),
        vision=dict(vision, vision_use_head=False),
        expert=transformer,
        image_token_id=image_token,
        max_state_dim=STATE,
        max_action_dim=ACTIONS,
    )
