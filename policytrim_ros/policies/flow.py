"""Flow-matching chunk policy on transformers' PI0ForConditionalGeneration.

Convention (docs/glossary): tau = 1 is noise, tau = 0 is the action; x_tau = tau * noise + (1 - tau) * action; the
network's velocity is v = noise - action. Sampling starts at tau = 1 and takes K Euler steps of size 1/K.

Inside the network, action x[k] is the joint target of step k minus the setpoint at observation time (rad) and the
absolute gripper stroke (m), both scaled to [-1, 1] with quantiles of their own for every k, so that the first small
steps of a chunk are learned as precisely as its far end. State features are measured positions and setpoint - measured.

Shapes: B batch, H = config.horizon, A = 7, n cameras, L prefix tokens (n * tokens_per_camera + words).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Sequence

import numpy as np
import torch
from torch import nn
from transformers import PI0Config, PI0ForConditionalGeneration
from transformers.cache_utils import Cache

from policytrim_ros.core.config import Config, setting
from policytrim_ros.core.contract import Contract
from policytrim_ros.core.types import JOINTS
from policytrim_ros.policies.policy import Observation, resize_image
from policytrim_ros.policies.tokenizer import IMAGE
from policytrim_ros.policies.tokenizer import encode as encode_words
from policytrim_ros.policies.vision import KeypointTower

ACTIONS = len(JOINTS)
STATE = 2 * ACTIONS
OBJECT_SLOTS = 2


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

    state: (B, 14) normalised features; mask: (B, L); cache: keys and values of the prefix; keypoints: (B, n, 3 * keypoints).
    """

    state: torch.Tensor
    mask: torch.Tensor
    cache: Cache
    length: int
    keypoints: torch.Tensor

    def repeat(self, times: int) -> "Context":
        """The same context ``times`` times each (B -> B * times), gradients included. The cache of self is used up."""
        self.cache.batch_repeat_interleave(times)
        return Context(
            self.state.repeat_interleave(times, 0),
            self.mask.repeat_interleave(times, 0),
            self.cache,
            self.length,
            self.keypoints.repeat_interleave(times, 0),
        )


