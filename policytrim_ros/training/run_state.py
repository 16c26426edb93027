"""The state that a training run resumes from: one file, written beside its place and renamed, so that it is whole or the old one.

save(path, tensors, facts)      tensors: name -> tensor; facts: JSON values that say what they belong to
tensors, facts = load(path)
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes

from policytrim_ros.files import claim, replace_file

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names that AdamW gives its moments."""


class TrainingError(RuntimeError):
    """Training cannot start or go on; one sentence: what, where, what to do."""


def save(path, tensors: Mapping[str, torch.Tensor], facts: Mapping[str, Any]) -> None:
    """Replaces the state in ``path``. TrainingError when that fails (a full disk); the old state is intact then."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        replace_file(path, tensors_to_bytes(plain, metadata={"facts": json.dumps(facts)}))
    except OSError as error:
        raise TrainingError(
            f"{path}: could not be written ({error.strerror}); free some space and repeat the command, the last state is intact"
        ) from error


@contextmanager
def curves_in(run_dir) -> Iterator[None]:
    """Turns an OSError of what else a run writes, its curves, into a TrainingError; states have sentences of their own."""
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"{error.filename or run_dir}: {error.strerror}; free some space and repeat the command, the last state is intact"
        ) from error


@contextmanager
def alone_in(run_dir) -> Iterator[None]:
    """Makes the run's directory and keeps it for this process. TrainingError while another process works in it."""
    run_dir = Path(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    try:
        lock = claim(run_dir / ".lock")
    except BlockingIOError as error:
        raise TrainingError(
            f"{run_dir}: {error.strerror} is at work in it; wait for its end or stop it, or give another --run"
        ) from None
    with lock:
        yield


def moments(optimizer: torch.optim.AdamW, trained: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """What AdamW remembers of the parameters that it has moved, by name, for `save`."""
    known = {name: optimizer.state[parameter] for name, parameter in trained.items() if optimizer.state.get(parameter)}
    return {f"{key}.{name}": state[key] for name, state in known.items() for key in MOMENTS}


def restore_moments(
    optimizer: torch.optim.AdamW, trained: Mapping[str, torch.nn.Parameter], tensors: Mapping[str, torch.Tensor], steps: int
) -> None:
    """Inverse of `moments`, after ``steps`` optimiser steps."""
    for name, parameter in trained.items():
        if f"{MOMENTS[0]}.{name}" in tensors:
            where = parameter.device if optimizer.defaults["fused"] else "cpu"
            optimizer.state[parameter] = {
                "step": torch.tensor(float(steps), device=where),
                **{key: torch.zeros_like(parameter).copy_(tensors[f"{key}.{name}"]) for key in MOMENTS},
            }


def load(path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """(tensors, facts) of a saved state, or None when there is none. TrainingError when it cannot be read."""
    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["facts"])
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise TrainingError(f"{path}: cannot be read ({error}); delete {path.parent} to start again") from error
