"""A recipe: one YAML file from which a checkpoint can be made again. Demonstrations, network, training, evaluation.

Every key is a documented option with its range; an unknown key, a bad value or a missing section is refused with a sentence.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import yaml

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.core.contract import ACTION_KIND
from policytrim_ros.core.replanning import MODES
from policytrim_ros.policies.checkpoint import FAMILIES
from policytrim_ros.policies.flow import FlowConfig
from policytrim_ros.training.environment import ENVIRONMENT, factory
from policytrim_ros.training.version import commit as commit  # offered here, too

TASKS = ("tape_box", "flip_mug", "hang_mug")
SETTINGS = ("standard", "dynamic", "shared")
"""`shared`: the objects of TapeBox and FlipMug stand together and only the instruction says what to do."""


@dataclass(frozen=True)
class Collection(Config):
    """One batch of demonstrations of the same kind."""

    task: str = option("tape_box", "task to demonstrate")
    setting: str = option("standard", "whether the target is moved during the approach", choices=SETTINGS)
    style: str = option("hesitant", "demonstrator", choices=("clean", "slow", "hesitant"))
    start: str = option(
        "ready",
        "how an episode begins: ready; displaced (arm and gripper somewhere else); mistaken (the demonstrator first acts on"
        " wrong object poses); intervention (`driver` acts first, the demonstrator takes over). What comes before it knows better is"
        " not recorded: it teaches recovery, not mistakes",
        choices=("ready", "displaced", "mistaken", "intervention"),
    )
    driver: str = option("", "intervention: directory of the checkpoint that acts first")
    driver_horizon: int = option(0, "intervention: its execution horizon; 0: its own", low=0, high=100)
    driver_latency_s: float = option(0.1, "intervention: what one look takes it, asynchronously", low=0, high=2, unit="s")
    disturbance_rad: float = option(
        0.0,
        "standard deviation of a slow random motion laid over the demonstrator's; the recorded actions lead back to its path",
        low=0,
        high=0.2,
        unit="rad",
    )
    episodes: int = option(100, "successful episodes to keep", low=1, high=100_000)
    first_seed: int = option(0, "seed of the first attempt; the next attempts count up", low=0, high=2_000_000_000)

    def __post_init__(self):
        super().__post_init__()
        if (self.start == "intervention") != bool(self.driver):
            raise ConfigError("Collection.driver: the checkpoint that acts first, with start: intervention and with no other start")


@dataclass(frozen=True)
class Pictures(Config):
    """How pictures are made: rendered as the robot's camera delivers them, stored as the policy eats them."""

    cameras: tuple = option(("front", "wrist"), "camera names, in the policy's order")
    camera_width: int = option(424, "width of the camera's stream", low=32, high=1920, unit="px")
    camera_height: int = option(240, "height of the camera's stream", low=32, high=1080, unit="px")
    width: int = option(128, "width of the policy's picture", low=16, high=448, unit="px")
    height: int = option(72, "height of the policy's picture", low=16, high=448, unit="px")
    every: int = option(2, "control steps from one stored picture to the next", low=1, high=5)


