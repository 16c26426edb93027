"""Several processes that train one policy, on one machine or on many, through accelerate.

    accelerate launch --num_processes 2 -m policytrim_ros.cli train sft --recipe RECIPE
    torchrun --nproc-per-node 2 -m policytrim_ros.cli train sft --recipe RECIPE

Each process works through its pieces of every batch; `reduce` adds up gradients and figures, so that all end the step
with the same weights. A program started plainly is one process of one.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Mapping, Sequence

import torch
import torch.distributed
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from policytrim_ros.core.config import ConfigError

PATIENCE = timedelta(hours=4)
"""How long the others wait while the first process evaluates in the simulator."""


class Processes:
    """This process among those of one run. ``device``: auto (a GPU if there is one), cpu or cuda."""

    def __init__(self, device: str = "auto"):
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda': this machine has no GPU that torch can use; take --device cpu")
        self._state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=PATIENCE)
        self.count, self.rank, self.first = self._state.num_processes, self._state.process_index, self._state.is_main_process
        self.device = torch.device("cpu") if device == "cpu" else self._state.device

    def reduce(self, parameters: Sequence[torch.nn.Parameter], figures: Mapping[str, float]) -> dict[str, float]:
        """Adds up, over all processes, the gradients in place and ``figures`` (the same names everywhere)."""
        if self.count == 1:
            return dict(figures)
        flat = torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten().float() for p in parameters])
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=flat.device)
        both = torch.cat([flat, used])
        torch.distributed.all_reduce(both)
        gradients, used = both[: len(flat)], both[len(flat) :].tolist()
        for parameter, gradient, count in zip(parameters, gradients.split([p.numel() for p in parameters]), used):
            # laid out in memory as the parameter is, which the fused optimiser takes for granted
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view(parameter.shape)) if count else None
        sums = torch.tensor([float(value) for value in figures.values()], dtype=torch.float64, device=flat.device)
        torch.distributed.all_reduce(sums)
        return dict(zip(figures, sums.tolist()))

    def agree(self, value):
        """The first process's ``value`` (any small Python object), in every process."""
        return broadcast_object_list([value])[0] if self.count > 1 else value

    @staticmethod
    def speaks_for_machine() -> bool:
        """Is this the process of its machine that reports what goes wrong?"""
        return os.environ.get("LOCAL_RANK", "0") == "0"

    def close(self) -> None:
        """Takes leave of the others at the end of the program."""
        if self.count > 1:
            self._state.destroy_process_group()
