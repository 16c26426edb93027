"""PolicyTrim (arXiv 2606.22540): a checkpoint in, one that needs fewer calls and fewer steps out, with the evidence.

    1  baseline     its success and steps at its own h, on selection scenes; S_base = alpha x mean S, of every task by itself
    2  extension    stage 1: groups of rollouts with different h, `rewards.extension`
    3  selection    h: the longest whose success rate is within ``tolerance`` of the best one's, on selection scenes
    4  saving       stage 2: all rollouts at that h, `rewards.step_saving`; the stage 1 policy is the reference
    5  hastening    stage 3, ours: the tempo of whole chunks is explored (policies/tempo.py), same h, same reward
    6  evidence     baseline, or what the recipe names, and trimmed policy on scenes that neither training nor selection has
                    seen, compared in pairs
    7  checkpoint   with h and the evidence in its manifest; published only if it is an improvement

An improvement: the success rate is non-inferior (margin and confidence of the recipe), and the intervals of the differences
in calls and in steps lie below zero, all tasks together.

Scenes: training draws seeds from TRAINING_SEED on, selection from SELECTION_SEED, evidence from evaluate.FIRST_SEED. An
iteration depends on recipe and number alone: a run that was killed goes on as if nothing had happened.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Callable

import numpy as np
import torch
from tqdm import tqdm

from policytrim_ros.core.config import ConfigError
from policytrim_ros.policies import checkpoint
from policytrim_ros.training import evaluate, golden_scenes, progress, rewards, run_state
from policytrim_ros.training.adapters import SwitchedOff, attach, merged_copy
from policytrim_ros.training.evidence import evidence_page, judge, learning_figure
from policytrim_ros.training.exploration import explore
from policytrim_ros.training.fleet import BACKENDS, Fleet, Grounds
from policytrim_ros.training.groups import Group, Rollouts
from policytrim_ros.training.grpo import Optimizer
from policytrim_ros.training.recipe import Evaluation, Pictures, commit
from policytrim_ros.training.run_state import TrainingError
from policytrim_ros.training.sft import SELECTION_SEED, memory_mb
from policytrim_ros.training.trim_recipe import Stage, TrimRecipe, load_trim, parse_change

STATE_FILE = "trim_state.safetensors"
TRAINING_SEED, TRAINING_SCENES = 2_000_000, 1_000_000_000
STAGES = ("extension", "saving", "hastening")
PHASES = ("baseline", "extension", "selection", "saving", "hastening", "evidence")
SAVE_EVERY_S = 30.0
EXTENDED = "extended"
"""With adapters: the policy after stage 1, a checkpoint in the run's directory."""

SHARE = 1 / 3
"""Most of a wall-clock budget that a stage may use with others behind it, beside what those before it could have used."""

RECENT = 8
"""Iterations whose mean the progress bar shows."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved."""


