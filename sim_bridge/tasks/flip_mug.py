"""FlipMug: a mug lies on its side; set it upright on the table and let go.

Success: the mug's axis is within 10 degrees of vertical, opening up, its centre within 8 mm of the height it has when
it stands on the table, and no finger touches it.
"""

from __future__ import annotations

import numpy as np
from mani_skill.utils.registration import register_env
from transforms3d.quaternions import mat2quat

from sim_bridge.coordinates import z_axis
from sim_bridge.tasks.mug import HEIGHT, build_mug, distance_to_body
from sim_bridge.tasks.scene import TIME_LIMIT, TabletopEnv

HANDLE_DROP = np.radians(25.0)
"""How far below the horizontal the handle points when the lying mug rests on its tip."""


@register_env("PolicyTrim-FlipMug-v1", max_episode_steps=TIME_LIMIT)
class FlipMug(TabletopEnv):
    INSTRUCTION = "set the mug upright"
    TARGET = "mug"
    CENTRE = (0.25, 0.0)

    def build(self):
        return {"mug": build_mug(self.scene)}

    def layout(self, rng):
        x, y = rng.uniform([0.22, -0.08], [0.28, 0.08])
        yaw = np.arctan2(y, x) + rng.uniform(-0.35, 0.35)
        side = rng.choice([-1.0, 1.0])
        axis = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        left = np.array([-np.sin(yaw), np.cos(yaw), 0.0])
        handle = side * np.cos(HANDLE_DROP) * left + np.array([0.0, 0.0, -np.sin(HANDLE_DROP)])
        rotation = np.stack([handle, np.cross(axis, handle), axis], axis=1)
        return {"mug": [x, y, 0.030, *mat2quat(rotation)]}

    def placed(self):
        mug = self.pose("mug")
        return (z_axis(mug)[2] > 0.985) & (abs(mug[2] - HEIGHT / 2) < 0.008)

    def grasp_distance(self):
        return distance_to_body(self.pose("mug"), self.agent.tcp_position)
