"""HangMug: hang an upright mug by its handle on the peg of a rack.

Success: the peg runs through the hole of the handle, the mug's centre is more than 45 mm above the table, and no finger
touches the mug.
"""

from __future__ import annotations

import numpy as np
from mani_skill.utils.registration import register_env

from sim_bridge.coordinates import to_local
from sim_bridge.tasks.mug import HEIGHT, HOLE, build_mug, distance_to_body
from sim_bridge.tasks.scene import TIME_LIMIT, Material, TabletopEnv, about_z, add_box, new_builder

PEG_HEIGHT, PEG_LENGTH, PEG_RISE = 0.160, 0.090, 0.15
PEG_ROOT = (0.0, 0.0, PEG_HEIGHT)
"""Where the peg leaves the axis of the post, in the rack's frame (m)."""

PEG_DIRECTION = (0.0, -np.cos(PEG_RISE), np.sin(PEG_RISE))
"""Unit vector from root to tip in the rack's frame: towards the workspace, rising by PEG_RISE (rad)."""

PEG = tuple(float(np.float32(PEG_LENGTH) * np.float32(part)) for part in PEG_DIRECTION)
"""The way from root to tip, in the precision of the poses."""


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
        mug = self.pose("mug")
        high = mug[2] > 0.045
        if not high.any():
            return high
        root = [place + way for place, way in zip(self.pose("rack"), PEG_ROOT)]  # the rack is never turned
        tip = [place + way for place, way in zip(root, PEG)]
        (x, y, z), (tip_x, tip_y, tip_z) = to_local(mug, root), to_local(mug, tip)
        crosses = y * tip_y < 0
        share = y / (crosses * (y - tip_y) + ~crosses)  # of the peg, up to the plane y = 0 of the handle
        hit_x, hit_z = x + share * (tip_x - x), z + share * (tip_z - z)
        return high & crosses & (hit_x > 0.026) & (hit_x < 0.062) & (abs(hit_z - HOLE[2]) < 0.021)

    def grasp_distance(self):
        return distance_to_body(self.pose("mug"), self.agent.tcp_position)