class Trimming:
    """One run of the pipeline in ``run_dir``: curves, the state to resume from, evaluations, the candidate checkpoint.

    ``processes`` and ``lanes``: workers and the environments of each; ``ray``: see `fleet.Fleet`; ``say``: gets a sentence
    whenever a phase ends. ConfigError or CheckpointError when recipe and baseline do not fit together.
    """

    def __init__(
        self,
        recipe: TrimRecipe,
        run_dir="runs/trim",
        *,
        processes: int = 1,
        lanes: int = 8,
        backend: str = "cpu",
        device: str = "cpu",
        ray: str = "",
        progress: bool = True,
        say: Callable[[str], None] = print,
    ):
        self.recipe, self.run_dir, self.progress, self.say = recipe, Path(run_dir), progress, say
        self.device = device
        self._fleet, self._workers, self.exploration, self.phase = None, None, None, PHASES[0]
        self.parent = checkpoint.read_manifest(recipe.parent)["files"]["model.safetensors"]
        self.against = recipe.against or recipe.parent
        self.usual = checkpoint.read_manifest(self.against)["contract"]["execution_horizon"]
        self._begin_from(recipe.parent)
        if (family := self.policy.family) != "flow":
            if recipe.hastening.iterations:
                raise ConfigError(f"TrimRecipe.hastening: only flow policies explore a tempo, not the {family} {recipe.parent}")
            if recipe.as_trained:
                raise ConfigError(f"TrimRecipe.as_trained: only flow policies act by a sampler, not the {family} {recipe.parent}")
        contract = self.policy.contract
        self.tasks = recipe.tasks or contract.tasks
        if unknown := [task for task in self.tasks if task not in contract.tasks]:
            raise ConfigError(
                f"TrimRecipe.tasks: {recipe.parent} was not trained for {unknown[0]}, but {', '.join(contract.tasks)}"
            )
        self.base_horizon, self.longest = contract.execution_horizon, contract.prediction_horizon
        for name in STAGES:
            if max(getattr(recipe, name).horizons, default=1) > self.longest:
                raise ConfigError(f"TrimRecipe.{name}.horizons: the checkpoint predicts only H = {self.longest} actions")
        if recipe.horizon > self.longest:
            raise ConfigError(f"TrimRecipe.horizon = {recipe.horizon}: the checkpoint predicts only H = {self.longest} actions")
        size = recipe.camera_width, recipe.camera_height
        self._grounds = Grounds(recipe.environment, recipe.task_setting, size, lanes, backend, recipe.mode, recipe.latency_s)
        self._fleet_options = dict(processes=processes, ray=ray)
        self.bench = evaluate.Bench(
            recipe.environment,
            pictures=Pictures(camera_width=size[0], camera_height=size[1]),
            lanes=lanes,
            processes=processes,
            device=device,
        )
        self.stop_requested = False
        # what a state file holds beside weights
        self.iteration, self.elapsed_s = 0, 0.0
        self.budgets: dict[str, float] = {}
        self.horizon = 0
        self.history: list[dict] = []
        self.checks: list[dict] = []
        self.best: dict | None = None
        self.ended: dict[str, str] = {}
        self._best_weights: dict[str, torch.Tensor] = {}

    def _begin_from(self, directory) -> None:
        """Takes the checkpoint in ``directory`` as what is trained from now on, with new adapters when the recipe wants them."""
        recipe = self.recipe
        self._close_fleet()
        self.policy, _ = checkpoint.load(directory, device=self.device)
        if self.policy.family == "flow" and recipe.sampler.method == "noise" and not self.policy.config.noise_head:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(recipe.seed)
                self.policy.add_noise_head()
        attach(self.policy, recipe.lora, recipe.seed)
        self._begin_learning()
        learning = self.exploration.parameters(self.policy)
        for name, parameter in self.policy.named_parameters():
            parameter.requires_grad_(name in learning)

    def _begin_learning(self) -> None:
        """Exploration and optimiser of the present phase, without a reference."""
        recipe, phase = self.recipe, self.phase
        exploration = explore(
            self.policy, recipe.explorer(phase), recipe.temperature, recipe.frozen_prefix, self.plans, recipe.correlation
        )
        if exploration != self.exploration:
            self._close_fleet()  # it plays by the one before
            self.exploration = exploration
        self.optimizer, self.reference = Optimizer(self.policy, self.exploration, recipe.updates(phase)), None

    @property
    def plans(self) -> bool:
        """Whether a horizon h means that a plan of length h is sampled."""
        return self.recipe.reading == "plan"

    # -- the pipeline -------------------------------------------------------------------------------------------

    def run(self) -> dict:
        """Runs or resumes the pipeline to its end and returns the evidence (`evidence.judge`). Interrupted when asked to stop."""
        try:
            with run_state.curves_in(self.run_dir), run_state.alone_in(self.run_dir):
                self._resume()
                self._report()
                with self._board() as self.board:
                    while self.phase != PHASES[-1]:
                        getattr(self, f"_{self.phase}")()
                        self._enter(self._next())
                    return self._evidence()
        except evaluate.EvaluationError as error:
            raise TrainingError(str(error)) from error
        finally:
            self.close()

    def close(self) -> None:
        """Ends all worker processes."""
        self._close_fleet()
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _close_fleet(self) -> None:
        if self._fleet is not None:
            self._fleet.close()
            self._fleet = None

    @property
    def phases(self) -> list[str]:
        """Those of this recipe: a stage without iterations is none."""
        return [phase for phase in PHASES if phase not in STAGES or getattr(self.recipe, phase).iterations]

    def _next(self) -> str:
        return self.phases[self.phases.index(self.phase) + 1]

    def _enter(self, phase: str) -> None:
        if self.recipe.lora.rank and self.phase == "extension":  # what stage 1 learned becomes what stage 2 adapts
            checkpoint.save(self.run_dir / EXTENDED, merged_copy(self.policy), made=self._made(), overwrite=True)
            self._begin_from(self.run_dir / EXTENDED)
        self.phase, self.iteration, self.best, self._best_weights = phase, 0, None, {}
        self._begin_learning()
        self.save_state()
        self._report()

    def _baseline(self) -> None:
        rows = self._play(self.recipe.parent, "baseline", self.base_horizon, self.recipe.selection_episodes)
        for row in rows:
            if not row["successes"]:
                raise TrainingError(
                    f"{self.recipe.parent} never succeeded at {row['task']} in {row['n']} episodes; there is nothing to trim"
                )
            self.budgets[row["task"]] = self.recipe.alpha * row["steps_success"][0]
        told = ", ".join(f"{task} {budget:.0f}" for task, budget in self.budgets.items())
        self.say(f"baseline at h = {self.base_horizon}: {_words(rows)}; S_base: {told}")

    def _extension(self) -> None:
        sweep = rewards.sweep(self.base_horizon, self.longest)
        self._train(self.recipe.extension, self.recipe.extension.horizons or sweep)

    def _selection(self) -> None:
        self.horizon = self.recipe.horizon
        if not self.horizon:
            candidates = sorted({*rewards.sweep(self.base_horizon, self.longest), *self.recipe.extension.horizons})
            found = {h: self._play(self._candidate(h), "selection", h, self.recipe.selection_episodes) for h in candidates}
            rates = {h: _rate(rows) for h, rows in found.items()}
            self.horizon = select(rates, self.recipe.tolerance)
            for h in candidates:
                self.say(f"selection: h = {h}: {_words(found[h])}")
        self.say(f"h = {self.horizon} from here on")

    def _as_reference(self):
        """The policy as the stage begins, for `exploration.measure`."""
        if self.recipe.lora.rank:
            return SwitchedOff(self.policy)
        return nullcontext(deepcopy(self.policy).requires_grad_(False))

    def _saving(self) -> None:
        self._train(self.recipe.saving, self.recipe.saving.horizons or (self.horizon,))

    def _hastening(self) -> None:
        self._train(self.recipe.hastening, self.recipe.hastening.horizons or (self.horizon,))

    def _evidence(self) -> dict:
        recipe = self.recipe
        trimmed = self._candidate(self.horizon, "trimmed")
        before = self._play(self.against, "evidence", self.usual, recipe.evaluation_episodes, evaluate.FIRST_SEED)
        after = self._play(trimmed, "evidence", self.horizon, recipe.evaluation_episodes, evaluate.FIRST_SEED)
        evidence = judge(before, after, recipe.margin, recipe.confidence)
        made = self._made() | {"verdict": evidence["verdict"], "improvement": evidence["improvement"]}
        summary = evaluate.summary([*before, *after])
        checkpoint.save(trimmed, self._deployed(self.horizon), made=made, evaluation=summary, overwrite=True)
        golden_scenes.record(trimmed, recipe.environment, (recipe.camera_width, recipe.camera_height))
        evaluate.write_file(self.run_dir / "evidence.md", evidence_page(recipe, evidence, before, after, self.checks))
        learning_figure(self.run_dir / "learning.png", self.history, self.checks)
        whole = evidence["rows"][-1]
        found = {"success_rate": whole["success"][1], "steps": whole["steps"]["b"] if whole["steps"] else None}
        self._report(**found, verdict=evidence["verdict"], improvement=evidence["improvement"])
        return evidence

    # -- one stage ----------------------------------------------------------------------------------------------

    def _train(self, stage: Stage, horizons) -> None:
        """Updates until the stage's end; the policy is then the best one that was checked."""
        checked, renew = max(horizons), self.recipe.renewal(self.phase)
        if self.recipe.grpo.kl and self.reference is None:
            self.reference = self._as_reference()
        self._check_when_due(stage, checked)
        began, saved = time.monotonic() - self.elapsed_s, self.elapsed_s
        with tqdm(
            total=stage.iterations,
            initial=self.iteration,
            unit="iteration",
            desc=self.phase,
            disable=not self.progress,
            smoothing=0.1,
        ) as bar:
            while self.iteration < stage.iterations and self.phase not in self.ended:
                figures = self._iterate(stage, horizons)
                self.iteration += 1
                if self.reference and renew and self.iteration % renew == 0:
                    self.reference = self._as_reference()
                self.elapsed_s = time.monotonic() - began
                self.history.append({"phase": self.phase, "iteration": self.iteration, **figures})
                bar.update()
                bar.set_postfix_str(self._recently())
                self._log("train", figures)
                self._check_when_due(stage, checked)
                self.elapsed_s = time.monotonic() - began
                self._report()
                if self._time_left_s() <= 0:
                    self._end("the wall-clock budget is used up")
                if self.stop_requested or self.elapsed_s - saved > SAVE_EVERY_S or self.iteration == stage.iterations:
                    self.save_state()
                    saved = self.elapsed_s
                if self.stop_requested:
                    raise Interrupted(f"stopped in {self.phase} after iteration {self.iteration}; the same command resumes")
        if not self._checked:  # out of time between two checks
            self._check(checked)
        self._set_weights(self._best_weights)
        why = self.ended.get(self.phase, "all iterations done")
        self.say(f"{self.phase}: {why}; the best of {self.iteration} was after {self.best['iteration']}: {self.best['words']}")

    def _iterate(self, stage: Stage, horizons) -> dict[str, float]:
        """Plays the groups of this iteration and learns from them."""
        began = time.monotonic()
        groups = self.groups(stage, horizons)
        limits = {task: math.ceil(self.recipe.limit * budget) for task, budget in self.budgets.items()}
        rollouts = self.fleet.collect(groups, limits)
        played = time.monotonic()
        advantages = self.advantages(groups, rollouts)
        experience = rollouts.experience(advantages)
        used = float(np.mean([values is not None for values in advantages]))
        figures = _figures_of(rollouts) | {"rollout_s": played - began, "groups_used": used}
        if experience is not None:
            rng = np.random.default_rng((self.recipe.seed, 5, PHASES.index(self.phase), self.iteration))
            before = self._weights()
            try:
                figures |= self.optimizer.update(experience, rng, self.reference, self.iteration / stage.iterations)
            except FloatingPointError as error:
                self._set_weights(self._best_weights or before)
                self._end(f"{error}: back to the best policy; a lower grpo.learning_rate may help")
        figures["update_s"] = time.monotonic() - played
        figures["memory_mb"] = memory_mb(self.policy.device)
        return figures

    def groups(self, stage: Stage, horizons) -> list[Group]:
        """The groups of this iteration: scenes never seen in selection or evidence, tasks in turn."""
        where = PHASES.index(self.phase)
        rng = np.random.default_rng((self.recipe.seed, 4, where, self.iteration))
        seeds = TRAINING_SEED + rng.integers(TRAINING_SCENES, size=stage.groups)
        draws = rng.integers(2**40, size=stage.groups)  # sampler seeds are some thousand times these
        members = tuple(horizons[i % len(horizons)] for i in range(stage.group_size))
        first = self.iteration * stage.groups
        return [
            Group(self.tasks[(first + g) % len(self.tasks)], int(seeds[g]), members, int(draws[g]) * stage.group_size)
            for g in range(stage.groups)
        ]

    def advantages(self, groups, rollouts: Rollouts) -> list[np.ndarray | None]:
        """Of every group (G,), None where it teaches nothing."""
        config, found = self.recipe.reward, []
        for group, results in zip(groups, rollouts.results):
            success = np.array([result.outcome == "success" for result in results])
            if self.phase == "extension":
                reward = rewards.extension(success, np.array(group.horizons) / self.longest, self.longest, config)
            else:
                steps = np.array([result.steps for result in results])
                reward = rewards.step_saving(success, steps, self.budgets[group.task], config)
            found.append(rewards.advantages(reward, success, config))
        return rewards.in_proportion(found, config)

    # -- checks -------------------------------------------------------------------------------------------------

    def _check(self, horizon: int) -> None:
        """Success and steps at ``horizon`` on selection scenes; the best policy so far is remembered."""
        rows = self._play(self._candidate(horizon), None, horizon, self.recipe.check_episodes)
        check = {
            "phase": self.phase,
            "iteration": self.iteration,
            "horizon": horizon,
            "minutes": round(self.elapsed_s / 60, 2),
            "success_rate": _rate(rows),
            "steps": float(np.mean([self._cost(row) for row in rows])),
            "steps_success": float(np.mean([row["steps_success"][0] for row in rows if row["successes"]] or [math.nan])),
            "calls": float(np.mean([row["calls_all"][0] for row in rows])),
            "words": _words(rows),
        }
        if not math.isfinite(check["steps_success"]):
            check["steps_success"] = None
        self.checks.append(check)
        self._log(
            "check", {key: check[key] for key in ("success_rate", "steps", "steps_success", "calls") if check[key] is not None}
        )
        if self.best is None or self._better(check, self.best):
            self.best, self._best_weights = check, self._weights()

    def _cost(self, row: dict) -> float:
        """Mean steps of an evaluation in which an episode without success counts as long as a rollout that is given up: one that
        the controller ends early has saved nothing."""
        lost = max(self.recipe.limit, 1.0) * self.budgets[row["task"]]
        return float(np.mean([e["steps"] if e["outcome"] == "success" else lost for e in row["episodes_list"]]))

    def _better(self, check: dict, best: dict) -> bool:
        """Stage 1 wants the latest policy whose success at the longest horizon is within the recipe's margin of the best one's (a
        few episodes cannot rank them more finely); stage 2 fewer steps at a success rate that the margin allows."""
        if self.phase == "extension":
            rates = [check["success_rate"] for check in self.checks if check["phase"] == self.phase]
            return check["success_rate"] >= max(rates) - self.recipe.margin
        enough = self._first_check()["success_rate"] - self.recipe.margin
        if check["success_rate"] < enough:
            return False
        return best["success_rate"] < enough or check["steps"] < best["steps"]

    def _check_when_due(self, stage: Stage, horizon: int) -> None:
        """The check that belongs to this iteration, also when it was interrupted; it may end the stage."""
        due = self.iteration % self.recipe.check_every == 0 or self.iteration == stage.iterations
        if due and not self._checked:
            self._check(horizon)
            self._judge_check(stage)

    @property
    def _checked(self) -> bool:
        """Whether the policy of this iteration was checked."""
        return bool(self.checks) and [self.checks[-1][key] for key in ("phase", "iteration")] == [self.phase, self.iteration]

    def _judge_check(self, stage: Stage) -> None:
        """Ends the stage when the policy has collapsed or stopped getting better."""
        check = self.checks[-1]
        if check["success_rate"] < self._first_check()["success_rate"] - self.recipe.collapse:
            self._end(f"collapse to a success rate of {check['success_rate']:.2f}")
        elif stage.patience and self.iteration - self.best["iteration"] >= stage.patience * self.recipe.check_every:
            self._end(f"no better policy in {stage.patience} checks")

    def _first_check(self) -> dict:
        return next(check for check in self.checks if check["phase"] == self.phase)

    def _end(self, why: str) -> None:
        self.ended.setdefault(self.phase, why)

    def _time_left_s(self) -> float:
        """A stage with others behind it may use up to a third more of the budget; what it leaves over goes to those."""
        if not self.recipe.minutes:
            return math.inf
        wanted = [phase for phase in self.phases if phase in STAGES]
        share = SHARE * (STAGES.index(self.phase) + 1) if self.phase in wanted[:-1] else 1.0
        return 60 * self.recipe.minutes * share - self.elapsed_s

    # -- evaluation ---------------------------------------------------------------------------------------------

    def _play(self, directory, name: str | None, horizon: int, episodes: int, first_seed: int = SELECTION_SEED) -> list[dict]:
        """Reports of ``directory`` on all tasks; those that have a ``name`` are kept in the run and not played again."""
        bench = replace(self.bench, first_seed=first_seed)
        manifest = checkpoint.read_manifest(directory)
        path = self.run_dir / f"{name}.json"
        kept = evaluate.read_reports(path) if name and path.exists() else []
        found = []
        if self._workers is None:
            self._workers = evaluate.Workers(bench)
        for task in self.tasks:
            row = Evaluation(task, self.recipe.task_setting, episodes, horizon, self.recipe.mode, self.recipe.latency_s)
            wanted = evaluate.identity(row, bench, manifest)
            report = next((r for r in kept if evaluate.same(r, wanted)), None)
            if report is None:
                self._stop_here()
                bar = self.progress and bool(name)
                report = evaluate.evaluate(directory, row, bench, workers=self._workers, progress=bar, between=self._stop_here)
                report["command"] = f"policytrim train trim ({self.recipe.name})"
                if name:
                    kept.append(report)
                    evaluate.write_reports(self.run_dir / name, kept)
            found.append(report)
        return found

    def _stop_here(self) -> None:
        if self.stop_requested:
            self.save_state()
            raise Interrupted(f"stopped in {self.phase}; the same command resumes")

    # -- policies -----------------------------------------------------------------------------------------------

    @property
    def fleet(self) -> Fleet:
        """The workers, started when they are first needed."""
        if self._fleet is None:
            self._fleet = Fleet(self._grounds, self.policy, self.exploration, **self._fleet_options)
        return self._fleet

    def _deployed(self, horizon: int):
        """The present policy; its contract says the h and the tasks that it is trained for."""
        policy = self.policy.shortened(horizon) if self.plans else self.policy
        policy = merged_copy(policy, replace(policy.contract, execution_horizon=horizon, tasks=tuple(self.tasks)))
        if policy.family == "flow":
            sampler = self.recipe.sampler
            level = sampler.level if self.recipe.as_trained else 0.0
            policy.config = replace(policy.config, acting_noise=level, acting_gripper=sampler.gripper)
        return policy

    def _candidate(self, horizon: int, name: str = "candidate") -> Path:
        """The present policy as a checkpoint in the run's directory."""
        checkpoint.save(self.run_dir / name, self._deployed(horizon), made=self._made(), overwrite=True)
        return self.run_dir / name

    def _made(self) -> dict:
        recipe = self.recipe
        return {
            "recipe": recipe.name,
            "recipe_sha256": recipe.digest,
            "method": "trim",
            "settings": asdict(recipe),
            "seed": recipe.seed,
            "phase": self.phase,
            "iteration": self.iteration,
            "iterations": {stage: sum(entry["phase"] == stage for entry in self.history) for stage in STAGES},
            "minutes": round(self.elapsed_s / 60, 2),
            "step_budget": {task: round(budget, 2) for task, budget in self.budgets.items()},
            "execution_horizon": [self.base_horizon, self.horizon or self.base_horizon],
            "ended": dict(self.ended),
            "commit": commit(),
            "parent": self.parent,
            "torch": torch.__version__,
        }

    def _weights(self) -> dict[str, torch.Tensor]:
        """A copy of what learns."""
        return {name: parameter.detach().clone() for name, parameter in self.optimizer.trained.items()}

    def _set_weights(self, weights) -> None:
        with torch.no_grad():
            for name, parameter in self.optimizer.trained.items():
                parameter.copy_(weights[name])

    # -- resuming -----------------------------------------------------------------------------------------------

    def save_state(self) -> None:
        """Everything that the next iteration depends on."""
        tensors = {f"best.{name}": tensor for name, tensor in self._best_weights.items()}
        for name, parameter in self.optimizer.trained.items():
            tensors[f"model.{name}"] = parameter
            if isinstance(self.reference, nullcontext):
                tensors[f"reference.{name}"] = self.reference.enter_result.get_parameter(name)
        tensors |= run_state.moments(self.optimizer.adam, self.optimizer.trained)
        facts = {"recipe": self.recipe.digest, "parent": self.parent}
        facts |= {"updates": self.optimizer.updates, "steps": self.optimizer.steps}
        facts |= {name: getattr(self, name) for name in REMEMBERED}
        run_state.save(self.run_dir / STATE_FILE, tensors, facts)

    def _resume(self) -> None:
        path = self.run_dir / STATE_FILE
        saved = run_state.load(path)
        if saved is None:
            return
        tensors, facts = saved
        if [facts.get("recipe"), facts.get("parent")] != [self.recipe.digest, self.parent]:
            raise TrainingError(
                f"{path}: belongs to other settings or to another baseline; give another --run, or delete {self.run_dir} to "
                "start again"
            )
        for name in REMEMBERED:
            setattr(self, name, facts[name])
        if self.recipe.lora.rank and "extension" in self.phases[: self.phases.index(self.phase)]:
            self._begin_from(self.run_dir / EXTENDED)
        else:
            self._begin_learning()
        self.optimizer.updates, self.optimizer.steps = facts["updates"], facts["steps"]
        trained = self.optimizer.trained
        self._set_weights({name: tensors[f"model.{name}"] for name in trained})
        self._best_weights = {
            name: tensors[f"best.{name}"].to(self.policy.device) for name in trained if f"best.{name}" in tensors
        }
        if any(name.startswith("reference.") for name in tensors):
            self.reference = self._as_reference()
            with torch.no_grad():
                for name in trained:
                    self.reference.enter_result.get_parameter(name).copy_(tensors[f"reference.{name}"])
        run_state.restore_moments(self.optimizer.adam, trained, tensors, facts["steps"])

    # -- curves -------------------------------------------------------------------------------------------------

    def _board(self):
        from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

        return SummaryWriter(self.run_dir, purge_step=len(self.history) + 1 if self.history else None)

    def _log(self, group: str, values) -> None:
        for name, value in values.items():
            self.board.add_scalar(f"{self.phase}/{group}/{name}", value, self.iteration)

    def _recently(self) -> str:
        recent = self._recent()
        return f"SR={recent['success_rate']:.2f} S={recent['steps']:.0f} best: {self.best['words']}"

    def _recent(self) -> dict[str, float | None]:
        """Success rate and steps of this phase's latest iterations."""
        recent = [entry for entry in self.history if entry["phase"] == self.phase][-RECENT:]
        return {key: float(np.mean([entry[key] for entry in recent])) if recent else None for key in ("success_rate", "steps")}

    def _report(self, **result) -> None:
        """Tells whoever watches how far the run is; see progress.py."""
        stage = getattr(self.recipe, self.phase) if self.phase in STAGES else None
        values = {"phase": self.phase, "iteration": self.iteration, "iterations": stage.iterations if stage else 0}
        values |= {"eta_s": self._eta_s(stage), **self._recent(), "horizon": self.horizon or self.base_horizon}
        values["best"] = self.best and {key: self.best[key] for key in ("iteration", "success_rate", "steps", "calls")}
        progress.write(self.run_dir, values | result)

    def _eta_s(self, stage: Stage | None) -> float | None:
        """Seconds until the stage ends at the latest: at its pace until now, and within the budget."""
        if not stage or not self.iteration:
            return None
        pace = (self.elapsed_s - 60 * self._first_check()["minutes"]) / self.iteration
        return round(max(0.0, min(pace * (stage.iterations - self.iteration), self._time_left_s())), 1)


