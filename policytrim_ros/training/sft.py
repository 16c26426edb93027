"""Supervised fine-tuning: flow matching on demonstrations, with an auxiliary loss that asks where the objects are.

    tau ~ 0.001 + 0.999 Beta(1.5, 1),  x_tau = tau * noise + (1 - tau) * action,  loss = |v(x_tau, tau) - (noise - action)|^2

For each picture pair several (noise, tau) are drawn: the prefix is encoded once and shared. Step s of a run depends on
the recipe and s alone, so that a killed run, resumed, ends with the very weights of one that was never interrupted.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensors_to_bytes
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.core.contract import Camera, Contract
from policytrim_ros.policies import checkpoint
from policytrim_ros.policies.policy import ChunkPolicy, Inputs
from policytrim_ros.policies.tokenizer import train_tokenizer
from policytrim_ros.training.demos import DatasetError, data_digest, read_episodes, read_index
from policytrim_ros.training.recipe import Recipe, commit, load_recipe
from policytrim_ros.training.samples import Batch, Samples

STATE_FILE = "training_state.safetensors"
HELD_OUT_SAMPLES = 512


class TrainingError(RuntimeError):
    """Training cannot start or go on; one sentence: what, where, what to do."""


class Trainer:
    """One run of supervised fine-tuning in ``run_dir`` (TensorBoard events and the state to resume from)."""

    def __init__(self, recipe: Recipe, dataset=None, run_dir="runs/policy", progress=True):
        self.recipe, self.training, self.run_dir, self.progress = recipe, recipe.training, Path(run_dir), progress
        if recipe.pictures.cameras and len(self.training.shift_px) != len(recipe.pictures.cameras):
            raise ConfigError(
                f"Training.shift_px = {self.training.shift_px}: give one number for each camera {recipe.pictures.cameras}"
            )
        directories = [dataset] if dataset else [source.directory for source in recipe.sources]
        digests = [data_digest(read_index(directory)) for directory in directories]
        self.data_sha256 = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        episodes = [e for directory in directories for e in read_episodes(directory, recipe.pictures.cameras, progress)]
        train, held_out = split(episodes, self.training.held_out, recipe.seed)
        self.samples = Samples(train, recipe.pictures.cameras, recipe.network.horizon, recipe.object_slots)
        self.held_out = (
            Samples(held_out, recipe.pictures.cameras, recipe.network.horizon, recipe.object_slots) if held_out else None
        )
        self.policy = new_policy(recipe, self.samples, sorted({episode.task for episode in episodes}))
        self.ema = {name: parameter.detach().clone() for name, parameter in self.policy.named_parameters()}
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(),
            lr=self.training.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=self.training.weight_decay,
            fused=True,
        )
        self.step, self.cpu_s, self.best, self.without_progress = 0, 0.0, math.inf, 0
        self.held_out_report: dict[str, float] = {}
        self.stop_requested = False

    def run(self) -> bool:
        """Trains to the end of the recipe; False when it was asked to stop before (the state is saved, a new run resumes)."""
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        self.run_dir.mkdir(parents=True, exist_ok=True)
        self._resume()
        total = self.training.steps
        with (
            SummaryWriter(self.run_dir) as board,
            tqdm(total=total, initial=self.step, unit="step", disable=not self.progress, mininterval=5.0) as bar,
        ):
            while self.step < total and not self._budget_spent() and not self._out_of_patience():
                if self.stop_requested:
                    self.save_state()
                    return False
                began = time.process_time()
                losses = self.train_step()
                self.cpu_s += time.process_time() - began
                bar.update()
                if self.step % 25 == 0:
                    bar.set_postfix_str(f"action={losses['action']:.3f} {self._held_out_text()}")
                    for name, value in losses.items():
                        board.add_scalar(f"train/{name}", value, self.step)
                if self.step % self.training.evaluate_every == 0:
                    self._evaluate(board)
                if self.step % self.training.save_every == 0:
                    self.save_state()
            self._evaluate(board)
        self.save_state()
        return True

    def train_step(self) -> dict[str, float]:
        """One optimiser step; losses and gradient norm."""
        rng = np.random.default_rng((self.recipe.seed, 1, self.step))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        batch = self.samples.augmented(self._indices(), rng, self.training)
        for group in self.optimizer.param_groups:
            group["lr"] = self.training.learning_rate * self._schedule()
        self.policy.train()
        inputs = inputs_of(self.policy, batch)
        losses = self.policy.losses(
            inputs, batch.actions, generator=generator, repeats=self.training.flow_samples, places=batch.places
        )
        loss = losses["action"] + self.training.locate_weight * losses.get("locate", 0.0)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss.item()} at step {self.step}; lower the learning rate and resume from {self.run_dir}"
            )
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.training.gradient_clip)
        self.optimizer.step()
        self.step += 1
        decay = min(self.training.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.values()), list(self.policy.parameters()), 1 - decay)
        return {
            **{name: value.item() for name, value in losses.items()},
            "gradient_norm": norm.item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }

    def averaged(self) -> ChunkPolicy:
        """A policy with the averaged weights, in evaluation mode."""
        policy = type(self.policy)(self.policy.config, self.policy.contract, self.policy.tokenizer)
        policy.load_state_dict(self.ema)
        return policy.eval().requires_grad_(False)

    def save_checkpoint(self, directory, parent: str | None = None) -> dict:
        """Writes the averaged weights as a checkpoint (replacing an older one) and returns its manifest."""
        made = {
            "recipe": self.recipe.name,
            "recipe_sha256": self.recipe.digest,
            "method": "sft",
            "seed": self.recipe.seed,
            "steps": self.step,
            "cpu_minutes": round(self.cpu_s / 60, 2),
            "samples": self.step * self.training.batch,
            "commit": commit(),
            "data_sha256": self.data_sha256,
            "parent": parent,
            "torch": torch.__version__,
            "held_out": self.held_out_report,
        }
        return checkpoint.save(directory, self.averaged(), made=made, overwrite=True)

    # -- resuming -----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next step depends on, in one file, written beside and renamed."""
        tensors = {}
        for name, parameter in self.policy.named_parameters():
            tensors[f"model.{name}"], tensors[f"ema.{name}"] = parameter.detach(), self.ema[name]
            state = self.optimizer.state.get(parameter)
            if state:
                tensors[f"exp_avg.{name}"], tensors[f"exp_avg_sq.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        facts = {
            "recipe": self.recipe.digest,
            "data": self.data_sha256,
            "step": self.step,
            "cpu_s": self.cpu_s,
            "best": self.best if math.isfinite(self.best) else None,
            "without_progress": self.without_progress,
        }
        path = self.run_dir / STATE_FILE
        beside = path.with_suffix(".new")
        try:
            beside.write_bytes(
                tensors_to_bytes({k: v.contiguous() for k, v in tensors.items()}, metadata={"facts": json.dumps(facts)})
            )
            os.replace(beside, path)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise TrainingError(
                f"{path}: could not be written ({error.strerror}); free some space and resume, the last state is intact"
            ) from error

    def _resume(self) -> None:
        path = self.run_dir / STATE_FILE
        if not path.exists():
            return
        try:
            with safe_open(path, framework="pt") as file:
                facts = json.loads(file.metadata()["facts"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise TrainingError(f"{path}: cannot be read ({error}); delete {self.run_dir} to start again") from error
        if (facts["recipe"], facts["data"]) != (self.recipe.digest, self.data_sha256):
            raise TrainingError(
                f"{path}: belongs to another recipe or other demonstrations; delete {self.run_dir} to start again"
            )
        with torch.no_grad():
            for name, parameter in self.policy.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                self.ema[name].copy_(tensors[f"ema.{name}"])
                if f"exp_avg.{name}" in tensors:
                    self.optimizer.state[parameter] = {
                        "step": torch.tensor(float(facts["step"])),
                        "exp_avg": tensors[f"exp_avg.{name}"],
                        "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                    }
        self.step, self.cpu_s, self.without_progress = facts["step"], facts["cpu_s"], facts["without_progress"]
        self.best = math.inf if facts["best"] is None else facts["best"]

    # -- schedule -----------------------------------------------------------------------------------------------

    def _indices(self) -> np.ndarray:
        """The samples of this step: epochs without replacement, each epoch in an order of its own."""
        size, count = min(self.training.batch, len(self.samples)), len(self.samples)
        epoch, place = divmod(self.step, count // size)
        order = np.random.default_rng((self.recipe.seed, 2, epoch)).permutation(count)
        return order[place * size : (place + 1) * size]

    def _schedule(self) -> float:
        """Factor of the learning rate: linear warm-up, then a cosine to zero at the end of the steps or of the budget."""
        done = self.step / self.training.steps
        if self.training.cpu_minutes:
            done = max(done, self.cpu_s / (60 * self.training.cpu_minutes))
        warm = min(1.0, (self.step + 1) / max(1, self.training.warmup_steps))
        return warm * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    def _budget_spent(self) -> bool:
        return 0 < self.training.cpu_minutes <= self.cpu_s / 60

    def _out_of_patience(self) -> bool:
        return 0 < self.training.patience <= self.without_progress

    def _evaluate(self, board) -> None:
        if self.held_out is None:
            return
        self.held_out_report = held_out_report(self.averaged(), self.held_out, self.recipe.seed)
        for name, value in self.held_out_report.items():
            board.add_scalar(f"held_out/{name}", value, self.step)
        loss = self.held_out_report["action"]
        self.without_progress = 0 if loss < self.best else self.without_progress + 1
        self.best = min(self.best, loss)

    def _held_out_text(self) -> str:
        return " ".join(f"{name}={value:.3g}" for name, value in self.held_out_report.items())


def inputs_of(policy: ChunkPolicy, batch: Batch) -> Inputs:
    """The network's view of a batch of samples, on its device."""
    objects = batch.objects.to(policy.device) if policy.contract.object_slots else None
    return Inputs(batch.pixels(policy.device), batch.state.to(policy.device), objects, *policy.words(batch.instructions))


@torch.inference_mode()
def held_out_report(policy: ChunkPolicy, samples: Samples, seed: int) -> dict[str, float]:
    """Losses (same noise every time) and error of the first action (mrad)."""
    rng = np.random.default_rng((seed, 3))
    index = rng.permutation(len(samples))[:HELD_OUT_SAMPLES]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {}
    for part in np.array_split(index, max(1, len(index) // 64)):
        batch = samples.plain(part)
        inputs = inputs_of(policy, batch)
        losses = policy.losses(inputs, batch.actions, generator=generator, places=batch.places)
        generators = [torch.Generator().manual_seed(int(row)) for row in part]
        actions = policy.to_robot(policy.sample(inputs, generators), batch.state)
        losses["first_action_mrad"] = (actions - batch.actions)[:, 0, :6].abs().mean() * 1000
        for name, value in losses.items():
            found.setdefault(name, []).append(value.item())
    return {name: float(np.mean(values)) for name, values in found.items()}


def new_policy(recipe: Recipe, samples: Samples, tasks) -> ChunkPolicy:
    """An untrained policy whose contract and words come from the recipe and the demonstrations."""
    pictures = recipe.pictures
    instructions = sorted(set(samples.instructions))
    contract = Contract(
        cameras=tuple(Camera(name, pictures.width, pictures.height) for name in pictures.cameras),
        prediction_horizon=recipe.network.horizon,
        execution_horizon=recipe.execution_horizon,
        object_slots=recipe.object_slots,
        tasks=tuple(tasks),
        instructions=tuple(instructions),
        normalisation=samples.normalisation(),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return checkpoint.FAMILIES[recipe.family].policy(recipe.network, contract, train_tokenizer(instructions))


def split(episodes, share: float, seed: int):
    """(training, held-out) episodes, drawn by seed; at least one is held out when there are two and ``share`` > 0."""
    order = np.random.default_rng((seed, 4)).permutation(len(episodes))
    count = min(len(episodes) - 1, max(1, round(share * len(episodes)))) if share else 0
    return [episodes[i] for i in sorted(order[count:])], [episodes[i] for i in sorted(order[:count])]


def add_arguments(parser) -> None:
    """``policytrim train sft``."""
    parser.add_argument("--recipe", required=True, help="recipe file, config/*.yaml")
    parser.add_argument("--dataset", help="directory of the demonstrations (default: the recipe's)")
    parser.add_argument("--run", help="directory of TensorBoard events and resumable state (default: runs/<name>)")
    parser.add_argument("--out", help="directory of the finished checkpoint (default: the recipe's)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch (default 1; more rarely helps a network this small)"
    )


def main(args) -> int:
    """Trains or resumes; 0 when finished, 130 when interrupted (state saved), 1 after one sentence about what went wrong."""
    torch.set_num_threads(args.threads)
    try:
        recipe = load_recipe(args.recipe)
        trainer = Trainer(recipe, args.dataset, args.run or f"runs/{recipe.name}")
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(trainer, "stop_requested", True))
        if not trainer.run():
            print(f"train: stopped at step {trainer.step}; the same command resumes")
            return 130
        out = args.out or recipe.checkpoint
        manifest = trainer.save_checkpoint(out)
    except (ConfigError, DatasetError, TrainingError, checkpoint.CheckpointError) as error:
        print(f"train: {error}")
        return 1
    print(
        f"train: {out}: {manifest['parameters']} parameters, {trainer.step} steps, "
        f"{trainer.cpu_s / 60:.1f} CPU-minutes, {trainer.held_out_report}"
    )
    return 0
