"""Scenes shared by two tasks: the objects of both stand on the table, and only the instruction says what to do.

TapeBox and FlipMug share theirs. A seed lays the same scene for either task, so that the same picture can be shown with
one sentence and with the other.
"""

from __future__ import annotations

import itertools

import numpy as np
from mani_skill.utils.registration import register_env

from sim_bridge.tasks.flip_mug import FlipMug
from sim_bridge.tasks.scene import TIME_LIMIT
from sim_bridge.tasks.tape_box import TapeBox

ROOM = {"tape": 0.060, "mug": 0.085, "box": 0.085}
"""Radius (m) that each object needs, the gripper beside it included."""

DRAWS = 1000


class SharedScene:
    """Mixed into a task: builds and lays the objects of `COMPANION`, too; its own objects come first."""

    COMPANION: type

    def build(self):
        return {**super().build(), **self.COMPANION.build(self)}

    def layout(self, rng):
        for _ in range(DRAWS):
            scene = {**TapeBox.layout(self, rng), **FlipMug.layout(self, rng)}  # in this order for either task
            if apart(scene):
                return {name: scene[name] for name in self.actors}
        raise RuntimeError(f"no scene with all objects apart in {DRAWS} draws")


def apart(scene) -> bool:
    """Whether no two objects of ``scene`` (name -> pose) come closer than the room they need."""
    pairs = itertools.combinations(scene, 2)
    return all(np.hypot(*np.subtract(scene[a][:2], scene[b][:2])) > ROOM[a] + ROOM[b] for a, b in pairs)


@register_env("PolicyTrim-TapeBox-Shared-v1", max_episode_steps=TIME_LIMIT)
class SharedTapeBox(SharedScene, TapeBox):
    COMPANION = FlipMug


@register_env("PolicyTrim-FlipMug-Shared-v1", max_episode_steps=TIME_LIMIT)
class SharedFlipMug(SharedScene, FlipMug):
    COMPANION = TapeBox