@dataclass(frozen=True)
class Training(Config):
    """Supervised fine-tuning: optimisation, augmentation, bookkeeping."""

    steps: int = option(2500, "optimiser steps; the learning rate ends its cosine here", low=1, high=10_000_000)
    cpu_minutes: float = option(
        0.0, "budget of CPU time after which training ends early (0: none)", low=0, high=100_000, unit="min"
    )
    batch: int = option(64, "samples in one step, over all processes", low=1, high=65536)
    accumulate: int = option(
        1,
        "pieces in which a step's batch is worked through, their gradients summed: less memory, the same step; several processes"
        " share the pieces out, so that their number is rounded up to a multiple of the processes'",
        low=1,
        high=4096,
    )
    precision: str = option(
        "auto",
        "arithmetic of forward and backward pass (weights are always float32); auto: bfloat16 on a GPU, float32 on a CPU, where"
        " bfloat16 is slower for small networks",
        choices=("auto", "float32", "bfloat16"),
    )
    flow_samples: int = option(4, "random draws for every sample that share its encoded pictures: (noise, tau)", low=1, high=64)
    learning_rate: float = option(7e-4, "peak learning rate of AdamW", low=1e-7, high=1e-1)
    warmup_steps: int = option(100, "steps of linear warm-up", low=0, high=100_000)
    weight_decay: float = option(1e-4, "decoupled weight decay", low=0, high=1)
    gradient_clip: float = option(1.0, "largest norm of the gradient", low=1e-3, high=1e3)
    ema: float = option(0.995, "decay of the weight average that is saved", low=0, high=0.99999)
    action_quantile: float = option(
        0.01,
        "share of the demonstrated actions beyond either end of the normalised range; 0 for tokens: the first and the last "
        "bin take all that lies beyond, and then look likelier than any other",
        low=0,
        high=0.2,
    )
    locate_weight: float = option(1.0, "weight of the auxiliary loss on where the objects are", low=0, high=100)
    held_out: float = option(0.08, "share of the episodes kept for validation", low=0, high=0.5)
    evaluate_every: int = option(250, "steps between two held-out losses", low=1, high=1_000_000)
    patience: int = option(0, "held-out evaluations without improvement before stopping (0: never)", low=0, high=1000)
    success_every: int = option(
        0,
        "steps between two evaluations in the simulator; the checkpoint with the most successes is kept (0: none)",
        low=0,
        high=1_000_000,
    )
    success_episodes: int = option(20, "episodes of each row of `evaluation` then", low=1, high=10_000)
    success_wanted: float = option(1.0, "mean success rate at which training ends", low=0, high=1)
    save_every: int = option(250, "steps between two saves of the training state", low=1, high=1_000_000)
    shift_px: tuple = option((1, 4), "largest random shift of each camera's picture", low=0, high=32, unit="px")
    brightness: float = option(0.08, "largest relative change of brightness", low=0, high=1)
    image_delay_steps: int = option(2, "largest age of a picture against the joint state, in control steps", low=0, high=10)
    state_delay: float = option(0.3, "probability that the measured positions are one step old", low=0, high=1)
    rest: float = option(
        0.3, "probability that the arm is shown at rest (measured = setpoint), as it is when it waits for a chunk", low=0, high=1
    )
    joint_noise_rad: float = option(0.003, "standard deviation of noise on measured joints", low=0, high=0.1, unit="rad")
    gripper_noise_m: float = option(0.0004, "standard deviation of noise on the measured stroke", low=0, high=0.01, unit="m")


@dataclass(frozen=True)
class Lora(Config):
    """Low-rank adapters (LoRA): train a few weights beside those of a large network; the checkpoint has them merged."""

    rank: int = option(0, "rank of the adapters (0: none, the whole network is trained)", low=0, high=1024)
    alpha: float = option(16.0, "scale: the adapters count alpha / rank", low=0, high=10_000)
    targets: tuple = option(("q_proj", "v_proj"), "layers that get adapters, by the end of their names")
    train: tuple = option((), "modules that are trained whole beside the adapters, by a part of their names")


@dataclass(frozen=True)
class Source(Config):
    """One directory of demonstrations among those that a policy learns from."""

    directory: str = option("data/policy", "directory of the demonstrations")
    weight: float = option(
        0.0,
        "share of the samples, relative to the other directories' (0 everywhere: an equal share for every task)",
        low=0,
        high=1e6,
    )