REMEMBERED = ("phase", "iteration", "elapsed_s", "budgets", "horizon", "history", "checks", "best", "ended")
"""Attributes of `Trimming` that a state file holds as JSON."""


def select(rates: dict[int, float], tolerance: float) -> int:
    """The longest horizon whose success rate is within ``tolerance`` of the best one's."""
    best = max(rates.values())
    return max(h for h, rate in rates.items() if rate >= best - tolerance - 1e-9)


def _rate(rows) -> float:
    """Success rate over all tasks, each counting the same."""
    return float(np.mean([row["success_rate"] for row in rows]))


def _words(rows) -> str:
    """Success, steps and calls of each task, shortly."""
    cells = []
    for row in rows:
        steps = "-" if row["steps_success"] is None else f"{row['steps_success'][0]:.0f}"
        cells.append(f"{row['task']} SR {row['success_rate']:.2f} S {steps}")
    return ", ".join(cells)


def _figures_of(rollouts: Rollouts) -> dict[str, float]:
    """Success rate, steps (of all, of successes) and calls of an iteration's rollouts."""
    results = [result for group in rollouts.results for result in group]
    won = [result.steps for result in results if result.outcome == "success"]
    figures = {
        "success_rate": len(won) / len(results),
        "steps": float(np.mean([result.steps for result in results])),
        "calls": float(np.mean([result.calls for result in results])),
        "control_steps": float(sum(result.control_steps for result in results)),
    }
    return figures | ({"steps_success": float(np.mean(won))} if won else {})


