"""What a session of trials compares, and in which order: blind, interleaved, and the same from the same seed.

    Session (a YAML file) --schedule()--> [Trial, Trial, ...]

A cell is one task in one setting. In every cell each arm of the comparison meets the same scenes, so that outcomes are pairs. Scenes
are taken in blocks; inside a block the trials are shuffled by the session's seed (permuted blocks): whatever drifts in an afternoon,
light, wear, the operator, falls on all arms alike. An operator sees the code of a trial, which says nothing about its arm. Order and
codes of a blind session are drawn from the seed and a salt, which is drawn when the session begins (`salted`) and kept with its plan: who
knows the plan, or an earlier session of the same seed, knows nothing of this one.

A canary session has two arms, incumbent and candidate, and each scene is met by one of them: in every block of `canary` trials one, at a
place drawn from the seed, is the candidate's.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, Mapping

import numpy as np
import yaml

from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option

SETTINGS = ("standard", "dynamic")
MOST_TRIALS = 100_000
LONGEST_NAME, LONGEST_PATH, LONGEST_NOTES = 100, 2000, 10_000  # characters
LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # none that is read for another


@dataclass(frozen=True)
class Arm(Config):
    """One side of the comparison: a checkpoint, and how many actions of each chunk it executes."""

    name: str = option("", "name in tables, shown once the session is locked; empty: the checkpoint's")
    checkpoint: str = option("", "directory of the checkpoint, or ws://host:port; empty: what inference has loaded")
    horizon: int = option(0, "execution horizon h; 0: the checkpoint's own", low=0, high=1000)
    checkpoints: dict = option({}, "task: checkpoint, for tasks that have one of their own; such an arm needs a name")

    def __post_init__(self):
        super().__post_init__()
        own = self.checkpoints
        _check_text("Arm.name", self.name, LONGEST_NAME)
        _check_text("Arm.checkpoint", self.checkpoint, LONGEST_PATH)
        if not isinstance(own, dict) or not all(isinstance(text, str) and text for pair in own.items() for text in pair):
            raise ConfigError(f"Arm.checkpoints = {own!r}: expected task: directory, for one task or several")
        for task, checkpoint in own.items():
            _check_text("Arm.checkpoints", task, LONGEST_NAME)
            _check_text("Arm.checkpoints", checkpoint, LONGEST_PATH)
        if own and not self.name:
            raise ConfigError(f"Arm.checkpoints = {own!r}: give this arm a name, it is more than one checkpoint")

    def checkpoint_for(self, task: str) -> str:
        """What inference has to load for ``task``; '' where it is what it has loaded."""
        return self.checkpoints.get(task, self.checkpoint)

    @property
    def label(self) -> str:
        return self.name or Path(self.checkpoint).name or "unnamed"


@dataclass(frozen=True)
class Session(Config):
    """A comparison that was decided on before the first trial. The first arm is the baseline."""

    tasks: list = option(["tape_box"], "tasks, one after the other")
    settings: list = option(["standard"], "settings of each task: standard, dynamic")
    arms: list = option([{}], "arms of the comparison, the baseline first, each with checkpoint and, if wanted, name and horizon")
    scenes: int = option(20, "scenes of each task and setting; every arm meets each of them", low=1, high=10_000)
    seed: int = option(1000, "seed of the first scene, and, with the salt of a blind session, of the order", low=0, high=2**31 - 1)
    block: int = option(2, "scenes whose trials are shuffled together; 0: nothing is shuffled", low=0, high=100)
    blind: bool = option(True, "nobody sees which arm a trial belongs to before the session is locked")
    margin: float = option(0.1, "success may be lower by this much and still count as not inferior", low=0.001, high=0.99)
    alpha: float = option(0.05, "probability of a wrong claim that is accepted", low=0.001, high=0.49)
    stop: str = option(
        "fixed",
        "fixed: all scenes; sequential: a cell ends when the anytime-valid test has decided, at most after all scenes",
        choices=("fixed", "sequential"),
    )
    canary: int = option(
        0, "one trial in so many is the second arm's, until it is shown to be worse or as good; 0: no canary", low=0, high=1000
    )
    timeout_s: float = option(60.0, "a trial without an outcome after this is a failure", low=1.0, high=3600.0, unit="s")
    disturb_s: float = option(
        2.0, "dynamic setting on a robot: the operator moves the target this long after go", low=0.0, high=600.0
    )
    notes: str = option("", "whatever a reader should know")
    salt: str = option("", "drawn when a blind session begins, not chosen: order and codes follow from it, too; empty: from the seed alone")

    def __post_init__(self):
        if not isinstance(self.arms, (list, tuple)):
            raise ConfigError(f"Session.arms = {_shown(self.arms)}: expected a list")
        object.__setattr__(self, "arms", [arm if isinstance(arm, Arm) else Arm.from_mapping(_mapping(arm)) for arm in self.arms])
        super().__post_init__()
        for name in ("tasks", "settings"):
            for text in getattr(self, name):
                if not isinstance(text, str):
                    raise ConfigError(f"Session.{name} = {_shown(getattr(self, name))}: expected a list of names")
                _check_text(f"Session.{name}", text, LONGEST_NAME)
        labels = [arm.label for arm in self.arms]
        for name, values in (("tasks", self.tasks), ("settings", self.settings), ("arms", labels)):
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"Session.{name} = {_shown(values)}: name at least one, and each once")
        if unknown := set(self.settings) - set(SETTINGS):
            raise ConfigError(f"Session.settings: '{sorted(unknown)[0]}' is none of {', '.join(SETTINGS)}")
        if not all(task.isidentifier() for task in self.tasks):
            raise ConfigError(f"Session.tasks = {_shown(self.tasks)}: names such as tape_box")
        _check_text("Session.notes", re.sub(r"[\n\t]", " ", self.notes), LONGEST_NOTES)
        if not re.fullmatch(r"(?:[0-9a-f]{32})?", self.salt):
            raise ConfigError("Session.salt: is drawn when the session begins; leave it out")
        if self.planned > MOST_TRIALS:
            raise ConfigError(f"Session: {self.planned} trials are planned, {MOST_TRIALS} are the most; take fewer scenes, arms or tasks")
        if strange := {task for arm in self.arms for task in arm.checkpoints} - set(self.tasks):
            raise ConfigError(f"Session.arms: a checkpoint for {sorted(strange)[0]}, which is none of the tasks {self.tasks}")
        if self.stop == "sequential" and len(self.arms) != 2:
            raise ConfigError(f"Session.stop: the sequential test compares two arms, not {len(self.arms)}")
        if self.canary:
            self._check_canary()

    def _check_canary(self) -> None:
        for wrong, what_to_do in (
            (self.canary == 1, "would give every trial to the candidate; 4 gives it one in four"),
            (len(self.arms) != 2, f"wants two arms, the incumbent and then the candidate, not {len(self.arms)}"),
            (
                not all(arm.checkpoint for arm in self.arms),
                "wants the checkpoint of both arms, so that the incumbent can be put back",
            ),
            (any(arm.checkpoints for arm in self.arms), "tries one candidate; plan a canary for each task that has its own"),
            (self.blind, "cannot be blind, for its verdict tells the arm; write blind: false"),
            (self.stop != "fixed", "ends by a test of its own; leave stop out"),
            (
                self.scenes % self.canary,
                f"wants whole blocks, {self.scenes} scenes are none; plan {self.scenes - self.scenes % self.canary + self.canary}",
            ),
        ):
            if wrong:
                raise ConfigError(f"Session.canary = {self.canary}: {what_to_do}")

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [(task, setting) for task in self.tasks for setting in self.settings]

    def concealed(self, text: str) -> str:
        """``text``, with "(a policy)" in the place of every checkpoint of an arm."""
        named = {name for arm in self.arms for name in (arm.checkpoint, *arm.checkpoints.values()) if name}
        names = sorted(named | {Path(name).name for name in named}, key=len, reverse=True)
        return re.sub(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", "(a policy)", text) if names else text

    @property
    def planned(self) -> int:
        """How many trials."""
        return len(self.cells) * self.scenes * (1 if self.canary else len(self.arms))

    def salted(self) -> Session:
        """The session as it begins: a blind one with a salt of its own, whatever salt its plan came with."""
        return replace(self, salt=secrets.token_hex(16) if self.blind else "")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, from which `from_mapping` makes the same session; without `canary`, `salt` and `checkpoints` where there are
        none, as releases before them."""
        values = {**vars(self), "arms": [_without(vars(arm), "checkpoints") for arm in self.arms]}
        return _without(_without(values, "canary"), "salt")


