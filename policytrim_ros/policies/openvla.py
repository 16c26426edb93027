"""Published OpenVLA weights under our names: what each parameter of a token policy is called there.

    openvla-7b:         vision_backbone.featurizer.* (DINOv2, timm), vision_backbone.fused_featurizer.* (SigLIP, timm),
                        projector.fc1..3, language_model.* (Llama 2)
    OpenVLA-OFT adds:   proprio_projector--*.pt and action_head--*.pt, their names here after proprio_projector. and action_head.

timm keeps query, key and value in one matrix, transformers in three; timm adds no position to the class token. The published
towers have one block and one norm more than are used, SigLIP also a pooling head: these have no place here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Mapping

import torch

from policytrim_ros.policies.prismatic import PrismaticPolicy

OPENVLA_7B = {
    "image_size": 224,
    "patch_size": 14,
    "dino_hidden": 1024,
    "dino_layers": 23,
    "dino_heads": 16,
    "siglip_hidden": 1152,
    "siglip_layers": 26,
    "siglip_heads": 16,
    "siglip_feed_forward": 4304,
    "hidden": 4096,
    "feed_forward": 11008,
    "layers": 32,
    "heads": 32,
    "key_value_heads": 32,
    "vocabulary": 32000,
    "locate": False,
}
"""Configuration of openvla/openvla-7b (dinosiglip-vit-so-224px, Llama 2 7B)."""

OURS = ("locator.", "place_projector.", "placeholders")
"""Parameters that no published network has."""

DINO, SIGLIP = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."

_TOWERS = {
    DINO: (
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.patch_embeddings\.projection\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.layer\.(\d+)\.attention\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.qkv.\3"),
        (r"encoder\.layer\.(\d+)\.attention\.o_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1", r"blocks.\1.ls\2.scale_factor"),
        (r"encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.(\w+)", r"blocks.\1.\2.\3"),
    ),
    SIGLIP: (
        (r"embeddings\.position_embedding\.weight", "pos_embed"),
        (r"embeddings\.patch_embedding\.(\w+)", r"patch_embed.proj.\1"),
        (r"encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(\w+)", r"blocks.\1.attn.qkv.\3"),
        (r"encoder\.layers\.(\d+)\.self_attn\.out_proj\.(\w+)", r"blocks.\1.attn.proj.\2"),
        (r"encoder\.layers\.(\d+)\.layer_norm([12])\.(\w+)", r"blocks.\1.norm\2.\3"),
        (r"encoder\.layers\.(\d+)\.(mlp\.fc[12])\.(\w+)", r"blocks.\1.\2.\3"),
    ),
}


@dataclass(frozen=True)
class Source:
    """Where a parameter comes from: the published ``name``, and which third of it (0 query, 1 key, 2 value) or None for all."""

    name: str
    third: int | None = None


def published_source(name: str) -> Source | None:
    """The source of our parameter ``name``; None for those that are ours alone. KeyError for a name that no policy has."""
    if name.startswith(OURS):
        return None
    for tower, patterns in _TOWERS.items():
        if name.startswith(tower):
            inside = name.removeprefix(tower)
            for pattern, replacement in patterns:
                if match := re.fullmatch(pattern, inside):
                    third = "qkv".index(match[2]) if ".qkv." in replacement else None
                    return Source(tower + match.expand(replacement), third)
            raise KeyError(name)
    if name.startswith(("projector.", "language_model.", "proprio_projector.", "action_head.")):
        return Source(name)
    raise KeyError(name)


def load_published(policy: PrismaticPolicy, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """Copies published ``tensors`` (name -> tensor, any float type) into ``policy``; returns the names that kept their values.

    Those are ours alone, or belong to a file that was not given (proprio_projector, action_head). ValueError names a tensor that
    is missing from a file that was given, or has another shape; nothing is copied then.
    """
    given = {name.split(".", 1)[0] for name in tensors}
    values, kept = {}, []
    for name, parameter in policy.named_parameters():
        source = published_source(name)
        if source is None or (source.name not in tensors and source.name.split(".", 1)[0] not in given):
            kept.append(name)
            continue
        if source.name not in tensors:
            raise ValueError(f"the published weights lack '{source.name}'")
        values[parameter] = _converted(name, tensors[source.name], source)
        if values[parameter].shape != parameter.shape:
            raise ValueError(
                f"'{source.name}' has shape {tuple(tensors[source.name].shape)}, which does not make the "
                f"{tuple(parameter.shape)} of '{name}'"
            )
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
    return kept


def _converted(name: str, tensor: torch.Tensor, source: Source) -> torch.Tensor:
    if source.third is not None:
        return tensor.chunk(3)[source.third]
    if name == SIGLIP + "embeddings.position_embedding.weight":
        return tensor.squeeze(0)
    if name == DINO + "embeddings.position_embeddings":  # timm's class token has its position inside
        return torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
    return tensor