class FlowPolicy(nn.Module):
    """Pictures, joint state and an instruction in; a chunk of H absolute actions out. See `policy.Policy`."""

    family = "flow"

    def __init__(self, config: FlowConfig, contract: Contract, tokenizer):
        super().__init__()
        if len({(camera.width, camera.height) for camera in contract.cameras}) != 1:
            raise ValueError("all cameras of a flow policy must have one picture size")
        if tokenizer.get_vocab_size() > config.vocabulary:
            raise ValueError(f"the tokenizer knows {tokenizer.get_vocab_size()} words, the network only {config.vocabulary}")
        if contract.prediction_horizon != config.horizon:
            raise ValueError(f"the contract says H = {contract.prediction_horizon}, the network H = {config.horizon}")
        self.config, self.contract, self.tokenizer = config, contract, tokenizer
        self.pi0 = PI0ForConditionalGeneration(_pi0_config(config, tokenizer.token_to_id(IMAGE)))
        cameras = len(contract.cameras)
        paligemma = self.pi0.model.vlm
        paligemma.vision_tower = KeypointTower(cameras, config.keypoints, config.tokens_per_camera, config.hidden)
        paligemma.multi_modal_projector = nn.Identity()
        self.locator = nn.Sequential(nn.Linear(cameras * 3 * config.keypoints, 128), nn.GELU(), nn.Linear(128, OBJECT_SLOTS * 6))
        state, actions = contract.normalisation["state"], contract.normalisation["actions"]
        for name, values, shape in (
            ("state_low", state.q01, (STATE,)),
            ("state_high", state.q99, (STATE,)),
            ("action_low", actions.q01, (config.horizon, ACTIONS)),
            ("action_high", actions.q99, (config.horizon, ACTIONS)),
        ):
            tensor = torch.tensor(values, dtype=torch.float32)
            if tuple(tensor.shape) != shape:
                raise ValueError(f"normalisation '{name}' has shape {tuple(tensor.shape)}, expected {shape}")
            self.register_buffer(name, tensor, persistent=False)  # they live in the contract, not in the weights

    # -- network ------------------------------------------------------------------------------------------------

    def encode(self, pixels: torch.Tensor, state: torch.Tensor, ids: torch.Tensor, words: torch.Tensor) -> Context:
        """Runs the prefix once. pixels (B, n, 3, h, w) in [-1, 1]; state (B, 14) rad, m; ids and words (mask) (B, L_words)."""
        paligemma = self.pi0.model.vlm
        keypoints = paligemma.vision_tower.keypoints(pixels)
        visual = paligemma.vision_tower.embed(keypoints)
        prefix = torch.cat([visual, paligemma.get_input_embeddings()(ids)], dim=1)
        mask = torch.cat([words.new_ones(visual.shape[:2]), words], dim=1)
        cache = paligemma(
            inputs_embeds=prefix,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(mask),
            use_cache=True,
        ).past_key_values
        return Context(self.state_features(state), mask, cache, prefix.shape[1], keypoints)

    def velocity(self, context: Context, x: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        """v = noise - action at x (B, H, 7) and tau (B,). The context stays usable: its cache is cropped back."""
        v = self.pi0(
            state=context.state, noise=x, timestep=tau, attention_mask=context.mask, past_key_values=context.cache
        ).logits
        context.cache.crop(context.length - context.cache.get_seq_length())
        return v

    def sample(self, context: Context, noise: torch.Tensor, steps: int | None = None) -> torch.Tensor:
        """Deterministic (ODE) sampling: noise (B, H, 7) at tau = 1 -> normalised actions at tau = 0."""
        steps = steps or self.config.denoising_steps
        x = noise
        for k in range(steps):
            tau = torch.full((len(x),), 1.0 - k / steps, dtype=torch.float32, device=x.device)
            x = x - self.velocity(context, x, tau) / steps
        return x

    def locate(self, keypoints: torch.Tensor) -> torch.Tensor:
        """Where the objects seem to be, an auxiliary task: (B, 2, 6) positions in the base and the tool frame, in 0.1 m."""
        return self.locator(keypoints.flatten(1)).unflatten(-1, (OBJECT_SLOTS, 6))

    # -- units --------------------------------------------------------------------------------------------------

    def state_features(self, state: torch.Tensor) -> torch.Tensor:
        """(B, 14) measured | setpoint (rad, m) -> (B, 14) normalised measured | setpoint - measured."""
        return _scale(state_differences(state), self.state_low, self.state_high)

    def to_model(self, actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """(B, H, 7) absolute targets -> normalised relative actions."""
        return _scale(relative_actions(actions, state), self.action_low, self.action_high)

    def to_robot(self, x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        """Inverse of `to_model`; the gripper is kept within its range."""
        relative = (x + 1.0) * 0.5 * (self.action_high - self.action_low) + self.action_low
        joints = relative[..., :6] + state[:, None, ACTIONS : ACTIONS + 6]
        return torch.cat([joints, relative[..., 6:].clamp(*self.contract.gripper_range)], dim=-1)

    # -- the protocol -------------------------------------------------------------------------------------------

    def pixels(self, images) -> torch.Tensor:
        """Named uint8 pictures (B, h, w, 3) -> (B, n, 3, h, w) in [-1, 1], resized. ValueError names a missing camera."""
        stacked = []
        for camera in self.contract.cameras:
            if camera.name not in images:
                raise ValueError(
                    f"no picture of camera '{camera.name}'; the observation has {', '.join(sorted(images)) or 'none'}"
                )
            stacked.append(np.stack([resize_image(picture, camera.width, camera.height) for picture in images[camera.name]]))
        return scale_pixels(torch.from_numpy(np.stack(stacked, axis=1)).to(self.state_low.device))

    def words(self, instruction: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and mask (B, L_words) of B sentences."""
        return tuple(torch.from_numpy(array).to(self.state_low.device) for array in encode_words(self.tokenizer, instruction))

    @torch.inference_mode()
    def predict(
        self, observation: Observation, *, seed: int | None = None, generator=None, steps: int | None = None
    ) -> np.ndarray:
        """(B, H, 7) float32 absolute actions; see `policy.Policy.predict`. The prefix is encoded once."""
        device = self.state_low.device
        if generator is None and seed is not None:
            generator = torch.Generator(device).manual_seed(seed)
        state = torch.from_numpy(observation.state).to(device)
        context = self.encode(self.pixels(observation.images), state, *self.words(observation.instruction))
        noise = torch.randn((len(state), self.config.horizon, ACTIONS), generator=generator, device=device)
        return self.to_robot(self.sample(context, noise, steps), state).cpu().numpy()


def state_differences(state: torch.Tensor) -> torch.Tensor:
    """(..., 14) measured | setpoint -> measured | setpoint - measured."""
    measured, setpoint = state[..., :ACTIONS], state[..., ACTIONS:]
    return torch.cat([measured, setpoint - measured], dim=-1)


def relative_actions(actions: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    """(B, H, 7) absolute -> joints relative to the setpoint in ``state`` (B, 14), gripper absolute."""
    return torch.cat([actions[..., :6] - state[:, None, ACTIONS : ACTIONS + 6], actions[..., 6:]], dim=-1)


def scale_pixels(pictures: torch.Tensor) -> torch.Tensor:
    """(B, n, h, w, 3) uint8 -> (B, n, 3, h, w) float32 in [-1, 1]."""
    return pictures.permute(0, 1, 4, 2, 3).float() / 127.5 - 1.0


def _scale(values, low, high):
    return 2.0 * (values - low) / (high - low) - 1.0


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
