"""The trimming pipeline as a child process of the lowest priority: started, stopped, watched and resumed from outside.

    start(config) --> policytrim train trim --run <run_dir> --out <store>/<name>        its words: <run_dir>/trainer.log
    watch()       <-- <run_dir>/progress.json, and how the process ended

What a run has learned is on the disk (trim.py), so that its process may be stopped or killed at any moment: the next start
resumes exactly. It ends with its parent, however that ends. Nothing here imports torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from policytrim_ros.children import LOWEST, end_with_parent, hurry, step_aside
from policytrim_ros.core.config import Config, ConfigError
from policytrim_ros.core.config import setting as option
from policytrim_ros.training import progress

LOG = "trainer.log"
PATIENCE_S, DEATH_S = 5.0, 1.0
"""How long `Background.close` waits for the state to be saved, and for a killed process; whoever ended the node waits 8 s for it."""

WAITING = {"phase": None, "iteration": 0, "iterations": 0} | dict.fromkeys(
    ("eta_s", "success_rate", "steps", "horizon", "best", "verdict", "improvement", "checkpoint", "weights_sha256")
)
"""What is said of a run that has told nothing yet."""


@dataclass(frozen=True)
class TrainerConfig(Config):
    """What is trimmed, and where the result goes. Changes count from the next start."""

    recipe: str = option("", "recipe file of trimming; empty: the defaults of every setting", read_only=False)
    checkpoint: str = option("", "the baseline that is trimmed; empty: the recipe's", read_only=False)
    tasks: str = option(
        "", "tasks to trim it on, separated by commas; empty: the recipe's, else the checkpoint's", read_only=False
    )
    store: str = option("runs/store", "directory in which the trimmed checkpoint is published as <store>/<name>", read_only=False)
    name: str = option("trimmed", "name of the run and of the published checkpoint", read_only=False)
    run_dir: str = option("", "directory of curves, log and resumable state; empty: runs/<name>", read_only=False)
    minutes: float = option(
        0.0, "wall-clock budget of all stages together; 0: the recipe's", low=0.0, high=100000.0, unit="min", read_only=False
    )
    processes: int = option(1, "rollout processes", low=1, high=256, read_only=False)
    niceness: int = option(
        LOWEST,
        "priority that training goes without; 19: it also gets only the time that nobody else wants (SCHED_IDLE)",
        low=0,
        high=LOWEST,
        read_only=False,
    )
    autostart: bool = option(False, "start or resume as soon as the node is up")

    def __post_init__(self):
        super().__post_init__()
        if Path(self.name).name != self.name:
            raise ConfigError(f"TrainerConfig.name = {self.name!r}: expected the name of a directory, without '/'")

    @property
    def directory(self) -> Path:
        """Of the run."""
        return Path(self.run_dir or f"runs/{self.name}")


class Background:
    """At most one training process. ``state``: idle, running, stopped, finished or failed; ``reason``: why, in a sentence."""

    def __init__(self, config: TrainerConfig):
        """Also tells of the run that an earlier process has left in ``config.directory``."""
        self.config, self.state, self.reason = config, "idle", ""
        self._child: subprocess.Popen | None = None
        self._stopping, self._log, self._log_from = False, None, 0
        self._progress = progress.read(config.directory)
        if self._progress:
            unfinished = self._progress.get("improvement") is None
            self.state = "stopped" if unfinished else "finished"
            self.reason = f"found in {config.directory}" + ("; a start resumes it" if unfinished else "")

    def start(self, config: TrainerConfig) -> str:
        """Starts or resumes a run and returns what was started; ConfigError when it is refused."""
        if self._child is not None:
            stopping = "being stopped; start it again when it has" if self._stopping else "running already; stop it first"
            raise ConfigError(f"{self.config.name} is {stopping} ({self.where()})")
        refuse_what_is_missing(config)
        try:
            config.directory.mkdir(parents=True, exist_ok=True)
            (config.directory / progress.FILE).unlink(missing_ok=True)  # what an earlier process has said
            self._log = open(config.directory / LOG, "a+b")
        except OSError as error:
            raise ConfigError(f"TrainerConfig.run_dir: {error.filename}: {error.strerror}; choose another directory") from error
        self._log_from = self._log.seek(0, os.SEEK_END)
        self._child = subprocess.Popen(
            command(config),
            stdin=subprocess.DEVNULL,
            stdout=self._log,  # not a pipe: whoever reads it may die without taking the process along
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: (end_with_parent(signal.SIGTERM), step_aside(config.niceness)),
        )
        self.config, self.state, self.reason = config, "running", ""
        self._stopping, self._progress = False, {}
        return f"started {config.name}; it works in {config.directory}"

    def stop(self) -> str:
        """Tells the process to save its state and end, which `watch` will notice; returns what will happen."""
        if self._child is None:
            return "nothing is running"
        self._stopping, self.reason = True, "saves its state after the present iteration or episode"
        self._child.send_signal(signal.SIGTERM)
        return f"stopping {self.config.name} ({self.where()}); it {self.reason}"

    def watch(self) -> None:
        """Reads how far the run is, and notices its end."""
        if self._child is None:
            return
        code = self._child.poll()
        self._progress = progress.read(self.config.directory)
        if code is not None:
            self._kill_the_rest()
            self._child = None
            self.state, self.reason = self._outcome(code)

    def close(self) -> None:
        """Stops the process and waits until it has ended; one that takes too long is killed and loses its last iterations."""
        if self._child is None:
            return
        self.stop()
        hurry(self._child.pid)
        for patience_s in (PATIENCE_S, DEATH_S):
            try:
                self._child.wait(patience_s)
                break
            except subprocess.TimeoutExpired:
                self._kill_the_rest()
        self.watch()

    def status(self) -> dict[str, Any]:
        """State, progress and reason, JSON-ready."""
        run = {"name": self.config.name, "run_dir": str(self.config.directory)}
        reason = self.reason or (self.where() if self._child else "")
        return {"state": self.state, **run, **WAITING, **self._progress, "reason": reason}

    def where(self) -> str:
        """Phase and iteration in words."""
        told = WAITING | self._progress
        return f"{told['phase'] or 'starting'}" + (f", {told['iteration']} of {told['iterations']}" if told["iterations"] else "")

    def _outcome(self, code: int) -> tuple[str, str]:
        """(state, reason) of a process that has ended with ``code``; see the exit codes in trim.py."""
        said = self._last_words()
        if code == 0:
            return "finished", f"published as {self._progress.get('checkpoint')}"
        if code == 3:
            return "finished", said
        if code == 130 or self._stopping and code in (-signal.SIGTERM, -signal.SIGKILL):
            return "stopped", said if code == 130 else "ended before its state was saved; a start resumes from the one before"
        if code < 0:
            guess = ", for want of memory perhaps" if code == -signal.SIGKILL else ""
            return "failed", f"the training process was killed ({signal.Signals(-code).name}){guess}; a start resumes it"
        return "failed", f"{said}; all its words: {self.config.directory / LOG}"

    def _last_words(self) -> str:
        """The last line that this start has left in the log."""
        self._log.seek(self._log_from)
        spoken = [line.strip() for line in self._log.read().decode(errors="replace").splitlines() if line.strip()]
        return spoken[-1].removeprefix("trim: ") if spoken else "it said nothing"

    def _kill_the_rest(self) -> None:
        """Rollout processes that have outlived the one that started them, and that one if it is still there."""
        try:
            os.killpg(self._child.pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def refuse_what_is_missing(config: TrainerConfig) -> None:
    """ConfigError when there is nothing to train; what else may be wrong the process itself says within seconds."""
    if config.recipe and not Path(config.recipe).is_file():
        raise ConfigError(f"TrainerConfig.recipe = {config.recipe!r}: there is no such file; give a recipe of trimming")
    if config.checkpoint and not (Path(config.checkpoint) / "manifest.json").is_file():
        raise ConfigError(
            f"TrainerConfig.checkpoint = {config.checkpoint!r}: no manifest.json there; give the directory of a checkpoint"
        )


def command(config: TrainerConfig) -> list[str]:
    """The command line of the pipeline."""
    line = [sys.executable, "-u", "-m", "policytrim_ros.cli", "train", "trim", "--run", str(config.directory)]
    line += ["--out", str(Path(config.store, config.name).absolute()), "--processes", str(config.processes)]
    line += ["--recipe", config.recipe] if config.recipe else []
    line += ["--checkpoint", config.checkpoint] if config.checkpoint else []
    line += ["--task", *(task.strip() for task in config.tasks.split(","))] if config.tasks else []
    return line + (["--minutes", str(config.minutes)] if config.minutes else [])
