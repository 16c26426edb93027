"""Scene cards of a session, for whoever lays the scenes: made by the simulator in a child process, read from its files.

    <out>/<session>/cards/plan.json                                which scenes; training/scene_cards.py makes their cards
                          <task>-<setting>-<seed>.json             where the objects lie, and where the target is moved to
                          <task>-<setting>-<seed>-<camera>.jpg     the view of the simulated camera

A card follows from task, setting and seed alone: all arms of the comparison meet the same one.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Sequence

from policytrim_ros.children import Aside
from policytrim_ros.files import replace_file
from policytrim_ros.trials.session import Trial

CAMERAS = ("front", "wrist")
"""Cameras of the simulator."""

PROGRAM = "policytrim_ros.training.scene_cards"


class SceneCards:
    """The cards of one session at a time. Thread-safe; ``tell`` gets a sentence, in a thread of its own, when some cannot be made."""

    def __init__(self, tell: Callable[[str], None]):
        self._tell, self._directory, self._making = tell, None, None
        self._layouts: dict[str, dict] = {}

    def make(self, directory, trials: Sequence[Trial]) -> None:
        """Has the cards of ``trials`` made in ``directory``, as far as they do not lie there, and shows those from now on."""
        self.close()
        self._directory, self._layouts = Path(directory), {}
        scenes = {
            scene_name(t): dict(task=t.task, setting=t.setting, seed=t.seed, layout=f"{scene_name(t)}.json", files=_files(t))
            for t in trials
        }
        plan = self._directory / "plan.json"
        try:
            replace_file(plan, json.dumps(list(scenes.values())).encode())
        except OSError as error:
            return self._tell(f"no scene cards: {plan} cannot be written ({error.strerror or error})")
        line = [sys.executable, "-m", PROGRAM, str(plan), str(self._directory)]
        self._making = _Making(line, lambda why: self._failed(why, self._directory, list(scenes.values())))

    def _failed(self, why: str, directory: Path, scenes: list[dict]) -> None:
        placed = all((directory / scene["layout"]).exists() for scene in scenes)
        missing = "pictures of scenes are missing, the cards only say where things lie" if placed else "scene cards are missing"
        self._tell(
            f"{missing} ({why}); the session goes on. Install the simulator here (extra 'sim') and resume the session, or run "
            f"`python -m {PROGRAM} plan.json .` with {directory}/plan.json on a machine that has it and copy what it writes to {directory}"
        )

    def layout(self, trial: Trial | None) -> dict[str, Any] | None:
        """Where the objects of the scene lie that ``trial`` wants (training/scene_cards.py), with `pictures`: which cameras have one.
        None while there is no card."""
        if trial is None or self._directory is None:
            return None
        name = scene_name(trial)
        if name not in self._layouts:
            try:
                self._layouts[name] = _checked(json.loads((self._directory / f"{name}.json").read_text(encoding="utf-8")))
            except (OSError, ValueError, KeyError, TypeError):
                return None  # not there yet, or nothing that could be shown
        pictures = [camera for camera, file in _files(trial).items() if (self._directory / file).exists()]
        return {**self._layouts[name], "pictures": pictures}

    def picture(self, trial: Trial | None, camera: str) -> bytes | None:
        """JPEG of the scene that ``trial`` wants, as the simulated ``camera`` would see it; None while there is none."""
        if trial is None or self._directory is None:
            return None
        path = self._directory / f"{scene_name(trial)}-{camera}.jpg"
        return path.read_bytes() if path.is_file() else None

    def close(self) -> None:
        """Ends the child, if it still works."""
        if self._making is not None:
            self._making.close()


class _Making(threading.Thread):
    """One child, waited for until its end; ``failed`` gets the reason unless it was closed before."""

    def __init__(self, line: list[str], failed: Callable[[str], None]):
        super().__init__(name="scene_cards", daemon=True)
        self._line, self._failed, self._closed, self._lock = line, failed, False, threading.Lock()
        self._child: Aside | None = None
        self.start()

    def run(self) -> None:
        try:
            with self._lock:
                if self._closed:
                    return
                self._child = Aside(self._line)
            why = self._child.wait()
        except OSError as error:
            why = str(error)
        if why and not self._closed:
            self._failed(why)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            if self._child is not None:
                self._child.kill()
        self.join()


def scene_name(trial: Trial) -> str:
    """Names the scene that ``trial`` wants in names of files."""
    return f"{trial.task}-{trial.setting}-{trial.seed}"


def _files(trial: Trial) -> dict[str, str]:
    return {camera: f"{scene_name(trial)}-{camera}.jpg" for camera in CAMERAS}


PLACE = ("x_cm", "y_cm", "turn_deg")


def _checked(said: dict) -> dict:
    """A layout with everything that is shown, and nothing else; KeyError, TypeError or ValueError where something is missing."""
    objects = [{**_numbers(one, *PLACE), "name": str(one["name"]), "pose": str(one["pose"])} for one in said["objects"]]
    move = said["move"]
    return {"objects": objects, "move": move and {**_numbers(move, "cm", *PLACE), "name": str(move["name"])}}


def _numbers(said: dict, *names: str) -> dict[str, float]:
    numbers = {name: float(said[name]) for name in names}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError(f"{numbers}: not finite")
    return numbers
