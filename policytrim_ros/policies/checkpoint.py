"""Checkpoints: a directory that says what it is, what it needs, how it was made, and whether it is whole.

    config.json          size of the network
    model.safetensors    weights
    tokenizer.json       words
    processor.json       what is done to a picture before the network sees it
    golden.safetensors   a few observations and what followed from them (golden.py)
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
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from policytrim_ros.core.contract import Contract, mismatches
from policytrim_ros.files import replace_file, sha256_of
from policytrim_ros.policies.autoregressive import AutoregressiveConfig, AutoregressivePolicy
from policytrim_ros.policies.flow import FlowConfig, FlowPolicy
from policytrim_ros.policies.golden import GOLDEN, Golden
from policytrim_ros.policies.parallel import ParallelConfig, ParallelPolicy
from policytrim_ros.policies.policy import ChunkPolicy

FORMAT = "policytrim-checkpoint"
FORMAT_VERSION = 1
CONFIG, WEIGHTS, TOKENIZER, PROCESSOR, MANIFEST = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "processor.json",
    "manifest.json",
)
FILES = (CONFIG, WEIGHTS, TOKENIZER)
"""What every checkpoint must have; one without processor.json treats pictures as this program does, and one without golden
observations cannot be compared with them."""

ONE_BY_ONE = 12
"""Differences of one part that `diff` lists before it only counts them."""


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
    directory,
    policy: ChunkPolicy,
    *,
    made: Mapping[str, Any],
    evaluation: Mapping[str, Any] | None = None,
    golden: Golden | None = None,
    gate: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    overwrite=False,
) -> dict:
    """Writes ``policy`` as a checkpoint and returns its manifest.

    ``made`` says how: recipe, seed, commit, data_sha256, parent (JSON values). ``golden``: what it predicts, to be compared
    wherever it is loaded; ``gate``: what the simulated twin said (training/gate.py); ``calibration``: why its h (`recommend`). Raises
    CheckpointError when the directory exists (unless ``overwrite``) or when writing fails; then nothing half-written stays and an old
    checkpoint is intact.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise CheckpointError(f"{directory}: exists already; choose another name or allow overwriting")
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in policy.state_dict().items()}
    with _published(directory) as beside:
        _write(beside / CONFIG, _json(asdict(policy.config)))
        _write(beside / TOKENIZER, policy.tokenizer.to_str(pretty=True).encode())
        _write(beside / PROCESSOR, _json(policy.processor()))
        save_file(weights, beside / WEIGHTS, metadata={"format": "pt"})
        shutil.copymode(beside / CONFIG, beside / WEIGHTS)  # safetensors lets the owner alone read it
        _flush(beside / WEIGHTS)
        if golden is not None:
            golden.write(beside / GOLDEN)
            shutil.copymode(beside / CONFIG, beside / GOLDEN)
            _flush(beside / GOLDEN)
        manifest = sealed(
            {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "family": policy.family,
                "architecture": policy.architecture,
                "parameters": sum(tensor.numel() for tensor in policy.parameters()),
                "tasks": list(policy.contract.tasks),
                "contract": policy.contract.to_dict(),
                "made": dict(made),
                "evaluation": dict(evaluation) if evaluation else None,
                "gate": dict(gate) if gate else None,
                **({"calibration": dict(calibration)} if calibration else {}),
                "files": {
                    name: sha256_of(beside / name) for name in (*FILES, PROCESSOR, *([GOLDEN] if golden is not None else []))
                },
            }
        )
        _write(beside / MANIFEST, _json(manifest))
    return json.loads(_json(manifest))


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
        config = family.config.from_mapping(json.loads((directory / CONFIG).read_text()))
        tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        policy = family.policy(config, contract, tokenizer)
        treatment = json.loads((directory / PROCESSOR).read_text()) if PROCESSOR in manifest["files"] else policy.processor()
    except Exception as error:  # tokenizers raises bare Exception; whatever it is, the checkpoint cannot be built
        raise CheckpointError(f"{directory}: cannot be built ({error}); take an intact copy") from error
    if treatment != policy.processor():
        raise CheckpointError(
            f"{directory / PROCESSOR}: pictures are to be treated as {treatment}, this program does {policy.processor()}; "
            "use the matching version of the program"
        )
    _load_weights(policy, directory / WEIGHTS)
    if read_manifest(directory)["seal"] != manifest["seal"]:
        raise CheckpointError(f"{directory}: another checkpoint took its place while it was read; load it again")
    return policy.to(device).eval().requires_grad_(False), manifest


