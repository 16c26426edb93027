"""HangMug: hang an upright mug by its handle on the peg of a rack.

Success: the peg runs through the hole of the handle, the mug's centre is more than 45 mm above the table, and no finger
touches the mug.
"""

from __future__ import annotations

import numpy as np
import torch
from mani_skill.utils.registration import register_env

from sim_bridge.agent import to_local
from sim_bridge.tasks.mug import HEIGHT, HOLE, build_mug, distance_to_body
from sim_bridge.tasks.scene import TIME_LIMIT, Material, TabletopEnv, about_z, add_box, new_builder

PEG_HEIGHT, PEG_LENGTH, PEG_RISE = 0.160, 0.090, 0.15
PEG_ROOT = (0.0, 0.0, PEG_HEIGHT)
"""Where the peg leaves the axis of the post, in the rack's frame (m)."""

PEG_DIRECTION = (0.0, -np.cos(PEG_RISE), np.sin(PEG_RISE))
"""Unit vector from root to tip in the rack's frame: towards the workspace, rising by PEG_RISE (rad)."""


@register_env("PolicyTrim-HangMug-v1", max_episode_steps=TIME_LIMIT)
class HangMug(TabletopEnv):
    INSTRUCTION = "hang the mug on the rack"
    TARGET = "mug"
    CENTRE = (0.32, -0.06)

    def build(self):
        rack, green = new_builder(self.scene, 2.0), Material(0.10, 0.45, 0.25)
        add_box(rack, [0.050, 0.050, 0.005], (0, 0, 0.005), color=green)
        add_box(rack, [0.010, 0.010, 0.090], (0, 0, 0.090), color=green)
        middle = np.array(PEG_ROOT) + 0.5 * PEG_LENGTH * np.array(PEG_DIRECTION)
        tilt = (np.cos(PEG_RISE / 2), -np.sin(PEG_RISE / 2), 0.0, 0.0)
        add_box(rack, [0.005, PEG_LENGTH / 2, 0.005], middle, tilt, Material(0.95, 0.55, 0.15))
        return {"mug": build_mug(self.scene), "rack": rack.build_kinematic("rack")}

    def layout(self, rng):
        mug = rng.uniform([0.27, -0.12], [0.37, 0.0])
        yaw = rng.uniform(-0.5, 0.5)
        rack = rng.uniform([0.35, 0.23], [0.39, 0.27])
        return {"mug": [*mug, HEIGHT / 2, *about_z(yaw)], "rack": [*rack, 0.0, *about_z(0.0)]}

    def placed(self):
        rack, mug = (self.actors[name].pose.raw_pose for name in ("rack", "mug"))
        high = mug[:, 2] > 0.045
        if not high.any():
            return high
        start = rack[:, :3] + rack.new_tensor(PEG_ROOT)  # the rack is never turned
        root, tip = to_local(mug, start), to_local(mug, start + PEG_LENGTH * rack.new_tensor(PEG_DIRECTION))
        crosses = root[:, 1] * tip[:, 1] < 0
        share = root[:, 1] / torch.where(crosses, root[:, 1] - tip[:, 1], torch.ones_like(root[:, 1]))
        hit = root + share[:, None] * (tip - root)
        inside = (hit[:, 0] > 0.026) & (hit[:, 0] < 0.062) & ((hit[:, 2] - HOLE[2]).abs() < 0.021)
        return crosses & inside & high

    def grasp_distance(self):
        return distance_to_body(self.actors["mug"].pose.raw_pose, self.agent.tcp_position)