@dataclass(frozen=True)
class Evaluation(Config):
    """One row of the evaluation: where, how often, and with which execution horizon."""

    task: str = option("tape_box", "task")
    setting: str = option("standard", "task setting", choices=SETTINGS)
    episodes: int = option(100, "episodes", low=1, high=100_000)
    horizon: int = option(5, "execution horizon h: actions of a chunk that are executed", low=1, high=100)
    mode: str = option(
        "sync",
        "sync: the arm waits for every chunk; async: it plays the old one meanwhile; rtc: which a flow policy then goes on from",
        choices=MODES,
    )
    latency_s: float = option(
        0.0, "time from a look to the arrival of its chunk, rounded up to control steps", low=0.0, high=10.0, unit="s"
    )
    denoising_steps: int = option(0, "steps of the sampler where the family has any (0: the checkpoint's own)", low=0, high=100)
    blank: tuple = option((), "cameras whose pictures are replaced by grey (a control: does the policy look?)")
    hide_target: bool = option(False, "the target is there but not in the pictures (a control: does the policy look?)")
    blur_px: int = option(
        0, "kernel of a Gaussian blur of the delivered pictures, odd (0: none; the paper: 13)", low=0, high=99, unit="px"
    )
    occlusion: float = option(
        0.0, "share of each picture's area covered by black patches at random, anew at every look (the paper: 0.5)", low=0, high=1
    )
    shift_px: int = option(
        0,
        "the picture moves so far in a direction drawn for each episode and camera, as if it had been knocked",
        low=0,
        high=200,
        unit="px",
    )
    tail_limit_rad: float = option(
        0.0, "halve h when a chunk differs from the tail of the one before by more, until they agree (0: never)", low=0, high=3, unit="rad"
    )
    tracking_limit_rad: float = option(
        0.0, "halve h when a joint is farther from its setpoint at a look (0: never)", low=0, high=3, unit="rad"
    )
    motion_limit: float = option(
        0.0, "halve h when more of a picture changes than the arm explains, as a share of it (0: never)", low=0, high=1
    )
    shortest_horizon: int = option(2, "h is not cut below this", low=1, high=100)
    action_noise_rad: float = option(0.0, "standard deviation of noise on every played joint target", low=0, high=0.5, unit="rad")
    instruction: str = option("", "what the policy is told in place of the task's own sentence (empty: the task's own)")
    demonstrator: str = option(
        "", "play this scripted demonstrator in place of a policy", choices=("", "clean", "slow", "hesitant")
    )


@dataclass(frozen=True)
class Recipe(Config):
    """Everything that makes one checkpoint."""

    name: str = option("policy", "name of the checkpoint")
    environment: str = option(ENVIRONMENT, "factory of the environment, module:name")
    demonstrator: str = option("sim_bridge.demonstrators:make_demonstrator", "factory of the demonstrators, module:name")
    dataset: str = option("data/policy", "directory of the demonstrations; `demos make` fills it")
    datasets: tuple[Source, ...] = field(default_factory=tuple, metadata={})
    checkpoint: str = option("models/policy", "directory of the finished checkpoint")
    seed: int = option(0, "seed of initialisation, order and augmentation", low=0, high=2_000_000_000)
    execution_horizon: int = option(5, "default h that the checkpoint recommends", low=1, high=100)
    object_slots: int = option(
        0, "objects whose true poses the policy is told (simulation only; with no cameras: a state-based policy)", low=0, high=2
    )
    pictures: Pictures = field(default_factory=Pictures, metadata={})
    collect: tuple[Collection, ...] = field(default_factory=tuple, metadata={})
    family: str = option("flow", "family of the policy; `network` are the options of its configuration", choices=tuple(FAMILIES))
    network: Config = field(default_factory=FlowConfig, metadata={})
    parent: str = option("", "checkpoint to start from, fine-tuning it; its network, words and normalisation are kept")
    renormalise: bool = option(
        False,
        "take the normalisation and the tasks from the demonstrations although there is a parent; a flow policy may then learn to "
        "predict another number of actions",
    )
    lora: Lora = field(default_factory=Lora, metadata={})
    training: Training = field(default_factory=Training, metadata={})
    evaluation: tuple[Evaluation, ...] = field(default_factory=tuple, metadata={})

    def __post_init__(self):
        super().__post_init__()
        expected = FAMILIES[self.family].config
        if not isinstance(self.network, expected):
            raise ConfigError(
                f"Recipe.network is a {type(self.network).__name__}, the family '{self.family}' wants {expected.__name__}"
            )
        if not self.pictures.cameras and not self.object_slots:
            raise ConfigError("Recipe.pictures.cameras = []: a policy needs a camera, or object_slots > 0")
        if self.execution_horizon > self.network.horizon:
            raise ConfigError(
                f"Recipe.execution_horizon = {self.execution_horizon}: the network predicts only {self.network.horizon} actions"
            )
        if len({source.weight > 0 for source in self.sources}) > 1:
            raise ConfigError("Recipe.dataset: give every directory a weight above 0, or none of them")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The directories to learn from: ``datasets``, or the one ``dataset``."""
        return self.datasets or (Source(self.dataset),)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that shapes the weights."""
        shaping = {
            key: value
            for key, value in asdict(self).items()
            if key not in ("name", "dataset", "datasets", "checkpoint", "parent", "evaluation", "collect")
        }
        shaping["weights"] = [source.weight for source in self.sources]
        return digest_of(shaping)


