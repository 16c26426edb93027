"""A recipe of trimming: one YAML file, or the defaults and a few options, from which a trimmed checkpoint can be made again.

    recipe = load_trim("config/trim_tape_box_state.yaml", {"saving.iterations": 20, "reward.stability": 0})

Everything has a default that small networks on a CPU want; the paper's values for large ones stand in the documentation of
each option.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Mapping

import yaml

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.replanning import ASYNC, SYNC
from policytrim_ros.policies.samplers import Sampler
from policytrim_ros.training.grpo import GrpoConfig
from policytrim_ros.training.recipe import SETTINGS, Lora, digest_of, read_mapping, tupled, world_of
from policytrim_ros.training.rewards import RewardConfig


READINGS = ("execute", "plan")
UNSHAPING = ("name", "checkpoint", "parent", "against", "minutes")
"""Settings that say nothing of the weights (the parent's are told by their digest)."""


@dataclass(frozen=True)
class Stage(Config):
    """One of the two stages: how long, and how much is played for every update."""

    iterations: int = option(40, "updates; 0 leaves the stage out", low=0, high=100_000)
    groups: int = option(8, "groups, each from one initial state, in an iteration", low=1, high=4096)
    group_size: int = option(8, "G, rollouts of a group", low=2, high=256)
    horizons: tuple = option(
        (),
        "execution horizons that the members of a group take in turn; empty: stage 1 sweeps evenly from the baseline's h to H, "
        "stage 2 keeps the selected h",
        low=1,
        high=100,
    )
    patience: int = option(0, "checks without a better policy before the stage ends (0: never)", low=0, high=1000)


@dataclass(frozen=True)
class Hastening(Stage):
    """The third stage, which the paper does not have: the tempo of whole chunks is what is explored (policies/tempo.py)."""

    iterations: int = option(0, "updates (0: none); for flow policies and sampler.method cps", low=0, high=100_000)
    tempo: float = option(0.15, "standard deviation of the tempo of a chunk, relative to its own", low=0.01, high=0.5)
    across: float = option(0.1, "see sampler.across", low=1e-3, high=10)
    weight: float = option(0.03, "see sampler.weight", low=0.0, high=1.0)
    learning_rate: float = option(5e-5, "in place of grpo.learning_rate; it does not fall", low=1e-8, high=1e-1)
    renew: int = option(0, "iterations after which the policy becomes its own reference (0: never)", low=0, high=10_000)


@dataclass(frozen=True)
class TrimRecipe(Config):
    """Everything that makes a trimmed checkpoint out of a baseline."""

    name: str = option("trimmed", "name of the run")
    parent: str = option("models/piper-state-tiny", "the baseline: the checkpoint that is trimmed")
    checkpoint: str = option("models/trimmed", "directory of the trimmed checkpoint")
    against: str = option("", "what the evidence compares it with (empty: the parent), where that was trimmed itself")
    tasks: tuple = option((), "tasks to trim it on (empty: the parent's)")
    task_setting: str = option("standard", "task setting to train in", choices=SETTINGS)
    seed: int = option(0, "seed of scenes, exploration and order", low=0, high=2_000_000)
    environment: str = option("sim_bridge.env:TaskEnv", "factory of the environment, module:name")
    camera_width: int = option(212, "width at which pictures are rendered", low=32, high=1920, unit="px")
    camera_height: int = option(120, "height at which pictures are rendered", low=32, high=1080, unit="px")

    mode: str = option(
        SYNC,
        "how the policy is run, in rollouts and in evaluation: sync, the arm waits for every chunk; async, it plays the old one",
        choices=(SYNC, ASYNC),
    )
    latency_s: float = option(
        0.0, "time from a look to the arrival of its chunk, rounded up to control steps", low=0, high=10, unit="s"
    )

    alpha: float = option(1.3, "S_base / mean S of the baseline's successes: the step budget", low=1, high=10)
    reading: str = option(
        "execute",
        "what a horizon h means: execute the first h of H predicted actions, or sample a plan of length h (flow policies; the "
        "trimmed policy then predicts h actions)",
        choices=READINGS,
    )
    horizon: int = option(0, "h of stage 2 and of the trimmed policy (0: selected after stage 1)", low=0, high=100)
    tolerance: float = option(
        0.03,
        "loss of success rate against the best horizon that the selected one, the longest within it, may show",
        low=0,
        high=1,
    )
    limit: float = option(
        1.5, "rollouts that take longer than so many S_base are given up (0: the task's own limit)", low=0, high=100
    )
    extension: Stage = field(default_factory=lambda: Stage(iterations=20), metadata={})
    saving: Stage = field(default_factory=lambda: Stage(iterations=80), metadata={})
    hastening: Hastening = field(default_factory=Hastening, metadata={})
    reward: RewardConfig = field(default_factory=RewardConfig, metadata={})
    grpo: GrpoConfig = field(default_factory=GrpoConfig, metadata={})
    sampler: Sampler = field(default_factory=lambda: Sampler("cps", joint=True), metadata={})
    as_trained: bool = option(
        False, "flow: the checkpoint acts with the noise that it explored with (Flow-CPS in all steps), instead of by the ODE"
    )
    temperature: float = option(1.0, "of the tokens that a token policy draws while it explores", low=0.01, high=10)
    correlation: float = option(
        0.0,
        "of a token policy's draws for one joint along a chunk: 0, each by itself; towards 1, a chunk ahead or behind as a whole",
        low=0,
        high=0.99,
    )
    frozen_prefix: bool = option(
        True, "flow: what encodes the observation stays as it is and only the action expert learns: half the time of an update"
    )

    renew_reference: int = option(
        0,
        "iterations after which the policy becomes its own reference (0: a stage keeps the one that it began with)",
        low=0,
        high=10_000,
    )
    lora: Lora = field(default_factory=Lora, metadata={})

    check_every: int = option(10, "iterations between two evaluations on scenes that are never trained on", low=1, high=10_000)
    check_episodes: int = option(32, "episodes of each task in such a check", low=1, high=10_000)
    selection_episodes: int = option(100, "episodes of each task that measure the baseline and select h", low=1, high=100_000)
    evaluation_episodes: int = option(200, "episodes of each task in the final evaluation", low=1, high=100_000)
    margin: float = option(0.05, "loss of success rate that would matter", low=0.001, high=0.5)
    confidence: float = option(0.95, "of the statement about it", low=0.5, high=0.999)
    collapse: float = option(
        0.15,
        "a check whose success rate is so far below the stage's first ends the stage and returns to the best",
        low=0.01,
        high=1,
    )
    minutes: float = option(0.0, "wall-clock budget of all stages together (0: none)", low=0, high=100_000, unit="min")

    def __post_init__(self):
        super().__post_init__()
        if self.as_trained and not (self.sampler.method == "cps" and self.sampler.joint):
            raise ConfigError("TrimRecipe.as_trained: a policy acts with the noise of sampler.method cps and joint true, or with none")
        if self.hastening.iterations:
            self.explorer("hastening")  # refuses a sampler that leaves no room for a tempo
            if not self.grpo.kl:
                raise ConfigError("TrimRecipe.hastening: without grpo.kl nothing keeps what a chunk does besides; set it to 3")
            if self.lora.rank and self.hastening.renew:
                raise ConfigError("TrimRecipe.hastening.renew: with adapters the reference lies beneath them; set it to 0")
        if self.renew_reference and self.lora.rank:
            raise ConfigError("TrimRecipe.renew_reference: with adapters the reference is what lies beneath them; leave it 0")
        for task in self.tasks:
            if task not in (known := world_of(self.environment).tasks):
                raise ConfigError(f"TrimRecipe.tasks: task '{task}' does not exist; choose from {', '.join(known)}")

    def explorer(self, stage: str) -> Sampler:
        """What a flow policy explores by in a stage."""
        if stage != "hastening" or not self.hastening.iterations:
            return self.sampler
        own = self.hastening
        return replace(self.sampler, tempo=own.tempo, across=own.across, weight=own.weight)

    def updates(self, stage: str) -> GrpoConfig:
        """How a stage learns."""
        if stage != "hastening":
            return self.grpo
        return replace(self.grpo, learning_rate=self.hastening.learning_rate, final_rate=1.0)

    def renewal(self, stage: str) -> int:
        """Iterations of a stage after which the policy becomes its own reference; 0: never."""
        return self.hastening.renew if stage == "hastening" else self.renew_reference

    @property
    def digest(self) -> str:
        """SHA-256 of everything that shapes the weights."""
        shaping = {key: value for key, value in asdict(self).items() if key not in UNSHAPING}
        return digest_of(shaping)


SECTIONS = {name: value for name, value in vars(TrimRecipe()).items() if isinstance(value, Config)}
"""Sections of a recipe with their defaults."""


def load_trim(path=None, changes: Mapping[str, Any] | None = None) -> TrimRecipe:
    """The recipe in ``path`` (None: the defaults) with ``changes``, dotted names of options and their values, made.

    ConfigError names file, key, value and what is allowed.
    """
    where = path or "--set"
    try:
        values = read_mapping(path) if path else {}
        for name, value in (changes or {}).items():
            section, _, key = name.rpartition(".")
            if section:
                if section not in SECTIONS:
                    raise ConfigError(f"there is no section '{section}'; there are {', '.join(SECTIONS)}")
                values[section] = {**values.get(section, {}), key: value}
            else:
                values[key] = value
        for name, defaults in SECTIONS.items():
            if name in values:
                values[name] = type(defaults).from_mapping({**vars(defaults), **tupled(values[name])})
        return TrimRecipe.from_mapping(tupled(values))
    except (ConfigError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: {error}") from error


def parse_change(text: str) -> tuple[str, Any]:
    """``saving.iterations=20`` -> (name, value); ConfigError when it is not of this form. 3e-5 is a number here, which YAML takes for a
    word (it wants 3.0e-5)."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--set {text}: expected NAME=VALUE, for example saving.iterations=20")
    try:
        read = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value cannot be read ({error})") from error
    if isinstance(read, str):
        with suppress(ValueError):
            return name, float(read)
    return name, read