@dataclass(frozen=True)
class Trial:
    """One trial as it was planned: which arm meets which scene."""

    number: int  # in the session, from 1
    code: str
    task: str
    setting: str
    seed: int
    arm: Arm
    timeout_s: float
    disturb_s: float = 0.0
    answer_s: float = 15.0  # how long the arm may take to be ready, and a scene to lie


def schedule(session: Session) -> list[Trial]:
    """All trials of ``session`` in their order; the same for the same session, its salt included."""
    salt = [int(session.salt, 16)] if session.salt else []
    draws = np.random.default_rng([session.seed, 1, *salt])
    codes = _codes(session.planned, np.random.default_rng([session.seed, 2, *salt]))
    order = _canary_order if session.canary else _shuffled_order
    met = [(task, setting, scene, arm) for task, setting in session.cells for scene, arm in order(session, draws)]
    return [
        Trial(number, codes[number - 1], task, setting, session.seed + scene, arm, session.timeout_s, session.disturb_s)
        for number, (task, setting, scene, arm) in enumerate(met, start=1)
    ]


def _shuffled_order(session: Session, draws: np.random.Generator) -> Iterator[tuple[int, Arm]]:
    """Scene and arm of each trial of a cell: every arm meets every scene."""
    for begin in range(0, session.scenes, session.block or 1):
        scenes = range(begin, min(begin + (session.block or 1), session.scenes))
        block = [(scene, arm) for scene in scenes for arm in session.arms]
        for i in draws.permutation(len(block)) if session.block else range(len(block)):
            yield block[i]


