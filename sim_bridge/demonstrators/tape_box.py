"""TapeBox: straddle the wall of the roll from above, one finger in the hole; carry it over the box; let go inside."""

from __future__ import annotations

import numpy as np

from sim_bridge.demonstrators.base import OPEN, Demonstrator, heading, moved, pose_at, tool_rotation
from sim_bridge.tasks.tape_box import RIM

GRASP_HEIGHT, ABOVE, CARRY_HEIGHT, RELEASE_HEIGHT = 0.006, 0.050, 0.085, 0.016
IN_BOX = 0.0245
"""TCP to the right of the box's centre (m) when letting go: keeps the outer finger off the wall."""

RELEASE_STROKE = 0.024
"""Opens just enough inside the box (m)."""

PITCHES = np.radians([0, 5, 10, 15, 20, 25, 30, 35])


def beside(point, away, height, pitch):
    """Tool pose that faces ``point`` (3,) radially, ``away`` m to its right (as seen from the robot), at ``height``."""
    yaw = heading(point)
    left = np.array([-np.sin(yaw), np.cos(yaw)])
    return pose_at([*(point[:2] - away * left), height], tool_rotation(yaw, pitch))


class TapeBoxDemonstrator(Demonstrator):
    def script(self):
        for _ in range(6):
            if (yield from self.pick()) and (yield from self.put()):
                return
            yield from self.grip(OPEN, 4)

    def tape(self):
        return self.objects["tape"][:3, 3]

    def pick(self):
        """Approaches, descends, closes, lifts; False sends the script back to the approach."""
        self.phase, self.stroke = "pre", OPEN
        up = np.array([0.0, 0.0, ABOVE])
        grasp = self.first_reachable([beside(self.tape(), RIM, GRASP_HEIGHT, pitch) for pitch in PITCHES], up)
        if grasp is None:
            yield from self.grip(OPEN, 5)
            return False
        pitch = np.arccos(np.clip(-grasp[2, 2], -1, 1))
        goal = lambda: beside(self.tape(), RIM, GRASP_HEIGHT, pitch)  # noqa: E731
        if not (yield from self.free_move(lambda: moved(goal(), up), (0.02, 0.0, 0.01))):
            return False
        yield from self.hesitate()
        self.phase = "down"
        if not (yield from self.line_move(goal, tolerance=0.02, limit=60, lost=self.nudged("tape"))):
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
        lift = self.first_reachable(
            [pose_at([*here[:2, 3], CARRY_HEIGHT], tool_rotation(heading(here[:2, 3]), p)) for p in PITCHES if p >= pitch - 0.01]
        )
        return lift is not None and (yield from self.line_move(lambda: lift, tolerance=0.08, lost=self.slipped("tape")))

    def put(self):
        """Carries the roll over the box and lets go; False when it was lost on the way or lies elsewhere."""
        lost = self.slipped("tape")
        self.phase = "transit"
        box = self.objects["box"][:3, 3]
        places = [beside(box, IN_BOX, CARRY_HEIGHT, pitch) for pitch in PITCHES]
        place = self.first_reachable(places, np.array([0.0, 0.0, RELEASE_HEIGHT - CARRY_HEIGHT]))
        if place is None:
            return False
        yield from self.hesitate()
        if not (yield from self.free_move(lambda: place, (0.0, 0.02, 0.005), lost=lost, tolerance=0.05)):
            return False
        self.phase = "place"
        yield from self.hesitate()
        release = moved(place, [0.0, 0.0, RELEASE_HEIGHT - CARRY_HEIGHT])
        if not (yield from self.line_move(lambda: release, tolerance=0.05, lost=lost)):
            return False
        self.phase = "open"
        yield from self.grip(RELEASE_STROKE, 5)
        self.phase = "retreat"
        yield from self.line_move(lambda: moved(place, [0.0, 0.0, 0.015]), tolerance=0.1, limit=40)
        yield from self.grip(OPEN, 2)
        return bool(np.abs(self.tape() - self.objects["box"][:3, 3])[:2].max() < 0.05)
