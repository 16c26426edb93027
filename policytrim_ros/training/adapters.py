"""Low-rank adapters (LoRA, arXiv 2106.09685) through peft: a large policy is trained by a few weights beside its own.

`attach` puts them in, `merged_copy` returns a policy of the plain architecture whose weights have them added, and
`SwitchedOff` is the policy as it was before it had any.
"""

from __future__ import annotations

import torch

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import Contract
from policytrim_ros.policies.policy import ChunkPolicy
from policytrim_ros.training.recipe import Lora

NAME = "default"


def attach(policy: ChunkPolicy, lora: Lora, seed: int) -> None:
    """Freezes ``policy`` and puts adapters, drawn by ``seed``, beside the layers that ``lora`` names; does nothing at rank 0.

    ConfigError when a name fits no layer.
    """
    if not lora.rank:
        return
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds to import

    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
    for target in lora.targets:
        if not any(name.split(".")[-1] == target or name.endswith(f".{target}") for name, _ in policy.named_modules()):
            raise ConfigError(f"Lora.targets: the network has no layer '{target}'; it has {', '.join(_layers(policy))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(config, policy, NAME)
        except ValueError as error:
            raise ConfigError(f"Lora.targets = {lora.targets}: {error}") from error
    for part in lora.train:
        chosen = [parameter for name, parameter in policy.named_parameters() if part in name and "lora_" not in name]
        if not chosen:
            raise ConfigError(f"Lora.train: no weight of the network has '{part}' in its name")
        for parameter in chosen:
            parameter.requires_grad_(True)


class SwitchedOff:
    """A context in which ``policy`` predicts without its adapters: a reference that costs no second copy of the weights."""

    def __init__(self, policy: ChunkPolicy):
        from peft.tuners.tuners_utils import BaseTunerLayer

        self._policy = policy
        self._layers = [module for module in policy.modules() if isinstance(module, BaseTunerLayer)]

    def __enter__(self) -> ChunkPolicy:
        for layer in self._layers:
            layer._disable_adapters = True  # enable_adapters() would also freeze the adapters of a graph that is being built
        return self._policy

    def __exit__(self, *_) -> None:
        for layer in self._layers:
            layer._disable_adapters = False


def merged_copy(policy: ChunkPolicy, contract: Contract | None = None) -> ChunkPolicy:
    """A policy of its own on the CPU, in evaluation mode, with all adapters added to the layers they stand beside; under another
    ``contract`` where one is given."""
    copy = type(policy)(policy.config, contract or policy.contract, policy.tokenizer)
    copy.load_state_dict(merged_weights(policy))
    return copy.eval().requires_grad_(False)


@torch.no_grad()
def merged_weights(policy: ChunkPolicy) -> dict[str, torch.Tensor]:
    """The weights of the plain architecture."""
    weights = {}
    for name, tensor in policy.state_dict().items():
        if ".lora_" in name:
            continue
        owner, _, kind = name.rpartition(".base_layer.")
        if owner and kind == "weight":
            tensor = tensor + policy.get_submodule(owner).get_delta_weight(NAME).to(tensor)
        weights[f"{owner}.{kind}" if owner else name] = tensor
    return weights


def _layers(policy) -> list[str]:
    names = {name.split(".")[-1] for name, module in policy.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(name for name in names if not name.isdigit())
