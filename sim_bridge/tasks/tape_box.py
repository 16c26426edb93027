"""TapeBox: put a roll of tape that lies on the table into an open box beside it.

Success: the roll's centre is within 46 mm of the box's centre along both sides, less than 45 mm above its floor, and
no finger touches the roll.
"""

from __future__ import annotations

import numpy as np
from mani_skill.utils.registration import register_env

from sim_bridge.coordinates import hypot, offset
from sim_bridge.tasks.scene import TIME_LIMIT, Material, TabletopEnv, about_z, add_box, new_builder

OUTER, INNER, THICKNESS = 0.040, 0.025, 0.024
RIM = 0.5 * (OUTER + INNER)
"""Radius (m) of the middle of the roll's wall, where a gripper straddles it."""

BOX_SIDE, BOX_HEIGHT, WALL, FLOOR = 0.140, 0.050, 0.004, 0.006
SEGMENTS = 16


@register_env("PolicyTrim-TapeBox-v1", max_episode_steps=TIME_LIMIT)
class TapeBox(TabletopEnv):
    INSTRUCTION = "put the tape into the box"
    TARGET = "tape"
    CENTRE = (0.30, -0.05)

    def build(self):
        tape = new_builder(self.scene, 1.0)
        length = 2 * OUTER * np.tan(np.pi / SEGMENTS)
        for angle in np.arange(SEGMENTS) * 2 * np.pi / SEGMENTS:
            add_box(
                tape,
                [(OUTER - INNER) / 2, length / 2, THICKNESS / 2],
                (RIM * np.cos(angle), RIM * np.sin(angle), 0.0),
                about_z(angle),
                Material(0.95, 0.72, 0.08),
                density=500.0,
            )
        box = new_builder(self.scene, 2.0)
        blue, half = Material(0.15, 0.35, 0.75), BOX_SIDE / 2
        add_box(box, [half, half, FLOOR / 2], (0, 0, FLOOR / 2), color=blue)
        for angle in np.arange(4) * np.pi / 2:
            reach = half - WALL / 2
            place = (reach * np.cos(angle), reach * np.sin(angle), BOX_HEIGHT / 2)
            add_box(box, [WALL / 2, half, BOX_HEIGHT / 2], place, about_z(angle), blue)
        return {"tape": tape.build_dynamic("tape"), "box": box.build_kinematic("box")}

    def layout(self, rng):
        tape = rng.uniform([0.25, -0.12], [0.35, 0.02])
        box = rng.uniform([0.27, 0.17], [0.33, 0.23])
        return {
            "tape": [*tape, THICKNESS / 2, *about_z(rng.uniform(-np.pi, np.pi))],
            "box": [*box, 0.0, *about_z(0.0)],
        }

    def placed(self):
        x, y, z = offset(self.pose("box"), self.pose("tape"))
        return (abs(x) < 0.046) & (abs(y) < 0.046) & (z < 0.045)

    def grasp_distance(self):
        x, y, z = offset(self.pose("tape"), self.agent.tcp_position)
        return hypot(hypot(x, y) - RIM, z)
