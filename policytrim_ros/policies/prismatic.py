"""The body that OpenVLA and OpenVLA-OFT share: two picture towers, a projector and a Llama that speaks action tokens.

    pictures -> DINOv2 | SigLIP patch features, joined channel by channel -> projector -> patch tokens
    sequence: [BOS] [patches of every camera] [joint state] [rest of the prompt] [action positions]

Towers and Llama are transformers' own, unmodified. Modules carry the published names (vision_backbone.featurizer, projector.fc1,
language_model, proprio_projector, action_head), so that published weights can be mapped in (openvla.py). A logit at one
position speaks of the token after it: the first action token is read where the prompt ends.

Ours, not published: the towers' sizes here, and `Locator`, an auxiliary task that lets towers learn to see from scratch.

Shapes: B batch, H horizon, A = 7, n cameras, P patches of one picture, L length of a sequence, D = config.hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from policytrim_ros.core.config import Config, ConfigError, setting
from policytrim_ros.core.contract import Contract
from policytrim_ros.policies.bins import BINS, padded, to_tokens, to_values
from policytrim_ros.policies.objects import OBJECT_SLOTS
from policytrim_ros.policies.policy import ACTIONS, STATE, ChunkPolicy, Inputs, locate_loss, noise

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class PrismaticConfig(Config):
    """Size of the network. The defaults make a tiny one; `openvla.OPENVLA_7B` is the published one.

    Towers end at the published network's last block but one, so ``*_layers`` counts the blocks that run.
    """

    horizon: int = setting(8, "prediction horizon H: actions in one chunk", low=1, high=100)
    image_size: int = setting(96, "side to which a picture is squeezed, whatever its shape", low=16, high=1024, unit="px")
    patch_size: int = setting(16, "side of one patch", low=2, high=64, unit="px")
    dino_hidden: int = setting(64, "width of the DINOv2 tower", low=8, high=4096)
    dino_layers: int = setting(2, "blocks of the DINOv2 tower that run", low=1, high=64)
    dino_heads: int = setting(2, "attention heads of the DINOv2 tower", low=1, high=64)
    siglip_hidden: int = setting(64, "width of the SigLIP tower", low=8, high=4096)
    siglip_layers: int = setting(2, "blocks of the SigLIP tower that run", low=1, high=64)
    siglip_heads: int = setting(2, "attention heads of the SigLIP tower", low=1, high=64)
    siglip_feed_forward: int = setting(256, "inner width of the SigLIP tower", low=8, high=32768)
    hidden: int = setting(128, "width D of the language model", low=8, high=16384)
    feed_forward: int = setting(256, "inner width of the language model", low=8, high=65536)
    layers: int = setting(3, "layers of the language model", low=1, high=128)
    heads: int = setting(4, "attention heads of the language model", low=1, high=128)
    key_value_heads: int = setting(4, "key/value heads of the language model", low=1, high=128)
    vocabulary: int = setting(320, "text ids: words first, the 256 action tokens last", low=BINS + 4, high=300_000)
    proprio: bool = setting(True, "whether the joint state enters, as one token (OpenVLA-OFT; OpenVLA itself sees pictures only)")
    locate: bool = setting(True, "whether the network is asked where the objects are (ours), and its answer is one more token")
    temperature: float = setting(0.0, "of the sampled action tokens in deployment; 0: the most likely ones", low=0, high=10)

    def __post_init__(self):
        super().__post_init__()
        groups = (
            ("hidden", "heads"),
            ("heads", "key_value_heads"),
            ("dino_hidden", "dino_heads"),
            ("siglip_hidden", "siglip_heads"),
        )
        for whole, part in (*groups, ("image_size", "patch_size")):
            if getattr(self, whole) % getattr(self, part):
                raise ConfigError(
                    f"{type(self).__name__}.{part} = {getattr(self, part)}: does not divide {whole} = {getattr(self, whole)}"
                )


class FusedTowers(nn.Module):
    """(N, 3, s, s) in [-1, 1] -> (N, P, C): patch features of DINOv2 and SigLIP side by side."""

    def __init__(self, config: PrismaticConfig):
        super().__init__()
        pictures = dict(image_size=config.image_size, patch_size=config.patch_size)
        self.featurizer = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=config.dino_hidden,
                num_hidden_layers=config.dino_layers,
                num_attention_heads=config.dino_heads,
                **pictures,
            )
        )
        self.fused_featurizer = SiglipVisionModel(
            SiglipVisionConfig(
                hidden_size=config.siglip_hidden,
                intermediate_size=config.siglip_feed_forward,
                num_hidden_layers=config.siglip_layers,
                num_attention_heads=config.siglip_heads,
                hidden_act="gelu",  # the published tower is timm's, which has the exact function
                vision_use_head=False,
                **pictures,
            )
        )
        # features are taken before the last block, so a last norm has no part in them
        self.featurizer.layernorm = nn.Identity()
        self.fused_featurizer.post_layernorm = nn.Identity()
        del self.featurizer.embeddings.mask_token
        self.featurizer.embeddings.mask_token = None  # only for DINOv2's own pre-training
        self.prefix = 1 + self.featurizer.config.num_register_tokens
        self.width = config.dino_hidden + config.siglip_hidden
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1) * 2 - 1, persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1) * 2, persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        dino = self.featurizer((pixels - self.mean) / self.std).last_hidden_state[:, self.prefix :]
        return torch.cat([dino, self.fused_featurizer(pixels).last_hidden_state], dim=-1)


class Projector(nn.Module):
    """Patch features (..., C) -> language tokens (..., D), as published for two towers."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(width, 4 * width), nn.Linear(4 * width, hidden), nn.Linear(hidden, hidden)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class ProprioProjector(nn.Module):
    """Normalised joint state (B, 14) -> one language token (B, D) (OpenVLA-OFT). Ours: located positions in the same way."""

    def __init__(self, hidden: int, width: int = STATE):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, hidden)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(state)))


