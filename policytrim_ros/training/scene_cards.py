"""Scene cards: pictures of the scenes that a session asks for, as the simulator lays them, for whoever lays them by hand.

    python -m policytrim_ros.training.scene_cards plan.json DIRECTORY      (a process of its own: it renders)

``plan.json`` is a list of {"task", "setting", "seed", "files": {camera: file name}}. A card is the same view as the robot's camera, so
that it can be laid over its picture.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

import cv2

from policytrim_ros.children import LOWEST, step_aside
from policytrim_ros.files import replace_file
from policytrim_ros.training.recipe import ENVIRONMENT, factory

SIZE = (424, 240)
"""(width, height) in pixels."""


def make(scenes: list[dict], directory, environment: str = ENVIRONMENT) -> int:
    """Writes the cards of ``scenes`` that do not lie in ``directory`` yet; returns of how many scenes."""
    missing = [scene for scene in scenes if not all((Path(directory) / file).exists() for file in scene["files"].values())]
    for (task, setting), group in groupby(missing, lambda scene: (scene["task"], scene["setting"])):
        group = list(group)
        env = factory(environment)(task, setting=setting, cameras=tuple(group[0]["files"]), image_size=SIZE)
        for scene in group:
            env.reset(scene["seed"])
            for camera, picture in env.images().items():
                encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
                replace_file(Path(directory) / scene["files"][camera], encoded.tobytes())
        env.close()
    return len(missing)


def main(arguments) -> int:
    step_aside(LOWEST)
    make(json.loads(Path(arguments[0]).read_text(encoding="utf-8")), arguments[1])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