def copy(source, directory) -> dict:
    """Writes the checkpoint in ``source`` once more, as a whole, in place of what ``directory`` may hold; returns its manifest."""
    policy, manifest = load(source)
    return save(
        directory,
        policy,
        made=manifest["made"],
        evaluation=manifest["evaluation"],
        golden=golden_of(source, manifest),
        gate=manifest.get("gate"),
        calibration=manifest.get("calibration"),
        overwrite=True,
    )


def golden_of(directory, manifest: Mapping[str, Any]) -> Golden | None:
    """The golden observations of a checkpoint, or None when it has none. CheckpointError when they cannot be read."""
    if GOLDEN not in manifest["files"]:
        return None
    try:
        return Golden.read(Path(directory) / GOLDEN)
    except ValueError as error:
        raise CheckpointError(str(error)) from error


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
            digest = sha256_of(directory / name)
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


def annotate(directory, **entries: Mapping[str, Any]) -> None:
    """Replaces entries, such as ``evaluation`` or ``gate``, in the manifest of an intact checkpoint (atomically)."""
    directory = Path(directory)
    manifest = sealed({**verify(directory), **entries})
    try:
        replace_file(directory / MANIFEST, _json(manifest))
    except OSError as error:
        raise CheckpointError(f"{directory / MANIFEST}: cannot be written ({error.strerror}); the old one is intact") from error


def recommend(directory, horizon: int, calibration: Mapping[str, Any]) -> None:
    """Makes ``horizon`` the execution horizon of an intact checkpoint, with the evidence for it (atomically).

    CheckpointError, and nothing is changed, when it predicts fewer actions. What passed the gate with another h has to pass it again.
    """
    theirs = contract_of(read_manifest(directory), directory)
    if not 1 <= horizon <= theirs.prediction_horizon:
        raise CheckpointError(
            f"{directory}: h = {horizon} is not possible, it predicts H = {theirs.prediction_horizon} actions; calibrate with 1 to H"
        )
    annotate(directory, contract=replace(theirs, execution_horizon=horizon).to_dict(), calibration=calibration)


