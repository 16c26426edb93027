"""FlipMug: grip the lying mug near its rim from above, turn it up by swinging the tool from down to outward, set it down.

The arm cannot turn the mug on the spot: from one place the tool covers 50 to 80 degrees of pitch. So the mug is taken
close to the base and set down farther out, where the tool may point outward.
"""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.kinematics import rotation_matrix
from sim_bridge.demonstrators.base import OPEN, Demonstrator, heading, moved, pose_at, tool_rotation
from sim_bridge.tasks.mug import HEIGHT, RADIUS

TOWARDS_RIM, GRASP_HEIGHT, ABOVE, CARRY_HEIGHT = 0.029, 0.014, 0.060, 0.090
PITCHES = np.radians([-15, -10, -5, 0, 5, 10, 15])
TILTS = np.radians([4, 0, 8, 12, 16, 20])
"""Lean of the mug when it is let go, the one that is usually within reach first; it settles upright by itself."""

DISTANCES, HEADINGS = (0.46, 0.48, 0.44, 0.50, 0.42), (0.0, 0.2, -0.2)
PLACE_ABOVE = np.array([0.0, 0.0, 0.040])


def aligned(rotation, axis):
    """``rotation`` (3, 3), turned the shortest way so that its z points along the unit vector ``axis``."""
    cross = np.cross(rotation[:, 2], axis)
    sine, cosine = np.linalg.norm(cross), float(rotation[:, 2] @ axis)
    return rotation if sine < 1e-9 else rotation_matrix(cross / sine * np.arctan2(sine, cosine)) @ rotation


class FlipMugDemonstrator(Demonstrator):
    def script(self):
        for _ in range(8):
            if self.upright():
                return
            if (yield from self.pick()):
                yield from self.put()
            yield from self.grip(OPEN, 4)

    def upright(self):
        return self.objects["mug"][2, 2] > 0.98

    def grasp_pose(self, pitch):
        """Tool pose at the mug as it lies now: beside the body, between handle and rim."""
        mug = self.objects["mug"]
        axis = mug[:2, 2] / max(np.linalg.norm(mug[:2, 2]), 1e-6)
        place = mug[:2, 3] + TOWARDS_RIM * axis
        return pose_at([*place, GRASP_HEIGHT], tool_rotation(np.arctan2(axis[1], axis[0]), pitch))

    def pick(self):
        """Approaches, descends, closes, lifts; False sends the script back to the approach."""
        self.phase, self.stroke = "pre", OPEN
        up = np.array([0.0, 0.0, ABOVE])
        grasp = self.first_reachable([self.grasp_pose(pitch) for pitch in PITCHES], up)
        if grasp is None:
            yield from self.grip(OPEN, 5)
            return False
        axis = grasp[:3, 0]
        pitch = np.arctan2(axis[2] * -1.0, np.hypot(axis[0], axis[1]))  # the tool's x leans down by the pitch
        goal = lambda: self.grasp_pose(pitch)  # noqa: E731
        if not (yield from self.free_move(lambda: moved(goal(), up), (0.02, 0.0, 0.015))):
            return False
        yield from self.hesitate()
        self.phase = "down"
        if not (yield from self.line_move(goal, tolerance=0.02, limit=60, lost=self.nudged("mug"))):
            return False
        if self.hesitates_to_close():
            aside = np.array([*self.random.uniform(-0.02, 0.02, 2), 0.01])
            yield from self.line_move(lambda: moved(goal(), up + aside), tolerance=0.1)
            return False
        yield from self.hesitate()
        self.phase = "close"
        if not (yield from self.close_gripper()):
            return False
        self.phase = "lift"
        here = self.tool_now()
        lift = moved(here, [0.0, 0.0, CARRY_HEIGHT - here[2, 3]])
        yield from self.line_move(lambda: lift, tolerance=0.08, limit=40)
        return np.linalg.norm(self.in_tool("mug")[:3, 3]) < 0.07

    def place_pose(self, held):
        """First reachable tool pose that sets the mug upright, given the mug's pose ``held`` (4, 4) in the tool; or None."""
        now = self.tool_now()
        pitch = np.arctan2(np.linalg.norm(now[:2, 2]) * np.sign(now[:2, 2] @ now[:2, 3] + 1e-9), -now[2, 2])
        toward = heading(self.objects["mug"][:3, 3])
        for tilt in TILTS:
            height = 0.5 * HEIGHT * np.cos(tilt) + RADIUS * np.sin(tilt) + 0.002
            candidates = []
            for turn in HEADINGS:
                yaw = toward + turn
                axis = np.array([np.sin(tilt) * np.cos(yaw), np.sin(tilt) * np.sin(yaw), np.cos(tilt)])
                rotation = aligned(tool_rotation(yaw, pitch + np.pi / 2 - tilt) @ held[:3, :3], axis)
                for distance in DISTANCES:
                    mug = pose_at([distance * np.cos(yaw), distance * np.sin(yaw), height], rotation)
                    candidates.append(mug @ np.linalg.inv(held))
            place = self.first_reachable(candidates, PLACE_ABOVE)
            if place is not None:
                return place
        return None

    def put(self):
        """Swings the mug upright, sets it down farther out, lets go and backs away."""
        lost = self.slipped("mug")
        self.phase = "transit"
        place = self.place_pose(self.in_tool("mug"))
        if place is None:
            return False
        yield from self.hesitate()
        above = moved(place, PLACE_ABOVE)
        if not (yield from self.free_move(lambda: above, (0.0, 0.0, 0.02), speed=0.85, tolerance=0.04, lost=lost)):
            return False
        self.phase = "place"
        yield from self.hesitate()
        if not (yield from self.line_move(lambda: place, speed=0.6, tolerance=0.03, lost=lost)):
            return False
        self.phase = "open"
        yield from self.grip(OPEN, 8)
        self.phase = "retreat"
        back = moved(place, [0.0, 0.0, 0.010] - 0.070 * place[:3, 2])
        yield from self.line_move(lambda: back, tolerance=0.1, limit=40)
        return True
