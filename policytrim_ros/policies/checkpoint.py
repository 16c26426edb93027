"""Checkpoints: a directory that says what it is, what it needs, how it was made, and whether it is whole.

    config.json          size of the network
    model.safetensors    weights
    tokenizer.json       words
    manifest.json        contract, family, tasks, origin, evaluation, SHA-256 of every file and of itself

A checkpoint is written beside its place and renamed, so that it is there completely or not at all. Loading executes
nothing from the checkpoint: JSON, safetensors, and classes of this project chosen by the family's name.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from tokenizers import Tokenizer

from policytrim_ros.core.contract import Contract, mismatches
from policytrim_ros.policies.autoregressive import AutoregressiveConfig, AutoregressivePolicy
from policytrim_ros.policies.flow import FlowConfig, FlowPolicy
from policytrim_ros.policies.parallel import ParallelConfig, ParallelPolicy
from policytrim_ros.policies.policy import ChunkPolicy

FORMAT = "policytrim-checkpoint"
FORMAT_VERSION = 1
FILES = ("config.json", "model.safetensors", "tokenizer.json")
MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint cannot be used; one sentence: which, what is wrong, what to do."""


@dataclass(frozen=True)
class Family:
    """How one kind of policy is rebuilt: its configuration class and its network class."""

    config: Any
    policy: Callable


FAMILIES = {
    FlowPolicy.family: Family(FlowConfig, FlowPolicy),
    ParallelPolicy.family: Family(ParallelConfig, ParallelPolicy),
    AutoregressivePolicy.family: Family(AutoregressiveConfig, AutoregressivePolicy),
}


def save(
    directory, policy: ChunkPolicy, *, made: Mapping[str, Any], evaluation: Mapping[str, Any] | None = None, overwrite=False
) -> dict:
    """Writes ``policy`` as a checkpoint and returns its manifest.

    ``made`` says how: recipe, seed, commit, data_sha256, parent (JSON values). Raises CheckpointError when the directory
    exists (unless ``overwrite``) or when writing fails; then nothing half-written stays and an old checkpoint is intact.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise CheckpointError(f"{directory}: exists already; choose another name or allow overwriting")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    contents = {
        "config.json": _json(asdict(policy.config)),
        "model.safetensors": tensors_to_bytes(weights, metadata={"format": "pt"}),
        "tokenizer.json": policy.tokenizer.to_str(pretty=True).encode(),
    }
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "family": policy.family,
        "architecture": policy.architecture,
        "parameters": sum(tensor.numel() for tensor in policy.parameters()),
        "tasks": list(policy.contract.tasks),
        "contract": policy.contract.to_dict(),
        "made": dict(made),
        "evaluation": dict(evaluation) if evaluation else None,
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    contents[MANIFEST] = _json(sealed(manifest))
    _publish(directory, contents)
    return json.loads(contents[MANIFEST])


def load(directory, *, robot: Contract | None = None, device: str = "cpu") -> tuple[ChunkPolicy, dict]:
    """(policy in evaluation mode, manifest). With ``robot`` the contract is compared and a misfit refused.

    Raises CheckpointError for anything that is missing, changed, of another version or family, or does not fit.
    """
    directory = Path(directory)
    manifest = verify(directory)
    contract = contract_of(manifest, directory)
    if robot is not None and (misfits := mismatches(contract, robot)):
        raise CheckpointError(
            f"{directory}: does not fit this robot: {'; '.join(misfits)}; "
            "choose a checkpoint made for it or change the deployment"
        )
    family = FAMILIES[manifest["family"]]
    try:
        config = family.config.from_mapping(json.loads((directory / "config.json").read_text()))
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        policy = family.policy(config, contract, tokenizer)
    except Exception as error:  # tokenizers raises bare Exception; whatever it is, the checkpoint cannot be built
        raise CheckpointError(f"{directory}: cannot be built ({error}); take an intact copy") from error
    _load_weights(policy, directory / "model.safetensors")
    return policy.to(device).eval().requires_grad_(False), manifest


def verify(directory) -> dict:
    """The manifest of an intact checkpoint: format, version, family and the SHA-256 of every file. CheckpointError otherwise."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    for name in FILES:
        if name not in manifest["files"]:
            raise CheckpointError(f"{directory / MANIFEST}: does not list {name}; take an intact copy")
    for name, expected in manifest["files"].items():
        if Path(name).name != name:
            raise CheckpointError(
                f"{directory / MANIFEST}: names a file outside the checkpoint ('{name}'); do not use this checkpoint"
            )
        try:
            digest = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        except OSError as error:
            raise CheckpointError(f"{directory / name}: cannot be read ({error.strerror}); take an intact copy") from error
        if digest != expected:
            raise CheckpointError(
                f"{directory / name}: changed or truncated since it was saved (SHA-256 differs); take an intact copy"
            )
    return manifest