def _canary_order(session: Session, draws: np.random.Generator) -> Iterator[tuple[int, Arm]]:
    """The same of a canary: every scene is met once."""
    for begin in range(0, session.scenes, session.canary):
        place = draws.integers(session.canary)
        yield from ((begin + i, session.arms[int(i == place)]) for i in range(session.canary))


def read_session(path) -> Session:
    """The session that a YAML file describes; ConfigError names the file and what is wrong with it."""
    try:
        return Session.from_mapping(_mapping(yaml.safe_load(Path(path).read_text(encoding="utf-8"))))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _without(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """``values``, without ``name`` when that is empty."""
    return {key: value for key, value in values.items() if key != name or value}


def _mapping(value) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise ConfigError(f"expected names with values, not {value!r}"[:200])
    return value


def _check_text(where: str, text: str, longest: int) -> None:
    """Refuses what would not fit into a table, or would not stay in its place on a terminal."""
    if len(text) > longest or not text.isprintable():
        raise ConfigError(f"{where} = {_shown(text)}: expected at most {longest} printable characters")


def _shown(value) -> str:
    return repr(value)[:200]


def _codes(n: int, draws: np.random.Generator) -> list[str]:
    """``n`` different codes of four letters."""
    codes: dict[str, None] = {}
    while len(codes) < n:
        codes["".join(LETTERS[i] for i in draws.integers(len(LETTERS), size=4))] = None
    return list(codes)
