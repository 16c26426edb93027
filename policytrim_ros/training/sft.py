"""Supervised fine-tuning of any policy family on demonstrations, with an auxiliary loss that asks where the objects are.

    loss = losses["action"] + locate_weight * losses["locate"]        both from the family's `ChunkPolicy.losses`

A step's batch is drawn as a whole and worked through in pieces (gradient accumulation), which several processes share
out (processes.py); AdamW moves the weights, and their running average is what is evaluated and saved. Step s depends on
the recipe and s alone, so that a killed run, resumed, ends with the very weights of one that was never interrupted.
"""

from __future__ import annotations

import argparse
import math
import resource
import shutil
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Iterator

import numpy as np
import torch
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import ChunkPolicy, Inputs
from policytrim_ros.training import golden_scenes, mixture, origin, run_state
from policytrim_ros.training.adapters import attach, merged_copy
from policytrim_ros.training.demos import DatasetError
from policytrim_ros.training.processes import Processes
from policytrim_ros.training.recipe import Recipe, commit, load_recipe
from policytrim_ros.training.run_state import TrainingError
from policytrim_ros.training.samples import Batch, Samples

STATE_FILE = "training_state.safetensors"
HELD_OUT_SAMPLES = 512
LOG_EVERY = 25
SELECTION_SEED = 900_000
"""First scene of evaluations during training: others than those that the finished checkpoint is judged by."""


