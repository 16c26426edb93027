"""HangMug: grip the mug's body from the side, bring the hole of its handle before the peg's tip, slide it on, let go.

The tool is pitched, since nothing can be held top-down at the height of the peg. Which pitch and which angle to the
handle are possible depends on every later pose, so a grasp is chosen by checking the whole chain of moves beforehand.
"""

from __future__ import annotations

import numpy as np

from policytrim_ros.core.kinematics import LIMITS, follow_ik, rotation_matrix, rotation_vector, solve_ik, tool
from sim_bridge.demonstrators.base import OPEN, Demonstrator, moved, pose_at, tool_rotation
from sim_bridge.tasks.hang_mug import PEG_DIRECTION, PEG_ROOT
from sim_bridge.tasks.mug import HOLE

GRASP_ABOVE_CENTRE, GRASP_DEPTH, BACK, LIFT = 0.012, 0.008, 0.070, 0.120
BEFORE_TIP, ON_PEG, LOWER = 0.130, 0.050, 0.012
"""Places along the peg, measured from its root, of the handle's hole; drop at the end (m)."""

PITCHES, TURNS = np.radians([40, 50, 30, 60, 20]), (0.0, 0.2, -0.2, 0.4, -0.4)
ENOUGH_MARGIN = 0.12
"""Distance (rad) to every joint limit with which the search is content."""

LINE_CHECKS = 8