# -- command line ---------------------------------------------------------------------------------------------------

EXAMPLES = """\
A killed or interrupted run goes on when the same command is repeated; the result is the same. The trimmed checkpoint appears
at --out only if it is an improvement: success not worse by the margin, fewer calls, fewer steps, on scenes never seen before.
Exit code 0: improvement; 3: finished, but none (the checkpoint stays in the run's directory); 130: interrupted.

examples:
  policytrim train trim --recipe config/trim_tape_box_state.yaml --processes 2
  policytrim train trim --checkpoint models/piper-pi0-tiny --task tape_box --minutes 60 --out models/mine
  policytrim train trim --recipe config/trim_tape_box_state.yaml --set extension.iterations=0 --run runs/without-stage-1
  policytrim train trim --recipe config/trim_tape_box_state.yaml --set hastening.iterations=60   # with the third stage
  tensorboard --logdir runs
"""


def add_arguments(parser) -> None:
    """``policytrim train trim``."""
    parser.formatter_class, parser.epilog = argparse.RawDescriptionHelpFormatter, EXAMPLES
    parser.add_argument("--recipe", help="recipe file, config/trim_*.yaml (default: the defaults of all settings)")
    parser.add_argument("--checkpoint", help="the baseline that is trimmed (default: the recipe's)")
    parser.add_argument("--task", nargs="+", help="tasks to trim it on (default: the recipe's, else the checkpoint's)")
    parser.add_argument("--out", help="directory of the trimmed checkpoint (default: the recipe's)")
    parser.add_argument("--run", help="directory of curves and resumable state (default: runs/<name>)")
    parser.add_argument("--minutes", type=float, help="wall-clock budget of all stages together")
    parser.add_argument("--seed", type=int, help="seed of scenes, exploration and order")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="change settings of the recipe, e.g. saving.iterations=20"
    )
    parser.add_argument("--processes", type=int, default=1, choices=range(1, 257), metavar="N", help="rollout processes (1)")
    parser.add_argument("--lanes", type=int, default=8, choices=range(1, 4097), metavar="N", help="environments of each (8)")
    parser.add_argument(
        "--backend", default="cpu", choices=BACKENDS, help="single environments on the CPU, or ManiSkill's GPU backend"
    )
    parser.add_argument("--device", default="cpu", help="torch device of the policy")
    parser.add_argument("--ray", default="", metavar="ADDRESS", help="play rollouts on a Ray cluster: its address, or 'local'")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by so much (0 to 19)")