def read_manifest(directory) -> dict:
    """manifest.json, checked for format, version, family and its own seal, without reading the weights."""
    path = Path(directory) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory}: is not a checkpoint (no {MANIFEST}); give the directory that holds it") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take an intact copy") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: is not a manifest of this project; give a checkpoint directory")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: has format version {manifest.get('format_version')}, this program reads {FORMAT_VERSION}; "
            "use the matching version of the program"
        )
    for key in ("family", "contract", "files", "tasks", "made", "seal"):
        if key not in manifest:
            raise CheckpointError(f"{path}: the entry '{key}' is missing; take an intact copy")
    if sealed(manifest)["seal"] != manifest["seal"]:
        raise CheckpointError(f"{path}: was changed since it was saved (its seal differs); take an intact copy")
    if manifest["family"] not in FAMILIES:
        raise CheckpointError(
            f"{path}: is of family '{manifest['family']}', this program knows {', '.join(FAMILIES)}; use another checkpoint"
        )
    return manifest


def contract_of(manifest: Mapping[str, Any], directory="checkpoint") -> Contract:
    """The contract in a manifest; CheckpointError when it is malformed."""
    try:
        return Contract.from_dict(manifest["contract"])
    except ValueError as error:
        raise CheckpointError(f"{directory}: {error}; take an intact copy") from error


def record_evaluation(directory, evaluation: Mapping[str, Any]) -> None:
    """Replaces the evaluation summary in the manifest of an intact checkpoint (atomically)."""
    directory = Path(directory)
    manifest = sealed({**verify(directory), "evaluation": dict(evaluation)})
    beside = directory / f".{MANIFEST}.{secrets.token_hex(4)}"
    try:
        _write(beside, _json(manifest))
        os.replace(beside, directory / MANIFEST)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise CheckpointError(f"{directory / MANIFEST}: cannot be written ({error.strerror}); the old one is intact") from error


def sealed(manifest: Mapping[str, Any]) -> dict:
    """The manifest with ``seal``: SHA-256 over its canonical JSON without that entry."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return {**body, "seal": hashlib.sha256(canonical).hexdigest()}


def _load_weights(policy: torch.nn.Module, path: Path) -> None:
    try:
        weights = tensors_from_bytes(path.read_bytes())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take an intact copy") from error
    expected = policy.state_dict()
    missing, unknown = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or unknown:
        raise CheckpointError(
            f"{path}: weights missing: {_some(missing)}; weights unknown: {_some(unknown)}; it belongs to another network"
        )
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{path}: weight '{name}' has shape {tuple(tensor.shape)}, "
                f"config.json asks for {tuple(expected[name].shape)}; take an intact copy"
            )
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{path}: weight '{name}' holds NaN or infinity; take an earlier checkpoint")
    policy.load_state_dict(weights)


def _publish(directory: Path, contents: Mapping[str, bytes]) -> None:
    token = secrets.token_hex(4)
    beside, previous = (directory.parent / f".{directory.name}.{kind}-{token}" for kind in ("saving", "previous"))
    try:
        beside.mkdir(parents=True)
        for name, data in contents.items():
            _write(beside / name, data)
        if directory.exists():
            os.rename(directory, previous)
        os.rename(beside, directory)
    except OSError as error:
        if previous.exists() and not directory.exists():
            os.rename(previous, directory)
        raise CheckpointError(
            f"{directory}: could not be saved ({error.strerror or error}); nothing was left behind, free some space and repeat"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(previous, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _json(value) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _some(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"