class Locator(nn.Module):
    """Where the objects seem to be, read from patch features by spatial softmax (ours; Levine et al. 2016).

    Every camera has maps of its own: a softmax over its patches gives an expected position in the picture and an
    expected feature that says where inside the patch. (B, n, P, C) -> (B, 2, 6), base and tool frame, in 0.1 m.
    """

    def __init__(self, cameras: int, width: int, grid: int, maps: int = 16, details: int = 8):
        super().__init__()
        self.attention = nn.ModuleList(nn.Linear(width, maps) for _ in range(cameras))
        self.detail = nn.Linear(width, details)
        self.head = nn.Sequential(nn.Linear(cameras * maps * (2 + details), 128), nn.GELU(), nn.Linear(128, OBJECT_SLOTS * 6))
        line = torch.linspace(-1, 1, grid)
        places = torch.stack([line.repeat(grid), line.repeat_interleave(grid)], dim=-1)
        self.register_buffer("places", places, persistent=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        read = []
        for index, attention in enumerate(self.attention):
            weights = attention(features[:, index]).softmax(dim=1).transpose(1, 2)
            read += [(weights @ self.places).flatten(1), (weights @ self.detail(features[:, index])).flatten(1)]
        return self.head(torch.cat(read, dim=-1)).unflatten(-1, (OBJECT_SLOTS, 6))


@dataclass
class Prefix:
    """Everything before the action positions: tokens (B, L, D), mask (B, L); located (B, 2, 6) positions in 0.1 m or None."""

    tokens: torch.Tensor
    mask: torch.Tensor
    located: torch.Tensor | None


class PrismaticPolicy(ChunkPolicy):
    """Base of the token families. A family says how the action positions are read: `action_logits`, `act`."""

    architecture = "PrismaticForConditionalGeneration"

    def __init__(self, config: PrismaticConfig, contract: Contract, tokenizer):
        super().__init__(config, contract, tokenizer)
        if contract.object_slots or not contract.cameras:
            raise ValueError(f"a policy of family '{self.family}' sees through cameras and is not told object poses")
        if tokenizer.get_vocab_size() > config.vocabulary - BINS:
            raise ValueError(
                f"the tokenizer knows {tokenizer.get_vocab_size()} words, "
                f"the network has room for {config.vocabulary - BINS} beside {BINS} action tokens"
            )
        self.vision_backbone = FusedTowers(config)
        self.projector = Projector(self.vision_backbone.width, config.hidden)
        self.language_model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=padded(config.vocabulary),
                hidden_size=config.hidden,
                intermediate_size=config.feed_forward,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.key_value_heads,
                max_position_embeddings=2048,
                tie_word_embeddings=False,
            )
        )
        if config.proprio:
            self.proprio_projector = ProprioProjector(config.hidden)
        if config.locate:
            grid = config.image_size // config.patch_size
            self.locator = Locator(len(contract.cameras), self.vision_backbone.width, grid)
            self.place_projector = ProprioProjector(config.hidden, OBJECT_SLOTS * 6)

    # -- what a family adds -------------------------------------------------------------------------------------

    def action_logits(self, prefix: Prefix, tokens: torch.Tensor | None = None) -> torch.Tensor:
        """(B, H, 7, 256) over the ids vocabulary - 256 ..; ``tokens`` (B, H, 7) are those already spoken, if it matters."""
        raise NotImplementedError

    def act(self, inputs: Inputs, generators=None, temperature: float = 1.0):
        """One chunk and its probability: tokens (B, H, 7) int64, x (B, H, 7) normalised, log_prob (B, H).

        ``generators``: one a row (None: torch's own); ``temperature`` 0 takes the most likely tokens (log_prob of
        temperature 1). log_prob sums the seven components of an action and equals `log_prob` under the same weights.
        """
        raise NotImplementedError

    # -- network ------------------------------------------------------------------------------------------------

    def state_features(self, state: torch.Tensor) -> torch.Tensor:
        return super().state_features(state).clamp(-1.0, 1.0)  # as published

    @staticmethod
    def prompt(instruction: str) -> str:
        # the last blank is Llama's token 29871, which the published code appends to every prompt
        return f"In: What action should the robot take to {instruction.lower()}?\nOut: "

    def words(self, instruction):
        super().words(instruction)  # refuses an instruction without a known word; those of the prompt do not count
        return super().words([self.prompt(sentence) for sentence in instruction])

    def encode(self, inputs: Inputs) -> Prefix:
        """Pictures, joint state and prompt as one sequence of tokens."""
        side, pixels = self.config.image_size, inputs.pixels.flatten(0, 1)
        if pixels.shape[-2:] != (side, side):  # squeezed, as published ("resize-naive")
            pixels = F.interpolate(pixels, (side, side), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        features = self.vision_backbone(pixels).unflatten(0, inputs.pixels.shape[:2])
        embedded = self.language_model.get_input_embeddings()(inputs.ids)
        seen, located = [self.projector(features).flatten(1, 2)], None
        if self.config.locate:
            located = self.locator(features)
            seen.append(self.place_projector(located.flatten(1))[:, None])
        if self.config.proprio:
            seen.append(self.proprio_projector(self.state_features(inputs.state))[:, None])
        tokens = torch.cat([embedded[:, :1], *seen, embedded[:, 1:]], dim=1)
        added = inputs.words.new_ones(len(inputs), tokens.shape[1] - inputs.ids.shape[1])
        return Prefix(tokens, torch.cat([added, inputs.words], dim=1), located)

    def transform(self, tokens: torch.Tensor, mask: torch.Tensor, *, causal: bool) -> torch.Tensor:
        """Hidden states (B, L, D) of a whole sequence; where ``mask`` (B, L) is 0 there is padding, which nobody sees."""
        return self.language_model.model(
            inputs_embeds=tokens,
            attention_mask=attention(mask, causal, tokens.dtype),
            position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
            use_cache=False,
        ).last_hidden_state

    def bin_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., 256): the language model's head, its rows of action tokens only.

        No other word is ever spoken here, so likelihoods are those among action tokens (as SimpleVLA-RL and RLinf do).
        """
        last = self.config.vocabulary
        return F.linear(hidden, self.language_model.lm_head.weight[last - BINS : last])

    # -- training -----------------------------------------------------------------------------------------------

    def losses(self, inputs: Inputs, actions, *, generator, repeats: int = 1, places=None) -> dict[str, torch.Tensor]:
        """ "action": mean cross-entropy of one token (nat). Nothing random: ``generator`` and ``repeats`` are not used."""
        prefix = self.encode(inputs)
        tokens = self.tokens_of(self.to_model(actions, inputs.state))
        index = tokens - (self.config.vocabulary - BINS)
        action = F.cross_entropy(self.action_logits(prefix, tokens).flatten(0, 2), index.flatten())
        return {"action": action, **self.locating(prefix, places)}

    def locating(self, prefix: Prefix, places) -> dict[str, torch.Tensor]:
        """The auxiliary loss, where the positions of the objects are known and wanted."""
        return {} if places is None or prefix.located is None else {"locate": locate_loss(prefix.located, places)}

    def log_prob(self, inputs: Inputs, tokens: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
        """(B, H): log-probability of ``tokens`` (B, H, 7), summed over the components of each action; with gradients."""
        return self._log_prob(self.action_logits(self.encode(inputs), tokens), tokens, temperature)

    # -- tokens -------------------------------------------------------------------------------------------------

    def tokens_of(self, x: torch.Tensor) -> torch.Tensor:
        """Normalised actions -> token ids."""
        return to_tokens(x, self.config.vocabulary)

    def values_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Token ids -> normalised actions."""
        return to_values(tokens, self.config.vocabulary)

    def sample(self, inputs: Inputs, generators=None, steps: int | None = None) -> torch.Tensor:
        return self.act(inputs, generators, self.config.temperature)[1]

    def _log_prob(self, logits, tokens, temperature):
        index = tokens - (self.config.vocabulary - BINS)
        return _log_softmax(logits, temperature).gather(-1, index[..., None]).squeeze(-1).sum(-1)

    def _draw(self, logits, chance, temperature):
        """Token ids (...) by inversion: ``chance`` (...) uniform in [0, 1) meets the distribution function of (..., 256)."""
        if temperature == 0:
            index = logits.argmax(-1)
        else:
            steps = _log_softmax(logits.double(), temperature).exp().cumsum(-1)
            index = (steps < chance[..., None] * steps[..., -1:]).sum(-1).clamp_max(BINS - 1)
        return index + self.config.vocabulary - BINS

    def _chances(self, inputs: Inputs, generators, correlation: float = 0.0) -> torch.Tensor:
        """(B, H, 7), each uniform in [0, 1). ``correlation``: of any two of one joint along a chunk (a Gaussian copula): a chunk is ahead
        or behind as a whole, and every token alone is drawn as without."""
        shape = (len(inputs), self.config.horizon, ACTIONS)
        if not correlation:
            return noise(shape, generators, self.device, torch.rand)
        own = noise((shape[0], shape[1] + 1, ACTIONS), generators, self.device)
        mixed = correlation**0.5 * own[:, :1] + (1.0 - correlation) ** 0.5 * own[:, 1:]
        return torch.special.ndtr(mixed.double())


def attention(mask: torch.Tensor, causal: bool, dtype: torch.dtype) -> torch.Tensor:
    """(B, L) -> additive (B, 1, L, L): 0 where a query may look, else the lowest number. Stock Llama takes it as it is."""
    length = mask.shape[1]
    seen = mask.bool()[:, None, None, :].expand(-1, 1, length, length)
    if causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill(~seen, torch.finfo(dtype).min)


def last_token(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(B, D): the hidden state (B, L, D) of each row's last token that is not padding; ``mask`` (B, <= L)."""
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def _log_softmax(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    return (logits / (temperature or 1.0)).log_softmax(-1)