class Trainer:
    """One run of supervised fine-tuning in ``run_dir`` (TensorBoard events and the state to resume from).

    ``dataset``: one directory or several in place of the recipe's, or a `mixture.Mixture`; ``device``: auto, cpu or cuda.
    Raises ConfigError, DatasetError or CheckpointError when recipe, demonstrations and parent do not fit together.
    """

    def __init__(self, recipe: Recipe, dataset=None, run_dir="runs/policy", progress=True, device="auto"):
        self.processes = Processes(device)
        self.recipe, self.training, self.run_dir = recipe, recipe.training, Path(run_dir)
        self.device, self.progress = self.processes.device, progress and self.processes.first
        self.pieces = -(-self.training.accumulate // self.processes.count) * self.processes.count
        if recipe.pictures.cameras and len(self.training.shift_px) != len(recipe.pictures.cameras):
            raise ConfigError(
                f"Training.shift_px = {self.training.shift_px}: give one number for each camera {tuple(recipe.pictures.cameras)}"
            )
        if not isinstance(dataset, mixture.Mixture):
            dataset = mixture.load(recipe, [dataset] if isinstance(dataset, (str, Path)) else dataset, self.progress)
        self.samples, self.held_out, self.groups = dataset.samples, dataset.held_out, dataset.groups
        self.data_sha256 = dataset.sha256
        if self.pieces > (size := min(self.training.batch, len(self.samples))):
            raise ConfigError(f"Training.accumulate: a batch of {size} samples cannot be divided into {self.pieces} pieces")
        self.policy, self.parent = origin.start(recipe, self.samples, dataset.tasks)
        attach(self.policy, recipe.lora, recipe.seed)
        self.policy.to(self.device, memory_format=torch.channels_last)  # as the pictures come; convolutions are faster so
        self.trained = {name: p for name, p in self.policy.named_parameters() if p.requires_grad}
        self.ema = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        self.optimizer = torch.optim.AdamW(
            self.trained.values(),
            lr=self.training.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.step, self.cpu_s, self.best, self.without_progress = 0, 0.0, math.inf, 0
        self.success, self.best_success = None, None
        self.held_out_report: dict[str, float] = {}
        self.stop_requested, self.stop_agreed = False, False  # by this process; by all
        self._order = None, None

    @property
    def bfloat16(self) -> bool:
        return self.training.precision == "bfloat16" or self.training.precision == "auto" and self.device.type == "cuda"

    def describe(self) -> str:
        """One line: what is trained, on what, how."""
        count, whole = (sum(p.numel() for p in group) for group in (self.trained.values(), self.policy.parameters()))
        share = f"{count:,} of {whole:,} parameters ({100 * count / whole:.1f} %)" if count < whole else f"{count:,} parameters"
        tasks = ", ".join(f"{label} {100 * share:.0f} %" for label, _, share in self.groups)
        return (
            f"{self.policy.family} policy, {share}; {len(self.samples):,} samples ({tasks}); "
            f"{self.processes.count} x {self.device.type}, "
            f"{'bfloat16' if self.bfloat16 else 'float32'}, batch {self.training.batch} in {self.pieces} pieces"
        )

    def run(self) -> bool:
        """Trains to the end of the recipe; False when it was asked to stop before (the state is saved, a new run resumes)."""
        with run_state.curves_in(self.run_dir):
            return self._run()

    def _run(self) -> bool:
        self._resume()
        with (
            self._board() as board,
            tqdm(
                total=self.training.steps,
                initial=self.step,
                unit="step",
                disable=not self.progress,
                mininterval=5.0,
                smoothing=0.05,
            ) as bar,
        ):
            mark, since = time.perf_counter(), self.step
            while not self._finished():
                if self._stop():
                    self.save_state()
                    return False
                losses = self.train_step()
                bar.update()
                if self.step % LOG_EVERY == 0:
                    rate = (self.step - since) * self.training.batch / (time.perf_counter() - mark)
                    mark, since = time.perf_counter(), self.step
                    bar.set_postfix_str(f"loss={losses['action']:.3f} {self.report()} {rate:.0f} samples/s")
                    self._log(board, "train", {**losses, "samples_per_s": rate, "memory_mb": memory_mb(self.device)})
                if self.step % self.training.evaluate_every == 0:
                    self._evaluate(board)
                if self.training.success_every and self.step % self.training.success_every == 0:
                    self._play(board)
                if self.step % self.training.save_every == 0:
                    self.save_state()
            if self.step % self.training.evaluate_every or not self.held_out_report:
                self._evaluate(board)
            if self.training.success_every and self.step % self.training.success_every and not self._succeeded():
                self._play(board)
        self.save_state()
        return True

    # -- one step -----------------------------------------------------------------------------------------------

    def train_step(self) -> dict[str, float]:
        """One optimiser step; losses, gradient norm and learning rate. TrainingError when something is not finite."""
        began = time.process_time()
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * self._schedule()
        self.policy.train()
        self.optimizer.zero_grad()
        losses: dict[str, float | torch.Tensor] = {}
        for share, batch, generator in self.my_pieces():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
                found = self.policy.losses(
                    inputs_of(self.policy, batch),
                    batch.actions,
                    generator=generator,
                    repeats=self.training.flow_samples,
                    places=batch.places,
                )
                loss = found["action"] + self.training.locate_weight * found.get("locate", 0.0)
            (share * loss).backward()
            for name, value in found.items():
                losses[name] = losses.get(name, 0.0) + share * value.detach()
        figures = {name: value.item() for name, value in losses.items()}
        figures = self.processes.reduce(
            list(self.trained.values()), {**figures, "cpu_s": time.process_time() - began, "stop": self.stop_requested}
        )
        self.cpu_s += figures.pop("cpu_s")
        self.stop_agreed = bool(figures.pop("stop"))
        norm = torch.nn.utils.clip_grad_norm_(self.trained.values(), self.training.gradient_clip).item()
        self._check_finite({**figures, "gradient_norm": norm})
        self.optimizer.step()
        self.step += 1
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.trained.values()), 1 - decay)
        return {**figures, "gradient_norm": norm, "learning_rate": self.optimizer.param_groups[0]["lr"]}

    def my_pieces(self) -> Iterator[tuple[float, Batch, torch.Generator]]:
        """(share of the batch, samples, generator) of every piece of this step that is this process's."""
        rng = np.random.default_rng((self.recipe.seed, 1, self.step))
        draw = self.samples.draw(self._indices(), rng, self.training)
        seeds = rng.integers(2**62, size=self.pieces)
        parts = np.array_split(np.arange(len(draw.index)), self.pieces)
        for piece in range(self.processes.rank, self.pieces, self.processes.count):
            torch.manual_seed(int(seeds[piece]))  # dropout, where a family has any
            generator = torch.Generator(self.device).manual_seed(int(seeds[piece]))
            batch = self.samples.batch(draw.rows(parts[piece])).to(self.device)
            yield len(parts[piece]) / len(draw.index), batch, generator

    def _indices(self) -> np.ndarray:
        """The samples of this step, of all processes."""
        size, count = min(self.training.batch, len(self.samples)), len(self.samples)
        number, place = divmod(self.step, count // size)
        if self._order[0] != number:
            self._order = number, mixture.epoch(self.groups, count, self.recipe.seed, number)
        return self._order[1][place * size : (place + 1) * size]

    def _check_finite(self, figures) -> None:
        broken = [f"{name} became {value}" for name, value in figures.items() if not math.isfinite(value)]
        if not broken:
            return
        weights = [name for name, p in self.trained.items() if p.grad is not None and not p.grad.isfinite().all()]
        raise TrainingError(
            f"{broken[0]} at step {self.step}{f' (gradient of {weights[0]})' if weights else ''}; lower the learning rate and "
            f"start again with another --run, or mend the demonstrations; {self.run_dir} keeps the last state before it"
        )

    def _schedule(self) -> float:
        """Factor of the learning rate: linear warm-up, then a cosine to zero at the end of the steps or of the budget."""
        done = self.step / self.training.steps
        if self.training.cpu_minutes:
            done = max(done, self.cpu_s / (60 * self.training.cpu_minutes))
        warm = min(1.0, (self.step + 1) / max(1, self.training.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    # -- when to stop -------------------------------------------------------------------------------------------

    def _finished(self) -> bool:
        return (
            self.step >= self.training.steps
            or 0 < self.training.cpu_minutes <= self.cpu_s / 60
            or 0 < self.training.patience <= self.without_progress
            or self._succeeded()
        )

    def _succeeded(self) -> bool:
        return bool(self.training.success_every) and self.success is not None and self.success >= self.training.success_wanted

    def _stop(self) -> bool:
        return self.stop_requested if self.processes.count == 1 else self.stop_agreed

    def _evaluate(self, board) -> None:
        """Losses on the held-out episodes, with the averaged weights."""
        if self.held_out is None:
            return
        if self.processes.first:
            with self.averaging() as policy:
                self.held_out_report = held_out_report(policy, self.held_out, self.recipe.seed)
        self.held_out_report = self.processes.agree(self.held_out_report)
        self._log(board, "held_out", self.held_out_report)
        loss = self.held_out_report["action"]
        self.without_progress = 0 if loss < self.best else self.without_progress + 1
        self.best = min(self.best, loss)

    def _play(self, board) -> None:
        """Mean success rate in the simulator over the recipe's rows; the best checkpoint so far is kept in ``run_dir/best``."""
        if self.processes.first:
            candidate, best = self.run_dir / "candidate", self.run_dir / "best"
            self.save_checkpoint(candidate, self.averaged())
            self.success = success_rate(candidate, self.recipe, self.device.type)
            if self.best_success is None or self.success >= self.best_success:  # of equals the later
                self.best_success = self.success
                shutil.rmtree(best, ignore_errors=True)
                candidate.rename(best)
            else:
                shutil.rmtree(candidate)
        self.success, self.best_success = self.processes.agree((self.success, self.best_success))
        self._log(board, "simulator", {"success_rate": self.success})

    # -- what comes out -----------------------------------------------------------------------------------------

    @contextmanager
    def averaging(self) -> Iterator[ChunkPolicy]:
        """The policy has its averaged weights, in evaluation mode, within."""
        self._swap()
        try:
            yield self.policy.eval()
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.trained.items():
            parameter.data, self.ema[name] = self.ema[name], parameter.data

    def averaged(self) -> ChunkPolicy:
        """A policy of its own with the averaged weights, adapters merged, on the CPU in evaluation mode."""
        with self.averaging() as policy:
            return merged_copy(policy)

    def finish(self, directory) -> dict:
        """Writes the finished checkpoint: the one with the most successes where that was asked for, else the last averaged
        weights. Returns its manifest."""
        if self.best_success is None:
            return self.save_checkpoint(directory, self.averaged())
        return checkpoint.copy(self.run_dir / "best", directory)

    def save_checkpoint(self, directory, policy: ChunkPolicy | None = None) -> dict:
        """Writes ``policy`` (None: the averaged weights) as a checkpoint, replacing an older one, and returns its manifest."""
        made = {
            "recipe": self.recipe.name,
            "recipe_sha256": self.recipe.digest,
            "method": "sft",
            "seed": self.recipe.seed,
            "steps": self.step,
            "cpu_minutes": round(self.cpu_s / 60, 2),
            "samples": self.step * self.training.batch,
            "processes": self.processes.count,
            "device": self.device.type,
            "precision": "bfloat16" if self.bfloat16 else "float32",
            "lora": asdict(self.recipe.lora) if self.recipe.lora.rank else None,
            "commit": commit(),
            "data_sha256": self.data_sha256,
            "parent": self.parent,
            "torch": torch.__version__,
            "held_out": self.held_out_report,
            "success_while_training": self.success,
        }
        return checkpoint.save(directory, policy or self.averaged(), made=made, overwrite=True)

    # -- resuming -----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next step depends on; the first process writes it."""
        if not self.processes.first:
            return
        tensors = {f"buffer.{name}": buffer for name, buffer in self._buffers().items()}
        for name, parameter in self.trained.items():
            tensors[f"model.{name}"], tensors[f"ema.{name}"] = parameter, self.ema[name]
        tensors |= run_state.moments(self.optimizer, self.trained)
        facts = {
            "recipe": self.recipe.digest,
            "data": self.data_sha256,
            "parent": self.parent,
            "step": self.step,
            "cpu_s": self.cpu_s,
            "best": self.best if math.isfinite(self.best) else None,
            "without_progress": self.without_progress,
            "success": self.success,
            "best_success": self.best_success,
        }
        run_state.save(self.run_dir / STATE_FILE, tensors, facts)

    def _resume(self) -> None:
        path = self.run_dir / STATE_FILE
        saved = run_state.load(path)
        if saved is None:
            return
        tensors, facts = saved
        if [facts.get(key) for key in ("recipe", "data", "parent")] != [self.recipe.digest, self.data_sha256, self.parent]:
            raise TrainingError(
                f"{path}: belongs to another recipe, other demonstrations or another parent; give another --run, "
                f"or delete {self.run_dir} to start again"
            )
        with torch.no_grad():
            for name, buffer in self._buffers().items():
                buffer.copy_(tensors[f"buffer.{name}"])
            for name, parameter in self.trained.items():
                parameter.copy_(tensors[f"model.{name}"])
                self.ema[name].copy_(tensors[f"ema.{name}"])
        run_state.restore_moments(self.optimizer, self.trained, tensors, facts["step"])
        self.step, self.cpu_s, self.without_progress = facts["step"], facts["cpu_s"], facts["without_progress"]
        self.best = math.inf if facts["best"] is None else facts["best"]
        self.success, self.best_success = facts["success"], facts["best_success"]

    def _buffers(self) -> dict[str, torch.Tensor]:
        """Buffers that belong to the weights, running means for example."""
        parameters = dict(self.policy.named_parameters(remove_duplicate=False))
        return {name: tensor for name, tensor in self.policy.state_dict().items() if name not in parameters}

    # -- curves -------------------------------------------------------------------------------------------------

    @contextmanager
    def _board(self):
        if not self.processes.first:
            yield None
            return
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        with SummaryWriter(self.run_dir, purge_step=self.step + 1 if self.step else None) as board:
            yield board

    def _log(self, board, group: str, values) -> None:
        if board is not None:
            for name, value in values.items():
                board.add_scalar(f"{group}/{name}", value, self.step)

    def report(self) -> str:
        """The last figures, for people."""
        held_out = " ".join(f"{name}={value:.3g}" for name, value in self.held_out_report.items())
        success = "" if self.success is None else f" success={self.success:.2f}"
        return (f"held out: {held_out}" if held_out else "") + success


def inputs_of(policy: ChunkPolicy, batch: Batch) -> Inputs:
    """The network's view of a batch of samples on its device."""
    return Inputs(batch.pixels(), batch.state, batch.objects, *policy.words(batch.instructions))


# -- figures --------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def held_out_report(policy: ChunkPolicy, samples: Samples, seed: int) -> dict[str, float]:
    """Losses (same noise every time) and error of the first action (mrad)."""
    index = np.random.default_rng((seed, 3)).permutation(len(samples))[:HELD_OUT_SAMPLES]
    generator = torch.Generator(policy.device).manual_seed(seed)
    found: dict[str, list[float]] = {}
    for part in np.array_split(index, max(1, len(index) // 64)):
        batch = samples.plain(part).to(policy.device)
        inputs = inputs_of(policy, batch)
        losses = policy.losses(inputs, batch.actions, generator=generator, places=batch.places)
        generators = [torch.Generator(policy.device).manual_seed(int(row)) for row in part]
        actions = policy.to_robot(policy.sample(inputs, generators), batch.state)
        losses["first_action_mrad"] = (actions - batch.actions)[:, 0, :6].abs().mean() * 1000
        for name, value in losses.items():
            found.setdefault(name, []).append(value.item())
    return {name: float(np.mean(values)) for name, values in found.items()}


def success_rate(directory, recipe: Recipe, device: str) -> float:
    """Mean success rate of a checkpoint over the recipe's rows of evaluation, a few episodes each."""
    from policytrim_ros.training.evaluate import Bench, EvaluationError, evaluate  # needed for this alone

    if not recipe.evaluation:
        raise ConfigError("Training.success_every > 0: the recipe has no `evaluation` rows to play")
    bench = Bench(recipe.environment, recipe.demonstrator, recipe.pictures, SELECTION_SEED, device=device)
    rows = [replace(row, episodes=recipe.training.success_episodes) for row in recipe.evaluation]
    try:
        return float(np.mean([evaluate(directory, row, bench, progress=False)["success_rate"] for row in rows]))
    except EvaluationError as error:
        raise TrainingError(f"the evaluation during training failed: {error}") from error


def memory_mb(device: torch.device) -> float:
    """Peak memory of this process so far: the GPU's, or resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -- command line ---------------------------------------------------------------------------------------------------

EXAMPLES = """\
A killed or interrupted run goes on where its state was saved last when the same command is repeated; the result is the same.

examples:
  policytrim train sft --recipe config/sft_state.yaml
  policytrim train sft --recipe mine.yaml --from models/piper-pi0-tiny --out models/mine
  tensorboard --logdir runs

several processes share every batch and end with the weights of one; two GPUs of one machine, two machines (the same on both,
but --machine_rank 0 and 1), two processes on a CPU, where accelerate alone would start only one:
  accelerate launch --num_processes 2 -m policytrim_ros.cli train sft --recipe RECIPE
  accelerate launch --multi_gpu --num_machines 2 --num_processes 2 --machine_rank 0 --main_process_ip HOST \\
      --main_process_port 29500 -m policytrim_ros.cli train sft --recipe RECIPE
  torchrun --nproc-per-node 2 -m policytrim_ros.cli train sft --recipe RECIPE        (here --run is written --run-dir)
"""


def add_arguments(parser) -> None:
    """``policytrim train sft``."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("--recipe", required=True, help="recipe file, config/*.yaml")
    parser.add_argument("--dataset", nargs="+", help="directories of the demonstrations (default: the recipe's)")
    parser.add_argument("--run", "--run-dir", help="directory of TensorBoard events and resumable state (default: runs/<name>)")
    parser.add_argument("--out", help="directory of the finished checkpoint (default: the recipe's)")
    parser.add_argument(
        "--from", dest="parent", metavar="CHECKPOINT", help="fine-tune this checkpoint (default: the recipe's parent, if any)"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: a GPU if there is one")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default 1; more rarely helps a network this small)"
    )


def _record_golden(out, recipe: Recipe) -> None:
    """Golden observations where the tasks exist in the recipe's environment; demonstrations may come from elsewhere."""
    try:
        golden_scenes.record(out, recipe.environment, (recipe.pictures.camera_width, recipe.pictures.camera_height))
    except (ConfigError, ValueError, RuntimeError) as error:
        print(f"train: no golden observations, so {out} can only be exchanged for another at rest: {error}")


def main(args) -> int:
    """Trains or resumes; 0 when finished, 130 when interrupted (state saved), 1 after one sentence about what went wrong."""
    torch.set_num_threads(args.threads)
    speak = threading.excepthook  # of the thread that writes the curves: its OSError reaches `Trainer.run` at the next write
    threading.excepthook = lambda caught: None if isinstance(caught.exc_value, OSError) else speak(caught)
    processes = None
    try:
        recipe = load_recipe(args.recipe)
        if args.parent:
            recipe = replace(recipe, parent=args.parent)
        trainer = Trainer(recipe, args.dataset, args.run or f"runs/{recipe.name}", device=args.device)
        processes, speaks = trainer.processes, trainer.processes.first
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(trainer, "stop_requested", True))
        if speaks:
            print(f"train: {trainer.describe()}")
        if not trainer.run():
            if speaks:
                print(f"train: stopped at step {trainer.step}; the same command resumes")
            return 130
        if speaks:
            out = args.out or recipe.checkpoint
            manifest = trainer.finish(out)
            _record_golden(out, recipe)
            print(
                f"train: {out}: {manifest['parameters']} parameters after {manifest['made']['steps']} of {trainer.step} steps, "
                f"{trainer.cpu_s / 60:.1f} CPU-minutes; {trainer.report()}"
            )
    except (ConfigError, DatasetError, TrainingError, checkpoint.CheckpointError) as error:
        if Processes.speaks_for_machine():
            print(f"train: {error}")
        return 1
    finally:
        if processes is not None:
            processes.close()
    return 0
