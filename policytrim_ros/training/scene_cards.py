"""Scene cards: pictures of the scenes that a session asks for, as the simulator lays them, for whoever lays them by hand.

    python -m policytrim_ros.training.scene_cards plan.json DIRECTORY      (a process of its own: it renders)

A card is ``<task>-<setting>-<seed>-<camera>.jpg``: the same view as the robot's camera, so that it can be laid over its picture.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2

from policytrim_ros.children import LOWEST, step_aside
from policytrim_ros.files import replace_file
from policytrim_ros.training.recipe import ENVIRONMENT, factory

CAMERAS = ("front", "wrist")
SIZE = (424, 240)
"""(width, height) in pixels."""


def name(task: str, setting: str, seed: int, camera: str) -> str:
    """File name of a card."""
    return f"{task}-{setting}-{seed}-{camera}.jpg"


def make(cells, seeds, directory, environment: str = ENVIRONMENT) -> int:
    """Writes the cards of ``seeds`` in every (task, setting) of ``cells``; those that lie there already stay. Returns how many are new."""
    made = 0
    for task, setting in cells:
        missing = [seed for seed in seeds if not all((Path(directory) / name(task, setting, seed, c)).exists() for c in CAMERAS)]
        if not missing:
            continue
        env = factory(environment)(task, setting=setting, cameras=CAMERAS, image_size=SIZE)
        for seed in missing:
            env.reset(seed)
            for camera, picture in env.images().items():
                encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
                replace_file(Path(directory) / name(task, setting, seed, camera), encoded.tobytes())
            made += 1
        env.close()
    return made


def main(arguments) -> int:
    step_aside(LOWEST)
    plan = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    make([tuple(cell) for cell in plan["cells"]], plan["seeds"], arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
