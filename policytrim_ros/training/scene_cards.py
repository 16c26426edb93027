"""Scene cards: where the objects of the scenes lie that a session asks for, and pictures, for whoever lays them by hand.

    python -m policytrim_ros.training.scene_cards plan.json DIRECTORY      (a process of its own: it renders)

``plan.json`` is a list of {"task", "setting", "seed", "layout": file name, "files": {camera: file name}}. Poses come from the simulator
itself, all of them before the first picture is drawn, so that they are there where nothing can be drawn. A picture is the view of
the simulated camera, to be laid over the robot's. A layout is JSON:

    {"objects": [{"name", "pose", "x_cm", "y_cm", "turn_deg"}], "move": null | {"name", "cm", "turn_deg", "x_cm", "y_cm"}}

x ahead of the middle of the robot's base, y to its left; angles seen from above, to the left of straight ahead. ``pose`` is the name,
and of an object that lies on its side `_left` or `_right`. ``turn_deg`` is where the object's own x axis points (a mug's handle); of
one that lies, where its top points, and then left or right is the side of the x axis. ``move``: how far, in which direction and to
which place the dynamic setting moves the target.
"""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from policytrim_ros.core.config import ConfigError
from policytrim_ros.files import replace_file
from policytrim_ros.training.environment import ENVIRONMENT, factory

SIZE = (424, 240)
"""(width, height) in pixels."""

LYING = 0.7
"""An object whose own z axis points up by less than this (cosine) lies on its side."""


def make(scenes: list[dict], directory, environment: str = ENVIRONMENT) -> int:
    """Writes what ``directory`` lacks of the cards of ``scenes``; returns of how many scenes."""
    directory = Path(directory)
    unknown = [scene for scene in scenes if not (directory / scene["layout"]).exists()]
    unseen = [scene for scene in scenes if not all((directory / file).exists() for file in scene["files"].values())]
    for scene, env in _laid(unknown, environment):
        replace_file(directory / scene["layout"], json.dumps(layout(env)).encode())
    for scene, env in _laid(unseen, environment, drawn=True):
        for camera, picture in env.images().items():
            encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
            replace_file(directory / scene["files"][camera], encoded.tobytes())
    return sum(scene in unknown or scene in unseen for scene in scenes)


def _laid(scenes: list[dict], environment: str, drawn: bool = False):
    """Each of ``scenes`` with the environment in which it lies."""
    for (task, setting), group in groupby(scenes, lambda scene: (scene["task"], scene["setting"])):
        group = list(group)
        options = dict(cameras=tuple(group[0]["files"]), image_size=SIZE) if drawn else {}
        env = factory(environment)(task, setting=setting, **options)
        for scene in group:
            env.reset(scene["seed"])
            yield scene, env
        env.close()


def layout(env) -> dict:
    """What a card says of the scene that lies in ``env``; see the module."""
    poses = env.objects()
    told = {"objects": [{"name": name, **place(name, pose)} for name, pose in poses.items()], "move": None}
    if env.setting == "dynamic":
        target, way = env.shift()
        x, y = poses[target][:2] + way
        told["move"] = dict(name=target, cm=_cm(np.hypot(*way)), turn_deg=_degrees(*way), x_cm=_cm(x), y_cm=_cm(y))
    return told


def place(name: str, pose) -> dict:
    """Where the object ``name`` is at ``pose`` (7,): x y z in m and quaternion w x y z."""
    x, y = pose[:2]
    w, i, j, k = pose[3:]
    front = (1 - 2 * (j * j + k * k), 2 * (i * j + w * k))  # its own x axis, seen from above
    top, up = (2 * (i * k + w * j), 2 * (j * k - w * i)), 1 - 2 * (i * i + j * j)
    if up > LYING:
        return dict(pose=name, x_cm=_cm(x), y_cm=_cm(y), turn_deg=_degrees(*front))
    side = "left" if top[0] * front[1] > top[1] * front[0] else "right"
    return dict(pose=f"{name}_{side}", x_cm=_cm(x), y_cm=_cm(y), turn_deg=_degrees(*top))


def _cm(metres: float) -> float:
    return round(float(100 * metres), 1) + 0.0  # without a minus before zero


def _degrees(x: float, y: float) -> int:
    """The direction of a way, to the left of straight ahead."""
    return round(float(np.degrees(np.arctan2(y, x))))


def main(arguments) -> int:
    try:
        make(json.loads(Path(arguments[0]).read_text(encoding="utf-8")), arguments[1])
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