def sealed(manifest: Mapping[str, Any]) -> dict:
    """The manifest with ``seal``: SHA-256 over its canonical JSON without that entry."""
    body = {key: value for key, value in manifest.items() if key != "seal"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    return {**body, "seal": hashlib.sha256(canonical).hexdigest()}


def some(names) -> str:
    """The first three names and how many more; "none" for none."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "none"


def diff(first, second) -> list[str]:
    """Sentences that say in what two intact checkpoints differ; empty when they are the same policy made the same way.

    The weights are compared tensor by tensor and told by group: relative L2 distance |second - first| / |first|.
    Raises CheckpointError where one of them is damaged.
    """
    pair = [Path(first), Path(second)]
    manifests = [verify(directory) for directory in pair]
    found = []
    for key in ("family", "architecture", "parameters", "tasks"):
        found += _differences(key, *(manifest.get(key) for manifest in manifests))
    for part, name in (("config", CONFIG), ("processor", PROCESSOR)):
        values = [json.loads((directory / name).read_bytes()) if (directory / name).exists() else None for directory in pair]
        found += _differences(part, *values)
    contracts = [dict(manifest["contract"]) for manifest in manifests]
    norms = [contract.pop("normalisation", {}) for contract in contracts]
    found += _differences("contract", *contracts) + _normalisation_differences(*norms)
    if manifests[0]["files"][TOKENIZER] != manifests[1]["files"][TOKENIZER]:
        words = [set(Tokenizer.from_file(str(directory / TOKENIZER)).get_vocab()) for directory in pair]
        only = [some(sorted(ours - theirs)) for ours, theirs in (words, words[::-1])]
        found.append(f"tokenizer: words only in the first: {only[0]}; only in the second: {only[1]}")
    for key in ("made", "evaluation"):
        found += _differences(key, *(manifest.get(key) for manifest in manifests))
    if manifests[0]["files"][WEIGHTS] != manifests[1]["files"][WEIGHTS]:
        found += _weight_differences(*(directory / WEIGHTS for directory in pair))
    return found


def _differences(name: str, first, second) -> list[str]:
    """One sentence for each entry that differs, however deep; many are counted."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = list(dict.fromkeys([*first, *second]))
        found = [line for key in keys for line in _differences(f"{name}.{key}", first.get(key), second.get(key))]
    elif isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        found = [line for i, values in enumerate(zip(first, second)) for line in _differences(f"{name}[{i}]", *values)]
    else:
        return [] if first == second else [f"{name}: {_short(first)} in the first, {_short(second)} in the second"]
    return found if len(found) <= ONE_BY_ONE else [*found[:ONE_BY_ONE], f"{name}: {len(found) - ONE_BY_ONE} more differences"]


def _normalisation_differences(first: Mapping, second: Mapping) -> list[str]:
    found = []
    for key in dict.fromkeys([*first, *second]):
        if key not in first or key not in second:
            found.append(f"contract.normalisation.{key}: only in the {'second' if key in second else 'first'}")
        elif first[key] != second[key]:
            low, high = ([np.asarray(norm[key][end], float) for norm in (first, second)] for end in ("q01", "q99"))
            if low[0].shape != low[1].shape:
                found.append(f"contract.normalisation.{key}: shape {low[0].shape} in the first, {low[1].shape} in the second")
            else:
                far = max(np.abs(ends[0] - ends[1]).max() for ends in (low, high))
                found.append(f"contract.normalisation.{key}: quantiles differ by up to {far:.3g} rad or m")
    return found


def _weight_differences(first: Path, second: Path) -> list[str]:
    found, groups = [], {}
    with _tensors(first) as ours, _tensors(second) as theirs:
        names = [set(ours.keys()), set(theirs.keys())]
        for where, only in (("first", names[0] - names[1]), ("second", names[1] - names[0])):
            if only:
                found.append(f"weights: {len(only)} tensors only in the {where}: {some(sorted(only))}")
        for name in sorted(names[0] & names[1]):
            a, b = ours.get_tensor(name).double(), theirs.get_tensor(name).double()
            if a.shape != b.shape:
                found.append(f"weights: {name} has shape {tuple(a.shape)} in the first, {tuple(b.shape)} in the second")
                continue
            group = groups.setdefault(".".join(name.split(".")[:4]), [0, 0, 0.0, 0.0])
            far = float((b - a).square().sum())
            group[0], group[1], group[2], group[3] = (
                group[0] + 1,
                group[1] + (far > 0),
                group[2] + far,
                group[3] + float(a.square().sum()),
            )
    changed = {name: group for name, group in groups.items() if group[1]}
    if not changed:
        return found
    total = [sum(group[i] for group in groups.values()) for i in range(4)]
    for name, (count, moved, far, size) in {"all that both have": total, **changed}.items():
        distance = f"{(far / size) ** 0.5:.3g}" if size else "infinite (the first is zero)"
        found.append(f"weights, {name}: {moved} of {count} tensors changed, relative L2 distance {distance}")
    return found


def _load_weights(policy: torch.nn.Module, path: Path) -> None:
    """Copies the weights of a file into the network, tensor by tensor."""
    expected = policy.state_dict()
    with _tensors(path) as file:
        names = set(file.keys())
        missing, unknown = sorted(set(expected) - names), sorted(names - set(expected))
        if missing or unknown:
            raise CheckpointError(
                f"{path}: weights missing: {some(missing)}; weights unknown: {some(unknown)}; it belongs to another network"
            )
        for name, ours in expected.items():
            tensor = file.get_tensor(name)
            if tensor.shape != ours.shape:
                raise CheckpointError(
                    f"{path}: weight '{name}' has shape {tuple(tensor.shape)}, "
                    f"config.json asks for {tuple(ours.shape)}; take an intact copy"
                )
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{path}: weight '{name}' holds NaN or infinity; take an earlier checkpoint")
            ours.copy_(tensor)


@contextmanager
def _tensors(path: Path) -> Iterator:
    """The tensors of a safetensors file, mapped into memory and read one by one."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); take an intact copy") from error


@contextmanager
def _published(directory: Path) -> Iterator[Path]:
    """A directory to write into, beside the given one, which takes its place when all is written."""
    token = secrets.token_hex(4)
    beside, previous = (directory.parent / f".{directory.name}.{kind}-{token}" for kind in ("saving", "previous"))
    try:
        beside.mkdir(parents=True)
        yield beside
        if directory.exists():
            os.rename(directory, previous)
        os.rename(beside, directory)
    except (OSError, SafetensorError) as error:
        if previous.exists() and not directory.exists():
            os.rename(previous, directory)
        raise CheckpointError(
            f"{directory}: could not be saved ({getattr(error, 'strerror', None) or error}); "
            "nothing was left behind, free some space and repeat"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(previous, ignore_errors=True)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    _flush(path)


def _flush(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _json(value) -> bytes:
    return (json.dumps(value, indent=2, allow_nan=False) + "\n").encode()


def _short(value) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
