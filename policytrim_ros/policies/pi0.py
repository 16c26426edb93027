"""Import of a pi0 in transformers format: the directory that `PI0ForConditionalGeneration.save_pretrained` writes.

    policytrim checkpoint import DIRECTORY --contract contract.yaml --out models/pi0

The directory gives the network (config.json, model.safetensors or its shards), the words (tokenizer.json) and the treatment
of pictures (processor_config.json or preprocessor_config.json); the contract gives what no such directory knows: cameras,
horizons, units and normalisation. State and actions are those of ChunkPolicy (relative joint targets, quantiles), padded
with zeros to the network's size; a published pi0 was trained on other robots and has to be fine-tuned before it can move
this one. A source that was normalised with mean and standard deviation has q01 = mean - std, q99 = mean + std.

transformers itself reads the weights, under the names it published them with, and from safetensors only; nothing in the
directory is executed: the configuration is reduced to sizes, and pickles, adapters and foreign model types are refused.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Mapping

import numpy as np
import yaml
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import PI0Config, PI0ForConditionalGeneration

from policytrim_ros.core.contract import Contract
from policytrim_ros.files import sha256_of
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.checkpoint import CheckpointError
from policytrim_ros.policies.flow import TRANSFORMER_KEYS, VISION_KEYS, FlowConfig, FlowPolicy, pi0_config

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICTURES = {"rescale_factor": 1 / 255, "image_mean": 0.5, "image_std": 0.5}
"""How pictures must have been scaled: to [-1, 1]."""


def import_pi0(directory, contract: Contract, out, made: Mapping[str, Any]) -> dict:
    """Writes the pi0 in ``directory`` as a checkpoint of this project with that contract; returns the manifest.

    The prediction horizon is the contract's (no weight depends on it); ``made`` is completed with the origin and the
    SHA-256 of its files. Raises CheckpointError, in one sentence, for anything that is missing or does not fit.
    """
    directory = Path(directory)
    if Path(out).exists():
        raise CheckpointError(f"{out}: exists already; choose another name")
    sizes, steps, chunk = sizes_of(directory)
    _check_pictures(directory, sizes["vision"]["image_size"])
    tokenizer, begin = _tokenizer(directory)
    files = _weights(directory)
    try:
        config = FlowConfig(
            horizon=contract.prediction_horizon, denoising_steps=steps, vision="siglip", prompt=f"{begin}{{}}\n", pi0=sizes
        )
        policy = FlowPolicy(config, contract, tokenizer, pi0=_network(directory, config)).eval()
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{directory}: does not fit the contract ({error})") from error
    origin = {
        "directory": directory.resolve().name,
        "chunk_size": chunk,
        "files": {name: sha256_of(directory / name) for name in ("config.json", "tokenizer.json", *files)},
    }
    return checkpoint.save(out, policy, made={**made, "imported": origin})


def read_contract(path) -> Contract:
    """A contract from YAML or JSON; what is not said is as in `Contract`. One row of action quantiles stands for all H.

    Raises ValueError that names what is wrong.
    """
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected a mapping of the contract's entries")
    try:
        contract = Contract.from_dict({**Contract(cameras=()).to_dict(), **values})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for name in ("state", "actions"):
        if name not in contract.normalisation:
            raise ValueError(f"{path}: normalisation of '{name}' is missing; give its q01 and q99")
    actions = contract.normalisation["actions"]
    if np.ndim(actions.q01) == 1:
        rows = contract.prediction_horizon
        actions = replace(actions, q01=(actions.q01,) * rows, q99=(actions.q99,) * rows)
    return replace(contract, normalisation={**contract.normalisation, "actions": actions})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", help="directory with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("--contract", required=True, help="YAML or JSON: cameras, horizons, tasks, normalisation, ...")
    parser.add_argument("--out", required=True, help="directory of the new checkpoint")


def main(options: argparse.Namespace) -> int:
    try:
        manifest = import_pi0(options.directory, read_contract(options.contract), options.out, {"recipe": "import"})
    except (ValueError, OSError) as error:
        print(f"checkpoint import: {error}", file=sys.stderr)
        return 1
    contract = manifest["contract"]
    print(
        f"{options.out}: {manifest['parameters'] / 1e6:.1f} M parameters, H = {contract['prediction_horizon']}, "
        f"cameras {', '.join(camera['name'] for camera in contract['cameras'])}"
    )
    return 0


def _network(directory: Path, config: FlowConfig) -> PI0ForConditionalGeneration:
    """The network with the weights of the directory; every weight must be there, and no other."""
    try:
        network, report = PI0ForConditionalGeneration.from_pretrained(
            directory,
            config=pi0_config(config, None, 0),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            attn_implementation="sdpa",
            dtype="float32",
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
        )
    except (SafetensorError, OSError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{directory}: the weights cannot be read ({error}); take an intact copy") from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[kind]:
            raise CheckpointError(
                f"{directory}: {kind.replace('_', ' ')} in the weights: {checkpoint.some(sorted(map(str, report[kind])))}; "
                "they do not belong to its config.json"
            )
    for name, weight in network.state_dict().items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{directory}: weight '{name}' holds NaN or infinity; take another version")
    return network


def sizes_of(directory: Path) -> tuple[dict, int, int]:
    """Sizes of the network as `FlowConfig.pi0` wants them, denoising steps, and length of a chunk."""
    path = directory / "config.json"
    values = _json(path)
    kinds = [values, values.get("vlm_config"), values.get("dit_config")]
    kinds += [(kinds[1] or {}).get(part) for part in ("text_config", "vision_config")] if isinstance(kinds[1], dict) else []
    found = [kind.get("model_type") if isinstance(kind, dict) else None for kind in kinds]
    if found != ["pi0", "paligemma", "gemma", "gemma", "siglip_vision_model"]:
        raise CheckpointError(
            f"{path}: is not the configuration of a PI0ForConditionalGeneration of transformers (PaliGemma with a Gemma and a "
            f"SigLIP, and a Gemma as expert) but of {values.get('model_type') or values.get('type') or 'something else'}; "
            "write it with save_pretrained of that class"
        )
    try:
        made = PI0Config.from_dict(values)
    except Exception as error:  # transformers validates each field with an error class of its own
        raise CheckpointError(f"{path}: does not describe a pi0 ({error})") from error
    parts = (("text", made.vlm_config.text_config), ("expert", made.dit_config), ("vision", made.vlm_config.vision_config))
    sizes: dict[str, Any] = {
        name: {key: getattr(part, key) for key in sorted(VISION_KEYS if name == "vision" else TRANSFORMER_KEYS)}
        for name, part in parts
    }
    sizes["image_token_id"] = made.vlm_config.image_token_id
    for key in ("max_state_dim", "max_action_dim", "min_period", "max_period"):
        sizes[key] = getattr(made, key)
    return sizes, made.num_inference_steps, made.chunk_size


def _check_pictures(directory: Path, side: int) -> None:
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (path := directory / name).exists():
            continue
        values = _json(path)
        values = values.get("image_processor", values)
        for key, expected in PICTURES.items():
            if key in values and not np.allclose(values[key], expected):
                raise CheckpointError(
                    f"{path}: {key} = {values[key]}, but here pictures are scaled to [-1, 1] ({key} = {expected:.4g}); "
                    "fine-tune the network to that first"
                )
        size = values.get("pad_size") or values.get("size") or {}
        if any(length != side for length in size.values() if isinstance(length, int)):
            raise CheckpointError(f"{path}: pictures of {size}, but the network of config.json looks at {side}x{side} px")


def _tokenizer(directory: Path) -> tuple[Tokenizer, str]:
    """The tokenizer, padding on the right and adding nothing by itself, and the token that begins a prompt."""
    path = directory / "tokenizer.json"
    values, special = _json(path), {"bos_token": "<bos>", "pad_token": "<pad>"}
    if (named := directory / "tokenizer_config.json").exists():
        for key, token in _json(named).items():
            if key in special and token:
                special[key] = token["content"] if isinstance(token, dict) else token
    values.update(
        post_processor=None, truncation=None, padding=None
    )  # the prompt writes its beginning itself, as PI0Processor does
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # tokenizers raises bare Exception
        raise CheckpointError(f"{path}: is not a tokenizer ({error})") from error
    for token in special.values():
        if tokenizer.token_to_id(token) is None:
            raise CheckpointError(f"{path}: does not know the token {token}; take the tokenizer that belongs to the network")
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(special["pad_token"]), pad_token=special["pad_token"])
    return tokenizer, special["bos_token"]


def _weights(directory: Path) -> list[str]:
    """Names of the files with the weights."""
    if (directory / "adapter_config.json").exists():
        raise CheckpointError(f"{directory}: holds an adapter (adapter_config.json); merge it into the network and save that")
    if (directory / WEIGHTS).exists():
        return [WEIGHTS]
    if not (directory / INDEX).exists():
        pickles = sorted(path.name for path in directory.glob("*") if path.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        if pickles:
            raise CheckpointError(
                f"{directory}: has its weights in {pickles[0]}, a pickle, which could execute code; "
                "convert them to safetensors (save_pretrained of transformers does) and import that"
            )
        raise CheckpointError(f"{directory}: has neither {WEIGHTS} nor {INDEX}")
    shards = sorted(set(_json(directory / INDEX).get("weight_map", {}).values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors") or not (directory / shard).is_file():
            raise CheckpointError(f"{directory / INDEX}: names '{shard}', which is not a safetensors file of this directory")
    return [INDEX, *shards]


def _json(path: Path) -> dict:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: expected a mapping")
    return values