def load_recipe(path) -> Recipe:
    """Reads and checks a recipe; ConfigError names file, key, value and what is allowed.

    ``dataset`` may be one directory or a list of directories, or of {directory, weight}; ``network`` is read as the
    configuration of ``family``.
    """
    values = read_mapping(path)
    try:
        family = values.get("family", "flow")
        if family not in FAMILIES:
            raise ConfigError(f"Recipe.family = {family!r}: allowed values are {', '.join(map(repr, FAMILIES))}")
        values.setdefault("network", {})
        if isinstance(values.get("dataset"), list):
            values["datasets"] = [{"directory": s} if isinstance(s, str) else s for s in values.pop("dataset")]
            if values.get("collect"):
                raise ConfigError("Recipe.dataset is a list: `collect` fills one directory; put it into a recipe of its own")
        sections = (("pictures", Pictures), ("network", FAMILIES[family].config), ("lora", Lora), ("training", Training))
        for key, kind in sections:
            if key in values:
                values[key] = kind.from_mapping(tupled(values[key]))
        for key, kind in (("collect", Collection), ("evaluation", Evaluation), ("datasets", Source)):
            if key in values:
                values[key] = tuple(kind.from_mapping(tupled(entry)) for entry in values[key])
        return Recipe.from_mapping(values)
    except (ConfigError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def digest_of(settings: dict) -> str:
    """SHA-256 of settings (JSON values), whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def read_mapping(path) -> dict:
    """The settings in a YAML file; ConfigError when it cannot be read or holds something else."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of settings")
    return values


@dataclass(frozen=True)
class World:
    """What an environment's module says about it: names of its tasks, and the kind of its actions as in a contract."""

    tasks: tuple[str, ...] = TASKS
    action_kind: str = ACTION_KIND


def world_of(environment: str) -> World:
    """TASKS and ACTION_KIND of the module in ``environment`` (module:name), the Piper's where it has none; ConfigError."""
    if environment == ENVIRONMENT:  # without loading the simulator
        return World()
    factory(environment)
    module = importlib.import_module(environment.partition(":")[0])
    return World(tuple(getattr(module, "TASKS", TASKS)), getattr(module, "ACTION_KIND", ACTION_KIND))


def tupled(mapping) -> dict:
    """``mapping`` with every list as a tuple, as frozen settings have them; ConfigError when it is no mapping."""
    if not isinstance(mapping, dict):
        raise ConfigError(f"expected a mapping of settings, not {mapping!r}")
    return {key: tuple(value) if isinstance(value, list) else value for key, value in mapping.items()}
