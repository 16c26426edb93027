"""Films of simulated episodes, and a sheet that shows at a glance how the failures ended.

A film shows what the cameras deliver, side by side, in real time, with the seed, the control step and, in the end, the outcome.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import cv2
import numpy as np

from policytrim_ros.core.types import CONTROL_RATE_HZ
from policytrim_ros.training.rollout import outcome_of

EVERY = 2
"""Control steps from one frame to the next."""

RATE_HZ = CONTROL_RATE_HZ / EVERY
LAST_FRAME_S = 1.0
LINE_PX = 14
SHEET_S = (6.0, 4.0, 2.0, 1.0, 0.0)
"""Frames of a failure on the sheet: so many seconds before its end."""

SHEET_ROWS = 12


class Films:
    """A ``watch`` of `rollout.play`: writes <directory>/<label>-<seed>-<outcome>.mp4 of every episode it sees end."""

    def __init__(self, directory, label: str, cameras: Sequence[str]):
        self.directory, self.label, self.cameras = Path(directory), label, tuple(cameras)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._frames: dict[int, list[np.ndarray]] = {}  # by the identity of the environment

    def __call__(self, start, env, result) -> None:
        if result is None:
            self._frames[id(env)] = []
        outcome = outcome_of(result) if result else ""
        steps = result.steps if result else 0
        if steps % EVERY and not outcome:
            return
        pictures = env.images(self.cameras)
        frame = np.hstack([pictures[name] for name in self.cameras])
        self._frames[id(env)].append(labelled(frame, f"{start.seed}  step {steps}  {outcome}"))
        if outcome:
            frames = self._frames.pop(id(env))
            write_film(
                self.directory / f"{self.label}-{start.seed}-{outcome}.mp4", frames + frames[-1:] * int(LAST_FRAME_S * RATE_HZ)
            )


def labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """The RGB frame (h, w, 3) with a line of text on black below it; height and width are made even for the codec."""
    line = np.zeros((LINE_PX, frame.shape[1], 3), np.uint8)
    cv2.putText(line, text, (3, LINE_PX - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (255, 255, 255), 1, cv2.LINE_AA)
    whole = np.vstack([frame, line])
    return np.pad(whole, [(0, whole.shape[0] % 2), (0, whole.shape[1] % 2), (0, 0)])


def write_film(path, frames: Sequence[np.ndarray], rate_hz: float = RATE_HZ) -> None:
    """Writes RGB frames (h, w, 3) as mp4, beside and renamed. OSError when nothing could be written."""
    path = Path(path)
    beside = path.with_name(f".{path.stem}.partial.mp4")
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(beside), cv2.VideoWriter_fourcc(*"mp4v"), rate_hz, (width, height))
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    if not beside.is_file() or beside.stat().st_size == 0:
        raise OSError(f"no film could be written to {path}; is the folder writable and the disk free?")
    beside.replace(path)


def read_film(path) -> list[np.ndarray]:
    """All RGB frames of a film."""
    reader, frames = cv2.VideoCapture(str(path)), []
    while (frame := reader.read()[1]) is not None:
        frames.append(frame[..., ::-1])
    reader.release()
    return frames


def films_of(directory, label: str) -> list[Path]:
    """The films of ``label`` and of no longer label that begins with it."""
    return sorted(Path(directory).glob(f"{label}-[0-9]*.mp4"))


def failure_sheet(directory, label: str) -> Path | None:
    """Writes <directory>/<label>-failures.png from the films of ``label`` that did not succeed; None when all did.

    A row shows one failure: some moments before its end, and the end. At most the first 12 by seed.
    """
    directory = Path(directory)
    films = [film for film in films_of(directory, label) if not film.stem.endswith("-success")]
    if not films:
        return None
    rows = []
    for film in films[:SHEET_ROWS]:
        frames = read_film(film)
        end = len(frames) - 1 - int(LAST_FRAME_S * RATE_HZ)
        rows.append(np.hstack([frames[max(0, end - int(before * RATE_HZ))] for before in SHEET_S]))
    path = directory / f"{label}-failures.png"
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])
    return path