class HangMugDemonstrator(Demonstrator):
    def script(self):
        for _ in range(8):
            if self.hung():
                return
            if (yield from self.pick()):
                yield from self.hang()
            yield from self.grip(OPEN, 4)

    def hung(self):
        """Whether the mug's hole is at the peg and nobody holds the mug up."""
        mug, rack = self.objects["mug"], self.objects["rack"]
        hole = (mug @ np.array([*HOLE, 1.0]))[:3]
        along = rack[:3, :3].T @ (hole - rack[:3, 3]) - np.array(PEG_ROOT)
        off_axis = along - (along @ np.array(PEG_DIRECTION)) * np.array(PEG_DIRECTION)
        return mug[2, 3] > 0.05 and np.linalg.norm(off_axis) < 0.04 and self.stroke == OPEN

    # Poses --------------------------------------------------------------------------------------------------------

    def grasp_pose(self, pitch, turn):
        """Tool pose at the mug as it stands now; ``turn`` (rad): tool heading relative to the handle's."""
        mug = self.objects["mug"]
        rotation = tool_rotation(np.arctan2(mug[1, 0], mug[0, 0]) + turn, pitch)
        return pose_at(mug[:3, 3] + [0, 0, GRASP_ABOVE_CENTRE] + GRASP_DEPTH * rotation[:, 2], rotation)

    def hanging_pose(self, held, along, drop=0.0):
        """Tool pose that has the handle's hole ``along`` m from the peg's root, ``drop`` lower; ``held``: mug in the tool."""
        rack = self.objects["rack"]
        point = rack[:3, 3] + rack[:3, :3] @ (np.array(PEG_ROOT) + along * np.array(PEG_DIRECTION)) - [0, 0, drop]
        return pose_at(point - rack[:3, :3] @ np.array(HOLE), rack[:3, :3]) @ np.linalg.inv(held)

    # Choice of the grasp ------------------------------------------------------------------------------------------

    def choose(self):
        """(pitch, turn) whose whole chain of moves is possible with the largest margin to the joint limits; or None."""
        best = (0.0, None)
        for pitch in PITCHES:
            best = max([best] + [(self.margin(pitch, turn), (pitch, turn)) for turn in TURNS], key=lambda item: item[0])
            if best[0] > ENOUGH_MARGIN:
                break
        return best[1]

    def margin(self, pitch, turn):
        """Smallest distance (rad) to a joint limit along the chain of moves; 0 where one of them is impossible."""
        grasp = self.grasp_pose(pitch, turn)
        held = np.linalg.inv(grasp) @ self.objects["mug"]
        q = solve_ik(moved(grasp, -BACK * grasp[:3, 2]), self._target[:6], tries=2)
        q, first = line(q, grasp)
        q, second = line(q, moved(grasp, [0, 0, LIFT]))
        if q is None:
            return 0.0
        q = solve_ik(self.hanging_pose(held, BEFORE_TIP), q, tries=2)
        q, third = line(q, self.hanging_pose(held, ON_PEG))
        q, fourth = line(q, self.hanging_pose(held, ON_PEG, LOWER))
        return 0.0 if q is None else min(first, second, third, fourth)

    # Phases -------------------------------------------------------------------------------------------------------

    def pick(self):
        """Approaches, moves in, closes, lifts; False sends the script back to the approach."""
        self.phase, self.stroke = "pre", OPEN
        choice = self.choose()
        if choice is None:
            yield from self.grip(OPEN, 5)
            return False
        goal = lambda: self.grasp_pose(*choice)  # noqa: E731
        back = lambda: moved(goal(), -BACK * goal()[:3, 2])  # noqa: E731
        if not (yield from self.free_move(back, (-0.015, 0.0, 0.015), lost=self.nudged("mug"))):
            return False
        yield from self.hesitate()
        self.phase = "down"
        if not (yield from self.line_move(goal, tolerance=0.02, limit=60, lost=self.nudged("mug"))):
            return False
        if self.hesitates_to_close():
            aside = np.array([*self.random.uniform(-0.02, 0.02, 2), 0.01])
            yield from self.line_move(back, tolerance=0.1)
            yield from self.line_move(lambda: moved(back(), aside), tolerance=0.1, limit=30)
            return False
        yield from self.hesitate()
        self.phase = "close"
        if not (yield from self.close_gripper()):
            return False
        self.phase = "lift"
        lift = moved(self.tool_now(), [0.0, 0.0, LIFT])
        yield from self.line_move(lambda: lift, speed=1.25, tolerance=0.08, limit=50)
        return np.linalg.norm(self.in_tool("mug")[:3, 3]) < 0.06

    def hang(self):
        """Brings the handle before the peg, slides it on, lowers it, lets go and backs away."""
        lost = self.slipped("mug")
        held = self.in_tool("mug")
        self.phase = "transit"
        yield from self.hesitate()
        before = self.hanging_pose(held, BEFORE_TIP)
        if not (yield from self.free_move(lambda: before, (0.0, -0.02, 0.01), tolerance=0.04, lost=lost)):
            return
        self.phase = "place"
        yield from self.hesitate()
        held = self.in_tool("mug")
        on_peg, lowered = self.hanging_pose(held, ON_PEG), self.hanging_pose(held, ON_PEG, LOWER)
        if not (yield from self.line_move(lambda: on_peg, speed=0.75, tolerance=0.04, lost=lost)):
            return
        yield from self.line_move(lambda: lowered, speed=0.4, tolerance=0.06, limit=25, lost=lost)
        self.phase = "open"
        yield from self.grip(OPEN, 8)
        self.phase = "retreat"
        away = moved(lowered, -0.090 * lowered[:3, 2])
        yield from self.line_move(lambda: away, tolerance=0.1, limit=40)


def line(q, goal):
    """Follows a straight line from joints ``q`` (6,) to tool pose ``goal``: (joints at its end, margin), or (None, 0)."""
    if q is None:
        return None, 0.0
    start, margin = tool(q), np.inf
    turn = rotation_vector(goal[:3, :3] @ start[:3, :3].T)
    for share in np.arange(1, LINE_CHECKS + 1) / LINE_CHECKS:
        place = start[:3, 3] + share * (goal[:3, 3] - start[:3, 3])
        q_next, position_error, rotation_error = follow_ik(pose_at(place, rotation_matrix(share * turn) @ start[:3, :3]), q)
        if position_error > 0.002 or rotation_error > 0.03 or np.abs(q_next - q).max() > 0.25:
            return None, 0.0
        q = q_next
        margin = min(margin, float(np.minimum(q - LIMITS[:6, 0], LIMITS[:6, 1] - q).min()))
    return q, margin