def recipe_of(args) -> TrimRecipe:
    """The recipe of a command line. ConfigError when something does not fit."""
    changes = dict(parse_change(text) for text in args.set)
    given = {"parent": args.checkpoint, "tasks": args.task, "checkpoint": args.out, "minutes": args.minutes, "seed": args.seed}
    return load_trim(args.recipe, {**changes, **{name: value for name, value in given.items() if value is not None}})


def publish(run_dir, directory) -> None:
    """Puts a run's trimmed checkpoint, as a whole, in place of what ``directory`` may hold, then says so in its progress."""
    manifest = checkpoint.copy(Path(run_dir) / "trimmed", directory)
    published = {"checkpoint": str(directory), "weights_sha256": manifest["files"]["model.safetensors"]}
    progress.write(run_dir, progress.read(run_dir) | published)


def main(args) -> int:
    """Runs or resumes; see EXAMPLES for the exit codes; 1 after one sentence about what went wrong."""
    torch.set_num_threads(1)
    try:
        if args.nice:
            os.nice(args.nice)
        recipe = recipe_of(args)
        run_dir = args.run or f"runs/{recipe.name}"
        options = dict(processes=args.processes, lanes=args.lanes, backend=args.backend, device=args.device, ray=args.ray)
        trimming = Trimming(recipe, run_dir, **options, say=lambda text: print(f"trim: {text}", flush=True))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: setattr(trimming, "stop_requested", True))
        evidence = trimming.run()
        if evidence["improvement"]:
            publish(run_dir, recipe.checkpoint)
    except Interrupted as reason:
        print(f"trim: {reason}")
        return 130
    except (ConfigError, TrainingError, checkpoint.CheckpointError) as error:
        print(f"trim: {error}")
        return 1
    print(f"\n{evidence['table']}\n\ntrim: {evidence['verdict']}")
    print(f"trim: {run_dir}/evidence.md, {run_dir}/learning.png")
    if not evidence["improvement"]:
        print(f"trim: not published; the checkpoint stays in {run_dir}/trimmed")
        return 3
    print(f"trim: {recipe.checkpoint}: h = {trimming.horizon}")
    return 0
